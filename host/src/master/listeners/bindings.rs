//! What of the listening sockets must not be done on the loop: looking up who may connect (which may ask a directory service), and
//! binding and opening the files of Unix sockets. Done while the files of an operation are read.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::{BACKLOG, Bound};
use crate::config::{Config, Listen};
use crate::master::socket_file::{self, Access, BIND_PATIENCE, SocketFile};
use crate::report::{Failure, Stage};
use crate::sys::listening::SocketOptions;
use crate::sys::socket::{self, Address};
use crate::sys::tcp::TcpOptions;

/// Why an address is not open.
#[derive(Debug)]
pub struct ListenError {
    pub failure: Failure,
    /// The address, if another socket has it.
    pub in_use: Option<Box<Address>>,
}

impl From<Failure> for ListenError {
    fn from(failure: Failure) -> ListenError {
        ListenError { failure, in_use: None }
    }
}

/// For one configuration: who may connect to its Unix sockets, and those that were not open yet.
#[derive(Debug, Default)]
pub struct Bindings {
    access: BTreeMap<String, Access>,
    bound: BTreeMap<PathBuf, Bound>,
}

/// Unix sockets that are open, or that an earlier master has left with systemd.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    /// With device and inode of the file, which must still be there.
    pub open: BTreeMap<PathBuf, Option<(u64, u64)>>,
    pub stored: BTreeSet<PathBuf>,
    /// Those that are being bound anew at the moment.
    pub rebinding: BTreeSet<PathBuf>,
}

impl Kept {
    fn has(&self, path: &Path) -> bool {
        // One without a file of ours has none to lose.
        let same = |known: &Option<(u64, u64)>| known.is_none() || *known == socket_file::identity(path).ok();
        self.stored.contains(path) || self.rebinding.contains(path) || self.open.get(path).is_some_and(same)
    }
}

impl Bindings {
    /// Looks up and binds what `config` needs and is not `kept`. Blocks.
    pub fn prepare(config: &Config, kept: &Kept) -> Result<Bindings, ListenError> {
        let refused = |why: String| Failure::new(Stage::Listen, why);
        let mut bindings = Bindings::default();
        for server in &config.server {
            for requested in &server.listen {
                let Listen::Unix(path) = requested.parse().map_err(refused)? else { continue };
                let access = match bindings.access.get(&server.name) {
                    Some(access) => *access,
                    None => Access::of(server).map_err(refused)?,
                };
                bindings.access.insert(server.name.clone(), access);
                if !kept.has(&path) && !bindings.bound.contains_key(&path) {
                    bindings.bound.insert(path.clone(), bind_path(&path, access, BIND_PATIENCE)?);
                }
            }
        }
        Ok(bindings)
    }

    pub fn access(&self, server: &str) -> Option<Access> {
        self.access.get(server).copied()
    }

    pub fn has_bound(&self, path: &Path) -> bool {
        self.bound.contains_key(path)
    }

    /// The socket at `path`: the one that was bound, or one that is bound now, since that which was open before was closed
    /// meanwhile. This on the loop, so it waits for nothing.
    pub fn take(&mut self, path: &Path, access: Access) -> Result<Bound, ListenError> {
        self.bound.remove(path).map_or_else(|| bind_path(path, access, Duration::ZERO), Ok)
    }
}

pub fn bind(address: SocketAddr, options: &TcpOptions) -> Result<Bound, ListenError> {
    let attempt = || -> io::Result<Bound> {
        let socket = bind_tcp(address, options, &SocketOptions::default())?;
        let bound = socket::local_addr(socket.as_fd())?.unwrap_or(Address::Ip(address));
        Ok((socket, bound, None))
    };
    attempt().map_err(|error| {
        let failure = Failure::new(Stage::Listen, format!("listen on {address}: {error}"));
        match error.kind() {
            io::ErrorKind::AddrInUse => ListenError {
                failure: failure.hint("another program has it; see `ss -ltnp`, or choose another with --listen"),
                in_use: Some(Address::Ip(address).into()),
            },
            io::ErrorKind::PermissionDenied => {
                failure.hint("ports below 1024 need root or CAP_NET_BIND_SERVICE").into()
            }
            io::ErrorKind::AddrNotAvailable => failure.hint("no interface of this machine has that address").into(),
            _ => failure.into(),
        }
    })
}

/// A socket that listens on `address`, with the options that connections inherit and those that the socket before it came with.
pub fn bind_tcp(address: SocketAddr, options: &TcpOptions, came_with: &SocketOptions) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // [::]:80 and 0.0.0.0:80 are two addresses, whatever the system's default says.
        socket.set_only_v6(true)?;
    }
    // Before the first connection can come: it inherits them.
    came_with.apply(socket.as_fd())?;
    options.apply(socket.as_fd())?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A socket that a dead process left behind is replaced; one that is alive is not.
fn bind_path(path: &Path, access: Access, patience: Duration) -> Result<Bound, ListenError> {
    let bound = SocketFile::bind(path, access, BACKLOG, patience).map_err(|error| {
        let failure = Failure::new(Stage::Listen, format!("listen on unix:{}: {error}", path.display()));
        match error.kind() {
            io::ErrorKind::AddrInUse => ListenError {
                failure: failure.hint("see `ss -lxp`; a live socket is not replaced"),
                in_use: Some(Address::Unix(path.into()).into()),
            },
            io::ErrorKind::NotFound => failure.hint("its folder must be there").into(),
            io::ErrorKind::PermissionDenied => {
                failure.hint("its folder must be writable; only root gives a socket to another owner").into()
            }
            _ => failure.into(),
        }
    })?;
    let (socket, file) = bound;
    Ok((socket, Address::Unix(path.to_owned()), Some(file)))
}
