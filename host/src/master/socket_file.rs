//! The file of a listening Unix socket: bound under the name at which it stays (by which the kernel lists it, so that cleaners see
//! that it is in use), and removed at the end only if it is still the same.
//!
//! A socket at the path on which nothing listens is replaced, a live one never: probe and bind happen under a lock beside the path.
//! Owner and mode are changed by descriptor only, and no client can connect before they are right.

use std::fs::OpenOptions;
use std::io::{self, Error, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::AtFlags;
use nix::sys::stat::{Mode, SFlag, fchmod, fstat};
use nix::unistd::{Gid, Group, Uid, User, fchownat, geteuid};
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::config::Server;
use crate::sys::files::{Lock, LockError};
use crate::sys::private_dir;

/// How long another process may take to bind a socket at the same path.
pub const BIND_PATIENCE: Duration = Duration::from_secs(1);
const BIND_POLL: Duration = Duration::from_millis(5);
/// The mark of a socket file to which no access was granted yet: the sticky bit, which means nothing on a socket (chmod(2)).
const NEW: u32 = 0o1000;

/// Who may connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    mode: u32,
    owner: Option<u32>,
    group: Option<u32>,
}

impl Access {
    /// Our user alone.
    pub const OURS: Access = Access { mode: 0o600, owner: None, group: None };

    /// No mode that a file can have.
    const UNKNOWN: Access = Access { mode: u32::MAX, owner: None, group: None };

    /// As `server` says; an error completes "failed to ...".
    pub fn of(server: &Server) -> Result<Access, String> {
        let owner = server.socket_owner.as_deref().map(|name| match (name.parse(), User::from_name(name)) {
            (Ok(number), _) => Ok(number),
            (_, Ok(Some(user))) => Ok(user.uid.as_raw()),
            (_, Ok(None)) => Err(format!("find the user `{name}` of server `{}`", server.name)),
            (_, Err(error)) => Err(format!("find the user `{name}` of server `{}`: {error}", server.name)),
        });
        let group = server.socket_group.as_deref().map(|name| match (name.parse(), Group::from_name(name)) {
            (Ok(number), _) => Ok(number),
            (_, Ok(Some(group))) => Ok(group.gid.as_raw()),
            (_, Ok(None)) => Err(format!("find the group `{name}` of server `{}`", server.name)),
            (_, Err(error)) => Err(format!("find the group `{name}` of server `{}`: {error}", server.name)),
        });
        Ok(Access { mode: server.socket_mode.0, owner: owner.transpose()?, group: group.transpose()? })
    }

    /// As that of the file at `path`.
    pub fn like(path: &Path) -> io::Result<Access> {
        let file = path.symlink_metadata()?;
        Ok(Access { mode: file.mode() & 0o777, owner: Some(file.uid()), group: Some(file.gid()) })
    }

    /// On the file behind `fd`, whatever lies at its path by now.
    fn grant(self, fd: &OwnedFd) -> io::Result<()> {
        if self.owner.is_some() || self.group.is_some() {
            let (owner, group) = (self.owner.map(Uid::from_raw), self.group.map(Gid::from_raw));
            fchownat(fd, "", owner, group, AtFlags::AT_EMPTY_PATH)?;
        }
        // After a change of owner, which may clear bits (chown(2)).
        private_dir::set_mode(fd.as_fd(), self.mode)
    }
}

#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode. The number is not given to another file for as long as a process has the socket open.
    identity: (u64, u64),
    access: Access,
}

/// The file of a socket as another program of this process goes on with it.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedFile {
    path: PathBuf,
    identity: (u64, u64),
    access: Access,
}

impl From<SavedFile> for SocketFile {
    fn from(SavedFile { path, identity, access }: SavedFile) -> SocketFile {
        SocketFile { path, identity, access }
    }
}

impl SocketFile {
    pub fn save(&self) -> SavedFile {
        SavedFile { path: self.path.clone(), identity: self.identity, access: self.access }
    }

    /// Listens at `path`, open to those of `access`. `AddrInUse` if another process listens there, `ResourceBusy` if one is about to
    /// bind there and does not end within `patience`.
    pub fn bind(path: &Path, access: Access, backlog: i32, patience: Duration) -> io::Result<(OwnedFd, SocketFile)> {
        let _lock = BindLock::take(path, patience)?;
        match probe(path)? {
            Found::Nothing => {}
            Found::Dead(identity) => remove(path, identity)?,
            Found::Live => return Err(Error::new(ErrorKind::AddrInUse, "another process listens there")),
        }
        let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
        // The file gets the mode of the socket, less the umask: from its first moment it is open to no other user, and marked as new.
        fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR | Mode::from_bits_truncate(NEW))?;
        socket.bind(&SockAddr::unix(path)?)?;
        let file = open_new(path)?;
        let stat = fstat(&file)?;
        let bound = SocketFile { path: path.into(), identity: (stat.st_dev, stat.st_ino), access };
        // From here on an error removes the file again.
        access.grant(&file)?;
        // No client can connect before this.
        socket.listen(backlog)?;
        Ok((socket.into(), bound))
    }

    /// One that an earlier master has bound; who may connect is settled when it is [opened](SocketFile::open_to).
    pub fn left_behind(path: &Path, identity: (u64, u64)) -> SocketFile {
        SocketFile { path: path.into(), identity, access: Access::UNKNOWN }
    }

    /// Leaves the file where it is.
    pub fn leave(self) -> (u64, u64) {
        std::mem::ManuallyDrop::new(self).identity
    }

    pub fn identity(&self) -> (u64, u64) {
        self.identity
    }

    pub fn access(&self) -> Access {
        self.access
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether clients that connect to the path still come to us.
    pub fn is_ours(&self) -> bool {
        identity(&self.path).is_ok_and(|found| found == self.identity)
    }

    /// What opens it to those of `access` and to no others; nothing if that is so already.
    pub fn open_to(&mut self, access: Access) -> Option<Grant> {
        if self.access == access {
            return None;
        }
        self.access = access;
        Some(Grant { path: self.path.clone(), identity: self.identity, access })
    }
}

/// A change of who may connect to a socket, still to be made.
#[derive(Debug)]
pub struct Grant {
    path: PathBuf,
    identity: (u64, u64),
    access: Access,
}

impl Grant {
    /// Changes owner, group and mode of the file. Blocks.
    pub fn apply(&self) {
        let changed = match open_path(&self.path) {
            // Else it is another process's: bound anew by a reload, with the access of then.
            Ok(file) if inode(&file).is_ok_and(|found| found == self.identity) => self.access.grant(&file),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = changed {
            tracing::error!(path = %self.path.display(), "failed to change who may connect: {error}");
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let removed = if self.is_ours() { remove(&self.path, self.identity) } else { Ok(()) };
        match removed {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::warn!(path = %self.path.display(), %error, "failed to remove a socket");
            }
            _ => {}
        }
    }
}

/// What lies at a path where a socket is to be bound.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    /// Nothing listens on it.
    Dead((u64, u64)),
    Live,
}

/// An error if what lies at `path` is no socket, or there is no telling.
fn probe(path: &Path) -> io::Result<Found> {
    let dead = match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => Found::Dead((meta.dev(), meta.ino())),
        Ok(_) => return Err(Error::new(ErrorKind::AlreadyExists, "a file that is no socket is there")),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(error),
    };
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    match socket.connect(&SockAddr::unix(path)?) {
        Ok(()) => Ok(Found::Live),
        Err(error) => match error.raw_os_error() {
            Some(libc::ECONNREFUSED) => Ok(dead),
            Some(libc::ENOENT) => Ok(Found::Nothing),
            // Its queue is full; or it is of another type.
            Some(libc::EAGAIN | libc::EPROTOTYPE) => Ok(Found::Live),
            _ => Err(error),
        },
    }
}

/// Held by the one process that may bind a socket at a path: a lock on `PATH.lock`, which is empty, and gone afterwards. Not on the
/// folder itself: any user who may read that could hold it.
struct BindLock {
    _lock: Lock,
    path: PathBuf,
}

impl BindLock {
    fn take(socket: &Path, patience: Duration) -> io::Result<BindLock> {
        let mut path = socket.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        let deadline = Instant::now() + patience;
        loop {
            match Lock::take_unsigned(&path) {
                // Else its holder has removed the file meanwhile, and another process may have made it anew.
                Ok(lock) if identity(&path).ok() == Some(lock.inode()?) => return Ok(BindLock { _lock: lock, path }),
                Ok(_) => {}
                Err(LockError::Io(error)) => return Err(error),
                Err(LockError::Held { pid }) if Instant::now() >= deadline => {
                    let holder = pid.map_or_else(|| "another process".into(), |pid| format!("process {pid}"));
                    let text = format!("{holder} binds a socket there (it holds a lock on {})", path.display());
                    return Err(Error::new(ErrorKind::ResourceBusy, text));
                }
                // Polls with a deadline: flock(2) has no timed wait, and this one takes microseconds.
                Err(LockError::Held { .. }) => std::thread::sleep(BIND_POLL),
            }
        }
    }
}

impl Drop for BindLock {
    fn drop(&mut self) {
        // Before the lock goes. A file that stays behind is in nobody's way.
        std::fs::remove_file(&self.path).ok();
    }
}

/// The file or link at `path` itself, to be looked at and changed.
fn open_path(path: &Path) -> io::Result<OwnedFd> {
    let flags = libc::O_PATH | libc::O_NOFOLLOW;
    Ok(OpenOptions::new().read(true).custom_flags(flags).open(path)?.into())
}

/// The socket that this process has just bound at `path`, and no other file that came to lie there meanwhile.
fn open_new(path: &Path) -> io::Result<OwnedFd> {
    let file = open_path(path)?;
    let stat = fstat(&file)?;
    let is_socket = stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFSOCK.bits();
    // Nor a hard link to another private socket of this user, such as that of an admin surface: only a new one is marked, and only
    // this user can mark it.
    let is_new = stat.st_uid == geteuid().as_raw() && stat.st_mode & (NEW | 0o177) == NEW;
    if is_socket && is_new {
        return Ok(file);
    }
    Err(Error::new(
        ErrorKind::PermissionDenied,
        "another file has taken the place of the new socket; who may write its folder?",
    ))
}

fn inode(file: &OwnedFd) -> io::Result<(u64, u64)> {
    let stat = fstat(file)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Removes the socket of that identity. There is no compare-and-unlink: it is moved aside first, then looked at, and put back if it
/// is another's after all.
fn remove(path: &Path, known: (u64, u64)) -> io::Result<()> {
    let aside = beside(path);
    std::fs::rename(path, &aside)?;
    if identity(&aside)? == known {
        return std::fs::remove_file(&aside);
    }
    // Unless yet another one has taken its place: link(2) replaces nothing. But it may be forbidden (protected_hardlinks, proc(5)).
    match std::fs::hard_link(&aside, path) {
        Ok(()) => std::fs::remove_file(&aside),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(error),
        Err(_) => std::fs::rename(&aside, path),
    }
}

/// A name in the same folder that is ours alone.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    name.into()
}

/// Device and inode.
pub fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let meta = std::fs::symlink_metadata(path)?;
    Ok((meta.dev(), meta.ino()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;
    use crate::config;
    use crate::sys::link_swap::{Bait, LinkSwap};

    #[test]
    fn the_socket_is_ours_alone_replaces_a_stale_one_and_goes_with_us() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(matches!(probe(&path).unwrap(), Found::Dead(_)), "a dead instance's socket");
        let (_listener, file) = SocketFile::bind(&path, Access::OURS, 8, BIND_PATIENCE).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        drop(file);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn bind_and_removal_spare_the_socket_of_another_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let (first, file) = SocketFile::bind(&path, Access::OURS, 8, BIND_PATIENCE).unwrap();
        let error = SocketFile::bind(&path, Access::OURS, 8, BIND_PATIENCE).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        assert!(file.is_ours());
        // Someone removed the file, and another process has bound there.
        std::fs::remove_file(&path).unwrap();
        let (_second, other) = SocketFile::bind(&path, Access::OURS, 8, BIND_PATIENCE).unwrap();
        assert!(other.is_ours() && !file.is_ours());
        drop((first, file));
        UnixStream::connect(&path).unwrap();
        drop(other);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn socket_is_bound_under_the_name_where_it_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let (listener, _file) = SocketFile::bind(&path, Access::OURS, 8, BIND_PATIENCE).unwrap();
        let bound = crate::sys::socket::local_addr(listener.as_fd()).unwrap();
        assert_eq!(bound, Some(crate::sys::socket::Address::Unix(path)));
    }

    #[test]
    fn processes_that_bind_at_once_leave_one_live_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        for _ in 0..20 {
            // Stale, so that each of them would replace it.
            std::fs::remove_file(&path).ok();
            drop(UnixListener::bind(&path).unwrap());
            let bound: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> =
                    (0..4).map(|_| scope.spawn(|| SocketFile::bind(&path, Access::OURS, 8, BIND_PATIENCE))).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            let winners: Vec<_> = bound.into_iter().filter_map(Result::ok).collect();
            assert_eq!(winners.len(), 1);
            assert!(winners[0].1.is_ours());
            UnixStream::connect(&path).unwrap();
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "no lock stays behind");
    }

    #[test]
    fn hard_link_in_the_place_of_the_lock_is_refused_and_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let (path, precious) = (dir.path().join("socket"), dir.path().join("precious"));
        std::fs::write(&precious, "precious").unwrap();
        let lock = dir.path().join("socket.lock");
        std::fs::hard_link(&precious, &lock).unwrap();
        let error = SocketFile::bind(&path, Access::OURS, 8, BIND_PATIENCE).unwrap_err();
        assert!(error.to_string().contains("socket.lock has a second name"), "{error}");
        assert_eq!(std::fs::read_to_string(&precious).unwrap(), "precious");
        std::fs::remove_file(&lock).unwrap();
        SocketFile::bind(&path, Access::OURS, 8, BIND_PATIENCE).unwrap();
    }

    #[test]
    fn lock_that_is_held_is_waited_for_as_long_as_said_and_its_holder_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let held = BindLock::take(&path, Duration::ZERO).unwrap();
        let began = Instant::now();
        let error = SocketFile::bind(&path, Access::OURS, 8, Duration::ZERO).unwrap_err();
        assert!(began.elapsed() < BIND_PATIENCE);
        assert_eq!(error.kind(), ErrorKind::ResourceBusy);
        let own = format!("process {} binds a socket there", std::process::id());
        assert!(error.to_string().contains(&own) && error.to_string().contains("socket.lock"), "{error}");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| SocketFile::bind(&path, Access::OURS, 8, Duration::from_secs(60)));
            drop(held);
            waiting.join().unwrap().unwrap();
        });
    }

    #[test]
    fn symbolic_link_in_the_place_of_the_socket_is_never_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, precious) = (dir.path().join("socket"), dir.path().join("precious"));
        std::fs::write(&precious, "").unwrap();
        let mode = || precious.metadata().unwrap().mode() & 0o777;
        let before = mode();
        let (_listener, mut file) = SocketFile::bind(&path, Access::OURS, 8, BIND_PATIENCE).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&precious, &path).unwrap();
        file.open_to(Access { mode: 0o666, owner: None, group: None }).unwrap().apply();
        assert_eq!(mode(), before, "the mode of another file was changed");
        assert_eq!(open_new(&path).unwrap_err().kind(), ErrorKind::PermissionDenied);
        assert_eq!(
            SocketFile::bind(&path, Access::OURS, 8, BIND_PATIENCE).unwrap_err().kind(),
            ErrorKind::AlreadyExists
        );
        // A socket of someone else, open to all: no more.
        std::fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        assert_eq!(open_new(&path).unwrap_err().kind(), ErrorKind::PermissionDenied);
        let bits = || path.metadata().unwrap().mode() & 0o777;
        let before = bits();
        file.open_to(Access { mode: 0o640, owner: None, group: None }).unwrap().apply();
        assert_eq!(bits(), before, "the mode of another socket was changed");
    }

    #[test]
    fn own_file_in_the_place_of_the_new_socket_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (path, private) = (dir.path().join("socket"), dir.path().join("private"));
        let (_listener, _file) = SocketFile::bind(&private, Access::OURS, 8, BIND_PATIENCE).unwrap();
        // A user who may connect to the new socket could connect to that one: a hard link to it, and a symbolic one.
        assert_eq!(open_new(&private).unwrap_err().kind(), ErrorKind::PermissionDenied);
        std::fs::set_permissions(&private, PermissionsExt::from_mode(NEW | 0o600)).unwrap();
        assert!(open_new(&private).is_ok());
        std::os::unix::fs::symlink(&private, &path).unwrap();
        assert_eq!(open_new(&path).unwrap_err().kind(), ErrorKind::PermissionDenied);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(NEW | 0o600)).unwrap();
        assert_eq!(open_new(&path).unwrap_err().kind(), ErrorKind::PermissionDenied);
    }

    #[test]
    fn removal_puts_the_socket_of_another_process_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let _other = UnixListener::bind(&path).unwrap();
        let (dev, ino) = identity(&path).unwrap();
        remove(&path, (dev, ino + 1)).unwrap();
        UnixStream::connect(&path).unwrap();
        assert_eq!((identity(&path).unwrap(), std::fs::read_dir(dir.path()).unwrap().count()), ((dev, ino), 1));
        remove(&path, (dev, ino)).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn bind_lock_is_held_by_one_at_a_time() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let dir = tempfile::tempdir().unwrap();
        let (path, held) = (dir.path().join("socket"), AtomicBool::new(false));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let Ok(_lock) = BindLock::take(&path, BIND_PATIENCE) else { continue };
                        assert!(!held.swap(true, Ordering::SeqCst), "two have it");
                        std::thread::yield_now();
                        held.store(false, Ordering::SeqCst);
                    }
                });
            }
        });
    }

    #[test]
    fn bind_and_grant_spare_the_target_of_a_swapped_link() {
        let open = Access { mode: 0o666, owner: None, group: Some(nix::unistd::getegid().as_raw()) };
        for bait in [Bait::SymlinkToFile, Bait::HardLinkToFile, Bait::HardLinkToSocket] {
            for name in ["socket", "socket.lock"] {
                let attack = LinkSwap::begin(bait, &[name]);
                let path = attack.folder().join("socket");
                attack.run_and_check(|| {
                    if let Ok((_listener, mut file)) = SocketFile::bind(&path, open, 8, BIND_PATIENCE) {
                        file.open_to(Access { mode: 0o622, ..open }).unwrap().apply();
                    }
                });
            }
        }
    }

    #[test]
    fn socket_that_listens_is_live_and_another_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        assert_eq!(probe(&path).unwrap(), Found::Nothing);
        let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        listener.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        assert!(matches!(probe(&path).unwrap(), Found::Dead(_)), "it does not listen");
        listener.listen(0).unwrap();
        // The queue has room for one, and then is full.
        for _ in 0..3 {
            assert_eq!(probe(&path).unwrap(), Found::Live);
        }
        drop(listener);
        assert!(matches!(probe(&path).unwrap(), Found::Dead(_)));
        let _datagrams = std::os::unix::net::UnixDatagram::bind(dir.path().join("datagrams")).unwrap();
        assert_eq!(probe(&dir.path().join("datagrams")).unwrap(), Found::Live);
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert!(probe(&dir.path().join("file")).is_err());
    }

    #[test]
    fn access_is_what_the_server_says_by_name_or_number() {
        let gid = nix::unistd::getegid();
        let group = Group::from_gid(gid).unwrap().unwrap().name;
        let server = |mode, group: &str| Server {
            socket_mode: config::Mode(mode),
            socket_group: Some(group.into()),
            ..Server::new("a", &[])
        };
        let access = Access::of(&server(0o660, &group)).unwrap();
        assert_eq!(access, Access::of(&server(0o660, &gid.to_string())).unwrap());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let (_listener, mut file) = SocketFile::bind(&path, access, 8, BIND_PATIENCE).unwrap();
        let found = || path.metadata().map(|meta| (meta.mode() & 0o777, meta.gid())).unwrap();
        assert_eq!(found(), (0o660, gid.as_raw()));
        file.open_to(Access::of(&server(0o600, &group)).unwrap()).unwrap().apply();
        assert_eq!(found().0, 0o600);
        assert!(Access::of(&server(0o600, "no such group")).unwrap_err().contains("no such group"));
    }
}
