//! TLS on a worker's side: what each server needs to speak it, made out of the secrets that the master sent. It reads no file
//! and makes no key, so that all generations are the same to a client that comes back.
//!
//! [`mod@handshake`] makes a clear stream a secure one; from there on `serve::h1` drives it as any other, in the form that is not
//! handed over: what a session has negotiated cannot move to another process.

mod handshake;
mod names;
mod tickets;
pub(in crate::child) mod wire;

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, ServerConnection};
use tokio_rustls::TlsAcceptor;

pub use self::handshake::{Shaken, handshake, poll_read};
use self::names::ByName;
pub use self::tickets::Tickets;
pub use self::wire::Wire;
use crate::config::{self, Config, TlsVersion};
use crate::control::secrets::{Certificate, ServerCertificates};

/// Why TLS cannot be spoken. The master has tried the same before: it does not come to this but by a mistake of ours.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("failed to set up TLS for server `{server}`: {source}")]
    Setup { server: String, source: rustls::Error },
    #[error("failed to set up TLS for server `{server}`: its certificates did not come")]
    Missing { server: String },
}

/// The servers that speak TLS.
#[derive(Default)]
pub struct Tls(Vec<(String, TlsAcceptor)>);

impl Tls {
    pub fn new(config: &Config, certificates: &[ServerCertificates], tickets: &Tickets) -> Result<Tls, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let mut all = Vec::new();
        for server in config.server.iter().filter(|server| server.is_tls()) {
            let name = server.name.clone();
            let Some(own) = certificates.iter().find(|own| own.server == name) else {
                return Err(TlsError::Missing { server: name });
            };
            let setup = |source| TlsError::Setup { server: name.clone(), source };
            let resolver = ByName::new(&own.certificates, &provider).map_err(setup)?;
            let versions: &[_] = match config.tls.min_version {
                TlsVersion::V12 => &[&rustls::version::TLS13, &rustls::version::TLS12],
                TlsVersion::V13 => &[&rustls::version::TLS13],
            };
            let mut rules = ServerConfig::builder_with_provider(provider.clone())
                .with_protocol_versions(versions)
                .map_err(setup)?
                .with_no_client_auth()
                .with_cert_resolver(Arc::new(resolver));
            rules.alpn_protocols = protocols(server).iter().map(|name| name.as_bytes().to_vec()).collect();
            rules.ticketer = tickets.of(&server.name, config.tls.ticket_rotation);
            // A session is in its ticket, or nowhere: what this process remembered, the next one would not.
            rules.session_storage = Arc::new(NoServerSessionStorage {});
            all.push((name, TlsAcceptor::from(Arc::new(rules))));
        }
        Ok(Tls(all))
    }

    /// Nothing if the server of that name speaks in clear.
    pub fn of(&self, server: &str) -> Option<&TlsAcceptor> {
        self.0.iter().find(|(name, _)| name == server).map(|(_, acceptor)| acceptor)
    }
}

/// What is offered to clients (ALPN), the best first.
fn protocols(server: &config::Server) -> &'static [&'static str] {
    if server.http2 { &["h2", "http/1.1"] } else { &["http/1.1"] }
}

fn certified(certificate: &Certificate, provider: &CryptoProvider) -> Result<CertifiedKey, rustls::Error> {
    let chain = certificate.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    let key = PrivateKeyDer::try_from(&certificate.key[..]).map_err(|why| rustls::Error::General(why.into()))?;
    CertifiedKey::from_der(chain, key.clone_key(), provider)
}

/// What a handshake negotiated, as plugins may ask for it.
#[derive(Debug)]
pub struct TlsFacts {
    pub version: &'static str,
    pub cipher: &'static str,
    /// The name that the client asked for.
    pub server_name: Option<String>,
    /// The application protocol.
    pub alpn: Option<String>,
}

impl TlsFacts {
    fn of(session: &ServerConnection) -> TlsFacts {
        let cipher = session.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str()).unwrap_or_default();
        TlsFacts {
            version: match session.protocol_version() {
                Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
                _ => "TLSv1.3",
            },
            // rustls marks those of TLS 1.3 so; their registered names have no such mark.
            cipher: iana(cipher),
            server_name: session.server_name().map(str::to_owned),
            alpn: session.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned()),
        }
    }
}

/// A cipher suite by its name in the registry (RFC 8446 B.4).
fn iana(cipher: &'static str) -> &'static str {
    match cipher {
        "TLS13_AES_128_GCM_SHA256" => "TLS_AES_128_GCM_SHA256",
        "TLS13_AES_256_GCM_SHA384" => "TLS_AES_256_GCM_SHA384",
        "TLS13_CHACHA20_POLY1305_SHA256" => "TLS_CHACHA20_POLY1305_SHA256",
        other => other,
    }
}
