//! The pid file: written whole, never through a link, and removed only if it is still the one that was written.

use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::sys::files::Replacement;

/// Readable by everybody, writable by the user of the server: its content decides which process is signalled.
const MODE: u32 = 0o644;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PidFile {
    path: PathBuf,
    /// Device and inode.
    inode: (u64, u64),
}

impl PidFile {
    pub fn write(path: &Path) -> io::Result<PidFile> {
        let mut new = Replacement::new(path, MODE)?;
        writeln!(new.file, "{}", std::process::id())?;
        Ok(PidFile { path: path.into(), inode: new.put_in_place()? })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether nothing lies at its path any more.
    pub fn is_missing(&self) -> bool {
        matches!(std::fs::symlink_metadata(&self.path), Err(error) if error.kind() == io::ErrorKind::NotFound)
    }

    pub fn remove(self) {
        let found = std::fs::symlink_metadata(&self.path).map(|meta| (meta.dev(), meta.ino()));
        if found.is_ok_and(|found| found == self.inode)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!("failed to remove the pid file {}: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::link_swap::{Bait, LinkSwap};

    #[test]
    fn pid_file_is_removed_unless_it_was_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pid");
        let own = PidFile::write(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap().trim(), std::process::id().to_string());
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o644);
        let newer = PidFile::write(&path).unwrap();
        own.remove();
        assert!(!newer.is_missing());
        newer.clone().remove();
        assert!(newer.is_missing());
    }

    #[test]
    fn pid_file_spares_the_target_of_a_swapped_link() {
        let temporary = format!("x.pid.{}.0", std::process::id());
        for bait in Bait::FOR_FILES {
            let attack = LinkSwap::begin(bait, &["x.pid", &temporary]);
            let path = attack.folder().join("x.pid");
            attack.run_and_check(|| {
                if let Ok(written) = PidFile::write(&path) {
                    written.remove();
                }
            });
        }
    }
}
