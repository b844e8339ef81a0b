//! The task of one HTTP/2 connection: drives hyper's, and ends it as the drain and the limits ask.
//!
//! An end begins with GOAWAY, twice (RFC 9113 6.8): the first says that there will be no new requests, and comes with a PING;
//! once the client has answered that, whatever it sent before it knew has come, and the second says which request was the
//! last. hyper does this. What it does not: wait for a client's PONG no longer than for ever, keep the connection's time limits,
//! and close so that the client can read it all. No HTTP/2 connection moves to another generation: its tables and windows are
//! inside hyper.

pub(in crate::child) mod frames;
pub(in crate::child) mod glitches;
mod service;
mod stream;

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::server::conn::http2;
use hyper_util::rt::TokioTimer;
use tokio::time::{Instant, Sleep};

use self::frames::{Ends, Watched};
use self::glitches::Glitches;
use self::service::Http2;
pub use self::stream::{Stream, Streams};
use super::conn::Conn;
use super::io::Io;
use super::limits::Limits;
use crate::child::drain::{End, Progress};
use crate::metrics::Slot;

/// What a client may send of a request's body before the handler takes it, and of all together: so much of them is held
/// here. RFC 9113's own 64 KiB would make one upload wait for every 64 KiB to be acknowledged.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// What hyper takes of a response beyond what the client's windows allow.
const SEND_BUFFER: usize = 64 * 1024;
/// Requests that were reset before they were looked at, and requests that were reset for a client's mistakes: more of them
/// end the connection (CVE-2023-44487, RUSTSEC-2024-0003).
const PENDING_RESETS: usize = 20;
const ERROR_RESETS: usize = 200;

type Connection = http2::Connection<Watched, Http2, Spawner>;

/// Serves a connection whose client has said that it speaks HTTP/2: its preface, whole, is what `io` reads next.
pub async fn serve(conn: &Arc<Conn>, io: Io) -> End {
    let (streams, ends) = (Arc::new(Streams::new(conn)), Arc::new(Ends::default()));
    conn.speak_http2(streams.clone());
    let service = Http2 { conn: conn.clone(), streams: streams.clone() };
    let http = builder(&conn.server.limits, Spawner(streams.clone()))
        .serve_connection(Watched::new(io, ends.clone(), Glitches::new(conn.server.limits.http2_glitches)), service);
    let (told, hung_up, moved, timer) = (None, None, Moved::default(), None);
    let mut driver = Driver { http: Box::pin(http), conn, streams: &streams, ends: &ends, told, hung_up, moved, timer };
    let turn = poll_fn(|cx| driver.poll(cx)).await;
    let told = driver.told.is_some();
    let flooded = ends.flooded.load(Relaxed);
    if flooded {
        tracing::debug!(peer = ?conn.peer.to_std(), "an HTTP/2 client exceeded limits.http2_glitches");
        conn.server.metrics.add(Slot::Http2Errors);
    }
    let cut = match &turn {
        Turn::Finished(result) => {
            if let (Err(error), false) = (result, flooded) {
                note_error(conn, error);
            }
            false
        }
        // Something is still to be said; else the client only did not answer the PING, or does not close.
        Turn::Over => {
            let owed = streams.open() > 0 || driver.hung_up.is_some() || ends.last_named.load(Relaxed);
            owed && !conn.is_shut()
        }
    };
    if cut {
        conn.set_reset();
    }
    // hyper's end first: then no stream can be sent any more.
    drop(driver);
    streams.end().await;
    match (cut, told) {
        (true, _) => End::CutHttp2,
        (false, true) => End::Goaway,
        (false, false) => End::Finished,
    }
}

fn builder(limits: &Limits, spawner: Spawner) -> http2::Builder<Spawner> {
    let mut builder = http2::Builder::new(spawner);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.http2_streams)
        .max_header_list_size(u32::try_from(limits.head_size).unwrap_or(u32::MAX))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(ERROR_RESETS)
        .keep_alive_interval(limits.http2_ping);
    if let Some(interval) = limits.http2_ping {
        builder.keep_alive_timeout(interval);
    }
    builder
}

/// Counts what the client is to blame for.
fn note_error(conn: &Conn, error: &hyper::Error) {
    tracing::debug!(%error, peer = ?conn.peer.to_std(), "connection ended early");
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<h2::Error>());
    if cause.is_some_and(|cause| cause.is_go_away() && cause.is_library()) {
        conn.server.metrics.add(Slot::Http2Errors);
    }
}

/// Gives each stream a task of its own, so that a handler that computes holds up no other.
#[derive(Clone)]
struct Spawner(Arc<Streams>);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Spawner {
    fn execute(&self, future: F) {
        self.0.spawn(future);
    }
}

// ---- driving hyper ----

struct Driver<'a> {
    http: Pin<Box<Connection>>,
    conn: &'a Conn,
    streams: &'a Streams,
    ends: &'a Ends,
    /// When GOAWAY was said.
    told: Option<Instant>,
    /// When reading was ended.
    hung_up: Option<Instant>,
    moved: Moved,
    timer: Option<Pin<Box<Sleep>>>,
}

/// What has moved, and when that was last seen to change.
#[derive(Default)]
struct Moved {
    progress: u64,
    /// Of the bodies, in a drain.
    bodies: Option<Progress>,
    written: u64,
    /// Of both, from the first look on.
    at: Option<(Instant, Instant)>,
}

enum Turn {
    /// hyper is done with it.
    Finished(hyper::Result<()>),
    /// No more time.
    Over,
}

/// What comes next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Nothing is open and the client does not answer: reading ends, so that hyper closes.
    HangUp,
    End,
}

impl Driver<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Turn> {
        if self.conn.activity.is_due() && self.judge() {
            return Poll::Ready(Turn::Over);
        }
        if !self.conn.server.drain.is_serving() || self.conn.is_worn_out(self.streams.calls()) {
            self.tell();
        }
        loop {
            let had_streams = self.streams.open() > 0;
            if let Poll::Ready(result) = self.http.as_mut().poll(cx) {
                return Poll::Ready(Turn::Finished(result));
            }
            // Once, for all that follows: streams end on other threads. If the last has ended during this poll, what it has
            // left in hyper is written first. The end of what comes in, which hyper may see below, would drop that.
            let open = self.streams.open();
            if had_streams && open == 0 {
                continue;
            }
            if self.ends.flooded.load(Relaxed) && self.hung_up.is_none() {
                // hyper sees the end of what comes in, and closes.
                let now = Instant::now();
                self.told.get_or_insert(now);
                self.hung_up = Some(now);
                continue;
            }
            self.conn.show_idle(open == 0);
            if self.releases_fin(open) {
                self.ends.fin_released.store(true, Relaxed);
                continue;
            }
            match ready!(self.next(cx, open)) {
                Next::End => return Poll::Ready(Turn::Over),
                Next::HangUp => {
                    self.conn.set_idle_close();
                    self.hung_up = Some(Instant::now());
                    self.ends.hung_up.store(true, Relaxed);
                }
            }
        }
    }

    /// Whether hyper is to know now that the client has closed its sending side: once all that it asked for is answered, as
    /// far as its windows let it. It would drop the rest.
    fn releases_fin(&self, open: usize) -> bool {
        if !self.conn.is_ended() || self.ends.fin_released.load(Relaxed) {
            return false;
        }
        if self.conn.site.abort_on_close {
            self.conn.server.metrics.add_many(Slot::AbortedOnClose, open as u64);
            return true;
        }
        open == 0 && self.ends.flushed.load(Relaxed)
    }

    /// A limit of time may be met. Whether the connection ends with a reset.
    #[cold]
    fn judge(&mut self) -> bool {
        let server = self.conn.server;
        self.conn.activity.set_due(false);
        if self.conn.is_stuck() {
            server.metrics.add(Slot::WriteTimeouts);
            return true;
        }
        if self.conn.takes_too_slowly() {
            server.metrics.add(Slot::ResponsesTooSlow);
            return true;
        }
        // Something has come, and this task will be told in a moment.
        if self.told.is_none()
            && self.conn.unread() == 0
            && self.streams.is_idle_for_long(server.clock.now(), &server.limits)
        {
            server.metrics.add(if self.streams.has_served() { Slot::IdleTimeouts } else { Slot::HeadTimeouts });
            self.tell();
        }
        false
    }

    /// Says GOAWAY, once.
    fn tell(&mut self) {
        if self.told.is_none() {
            self.told = Some(Instant::now());
            self.http.as_mut().graceful_shutdown();
        }
    }

    /// Waits for what comes next, other than by hyper, with so many streams open.
    fn next(&mut self, cx: &mut Context<'_>, open: usize) -> Poll<Next> {
        loop {
            let Some((deadline, next)) = self.due(open) else { return Poll::Pending };
            if deadline <= Instant::now() {
                return Poll::Ready(next);
            }
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
            if timer.deadline() != deadline {
                timer.as_mut().reset(deadline);
            }
            ready!(timer.as_mut().poll(cx));
        }
    }

    /// How long a client without a request may take to answer GOAWAY. At the end of the server no longer than an idle
    /// connection is kept.
    fn goaway_time(&self) -> Option<Duration> {
        let own = self.conn.server.limits.goaway;
        match self.conn.server.drain.limits() {
            Some(limits) if limits.linger.is_some() => own.into_iter().chain(limits.keepalive).min(),
            _ => own,
        }
    }

    fn due(&mut self, open: usize) -> Option<(Instant, Next)> {
        let told = self.told?;
        let server = self.conn.server;
        let drain = server.drain.limits();
        if let Some(limits) = drain.filter(|_| server.drain.is_cut()) {
            return Some((limits.since, Next::End));
        }
        let after = |since: Instant, patience: Option<Duration>, next| {
            patience.and_then(|patience| since.checked_add(patience)).map(|at| (at, next))
        };
        let (progress_at, written_at) =
            self.moved.observe(self.streams, self.conn.bytes_written(), drain.map_or(0, |limits| limits.min_rate));
        let own = if self.conn.is_shut() {
            // Bounded by the io.
            None
        } else if let Some(since) = self.hung_up {
            // What is still to be written is not waited for any longer than a client's end is.
            after(since, Some(self.conn.linger_time()), Next::End)
        } else if open == 0 && !self.ends.last_named.load(Relaxed) {
            after(told.max(written_at), self.goaway_time(), Next::HangUp)
        } else {
            match drain {
                Some(limits) => after(limits.since.max(progress_at), limits.timeout, Next::End),
                // Requests that came before the client knew have their own limits.
                None if open > 0 => None,
                // The rest of an answer waits for the client's windows.
                None => after(told.max(written_at), server.limits.write_timeout(), Next::End),
            }
        };
        let end = drain.and_then(|limits| limits.end).map(|at| (at, Next::End));
        [own, end].into_iter().flatten().min_by_key(|(at, _)| *at)
    }
}

impl Moved {
    /// When the streams last made progress, and when something was last written.
    fn observe(&mut self, streams: &Streams, written: u64, min_rate: u64) -> (Instant, Instant) {
        let (progress, moved) = (streams.progress(), streams.moved());
        let now = Instant::now();
        let (mut progress_at, mut written_at) = self.at.unwrap_or((now, now));
        if self.progress != progress {
            (self.progress, progress_at) = (progress, now);
        }
        let bodies = self.bodies.get_or_insert_with(|| Progress::new(moved, now));
        progress_at = progress_at.max(bodies.observe(moved, min_rate, now));
        if self.written != written {
            (self.written, written_at) = (written, now);
        }
        self.at = Some((progress_at, written_at));
        (progress_at, written_at)
    }
}
