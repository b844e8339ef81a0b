//! What a plugin says of itself in its ELF file, readable without opening it: fixed arrays, no pointers (nothing in the
//! file has been relocated yet).

/// The exported symbol that holds the [`Descriptor`].
pub const DESCRIPTOR_SYMBOL: &str = "BATON_PLUGIN_DESCRIPTOR";

/// First bytes of every descriptor.
pub const MAGIC: [u8; 16] = *b"baton-plugin-abi";

/// Built with `panic = "abort"`: a panic would end the whole child. Refused.
pub const FLAG_PANIC_ABORT: u32 = 1;
/// Built with debug assertions.
pub const FLAG_DEBUG: u32 = 1 << 1;

/// Plain bytes; text fields are UTF-8, padded with zeros.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    pub magic: [u8; 16],
    /// `size_of::<Descriptor>()` of the plugin's side: later revisions may append.
    pub size: u32,
    /// [`ABI_REVISION`](super::ABI_REVISION).
    pub abi_revision: u32,
    pub flags: u32,
    pub reserved: u32,
    /// The plugin crate's package name and version.
    pub name: [u8; 64],
    pub version: [u8; 64],
    /// Version of `baton-plugin-api` that it was built against.
    pub api_version: [u8; 32],
    /// `rustc --version` of the build.
    pub rustc: [u8; 96],
    /// `#[plugin(mount = "...")]`, or empty.
    pub mount: [u8; 128],
}

/// `text` in a fixed array, cut at its end if too long. For constants: evaluated at compile time.
pub const fn text<const N: usize>(text: &str) -> [u8; N] {
    let bytes = text.as_bytes();
    let mut out = [0; N];
    let mut at = 0;
    while at < bytes.len() && at < N {
        out[at] = bytes[at];
        at += 1;
    }
    out
}

/// What a text field says, up to its first zero; bytes that are not UTF-8 are replaced.
pub fn read_text(field: &[u8]) -> String {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

impl Descriptor {
    /// Reads a descriptor from the bytes of a file; nothing if they are too short or do not begin with [`MAGIC`].
    pub fn from_bytes(bytes: &[u8]) -> Option<Descriptor> {
        let bytes = bytes.get(..size_of::<Descriptor>())?;
        if bytes[..16] != MAGIC {
            return None;
        }
        // SAFETY: every bit pattern is a Descriptor (integers and byte arrays, no padding, asserted below); the length was
        // checked, and `read_unaligned` asks for no alignment.
        Some(unsafe { bytes.as_ptr().cast::<Descriptor>().read_unaligned() })
    }
}

const _: () = assert!(size_of::<Descriptor>() == 16 + 4 * 4 + 64 + 64 + 32 + 96 + 128);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_fields_hold_what_fits() {
        assert_eq!(read_text(&text::<8>("hello")), "hello");
        assert_eq!(read_text(&text::<4>("hello")), "hell");
        assert_eq!(read_text(&text::<4>("")), "");
    }

    #[test]
    fn other_bytes_are_no_descriptor() {
        assert!(Descriptor::from_bytes(&[0; 1000]).is_none());
        assert!(Descriptor::from_bytes(&MAGIC).is_none());
    }
}
