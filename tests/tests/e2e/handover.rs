//! Live connections move to the new process: one client connection, two processes behind it, no byte lost in between.

use baton_tests::artifacts;
use baton_tests::http::Connection;
use baton_tests::server::{Server, Setup, answered_by};

use crate::{slow_request, switch_to};

#[track_caller]
fn ask(connection: &mut Connection) -> (String, i32) {
    answered_by(&connection.request("GET", "/").expect("the connection was closed"))
}

/// The drain report of the last switch.
#[track_caller]
fn handed_over(server: &Server) -> u64 {
    server.wait_drained();
    let newest = |status: &baton_tests::status::Status| status.operations.first().and_then(|op| op.drain.clone());
    let status = server.wait_for("the drain report", |status| newest(status).is_some());
    newest(&status).expect("just seen").handed_over
}

#[test]
fn an_idle_connection_is_answered_by_the_new_process_and_never_closed() {
    let server = Setup::probe("v1").start();
    let mut idle = server.connect();
    let (version, old) = ask(&mut idle);
    assert_eq!(version, "v1");
    for round in 0..5 {
        let version = if round % 2 == 0 { "v2" } else { "v1" };
        let new = switch_to(&server, version);
        assert_eq!(ask(&mut idle), (version.into(), new));
        assert_ne!(new, old);
    }
    assert!(handed_over(&server) >= 1);
}

#[test]
fn a_connection_that_has_sent_nothing_yet_is_served_by_the_new_process() {
    let server = Setup::probe("v1").start();
    let mut silent = server.connect();
    server.wait_for("the connection", |status| status.serving().is_some_and(|one| one.load.connections == 1));
    let new = switch_to(&server, "v2");
    assert_eq!(ask(&mut silent), ("v2".into(), new));
}

/// A slow request with `behind` in the same write; the connection after a switch in the middle of it, once it was answered.
#[track_caller]
fn after_a_slow_request_with(behind: &str, server: &Server) -> (Connection, i32) {
    let old = server.worker();
    let mut connection = server.connect();
    let slow = "GET /sleep?ms=1000 HTTP/1.1\r\nhost: x\r\nx-id: 1\r\n\r\n";
    connection.write(format!("{slow}{behind}").as_bytes()).expect("failed to send");
    server.wait_for("the slow request", |status| status.serving().is_some_and(|one| one.load.requests_in_flight == 1));
    let new = switch_to(server, "v2");
    let first = connection.receive().expect("the slow request was cut");
    assert_eq!((answered_by(&first), first.header("x-id"), first.close), (("v1".into(), old), Some("1"), false));
    (connection, new)
}

#[test]
fn requests_pipelined_behind_a_slow_one_are_all_answered_before_the_connection_moves() {
    let server = Setup::probe("v1").start();
    let quick = "GET / HTTP/1.1\r\nhost: x\r\nx-id: 2\r\n\r\n";
    let (mut connection, new) = after_a_slow_request_with(&format!("{quick}{quick}"), &server);
    for _ in 0..2 {
        let behind = connection.receive().expect("what was read ahead is lost");
        assert_eq!((behind.status, behind.header("x-id"), behind.close), (200, Some("2"), false));
    }
    assert_eq!(ask(&mut connection), ("v2".into(), new));
}

#[test]
fn half_a_head_behind_a_slow_request_moves_with_the_connection() {
    let server = Setup::probe("v1").start();
    let (mut connection, new) = after_a_slow_request_with("GET / HTTP/1.1\r\nhost: x\r\nx-i", &server);
    assert!(handed_over(&server) >= 1, "it was not handed over");
    connection.write(b"d: 2\r\n\r\n").expect("the connection was closed");
    let behind = connection.receive().expect("what was read ahead is lost");
    assert_eq!((answered_by(&behind), behind.header("x-id")), (("v2".into(), new), Some("2")));
}

#[test]
fn half_a_head_is_completed_across_the_switch() {
    let server = Setup::probe("v1").start();
    let mut half = server.connect();
    ask(&mut half);
    half.write(b"GET / HTTP/1.1\r\nhost: x\r\nx-i").expect("failed to send");
    switch_to(&server, "v2");
    half.write(b"d: 7\r\n\r\n").expect("the connection was closed");
    let response = half.receive().expect("half a request was lost");
    assert_eq!((response.status, response.header("x-id")), (200, Some("7")));
}

#[test]
fn a_moved_connection_outlives_the_death_of_its_old_process() {
    let server = Setup::probe("v1").start();
    let mut idle = server.connect();
    ask(&mut idle);
    let mut slow = slow_request(&server, 60_000);
    let old = server.worker();
    let new = switch_to(&server, "v2");
    assert_eq!(ask(&mut idle), ("v2".into(), new));
    baton_tests::process::kill(old, nix::sys::signal::Signal::SIGKILL);
    slow.receive().expect_err("its process was killed");
    assert_eq!(ask(&mut idle), ("v2".into(), new));
    assert_eq!(server.wait_drained().serving().and_then(|one| one.pid), Some(new));
}

#[test]
fn a_refused_reload_moves_nothing() {
    let server = Setup::probe("v1").set("plugins.probe.config.init", "error").start();
    let mut idle = server.connect();
    let old = ask(&mut idle);
    server.bench.install("probe", &artifacts::plugin("broken"));
    assert_eq!(server.reload().0, 409);
    assert_eq!(ask(&mut idle), old);
}

#[test]
fn many_idle_connections_move_at_once() {
    let server = Setup::probe("v1").start();
    let mut idle: Vec<Connection> = (0..300).map(|_| server.connect()).collect();
    for connection in &mut idle {
        ask(connection);
    }
    let new = switch_to(&server, "v2");
    for connection in &mut idle {
        assert_eq!(ask(connection), ("v2".into(), new));
    }
    assert_eq!(handed_over(&server), 300);
}
