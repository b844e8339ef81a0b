//! The floors of the building, held by reading the sources: who may use whom, where `unsafe` may stand, how files open,
//! how long they may be, what is never committed. ARCHITECTURE.md has the table; this is what enforces it.
//!
//! Each rule is also run on a source that breaks it, so that a reader that sees nothing cannot pass.

#[path = "floors/reader.rs"]
mod reader;
#[path = "floors/rules.rs"]
mod rules;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rules::Breach;

fn root() -> PathBuf {
    baton_tests::artifacts::workspace()
}

/// Every committed or new file that git does not ignore, relative to the root.
fn files() -> Vec<String> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"])
        .current_dir(root())
        .output()
        .expect("failed to run git");
    assert!(output.status.success(), "git ls-files failed: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("file names are UTF-8");
    let files: Vec<String> = text
        .split('\0')
        // A file that was deleted but not yet committed is still listed.
        .filter(|name| !name.is_empty() && root().join(name).exists())
        .map(str::to_string)
        .collect();
    assert!(files.len() > 50, "only {} files were found: this reads the wrong folder", files.len());
    files
}

fn sources() -> Vec<(String, String)> {
    let read = |name: String| {
        let text = fs::read_to_string(root().join(&name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        (name, text)
    };
    files().into_iter().filter(|name| name.ends_with(".rs")).map(read).collect()
}

#[track_caller]
fn assert_none(breaches: Vec<Breach>) {
    let lines: Vec<String> = breaches.iter().map(|breach| format!("  {breach}")).collect();
    assert!(breaches.is_empty(), "{} breaches:\n{}", breaches.len(), lines.join("\n"));
}

#[test]
fn every_file_of_the_host_uses_its_own_floor_or_lower_ones() {
    let sources = sources();
    let host: Vec<_> = sources.iter().filter(|(name, _)| name.starts_with("host/src/")).collect();
    let uses: usize = host.iter().map(|(name, text)| rules::host_uses(name, text).len()).sum();
    assert!(uses > 20, "only {uses} uses were found in the host: the reader sees nothing");
    assert_none(host.iter().flat_map(|(name, text)| rules::host_floors(name, text)).collect());
}

#[test]
fn every_file_of_the_plugin_side_uses_its_own_floor_or_lower_ones() {
    let sources = sources();
    assert_none(sources.iter().flat_map(|(name, text)| rules::plugin_floors(name, text)).collect());
}

#[test]
fn libraries_are_opened_in_one_place() {
    assert_none(sources().iter().flat_map(|(name, text)| rules::sole_users(name, text)).collect());
}

#[test]
fn unsafe_stands_only_behind_the_fences() {
    assert_none(sources().iter().flat_map(|(name, text)| rules::unsafe_code(name, text)).collect());
}

#[test]
fn every_file_opens_with_what_it_owns() {
    assert_none(sources().iter().flat_map(|(name, text)| rules::opening(name, text)).collect());
}

#[test]
fn no_file_is_above_900_lines() {
    assert_none(sources().iter().flat_map(|(name, text)| rules::length(name, text)).collect());
}

#[test]
fn no_shared_library_is_committed() {
    assert_none(files().iter().flat_map(|name| rules::committed(name)).collect());
}

#[test]
fn the_tests_never_link_the_host() {
    let manifest = fs::read_to_string(root().join("tests/Cargo.toml")).expect("the manifest of the tests");
    assert!(!manifest.contains("baton-host") && !manifest.contains("../host"), "tests drive the real binary only");
    assert!(Path::new(&root().join("host/Cargo.toml")).exists(), "the name to look for has changed");
}
