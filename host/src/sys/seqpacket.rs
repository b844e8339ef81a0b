//! Socket pairs that keep message boundaries, carry descriptors and report the peer's death: AF_UNIX, SOCK_SEQPACKET.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};

/// A connected pair, close-on-exec and non-blocking.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?)
}

/// Sends one message with its descriptors, whole or not at all. `WouldBlock` when the peer's queue is full.
pub fn send(socket: BorrowedFd, message: &[u8], fds: &[BorrowedFd]) -> io::Result<()> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage] = if raw.is_empty() { &[] } else { &rights };
    loop {
        // MSG_NOSIGNAL: a dead peer is an error here, never SIGPIPE.
        match sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(message)], control, MsgFlags::MSG_NOSIGNAL, None) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// What one receive gave.
#[derive(Debug)]
pub struct Received {
    /// Length of the message; 0 is the peer's end.
    pub len: usize,
    pub fds: Vec<OwnedFd>,
    /// The message was longer than the buffer, or descriptors were lost (unix(7): at the receiver's limit they are closed).
    pub truncated: bool,
}

/// Most descriptors that one [`recv`] accepts: SCM_MAX_FD of the kernel.
pub const MAX_FDS: usize = 253;

/// Receives one message. `WouldBlock` when there is none.
///
/// A peer that closed with our messages unread makes one receive fail with `ECONNRESET`; what it had sent before is still
/// readable after that, so the call goes on.
pub fn recv(socket: BorrowedFd, buffer: &mut [u8]) -> io::Result<Received> {
    let mut space = cmsg_space!([RawFd; MAX_FDS]);
    loop {
        let mut parts = [IoSliceMut::new(buffer)];
        match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC) {
            Ok(message) => {
                let mut fds = Vec::new();
                for control in message.cmsgs()? {
                    if let ControlMessageOwned::ScmRights(raw) = control {
                        // SAFETY: the kernel has just installed these descriptors for this message; nobody else owns them.
                        fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                    }
                }
                let truncated = message.flags.intersects(MsgFlags::MSG_CTRUNC | MsgFlags::MSG_TRUNC);
                return Ok(Received { len: message.bytes, fds, truncated });
            }
            Err(Errno::EINTR | Errno::ECONNRESET) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn messages_keep_their_bounds_and_their_descriptors() {
        let (left, right) = pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        send(left.as_fd(), b"one", &[writer.as_fd()]).unwrap();
        send(left.as_fd(), b"two", &[]).unwrap();
        drop(writer);
        let mut buffer = [0; 64];
        let first = recv(right.as_fd(), &mut buffer).unwrap();
        assert_eq!((&buffer[..first.len], first.fds.len(), first.truncated), (&b"one"[..], 1, false));
        assert_eq!(recv(right.as_fd(), &mut buffer).unwrap().len, 3);
        nix::unistd::write(&first.fds[0], b"x").unwrap();
        drop(first);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x", "the received copy was the last one");
    }

    #[test]
    fn what_was_sent_before_death_is_still_read() {
        let (left, right) = pair().unwrap();
        send(right.as_fd(), b"never read by left", &[]).unwrap();
        send(left.as_fd(), b"last words", &[]).unwrap();
        drop(left);
        let mut buffer = [0; 64];
        assert_eq!(recv(right.as_fd(), &mut buffer).unwrap().len, 10);
        assert_eq!(recv(right.as_fd(), &mut buffer).unwrap().len, 0);
        assert!(send(right.as_fd(), b"x", &[]).is_err());
    }

    #[test]
    fn a_message_too_long_is_marked() {
        let (left, right) = pair().unwrap();
        send(left.as_fd(), &[0; 100], &[]).unwrap();
        assert!(recv(right.as_fd(), &mut [0; 10]).unwrap().truncated);
    }
}
