//! Serving: what all connections of a worker share, and the register of those that are open. A worker serves one set for
//! life, so that what it shares is never freed.

pub mod accept;
pub mod closed;
pub mod conn;
mod demand;
pub mod discard;
pub mod exchange;
mod fragment;
pub mod h1;
pub mod h2;
mod head;
mod io;
pub mod limits;
mod parser;
mod refused;
mod service;
pub(super) mod sniff;
mod stream;
#[cfg(test)]
mod tests;
pub mod tls;
pub mod upgrade;

use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use self::closed::HangupWatcher;
use self::conn::{Conn, Origin};
use self::limits::{Clock, Limits, Peers};
use self::refused::Refusals;
use self::stream::Stream;
use self::tls::Tls;
use super::drain::Drain;
use super::handover::{Handover, Start};
use super::plugin::Plugin;
use super::route::Sites;
use crate::metrics::Metrics;
use crate::sys::socket::Bare;

pub struct Server {
    pub sites: Sites<&'static Plugin>,
    pub metrics: Metrics,
    pub drain: Drain,
    pub handover: Handover,
    pub connections: Connections,
    pub limits: Limits,
    pub clock: Clock,
    pub peers: Peers,
    pub refusals: Refusals,
    pub tls: Tls,
    pub hangups: HangupWatcher,
    sweep: Once,
}

impl Server {
    /// One per worker.
    pub fn new(sites: Sites<&'static Plugin>, metrics: Metrics, limits: Limits, tls: Tls) -> &'static Server {
        Box::leak(Box::new(Server {
            sites,
            metrics,
            drain: Drain::default(),
            handover: Handover::default(),
            connections: Connections::default(),
            limits,
            clock: Clock::default(),
            peers: Peers::default(),
            refusals: Refusals::default(),
            tls,
            hangups: HangupWatcher::default(),
            sweep: Once::new(),
        }))
    }

    /// Neither retiring nor handing over: nobody asks a connection for anything.
    #[inline]
    pub fn is_calm(&self) -> bool {
        self.drain.is_serving() && !self.handover.is_open()
    }

    /// Once accepting has ended: until no connection is left and none can come from another generation, or the drain's
    /// limits have no more time for the latter.
    pub async fn ended(&self) {
        loop {
            self.connections.none_left().await;
            let told = self.drain.bound(self.handover.inbound_ended()).await;
            if !told || self.connections.open() == 0 {
                return;
            }
        }
    }

    /// Looks at the connections from now on, also where no limit asks for it: a drain shows how old its requests are.
    pub fn watch(&'static self) {
        self.sweep(self.limits.tick.unwrap_or(limits::LOOK));
    }

    fn sweep(&'static self, tick: Duration) {
        self.sweep.call_once(|| drop(tokio::spawn(limits::sweep(self, tick))));
    }

    /// Serves a connection, within the runtime that serves.
    pub fn begin(&'static self, origin: Origin, stream: Bare, start: Start) {
        let raw = stream.as_fd().as_raw_fd();
        let stream = match Stream::new(stream) {
            Ok(stream) => stream,
            Err(error) => return tracing::error!(%error, "failed to register a connection"),
        };
        if let Some(tick) = self.limits.tick {
            self.sweep(tick);
        }
        // From here on it counts, before any task has seen it.
        let entry = self.connections.enter(Conn::new(self, origin, raw, start.idle));
        tokio::spawn(h1::serve(entry, stream, start));
    }
}

const SHARDS: usize = 16;

/// The connections that are open, each from its accept on, to be woken when the worker's life changes.
#[derive(Default)]
pub struct Connections {
    open: AtomicUsize,
    next: AtomicU64,
    shards: [Mutex<Shard>; SHARDS],
    /// Told when the last one ended.
    none_left: Notify,
    /// Told when the first one began.
    some: Notify,
    /// Told when there is room for one more.
    room: Notify,
}

#[derive(Default)]
struct Shard {
    slots: Vec<Option<Arc<Conn>>>,
    free: Vec<usize>,
}

/// A connection's place in the register, until its drop.
pub struct Entry {
    conn: Arc<Conn>,
    shard: usize,
    slot: usize,
}

impl Connections {
    pub fn enter(&self, conn: Conn) -> Entry {
        let conn = Arc::new(conn);
        if self.open.fetch_add(1, Ordering::SeqCst) == 0 {
            self.some.notify_one();
        }
        if conn.server.limits.per_peer > 0 {
            conn.server.peers.enter(conn.origin.peer);
        }
        let shard = (self.next.fetch_add(1, Ordering::Relaxed) % SHARDS as u64) as usize;
        let mut guard = self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner);
        let slot = guard.free.pop().unwrap_or_else(|| {
            guard.slots.push(None);
            guard.slots.len() - 1
        });
        guard.slots[slot] = Some(conn.clone());
        drop(guard);
        Entry { conn, shard, slot }
    }

    pub fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// Wakes every connection's task, so that it looks at the state of the drain.
    pub fn wake_all(&self) {
        // Before this, the state was written; a task stores its waker, then reads the state. Fences on both sides: either
        // the waker is seen here, or the state there.
        std::sync::atomic::fence(Ordering::SeqCst);
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            for waker in shard.slots.iter().flatten().filter_map(|conn| conn.waker.get()) {
                waker.wake_by_ref();
            }
        }
    }

    /// Looks at every connection that is open.
    pub fn each(&self, mut look: impl FnMut(&Conn)) {
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.slots.iter().flatten().for_each(|conn| look(conn));
        }
    }

    /// Waits until one is open. For one task only.
    pub async fn some(&self) {
        while self.open() == 0 {
            self.some.notified().await;
        }
    }

    /// Waits until fewer than `limit` are open.
    pub async fn room(&self, limit: usize) {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            // Before the look at the count: what ends after it wakes.
            room.as_mut().enable();
            if self.open() < limit {
                return;
            }
            room.await;
        }
    }

    /// Waits until none is open. Only once accepting has ended does it stay so.
    pub async fn none_left(&self) {
        while self.open() > 0 {
            self.none_left.notified().await;
        }
    }
}

impl Entry {
    pub fn conn(&self) -> &Arc<Conn> {
        &self.conn
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.conn.withdraw();
        let connections = &self.conn.server.connections;
        {
            let mut shard = connections.shards[self.shard].lock().unwrap_or_else(PoisonError::into_inner);
            shard.slots[self.slot] = None;
            shard.free.push(self.slot);
        }
        let server = self.conn.server;
        if server.limits.per_peer > 0 {
            server.peers.leave(self.conn.origin.peer);
        }
        let before = connections.open.fetch_sub(1, Ordering::SeqCst);
        if before == 1 {
            connections.none_left.notify_one();
        }
        if before == server.limits.connections {
            connections.room.notify_waiters();
        }
    }
}
