//! HTTP/1.1 as clients meet it: both forms of bodies, keep-alive, and what is malformed.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Instant;

use baton_tests::artifacts;
use baton_tests::http::Connection;
use baton_tests::server::{Server, Setup};
use baton_tests::status::Malformed;
use nix::libc;
use nix::sys::socket::{self, sockopt};

#[test]
fn bodies_pass_both_ways_unchanged() {
    let server = Setup::probe("v1").start();
    let mut connection = server.connect();
    for length in [0, 1, 1023, 1024, 1025, 65_536, 3_000_000] {
        let body: Vec<u8> = (0..length).map(|at: usize| (at % 251) as u8).collect();
        connection.send("POST", "/echo", &[], &body).expect("failed to send");
        let response = connection.receive().expect("no answer");
        assert_eq!(response.status, 200);
        assert!(response.body == body, "{length} bytes came back as {}", response.body.len());
    }
    let chunked =
        b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n";
    connection.write(chunked).expect("failed to send");
    assert_eq!(connection.receive().expect("no answer").text(), "abcdefg");
}

#[test]
fn one_connection_serves_many_requests() {
    let server = Setup::probe("v1").start();
    let mut connection = server.connect();
    for round in 0..50 {
        connection.send("GET", "/", &[("x-id", &round.to_string())], b"").expect("failed to send");
        let response = connection.receive().expect("no answer");
        assert_eq!((response.header("x-id"), response.close), (Some(round.to_string().as_str()), false));
    }
    assert_eq!(connection.request("HEAD", "/").expect("no answer").body, b"");
    assert_eq!(connection.request("GET", "/nowhere").expect("no answer").status, 404);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let server = Setup::probe("v1").start();
    let mut connection = server.connect();
    let batch: String = (0..10).map(|id| format!("GET / HTTP/1.1\r\nhost: x\r\nx-id: {id}\r\n\r\n")).collect();
    connection.write(batch.as_bytes()).expect("failed to send");
    for id in 0..10 {
        assert_eq!(connection.receive().expect("no answer").header("x-id"), Some(id.to_string().as_str()));
    }
}

#[test]
fn a_client_that_asks_to_close_is_closed() {
    let server = Setup::probe("v1").start();
    let mut connection = server.connect();
    connection.send("GET", "/", &[("connection", "close")], b"").expect("failed to send");
    assert!(connection.receive().expect("no answer").close);
    assert_eq!(connection.read_to_close().expect("it did not close"), b"");
    let mut old = server.connect();
    old.write(b"GET / HTTP/1.0\r\n\r\n").expect("failed to send");
    assert_eq!(old.receive().expect("no answer").status, 200);
    assert_eq!(old.read_to_close().expect("it did not close"), b"");
}

#[test]
fn malformed_and_oversized_heads_are_answered_and_closed() {
    let server = Setup::probe("v1").start();
    let huge = format!("GET / HTTP/1.1\r\nhost: x\r\nx-huge: {}\r\n\r\n", "x".repeat(1_000_000));
    for (bytes, status) in [("nonsense\r\n\r\n", 400), ("GET / HTTP/1.1\r\nbad header\r\n\r\n", 400), (&huge, 431)] {
        let mut connection = server.connect();
        // The server may stop reading a head that is too large before we have written it all.
        if let Err(error) = connection.write(bytes.as_bytes()) {
            assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
        }
        let response = connection.receive().unwrap_or_else(|error| panic!("no answer to {:.20}: {error}", bytes));
        assert_eq!(response.status, status, "{:.20}", bytes);
        connection.read_to_close().expect("it did not close");
    }
    assert_eq!(server.probe().0, "v1");
}

#[test]
fn a_large_body_is_read_slowly_without_filling_memory() {
    let server = Setup::probe("v1").start();
    let mut connection = server.connect();
    connection.send("GET", "/stream?chunks=200&ms=1", &[], b"").expect("failed to send");
    let response = connection.receive().expect("no answer");
    assert_eq!(response.text().lines().count(), 200);
    assert_eq!(connection.request("GET", "/body?bytes=5000000").expect("no answer").body.len(), 5_000_000);
}

/// Sends `bytes` on a connection of its own. Returns the status of the response, after which the connection must be closed.
#[track_caller]
fn refused(server: &Server, bytes: &str) -> u16 {
    let mut connection = server.connect();
    connection.write(bytes.as_bytes()).expect("failed to send");
    let response = connection.receive().unwrap_or_else(|error| panic!("no answer to {bytes:?}: {error}"));
    assert!(response.close, "unannounced close after {bytes:?}");
    assert_eq!(connection.read_to_close().expect("it did not close"), b"", "{bytes:?}");
    response.status
}

#[test]
fn request_without_one_valid_host_is_a_400() {
    let server = Setup::probe("v1").start();
    for fields in ["", "host: a\r\nhost: b\r\n", "host: a\r\nhost: a\r\n", "host: a b/c\r\n"] {
        assert_eq!(refused(&server, &format!("GET / HTTP/1.1\r\n{fields}\r\n")), 400, "{fields:?}");
    }
    assert_eq!(refused(&server, "GET / HTTP/1.0\r\n\r\n"), 200);
    server.wait_for("the refusals", |status| status.totals.malformed == Malformed { host: 4, ..Malformed::default() });
}

#[test]
fn absolute_target_replaces_host_and_has_a_path() {
    let server = Setup::probe("v1").start();
    let mut connection = server.connect();
    connection.send("GET", "http://b.example:81/headers", &[("host", "a.example")], b"").expect("failed to send");
    assert_eq!(connection.receive().expect("no answer").text(), "host: b.example:81\n");
    // Only a query: its path is `/`, which the probe answers with its line.
    connection.send("GET", "http://b.example?x=1", &[], b"").expect("failed to send");
    let response = connection.receive().expect("no answer");
    assert_eq!((response.status, response.close), (200, false), "{}", response.text());
    assert_eq!(server.status().totals.panics, 0);
}

#[test]
fn transfer_coding_other_than_chunked_once_is_refused() {
    let server = Setup::probe("v1").start();
    for (codings, status) in [
        ("transfer-encoding: chunked, chunked", 400),
        ("transfer-encoding: chunked\r\ntransfer-encoding: chunked", 400),
        ("transfer-encoding: chunked, gzip", 400),
        ("transfer-encoding: gzip, chunked", 501),
        ("transfer-encoding: identity, chunked", 501),
    ] {
        let head = format!("POST /echo HTTP/1.1\r\nhost: a\r\n{codings}\r\n\r\n");
        assert_eq!(refused(&server, &(head + "3\r\nabc\r\n0\r\n\r\n")), status, "{codings:?}");
    }
    let expected = Malformed { framing: 3, transfer_coding: 2, ..Malformed::default() };
    server.wait_for("the refusals", |status| status.totals.malformed == expected);
    let metrics = server.admin("GET", "/metrics").text();
    assert!(metrics.contains("\nbaton_malformed_requests_total{kind=\"transfer_coding\"} 2\n"), "{metrics}");
}

#[test]
fn malformed_requests_of_one_peer_are_logged_once_a_second() {
    let server = Setup::probe("v1").start();
    let start = Instant::now();
    (0..50).for_each(|_| assert_eq!(refused(&server, "GET / HTTP/1.1\r\n\r\n"), 400));
    server.wait_for("the refusals", |status| status.totals.malformed.host == 50);
    let lines = server.log().matches("refused a request").count() as u64;
    assert!((1..=start.elapsed().as_secs() + 1).contains(&lines), "{lines} lines");
}

#[test]
fn request_behind_an_unread_body_is_answered_or_the_close_announced() {
    let server = Setup::probe("v1").start();
    for (size, chunked) in [(20_000, false), (60_000, false), (200_000, false), (900_000, false), (9000, true)] {
        let mut connection = server.connect();
        let body = "x".repeat(size);
        let upload = if chunked {
            format!("transfer-encoding: chunked\r\n\r\n{size:x}\r\n{body}\r\n0\r\n\r\n")
        } else {
            format!("content-length: {size}\r\n\r\n{body}")
        };
        let head = "POST /nowhere HTTP/1.1\r\nhost: a\r\n";
        let next = "GET / HTTP/1.1\r\nhost: a\r\nx-id: next\r\n\r\n";
        connection.write(format!("{head}{upload}{next}").as_bytes()).expect("failed to send");
        let response = connection.receive().expect("no answer");
        assert_eq!(response.status, 404);
        assert_eq!(response.close, size > 256 * 1024 || response.close && chunked, "{size} bytes");
        if !response.close {
            let next = connection.receive().expect("the next request was thrown away");
            assert_eq!(next.header("x-id"), Some("next"), "{size} bytes");
        }
    }
}

#[test]
fn reload_with_an_unread_body_on_its_way_loses_nothing() {
    let server = Setup::probe("v1").start();
    let half = |server: &Server| {
        let mut connection = server.connect();
        connection
            .write(b"POST /nowhere HTTP/1.1\r\nhost: a\r\ncontent-length: 50000\r\n\r\n")
            .expect("failed to send");
        connection.write(&[b'G'; 20_000]).expect("failed to send");
        let response = connection.receive().expect("no answer");
        assert_eq!((response.status, response.close), (404, false));
        connection
    };
    let mut connections: Vec<Connection> = (0..20).map(|_| half(&server)).collect();
    crate::switch_to(&server, "v2");
    for connection in &mut connections {
        connection.write(&[b'G'; 30_000]).expect("failed to send");
        connection.send("GET", "/", &[("x-id", "next")], b"").expect("failed to send");
        assert_eq!(connection.receive().expect("the next request was lost").header("x-id"), Some("next"));
    }
    let status = server.wait_drained();
    let drain = status.operations[0].drain.clone().expect("a drain report");
    assert_eq!((drain.lost, drain.cut.total(), drain.unanswered_pipelined), (0, 0, 0), "{drain:?}");
}

#[test]
fn upload_that_is_too_large_gets_its_413_though_it_writes_first() {
    let server = Setup::probe("v1").set("limits.body_size", "1 MiB").start();
    let mut connection = server.connect();
    connection.send("POST", "/echo", &[], &vec![b'x'; 20 << 20]).expect("failed to send all of it");
    let response = connection.receive().expect("no answer");
    assert_eq!((response.status, response.close), (413, true));
}

/// Sends uploads to `target` that are closed, half-closed, reset, malformed and too long, `each` of every kind.
fn send_broken_uploads(server: &Server, target: &str, each: usize) {
    let head = |field: &str| format!("POST {target} HTTP/1.1\r\nhost: a\r\n{field}\r\n\r\n");
    for _ in 0..each {
        let mut closed = server.connect();
        closed.write((head("content-length: 100") + "abc").as_bytes()).expect("failed to send");
        drop(closed);

        let half_closed = TcpStream::connect(server.addr()).expect("failed to connect");
        (&half_closed).write_all((head("content-length: 100") + "abc").as_bytes()).expect("failed to send");
        half_closed.shutdown(Shutdown::Write).expect("failed to close the sending side");
        // Waits until the server has ended it; a reset is one of the ways.
        let _ = (&half_closed).read_to_end(&mut Vec::new());

        let reset = TcpStream::connect(server.addr()).expect("failed to connect");
        (&reset).write_all((head("content-length: 100") + "abc").as_bytes()).expect("failed to send");
        socket::setsockopt(&reset, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })
            .expect("failed to set SO_LINGER");
        drop(reset);

        let mut bad_chunk = server.connect();
        bad_chunk.write((head("transfer-encoding: chunked") + "zz\r\n").as_bytes()).expect("failed to send");
        // A response that has begun is broken off by a reset.
        if let Ok(response) = bad_chunk.receive() {
            assert_eq!(response.status, 400);
        }

        let mut too_long = server.connect();
        too_long.send("POST", "/short", &[], &[b'x'; 1025]).expect("failed to send");
        assert_eq!(too_long.receive().expect("no response to a long body").status, 413);
    }
}

/// An upload that a handler of type `Failure` collects, and one that it streams back.
#[test]
fn broken_uploads_are_no_errors_and_end_no_probation() {
    let setup = Setup::probe("v1").set("log.format", "json").set("probation.window", "10min");
    let server = setup.set("probation.min_requests", "1").set("probation.max_failure_ratio", "0.01").start();
    server.bench.install("probe", &artifacts::probe("v2"));
    assert_eq!(server.reload().0, 200);
    for target in ["/line", "/echo"] {
        send_broken_uploads(&server, target, 10);
    }
    let status = server.wait_for("the broken uploads", |status| {
        status.totals.client_aborts == 60 && status.totals.malformed.body == 20
    });
    assert_eq!(status.serving, Some(2));
    assert_eq!(status.serving().map(|serving| serving.load.failures), Some(0), "{status:#?}");
    let log = server.log();
    assert!(!log.contains("\"level\":\"error\""), "{log}");
}

#[test]
fn upload_that_its_client_breaks_off_is_no_error_of_the_plugin() {
    let server = Setup::probe("v1").set("log.format", "json").start();
    for _ in 0..20 {
        let mut connection = server.connect();
        connection.write(b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nabc").expect("failed to send");
    }
    let status = server.wait_for("the aborts", |status| status.totals.client_aborts == 20);
    assert_eq!(status.serving().map(|serving| serving.load.failures), Some(0));
    let log = server.log();
    assert!(!log.contains("\"level\":\"error\""), "{log}");
}
