//! What drains and is ended before its time: by a cut, or in part, for a switch that waits for room.

use super::*;
use crate::report::Cut;

/// Generation 2 serves, 1 drains.
fn draining() -> Story {
    let mut story = Story::serving();
    switch(&mut story, 2, 2);
    story
}

/// Operation `op` brings `generation`; the one before retires.
fn switch(story: &mut Story, op: u64, generation: u64) {
    story.reload(100 + generation);
    story.prepared(op, Ok(info(generation, &["hello"])));
    story.up(generation);
    story.says(generation - 1, ToMaster::Paused);
}

fn is_logged(actions: &[Action]) -> bool {
    actions.contains(&Action::Note(Note::Cutting))
}

fn cut(story: &mut Story, caller: u64, generation: Option<u64>) -> Vec<Action> {
    let options = OpOptions { generation: generation.map(Generation), ..OpOptions::default() };
    let cause = Cause::Admin { peer: "test".into() };
    story.event(Event::Asked { verb: Verb::Cut, cause, options, caller: Some(Caller(caller)) })
}

fn done(story: &mut Story, generation: u64, busy: u64) {
    let report = DrainReport { cut: Cut { busy, ..Cut::default() }, finished: 1, ..DrainReport::default() };
    story.says(generation, ToMaster::Done(report));
    story.dies(generation, ExitKind::Code(0));
}

#[test]
fn a_cut_ends_all_that_drains_and_is_answered_once_it_has_ended() {
    let mut story = draining();
    switch(&mut story, 3, 3);
    let actions = cut(&mut story, 7, None);
    assert_eq!((sends(&actions, 1), sends(&actions, 2)), (vec![&ToChild::Cut], vec![&ToChild::Cut]));
    assert!(is_logged(&actions) && sends(&actions, 3).is_empty(), "what serves is not touched");
    done(&mut story, 1, 2);
    assert!(story.answers.iter().all(|(caller, _)| *caller != Caller(7)), "one is still there");
    done(&mut story, 2, 3);
    let report = story.answer(7);
    assert_eq!((report.verb, report.result), (Verb::Cut, OpResult::Done));
    assert_eq!(report.cut.as_deref(), Some(&[Generation(1), Generation(2)][..]));
    let drain = report.drain.unwrap();
    assert_eq!((drain.cut.busy, drain.finished), (5, 2), "of both");
    assert_eq!(story.state.report(OpId(2)).unwrap().drain.unwrap().cut.busy, 2, "the switch's own is its own");
    assert_eq!(story.serving_generation(), Some(3));
}

#[test]
fn one_generation_may_be_cut_alone_and_only_if_it_drains() {
    let mut story = draining();
    switch(&mut story, 3, 3);
    let actions = cut(&mut story, 7, Some(2));
    assert_eq!((sends(&actions, 1).len(), sends(&actions, 2)), (0, vec![&ToChild::Cut]));
    done(&mut story, 2, 0);
    assert_eq!(story.answer(7).cut.as_deref(), Some(&[Generation(2)][..]));
    for (caller, generation, why) in [(8, 3, "does not drain"), (9, 2, "none of that number"), (10, 77, "none")] {
        let actions = cut(&mut story, caller, Some(generation));
        assert!(actions.iter().all(|action| !matches!(action, Action::Send { .. })), "{actions:?}");
        let report = story.answer(caller);
        assert_eq!((report.result, report.serving), (OpResult::Refused, Some(Generation(3))));
        assert!(report.error.as_ref().unwrap().contains(why), "{report:?}");
    }
}

#[test]
fn a_cut_of_nothing_is_done_at_once_and_equal_ones_share_their_end() {
    let mut story = Story::serving();
    assert!(!is_logged(&cut(&mut story, 7, None)), "that nothing was cut is no news");
    assert_eq!((story.answer(7).result, story.answer(7).cut.as_deref()), (OpResult::Done, Some(&[][..])));

    let mut story = draining();
    cut(&mut story, 7, None);
    let again = cut(&mut story, 8, None);
    assert!(sends(&again, 1).is_empty(), "once is enough");
    let alone = cut(&mut story, 9, Some(1));
    assert!(sends(&alone, 1).is_empty());
    done(&mut story, 1, 1);
    let ops = [7, 8, 9].map(|caller| story.answer(caller).op);
    assert_eq!(ops, [ops[0]; 3]);

    // One that drains only since then is not covered.
    let mut story = draining();
    cut(&mut story, 7, None);
    switch(&mut story, 4, 3);
    let more = cut(&mut story, 8, None);
    assert_eq!((sends(&more, 1).len(), sends(&more, 2)), (0, vec![&ToChild::Cut]));
    done(&mut story, 1, 0);
    story.answer(7);
    done(&mut story, 2, 0);
    assert_eq!(story.answer(8).cut.as_deref(), Some(&[Generation(1), Generation(2)][..]));
}

#[test]
fn what_does_not_heed_a_cut_is_killed_and_the_caller_still_answered() {
    let mut story = draining();
    cut(&mut story, 7, None);
    assert!(kills(&story.wait(EXIT_TIMEOUT), 1));
    story.dies(1, ExitKind::Signal(9));
    assert_eq!(story.answer(7).result, OpResult::Done);
}

#[test]
fn a_cut_during_a_shutdown_ends_it_early_and_it_says_so() {
    let mut story = Story::serving();
    story.term();
    assert_eq!(sends(&cut(&mut story, 7, None), 1), [&ToChild::Cut]);
    done(&mut story, 1, 1);
    assert_eq!(story.answer(7).result, OpResult::Done);
    assert_eq!(story.finished(), Some(&Exit::Cut));
}

/// Set `id`, beside which `max` generations may drain, and which is given up at the death number `deaths`.
fn limited(id: u64, max: usize, deaths: usize) -> Arc<SetInfo> {
    let mut set = (*info(id, &["hello"])).clone();
    set.settings.max_draining = max;
    set.settings.crash.limit = deaths;
    Arc::new(set)
}

fn capped(story: &mut Story) {
    story.state.settings.max_draining = 1;
    story.reload(1);
    story.prepared(2, Ok(limited(2, 1, 1)));
    story.up(2);
    story.says(1, ToMaster::Paused);
}

#[test]
fn a_switch_that_waits_for_room_has_the_oldest_close_its_idle_connections_and_nothing_else() {
    let mut story = Story::serving();
    capped(&mut story);
    story.wait(Duration::from_secs(100));
    let asked = story.reload(2);
    let [ToChild::Retire(hurry)] = sends(&asked, 1)[..] else { panic!("{asked:?}") };
    let max = Duration::from_millis(hurry.max_ms.unwrap());
    assert_eq!((hurry.keepalive_ms, hurry.timeout_ms), (Some(0), Some(60_000)), "requests have their time");
    assert_eq!(max, Duration::from_secs(500), "the end stays where it was");
    assert_eq!(hurry.upgraded_ms, Some(60_000), "and so have those that have left HTTP");
    assert!(sends(&story.reload(3), 1).is_empty() && sends(&story.wait(Duration::from_secs(1)), 1).is_empty(), "once");
    // It was not enough.
    let next = story.state.next_deadline().unwrap();
    assert_eq!(next, story.now + Duration::from_secs(2));
    let more = story.wait(Duration::from_secs(2));
    let [ToChild::Retire(hurry)] = sends(&more, 1)[..] else { panic!("{more:?}") };
    assert_eq!((hurry.keepalive_ms, hurry.upgraded_ms, hurry.timeout_ms), (Some(0), Some(0), Some(60_000)));
    assert_eq!(Duration::from_millis(hurry.max_ms.unwrap()), Duration::from_secs(497));
    assert!(sends(&story.wait(Duration::from_secs(100)), 1).is_empty(), "what is left are requests in flight");
    story.leaves(1);
    assert!(matches!(story.log.last(), Some(Action::Prepare { op: OpId(3), .. })));
}

#[test]
fn without_a_switch_that_waits_nothing_is_hurried_and_a_cut_makes_room_for_one() {
    let mut story = Story::serving();
    capped(&mut story);
    assert!(sends(&story.wait(Duration::from_secs(100)), 1).is_empty());
    cut(&mut story, 7, None);
    let asked = story.reload(2);
    assert!(sends(&asked, 1).is_empty(), "it ends already");
    done(&mut story, 1, 1);
    assert!(story.log.iter().any(|action| matches!(action, Action::Prepare { op: OpId(4), .. })));
}

#[test]
fn what_is_to_serve_instead_of_a_bad_set_comes_before_a_switch_that_waits_for_room() {
    let mut story = Story::serving();
    capped(&mut story);
    story.reload(2);
    story.dies(2, ExitKind::Signal(11));
    assert!(matches!(story.log.last(), Some(Action::Prepare { op: OpId(4), .. })), "{:?}", story.log.last());
    assert!(sends(&story.wait(Duration::from_secs(3)), 1).is_empty(), "room would help nobody now");
    story.prepared(4, Ok(limited(1, 1, 1)));
    let serves = story.up(3);
    assert!(matches!(sends(&serves, 1)[..], [ToChild::Retire(Deadlines { upgraded_ms: Some(0), .. })]), "{serves:?}");
    story.leaves(1);
    assert!(matches!(story.log.last(), Some(Action::Prepare { op: OpId(3), .. })));
}

#[test]
fn once_there_is_room_nothing_is_hurried_though_a_restart_waits_for_something_else() {
    let mut story = Story::serving();
    for generation in [2, 3] {
        story.reload(generation);
        story.prepared(generation, Ok(limited(generation, 2, 5)));
        story.up(generation);
        story.says(generation - 1, ToMaster::Paused);
    }
    let cause = Cause::Admin { peer: "test".into() };
    let options = OpOptions::default();
    let asked = story.event(Event::Asked { verb: Verb::Restart, cause, options, caller: Some(Caller(7)) });
    assert!(matches!(sends(&asked, 1)[..], [ToChild::Retire(_)]), "two drain, which is as many as may");
    story.dies(3, ExitKind::Signal(11));
    story.leaves(2);
    assert_eq!(story.state.report(OpId(4)).unwrap().queued.as_deref(), Some("another generation is on its way"));
    assert!(sends(&story.wait(Duration::from_secs(3)), 1).is_empty());
    let serves = story.up(4);
    assert!(serves.contains(&Action::Test { op: OpId(4), test: TestId(1) }), "{serves:?}");
}
