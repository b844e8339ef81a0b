//! The connections of one side of the admin surface, and which of them is closed when there is no room for another.
//!
//! A connection can be closed as long as no operation of it is under way: it is idle, slow, or takes its response too slowly.
//! So no client keeps others out by holding connections open, a probe least of all. The peer with the most connections loses its
//! oldest one first, so that a peer with one connection keeps it while another fills the table.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::denials::PeerKey;

/// Pure: each connection with its peer, and the one to close next.
#[derive(Debug, Default)]
struct Table {
    next: u64,
    entries: BTreeMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    peer: PeerKey,
    /// When it was accepted, or its last request ended.
    idle_since: Instant,
    /// Operations under way on it.
    operations: usize,
    closed: Arc<Notify>,
}

impl Table {
    /// Returns the connection to close, or `None` if each has an operation under way.
    fn victim(&self) -> Option<u64> {
        let idle = || self.entries.iter().filter(|(_, entry)| entry.operations == 0);
        let mut counts: BTreeMap<&PeerKey, usize> = BTreeMap::new();
        idle().for_each(|(_, entry)| *counts.entry(&entry.peer).or_default() += 1);
        let most = counts.values().max()?;
        idle()
            .filter(|(_, entry)| counts.get(&entry.peer) == Some(most))
            .min_by_key(|(id, entry)| (entry.idle_since, **id))
            .map(|(id, _)| *id)
    }
}

/// The room of one side.
#[derive(Clone, Debug)]
pub struct Slots {
    table: Arc<Mutex<Table>>,
    connections: usize,
    /// Fewer than there are connections, so that one can always be closed.
    operations: Arc<Semaphore>,
}

impl Slots {
    /// Room for `connections`, with at most `operations` under way on them.
    pub fn new(connections: usize, operations: usize) -> Slots {
        debug_assert!(operations < connections);
        Slots { table: Arc::default(), connections, operations: Arc::new(Semaphore::new(operations)) }
    }

    /// Takes a slot for a connection of `peer`, and closes another connection if there is none left.
    pub fn take(&self, peer: PeerKey, now: Instant) -> Slot {
        let mut table = self.lock();
        while table.entries.len() >= self.connections {
            let Some(entry) = table.victim().and_then(|id| table.entries.remove(&id)) else { break };
            entry.closed.notify_one();
        }
        let id = table.next;
        table.next += 1;
        let closed = Arc::new(Notify::new());
        table.entries.insert(id, Entry { peer, idle_since: now, operations: 0, closed: closed.clone() });
        Slot { slots: self.clone(), id, closed }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Each change of it is one step.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place, given back when it is dropped.
#[derive(Debug)]
pub struct Slot {
    slots: Slots,
    id: u64,
    closed: Arc<Notify>,
}

impl Slot {
    /// Waits until the connection must give way to another.
    pub async fn closed(&self) {
        self.closed.notified().await;
    }

    /// Notes that a request has ended.
    pub fn request_ended(&self, now: Instant) {
        if let Some(entry) = self.slots.lock().entries.get_mut(&self.id) {
            entry.idle_since = now;
        }
    }

    /// Keeps the connection open while the operation is under way, or returns `None` if too many are.
    pub fn begin_operation(&self) -> Option<Operation<'_>> {
        let permit = self.slots.operations.clone().try_acquire_owned().ok()?;
        let mut table = self.slots.lock();
        // Without an entry the connection is about to be closed.
        table.entries.get_mut(&self.id)?.operations += 1;
        Some(Operation { slot: self, _permit: permit })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.lock().entries.remove(&self.id);
    }
}

/// An operation under way.
#[derive(Debug)]
pub struct Operation<'a> {
    slot: &'a Slot,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Operation<'_> {
    fn drop(&mut self) {
        if let Some(entry) = self.slot.slots.lock().entries.get_mut(&self.slot.id) {
            entry.operations -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn peer(last: u8) -> PeerKey {
        PeerKey::of_address(std::net::Ipv4Addr::new(10, 0, 0, last).into())
    }

    fn is_closed(slot: &Slot) -> bool {
        use std::future::Future;
        let waker = std::task::Waker::noop();
        let closed = std::pin::pin!(slot.closed());
        closed.poll(&mut std::task::Context::from_waker(waker)).is_ready()
    }

    #[test]
    fn the_oldest_idle_connection_gives_way_to_a_new_one() {
        let (slots, start) = (Slots::new(3, 1), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let old: Vec<Slot> = (0..3).map(|age| slots.take(peer(1), at(age))).collect();
        old[0].request_ended(at(10));
        let _new = slots.take(peer(1), at(11));
        assert_eq!(old.iter().map(is_closed).collect::<Vec<_>>(), [false, true, false]);
        assert_eq!(slots.lock().entries.len(), 3);
    }

    #[test]
    fn a_peer_with_one_connection_outlives_one_with_many() {
        let (slots, start) = (Slots::new(4, 1), Instant::now());
        let probe = slots.take(peer(1), start);
        let many: Vec<Slot> = (1..20).map(|age| slots.take(peer(2), start + Duration::from_secs(age))).collect();
        assert!(!is_closed(&probe));
        assert_eq!(many.iter().filter(|slot| !is_closed(slot)).count(), 3);
    }

    #[test]
    fn a_connection_with_an_operation_is_not_closed_and_others_are() {
        let (slots, start) = (Slots::new(2, 1), Instant::now());
        let busy = slots.take(peer(1), start);
        let operation = busy.begin_operation().unwrap();
        let idle = slots.take(peer(1), start + Duration::from_secs(1));
        assert!(idle.begin_operation().is_none(), "there is room for one operation");
        let _third = slots.take(peer(1), start + Duration::from_secs(2));
        assert_eq!((is_closed(&busy), is_closed(&idle)), (false, true));
        drop(operation);
        let _fourth = slots.take(peer(1), start + Duration::from_secs(3));
        assert!(is_closed(&busy), "it is the oldest that is idle now");
    }

    #[test]
    fn a_slot_is_free_again_when_its_connection_has_ended() {
        let (slots, start) = (Slots::new(2, 1), Instant::now());
        let first = slots.take(peer(1), start);
        drop(slots.take(peer(1), start));
        let _third = slots.take(peer(1), start);
        assert!(!is_closed(&first));
    }
}
