//! Clients in large numbers that cost the server more than they pay: it stays below a stated size, and others are served.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use baton_tests::server::{Server, Setup};
use baton_tests::{http2, process, wait};
use rustix::net::sockopt;
use rustix::net::{AddressFamily, SocketType};

const CLIENTS: usize = 2000;
/// Slowest answer that another client may get meanwhile, on a machine that does much else.
const SLOWEST: Duration = Duration::from_secs(10);
/// What a client may cost in the worker, in KiB, and what all of them may beside that. docs/LIMITS.md states it.
const MEMORY: (u64, u64) = (192, 32 * 1024);

/// One descriptor here and one in the server for each.
fn count() -> usize {
    CLIENTS.min(process::raise_descriptors() as usize * 2 / 3)
}

/// A connection whose kernel takes little ahead, that has sent `bytes`.
fn connect(addr: SocketAddr, bytes: &[u8]) -> TcpStream {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).expect("failed to make a socket");
    sockopt::set_socket_recv_buffer_size(&socket, 4096).expect("failed to set the receive buffer");
    rustix::net::connect(&socket, &addr).expect("failed to connect");
    let mut stream = TcpStream::from(socket);
    stream.write_all(bytes).expect("failed to send");
    stream.set_nonblocking(true).expect("failed to make it non-blocking");
    stream
}

/// Serves others until `done`; asserts that they are served in time and that the worker stays below its size.
fn others_are_served(server: &Server, count: usize, before: u64, mut done: impl FnMut() -> bool) {
    let worker = server.worker();
    let mut good = server.connect();
    let (mut slowest, mut most, mut served) = (Duration::ZERO, 0, 0);
    while !done() {
        let start = Instant::now();
        assert_eq!(good.request("GET", "/").expect("another client was cut off").status, 200);
        assert_eq!(server.get("/").status, 200, "a new client");
        slowest = slowest.max(start.elapsed());
        most = most.max(process::memory(worker).expect("the worker runs").rss);
        served += 1;
        wait::pass(Duration::from_millis(5));
    }
    assert!(served >= 3, "only {served} were served meanwhile");
    assert!(slowest < SLOWEST, "an answer took {slowest:?}");
    let (each, all) = MEMORY;
    let grown = most.saturating_sub(before);
    println!("{count} clients cost {grown} KiB; slowest answer {slowest:?} of {served}");
    assert!(grown < all + each * count as u64, "{count} clients cost {grown} KiB");
    assert_eq!((server.worker(), server.status().crashes), (worker, 0));
}

/// The size of the worker once it has served, in KiB.
fn size(server: &Server) -> u64 {
    assert_eq!(server.get("/").status, 200);
    process::memory(server.worker()).expect("the worker runs").rss
}

#[test]
fn two_thousand_slow_readers_are_cut_while_others_are_served() {
    let count = count();
    let server = Setup::probe("v1").set("limits.response_window", "4s").start();
    let (addr, before) = (server.addr(), size(&server));
    let request = b"GET /pattern?seed=1&bytes=100000000&chunk=65536 HTTP/1.1\r\nhost: a\r\n\r\n";
    let reading = std::thread::spawn(move || {
        let mut readers: Vec<Option<TcpStream>> = (0..count).map(|_| Some(connect(addr, request))).collect();
        let end = Instant::now() + wait::LONG * 2;
        while readers.iter().any(Option::is_some) {
            assert!(Instant::now() < end, "some go on for ever");
            for reader in &mut readers {
                // A drip: it takes something at every turn, and less than its rate.
                let ended = match reader.as_mut().map(|stream| stream.read(&mut [0; 128])) {
                    Some(Err(error)) => error.kind() != io::ErrorKind::WouldBlock,
                    Some(Ok(read)) => read == 0,
                    None => false,
                };
                if ended {
                    *reader = None;
                }
            }
            wait::pass(Duration::from_millis(500));
        }
    });
    others_are_served(&server, count, before, || reading.is_finished());
    reading.join().expect("the readers failed");
    let status = server
        .wait_for("them to be gone", |status| status.serving().is_some_and(|serving| serving.load.connections <= 1));
    let hits = status.serving().expect("it serves").load.limits;
    assert_eq!(hits.responses_too_slow, count as u64, "{hits:?}");
}

#[test]
fn two_thousand_http2_clients_that_reset_are_ended_while_others_are_served() {
    let count = count();
    let server = Setup::probe("v1").start();
    let (addr, before) = (server.addr(), size(&server));
    let all = http2::END_STREAM | http2::END_HEADERS;
    let turn = |stream: u32| {
        let request = http2::frame(http2::HEADERS, all, stream, &http2::fields("/sleep?ms=100"));
        [request, http2::frame(http2::RST_STREAM, 0, stream, &8u32.to_be_bytes())].concat()
    };
    let turns: Vec<u8> = (0..100).flat_map(|at| turn(2 * at + 1)).collect();
    let bytes = [http2::PREFACE, &http2::frame(http2::SETTINGS, 0, 0, &[]), &turns].concat();
    let resetting = std::thread::spawn(move || {
        let mut clients: Vec<Option<TcpStream>> = (0..count).map(|_| Some(connect(addr, &bytes))).collect();
        let end = Instant::now() + wait::LONG * 2;
        while clients.iter().any(Option::is_some) {
            assert!(Instant::now() < end, "some go on for ever");
            for client in &mut clients {
                let ended = match client.as_mut().map(|stream| stream.read(&mut [0; 4096])) {
                    Some(Err(error)) => error.kind() != io::ErrorKind::WouldBlock,
                    Some(Ok(read)) => read == 0,
                    None => false,
                };
                if ended {
                    *client = None;
                }
            }
            wait::pass(Duration::from_millis(20));
        }
    });
    others_are_served(&server, count, before, || resetting.is_finished());
    resetting.join().expect("the clients failed");
    let status = server
        .wait_for("them to be gone", |status| status.serving().is_some_and(|serving| serving.load.connections <= 1));
    assert_eq!(status.serving().expect("it serves").load.limits.http2_errors, count as u64);
}
