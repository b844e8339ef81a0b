//! Requests that are refused since they are malformed, and requests that their clients break off: counted by kind, and logged
//! at most once a second per peer, so that no client can fill the log.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};

use super::conn::Conn;
use super::limits::network;
use super::service::Own;
use crate::metrics::Slot;

/// What is wrong with a request, as the metrics name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Method or target.
    RequestLine,
    Version,
    Header,
    Host,
    /// `Content-Length`, or `Transfer-Encoding` without a final `chunked`, or with it twice.
    Framing,
    /// A transfer coding that is not known here.
    TransferCoding,
    /// A chunk.
    Body,
    /// A request of HTTP/2 whose stream is reset for it.
    Http2,
}

impl Malformed {
    fn slot(self) -> Slot {
        match self {
            Malformed::RequestLine => Slot::MalformedRequestLine,
            Malformed::Version => Slot::MalformedVersion,
            Malformed::Header => Slot::MalformedHeader,
            Malformed::Host => Slot::MalformedHost,
            Malformed::Framing => Slot::MalformedFraming,
            Malformed::TransferCoding => Slot::UnknownTransferCoding,
            Malformed::Body => Slot::MalformedBody,
            Malformed::Http2 => Slot::MalformedHttp2,
        }
    }

    /// The kind of a request that hyper's parser refuses. hyper tells them apart by its text only.
    fn of_parser(error: &hyper::Error) -> Malformed {
        let text = error.to_string();
        let says = |part: &str| text.contains(part);
        if says("method") || says("URI") {
            Malformed::RequestLine
        } else if says("version") {
            Malformed::Version
        } else if says("content-length") || says("transfer-encoding") {
            Malformed::Framing
        } else {
            Malformed::Header
        }
    }
}

/// Counts and logs a malformed request.
#[cold]
pub fn note(conn: &Conn, kind: Malformed, detail: impl fmt::Display) {
    conn.server.metrics.add(kind.slot());
    log(conn, detail);
}

/// Counts and logs a request that is answered by `own` and reaches no plugin.
#[cold]
pub fn note_own(conn: &Conn, own: Own) {
    match own {
        Own::BadHost => note(conn, Malformed::Host, own),
        Own::BadTarget | Own::TargetTooLong | Own::OtherScheme => note(conn, Malformed::RequestLine, own),
        Own::BadFraming | Own::BehindTrailers => note(conn, Malformed::Framing, own),
        Own::UnknownCoding => note(conn, Malformed::TransferCoding, own),
        Own::HeadTooLarge => {
            conn.server.metrics.add(Slot::HeadTooLarge);
            log(conn, own);
        }
        Own::BodyTooLarge => {
            conn.server.metrics.add(Slot::BodyTooLarge);
            log(conn, own);
        }
        // Answers, no refusals; or counted where the limit is met.
        Own::Healthy
        | Own::NotFound
        | Own::NoPlugin
        | Own::NoTunnel
        | Own::BodyTimeout
        | Own::RequestTimeout
        | Own::BadBody => {}
    }
}

/// Counts and logs what hyper's parser has refused, and answered.
#[cold]
pub fn note_parser(conn: &Conn, error: &hyper::Error) {
    if error.is_parse_too_large() {
        conn.server.metrics.add(Slot::HeadTooLarge);
        log(conn, error);
    } else {
        note(conn, Malformed::of_parser(error), error);
    }
}

/// Counts a body that came to no regular end: it is malformed, or the client broke it off.
#[cold]
pub fn note_body(conn: &Conn, error: &hyper::Error) {
    if is_malformed(error) {
        note(conn, Malformed::Body, cause(error));
    } else {
        conn.note_abort();
    }
}

/// Whether a body's error is the fault of its bytes, and not their absence.
fn is_malformed(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<std::io::Error>());
    source.is_some_and(|source| {
        matches!(source.kind(), std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData)
    })
}

/// The innermost text of an error.
fn cause(error: &hyper::Error) -> String {
    let mut error: &dyn std::error::Error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// Logs a refusal, unless its peer had one within the last second.
#[cold]
pub fn log(conn: &Conn, detail: impl fmt::Display) {
    let server = conn.server;
    if let Some(unlogged) = server.refusals.admit(conn.origin.peer, server.clock.now()) {
        tracing::info!(peer = ?conn.peer.to_std(), server = conn.origin.name, unlogged, "refused a request: {detail}");
    }
}

/// Which peers had a line in the log within the last second, and how many they would have had since.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<HashMap<Option<IpAddr>, Line>>);

#[derive(Debug)]
struct Line {
    at: u64,
    unlogged: u64,
}

impl Refusals {
    const INTERVAL_MS: u64 = 1000;
    /// Peers that are remembered. If more are refused within a second, the others are not logged.
    const PEERS: usize = 1024;

    /// How many lines were left out since the last one of this peer; `None` if this one is left out too.
    fn admit(&self, peer: Option<SocketAddr>, now: u64) -> Option<u64> {
        let key = peer.map(network);
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = lines.get_mut(&key) {
            if now.saturating_sub(line.at) < Refusals::INTERVAL_MS {
                line.unlogged += 1;
                return None;
            }
            line.at = now;
            return Some(std::mem::take(&mut line.unlogged));
        }
        if lines.len() >= Refusals::PEERS {
            lines.retain(|_, line| now.saturating_sub(line.at) < Refusals::INTERVAL_MS);
        }
        if lines.len() >= Refusals::PEERS {
            return None;
        }
        lines.insert(key, Line { at: now, unlogged: 0 });
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second_is_logged_per_peer() {
        let refusals = Refusals::default();
        let peer = |last: u32| Some(SocketAddr::from((std::net::Ipv4Addr::from_bits(last), 80)));
        assert_eq!(refusals.admit(peer(1), 5000), Some(0));
        assert_eq!(refusals.admit(peer(1), 5500), None);
        assert_eq!(refusals.admit(peer(1), 5999), None);
        assert_eq!(refusals.admit(peer(2), 5999), Some(0), "another peer");
        assert_eq!(refusals.admit(None, 5999), Some(0), "a Unix socket");
        assert_eq!(refusals.admit(peer(1), 6000), Some(2), "with those that were left out");
        assert_eq!(refusals.admit(peer(1), 7000), Some(0));
    }

    #[test]
    fn remembered_peers_are_bounded() {
        let refusals = Refusals::default();
        let peer = |last: u32| Some(SocketAddr::from((std::net::Ipv4Addr::from_bits(last), 80)));
        let logged = (0..3000).filter(|at| refusals.admit(peer(*at), 5000).is_some()).count();
        assert_eq!(logged, Refusals::PEERS);
        assert_eq!(refusals.admit(peer(5000), 6000), Some(0), "those of the last second have made room");
        assert_eq!(refusals.0.lock().unwrap().len(), 1);
    }
}
