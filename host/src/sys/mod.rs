//! The fence around the kernel: descriptors, processes, sockets and shared memory as owned, safe types. The only place in
//! the host, with `child::plugin` and `child::bridge`, where unsafe code may stand. Knows nothing of Baton's own terms.
#![allow(unsafe_code)]

pub mod closing;
pub mod credentials;
pub mod dylib;
pub mod files;
pub mod hangup;
pub mod holders;
#[cfg(test)]
pub mod link_swap;
pub mod listening;
pub mod memory;
pub mod notify;
pub mod private_dir;
pub mod process;
pub mod readiness;
pub mod reaping;
pub mod renew;
pub mod sealed;
pub mod seqpacket;
pub mod shared;
pub mod socket;
pub mod tcp;
pub mod terminal;
pub mod worker;

/// Fails to compile for a type that is not `Send` and `Sync`: what an `unsafe impl` of these relies on.
const fn assert_send_sync<T: Send + Sync>() {}
