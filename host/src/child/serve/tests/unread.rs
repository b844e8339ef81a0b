//! Bodies that no handler reads: the next request is answered, or the close is announced; and what is half read never moves to
//! another generation and is never taken for idle.

use std::sync::Arc;

use baton_plugin_api::abi::FfiBody;
use tokio::sync::Notify;

use super::fake::{Step, frame, read, stream};
use super::handover::hand_over;
use super::*;
use crate::child::serve::discard::DISCARD;
use crate::child::serve::io::LINGER_BYTES;
use crate::config::Size;

const SHORT: Duration = Duration::from_millis(400);
/// More than is discarded to keep a connection.
const LARGE: usize = DISCARD as usize + 1;

/// Leaves every body alone, but that of `/read`.
async fn ignore(mut asked: Asked) -> Reply {
    if asked.target() == "/read" {
        return reply(200, read(&mut asked.body).await.unwrap().0);
    }
    reply(200, asked.target().to_owned())
}

fn upload(target: &str, len: usize) -> String {
    format!("POST {target} HTTP/1.1\r\nhost: a\r\ncontent-length: {len}\r\n\r\n")
}

const CHUNKED: &str = "POST /chunked HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";

fn chunked(len: usize) -> String {
    format!("{CHUNKED}{len:x}\r\n{}\r\n0\r\n\r\n", "x".repeat(len))
}

#[test]
fn request_behind_an_unread_body_is_answered() {
    let site = serve(ignore);
    for len in [1, 100, 20_000, 60_000, 200_000, DISCARD as usize] {
        let mut client = site.connect();
        let body = "x".repeat(len);
        client.send(upload("/a", len) + &body + &upload("/read", 3) + "abc" + &upload("/b", len) + &body);
        for text in ["/a", "abc", "/b"] {
            let answer = client.answer();
            assert_eq!((answer.text(), answer.closes()), (text, false), "{len}");
        }
        assert_eq!(client.get("/c").text(), "/c", "{len}");
    }
    // In one write, so that all of it has come: of a body whose length is not known no more is waited for.
    for len in [1, 9000] {
        let mut client = site.connect();
        client.send(chunked(len) + &chunked(len) + "GET /c HTTP/1.1\r\nhost: a\r\n\r\n");
        for text in ["/chunked", "/chunked", "/c"] {
            let answer = client.answer();
            assert_eq!((answer.text(), answer.closes()), (text, false), "{len}");
        }
    }
    eventually(|| site.metric(Slot::Idle) == 0 && site.server.connections.open() == 0);
    assert_eq!(site.metric(Slot::ClientAborts), 0);
}

#[test]
fn request_behind_an_unread_body_that_comes_in_parts_is_answered() {
    let site = serve(ignore);
    let mut client = site.connect();
    client.send(upload("/a", 100_000));
    let answer = client.answer();
    assert_eq!((answer.text(), answer.closes()), ("/a", false));
    // Its body is still to come.
    eventually(|| site.metric(Slot::Idle) == 0);
    for part in 0..10 {
        client.send(vec![b'G'; 10_000]);
        std::thread::sleep(Duration::from_millis(part));
    }
    eventually(|| site.metric(Slot::Idle) == 1);
    assert_eq!(client.get("/b").text(), "/b");
}

#[test]
fn unread_body_that_is_too_large_or_not_there_is_announced_as_close() {
    let site = serve(ignore);
    let mut large = site.connect();
    large.send(upload("/a", LARGE));
    let mut begun = site.connect();
    begun.send(format!("{CHUNKED}3\r\nabc\r\n"));
    let mut endless = site.connect();
    endless.send(format!("{CHUNKED}{LARGE:x}\r\n")).send("x".repeat(LARGE));
    for client in [&mut large, &mut begun, &mut endless] {
        let answer = client.answer();
        assert_eq!((answer.status(), answer.closes()), (200, true));
        client.is_closed();
    }
}

#[test]
fn unread_body_of_a_response_of_the_server_is_discarded() {
    let site = site(vec![("/api", fake::plugin(ignore))]);
    let mut client = site.connect();
    client.send(upload("/nowhere", 5) + "hello" + &upload("/api/read", 3) + "abc");
    assert_eq!(client.answer().status(), 404);
    assert_eq!(client.answer().text(), "abc");
    // What comes later is not in hyper's buffer when the request is answered.
    client.send(upload("/nowhere", 5));
    let answer = client.answer();
    assert_eq!((answer.status(), answer.closes()), (404, false));
    client.send("hello".to_owned() + &upload("/api/read", 3) + "abc");
    assert_eq!(client.answer().text(), "abc");
}

#[test]
fn response_is_not_held_back_by_a_chunked_body_without_end() {
    let site = serve(ignore);
    let mut client = site.connect();
    client.send(CHUNKED);
    let mut writer = client.stream.try_clone().unwrap();
    let sending = std::thread::spawn(move || {
        let part = format!("{:x}\r\n{}\r\n", 16_000, "x".repeat(16_000)).repeat(8);
        let start = Instant::now();
        while start.elapsed() < PATIENCE && writer.write_all(part.as_bytes()).is_ok() {}
        start.elapsed()
    });
    let answer = client.answer();
    assert_eq!((answer.status(), answer.closes()), (200, true));
    drop(client);
    assert!(sending.join().unwrap() < PATIENCE, "all that comes is read before the response");
}

#[test]
fn close_by_the_handler_does_not_wait_for_an_unread_body() {
    let site = serve(|asked: Asked| async move { ignore(asked).await.header("connection", "close") });
    let mut client = site.connect();
    client.send(upload("/a", 50_000)).send("abc");
    assert!(client.answer().closes());
    client.is_closed();
}

#[test]
fn client_that_waits_for_100_continue_hears_of_the_close_instead() {
    let site = serve(ignore);
    let mut client = site.connect();
    client.send("POST /a HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n");
    let answer = client.answer();
    assert_eq!((answer.status(), answer.closes()), (200, true));
    client.is_closed();
    let mut client = site.connect();
    client.send("POST /read HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n");
    assert_eq!(client.head(), "HTTP/1.1 100 Continue\r\n\r\n");
    assert_eq!(client.send("body").answer().text(), "body");
    assert_eq!(client.get("/b").text(), "/b");
}

#[test]
fn client_that_was_told_to_continue_keeps_its_connection() {
    let site = serve(|mut asked: Asked| async move {
        frame(&mut asked.body).await;
        reply(200, asked.target().to_owned())
    });
    let mut client = site.connect();
    client.send("POST /a HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n");
    assert_eq!(client.head(), "HTTP/1.1 100 Continue\r\n\r\n");
    let answer = client.send("bo").answer();
    assert_eq!((answer.text(), answer.closes()), ("/a", false));
    assert_eq!(client.send("dy").get("/b").text(), "/b");
}

/// Keeps the body until its response has begun, then drops it.
fn drops_late() -> (Site, Arc<Notify>) {
    let gate = Arc::new(Notify::new());
    let handlers = gate.clone();
    let limits = config::Limits { body_size: Size::UNLIMITED, ..limits() };
    let handler = move |asked: Asked| {
        let gate = handlers.clone();
        async move {
            let target = asked.target().to_owned();
            let mut body = Some(asked.body);
            let mut wait = Box::pin(async move { gate.notified().await });
            if target != "/late" {
                return reply(200, target);
            }
            reply(200, "").body(stream(None, move |cx| match body.take() {
                Some(kept) => {
                    body = Some(kept);
                    std::task::ready!(wait.as_mut().poll(cx));
                    drop(body.take());
                    std::task::Poll::Ready(Step::Data("late".into()))
                }
                None => std::task::Poll::Ready(Step::End),
            }))
        }
    };
    (site_with(&limits, vec![("/", fake::plugin(handler))]), gate)
}

#[test]
fn body_that_is_dropped_after_the_response_began_is_discarded_whole() {
    let (site, gate) = drops_late();
    let mut client = site.connect();
    client.send(upload("/late", 3_000_000));
    let mut writer = client.stream.try_clone().unwrap();
    let sending = std::thread::spawn(move || {
        writer.write_all(&vec![b'x'; 3_000_000]).unwrap();
        writer.write_all(b"GET /next HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    });
    gate.notify_one();
    let answer = client.answer();
    assert_eq!((answer.text(), answer.closes()), ("late", false), "it could not know");
    assert_eq!(client.answer().text(), "/next");
    sending.join().unwrap();
}

#[test]
fn body_that_was_never_asked_for_ends_its_connection() {
    let (site, gate) = drops_late();
    let mut client = site.connect();
    client.send("POST /late HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n");
    gate.notify_one();
    assert_eq!(client.answer().text(), "late");
    // The body and the next request could not be distinguished.
    client.is_closed();
}

#[test]
fn announced_close_does_not_wait_for_a_body_without_end() {
    let (mut site, gate) = drops_late();
    let mut client = site.connect();
    client.get("/a");
    site.retire(NEVER);
    client.send(upload("/late", 1 << 40));
    let head = client.head();
    assert!(head.contains("connection: close"), "{head}");
    gate.notify_one();
    let mut writer = client.stream.try_clone().unwrap();
    let start = Instant::now();
    let sending = std::thread::spawn(move || {
        let part = vec![b'x'; 1 << 16];
        while start.elapsed() < PATIENCE && writer.write_all(&part).is_ok() {}
    });
    client.rest().ok();
    drop(client);
    sending.join().unwrap();
    assert!(start.elapsed() < PATIENCE, "it is read for ever");
    site.drained();
}

#[test]
fn body_that_is_dropped_early_is_read_while_the_handler_works() {
    let gate = Arc::new(Notify::new());
    let handlers = gate.clone();
    let limits = config::Limits { body_timeout: Limit::After(SHORT), ..limits() };
    let handler = move |asked: Asked| {
        let gate = handlers.clone();
        async move {
            let Asked { head: _head, body } = asked;
            drop::<FfiBody>(body);
            gate.notified().await;
            reply(200, "done")
        }
    };
    let site = site_with(&limits, vec![("/", fake::plugin(handler))]);
    let mut client = site.connect();
    client.send(CHUNKED).send("3\r\nabc\r\n");
    // A body that no handler waits for is not late.
    std::thread::sleep(SHORT * 3);
    client.send("3\r\ndef\r\n0\r\n\r\n");
    eventually(|| site.unread() == 0);
    gate.notify_one();
    let answer = client.answer();
    assert_eq!((answer.text(), answer.closes()), ("done", false));
    assert_eq!(site.metric(Slot::BodyTimeouts), 0);
    client.send(upload("/", 3) + "abc");
    gate.notify_one();
    assert_eq!(client.answer().text(), "done");
}

#[test]
fn discarded_body_that_stalls_is_ended_by_its_limit() {
    let limits = config::Limits { body_timeout: Limit::After(SHORT), ..limits() };
    let site = site_with(&limits, vec![("/", fake::plugin(ignore))]);
    let mut client = site.connect();
    client.send(upload("/a", 10) + "abc");
    assert_eq!(client.answer().text(), "/a");
    let error = client.rest().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(site.metric(Slot::BodyTimeouts), 1);
    site.until_open(0);
}

#[test]
fn discarded_body_counts_for_its_limit_of_size() {
    let (site, gate) = {
        let limits = config::Limits { body_size: Size(500_000), ..limits() };
        let gate = Arc::new(Notify::new());
        let handlers = gate.clone();
        let handler = move |mut asked: Asked| {
            let gate = handlers.clone();
            async move {
                frame(&mut asked.body).await;
                let body = asked.body;
                reply(200, "").body(stream(None, {
                    let (mut body, mut wait) = (Some(body), Box::pin(async move { gate.notified().await }));
                    move |cx| {
                        if body.is_none() {
                            return std::task::Poll::Ready(Step::End);
                        }
                        std::task::ready!(wait.as_mut().poll(cx));
                        body = None;
                        std::task::Poll::Ready(Step::Data("ok".into()))
                    }
                }))
            }
        };
        (site_with(&limits, vec![("/", fake::plugin(handler))]), gate)
    };
    let mut client = site.connect();
    client.send(CHUNKED).send("3\r\nabc\r\n");
    client.head();
    gate.notify_one();
    let mut writer = client.stream.try_clone().unwrap();
    let sending = std::thread::spawn(move || {
        let part = format!("{:x}\r\n{}\r\n", 100_000, "x".repeat(100_000));
        while writer.write_all(part.as_bytes()).is_ok() {}
    });
    client.rest().expect("it ends in good order");
    drop(client);
    sending.join().unwrap();
    eventually(|| site.metric(Slot::BodyTooLarge) == 1);
    site.until_open(0);
}

#[test]
fn large_upload_gets_its_413_though_it_writes_first() {
    let limits = config::Limits { body_size: Size(1 << 20), ..limits() };
    let site = site_with(
        &limits,
        vec![(
            "/",
            fake::plugin(|mut asked: Asked| async move {
                match read(&mut asked.body).await {
                    Ok(_) => reply(200, "read"),
                    Err(error) => reply(500, error),
                }
            }),
        )],
    );
    let len = 16 << 20;
    let body = vec![b'x'; len];
    let mut known = site.connect();
    known.send(upload("/", len)).send(&body);
    let mut unknown = site.connect();
    unknown.send(CHUNKED).send(format!("{len:x}\r\n")).send(&body).send("\r\n0\r\n\r\n");
    for client in [&mut known, &mut unknown] {
        let answer = client.answer();
        assert_eq!((answer.status(), answer.closes()), (413, true));
    }
    assert_eq!(site.metric(Slot::BodyTooLarge), 2);
}

#[test]
fn lingering_close_ends_in_time_though_a_client_never_stops() {
    let drain = config::Drain { linger: SHORT, ..config::Drain::default() };
    let limits = config::Limits { body_size: Size(1000), ..limits() };
    let site = site_in_full(&[], &limits, &drain, vec![("/", fake::plugin(mirror))]);
    let mut client = site.connect();
    let start = Instant::now();
    client.send(upload("/", 1 << 40));
    client.stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let part = vec![b'x'; 1 << 16];
    while client.stream.write_all(&part).is_ok() {
        assert!(start.elapsed() < PATIENCE, "it goes on");
    }
    site.until_open(0);
    assert!(start.elapsed() >= SHORT, "it was to have its time");
}

#[test]
fn lingering_close_reads_no_more_than_its_bound() {
    let drain = config::Drain { linger: Duration::from_secs(3), ..config::Drain::default() };
    let limits = config::Limits { body_size: Size(1000), ..limits() };
    let site = site_in_full(&[], &limits, &drain, vec![("/", fake::plugin(mirror))]);
    let mut client = site.connect();
    client.send(upload("/", 1 << 40));
    let (part, mut sent) = (vec![b'x'; 1 << 16], 0);
    while client.stream.write_all(&part).is_ok() {
        sent += part.len();
        // The kernel has room for some more.
        assert!(sent < LINGER_BYTES * 4, "it is read on");
    }
    assert!(sent >= LINGER_BYTES, "{sent}");
    site.until_open(0);
}

// ---- while the worker changes ----

#[test]
fn connection_moves_only_once_its_unread_body_has_come() {
    let named =
        |name: &'static str| serve(move |asked: Asked| async move { reply(200, format!("{name} {}", asked.target())) });
    let (old, new) = (named("old"), named("new"));
    let mut half = old.connect();
    half.send(upload("/a", 50_000)).send(vec![b'G'; 20_000]);
    assert_eq!(half.answer().text(), "old /a");
    let mut late = old.connect();
    late.send(upload("/b", 50_000));
    assert_eq!(late.answer().text(), "old /b");
    eventually(|| old.unread() == 0);
    hand_over(&old, &new);
    for client in [&mut half, &mut late] {
        client.is_silent(Duration::from_millis(100));
    }
    assert_eq!((old.server.connections.open(), new.server.connections.open()), (2, 0), "a body is half read");
    half.send(vec![b'G'; 30_000]);
    late.send(vec![b'G'; 50_000]).send("GET /c HTTP/1.1\r\nhost: a\r\n\r\n");
    old.drained();
    assert_eq!(half.get("/d").text(), "new /d");
    // Read together with the end of the body, it may still have been answered here.
    let answer = late.answer();
    assert!(["old /c", "new /c"].contains(&answer.text()), "{answer:?}");
    assert_eq!(late.get("/e").text(), "new /e");
    assert_eq!(old.server.handover.moved(), 2);
}

#[test]
fn drain_waits_for_an_unread_body_and_no_longer_than_its_limit() {
    let mut site = serve(ignore);
    let (mut whole, mut stalled) = (site.connect(), site.connect());
    for client in [&mut whole, &mut stalled] {
        client.send(upload("/a", 50_000)).send(vec![b'G'; 20_000]);
        assert!(!client.answer().closes());
    }
    eventually(|| site.unread() == 0);
    site.retire(Deadlines { keepalive_ms: Some(100), timeout_ms: Some(1500), ..NEVER });
    whole.send(vec![b'G'; 30_000]).send("GET /b HTTP/1.1\r\nhost: a\r\n\r\n");
    let answer = whole.answer();
    assert_eq!((answer.text(), answer.closes()), ("/b", true));
    whole.is_closed();
    assert_eq!(stalled.rest().unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    let report = site.drained();
    assert_eq!((report.finished, report.cut.busy, report.lost, report.unanswered_pipelined), (1, 1, 0, 0));
}

#[test]
fn drain_announces_the_close_and_reads_an_unread_body_to_its_end() {
    let gate = Arc::new(Notify::new());
    let handlers = gate.clone();
    let mut site = serve(move |_| {
        let gate = handlers.clone();
        async move {
            gate.notified().await;
            reply(200, "done")
        }
    });
    let mut client = site.connect();
    client.send(upload("/a", 50_000)).send(vec![b'G'; 20_000]);
    eventually(|| site.metric(Slot::InFlight) == 1);
    site.retire(NEVER);
    gate.notify_one();
    let answer = client.answer();
    assert_eq!((answer.text(), answer.closes()), ("done", true));
    client.send(vec![b'G'; 30_000]);
    client.is_closed();
    let report = site.drained();
    assert_eq!((report.finished, report.lost, report.unanswered_pipelined), (1, 0, 0));
}
