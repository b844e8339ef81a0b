//! The admin surface: a Unix socket for the command line, TCP with a token for people.
//!
//! Owns both addresses, who may ask, and the page. It changes nothing itself: every request becomes one on the [`Handle`].
//! It lives in the master and never moves. The two sides have separate room, so that nobody on TCP can lock out the socket.

mod access;
mod exposition;
mod page;
mod routes;
mod token;

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method, Uri};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, watch};

use self::access::{Access, Denied, Policy};
use self::token::Token;
use super::handle::Handle;
use super::resume::{Fd, Luggage};
use super::socket_file::{self, SavedFile, SocketFile};
use crate::config::{self, ConfigError};
use crate::dirs::Dirs;
use crate::telemetry::Seldom;

/// Connections at once, on each side.
const CONNECTIONS: usize = 32;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;
/// A request's head must be here by then; an idle connection ends then too.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of a head.
const HEAD_LIMIT: usize = 32 * 1024;
/// A peer that takes nothing for this long is gone.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// After a failed accept (no descriptors): the kernel holds the connection, a hot loop would help nobody.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);
/// How long [`Admin::close`] waits for answers under way.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error("failed to listen on the admin socket {}: {source}", path.display())]
    Socket { path: PathBuf, source: io::Error },
    #[error("failed to listen on the admin address {address}: {source}{}", in_use(source))]
    Listen { address: SocketAddr, source: io::Error },
    #[error(transparent)]
    Address(#[from] ConfigError),
    #[error(transparent)]
    Token(#[from] token::TokenError),
}

fn in_use(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; choose another with --admin, or \"off\"",
        _ => "",
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
}

/// The surface's sockets as another program of this process goes on with them.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedAdmin {
    unix: Fd,
    socket: SavedFile,
    tcp: Option<Fd>,
}

impl Admin {
    /// Where the page is, without the token.
    pub fn url(&self) -> Option<String> {
        self.surface.url()
    }

    /// Where the page is, with the token: for a terminal, never for a log.
    pub fn link(&self) -> Option<String> {
        self.surface.link()
    }

    pub fn save(&self, luggage: &mut Luggage) -> io::Result<SavedAdmin> {
        let tcp = self.tcp.as_ref().map(|tcp| luggage.put(tcp)).transpose()?;
        Ok(SavedAdmin { unix: luggage.put(&self.unix)?, socket: self.socket.save(), tcp })
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
        let unix = self.unix.try_clone().map_err(failed)?;
        let tcp = self.tcp.as_ref().map(OwnedFd::try_clone).transpose().map_err(failed)?;
        self.stop = accept(unix, tcp, &self.surface).map_err(failed)?;
        Ok(())
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

/// Binds both sides and answers from now on, within the current runtime. The instance's lock must be held.
pub fn start(options: AdminOptions<'_>, handle: Handle) -> Result<Admin, AdminError> {
    let tcp = match options.config.listen.as_str() {
        "off" => None,
        text => {
            let address = config::parse_listen(text).map_err(|why| ConfigError::at_key("admin.listen", why))?;
            Some(listen(address, options.asked).map_err(|source| AdminError::Listen { address, source })?)
        }
    };
    let path = options.dirs.socket();
    let failed = |source| AdminError::Socket { path: path.clone(), source };
    let (unix, socket) = SocketFile::bind(&path, socket_file::Access::OURS, BACKLOG).map_err(failed)?;
    over(&options, handle, unix, socket, tcp.map(OwnedFd::from))
}

/// As [`start`], on what an earlier program of this process has listened on.
pub fn resume(options: AdminOptions<'_>, handle: Handle, saved: SavedAdmin) -> Result<Admin, AdminError> {
    let failed = |source| AdminError::Socket { path: options.dirs.socket(), source };
    let unix = saved.unix.copy().map_err(failed)?;
    let tcp = saved.tcp.map(|tcp| tcp.copy()).transpose().map_err(failed)?;
    over(&options, handle, unix, saved.socket.into(), tcp)
}

fn over(
    options: &AdminOptions<'_>,
    handle: Handle,
    unix: OwnedFd,
    socket: SocketFile,
    tcp: Option<OwnedFd>,
) -> Result<Admin, AdminError> {
    let failed = |source| AdminError::Socket { path: socket.path().into(), source };
    let facts = match &tcp {
        None => None,
        Some(listener) => {
            let address = SockRef::from(listener).local_addr().map_err(failed)?.as_socket();
            let address = address.ok_or_else(|| failed(io::Error::other("the admin address is none of TCP")))?;
            let token = Token::open(&options.dirs.token())?;
            Some(Tcp { address, policy: Policy { token, hosts: options.config.hosts.clone() } })
        }
    };
    let path = socket.path().into();
    let surface = Arc::new(Surface { handle, name: options.name.into(), socket: path, tcp: facts });
    let copies = (unix.try_clone().map_err(failed)?, tcp.as_ref().map(OwnedFd::try_clone).transpose().map_err(failed)?);
    let stop = accept(unix, tcp, &surface).map_err(failed)?;
    if let Some(url) = surface.url() {
        tracing::info!(socket = %socket.path().display(), "admin listening on {url}");
    }
    Ok(Admin { surface, stop, socket, unix: copies.0, tcp: copies.1 })
}

/// Takes connections on both sides until the sender says so.
fn accept(unix: OwnedFd, tcp: Option<OwnedFd>, surface: &Arc<Surface>) -> io::Result<watch::Sender<bool>> {
    let unix = UnixListener::from_std(unix.into())?;
    let tcp = tcp.map(|tcp| TcpListener::from_std(tcp.into())).transpose()?;
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(accept_unix(unix, surface.clone(), stopped.clone()));
    if let Some(tcp) = tcp {
        tokio::spawn(accept_tcp(tcp, surface.clone(), stopped));
    }
    Ok(stop)
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
}

#[derive(Debug)]
struct Tcp {
    address: SocketAddr,
    policy: Policy,
}

impl Surface {
    fn check(&self, peer: &Peer, access: Access, uri: &Uri, headers: &HeaderMap) -> Result<(), Denied> {
        match (peer, &self.tcp) {
            (Peer::Tcp { local, .. }, Some(tcp)) => tcp.policy.check(access, *local, uri, headers),
            // On the socket the kernel has said who it is, and `accept_unix` has looked.
            _ => Ok(()),
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
        Some(format!("{}#token={}", self.url()?, self.tcp.as_ref()?.policy.token.expose()))
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

async fn accept_unix(listener: UnixListener, surface: Arc<Surface>, mut stop: watch::Receiver<bool>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let own = nix::unistd::geteuid().as_raw();
    let mut logged = Seldom::default();
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            accepted = listener.accept() => accepted.and_then(|(stream, _)| Ok((stream.peer_cred()?, stream))),
        };
        let Some((credentials, stream)) = or_backoff(accepted, &mut logged).await else { continue };
        let peer = Peer::Unix { uid: credentials.uid(), pid: credentials.pid() };
        // The file's mode says so already, unless somebody changed it.
        if credentials.uid() != own && credentials.uid() != 0 {
            tracing::warn!(%peer, status = 403, "admin connection denied: another user's");
            continue;
        }
        let (surface, stop) = (surface.clone(), stop.clone());
        tokio::spawn(async move {
            converse(stream, &surface, &peer, stop).await;
            drop(permit);
        });
    }
}

async fn accept_tcp(listener: TcpListener, surface: Arc<Surface>, mut stop: watch::Receiver<bool>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut logged = Seldom::default();
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            accepted = listener.accept() => accepted.and_then(|(stream, peer)| {
                stream.set_nodelay(true)?;
                // Also ends a connection whose peer never reads.
                socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(STALL_TIMEOUT))?;
                Ok((Peer::Tcp { peer, local: stream.local_addr()? }, stream))
            }),
        };
        let Some((peer, stream)) = or_backoff(accepted, &mut logged).await else { continue };
        let (surface, stop) = (surface.clone(), stop.clone());
        tokio::spawn(async move {
            converse(stream, &surface, &peer, stop).await;
            drop(permit);
        });
    }
}

async fn or_backoff<T>(accepted: io::Result<T>, logged: &mut Seldom) -> Option<T> {
    match accepted {
        Ok(accepted) => Some(accepted),
        // The peer left before we came; the next one may be fine.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ECONNABORTED | libc::ENOTCONN | libc::EINVAL)) => None,
        Err(error) => {
            if logged.again() {
                tracing::warn!(%error, "failed to accept an admin connection");
            }
            // The connection still waits: without a pause, descriptors that ran out would make this a busy loop.
            tokio::time::sleep(ACCEPT_BACKOFF).await;
            None
        }
    }
}

/// One connection to its end.
async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    surface: &Surface,
    peer: &Peer,
    mut stop: watch::Receiver<bool>,
) {
    let service =
        service_fn(|request| async move { Ok::<_, Infallible>(routes::answer(surface, peer, request).await) });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_LIMIT)
            .serve_connection(TokioIo::new(stream), service)
    );
    let mut stopping = false;
    let ended = loop {
        tokio::select! {
            ended = connection.as_mut() => break ended,
            _ = stop.wait_for(|stop| *stop), if !stopping => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    };
    if let Err(error) = ended {
        // A peer that leaves, or is slow: nothing an operator must act on.
        tracing::debug!(%peer, %error, "admin connection ended early");
    }
}

#[cfg(test)]
mod tests;
