//! The service manager's notification socket (sd_notify(3)): finding it and connecting to it. What is said there is not known
//! here.
//!
//! Own code: the libraries at hand block, or know no abstract names.

use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::time::{ClockId, clock_gettime};

/// A socket that sends datagrams to `address`, as `NOTIFY_SOCKET` names it; it never blocks. Connected, so that a full queue
/// can be waited for, and so bound to whoever listens now: one that comes later is found by connecting again.
pub fn open(address: &OsStr) -> io::Result<OwnedFd> {
    let address = match address.as_bytes() {
        [b'@', name @ ..] => UnixAddr::new_abstract(name)?,
        path @ [b'/', ..] => UnixAddr::new(path)?,
        _ => return Err(io::Error::new(ErrorKind::Unsupported, "it is neither a path nor an abstract name")),
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
    connect(socket.as_raw_fd(), &address)?;
    Ok(socket)
}

/// CLOCK_MONOTONIC in microseconds: what the service manager compares with its own.
pub fn monotonic_usec() -> io::Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(std::time::Duration::from(now).as_micros() as u64)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    use super::*;
    use crate::sys::seqpacket::send;

    fn said(manager: &UnixDatagram, address: &OsStr) -> String {
        send(open(address).unwrap().as_fd(), b"READY=1", &[]).unwrap();
        let mut buffer = [0; 64];
        let len = manager.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    }

    #[test]
    fn paths_and_abstract_names_are_reached_and_others_are_not_guessed_at() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        assert_eq!(said(&manager, path.as_os_str()), "READY=1");
        let name = format!("baton-test-{}", std::process::id());
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        assert_eq!(said(&manager, OsStr::new(&format!("@{name}"))), "READY=1");
        for other in ["", "vsock:2:1", "notify"] {
            assert_eq!(open(OsStr::new(other)).unwrap_err().kind(), ErrorKind::Unsupported, "{other}");
        }
        assert!(open(dir.path().join("absent").as_os_str()).is_err());
    }

    #[test]
    fn a_full_queue_is_an_error_and_no_wait() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let _manager = UnixDatagram::bind(&path).unwrap();
        let socket = open(path.as_os_str()).unwrap();
        let error = std::iter::from_fn(|| Some(send(socket.as_fd(), b"X=1", &[]))).find_map(Result::err).unwrap();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
    }
}
