//! The limits, each beside what stays within it: what the client gets, what is counted, and that others are served.

mod bodies;

use std::io::ErrorKind;

use baton_plugin_api::abi::{FRAME_DATA, FRAME_ERROR};
use bytes::Bytes;

use super::fake::{Step, frame, read, stream};
use super::handover::hand_over;
use super::*;
use crate::config::Size;

const SHORT: Duration = Duration::from_millis(400);
/// A limit may be found late, by a tick and what the machine takes.
const LATE: Duration = Duration::from_secs(2);

fn short() -> Limit {
    Limit::After(SHORT)
}

/// No limit of time, but those that a test sets.
fn patient() -> config::Limits {
    let never = Limit::Never;
    config::Limits {
        head_timeout: never,
        idle_timeout: never,
        body_timeout: never,
        body_min_rate: 0,
        write_timeout: never,
        request_timeout: never,
        response_min_rate: 0,
        ..config::Limits::default()
    }
}

fn limited<F>(limits: config::Limits, handler: impl Fn(Asked) -> F + Send + Sync + 'static) -> Site
where
    F: Future<Output = Reply> + Send + 'static,
{
    site_with(&limits, vec![("/", fake::plugin(handler))])
}

async fn count(mut asked: Asked) -> Reply {
    match read(&mut asked.body).await {
        Ok((data, _)) => reply(200, data.len().to_string()),
        Err(error) => reply(400, error),
    }
}

/// Runs `wait`, which must take at least `least` from `start` on, and little more.
#[track_caller]
fn takes<T>(start: Instant, least: Duration, wait: impl FnOnce() -> T) -> T {
    takes_within(start, least, least + LATE, wait)
}

#[track_caller]
fn takes_within<T>(start: Instant, least: Duration, most: Duration, wait: impl FnOnce() -> T) -> T {
    let done = wait();
    let time = start.elapsed();
    assert!(time >= least && time < most, "it took {time:?}, not {least:?} to {most:?}");
    done
}

#[track_caller]
fn is_refused(answer: &Answer, status: u16) {
    assert_eq!((answer.status(), answer.closes()), (status, true), "{answer:?}");
}

#[track_caller]
fn is_reset(client: &mut Client) {
    match client.rest() {
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        Ok(bytes) => panic!("it ended well, after {} bytes", bytes.len()),
    }
}

// ---- heads ----

#[test]
fn a_head_that_drips_ends_with_408_when_its_time_is_up_counted_from_the_accept() {
    let site = limited(config::Limits { head_timeout: short(), ..patient() }, mirror);
    let start = Instant::now();
    let mut client = site.connect();
    std::thread::sleep(SHORT / 2);
    for byte in b"GET / HTTP" {
        client.send([*byte]);
        std::thread::sleep(Duration::from_millis(10));
    }
    is_refused(&takes(start, SHORT, || client.answer()), 408);
    client.is_closed();
    assert_eq!(site.metric(Slot::HeadTimeouts), 1);
}

#[test]
fn a_connection_that_never_speaks_is_closed_without_a_word() {
    let site = limited(config::Limits { head_timeout: short(), ..patient() }, mirror);
    let start = Instant::now();
    let mut silent = site.connect();
    let mut used = site.connect();
    assert_eq!(used.get("/a").text(), "/a");
    takes(start, SHORT, || silent.is_closed());
    assert_eq!((site.metric(Slot::HeadTimeouts), site.metric(Slot::IdleTimeouts)), (1, 0));
    std::thread::sleep(SHORT);
    assert_eq!(used.get("/b").text(), "/b", "between requests another limit counts");
}

#[test]
fn blank_lines_do_not_hold_a_connection() {
    let site = limited(config::Limits { head_timeout: short(), ..patient() }, mirror);
    let mut client = site.connect();
    assert_eq!(client.get("/a").text(), "/a");
    let start = Instant::now();
    // It lingers after its answer, since more comes.
    while start.elapsed() < SHORT + config::Drain::default().linger + LATE && client.stream.write_all(b"\r\n").is_ok() {
        std::thread::sleep(Duration::from_millis(20));
        if site.server.connections.open() == 0 {
            return;
        }
    }
    panic!("it goes on");
}

#[test]
fn a_head_that_never_ends_gains_nothing_by_handovers() {
    let time = SHORT * 4;
    let limits = || config::Limits { head_timeout: Limit::After(time), ..patient() };
    let sites: Vec<Site> = (0..5).map(|_| limited(limits(), mirror)).collect();
    let start = Instant::now();
    let (mut fresh, mut used) = (sites[0].connect(), sites[0].connect());
    assert_eq!(used.get("/a").text(), "/a");
    for client in [&mut fresh, &mut used] {
        client.send("GET /x HTTP/1.1\r\nx:");
    }
    for pair in sites.windows(2) {
        std::thread::sleep(time / 6);
        fresh.send("y");
        used.send("y");
        hand_over(&pair[0], &pair[1]);
        pair[0].drained();
    }
    // Begun anew at the last handover, or at any, it would be later.
    let most = start.elapsed() + time - Duration::from_millis(100);
    for client in [&mut fresh, &mut used] {
        is_refused(&takes_within(start, time, most, || client.answer()), 408);
    }
    assert_eq!(sites[4].metric(Slot::HeadTimeouts), 2);
}

#[test]
fn a_head_too_long_or_with_too_many_fields_is_a_431() {
    let site = limited(config::Limits { head_size: Size(8192), head_fields: 20, ..patient() }, mirror);
    let head = |fields: usize, len: usize| {
        let fields: String = (1..fields).map(|n| format!("x-{n}: y\r\n")).collect();
        let rest = len.saturating_sub("GET / HTTP/1.0\r\na: \r\n\r\n".len() + fields.len());
        format!("GET / HTTP/1.0\r\na: {}\r\n{fields}\r\n", "z".repeat(rest))
    };
    for (fields, len) in [(20, 1000), (1, 8192)] {
        assert_eq!(site.connect().send(head(fields, len)).answer().status(), 200, "{fields} {len}");
    }
    for (fields, len) in [(21, 1000), (1, 8193), (1, 200_000)] {
        let mut client = site.connect();
        let refused = client.send(head(fields, len)).answer();
        is_refused(&refused, 431);
        client.is_closed();
    }
    eventually(|| site.metric(Slot::HeadTooLarge) == 3);
}

// ---- idle ----

#[test]
fn an_idle_connection_is_closed_after_its_time_and_one_in_use_is_not() {
    let site = limited(config::Limits { idle_timeout: short(), ..patient() }, mirror);
    let (mut idle, mut used) = (site.connect(), site.connect());
    let mut fresh = site.connect();
    idle.get("/");
    let start = Instant::now();
    let using = std::thread::spawn(move || {
        while start.elapsed() < SHORT * 4 {
            assert_eq!(used.get("/a").text(), "/a");
            std::thread::sleep(SHORT / 8);
        }
    });
    takes(start, SHORT, || idle.is_closed());
    using.join().unwrap();
    assert_eq!(site.metric(Slot::IdleTimeouts), 1);
    assert_eq!(fresh.get("/b").text(), "/b", "a new one is not idle");
}

#[test]
fn a_handler_that_takes_its_time_is_not_idle() {
    let limits = config::Limits { idle_timeout: short(), body_timeout: short(), write_timeout: short(), ..patient() };
    let site = limited(limits, |mut asked: Asked| async move {
        // A part of the body has been read; the rest lies there, unread.
        let first = frame(&mut asked.body).await;
        tokio::time::sleep(SHORT * 3).await;
        let rest = if first.0 == FRAME_DATA { read(&mut asked.body).await.unwrap().0.len() } else { 0 };
        reply(200, (first.1.len() + rest).to_string())
    });
    let mut client = site.connect();
    assert_eq!(client.get("/").text(), "0");
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 500000\r\n\r\n").send(vec![b'x'; 500_000]);
    assert_eq!(client.answer().text(), "500000");
}

#[test]
fn idle_time_goes_along_with_a_handover() {
    let limits = || config::Limits { idle_timeout: Limit::After(SHORT * 4), ..patient() };
    let sites: Vec<Site> = (0..4).map(|_| limited(limits(), mirror)).collect();
    let mut client = sites[0].connect();
    client.get("/a");
    let start = Instant::now();
    for pair in sites.windows(2) {
        std::thread::sleep(SHORT);
        hand_over(&pair[0], &pair[1]);
        pair[0].drained();
    }
    // Begun anew at the last handover it would be later.
    let most = start.elapsed() + SHORT * 4 - Duration::from_millis(100);
    takes_within(start, SHORT * 4, most, || client.is_closed());
    assert_eq!(sites[3].metric(Slot::IdleTimeouts), 1);
}

// ---- responses ----

pub fn endless(_: Asked) -> std::future::Ready<Reply> {
    let chunk = Bytes::from(vec![b'x'; 65536]);
    std::future::ready(reply(200, "").body(stream(None, move |_| std::task::Poll::Ready(Step::Data(chunk.clone())))))
}

#[test]
fn a_response_that_nobody_takes_is_cut_and_one_taken_slowly_is_not() {
    let site = limited(config::Limits { write_timeout: short(), idle_timeout: short(), ..patient() }, endless);
    let (mut stuck, mut slow) = (site.connect(), site.connect());
    for client in [&mut stuck, &mut slow] {
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    }
    let reading = std::thread::spawn(move || {
        let mut room = vec![0; 300_000];
        for _ in 0..20 {
            std::thread::sleep(SHORT / 4);
            slow.stream.read_exact(&mut room).unwrap();
        }
        drop(slow);
    });
    let start = Instant::now();
    eventually(|| site.metric(Slot::WriteTimeouts) == 1);
    let time = start.elapsed();
    assert!(time >= SHORT && time < SHORT + LATE, "{time:?}");
    is_reset(&mut stuck);
    reading.join().unwrap();
    eventually(|| site.server.connections.open() == 0);
    assert_eq!(site.metric(Slot::WriteTimeouts), 1);
}

#[test]
fn a_request_that_takes_too_long_is_a_503_and_a_reset_once_its_answer_began() {
    let site = limited(config::Limits { request_timeout: short(), ..patient() }, |asked: Asked| async move {
        match asked.target() {
            "/never" => std::future::pending().await,
            "/part" => reply(200, "").body(stream(None, |_| std::task::Poll::Pending)),
            _ => reply(200, "quick"),
        }
    });
    let (mut never, mut part, mut quick) = (site.connect(), site.connect(), site.connect());
    assert_eq!(never.get("/").text(), "quick");
    let start = Instant::now();
    never.send("GET /never HTTP/1.1\r\nhost: a\r\n\r\n");
    part.send("GET /part HTTP/1.1\r\nhost: a\r\n\r\n");
    let answer = takes(start, SHORT, || never.answer());
    is_refused(&answer, 503);
    assert_eq!(answer.header("retry-after"), Some("1"));
    part.head();
    takes(start, SHORT, || is_reset(&mut part));
    assert_eq!(quick.get("/").text(), "quick");
    assert_eq!(site.metric(Slot::RequestTimeouts), 2);
}

// ---- how many ----

#[test]
fn beyond_the_limit_connections_wait_until_one_ends() {
    let site = limited(config::Limits { connections: 3, ..patient() }, mirror);
    let mut clients: Vec<Client> = (0..3).map(|_| site.connect()).collect();
    assert!(clients.iter_mut().all(|client| client.get("/a").text() == "/a"));
    let mut waits = site.connect();
    waits.send("GET /b HTTP/1.1\r\nhost: a\r\n\r\n").is_silent(SHORT);
    assert_eq!(site.server.connections.open(), 3);
    assert_eq!(clients[0].get("/c").text(), "/c", "the others are served");
    clients.pop();
    assert_eq!(waits.answer().text(), "/b");
    assert!(site.metric(Slot::AcceptPauses) > 0);
}

#[test]
fn a_worker_that_is_full_still_stops() {
    let mut site = limited(config::Limits { connections: 1, ..patient() }, mirror);
    let mut client = site.connect();
    client.get("/a");
    let _waits = site.connect();
    site.retire(NEVER);
    assert!(client.get("/b").closes());
    client.is_closed();
    site.drained();
}

#[test]
fn a_peer_with_enough_connections_gets_no_more() {
    let site = limited(config::Limits { connections_per_peer: 2, ..patient() }, mirror);
    let mut clients: Vec<Client> = (0..2).map(|_| site.connect()).collect();
    assert!(clients.iter_mut().all(|client| client.get("/a").text() == "/a"));
    site.connect().is_closed();
    assert_eq!(site.metric(Slot::PeerRefusals), 1);
    clients.pop();
    eventually(|| site.server.connections.open() == 1);
    assert_eq!(site.connect().get("/b").text(), "/b");
}

/// A client whose kernel takes little ahead of it.
pub fn narrow(site: &Site) -> Client {
    let At::Port(addr) = &site.at else { panic!("on a port, for this test") };
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&(*addr).into()).unwrap();
    let stream: TcpStream = socket.into();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    Client { stream, buffer: Vec::new() }
}

#[test]
fn a_response_taken_below_its_rate_is_cut_and_one_above_is_not() {
    let window = Duration::from_secs(1);
    let limits = |response_min_rate| config::Limits { response_min_rate, response_window: window, ..patient() };
    // Each client takes some 20 KB a second.
    for (rate, is_cut) in [(1 << 20, true), (1 << 10, false)] {
        let site = limited(limits(rate), endless);
        let mut client = narrow(&site);
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        let start = Instant::now();
        let mut room = [0; 2048];
        let mut ended = None;
        while ended.is_none() && start.elapsed() < window * 6 {
            ended = client.stream.read_exact(&mut room).err();
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!((ended.is_some(), site.metric(Slot::ResponsesTooSlow)), (is_cut, u64::from(is_cut)), "{ended:?}");
        assert!(start.elapsed() >= window);
    }
}

#[test]
fn a_response_of_which_nothing_is_taken_has_the_limit_of_writing() {
    let window = Duration::from_secs(1);
    let limits = config::Limits { response_min_rate: 1 << 20, response_window: window, ..patient() };
    let site = limited(limits, endless);
    let mut client = narrow(&site);
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    std::thread::sleep(window * 3);
    client.until(b"200 OK");
    assert_eq!((site.server.connections.open(), site.metric(Slot::ResponsesTooSlow)), (1, 0));
}

// ---- what a connection may serve ----

#[test]
fn the_last_of_so_many_requests_announces_the_close() {
    let site = limited(config::Limits { requests_per_connection: 3, ..patient() }, mirror);
    let mut client = site.connect();
    assert_eq!([0, 1, 2].map(|_| client.get("/").closes()), [false, false, true]);
    client.is_closed();
    // Requests that were sent ahead are all answered.
    let mut client = site.connect();
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n".repeat(7));
    let closes: Vec<bool> = (0..7).map(|_| client.answer().closes()).collect();
    assert_eq!(closes, [false, false, false, false, false, false, true]);
    client.is_closed();
}

#[test]
fn a_connection_that_is_old_announces_the_close_at_its_next_response() {
    let site = limited(config::Limits { keepalive_max_age: short(), ..patient() }, mirror);
    let start = Instant::now();
    let mut client = site.connect();
    while !client.get("/").closes() {
        assert!(start.elapsed() < SHORT + LATE, "it goes on");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(start.elapsed() >= SHORT);
    client.is_closed();
}

#[test]
fn requests_are_counted_anew_where_a_connection_moves_to() {
    let limits = || config::Limits { requests_per_connection: 3, ..patient() };
    let (old, new) = (limited(limits(), mirror), limited(limits(), mirror));
    let mut client = old.connect();
    (0..2).for_each(|_| assert!(!client.get("/").closes()));
    hand_over(&old, &new);
    eventually(|| new.server.connections.open() == 1);
    assert_eq!([0, 1, 2].map(|_| client.get("/").closes()), [false, false, true]);
    client.is_closed();
}

#[test]
fn a_head_as_large_as_allowed_fits_into_the_buffer() {
    let site = limited(config::Limits { head_size: Size(1 << 20), ..patient() }, mirror);
    let mut client = site.connect();
    client.send(format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "x".repeat(900_000)));
    assert_eq!(client.answer().status(), 200);
}

// ---- the kernel's part ----

/// Whether the kernel's timer of the server's socket for this client is that of keepalive (proc(5), /proc/net/tcp).
fn has_keepalive(client: &Client) -> bool {
    let (own, peer) = (client.stream.local_addr().unwrap(), client.stream.peer_addr().unwrap());
    let port = |field: &str| u16::from_str_radix(field.rsplit(':').next().unwrap(), 16).unwrap();
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut rows = rows.filter(|row| port(row[1]) == peer.port() && port(row[2]) == own.port());
    rows.next().expect("the server's socket").get(5).is_some_and(|timer| timer.starts_with("02:"))
}

#[test]
fn connections_queued_before_the_options_have_keepalive_too() {
    for (limit, expected) in [(Limit::After(Duration::from_secs(60)), true), (Limit::Never, false)] {
        let mut site = limited(config::Limits { tcp_keepalive: limit, ..patient() }, mirror);
        site.stop_accepting();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        site.at = At::Port(listener.local_addr().unwrap());
        let mut client = site.connect();
        site.accept(listener.into());
        client.get("/");
        assert_eq!(has_keepalive(&client), expected);
    }
}
