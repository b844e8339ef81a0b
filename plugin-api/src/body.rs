//! The one body type of requests and responses, how to make one and how to read one.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use futures_core::Stream;
use http_body::{Frame, SizeHint};
use serde::de::DeserializeOwned;

use crate::client_error::ClientError;
use crate::ffi::{BoxError, Payload};
use crate::response::{IntoResponse, Response, failed_or_refused};

mod generate;

pub use generate::{BodyWriter, Closed};

/// The body of a request or a response: an [`http_body::Body`] of [`Bytes`], pulled by its reader. So a client that reads
/// slowly slows its producer down, and a body that nobody reads any more is dropped.
///
/// ```
/// # use baton_plugin_api::{testing, Body, Request};
/// async fn echo(request: Request) -> Body {
///     request.into_body()
/// }
/// # let plugin = testing::Plugin::start(echo);
/// # assert_eq!(plugin.post("/", "abc").text(), "abc");
/// ```
pub struct Body(Payload);

impl Body {
    /// No body.
    pub fn empty() -> Body {
        Body(Payload::Empty)
    }

    /// A body of one piece. Its length becomes the `Content-Length`.
    pub fn full(bytes: impl Into<Bytes>) -> Body {
        Body(Payload::from(bytes.into()))
    }

    /// Any other body type. One that is a `Body` already is not wrapped again.
    pub fn new<B>(body: B) -> Body
    where
        B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let mut body = Some(body);
        if let Some(same) = (&mut body as &mut dyn std::any::Any).downcast_mut::<Option<Body>>() {
            return same.take().unwrap_or_default();
        }
        body.map(|body| Body(Payload::new(body))).unwrap_or_default()
    }

    /// The items of a stream, each sent on as soon as the client can take it. An error breaks the response off, so that the
    /// client can tell.
    pub fn from_stream<S, B, E>(stream: S) -> Body
    where
        S: Stream<Item = Result<B, E>> + Send + 'static,
        B: Into<Bytes> + 'static,
        E: Into<BoxError> + 'static,
    {
        Body(Payload::new(Streamed { stream }))
    }

    pub(crate) fn from_payload(payload: Payload) -> Body {
        Body(payload)
    }

    pub(crate) fn into_payload(self) -> Payload {
        self.0
    }

    /// The whole body, if it is at most `limit` bytes long. Trailers are dropped.
    ///
    /// # Errors
    /// [`CollectError::TooLarge`] as soon as the limit is passed (at once, if the length is known before);
    /// [`CollectError::Body`] if the body breaks off. In a handler that returns a `Result`, `?` answers `413` or `400`.
    ///
    /// ```
    /// # use baton_plugin_api::{testing, CollectError, Request};
    /// async fn length(request: Request) -> Result<String, CollectError> {
    ///     let bytes = request.into_body().bytes(1024).await?;
    ///     Ok(format!("{} bytes", bytes.len()))
    /// }
    /// # let plugin = testing::Plugin::start(length);
    /// # assert_eq!(plugin.post("/", "abc").text(), "3 bytes");
    /// # assert_eq!(plugin.post("/", vec![0; 1025]).status(), 413);
    /// ```
    pub async fn bytes(mut self, limit: usize) -> Result<Bytes, CollectError> {
        let too_large = CollectError::TooLarge { limit };
        if http_body::Body::size_hint(&self).lower() > limit as u64 {
            return Err(too_large);
        }
        let Some(first) = self.data().await.transpose().map_err(CollectError::Body)? else { return Ok(Bytes::new()) };
        if first.len() > limit {
            return Err(too_large);
        }
        let Some(mut next) = self.data().await.transpose().map_err(CollectError::Body)? else { return Ok(first) };
        let mut all = BytesMut::from(first);
        loop {
            if all.len() + next.len() > limit {
                return Err(too_large);
            }
            all.extend_from_slice(&next);
            match self.data().await.transpose().map_err(CollectError::Body)? {
                Some(data) => next = data,
                None => return Ok(all.freeze()),
            }
        }
    }

    /// The whole body as text, if it is at most `limit` bytes long.
    ///
    /// # Errors
    /// As [`bytes`](Body::bytes), and [`CollectError::Utf8`].
    pub async fn text(self, limit: usize) -> Result<String, CollectError> {
        String::from_utf8(self.bytes(limit).await?.into()).map_err(|error| CollectError::Utf8(error.utf8_error()))
    }

    /// The whole body read as JSON, if it is at most `limit` bytes long.
    ///
    /// # Errors
    /// As [`bytes`](Body::bytes), and [`CollectError::Json`].
    pub async fn json<T: DeserializeOwned>(self, limit: usize) -> Result<T, CollectError> {
        serde_json::from_slice(&self.bytes(limit).await?).map_err(CollectError::Json)
    }

    /// The next frame: data or, last, trailers. Nothing at the end.
    pub fn frame(&mut self) -> impl Future<Output = Option<Result<Frame<Bytes>, BoxError>>> + Send {
        std::future::poll_fn(|cx| http_body::Body::poll_frame(Pin::new(&mut self.0), cx))
    }

    /// The next piece of data, whatever its size. Nothing at the end; trailers are dropped.
    pub async fn data(&mut self) -> Option<Result<Bytes, BoxError>> {
        loop {
            match self.frame().await? {
                Ok(frame) => match frame.into_data() {
                    Ok(data) => return Some(Ok(data)),
                    Err(_trailers) => continue,
                },
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

impl Default for Body {
    fn default() -> Body {
        Body::empty()
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hint = http_body::Body::size_hint(self);
        f.debug_struct("Body").field("lower", &hint.lower()).field("upper", &hint.upper()).finish()
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.get_mut().0).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

impl<T: Into<Bytes>> From<T> for Body {
    fn from(bytes: T) -> Body {
        Body::full(bytes)
    }
}

pin_project_lite::pin_project! {
    struct Streamed<S> { #[pin] stream: S }
}

impl<S, B, E> http_body::Body for Streamed<S>
where
    S: Stream<Item = Result<B, E>>,
    B: Into<Bytes>,
    E: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let item = self.project().stream.poll_next(cx);
        item.map(|item| item.map(|item| item.map(|data| Frame::data(data.into())).map_err(Into::into)))
    }
}

/// Why a body could not be read as a whole. As a response it is a `413` or a `400`; a `500` if a body that is not the client's
/// failed. [`Failure`](crate::Failure) makes the same of it.
#[derive(Debug)]
#[non_exhaustive]
pub enum CollectError {
    /// It is longer than was allowed.
    TooLarge {
        /// What was allowed, in bytes.
        limit: usize,
    },
    /// It broke off: mostly, the client went away.
    Body(BoxError),
    /// It is no text.
    Utf8(std::str::Utf8Error),
    /// It is not the JSON that was asked for.
    Json(serde_json::Error),
}

impl fmt::Display for CollectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CollectError::TooLarge { limit } => write!(f, "the body is longer than {limit} bytes"),
            CollectError::Body(_) => f.write_str("failed to read the body"),
            CollectError::Utf8(error) => write!(f, "the body is not UTF-8: {error}"),
            CollectError::Json(error) => write!(f, "the body is not the JSON expected: {error}"),
        }
    }
}

impl std::error::Error for CollectError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            CollectError::TooLarge { .. } => Some(&ClientError::TooLarge),
            CollectError::Body(error) => Some(&**error),
            CollectError::Utf8(_) | CollectError::Json(_) => Some(&ClientError::Malformed),
        }
    }
}

impl IntoResponse for CollectError {
    fn into_response(self) -> Response {
        failed_or_refused("the handler failed", &self)
    }
}
