//! What is logged of requests that are denied: one line a second and peer at most, with the number of those left out, and the
//! target cut and escaped. A peer that is denied for ever fills neither disk nor terminal.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::{Method, StatusCode};
use tokio::time::Instant;

use super::Peer;

/// From one line about a peer to the next.
const PAUSE: Duration = Duration::from_secs(1);
/// Peers that are told apart; all others share one line.
const PEERS: usize = 256;
/// Bytes of a target that are logged.
const TARGET: usize = 200;

/// What counts as one peer: a user, an IPv4 address or an IPv6 /64 network, which one host has at will.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerKey {
    User(u32),
    V4([u8; 4]),
    V6([u8; 8]),
}

impl PeerKey {
    pub fn of_address(address: IpAddr) -> PeerKey {
        match address.to_canonical() {
            IpAddr::V4(v4) => PeerKey::V4(v4.octets()),
            IpAddr::V6(v6) => {
                let [a, b, c, d, e, f, g, h, ..] = v6.octets();
                PeerKey::V6([a, b, c, d, e, f, g, h])
            }
        }
    }
}

/// When each peer had its last line, and how many denials there were since.
#[derive(Debug, Default)]
struct Lines {
    peers: HashMap<PeerKey, Last>,
    others: Option<Last>,
}

#[derive(Clone, Copy, Debug)]
struct Last {
    at: Instant,
    left_out: u64,
}

impl Lines {
    /// Returns how many denials of the peer were left out, or `None` if this one must be, too.
    fn admit(&mut self, peer: PeerKey, now: Instant) -> Option<u64> {
        if self.peers.len() >= PEERS && !self.peers.contains_key(&peer) {
            self.peers.retain(|_, last| now.duration_since(last.at) < PAUSE);
        }
        let last = if self.peers.len() < PEERS || self.peers.contains_key(&peer) {
            self.peers.get_mut(&peer)
        } else {
            self.others.as_mut()
        };
        let left_out = match last {
            Some(last) if now.duration_since(last.at) < PAUSE => {
                last.left_out += 1;
                return None;
            }
            Some(last) => last.left_out,
            None => 0,
        };
        let fresh = Last { at: now, left_out: 0 };
        if self.peers.len() < PEERS || self.peers.contains_key(&peer) {
            self.peers.insert(peer, fresh);
        } else {
            self.others = Some(fresh);
        }
        Some(left_out)
    }
}

/// The log of denials.
#[derive(Debug, Default)]
pub struct Denials(Mutex<Lines>);

impl Denials {
    /// Logs that a request was denied, unless the peer had a line a moment ago.
    pub fn log(&self, peer: &Peer, method: &Method, target: &str, status: StatusCode, why: &str) {
        let admitted = self.0.lock().unwrap_or_else(PoisonError::into_inner).admit(peer.key(), Instant::now());
        if let Some(left_out) = admitted {
            tracing::warn!(
                %peer, method = %Shortened(method.as_str()), target = %Shortened(target), status = status.as_u16(), left_out,
                "admin request denied: {why}"
            );
        }
    }

    /// Logs that a connection was denied.
    pub fn log_connection(&self, peer: &Peer, why: &str) {
        let admitted = self.0.lock().unwrap_or_else(PoisonError::into_inner).admit(peer.key(), Instant::now());
        if let Some(left_out) = admitted {
            tracing::warn!(%peer, left_out, "admin connection denied: {why}");
        }
    }
}

/// A client's text, escaped and at most [`TARGET`] bytes of it.
struct Shortened<'a>(&'a str);

impl fmt::Display for Shortened<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cut = TARGET.min(self.0.len());
        // The start is a boundary.
        let end = (0..=cut).rev().find(|at| self.0.is_char_boundary(*at)).unwrap_or(0);
        write!(f, "{}", self.0[..end].escape_debug())?;
        f.write_str(if end < self.0.len() { "..." } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(last: u32) -> PeerKey {
        PeerKey::User(last)
    }

    #[test]
    fn a_peer_has_one_line_a_second_with_the_number_left_out() {
        let (mut lines, start) = (Lines::default(), Instant::now());
        assert_eq!(lines.admit(peer(1), start), Some(0));
        for ms in 1..1000 {
            assert_eq!(lines.admit(peer(1), start + Duration::from_millis(ms)), None);
        }
        assert_eq!(lines.admit(peer(2), start), Some(0), "another peer has a line of its own");
        assert_eq!(lines.admit(peer(1), start + PAUSE), Some(999));
        assert_eq!(lines.admit(peer(1), start + PAUSE * 2), Some(0));
    }

    #[test]
    fn many_peers_share_a_line_and_take_no_more_memory() {
        let (mut lines, start) = (Lines::default(), Instant::now());
        let admitted = (0..10_000).filter(|number| lines.admit(peer(*number), start).is_some()).count();
        assert_eq!((admitted, lines.peers.len()), (PEERS + 1, PEERS));
        assert_eq!(lines.admit(peer(9_999), start + PAUSE), Some(0), "those of long ago make room");
    }

    #[test]
    fn addresses_of_one_network_are_one_peer() {
        let key = |text: &str| PeerKey::of_address(text.parse().unwrap());
        assert_eq!(key("2001:db8:1:2::1"), key("2001:db8:1:2:ffff::9"));
        assert_ne!(key("2001:db8:1:2::1"), key("2001:db8:1:3::1"));
        assert_eq!(key("::ffff:10.0.0.1"), key("10.0.0.1"));
        assert_ne!(key("10.0.0.1"), key("10.0.0.2"));
    }

    #[test]
    fn a_target_is_cut_and_escaped() {
        assert_eq!(Shortened("/a\x1b[2J\nb").to_string(), "/a\\u{1b}[2J\\nb");
        let long = "/".repeat(199) + "ééé";
        assert_eq!(Shortened(&long).to_string(), "/".repeat(199) + "...");
        assert_eq!(Shortened("/short").to_string(), "/short");
    }
}
