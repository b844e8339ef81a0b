//! What a switch tells and hands over, and to whom: with a probation and without, over what only stood in, and before a shutdown.

use super::*;

fn handovers(actions: &[Action]) -> Vec<(u64, u64)> {
    let of = |action: &Action| match action {
        Action::Handover { from, to } => Some((from.0, to.0)),
        _ => None,
    };
    actions.iter().filter_map(of).collect()
}

/// Generation 2 has been told to go, instead of generation 1.
fn committing(set: Arc<SetInfo>) -> Story {
    let mut story = Story::serving();
    story.reload(1);
    story.prepared(2, Ok(set));
    story.ready(2);
    story
}

#[test]
fn idle_connections_are_handed_over_unless_the_configuration_says_no_or_the_server_ends() {
    let mut story = committing(info(2, &["hello"]));
    assert_eq!(handovers(&story.says(2, ToMaster::Serving)), [(1, 2)]);

    let mut set = (*info(2, &["hello"])).clone();
    set.settings.drain.handover = false;
    let mut story = committing(Arc::new(set));
    assert_eq!(handovers(&story.says(2, ToMaster::Serving)), []);

    let mut story = committing(info(2, &["hello"]));
    story.term();
    assert_eq!(handovers(&story.says(2, ToMaster::Serving)), [], "the new one closes them as well");
}

#[test]
fn without_a_probation_whoever_asked_is_told_of_nobody_who_stands_by() {
    let mut story = committing(info(2, &["hello"]));
    story.says(2, ToMaster::Serving);
    story.says(1, ToMaster::Paused);
    assert_eq!((story.answer(1).result, story.answer(1).standby), (OpResult::Switched, None));
}

#[test]
fn a_shutdown_that_begins_before_the_old_one_has_paused_leaves_nobody_to_stand_by() {
    let mut story = committing(info_on_probation(2, &["hello"]));
    story.says(2, ToMaster::Serving);
    story.term();
    assert!(matches!(sends(&story.says(1, ToMaster::Paused), 1)[..], [ToChild::Retire(_)]));
    assert_eq!((story.answer(1).result, story.answer(1).standby), (OpResult::Switched, None));
}

#[test]
fn what_only_stood_in_does_not_stand_by_for_what_takes_over_from_it() {
    // Generation 2, which is to bring the set back, loads for ever; generation 3 stands in.
    let mut story = Story::serving();
    story.dies(1, ExitKind::Signal(11));
    story.spawned(2);
    story.says(2, hello());
    story.wait(Duration::from_secs(10));
    story.up(3);
    story.reload(1);
    story.prepared(2, Ok(info_on_probation(2, &["hello"])));
    story.dies(2, ExitKind::Signal(9));
    story.up(4);
    assert!(matches!(sends(&story.says(3, ToMaster::Paused), 3)[..], [ToChild::Retire(_)]));
    assert_eq!((story.answer(1).result, story.answer(1).standby), (OpResult::Switched, None));
}
