//! HTTP/1.1 as clients meet it: both forms of bodies, keep-alive, and what is malformed.

use std::io::ErrorKind;

use baton_tests::server::Setup;

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
