//! What master and child share and nobody else may see: certificates with their private keys, and the keys of session tickets.
//!
//! They cross in sealed memory beside a message, never in one: messages are text, and text ends in logs. Nothing here can be
//! printed, and what was read is wiped from memory when it is dropped.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;

use zeroize::{Zeroize, Zeroizing};

use crate::sys::sealed;

/// Most that is read: certificates for thousands of names.
const MAX_SECRETS: usize = 16 << 20;

#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("failed to pass secrets on: {0}")]
    Io(#[from] io::Error),
    #[error("failed to understand the secrets that came")]
    Broken,
}

/// The certificates of one server, in its order.
#[derive(Debug, PartialEq, Eq)]
pub struct ServerCertificates {
    pub server: String,
    pub certificates: Vec<Certificate>,
}

#[derive(PartialEq, Eq)]
pub struct Certificate {
    /// The names that it is for, in lower case: `a.example`, `*.example`.
    pub names: Vec<String>,
    /// In DER, the server's own first.
    pub chain: Vec<Vec<u8>>,
    /// In DER: PKCS#8, PKCS#1 or SEC1.
    pub key: Zeroizing<Vec<u8>>,
}

/// The keys that seal one server's session tickets.
#[derive(Debug, PartialEq, Eq)]
pub struct ServerTickets {
    pub server: String,
    pub keys: TicketKeys,
}

/// Tickets are sealed with `current` and opened with any: a client may come with one of the last turn, or to a process that
/// has not heard of the newest turn yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TicketKeys {
    pub previous: TicketKey,
    pub current: TicketKey,
    pub next: TicketKey,
}

#[derive(Clone, PartialEq, Eq)]
pub struct TicketKey {
    /// Stands in the ticket, in clear.
    pub name: [u8; TicketKey::NAME],
    pub secret: Zeroizing<[u8; TicketKey::SECRET]>,
}

impl TicketKey {
    pub const NAME: usize = 16;
    pub const SECRET: usize = 32;
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").field("names", &self.names).finish_non_exhaustive()
    }
}

impl fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TicketKey").finish_non_exhaustive()
    }
}

/// Seals certificates for children.
pub fn seal_certificates(servers: &[ServerCertificates]) -> Result<OwnedFd, SecretError> {
    let mut out = Writer::default();
    out.count(servers.len());
    for ServerCertificates { server, certificates } in servers {
        out.bytes(server.as_bytes());
        out.count(certificates.len());
        for Certificate { names, chain, key } in certificates {
            out.count(names.len());
            names.iter().for_each(|name| out.bytes(name.as_bytes()));
            out.count(chain.len());
            chain.iter().for_each(|der| out.bytes(der));
            out.bytes(key);
        }
    }
    Ok(sealed::seal(c"baton-certificates", &out.0)?)
}

/// The certificates that the master sealed.
pub fn open_certificates(fd: OwnedFd) -> Result<Vec<ServerCertificates>, SecretError> {
    let bytes = sealed::open(fd, MAX_SECRETS)?;
    let mut from = Reader(&bytes);
    let servers = from.list(|from| {
        let server = from.text()?;
        let certificates = from.list(|from| {
            let names = from.list(Reader::text)?;
            let chain = from.list(|from| from.bytes().map(<[u8]>::to_vec))?;
            Some(Certificate { names, chain, key: Zeroizing::new(from.bytes()?.to_vec()) })
        })?;
        Some(ServerCertificates { server, certificates })
    });
    servers.filter(|_| from.0.is_empty()).ok_or(SecretError::Broken)
}

/// Seals ticket keys for children.
pub fn seal_tickets(servers: &[ServerTickets]) -> Result<OwnedFd, SecretError> {
    let mut out = Writer::default();
    out.count(servers.len());
    for ServerTickets { server, keys: TicketKeys { previous, current, next } } in servers {
        out.bytes(server.as_bytes());
        for key in [previous, current, next] {
            out.bytes(&key.name);
            out.bytes(&key.secret[..]);
        }
    }
    Ok(sealed::seal(c"baton-tickets", &out.0)?)
}

/// The ticket keys that the master sealed.
pub fn open_tickets(fd: OwnedFd) -> Result<Vec<ServerTickets>, SecretError> {
    let bytes = sealed::open(fd, MAX_SECRETS)?;
    let mut from = Reader(&bytes);
    let key = |from: &mut Reader<'_>| {
        let name = from.bytes()?.try_into().ok()?;
        let secret = <[u8; TicketKey::SECRET]>::try_from(from.bytes()?).ok()?;
        Some(TicketKey { name, secret: Zeroizing::new(secret) })
    };
    let servers = from.list(|from| {
        let server = from.text()?;
        let keys = TicketKeys { previous: key(from)?, current: key(from)?, next: key(from)? };
        Some(ServerTickets { server, keys })
    });
    servers.filter(|_| from.0.is_empty()).ok_or(SecretError::Broken)
}

/// Numbers are 32 bits, low byte first; bytes come after their number.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn count(&mut self, count: usize) {
        // Longer than that is longer than MAX_SECRETS: the reader refuses it.
        self.extend(&u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.extend(bytes);
    }

    /// A `Vec` that grows leaves a copy behind: here it is wiped.
    fn extend(&mut self, bytes: &[u8]) {
        if self.0.capacity() - self.0.len() < bytes.len() {
            let mut grown = Vec::with_capacity((self.0.capacity() + bytes.len()).max(4096) * 2);
            grown.extend_from_slice(&self.0);
            self.0.zeroize();
            self.0 = grown;
        }
        self.0.extend_from_slice(bytes);
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn count(&mut self) -> Option<usize> {
        let (count, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        usize::try_from(u32::from_le_bytes(*count)).ok()
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let count = self.count()?;
        let (bytes, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(bytes)
    }

    fn text(&mut self) -> Option<String> {
        String::from_utf8(self.bytes()?.to_vec()).ok()
    }

    /// Nothing is reserved before it has come.
    fn list<T>(&mut self, mut one: impl FnMut(&mut Reader<'a>) -> Option<T>) -> Option<Vec<T>> {
        let mut all = Vec::new();
        for _ in 0..self.count()? {
            all.push(one(self)?);
        }
        Some(all)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn certificates() -> Vec<ServerCertificates> {
        let one = |names: &[&str], key: &[u8]| Certificate {
            names: names.iter().map(ToString::to_string).collect(),
            chain: vec![vec![1; 3000], vec![2; 10]],
            key: Zeroizing::new(key.to_vec()),
        };
        vec![
            ServerCertificates { server: "a".into(), certificates: vec![one(&["a.example", "*.b"], &[7; 900])] },
            ServerCertificates { server: "b".into(), certificates: vec![one(&[], b"k"), one(&["x"], b"l")] },
        ]
    }

    fn key(byte: u8) -> TicketKey {
        TicketKey { name: [byte; TicketKey::NAME], secret: Zeroizing::new([byte; TicketKey::SECRET]) }
    }

    fn tickets() -> Vec<ServerTickets> {
        let keys = TicketKeys { previous: key(1), current: key(2), next: key(3) };
        vec![ServerTickets { server: "a".into(), keys }]
    }

    fn text(fd: OwnedFd) -> Zeroizing<Vec<u8>> {
        sealed::open(fd, MAX_SECRETS).unwrap()
    }

    #[test]
    fn what_is_sealed_comes_back_as_it_was() {
        assert_eq!(open_certificates(seal_certificates(&certificates()).unwrap()).unwrap(), certificates());
        assert_eq!(open_tickets(seal_tickets(&tickets()).unwrap()).unwrap(), tickets());
    }

    #[test]
    fn nothing_secret_is_printed() {
        let shown = format!("{:?} {:?}", certificates(), tickets());
        assert!(shown.contains("a.example") && !shown.contains("7, 7") && !shown.contains("2, 2"), "{shown}");
    }

    proptest! {
        #[test]
        fn what_is_cut_or_longer_is_an_error_and_no_bytes_make_it_panic(
            at in any::<prop::sample::Index>(),
            noise in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let whole = text(seal_certificates(&certificates()).unwrap());
            let cut = &whole[..at.index(whole.len())];
            prop_assert!(open_certificates(sealed::seal(c"t", cut).unwrap()).is_err());
            let longer = [&whole[..], &[0]].concat();
            prop_assert!(open_certificates(sealed::seal(c"t", &longer).unwrap()).is_err());
            let whole = text(seal_tickets(&tickets()).unwrap());
            prop_assert!(open_tickets(sealed::seal(c"t", &whole[..at.index(whole.len())]).unwrap()).is_err());
            let _ = open_certificates(sealed::seal(c"t", &noise).unwrap());
            let _ = open_tickets(sealed::seal(c"t", &noise).unwrap());
        }
    }
}
