//! Random histories against all invariants at once: every child is reaped, every caller answered once, and something serves
//! again in the end.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::control::Hook;
use crate::master::systemd::{Told, View};
use crate::report::Change;

/// One random thing that may happen. Numbers choose among what is possible at the moment.
#[derive(Clone, Debug)]
enum Chance {
    Reload {
        force: bool,
        cold: bool,
    },
    Rollback {
        to: Option<u64>,
        cold: bool,
    },
    Restart {
        cold: bool,
    },
    /// What a restart waits for comes: the test's result, then another program, or none.
    TakeOver {
        how: usize,
    },
    Shutdown {
        signal: bool,
    },
    /// Of all that drains, or of one number.
    Cut {
        one: Option<u64>,
    },
    Prepare {
        ok: bool,
        empty: bool,
        at: usize,
    },
    Spawn {
        ok: bool,
    },
    /// The child does what it is asked to.
    Obey {
        at: usize,
    },
    /// The child says something out of turn.
    Babble {
        at: usize,
        what: usize,
    },
    Die {
        at: usize,
    },
    /// What is counted of the generation on probation.
    Count {
        requests: u64,
        failures: u64,
    },
    Hook,
    Wait {
        ms: u64,
    },
}

fn chance() -> impl Strategy<Value = Chance> {
    prop_oneof![
        4 => (0..5_usize, 0..3_usize).prop_map(|(force, cold)| Chance::Reload { force: force == 0, cold: cold == 0 }),
        1 => (proptest::option::of(1..10_u64), any::<bool>()).prop_map(|(to, cold)| Chance::Rollback { to, cold }),
        1 => any::<bool>().prop_map(|cold| Chance::Restart { cold }),
        4 => (0..4_usize).prop_map(|how| Chance::TakeOver { how }),
        1 => any::<bool>().prop_map(|signal| Chance::Shutdown { signal }),
        4 => prop::option::weighted(0.3, 0..12_u64).prop_map(|one| Chance::Cut { one }),
        6 => (0..10_usize, any::<bool>(), any::<usize>())
            .prop_map(|(ok, empty, at)| Chance::Prepare { ok: ok != 0, empty: empty && ok == 1, at }),
        6 => (0..10_usize).prop_map(|ok| Chance::Spawn { ok: ok != 0 }),
        30 => any::<usize>().prop_map(|at| Chance::Obey { at }),
        2 => (any::<usize>(), 0..10_usize).prop_map(|(at, what)| Chance::Babble { at, what }),
        2 => any::<usize>().prop_map(|at| Chance::Die { at }),
        2 => (0..30_u64, 0..30_u64).prop_map(|(requests, failures)| Chance::Count { requests, failures }),
        2 => Just(Chance::Hook),
        4 => (0..40_000_u64).prop_map(|ms| Chance::Wait { ms }),
    ]
}

fn admin() -> Cause {
    Cause::Admin { peer: String::new() }
}

/// Plays the world around the state and keeps count.
struct World {
    state: State,
    now: Time,
    next_set: u64,
    next_caller: u64,
    preparing: Vec<(OpId, Source)>,
    testing: Vec<TestId>,
    leaving: Option<OpId>,
    /// What each set is made of.
    contents: BTreeMap<SetId, Arc<SetInfo>>,
    spawning: Vec<Generation>,
    /// What each living child would say next, in order.
    children: BTreeMap<Generation, Vec<ToMaster>>,
    killed: BTreeSet<Generation>,
    /// Those that accept, from GO or RESUME to PAUSED or RETIRE.
    accepting: BTreeSet<Generation>,
    asked: BTreeSet<Caller>,
    answered: BTreeSet<Caller>,
    finished: bool,
    told: Told,
    unit: Unit,
}

/// What systemd makes of what it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Starting,
    Running,
    Reloading,
    Stopping,
}

impl World {
    fn new() -> World {
        let mut world = World {
            state: State::new(settings(), BadStart::Exit, Memory::default()),
            now: Time::ZERO,
            next_set: 1,
            next_caller: 1,
            preparing: Vec::new(),
            testing: Vec::new(),
            leaving: None,
            contents: BTreeMap::new(),
            spawning: Vec::new(),
            children: BTreeMap::new(),
            killed: BTreeSet::new(),
            accepting: BTreeSet::new(),
            asked: BTreeSet::new(),
            answered: BTreeSet::new(),
            finished: false,
            told: Told::default(),
            unit: Unit::Starting,
        };
        world.ask(Verb::Reload, Cause::Start, OpOptions::default());
        world
    }

    fn ask(&mut self, verb: Verb, cause: Cause, options: OpOptions) {
        if self.finished {
            return;
        }
        let caller = Caller(self.next_caller);
        self.next_caller += 1;
        self.asked.insert(caller);
        self.event(Event::Asked { verb, cause, options, caller: Some(caller) });
    }

    fn event(&mut self, event: Event) {
        if self.finished {
            return;
        }
        for action in self.state.step(event, self.now) {
            assert!(!self.finished, "{action:?} after the last action");
            match action {
                Action::Prepare { op, source, .. } => self.preparing.push((op, source)),
                Action::Test { test, .. } => self.testing.push(test),
                Action::Leave { op } => assert!(self.leaving.replace(op).is_none(), "told twice to leave"),
                Action::Spawn { generation, .. } => {
                    let alone = self.children.is_empty() && self.spawning.is_empty();
                    assert!(self.state.stopped.is_none() || alone, "not alone: {:#?}", self.state);
                    self.spawning.push(generation);
                }
                Action::Load { generation, probes: Probes::Skip, .. } => self.will_say(generation, &[ToMaster::Ready]),
                Action::Load { generation, .. } => self.will_say(generation, &[ToMaster::Proving, ToMaster::Ready]),
                Action::Send { generation, message } => match message {
                    ToChild::Go | ToChild::Resume => {
                        self.accepting.insert(generation);
                        self.will_say(generation, &[ToMaster::Serving]);
                    }
                    ToChild::Save => self.will_say(generation, &[saved()]),
                    ToChild::Pause => self.will_say(generation, &[ToMaster::Paused]),
                    ToChild::Retire(_) => {
                        self.accepting.remove(&generation);
                        self.will_say(generation, &[ToMaster::Done(DrainReport::default())]);
                    }
                    ToChild::Cut | ToChild::DoneAck => {}
                    ToChild::Hook(_) => {
                        assert!(self.children.contains_key(&generation), "nobody is there to hear it");
                        assert_eq!(self.state.serving(), Some(generation), "only what serves hears it");
                    }
                    other => panic!("the loop sends {other:?} by itself"),
                },
                Action::Handover { from, to } => {
                    assert!(self.children.contains_key(&from) && self.children.contains_key(&to));
                }
                Action::Kill { generation } => {
                    assert!(self.children.contains_key(&generation), "killed what is not there");
                    self.accepting.remove(&generation);
                    self.killed.insert(generation);
                }
                Action::Answer { caller, .. } => assert!(self.answered.insert(caller), "{caller:?} answered twice"),
                Action::Remember(memory) => {
                    assert!(memory.good.len() <= 2);
                    let kept: BTreeSet<SetId> = self.state.sets_in_use().collect();
                    assert!(memory.good.iter().all(|set| kept.contains(set)), "{memory:?} {kept:?}");
                }
                Action::KeepStates { generation } => assert!(self.children.contains_key(&generation)),
                Action::Note(_) | Action::CloseListeners => {}
                Action::Finish(_) => self.finished = true,
            }
        }
        assert!(self.accepting.len() <= 2, "{:?} accept: {:#?}", self.accepting, self.state);
        if !self.finished {
            assert_woken_in_time(&self.state, self.now);
        }
        self.tell();
    }

    /// Tells systemd, which must take the unit for what it is.
    fn tell(&mut self) {
        let clock = self.now.as_micros() as u64;
        for text in self.told.tell(View::of(&self.state, self.now, None), self.now, clock) {
            self.unit = match (self.unit, text.lines().next().unwrap_or_default()) {
                (Unit::Stopping, "READY=1" | "RELOADING=1" | "STOPPING=1") => panic!("{text} after STOPPING=1"),
                (Unit::Starting, "RELOADING=1") => panic!("{text} before READY=1"),
                (_, "READY=1") => Unit::Running,
                (_, "RELOADING=1") => Unit::Reloading,
                (_, "STOPPING=1") => Unit::Stopping,
                (unit, _) => unit,
            };
        }
        let expected = match self.unit {
            _ if self.state.is_shutting_down() => Unit::Stopping,
            Unit::Starting if self.state.serving().is_none() => Unit::Starting,
            _ if self.state.changing().is_some() => Unit::Reloading,
            _ => Unit::Running,
        };
        assert_eq!(self.unit, expected, "{:#?}", self.state);
        let waits = matches!(self.unit, Unit::Starting | Unit::Reloading | Unit::Stopping);
        assert!(
            !waits || self.state.is_ending() || self.state.outlook().is_some(),
            "no end in sight: {:#?}",
            self.state
        );
    }

    fn will_say(&mut self, generation: Generation, messages: &[ToMaster]) {
        if let Some(queue) = self.children.get_mut(&generation) {
            queue.extend_from_slice(messages);
        }
    }

    fn pick(&self, at: usize) -> Option<Generation> {
        let keys: Vec<_> = self.children.keys().copied().collect();
        (!keys.is_empty()).then(|| keys[at % keys.len()])
    }

    fn happen(&mut self, chance: Chance) {
        match chance {
            Chance::Reload { force, cold } => {
                self.ask(Verb::Reload, admin(), OpOptions { force, cold, ..OpOptions::default() });
            }
            Chance::Cut { one } => {
                let options = OpOptions { generation: one.map(Generation), ..OpOptions::default() };
                self.ask(Verb::Cut, admin(), options);
            }
            Chance::Rollback { to, cold } => {
                self.ask(Verb::Rollback, admin(), OpOptions { to: to.map(Generation), cold, ..OpOptions::default() });
            }
            Chance::Restart { cold } => self.ask(Verb::Restart, admin(), OpOptions { cold, ..OpOptions::default() }),
            Chance::TakeOver { how } => self.take_over(how),
            Chance::Shutdown { signal: true } => {
                let cause = Cause::Signal { signal: "SIGTERM".into(), sender: 1 };
                self.ask(Verb::Shutdown, cause, OpOptions::default());
            }
            Chance::Shutdown { signal: false } => self.ask(Verb::Shutdown, admin(), OpOptions::default()),
            Chance::Prepare { ok, empty, at } => {
                if self.preparing.is_empty() {
                    return;
                }
                let (op, source) = self.preparing.remove(at % self.preparing.len());
                let result =
                    if ok { Ok(self.made(source, empty, at)) } else { Err(Failure::new(Stage::Snapshot, "x")) };
                self.event(Event::Prepared { op, result });
            }
            Chance::Spawn { ok } => {
                let Some(generation) = self.spawning.pop() else { return };
                let result = if ok {
                    self.children.insert(generation, vec![hello()]);
                    Ok(generation.0 as i32)
                } else {
                    Err(Failure::new(Stage::Spawn, "x"))
                };
                self.event(Event::Spawned { generation, result });
            }
            Chance::Obey { at } => {
                let Some(generation) = self.pick(at) else { return };
                let queue = self.children.get_mut(&generation).unwrap();
                if self.killed.contains(&generation) {
                    self.reap(generation, ExitKind::Signal(9));
                } else if !queue.is_empty() {
                    let message = queue.remove(0);
                    let done = matches!(message, ToMaster::Done(_));
                    if message == ToMaster::Paused {
                        self.accepting.remove(&generation);
                    }
                    self.event(Event::Message { generation, message });
                    if done {
                        self.reap(generation, ExitKind::Code(0));
                    }
                }
            }
            Chance::Babble { at, what } => {
                let Some(generation) = self.pick(at) else { return };
                let plugin = "hello".to_string();
                let message = match what {
                    0 => hello(),
                    1 => ToMaster::Ready,
                    2 => ToMaster::Serving,
                    3 => ToMaster::Paused,
                    4 => ToMaster::ReplaceMe,
                    5 => ToMaster::Failed(Failure::new(Stage::Load, "x")),
                    6 => ToMaster::Loading { plugin },
                    7 => ToMaster::Proving,
                    8 => saved(),
                    _ => ToMaster::Control { plugin, verb: ControlVerb::Reload },
                };
                self.event(Event::Message { generation, message });
            }
            Chance::Die { at } => {
                if let Some(generation) = self.pick(at) {
                    self.reap(generation, ExitKind::Signal(11));
                }
            }
            Chance::Count { requests, failures } => {
                if let Some(generation) = self.state.watched() {
                    self.event(Event::Counted { generation, requests, failures });
                }
            }
            Chance::Hook => self.event(Event::Hook { hook: Hook::Tstp, cause: admin() }),
            Chance::Wait { ms } => {
                self.now += Duration::from_millis(ms);
                self.event(Event::Tick);
            }
        }
    }

    fn take_over(&mut self, how: usize) {
        let failure = || Failure::new(Stage::Restart, "x");
        // Late ones come too, and count for nothing.
        if !self.testing.is_empty() {
            let test = self.testing.remove(0);
            return self.event(Event::Tested { test, result: if how == 0 { Err(failure()) } else { Ok(()) } });
        }
        let Some(op) = self.leaving.take() else { return };
        if !self.state.may_leave(op) || how == 0 {
            let failure = self.state.may_leave(op).then(failure);
            return self.event(Event::Stayed { op, failure });
        }
        // All that the next program knows is what it can read.
        let json = serde_json::to_string(&self.state.save(self.now)).unwrap();
        let outcome = if how == 1 { Err(failure()) } else { Ok(()) };
        let saved = serde_json::from_str(&json).unwrap();
        assert!(self.preparing.is_empty() || self.finished || !self.preparing.iter().any(|(one, _)| *one == op));
        self.preparing.clear();
        self.state = State::resumed(settings(), BadStart::Exit, saved, &self.contents, outcome).unwrap();
        self.told = Told::by_another();
        self.event(Event::Tick);
    }

    /// The set that comes of `source`: of a few contents that come again and again, so that some are held back.
    fn made(&mut self, source: Source, empty: bool, at: usize) -> Arc<SetInfo> {
        let id = SetId(self.next_set);
        self.next_set += 1;
        let info = if at.is_multiple_of(2) { info } else { info_on_probation };
        let mut set = match source {
            Source::Again { set, .. } => (*self.contents[&set]).clone(),
            Source::Files { .. } if empty => (*info(id.0, &[])).clone(),
            Source::Files { held, instead } => {
                let file = (*info((at % 5) as u64, &["hello"])).clone();
                let change = Change::Plugin { plugin: "hello".into(), sha256: file.plugins[0].sha256.clone() };
                match instead.filter(|_| held.contains(&change)) {
                    Some(instead) => SetInfo { held: vec![change], ..(*self.contents[&instead]).clone() },
                    None => file,
                }
            }
        };
        set.id = id;
        // Often enough to meet sets that are given up, and nothing that is left.
        if at.is_multiple_of(3) {
            set.settings.crash.limit = 1 + at % 2;
        }
        if at.is_multiple_of(5) {
            set.settings.shutdown.delay = Duration::from_secs(3);
        }
        let set = Arc::new(set);
        self.contents.insert(id, set.clone());
        set
    }

    fn reap(&mut self, generation: Generation, exit: ExitKind) {
        self.children.remove(&generation);
        self.killed.remove(&generation);
        self.accepting.remove(&generation);
        self.event(Event::Exited { generation, exit, output: String::new() });
    }

    /// Whatever the history was, a shutdown now ends the master, with all children reaped and all callers answered.
    fn end(&mut self) {
        self.happen(Chance::Shutdown { signal: true });
        self.happen(Chance::Shutdown { signal: true });
        for round in 0..10_000 {
            if self.finished {
                break;
            }
            self.happen(Chance::Spawn { ok: true });
            self.happen(Chance::Prepare { ok: true, empty: false, at: 0 });
            self.happen(Chance::TakeOver { how: 2 });
            self.happen(Chance::Obey { at: round });
            if let Some(deadline) = self.state.next_deadline() {
                self.now = self.now.max(deadline);
                self.event(Event::Tick);
            }
        }
        assert!(self.finished, "it never ends: {:#?}", self.state);
        assert!(self.children.is_empty(), "not reaped: {:?}", self.children.keys());
        assert_eq!(self.asked, self.answered, "every caller is answered");
    }
}

/// A few thousand, or as many as `BATON_HISTORIES` says.
fn cases() -> u32 {
    std::env::var("BATON_HISTORIES").ok().map_or(2_000, |count| count.parse().expect("a number"))
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cases(),
        max_shrink_iters: 20_000,
        // Of shutdowns where none is wanted.
        max_local_rejects: u32::MAX,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_history_breaks_an_invariant_or_forgets_a_caller_or_a_child(
        chances in proptest::collection::vec(chance(), 0..120),
    ) {
        let mut world = World::new();
        for chance in chances {
            world.happen(chance);
        }
        world.end();
    }

    #[test]
    fn left_alone_after_any_history_something_serves_again(
        chances in proptest::collection::vec(
            chance().prop_filter("no shutdown", |chance| !matches!(chance, Chance::Shutdown { .. })), 0..80),
    ) {
        let mut world = World::new();
        for chance in chances {
            world.happen(chance);
        }
        for round in 0..2_000 {
            world.happen(Chance::Spawn { ok: true });
            world.happen(Chance::Prepare { ok: true, empty: false, at: 0 });
            world.happen(Chance::TakeOver { how: 2 });
            world.happen(Chance::Obey { at: round });
            if round % 50 == 0 {
                world.happen(Chance::Wait { ms: 11_000 });
            }
        }
        prop_assert!(world.finished || world.state.serves_own(), "{:#?}", world.state);
        world.end();
    }
}
