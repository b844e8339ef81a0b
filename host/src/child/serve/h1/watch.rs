//! The limits of one HTTP/1 connection that have a timer, and how it stands between two polls of hyper. It decides when time is
//! over; what follows is its task's.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::time::{Instant, Sleep};

use crate::child::drain::Progress;
use crate::child::handover::Start;
use crate::child::serve::conn::Conn;
use crate::child::serve::limits::Overdue;

/// How a connection stands between two polls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// TLS has not been agreed on.
    Handshake,
    /// No request and no part of one.
    Idle,
    /// A part of a head has come.
    Head,
    /// A request is in flight.
    Busy,
    /// All is said; the client's end is waited for.
    Closing,
}

impl Standing {
    /// Of a connection without a request, with so many bytes read and not parsed.
    pub(super) fn of(len: usize, conn: &Conn) -> Standing {
        if len == 0 && !conn.is_holding() { Standing::Idle } else { Standing::Head }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Idle for long enough, as the drain sees it.
    Expired,
    /// Idle for long enough at any time.
    Idle,
    /// No more time.
    Cut,
    /// No more time for a response without a length.
    StreamOver,
    /// A head begun is not whole in time.
    HeadTimeout,
    /// A handshake is not done in time.
    HandshakeTimeout,
}

/// The limits of one connection that have a timer: of heads that came in part, and, once the worker retires, of the drain.
/// So a request that comes whole costs none. All others are found by the sweep (`serve::limits`).
pub(super) struct Watch {
    timer: Option<Pin<Box<Sleep>>>,
    /// When the head began that is not whole.
    head_since: Option<Instant>,
    /// When it was accepted, if it is new: its first head counts from there.
    accepted: Option<Instant>,
    /// From the first look of a drain on.
    progress: Option<Progress>,
}

impl Watch {
    pub(super) fn new(start: &Start) -> Watch {
        let now = Instant::now();
        let head_since = start.head.and_then(|ago| now.checked_sub(ago));
        let accepted = if start.http1 { None } else { now.checked_sub(start.idle) };
        Watch { timer: None, head_since, accepted, progress: None }
    }

    /// When the head began that has not been whole at the last look.
    pub(super) fn head_began(&self, conn: &Conn) -> Option<Instant> {
        self.head_since.or(self.accepted.filter(|_| conn.calls() == 0))
    }

    /// The handshake is done: its first head counts from now.
    pub(super) fn note_secure(&mut self) {
        self.accepted = Some(Instant::now());
    }

    /// The same limits for a connection that goes on in another form.
    pub(super) fn anew(self) -> Watch {
        Watch { head_since: None, ..self }
    }

    pub(super) fn check(&mut self, cx: &mut Context<'_>, conn: &Conn, mut standing: Standing) -> Poll<Verdict> {
        if standing != Standing::Head {
            self.head_since = None;
        } else if self.head_since.is_none() {
            self.head_since = self.head_began(conn).or_else(|| Some(Instant::now()));
        }
        if standing == Standing::Idle && conn.activity.is_due() && conn.overdue() == Some(Overdue::Idle) {
            conn.activity.set_due(false);
            return Poll::Ready(Verdict::Idle);
        }
        loop {
            let Some((deadline, verdict)) = self.due(conn, standing) else { return Poll::Pending };
            if deadline <= Instant::now() {
                if standing == Standing::Idle && conn.unread() > 0 {
                    // Something has come, and this task will be told in a moment: not idle after all.
                    standing = Standing::Head;
                    continue;
                }
                return Poll::Ready(verdict);
            }
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
            if timer.deadline() != deadline {
                timer.as_mut().reset(deadline);
            }
            ready!(timer.as_mut().poll(cx));
        }
    }

    /// What comes next, and when.
    fn due(&mut self, conn: &Conn, standing: Standing) -> Option<(Instant, Verdict)> {
        let limits = &conn.server.limits;
        let (since, patience, verdict) = match standing {
            Standing::Handshake => (self.accepted, limits.handshake_timeout, Verdict::HandshakeTimeout),
            _ => (self.head_since, limits.head_timeout, Verdict::HeadTimeout),
        };
        let head = since.zip(patience).and_then(|(since, patience)| since.checked_add(patience));
        let head = head.map(|at| (at, verdict));
        let drain = &conn.server.drain;
        let Some(limits) = drain.limits() else { return head };
        let ending = if standing == Standing::Idle { Verdict::Expired } else { Verdict::Cut };
        if drain.is_cut() {
            return Some((limits.since, ending));
        }
        let moved = conn.moved();
        let progress = self.progress.get_or_insert_with(|| Progress::new(moved, limits.since));
        let progress = progress.observe(moved, limits.min_rate, Instant::now());
        let patience = match standing {
            Standing::Idle => limits.keepalive,
            Standing::Handshake | Standing::Head | Standing::Busy => limits.timeout,
            // Bounded by the io.
            Standing::Closing => None,
        };
        let own = patience.and_then(|patience| progress.checked_add(patience)).map(|at| (at, ending));
        let end = limits.end.map(|at| (at, ending));
        [own, end, head].into_iter().flatten().min_by_key(|(at, _)| *at)
    }
}
