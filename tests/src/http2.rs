//! HTTP/2, with prior knowledge or over TLS, as the tests speak it: the `h2` crate's client, which retries nothing and hides nothing, and
//! frames made by hand for what it would refuse to send.

use std::future::{Future, poll_fn};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Reason, RecvStream};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use crate::http::Response;
use crate::{tls, wait};

type Opened = (SendRequest<Bytes>, JoinHandle<Result<(), h2::Error>>);

/// Opens a connection, in clear or, if it is offered there, over TLS; its io runs in a task, whose end says how it ended.
pub async fn open(target: SocketAddr, tls: Option<&tls::Client>) -> io::Result<Opened> {
    let stream = tokio::net::TcpStream::connect(target).await?;
    stream.set_nodelay(true)?;
    let Some(client) = tls.map(|client| client.offering(&["h2"])) else {
        let (send, connection) = h2::client::handshake(stream).await.map_err(io::Error::other)?;
        return Ok((send, tokio::spawn(connection)));
    };
    let stream = TlsConnector::from(client.config()).connect(client.name(), stream).await?;
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Err(io::Error::other("the server does not agree on HTTP/2"));
    }
    let (send, connection) = h2::client::handshake(stream).await.map_err(io::Error::other)?;
    Ok((send, tokio::spawn(connection)))
}

/// A request's head, for the authority `target`.
pub fn head(method: &str, target: SocketAddr, path: &str, fields: &[(&str, &str)]) -> http::Request<()> {
    let mut request = http::Request::builder().method(method).uri(format!("http://{target}{path}"));
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).expect("a request that can be said")
}

/// Whether the protocol itself says that the request was not looked at and may be sent again (RFC 9113 8.7): the server's
/// GOAWAY does not reach it, or it was refused.
pub fn is_unprocessed(error: &h2::Error) -> bool {
    let goaway = error.is_go_away() && error.is_remote() && error.reason() == Some(Reason::NO_ERROR);
    goaway || error.reason() == Some(Reason::REFUSED_STREAM)
}

/// Whether the server has said GOAWAY, or is gone.
pub async fn is_told(send: &mut SendRequest<Bytes>) -> bool {
    poll_fn(|cx| Poll::Ready(matches!(send.poll_ready(cx), Poll::Ready(Err(_))))).await
}

/// The rest of a response whose head has come.
pub async fn whole(response: http::Response<RecvStream>) -> Result<Response, h2::Error> {
    let (head, mut incoming) = response.into_parts();
    let mut body = Vec::new();
    while let Some(data) = incoming.data().await {
        let data = data?;
        incoming.flow_control().release_capacity(data.len())?;
        body.extend_from_slice(&data);
    }
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers = head.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
    Ok(Response { status: head.status.as_u16(), headers, body, close: false })
}

/// A connection for tests that wait for each answer.
pub struct Client {
    runtime: Runtime,
    target: SocketAddr,
    send: SendRequest<Bytes>,
    ended: JoinHandle<Result<(), h2::Error>>,
}

/// A request that is on its way.
pub struct Pending(JoinHandle<Result<Response, h2::Error>>);

impl Client {
    #[track_caller]
    pub fn open(target: SocketAddr) -> Client {
        Client::open_over(target, None)
    }

    #[track_caller]
    pub fn open_tls(target: SocketAddr, tls: &tls::Client) -> Client {
        Client::open_over(target, Some(tls))
    }

    #[track_caller]
    fn open_over(target: SocketAddr, tls: Option<&tls::Client>) -> Client {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("failed to start a client's runtime");
        let (send, ended) =
            runtime.block_on(open(target, tls)).unwrap_or_else(|error| panic!("failed to connect: {error}"));
        Client { runtime, target, send, ended }
    }

    pub fn run<T>(&self, future: impl Future<Output = T>) -> T {
        let limited = async { tokio::time::timeout(wait::LONG, future).await };
        self.runtime.block_on(limited).expect("it takes too long")
    }

    /// Sends a request, and waits for nothing.
    pub fn begin(&self, method: &str, path: &str, body: Option<Vec<u8>>) -> Pending {
        let (send, request) = (self.send.clone(), head(method, self.target, path, &[]));
        Pending(self.runtime.spawn(async move {
            let (response, mut upload) = send.ready().await?.send_request(request, body.is_none())?;
            if let Some(body) = body {
                upload.send_data(body.into(), true)?;
            }
            whole(response.await?).await
        }))
    }

    pub fn wait(&self, pending: Pending) -> Result<Response, h2::Error> {
        self.run(pending.0).expect("the request's task panicked")
    }

    pub fn request(&self, method: &str, path: &str, body: Option<Vec<u8>>) -> Result<Response, h2::Error> {
        self.wait(self.begin(method, path, body))
    }

    /// A request that must be answered.
    #[track_caller]
    pub fn get(&self, path: &str) -> Response {
        self.request("GET", path, None).unwrap_or_else(|error| panic!("GET {path} got no answer: {error}"))
    }

    /// Whether the server has said GOAWAY, or is gone.
    pub fn is_told(&self) -> bool {
        let mut send = self.send.clone();
        self.run(is_told(&mut send))
    }

    /// Waits for its end.
    pub fn ended(mut self) -> Result<(), h2::Error> {
        let ended = &mut self.ended;
        let limited = async { tokio::time::timeout(wait::LONG, ended).await };
        self.runtime.block_on(limited).expect("the connection goes on").expect("its task panicked")
    }
}

// ---- frames ----

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// One frame as it goes over the wire.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("a frame of that length").to_be_bytes();
    [&len[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The fields of a request for `path`, without compression: `:method GET` and `:scheme http` are numbers 2 and 6 of the table
/// that RFC 7541 begins with, authority and path have names there.
pub fn fields(path: &str) -> Vec<u8> {
    let said =
        |name: u8, value: &str| [&[name, u8::try_from(value.len()).expect("a short value")], value.as_bytes()].concat();
    [vec![0x82, 0x86], said(1, "test.example"), said(4, path)].concat()
}

/// What comes of bytes that are no well-behaved client's: reads until the server closes, within `limit`.
pub fn throw(target: SocketAddr, bytes: &[u8], limit: Duration) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(target)?;
    stream.set_read_timeout(Some(limit))?;
    let mut writer = stream.try_clone()?;
    let bytes = bytes.to_vec();
    let writing = std::thread::spawn(move || {
        // The server may close before it has read all.
        let _ = writer.write_all(&bytes);
    });
    let mut received = Vec::new();
    let read = stream.read_to_end(&mut received);
    drop(stream);
    writing.join().expect("the writer panicked");
    match read {
        // A reset is an end, too.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(received),
        read => read.map(|_| received),
    }
}
