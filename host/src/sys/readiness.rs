//! Waiting for a descriptor in tokio. Here because registering one is unsafe since tokio 1.54: the runtime keeps the number,
//! so whoever registers must own the descriptor for as long (I/O safety, RFC 3128).

use std::io;
use std::os::fd::OwnedFd;

use nix::sys::signalfd::SignalFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::closing::ClosedElsewhere;

/// Registers a non-blocking descriptor. Within a tokio runtime.
pub fn register(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` stays open, and the same open file, until it is dropped, and `AsyncFd` deregisters before that.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

/// The same for one that is closed on another thread.
pub fn register_closed_elsewhere(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<ClosedElsewhere>> {
    // SAFETY: as above; a `ClosedElsewhere` owns its descriptor.
    Ok(unsafe { AsyncFd::register_with_interest(ClosedElsewhere::from(fd), interest) }?)
}

/// Registers the descriptor of [`super::process::watch_signals`].
pub fn signals(signals: SignalFd) -> io::Result<AsyncFd<SignalFd>> {
    // SAFETY: as above; a `SignalFd` owns its descriptor.
    Ok(unsafe { AsyncFd::register_with_interest(signals, Interest::READABLE) }?)
}
