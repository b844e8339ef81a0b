//! Who answers while what shall serve does not come up: after `crash.hold` the set without plugins, until it does.

use super::*;

/// The set of generation 1 has died, and generation 2, which is to bring it back, loads for ever; generation 3 stands in.
fn hanging() -> Story {
    let mut story = Story::serving();
    story.dies(1, ExitKind::Signal(11));
    story.spawned(2);
    story.says(2, hello());
    assert_eq!(spawns(&story.wait(Duration::from_secs(9))), [], "crash.hold is ten seconds");
    assert_eq!(story.state.next_deadline(), Some(story.now + Duration::from_secs(1)));
    assert_eq!(spawns(&story.wait(Duration::from_secs(1))), [(3, 0)]);
    story
}

fn pauses(actions: &[Action], generation: u64) -> bool {
    actions.contains(&Action::Send { generation: Generation(generation), message: ToChild::Pause })
}

fn retires(actions: &[Action], generation: u64) -> bool {
    let of = |action: &Action| matches!(action, Action::Send { generation: one, message: ToChild::Retire(_) } if one.0 == generation);
    actions.iter().any(of)
}

#[test]
fn a_respawn_that_hangs_is_stood_in_for_and_takes_over_when_it_is_ready() {
    let mut story = hanging();
    story.up(3);
    assert_eq!((story.serving_generation(), story.state.is_ready()), (Some(3), false));
    assert!(story.state.alert().is_some_and(|alert| alert.contains("503")), "{:?}", story.state.alert());
    assert_eq!(story.state.switches(), 1, "that was none");
    story.says(2, ToMaster::Ready);
    let actions = story.says(2, ToMaster::Serving);
    assert!(pauses(&actions, 3) && retires(&actions, 3), "{actions:?}");
    assert_eq!((story.serving_generation(), story.state.is_ready(), story.state.alert()), (Some(2), true, None));
    story.leaves(3);
    assert_eq!(story.state.crashes(), 1);
}

#[test]
fn a_respawn_that_times_out_is_tried_again_behind_what_stands_in() {
    let mut story = hanging();
    story.up(3);
    let actions = story.wait(Duration::from_secs(20));
    assert!(actions.contains(&Action::Kill { generation: Generation(2) }), "start_timeout: {actions:?}");
    story.dies(2, ExitKind::Signal(9));
    assert_eq!(spawns(&story.wait(Duration::from_secs(1))), [(4, 1)]);
    story.up(4);
    assert_eq!((story.serving_generation(), story.state.is_ready()), (Some(4), true));
}

#[test]
fn one_that_is_late_touches_nothing() {
    let mut story = hanging();
    story.spawned(3);
    story.says(3, hello());
    story.says(2, ToMaster::Ready);
    let actions = story.says(3, ToMaster::Ready);
    assert!(actions.contains(&Action::Kill { generation: Generation(3) }), "GO was for the other: {actions:?}");
    story.says(2, ToMaster::Serving);
    // And one that was told GO at the same moment goes in good order.
    let mut story = hanging();
    story.spawned(3);
    story.says(3, hello());
    story.says(3, ToMaster::Ready);
    story.says(2, ToMaster::Ready);
    assert!(retires(&story.says(2, ToMaster::Serving), 3));
    assert_eq!(story.serving_generation(), Some(2));
}

#[test]
fn its_own_end_is_put_down_to_nobody_and_another_comes_after_as_long() {
    let mut story = hanging();
    story.up(3);
    assert_eq!(spawns(&story.dies(3, ExitKind::Signal(11))), []);
    assert_eq!(story.state.quarantines(), 0);
    assert_eq!(spawns(&story.wait(Duration::from_secs(10))), [(4, 0)]);
    let result = Err(Failure::new(Stage::Spawn, "start a child: EAGAIN"));
    assert_eq!(spawns(&story.event(Event::Spawned { generation: Generation(4), result })), []);
    story.says(2, ToMaster::Ready);
    story.says(2, ToMaster::Serving);
    assert_eq!(story.serving_generation(), Some(2));
}

#[test]
fn a_reload_takes_over_from_it_and_is_answered_when_it_accepts_no_more() {
    let mut story = hanging();
    story.up(3);
    story.reload(1);
    story.prepared(2, Ok(info(2, &["hello"])));
    story.dies(2, ExitKind::Signal(9));
    assert!(story.log.iter().any(|action| matches!(action, Action::Spawn { set: SetId(2), .. })), "{:#?}", story.state);
    let actions = story.up(4);
    assert!(pauses(&actions, 3) && !retires(&actions, 3));
    assert!(story.answers.is_empty(), "until then a client may still be answered 503");
    story.says(3, ToMaster::Paused);
    assert_eq!(story.answers.len(), 1);
    assert_eq!(story.serving_generation(), Some(4));
}

#[test]
fn with_no_good_set_left_what_stands_in_serves_on() {
    let mut story = hanging();
    story.up(3);
    for generation in [2, 4, 5, 6] {
        if generation > 2 {
            story.spawned(generation);
            story.says(generation, hello());
        }
        story.dies(generation, ExitKind::Signal(11));
        story.wait(Duration::from_secs(2));
    }
    assert_eq!(story.state.quarantines(), 1);
    assert_eq!(spawns(&story.wait(Duration::from_secs(60))), [], "the one that is there will do");
    assert_eq!((story.serving_generation(), story.state.is_ready()), (Some(3), false));
    assert!(story.state.alert().is_some_and(|alert| alert.contains("quarantined")));
    assert_eq!(story.state.outlook(), None, "nothing else is on its way");
}

#[test]
fn with_no_good_set_left_what_was_about_to_stand_in_is_what_serves() {
    let mut story = hanging();
    story.state.settings.crash.limit = 2;
    story.dies(2, ExitKind::Signal(11));
    assert_eq!(story.state.quarantines(), 1);
    assert_eq!(spawns(&story.wait(Duration::from_secs(10))), [], "it is on its way already");
    story.up(3);
    assert_eq!((story.serving_generation(), story.state.is_ready()), (Some(3), false));
    assert_eq!(spawns(&story.wait(Duration::from_secs(60))), []);
}

#[test]
fn one_that_has_seen_its_successor_goes_though_that_one_dies_at_once() {
    let mut story = hanging();
    story.up(3);
    story.reload(1);
    story.prepared(2, Ok(info(2, &["hello"])));
    story.dies(2, ExitKind::Signal(9));
    assert!(pauses(&story.up(4), 3));
    let actions = story.dies(4, ExitKind::Signal(11));
    assert!(retires(&actions, 3), "whether it still accepts is not known: {actions:?}");
    assert_eq!(story.answer(1).result, OpResult::Switched);
    story.wait(Duration::from_secs(5));
    story.up(5);
    assert_eq!((story.serving_generation(), story.state.is_ready()), (Some(5), true));
}

#[test]
fn one_that_still_drains_stands_in_for_nobody_and_is_told_to_go_once() {
    let mut story = hanging();
    story.up(3);
    story.says(2, ToMaster::Ready);
    assert!(retires(&story.says(2, ToMaster::Serving), 3));
    // What serves dies as well, and its respawn hangs in turn.
    story.dies(2, ExitKind::Signal(11));
    assert_eq!(spawns(&story.wait(Duration::from_secs(1))), [(4, 1)]);
    story.spawned(4);
    story.says(4, hello());
    assert_eq!(spawns(&story.wait(Duration::from_secs(9))), [(5, 0)]);
    story.up(5);
    story.says(4, ToMaster::Ready);
    let actions = story.says(4, ToMaster::Serving);
    assert!(retires(&actions, 5) && !retires(&actions, 3), "{actions:?}");
}
