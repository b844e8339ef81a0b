//! Whatever the configuration accepts, the supervisor can compute with: no deadline, sum or wait leaves the range of its type.

use proptest::prelude::*;

use super::*;

/// Values at, below and beyond the bounds; what is refused is not used.
const TIMES: [&str; 9] = [
    "0s",
    "1ns",
    "1s",
    "3650days",
    "3649days 23h 59m 59s 999ms 999us 999ns",
    "never",
    "3651days",
    "500000000000years",
    "18446744073709551615s",
];
const COUNTS: [&str; 7] = ["0", "1", "1000", "1024", "9223372036854775807", "18446744073709551615", "-1"];
const TIME_KEYS: [&str; 15] = [
    "start_timeout",
    "drain.keepalive",
    "drain.timeout",
    "drain.goaway",
    "drain.upgraded",
    "drain.max",
    "drain.orphan",
    "shutdown.delay",
    "shutdown.timeout",
    "probation.window",
    "crash.backoff",
    "crash.backoff_max",
    "crash.window",
    "crash.hold",
    "tls.ticket_rotation",
];
const COUNT_KEYS: [&str; 5] = ["workers", "max_draining", "crash.limit", "store.keep", "probation.min_requests"];

fn any_setting() -> impl Strategy<Value = String> {
    let time =
        (0..TIME_KEYS.len(), 0..TIMES.len()).prop_map(|(key, value)| format!("{}={}", TIME_KEYS[key], TIMES[value]));
    let count = (0..COUNT_KEYS.len(), 0..COUNTS.len())
        .prop_map(|(key, value)| format!("{}={}", COUNT_KEYS[key], COUNTS[value]));
    prop_oneof![3 => time, 1 => count]
}

/// Those of `settings` that are accepted one by one.
fn accepted(settings: Vec<String>) -> Config {
    let kept: Vec<String> =
        settings.into_iter().filter(|setting| Config::load(None, std::slice::from_ref(setting)).is_ok()).collect();
    Config::load(None, &kept).unwrap_or_default()
}

/// The state with its clock alone: with times of nothing it may be due again at once, which stories take for a fault.
struct Life {
    state: State,
    now: Time,
}

impl Life {
    fn event(&mut self, event: Event) {
        self.state.step(event, self.now);
        self.state.outlook();
        self.state.generations(self.now);
    }

    fn asks(&mut self, verb: Verb, cold: bool) {
        let options = OpOptions { cold, ..OpOptions::default() };
        let cause = Cause::Admin { peer: "test".into() };
        self.event(Event::Asked { verb, cause, options, caller: None });
    }

    fn says(&mut self, generation: u64, message: ToMaster) {
        self.event(Event::Message { generation: Generation(generation), message });
    }

    fn up(&mut self, generation: u64) {
        self.event(Event::Spawned { generation: Generation(generation), result: Ok(1000) });
        for message in [hello(), ToMaster::Ready, ToMaster::Serving] {
            self.says(generation, message);
        }
    }

    /// Waits for whatever is due next.
    fn wait(&mut self) {
        if let Some(deadline) = self.state.next_deadline() {
            self.now = self.now.max(deadline);
            self.event(Event::Tick);
        }
    }
}

/// A life with all that makes deadlines: a start, a switch with probation, crashes, a cold reload, a shutdown.
fn live(settings: Settings) {
    let with = |id| Ok(Arc::new(SetInfo { settings: settings.clone(), ..(*info(id, &["hello"])).clone() }));
    let state = State::new(settings.clone(), BadStart::LastGood, Memory::default()).with_seed(7);
    let mut life = Life { state, now: Time::ZERO };
    let options = OpOptions::default();
    life.event(Event::Asked { verb: Verb::Reload, cause: Cause::Start, options, caller: None });
    life.event(Event::Prepared { op: OpId(1), result: with(1) });
    life.up(1);
    life.asks(Verb::Reload, false);
    life.says(1, saved());
    life.event(Event::Prepared { op: OpId(2), result: with(2) });
    life.up(2);
    life.says(1, ToMaster::Paused);
    life.wait();
    for generation in 2..6 {
        let exit = ExitKind::Signal(11);
        life.event(Event::Exited { generation: Generation(generation), exit, output: String::new() });
        life.wait();
        life.up(generation + 1);
    }
    life.asks(Verb::Reload, true);
    life.wait();
    life.asks(Verb::Shutdown, false);
    life.wait();
    life.asks(Verb::Shutdown, false);
    life.wait();
}

proptest! {
    #[test]
    fn accepted_configuration_never_overflows_a_deadline(settings in proptest::collection::vec(any_setting(), 1..12)) {
        live(Settings::of(&accepted(settings)));
    }
}

#[test]
fn longest_times_together_never_overflow_a_deadline() {
    let settings: Vec<String> = TIME_KEYS[..14].iter().map(|key| format!("{key}=3650days")).collect();
    let config = Config::load(None, &settings).unwrap();
    assert_eq!(config.drain.max, Limit::After(crate::config::MAX_DURATION));
    live(Settings::of(&config));
}
