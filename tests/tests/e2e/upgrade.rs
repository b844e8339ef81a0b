//! Connections that leave HTTP: WebSockets by axum and by a native handler, bare streams, tunnels; in the middle of reloads.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use baton_tests::http::Connection;
use baton_tests::server::{Server, Setup};
use baton_tests::status::Drain;
use baton_tests::{artifacts, process, wait};
use futures_util::{SinkExt, StreamExt};
use nix::sys::signal::Signal;
use tokio::runtime::Runtime;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Error, Message};

fn native() -> Setup {
    Setup::new().plugin("upgrade", &artifacts::plugin("upgrade"))
}

/// A WebSocket, from the client's side.
pub struct Socket {
    runtime: Runtime,
    socket: WebSocketStream<tokio::net::TcpStream>,
    /// What it was told first.
    welcome: String,
}

impl Socket {
    #[track_caller]
    pub fn open(server: &Server, path: &str) -> Socket {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let url = format!("ws://{}{path}", server.addr());
        let socket = runtime.block_on(async {
            let stream = tokio::net::TcpStream::connect(server.addr()).await.expect("failed to connect");
            tokio_tungstenite::client_async(url, stream).await
        });
        let (socket, response) = socket.unwrap_or_else(|error| panic!("no WebSocket at {path}: {error}"));
        assert_eq!(response.status(), 101);
        let mut this = Socket { runtime, socket, welcome: String::new() };
        let welcome = this.next().expect("a welcome");
        this.welcome = welcome.to_text().expect("text").to_owned();
        this
    }

    /// The process at the other end.
    pub fn pid(&self) -> i32 {
        self.welcome.rsplit(' ').next().and_then(|pid| pid.parse().ok()).expect("a pid")
    }

    #[track_caller]
    fn next(&mut self) -> Result<Message, Error> {
        let next = self.runtime.block_on(async { tokio::time::timeout(wait::LONG, self.socket.next()).await });
        next.expect("nothing came").unwrap_or(Err(Error::ConnectionClosed))
    }

    fn send(&mut self, message: Message) {
        self.runtime.block_on(self.socket.send(message)).expect("failed to send");
    }

    /// It is sent back.
    #[track_caller]
    pub fn is_echoed(&mut self, message: Message) {
        self.send(message.clone());
        assert_eq!(self.next().expect("an echo"), message);
    }

    /// The other side says goodbye and ends.
    #[track_caller]
    fn ends_with_close_1012(mut self) {
        match self.next() {
            Ok(Message::Close(Some(frame))) => assert_eq!(u16::from(frame.code), 1012, "{frame}"),
            other => panic!("no Close: {other:?}"),
        }
        // Our Close goes out with this, and then the server closes the connection.
        assert!(matches!(self.next(), Err(Error::ConnectionClosed)));
    }
}

const ASKING_RAW: &[u8] = b"GET /raw HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: raw\r\n\r\n";

/// A connection after its request for `/raw` or the like was granted.
#[track_caller]
fn raw(server: &Server, target: &str, behind: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(server.addr()).expect("failed to connect");
    stream.set_read_timeout(Some(wait::LONG)).expect("a time limit");
    let head = format!("GET {target} HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: raw\r\n\r\n");
    stream.write_all(&[head.as_bytes(), behind].concat()).expect("failed to send");
    let head = head_of(&mut stream);
    assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
    stream
}

/// Byte by byte: what follows is not HTTP.
fn head_of(stream: &mut impl Read) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("the head broke off");
        head.push(byte[0]);
    }
    String::from_utf8(head).expect("a head is text")
}

fn upgraded(server: &Server, count: u64) {
    server.wait_for("the connection to be upgraded", |status| {
        status.serving().is_some_and(|serving| serving.load.upgraded == count)
    });
}

#[track_caller]
fn drained(server: &Server, op: u64) -> Drain {
    server.wait_drained();
    let told = |status: &baton_tests::status::Status| status.operation(op)?.drain.clone();
    let status = server.wait_for("the report of the drain", |status| told(status).is_some());
    told(&status).expect("just seen")
}

#[test]
fn a_websocket_of_axum_ends_with_close_1012_and_reaches_the_new_process() {
    let server = Setup::new().plugin("websocket", &artifacts::plugin("websocket")).start();
    let old = server.worker();
    let (mut one, mut two) = (Socket::open(&server, "/chat"), Socket::open(&server, "/chat"));
    assert_eq!((one.pid(), two.pid()), (old, old));
    one.send(Message::text("hello"));
    for socket in [&mut one, &mut two] {
        assert_eq!(socket.next().expect("what was said"), Message::text("hello"));
    }
    upgraded(&server, 2);
    let report = server.switch();
    one.ends_with_close_1012();
    two.ends_with_close_1012();
    let drain = drained(&server, report.op);
    assert_eq!((drain.upgraded, drain.cut.total(), drain.handed_over), (2, 0, 0), "{drain:?}");
    assert!(!process::is_alive(old));
    assert_eq!(Socket::open(&server, "/chat").pid(), server.worker());
}

#[test]
fn a_websocket_of_a_native_handler_too() {
    let server = native().start();
    let mut socket = Socket::open(&server, "/polite");
    assert_eq!(socket.pid(), server.worker());
    socket.is_echoed(Message::text("hello"));
    socket.is_echoed(Message::binary(vec![7; 300_000]));
    upgraded(&server, 1);
    let report = server.switch();
    socket.ends_with_close_1012();
    assert_eq!(drained(&server, report.op).upgraded, 1);
}

#[test]
fn one_that_stays_lives_on_in_the_old_process_and_is_not_cut_if_it_ends_in_time() {
    let server = native().set("drain.upgraded", "never").start();
    let old = server.worker();
    let mut socket = Socket::open(&server, "/stubborn");
    let report = server.switch();
    socket.is_echoed(Message::text("still here"));
    assert_eq!(socket.pid(), old);
    let new = server.worker();
    assert_ne!(new, old);
    assert_eq!(Socket::open(&server, "/stubborn").pid(), new);
    // And through a second reload.
    server.switch();
    socket.is_echoed(Message::text("still here"));
    assert!(process::is_alive(old));
    drop(socket);
    let drain = drained(&server, report.op);
    assert_eq!((drain.upgraded, drain.cut.total()), (1, 0), "{drain:?}");
    assert!(!process::is_alive(old));
}

#[test]
fn one_that_does_not_end_is_cut_at_its_deadline() {
    let server = native().set("drain.upgraded", "300ms").start();
    let old = server.worker();
    let mut socket = Socket::open(&server, "/stubborn");
    upgraded(&server, 1);
    let start = Instant::now();
    let report = server.switch();
    match socket.next() {
        Err(Error::Io(error)) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        other => panic!("not cut: {other:?}"),
    }
    assert!(start.elapsed() >= Duration::from_millis(300), "cut after {:?}", start.elapsed());
    let drain = drained(&server, report.op);
    assert_eq!((drain.upgraded, drain.cut.upgraded, drain.cut.total()), (0, 1, 1), "{drain:?}");
    assert!(!process::is_alive(old));
}

#[test]
fn a_cut_ends_one_that_stays_for_ever() {
    let server = native().set("drain.upgraded", "never").start();
    let mut socket = Socket::open(&server, "/stubborn");
    upgraded(&server, 1);
    server.switch();
    let draining = server.status();
    let draining = draining.living().find(|one| one.state == "retiring").expect("the old generation");
    assert_eq!((draining.load.upgraded, draining.load.connections), (1, 1));
    server.cli(&["cut", "--name", &server.name]).assert_code(0);
    assert!(matches!(socket.next(), Err(Error::Io(_))));
    server.wait_drained();
}

#[test]
fn at_once_is_at_once() {
    let server = native().set("drain.upgraded", "0s").start();
    let mut socket = Socket::open(&server, "/stubborn");
    upgraded(&server, 1);
    let report = server.switch();
    assert!(matches!(socket.next(), Err(Error::Io(_))));
    assert_eq!(drained(&server, report.op).cut.upgraded, 1);
}

#[test]
fn a_shutdown_lets_them_say_goodbye_and_one_that_does_not_is_cut() {
    let mut server = native().start();
    let socket = Socket::open(&server, "/polite");
    server.signal(Signal::SIGTERM);
    socket.ends_with_close_1012();
    assert_eq!(server.wait_end(wait::LONG).code(), Some(0));

    let mut server = native().set("shutdown.timeout", "300ms").start();
    let mut socket = Socket::open(&server, "/stubborn");
    server.signal(Signal::SIGTERM);
    assert!(matches!(socket.next(), Err(Error::Io(_))));
    assert_eq!(server.wait_end(wait::LONG).code(), Some(3), "something was cut");
}

#[test]
fn over_a_unix_socket_it_is_the_same() {
    let setup = native();
    let path = setup.bench().path().join("socket");
    let server = setup.listen(&["127.0.0.1:0", &format!("unix:{}", path.display())]).start();
    let mut stream = UnixStream::connect(&path).expect("failed to connect");
    stream.set_read_timeout(Some(wait::LONG)).expect("a time limit");
    stream.write_all(ASKING_RAW).expect("failed to send");
    assert!(head_of(&mut stream).starts_with("HTTP/1.1 101 "));
    let mut echo = |byte: u8| {
        stream.write_all(&[byte]).expect("failed to send");
        let mut back = [0];
        stream.read_exact(&mut back).expect("an echo");
        assert_eq!(back, [byte]);
    };
    echo(1);
    let report = server.switch();
    echo(2);
    drop(stream);
    assert_eq!(drained(&server, report.op).upgraded, 1);
}

#[test]
fn what_is_sent_right_behind_the_request_is_not_lost() {
    let server = native().start();
    let mut stream = raw(&server, "/raw", b"early");
    let mut back = [0; 5];
    stream.read_exact(&mut back).expect("what was sent");
    assert_eq!(&back, b"early");
    stream.shutdown(std::net::Shutdown::Write).expect("failed to end");
    assert_eq!(stream.read(&mut back).expect("the end"), 0);
}

#[test]
fn large_messages_cross_both_ways_past_a_slow_reader() {
    const LEN: usize = 24 << 20;
    let server = native().start();
    let mut reader = raw(&server, "/raw", b"");
    let mut writer = reader.try_clone().expect("a second handle");
    let byte = |at: usize| (at % 251) as u8;
    let sender = std::thread::spawn(move || {
        let bytes: Vec<u8> = (0..LEN).map(byte).collect();
        writer.write_all(&bytes).expect("failed to send");
        writer.shutdown(std::net::Shutdown::Write).expect("failed to end");
    });
    let mut buffer = vec![0; 256 << 10];
    let mut at = 0;
    loop {
        // Slower than the sender, so that everything on the way is full.
        wait::pass(Duration::from_millis(1));
        let count = reader.read(&mut buffer).expect("it broke off");
        if count == 0 {
            break;
        }
        assert!(buffer[..count].iter().enumerate().all(|(n, found)| *found == byte(at + n)), "wrong bytes at {at}");
        at += count;
    }
    assert_eq!(at, LEN);
    sender.join().expect("the sender");
    let mut socket = Socket::open(&server, "/stubborn");
    socket.is_echoed(Message::binary((0..10 << 20).map(byte).collect::<Vec<u8>>()));
}

#[test]
fn a_client_that_does_not_read_costs_no_memory() {
    let server = native().start();
    let memory = || process::memory(server.worker()).expect("the worker's memory").rss;
    let mut streams: Vec<TcpStream> = (0..20).map(|_| raw(&server, "/flood", b"")).collect();
    let before = memory();
    streams.iter_mut().for_each(|stream| stream.write_all(b"!").expect("failed to send"));
    // Each would write gigabytes in this time.
    wait::pass(Duration::from_secs(2));
    let grown = memory().saturating_sub(before);
    assert!(grown < 16 << 10, "grew by {grown} KiB");
    assert!(streams[0].read(&mut [0; 4096]).expect("the flood") > 0);
}

#[test]
fn a_101_that_nobody_asked_for_is_a_500() {
    let server = native().start();
    assert_eq!(server.get("/101").status, 500);
    let mut connection = server.connect();
    let fields = [("connection", "upgrade"), ("upgrade", "raw")];
    connection.send("GET", "/101", &fields, b"").expect("failed to send");
    assert_eq!(connection.receive().expect("an answer").status, 500, "nobody took the stream");
    assert_eq!(connection.request("GET", "/pid").expect("the connection lives on").status, 200);
}

#[test]
fn connect_is_refused_unless_a_plugin_takes_it() {
    let server = native().start();
    let mut connection = server.connect();
    let connect = |to: &str| format!("CONNECT {to} HTTP/1.1\r\nhost: {to}\r\n\r\n");
    connection.write(connect("other.example:1").as_bytes()).expect("failed to send");
    assert_eq!(connection.receive().expect("an answer").status, 501);
    assert_eq!(connection.request("GET", "/pid").expect("the connection lives on").status, 200);

    let mut tunnel = TcpStream::connect(server.addr()).expect("failed to connect");
    tunnel.write_all(format!("{}early", connect("taken.example:1")).as_bytes()).expect("failed to send");
    assert!(head_of(&mut tunnel).starts_with("HTTP/1.1 200 "));
    let mut back = [0; 5];
    tunnel.read_exact(&mut back).expect("what was sent");
    assert_eq!(&back, b"early");

    let none = Setup::new().start();
    let mut connection = none.connect();
    connection.write(connect("taken.example:1").as_bytes()).expect("failed to send");
    assert_eq!(connection.receive().expect("an answer").status, 501);
}

#[test]
fn a_client_that_offers_h2c_is_served_as_ever_and_its_connection_moves() {
    let server = native().start();
    let old = server.worker();
    let mut connection = server.connect();
    let fields =
        [("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c"), ("http2-settings", "AAMAAABkAAQAoAAAAAIAAAAA")];
    let ask = |connection: &mut Connection| {
        connection.send("GET", "/pid", &fields, b"").expect("failed to send");
        let response = connection.receive().expect("an answer");
        assert_eq!((response.status, response.close), (200, false));
        response.text()
    };
    assert_eq!(ask(&mut connection), old.to_string());
    let report = server.switch();
    assert_eq!(drained(&server, report.op).handed_over, 1);
    assert_eq!(ask(&mut connection), server.worker().to_string());
}

#[test]
fn curl_that_offers_h2c_is_served_as_ever_with_curl() {
    let server = native().start();
    let output = std::process::Command::new("curl")
        .args(["--silent", "--show-error", "--http2", "--write-out", " %{http_version}"])
        .arg(format!("http://{}/pid", server.addr()))
        .output()
        .expect("failed to run curl");
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{} 1.1", server.worker()), "{output:?}");
}
