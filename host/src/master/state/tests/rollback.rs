//! Going back: what serves again, what is held back from then on, who comes first, and what the next master is told.

use super::*;
use crate::report::{Change, Why};

impl Story {
    /// Generation 2 serves set 2, and set 1 has served before.
    fn second() -> Story {
        let mut story = Story::serving();
        story.reload(1);
        story.prepared(2, Ok(info(2, &["hello"])));
        story.up(2);
        story.says(1, ToMaster::Paused);
        story.leaves(1);
        story
    }

    pub(super) fn rollback(&mut self, caller: u64, to: Option<u64>) -> Vec<Action> {
        let options = OpOptions { to: to.map(Generation), ..OpOptions::default() };
        let cause = Cause::Admin { peer: "test".into() };
        self.event(Event::Asked { verb: Verb::Rollback, cause, options, caller: Some(Caller(caller)) })
    }

    /// Rolled back: generation 3 serves set 1 again, under a new number.
    fn back() -> Story {
        let mut story = Story::second();
        story.rollback(2, None);
        story.prepared(3, Ok(again(1, 10)));
        story.up(3);
        story.says(2, ToMaster::Paused);
        story.leaves(2);
        story
    }
}

/// The content of set `of` as set `id`.
pub(super) fn again(of: u64, id: u64) -> Arc<SetInfo> {
    Arc::new(SetInfo { id: SetId(id), ..(*info(of, &["hello"])).clone() })
}

pub(super) fn file(set: u64) -> Change {
    Change::Plugin { plugin: "hello".into(), sha256: set.to_string() }
}

pub(super) fn whole(set: u64) -> Change {
    Change::Set { sha256: info(set, &["hello"]).sha256.clone() }
}

pub(super) fn source(actions: &[Action]) -> Option<&Source> {
    actions.iter().find_map(|action| match action {
        Action::Prepare { source, .. } => Some(source),
        _ => None,
    })
}

#[test]
fn a_rollback_goes_to_the_set_before_and_pins_it() {
    let mut story = Story::second();
    let actions = story.rollback(2, None);
    assert_eq!(source(&actions), Some(&Source::Again { set: SetId(1), within: Within::Set(SetId(2)) }));
    assert_eq!(spawns(&story.prepared(3, Ok(again(1, 10)))), [(3, 10)]);
    story.up(3);
    story.says(2, ToMaster::Paused);
    let report = story.answer(2);
    assert_eq!((report.verb, report.result, report.from), (Verb::Rollback, OpResult::Switched, Some(Generation(2))));
    let held = vec![(whole(2), Why::RolledBack), (file(2), Why::RolledBack)];
    assert_eq!(story.written, Memory { good: vec![SetId(10)], pin: Some(Generation(1)), held });
    assert_eq!(spawns(&story.dies(3, ExitKind::Signal(9))), [(4, 10)], "a crash honours it");
    story.up(4);
    assert_eq!(story.written.pin, Some(Generation(1)));
}

#[test]
fn a_rollback_that_fails_leaves_what_serves_and_holds_nothing_back() {
    let mut story = Story::second();
    story.rollback(2, None);
    story.prepared(3, Ok(again(1, 10)));
    story.spawned(3);
    story.dies(3, ExitKind::Signal(11));
    assert_eq!((story.answer(2).result, story.serving_generation()), (OpResult::Refused, Some(2)));
    assert_eq!((story.written.pin, &story.written.held[..]), (None, &[][..]));
}

#[test]
fn a_rollback_that_cannot_begin_says_why() {
    let mut story = Story::serving();
    story.rollback(1, None);
    story.rollback(2, Some(7));
    story.rollback(3, Some(1));
    for (caller, says) in [(1, "no other set"), (2, "generation 7: its set is not kept"), (3, "this very set serves")] {
        let report = story.answer(caller);
        assert_eq!(report.result, OpResult::Refused);
        assert!(report.error.as_ref().unwrap().contains(says), "{report:?}");
    }
    let mut story = Story::new();
    story.ask(Cause::Start, None);
    story.rollback(1, None);
    assert!(story.answer(1).error.as_ref().unwrap().contains("nothing has served"));
}

#[test]
fn where_only_the_configuration_differs_a_rollback_without_it_would_change_nothing() {
    let mut story = Story::serving();
    story.reload(1);
    let set =
        SetInfo { id: SetId(2), sha256: "other".into(), config: "other".into(), ..(*info(1, &["hello"])).clone() };
    story.prepared(2, Ok(Arc::new(set)));
    story.up(2);
    story.says(1, ToMaster::Paused);
    story.rollback(2, None);
    let report = story.answer(2);
    assert_eq!((report.result, story.serving_generation()), (OpResult::Refused, Some(2)));
    assert!(report.hint.as_ref().unwrap().contains("--with-config"), "{report:?}");
    let whole = OpOptions { with_config: true, ..OpOptions::default() };
    let actions = story.event(Event::Asked {
        verb: Verb::Rollback,
        cause: Cause::Admin { peer: String::new() },
        options: whole,
        caller: None,
    });
    assert!(matches!(source(&actions), Some(Source::Again { set: SetId(1), within: Within::Own })), "{actions:?}");
}

#[test]
fn a_generation_is_gone_back_to_by_its_number_while_its_set_is_kept() {
    let mut story = Story::second();
    story.reload(3);
    story.prepared(3, Ok(info(3, &["hello"])));
    story.up(3);
    story.says(2, ToMaster::Paused);
    assert!(matches!(source(&story.rollback(4, Some(1))), Some(Source::Again { set: SetId(1), .. })));
}

#[test]
fn after_a_rollback_a_reload_holds_back_what_was_given_up_until_it_changes() {
    let mut story = Story::back();
    let actions = story.reload(4);
    let held = vec![whole(2), file(2)];
    assert_eq!(source(&actions), Some(&Source::Files { held, instead: Some(SetId(10)) }));
    // Nothing but what is held back is new.
    let nothing_new = SetInfo { held: vec![file(2)], ..(*again(1, 11)).clone() };
    story.prepared(4, Ok(Arc::new(nothing_new.clone())));
    assert_eq!((story.answer(4).result, story.answer(4).plugin.as_deref()), (OpResult::Refused, Some("hello")));
    assert!(story.answer(4).error.as_ref().unwrap().contains("was rolled back"), "{:?}", story.answer(4));
    // Another plugin is new: it is taken, and the pin stays.
    story.reload(5);
    let other = SetInfo { held: vec![file(2)], sha256: "other".into(), id: SetId(12), ..nothing_new };
    story.prepared(5, Ok(Arc::new(other)));
    story.up(4);
    story.says(3, ToMaster::Paused);
    assert_eq!((story.answer(5).result, &story.answer(5).held), (OpResult::Switched, &vec![file(2)]));
    assert_eq!(story.written.pin, Some(Generation(1)));
    story.leaves(3);
    // Its content has changed.
    story.reload(6);
    story.prepared(6, Ok(info(13, &["hello"])));
    story.up(5);
    story.says(4, ToMaster::Paused);
    assert_eq!(story.written.pin, None);
    assert_eq!(story.written.held.len(), 2, "what was given up stays so");
}

#[test]
fn force_takes_what_was_given_up_and_forgets_that_it_was() {
    let mut story = Story::back();
    let options = OpOptions { force: true, ..OpOptions::default() };
    let cause = Cause::Admin { peer: "test".into() };
    let actions = story.event(Event::Asked { verb: Verb::Reload, cause, options, caller: Some(Caller(4)) });
    assert_eq!(source(&actions), Some(&Source::Files { held: vec![], instead: Some(SetId(10)) }));
    story.prepared(4, Ok(again(2, 12)));
    story.up(4);
    story.says(3, ToMaster::Paused);
    assert_eq!(story.answer(4).result, OpResult::Switched);
    assert_eq!(story.written, Memory { good: vec![SetId(12), SetId(10)], pin: None, held: vec![] });
}

#[test]
fn a_set_that_was_given_up_as_a_whole_is_refused() {
    let mut story = Story::back();
    story.reload(4);
    story.prepared(4, Ok(again(2, 12)));
    assert!(story.answer(4).error.as_ref().unwrap().contains("this very set was rolled back"));
}

#[test]
fn what_failed_on_probation_is_held_back_as_well() {
    for dies in [true, false] {
        let mut story = Story::on_probation();
        assert_eq!(story.written.good, [SetId(1)], "not good yet");
        if dies {
            story.dies(2, ExitKind::Signal(11));
            story.says(1, ToMaster::Serving);
        } else {
            story.counted(2, 20, 20);
            story.says(1, ToMaster::Serving);
            story.says(2, ToMaster::Paused);
        }
        let held: Vec<Change> = story.written.held.iter().map(|(change, _)| change.clone()).collect();
        assert_eq!((held, story.written.pin), (vec![whole(2), file(2)], Some(Generation(1))));
        assert_eq!(story.written.good, [SetId(1)]);
    }
    let mut story = Story::on_probation();
    story.wait(Duration::from_secs(60));
    assert_eq!((&story.written.good[..], &story.written.held[..]), (&[SetId(2), SetId(1)][..], &[][..]));
}

#[test]
fn the_same_set_is_not_held_back_when_its_new_child_dies() {
    let mut story = Story::serving();
    story.says(1, ToMaster::ReplaceMe);
    story.prepared(2, Ok(again(1, 2)));
    story.up(2);
    story.dies(2, ExitKind::Signal(9));
    story.says(1, ToMaster::Serving);
    assert_eq!(story.written, Memory { good: vec![SetId(1)], pin: None, held: vec![] });
}

#[test]
fn a_rollback_comes_before_reloads_that_are_not_committed() {
    let mut story = Story::second();
    story.reload(2);
    story.reload(3);
    story.prepared(3, Ok(info(3, &["hello"])));
    story.spawned(3);
    assert!(kills(&story.rollback(4, None), 3));
    for caller in [2, 3] {
        assert_eq!(
            (story.answer(caller).result, story.answer(caller).superseded_by),
            (OpResult::Superseded, Some(OpId(5)))
        );
    }
    story.dies(3, ExitKind::Signal(9));
    story.prepared(5, Ok(again(1, 10)));
    story.reload(5);
    story.up(4);
    story.says(2, ToMaster::Paused);
    assert_eq!((story.answer(4).result, story.serving_generation()), (OpResult::Switched, Some(4)));
    assert!(story.answers.iter().all(|(caller, _)| *caller != Caller(5)), "what was asked later comes later");
}

#[test]
fn a_rollback_queued_behind_a_switch_that_commits_wins_in_the_end() {
    let mut story = Story::second();
    story.reload(2);
    story.prepared(3, Ok(info(3, &["hello"])));
    story.ready(3);
    assert!(!kills(&story.rollback(4, None), 3), "it may have accepted already");
    story.rollback(5, None);
    story.reload(6);
    assert_eq!(story.answer(6).result, OpResult::Superseded);
    story.says(3, ToMaster::Serving);
    story.says(2, ToMaster::Paused);
    assert_eq!(story.answer(2).result, OpResult::Switched);
    story.prepared(4, Ok(again(1, 10)));
    story.up(4);
    story.says(3, ToMaster::Paused);
    assert_eq!((story.answer(4).op, story.answer(5).op), (OpId(4), OpId(4)), "equal ones are one");
    let held: Vec<Change> = story.written.held.iter().map(|(change, _)| change.clone()).collect();
    assert_eq!(held, [whole(2), file(2), whole(3), file(3)], "also what served when it was asked for");
}

#[test]
fn a_shutdown_comes_before_a_rollback() {
    let mut story = Story::second();
    story.rollback(2, None);
    story.term();
    story.rollback(3, None);
    assert_eq!((story.answer(2).result, story.answer(3).result), (OpResult::Superseded, OpResult::Superseded));
}

#[test]
fn the_next_master_starts_with_the_pinned_set_and_can_go_back() {
    let earlier = Story::back().written;
    let memory = Memory { good: vec![again(1, 1), again(9, 2)], pin: earlier.pin, held: earlier.held.clone() };
    let mut story = Story { state: State::new(settings(), BadStart::Exit, memory), ..Story::new() };
    let start = story.ask(Cause::Start, None);
    assert_eq!(source(&start), Some(&Source::Files { held: vec![whole(2), file(2)], instead: Some(SetId(1)) }));
    let pinned = SetInfo { held: vec![file(2)], ..(*again(1, 3)).clone() };
    story.prepared(1, Ok(Arc::new(pinned)));
    story.up(1);
    assert_eq!((story.serving_generation(), story.written.pin), (Some(1), Some(Generation(1))));
    assert!(matches!(source(&story.rollback(1, None)), Some(Source::Again { set: SetId(2), .. })));
}

#[test]
fn a_start_with_nothing_else_to_serve_takes_what_was_given_up() {
    let memory =
        Memory { good: vec![], pin: None, held: vec![(whole(2), Why::RolledBack), (file(2), Why::RolledBack)] };
    let mut story = Story { state: State::new(settings(), BadStart::Exit, memory), ..Story::new() };
    assert_eq!(source(&story.ask(Cause::Start, None)), Some(&Source::Files { held: vec![], instead: None }));
}

#[test]
fn a_removal_and_a_section_are_changes_too() {
    let mut story = Story::new();
    story.ask(Cause::Start, None);
    story.prepared(1, Ok(info(1, &["gone", "hello"])));
    story.up(1);
    story.reload(1);
    let mut changed = (*info(1, &["hello"])).clone();
    (changed.id, changed.sha256) = (SetId(2), "changed".into());
    changed.sections.insert("hello".into(), "another".into());
    story.prepared(2, Ok(Arc::new(changed)));
    story.up(2);
    story.says(1, ToMaster::Paused);
    story.rollback(2, None);
    story.prepared(3, Ok(Arc::new(SetInfo { id: SetId(3), ..(*info(1, &["gone", "hello"])).clone() })));
    story.up(3);
    story.says(2, ToMaster::Paused);
    let held: Vec<Change> = story.written.held.iter().map(|(change, _)| change.clone()).collect();
    let settings = Change::Settings { plugin: "hello".into(), sha256: "another".into() };
    assert_eq!(held[1..], [settings, Change::Removal { plugin: "gone".into() }]);
}

#[test]
fn a_rollback_that_waits_gives_way_to_one_that_wants_the_configuration_too() {
    let mut story = Story::second();
    story.reload(2);
    story.prepared(3, Ok(info(3, &["hello"])));
    story.ready(3);
    story.rollback(4, None);
    let options = OpOptions { with_config: true, ..OpOptions::default() };
    let cause = Cause::Admin { peer: "test".into() };
    story.event(Event::Asked { verb: Verb::Rollback, cause, options, caller: Some(Caller(5)) });
    assert_eq!((story.answer(4).result, story.answer(4).superseded_by), (OpResult::Superseded, Some(OpId(5))));
    story.says(3, ToMaster::Serving);
    let begins = story.says(2, ToMaster::Paused);
    assert_eq!(source(&begins), Some(&Source::Again { set: SetId(1), within: Within::Own }));
}
