//! The root module: what the host calls to start a plugin, to lead it through its life and to end it.

use std::ffi::{OsStr, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use abi_stable::library::{CheckTypeLayout, LibHeader, RootModuleResult};
use abi_stable::prefix_type::PrefixTypeTrait;
use abi_stable::std_types::{RErr, ROk, RResult, RString};
use bytes::Bytes;

use super::context::{catch, guard, set_only, within};
use super::instance::Facts;
use super::{App, BoxError, Entry, HostRef, Instance, call, error_text, loopback, panics};
use crate::abi::extension::{self, Header, PluginSignals, PluginState, StateBlob};
use crate::abi::{
    self, CreateArgs, FfiBody, FfiBytes, FfiFuture, HostApi_Ref, PluginHandle, PluginModule, PluginModule_Ref,
    RequestHead, Slice,
};

/// What a [`PluginHandle`] of ours points to. `repr(C)`: whatever the app, the instance comes first (see `save`).
#[repr(C)]
struct Served<A> {
    instance: &'static Instance,
    app: A,
}

/// What carries the author's log records to the host.
pub trait Logging {
    /// Called at each start; the first one in a process counts.
    fn install();
    /// As in [`PluginModule::set_log_level`].
    fn set_level(level: u32);
}

/// The root module of a plugin. `WORKERS` is 0 for our own choice.
pub fn root_module<E: Entry, L: Logging, const SPAWN: bool, const WORKERS: usize>(_entry: E) -> PluginModule_Ref {
    const {
        assert!(
            size_of::<E>() == 0,
            "the init or handler of a plugin is a function, or a closure that captures nothing"
        )
    };
    PluginModule {
        create: create::<E, L, WORKERS>,
        call: call::<E::App, SPAWN>,
        notify: notify::<E::App>,
        shutdown: shutdown::<E::App>,
        destroy: destroy::<E::App>,
        set_log_level: set_log_level::<L>,
        extension: find_extension,
    }
    .leak_into_prefix()
}

/// The value of a type that has only one. Only `root_module` leads here, and it was given one.
fn conjure<E: Entry>() -> E {
    const { assert!(size_of::<E>() == 0) };
    // SAFETY: a value without size is read from nowhere (a dangling, aligned pointer is valid for that); `root_module` was
    // given a value, so the type is inhabited; `Copy` makes a second one harmless.
    unsafe { std::ptr::NonNull::<E>::dangling().read() }
}

/// # Safety
/// `create` of the same module gave the handle.
unsafe fn served<A: App>(plugin: PluginHandle) -> &'static Served<A> {
    // SAFETY: the caller vouches for the handle; what it stands for is never freed.
    unsafe { &*plugin.as_ptr().cast::<Served<A>>() }
}

// ---- start ----

unsafe extern "C" fn create<E: Entry, L: Logging, const WORKERS: usize>(
    host: HostApi_Ref,
    args: *const CreateArgs,
) -> RResult<PluginHandle, RString> {
    let host = HostRef::new(host);
    let created = catch(|| {
        // SAFETY: the host lends the arguments, and what they point to, for this call.
        let (facts, workers, log_level) = unsafe { read(&*args) };
        let instance: &'static Instance = Box::leak(Box::new(Instance::new(host, facts)));
        if !loopback::hosts_this_process() {
            set_only(instance);
        }
        within(instance.context(0), || {
            panics::install();
            L::install();
            L::set_level(log_level);
            let workers = [workers, WORKERS].into_iter().find(|count| *count > 0).unwrap_or_else(default_workers);
            (instance, catch(|| start::<E>(instance, workers)))
        })
    });
    let (instance, started) = match created {
        Ok(created) => created,
        Err(_) => return RErr(panic_text("the plugin panicked before its init").into()),
    };
    let text = match started {
        Ok(Ok(app)) => return ROk(PluginHandle::new(Box::leak(Box::new(Served { instance, app })))),
        Ok(Err(text)) => text,
        Err(_) => panic_text("init panicked"),
    };
    // What the init spawned may run the author's `Drop`s.
    let _ = catch(|| instance.stop_runtime());
    RErr(text.into())
}

fn start<E: Entry>(instance: &'static Instance, workers: usize) -> Result<E::App, String> {
    let handle =
        instance.start_runtime(workers).map_err(|error| format!("failed to start the plugin's runtime: {error}"))?;
    handle.block_on(conjure::<E>().start(instance)).map_err(|error: BoxError| match error_text(&*error) {
        text if text.is_empty() => "init failed without saying why".to_owned(),
        text => text,
    })
}

fn panic_text(what: &str) -> String {
    match panics::take_last() {
        Some(text) => format!("{what}: {}", text.strip_prefix("panicked at ").unwrap_or(&text)),
        None => what.to_owned(),
    }
}

/// Handlers run on the host's threads; these only drive I/O, timers and what the author spawns.
fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(1, |count| count.get().min(2))
}

/// Copies what the host lent.
///
/// # Safety
/// The slices of `args` are alive.
unsafe fn read(args: &CreateArgs) -> (Facts, usize, u32) {
    // SAFETY: the caller vouches for the slices.
    let bytes = |slice: Slice| unsafe { slice.as_bytes() };
    let facts = Facts {
        name: String::from_utf8_lossy(bytes(args.name)).into_owned(),
        config: bytes(args.config).to_vec(),
        data_dir: PathBuf::from(OsStr::from_bytes(bytes(args.data_dir))),
        generation: args.generation,
        previous: (args.has_previous != 0).then(|| (args.previous_version, bytes(args.previous).to_vec())),
    };
    (facts, args.workers as usize, args.log_level)
}

// ---- life ----

unsafe extern "C" fn call<A: App, const SPAWN: bool>(
    plugin: PluginHandle,
    head: RequestHead,
    body: FfiBody,
) -> FfiFuture {
    // SAFETY: the host passes back what `create` gave it.
    let served = unsafe { served::<A>(plugin) };
    call::request::<A, SPAWN>(served.instance, &served.app, head, body)
}

unsafe extern "C" fn notify<A: App>(plugin: PluginHandle, event: u32) {
    // SAFETY: as in `call`.
    let instance = unsafe { served::<A>(plugin) }.instance;
    // Waking runs wakers of the author's executors too; a panic there has been logged.
    let _ = guard(instance.context(0), || match event {
        abi::EVENT_SERVING => instance.begin_serving(),
        abi::EVENT_SHUTDOWN => instance.begin_shutdown(),
        _ => {}
    });
}

unsafe extern "C" fn shutdown<A: App>(plugin: PluginHandle) -> FfiFuture {
    // SAFETY: as in `call`.
    let instance = unsafe { served::<A>(plugin) }.instance;
    call::export(instance.context(0), instance.end())
}

unsafe extern "C" fn destroy<A: App>(plugin: PluginHandle) {
    // SAFETY: as in `call`.
    let instance = unsafe { served::<A>(plugin) }.instance;
    // Tasks that never ran are dropped here; a panic in such a drop has been logged.
    let _ = guard(instance.context(0), || instance.stop_runtime());
}

extern "C" fn set_log_level<L: Logging>(level: u32) {
    // Rebuilding the interest cache asks every subscriber, which may be the author's.
    let _ = catch(|| L::set_level(level));
}

// ---- extensions ----

unsafe extern "C" fn find_extension(_: PluginHandle, id: u32, min_rev: u32) -> *const c_void {
    // The tables are not generic: a plugin has one state and hears one set of signals, whatever serves its requests.
    match id {
        extension::PLUGIN_STATE if min_rev <= STATE.header.rev => (&raw const STATE).cast(),
        extension::PLUGIN_SIGNALS if min_rev <= SIGNALS.header.rev => (&raw const SIGNALS).cast(),
        _ => std::ptr::null(),
    }
}

static STATE: PluginState = PluginState { header: Header { size: size_of::<PluginState>() as u32, rev: 1 }, save };

unsafe extern "C" fn save(plugin: PluginHandle, out: *mut StateBlob) -> u32 {
    // SAFETY: the host passes back what `create` gave it; a `Served` of any app begins with the reference (`repr(C)`).
    let instance: &'static Instance = unsafe { *plugin.as_ptr().cast::<&'static Instance>() };
    match guard(instance.context(0), || instance.save()) {
        Ok(Some((version, bytes))) => {
            // SAFETY: `out` is the host's room for one blob.
            unsafe { out.write(StateBlob { version, bytes: FfiBytes::from(Bytes::from(bytes)) }) };
            abi::READY
        }
        Ok(None) => abi::PENDING,
        Err(_) => abi::PANICKED,
    }
}

static SIGNALS: PluginSignals =
    PluginSignals { header: Header { size: size_of::<PluginSignals>() as u32, rev: 1 }, deliver };

unsafe extern "C" fn deliver(plugin: PluginHandle, signal: u32) -> u32 {
    // SAFETY: as in `save`.
    let instance: &'static Instance = unsafe { *plugin.as_ptr().cast::<&'static Instance>() };
    // Waking runs wakers of the author's executors too.
    match guard(instance.context(0), || instance.deliver(signal)) {
        Ok(true) => abi::READY,
        Ok(false) => abi::PENDING,
        Err(_) => abi::PANICKED,
    }
}

/// The header by which abi_stable finds the root module that `load` gives: what its own attribute macro would emit, if a
/// plugin crate depended on abi_stable.
pub const fn header(load: extern "C" fn() -> RootModuleResult) -> LibHeader {
    // SAFETY: the layout that is recorded is that of `PluginModule_Ref`; `#[handler]` and `#[plugin]`, the only callers, pass
    // a function that ends in `__private::load`, which gives just that.
    unsafe { LibHeader::from_constructor::<PluginModule_Ref>(load, CheckTypeLayout::Yes) }
}
