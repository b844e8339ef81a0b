//! Which plugin and which request this thread works for right now, and the guard around every piece of author code.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use super::Instance;

/// What a log record, a panic or `host()` belongs to.
#[derive(Clone, Copy, Default)]
pub struct Context {
    pub instance: Option<&'static Instance>,
    /// The request that is being served, or 0.
    pub request_id: u64,
}

thread_local! {
    static CURRENT: Cell<Context> = const { Cell::new(Context { instance: None, request_id: 0 }) };
}

/// The process' only instance: for threads that the author started himself. Never set by the in-process host of tests,
/// where instances live side by side.
static ONLY: OnceLock<&'static Instance> = OnceLock::new();

/// The context of this thread.
pub fn current() -> Context {
    let context = CURRENT.get();
    Context { instance: context.instance.or_else(|| ONLY.get().copied()), ..context }
}

/// Makes `instance` the context of all threads that have none of their own.
pub fn set_only(instance: &'static Instance) {
    // A second instance in a process is a test's; the first keeps its place.
    let _ = ONLY.set(instance);
}

/// Makes `instance` the context of this thread for good.
pub fn adopt_thread(instance: &'static Instance) {
    CURRENT.set(Context { instance: Some(instance), request_id: 0 });
}

/// Runs `code` in `context`, and restores the former one even if it panics.
pub fn within<T>(context: Context, code: impl FnOnce() -> T) -> T {
    struct Restore(Context);
    impl Drop for Restore {
        fn drop(&mut self) {
            CURRENT.set(self.0);
        }
    }
    let _restore = Restore(CURRENT.replace(context));
    code()
}

/// The code panicked. The panic hook has logged it already.
#[derive(Debug)]
pub struct Panicked;

/// Runs author code as it must be run: panics caught, runtime entered, context set.
pub fn guard<T>(context: Context, code: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch(|| {
        let _entered = context.instance.and_then(Instance::enter);
        within(context, code)
    })
}

/// Runs `code` and catches its panic. What it leaves half done is only ever dropped afterwards.
pub fn catch<T>(code: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(code)).map_err(|payload| {
        // Dropping a payload runs the author's code once more, outside of any guard: leak it instead.
        std::mem::forget(payload);
        Panicked
    })
}
