//! What others may see of the supervisor: what was asked for, which generations there are, and whose addresses must be open.

use super::*;
use crate::report::GenerationState;

/// Generation 2 was told GO, beside generation 1, which serves.
fn switching() -> Story {
    let mut story = Story::serving();
    story.reload(1);
    story.prepared(2, Ok(info(2, &["hello"])));
    story.ready(2);
    story
}

fn accepting(story: &Story, set: u64) -> bool {
    story.state.sets_accepting().any(|one| one == SetId(set))
}

#[test]
fn the_newest_report_is_the_first() {
    let mut story = Story::serving();
    assert_eq!(story.state.reports().count(), 1, "the start's");
    story.reload(1);
    story.prepared(2, Err(Failure::new(Stage::Snapshot, "x")));
    story.reload(2);
    let seen: Vec<_> = story.state.reports().map(|report| (report.op.0, report.result)).collect();
    assert_eq!(seen, [(3, OpResult::Running), (2, OpResult::Refused), (1, OpResult::Switched)]);
}

#[test]
fn whoever_lives_is_known_with_its_set_and_whoever_has_ended_is_not() {
    let mut story = switching();
    let sets = |story: &Story| [1, 2, 3].map(|number| story.state.set_of(Generation(number)));
    assert_eq!(sets(&story), [Some(SetId(1)), Some(SetId(2)), None]);
    story.says(2, ToMaster::Serving);
    story.says(1, ToMaster::Paused);
    assert_eq!(sets(&story), [Some(SetId(1)), Some(SetId(2)), None], "it drains");
    story.leaves(1);
    assert_eq!(sets(&story), [None, Some(SetId(2)), None]);
}

#[test]
fn the_addresses_of_a_set_are_open_until_its_last_generation_accepts_no_more() {
    let mut story = switching();
    assert_eq!([1, 2].map(|set| accepting(&story, set)), [true, true]);
    story.says(2, ToMaster::Serving);
    assert_eq!([1, 2].map(|set| accepting(&story, set)), [true, true], "a connection may still be the old one's");
    story.says(1, ToMaster::Paused);
    assert_eq!([1, 2].map(|set| accepting(&story, set)), [false, true], "what drains accepts nothing");
}

#[test]
fn what_stands_by_keeps_its_addresses_for_the_way_back() {
    let mut story = Story::on_probation();
    assert_eq!([1, 2].map(|set| accepting(&story, set)), [true, true]);
    story.wait(Duration::from_secs(60));
    assert_eq!([1, 2].map(|set| accepting(&story, set)), [false, true]);
}

#[test]
fn generations_are_shown_newest_first_and_the_ended_ones_follow_with_their_ends() {
    let mut story = switching();
    story.says(2, ToMaster::Serving);
    story.says(1, ToMaster::Paused);
    story.leaves(1);
    story.reload(2);
    story.prepared(3, Ok(info(3, &["hello"])));
    story.spawned(3);
    let seen = story.state.generations(story.now + Duration::from_secs(3));
    let seen: Vec<_> = seen.iter().map(|one| (one.generation.0, one.state, one.pid, one.exit.is_some())).collect();
    let (starting, serving, exited) = (GenerationState::Starting, GenerationState::Serving, GenerationState::Exited);
    assert_eq!(
        seen,
        [(3, starting, Some(1003), false), (2, serving, Some(1002), false), (1, exited, Some(1001), true)]
    );
}
