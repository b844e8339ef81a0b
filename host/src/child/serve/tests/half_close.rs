//! Clients that close their sending side and still read, and those that are gone: what each gets, in clear, over HTTP/2 and
//! through a drain or a handover. Over TLS see `tls`.

use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use bytes::Bytes;
use tokio::sync::Notify;

use super::fake::{Step, stream};
use super::handover::hand_over;
use super::*;

/// How requests that never end by themselves have ended.
#[derive(Clone, Default)]
struct Fate {
    began: Arc<AtomicUsize>,
    dropped: Arc<AtomicUsize>,
    notified: Arc<AtomicUsize>,
    gate: Arc<Notify>,
}

struct Running(Fate);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.dropped.fetch_add(1, Ordering::SeqCst);
    }
}

impl Fate {
    /// Waits at the gate, beside a task that waits for the client's close (none for `/unaware`); then answers: `/stream` in two
    /// parts, the second of which waits for the gate again. The request's body is held and not read.
    fn plugin(&self) -> &'static Plugin {
        let fate = self.clone();
        fake::plugin(move |asked: Asked| {
            let running = Running(fate.clone());
            if asked.target() != "/unaware" {
                let (closed, notified) = (asked.client_closed(), fate.notified.clone());
                tokio::spawn(async move {
                    closed.await;
                    notified.fetch_add(1, Ordering::SeqCst);
                });
            }
            running.0.began.fetch_add(1, Ordering::SeqCst);
            async move {
                let gate = running.0.gate.clone();
                if asked.target() != "/stream" {
                    gate.notified().await;
                    return reply(200, asked.target().to_owned());
                }
                let mut second = Box::pin(async move { gate.notified().await });
                let mut parts = 0;
                reply(200, "").body(stream(None, move |cx| {
                    let _running = &running;
                    parts += 1;
                    match parts {
                        1 => Poll::Ready(Step::Data("first".into())),
                        2 => match second.as_mut().poll(cx) {
                            Poll::Ready(()) => Poll::Ready(Step::Data("second".into())),
                            Poll::Pending => {
                                parts -= 1;
                                Poll::Pending
                            }
                        },
                        _ => Poll::Ready(Step::End),
                    }
                }))
            }
        })
    }

    fn count(counter: &AtomicUsize) -> usize {
        counter.load(Ordering::SeqCst)
    }

    fn began(&self, count: usize) {
        eventually(|| Fate::count(&self.began) == count);
    }
}

fn fate() -> (Site, Fate) {
    let fate = Fate::default();
    (site(vec![("/", fate.plugin())]), fate)
}

fn aborting() -> (Site, Fate) {
    let fate = Fate::default();
    let server = config::Server { abort_on_close: true, ..config::Server::new("web", &[]) };
    (site_of(&[server], vec![("/", fate.plugin())]), fate)
}

impl Client {
    fn half_close(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }
}

const REQUEST: &str = "GET /slow HTTP/1.1\r\nhost: a\r\n\r\n";
const STREAM: &str = "GET /stream HTTP/1.1\r\nhost: a\r\n\r\n";

#[test]
fn half_closed_client_gets_the_whole_response() {
    for over_unix in [false, true] {
        let (mut site, fate) = fate();
        if over_unix {
            site = site.over_unix();
        }
        let mut client = site.connect();
        client.send(REQUEST);
        fate.began(1);
        client.half_close();
        eventually(|| Fate::count(&fate.notified) == 1);
        assert_eq!(Fate::count(&fate.dropped), 0, "unix {over_unix}");
        fate.gate.notify_one();
        assert_eq!(client.answer().text(), "/slow", "unix {over_unix}");
        client.is_closed();
        site.until_open(0);
    }
}

#[test]
fn half_close_together_with_the_request_is_no_abort() {
    let (site, fate) = fate();
    fate.gate.notify_one();
    let mut client = site.connect();
    client.send(REQUEST).half_close();
    assert_eq!(client.answer().text(), "/slow");
    client.is_closed();
}

#[test]
fn half_closed_client_gets_the_whole_stream() {
    let (site, fate) = fate();
    let mut client = site.connect();
    client.send(STREAM).until(b"first");
    client.half_close();
    eventually(|| Fate::count(&fate.notified) == 1);
    fate.gate.notify_one();
    assert!(client.rest().unwrap().ends_with(b"second\r\n0\r\n\r\n"));
}

#[test]
fn requests_sent_before_a_half_close_are_all_answered() {
    let (site, fate) = fate();
    let mut client = site.connect();
    client.send(REQUEST.repeat(3));
    client.half_close();
    for count in 1..=3 {
        fate.began(count);
        fate.gate.notify_one();
        assert_eq!(client.answer().text(), "/slow");
    }
    client.is_closed();
}

#[test]
fn reset_drops_the_handler_before_and_after_a_half_close() {
    for (request, half_close) in [(REQUEST, false), (REQUEST, true), (STREAM, false), (STREAM, true)] {
        let (site, fate) = fate();
        let mut client = site.connect();
        client.send(request);
        fate.began(1);
        if half_close {
            client.half_close();
            eventually(|| Fate::count(&fate.notified) == 1);
        }
        client.reset();
        eventually(|| Fate::count(&fate.dropped) == 1);
        eventually(|| Fate::count(&fate.notified) == 1);
        site.until_open(0);
        assert_eq!(site.metric(Slot::InFlight), 0);
    }
}

// ---- where bytes lie unread, and hide what comes behind them ----

/// What a client has sent when it closes, to the handler at `target`: never all of it is read.
fn unread(target: &str) -> [(&'static str, String); 7] {
    let post = |fields: &str, body: &str| format!("POST {target} HTTP/1.1\r\nhost: a\r\n{fields}\r\n\r\n{body}");
    let get = format!("GET {target} HTTP/1.1\r\nhost: a\r\n\r\n");
    [
        ("body", post("content-length: 4", "body")),
        ("part of a body", post("content-length: 10", "body")),
        // With what hyper buffers it fits the receive window, behind which no FIN would come.
        ("more of a body than the buffer", post("content-length: 1000000", &"x".repeat(100_000))),
        ("chunked body", post("transfer-encoding: chunked", "4\r\nbody\r\n0\r\n\r\n")),
        ("part of a chunked body", post("transfer-encoding: chunked", "4\r\nbody\r\n")),
        ("request behind", get.repeat(2)),
        ("body and a request behind", post("content-length: 4", "body") + &get),
    ]
}

#[test]
fn half_close_behind_unread_bytes_is_seen_and_drops_nothing() {
    for over_unix in [false, true] {
        for (what, bytes) in unread("/slow") {
            let (mut site, fate) = fate();
            if over_unix {
                site = site.over_unix();
            }
            let mut client = site.connect();
            client.send(bytes);
            fate.began(1);
            client.half_close();
            eventually(|| Fate::count(&fate.notified) == 1);
            assert_eq!(Fate::count(&fate.dropped), 0, "{what}, unix {over_unix}");
            fate.gate.notify_one();
            assert_eq!(client.answer().text(), "/slow", "{what}, unix {over_unix}");
        }
    }
}

#[test]
fn half_close_behind_a_request_that_came_later_is_seen() {
    let (site, fate) = fate();
    let mut client = site.connect();
    client.send(REQUEST);
    fate.began(1);
    client.send(REQUEST).half_close();
    eventually(|| Fate::count(&fate.notified) == 1);
    for count in 1..=2 {
        fate.began(count);
        fate.gate.notify_one();
        assert_eq!(client.answer().text(), "/slow");
    }
    client.is_closed();
    assert_eq!(site.metric(Slot::ClientAborts), 0);
}

#[test]
fn reset_behind_unread_bytes_drops_the_handler() {
    // A handler that does not wait for the close is found by the sweep.
    for target in ["/slow", "/unaware"] {
        for half_close in [false, true] {
            let (site, fate) = fate();
            for (count, (what, bytes)) in (1..).zip(unread(target)) {
                let mut client = site.connect();
                client.send(bytes);
                fate.began(count);
                if half_close {
                    client.half_close();
                }
                client.reset();
                eventually(|| Fate::count(&fate.dropped) == count);
                site.until_open(0);
                let aborts = site.metric(Slot::ClientAborts);
                assert_eq!(aborts, count as u64, "{what} to {target}, half-closed {half_close}");
            }
            assert_eq!(site.metric(Slot::InFlight), 0);
        }
    }
}

#[test]
fn closed_unix_socket_behind_unread_bytes_drops_the_handler() {
    let (site, fate) = fate();
    let site = site.over_unix();
    for (count, (_, bytes)) in (1..).zip(unread("/unaware")) {
        let mut client = site.connect();
        client.send(bytes);
        fate.began(count);
        drop(client);
        eventually(|| Fate::count(&fate.dropped) == count);
        site.until_open(0);
    }
}

#[test]
fn abort_on_close_holds_behind_unread_bytes() {
    for target in ["/slow", "/unaware"] {
        let (site, fate) = aborting();
        for (count, (what, bytes)) in (1..).zip(unread(target)) {
            let mut client = site.connect();
            client.send(bytes);
            fate.began(count);
            client.half_close();
            eventually(|| Fate::count(&fate.dropped) == count);
            site.until_open(0);
            assert_eq!(site.metric(Slot::AbortedOnClose), count as u64, "{what} to {target}");
        }
    }
}

#[test]
fn closed_unix_socket_drops_the_handler() {
    let (site, fate) = fate();
    let site = site.over_unix();
    let mut client = site.connect();
    client.send(REQUEST);
    fate.began(1);
    drop(client);
    eventually(|| Fate::count(&fate.dropped) == 1);
    site.until_open(0);
}

#[test]
fn abort_on_close_drops_the_handler_and_is_counted() {
    let (site, fate) = aborting();
    let mut client = site.connect();
    client.send(REQUEST);
    fate.began(1);
    client.half_close();
    eventually(|| Fate::count(&fate.dropped) == 1);
    assert!(!matches!(client.rest(), Ok(bytes) if !bytes.is_empty()));
    site.until_open(0);
    assert_eq!((site.metric(Slot::AbortedOnClose), site.metric(Slot::Requests)), (1, 0));
    // A client that closes once it has its response is none of these.
    fate.gate.notify_one();
    let mut client = site.connect();
    assert_eq!(client.get("/").status(), 200);
    drop(client);
    site.until_open(0);
    assert_eq!(site.metric(Slot::AbortedOnClose), 1);
}

#[test]
fn half_closed_client_is_answered_while_the_worker_drains() {
    let (mut site, fate) = fate();
    let (mut slow, mut streaming) = (site.connect(), site.connect());
    slow.send(REQUEST).half_close();
    streaming.send(STREAM).until(b"first");
    streaming.half_close();
    eventually(|| Fate::count(&fate.notified) == 2);
    site.retire(NEVER);
    fate.gate.notify_waiters();
    assert_eq!(slow.answer().text(), "/slow");
    assert!(streaming.rest().unwrap().ends_with(b"second\r\n0\r\n\r\n"));
    assert_eq!(site.drained().finished, 2);
}

#[test]
fn half_closed_client_is_answered_through_a_handover() {
    let ((old, old_fate), (new, new_fate)) = (fate(), fate());
    let mut client = old.connect();
    client.send(REQUEST.repeat(2)).half_close();
    old_fate.began(1);
    hand_over(&old, &new);
    // Which of them answers the second request depends on how much hyper had read.
    new_fate.gate.notify_one();
    old_fate.gate.notify_one();
    assert_eq!(client.answer().text(), "/slow");
    eventually(|| Fate::count(&old_fate.began) + Fate::count(&new_fate.began) == 2);
    old_fate.gate.notify_one();
    assert_eq!(client.answer().text(), "/slow");
    client.is_closed();
    old.drained();
    new.until_open(0);
}

#[test]
fn connection_moves_after_a_half_closed_wait() {
    // The wait for a reset is over before the socket leaves.
    let ((old, old_fate), (new, _)) = (fate(), fate());
    let mut client = old.connect();
    client.send(REQUEST).half_close();
    eventually(|| Fate::count(&old_fate.notified) == 1);
    hand_over(&old, &new);
    old_fate.gate.notify_one();
    assert_eq!(client.answer().text(), "/slow");
    client.is_closed();
    old.drained();
    new.until_open(0);
}

#[test]
fn response_that_ends_with_the_connection_is_whole_only_at_a_fin() {
    let broken = Arc::new(AtomicUsize::new(0));
    let handlers = broken.clone();
    let site = serve(move |asked: Asked| {
        let fails = asked.target() == "/broken";
        handlers.fetch_add(usize::from(fails), Ordering::SeqCst);
        async move {
            let mut steps = vec![if fails { Step::Error("no more") } else { Step::End }, Step::Data("part".into())];
            reply(200, "").body(stream(None, move |_| Poll::Ready(steps.pop().unwrap_or(Step::End))))
        }
    });
    let mut client = site.connect();
    client.send("GET /whole HTTP/1.0\r\n\r\n");
    assert!(client.rest().unwrap().ends_with(b"part"));
    client = site.connect();
    client.send("GET /broken HTTP/1.0\r\n\r\n");
    assert_eq!(client.rest().unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    site.until_open(0);
    assert_eq!(site.metric(Slot::BrokenResponses), 1);
}

#[test]
fn stream_shorter_or_longer_than_its_length_breaks_off_and_is_counted() {
    let site = serve(|asked: Asked| async move {
        let parts = if asked.target() == "/short" { 1 } else { 3 };
        let mut steps = vec![Step::End];
        steps.extend((0..parts).map(|_| Step::Data(Bytes::from_static(b"part"))));
        let body = stream(None, move |_| Poll::Ready(steps.pop().unwrap_or(Step::End)));
        reply(200, "").header("content-length", "6").body(body)
    });
    for (count, target) in [(1, "/short"), (2, "/long")] {
        let mut client = site.connect();
        client.send(format!("GET {target} HTTP/1.1\r\nhost: a\r\n\r\n"));
        assert_eq!(client.rest().unwrap_err().kind(), std::io::ErrorKind::ConnectionReset, "{target}");
        site.until_open(0);
        assert_eq!(site.metric(Slot::BrokenResponses), count);
    }
}
