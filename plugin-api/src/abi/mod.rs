//! ABI v1: every type that crosses the boundary between the host and a plugin.
//!
//! The host and a plugin are compiled apart, each with its own std, tokio, http and bytes. Nothing of those crosses:
//! what crosses is `#[repr(C)]` structs of pointers, lengths and `extern "C"` functions, defined here and nowhere else.
//!
//! Three parts, by how they may change:
//!
//! * [`Descriptor`]: plain bytes in the ELF file, read without `dlopen`, before anything of the plugin runs.
//! * The root module [`PluginModule`], [`HostApi`] and all they reach: checked by abi_stable at load, **frozen** at 1.0.0.
//!   abi_stable refuses an older plugin in a newer host once a field was added, so fields are never added.
//! * Extensions: [`PluginModule::extension`] and [`HostApi::extension`] answer `(id, min_rev)` with a table or null.
//!   All growth goes through them; see [`extension`].
//!
//! Rules that every function here obeys:
//!
//! * No panic crosses. Each side wraps its functions in `catch_unwind` and reports [`PANICKED`] where there is a code to
//!   report, or nothing.
//! * A [`Slice`] is borrowed for the duration of the call that received it, unless its field says otherwise.
//! * Owned handles ([`FfiBytes`], [`FfiBody`], [`FfiFuture`], [`FfiWaker`], [`FfiStream`], [`RequestHead`]) carry their own drop function
//!   and are freed by the side that made them. Each may be used and dropped on any thread.
//!
//! Safe code cannot break a type of this module:
//!
//! * A type that has safe functions, or a `Drop`, which follow a pointer ([`FfiBytes`], [`FfiBody`], [`FfiFuture`],
//!   [`FfiContext`], [`FfiWaker`], [`FfiStream`], [`RequestHead`]) has private fields. It is made from safe types, or by an
//!   `unsafe` constructor that names what the caller vouches for.
//! * A type with public fields ([`Slice`], [`HeaderRef`], [`ResponseHead`], [`ResponseSink`], [`LogRecord`], [`CreateArgs`], the
//!   vtables and extension tables) is plain data: nothing follows its pointers but functions that are `unsafe`.
//! * A function of a table is `unsafe`, unless any argument is right for it ([`PluginModule::set_log_level`]).
//! * What a handle stands for is given with its type, and the constructor demands of that type what `unsafe impl Send` and
//!   `Sync` promise of the handle.
#![allow(unsafe_code, non_camel_case_types, missing_docs)]

mod body;
mod bytes;
mod descriptor;
pub mod extension;
mod future;
mod head;
mod module;
mod stream;

pub use self::bytes::*;
pub use body::*;
pub use descriptor::*;
pub use future::*;
pub use head::*;
pub use module::*;
pub use stream::*;

/// Fails to compile for a type that is not `Send` and `Sync`: what an `unsafe impl` below relies on.
pub(crate) const fn assert_send_sync<T: Send + Sync>() {}

/// Revision of everything in this module. A plugin of another revision is refused before it is opened.
pub const ABI_REVISION: u32 = 1;

/// A poll or call did not finish; the waker was taken and will be woken.
pub const PENDING: u32 = 0;
/// A poll finished and wrote its output.
pub const READY: u32 = 1;
/// The other side panicked. The panic was caught and logged there; the handle must only be dropped now.
pub const PANICKED: u32 = 2;
/// A poll failed; what it wrote says how.
pub const FAILED: u32 = 3;
