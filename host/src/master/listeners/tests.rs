//! Addresses come and go as a configuration says, and what is there already is kept.

use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};

use socket2::Socket;

use super::*;
use crate::config::{Limit, Mode};

const NO_OPTIONS: TcpOptions = TcpOptions { keepalive: None, send_queue: None, send_buffer: None };

impl Listeners {
    /// As the blocking pool does.
    fn rebind(&mut self, check: PathCheck) -> Vec<Relistened> {
        let rebound = self.rebinds(check).into_iter().filter_map(Rebind::run).collect();
        self.adopt(rebound)
    }

    /// As an operation does.
    fn open_all(&mut self, config: &Config) -> Result<Vec<Claim>, Failure> {
        let bindings = Bindings::prepare(config, &self.kept()).map_err(|error| error.failure)?;
        self.open(config, bindings).map_err(|error| error.failure)
    }
}

fn config(listen: &[&str]) -> Config {
    Config { server: vec![Server::new("a", listen)], ..Config::default() }
}

fn addresses(listeners: &Listeners, claims: &[Claim]) -> Vec<String> {
    listeners.status(claims).into_iter().map(|status| status.address).collect()
}

fn inodes(listeners: &Listeners) -> Vec<u64> {
    let inode = |listener: &Listener| nix::sys::stat::fstat(&listener.socket).unwrap().st_ino;
    listeners.open.values().map(inode).collect()
}

fn keys(claims: &[Claim]) -> BTreeSet<Key> {
    claims.iter().map(|claim| claim.key.clone()).collect()
}

/// As if systemd had passed them.
fn passed_by_systemd(names: &[&str]) -> Listeners {
    let mut listeners = Listeners::default();
    for name in names {
        let (socket, address, _) = bind("127.0.0.1:0".parse().unwrap(), &NO_OPTIONS).unwrap();
        listeners.offer(name, socket, address);
    }
    listeners
}

#[test]
fn an_address_stays_what_it_is_across_reloads() {
    let mut listeners = Listeners::default();
    let first = listeners.open_all(&config(&["127.0.0.1:0"])).unwrap();
    let before = (addresses(&listeners, &first), inodes(&listeners));
    let both = listeners.open_all(&config(&["127.0.0.1:0", "[::1]:0"])).unwrap();
    assert_eq!(addresses(&listeners, &both).len(), 2);
    assert_eq!(listeners.retain(&keys(&both[..1])).len(), 1);
    assert_eq!((addresses(&listeners, &first), inodes(&listeners)), before);
}

#[test]
fn ports_that_the_kernel_chooses_are_as_many_as_are_asked_for() {
    let mut listeners = Listeners::default();
    let mut config = config(&["127.0.0.1:0", "127.0.0.1:0"]);
    config.server.push(Server::new("b", &["127.0.0.1:0"]));
    let claims = listeners.open_all(&config).unwrap();
    let all: BTreeSet<String> = addresses(&listeners, &claims).into_iter().collect();
    assert_eq!((claims.len(), all.len()), (3, 3));
    assert_eq!(listeners.open_all(&config).unwrap(), claims);
}

/// An address with a port that is free. Other tests let the kernel choose ports of 127.0.0.1: nobody is given one of this.
fn free_address() -> String {
    TcpListener::bind("127.0.0.77:0").unwrap().local_addr().unwrap().to_string()
}

#[test]
fn an_address_may_go_to_another_server_and_stays_open() {
    let free = free_address();
    let mut listeners = Listeners::default();
    let before = listeners.open_all(&config(&[&free])).unwrap();
    let inode = inodes(&listeners);
    let after = Config { server: vec![Server::new("b", &[&free])], ..Config::default() };
    let after = listeners.open_all(&after).unwrap();
    assert!(listeners.retain(&keys(&after)).is_empty());
    assert_eq!(inodes(&listeners), inode);
    assert_eq!((listeners.status(&before)[0].server.as_str(), listeners.status(&after)[0].server.as_str()), ("a", "b"));
    assert_eq!(listeners.lend(&after).unwrap()[0].0.server, "b");
}

#[test]
fn one_address_that_is_taken_opens_none() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = other.local_addr().unwrap().to_string();
    let mut listeners = passed_by_systemd(&["web"]);
    let failure = listeners.open_all(&config(&["127.0.0.1:0", "systemd:web", &taken])).unwrap_err();
    assert_eq!(failure.stage, Stage::Listen);
    assert!(failure.error.contains(&taken), "{failure}");
    assert!(listeners.open.is_empty());
    // What systemd passed is not to be had again: it is still there.
    assert_eq!(listeners.open_all(&config(&["systemd:web"])).unwrap().len(), 1);
}

#[test]
fn all_sockets_of_a_name_are_claimed_and_those_of_no_server_closed() {
    let mut listeners = passed_by_systemd(&["web", "other", "web"]);
    let claims = listeners.open_all(&config(&["systemd:web"])).unwrap();
    assert_eq!(addresses(&listeners, &claims).len(), 2);
    let closed = listeners.close_unclaimed();
    assert_eq!((closed.len(), closed[0].0.as_str()), (1, "other"));
    assert!(TcpStream::connect(closed[0].1.to_string()).is_err());
    assert_eq!(listeners.open_all(&config(&["systemd:web"])).unwrap(), claims);
    assert_eq!(addresses(&listeners, &claims).iter().filter(|address| TcpStream::connect(address).is_ok()).count(), 2);
}

#[test]
fn a_name_that_systemd_did_not_pass_is_refused_with_those_that_it_did() {
    let refused = |mut listeners: Listeners| listeners.open_all(&config(&["systemd:wbe"])).unwrap_err();
    let failure = refused(passed_by_systemd(&["web", "admin"]));
    assert!(failure.error.contains("wbe") && failure.hint.unwrap().contains("admin, web"));
    assert!(refused(Listeners::default()).hint.unwrap().contains("passed none"));
}

fn path_in(dir: &tempfile::TempDir) -> (PathBuf, String) {
    let path = dir.path().join("socket");
    let listen = format!("unix:{}", path.display());
    (path, listen)
}

#[test]
fn a_unix_socket_stays_while_it_is_named_and_its_file_goes_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let (path, listen) = path_in(&dir);
    let mut listeners = Listeners::default();
    let mut config = config(&[&listen, "127.0.0.1:0"]);
    let claims = listeners.open_all(&config).unwrap();
    assert_eq!(addresses(&listeners, &claims)[0], listen);
    let before = (inodes(&listeners), path.metadata().unwrap().ino());
    config.server[0].socket_mode = Mode(0o600);
    let again = listeners.open_all(&config).unwrap();
    let mode = || path.metadata().unwrap().mode() & 0o777;
    assert_eq!(mode(), 0o666, "the set is not served yet");
    listeners.grants(&again, &NO_OPTIONS).iter().for_each(Grant::apply);
    assert_eq!(mode(), 0o600);
    assert_eq!((inodes(&listeners), path.metadata().unwrap().ino()), before);
    UnixStream::connect(&path).unwrap();
    assert_eq!(listeners.retain(&keys(&again[1..])).len(), 1);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_stale_socket_is_replaced_and_what_is_alive_or_no_socket_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let (path, listen) = path_in(&dir);
    let mut listeners = Listeners::default();
    let other = UnixListener::bind(&path).unwrap();
    let refused = listeners.open_all(&config(&["127.0.0.1:0", &listen])).unwrap_err();
    assert!(refused.error.contains("another process listens"), "{refused}");
    assert!(listeners.open.is_empty());
    UnixStream::connect(&path).unwrap();
    drop(other);
    let claims = listeners.open_all(&config(&[&listen])).unwrap();
    UnixStream::connect(&path).unwrap();
    assert_eq!(listeners.clear_ids(&claims).len(), 1);
    drop(listeners);
    std::fs::write(&path, "precious").unwrap();
    assert!(Listeners::default().open_all(&config(&[&listen])).unwrap_err().error.contains("no socket"));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn a_unix_socket_that_nobody_reaches_any_more_is_bound_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (path, listen) = path_in(&dir);
    let mut listeners = Listeners::default();
    let first = listeners.open_all(&config(&[&listen])).unwrap();
    let id = listeners.clear_ids(&first);
    std::fs::remove_file(&path).unwrap();
    let second = listeners.open_all(&config(&[&listen])).unwrap();
    UnixStream::connect(&path).unwrap();
    assert_ne!(listeners.clear_ids(&second), id);
    let (_, copy) = listeners.lend(&second).unwrap().remove(0);
    Socket::from(copy).shutdown(std::net::Shutdown::Both).unwrap();
    assert!(UnixStream::connect(&path).is_err());
    listeners.open_all(&config(&[&listen])).unwrap();
    UnixStream::connect(&path).unwrap();
}

#[test]
fn a_unix_socket_of_systemd_is_used_and_its_file_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (path, listen) = path_in(&dir);
    let socket = OwnedFd::from(UnixListener::bind(&path).unwrap());
    let address = socket::local_addr(socket.as_fd()).unwrap().unwrap();
    let mut listeners = Listeners::default();
    listeners.offer("web", socket, address);
    let claims = listeners.open_all(&config(&["systemd:web"])).unwrap();
    assert!(listeners.grants(&claims, &NO_OPTIONS).is_empty());
    assert_eq!(addresses(&listeners, &claims), [listen]);
    UnixStream::connect(&path).unwrap();
    drop(listeners);
    assert!(path.exists());
}

/// Has a copy, as a child does.
fn shut_down(listeners: &Listeners, claims: &[Claim]) {
    for (_, copy) in listeners.lend(claims).unwrap() {
        Socket::from(copy).shutdown(std::net::Shutdown::Both).unwrap();
    }
}

#[test]
fn a_tcp_listener_that_was_shut_down_listens_again_on_its_port() {
    let free = free_address();
    // One that was asked for by number, one that the kernel chose, and one of systemd's.
    let mut listeners = passed_by_systemd(&["web"]);
    let claims = listeners.open_all(&config(&[&free, "127.0.0.1:0", "systemd:web"])).unwrap();
    let before = (addresses(&listeners, &claims), inodes(&listeners));
    assert_eq!(listeners.relisten(), []);
    shut_down(&listeners, &claims);
    assert!(before.0.iter().all(|address| TcpStream::connect(address).is_err()));
    let again = listeners.relisten();
    assert_eq!((again.len(), again.iter().all(|one| one.how == How::Listen)), (3, true), "{again:?}");
    assert_eq!((addresses(&listeners, &claims), inodes(&listeners)), before);
    assert!(before.0.iter().all(|address| TcpStream::connect(address).is_ok()));
    assert_eq!(listeners.relisten(), []);
}

#[test]
fn a_short_queue_that_a_child_asked_for_is_made_long_again() {
    let mut listeners = Listeners::default();
    let claims = listeners.open_all(&config(&["127.0.0.1:0"])).unwrap();
    let address = addresses(&listeners, &claims).remove(0);
    let (_, copy) = listeners.lend(&claims).unwrap().remove(0);
    SockRef::from(&copy).listen(0).unwrap();
    assert_eq!(listeners.relisten(), []);
    // More than a queue of length 0 has room for.
    let waiting: Vec<_> = (0..20).map(|_| TcpStream::connect(&address).unwrap()).collect();
    let accepted = (0..20).filter(|_| socket::accept(copy.as_fd()).is_ok()).count();
    assert_eq!(accepted, waiting.len());
}

#[test]
fn a_unix_listener_that_was_shut_down_is_bound_anew_under_its_number() {
    let dir = tempfile::tempdir().unwrap();
    let (path, listen) = path_in(&dir);
    let mut listeners = Listeners::default();
    let mut config = config(&[&listen]);
    config.server[0].socket_mode = Mode(0o640);
    let claims = listeners.open_all(&config).unwrap();
    let id = listeners.clear_ids(&claims);
    shut_down(&listeners, &claims);
    assert!(UnixStream::connect(&path).is_err());
    let again = listeners.rebind(PathCheck::Shut);
    assert_eq!((again.len(), again[0].how, vec![again[0].id]), (1, How::Bind, id.clone()), "{again:?}");
    UnixStream::connect(&path).unwrap();
    assert_eq!((listeners.clear_ids(&claims), path.metadata().unwrap().mode() & 0o777), (id, 0o640));
    assert_eq!(listeners.rebind(PathCheck::Shut), []);
    assert_eq!(listeners.open_all(&config).unwrap(), claims, "the next reload finds it");
    drop(listeners);
    assert!(!path.exists(), "its file goes with it");
}

#[test]
fn a_unix_listener_of_systemd_is_bound_anew_and_its_file_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = path_in(&dir);
    let socket = OwnedFd::from(UnixListener::bind(&path).unwrap());
    let address = socket::local_addr(socket.as_fd()).unwrap().unwrap();
    let mut listeners = Listeners::default();
    listeners.offer("web", socket, address);
    let claims = listeners.open_all(&config(&["systemd:web"])).unwrap();
    shut_down(&listeners, &claims);
    assert_eq!(listeners.rebind(PathCheck::Shut).len(), 1);
    UnixStream::connect(&path).unwrap();
    drop(listeners);
    assert!(path.exists());
}

/// Has `damage` done to each socket by a process that has a copy, and expects that the master serves the same addresses on new ones.
#[track_caller]
fn assert_bound_again(listen: &[&str], damage: impl Fn(&Socket)) {
    let mut listeners = Listeners::default();
    let claims = listeners.open_all(&config(listen)).unwrap();
    let (before, inodes_before) = (addresses(&listeners, &claims), inodes(&listeners));
    let copies: Vec<Socket> = listeners.lend(&claims).unwrap().into_iter().map(|(_, copy)| copy.into()).collect();
    copies.iter().for_each(damage);
    let again = listeners.relisten();
    assert!(again.len() == listen.len() && again.iter().all(|one| one.how == How::Bind), "{again:?}");
    assert_eq!(addresses(&listeners, &claims), before);
    assert!(inodes(&listeners).iter().all(|inode| !inodes_before.contains(inode)));
    assert!(before.iter().all(|address| TcpStream::connect(address).is_ok()), "{again:?}");
    assert_eq!(listeners.relisten(), []);
    assert!(keepalives(&listeners).iter().all(|on| *on));
    assert_eq!(listeners.open_all(&config(listen)).unwrap(), claims, "the next reload finds them");
}

#[test]
fn listener_that_was_connected_elsewhere_is_bound_again() {
    let sink = TcpListener::bind("127.0.0.1:0").unwrap();
    let sink = sink.local_addr().unwrap().into();
    assert_bound_again(&[&free_address()], |socket| {
        socket.shutdown(std::net::Shutdown::Both).unwrap();
        socket.set_reuse_address(false).unwrap();
        if let Err(error) = socket.connect(&sink) {
            assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS));
        }
    });
}

#[test]
fn listener_that_was_bound_to_another_port_is_bound_again() {
    assert_bound_again(&["127.0.0.1:0", "[::1]:0"], |socket| {
        socket.shutdown(std::net::Shutdown::Both).unwrap();
        let mut other = socket.local_addr().unwrap().as_socket().unwrap();
        other.set_port(0);
        socket.bind(&other.into()).unwrap();
        socket.listen(8).unwrap();
    });
}

#[test]
fn listener_that_was_bound_to_a_device_is_bound_again() {
    // One that takes nothing from this machine, if there is one; any will do to be found.
    let devices = std::fs::read_dir("/sys/class/net").unwrap();
    let mut devices = devices.map(|device| device.unwrap().file_name().into_string().unwrap());
    let device = devices.find(|name| name != "lo").unwrap_or_else(|| "lo".into());
    assert_bound_again(&[&free_address(), "127.0.0.1:0"], |socket| {
        socket.bind_device(Some(device.as_bytes())).unwrap();
    });
}

#[test]
fn listener_whose_options_turn_clients_away_is_bound_again() {
    assert_bound_again(&["127.0.0.1:0"], |socket| socket.set_ttl_v4(1).unwrap());
    assert_bound_again(&["[::1]:0"], |socket| {
        socket.set_linger(Some(std::time::Duration::ZERO)).unwrap();
    });
}

#[test]
fn address_that_another_program_took_refuses_the_reload_with_the_reason() {
    let mut listeners = Listeners::default();
    let claims = listeners.open_all(&config(&["127.0.0.1:0"])).unwrap();
    let address = addresses(&listeners, &claims).remove(0);
    shut_down(&listeners, &claims);
    let other = TcpListener::bind(&address).unwrap();
    assert_eq!(listeners.relisten(), []);
    let refused = listeners.open_all(&config(&["127.0.0.1:0"])).unwrap_err();
    assert!(refused.error.contains(&format!("listen again on {address}")), "{refused}");
    drop(other);
    assert_eq!(listeners.relisten().len(), 1);
    assert_eq!(listeners.open_all(&config(&["127.0.0.1:0"])).unwrap(), claims);
    TcpStream::connect(&address).unwrap();
}

#[test]
fn options_that_systemd_set_stay_and_go_to_the_next_socket() {
    let (socket, address, _) = bind("127.0.0.1:0".parse().unwrap(), &NO_OPTIONS).unwrap();
    SockRef::from(&socket).set_ttl_v4(77).unwrap();
    let mut listeners = Listeners::default();
    listeners.offer("web", socket, address);
    let claims = listeners.open_all(&config(&["systemd:web"])).unwrap();
    assert_eq!(listeners.relisten(), []);
    let (_, copy) = listeners.lend(&claims).unwrap().remove(0);
    SockRef::from(&copy).set_ttl_v4(1).unwrap();
    assert_eq!(listeners.relisten().len(), 1);
    let (_, copy) = listeners.lend(&claims).unwrap().remove(0);
    assert_eq!(SockRef::from(&copy).ttl_v4().unwrap(), 77);
    assert_eq!(listeners.relisten(), []);
}

#[test]
fn unix_socket_whose_file_was_removed_is_bound_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (path, listen) = path_in(&dir);
    let mut listeners = Listeners::default();
    let claims = listeners.open_all(&config(&[&listen])).unwrap();
    let id = listeners.clear_ids(&claims);
    assert_eq!(listeners.rebind(PathCheck::Files), []);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(listeners.rebind(PathCheck::Shut), [], "only the file system knows");
    let again = listeners.rebind(PathCheck::Files);
    assert_eq!((again.len(), again[0].id), (1, id[0]));
    UnixStream::connect(&path).unwrap();
    assert_eq!(listeners.rebind(PathCheck::Files), []);
    // Another program was first: its socket is never replaced.
    std::fs::remove_file(&path).unwrap();
    let other = UnixListener::bind(&path).unwrap();
    assert_eq!(listeners.rebind(PathCheck::Files), []);
    UnixStream::connect(&path).unwrap();
    drop(other);
    assert_eq!(listeners.rebind(PathCheck::Files).len(), 1);
    // Its folder is gone, and comes back.
    std::fs::remove_dir_all(dir.path()).unwrap();
    assert_eq!(listeners.rebind(PathCheck::Files), []);
    std::fs::create_dir(dir.path()).unwrap();
    assert_eq!(listeners.rebind(PathCheck::Files).len(), 1);
    UnixStream::connect(&path).unwrap();
    drop(listeners);
    assert!(!path.exists());
}

#[test]
fn path_that_is_being_bound_anew_is_left_to_that() {
    let dir = tempfile::tempdir().unwrap();
    let (path, listen) = path_in(&dir);
    let mut listeners = Listeners::default();
    let claims = listeners.open_all(&config(&[&listen])).unwrap();
    shut_down(&listeners, &claims);
    let rebinds = listeners.rebinds(PathCheck::Shut);
    assert_eq!(listeners.open_all(&config(&[&listen])).unwrap(), claims);
    assert!(UnixStream::connect(&path).is_err(), "the operation has bound it");
    let rebound = rebinds.into_iter().filter_map(Rebind::run).collect();
    assert_eq!(listeners.adopt(rebound).len(), 1);
    UnixStream::connect(&path).unwrap();
    // One that was closed meanwhile takes its file along.
    shut_down(&listeners, &claims);
    let rebinds = listeners.rebinds(PathCheck::Shut);
    listeners.retain(&BTreeSet::new());
    let rebound = rebinds.into_iter().filter_map(Rebind::run).collect();
    assert_eq!(listeners.adopt(rebound), []);
    assert!(!path.exists());
}

/// Whether each socket makes the kernel probe for vanished peers.
fn keepalives(listeners: &Listeners) -> Vec<bool> {
    listeners.open.values().map(|listener| SockRef::from(&listener.socket).keepalive().unwrap()).collect()
}

#[test]
fn bound_and_passed_sockets_have_keepalive_from_the_start() {
    let mut listeners = passed_by_systemd(&["web"]);
    listeners.open_all(&config(&["systemd:web", "127.0.0.1:0"])).unwrap();
    assert_eq!(keepalives(&listeners), [true, true]);
    let mut listeners = passed_by_systemd(&["web"]);
    let mut off = config(&["systemd:web", "127.0.0.1:0"]);
    off.limits.tcp_keepalive = Limit::Never;
    listeners.open_all(&off).unwrap();
    assert_eq!(keepalives(&listeners), [false, false]);
}

#[test]
fn tcp_options_change_at_the_commit_and_not_before() {
    let mut listeners = Listeners::default();
    let mut config = config(&["127.0.0.1:0"]);
    listeners.open_all(&config).unwrap();
    config.limits.tcp_keepalive = Limit::Never;
    let claims = listeners.open_all(&config).unwrap();
    assert_eq!(keepalives(&listeners), [true], "the reload may be refused");
    assert!(listeners.grants(&claims, &config.limits.tcp_options()).is_empty());
    assert_eq!(keepalives(&listeners), [false]);
}
