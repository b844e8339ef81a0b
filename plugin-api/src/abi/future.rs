//! Futures and wakers. `std::task::Waker` has no stable layout, so a waker crosses as a data pointer and a table.

use std::ffi::c_void;
use std::future::Future;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, RawWaker, RawWakerVTable, Waker};

use abi_stable::StableAbi;

use super::{FfiBody, ResponseHead, assert_send_sync};

/// A future of the plugin that ends by giving one response to a [`ResponseSink`].
///
/// The fields are private, since the drop trusts them:
///
/// ```compile_fail,E0451
/// use baton_plugin_api::abi::FfiFuture;
/// let forged = FfiFuture { data: std::ptr::null_mut(), vtable: std::ptr::null() };
/// ```
#[repr(C)]
#[derive(StableAbi)]
pub struct FfiFuture {
    data: *mut c_void,
    vtable: *const FfiFutureVtable,
}

#[repr(C)]
#[derive(StableAbi)]
pub struct FfiFutureVtable {
    /// Answers [`PENDING`](super::PENDING), [`READY`](super::READY) (the sink has been called, exactly once; futures without
    /// a response get a null sink) or [`PANICKED`](super::PANICKED). Never polled again after the last two.
    pub poll: unsafe extern "C" fn(data: *mut c_void, cx: *const FfiContext, sink: *const ResponseSink) -> u32,
    /// OWNERSHIP: called exactly once, whether or not the future ended. Dropping it early cancels the request.
    pub drop: unsafe extern "C" fn(data: *mut c_void),
}

// SAFETY: `FfiFuture::new` takes only `Send` futures; they are polled by one thread at a time.
unsafe impl Send for FfiFuture {}

impl FfiFuture {
    /// Lets `future` cross.
    ///
    /// # Safety
    /// The functions of `vtable` may be called with `future` as its documentation says, until its `drop`.
    #[inline]
    pub unsafe fn new<F: Send>(future: *mut F, vtable: &'static FfiFutureVtable) -> FfiFuture {
        FfiFuture { data: future.cast(), vtable }
    }

    /// Polls it and returns what the table does.
    ///
    /// # Safety
    /// It has answered neither [`READY`](super::READY) nor [`PANICKED`](super::PANICKED). `sink` is alive for this call, and
    /// its `send` may be called with its context; null for a future without a response.
    #[inline]
    pub unsafe fn poll(&mut self, waker: &Waker, sink: *const ResponseSink) -> u32 {
        let lent = FfiContext::lend(waker);
        // SAFETY: `new` vouched for table and data, the caller for the rest; `&mut self` makes this the only poll, and the
        // context outlives it.
        unsafe { ((*self.vtable).poll)(self.data, lent.as_ptr(), sink) }
    }
}

impl Drop for FfiFuture {
    fn drop(&mut self) {
        // SAFETY: the table is a static of a library that is never unloaded; this is the one call.
        unsafe { ((*self.vtable).drop)(self.data) }
    }
}

/// A future that only ends, and gives no response. It may be polled after its end.
#[repr(transparent)]
#[derive(StableAbi)]
pub struct FfiSignal(FfiFuture);

/// What one of this side stands for; nothing once it has ended.
type Signal = Option<Pin<Box<dyn Future<Output = ()> + Send>>>;

static SIGNAL: FfiFutureVtable = FfiFutureVtable { poll: signal_poll, drop: signal_drop };

impl FfiSignal {
    /// Lets `future` cross.
    pub fn new(future: impl Future<Output = ()> + Send + 'static) -> FfiSignal {
        let signal: Signal = Some(Box::pin(future));
        // SAFETY: the functions of `SIGNAL` are made for this box, and ask for no sink.
        FfiSignal(unsafe { FfiFuture::new(Box::into_raw(Box::new(signal)), &SIGNAL) })
    }

    /// Waits for its end. One that has panicked has ended.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // SAFETY: a signal may be polled after its end, and gives no response.
        match unsafe { self.0.poll(cx.waker(), std::ptr::null()) } {
            super::PENDING => Poll::Pending,
            _ => Poll::Ready(()),
        }
    }
}

unsafe extern "C" fn signal_poll(data: *mut c_void, cx: *const FfiContext, _: *const ResponseSink) -> u32 {
    let polled = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: `FfiSignal::new` made `data`; it is polled from one thread at a time, with a context that is lent.
        let (signal, cx) = unsafe { (&mut *data.cast::<Signal>(), &*cx) };
        let Some(future) = signal else { return Poll::Ready(()) };
        let polled = cx.with_waker(|waker| future.as_mut().poll(&mut Context::from_waker(waker)));
        if polled.is_ready() {
            *signal = None;
        }
        polled
    }));
    match polled {
        Ok(Poll::Pending) => super::PENDING,
        Ok(Poll::Ready(())) => super::READY,
        Err(_) => super::PANICKED,
    }
}

unsafe extern "C" fn signal_drop(data: *mut c_void) {
    // A panic must not cross, and there is nothing left to do about it.
    let _ = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: the box of `FfiSignal::new`; the contract of the table is one call.
        drop(unsafe { Box::from_raw(data.cast::<Signal>()) });
    }));
}

/// Where a response goes: the host's side of a request, borrowed for one poll.
#[repr(C)]
#[derive(StableAbi)]
pub struct ResponseSink {
    pub context: *mut c_void,
    /// Takes the head (borrowed) and the body (owned). Called at most once per request.
    pub send: unsafe extern "C" fn(context: *mut c_void, head: *const ResponseHead, body: FfiBody),
}

/// A waker, borrowed for one poll. Cloned only when the future really keeps it.
#[repr(C)]
#[derive(StableAbi)]
pub struct FfiContext {
    waker: *const c_void,
    clone: unsafe extern "C" fn(waker: *const c_void) -> FfiWaker,
    wake_by_ref: unsafe extern "C" fn(waker: *const c_void),
}

/// The context of one poll, made by [`FfiContext::lend`]. It cannot outlive the waker:
///
/// ```compile_fail,E0597
/// use std::task::{Wake, Waker};
/// use std::sync::Arc;
/// struct Quiet;
/// impl Wake for Quiet {
///     fn wake(self: Arc<Self>) {}
/// }
/// let context = {
///     let waker = Waker::from(Arc::new(Quiet));
///     baton_plugin_api::abi::FfiContext::lend(&waker)
/// };
/// context.with_waker(|waker| waker.wake_by_ref());
/// ```
pub struct LentContext<'a> {
    context: FfiContext,
    waker: PhantomData<&'a Waker>,
}

/// A waker that its holder owns; may be woken and dropped on any thread.
#[repr(C)]
#[derive(StableAbi)]
pub struct FfiWaker {
    data: *const c_void,
    vtable: *const FfiWakerVtable,
}

#[repr(C)]
#[derive(StableAbi)]
pub struct FfiWakerVtable {
    pub clone: unsafe extern "C" fn(data: *const c_void) -> FfiWaker,
    pub wake_by_ref: unsafe extern "C" fn(data: *const c_void),
    /// OWNERSHIP: called exactly once.
    pub drop: unsafe extern "C" fn(data: *const c_void),
}

const _: () = assert_send_sync::<Waker>();

// SAFETY: behind it is a `Waker` of the exporting side, which is Send and Sync.
unsafe impl Send for FfiWaker {}
// SAFETY: as above.
unsafe impl Sync for FfiWaker {}

impl Drop for FfiWaker {
    fn drop(&mut self) {
        // SAFETY: the table is a static of the side that made the waker; this is the one call.
        unsafe { ((*self.vtable).drop)(self.data) }
    }
}

// ---- exporting: a `Waker` of this side goes out ----

static OWN_WAKER: FfiWakerVtable = FfiWakerVtable { clone: own_clone, wake_by_ref: own_wake_by_ref, drop: own_drop };

impl FfiContext {
    /// Lends `waker` to the other side for one poll.
    #[inline]
    pub fn lend(waker: &Waker) -> LentContext<'_> {
        let context =
            FfiContext { waker: std::ptr::from_ref(waker).cast(), clone: lent_clone, wake_by_ref: own_wake_by_ref };
        LentContext { context, waker: PhantomData }
    }
}

impl LentContext<'_> {
    /// What is passed to the other side's functions.
    #[inline]
    pub fn as_ptr(&self) -> *const FfiContext {
        &raw const self.context
    }
}

impl Deref for LentContext<'_> {
    type Target = FfiContext;

    fn deref(&self) -> &FfiContext {
        &self.context
    }
}

unsafe extern "C" fn lent_clone(waker: *const c_void) -> FfiWaker {
    // SAFETY: `lend` made this pointer from a `&Waker` that outlives the poll in which it is cloned. Cloning a waker of a
    // runtime counts a reference; it does not panic.
    let waker = unsafe { (*waker.cast::<Waker>()).clone() };
    FfiWaker { data: Box::into_raw(Box::new(waker)).cast(), vtable: &OWN_WAKER }
}

unsafe extern "C" fn own_clone(data: *const c_void) -> FfiWaker {
    // SAFETY: `data` is the box made in `lent_clone`, alive until `own_drop`.
    unsafe { lent_clone(data) }
}

unsafe extern "C" fn own_wake_by_ref(data: *const c_void) {
    // A waker's `wake` runs a scheduler of this side; should one panic, the panic must not cross.
    let _ = std::panic::catch_unwind(|| {
        // SAFETY: `data` is a lent `&Waker` or the box of `lent_clone`; both are alive during the call.
        unsafe { (*data.cast::<Waker>()).wake_by_ref() }
    });
}

unsafe extern "C" fn own_drop(data: *const c_void) {
    let _ = std::panic::catch_unwind(|| {
        // SAFETY: `data` is the box of `lent_clone`; the contract of the table is one call.
        unsafe { drop(Box::from_raw(data.cast_mut().cast::<Waker>())) }
    });
}

// ---- importing: a waker of the other side becomes a `Waker` here ----

static LENT_IMPORT: RawWakerVTable = RawWakerVTable::new(lent_import_clone, lent_import_wake, lent_import_wake, |_| ());
static OWNED_IMPORT: RawWakerVTable =
    RawWakerVTable::new(owned_import_clone, owned_import_wake, owned_import_wake_by_ref, owned_import_drop);

impl FfiContext {
    /// Runs `poll` with a `Waker` that stands for the lent one. Nothing is allocated unless `poll` clones it.
    pub fn with_waker<T>(&self, poll: impl FnOnce(&Waker) -> T) -> T {
        // SAFETY: the table's functions read `self` only; the waker is dropped (a no-op) before `self`'s borrow ends, and
        // a clone does not point to `self`.
        let waker = unsafe { Waker::from_raw(RawWaker::new(std::ptr::from_ref(self).cast(), &LENT_IMPORT)) };
        poll(&ManuallyDrop::new(waker))
    }
}

unsafe fn lent_import_clone(context: *const ()) -> RawWaker {
    // SAFETY: `with_waker` made the pointer from a context that is alive for the poll.
    let context = unsafe { &*context.cast::<FfiContext>() };
    // SAFETY: the other side's contract for a context in use.
    let owned = unsafe { (context.clone)(context.waker) };
    RawWaker::new(Box::into_raw(Box::new(owned)).cast_const().cast(), &OWNED_IMPORT)
}

unsafe fn lent_import_wake(context: *const ()) {
    // SAFETY: as in `lent_import_clone`.
    let context = unsafe { &*context.cast::<FfiContext>() };
    // SAFETY: the other side's contract for a context in use.
    unsafe { (context.wake_by_ref)(context.waker) }
}

unsafe fn owned_import_clone(data: *const ()) -> RawWaker {
    // SAFETY: `data` is the box made in `lent_import_clone` or here, alive until `owned_import_drop`.
    let waker = unsafe { &*data.cast::<FfiWaker>() };
    // SAFETY: an owned waker's table may be called until it is dropped.
    let owned = unsafe { ((*waker.vtable).clone)(waker.data) };
    RawWaker::new(Box::into_raw(Box::new(owned)).cast_const().cast(), &OWNED_IMPORT)
}

unsafe fn owned_import_wake(data: *const ()) {
    // SAFETY: `Waker::wake` consumes the waker: waking, then dropping, is its contract.
    unsafe {
        owned_import_wake_by_ref(data);
        owned_import_drop(data);
    }
}

unsafe fn owned_import_wake_by_ref(data: *const ()) {
    // SAFETY: as in `owned_import_clone`.
    let waker = unsafe { &*data.cast::<FfiWaker>() };
    // SAFETY: as in `owned_import_clone`.
    unsafe { ((*waker.vtable).wake_by_ref)(waker.data) }
}

unsafe fn owned_import_drop(data: *const ()) {
    // SAFETY: the box made in `lent_import_clone`; std's `Waker` calls this once.
    unsafe { drop(Box::from_raw(data.cast_mut().cast::<FfiWaker>())) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Counter(AtomicUsize);

    impl Wake for Counter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_waker_that_crossed_wakes_the_original_and_leaks_nothing() {
        let counter = Arc::new(Counter::default());
        let original = Waker::from(counter.clone());
        let kept = FfiContext::lend(&original).with_waker(|waker| {
            waker.wake_by_ref();
            waker.clone()
        });
        assert_eq!(counter.0.load(Ordering::SeqCst), 1);
        let second = kept.clone();
        std::thread::spawn(move || second.wake()).join().unwrap();
        kept.wake_by_ref();
        assert_eq!(counter.0.load(Ordering::SeqCst), 3);
        drop((kept, original));
        assert_eq!(Arc::strong_count(&counter), 1, "every clone was dropped");
    }

    #[test]
    fn a_poll_that_does_not_keep_the_waker_does_not_clone_it() {
        let counter = Arc::new(Counter::default());
        let original = Waker::from(counter.clone());
        let before = Arc::strong_count(&counter);
        FfiContext::lend(&original).with_waker(|_| assert_eq!(Arc::strong_count(&counter), before));
    }
}
