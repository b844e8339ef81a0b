//! Directories that belong to one user. Missing ones are made with an exact mode, whatever the umask; existing ones are checked
//! and never changed. Every component is opened by descriptor, and below a sticky folder (such as /tmp), where any user may have
//! been first, each must belong to root or to this user and be writable by nobody else.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::Permissions;
use std::io::{self, Error, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, mkdirat};
use nix::unistd::geteuid;

/// As the kernel: path_resolution(7), ELOOP.
const MOST_LINKS: usize = 40;
const STICKY: u32 = 0o1000;
/// Group and others.
const WRITE_OTHERS: u32 = 0o022;
/// Of a missing folder above the one that is asked for.
const PARENT_MODE: u32 = 0o755;
/// The same below a sticky folder; what others may enter must be reached by them.
const PARENT_MODE_BELOW_STICKY: u32 = 0o700;
const ENTER_OTHERS: u32 = 0o011;
/// Folders that belong to the system as a whole: files of one instance have no place directly in them.
const SHARED: [&str; 14] = [
    "/", "/dev/shm", "/etc", "/home", "/opt", "/root", "/run", "/srv", "/tmp", "/usr", "/var", "/var/lib", "/var/run",
    "/var/tmp",
];

/// Opens the directory `path`, which must be absolute, and makes it with `mode` (and its missing parents with 0755, or below a
/// sticky folder with no more rights than `mode`) if it is missing. An existing one must belong to this user and be writable by nobody else; its mode is left as
/// it is.
pub fn open_or_create(path: &Path, mode: u32) -> io::Result<OwnedFd> {
    if SHARED.iter().any(|shared| Path::new(shared) == path) {
        let text = format!(
            "{} is shared by the whole system; set it to a folder for this instance alone, such as {}",
            path.display(),
            path.join("baton-NAME").display()
        );
        return Err(Error::new(ErrorKind::PermissionDenied, text));
    }
    let mut walk = Walk::begin(path, Missing::Create { mode })?;
    while walk.step()? {}
    let found = fstat(&walk.dir)?;
    if found.st_uid != geteuid().as_raw() {
        return Err(refused(path, &format!("belongs to uid {}, and the server runs as {}", found.st_uid, geteuid())));
    }
    if found.st_mode & WRITE_OTHERS != 0 {
        return Err(writable(path, found.st_mode));
    }
    // O_PATH is enough to look around, not to take a lock.
    Ok(openat(&walk.dir, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// The owner of the existing directory `path`, if the way to it is safe: below a sticky folder every component belongs to root or
/// to this user.
pub fn owner_if_safe(path: &Path) -> io::Result<u32> {
    let mut walk = Walk::begin(&std::path::absolute(path)?, Missing::Fail)?;
    while walk.step()? {}
    Ok(fstat(&walk.dir)?.st_uid)
}

/// Gives the file or directory behind `fd`, which may be open with O_PATH only, exactly that mode.
pub fn set_mode(fd: BorrowedFd, mode: u32) -> io::Result<()> {
    if fstat(fd)?.st_mode & 0o7777 == mode {
        return Ok(());
    }
    // fchmod(2) refuses O_PATH; the link in /proc leads to the very file, whatever lies at its path by now.
    std::fs::set_permissions(format!("/proc/self/fd/{}", fd.as_raw_fd()), Permissions::from_mode(mode))
}

/// What becomes of a component that is not there.
#[derive(Clone, Copy)]
enum Missing {
    Fail,
    /// The last one gets this mode.
    Create {
        mode: u32,
    },
}

struct Walk {
    dir: OwnedFd,
    /// Of `dir`.
    path: PathBuf,
    ahead: VecDeque<OsString>,
    missing: Missing,
    below_sticky: bool,
    links: usize,
}

fn names(path: &Path) -> impl DoubleEndedIterator<Item = OsString> + '_ {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    })
}

impl Walk {
    fn begin(path: &Path, missing: Missing) -> io::Result<Walk> {
        if !path.is_absolute() {
            return Err(Error::new(ErrorKind::InvalidInput, format!("{} is not absolute", path.display())));
        }
        let ahead = names(path).collect();
        Ok(Walk { dir: root()?, path: "/".into(), ahead, missing, below_sticky: false, links: 0 })
    }

    /// Enters the next component; `false` at the end.
    fn step(&mut self) -> io::Result<bool> {
        let Some(name) = self.ahead.pop_front() else { return Ok(false) };
        let path = self.path.join(&name);
        let next = self.open(&name, &path)?;
        let found = fstat(&next)?;
        if self.below_sticky {
            check_component(&path, &found)?;
        }
        match SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFDIR => {
                self.below_sticky |= found.st_mode & STICKY != 0 && found.st_mode & WRITE_OTHERS != 0;
                (self.dir, self.path) = (next, path);
            }
            SFlag::S_IFLNK if self.ahead.is_empty() && matches!(self.missing, Missing::Create { .. }) => {
                return Err(refused(&path, "is a symbolic link; name the directory itself"));
            }
            SFlag::S_IFLNK => self.follow(&next, &path)?,
            _ => return Err(Error::new(ErrorKind::NotADirectory, format!("{} is no directory", path.display()))),
        }
        Ok(true)
    }

    fn open(&self, name: &OsStr, path: &Path) -> io::Result<OwnedFd> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let at = |error: Errno| {
            let error = Error::from(error);
            Error::new(error.kind(), format!("{}: {error}", path.display()))
        };
        match (openat(&self.dir, name, flags, Mode::empty()), self.missing) {
            (Err(Errno::ENOENT), Missing::Create { mode }) => {
                let mode = match (self.ahead.is_empty(), self.below_sticky) {
                    (true, _) => mode,
                    (false, true) => PARENT_MODE_BELOW_STICKY | mode & ENTER_OTHERS,
                    (false, false) => PARENT_MODE,
                };
                let made = match mkdirat(&self.dir, name, Mode::from_bits_truncate(mode)) {
                    Ok(()) => true,
                    // Another process was first: as any other that exists.
                    Err(Errno::EEXIST) => false,
                    Err(error) => return Err(at(error)),
                };
                let dir = openat(&self.dir, name, flags, Mode::empty()).map_err(at)?;
                if made && fstat(&dir)?.st_uid == geteuid().as_raw() {
                    // The umask had a part in it.
                    set_mode(dir.as_fd(), mode)?;
                }
                Ok(dir)
            }
            (opened, _) => opened.map_err(at),
        }
    }

    /// Goes on where the symbolic link `link` leads to.
    fn follow(&mut self, link: &OwnedFd, path: &Path) -> io::Result<()> {
        self.links += 1;
        if self.links > MOST_LINKS {
            return Err(Error::new(ErrorKind::InvalidInput, format!("{} leads in a circle", path.display())));
        }
        let target = PathBuf::from(readlinkat(link, "")?);
        for name in names(&target).rev() {
            self.ahead.push_front(name);
        }
        if target.is_absolute() {
            (self.dir, self.path, self.below_sticky) = (root()?, "/".into(), false);
        }
        Ok(())
    }
}

fn root() -> io::Result<OwnedFd> {
    Ok(open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?)
}

fn check_component(path: &Path, found: &FileStat) -> io::Result<()> {
    let is_link = found.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFLNK.bits();
    if found.st_uid != 0 && found.st_uid != geteuid().as_raw() {
        return Err(refused(
            path,
            &format!("belongs to uid {}, in a folder where anybody may make one; use another folder", found.st_uid),
        ));
    }
    if !is_link && found.st_mode & WRITE_OTHERS != 0 && found.st_mode & STICKY == 0 {
        return Err(writable(path, found.st_mode));
    }
    Ok(())
}

fn writable(path: &Path, mode: u32) -> Error {
    let mode = mode & 0o7777;
    refused(path, &format!("may be written by others (mode {mode:04o}); `chmod go-w {}`", path.display()))
}

fn refused(path: &Path, why: &str) -> Error {
    Error::new(ErrorKind::PermissionDenied, format!("{} {why}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::fs::{create_dir, set_permissions};
    use std::os::unix::fs::{MetadataExt, chown, symlink};

    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().mode() & 0o7777
    }

    fn change_mode(path: &Path, mode: u32) {
        set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    /// A folder like /tmp.
    fn sticky() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("tmp");
        create_dir(&folder).unwrap();
        change_mode(&folder, 0o1777);
        (dir, folder)
    }

    #[test]
    fn missing_directories_are_made_with_exact_modes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/c");
        open_or_create(&path, 0o711).unwrap();
        assert_eq!(mode(&path), 0o711);
        // tempdirs lie below the sticky /tmp as a rule.
        assert_eq!(mode(path.parent().unwrap()) & 0o022, 0);
        open_or_create(&path, 0o700).unwrap();
        assert_eq!(mode(&path), 0o711, "an existing directory is left as it is");
    }

    #[test]
    fn parents_below_a_sticky_folder_are_private() {
        let (_dir, folder) = sticky();
        for (name, bits, parent) in [("baton-1", 0o700, 0o700), ("baton-2", 0o711, 0o711), ("baton-3", 0o755, 0o711)] {
            open_or_create(&folder.join(name).join("x"), bits).unwrap();
            assert_eq!((mode(&folder.join(name).join("x")), mode(&folder.join(name))), (bits, parent));
        }
    }

    #[test]
    fn existing_directory_that_others_may_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("open");
        create_dir(&path).unwrap();
        for bits in [0o777, 0o775, 0o1777] {
            change_mode(&path, bits);
            let error = open_or_create(&path, 0o700).unwrap_err().to_string();
            assert!(error.contains("chmod go-w"), "{error}");
            assert_eq!(mode(&path), bits);
        }
        change_mode(&path, 0o755);
        open_or_create(&path, 0o700).unwrap();
        assert_eq!(mode(&path), 0o755);
    }

    #[test]
    fn shared_folder_of_the_system_is_refused_and_unchanged() {
        for shared in ["/run", "/tmp", "/var/lib/", "/"] {
            let before = mode(Path::new(shared));
            let error = open_or_create(Path::new(shared), 0o700).unwrap_err().to_string();
            assert!(error.contains("shared by the whole system"), "{error}");
            assert_eq!(mode(Path::new(shared)), before);
        }
    }

    #[test]
    fn component_below_a_sticky_folder_must_be_safe() {
        let (_dir, folder) = sticky();
        let parent = folder.join("baton-1");
        create_dir(&parent).unwrap();
        change_mode(&parent, 0o777);
        let error = open_or_create(&parent.join("x"), 0o700).unwrap_err().to_string();
        assert!(error.contains("baton-1 may be written by others (mode 0777)"), "{error}");
        assert!(!parent.join("x").exists());
        change_mode(&parent, 0o755);
        open_or_create(&parent.join("x"), 0o700).unwrap();
        assert_eq!(owner_if_safe(&parent.join("x")).unwrap(), geteuid().as_raw());
        if geteuid().is_root() {
            chown(&parent, Some(65_533), None).unwrap();
            for error in [
                open_or_create(&parent.join("x"), 0o700).unwrap_err(),
                open_or_create(&parent.join("y"), 0o700).unwrap_err(),
                owner_if_safe(&parent.join("x")).unwrap_err(),
            ] {
                assert!(error.to_string().contains("baton-1 belongs to uid 65533"), "{error}");
            }
        }
    }

    #[test]
    fn symbolic_link_of_a_stranger_below_a_sticky_folder_is_refused() {
        let (dir, folder) = sticky();
        let (real, link) = (dir.path().join("real"), folder.join("link"));
        create_dir(&real).unwrap();
        symlink(&real, &link).unwrap();
        open_or_create(&link.join("x"), 0o700).unwrap();
        assert!(real.join("x").is_dir());
        let error = open_or_create(&link, 0o700).unwrap_err().to_string();
        assert!(error.contains("symbolic link"), "{error}");
        if geteuid().is_root() {
            std::os::unix::fs::lchown(&link, Some(65_533), None).unwrap();
            let error = open_or_create(&link.join("y"), 0o700).unwrap_err().to_string();
            assert!(error.contains("link belongs to uid 65533"), "{error}");
            assert!(!real.join("y").exists());
        }
    }

    #[test]
    fn directory_of_another_user_is_refused() {
        if !geteuid().is_root() {
            assert!(open_or_create(Path::new("/usr/lib"), 0o700).is_err());
            return;
        }
        // Not below a sticky folder, where no component of a stranger is entered.
        let dir = tempfile::tempdir_in("/run").unwrap();
        chown(dir.path(), Some(65_533), None).unwrap();
        let error = open_or_create(dir.path(), 0o700).unwrap_err().to_string();
        assert!(error.contains("belongs to uid 65533, and the server runs as"), "{error}");
    }

    #[test]
    fn links_that_lead_in_a_circle_and_files_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (dir.path().join("one"), dir.path().join("other"));
        symlink(&one, &other).unwrap();
        symlink(&other, &one).unwrap();
        assert!(open_or_create(&one.join("x"), 0o700).unwrap_err().to_string().contains("circle"));
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert_eq!(open_or_create(&dir.path().join("file"), 0o700).unwrap_err().kind(), ErrorKind::NotADirectory);
    }
}
