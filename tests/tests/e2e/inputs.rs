//! What a server was started with and is gone or empty later: never taken for a wish. The reload, restart or watch that meets it
//! is refused, and what serves stays, on the same ports.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use baton_tests::server::{Server, Setup};
use baton_tests::status::Report;
use baton_tests::tls::Authority;
use baton_tests::{artifacts, wait};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

/// Serves the probe, with a path that only the configuration file names.
const CONFIG: &str = "[[server]]\nlisten = [\"127.0.0.1:0\"]\nhealth = \"/up\"\n";

fn configured() -> Setup {
    Setup::probe("v1").config(CONFIG)
}

fn file(server: &Server) -> std::path::PathBuf {
    server.bench.path().join("baton.toml")
}

/// What serves is what served, and answers as it did.
#[track_caller]
fn assert_untouched(server: &Server, worker: i32) {
    assert_eq!((server.worker(), server.probe().1), (worker, worker));
    assert_eq!((server.get("/up").status, server.get("/up").text().as_str()), (200, "ok\n"));
}

#[track_caller]
fn refused(server: &Server, stage: &str, words: &[&str]) -> Report {
    let worker = server.worker();
    let (code, report) = server.reload();
    assert_eq!((code, report.result.as_str(), report.stage.as_deref()), (409, "refused", Some(stage)), "{report:#?}");
    let said = format!("{} {}", report.error.clone().unwrap_or_default(), report.hint.clone().unwrap_or_default());
    assert!(words.iter().all(|word| said.contains(word)), "{words:?}: {said}");
    assert_eq!(server.worker(), worker);
    report
}

/// Puts something at the file's place.
type Spoil = fn(&Path);

const SPOILT: [(&str, Spoil, &str); 7] = [
    ("gone", |path| fs::remove_file(path).expect("failed to change a file"), "started with"),
    ("empty", |path| fs::write(path, "").expect("failed to change a file"), "sets no key any more"),
    (
        "comments",
        |path| fs::write(path, "# listen = 1\n\n#[tls]\n").expect("failed to change a file"),
        "sets no key any more",
    ),
    ("folder", |path| fs::create_dir(path).expect("failed to change a file"), "is a directory"),
    ("fifo", |path| mkfifo(path, Mode::S_IRUSR).expect("failed to change a file"), "no regular file"),
    ("dangling link", |path| symlink("nowhere", path).expect("failed to change a file"), "No such file"),
    ("huge", |path| fs::write(path, "#".repeat(5 << 20)).expect("failed to change a file"), "5242880 bytes"),
];

#[test]
fn configuration_that_is_gone_or_empty_is_refused() {
    let server = configured().start();
    let (worker, addr, path) = (server.worker(), server.addr(), file(&server));
    for (what, spoil, words) in SPOILT {
        if path.is_dir() {
            fs::remove_dir(&path).expect("failed to change a file");
        } else if path.symlink_metadata().is_ok() {
            fs::remove_file(&path).expect("failed to change a file");
        }
        if what == "gone" {
            fs::write(&path, CONFIG).expect("failed to change a file");
        }
        spoil(&path);
        let report = refused(&server, "config", &["baton.toml", words]);
        assert!(report.hint.is_some(), "{what}: {report:#?}");
        assert_untouched(&server, worker);
        server.signal(Signal::SIGHUP);
        server.wait_for("the signal's reload", |status| {
            status.operations.first().is_some_and(|last| last.op > report.op && last.result == "refused")
        });
    }
    assert_eq!(server.addr(), addr);
    // It is taken again once it is back.
    fs::remove_file(&path).expect("failed to change a file");
    server.bench.configure(&format!("{CONFIG}\n[plugins.probe]\nmount = \"/p\"\n"));
    server.switch();
    assert_eq!(server.get("/p/").status, 200);
}

#[test]
fn restart_and_watch_refuse_a_configuration_that_is_gone() {
    let server = configured().own_program().set("watch.enabled", "true").set("watch.rescan", "100ms").start();
    let worker = server.worker();
    fs::remove_file(file(&server)).expect("failed to change a file");
    let status = server.wait_for("the watcher to have been refused", |status| status.watcher.holding.is_some());
    assert!(status.watcher.holding.is_some_and(|why| why.contains("baton.toml")));
    assert_untouched(&server, worker);
    let report = crate::restart::refused(&server, "baton.toml");
    assert!(report.error.is_some_and(|error| error.contains("started with")));
    assert_untouched(&server, worker);
    fs::write(file(&server), "").expect("failed to change a file");
    crate::restart::refused(&server, "sets no key any more");
    assert_untouched(&server, worker);
    // What was known before a restart is known after it.
    server.bench.configure(CONFIG);
    crate::restart::restart(&server);
    fs::remove_file(file(&server)).expect("failed to change a file");
    refused(&server, "config", &["started with"]);
}

#[test]
fn configuration_that_appears_later_is_taken_and_must_stay() {
    let server = Setup::probe("v1").start();
    assert!(server.get("/up").header("x-probe").is_some(), "no file is there yet");
    // One that was never taken may go again.
    server.bench.configure("[[server]]\nlisten = [\"nowhere\"]\n");
    refused(&server, "config", &["nowhere"]);
    fs::remove_file(file(&server)).expect("failed to change a file");
    server.switch();
    server.bench.configure("[[server]]\nlisten = [\"127.0.0.1:0\"]\nhealth = \"/up\"\n");
    server.switch();
    assert_eq!(server.get("/up").text(), "ok\n");
    fs::remove_file(file(&server)).expect("failed to change a file");
    refused(&server, "config", &["started with"]);
    assert_eq!(server.get("/up").text(), "ok\n");
}

#[test]
fn empty_configuration_at_the_start_may_stay_empty() {
    let server = Setup::probe("v1").config("# nothing yet\n").listen(&["127.0.0.1:0"]).start();
    server.switch();
    fs::remove_file(file(&server)).expect("failed to change a file");
    refused(&server, "config", &["started with"]);
}

#[test]
fn certificate_or_key_that_is_gone_or_blocks_is_refused() {
    let authority = Authority::new();
    let setup = Setup::probe("v1")
        .config("[[server]]\nlisten = [\"127.0.0.1:0\"]\ntls = [{ cert = \"a.pem\", key = \"a.key\" }]\n");
    authority.issue(&["a.example"]).write(setup.bench().path(), "a");
    let server = setup.start();
    for name in ["a.pem", "a.key"] {
        let path = server.bench.path().join(name);
        let kept = fs::read(&path).expect("failed to change a file");
        for (what, spoil) in [
            ("gone", (|path| fs::remove_file(path).expect("failed to change a file")) as Spoil),
            ("empty", |path| fs::write(path, "").expect("failed to change a file")),
            ("fifo", |path| {
                fs::remove_file(path)
                    .map(|()| mkfifo(path, Mode::S_IRUSR).expect("failed to change a file"))
                    .expect("failed to change a file")
            }),
        ] {
            spoil(&path);
            refused(&server, "tls", &[name]);
            assert_eq!(server.status().listeners[0].scheme, "https", "{what}");
            // Not through a FIFO, whose other end nobody has.
            let _ = fs::remove_file(&path);
            fs::write(&path, &kept).expect("failed to change a file");
        }
    }
    server.switch();
}

#[test]
fn plugin_folder_that_is_gone_or_emptied_is_refused() {
    let setup = Setup::probe("v1");
    let other = setup.bench().path().join("other.so");
    fs::copy(artifacts::probe("v2"), &other).expect("failed to change a file");
    let mount = format!("[plugins.other]\nfile = \"{}\"\nmount = \"/other\"\n", other.display());
    setup.bench().configure(&mount);
    let server = setup.start();
    let (worker, folder) = (server.worker(), server.bench.plugins());
    let away = server.bench.path().join("away");
    // One is left that does not lie in the folder: the set would not be empty.
    fs::rename(&folder, &away).expect("failed to change a file");
    refused(&server, "snapshot", &["plugin folder", "put it back"]);
    fs::create_dir(&folder).expect("failed to change a file");
    refused(&server, "snapshot", &["no plugin in the plugin folder: probe would be gone", "--allow-empty"]);
    assert_eq!((server.worker(), server.probe().1, server.get("/other/").status), (worker, worker, 200));
    // Who means it says so.
    server.cli(&["reload", "--allow-empty", "--name", &server.name]).assert_code(0);
    assert_eq!((server.get("/").status, server.get("/other/").status), (404, 200));
    fs::remove_dir(&folder).expect("failed to change a file");
    fs::rename(&away, &folder).expect("failed to change a file");
    server.switch();
    wait::until("the probe to be back", wait::LONG, || (server.probe().0 == "v1").then_some(()));
}
