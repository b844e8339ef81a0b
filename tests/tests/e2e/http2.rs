//! HTTP/2 on clear connections: as any other request to the plugin; over a reload the old code answers what it was asked and
//! says GOAWAY; and no bytes that a client may send bring the worker down.

use std::process::Command;
use std::time::{Duration, Instant};

use baton_tests::artifacts;
use baton_tests::http2::{self, Client};
use baton_tests::server::{Server, Setup, answered_by};
use baton_tests::stats::Rng;
use baton_tests::status::Drain;
use baton_tests::wait;

use crate::switch_to;

/// Waits until that many requests are in flight in the generation that serves.
#[track_caller]
fn wait_in_flight(server: &Server, count: u64) {
    server.wait_for("requests in flight", |status| {
        status.serving().is_some_and(|serving| serving.load.requests_in_flight == count)
    });
}

/// How the generation before the last switch ended, once it has.
#[track_caller]
fn last_drain(server: &Server) -> Drain {
    let status = server.wait_drained();
    let drain = status.operations.iter().find_map(|op| op.drain.clone());
    drain.unwrap_or_else(|| panic!("no report of a drain: {status:#?}"))
}

#[test]
fn a_plugin_serves_http_2_as_it_serves_http_1() {
    let server = Setup::probe("v1").start();
    let client = Client::open(server.addr());
    let worker = server.worker();
    assert_eq!(answered_by(&client.get("/")), ("v1".into(), worker));
    let headers = client.get("/headers").text();
    assert!(headers.contains(&format!("host: {}\n", server.addr())), "{headers}");
    let body: Vec<u8> = (0..2_000_000u32).map(|at| (at % 251) as u8).collect();
    let echo = client.request("POST", "/echo", Some(body.clone())).expect("an answer");
    assert!(echo.status == 200 && echo.body == body, "{} bytes came back", echo.body.len());
    assert_eq!(client.get("/stream?chunks=5&ms=5").text(), "0\n1\n2\n3\n4\n");
    assert_eq!(client.get("/body?bytes=3000000").body.len(), 3_000_000);
    assert_eq!(client.get("/panic").status, 500);
    assert_eq!(client.get("/none").status, 404);
    let many: Vec<_> = (0..300).map(|_| client.begin("GET", "/sleep?ms=20", None)).collect();
    let start = Instant::now();
    for pending in many {
        assert_eq!(client.wait(pending).expect("an answer").status, 200);
    }
    // One after the other they would take six seconds.
    assert!(start.elapsed() < Duration::from_secs(4), "it took {:?}", start.elapsed());
    let load = server.serving().load;
    assert_eq!((load.connections, load.http2, load.requests_in_flight), (1, 1, 0));
}

#[test]
fn requests_in_flight_at_a_reload_are_answered_by_the_old_code_and_new_connections_by_the_new() {
    let server = Setup::probe("v1").start();
    let old = server.worker();
    let (quiet, busy) = (Client::open(server.addr()), Client::open(server.addr()));
    assert_eq!(answered_by(&quiet.get("/")).1, old);
    let slow = busy.begin("GET", "/sleep?ms=1500", None);
    let streamed = busy.begin("GET", "/stream?chunks=15&ms=100", None);
    wait_in_flight(&server, 2);
    let start = Instant::now();
    let new = switch_to(&server, "v2");
    wait::until("GOAWAY", wait::LONG, || (quiet.is_told() && busy.is_told()).then_some(()));
    let fresh = Client::open(server.addr());
    assert_eq!(answered_by(&fresh.get("/")), ("v2".into(), new));
    quiet.ended().expect("a quiet connection ends in good order");
    assert!(start.elapsed() < Duration::from_millis(1400), "it was told only after {:?}", start.elapsed());
    assert_eq!(answered_by(&busy.wait(slow).expect("the request was cut")), ("v1".into(), old));
    let streamed = busy.wait(streamed).expect("the stream was cut");
    assert_eq!((answered_by(&streamed).1, streamed.text().lines().count()), (old, 15));
    busy.ended().expect("the old connection ends in good order");
    let drain = last_drain(&server);
    assert_eq!((drain.goaway, drain.cut.total(), drain.lost), (2, 0, 0), "{drain:?}");
    assert_eq!(answered_by(&fresh.get("/")), ("v2".into(), new), "the new connection goes on");
}

#[test]
fn a_refused_reload_says_nothing_to_anybody() {
    let server = Setup::probe("v1").start();
    let client = Client::open(server.addr());
    let old = answered_by(&client.get("/")).1;
    std::fs::write(server.bench.plugin_file("probe"), "\x7fELF of no use").expect("failed to write");
    assert_eq!(server.reload().0, 409);
    assert!(!client.is_told());
    assert_eq!(answered_by(&client.get("/")).1, old);
}

#[test]
fn what_outlasts_the_drain_is_cut_and_counted() {
    let server = Setup::probe("v1").set("drain.timeout", "200ms").start();
    let client = Client::open(server.addr());
    let slow = client.begin("GET", "/sleep?ms=30000", None);
    wait_in_flight(&server, 1);
    server.wait_for("its age", |status| status.serving().is_some_and(|serving| serving.load.oldest_request_ms > 0));
    switch_to(&server, "v2");
    let error = client.wait(slow).expect_err("it outlasts the drain");
    assert!(!http2::is_unprocessed(&error), "it must not be sent again: {error}");
    let drain = last_drain(&server);
    assert_eq!((drain.cut.http2, drain.cut.total(), drain.goaway), (1, 1, 0), "{drain:?}");
}

#[test]
fn a_shutdown_answers_what_is_in_flight_and_exits_0() {
    let mut server = Setup::probe("v1").start();
    let client = Client::open(server.addr());
    let slow = client.begin("GET", "/sleep?ms=1000", None);
    wait_in_flight(&server, 1);
    server.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(client.wait(slow).expect("the request was cut").status, 200);
    client.ended().expect("the connection ends in good order");
    assert_eq!(server.wait_end(wait::LONG).code(), Some(0));
}

// ---- bytes that are no client's ----

/// A connection's worth of frames that each make sense.
fn sensible() -> Vec<Vec<u8>> {
    use http2::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, RST_STREAM, SETTINGS, WINDOW_UPDATE,
        fields, frame,
    };
    let all = END_STREAM | END_HEADERS;
    vec![
        frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]),
        frame(HEADERS, all, 1, &fields("/")),
        frame(HEADERS, END_HEADERS, 3, &fields("/echo")),
        frame(DATA, 0, 3, b"some bytes"),
        frame(PING, 0, 0, b"12345678"),
        frame(DATA, END_STREAM, 3, b"the others"),
        frame(HEADERS, END_STREAM, 5, &fields("/")[..4]),
        frame(CONTINUATION, END_HEADERS, 5, &fields("/")[4..]),
        frame(WINDOW_UPDATE, 0, 0, &1000u32.to_be_bytes()),
        frame(HEADERS, all, 7, &fields("/sleep?ms=5")),
        frame(RST_STREAM, 0, 7, &8u32.to_be_bytes()),
        frame(HEADERS, all, 9, &fields("/body?bytes=10000")),
        frame(GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 0]),
    ]
}

/// Damages a connection's bytes in one of a few ways.
fn mutate(frames: &mut Vec<Vec<u8>>, rng: &mut Rng) {
    let (at, other) = (rng.below(frames.len() as u64) as usize, rng.below(frames.len() as u64) as usize);
    let len = frames[at].len() as u64;
    match rng.below(7) {
        // A bit, wherever it lies; or in the head, where each has a meaning.
        0 => frames[at][rng.below(len) as usize] ^= 1 << rng.below(8),
        1 => frames[at][rng.below(9) as usize] ^= 1 << rng.below(8),
        2 => frames[at][3] = rng.below(16) as u8,
        3 => frames[at].truncate(rng.below(len) as usize),
        4 => frames.insert(at, frames[other].clone()),
        5 => frames.swap(at, other),
        _ => {
            let noise: Vec<u8> = (0..rng.below(100)).map(|_| rng.below(256) as u8).collect();
            frames.insert(at, noise);
        }
    }
}

#[test]
fn damaged_frames_end_their_connection_at_most() {
    const ROUNDS: u64 = 400;
    // What is only cut short is an idle connection, a body that stops, or a window that stays closed.
    let limits = ["head_timeout", "idle_timeout", "body_timeout", "write_timeout"];
    let setup = limits.iter().fold(Setup::probe("v1"), |setup, limit| setup.set(&format!("limits.{limit}"), "1s"));
    let server = setup.set("drain.goaway", "100ms").start();
    let (addr, worker) = (server.addr(), server.worker());
    let good = Client::open(addr);
    let round = move |round: u64| {
        let mut rng = Rng(round);
        let mut frames = sensible();
        for _ in 0..1 + rng.below(3) {
            mutate(&mut frames, &mut rng);
        }
        let bytes = [http2::PREFACE, &frames.concat()].concat();
        let received = http2::throw(addr, &bytes, wait::LONG);
        received.unwrap_or_else(|error| panic!("round {round}: the connection goes on: {error}")).len()
    };
    // Side by side, since some wait for a limit.
    let threads: Vec<_> = (0..8)
        .map(|first| std::thread::spawn(move || (first..ROUNDS).step_by(8).map(round).collect::<Vec<_>>()))
        .collect();
    while !threads.iter().all(|thread| thread.is_finished()) {
        assert_eq!(good.get("/").status, 200);
        wait::pass(Duration::from_millis(5));
    }
    let received: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().expect("a round failed")).collect();
    let answered = received.iter().filter(|len| **len > 200).count();
    assert!(answered > ROUNDS as usize / 10, "only {answered} were answered at all: too damaged to show anything");
    assert_eq!(server.worker(), worker, "the same process serves");
    let status = server.wait_for("them to be gone", |status| {
        status.serving().is_some_and(|serving| serving.load.connections == 1 && serving.load.requests_in_flight == 0)
    });
    assert_eq!((status.crashes, good.get("/").status), (0, 200));
}

#[test]
fn floods_end_with_goaway_in_bounded_memory_while_others_are_served() {
    let server = Setup::probe("v1").start();
    let worker = server.worker();
    let good = Client::open(server.addr());
    good.get("/");
    let before = baton_tests::process::memory(worker).expect("the worker runs").rss;
    let reset = |stream: u32| http2::frame(http2::RST_STREAM, 0, stream, &8u32.to_be_bytes());
    let all = http2::END_STREAM | http2::END_HEADERS;
    let get = |stream: u32| http2::frame(http2::HEADERS, all, stream, &http2::fields("/sleep?ms=100"));
    let settings = http2::frame(http2::SETTINGS, 0, 0, &[]);
    let rapid_reset: Vec<u8> = (0..20_000).flat_map(|at| [get(2 * at + 1), reset(2 * at + 1)].concat()).collect();
    let continuation = [
        http2::frame(http2::HEADERS, http2::END_STREAM, 1, &http2::fields("/")),
        http2::frame(http2::CONTINUATION, 0, 1, &vec![0x82; 16_000]).repeat(1000),
    ]
    .concat();
    for (name, flood) in [("rapid reset", rapid_reset), ("CONTINUATION", continuation)] {
        let attacks: Vec<_> = (0..8)
            .map(|_| {
                let (addr, bytes) = (server.addr(), [http2::PREFACE, &settings, &flood].concat());
                std::thread::spawn(move || http2::throw(addr, &bytes, wait::LONG))
            })
            .collect();
        while !attacks.iter().all(|attack| attack.is_finished()) {
            let start = Instant::now();
            assert_eq!(good.get("/").status, 200, "{name}");
            assert!(start.elapsed() < Duration::from_secs(2), "{name}: an answer took {:?}", start.elapsed());
        }
        for attack in attacks {
            attack.join().expect("an attacker failed").unwrap_or_else(|error| panic!("{name} goes on: {error}"));
        }
    }
    let most = baton_tests::process::memory(worker).expect("the worker runs").rss;
    assert!(most < before + 64 * 1024, "grown from {before} to {most} KiB");
    let status = server
        .wait_for("them to be gone", |status| status.serving().is_some_and(|serving| serving.load.connections == 1));
    assert_eq!((server.worker(), status.crashes), (worker, 0));
    assert_eq!(status.serving().expect("it serves").load.limits.http2_errors, 16);
}

// ---- clients of others ----

#[test]
fn http_2_with_curl_is_the_same_page() {
    let server = Setup::probe("v1").start();
    let url = format!("http://{}/line", server.addr());
    let args = ["--silent", "--show-error", "--max-time", "20", "--http2-prior-knowledge", "--data", "abc"];
    let format = "%{http_version} %{response_code}";
    let output = Command::new("curl").args(args).args(["--write-out", format, &url]).output().expect("curl runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(text, format!("v1 {} -\n2 200", server.worker()), "{}", String::from_utf8_lossy(&output.stderr));
}

/// What h2load says of its requests, by name: `requests: 100 total, 100 started, ...`.
fn h2load(server: &Server, requests: u32, while_it_runs: impl FnOnce()) -> impl Fn(&str) -> u32 {
    let url = format!("http://{}/sleep?ms=2", server.addr());
    let args = ["-n", &requests.to_string(), "-c", "4", "-m", "8", "-t", "1", &url];
    let child = Command::new("h2load").args(args).stdout(std::process::Stdio::piped()).spawn().expect("h2load runs");
    while_it_runs();
    let output = child.wait_with_output().expect("h2load ends");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{text}");
    move |name: &str| {
        let lines = text.lines().filter(|line| line.starts_with("requests:") || line.starts_with("status codes:"));
        let mut parts = lines.flat_map(|line| line.split([':', ','])).map(str::trim);
        let found = parts.find_map(|part| part.strip_suffix(name)?.trim().parse().ok());
        found.unwrap_or_else(|| panic!("h2load says nothing of {name}: {text}"))
    }
}

#[test]
fn thousands_of_requests_with_h2load_all_succeed() {
    let server = Setup::probe("v1").start();
    let count = h2load(&server, 4000, || {});
    assert_eq!((count("succeeded"), count("2xx"), count("failed")), (4000, 4000, 0));
    assert_eq!(server.status().crashes, 0);
}

/// It does not connect again after GOAWAY: what it has not sent yet it counts as errored; and what it sent after it had
/// answered the PING, but before it looked at the first GOAWAY, it may send again (RFC 9113 6.8). All else must be answered.
#[test]
fn a_reload_with_h2load_cuts_nothing_that_was_sent() {
    let server = Setup::probe("v1").start();
    let count = h2load(&server, 40_000, || {
        server.wait_for("the load", |status| status.serving().is_some_and(|serving| serving.load.requests > 500));
        server.bench.install("probe", &artifacts::probe("v2"));
        server.switch();
    });
    assert_eq!((count("4xx"), count("5xx"), count("timeout")), (0, 0, 0));
    let (answered, sent) = (count("2xx"), count("done"));
    assert!(answered > 500 && answered < 40_000, "the reload came too early or too late to show anything");
    assert!(sent - answered <= 4 * 8, "more were left without an answer than were under way at any time");
    let drain = last_drain(&server);
    let requests = server.status().totals.requests;
    assert_eq!(requests, u64::from(answered), "every request that the server took was answered, and the answer came");
    assert_eq!((drain.goaway, drain.cut.total(), drain.lost), (4, 0, 0), "{drain:?}");
}
