//! What a connection may take up: the limits as the hot path needs them, what is known of a connection's activity, and the
//! sweep that finds those whose time is over.
//!
//! A request costs no timer and no look at a clock. A connection counts its bytes and requests anyway; once per tick the
//! sweep compares these counts with those of the tick before, so that it knows, to a tick, how long nothing has moved. It
//! only wakes: whether a limit is met is judged by the connection's own task (`serve::h1`), from the counts as they are then.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::Server;
use super::demand::Demand;
use crate::config;
use crate::metrics::Slot;
use crate::sys::tcp::TcpOptions;

/// A tick is this part of the shortest time limit, within the bounds.
const TICKS: u32 = 8;
const TICK: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// The tick where there is no time limit.
pub const LOOK: Duration = Duration::from_secs(1);
/// A response that is stuck is looked at this often within its limit.
const LOOKS: u64 = 4;
/// Descriptors kept for other things than connections: a part of all, and a number.
const RESERVE: (u64, u64) = (16, 64);

/// Of the memory, this part is for connections: plugins and another generation have the rest.
const CONNECTIONS_PART: u64 = 2;
/// What a connection in use costs: its buffers when they are full, and what the kernel queues.
const CONNECTION_MEMORY: u64 = 64 << 10;
/// However little memory there is.
const LEAST_CONNECTIONS: usize = 256;

/// `[limits]`. Times are in milliseconds, [`NEVER`] for none.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub handshake_timeout: Option<Duration>,
    pub head_timeout: Option<Duration>,
    head: u64,
    idle: u64,
    body: u64,
    /// Bytes per second; 0 for none.
    pub body_min_rate: u64,
    write: u64,
    request: u64,
    upgraded: u64,
    max_age: u64,
    /// Of one connection; `u64::MAX` for any number.
    pub requests_per_connection: u64,
    /// Bytes per second that a client takes of a response; 0 for any.
    response_min_rate: u64,
    response_window: u64,
    pub http2_glitches: u32,
    /// Of hyper's read buffer, and of its write buffer. A head must fit.
    pub buffer_size: usize,
    pub head_size: usize,
    pub head_fields: usize,
    pub body_size: u64,
    pub connections: usize,
    /// How many the descriptors allow, whatever is configured: more are not taken over from another generation either.
    pub room: usize,
    pub per_peer: usize,
    pub http2_streams: u32,
    pub http2_ping: Option<Duration>,
    /// How long an HTTP/2 client may take to answer the PING that comes with GOAWAY, in a drain or not.
    pub goaway: Option<Duration>,
    /// How long a close waits for the client's end.
    pub linger: Duration,
    /// As the listening sockets have them, for connections from before they had.
    pub tcp: TcpOptions,
    /// None if there is nothing to sweep for.
    pub tick: Option<Duration>,
}

const NEVER: u64 = u64::MAX;

impl Limits {
    /// `open_files` is how many descriptors this process may have, `memory` how many bytes, if that is known.
    pub fn new(limits: &config::Limits, drain: &config::Drain, open_files: u64, memory: Option<u64>) -> Limits {
        let ms = |limit: config::Limit| {
            limit.duration().map_or(NEVER, |limit| u64::try_from(limit.as_millis()).unwrap_or(NEVER))
        };
        let times = [
            limits.head_timeout.duration(),
            limits.idle_timeout.duration(),
            limits.body_timeout.duration(),
            limits.write_timeout.duration(),
            limits.request_timeout.duration(),
            limits.upgraded_idle.duration(),
            limits.keepalive_max_age.duration(),
            (limits.response_min_rate > 0).then_some(limits.response_window),
        ];
        let shortest = times.into_iter().flatten().min();
        let room = open_files.saturating_sub(open_files / RESERVE.0 + RESERVE.1).max(1);
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        Limits {
            handshake_timeout: limits.handshake_timeout.duration(),
            head_timeout: limits.head_timeout.duration(),
            head: ms(limits.head_timeout),
            idle: ms(limits.idle_timeout),
            body: ms(limits.body_timeout),
            body_min_rate: limits.body_min_rate,
            write: ms(limits.write_timeout),
            request: ms(limits.request_timeout),
            upgraded: ms(limits.upgraded_idle),
            max_age: ms(limits.keepalive_max_age),
            requests_per_connection: match limits.requests_per_connection {
                0 => u64::MAX,
                most => most,
            },
            response_min_rate: limits.response_min_rate,
            response_window: u64::try_from(limits.response_window.as_millis()).unwrap_or(NEVER),
            http2_glitches: limits.http2_glitches,
            buffer_size: usize::try_from(limits.buffer_size.max(limits.head_size).0).unwrap_or(usize::MAX),
            head_size: usize::try_from(limits.head_size.0).unwrap_or(usize::MAX),
            head_fields: limits.head_fields,
            body_size: limits.body_size.0,
            connections: match limits.connections {
                0 => room.min(memory.map_or(usize::MAX, connections_within)),
                own => own,
            },
            room,
            per_peer: limits.connections_per_peer,
            http2_streams: limits.http2_streams,
            http2_ping: limits.http2_ping.duration(),
            goaway: drain.goaway.duration(),
            linger: drain.linger,
            tcp: limits.tcp_options(),
            tick: shortest.map(|time| (time / TICKS).clamp(TICK.0, TICK.1)),
        }
    }
}

/// How many connections fit into that much memory.
fn connections_within(memory: u64) -> usize {
    let most = memory / CONNECTIONS_PART / CONNECTION_MEMORY;
    usize::try_from(most).unwrap_or(usize::MAX).max(LEAST_CONNECTIONS)
}

impl Limits {
    /// Whether a connection of that age, in milliseconds, has served for as long as may be.
    pub fn has_aged(&self, age: u64) -> bool {
        age >= self.max_age
    }

    pub fn write_timeout(&self) -> Option<Duration> {
        (self.write != NEVER).then(|| Duration::from_millis(self.write))
    }
}

/// Milliseconds, from a zero long before the start: what came from another generation may be older than this process.
#[derive(Debug)]
pub struct Clock(Instant);

const START: u64 = 1 << 40;

impl Default for Clock {
    fn default() -> Clock {
        Clock(Instant::now())
    }
}

impl Clock {
    pub fn now(&self) -> u64 {
        START + self.0.elapsed().as_millis() as u64
    }
}

/// One look of the sweep.
#[derive(Clone, Copy, Debug)]
pub struct Sweep {
    pub now: u64,
    /// In a drain: responses without a length have had their time.
    pub streams_are_over: bool,
}

/// Wakes the connections whose time may be over, as long as the worker lives.
pub async fn sweep(server: &'static Server, tick: Duration) {
    loop {
        server.connections.some().await;
        // One timer for all connections; it stands still while there is none.
        tokio::time::sleep(tick).await;
        let now = server.clock.now();
        let this = Sweep { now, streams_are_over: server.drain.is_over_for_streams() };
        let mut oldest: Option<u64> = None;
        server.connections.each(|conn| {
            oldest = oldest.into_iter().chain(conn.request_began()).min();
            conn.watch_late_request(now);
            if conn.is_past_its_time(this)
                && let Some(waker) = conn.waker.get()
            {
                waker.wake_by_ref();
            }
        });
        // At least one: 0 is none.
        let age = oldest.map_or(0, |since| now.saturating_sub(since).max(1));
        server.metrics.set(Slot::OldestRequest, age);
    }
}

// ---- one connection ----

/// Which limit a connection has met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overdue {
    Idle,
    Body,
    Write,
    Request,
    /// Of the rate at which a response is taken.
    ResponseRate,
    /// Of the drain: `drain.stream`.
    Stream,
}

impl Overdue {
    /// Where it is counted; what the drain ends is in its report.
    pub fn slot(self) -> Option<Slot> {
        match self {
            Overdue::Idle => Some(Slot::IdleTimeouts),
            Overdue::Body => Some(Slot::BodyTimeouts),
            Overdue::Write => Some(Slot::WriteTimeouts),
            Overdue::Request => Some(Slot::RequestTimeouts),
            Overdue::ResponseRate => Some(Slot::ResponsesTooSlow),
            Overdue::Stream => None,
        }
    }
}

/// What a connection has moved, as it counts.
#[derive(Clone, Copy, Debug)]
pub struct Counts {
    pub read: u64,
    pub written: u64,
    pub calls: u64,
}

/// How a connection stands, as it has last said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stand {
    /// No request and no part of one.
    Idle,
    /// A request is being answered.
    Answering,
    /// Neither: a part of a head has come, or the rest of a body.
    Other,
}

/// What the sweep knows of a connection. Written by the sweep, and by the connection's own task where that is said.
#[derive(Debug)]
pub struct Activity {
    /// The task shall judge. Set by the sweep, cleared by the task.
    due: AtomicBool,
    /// It has carried a request, here or in another generation. Set by the task.
    served: AtomicBool,
    read: AtomicU64,
    written: AtomicU64,
    calls: AtomicU64,
    /// When these were last seen to change.
    read_at: AtomicU64,
    written_at: AtomicU64,
    called_at: AtomicU64,
    /// A handler waits for more of the request's body.
    pub body: Demand,
    /// The kernel takes no more of the response.
    pub write: Wait,
    taking: Taking,
    /// Bytes that the client had not acknowledged when a stuck response was last looked at, and when that was. By the task.
    unacknowledged: AtomicUsize,
    looked_at: AtomicU64,
}

impl Activity {
    /// Nothing has moved since `since`.
    pub fn new(since: u64) -> Activity {
        Activity {
            due: AtomicBool::new(false),
            served: AtomicBool::new(false),
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
            calls: AtomicU64::new(0),
            read_at: AtomicU64::new(since),
            written_at: AtomicU64::new(since),
            called_at: AtomicU64::new(since),
            body: Demand::default(),
            write: Wait::default(),
            taking: Taking::default(),
            unacknowledged: AtomicUsize::new(usize::MAX),
            looked_at: AtomicU64::new(0),
        }
    }

    #[inline]
    pub fn is_due(&self) -> bool {
        self.due.load(Relaxed)
    }

    pub fn set_due(&self, due: bool) {
        self.due.store(due, Relaxed);
    }

    pub fn set_served(&self) {
        self.served.store(true, Relaxed);
    }

    pub fn has_served(&self) -> bool {
        self.served.load(Relaxed)
    }

    /// The sweep's part: takes down what has changed.
    pub fn observe(&self, now: u64, counts: Counts, limits: &Limits) {
        let note = |seen: &AtomicU64, count: u64, at: &AtomicU64| {
            if seen.load(Relaxed) != count {
                seen.store(count, Relaxed);
                at.store(now, Relaxed);
            }
        };
        if self.calls.load(Relaxed) != counts.calls {
            self.body.begin_anew();
            self.taking.begin_anew();
        }
        self.body.observe(now, counts.read.wrapping_sub(self.read.load(Relaxed)), limits.body_min_rate);
        note(&self.read, counts.read, &self.read_at);
        note(&self.written, counts.written, &self.written_at);
        note(&self.calls, counts.calls, &self.called_at);
        self.write.observe(now);
        if limits.response_min_rate > 0 {
            self.taking.observe(now, self.write.is_on());
        }
    }

    /// When the last request began, to a tick.
    pub fn called_at(&self) -> u64 {
        self.called_at.load(Relaxed)
    }

    /// Since when nothing has moved; nothing if something has since the last tick.
    pub fn quiet_since(&self, counts: Counts) -> Option<u64> {
        let same = self.read.load(Relaxed) == counts.read && self.written.load(Relaxed) == counts.written;
        same.then(|| self.read_at.load(Relaxed).max(self.written_at.load(Relaxed)))
    }

    /// The limit that is met, as far as the last tick knows.
    pub fn overdue(&self, now: u64, limits: &Limits, counts: Counts, stand: Stand) -> Option<Overdue> {
        let over = |since: u64, limit: u64| now.saturating_sub(since) >= limit;
        if stand == Stand::Idle {
            // What never spoke has as long as a head has.
            let served = counts.calls > 0 || self.served.load(Relaxed);
            let limit = if served { limits.idle } else { limits.head };
            return self.quiet_since(counts).filter(|since| over(*since, limit)).map(|_| Overdue::Idle);
        }
        let is_same = |seen: &AtomicU64, count: u64| seen.load(Relaxed) == count;
        if let Some(since) = self.write.since()
            && is_same(&self.written, counts.written)
        {
            let since = since.max(self.written_at.load(Relaxed)).max(self.looked_at.load(Relaxed));
            if limits.write != NEVER && over(since, limits.write / LOOKS) {
                return Some(Overdue::Write);
            }
        }
        if self.write.is_on() && self.taking.is_due(limits.response_window) {
            return Some(Overdue::ResponseRate);
        }
        if let Some(since) = self.body.since() {
            let silent = is_same(&self.read, counts.read) && over(since.max(self.read_at.load(Relaxed)), limits.body);
            if silent || self.body.debt() >= limits.body {
                return Some(Overdue::Body);
            }
        }
        let late = stand == Stand::Answering
            && is_same(&self.calls, counts.calls)
            && over(self.called_at.load(Relaxed), limits.request);
        late.then_some(Overdue::Request)
    }

    /// The task's look at a client that may take a response below its rate.
    pub fn is_taken_too_slowly(&self, limits: &Limits, written: u64, unacknowledged: usize) -> bool {
        let taken = written.saturating_sub(unacknowledged as u64);
        self.taking.is_too_slow(taken, limits.response_min_rate, limits.response_window)
    }

    /// Whether nothing has moved for as long as may be on a connection that has left HTTP.
    pub fn is_idle_upgraded(&self, now: u64, limits: &Limits, counts: Counts) -> bool {
        self.quiet_since(counts).is_some_and(|since| now.saturating_sub(since) >= limits.upgraded)
    }

    /// The task's look at a response that is stuck: whether the client has taken nothing for as long as it may. What the
    /// kernel has still to send tells more than whether it takes more of us: it does that only once a third is free.
    pub fn is_stuck(&self, now: u64, limits: &Limits, unacknowledged: usize) -> bool {
        self.looked_at.store(now, Relaxed);
        if unacknowledged < self.unacknowledged.swap(unacknowledged, Relaxed) {
            self.written_at.store(now, Relaxed);
        }
        let since = self.write.since().map(|since| since.max(self.written_at.load(Relaxed)));
        since.is_some_and(|since| now.saturating_sub(since) >= limits.write)
    }
}

/// How a client takes a response, while the kernel takes no more of it.
#[derive(Debug, Default)]
struct Taking {
    // ---- by the sweep ----
    /// When it was last seen to be waited for; 0 if it was not at the last look.
    looked_at: AtomicU64,
    /// For how many milliseconds it was waited, less those that the bytes which were taken have paid for.
    debt: AtomicU64,

    // ---- by the task ----
    /// Bytes that the client had taken at the last look, and whether there was one since the request began.
    taken: AtomicU64,
    is_measured: AtomicBool,
}

impl Taking {
    fn begin_anew(&self) {
        self.debt.store(0, Relaxed);
        self.is_measured.store(false, Relaxed);
    }

    /// Whether the task shall look: to take the measure at first, then to judge.
    fn is_due(&self, window: u64) -> bool {
        let debt = self.debt();
        debt >= window || debt > 0 && !self.is_measured.load(Relaxed)
    }

    fn observe(&self, now: u64, is_on: bool) {
        let before = self.looked_at.load(Relaxed);
        if !is_on && before == 0 {
            return;
        }
        self.looked_at.store(if is_on { now } else { 0 }, Relaxed);
        if is_on && before > 0 {
            self.debt.store(self.debt.load(Relaxed).saturating_add(now.saturating_sub(before)), Relaxed);
        }
    }

    fn debt(&self) -> u64 {
        self.debt.load(Relaxed)
    }

    /// The task's look: the client has taken so many bytes in all.
    fn is_too_slow(&self, taken: u64, rate: u64, window: u64) -> bool {
        let bytes = taken.saturating_sub(self.taken.swap(taken, Relaxed));
        if !self.is_measured.swap(true, Relaxed) {
            return false;
        }
        let left = self.debt().saturating_sub(bytes.saturating_mul(1000) / rate.max(1));
        self.debt.store(left, Relaxed);
        // One that takes nothing at all may be out of reach: it has `write_timeout`.
        left >= window && bytes > 0
    }
}

/// Something that is waited for at times. Begun and ended by one thread at a time.
#[derive(Debug, Default)]
pub struct Wait {
    /// Odd while it is waited for.
    turns: AtomicU32,
    /// Of the sweep: the turns it has seen, and since when.
    seen: AtomicU32,
    since: AtomicU64,
}

impl Wait {
    #[inline]
    pub fn begin(&self) {
        let turns = self.turns.load(Relaxed);
        if turns.is_multiple_of(2) {
            self.turns.store(turns.wrapping_add(1), Relaxed);
        }
    }

    #[inline]
    pub fn end(&self) {
        let turns = self.turns.load(Relaxed);
        if !turns.is_multiple_of(2) {
            self.turns.store(turns.wrapping_add(1), Relaxed);
        }
    }

    pub fn is_on(&self) -> bool {
        !self.turns.load(Relaxed).is_multiple_of(2)
    }

    pub fn observe(&self, now: u64) {
        let turns = self.turns.load(Relaxed);
        if self.seen.load(Relaxed) != turns {
            self.seen.store(turns, Relaxed);
            self.since.store(now, Relaxed);
        }
    }

    /// Since when, if it is waited for and the sweep knows.
    pub fn since(&self) -> Option<u64> {
        let turns = self.turns.load(Relaxed);
        (!turns.is_multiple_of(2) && self.seen.load(Relaxed) == turns).then(|| self.since.load(Relaxed))
    }
}

// ---- peers ----

/// How many connections each peer has, where that is limited.
#[derive(Debug, Default)]
pub struct Peers(Mutex<HashMap<IpAddr, usize>>);

impl Peers {
    pub fn count(&self, peer: Option<SocketAddr>) -> usize {
        let Some(key) = peer.map(network) else { return 0 };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&key).copied().unwrap_or(0)
    }

    pub fn enter(&self, peer: Option<SocketAddr>) {
        let Some(key) = peer.map(network) else { return };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default() += 1;
    }

    pub fn leave(&self, peer: Option<SocketAddr>) {
        let Some(key) = peer.map(network) else { return };
        let mut peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = peers.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                peers.remove(&key);
            }
        }
    }
}

/// What counts as one peer: an IPv6 client has a whole /64 to itself.
pub fn network(peer: SocketAddr) -> IpAddr {
    match peer.ip().to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & !(u128::MAX >> 64))),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests;
