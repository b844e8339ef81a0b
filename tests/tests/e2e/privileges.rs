//! Privileges: what a plugin's process may do, who may write a plugin, and who must have signed it.
//!
//! Tests named `as_root_` need root to become another user; `tests/run` leaves them out for everybody else.

use std::fs::{self, Permissions};
use std::io::Cursor;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use baton_tests::server::{Server, Setup, Workbench, answered_by};
use baton_tests::status::Report;
use baton_tests::tls::Authority;
use baton_tests::{artifacts, process, wait};
use minisign::KeyPair;
use nix::sys::signal::Signal;

use crate::{slow_request, switch_to};

/// On every system, with a group of its own.
const USER: &str = "nobody";

fn nobody() -> (u32, u32) {
    let user = nix::unistd::User::from_name(USER).expect("the users").expect("a user named nobody");
    (user.uid.as_raw(), user.gid.as_raw())
}

/// The probe, run as nobody.
fn unprivileged() -> Setup {
    let setup = Setup::probe("v1").set("user", USER);
    setup.bench().open_to_all();
    setup
}

#[track_caller]
fn assert_without_rights(pid: i32) {
    let (uid, gid) = nobody();
    assert_eq!(process::status_field(pid, "Uid:"), vec![uid.to_string(); 4]);
    assert_eq!(process::status_field(pid, "Gid:"), vec![gid.to_string(); 4]);
    assert_eq!(process::status_field(pid, "Groups:"), [gid.to_string()]);
    assert_eq!(process::status_field(pid, "NoNewPrivs:"), ["1"]);
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(process::status_field(pid, set), ["0000000000000000"], "{set}");
    }
}

/// What the plugin is told when it tries.
fn attempt(server: &Server, how: &str, path: &Path) -> String {
    server.get(&format!("/try?how={how}&path={}", path.display())).text()
}

fn state(server: &Server) -> PathBuf {
    server.bench.path().join("state/baton").join(&server.name)
}

#[test]
fn as_root_every_child_runs_as_the_user_with_no_capability() {
    let setup = unprivileged().own_program();
    let server = setup.start();
    let master = server.pid();
    let mut connection = server.connect();
    let served_by = |connection: &mut baton_tests::http::Connection| {
        let (_, pid) = answered_by(&connection.request("GET", "/").expect("an answer"));
        assert_eq!(pid, server.worker());
        assert_without_rights(pid);
        pid
    };
    let first = served_by(&mut connection);
    // The connection goes along.
    switch_to(&server, "v2");
    let second = served_by(&mut connection);
    server.wait_drained();
    server.cli(&["rollback", "--name", &server.name]).assert_code(0);
    server.wait_settled();
    let third = served_by(&mut connection);
    server.cli(&["restart", "--name", &server.name, "--force"]).assert_code(0);
    server.wait_settled();
    let fourth = served_by(&mut connection);
    process::kill(fourth, Signal::SIGKILL);
    server.wait_for("the respawned process", |status| {
        status.serving().and_then(|serving| serving.pid).is_some_and(|pid| pid != fourth)
    });
    let fifth = served_by(&mut server.connect());
    let mut pids = vec![first, second, third, fourth, fifth];
    pids.dedup();
    assert_eq!(pids.len(), 5, "{pids:?}");
    let status = server.status();
    let (uid, gid) = nobody();
    assert_eq!((status.pid, status.runs_as.uid, status.runs_as.gid), (master, uid, gid));
    assert_eq!((status.runs_as.user.as_str(), status.runs_as.rights.as_str()), (USER, "own"));
    let shown = server.cli(&["status", "--name", &server.name]);
    assert!(shown.stdout.contains("run as nobody"), "{shown:?}");
    assert_eq!(process::status_field(master, "Uid:"), ["0"; 4], "the master has kept its rights");
}

#[test]
fn as_root_without_a_user_plugins_have_all_rights_and_the_status_says_so() {
    let server = Setup::probe("v1").start();
    for line in ["Uid:", "Gid:", "CapEff:", "CapBnd:", "NoNewPrivs:"] {
        let of = |pid| process::status_field(pid, line);
        assert_eq!(of(server.worker()), of(server.pid()), "{line}");
    }
    let runs_as = server.status().runs_as;
    assert_eq!((runs_as.uid, runs_as.rights.as_str()), (0, "masters"));
    let shown = server.cli(&["status", "--name", &server.name]);
    assert!(shown.stdout.contains("run as root") && shown.stdout.contains("set `user`"), "{shown:?}");
}

#[test]
fn as_root_a_plugin_cannot_reach_what_is_the_master_s() {
    let authority = Authority::new();
    let config = "[[server]]\nlisten = [\"127.0.0.1:0\"]\n\
        [[server]]\nname = \"tls\"\nlisten = [\"127.0.0.1:0\"]\ntls = [{ cert = \"a.pem\", key = \"a.key\" }]\n";
    let trial = |setup: Setup| {
        let setup = setup.config(config);
        setup.bench().open_to_all();
        let (_, key) = authority.issue(&["a.example"]).write(setup.bench().path(), "a");
        fs::set_permissions(&key, Permissions::from_mode(0o600)).expect("failed to set a mode");
        let server = setup.start();
        wait::until("what is written after the start", wait::LONG, || {
            state(&server).join("last_good").exists().then_some(())
        });
        let snapshot = server.status().serving().expect("it serves").plugins[0].sha256.clone();
        let store = state(&server).join("store").join(format!("{snapshot}.so"));
        let master_s = [
            ("read", state(&server).join("admin-token")),
            ("read", state(&server).join("last_good")),
            ("read", key),
            ("read", format!("/proc/{}/environ", server.pid()).into()),
            ("connect", server.socket().to_owned()),
            ("create", state(&server).join("mine")),
            ("create", server.bench.plugins().join("mine.so")),
            ("create", store.with_file_name("mine")),
            ("write", store.clone()),
        ];
        let told: Vec<String> = master_s.iter().map(|(how, path)| attempt(&server, how, path)).collect();
        assert_eq!(attempt(&server, "read", &store), "done");
        let data = state(&server).join("data/probe");
        assert_eq!(attempt(&server, "create", &data.join("mine")), "done");
        let owner = fs::metadata(&data).map(|meta| (meta.uid(), meta.gid(), meta.mode() & 0o777)).expect("it is there");
        // Last: without its copy nothing could be respawned.
        let removed = attempt(&server, "remove", &store);
        (told, removed, owner)
    };
    let (told, removed, owner) = trial(Setup::probe("v1").set("user", USER));
    assert!(told.iter().all(|answer| answer == "permission denied"), "{told:?}");
    assert_eq!(removed, "permission denied");
    let (uid, gid) = nobody();
    assert_eq!(owner, (uid, gid, 0o700));
    // All of it was there to be had.
    let (told, removed, owner) = trial(Setup::probe("v1"));
    assert!(told.iter().all(|answer| answer == "done"), "{told:?}");
    assert_eq!((removed.as_str(), owner), ("done", (0, 0, 0o700)));
}

/// Variables of a server whose environment has some of everything.
fn environment(setup: Setup) -> Vec<String> {
    let foreign = [
        ("FDSTORE", "8"),
        ("WATCHDOG_PID", "1"),
        ("BATON_TOKEN", "secret"),
        ("XDG_CACHE_HOME", "/home/a/.cache"),
        ("SSH_AUTH_SOCK", "/home/a/agent"),
        ("DATABASE_URL", "postgres://db"),
    ];
    let server = foreign.into_iter().fold(setup, |setup, (key, value)| setup.env(key, value)).start();
    server.get("/environment").text().lines().map(str::to_owned).collect()
}

fn has(environment: &[String], name: &str) -> bool {
    environment.iter().any(|entry| entry.split('=').next() == Some(name))
}

#[test]
fn a_child_s_environment_holds_nothing_that_is_the_master_s_alone() {
    let found = environment(Setup::probe("v1"));
    assert!(
        !["FDSTORE", "WATCHDOG_PID", "BATON_TOKEN", "BATON_WORKER"].iter().any(|name| has(&found, name)),
        "{found:?}"
    );
    assert!(has(&found, "DATABASE_URL") && has(&found, "XDG_CACHE_HOME"), "{found:?}");
}

#[test]
fn as_root_the_environment_is_that_of_the_user() {
    let found = environment(unprivileged());
    for name in ["XDG_CACHE_HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME", "SSH_AUTH_SOCK", "BATON_TOKEN"] {
        assert!(!has(&found, name), "{name}: {found:?}");
    }
    for entry in ["USER=nobody", "LOGNAME=nobody", "DATABASE_URL=postgres://db"] {
        assert!(found.iter().any(|found| found == entry), "{entry}: {found:?}");
    }
    assert!(has(&found, "HOME") && !found.iter().any(|entry| entry == "HOME=/root"), "{found:?}");
}

/// Root without the right to trace, which may look into what is like it and lets itself be looked into.
const WITHOUT_TRACE: [&str; 2] = ["setpriv", "--bounding-set=-sys_ptrace"];

fn can_be_looked_into(pid: i32) -> bool {
    let status = Command::new(WITHOUT_TRACE[0])
        .args([WITHOUT_TRACE[1], "readlink", &format!("/proc/{pid}/exe")])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.expect("failed to run setpriv (package util-linux)").success()
}

#[test]
fn as_root_the_master_of_another_user_cannot_be_looked_into() {
    let server = unprivileged().own_program().through(&WITHOUT_TRACE).start();
    assert!(!can_be_looked_into(server.pid()));
    server.cli(&["restart", "--name", &server.name]).assert_code(0);
    assert!(!can_be_looked_into(server.pid()), "also by the program that took over");
    assert!(can_be_looked_into(Setup::probe("v1").through(&WITHOUT_TRACE).start().pid()));
}

/// Ends before anything is served, with exit code 78 and these words.
#[track_caller]
fn refused_at_start(setup: Setup, words: &[&str]) {
    let mut server = setup.spawn();
    assert_eq!(server.wait_end(wait::LONG).code(), Some(78));
    let said = server.log();
    assert!(words.iter().all(|word| said.contains(word)), "{words:?}: {said}");
}

#[test]
fn a_user_that_cannot_be_taken_is_refused_before_the_start() {
    refused_at_start(Setup::new().set("user", "no-such-user"), &["find the user `no-such-user`"]);
    refused_at_start(Setup::new().set("user", "root"), &["leave `user` out"]);
    refused_at_start(Setup::new().set("group", "nogroup"), &["group", "`user`"]);
}

#[test]
fn as_root_only_root_with_the_right_to_may_name_another_user() {
    let setup = |through: &[&str]| {
        let setup = Setup::new().own_program().set("user", USER).through(through);
        setup.bench().open_to_all();
        setup
    };
    let stranger = ["setpriv", "--reuid=65533", "--regid=65532", "--clear-groups"];
    refused_at_start(setup(&stranger), &["runs as 65533", "only root"]);
    refused_at_start(setup(&["setpriv", "--bounding-set=-setuid,-kill"]), &["CAP_KILL, CAP_SETUID"]);
}

#[test]
fn as_root_a_store_or_program_that_the_user_cannot_reach_is_refused_with_what_to_do() {
    let setup = unprivileged();
    let folder = setup.bench().path().to_owned();
    mode(&folder, 0o700);
    refused_at_start(setup, &[&format!("may not enter {} ", folder.display()), "chmod o+x"]);
    let closed = ["sh", "-c", "chmod 700 \"$0\" && exec \"$0\" \"$@\""];
    refused_at_start(unprivileged().own_program().through(&closed), &["chmod 755"]);
}

#[test]
fn a_reload_cannot_change_the_user() {
    let server = Setup::probe("v1").config("[[server]]\nlisten = [\"127.0.0.1:0\"]\n").start();
    server.bench.configure("user = \"nobody\"\n[[server]]\nlisten = [\"127.0.0.1:0\"]\n");
    let (code, report) = server.reload();
    assert_eq!((code, report.stage.as_deref()), (409, Some("config")), "{report:#?}");
    assert!(report.error.as_deref().is_some_and(|error| error.contains("change user")), "{report:#?}");
    server.bench.configure("[[server]]\nlisten = [\"127.0.0.1:0\"]\n");
    server.switch();
}

#[test]
fn who_drains_goes_first_when_memory_runs_out() {
    let server = Setup::probe("v1").start();
    let score = |pid: i32| -> i32 {
        let text = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("the process lives");
        text.trim().parse().expect("a number")
    };
    let old = server.worker();
    let before = score(old);
    let mut busy = slow_request(&server, 800);
    switch_to(&server, "v2");
    assert_eq!((score(old), score(server.worker())), ((before + 300).min(1000), before));
    busy.receive().expect("the old code answers");
}

/// Refused for that reason, with that hint, while the old code serves on.
#[track_caller]
fn refused(server: &Server, why: &str, hint: &str) -> Report {
    let old = server.probe();
    let (code, report) = server.reload();
    assert_eq!(
        (code, report.stage.as_deref(), report.plugin.as_deref()),
        (409, Some("snapshot"), Some("probe")),
        "{report:#?}"
    );
    let error = report.error.as_deref().unwrap_or_default();
    assert!(error.contains(why) && !error.contains('\n'), "{report:#?}");
    assert!(report.hint.as_deref().is_some_and(|text| text.contains(hint)), "{report:#?}");
    assert_eq!(server.probe(), old);
    report
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("failed to set a mode");
}

#[test]
fn a_plugin_that_others_may_write_is_refused_until_they_may_not() {
    let server = Setup::probe("v1").start();
    let (file, folder) = (server.bench.plugin_file("probe"), server.bench.plugins());
    server.bench.install("probe", &artifacts::probe("v2"));
    mode(&file, 0o757);
    refused(&server, "everybody may write it (mode 0757)", "chmod o-w");
    mode(&file, 0o755);
    mode(&folder, 0o777);
    refused(&server, "everybody may write the folder", "chmod o-w");
    // In a sticky folder only the owner of a file can take it away.
    mode(&folder, 0o1777);
    server.switch();
    assert_eq!(server.probe().0, "v2");
    // Also one that has not changed.
    mode(&folder, 0o777);
    refused(&server, "everybody may write the folder", "chmod o-w");
    mode(&folder, 0o755);
    server.switch();
}

#[test]
fn as_root_a_plugin_of_a_third_user_or_a_strange_group_is_refused() {
    let server = unprivileged().start();
    let file = server.bench.plugin_file("probe");
    let give = |uid, gid| std::os::unix::fs::chown(&file, Some(uid), Some(gid)).expect("failed to give a file away");
    // Of all users, the one that plugins run as must not write them.
    give(nobody().0, 0);
    refused(&server, "it belongs to uid", "chown 0");
    server.bench.configure("[store]\nowners = [\"nobody\"]\n");
    let (code, report) = server.reload();
    assert_eq!((code, report.stage.as_deref()), (409, Some("config")), "{report:#?}");
    assert!(report.error.as_deref().is_some_and(|error| error.contains("could change themselves")), "{report:#?}");
    // Another may deploy, once he is named.
    give(65_533, 0);
    server.bench.configure("");
    refused(&server, "it belongs to uid 65533", "store.owners");
    server.bench.configure("[store]\nowners = [\"65533\"]\n");
    server.switch();
    give(0, nobody().1);
    mode(&file, 0o775);
    refused(&server, "the group", "chmod g-w");
    give(0, 0);
    server.switch();
}

#[test]
fn at_the_start_a_plugin_that_others_may_write_is_a_bad_one() {
    let setup = Setup::probe("v1");
    let bench = setup.bench().clone();
    mode(&bench.plugin_file("probe"), 0o757);
    let mut server = setup.spawn();
    assert_eq!(server.wait_end(wait::LONG).code(), Some(1), "nothing good is known");
    assert!(server.log().contains("chmod o-w"), "{}", server.log());
    mode(&bench.plugin_file("probe"), 0o755);
    let name = server.name.clone();
    let mut server = Setup::in_bench_of(&server).named(&name).start();
    wait::until("what is good to be written down", wait::LONG, || {
        state(&server).join("last_good").exists().then_some(())
    });
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_end(wait::LONG).code(), Some(0));
    mode(&bench.plugin_file("probe"), 0o757);
    let server = Setup::in_bench_of(&server).named(&name).start();
    let alert = server.status().alert;
    assert!(alert.as_deref().is_some_and(|alert| alert.contains("everybody may write it")), "{alert:?}");
    assert_eq!(server.probe().0, "v1");
}

/// Signs what lies in the plugin's place, as `minisign -Sm` does.
fn sign(bench: &Workbench, by: &KeyPair) {
    let file = bench.plugin_file("probe");
    let content = fs::read(&file).expect("the plugin is there");
    let signature =
        minisign::sign(None, &by.sk, Cursor::new(content), Some("of a test"), None).expect("failed to sign");
    fs::write(file.with_extension("so.minisig"), signature.into_string()).expect("failed to write a signature");
}

#[test]
fn with_signers_only_what_one_of_them_has_signed_is_taken() {
    let key = || KeyPair::generate_unencrypted_keypair().expect("failed to make a key");
    let (ours, second, stranger) = (key(), key(), key());
    let config = |signers: &[&KeyPair]| {
        let signers: Vec<String> = signers.iter().map(|key| key.pk.to_base64()).collect();
        format!("[[server]]\nlisten = [\"127.0.0.1:0\"]\n[store]\nsigners = {signers:?}\n")
    };
    let setup = Setup::probe("v1").config(&config(&[&ours, &second]));
    sign(setup.bench(), &ours);
    let server = setup.start();
    let signature = server.bench.plugin_file("probe").with_extension("so.minisig");
    server.bench.install("probe", &artifacts::probe("v2"));
    refused(&server, "was changed since", "minisign -Sm");
    fs::remove_file(&signature).expect("it is there");
    refused(&server, "there is no libprobe.so.minisig", "minisign -Sm");
    fs::write(&signature, "no signature").expect("failed to write");
    refused(&server, "no signature of minisign", "minisign -Sm");
    sign(&server.bench, &stranger);
    refused(&server, "none of store.signers", "store.signers");
    sign(&server.bench, &second);
    server.switch();
    assert_eq!(server.probe().0, "v2");
    // The file is as before, but its signer is one no more.
    server.bench.configure(&config(&[&ours]));
    refused(&server, "none of store.signers", "store.signers");
    sign(&server.bench, &ours);
    server.switch();
    fs::remove_file(&signature).expect("it is there");
    refused(&server, "there is no libprobe.so.minisig", "minisign -Sm");
    server.bench.configure(&config(&[]));
    server.switch();
    server.bench.configure(&config(&[]).replace("[]", "[\"RWnonsense\"]"));
    let (code, report) = server.reload();
    assert_eq!((code, report.stage.as_deref()), (409, Some("config")), "{report:#?}");
    assert!(report.error.as_deref().is_some_and(|error| error.contains("store.signers[0]")), "{report:#?}");
}

#[test]
fn a_watcher_takes_an_unsigned_plugin_once_its_signature_comes() {
    let key = KeyPair::generate_unencrypted_keypair().expect("failed to make a key");
    let signers = [key.pk.to_base64()];
    let setup = Setup::probe("v1").config(&format!(
        "[[server]]\nlisten = [\"127.0.0.1:0\"]\n[store]\nsigners = {signers:?}\n[watch]\nenabled = true\nsettle = \"50ms\"\n"
    ));
    sign(setup.bench(), &key);
    let server = setup.start();
    server.bench.install("probe", &artifacts::probe("v2"));
    let status = server.wait_for("the unsigned plugin to be refused", |status| {
        status.operations.first().is_some_and(|report| report.cause.by == "watcher" && report.result == "refused")
    });
    assert_eq!(status.operations[0].plugin.as_deref(), Some("probe"), "{status:#?}");
    sign(&server.bench, &key);
    server.wait_for("the signed plugin to be taken", |status| status.serving == Some(2));
    server.wait_settled();
    assert_eq!(server.probe().0, "v2");
}
