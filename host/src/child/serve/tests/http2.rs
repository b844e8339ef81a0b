//! HTTP/2 as clients see it: requests, bodies and trailers by the `h2` crate's client, and what has no place in a well-behaved
//! one by frames made here. In one file: every test needs both clients and the server that they meet.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use ::http::{HeaderMap, Request, Response};
use baton_plugin_api::abi::{FACT_AUTHORITY, FACT_SCHEME};
use bytes::Bytes;
use h2::client::SendRequest;
use tokio::sync::Notify;

use super::fake::{Step, read, stream};
use super::*;
use crate::config::Size;

pub const SHORT: Duration = Duration::from_millis(400);
pub const LATE: Duration = Duration::from_secs(2);

// ---- a client that does as it should ----

/// An `h2` client, on a runtime of its own.
struct Peer {
    runtime: tokio::runtime::Runtime,
    send: SendRequest<Bytes>,
    /// How the connection ended.
    ended: tokio::task::JoinHandle<Result<(), h2::Error>>,
}

impl Peer {
    fn new(site: &Site) -> Peer {
        Peer::with(site, &h2::client::Builder::new())
    }

    fn with(site: &Site, builder: &h2::client::Builder) -> Peer {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (send, ended) = runtime.block_on(async {
            let At::Port(addr) = &site.at else { panic!("on a port, for this test") };
            let stream = tokio::net::TcpStream::connect(addr).await.unwrap();
            let (send, connection) = builder.handshake(stream).await.unwrap();
            (send, tokio::spawn(connection))
        });
        Peer { runtime, send, ended }
    }

    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(async { tokio::time::timeout(PATIENCE, future).await }).expect("it takes too long")
    }

    fn get(&self, target: &str) -> (u16, String) {
        self.run(async { text(begin(&self.send, request("GET", target), None).await.unwrap()).await })
    }

    /// Its end, which must be a good one.
    fn ended(&mut self) {
        let ended = &mut self.ended;
        self.runtime
            .block_on(async { tokio::time::timeout(PATIENCE, ended).await })
            .expect("the connection goes on")
            .unwrap()
            .expect("the connection ended in an error");
    }
}

fn request(method: &str, target: &str) -> Request<()> {
    Request::builder().method(method).uri(format!("http://a.example{target}")).body(()).unwrap()
}

/// Sends a request with that body, if any, and waits for the head of its response.
async fn begin(
    send: &SendRequest<Bytes>,
    request: Request<()>,
    body: Option<Bytes>,
) -> Result<Response<h2::RecvStream>, h2::Error> {
    let mut send = send.clone().ready().await?;
    let (response, mut upload) = send.send_request(request, body.is_none())?;
    if let Some(body) = body {
        upload.send_data(body, true)?;
    }
    response.await
}

async fn whole(response: Response<h2::RecvStream>) -> Result<(u16, Vec<u8>, Option<HeaderMap>), h2::Error> {
    let (head, mut body) = response.into_parts();
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        bytes.extend_from_slice(&data);
    }
    Ok((head.status.as_u16(), bytes, body.trailers().await?))
}

async fn text(response: Response<h2::RecvStream>) -> (u16, String) {
    let (status, bytes, _) = whole(response).await.unwrap();
    (status, String::from_utf8(bytes).unwrap())
}

// ---- a client that does as it is told ----

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
const NO_STREAM: u32 = (1 << 31) - 1;
pub const ENHANCE_YOUR_CALM: u32 = 11;
const INITIAL_WINDOW_SIZE: u8 = 4;
const WIDE: u32 = 1 << 30;

pub struct Frame {
    kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn number(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = (payload.len() as u32).to_be_bytes();
    [&len[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The fields of a request for `path`, by RFC 7541: `:method GET` and `:scheme http` of its table, the others in words.
pub fn fields(path: &str) -> Vec<u8> {
    let word = |index: u8, text: &str| [&[index, text.len() as u8], text.as_bytes()].concat();
    [vec![0x82, 0x86], word(1, "a.example"), word(4, path)].concat()
}

pub fn get(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &fields(path))
}

/// A client of frames. It acknowledges no SETTINGS and answers no PING.
pub struct Raw {
    pub client: Client,
    seen: VecDeque<Frame>,
}

impl Raw {
    pub fn new(site: &Site) -> Raw {
        let mut client = site.connect();
        client.send(super::super::sniff::PREFACE).send(frame(SETTINGS, 0, 0, &[]));
        Raw { client, seen: VecDeque::new() }
    }

    /// Lets everything come, of which its kernel takes little.
    pub fn narrow(site: &Site) -> Raw {
        let mut client = super::limits::narrow(site);
        client.send(super::super::sniff::PREFACE);
        client.send(frame(SETTINGS, 0, 0, &[&[0, INITIAL_WINDOW_SIZE], &WIDE.to_be_bytes()[..]].concat()));
        client.send(frame(WINDOW_UPDATE, 0, 0, &WIDE.to_be_bytes()));
        Raw { client, seen: VecDeque::new() }
    }

    pub fn send(&mut self, bytes: Vec<u8>) -> &mut Raw {
        self.client.send(bytes);
        self
    }

    #[track_caller]
    fn next(&mut self) -> Frame {
        let head = self.client.exactly(9);
        let len = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let stream = u32::from_be_bytes(head[5..9].try_into().unwrap());
        Frame { kind: head[3], flags: head[4], stream, payload: self.client.exactly(len) }
    }

    /// The next frame of that kind; those before it are passed over.
    #[track_caller]
    pub fn until(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.next();
            if frame.kind == kind {
                return frame;
            }
            self.seen.push_back(frame);
        }
    }

    /// The next GOAWAY: the last request that it names, and why.
    #[track_caller]
    pub fn goaway(&mut self) -> (u32, u32) {
        let frame = self.until(GOAWAY);
        (frame.number(0), frame.number(4))
    }

    /// Closed in good order, whatever is said before.
    #[track_caller]
    pub fn is_closed(&mut self) {
        let mut rest = Vec::new();
        self.client.stream.read_to_end(&mut rest).expect("no regular end");
    }
}

// ---- requests ----

#[test]
fn a_request_is_like_one_of_http_1_with_host_scheme_and_authority() {
    let site = serve(|asked: Asked| async move {
        let fact = |fact| String::from_utf8(asked.fact(fact).unwrap_or_default()).unwrap();
        let host = asked.headers().into_iter().find(|(name, _)| name == "host");
        let facts = format!("{} {} {host:?} {}", fact(FACT_SCHEME), fact(FACT_AUTHORITY), asked.target());
        reply(201, facts).header("x-own", "1").header("connection", "close")
    });
    let peer = Peer::new(&site);
    let response = peer.run(async { begin(&peer.send, request("GET", "/x?y"), None).await.unwrap() });
    assert_eq!((&response.headers()["x-own"], response.headers().get("connection")), (&"1".parse().unwrap(), None));
    let expected = "http a.example Some((\"host\", \"a.example\")) /x?y";
    assert_eq!(peer.run(text(response)), (201, expected.into()));
    eventually(|| site.metric(Slot::Requests) == 1 && site.metric(Slot::InFlight) == 0);
    eventually(|| site.metric(Slot::Idle) == 1);
    assert_eq!((site.metric(Slot::Connections), site.metric(Slot::Http2)), (1, 1));
    drop(peer);
    eventually(|| site.metric(Slot::Connections) == 0);
    assert_eq!((site.metric(Slot::Idle), site.metric(Slot::Http2)), (0, 0));
}

#[test]
fn two_hosts_a_tunnel_or_too_many_fields_are_refused_and_the_connection_goes_on() {
    let site = serve(mirror);
    let peer = Peer::new(&site);
    let status = |request| peer.run(async { begin(&peer.send, request, None).await.unwrap().status().as_u16() });
    let with_host = |hosts: &[&str]| {
        let mut request = request("GET", "/");
        for host in hosts {
            request.headers_mut().append("host", host.parse().unwrap());
        }
        request
    };
    assert_eq!(status(with_host(&["A.example"])), 200);
    assert_eq!(status(with_host(&["b.example"])), 400);
    assert_eq!(status(with_host(&["a.example", "a.example"])), 400);
    let tunnel = Request::builder().method("CONNECT").uri("a.example:443").body(()).unwrap();
    assert_eq!(status(tunnel), 501);
    let other_scheme = Request::builder().uri("ftp://a.example/").body(()).unwrap();
    assert_eq!(status(other_scheme), 421);
    let mut many = request("GET", "/");
    for at in 0..101 {
        many.headers_mut().append("x", at.into());
    }
    assert_eq!(status(many), 431);
    assert_eq!(site.metric(Slot::HeadTooLarge), 1);
    let mut long = request("GET", "/");
    long.headers_mut().insert("x", "y".repeat(70_000).parse().unwrap());
    assert_eq!(status(long), 431, "by the h2 crate");
    assert_eq!(peer.get("/on"), (200, "/on".into()));
}

#[test]
fn host_and_target_follow_the_rules_of_http1() {
    let site = serve(mirror);
    let peer = Peer::new(&site);
    let ask = |method: &str, authority: &str, target: &str| {
        let uri = ::http::Uri::builder().scheme("http").authority(authority).path_and_query(target).build().unwrap();
        let request = Request::builder().method(method).uri(uri).body(()).unwrap();
        peer.run(async { text(begin(&peer.send, request, None).await.unwrap()).await })
    };
    assert_eq!(ask("GET", "a.example", "?x=1"), (200, "/?x=1".into()));
    assert_eq!(ask("GET", "[::1]:80", "//x"), (200, "//x".into()));
    assert_eq!(ask("OPTIONS", "a.example", "*"), (200, "*".into()));
    assert_eq!(ask("GET", "a.example", "*").0, 400);
    assert_eq!(ask("GET", "user@a.example", "/").0, 400);
    assert_eq!((site.metric(Slot::MalformedRequestLine), site.metric(Slot::MalformedHost)), (1, 1));
    assert_eq!(peer.get("/on"), (200, "/on".into()));
}

#[test]
fn unread_body_does_not_end_the_connection() {
    let site = serve(mirror);
    let peer = Peer::new(&site);
    for len in [1, 100_000, 3_000_000] {
        let body = Bytes::from(vec![b'x'; len]);
        let status = peer.run(async {
            let mut send = peer.send.clone().ready().await.unwrap();
            let (response, mut upload) = send.send_request(request("POST", "/a"), false).unwrap();
            // The server may have answered, and told the client to stop, before all of it is sent.
            let _ = upload.send_data(body, true);
            response.await.unwrap().status()
        });
        assert_eq!(status, 200, "{len}");
        assert_eq!(peer.get("/next"), (200, "/next".into()), "{len}");
    }
    eventually(|| site.metric(Slot::InFlight) == 0);
}

#[test]
fn cookies_that_come_as_many_fields_are_one() {
    let site = serve(|asked: Asked| async move {
        let cookies: Vec<_> = asked.headers().into_iter().filter(|(name, _)| name == "cookie").collect();
        reply(200, format!("{cookies:?}"))
    });
    let peer = Peer::new(&site);
    let with = |cookies: &[&str]| {
        let mut request = request("GET", "/");
        for cookie in cookies {
            request.headers_mut().append("cookie", cookie.parse().unwrap());
        }
        peer.run(async { text(begin(&peer.send, request, None).await.unwrap()).await })
    };
    assert_eq!(with(&[]), (200, "[]".into()));
    assert_eq!(with(&["a=1"]), (200, r#"[("cookie", "a=1")]"#.into()));
    assert_eq!(with(&["a=1", "b=2", "c=3"]), (200, r#"[("cookie", "a=1; b=2; c=3")]"#.into()));
    let many: Vec<String> = (0..300).map(|at| format!("c{at}=x")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(with(&many).0, 200, "they count as one field");
}

#[test]
fn bodies_stream_both_ways_with_trailers() {
    let site = serve(|mut asked: Asked| async move {
        let (data, trailers) = read(&mut asked.body).await.unwrap();
        let mut steps = VecDeque::from([Step::Data(data.into()), Step::Data(Bytes::new())]);
        let known = trailers.is_some_and(|trailers| trailers == "x-sum: 7\r\n");
        steps.push_back(Step::Trailers(if known { "x-sum: 8\r\n" } else { "x-sum: none\r\n" }));
        reply(200, "").body(stream(None, move |_| Poll::Ready(steps.pop_front().unwrap_or(Step::End))))
    });
    let peer = Peer::new(&site);
    let sent: Vec<u8> = (0..3_000_000u32).map(|at| (at % 251) as u8).collect();
    let (status, received, trailers) = peer.run(async {
        let mut send = peer.send.clone().ready().await.unwrap();
        let (response, mut upload) = send.send_request(request("POST", "/"), false).unwrap();
        upload.send_data(sent.clone().into(), false).unwrap();
        upload.send_trailers(HeaderMap::from_iter([("x-sum".parse().unwrap(), "7".parse().unwrap())])).unwrap();
        whole(response.await.unwrap()).await.unwrap()
    });
    assert_eq!((status, received == sent), (200, true), "{} bytes came back", received.len());
    assert_eq!(trailers.unwrap()["x-sum"], "8");
    eventually(|| site.metric(Slot::InFlight) == 0);
}

#[test]
fn many_requests_at_once_share_a_connection_and_one_that_takes_long_holds_up_no_other() {
    let gate = Arc::new(Notify::new());
    let handlers = gate.clone();
    let site = serve(move |asked: Asked| {
        let gate = handlers.clone();
        async move {
            if asked.target() == "/slow" {
                gate.notified().await;
            }
            reply(200, asked.target().to_owned())
        }
    });
    let peer = Peer::new(&site);
    let slow = peer.runtime.spawn({
        let send = peer.send.clone();
        async move { text(begin(&send, request("GET", "/slow"), None).await.unwrap()).await }
    });
    eventually(|| site.metric(Slot::InFlight) == 1);
    let answers = peer.run(async {
        let mut tasks = tokio::task::JoinSet::new();
        for at in 0..500 {
            let send = peer.send.clone();
            tasks.spawn(async move {
                let target = format!("/{at}");
                (target.clone(), text(begin(&send, request("GET", &target), None).await.unwrap()).await)
            });
        }
        tasks.join_all().await
    });
    assert!(answers.into_iter().all(|(target, answer)| answer == (200, target)));
    gate.notify_one();
    assert_eq!(peer.run(slow).unwrap(), (200, "/slow".into()));
    assert_eq!(site.metric(Slot::Requests), 501);
}

#[test]
fn a_client_that_takes_a_request_back_drops_its_handler() {
    struct Told(std::sync::mpsc::Sender<()>);
    impl Drop for Told {
        fn drop(&mut self) {
            // Fails only if the test is over.
            let _ = self.0.send(());
        }
    }
    let (told, dropped) = std::sync::mpsc::channel();
    let site = serve(move |_| {
        let told = Told(told.clone());
        async move {
            std::future::pending::<()>().await;
            drop(told);
            reply(200, "")
        }
    });
    let mut raw = Raw::new(&site);
    raw.send(get(1, "/"));
    eventually(|| site.metric(Slot::InFlight) == 1);
    raw.send(frame(RST_STREAM, 0, 1, &8u32.to_be_bytes()));
    dropped.recv_timeout(PATIENCE).expect("the handler goes on");
    eventually(|| site.metric(Slot::InFlight) == 0);
    assert_eq!(site.server.connections.open(), 1);
}

// ---- the end ----

#[test]
fn a_quiet_connection_is_told_at_once_and_closes_when_it_has_answered() {
    let mut site = serve(mirror);
    let mut raw = Raw::new(&site);
    raw.send(get(1, "/"));
    assert_eq!(raw.until(DATA).payload, b"/");
    let start = Instant::now();
    site.stop_accepting();
    raw.send(get(3, "/"));
    assert_eq!(raw.until(DATA).payload, b"/", "a pause may be taken back: nothing is said");
    assert!(raw.seen.iter().all(|frame| frame.kind != GOAWAY));
    site.retire(NEVER);
    assert_eq!(raw.goaway(), (NO_STREAM, 0));
    assert!(start.elapsed() < LATE);
    // A request that was sent before the client knew.
    raw.send(get(5, "/late"));
    let ping = raw.until(PING);
    assert_eq!(raw.until(DATA).payload, b"/late");
    raw.send(frame(PING, ACK, 0, &ping.payload));
    assert_eq!(raw.goaway(), (5, 0));
    raw.is_closed();
    let report = site.drained();
    assert_eq!((report.goaway, report.finished, report.cut.total()), (1, 0, 0));
}

#[test]
fn requests_in_flight_are_answered_and_bodies_on_their_way_go_on() {
    let gate = Arc::new(Notify::new());
    let handlers = gate.clone();
    let mut site = serve(move |mut asked: Asked| {
        let gate = handlers.clone();
        async move {
            gate.notified().await;
            let (data, _) = read(&mut asked.body).await.unwrap();
            reply(200, data)
        }
    });
    let mut peer = Peer::new(&site);
    let (response, mut upload) = peer.run(async {
        let mut send = peer.send.clone().ready().await.unwrap();
        send.send_request(request("POST", "/"), false).unwrap()
    });
    upload.send_data("one ".into(), false).unwrap();
    eventually(|| site.metric(Slot::InFlight) == 1);
    site.retire(NEVER);
    // It has seen the GOAWAY when it would not begin another.
    let told = || peer.run(poll_fn(|cx| Poll::Ready(peer.send.clone().poll_ready(cx))));
    eventually(|| matches!(told(), Poll::Ready(Err(error)) if error.is_go_away()));
    gate.notify_one();
    upload.send_data("two".into(), true).unwrap();
    assert_eq!(peer.run(async { text(response.await.unwrap()).await }), (200, "one two".into()));
    peer.ended();
    let report = site.drained();
    assert_eq!((report.goaway, report.cut.total()), (1, 0));
}

#[test]
fn a_client_that_does_not_answer_is_closed_after_its_time_and_not_while_a_request_is_open() {
    let gate = Arc::new(Notify::new());
    let handlers = gate.clone();
    let drain = config::Drain { goaway: Limit::After(SHORT), ..config::Drain::default() };
    let handler = fake::plugin(move |asked: Asked| {
        let gate = handlers.clone();
        async move {
            if asked.target() == "/slow" {
                gate.notified().await;
            }
            reply(200, asked.target().to_owned())
        }
    });
    let mut site = site_in_full(&[], &patient(), &drain, vec![("/", handler)]);
    let (mut quiet, mut busy) = (Raw::new(&site), Raw::new(&site));
    quiet.send(get(1, "/"));
    quiet.until(DATA);
    busy.send(get(1, "/slow"));
    eventually(|| site.metric(Slot::InFlight) == 1);
    let start = Instant::now();
    site.retire(NEVER);
    assert_eq!(quiet.goaway(), (NO_STREAM, 0));
    assert_eq!(busy.goaway(), (NO_STREAM, 0));
    quiet.is_closed();
    let time = start.elapsed();
    assert!(time >= SHORT && time < SHORT + LATE, "it took {time:?}");
    drop(quiet);
    eventually(|| site.server.connections.open() == 1);
    gate.notify_one();
    assert_eq!(busy.until(DATA).payload, b"/slow");
    busy.is_closed();
    let report = site.drained();
    assert_eq!((report.goaway, report.cut.total()), (2, 0));
}

#[test]
fn what_makes_no_progress_is_cut_so_that_the_client_can_tell() {
    let mut site = serve(|asked: Asked| async move {
        match asked.target() {
            "/begun" => reply(200, "").body(stream(None, {
                let mut first = Some(Step::Data(Bytes::from_static(b"begun")));
                move |_| first.take().map_or(Poll::Pending, Poll::Ready)
            })),
            _ => std::future::pending().await,
        }
    });
    let mut clients = ["/begun", "/never"].map(|path| {
        let mut raw = Raw::new(&site);
        raw.send(get(1, path));
        raw
    });
    eventually(|| site.metric(Slot::InFlight) == 2);
    let start = Instant::now();
    site.retire(Deadlines { timeout_ms: Some(SHORT.as_millis() as u64), ..NEVER });
    for raw in &mut clients {
        raw.goaway();
        let mut rest = Vec::new();
        let error = raw.client.stream.read_to_end(&mut rest).expect_err("no regular end");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
    assert!(start.elapsed() >= SHORT && start.elapsed() < SHORT + LATE);
    let report = site.drained();
    assert_eq!((report.cut.http2, report.cut.total(), report.goaway), (2, 2, 0));
}

#[test]
fn a_client_that_answers_has_time_to_take_the_rest_of_its_response() {
    // One byte more than the client's window: its answer is all with hyper, and not yet with the client.
    const SIZE: usize = 65_536;
    let drain = config::Drain { goaway: Limit::After(SHORT), ..config::Drain::default() };
    let handler = fake::plugin(|_| async { reply(200, vec![b'x'; SIZE]) });
    let mut site = site_in_full(&[], &patient(), &drain, vec![("/", handler)]);
    let mut peer = Peer::new(&site);
    let response = peer.run(begin(&peer.send, request("GET", "/"), None)).unwrap();
    eventually(|| site.metric(Slot::InFlight) == 0);
    site.retire(NEVER);
    std::thread::sleep(3 * SHORT);
    let (_, body, _) = peer.run(whole(response)).expect("it was cut");
    assert_eq!(body.len(), SIZE);
    peer.ended();
    assert_eq!((site.drained().goaway, site.drained().cut.total()), (1, 0));
}

#[test]
fn a_cut_ends_what_is_open_and_counts_only_that() {
    let mut site = serve(|asked: Asked| async move {
        match asked.target() {
            "/never" => std::future::pending().await,
            _ => reply(200, "fine"),
        }
    });
    let (mut quiet, mut busy) = (Raw::new(&site), Raw::new(&site));
    quiet.send(get(1, "/"));
    quiet.until(DATA);
    busy.send(get(1, "/never"));
    eventually(|| site.metric(Slot::InFlight) == 1);
    site.retire(NEVER);
    quiet.goaway();
    busy.goaway();
    site.server.drain.cut();
    site.server.connections.wake_all();
    let report = site.drained();
    assert_eq!((report.goaway, report.cut.http2, report.cut.total()), (1, 1, 1));
}

// ---- the limits ----

pub fn patient() -> config::Limits {
    let never = Limit::Never;
    config::Limits {
        head_timeout: never,
        idle_timeout: never,
        body_timeout: never,
        write_timeout: never,
        request_timeout: never,
        response_min_rate: 0,
        http2_ping: never,
        ..config::Limits::default()
    }
}

fn short() -> Limit {
    Limit::After(SHORT)
}

pub fn limited<F>(limits: config::Limits, handler: impl Fn(Asked) -> F + Send + Sync + 'static) -> Site
where
    F: Future<Output = Reply> + Send + 'static,
{
    let drain = config::Drain { goaway: short(), ..config::Drain::default() };
    site_in_full(&[], &limits, &drain, vec![("/", fake::plugin(handler))])
}

#[test]
fn an_idle_connection_ends_with_goaway_and_pings_are_no_use() {
    let site = limited(config::Limits { idle_timeout: short(), ..patient() }, mirror);
    let peer = Peer::new(&site);
    let mut raw = Raw::new(&site);
    raw.send(get(1, "/"));
    raw.until(DATA);
    let start = Instant::now();
    let pinger = raw.client.stream.try_clone().unwrap();
    std::thread::spawn(move || {
        while (&pinger).write_all(&frame(PING, 0, 0, &[0; 8])).is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    while start.elapsed() < 2 * SHORT {
        assert_eq!(peer.get("/").0, 200, "one in use goes on");
    }
    assert_eq!(raw.goaway(), (NO_STREAM, 0));
    assert_eq!(site.metric(Slot::IdleTimeouts), 1);
}

#[test]
fn a_connection_that_never_asks_has_as_long_as_a_head() {
    let site = limited(config::Limits { head_timeout: short(), ..patient() }, mirror);
    let start = Instant::now();
    let mut raw = Raw::new(&site);
    // The begin of a head, without its end.
    raw.send(frame(HEADERS, END_STREAM, 1, &fields("/")));
    assert_eq!(raw.goaway(), (NO_STREAM, 0));
    raw.is_closed();
    let time = start.elapsed();
    assert!(time >= 2 * SHORT && time < 2 * SHORT + LATE, "it took {time:?}");
    assert_eq!(site.metric(Slot::HeadTimeouts), 1);
    drop(raw);
    eventually(|| site.server.connections.open() == 0);
}

#[test]
fn each_request_has_limits_of_its_own() {
    let limits = config::Limits { body_timeout: short(), request_timeout: short(), body_size: Size(1000), ..patient() };
    let site = limited(limits, |mut asked: Asked| async move {
        match asked.target() {
            "/body" => match read(&mut asked.body).await {
                Ok((data, _)) => reply(200, data.len().to_string()),
                Err(error) => reply(400, error),
            },
            "/begun" => reply(200, "").body(stream(None, {
                let mut first = Some(Step::Data(Bytes::from_static(b"begun")));
                move |_| first.take().map_or(Poll::Pending, Poll::Ready)
            })),
            "/never" => std::future::pending().await,
            _ => reply(200, "fine"),
        }
    });
    let peer = Peer::new(&site);
    peer.run(async {
        let post = |body: Option<Bytes>| begin(&peer.send, request("POST", "/body"), body);
        assert_eq!(text(post(Some(vec![0; 1000].into())).await.unwrap()).await, (200, "1000".into()));
        assert_eq!(post(Some(vec![0; 1001].into())).await.unwrap().status(), 413);
        let mut announced = request("POST", "/body");
        announced.headers_mut().insert("content-length", "1001".parse().unwrap());
        assert_eq!(begin(&peer.send, announced, Some(Bytes::new())).await.map_or(413, |r| r.status().as_u16()), 413);
        // A body that stops, beside one whose handler takes too long, and one that has begun.
        let mut send = peer.send.clone().ready().await.unwrap();
        let (stopped, _upload) = send.send_request(request("POST", "/body"), false).unwrap();
        let never = begin(&peer.send, request("GET", "/never"), None);
        let begun = begin(&peer.send, request("GET", "/begun"), None);
        let (stopped, never, begun) = tokio::join!(stopped, never, begun);
        assert_eq!((stopped.unwrap().status().as_u16(), never.unwrap().status().as_u16()), (408, 503));
        assert!(whole(begun.unwrap()).await.unwrap_err().is_reset());
    });
    assert_eq!(peer.get("/fine"), (200, "fine".into()), "the connection goes on");
    let counts = [Slot::BodyTimeouts, Slot::RequestTimeouts].map(|slot| site.metric(slot));
    assert_eq!(counts, [1, 2]);
    assert!(site.metric(Slot::BodyTooLarge) >= 1);
}

#[test]
fn a_response_that_the_client_does_not_let_come_is_reset_and_its_others_go_on() {
    let limits = config::Limits { write_timeout: short(), ..patient() };
    let site = limited(limits, |asked: Asked| async move {
        let big = asked.target() == "/big";
        reply(200, if big { vec![b'x'; 1 << 20] } else { b"fine".to_vec() })
    });
    let peer = Peer::new(&site);
    let response = peer.run(begin(&peer.send, request("GET", "/big"), None)).unwrap();
    // Its window stays closed: nothing is released.
    let mut body = response.into_body();
    let error = peer.run(async {
        loop {
            match body.data().await {
                Some(Ok(_)) => {}
                Some(Err(error)) => break error,
                None => panic!("it came whole"),
            }
        }
    });
    assert!(error.is_reset(), "{error}");
    assert_eq!(site.metric(Slot::WriteTimeouts), 1);
    drop(body);
    assert_eq!(peer.get("/fine"), (200, "fine".into()));
}

#[test]
fn a_client_that_is_gone_without_a_word_is_found_by_pings() {
    let limits = config::Limits { http2_ping: short(), ..patient() };
    let site = limited(limits, |_| std::future::pending());
    let peer = Peer::new(&site);
    let waiting = peer.runtime.spawn({
        let send = peer.send.clone();
        async move { begin(&send, request("GET", "/"), None).await.map(drop) }
    });
    let mut raw = Raw::new(&site);
    raw.send(get(1, "/"));
    eventually(|| site.metric(Slot::InFlight) == 2);
    // It answers no PING.
    raw.until(PING);
    let start = Instant::now();
    raw.goaway();
    raw.is_closed();
    let time = start.elapsed();
    assert!(time < SHORT + LATE, "it took {time:?}");
    eventually(|| site.server.connections.open() == 1);
    assert!(!waiting.is_finished(), "one that answers goes on");
}

#[test]
fn floods_end_their_connection_and_no_other() {
    let site = limited(config::Limits { http2_streams: 10, ..patient() }, mirror);
    let peer = Peer::new(&site);
    let reset = |stream: u32| frame(RST_STREAM, 0, stream, &8u32.to_be_bytes());
    let rapid_resets = (0..2000).flat_map(|at| [get(2 * at + 1, "/"), reset(2 * at + 1)].concat()).collect();
    // Fields that go on for ever, of which the h2 crate takes no more frames than a whole list could fill.
    let mut continuations = frame(HEADERS, END_STREAM, 1, &fields("/"));
    (0..10_000).for_each(|_| continuations.extend(frame(CONTINUATION, 0, 1, &[])));
    let empty_data = [frame(HEADERS, END_HEADERS, 1, &fields("/")), frame(DATA, 0, 1, &[]).repeat(100_000)].concat();
    let windows = |at: u32| [frame(WINDOW_UPDATE, 0, 0, &(at % 2 + 1).to_be_bytes())].concat();
    let floods = [
        ("resets", rapid_resets),
        ("continuations", continuations),
        ("empty data", empty_data),
        ("pings", frame(PING, 0, 0, &[0; 8]).repeat(3000)),
        ("settings", frame(SETTINGS, 0, 0, &[]).repeat(3000)),
        ("priorities", frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1]).repeat(3000)),
        ("windows", (0..3000).flat_map(windows).collect()),
        ("unknown frames", frame(0x42, 0, 0, &[]).repeat(3000)),
    ];
    let count = floods.len();
    for (name, flood) in floods {
        let mut raw = Raw::new(&site);
        let writer = raw.client.stream.try_clone().unwrap();
        let writing = std::thread::spawn(move || {
            // The server may close before all of it is sent.
            let _ = (&writer).write_all(&Vec::<u8>::clone(&flood));
        });
        let (_, why) = raw.goaway();
        assert_eq!(why, ENHANCE_YOUR_CALM, "{name}");
        writing.join().unwrap();
        assert_eq!(peer.get("/"), (200, "/".into()), "{name}");
    }
    eventually(|| site.server.connections.open() == 1);
    assert_eq!(site.metric(Slot::Http2Errors), count as u64);
}

#[test]
fn late_resets_in_large_numbers_end_their_connection() {
    let site = limited(config::Limits { http2_glitches: 100, ..patient() }, |_| std::future::pending());
    let mut raw = Raw::new(&site);
    // Each handler runs before its request is taken back, so that no bound of the h2 crate is met.
    for at in 0..100 {
        raw.send(get(2 * at + 1, "/"));
        eventually(|| site.metric(Slot::InFlight) == 1);
        raw.send(frame(RST_STREAM, 0, 2 * at + 1, &8u32.to_be_bytes()));
        eventually(|| site.metric(Slot::InFlight) == 0);
    }
    let (last, why) = raw.goaway();
    assert_eq!((last, why), (199, ENHANCE_YOUR_CALM));
    eventually(|| site.metric(Slot::Http2Errors) == 1);
}

#[test]
fn a_fair_client_is_within_the_smallest_budget() {
    let limits = config::Limits { http2_glitches: 100, ..patient() };
    let site = limited(limits, |mut asked: Asked| async move {
        let (data, _) = read(&mut asked.body).await.unwrap();
        reply(200, data)
    });
    let peer = Peer::new(&site);
    let sent = Bytes::from(vec![b'x'; 4 << 20]);
    for _ in 0..3 {
        let (sent, send) = (sent.clone(), &peer.send);
        let echoed = peer.run(async move { whole(begin(send, request("POST", "/"), Some(sent)).await?).await });
        assert_eq!(echoed.unwrap().1.len(), 4 << 20);
    }
    // As many are taken back as are answered.
    for _ in 0..150 {
        peer.run(async { drop(begin(&peer.send, request("GET", "/"), None).await.unwrap()) });
    }
    assert_eq!((peer.get("/").0, site.metric(Slot::Http2Errors)), (200, 0));
}

#[test]
fn a_connection_worn_out_by_requests_or_age_ends_with_goaway() {
    let site = limited(config::Limits { requests_per_connection: 3, ..patient() }, mirror);
    let mut peer = Peer::new(&site);
    (0..3).for_each(|_| assert_eq!(peer.get("/").0, 200));
    peer.ended();
    let site = limited(config::Limits { keepalive_max_age: short(), ..patient() }, mirror);
    let mut peer = Peer::new(&site);
    let start = Instant::now();
    assert_eq!(peer.get("/").0, 200);
    peer.ended();
    let time = start.elapsed();
    assert!(time >= SHORT && time < SHORT + LATE, "{time:?}");
}

#[test]
fn beyond_the_limit_of_requests_at_once_more_are_refused_and_can_be_sent_again() {
    let site = limited(config::Limits { http2_streams: 3, ..patient() }, |_| std::future::pending());
    let mut raw = Raw::new(&site);
    assert_eq!(raw.until(SETTINGS).payload[..6], [0, 3, 0, 0, 0, 3]);
    for at in 0..4 {
        raw.send(get(2 * at + 1, "/"));
    }
    let refused = raw.until(RST_STREAM);
    assert_eq!((refused.stream, refused.number(0)), (7, 7), "REFUSED_STREAM");
    eventually(|| site.metric(Slot::InFlight) == 3);
}

#[test]
fn pings_whose_answers_are_not_read_are_not_read_either_and_end_by_the_limit_of_writing() {
    let site = limited(config::Limits { write_timeout: short(), http2_glitches: 0, ..patient() }, mirror);
    let peer = Peer::new(&site);
    let raw = Raw::new(&site);
    let start = Instant::now();
    let flood = frame(PING, 0, 0, &[0; 8]).repeat(10_000);
    // Until neither side's buffers take any more, and then until the reset.
    while (&raw.client.stream).write_all(&flood).is_ok() {
        assert!(start.elapsed() < PATIENCE, "it goes on");
    }
    eventually(|| site.server.connections.open() == 1);
    assert_eq!(site.metric(Slot::WriteTimeouts), 1);
    assert_eq!(peer.get("/"), (200, "/".into()));
}

// ---- beside the handover ----

#[test]
fn an_idle_connection_neither_moves_nor_keeps_others_waiting() {
    let (old, new) = (serve(mirror), serve(mirror));
    let peer = Peer::new(&old);
    assert_eq!(peer.get("/").0, 200);
    let mut http1 = old.connect();
    http1.get("/");
    eventually(|| old.metric(Slot::Idle) == 2);
    super::handover::hand_over(&old, &new);
    // Well below the time that is given to those that are still to move.
    let settled =
        async { tokio::time::timeout(Duration::from_millis(200), old.server.handover.settled(old.server)).await };
    old.runtime.block_on(settled).expect("the pause waits for a connection that cannot move");
    eventually(|| old.server.connections.open() == 1 && new.server.connections.open() == 1);
    assert_eq!(peer.get("/here"), (200, "/here".into()));
    assert_eq!((old.metric(Slot::Http2), new.metric(Slot::Http2)), (1, 0));
}
