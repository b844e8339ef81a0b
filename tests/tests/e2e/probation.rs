//! Probation: while the old generation stands by, a new one that dies or fails too often is rolled back, and nobody is
//! refused.

use std::time::{Duration, Instant};

use baton_tests::load::{Fault, Load, Plan};
use baton_tests::server::{Server, Setup};
use baton_tests::status::Report;
use baton_tests::{artifacts, http, process};
use nix::sys::signal::Signal;

/// Longer than any test.
const LONG: &str = "10min";

/// Serves v1, and v2 is on probation.
#[track_caller]
fn on_probation(setup: Setup) -> (Server, Report) {
    let server = setup.start();
    server.bench.install("probe", &artifacts::probe("v2"));
    let (code, report) = server.reload();
    assert_eq!((code, report.result.as_str(), report.standby), (200, "switched", Some(1)), "{report:#?}");
    assert_eq!(server.probe().0, "v2");
    (server, report)
}

#[track_caller]
fn assert_rolled_back(server: &Server, op: u64, says: &str) {
    let status = server.wait_for("the old generation to serve again", |status| {
        status.serving == Some(1) && status.serving().is_some_and(|serving| serving.state == "serving")
    });
    let report = status.operation(op).expect("the operation is kept");
    assert_eq!((report.result.as_str(), report.serving, report.standby), ("rolled_back", Some(1), None), "{report:#?}");
    assert!(report.error.as_deref().is_some_and(|error| error.contains(says)), "{report:#?}");
    assert_eq!(server.probe().0, "v1");
}

#[test]
fn a_generation_that_dies_on_probation_is_rolled_back_and_nobody_is_refused() {
    let (server, report) = on_probation(Setup::probe("v1").set("probation.window", LONG));
    let load = Load::start(Plan { keepalive: 16, fresh: 8, ..Plan::against(server.addr()) });
    load.wait_for_requests(500);
    process::kill(server.worker(), Signal::SIGKILL);
    assert_rolled_back(&server, report.op, "died");
    let (sent, faults) = (load.tally().sent(), load.tally().lost());
    load.wait_for_requests(sent + 1000);
    let tally = load.stop();
    assert_eq!(
        (tally.fault(Fault::Refused), tally.fault(Fault::Connect), tally.fault(Fault::Wrong)),
        (0, 0, 0),
        "{tally}"
    );
    assert!(faults <= 24 && tally.lost() <= 24, "only what was in the dead process may be lost: {tally}");
    assert_eq!(server.wait_drained().crashes, 1);
}

#[test]
fn a_generation_that_fails_too_often_is_rolled_back_without_a_loss() {
    let setup = Setup::probe("v1").set("probation.window", LONG);
    let flag = setup.bench().path().join("well");
    let (server, report) =
        on_probation(setup.set("probation.min_requests", "40").set("probation.max_failure_ratio", "0.25"));
    let load = Load::start(Plan { keepalive: 2, fresh: 2, ..Plan::against(server.addr()) });
    let failing = format!("/while?path={}", flag.display());
    let begun = Instant::now();
    while server.status().serving == Some(2) {
        assert!(begun.elapsed() < Duration::from_secs(30), "it was not rolled back: {:#?}", server.serving().load);
        for _ in 0..20 {
            assert_eq!(http::get(server.addr(), &failing).expect("an answer").status, 503);
        }
    }
    assert_rolled_back(&server, report.op, "failures (5xx)");
    load.wait_for_requests(load.tally().sent() + 200);
    let tally = load.stop();
    tally.assert_nothing_lost();
    assert_eq!(tally.closed_unannounced(), 0, "{tally}");
    let status = server.wait_drained();
    assert_eq!((status.crashes, status.switches), (0, 3), "{status:#?}");
}

#[test]
fn a_generation_that_fails_no_more_than_allowed_serves_on() {
    let setup = Setup::probe("v1").set("probation.window", "1500ms").set("probation.min_requests", "10");
    let flag = setup.bench().path().join("well");
    let (server, report) = on_probation(setup.set("probation.max_failure_ratio", "0.5"));
    // What is first counted must be within bounds too.
    for _ in 0..30 {
        server.get("/");
    }
    for _ in 0..20 {
        assert_eq!(server.get(&format!("/while?path={}", flag.display())).status, 503);
    }
    assert_eq!(server.serving().load.failures, 20);
    let status = server.wait_drained();
    let report = status.operation(report.op).expect("the operation is kept");
    assert_eq!((status.serving, report.result.as_str(), report.standby), (Some(2), "switched", None), "{report:#?}");
}

#[test]
fn the_command_line_waits_for_the_end_of_the_probation_unless_told_otherwise() {
    let server = Setup::probe("v1").set("probation.window", "1s").start();
    let begun = Instant::now();
    let outcome = server.cli(&["reload", "--name", &server.name, "--wait", "switched", "--json"]);
    assert_eq!(outcome.assert_code(0).json::<Report>().standby, Some(1));
    let outcome = server.cli(&["reload", "--name", &server.name, "--json"]);
    assert_eq!(outcome.assert_code(0).json::<Report>().standby, None);
    assert!(begun.elapsed() >= Duration::from_secs(1), "it did not wait");
}

#[test]
fn a_rollback_during_the_wait_is_exit_code_1() {
    let server = Setup::probe("v1").set("probation.window", LONG).start();
    server.bench.install("probe", &artifacts::probe("v2"));
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| server.cli(&["reload", "--name", &server.name]));
        let status = server.wait_for("the probation", |status| {
            status.operations.first().is_some_and(|report| report.standby == Some(1))
        });
        process::kill(status.serving().and_then(|serving| serving.pid).expect("a process"), Signal::SIGKILL);
        let outcome = asked.join().expect("the command line ended");
        outcome.assert_code(1);
        assert!(
            outcome.stderr.contains("rolled back") && outcome.stderr.contains("generation 1 serves on"),
            "{outcome:?}"
        );
    });
}

#[test]
fn after_a_rollback_the_next_reload_switches() {
    let (server, report) = on_probation(Setup::probe("v1").set("probation.window", "500ms"));
    process::kill(server.worker(), Signal::SIGKILL);
    assert_rolled_back(&server, report.op, "died");
    server.bench.install("probe", &artifacts::probe("v3"));
    let (code, report) = server.reload();
    assert_eq!((code, report.result.as_str()), (200, "switched"), "{report:#?}");
    assert_eq!(server.probe().0, "v3");
    server.wait_drained();
}
