//! A body written by a future: `Body::generate`.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;

use super::Body;
use crate::ffi::{BoxError, Payload};

impl Body {
    /// A body that `write` writes piece by piece. It runs within the response, when the client wants more: no task is
    /// spawned, and a client that goes away drops it at its next `await`. An error breaks the response off, so that the
    /// client can tell.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use baton_plugin_api::{testing, tokio, Body, Request};
    /// async fn ticks(_: Request) -> Body {
    ///     Body::generate(async |mut out| {
    ///         for tick in 0..3 {
    ///             out.send(format!("{tick}\n")).await?;
    ///             tokio::time::sleep(Duration::from_millis(1)).await;
    ///         }
    ///         Ok(())
    ///     })
    /// }
    /// # let plugin = testing::Plugin::start(ticks);
    /// # assert_eq!(plugin.get("/").text(), "0\n1\n2\n");
    /// ```
    pub fn generate<F, Fut>(write: F) -> Body
    where
        F: FnOnce(BodyWriter) -> Fut,
        Fut: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        let slot = Arc::new(Mutex::new(Slot::default()));
        let future = Some(write(BodyWriter { slot: slot.clone() }));
        Body(Payload::new(Generated { slot, future }))
    }
}

/// One frame on its way from the writer to the reader.
#[derive(Default)]
struct Slot {
    frame: Option<Frame<Bytes>>,
    /// The reader has gone, or the writing future has ended.
    closed: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

fn lock(slot: &Mutex<Slot>) -> MutexGuard<'_, Slot> {
    // Nothing between lock and unlock can panic half way.
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The writing end of [`Body::generate`].
pub struct BodyWriter {
    slot: Arc<Mutex<Slot>>,
}

/// The body has ended: the client went away, or the function of [`Body::generate`] has returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the body has ended")
    }
}

impl std::error::Error for Closed {}

impl BodyWriter {
    /// Sends a piece, and waits until the server has taken it. Nothing is sent of an empty one.
    ///
    /// # Errors
    /// [`Closed`] once nobody reads any more.
    pub async fn send(&mut self, data: impl Into<Bytes>) -> Result<(), Closed> {
        let data = data.into();
        if data.is_empty() { Ok(()) } else { self.put(Frame::data(data)).await }
    }

    /// Sends trailers: fields after the body. The last thing to send. HTTP/1.1 passes on only those that a `Trailer` field
    /// of the response has announced, to clients that sent `TE: trailers`.
    ///
    /// # Errors
    /// [`Closed`] once nobody reads any more.
    pub async fn trailers(mut self, trailers: HeaderMap) -> Result<(), Closed> {
        self.put(Frame::trailers(trailers)).await
    }

    async fn put(&mut self, frame: Frame<Bytes>) -> Result<(), Closed> {
        let mut frame = Some(frame);
        std::future::poll_fn(|cx| {
            let mut slot = lock(&self.slot);
            if slot.closed {
                return Poll::Ready(Err(Closed));
            }
            let mut reader = None;
            if slot.frame.is_none() {
                let Some(frame) = frame.take() else { return Poll::Ready(Ok(())) };
                slot.frame = Some(frame);
                // There is one only if this is a task of its own; else the reader is polling us right now.
                reader = slot.reader.take();
            }
            // Before the lock is let go: the reader may take the frame at once, and looks here.
            slot.writer = Some(cx.waker().clone());
            drop(slot);
            if let Some(reader) = reader {
                reader.wake();
            }
            Poll::Pending
        })
        .await
    }
}

impl fmt::Debug for BodyWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BodyWriter").finish_non_exhaustive()
    }
}

pin_project_lite::pin_project! {
    struct Generated<Fut> {
        slot: Arc<Mutex<Slot>>,
        #[pin]
        future: Option<Fut>,
    }

    impl<Fut> PinnedDrop for Generated<Fut> {
        fn drop(this: Pin<&mut Self>) {
            close(&this.slot);
        }
    }
}

fn close(slot: &Mutex<Slot>) {
    let mut slot = lock(slot);
    slot.closed = true;
    let writer = slot.writer.take();
    drop(slot);
    if let Some(writer) = writer {
        writer.wake();
    }
}

impl<Fut: Future<Output = Result<(), BoxError>>> http_body::Body for Generated<Fut> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut this = self.project();
        // The former frame has been taken: its `send` ends in this poll, and the writer goes on.
        let ended = match this.future.as_mut().as_pin_mut() {
            None => Some(Ok(())),
            Some(future) => match future.poll(cx) {
                Poll::Pending => None,
                Poll::Ready(result) => Some(result),
            },
        };
        if ended.is_some() {
            this.future.set(None);
        }
        let mut slot = lock(this.slot);
        if let Some(Err(error)) = ended {
            slot.frame = None;
            drop(slot);
            close(this.slot);
            return Poll::Ready(Some(Err(error)));
        }
        if let Some(frame) = slot.frame.take() {
            let writer = slot.writer.take();
            drop(slot);
            // Without this, a writer in a task of its own would not learn that there is room.
            if let Some(writer) = writer.filter(|writer| !writer.will_wake(cx.waker())) {
                writer.wake();
            }
            return Poll::Ready(Some(Ok(frame)));
        }
        if ended.is_some() {
            drop(slot);
            close(this.slot);
            return Poll::Ready(None);
        }
        slot.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}
