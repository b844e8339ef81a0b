//! TLS as the master has it: it reads certificates and keys (a child may have no right to), says when they expire, and makes the
//! keys of session tickets, so that all children have the same. It never speaks TLS.
//!
//! A set's certificates lie in sealed memory, of which each of its children gets a descriptor; the master keeps no other copy
//! of a private key.

mod certificates;
#[cfg(test)]
mod tests;
mod tickets;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

pub use tickets::{SavedTickets, Tickets};

use self::certificates::Facts;
use super::resume::{Fd, Luggage};
use crate::config::Config;
use crate::control::secrets::{self, ServerCertificates};
use crate::report::{CertificateStatus, Failure, Stage, Validity};

/// How long before the end of a certificate it is spoken of.
const NOTICE: Duration = Duration::from_secs(14 * 24 * 3600);
/// How often it is spoken of again.
pub const REMINDER: Duration = Duration::from_secs(24 * 3600);

/// The certificates of one set.
#[derive(Debug)]
pub struct Certificates {
    sealed: OwnedFd,
    facts: Vec<Facts>,
    /// The servers that have any, by name.
    servers: Vec<String>,
    rotation: Duration,
}

/// The certificates of one set as another program of this process goes on with them.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedCertificates {
    sealed: Fd,
    facts: Vec<Facts>,
    servers: Vec<String>,
    rotation: Duration,
}

impl SavedCertificates {
    pub fn resume(self) -> std::io::Result<Certificates> {
        let SavedCertificates { sealed, facts, servers, rotation } = self;
        Ok(Certificates { sealed: sealed.copy()?, facts, servers, rotation })
    }
}

impl Certificates {
    pub fn save(&self, luggage: &mut Luggage) -> std::io::Result<SavedCertificates> {
        Ok(SavedCertificates {
            sealed: luggage.put(&self.sealed)?,
            facts: self.facts.clone(),
            servers: self.servers.clone(),
            rotation: self.rotation,
        })
    }

    /// Reads and checks all that `config` names; nothing if no server has TLS. Blocks.
    pub fn read(config: &Config) -> Result<Option<Certificates>, Failure> {
        let mut servers = Vec::new();
        let mut facts = Vec::new();
        for server in config.server.iter().filter(|server| server.is_tls()) {
            let mut certificates = Vec::new();
            for files in &server.tls {
                let (certificate, fact) = certificates::read(&server.name, files).map_err(|error| {
                    let failure = Failure::new(Stage::Tls, format!("set up TLS for server `{}`: {error}", server.name));
                    match error.hint() {
                        Some(hint) => failure.hint(hint),
                        None => failure,
                    }
                })?;
                certificates.push(certificate);
                facts.push(fact);
            }
            servers.push(ServerCertificates { server: server.name.clone(), certificates });
        }
        if servers.is_empty() {
            return Ok(None);
        }
        let sealed =
            secrets::seal_certificates(&servers).map_err(|error| Failure::new(Stage::Tls, error.to_string()))?;
        let servers = servers.into_iter().map(|server| server.server).collect();
        Ok(Some(Certificates { sealed, facts, servers, rotation: config.tls.ticket_rotation }))
    }

    /// For a child.
    pub fn lend(&self) -> std::io::Result<OwnedFd> {
        self.sealed.try_clone()
    }

    /// One for all certificates of each server; none for a server of which one is not known.
    pub fn fingerprints(&self) -> BTreeMap<String, String> {
        let mut all: BTreeMap<String, Option<String>> = BTreeMap::new();
        for facts in &self.facts {
            let known = all.entry(facts.server().into()).or_insert_with(|| Some(String::new()));
            *known = known.take().zip(facts.fingerprint()).map(|(before, next)| before + next);
        }
        all.into_iter().filter_map(|(server, all)| Some((server, all?))).collect()
    }

    pub fn servers(&self) -> impl Iterator<Item = &str> {
        self.servers.iter().map(String::as_str)
    }

    pub fn status(&self) -> Vec<CertificateStatus> {
        let now = SystemTime::now();
        self.facts.iter().map(|facts| facts.status(now)).collect()
    }

    /// Says which ones end soon, or have ended.
    pub fn warn(&self) {
        for CertificateStatus { server, cert, not_after, validity, .. } in self.status() {
            match validity {
                Validity::Valid => {}
                Validity::NotYetValid => tracing::warn!(server, cert, "the certificate is not valid yet"),
                Validity::ExpiresSoon => tracing::warn!(server, cert, not_after, "the certificate expires soon"),
                Validity::Expired => tracing::error!(server, cert, not_after, "the certificate has expired"),
            }
        }
    }
}
