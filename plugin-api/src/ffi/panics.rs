//! The panic hook: a panic of plugin code goes to the host's log with its place and its request.
//!
//! Needed because std is linked into each plugin: the host's own hook never sees it.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::RefCell;
use std::panic::PanicHookInfo;
use std::sync::Once;

use super::{Field, Record, context};

thread_local! {
    static LAST: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Installs the hook, once per process.
pub fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !report(info) {
                previous(info);
            }
        }));
    });
}

/// Where and with what text this thread panicked last; forgets it.
pub fn take_last() -> Option<String> {
    LAST.take()
}

/// Sends a panic to the host. Answers whether there is one: in a test's process most panics are the test's own.
fn report(info: &PanicHookInfo<'_>) -> bool {
    let context = context::current();
    let Some(instance) = context.instance else { return false };
    let payload = info.payload();
    let text = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without a text");
    let (file, line, column) =
        info.location().map_or(("", 0, 0), |location| (location.file(), location.line(), location.column()));
    let message = format!("panicked at {file}:{line}:{column}: {text}");

    let backtrace = Backtrace::capture();
    let backtrace = if backtrace.status() == BacktraceStatus::Captured { backtrace.to_string() } else { String::new() };
    let thread = std::thread::current();
    let mut fields = Vec::with_capacity(2);
    if let Some(name) = thread.name() {
        fields.push(Field::new("thread", name));
    }
    if !backtrace.is_empty() {
        fields.push(Field::new("backtrace", &backtrace));
    }
    instance.host.log(&Record {
        level: 1,
        target: "panic",
        message: &message,
        fields: &fields,
        request_id: context.request_id,
        spans: "",
        file,
        line,
        panic: true,
    });
    // The thread may be ending, its locals gone.
    let _ = LAST.try_with(|last| last.replace(Some(message)));
    true
}
