//! Fuzz targets: one for each kind of bytes that the host reads and did not write. A target is an oracle beside the code that
//! it tries (`control::fuzz` and so on): it panics where a promise is broken, and says whether the input was accepted.
//!
//! This file lists them and runs the committed inputs, in `corpus/`, as an ordinary test. A build with `--cfg fuzzing` is
//! libFuzzer instead of the program, and drives the target that `BATON_FUZZ` names (see `tests/fuzz`). It refuses to be part
//! of any other build: host is a binary, and its internals stay private.

use crate::{child, config, control, master};

struct Target {
    name: &'static str,
    /// Returns whether the input was accepted.
    run: fn(&[u8]) -> bool,
    /// Most heap that is in use at once, in bytes for each byte of the input.
    #[cfg_attr(test, allow(dead_code, reason = "tests share a process, and its heap"))]
    heap: usize,
}

const TARGETS: [Target; 9] = [
    // The head and the body of a request, to a plugin and back.
    Target { name: "abi", run: child::fuzz::abi, heap: 400 },
    // TOML through validation, with settings.
    Target { name: "config", run: config::fuzz::load, heap: 4000 },
    // Messages between master and child.
    Target { name: "control", run: control::fuzz::message, heap: 400 },
    // A plugin's file.
    Target { name: "elf", run: master::fuzz::elf, heap: 400 },
    // The frames of HTTP/2 that go out.
    Target { name: "frames", run: child::fuzz::frames, heap: 10 },
    // Messages between two children.
    Target { name: "handover", run: child::fuzz::handover, heap: 40 },
    // The records of TLS that come in.
    Target { name: "records", run: child::fuzz::records, heap: 10 },
    // The signature beside a plugin.
    Target { name: "signature", run: master::fuzz::signature, heap: 40 },
    // The first bytes of a connection.
    Target { name: "sniff", run: child::fuzz::sniff, heap: 10 },
];

#[cfg(fuzzing)]
mod driver {
    //! One target under libFuzzer.
    #![allow(unsafe_code, reason = "the macro exports the function that libFuzzer calls")]

    use std::sync::LazyLock;

    use libfuzzer_sys::fuzz_target;
    use peak_alloc::PeakAlloc;

    use super::{TARGETS, Target};

    #[global_allocator]
    static HEAP: PeakAlloc = PeakAlloc;

    /// What a target may take whatever the input: tables of the parsers, buffers for files.
    const HEAP_BASE: usize = 1 << 20;

    static TARGET: LazyLock<&Target> = LazyLock::new(|| {
        let name = std::env::var("BATON_FUZZ").unwrap_or_default();
        TARGETS.iter().find(|target| target.name == name).unwrap_or_else(|| {
            let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
            eprintln!("BATON_FUZZ names no target; there are: {}", names.join(" "));
            std::process::exit(2)
        })
    });

    fuzz_target!(|bytes: &[u8]| {
        let target = *TARGET;
        HEAP.reset_peak_usage();
        let before = HEAP.current_usage();
        (target.run)(bytes);
        let used = HEAP.peak_usage().saturating_sub(before);
        let most = HEAP_BASE + target.heap * bytes.len();
        assert!(used <= most, "{} bytes of input took {used} bytes of heap: more than {most}", bytes.len());
    });
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    fn corpus() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().expect("names are UTF-8")).collect();
        names.sort();
        names
    }

    #[test]
    fn committed_inputs_keep_the_promises_of_their_targets() {
        for target in &TARGETS {
            let folder = corpus().join(target.name);
            let (mut accepted, mut refused) = (0, 0);
            for name in names(&folder) {
                let bytes = std::fs::read(folder.join(&name)).unwrap();
                // The name of the input comes before the panic.
                println!("{}/{name}", target.name);
                match (target.run)(&bytes) {
                    true => accepted += 1,
                    false => refused += 1,
                }
            }
            assert!(accepted > 0 && refused > 0, "{}: {accepted} accepted, {refused} refused", target.name);
        }
    }

    #[test]
    fn every_folder_of_inputs_belongs_to_a_target() {
        let targets: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
        assert_eq!(names(&corpus()), targets, "in the order of the alphabet");
    }
}
