//! Listening sockets that were shut down: shutdown(2) acts on the socket that all processes share, so a plugin's process can take an
//! address away from all. Here it comes back. A TCP socket listens again; a Unix socket does not (the kernel has no way back), so
//! another is bound to its path, and the children need a copy of that.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt::AcceptConn};
use socket2::SockRef;

use super::{BACKLOG, Key, Listener, Listeners, lock_filter};
use crate::master::socket_file::{Access, SocketFile};
use crate::sys::socket::{self, Address};

/// An address on which clients are served again.
#[derive(Debug, PartialEq, Eq)]
pub struct Relistened {
    pub key: Key,
    pub id: u32,
    pub address: Address,
    pub how: How,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// The same socket listens.
    Listen,
    /// Another socket is bound to the address: children have the one before.
    Bind,
}

impl Listeners {
    /// Listens again where a socket was shut down. Returns where that was needed.
    pub fn relisten(&mut self) -> Vec<Relistened> {
        let mut done = Vec::new();
        for (key, listener) in &mut self.open {
            match listener.relisten() {
                Ok(None) => {}
                Ok(Some(how)) => {
                    done.push(Relistened { key: key.clone(), id: listener.id, address: listener.address.clone(), how });
                }
                Err(error) if listener.complaints.again() => {
                    tracing::error!(address = %listener.address, "failed to listen again on a socket that was shut down: {error}");
                }
                Err(_) => {}
            }
        }
        done
    }

    /// A copy of the socket, if it is open.
    pub fn copy(&self, key: &Key) -> Option<io::Result<OwnedFd>> {
        self.open.get(key).map(|listener| listener.socket.try_clone())
    }
}

impl Listener {
    fn relisten(&mut self) -> io::Result<Option<How>> {
        match self.address.clone() {
            Address::Ip(address) => Ok(listen_again(&self.socket, address)?.then_some(How::Listen)),
            Address::Unix(path) if socket::is_shut(self.socket.as_fd()) => {
                self.bind_again(&path)?;
                Ok(Some(How::Bind))
            }
            Address::Unix(_) => Ok(None),
        }
    }

    fn bind_again(&mut self, path: &Path) -> io::Result<()> {
        if path.to_str().is_some_and(|name| name.starts_with('@')) {
            return Err(io::Error::other(
                "an abstract name is free only once every process has closed it; restart its .socket unit",
            ));
        }
        // Who may connect stays as it is.
        let access = match &self.file {
            Some(file) => file.access(),
            None => Access::like(path)?,
        };
        let (socket, file) = SocketFile::bind(path, access, BACKLOG)?;
        lock_filter(&socket, &self.address);
        match self.file.take() {
            // The path is the new one's.
            Some(before) => {
                before.leave();
                self.file = Some(file);
            }
            // systemd's: the file is not taken away at the end either.
            None => drop(file.leave()),
        }
        self.socket = socket;
        Ok(())
    }
}

/// Returns whether that was needed.
fn listen_again(socket: &OwnedFd, address: SocketAddr) -> io::Result<bool> {
    let shared = SockRef::from(socket);
    let listens = getsockopt(&socket.as_fd(), AcceptConn)?;
    if !listens {
        // A port that the kernel chose is given up at a shutdown; one that was asked for is bound still (EINVAL).
        match shared.bind(&address.into()) {
            Err(error) if error.raw_os_error() != Some(Errno::EINVAL as i32) => return Err(error),
            _ => {}
        }
    }
    // Also if it listens: the length of the queue is any process's to change.
    shared.listen(BACKLOG)?;
    Ok(!listens)
}
