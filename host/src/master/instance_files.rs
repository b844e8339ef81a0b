//! What an instance holds for as long as it runs: a lock on its runtime directory and one on its state directory, so that no second
//! master works with either, the pid file, and shared locks that keep systemd-tmpfiles away. Restores what was removed from the runtime
//! directory, and the state directory with its lock.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::admin;
use super::pid_file::PidFile;
use super::resume::{Carried, Fd, Luggage};
use super::socket_file::{self, SocketFile};
use super::{StartError, resume::ResumeError};
use crate::dirs::{self, Dirs};
use crate::sys::files::{DirLock, Lock, LockError};
use crate::sys::private_dir;

const RUNTIME_MODE: u32 = 0o700;
/// A child under another uid must reach the plugin store and its data.
const STATE_MODE: u32 = 0o711;

#[derive(Debug)]
pub struct InstanceFiles {
    dirs: Dirs,
    state: Lock,
    runtime: Lock,
    pid_file: PidFile,
    cleaner: CleanerLocks,
}

/// Against systemd-tmpfiles. Absent while that has locked the directory itself, or if it cannot be locked.
#[derive(Debug, Default)]
struct CleanerLocks {
    runtime: Option<DirLock>,
    state: Option<DirLock>,
}

/// The locks of an earlier program of this process.
pub struct InheritedLocks {
    runtime: OwnedFd,
    /// Version 0.1.0 has none.
    state: Option<OwnedFd>,
}

impl InheritedLocks {
    pub fn of(carried: &Carried) -> Result<InheritedLocks, ResumeError> {
        let state = carried.state_lock.as_ref().map(Fd::copy).transpose()?;
        Ok(InheritedLocks { runtime: carried.lock.copy()?, state })
    }
}

impl InstanceFiles {
    /// Makes the directories, takes the locks and writes the pid file, or says which other master is in the way.
    pub fn take(
        dirs: &Dirs,
        name: &str,
        pid_file: Option<PathBuf>,
        inherited: Option<InheritedLocks>,
    ) -> Result<InstanceFiles, StartError> {
        let make = |path: &Path, mode| {
            private_dir::open_or_create(path, mode)
                .map_err(|source| StartError::Directory { path: path.to_owned(), source })
        };
        let runtime_dir = make(&dirs.runtime, RUNTIME_MODE)?;
        let state_dir = make(&dirs.state, STATE_MODE)?;
        make(&dirs.data(), STATE_MODE)?;
        let (runtime, state) = match inherited {
            Some(InheritedLocks { runtime, state }) => (Some(runtime), state),
            None => (None, None),
        };
        let runtime = take_or_keep(&dirs.runtime.join(dirs::LOCK), runtime, |path, pid| StartError::Running {
            name: name.into(),
            path,
            pid,
        })?;
        let state =
            take_or_keep(&dirs.state_lock(), state, |_, pid| StartError::StateInUse { path: dirs.state.clone(), pid })?;
        state.note(&dirs.socket()).map_err(|source| StartError::Directory { path: dirs.state_lock(), source })?;
        let path = pid_file.unwrap_or_else(|| dirs.runtime.join(dirs::PID_FILE));
        let pid_file = PidFile::write(&path).map_err(|source| StartError::PidFile { path, source })?;
        let cleaner = CleanerLocks { runtime: keep_away(runtime_dir), state: keep_away(state_dir) };
        Ok(InstanceFiles { dirs: dirs.clone(), state, runtime, pid_file, cleaner })
    }

    /// For another program of this process: the locks of the runtime and the state directory.
    pub fn save(&self, luggage: &mut Luggage) -> io::Result<(Fd, Fd)> {
        Ok((luggage.put(&self.runtime)?, luggage.put(&self.state)?))
    }

    /// What must lie there, to be looked after off the loop; `socket` is the admin socket by device and inode.
    pub fn expected(&self, socket: (u64, u64)) -> io::Result<Expected> {
        Ok(Expected {
            socket,
            dirs: self.dirs.clone(),
            lock: self.runtime.inode()?,
            state_lock: self.state.inode()?,
            pid_file: self.pid_file.clone(),
            runtime_locked: self.cleaner.runtime.is_some(),
            state_locked: self.cleaner.state.is_some(),
        })
    }

    /// Takes over what was recreated; returns the admin socket, if that is new as well.
    pub fn adopt(&mut self, restored: Restored) -> Option<(OwnedFd, SocketFile)> {
        let Restored { lock, pid_file, cleaner, socket } = restored;
        if let Some(lock) = lock {
            self.runtime = lock;
        }
        if let Some(pid_file) = pid_file {
            self.pid_file = pid_file;
        }
        self.cleaner.runtime = cleaner.or(self.cleaner.runtime.take());
        socket
    }

    /// Takes over the lock of a state directory that was recreated.
    pub fn adopt_state(&mut self, restored: RestoredState) {
        if let Some(lock) = restored.lock {
            self.state = lock;
        }
        self.cleaner.state = restored.cleaner.or(self.cleaner.state.take());
    }

    /// At the end; the locks go last.
    pub fn remove(self) {
        self.pid_file.remove();
    }
}

fn take_or_keep(
    path: &Path,
    inherited: Option<OwnedFd>,
    held: impl FnOnce(PathBuf, Option<i32>) -> StartError,
) -> Result<Lock, StartError> {
    match inherited.map_or_else(|| Lock::take(path), |fd| Ok(Lock::keep(fd)?)) {
        Ok(lock) => Ok(lock),
        Err(LockError::Held { pid }) => Err(held(path.into(), pid)),
        Err(LockError::Io(source)) => Err(StartError::Directory { path: path.into(), source }),
    }
}

/// A file system without locks has none for cleaners either.
fn keep_away(dir: OwnedFd) -> Option<DirLock> {
    DirLock::take(dir).ok().flatten()
}

/// What must lie in the runtime directory, and where the pid file is.
#[derive(Clone, Debug)]
pub struct Expected {
    dirs: Dirs,
    /// By device and inode, as the lock.
    socket: (u64, u64),
    lock: (u64, u64),
    state_lock: (u64, u64),
    pid_file: PidFile,
    runtime_locked: bool,
    state_locked: bool,
}

/// What was recreated.
#[derive(Debug, Default)]
pub struct Restored {
    lock: Option<Lock>,
    pid_file: Option<PidFile>,
    cleaner: Option<DirLock>,
    socket: Option<(OwnedFd, SocketFile)>,
}

/// What was recreated of the state directory.
#[derive(Debug, Default)]
pub struct RestoredState {
    lock: Option<Lock>,
    cleaner: Option<DirLock>,
}

impl RestoredState {
    /// Whether the directory or its lock had been removed.
    pub fn was_removed(&self) -> bool {
        self.lock.is_some()
    }
}

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateLoss {
    #[error(
        "failed to use the state directory {}: it was removed, and another server{} has created it again",
        path.display(),
        pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
    )]
    Taken { path: PathBuf, pid: Option<i32> },
    #[error("failed to recreate what was removed from the state directory {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

impl Restored {
    /// What users can see of it.
    pub fn names(&self) -> Vec<&'static str> {
        let lock = self.lock.as_ref().map(|_| dirs::LOCK);
        let pid_file = self.pid_file.as_ref().map(|_| "the pid file");
        let socket = self.socket.as_ref().map(|_| "the admin socket");
        lock.into_iter().chain(pid_file).chain(socket).collect()
    }
}

impl Expected {
    /// Recreates what is missing; a socket of another process is never replaced. Blocks.
    pub fn restore(&self) -> io::Result<Restored> {
        let mut restored = Restored::default();
        let lock_path = self.dirs.runtime.join(dirs::LOCK);
        let found = std::fs::symlink_metadata(&lock_path).map(|meta| (meta.dev(), meta.ino()));
        if found.ok() != Some(self.lock) {
            let dir = private_dir::open_or_create(&self.dirs.runtime, RUNTIME_MODE)?;
            let lock = Lock::take(&lock_path).map_err(|error| match error {
                LockError::Io(error) => error,
                held => io::Error::new(io::ErrorKind::AddrInUse, format!("{}: {held}", lock_path.display())),
            })?;
            restored.lock = Some(lock);
            restored.cleaner = keep_away(dir);
        } else if !self.runtime_locked {
            restored.cleaner = keep_away(private_dir::open_or_create(&self.dirs.runtime, RUNTIME_MODE)?);
        }
        if self.pid_file.is_missing() {
            restored.pid_file = Some(PidFile::write(self.pid_file.path())?);
        }
        let socket = self.dirs.socket();
        if socket_file::identity(&socket).ok() != Some(self.socket) {
            restored.socket = Some(admin::bind_socket(&socket)?);
        }
        Ok(restored)
    }

    /// Recreates the state directory, its lock and `data/`, unless another server has it. Blocks.
    pub fn restore_state(&self) -> Result<RestoredState, StateLoss> {
        let (dir, lock_path) = (&self.dirs.state, self.dirs.state_lock());
        let failed = |source| StateLoss::Io { path: dir.clone(), source };
        let open = |path: &Path| private_dir::open_or_create(path, STATE_MODE).map_err(failed);
        let is_ours = match socket_file::identity(&lock_path) {
            Ok(found) => found == self.state_lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(failed(error)),
        };
        let mut restored = RestoredState::default();
        if !is_ours || !self.state_locked {
            let opened = open(dir)?;
            if !is_ours {
                let lock = Lock::take(&lock_path).map_err(|error| match error {
                    LockError::Held { pid } => StateLoss::Taken { path: dir.clone(), pid },
                    LockError::Io(error) => failed(error),
                })?;
                lock.note(&self.dirs.socket()).map_err(failed)?;
                restored.lock = Some(lock);
            }
            restored.cleaner = keep_away(opened);
        }
        open(&self.dirs.data())?;
        Ok(restored)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::sys::link_swap::{Bait, LinkSwap};

    fn dirs_in(dir: &tempfile::TempDir, runtime: &str, state: &str) -> Dirs {
        Dirs { runtime: dir.path().join(runtime), state: dir.path().join(state) }
    }

    fn take(dirs: &Dirs) -> Result<InstanceFiles, StartError> {
        InstanceFiles::take(dirs, "x", None, None)
    }

    #[test]
    fn second_master_of_a_directory_is_refused_with_the_pid() {
        let dir = tempfile::tempdir().unwrap();
        let first = take(&dirs_in(&dir, "run", "state")).unwrap();
        let pid = std::process::id().to_string();
        let error = take(&dirs_in(&dir, "run", "other")).unwrap_err();
        assert!(matches!(error, StartError::Running { .. }), "{error}");
        assert!(error.to_string().contains(&format!("already, process {pid} (it holds ")), "{error}");
        let error = take(&dirs_in(&dir, "other", "state")).unwrap_err();
        assert!(matches!(error, StartError::StateInUse { .. }) && error.to_string().contains(&pid), "{error}");
        let said = crate::sys::files::lock_holder(&dir.path().join("state/state.lock")).unwrap();
        assert_eq!(said.reached_at, Some(dir.path().join("run/admin.sock")));
        first.remove();
        take(&dirs_in(&dir, "other", "state")).unwrap();
        // One directory may serve for both.
        let _both = take(&dirs_in(&dir, "both", "both")).unwrap();
        assert!(take(&dirs_in(&dir, "both", "both")).is_err());
    }

    #[test]
    fn locks_survive_a_restart_also_of_a_version_with_one_lock() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = dirs_in(&dir, "run", "state");
        let first = take(&dirs).unwrap();
        let copies = |state: bool| InheritedLocks {
            runtime: std::os::fd::AsFd::as_fd(&first.runtime).try_clone_to_owned().unwrap(),
            state: state.then(|| std::os::fd::AsFd::as_fd(&first.state).try_clone_to_owned().unwrap()),
        };
        let next = InstanceFiles::take(&dirs, "x", None, Some(copies(true))).unwrap();
        // As of version 0.1.0, if another master has the state directory meanwhile.
        let error = InstanceFiles::take(&dirs, "x", None, Some(copies(false))).unwrap_err();
        assert!(matches!(error, StartError::StateInUse { .. }), "{error}");
        let old = copies(false);
        drop((first, next));
        InstanceFiles::take(&dirs, "x", None, Some(old)).unwrap();
    }

    /// The lock that a cleaner of temporary files takes while it works.
    fn clean(path: &Path) -> Option<nix::fcntl::Flock<std::fs::File>> {
        let dir = std::fs::File::open(path).unwrap();
        nix::fcntl::Flock::lock(dir, nix::fcntl::FlockArg::LockExclusiveNonblock).ok()
    }

    #[tokio::test]
    async fn directories_are_locked_against_cleaners() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = dirs_in(&dir, "run", "state");
        let mut files = take(&dirs).unwrap();
        let both = || [&dirs.runtime, &dirs.state].map(|dir| clean(dir).is_some());
        assert_eq!(both(), [false, false]);
        std::fs::remove_dir_all(&dirs.runtime).unwrap();
        let (_listener, socket) = files.adopt(files.expected((0, 0)).unwrap().restore().unwrap()).unwrap();
        assert_eq!(both(), [false, false], "also a directory that was recreated");
        drop((files, socket));
        // They are taken later if a cleaner was first.
        let cleaning = [&dirs.runtime, &dirs.state].map(|dir| clean(dir).unwrap());
        let mut files = take(&dirs).unwrap();
        drop(cleaning);
        assert_eq!(both(), [true, true]);
        let _socket = files.adopt(files.expected((0, 0)).unwrap().restore().unwrap());
        let restored = files.expected((0, 0)).unwrap().restore_state().unwrap();
        files.adopt_state(restored);
        assert_eq!(both(), [false, false]);
    }

    #[tokio::test]
    async fn removed_runtime_files_are_recreated_and_locked() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = dirs_in(&dir, "run", "state");
        let mut files = take(&dirs).unwrap();
        let (_listener, socket) = files.adopt(files.expected((0, 0)).unwrap().restore().unwrap()).unwrap();
        let known = socket.identity();
        let untouched = files.expected(known).unwrap().restore().unwrap();
        assert!(untouched.names().is_empty(), "{untouched:?}");
        std::fs::remove_dir_all(&dirs.runtime).unwrap();
        let restored = files.expected(known).unwrap().restore().unwrap();
        assert_eq!(restored.names(), ["lock", "the pid file", "the admin socket"]);
        let (listener, socket) = files.adopt(restored).unwrap();
        UnixStream::connect(dirs.socket()).unwrap();
        let error = files.expected(known).unwrap().restore().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "somebody listens there");
        drop(listener);
        // Nobody does: its file is as good as none.
        assert_eq!(files.expected(known).unwrap().restore().unwrap().names(), ["the admin socket"]);
        drop(socket);
        let pid = std::fs::read_to_string(dirs.runtime.join(dirs::PID_FILE)).unwrap();
        assert_eq!(pid.trim(), std::process::id().to_string());
        assert!(matches!(take(&dirs_in(&dir, "run", "other")), Err(StartError::Running { .. })));
        // Another master was first.
        std::fs::remove_dir_all(&dirs.runtime).unwrap();
        let _other = take(&dirs_in(&dir, "run", "other")).unwrap();
        let error = files.expected(known).unwrap().restore().unwrap_err().to_string();
        assert!(error.contains("locked by process"), "{error}");
    }

    #[tokio::test]
    async fn instance_files_spare_the_target_of_a_swapped_link() {
        let bind_lock = format!("{}.lock", dirs::SOCKET);
        let names = [dirs::LOCK, dirs::PID_FILE, dirs::SOCKET, &bind_lock].map(|name| format!("run/{name}"));
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        // The runtime directory is this user's alone, so that no other user puts a hard link there.
        for bait in [Bait::SymlinkToFile, Bait::HardLinkToSocket] {
            let attack = LinkSwap::begin(bait, &names);
            let dirs = Dirs { runtime: attack.folder().join("run"), state: attack.folder().join("state") };
            attack.run_and_check(|| {
                let Ok(files) = take(&dirs) else { return };
                if let Ok(expected) = files.expected((0, 0)) {
                    expected.restore().ok();
                }
                files.remove();
            });
        }
    }

    #[tokio::test]
    async fn removed_state_directory_is_recreated_and_locked() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = dirs_in(&dir, "run", "state");
        let mut files = take(&dirs).unwrap();
        assert!(!files.expected((0, 0)).unwrap().restore_state().unwrap().was_removed());
        std::fs::remove_dir_all(&dirs.state).unwrap();
        let restored = files.expected((0, 0)).unwrap().restore_state().unwrap();
        assert!(restored.was_removed());
        files.adopt_state(restored);
        assert_eq!(dirs.state.metadata().unwrap().mode() & 0o7777, STATE_MODE);
        assert!(dirs.data().is_dir() && clean(&dirs.state).is_none());
        let pid = Some(std::process::id() as i32);
        let error = take(&dirs_in(&dir, "other", "state")).unwrap_err();
        assert!(matches!(error, StartError::StateInUse { pid: found, .. } if found == pid), "{error}");
        assert!(!files.expected((0, 0)).unwrap().restore_state().unwrap().was_removed());
        // Only the lock is gone.
        std::fs::remove_file(dirs.state_lock()).unwrap();
        let restored = files.expected((0, 0)).unwrap().restore_state().unwrap();
        files.adopt_state(restored);
        assert!(take(&dirs_in(&dir, "other", "state")).is_err());
        // Another master was first.
        std::fs::remove_dir_all(&dirs.state).unwrap();
        let other = take(&dirs_in(&dir, "other", "state")).unwrap();
        let error = files.expected((0, 0)).unwrap().restore_state().unwrap_err();
        assert!(matches!(error, StateLoss::Taken { pid: found, .. } if found == pid), "{error}");
        // It ends.
        other.remove();
        assert!(files.expected((0, 0)).unwrap().restore_state().unwrap().was_removed());
    }
}
