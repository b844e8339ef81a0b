//! Proving: before READY the operator's probes go through this worker's own routes, each over a private pair of sockets
//! whose one end is served as if a listener of its server had accepted it. What cannot answer them never meets a client.
//!
//! It judges answers and nothing else: which set is probed is the master's decision, how long all may take `start_timeout`'s.

use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::task::JoinSet;

use super::handover::Start;
use super::plugin::Plugin;
use super::serve::Server;
use super::serve::conn::Origin;
use crate::config::{self, Probe};
use crate::report::{Failure, Stage};
use crate::sys::socket::Bare;

/// No listener of the master's has this number: what comes over the pair is nobody's to hand over.
const NO_LISTENER: u32 = u32::MAX;
/// Of a body, what is looked into.
const BODY_LIMIT: usize = 1 << 20;
/// Of an answer that is wrong, what is shown.
const SHOWN: usize = 200;

/// Why a probe did not pass.
#[derive(Debug, thiserror::Error)]
enum Miss {
    #[error("it answered {got}, not {expected}: {start}")]
    Status { got: StatusCode, expected: u16, start: String },
    #[error("the body of its {got} lacks `{expected}`: {start}")]
    Body { got: StatusCode, expected: String, start: String },
    #[error("no whole answer came within {0:?}")]
    Timeout(Duration),
    #[error("the connection broke: {0}")]
    Broken(#[from] hyper::Error),
    #[error("it cannot be sent: {0}")]
    Request(#[from] http::Error),
    #[error("no pair of sockets is to be had: {0}")]
    Pair(#[from] io::Error),
}

/// Sends every probe of every server, one after the other. Within the runtime that serves.
pub async fn prove(server: &'static Server, servers: &[config::Server]) -> Result<(), Failure> {
    for config::Server { name, probe, .. } in servers {
        for probe in probe {
            let passed = tokio::time::timeout(probe.timeout, send(server, name, probe)).await;
            if let Err(miss) = passed.unwrap_or(Err(Miss::Timeout(probe.timeout))) {
                return Err(failure(server, name, probe, &miss));
            }
        }
    }
    Ok(())
}

fn failure(server: &Server, name: &str, probe: &Probe, miss: &Miss) -> Failure {
    let text = format!("pass the probe {probe} of [[server]] `{name}`: {miss}");
    let hint = format!("the probe expects {}; change the code, or the probe", expectation(probe));
    let failure = Failure::new(Stage::Prove, text).hint(hint);
    let path = probe.path.split('?').next().unwrap_or_default();
    match server.sites.of(name).routes.find(path, || Some(&probe.host)).map(|found| found.to) {
        Some(plugin) => failure.of_plugin(Plugin::name(plugin)),
        None => failure,
    }
}

fn expectation(probe: &Probe) -> String {
    match &probe.body {
        None => probe.status.to_string(),
        Some(part) => format!("{} with `{part}` in the body", probe.status),
    }
}

async fn send(server: &'static Server, name: &str, probe: &Probe) -> Result<(), Miss> {
    let stream = connect(server, name)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Ended when this is; its error comes out at the request too.
    let mut task = JoinSet::new();
    task.spawn(connection);
    judge(probe, sender.send_request(request(probe)?).await?).await
}

/// A connection that nobody accepted, being served as one of that server's.
fn connect(server: &'static Server, name: &str) -> io::Result<tokio::net::UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    theirs.set_nonblocking(true)?;
    // A worker proves itself once, and its servers' names are kept for life anyway.
    let name = Box::leak(Box::from(name));
    let origin = Origin { listener: NO_LISTENER, name, peer: None, local: None };
    server.begin(origin, Bare::Unix(theirs), Start::default());
    tokio::net::UnixStream::from_std(ours)
}

fn request(probe: &Probe) -> Result<Request<Empty<Bytes>>, http::Error> {
    let mut request =
        Request::builder().method(probe.method.as_str()).uri(&probe.path).header(header::HOST, &probe.host);
    for (name, value) in &probe.headers {
        request = request.header(name, value);
    }
    request = request.header(header::CONNECTION, HeaderValue::from_static("close"));
    request.body(Empty::new())
}

async fn judge(probe: &Probe, response: Response<Incoming>) -> Result<(), Miss> {
    let got = response.status();
    let as_expected = got.as_u16() == probe.status;
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    // To its end: an answer that breaks off is none. Of a wrong one the first bytes are enough.
    let enough = if as_expected { BODY_LIMIT } else { SHOWN };
    while bytes.len() < enough
        && let Some(frame) = body.frame().await
    {
        if let Ok(data) = frame?.into_data() {
            bytes.extend_from_slice(&data);
        }
    }
    if !as_expected {
        return Err(Miss::Status { got, expected: probe.status, start: shown(&bytes) });
    }
    match &probe.body {
        Some(part) if !contains(&bytes, part.as_bytes()) => {
            Err(Miss::Body { got, expected: part.clone(), start: shown(&bytes) })
        }
        _ => Ok(()),
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    part.is_empty() || bytes.windows(part.len()).any(|window| window == part)
}

/// The first bytes of a body, in one line.
fn shown(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "without a body".into();
    }
    let start = String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN)]);
    let more = if bytes.len() > SHOWN { " ..." } else { "" };
    format!("\"{}\"{more}", start.trim_end().escape_debug())
}
