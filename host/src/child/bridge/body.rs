//! The response's body, as hyper pulls it out of the plugin.

use std::pin::Pin;
use std::task::{Context, Poll};

use baton_plugin_api::abi::{
    BODY_EMPTY, BODY_FULL, BODY_STREAM, FRAME_DATA, FRAME_END, FRAME_TRAILERS, FfiBody, FfiBytes, FfiContext, FfiFrame,
    FfiSizeHint, PENDING, READY,
};
use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::BadResponse;
use super::trailers::read_trailers;
use crate::child::plugin::Plugin;
use crate::child::serve::exchange::Answering;

/// A response's body, as hyper pulls it. Its last field keeps the request counted until it is dropped.
pub struct Body {
    kind: Kind,
    answering: Option<Answering>,
}

enum Kind {
    Empty,
    Full(Bytes),
    Stream { body: FfiBody, plugin: &'static Plugin },
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
}

impl Body {
    pub(super) const EMPTY: Body = Body { kind: Kind::Empty, answering: None };

    pub fn from_static(text: &'static str) -> Body {
        Body { kind: Kind::Full(Bytes::from_static(text.as_bytes())), answering: None }
    }

    /// Keeps the request counted as long as this body lives.
    #[inline]
    pub fn hold(&mut self, answering: Answering) {
        self.answering = Some(answering);
    }

    #[inline]
    pub(super) fn import(mut body: FfiBody, plugin: &'static Plugin) -> Result<Body, BadResponse> {
        let kind = match body.kind {
            BODY_EMPTY => Kind::Empty,
            BODY_FULL => {
                let bytes = Bytes::from(std::mem::replace(&mut body.bytes, FfiBytes::EMPTY));
                if bytes.is_empty() { Kind::Empty } else { Kind::Full(bytes) }
            }
            BODY_STREAM if !body.vtable.is_null() => Kind::Stream { body, plugin },
            _ => return Err(BadResponse::Body),
        };
        Ok(Body { kind, answering: None })
    }

    pub(super) fn exact_len(&self) -> Option<u64> {
        http_body::Body::size_hint(self).exact()
    }

    fn poll_stream(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Kind::Stream { body, plugin } = &mut self.kind else { return Poll::Ready(None) };
        let plugin = plugin.name();
        let mut frame = FfiFrame::END;
        let ffi_cx = FfiContext::lend(cx.waker());
        // SAFETY: a stream's table is a static of the plugin; the body has not ended (it is dropped when it does) and is
        // polled from one thread at a time; context and frame are lent for the call.
        let polled = unsafe { ((*body.vtable).poll_frame)(body.data, &raw const ffi_cx, &raw mut frame) };
        let result = match (polled, frame.kind) {
            (PENDING, _) => return Poll::Pending,
            (READY, FRAME_DATA) => return Poll::Ready(Some(Ok(Frame::data(frame.bytes.into())))),
            (READY, FRAME_TRAILERS) => match read_trailers(frame.bytes.as_slice()) {
                Some(trailers) => return Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                None => Some(Err(BodyError::Trailers { plugin })),
            },
            (READY, FRAME_END) => None,
            (READY, _) => {
                let text = String::from_utf8_lossy(frame.bytes.as_slice()).into_owned();
                Some(Err(BodyError::Failed { plugin, text }))
            }
            (_, _) => Some(Err(BodyError::Panicked { plugin })),
        };
        self.kind = Kind::Empty;
        if let Some(Err(error)) = &result {
            tracing::error!("{error}");
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
            Kind::Stream { body, .. } => {
                // SAFETY: as in `poll_stream`.
                let FfiSizeHint { lower, upper } = unsafe { ((*body.vtable).size_hint)(body.data) };
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
