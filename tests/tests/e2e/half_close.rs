//! Clients that send their request, close their sending side and read: they get all of it, also through a reload; and what a
//! client sees of a response whose process died.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use baton_tests::server::{Server, Setup};
use baton_tests::{artifacts, process};
use nix::sys::signal::Signal;

/// Sends `request`, closes the sending side and returns the open connection.
fn half_closed(server: &Server, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(server.addr()).expect("failed to connect");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("failed to set a time limit");
    stream.write_all(request.as_bytes()).expect("failed to send");
    stream.shutdown(Shutdown::Write).expect("failed to close the sending side");
    stream
}

fn rest(mut stream: TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("failed to read to the end");
    text
}

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nhost: x\r\n\r\n")
}

#[test]
fn half_closed_client_gets_slow_responses_and_streams_whole() {
    let server = Setup::probe("v1").start();
    let slow = half_closed(&server, &get("/sleep?ms=300"));
    let streaming = half_closed(&server, &get("/stream?chunks=5&ms=50"));
    let both = half_closed(&server, &get("/sleep?ms=50").repeat(2));
    assert!(rest(slow).starts_with("HTTP/1.1 200"));
    let streamed = rest(streaming);
    assert!(streamed.contains("\r\n4\n\r\n") && streamed.ends_with("\r\n0\r\n\r\n"), "{streamed}");
    assert_eq!(rest(both).matches("HTTP/1.1 200").count(), 2);
    assert_eq!(server.status().totals.limits.aborted_on_close, 0);
}

#[test]
fn half_closed_client_is_answered_through_a_reload() {
    let server = Setup::probe("v1").start();
    let old = server.worker();
    let slow = half_closed(&server, &get("/sleep?ms=1500"));
    let streaming = half_closed(&server, &get("/stream?chunks=15&ms=100"));
    server.wait_for("both in flight", |status| {
        status.serving().is_some_and(|serving| serving.load.requests_in_flight == 2)
    });
    server.bench.install("probe", &artifacts::probe("v2"));
    let op = server.switch().op;
    let slow = rest(slow);
    assert!(slow.contains(&format!("v1 {old}")), "{slow}");
    assert!(rest(streaming).ends_with("\r\n0\r\n\r\n"));
    let status = server.wait_drained();
    let report = status.operations.iter().find(|report| report.op == op).expect("there was a reload");
    assert_eq!(report.drain.as_ref().map(|drain| drain.lost), Some(0));
}

#[test]
fn abort_on_close_ends_the_request_at_the_fin_and_counts_it() {
    let config = "[[server]]\nname = \"web\"\nlisten = [\"127.0.0.1:0\"]\nabort_on_close = true\n";
    let server = Setup::probe("v1").config(config).start();
    let stream = half_closed(&server, &get("/sleep?ms=60000"));
    server.wait_for("the aborted request", |status| status.totals.limits.aborted_on_close == 1);
    assert!(!rest_or_reset(stream).starts_with("HTTP/1.1 200"));
    assert_eq!(server.serving().load.requests_in_flight, 0);
}

fn rest_or_reset(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset is one of the ways in which it may end.
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A request whose body the probe holds and does not read.
fn post(target: &str) -> String {
    format!("POST {target} HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nbody")
}

#[test]
fn handler_learns_that_its_client_has_closed() {
    let server = Setup::probe("v1").start();
    for request in [get("/until-closed"), post("/until-closed"), get("/until-closed") + &get("/")] {
        assert!(rest(half_closed(&server, &request)).contains("closed\n"), "{request}");
    }
}

#[test]
fn reset_clients_leave_room_for_others_whatever_lies_unread() {
    let server = Setup::probe("v1").set("limits.connections", "4").start();
    let clients: Vec<_> = [get("/sleep?ms=600000"), post("/sleep?ms=600000"), get("/sleep?ms=600000").repeat(2)]
        .iter()
        .map(|request| {
            let mut stream = TcpStream::connect(server.addr()).expect("failed to connect");
            stream.write_all(request.as_bytes()).expect("failed to send");
            stream
        })
        .collect();
    server.wait_for("all in flight", |status| {
        status.serving().is_some_and(|serving| serving.load.requests_in_flight == 3)
    });
    for client in clients {
        nix::sys::socket::setsockopt(
            &client,
            nix::sys::socket::sockopt::Linger,
            &nix::libc::linger { l_onoff: 1, l_linger: 0 },
        )
        .expect("failed to set SO_LINGER");
    }
    server.wait_for("their ends", |status| {
        let in_flight = status.serving().map(|serving| serving.load.requests_in_flight);
        status.totals.client_aborts == 3 && in_flight == Some(0)
    });
}

#[test]
fn response_that_ends_with_the_connection_is_reset_when_its_worker_dies() {
    let server = Setup::probe("v1").start();
    let mut stream = TcpStream::connect(server.addr()).expect("failed to connect");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("failed to set a time limit");
    stream.write_all(b"GET /stream?chunks=1000&ms=100 HTTP/1.0\r\n\r\n").expect("failed to send");
    let mut seen = Vec::new();
    while !seen.windows(2).any(|bytes| bytes == b"0\n") {
        let mut bytes = [0; 1024];
        let len = stream.read(&mut bytes).expect("failed to read");
        assert!(len > 0, "it ended early");
        seen.extend_from_slice(&bytes[..len]);
    }
    process::kill(server.worker(), Signal::SIGKILL);
    // A regular end would say that it is whole.
    assert_eq!(stream.read_to_end(&mut seen).expect_err("it ended well").kind(), ErrorKind::ConnectionReset);
}
