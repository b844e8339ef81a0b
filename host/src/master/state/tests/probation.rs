//! While the old generation stands by: what brings it back, and what does not.

use super::*;

#[test]
fn during_a_probation_the_old_generation_stands_by_and_takes_over_if_the_new_one_dies() {
    let mut story = Story::on_probation();
    assert_eq!((story.answer(1).result, story.answer(1).standby), (OpResult::Switched, Some(Generation(1))));
    story.wait(Duration::from_secs(59));
    let actions = story.dies(2, ExitKind::Signal(11));
    assert_eq!(sends(&actions, 1), [&ToChild::Resume]);
    assert_eq!(spawns(&actions), [], "nothing has to be loaded");
    let report = story.state.report(OpId(2)).unwrap();
    assert_eq!((report.result, report.standby, report.serving), (OpResult::RolledBack, None, Some(Generation(1))));
    story.says(1, ToMaster::Serving);
    assert_eq!(story.serving_generation(), Some(1));
}

#[test]
fn after_a_probation_the_old_generation_retires_and_the_new_one_is_respawned_if_it_dies() {
    let mut story = Story::on_probation();
    assert_eq!(story.state.next_deadline(), Some(Duration::from_secs(60)));
    assert!(matches!(sends(&story.wait(Duration::from_secs(60)), 1)[..], [ToChild::Retire(_)]));
    assert_eq!(story.state.report(OpId(2)).unwrap().standby, None);
    let actions = story.dies(2, ExitKind::Signal(11));
    assert_eq!((sends(&actions, 1), spawns(&actions)), (vec![], vec![(3, 2)]));
    assert_eq!(story.state.report(OpId(2)).unwrap().result, OpResult::Switched);
}

#[test]
fn the_window_begins_with_the_switch_and_not_with_the_pause() {
    let mut story = Story::serving();
    story.reload(1);
    story.prepared(2, Ok(info_on_probation(2, &["hello"])));
    story.up(2);
    story.wait(Duration::from_secs(9));
    story.says(1, ToMaster::Paused);
    assert!(matches!(sends(&story.wait(Duration::from_secs(51)), 1)[..], [ToChild::Retire(_)]));
}

#[test]
fn one_that_stands_by_and_dies_leaves_the_new_one_serving() {
    let mut story = Story::on_probation();
    assert_eq!(story.dies(1, ExitKind::Signal(9)).len(), 1, "a note");
    assert_eq!(story.state.report(OpId(2)).unwrap().standby, None);
    assert_eq!(spawns(&story.dies(2, ExitKind::Signal(9))), [(3, 2)]);
}

#[test]
fn too_many_failures_bring_the_old_generation_back_before_the_new_one_stops() {
    let mut story = Story::on_probation();
    assert_eq!(story.state.watched(), Some(Generation(2)));
    assert_eq!(story.counted(2, 9, 9), [], "too few to say anything");
    assert_eq!(story.counted(2, 20, 10), [], "as many as may be");
    let resume = story.counted(2, 21, 11);
    assert_eq!(resume, [Action::Send { generation: Generation(1), message: ToChild::Resume }]);
    assert_eq!((story.serving_generation(), story.counted(2, 40, 40)), (Some(2), vec![]), "once");
    let back = story.says(1, ToMaster::Serving);
    assert_eq!(sends(&back, 2), [&ToChild::Pause]);
    assert!(back.contains(&Action::Handover { from: Generation(2), to: Generation(1) }));
    assert_eq!(story.serving_generation(), Some(1));
    assert!(matches!(sends(&story.says(2, ToMaster::Paused), 2)[..], [ToChild::Retire(_)]), "no second probation");
    let report = story.state.report(OpId(2)).unwrap();
    assert_eq!(report.result, OpResult::RolledBack);
    assert!(report.error.as_ref().unwrap().contains("11 of its 21"), "{report:?}");
    story.leaves(2);
    assert_eq!(spawns(&story.dies(1, ExitKind::Signal(9))), [(3, 1)], "and its set is the one that counts");
}

#[test]
fn an_old_generation_that_does_not_come_back_leaves_the_failing_one_serving() {
    let mut story = Story::on_probation();
    story.counted(2, 20, 20);
    assert!(kills(&story.wait(SWITCH_TIMEOUT), 1));
    story.dies(1, ExitKind::Signal(9));
    assert_eq!(story.serving_generation(), Some(2));
    assert_eq!(story.state.report(OpId(2)).unwrap().result, OpResult::Switched);

    let mut story = Story::on_probation();
    story.counted(2, 20, 20);
    story.dies(2, ExitKind::Signal(9));
    story.says(1, ToMaster::Serving);
    assert_eq!(story.serving_generation(), Some(1), "whatever becomes of the failing one meanwhile");
}

#[test]
fn a_reload_during_a_probation_does_not_wait_and_one_step_back_is_kept() {
    let mut story = Story::on_probation();
    story.reload(2);
    story.prepared(3, Ok(info_on_probation(3, &["hello"])));
    let committed = { story.up(3) };
    assert!(matches!(sends(&committed, 1)[..], [ToChild::Retire(_)]), "{committed:?}");
    assert_eq!(sends(&committed, 2), [&ToChild::Pause]);
    story.says(2, ToMaster::Paused);
    assert_eq!(sends(&story.dies(3, ExitKind::Signal(9)), 2), [&ToChild::Resume]);
}

#[test]
fn a_reload_under_way_begins_anew_when_the_generation_before_is_rolled_back() {
    let mut story = Story::on_probation();
    story.reload(2);
    story.prepared(3, Ok(info(3, &["hello"])));
    story.spawned(3);
    assert!(kills(&story.counted(2, 20, 20), 3));
    assert!(story.answers.iter().all(|(caller, _)| *caller != Caller(2)), "nobody is told anything yet");
    story.dies(3, ExitKind::Signal(9));
    story.says(1, ToMaster::Serving);
    story.says(2, ToMaster::Paused);
    assert!(story.log.iter().filter(|action| matches!(action, Action::Prepare { op: OpId(3), .. })).count() == 2);
    story.prepared(3, Ok(info(4, &["hello"])));
    story.up(4);
    story.says(1, ToMaster::Paused);
    assert_eq!((story.answer(2).result, story.serving_generation()), (OpResult::Switched, Some(4)));
}

#[test]
fn a_shutdown_does_not_wait_for_a_probation() {
    let mut story = Story::on_probation();
    let actions = story.term();
    for generation in [1, 2] {
        assert!(matches!(sends(&actions, generation)[..], [ToChild::Retire(_)]), "{actions:?}");
    }
}

#[test]
fn one_that_was_rolled_back_for_its_failures_does_not_stand_by_in_turn() {
    let mut story = Story::serving();
    for (turn, generation) in [(1, 2), (2, 3)] {
        story.reload(turn);
        story.prepared(generation, Ok(info_on_probation(generation, &["hello"])));
        story.up(generation);
        story.says(generation - 1, ToMaster::Paused);
        if generation == 2 {
            story.wait(Duration::from_secs(60));
        }
    }
    story.counted(3, 20, 20);
    story.says(2, ToMaster::Serving);
    assert!(matches!(sends(&story.says(3, ToMaster::Paused), 3)[..], [ToChild::Retire(_)]));
}

#[test]
fn what_was_counted_of_one_that_serves_no_more_changes_nothing() {
    let mut story = Story::on_probation();
    story.reload(2);
    story.prepared(3, Ok(info_on_probation(3, &["hello"])));
    story.up(3);
    story.says(2, ToMaster::Paused);
    assert_eq!(story.counted(2, 20, 20), [], "it was counted before the switch");
    assert_eq!(story.serving_generation(), Some(3));
    assert_eq!(sends(&story.counted(3, 20, 20), 2), [&ToChild::Resume]);
}

#[test]
fn a_reload_that_follows_a_roll_back_begins_when_the_bad_one_accepts_no_more() {
    let mut story = Story::on_probation();
    story.counted(2, 20, 20);
    story.says(1, ToMaster::Serving);
    story.reload(2);
    assert_eq!(spawns(&story.prepared(3, Ok(info(3, &["hello"])))), [], "three would accept");
    assert_eq!(spawns(&story.says(2, ToMaster::Paused)), [(3, 3)]);
    // Nor is one waited for that does not answer.
    let mut story = Story::on_probation();
    story.counted(2, 20, 20);
    story.says(1, ToMaster::Serving);
    story.reload(2);
    story.prepared(3, Ok(info(3, &["hello"])));
    assert_eq!(spawns(&story.wait(PAUSE_TIMEOUT)), [(3, 3)]);
}
