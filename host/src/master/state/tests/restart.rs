//! Restart in place: when another program may take over, who is answered what, and what it goes on with.

use super::*;
use crate::report::Change;

impl Story {
    pub(super) fn restart(&mut self, caller: u64) -> Vec<Action> {
        let cause = Cause::Admin { peer: "test".into() };
        let options = OpOptions::default();
        self.event(Event::Asked { verb: Verb::Restart, cause, options, caller: Some(Caller(caller)) })
    }

    pub(super) fn tested(&mut self, test: u64, result: Result<(), Failure>) -> Vec<Action> {
        self.event(Event::Tested { test: TestId(test), result })
    }

    /// Another program goes on, with what it can read of this one's.
    pub(super) fn taken_over(self, outcome: Result<(), Failure>) -> Story {
        let json = serde_json::to_string(&self.state.save(self.now)).unwrap();
        let sets = (1..9).map(|id| (SetId(id), info(id, &["hello"]))).collect();
        let saved = serde_json::from_str(&json).unwrap();
        let state = State::resumed(settings(), BadStart::Exit, saved, &sets, outcome).unwrap();
        Story { state, ..self }
    }

    fn told(&self, caller: u64) -> Option<&Report> {
        let mut answers = self.answers.iter().filter(|(one, _)| *one == Caller(caller));
        let answer = answers.next().map(|(_, report)| report);
        assert!(answers.next().is_none(), "answered twice");
        answer
    }
}

fn leaves_with(actions: &[Action], op: u64) -> bool {
    actions.contains(&Action::Leave { op: OpId(op) })
}

fn refused() -> Failure {
    Failure::new(Stage::Restart, "test it")
}

#[test]
fn a_program_that_passed_its_test_takes_over_and_reloads_under_the_same_number() {
    let mut story = Story::serving();
    assert!(story.restart(1).contains(&Action::Test { op: OpId(2), test: TestId(1) }));
    assert!(story.told(1).is_none());
    assert!(leaves_with(&story.tested(1, Ok(())), 2));
    assert_eq!(story.told(1).unwrap().result, OpResult::Running, "whoever asked knows the number, and polls");
    assert!(story.state.may_leave(OpId(2)));
    let mut story = story.taken_over(Ok(()));
    assert_eq!(story.state.serving(), Some(Generation(1)));
    let actions = story.wait(Duration::ZERO);
    assert!(actions.iter().any(|action| matches!(action, Action::Prepare { op: OpId(2), .. })), "{actions:?}");
    story.prepared(2, Ok(info(2, &["hello"])));
    story.up(2);
    let report = story.state.report(OpId(2)).unwrap();
    assert_eq!((report.verb, report.result, report.from), (Verb::Restart, OpResult::Switched, Some(Generation(1))));
    assert_eq!(story.state.switches(), 2, "the count goes on");
}

#[test]
fn a_program_that_fails_its_test_is_refused_and_nothing_has_changed() {
    let mut story = Story::serving();
    story.restart(1);
    let actions = story.tested(1, Err(refused()));
    assert!(!leaves_with(&actions, 2));
    let report = story.told(1).unwrap();
    assert_eq!(
        (report.result, report.stage, report.serving),
        (OpResult::Refused, Some(Stage::Restart), Some(Generation(1)))
    );
    assert!(!story.reload(2).is_empty(), "the next operation runs");
}

#[test]
fn a_program_that_gave_the_process_back_is_told_of_and_nothing_is_reloaded() {
    let mut story = Story::serving();
    story.restart(1);
    story.tested(1, Ok(()));
    let mut story = story.taken_over(Err(refused()));
    let actions = story.wait(Duration::ZERO);
    assert!(!actions.iter().any(|action| matches!(action, Action::Prepare { .. })), "{actions:?}");
    let report = story.state.report(OpId(2)).unwrap();
    assert_eq!((report.result, report.serving), (OpResult::Refused, Some(Generation(1))));
}

#[test]
fn an_exec_that_fails_leaves_all_as_it_was() {
    let mut story = Story::serving();
    story.restart(1);
    story.tested(1, Ok(()));
    story.event(Event::Stayed { op: OpId(2), failure: Some(refused()) });
    assert_eq!(story.state.report(OpId(2)).unwrap().result, OpResult::Refused);
    assert!(story.told(1).is_some());
    story.reload(2);
    assert_eq!(story.state.report(OpId(3)).unwrap().result, OpResult::Running);
}

#[test]
fn a_restart_waits_for_a_switch_and_takes_the_place_of_a_reload_that_waits() {
    let mut story = Story::serving();
    story.reload(1);
    story.reload(2);
    story.restart(3);
    assert_eq!(story.told(2).map(|report| report.superseded_by), Some(Some(OpId(4))));
    story.prepared(2, Ok(info(2, &["hello"])));
    story.up(2);
    let actions = story.says(1, ToMaster::Paused);
    assert!(actions.contains(&Action::Test { op: OpId(4), test: TestId(1) }), "{actions:?}");
    story.reload(5);
    assert!(story.told(5).is_none(), "it waits for the end of the restart, or the exec");
    story.tested(1, Ok(()));
    assert_eq!(story.told(5).unwrap().superseded_by, Some(OpId(4)));
    story.reload(6);
    assert_eq!(story.told(6).unwrap().superseded_by, Some(OpId(4)));
    // What drains goes on draining.
    let mut story = story.taken_over(Ok(()));
    story.says(1, ToMaster::Done(DrainReport::default()));
    story.dies(1, ExitKind::Code(0));
    assert!(story.state.report(OpId(2)).unwrap().drain.is_some());
}

#[test]
fn a_child_that_dies_meanwhile_comes_back_first_or_by_the_next_program() {
    let mut story = Story::serving();
    story.restart(1);
    let spawned = |actions: &[Action]| actions.iter().any(|action| matches!(action, Action::Spawn { .. }));
    assert!(spawned(&story.dies(1, ExitKind::Signal(11))), "under test nothing keeps it from being respawned");
    assert!(!leaves_with(&story.tested(1, Ok(())), 2), "not while a generation is on its way");
    assert!(leaves_with(&story.up(2), 2));
    assert!(!spawned(&story.dies(2, ExitKind::Signal(11))));
    let mut story = story.taken_over(Ok(()));
    story.wait(Duration::from_secs(60));
    assert!(
        story.log.iter().any(|action| matches!(action, Action::Spawn { generation: Generation(3), set: SetId(1) }))
    );
}

#[test]
fn a_shutdown_and_a_rollback_come_first() {
    let mut story = Story::serving();
    story.restart(1);
    story.term();
    assert_eq!(story.told(1).unwrap().result, OpResult::Superseded);
    assert!(!leaves_with(&story.tested(1, Ok(())), 2));
    let mut story = Story::serving();
    story.restart(1);
    story.tested(1, Ok(()));
    story.term();
    assert!(!story.state.may_leave(OpId(2)), "even at the last moment");
    story.event(Event::Stayed { op: OpId(2), failure: None });
    assert_eq!(story.state.report(OpId(2)).unwrap().result, OpResult::Superseded);
}

#[test]
fn a_program_may_take_over_only_when_it_is_told_to_and_while_nothing_is_on_its_way() {
    let mut story = Story::serving();
    story.reload(1);
    story.prepared(2, Ok(info(2, &["hello"])));
    story.up(2);
    story.says(1, ToMaster::Paused);
    assert!(!story.state.may_leave(OpId(2)), "nobody has asked for it");
    story.restart(2);
    assert!(!story.state.may_leave(OpId(3)), "it is being tested");
    assert!(leaves_with(&story.tested(1, Ok(())), 3));
    assert!(story.state.may_leave(OpId(3)) && !story.state.may_leave(OpId(2)));
    let cause = Cause::Admin { peer: "test".into() };
    let asked = Event::Asked { verb: Verb::Cut, cause, options: OpOptions::default(), caller: Some(Caller(3)) };
    assert_eq!(sends(&story.event(asked), 1), [&ToChild::Cut]);
    assert!(!story.state.may_leave(OpId(3)), "whoever asked for the cut would never be answered");
    story.event(Event::Stayed { op: OpId(3), failure: None });
    story.leaves(1);
    assert!(story.told(3).is_some() && story.state.may_leave(OpId(3)), "it is over");
}

#[test]
fn a_restart_waits_for_the_end_of_a_probation() {
    let mut story = Story::serving();
    story.reload(1);
    story.prepared(2, Ok(info_on_probation(2, &["hello"])));
    story.up(2);
    story.says(1, ToMaster::Paused);
    story.restart(2);
    assert_eq!(story.state.report(OpId(3)).unwrap().queued.as_deref(), Some("a generation is on probation"));
    assert!(!story.log.contains(&Action::Test { op: OpId(3), test: TestId(1) }));
    story.wait(Duration::from_secs(60));
    assert!(story.log.contains(&Action::Test { op: OpId(3), test: TestId(1) }));
}

#[test]
fn what_serves_is_started_under_the_next_program_though_all_that_is_new_is_held_back() {
    let mut story = Story::serving();
    story.restart(1);
    story.tested(1, Ok(()));
    let mut story = story.taken_over(Ok(()));
    story.wait(Duration::ZERO);
    let held = vec![Change::Plugin { plugin: "hello".into(), sha256: "bad".into() }];
    let same = |id: u64| Arc::new(SetInfo { id: SetId(id), held: held.clone(), ..(*info(1, &["hello"])).clone() });
    story.prepared(2, Ok(same(2)));
    story.up(2);
    assert_eq!(story.state.report(OpId(2)).unwrap().result, OpResult::Switched);
    // A reload brings nothing that is not there.
    story.says(1, ToMaster::Paused);
    story.reload(2);
    story.prepared(3, Ok(same(3)));
    assert_eq!(story.state.report(OpId(3)).unwrap().result, OpResult::Refused);
}

#[test]
fn what_a_first_test_says_late_is_not_taken_for_the_second() {
    let mut story = Story::serving();
    story.restart(1);
    // Too many deaths: what is to serve instead comes first, and the restart is tested for again.
    let limit = settings().crash.limit as u64;
    for generation in 1..limit {
        story.dies(generation, ExitKind::Signal(11));
        story.wait(Duration::from_secs(2));
        story.up(generation + 1);
    }
    story.dies(limit, ExitKind::Signal(11));
    story.wait(settings().crash.hold);
    story.up(limit + 1);
    assert!(story.log.contains(&Action::Test { op: OpId(2), test: TestId(2) }), "{:#?}", story.state);
    assert!(!leaves_with(&story.tested(1, Ok(())), 2) && story.told(1).is_none(), "of another file, perhaps");
    story.tested(1, Err(refused()));
    assert!(story.told(1).is_none());
    assert!(leaves_with(&story.tested(2, Ok(())), 2));
}

#[test]
fn the_next_program_goes_on_with_the_clock_and_with_nothing_less_than_all_sets() {
    let mut story = Story::serving();
    story.wait(Duration::from_secs(9));
    story.restart(1);
    story.tested(1, Ok(()));
    let saved = || story.state.save(story.now + Duration::from_secs(1));
    assert_eq!(saved().now(), Duration::from_secs(10));
    let resumed = |sets| State::resumed(settings(), BadStart::Exit, saved(), &sets, Ok(()));
    let missing = resumed([(SetId(2), info(2, &["hello"]))].into()).unwrap_err();
    assert_eq!(missing.to_string(), "failed to find set 1 among those that were handed on");
    let state = resumed([(SetId(1), info(1, &["hello"]))].into()).unwrap();
    assert_eq!(state.set_of(Generation(1)), Some(SetId(1)));
}

#[test]
fn the_set_without_plugins_is_nothing_that_must_be_handed_on() {
    let mut story = Story { state: State::new(settings(), BadStart::ServeEmpty, Memory::default()), ..Story::new() };
    story.ask(Cause::Start, None);
    story.prepared(1, Err(Failure::new(Stage::Snapshot, "x")));
    story.up(1);
    story.restart(1);
    story.tested(1, Ok(()));
    let saved = story.state.save(story.now);
    let state = State::resumed(settings(), BadStart::Exit, saved, &Default::default(), Ok(())).unwrap();
    assert_eq!((state.serving(), state.set_of(Generation(1))), (Some(Generation(1)), Some(SetId::EMPTY)));
}
