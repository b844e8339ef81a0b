//! The worker's life: the usual way, each refusal, and random histories.

use proptest::prelude::*;

use super::*;

const NEVER: Deadlines = Deadlines {
    keepalive_ms: None,
    linger_ms: None,
    timeout_ms: None,
    upgraded_ms: None,
    stream_ms: None,
    min_rate: 0,
    max_ms: None,
};

fn hello() -> Event {
    Event::Hello { protocols: PROTOCOL }
}

fn load(listeners: usize) -> Event {
    Event::Load { listeners, drain: Drain::default() }
}

fn run(state: &mut State, events: impl IntoIterator<Item = Event>) -> Vec<Action> {
    events.into_iter().flat_map(|event| state.step(event, Duration::ZERO)).collect()
}

fn serving() -> State {
    let (mut state, _) = State::new();
    run(&mut state, [hello(), load(0), Event::Loaded(Ok(())), Event::Proved(Ok(())), Event::Go, Event::Accepting]);
    state
}

#[test]
fn a_whole_life_goes_as_told() {
    let (mut state, actions) = State::new();
    assert_eq!(actions, [Action::SendHello]);
    assert_eq!(run(&mut state, [hello(), load(2), Event::Listener, Event::Loaded(Ok(()))]), [Action::Load]);
    assert_eq!(run(&mut state, [Event::Listener]), [Action::Prove]);
    assert_eq!(run(&mut state, [Event::Proved(Ok(()))]), [Action::SendReady]);
    assert!(!state.committed());
    assert_eq!(run(&mut state, [Event::Go]), [Action::TakeOutput, Action::StartAccepting, Action::TellPluginsServing]);
    assert!(state.committed());
    assert_eq!(run(&mut state, [Event::Accepting]), [Action::SendServing]);
    assert_eq!(run(&mut state, [Event::Pause]), [Action::StopAccepting]);
    assert_eq!(run(&mut state, [Event::Stopped]), [Action::SendPaused]);
    assert_eq!(
        run(&mut state, [Event::Retire(NEVER)]),
        [Action::CloseListeners, Action::TellPluginsShutdown, Action::Drain(NEVER)]
    );
    let report = DrainReport { finished: 3, ..DrainReport::default() };
    assert_eq!(run(&mut state, [Event::Drained(report)]), [Action::SendDone(report)]);
    assert_eq!(state.deadline(), Some(EXIT_TIMEOUT));
    assert_eq!(run(&mut state, [Event::DoneAck]), [Action::Exit(0)]);
}

#[test]
fn a_probe_that_fails_keeps_it_from_being_ready() {
    let (mut state, _) = State::new();
    run(&mut state, [hello(), load(0), Event::Loaded(Ok(()))]);
    let failure = Failure::new(Stage::Prove, "no");
    assert_eq!(run(&mut state, [Event::Proved(Err(failure.clone()))]), [Action::SendFailed(failure)]);
    assert!(matches!(run(&mut state, [Event::Go])[..], [Action::Warn(_)]) && !state.committed());
}

#[test]
fn a_pause_is_taken_back_by_resume() {
    let mut state = serving();
    run(&mut state, [Event::Pause, Event::Stopped]);
    assert_eq!(run(&mut state, [Event::Resume, Event::Accepting]), [Action::StartAccepting, Action::SendServing]);
    assert_eq!(run(&mut state, [Event::Pause, Event::Resume]), [Action::StopAccepting]);
    assert_eq!(run(&mut state, [Event::Stopped]), [Action::StartAccepting]);
}

#[test]
fn retire_without_paused_stops_accepting_first() {
    let mut state = serving();
    assert_eq!(run(&mut state, [Event::Pause]), [Action::StopAccepting]);
    assert_eq!(run(&mut state, [Event::Retire(NEVER)]), [Action::TellPluginsShutdown, Action::Drain(NEVER)]);
    assert_eq!(run(&mut state, [Event::Stopped]), [Action::CloseListeners]);
}

#[test]
fn other_limits_may_follow_and_the_end_of_all() {
    let mut state = serving();
    run(&mut state, [Event::Pause, Event::Stopped, Event::Retire(NEVER)]);
    let hurry = Deadlines { keepalive_ms: Some(0), ..NEVER };
    assert_eq!(run(&mut state, [Event::Retire(hurry)]), [Action::Drain(hurry)], "the plugins know already");
    assert_eq!(run(&mut state, [Event::Cut]), [Action::CutAll]);
}

#[test]
fn sigterm_asks_once_and_serves_on() {
    let mut state = serving();
    assert_eq!(run(&mut state, [Event::Term, Event::Term]), [Action::SendReplaceMe]);
    run(&mut state, [Event::Pause, Event::Stopped, Event::Resume, Event::Accepting]);
    assert_eq!(run(&mut state, [Event::Term]), [Action::SendReplaceMe]);
}

#[test]
fn a_signal_is_for_the_plugins_of_a_worker_that_serves() {
    let mut state = serving();
    assert_eq!(run(&mut state, [Event::Hook(Hook::Usr1)]), [Action::TellPluginsHook(Hook::Usr1)]);
    run(&mut state, [Event::Pause]);
    assert_eq!(
        run(&mut state, [Event::Hook(Hook::Usr1), Event::Stopped, Event::Hook(Hook::Tstp)]),
        [Action::SendPaused]
    );
    assert_eq!(
        run(&mut state, [Event::Resume, Event::Hook(Hook::Tstp)]).last(),
        Some(&Action::TellPluginsHook(Hook::Tstp))
    );
    let (mut state, _) = State::new();
    assert_eq!(run(&mut state, [hello(), Event::Hook(Hook::Usr1)]), [], "no failure, and nobody to tell");
}

#[test]
fn a_confused_master_is_a_failure_before_ready_and_ignored_after() {
    let (mut state, _) = State::new();
    let actions = run(&mut state, [hello(), Event::Go]);
    assert!(matches!(&actions[..], [Action::SendFailed(failure)] if failure.error.ends_with("GO came out of order")));
    let mut state = serving();
    assert!(matches!(&run(&mut state, [Event::Go])[..], [Action::Warn(_)]));
    assert_eq!(run(&mut state, [Event::Pause]), [Action::StopAccepting]);
}

#[test]
fn a_master_of_another_protocol_is_refused() {
    let (mut state, _) = State::new();
    let actions = run(&mut state, [Event::Hello { protocols: Protocols { oldest: 90, newest: 91 } }]);
    assert!(matches!(&actions[..], [Action::SendFailed(failure)] if failure.stage == Stage::Spawn));
}

#[test]
fn an_orphan_ends_within_its_time() {
    let mut state = serving();
    let actions = run(&mut state, [Event::Orphaned]);
    assert!(actions.contains(&Action::EnforceEnd(Drain::default().orphan)));
    assert!(actions.contains(&Action::StopAccepting));
    assert!(actions.iter().any(|action| matches!(action, Action::Drain(limits) if limits.max_ms == Some(5000))));
    assert_eq!(run(&mut state, [Event::Drained(DrainReport::default())]), [Action::Exit(1)]);
    let (mut state, _) = State::new();
    assert_eq!(run(&mut state, [Event::Orphaned]), [Action::Exit(1)], "nothing was served yet");
}

#[test]
fn an_orphan_hears_of_it_once() {
    let mut state = serving();
    run(&mut state, [Event::Orphaned]);
    assert_eq!(run(&mut state, [Event::Orphaned]), []);
}

#[test]
fn an_orphan_that_was_retiring_only_gets_less_time() {
    let mut state = serving();
    run(&mut state, [Event::Pause, Event::Stopped, Event::Retire(NEVER)]);
    let actions = run(&mut state, [Event::Orphaned]);
    assert!(
        matches!(&actions[..], [Action::EnforceEnd(_), Action::Warn(_), Action::Drain(limits)] if limits.max_ms.is_some()),
        "{actions:?}"
    );
}

#[test]
fn a_listener_too_many_is_out_of_order() {
    let (mut state, _) = State::new();
    let actions = run(&mut state, [hello(), load(1), Event::Listener, Event::Listener]);
    assert!(matches!(&actions[..], [Action::Load, Action::SendFailed(_)]), "{actions:?}");
}

#[test]
fn a_done_that_nobody_acknowledges_is_no_clean_end() {
    let mut state = serving();
    run(&mut state, [Event::Pause, Event::Stopped, Event::Retire(NEVER), Event::Drained(DrainReport::default())]);
    assert_eq!(run(&mut state, [Event::Deadline]), [Action::Exit(1)]);
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => Just(hello()),
        2 => (0..3usize).prop_map(load),
        2 => Just(Event::Listener),
        2 => Just(Event::Loaded(Ok(()))),
        1 => Just(Event::Loaded(Err(Failure::new(Stage::Load, "no")))),
        2 => Just(Event::Proved(Ok(()))),
        1 => Just(Event::Proved(Err(Failure::new(Stage::Prove, "no")))),
        3 => Just(Event::Go),
        3 => Just(Event::Pause),
        3 => Just(Event::Resume),
        1 => Just(Event::Retire(NEVER)),
        1 => Just(Event::Cut),
        1 => Just(Event::DoneAck),
        1 => Just(Event::Broken("x".into())),
        1 => Just(Event::Orphaned),
        1 => Just(Event::Term),
        4 => Just(Event::Accepting),
        4 => Just(Event::Stopped),
        1 => Just(Event::Drained(DrainReport::default())),
        1 => Just(Event::Deadline),
    ]
}

/// What the loop around the machine has come to by its actions.
#[derive(Default)]
struct World {
    accepting: bool,
    committed: bool,
    orphaned: bool,
    draining: bool,
    done: u32,
    ended: bool,
}

impl World {
    fn act(&mut self, action: &Action) {
        assert!(!self.ended, "{action:?} after the end");
        match action {
            Action::StartAccepting => {
                assert!(!self.orphaned, "accepting without a master");
                assert!(!self.draining, "accepting while draining");
                assert!(!self.accepting, "registered twice");
                self.accepting = true;
            }
            Action::StopAccepting => {
                assert!(self.accepting, "stopped twice");
                self.accepting = false;
            }
            Action::CloseListeners => assert!(!self.accepting, "closed under an accept"),
            Action::TakeOutput => self.committed = true,
            Action::SendPaused => assert!(!self.accepting),
            Action::Drain(_) => {
                assert!(self.committed);
                self.draining = true;
            }
            Action::SendDone(_) => self.done += 1,
            Action::Exit(_) => self.ended = true,
            Action::SendFailed(_) => assert!(!self.committed, "FAILED after READY"),
            _ => {}
        }
        assert!(!self.accepting || self.committed, "accepting before GO");
        assert!(self.done <= 1);
    }
}

proptest! {
    #[test]
    fn no_history_breaks_the_rules(events in proptest::collection::vec(any_event(), 0..60), guided in any::<bool>()) {
        let (mut state, actions) = State::new();
        let mut world = World::default();
        actions.iter().for_each(|action| world.act(action));
        let start = [hello(), load(0), Event::Loaded(Ok(())), Event::Proved(Ok(())), Event::Go, Event::Accepting];
        let start = if guided { &start[..] } else { &[] };
        for event in start.iter().cloned().chain(events) {
            // The loop tells of these only after it was asked to do them.
            if matches!(event, Event::Drained(_)) && !world.draining {
                continue;
            }
            world.orphaned |= event == Event::Orphaned;
            for action in state.step(event, Duration::ZERO) {
                world.act(&action);
            }
            prop_assert!(!world.accepting || state.committed());
        }
        // Whatever came before: without a master, with the drain at its end, the worker ends.
        world.orphaned = true;
        for event in [Event::Orphaned, Event::Stopped, Event::Drained(DrainReport::default()), Event::Deadline] {
            for action in state.step(event, Duration::from_secs(60)) {
                world.act(&action);
            }
        }
        prop_assert!(world.ended);
    }
}
