//! The admin socket's file: bound under another name and renamed, so that nobody meets one that is not ready, and taken away
//! at the end only if it is still ours. A stale one of a dead instance is replaced; the instance's lock is held.

use std::fs::Permissions;
use std::io::{Error, ErrorKind};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl SocketFile {
    /// Binds `path` for our user alone.
    pub fn bind(path: &Path) -> Result<(UnixListener, SocketFile), Error> {
        let new = path.with_extension("new");
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&new)?;
        let settle = || {
            std::fs::set_permissions(&new, Permissions::from_mode(0o600))?;
            let meta = std::fs::symlink_metadata(&new)?;
            listener.set_nonblocking(true)?;
            std::fs::rename(&new, path)?;
            Ok((meta.dev(), meta.ino()))
        };
        match settle() {
            Ok(identity) => Ok((listener, SocketFile { path: path.into(), identity })),
            Err(error) => {
                // The first error is the one to tell.
                std::fs::remove_file(&new).ok();
                Err(error)
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// There is no compare-and-unlink: moved aside first, then looked at, and put back if it is another's.
    fn remove(&self) -> Result<(), Error> {
        let aside = self.path.with_extension("old");
        std::fs::rename(&self.path, &aside)?;
        let meta = std::fs::symlink_metadata(&aside)?;
        if (meta.dev(), meta.ino()) == self.identity {
            std::fs::remove_file(&aside)
        } else {
            std::fs::rename(&aside, &self.path)
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        match self.remove() {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::warn!(path = %self.path.display(), %error, "failed to remove the admin socket");
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_socket_is_ours_alone_replaces_a_stale_one_and_goes_with_us() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(UnixStream::connect(&path).is_err(), "a dead instance's socket");
        let (_listener, file) = SocketFile::bind(&path).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        drop(file);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn another_s_socket_in_our_place_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let (_first, ours) = SocketFile::bind(&path).unwrap();
        let (_second, theirs) = SocketFile::bind(&path).unwrap();
        drop(ours);
        UnixStream::connect(&path).unwrap();
        drop(theirs);
        assert!(!path.exists());
    }
}
