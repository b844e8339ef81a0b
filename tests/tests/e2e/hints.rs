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

#[test]
fn addresses_that_cannot_be_listened_on_say_what_to_write() {
    let bench = Workbench::new();
    for (listen, says) in [
        (&["[::ffff:127.0.0.1]:8080"][..], "write 127.0.0.1:8080"),
        (&["localhost:8080"], "write 127.0.0.1:8080, and [::1]:8080"),
        (&["0.0.0.0:8080", "127.0.0.1:8080"], "0.0.0.0:8080 takes the connections of 127.0.0.1:8080"),
        (&["[::1]:8080", "[::]:8080"], "[::]:8080 takes the connections of [::1]:8080"),
        (&["0.0.0.0:9700"], "admin.listen: 127.0.0.1:9700 collides with 0.0.0.0:9700"),
        (&["8080"], "a port alone"),
    ] {
        let args: Vec<&str> = listen.iter().flat_map(|address| ["--listen", address]).collect();
        let outcome = bench.cli(&[&["run"][..], &args].concat());
        assert!(outcome.assert_code(78).stderr.contains(says), "{outcome:?}");
    }
    // Both kinds of IP beside each other are two addresses.
    let port = free_port();
    let (v4, v6) = (format!("127.0.0.1:{port}"), format!("[::]:{port}"));
    let server = Setup::probe("v1").config(&format!("[[server]]\nlisten = [\"{v4}\", \"{v6}\"]\n")).start();
    assert_eq!(server.addrs().len(), 2);
    // What is in the way of a wider address is this server itself.
    server.bench.configure(&format!("[[server]]\nlisten = [\"0.0.0.0:{port}\"]\n"));
    let (code, report) = server.reload();
    assert_eq!((code, report.stage.as_deref()), (409, Some("listen")), "{report:#?}");
    let hint = report.hint.unwrap_or_default();
    assert!(hint.contains(&format!("this server itself listens on {v4}")), "{hint}");
}

/// One without a listener, in both kinds of IP.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("[::]:0").expect("failed to bind");
    listener.local_addr().expect("an address").port()
}

#[test]
fn report_of_a_reload_says_what_of_the_configuration_changed() {
    let config = |more: &str, listen: &str| {
        format!("[limits]\n{more}\n[[server]]\nname = \"web\"\nlisten = [\"127.0.0.1:0\"{listen}]\n")
    };
    let server = Setup::probe("v1").config(&config("", "")).start();
    let report = server.switch();
    assert_eq!(report.config, None, "nothing changed");
    server.bench.configure(&config("body_size = \"10 MiB\"", ", \"127.0.0.2:0\""));
    let outcome = server.cli(&["reload", "--name", &server.name]);
    let said = &outcome.assert_code(0).stdout;
    assert!(said.contains("listens now on: 127.0.0.2:0 (web)"), "{outcome:?}");
    assert!(said.contains("limits.body_size: 1 GiB -> 10 MiB"), "{outcome:?}");
    let last = server.status().last_op();
    let shown = server.ended(last).config.expect("what changed");
    assert_eq!(shown["keys"][0]["key"], "limits.body_size");
    assert_eq!(shown["addresses"]["added"][0], "127.0.0.2:0 (web)");
}
