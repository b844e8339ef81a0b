//! Bodies: empty, one piece, or a stream that the receiver pulls (so that backpressure crosses by itself).

use std::ffi::c_void;

use abi_stable::StableAbi;

use super::{FfiBytes, FfiContext};

/// The body is empty; `bytes`, `data` and `vtable` mean nothing.
pub const BODY_EMPTY: u32 = 0;
/// The body is `bytes`, whole.
pub const BODY_FULL: u32 = 1;
/// The body is pulled from `data` through `vtable`.
pub const BODY_STREAM: u32 = 2;

/// A request body (host to plugin) or response body (plugin to host). OWNERSHIP: the receiver's; freed through its table.
#[repr(C)]
#[derive(StableAbi)]
pub struct FfiBody {
    /// [`BODY_EMPTY`], [`BODY_FULL`] or [`BODY_STREAM`].
    pub kind: u32,
    pub bytes: FfiBytes,
    pub data: *mut c_void,
    /// Null unless the kind is [`BODY_STREAM`].
    pub vtable: *const FfiBodyVtable,
}

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

// SAFETY: the exporting side puts only `Send` bodies behind this, polled by one thread at a time.
unsafe impl Send for FfiBody {}

impl FfiBody {
    pub const EMPTY: FfiBody =
        FfiBody { kind: BODY_EMPTY, bytes: FfiBytes::EMPTY, data: std::ptr::null_mut(), vtable: std::ptr::null() };

    /// A body of one piece.
    pub fn full(bytes: FfiBytes) -> FfiBody {
        FfiBody { kind: BODY_FULL, bytes, ..FfiBody::EMPTY }
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

impl FfiFrame {
    pub const END: FfiFrame = FfiFrame { kind: FRAME_END, bytes: FfiBytes::EMPTY };
}
