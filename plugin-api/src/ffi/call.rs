//! One request across the boundary: its future in a box, polled by the host, ending in one call of the host's sink.

use std::ffi::c_void;
use std::future::Future;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};

use tokio::task::JoinHandle;

use super::context::{Context, catch, guard, within};
use super::{App, Head, Instance, Payload, Reply};
use crate::abi::{
    self, FfiBody, FfiContext, FfiFuture, FfiFutureVtable, HeaderRef, RequestHead, ResponseHead, ResponseSink,
    SENSITIVE,
};

/// Makes the future of a request. `SPAWN`: it runs on the plugin's own threads instead of the host's.
pub fn request<A: App, const SPAWN: bool>(
    instance: &'static Instance,
    app: &'static A,
    head: RequestHead,
    body: FfiBody,
) -> FfiFuture {
    let context = instance.context(head.request_id());
    let future = catch(|| {
        let future = app.call(Head::new(head), Payload::from(body));
        if SPAWN { export(context, Spawned::new(context, instance, future)) } else { export(context, future) }
    });
    // SAFETY: the functions of `FAILED` ignore what they are called with.
    future.unwrap_or_else(|_| unsafe { FfiFuture::new(std::ptr::null_mut::<()>(), &FAILED) })
}

/// Lets a future cross. Polls and the drop run in `context`.
pub fn export<F>(context: Context, future: F) -> FfiFuture
where
    F: Future<Output: Output> + Send + 'static,
{
    let task = Box::new(Task { context, future: Some(future) });
    // SAFETY: the functions of this table are made for this box.
    unsafe { FfiFuture::new(Box::into_raw(task), &Task::<F>::VTABLE) }
}

/// What a [`FfiFuture`] of ours points to. Pinned by its box.
struct Task<F> {
    context: Context,
    /// Dropped as soon as it is done, while the runtime is entered anyway.
    future: Option<F>,
}

impl<F> Task<F>
where
    F: Future<Output: Output> + Send + 'static,
{
    const VTABLE: FfiFutureVtable = FfiFutureVtable { poll: Self::poll, drop: Self::drop };

    unsafe extern "C" fn poll(data: *mut c_void, cx: *const FfiContext, sink: *const ResponseSink) -> u32 {
        // SAFETY: `data` is the box of `export`, alive until `drop`; one thread polls at a time.
        let task = unsafe { &mut *data.cast::<Self>() };
        let Task { context, future } = task;
        let poll = guard(*context, || {
            // SAFETY: the future stays in its box until it is dropped in place, by `set` below or with the box.
            let mut future = unsafe { Pin::new_unchecked(future) };
            // SAFETY: the context is alive for this call.
            unsafe { &*cx }.with_waker(|waker| {
                let mut cx = TaskContext::from_waker(waker);
                let running = future.as_mut().as_pin_mut().expect("the host does not poll a future that is done");
                let Poll::Ready(output) = running.poll(&mut cx) else { return Poll::Pending };
                future.set(None);
                // SAFETY: the sink is the host's and alive for this call, or null for futures without a response.
                unsafe { output.send(&mut cx, *context, sink) };
                Poll::Ready(())
            })
        });
        match poll {
            Ok(Poll::Pending) => abi::PENDING,
            Ok(Poll::Ready(())) => abi::READY,
            Err(_) => abi::PANICKED,
        }
    }

    unsafe extern "C" fn drop(data: *mut c_void) {
        // SAFETY: `data` is the box of `export`; the contract of the table is one call.
        let task = unsafe { Box::from_raw(data.cast::<Self>()) };
        if task.future.is_some() {
            // A panic in the author's `Drop` has been logged; there is nothing left to tell the host.
            let _ = guard(task.context, || drop(task));
        }
    }
}

/// For a future that could not even be made.
static FAILED: FfiFutureVtable = FfiFutureVtable { poll: failed_poll, drop: failed_drop };

unsafe extern "C" fn failed_poll(_: *mut c_void, _: *const FfiContext, _: *const ResponseSink) -> u32 {
    abi::PANICKED
}

unsafe extern "C" fn failed_drop(_: *mut c_void) {}

/// What a future that crosses may end with.
pub trait Output {
    /// Hands it to the host; the last step that may run the author's code, and in it before the host is called.
    ///
    /// # Safety
    /// `sink` is alive and has not been called, or null.
    unsafe fn send(self, cx: &mut TaskContext<'_>, context: Context, sink: *const ResponseSink);
}

impl Output for () {
    unsafe fn send(self, _: &mut TaskContext<'_>, _: Context, _: *const ResponseSink) {}
}

/// Up to this many header fields are lent without an allocation.
const INLINE_HEADERS: usize = 16;

impl Output for Reply {
    unsafe fn send(mut self, cx: &mut TaskContext<'_>, context: Context, sink: *const ResponseSink) {
        if sink.is_null() {
            return;
        }
        let body = std::mem::replace(&mut self.body, Payload::Empty).settle(cx).export(context);
        let count = self.headers.len() + usize::from(self.content_type.is_some());
        let mut inline = [const { MaybeUninit::<HeaderRef>::uninit() }; INLINE_HEADERS];
        let mut heap = Vec::new();
        let out: &mut [MaybeUninit<HeaderRef>] = if count <= INLINE_HEADERS {
            &mut inline
        } else {
            heap.resize_with(count, MaybeUninit::uninit);
            &mut heap
        };
        let mut written = 0;
        if let Some(value) = self.content_type {
            out[0].write(lend("content-type", value.as_bytes(), false));
            written = 1;
        }
        for (name, value) in &self.headers {
            out[written].write(lend(name.as_str(), value.as_bytes(), value.is_sensitive()));
            written += 1;
        }
        let head = ResponseHead {
            status: self.status.as_u16().into(),
            // A `HeaderMap` holds at most 32,768 fields.
            header_count: written as u32,
            headers: out.as_ptr().cast(),
        };
        // SAFETY: the caller vouches for the sink; the first `written` fields are written, and borrow from `self`, which
        // outlives the call.
        unsafe { ((*sink).send)((*sink).context, &head, body) }
    }
}

fn lend(name: &str, value: &[u8], sensitive: bool) -> HeaderRef {
    HeaderRef {
        name: name.as_ptr(),
        value: value.as_ptr(),
        // The longest name that `http` allows is 64 KiB; a value of 2 GiB would not have been sent either.
        name_len: name.len() as u32,
        value_len: (value.len() as u32 & !SENSITIVE) | if sensitive { SENSITIVE } else { 0 },
    }
}

// ---- `runtime = "spawn"` ----

/// A request that runs as a task of the plugin's runtime; dropping it cancels the task.
struct Spawned<F: Future> {
    start: Option<(Context, &'static Instance, F)>,
    task: Option<JoinHandle<Option<F::Output>>>,
}

impl<F: Future> Spawned<F> {
    fn new(context: Context, instance: &'static Instance, future: F) -> Spawned<F> {
        Spawned { start: Some((context, instance, future)), task: None }
    }
}

// Nothing in it is pinned in place: the future moves to its task before its first poll.
impl<F: Future> Unpin for Spawned<F> {}

impl<F> Future for Spawned<F>
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<F::Output> {
        if let Some((context, instance, future)) = self.start.take() {
            self.task = Some(instance.handle().spawn(Scoped { context, future }));
        }
        let task = self.task.as_mut().expect("set by the first poll");
        match Pin::new(task).poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(Some(output))) => Poll::Ready(output),
            // The hook has logged the panic, with its request. This one only carries it to the guard.
            Poll::Ready(Ok(None) | Err(_)) => std::panic::resume_unwind(Box::new("the request's task ended early")),
        }
    }
}

impl<F: Future> Drop for Spawned<F> {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

pin_project_lite::pin_project! {
    /// A future whose polls know their request; ends with nothing if it panicked.
    struct Scoped<F> { context: Context, #[pin] future: F }
}

impl<F: Future> Future for Scoped<F> {
    type Output = Option<F::Output>;

    fn poll(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Option<F::Output>> {
        let this = self.project();
        match catch(|| within(*this.context, || this.future.poll(cx))) {
            Ok(poll) => poll.map(Some),
            Err(_) => Poll::Ready(None),
        }
    }
}
