//! Waiting for a request's client to close, for handlers that want to stop early.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::abi::FfiSignal;

/// Ends once the request's client has closed: see [`Request::client_closed`](crate::Request::client_closed).
///
/// Owned and `Send`: a task that works for the request may wait for it, too.
#[must_use = "a future does nothing unless it is polled"]
pub struct ClientClosed(State);

enum State {
    Open(FfiSignal),
    Closed,
    /// The host is too old to know.
    Unknown,
}

impl ClientClosed {
    pub(crate) fn new(signal: Option<FfiSignal>) -> ClientClosed {
        ClientClosed(signal.map_or(State::Unknown, State::Open))
    }
}

impl Future for ClientClosed {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.0 {
            State::Open(signal) => {
                let polled = signal.poll(cx);
                if polled.is_ready() {
                    self.0 = State::Closed;
                }
                polled
            }
            State::Closed => Poll::Ready(()),
            State::Unknown => Poll::Pending,
        }
    }
}

impl fmt::Debug for ClientClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientClosed").field("closed", &matches!(self.0, State::Closed)).finish()
    }
}
