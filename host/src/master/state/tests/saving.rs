//! What is handed on: asked for when an operation begins, and never in the way of it.

use super::*;
use crate::control::states::{SAVE_TIMEOUT, StateEntry};
use crate::report::NotSaved;

/// Generation 1 serves, a reload has begun, and whoever is asked for what it hands on is silent.
fn asked() -> Story {
    let mut story = Story { saves: false, ..Story::serving() };
    assert_eq!(sends(&story.reload(7), 1), [&ToChild::Save]);
    story
}

fn gives(plugin: &str) -> ToMaster {
    ToMaster::Saved {
        states: vec![StateEntry { plugin: plugin.into(), version: 1, length: 3 }],
        failed: vec![NotSaved { plugin: Some("other".into()), error: "x".into() }],
        memory: None,
    }
}

fn keeps(actions: &[Action]) -> bool {
    actions.iter().any(|action| matches!(action, Action::KeepStates { .. }))
}

fn inherits(actions: &[Action]) -> Option<Inherit> {
    actions.iter().find_map(|action| match action {
        Action::Load { inherit, .. } => Some(*inherit),
        _ => None,
    })
}

#[test]
fn a_new_child_is_started_with_what_the_one_that_serves_has_saved() {
    let mut story = asked();
    assert_eq!(spawns(&story.prepared(2, Ok(info(2, &["hello"])))), [], "not before");
    let saved = story.says(1, gives("hello"));
    assert!(keeps(&saved) && spawns(&saved) == [(2, 2)], "{saved:?}");
    story.spawned(2);
    assert_eq!(inherits(&story.says(2, hello())), Some(Inherit::Latest));
    story.says(2, ToMaster::Ready);
    story.says(2, ToMaster::Serving);
    story.says(1, ToMaster::Paused);
    let state = story.answer(7).state.as_ref().unwrap();
    assert_eq!((&state.saved[..], state.failed.len()), (&["hello".to_string()][..], 1));
}

#[test]
fn what_does_not_come_in_time_is_gone_without_and_told() {
    let mut story = asked();
    story.prepared(2, Ok(info(2, &["hello"])));
    assert_eq!(story.state.next_deadline(), Some(SAVE_TIMEOUT));
    assert_eq!(spawns(&story.wait(SAVE_TIMEOUT - Duration::from_millis(1))), []);
    assert_eq!(spawns(&story.wait(Duration::from_millis(1))), [(2, 2)]);
    let late = story.says(1, gives("hello"));
    assert!(late.is_empty(), "too late: {late:?}");
    story.up(2);
    story.says(1, ToMaster::Paused);
    let report = story.answer(7);
    assert_eq!(report.result, OpResult::Switched);
    let state = report.state.as_ref().unwrap();
    assert!(state.saved.is_empty() && state.failed[0].plugin.is_none(), "{state:?}");
    assert!(state.failed[0].error.contains("1.25s"), "{state:?}");
}

#[test]
fn the_death_of_whoever_is_asked_holds_nothing_up() {
    let mut story = asked();
    story.prepared(2, Ok(info(2, &["hello"])));
    story.dies(1, ExitKind::Signal(11));
    // Its respawn comes first, then the reload.
    story.up(2);
    assert_eq!(story.serving_generation(), Some(2));
    story.up(3);
    assert_eq!(story.serving_generation(), Some(3));
    story.says(2, ToMaster::Paused);
    assert!(story.answer(7).state.as_ref().is_some_and(|state| state.failed.len() == 1), "{:?}", story.answer(7));
}

#[test]
fn a_refused_operation_has_asked_for_nothing_that_matters() {
    let mut story = asked();
    story.prepared(2, Err(Failure::new(Stage::Snapshot, "x")));
    assert_eq!(story.answer(7).result, OpResult::Refused, "it is not waited for");
    // The next one takes the answer that is under way.
    assert_eq!(sends(&story.reload(8), 1), [] as [&ToChild; 0]);
    assert!(keeps(&story.says(1, gives("hello"))));
    assert_eq!(spawns(&story.prepared(3, Ok(info(3, &["hello"])))), [(2, 3)]);
}

#[test]
fn a_set_without_plugins_is_asked_for_nothing() {
    let mut story = Story { saves: false, ..Story::new() };
    story.ask(Cause::Start, None);
    story.prepared(1, Ok(info(1, &[])));
    story.up(1);
    assert_eq!(sends(&story.reload(7), 1), [] as [&ToChild; 0]);
    assert_eq!(spawns(&story.prepared(2, Ok(info(2, &["hello"])))), [(2, 2)]);
}

#[test]
fn a_set_that_dies_again_is_started_with_nothing() {
    let mut story = Story::serving();
    story.dies(1, ExitKind::Signal(11));
    story.spawned(2);
    assert_eq!(inherits(&story.says(2, hello())), Some(Inherit::Latest), "the first death may be anything");
    story.dies(2, ExitKind::Signal(11));
    story.wait(Duration::from_secs(5));
    story.spawned(3);
    assert_eq!(inherits(&story.says(3, hello())), Some(Inherit::Nothing));
    story.says(3, ToMaster::Ready);
    story.says(3, ToMaster::Serving);
    // What somebody asks for is new code: it may do better.
    story.reload(7);
    story.prepared(2, Ok(info(2, &["hello"])));
    story.spawned(4);
    assert_eq!(inherits(&story.says(4, hello())), Some(Inherit::Latest));
}

#[test]
fn what_takes_the_place_of_a_set_that_is_given_up_starts_with_nothing() {
    let mut story = Story::serving();
    story.reload(7);
    let mut bad = (*info(2, &["hello"])).clone();
    bad.settings.crash.limit = 1;
    story.prepared(2, Ok(Arc::new(bad)));
    story.up(2);
    story.says(1, ToMaster::Paused);
    story.leaves(1);
    story.dies(2, ExitKind::Signal(11));
    story.prepared(3, Ok(info(3, &["hello"])));
    story.spawned(3);
    assert_eq!(inherits(&story.says(3, hello())), Some(Inherit::Nothing));
}

#[test]
fn a_report_of_states_is_as_long_as_the_set() {
    let mut story = asked();
    story.prepared(2, Ok(info(2, &["hello"])));
    let entry = |plugin: &str| StateEntry { plugin: plugin.into(), version: 1, length: 3 };
    let failed = vec![NotSaved { plugin: None, error: "x".into() }; 1000];
    let states = vec![entry("stranger"), entry("hello")];
    let actions = story.says(1, ToMaster::Saved { states, failed, memory: None });
    let noted = actions.iter().filter(|action| matches!(action, Action::Note(Note::NotSaved { .. }))).count();
    assert_eq!(noted, 2);
    story.up(2);
    story.says(1, ToMaster::Paused);
    let state = story.answer(7).state.as_ref().unwrap();
    assert_eq!((&state.saved[..], state.failed.len()), (&["hello".to_string()][..], 2));
}
