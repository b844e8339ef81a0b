//! One certificate with its key, out of two files: whether they can be used, and what the certificate says of itself.

use std::io::{self, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use zeroize::{Zeroize, Zeroizing};

use super::NOTICE;
use crate::config;
use crate::control::secrets::Certificate;
use crate::master::store;
use crate::report::{CertificateStatus, Validity};
use crate::sys::files;

/// No chain and no key is longer.
const MAX_FILE: u64 = 1 << 20;
/// 9999-12-31: the last day that a certificate can name, and RFC 3339 can write.
const LAST_SECOND: u64 = 253_402_300_799;

#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("{} cannot be read: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is longer than any certificate or key", path.display())]
    TooLong { path: PathBuf },
    #[error("{} holds no certificate in PEM form", path.display())]
    NoCertificate { path: PathBuf },
    #[error("{} holds no private key in PEM form", path.display())]
    NoKey { path: PathBuf },
    #[error("{} holds an encrypted private key", path.display())]
    EncryptedKey { path: PathBuf },
    #[error("{} is broken: {why}", path.display())]
    Broken { path: PathBuf, why: String },
    #[error("{} is not the key of {}", key.display(), cert.display())]
    Mismatch { cert: PathBuf, key: PathBuf },
}

impl CertificateError {
    pub fn hint(&self) -> Option<String> {
        match self {
            CertificateError::Read { path, source } => match source.kind() {
                io::ErrorKind::NotFound if path.is_relative() => {
                    Some("paths in a file are relative to its folder".into())
                }
                io::ErrorKind::PermissionDenied => {
                    Some(format!("the master runs as uid {}; nobody else has to read it", nix::unistd::geteuid()))
                }
                _ => None,
            },
            CertificateError::EncryptedKey { path } => Some(format!(
                "a server cannot ask for its password; decrypt it: umask 077; openssl pkey -in {} -out NEW, and name NEW as `key`",
                path.display()
            )),
            CertificateError::Mismatch { .. } => {
                Some("the server's own certificate comes first in its file, then those that lead to its issuer".into())
            }
            CertificateError::Broken { .. } => {
                Some("keys may be RSA of 2048 bits or more, ECDSA P-256 or P-384, or Ed25519".into())
            }
            _ => None,
        }
    }
}

/// What marks a private key as encrypted.
const ENCRYPTED: [&[u8]; 2] = [b"BEGIN ENCRYPTED PRIVATE KEY", b"Proc-Type: 4,ENCRYPTED"];

/// What is told of a certificate.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Facts {
    server: String,
    cert: PathBuf,
    names: Vec<String>,
    not_before: SystemTime,
    not_after: SystemTime,
    /// Of all that a client is shown. Absent from an earlier program.
    #[serde(default)]
    fingerprint: Option<String>,
}

impl Facts {
    pub fn server(&self) -> &str {
        &self.server
    }

    pub fn fingerprint(&self) -> Option<&str> {
        self.fingerprint.as_deref()
    }

    pub fn status(&self, now: SystemTime) -> CertificateStatus {
        let validity = if now >= self.not_after {
            Validity::Expired
        } else if now < self.not_before {
            Validity::NotYetValid
        } else if self.not_after.duration_since(now).is_ok_and(|left| left <= NOTICE) {
            Validity::ExpiresSoon
        } else {
            Validity::Valid
        };
        let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        CertificateStatus {
            server: self.server.clone(),
            cert: self.cert.display().to_string(),
            names: self.names.clone(),
            not_after: humantime::format_rfc3339_seconds(self.not_after).to_string(),
            expires_in_s: match self.not_after.duration_since(now) {
                Ok(left) => seconds(left),
                Err(past) => -seconds(past.duration()),
            },
            validity,
        }
    }
}

/// Reads both files, and makes sure that a server can be run with them. One that has expired is not refused: it may be all
/// that there is.
pub fn read(server: &str, files: &config::Certificate) -> Result<(Certificate, Facts), CertificateError> {
    let config::Certificate { cert, key } = files;
    let broken = |path: &Path, why: &str| CertificateError::Broken { path: path.to_owned(), why: why.into() };
    let text = contents(cert)?;
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|_| broken(cert, "it is not valid PEM"))?;
    let own = chain.first().ok_or_else(|| CertificateError::NoCertificate { path: cert.clone() })?;
    let (names, mut facts) = understand(server, cert, own)?;
    let mut fingerprint = Sha256::new();
    chain.iter().for_each(|der| fingerprint.update(der));
    facts.fingerprint = Some(store::hex(&fingerprint.finalize()));

    let text = contents(key)?;
    let mut private = match PrivateKeyDer::pem_slice_iter(&text).next() {
        Some(Ok(private)) => private,
        // PKCS#8 names it in the first line, which no reader of clear keys knows; the older form in a header (RFC 1421).
        _ if ENCRYPTED.iter().any(|mark| holds(&text, mark)) => {
            return Err(CertificateError::EncryptedKey { path: key.clone() });
        }
        // What is wrong with it may show a part of it.
        Some(Err(_)) => return Err(broken(key, "it is not valid PEM")),
        None => return Err(CertificateError::NoKey { path: key.clone() }),
    };
    let der = Zeroizing::new(private.secret_der().to_vec());
    let checked = CertifiedKey::from_der(chain.clone(), private.clone_key(), &ring::default_provider());
    private.zeroize();
    match checked {
        Ok(_) => {}
        Err(rustls::Error::InconsistentKeys(_)) => {
            return Err(CertificateError::Mismatch { cert: cert.clone(), key: key.clone() });
        }
        Err(rustls::Error::InvalidCertificate(error)) => {
            return Err(broken(cert, &rustls::Error::InvalidCertificate(error).to_string()));
        }
        Err(error) => return Err(broken(key, &error.to_string())),
    }
    let chain = chain.iter().map(|der| der.to_vec()).collect();
    Ok((Certificate { names, chain, key: der }, facts))
}

fn contents(path: &Path) -> Result<Zeroizing<Vec<u8>>, CertificateError> {
    let failed = |source| CertificateError::Read { path: path.to_owned(), source };
    // With room for all of it: a `Vec` that grows would leave copies of a key behind.
    let mut text = Zeroizing::new(Vec::with_capacity(MAX_FILE as usize + 1));
    files::open_regular(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut text)).map_err(failed)?;
    if text.len() as u64 > MAX_FILE {
        return Err(CertificateError::TooLong { path: path.to_owned() });
    }
    Ok(text)
}

fn holds(text: &[u8], words: &[u8]) -> bool {
    text.windows(words.len()).any(|window| window == words)
}

/// The host names that a certificate is for, and what is told of it.
fn understand(server: &str, path: &Path, der: &[u8]) -> Result<(Vec<String>, Facts), CertificateError> {
    let broken = |why: String| CertificateError::Broken { path: path.to_owned(), why };
    let (_, parsed) = X509Certificate::from_der(der).map_err(|error| broken(error.to_string()))?;
    let (mut names, mut addresses) = (Vec::new(), Vec::new());
    let others = parsed.subject_alternative_name().map_err(|error| broken(error.to_string()))?;
    for name in others.iter().flat_map(|extension| &extension.value.general_names) {
        match name {
            GeneralName::DNSName(name) => names.push(name.trim_end_matches('.').to_ascii_lowercase()),
            GeneralName::IPAddress(bytes) => {
                let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
                let address = v4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from));
                addresses.extend(address.map(|address| address.to_string()));
            }
            _ => {}
        }
    }
    let time = |time: x509_parser::time::ASN1Time| {
        let seconds = u64::try_from(time.timestamp()).unwrap_or(0).min(LAST_SECOND);
        UNIX_EPOCH + Duration::from_secs(seconds)
    };
    let facts = Facts {
        server: server.into(),
        cert: path.into(),
        names: names.iter().cloned().chain(addresses).collect(),
        not_before: time(parsed.validity().not_before),
        not_after: time(parsed.validity().not_after),
        fingerprint: None,
    };
    Ok((names, facts))
}
