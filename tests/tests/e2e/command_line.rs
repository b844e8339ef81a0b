//! The command line: what each verb prints and how it exits. 0 done, 1 refused or failed, 2 usage, 69 nobody there, 78
//! configuration.

use baton_tests::server::{Setup, Workbench};
use baton_tests::status::{Report, Status};
use baton_tests::{artifacts, wait};

#[test]
fn verbs_without_a_running_instance_exit_69() {
    let bench = Workbench::new();
    for verb in ["status", "reload", "shutdown", "admin"] {
        let outcome = bench.cli(&[verb]);
        outcome.assert_code(69);
        assert!(outcome.stdout.is_empty() && !outcome.stderr.is_empty(), "{outcome:?}");
        bench.cli(&[verb, "--name", "nobody"]).assert_code(69);
    }
}

#[test]
fn what_is_no_command_exits_2() {
    let bench = Workbench::new();
    for args in [&["sing"][..], &["reload", "--loudly"], &["run", "--listen"]] {
        let outcome = bench.cli(args);
        outcome.assert_code(2);
        assert!(outcome.stdout.is_empty() && outcome.stderr.contains("--help"), "{outcome:?}");
    }
}

#[test]
fn help_and_version_exit_0() {
    let bench = Workbench::new();
    let help = bench.cli(&["--help"]);
    for verb in ["run", "dev", "reload", "shutdown", "status", "admin"] {
        assert!(help.assert_code(0).stdout.contains(verb), "{help:?}");
    }
    assert!(bench.cli(&["--version"]).assert_code(0).stdout.starts_with("baton "));
    assert!(bench.cli(&["run", "--help"]).assert_code(0).stdout.contains("--listen"));
}

#[test]
fn a_refused_reload_exits_1_with_one_line_and_a_hint() {
    let server = Setup::probe("v1").start();
    std::fs::write(server.bench.plugin_file("probe"), "no library").expect("failed to write");
    let outcome = server.cli(&["reload", "--name", &server.name]);
    outcome.assert_code(1);
    assert!(outcome.stderr.contains("probe"), "{outcome:?}");
    assert!(outcome.stderr.lines().count() <= 4, "a few lines, please: {outcome:?}");
    let outcome = server.cli(&["reload", "--name", &server.name, "--json"]);
    let report: Report = outcome.assert_code(1).json();
    assert_eq!((report.result.as_str(), report.plugin.as_deref()), ("refused", Some("probe")));
}

#[test]
fn status_is_for_people_and_with_json_for_programs() {
    let server = Setup::probe("v1").start();
    let text = server.cli(&["status"]);
    let pid = server.pid().to_string();
    assert!(text.assert_code(0).stdout.contains("probe") && text.stdout.contains(&pid), "{text:?}");
    let status: Status = server.cli(&["status", "--json"]).assert_code(0).json();
    assert_eq!((status.pid, status.serving, status.name), (server.pid(), Some(1), server.name.clone()));
}

#[test]
fn two_instances_live_side_by_side_and_must_be_told_apart() {
    let one = Setup::probe("v1").start();
    // In the same directories, under another name.
    let other = Setup::in_bench_of(&one).named("other").start();
    assert_eq!((one.probe().0.as_str(), other.probe().0.as_str()), ("v1", "v1"));
    assert_ne!(one.addr(), other.addr());
    let outcome = one.cli(&["reload"]);
    outcome.assert_code(2);
    assert!(outcome.stderr.contains(&one.name) && outcome.stderr.contains("other"), "{outcome:?}");
    one.cli(&["reload", "--name", "other"]).assert_code(0);
    assert_eq!((one.status().switches, other.status().switches), (1, 2));
    drop(other);
    // Its socket is left behind by the kill; a dead instance is no choice to make.
    one.cli(&["reload"]).assert_code(0);
    assert_eq!(one.status().switches, 2);
}

#[test]
fn the_same_name_twice_is_refused_and_the_first_serves_on() {
    let one = Setup::probe("v1").start();
    let mut twin = Setup::in_bench_of(&one).named(&one.name).spawn();
    let status = twin.wait_end(wait::LONG);
    assert!(!status.success(), "{status}");
    assert!(twin.log().contains(&format!("`{}` is running", one.name)), "it does not say who runs: {}", twin.log());
    assert_eq!(one.probe().0, "v1");
    one.cli(&["status"]).assert_code(0);
}

#[test]
fn a_configuration_error_exits_78_with_file_and_line() {
    let bench = Workbench::new();
    let path = bench.path().join("baton.toml");
    for (text, says) in [
        ("name = \"x\"\n\n[drain]\ntimout = \"5s\"\n", &["timout", "4"][..]),
        ("name = \n", &["1"]),
        ("start_timeout = \"soon\"\n", &["soon", "1"]),
    ] {
        std::fs::write(&path, text).expect("failed to write");
        let outcome = bench.cli(&["run"]);
        outcome.assert_code(78);
        for part in says {
            assert!(outcome.stderr.contains(part), "it does not say `{part}`: {outcome:?}");
        }
        assert!(outcome.stderr.contains("baton.toml"), "{outcome:?}");
    }
    std::fs::remove_file(&path).expect("failed to remove");
    bench.cli(&["run", "--set", "drain.timout=5s"]).assert_code(78);
    bench.cli(&["run", "-c", "absent.toml"]).assert_code(78);
}

#[test]
fn a_configuration_file_is_taken_and_reread_at_a_reload() {
    let setup = Setup::new().plugin("probe", &artifacts::probe("v1"));
    let path = setup.bench().path().join("baton.toml");
    std::fs::write(&path, "[plugins.probe]\nmount = \"/one\"\n").expect("failed to write");
    let server = setup.start();
    assert_eq!((server.get("/one/").status, server.get("/two/").status), (200, 404));
    std::fs::write(&path, "[plugins.probe]\nmount = \"/two\"\n").expect("failed to write");
    server.switch();
    assert_eq!((server.get("/one/").status, server.get("/two/").status), (404, 200));
    std::fs::write(&path, "[plugins.probe]\nmount = \"two\"\n").expect("failed to write");
    let (code, report) = server.reload();
    assert_eq!(
        (code, report.result.as_str(), report.stage.as_deref()),
        (409, "refused", Some("config")),
        "{report:#?}"
    );
    assert_eq!(server.get("/two/").status, 200);
}

#[test]
fn a_port_that_is_taken_ends_the_start_and_names_it() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = taken.local_addr().expect("an address").to_string();
    let bench = Workbench::new();
    let plugins = bench.plugins();
    let args =
        ["run", "--name", "x", "--plugins", &plugins.to_string_lossy(), "--admin", "127.0.0.1:0", "--listen", &addr];
    let outcome = bench.cli(&args);
    assert!(!matches!(outcome.code, Some(0) | None), "{outcome:?}");
    assert!(outcome.stderr.contains(&addr), "{outcome:?}");
}

#[test]
fn several_addresses_are_served_and_kept_over_a_reload() {
    let server = Setup::probe("v1").listen(&["127.0.0.1:0", "127.0.0.2:0", "[::1]:0"]).start();
    let before = server.addrs();
    assert_eq!(before.len(), 3);
    server.bench.install("probe", &artifacts::probe("v2"));
    server.switch();
    assert_eq!(server.addrs(), before);
    for addr in before {
        let response = baton_tests::http::get(addr, "/").expect("an answer");
        assert_eq!(baton_tests::server::answered_by(&response).0, "v2");
    }
}

#[test]
fn a_start_with_a_broken_plugin_fails_and_says_why() {
    let setup = Setup::new();
    std::fs::write(setup.bench().plugin_file("probe"), "no library").expect("failed to write");
    let mut server = setup.spawn();
    let status = server.wait_end(wait::LONG);
    assert_eq!(status.code(), Some(1), "{}", server.log());
    assert!(server.log().contains("probe"), "{}", server.log());
    wait::until("the last process to end", wait::LONG, || server.processes().is_empty().then_some(()));
}

#[test]
fn print_config_shows_what_holds() {
    let bench = Workbench::new();
    let outcome = bench.cli(&["run", "--print-config", "--set", "drain.timeout=7s"]);
    assert!(outcome.assert_code(0).stdout.contains("timeout = \"7s\""), "{outcome:?}");
}

/// What a verb says when it finds no master.
fn said_of_no_master(bench: &Workbench, args: &[&str]) -> String {
    let outcome = bench.cli(args);
    assert!(matches!(outcome.code, Some(1 | 69)), "{outcome:?}");
    assert!(outcome.stdout.is_empty(), "{outcome:?}");
    outcome.stderr
}

#[test]
fn a_master_that_is_not_found_is_named_with_its_socket_and_the_remedy() {
    let bench = Workbench::new();
    let socket = bench.path().join("run/baton/nobody/admin.sock");
    let said = said_of_no_master(&bench, &["status", "--name", "nobody"]);
    assert!(said.contains(&socket.display().to_string()) && said.contains("no server has run there"), "{said}");
    let said = said_of_no_master(&bench, &["status"]);
    assert!(said.contains(&bench.path().join("run/baton").display().to_string()), "{said}");
}

#[test]
fn a_master_that_was_killed_is_told_from_one_that_is_stopped() {
    let mut server = Setup::probe("v1").start();
    let (pid, name) = (server.pid(), server.name.clone());
    server.signal(nix::sys::signal::Signal::SIGSTOP);
    let said = said_of_no_master(&server.bench, &["status", "--name", &name]);
    assert!(said.contains("admin.sock") && said.contains(&format!("kill -CONT {pid}")), "{said}");
    server.signal(nix::sys::signal::Signal::SIGKILL);
    server.wait_end(wait::LONG);
    for args in
        [&["status", "--name", &name][..], &["status"], &["status", "--socket", &server.socket().to_string_lossy()]]
    {
        let said = said_of_no_master(&server.bench, args);
        assert!(said.contains("has ended") && said.contains(&pid.to_string()), "{args:?}: {said}");
    }
}
