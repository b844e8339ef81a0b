//! Listening sockets that no client reaches any more. All processes share a socket, so a plugin's process can shut it down, connect or
//! bind it elsewhere, or set options that turn clients away; and anybody with the right to do so can remove a Unix socket's file. Here
//! the address comes back: on the same socket where that can listen again, else on a new one, of which the children need a copy.
//! TCP is checked on the loop, where nothing of it blocks. Binding a Unix socket may block and is a [`Rebind`] for the blocking pool.

use std::fmt;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use socket2::{Domain, SockRef};

use super::bindings::bind_tcp;
use super::{BACKLOG, Key, Listener, Listeners, lock_filter};
use crate::master::socket_file::{self, Access, BIND_PATIENCE, SocketFile};
use crate::sys::listening::{self, Condition, Loss, SocketOptions};
use crate::sys::socket::{self, Address};

/// An address on which clients are served again.
#[derive(Debug, PartialEq, Eq)]
pub struct Relistened {
    pub key: Key,
    pub id: u32,
    pub address: Address,
    pub damage: Damage,
    pub how: How,
}

/// Why no client reached it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    Shut,
    Changed(Loss),
    /// Of a Unix socket: the file at its path is gone, or another one.
    FileGone,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Damage::Shut => f.write_str("it was shut down (by plugin code?)"),
            Damage::Changed(loss) => write!(f, "{loss} (by plugin code?)"),
            Damage::FileGone => f.write_str("its file was removed"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// The same socket listens.
    Listen,
    /// Another socket is bound to the address: children have the one before.
    Bind,
}

/// What to check and bind on the blocking pool: the Unix socket of one path.
#[derive(Debug)]
pub struct Rebind {
    key: Key,
    id: u32,
    path: PathBuf,
    /// As the file at the path has it, if it is `None`.
    access: Option<Access>,
    /// Of its file, unless that is systemd's.
    identity: Option<(u64, u64)>,
    is_shut: bool,
}

/// A Unix socket that was bound, or not.
#[derive(Debug)]
pub struct Rebound {
    key: Key,
    id: u32,
    damage: Damage,
    result: io::Result<(OwnedFd, SocketFile)>,
}

impl Rebind {
    /// Binds the path if clients do not reach the socket; `None` if they do. Blocks.
    pub fn run(self) -> Option<Rebound> {
        let Rebind { key, id, path, access, identity, is_shut } = self;
        let is_gone = || identity.is_some_and(|identity| is_gone(&path, identity));
        let damage = if is_shut {
            Damage::Shut
        } else if is_gone() {
            Damage::FileGone
        } else {
            return None;
        };
        let bind = || SocketFile::bind(&path, access.map_or_else(|| Access::like(&path), Ok)?, BACKLOG, BIND_PATIENCE);
        Some(Rebound { key, id, damage, result: bind() })
    }
}

/// An error of the file system is no reason to bind: the file may be there.
fn is_gone(path: &Path, known: (u64, u64)) -> bool {
    match socket_file::identity(path) {
        Ok(found) => found != known,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Which Unix sockets a [`Rebind`] is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathCheck {
    /// Those that were shut down, as the kernel says without asking a file system.
    Shut,
    /// All with a file: whether it is there is found out on the blocking pool.
    Files,
}

impl Listeners {
    /// Checks the TCP sockets, and repairs those on which clients are not served. Returns those that were repaired.
    pub fn relisten(&mut self) -> Vec<Relistened> {
        let mut done = Vec::new();
        for (key, listener) in &mut self.open {
            let Address::Ip(address) = listener.address else { continue };
            match listener.relisten(address) {
                Ok(None) => listener.broken = None,
                Ok(Some((damage, how))) => done.push(listener.repaired(key.clone(), damage, how)),
                Err(error) => listener.complain(&error),
            }
        }
        done
    }

    /// What is to be done for the Unix sockets. Until it was [adopted](Listeners::adopt), they are as good as reachable to
    /// [`kept`](Listeners::kept), so that no operation binds the same path.
    pub fn rebinds(&mut self, check: PathCheck) -> Vec<Rebind> {
        let mut rebinds = Vec::new();
        for (key, listener) in &mut self.open {
            let Address::Unix(path) = &listener.address else { continue };
            let is_shut = socket::is_shut(listener.socket.as_fd());
            if !is_shut && (check == PathCheck::Shut || listener.file.is_none()) {
                continue;
            }
            if path.to_str().is_some_and(|name| name.starts_with('@')) {
                let text = "an abstract name is free only once every process has closed it; restart its .socket unit";
                listener.complain(&io::Error::other(text));
                continue;
            }
            let file = listener.file.as_ref();
            let (access, identity) = (file.map(SocketFile::access), file.map(SocketFile::identity));
            rebinds.push(Rebind { key: key.clone(), id: listener.id, path: path.clone(), access, identity, is_shut });
        }
        self.rebinding = rebinds.iter().map(|rebind| rebind.key.clone()).collect();
        rebinds
    }

    /// Takes over what was bound for [`rebinds`](Listeners::rebinds).
    pub fn adopt(&mut self, rebound: Vec<Rebound>) -> Vec<Relistened> {
        self.rebinding.clear();
        rebound.into_iter().filter_map(|rebound| self.adopt_one(rebound)).collect()
    }

    fn adopt_one(&mut self, rebound: Rebound) -> Option<Relistened> {
        let Rebound { key, id, damage, result } = rebound;
        // Else the address was closed meanwhile, or is another socket's: the new one goes, with its file.
        let listener = self.open.get_mut(&key).filter(|listener| listener.id == id)?;
        let (socket, file) = match result {
            Ok(bound) => bound,
            Err(error) => {
                listener.complain(&error);
                return None;
            }
        };
        lock_filter(&socket, &listener.address);
        match listener.file.take() {
            // The path is the new one's.
            Some(before) => {
                before.leave();
                listener.file = Some(file);
            }
            // systemd's: the file is not taken away at the end either.
            None => drop(file.leave()),
        }
        listener.socket = socket;
        Some(listener.repaired(key, damage, How::Bind))
    }

    /// A copy of the socket, if it is open.
    pub fn copy(&self, key: &Key) -> Option<io::Result<OwnedFd>> {
        self.open.get(key).map(|listener| listener.socket.try_clone())
    }
}

impl Listener {
    fn repaired(&mut self, key: Key, damage: Damage, how: How) -> Relistened {
        let (id, address) = (self.id, self.address.clone());
        self.broken = None;
        if self.repairs.again() {
            tracing::error!(%address, "clients did not reach a listening socket: {damage}; they do again");
        }
        Relistened { key, id, address, damage, how }
    }

    fn complain(&mut self, error: &io::Error) {
        if self.complaints.again() {
            let address = &self.address;
            tracing::error!(%address, "clients do not reach a listening socket, and it was not bound again: {error}");
        }
        self.broken = Some(error.to_string());
    }

    /// Returns what was wrong, if anything was.
    fn relisten(&mut self, address: SocketAddr) -> io::Result<Option<(Damage, How)>> {
        let options = self.came_with.or(&SocketOptions::of_new(Domain::for_address(address))?);
        let condition = || listening::condition(self.socket.as_fd(), address, &options);
        let damage = match condition()? {
            Condition::Listening => {
                let shared = SockRef::from(&self.socket);
                // The length of the queue and what connections inherit are any process's to change as well.
                shared.listen(BACKLOG)?;
                socket::adopt_listener(&self.socket)?;
                if let Err(error) = self.options.apply(self.socket.as_fd())
                    && self.complaints.again()
                {
                    tracing::warn!(%address, "failed to set the TCP options of a listening socket: {error}");
                }
                return Ok(None);
            }
            Condition::Shut => {
                // If that fails, another socket is needed.
                if listen_again(&self.socket, address).is_ok() && condition()? == Condition::Listening {
                    return Ok(Some((Damage::Shut, How::Listen)));
                }
                Damage::Shut
            }
            Condition::Lost(loss) => Damage::Changed(loss),
        };
        self.bind_again(address)?;
        Ok(Some((damage, How::Bind)))
    }

    /// Serves the address on a new socket. What waits in the queue of the old one is reset.
    fn bind_again(&mut self, address: SocketAddr) -> io::Result<()> {
        let before = SockRef::from(&self.socket);
        // Sockets share a port if all of them have this option and none listens.
        before.set_reuse_address(true)?;
        match before.shutdown(Shutdown::Both) {
            Err(error) if error.kind() != io::ErrorKind::NotConnected => return Err(error),
            _ => {}
        }
        self.socket = bind_tcp(address, &self.options, &self.came_with)?;
        lock_filter(&self.socket, &self.address);
        // As the kernel shows them: it rounds some.
        self.came_with = SocketOptions::of(self.socket.as_fd()).own(Domain::for_address(address))?;
        Ok(())
    }
}

fn listen_again(socket: &OwnedFd, address: SocketAddr) -> io::Result<()> {
    let shared = SockRef::from(socket);
    // A port that the kernel chose is given up at a shutdown, though the socket shows it still; one that was asked for stays bound
    // (EINVAL), as does one that another process has bound the socket to.
    match shared.bind(&address.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::EINVAL as i32) => return Err(error),
        _ => {}
    }
    shared.listen(BACKLOG)
}
