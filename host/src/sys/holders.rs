//! Which processes have a listening socket open: what /proc tells of an address that cannot be bound. Returns what can be seen;
//! other users' processes are seen by root alone.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::process::Process;
use super::socket::Address;

/// State of a listening socket in /proc/net/tcp.
const LISTEN: &str = "0A";
/// `__SO_ACCEPTCON` among the flags of /proc/net/unix.
const ACCEPTS: u32 = 0x10000;

/// A process that has the socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub pid: i32,
    pub uid: u32,
    /// As `ps` shows it.
    pub command: String,
}

/// What there is of an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listening {
    /// No socket listens there.
    Nowhere,
    /// One does, in these processes; in none that can be seen if it is empty.
    In(Vec<Holder>),
}

/// Looks for sockets that listen at `address`, or at one that is in its way.
pub fn listening(address: &Address) -> io::Result<Listening> {
    let inodes = match address {
        Address::Ip(address) => tcp_inodes(*address)?,
        Address::Unix(path) => unix_inodes(&fs::read("/proc/net/unix")?, path),
    };
    Ok(if inodes.is_empty() { Listening::Nowhere } else { Listening::In(holders(&inodes)?) })
}

/// Waits until process `pid` has ended; `false` if it has not by then.
pub fn wait_for_end(pid: i32, until: Instant) -> io::Result<bool> {
    let process = match Process::open(pid) {
        Ok(process) => process,
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(true),
        Err(error) => return Err(error),
    };
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(process.pidfd.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn tcp_inodes(address: SocketAddr) -> io::Result<BTreeSet<u64>> {
    let mut found = BTreeSet::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        match fs::read_to_string(table) {
            Ok(text) => found.extend(text.lines().filter_map(|line| tcp_inode(line, address))),
            // Without IPv6 there is no such table.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// The inode of a line's socket, if it listens in the way of `address`.
fn tcp_inode(line: &str, address: SocketAddr) -> Option<u64> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (ip, port) = fields.get(1)?.split_once(':')?;
    let (ip, port) = (ip_of(ip)?, u16::from_str_radix(port, 16).ok()?);
    let in_the_way = ip == address.ip() || ip.is_unspecified() || address.ip().is_unspecified();
    let inode = fields.get(9)?.parse().ok()?;
    (*fields.get(3)? == LISTEN && port == address.port() && in_the_way).then_some(inode)
}

/// Words in the byte order of the machine, each of four bytes in that of the network.
fn ip_of(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| u32::from_str_radix(hex.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    match hex.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?].concat();
            Some(Ipv6Addr::from(<[u8; 16]>::try_from(words).ok()?).into())
        }
        _ => None,
    }
}

fn unix_inodes(table: &[u8], path: &Path) -> BTreeSet<u64> {
    table.split(|byte| *byte == b'\n').filter_map(|line| unix_inode(line, path)).collect()
}

fn unix_inode(line: &[u8], path: &Path) -> Option<u64> {
    // The path comes last, and may hold anything; the fields before it are padded.
    let mut rest = line;
    let mut fields = [""; 7];
    for field in &mut fields {
        rest = rest.trim_ascii_start();
        let end = rest.iter().position(|byte| *byte == b' ')?;
        *field = std::str::from_utf8(&rest[..end]).ok()?;
        rest = &rest[end..];
    }
    let bound = rest.strip_prefix(b" ")?;
    let flags = u32::from_str_radix(fields[3], 16).ok()?;
    let is_there = bound == path.as_os_str().as_bytes() && flags & ACCEPTS != 0;
    is_there.then(|| fields[6].parse().ok())?
}

fn holders(inodes: &BTreeSet<u64>) -> io::Result<Vec<Holder>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // It may have ended, or not be ours to look into.
        let Ok(mut fds) = fs::read_dir(entry.path().join("fd")) else { continue };
        let has = |fd: fs::DirEntry| {
            let target = fs::read_link(fd.path()).ok()?;
            inodes.contains(&socket_inode(target.as_os_str())?).then_some(())
        };
        if fds.any(|fd| fd.ok().and_then(has).is_some())
            && let Ok(meta) = fs::metadata(entry.path())
        {
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ").trim().to_owned();
            found.push(Holder { pid, uid: meta.uid(), command });
        }
    }
    Ok(found)
}

fn socket_inode(link: &OsStr) -> Option<u64> {
    link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;
    use std::time::Duration;

    use super::*;

    fn pids(address: &Address) -> Option<Vec<i32>> {
        match listening(address).unwrap() {
            Listening::Nowhere => None,
            Listening::In(holders) => Some(holders.into_iter().map(|holder| holder.pid).collect()),
        }
    }

    #[test]
    fn listening_process_is_found_by_a_conflicting_address() {
        let own = std::process::id() as i32;
        for bound in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(bound).unwrap();
            let address = listener.local_addr().unwrap();
            let any: IpAddr =
                if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            for address in [address, SocketAddr::new(any, address.port())] {
                assert_eq!(pids(&Address::Ip(address)), Some(vec![own]), "{address}");
            }
            drop(listener);
            assert_eq!(pids(&Address::Ip(address)), None);
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let other = SocketAddr::new([127, 0, 0, 9].into(), listener.local_addr().unwrap().port());
        assert_eq!(pids(&Address::Ip(other)), None);
    }

    #[test]
    fn process_that_listens_at_a_path_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("with space: x");
        let address = Address::Unix(path.clone());
        assert_eq!(pids(&address), None);
        let listener = UnixListener::bind(&path).unwrap();
        assert_eq!(pids(&address), Some(vec![std::process::id() as i32]));
        drop(listener);
        assert_eq!(pids(&address), None);
    }

    #[test]
    fn end_of_a_process_is_waited_for_up_to_a_deadline() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id() as i32;
        assert!(!wait_for_end(pid, Instant::now()).unwrap());
        assert!(!wait_for_end(pid, Instant::now() + Duration::from_millis(30)).unwrap());
        child.kill().unwrap();
        assert!(wait_for_end(pid, Instant::now() + Duration::from_secs(20)).unwrap());
        child.wait().unwrap();
        assert!(wait_for_end(pid, Instant::now()).unwrap(), "it is reaped");
    }

    #[test]
    fn lines_that_are_broken_name_no_socket() {
        let address = "127.0.0.1:80".parse().unwrap();
        for line in ["", "0: 0100007F:0050", "0: 0100007F:0050 0:0 0A x x x x x nonsense", "0: 01:50 0 0A 0 0 0 0 0 7"]
        {
            assert_eq!(tcp_inode(line, address), None, "{line}");
        }
        for line in ["", "0: 2 0 00010000 0001 01 7", "0: 2 0 zz 0001 01 7 /x"] {
            assert_eq!(unix_inode(line.as_bytes(), Path::new("/x")), None, "{line}");
        }
        assert_eq!(unix_inode(b"0: 2 0 00010000 0001 01    7 /x", Path::new("/x")), Some(7));
        assert_eq!(unix_inode(b"0: 2 0 00000000 0001 03    7 /x", Path::new("/x")), None, "a connection");
    }
}
