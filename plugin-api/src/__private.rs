//! What the code that `#[handler]` and `#[plugin]` emit refers to. No promise of stability: macro and crate go together.

use std::future::Future;

pub use abi_stable::library::{LibHeader, RootModuleResult};

use crate::abi::{ABI_REVISION, FLAG_DEBUG, FLAG_PANIC_ABORT, MAGIC, PluginModule_Ref, text};
use crate::export::{Exported, Outcome, form};
use crate::ffi::{self, BoxError};
use crate::logging::Bridge;
use crate::plugin::Init;
use crate::request::Request;
use crate::response::IntoResponse;

pub use crate::abi::Descriptor;
pub use crate::ffi::header;

/// A response on its way out, opaque to authors.
pub struct Reply(pub(crate) ffi::Reply);

/// The descriptor of a plugin crate.
pub const fn descriptor(name: &str, version: &str, mount: &str, panic_abort: bool, debug: bool) -> Descriptor {
    let mut flags = 0;
    if panic_abort {
        flags |= FLAG_PANIC_ABORT;
    }
    if debug {
        flags |= FLAG_DEBUG;
    }
    Descriptor {
        magic: MAGIC,
        size: size_of::<Descriptor>() as u32,
        abi_revision: ABI_REVISION,
        flags,
        reserved: 0,
        name: text(name),
        version: text(version),
        api_version: text(env!("CARGO_PKG_VERSION")),
        rustc: text(env!("BATON_RUSTC")),
        mount: text(mount),
    }
}

/// Runs at load: gives abi_stable the root module.
pub fn load(module: fn() -> PluginModule_Ref) -> RootModuleResult {
    abi_stable::library::__call_root_module_loader(module)
}

/// The root module of a plugin that is one handler.
pub fn handler<const SPAWN: bool, const WORKERS: usize, F, Fut>(function: F) -> PluginModule_Ref
where
    F: Fn(Request) -> Fut + Copy + Send + Sync + 'static,
    Fut: Future<Output: IntoResponse> + Send + 'static,
{
    module::<SPAWN, WORKERS, F, form::Handler<form::Async1>>(function)
}

/// The root module of a plugin that has an init.
pub fn plugin<const SPAWN: bool, const WORKERS: usize, F, Fut, M>(init: F) -> PluginModule_Ref
where
    F: Fn(Init) -> Fut + Copy + Send + Sync + 'static,
    Fut: Future<Output: Outcome<M>>,
    M: 'static,
{
    module::<SPAWN, WORKERS, F, form::Plugin<(form::Async1, M)>>(init)
}

/// The root module of any function that can be a plugin.
pub fn module<const SPAWN: bool, const WORKERS: usize, F: Exported<M>, M>(function: F) -> PluginModule_Ref {
    ffi::root_module::<F::Entry, Bridge, SPAWN, WORKERS>(function.entry())
}

/// Where the compiler points to when a handler's result cannot be a response.
pub fn response<T: IntoResponse>(value: T) -> T {
    value
}

/// Where the compiler points to when an init's result cannot serve.
pub fn outcome<T: Outcome<M>, M>(value: T) -> Result<T::Served, BoxError> {
    value.outcome()
}

/// Holds the macro to the name under which abi_stable looks for its header.
pub const fn assert_header_name(name: &str) {
    let (name, expected) = (name.as_bytes(), abi_stable::library::ROOT_MODULE_LOADER_NAME.as_bytes());
    assert!(name.len() == expected.len(), "the header's name is not abi_stable's");
    let mut at = 0;
    while at < name.len() {
        assert!(name[at] == expected[at], "the header's name is not abi_stable's");
        at += 1;
    }
}
