//! What a handler wants of a request's body, and how the client serves it: whether more is waited for, and how far the client
//! is behind the rate that it owes.
//!
//! Only what is waited for can be late. That a poll was in vain does not say that somebody still waits: a `select!` may have
//! taken another branch, and dropped the future that polled. So before a client is held to account, whoever polled last is
//! woken: who waits polls again.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::sync::{Mutex, PoisonError};
use std::task::Waker;

use super::limits::Wait;

#[derive(Debug, Default)]
pub struct Demand {
    wait: Wait,
    /// Polls that were in vain. Counted by one thread at a time.
    polls: AtomicU32,
    /// Of the last of them.
    reader: Mutex<Option<Waker>>,
    /// What `polls` was when the reader was woken, and one; 0 if it was not. By the task that judges.
    woken_at: AtomicU64,

    // ---- by the sweep ----
    /// When it was last seen to be waited for; 0 if it was not at the last look.
    looked_at: AtomicU64,
    /// For how many milliseconds it was waited, less those that the bytes which came have paid for.
    debt: AtomicU64,
}

impl Demand {
    /// The body was polled: in vain, by whom, or not.
    #[inline]
    pub fn note_poll(&self, in_vain: Option<&Waker>) {
        match in_vain {
            None => self.wait.end(),
            Some(waker) => {
                self.set_reader(Some(waker.clone()));
                self.polls.store(self.polls.load(Relaxed).wrapping_add(1), Relaxed);
                self.wait.begin();
            }
        }
    }

    /// The body is gone.
    pub fn end(&self) {
        self.wait.end();
        self.set_reader(None);
    }

    fn set_reader(&self, reader: Option<Waker>) {
        let before = std::mem::replace(&mut *self.reader.lock().unwrap_or_else(PoisonError::into_inner), reader);
        // Not under the lock: with its waker a task may go, and with the task this very body.
        drop(before);
    }

    /// Another request: it owes nothing yet.
    pub fn begin_anew(&self) {
        self.debt.store(0, Relaxed);
    }

    /// The sweep's look: so many bytes have come since the last, of a client that owes `rate` of them per second.
    pub fn observe(&self, now: u64, bytes: u64, rate: u64) {
        self.wait.observe(now);
        if rate == 0 {
            return;
        }
        let is_on = self.wait.is_on();
        let before = self.looked_at.load(Relaxed);
        if is_on || before > 0 {
            self.looked_at.store(if is_on { now } else { 0 }, Relaxed);
        }
        let debt = self.debt.load(Relaxed);
        let waited = if before > 0 && is_on { now.saturating_sub(before) } else { 0 };
        let paid = bytes.saturating_mul(1000) / rate;
        let left = debt.saturating_add(waited).saturating_sub(paid);
        if left != debt {
            self.debt.store(left, Relaxed);
        }
    }

    /// Since when more is waited for, if it is and the sweep knows.
    pub fn since(&self) -> Option<u64> {
        self.wait.since()
    }

    /// By how many milliseconds the client is behind.
    pub fn debt(&self) -> u64 {
        self.debt.load(Relaxed)
    }

    /// The task's look at a client that is late: whether somebody still waits for it. At first nobody can say.
    pub fn is_confirmed(&self) -> bool {
        let polls = u64::from(self.polls.load(Relaxed)) + 1;
        match self.woken_at.swap(0, Relaxed) {
            0 => {
                self.woken_at.store(polls, Relaxed);
                let reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner).clone();
                if let Some(reader) = reader {
                    reader.wake();
                }
                false
            }
            before if before != polls => true,
            _ => {
                self.wait.end();
                self.debt.store(0, Relaxed);
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Woken>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    #[test]
    fn bytes_pay_for_the_time_that_was_waited_and_nothing_else_counts() {
        const RATE: u64 = 100;
        let demand = Demand::default();
        let look = |now, bytes| {
            demand.observe(now, bytes, RATE);
            demand.debt()
        };
        assert_eq!((look(1000, 0), look(5000, 0)), (0, 0), "nobody waits");
        demand.note_poll(Some(Waker::noop()));
        assert_eq!((look(6000, 0), look(8000, 1)), (0, 1990), "only since a look");
        assert_eq!(look(9000, 200), 990);
        demand.note_poll(None);
        assert_eq!(look(60_000, 0), 990, "the handler computes");
        demand.note_poll(Some(Waker::noop()));
        assert_eq!(look(61_000, 1000), 0, "there is no credit");
        assert_eq!(look(62_000, 0), 1000);
        demand.begin_anew();
        assert_eq!(demand.debt(), 0);
        demand.observe(90_000, 0, 0);
        assert_eq!(demand.debt(), 0, "without a rate nothing is owed");
    }

    #[test]
    fn who_waits_is_asked_first_and_who_does_not_answer_does_not_wait() {
        let (demand, woken) = (Demand::default(), Arc::new(Woken::default()));
        let waker = Waker::from(woken.clone());
        demand.note_poll(Some(&waker));
        demand.observe(1000, 0, 1);
        assert!(!demand.is_confirmed());
        assert_eq!(woken.0.load(Relaxed), 1);
        demand.note_poll(Some(&waker));
        assert!(demand.is_confirmed());
        assert!(!demand.is_confirmed(), "the next time anew");
        assert!(!demand.is_confirmed(), "it has not polled since");
        assert_eq!((demand.since(), woken.0.load(Relaxed)), (None, 2));
        demand.note_poll(Some(&waker));
        demand.observe(2000, 0, 1);
        assert_eq!(demand.since(), Some(2000), "it waits again");
        demand.end();
        assert_eq!(Arc::strong_count(&woken), 2, "no waker is kept for a body that is gone");
    }
}
