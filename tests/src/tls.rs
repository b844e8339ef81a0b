//! TLS from the client's side: an authority that issues certificates, and clients that trust it and say what they were shown.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned};

use crate::http::{Connection, Stream};

pub const DAY: Duration = Duration::from_secs(24 * 3600);

/// Issues certificates, which its clients trust.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate with its key.
pub struct Identity {
    pub cert: String,
    pub key: String,
    /// What a client is shown.
    pub der: CertificateDer<'static>,
}

impl Default for Authority {
    fn default() -> Authority {
        Authority::new()
    }
}

impl Authority {
    pub fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).expect("no names are valid");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("failed to make a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("failed to make an authority");
        Authority { issuer }
    }

    pub fn issue(&self, names: &[&str]) -> Identity {
        self.issue_until(names, SystemTime::now() + 100 * DAY)
    }

    pub fn issue_until(&self, names: &[&str], end: SystemTime) -> Identity {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).expect("these are valid names");
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = end.into();
        let key = KeyPair::generate().expect("failed to make a key");
        let cert = params.signed_by(&key, &self.issuer).expect("failed to issue a certificate");
        Identity { cert: cert.pem(), key: key.serialize_pem(), der: cert.der().clone() }
    }

    /// A client that speaks the newest version, or at most TLS 1.2; it remembers sessions.
    pub fn client(&self, version: Version) -> Client {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).expect("the authority's own certificate");
        let versions: &[_] = match version {
            Version::V13 => &[&rustls::version::TLS13],
            Version::V12 => &[&rustls::version::TLS12],
        };
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)
            .expect("the provider has both versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Client { config: Arc::new(config), name: "a.example".into() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V12,
    V13,
}

impl Identity {
    /// As `NAME.pem` and `NAME.key` in `dir`; the paths.
    pub fn write(&self, dir: &Path, name: &str) -> (PathBuf, PathBuf) {
        let (cert, key) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
        fs::write(&cert, &self.cert).expect("failed to write a certificate");
        fs::write(&key, &self.key).expect("failed to write a key");
        (cert, key)
    }
}

/// How clients shake hands.
#[derive(Clone)]
pub struct Client {
    config: Arc<ClientConfig>,
    name: String,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What a handshake came to.
#[derive(Clone, Debug)]
pub struct Agreed {
    pub shown: CertificateDer<'static>,
    pub resumed: bool,
    pub alpn: Option<String>,
}

impl Client {
    /// The same, asking for another name; it shares the memory of sessions.
    pub fn asking(&self, name: &str) -> Client {
        Client { name: name.into(), ..self.clone() }
    }

    /// The same, with these application protocols.
    pub fn offering(&self, protocols: &[&str]) -> Client {
        let mut config = (*self.config).clone();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        Client { config: Arc::new(config), ..self.clone() }
    }

    pub(crate) fn config(&self) -> Arc<ClientConfig> {
        self.config.clone()
    }

    /// The name that is asked for.
    pub fn name(&self) -> ServerName<'static> {
        ServerName::try_from(self.name.clone()).expect("a valid name")
    }

    /// A blocking connection whose handshake is done, and what it came to.
    pub fn connect(&self, addr: SocketAddr) -> io::Result<(Connection, Agreed)> {
        self.over(TcpStream::connect(addr)?)
    }

    /// The same, over a stream on which nothing has been said.
    pub fn over(&self, mut stream: TcpStream) -> io::Result<(Connection, Agreed)> {
        stream.set_nodelay(true)?;
        stream.time_limit(Duration::from_secs(60))?;
        let mut session = ClientConnection::new(self.config.clone(), self.name()).map_err(io::Error::other)?;
        while session.is_handshaking() {
            session.complete_io(&mut stream)?;
        }
        let agreed = Agreed {
            shown: session.peer_certificates().and_then(|chain| chain.first()).expect("a server shows one").clone(),
            resumed: session.handshake_kind() == Some(HandshakeKind::Resumed),
            alpn: session.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned()),
        };
        let connection = Connection::over(Box::new(Secure(StreamOwned::new(session, stream))), self.name.clone())?;
        Ok((connection, agreed))
    }
}

struct Secure(StreamOwned<ClientConnection, TcpStream>);

impl Read for Secure {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.read(bytes)
    }
}

impl Write for Secure {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Stream for Secure {
    fn time_limit(&self, limit: Duration) -> io::Result<()> {
        self.0.sock.time_limit(limit)
    }
}
