//! Shared libraries: opened once, never closed (thread-local destructors and threads of a library make closing unsound).

use std::ffi::{CStr, c_void};
use std::os::raw::c_int;
use std::path::Path;
use std::ptr::NonNull;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

/// A library that stays for the life of the process.
#[derive(Debug)]
pub struct Dylib {
    library: Library,
}

impl Dylib {
    /// Opens `path` and runs its static constructors. All symbols are bound now, so that a missing one shows here and not at
    /// the first call; they are not offered to libraries opened later.
    pub fn open(path: &Path) -> Result<&'static Dylib, libloading::Error> {
        const FLAGS: c_int = RTLD_NOW | RTLD_LOCAL;
        // SAFETY: opening runs the library's constructors, which are code of the trusted plugin; it is never closed, so its
        // destructors do not run.
        let library = unsafe { Library::open(Some(path), FLAGS) }?;
        Ok(Box::leak(Box::new(Dylib { library })))
    }

    /// The address of an exported symbol, valid for the life of the process; never null.
    pub fn address(&'static self, name: &CStr) -> Option<NonNull<c_void>> {
        // SAFETY: the type asked for is a bare pointer, which makes no claim about what lies there.
        let symbol = unsafe { self.library.get::<*mut c_void>(name) }.ok()?;
        NonNull::new(symbol.into_raw().cast())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_library_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("text.so");
        std::fs::write(&path, "no library\n").unwrap();
        assert!(Dylib::open(&path).is_err());
        assert!(Dylib::open(&dir.path().join("absent.so")).is_err());
    }
}
