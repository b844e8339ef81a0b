//! Cold operations: nothing of the old lives when the new starts, and a failure brings the old back.

use super::*;

impl Story {
    fn ask_cold(&mut self, verb: Verb, caller: u64) -> Vec<Action> {
        let options = OpOptions { cold: true, ..OpOptions::default() };
        let cause = Cause::Admin { peer: "test".into() };
        self.event(Event::Asked { verb, cause, options, caller: Some(Caller(caller)) })
    }

    fn reload_cold(&mut self, caller: u64) -> Vec<Action> {
        self.ask_cold(Verb::Reload, caller)
    }

    /// Generation 1 was stopped for set 2, and has ended; generation 2 is being started.
    pub(super) fn stopped() -> Story {
        let mut story = Story::serving();
        story.reload_cold(7);
        story.prepared(2, Ok(info(2, &["hello"])));
        story.now += Duration::from_secs(1);
        story.leaves(1);
        story
    }
}

fn fails(story: &mut Story, generation: u64) {
    story.spawned(generation);
    story.says(generation, hello());
    story.says(generation, ToMaster::Failed(Failure::new(Stage::Load, "x")));
    story.dies(generation, ExitKind::Signal(9));
}

#[test]
fn a_cold_reload_starts_the_new_one_once_the_old_one_has_ended() {
    let mut story = Story::serving();
    story.wait(Duration::from_secs(5));
    story.reload_cold(7);
    let stopped = story.prepared(2, Ok(info(2, &["hello", "new"])));
    let [ToChild::Retire(deadlines)] = sends(&stopped, 1)[..] else { panic!("{stopped:?}") };
    assert_eq!(deadlines.max_ms, Some(30_000), "what a shutdown gives it");
    assert_eq!((deadlines.keepalive_ms, deadlines.linger_ms), (Some(750), Some(250)), "and its idle connections");
    assert_eq!((spawns(&stopped), story.serving_generation()), (vec![], None));
    assert!(story.state.sets_accepting().any(|set| set == SetId(1)), "its addresses stay open");
    assert_eq!(spawns(&story.wait(Duration::from_secs(2))), []);
    assert_eq!(spawns(&story.says(1, ToMaster::Done(DrainReport { finished: 3, ..DrainReport::default() }))), []);
    assert_eq!(spawns(&story.dies(1, ExitKind::Code(0))), [(2, 2)]);
    let committed = story.up(2);
    assert!(committed.iter().all(|action| !matches!(action, Action::Handover { .. })));
    let report = story.answer(7);
    assert_eq!(
        (report.result, report.from, report.unserved_ms),
        (OpResult::Switched, Some(Generation(1)), Some(2000.0))
    );
    assert_eq!(report.drain.unwrap().finished, 3);
    let plugins = report.plugins.as_ref().unwrap();
    assert_eq!((&plugins.changed[..], &plugins.added[..]), (&["hello".to_string()][..], &["new".to_string()][..]));
    assert_eq!((story.state.crashes(), story.serving_generation()), (0, Some(2)));
}

#[test]
fn what_cannot_be_prepared_stops_nothing() {
    let mut story = Story::serving();
    let before = story.log.len();
    story.reload_cold(7);
    story.prepared(2, Err(Failure::new(Stage::Snapshot, "x")));
    assert_eq!((story.answer(7).result, story.answer(7).unserved_ms), (OpResult::Refused, None));
    assert!(sends(&story.log[before..], 1).is_empty());
    assert_eq!(story.serving_generation(), Some(1));
}

#[test]
fn a_bad_set_brings_back_the_one_that_was_stopped_and_is_refused_then() {
    let mut story = Story::stopped();
    fails(&mut story, 2);
    assert_eq!(spawns(&story.log).last(), Some(&(3, 1)), "the set that served");
    assert!(story.answers.is_empty(), "nothing serves yet");
    story.spawned(3);
    let load = story.says(3, hello());
    assert!(load.iter().any(|action| matches!(action, Action::Load { probes: Probes::Skip, .. })), "{load:?}");
    story.now += Duration::from_secs(1);
    story.says(3, ToMaster::Ready);
    story.says(3, ToMaster::Serving);
    let report = story.answer(7);
    assert_eq!(
        (report.result, report.stage, report.serving),
        (OpResult::Refused, Some(Stage::Load), Some(Generation(3)))
    );
    assert_eq!(report.unserved_ms, Some(2000.0));
    assert_eq!((story.state.crashes(), story.state.quarantines()), (0, 0), "nobody crashed");
    // All is as before: the next one is warm.
    story.reload(8);
    assert_eq!(spawns(&story.prepared(3, Ok(info(3, &["hello"])))), [(4, 3)]);
}

#[test]
fn the_new_one_is_waited_for_until_it_is_gone_before_the_old_set_starts() {
    let mut story = Story::stopped();
    story.spawned(2);
    story.says(2, hello());
    let failed = story.says(2, ToMaster::Failed(Failure::new(Stage::Load, "x")));
    assert!(kills(&failed, 2) && spawns(&failed).is_empty(), "it may still have what the old one needs");
    assert_eq!(spawns(&story.dies(2, ExitKind::Signal(9))), [(3, 1)]);
}

#[test]
fn if_the_old_set_does_not_start_again_that_is_told_and_tried_again() {
    let mut story = Story::stopped();
    fails(&mut story, 2);
    fails(&mut story, 3);
    let report = story.answer(7);
    assert_eq!((report.result, report.serving), (OpResult::Refused, None));
    assert!(report.error.as_ref().is_some_and(|error| error.contains("does not start again")), "{report:?}");
    assert_eq!(spawns(&story.log).last(), Some(&(4, 1)));
    story.up(4);
    assert_eq!(story.serving_generation(), Some(4));
}

#[test]
fn older_ones_end_too_and_no_later_than_they_would_have() {
    let mut story = Story::serving();
    story.reload(1);
    story.prepared(2, Ok(info_on_probation(2, &["hello"])));
    story.up(2);
    story.says(1, ToMaster::Paused);
    // Generation 1 stands by; 2 serves.
    story.reload_cold(7);
    let stopped = story.prepared(3, Ok(info(3, &["hello"])));
    assert!(
        matches!(sends(&stopped, 1)[..], [ToChild::Retire(_)])
            && matches!(sends(&stopped, 2)[..], [ToChild::Retire(_)])
    );
    story.leaves(2);
    assert_eq!(spawns(&story.log).len(), 2, "generation 1 lives");
    story.leaves(1);
    story.up(3);
    assert_eq!((story.answer(7).result, story.answer(7).from), (OpResult::Switched, Some(Generation(2))));
    // One that would drain for longer than a stop may take ends with it; one that has as much left, or less, keeps its end.
    for (waited, most) in [(0, 30), (569, 30), (570, 30), (590, 10)] {
        let mut story = Story::serving();
        story.reload(1);
        story.prepared(2, Ok(info(2, &["hello"])));
        story.up(2);
        story.says(1, ToMaster::Paused);
        story.wait(Duration::from_secs(waited));
        story.reload_cold(7);
        let stopped = story.prepared(3, Ok(info(3, &["hello"])));
        let [ToChild::Retire(Deadlines { keepalive_ms: Some(750), max_ms: Some(max), .. })] = sends(&stopped, 1)[..]
        else {
            panic!("{waited}: {stopped:?}")
        };
        assert_eq!(*max, most * 1000, "{waited}");
    }
}

#[test]
fn one_that_does_not_end_is_killed_at_its_time() {
    let mut story = Story::serving();
    story.reload_cold(7);
    story.prepared(2, Ok(info(2, &["hello"])));
    assert!(!kills(&story.wait(Duration::from_secs(34)), 1));
    assert!(kills(&story.wait(Duration::from_secs(1)), 1));
    assert_eq!(spawns(&story.dies(1, ExitKind::Signal(9))), [(2, 2)]);
}

#[test]
fn one_that_dies_while_it_is_stopped_is_not_respawned() {
    let mut story = Story::serving();
    story.reload_cold(7);
    story.prepared(2, Ok(info(2, &["hello"])));
    assert_eq!(spawns(&story.dies(1, ExitKind::Signal(11))), [(2, 2)]);
}

#[test]
fn a_cold_and_a_warm_reload_asked_for_together_are_one_cold_one() {
    for cold_first in [true, false] {
        let mut story = Story::serving();
        story.reload(1);
        let (cold, warm) = if cold_first { (2, 3) } else { (3, 2) };
        for caller in [2, 3] {
            if caller == cold {
                story.reload_cold(cold)
            } else {
                story.reload(warm)
            };
        }
        story.prepared(2, Ok(info(2, &["hello"])));
        story.up(2);
        assert_eq!(story.serving_generation(), Some(2), "the one that had begun is warm");
        story.says(1, ToMaster::Paused);
        story.leaves(1);
        story.prepared(3, Ok(info(3, &["hello"])));
        story.leaves(2);
        story.up(3);
        let (cold, warm) = (story.answer(cold), story.answer(warm));
        assert!(cold.op == warm.op && cold.unserved_ms.is_some() && story.answer(1).unserved_ms.is_none());
    }
}

#[test]
fn a_rollback_takes_over_what_was_stopped() {
    let mut story = Story::serving();
    story.reload(1);
    story.prepared(2, Ok(info(2, &["hello"])));
    story.up(2);
    story.says(1, ToMaster::Paused);
    story.leaves(1);
    story.reload_cold(7);
    story.prepared(3, Ok(info(3, &["hello"])));
    story.leaves(2);
    story.spawned(3);
    let asked = story.event(Event::Asked {
        verb: Verb::Rollback,
        cause: Cause::Start,
        options: OpOptions::default(),
        caller: Some(Caller(8)),
    });
    assert!(kills(&asked, 3) && story.answer(7).result == OpResult::Superseded);
    assert_eq!(spawns(&story.prepared(4, Ok(info(1, &["hello"])))), [], "generation 3 is not gone");
    assert_eq!(spawns(&story.dies(3, ExitKind::Signal(9))), [(4, 1)]);
    story.up(4);
    assert_eq!((story.answer(8).result, story.answer(8).from), (OpResult::Switched, Some(Generation(2))));
    // One that comes while the old set is started again waits for that: whoever asked is told why it failed.
    let mut story = Story::serving();
    story.reload(1);
    story.prepared(2, Ok(info(2, &["hello"])));
    story.up(2);
    story.says(1, ToMaster::Paused);
    story.leaves(1);
    story.reload_cold(7);
    story.prepared(3, Ok(info(3, &["hello"])));
    story.leaves(2);
    fails(&mut story, 3);
    story.ask_cold(Verb::Rollback, 8);
    story.up(4);
    assert_eq!((story.answer(7).result, story.answer(7).serving), (OpResult::Refused, Some(Generation(4))));
    story.prepared(4, Ok(info(1, &["hello"])));
    story.leaves(4);
    story.up(5);
    assert_eq!((story.answer(8).result, story.serving_generation()), (OpResult::Switched, Some(5)));
    // If it fails, what was stopped first comes back.
    let mut story = Story::serving();
    story.reload(1);
    story.prepared(2, Ok(info(2, &["hello"])));
    story.up(2);
    story.says(1, ToMaster::Paused);
    story.leaves(1);
    story.ask_cold(Verb::Rollback, 8);
    story.prepared(3, Ok(info(1, &["hello"])));
    story.leaves(2);
    fails(&mut story, 3);
    story.up(4);
    assert_eq!((story.answer(8).result, story.serving_generation()), (OpResult::Refused, Some(4)));
    assert_eq!(spawns(&story.log).last(), Some(&(4, 2)));
}

#[test]
fn a_shutdown_ends_a_cold_operation_and_the_old_set_serves_until_it_begins() {
    let mut story = Story::stopped();
    story.spawned(2);
    let ended = story.term();
    assert!(kills(&ended, 2) && story.answer(7).result == OpResult::Superseded);
    story.dies(2, ExitKind::Signal(9));
    assert_eq!(story.finished(), Some(&Exit::Drained));
    let mut delayed = (*info(1, &["hello"])).clone();
    delayed.settings.shutdown.delay = Duration::from_secs(10);
    let mut story = Story::new();
    story.ask(Cause::Start, None);
    story.prepared(1, Ok(Arc::new(delayed)));
    story.up(1);
    story.reload_cold(7);
    story.prepared(2, Ok(info(2, &["hello"])));
    story.leaves(1);
    story.spawned(2);
    story.term();
    assert_eq!(spawns(&story.dies(2, ExitKind::Signal(9))), [(3, 1)]);
    story.up(3);
    assert_eq!(story.serving_generation(), Some(3));
}

#[test]
fn a_restart_waits_until_something_serves_again() {
    let mut story = Story::stopped();
    let tests = |actions: &[Action]| actions.iter().any(|action| matches!(action, Action::Test { .. }));
    let options = OpOptions::default();
    let asked =
        story.event(Event::Asked { verb: Verb::Restart, cause: Cause::Start, options, caller: Some(Caller(8)) });
    assert!(!tests(&asked));
    fails(&mut story, 2);
    story.spawned(3);
    assert!(!tests(&story.says(3, hello())));
    story.says(3, ToMaster::Ready);
    assert!(tests(&story.says(3, ToMaster::Serving)));
}

#[test]
fn one_that_takes_service_back_is_stopped_once_it_has() {
    let mut story = Story::on_probation();
    story.reload_cold(7);
    story.dies(2, ExitKind::Signal(11));
    assert_eq!(sends(&story.log, 1).last(), Some(&&ToChild::Resume));
    assert_eq!(spawns(&story.prepared(3, Ok(info(3, &["hello"])))), []);
    assert_eq!(sends(&story.log, 1).last(), Some(&&ToChild::Resume), "whether it serves is not known");
    assert!(matches!(sends(&story.says(1, ToMaster::Serving), 1)[..], [ToChild::Retire(_)]));
    story.leaves(1);
    story.up(3);
    assert_eq!((story.answer(7).result, story.answer(7).from), (OpResult::Switched, Some(Generation(1))));
}

#[test]
fn nobody_stands_in_during_a_cold_operation_and_whoever_does_before_is_stopped() {
    let mut story = Story::stopped();
    story.spawned(2);
    story.says(2, hello());
    assert_eq!(spawns(&story.wait(Duration::from_secs(25))), [], "connections wait for longer than crash.hold");
    // The set of generation 1 has died, generation 2 hangs, and 3 stands in.
    let mut story = Story::serving();
    story.dies(1, ExitKind::Signal(11));
    story.spawned(2);
    story.says(2, hello());
    assert_eq!(spawns(&story.wait(Duration::from_secs(10))), [(3, 0)]);
    story.up(3);
    story.reload_cold(7);
    story.prepared(2, Ok(info(2, &["hello"])));
    assert_eq!(story.serving_generation(), Some(3), "what shall serve is on its way");
    let failed = story.says(2, ToMaster::Failed(Failure::new(Stage::Load, "x")));
    assert!(matches!(sends(&failed, 3)[..], [ToChild::Retire(_)]), "{failed:?}");
    story.leaves(3);
    assert_eq!(spawns(&story.dies(2, ExitKind::Signal(9))), [(4, 2)]);
    story.up(4);
    assert_eq!(story.answer(7).result, OpResult::Switched);
    // The same, but 3 is still being started.
    let mut story = Story::serving();
    story.dies(1, ExitKind::Signal(11));
    story.spawned(2);
    story.says(2, hello());
    story.wait(Duration::from_secs(10));
    story.spawned(3);
    story.reload_cold(7);
    story.prepared(2, Ok(info(2, &["hello"])));
    let failed = story.says(2, ToMaster::Failed(Failure::new(Stage::Load, "x")));
    assert!(kills(&failed, 3), "{failed:?}");
    story.dies(3, ExitKind::Signal(9));
    assert_eq!(spawns(&story.dies(2, ExitKind::Signal(9))), [(4, 2)]);
}
