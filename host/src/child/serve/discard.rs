//! The rest of a request's body that its handler does not read. It is read and discarded, so that the next request of the
//! connection can be read; or the response announces that the connection closes (RFC 9112 9.3). So no request that a client
//! sends behind such a body is thrown away without a word.
//!
//! Owns how much is read for that. The connection's task polls it (`serve::h1`), and until its end the body counts as alive, so
//! that the connection is neither idle nor handed over with a part of a body unread. HTTP/2 ends a stream by itself instead.

use std::pin::Pin;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use hyper::body::{Body as _, Incoming};

use super::conn::Conn;
use super::exchange::{Exchange, Receiving};
use super::refused;
use crate::metrics::Slot;

/// How much is discarded to keep a connection: more would cost more than a new one.
pub const DISCARD: u64 = 256 * 1024;

/// A body that is discarded.
pub struct Discard {
    // In this order: whoever sees that no body is alive also sees that hyper's end of it is closed.
    incoming: Incoming,
    receiving: Receiving,
    /// How much may still come before it is larger than `limits.body_size`.
    left: u64,
    discarded: u64,
    /// Which request of the connection it belongs to.
    call: u64,
    /// The client may wait for `100 Continue`: then nothing says whether the body will come.
    awaits_continue: bool,
    /// [`Discard::discarded`] as the last attempt to settle found it.
    seen: Option<u64>,
}

/// How a discarded body ended.
enum End {
    Whole,
    TooLarge,
    Broken(hyper::Error),
    /// Its end is not certain; counted.
    Malformed,
}

impl Discard {
    /// Discards the rest of a body. `left` is how much of it may come.
    pub fn begin(incoming: Incoming, receiving: Receiving, left: u64, awaits_continue: bool) {
        let exchange = receiving.exchange().clone();
        match exchange {
            Exchange::Http1(conn) if !incoming.is_end_stream() => {
                let call = receiving.call();
                conn.discard.put(Box::new(Discard {
                    incoming,
                    receiving,
                    left,
                    discarded: 0,
                    call,
                    awaits_continue,
                    seen: None,
                }));
                conn.wake();
            }
            Exchange::Http1(_) | Exchange::Http2(_) => {
                drop(incoming);
                drop(receiving);
            }
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            if self.incoming.is_end_stream() {
                return Poll::Ready(End::Whole);
            }
            let polled = Pin::new(&mut self.incoming).poll_frame(cx);
            // While the handler is at work nobody waits for the rest, so that no limit of time runs.
            let waker = (polled.is_pending() && !self.receiving.exchange().conn().is_answering()).then(|| cx.waker());
            self.receiving.note_poll(waker, 0);
            let len = match polled {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(End::Whole),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(End::Broken(error)),
                Poll::Ready(Some(Ok(frame))) => match frame.trailers_ref() {
                    Some(trailers) if self.receiving.note_trailers(trailers).is_err() => {
                        return Poll::Ready(End::Malformed);
                    }
                    _ => frame.data_ref().map_or(0, Bytes::len) as u64,
                },
            };
            self.discarded += len;
            match self.left.checked_sub(len) {
                Some(left) => self.left = left,
                None => return Poll::Ready(End::TooLarge),
            }
        }
    }

    /// Decides, at the response's head, whether the connection goes on after this body.
    ///
    /// Of a body whose length is not known, what has come is read first. Two attempts in a row that find nothing mean that
    /// nothing more has come: hyper reads between them.
    fn poll_verdict(&mut self, cx: &mut Context<'_>) -> Poll<Verdict> {
        if self.awaits_continue {
            return Poll::Ready(Verdict::Closes);
        }
        if let Some(rest) = self.incoming.size_hint().exact() {
            return Poll::Ready(if rest <= DISCARD { Verdict::Continues } else { Verdict::Closes });
        }
        match self.poll(cx) {
            Poll::Ready(End::Whole) => Poll::Ready(Verdict::Continues),
            Poll::Ready(End::Broken(error)) => {
                refused::note_body(self.receiving.exchange().conn(), &error);
                Poll::Ready(Verdict::Closes)
            }
            Poll::Ready(End::TooLarge | End::Malformed) => Poll::Ready(Verdict::Closes),
            Poll::Pending if self.discarded > DISCARD || self.seen == Some(self.discarded) => {
                Poll::Ready(Verdict::Closes)
            }
            Poll::Pending => {
                self.seen = Some(self.discarded);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }
}

/// What a response's head says of the connection, as far as the request's body decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Continues,
    Closes,
}

/// Where a connection keeps the body that it discards: HTTP/1 has one at a time.
#[derive(Default)]
pub struct DiscardSlot {
    is_filled: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
enum State {
    #[default]
    Empty,
    Filled(Box<Discard>),
    /// The connection has ended and discards nothing.
    Over,
}

impl DiscardSlot {
    /// Whether there is something to discard.
    #[inline]
    pub fn is_filled(&self) -> bool {
        self.is_filled.load(Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics with the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, discard: Box<Discard>) {
        let mut state = self.lock();
        // hyper reads a next request only once it has the whole body of the one before: the older of two needs no reader.
        let rest = match &mut *state {
            State::Over => Some(discard),
            State::Filled(current) if current.call > discard.call => Some(discard),
            current => match std::mem::replace(current, State::Filled(discard)) {
                State::Filled(older) => Some(older),
                State::Empty | State::Over => None,
            },
        };
        self.is_filled.store(matches!(*state, State::Filled(_)), Release);
        drop(state);
        // Not under the lock: a drop may wake.
        drop(rest);
    }

    fn take(&self) -> Option<Box<Discard>> {
        let mut state = self.lock();
        let State::Filled(discard) = std::mem::take(&mut *state) else { return None };
        self.is_filled.store(false, Release);
        Some(discard)
    }

    /// Discards what has come. By the connection's task, after each poll of hyper.
    #[cold]
    pub fn poll(&self, conn: &Conn, cx: &mut Context<'_>) {
        let Some(mut discard) = self.take() else { return };
        if discard.awaits_continue {
            // The response's head decides: see `poll_verdict`. Once that is out, the rest cannot be told from a next request.
            if conn.is_answering() {
                self.put(discard);
            }
            return;
        }
        match discard.poll(cx) {
            Poll::Pending if conn.is_announced() && discard.discarded > DISCARD => {}
            Poll::Pending => self.put(discard),
            Poll::Ready(End::Whole | End::Malformed) => {}
            Poll::Ready(End::TooLarge) => conn.server.metrics.add(Slot::BodyTooLarge),
            Poll::Ready(End::Broken(error)) => refused::note_body(conn, &error),
        }
    }

    /// Decides, at the head of the response to the request `call`, whether the connection goes on.
    #[cold]
    pub fn poll_verdict(&self, call: u64, cx: &mut Context<'_>) -> Poll<Verdict> {
        let Some(mut discard) = self.take() else { return Poll::Ready(Verdict::Continues) };
        if discard.call != call {
            return Poll::Ready(Verdict::Continues);
        }
        let verdict = discard.poll_verdict(cx);
        if verdict != Poll::Ready(Verdict::Closes) {
            self.put(discard);
        }
        verdict
    }

    /// Gives up what is discarded: the connection closes in any case.
    pub fn clear(&self) {
        drop(self.take());
    }

    /// hyper has ended the connection before the body did.
    pub fn finish(&self, conn: &Conn) {
        let Some(mut discard) = self.take() else { return };
        if let Poll::Ready(End::Broken(error)) = discard.poll(&mut Context::from_waker(Waker::noop())) {
            refused::note_body(conn, &error);
        }
    }

    /// The connection has ended.
    pub fn end(&self) {
        let before = std::mem::replace(&mut *self.lock(), State::Over);
        self.is_filled.store(false, Release);
        drop(before);
    }
}
