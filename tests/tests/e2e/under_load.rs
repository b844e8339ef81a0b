//! Reload under load: nothing is lost, counted by a client that does not retry, and the same client reports a server that
//! closes idle connections as lossy.

use std::time::{Duration, Instant};

use baton_tests::artifacts;
use baton_tests::chaos::{Chaos, Misdeed};
use baton_tests::load::{Class, Load, Plan, Tally};
use baton_tests::server::{Server, Setup};
use baton_tests::status::Status;
use baton_tests::torture::{self, Course};
use baton_tests::wait;
use nix::sys::signal::Signal;

const TRIGGERS: u32 = 100;
const SPACING: Duration = Duration::from_millis(50);
/// With fewer switches than this the run proves nothing.
const LEAST_SWITCHES: u64 = 30;

/// Calls `trigger` every [`SPACING`], [`TRIGGERS`] times, and on until `enough`: a slow machine merges many triggers into one
/// switch.
fn triggers(load: &Load, mut trigger: impl FnMut(u32), enough: impl Fn() -> bool) {
    let begun = Instant::now();
    for round in 0..TRIGGERS * 10 {
        if round >= TRIGGERS && enough() {
            break;
        }
        wait::pass((SPACING * round).saturating_sub(begun.elapsed()));
        load.mark();
        trigger(round);
    }
}

/// What the server itself says it lost, in the reports that it keeps.
fn lost_by_report(server: &Server) -> u64 {
    server.status().operations.iter().filter_map(|op| op.drain.as_ref()).map(|drain| drain.lost).sum()
}

/// The reference load through many reloads, of which nothing may be lost.
fn reloads_under_load(setup: Setup) -> (Tally, Status) {
    let (tally, status) = run(setup);
    tally.assert_nothing_lost();
    let lost: u64 = status.operations.iter().filter_map(|op| op.drain.as_ref()).map(|drain| drain.lost).sum();
    assert_eq!((status.crashes, lost), (0, 0), "{status:#?}");
    (tally, status)
}

/// The reference load through enough reloads to prove something, and what the client and the server say of it.
fn run(setup: Setup) -> (Tally, Status) {
    let server = setup.start();
    let versions = [artifacts::probe("v2"), artifacts::probe("v1")];
    let load = Load::start(Plan::reference(server.addr()));
    load.wait_for_requests(500);
    let trigger = |round: u32| {
        server.bench.install("probe", &versions[round as usize % 2]);
        server.signal(Signal::SIGUSR1);
    };
    triggers(&load, trigger, || server.status().switches > LEAST_SWITCHES);
    load.wait_for_requests(500);
    let tally = load.stop();
    println!("{tally}");
    let status = server.wait_drained();
    assert!(status.switches > LEAST_SWITCHES, "only {} switches: this run proves nothing", status.switches);
    assert!(tally.answered_by.len() as u64 > LEAST_SWITCHES / 2, "{tally}");
    assert!(tally.of(Class::Slow).answered >= 4 && tally.of(Class::Keepalive).posts > 100, "{tally}");
    let refused: Vec<_> = status.operations.iter().filter(|op| op.result != "switched").collect();
    assert!(refused.is_empty(), "{refused:#?}");
    (tally, status)
}

#[test]
fn a_hundred_reloads_under_load_lose_nothing_and_close_nothing() {
    let (tally, status) = reloads_under_load(Setup::probe("v1"));
    for class in [Class::Keepalive, Class::Slow] {
        let counts = tally.of(class);
        assert_eq!((counts.closed_announced, counts.closed_unannounced), (0, 0), "{class:?}: {tally}");
    }
    assert!(tally.connections_across * 10 >= tally.connections * 3, "hardly any saw two generations: {tally}");
    let moved: u64 = status.operations.iter().filter_map(|op| op.drain.as_ref()).map(|drain| drain.handed_over).sum();
    assert!(moved > 64 * 10, "only {moved} connections moved: this run proves nothing");
}

#[test]
fn a_hundred_reloads_without_handover_lose_nothing_either() {
    let (tally, _) = reloads_under_load(Setup::probe("v1").set("drain.handover", "false"));
    assert!(tally.of(Class::Keepalive).closed_announced > 64, "{tally}");
    assert_eq!(tally.of(Class::Keepalive).closed_unannounced, 0, "{tally}");
}

#[test]
fn the_same_client_reports_this_server_as_lossy_once_handover_and_linger_are_off() {
    let (tally, _) = run(Setup::probe("v1").set("drain.handover", "false").set("drain.keepalive", "0s"));
    assert!(tally.is_balanced() && tally.lost() > 0, "the client sees no loss where there is some:\n{tally}");
    assert!(tally.of(Class::Keepalive).closed_unannounced > 64, "{tally}");
    assert_eq!(tally.of(Class::Slow).faults(), 0, "what runs is not cut even so: {tally}");
}

#[test]
fn the_same_client_reports_a_server_that_closes_idle_connections_as_lossy() {
    let server = Chaos::start(Misdeed::Nothing, 1);
    let load = Load::start(Plan::reference(server.addr));
    load.wait_for_requests(500);
    triggers(&load, |_| server.reload(), || true);
    let tally = load.stop();
    println!("{tally}");
    assert!(tally.is_balanced() && tally.lost() > 0, "the client sees no loss where there is some:\n{tally}");
}

#[test]
fn torture_through_switches_and_kills_of_the_new_process_loses_nothing_and_closes_nothing() {
    let torture = |addr| Plan::torture(addr, 100);
    let seen = torture::run(Setup::probe("v1"), torture, Course::Kills { count: 12, pause: Duration::from_millis(50) });
    println!("{seen}");
    seen.assert_held(12);
    assert_eq!(seen.kills, 4);
}

#[test]
fn torture_at_twenty_triggers_a_second_loses_nothing_and_closes_nothing() {
    let torture = |addr| Plan { slow: 2, slow_for: Duration::from_secs(2), ..Plan::torture(addr, 100) };
    let seen = torture::run(Setup::probe("v1"), torture, Course::Triggers { every: SPACING, switches: LEAST_SWITCHES });
    println!("{seen}");
    // The slow clients ask on a connection of their own each time, and end it themselves.
    seen.assert_held(LEAST_SWITCHES);
    // A generation with a slow request lives as long as that, and no other's requests keep it; on a busy machine each of these
    // takes longer by what every request does.
    let slower = seen.tally.latency.quantile_ms(0.99);
    assert!(
        seen.drain_ms(1.0) < 4000.0 + 2.0 * slower && seen.drain_ms(0.5) < 1000.0 + 2.0 * slower,
        "{slower} ms: {:#?}",
        seen.drains
    );
}

#[test]
fn torture_shows_what_this_server_loses_once_handover_and_linger_are_off() {
    let lossy = Setup::probe("v1").set("drain.handover", "false").set("drain.keepalive", "0s");
    let seen = torture::run(
        lossy,
        |addr| Plan::torture(addr, 100),
        Course::Switches { count: 12, pause: Duration::from_millis(50) },
    );
    println!("{seen}");
    assert!(seen.tally.is_balanced() && seen.tally.lost() > 0, "the client sees no loss where there is some");
    assert!(seen.tally.closed_unannounced() > 100);
}

#[test]
fn failing_reloads_under_load_lose_nothing_either() {
    let server = Setup::probe("v1").start();
    let old = server.worker();
    let load = Load::start(Plan { slow: 0, ..Plan::reference(server.addr()) });
    load.wait_for_requests(200);
    for _ in 0..20 {
        std::fs::write(server.bench.plugin_file("probe"), "\x7fELF of no use").expect("failed to write");
        load.mark();
        let (code, report) = server.reload();
        assert_eq!((code, report.result.as_str()), (409, "refused"), "{report:#?}");
    }
    load.wait_for_requests(200);
    let tally = load.stop();
    tally.assert_nothing_lost();
    assert_eq!(tally.answered_by.keys().collect::<Vec<_>>(), [&format!("v1/{old}")], "{tally}");
    assert_eq!(tally.closed_unannounced(), 0, "{tally}");
}

#[test]
fn pipelined_requests_are_answered_or_announced_never_lost() {
    let server = Setup::probe("v1").start();
    let versions = [artifacts::probe("v2"), artifacts::probe("v1")];
    let plan = Plan { pipelined: 32, post_percent: 0, ..Plan::against(server.addr()) };
    let load = Load::start(plan);
    load.wait_for_requests(500);
    for round in 0..20 {
        server.bench.install("probe", &versions[round % 2]);
        load.mark();
        server.switch();
        load.wait_for_requests(200);
    }
    let tally = load.stop();
    println!("{tally}");
    // What is behind an announced close is the client's to send again; it must never end as an unannounced loss.
    tally.assert_nothing_lost();
    assert_eq!(
        tally.closed_announced() + tally.closed_unannounced(),
        0,
        "they move, with what was read ahead: {tally}"
    );
    server.wait_drained();
    assert_eq!(lost_by_report(&server), 0);
}

// ---- HTTP/2 ----

const LEAST_HTTP2_SWITCHES: u64 = 50;

/// Eight HTTP/2 connections of eight clients each through enough reloads, and what the client and the server say of it.
fn http2_reloads(setup: Setup) -> (Tally, Status) {
    let server = setup.start();
    let versions = [artifacts::probe("v2"), artifacts::probe("v1")];
    let plan = Plan { http2: 8, http2_streams: 8, think: Duration::from_millis(10), ..Plan::against(server.addr()) };
    let load = Load::start(plan);
    load.wait_for_requests(500);
    let trigger = |round: u32| {
        server.bench.install("probe", &versions[round as usize % 2]);
        server.signal(Signal::SIGUSR1);
    };
    triggers(&load, trigger, || server.status().switches > LEAST_HTTP2_SWITCHES);
    load.wait_for_requests(500);
    let tally = load.stop();
    println!("{tally}");
    let status = server.wait_drained();
    assert!(status.switches > LEAST_HTTP2_SWITCHES, "only {} switches: this run proves nothing", status.switches);
    assert!(tally.answered_by.len() as u64 > LEAST_HTTP2_SWITCHES / 2 && tally.is_balanced(), "{tally}");
    (tally, status)
}

#[test]
fn fifty_reloads_under_http_2_load_lose_nothing() {
    let (tally, status) = http2_reloads(Setup::probe("v1"));
    tally.assert_nothing_lost();
    let http2 = tally.of(Class::Http2);
    assert!(http2.answered_after_goaway > 2 * LEAST_HTTP2_SWITCHES, "hardly any was in flight at a switch: {tally}");
    assert!(http2.opened > 4 * LEAST_HTTP2_SWITCHES && http2.posts > 100, "{tally}");
    // What crossed with a GOAWAY is sent again as the protocol has it: the exception, beside what was answered after one. (Not
    // beside all that was sent: that depends on how fast the machine is.)
    assert!(http2.unprocessed * 8 < http2.answered_after_goaway, "{tally}");
    let drains: Vec<_> = status.operations.iter().filter_map(|op| op.drain.as_ref()).collect();
    assert!(drains.iter().all(|drain| drain.cut.total() == 0 && drain.lost == 0), "{drains:#?}");
    let told: u64 = drains.iter().map(|drain| drain.goaway).sum();
    assert!(told > 4 * drains.len() as u64, "only {told} connections were told in {} drains", drains.len());
    assert_eq!(status.crashes, 0);
}

#[test]
fn the_same_http_2_client_reports_a_server_that_cuts_what_is_in_flight_as_lossy() {
    let (tally, status) = http2_reloads(Setup::probe("v1").set("drain.timeout", "0s"));
    assert!(
        tally.of(Class::Http2).faults() > LEAST_HTTP2_SWITCHES,
        "the client sees no loss where there is some:\n{tally}"
    );
    let cut: u64 = status.operations.iter().filter_map(|op| op.drain.as_ref()).map(|drain| drain.cut.http2).sum();
    assert!(cut > 0, "{status:#?}");
}
