//! The request's body, as the plugin pulls it: never more than `limits.body_size` of it.

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use baton_plugin_api::abi::{
    FRAME_DATA, FRAME_ERROR, FRAME_TRAILERS, FfiBody, FfiBodyVtable, FfiBytes, FfiContext, FfiFrame, FfiSizeHint,
    PANICKED, PENDING, READY,
};
use bytes::Bytes;
use http::HeaderMap;
use http::header::EXPECT;
use hyper::body::{Body as _, Incoming};

use super::quietly;
use super::trailers::write_trailers;
use crate::child::serve::discard::Discard;
use crate::child::serve::exchange::{Exchange, Receiving};

/// What a handler is told of a body above `limits.body_size`.
const TOO_LARGE: &str = "the request body is larger than allowed";

/// What the plugin's [`FfiBody`] stands for. The order of the fields is the order of their drops.
struct Upload {
    incoming: Incoming,
    /// How much may still come.
    left: u64,
    /// Nothing more comes, whatever the reason.
    has_ended: bool,
    /// The client may wait for `100 Continue`: nothing of the body has come.
    awaits_continue: bool,
    receiving: Receiving,
}

static UPLOAD: FfiBodyVtable = FfiBodyVtable { poll_frame: upload_poll, size_hint: upload_hint, drop: upload_drop };

#[inline]
pub(super) fn lend_body(incoming: Incoming, headers: &HeaderMap, exchange: &Exchange) -> FfiBody {
    if incoming.is_end_stream() {
        return FfiBody::EMPTY;
    }
    let receiving = Receiving::new(exchange.clone());
    let (left, awaits_continue) = (receiving.limit(), headers.contains_key(EXPECT));
    let upload = Box::new(Upload { incoming, left, has_ended: false, awaits_continue, receiving });
    // SAFETY: the functions of `UPLOAD` are made for this box.
    unsafe { FfiBody::stream(Box::into_raw(upload), &UPLOAD) }
}

unsafe extern "C" fn upload_poll(data: *mut c_void, cx: *const FfiContext, out: *mut FfiFrame) -> u32 {
    let polled = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: `lend_body` made `data`; the plugin polls it from one thread at a time.
        let upload = unsafe { &mut *data.cast::<Upload>() };
        // SAFETY: the context is lent for this poll.
        let cx = unsafe { &*cx };
        let (polled, len) = cx.with_waker(|waker| {
            let polled = Pin::new(&mut upload.incoming).poll_frame(&mut Context::from_waker(waker));
            let len = match &polled {
                Poll::Ready(Some(Ok(frame))) => {
                    upload.awaits_continue = false;
                    frame.data_ref().map_or(0, Bytes::len)
                }
                Poll::Ready(None | Some(Err(_))) => {
                    upload.has_ended = true;
                    0
                }
                Poll::Pending => 0,
            };
            upload.receiving.note_poll(polled.is_pending().then_some(waker), len);
            (polled, len)
        });
        match upload.left.checked_sub(len as u64) {
            Some(left) => {
                upload.left = left;
                if let Poll::Ready(Some(Err(error))) = &polled {
                    upload.receiving.spoiled(error);
                }
                let trailers = match &polled {
                    Poll::Ready(Some(Ok(frame))) => frame.trailers_ref(),
                    _ => None,
                };
                match trailers.map_or(Ok(()), |trailers| upload.receiving.note_trailers(trailers)) {
                    Ok(()) => polled.map_err(|error| error.to_string()),
                    Err(why) => {
                        upload.has_ended = true;
                        Poll::Ready(Some(Err(why.to_owned())))
                    }
                }
            }
            None => {
                // From now on nothing fits.
                upload.left = 0;
                upload.has_ended = true;
                upload.receiving.refuse();
                Poll::Ready(Some(Err(TOO_LARGE.into())))
            }
        }
    }));
    let frame = match polled {
        Err(_) => return PANICKED,
        Ok(Poll::Pending) => return PENDING,
        Ok(Poll::Ready(frame)) => frame,
    };
    let frame = match frame {
        None => FfiFrame::END,
        Some(Err(error)) => FfiFrame { kind: FRAME_ERROR, bytes: Bytes::from(error).into() },
        Some(Ok(frame)) => match frame.into_data() {
            Ok(data) => FfiFrame { kind: FRAME_DATA, bytes: data.into() },
            Err(frame) => match frame.into_trailers() {
                Ok(trailers) => FfiFrame { kind: FRAME_TRAILERS, bytes: write_trailers(&trailers).into() },
                // hyper has no third kind.
                Err(_) => FfiFrame { kind: FRAME_DATA, bytes: FfiBytes::EMPTY },
            },
        },
    };
    // SAFETY: `out` is the caller's room for one frame.
    unsafe { out.write(frame) };
    READY
}

unsafe extern "C" fn upload_hint(data: *const c_void) -> FfiSizeHint {
    // SAFETY: as in `upload_poll`.
    let hint = unsafe { &*data.cast::<Upload>() }.incoming.size_hint();
    FfiSizeHint { lower: hint.lower(), upper: hint.upper().unwrap_or(u64::MAX) }
}

unsafe extern "C" fn upload_drop(data: *mut c_void) {
    quietly(|| {
        // SAFETY: the box of `lend_body`; the contract of the table is one call.
        let upload = *unsafe { Box::from_raw(data.cast::<Upload>()) };
        if !upload.has_ended {
            let Upload { incoming, left, has_ended: _, awaits_continue, receiving } = upload;
            Discard::begin(incoming, receiving, left, awaits_continue);
        }
    });
}
