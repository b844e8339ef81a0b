//! hyper's own `OnUpgrade` for a stream of the host.
//!
//! Nobody but a hyper connection can make one. So there is one, in memory: it reads a canned request, hands out the
//! `OnUpgrade` that hyper made for it, and waits. Once the host's connection has left HTTP it answers 101, which goes nowhere;
//! and what hyper then gives to whoever awaits the `OnUpgrade` is this connection's io, which is the host's stream.

use std::convert::Infallible;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::http1;
use hyper::service::Service;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Handle;

use super::{OnUpgrade, Upgraded};

const ASKING: &[u8] = b"GET / HTTP/1.1\r\nconnection: upgrade\r\nupgrade: any\r\n\r\n";

/// What hyper gives to who awaits it, once `upgrade` opens. The connection behind it runs in `runtime`.
pub fn offer(upgrade: OnUpgrade, runtime: &Handle) -> Option<hyper::upgrade::OnUpgrade> {
    let offered = Arc::new(Mutex::new(None));
    let stream = Shared::default();
    let service = Asking { upgrade: Mutex::new(Some(upgrade)), offered: offered.clone(), stream: stream.clone() };
    let io = Memory { request: ASKING, answered: false, stream: Through::NotYet(stream) };
    let mut connection = http1::Builder::new().serve_connection(io, service).with_upgrades();
    // The request is there, so that this one poll has it read and the service called. The task polls it again at its start.
    let polled = Pin::new(&mut connection).poll(&mut Context::from_waker(Waker::noop()));
    if polled.is_pending() {
        drop(runtime.spawn(connection));
    }
    lock(&offered).take()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where the stream waits from its opening to the end of hyper's answer.
type Shared = Arc<Mutex<Option<Upgraded>>>;

// ---- the service ----

/// Serves the one request.
struct Asking {
    upgrade: Mutex<Option<OnUpgrade>>,
    offered: Arc<Mutex<Option<hyper::upgrade::OnUpgrade>>>,
    stream: Shared,
}

impl Service<Request<Incoming>> for Asking {
    type Response = Response<Nothing>;
    type Error = super::UpgradeError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Nothing>, super::UpgradeError>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        *lock(&self.offered) = Some(hyper::upgrade::on(&mut request));
        let (upgrade, stream) = (lock(&self.upgrade).take(), self.stream.clone());
        Box::pin(async move {
            // An error ends the connection, and so the wait for what it offered.
            let opened = upgrade.ok_or(super::UpgradeError(None))?.await?;
            *lock(&stream) = Some(opened);
            let mut response = Response::new(Nothing);
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            Ok(response)
        })
    }
}

/// No body.
struct Nothing;

impl http_body::Body for Nothing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        true
    }
}

// ---- the io ----

/// First a request to read and a place where an answer is lost, then the stream.
struct Memory {
    request: &'static [u8],
    /// hyper has written its answer, whole or in part.
    answered: bool,
    stream: Through,
}

enum Through {
    NotYet(Shared),
    Open(Upgraded),
}

impl Memory {
    fn open(&mut self) -> Option<Pin<&mut Upgraded>> {
        match &mut self.stream {
            Through::NotYet(_) => None,
            Through::Open(stream) => Some(Pin::new(stream)),
        }
    }

    fn lose(&mut self, count: usize) -> Poll<io::Result<usize>> {
        self.answered |= count > 0;
        Poll::Ready(Ok(count))
    }
}

impl Read for Memory {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let Some(stream) = this.open() else {
            if this.request.is_empty() {
                // Nothing comes before the stream does, and then hyper does not read any more.
                return Poll::Pending;
            }
            let len = this.request.len().min(cursor.remaining());
            let (now, later) = this.request.split_at(len);
            cursor.put_slice(now);
            this.request = later;
            return Poll::Ready(Ok(()));
        };
        crate::ffi::read_into(cursor, |room: &mut ReadBuf<'_>| stream.poll_read(cx, room))
    }
}

impl Write for Memory {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.open() {
            Some(stream) => stream.poll_write(cx, bytes),
            None => self.lose(bytes.len()),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.open() {
            Some(stream) => stream.poll_write_vectored(cx, parts),
            None => self.lose(parts.iter().map(|part| part.len()).sum()),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(stream) = self.open() {
            return stream.poll_flush(cx);
        }
        // hyper flushes what it has written whole: the answer is over.
        if self.answered
            && let Through::NotYet(shared) = &self.stream
            && let Some(stream) = lock(&shared.clone()).take()
        {
            self.stream = Through::Open(stream);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.open() {
            Some(stream) => stream.poll_shutdown(cx),
            None => Poll::Ready(Ok(())),
        }
    }
}
