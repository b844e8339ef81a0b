//! Counters that a generation and the master share: a page of atomics, written by the child, read by the master.
//!
//! Owns the meaning of the slots. The memory is `sys::shared`'s; what the master reads there is the word of an untrusted
//! process: numbers to show, never sizes or indices to use.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::report::{LimitHits, Load};

/// What each slot counts. New ones go to the end.
#[derive(Clone, Copy, Debug)]
#[repr(usize)]
pub enum Slot {
    /// Open connections.
    Connections,
    /// Of these, without a request or part of one.
    Idle,
    /// Requests between their head and the end of their response.
    InFlight,
    /// Requests answered, in all.
    Requests,
    /// Handlers that panicked.
    Panics,
    /// Heads that were not whole in time, and new connections that sent nothing.
    HeadTimeouts,
    /// Connections closed since they were idle for long.
    IdleTimeouts,
    /// Request bodies that paused for too long.
    BodyTimeouts,
    /// Responses that were not taken.
    WriteTimeouts,
    /// Requests that took too long in all.
    RequestTimeouts,
    /// Heads too long, or with too many fields.
    HeadTooLarge,
    BodyTooLarge,
    /// Times that accepting paused, since there were enough connections.
    AcceptPauses,
    /// Connections closed at once, since their peer had enough of them.
    PeerRefusals,
    /// Of the open connections, those that speak HTTP/2.
    Http2,
    /// Of the open connections, those that were upgraded.
    Upgraded,
}

/// How many slots there are.
pub const SLOTS: usize = Slot::Upgraded as usize + 1;

/// A view of the slots; cheap to copy.
#[derive(Clone, Copy, Debug)]
pub struct Metrics(pub &'static [AtomicU64; SLOTS]);

impl Metrics {
    /// Slots of this process alone.
    #[cfg(test)]
    pub fn local() -> Metrics {
        Metrics(Box::leak(Box::new(std::array::from_fn(|_| AtomicU64::new(0)))))
    }

    #[inline]
    pub fn add(self, slot: Slot) {
        self.0[slot as usize].fetch_add(1, Relaxed);
    }

    #[inline]
    pub fn add_many(self, slot: Slot, count: u64) {
        self.0[slot as usize].fetch_add(count, Relaxed);
    }

    #[inline]
    pub fn sub(self, slot: Slot) {
        self.0[slot as usize].fetch_sub(1, Relaxed);
    }

    pub fn get(self, slot: Slot) -> u64 {
        self.0[slot as usize].load(Relaxed)
    }
}

/// What `slots` say, as status shows it.
pub fn load(slots: &[AtomicU64; SLOTS]) -> Load {
    let get = |slot: Slot| slots[slot as usize].load(Relaxed);
    Load {
        connections: get(Slot::Connections),
        idle: get(Slot::Idle),
        requests_in_flight: get(Slot::InFlight),
        requests: get(Slot::Requests),
        panics: get(Slot::Panics),
        http2: get(Slot::Http2),
        upgraded: get(Slot::Upgraded),
        limits: LimitHits {
            head_timeouts: get(Slot::HeadTimeouts),
            idle_timeouts: get(Slot::IdleTimeouts),
            body_timeouts: get(Slot::BodyTimeouts),
            write_timeouts: get(Slot::WriteTimeouts),
            request_timeouts: get(Slot::RequestTimeouts),
            head_too_large: get(Slot::HeadTooLarge),
            body_too_large: get(Slot::BodyTooLarge),
            accept_pauses: get(Slot::AcceptPauses),
            peer_refusals: get(Slot::PeerRefusals),
        },
    }
}
