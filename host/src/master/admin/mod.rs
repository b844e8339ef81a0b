//! The admin surface: a Unix socket for the command line, TCP with a token for people, and TCP without one for probes.
//!
//! Owns the addresses, who may ask, and the page. It changes nothing itself: every request becomes one on the [`Handle`].
//! It lives in the master and never moves. The sides have separate room, so that nobody on TCP can lock out the socket.

mod accept;
mod access;
mod denials;
mod exposition;
mod page;
mod probe;
mod response;
mod routes;
mod signature;
mod slots;
mod stall;
mod token;

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde::{Deserialize, Serialize};
use socket2::SockRef;
use tokio::sync::watch;
use tokio::time::Instant;

use self::accept::{Listening, accept};
use self::access::{Access, Denied, Head, Policy};
use self::denials::{Denials, PeerKey};
use self::probe::Probes;
use self::signature::{Challenger, Proof};
pub use self::token::Tokens;
use super::handle::Handle;
use super::resume::{Fd, Luggage};
use super::socket_file::{self, SavedFile, SocketFile};
use crate::config::{self, ConfigError};
use crate::dirs::Dirs;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;
/// How long [`Admin::close`] waits for answers under way.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error("failed to listen on the admin socket {}: {source}", path.display())]
    Socket { path: PathBuf, source: io::Error },
    #[error(
        "failed to listen on the admin address {address}: {source}{}",
        in_use(source, "choose another with --admin")
    )]
    Listen { address: SocketAddr, source: io::Error },
    #[error(
        "failed to listen on the probe address {address}: {source}{}",
        in_use(source, "set admin.probe_listen to another")
    )]
    ListenForProbes { address: SocketAddr, source: io::Error },
    #[error(transparent)]
    Address(#[from] ConfigError),
    #[error(transparent)]
    Token(#[from] token::TokenError),
    #[error("failed to get random bytes for the admin surface: {0}")]
    Random(#[from] getrandom::Error),
}

fn in_use(error: &io::Error, remedy: &str) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => format!("; {remedy}, or \"off\""),
        _ => String::new(),
    }
}

#[derive(Debug)]
pub struct AdminOptions<'a> {
    pub dirs: &'a Dirs,
    /// Of the instance.
    pub name: &'a str,
    pub config: &'a config::Admin,
    /// Whether the address was asked for: then it must be free, else another port will do.
    pub asked: bool,
}

/// The running surface. It ends, and its socket's file goes, when this is dropped; [`Admin::close`] lets answers get out first.
#[derive(Debug)]
pub struct Admin {
    surface: Arc<Surface>,
    /// Every task holds a receiver: once all are gone, all have ended.
    stop: watch::Sender<bool>,
    socket: SocketFile,
    /// Copies of what is listened on, for a pause and for another program of this process.
    unix: OwnedFd,
    tcp: Option<OwnedFd>,
    probes: Option<OwnedFd>,
}

/// The surface's sockets as another program of this process goes on with them.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedAdmin {
    unix: Fd,
    socket: SavedFile,
    tcp: Option<Fd>,
    #[serde(default)]
    probes: Option<Fd>,
}

impl Admin {
    /// The socket's file, by device and inode.
    pub fn socket_inode(&self) -> (u64, u64) {
        self.socket.identity()
    }

    /// The tokens of the TCP side, if there is one.
    pub fn tokens(&self) -> Option<Arc<Tokens>> {
        self.surface.tcp.as_ref().map(|tcp| tcp.policy.tokens.clone())
    }

    /// Where the page is, without the token.
    pub fn url(&self) -> Option<String> {
        self.surface.url()
    }

    /// Where probes are answered.
    pub fn probe_url(&self) -> Option<String> {
        self.surface.probes.as_ref().map(|probes| format!("http://{}", probes.address))
    }

    /// Where the page is, with the token: for a terminal, never for a log.
    pub fn link(&self) -> Option<String> {
        self.surface.link()
    }

    pub fn save(&self, luggage: &mut Luggage) -> io::Result<SavedAdmin> {
        let tcp = self.tcp.as_ref().map(|tcp| luggage.put(tcp)).transpose()?;
        let probes = self.probes.as_ref().map(|probes| luggage.put(probes)).transpose()?;
        Ok(SavedAdmin { unix: luggage.put(&self.unix)?, socket: self.socket.save(), tcp, probes })
    }

    /// Takes nothing new, which waits, and lets answers under way get out, for a moment.
    pub async fn pause(&self) {
        self.stop.send_replace(true);
        if tokio::time::timeout(CLOSE_TIMEOUT, self.stop.closed()).await.is_err() {
            tracing::warn!("admin connections left open at a restart");
        }
    }

    /// Goes on after a pause.
    pub fn go_on(&mut self) -> Result<(), AdminError> {
        let failed = |source| AdminError::Socket { path: self.socket.path().into(), source };
        let listening = copies(&self.unix, self.tcp.as_ref(), self.probes.as_ref()).map_err(failed)?;
        self.stop = accept(listening, &self.surface).map_err(failed)?;
        Ok(())
    }

    /// Goes on with a new socket for the command line, since the file of the one before is gone. Answers under way get out.
    pub fn move_to(&mut self, unix: OwnedFd, socket: SocketFile) -> Result<(), AdminError> {
        (self.unix, self.socket) = (unix, socket);
        self.stop.send_replace(true);
        self.go_on()
    }

    /// Takes nothing new and lets answers under way get out, for a moment.
    pub async fn close(self) {
        self.stop.send_replace(true);
        if tokio::time::timeout(CLOSE_TIMEOUT, self.stop.closed()).await.is_err() {
            tracing::warn!("admin connections left open at the end");
        }
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

/// Binds all sides and answers from now on, within the current runtime. The instance's lock must be held.
pub fn start(options: AdminOptions<'_>, handle: Handle) -> Result<Admin, AdminError> {
    let address = |key, text: &str| match text {
        "off" => Ok(None),
        text => config::parse_listen(text).map(Some).map_err(|why| ConfigError::at_key(key, why)),
    };
    let tcp = match address("admin.listen", &options.config.listen)? {
        None => None,
        Some(address) => Some(listen(address, options.asked).map_err(|source| AdminError::Listen { address, source })?),
    };
    let probes = match address("admin.probe_listen", &options.config.probe_listen)? {
        None => None,
        Some(address) => Some(listen(address, true).map_err(|source| AdminError::ListenForProbes { address, source })?),
    };
    let path = options.dirs.socket();
    let (unix, socket) = bind_socket(&path).map_err(|source| AdminError::Socket { path, source })?;
    over(&options, handle, socket, Listening { unix, tcp: tcp.map(OwnedFd::from), probes: probes.map(OwnedFd::from) })
}

/// The socket of the command line. The instance's lock must be held.
pub fn bind_socket(path: &Path) -> io::Result<(OwnedFd, SocketFile)> {
    SocketFile::bind(path, socket_file::Access::OURS, BACKLOG, socket_file::BIND_PATIENCE)
}

/// As [`start`], on what an earlier program of this process has listened on.
pub fn resume(options: AdminOptions<'_>, handle: Handle, saved: SavedAdmin) -> Result<Admin, AdminError> {
    let failed = |source| AdminError::Socket { path: options.dirs.socket(), source };
    let unix = saved.unix.copy().map_err(failed)?;
    let tcp = saved.tcp.map(|tcp| tcp.copy()).transpose().map_err(failed)?;
    let probes = saved.probes.map(|probes| probes.copy()).transpose().map_err(failed)?;
    over(&options, handle, saved.socket.into(), Listening { unix, tcp, probes })
}

fn over(
    options: &AdminOptions<'_>,
    handle: Handle,
    socket: SocketFile,
    listening: Listening,
) -> Result<Admin, AdminError> {
    let failed = |source| AdminError::Socket { path: socket.path().into(), source };
    let address_of = |listener: &OwnedFd| {
        let address = SockRef::from(listener).local_addr().map_err(failed)?.as_socket();
        address.ok_or_else(|| failed(io::Error::other("the admin address is none of TCP")))
    };
    let tcp = match &listening.tcp {
        None => None,
        Some(listener) => {
            let policy = Policy {
                tokens: Arc::new(Tokens::open(options.dirs)?),
                hosts: options.config.hosts.clone(),
                challenger: Challenger::new()?,
                started: Instant::now(),
            };
            Some(Tcp { address: address_of(listener)?, policy })
        }
    };
    let probes = match &listening.probes {
        None => None,
        Some(listener) => Some(Probes::new(address_of(listener)?, probe::Metrics::of(options.config.public_metrics))),
    };
    let path = socket.path().into();
    let denials = Denials::default();
    let surface = Arc::new(Surface { handle, name: options.name.into(), socket: path, tcp, probes, denials });
    let kept = copies(&listening.unix, listening.tcp.as_ref(), listening.probes.as_ref()).map_err(failed)?;
    let stop = accept(listening, &surface).map_err(failed)?;
    if let Some(url) = surface.url() {
        tracing::info!(socket = %socket.path().display(), "admin listening on {url}");
    }
    if let Some(probes) = &surface.probes {
        tracing::info!("probes answered on http://{}", probes.address);
    }
    Ok(Admin { surface, stop, socket, unix: kept.unix, tcp: kept.tcp, probes: kept.probes })
}

fn copies(unix: &OwnedFd, tcp: Option<&OwnedFd>, probes: Option<&OwnedFd>) -> io::Result<Listening> {
    Ok(Listening {
        unix: unix.try_clone()?,
        tcp: tcp.map(OwnedFd::try_clone).transpose()?,
        probes: probes.map(OwnedFd::try_clone).transpose()?,
    })
}

fn listen(address: SocketAddr, asked: bool) -> io::Result<StdTcpListener> {
    let listener = match StdTcpListener::bind(address) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && !asked => {
            tracing::info!("admin address {address} is in use; another port will do");
            StdTcpListener::bind(SocketAddr::new(address.ip(), 0))
        }
        result => result,
    }?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
enum Peer {
    Unix { uid: u32, pid: Option<i32> },
    Tcp { peer: SocketAddr, local: SocketAddr },
}

impl Peer {
    fn key(&self) -> PeerKey {
        match self {
            Peer::Unix { uid, .. } => PeerKey::User(*uid),
            Peer::Tcp { peer, .. } => PeerKey::of_address(peer.ip()),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Unix { uid, pid: Some(pid) } => write!(f, "uid {uid} pid {pid}"),
            Peer::Unix { uid, pid: None } => write!(f, "uid {uid}"),
            Peer::Tcp { peer, .. } => peer.fmt(f),
        }
    }
}

/// What every request meets.
#[derive(Debug)]
struct Surface {
    handle: Handle,
    name: String,
    socket: PathBuf,
    tcp: Option<Tcp>,
    probes: Option<Probes>,
    denials: Denials,
}

#[derive(Debug)]
struct Tcp {
    address: SocketAddr,
    policy: Policy,
}

impl Surface {
    fn check(&self, peer: &Peer, access: Access, head: Head<'_>) -> Result<Option<Proof>, Denied> {
        match (peer, &self.tcp) {
            (Peer::Tcp { local, .. }, Some(tcp)) => tcp.policy.check(access, *local, head),
            // On the socket the kernel has said who it is, and `accept_unix` has looked.
            _ => Ok(None),
        }
    }

    fn url(&self) -> Option<String> {
        let mut address = self.tcp.as_ref()?.address;
        // Nobody can browse to "any address".
        if address.ip().is_unspecified() {
            let loopback: std::net::IpAddr = match address {
                SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
            };
            address.set_ip(loopback);
        }
        Some(format!("http://{address}{}", page::PATH))
    }

    fn link(&self) -> Option<String> {
        Some(format!("{}#token={}", self.url()?, self.tcp.as_ref()?.policy.tokens.admin().expose()))
    }

    /// The line for a shell that sends `method` to `path` the way `peer` came.
    fn curl(&self, peer: &Peer, method: &Method, path: &str) -> String {
        match peer {
            Peer::Unix { .. } => {
                let socket = self.socket.display().to_string().replace('\'', r"'\''");
                format!("curl --unix-socket '{socket}' -X {method} http://baton{path}")
            }
            Peer::Tcp { local, .. } => {
                format!("curl -H \"Authorization: Bearer $TOKEN\" -X {method} http://{local}{path}")
            }
        }
    }
}

#[cfg(test)]
mod tests;
