//! What is known of one connection: its facts, its progress, and whether a request is alive on it. Shared by the parts that
//! hyper keeps apart: the io below it, the service above it, and the task that polls it. Long, as one place has to hold what
//! they share.
//!
//! Most of it is written by the connection's own task only, so that relaxed loads and stores do; only the count of request
//! bodies, which a plugin may drop on any thread, needs more.

use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU32, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::Waker;
use std::time::Duration;

use baton_plugin_api::abi::FfiAddr;
use http::Uri;
use http::uri::{Authority, PathAndQuery};
use tokio_rustls::TlsAcceptor;

use super::Server;
use super::closed::CloseSignal;
use super::discard::DiscardSlot;
use super::fragment::Fragments;
use super::h2::Streams;
use super::limits::{Activity, Counts, Overdue, Stand, Sweep};
use super::service::{Own, ResponseLength};
use super::tls::TlsFacts;
use super::upgrade::Wish;
use crate::child::handover;
use crate::child::plugin::Plugin;
use crate::child::route::Site;
use crate::metrics::Slot;

/// [`Conn::ahead`] while a body of unknown length is being received: far below zero.
const UNKNOWN: i64 = i64::MIN / 2;
/// No head is longer; a difference of addresses above it is none.
const MAX_HEAD: usize = 1 << 20;

/// Where a connection comes from.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The listener that took it, by the master's number.
    pub listener: u32,
    /// The name of its `[[server]]`.
    pub name: &'static str,
    pub peer: Option<SocketAddr>,
    pub local: Option<SocketAddr>,
}

pub struct Conn {
    pub server: &'static Server,
    pub origin: Origin,
    /// What its `[[server]]` serves.
    pub site: &'static Site<&'static Plugin>,
    pub peer: FfiAddr,
    pub local: FfiAddr,
    /// What it shakes hands with, if it speaks TLS.
    pub acceptor: Option<&'static TlsAcceptor>,
    /// What was negotiated then.
    tls: OnceLock<Box<TlsFacts>>,
    socket: RawFd,
    /// When it came to this process, by the server's clock.
    began: u64,
    /// Woken when the worker retires.
    pub waker: OnceLock<Waker>,

    // ---- written by the connection's task only ----
    /// A response is being [`MAKING`], [`WRITING`] or [`STREAMING`], or 0.
    answering: AtomicU32,
    /// Responses that ended since they were last counted.
    answered: AtomicU32,
    /// Whether a request began since [`Conn::begin_poll`].
    called: AtomicBool,
    /// Bytes of a response that has ended may still be in hyper's buffer.
    owed: AtomicBool,
    /// Whether all that was written since [`Conn::begin_poll`] has been flushed, and something was.
    flushed: AtomicBool,
    read: AtomicU64,
    written: AtomicU64,
    /// Reads since the last request began.
    reads: AtomicU32,
    /// Requests begun.
    calls: AtomicU64,
    /// The address just after the last byte in hyper's read buffer.
    data_end: AtomicUsize,
    /// Bytes received beyond the request that is being answered; below zero while its body is still coming.
    ahead: AtomicI64,
    fragments: Fragments,
    /// The client once sent a request before the response to the one before it was written.
    pipelined: AtomicBool,
    /// The worker retires, and since then there was a moment without a request or a part of one.
    was_quiet: AtomicBool,
    /// It has read further ahead than a handover can carry.
    overfull: AtomicBool,
    /// Bytes that the kernel has given out, and hyper has not got: see [`Stream::holds_bytes`](super::stream::Stream).
    held: AtomicBool,
    /// A response said `Connection: close` because the worker retires.
    announced: AtomicBool,
    /// Where the request that is being answered ends is not certain: no other is read after it.
    last_request: AtomicBool,
    /// The response that is being written ends with the connection.
    close_delimited: AtomicBool,
    /// The client closed its side: nothing more comes from it, but it may still read.
    ended: AtomicBool,
    /// The client broke off what it had begun.
    aborted: AtomicBool,
    /// Our side was closed in good order.
    shut: AtomicBool,
    /// The close is that of an idle connection.
    idle_close: AtomicBool,
    /// What the metrics say of it.
    shown_in_flight: AtomicBool,
    shown_idle: AtomicBool,
    /// It cannot be handed over.
    stays: AtomicBool,

    /// For the time limits.
    pub activity: Activity,
    /// What it carries, if it speaks HTTP/2.
    streams: OnceLock<Arc<Streams>>,

    /// What the client wished and a handler granted: the connection leaves HTTP once the response is written.
    granted: Mutex<Option<Wish>>,

    // ---- written by anybody ----
    /// The rest of a body that no handler reads.
    pub discard: DiscardSlot,
    /// The same, for handlers that wait for it.
    pub closed: CloseSignal,
    /// Its client's close is to be found although bytes lie unread: the request takes a while, or its handler has asked.
    watched: AtomicBool,
    /// It has lived for as long as may be. By the sweep.
    aged: AtomicBool,
    /// It has left HTTP, and what moves on it is its plugin's. By its task.
    upgraded: AtomicBool,
    /// Why the request that is being answered gets an answer of ours instead: a [`Own`], or 0.
    refusal: AtomicU8,
    /// Request bodies alive: in a handler's hands, or still to be dropped by it.
    bodies: AtomicU32,
}

impl Conn {
    /// `idle` is how long nothing has moved on it, in another generation.
    pub fn new(server: &'static Server, origin: Origin, socket: RawFd, idle: Duration) -> Conn {
        const NONE: FfiAddr =
            FfiAddr { family: baton_plugin_api::abi::ADDR_NONE, port: 0, ip: [0; 16], flow_info: 0, scope_id: 0 };
        server.metrics.add(Slot::Connections);
        server.metrics.add(Slot::Idle);
        Conn {
            server,
            site: server.sites.of(origin.name),
            peer: origin.peer.map_or(NONE, FfiAddr::from),
            local: origin.local.map_or(NONE, FfiAddr::from),
            acceptor: server.tls.of(origin.name),
            tls: OnceLock::new(),
            origin,
            socket,
            began: server.clock.now(),
            waker: OnceLock::new(),
            answering: AtomicU32::new(0),
            answered: AtomicU32::new(0),
            called: AtomicBool::new(false),
            owed: AtomicBool::new(false),
            flushed: AtomicBool::new(false),
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
            reads: AtomicU32::new(0),
            calls: AtomicU64::new(0),
            data_end: AtomicUsize::new(0),
            ahead: AtomicI64::new(0),
            fragments: Fragments::default(),
            pipelined: AtomicBool::new(false),
            was_quiet: AtomicBool::new(false),
            overfull: AtomicBool::new(false),
            held: AtomicBool::new(false),
            announced: AtomicBool::new(false),
            last_request: AtomicBool::new(false),
            close_delimited: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            aborted: AtomicBool::new(false),
            closed: CloseSignal::default(),
            shut: AtomicBool::new(false),
            idle_close: AtomicBool::new(false),
            granted: Mutex::new(None),
            shown_in_flight: AtomicBool::new(false),
            shown_idle: AtomicBool::new(true),
            stays: AtomicBool::new(false),
            streams: OnceLock::new(),
            activity: Activity::new(server.clock.now().saturating_sub(idle.as_millis() as u64)),
            discard: DiscardSlot::default(),
            watched: AtomicBool::new(false),
            aged: AtomicBool::new(false),
            upgraded: AtomicBool::new(false),
            refusal: AtomicU8::new(0),
            bodies: AtomicU32::new(0),
        }
    }

    // ---- the quiet poll ----

    /// Before a poll of hyper's connection.
    #[inline]
    pub fn begin_poll(&self) {
        self.called.store(false, Relaxed);
        self.flushed.store(false, Relaxed);
    }

    /// Whether a request is alive: its handler, its response, or its body.
    #[inline]
    pub fn is_alive(&self) -> bool {
        // Acquire: whoever saw the last body go also sees that hyper's end of it is closed.
        self.answering.load(Relaxed) > 0 || self.bodies.load(Acquire) > 0
    }

    /// After a poll that was pending, if nothing was alive before it and nothing after: whether all is answered and flushed,
    /// so that the io may be taken out of hyper. hyper's `Dispatcher` has then no request in flight, no body half read and
    /// nothing in its write buffer; at most a part of a next head is in its read buffer.
    #[inline]
    pub fn poll_was_quiet(&self) -> bool {
        !self.called.load(Relaxed) && self.flushed.load(Relaxed)
    }

    #[inline]
    pub fn poll_was_flushed(&self) -> bool {
        self.flushed.load(Relaxed)
    }

    /// Nothing is alive and all is flushed: what is ahead belongs to a next request.
    pub fn settle(&self) {
        if self.ahead.load(Relaxed) < 0 {
            self.ahead.store(0, Relaxed);
        }
    }

    // ---- told by the io ----

    #[inline]
    pub fn note_buffer(&self, end: usize) {
        self.data_end.store(end, Relaxed);
    }

    /// More has come while a request is answered, and lies in the kernel.
    #[cold]
    pub fn note_behind(&self) {
        self.pipelined.store(true, Relaxed);
    }

    /// Bytes that go into hyper's buffer now.
    #[inline]
    pub fn note_bytes(&self, bytes: &[u8]) {
        if self.streams.get().is_some() {
            return;
        }
        let left = match self.ahead.load(Relaxed) {
            0.. => 0,
            // A body whose length is not known may end anywhere.
            ahead if ahead < UNKNOWN / 2 => 0,
            ahead => usize::try_from(ahead.unsigned_abs()).unwrap_or(usize::MAX),
        };
        let limits = &self.server.limits;
        self.fragments.note(bytes, left.min(bytes.len()), limits.buffer_size.max(limits.head_size));
    }

    /// Whether the target of a request, which hyper has parsed, was followed by a fragment, which is not in `uri` any more.
    #[inline]
    pub fn has_fragment(&self, uri: &Uri) -> bool {
        self.fragments.is_marked() && self.find_fragment(uri)
    }

    #[cold]
    fn find_fragment(&self, uri: &Uri) -> bool {
        let end = self.data_end.load(Relaxed);
        // A target without a path ends with its host.
        let parts = [uri.authority().map(Authority::as_str), uri.path_and_query().map(PathAndQuery::as_str)];
        parts.into_iter().flatten().any(|part| {
            let behind = end.wrapping_sub(part.as_bytes().as_ptr_range().end.addr());
            self.fragments.is_at(behind)
        })
    }

    /// Bytes went into hyper's buffer, whose data now end at `end`.
    #[inline]
    pub fn note_fed(&self, len: usize, end: usize) {
        self.data_end.store(end, Relaxed);
        self.reads.store(self.reads.load(Relaxed).wrapping_add(1), Relaxed);
        self.ahead.store(self.ahead.load(Relaxed).saturating_add(len as i64), Relaxed);
    }

    #[inline]
    pub fn note_read(&self, len: usize) {
        self.read.store(self.read.load(Relaxed).wrapping_add(len as u64), Relaxed);
    }

    #[inline]
    pub fn note_write(&self, len: usize) {
        self.flushed.store(false, Relaxed);
        self.activity.write.end();
        self.written.store(self.written.load(Relaxed).wrapping_add(len as u64), Relaxed);
    }

    #[inline]
    pub fn note_flush(&self) {
        self.owed.store(false, Relaxed);
        self.flushed.store(true, Relaxed);
    }

    /// Bytes moved in either direction.
    pub fn moved(&self) -> u64 {
        self.read.load(Relaxed).wrapping_add(self.written.load(Relaxed))
    }

    /// The io goes on in a new hyper connection, which is fed anew what was left over.
    pub fn restart(&self) {
        self.ahead.store(0, Relaxed);
        self.data_end.store(0, Relaxed);
        self.fragments.restart();
    }

    // ---- told by the service ----

    /// A request begins: hyper has parsed its head. `end` is the address just after the last value in it, or 0; `body` its
    /// length, if known.
    ///
    /// How far the head reaches into hyper's buffer is told by its values: hyper parses in place, so the last of them ends
    /// just before the blank line. That is exact but for heads with odd white space, where it is a few bytes too little;
    /// whoever acts on it looks into the buffer first.
    #[inline]
    pub fn note_call(&self, end: usize, body: Option<u64>) {
        self.called.store(true, Relaxed);
        if self.reads.load(Relaxed) == 0 && self.calls.load(Relaxed) > 0 {
            self.pipelined.store(true, Relaxed);
        }
        self.reads.store(0, Relaxed);
        self.calls.store(self.calls.load(Relaxed) + 1, Relaxed);
        self.overfull.store(false, Relaxed);
        self.watched.store(false, Relaxed);
        self.refusal.store(0, Relaxed);
        let ahead = match body {
            None => UNKNOWN,
            Some(len) => {
                let behind = self.data_end.load(Relaxed).wrapping_sub(end.wrapping_add(4));
                let behind = if end == 0 || behind > MAX_HEAD { 0 } else { behind };
                (behind as i64).saturating_sub_unsigned(len)
            }
        };
        self.ahead.store(ahead, Relaxed);
    }

    /// Whether bytes of a further request have come. Below zero, those that are held belong to this one's body.
    #[inline]
    pub fn is_ahead(&self) -> bool {
        let ahead = self.ahead.load(Relaxed);
        ahead > 0 || (ahead == 0 && self.is_holding())
    }

    #[inline]
    pub fn note_held(&self, held: bool) {
        // A session that has ended wants no more either.
        let held = held && !self.is_ended();
        if held != self.held.load(Relaxed) {
            self.held.store(held, Relaxed);
        }
    }

    /// Whether bytes are between the kernel and hyper: decrypted, or a record that has come in part.
    #[inline]
    pub fn is_holding(&self) -> bool {
        self.held.load(Relaxed)
    }

    // ---- TLS ----

    pub fn set_tls(&self, facts: TlsFacts) {
        // Said once, at the end of the handshake.
        self.tls.get_or_init(|| Box::new(facts));
    }

    pub fn tls(&self) -> Option<&TlsFacts> {
        self.tls.get().map(Box::as_ref)
    }

    /// It is shaking hands, and neither idle nor answering: a limit of its own bounds that.
    pub fn begin_handshake(&self) {
        self.set_staying();
        self.note_flush();
        self.publish(true);
    }

    /// From here on it is a connection as any other.
    pub fn end_handshake(&self) {
        self.publish(false);
    }

    /// Whether a request has come whole and its response is not whole yet, so that nothing is read and perhaps nothing
    /// written for as long as the handler likes.
    #[inline]
    pub fn waits_for_handler(&self) -> bool {
        if self.answering.load(Relaxed) == 0 || self.is_ahead() {
            return false;
        }
        // Of a body of known length hyper has all, though its handler may not have read it.
        self.bodies.load(Relaxed) == 0 || self.ahead.load(Relaxed) == 0
    }

    /// Whether the client's close is to be found although bytes lie unread.
    #[inline]
    pub fn is_watched(&self) -> bool {
        self.watched.load(Relaxed)
    }

    /// From here on, until the next request, its client's close is found whatever lies unread. From any thread.
    #[cold]
    pub fn watch_client(&self) {
        if !self.watched.swap(true, Relaxed) {
            self.wake();
        }
    }

    /// The sweep's part: a request of which bytes lie unread, and that began before the last look, is watched from now on.
    pub fn watch_late_request(&self, now: u64) {
        let is_late = self.stand() == Stand::Answering && self.activity.called_at() < now;
        if is_late && self.streams.get().is_none() && (!self.waits_for_handler() || self.is_pipelined()) {
            self.watch_client();
        }
    }

    /// Whether `bytes`, which hyper writes, are the response of its HTTP/1 parser to a request that it refuses: they begin a
    /// response, and none of a service is under way.
    #[inline]
    pub fn is_parser_response(&self, bytes: &[u8]) -> bool {
        !self.owed.load(Relaxed)
            && !self.is_answering()
            && self.streams.get().is_none()
            && bytes.starts_with(b"HTTP/1.")
    }

    /// Whether a response is being made or written.
    #[inline]
    pub fn is_answering(&self) -> bool {
        self.answering.load(Relaxed) > 0
    }

    /// How many requests it carried.
    pub fn calls(&self) -> u64 {
        self.calls.load(Relaxed)
    }

    #[inline]
    fn note_pipelining(&self) {
        if self.is_ahead() {
            self.pipelined.store(true, Relaxed);
        }
    }

    /// Asked at the moment a response's head is made: whether it shall say that the connection closes after it.
    ///
    /// Not where more requests of this client wait already: they would go unanswered. So a client that pipelines is told
    /// only once there was a moment without any.
    #[inline]
    pub fn announces_close(&self) -> bool {
        if self.is_last_request() {
            return true;
        }
        self.note_pipelining();
        let worn_out = self.is_worn_out(self.calls.load(Relaxed));
        // One that will be handed over is not closed: its count and its age begin anew there.
        if self.server.drain.is_serving() && !worn_out || handover::will_go(self) {
            return false;
        }
        // Below zero the body of this request is still coming, and what the kernel holds is a part of it.
        let body_done = self.ahead.load(Relaxed) >= 0;
        let waiting = self.is_ahead() || (body_done && self.unread() > 0);
        // A moment without any request is known in a drain only; where none waits, one that is worn out is at its end.
        let pipelines = self.pipelined.load(Relaxed) && !self.was_quiet.load(Relaxed);
        if waiting || (pipelines && !worn_out) {
            self.pipelined.store(true, Relaxed);
            return false;
        }
        self.announced.store(true, Relaxed);
        true
    }

    /// Whether it has carried as many requests as may be, or lived for as long.
    #[inline]
    pub fn is_worn_out(&self, calls: u64) -> bool {
        calls >= self.server.limits.requests_per_connection || self.aged.load(Relaxed)
    }

    /// The request that is being answered is the last one of this connection.
    #[cold]
    pub fn set_last_request(&self) {
        self.last_request.store(true, Relaxed);
        // Its response may be known, and without an announcement.
        self.wake();
    }

    #[inline]
    pub fn is_last_request(&self) -> bool {
        self.last_request.load(Relaxed)
    }

    pub fn is_announced(&self) -> bool {
        self.announced.load(Relaxed)
    }

    pub fn note_quiet(&self) {
        self.was_quiet.store(true, Relaxed);
    }

    // ---- told by its one exchange ----

    #[inline]
    pub fn begin_answer(&self) {
        self.answering.store(MAKING, Relaxed);
    }

    #[inline]
    pub fn note_answer(&self, length: ResponseLength) {
        let phase = if length == ResponseLength::Open { STREAMING } else { WRITING };
        self.answering.store(phase, Relaxed);
        self.answered.store(self.answered.load(Relaxed) + 1, Relaxed);
    }

    #[inline]
    pub fn end_answer(&self) {
        self.answering.store(0, Relaxed);
        self.owed.store(true, Relaxed);
        self.note_pipelining();
    }

    pub fn begin_body(&self) {
        self.bodies.fetch_add(1, Relaxed);
    }

    pub fn end_body(&self) {
        self.activity.body.end();
        self.bodies.fetch_sub(1, Release);
        // hyper does not wake for a body that it has given out whole; a drain waits for just this.
        if !self.server.is_calm() {
            self.wake();
        }
    }

    /// Has its task look again.
    pub fn wake(&self) {
        if let Some(waker) = self.waker.get() {
            waker.wake_by_ref();
        }
    }

    // ---- the handover ----

    /// It stays until its end: what it speaks has a state that cannot move. Said by its task, before it counts as anything
    /// but idle.
    pub fn set_staying(&self) {
        if !self.stays.swap(true, Relaxed) && self.shown_idle.load(Relaxed) {
            self.server.handover.note_staying(1);
        }
    }

    pub fn is_staying(&self) -> bool {
        self.stays.load(Relaxed)
    }

    /// Whether nothing more is to be read: it is about to be handed over. The task must be polled again when that changes.
    #[inline]
    pub fn is_gated(&self) -> bool {
        self.server.handover.is_open() && !self.is_alive() && handover::may_go(self)
    }

    /// Keeps it here until its next request.
    pub fn set_overfull(&self) {
        self.overfull.store(true, Relaxed);
    }

    pub fn is_overfull(&self) -> bool {
        self.overfull.load(Relaxed)
    }

    pub fn is_pipelined(&self) -> bool {
        self.pipelined.load(Relaxed)
    }

    pub fn set_pipelined(&self) {
        self.pipelined.store(true, Relaxed);
    }

    // ---- other protocols ----

    #[cold]
    pub fn set_granted(&self, wish: Wish) {
        *self.granted.lock().unwrap_or_else(PoisonError::into_inner) = Some(wish);
    }

    pub fn take_granted(&self) -> Option<Wish> {
        self.granted.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    // ---- the limits ----

    fn counts(&self) -> Counts {
        let get = |count: &AtomicU64| count.load(Relaxed);
        Counts { read: get(&self.read), written: get(&self.written), calls: get(&self.calls) }
    }

    fn stand(&self) -> Stand {
        if self.shown_idle.load(Relaxed) {
            Stand::Idle
        } else if self.shown_in_flight.load(Relaxed) {
            Stand::Answering
        } else {
            Stand::Other
        }
    }

    /// When the oldest request began that is being answered, as far as the last sweep knows.
    pub fn request_began(&self) -> Option<u64> {
        match self.streams.get() {
            None => (self.stand() == Stand::Answering).then(|| self.activity.called_at()),
            Some(streams) => streams.oldest_began(),
        }
    }

    /// Whether a response is on its way whose end nothing announces, to a request that is not being received any more.
    fn is_endless(&self) -> bool {
        self.answering.load(Relaxed) == STREAMING && self.bodies.load(Relaxed) == 0
    }

    /// The sweep's look: whether its task shall judge.
    pub fn is_past_its_time(&self, sweep: Sweep) -> bool {
        let (counts, now) = (self.counts(), sweep.now);
        let limits = &self.server.limits;
        self.activity.observe(now, counts, limits);
        if self.upgraded.load(Relaxed) {
            let idle = self.activity.is_idle_upgraded(now, limits, counts);
            if idle {
                self.activity.set_due(true);
            }
            return idle;
        }
        // HTTP/1 sees it at the next response; HTTP/2 is told at once.
        let aged = limits.has_aged(now.saturating_sub(self.began)) && !self.aged.swap(true, Relaxed);
        let late = match self.streams.get() {
            None => {
                self.activity.overdue(now, limits, counts, self.stand()).is_some()
                    || sweep.streams_are_over && self.is_endless()
            }
            Some(streams) => {
                // Each of them has limits of its own; left for the whole is whether the kernel takes anything.
                let late = streams.are_past_their_time(sweep, limits);
                late || aged || self.activity.overdue(now, limits, counts, Stand::Other).is_some()
            }
        };
        // All is said, and the io waits for the client's end, not for long.
        if self.is_shut() || !late {
            return false;
        }
        self.activity.set_due(true);
        true
    }

    /// The task's look: which limit is met.
    pub fn overdue(&self) -> Option<Overdue> {
        let now = self.server.clock.now();
        let met = self.activity.overdue(now, &self.server.limits, self.counts(), self.stand());
        let met = met.filter(|met| match met {
            // Something has come, and this task will be told in a moment.
            Overdue::Idle => self.unread() == 0,
            // What has come and is not read yet is not the client's delay; nor is a body that has come whole.
            Overdue::Body => self.unread() == 0 && self.ahead.load(Relaxed) < 0 && self.activity.body.is_confirmed(),
            Overdue::Write => {
                let unacknowledged = crate::sys::socket::unacknowledged(self.socket);
                self.activity.is_stuck(now, &self.server.limits, unacknowledged)
            }
            Overdue::ResponseRate => self.is_taken_too_slowly(),
            Overdue::Request | Overdue::Stream => true,
        });
        let met = met.or_else(|| {
            let over = self.is_endless() && self.server.drain.is_over_for_streams();
            over.then_some(Overdue::Stream)
        });
        if met.is_none() {
            self.activity.set_due(false);
        }
        met
    }

    /// The task's look, whatever it speaks: whether the client has taken nothing for too long.
    pub fn is_stuck(&self) -> bool {
        let (now, limits) = (self.server.clock.now(), &self.server.limits);
        self.activity.overdue(now, limits, self.counts(), Stand::Other) == Some(Overdue::Write)
            && self.activity.is_stuck(now, limits, crate::sys::socket::unacknowledged(self.socket))
    }

    /// As [`Conn::is_stuck`], of one that takes something, and too little of it.
    pub fn takes_too_slowly(&self) -> bool {
        let (now, limits) = (self.server.clock.now(), &self.server.limits);
        self.activity.overdue(now, limits, self.counts(), Stand::Other) == Some(Overdue::ResponseRate)
            && self.is_taken_too_slowly()
    }

    fn is_taken_too_slowly(&self) -> bool {
        let unacknowledged = crate::sys::socket::unacknowledged(self.socket);
        self.activity.is_taken_too_slowly(&self.server.limits, self.bytes_written(), unacknowledged)
    }

    /// From here on it is its plugin's.
    pub fn set_upgraded(&self) {
        self.upgraded.store(true, Relaxed);
    }

    /// A plugin has written so many bytes. Its polls exclude each other.
    pub fn note_upgraded_write(&self, len: usize) {
        self.written.store(self.written.load(Relaxed).wrapping_add(len as u64), Relaxed);
    }

    /// The task's look at one that has left HTTP: whether nothing has moved for as long as may be.
    pub fn is_idle_upgraded(&self) -> bool {
        let (now, counts) = (self.server.clock.now(), self.counts());
        self.activity.set_due(false);
        self.activity.is_idle_upgraded(now, &self.server.limits, counts) && self.unread() == 0
    }

    /// From here on it speaks HTTP/2.
    pub fn speak_http2(&self, streams: Arc<Streams>) {
        self.set_staying();
        // Said once, by its task.
        self.streams.get_or_init(|| {
            self.server.metrics.add(Slot::Http2);
            streams
        });
    }

    pub fn bytes_written(&self) -> u64 {
        self.written.load(Relaxed)
    }

    /// For how long nothing has moved.
    pub fn quiet_time(&self) -> Duration {
        let since = self.activity.quiet_since(self.counts());
        since.map_or(Duration::ZERO, |since| Duration::from_millis(self.server.clock.now().saturating_sub(since)))
    }

    /// The request that is being answered gets this answer instead, if its head is not known yet. Whether that is so, for
    /// the connection's task; and whether it was not said before.
    pub fn refuse(&self, refusal: Own) -> bool {
        let first = self.refusal.compare_exchange(0, refusal as u8, Relaxed, Relaxed).is_ok();
        first && self.answering.load(Relaxed) == MAKING
    }

    #[inline]
    pub fn refusal(&self) -> Option<Own> {
        match self.refusal.load(Relaxed) {
            0 => None,
            code => Own::from_code(code),
        }
    }

    // ---- the end ----

    /// Bytes that have come and nobody has read: what is ahead, or held, is not among them.
    pub fn unread(&self) -> usize {
        crate::sys::socket::unread(self.socket)
    }

    /// Ends it with a reset: the client can tell that it is no regular end. Only while the socket is open.
    pub fn set_reset(&self) {
        crate::sys::socket::reset_at_close(self.socket);
    }

    /// The response that follows has no length and no chunks (HTTP/1.0): only the end of the connection says that it is
    /// whole. Until it is, the socket's end is a reset, also if this process dies (RFC 9112 8).
    #[cold]
    pub fn begin_close_delimited(&self) {
        self.close_delimited.store(true, Relaxed);
        self.set_reset();
    }

    /// The connection closes in good order.
    pub fn end_close_delimited(&self) {
        if self.close_delimited.swap(false, Relaxed) {
            crate::sys::socket::close_gracefully(self.socket);
        }
    }

    /// The client has sent its last byte.
    pub fn set_ended(&self) {
        self.ended.store(true, Relaxed);
        self.closed.set();
    }

    /// Its close is that of an idle connection: no response is left for the client to read.
    pub fn set_idle_close(&self) {
        self.idle_close.store(true, Relaxed);
    }

    /// How long its close waits for the client's own.
    pub fn linger_time(&self) -> Duration {
        let idle = self.idle_close.load(Relaxed);
        let own = idle.then(|| self.server.drain.limits().and_then(|limits| limits.linger)).flatten();
        let limit = self.server.limits.linger;
        own.map_or(limit, |own| own.min(limit))
    }

    pub fn is_ended(&self) -> bool {
        self.ended.load(Relaxed)
    }

    /// The client broke off its request, or its response. Counted once: it is the end of the connection.
    #[cold]
    pub fn note_abort(&self) {
        if !self.aborted.swap(true, Relaxed) {
            self.server.metrics.add(Slot::ClientAborts);
        }
    }

    pub fn set_shut(&self) {
        self.shut.store(true, Relaxed);
    }

    pub fn is_shut(&self) -> bool {
        self.shut.load(Relaxed)
    }

    // ---- metrics ----

    /// Brings the shared counters up to date. Called once per poll, so that a request that begins and ends within one costs
    /// one atomic operation.
    #[inline]
    pub fn publish(&self, busy: bool) {
        let metrics = self.server.metrics;
        let answered = self.answered.load(Relaxed);
        if answered > 0 {
            self.answered.store(0, Relaxed);
            metrics.add_many(Slot::Requests, answered.into());
        }
        let in_flight = self.answering.load(Relaxed) > 0 || !self.flushed.load(Relaxed);
        if in_flight != self.shown_in_flight.load(Relaxed) {
            self.shown_in_flight.store(in_flight, Relaxed);
            if in_flight { metrics.add(Slot::InFlight) } else { metrics.sub(Slot::InFlight) }
        }
        self.show_idle(!busy && !self.is_ahead());
    }

    #[inline]
    pub fn show_idle(&self, idle: bool) {
        if idle == self.shown_idle.load(Relaxed) {
            return;
        }
        self.shown_idle.store(idle, Relaxed);
        let server = self.server;
        if idle {
            server.metrics.add(Slot::Idle)
        } else {
            server.metrics.sub(Slot::Idle)
        }
        if self.is_staying() {
            server.handover.note_staying(if idle { 1 } else { -1 });
        }
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        // A plugin may keep a request's head, and so this, for longer than the connection; the numbers were taken back by
        // `Entry` at its end.
        debug_assert!(!*self.shown_in_flight.get_mut());
    }
}

impl Conn {
    /// The connection is gone: takes its part out of the shared counters.
    pub fn withdraw(&self) {
        self.discard.end();
        self.closed.set();
        self.answering.store(0, Relaxed);
        self.flushed.store(true, Relaxed);
        self.publish(false);
        self.show_idle(false);
        if self.streams.get().is_some() {
            self.server.metrics.sub(Slot::Http2);
        }
        self.server.metrics.sub(Slot::Connections);
    }
}

/// Values of [`Conn::answering`]: the handler has not said what to answer; the response is on its way; so is one whose length
/// was not announced.
const MAKING: u32 = 1;
const WRITING: u32 = 2;
const STREAMING: u32 = 3;
