//! What the kernel does by itself for a TCP connection: probes for a peer that has vanished, and how much it queues of what is
//! to be sent. An accepted socket inherits all of it from its listening socket, so that a connection pays no system call.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use socket2::{Domain, SockRef, TcpKeepalive};

/// Probes without an answer until a connection is given up.
const PROBES: u32 = 6;
/// TCP_KEEPIDLE and TCP_KEEPINTVL take seconds, this many at most (tcp(7): MAX_TCP_KEEPIDLE, MAX_TCP_KEEPINTVL).
pub const MAX_KEEPALIVE: Duration = Duration::from_secs(32_767);

/// Options of a listening socket that its connections inherit; of an accepted socket as well. The default is the kernel's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpOptions {
    /// Silence before the first probe. The probes take as long again: a dead peer is found within twice this time.
    pub keepalive: Option<Duration>,
    /// Bytes that may wait unsent (TCP_NOTSENT_LOWAT); `None` for no bound of its own.
    pub send_queue: Option<u32>,
    /// Bytes unsent and unacknowledged (SO_SNDBUF); `None` for the size that the kernel finds by itself.
    pub send_buffer: Option<usize>,
}

impl TcpOptions {
    /// Sets them on `socket`; a Unix socket has none of them.
    pub fn apply(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let socket = SockRef::from(&socket);
        if socket.domain()? == Domain::UNIX {
            return Ok(());
        }
        match self.keepalive {
            None => socket.set_keepalive(false)?,
            Some(time) => {
                let interval = (time / PROBES).max(Duration::from_secs(1));
                let probes = TcpKeepalive::new().with_time(time).with_interval(interval).with_retries(PROBES);
                socket.set_tcp_keepalive(&probes)?;
            }
        }
        socket.set_tcp_notsent_lowat(self.send_queue.unwrap_or(u32::MAX))?;
        // Once it was set the kernel does not size it any more, for the life of the socket.
        if let Some(size) = self.send_buffer {
            socket.set_send_buffer_size(size)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixListener;

    use super::*;

    const OPTIONS: TcpOptions =
        TcpOptions { keepalive: Some(Duration::from_secs(60)), send_queue: Some(1 << 17), send_buffer: Some(65_536) };

    #[test]
    fn accepted_sockets_inherit_the_options() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        OPTIONS.apply(listener.as_fd()).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let accepted = SockRef::from(&accepted);
        assert!(accepted.keepalive().unwrap());
        assert_eq!(accepted.tcp_keepalive_time().unwrap(), Duration::from_secs(60));
        assert_eq!(accepted.tcp_keepalive_interval().unwrap(), Duration::from_secs(10));
        assert_eq!(accepted.tcp_keepalive_retries().unwrap(), 6);
        assert_eq!(accepted.tcp_notsent_lowat().unwrap(), 1 << 17);
        // The kernel doubles it for its own needs (socket(7)).
        assert_eq!(accepted.send_buffer_size().unwrap(), 2 * 65_536);
        assert!(!SockRef::from(&client).keepalive().unwrap());
    }

    #[test]
    fn options_are_switched_off_again() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        OPTIONS.apply(listener.as_fd()).unwrap();
        TcpOptions { keepalive: None, send_queue: None, send_buffer: None }.apply(listener.as_fd()).unwrap();
        let socket = SockRef::from(&listener);
        assert!(!socket.keepalive().unwrap());
        assert_eq!(socket.tcp_notsent_lowat().unwrap(), u32::MAX);
    }

    #[test]
    fn unix_sockets_are_left_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        OPTIONS.apply(listener.as_fd()).unwrap();
        assert!(!SockRef::from(&listener).keepalive().unwrap());
    }
}
