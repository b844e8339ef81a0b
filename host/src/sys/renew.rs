//! Another program in this very process: what stays open across it, and that all is as it was if it fails.
//!
//! Numbers of descriptors stay what they are across an exec, so they name what is passed on. Every other descriptor is
//! close-on-exec by its creation.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
use nix::sys::stat::{SFlag, fstat};
use nix::sys::wait::{Id, WaitPidFlag, waitid};

use super::process::{Exec, Image, Process};

/// The first number that is not a standard stream's.
const FIRST: RawFd = 3;

/// What tells one open file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nature {
    /// Its type, as `st_mode` has it.
    pub kind: u32,
    pub inode: u64,
}

impl Nature {
    pub fn of(fd: BorrowedFd) -> io::Result<Nature> {
        let stat = fstat(fd)?;
        Ok(Nature { kind: stat.st_mode & SFlag::S_IFMT.bits(), inode: stat.st_ino })
    }
}

/// Makes every descriptor but the standard streams close-on-exec: what was passed on is for this program alone.
pub fn close_all_on_exec() -> io::Result<()> {
    // The list is read to its end before anything is opened or closed.
    let numbers: Vec<RawFd> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|number| *number >= FIRST)
        .collect();
    for number in numbers {
        match set_flag(number, FdFlag::FD_CLOEXEC) {
            // The one that read the list.
            Err(error) if error.raw_os_error() == Some(Errno::EBADF as i32) => {}
            result => result?,
        }
    }
    Ok(())
}

fn set_flag(number: RawFd, flag: FdFlag) -> io::Result<()> {
    // SAFETY: only a flag of it is set; a number that is not open is an error.
    fcntl(unsafe { BorrowedFd::borrow_raw(number) }, FcntlArg::F_SETFD(flag))?;
    Ok(())
}

/// A copy of the descriptor `number`. The number itself stays open.
pub fn copy(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: a number that is not open is an error, and the copy is a descriptor of its own.
    let fd = fcntl(unsafe { BorrowedFd::borrow_raw(number) }, FcntlArg::F_DUPFD_CLOEXEC(FIRST))?;
    // SAFETY: F_DUPFD_CLOEXEC made this descriptor; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// As [`copy`], if it is of this nature.
pub fn copy_of(number: RawFd, nature: Nature) -> io::Result<OwnedFd> {
    let fd = copy(number)?;
    match Nature::of(fd.as_fd())? {
        found if found == nature => Ok(fd),
        found => Err(io::Error::other(format!("descriptor {number} is {found:?} instead of {nature:?}"))),
    }
}

/// Closes what another program of this process left open. Once for a number that nothing here owns.
pub fn close(number: RawFd) {
    // SAFETY: nothing in this program owns the number: it came open, and was only copied.
    drop(unsafe { OwnedFd::from_raw_fd(number) });
}

/// Which program takes this process over.
#[derive(Clone, Copy, Debug)]
pub enum Program<'a> {
    Image(&'a Image),
    /// One that came open under this number.
    Number(RawFd),
}

/// Runs `program` in this process: the same pid and children, and of the descriptors the standard streams and `keep`. All
/// signals are blocked across it, so that none is lost and none kills; the program unblocks them when it has handlers.
///
/// Comes back only with an error, and then nothing has changed.
pub fn exec(program: Program<'_>, argv: &[CString], env: &[CString], keep: &[RawFd]) -> io::Error {
    let image = match program {
        Program::Image(image) => image.number(),
        Program::Number(number) => number,
    };
    let exec = Exec::new(image, argv, env);
    let mut before = SigSet::empty();
    if let Err(errno) = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before)) {
        return errno.into();
    }
    let opened = keep.iter().try_for_each(|number| set_flag(*number, FdFlag::empty()));
    let error = opened.err().unwrap_or_else(|| exec.run());
    for number in keep {
        // One that could not be opened up cannot be closed up either, and was not passed on.
        set_flag(*number, FdFlag::FD_CLOEXEC).ok();
    }
    // The mask was a valid one a moment ago.
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None).ok();
    error
}

impl Process {
    /// A child of this process that an earlier program of it started. It is not reaped yet, so the pid is its own.
    pub fn adopt(pid: i32) -> io::Result<Process> {
        let process = Process::open(pid)?;
        // Asks only: whoever waits for it reaps it.
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        waitid(Id::PIDFd(process.pidfd.as_fd()), flags)?;
        Ok(process)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    fn flag(fd: &impl AsFd) -> bool {
        FdFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFD).unwrap()).contains(FdFlag::FD_CLOEXEC)
    }

    #[test]
    fn what_cannot_run_changes_nothing() {
        let (reader, writer) = std::io::pipe().unwrap();
        let image = Image::open(std::path::Path::new("/etc/hostname")).unwrap();
        let mask = SigSet::thread_get_mask().unwrap();
        let error = exec(Program::Image(&image), &[c"x".to_owned()], &[], &[reader.as_raw_fd(), writer.as_raw_fd()]);
        assert!(error.raw_os_error().is_some(), "{error}");
        assert!(flag(&reader) && flag(&writer));
        assert_eq!(SigSet::thread_get_mask().unwrap(), mask);
    }

    #[test]
    fn a_number_is_taken_over_only_if_it_is_what_was_said() {
        let (reader, writer) = std::io::pipe().unwrap();
        let nature = Nature::of(reader.as_fd()).unwrap();
        let copy = copy_of(reader.as_raw_fd(), nature).unwrap();
        assert!(flag(&copy));
        let file = std::fs::File::open("/etc/hostname").unwrap();
        assert!(copy_of(file.as_raw_fd(), nature).is_err());
        assert!(copy_of(987, nature).is_err());
        drop(writer);
    }

    #[test]
    fn only_an_own_child_is_adopted() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::adopt(child.id() as i32).unwrap();
        assert!(process.try_wait().unwrap().is_none());
        process.signal(nix::sys::signal::Signal::SIGKILL).unwrap();
        child.wait().unwrap();
        assert!(Process::adopt(1).is_err());
    }
}
