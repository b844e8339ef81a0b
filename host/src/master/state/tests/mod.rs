//! Each promise of the supervisor with its failure twin, step by step; random histories are in `histories`. Above 600 lines, since
//! the harness that drives the supervisor is here too, for all files to use.

mod cold;
mod crashes;
mod cut;
mod extremes;
mod fallback;
mod histories;
mod invariants;
mod outlook;
mod past;
mod probation;
mod refusals;
mod reports;
mod restart;
mod rollback;
mod saving;
mod seen;
mod shown;
mod shutdown;
mod stand_in;
mod switch;

use super::*;
use crate::control::{ControlVerb, Deadlines, EXIT_TIMEOUT, Hook, PAUSE_TIMEOUT, PROTOCOL, SWITCH_TIMEOUT, ToMaster};
use crate::report::{DrainReport, OpResult, Stage};
use crate::sys::process::ExitKind;

fn settings() -> Settings {
    Settings::of(&Config::default())
}

/// A switch is followed by a minute of probation, in which no more than half of the answers may be failures.
fn on_probation(mut settings: Settings) -> Settings {
    settings.probation = Probation { window: Duration::from_secs(60), min_requests: 10, max_failure_ratio: Some(0.5) };
    settings
}

fn info_on_probation(id: u64, names: &[&str]) -> Arc<SetInfo> {
    let mut set = (*info(id, names)).clone();
    set.settings = on_probation(set.settings);
    Arc::new(set)
}

fn info(id: u64, names: &[&str]) -> Arc<SetInfo> {
    let plugin = |name: &&str| PluginStatus {
        name: name.to_string(),
        version: "1".into(),
        mount: "/".into(),
        sha256: format!("{id}"),
        file: String::new(),
        api: String::new(),
        rustc: String::new(),
        debug: false,
    };
    Arc::new(SetInfo {
        id: SetId(id),
        sha256: format!("set {id} {names:?}"),
        config: "config".into(),
        plugins: names.iter().map(plugin).collect(),
        controllers: names.iter().map(ToString::to_string).collect(),
        sections: names.iter().map(|name| (name.to_string(), "section".into())).collect(),
        facts: Arc::default(),
        in_folder: names.len(),
        held: Vec::new(),
        settings: settings(),
    })
}

fn hello() -> ToMaster {
    ToMaster::Hello { protocols: PROTOCOL, version: "1".into() }
}

/// Nothing to hand on.
fn saved() -> ToMaster {
    ToMaster::Saved { states: Vec::new(), failed: Vec::new(), memory: None }
}

/// The loop sleeps until the deadline that the state names: nothing may be due before it, and nothing be left at it.
#[track_caller]
fn assert_woken_in_time(state: &State, now: Time) {
    /// Longer than any wait of a supervisor.
    const FOR_EVER: Duration = Duration::from_secs(1_000_000);
    let deadline = state.next_deadline();
    assert!(deadline.is_none_or(|deadline| deadline > now), "the loop would spin: {state:#?}");
    let before = deadline.map_or(now + FOR_EVER, |deadline| deadline - Duration::from_nanos(1));
    let actions = state.clone().step(Event::Tick, before);
    assert!(actions.is_empty(), "the loop would sleep through {actions:?} until {deadline:?}: {state:#?}");
}

/// A state with its clock, for stories told step by step.
struct Story {
    state: State,
    now: Time,
    answers: Vec<(Caller, Report)>,
    log: Vec<Action>,
    /// What was written down last.
    written: Memory,
    /// Whether who is asked for what it hands on says at once that it is nothing.
    saves: bool,
}

impl Story {
    fn new() -> Story {
        Story {
            state: State::new(settings(), BadStart::Exit, Memory::default()),
            now: Time::ZERO,
            answers: Vec::new(),
            log: Vec::new(),
            written: Memory::default(),
            saves: true,
        }
    }

    /// Generation 1 serves set 1.
    fn serving() -> Story {
        let mut story = Story::new();
        story.ask(Cause::Start, None);
        story.prepared(1, Ok(info(1, &["hello"])));
        story.up(1);
        story
    }

    fn event(&mut self, event: Event) -> Vec<Action> {
        let mut actions = self.state.step(event, self.now);
        actions.retain(|action| match action {
            Action::Remember(memory) => {
                self.written = memory.clone();
                false
            }
            _ => true,
        });
        for action in &actions {
            if let Action::Answer { caller, report } = action {
                self.answers.push((*caller, (**report).clone()));
            }
        }
        let asked = |action: &Action| matches!(action, Action::Send { message: ToChild::Save, .. });
        if self.saves
            && let Some(at) = actions.iter().position(asked)
            && let Action::Send { generation, .. } = actions.remove(at)
        {
            self.log.extend(actions.clone());
            let answered = self.event(Event::Message { generation, message: saved() });
            actions.extend(answered.into_iter().filter(|action| !matches!(action, Action::KeepStates { .. })));
            return actions;
        }
        self.log.extend(actions.iter().filter(|action| !matches!(action, Action::KeepStates { .. })).cloned());
        if !actions.iter().any(|action| matches!(action, Action::Finish(_))) {
            assert_woken_in_time(&self.state, self.now);
        }
        actions
    }

    fn ask(&mut self, cause: Cause, caller: Option<u64>) -> Vec<Action> {
        let caller = caller.map(Caller);
        self.event(Event::Asked { verb: Verb::Reload, cause, options: OpOptions::default(), caller })
    }

    fn reload(&mut self, caller: u64) -> Vec<Action> {
        self.ask(Cause::Admin { peer: "test".into() }, Some(caller))
    }

    fn term(&mut self) -> Vec<Action> {
        let cause = Cause::Signal { signal: "SIGTERM".into(), sender: 1 };
        self.event(Event::Asked { verb: Verb::Shutdown, cause, options: OpOptions::default(), caller: None })
    }

    fn prepared(&mut self, op: u64, result: Result<Arc<SetInfo>, Failure>) -> Vec<Action> {
        self.event(Event::Prepared { op: OpId(op), result })
    }

    fn says(&mut self, generation: u64, message: ToMaster) -> Vec<Action> {
        self.event(Event::Message { generation: Generation(generation), message })
    }

    fn spawned(&mut self, generation: u64) {
        self.event(Event::Spawned { generation: Generation(generation), result: Ok(1000 + generation as i32) });
    }

    fn dies(&mut self, generation: u64, exit: ExitKind) -> Vec<Action> {
        self.event(Event::Exited { generation: Generation(generation), exit, output: "last words".into() })
    }

    fn ready(&mut self, generation: u64) -> Vec<Action> {
        self.spawned(generation);
        self.says(generation, hello());
        self.says(generation, ToMaster::Ready)
    }

    fn up(&mut self, generation: u64) -> Vec<Action> {
        self.ready(generation);
        self.says(generation, ToMaster::Serving)
    }

    fn wait(&mut self, time: Duration) -> Vec<Action> {
        self.now += time;
        self.event(Event::Tick)
    }

    /// Generation 2 has taken over from generation 1, which stands by.
    fn on_probation() -> Story {
        let mut story = Story::serving();
        story.reload(1);
        story.prepared(2, Ok(info_on_probation(2, &["hello"])));
        story.up(2);
        assert_eq!(sends(&story.says(1, ToMaster::Paused), 1), [] as [&ToChild; 0]);
        story
    }

    fn counted(&mut self, generation: u64, requests: u64, failures: u64) -> Vec<Action> {
        self.event(Event::Counted { generation: Generation(generation), requests, failures })
    }

    fn leaves(&mut self, generation: u64) {
        self.says(generation, ToMaster::Done(DrainReport::default()));
        self.dies(generation, ExitKind::Code(0));
    }

    fn answer(&self, caller: u64) -> &Report {
        let mut answers = self.answers.iter().filter(|(who, _)| *who == Caller(caller));
        let answer = &answers.next().expect("an answer").1;
        assert!(answers.next().is_none(), "answered twice");
        answer
    }

    fn serving_generation(&self) -> Option<u64> {
        self.state.serving().map(|generation| generation.0)
    }

    fn finished(&self) -> Option<&Exit> {
        self.log.iter().find_map(|action| match action {
            Action::Finish(exit) => Some(exit),
            _ => None,
        })
    }
}

fn sends(actions: &[Action], generation: u64) -> Vec<&ToChild> {
    let of = |action| match action {
        &Action::Send { generation: to, ref message } if to == Generation(generation) => Some(message),
        _ => None,
    };
    actions.iter().filter_map(of).collect()
}

fn kills(actions: &[Action], generation: u64) -> bool {
    actions.contains(&Action::Kill { generation: Generation(generation) })
}

fn spawns(actions: &[Action]) -> Vec<(u64, u64)> {
    let of = |action: &Action| match action {
        Action::Spawn { generation, set } => Some((generation.0, set.0)),
        _ => None,
    };
    actions.iter().filter_map(of).collect()
}

#[test]
fn a_switch_goes_through_every_step_and_answers_when_the_old_one_accepts_no_more() {
    let mut story = Story::serving();
    story.reload(7);
    assert_eq!(spawns(&story.prepared(2, Ok(info(2, &["hello", "new"])))), [(2, 2)]);
    assert_eq!(sends(&story.ready(2), 2), [&ToChild::Go]);
    assert!(story.answers.is_empty(), "not before SERVING");
    let committed = story.says(2, ToMaster::Serving);
    assert_eq!(sends(&committed, 1), [&ToChild::Pause]);
    assert!(story.answers.is_empty(), "a new connection may still be the old one's");
    assert!(matches!(sends(&story.says(1, ToMaster::Paused), 1)[..], [ToChild::Retire(_)]));
    let report = story.answer(7);
    assert_eq!(
        (report.result, report.generation, report.from),
        (OpResult::Switched, Some(Generation(2)), Some(Generation(1)))
    );
    let plugins = report.plugins.as_ref().unwrap();
    assert_eq!((&plugins.changed[..], &plugins.added[..]), (&["hello".to_string()][..], &["new".to_string()][..]));
    let done = story.says(1, ToMaster::Done(DrainReport { finished: 3, ..DrainReport::default() }));
    assert_eq!(sends(&done, 1), [&ToChild::DoneAck]);
    story.dies(1, ExitKind::Code(0));
    assert_eq!(story.state.report(OpId(2)).unwrap().drain.unwrap().finished, 3);
    assert_eq!(story.serving_generation(), Some(2));
}

#[test]
fn every_failure_before_serving_leaves_the_old_generation_untouched() {
    let failure = || Failure::new(Stage::Snapshot, "read it");
    type Step = fn(&mut Story);
    let endings: [(Step, Stage); 8] =
        [
            (
                |story| {
                    drop(story.event(Event::Spawned {
                        generation: Generation(2),
                        result: Err(Failure::new(Stage::Spawn, "x")),
                    }))
                },
                Stage::Spawn,
            ),
            (
                |story| {
                    story.spawned(2);
                    story.dies(2, ExitKind::Code(1));
                },
                Stage::Spawn,
            ),
            (
                |story| {
                    story.spawned(2);
                    story.says(2, hello());
                    story.dies(2, ExitKind::Signal(11));
                },
                Stage::Load,
            ),
            (
                |story| {
                    story.spawned(2);
                    story.says(2, hello());
                    story.says(2, ToMaster::Failed(Failure::new(Stage::Load, "x")));
                    story.dies(2, ExitKind::Signal(9));
                },
                Stage::Load,
            ),
            (
                |story| {
                    story.spawned(2);
                    story.says(2, hello());
                    story.wait(Duration::from_secs(31));
                    story.dies(2, ExitKind::Signal(9));
                },
                Stage::Spawn,
            ),
            (
                |story| {
                    story.ready(2);
                    story.dies(2, ExitKind::Signal(6));
                },
                Stage::Switch,
            ),
            (
                |story| {
                    story.ready(2);
                    story.wait(SWITCH_TIMEOUT);
                    story.dies(2, ExitKind::Signal(9));
                },
                Stage::Switch,
            ),
            (
                |story| {
                    story.spawned(2);
                    story.says(2, ToMaster::Ready);
                    story.dies(2, ExitKind::Signal(9));
                },
                Stage::Spawn,
            ),
        ];
    for (end, stage) in endings {
        let mut story = Story::serving();
        story.reload(7);
        let before = story.log.len();
        story.prepared(2, Ok(info(2, &["hello"])));
        end(&mut story);
        assert_eq!((story.answer(7).result, story.answer(7).stage), (OpResult::Refused, Some(stage)));
        assert_eq!(story.answer(7).serving, Some(Generation(1)));
        assert!(sends(&story.log[before..], 1).is_empty(), "the old one heard nothing");
        assert_eq!(story.serving_generation(), Some(1));
    }
    let mut story = Story::serving();
    story.reload(7);
    story.prepared(2, Err(failure()));
    assert_eq!(story.answer(7).stage, Some(Stage::Snapshot));
}

#[test]
fn the_plugin_whose_init_kills_or_hangs_is_named() {
    for hang in [false, true] {
        let mut story = Story::serving();
        story.reload(7);
        story.prepared(2, Ok(info(2, &["hello"])));
        story.spawned(2);
        story.says(2, hello());
        story.says(2, ToMaster::Loading { plugin: "hello".into() });
        if hang {
            assert!(kills(&story.wait(Duration::from_secs(30)), 2));
        } else {
            story.dies(2, ExitKind::Signal(11));
            assert_eq!(story.answer(7).detail.as_deref(), Some("last words"));
        }
        assert_eq!((story.answer(7).stage, story.answer(7).plugin.as_deref()), (Some(Stage::Load), Some("hello")));
    }
}

#[test]
fn a_generation_that_does_not_prove_itself_leaves_the_old_one_untouched() {
    type Step = fn(&mut Story);
    let endings: [Step; 3] = [
        |story| drop(story.says(2, ToMaster::Failed(Failure::new(Stage::Prove, "pass")))),
        |story| drop(story.dies(2, ExitKind::Signal(6))),
        |story| assert!(kills(&story.wait(Duration::from_secs(30)), 2)),
    ];
    for end in endings {
        let mut story = Story::serving();
        story.reload(7);
        story.prepared(2, Ok(info(2, &["hello"])));
        story.spawned(2);
        let load = story.says(2, hello());
        assert!(matches!(load[..], [Action::Load { probes: Probes::Send, .. }]), "{load:?}");
        story.says(2, ToMaster::Loading { plugin: "hello".into() });
        let before = story.log.len();
        assert_eq!(story.says(2, ToMaster::Proving), []);
        end(&mut story);
        assert_eq!((story.answer(7).result, story.answer(7).stage), (OpResult::Refused, Some(Stage::Prove)));
        assert!(sends(&story.log[before..], 1).is_empty() && sends(&story.log[before..], 2).is_empty());
        assert_eq!(story.serving_generation(), Some(1));
    }
}

#[test]
fn probes_take_their_own_part_of_the_time() {
    let mut story = Story::serving();
    story.reload(7);
    story.prepared(2, Ok(info(2, &["hello"])));
    story.spawned(2);
    story.says(2, hello());
    story.wait(Duration::from_millis(3));
    story.says(2, ToMaster::Proving);
    story.wait(Duration::from_millis(4));
    story.says(2, ToMaster::Ready);
    story.says(2, ToMaster::Serving);
    story.says(1, ToMaster::Paused);
    let ms = story.answer(7).ms.unwrap();
    assert_eq!((ms.load, ms.prove), (3.0, 4.0));
}

#[test]
fn a_set_that_comes_back_after_a_crash_is_not_probed() {
    let mut story = Story::serving();
    story.dies(1, ExitKind::Signal(9));
    story.spawned(2);
    let load = story.says(2, hello());
    assert!(matches!(load[..], [Action::Load { probes: Probes::Skip, .. }]), "{load:?}");
}

#[test]
fn three_failing_reloads_do_not_hinder_a_good_one() {
    let mut story = Story::serving();
    for turn in 0..3 {
        story.reload(turn);
        story.prepared(2 + turn, Ok(info(2, &["hello"])));
        let generation = 2 + turn;
        story.spawned(generation);
        story.says(generation, hello());
        story.says(generation, ToMaster::Failed(Failure::new(Stage::Load, "x")));
        if turn % 2 == 0 {
            story.dies(generation, ExitKind::Signal(9));
        }
    }
    story.reload(9);
    story.prepared(5, Ok(info(5, &["hello"])));
    story.up(5);
    story.says(1, ToMaster::Paused);
    assert_eq!(story.answer(9).result, OpResult::Switched);
}

#[test]
fn requests_during_an_operation_share_the_next_one_and_all_are_answered() {
    let mut story = Story::serving();
    story.reload(1);
    story.reload(2);
    story.reload(3);
    story.prepared(2, Ok(info(2, &["hello"])));
    story.up(2);
    let next = story.says(1, ToMaster::Paused);
    assert_eq!(story.answers.len(), 1, "the others asked after the first snapshot began");
    assert!(matches!(next[..], [.., Action::Prepare { op: OpId(3), .. }]), "{next:?}");
    story.prepared(3, Ok(info(3, &["hello"])));
    story.up(3);
    story.says(2, ToMaster::Paused);
    assert_eq!((story.answer(2).op, story.answer(3).op), (OpId(3), OpId(3)));
}

#[test]
fn at_the_cap_of_draining_generations_the_next_switch_waits() {
    let mut story = Story::serving();
    story.state.settings.max_draining = 1;
    let capped = |id| {
        let mut set = (*info(id, &["hello"])).clone();
        set.settings.max_draining = 1;
        Arc::new(set)
    };
    story.reload(1);
    story.prepared(2, Ok(capped(2)));
    story.up(2);
    story.says(1, ToMaster::Paused);
    story.reload(2);
    assert_eq!(story.state.report(OpId(3)).unwrap().queued.as_deref(), Some("draining full"));
    story.leaves(1);
    assert!(matches!(story.log.last(), Some(Action::Prepare { op: OpId(3), .. })));
}

#[test]
fn a_dead_child_is_respawned_from_its_own_set_with_a_growing_wait() {
    let mut story = Story::serving();
    assert_eq!(spawns(&story.dies(1, ExitKind::Signal(9))), [(2, 1)], "the first time at once");
    story.up(2);
    assert_eq!(spawns(&story.dies(2, ExitKind::Code(0))), [], "any exit without DONE is a crash; now it waits");
    assert_eq!(story.state.next_deadline(), Some(story.now + Duration::from_millis(200)));
    assert_eq!(spawns(&story.wait(Duration::from_millis(200))), [(3, 1)]);
    story.up(3);
    story.dies(3, ExitKind::Signal(11));
    assert_eq!(spawns(&story.wait(Duration::from_millis(399))), []);
    assert_eq!(spawns(&story.wait(Duration::from_millis(1))), [(4, 1)]);
    story.up(4);
    story.wait(Duration::from_secs(61));
    assert_eq!(spawns(&story.dies(4, ExitKind::Signal(11))), [(5, 1)], "one that lived long ends the row");
    assert_eq!(story.state.crashes(), 4);
}

#[test]
fn a_respawn_that_fails_is_tried_again() {
    let mut story = Story::serving();
    story.dies(1, ExitKind::Signal(9));
    story.spawned(2);
    story.dies(2, ExitKind::Signal(9));
    assert_eq!(spawns(&story.wait(Duration::from_millis(200))), [(3, 1)]);
    story.event(Event::Spawned { generation: Generation(3), result: Err(Failure::new(Stage::Spawn, "x")) });
    assert_eq!(spawns(&story.wait(Duration::from_secs(5))), [(4, 1)]);
    story.up(4);
    assert_eq!(story.serving_generation(), Some(4));
}

#[test]
fn a_reload_during_a_respawn_waits_for_it() {
    let mut story = Story::serving();
    story.dies(1, ExitKind::Signal(9));
    story.reload(1);
    assert_eq!(spawns(&story.prepared(2, Ok(info(2, &["hello"])))), [], "one candidate at a time");
    assert_eq!(spawns(&story.up(2)), [(3, 2)]);
    story.up(3);
    story.says(2, ToMaster::Paused);
    assert_eq!(story.answer(1).result, OpResult::Switched);
}

#[test]
fn a_new_generation_that_dies_before_the_old_one_retires_is_taken_back() {
    let mut story = Story::serving();
    story.reload(1);
    story.prepared(2, Ok(info(2, &["hello"])));
    story.up(2);
    assert_eq!(sends(&story.dies(2, ExitKind::Signal(11)), 1), [&ToChild::Resume]);
    story.says(1, ToMaster::Serving);
    assert_eq!(story.serving_generation(), Some(1));
    assert_eq!(story.state.report(OpId(2)).unwrap().result, OpResult::RolledBack);
    assert_eq!(spawns(&story.dies(1, ExitKind::Signal(9))), [(3, 1)], "and its set is the one that counts");
}

#[test]
fn a_new_generation_that_dies_later_is_respawned() {
    let mut story = Story::serving();
    story.reload(1);
    story.prepared(2, Ok(info(2, &["hello"])));
    story.up(2);
    story.says(1, ToMaster::Paused);
    assert_eq!(spawns(&story.dies(2, ExitKind::Signal(11))), [(3, 2)]);
}

#[test]
fn an_old_generation_that_never_pauses_is_retired_and_one_that_never_ends_is_killed() {
    let mut story = Story::serving();
    story.reload(1);
    story.prepared(2, Ok(info(2, &["hello"])));
    story.up(2);
    assert!(matches!(sends(&story.wait(PAUSE_TIMEOUT), 1)[..], [ToChild::Retire(_)]));
    assert!(!kills(&story.wait(Duration::from_secs(600)), 1));
    assert!(kills(&story.wait(EXIT_TIMEOUT), 1));
    story.dies(1, ExitKind::Signal(9));
    assert_eq!(story.serving_generation(), Some(2));
}

#[test]
fn one_that_does_not_end_after_done_is_killed() {
    let mut story = Story::serving();
    story.reload(1);
    story.prepared(2, Ok(info(2, &["hello"])));
    story.up(2);
    story.says(1, ToMaster::Paused);
    story.says(1, ToMaster::Done(DrainReport::default()));
    assert!(kills(&story.wait(EXIT_TIMEOUT), 1));
}

#[test]
fn one_that_does_not_resume_is_replaced() {
    let mut story = Story::serving();
    story.reload(1);
    story.prepared(2, Ok(info(2, &["hello"])));
    story.up(2);
    story.dies(2, ExitKind::Signal(11));
    let actions = story.wait(SWITCH_TIMEOUT);
    assert!(kills(&actions, 1));
    assert_eq!(spawns(&actions), [(3, 1)]);
}

#[test]
fn a_bad_first_set_ends_the_master_or_serves_none_as_it_was_told() {
    let mut story = Story::new();
    story.ask(Cause::Start, None);
    story.prepared(1, Err(Failure::new(Stage::Snapshot, "x")));
    assert!(matches!(story.finished(), Some(Exit::StartFailed(_))));

    let mut story = Story::new();
    story.state.bad_start = BadStart::ServeEmpty;
    story.ask(Cause::Start, None);
    assert_eq!(spawns(&story.prepared(1, Err(Failure::new(Stage::Snapshot, "x")))), [(1, 0)]);
    story.up(1);
    assert_eq!(story.serving_generation(), Some(1));
}

#[test]
fn a_reload_to_nothing_is_refused_unless_it_was_meant() {
    let mut story = Story::serving();
    story.reload(1);
    story.prepared(2, Ok(info(2, &[])));
    assert_eq!((story.answer(1).result, story.answer(1).stage), (OpResult::Refused, Some(Stage::Snapshot)));
    let options = OpOptions { allow_empty: true, ..OpOptions::default() };
    let cause = Cause::Admin { peer: "test".into() };
    story.event(Event::Asked { verb: Verb::Reload, cause, options, caller: Some(Caller(2)) });
    story.prepared(3, Ok(info(3, &[])));
    story.up(2);
    story.says(1, ToMaster::Paused);
    assert_eq!(story.answer(2).result, OpResult::Switched);
}

#[test]
fn a_binary_without_a_protocol_in_common_is_refused() {
    let mut story = Story::serving();
    story.reload(1);
    story.prepared(2, Ok(info(2, &["hello"])));
    story.spawned(2);
    let protocols = crate::control::Protocols { oldest: 90, newest: 99 };
    assert!(kills(&story.says(2, ToMaster::Hello { protocols, version: "9".into() }), 2));
    assert_eq!(story.answer(1).stage, Some(Stage::Spawn));
}

#[test]
fn a_handler_that_asks_shares_the_reload_of_others_that_ask_too() {
    let mut story = Story::serving();
    story.reload(1);
    let ask = |verb| ToMaster::Control { plugin: "hello".into(), verb };
    // One runs: what is asked for now is the next one, and one for all.
    story.says(1, ask(ControlVerb::Reload));
    story.reload(2);
    story.says(1, ask(ControlVerb::Reload));
    story.prepared(2, Ok(info(2, &["hello"])));
    story.up(2);
    story.says(1, ToMaster::Paused);
    story.prepared(3, Ok(info(3, &["hello"])));
    story.up(3);
    story.says(2, ToMaster::Paused);
    let report = story.answer(2);
    assert_eq!((report.op, &report.cause), (OpId(3), &Cause::Handler { plugin: "hello".into() }));
    assert!(story.state.report(OpId(4)).is_none(), "nothing is left to do");
}

#[test]
fn a_handler_may_ask_only_where_its_generation_serves_and_its_plugin_may() {
    let ask = |plugin: &str, verb| ToMaster::Control { plugin: plugin.into(), verb };
    let all = [ControlVerb::Reload, ControlVerb::Restart, ControlVerb::Shutdown];
    let asked_for = |story: &Story| story.state.reports().filter(|report| report.op > OpId(1)).count();
    let mut story = Story::serving();
    for verb in all {
        story.says(1, ask("stranger", verb));
    }
    assert_eq!((asked_for(&story), story.state.may_control(Generation(1), "hello")), (0, true));
    // One whose operator does not allow it.
    story.reload(1);
    let mute = SetInfo { controllers: Default::default(), ..(*info(2, &["hello"])).clone() };
    story.prepared(2, Ok(Arc::new(mute)));
    story.up(2);
    story.says(1, ToMaster::Paused);
    // The one before retires; the new one serves, and may not ask.
    for (generation, verb) in all.into_iter().flat_map(|verb| [(1, verb), (2, verb)]) {
        story.says(generation, ask("hello", verb));
    }
    assert_eq!((asked_for(&story), story.state.is_shutting_down()), (1, false), "the reload alone");
}

#[test]
fn what_a_handler_asks_for_beside_a_shutdown_leaves_no_report() {
    let mut story = Story::serving();
    let ask = |verb| ToMaster::Control { plugin: "hello".into(), verb };
    story.says(1, ask(ControlVerb::Shutdown));
    let reports = story.state.reports().count();
    for verb in [ControlVerb::Reload, ControlVerb::Restart, ControlVerb::Shutdown] {
        story.says(1, ask(verb));
    }
    story.says(1, ToMaster::ReplaceMe);
    assert_eq!(story.state.reports().count(), reports);
}

#[test]
fn a_hook_goes_to_the_generation_that_serves_and_to_no_other() {
    let hook = || Event::Hook { hook: Hook::Usr1, cause: Cause::Signal { signal: "SIGUSR1".into(), sender: 1 } };
    let heard_by = |actions: &[Action]| -> Vec<u64> {
        let to = |action: &Action| match action {
            Action::Send { generation, message: ToChild::Hook(Hook::Usr1) } => Some(generation.0),
            _ => None,
        };
        actions.iter().filter_map(to).collect()
    };
    let mut story = Story::serving();
    story.reload(1);
    story.prepared(2, Ok(info(2, &["hello"])));
    assert_eq!(heard_by(&story.event(hook())), [1], "the one that starts may never serve");
    story.up(2);
    assert_eq!(heard_by(&story.event(hook())), [2]);
    story.says(1, ToMaster::Paused);
    assert_eq!(heard_by(&story.event(hook())), [2], "the one that drains is on its way out");
    story.dies(2, ExitKind::Signal(9));
    let actions = story.event(hook());
    assert_eq!(heard_by(&actions), [0; 0]);
    assert!(actions.iter().any(|action| matches!(action, Action::Note(Note::Hooked { to: None, .. }))), "{actions:?}");
}

#[test]
fn a_term_to_the_child_replaces_it_and_a_handler_may_ask_too() {
    let mut story = Story::serving();
    let actions = story.says(1, ToMaster::ReplaceMe);
    assert!(matches!(actions[..], [.., Action::Prepare { op: OpId(2), .. }]), "{actions:?}");
    story.prepared(2, Ok(info(2, &["hello"])));
    story.up(2);
    assert_eq!(story.serving_generation(), Some(2));
    story.says(1, ToMaster::Paused);
    story.says(2, ToMaster::Control { plugin: "hello".into(), verb: ControlVerb::Shutdown });
    assert!(story.state.is_shutting_down());
}
