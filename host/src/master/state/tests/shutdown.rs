//! The end that was asked for: in time, late, and against what is under way.

use super::*;

#[test]
fn a_shutdown_drains_and_a_second_signal_cuts() {
    let mut story = Story::serving();
    let retire = story.term();
    assert_eq!(retire.iter().filter(|action| **action == Action::CloseListeners).count(), 1);
    let [ToChild::Retire(deadlines)] = sends(&retire, 1)[..] else { panic!("{retire:?}") };
    assert_eq!(deadlines.max_ms, Some(30_000), "shutdown.timeout");
    assert_eq!((deadlines.keepalive_ms, deadlines.linger_ms), (Some(750), Some(250)), "shutdown.idle, with the close");
    assert_eq!(sends(&story.term(), 1), [&ToChild::Cut]);
    assert!(sends(&story.term(), 1).is_empty(), "once");
    let report = DrainReport { cut: crate::report::Cut { busy: 1, ..Default::default() }, ..Default::default() };
    story.says(1, ToMaster::Done(report));
    assert_eq!(story.finished(), None, "not before it is reaped");
    story.dies(1, ExitKind::Code(0));
    assert_eq!(story.finished(), Some(&Exit::Cut));
}

#[test]
fn a_shutdown_without_loss_says_so_and_one_that_hangs_is_cut_then_killed() {
    let mut story = Story::serving();
    story.term();
    story.leaves(1);
    assert_eq!(story.finished(), Some(&Exit::Drained));

    let mut story = Story::serving();
    story.term();
    assert_eq!(sends(&story.wait(Duration::from_secs(30)), 1), [&ToChild::Cut]);
    assert!(kills(&story.wait(EXIT_TIMEOUT), 1));
    story.dies(1, ExitKind::Signal(9));
    assert_eq!(story.finished(), Some(&Exit::Cut));
}

#[test]
fn an_old_cut_does_not_colour_a_clean_shutdown() {
    let mut story = Story::serving();
    story.reload(1);
    story.prepared(2, Ok(info(2, &["hello"])));
    story.up(2);
    story.says(1, ToMaster::Paused);
    story.dies(1, ExitKind::Signal(9));
    story.term();
    story.leaves(2);
    assert_eq!(story.finished(), Some(&Exit::Drained));
}

#[test]
fn a_shutdown_supersedes_whatever_is_not_committed() {
    let mut story = Story::serving();
    story.reload(1);
    story.reload(2);
    story.prepared(2, Ok(info(2, &["hello"])));
    story.spawned(2);
    assert!(kills(&story.term(), 2));
    assert_eq!((story.answer(1).result, story.answer(2).result), (OpResult::Superseded, OpResult::Superseded));
    story.reload(3);
    assert_eq!(story.answer(3).result, OpResult::Superseded);
    story.dies(2, ExitKind::Signal(9));
    story.leaves(1);
    assert_eq!(story.finished(), Some(&Exit::Drained));
}

#[test]
fn a_switch_that_is_committing_is_let_through_before_a_shutdown() {
    let mut story = Story::serving();
    story.reload(1);
    story.prepared(2, Ok(info(2, &["hello"])));
    story.ready(2);
    assert!(!kills(&story.term(), 2), "it may have accepted already");
    story.says(2, ToMaster::Serving);
    story.says(1, ToMaster::Paused);
    assert_eq!(story.answer(1).result, OpResult::Switched);
    story.leaves(1);
    story.leaves(2);
    assert_eq!(story.finished(), Some(&Exit::Drained));
}

#[test]
fn during_the_delay_of_a_shutdown_all_goes_on_but_nothing_is_ready() {
    let mut story = Story::serving();
    story.state.settings.shutdown.delay = Duration::from_secs(5);
    assert!(story.state.is_ready());
    assert!(sends(&story.term(), 1).is_empty());
    assert!(!story.state.is_ready());
    assert_eq!(spawns(&story.dies(1, ExitKind::Signal(9))), [(2, 1)]);
    story.up(2);
    assert!(matches!(sends(&story.wait(Duration::from_secs(5)), 2)[..], [ToChild::Retire(_)]));
}

#[test]
fn a_respawn_under_way_is_killed_and_its_end_is_the_servers() {
    let steps = [vec![], vec![hello()], vec![hello(), ToMaster::Proving]];
    for says in steps {
        let mut story = Story::serving();
        story.dies(1, ExitKind::Signal(9));
        story.spawned(2);
        for message in says {
            story.says(2, message);
        }
        assert!(kills(&story.term(), 2));
        assert_eq!(story.finished(), None, "not before it is reaped");
        assert_eq!(spawns(&story.dies(2, ExitKind::Signal(9))), []);
        assert_eq!(story.finished(), Some(&Exit::Drained));
    }
}

#[test]
fn one_that_was_asked_to_pause_is_waited_for_until_patience_ends() {
    let mut story = Story::serving();
    story.reload(1);
    story.prepared(2, Ok(info(2, &["hello"])));
    story.up(2);
    let actions = story.term();
    assert_eq!(sends(&actions, 1), [] as [&ToChild; 0], "it retires when it has paused");
    assert!(matches!(sends(&actions, 2)[..], [ToChild::Retire(_)]), "{actions:?}");
    let actions = story.term();
    let [ToChild::Retire(deadlines)] = sends(&actions, 1)[..] else { panic!("{actions:?}") };
    assert_eq!((deadlines.max_ms, sends(&actions, 2)), (Some(0), vec![&ToChild::Cut]));
}

#[test]
fn a_switch_that_is_let_through_pauses_whoever_was_about_to_take_service_back() {
    let mut story = Story::on_probation();
    story.reload(2);
    story.prepared(3, Ok(info(3, &["hello"])));
    story.ready(3);
    assert_eq!(sends(&story.dies(2, ExitKind::Signal(11)), 1), [&ToChild::Resume]);
    story.term();
    assert_eq!(sends(&story.says(3, ToMaster::Serving), 1), [&ToChild::Pause], "two would accept");
    story.says(1, ToMaster::Serving);
    assert!(matches!(sends(&story.says(1, ToMaster::Paused), 1)[..], [ToChild::Retire(_)]));
    assert_eq!((story.answer(2).result, story.answer(2).from), (OpResult::Switched, Some(Generation(1))));
    story.leaves(1);
    story.leaves(3);
    assert_eq!(story.finished(), Some(&Exit::Drained));
}

#[test]
fn a_shutdown_without_a_limit_for_idle_ones_keeps_drain_keepalive() {
    let mut story = Story::serving();
    story.state.settings.shutdown.idle = Limit::Never;
    let retire = story.term();
    let [ToChild::Retire(deadlines)] = sends(&retire, 1)[..] else { panic!("{retire:?}") };
    assert_eq!((deadlines.keepalive_ms, deadlines.linger_ms), (Some(5_000), None));
}

#[test]
fn a_shutdown_shortens_the_idle_time_of_those_that_drain() {
    let mut story = Story::serving();
    story.reload(1);
    story.prepared(2, Ok(info(2, &["hello"])));
    story.up(2);
    let paused = story.says(1, ToMaster::Paused);
    let [ToChild::Retire(usual)] = sends(&paused, 1)[..] else { panic!("{paused:?}") };
    assert_eq!((usual.keepalive_ms, usual.linger_ms, usual.stream_ms), (Some(5_000), None, Some(60_000)));
    story.wait(Duration::from_secs(100));
    let term = story.term();
    let [ToChild::Retire(hurry)] = sends(&term, 1)[..] else { panic!("{term:?}") };
    assert_eq!((hurry.keepalive_ms, hurry.linger_ms), (Some(750), Some(250)));
    assert_eq!((hurry.timeout_ms, hurry.max_ms), (Some(60_000), Some(500_000)), "requests in flight have their time");
    assert!(sends(&story.wait(Duration::from_secs(1)), 1).is_empty(), "once");
}
