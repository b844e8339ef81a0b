//! Restart in place into another version of the program and back: each finds what it does not know, in the state that the
//! other left and in what its children say. And one that fails where only a program made for it can.

use std::fs;

use baton_tests::server::{Server, Setup, answered_by};
use baton_tests::{artifacts, process, wait};
use nix::sys::signal::Signal;

use crate::restart::{is_back, refused, restart};
use crate::slow_request;

/// A server whose later version does what is written by [`tell`].
fn server() -> Server {
    let setup = Setup::probe("v1").own_program();
    let script = setup.bench().path().join("next");
    setup.env("BATON_NEXT", script.to_str().expect("a path in UTF-8")).start()
}

fn tell(server: &Server, line: &str) {
    fs::write(server.bench.path().join("next"), line).expect("failed to write the script");
}

/// Whether the later version of the program runs.
fn is_next(server: &Server) -> bool {
    server.status().version.ends_with("-next")
}

/// A restart whose program changes, and whose reload is then refused: what served serves on.
#[track_caller]
fn restart_alone(server: &Server) {
    let before = server.worker();
    fs::write(server.bench.plugin_file("probe"), "no plugin").expect("failed to write");
    let outcome = server.cli(&["restart", "--json"]);
    outcome.assert_code(1);
    let report: baton_tests::status::Report = outcome.json();
    assert_eq!((report.result.as_str(), report.stage.as_deref()), ("refused", Some("snapshot")), "{report:#?}");
    assert_eq!(server.worker(), before);
    assert!(process::runs(server.pid(), &server.bench.program()) && !process::runs(before, &server.bench.program()));
}

/// A crash, answered with the same program.
#[track_caller]
fn comes_back(server: &Server, crashes: u64) {
    let old = server.worker();
    let program = fs::read_link(format!("/proc/{old}/exe")).expect("its child runs");
    process::kill(old, Signal::SIGKILL);
    let again = server.wait_for("another process to serve", |status| {
        status.crashes == crashes && status.serving().is_some_and(|serving| serving.pid != Some(old))
    });
    let pid = again.serving().and_then(|serving| serving.pid).expect("it has a process");
    assert_eq!(fs::read_link(format!("/proc/{pid}/exe")).expect("its child runs"), program);
    assert_eq!(server.probe(), ("v1".into(), pid));
}

#[test]
fn a_later_version_takes_over_and_gives_way_again_and_no_connection_notices() {
    let server = server();
    let mut idle = server.connect();
    let mut busy = vec![slow_request(&server, 3000)];
    let first = answered_by(&idle.request("GET", "/").unwrap()).1;
    for (version, program, next) in [("v2", artifacts::next_baton(), true), ("v3", artifacts::baton(), false)] {
        server.bench.install_program(&program);
        server.bench.install("probe", &artifacts::probe(version));
        restart(&server);
        assert_eq!(is_next(&server), next);
        assert_eq!(answered_by(&idle.request("GET", "/").unwrap()).0, version);
        busy.push(slow_request(&server, 1500));
    }
    let answers: Vec<_> = busy.iter_mut().map(|busy| answered_by(&busy.receive().unwrap())).collect();
    assert_eq!(answers.iter().map(|(version, _)| version.as_str()).collect::<Vec<_>>(), ["v1", "v2", "v3"]);
    assert_eq!(answers[0].1, first);
    let status = server.wait_drained();
    assert_eq!((status.pid, status.crashes, status.switches), (server.pid(), 0, 3));
    let drains: Vec<_> = status.operations.iter().filter_map(|op| op.drain.as_ref()).collect();
    assert_eq!(drains.len(), 2, "both have said what became of their connections: {status:#?}");
    assert!(drains.iter().all(|drain| drain.lost + drain.cut.total() == 0), "{drains:#?}");
}

#[test]
fn a_child_of_another_version_serves_on_comes_back_and_is_replaced() {
    let server = server();
    server.bench.install_program(&artifacts::next_baton());
    restart_alone(&server);
    assert!(is_next(&server));
    comes_back(&server, 1);
    server.bench.install("probe", &artifacts::probe("v1"));
    server.switch();
    server.wait_drained();
    server.bench.install_program(&artifacts::baton());
    restart_alone(&server);
    assert!(!is_next(&server));
    comes_back(&server, 2);
    server.bench.install("probe", &artifacts::probe("v2"));
    server.switch();
    assert_eq!(server.probe().0, "v2");
    assert_eq!(server.wait_drained().crashes, 2);
}

#[test]
fn a_version_that_does_not_speak_with_a_living_child_or_fails_its_test_is_refused() {
    let server = server();
    server.bench.install_program(&artifacts::next_baton());
    tell(&server, "speak otherwise");
    refused(&server, "generation 1: it speaks protocols 1 to 1, this program 2 to 2");
    tell(&server, "panic test");
    refused(&server, "exit code 101");
    tell(&server, "");
    restart(&server);
}

#[test]
fn program_that_fails_at_the_last_moment_gives_the_process_back() {
    // Built first: a connection that waits for that would be closed as idle.
    let next = artifacts::next_baton();
    for (line, why) in [("panic resume", "panicked"), ("hang resume", "did not take over"), ("fail resume", "ended")] {
        let server = server();
        let before = server.worker();
        let mut idle = server.connect();
        assert_eq!(answered_by(&idle.request("GET", "/").unwrap()).1, before);
        let descriptors = server.wait_drained().master_fds;
        server.bench.install_program(&next);
        tell(&server, line);
        server.signal(Signal::SIGUSR2);
        wait::until("the later version to arrive", wait::LONG, || {
            process::runs(server.pid(), &server.bench.program()).then_some(())
        });
        idle.request("GET", "/").expect("its child serves on meanwhile");
        is_back(&server, before, why);
        assert!(!is_next(&server));
        server.wait_drained();
        server.wait_for("as many descriptors as before", |status| status.master_fds <= descriptors);
        // The program changed twice, once on another thread: no child was told to go.
        let operations = server.status().operations;
        assert!(operations.iter().all(|one| one.cause.by != "term"), "{operations:#?}");
        tell(&server, "");
        restart(&server);
        assert!(is_next(&server));
        assert_eq!(answered_by(&idle.request("GET", "/").unwrap()).0, "v2");
    }
}
