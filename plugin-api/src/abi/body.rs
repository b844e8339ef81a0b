//! Bodies: empty, one piece, or a stream that the receiver pulls (so that backpressure crosses by itself).

use std::ffi::c_void;
use std::mem::ManuallyDrop;
use std::task::{Context, Poll};

use abi_stable::StableAbi;

use super::{FfiBytes, FfiContext, PENDING, READY};

/// The body is empty; `bytes`, `data` and `vtable` mean nothing.
pub const BODY_EMPTY: u32 = 0;
/// The body is `bytes`, whole.
pub const BODY_FULL: u32 = 1;
/// The body is pulled from `data` through `vtable`.
pub const BODY_STREAM: u32 = 2;

/// A request body (host to plugin) or response body (plugin to host). OWNERSHIP: the receiver's; freed through its table.
///
/// The fields are private, since the drop trusts them:
///
/// ```compile_fail,E0451
/// use baton_plugin_api::abi::{BODY_STREAM, FfiBody};
/// let forged = FfiBody { kind: BODY_STREAM, ..FfiBody::EMPTY };
/// ```
#[repr(C)]
#[derive(StableAbi)]
pub struct FfiBody {
    /// [`BODY_EMPTY`], [`BODY_FULL`] or [`BODY_STREAM`].
    kind: u32,
    bytes: FfiBytes,
    data: *mut c_void,
    /// Null unless the kind is [`BODY_STREAM`].
    vtable: *const FfiBodyVtable,
}

/// What an [`FfiBody`] holds.
pub enum BodyContent {
    Empty,
    Full(FfiBytes),
    Stream(FfiBodyStream),
    /// A kind that this side does not know.
    Unknown(u32),
}

/// The streamed body of an [`FfiBody`]: it does not cross itself, and is smaller.
pub struct FfiBodyStream {
    data: *mut c_void,
    vtable: &'static FfiBodyVtable,
    ended: bool,
}

/// The source of a body panicked. The panic was caught and logged there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyPanicked;

#[repr(C)]
#[derive(StableAbi)]
pub struct FfiBodyVtable {
    /// Answers [`PENDING`](super::PENDING), [`READY`](super::READY) (a frame was written to `out`) or
    /// [`PANICKED`](super::PANICKED). After [`FRAME_END`], [`FRAME_ERROR`] or a panic it is only dropped.
    pub poll_frame: unsafe extern "C" fn(data: *mut c_void, cx: *const FfiContext, out: *mut FfiFrame) -> u32,
    pub size_hint: unsafe extern "C" fn(data: *const c_void) -> FfiSizeHint,
    /// OWNERSHIP: called exactly once; dropping a body before its end cancels it.
    pub drop: unsafe extern "C" fn(data: *mut c_void),
}

/// Bytes of data.
pub const FRAME_DATA: u32 = 0;
/// Trailers, as lines `name: value\r\n` (both already valid for HTTP).
pub const FRAME_TRAILERS: u32 = 1;
/// The body ended well.
pub const FRAME_END: u32 = 2;
/// The body failed; the bytes are a message in UTF-8.
pub const FRAME_ERROR: u32 = 3;

/// One step of a streamed body.
#[repr(C)]
#[derive(StableAbi)]
pub struct FfiFrame {
    /// [`FRAME_DATA`], [`FRAME_TRAILERS`], [`FRAME_END`] or [`FRAME_ERROR`].
    pub kind: u32,
    pub bytes: FfiBytes,
}

/// What is known of a body's length, in bytes. Exact when `lower == upper`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, StableAbi)]
pub struct FfiSizeHint {
    pub lower: u64,
    /// `u64::MAX` for "not known".
    pub upper: u64,
}

// SAFETY: `FfiBody::stream` takes only `Send` bodies, and each is polled by one thread at a time.
unsafe impl Send for FfiBody {}
// SAFETY: as above.
unsafe impl Send for FfiBodyStream {}

impl FfiBody {
    pub const EMPTY: FfiBody =
        FfiBody { kind: BODY_EMPTY, bytes: FfiBytes::EMPTY, data: std::ptr::null_mut(), vtable: std::ptr::null() };

    /// A body of one piece.
    #[inline]
    pub fn full(bytes: FfiBytes) -> FfiBody {
        FfiBody { kind: BODY_FULL, bytes, ..FfiBody::EMPTY }
    }

    /// A body that is pulled from `source`.
    ///
    /// # Safety
    /// The functions of `vtable` may be called with `source` as its documentation says, until its `drop`.
    #[inline]
    pub unsafe fn stream<S: Send + 'static>(source: *mut S, vtable: &'static FfiBodyVtable) -> FfiBody {
        FfiBody { kind: BODY_STREAM, bytes: FfiBytes::EMPTY, data: source.cast(), vtable }
    }

    /// Takes it apart.
    #[inline]
    pub fn into_content(self) -> BodyContent {
        let mut body = ManuallyDrop::new(self);
        let bytes = std::mem::replace(&mut body.bytes, FfiBytes::EMPTY);
        match body.kind {
            BODY_EMPTY => BodyContent::Empty,
            BODY_FULL => BodyContent::Full(bytes),
            // SAFETY: a table that is not null is a static of the side that made the body, which is never unloaded.
            BODY_STREAM => match unsafe { body.vtable.as_ref() } {
                Some(vtable) => BodyContent::Stream(FfiBodyStream { data: body.data, vtable, ended: false }),
                None => BodyContent::Unknown(BODY_STREAM),
            },
            kind => BodyContent::Unknown(kind),
        }
    }
}

impl Drop for FfiBody {
    fn drop(&mut self) {
        if self.kind == BODY_STREAM && !self.vtable.is_null() {
            // SAFETY: a stream's table is a static of the side that made it; this is the one call.
            unsafe { ((*self.vtable).drop)(self.data) }
        }
    }
}

impl FfiBodyStream {
    /// Pulls the next frame. After the last one, an error or a panic the source is not called again: the answer is
    /// [`FfiFrame::END`].
    #[inline]
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<FfiFrame, BodyPanicked>> {
        if self.ended {
            return Poll::Ready(Ok(FfiFrame::END));
        }
        let mut frame = FfiFrame::END;
        let lent = FfiContext::lend(cx.waker());
        // SAFETY: `stream` vouched for table and data; the body has not ended; `&mut self` makes this the only poll; context
        // and frame are lent for the call.
        match unsafe { (self.vtable.poll_frame)(self.data, lent.as_ptr(), &raw mut frame) } {
            PENDING => Poll::Pending,
            READY => {
                self.ended = !matches!(frame.kind, FRAME_DATA | FRAME_TRAILERS);
                Poll::Ready(Ok(frame))
            }
            _ => {
                self.ended = true;
                Poll::Ready(Err(BodyPanicked))
            }
        }
    }

    /// Whether nothing more comes.
    #[inline]
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    #[inline]
    pub fn size_hint(&self) -> FfiSizeHint {
        // SAFETY: `stream` vouched for table and data; a poll needs `&mut self`, so none runs now.
        unsafe { (self.vtable.size_hint)(self.data) }
    }
}

impl From<FfiBodyStream> for FfiBody {
    #[inline]
    fn from(stream: FfiBodyStream) -> FfiBody {
        if stream.ended {
            return FfiBody::EMPTY;
        }
        let stream = ManuallyDrop::new(stream);
        FfiBody { kind: BODY_STREAM, bytes: FfiBytes::EMPTY, data: stream.data, vtable: stream.vtable }
    }
}

impl Drop for FfiBodyStream {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: this is the one call: whoever moves the data elsewhere forgets the value.
        unsafe { (self.vtable.drop)(self.data) }
    }
}

impl FfiFrame {
    pub const END: FfiFrame = FfiFrame { kind: FRAME_END, bytes: FfiBytes::EMPTY };
}
