//! The end of a worker's connections, as state and as numbers: whether it serves or retires, the limits, and how each
//! connection ended.
//!
//! Retiring is state, never an event: a connection that looks late sees it all the same. What a single connection does about
//! it is `serve::h1`'s and `serve::h2`'s.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU8, AtomicU64};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::control::Deadlines;
use crate::report::{Cut, DrainReport};

/// When a retiring worker's connections end. Absent for never.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// When the worker began to retire.
    pub since: Instant,
    /// Of an idle connection, without a request.
    pub keepalive: Option<Duration>,
    /// Of a busy one, without progress.
    pub timeout: Option<Duration>,
    /// How long the close of an idle connection lingers, if not as long as any other.
    pub linger: Option<Duration>,
    /// Of one that has left HTTP, in all.
    pub upgraded: Option<Instant>,
    /// Of a response without a length, in all.
    pub stream: Option<Instant>,
    /// What moves fewer bytes per second makes none.
    pub min_rate: u64,
    /// Of all.
    pub end: Option<Instant>,
}

/// What has moved on a connection while the worker retires, and when that was last worth the name of progress.
#[derive(Debug)]
pub struct Progress {
    moved: u64,
    at: Instant,
}

impl Progress {
    pub fn new(moved: u64, at: Instant) -> Progress {
        Progress { moved, at }
    }

    /// Since when there has been none, with so many bytes moved by now in all.
    ///
    /// What came since then must make up for all the time since then: so many small steps do not count, and a large one does.
    pub fn observe(&mut self, moved: u64, rate: u64, now: Instant) -> Instant {
        let bytes = u128::from(moved.wrapping_sub(self.moved));
        let owed = u128::from(rate) * now.saturating_duration_since(self.at).as_millis();
        if bytes > 0 && bytes * 1000 >= owed {
            *self = Progress { moved, at: now };
        }
        self.at
    }
}

#[derive(Debug, Default)]
pub struct Drain {
    /// [`SERVING`] or what follows.
    phase: AtomicU8,
    limits: Mutex<Option<Limits>>,
    /// Told when phase or limits change.
    changed: Notify,
    /// How many connections came to each [`End`].
    ends: [AtomicU64; ENDS],
}

const SERVING: u8 = 0;
const RETIRING: u8 = 1;
const CUT: u8 = 2;

/// How a connection ended while the worker retired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum End {
    /// By the client, or after a response that announced it.
    Finished,
    /// Announced, but further requests of the client lie behind.
    Unanswered,
    /// While idle.
    Lingered,
    /// While idle, and a request came at that moment.
    Lost,
    CutBusy,
    /// A response without a length, at the end of its time. With HTTP/2 it is counted beside its connection.
    CutStream,
    CutHead,
    /// HTTP/2, after a GOAWAY and with every stream answered.
    Goaway,
    CutHttp2,
    /// Of one that was upgraded, by its plugin or its client.
    Upgraded,
    CutUpgraded,
}

const ENDS: usize = End::CutUpgraded as usize + 1;

impl Drain {
    #[inline]
    pub fn is_serving(&self) -> bool {
        self.phase.load(Acquire) == SERVING
    }

    pub fn is_cut(&self) -> bool {
        self.phase.load(Acquire) == CUT
    }

    /// When connections that have left HTTP are cut, if they are: they have a time of their own from the beginning of the
    /// drain, within that of all.
    pub fn upgraded_until(&self) -> Option<Instant> {
        let limits = self.limits()?;
        if self.is_cut() {
            return Some(limits.since);
        }
        [limits.upgraded, limits.end].into_iter().flatten().min()
    }

    /// Whether responses without a length have had their time.
    pub fn is_over_for_streams(&self) -> bool {
        !self.is_serving() && self.limits().and_then(|limits| limits.stream).is_some_and(|at| at <= Instant::now())
    }

    /// The limits, once the worker retires.
    pub fn limits(&self) -> Option<Limits> {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to retire; a second time changes the limits and keeps the beginning. Wake the connections after it.
    pub fn retire(&self, deadlines: Deadlines) -> Limits {
        let now = Instant::now();
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        let since = limits.map_or(now, |old| old.since);
        let within = |from: Instant, ms: Option<u64>| from.checked_add(Duration::from_millis(ms?));
        let new = Limits {
            since,
            keepalive: deadlines.keepalive_ms.map(Duration::from_millis),
            timeout: deadlines.timeout_ms.map(Duration::from_millis),
            linger: deadlines.linger_ms.map(Duration::from_millis),
            upgraded: within(since, deadlines.upgraded_ms),
            stream: within(since, deadlines.stream_ms),
            end: within(now, deadlines.max_ms),
            min_rate: deadlines.min_rate,
        };
        *limits = Some(new);
        drop(limits);
        self.phase.fetch_max(RETIRING, Release);
        self.changed.notify_waiters();
        new
    }

    /// Ends what is left now. Wake the connections after it.
    pub fn cut(&self) {
        self.phase.fetch_max(CUT, Release);
        self.changed.notify_waiters();
    }

    /// Runs what remains to be done once no connection is left, for as long as the limits allow. Whether it came to its end.
    pub async fn bound(&self, last: impl Future<Output = ()>) -> bool {
        let start = Instant::now();
        tokio::pin!(last);
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Before the look at the state: a change after it wakes.
            changed.as_mut().enable();
            let limits = self.limits();
            let own = limits.and_then(|limits| start.checked_add(limits.timeout?));
            let deadline = [own, limits.and_then(|limits| limits.end)].into_iter().flatten().min();
            let over = async {
                match deadline {
                    _ if self.is_cut() => {}
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = &mut last => return true,
                () = &mut changed => {}
                () = over => return false,
            }
        }
    }

    /// Takes down how a connection ended; means nothing before [`Drain::retire`].
    pub fn note(&self, end: End) {
        if self.is_serving() {
            return;
        }
        self.ends[end as usize].fetch_add(1, Relaxed);
    }

    pub fn report(&self) -> DrainReport {
        let get = |end: End| self.ends[end as usize].load(Relaxed);
        let ms = self.limits().map_or(0.0, |limits| limits.since.elapsed().as_secs_f64() * 1000.0);
        DrainReport {
            finished: get(End::Finished) + get(End::Unanswered),
            lingered: get(End::Lingered) + get(End::Lost),
            goaway: get(End::Goaway),
            upgraded: get(End::Upgraded),
            cut: Cut {
                busy: get(End::CutBusy),
                stream: get(End::CutStream),
                head: get(End::CutHead),
                upgraded: get(End::CutUpgraded),
                http2: get(End::CutHttp2),
            },
            lost: get(End::Lost),
            unanswered_pipelined: get(End::Unanswered),
            ms,
            ..DrainReport::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_what_moves_at_the_rate_or_above_and_without_one_any_byte() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut any = Progress::new(10, start);
        assert_eq!(any.observe(10, 0, after(5)), start, "nothing has moved");
        assert_eq!(any.observe(11, 0, after(6)), after(6));
        let mut slow = Progress::new(0, start);
        for second in 1..100 {
            assert_eq!(slow.observe(second * 99, 100, after(second)), start);
        }
        assert_eq!(slow.observe(100 * 100, 100, after(100)), after(100), "it has caught up");
        assert_eq!(slow.observe(100 * 100 + 100, 100, after(101)), after(101));
    }

    #[test]
    fn limits_may_change_and_the_beginning_stays() {
        let drain = Drain::default();
        assert!(drain.is_serving() && drain.limits().is_none());
        drain.note(End::Lost);
        let never = Deadlines::default();
        let first = drain.retire(never);
        assert!(!drain.is_serving() && first.end.is_none());
        let second = drain.retire(Deadlines { max_ms: Some(10), ..never });
        assert_eq!(second.since, first.since);
        assert!(second.end.is_some());
        drain.cut();
        drain.retire(never);
        assert!(drain.is_cut(), "a cut is not taken back");
        assert_eq!(drain.report().lost, 0, "what ended before the drain is none of its business");
    }

    #[test]
    fn each_end_is_counted_in_its_class() {
        use End::*;
        let drain = Drain::default();
        drain.retire(Deadlines::default());
        for (times, end) in
            [Finished, Unanswered, Lingered, Lost, CutBusy, CutHead, Goaway, CutHttp2, Upgraded, CutUpgraded, CutStream]
                .into_iter()
                .enumerate()
        {
            (0..1 << times).for_each(|_| drain.note(end));
        }
        let DrainReport { finished, lingered, goaway, upgraded, cut, lost, unanswered_pipelined, .. } = drain.report();
        assert_eq!((finished, unanswered_pipelined, lingered, lost), (1 + 2, 2, 4 + 8, 8));
        assert_eq!(cut, Cut { busy: 16, head: 32, http2: 128, upgraded: 512, stream: 1024 });
        assert_eq!((goaway, upgraded), (64, 256));
    }
}
