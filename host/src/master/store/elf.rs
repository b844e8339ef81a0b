//! What a plugin's file says of itself, read as data: nothing of it runs, and no descriptor of the file is trusted beyond
//! its length. A file that passes can be mapped without SIGBUS and claims our ABI; whether that is true its load will tell.

use std::fs::File;
use std::io;

use baton_plugin_api::abi::{ABI_REVISION, DESCRIPTOR_SYMBOL, Descriptor, FLAG_PANIC_ABORT, read_text};
use object::elf;
use object::read::elf::{Dyn, FileHeader, ProgramHeader, Sym};
use object::read::{ReadCache, ReadRef};
use object::{Endianness, elf::FileHeader64};

use super::Refusal;

fn refuse<T>(why: impl Into<String>, hint: Option<&'static str>) -> Result<T, Refusal> {
    Err(Refusal { why: why.into(), hint: hint.map(Into::into) })
}

const TRUNCATED: &str = "the file is cut short: copy it again, or write to a temporary name and rename";
const NOT_A_PLUGIN: &str = "a plugin is a cdylib crate that uses #[plugin] or #[handler] of baton-plugin-api";

#[cfg(target_arch = "x86_64")]
const MACHINE: (elf::Machine, &str) = (elf::EM_X86_64, "x86_64");
#[cfg(target_arch = "aarch64")]
const MACHINE: (elf::Machine, &str) = (elf::EM_AARCH64, "aarch64");
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("name this machine's ELF number here");

/// Checks `file`; `in_plugin_dir` tells whether a library of that name lies in the plugin folder.
pub fn inspect(file: &File, in_plugin_dir: impl Fn(&str) -> bool) -> Result<Descriptor, Refusal> {
    let len = file.metadata().map_err(|error| unreadable(&error))?.len();
    let mut start = [0; 4];
    match io::Read::read_exact(&mut &*file, &mut start) {
        _ if len == 0 => return refuse("it is empty", Some(TRUNCATED)),
        Ok(()) if start == elf::ELFMAG => {}
        Ok(()) | Err(_) => return refuse("it is no shared library (no ELF header)", Some(NOT_A_PLUGIN)),
    }
    let cache = ReadCache::new(file);
    let data = &cache;
    let header = FileHeader64::<Endianness>::parse(data);
    let (header, endian) = match header.and_then(|header| Ok((header, header.endian()?))) {
        Ok(parsed) => parsed,
        Err(_) if len < 64 => return refuse("it is cut short within its header", Some(TRUNCATED)),
        Err(_) => return refuse("it is no 64-bit ELF file", Some("build it for this machine")),
    };
    let machine = header.e_machine(endian);
    if machine != MACHINE.0 || endian != Endianness::default() {
        return refuse(
            format!("it is built for another machine (ELF machine {}, this is {})", machine.0, MACHINE.1),
            Some("build it for this machine"),
        );
    }
    if header.e_type(endian) != elf::ET_DYN {
        return refuse("it is no shared library", Some("set crate-type = [\"cdylib\"]"));
    }
    let cut = || Refusal { why: format!("it is cut short ({len} bytes)"), hint: Some(TRUNCATED.into()) };
    let segments = header.program_headers(endian, data).map_err(|_| cut())?;
    // A mapped page beyond the end of the file is SIGBUS at its first touch.
    let inside = |offset: u64, size: u64| offset.checked_add(size).is_some_and(|end| end <= len);
    if !segments.iter().all(|segment| inside(segment.p_offset(endian), segment.p_filesz(endian))) {
        return Err(cut());
    }
    let sections = header.sections(endian, data).map_err(|_| cut())?;
    let broken = |error: object::read::Error| Refusal { why: format!("it is broken: {error}"), hint: None };

    if let Some((dynamic, link)) = sections.dynamic(endian, data).map_err(broken)? {
        let strings = sections.strings(endian, data, link).map_err(broken)?;
        for entry in dynamic {
            let tag = entry.d_tag(endian);
            if !matches!(tag, elf::DT_NEEDED | elf::DT_RUNPATH | elf::DT_RPATH) {
                continue;
            }
            let text = entry.string(endian, strings).map_err(broken)?;
            check_dependency(tag, &String::from_utf8_lossy(text), &in_plugin_dir)?;
        }
    }

    let symbols = sections.symbols(endian, data, elf::SHT_DYNSYM).map_err(broken)?;
    let name = DESCRIPTOR_SYMBOL.as_bytes();
    let found = symbols.iter().find(|symbol| symbol.name(endian, symbols.strings()) == Ok(name));
    let Some(symbol) = found else {
        return refuse("it is no Baton plugin (no descriptor)", Some(NOT_A_PLUGIN));
    };
    let address = symbol.st_value(endian);
    let bytes = segments.iter().find_map(|segment| {
        let within = address.checked_sub(segment.p_vaddr(endian))?;
        let left = segment.p_filesz(endian).checked_sub(within)?;
        data.read_bytes_at(segment.p_offset(endian) + within, left.min(size_of::<Descriptor>() as u64)).ok()
    });
    let Some(descriptor) = bytes.and_then(Descriptor::from_bytes) else {
        return refuse("its descriptor is not one of Baton's", Some(NOT_A_PLUGIN));
    };
    check_descriptor(descriptor)
}

fn unreadable(error: &io::Error) -> Refusal {
    Refusal { why: format!("it cannot be read: {error}"), hint: None }
}

/// The child opens a copy under another name, so whatever is found relative to the original's place would not be.
fn check_dependency(tag: elf::DynamicTag, text: &str, in_plugin_dir: impl Fn(&str) -> bool) -> Result<(), Refusal> {
    const HINT: &str = "plugins are loaded from a private copy: link that library statically or install it system-wide";
    if tag != elf::DT_NEEDED {
        let bad = text
            .split(':')
            .find(|part| part.contains("$ORIGIN") || part.contains("${ORIGIN}") || !part.starts_with('/'));
        return match bad {
            Some(part) if !part.is_empty() => {
                refuse(format!("it looks for libraries in `{part}`, relative to its own place"), Some(HINT))
            }
            _ => Ok(()),
        };
    }
    if text.contains('/') && !text.starts_with('/') || text.contains("$ORIGIN") {
        return refuse(format!("it needs `{text}`, relative to its own place"), Some(HINT));
    }
    if in_plugin_dir(text) {
        return refuse(format!("it needs `{text}`, which lies in the plugin folder"), Some(HINT));
    }
    Ok(())
}

fn check_descriptor(descriptor: Descriptor) -> Result<Descriptor, Refusal> {
    if descriptor.abi_revision != ABI_REVISION {
        return refuse(
            format!(
                "it speaks ABI revision {}, this host {ABI_REVISION} (it was built with baton-plugin-api {})",
                descriptor.abi_revision,
                read_text(&descriptor.api_version),
            ),
            Some("rebuild it against the plugin API of this host's version"),
        );
    }
    if descriptor.flags & FLAG_PANIC_ABORT != 0 {
        return refuse(
            "it is built with panic = \"abort\": one panic would end every request",
            Some("remove panic = \"abort\" from its profile"),
        );
    }
    Ok(descriptor)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn of(bytes: &[u8]) -> Result<Descriptor, Refusal> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        inspect(&file, |_| false)
    }

    #[test]
    fn each_wrong_file_is_refused_with_its_own_reason() {
        let exe = std::fs::read("/proc/self/exe").unwrap();
        let machine = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            bytes[18] = 0xf3;
            bytes
        };
        let cases: [(&[u8], &str); 6] = [
            (b"", "empty"),
            (b"#!/bin/sh\necho no library\n", "no shared library"),
            (&exe[..32], "cut short"),
            (&exe[..4096], "cut short"),
            (&exe[..exe.len() - 1], "cut short"),
            (&machine(&exe), "another machine"),
        ];
        for (bytes, why) in cases {
            let refusal = of(bytes).unwrap_err();
            assert!(refusal.why.contains(why), "{why}: {refusal:?}");
            assert!(refusal.hint.is_some());
        }
        assert!(of(&exe).unwrap_err().why.contains("no descriptor"));
    }

    #[test]
    fn dependencies_that_a_copy_would_not_find_are_refused() {
        let check = |tag, text| check_dependency(tag, text, |name| name == "libhelper.so").is_err();
        assert!(check(elf::DT_RUNPATH, "$ORIGIN"));
        assert!(check(elf::DT_RUNPATH, "/usr/lib:${ORIGIN}/../lib"));
        assert!(check(elf::DT_RPATH, "lib"));
        assert!(check(elf::DT_NEEDED, "lib/libx.so"));
        assert!(check(elf::DT_NEEDED, "libhelper.so"));
        assert!(!check(elf::DT_NEEDED, "libc.so.6"));
        assert!(!check(elf::DT_RUNPATH, "/opt/lib"));
    }

    #[test]
    fn the_descriptor_must_be_of_our_revision_and_unwind() {
        let mut descriptor = Descriptor {
            magic: baton_plugin_api::abi::MAGIC,
            size: size_of::<Descriptor>() as u32,
            abi_revision: ABI_REVISION,
            flags: 0,
            reserved: 0,
            name: [0; 64],
            version: [0; 64],
            api_version: [0; 32],
            rustc: [0; 96],
            mount: [0; 128],
        };
        assert!(check_descriptor(descriptor).is_ok());
        descriptor.flags = FLAG_PANIC_ABORT;
        assert!(check_descriptor(descriptor).unwrap_err().why.contains("abort"));
        descriptor.abi_revision = 99;
        assert!(check_descriptor(descriptor).unwrap_err().why.contains("revision 99"));
    }
}
