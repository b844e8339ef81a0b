//! The host's byte stream as tokio's traits have it.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::coop;

use crate::abi::FfiStream;

/// A stream that was claimed; the connection still speaks HTTP.
pub struct Claimed(FfiStream);

impl Claimed {
    pub fn new(stream: FfiStream) -> Claimed {
        Claimed(stream)
    }

    /// Waits until the connection has left HTTP.
    pub fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_open(cx)
    }

    /// The stream. Only good once [`poll_open`](Claimed::poll_open) said so.
    pub fn opened(self) -> Upgraded {
        Upgraded(self.0)
    }
}

/// A connection that has left HTTP: the bytes that the client sends, and those it gets.
///
/// What the client sent right behind its request comes first. Nothing is buffered on the way: a client that does not read
/// makes writes wait, and unread bytes make the client wait. The server's time limits do not hold any more; when its generation
/// retires, the stream has `drain.upgraded` (60 seconds) to come to an end, from the moment at which
/// [`Shutdown`](crate::Shutdown) fires.
///
/// Dropping it closes the connection in good order: what was written is delivered first.
pub struct Upgraded(FfiStream);

impl AsyncRead for Upgraded {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        // The host's tokio, which is another one, does not see to it that this task yields.
        let progress = ready!(coop::poll_proceed(cx));
        // SAFETY: nothing that is initialised is made uninitialised: the stream only writes bytes to it.
        let room = unsafe { buf.unfilled_mut() };
        let count = ready!(self.0.poll_read(cx, room))?;
        progress.made_progress();
        // SAFETY: the stream has initialised so many bytes from the start of the room.
        unsafe { buf.assume_init(count) };
        buf.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Upgraded {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let progress = ready!(coop::poll_proceed(cx));
        let count = ready!(self.0.poll_write(cx, parts))?;
        progress.made_progress();
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_shutdown(cx)
    }
}

impl fmt::Debug for Upgraded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upgraded").finish_non_exhaustive()
    }
}

/// Reads into the room that hyper gives, as tokio has it.
#[cfg(feature = "ws")]
pub fn read_into(
    mut cursor: hyper::rt::ReadBufCursor<'_>,
    read: impl FnOnce(&mut ReadBuf<'_>) -> Poll<io::Result<()>>,
) -> Poll<io::Result<()>> {
    // SAFETY: nothing that is initialised is made uninitialised: a `ReadBuf` only writes to it.
    let mut room = ReadBuf::uninit(unsafe { cursor.as_mut() });
    ready!(read(&mut room))?;
    let count = room.filled().len();
    // SAFETY: so many bytes were filled, from the start of the room.
    unsafe { cursor.advance(count) };
    Poll::Ready(Ok(()))
}
