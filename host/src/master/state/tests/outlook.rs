//! What is said to whoever waits for the start, a change or the end: each ends, and says when at the latest.

use super::*;
use crate::config::Limit;

const SECOND: Duration = Duration::from_secs(1);

fn at(seconds: u64) -> Option<Latest> {
    Some(Latest::At(SECOND * seconds as u32))
}

#[test]
fn a_start_has_its_time_for_reading_and_again_for_the_child() {
    let mut story = Story::new();
    story.ask(Cause::Start, None);
    assert_eq!((story.state.outlook(), story.state.changing()), (at(30), None));
    story.wait(SECOND * 5);
    assert_eq!(story.state.outlook(), at(30), "time alone moves nothing");
    story.prepared(1, Ok(info(1, &["hello"])));
    assert_eq!(story.state.outlook(), at(35));
    story.ready(1);
    assert_eq!(story.state.outlook(), Some(Latest::At(SECOND * 5 + SWITCH_TIMEOUT)));
    story.says(1, ToMaster::Serving);
    assert_eq!((story.state.outlook(), story.state.changing()), (None, None));
}

#[test]
fn a_reload_is_under_way_from_its_request_to_its_answer_whatever_comes_of_it() {
    let mut story = Story::serving();
    story.reload(1);
    assert_eq!((story.state.changing(), story.state.outlook()), (Some(OpId(2)), at(30)));
    // Asked for while the first reads: it follows, under its own number.
    story.reload(2);
    assert_eq!(story.state.changing(), Some(OpId(2)));
    story.prepared(2, Err(Failure::new(Stage::Snapshot, "x")));
    assert_eq!(story.state.changing(), Some(OpId(3)));
    story.prepared(3, Ok(info(3, &["hello"])));
    story.up(2);
    assert_eq!(story.state.changing(), Some(OpId(3)), "the old one still accepts");
    assert_eq!(story.state.outlook(), Some(Latest::At(PAUSE_TIMEOUT)));
    story.says(1, ToMaster::Paused);
    assert_eq!((story.state.changing(), story.state.outlook()), (None, None));
}

#[test]
fn a_shutdown_ends_when_the_rest_is_cut_or_never() {
    let mut story = Story::serving();
    story.wait(SECOND);
    story.reload(1);
    story.term();
    assert_eq!((story.state.outlook(), story.state.changing()), (at(31), None));
    let mut patient = settings();
    patient.shutdown.timeout = Limit::Never;
    let mut story = Story { state: State::new(patient, BadStart::Exit, Memory::default()), ..Story::new() };
    story.term();
    assert_eq!(story.state.outlook(), Some(Latest::Never));
}

#[test]
fn a_reload_that_waits_for_room_has_its_time_once_the_first_that_drains_has_ended() {
    let mut story = Story::serving();
    let mut set = (*info(2, &["hello"])).clone();
    set.settings.max_draining = 1;
    story.reload(1);
    story.prepared(2, Ok(Arc::new(set)));
    story.up(2);
    story.wait(SECOND);
    story.says(1, ToMaster::Paused);
    story.wait(SECOND);
    story.reload(2);
    let drained = SECOND + Duration::from_secs(600) + EXIT_TIMEOUT;
    assert_eq!(story.state.outlook(), Some(Latest::At(drained + SECOND * 30)));
    story.leaves(1);
    assert_eq!(story.state.outlook(), at(32), "it reads its files");
}
