//! Serving: what all connections of a worker share, and the register of those that are open. A worker serves one set for
//! life, so that what it shares is never freed.

pub mod accept;
pub mod conn;
pub mod h1;
mod io;
mod service;
mod sniff;
#[cfg(test)]
mod tests;

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::TcpStream;
use tokio::sync::Notify;

use self::conn::{Conn, Origin};
use super::drain::Drain;
use super::handover::{Handover, Start};
use super::plugin::Plugin;
use super::route::Sites;
use crate::metrics::Metrics;

pub struct Server {
    pub sites: Sites<&'static Plugin>,
    pub metrics: Metrics,
    pub drain: Drain,
    pub handover: Handover,
    pub connections: Connections,
}

impl Server {
    /// One per worker.
    pub fn new(sites: Sites<&'static Plugin>, metrics: Metrics) -> &'static Server {
        let (drain, handover, connections) = (Drain::default(), Handover::default(), Connections::default());
        Box::leak(Box::new(Server { sites, metrics, drain, handover, connections }))
    }

    /// Neither retiring nor handing over: nobody asks a connection for anything.
    #[inline]
    pub fn is_calm(&self) -> bool {
        self.drain.is_serving() && !self.handover.is_open()
    }

    /// Serves a connection, within the runtime that serves.
    pub fn begin(&'static self, origin: Origin, stream: std::net::TcpStream, start: Start) {
        let raw = stream.as_raw_fd();
        let stream = match TcpStream::from_std(stream) {
            Ok(stream) => stream,
            Err(error) => return tracing::error!(%error, "failed to register a connection"),
        };
        // From here on it counts, before any task has seen it.
        let entry = self.connections.enter(Conn::new(self, origin, raw));
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
        self.open.fetch_add(1, Ordering::SeqCst);
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
        if connections.open.fetch_sub(1, Ordering::SeqCst) == 1 {
            connections.none_left.notify_one();
        }
    }
}
