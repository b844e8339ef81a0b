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

/// Kills the process that opens it, within dlopen(3): its initialisation function is the head of the file, where no code lies.
pub fn fatal_to_open(good: &Path, folder: &Path) -> PathBuf {
    const PT_DYNAMIC: u64 = 2;
    const DT_INIT: u64 = 12;
    damaged(good, folder, "fatal-to-open.so", |bytes| {
        let number = |bytes: &[u8], at: usize, size: usize| {
            bytes[at..at + size].iter().rev().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte))
        };
        // The fields of a 64-bit head and its program headers, as elf(5) has them.
        let (headers, size, count) = (number(bytes, 32, 8), number(bytes, 54, 2), number(bytes, 56, 2));
        let dynamic = (0..count)
            .map(|index| (headers + index * size) as usize)
            .find(|at| number(bytes, *at, 4) == PT_DYNAMIC)
            .expect("a shared library has a dynamic section");
        let (start, length) = (number(bytes, dynamic + 8, 8) as usize, number(bytes, dynamic + 32, 8) as usize);
        let entry = (start..start + length)
            .step_by(16)
            .find(|at| number(bytes, *at, 8) == DT_INIT)
            .expect("the C runtime's objects bring an initialisation function");
        bytes[entry + 8..entry + 16].copy_from_slice(&8u64.to_le_bytes());
    })
}
