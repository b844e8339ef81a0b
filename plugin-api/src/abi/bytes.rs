//! Borrowed and owned byte strings, and their conversions from and to `bytes::Bytes`.

use std::mem::MaybeUninit;

use abi_stable::StableAbi;
use bytes::Bytes;

use super::assert_send_sync;

/// Borrowed bytes. Never null with a length above zero; `ptr` may dangle when `len` is zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct Slice {
    pub ptr: *const u8,
    pub len: usize,
}

// SAFETY: a Slice is an address and a length; reading through it is unsafe and states its own conditions.
unsafe impl Send for Slice {}
// SAFETY: as above; there is no interior mutability behind it.
unsafe impl Sync for Slice {}

impl Slice {
    /// No bytes.
    pub const EMPTY: Slice = Slice { ptr: std::ptr::NonNull::dangling().as_ptr(), len: 0 };

    /// Borrows `bytes`; the caller keeps them alive for as long as the receiver may look.
    pub const fn new(bytes: &[u8]) -> Slice {
        Slice { ptr: bytes.as_ptr(), len: bytes.len() }
    }

    /// The bytes themselves.
    ///
    /// # Safety
    /// The memory must be alive and unchanged for `'a`: this holds during the call that passed the slice.
    pub const unsafe fn as_bytes<'a>(self) -> &'a [u8] {
        if self.len == 0 {
            return &[];
        }
        // SAFETY: the caller vouches for the memory; the length is not zero, so the pointer was made from a real slice.
        unsafe { std::slice::from_raw_parts(self.ptr, self.len) }
    }
}

/// Up to this many bytes are copied when they cross; above, the buffer is lent with its owner.
/// Measured: copying wins up to 512-1024 bytes, since lending costs an allocation and an atomic count.
pub const COPY_LIMIT: usize = 1024;

/// Room for what keeps bytes alive. `MaybeUninit`, since pointers lie in it: as integers they would lose what they may point to.
pub type Owner = [MaybeUninit<usize>; 4];

/// Owned bytes: a pointer, a length, and the owner that keeps them alive.
///
/// The owner's four words hold a `Bytes` of the exporting side inline, so that exporting allocates nothing. The fields are
/// private, since reading and dropping trust them:
///
/// ```compile_fail,E0451
/// use baton_plugin_api::abi::FfiBytes;
/// let forged = FfiBytes { len: 1 << 20, ..FfiBytes::EMPTY };
/// ```
#[repr(C)]
#[derive(StableAbi)]
pub struct FfiBytes {
    ptr: *const u8,
    len: usize,
    owner: Owner,
    /// Null for bytes that live as long as the process.
    vtable: *const FfiBytesVtable,
}

#[repr(C)]
#[derive(StableAbi)]
pub struct FfiBytesVtable {
    /// Releases the owner. OWNERSHIP: called exactly once, by whoever holds the value last.
    pub drop: unsafe extern "C" fn(owner: *mut Owner),
}

// SAFETY: the bytes are immutable and the owner is a `Bytes` (Send + Sync) or nothing.
unsafe impl Send for FfiBytes {}
// SAFETY: as above.
unsafe impl Sync for FfiBytes {}

const _: () = assert_send_sync::<Bytes>();
const _: () = assert!(size_of::<Bytes>() == size_of::<Owner>() && align_of::<Bytes>() <= align_of::<usize>());

static BYTES_VTABLE: FfiBytesVtable = FfiBytesVtable { drop: drop_bytes };

unsafe extern "C" fn drop_bytes(owner: *mut Owner) {
    // SAFETY: `owner` was filled by `FfiBytes::from` with a `Bytes` of this very module (its vtable led here), and the
    // contract of `FfiBytesVtable::drop` is one call.
    unsafe { std::ptr::drop_in_place(owner.cast::<Bytes>()) }
}

impl FfiBytes {
    /// No bytes.
    pub const EMPTY: FfiBytes = FfiBytes::from_static(&[]);

    /// Bytes that live as long as the process (Baton never unloads a plugin).
    pub const fn from_static(bytes: &'static [u8]) -> FfiBytes {
        FfiBytes { ptr: bytes.as_ptr(), len: bytes.len(), owner: [MaybeUninit::uninit(); 4], vtable: std::ptr::null() }
    }

    /// The bytes, borrowed.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `ptr` and `len` describe memory that the owner keeps alive, unchanged, until it is dropped.
        unsafe { Slice { ptr: self.ptr, len: self.len }.as_bytes() }
    }
}

impl From<Bytes> for FfiBytes {
    fn from(bytes: Bytes) -> FfiBytes {
        let (ptr, len) = (bytes.as_ptr(), bytes.len());
        let mut owner: Owner = [MaybeUninit::uninit(); 4];
        // SAFETY: size and alignment of `Bytes` fit the four words (asserted above); moving a value does not move what it
        // points to, so `ptr` stays valid.
        unsafe { owner.as_mut_ptr().cast::<Bytes>().write(bytes) };
        FfiBytes { ptr, len, owner, vtable: &BYTES_VTABLE }
    }
}

impl From<FfiBytes> for Bytes {
    fn from(bytes: FfiBytes) -> Bytes {
        if bytes.len == 0 {
            return Bytes::new();
        }
        if bytes.vtable.is_null() {
            // SAFETY: a null vtable is the exporter's word that the memory lives as long as the process.
            return Bytes::from_static(unsafe { Slice { ptr: bytes.ptr, len: bytes.len }.as_bytes() });
        }
        if std::ptr::eq(bytes.vtable, &BYTES_VTABLE) {
            let mut bytes = std::mem::ManuallyDrop::new(bytes);
            // SAFETY: our own vtable, so the owner is a `Bytes` of this module; it is moved out once, and `ManuallyDrop`
            // keeps it from being dropped again.
            return unsafe { bytes.owner.as_mut_ptr().cast::<Bytes>().read() };
        }
        if bytes.len <= COPY_LIMIT {
            return Bytes::copy_from_slice(bytes.as_slice());
        }
        Bytes::from_owner(bytes)
    }
}

impl AsRef<[u8]> for FfiBytes {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl Drop for FfiBytes {
    fn drop(&mut self) {
        if !self.vtable.is_null() {
            // SAFETY: a vtable that is not null points to a static of the exporting library, which is never unloaded; this
            // is the one call, since `self` is gone afterwards.
            unsafe { ((*self.vtable).drop)(&mut self.owner) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static FOREIGN: FfiBytesVtable = FfiBytesVtable { drop: drop_vec };

    unsafe extern "C" fn drop_vec(owner: *mut Owner) {
        // SAFETY: `foreign` below stored a boxed vector in the first word.
        unsafe { drop(owner.cast::<Box<Vec<u8>>>().read()) }
    }

    /// Bytes as another library would export them.
    fn foreign(content: Vec<u8>) -> FfiBytes {
        let content = Box::new(content);
        let (ptr, len) = (content.as_ptr(), content.len());
        let mut owner: Owner = [MaybeUninit::uninit(); 4];
        // SAFETY: a box is one word.
        unsafe { owner.as_mut_ptr().cast::<Box<Vec<u8>>>().write(content) };
        FfiBytes { ptr, len, owner, vtable: &FOREIGN }
    }

    #[test]
    fn own_bytes_come_back_without_a_copy() {
        let bytes = Bytes::from(vec![7; 5000]);
        let address = bytes.as_ptr();
        let back = Bytes::from(FfiBytes::from(bytes));
        assert_eq!(back.as_ptr(), address);
        assert_eq!(back.len(), 5000);
    }

    #[test]
    fn small_foreign_bytes_are_copied_and_large_ones_lent() {
        let small = foreign(vec![1; COPY_LIMIT]);
        let address = small.ptr;
        assert_ne!(Bytes::from(small).as_ptr(), address);

        let large = foreign(vec![2; COPY_LIMIT + 1]);
        let address = large.ptr;
        let lent = Bytes::from(large);
        assert_eq!(lent.as_ptr(), address);
        assert!(lent.iter().all(|byte| *byte == 2));
    }

    #[test]
    fn static_and_empty_bytes_own_nothing() {
        assert_eq!(Bytes::from(FfiBytes::from_static(b"hello")), "hello");
        assert!(Bytes::from(foreign(Vec::new())).is_empty());
    }
}
