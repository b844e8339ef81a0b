//! What is refused, and what clients break off, in the numbers.

use std::task::Poll;

use bytes::Bytes;

use super::fake::{Step, read, stream};
use super::http2::{DATA, END_HEADERS, END_STREAM, HEADERS, RST_STREAM, Raw, fields, frame, get};
use super::*;

/// Returns the body whole.
async fn whole(mut asked: Asked) -> Reply {
    match read(&mut asked.body).await {
        Ok((data, _)) => reply(200, data),
        Err(error) => reply(500, error),
    }
}

const KINDS: [Slot; 7] = [
    Slot::MalformedRequestLine,
    Slot::MalformedVersion,
    Slot::MalformedHeader,
    Slot::MalformedHost,
    Slot::MalformedFraming,
    Slot::UnknownTransferCoding,
    Slot::MalformedBody,
];

/// A field that no table of HPACK has, in words.
fn literal(name: &str, value: &str) -> Vec<u8> {
    [&[0, name.len() as u8], name.as_bytes(), &[value.len() as u8], value.as_bytes()].concat()
}

#[test]
fn malformed_requests_of_http2_are_counted() {
    const PROTOCOL_ERROR: u32 = 1;
    let site = serve(whole);
    let mut raw = Raw::new(&site);
    let mut stream = 1;
    for (name, value) in
        [("te", "gzip"), ("connection", "close"), ("transfer-encoding", "chunked"), (":path", "/again")]
    {
        let head = [fields("/"), literal(name, value)].concat();
        raw.send(frame(HEADERS, END_STREAM | END_HEADERS, stream, &head));
        let reset = raw.until(RST_STREAM);
        assert_eq!((reset.stream, reset.number(0)), (stream, PROTOCOL_ERROR), "{name}");
        stream += 2;
    }
    let head = [fields("/"), literal("content-length", "10")].concat();
    raw.send([frame(HEADERS, END_HEADERS, stream, &head), frame(DATA, END_STREAM, stream, b"abc")].concat());
    assert_eq!(raw.until(RST_STREAM).number(0), PROTOCOL_ERROR, "fewer bytes than announced");
    eventually(|| site.metric(Slot::MalformedHttp2) == 5);
    // One that is well formed is answered, and one that its client takes back is not counted.
    raw.send(get(stream + 2, "/"));
    assert_eq!(raw.until(HEADERS).stream, stream + 2);
    let open = frame(HEADERS, END_HEADERS, stream + 4, &fields("/"));
    raw.send([open, frame(RST_STREAM, 0, stream + 4, &8u32.to_be_bytes()), get(stream + 6, "/")].concat());
    assert_eq!(raw.until(HEADERS).stream, stream + 6);
    assert_eq!((site.metric(Slot::MalformedHttp2), site.metric(Slot::Http2Errors)), (5, 0));
    // What h2 ends the whole connection for is counted as that.
    for (at, (name, value)) in [(":unknown", "x"), ("x-a", "b\r\nc: d"), ("X-Upper", "x")].into_iter().enumerate() {
        let mut raw = Raw::new(&site);
        raw.send(frame(HEADERS, END_STREAM | END_HEADERS, 1, &[fields("/"), literal(name, value)].concat()));
        let counted = || site.metric(Slot::MalformedHttp2) + site.metric(Slot::Http2Errors);
        eventually(|| counted() == 6 + at as u64);
    }
}

#[test]
fn malformed_requests_are_counted_by_kind() {
    for (kind, bytes) in [
        (0, "BROKEN\r\n\r\n"),
        (0, "GET  / HTTP/1.1\r\nhost: a\r\n\r\n"),
        (0, "GET * HTTP/1.1\r\nhost: a\r\n\r\n"),
        (0, "GET http://u@a/ HTTP/1.1\r\nhost: a\r\n\r\n"),
        (1, "GET / HTTP/1.7\r\nhost: a\r\n\r\n"),
        (1, "GET / HTTP/2.0\r\nhost: a\r\n\r\n"),
        (2, "GET / HTTP/1.1\r\nhost: a\r\nx y\r\n\r\n"),
        (3, "GET / HTTP/1.1\r\n\r\n"),
        (3, "GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n"),
        (3, "GET / HTTP/1.1\r\nhost: a/b\r\n\r\n"),
        (4, "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: x\r\n\r\n"),
        (4, "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n"),
        (4, "POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"),
        (4, "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, chunked\r\n\r\n"),
        (5, "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n"),
        (6, "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nx\r\n"),
    ] {
        let site = serve(whole);
        let mut client = site.connect();
        let answer = client.send(bytes).answer();
        let status = match kind {
            5 => 501,
            1 if bytes.contains("/2.0") => 505,
            _ => 400,
        };
        assert_eq!((answer.status(), answer.closes()), (status, true), "{bytes:?}");
        assert!(answer.header("date").is_some(), "{bytes:?}");
        client.is_closed();
        site.until_open(0);
        let counted: Vec<u64> = KINDS.into_iter().map(|slot| site.metric(slot)).collect();
        let expected: Vec<u64> = (0..KINDS.len()).map(|at| u64::from(at == kind)).collect();
        assert_eq!(counted, expected, "{bytes:?}");
        assert_eq!((site.metric(Slot::Failures), site.metric(Slot::ClientAborts)), (0, 0), "{bytes:?}");
    }
}

#[test]
fn client_that_breaks_off_is_counted_once_and_no_failure() {
    let site = serve(|mut asked: Asked| async move {
        match asked.target() {
            "/echo" => reply(200, "").body(asked.body),
            "/read" => match read(&mut asked.body).await {
                Ok(_) => reply(200, "read"),
                Err(error) => reply(500, error),
            },
            "/stream" => {
                let chunk = Bytes::from(vec![b'x'; 1 << 16]);
                reply(200, "").body(stream(None, move |_| Poll::Ready(Step::Data(chunk.clone()))))
            }
            _ => reply(200, "fine"),
        }
    });
    let mut aborts = 0;
    for (target, has_answer) in [("/echo", true), ("/read", false), ("/fine", true)] {
        let mut client = site.connect();
        client.send(format!("POST {target} HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nabc"));
        if has_answer {
            client.head();
        } else {
            eventually(|| site.metric(Slot::InFlight) == 1);
        }
        drop(client);
        site.until_open(0);
        aborts += 1;
        assert_eq!(site.metric(Slot::ClientAborts), aborts, "{target}");
    }
    let mut client = site.connect();
    client.send("GET /stream HTTP/1.1\r\nhost: a\r\n\r\n");
    client.head();
    drop(client);
    site.until_open(0);
    assert_eq!(site.metric(Slot::ClientAborts), aborts + 1, "a response that is not taken");
    // Between requests a client may leave.
    let mut client = site.connect();
    client.get("/");
    drop(client);
    site.until_open(0);
    assert_eq!((site.metric(Slot::ClientAborts), site.metric(Slot::Failures)), (aborts + 1, 0));
    assert_eq!(KINDS.into_iter().map(|slot| site.metric(slot)).sum::<u64>(), 0);
}
