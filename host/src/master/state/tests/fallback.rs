//! Sets that cannot serve: how many deaths are too many, what takes their place, and what the first start does without a good one.

use super::*;
use crate::report::{Change, Why};

/// Dies and comes back, `times` times, from generation `from` on; the actions of the last death.
fn loops(story: &mut Story, from: u64, times: u64) -> Vec<Action> {
    let mut last = Vec::new();
    for generation in from..from + times {
        last = story.dies(generation, ExitKind::Signal(11));
        if generation + 1 < from + times {
            story.wait(Duration::from_secs(2));
            story.up(generation + 1);
        }
    }
    last
}

fn again(of: u64, id: u64) -> Arc<SetInfo> {
    Arc::new(SetInfo { id: SetId(id), ..(*info(of, &["hello"])).clone() })
}

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

#[test]
fn the_last_good_set_takes_over_at_the_fifth_death() {
    let mut story = second();
    let last = loops(&mut story, 2, 5);
    let source = Source::Again { set: SetId(1), within: Within::Set(SetId(2)) };
    let cause = Cause::Crash { of: Generation(6) };
    assert!(last.contains(&Action::Prepare { op: OpId(3), cause, source }), "{last:?}");
    assert_eq!(spawns(&story.prepared(3, Ok(again(1, 10)))), [(7, 10)]);
    story.spawned(7);
    let load = story.says(7, hello());
    assert!(matches!(load[..], [Action::Load { probes: Probes::Skip, .. }]), "nothing else serves: {load:?}");
    story.says(7, ToMaster::Ready);
    story.says(7, ToMaster::Serving);
    assert_eq!((story.serving_generation(), story.state.quarantines()), (Some(7), 1));
    assert!(story.state.alert().unwrap().contains("died 5 times"), "{:?}", story.state.alert());
    let held = [
        Change::Set { sha256: info(2, &["hello"]).sha256.clone() },
        Change::Plugin { plugin: "hello".into(), sha256: "2".into() },
    ];
    assert_eq!(story.written.held, held.map(|change| (change, Why::Quarantined)));
    assert_eq!((story.written.pin, &story.written.good[..]), (Some(Generation(1)), &[SetId(10)][..]));
}

#[test]
fn deaths_that_lie_further_apart_are_not_too_many() {
    let mut story = second();
    let mut generation = 2;
    for _ in 0..10 {
        let mut spawned = spawns(&story.dies(generation, ExitKind::Signal(11)));
        while spawned.is_empty() {
            spawned = spawns(&story.wait(Duration::from_secs(1)));
        }
        generation = spawned[0].0;
        story.up(generation);
        story.wait(Duration::from_secs(16));
    }
    assert_eq!(story.state.quarantines(), 0);
}

#[test]
fn a_machine_that_cannot_start_processes_does_not_condemn_the_set() {
    let mut story = second();
    story.dies(2, ExitKind::Signal(9));
    for generation in 3..12 {
        let result = Err(Failure::new(Stage::Spawn, "start a child: EAGAIN"));
        story.event(Event::Spawned { generation: Generation(generation), result });
        story.wait(Duration::from_secs(10));
    }
    assert_eq!(story.state.quarantines(), 0);
    story.up(12);
    assert_eq!(story.serving_generation(), Some(12));
}

#[test]
fn a_last_good_set_that_does_not_start_leaves_the_set_without_plugins() {
    let mut story = second();
    loops(&mut story, 2, 5);
    story.prepared(3, Err(Failure::new(Stage::Snapshot, "x")));
    assert_eq!(story.state.next_deadline(), Some(story.now + Duration::from_secs(10)), "crash.hold");
    assert_eq!(spawns(&story.wait(Duration::from_secs(10))), [(7, 0)]);
    story.up(7);
    assert!(!story.state.is_ready() && story.state.alert().unwrap().contains("503"));
    // And a good one heals it.
    story.reload(2);
    story.prepared(4, Ok(info(20, &["hello"])));
    story.up(8);
    story.says(7, ToMaster::Paused);
    assert_eq!((story.answer(2).result, story.state.is_ready(), story.state.alert()), (OpResult::Switched, true, None));
}

#[test]
fn until_something_else_serves_the_addresses_of_the_bad_set_stay_open() {
    let mut story = Story::serving();
    loops(&mut story, 1, 5);
    assert!(story.state.sets_accepting().any(|set| set == SetId(1)));
    story.wait(Duration::from_secs(10));
    assert!(story.state.sets_accepting().any(|set| set == SetId::EMPTY));
}

#[test]
fn a_reload_during_the_hold_comes_first() {
    let mut story = Story::serving();
    loops(&mut story, 1, 5);
    story.reload(1);
    story.prepared(2, Ok(info(2, &["hello"])));
    story.wait(Duration::from_secs(10));
    story.up(6);
    assert_eq!((story.answer(1).result, story.serving_generation()), (OpResult::Switched, Some(6)));
    assert_eq!(spawns(&story.wait(Duration::from_secs(60))), []);
    assert!(story.state.is_ready() && story.state.alert().is_none(), "nothing is left to fall back to");
}

/// Set 2 was given up, and the files of set 1 are being read again.
fn falling_back() -> Story {
    let mut story = second();
    loops(&mut story, 2, 5);
    story
}

fn rolls_back(story: &mut Story) -> Vec<Action> {
    let cause = Cause::Admin { peer: "test".into() };
    let caller = Some(Caller(7));
    story.event(Event::Asked { verb: Verb::Rollback, cause, options: OpOptions::default(), caller })
}

#[test]
fn a_rollback_that_is_asked_for_meanwhile_comes_first_and_does_not_wait_for_what_was_given_up() {
    for started in [false, true] {
        let mut story = falling_back();
        if started {
            story.prepared(3, Ok(again(1, 10)));
            story.spawned(7);
        }
        let asked = rolls_back(&mut story);
        assert!(asked.iter().any(|action| matches!(action, Action::Prepare { op: OpId(4), .. })), "{asked:?}");
        assert_eq!((spawns(&asked), kills(&asked, 7)), (vec![], started), "of set 2 enough have died");
        let next = 7 + u64::from(started);
        assert_eq!(spawns(&story.prepared(4, Ok(again(1, 11)))), [(next, 11)]);
        story.up(next);
        assert_eq!((story.answer(7).result, story.serving_generation()), (OpResult::Switched, Some(next)));
        assert_eq!(spawns(&story.wait(Duration::from_secs(60))), [], "nothing else is left to do");
    }
}

#[test]
fn if_the_rollback_that_came_first_fails_the_last_good_set_takes_over_after_all() {
    let mut story = falling_back();
    rolls_back(&mut story);
    let refused = story.prepared(4, Err(Failure::new(Stage::Snapshot, "x")));
    assert_eq!(story.answer(7).result, OpResult::Refused);
    assert!(refused.iter().any(|action| matches!(action, Action::Prepare { op: OpId(5), .. })), "{refused:?}");
    story.prepared(5, Ok(again(1, 12)));
    story.up(7);
    assert_eq!((story.serving_generation(), story.state.quarantines()), (Some(7), 1));
}

#[test]
fn a_rollback_that_has_to_wait_for_room_does_not_keep_the_last_good_set_from_serving() {
    let mut story = Story::serving();
    story.reload(1);
    let mut set = (*info(2, &["hello"])).clone();
    set.settings.max_draining = 1;
    story.prepared(2, Ok(Arc::new(set)));
    story.up(2);
    story.says(1, ToMaster::Paused);
    loops(&mut story, 2, 5);
    let asked = rolls_back(&mut story);
    assert!(asked.iter().any(|action| matches!(action, Action::Prepare { op: OpId(5), .. })), "{asked:?}");
    assert_eq!(spawns(&story.prepared(5, Ok(again(1, 10)))), [(7, 10)]);
    story.up(7);
    assert_eq!(story.serving_generation(), Some(7));
}

#[test]
fn during_the_delay_of_a_shutdown_the_last_good_set_takes_over_all_the_same() {
    let mut story = falling_back();
    story.state.settings.shutdown.delay = Duration::from_secs(5);
    let asked = story.term();
    assert_eq!(spawns(&asked), [], "of set 2 enough have died");
    assert!(asked.iter().any(|action| matches!(action, Action::Prepare { op: OpId(5), .. })), "{asked:?}");
    story.prepared(5, Ok(again(1, 10)));
    story.up(7);
    assert_eq!(story.serving_generation(), Some(7));
}

#[test]
fn a_shutdown_that_begins_forgets_what_was_to_serve_next() {
    let mut story = Story::serving();
    story.reload(1);
    story.prepared(2, Ok(info(2, &["hello"])));
    story.up(2);
    story.says(1, ToMaster::Paused);
    loops(&mut story, 2, 5);
    let begun = story.term();
    assert!(!begun.iter().any(|action| matches!(action, Action::Prepare { .. })), "{begun:?}");
    story.leaves(1);
    assert_eq!(story.finished(), Some(&Exit::Drained));
}

#[test]
fn a_last_good_set_that_is_found_after_the_shutdown_has_begun_is_not_started() {
    let mut story = Story::serving();
    story.reload(1);
    story.prepared(2, Ok(info(2, &["hello"])));
    story.up(2);
    story.says(1, ToMaster::Paused);
    loops(&mut story, 2, 4);
    story.wait(Duration::from_secs(2));
    story.up(6);
    story.state.settings.shutdown.delay = Duration::from_secs(5);
    story.term();
    let died = story.dies(6, ExitKind::Signal(11));
    assert!(died.iter().any(|action| matches!(action, Action::Prepare { op: OpId(4), .. })), "{died:?}");
    story.wait(Duration::from_secs(5));
    assert_eq!(spawns(&story.prepared(4, Ok(again(1, 10)))), [], "the sockets are closed");
    story.leaves(1);
    assert_eq!(story.finished(), Some(&Exit::Drained));
}

fn next_master(bad_start: BadStart, good: Vec<Arc<SetInfo>>) -> Story {
    let memory = Memory { good, pin: None, held: vec![] };
    let mut story = Story { state: State::new(settings(), bad_start, memory), ..Story::new() };
    story.ask(Cause::Start, None);
    story
}

#[test]
fn a_bad_first_set_is_replaced_by_the_last_good_one() {
    let mut story = next_master(BadStart::LastGood, vec![again(9, 1)]);
    let actions = story.prepared(1, Err(Failure::new(Stage::Snapshot, "read it")));
    let source = Source::Again { set: SetId(1), within: Within::Start };
    assert!(actions.contains(&Action::Prepare { op: OpId(2), cause: Cause::Start, source }), "{actions:?}");
    story.prepared(2, Ok(again(9, 2)));
    story.up(1);
    assert!(story.serving_generation() == Some(1) && story.state.alert().unwrap().contains("read it"));
}

#[test]
fn without_a_good_one_or_if_that_is_bad_too_the_first_failure_ends_the_start() {
    let first = Failure::new(Stage::Snapshot, "read it");
    let bad = || Err(Failure::new(Stage::Snapshot, "read it"));
    for (bad_start, good) in [(BadStart::LastGood, vec![]), (BadStart::Exit, vec![again(9, 1)])] {
        let mut story = next_master(bad_start, good);
        story.prepared(1, bad());
        assert_eq!(story.finished(), Some(&Exit::StartFailed(first.clone())));
    }
    let mut story = next_master(BadStart::LastGood, vec![again(9, 1)]);
    story.prepared(1, bad());
    story.prepared(2, Err(Failure::new(Stage::Load, "open it")));
    assert_eq!(story.finished(), Some(&Exit::StartFailed(first)));
}

#[test]
fn waits_are_spread_by_up_to_a_quarter() {
    let mut waits = std::collections::BTreeSet::new();
    for seed in 1..50 {
        let mut story = second();
        story.state = story.state.with_seed(seed * 0x9e37_79b9);
        loops(&mut story, 2, 2);
        let wait = story.state.next_deadline().unwrap() - story.now;
        assert!(wait > Duration::from_millis(149) && wait <= Duration::from_millis(200), "{wait:?}");
        waits.insert(wait);
    }
    assert!(waits.len() > 30, "{waits:?}");
}

#[test]
fn a_machine_that_cannot_start_processes_does_not_condemn_the_last_good_set_either() {
    let mut story = second();
    loops(&mut story, 2, 5);
    assert_eq!(spawns(&story.prepared(3, Ok(again(1, 10)))), [(7, 10)]);
    let result = Err(Failure::new(Stage::Spawn, "start a child: EAGAIN"));
    story.event(Event::Spawned { generation: Generation(7), result });
    let is_tried = |actions: &[Action]| actions.iter().any(|action| matches!(action, Action::Prepare { .. }));
    let wait = settings().crash.backoff_max;
    assert!(!is_tried(&story.wait(wait - Duration::from_millis(1))));
    assert!(is_tried(&story.wait(Duration::from_millis(1))));
    story.prepared(4, Ok(again(1, 11)));
    story.up(8);
    assert_eq!((story.serving_generation(), story.state.quarantines()), (Some(8), 1));
}

#[test]
fn a_reload_under_way_at_the_last_death_comes_first_and_the_last_good_set_after_it_if_it_fails() {
    let of_reload = || {
        let mut story = second();
        loops(&mut story, 2, 4);
        story.wait(Duration::from_secs(2));
        story.up(6);
        story.reload(9);
        let last = story.dies(6, ExitKind::Signal(11));
        assert!(story.state.quarantines() == 1 && !last.iter().any(|action| matches!(action, Action::Prepare { .. })));
        story
    };
    let mut story = of_reload();
    let refused = story.prepared(3, Err(Failure::new(Stage::Snapshot, "x")));
    let source = Source::Again { set: SetId(1), within: Within::Set(SetId(2)) };
    let cause = Cause::Crash { of: Generation(6) };
    assert!(refused.contains(&Action::Prepare { op: OpId(4), cause, source }), "{refused:?}");
    let mut story = of_reload();
    assert_eq!(spawns(&story.prepared(3, Ok(info(3, &["hello"])))), [(7, 3)]);
    assert_eq!(spawns(&story.up(7)), []);
    assert!(story.state.is_ready() && story.state.changing().is_none());
}

#[test]
fn a_start_that_was_given_up_counts_once_though_its_process_fails_later() {
    let mut story = Story::serving();
    story.dies(1, ExitKind::Signal(11));
    story.wait(Duration::from_secs(30));
    assert!(
        story.log.iter().any(|action| matches!(action, Action::Note(Note::Killed { generation: Generation(2), .. })))
    );
    let result = Err(Failure::new(Stage::Spawn, "start a child: EAGAIN"));
    assert_eq!(story.event(Event::Spawned { generation: Generation(2), result }), []);
}
