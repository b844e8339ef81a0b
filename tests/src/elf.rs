//! Damages shared libraries on purpose: copies of a good file with one thing wrong.

use std::fs;
use std::path::{Path, PathBuf};

/// First bytes of a plugin's descriptor; its size and ABI revision follow as two little-endian `u32`.
const MAGIC: &[u8] = b"baton-plugin-abi";

/// `good` with its bytes changed by `damage`, as a file of its own in `folder`.
fn damaged(good: &Path, folder: &Path, name: &str, damage: impl FnOnce(&mut Vec<u8>)) -> PathBuf {
    let mut bytes = fs::read(good).expect("failed to read the good library");
    damage(&mut bytes);
    let path = folder.join(name);
    fs::write(&path, bytes).expect("failed to write the damaged library");
    path
}

/// The first `percent` of the file.
pub fn truncated(good: &Path, folder: &Path, percent: usize) -> PathBuf {
    damaged(good, folder, &format!("truncated-{percent}.so"), |bytes| bytes.truncate(bytes.len() * percent / 100))
}

/// For a machine that this is not: `e_machine` of the ELF head.
pub fn other_machine(good: &Path, folder: &Path) -> PathBuf {
    const AARCH64: u16 = 183;
    const X86_64: u16 = 62;
    let other = if cfg!(target_arch = "aarch64") { X86_64 } else { AARCH64 };
    damaged(good, folder, "other-machine.so", |bytes| bytes[18..20].copy_from_slice(&other.to_le_bytes()))
}

/// With `change` added to the ABI revision of its descriptor.
pub fn other_abi(good: &Path, folder: &Path, change: i32) -> PathBuf {
    damaged(good, folder, &format!("other-abi{change}.so"), |bytes| {
        let mut changed = 0;
        for at in 0..bytes.len() - MAGIC.len() - 8 {
            let word =
                |from: usize| u32::from_le_bytes([bytes[from], bytes[from + 1], bytes[from + 2], bytes[from + 3]]);
            // The magic alone occurs elsewhere too; with a size behind it, it is a descriptor.
            if bytes[at..].starts_with(MAGIC) && (64..4096).contains(&word(at + 16)) {
                let revision = word(at + 20).wrapping_add_signed(change);
                bytes[at + 20..at + 24].copy_from_slice(&revision.to_le_bytes());
                changed += 1;
            }
        }
        assert_eq!(changed, 1, "expected one descriptor in {}", good.display());
    })
}
