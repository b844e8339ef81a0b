//! Byte streams: what a connection becomes once it has left HTTP. The receiver pulls and pushes; nothing is buffered here, so
//! that the other side's pace is felt at once.

use std::ffi::c_void;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::{Context, Poll};

use abi_stable::StableAbi;

use super::{FAILED, FfiContext, PANICKED, PENDING, READY, Slice};

/// A stream of bytes in both directions. OWNERSHIP: the receiver's; freed through its table.
///
/// The fields are private, since its functions trust them:
///
/// ```compile_fail,E0451
/// use baton_plugin_api::abi::FfiStream;
/// let forged = FfiStream { data: std::ptr::null_mut(), vtable: std::ptr::null() };
/// ```
#[repr(C)]
#[derive(StableAbi)]
pub struct FfiStream {
    data: *mut c_void,
    vtable: *const FfiStreamVtable,
}

/// All polls answer [`PENDING`], [`READY`], [`FAILED`] (`out` is the system's number of the error) or [`PANICKED`]. They may be
/// called on any thread, one at a time. Reading and writing keep a waker each: that of their last poll.
#[repr(C)]
#[derive(StableAbi)]
pub struct FfiStreamVtable {
    /// Waits until the connection has left HTTP. Until then only this and `drop` are called.
    pub poll_open: unsafe extern "C" fn(data: *mut c_void, cx: *const FfiContext, out: *mut usize) -> u32,
    /// Reads up to `room` bytes; `out` is how many were written to `into`, from its start. None, with room, is the end.
    pub poll_read: unsafe extern "C" fn(
        data: *mut c_void,
        cx: *const FfiContext,
        into: *mut u8,
        room: usize,
        out: *mut usize,
    ) -> u32,
    /// Writes from the `count` slices at `parts`, borrowed for the call; `out` is how many bytes were taken.
    pub poll_write: unsafe extern "C" fn(
        data: *mut c_void,
        cx: *const FfiContext,
        parts: *const Slice,
        count: usize,
        out: *mut usize,
    ) -> u32,
    pub poll_flush: unsafe extern "C" fn(data: *mut c_void, cx: *const FfiContext, out: *mut usize) -> u32,
    /// Ends the writing direction.
    pub poll_shutdown: unsafe extern "C" fn(data: *mut c_void, cx: *const FfiContext, out: *mut usize) -> u32,
    /// OWNERSHIP: called exactly once. The connection is then closed in good order.
    pub drop: unsafe extern "C" fn(data: *mut c_void),
}

// SAFETY: `FfiStream::export` takes only `Send` streams (`ByteStream` demands it), polled by one thread at a time.
unsafe impl Send for FfiStream {}
// SAFETY: every function takes `&mut self`: a shared reference gives access to nothing.
unsafe impl Sync for FfiStream {}

impl Drop for FfiStream {
    fn drop(&mut self) {
        // SAFETY: the table is a static of the side that made the stream; this is the one call.
        unsafe { ((*self.vtable).drop)(self.data) }
    }
}

/// What lets a stream cross.
///
/// # Safety
/// `poll_read` answers at most as many bytes as it has initialised from the start of `room`.
pub unsafe trait ByteStream: Send + 'static {
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    fn poll_read(&mut self, cx: &mut Context<'_>, room: &mut [MaybeUninit<u8>]) -> Poll<io::Result<usize>>;
    fn poll_write(&mut self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>>;
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

// ---- exporting: a stream of this side goes out ----

/// Parts that one write takes at most; the rest is for the next.
const PARTS: usize = 16;
/// What an error becomes that has no number of the system's: EIO.
const NO_NUMBER: i32 = 5;

impl FfiStream {
    /// Lets `stream` cross. It is dropped by the other side.
    pub fn export<S: ByteStream>(stream: S) -> FfiStream {
        FfiStream { data: Box::into_raw(Box::new(stream)).cast(), vtable: &Exported::<S>::VTABLE }
    }
}

struct Exported<S>(S);

impl<S: ByteStream> Exported<S> {
    const VTABLE: FfiStreamVtable = FfiStreamVtable {
        poll_open: Self::poll_open,
        poll_read: Self::poll_read,
        poll_write: Self::poll_write,
        poll_flush: Self::poll_flush,
        poll_shutdown: Self::poll_shutdown,
        drop: Self::drop,
    };

    /// # Safety
    /// The arguments are those of a call of the table.
    unsafe fn poll(
        data: *mut c_void,
        cx: *const FfiContext,
        out: *mut usize,
        poll: impl FnOnce(&mut S, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> u32 {
        let polled = catch_unwind(AssertUnwindSafe(|| {
            // SAFETY: `data` is the box of `export`, alive until `drop`, used by one thread at a time; the context is lent for
            // this call.
            let (stream, cx) = unsafe { (&mut *data.cast::<S>(), &*cx) };
            cx.with_waker(|waker| poll(stream, &mut Context::from_waker(waker)))
        }));
        let (code, value) = match polled {
            Ok(Poll::Pending) => return PENDING,
            Ok(Poll::Ready(Ok(count))) => (READY, count),
            Ok(Poll::Ready(Err(error))) => (FAILED, error.raw_os_error().unwrap_or(NO_NUMBER).unsigned_abs() as usize),
            Err(payload) => {
                // Dropping it may run code that panics again.
                std::mem::forget(payload);
                return PANICKED;
            }
        };
        // SAFETY: `out` is the caller's room for one number.
        unsafe { out.write(value) };
        code
    }

    unsafe extern "C" fn poll_open(data: *mut c_void, cx: *const FfiContext, out: *mut usize) -> u32 {
        // SAFETY: passed on as they came.
        unsafe { Self::poll(data, cx, out, |stream, cx| stream.poll_open(cx).map_ok(|()| 0)) }
    }

    unsafe extern "C" fn poll_read(
        data: *mut c_void,
        cx: *const FfiContext,
        into: *mut u8,
        room: usize,
        out: *mut usize,
    ) -> u32 {
        let read = |stream: &mut S, cx: &mut Context<'_>| {
            // SAFETY: the caller lends `room` bytes at `into` for this call; they need not be initialised.
            let room = unsafe { std::slice::from_raw_parts_mut(into.cast::<MaybeUninit<u8>>(), room) };
            stream.poll_read(cx, room)
        };
        // SAFETY: passed on as they came.
        unsafe { Self::poll(data, cx, out, read) }
    }

    unsafe extern "C" fn poll_write(
        data: *mut c_void,
        cx: *const FfiContext,
        parts: *const Slice,
        count: usize,
        out: *mut usize,
    ) -> u32 {
        let write = |stream: &mut S, cx: &mut Context<'_>| {
            let mut lent: [IoSlice<'_>; PARTS] = std::array::from_fn(|_| IoSlice::new(&[]));
            let count = count.min(PARTS);
            for (at, part) in lent[..count].iter_mut().enumerate() {
                // SAFETY: the caller lends `count` slices, and what they point to, for this call.
                *part = IoSlice::new(unsafe { (*parts.add(at)).as_bytes() });
            }
            stream.poll_write(cx, &lent[..count])
        };
        // SAFETY: passed on as they came.
        unsafe { Self::poll(data, cx, out, write) }
    }

    unsafe extern "C" fn poll_flush(data: *mut c_void, cx: *const FfiContext, out: *mut usize) -> u32 {
        // SAFETY: passed on as they came.
        unsafe { Self::poll(data, cx, out, |stream, cx| stream.poll_flush(cx).map_ok(|()| 0)) }
    }

    unsafe extern "C" fn poll_shutdown(data: *mut c_void, cx: *const FfiContext, out: *mut usize) -> u32 {
        // SAFETY: passed on as they came.
        unsafe { Self::poll(data, cx, out, |stream, cx| stream.poll_shutdown(cx).map_ok(|()| 0)) }
    }

    unsafe extern "C" fn drop(data: *mut c_void) {
        let dropped = catch_unwind(AssertUnwindSafe(|| {
            // SAFETY: `data` is the box of `export`; the contract of the table is one call.
            drop(unsafe { Box::from_raw(data.cast::<S>()) });
        }));
        if let Err(payload) = dropped {
            std::mem::forget(payload);
        }
    }
}

// ---- importing: a stream of the other side is used here ----

impl FfiStream {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        call: impl FnOnce(&FfiStreamVtable, *mut c_void, *const FfiContext, *mut usize) -> u32,
    ) -> Poll<io::Result<usize>> {
        let context = FfiContext::lend(cx.waker());
        let mut out = 0;
        // SAFETY: the table is a static of the side that made the stream.
        let vtable = unsafe { &*self.vtable };
        match call(vtable, self.data, context.as_ptr(), &raw mut out) {
            PENDING => Poll::Pending,
            READY => Poll::Ready(Ok(out)),
            FAILED => Poll::Ready(Err(io::Error::from_raw_os_error(i32::try_from(out).unwrap_or(NO_NUMBER)))),
            _ => Poll::Ready(Err(io::Error::other("the other side of the stream panicked"))),
        }
    }

    pub fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // SAFETY: the stream is alive, `&mut self` makes this the only call, context and number are lent for it.
        self.poll(cx, |table, data, cx, out| unsafe { (table.poll_open)(data, cx, out) }).map_ok(|_| ())
    }

    /// Answers how many bytes of `room`, from its start, are initialised now.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, room: &mut [MaybeUninit<u8>]) -> Poll<io::Result<usize>> {
        let (into, len) = (room.as_mut_ptr().cast(), room.len());
        // SAFETY: as in `poll_open`; the room is lent with its length.
        let polled = self.poll(cx, |table, data, cx, out| unsafe { (table.poll_read)(data, cx, into, len, out) });
        polled.map_ok(|count| count.min(len))
    }

    pub fn poll_write(&mut self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let mut lent = [Slice::EMPTY; PARTS];
        let (mut count, mut len) = (0, 0);
        for (slice, part) in lent.iter_mut().zip(parts.iter().filter(|part| !part.is_empty())) {
            *slice = Slice::new(part);
            count += 1;
            len += part.len();
        }
        let parts = lent.as_ptr();
        // SAFETY: as in `poll_open`; the slices borrow from the caller's parts for the call.
        let polled = self.poll(cx, |table, data, cx, out| unsafe { (table.poll_write)(data, cx, parts, count, out) });
        polled.map_ok(|count| count.min(len))
    }

    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // SAFETY: as in `poll_open`.
        self.poll(cx, |table, data, cx, out| unsafe { (table.poll_flush)(data, cx, out) }).map_ok(|_| ())
    }

    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // SAFETY: as in `poll_open`.
        self.poll(cx, |table, data, cx, out| unsafe { (table.poll_shutdown)(data, cx, out) }).map_ok(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};
    use std::task::{Wake, Waker};

    use super::*;

    #[derive(Default)]
    struct Counter(AtomicUsize);

    impl Wake for Counter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// A pipe of a few bytes that ends where it began.
    #[derive(Default)]
    struct Pipe {
        open: bool,
        bytes: VecDeque<u8>,
        flushed: bool,
        ended: bool,
        error: Option<i32>,
        reader: Option<Waker>,
        writer: Option<Waker>,
    }

    const CAPACITY: usize = 4;

    #[derive(Clone, Default)]
    struct Loop(Arc<Mutex<Pipe>>, Arc<AtomicUsize>);

    // SAFETY: `poll_read` counts what it writes.
    unsafe impl ByteStream for Loop {
        fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            let mut pipe = self.0.lock().unwrap();
            if pipe.open {
                return Poll::Ready(Ok(()));
            }
            pipe.reader = Some(cx.waker().clone());
            Poll::Pending
        }

        fn poll_read(&mut self, cx: &mut Context<'_>, room: &mut [MaybeUninit<u8>]) -> Poll<io::Result<usize>> {
            let mut pipe = self.0.lock().unwrap();
            if let Some(error) = pipe.error {
                return Poll::Ready(Err(io::Error::from_raw_os_error(error)));
            }
            let mut count = 0;
            while count < room.len()
                && let Some(byte) = pipe.bytes.pop_front()
            {
                room[count].write(byte);
                count += 1;
            }
            if count == 0 && !pipe.ended {
                pipe.reader = Some(cx.waker().clone());
                return Poll::Pending;
            }
            let writer = pipe.writer.take();
            drop(pipe);
            if let Some(writer) = writer {
                writer.wake();
            }
            Poll::Ready(Ok(count))
        }

        fn poll_write(&mut self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
            let mut pipe = self.0.lock().unwrap();
            let mut count = 0;
            for byte in parts.iter().flat_map(|part| part.iter()) {
                if pipe.bytes.len() == CAPACITY {
                    break;
                }
                pipe.bytes.push_back(*byte);
                count += 1;
            }
            if count == 0 {
                pipe.writer = Some(cx.waker().clone());
                return Poll::Pending;
            }
            if let Some(reader) = pipe.reader.take() {
                reader.wake();
            }
            Poll::Ready(Ok(count))
        }

        fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.0.lock().unwrap().flushed = true;
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.0.lock().unwrap().ended = true;
            Poll::Ready(Ok(()))
        }
    }

    impl Drop for Loop {
        fn drop(&mut self) {
            self.1.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn pair() -> (Loop, FfiStream) {
        let ours = Loop::default();
        ours.0.lock().unwrap().open = true;
        let stream = FfiStream::export(ours.clone());
        (ours, stream)
    }

    fn read(stream: &mut FfiStream, cx: &mut Context<'_>, room: usize) -> Poll<Vec<u8>> {
        let mut bytes = Vec::with_capacity(room);
        let polled = stream.poll_read(cx, &mut bytes.spare_capacity_mut()[..room]);
        polled.map(|count| {
            // SAFETY: so many were initialised.
            unsafe { bytes.set_len(count.unwrap()) };
            bytes
        })
    }

    fn write(stream: &mut FfiStream, cx: &mut Context<'_>, parts: &[&[u8]]) -> Poll<usize> {
        let parts: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        stream.poll_write(cx, &parts).map(|count| count.unwrap())
    }

    #[test]
    fn bytes_cross_both_ways_in_the_pieces_that_there_is_room_for() {
        let (_ours, mut stream) = pair();
        let mut cx = Context::from_waker(Waker::noop());
        assert_eq!(write(&mut stream, &mut cx, &[b"ab", b"", b"cde"]), Poll::Ready(4));
        assert_eq!(write(&mut stream, &mut cx, &[b"e"]), Poll::Pending, "the pipe is full");
        assert_eq!(read(&mut stream, &mut cx, 3), Poll::Ready(b"abc".to_vec()));
        assert_eq!(write(&mut stream, &mut cx, &[b"e"]), Poll::Ready(1));
        assert_eq!(read(&mut stream, &mut cx, 9), Poll::Ready(b"de".to_vec()));
        assert_eq!(read(&mut stream, &mut cx, 9), Poll::Pending);
    }

    #[test]
    fn parts_that_hold_nothing_are_left_out_and_of_many_the_first_are_taken() {
        let (ours, mut stream) = pair();
        let mut cx = Context::from_waker(Waker::noop());
        let parts: Vec<&[u8]> = (0..2 * PARTS).map(|_| &b""[..]).chain([&b"x"[..]]).collect();
        assert_eq!(write(&mut stream, &mut cx, &parts), Poll::Ready(1));
        assert_eq!(ours.0.lock().unwrap().bytes, b"x");
        drop(stream);
        let mut sink = FfiStream::export(Sink);
        let parts = [&b"y"[..]; PARTS + 1];
        assert_eq!(write(&mut sink, &mut cx, &parts), Poll::Ready(PARTS));
    }

    /// Takes all.
    struct Sink;

    // SAFETY: it never reads.
    unsafe impl ByteStream for Sink {
        fn poll_open(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_read(&mut self, _: &mut Context<'_>, _: &mut [MaybeUninit<u8>]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(0))
        }

        fn poll_write(&mut self, _: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(parts.iter().map(|part| part.len()).sum()))
        }

        fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn whoever_waits_is_woken_across_from_any_thread() {
        let (ours, mut stream) = pair();
        ours.0.lock().unwrap().open = false;
        let (opened, readable, writable) = <(Arc<Counter>, Arc<Counter>, Arc<Counter>)>::default();
        let waker = |counter: &Arc<Counter>| Waker::from(counter.clone());
        assert!(stream.poll_open(&mut Context::from_waker(&waker(&opened))).is_pending());
        let reader = {
            let mut pipe = ours.0.lock().unwrap();
            pipe.open = true;
            pipe.reader.take().unwrap()
        };
        std::thread::spawn(move || reader.wake()).join().unwrap();
        assert_eq!(opened.0.load(Ordering::SeqCst), 1);
        assert!(matches!(stream.poll_open(&mut Context::from_waker(Waker::noop())), Poll::Ready(Ok(()))));

        assert!(read(&mut stream, &mut Context::from_waker(&waker(&readable)), 1).is_pending());
        assert_eq!(write(&mut stream, &mut Context::from_waker(Waker::noop()), &[b"abcd"]), Poll::Ready(4));
        assert_eq!(readable.0.load(Ordering::SeqCst), 1);
        assert!(write(&mut stream, &mut Context::from_waker(&waker(&writable)), &[b"e"]).is_pending());
        assert!(read(&mut stream, &mut Context::from_waker(Waker::noop()), 1).is_ready());
        assert_eq!(writable.0.load(Ordering::SeqCst), 1);
        drop((stream, ours));
        for counter in [opened, readable, writable] {
            assert_eq!(Arc::strong_count(&counter), 1, "no waker is left behind");
        }
    }

    #[test]
    fn flush_and_shutdown_arrive_and_the_end_is_an_empty_read() {
        let (ours, mut stream) = pair();
        let mut cx = Context::from_waker(Waker::noop());
        assert!(matches!(stream.poll_flush(&mut cx), Poll::Ready(Ok(()))));
        assert!(ours.0.lock().unwrap().flushed);
        assert!(matches!(stream.poll_shutdown(&mut cx), Poll::Ready(Ok(()))));
        assert_eq!(read(&mut stream, &mut cx, 8), Poll::Ready(Vec::new()));
    }

    #[test]
    fn errors_keep_their_number() {
        const ECONNRESET: i32 = 104;
        let (ours, mut stream) = pair();
        ours.0.lock().unwrap().error = Some(ECONNRESET);
        let polled = stream.poll_read(&mut Context::from_waker(Waker::noop()), &mut [MaybeUninit::uninit(); 1]);
        let Poll::Ready(Err(error)) = polled else { panic!("{polled:?}") };
        assert_eq!(error.raw_os_error(), Some(ECONNRESET));
    }

    #[test]
    fn the_stream_is_dropped_once_wherever_its_handle_ends() {
        let (ours, stream) = pair();
        std::thread::spawn(move || drop(stream)).join().unwrap();
        assert_eq!(ours.1.load(Ordering::SeqCst), 1);
    }

    struct Panics;

    // SAFETY: it never answers a count.
    unsafe impl ByteStream for Panics {
        fn poll_open(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Err(io::Error::other("no number")))
        }

        fn poll_read(&mut self, _: &mut Context<'_>, _: &mut [MaybeUninit<u8>]) -> Poll<io::Result<usize>> {
            panic!("read")
        }

        fn poll_write(&mut self, _: &mut Context<'_>, _: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
            panic!("write")
        }

        fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }

        fn poll_shutdown(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl Drop for Panics {
        fn drop(&mut self) {
            panic!("drop")
        }
    }

    #[test]
    fn a_panic_becomes_an_error_and_one_in_a_drop_passes_nowhere() {
        let mut stream = FfiStream::export(Panics);
        let mut cx = Context::from_waker(Waker::noop());
        let Poll::Ready(Err(error)) = stream.poll_open(&mut cx) else { panic!("it failed") };
        assert_eq!(error.raw_os_error(), Some(NO_NUMBER));
        for polled in [stream.poll_read(&mut cx, &mut []), stream.poll_write(&mut cx, &[])] {
            let Poll::Ready(Err(error)) = polled else { panic!("it panicked") };
            assert!(error.to_string().contains("panicked"), "{error}");
        }
        drop(stream);
    }
}
