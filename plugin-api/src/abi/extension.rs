//! Growth without touching v1: numbered tables that one side asks the other for.
//!
//! `extension(id, min_rev)` answers null (not known, or older than `min_rev`) or a pointer to a `#[repr(C)]` table that
//! lives as long as the process and begins with [`Header`]. A table only ever grows at its end, with a new `rev`.
//! Numbers are never used twice.

use std::ffi::c_void;

use abi_stable::StableAbi;

use super::{FfiBytes, FfiSignal, FfiStream, PluginHandle};

/// Begins every extension table.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct Header {
    /// Size of the whole table in bytes, on the side that made it.
    pub size: u32,
    /// Revision of the table, from 1.
    pub rev: u32,
}

/// Host: [`Control`]. What a handler may ask of the server.
pub const HOST_CONTROL: u32 = 1;
/// Host: counters, gauges and histograms of the author's own. Reserved; table to come.
pub const HOST_METRICS: u32 = 2;
/// Host: [`Upgrade`]. The byte stream that a connection becomes.
pub const HOST_UPGRADE: u32 = 3;
/// Host: [`Client`]. Whether a request's client is still there.
pub const HOST_CLIENT: u32 = 4;
/// Plugin: [`PluginState`]. Saving a state blob for the generation that follows (`on_save`, `previous`).
pub const PLUGIN_STATE: u32 = 1 << 16;
/// Plugin: [`PluginSignals`]. Hooks for signals that the operator routes to plugins.
pub const PLUGIN_SIGNALS: u32 = (1 << 16) + 2;

/// [`Control::request`]: load the plugins anew in a fresh child.
pub const CONTROL_RELOAD: u32 = 1;
/// [`Control::request`]: re-execute the server in place, then reload.
pub const CONTROL_RESTART: u32 = 2;
/// [`Control::request`]: shut the server down gracefully.
pub const CONTROL_SHUTDOWN: u32 = 3;

/// Table of [`HOST_CONTROL`], revision 1.
#[repr(C)]
#[derive(Clone, Copy, StableAbi)]
pub struct Control {
    pub header: Header,
    /// Asks for `verb` (`CONTROL_*`) and answers at once: 0 accepted, 1 not allowed for this plugin, 2 unknown verb,
    /// 3 the server is not serving. `context` is [`HostApi::context`](super::HostApi).
    pub request: unsafe extern "C" fn(context: *const c_void, verb: u32) -> u32,
}

/// Table of [`HOST_UPGRADE`], revision 1.
///
/// The handler claims the stream before it answers, so that the host knows of a `101` whether anybody will speak the new
/// protocol, and so that nothing has to be found again afterwards.
#[repr(C)]
#[derive(Clone, Copy, StableAbi)]
pub struct Upgrade {
    pub header: Header,
    /// Claims what the connection becomes if the request is answered `101`, or a `CONNECT` 2xx: 1 and `out` is written, else 0
    /// (the request asks for nothing of the kind, or it was claimed before). `head` is [`RequestHead::data`] of a head that is
    /// alive. Any other answer, or none, fails the stream's `poll_open`.
    ///
    /// [`RequestHead::data`]: super::RequestHead
    pub claim: unsafe extern "C" fn(context: *const c_void, head: *const c_void, out: *mut FfiStream) -> u32,
}

/// Table of [`HOST_CLIENT`], revision 1.
#[repr(C)]
#[derive(Clone, Copy, StableAbi)]
pub struct Client {
    pub header: Header,
    /// Makes a signal that ends once the client of a request has closed its sending side, has reset the request or the
    /// connection, or the connection has ended. Returns 1 and writes `out`, or 0. `head` is [`RequestHead::data`] of a head
    /// that is alive; the signal may outlive it. OWNERSHIP: the caller's.
    ///
    /// [`RequestHead::data`]: super::RequestHead
    pub closed: unsafe extern "C" fn(context: *const c_void, head: *const c_void, out: *mut FfiSignal) -> u32,
}

/// Table of [`PLUGIN_STATE`], revision 1.
#[repr(C)]
#[derive(Clone, Copy, StableAbi)]
pub struct PluginState {
    pub header: Header,
    /// Asks for the plugin's state, on a thread that may block, any number of times: the plugin serves on. Answers
    /// [`READY`](super::READY) (`out` was written), [`PENDING`](super::PENDING) (nothing to save: `out` was not touched) or
    /// [`PANICKED`](super::PANICKED).
    pub save: unsafe extern "C" fn(plugin: PluginHandle, out: *mut StateBlob) -> u32,
}

/// [`PluginSignals::deliver`]: SIGUSR1. Numbers of our own: those of the system differ between machines.
pub const SIGNAL_USR1: u32 = 1;
/// [`PluginSignals::deliver`]: SIGTSTP.
pub const SIGNAL_TSTP: u32 = 2;

/// Table of [`PLUGIN_SIGNALS`], revision 1.
#[repr(C)]
#[derive(Clone, Copy, StableAbi)]
pub struct PluginSignals {
    pub header: Header,
    /// Tells of a signal (`SIGNAL_*`) that came to the server; answers at once: [`READY`](super::READY) (it was taken),
    /// [`PENDING`](super::PENDING) (nobody listens, or the number is not known) or [`PANICKED`](super::PANICKED).
    pub deliver: unsafe extern "C" fn(plugin: PluginHandle, signal: u32) -> u32,
}

/// A state blob with the version that its author gave it. OWNERSHIP: the receiver's.
#[repr(C)]
#[derive(StableAbi)]
pub struct StateBlob {
    pub version: u32,
    pub bytes: FfiBytes,
}
