//! What the host offers to plugins: a place for log records, and a word with the master. Called on any thread, at any time
//! until the process ends.

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use abi_stable::prefix_type::PrefixTypeTrait;
use baton_plugin_api::abi::extension::{self, Control, Header};
use baton_plugin_api::abi::{HostApi, HostApi_Ref, LogRecord};
use tokio::sync::mpsc;

use super::log;
use crate::child::bridge::{CLIENT, UPGRADE};
use crate::control::ControlVerb;
use crate::metrics::{Metrics, Slot};

/// What a plugin asked of the master: its name and what.
pub type Asked = (&'static str, ControlVerb);

/// Makes one offer per plugin.
#[derive(Clone)]
pub struct Host {
    metrics: Metrics,
    asked: mpsc::Sender<Asked>,
    serving: Arc<AtomicBool>,
}

impl Host {
    pub fn new(metrics: Metrics, asked: mpsc::Sender<Asked>) -> Host {
        Host { metrics, asked, serving: Arc::default() }
    }

    /// From now on (or no more) plugins may ask something of the master.
    pub fn set_serving(&self, serving: bool) {
        self.serving.store(serving, Ordering::Release);
    }

    /// What `plugin` is given at its start.
    pub(super) fn offer(&self, plugin: &'static str, allow_control: bool) -> HostApi_Ref {
        let context: &'static Offer = Box::leak(Box::new(Offer { plugin, allow_control, host: self.clone() }));
        HostApi::new(context, take_record, find_extension).leak_into_prefix()
    }
}

/// What the context of a [`HostApi`] points to.
struct Offer {
    plugin: &'static str,
    allow_control: bool,
    host: Host,
}

/// # Safety
/// `Host::offer` made the context.
unsafe fn offer(context: *const c_void) -> &'static Offer {
    // SAFETY: the caller vouches for the context; what it points to is never freed.
    unsafe { &*context.cast::<Offer>() }
}

unsafe extern "C" fn take_record(context: *const c_void, record: *const LogRecord) {
    stop_panic(|| {
        // SAFETY: plugins pass back the context that they were given.
        let Offer { plugin, host, .. } = unsafe { offer(context) };
        // SAFETY: the plugin lends the record, and all that it points to, for this call.
        let record = unsafe { &*record };
        if record.panic != 0 {
            host.metrics.add(Slot::Panics);
        }
        log::emit(plugin, record);
    });
}

unsafe extern "C" fn find_extension(_: *const c_void, id: u32, min_rev: u32) -> *const c_void {
    match id {
        extension::HOST_CONTROL if min_rev <= CONTROL.header.rev => (&raw const CONTROL).cast(),
        extension::HOST_UPGRADE if min_rev <= UPGRADE.header.rev => (&raw const UPGRADE).cast(),
        extension::HOST_CLIENT if min_rev <= CLIENT.header.rev => (&raw const CLIENT).cast(),
        _ => std::ptr::null(),
    }
}

static CONTROL: Control = Control { header: Header { size: size_of::<Control>() as u32, rev: 1 }, request };

const ACCEPTED: u32 = 0;
const NOT_ALLOWED: u32 = 1;
const UNKNOWN: u32 = 2;
const NOT_SERVING: u32 = 3;

unsafe extern "C" fn request(context: *const c_void, verb: u32) -> u32 {
    let mut answer = NOT_SERVING;
    stop_panic(|| {
        // SAFETY: as in `take_record`.
        let Offer { plugin, allow_control, host } = unsafe { offer(context) };
        let verb = match verb {
            extension::CONTROL_RELOAD => ControlVerb::Reload,
            extension::CONTROL_RESTART => ControlVerb::Restart,
            extension::CONTROL_SHUTDOWN => ControlVerb::Shutdown,
            _ => {
                answer = UNKNOWN;
                return;
            }
        };
        if !allow_control {
            // For the audit: that it was tried.
            tracing::warn!(plugin, %verb, "refused to a handler: `allow_control` is off for its plugin");
            answer = NOT_ALLOWED;
            return;
        }
        if host.serving.load(Ordering::Acquire) && host.asked.try_send((plugin, verb)).is_ok() {
            answer = ACCEPTED;
        }
    });
    answer
}

/// No panic may go on into the plugin: a `Drop` or a formatter of ours could be at fault, never the plugin's code.
fn stop_panic(run: impl FnOnce()) {
    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err() {
        tracing::error!("a panic of the host was stopped at the plugin boundary");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_may_ask_while_the_worker_serves() {
        let (asked, mut requests) = mpsc::channel(1);
        let host = Host::new(Metrics::local(), asked);
        let api = host.offer("p", true);
        // SAFETY: the context is the one that came with the table.
        let extension = |id, min_rev| unsafe { api.extension()(api.context(), id, min_rev) };
        let table = extension(extension::HOST_CONTROL, 1);
        // SAFETY: the table of this number is a `Control`.
        let control = unsafe { &*table.cast::<Control>() };
        // SAFETY: the context is the one that came with the table.
        let ask = |verb| unsafe { (control.request)(api.context(), verb) };
        assert_eq!(ask(extension::CONTROL_RELOAD), NOT_SERVING);
        host.set_serving(true);
        assert_eq!(ask(99), UNKNOWN);
        assert_eq!(ask(extension::CONTROL_RELOAD), ACCEPTED);
        assert_eq!(requests.try_recv().unwrap(), ("p", ControlVerb::Reload));
        assert!(extension(extension::HOST_CONTROL, 2).is_null());
        assert!(extension(77, 1).is_null());
    }

    #[test]
    fn a_plugin_that_may_not_is_told_so_and_nothing_is_asked() {
        let (asked, mut requests) = mpsc::channel(1);
        let host = Host::new(Metrics::local(), asked);
        host.set_serving(true);
        let api = host.offer("p", false);
        // SAFETY: the context came with the table.
        let answer = unsafe { request(api.context(), extension::CONTROL_SHUTDOWN) };
        assert_eq!(answer, NOT_ALLOWED);
        assert!(requests.try_recv().is_err());
    }
}
