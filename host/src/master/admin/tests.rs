//! The surface over real sockets, against a loop that is made up.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::*;
use crate::master::handle::{Desk, OpOptions, Readiness, Request};
use crate::report::{Cause, OpId, OpResult, Report, Verb};
use routes::tests::{refused, status, switched};

/// A loop that switches, or refuses when told to allow nothing; it remembers what it was asked.
fn fake_loop() -> (Handle, std::sync::mpsc::Receiver<(Verb, Cause, OpOptions)>) {
    let (handle, Desk { mut requests, readiness }) = Handle::new();
    readiness.send_replace(Readiness::Ready);
    let (seen, asked) = std::sync::mpsc::channel();
    tokio::spawn(async move {
        let _readiness = readiness;
        while let Some(request) = requests.recv().await {
            match request {
                Request::Operate { verb, cause, options, reply } => {
                    let report = if options.allow_empty { switched(verb, &cause) } else { refused(verb, &cause) };
                    seen.send((verb, cause, options)).unwrap();
                    reply.send(report).ok();
                }
                Request::Status { reply } => drop(reply.send(status())),
                Request::Operation { id, reply } => {
                    drop(reply.send((id == OpId(12)).then(|| switched(Verb::Reload, &Cause::Start))));
                }
            }
        }
    });
    (handle, asked)
}

fn dirs(root: &std::path::Path) -> Dirs {
    std::fs::create_dir_all(root.join("run")).unwrap();
    Dirs { runtime: root.join("run"), state: root.join("state") }
}

fn anywhere() -> config::Admin {
    config::Admin { listen: "127.0.0.1:0".into(), ..config::Admin::default() }
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> io::Result<String> {
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

fn tcp_of(admin: &Admin) -> SocketAddr {
    admin.surface.tcp.as_ref().unwrap().address
}

#[tokio::test]
async fn the_socket_needs_no_token_and_names_its_peer() {
    let dir = tempfile::tempdir().unwrap();
    let dirs = dirs(dir.path());
    let (handle, asked) = fake_loop();
    let options = AdminOptions { dirs: &dirs, name: "x", config: &anywhere(), asked: true };
    let admin = start(options, handle).unwrap();
    let stream = UnixStream::connect(dirs.socket()).await.unwrap();
    let request = "POST /debug/admin/reload HTTP/1.1\r\nhost: baton\r\nconnection: close\r\ncontent-length: 21\r\n\r\n\
                   {\"allow_empty\":true }";
    let answer = exchange(stream, request).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("\"result\":\"switched\""), "{answer}");
    let (verb, cause, options) = asked.recv().unwrap();
    assert_eq!((verb, options.allow_empty), (Verb::Reload, true));
    let peer = format!("uid {} pid {}", nix::unistd::geteuid(), std::process::id());
    assert_eq!(cause, Cause::Admin { peer });
    admin.close().await;
    assert!(!dirs.socket().exists());
}

#[tokio::test]
async fn tcp_needs_the_token() {
    let dir = tempfile::tempdir().unwrap();
    let dirs = dirs(dir.path());
    let (handle, asked) = fake_loop();
    let admin = start(AdminOptions { dirs: &dirs, name: "x", config: &anywhere(), asked: true }, handle).unwrap();
    let address = tcp_of(&admin);
    let send =
        |request: String| async move { exchange(TcpStream::connect(address).await.unwrap(), &request).await.unwrap() };
    let head = format!("POST /debug/admin/reload HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n");
    let answer = send(format!("{head}\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    assert!(answer.contains("www-authenticate: Bearer"), "{answer}");
    assert!(asked.try_recv().is_err(), "nothing reached the loop");
    let link = admin.link().unwrap();
    let token = link.split_once("#token=").unwrap().1;
    let answer = send(format!("{head}authorization: Bearer {token}\r\n\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 409 "), "{answer}");
    assert!(matches!(asked.recv().unwrap().1, Cause::Admin { peer } if peer.starts_with("127.0.0.1:")));
}

#[tokio::test]
async fn signed_request_gets_a_signed_response() {
    let dir = tempfile::tempdir().unwrap();
    let dirs = dirs(dir.path());
    let (handle, _asked) = fake_loop();
    let admin = start(AdminOptions { dirs: &dirs, name: "x", config: &anywhere(), asked: true }, handle).unwrap();
    let (host, policy) = (tcp_of(&admin).to_string(), &admin.surface.tcp.as_ref().unwrap().policy);
    let (token, challenge) = (policy.tokens.admin(), policy.challenge());
    let mac = signature::tests::request_mac(&token, "GET", "/debug/admin/status", &host, &challenge);
    let request = |authorization: &str| {
        format!(
            "GET /debug/admin/status HTTP/1.1\r\nhost: {host}\r\nauthorization: {authorization}\r\nconnection: close\r\n\r\n"
        )
    };
    let signed = request(&format!("Baton {host} {challenge} {mac}"));
    let answer = exchange(TcpStream::connect(tcp_of(&admin)).await.unwrap(), &signed).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("\r\nbaton-proof: "), "{answer}");
    // Where the token itself was sent, nothing is left to prove.
    let plain = request(&format!("Bearer {}", token.expose()));
    let answer = exchange(TcpStream::connect(tcp_of(&admin)).await.unwrap(), &plain).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && !answer.contains("baton-proof"), "{answer}");
}

#[tokio::test]
async fn a_guess_waits_and_nobody_else_does() {
    let dir = tempfile::tempdir().unwrap();
    let dirs = dirs(dir.path());
    let (handle, _asked) = fake_loop();
    let admin = start(AdminOptions { dirs: &dirs, name: "x", config: &anywhere(), asked: true }, handle).unwrap();
    let address = tcp_of(&admin);
    let send = |path: &str, token: &str| {
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n"
        );
        async move {
            let before = tokio::time::Instant::now();
            let answer = exchange(TcpStream::connect(address).await.unwrap(), &request).await.unwrap();
            (answer, before.elapsed())
        }
    };
    let guess = tokio::spawn(send("/debug/admin/status", "0000"));
    let (answer, _) = send("/livez", "").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let (answer, took) = guess.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    assert!(took >= Duration::from_secs(1), "{took:?}");
}

#[tokio::test]
async fn a_head_that_does_not_come_ends_the_connection() {
    let dir = tempfile::tempdir().unwrap();
    let dirs = dirs(dir.path());
    let (handle, _asked) = fake_loop();
    let admin = start(AdminOptions { dirs: &dirs, name: "x", config: &anywhere(), asked: true }, handle).unwrap();
    let slow = TcpStream::connect(tcp_of(&admin)).await.unwrap();
    let before = std::time::Instant::now();
    let answer = exchange(slow, "GET /livez HTTP/1.1\r\nhost:").await;
    assert!(answer.is_err() || !answer.unwrap().contains("200"));
    assert!(before.elapsed() >= Duration::from_secs(4));
}

const PROBE: &str = "GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
/// A probe that takes longer has failed.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

#[tokio::test]
async fn slow_and_idle_connections_do_not_keep_a_probe_out() {
    let dir = tempfile::tempdir().unwrap();
    let dirs = dirs(dir.path());
    let (handle, _asked) = fake_loop();
    let admin = start(AdminOptions { dirs: &dirs, name: "x", config: &anywhere(), asked: true }, handle).unwrap();
    let (mut held, begun) = (Vec::new(), tokio::time::Instant::now());
    for number in 0..200 {
        let mut one = TcpStream::connect(tcp_of(&admin)).await.unwrap();
        match number % 3 {
            0 => {}
            1 => one.write_all(b"GET /livez HTTP/1.1\r\nhost:").await.unwrap(),
            _ => one
                .write_all(b"POST /debug/admin/reload HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n")
                .await
                .unwrap(),
        }
        held.push(one);
    }
    let probe = exchange(TcpStream::connect(tcp_of(&admin)).await.unwrap(), PROBE);
    let answer = tokio::time::timeout(PROBE_TIMEOUT, probe).await.expect("the probe waits").unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    // The oldest had to give way, before their time for a head was up.
    for one in held.iter_mut().take(90).step_by(3) {
        let ended = tokio::time::timeout(PROBE_TIMEOUT, one.read(&mut [0; 16])).await.expect("it is kept");
        assert_eq!(ended.unwrap_or(0), 0);
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "it took too long");
}

#[tokio::test]
async fn callers_that_wait_for_operations_do_not_keep_a_probe_out() {
    let dir = tempfile::tempdir().unwrap();
    let dirs = dirs(dir.path());
    let (handle, Desk { mut requests, readiness }) = Handle::new();
    readiness.send_replace(Readiness::Ready);
    let _admin = start(AdminOptions { dirs: &dirs, name: "x", config: &anywhere(), asked: true }, handle).unwrap();
    let (mut held, mut replies) = (Vec::new(), Vec::new());
    for _ in 0..100 {
        let mut one = UnixStream::connect(dirs.socket()).await.unwrap();
        one.write_all(b"POST /debug/admin/reload HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        held.push(one);
    }
    // As many as may wait; the others are refused.
    while replies.len() < 32 {
        let Some(Request::Operate { verb, cause, reply, .. }) = requests.recv().await else {
            panic!("another request")
        };
        replies.push((verb, cause, reply));
    }
    let probe = exchange(UnixStream::connect(dirs.socket()).await.unwrap(), PROBE);
    let answer = tokio::time::timeout(PROBE_TIMEOUT, probe).await.expect("the probe waits").unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    for (verb, cause, reply) in replies {
        reply.send(switched(verb, &cause)).unwrap();
    }
    let mut switched = 0;
    for mut one in held {
        let mut head = [0; 16];
        // One that had to give way is at its end.
        let count = one.read(&mut head).await.unwrap_or(0);
        switched += usize::from(head[..count].starts_with(b"HTTP/1.1 200 "));
    }
    assert_eq!(switched, 32, "whoever waited for an operation got its report");
}

#[tokio::test]
async fn a_client_that_closes_its_sending_side_gets_its_answer() {
    let dir = tempfile::tempdir().unwrap();
    let dirs = dirs(dir.path());
    let (handle, Desk { mut requests, readiness: _readiness }) = Handle::new();
    let _admin = start(AdminOptions { dirs: &dirs, name: "x", config: &anywhere(), asked: true }, handle).unwrap();
    let mut stream = UnixStream::connect(dirs.socket()).await.unwrap();
    stream
        .write_all(b"POST /debug/admin/reload HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        .await
        .unwrap();
    stream.shutdown().await.unwrap();
    let Some(Request::Operate { verb, cause, reply, .. }) = requests.recv().await else { panic!("another request") };
    // The end of the request has been seen before the answer is there.
    tokio::task::yield_now().await;
    reply.send(switched(verb, &cause)).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("\"result\":\"switched\""), "{answer}");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order_and_a_huge_head_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dirs = dirs(dir.path());
    let (handle, _asked) = fake_loop();
    let admin = start(AdminOptions { dirs: &dirs, name: "x", config: &anywhere(), asked: true }, handle).unwrap();
    let many = "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n".repeat(500) + PROBE;
    let answer = exchange(TcpStream::connect(tcp_of(&admin)).await.unwrap(), &many).await.unwrap();
    assert_eq!(answer.matches("HTTP/1.1 200 OK\r\n").count(), 501);
    let huge = format!("GET /livez HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "x".repeat(1 << 20));
    // It may be closed before all was sent.
    let answer = exchange(TcpStream::connect(tcp_of(&admin)).await.unwrap(), &huge).await.unwrap_or_default();
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
}

#[tokio::test]
async fn the_probe_address_has_room_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let dirs = dirs(dir.path());
    let (handle, _asked) = fake_loop();
    let config = config::Admin { probe_listen: "127.0.0.1:0".into(), ..anywhere() };
    let admin = start(AdminOptions { dirs: &dirs, name: "x", config: &config, asked: true }, handle).unwrap();
    let url = admin.probe_url().unwrap();
    let address: SocketAddr = url.strip_prefix("http://").unwrap().parse().unwrap();
    let answer = exchange(TcpStream::connect(address).await.unwrap(), PROBE).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let link = "GET /debug/admin/link HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let answer = exchange(TcpStream::connect(address).await.unwrap(), link).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 404 ") && !answer.contains("token"), "{answer}");
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(b"GET /livez HTTP/1.1\r\nhost:").await.unwrap();
    let mut rest = Vec::new();
    tokio::time::timeout(Duration::from_secs(30), slow.read_to_end(&mut rest)).await.expect("it waits for ever").ok();
}

#[tokio::test]
async fn a_busy_probe_address_is_refused_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let dirs = dirs(dir.path());
    let taken = StdTcpListener::bind("127.0.0.1:0").unwrap();
    let config = config::Admin { probe_listen: taken.local_addr().unwrap().to_string(), ..anywhere() };
    let (handle, _asked) = fake_loop();
    let error = start(AdminOptions { dirs: &dirs, name: "x", config: &config, asked: false }, handle).unwrap_err();
    assert!(error.to_string().contains("admin.probe_listen"), "{error}");
    assert!(!dirs.socket().exists(), "a refused start leaves nothing behind");
}

#[tokio::test]
async fn the_end_waits_for_answers_and_not_for_idle_connections() {
    let dir = tempfile::tempdir().unwrap();
    let dirs = dirs(dir.path());
    let (handle, Desk { mut requests, readiness: _readiness }) = Handle::new();
    let admin = start(AdminOptions { dirs: &dirs, name: "x", config: &anywhere(), asked: true }, handle).unwrap();
    let mut idle = TcpStream::connect(tcp_of(&admin)).await.unwrap();
    idle.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert_ne!(idle.read(&mut [0; 1024]).await.unwrap(), 0);
    let stream = UnixStream::connect(dirs.socket()).await.unwrap();
    let asking =
        tokio::spawn(exchange(stream, "POST /debug/admin/shutdown HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"));
    let Some(Request::Operate { verb, cause, reply, .. }) = requests.recv().await else { panic!("another request") };
    let before = std::time::Instant::now();
    let closing = tokio::spawn(admin.close());
    reply.send(Report { result: OpResult::ShuttingDown, ..switched(verb, &cause) }).unwrap();
    closing.await.unwrap();
    assert!(before.elapsed() < CLOSE_TIMEOUT, "{:?}", before.elapsed());
    let answer = asking.await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
    assert_eq!(idle.read(&mut [0; 16]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_busy_address_is_refused_only_if_it_was_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let dirs = dirs(dir.path());
    let taken = StdTcpListener::bind("127.0.0.1:0").unwrap();
    let config = config::Admin { listen: taken.local_addr().unwrap().to_string(), ..config::Admin::default() };
    let (handle, _asked) = fake_loop();
    let error =
        start(AdminOptions { dirs: &dirs, name: "x", config: &config, asked: true }, handle.clone()).unwrap_err();
    assert!(error.to_string().contains("--admin"), "{error}");
    assert!(!dirs.socket().exists(), "a refused start leaves nothing behind");
    let admin = start(AdminOptions { dirs: &dirs, name: "x", config: &config, asked: false }, handle).unwrap();
    assert_ne!(tcp_of(&admin), taken.local_addr().unwrap());
}

#[tokio::test]
async fn off_leaves_the_socket_alone() {
    let dir = tempfile::tempdir().unwrap();
    let dirs = dirs(dir.path());
    let (handle, _asked) = fake_loop();
    let off = config::Admin { listen: "off".into(), ..config::Admin::default() };
    let admin = start(AdminOptions { dirs: &dirs, name: "x", config: &off, asked: true }, handle).unwrap();
    assert_eq!((admin.url(), admin.link()), (None, None));
    assert!(!dirs.token().exists());
    let stream = UnixStream::connect(dirs.socket()).await.unwrap();
    let answer = exchange(stream, "GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn a_path_too_long_for_a_socket_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let long = Dirs { runtime: dir.path().join("x".repeat(120)), state: dir.path().into() };
    std::fs::create_dir_all(&long.runtime).unwrap();
    let (handle, _asked) = fake_loop();
    let error = start(AdminOptions { dirs: &long, name: "x", config: &anywhere(), asked: true }, handle).unwrap_err();
    assert!(error.to_string().contains("xxxx"), "{error}");
}
