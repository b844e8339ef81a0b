//! What a plugin may learn of a request's client after the head: that it has closed.

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};

use baton_plugin_api::abi::FfiSignal;
use baton_plugin_api::abi::extension::{Client, Header};

use super::Head;

/// The table that plugins ask for a client's close by.
pub static CLIENT: Client = Client { header: Header { size: size_of::<Client>() as u32, rev: 1 }, closed };

unsafe extern "C" fn closed(_: *const c_void, head: *const c_void, out: *mut FfiSignal) -> u32 {
    let signal = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: `Head::lend` made the head that the plugin got; it vouches that it has not dropped it.
        let head = unsafe { &*head.cast::<Head>() };
        FfiSignal::new(head.exchange.client_closed())
    }));
    let Ok(signal) = signal else { return 0 };
    // SAFETY: `out` is the plugin's room for one signal.
    unsafe { out.write(signal) };
    1
}
