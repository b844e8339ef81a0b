//! Bad plugins: each is refused in one line that names the plugin and the cause, and the old code serves on, untouched.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use baton_tests::server::{Server, Setup};
use baton_tests::status::Report;
use baton_tests::{artifacts, elf, process};

/// What the report must say.
struct Expected<'a> {
    stage: &'a str,
    /// Parts of the one line, or of the hint, in any case.
    says: &'a [&'a str],
}

fn good() -> PathBuf {
    artifacts::probe("v1")
}

/// Puts `bad` in the place of the probe, in a server set up by `change`, and expects it to be refused without a trace.
#[track_caller]
fn refused(bad: impl FnOnce(&Path) -> PathBuf, change: impl FnOnce(Setup) -> Setup, expected: &Expected) -> Report {
    let server = change(Setup::probe("v1").set("start_timeout", "20s")).start();
    let file = bad(server.bench.path());
    server.bench.install("probe", &file);
    let report = assert_refused(&server, expected);
    server.cli(&["reload", "--name", &server.name]).assert_code(1);
    server.bench.install("probe", &artifacts::probe("v2"));
    let (code, after) = server.reload();
    assert_eq!((code, after.result.as_str()), (200, "switched"), "a good file after a bad one: {after:#?}");
    server.wait_settled();
    assert_eq!(server.probe().0, "v2");
    report
}

#[track_caller]
fn assert_refused(server: &Server, expected: &Expected) -> Report {
    let old = server.worker();
    let before = server.status().switches;
    let (code, report) = server.reload();
    assert_eq!((code, report.result.as_str()), (409, "refused"), "{report:#?}");
    assert_eq!(report.stage.as_deref(), Some(expected.stage), "{report:#?}");
    assert_eq!(report.plugin.as_deref(), Some("probe"), "{report:#?}");
    assert_eq!(report.serving, Some(1), "{report:#?}");
    let error = report.error.as_deref().unwrap_or_default();
    assert!(!error.is_empty() && !error.contains('\n') && error.len() < 400, "one line, please: {error:?}");
    let all = format!("{error} {}", report.hint.as_deref().unwrap_or_default()).to_lowercase();
    for part in expected.says {
        assert!(all.contains(&part.to_lowercase()), "the report does not say `{part}`: {report:#?}");
    }
    assert_eq!(server.probe(), ("v1".into(), old), "the old code must serve on");
    let status = server.wait_drained();
    assert_eq!((status.switches, status.crashes), (before, 0), "{status:#?}");
    let children = process::children(server.pid());
    assert!(children.iter().all(|child| !child.is_zombie()), "a zombie is left: {children:?}");
    report
}

fn as_it_is(setup: Setup) -> Setup {
    setup
}

/// A plugin whose init fails in the way named.
#[track_caller]
fn init_fails(fault: &str, expected: &Expected) -> Report {
    let change = |setup: Setup| setup.set("plugins.probe.config.init", fault);
    refused(|_| artifacts::plugin("broken"), change, expected)
}

fn written(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, bytes).expect("failed to write a file");
    path
}

#[test]
fn a_text_file_is_refused() {
    let text = b"#!/bin/sh\n# long enough that no header is cut off\necho this is a text file, and not a library\n";
    refused(|dir| written(dir, "text", text), as_it_is, &Expected { stage: "snapshot", says: &["ELF"] });
}

#[test]
fn an_empty_file_is_refused() {
    refused(|dir| written(dir, "empty", b""), as_it_is, &Expected { stage: "snapshot", says: &["empty"] });
}

#[test]
fn a_truncated_file_is_refused_wherever_it_was_cut() {
    let server = Setup::probe("v1").start();
    for percent in [1, 10, 50, 90, 99] {
        server.bench.install("probe", &elf::truncated(&good(), server.bench.path(), percent));
        assert_refused(&server, &Expected { stage: "snapshot", says: &[] });
    }
}

#[test]
fn a_file_for_another_machine_is_refused() {
    refused(|dir| elf::other_machine(&good(), dir), as_it_is, &Expected { stage: "snapshot", says: &["machine"] });
}

#[test]
fn a_plugin_of_a_newer_abi_is_refused() {
    refused(|dir| elf::other_abi(&good(), dir, 1), as_it_is, &Expected { stage: "snapshot", says: &["ABI"] });
}

#[test]
fn a_plugin_of_an_older_abi_is_refused() {
    refused(
        |dir| elf::other_abi(&good(), dir, -1),
        as_it_is,
        &Expected { stage: "snapshot", says: &["ABI", "rebuild"] },
    );
}

#[test]
fn a_library_that_is_no_plugin_is_refused() {
    refused(
        |_| artifacts::plugin("plain"),
        as_it_is,
        &Expected { stage: "snapshot", says: &["plugin", "baton-plugin-api"] },
    );
}

#[test]
fn a_plugin_that_aborts_on_panic_is_refused() {
    refused(
        |_| artifacts::probe_with_flag("panic-abort", "panic=abort"),
        as_it_is,
        &Expected { stage: "snapshot", says: &["panic"] },
    );
}

#[test]
fn a_plugin_that_looks_for_libraries_beside_itself_is_refused() {
    refused(
        |_| artifacts::probe_with_flag("origin", "link-arg=-Wl,-rpath,$ORIGIN/lib"),
        as_it_is,
        &Expected { stage: "snapshot", says: &["$ORIGIN"] },
    );
}

#[test]
fn the_same_file_twice_is_refused() {
    let server = Setup::probe("v1").set("plugins.twin.mount", "/twin").start();
    let old = server.worker();
    server.bench.install("twin", &good());
    let (code, report) = server.reload();
    assert_eq!((code, report.result.as_str()), (409, "refused"), "{report:#?}");
    let all = format!("{:?} {:?} {:?}", report.plugin, report.error, report.hint);
    assert!(all.contains("twin") && all.contains("probe"), "{report:#?}");
    assert_eq!(server.probe(), ("v1".into(), old));
}

#[test]
fn an_init_that_panics_is_refused_with_its_message() {
    init_fails("panic", &Expected { stage: "load", says: &["this plugin panics in init"] });
}

#[test]
fn an_init_that_answers_an_error_is_refused_with_its_message() {
    init_fails("error", &Expected { stage: "load", says: &["the database is on holiday"] });
}

#[test]
fn a_configuration_that_does_not_fit_the_plugin_is_refused() {
    let change = |setup: Setup| setup.set("plugins.probe.config.init", "7");
    refused(
        |_| artifacts::plugin("broken"),
        change,
        &Expected { stage: "load", says: &["init", "plugins.probe.config"] },
    );
}

fn init_never_ends(fault: &str) {
    let limit = Duration::from_millis(1500);
    let server = Setup::probe("v1").set("start_timeout", "1500ms").set("plugins.probe.config.init", fault).start();
    server.bench.install("probe", &artifacts::plugin("broken"));
    let begun = Instant::now();
    assert_refused(&server, &Expected { stage: "load", says: &["1.5s", "start_timeout"] });
    assert!(begun.elapsed() >= limit, "refused before its time");
}

#[test]
fn an_init_that_hangs_is_refused_when_its_time_is_over() {
    init_never_ends("hang");
}

#[test]
fn an_init_that_blocks_its_thread_is_refused_when_its_time_is_over() {
    init_never_ends("block");
}

/// The process ended without a word to the master: what it printed last is quoted.
fn init_ends_the_process(fault: &str, says: &[&str]) {
    let report = init_fails(fault, &Expected { stage: "load", says });
    let detail = report.detail.as_deref().unwrap_or_default();
    assert!(detail.contains("last words of the broken plugin"), "its output is not quoted: {report:#?}");
}

#[test]
fn an_init_that_exits_is_refused_and_its_output_quoted() {
    init_ends_the_process("exit", &["exit"]);
}

#[test]
fn an_init_that_aborts_is_refused_and_its_output_quoted() {
    init_ends_the_process("abort", &["SIGABRT"]);
}

#[test]
fn an_init_that_crashes_is_refused_and_its_output_quoted() {
    init_ends_the_process("segfault", &["SIGSEGV"]);
}
