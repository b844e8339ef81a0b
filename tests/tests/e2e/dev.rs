//! `baton dev` and the examples of the repository: build, serve, edit, swap; a broken edit leaves the old code serving.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use baton_tests::http;
use baton_tests::server::{Server, Setup};
use baton_tests::{artifacts, wait};

/// Building a plugin from nothing takes its time on a small machine.
const BUILD: Duration = Duration::from_secs(400);

/// A copy of an example outside of the workspace, as an author's own crate would be.
fn copy_of_example(name: &str, to: &Path) -> PathBuf {
    let (from, to) = (artifacts::workspace().join("examples").join(name), to.join(name));
    fs::create_dir_all(to.join("src")).expect("failed to make a folder");
    for entry in fs::read_dir(from.join("src")).expect("the example has sources").flatten() {
        fs::copy(entry.path(), to.join("src").join(entry.file_name())).expect("failed to copy");
    }
    let root = fs::read_to_string(artifacts::workspace().join("Cargo.toml")).expect("the workspace has a manifest");
    let section = |name: &str| {
        let from = root.find(&format!("[{name}]")).unwrap_or_else(|| panic!("no [{name}] in the workspace's manifest"));
        let text = &root[from..];
        text[..text[1..].find("\n[").map_or(text.len(), |end| end + 2)].to_string()
    };
    let manifest = fs::read_to_string(from.join("Cargo.toml")).expect("the example has a manifest");
    let api = format!("path = \"{}\"", artifacts::workspace().join("plugin-api").display());
    let manifest = manifest.replace("path = \"../../plugin-api\"", &api).replace("[lints]\nworkspace = true\n", "");
    // The package inherits from a workspace of its own, with the same words.
    fs::write(to.join("Cargo.toml"), format!("[workspace]\n\n{}\n{manifest}", section("workspace.package")))
        .expect("failed to write");
    // The same versions of everything, so that nothing is fetched.
    fs::copy(artifacts::workspace().join("Cargo.lock"), to.join("Cargo.lock")).expect("failed to copy");
    to
}

fn wait_for_text(server: &Server, what: &str, holds: impl Fn(&str) -> bool) -> String {
    let addr = server.addr();
    wait::try_until(BUILD, || {
        let text = http::get(addr, "/").ok()?.text();
        holds(&text).then_some(text)
    })
    .unwrap_or_else(|| panic!("waited in vain for {what}"))
}

#[test]
fn dev_builds_serves_swaps_on_edit_and_survives_a_broken_one() {
    let place = tempfile::tempdir().expect("failed to make a temporary directory");
    let copy = copy_of_example("hello", place.path());
    let target = artifacts::shared_target("dev-copy");
    let mut server = Setup::dev(&copy).env("CARGO_TARGET_DIR", &target.to_string_lossy()).spawn();
    wait::until("the first build to serve", BUILD, || server.try_status().ok()?.serving);
    let before = wait_for_text(&server, "the first answer", |text| !text.is_empty());
    let master = server.pid();
    let source = copy.join("src/lib.rs");
    let original = fs::read_to_string(&source).expect("failed to read");

    let word = before.split_whitespace().next().expect("a greeting").trim_end_matches(|c: char| !c.is_alphanumeric());
    assert!(original.contains(word), "`{word}` of {before:?} is not in the source");
    fs::write(&source, original.replace(word, "Salutations")).expect("failed to write");
    let after = wait_for_text(&server, "the edit", |text| text.contains("Salutations"));
    let serving = server.serving();

    fs::write(&source, "//! Broken.\nthis does not compile").expect("failed to write");
    let status = server.wait_for_up_to(BUILD, "the broken build to be reported", |status| {
        status.operations.iter().any(|op| op.result == "refused" && op.stage.as_deref() == Some("build"))
    });
    assert_eq!(status.serving, Some(serving.generation), "{status:#?}");
    assert_eq!(http::get(server.addr(), "/").expect("an answer").text(), after);
    assert!(server.log().contains("error"), "the compiler's words are not shown");

    fs::write(&source, &original).expect("failed to write");
    wait_for_text(&server, "the mended code", |text| text.contains(word) && !text.contains("Salutations"));
    assert_eq!(server.status().pid, master);

    // It lives as long as its terminal.
    server.signal(nix::sys::signal::Signal::SIGHUP);
    assert_eq!(server.wait_end(wait::LONG).code(), Some(0));
}

#[test]
fn hello_does_what_its_documentation_says() {
    let server = Setup::new().plugin("hello", &artifacts::plugin("hello")).start();
    let pid = server.worker();
    assert_eq!(server.get("/").status, 200);
    assert_eq!(server.get("/pid").text().trim(), pid.to_string());
    let mut sleeping = server.connect();
    let answer = sleeping.request("GET", "/sleep?ms=50").expect("an answer").text();
    assert_eq!(answer.matches(&pid.to_string()).count(), 2, "{answer:?}");
    assert_eq!(
        sleeping.request("GET", "/sleep?secs=1").expect("an answer").text().matches(&pid.to_string()).count(),
        2
    );
    assert_eq!(server.get("/?sleep=1").text().trim(), format!("ospid:{pid}"));
    let mut echo = server.connect();
    echo.send("POST", "/echo", &[], b"the same").expect("failed to send");
    assert_eq!(echo.receive().expect("an answer").text(), "the same");
}

#[test]
fn hello_keeps_a_sleeping_request_over_a_reload() {
    let server = Setup::new().plugin("hello", &artifacts::plugin("hello")).start();
    let old = server.worker();
    let mut sleeping = server.connect();
    sleeping.send("GET", "/?sleep=2", &[], b"").expect("failed to send");
    server.wait_for("the request", |status| status.serving().is_some_and(|one| one.load.requests_in_flight == 1));
    server.switch();
    let new = server.get("/pid").text().trim().parse::<i32>().expect("a pid");
    assert_ne!(new, old);
    assert_eq!(sleeping.receive().expect("the request was cut").text().trim(), format!("ospid:{old}"));
}

#[test]
fn an_axum_router_is_served_and_swapped() {
    let server = Setup::new().plugin("axum-app", &artifacts::plugin("axum-app")).start();
    let before = server.get("/");
    assert_eq!(before.status, 200, "{before:?}");
    let old = server.worker();
    server.switch();
    assert_ne!(server.worker(), old);
    assert_eq!(server.get("/").status, 200);
}
