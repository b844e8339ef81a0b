//! A plugin in this process: the plugin's side of the ABI, written by hand, around an async closure.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use baton_plugin_api::abi::*;
use bytes::Bytes;

use crate::child::bridge::{CLIENT, UPGRADE};
use crate::child::plugin::Plugin;

pub struct Asked {
    pub head: RequestHead,
    pub body: FfiBody,
}

pub struct Reply {
    pub status: u32,
    pub headers: Vec<(String, String)>,
    pub body: FfiBody,
}

type Answering = Pin<Box<dyn Future<Output = Reply> + Send>>;
type Handler = Box<dyn Fn(Asked) -> Answering + Send + Sync>;

/// A plugin that answers with `handler`.
pub fn plugin<F>(handler: impl Fn(Asked) -> F + Send + Sync + 'static) -> &'static Plugin
where
    F: Future<Output = Reply> + Send + 'static,
{
    let handler: Handler = Box::new(move |asked| Box::pin(handler(asked)));
    Plugin::fake("fake", PluginHandle::new(Box::leak(Box::new(handler))), call)
}

unsafe extern "C" fn call(plugin: PluginHandle, head: RequestHead, body: FfiBody) -> FfiFuture {
    // SAFETY: `plugin` above made the handle and never frees it.
    let handler = unsafe { &*plugin.as_ptr().cast::<Handler>() };
    let future = handler(Asked { head, body });
    // SAFETY: the functions of `FUTURE` are made for this box.
    unsafe { FfiFuture::new(Box::into_raw(Box::new(future)), &FUTURE) }
}

static FUTURE: FfiFutureVtable = FfiFutureVtable { poll: future_poll, drop: future_drop };

unsafe extern "C" fn future_poll(data: *mut c_void, cx: *const FfiContext, sink: *const ResponseSink) -> u32 {
    // SAFETY: `call` made `data`; context and sink are lent for this call.
    let (future, cx, sink) = unsafe { (&mut *data.cast::<Answering>(), &*cx, &*sink) };
    let poll =
        catch_unwind(AssertUnwindSafe(|| cx.with_waker(|waker| future.as_mut().poll(&mut Context::from_waker(waker)))));
    match poll {
        Err(_) => PANICKED,
        Ok(Poll::Pending) => PENDING,
        Ok(Poll::Ready(reply)) => {
            let fields: Vec<HeaderRef> = reply
                .headers
                .iter()
                .map(|(name, value)| HeaderRef {
                    name: name.as_ptr(),
                    value: value.as_ptr(),
                    name_len: name.len() as u32,
                    value_len: value.len() as u32,
                })
                .collect();
            let head =
                ResponseHead { status: reply.status, header_count: fields.len() as u32, headers: fields.as_ptr() };
            // SAFETY: the sink takes one call, with a head that is borrowed for it.
            unsafe { (sink.send)(sink.context, &head, reply.body) };
            READY
        }
    }
}

unsafe extern "C" fn future_drop(data: *mut c_void) {
    // SAFETY: the box of `call`, dropped once.
    drop(unsafe { Box::from_raw(data.cast::<Answering>()) });
}

impl Asked {
    pub fn method(&self) -> &str {
        std::str::from_utf8(self.head.method()).unwrap()
    }

    pub fn target(&self) -> &str {
        self.head.target()
    }

    pub fn header(&self, name: &str) -> Option<String> {
        self.head.header(name).map(|value| String::from_utf8_lossy(value).into_owned())
    }

    pub fn headers(&self) -> Vec<(String, String)> {
        let mut room = Vec::new();
        room.resize_with(self.head.header_count(), std::mem::MaybeUninit::uninit);
        let text = |ptr, len| {
            // SAFETY: the fields live as long as the head.
            String::from_utf8_lossy(unsafe { Slice { ptr, len }.as_bytes() }).into_owned()
        };
        self.head
            .headers(&mut room)
            .iter()
            .map(|field| (text(field.name, field.name_len as usize), text(field.value, field.value_len as usize)))
            .collect()
    }

    /// Ends once the client has closed, as a plugin waits for it.
    pub fn client_closed(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut signal = std::mem::MaybeUninit::uninit();
        // SAFETY: the head is alive, and there is room for one signal.
        let made = unsafe { (CLIENT.closed)(std::ptr::null(), self.head.data(), signal.as_mut_ptr()) };
        assert_eq!(made, 1);
        // SAFETY: the answer says that it was written.
        let mut signal: FfiSignal = unsafe { signal.assume_init() };
        poll_fn(move |cx| signal.poll(cx))
    }

    /// Claims what the connection becomes, as a plugin does.
    pub fn claim(&self) -> Option<FfiStream> {
        let mut stream = std::mem::MaybeUninit::uninit();
        // SAFETY: the head is alive, and there is room for one stream.
        let claimed = unsafe { (UPGRADE.claim)(std::ptr::null(), self.head.data(), stream.as_mut_ptr()) };
        // SAFETY: the answer says that it was written.
        (claimed == 1).then(|| unsafe { stream.assume_init() })
    }

    pub fn fact(&self, fact: u32) -> Option<Vec<u8>> {
        self.head.fact(fact).map(<[u8]>::to_vec)
    }
}

/// The next frame of a body: its kind and bytes.
pub async fn frame(body: &mut FfiBody) -> (u32, Bytes) {
    poll_fn(|cx| poll_frame(body, cx)).await
}

fn poll_frame(body: &mut FfiBody, cx: &mut Context<'_>) -> Poll<(u32, Bytes)> {
    match std::mem::replace(body, FfiBody::EMPTY).into_content() {
        BodyContent::Full(bytes) => Poll::Ready((FRAME_DATA, bytes.into())),
        BodyContent::Stream(mut stream) => {
            let polled = stream.poll_frame(cx);
            *body = stream.into();
            polled.map(|frame| frame.expect("the host's body panicked")).map(|frame| (frame.kind, frame.bytes.into()))
        }
        BodyContent::Empty | BodyContent::Unknown(_) => Poll::Ready((FRAME_END, Bytes::new())),
    }
}

/// All data of a body, and its trailers; an error if it broke off.
pub async fn read(body: &mut FfiBody) -> Result<(Vec<u8>, Option<Bytes>), String> {
    let (mut data, mut trailers) = (Vec::new(), None);
    loop {
        match frame(body).await {
            (FRAME_DATA, bytes) => data.extend_from_slice(&bytes),
            (FRAME_TRAILERS, bytes) => trailers = Some(bytes),
            (FRAME_ERROR, bytes) => return Err(String::from_utf8_lossy(&bytes).into_owned()),
            _ => return Ok((data, trailers)),
        }
    }
}

// ---- responses ----

pub fn reply(status: u32, body: impl Into<Bytes>) -> Reply {
    Reply { status, headers: Vec::new(), body: FfiBody::full(body.into().into()) }
}

impl Reply {
    pub fn header(mut self, name: &str, value: &str) -> Reply {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn body(mut self, body: FfiBody) -> Reply {
        self.body = body;
        self
    }
}

/// One step of a made-up stream.
pub enum Step {
    Data(Bytes),
    Trailers(&'static str),
    Error(&'static str),
    Panic,
    End,
}

type Steps = Box<dyn FnMut(&mut Context<'_>) -> Poll<Step> + Send>;

/// A body that is streamed by `steps`; `len` if it is known.
pub fn stream(len: Option<u64>, steps: impl FnMut(&mut Context<'_>) -> Poll<Step> + Send + 'static) -> FfiBody {
    let stream = Box::new((len, Box::new(steps) as Steps));
    // SAFETY: the functions of `STREAM` are made for this box.
    unsafe { FfiBody::stream(Box::into_raw(stream), &STREAM) }
}

static STREAM: FfiBodyVtable = FfiBodyVtable { poll_frame: stream_poll, size_hint: stream_hint, drop: stream_drop };

unsafe extern "C" fn stream_poll(data: *mut c_void, cx: *const FfiContext, out: *mut FfiFrame) -> u32 {
    // SAFETY: `stream` made `data`; context and frame are lent for the call.
    let (stream, cx, out) = unsafe { (&mut *data.cast::<(Option<u64>, Steps)>(), &*cx, &mut *out) };
    let step = cx.with_waker(|waker| (stream.1)(&mut Context::from_waker(waker)));
    let Poll::Ready(step) = step else { return PENDING };
    let (kind, bytes) = match step {
        Step::Data(bytes) => (FRAME_DATA, bytes),
        Step::Trailers(lines) => (FRAME_TRAILERS, Bytes::from_static(lines.as_bytes())),
        Step::Error(text) => (FRAME_ERROR, Bytes::from_static(text.as_bytes())),
        Step::Panic => return PANICKED,
        Step::End => (FRAME_END, Bytes::new()),
    };
    *out = FfiFrame { kind, bytes: bytes.into() };
    READY
}

unsafe extern "C" fn stream_hint(data: *const c_void) -> FfiSizeHint {
    // SAFETY: as in `stream_poll`.
    let len = unsafe { &*data.cast::<(Option<u64>, Steps)>() }.0;
    FfiSizeHint { lower: len.unwrap_or(0), upper: len.unwrap_or(u64::MAX) }
}

unsafe extern "C" fn stream_drop(data: *mut c_void) {
    // SAFETY: the box of `stream`, dropped once.
    drop(unsafe { Box::from_raw(data.cast::<(Option<u64>, Steps)>()) });
}

/// The first `count` bytes of a buffer's room, which a stream has filled.
pub fn filled(mut room: Vec<u8>, count: usize) -> Vec<u8> {
    assert!(room.is_empty() && count <= room.capacity());
    // SAFETY: so many bytes were initialised, as the stream has said.
    unsafe { room.set_len(count) };
    room
}
