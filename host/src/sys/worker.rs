//! A child process at its edges: what it inherits, its signals, its name, its standard streams, and its end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Takes an environment variable away and answers what it said.
///
/// Call it before the process has a second thread.
pub fn take_env(name: &str) -> Option<String> {
    let value = std::env::var(name).ok();
    // SAFETY: at the start of `main` there is one thread, so nobody reads the environment meanwhile.
    unsafe { std::env::remove_var(name) };
    value
}

/// Takes over a descriptor that the parent left at a known number, and makes it close-on-exec: what a plugin starts shall
/// not inherit it. Nothing if there is none.
///
/// Call it once for a number, before anything else is opened.
pub fn inherited(number: RawFd) -> io::Result<Option<OwnedFd>> {
    // SAFETY: only asked for its flags; a number that is not open is an error.
    match fcntl(unsafe { BorrowedFd::borrow_raw(number) }, FcntlArg::F_GETFD) {
        Err(Errno::EBADF) => return Ok(None),
        Err(errno) => return Err(errno.into()),
        Ok(_) => {}
    }
    // SAFETY: the descriptor is open, was placed by the parent for us, and nothing in this process owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(Some(fd))
}

/// Calls on `socket` shall answer at once, whatever the parent thought right.
pub fn set_nonblocking(socket: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(socket, FcntlArg::F_GETFL)?);
    fcntl(socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Makes `stderr` this process's standard output and standard error.
pub fn take_over_output(stderr: OwnedFd) -> io::Result<()> {
    nix::unistd::dup2_stdout(stderr.as_fd())?;
    nix::unistd::dup2_stderr(stderr.as_fd())?;
    Ok(())
}

/// The name that `ps` and `top` show; cut at 15 bytes by the kernel.
pub fn set_name(name: &std::ffi::CStr) -> io::Result<()> {
    Ok(nix::sys::prctl::set_name(name)?)
}

pub fn parent() -> i32 {
    nix::unistd::getppid().as_raw()
}

/// Signals that mean nothing to a child: its master is asked instead. Those of a terminal do not reach it, since it has a session of
/// its own; some are the operator's own signals, which the master passes on.
const UNUSED: [Signal; 6] =
    [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTSTP, Signal::SIGUSR1, Signal::SIGUSR2];

extern "C" fn no_op(_: libc::c_int) {}

/// Gives the signals that mean nothing to a child handlers that do nothing. Handlers and not SIG_IGN: those are reset by an
/// exec, so that what a plugin starts has the usual dispositions.
pub fn install_no_op_handlers() -> io::Result<()> {
    let action = SigAction::new(SigHandler::Handler(no_op), SaFlags::SA_RESTART, SigSet::empty());
    // SIGXFSZ: a log file at its limit is an error of the write, not the end of the process.
    for signal in UNUSED.into_iter().chain([Signal::SIGXFSZ]) {
        // SAFETY: the handler touches nothing.
        unsafe { sigaction(signal, &action) }?;
    }
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    // SAFETY: ignoring runs no code.
    unsafe { sigaction(Signal::SIGPIPE, &ignore) }?;
    Ok(())
}

/// The master blocked all signals before it started us; from here on they come to this thread and those that it starts.
pub fn unblock_signals() -> io::Result<()> {
    Ok(SigSet::empty().thread_set_mask()?)
}

/// Who handles the signals that are ours, by address, to compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handlers(Vec<(Signal, usize)>);

impl Handlers {
    /// As they stand now.
    pub fn now() -> Handlers {
        let ours = UNUSED.into_iter().chain([Signal::SIGTERM, Signal::SIGPIPE]);
        Handlers(ours.map(|signal| (signal, handler_of(signal))).collect())
    }

    /// Names of the signals that are handled elsewhere in `later`.
    pub fn changed(&self, later: &Handlers) -> Vec<&'static str> {
        let pairs = self.0.iter().zip(&later.0);
        pairs.filter(|(before, after)| before != after).map(|(before, _)| before.0.as_str()).collect()
    }
}

fn handler_of(signal: Signal) -> usize {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action the call only writes the present one to the address given, which is all zero (a valid
    // sigaction) should it fail.
    unsafe {
        libc::sigaction(signal as libc::c_int, std::ptr::null(), action.as_mut_ptr());
        action.assume_init().sa_sigaction
    }
}

/// Waits until the peer of a connected socket is gone.
pub fn wait_for_hangup(socket: BorrowedFd) {
    loop {
        // No events asked for: POLLHUP and POLLERR come always.
        let mut fds = [PollFd::new(socket, PollFlags::empty())];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => {}
            _ => return,
        }
    }
}

/// Ends the process now: no exit handlers, no destructors, since a plugin's threads still run.
pub fn exit(code: i32) -> ! {
    // SAFETY: `_exit` does not return and runs nothing of ours.
    unsafe { libc::_exit(code) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::seqpacket;

    #[test]
    fn a_peer_that_dies_is_noticed() {
        let (left, right) = seqpacket::pair().unwrap();
        let waiter = std::thread::spawn(move || wait_for_hangup(right.as_fd()));
        seqpacket::send(left.as_fd(), b"not yet", &[]).unwrap();
        drop(left);
        waiter.join().unwrap();
    }

    #[test]
    fn handlers_compare_by_address() {
        let before = Handlers::now();
        assert_eq!(before.changed(&Handlers::now()), Vec::<&str>::new());
        let mut other = before.clone();
        other.0[0].1 ^= 1;
        assert_eq!(before.changed(&other), ["SIGHUP"]);
    }

    #[test]
    fn a_number_that_is_not_open_is_nothing() {
        // Above every limit: other tests open what they need meanwhile.
        assert!(inherited(RawFd::MAX - 1).unwrap().is_none());
    }
}
