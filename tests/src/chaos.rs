//! A server that breaks promises on purpose, in the dialect of the `probe` fixture: the negative control. A load client
//! that reports nothing against this one would report nothing against anything.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What goes wrong with every n-th request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misdeed {
    Nothing,
    /// Closes with the request unread: the kernel sends RST.
    Reset,
    /// Reads the request and closes without an answer.
    Eof,
    /// Closes in the middle of the body.
    Truncate,
    WrongBody,
    /// One byte in the middle of the body is another.
    WrongByte,
    /// Forgets what it has read beyond the request that it answers: what a hand-over without its read-ahead bytes does.
    ForgetAhead,
    /// Closes in the middle of a request's body.
    CutUpload,
    /// Gives the answer of another request.
    WrongId,
    WrongStatus,
    /// Answers, says `Connection: close`, and closes: no misdeed, but to be counted.
    AnnouncedClose,
    /// Says `Connection: close` and goes on talking.
    BrokenAnnouncement,
    /// Answers and closes without a word.
    SilentClose,
    /// Sends bytes behind the answer.
    Unasked,
    /// Never answers.
    Hang,
    /// Drops a request whose client has closed its sending side, as hyper by itself does.
    AbandonHalfClosed,
}

struct Shared {
    misdeed: Misdeed,
    every: u64,
    requests: AtomicU64,
    misdeeds: AtomicU64,
    generation: AtomicU64,
    connections: Mutex<Vec<Arc<Peer>>>,
}

struct Peer {
    stream: TcpStream,
    busy: AtomicBool,
}

/// The server; ends with the process, or stops listening when dropped.
pub struct Chaos {
    pub addr: SocketAddr,
    shared: Arc<Shared>,
    listener: TcpListener,
}

impl Chaos {
    /// Answers rightly but for every `every`-th request.
    pub fn start(misdeed: Misdeed, every: u64) -> Chaos {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("failed to bind a port of the loopback");
        let addr = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared {
            misdeed,
            every,
            requests: AtomicU64::new(0),
            misdeeds: AtomicU64::new(0),
            generation: AtomicU64::new(1),
            connections: Mutex::default(),
        });
        let (accepting, own) = (listener.try_clone().expect("failed to copy a descriptor"), shared.clone());
        std::thread::spawn(move || {
            while let Ok((stream, _)) = accepting.accept() {
                let shared = own.clone();
                // An error ends this one connection, which is what such a server does.
                std::thread::spawn(move || shared.serve(stream));
            }
        });
        Chaos { addr, shared, listener }
    }

    /// How often the misdeed was done.
    pub fn misdeeds(&self) -> u64 {
        self.shared.misdeeds.load(SeqCst)
    }

    /// Does at a reload what most servers do: closes every idle connection, without a word.
    pub fn reload(&self) {
        self.shared.generation.fetch_add(1, SeqCst);
        let mut connections = self.shared.connections.lock().unwrap_or_else(PoisonError::into_inner);
        for peer in connections.drain(..) {
            if !peer.busy.load(SeqCst) {
                // Already closed by the client: nothing to close.
                let _ = peer.stream.shutdown(Shutdown::Both);
            }
        }
    }
}

impl Drop for Chaos {
    fn drop(&mut self) {
        // Ends the accepting thread; nothing is left to tell if the socket is gone already.
        let _ = nix::sys::socket::shutdown(
            std::os::fd::AsRawFd::as_raw_fd(&self.listener),
            nix::sys::socket::Shutdown::Both,
        );
    }
}

impl Shared {
    fn serve(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let peer = Arc::new(Peer { stream: stream.try_clone()?, busy: AtomicBool::new(false) });
        self.connections.lock().unwrap_or_else(PoisonError::into_inner).push(peer.clone());
        let (mut stream, mut buffer) = (stream, Vec::new());
        loop {
            if self.misdeed == Misdeed::Reset && buffer.is_empty() && stream.peek(&mut [0])? > 0 && self.is_due() {
                self.misdeeds.fetch_add(1, SeqCst);
                self.connections
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .retain(|other| !Arc::ptr_eq(other, &peer));
                // Both descriptors of this connection go with this return; unread bytes make it a reset.
                return Ok(());
            }
            if self.misdeed == Misdeed::CutUpload && self.cuts_upload(&mut stream, &mut buffer)? {
                return stream.shutdown(Shutdown::Both);
            }
            let Some((head, body)) = read_request(&mut stream, &mut buffer)? else {
                // The list above still holds a copy, with which the connection would stay open.
                return stream.shutdown(Shutdown::Both);
            };
            peer.busy.store(true, SeqCst);
            if self.misdeed == Misdeed::AbandonHalfClosed && buffer.is_empty() && is_half_closed(&stream)? {
                self.misdeeds.fetch_add(1, SeqCst);
                return stream.shutdown(Shutdown::Both);
            }
            if self.misdeed == Misdeed::ForgetAhead && !buffer.is_empty() && self.is_due() {
                self.misdeeds.fetch_add(1, SeqCst);
                buffer.clear();
            }
            if !self.answer(&mut stream, &head, &body)? {
                return stream.shutdown(Shutdown::Both);
            }
            peer.busy.store(false, SeqCst);
        }
    }

    /// Whether a POST has begun that is due to be cut; reads no further than into its body.
    fn cuts_upload(&self, stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<bool> {
        while end_of_head(buffer).is_none_or(|end| buffer.len() <= end) {
            if !is_upload(buffer) || !read_more(stream, buffer)? {
                return Ok(false);
            }
        }
        let cuts = self.is_due();
        self.misdeeds.fetch_add(u64::from(cuts), SeqCst);
        Ok(cuts)
    }

    fn is_due(&self) -> bool {
        (self.requests.fetch_add(1, SeqCst) + 1).is_multiple_of(self.every)
    }

    /// Whether the connection goes on.
    fn answer(&self, stream: &mut TcpStream, head: &str, body: &[u8]) -> io::Result<bool> {
        let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("-");
        let mut id = field("x-id: ").to_string();
        let mut close = field("connection: ") == "close";
        let by = format!("chaos {}", self.generation.load(SeqCst));
        if let Some(rest) = head.split("/sleep?ms=").nth(1) {
            let ms = rest.split(' ').next().and_then(|digits| digits.parse().ok()).unwrap_or(0);
            std::thread::sleep(Duration::from_millis(ms));
        }
        let elsewhere = matches!(
            self.misdeed,
            Misdeed::Reset | Misdeed::ForgetAhead | Misdeed::CutUpload | Misdeed::AbandonHalfClosed
        );
        let misdeed = if !elsewhere && self.is_due() { self.misdeed } else { Misdeed::Nothing };
        if misdeed != Misdeed::Nothing {
            self.misdeeds.fetch_add(1, SeqCst);
        }
        let mut status = "200 OK";
        match misdeed {
            Misdeed::Eof => return Ok(false),
            Misdeed::Hang => {
                // Until the client gives up.
                while stream.read(&mut [0; 64])? > 0 {}
                return Ok(false);
            }
            Misdeed::WrongId => id += "0",
            Misdeed::WrongStatus => status = "503 Service Unavailable",
            Misdeed::AnnouncedClose | Misdeed::BrokenAnnouncement => close = true,
            _ => {}
        }
        let mut reply = match (number(head, "bytes"), number(head, "seed")) {
            _ if head.starts_with("POST /echo") => body.to_vec(),
            (Some(bytes), Some(seed)) => (0..bytes).map(|at| b'a' + ((at + seed) % 26) as u8).collect(),
            _ => format!("{by} {id}\n").into_bytes(),
        };
        match misdeed {
            Misdeed::WrongBody => reply.push(b'!'),
            Misdeed::WrongByte if reply.is_empty() => reply.push(b'!'),
            Misdeed::WrongByte => {
                let middle = reply.len() / 2;
                reply[middle] ^= 1;
            }
            _ => {}
        }
        let announced = if close { "connection: close\r\n" } else { "" };
        let mut bytes = format!(
            "HTTP/1.1 {status}\r\nx-id: {id}\r\nx-probe: {by}\r\n{announced}content-length: {}\r\n\r\n",
            reply.len()
        )
        .into_bytes();
        bytes.extend_from_slice(&reply);
        match misdeed {
            Misdeed::Truncate => bytes.truncate(bytes.len() - 1),
            Misdeed::Unasked | Misdeed::BrokenAnnouncement => bytes.extend_from_slice(b"HTTP/1.1 408 Timeout\r\n\r\n"),
            _ => {}
        }
        stream.write_all(&bytes)?;
        Ok(!close && !matches!(misdeed, Misdeed::Truncate | Misdeed::SilentClose))
    }
}

/// Whether the client closes its sending side within the time that a FIN behind the request may take on loopback.
fn is_half_closed(stream: &TcpStream) -> io::Result<bool> {
    stream.set_read_timeout(Some(Duration::from_millis(20)))?;
    let peeked = stream.peek(&mut [0]);
    stream.set_read_timeout(None)?;
    match peeked {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        peeked => Ok(peeked.is_ok_and(|count| count == 0)),
    }
}

/// The number `name` of the request's query.
fn number(head: &str, name: &str) -> Option<u64> {
    let (_, query) = head.lines().next()?.split(' ').nth(1)?.split_once('?')?;
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
}

/// Whether `buffer` may be the beginning of a POST.
fn is_upload(buffer: &[u8]) -> bool {
    let len = buffer.len().min(4);
    buffer[..len] == b"POST"[..len]
}

/// The next request as its head and body; nothing at the end.
fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Option<(String, Vec<u8>)>> {
    loop {
        if let Some(start) = end_of_head(buffer) {
            let head = String::from_utf8_lossy(&buffer[..start - 4]).into_owned();
            if let Some((body, end)) = whole_body(&head, &buffer[start..]) {
                buffer.drain(..start + end);
                return Ok(Some((head, body)));
            }
        }
        if !read_more(stream, buffer)? {
            return Ok(None);
        }
    }
}

/// Where the first head in `buffer` ends, with its blank line.
fn end_of_head(buffer: &[u8]) -> Option<usize> {
    find(buffer, b"\r\n\r\n").map(|at| at + 4)
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

/// The body at the start of `bytes` and its length there, once it is whole.
fn whole_body(head: &str, bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name));
    if field("transfer-encoding: ") != Some("chunked") {
        let length = field("content-length: ").and_then(|digits| digits.parse().ok()).unwrap_or(0);
        return bytes.get(..length).map(|body| (body.to_vec(), length));
    }
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let line = find(&bytes[at..], b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[at..at + line]).ok()?, 16).ok()?;
        let start = at + line + 2;
        body.extend_from_slice(bytes.get(start..start + size)?);
        at = start + size + 2;
        if bytes.len() < at {
            return None;
        }
        if size == 0 {
            return Some((body, at));
        }
    }
}

/// Whether more came.
fn read_more(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<bool> {
    let mut bytes = [0; 16 * 1024];
    let count = stream.read(&mut bytes)?;
    buffer.extend_from_slice(&bytes[..count]);
    Ok(count > 0)
}
