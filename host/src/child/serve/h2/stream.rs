//! The streams of an HTTP/2 connection: what is known of each, the task that carries each, and the register that the sweep
//! reads. A stream counts for itself what an HTTP/1 connection counts for its one request, so that its limits are its own.
//!
//! Knows nothing of the connection's end; `serve::h2` asks how many streams are open, and ends those that are left.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, fence};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::child::drain::End;
use crate::child::serve::closed::CloseSignal;
use crate::child::serve::conn::Conn;
use crate::child::serve::limits::{Activity, Counts, Limits, Overdue, Stand, Sweep};
use crate::child::serve::service::{Own, ResponseLength};
use crate::metrics::Slot;

/// One request and its response.
pub struct Stream {
    conn: Arc<Conn>,
    streams: Arc<Streams>,
    /// [`MAKING`], [`WRITING`] or [`STREAMING`].
    phase: AtomicU8,
    /// The request's body is in a handler's hands.
    receiving: AtomicBool,
    /// Why it gets an answer of ours instead: a [`Own`], or 0.
    refusal: AtomicU8,
    /// It ends now, whatever its state.
    ended: AtomicBool,
    /// Bytes of the request's body that the handler has taken, and of the response's that hyper has.
    read: AtomicU64,
    written: AtomicU64,
    activity: Activity,
    /// Whether the client has reset it, or it is over.
    pub closed: CloseSignal,
    /// Of the task that carries it.
    waker: OnceLock<Waker>,
}

/// Values of [`Stream::phase`]: the handler has not said what to answer; the response is on its way; so is one whose length
/// was not announced.
const MAKING: u8 = 0;
const WRITING: u8 = 1;
const STREAMING: u8 = 2;

impl Stream {
    pub fn conn(&self) -> &Arc<Conn> {
        &self.conn
    }

    pub fn refusal(&self) -> Option<Own> {
        match self.refusal.load(Relaxed) {
            0 => None,
            code => Own::from_code(code),
        }
    }

    // ---- told by its exchange ----

    pub fn begin_answer(&self) {
        self.conn.server.metrics.add(Slot::InFlight);
    }

    pub fn note_answer(&self, length: ResponseLength) {
        self.phase.store(if length == ResponseLength::Open { STREAMING } else { WRITING }, Relaxed);
        self.conn.server.metrics.add(Slot::Requests);
    }

    pub fn end_answer(&self) {
        self.conn.server.metrics.sub(Slot::InFlight);
    }

    pub fn begin_body(&self) {
        self.receiving.store(true, Relaxed);
        self.streams.open.fetch_add(1, Relaxed);
    }

    /// On whatever thread.
    pub fn end_body(&self) {
        self.receiving.store(false, Relaxed);
        self.activity.body.end();
        self.streams.leave(&self.conn);
    }

    /// The handler has polled the request's body: in vain, or for so many bytes.
    pub fn note_upload(&self, in_vain: Option<&Waker>, len: usize) {
        self.activity.body.note_poll(in_vain);
        if len > 0 {
            self.read.fetch_add(len as u64, Relaxed);
            self.streams.note_moved(len);
        }
    }

    /// hyper asks for more of the response: what it had is on its way.
    pub fn note_asked(&self) {
        self.activity.write.end();
    }

    /// hyper has got so many bytes of the response, and asks again once the client lets it send.
    pub fn note_given(&self, len: usize) {
        self.written.fetch_add(len as u64, Relaxed);
        self.activity.write.begin();
        self.streams.note_moved(len);
    }

    // ---- the limits ----

    fn counts(&self) -> Counts {
        Counts { read: self.read.load(Relaxed), written: self.written.load(Relaxed), calls: 1 }
    }

    /// Whether a response is on its way whose end nothing announces, to a request that is not being received any more.
    fn is_endless(&self) -> bool {
        self.phase.load(Relaxed) == STREAMING && !self.receiving.load(Relaxed)
    }

    /// The sweep's look.
    fn is_past_its_time(&self, sweep: Sweep, limits: &Limits) -> bool {
        self.activity.observe(sweep.now, self.counts(), limits);
        let late = self.activity.overdue(sweep.now, limits, self.counts(), Stand::Answering).is_some()
            || sweep.streams_are_over && self.is_endless();
        if late {
            self.activity.set_due(true);
        }
        late
    }

    /// The task's look: whether the stream ends with a reset. Where the client can still be told, the poll to come tells it.
    fn is_over(&self) -> bool {
        if self.ended.load(Acquire) {
            return true;
        }
        if !self.activity.is_due() {
            return false;
        }
        self.activity.set_due(false);
        let server = self.conn.server;
        let now = server.clock.now();
        let met = self.activity.overdue(now, &server.limits, self.counts(), Stand::Answering);
        // Of one stream the kernel cannot say what the client has taken.
        let met = met.filter(|met| match met {
            Overdue::Write => self.activity.is_stuck(now, &server.limits, usize::MAX),
            Overdue::Body => self.activity.body.is_confirmed(),
            // A part has `write_timeout` to be taken, which is a rate.
            Overdue::ResponseRate => false,
            Overdue::Request | Overdue::Idle | Overdue::Stream => true,
        });
        let Some(met) = met else {
            let over = self.is_endless() && server.drain.is_over_for_streams();
            if over {
                server.drain.note(End::CutStream);
            }
            return over;
        };
        // Counted once: one that was refused and does not end is known.
        if self.refusal().is_none() {
            met.slot().into_iter().for_each(|slot| server.metrics.add(slot));
        }
        match met {
            Overdue::Body => !self.take_refusal(Own::BodyTimeout),
            Overdue::Request => !self.take_refusal(Own::RequestTimeout),
            Overdue::Write | Overdue::ResponseRate | Overdue::Idle | Overdue::Stream => true,
        }
    }

    /// Whether this answer takes the place of the handler's, which is not known yet, and was not said before.
    fn take_refusal(&self, refusal: Own) -> bool {
        let first = self.refusal.compare_exchange(0, refusal as u8, Relaxed, Relaxed).is_ok();
        first && self.phase.load(Relaxed) == MAKING
    }

    pub fn refuse(&self, refusal: Own) {
        self.take_refusal(refusal);
        self.wake();
    }

    /// After what it shall see was written.
    fn wake(&self) {
        // The counterpart of the one in `poll`: either the waker is seen here, or what was written there.
        fence(SeqCst);
        if let Some(waker) = self.waker.get() {
            waker.wake_by_ref();
        }
    }

    /// Carries it: `future` is hyper's. Dropped before its end, hyper resets the stream.
    async fn carry(self: Arc<Stream>, slot: usize, future: impl Future<Output = ()>) {
        // In this order: the future first, then its place.
        let place = Place { stream: self, slot };
        let mut future = pin!(future);
        poll_fn(|cx| place.stream.poll(cx, future.as_mut())).await;
    }

    fn poll(&self, cx: &mut Context<'_>, future: Pin<&mut impl Future<Output = ()>>) -> Poll<()> {
        if self.waker.get().is_none() {
            // tokio gives a task the same one at every poll.
            self.waker.get_or_init(|| cx.waker().clone());
            fence(SeqCst);
        }
        if self.is_over() { Poll::Ready(()) } else { future.poll(cx) }
    }
}

/// A stream's place in the register, as long as its task lives.
struct Place {
    stream: Arc<Stream>,
    slot: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.stream.closed.set();
        let streams = &self.stream.streams;
        let mut register = streams.register();
        register.slots[self.slot] = None;
        register.free.push(self.slot);
        register.tasks -= 1;
        let last = register.tasks == 0;
        drop(register);
        streams.leave(&self.stream.conn);
        if last {
            // See `Streams::end`.
            self.stream.conn.wake();
        }
    }
}

/// The streams of one connection.
pub struct Streams {
    /// Tasks, and request bodies in the hands of handlers.
    open: AtomicUsize,
    /// Requests begun and ended. Pings are none.
    progress: AtomicU64,
    /// Bytes of bodies that went either way.
    moved: AtomicU64,
    /// Requests begun. By the connection's task.
    calls: AtomicU64,
    /// When that changed, as the sweep sees it.
    activity: Activity,
    register: Mutex<Register>,
}

#[derive(Default)]
struct Register {
    slots: Vec<Option<Arc<Stream>>>,
    free: Vec<usize>,
    tasks: usize,
    /// Called, and not spawned yet: hyper does the one right after the other.
    called: Option<Arc<Stream>>,
}

impl Streams {
    pub fn new(conn: &Conn) -> Streams {
        Streams {
            open: AtomicUsize::new(0),
            progress: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            calls: AtomicU64::new(0),
            activity: Activity::new(conn.server.clock.now()),
            register: Mutex::default(),
        }
    }

    fn register(&self) -> MutexGuard<'_, Register> {
        self.register.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many are not over.
    pub fn open(&self) -> usize {
        // Acquire: whoever sees the last one gone sees what it did.
        self.open.load(Acquire)
    }

    pub fn progress(&self) -> u64 {
        self.progress.load(Relaxed)
    }

    /// How many bytes of bodies went either way.
    pub fn moved(&self) -> u64 {
        self.moved.load(Relaxed)
    }

    fn note_moved(&self, len: usize) {
        self.moved.fetch_add(len as u64, Relaxed);
    }

    fn note_progress(&self) {
        self.progress.fetch_add(1, Relaxed);
    }

    fn counts(&self) -> Counts {
        Counts { read: self.progress(), written: self.moved(), calls: self.calls.load(Relaxed) }
    }

    /// One task or body less.
    fn leave(&self, conn: &Conn) {
        self.note_progress();
        if self.open.fetch_sub(1, AcqRel) == 1 {
            // The connection is idle now, or at its end.
            conn.wake();
        }
    }

    /// A request begins: hyper has its head.
    pub fn call(self: &Arc<Streams>, conn: &Arc<Conn>) -> Arc<Stream> {
        let stream = Arc::new(Stream {
            conn: conn.clone(),
            streams: self.clone(),
            phase: AtomicU8::new(MAKING),
            receiving: AtomicBool::new(false),
            refusal: AtomicU8::new(0),
            ended: AtomicBool::new(false),
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
            // The sweep's first look tells when it began, to a tick.
            activity: Activity::new(0),
            closed: CloseSignal::default(),
            waker: OnceLock::new(),
        });
        self.calls.fetch_add(1, Relaxed);
        self.register().called = Some(stream.clone());
        stream
    }

    /// hyper gives the future that carries the request which was called last.
    pub fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        let mut register = self.register();
        let Some(stream) = register.called.take() else {
            // What carries a tunnel is no request; none is granted.
            return debug_assert!(false, "a future that is no stream's");
        };
        let slot = register.free.pop().unwrap_or_else(|| {
            register.slots.push(None);
            register.slots.len() - 1
        });
        register.slots[slot] = Some(stream.clone());
        register.tasks += 1;
        drop(register);
        self.open.fetch_add(1, Relaxed);
        self.note_progress();
        tokio::spawn(stream.carry(slot, future));
    }

    /// The sweep's look: wakes the streams that are late, and says whether the connection has been without any for long.
    pub fn are_past_their_time(&self, sweep: Sweep, limits: &Limits) -> bool {
        let late = |stream: &&Arc<Stream>| stream.is_past_its_time(sweep, limits);
        // Not under the lock: a waker may run what drops a stream.
        let late: Vec<_> = self.register().slots.iter().flatten().filter(late).cloned().collect();
        late.iter().for_each(|stream| stream.wake());
        self.activity.observe(sweep.now, self.counts(), limits);
        self.is_idle_for_long(sweep.now, limits)
    }

    /// When the oldest request began, of those that the sweep has seen.
    pub fn oldest_began(&self) -> Option<u64> {
        self.register().slots.iter().flatten().map(|stream| stream.activity.called_at()).filter(|at| *at > 0).min()
    }

    /// Whether there has been no request for as long as may be.
    pub fn is_idle_for_long(&self, now: u64, limits: &Limits) -> bool {
        self.open() == 0 && self.activity.overdue(now, limits, self.counts(), Stand::Idle).is_some()
    }

    /// How many requests it has begun.
    pub fn calls(&self) -> u64 {
        self.calls.load(Relaxed)
    }

    pub fn has_served(&self) -> bool {
        self.calls.load(Relaxed) > 0
    }

    /// Ends those that are left, and waits until no task carries one any more.
    pub async fn end(&self) {
        let left: Vec<_> = self.register().slots.iter().flatten().cloned().collect();
        for stream in left {
            stream.ended.store(true, Release);
            stream.wake();
        }
        poll_fn(|_| match self.register().tasks {
            0 => Poll::Ready(()),
            _ => Poll::Pending,
        })
        .await;
    }
}
