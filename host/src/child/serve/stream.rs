//! The streams that a connection may run over, as one: a TCP or a Unix socket in the runtime, or a TLS session over one. What
//! differs between them is told here and in `sys::socket`, and nowhere above.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

use super::tls::{self, Wire};
use crate::sys::socket::{self, Bare};

pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream<Wire>>),
}

impl Stream {
    /// Within a tokio runtime.
    pub fn new(bare: Bare) -> io::Result<Stream> {
        Ok(match bare {
            Bare::Tcp(stream) => Stream::Tcp(TcpStream::from_std(stream)?),
            Bare::Unix(stream) => Stream::Unix(UnixStream::from_std(stream)?),
        })
    }

    /// Out of the runtime: nothing of it is registered any more.
    pub fn into_bare(self) -> io::Result<Bare> {
        Ok(match self {
            Stream::Tcp(stream) => Bare::Tcp(stream.into_std()?),
            Stream::Unix(stream) => Bare::Unix(stream.into_std()?),
            // Nobody asks: such a connection stays where its session is.
            Stream::Tls(_) => return Err(io::ErrorKind::Unsupported.into()),
        })
    }

    /// Whether bytes that the kernel has given out are still to be read: only a session has a place for them.
    #[inline]
    pub fn holds_bytes(&self) -> bool {
        match self {
            Stream::Tcp(_) | Stream::Unix(_) => false,
            Stream::Tls(session) => {
                let (wire, session) = session.get_ref();
                // A session that has decrypted something wants no more before that is read.
                wire.is_mid_record() || !session.wants_read()
            }
        }
    }

    /// Whether there is a session between the connection and its socket: what is written may then lie here, and not in the
    /// kernel, until it is flushed.
    #[inline]
    pub fn is_session(&self) -> bool {
        matches!(self, Stream::Tls(_))
    }

    /// Waits until the peer has sent something, or nothing more, without taking it: how many bytes are there, 0 at the end.
    /// Of a session one record may be read and kept for the read that follows.
    pub fn poll_peek(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        macro_rules! poll_peek {
            ($stream:expr) => {
                loop {
                    ready!($stream.poll_read_ready(cx))?;
                    match $stream.try_io(Interest::READABLE, || socket::peek($stream.as_fd())) {
                        // The readiness was an old one and is cleared: wait for a new one.
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        peeked => break Poll::Ready(peeked),
                    }
                }
            };
        }
        match self {
            Stream::Tcp(stream) => poll_peek!(stream),
            Stream::Unix(stream) => poll_peek!(stream),
            Stream::Tls(session) => match ready!(Pin::new(session).poll_fill_buf(cx)) {
                Ok(bytes) => Poll::Ready(Ok(bytes.len())),
                // As at a read: see `tls::poll_read`.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(0)),
                Err(error) => Poll::Ready(Err(error)),
            },
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Stream::Tcp(stream) => stream.as_fd(),
            Stream::Unix(stream) => stream.as_fd(),
            Stream::Tls(session) => session.get_ref().0.as_fd(),
        }
    }
}

impl AsyncRead for Stream {
    #[inline]
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Stream::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
            Stream::Tls(session) => tls::poll_read(Pin::new(session), cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    #[inline]
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Tls(session) => Pin::new(session).poll_write(cx, bytes),
        }
    }

    /// Sockets have no buffer of their own.
    #[inline]
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(session) => Pin::new(session).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(session) => Pin::new(session).poll_shutdown(cx),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    #[inline]
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
            Stream::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
            Stream::Tls(session) => Pin::new(session).poll_write_vectored(cx, parts),
        }
    }
}
