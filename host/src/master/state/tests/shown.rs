//! What `baton status` and the log show of generations: where they stand, how old they are, and how they ended.

use super::*;
use crate::report::{GenerationState, GenerationStatus};

fn shown(story: &Story) -> Vec<GenerationStatus> {
    story.state.generations(story.now)
}

#[test]
fn each_generation_is_shown_where_it_stands_and_with_its_age() {
    let states = |story: &Story| shown(story).iter().map(|one| (one.generation.0, one.state)).collect::<Vec<_>>();
    let mut story = Story::serving();
    story.wait(Duration::from_secs(100));
    story.reload(1);
    story.prepared(2, Ok(info_on_probation(2, &["hello"])));
    let before = (1, GenerationState::Serving);
    assert_eq!(states(&story), [(2, GenerationState::Starting), before], "newest first");
    story.spawned(2);
    story.says(2, hello());
    assert_eq!(states(&story), [(2, GenerationState::Loading), before]);
    story.says(2, ToMaster::Proving);
    assert_eq!(states(&story), [(2, GenerationState::Proving), before]);
    story.says(2, ToMaster::Ready);
    assert_eq!(states(&story), [(2, GenerationState::Committing), before]);
    story.says(2, ToMaster::Serving);
    assert_eq!(states(&story), [(2, GenerationState::Serving), (1, GenerationState::Paused)]);
    story.says(1, ToMaster::Paused);
    assert_eq!(states(&story), [(2, GenerationState::Serving), (1, GenerationState::Standby)]);
    story.wait(Duration::from_secs(60));
    assert_eq!(states(&story), [(2, GenerationState::Serving), (1, GenerationState::Retiring)]);
    let ages: Vec<u64> = shown(&story).iter().map(|one| one.age_ms).collect();
    assert_eq!(ages, [60_000, 160_000]);
    story.leaves(1);
    assert_eq!(states(&story), [(2, GenerationState::Serving), (1, GenerationState::Exited)]);
}

#[test]
fn the_last_eight_that_ended_are_shown_with_how_they_did() {
    let mut story = Story::serving();
    for turn in 1..=10 {
        story.reload(turn);
        story.prepared(1 + turn, Ok(info(1 + turn, &["hello"])));
        story.up(1 + turn);
        story.says(turn, ToMaster::Paused);
        story.leaves(turn);
        let ended = shown(&story)[1..].iter().map(|one| one.generation.0).collect::<Vec<_>>();
        let last: Vec<u64> = (1..=turn).rev().take(8).collect();
        assert_eq!(ended, last, "newest first");
    }
    for one in &shown(&story)[1..] {
        assert_eq!((one.state, one.exit.as_deref()), (GenerationState::Exited, Some("exit code 0")));
        assert_eq!(one.deadline_ms, None, "nothing is due of it any more");
    }
    assert_eq!(shown(&story)[0].exit, None);
}

#[test]
fn the_log_tells_how_long_a_respawn_took() {
    let mut story = Story::serving();
    story.wait(Duration::from_secs(100));
    story.dies(1, ExitKind::Signal(9));
    story.ready(2);
    story.wait(Duration::from_millis(3));
    let actions = story.says(2, ToMaster::Serving);
    let cause = Cause::Crash { of: Generation(1) };
    let note = Note::Committed { generation: Generation(2), from: None, total_ms: 3.0, cause };
    assert!(actions.contains(&Action::Note(note)), "{actions:?}");
}
