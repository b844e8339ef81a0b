//! The response's body, as hyper pulls it out of the plugin.

use std::pin::Pin;
use std::task::{Context, Poll};

use baton_plugin_api::abi::{
    BodyContent, BodyPanicked, FRAME_DATA, FRAME_END, FRAME_TRAILERS, FfiBody, FfiBodyStream, FfiFrame, FfiSizeHint,
};
use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::BadResponse;
use super::trailers::read_trailers;
use crate::child::plugin::Plugin;
use crate::child::serve::exchange::Answering;
use crate::metrics::Slot;

/// A response's body, as hyper pulls it. Its last field keeps the request counted until it is dropped.
pub struct Body {
    kind: Kind,
    answering: Option<Answering>,
}

enum Kind {
    Empty,
    Full(Bytes),
    Stream { body: FfiBodyStream, plugin: &'static Plugin, left: Option<u64> },
}

/// Why a response broke off. hyper then ends the connection, and the client sees that it is not whole.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("failed to go on with the response of plugin {plugin}: {text}")]
    Failed { plugin: &'static str, text: String },
    #[error("failed to go on with the response of plugin {plugin}: it panicked")]
    Panicked { plugin: &'static str },
    #[error("failed to go on with the response of plugin {plugin}: its trailers are not valid")]
    Trailers { plugin: &'static str },
    #[error(
        "failed to go on with the response of plugin {plugin}: its body is shorter or longer than its content-length"
    )]
    Length { plugin: &'static str },
}

impl Body {
    pub const EMPTY: Body = Body { kind: Kind::Empty, answering: None };

    pub fn from_static(text: &'static str) -> Body {
        Body { kind: Kind::Full(Bytes::from_static(text.as_bytes())), answering: None }
    }

    /// Keeps the request counted as long as this body lives.
    #[inline]
    pub fn hold(&mut self, answering: Answering) {
        self.answering = Some(answering);
    }

    #[inline]
    pub(super) fn import(body: FfiBody, plugin: &'static Plugin) -> Result<Body, BadResponse> {
        let kind = match body.into_content() {
            BodyContent::Empty => Kind::Empty,
            BodyContent::Full(bytes) => match Bytes::from(bytes) {
                bytes if bytes.is_empty() => Kind::Empty,
                bytes => Kind::Full(bytes),
            },
            BodyContent::Stream(body) => Kind::Stream { body, plugin, left: None },
            BodyContent::Unknown(_) => return Err(BadResponse::Body),
        };
        Ok(Body { kind, answering: None })
    }

    /// The head says that so many bytes follow: the body has to keep to it.
    pub(super) fn set_length(&mut self, len: u64) {
        if let Kind::Stream { left, .. } = &mut self.kind {
            *left = Some(len);
        }
    }

    pub(super) fn exact_len(&self) -> Option<u64> {
        http_body::Body::size_hint(self).exact()
    }

    fn poll_stream(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Kind::Stream { body, plugin, left } = &mut self.kind else { return Poll::Ready(None) };
        let plugin = plugin.name();
        let frame = match body.poll_frame(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(frame) => frame,
        };
        let result = match frame {
            Ok(FfiFrame { kind: FRAME_DATA, bytes }) => {
                let bytes = Bytes::from(bytes);
                match left.map(|left| left.checked_sub(bytes.len() as u64)) {
                    Some(None) => Some(Err(BodyError::Length { plugin })),
                    rest => {
                        *left = rest.flatten();
                        return Poll::Ready(Some(Ok(Frame::data(bytes))));
                    }
                }
            }
            Ok(FfiFrame { kind: FRAME_TRAILERS | FRAME_END, .. }) if left.is_some_and(|left| left > 0) => {
                Some(Err(BodyError::Length { plugin }))
            }
            Ok(FfiFrame { kind: FRAME_TRAILERS, bytes }) => match read_trailers(bytes.as_slice()) {
                Some(trailers) => return Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                None => Some(Err(BodyError::Trailers { plugin })),
            },
            Ok(FfiFrame { kind: FRAME_END, .. }) => None,
            Ok(FfiFrame { bytes, .. }) => {
                let text = String::from_utf8_lossy(bytes.as_slice()).into_owned();
                Some(Err(BodyError::Failed { plugin, text }))
            }
            Err(BodyPanicked) => Some(Err(BodyError::Panicked { plugin })),
        };
        self.kind = Kind::Empty;
        if let Some(Err(error)) = &result {
            // The plugin only passes on what became of the request's body: see `Receiving::spoiled`.
            let is_refused = self.answering.as_ref().is_some_and(|answering| answering.exchange().refusal().is_some());
            if is_refused && matches!(error, BodyError::Failed { .. }) {
                tracing::debug!("{error}");
            } else {
                tracing::error!("{error}");
            }
            if let Some(answering) = self.answering.as_ref().filter(|_| !is_refused) {
                answering.exchange().conn().server.metrics.add(Slot::BrokenResponses);
            }
        }
        Poll::Ready(result)
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    #[inline]
    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.kind {
            Kind::Empty => Poll::Ready(None),
            Kind::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                self.kind = Kind::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Kind::Stream { .. } => self.poll_stream(cx),
        }
    }

    #[inline]
    fn is_end_stream(&self) -> bool {
        matches!(self.kind, Kind::Empty)
    }

    #[inline]
    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Stream { left: Some(left), .. } => SizeHint::with_exact(*left),
            Kind::Stream { body, .. } => {
                let FfiSizeHint { lower, upper } = body.size_hint();
                let mut hint = SizeHint::new();
                hint.set_lower(lower);
                if upper != u64::MAX {
                    // A hint that contradicts itself is none.
                    hint.set_upper(upper.max(lower));
                }
                hint
            }
        }
    }
}
