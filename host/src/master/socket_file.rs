//! The file of a listening Unix socket: bound under another name and renamed, so that nobody meets one that is not ready or
//! is open to more than it shall be, and taken away at the end only if it is still ours.
//!
//! What stands at the path before is replaced. Whoever binds knows that it is stale: by a lock, or by [`is_live`].

use std::fs::Permissions;
use std::io::{self, Error, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Group, Uid, User};
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::config::Server;

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

    fn grant(self, path: &Path) -> io::Result<()> {
        if self.owner.is_some() || self.group.is_some() {
            nix::unistd::chown(path, self.owner.map(Uid::from_raw), self.group.map(Gid::from_raw))?;
        }
        // After a change of owner, which may clear bits (chown(2)).
        std::fs::set_permissions(path, Permissions::from_mode(self.mode))
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

    /// Listens at `path`, open to those of `access`.
    pub fn bind(path: &Path, access: Access, backlog: i32) -> io::Result<(OwnedFd, SocketFile)> {
        // What a process of our number left behind is stale.
        let new = beside(path);
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
        socket.bind(&SockAddr::unix(&new)?)?;
        let settle = || {
            access.grant(&new)?;
            let identity = identity(&new)?;
            // Nobody can connect before this.
            socket.listen(backlog)?;
            std::fs::rename(&new, path)?;
            Ok(identity)
        };
        match settle() {
            Ok(identity) => Ok((socket.into(), SocketFile { path: path.into(), identity, access })),
            Err(error) => {
                // The first error is the one to tell.
                std::fs::remove_file(&new).ok();
                Err(error)
            }
        }
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

    /// Opens it to those of `access`, and to no others.
    pub fn open_to(&mut self, access: Access) -> io::Result<()> {
        if self.access != access && self.is_ours() {
            access.grant(&self.path)?;
            self.access = access;
        }
        Ok(())
    }

    /// There is no compare-and-unlink: moved aside first, then looked at, and put back if it is another's after all.
    fn remove(&self) -> Result<(), Error> {
        if !self.is_ours() {
            return Ok(());
        }
        let aside = beside(&self.path);
        std::fs::rename(&self.path, &aside)?;
        if identity(&aside)? == self.identity {
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
                tracing::warn!(path = %self.path.display(), %error, "failed to remove a socket");
            }
            _ => {}
        }
    }
}

/// Whether somebody listens at `path`: then it must not be replaced. An error if it is no socket, or there is no telling.
pub fn is_live(path: &Path) -> io::Result<bool> {
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => {}
        Ok(_) => return Err(Error::new(ErrorKind::AlreadyExists, "a file that is no socket is there")),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    match socket.connect(&SockAddr::unix(path)?) {
        Ok(()) => Ok(true),
        Err(error) => match error.raw_os_error() {
            Some(libc::ECONNREFUSED | libc::ENOENT) => Ok(false),
            // Its queue is full; or it is of another type.
            Some(libc::EAGAIN | libc::EPROTOTYPE) => Ok(true),
            _ => Err(error),
        },
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
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;
    use crate::config::Mode;

    #[test]
    fn the_socket_is_ours_alone_replaces_a_stale_one_and_goes_with_us() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(!is_live(&path).unwrap(), "a dead instance's socket");
        let (_listener, file) = SocketFile::bind(&path, Access::OURS, 8).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        drop(file);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn another_s_socket_in_our_place_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let (_first, ours) = SocketFile::bind(&path, Access::OURS, 8).unwrap();
        let (_second, theirs) = SocketFile::bind(&path, Access::OURS, 8).unwrap();
        assert!(theirs.is_ours() && !ours.is_ours());
        drop(ours);
        UnixStream::connect(&path).unwrap();
        drop(theirs);
        assert!(!path.exists());
    }

    #[test]
    fn what_listens_is_live_and_what_is_no_socket_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        assert!(!is_live(&path).unwrap());
        let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        listener.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        assert!(!is_live(&path).unwrap(), "it does not listen");
        listener.listen(0).unwrap();
        // The queue has room for one, and then is full.
        let queued: Vec<bool> = (0..3).map(|_| is_live(&path).unwrap()).collect();
        assert_eq!(queued, [true; 3]);
        drop(listener);
        assert!(!is_live(&path).unwrap());
        let _datagrams = std::os::unix::net::UnixDatagram::bind(dir.path().join("datagrams")).unwrap();
        assert!(is_live(&dir.path().join("datagrams")).unwrap());
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert!(is_live(&dir.path().join("file")).is_err());
    }

    #[test]
    fn access_is_what_the_server_says_by_name_or_number() {
        let gid = nix::unistd::getegid();
        let group = Group::from_gid(gid).unwrap().unwrap().name;
        let server = |mode, group: &str| Server {
            socket_mode: Mode(mode),
            socket_group: Some(group.into()),
            ..Server::new("a", &[])
        };
        let access = Access::of(&server(0o660, &group)).unwrap();
        assert_eq!(access, Access::of(&server(0o660, &gid.to_string())).unwrap());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let (_listener, mut file) = SocketFile::bind(&path, access, 8).unwrap();
        let found = || path.metadata().map(|meta| (meta.mode() & 0o777, meta.gid())).unwrap();
        assert_eq!(found(), (0o660, gid.as_raw()));
        file.open_to(Access::of(&server(0o600, &group)).unwrap()).unwrap();
        assert_eq!(found().0, 0o600);
        assert!(Access::of(&server(0o600, "no such group")).unwrap_err().contains("no such group"));
    }
}
