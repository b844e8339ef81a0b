//! One epoll set that reports sockets whose peer is gone for good (reset, or closed on both sides) or has sent a FIN, whatever
//! lies unread before it. tokio cannot wait for that: for it, a socket with unread bytes or a FIN stays ready to be read.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How many reports are read at once.
const BATCH: usize = 64;

pub struct HangupSet {
    epoll: Arc<Epoll>,
    /// A second descriptor of the same set, for the runtime.
    ready: AsyncFd<OwnedFd>,
}

/// What a socket is reported for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// Its peer is gone for good. A FIN alone is not reported.
    Gone,
    /// Its peer has sent a FIN, or is gone.
    Closed,
}

/// How the peer of a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    Open,
    /// It has sent a FIN: nothing follows what it has sent, but it may read.
    HalfClosed,
    /// It has sent a reset, or has closed a Unix socket.
    Gone,
}

/// A socket in the set, until it is dropped. Dropped before the socket is closed or sent to another process: the set follows
/// the open file, not the descriptor (epoll(7)).
#[derive(Debug)]
pub struct Member {
    epoll: Arc<Epoll>,
    socket: RawFd,
}

impl HangupSet {
    /// Within a tokio runtime.
    pub fn new() -> io::Result<HangupSet> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let ready = super::readiness::register(epoll.0.try_clone()?, Interest::READABLE)?;
        Ok(HangupSet { epoll: Arc::new(epoll), ready })
    }

    /// Adds a socket, which [`HangupSet::wait`] reports once, by `key`: at once if it is so already.
    pub fn add(&self, socket: BorrowedFd<'_>, key: u64, until: Until) -> io::Result<Member> {
        // EPOLLHUP and EPOLLERR are always reported (epoll_ctl(2)).
        let asked = match until {
            Until::Gone => EpollFlags::empty(),
            Until::Closed => EpollFlags::EPOLLRDHUP,
        };
        self.epoll.add(socket, EpollEvent::new(EpollFlags::EPOLLONESHOT | asked, key))?;
        Ok(Member { epoll: self.epoll.clone(), socket: socket.as_raw_fd() })
    }

    /// Waits until a peer is gone, and returns the keys of all that are.
    pub async fn wait(&self) -> io::Result<Vec<u64>> {
        loop {
            let mut guard = self.ready.readable().await?;
            let mut events = [EpollEvent::empty(); BATCH];
            let count = self.epoll.wait(&mut events, EpollTimeout::ZERO)?;
            if count > 0 {
                return Ok(events[..count].iter().map(EpollEvent::data).collect());
            }
            guard.clear_ready();
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // SAFETY: a call with numbers only; the socket is open, as this is dropped before it. Fails if it was never added.
        unsafe {
            libc::epoll_ctl(self.epoll.0.as_raw_fd(), libc::EPOLL_CTL_DEL, self.socket, std::ptr::null_mut());
        }
    }
}

/// How the peer of a connection stands, whatever of it is unread.
pub fn peer(socket: BorrowedFd<'_>) -> Peer {
    let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLRDHUP, revents: 0 };
    // SAFETY: one entry, which lives for the call. nix has no name for POLLRDHUP.
    let count = unsafe { libc::poll(&raw mut poll, 1, 0) };
    // POLLHUP and POLLERR are reported unasked (poll(2)). A failure is lack of memory: the next look finds it.
    if count > 0 && poll.revents & (libc::POLLHUP | libc::POLLERR) != 0 {
        Peer::Gone
    } else if count > 0 && poll.revents & libc::POLLRDHUP != 0 {
        Peer::HalfClosed
    } else {
        Peer::Open
    }
}

/// Whether the peer of a connection is gone: it has sent a reset, or has closed a Unix socket.
pub fn is_hung_up(socket: BorrowedFd<'_>) -> bool {
    peer(socket) == Peer::Gone
}

#[cfg(test)]
mod tests {
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    fn reset(client: TcpStream) {
        super::super::socket::reset_at_close(client.as_raw_fd());
        drop(client);
    }

    #[tokio::test]
    async fn reset_is_reported_and_fin_is_not() {
        let set = HangupSet::new().unwrap();
        let ((quiet, quiet_server), (gone, gone_server)) = (pair(), pair());
        quiet.shutdown(Shutdown::Write).unwrap();
        let _quiet = set.add(quiet_server.as_fd(), 1, Until::Gone).unwrap();
        let _gone = set.add(gone_server.as_fd(), 2, Until::Gone).unwrap();
        gone.shutdown(Shutdown::Write).unwrap();
        assert!(!is_hung_up(gone_server.as_fd()));
        reset(gone);
        assert_eq!(set.wait().await.unwrap(), [2]);
        assert!(is_hung_up(gone_server.as_fd()) && !is_hung_up(quiet_server.as_fd()));
        // Reported once.
        assert!(tokio::time::timeout(Duration::from_millis(50), set.wait()).await.is_err());
    }

    #[tokio::test]
    async fn reset_before_the_socket_is_added_is_reported() {
        let set = HangupSet::new().unwrap();
        let (client, server) = pair();
        reset(client);
        while !is_hung_up(server.as_fd()) {
            tokio::task::yield_now().await;
        }
        let _member = set.add(server.as_fd(), 7, Until::Closed).unwrap();
        assert_eq!(set.wait().await.unwrap(), [7]);
    }

    #[tokio::test]
    async fn fin_is_reported_behind_unread_bytes() {
        use std::io::Write;

        let set = HangupSet::new().unwrap();
        let (mut client, server) = pair();
        client.write_all(b"unread").unwrap();
        assert_eq!(peer(server.as_fd()), Peer::Open);
        let _member = set.add(server.as_fd(), 3, Until::Closed).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(set.wait().await.unwrap(), [3]);
        assert_eq!(peer(server.as_fd()), Peer::HalfClosed);
    }

    #[tokio::test]
    async fn removed_socket_is_not_reported() {
        let set = HangupSet::new().unwrap();
        let ((first, first_server), (second, second_server)) = (pair(), pair());
        drop(set.add(first_server.as_fd(), 1, Until::Gone).unwrap());
        let _second = set.add(second_server.as_fd(), 2, Until::Gone).unwrap();
        reset(first);
        reset(second);
        assert_eq!(set.wait().await.unwrap(), [2]);
    }

    #[test]
    fn closed_unix_socket_is_hung_up_and_a_half_closed_one_is_not() {
        let (client, server) = UnixStream::pair().unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert!(!is_hung_up(server.as_fd()));
        drop(client);
        assert!(is_hung_up(server.as_fd()));
    }
}
