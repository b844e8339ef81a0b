//! Fuzz targets: a plugin's file, and the signature beside it.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use baton_plugin_api::abi::{ABI_REVISION, DESCRIPTOR_SYMBOL, FLAG_PANIC_ABORT, MAGIC};

use super::{elf as inspection, signature as signatures};
use crate::sys::sealed;

/// A file of these bytes, for as long as the descriptor is open.
fn file(bytes: &[u8]) -> (OwnedFd, PathBuf) {
    let file = sealed::seal(c"fuzz", bytes).expect("memory for a file");
    let path = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
    (file, path)
}

/// What is accepted is, to a second reader, an ELF library for this machine that can be mapped whole, and has the descriptor.
pub fn elf(bytes: &[u8]) -> bool {
    let (_open, path) = file(bytes);
    let file = File::open(path).expect("it is open");
    let descriptor = match inspection::inspect(&file, |name| name == "libhelper.so") {
        Ok(descriptor) => descriptor,
        Err(refusal) => {
            assert!(!refusal.why.is_empty());
            return false;
        }
    };
    assert_eq!(&bytes[..4], b"\x7fELF");
    assert_eq!(number(bytes, 16, 2), 3, "its type is ET_DYN");
    let (at, size, count) = (number(bytes, 32, 8), number(bytes, 54, 2), number(bytes, 56, 2));
    // 0xffff means that the number stands elsewhere: a file of so many segments is none of ours.
    for index in (0..count).filter(|_| count != 0xffff) {
        let segment = usize::try_from(at + index * size).expect("a segment within the file");
        let (offset, len) = (number(bytes, segment + 8, 8), number(bytes, segment + 32, 8));
        let end = offset.checked_add(len).expect("no segment wraps around");
        assert!(end <= bytes.len() as u64, "a segment ends beyond the file: SIGBUS once it is mapped");
    }
    assert_eq!(
        (descriptor.magic, descriptor.abi_revision, descriptor.flags & FLAG_PANIC_ABORT),
        (MAGIC, ABI_REVISION, 0)
    );
    let holds = |wanted: &[u8]| bytes.windows(wanted.len()).any(|part| part == wanted);
    let name = [DESCRIPTOR_SYMBOL.as_bytes(), b"\0"].concat();
    let start = [&MAGIC[..], &descriptor.size.to_ne_bytes(), &descriptor.abi_revision.to_ne_bytes()].concat();
    assert!(holds(&name) && holds(&start) && holds(&descriptor.mount), "the descriptor is not in the file");
    true
}

/// A number of up to eight bytes, in the order of this machine's.
fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes[at..at + len].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

// Of minisign's own documentation: a key, and its signature of "test".
const KEY: &str = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
const SIGNATURE: &str =
    "RUQf6LRCGA9i559r3g7V1qNyJDApGip8MfqcadIgT9CuhV3EMhHoN1mGTkUidF/z7SrlQgXdy8ofjb7bNJJylDOocrCo8KLzZwo";
const COMMENT: &str = "timestamp:1556193335\tfile:test";
const GLOBAL: &str = "y/rUw2y8/hOUYjZU71eHp/Wo1KZ40fGy2VJEDl34XMJM+TX48Ss/17u3IvIfbVR1FkZZSNCisQbuQY+bHwhEBg";

/// Of all files, only the one signature that there is of "test" is accepted; nobody but the key's owner can make another.
pub fn signature(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let (_open, copy) = file(b"test");
    let plugin = Path::new("/plugins/libx.so");
    if let Err(refusal) = signatures::verify_text(&text, &copy, plugin, &[KEY.into()]) {
        assert!(!refusal.why.is_empty() && refusal.hint.is_some());
        return false;
    }
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    // What comes after a signature in base64 is padding.
    assert!(lines[1].starts_with(SIGNATURE) && lines[3].starts_with(GLOBAL), "a forged signature: {text:?}");
    assert_eq!(lines[2].strip_prefix("trusted comment: ").map(str::trim_end), Some(COMMENT), "a forged comment");
    let (_open, other) = file(b"Test");
    assert!(signatures::verify_text(&text, &other, plugin, &[KEY.into()]).is_err(), "it signs any file");
    true
}
