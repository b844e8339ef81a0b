//! What the connection of a request may become, in memory: the host's part of an upgrade, for tests.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use http::{Method, Version, header, request};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

use crate::abi::ByteStream;

/// Bytes that wait in each direction.
const CAPACITY: usize = 64 * 1024;
/// ECONNABORTED.
const REFUSED: i32 = 103;

/// The connection of one request, as the host sees it.
#[derive(Clone)]
pub struct Line {
    state: Arc<Mutex<State>>,
    is_connect: bool,
}

enum State {
    /// The request asks for nothing.
    Unasked,
    Free,
    /// The handler has it, and may wait.
    Claimed(Option<Waker>),
    Open(DuplexStream),
    /// Refused, or dropped; whether it had been claimed.
    Over(bool),
}

impl Line {
    pub fn new(parts: &request::Parts) -> Line {
        let is_connect = parts.method == Method::CONNECT;
        let says_upgrade = |value: &header::HeaderValue| {
            let value = value.to_str().unwrap_or_default();
            value.split(',').any(|option| option.trim().eq_ignore_ascii_case("upgrade"))
        };
        let asks = parts.headers.contains_key(header::UPGRADE)
            && parts.headers.get_all(header::CONNECTION).iter().any(says_upgrade);
        let state =
            if parts.version == Version::HTTP_11 && (is_connect || asks) { State::Free } else { State::Unasked };
        Line { state: Arc::new(Mutex::new(state)), is_connect }
    }

    pub fn is_connect(&self) -> bool {
        self.is_connect
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn was_claimed(&self) -> bool {
        matches!(*self.lock(), State::Claimed(_) | State::Open(_) | State::Over(true))
    }

    pub fn claim(&self) -> Option<Stream> {
        let mut state = self.lock();
        if !matches!(*state, State::Free) {
            return None;
        }
        *state = State::Claimed(None);
        Some(Stream(self.clone()))
    }

    /// The client's end; nothing if nobody claimed the other.
    pub fn open(&self) -> Option<DuplexStream> {
        let mut state = self.lock();
        let State::Claimed(waker) = &mut *state else { return None };
        let waker = waker.take();
        let (client, plugin) = tokio::io::duplex(CAPACITY);
        *state = State::Open(plugin);
        drop(state);
        waker.into_iter().for_each(Waker::wake);
        Some(client)
    }

    /// The connection stays with HTTP.
    pub fn refuse(&self) {
        let was_claimed = self.was_claimed();
        let before = std::mem::replace(&mut *self.lock(), State::Over(was_claimed));
        if let State::Claimed(waker) = before {
            waker.into_iter().for_each(Waker::wake);
        }
    }
}

/// The plugin's end.
pub struct Stream(Line);

impl Stream {
    fn with<T>(&mut self, poll: impl FnOnce(Pin<&mut DuplexStream>) -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match &mut *self.0.lock() {
            State::Open(stream) => poll(Pin::new(stream)),
            _ => Poll::Ready(Err(io::Error::from_raw_os_error(REFUSED))),
        }
    }
}

// SAFETY: a `ReadBuf` counts what was written to it, from the start.
unsafe impl ByteStream for Stream {
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self.0.lock() {
            State::Open(_) => Poll::Ready(Ok(())),
            State::Claimed(waker) => {
                *waker = Some(cx.waker().clone());
                Poll::Pending
            }
            _ => Poll::Ready(Err(io::Error::from_raw_os_error(REFUSED))),
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, room: &mut [MaybeUninit<u8>]) -> Poll<io::Result<usize>> {
        let mut room = ReadBuf::uninit(room);
        ready!(self.with(|stream| stream.poll_read(cx, &mut room)))?;
        Poll::Ready(Ok(room.filled().len()))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.with(|stream| stream.poll_write_vectored(cx, parts))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_flush(cx))
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_shutdown(cx))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // A waker that is dropped with it may lead to code that looks here.
        let before = std::mem::replace(&mut *self.0.lock(), State::Over(true));
        drop(before);
    }
}
