//! Socket pairs that keep message boundaries, carry descriptors and report the peer's death: AF_UNIX, SOCK_SEQPACKET.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};

/// A connected pair, close-on-exec and non-blocking.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?)
}

/// asm-generic/socket.h, since Linux 6.16. libc does not have it yet.
const SO_PASSRIGHTS: libc::c_int = 83;

/// Has the kernel refuse descriptors that the peer sends to `socket`: the send fails (EPERM). Returns whether the kernel can.
pub fn refuse_descriptors(socket: BorrowedFd) -> io::Result<bool> {
    let (off, len) = (0 as libc::c_int, size_of::<libc::c_int>() as libc::socklen_t);
    // SAFETY: the option's value is one live int.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_PASSRIGHTS, (&raw const off).cast(), len) };
    match Errno::result(result) {
        Ok(_) => Ok(true),
        Err(Errno::ENOPROTOOPT) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Lets nothing more come, whichever process sends it (EPIPE there). What has come stays readable, and then the end is.
pub fn stop_receiving(socket: BorrowedFd) -> io::Result<()> {
    socket2::SockRef::from(&socket).shutdown(Shutdown::Read)
}

/// Sends nothing more: the peer reads what was sent before, and then the end.
pub fn stop_sending(socket: BorrowedFd) -> io::Result<()> {
    socket2::SockRef::from(&socket).shutdown(Shutdown::Write)
}

/// Asks for a send buffer in which one message of `len` bytes fits beside others. The kernel's limit (net.core.wmem_max)
/// holds all the same: a message beyond it fails (EMSGSIZE).
pub fn set_send_room(socket: BorrowedFd, len: usize) -> io::Result<()> {
    socket2::SockRef::from(&socket).set_send_buffer_size(len)
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
    /// Length of the message; 0 without descriptors is the peer's end, or an empty message.
    pub len: usize,
    pub fds: Vec<OwnedFd>,
    /// The message was longer than the buffer, or descriptors were lost (unix(7): at the receiver's limit they are closed).
    pub truncated: bool,
}

/// Most descriptors that one [`recv`] accepts: SCM_MAX_FD of the kernel.
pub const MAX_FDS: usize = 253;
/// Room for their control message, in words: that keeps it aligned.
const CONTROL: usize = control_len(MAX_FDS).div_ceil(size_of::<u64>());

/// The length of a control message with so many descriptors, and what follows it up to the next.
const fn control_len(fds: usize) -> usize {
    // SAFETY: arithmetic only; the macro is unsafe for its family's sake.
    unsafe { libc::CMSG_SPACE((fds * size_of::<RawFd>()) as u32) as usize }
}

/// Receives one message. `WouldBlock` when there is none.
///
/// A peer that closed with our messages unread makes one receive fail with `ECONNRESET`; what it had sent before is still
/// readable after that, so the call goes on.
pub fn recv(socket: BorrowedFd, buffer: &mut [u8]) -> io::Result<Received> {
    // Not by nix: where the kernel had no room for all descriptors, it gives an error, and those that came stay open unseen.
    recv_into(socket, buffer, &mut [0; CONTROL])
}

/// With so much room for the descriptors.
fn recv_into(socket: BorrowedFd, buffer: &mut [u8], control: &mut [u64]) -> io::Result<Received> {
    loop {
        let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        // SAFETY: a struct of numbers and pointers, for which zero is nothing at all.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(control) as _;
        // SAFETY: `message` points to one buffer and to room for control messages, each live and of the length that it says.
        let len = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
        match Errno::result(len) {
            Ok(len) => {
                // SAFETY: the kernel has just filled in `message`, and nobody has looked at its descriptors.
                let fds = unsafe { take_fds(&message) };
                let truncated = message.msg_flags & (libc::MSG_CTRUNC | libc::MSG_TRUNC) != 0;
                return Ok(Received { len: len as usize, fds, truncated });
            }
            Err(Errno::EINTR | Errno::ECONNRESET) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// The descriptors that came with `message`.
///
/// # Safety
/// `message` is as `recvmsg` has left it, its control buffer is live, and this is called once for it.
unsafe fn take_fds(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: the kernel wrote whole headers into the buffer, and how far they reach into `msg_controllen`.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: not null, so it lies in the buffer, which is aligned for it.
        let (level, kind, len) = unsafe { ((*header).cmsg_level, (*header).cmsg_type, (*header).cmsg_len as usize) };
        if (level, kind) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: the descriptors follow the header, as many as its length says, also where some were lost.
            let (first, count) = unsafe {
                let bytes = len.saturating_sub(libc::CMSG_LEN(0) as usize);
                (libc::CMSG_DATA(header).cast::<RawFd>(), bytes / size_of::<RawFd>())
            };
            // SAFETY: the kernel has just installed these descriptors for this message; nobody else owns them.
            fds.extend((0..count).map(|at| unsafe { OwnedFd::from_raw_fd(first.add(at).read_unaligned()) }));
        }
        // SAFETY: `header` lies in the buffer of `message`.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    fds
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
    fn descriptors_for_which_there_is_no_room_are_told_and_those_that_came_are_closed() {
        let (left, right) = pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        // What does not fit is lost, as at the receiver's limit of descriptors.
        let fds = [writer.as_fd(); MAX_FDS];
        send(left.as_fd(), b"x", &fds).unwrap();
        drop(writer);
        let received = recv_into(right.as_fd(), &mut [0; 8], &mut [0; 8]).unwrap();
        assert!(received.truncated && !received.fds.is_empty() && received.fds.len() < MAX_FDS, "{received:?}");
        drop(received);
        // No copy of the writing end is left anywhere.
        assert_eq!(reader.read_to_string(&mut String::new()).unwrap(), 0);
    }

    #[test]
    fn a_peer_whose_descriptors_are_refused_may_still_send_messages() {
        let (left, right) = pair().unwrap();
        let (reader, _writer) = std::io::pipe().unwrap();
        if !refuse_descriptors(right.as_fd()).unwrap() {
            eprintln!("not tested: this kernel has no SO_PASSRIGHTS");
            return;
        }
        let error = send(left.as_fd(), b"x", &[reader.as_fd()]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        send(left.as_fd(), b"yes", &[]).unwrap();
        assert_eq!(recv(right.as_fd(), &mut [0; 10]).unwrap().len, 3);
        // In the other direction all is as before.
        send(right.as_fd(), b"x", &[reader.as_fd()]).unwrap();
        assert_eq!(recv(left.as_fd(), &mut [0; 10]).unwrap().fds.len(), 1);
    }

    #[test]
    fn a_receiver_that_stopped_reads_what_came_before_and_nothing_after() {
        let (left, right) = pair().unwrap();
        send(left.as_fd(), b"before", &[]).unwrap();
        stop_receiving(right.as_fd()).unwrap();
        assert_eq!(send(left.as_fd(), b"after", &[]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        let mut buffer = [0; 64];
        assert_eq!(recv(right.as_fd(), &mut buffer).unwrap().len, 6);
        assert_eq!(recv(right.as_fd(), &mut buffer).unwrap().len, 0);
        send(right.as_fd(), b"it may still send", &[]).unwrap();
    }

    #[test]
    fn a_message_too_long_is_marked() {
        let (left, right) = pair().unwrap();
        send(left.as_fd(), &[0; 100], &[]).unwrap();
        assert!(recv(right.as_fd(), &mut [0; 10]).unwrap().truncated);
    }
}
