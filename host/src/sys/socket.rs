//! Stream sockets as a worker uses them: accepting from a listener that other processes share, and the few questions that
//! std does not ask. Nothing here shuts a listener down or clears its O_NONBLOCK: both act on the open file that all share.

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper::rt::{ReadBuf as HyperBuf, ReadBufCursor};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{MsgFlags, getsockopt, sockopt};
use socket2::Domain;
use tokio::io::{AsyncRead, ReadBuf};

/// The socket of a connection, in no runtime.
#[derive(Debug)]
pub enum Bare {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Bare {
    /// Nothing for a Unix socket, or if the peer is gone already.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        match self {
            Bare::Tcp(stream) => stream.peer_addr().ok(),
            Bare::Unix(_) => None,
        }
    }

    /// As [`Bare::peer_addr`].
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Bare::Tcp(stream) => stream.local_addr().ok(),
            Bare::Unix(_) => None,
        }
    }
}

impl AsFd for Bare {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Bare::Tcp(stream) => stream.as_fd(),
            Bare::Unix(stream) => stream.as_fd(),
        }
    }
}

/// Whatever family it is of; an error for what is no socket of these.
impl TryFrom<OwnedFd> for Bare {
    type Error = io::Error;

    fn try_from(fd: OwnedFd) -> io::Result<Bare> {
        match socket2::SockRef::from(&fd).domain()? {
            Domain::UNIX => Ok(Bare::Unix(fd.into())),
            Domain::IPV4 | Domain::IPV6 => Ok(Bare::Tcp(fd.into())),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "the socket is of another family")),
        }
    }
}

/// Checks that `socket` listens, and makes sure that accepting from it cannot block.
pub fn adopt_listener(socket: &OwnedFd) -> io::Result<()> {
    if !getsockopt(socket, sockopt::AcceptConn)? {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the socket does not listen"));
    }
    let flags = OFlag::from_bits_retain(fcntl(socket, FcntlArg::F_GETFL)?);
    if !flags.contains(OFlag::O_NONBLOCK) {
        fcntl(socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    }
    Ok(())
}

/// The next connection, close-on-exec and non-blocking, and the peer's address unless it has none. `WouldBlock` when the
/// queue is empty.
pub fn accept(listener: BorrowedFd) -> io::Result<(Bare, Option<SocketAddr>)> {
    let mut connection = None;
    // SAFETY: `try_init` hands out room for any address and its length; accept4 fills both in, or fails.
    let (_, address) = unsafe {
        socket2::SockAddr::try_init(|storage, len| {
            let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
            let fd = libc::accept4(listener.as_raw_fd(), storage.cast(), len, flags);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            connection = Some(OwnedFd::from_raw_fd(fd));
            Ok(())
        })
    }?;
    let connection = connection.ok_or(io::ErrorKind::Other)?;
    let connection = if address.is_unix() { Bare::Unix(connection.into()) } else { Bare::Tcp(connection.into()) };
    Ok((connection, address.as_socket()))
}

/// Where a listening socket is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Ip(SocketAddr),
    /// A path; an abstract name begins with `@`.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Ip(address) => address.fmt(f),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The address that `socket` is bound to, unless it has none.
pub fn local_addr(socket: BorrowedFd) -> io::Result<Option<Address>> {
    let address = socket2::SockRef::from(&socket).local_addr()?;
    let ip = address.as_socket().map(Address::Ip);
    let path = || address.as_pathname().map(|path| Address::Unix(path.into()));
    let name = || address.as_abstract_namespace().map(|name| Address::Unix(format!("@{}", name.escape_ascii()).into()));
    Ok(ip.or_else(path).or_else(name))
}

/// Keeps BPF filters off a socket, for good and in every process that has it: removes one that is attached, and locks that
/// (SO_LOCK_FILTER, socket(7)). Fails if a filter was locked before.
pub fn lock_filter(socket: BorrowedFd) -> io::Result<()> {
    let set = |option: libc::c_int, value: libc::c_int| {
        let len = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the option's value is one live int.
        let result =
            unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, (&raw const value).cast(), len) };
        Errno::result(result)
    };
    match set(libc::SO_DETACH_FILTER, 0) {
        // There is none.
        Ok(_) | Err(Errno::ENOENT) => {}
        Err(Errno::EPERM) if !has_filter(socket) => {}
        Err(Errno::EPERM) => return Err(io::Error::other("a filter is attached and locked")),
        Err(errno) => return Err(errno.into()),
    }
    set(SO_LOCK_FILTER, 1)?;
    Ok(())
}

/// asm-generic/socket.h.
const SO_LOCK_FILTER: libc::c_int = 44;

fn has_filter(socket: BorrowedFd) -> bool {
    // SO_GET_FILTER, which has the number of SO_ATTACH_FILTER: how many instructions there are, if there is room for none. An error
    // stands for a filter that cannot be shown (eBPF).
    let mut len: libc::socklen_t = 0;
    // SAFETY: nothing is written to an option's value of no length.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            std::ptr::null_mut(),
            &raw mut len,
        )
    };
    result < 0 || len > 0
}

/// Whether nobody can connect to a Unix socket that listened: somebody called shutdown(2) on it. There is no way back.
pub fn is_shut(listener: BorrowedFd) -> bool {
    let mut poll = [PollFd::new(listener, PollFlags::empty())];
    // POLLHUP is told unasked (poll(2)).
    nix::poll::poll(&mut poll, PollTimeout::ZERO).is_ok_and(|count| count > 0)
}

/// How many bytes the kernel holds for us, unread. Takes a number rather than a borrow: a wrong one gives a wrong count and
/// nothing worse.
pub fn unread(socket: RawFd) -> usize {
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int to the address given.
    let result = unsafe { libc::ioctl(socket, libc::FIONREAD, &raw mut count) };
    if result < 0 { 0 } else { usize::try_from(count).unwrap_or(0) }
}

/// Looks at what has come without taking it: 1 if there is something, 0 at the peer's end.
pub fn peek(socket: BorrowedFd) -> io::Result<usize> {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    Ok(nix::sys::socket::recv(socket.as_raw_fd(), &mut [0; 1], flags)?)
}

/// How many bytes we sent that the peer has not acknowledged (SIOCOUTQ, tcp(7)). As [`unread`], it takes a number.
pub fn unacknowledged(socket: RawFd) -> usize {
    let mut count: libc::c_int = 0;
    // SAFETY: TIOCOUTQ, which is SIOCOUTQ, writes one int to the address given.
    let result = unsafe { libc::ioctl(socket, libc::TIOCOUTQ, &raw mut count) };
    if result < 0 { 0 } else { usize::try_from(count).unwrap_or(0) }
}

/// Makes the close of `socket` a reset (SO_LINGER 0, socket(7)). As [`unread`], it takes a number.
pub fn reset_at_close(socket: RawFd) {
    set_linger(socket, libc::linger { l_onoff: 1, l_linger: 0 });
}

/// Takes [`reset_at_close`] back: the close sends what is left to send, and a FIN.
pub fn close_gracefully(socket: RawFd) {
    set_linger(socket, libc::linger { l_onoff: 0, l_linger: 0 });
}

fn set_linger(socket: RawFd, linger: libc::linger) {
    let len = size_of::<libc::linger>() as libc::socklen_t;
    // SAFETY: the option's value is a `linger` of that length. It fails only on a socket that is closed already.
    unsafe { libc::setsockopt(socket, libc::SOL_SOCKET, libc::SO_LINGER, (&raw const linger).cast(), len) };
}

/// What one read into a buffer of hyper's gave.
#[derive(Clone, Copy, Debug)]
pub struct Filled {
    /// Bytes read; 0 is the peer's end.
    pub len: usize,
    /// The address just after the last byte.
    pub end: usize,
}

/// The address where the next byte would go.
#[inline]
pub fn cursor_address(cursor: &mut ReadBufCursor<'_>) -> usize {
    // SAFETY: the slice is only asked for its address.
    unsafe { cursor.as_mut() }.as_ptr().addr()
}

/// Reads from `stream` straight into hyper's buffer, and shows what came to `see`.
#[inline]
pub fn poll_read(
    stream: Pin<&mut impl AsyncRead>,
    cx: &mut Context<'_>,
    cursor: &mut ReadBufCursor<'_>,
    see: impl FnOnce(&[u8]),
) -> Poll<io::Result<Filled>> {
    // SAFETY: tokio's buffer only ever initialises bytes.
    let room: &mut [MaybeUninit<u8>] = unsafe { cursor.as_mut() };
    let start = room.as_ptr().addr();
    let mut buffer = ReadBuf::uninit(room);
    ready!(stream.poll_read(cx, &mut buffer))?;
    let len = buffer.filled().len();
    see(buffer.filled());
    // SAFETY: `filled` says that the first `len` bytes of the room were written.
    unsafe { cursor.advance(len) };
    Poll::Ready(Ok(Filled { len, end: start + len }))
}

/// Whether a listener was shut down: it may come back, and until then accepting fails at once.
pub fn is_shut_down(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EINVAL)
}

/// Reads by `poll` at most `limit` bytes into hyper's buffer, and shows what came to `see`.
#[inline]
pub fn poll_read_seen(
    mut cursor: ReadBufCursor<'_>,
    limit: usize,
    poll: impl FnOnce(ReadBufCursor<'_>) -> Poll<io::Result<()>>,
    see: impl FnOnce(&[u8]),
) -> Poll<io::Result<()>> {
    // SAFETY: hyper's buffer only ever initialises bytes.
    let room = unsafe { cursor.as_mut() };
    let limit = limit.min(room.len());
    let mut buffer = HyperBuf::uninit(&mut room[..limit]);
    ready!(poll(buffer.unfilled()))?;
    let filled = buffer.filled();
    see(filled);
    let len = filled.len();
    // SAFETY: `filled` says that the first `len` bytes of the room were written.
    unsafe { cursor.advance(len) };
    Poll::Ready(Ok(()))
}

/// Whether accepting failed for want of something that comes back: descriptors or memory.
pub fn is_exhaustion(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_connection_comes_with_its_peer_and_cannot_block() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let listener = OwnedFd::from(listener);
        adopt_listener(&listener).unwrap();
        assert_eq!(local_addr(listener.as_fd()).unwrap(), Some(Address::Ip(addr)));
        assert_eq!(accept(listener.as_fd()).unwrap_err().kind(), io::ErrorKind::WouldBlock);

        let mut client = TcpStream::connect(addr).unwrap();
        let (connection, peer) = accept(listener.as_fd()).unwrap();
        assert_eq!(peer, Some(client.local_addr().unwrap()));
        let flags = OFlag::from_bits_retain(fcntl(connection.as_fd(), FcntlArg::F_GETFL).unwrap());
        assert!(flags.contains(OFlag::O_NONBLOCK));

        assert_eq!(unread(connection.as_fd().as_raw_fd()), 0);
        client.write_all(b"abc").unwrap();
        nix::poll::poll(
            &mut [nix::poll::PollFd::new(connection.as_fd(), nix::poll::PollFlags::POLLIN)],
            nix::poll::PollTimeout::NONE,
        )
        .unwrap();
        assert_eq!(unread(connection.as_fd().as_raw_fd()), 3);
    }

    fn attach_filter(socket: BorrowedFd) -> io::Result<()> {
        let mut drop_all = [libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0 }];
        let program = libc::sock_fprog { len: 1, filter: drop_all.as_mut_ptr() };
        let (value, len) = (&raw const program, size_of::<libc::sock_fprog>() as libc::socklen_t);
        // SAFETY: the program and its one instruction are live, and of that length.
        let result = unsafe {
            libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, value.cast(), len)
        };
        Errno::result(result)?;
        Ok(())
    }

    #[test]
    fn a_locked_listener_takes_no_filter_and_loses_the_one_it_had() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        attach_filter(listener.as_fd()).unwrap();
        assert!(has_filter(listener.as_fd()));
        lock_filter(listener.as_fd()).unwrap();
        assert!(!has_filter(listener.as_fd()));
        // Also by another descriptor, and as often as the socket changes hands.
        let copy = listener.try_clone().unwrap();
        lock_filter(copy.as_fd()).unwrap();
        assert_eq!(attach_filter(copy.as_fd()).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let unix = std::os::unix::net::UnixListener::bind(tempfile::tempdir().unwrap().path().join("s")).unwrap();
        lock_filter(unix.as_fd()).unwrap();
        assert!(attach_filter(unix.as_fd()).is_err());
    }

    #[test]
    fn a_filter_that_was_locked_before_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let fd = listener.as_fd();
        attach_filter(fd).unwrap();
        let on = 1 as libc::c_int;
        // SAFETY: the option's value is one live int.
        let result =
            unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, SO_LOCK_FILTER, (&raw const on).cast(), 4) };
        assert_eq!(result, 0);
        assert!(lock_filter(fd).unwrap_err().to_string().contains("locked"));
    }

    #[test]
    fn a_socket_that_does_not_listen_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(adopt_listener(&client.into()).is_err());
    }
}
