//! What a load run saw, counted so that nothing can hide: every request ends in exactly one of answered, a fault, or
//! `unanswered_pipelined`; every connection that the server closed is announced or not.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::stats::Histogram;

/// How a request may fail. There is no retry, so each of these is one request that a user lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Nobody listened.
    Refused,
    /// The connection could not be made for another reason.
    Connect,
    /// Reset before the first byte of the response.
    Reset,
    /// Closed before the first byte of the response.
    Eof,
    /// Closed or reset in the middle of the response.
    Truncated,
    /// No HTTP, another status than 200, another body than expected, or bytes that nobody asked for.
    Wrong,
    /// No whole response in time.
    Timeout,
}

pub const FAULTS: [Fault; 7] =
    [Fault::Refused, Fault::Connect, Fault::Reset, Fault::Eof, Fault::Truncated, Fault::Wrong, Fault::Timeout];

/// The kinds of client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// One connection for many requests, with think time between.
    Keepalive,
    /// A connection for each request.
    Fresh,
    /// Requests that take long.
    Slow,
    /// Several requests written at once.
    Pipelined,
    /// One connection for requests of every kind, cut into pieces: see `load::torture`.
    Torture,
    /// Several requests at once on one HTTP/2 connection: see `load::http2`.
    Http2,
    /// A connection for one or two requests, whose sending side is closed before the answers are read.
    HalfClosed,
}

pub const CLASSES: [Class; 7] =
    [Class::Keepalive, Class::Fresh, Class::Slow, Class::Pipelined, Class::Torture, Class::Http2, Class::HalfClosed];

/// The counters of one class.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub sent: u64,
    pub answered: u64,
    pub posts: u64,
    /// Requests behind one whose response announced the close: RFC 9112 9.6 leaves these to the client to send again.
    pub unanswered_pipelined: u64,
    /// Times that HTTP/2 itself said that a request was not looked at, and it was sent again.
    pub unprocessed: u64,
    /// Requests that were in flight when the server said GOAWAY, and were answered.
    pub answered_after_goaway: u64,
    /// Failed requests on a connection that had answered before: these had reached the server for certain.
    pub failed_on_reused: u64,
    /// Connections made.
    pub opened: u64,
    /// Closed by the server after a response that said so.
    pub closed_announced: u64,
    /// Closed by the server between two requests, without a word.
    pub closed_unannounced: u64,
    faults: [u64; FAULTS.len()],
}

impl Counts {
    pub fn fault(&self, fault: Fault) -> u64 {
        self.faults[fault as usize]
    }

    pub fn faults(&self) -> u64 {
        self.faults.iter().sum()
    }
}

/// A failed request, for the report.
#[derive(Clone, Debug)]
pub struct Failure {
    pub at: Duration,
    pub class: Class,
    pub fault: Fault,
    pub what: String,
}

/// How many failures are kept with their text; the counters count all.
const KEPT: usize = 20;

#[derive(Clone, Debug, Default)]
pub struct Tally {
    classes: [Counts; CLASSES.len()],
    pub failures: Vec<Failure>,
    /// Of answered requests of all classes but `Slow`.
    pub latency: Histogram,
    /// Of those sent within 500 ms of a mark.
    pub latency_near: Histogram,
    /// Answers by `VERSION/PID` of who answered.
    pub answered_by: BTreeMap<String, u64>,
    /// Connections of `Keepalive` and `Torture` that are done, and how many of them were answered by two generations or more.
    pub connections: u64,
    pub connections_across: u64,
}

impl Tally {
    pub fn of(&self, class: Class) -> &Counts {
        &self.classes[class as usize]
    }

    pub(super) fn counts(&mut self, class: Class) -> &mut Counts {
        &mut self.classes[class as usize]
    }

    pub(super) fn fail(&mut self, at: Duration, class: Class, fault: Fault, what: String) {
        self.classes[class as usize].faults[fault as usize] += 1;
        if self.failures.len() < KEPT {
            self.failures.push(Failure { at, class, fault, what });
        }
    }

    fn sum(&self, of: impl Fn(&Counts) -> u64) -> u64 {
        self.classes.iter().map(of).sum()
    }

    pub fn sent(&self) -> u64 {
        self.sum(|counts| counts.sent)
    }

    pub fn answered(&self) -> u64 {
        self.sum(|counts| counts.answered)
    }

    pub fn fault(&self, fault: Fault) -> u64 {
        self.sum(|counts| counts.fault(fault))
    }

    /// Requests that a client without retry lost.
    pub fn lost(&self) -> u64 {
        self.sum(Counts::faults)
    }

    pub fn closed_announced(&self) -> u64 {
        self.sum(|counts| counts.closed_announced)
    }

    pub fn closed_unannounced(&self) -> u64 {
        self.sum(|counts| counts.closed_unannounced)
    }

    /// Every request that was sent has ended in one of the ways there are.
    pub fn is_balanced(&self) -> bool {
        self.classes.iter().all(|counts| counts.sent == counts.answered + counts.faults() + counts.unanswered_pipelined)
    }

    /// Panics with the whole tally unless every request was answered, correctly.
    #[track_caller]
    pub fn assert_nothing_lost(&self) {
        assert!(self.is_balanced(), "the client lost count:\n{self}");
        assert!(self.answered() > 0, "nothing was answered:\n{self}");
        assert_eq!(self.lost(), 0, "requests were lost:\n{self}");
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<10} {:>9} {:>9} {:>7} {:>7} {:>6} {:>6} {:>6} {:>6} {:>7} {:>7} {:>7} {:>9} {:>11}",
            "class",
            "sent",
            "answered",
            "refused",
            "connect",
            "reset",
            "eof",
            "trunc",
            "wrong",
            "timeout",
            "opened",
            "closed",
            "unannced",
            "unans.pipel"
        )?;
        for class in CLASSES {
            let counts = self.of(class);
            if counts.sent == 0 {
                continue;
            }
            write!(f, "{:<10} {:>9} {:>9}", format!("{class:?}").to_lowercase(), counts.sent, counts.answered)?;
            for (fault, width) in FAULTS.into_iter().zip([7, 7, 6, 6, 6, 6, 7]) {
                write!(f, " {:>width$}", counts.fault(fault))?;
            }
            writeln!(
                f,
                " {:>7} {:>7} {:>9} {:>11}",
                counts.opened, counts.closed_announced, counts.closed_unannounced, counts.unanswered_pipelined
            )?;
        }
        let http2 = self.of(Class::Http2);
        if http2.sent > 0 {
            let Counts { unprocessed, answered_after_goaway, .. } = http2;
            writeln!(f, "http2: {answered_after_goaway} answered after GOAWAY, {unprocessed} sent again")?;
        }
        writeln!(
            f,
            "latency p50 {:.2} ms, p99 {:.2} ms, max {:.1} ms; within 500 ms of a reload p99 {:.2} ms, max {:.1} ms",
            self.latency.quantile_ms(0.5),
            self.latency.quantile_ms(0.99),
            self.latency.max_ms(),
            self.latency_near.quantile_ms(0.99),
            self.latency_near.max_ms()
        )?;
        write!(
            f,
            "answered by {} generations; {} of {} kept connections by two or more",
            self.answered_by.len(),
            self.connections_across,
            self.connections
        )?;
        for failure in &self.failures {
            let Failure { at, class, fault, what } = failure;
            write!(f, "\n  at {:.3} s: {class:?} {fault:?}: {what}", at.as_secs_f64())?;
        }
        Ok(())
    }
}
