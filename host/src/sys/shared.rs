//! Memory that two processes share: a sealed memfd and its mapping.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::assert_send_sync;

/// `N` atomics in a mapping of a memfd, unmapped on drop.
#[derive(Debug)]
pub struct Slots<const N: usize> {
    start: NonNull<c_void>,
}

const _: () = assert_send_sync::<AtomicU64>();

// SAFETY: the mapping is of atomics and lives until the drop.
unsafe impl<const N: usize> Send for Slots<N> {}
// SAFETY: as above.
unsafe impl<const N: usize> Sync for Slots<N> {}

impl<const N: usize> Slots<N> {
    /// Evaluated at compile time: no slots at all would not build.
    const LEN: NonZeroUsize = NonZeroUsize::new(size_of::<[AtomicU64; N]>()).unwrap();

    /// Makes the memory, all zero, its size sealed so that no process can pull it away under another (SIGBUS).
    pub fn create(name: &str) -> io::Result<(OwnedFd, Slots<N>)> {
        let name = std::ffi::CString::new(name)?;
        let fd = memfd_create(name.as_c_str(), MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        let file = File::from(fd);
        file.set_len(Self::LEN.get() as u64)?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        let slots = Self::map(&file)?;
        Ok((file.into(), slots))
    }

    /// Maps memory that another process made with [`create`](Self::create).
    pub fn open(fd: OwnedFd) -> io::Result<Slots<N>> {
        let file = File::from(fd);
        let seals = SealFlag::from_bits_truncate(fcntl(&file, FcntlArg::F_GET_SEALS)?);
        if file.metadata()?.len() < Self::LEN.get() as u64 || !seals.contains(SealFlag::F_SEAL_SHRINK) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the shared memory is too short or not sealed"));
        }
        Self::map(&file)
    }

    fn map(file: &File) -> io::Result<Slots<N>> {
        let flags = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice touches no memory of ours; the file is long enough
        // and sealed against shrinking.
        let start = unsafe { mmap(None, Self::LEN, flags, MapFlags::MAP_SHARED, file.as_fd(), 0)? };
        Ok(Slots { start })
    }

    pub fn get(&self) -> &[AtomicU64; N] {
        // SAFETY: the mapping holds N aligned u64 (page-aligned start) until the drop; atomics allow the other process to
        // write at any time.
        unsafe { self.start.cast::<[AtomicU64; N]>().as_ref() }
    }

    /// Keeps the mapping for the life of the process.
    pub fn leak(self) -> &'static [AtomicU64; N] {
        let slots = std::mem::ManuallyDrop::new(self);
        // SAFETY: as in `get`; without the drop the mapping stays.
        unsafe { slots.start.cast::<[AtomicU64; N]>().as_ref() }
    }
}

impl<const N: usize> Drop for Slots<N> {
    fn drop(&mut self) {
        // SAFETY: `start` and the length are those of the mapping; no reference outlives `self`. An error would mean that
        // they are not, and there is nothing to undo.
        let _ = unsafe { munmap(self.start, Self::LEN.get()) };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::SeqCst;

    use super::*;

    #[test]
    fn both_mappings_see_the_same_numbers() {
        let (fd, ours) = Slots::<4>::create("test").unwrap();
        let theirs = Slots::<4>::open(fd).unwrap();
        theirs.get()[2].store(7, SeqCst);
        assert_eq!(ours.get()[2].load(SeqCst), 7);
    }

    #[test]
    fn memory_that_could_shrink_is_refused() {
        let fd = memfd_create(c"t", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
        let file = File::from(fd);
        file.set_len(4096).unwrap();
        assert!(Slots::<4>::open(file.into()).is_err());
    }
}
