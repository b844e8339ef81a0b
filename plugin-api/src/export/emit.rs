//! What the code that `#[handler]` and `#[plugin]` emit consists of. No promise of stability: macro and crate go together.

use std::future::Future;

pub use abi_stable::library::{LibHeader, RootModuleResult};

pub use super::form;
use super::{Exported, Outcome};
pub use crate::abi::Descriptor;
use crate::abi::{ABI_REVISION, FLAG_DEBUG, FLAG_PANIC_ABORT, MAGIC, PluginModule_Ref, text};
pub use crate::ffi::header;
use crate::ffi::{self, BoxError, Logging};
use crate::plugin::Init;
use crate::request::Request;
use crate::response::IntoResponse;

/// Exports what a plugin exports: the descriptor, which is read from the file before it is opened as a library, and
/// abi_stable's header, which leads to the root module that `$module` gives.
#[doc(hidden)]
#[macro_export]
macro_rules! __export {
    ($mount:expr, $module:expr) => {
        const _: () = {
            $crate::__private::assert_header_name(::core::stringify!(_1as_0lib_1header_0root_bmodule_bloader));

            #[allow(unsafe_code)]
            #[unsafe(no_mangle)]
            #[used]
            pub static BATON_PLUGIN_DESCRIPTOR: $crate::__private::Descriptor = $crate::__private::descriptor(
                ::core::env!("CARGO_PKG_NAME"),
                ::core::env!("CARGO_PKG_VERSION"),
                $mount,
                ::core::cfg!(panic = "abort"),
                ::core::cfg!(debug_assertions),
            );

            extern "C" fn load() -> $crate::__private::RootModuleResult {
                $crate::__private::load(|| $module)
            }

            #[allow(unsafe_code, non_upper_case_globals)]
            #[unsafe(no_mangle)]
            #[used]
            pub static _1as_0lib_1header_0root_bmodule_bloader: $crate::__private::LibHeader =
                $crate::__private::header(load);
        };
    };
}

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
pub fn handler<L, const SPAWN: bool, const WORKERS: usize, F, Fut>(function: F) -> PluginModule_Ref
where
    L: Logging,
    F: Fn(Request) -> Fut + Copy + Send + Sync + 'static,
    Fut: Future<Output: IntoResponse> + Send + 'static,
{
    module::<L, SPAWN, WORKERS, F, form::Handler<form::Async1>>(function)
}

/// The root module of a plugin that has an init.
pub fn plugin<L, const SPAWN: bool, const WORKERS: usize, F, Fut, M>(init: F) -> PluginModule_Ref
where
    L: Logging,
    F: Fn(Init) -> Fut + Copy + Send + Sync + 'static,
    Fut: Future<Output: Outcome<M>>,
    M: 'static,
{
    module::<L, SPAWN, WORKERS, F, form::Plugin<(form::Async1, M)>>(init)
}

/// The root module of any function that can be a plugin.
pub fn module<L, const SPAWN: bool, const WORKERS: usize, F, M>(function: F) -> PluginModule_Ref
where
    L: Logging,
    F: Exported<M>,
{
    ffi::root_module::<F::Entry, L, SPAWN, WORKERS>(function.entry())
}

/// Where the compiler points to when a handler's result cannot be a response.
pub fn response<T: IntoResponse>(value: T) -> T {
    value
}

/// Where the compiler points to when an init's result cannot serve.
pub fn outcome<T: Outcome<M>, M>(value: T) -> Result<T::Served, BoxError> {
    value.outcome()
}

/// Holds the name above to the one that abi_stable looks for.
pub const fn assert_header_name(name: &str) {
    let (name, expected) = (name.as_bytes(), abi_stable::library::ROOT_MODULE_LOADER_NAME.as_bytes());
    assert!(name.len() == expected.len(), "the header's name is not abi_stable's");
    let mut at = 0;
    while at < name.len() {
        assert!(name[at] == expected[at], "the header's name is not abi_stable's");
        at += 1;
    }
}
