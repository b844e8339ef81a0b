//! Files: locks, leases, private directories, and whether a mount may execute.

use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statvfs::{FsFlags, statvfs};

/// Makes `path` (and what is missing above it) with `mode`, or checks that it is a directory of ours that nobody else may
/// write. Answers `PermissionDenied` otherwise: in /tmp a stranger may have been first.
pub fn private_dir(path: &Path, mode: u32) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(mode).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    let found = std::fs::symlink_metadata(path)?;
    if !found.is_dir() || found.uid() != nix::unistd::geteuid().as_raw() {
        let text = format!("{} is not a directory of this user", path.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    if found.mode() & 0o777 != mode {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The lock of an earlier program of this process: it belongs to the open file, which is the same.
pub fn keep_lock(file: OwnedFd) -> io::Result<Lock> {
    Flock::lock(file.into(), FlockArg::LockExclusiveNonblock).map(Lock).map_err(|(_, errno)| errno.into())
}

/// A lock that lives as long as its holder, whatever way that ends.
#[derive(Debug)]
pub struct Lock(Flock<File>);

/// Takes the lock at `path`; nothing if another process holds it.
pub fn lock(path: &Path) -> io::Result<Option<Lock>> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(Lock(lock))),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno.into()),
    }
}

/// What asking for a read lease gave.
#[derive(Debug)]
pub enum Lease {
    /// Nobody has the file open for writing; until the lease is dropped, whoever wants to waits (fcntl(2), leases).
    Held(#[expect(dead_code, reason = "held for its drop")] HeldLease),
    /// Somebody has it open for writing.
    Written,
    /// No right to a lease here (another owner, a file system without).
    Unsupported,
}

/// A lease; given back on drop.
#[derive(Debug)]
pub struct HeldLease(File);

/// `F_SETSIG` of fcntl(2): which signal announces a lease break. The libc crate lacks it for Linux.
const F_SETSIG: libc::c_int = 10;

/// Asks for a read lease on `file`, which must be open for reading only.
pub fn read_lease(file: &File) -> io::Result<Lease> {
    let file = file.try_clone()?;
    let fd = file.as_raw_fd();
    // A lease break announces itself by SIGIO, whose default is to kill; SIGURG's is nothing. We never wait for it: the
    // lease is held for the time of one copy.
    // SAFETY: fcntl with integer arguments on an open descriptor.
    let result = unsafe {
        libc::fcntl(fd, F_SETSIG, libc::SIGURG);
        libc::fcntl(fd, libc::F_SETLEASE, libc::F_RDLCK)
    };
    match Errno::result(result) {
        Ok(_) => Ok(Lease::Held(HeldLease(file))),
        Err(Errno::EAGAIN) => Ok(Lease::Written),
        Err(_) => Ok(Lease::Unsupported),
    }
}

impl Drop for HeldLease {
    fn drop(&mut self) {
        // SAFETY: fcntl with integer arguments on an open descriptor. Its only error is that the lease was broken already.
        unsafe { libc::fcntl(self.0.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) };
    }
}

/// Writes `path` so that whoever reads it, also after a power cut, finds the old content or the new, whole. For us alone.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

/// Opens a regular file for reading. Refuses all else: a FIFO would block whoever reads it, and a device has no end.
pub fn open_regular(path: &Path) -> io::Result<File> {
    // Finds the file without opening it, which alone could block or act on a device (open(2), O_PATH).
    let found = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path)?;
    if found.metadata()?.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if !found.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    // The very same file, whatever lies at the path by now.
    File::open(format!("/proc/self/fd/{}", found.as_raw_fd()))
}

/// What tells one content of a file from another, without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    dev: u64,
    ino: u64,
    pub size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl Identity {
    pub fn of(metadata: &Metadata) -> Identity {
        Identity {
            dev: metadata.dev(),
            ino: metadata.ino(),
            size: metadata.size(),
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            ctime: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// One that differs from all of another number.
    #[cfg(test)]
    pub fn fake(number: u64) -> Identity {
        Identity { dev: 1, ino: number, size: 0, mtime: (0, 0), ctime: (0, 0) }
    }

    /// When anything of it was changed last, by the clock of its file system.
    pub fn changed(&self) -> SystemTime {
        let (seconds, nanos) = self.ctime;
        let seconds = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        UNIX_EPOCH + seconds + Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
    }

    /// Whether nothing was written in between. Unlike equality this looks past the ctime, which also changes when the file
    /// is renamed or replaced.
    pub fn same_content(&self, other: &Identity) -> bool {
        Identity { ctime: other.ctime, ..*self } == *other
    }
}

/// Whether files under `path` must not be mapped executable.
pub fn is_noexec(path: &Path) -> io::Result<bool> {
    Ok(statvfs(path)?.flags().contains(FsFlags::ST_NOEXEC))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_taken_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = lock(&path).unwrap();
        assert!(first.is_some() && lock(&path).unwrap().is_none());
        drop(first);
        assert!(lock(&path).unwrap().is_some());
    }

    #[test]
    fn a_directory_that_is_not_ours_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/usr", &link).unwrap();
        assert!(private_dir(&link, 0o700).is_err());
        let made = dir.path().join("a/b");
        private_dir(&made, 0o700).unwrap();
        assert_eq!(std::fs::metadata(&made).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_file_that_is_replaced_keeps_its_content_and_one_that_is_written_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("f"), dir.path().join("other"));
        std::fs::write(&path, "old").unwrap();
        std::fs::write(&other, "new").unwrap();
        let file = File::open(&path).unwrap();
        let look = || Identity::of(&file.metadata().unwrap());
        let before = look();
        // The clock of the file system has steps.
        while look() == before {
            std::fs::write(&other, "new").unwrap();
            std::fs::hard_link(&path, dir.path().join("link")).unwrap();
            std::fs::remove_file(dir.path().join("link")).unwrap();
        }
        std::fs::rename(&other, &path).unwrap();
        assert!(look() != before && look().same_content(&before));
        std::fs::write(&path, "x").unwrap();
        let written = Identity::of(&std::fs::metadata(&path).unwrap());
        assert!(!written.same_content(&before));
    }

    #[test]
    fn a_file_open_for_writing_gives_no_lease() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let writer = File::create(&path).unwrap();
        let reader = File::open(&path).unwrap();
        assert!(!matches!(read_lease(&reader).unwrap(), Lease::Held(_)));
        drop(writer);
        assert!(!matches!(read_lease(&reader).unwrap(), Lease::Written));
    }
}
