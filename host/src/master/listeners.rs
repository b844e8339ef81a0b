//! The listening sockets: bound once (or taken over from systemd), kept open for the master's life, lent to children. No child
//! ever binds; an address that a reload adds is bound before its child starts, one that it removes is closed after the old
//! generation has stopped accepting (so what waited in its queue was served). The file of a Unix socket goes with it. What an
//! earlier master has left with systemd is taken up again where the configuration still names it.

mod bindings;
mod relisten;
mod stored;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use socket2::{Domain, SockRef, Type};

use super::resume::{Fd, Luggage};
use super::socket_file::{Access, Grant, SavedFile, SocketFile};
use crate::config::{Config, Listen, Server, collide};
use crate::control::ListenerInfo;
use crate::report::{Failure, ListenerStatus, Scheme, Stage};
use crate::sys::listening::SocketOptions;
use crate::sys::socket::{self, Address};
use crate::sys::tcp::TcpOptions;
use crate::sys::worker;
use crate::telemetry::Seldom;
use bindings::bind;
pub use bindings::{Bindings, Kept, ListenError};
pub use relisten::{How, PathCheck, Rebind, Rebound, Relistened};
use stored::{Label, Stored};

/// What the kernel cuts down to net.core.somaxconn (listen(2)).
const BACKLOG: i32 = 65_535;

/// The first descriptor that systemd passes (sd_listen_fds(3)).
const FIRST_PASSED: i32 = 3;

/// What makes an open socket the same one at the next reload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Key {
    /// Whichever server it belongs to.
    Fixed(SocketAddr),
    /// The port that the kernel chose once stays, for the same server and place in its list.
    Chosen {
        server: String,
        address: SocketAddr,
        nth: usize,
    },
    Unix(PathBuf),
    /// A name may have several sockets.
    Systemd {
        name: String,
        nth: usize,
    },
}

impl Key {
    fn is_systemd(&self, wanted: &str) -> bool {
        matches!(self, Key::Systemd { name, .. } if name == wanted)
    }
}

/// A socket in a set, with the server that it serves there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    pub key: Key,
    server: String,
    /// Who may connect to a socket that has a file of ours.
    access: Option<Access>,
    scheme: Scheme,
}

#[derive(Debug)]
struct Listener {
    id: u32,
    address: Address,
    /// Of a Unix socket. Before the socket: nobody finds the one without the other.
    file: Option<SocketFile>,
    socket: OwnedFd,
    /// It came from systemd, which has it still.
    came: bool,
    /// What connections inherit, of a TCP socket.
    options: TcpOptions,
    /// Options that systemd set before it passed the socket.
    came_with: SocketOptions,
    /// Why clients do not reach it, if the last repair failed.
    broken: Option<String>,
    /// Failed repairs are logged once in a while, and so are successful ones.
    complaints: Seldom,
    repairs: Seldom,
}

impl Listener {
    /// With the kernel's options: those of the configuration are set at the end of [`Listeners::open`].
    fn new(id: u32, (socket, address, file): Bound, came: bool) -> Listener {
        let (options, came_with) = (TcpOptions::default(), SocketOptions::default());
        let (complaints, repairs) = (Seldom::default(), Seldom::default());
        Listener { id, address, file, socket, came, options, came_with, broken: None, complaints, repairs }
    }
}

#[derive(Debug, Default)]
pub struct Listeners {
    open: BTreeMap<Key, Listener>,
    /// What systemd passed and nobody has claimed yet.
    passed: BTreeMap<Key, (OwnedFd, Address)>,
    /// The same of what an earlier master has left with it.
    stored: BTreeMap<Key, Stored>,
    /// Under which names that came, usable or not.
    came: BTreeSet<String>,
    /// A set was served: what came and is not claimed goes.
    settled: bool,
    /// Whose paths are being bound anew off the loop.
    rebinding: BTreeSet<Key>,
    next_id: u32,
}

/// The sockets as another program of this process goes on with them.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedListeners {
    open: Vec<SavedListener>,
    next_id: u32,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedListener {
    key: Key,
    id: u32,
    socket: Fd,
    file: Option<SavedFile>,
    /// Version 0.1.0 has none.
    #[serde(default)]
    came_with: Vec<Option<u64>>,
}

impl SavedListeners {
    /// Connections inherit `options`.
    pub fn resume(self, options: TcpOptions) -> std::io::Result<Listeners> {
        let mut sockets = Vec::new();
        for SavedListener { key, id, socket, file, came_with } in self.open {
            let socket = socket.copy()?;
            let bound = socket::local_addr(socket.as_fd())?;
            sockets.push((key, id, socket, bound, file, came_with.into()));
        }
        let mut open = BTreeMap::new();
        // A file goes with its owner, so nothing may fail from here on.
        for (key, id, socket, bound, file, came_with) in sockets {
            let address = match (&key, bound) {
                (Key::Unix(path), _) => Address::Unix(path.clone()),
                (Key::Fixed(address), None) | (Key::Chosen { address, .. }, None) => Address::Ip(*address),
                (Key::Systemd { name, .. }, None) => Address::Unix(name.into()),
                (_, Some(address)) => address,
            };
            lock_filter(&socket, &address);
            let file = file.map(SocketFile::from);
            open.insert(key, Listener { options, came_with, ..Listener::new(id, (socket, address, file), false) });
        }
        Ok(Listeners { open, next_id: self.next_id, settled: true, ..Listeners::default() })
    }
}

impl Listeners {
    /// Of those that a set has claimed: the others are closed by now.
    pub fn save(&self, luggage: &mut Luggage) -> std::io::Result<SavedListeners> {
        let save = |(key, listener): (&Key, &Listener)| {
            let (socket, file) = (luggage.put(&listener.socket)?, listener.file.as_ref().map(SocketFile::save));
            Ok(SavedListener {
                key: key.clone(),
                id: listener.id,
                socket,
                file,
                came_with: listener.came_with.values(),
            })
        };
        let open = self.open.iter().map(save).collect::<std::io::Result<_>>()?;
        Ok(SavedListeners { open, next_id: self.next_id })
    }

    /// Takes over what systemd passed to this process, if anything. Once, before the process has a second thread.
    pub fn adopt_passed() -> Listeners {
        let take = |name| worker::take_env(name).unwrap_or_default();
        take("LISTEN_PIDFDID");
        let (pid, count, names) = (take("LISTEN_PID"), take("LISTEN_FDS"), take("LISTEN_FDNAMES"));
        let mut listeners = Listeners::default();
        // Meant for another process, which has passed its environment on to us.
        if pid.parse() != Ok(std::process::id()) {
            return listeners;
        }
        let mut names = names.split(':');
        let Ok(count) = count.parse::<u16>() else {
            tracing::warn!("LISTEN_FDS is `{count}`, which is no number: nothing is taken over from systemd");
            return listeners;
        };
        for number in (FIRST_PASSED..).take(count.into()) {
            // The name that systemd gives to what has none.
            let name = names.next().filter(|name| !name.is_empty()).unwrap_or("unknown");
            let passed = passed(number).map_err(|error| error.to_string());
            let taken = match Label::parse(name) {
                Some(label) => {
                    listeners.came.insert(name.into());
                    passed.and_then(|(socket, address)| listeners.offer_stored(label, socket, address))
                }
                None => passed.map(|(socket, address)| listeners.offer(name, socket, address)),
            };
            if let Err(error) = taken {
                tracing::warn!("descriptor {number} (`{name}`) from systemd cannot be used: {error}");
            }
        }
        listeners
    }

    fn offer_stored(&mut self, label: Label, socket: OwnedFd, address: Address) -> Result<(), String> {
        let (key, stored) = label.accept(socket, address)?;
        self.stored.entry(key).or_insert(stored);
        Ok(())
    }

    /// Under which names an earlier master has left sockets with systemd.
    pub fn names_that_came(&self) -> BTreeSet<String> {
        self.came.clone()
    }

    /// Under which names systemd may keep sockets that are open here, or may be claimed yet.
    pub fn names(&self) -> BTreeSet<String> {
        let open = self.open.iter().map(|(key, listener)| Label::of(key, listener.file.as_ref()));
        let stored = self.stored.iter().map(|(key, stored)| Label { key: key.clone(), file: stored.file });
        open.chain(stored).filter_map(|label| label.name()).collect()
    }

    /// The sockets of `claims` that systemd can keep for the next master, by name.
    pub fn keepsakes(&self, claims: &[Claim]) -> Vec<(String, BorrowedFd<'_>)> {
        let named = |claim: &Claim| {
            let listener = self.open.get(&claim.key)?;
            Some((Label::of(&claim.key, listener.file.as_ref()).name()?, listener.socket.as_fd()))
        };
        claims.iter().filter_map(named).collect()
    }

    fn offer(&mut self, name: &str, socket: OwnedFd, address: Address) {
        let nth = self.passed.keys().filter(|key| key.is_systemd(name)).count();
        self.passed.insert(Key::Systemd { name: name.into(), nth }, (socket, address));
    }

    /// The Unix sockets that are open and can be reached by their files, as far as the kernel tells without asking a file system.
    pub fn kept(&self) -> Kept {
        let open = self.open.iter().filter_map(|(key, listener)| match key {
            Key::Unix(path) if !socket::is_shut(listener.socket.as_fd()) => {
                Some((path.clone(), listener.file.as_ref().map(SocketFile::identity)))
            }
            _ => None,
        });
        let stored = self.stored.keys().filter_map(|key| match key {
            Key::Unix(path) => Some(path.clone()),
            _ => None,
        });
        let rebinding = self.rebinding.iter().filter_map(|key| match key {
            Key::Unix(path) => Some(path.clone()),
            _ => None,
        });
        Kept { open: open.collect(), stored: stored.collect(), rebinding: rebinding.collect() }
    }

    /// Opens what `config` names and is not open yet, with what was prepared for it: all of it, or nothing.
    pub fn open(&mut self, config: &Config, mut bindings: Bindings) -> Result<Vec<Claim>, ListenError> {
        let mut claims = Vec::new();
        let mut opened = Vec::new();
        let options = config.limits.tcp_options();
        for server in &config.server {
            for (nth, requested) in server.listen.iter().enumerate() {
                match self.open_one(server, nth, requested, &options, &mut bindings, &mut opened) {
                    Ok(one) => claims.extend(one),
                    Err(error) => {
                        opened.into_iter().for_each(|key| self.take_back(key));
                        return Err(error);
                    }
                }
            }
        }
        // Those that came have never had them.
        self.set_options(&opened, &options);
        Ok(claims)
    }

    /// Sets what accepted connections inherit. A failure is logged: connections are served without.
    fn set_options<'a>(&mut self, keys: impl IntoIterator<Item = &'a Key>, options: &TcpOptions) {
        for key in keys {
            let Some(listener) = self.open.get_mut(key) else { continue };
            listener.options = *options;
            if let Err(error) = options.apply(listener.socket.as_fd()) {
                tracing::warn!(address = %listener.address, "failed to set the TCP options of a listening socket: {error}");
            }
        }
    }

    /// Whether the sockets of all `claims` are open.
    pub fn has(&self, claims: &[Claim]) -> bool {
        claims.iter().all(|claim| self.open.contains_key(&claim.key))
    }

    fn open_one(
        &mut self,
        server: &Server,
        nth: usize,
        requested: &str,
        options: &TcpOptions,
        bindings: &mut Bindings,
        opened: &mut Vec<Key>,
    ) -> Result<Vec<Claim>, ListenError> {
        let refused = |why: String| Failure::new(Stage::Listen, why);
        let scheme = if server.is_tls() { Scheme::Https } else { Scheme::Http };
        let claim = |key, access| Claim { key, server: server.name.clone(), access, scheme };
        let (key, bound, access) = match requested.parse().map_err(refused)? {
            Listen::Systemd(name) => {
                let keys = self.claim_passed(&name, opened)?;
                return Ok(keys.into_iter().map(|key| claim(key, None)).collect());
            }
            Listen::Unix(path) => {
                let access = bindings.access(&server.name).map_or_else(|| Access::of(server), Ok).map_err(refused)?;
                let key = Key::Unix(path.clone());
                // One that nobody reaches any more was bound anew: it takes the old one's place, and children that still have
                // that lose nothing.
                let kept = self.open.contains_key(&key) && !bindings.has_bound(&path);
                let bound = match self.claim_stored(&key, kept) {
                    Claimed::Open => None,
                    Claimed::Came(bound) => Some((bound, true)),
                    Claimed::Absent => Some((bindings.take(&path, access)?, false)),
                };
                (key, bound, Some(access))
            }
            Listen::Address(address) => {
                let key = match address.port() {
                    0 => Key::Chosen { server: server.name.clone(), address, nth },
                    _ => Key::Fixed(address),
                };
                let bound = match self.claim_stored(&key, self.open.contains_key(&key)) {
                    Claimed::Open => None,
                    Claimed::Came(bound) => Some((bound, true)),
                    Claimed::Absent => {
                        let bound = bind(address, options).map_err(|error| self.explain_own(address, error))?;
                        Some((bound, false))
                    }
                };
                (key, bound, None)
            }
        };
        if let Some((bound, came)) = bound {
            self.insert(key.clone(), bound, came);
            opened.push(key.clone());
        }
        self.check_reachable(&key)?;
        Ok(vec![claim(key, access)])
    }

    /// Fails if clients do not reach a TCP socket: a child could not use it either.
    fn check_reachable(&self, key: &Key) -> Result<(), Failure> {
        let Some(Listener { address: Address::Ip(address), broken: Some(error), .. }) = self.open.get(key) else {
            return Ok(());
        };
        Err(Failure::new(Stage::Listen, format!("listen again on {address}: {error}"))
            .hint("it is tried again twice a second; `ss -ltnp` shows who has the address"))
    }

    /// Returns `error` with the remedy if it is a socket of this server that is in the way: no other program will let go of it.
    fn explain_own(&self, address: SocketAddr, error: ListenError) -> ListenError {
        let own = self.open.values().find_map(|listener| match listener.address {
            Address::Ip(open) if collide(open, address) => Some(open),
            _ => None,
        });
        match own {
            Some(own) => ListenError::from(error.failure.hint(format!(
                "this server itself listens on {own}, which takes the same connections: reload once without {own}, and then with \
                 {address}; or shut the server down and start it again"
            ))),
            None => error,
        }
    }

    /// What an earlier master has left of it, unless it is open.
    fn claim_stored(&mut self, key: &Key, is_open: bool) -> Claimed {
        if is_open {
            return Claimed::Open;
        }
        let Some(Stored { socket, address, file }) = self.stored.remove(key) else { return Claimed::Absent };
        let path = match key {
            Key::Unix(path) => Some(path),
            _ => None,
        };
        Claimed::Came((socket, address, path.zip(file).map(|(path, file)| SocketFile::left_behind(path, file))))
    }

    /// All sockets of that name.
    fn claim_passed(&mut self, name: &str, opened: &mut Vec<Key>) -> Result<Vec<Key>, Failure> {
        let waiting: Vec<Key> = self.passed.keys().filter(|key| key.is_systemd(name)).cloned().collect();
        for key in waiting {
            if let Some((socket, address)) = self.passed.remove(&key) {
                self.insert(key.clone(), (socket, address, None), true);
                opened.push(key);
            }
        }
        let keys: Vec<Key> = self.open.keys().filter(|key| key.is_systemd(name)).cloned().collect();
        keys.iter().try_for_each(|key| self.check_reachable(key))?;
        if !keys.is_empty() {
            return Ok(keys);
        }
        let names: BTreeSet<&str> = (self.open.keys().chain(self.passed.keys()))
            .filter_map(|key| match key {
                Key::Systemd { name, .. } => Some(name.as_str()),
                _ => None,
            })
            .collect();
        let hint = match names.into_iter().collect::<Vec<_>>().join(", ") {
            none if none.is_empty() => "it has passed none; sockets come from a .socket unit, at the start".into(),
            names => format!("it has passed {names}; FileDescriptorName= in the .socket unit names a socket"),
        };
        Err(Failure::new(Stage::Listen, format!("listen on systemd:{name}: systemd has passed no such socket"))
            .hint(hint))
    }

    fn insert(&mut self, key: Key, (socket, address, file): Bound, came: bool) {
        lock_filter(&socket, &address);
        let came_with = match (&key, &address) {
            (Key::Systemd { .. }, Address::Ip(ip)) => options_of(&socket, *ip),
            _ => SocketOptions::default(),
        };
        let listener = Listener::new(self.next_id, (socket, address, file), came);
        self.open.insert(key, Listener { came_with, ..listener });
        self.next_id += 1;
    }

    /// What was opened for nothing: closed, or offered again.
    fn take_back(&mut self, key: Key) {
        let Some(Listener { socket, address, file, .. }) = self.open.remove(&key).filter(|listener| listener.came)
        else {
            return;
        };
        match key {
            Key::Systemd { .. } => drop(self.passed.insert(key, (socket, address))),
            _ => drop(self.stored.insert(key, Stored { socket, address, file: file.map(SocketFile::leave) })),
        }
    }

    /// Closes what systemd passed and the first set that is served does not name: on a socket that nobody accepts from,
    /// clients would wait for ever. Answers names and addresses.
    pub fn close_unclaimed(&mut self) -> Vec<(String, Address)> {
        self.settled = true;
        for (key, stored) in std::mem::take(&mut self.stored) {
            tracing::info!(address = %stored.address, "address closed: it was another master's, and no `listen` names it");
            if let (Key::Unix(path), Some(file)) = (key, stored.file) {
                // Its file goes with it.
                drop(SocketFile::left_behind(&path, file));
            }
        }
        let passed = std::mem::take(&mut self.passed).into_iter();
        let named = passed.filter_map(|(key, (_, address))| match key {
            Key::Systemd { name, .. } => Some((name, address)),
            _ => None,
        });
        named.collect()
    }

    /// Sets the TCP options of a set that is served now, and returns what opens its sockets to those who may connect: both may
    /// have been others before.
    pub fn grants(&mut self, claims: &[Claim], options: &TcpOptions) -> Vec<Grant> {
        self.set_options(claims.iter().map(|claim| &claim.key), options);
        let mut grants = Vec::new();
        for Claim { key, access, .. } in claims {
            let file = self.open.get_mut(key).and_then(|listener| listener.file.as_mut());
            grants.extend(file.zip(*access).and_then(|(file, access)| file.open_to(access)));
        }
        grants
    }

    /// Closes all but `keys`; answers the addresses that are gone.
    pub fn retain(&mut self, keys: &BTreeSet<Key>) -> Vec<Address> {
        let gone: Vec<(Key, Address)> = (self.open.iter().filter(|(key, _)| !keys.contains(key)))
            .map(|(key, listener)| (key.clone(), listener.address.clone()))
            .collect();
        if !self.settled {
            // The first set was refused: the next one may name it as well.
            gone.iter().for_each(|(key, _)| self.take_back(key.clone()));
        }
        self.open.retain(|key, _| keys.contains(key));
        gone.into_iter().map(|(_, address)| address).collect()
    }

    /// What a child is told of `claims`, and copies of their sockets.
    pub fn lend(&self, claims: &[Claim]) -> std::io::Result<Vec<(ListenerInfo, OwnedFd)>> {
        let mut lent = Vec::new();
        for Claim { key, server, .. } in claims {
            if let Some(listener) = self.open.get(key) {
                let info =
                    ListenerInfo { id: listener.id, server: server.clone(), address: listener.address.to_string() };
                lent.push((info, listener.socket.try_clone()?));
            }
        }
        Ok(lent)
    }

    /// Those that take clear connections: no other can be handed over.
    pub fn clear_ids(&self, claims: &[Claim]) -> Vec<u32> {
        let clear = claims.iter().filter(|claim| claim.scheme == Scheme::Http);
        clear.filter_map(|claim| self.open.get(&claim.key)).map(|listener| listener.id).collect()
    }

    /// Those that `claims` names.
    pub fn status(&self, claims: &[Claim]) -> Vec<ListenerStatus> {
        let status = |claim: &Claim| {
            let address = self.open.get(&claim.key)?.address.to_string();
            Some(ListenerStatus { scheme: claim.scheme, server: claim.server.clone(), address })
        };
        claims.iter().filter_map(status).collect()
    }
}

/// Keeps every process that has the socket from attaching a BPF filter, with which it could drop what clients send. Before the socket
/// is lent the first time, or as soon as it came from elsewhere; a filter that was attached before that goes.
fn lock_filter(socket: &OwnedFd, address: &Address) {
    if let Err(error) = socket::lock_filter(socket.as_fd()) {
        tracing::error!(%address, "failed to keep filters off the listening socket: {error}; only a stop and a start make it anew");
    }
}

/// The options of a socket of systemd that are no defaults.
fn options_of(socket: &OwnedFd, address: SocketAddr) -> SocketOptions {
    SocketOptions::of(socket.as_fd()).own(Domain::for_address(address)).unwrap_or_else(|error| {
        tracing::warn!(%address, "failed to read the options of a listening socket: {error}");
        SocketOptions::default()
    })
}

/// A listening socket at that number, which cannot block.
fn passed(number: i32) -> std::io::Result<(OwnedFd, Address)> {
    let socket = worker::inherited(number)?.ok_or_else(|| std::io::Error::other("it is not open"))?;
    socket::adopt_listener(&socket)?;
    let no_stream = || std::io::Error::other("it is neither a TCP nor a Unix stream socket");
    if SockRef::from(&socket).r#type()? != Type::STREAM {
        return Err(no_stream());
    }
    let address = socket::local_addr(socket.as_fd())?.ok_or_else(no_stream)?;
    Ok((socket, address))
}

type Bound = (OwnedFd, Address, Option<SocketFile>);

/// What there is of an address.
enum Claimed {
    Open,
    Came(Bound),
    Absent,
}

#[cfg(test)]
mod tests;
