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

/// How many bytes another process sealed.
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
    fn what_could_change_under_the_reader_is_refused() {
        let fd = memfd_create(c"t", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
        assert!(open(fd, 100).is_err());
    }
}
