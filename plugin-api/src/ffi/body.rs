//! Bodies in both directions: the host's as an `http_body::Body`, ours as an [`FfiBody`], and neither wrapped twice.

use std::ffi::c_void;
use std::fmt;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Body, Frame, SizeHint};

use super::context::{Context, guard};
use super::{BoxError, error_text};
use crate::abi::{
    self, BodyContent, BodyPanicked, FfiBody, FfiBodyStream, FfiBodyVtable, FfiBytes, FfiContext, FfiFrame, FfiSizeHint,
};

type DynBody = Pin<Box<dyn Body<Data = Bytes, Error = BoxError> + Send>>;

/// A body of either side.
pub enum Payload {
    Empty,
    Full(Bytes),
    /// From the host; given back, it crosses as it is.
    Incoming(Incoming),
    Local(Local),
}

/// A body that failed on the host's side: the client went away, or sent something that is not HTTP.
#[derive(Debug)]
pub struct BodyError {
    text: String,
    origin: ErrorOrigin,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ErrorOrigin {
    Client,
    Host,
}

impl BodyError {
    /// Whether the client is at fault, and not the host.
    pub(crate) fn is_client_error(&self) -> bool {
        self.origin == ErrorOrigin::Client
    }
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for BodyError {}

/// Makes any value `Sync`, since a shared reference to this gives access to nothing. So a request can be borrowed across
/// an `await`.
struct Exclusive<T>(T);

// SAFETY: there is no way from `&Exclusive<T>` to a `&T`.
unsafe impl<T> Sync for Exclusive<T> {}

/// A streamed body of the host.
pub struct Incoming {
    stream: Exclusive<FfiBodyStream>,
    hint: SizeHint,
    ended: bool,
}

/// A body of this side. What `Body` answers through a shared reference is kept beside it.
pub struct Local {
    body: Exclusive<DynBody>,
    hint: SizeHint,
    ended: bool,
}

impl From<FfiBody> for Payload {
    fn from(body: FfiBody) -> Payload {
        match body.into_content() {
            BodyContent::Full(bytes) => Payload::from(Bytes::from(bytes)),
            BodyContent::Stream(stream) => {
                let hint = import_hint(stream.size_hint());
                Payload::Incoming(Incoming { stream: Exclusive(stream), hint, ended: false })
            }
            BodyContent::Empty | BodyContent::Unknown(_) => Payload::Empty,
        }
    }
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Payload {
        if bytes.is_empty() { Payload::Empty } else { Payload::Full(bytes) }
    }
}

fn import_hint(hint: FfiSizeHint) -> SizeHint {
    let mut out = SizeHint::new();
    out.set_lower(hint.lower);
    if hint.upper != u64::MAX && hint.upper >= hint.lower {
        out.set_upper(hint.upper);
    }
    out
}

fn export_hint(hint: &SizeHint) -> FfiSizeHint {
    FfiSizeHint { lower: hint.lower(), upper: hint.upper().unwrap_or(u64::MAX) }
}

/// What remains of `hint` after `length` bytes.
fn shrink(hint: &SizeHint, length: usize) -> SizeHint {
    let length = length as u64;
    let mut out = SizeHint::new();
    out.set_lower(hint.lower().saturating_sub(length));
    if let Some(upper) = hint.upper() {
        out.set_upper(upper.saturating_sub(length));
    }
    out
}

// ---- a body of this side ----

pin_project_lite::pin_project! {
    /// A body with its error type erased.
    struct Erased<B> { #[pin] body: B }
}

impl<B: Body<Data = Bytes, Error: Into<BoxError>>> Body for Erased<B> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.project().body.poll_frame(cx).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Payload {
    /// Takes any body.
    pub fn new<B>(body: B) -> Payload
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let (hint, ended) = (body.size_hint(), body.is_end_stream());
        if ended {
            return Payload::Empty;
        }
        Payload::Local(Local { body: Exclusive(Box::pin(Erased { body })), hint, ended })
    }
}

impl Local {
    fn poll_frame(&mut self, cx: &mut TaskContext<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let poll = self.body.0.as_mut().poll_frame(cx);
        self.ended = matches!(poll, Poll::Ready(None | Some(Err(_)))) || self.body.0.is_end_stream();
        self.hint = self.body.0.size_hint();
        poll
    }
}

// ---- a body of the host ----

impl Incoming {
    fn poll_frame(&mut self, cx: &mut TaskContext<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let frame = match self.stream.0.poll_frame(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(frame)) => frame,
            Poll::Ready(Err(BodyPanicked)) => {
                self.ended = true;
                let text = "the source of the body panicked".into();
                return Poll::Ready(Some(Err(BodyError { text, origin: ErrorOrigin::Host }.into())));
            }
        };
        self.ended = !matches!(frame.kind, abi::FRAME_DATA | abi::FRAME_TRAILERS);
        Poll::Ready(match frame.kind {
            abi::FRAME_DATA => {
                let data = Bytes::from(frame.bytes);
                self.hint = shrink(&self.hint, data.len());
                Some(Ok(Frame::data(data)))
            }
            abi::FRAME_TRAILERS => Some(Ok(Frame::trailers(read_trailers(frame.bytes.as_slice())))),
            abi::FRAME_END => None,
            _ => {
                let text = String::from_utf8_lossy(frame.bytes.as_slice()).into_owned();
                Some(Err(BodyError { text, origin: ErrorOrigin::Client }.into()))
            }
        })
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let payload = self.get_mut();
        match payload {
            Payload::Empty => Poll::Ready(None),
            Payload::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                *payload = Payload::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Payload::Incoming(incoming) => incoming.poll_frame(cx),
            Payload::Local(local) => local.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Payload::Empty => true,
            Payload::Full(_) => false,
            Payload::Incoming(incoming) => incoming.ended,
            Payload::Local(local) => local.ended,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Payload::Empty => SizeHint::with_exact(0),
            Payload::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Payload::Incoming(incoming) => incoming.hint,
            Payload::Local(local) => local.hint,
        }
    }
}

// ---- going out ----

type Item = Option<Result<Frame<Bytes>, BoxError>>;

/// A body that is about to cross, with what was read of it ahead.
pub struct Outgoing {
    payload: Payload,
    first: Option<Box<Item>>,
}

/// A body whose exact length is known and not above this is read before it crosses: most are one piece already, and cross
/// as such instead of as a stream.
const READ_AHEAD: u64 = 64 * 1024;

impl Payload {
    /// Readies the body for crossing. Reads one frame at most, and only of a short body.
    pub fn settle(mut self, cx: &mut TaskContext<'_>) -> Outgoing {
        let Payload::Local(local) = &mut self else { return Outgoing { payload: self, first: None } };
        if local.hint.exact().is_none_or(|length| length > READ_AHEAD) {
            return Outgoing { payload: self, first: None };
        }
        match local.poll_frame(cx) {
            // It is polled again when the host pulls.
            Poll::Pending => Outgoing { payload: self, first: None },
            Poll::Ready(None) => Outgoing { payload: Payload::Empty, first: None },
            Poll::Ready(Some(Ok(frame))) if local.ended && frame.is_data() => {
                let bytes = frame.into_data().unwrap_or_default();
                Outgoing { payload: Payload::from(bytes), first: None }
            }
            Poll::Ready(item) => Outgoing { payload: self, first: Some(Box::new(item)) },
        }
    }
}

impl Outgoing {
    /// Lets the body cross. The host's polls then run in `context`.
    pub fn export(self, context: Context) -> FfiBody {
        match self.payload {
            Payload::Empty => FfiBody::EMPTY,
            Payload::Full(bytes) => FfiBody::full(FfiBytes::from(bytes)),
            Payload::Incoming(incoming) if incoming.ended => FfiBody::EMPTY,
            Payload::Incoming(incoming) => incoming.stream.0.into(),
            Payload::Local(body) => {
                let stream = Box::new(Stream { context, body, first: self.first });
                // SAFETY: the functions of `STREAM` are made for this box.
                unsafe { FfiBody::stream(Box::into_raw(stream), &STREAM) }
            }
        }
    }
}

/// What a streamed [`FfiBody`] of ours points to.
struct Stream {
    context: Context,
    body: Local,
    first: Option<Box<Item>>,
}

static STREAM: FfiBodyVtable =
    FfiBodyVtable { poll_frame: stream_poll, size_hint: stream_size_hint, drop: stream_drop };

unsafe extern "C" fn stream_poll(data: *mut c_void, cx: *const FfiContext, out: *mut FfiFrame) -> u32 {
    // SAFETY: `data` is the box of `export`, alive until `stream_drop`; one thread polls at a time.
    let stream = unsafe { &mut *data.cast::<Stream>() };
    let Stream { context, body, first } = stream;
    let poll = guard(*context, || {
        let poll = match first.take() {
            Some(item) => Poll::Ready(*item),
            // SAFETY: the context is alive for this call.
            None => unsafe { &*cx }.with_waker(|waker| body.poll_frame(&mut TaskContext::from_waker(waker))),
        };
        poll.map(export_item)
    });
    match poll {
        Ok(Poll::Pending) => abi::PENDING,
        Ok(Poll::Ready(frame)) => {
            // SAFETY: `out` is the host's room for one frame.
            unsafe { out.write(frame) };
            abi::READY
        }
        Err(_) => abi::PANICKED,
    }
}

fn export_item(item: Item) -> FfiFrame {
    match item {
        None => FfiFrame::END,
        Some(Err(error)) => {
            FfiFrame { kind: abi::FRAME_ERROR, bytes: FfiBytes::from(Bytes::from(error_text(&*error))) }
        }
        Some(Ok(frame)) => match frame.into_data() {
            Ok(data) => FfiFrame { kind: abi::FRAME_DATA, bytes: FfiBytes::from(data) },
            Err(frame) => {
                let trailers = frame.into_trailers().unwrap_or_default();
                FfiFrame { kind: abi::FRAME_TRAILERS, bytes: FfiBytes::from(Bytes::from(write_trailers(&trailers))) }
            }
        },
    }
}

unsafe extern "C" fn stream_size_hint(data: *const c_void) -> FfiSizeHint {
    // SAFETY: `data` is the box of `export`, alive until `stream_drop`; no poll runs at the same time.
    let stream = unsafe { &*data.cast::<Stream>() };
    let mut hint = stream.body.hint;
    if let Some(Some(Ok(frame))) = stream.first.as_deref()
        && let Some(data) = frame.data_ref()
    {
        let read = data.len() as u64;
        let upper = hint.upper().map(|upper| upper.saturating_add(read));
        hint.set_lower(0);
        if let Some(upper) = upper {
            hint.set_upper(upper);
        }
        hint.set_lower(stream.body.hint.lower().saturating_add(read));
    }
    export_hint(&hint)
}

unsafe extern "C" fn stream_drop(data: *mut c_void) {
    // SAFETY: `data` is the box of `export`; the contract of the table is one call.
    let stream = unsafe { Box::from_raw(data.cast::<Stream>()) };
    // A panic in the author's `Drop` has been logged; there is nothing left to tell the host.
    let _ = guard(stream.context, || drop(stream));
}

// ---- trailers ----

fn write_trailers(trailers: &HeaderMap) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in trailers {
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out
}

fn read_trailers(lines: &[u8]) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    for line in lines.split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let value = line[colon + 1..].trim_ascii();
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(value)) {
            trailers.append(name, value);
        }
    }
    trailers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trailers_cross_as_lines() {
        let mut trailers = HeaderMap::new();
        trailers.append("x-sum", HeaderValue::from_static("a: b"));
        trailers.append("x-sum", HeaderValue::from_static("c"));
        trailers.append("x-none", HeaderValue::from_static(""));
        assert_eq!(read_trailers(&write_trailers(&trailers)), trailers);
        assert!(read_trailers(b"").is_empty());
        assert!(read_trailers(b"no colon\r\n").is_empty());
    }

    #[test]
    fn a_hint_shrinks_with_what_was_read() {
        let hint = shrink(&SizeHint::with_exact(10), 4);
        assert_eq!(hint.exact(), Some(6));
        assert_eq!(import_hint(export_hint(&SizeHint::new())).upper(), None);
        assert_eq!(import_hint(FfiSizeHint { lower: 5, upper: 3 }).upper(), None, "a hint that cannot be is ignored");
    }
}
