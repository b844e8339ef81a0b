//! Files: locks, leases, replacing one in a step, and whether a mount may execute.

use std::ffi::OsStr;
use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::geteuid;

/// A lock on a file that lives as long as its holder, whatever way that ends; the file says which process it is.
#[derive(Debug)]
pub struct Lock(Flock<File>);

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it, which may be one of another pid namespace.
    #[error("it is locked{}", pid.map(|pid| format!(" by process {pid}")).unwrap_or_default())]
    Held { pid: Option<i32> },
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Lock {
    /// Takes the lock at `path`, whose file is made if it is missing, and writes the pid into it.
    pub fn take(path: &Path) -> Result<Lock, LockError> {
        match Flock::lock(create_lock(path)?, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Lock::sign(lock)?),
            Err((file, Errno::EWOULDBLOCK)) => Err(LockError::Held { pid: holder(&file).map(|holder| holder.pid) }),
            Err((_, errno)) => Err(io::Error::from(errno).into()),
        }
    }

    /// The same for a folder that others may write: the file is never written to.
    pub fn take_unsigned(path: &Path) -> Result<Lock, LockError> {
        match Flock::lock(create_lock(path)?, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Lock(lock)),
            Err((_, Errno::EWOULDBLOCK)) => {
                Err(LockError::Held { pid: lock_owner(path).ok().flatten().filter(|pid| *pid > 0) })
            }
            Err((_, errno)) => Err(io::Error::from(errno).into()),
        }
    }

    /// The lock of an earlier program of this process: it belongs to the open file, which is the same.
    pub fn keep(file: OwnedFd) -> io::Result<Lock> {
        Flock::lock(file.into(), FlockArg::LockExclusiveNonblock)
            .map_err(|(_, errno)| errno.into())
            .and_then(Lock::sign)
    }

    /// Writes the pid into the file, for whoever is refused.
    fn sign(lock: Flock<File>) -> io::Result<Lock> {
        lock.set_len(0)?;
        lock.write_all_at(format!("{}\n", std::process::id()).as_bytes(), 0)?;
        Ok(Lock(lock))
    }

    /// Writes a line for whoever looks for the holder: where it is reached.
    pub fn note(&self, path: &Path) -> io::Result<()> {
        let text = [format!("{}\n", std::process::id()).as_bytes(), path.as_os_str().as_bytes(), b"\n"].concat();
        self.0.write_all_at(&text, 0)
    }

    /// Device and inode.
    pub fn inode(&self) -> io::Result<(u64, u64)> {
        self.0.metadata().map(|meta| (meta.dev(), meta.ino()))
    }
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Who holds a lock, by what the file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub pid: i32,
    /// Where it is reached, if it has said so.
    pub reached_at: Option<PathBuf>,
}

fn holder(file: &File) -> Option<Holder> {
    let mut text = [0; 4096];
    let len = file.read_at(&mut text, 0).ok()?;
    let mut lines = text[..len].split(|byte| *byte == b'\n');
    let pid = std::str::from_utf8(lines.next()?).ok()?.parse().ok()?;
    let reached_at = lines.next().filter(|line| !line.is_empty()).map(|line| OsStr::from_bytes(line).into());
    Some(Holder { pid, reached_at })
}

/// Returns the holder of the [`Lock`] at `path`, and `None` if no process has it or the file cannot be read.
pub fn lock_holder(path: &Path) -> Option<Holder> {
    lock_owner(path).ok()??;
    holder(&open_lock(path).ok()?)
}

fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)
}

/// Returns the process that has the [`Lock`] at `path`, and `None` if no process has it or the file is missing. Needs no right
/// to read the file. Takes no lock itself, which could be in the way of a master that starts: reads /proc/locks.
pub fn lock_owner(path: &Path) -> io::Result<Option<i32>> {
    let meta = match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        meta => meta?,
    };
    let device = format!("{:02x}:{:02x}", libc::major(meta.dev()), libc::minor(meta.dev()));
    let signed = open_lock(path).ok().and_then(|file| holder(&file)).map(|holder| holder.pid);
    let owner = |line: &str| {
        // `1: FLOCK  ADVISORY  WRITE 4711 00:18:1302 0 EOF`
        let mut words = line.split_ascii_whitespace().skip(1);
        let kind = words.next()?;
        let pid: i32 = words.nth(2)?.parse().ok()?;
        let (on, inode) = words.next()?.rsplit_once(':')?;
        // Of btrfs and overlayfs the file's device is not the one of this list: there the lock file's own text decides.
        let same_device = on == device || Some(pid) == signed;
        (kind == "FLOCK" && inode.parse() == Ok(meta.ino()) && same_device).then_some(pid)
    };
    // Between two reads of the list the kernel leaves out a lock if one before it goes: a read takes as much of it as it can.
    let mut list = String::with_capacity(64 * 1024);
    for _ in 0..LOCK_READS {
        list.clear();
        File::open("/proc/locks")?.read_to_string(&mut list)?;
        if let Some(pid) = list.lines().find_map(owner) {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}

/// How often /proc/locks has not to name a lock until there is none.
const LOCK_READS: u32 = 8;

/// The lock file at `path`, made if it is missing. A file of another user, a link, and a file that has a second name is refused: it
/// may be one that a user who can write the folder wants to have locked or written.
fn create_lock(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    let found = file.metadata()?;
    let why = if !found.is_file() {
        "is no regular file"
    } else if found.nlink() > 1 {
        "has a second name (a hard link)"
    } else if found.uid() != geteuid().as_raw() {
        "belongs to another user"
    } else {
        return Ok(file);
    };
    let text = format!("the lock file {} {why}; remove it", path.display());
    Err(io::Error::new(io::ErrorKind::AlreadyExists, text))
}

/// A shared lock on a directory, for as long as it is held: systemd-tmpfiles removes nothing from one that is locked.
#[derive(Debug)]
pub struct DirLock(#[expect(dead_code, reason = "held for its drop")] Flock<File>);

impl DirLock {
    /// Returns `None` if another process has the directory locked for itself, as systemd-tmpfiles does while it cleans up.
    pub fn take(dir: OwnedFd) -> io::Result<Option<DirLock>> {
        match Flock::lock(dir.into(), FlockArg::LockSharedNonblock) {
            Ok(lock) => Ok(Some(DirLock(lock))),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(errno.into()),
        }
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
    let mut new = Replacement::new(path, 0o600)?;
    new.file.write_all(content)?;
    new.file.sync_all()?;
    new.put_in_place()?;
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

/// A new file that takes the place of another in one step; removed if it does not come to that. Whatever lies at the target is
/// not followed.
#[derive(Debug)]
pub struct Replacement {
    pub file: File,
    /// Until it is in place.
    temporary: Option<PathBuf>,
    target: PathBuf,
}

impl Replacement {
    /// With exactly that mode, whatever the umask.
    pub fn new(target: &Path, mode: u32) -> io::Result<Replacement> {
        const ATTEMPTS: u32 = 16;
        let mut attempt = 0;
        loop {
            let mut temporary = target.as_os_str().to_owned();
            temporary.push(format!(".{}.{attempt}", std::process::id()));
            // O_EXCL: no file or link that lies there already is written to.
            match OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary) {
                Ok(file) => {
                    let new = Replacement { file, temporary: Some(temporary.into()), target: target.into() };
                    new.file.set_permissions(Permissions::from_mode(mode))?;
                    return Ok(new);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && attempt < ATTEMPTS => attempt += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Device and inode of what is there now.
    pub fn put_in_place(mut self) -> io::Result<(u64, u64)> {
        let meta = self.file.metadata()?;
        if let Some(temporary) = &self.temporary {
            std::fs::rename(temporary, &self.target)?;
        }
        self.temporary = None;
        Ok((meta.dev(), meta.ino()))
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // The error that it was not put in place for is the one to tell.
            std::fs::remove_file(temporary).ok();
        }
    }
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
    fn lock_is_refused_while_held_and_names_its_holder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let own = std::process::id() as i32;
        let first = Lock::take(&path).unwrap();
        assert!(matches!(Lock::take(&path), Err(LockError::Held { pid }) if pid == Some(own)));
        assert_eq!(lock_holder(&path), Some(Holder { pid: own, reached_at: None }));
        assert_eq!(lock_owner(&path).unwrap(), Some(own));
        first.note(Path::new("/run/x.sock")).unwrap();
        assert_eq!(lock_holder(&path), Some(Holder { pid: own, reached_at: Some("/run/x.sock".into()) }));
        drop(first);
        // Another file that is locked is not this one.
        let _other = Lock::take(&dir.path().join("other")).unwrap();
        assert_eq!((lock_holder(&path), lock_owner(&path).unwrap()), (None, None), "the file alone is no lock");
        assert_eq!(lock_owner(&dir.path().join("none")).unwrap(), None);
        Lock::take(&path).unwrap();
    }

    #[test]
    fn lock_file_that_is_a_link_or_no_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link, fifo) = (dir.path().join("target"), dir.path().join("link"), dir.path().join("fifo"));
        std::fs::write(&target, "precious").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        let hard_link = dir.path().join("hard_link");
        std::fs::hard_link(&target, &hard_link).unwrap();
        for path in [&link, &fifo, &hard_link] {
            assert!(matches!(Lock::take(path), Err(LockError::Io(_))), "{}", path.display());
            assert!(matches!(Lock::take_unsigned(path), Err(LockError::Io(_))), "{}", path.display());
        }
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "precious");
    }

    #[test]
    fn lock_file_of_another_user_is_refused() {
        if !geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        std::fs::write(&path, "precious").unwrap();
        std::os::unix::fs::chown(&path, Some(65_533), None).unwrap();
        for lock in [Lock::take(&path), Lock::take_unsigned(&path)] {
            assert!(lock.unwrap_err().to_string().contains("belongs to another user; remove it"));
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn unsigned_lock_writes_nothing_and_its_holder_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        std::fs::write(&path, "precious").unwrap();
        let own = std::process::id() as i32;
        let _held = Lock::take_unsigned(&path).unwrap();
        assert!(matches!(Lock::take_unsigned(&path), Err(LockError::Held { pid }) if pid == Some(own)));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn directory_lock_is_shared_and_shuts_out_a_cleaner() {
        let dir = tempfile::tempdir().unwrap();
        let open = || OwnedFd::from(File::open(dir.path()).unwrap());
        let cleaner = || Flock::lock(File::from(open()), FlockArg::LockExclusiveNonblock);
        let locks = [(); 2].map(|()| DirLock::take(open()).unwrap().unwrap());
        assert!(cleaner().is_err());
        drop(locks);
        let _cleaning = cleaner().unwrap();
        assert!(DirLock::take(open()).unwrap().is_none());
    }

    #[test]
    fn replacement_never_writes_through_a_link_and_has_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let (target, precious) = (dir.path().join("x.pid"), dir.path().join("precious"));
        std::fs::write(&precious, "precious").unwrap();
        std::os::unix::fs::symlink(&precious, &target).unwrap();
        // As an attacker would guess the temporary name.
        std::os::unix::fs::symlink(&precious, dir.path().join(format!("x.pid.{}.0", std::process::id()))).unwrap();
        let mut new = Replacement::new(&target, 0o644).unwrap();
        new.file.write_all(b"7").unwrap();
        let inode = new.put_in_place().unwrap();
        let found = std::fs::symlink_metadata(&target).unwrap();
        assert!(found.is_file() && (found.dev(), found.ino()) == inode && found.mode() & 0o777 == 0o644);
        assert_eq!(std::fs::read_to_string(&precious).unwrap(), "precious");
        drop(Replacement::new(&target, 0o600).unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3, "what was not put in place is removed");
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "7");
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
