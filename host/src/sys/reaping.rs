//! Processes that nothing in this program waits for: what falls to PID 1 of a container or to a subreaper (prctl(2),
//! PR_SET_CHILD_SUBREAPER), and children whose owner here is gone. Their statuses are taken, so that no zombie is left, and those of
//! the others never are.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

/// How many owners here wait for a child of that number. A number may be used again while an owner of the process before is left.
static OWN: Mutex<BTreeMap<i32, usize>> = Mutex::new(BTreeMap::new());

fn own() -> MutexGuard<'static, BTreeMap<i32, usize>> {
    OWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// For as long as it lives, the status of the child with this number is its owner's.
#[derive(Debug)]
pub struct OwnChild(i32);

impl OwnChild {
    pub(super) fn new(pid: i32) -> OwnChild {
        *own().entry(pid).or_default() += 1;
        OwnChild(pid)
    }
}

impl Drop for OwnChild {
    fn drop(&mut self) {
        let mut own = own();
        if let Some(count) = own.get_mut(&self.0) {
            *count -= 1;
            if *count == 0 {
                own.remove(&self.0);
            }
        }
    }
}

/// Takes the statuses of processes that have ended and have no owner here, at most `limit`. Returns how many.
///
/// Only on the thread that starts processes: one that was just forked has no owner yet. Nothing else in the program may wait for
/// processes by another way.
pub fn reap_adopted(limit: usize) -> io::Result<usize> {
    for reaped in 0..limit {
        let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        let pid = match waitid(Id::All, look) {
            Ok(status) => status.pid(),
            // There are no children at all.
            Err(Errno::ECHILD) => None,
            Err(errno) => return Err(errno.into()),
        };
        // The kernel shows the same one until its owner has taken it, which is a matter of moments.
        let Some(pid) = pid.filter(|pid| !own().contains_key(&pid.as_raw())) else { return Ok(reaped) };
        take(pid)?;
    }
    Ok(limit)
}

fn take(pid: Pid) -> io::Result<()> {
    match waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG) {
        Ok(_) | Err(Errno::ECHILD) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::os::fd::AsFd;
    use std::path::Path;

    use nix::poll::{PollFd, PollFlags, poll};

    use super::*;
    use crate::sys::process::{self, ExitKind, Image, Process, Spec};

    /// Set in the process that the test has to itself.
    const ALONE: &str = "BATON_TEST_REAPING";

    /// Has ended, and nothing has taken its status.
    fn ended(code: u8) -> Process {
        let output = process::output_file(c"test").unwrap();
        let image = Image::open(Path::new("/bin/sh")).unwrap();
        let argv = ["sh", "-c", &format!("exit {code}")].map(|text| CString::new(text).unwrap()).to_vec();
        let spec = Spec { image: &image, argv, env: vec![], output: output.as_fd(), fds: vec![], credentials: None };
        let process = process::spawn(spec).unwrap();
        poll(&mut [PollFd::new(process.pidfd.as_fd(), PollFlags::POLLIN)], 10_000_u16).unwrap();
        process
    }

    fn is_zombie(pid: i32) -> bool {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
    }

    #[test]
    fn processes_without_an_owner_are_reaped_and_no_status_is_stolen() {
        // The other tests of this process have children as well, and wait for them.
        if std::env::var_os(ALONE).is_none() {
            let test = "sys::reaping::tests::processes_without_an_owner_are_reaped_and_no_status_is_stolen";
            let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
            let output = alone.args(["--exact", test]).env(ALONE, "1").output().unwrap();
            return assert!(output.status.success(), "{output:?}");
        }
        assert_eq!(reap_adopted(10).unwrap(), 0, "there are none");
        // As a tester whose test was given up.
        let given_up = ended(1);
        let (pid, owned) = (given_up.pid, ended(7));
        assert_eq!(reap_adopted(10).unwrap(), 0, "both have owners");
        drop(given_up);
        assert!(is_zombie(pid));
        assert_eq!(reap_adopted(10).unwrap(), 1);
        assert!(!is_zombie(pid) && is_zombie(owned.pid));
        // One that an owner has not taken yet hides those after it only for as long.
        drop(ended(2));
        assert_eq!(owned.try_wait().unwrap(), Some(ExitKind::Code(7)));
        (0..3).for_each(|_| drop(ended(3)));
        assert_eq!(reap_adopted(3).unwrap(), 3);
        assert_eq!(reap_adopted(3).unwrap(), 1);
    }
}
