//! The io below hyper: a stream that tells its connection what moves, gives back bytes that were read before, and closes
//! without destroying what the client has still to read (RFC 9112 9.6: half-close, read and discard, close).

use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::Sleep;

use super::closed::HangupGuard;
use super::conn::Conn;
use super::stream::Stream;
use crate::metrics::Slot;
use crate::sys::hangup::{self, Peer, Until};
use crate::sys::socket::{self, Bare};

/// A lingering close reads and discards so much. What a client sends beyond that fits the kernel's buffers, or has to wait.
pub const LINGER_BYTES: usize = 16 << 20;
/// At a time.
const LINGER_READ: usize = 16 << 10;

pub struct Io {
    /// While the handler is waited for, after a FIN or before unread bytes. Before the stream, as it has to go first.
    hangup_guard: Option<HangupGuard>,
    stream: Stream,
    /// Read before: by the sniff, or by a hyper connection that was taken apart.
    prefix: Bytes,
    conn: Arc<Conn>,
    linger: Option<Linger>,
    /// The response of hyper's parser to a request that it refuses: not sent, since its status may be another.
    held_back: Option<Vec<u8>>,
}

struct Linger {
    timer: Pin<Box<Sleep>>,
    /// Our side is closed.
    said: bool,
    /// Bytes discarded.
    count: usize,
    /// The first of them.
    first: Option<u8>,
}

impl Io {
    pub fn new(stream: Stream, conn: Arc<Conn>) -> Io {
        Io { hangup_guard: None, stream, prefix: Bytes::new(), conn, linger: None, held_back: None }
    }

    /// Puts bytes before what comes next.
    pub fn rewind(&mut self, prefix: Bytes) {
        self.prefix = if self.prefix.is_empty() { prefix } else { [&prefix[..], &self.prefix[..]].concat().into() };
    }

    pub fn conn(&self) -> &Arc<Conn> {
        &self.conn
    }

    /// How much was put back and not read yet.
    pub fn left_over(&self) -> usize {
        self.prefix.len()
    }

    /// The bare socket, out of the runtime; and what was put before and not read.
    pub fn into_parts(mut self) -> io::Result<(Bare, Bytes)> {
        let prefix = std::mem::take(&mut self.prefix);
        self.hangup_guard = None;
        Ok((self.stream.into_bare()?, prefix))
    }

    /// Reads a few bytes, outside hyper.
    pub fn poll_peek_in(&mut self, cx: &mut Context<'_>, room: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(room);
        let polled = Pin::new(&mut self.stream).poll_read(cx, &mut buffer);
        let len = buffer.filled().len();
        self.conn.note_held(self.stream.holds_bytes());
        ready!(polled)?;
        self.note_read(len);
        Poll::Ready(Ok(len))
    }

    /// What a session reads is counted below it.
    #[inline]
    fn note_read(&self, len: usize) {
        if !self.stream.is_session() {
            self.conn.note_read(len);
        }
    }

    /// Writes, and takes down if the kernel takes no more.
    #[inline]
    fn waiting<T>(&mut self, write: impl FnOnce(Pin<&mut Stream>) -> Poll<T>) -> Poll<T> {
        let poll = write(Pin::new(&mut self.stream));
        if poll.is_pending() {
            self.conn.activity.write.begin();
        }
        poll
    }

    /// Writes `bytes` whole, outside hyper.
    pub async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// Keeps what hyper's parser answers, instead of writing it. Returns how much that is.
    #[cold]
    fn hold_back<'a>(&mut self, parts: impl IntoIterator<Item = &'a [u8]>) -> usize {
        let held_back = self.held_back.get_or_insert_default();
        let before = held_back.len();
        parts.into_iter().for_each(|part| held_back.extend_from_slice(part));
        held_back.len() - before
    }

    /// The response of hyper's parser, if there is one. It is to be sent before the close.
    pub fn take_held_back(&mut self) -> Option<Vec<u8>> {
        self.held_back.take()
    }

    /// Whether a lingering close has discarded what begins as a request does.
    pub fn discarded_request(&self) -> bool {
        self.linger.as_ref().and_then(|linger| linger.first).is_some_and(begins_request)
    }

    /// Looks, while hyper waits for a handler and reads nothing, whether the client has closed or is gone. Fails in the
    /// latter case, so that hyper drops the handler.
    ///
    /// hyper would find out by reading. But it makes room for that, while the head of the request that is being answered
    /// holds its buffer: a fresh one of 8 KiB for each request, in vain.
    fn poll_client(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.conn.is_ended() {
            return Poll::Ready(self.check_hangup());
        }
        let polled = self.stream.poll_peek(cx);
        let polled = match polled {
            Poll::Ready(Ok(0)) => {
                self.conn.set_ended();
                Poll::Ready(self.note_fin())
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            // Another request, for later.
            Poll::Ready(Ok(_)) => {
                self.conn.note_behind();
                Poll::Ready(self.check_behind())
            }
            Poll::Pending => Poll::Ready(Ok(())),
        };
        self.conn.note_held(self.stream.holds_bytes());
        polled
    }

    /// The client has sent a FIN while its request is being answered.
    #[cold]
    fn note_fin(&mut self) -> io::Result<()> {
        if self.conn.site.abort_on_close {
            self.conn.server.metrics.add(Slot::AbortedOnClose);
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        self.check_hangup()
    }

    /// After a FIN: fails if the client is gone for good. The connection's task is woken when it is.
    #[cold]
    pub fn check_hangup(&mut self) -> io::Result<()> {
        if self.hangup_guard.is_none() {
            self.hangup_guard = self.conn.server.hangups.watch(&self.conn, self.stream.as_fd(), Until::Gone);
        }
        if hangup::is_hung_up(self.stream.as_fd()) { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(()) }
    }

    /// As [`Io::poll_client`] where bytes lie unread, behind which no peek finds the FIN: the rest of a body that its handler
    /// holds, or another request. Only for a request that has taken a while, or whose handler has asked, since it costs system
    /// calls.
    fn check_behind(&mut self) -> io::Result<()> {
        if self.conn.is_watched() { self.check_close() } else { Ok(()) }
    }

    #[cold]
    fn check_close(&mut self) -> io::Result<()> {
        if self.conn.closed.is_set() {
            return self.check_hangup();
        }
        match hangup::peer(self.stream.as_fd()) {
            Peer::Gone => Err(io::ErrorKind::ConnectionReset.into()),
            Peer::HalfClosed => {
                self.conn.closed.set();
                self.hangup_guard = None;
                self.note_fin()
            }
            Peer::Open => {
                if self.hangup_guard.is_none() {
                    self.hangup_guard = self.conn.server.hangups.watch(&self.conn, self.stream.as_fd(), Until::Closed);
                }
                Ok(())
            }
        }
    }

    /// Half-closes; then reads and discards until the client closes too, or `drain.linger` has passed. So a client that writes
    /// all of a request before it reads finds the response, and no reset.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.linger.is_none() {
            self.conn.set_shut();
            self.conn.end_close_delimited();
        }
        let linger = self.linger.get_or_insert_with(|| Linger {
            timer: Box::pin(tokio::time::sleep(self.conn.linger_time())),
            said: false,
            count: 0,
            first: None,
        });
        if !linger.said {
            match Pin::new(&mut self.stream).poll_shutdown(cx) {
                Poll::Ready(said) => said?,
                // A session has words to say before (close_notify), for which the kernel may have no room.
                Poll::Pending => return linger.timer.as_mut().poll(cx).map(Ok),
            }
            linger.said = true;
        }
        if self.conn.is_ended() {
            return Poll::Ready(Ok(()));
        }
        let mut room = [MaybeUninit::uninit(); LINGER_READ];
        while linger.count < LINGER_BYTES {
            let mut buffer = ReadBuf::uninit(&mut room);
            match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) => {
                    let Some(first) = buffer.filled().first() else { return Poll::Ready(Ok(())) };
                    linger.first.get_or_insert(*first);
                    linger.count += buffer.filled().len();
                }
                // The client is gone: that is the end that was waited for.
                Poll::Ready(Err(_)) => return Poll::Ready(Ok(())),
                Poll::Pending => break,
            }
        }
        linger.timer.as_mut().poll(cx).map(Ok)
    }
}

/// For a connection that has left HTTP: what was put before, then the stream, and none of what hyper's polls take down.
impl Io {
    pub fn poll_read_bare(&mut self, cx: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.prefix.is_empty() {
            let len = self.prefix.len().min(room.remaining());
            room.put_slice(&self.prefix.split_to(len));
            return Poll::Ready(Ok(()));
        }
        let before = room.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, room))?;
        if room.filled().len() == before && room.remaining() > 0 {
            self.conn.set_ended();
        }
        self.note_read(room.filled().len() - before);
        Poll::Ready(Ok(()))
    }

    pub fn poll_write_bare(&mut self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let len = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, parts))?;
        self.conn.note_upgraded_write(len);
        Poll::Ready(Ok(len))
    }

    pub fn poll_flush_bare(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    pub fn poll_shutdown_bare(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    /// Closes in good order, for a client that is still there.
    pub async fn close(&mut self) {
        // A client that is gone needs no courtesies.
        if let Err(error) = poll_fn(|cx| self.poll_close(cx)).await {
            tracing::trace!(%error, "connection was gone at its close");
        }
    }
}

/// A method begins with a capital letter, in practice and in every registered one.
pub fn begins_request(byte: u8) -> bool {
    byte.is_ascii_uppercase()
}

impl Read for Io {
    #[inline]
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.conn.is_gated() {
            return Poll::Pending;
        }
        if !this.prefix.is_empty() {
            let len = this.prefix.len().min(cursor.remaining());
            cursor.put_slice(&this.prefix[..len]);
            this.conn.note_bytes(&this.prefix[..len]);
            this.prefix.advance(len);
            this.conn.note_fed(len, socket::cursor_address(&mut cursor));
            if !this.prefix.is_empty() || cursor.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            // The rest of the head is most likely there already. An end or an error shows again at the next read.
            let polled =
                socket::poll_read(Pin::new(&mut this.stream), cx, &mut cursor, |bytes| this.conn.note_bytes(bytes));
            this.conn.note_held(this.stream.holds_bytes());
            if let Poll::Ready(Ok(filled)) = polled {
                this.note_read(filled.len);
                this.conn.note_fed(filled.len, filled.end);
            }
            return Poll::Ready(Ok(()));
        }
        let polled =
            socket::poll_read(Pin::new(&mut this.stream), cx, &mut cursor, |bytes| this.conn.note_bytes(bytes));
        this.conn.note_held(this.stream.holds_bytes());
        match polled {
            Poll::Ready(Ok(filled)) => {
                if filled.len == 0 {
                    this.conn.set_ended();
                } else {
                    this.note_read(filled.len);
                    this.conn.note_fed(filled.len, filled.end);
                }
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                // hyper may have moved its buffer to make room.
                this.conn.note_buffer(socket::cursor_address(&mut cursor));
                Poll::Pending
            }
        }
    }
}

impl Write for Io {
    #[inline]
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.conn.is_parser_response(bytes) {
            return Poll::Ready(Ok(self.hold_back([bytes])));
        }
        let len = ready!(self.waiting(|stream| stream.poll_write(cx, bytes)))?;
        self.conn.note_write(len);
        Poll::Ready(Ok(len))
    }

    #[inline]
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.stream.is_session() {
            ready!(self.waiting(|stream| stream.poll_flush(cx)))?;
            self.conn.activity.write.end();
        }
        self.conn.note_flush();
        // hyper has nothing to read now and nothing left to write, so this is where a client that closes is noticed.
        if self.conn.waits_for_handler() {
            return self.poll_client(cx);
        }
        if self.conn.is_answering() {
            return Poll::Ready(self.check_behind());
        }
        if self.hangup_guard.is_some() && !self.conn.is_ended() {
            self.hangup_guard = None;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.held_back.is_some() {
            return Poll::Ready(Ok(()));
        }
        self.poll_close(cx)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    #[inline]
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if parts.first().is_some_and(|first| self.conn.is_parser_response(first)) {
            return Poll::Ready(Ok(self.hold_back(parts.iter().map(|part| &part[..]))));
        }
        let len = ready!(self.waiting(|stream| stream.poll_write_vectored(cx, parts)))?;
        self.conn.note_write(len);
        Poll::Ready(Ok(len))
    }
}
