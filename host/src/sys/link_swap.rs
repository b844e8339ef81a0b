//! For tests of what root does by path: an attacker who may write the folder and swaps names for links to a target outside, in a
//! tight loop, while the code under test runs. Owns the folder, the target and the thread. Refuses a run without swaps, which would
//! prove nothing.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

/// As few runs of the code, and as few swaps, count as a race.
const LEAST: usize = 1500;
const PATIENCE: Duration = Duration::from_secs(120);
/// No code under test has a reason to give exactly this one.
const TARGET_MODE: u32 = 0o604;
const CONTENT: &str = "precious";

/// What the attacker puts in the place of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bait {
    SymlinkToFile,
    SymlinkToDir,
    HardLinkToFile,
    /// Of the same user, and private, as the admin socket is.
    HardLinkToSocket,
}

impl Bait {
    /// Those that can take the place of a file.
    pub const FOR_FILES: [Bait; 3] = [Bait::SymlinkToFile, Bait::HardLinkToFile, Bait::SymlinkToDir];

    fn place(self, target: &Path, at: &Path) -> std::io::Result<()> {
        match self {
            Bait::SymlinkToFile | Bait::SymlinkToDir => symlink(target, at),
            Bait::HardLinkToFile | Bait::HardLinkToSocket => fs::hard_link(target, at),
        }
    }
}

/// What must not change of the target.
#[derive(Debug, PartialEq, Eq)]
struct Facts {
    mode: u32,
    owner: (u32, u32),
    content: Vec<String>,
}

impl Facts {
    fn of(target: &Path) -> Facts {
        let meta = fs::symlink_metadata(target).expect("the target is there");
        let content = match target {
            _ if meta.is_file() => vec![fs::read_to_string(target).expect("the target can be read")],
            _ if meta.is_dir() => {
                let names = fs::read_dir(target).expect("the target can be listed");
                names.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
            }
            _ => Vec::new(),
        };
        Facts { mode: meta.mode(), owner: (meta.uid(), meta.gid()), content }
    }
}

pub struct LinkSwap {
    dir: tempfile::TempDir,
    _socket: Option<UnixListener>,
    before: Facts,
    swaps: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    attacker: Option<JoinHandle<()>>,
}

impl LinkSwap {
    /// Begins to swap each of `names`, which are relative to [the folder](LinkSwap::folder).
    pub fn begin(bait: Bait, names: &[&str]) -> LinkSwap {
        let dir = tempfile::tempdir().unwrap();
        let (folder, target) = (dir.path().join("folder"), dir.path().join("target"));
        fs::create_dir(&folder).unwrap();
        let mut socket = None;
        match bait {
            Bait::SymlinkToFile | Bait::HardLinkToFile => fs::write(&target, CONTENT).unwrap(),
            Bait::SymlinkToDir => fs::create_dir(&target).unwrap(),
            Bait::HardLinkToSocket => socket = Some(UnixListener::bind(&target).unwrap()),
        }
        let mode = if bait == Bait::HardLinkToSocket { 0o600 } else { TARGET_MODE };
        fs::set_permissions(&target, fs::Permissions::from_mode(mode)).unwrap();
        let (swaps, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let paths: Vec<PathBuf> = names.iter().map(|name| folder.join(name)).collect();
        let decoy = dir.path().join("decoy");
        let attack = {
            let (target, swaps, stop) = (target.clone(), swaps.clone(), stop.clone());
            move || {
                while !stop.load(Ordering::Relaxed) {
                    for path in &paths {
                        if swap(bait, &target, &decoy, path) {
                            swaps.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            }
        };
        let before = Facts::of(&target);
        let attacker = Some(std::thread::spawn(attack));
        LinkSwap { dir, _socket: socket, before, swaps, stop, attacker }
    }

    /// Where the code under test works, and the attacker with it.
    pub fn folder(&self) -> PathBuf {
        self.dir.path().join("folder")
    }

    /// Runs `operation` until both sides have had many turns, and checks that the target outside is what it was.
    #[track_caller]
    pub fn run_and_check(self, mut operation: impl FnMut()) {
        let start = Instant::now();
        let mut runs = 0;
        while runs < LEAST || self.swaps.load(Ordering::Relaxed) < LEAST {
            operation();
            runs += 1;
            assert!(start.elapsed() < PATIENCE, "{runs} runs and {:?} swaps only", self.swaps);
        }
        self.stop.store(true, Ordering::Relaxed);
        assert_eq!(Facts::of(&self.dir.path().join("target")), self.before, "the target of a link was changed");
    }
}

impl Drop for LinkSwap {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(attacker) = self.attacker.take() {
            attacker.join().ok();
        }
    }
}

/// Swaps what lies at `path` for a link and back, each in one step; with nothing there, puts a link there and removes it. Returns
/// whether the link was there. Errors are the turns of the code under test.
fn swap(bait: Bait, target: &Path, decoy: &Path, path: &Path) -> bool {
    let exchange = || renameat2(AT_FDCWD, decoy, AT_FDCWD, path, RenameFlags::RENAME_EXCHANGE).is_ok();
    if fs::remove_file(decoy).is_err() {
        fs::remove_dir_all(decoy).ok();
    }
    if bait.place(target, decoy).is_err() {
        return false;
    }
    let was_there = exchange();
    let swapped = was_there || fs::rename(decoy, path).is_ok();
    if swapped && !(was_there && exchange()) {
        fs::remove_file(path).ok();
    }
    swapped
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::sys::files::{self, Lock, Replacement};
    use crate::sys::private_dir::open_or_create;

    fn own_name(name: &str) -> String {
        format!("{name}.{}.0", std::process::id())
    }

    #[test]
    fn replacement_spares_the_target_of_a_swapped_link() {
        let temporary = own_name("x");
        for bait in Bait::FOR_FILES {
            let attack = LinkSwap::begin(bait, &["x", &temporary]);
            let path = attack.folder().join("x");
            attack.run_and_check(|| {
                if let Ok(mut new) = Replacement::new(&path, 0o666) {
                    new.file.write_all(b"7").unwrap();
                    new.put_in_place().ok();
                }
            });
        }
        let attack = LinkSwap::begin(Bait::SymlinkToFile, &["x"]);
        let path = attack.folder().join("x");
        attack.run_and_check(|| drop(files::replace(&path, b"7")));
    }

    #[test]
    fn lock_spares_the_target_of_a_swapped_link() {
        for bait in Bait::FOR_FILES {
            let attack = LinkSwap::begin(bait, &["lock"]);
            let path = attack.folder().join("lock");
            attack.run_and_check(|| drop(Lock::take_unsigned(&path)));
        }
        // It is written, and so is for a folder of this user's alone: of another, the number of names that was read counts for
        // nothing, since the name may be gone by then.
        for bait in [Bait::SymlinkToFile, Bait::SymlinkToDir] {
            let attack = LinkSwap::begin(bait, &["lock"]);
            let path = attack.folder().join("lock");
            attack.run_and_check(|| drop(Lock::take(&path)));
        }
    }

    #[test]
    fn directory_mode_never_reaches_the_target_of_a_swapped_link() {
        for bait in [Bait::SymlinkToDir, Bait::SymlinkToFile] {
            let attack = LinkSwap::begin(bait, &["own"]);
            let path = attack.folder().join("own");
            attack.run_and_check(|| {
                // As often as it exists it must be created anew, since the mode of an existing one is left alone.
                fs::remove_dir(&path).ok();
                open_or_create(&path, 0o711).ok();
            });
        }
    }
}
