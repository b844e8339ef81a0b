//! The harness itself: fixtures that are what they claim to be, and processes that cannot be left behind.

use std::path::Path;
use std::process::{Command, Stdio};

use baton_tests::server::Workbench;
use baton_tests::{artifacts, elf, process, wait};

/// Offsets at which two files of the same length differ.
fn differences(one: &Path, other: &Path) -> Vec<usize> {
    let read = |path: &Path| std::fs::read(path).expect("failed to read a library");
    let (one, other) = (read(one), read(other));
    assert_eq!(one.len(), other.len());
    (0..one.len()).filter(|at| one[*at] != other[*at]).collect()
}

#[test]
fn a_tethered_program_dies_with_the_thread_that_started_it() {
    let tether = artifacts::own_binary("tether");
    let mut child = std::thread::spawn(move || {
        let child = Command::new(tether).args(["sleep", "600"]).stdin(Stdio::null()).spawn().expect("failed to start");
        let pid = child.id().cast_signed();
        // Only then is the tie made for sure.
        wait::until("the tether to become the program", wait::LONG, || {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
            (name.trim() == "sleep").then_some(())
        });
        child
    })
    .join()
    .expect("the thread failed");
    let status = wait::until("its end", wait::LONG, || child.try_wait().expect("failed to wait"));
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    assert!(!process::is_alive(child.id().cast_signed()));
}

#[test]
fn versions_of_the_probe_are_different_files() {
    let (one, two) = (artifacts::probe("v1"), artifacts::probe("v2"));
    assert_ne!(std::fs::read(&one).expect("built"), std::fs::read(&two).expect("built"));
    assert_eq!(one, artifacts::probe("v1"));
}

#[test]
fn damaged_libraries_differ_from_the_good_one_in_one_thing() {
    let bench = Workbench::new();
    let good = artifacts::probe("v1");
    let machine = differences(&good, &elf::other_machine(&good, bench.path()));
    assert!(machine.iter().all(|at| (18..20).contains(at)) && !machine.is_empty(), "{machine:?}");
    assert_eq!(differences(&good, &elf::other_abi(&good, bench.path(), 1)).len(), 1);
    let length = |path: &Path| std::fs::metadata(path).expect("it exists").len();
    assert_eq!(length(&elf::truncated(&good, bench.path(), 50)), length(&good) / 2);
}

#[test]
fn a_library_built_with_origin_says_so() {
    let origin = std::fs::read(artifacts::probe_with_flag("origin", "link-arg=-Wl,-rpath,$ORIGIN/lib")).expect("built");
    assert!(origin.windows(11).any(|window| window == b"$ORIGIN/lib"));
    let good = std::fs::read(artifacts::probe("v1")).expect("built");
    assert!(!good.windows(7).any(|window| window == b"$ORIGIN"));
}

#[test]
fn plugins_are_swapped_by_rename_and_written_over_in_place() {
    let bench = Workbench::new();
    let (one, two) = (bench.path().join("one"), bench.path().join("two"));
    std::fs::write(&one, "one").expect("failed to write");
    std::fs::write(&two, "number two").expect("failed to write");
    let inode = || std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(bench.plugin_file("x")).expect("it exists"));
    bench.install("x", &one);
    let first = inode();
    bench.overwrite("x", &two);
    assert_eq!((inode(), std::fs::read(bench.plugin_file("x")).expect("it exists")), (first, b"number two".to_vec()));
    bench.install("x", &one);
    assert_ne!(inode(), first);
}
