//! Bytes for another process that lie in no file: a memfd that nobody can change any more, its owner included.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::fstat;
use zeroize::Zeroizing;

const SEALS: SealFlag =
    SealFlag::F_SEAL_WRITE.union(SealFlag::F_SEAL_SHRINK).union(SealFlag::F_SEAL_GROW).union(SealFlag::F_SEAL_SEAL);

/// Seals `bytes`. The kernel clears the pages when the last descriptor is closed.
pub fn seal(name: &CStr, bytes: &[u8]) -> io::Result<OwnedFd> {
    let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let mut file = File::from(fd);
    file.write_all(bytes)?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(SEALS))?;
    Ok(file.into())
}

/// Memory of `room` bytes for another process to [`fill`]. It cannot grow: a process that never seals it costs no more.
pub fn lend(name: &CStr, room: u64) -> io::Result<OwnedFd> {
    let file = File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?);
    file.set_len(room)?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW))?;
    Ok(file.into())
}

/// Writes `bytes` into memory that another process has lent, and seals it.
pub fn fill(memory: OwnedFd, bytes: &[u8]) -> io::Result<()> {
    let file = File::from(memory);
    // The copies of the descriptor share one offset; this goes past it.
    file.write_all_at(bytes, 0)?;
    file.set_len(bytes.len() as u64)?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(SEALS))?;
    Ok(())
}

/// The number that tells one memory from another while both are open, in every process.
pub fn inode(memory: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(fstat(memory)?.st_ino)
}

/// How many bytes another process sealed. Asks for the seals first: of what is no memory nothing else is asked, since an answer
/// could take its time.
pub fn length(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let seals = SealFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GET_SEALS)?);
    if !seals.contains(SEALS) {
        return Err(refused("it is not sealed"));
    }
    u64::try_from(fstat(fd)?.st_size).map_err(|_| refused("it has no length"))
}

fn refused(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// What another process sealed, at most `limit` bytes.
pub fn open(fd: OwnedFd, limit: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    let length = length(fd.as_fd())?;
    let Some(len) = usize::try_from(length).ok().filter(|len| *len <= limit) else {
        return Err(refused("it is too long"));
    };
    let file = File::from(fd);
    let mut bytes = Zeroizing::new(vec![0; len]);
    // All copies of the descriptor share one offset; this looks past it.
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_can_be_read_by_each_copy_and_changed_by_none() {
        let fd = seal(c"t", b"secret").unwrap();
        for _ in 0..2 {
            assert_eq!(*open(fd.try_clone().unwrap(), 6).unwrap(), b"secret");
        }
        assert!(File::from(fd.try_clone().unwrap()).write_at(b"x", 0).is_err());
        assert!(open(fd, 5).is_err(), "it is longer than that");
    }

    #[test]
    fn lent_memory_is_read_once_it_was_filled_and_never_grows() {
        let lent = lend(c"t", 10).unwrap();
        assert!(length(lent.as_fd()).is_err(), "it could still change");
        let file = File::from(lent.try_clone().unwrap());
        assert!(file.set_len(11).is_err() && file.write_at(b"x", 10).is_err());
        assert!(fill(lent.try_clone().unwrap(), b"longer than ten").is_err());
        fill(lent.try_clone().unwrap(), b"secret").unwrap();
        assert_eq!(inode(lent.as_fd()).unwrap(), inode(file.as_fd()).unwrap());
        assert_ne!(inode(lent.as_fd()).unwrap(), inode(lend(c"t", 1).unwrap().as_fd()).unwrap());
        assert_eq!(*open(lent, 6).unwrap(), b"secret");
        assert!(file.write_at(b"x", 0).is_err());
    }

    #[test]
    fn what_could_change_under_the_reader_is_refused() {
        let fd = memfd_create(c"t", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
        assert!(open(fd, 100).is_err());
    }
}
