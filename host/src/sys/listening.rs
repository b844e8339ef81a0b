//! What a listening TCP socket must be so that clients are served. Any process that has a copy may change it: shut it down, connect it
//! or bind it elsewhere, or set options that turn clients away. Here the state is read and compared; nothing is repaired.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// Options that any process may set, that decide whether and how clients are served, and that can be read. Not among them are those
/// of [`TcpOptions`](super::tcp::TcpOptions), which are set again at every commit.
const OPTIONS: [(libc::c_int, libc::c_int, &str); 15] = [
    (libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, "SO_BINDTODEVICE"),
    (libc::SOL_SOCKET, libc::SO_DONTROUTE, "SO_DONTROUTE"),
    (libc::SOL_SOCKET, libc::SO_LINGER, "SO_LINGER"),
    (libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE, "SO_MAX_PACING_RATE"),
    (libc::SOL_SOCKET, libc::SO_RCVLOWAT, "SO_RCVLOWAT"),
    (libc::IPPROTO_IP, libc::IP_TTL, "IP_TTL"),
    (libc::IPPROTO_IP, libc::IP_MINTTL, "IP_MINTTL"),
    (libc::IPPROTO_IP, libc::IP_UNICAST_IF, "IP_UNICAST_IF"),
    (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, "IPV6_UNICAST_HOPS"),
    (libc::IPPROTO_IPV6, libc::IPV6_MINHOPCOUNT, "IPV6_MINHOPCOUNT"),
    (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_IF, "IPV6_UNICAST_IF"),
    (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, "IPV6_V6ONLY"),
    (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, "TCP_DEFER_ACCEPT"),
    (libc::IPPROTO_TCP, libc::TCP_MAXSEG, "TCP_MAXSEG"),
    (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, "TCP_USER_TIMEOUT"),
];

/// The values of [`OPTIONS`]; `None` where the socket's family has no such option.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SocketOptions([Option<u64>; OPTIONS.len()]);

impl From<Vec<Option<u64>>> for SocketOptions {
    fn from(values: Vec<Option<u64>>) -> SocketOptions {
        SocketOptions(std::array::from_fn(|nth| values.get(nth).copied().flatten()))
    }
}

impl SocketOptions {
    pub fn of(socket: BorrowedFd) -> SocketOptions {
        SocketOptions(OPTIONS.map(|(level, option, _)| value(socket, level, option)))
    }

    /// Of a new TCP socket of that family, for that family alone.
    pub fn of_new(domain: Domain) -> io::Result<SocketOptions> {
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        if domain == Domain::IPV6 {
            socket.set_only_v6(true)?;
        }
        Ok(SocketOptions::of(socket.as_fd()))
    }

    /// What of them differs from a new socket of that family: `None` for all else.
    pub fn own(&self, domain: Domain) -> io::Result<SocketOptions> {
        let new = SocketOptions::of_new(domain)?;
        Ok(SocketOptions(std::array::from_fn(|nth| self.0[nth].filter(|value| new.0[nth] != Some(*value)))))
    }

    /// Those of `self`, and those of `other` where `self` has none.
    pub fn or(&self, other: &SocketOptions) -> SocketOptions {
        SocketOptions(std::array::from_fn(|nth| self.0[nth].or(other.0[nth])))
    }

    /// Sets those that there are on `socket`.
    pub fn apply(&self, socket: BorrowedFd) -> io::Result<()> {
        self.0.iter().zip(OPTIONS).try_for_each(|(value, (level, option, _))| match value {
            Some(value) => set_value(socket, level, option, *value),
            None => Ok(()),
        })
    }

    pub fn values(&self) -> Vec<Option<u64>> {
        self.0.to_vec()
    }

    /// The first option whose value is another in `other`.
    fn difference(&self, other: &SocketOptions) -> Option<&'static str> {
        let mut pairs = self.0.iter().zip(&other.0).zip(OPTIONS);
        pairs.find_map(|((one, other), (_, _, name))| (one != other).then_some(name))
    }
}

/// `None` if there is no such option. No option here is longer than eight bytes.
fn value(socket: BorrowedFd, level: libc::c_int, option: libc::c_int) -> Option<u64> {
    let mut value = [0_u8; 8];
    let mut len = value.len() as libc::socklen_t;
    // SO_MAX_PACING_RATE is as long as there is room.
    // SAFETY: the kernel writes at most `len` bytes, which are live, and how many they were.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, value.as_mut_ptr().cast(), &raw mut len) };
    (result == 0).then(|| u64::from_ne_bytes(value))
}

fn set_value(socket: BorrowedFd, level: libc::c_int, option: libc::c_int, value: u64) -> io::Result<()> {
    let is_long = matches!((level, option), (libc::SOL_SOCKET, libc::SO_LINGER | libc::SO_MAX_PACING_RATE));
    let (value, len) = (value.to_ne_bytes(), if is_long { 8 } else { 4 });
    // SAFETY: the value is live, and at least `len` bytes long.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value.as_ptr().cast(), len) };
    Errno::result(result)?;
    Ok(())
}

/// What has become of a listening socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    Listening,
    /// It does not listen: perhaps the same socket can do so again.
    Shut,
    /// Only another socket can serve the address.
    Lost(Loss),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loss {
    Address(Option<SocketAddr>),
    Option(&'static str),
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Loss::Address(Some(address)) => write!(f, "it was bound to {address}"),
            Loss::Address(None) => f.write_str("it has no address any more"),
            Loss::Option(name) => write!(f, "its option {name} was changed"),
        }
    }
}

/// The condition of a socket that must listen on `address` with `options`.
pub fn condition(socket: BorrowedFd, address: SocketAddr, options: &SocketOptions) -> io::Result<Condition> {
    let bound = SockRef::from(&socket).local_addr()?.as_socket();
    let is_same = |bound: SocketAddr| (bound.ip(), bound.port()) == (address.ip(), address.port());
    // A port that the kernel chose may be given up at a shutdown.
    let is_free = |bound: SocketAddr| bound.ip() == address.ip() && bound.port() == 0;
    if !bound.is_some_and(|bound| is_same(bound) || is_free(bound)) {
        return Ok(Condition::Lost(Loss::Address(bound)));
    }
    // Before the options: some have other values on a socket that does not listen.
    if !getsockopt(&socket, sockopt::AcceptConn)? {
        return Ok(Condition::Shut);
    }
    Ok(match SocketOptions::of(socket).difference(options) {
        Some(name) => Condition::Lost(Loss::Option(name)),
        None => Condition::Listening,
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::OwnedFd;

    use super::*;

    fn listener(address: &str) -> (OwnedFd, SocketAddr) {
        let listener = TcpListener::bind(address).unwrap();
        let bound = listener.local_addr().unwrap();
        (listener.into(), bound)
    }

    #[test]
    fn new_listener_is_listening_and_one_shut_down_is_shut() {
        for (address, domain) in [("127.0.0.1:0", Domain::IPV4), ("[::1]:0", Domain::IPV6)] {
            let (socket, bound) = listener(address);
            let expected = SocketOptions::of(socket.as_fd()).own(domain).unwrap();
            let expected = expected.or(&SocketOptions::of_new(domain).unwrap());
            assert_eq!(condition(socket.as_fd(), bound, &expected).unwrap(), Condition::Listening);
            SockRef::from(&socket).shutdown(std::net::Shutdown::Both).unwrap();
            assert_eq!(condition(socket.as_fd(), bound, &expected).unwrap(), Condition::Shut);
            let other = SocketAddr::new("127.0.0.2".parse().unwrap(), bound.port());
            assert!(matches!(condition(socket.as_fd(), other, &expected).unwrap(), Condition::Lost(Loss::Address(_))));
        }
    }

    #[test]
    fn each_changed_option_is_found_by_its_name() {
        let (socket, bound) = listener("127.0.0.1:0");
        let expected = SocketOptions::of_new(Domain::IPV4).unwrap();
        for (name, level, option, value) in [
            ("SO_DONTROUTE", libc::SOL_SOCKET, libc::SO_DONTROUTE, 1),
            ("SO_LINGER", libc::SOL_SOCKET, libc::SO_LINGER, 1),
            ("SO_MAX_PACING_RATE", libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE, 1),
            ("SO_RCVLOWAT", libc::SOL_SOCKET, libc::SO_RCVLOWAT, 1_000_000),
            ("IP_TTL", libc::IPPROTO_IP, libc::IP_TTL, 1),
            ("IP_MINTTL", libc::IPPROTO_IP, libc::IP_MINTTL, 255),
            ("TCP_DEFER_ACCEPT", libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 100),
            ("TCP_MAXSEG", libc::IPPROTO_TCP, libc::TCP_MAXSEG, 88),
            ("TCP_USER_TIMEOUT", libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 1),
        ] {
            let before = value_of(&socket, level, option);
            set_value(socket.as_fd(), level, option, value).unwrap();
            let found = condition(socket.as_fd(), bound, &expected).unwrap();
            assert_eq!(found, Condition::Lost(Loss::Option(name)));
            // The value that a new socket shows for it is no value that was set.
            let before = if name == "TCP_MAXSEG" { 0 } else { before };
            set_value(socket.as_fd(), level, option, before).unwrap();
            assert_eq!(condition(socket.as_fd(), bound, &expected).unwrap(), Condition::Listening, "{name}");
        }
        SockRef::from(&socket).bind_device(Some(b"lo")).unwrap();
        let found = condition(socket.as_fd(), bound, &expected).unwrap();
        assert_eq!(found, Condition::Lost(Loss::Option("SO_BINDTODEVICE")));
    }

    fn value_of(socket: &OwnedFd, level: libc::c_int, option: libc::c_int) -> u64 {
        value(socket.as_fd(), level, option).unwrap()
    }

    #[test]
    fn options_that_a_socket_came_with_are_told_from_defaults_and_set_on_another() {
        let (socket, _) = listener("127.0.0.1:0");
        set_value(socket.as_fd(), libc::IPPROTO_IP, libc::IP_MINTTL, 7).unwrap();
        set_value(socket.as_fd(), libc::SOL_SOCKET, libc::SO_RCVLOWAT, 2).unwrap();
        let own = SocketOptions::of(socket.as_fd()).own(Domain::IPV4).unwrap();
        assert_eq!(own.0.iter().flatten().count(), 2, "{own:?}");
        assert_eq!(SocketOptions::from(own.values()), own);
        let (another, _) = listener("127.0.0.1:0");
        own.apply(another.as_fd()).unwrap();
        assert_eq!(SocketOptions::of(another.as_fd()), SocketOptions::of(socket.as_fd()));
    }
}
