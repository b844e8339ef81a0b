//! The watcher: whatever changes of plugins, certificates and configuration is taken once it is complete, by one reload; and what
//! was refused or rolled back is not tried again until it is something else.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use baton_tests::server::{Server, Setup};
use baton_tests::status::{Report, Status};
use baton_tests::tls::{Authority, Version};
use baton_tests::{artifacts, wait};

/// With the probe in version v1, and its watcher at work.
fn watching(setup: Setup) -> Server {
    let server = setup.arg("--watch").start();
    server.wait_for("the first look", |status| status.watcher.looks > 0 && status.watcher.activity == "watching");
    server
}

/// Waits until the watcher has looked at all that there is now, and wants nothing.
#[track_caller]
fn settled(server: &Server) -> Status {
    let looks = server.status().watcher.looks;
    // The second of these began after this call.
    server.wait_for("the watcher to have looked", |status| {
        status.watcher.looks >= looks + 2 && status.watcher.activity == "watching"
    })
}

/// One that looks often besides: a test can wait until it has looked, instead of for nothing to happen.
fn restless(setup: Setup) -> Setup {
    setup.set("watch.rescan", "100ms")
}

#[track_caller]
fn wait_version(server: &Server, version: &str) {
    wait::until(&format!("{version} to answer"), wait::LONG, || (server.probe().0 == version).then_some(()));
}

/// What the watcher has asked for, newest first.
fn triggered(status: &Status) -> Vec<&Report> {
    status.operations.iter().filter(|report| report.cause.by == "watcher").collect()
}

#[track_caller]
fn assert_results(status: &Status, results: &[&str]) {
    let all: Vec<_> = triggered(status).iter().map(|report| report.result.as_str()).collect();
    assert_eq!(all, results, "{:#?}", status.operations);
}

/// Puts other bytes into the file of the probe, in place.
fn spoil(server: &Server, bytes: &[u8]) {
    fs::write(server.bench.plugin_file("probe"), bytes).expect("failed to write");
}

/// The next look after a change of the times alone.
fn touch(server: &Server) {
    let file = File::options().append(true).open(server.bench.plugin_file("probe")).expect("failed to open");
    file.set_modified(std::time::SystemTime::now()).expect("failed to touch");
}

#[test]
fn a_plugin_is_taken_as_it_is_renamed_into_place_and_as_it_is_copied_over() {
    let server = watching(restless(Setup::probe("v1")));
    let pid = server.pid();
    server.bench.install("probe", &artifacts::probe("v2"));
    wait_version(&server, "v2");
    server.bench.overwrite("probe", &artifacts::probe("v3"));
    wait_version(&server, "v3");
    let status = settled(&server);
    assert_results(&status, &["switched", "switched"]);
    let last = status.watcher.last.as_ref().expect("it has asked");
    assert_eq!((last.op, last.result.as_str()), (Some(status.last_op()), "switched"));
    assert_eq!(last.changed, [server.bench.plugin_file("probe").display().to_string()]);
    assert_eq!((status.pid, status.watcher.by.as_str(), &status.watcher.holding), (pid, "events", &None));
    let shown = server.cli(&["status", "--name", &server.name]).stdout;
    assert!(shown.contains("watches    ") && shown.contains("libprobe.so changed at 20"), "{shown}");
}

#[test]
fn nothing_is_watched_unless_it_is_asked_for() {
    let server = Setup::probe("v1").start();
    assert_eq!(server.status().watcher.activity, "off");
    server.bench.install("probe", &artifacts::probe("v2"));
    // On from the next reload, which somebody has to ask for.
    server.bench.configure("[watch]\nenabled = true\n");
    server.switch();
    server.wait_for("the watcher to be on", |status| status.watcher.activity == "watching");
    server.bench.install("probe", &artifacts::probe("v3"));
    wait_version(&server, "v3");
    // And off again, by itself.
    server.bench.configure("[watch]\nenabled = false\n");
    let status = server.wait_for("the watcher to be off", |status| status.watcher.activity == "off");
    assert_results(&status, &["switched", "switched"]);
}

#[test]
fn a_slow_copy_is_waited_for() {
    let server = watching(Setup::probe("v1"));
    let bytes = fs::read(artifacts::probe("v2")).expect("failed to read");
    let (half, rest) = bytes.split_at(bytes.len() / 2);
    let mut copy = File::create(server.bench.plugin_file("probe")).expect("failed to create");
    copy.write_all(half).expect("failed to write");
    let looks = server.status().watcher.looks;
    // Longer than it needs to settle.
    let status = server.wait_for("some looks at one half", |status| status.watcher.looks >= looks + 4);
    assert_eq!((status.watcher.activity.as_str(), triggered(&status).len()), ("settling", 0));
    copy.write_all(rest).expect("failed to write");
    drop(copy);
    wait_version(&server, "v2");
    let ended = |status: &Status| status.operations.iter().all(|report| report.result != "running");
    assert_results(&server.wait_for("the report", ended), &["switched"]);
}

#[test]
fn a_half_that_looks_complete_is_refused_and_the_whole_is_taken() {
    let server = watching(Setup::probe("v1"));
    let bytes = fs::read(artifacts::probe("v2")).expect("failed to read");
    spoil(&server, &bytes[..bytes.len() / 2]);
    server.wait_for("the half to be refused", |status| status.watcher.holding.is_some());
    assert_eq!(server.probe().0, "v1");
    spoil(&server, &bytes);
    wait_version(&server, "v2");
    let status = server.wait_for("the report", |status| status.watcher.holding.is_none());
    assert_results(&status, &["switched", "refused"]);
}

#[test]
fn one_that_is_written_to_for_ever_is_refused_and_taken_once_it_is_closed() {
    let setup = Setup::probe("v1").set("watch.settle", "50ms").set("watch.settle_max", "300ms");
    let server = watching(setup);
    server.bench.install("probe", &artifacts::probe("v2"));
    let open = File::options().append(true).open(server.bench.plugin_file("probe")).expect("failed to open");
    let status = server.wait_for("it to be refused", |status| status.watcher.holding.is_some());
    assert!(status.watcher.holding.is_some_and(|why| why.contains("still being written")));
    // Not a byte of it changes.
    drop(open);
    wait_version(&server, "v2");
}

#[test]
fn three_plugins_at_once_are_one_reload() {
    let setup = restless(Setup::probe("v1")).config(
        "[[server]]\nlisten = [\"127.0.0.1:0\"]\n[plugins.hello]\nmount = \"/hello\"\n[plugins.broken]\nmount = \"/broken\"\n",
    );
    let server = watching(setup);
    // Built first: that takes longer than the watcher waits.
    let files = [
        ("hello", artifacts::plugin("hello")),
        ("broken", artifacts::plugin("broken")),
        ("probe", artifacts::probe("v2")),
    ];
    for (name, file) in &files {
        server.bench.install(name, file);
    }
    wait_version(&server, "v2");
    let status = settled(&server);
    assert_results(&status, &["switched"]);
    let changes = status.operations[0].plugins.as_ref().expect("it switched");
    assert_eq!((changes.added.len(), changes.changed.len()), (2, 1), "{changes:?}");
}

/// A new folder beside the plugins', with the probe of that version.
fn folder(server: &Server, name: &str, version: &str) -> PathBuf {
    let dir = server.bench.path().join(name);
    fs::create_dir_all(&dir).expect("failed to make a folder");
    fs::copy(artifacts::probe(version), dir.join("libprobe.so")).expect("failed to copy");
    dir
}

#[test]
fn the_whole_folder_may_be_replaced() {
    let server = watching(Setup::probe("v1"));
    let plugins = server.bench.plugins();
    let file = artifacts::probe("v2");
    fs::remove_dir_all(&plugins).expect("failed to remove");
    fs::create_dir(&plugins).expect("failed to create");
    fs::copy(file, server.bench.plugin_file("probe")).expect("failed to copy");
    wait_version(&server, "v2");
    let new = folder(&server, "new", "v3");
    fs::rename(&plugins, server.bench.path().join("old")).expect("failed to rename");
    fs::rename(new, &plugins).expect("failed to rename");
    wait_version(&server, "v3");
    // It is the new one that is watched.
    server.bench.install("probe", &artifacts::probe("v4"));
    wait_version(&server, "v4");
    // Away for longer, and back.
    fs::remove_dir_all(&plugins).expect("failed to remove");
    let status = server.wait_for("its absence to be refused", |status| status.watcher.holding.is_some());
    assert!(status.watcher.holding.is_some_and(|why| why.contains("the plugin folder")));
    assert_eq!(server.probe().0, "v4");
    fs::rename(folder(&server, "newer", "v5"), &plugins).expect("failed to rename");
    wait_version(&server, "v5");
}

fn swap(link: &Path, to: &str) {
    let next = link.with_extension("next");
    symlink(to, &next).expect("failed to link");
    fs::rename(next, link).expect("failed to rename a link");
}

#[test]
fn a_link_may_be_swapped_wherever_it_stands_on_the_way() {
    let setup = Setup::new();
    let root = setup.bench().path().to_owned();
    fs::remove_dir(setup.bench().plugins()).expect("failed to remove");
    for (number, version) in ["v1", "v2"].iter().enumerate() {
        let dir = root.join(format!("releases/{}/plugins", number + 1));
        fs::create_dir_all(&dir).expect("failed to make a folder");
        fs::copy(artifacts::probe(version), dir.join("libprobe.so")).expect("failed to copy");
    }
    symlink("releases/1", root.join("current")).expect("failed to link");
    symlink("current/plugins", root.join("plugins")).expect("failed to link");
    let server = watching(setup);
    assert_eq!(server.probe().0, "v1");
    swap(&root.join("current"), "releases/2");
    wait_version(&server, "v2");
    swap(&root.join("plugins"), "releases/1/plugins");
    wait_version(&server, "v1");
    // A plugin that is a link itself, and what it leads to.
    let elsewhere = root.join("elsewhere.bin");
    fs::copy(artifacts::probe("v3"), &elsewhere).expect("failed to copy");
    swap(&root.join("releases/1/plugins/libprobe.so"), elsewhere.to_str().expect("a short path"));
    wait_version(&server, "v3");
    fs::copy(artifacts::probe("v4"), &elsewhere).expect("failed to copy");
    wait_version(&server, "v4");
    assert_results(&server.wait_for("rest", |status| status.watcher.activity == "watching"), &["switched"; 4]);
}

#[test]
fn the_configuration_is_watched_and_a_bad_one_is_refused_once() {
    const FIRST: &str = "[[server]]\nlisten = [\"127.0.0.1:0\"]\n";
    let server = watching(restless(Setup::probe("v1").config(FIRST)));
    server.bench.configure(&format!("{FIRST}health = \"/up\"\n"));
    wait::until("the health path", wait::LONG, || (server.get("/up").status == 200).then_some(()));
    server.bench.configure(&format!("{FIRST}heath = \"/up\"\n"));
    let status = server.wait_for("it to be refused", |status| status.watcher.holding.is_some());
    assert!(status.watcher.holding.is_some_and(|why| why.contains("heath")));
    assert_results(&settled(&server), &["refused", "switched"]);
    // As an editor does it: the new file takes the name of the old one.
    let path = server.bench.path().join("baton.toml");
    fs::rename(&path, path.with_extension("toml~")).expect("failed to rename");
    fs::write(path.with_extension("swp"), FIRST).expect("failed to write");
    fs::rename(path.with_extension("swp"), &path).expect("failed to rename");
    wait::until("the health path to go", wait::LONG, || (server.get("/up").status == 404).then_some(()));
    assert_results(&settled(&server), &["switched", "refused", "switched"]);
}

#[test]
fn a_renewed_certificate_is_shown_and_one_without_its_key_is_waited_for() {
    let authority = Authority::new();
    let setup = Setup::probe("v1")
        .config("[[server]]\nlisten = [\"127.0.0.1:0\"]\ntls = [{ cert = \"a.pem\", key = \"a.key\" }]\n");
    let dir = setup.bench().path().to_owned();
    authority.issue(&["a.example"]).write(&dir, "a");
    let server = watching(setup);
    let renewed = authority.issue(&["a.example"]);
    let (cert, key) = renewed.write(&dir, "renewed");
    fs::rename(cert, dir.join("a.pem")).expect("failed to rename");
    let status = server.wait_for("the half to be refused", |status| status.watcher.holding.is_some());
    assert!(status.watcher.holding.is_some_and(|why| why.contains("is not the key of")));
    fs::rename(key, dir.join("a.key")).expect("failed to rename");
    wait::until("the new certificate", wait::LONG, || {
        let (_, agreed) = authority.client(Version::V13).connect(server.addr()).expect("failed to connect");
        (agreed.shown == renewed.der).then_some(())
    });
    let status = server.wait_for("the report", |status| status.watcher.holding.is_none());
    assert_results(&status, &["switched", "refused"]);
}

#[test]
fn a_bad_file_is_refused_once_and_a_good_one_is_taken_after_it() {
    let server = watching(restless(Setup::probe("v1")));
    spoil(&server, b"this is no plugin");
    let status = server.wait_for("it to be refused", |status| status.watcher.holding.is_some());
    assert!(status.watcher.holding.as_ref().is_some_and(|why| why.contains("libprobe.so")), "{:?}", status.watcher);
    touch(&server);
    assert_results(&settled(&server), &["refused"]);
    // The same content in another file.
    server.bench.install("probe", &{
        let same = server.bench.path().join("same");
        fs::write(&same, b"this is no plugin").expect("failed to write");
        same
    });
    let status = settled(&server);
    assert_results(&status, &["refused"]);
    assert!(status.watcher.holding.is_some());
    assert!(server.cli(&["status", "--name", &server.name]).stdout.contains("not tried again until it changes"));
    spoil(&server, b"nor is this");
    // Refused, not merely begun: it would find the next content.
    server.wait_for("the other to be refused", |status| {
        triggered(status).iter().map(|report| report.result.as_str()).eq(["refused", "refused"])
    });
    server.bench.install("probe", &artifacts::probe("v2"));
    wait_version(&server, "v2");
    let status = settled(&server);
    assert_results(&status, &["switched", "refused", "refused"]);
    assert_eq!(status.watcher.holding, None);
}

#[test]
fn what_was_rolled_back_is_not_taken_until_it_changes() {
    let server = watching(restless(Setup::probe("v1")));
    server.bench.install("probe", &artifacts::probe("v2"));
    wait_version(&server, "v2");
    server.wait_drained();
    server.cli(&["rollback", "--name", &server.name]).assert_code(0);
    assert_eq!(server.probe().0, "v1");
    touch(&server);
    server.bench.overwrite("probe", &artifacts::probe("v2"));
    assert_results(&settled(&server), &["switched"]);
    assert_eq!(server.probe().0, "v1");
    server.bench.install("probe", &artifacts::probe("v3"));
    wait_version(&server, "v3");
    assert_eq!(server.status().pinned, None);
}

#[test]
fn what_somebody_else_has_reloaded_is_not_reloaded_again() {
    let server = watching(Setup::probe("v1").set("watch.settle", "1s"));
    let looks = server.status().watcher.looks;
    server.bench.install("probe", &artifacts::probe("v2"));
    server.switch();
    server.wait_for("the watcher to have looked", |status| {
        status.watcher.looks > looks && status.watcher.activity == "watching"
    });
    assert_results(&server.status(), &[]);
    assert_eq!(server.probe().0, "v2");
}

#[test]
fn without_events_it_polls_and_says_so() {
    let server = watching(Setup::probe("v1").set("watch.events", "false").set("watch.poll", "100ms"));
    let status = server.status();
    assert_eq!(status.watcher.by, "polling");
    assert!(status.watcher.why.is_some_and(|why| why.contains("watch.events")));
    server.bench.install("probe", &artifacts::probe("v2"));
    wait_version(&server, "v2");
    spoil(&server, b"this is no plugin");
    server.wait_for("it to be refused", |status| status.watcher.holding.is_some());
    touch(&server);
    assert_results(&settled(&server), &["refused", "switched"]);
}

#[test]
fn it_watches_on_after_a_restart_in_place_and_after_one_that_fails() {
    let server = watching(Setup::probe("v1").own_program());
    server.cli(&["restart", "--name", &server.name]).assert_code(0);
    server.wait_for("the watcher of the next program", |status| status.watcher.activity == "watching");
    server.bench.install("probe", &artifacts::probe("v2"));
    wait_version(&server, "v2");
    // One that says it could take over, and then fails to.
    let good = server.bench.path().join("good");
    fs::rename(server.bench.program(), &good).expect("failed to rename");
    server.cli(&["restart", "--name", &server.name]).assert_code(1);
    server.bench.install("probe", &artifacts::probe("v3"));
    wait_version(&server, "v3");
    assert_eq!(server.status().pid, server.pid());
}
