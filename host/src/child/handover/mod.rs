//! Moving live connections to another generation: clear HTTP/1 connections that are idle, or become so, travel open to the
//! newest child over a pair that the master made. Their clients never notice.
//!
//! Who owns a connection: the old child until it hears ACK, the new one from the moment its ACK is queued, which is before it
//! reads a first byte. Nobody takes back on a timer: a pair ends by FIN or by its peer's death, and then what was not
//! acknowledged is served here as before.
//!
//! Whether connections are being handed over is state, read by each connection's task; `serve::h1` decides when one may go.

mod adopt;
mod lend;
pub(super) mod wire;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

use super::serve::conn::{Conn, Origin};
use super::serve::{Entry, Server};
use crate::metrics::{Metrics, Slot};
use crate::report::Generation;
use crate::sys::socket::Bare;

pub use wire::MAX_CARRIED;

/// How long [`Handover::settled`] waits for those that have not left yet: they move when they can.
const SETTLE: Duration = Duration::from_millis(250);
/// How long a successor is waited for, once the target has died: the master starts one at once.
pub const SUCCESSOR: Duration = Duration::from_secs(2);

/// A connection as it goes from one task, or one process, to another.
#[derive(Debug, Default)]
pub struct Start {
    /// Read and not served.
    pub carried: Bytes,
    /// It has served requests: it speaks HTTP/1.
    pub http1: bool,
    /// Its client once sent requests ahead of their answers.
    pub pipelined: bool,
    /// How long ago the head began that lies in `carried`.
    pub head: Option<Duration>,
    /// For how long nothing has moved.
    pub idle: Duration,
}

/// A connection on its way out, still ours.
struct Leaving {
    /// Its place in the register: it counts as open until it is acknowledged.
    entry: Entry,
    origin: Origin,
    stream: Bare,
    start: Start,
}

impl std::fmt::Debug for Leaving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leaving").field("origin", &self.origin).field("start", &self.start).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Target {
    to: Generation,
    /// Those it can serve.
    listeners: Vec<u32>,
    queue: mpsc::UnboundedSender<Leaving>,
}

/// Where connections go, if anywhere.
#[derive(Debug, Default)]
pub struct Handover {
    /// Whether there is a target: looked at on every poll of every connection.
    open: AtomicBool,
    target: Mutex<Option<Target>>,
    /// Until when another target is expected, since the last one died.
    successor: Mutex<Option<Instant>>,
    /// Given away, and not acknowledged yet.
    leaving: AtomicUsize,
    moved: AtomicU64,
    /// Of these, with bytes that were read ahead.
    carried: AtomicU64,
    /// Idle connections that cannot go, whatever the target.
    staying: AtomicUsize,
    /// How many generations may still give us connections.
    inbound: watch::Sender<usize>,
    /// Told when a batch was acknowledged, or the target lost.
    changed: Notify,
}

impl Handover {
    /// Whether connections are being handed over.
    #[inline]
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// Whether a connection from `origin` can go.
    pub fn takes(&self, origin: &Origin) -> bool {
        self.is_open() && self.with_target(|target| target.listeners.contains(&origin.listener)).unwrap_or(false)
    }

    /// How many have gone.
    pub fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// How many of these took bytes along that were read ahead.
    pub fn carried(&self) -> u64 {
        self.carried.load(Ordering::Relaxed)
    }

    /// Gives a connection away; if there is nobody to take it any more, it is served on here.
    pub fn give(&self, entry: Entry, stream: Bare, start: Start) {
        let server = entry.conn().server;
        let leaving = Leaving { origin: entry.conn().origin.clone(), entry, stream, start };
        self.leaving.fetch_add(1, Ordering::SeqCst);
        let refused = match self.with_target(|target| target.queue.clone()) {
            Some(queue) => queue.send(leaving).err().map(|error| error.0),
            None => Some(leaving),
        };
        if let Some(leaving) = refused {
            leaving.stay(server);
        }
    }

    /// Until every connection that was idle has gone, or nobody takes them. As long as one is neither here nor there, it is
    /// not over: a taker that dies now may still be made good.
    pub async fn settled(&self, server: &Server) {
        let none_idle = self.wait(|| server.metrics.get(Slot::Idle) <= self.staying.load(Ordering::Relaxed) as u64);
        // Not a failure: those left are busy again, or came on an address that the target does not have.
        let _ = tokio::time::timeout(SETTLE, none_idle).await;
        self.wait(|| self.leaving.load(Ordering::SeqCst) == 0).await;
    }

    /// Until `holds`, or nobody takes connections. For one task only.
    async fn wait(&self, holds: impl Fn() -> bool) {
        while self.is_open() && !holds() {
            self.changed.notified().await;
        }
    }

    /// One idle connection more, or one less, that cannot go.
    pub fn note_staying(&self, change: isize) {
        self.staying.fetch_add(change.cast_unsigned(), Ordering::Relaxed);
    }

    /// Until nobody gives us connections any more. Until then this worker must not end: a batch that was acknowledged is ours,
    /// even before its first connection is begun.
    pub async fn inbound_ended(&self) {
        // The sender is `self`'s.
        let _ = self.inbound.subscribe().wait_for(|inbound| *inbound == 0).await;
    }

    /// Whether the target has died and another may come any moment.
    fn expects_successor(&self) -> bool {
        let until = *self.successor.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }

    fn with_target<T>(&self, look: impl FnOnce(&Target) -> T) -> Option<T> {
        self.target.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(look)
    }

    fn set(&self, target: Target) {
        *self.target.lock().unwrap_or_else(PoisonError::into_inner) = Some(target);
        self.open.store(true, Ordering::Release);
    }

    /// Nothing goes to `to` any more; a newer target stays. If it has `died`, its successor takes what is left.
    fn close(&self, to: Generation, died: bool) {
        if died {
            *self.successor.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now().checked_add(SUCCESSOR);
        }
        let mut target = self.target.lock().unwrap_or_else(PoisonError::into_inner);
        if target.as_ref().is_some_and(|target| target.to == to) {
            *target = None;
            self.open.store(false, Ordering::Release);
        }
        drop(target);
        self.changed.notify_one();
    }

    /// Gives nothing more to anybody: this worker accepts again. What is under way is seen to its end.
    pub fn keep(&self, server: &Server) {
        *self.target.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.open.store(false, Ordering::Release);
        self.changed.notify_one();
        // Their tasks wait behind a gate that is open now.
        server.connections.wake_all();
    }

    /// These are the other's now.
    fn note_moved(&self, gone: Vec<Leaving>, metrics: Metrics) {
        let (count, carried) = (gone.len(), gone.iter().filter(|one| !one.start.carried.is_empty()).count() as u64);
        self.moved.fetch_add(count as u64, Ordering::Relaxed);
        self.carried.fetch_add(carried, Ordering::Relaxed);
        metrics.add_many(Slot::HandedOver, count as u64);
        metrics.add_many(Slot::Carried, carried);
        // Our copies close here, before anybody is told: who waits looks at what is left.
        drop(gone);
        self.leaving.fetch_sub(count, Ordering::SeqCst);
        self.changed.notify_one();
    }
}

impl Leaving {
    /// Serves it on in this process.
    fn stay(self, server: &'static Server) {
        let Leaving { entry, origin, stream, start } = self;
        // The new place is taken before the old one is left, so that the drain does not see none in between.
        server.begin(origin, stream, start);
        drop(entry);
        server.metrics.add(Slot::TakenBack);
        server.handover.leaving.fetch_sub(1, Ordering::SeqCst);
        server.handover.changed.notify_one();
    }
}

/// Gives idle connections to generation `to` over `socket`, from now on. Within the runtime that serves.
pub fn lend(server: &'static Server, socket: OwnedFd, to: Generation, listeners: Vec<u32>) {
    let (queue, waiting) = mpsc::unbounded_channel();
    match crate::sys::readiness::register(socket, tokio::io::Interest::READABLE | tokio::io::Interest::WRITABLE) {
        Ok(socket) => {
            // Four OFFERs under way; with less room they only wait for each other.
            if let Err(error) = crate::sys::seqpacket::set_send_room(socket.as_fd(), 4 * wire::MAX_MESSAGE) {
                tracing::debug!("failed to enlarge the handover's send buffer: {error}");
            }
            server.handover.set(Target { to, listeners, queue });
            tokio::spawn(lend::run(server, socket, waiting, to));
            server.connections.wake_all();
        }
        Err(error) => tracing::warn!(to = to.0, "failed to hand connections over: {error}"),
    }
}

/// Takes connections from generation `from` over `socket`, until it has given all. Within the runtime that serves.
pub fn adopt(server: &'static Server, socket: OwnedFd, from: Generation, names: Vec<(u32, &'static str)>) {
    match crate::sys::readiness::register(socket, tokio::io::Interest::READABLE | tokio::io::Interest::WRITABLE) {
        Ok(socket) => {
            server.handover.inbound.send_modify(|inbound| *inbound += 1);
            tokio::spawn(async move {
                adopt::run(server, socket, from, names).await;
                server.handover.inbound.send_modify(|inbound| *inbound -= 1);
            });
        }
        Err(error) => tracing::warn!(from = from.0, "failed to take connections over: {error}"),
    }
}

/// Whether `conn` may go at all: what it has read ahead must fit into a message.
pub fn may_go(conn: &Conn) -> bool {
    !conn.is_announced() && !conn.is_overfull() && !conn.is_staying() && conn.server.handover.takes(&conn.origin)
}

/// Whether `conn` goes sooner or later, so that its close is not to be announced.
pub fn will_go(conn: &Conn) -> bool {
    may_go(conn) || conn.server.handover.expects_successor()
}
