//! Connections of the admin surface, from accept to their end: one task each, bounded in number, in what they hold and in how
//! long they may take. What is asked on them is for `routes` and `probe`.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::watch;
use tokio::time::Instant;

use super::slots::{Slot, Slots};
use super::stall::Stalling;
use super::{Peer, Surface, probe, routes};
use crate::telemetry::Seldom;

/// Connections at once, on each side.
const CONNECTIONS: usize = 64;
/// Of these, with an operation under way.
const OPERATIONS: usize = 32;
/// A request's head must be here by then; an idle connection ends then too.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of a head.
const HEAD_LIMIT: usize = 32 * 1024;
/// A peer that takes nothing for this long is gone.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// After a failed accept (no descriptors): the kernel holds the connection, a hot loop would help nobody.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// The listening sockets of all sides.
pub struct Listening {
    pub unix: OwnedFd,
    pub tcp: Option<OwnedFd>,
    pub probes: Option<OwnedFd>,
}

/// Takes connections on all sides until the sender says so. Every task holds a receiver.
pub fn accept(listening: Listening, surface: &Arc<Surface>) -> io::Result<watch::Sender<bool>> {
    let unix = UnixListener::from_std(listening.unix.into())?;
    let tcp = |fd: OwnedFd| TcpListener::from_std(fd.into());
    let (admin, probes) = (listening.tcp.map(tcp).transpose()?, listening.probes.map(tcp).transpose()?);
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(accept_unix(unix, surface.clone(), stopped.clone()));
    if let Some(admin) = admin {
        tokio::spawn(accept_tcp(admin, Side::Admin, surface.clone(), stopped.clone()));
    }
    if let Some(probes) = probes {
        tokio::spawn(accept_tcp(probes, Side::Probes, surface.clone(), stopped));
    }
    Ok(stop)
}

/// What is answered at a TCP address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Admin,
    Probes,
}

async fn accept_unix(listener: UnixListener, surface: Arc<Surface>, mut stop: watch::Receiver<bool>) {
    let slots = Slots::new(CONNECTIONS, OPERATIONS);
    let own = nix::unistd::geteuid().as_raw();
    let mut logged = Seldom::default();
    loop {
        let accepted = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            accepted = listener.accept() => accepted.and_then(|(stream, _)| Ok((stream.peer_cred()?, stream))),
        };
        let Some((credentials, stream)) = or_backoff(accepted, &mut logged).await else { continue };
        let peer = Peer::Unix { uid: credentials.uid(), pid: credentials.pid() };
        // The file's mode says so already, unless somebody changed it.
        if credentials.uid() != own && credentials.uid() != 0 {
            surface.denials.log_connection(&peer, "it belongs to another user");
            continue;
        }
        let slot = slots.take(peer.key(), Instant::now());
        tokio::spawn(converse(stream, Side::Admin, surface.clone(), peer, slot, stop.clone()));
        // The tasks of a burst have their turn before the next connection can take their slots.
        tokio::task::yield_now().await;
    }
}

async fn accept_tcp(listener: TcpListener, side: Side, surface: Arc<Surface>, mut stop: watch::Receiver<bool>) {
    let slots = Slots::new(CONNECTIONS, OPERATIONS);
    let mut logged = Seldom::default();
    loop {
        let accepted = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            accepted = listener.accept() => accepted.and_then(|(stream, peer)| {
                prepare(&stream)?;
                Ok((Peer::Tcp { peer, local: stream.local_addr()? }, stream))
            }),
        };
        let Some((peer, stream)) = or_backoff(accepted, &mut logged).await else { continue };
        let slot = slots.take(peer.key(), Instant::now());
        tokio::spawn(converse(stream, side, surface.clone(), peer, slot, stop.clone()));
        tokio::task::yield_now().await;
    }
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    // Also ends a connection whose peer is unreachable.
    socket2::SockRef::from(stream).set_tcp_user_timeout(Some(STALL_TIMEOUT))
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
    side: Side,
    surface: Arc<Surface>,
    peer: Peer,
    slot: Slot,
    stop: watch::Receiver<bool>,
) {
    let (surface, peer, slot) = (&*surface, &peer, &slot);
    let answer = move |request| async move {
        let response = match side {
            Side::Admin => routes::answer(surface, peer, slot, request).await,
            Side::Probes => probe::answer(surface, request).await,
        };
        slot.request_ended(Instant::now());
        response
    };
    tokio::select! {
        ended = drive(stream, answer, stop) => if let Err(error) = ended {
            // A peer that leaves, or is slow: nothing an operator must act on.
            tracing::debug!(%peer, %error, "admin connection ended early");
        },
        () = slot.closed() => tracing::debug!(%peer, "admin connection closed to make room for another"),
    }
}

async fn drive<F>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    answer: impl Fn(http::Request<Incoming>) -> F,
    mut stop: watch::Receiver<bool>,
) -> hyper::Result<()>
where
    F: Future<Output = http::Response<Full<Bytes>>>,
{
    let service = service_fn(|request| {
        let response = answer(request);
        async move { Ok::<_, Infallible>(response.await) }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_LIMIT)
            // A client that has sent its request and closes its sending side still gets the response.
            .half_close(true)
            .serve_connection(TokioIo::new(Stalling::new(stream, STALL_TIMEOUT)), service)
    );
    let mut stopping = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => return ended,
            _ = stop.wait_for(|stop| *stop), if !stopping => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}
