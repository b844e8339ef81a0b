//! What an error says to do about it works: each hint names the thing that is wrong and the remedy.

use std::fs;

use baton_tests::server::{Setup, Workbench};
use baton_tests::{artifacts, process, wait};

#[test]
fn hint_for_a_second_plugin_is_valid_configuration() {
    let server = Setup::probe("v1").config("# nothing yet\n").listen(&["127.0.0.1:0"]).start();
    server.bench.install("zapp-1.2", &artifacts::probe("v2"));
    let (code, report) = server.reload();
    assert_eq!((code, report.result.as_str()), (409, "refused"), "{report:#?}");
    let hint = report.hint.expect("a hint");
    let (_, text) = hint.split_once("configuration:  ").expect("what to add");
    let (section, mount) = text.split_once("  ").expect("a section and a line");
    server.bench.configure(&format!("{section}\n{mount}\n"));
    server.switch();
    assert_eq!((server.probe().0.as_str(), server.get("/zapp-1.2/").status), ("v1", 200));
}

#[test]
fn state_directory_that_is_full_is_named() {
    let server = Setup::probe("v1").start();
    server.bench.install("probe", &artifacts::probe("v2"));
    // Beyond that size a write fails as on a full disk (RLIMIT_FSIZE).
    process::limit_file_size(server.pid(), Some(4096));
    let (code, report) = server.reload();
    assert_eq!((code, report.stage.as_deref()), (409, Some("snapshot")), "{report:#?}");
    let (error, hint) = (report.error.unwrap_or_default(), report.hint.unwrap_or_default());
    let state = server.bench.path().join("state").display().to_string();
    assert!(error.contains("state directory") && error.contains(&state), "{error}");
    assert!(!error.contains("cannot be read") && hint.contains("make room"), "{error}; {hint}");
    assert_eq!(server.probe().0, "v1");
    process::limit_file_size(server.pid(), None);
    server.switch();
    assert_eq!(server.probe().0, "v2");
}

#[test]
fn start_with_too_few_descriptors_names_the_limit() {
    let mut server = Setup::probe("v1").through(&["prlimit", "--nofile=24:24", "--"]).spawn();
    assert!(!server.wait_end(wait::LONG).success());
    let log = server.log();
    assert!(log.contains("24 open files") && log.contains("RLIMIT_NOFILE") && log.contains("ulimit -n"), "{log}");
    let few = Setup::probe("v1").through(&["prlimit", "--nofile=80:80", "--"]).start();
    assert_eq!(few.probe().0, "v1");
}

/// What marks a key as encrypted, in both forms; the key itself is not looked at.
const ENCRYPTED: [&str; 2] = [
    "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAA=\n-----END ENCRYPTED PRIVATE KEY-----\n",
    "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nMAA=\n-----END RSA PRIVATE KEY-----\n",
];

#[test]
fn encrypted_key_is_named_as_encrypted_in_both_forms() {
    let setup = Setup::probe("v1");
    let dir = setup.bench().path().to_owned();
    let authority = baton_tests::tls::Authority::new();
    authority.issue(&["a.example"]).write(&dir, "a");
    let config = "[[server]]\nlisten = [\"127.0.0.1:0\"]\ntls = [{ cert = \"a.pem\", key = \"a.key\" }]\n";
    let server = setup.config(config).start();
    for key in ENCRYPTED {
        fs::write(dir.join("a.key"), key).expect("failed to write");
        let (code, report) = server.reload();
        assert_eq!((code, report.stage.as_deref()), (409, Some("tls")), "{report:#?}");
        let (error, hint) = (report.error.unwrap_or_default(), report.hint.unwrap_or_default());
        assert!(error.contains("a.key") && error.contains("encrypted private key"), "{error}");
        assert!(hint.contains("openssl pkey -in"), "{hint}");
    }
}

#[test]
fn durations_beyond_the_bound_are_refused_before_the_start() {
    let bench = Workbench::new();
    for (setting, key) in [
        ("start_timeout=500000000000years", "start_timeout"),
        ("crash.window=3651days", "window"),
        ("workers=9223372036854775807", "workers"),
        ("limits.body_size=18446744073709551615 GiB", "body_size"),
    ] {
        let outcome = bench.cli(&["run", "--set", setting]);
        assert!(outcome.assert_code(78).stderr.contains(key), "{outcome:?}");
    }
    for verb in [&["reload"][..], &["cut"], &["shutdown"], &["rollback"], &["restart"]] {
        let outcome = bench.cli(&[verb, &["--timeout", "500000000000years"]].concat());
        assert!(outcome.assert_code(2).stderr.contains("too long"), "{outcome:?}");
    }
    let longest = Setup::probe("v1").set("start_timeout", "3650days").set("crash.window", "3650days");
    let longest = longest.set("drain.max", "3650days").set("shutdown.timeout", "3650days").start();
    longest.switch();
    longest.cli(&["shutdown", "--timeout", "3650days"]).assert_code(0);
}
