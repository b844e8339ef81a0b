//! Connections that leave HTTP: who gets the stream, what it carries, and how it ends.

use std::future::poll_fn;
use std::io::IoSlice;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use baton_plugin_api::abi::FfiStream;

use super::fake::{self, Asked, Reply, reply};
use super::*;
use crate::config::Server as ServerConfig;

const ASKING: &str = "GET /x HTTP/1.1\r\nhost: a\r\nconnection: keep-alive, Upgrade\r\nupgrade: raw\r\n\r\n";

fn switching() -> Reply {
    reply(101, "").header("upgrade", "raw")
}

async fn open(mut stream: FfiStream) -> std::io::Result<FfiStream> {
    poll_fn(|cx| stream.poll_open(cx)).await?;
    Ok(stream)
}

async fn read(stream: &mut FfiStream) -> std::io::Result<Vec<u8>> {
    let mut room = Vec::with_capacity(4096);
    let count = poll_fn(|cx| stream.poll_read(cx, room.spare_capacity_mut())).await?;
    Ok(fake::filled(room, count))
}

async fn write(stream: &mut FfiStream, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        let count = poll_fn(|cx| stream.poll_write(cx, &[IoSlice::new(bytes)])).await?;
        bytes = &bytes[count..];
    }
    Ok(())
}

async fn copy(stream: FfiStream) -> std::io::Result<()> {
    let mut stream = open(stream).await?;
    loop {
        let bytes = read(&mut stream).await?;
        if bytes.is_empty() {
            return Ok(());
        }
        write(&mut stream, &bytes).await?;
    }
}

/// Sends back what comes, until the client ends.
async fn echo(asked: Asked) -> Reply {
    match asked.claim() {
        Some(stream) => {
            tokio::spawn(copy(stream));
            switching()
        }
        None => reply(200, "no upgrade"),
    }
}

/// Keeps each stream without a look at it.
fn holder() -> (Site, mpsc::Receiver<FfiStream>) {
    let (sender, streams) = mpsc::channel();
    let site = serve(move |asked: Asked| {
        let sender = sender.clone();
        async move {
            let stream = asked.claim().expect("the request asks");
            tokio::spawn(async move { sender.send(open(stream).await.unwrap()) });
            switching()
        }
    });
    (site, streams)
}

fn switched(site: &Site) -> Client {
    let mut client = site.connect();
    let head = client.send(ASKING).head();
    assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
    assert!(head.contains("connection: upgrade\r\n") && head.contains("upgrade: raw\r\n"), "{head}");
    assert!(!head.contains("content-length") && !head.contains("transfer-encoding"), "{head}");
    client
}

#[test]
fn a_granted_wish_is_a_stream_in_both_directions_until_its_end() {
    let mut site = serve(echo);
    let mut client = switched(&site);
    assert_eq!(client.send("hello").exactly(5), b"hello");
    eventually(|| site.metric(Slot::Upgraded) == 1);
    assert_eq!((site.metric(Slot::Requests), site.metric(Slot::InFlight), site.metric(Slot::Idle)), (1, 0, 0));
    // A request is no request any more.
    let request = "GET / HTTP/1.1\r\n\r\n";
    assert_eq!(client.send(request).exactly(request.len()), request.as_bytes());
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    client.is_closed();
    site.until_open(0);
    site.retire(NEVER);
    assert_eq!(site.drained().upgraded, 0, "it ended before");
    assert_eq!(site.metric(Slot::Upgraded), 0);
}

#[test]
fn what_comes_right_behind_the_head_is_the_streams() {
    let site = serve(echo);
    let mut client = site.connect();
    // More than fits into what hyper reads at once, too.
    for behind in [b"behind".to_vec(), (0..200_000).map(|at| (at % 251) as u8).collect()] {
        let mut reader = Client { stream: client.stream.try_clone().unwrap(), buffer: Vec::new() };
        let sent = [ASKING.as_bytes(), &behind].concat();
        let sender = std::thread::spawn(move || client.send(sent).stream.shutdown(std::net::Shutdown::Write).unwrap());
        assert!(reader.head().starts_with("HTTP/1.1 101"));
        assert_eq!(reader.rest().unwrap(), behind);
        sender.join().unwrap();
        client = site.connect();
    }
}

#[test]
fn a_request_before_it_on_the_same_connection_is_an_ordinary_one() {
    let site = serve(echo);
    let mut client = site.connect();
    assert_eq!(client.get("/").text(), "no upgrade");
    client.send(format!("GET /y HTTP/1.1\r\nhost: a\r\n\r\n{ASKING}"));
    assert_eq!(client.answer().text(), "no upgrade");
    assert!(client.head().starts_with("HTTP/1.1 101"));
    assert_eq!(client.send("x").exactly(1), b"x");
}

#[test]
fn only_a_request_that_asks_can_be_switched() {
    let site = serve(async |asked: Asked| {
        // As one does who never looks at what the client wants.
        if let Some(stream) = asked.claim() {
            tokio::spawn(copy(stream));
        }
        switching()
    });
    for fields in ["", "upgrade: raw\r\n", "connection: upgrade\r\n", "upgrade: h2c\r\nconnection: keep-alive\r\n"] {
        let mut client = site.connect();
        let answer = client.send(format!("GET / HTTP/1.1\r\nhost: a\r\n{fields}\r\n")).answer();
        assert_eq!(answer.status(), 500, "{fields:?}");
        // The connection is as good as before.
        assert_eq!(client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").answer().status(), 500);
    }
    let mut client = site.connect();
    let body = format!("{}content-length: 4\r\n\r\nbody", ASKING.trim_end_matches("\r\n").to_owned() + "\r\n");
    assert_eq!(client.send(body).answer().status(), 500, "a request with a body");
    let mut client = site.connect();
    assert_eq!(client.send(ASKING.replace("HTTP/1.1", "HTTP/1.0")).answer().status(), 500);
    assert_eq!(site.metric(Slot::Upgraded), 0);
}

#[test]
fn a_101_of_a_handler_that_does_not_take_the_stream_is_a_500() {
    let site = serve(async |asked: Asked| {
        if asked.target() == "/x" {
            drop(asked.claim());
        }
        switching()
    });
    let mut client = site.connect();
    assert_eq!(client.send(ASKING).answer().status(), 500, "it let go of it");
    assert_eq!(client.send(ASKING.replace("/x", "/y")).answer().status(), 500, "it never had it");
}

#[test]
fn another_answer_leaves_the_connection_to_http_and_fails_the_claim() {
    let (sender, failed) = mpsc::channel();
    let site = serve(move |asked: Asked| {
        let stream = asked.claim();
        assert!(asked.claim().is_none(), "once");
        let sender = sender.clone();
        tokio::spawn(async move {
            if let Some(stream) = stream {
                sender.send(open(stream).await.is_err()).unwrap();
            }
        });
        async { reply(403, "no") }
    });
    let mut client = site.connect();
    assert_eq!(client.send(ASKING).answer().status(), 403);
    assert!(failed.recv_timeout(PATIENCE).unwrap());
    assert_eq!(client.get("/").status(), 403);
}

#[test]
fn client_that_resets_before_the_answer_fails_the_claim() {
    let (sender, failed) = mpsc::channel();
    let site = serve(move |asked: Asked| {
        let stream = asked.claim().expect("the request asks");
        let sender = sender.clone();
        tokio::spawn(async move { sender.send(open(stream).await.is_err()) });
        std::future::pending()
    });
    let mut client = site.connect();
    client.send(ASKING);
    eventually(|| site.metric(Slot::InFlight) == 1);
    client.reset();
    assert!(failed.recv_timeout(PATIENCE).unwrap());
    site.until_open(0);
}

#[test]
fn a_head_that_outlives_its_response_claims_nothing() {
    let (sender, kept) = mpsc::channel();
    let site = serve(move |asked: Asked| {
        sender.send(asked).unwrap();
        async { reply(200, "ok") }
    });
    let mut client = site.connect();
    assert_eq!(client.send(ASKING).answer().status(), 200);
    let asked = kept.recv_timeout(PATIENCE).unwrap();
    // The answer is written; the end of its wish is a moment later.
    eventually(|| asked.claim().is_none());
}

#[test]
fn connect_is_a_501_unless_a_handler_takes_it() {
    let connect = "CONNECT b.example:443 HTTP/1.1\r\nhost: b.example:443\r\n\r\n";
    let site = serve(async |_: Asked| reply(200, "hello"));
    let mut client = site.connect();
    assert_eq!(client.send(connect).answer().status(), 501);
    assert_eq!(client.get("/").text(), "hello", "the connection is as good as before");
    let with_body = connect.replace("\r\n\r\n", "\r\ncontent-length: 1\r\n\r\nx");
    assert_eq!(client.send(with_body).answer().status(), 501);

    let none = site_of(&[], vec![]);
    assert_eq!(none.connect().send(connect).answer().status(), 501);

    let tunnel = serve(async |asked: Asked| {
        assert_eq!(asked.fact(baton_plugin_api::abi::FACT_ORIGINAL_TARGET).unwrap(), b"b.example:443");
        let status = if asked.header("x-no").is_some() { 403 } else { 200 };
        tokio::spawn(copy(asked.claim().expect("a CONNECT")));
        reply(status, "lost where it is 200")
    });
    let mut client = tunnel.connect();
    let refused = client.send(connect.replace("\r\n\r\n", "\r\nx-no: 1\r\n\r\n")).answer();
    assert_eq!(refused.status(), 403, "who takes it may say no");
    let head = client.send(connect).head();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && !head.contains("content-length"), "{head}");
    assert_eq!(client.send("x").exactly(1), b"x");
}

#[test]
fn health_and_routes_do_not_take_a_connect_for_theirs() {
    let server = ServerConfig { health: Some("/".into()), ..ServerConfig::new("web", &[]) };
    let site = site_of(&[server], vec![]);
    let connect = "CONNECT b.example:443 HTTP/1.1\r\nhost: b.example:443\r\n\r\n";
    assert_eq!(site.connect().send(connect).answer().status(), 501);
}

#[test]
fn a_slow_reader_makes_the_plugin_wait() {
    let written = Arc::new(AtomicU64::new(0));
    let site = serve({
        let written = written.clone();
        move |asked: Asked| {
            let stream = asked.claim().expect("the request asks");
            let written = written.clone();
            tokio::spawn(async move {
                let mut stream = open(stream).await.unwrap();
                while write(&mut stream, &[b'x'; 16384]).await.is_ok() {
                    written.fetch_add(16384, SeqCst);
                }
            });
            async { switching() }
        }
    });
    let mut client = switched(&site);
    // Until the kernel's buffers are full.
    let mut before = u64::MAX;
    while before != written.load(SeqCst) || before == 0 {
        before = written.load(SeqCst);
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(before < 64 << 20, "{before} bytes went nowhere");
    client.exactly(8 << 20);
    eventually(|| written.load(SeqCst) > before);
}

#[test]
fn no_limit_of_requests_holds_for_it() {
    let short = Limit::After(Duration::from_millis(100));
    let limits = config::Limits {
        head_timeout: short,
        idle_timeout: short,
        body_timeout: short,
        write_timeout: short,
        request_timeout: short,
        ..config::Limits::default()
    };
    let site = site_with(&limits, vec![("/", fake::plugin(echo))]);
    let mut client = switched(&site);
    client.is_silent(Duration::from_millis(500));
    assert_eq!(client.send("x").exactly(1), b"x");
}

// ---- the drain ----

#[test]
fn at_retire_it_stays_until_its_plugin_ends_it() {
    let (mut site, streams) = holder();
    let mut client = switched(&site);
    let mut stream = streams.recv_timeout(PATIENCE).unwrap();
    site.retire(Deadlines { keepalive_ms: Some(0), timeout_ms: Some(0), ..NEVER });
    client.is_silent(Duration::from_millis(200));
    site.runtime.block_on(write(&mut stream, b"goodbye")).unwrap();
    // Bytes that nobody reads must not turn the close into a reset that takes the goodbye along.
    client.send("unread");
    drop(stream);
    assert_eq!(client.rest().unwrap(), b"goodbye");
    drop(client);
    let report = site.drained();
    assert_eq!((report.upgraded, report.cut.total(), report.finished, report.lost), (1, 0, 0, 0), "{report:?}");
}

#[test]
fn at_its_deadline_it_is_cut_and_both_sides_can_tell() {
    let (mut site, streams) = holder();
    let mut client = switched(&site);
    let mut stream = streams.recv_timeout(PATIENCE).unwrap();
    let reading = site.runtime.spawn(async move { read(&mut stream).await });
    site.retire(Deadlines { upgraded_ms: Some(100), ..NEVER });
    let error = client.rest().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let reading = site.runtime.block_on(async { tokio::time::timeout(PATIENCE, reading).await });
    let error = reading.unwrap().unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionAborted, "the plugin that waits is woken");
    let report = site.drained();
    assert_eq!((report.upgraded, report.cut.upgraded, report.cut.total()), (0, 1, 1), "{report:?}");
}

#[test]
fn a_writer_that_waits_is_woken_by_the_cut() {
    let (mut site, streams) = holder();
    let _client = switched(&site);
    let mut stream = streams.recv_timeout(PATIENCE).unwrap();
    let writing = site.runtime.spawn(async move { while write(&mut stream, &[0; 65536]).await.is_ok() {} });
    site.retire(Deadlines { upgraded_ms: Some(300), ..NEVER });
    assert_eq!(site.drained().cut.upgraded, 1);
    site.runtime.block_on(async { tokio::time::timeout(PATIENCE, writing).await }).unwrap().unwrap();
}

#[test]
fn the_end_of_all_and_a_cut_hold_for_it_too() {
    let (mut site, _streams) = holder();
    let _client = switched(&site);
    site.retire(Deadlines { max_ms: Some(50), ..NEVER });
    assert_eq!(site.drained().cut.upgraded, 1);

    let (mut site, _streams) = holder();
    let _client = switched(&site);
    site.retire(NEVER);
    site.server.drain.cut();
    site.server.connections.wake_all();
    assert_eq!(site.drained().cut.upgraded, 1);
}

#[test]
fn a_wish_granted_while_the_worker_retires_announces_no_close() {
    let (sender, go) = mpsc::channel();
    let sender = std::sync::Mutex::new(sender);
    let mut site = serve(move |asked: Asked| {
        let (told, wait) = tokio::sync::oneshot::channel::<()>();
        sender.lock().unwrap().send(told).unwrap();
        async move {
            wait.await.unwrap();
            echo(asked).await
        }
    });
    let mut client = site.connect();
    client.send(ASKING);
    let told = go.recv_timeout(PATIENCE).unwrap();
    site.retire(Deadlines { upgraded_ms: None, ..NEVER });
    told.send(()).unwrap();
    let head = client.head();
    assert!(head.starts_with("HTTP/1.1 101") && head.contains("connection: upgrade\r\n"), "{head}");
    assert!(!head.contains("close"), "{head}");
    assert_eq!(client.send("x").exactly(1), b"x");
}

#[test]
fn a_response_to_an_upgrade_with_a_streamed_body_leaves_that_out() {
    let site = serve(async |asked: Asked| {
        tokio::spawn(copy(asked.claim().expect("the request asks")));
        let body = fake::stream(None, |_| std::task::Poll::Ready(fake::Step::Data("lost".into())));
        switching().body(body)
    });
    let mut client = switched(&site);
    assert_eq!(client.send("x").exactly(1), b"x");
}

// ---- the limit of idleness ----

#[test]
fn it_is_closed_once_nothing_has_moved_for_as_long_as_may_be() {
    let limit = Duration::from_millis(800);
    let limits = config::Limits { upgraded_idle: Limit::After(limit), ..limits() };
    let site = site_with(&limits, vec![("/", fake::plugin(echo))]);
    let mut client = switched(&site);
    let start = Instant::now();
    // Bytes in either direction keep it open.
    while start.elapsed() < limit * 3 {
        client.send("x");
        assert_eq!(client.exactly(1), b"x");
        std::thread::sleep(limit / 8);
    }
    let quiet = Instant::now();
    client.is_closed();
    let time = quiet.elapsed();
    assert!(time >= limit / 2 && time < limit + Duration::from_secs(3), "{time:?}");
    assert_eq!(site.metric(Slot::UpgradedTimeouts), 1);
    eventually(|| site.server.connections.open() == 0);
}

#[test]
fn bytes_in_one_direction_keep_an_upgraded_connection() {
    let limit = Duration::from_millis(800);
    let limits = config::Limits { upgraded_idle: Limit::After(limit), ..limits() };
    let one_way = move |asked: Asked| async move {
        let (stream, talks) = (asked.claim().expect("the request asks"), asked.target() == "/talks");
        tokio::spawn(async move {
            let mut stream = open(stream).await?;
            loop {
                if talks {
                    write(&mut stream, b"x").await?;
                    // The pace of a peer that is slow, and within the limit.
                    tokio::time::sleep(limit / 8).await;
                } else if read(&mut stream).await?.is_empty() {
                    return std::io::Result::Ok(());
                }
            }
        });
        switching()
    };
    let site = site_with(&limits, vec![("/", fake::plugin(one_way))]);
    let mut listens = switched(&site);
    let mut talks = site.connect();
    assert!(talks.send(ASKING.replace("/x", "/talks")).head().starts_with("HTTP/1.1 101"));
    let start = Instant::now();
    while start.elapsed() < limit * 3 {
        listens.send("x");
        talks.exactly(1);
        // As slow in the other direction.
        std::thread::sleep(limit / 8);
    }
    assert_eq!((site.metric(Slot::UpgradedTimeouts), site.server.connections.open()), (0, 2));
}

#[test]
fn without_a_limit_it_is_open_however_long_nothing_moves() {
    let (site, _streams) = holder();
    let mut client = switched(&site);
    client.is_silent(Duration::from_secs(2));
    assert_eq!(site.metric(Slot::UpgradedTimeouts), 0);
}
