//! A set that dies again and again is given up, and the last good one takes its place; with none left, every request is
//! answered 503. So it is at a start with plugins that do not work. The port is never closed.

use std::time::Duration;

use baton_tests::http::Connection;
use baton_tests::load::{Fault, Load, Plan};
use baton_tests::server::{Server, Setup};
use baton_tests::{artifacts, http, process, wait};
use nix::sys::signal::Signal;

use crate::switch_to;

fn hasty(limit: &str) -> Setup {
    Setup::probe("v1").set("crash.limit", limit).set("crash.backoff", "20ms").set("crash.hold", "300ms")
}

/// Kills whoever serves, so many times in a row.
#[track_caller]
fn kill_workers(server: &Server, times: u64) {
    for _ in 0..times {
        let before = server.status().crashes;
        process::kill(server.worker(), Signal::SIGKILL);
        if before + 1 < times {
            server.wait_for("a new worker", |status| status.crashes > before && status.ready);
        }
    }
}

/// v1 has served, v2 has died too often.
fn quarantined() -> Server {
    let server = hasty("3").start();
    switch_to(&server, "v2");
    server.wait_drained();
    kill_workers(&server, 3);
    let status = server.wait_for("the last good set", |status| status.ready && status.serving == Some(5));
    assert_eq!((status.crashes, status.quarantines), (3, 1), "{status:#?}");
    server
}

#[test]
fn a_set_that_dies_too_often_is_quarantined_and_the_last_good_one_takes_over() {
    let server = quarantined();
    assert_eq!(server.probe().0, "v1");
    let status = server.status();
    assert!(status.alert.as_deref().is_some_and(|alert| alert.contains("died 3 times within 1m")), "{status:#?}");
    assert!(status.held.iter().any(|held| held.why == "quarantined" && held.change.what == "plugin"), "{status:#?}");
    assert_eq!(status.pinned.as_ref().map(|pin| pin.generation), Some(1), "{status:#?}");
    assert_eq!((status.operations[0].verb.as_str(), status.operations[0].cause.by.as_str()), ("rollback", "crash"));
    let (code, report) = server.reload();
    assert_eq!((code, report.result.as_str()), (409, "refused"), "{report:#?}");
    assert!(report.error.as_deref().is_some_and(|error| error.contains("quarantined")), "{report:#?}");
    switch_to(&server, "v3");
    let status = server.status();
    assert_eq!((status.alert, status.pinned), (None, None));
}

#[test]
fn a_set_that_dies_less_often_is_not_given_up() {
    let server = hasty("3").start();
    switch_to(&server, "v2");
    server.wait_drained();
    kill_workers(&server, 2);
    let status = server.wait_for("a new worker", |status| status.crashes == 2 && status.ready);
    assert_eq!((status.quarantines, server.probe().0.as_str()), (0, "v2"));
}

#[test]
fn a_quarantine_outlives_the_master() {
    let mut server = quarantined();
    server.signal(Signal::SIGTERM);
    server.wait_end(wait::LONG);
    let next = Setup::in_bench_of(&server).named(&server.name).start();
    assert_eq!(next.probe().0, "v1", "v2 lies in the folder");
    let outcome = next.cli(&["reload", "--name", &next.name, "--force"]);
    outcome.assert_code(0);
    assert_eq!(next.probe().0, "v2");
}

#[test]
fn with_no_good_set_left_requests_are_answered_503_until_a_good_file_comes() {
    let server = hasty("2").start();
    let load = Load::start(Plan { fresh: 2, ..Plan::against(server.addr()) });
    load.wait_for_requests(50);
    kill_workers(&server, 2);
    let status = server.wait_for("the set without plugins", |status| {
        status.serving().is_some_and(|serving| serving.plugins.is_empty() && serving.state == "serving")
    });
    assert!(!status.ready && status.alert.is_some(), "{status:#?}");
    let response = http::get(server.addr(), "/").expect("an answer");
    assert_eq!((response.status, response.header("retry-after")), (503, Some("1")));
    assert_eq!(server.admin("GET", "/readyz").status, 503);
    let (code, report) = server.reload();
    assert_eq!((code, report.result.as_str()), (409, "refused"), "the same set again: {report:#?}");
    switch_to(&server, "v2");
    let status = server.status();
    assert!(status.ready && status.alert.is_none(), "{status:#?}");
    let tally = load.stop();
    assert_eq!((tally.fault(Fault::Refused), tally.fault(Fault::Connect)), (0, 0), "the port was closed: {tally}");
}

/// An instance that has served v1 and was shut down, and has no library in the place of its plugin.
fn spoilt() -> Server {
    let mut server = Setup::probe("v1").start();
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_end(wait::LONG).code(), Some(0));
    std::fs::write(server.bench.plugin_file("probe"), "no library").expect("failed to write");
    server
}

#[test]
fn a_start_with_bad_plugins_serves_the_last_good_set_and_says_so() {
    let old = spoilt();
    let server = Setup::in_bench_of(&old).named(&old.name).start();
    assert_eq!(server.probe().0, "v1");
    let status = server.status();
    assert!(status.alert.as_deref().is_some_and(|alert| alert.contains("libprobe.so")), "{status:#?}");
    let shown = server.cli(&["status", "--name", &server.name]);
    assert!(shown.stdout.contains("the last good set serves"), "{shown:?}");
    assert_eq!(server.reload().0, 409, "it is still bad");
    switch_to(&server, "v2");
    assert_eq!(server.status().alert, None);
}

#[test]
fn a_strict_start_with_bad_plugins_is_exit_code_1_and_so_is_one_without_a_good_set() {
    let old = spoilt();
    let mut strict = Setup::in_bench_of(&old).named(&old.name).arg("--strict").spawn();
    assert_eq!(strict.wait_end(wait::LONG).code(), Some(1));

    let fresh = Setup::new();
    std::fs::write(fresh.bench().plugin_file("probe"), "no library").expect("failed to write");
    let mut fresh = fresh.spawn();
    assert_eq!(fresh.wait_end(wait::LONG).code(), Some(1));
    assert!(fresh.log().contains("no shared library"), "{}", fresh.log());

    // A last good set whose copy is gone is none.
    let store = old.bench.path().join("state/baton").join(&old.name).join("store");
    for copy in std::fs::read_dir(store).expect("the store") {
        std::fs::remove_file(copy.expect("an entry").path()).expect("failed to remove a copy");
    }
    let mut server = Setup::in_bench_of(&old).named(&old.name).spawn();
    assert_eq!(server.wait_end(Duration::from_secs(20)).code(), Some(1));
}

#[test]
fn a_respawn_that_hangs_is_stood_in_for_by_503_until_it_is_up() {
    let setup = Setup::new().plugin("broken", &artifacts::plugin("broken"));
    let (go, second) = (setup.bench().path().join("go"), setup.bench().path().join("go-second"));
    // The first start finds its file; a second waits for it.
    std::fs::write(&go, "").expect("failed to write");
    let config =
        format!("[[server]]\nlisten = [\"127.0.0.1:0\"]\n[plugins.broken.config]\ninit = \"wait:{}\"\n", go.display());
    let server = setup.config(&config).set("crash.hold", "300ms").start();
    let addr = server.addr();
    assert_eq!(server.get("/").text(), "not so broken\n");
    std::fs::rename(&go, &second).expect("failed to rename");
    let old = server.worker();
    process::kill(old, Signal::SIGKILL);
    wait::until("it to be dead", wait::LONG, || (!process::is_alive(old)).then_some(()));
    let mut waiting = Connection::open(addr).expect("the port is open throughout");
    let response = waiting.request("GET", "/").expect("an answer after crash.hold");
    assert_eq!(response.status, 503, "{response:?}");
    let status = server.wait_for("the stand-in", |status| status.serving == Some(3));
    assert!(!status.ready && status.alert.is_some_and(|alert| alert.contains("503")));
    let loading = status.generations.iter().find(|one| one.generation == 2).expect("the respawn");
    assert_eq!((loading.state.as_str(), status.crashes, status.switches), ("loading", 1, 1), "it goes on loading");
    std::fs::rename(&second, &go).expect("failed to rename");
    let status = server.wait_for("what shall serve", |status| status.serving == Some(2) && status.ready);
    assert_eq!((status.alert, status.crashes), (None, 1));
    // Until it has drained the fallback may answer.
    server.wait_drained();
    let response = waiting.request("GET", "/").expect("its connection moved on");
    assert_eq!((response.status, response.text().as_str()), (200, "not so broken\n"));
}
