//! The load client against a server that breaks each promise on purpose: its counters must be seen to count, each misdeed
//! under its own name, before its zeros mean anything.

use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use baton_tests::chaos::{Chaos, Misdeed};
use baton_tests::load::tally::FAULTS;
use baton_tests::load::{Class, Fault, Load, Mix, Plan, Tally};

/// Keep-alive and fresh clients, for some hundred requests.
fn run(misdeed: Misdeed) -> (Tally, u64) {
    let server = Chaos::start(misdeed, 10);
    let plan = Plan {
        keepalive: 8,
        fresh: 2,
        think: Duration::from_millis(2),
        timeout: Duration::from_millis(500),
        ..Plan::against(server.addr)
    };
    let load = Load::start(plan);
    load.wait_for_requests(400);
    let tally = load.stop();
    assert!(tally.is_balanced(), "{tally}");
    (tally, server.misdeeds())
}

/// Every misdeed, and nothing else, was counted as `fault`.
#[track_caller]
fn assert_counted(misdeed: Misdeed, fault: Fault) {
    let (tally, misdeeds) = run(misdeed);
    assert!(misdeeds >= 30, "{misdeeds} misdeeds are no test");
    assert_eq!((tally.fault(fault), tally.lost()), (misdeeds, misdeeds), "{tally}");
    let reused = tally.of(Class::Keepalive).failed_on_reused;
    assert!((1..=misdeeds).contains(&reused), "{reused} failures on connections that had answered before: {tally}");
}

#[test]
fn an_honest_server_gets_a_clean_sheet() {
    let (tally, _) = run(Misdeed::Nothing);
    tally.assert_nothing_lost();
    assert_eq!(tally.closed_unannounced(), 0, "{tally}");
    assert!(tally.of(Class::Keepalive).posts > 0, "{tally}");
    assert_eq!(tally.of(Class::Keepalive).opened, 8, "{tally}");
    assert!(tally.latency.count() >= 400 && tally.latency.quantile_ms(0.5) > 0.0, "{tally}");
}

#[test]
fn a_reset_before_the_answer_is_counted() {
    assert_counted(Misdeed::Reset, Fault::Reset);
}

#[test]
fn a_close_before_the_answer_is_counted() {
    assert_counted(Misdeed::Eof, Fault::Eof);
}

#[test]
fn an_answer_that_lacks_one_byte_is_counted() {
    assert_counted(Misdeed::Truncate, Fault::Truncated);
}

#[test]
fn a_wrong_body_is_counted() {
    assert_counted(Misdeed::WrongBody, Fault::Wrong);
}

#[test]
fn the_answer_to_another_request_is_counted() {
    assert_counted(Misdeed::WrongId, Fault::Wrong);
}

#[test]
fn another_status_is_counted() {
    assert_counted(Misdeed::WrongStatus, Fault::Wrong);
}

#[test]
fn an_announcement_that_is_not_kept_is_counted() {
    assert_counted(Misdeed::BrokenAnnouncement, Fault::Wrong);
}

#[test]
fn no_answer_in_time_is_counted() {
    assert_counted(Misdeed::Hang, Fault::Timeout);
}

#[test]
fn bytes_that_nobody_asked_for_are_counted() {
    let (tally, misdeeds) = run(Misdeed::Unasked);
    // A client that closes right after its answer may have gone before they came.
    assert!(tally.fault(Fault::Wrong) >= misdeeds / 2 && tally.lost() == tally.fault(Fault::Wrong), "{tally}");
}

#[test]
fn nobody_listening_is_counted_as_refused() {
    // A port of the loopback that was free a moment ago.
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addr = socket.local_addr().unwrap();
    drop(socket);
    let load = Load::start(Plan { keepalive: 2, fresh: 2, think: Duration::from_millis(1), ..Plan::against(addr) });
    load.wait_for_requests(50);
    let tally = load.stop();
    assert!(tally.fault(Fault::Refused) >= 50 && tally.answered() == 0, "{tally}");
    assert_eq!(tally.lost(), tally.sent(), "{tally}");
}

#[test]
fn an_announced_close_is_honoured_and_costs_nothing() {
    let (tally, misdeeds) = run(Misdeed::AnnouncedClose);
    tally.assert_nothing_lost();
    assert!(tally.closed_announced() >= misdeeds, "{tally}");
    assert_eq!(tally.closed_unannounced(), 0, "{tally}");
}

#[test]
fn a_close_without_a_word_is_seen_while_idle() {
    let (tally, misdeeds) = run(Misdeed::SilentClose);
    let keepalive = tally.of(Class::Keepalive);
    // Each ends as a close seen in time or, lost in the race, as a failed request.
    assert!(keepalive.closed_unannounced > 0, "{tally}");
    assert!(tally.closed_unannounced() + tally.lost() <= misdeeds, "{tally}");
    assert_eq!(tally.closed_announced() - tally.of(Class::Fresh).closed_announced, 0, "{tally}");
}

#[test]
fn pipelined_requests_behind_an_announced_close_are_kept_apart() {
    let server = Chaos::start(Misdeed::AnnouncedClose, 10);
    let plan = Plan { pipelined: 4, post_percent: 0, think: Duration::from_millis(2), ..Plan::against(server.addr) };
    let load = Load::start(plan);
    load.wait_for_requests(400);
    let tally = load.stop();
    assert!(tally.is_balanced() && tally.lost() == 0, "{tally}");
    assert!(tally.of(Class::Pipelined).unanswered_pipelined > 0, "{tally}");
}

#[test]
fn slow_requests_are_waited_for_and_cut_ones_counted() {
    let server = Chaos::start(Misdeed::Truncate, 4);
    let plan = Plan { slow: 4, slow_for: Duration::from_millis(50), ..Plan::against(server.addr) };
    let load = Load::start(plan);
    load.wait_for_requests(20);
    let tally = load.stop();
    let slow = tally.of(Class::Slow);
    assert_eq!((slow.fault(Fault::Truncated), slow.faults()), (server.misdeeds(), server.misdeeds()), "{tally}");
    assert!(slow.answered > 0 && tally.is_balanced(), "{tally}");
}

#[test]
fn a_server_that_closes_idle_connections_at_reload_is_reported_lossy() {
    let server = Chaos::start(Misdeed::Nothing, 1);
    let load = Load::start(Plan { keepalive: 64, fresh: 4, ..Plan::against(server.addr) });
    for _ in 0..100 {
        load.wait_for_requests(100);
        load.mark();
        server.reload();
    }
    let tally = load.stop();
    assert!(tally.is_balanced(), "{tally}");
    assert!(tally.lost() > 0, "the client missed what such a server does:\n{tally}");
    assert!(tally.of(Class::Keepalive).closed_unannounced > 1000, "{tally}");
    assert!(tally.latency_near.count() > 0, "{tally}");
}

// ---- the torture ----

/// The torture, for some hundred requests.
fn torture(misdeed: Misdeed, every: u64) -> (Tally, u64) {
    let server = Chaos::start(misdeed, every);
    let mut plan = Plan {
        think: Duration::from_millis(2),
        timeout: Duration::from_millis(1500),
        ..Plan::torture(server.addr, 16)
    };
    if misdeed == Misdeed::Hang {
        // After a FIN this server does not see that the client has given up.
        plan.half_closed = 0;
    }
    let load = Load::start(plan);
    load.wait_for_requests(600);
    let tally = load.stop();
    assert!(tally.is_balanced(), "{tally}");
    (tally, server.misdeeds())
}

#[test]
fn the_torture_gives_an_honest_server_a_clean_sheet() {
    let (tally, _) = torture(Misdeed::Nothing, 1);
    tally.assert_nothing_lost();
    let counts = tally.of(Class::Torture);
    assert_eq!((counts.opened, tally.closed_announced(), tally.closed_unannounced()), (16, 0, 0), "{tally}");
    let percent = 100 * counts.posts / counts.sent;
    assert!((8..25).contains(&percent), "{percent} % are POSTs: {tally}");
}

#[test]
fn the_torture_counts_every_misdeed_under_its_name() {
    for (misdeed, fault) in [
        (Misdeed::Reset, Fault::Reset),
        (Misdeed::Eof, Fault::Eof),
        (Misdeed::Truncate, Fault::Truncated),
        (Misdeed::WrongBody, Fault::Wrong),
        (Misdeed::WrongByte, Fault::Wrong),
        (Misdeed::WrongId, Fault::Wrong),
        (Misdeed::WrongStatus, Fault::Wrong),
        (Misdeed::Hang, Fault::Timeout),
    ] {
        let (tally, misdeeds) = torture(misdeed, 10);
        assert!(misdeeds >= 30, "{misdeed:?}: {misdeeds} misdeeds are no test");
        // What was written behind it in the same turn is lost with it.
        assert!((misdeeds..=2 * misdeeds).contains(&tally.lost()), "{misdeed:?}, {misdeeds} times: {tally}");
        assert!(2 * tally.fault(fault) >= misdeeds, "{misdeed:?}, {misdeeds} times: {tally}");
        // A client that still writes when the server closes is told by a reset, whatever the server meant.
        let others = FAULTS.into_iter().filter(|other| ![fault, Fault::Eof, Fault::Reset].contains(other));
        assert_eq!(others.map(|other| tally.fault(other)).sum::<u64>(), 0, "{misdeed:?}: {tally}");
    }
}

#[test]
fn bytes_that_were_read_ahead_and_forgotten_are_missed() {
    let (tally, misdeeds) = torture(Misdeed::ForgetAhead, 3);
    // Where only the first part of a request line was forgotten, this server may still find an answer that fits.
    assert!(misdeeds > 5 && 2 * tally.lost() >= misdeeds, "{misdeeds} times: {tally}");
}

#[test]
fn a_cut_upload_is_counted() {
    let (tally, misdeeds) = torture(Misdeed::CutUpload, 3);
    assert!(misdeeds > 5 && (misdeeds..=2 * misdeeds).contains(&tally.lost()), "{misdeeds} times: {tally}");
    assert_eq!(tally.fault(Fault::Eof) + tally.fault(Fault::Reset), tally.lost(), "{tally}");
}

#[test]
fn a_dropped_request_of_a_half_closed_client_is_counted() {
    let (tally, misdeeds) = torture(Misdeed::AbandonHalfClosed, 1);
    let half_closed = tally.of(Class::HalfClosed);
    assert!(misdeeds > 5 && half_closed.sent >= misdeeds, "{misdeeds} times: {tally}");
    assert_eq!((tally.fault(Fault::Eof), tally.lost()), (misdeeds, misdeeds), "{tally}");
    assert_eq!(tally.of(Class::Torture).answered, tally.of(Class::Torture).sent, "{tally}");
}

#[test]
fn a_close_without_a_word_is_seen_by_the_torture() {
    let (tally, misdeeds) = torture(Misdeed::SilentClose, 10);
    assert!(tally.closed_unannounced() > 0, "{tally}");
    assert!(tally.closed_unannounced() + tally.lost() <= 2 * misdeeds, "{tally}");
}

#[test]
fn the_plain_mix_needs_no_code_of_ours_and_is_checked_all_the_same() {
    for (misdeed, lossy) in [(Misdeed::Nothing, false), (Misdeed::WrongByte, true)] {
        let server = Chaos::start(misdeed, 10);
        let plan = Plan { mix: Mix::Plain, think: Duration::from_millis(2), ..Plan::torture(server.addr, 8) };
        let load = Load::start(plan);
        load.wait_for_requests(300);
        let tally = load.stop();
        assert!(tally.is_balanced() && (tally.lost() > 0) == lossy, "{tally}");
        assert!(tally.of(Class::Torture).posts > 10, "{tally}");
    }
}
