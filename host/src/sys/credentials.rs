//! The rights of a process that is about to be executed: another user's, and no capability. Everything is looked up before
//! the fork; between fork and exec there are system calls alone, in the order that each still has the right to be made.
//!
//! System calls and not libc's functions of the same names: those change all threads of a process, by signals and under locks,
//! which a forked child must not touch (nptl(7)). A forked child has one thread, and [`Credentials::try_out`] wants one alone.

use std::io;

use nix::errno::Errno;

use super::process::Image;

/// As whom a process runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary ones.
    pub groups: Vec<u32>,
}

/// Answers 0 and up, or an errno; no allocation.
fn done(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn prctl(option: libc::c_int, argument: libc::c_int) -> io::Result<()> {
    let zero: libc::c_ulong = 0;
    // SAFETY: the options used here take numbers, no pointers; async-signal-safe.
    done(libc::c_long::from(unsafe { libc::prctl(option, argument as libc::c_ulong, zero, zero, zero) }))
}

/// `linux/capability.h`: version 3, whose sets have 64 bits in two halves.
#[repr(C)]
struct CapHeader {
    version: u32,
    pid: libc::c_int,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const CAP_VERSION: u32 = 0x2008_0522;

impl Credentials {
    /// Takes them on for good, in a process that has one thread: between fork and exec. Async-signal-safe.
    pub(super) fn take_on(&self) -> io::Result<()> {
        // From here on no program gains rights by its file, so that what cannot be dropped below cannot be used either.
        prctl(libc::PR_SET_NO_NEW_PRIVS, 1)?;
        for capability in 0.. {
            match prctl(libc::PR_CAPBSET_DROP, capability) {
                Ok(()) => {}
                // EINVAL: that was the last one. EPERM: without CAP_SETPCAP the bounding set stays, and means nothing.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EPERM)) => break,
                Err(error) => return Err(error),
            }
        }
        prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL)?;
        if !self.are_own() {
            // Groups first: once the user has changed, the right to change them is gone.
            self.take_groups()?;
            // SAFETY: numbers only.
            done(unsafe { libc::syscall(libc::SYS_setresgid, self.gid, self.gid, self.gid) })?;
            // SAFETY: numbers only.
            done(unsafe { libc::syscall(libc::SYS_setresuid, self.uid, self.uid, self.uid) })?;
        }
        let header = CapHeader { version: CAP_VERSION, pid: 0 };
        let none = [CapData { effective: 0, permitted: 0, inheritable: 0 }; 2];
        // SAFETY: both lead to values of the layout that version 3 asks for (capset(2)), alive for the call, which reads them.
        done(unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) })
    }

    /// Whether this process has them already; then there is nobody to change to, nor a need for the right to.
    fn are_own(&self) -> bool {
        // SAFETY: these calls only answer, and cannot fail.
        let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
        self.uid == uid && self.gid == gid && uid != 0
    }

    fn take_groups(&self) -> io::Result<()> {
        // SAFETY: the list is as long as said and alive for the call, which reads it.
        done(unsafe { libc::syscall(libc::SYS_setgroups, self.groups.len(), self.groups.as_ptr()) })
    }

    /// Looks at files with these rights, on a thread that ends with it: `look` is asked what they would be told.
    pub fn try_out<T: Send>(&self, look: impl FnOnce() -> T + Send) -> io::Result<T> {
        std::thread::scope(|scope| {
            let looker = scope.spawn(|| {
                if !self.are_own() {
                    self.take_groups()?;
                    // The ids that files are opened with, of this thread. With the user go the capabilities over files
                    // (capabilities(7)). The call answers the id before, never an error; asked again it tells whether it worked.
                    for (call, id) in [(libc::SYS_setfsgid, self.gid), (libc::SYS_setfsuid, self.uid)] {
                        // SAFETY: numbers only.
                        unsafe { libc::syscall(call, id) };
                        // SAFETY: as above; -1 is no id, so that nothing changes.
                        if unsafe { libc::syscall(call, u32::MAX) } != libc::c_long::from(id) {
                            return Err(Errno::EPERM.into());
                        }
                    }
                }
                Ok(look())
            });
            looker.join().unwrap_or_else(|_| Err(io::Error::other("the thread that looked at files panicked")))
        })
    }
}

impl Image {
    /// Whether whoever asks (see [`Credentials::try_out`]) may execute it, wherever it lies.
    pub fn may_be_executed(&self) -> bool {
        let flags = libc::AT_EACCESS | libc::AT_EMPTY_PATH;
        let empty = c"";
        // SAFETY: the path is a string that ends with zero; the call only answers.
        let answer = unsafe { libc::syscall(libc::SYS_faccessat2, self.number(), empty.as_ptr(), libc::X_OK, flags) };
        // Another error says that there is no telling; then the exec will.
        Errno::result(answer) != Err(Errno::EACCES)
    }
}

/// No other process of this user may look into this one, nor is its memory ever written to a file (prctl(2)). An exec ends it.
pub fn hide_memory() -> io::Result<()> {
    Ok(nix::sys::prctl::set_dumpable(false)?)
}

#[cfg(test)]
mod tests {
    use std::fs::{File, Permissions, set_permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const OTHER: Credentials = Credentials { uid: 65_533, gid: 65_532, groups: Vec::new() };

    fn own() -> Credentials {
        let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        Credentials { uid, gid, groups: Vec::new() }
    }

    #[test]
    fn only_root_can_look_with_another_s_rights_and_then_it_does() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        std::fs::write(&path, "x").unwrap();
        set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        set_permissions(dir.path(), Permissions::from_mode(0o711)).unwrap();
        let looked = OTHER.try_out(|| std::fs::read(&path).is_ok());
        if nix::unistd::geteuid().is_root() {
            assert!(!looked.unwrap(), "another user reads what is ours alone");
            set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
            assert!(OTHER.try_out(|| std::fs::read(&path).is_ok()).unwrap());
        } else {
            assert!(looked.is_err());
        }
        assert!(own().try_out(|| std::fs::read(&path).is_ok()).unwrap());
        assert!(std::fs::read(&path).is_ok(), "this thread has kept its rights");
    }

    #[test]
    fn an_image_says_who_may_execute_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        File::create(&path).unwrap();
        let image = Image::open(&path).unwrap();
        set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        assert!(!image.may_be_executed());
        set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
        assert!(image.may_be_executed());
        if nix::unistd::geteuid().is_root() {
            assert!(!OTHER.try_out(|| image.may_be_executed()).unwrap());
        }
    }
}
