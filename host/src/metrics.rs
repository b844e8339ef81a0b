//! Counters that a generation and the master share: a page of atomics, written by the child, read by the master.
//!
//! Owns the meaning of the slots. The memory is `sys::shared`'s; what the master reads there is the word of an untrusted
//! process: numbers to show, never sizes or indices to use.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::report::{LimitHits, Load, Malformed, Totals};

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
    /// Of the open connections, those that have left HTTP and are a plugin's.
    Upgraded,
    /// Times that accepting paused, since descriptors or memory ran out.
    AcceptFailures,
    /// Connections that went to another generation.
    HandedOver,
    /// Of these, with bytes that were read ahead.
    Carried,
    /// Connections offered to another generation that came back.
    TakenBack,
    /// Answers with a status of 500 and above.
    Failures,
    /// HTTP/2 connections that we ended: their clients broke the protocol, or flooded it.
    Http2Errors,
    /// For how many milliseconds the oldest request in flight has been, as the last sweep saw; 0 if there is none.
    OldestRequest,
    /// TLS handshakes that were not done in time.
    HandshakeTimeouts,
    /// TLS handshakes that failed: another protocol, or none that both sides speak.
    HandshakeFailures,
    /// Requests refused since their method or target is malformed.
    MalformedRequestLine,
    /// The same, for a version of HTTP that is not spoken here.
    MalformedVersion,
    /// The same, for a header field.
    MalformedHeader,
    /// The same, for a `Host` that is missing, malformed or there twice.
    MalformedHost,
    /// The same, for a body whose length cannot be told.
    MalformedFraming,
    /// The same, for a transfer coding that is not known here.
    UnknownTransferCoding,
    /// Requests whose body is malformed.
    MalformedBody,
    /// Connections whose client broke off a request or its response.
    ClientAborts,
    /// Requests that ended since their clients had closed their sending side, where `abort_on_close` is on.
    AbortedOnClose,
    /// Responses that broke off after their head, by their plugins' fault.
    BrokenResponses,
    /// Responses whose clients took some of them, at less than the rate that they owe.
    ResponsesTooSlow,
    /// Connections that had left HTTP and on which nothing moved.
    UpgradedTimeouts,
    /// Requests of HTTP/2 whose streams were reset since they are malformed.
    MalformedHttp2,
}

/// How many slots there are.
pub const SLOTS: usize = Slot::MalformedHttp2 as usize + 1;

/// A view of the slots; cheap to copy.
#[derive(Clone, Copy, Debug)]
pub struct Metrics(pub &'static [AtomicU64; SLOTS]);

impl Metrics {
    /// Slots of this process alone, for its life.
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

    pub fn set(self, slot: Slot, value: u64) {
        self.0[slot as usize].store(value, Relaxed);
    }

    pub fn get(self, slot: Slot) -> u64 {
        self.0[slot as usize].load(Relaxed)
    }
}

/// The slots as numbers: of one generation at one moment, or the sum of several that have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts([u64; SLOTS]);

impl Default for Counts {
    fn default() -> Counts {
        Counts([0; SLOTS])
    }
}

impl Counts {
    pub fn of(slots: &[AtomicU64; SLOTS]) -> Counts {
        Counts(std::array::from_fn(|slot| slots[slot].load(Relaxed)))
    }

    /// Takes in those of another generation: its own word, which may be wrong and never an overflow.
    pub fn add(&mut self, other: Counts) {
        for (own, other) in self.0.iter_mut().zip(other.0) {
            *own = own.saturating_add(other);
        }
    }

    /// As numbers that another program may know fewer or more of.
    pub fn save(&self) -> Vec<u64> {
        self.0.to_vec()
    }

    pub fn resume(saved: &[u64]) -> Counts {
        Counts(std::array::from_fn(|slot| saved.get(slot).copied().unwrap_or(0)))
    }

    fn get(&self, slot: Slot) -> u64 {
        self.0[slot as usize]
    }

    /// What is open now, and what has been done, by a generation that lives.
    pub fn load(&self) -> Load {
        Load {
            connections: self.get(Slot::Connections),
            idle: self.get(Slot::Idle),
            requests_in_flight: self.get(Slot::InFlight),
            requests: self.get(Slot::Requests),
            failures: self.get(Slot::Failures),
            panics: self.get(Slot::Panics),
            broken_responses: self.get(Slot::BrokenResponses),
            http2: self.get(Slot::Http2),
            upgraded: self.get(Slot::Upgraded),
            oldest_request_ms: self.get(Slot::OldestRequest),
            client_aborts: self.get(Slot::ClientAborts),
            malformed: self.malformed(),
            limits: self.limits(),
        }
    }

    /// The same once it has ended, however it did: nothing is open any more.
    pub fn past(&self) -> Load {
        let Load { requests, failures, panics, broken_responses, client_aborts, malformed, limits, .. } = self.load();
        Load { requests, failures, panics, broken_responses, client_aborts, malformed, limits, ..Load::default() }
    }

    /// What only grows: it stays true when its generation has ended.
    pub fn totals(&self) -> Totals {
        Totals {
            requests: self.get(Slot::Requests),
            panics: self.get(Slot::Panics),
            broken_responses: self.get(Slot::BrokenResponses),
            handed_over: self.get(Slot::HandedOver),
            carried: self.get(Slot::Carried),
            taken_back: self.get(Slot::TakenBack),
            client_aborts: self.get(Slot::ClientAborts),
            malformed: self.malformed(),
            limits: self.limits(),
        }
    }

    fn malformed(&self) -> Malformed {
        Malformed {
            request_line: self.get(Slot::MalformedRequestLine),
            version: self.get(Slot::MalformedVersion),
            header: self.get(Slot::MalformedHeader),
            host: self.get(Slot::MalformedHost),
            framing: self.get(Slot::MalformedFraming),
            transfer_coding: self.get(Slot::UnknownTransferCoding),
            body: self.get(Slot::MalformedBody),
            http2: self.get(Slot::MalformedHttp2),
        }
    }

    fn limits(&self) -> LimitHits {
        LimitHits {
            handshake_timeouts: self.get(Slot::HandshakeTimeouts),
            head_timeouts: self.get(Slot::HeadTimeouts),
            idle_timeouts: self.get(Slot::IdleTimeouts),
            body_timeouts: self.get(Slot::BodyTimeouts),
            write_timeouts: self.get(Slot::WriteTimeouts),
            request_timeouts: self.get(Slot::RequestTimeouts),
            head_too_large: self.get(Slot::HeadTooLarge),
            body_too_large: self.get(Slot::BodyTooLarge),
            accept_pauses: self.get(Slot::AcceptPauses),
            peer_refusals: self.get(Slot::PeerRefusals),
            accept_failures: self.get(Slot::AcceptFailures),
            http2_errors: self.get(Slot::Http2Errors),
            handshake_failures: self.get(Slot::HandshakeFailures),
            aborted_on_close: self.get(Slot::AbortedOnClose),
            responses_too_slow: self.get(Slot::ResponsesTooSlow),
            upgraded_timeouts: self.get(Slot::UpgradedTimeouts),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_stop_at_the_largest_number() {
        let metrics = Metrics::local();
        metrics.add_many(Slot::Requests, u64::MAX - 1);
        metrics.add_many(Slot::TakenBack, 3);
        let mut sum = Counts::default();
        for _ in 0..3 {
            sum.add(Counts::of(metrics.0));
        }
        assert_eq!((sum.totals().requests, sum.totals().taken_back), (u64::MAX, 9));
    }
}
