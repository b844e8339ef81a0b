//! Connections against a plugin in this process, over real sockets: one file for HTTP as clients see it, one for the drain.

mod desync;
mod drain;
mod fake;
mod half_close;
mod half_close_h2;
mod handover;
mod http;
mod http2;
mod http2_ends;
mod limits;
mod prove;
mod refused;
mod rfc9112;
mod tls;
mod tls_unread;
mod unread;
mod upgrade;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use self::fake::{Asked, Reply, reply};
use super::Server;
use super::accept::{Acceptors, Listener};
use super::limits::Limits;
use super::tls::Tls;
use crate::child::plugin::Plugin;
use crate::child::route::Sites;
use crate::config::{self, Limit};
use crate::control::Deadlines;
use crate::metrics::{Metrics, Slot};
use crate::report::DrainReport;
use crate::sys::socket::reset_at_close;

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(20);

/// A worker's serving part, on a port or a path of its own.
struct Site {
    runtime: tokio::runtime::Runtime,
    server: &'static Server,
    at: At,
    acceptors: Option<Acceptors>,
}

enum At {
    Port(SocketAddr),
    Path(tempfile::TempDir),
}

fn site(mounts: Vec<(&str, &'static Plugin)>) -> Site {
    site_of(&[], mounts)
}

fn site_with(limits: &config::Limits, mounts: Vec<(&str, &'static Plugin)>) -> Site {
    site_in_full(&[], limits, &config::Drain::default(), mounts)
}

/// The limits of tests, which do not wait for long.
fn limits() -> config::Limits {
    config::Limits { head_timeout: Limit::After(Duration::from_secs(3)), ..config::Limits::default() }
}

/// With what the configuration says of its server, which is named `web`.
fn site_of(servers: &[config::Server], mounts: Vec<(&str, &'static Plugin)>) -> Site {
    site_in_full(servers, &limits(), &config::Drain::default(), mounts)
}

fn site_in_full(
    servers: &[config::Server],
    limits: &config::Limits,
    drain: &config::Drain,
    mounts: Vec<(&str, &'static Plugin)>,
) -> Site {
    site_over(Tls::default(), servers, limits, drain, mounts)
}

fn site_over(
    tls: Tls,
    servers: &[config::Server],
    limits: &config::Limits,
    drain: &config::Drain,
    mounts: Vec<(&str, &'static Plugin)>,
) -> Site {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    // A route names a plugin by its mount, as all plugins of these tests have the same name.
    let find = |name: &str| mounts.iter().find(|(mount, _)| *mount == name).map(|(_, plugin)| *plugin);
    let sites = Sites::new(servers, mounts.iter().copied(), find);
    let server = Server::new(sites, Metrics::local(), Limits::new(limits, drain, 20_000, None), tls);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let mut site = Site { runtime, server, at: At::Port(addr), acceptors: None };
    site.accept(listener.into());
    site
}

/// One plugin, at the root.
fn serve<F>(handler: impl Fn(Asked) -> F + Send + Sync + 'static) -> Site
where
    F: Future<Output = Reply> + Send + 'static,
{
    site(vec![("/", fake::plugin(handler))])
}

/// Answers with the request's target.
async fn mirror(asked: Asked) -> Reply {
    reply(200, asked.target().to_owned())
}

const NEVER: Deadlines = Deadlines {
    keepalive_ms: None,
    linger_ms: None,
    timeout_ms: None,
    upgraded_ms: None,
    stream_ms: None,
    min_rate: 0,
    max_ms: None,
};

impl Site {
    /// From now on at a Unix socket.
    fn over_unix(mut self) -> Site {
        self.stop_accepting();
        let dir = tempfile::tempdir().unwrap();
        self.accept(UnixListener::bind(dir.path().join("socket")).unwrap().into());
        self.at = At::Path(dir);
        self
    }

    fn accept(&mut self, listener: OwnedFd) {
        let _entered = self.runtime.enter();
        let listener = Listener::new(listener, 1, "web", "here".into()).unwrap();
        self.acceptors = Some(Acceptors::start(self.server, vec![listener]).unwrap());
    }

    fn connect(&self) -> Client {
        let stream = match &self.at {
            At::Port(addr) => {
                let stream = TcpStream::connect(addr).unwrap();
                stream.set_nodelay(true).unwrap();
                stream
            }
            // Reading and writing is all that is done with it, and that is the same for both.
            At::Path(dir) => OwnedFd::from(UnixStream::connect(dir.path().join("socket")).unwrap()).into(),
        };
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client { stream, buffer: Vec::new() }
    }

    fn metric(&self, slot: Slot) -> u64 {
        self.server.metrics.get(slot)
    }

    /// Bytes that the kernel holds, over all connections.
    fn unread(&self) -> usize {
        let mut unread = 0;
        self.server.connections.each(|conn| unread += conn.unread());
        unread
    }

    /// Waits until `count` connections are registered.
    fn until_open(&self, count: usize) {
        eventually(|| self.server.connections.open() == count);
    }

    fn stop_accepting(&mut self) {
        let acceptors = self.acceptors.take().unwrap();
        self.runtime.block_on(acceptors.stop());
    }

    fn retire(&mut self, deadlines: Deadlines) {
        if self.acceptors.is_some() {
            self.stop_accepting();
        }
        self.server.drain.retire(deadlines);
        self.server.connections.wake_all();
    }

    /// Waits for the last connection's end.
    fn drained(&self) -> DrainReport {
        self.runtime
            .block_on(async { tokio::time::timeout(PATIENCE, self.server.connections.none_left()).await })
            .expect("connections end");
        assert_eq!(self.metric(Slot::Connections), 0);
        assert_eq!(self.metric(Slot::Idle), 0);
        assert_eq!(self.metric(Slot::InFlight), 0);
        self.server.drain.report()
    }
}

#[track_caller]
fn eventually(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "it did not come true");
        std::thread::yield_now();
    }
}

/// A client that writes and reads bytes.
struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

#[derive(Debug)]
struct Answer {
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn status(&self) -> u16 {
        self.head.split(' ').nth(1).unwrap().parse().unwrap()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    fn closes(&self) -> bool {
        self.header("connection") == Some("close")
    }
}

impl Client {
    fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Client {
        self.stream.write_all(bytes.as_ref()).unwrap();
        self
    }

    fn get(&mut self, target: &str) -> Answer {
        self.send(format!("GET {target} HTTP/1.1\r\nhost: a\r\n\r\n")).answer()
    }

    /// Reads until `end` is in the buffer; takes what comes up to it.
    #[track_caller]
    fn until(&mut self, end: &[u8]) -> Vec<u8> {
        loop {
            if let Some(at) = self.buffer.windows(end.len()).position(|window| window == end) {
                return self.buffer.drain(..at + end.len()).collect();
            }
            self.more();
        }
    }

    #[track_caller]
    fn exactly(&mut self, len: usize) -> Vec<u8> {
        while self.buffer.len() < len {
            self.more();
        }
        self.buffer.drain(..len).collect()
    }

    #[track_caller]
    fn more(&mut self) {
        let mut bytes = [0; 65536];
        let len = self.stream.read(&mut bytes).unwrap();
        assert!(len > 0, "the server closed; so far: {:?}", String::from_utf8_lossy(&self.buffer));
        self.buffer.extend_from_slice(&bytes[..len]);
    }

    #[track_caller]
    fn head(&mut self) -> String {
        String::from_utf8(self.until(b"\r\n\r\n")).unwrap()
    }

    /// A whole response to a request that is not HEAD.
    #[track_caller]
    fn answer(&mut self) -> Answer {
        let mut answer = Answer { head: self.head(), body: Vec::new() };
        if let Some(len) = answer.header("content-length") {
            let len = len.parse().unwrap();
            answer.body = self.exactly(len);
        } else if answer.header("transfer-encoding").is_some() {
            loop {
                let size = String::from_utf8(self.until(b"\r\n")).unwrap();
                let size = usize::from_str_radix(size.trim(), 16).unwrap();
                if size == 0 {
                    // Trailers, if any, end up in the head.
                    loop {
                        let line = String::from_utf8(self.until(b"\r\n")).unwrap();
                        if line == "\r\n" {
                            return answer;
                        }
                        answer.head.push_str(&line);
                    }
                }
                answer.body.extend(self.exactly(size));
                self.exactly(2);
            }
        }
        answer
    }

    /// Everything until the server's end; an error if that is a reset.
    fn rest(&mut self) -> std::io::Result<Vec<u8>> {
        let mut bytes = std::mem::take(&mut self.buffer);
        self.stream.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    #[track_caller]
    fn is_closed(&mut self) {
        assert_eq!(self.rest().unwrap(), b"");
    }

    /// Closes with a reset.
    fn reset(self) {
        reset_at_close(self.stream.as_raw_fd());
    }

    /// Nothing comes, and the connection stays.
    #[track_caller]
    fn is_silent(&mut self, time: Duration) {
        self.stream.set_read_timeout(Some(time)).unwrap();
        let error = self.stream.read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    }
}
