//! What the command line says while it waits, where no terminal is; and that nothing it prints can steer one.

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use baton_tests::http::Connection;
use baton_tests::server::{Server, Setup};
use baton_tests::status::Report;

/// A server with room for one draining generation, and a request that holds it.
fn full() -> (Server, Connection) {
    let server = Setup::probe("v1").set("max_draining", "1").start();
    let held = hold(&server);
    server.switch();
    (server, held)
}

/// A request that lasts until its client leaves.
fn hold(server: &Server) -> Connection {
    let before = server.status().serving().map_or(0, |one| one.load.requests_in_flight);
    let mut connection = server.connect();
    connection.send("GET", "/sleep?ms=600000", &[], b"").expect("failed to send");
    server.wait_for("the request", |status| status.serving().is_some_and(|one| one.load.requests_in_flight > before));
    connection
}

#[test]
fn a_reload_that_waits_says_for_what_and_until_when() {
    for json in [false, true] {
        let (server, held) = full();
        let args = if json { &["reload", "--json"][..] } else { &["reload"] };
        let mut command = server.bench.command(args);
        let mut reload =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("failed to run the program");
        let mut said = String::new();
        let mut stderr = BufReader::new(reload.stderr.take().expect("a pipe"));
        stderr.read_line(&mut said).expect("a line");
        for part in [
            "reload waits since",
            "draining full",
            "generation 1 drains 1 connections, 1 in flight",
            "at most",
            "gives up in",
        ] {
            assert!(said.contains(part), "it does not say `{part}`: {said}");
        }
        let status = server.cli(&["status"]);
        for part in ["queued: draining full", "generation 1 drains 1 connections", "at most"] {
            assert!(status.assert_code(0).stdout.contains(part), "it does not say `{part}`: {}", status.stdout);
        }
        drop(held);
        let mut stdout = String::new();
        reload.stdout.take().expect("a pipe").read_to_string(&mut stdout).expect("its words");
        assert!(reload.wait().expect("its end").success(), "{stdout}");
        if json {
            let report: Report = serde_json::from_str(&stdout).expect("stdout has JSON alone");
            assert_eq!(report.result, "switched");
        }
    }
}

#[test]
fn a_shutdown_that_waits_says_for_what() {
    let server = Setup::probe("v1").start();
    let held = hold(&server);
    let mut command = server.bench.command(&["shutdown"]);
    let mut shutdown =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("failed to run the program");
    let mut said = String::new();
    BufReader::new(shutdown.stderr.take().expect("a pipe")).read_line(&mut said).expect("a line");
    assert!(said.contains("shutdown waits since") && said.contains("1 in flight on 1 connections"), "{said}");
    drop(held);
    assert!(shutdown.wait().expect("its end").success());
}

#[test]
fn a_reload_that_gives_up_says_that_it_goes_on() {
    let (server, _held) = full();
    let outcome = server.cli(&["reload", "--timeout", "2s"]);
    outcome.assert_code(1);
    assert!(outcome.stderr.contains("goes on") && outcome.stderr.contains("baton status"), "{outcome:?}");
}

#[test]
fn names_of_files_cannot_steer_a_terminal() {
    let server = Setup::probe("v1").start();
    let name = "lib\x1b]0;owned\x07\x1b[2J\nswitched: generation 1 -> 2\u{202e}.so";
    std::fs::write(server.bench.plugins().join(name), "no library").expect("failed to write");
    let refused = server.cli(&["reload", "--verbose"]);
    let status = server.cli(&["status"]);
    for text in [&refused.assert_code(1).stderr, &refused.stdout, &status.assert_code(0).stdout] {
        assert!(text.chars().all(|c| c == '\n' || !c.is_control() && c != '\u{202e}'), "{text:?}");
        assert!(!text.lines().any(|line| line.starts_with("switched")), "{text}");
    }
    assert!(refused.stderr.contains("owned"), "it is still named: {}", refused.stderr);
    let report: Report = server.cli(&["reload", "--json"]).assert_code(1).json();
    assert!(report.error.expect("a reason").contains('\x1b'), "for programs it stays as it is");
}
