//! The listening sockets: bound once, kept open for the master's life, lent to children. No child ever binds; an address that
//! a reload adds is bound before its child starts, one that it removes is closed after the old generation has stopped
//! accepting (so what waited in its queue was served).

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::socket::{getsockopt, sockopt::AcceptConn};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::config::{Config, parse_listen};
use crate::control::ListenerInfo;
use crate::report::{Failure, ListenerStatus, Stage};

/// What the kernel cuts down to net.core.somaxconn (listen(2)).
const BACKLOG: i32 = 65_535;

/// Names an address as the configuration writes it; port 0 stays the port that the kernel chose once.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    server: String,
    requested: String,
}

#[derive(Debug)]
struct Listener {
    id: u32,
    address: SocketAddr,
    socket: OwnedFd,
}

#[derive(Debug, Default)]
pub struct Listeners {
    open: BTreeMap<Key, Listener>,
    next_id: u32,
}

impl Listeners {
    /// Opens what `config` names and is not open yet: all of it, or nothing.
    pub fn open(&mut self, config: &Config) -> Result<Vec<Key>, Failure> {
        let mut keys = Vec::new();
        let mut opened = Vec::new();
        for server in &config.server {
            for requested in &server.listen {
                let key = Key { server: server.name.clone(), requested: requested.clone() };
                if !self.open.contains_key(&key) {
                    match bind(requested) {
                        Ok((socket, address)) => {
                            let listener = Listener { id: self.next_id, address, socket };
                            self.next_id += 1;
                            self.open.insert(key.clone(), listener);
                            opened.push(key.clone());
                        }
                        Err(failure) => {
                            self.open.retain(|key, _| !opened.contains(key));
                            return Err(failure);
                        }
                    }
                }
                keys.push(key);
            }
        }
        Ok(keys)
    }

    /// Closes all but `keys`; answers the addresses that are gone.
    pub fn retain(&mut self, keys: &BTreeSet<Key>) -> Vec<SocketAddr> {
        let gone = self.open.iter().filter(|(key, _)| !keys.contains(key)).map(|(_, listener)| listener.address);
        let gone = gone.collect();
        self.open.retain(|key, _| keys.contains(key));
        gone
    }

    /// What a child is told of `keys`, and copies of their sockets.
    pub fn lend(&self, keys: &[Key]) -> std::io::Result<Vec<(ListenerInfo, OwnedFd)>> {
        let mut lent = Vec::new();
        for key in keys {
            if let Some(listener) = self.open.get(key) {
                let info =
                    ListenerInfo { id: listener.id, server: key.server.clone(), address: listener.address.to_string() };
                lent.push((info, listener.socket.try_clone()?));
            }
        }
        Ok(lent)
    }

    pub fn ids(&self, keys: &[Key]) -> Vec<u32> {
        keys.iter().filter_map(|key| self.open.get(key)).map(|listener| listener.id).collect()
    }

    /// Somebody called shutdown(2) on a shared socket (plugin code: Baton's child has no such call): it no longer listens,
    /// in any process. Listening again brings it back; answers the addresses where that was needed.
    pub fn mend(&self) -> Vec<SocketAddr> {
        let deaf = |listener: &&Listener| getsockopt(&listener.socket.as_fd(), AcceptConn) == Ok(false);
        let mut mended = Vec::new();
        for listener in self.open.values().filter(deaf) {
            match SockRef::from(&listener.socket).listen(BACKLOG) {
                Ok(()) => mended.push(listener.address),
                Err(error) => tracing::error!(address = %listener.address, "failed to listen again: {error}"),
            }
        }
        mended
    }

    pub fn status(&self) -> Vec<ListenerStatus> {
        let status = |(key, listener): (&Key, &Listener)| ListenerStatus {
            server: key.server.clone(),
            address: listener.address.to_string(),
        };
        self.open.iter().map(status).collect()
    }
}

fn bind(requested: &str) -> Result<(OwnedFd, SocketAddr), Failure> {
    let address = parse_listen(requested).map_err(|why| Failure::new(Stage::Listen, why))?;
    let attempt = || -> std::io::Result<(OwnedFd, SocketAddr)> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            // [::]:80 and 0.0.0.0:80 are two addresses, whatever the system's default says.
            socket.set_only_v6(true)?;
        }
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let bound = socket.local_addr()?.as_socket().unwrap_or(address);
        Ok((socket.into(), bound))
    };
    attempt().map_err(|error| {
        let failure = Failure::new(Stage::Listen, format!("listen on {address}: {error}"));
        match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                failure.hint("another program has it; see `ss -ltnp`, or choose another with --listen")
            }
            std::io::ErrorKind::PermissionDenied => failure.hint("ports below 1024 need root or CAP_NET_BIND_SERVICE"),
            std::io::ErrorKind::AddrNotAvailable => failure.hint("no interface of this machine has that address"),
            _ => failure,
        }
    })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::config::Server;

    fn config(listen: &[&str]) -> Config {
        Config { server: vec![Server::new("a", listen)], ..Config::default() }
    }

    fn address(listeners: &Listeners) -> String {
        listeners.status()[0].address.clone()
    }

    #[test]
    fn an_address_stays_what_it_is_across_reloads() {
        let mut listeners = Listeners::default();
        listeners.open(&config(&["127.0.0.1:0"])).unwrap();
        let before = address(&listeners);
        let keys = listeners.open(&config(&["127.0.0.1:0", "[::1]:0"])).unwrap();
        assert_eq!((listeners.status().len(), address(&listeners)), (2, before.clone()));
        let gone = listeners.retain(&keys[..1].iter().cloned().collect());
        assert_eq!((gone.len(), address(&listeners)), (1, before));
    }

    #[test]
    fn one_address_that_is_taken_opens_none() {
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = other.local_addr().unwrap().to_string();
        let mut listeners = Listeners::default();
        let failure = listeners.open(&config(&["127.0.0.1:0", &taken])).unwrap_err();
        assert_eq!(failure.stage, Stage::Listen);
        assert!(failure.error.contains(&taken), "{failure}");
        assert!(listeners.status().is_empty());
    }

    #[test]
    fn a_socket_that_somebody_shut_down_listens_again() {
        // A port that was asked for by number: one that the kernel chose is given up by shutdown(2) and chosen anew.
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let mut listeners = Listeners::default();
        let keys = listeners.open(&config(&[&free])).unwrap();
        let (_, copy) = listeners.lend(&keys).unwrap().remove(0);
        assert!(listeners.mend().is_empty());
        Socket::from(copy).shutdown(std::net::Shutdown::Both).unwrap();
        assert!(TcpStream::connect(address(&listeners)).is_err());
        assert_eq!(listeners.mend().len(), 1);
        TcpStream::connect(address(&listeners)).unwrap();
    }
}
