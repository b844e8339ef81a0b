//! The root module of a plugin and the host's side of it: the part that abi_stable checks at load.

use std::ffi::c_void;

use abi_stable::StableAbi;
use abi_stable::library::RootModule;
use abi_stable::package_version_strings;
use abi_stable::sabi_types::VersionStrings;
use abi_stable::std_types::{RResult, RString};

use super::{FfiBody, FfiFuture, RequestHead, Slice};

/// What a plugin exports. Frozen: no field is ever added (see the module's documentation).
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = PluginModule_Ref)))]
#[sabi(missing_field(panic))]
pub struct PluginModule {
    /// Starts the plugin: its runtime, log bridge and the author's init, to its end. Called once per process, on a thread
    /// that may block. The error is the author's text, one line first.
    pub create: unsafe extern "C" fn(host: HostApi_Ref, args: *const CreateArgs) -> RResult<PluginHandle, RString>,
    /// Takes a request. OWNERSHIP: head and body pass to the plugin, the future to the host.
    pub call: unsafe extern "C" fn(plugin: PluginHandle, head: RequestHead, body: FfiBody) -> FfiFuture,
    /// Tells of a change of life (`EVENT_*`); answers at once. Unknown numbers are ignored.
    pub notify: unsafe extern "C" fn(plugin: PluginHandle, event: u32),
    /// Drives what the author registered for the end (`on_shutdown`, tracked tasks). Polled with a null sink.
    pub shutdown: unsafe extern "C" fn(plugin: PluginHandle) -> FfiFuture,
    /// Ends the runtime without waiting for what still runs in it. The last call.
    pub destroy: unsafe extern "C" fn(plugin: PluginHandle),
    /// How much to log from now on: 0 off, 1 error, 2 warn, 3 info, 4 debug, 5 trace.
    pub set_log_level: extern "C" fn(level: u32),
    /// See [`extension`](super::extension).
    #[sabi(last_prefix_field)]
    pub extension: unsafe extern "C" fn(plugin: PluginHandle, id: u32, min_rev: u32) -> *const c_void,
}

/// The generation begins to serve: it is committed.
pub const EVENT_SERVING: u32 = 1;
/// The generation retires: finish, take on nothing new. Comes at most once, and not before [`EVENT_SERVING`].
pub const EVENT_SHUTDOWN: u32 = 2;

/// A plugin's own state, as the plugin gave it.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct PluginHandle(*mut c_void);

// SAFETY: `PluginHandle::new` takes only what may be shared by threads.
unsafe impl Send for PluginHandle {}
// SAFETY: as above.
unsafe impl Sync for PluginHandle {}

impl PluginHandle {
    /// Stands for `plugin`, which is never freed.
    pub fn new<P: Send + Sync>(plugin: &'static P) -> PluginHandle {
        PluginHandle(std::ptr::from_ref(plugin).cast_mut().cast())
    }

    /// What [`new`](PluginHandle::new) was given; only the plugin knows its type.
    pub fn as_ptr(self) -> *const c_void {
        self.0
    }
}

/// What a plugin is given at its start; borrowed for the call.
#[repr(C)]
#[derive(StableAbi)]
pub struct CreateArgs {
    /// The plugin's name (its file's).
    pub name: Slice,
    /// `[plugins.NAME.config]` as JSON; `{}` if absent.
    pub config: Slice,
    /// The plugin's own directory, absolute; it exists.
    pub data_dir: Slice,
    /// The number of this generation.
    pub generation: u64,
    /// As in [`PluginModule::set_log_level`].
    pub log_level: u32,
    /// Threads for the plugin's runtime; 0 for its own choice.
    pub workers: u32,
    /// The blob that the serving generation saved, with its version; empty and 0 if there is none.
    pub previous: Slice,
    pub previous_version: u32,
    pub has_previous: u32,
}

/// What the host offers a plugin. Frozen, as [`PluginModule`] is. May be called on any thread, until the process ends.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = HostApi_Ref)))]
#[sabi(missing_field(panic))]
pub struct HostApi {
    /// Passed back as the first argument of every function here.
    pub context: *const c_void,
    /// Takes a log record (borrowed).
    pub log: unsafe extern "C" fn(context: *const c_void, record: *const LogRecord),
    /// See [`extension`](super::extension).
    #[sabi(last_prefix_field)]
    pub extension: unsafe extern "C" fn(context: *const c_void, id: u32, min_rev: u32) -> *const c_void,
}

// SAFETY: `HostApi::new` takes only a context that may be shared by threads.
unsafe impl Send for HostApi {}
// SAFETY: as above.
unsafe impl Sync for HostApi {}

impl HostApi {
    /// A table whose functions get `context`, which is never freed.
    pub fn new<C: Send + Sync>(
        context: &'static C,
        log: unsafe extern "C" fn(context: *const c_void, record: *const LogRecord),
        extension: unsafe extern "C" fn(context: *const c_void, id: u32, min_rev: u32) -> *const c_void,
    ) -> HostApi {
        HostApi { context: std::ptr::from_ref(context).cast(), log, extension }
    }
}

/// One event of `tracing` or `log`, or a panic. All borrowed for the call.
#[repr(C)]
#[derive(StableAbi)]
pub struct LogRecord {
    /// 1 error, 2 warn, 3 info, 4 debug, 5 trace.
    pub level: u32,
    pub field_count: u32,
    pub target: Slice,
    pub message: Slice,
    pub fields: *const LogField,
    /// The request it belongs to, or 0.
    pub request_id: u64,
    /// Names of the spans around it, outermost first, joined by `:`; their fields follow the event's own in `fields`.
    pub spans: Slice,
    /// Source file and line, or empty and 0.
    pub file: Slice,
    pub line: u32,
    /// 1 if this is a panic that was caught.
    pub panic: u32,
}

/// A field of a log record, already formatted.
#[repr(C)]
#[derive(Clone, Copy, StableAbi)]
pub struct LogField {
    pub name: Slice,
    pub value: Slice,
}

impl RootModule for PluginModule_Ref {
    abi_stable::declare_root_module_statics! {PluginModule_Ref}

    const BASE_NAME: &'static str = "baton_plugin";
    const NAME: &'static str = "baton_plugin";
    const VERSION_STRINGS: VersionStrings = package_version_strings!();
}
