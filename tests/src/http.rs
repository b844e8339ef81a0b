//! HTTP/1.1 responses from raw bytes, and a blocking client for one connection.
//!
//! Written here and not taken from a library because the tests judge what is on the wire: where a response ends, whether
//! a close was announced, whether bytes came that nobody asked for. Never retries, never reconnects, never guesses.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Largest response head accepted.
const MAX_HEAD: usize = 64 * 1024;

/// A whole response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    /// Names in lower case, in order of arrival.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// HTTP/1.0, or `Connection: close` was among the headers: the server announced that it closes.
    pub close: bool,
}

impl Response {
    /// The first field of that name (lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; the text of it in the panic if it is none.
    pub fn json<T: serde::de::DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("expected JSON, got status {} and {:?}: {error}", self.status, self.text()))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Head,
    Length(usize),
    ChunkSize,
    Chunk(usize),
    ChunkEnd,
    Trailers,
    UntilClose,
}

/// Takes bytes in any portions and gives whole responses.
#[derive(Debug)]
pub struct Parser {
    buffer: Vec<u8>,
    part: Part,
    response: Response,
    /// The next response answers HEAD: it has no body, whatever its headers say.
    head_request: bool,
}

impl Default for Parser {
    fn default() -> Parser {
        Parser::new()
    }
}

impl Parser {
    pub fn new() -> Parser {
        Parser { buffer: Vec::new(), part: Part::Head, response: Response::default(), head_request: false }
    }

    /// Says that the next response answers a HEAD request.
    pub fn expect_no_body(&mut self) {
        self.head_request = true;
    }

    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether any byte of a response has come that is not part of one given out already.
    pub fn is_mid_response(&self) -> bool {
        !self.buffer.is_empty() || self.part != Part::Head
    }

    /// The next whole response, if its last byte has come. An error is a breach of HTTP.
    pub fn take_response(&mut self) -> Result<Option<Response>, String> {
        loop {
            match self.part {
                Part::Head => {
                    let Some(end) = find(&self.buffer, b"\r\n\r\n") else {
                        if self.buffer.len() > MAX_HEAD {
                            return Err(format!("response head above {MAX_HEAD} bytes"));
                        }
                        return Ok(None);
                    };
                    let head: Vec<u8> = self.buffer.drain(..end + 4).collect();
                    let head =
                        std::str::from_utf8(&head[..end]).map_err(|_| "response head is not UTF-8".to_string())?;
                    let (response, framing) = read_head(head, self.head_request)?;
                    if (100..200).contains(&response.status) {
                        continue;
                    }
                    self.head_request = false;
                    self.response = response;
                    match framing {
                        Framing::Length(0) => return Ok(Some(self.finish())),
                        Framing::Length(length) => self.part = Part::Length(length),
                        Framing::Chunked => self.part = Part::ChunkSize,
                        Framing::UntilClose => {
                            self.response.close = true;
                            self.part = Part::UntilClose;
                        }
                    }
                }
                Part::Length(missing) => {
                    let missing = missing - self.take_body(missing);
                    if missing > 0 {
                        self.part = Part::Length(missing);
                        return Ok(None);
                    }
                    return Ok(Some(self.finish()));
                }
                Part::ChunkSize => {
                    let Some(line) = self.take_line()? else { return Ok(None) };
                    let digits = line.split(';').next().unwrap_or_default().trim();
                    let size = usize::from_str_radix(digits, 16).map_err(|_| format!("bad chunk size {line:?}"))?;
                    self.part = if size == 0 { Part::Trailers } else { Part::Chunk(size) };
                }
                Part::Chunk(missing) => {
                    let missing = missing - self.take_body(missing);
                    if missing > 0 {
                        self.part = Part::Chunk(missing);
                        return Ok(None);
                    }
                    self.part = Part::ChunkEnd;
                }
                Part::ChunkEnd => {
                    let Some(line) = self.take_line()? else { return Ok(None) };
                    if !line.is_empty() {
                        return Err(format!("{line:?} after a chunk"));
                    }
                    self.part = Part::ChunkSize;
                }
                Part::Trailers => {
                    let Some(line) = self.take_line()? else { return Ok(None) };
                    if line.is_empty() {
                        return Ok(Some(self.finish()));
                    }
                }
                Part::UntilClose => {
                    self.take_body(usize::MAX);
                    return Ok(None);
                }
            }
        }
    }

    /// The peer has closed. Gives the response that this ends, if the close is how it ends.
    pub fn end(&mut self) -> Option<Response> {
        if self.part != Part::UntilClose {
            return None;
        }
        self.take_body(usize::MAX);
        Some(self.finish())
    }

    fn finish(&mut self) -> Response {
        self.part = Part::Head;
        std::mem::take(&mut self.response)
    }

    fn take_body(&mut self, wanted: usize) -> usize {
        let taken = wanted.min(self.buffer.len());
        self.response.body.extend(self.buffer.drain(..taken));
        taken
    }

    fn take_line(&mut self) -> Result<Option<String>, String> {
        let Some(end) = find(&self.buffer, b"\r\n") else {
            return if self.buffer.len() > MAX_HEAD { Err("endless line".into()) } else { Ok(None) };
        };
        let line: Vec<u8> = self.buffer.drain(..end + 2).collect();
        String::from_utf8(line[..end].to_vec()).map(Some).map_err(|_| "a line that is not UTF-8".into())
    }
}

enum Framing {
    Length(usize),
    Chunked,
    UntilClose,
}

fn read_head(head: &str, head_request: bool) -> Result<(Response, Framing), String> {
    let mut lines = head.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let (version, rest) = first.split_once(' ').ok_or_else(|| format!("bad status line {first:?}"))?;
    let mut close = match version {
        "HTTP/1.1" => false,
        "HTTP/1.0" => true,
        _ => return Err(format!("bad status line {first:?}")),
    };
    let digits = rest.get(..3).ok_or_else(|| format!("bad status line {first:?}"))?;
    let status: u16 = digits.parse().map_err(|_| format!("bad status line {first:?}"))?;
    let mut headers = Vec::new();
    let (mut length, mut chunked) = (None, false);
    for line in lines {
        let (name, value) = line.split_once(':').ok_or_else(|| format!("bad header line {line:?}"))?;
        let (name, value) = (name.to_ascii_lowercase(), value.trim().to_string());
        match name.as_str() {
            "content-length" => {
                let value = value.parse().map_err(|_| format!("bad content-length {value:?}"))?;
                if length.replace(value).is_some_and(|before| before != value) {
                    return Err("two content-lengths".into());
                }
            }
            "transfer-encoding" => chunked = value.eq_ignore_ascii_case("chunked"),
            "connection" => close |= value.split(',').any(|word| word.trim().eq_ignore_ascii_case("close")),
            _ => {}
        }
        headers.push((name, value));
    }
    let framing = if head_request || status < 200 || status == 204 || status == 304 {
        Framing::Length(0)
    } else if chunked {
        Framing::Chunked
    } else {
        length.map_or(Framing::UntilClose, Framing::Length)
    };
    Ok((Response { status, headers, body: Vec::new(), close }, framing))
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// A stream that the blocking client can speak over.
pub trait Stream: Read + Write + Send {
    fn time_limit(&self, limit: Duration) -> io::Result<()>;
}

impl Stream for TcpStream {
    fn time_limit(&self, limit: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(limit))?;
        self.set_write_timeout(Some(limit))
    }
}

impl Stream for UnixStream {
    fn time_limit(&self, limit: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(limit))?;
        self.set_write_timeout(Some(limit))
    }
}

/// One connection of a blocking client. Each read waits at most its time limit (60 s at first).
pub struct Connection {
    stream: Box<dyn Stream>,
    parser: Parser,
    host: String,
}

impl Connection {
    pub fn open(addr: SocketAddr) -> io::Result<Connection> {
        let stream = TcpStream::connect(addr)?;
        stream.set_nodelay(true)?;
        Connection::over(Box::new(stream), addr.to_string())
    }

    pub fn open_unix(path: &Path) -> io::Result<Connection> {
        Connection::over(Box::new(UnixStream::connect(path)?), "localhost".into())
    }

    pub(crate) fn over(stream: Box<dyn Stream>, host: String) -> io::Result<Connection> {
        stream.time_limit(Duration::from_secs(60))?;
        Ok(Connection { stream, parser: Parser::new(), host })
    }

    pub fn time_limit(&self, limit: Duration) -> io::Result<()> {
        self.stream.time_limit(limit)
    }

    /// Writes raw bytes, such as half a request.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Sends a request; `host` and `content-length` are added unless `headers` name them.
    pub fn send(&mut self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<()> {
        let named = |name: &str| headers.iter().any(|(key, _)| key.eq_ignore_ascii_case(name));
        let mut text = format!("{method} {target} HTTP/1.1\r\n");
        if !named("host") {
            text += &format!("host: {}\r\n", self.host);
        }
        if (!body.is_empty() || method == "POST") && !named("content-length") && !named("transfer-encoding") {
            text += &format!("content-length: {}\r\n", body.len());
        }
        for (name, value) in headers {
            text += &format!("{name}: {value}\r\n");
        }
        text += "\r\n";
        let mut bytes = text.into_bytes();
        bytes.extend_from_slice(body);
        if method == "HEAD" {
            self.parser.expect_no_body();
        }
        self.stream.write_all(&bytes)
    }

    /// Waits for the next whole response. `UnexpectedEof` if the server closes before it, `InvalidData` if it is no HTTP.
    pub fn receive(&mut self) -> io::Result<Response> {
        let mut bytes = [0; 16 * 1024];
        loop {
            if let Some(response) =
                self.parser.take_response().map_err(|text| io::Error::new(io::ErrorKind::InvalidData, text))?
            {
                return Ok(response);
            }
            let read = match self.stream.read(&mut bytes) {
                // A read with a time limit ends so when the process was stopped and goes on (signal(7)); nothing was read.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read?,
            };
            match read {
                0 => {
                    let partly = if self.parser.is_mid_response() { "in the middle of" } else { "before" };
                    return self.parser.end().ok_or_else(|| {
                        io::Error::new(io::ErrorKind::UnexpectedEof, format!("closed {partly} a response"))
                    });
                }
                count => self.parser.push(&bytes[..count]),
            }
        }
    }

    pub fn request(&mut self, method: &str, target: &str) -> io::Result<Response> {
        self.send(method, target, &[], b"")?;
        self.receive()
    }

    /// Reads until the server closes; the bytes that came. An error if it does not close within the time limit.
    pub fn read_to_close(&mut self) -> io::Result<Vec<u8>> {
        let mut rest = std::mem::take(&mut self.parser.buffer);
        self.stream.read_to_end(&mut rest)?;
        Ok(rest)
    }
}

/// One request on a connection of its own.
pub fn get(addr: SocketAddr, target: &str) -> io::Result<Response> {
    Connection::open(addr)?.request("GET", target)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNKED: &[u8] =
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\na;x=y\r\n0123456789\r\n0\r\nt: 1\r\n\r\n";
    const LENGTH: &[u8] = b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\nconnection: Close\r\n\r\ngone";

    /// Feeds `bytes` in portions of `step`.
    fn parse(bytes: &[u8], step: usize) -> Result<Vec<Response>, String> {
        let (mut parser, mut found) = (Parser::new(), Vec::new());
        for portion in bytes.chunks(step) {
            parser.push(portion);
            while let Some(response) = parser.take_response()? {
                found.push(response);
            }
        }
        Ok(found)
    }

    #[test]
    fn responses_are_found_wherever_the_bytes_are_cut() {
        let both = [CHUNKED, LENGTH].concat();
        for step in 1..both.len() {
            let found = parse(&both, step).unwrap();
            assert_eq!(found.len(), 2, "cut every {step} bytes");
            assert_eq!((found[0].status, found[0].text().as_str(), found[0].close), (200, "abc0123456789", false));
            assert_eq!((found[1].status, found[1].text().as_str(), found[1].close), (404, "gone", true));
        }
    }

    #[test]
    fn a_response_that_lacks_its_last_byte_is_not_whole() {
        for whole in [CHUNKED, LENGTH] {
            let mut parser = Parser::new();
            parser.push(&whole[..whole.len() - 1]);
            assert_eq!(parser.take_response(), Ok(None));
            assert!(parser.is_mid_response());
            assert_eq!(parser.end(), None);
        }
    }

    #[test]
    fn a_body_without_length_ends_with_the_connection() {
        let mut parser = Parser::new();
        parser.push(b"HTTP/1.1 200 OK\r\n\r\nall of it");
        assert_eq!(parser.take_response(), Ok(None));
        let response = parser.end().unwrap();
        assert_eq!((response.text().as_str(), response.close), ("all of it", true));
    }

    #[test]
    fn heads_without_body_end_at_once() {
        let found = parse(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n", 7).unwrap();
        assert_eq!(found.iter().map(|response| response.status).collect::<Vec<_>>(), [204]);
        let mut parser = Parser::new();
        parser.expect_no_body();
        parser.push(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n");
        assert_eq!(parser.take_response().unwrap().unwrap().status, 200);
        assert!(!parser.is_mid_response());
    }

    #[test]
    fn what_is_not_http_is_an_error() {
        for bytes in [
            &b"HTTP/2 200\r\n\r\n"[..],
            b"HTTP/1.1 2xx\r\n\r\n",
            b"hello\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nab\r\n",
        ] {
            assert!(parse(bytes, bytes.len()).is_err(), "{:?}", String::from_utf8_lossy(bytes));
        }
    }
}
