//! What an operator reads of an operation once it is over: how long each step took, which plugins it changed, and for how
//! long its report is there to be read.

use super::*;

/// Generation 1 serves `old`, and a reload to `new` is over; its report.
fn switch(old: Arc<SetInfo>, new: Arc<SetInfo>) -> Report {
    let mut story = Story::new();
    story.ask(Cause::Start, None);
    story.prepared(1, Ok(old));
    story.up(1);
    story.reload(7);
    story.prepared(2, Ok(new));
    story.up(2);
    story.says(1, ToMaster::Paused);
    story.answer(7).clone()
}

/// An operation that is over at once.
fn ask_for_nothing(story: &mut Story) {
    let options = OpOptions { generation: Some(Generation(99)), ..OpOptions::default() };
    let cause = Cause::Admin { peer: "test".into() };
    story.event(Event::Asked { verb: Verb::Cut, cause, options, caller: None });
}

#[test]
fn a_report_says_how_long_each_step_took() {
    let ms = Duration::from_millis;
    let mut story = Story::serving();
    // Long after the start: what counts is since when, not when.
    story.wait(ms(1000));
    story.reload(7);
    story.wait(ms(1));
    story.prepared(2, Ok(info(2, &["hello"])));
    story.wait(ms(2));
    story.spawned(2);
    story.says(2, hello());
    story.says(2, ToMaster::Proving);
    story.wait(ms(4));
    story.says(2, ToMaster::Ready);
    story.wait(ms(8));
    story.says(2, ToMaster::Serving);
    // The old one's pause keeps nobody waiting.
    story.wait(ms(16));
    story.says(1, ToMaster::Paused);
    let timings = story.answer(7).ms.unwrap();
    assert_eq!((timings.snapshot, timings.load, timings.prove, timings.switch), (1.0, 2.0, 4.0, 8.0));
    assert_eq!(timings.total, 15.0);
}

#[test]
fn a_report_counts_the_time_that_an_operation_waited_for_its_turn() {
    let mut story = Story::serving();
    story.reload(7);
    story.reload(8);
    story.wait(Duration::from_millis(5));
    story.prepared(2, Ok(info(2, &["hello"])));
    story.up(2);
    story.says(1, ToMaster::Paused);
    story.prepared(3, Ok(info(3, &["hello"])));
    story.up(3);
    story.says(2, ToMaster::Paused);
    let timings = story.answer(8).ms.unwrap();
    assert_eq!((timings.snapshot, timings.total), (0.0, 5.0));
}

#[test]
fn a_report_names_the_plugins_that_came_and_went_and_changed() {
    let old = info(1, &["changed", "gone", "same"]);
    let mut new = (*info(2, &["changed", "new", "same"])).clone();
    new.plugins[2].sha256 = old.plugins[2].sha256.clone();
    let plugins = switch(old, Arc::new(new)).plugins.unwrap();
    let only = |name: &str| vec![name.to_string()];
    assert_eq!((plugins.added, plugins.removed), (only("new"), only("gone")));
    assert_eq!((plugins.changed, plugins.unchanged), (only("changed"), only("same")));
}

#[test]
fn the_latest_reports_are_kept_and_the_oldest_is_forgotten_first() {
    let mut story = Story::serving();
    for _ in 1..REPORTS {
        ask_for_nothing(&mut story);
    }
    assert!(story.state.report(OpId(1)).is_some(), "there is room for all of them");
    assert_eq!(story.state.reports().count(), REPORTS);
    ask_for_nothing(&mut story);
    assert!(story.state.report(OpId(1)).is_none());
    assert_eq!(story.state.reports().count(), REPORTS);
    let newest = story.state.reports().next().map(|report| report.op);
    assert_eq!(newest, Some(OpId(REPORTS as u64 + 1)), "newest first");
}

#[test]
fn the_report_of_what_is_under_way_is_kept_however_many_come_and_go() {
    let mut story = Story::serving();
    story.reload(7);
    story.reload(8);
    for _ in 0..2 * REPORTS {
        ask_for_nothing(&mut story);
    }
    assert_eq!(story.state.reports().count(), REPORTS);
    story.prepared(2, Err(Failure::new(Stage::Snapshot, "x")));
    assert_eq!(story.answer(7).result, OpResult::Refused);
    story.prepared(3, Err(Failure::new(Stage::Snapshot, "x")));
    assert_eq!(story.answer(8).result, OpResult::Refused);
}

#[test]
fn the_log_says_that_a_reload_begins_and_nothing_of_the_kind_at_a_start() {
    let begins =
        |actions: &[Action]| actions.iter().any(|action| matches!(action, Action::Note(Note::Reloading { .. })));
    let mut story = Story::serving();
    assert!(!begins(&story.log));
    assert!(begins(&story.reload(7)));
}
