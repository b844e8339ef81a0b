//! From the accept to a secure stream. A client that speaks HTTP in clear is told so, in clear; any other that breaks the
//! protocol gets TLS's own alert.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::super::conn::Conn;
use super::super::io::begins_request;
use super::super::stream::Stream;
use super::{TlsFacts, Wire};

/// How a handshake ended.
pub enum Shaken {
    Secure(Stream),
    /// The client speaks HTTP in clear.
    Clear(Stream),
    /// What the client sent is no TLS that is spoken here. It has been told.
    Failed(Stream),
    /// The client closed.
    Gone,
}

/// Shakes hands on a connection that has just been accepted, for as long as `bound` is pending; else it is what `bound` says.
pub async fn handshake<T>(
    conn: &Arc<Conn>,
    acceptor: &TlsAcceptor,
    stream: Stream,
    mut bound: impl FnMut(&mut Context<'_>) -> Poll<T>,
) -> Result<Shaken, T> {
    let mut wire = Wire::new(stream, conn.clone());
    let first = poll_fn(|cx| match wire.poll_first(cx) {
        Poll::Ready(first) => Poll::Ready(Ok(first)),
        Poll::Pending => bound(cx).map(Err),
    });
    match first.await? {
        Ok(Some(first)) if begins_request(first) => return Ok(Shaken::Clear(wire.into_stream())),
        Ok(Some(_)) => {}
        Ok(None) | Err(_) => return Ok(Shaken::Gone),
    }
    let mut accept = pin!(acceptor.accept(wire).into_fallible());
    let ended = poll_fn(|cx| match accept.as_mut().poll(cx) {
        Poll::Ready(ended) => Poll::Ready(Ok(ended)),
        Poll::Pending => bound(cx).map(Err),
    });
    match ended.await? {
        Ok(secure) => {
            conn.set_tls(TlsFacts::of(secure.get_ref().1));
            Ok(Shaken::Secure(Stream::Tls(Box::new(secure))))
        }
        Err((error, _)) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Shaken::Gone),
        Err((error, wire)) => {
            tracing::debug!(%error, peer = ?conn.peer.to_std(), "TLS handshake failed");
            Ok(Shaken::Failed(wire.into_stream()))
        }
    }
}

/// Reads from a session. A client that closes without saying so (close_notify) is not worth an error: HTTP tells by itself
/// whether a request is whole.
pub fn poll_read(
    session: Pin<&mut Box<TlsStream<Wire>>>,
    cx: &mut Context<'_>,
    buffer: &mut tokio::io::ReadBuf<'_>,
) -> Poll<io::Result<()>> {
    match ready!(tokio::io::AsyncRead::poll_read(session, cx, buffer)) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(())),
        other => Poll::Ready(other),
    }
}
