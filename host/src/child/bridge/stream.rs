//! Byte streams of connections that have left HTTP, as they cross to a plugin.

use std::ffi::c_void;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::{Context, Poll};

use baton_plugin_api::abi::extension::{Header, Upgrade};
use baton_plugin_api::abi::{ByteStream, FfiStream};

use super::Head;
use crate::child::serve::upgrade::PluginEnd;

/// The table that plugins claim streams by.
pub static UPGRADE: Upgrade = Upgrade { header: Header { size: size_of::<Upgrade>() as u32, rev: 1 }, claim };

unsafe extern "C" fn claim(_: *const c_void, head: *const c_void, out: *mut FfiStream) -> u32 {
    let claimed = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: `Head::lend` made the head that the plugin got; it vouches that it has not dropped it.
        let head = unsafe { &*head.cast::<Head>() };
        head.offer.as_ref().and_then(|offer| offer.claim()).map(FfiStream::export)
    }));
    let Ok(Some(stream)) = claimed else { return 0 };
    // SAFETY: `out` is the plugin's room for one stream.
    unsafe { out.write(stream) };
    1
}

// SAFETY: `poll_read` answers what a `ReadBuf` over the room has counted.
unsafe impl ByteStream for PluginEnd {
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        PluginEnd::poll_open(self, cx)
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, room: &mut [MaybeUninit<u8>]) -> Poll<io::Result<usize>> {
        PluginEnd::poll_read(self, cx, room)
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        PluginEnd::poll_write(self, cx, parts)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        PluginEnd::poll_flush(self, cx)
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        PluginEnd::poll_shutdown(self, cx)
    }
}
