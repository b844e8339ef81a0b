//! Plugins: opening their libraries, checking their layout, and leading each through its life. The sole user of
//! `sys::dylib`; with the bridge, the only part of the child that calls a plugin's functions.
//!
//! Libraries are never closed and plugins never freed: their threads and statics live until the process ends.
#![allow(unsafe_code)]

pub mod host;
mod log;

use std::ffi::c_void;
use std::fmt::Display;
use std::mem::MaybeUninit;
use std::path::Path;
use std::ptr::NonNull;
use std::task::{Context, Poll};
use std::time::Duration;

use abi_stable::library::{AbiHeaderRef, LibraryError, ROOT_MODULE_LOADER_NAME_WITH_NUL};
use abi_stable::std_types::RResult;
use baton_plugin_api::abi::extension::{PLUGIN_STATE, PluginState as StateTable, StateBlob};
use baton_plugin_api::abi::{
    self, CreateArgs, DESCRIPTOR_SYMBOL, Descriptor, EVENT_SERVING, EVENT_SHUTDOWN, FfiBody, FfiFuture, PluginHandle,
    PluginModule_Ref, RequestHead, Slice,
    extension::{self, PluginSignals},
};

use crate::config::same_plugin;
use crate::control::states::{MAX_STATE, PluginState};
use crate::control::{Hook, PluginFile};
use crate::report::{Failure, Generation, Stage};
use crate::sys::dylib::Dylib;
use crate::sys::worker::Handlers;

pub use host::Host;

/// How long a plugin's `destroy` may take.
const DESTROY_TIME: Duration = Duration::from_secs(1);
/// `baton-plugin-api` that this host was built with.
const API: &str = env!("CARGO_PKG_VERSION");

/// A plugin that is up.
pub struct Plugin {
    name: &'static str,
    mount: String,
    handle: PluginHandle,
    // The functions of the root module, read once: its accessors check at each use that the field exists.
    call: unsafe extern "C" fn(PluginHandle, RequestHead, FfiBody) -> FfiFuture,
    notify: unsafe extern "C" fn(PluginHandle, u32),
    shutdown: unsafe extern "C" fn(PluginHandle) -> FfiFuture,
    destroy: unsafe extern "C" fn(PluginHandle),
    /// Nothing, if it was built before there were signals for plugins.
    signals: Option<&'static PluginSignals>,
    save: Option<unsafe extern "C" fn(PluginHandle, *mut StateBlob) -> u32>,
}

/// The author's function panicked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavePanicked;

impl Plugin {
    pub fn name(&self) -> &'static str {
        self.name
    }

    pub fn mount(&self) -> &str {
        &self.mount
    }

    #[inline]
    pub fn call(&self, head: RequestHead, body: FfiBody) -> FfiFuture {
        // SAFETY: the function is that of the module that gave the handle.
        unsafe { (self.call)(self.handle, head, body) }
    }

    pub fn tell_serving(&self) {
        // SAFETY: as in `call`.
        unsafe { (self.notify)(self.handle, EVENT_SERVING) };
    }

    pub fn tell_shutdown(&self) {
        // SAFETY: as in `call`.
        unsafe { (self.notify)(self.handle, EVENT_SHUTDOWN) };
    }

    /// Answers whether anybody listens.
    pub fn tell_hook(&self, hook: Hook) -> bool {
        let number = match hook {
            Hook::Usr1 => extension::SIGNAL_USR1,
            Hook::Tstp => extension::SIGNAL_TSTP,
        };
        // SAFETY: the handle is the one of the plugin that the table came from.
        self.signals.is_some_and(|table| unsafe { (table.deliver)(self.handle, number) } == abi::READY)
    }

    /// What it hands on to the plugin that follows, with the version of its format. Blocks for as long as the author does.
    pub fn save(&self) -> Result<Option<(u32, Vec<u8>)>, SavePanicked> {
        let Some(save) = self.save else { return Ok(None) };
        let mut blob = MaybeUninit::<StateBlob>::uninit();
        // SAFETY: the function is that of the table of the plugin with this handle; `blob` is room for one blob.
        match unsafe { save(self.handle, blob.as_mut_ptr()) } {
            abi::READY => {
                // SAFETY: READY says that it was written; it is read once.
                let StateBlob { version, bytes } = unsafe { blob.assume_init() };
                let bytes = bytes::Bytes::from(bytes);
                // What nobody will take need not be copied: one byte too many says the same.
                Ok(Some((version, bytes[..bytes.len().min(MAX_STATE + 1)].to_vec())))
            }
            abi::PENDING => Ok(None),
            _ => Err(SavePanicked),
        }
    }

    /// Drives what the author registered for the end.
    pub async fn shutdown(&self) {
        // SAFETY: as in `call`.
        let mut future = unsafe { (self.shutdown)(self.handle) };
        let ended = std::future::poll_fn(move |cx| poll_without_sink(&mut future, cx)).await;
        if ended == abi::PANICKED {
            tracing::warn!(plugin = self.name, "its shutdown panicked");
        }
    }

    /// Ends the plugin's runtime. It is not waited for longer than a second: the process ends anyway.
    pub fn destroy(&'static self) {
        let (done, ended) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().name("destroy".into()).spawn(move || {
            // SAFETY: as in `call`; the process calls nothing of the plugin any more.
            unsafe { (self.destroy)(self.handle) };
            // Nobody may listen any more.
            let _ = done.send(());
        });
        match thread {
            Ok(_) if ended.recv_timeout(DESTROY_TIME).is_ok() => {}
            Ok(_) => tracing::warn!(plugin = self.name, "its end takes too long: going without it"),
            Err(error) => tracing::warn!(plugin = self.name, %error, "failed to start the thread that ends it"),
        }
    }

    /// A plugin whose functions are given: for tests.
    #[cfg(test)]
    pub fn fake(
        name: &'static str,
        handle: PluginHandle,
        call: unsafe extern "C" fn(PluginHandle, RequestHead, FfiBody) -> FfiFuture,
    ) -> &'static Plugin {
        extern "C" fn notify(_: PluginHandle, _: u32) {}
        extern "C" fn destroy(_: PluginHandle) {}
        extern "C" fn shutdown(_: PluginHandle) -> FfiFuture {
            static TABLE: abi::FfiFutureVtable = abi::FfiFutureVtable { poll, drop };
            unsafe extern "C" fn poll(_: *mut c_void, _: *const abi::FfiContext, _: *const abi::ResponseSink) -> u32 {
                abi::READY
            }
            unsafe extern "C" fn drop(_: *mut c_void) {}
            // SAFETY: the functions of the table ignore what they are called with.
            unsafe { FfiFuture::new(std::ptr::null_mut::<()>(), &TABLE) }
        }
        Box::leak(Box::new(Plugin {
            name,
            mount: "/".into(),
            handle,
            call,
            notify,
            shutdown,
            destroy,
            signals: None,
            save: None,
        }))
    }
}

fn poll_without_sink(future: &mut FfiFuture, cx: &mut Context<'_>) -> Poll<u32> {
    // SAFETY: the future has not ended (the caller stops at `Ready`); it has no response, hence the null sink.
    match unsafe { future.poll(cx.waker(), std::ptr::null()) } {
        abi::PENDING => Poll::Pending,
        ended => Poll::Ready(ended),
    }
}

/// Opens and starts all plugins, one after the other. Blocks: their inits may connect to databases.
///
/// `states` are what those before hand on. `begins` is told each one's name before anything of it runs, and returns when the
/// master knows: its init may end the process.
pub fn load_all(
    files: &[PluginFile],
    states: &[PluginState],
    generation: Generation,
    host: &Host,
    begins: impl Fn(&str),
) -> Result<Vec<&'static Plugin>, Failure> {
    let load = |file: &PluginFile| {
        begins(&file.name);
        let state = states.iter().find(|state| same_plugin(&state.plugin, &file.name));
        load(file, state, generation, host).map_err(|failure| failure.of_plugin(&file.name))
    };
    files.iter().map(load).collect()
}

fn load(
    file: &PluginFile,
    state: Option<&PluginState>,
    generation: Generation,
    host: &Host,
) -> Result<&'static Plugin, Failure> {
    let before = Handlers::now();
    let library = Dylib::open(&file.path).map_err(|error| not_opened(&file.path, &error))?;
    let about = describe(library);
    let header = address(library, ROOT_MODULE_LOADER_NAME_WITH_NUL).ok_or_else(|| no_plugin(about.is_some()))?;
    // SAFETY: abi_stable's own way to a library's header (`abi_header_from_raw_library`): the symbol of this name is the
    // header, and the type is a reference to it. The library is never closed, so `'static` holds.
    let header = unsafe { std::mem::transmute::<NonNull<c_void>, AbiHeaderRef>(header) };
    let module: PluginModule_Ref = header
        .upgrade()
        .and_then(|header| header.init_root_module())
        .map_err(|error| not_compatible(&error, about.as_ref()))?;

    // A worker loads its plugins once: what they refer to is never freed.
    let name: &'static str = Box::leak(file.name.clone().into_boxed_str());
    let config = file.config.to_string();
    let data_dir = file.data_dir.as_os_str();
    let args = CreateArgs {
        name: Slice::new(name.as_bytes()),
        config: Slice::new(config.as_bytes()),
        data_dir: Slice::new(data_dir.as_encoded_bytes()),
        generation: generation.0,
        log_level: log::level(),
        workers: file.workers,
        previous: state.map_or(Slice::EMPTY, |state| Slice::new(&state.bytes)),
        previous_version: state.map_or(0, |state| state.version),
        has_previous: state.is_some().into(),
    };
    // SAFETY: the arguments, and what they point to, are lent for the call.
    let created = unsafe { module.create()(host.offer(name, file.allow_control), &raw const args) };
    let handle = match created {
        RResult::ROk(handle) => handle,
        RResult::RErr(text) => return Err(init_failed(&text)),
    };
    for signal in before.changed(&Handlers::now()) {
        tracing::warn!(plugin = name, signal, "the plugin handles a signal that is the server's");
    }
    if let Some(about) = &about {
        let (rustc, api) = (abi::read_text(&about.rustc), abi::read_text(&about.api_version));
        tracing::debug!(plugin = name, version = abi::read_text(&about.version), rustc, api, "plugin loaded");
    }
    Ok(Box::leak(Box::new(Plugin {
        name,
        mount: file.mount.clone(),
        handle,
        call: module.call(),
        notify: module.notify(),
        shutdown: module.shutdown(),
        destroy: module.destroy(),
        signals: signals_of(module, handle),
        save: find_save(module, handle),
    })))
}

fn signals_of(module: PluginModule_Ref, handle: PluginHandle) -> Option<&'static PluginSignals> {
    // SAFETY: the handle is the one that this module gave.
    let table = unsafe { module.extension()(handle, extension::PLUGIN_SIGNALS, 1) };
    // SAFETY: a table that is not null lives as long as the process, is the one of this number and has at least revision 1.
    unsafe { table.cast::<PluginSignals>().as_ref() }
}

fn find_save(
    module: PluginModule_Ref,
    handle: PluginHandle,
) -> Option<unsafe extern "C" fn(PluginHandle, *mut StateBlob) -> u32> {
    // SAFETY: as in `signals_of`.
    let table = unsafe { module.extension()(handle, PLUGIN_STATE, 1) }.cast::<StateTable>();
    // SAFETY: a table that is not null lives as long as the process, and is of this kind and of revision 1 at least.
    unsafe { table.as_ref() }.map(|table| table.save)
}

fn address(library: &'static Dylib, symbol: &str) -> Option<NonNull<c_void>> {
    let name = std::ffi::CString::new(symbol.trim_end_matches('\0')).ok()?;
    library.address(&name)
}

/// What the plugin says of itself, if it does.
fn describe(library: &'static Dylib) -> Option<Descriptor> {
    let start = address(library, DESCRIPTOR_SYMBOL)?.cast::<u8>().as_ptr();
    // SAFETY: the macro puts a whole descriptor under this name, in memory that is never unmapped; the magic word and the
    // size, which come first in every revision, are looked at before the rest.
    unsafe {
        const HEAD: usize = 20;
        let head = std::slice::from_raw_parts(start, HEAD);
        let size = u32::from_ne_bytes([head[16], head[17], head[18], head[19]]) as usize;
        if head[..16] != abi::MAGIC || size < size_of::<Descriptor>() {
            return None;
        }
        Descriptor::from_bytes(std::slice::from_raw_parts(start, size))
    }
}

// ---- what can be wrong, in one line each ----

fn failed(error: impl Display) -> Failure {
    Failure::new(Stage::Load, error.to_string())
}

fn not_opened(path: &Path, error: &libloading::Error) -> Failure {
    use std::error::Error;
    not_opened_because(path, &error.source().map_or_else(|| error.to_string(), ToString::to_string))
}

/// `text` is the dynamic loader's.
fn not_opened_because(path: &Path, text: &str) -> Failure {
    // The loader begins with the path, which is the store's and means nothing to the reader.
    let text = text.strip_prefix(&*path.to_string_lossy()).unwrap_or(text).trim_start_matches([':', ' ']);
    let failure = failed(format!("open the library: {}", first_line(text)));
    if text.contains("undefined symbol") {
        return failure.hint("a symbol is missing: link the library that has it into the plugin, or install it");
    }
    if text.contains("cannot open shared object file") {
        return failure.hint("a library that the plugin needs is not installed: see `ldd` on the plugin");
    }
    if text.contains("static TLS block") {
        return failure.hint(
            "a library of it was built with thread-locals of the initial-exec model, as allocators such as jemalloc are: build \
             it without (jemalloc: the feature disable_initial_exec_tls), or start the server with \
             GLIBC_TUNABLES=glibc.rtld.optional_static_tls=16384 in its environment",
        );
    }
    failure.hint("build it as a cdylib for this machine, and copy it whole")
}

fn no_plugin(has_descriptor: bool) -> Failure {
    if has_descriptor {
        failed("failed to find the plugin's entry").hint("build it with the same baton-plugin-api throughout")
    } else {
        failed("failed to find a plugin in the library: it exports none")
            .hint("put #[handler] or #[plugin] of baton-plugin-api on one function, and build it as a cdylib")
    }
}

fn not_compatible(error: &LibraryError, about: Option<&Descriptor>) -> Failure {
    let built = match about {
        Some(about) => {
            format!("baton-plugin-api {}, {}", abi::read_text(&about.api_version), abi::read_text(&about.rustc))
        }
        None => "an unknown baton-plugin-api".into(),
    };
    let text = match error {
        LibraryError::AbiInstability(_) => {
            format!("failed to accept its ABI: it was built against another one ({built})")
        }
        LibraryError::IncompatibleVersionNumber { expected_version, actual_version, .. } => format!(
            "failed to accept its ABI: it was built with baton-plugin-api {actual_version}, the server with {expected_version}"
        ),
        LibraryError::InvalidAbiHeader(_) | LibraryError::InvalidCAbi { .. } | LibraryError::ParseVersionError(_) => {
            format!("failed to accept its ABI: its header is another one ({built})")
        }
        LibraryError::RootModule { .. } => "failed to start it: its entry gave no module".into(),
        other => format!("failed to accept its ABI: {}", first_line(&other.to_string())),
    };
    failed(text).hint(format!("rebuild the plugin against baton-plugin-api {API}")).detail(error.to_string())
}

fn init_failed(text: &str) -> Failure {
    let failure = failed(format!("failed to start: {}", first_line(text)));
    if text.trim().lines().count() > 1 { failure.detail(text.trim()) } else { failure }
}

fn first_line(text: &str) -> &str {
    text.trim().lines().next().unwrap_or("it does not say why")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &Path) -> PluginFile {
        PluginFile {
            name: "p".into(),
            path: path.into(),
            mount: "/".into(),
            config: serde_json::json!({}),
            data_dir: "/".into(),
            allow_control: true,
            workers: 0,
        }
    }

    fn refusal(path: &Path) -> Failure {
        let host = Host::new(crate::metrics::Metrics::local(), tokio::sync::mpsc::channel(1).0);
        match load_all(&[file(path)], &[], Generation(1), &host, |_| ()) {
            Err(failure) => failure,
            Ok(_) => panic!("{} was loaded", path.display()),
        }
    }

    #[track_caller]
    fn check(content: &[u8], error: &str) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.so");
        std::fs::write(&path, content).unwrap();
        let failure = refusal(&path);
        assert_eq!(failure.stage, Stage::Load);
        assert_eq!(failure.plugin.as_deref(), Some("p"));
        assert!(!failure.error.contains('\n') && failure.hint.is_some(), "{failure:?}");
        assert!(failure.error.contains(error), "{failure:?}");
        assert!(!failure.error.contains("p.so"), "the path is the store's: {failure:?}");
    }

    #[test]
    fn a_text_file_is_refused_in_one_line() {
        check(&b"hello\n".repeat(100), "open the library: invalid ELF header");
    }

    #[test]
    fn an_empty_or_short_file_is_refused_in_one_line() {
        check(b"", "open the library: file too short");
        check(b"\x7fELF", "open the library: file too short");
    }

    #[test]
    fn a_library_without_a_plugin_is_refused_in_one_line() {
        // A library that is there wherever this test runs.
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let libc = maps.split_whitespace().find(|word| word.contains("libc.so") || word.contains("libc-")).unwrap();
        let failure = refusal(Path::new(libc));
        assert!(failure.error.contains("it exports none"), "{failure:?}");
    }

    #[test]
    fn the_text_of_a_failed_init_is_cut_to_its_first_line() {
        let failure = init_failed("no database\n\nCaused by: refused\n");
        assert_eq!(failure.error, "start: no database");
        assert_eq!(failure.detail.as_deref(), Some("no database\n\nCaused by: refused"));
        assert_eq!(init_failed("no database").detail, None);
    }

    #[test]
    fn each_text_of_the_loader_has_the_hint_that_remedies_it() {
        for (text, hint) in [
            ("/store/1.so: undefined symbol: deflate", "link the library that has it"),
            ("libz.so.1: cannot open shared object file: No such file or directory", "`ldd` on the plugin"),
            (
                "/store/1.so: cannot allocate memory in static TLS block",
                "GLIBC_TUNABLES=glibc.rtld.optional_static_tls=",
            ),
            ("/store/1.so: invalid ELF header", "build it as a cdylib"),
        ] {
            let failure = not_opened_because(Path::new("/store/1.so"), text);
            assert!(failure.hint.as_ref().is_some_and(|found| found.contains(hint)), "{failure:?}");
            assert!(!failure.error.contains("/store"), "{failure:?}");
        }
    }

    /// Compiled as a plugin is that links an allocator with thread-locals of the initial-exec model, and more of them than glibc
    /// has room for.
    #[test]
    fn library_with_too_many_initial_exec_thread_locals_has_its_hint() {
        let dir = tempfile::tempdir().unwrap();
        let (source, path) = (dir.path().join("p.c"), dir.path().join("p.so"));
        let code =
            "__attribute__((tls_model(\"initial-exec\"))) __thread char all[1 << 20]; char *get(void) { return all; }";
        std::fs::write(&source, code).unwrap();
        let mut compiler = std::process::Command::new("cc");
        let built = compiler.args(["-shared", "-fPIC", "-o"]).arg(&path).arg(&source).status().unwrap();
        assert!(built.success());
        let failure = refusal(&path);
        assert!(failure.error.contains("static TLS block"), "{failure:?}");
        let hint = failure.hint.as_ref().unwrap();
        for part in ["initial-exec", "disable_initial_exec_tls", "GLIBC_TUNABLES=glibc.rtld.optional_static_tls="] {
            assert!(hint.contains(part), "{failure:?}");
        }
    }
}
