//! What each connection gets when the worker retires.

use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use tokio::sync::Notify;

use super::fake::{Step, read, stream};
use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn keepalive(ms: u64) -> Deadlines {
    Deadlines { keepalive_ms: Some(ms), ..NEVER }
}

/// Answers when told, `/fast` at once.
fn gated() -> (Site, Arc<Notify>) {
    let gate = Arc::new(Notify::new());
    let handlers = gate.clone();
    let site = serve(move |asked: Asked| {
        let gate = handlers.clone();
        async move {
            if asked.target() != "/fast" {
                gate.notified().await;
            }
            reply(200, asked.target().to_owned())
        }
    });
    (site, gate)
}

#[test]
fn what_was_queued_at_pause_is_served() {
    let mut site = serve(mirror);
    let mut clients: Vec<Client> = (0..50).map(|_| site.connect()).collect();
    site.stop_accepting();
    assert_eq!(site.server.connections.open(), 50);
    for client in &mut clients {
        assert!(!client.get("/").closes(), "a pause may be taken back");
    }
    eventually(|| site.metric(Slot::Requests) == 50);
}

#[test]
fn a_request_in_flight_is_answered_and_told_of_the_close() {
    let (mut site, gate) = gated();
    let mut client = site.connect();
    client.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually(|| site.metric(Slot::InFlight) == 1);
    site.retire(NEVER);
    gate.notify_one();
    let answer = client.answer();
    assert!(answer.closes() && answer.text() == "/slow", "{answer:?}");
    client.is_closed();
    let report = site.drained();
    assert_eq!((report.finished, report.lost, report.lingered), (1, 0, 0));
}

#[test]
fn idle_and_fresh_connections_are_kept_and_closed_at_their_time() {
    let mut site = serve(mirror);
    let mut idle = site.connect();
    idle.get("/");
    let mut fresh = site.connect();
    site.until_open(2);
    let start = Instant::now();
    site.retire(keepalive(300));
    idle.is_silent(Duration::from_millis(100));
    fresh.is_closed();
    idle.is_closed();
    assert!(start.elapsed() >= Duration::from_millis(300));
    let report = site.drained();
    assert_eq!((report.lingered, report.finished, report.lost), (2, 0, 0));
}

#[test]
fn a_request_on_a_kept_connection_is_answered_with_close() {
    let mut site = serve(mirror);
    let (mut idle, mut fresh) = (site.connect(), site.connect());
    idle.get("/");
    site.until_open(2);
    site.retire(keepalive(10_000));
    for client in [&mut idle, &mut fresh] {
        let answer = client.get("/last");
        assert!(answer.closes() && answer.text() == "/last");
        client.is_closed();
    }
    assert_eq!(site.drained().finished, 2);
}

#[test]
fn requests_at_the_edge_are_answered_or_counted() {
    let mut site = serve(mirror);
    let mut clients: Vec<Client> = (0..100).map(|_| site.connect()).collect();
    for client in &mut clients {
        client.get("/");
    }
    site.until_open(100);
    site.retire(keepalive(50));
    let start = Instant::now();
    let (mut answered, mut unanswered) = (0, 0);
    for (at, client) in clients.iter_mut().enumerate() {
        // Spread over the moment at which the time is up.
        while start.elapsed() < Duration::from_micros(at as u64 * 1000) {
            std::hint::spin_loop();
        }
        if client.stream.write_all(b"POST /edge HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n").is_err() {
            unanswered += 1;
            continue;
        }
        match client.rest() {
            Ok(bytes) if bytes.starts_with(b"HTTP/1.1 200 OK") => answered += 1,
            _ => unanswered += 1,
        }
    }
    let report = site.drained();
    assert!(answered > 0);
    assert_eq!(report.finished, answered);
    assert_eq!(report.lingered, unanswered);
    assert!(report.lost <= unanswered, "{report:?}");
}

#[test]
fn a_half_received_head_is_waited_for_and_answered() {
    let mut site = serve(mirror);
    let mut used = site.connect();
    used.get("/");
    used.send("GET /used HTTP/1.1\r\nho");
    let mut fresh = site.connect();
    fresh.send("GET /fresh HTTP/1.1\r\nho");
    eventually(|| site.metric(Slot::Idle) == 0);
    site.retire(keepalive(0));
    used.is_silent(Duration::from_millis(200));
    for (client, target) in [(&mut used, "/used"), (&mut fresh, "/fresh")] {
        let answer = client.send("st: a\r\n\r\n").answer();
        assert!(answer.closes() && answer.text() == target);
        client.is_closed();
    }
    assert_eq!(site.drained().finished, 2);
}

#[test]
fn a_half_head_behind_a_request_is_found_at_the_end_of_its_time() {
    let mut site = serve(mirror);
    let mut client = site.connect();
    // In one piece, chunked: nothing tells from outside that three bytes of a next head are in hyper's buffer.
    client.send("POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\nGET");
    assert_eq!(client.answer().text(), "/a");
    site.retire(keepalive(50));
    client.is_silent(Duration::from_millis(300));
    let answer = client.send(" /b HTTP/1.1\r\nhost: a\r\n\r\n").answer();
    assert!(answer.closes() && answer.text() == "/b");
    assert_eq!(site.drained().finished, 1);
}

#[test]
fn pipelined_requests_are_all_answered_before_the_close_is_told() {
    let (mut site, gate) = gated();
    let mut client = site.connect();
    client
        .send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n".to_owned() + &"GET /fast HTTP/1.1\r\nhost: a\r\n\r\n".repeat(20));
    eventually(|| site.metric(Slot::InFlight) == 1);
    site.retire(keepalive(200));
    gate.notify_one();
    let answers: Vec<Answer> = (0..21).map(|_| client.answer()).collect();
    assert!(answers.iter().all(|answer| !answer.closes()), "the client was sending more");
    // Once there was a moment of quiet, the next one is the last. A request on the heels of the last answer may leave none.
    assert!((0..10_000).any(|_| client.get("/fast").closes()));
    client.is_closed();
    let report = site.drained();
    assert_eq!((report.finished, report.unanswered_pipelined, report.lost), (1, 0, 0));
}

/// The close is told by the last response, or it is not told by it: whether the next request was on its way by then is known
/// only from how the client went about it before.
fn told_by_the_second_answer(pipelines: bool) -> bool {
    let (mut site, gate) = gated();
    let mut client = site.connect();
    client.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually(|| site.metric(Slot::InFlight) == 1);
    if pipelines {
        // Comes while the first one is answered, not in one piece with it.
        client.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n");
        eventually(|| site.unread() > 0);
    }
    // What came before this has been noticed once it is answered.
    site.connect().get("/fast");
    gate.notify_one();
    assert!(!client.answer().closes());
    if !pipelines {
        eventually(|| site.metric(Slot::Idle) == 1);
        client.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n");
    }
    eventually(|| site.metric(Slot::Requests) == 2 && site.metric(Slot::InFlight) == 1 && site.unread() == 0);
    site.retire(keepalive(5_000));
    gate.notify_one();
    let told = client.answer().closes();
    if !told {
        assert!((0..10_000).any(|_| client.get("/fast").closes()));
    }
    client.is_closed();
    assert_eq!(site.drained().unanswered_pipelined, 0);
    told
}

#[test]
fn a_client_that_pipelined_once_is_told_after_a_quiet_moment_only() {
    assert!(told_by_the_second_answer(false));
    assert!(!told_by_the_second_answer(true));
}

#[test]
fn what_follows_an_announced_close_is_counted_and_does_not_destroy_the_response() {
    let mut site = serve(|_| async { reply(200, vec![b'x'; 500_000]) });
    let mut client = site.connect();
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    // The head is out, and with it the word; the response fills all buffers.
    eventually(|| site.metric(Slot::Requests) == 1 || site.metric(Slot::InFlight) == 1);
    drop(client);
    site.until_open(0);

    let mut client = site.connect();
    site.until_open(1);
    site.retire(keepalive(10_000));
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    let head = client.head();
    assert!(head.contains("connection: close"));
    client.send("GET /late HTTP/1.1\r\nhost: a\r\n\r\n".repeat(100));
    assert_eq!(client.rest().unwrap().len(), 500_000, "all of the response, although more was sent");
    assert_eq!(site.drained().unanswered_pipelined, 1);
}

#[test]
fn a_slow_reader_gets_all_of_it() {
    // More than the kernel takes for a client that does not read.
    const LEN: usize = 24_000_000;
    let mut site = serve(|_| async { reply(200, vec![b'x'; LEN]) });
    let mut client = site.connect();
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually(|| site.metric(Slot::InFlight) == 1);
    site.retire(Deadlines { timeout_ms: Some(1_000), ..keepalive(0) });
    client.head();
    let mut left = LEN;
    while left > 0 {
        left -= client.exactly(1_000_000).len();
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(client);
    let report = site.drained();
    assert_eq!((report.finished + report.lingered, report.cut.total(), report.lost), (1, 0, 0));
}

#[test]
fn a_request_without_progress_is_cut_so_that_the_client_can_tell() {
    let (mut site, _gate) = gated();
    let mut client = site.connect();
    client.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually(|| site.metric(Slot::InFlight) == 1);
    site.retire(Deadlines { timeout_ms: Some(100), ..NEVER });
    assert_eq!(client.rest().unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    let report = site.drained();
    assert_eq!((report.cut.busy, report.cut.head, report.finished), (1, 0, 0));
}

#[test]
fn progress_postpones_the_cut_and_the_last_limit_does_not_wait() {
    let mut site = serve(|_| async {
        let mut ticks = tokio::time::interval(Duration::from_millis(50));
        reply(200, "").body(stream(None, move |cx| ticks.poll_tick(cx).map(|_| Step::Data("tick ".into()))))
    });
    let mut client = site.connect();
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    client.head();
    let start = Instant::now();
    site.retire(Deadlines { timeout_ms: Some(300), max_ms: Some(1_000), ..NEVER });
    assert!(client.rest().is_err());
    assert!(start.elapsed() >= SECOND, "{:?}", start.elapsed());
    assert_eq!(site.drained().cut.busy, 1);
}

#[test]
fn what_moves_below_the_rate_makes_no_progress() {
    // A hundred bytes a second.
    let serve = || {
        serve(|_| async {
            let mut ticks = tokio::time::interval(Duration::from_millis(50));
            reply(200, "").body(stream(None, move |cx| ticks.poll_tick(cx).map(|_| Step::Data("tick ".into()))))
        })
    };
    for (min_rate, goes_on) in [(10, true), (1000, false)] {
        let mut site = serve();
        let mut client = site.connect();
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        client.head();
        let start = Instant::now();
        site.retire(Deadlines { timeout_ms: Some(300), max_ms: Some(3_000), min_rate, ..NEVER });
        assert!(client.rest().is_err());
        assert_eq!(start.elapsed() >= SECOND * 3, goes_on, "{min_rate}: {:?}", start.elapsed());
        assert_eq!(site.drained().cut.busy, 1);
    }
}

#[test]
fn a_stalled_upload_and_a_half_head_are_cut() {
    let mut site = serve(|mut asked: Asked| async move { reply(200, read(&mut asked.body).await.unwrap().0) });
    let mut upload = site.connect();
    upload.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhalf");
    let mut head = site.connect();
    head.send("GET / HT");
    eventually(|| site.metric(Slot::InFlight) == 1 && site.metric(Slot::Connections) == 2);
    site.retire(Deadlines { timeout_ms: Some(100), ..NEVER });
    assert!(upload.rest().is_err());
    assert!(head.rest().is_err());
    let report = site.drained();
    assert_eq!((report.cut.busy, report.cut.head), (1, 1));
}

#[test]
fn zero_cuts_at_once_and_cut_ends_what_never_ends() {
    let (mut site, _gate) = gated();
    let mut client = site.connect();
    client.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n");
    let mut idle = site.connect();
    eventually(|| site.metric(Slot::InFlight) == 1 && site.metric(Slot::Connections) == 2);
    site.retire(NEVER);
    client.is_silent(Duration::from_millis(50));
    site.server.drain.cut();
    site.server.connections.wake_all();
    assert!(client.rest().is_err());
    idle.is_closed();
    let report = site.drained();
    assert_eq!((report.cut.busy, report.lingered), (1, 1));

    let (mut site, _gate) = gated();
    let mut client = site.connect();
    client.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually(|| site.metric(Slot::InFlight) == 1);
    site.retire(Deadlines { max_ms: Some(0), ..NEVER });
    assert!(client.rest().is_err());
    assert_eq!(site.drained().cut.busy, 1);
}

#[test]
fn an_upload_that_moves_is_served_to_its_end() {
    let mut site =
        serve(|mut asked: Asked| async move { reply(200, read(&mut asked.body).await.unwrap().0.len().to_string()) });
    let mut client = site.connect();
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n");
    eventually(|| site.metric(Slot::InFlight) == 1);
    site.retire(Deadlines { timeout_ms: Some(300), ..keepalive(0) });
    for _ in 0..10 {
        client.send([b'x'; 100]);
        std::thread::sleep(Duration::from_millis(50));
    }
    let answer = client.answer();
    assert!(answer.closes() && answer.text() == "1000");
    assert_eq!(site.drained().finished, 1);
}

#[test]
fn an_old_client_gets_all_of_a_response_that_ends_with_the_connection() {
    let gate = Arc::new(Notify::new());
    let handlers = gate.clone();
    let mut site = serve(move |_| {
        let gate = handlers.clone();
        async move {
            gate.notified().await;
            let mut steps = vec![Step::End, Step::Data(Bytes::from(vec![b'x'; 100_000]))];
            reply(200, "").body(stream(None, move |_| Poll::Ready(steps.pop().unwrap_or(Step::End))))
        }
    });
    let mut client = site.connect();
    client.send("GET / HTTP/1.0\r\n\r\n");
    eventually(|| site.metric(Slot::InFlight) == 1);
    site.retire(NEVER);
    gate.notify_one();
    client.head();
    assert_eq!(client.rest().unwrap().len(), 100_000);
    assert_eq!(site.drained().finished, 1);
}

#[test]
fn a_client_of_a_unix_socket_gets_what_others_get() {
    let (site, gate) = gated();
    let mut site = site.over_unix();
    let mut client = site.connect();
    client.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually(|| site.metric(Slot::InFlight) == 1);
    let mut stuck = site.connect();
    stuck.send("GET /stuck HTTP/1.1\r\nhost: a\r\n\r\n");
    let mut idle = site.connect();
    assert_eq!(idle.get("/fast").status(), 200);
    eventually(|| site.metric(Slot::InFlight) == 2 && site.metric(Slot::Connections) == 3);
    site.retire(keepalive(100));
    idle.is_closed();
    gate.notify_one();
    assert!(client.answer().closes());
    client.is_closed();
    site.server.drain.cut();
    site.server.connections.wake_all();
    // Between Unix sockets there is no reset; the answer that is missing tells it.
    stuck.is_closed();
    let report = site.drained();
    assert_eq!((report.finished, report.lingered, report.cut.busy, report.lost), (1, 1, 1, 0));
}

// ---- responses without a length ----

/// Answers `/events` without an end and without a length, and `/file` with a length, as slowly; `/echo` is `/events` while the
/// handler still holds the request's body, and `/quiet` says one thing and nothing more.
pub fn endless() -> Site {
    serve(|asked: Asked| async move {
        let target = asked.target().to_owned();
        let held = (target == "/echo").then_some(asked.body);
        let mut begun = false;
        let length = (target == "/file").then_some(1 << 30);
        let is_quiet = target == "/quiet";
        let body = stream(length, move |cx| {
            let _held = &held;
            if !std::mem::replace(&mut begun, true) {
                return Poll::Ready(Step::Data(Bytes::from_static(b"data: x\n\n")));
            }
            if is_quiet {
                return Poll::Pending;
            }
            let waker = cx.waker().clone();
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(20));
                waker.wake();
            });
            begun = false;
            Poll::Pending
        });
        Reply { status: 200, headers: Vec::new(), body }
    })
}

#[test]
fn a_stream_is_cut_at_its_time_and_a_download_is_not() {
    let mut site = endless();
    let mut clients: Vec<Client> = (0..3).map(|_| site.connect()).collect();
    clients[0].send("GET /events HTTP/1.1\r\nhost: a\r\n\r\n");
    clients[1].send("GET /file HTTP/1.1\r\nhost: a\r\n\r\n");
    clients[2].send("POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n12");
    clients.iter_mut().for_each(|client| drop(client.until(b"data: x")));
    let start = Instant::now();
    site.retire(Deadlines { stream_ms: Some(300), ..NEVER });
    assert_eq!(clients[0].rest().unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    assert!(start.elapsed() >= Duration::from_millis(300));
    // A look of the sweep later, the others go on.
    for client in &mut clients[1..] {
        while start.elapsed() < Duration::from_secs(3) {
            client.until(b"data: x");
        }
        client.until(b"data: x");
    }
    site.server.drain.cut();
    site.server.connections.wake_all();
    let report = site.drained();
    assert_eq!((report.cut.stream, report.cut.busy, report.cut.total()), (1, 2, 3));
}

#[test]
fn without_a_time_for_streams_they_go_on() {
    let mut site = endless();
    let mut client = site.connect();
    client.send("GET /events HTTP/1.1\r\nhost: a\r\n\r\n");
    client.until(b"data: x");
    let start = Instant::now();
    site.retire(NEVER);
    while start.elapsed() < Duration::from_secs(2) {
        client.until(b"data: x");
    }
}

// ---- the end of the server ----

#[test]
fn idle_connections_are_gone_at_their_time_though_no_client_closes() {
    let mut site = serve(mirror);
    let mut client = site.connect();
    client.get("/");
    let start = Instant::now();
    site.retire(Deadlines { linger_ms: Some(100), ..keepalive(300) });
    assert_eq!(site.drained().lingered, 1);
    let time = start.elapsed();
    assert!(time >= Duration::from_millis(400) && time < site.server.limits.linger, "{time:?}");
    client.is_closed();
}
