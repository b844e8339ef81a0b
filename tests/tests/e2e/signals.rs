//! Every signal of every preset, sent to a real master: it does what docs/SIGNALS.md says; and the end of a terminal, what was
//! ignored before the start, and signals that mean something to plugins alone.

use std::path::PathBuf;

use baton_tests::http::Connection;
use baton_tests::server::{Server, Setup};
use baton_tests::status::Report;
use baton_tests::{artifacts, process, wait};
use nix::fcntl::OFlag;
use nix::pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::signal::Signal;

use crate::{slow_request, switch_to};

fn preset(name: &str) -> Setup {
    Setup::probe("v1").set("signals.preset", name)
}

/// Sends it, and waits for the report of the operation that it asks for.
#[track_caller]
fn report_of(server: &Server, signal: Signal) -> Report {
    let report = server.reload_by_signal(signal);
    let own = std::process::id().cast_signed();
    let cause = (report.cause.by.as_str(), report.cause.signal.as_deref(), report.cause.sender);
    assert_eq!(cause, ("signal", Some(signal.as_str()), Some(own)), "{report:#?}");
    report
}

#[track_caller]
fn reloads(name: &str, signals: &[Signal]) {
    let server = preset(name).start();
    for signal in signals {
        let (pid, old) = (server.pid(), server.worker());
        let report = report_of(&server, *signal);
        assert_eq!((report.verb.as_str(), report.result.as_str()), ("reload", "switched"), "{name} {signal}");
        server.wait_drained();
        assert!(server.worker() != old && server.status().pid == pid);
    }
}

#[track_caller]
fn restarts(name: &str, signal: Signal) {
    let server = preset(name).start();
    let (pid, old) = (server.pid(), server.worker());
    let last = server.status().last_op();
    server.signal(signal);
    let status = server.wait_for("the report of the restart", |status| {
        status.operation(last + 1).is_some_and(|report| report.verb == "restart" && report.result == "switched")
    });
    assert_eq!(status.pid, pid);
    assert_ne!(server.worker(), old);
}

/// Each lets a request finish and exits 0, and twice it cuts.
#[track_caller]
fn shut_down(name: &str, signals: &[Signal]) {
    for signal in signals {
        let mut server = preset(name).start();
        let mut slow = slow_request(&server, 500);
        server.signal(*signal);
        slow.receive().unwrap_or_else(|error| panic!("{name} {signal} cut a request: {error}"));
        assert_eq!(server.wait_end(wait::LONG).code(), Some(0), "{name} {signal}");

        let mut server = preset(name).start();
        let mut slow = slow_request(&server, 600_000);
        server.signal(*signal);
        server.wait_for("the shutdown to begin", |status| status.shutting_down);
        server.signal(*signal);
        slow.receive().expect_err("a cut request must not look answered");
        assert_eq!(server.wait_end(wait::LONG).code(), Some(3), "{name} {signal}");
    }
}

#[test]
fn baton_s_hup_and_usr1_reload() {
    reloads("baton", &[Signal::SIGHUP, Signal::SIGUSR1]);
}

#[test]
fn baton_s_usr2_restarts_in_place() {
    restarts("baton", Signal::SIGUSR2);
}

#[test]
fn baton_s_term_int_and_quit_shut_down_and_again_cut() {
    shut_down("baton", &[Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT]);
}

#[test]
fn gf_s_usr1_reloads_and_its_usr2_restarts_in_place() {
    reloads("gf", &[Signal::SIGUSR1]);
    restarts("gf", Signal::SIGUSR2);
}

#[test]
fn gf_s_hup_and_abrt_shut_down_too_and_again_cut() {
    use Signal::{SIGABRT, SIGHUP, SIGINT, SIGQUIT, SIGTERM};
    shut_down("gf", &[SIGHUP, SIGABRT, SIGTERM, SIGINT, SIGQUIT]);
}

#[test]
fn endless_hup_reloads() {
    reloads("endless", &[Signal::SIGHUP]);
}

#[test]
fn endless_term_int_and_quit_shut_down_and_again_cut() {
    shut_down("endless", &[Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT]);
}

#[test]
fn endless_usr2_cuts_what_drains_and_leaves_what_serves_alone() {
    let server = preset("endless").start();
    let mut old = slow_request(&server, 600_000);
    switch_to(&server, "v2");
    let mut new = slow_request(&server, 1_500);
    let report = report_of(&server, Signal::SIGUSR2);
    assert_eq!((report.verb.as_str(), report.result.as_str(), report.cut), ("cut", "done", Some(vec![1])));
    old.receive().expect_err("a cut request must not look answered");
    new.receive().expect("what serves was touched");
    server.wait_drained();
    // Nothing drains: nothing is cut.
    let report = report_of(&server, Signal::SIGUSR2);
    assert_eq!((report.result.as_str(), report.cut), ("done", Some(vec![])));
    assert_eq!(server.probe().0, "v2");
}

#[test]
fn endless_usr2_ends_a_shutdown_that_waits() {
    let mut server = preset("endless").set("shutdown.timeout", "never").start();
    let mut slow = slow_request(&server, 600_000);
    server.signal(Signal::SIGTERM);
    server.wait_for("the drain", |status| status.living().all(|one| one.state == "retiring"));
    server.signal(Signal::SIGUSR2);
    slow.receive().expect_err("a cut request must not look answered");
    assert_eq!(server.wait_end(wait::LONG).code(), Some(3));
}

// ---- what plugins hear ----

#[track_caller]
fn heard(server: &Server, signals: &str) {
    wait::until(&format!("the plugin to hear {signals}"), wait::LONG, || {
        (server.get("/heard").text() == signals).then_some(())
    });
}

fn listening(name: &str) -> Setup {
    Setup::new().plugin("control", &artifacts::plugin("control")).set("signals.preset", name)
}

#[test]
fn endless_usr1_and_tstp_reach_the_plugins_of_what_serves() {
    let server = listening("endless").start();
    heard(&server, "[]");
    server.signal(Signal::SIGUSR1);
    heard(&server, "[Usr1]");
    server.signal(Signal::SIGTSTP);
    heard(&server, "[Usr1, Tstp]");
    assert!(!process::is_stopped(server.pid()), "TSTP stops nobody here");
    // The generation that follows has heard nothing yet, and hears what comes.
    server.switch();
    heard(&server, "[]");
    server.signal(Signal::SIGTSTP);
    heard(&server, "[Tstp]");
    assert_eq!(server.status().operations.len(), 2, "a hook is no operation");
}

#[test]
fn a_typed_tstp_reaches_the_plugins_once_and_stops_no_worker() {
    let server = listening("endless").start();
    let worker = server.worker();
    // At a terminal all in the foreground get it.
    process::kill(worker, Signal::SIGTSTP);
    server.signal(Signal::SIGTSTP);
    heard(&server, "[Tstp]");
    assert!(!process::is_stopped(worker));
}

#[test]
fn a_hook_that_nobody_listens_for_harms_nothing() {
    let server = preset("endless").start();
    let worker = server.worker();
    server.signal(Signal::SIGUSR1);
    server.signal(Signal::SIGTSTP);
    let report = report_of(&server, Signal::SIGHUP);
    assert_eq!(report.result, "switched", "{report:#?}");
    assert_eq!(server.status().crashes, 0);
    assert_ne!(server.worker(), worker);
}

#[test]
fn without_the_preset_usr1_reloads_and_no_plugin_hears_of_it() {
    let server = listening("baton").start();
    let report = report_of(&server, Signal::SIGUSR1);
    assert_eq!((report.verb.as_str(), report.result.as_str()), ("reload", "switched"));
    heard(&server, "[]");
}

#[test]
fn a_stopped_master_does_not_hold_up_its_clients() {
    let server = preset("baton").start();
    let addr = server.addr();
    server.signal(Signal::SIGTSTP);
    wait::until("the master to stop", wait::LONG, || process::is_stopped(server.pid()).then_some(()));
    assert_eq!(baton_tests::http::get(addr, "/").expect("an answer").status, 200);
    server.signal(Signal::SIGCONT);
    assert_eq!(report_of(&server, Signal::SIGUSR1).result, "switched");
}

// ---- what does not work ----

#[test]
fn a_signal_s_reload_of_a_bad_plugin_is_refused_and_the_old_code_serves_on() {
    for (name, signal) in [("baton", Signal::SIGUSR1), ("gf", Signal::SIGUSR1), ("endless", Signal::SIGHUP)] {
        let server = preset(name).start();
        let old = server.worker();
        std::fs::write(server.bench.plugin_file("probe"), "no plugin").expect("failed to break the plugin");
        let report = report_of(&server, signal);
        assert_eq!((report.verb.as_str(), report.result.as_str()), ("reload", "refused"), "{name}: {report:#?}");
        assert_eq!(report.plugin.as_deref(), Some("probe"));
        assert_eq!(server.probe(), ("v1".into(), old));
        // The next one, with a good plugin, is as good as any.
        server.bench.install("probe", &artifacts::probe("v2"));
        assert_eq!(report_of(&server, signal).result, "switched");
        server.wait_settled();
        assert_eq!(server.probe().0, "v2");
    }
}

#[test]
fn a_preset_that_is_none_is_a_configuration_error_that_says_what_was_meant() {
    let setup = Setup::new();
    setup.bench().configure("name = \"x\"\n[signals]\npreset = \"endles\"\n");
    let outcome = setup.bench().cli(&["run"]);
    outcome.assert_code(78);
    let says = "line 3: signals.preset: `endles` is no preset; did you mean \"endless\"?";
    assert!(outcome.stderr.contains(says), "{outcome:#?}");
    let outcome = setup.bench().cli(&["run", "--set", "signals.preset=nginx"]);
    assert!(outcome.assert_code(78).stderr.contains("\"baton\", \"gf\" and \"endless\""), "{outcome:#?}");
}

#[test]
fn the_preset_does_not_change_by_a_reload() {
    let config = |name: &str| format!("[[server]]\nlisten = [\"127.0.0.1:0\"]\n[signals]\npreset = \"{name}\"\n");
    let server = Setup::probe("v1").config(&config("baton")).start();
    server.bench.configure(&config("gf"));
    let report = report_of(&server, Signal::SIGHUP);
    assert_eq!((report.result.as_str(), report.stage.as_deref()), ("refused", Some("config")), "{report:#?}");
    assert!(report.error.is_some_and(|error| error.contains("[signals]")));
    server.bench.configure(&config("baton"));
    assert_eq!(report_of(&server, Signal::SIGHUP).result, "switched");
}

#[test]
fn the_help_names_the_signals_of_every_preset() {
    let text = Setup::new().bench().cli(&["run", "--help"]).assert_code(0).stdout.clone();
    for line in ["baton    HUP USR1 reload", "gf       USR1 reload", "endless  HUP reload", "USR1 TSTP to the plugins"]
    {
        assert!(text.contains(line), "{text}");
    }
}

// ---- the terminal ----

/// A terminal, and the file by which it is opened. It hangs up when the descriptor is closed.
fn terminal() -> (PtyMaster, PathBuf) {
    // What other tests start meanwhile must not hold it open.
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let held = posix_openpt(flags).expect("failed to make a terminal");
    grantpt(&held).and_then(|()| unlockpt(&held)).expect("failed to open the terminal up");
    let path = ptsname_r(&held).expect("a terminal has a name");
    (held, path.into())
}

#[test]
fn a_terminal_that_goes_away_shuts_down_and_lets_requests_finish() {
    let (held, path) = terminal();
    let mut server = preset("baton").terminal(&path).start();
    let mut slow = slow_request(&server, 1_000);
    drop(held);
    slow.receive().expect("the running request was cut");
    assert_eq!(server.wait_end(wait::LONG).code(), Some(0));
}

/// As a shell does: tells its job of the end, and ends, upon which the kernel tells those in the foreground.
const SHELL: &str = "trap 'kill -HUP $job; exit 0' HUP; \"$@\" & job=$!; while :; do wait; done";

#[test]
fn a_shell_that_tells_of_the_end_of_its_terminal_shuts_down_and_its_own_end_does_not_cut() {
    let (held, path) = terminal();
    let server = preset("baton").terminal(&path).through(&["sh", "-c", SHELL, "sh"]).start();
    let (master, addr) = (server.status().pid, server.addr());
    let mut slow = slow_request(&server, 1_500);
    drop(held);
    slow.receive().expect("the running request was cut");
    wait::until("the master to end", wait::LONG, || (!process::is_alive(master)).then_some(()));
    assert!(Connection::open(addr).is_err());
}

#[test]
fn a_hup_from_the_shell_reloads_as_long_as_the_terminal_is_there() {
    let (_held, path) = terminal();
    // It sends it when it is told to, by another signal.
    let shell = format!("trap 'kill -HUP $job' USR1; {SHELL}");
    let server = preset("baton").terminal(&path).through(&["sh", "-c", &shell, "sh"]).start();
    let last = server.status().last_op();
    server.signal(Signal::SIGUSR1);
    let status = server.wait_for("the report of the reload", |status| {
        status.operation(last + 1).is_some_and(|report| report.result == "switched")
    });
    let report = status.operation(last + 1).expect("just seen");
    assert_eq!((report.verb.as_str(), report.cause.sender), ("reload", Some(server.pid())), "{report:#?}");
    assert!(!status.shutting_down);
}

#[test]
fn a_hup_from_a_stranger_reloads_though_the_terminal_is_gone() {
    let (held, path) = terminal();
    // A shell that lets its job live (`disown`), with a terminal that goes away.
    let shell = "trap : HUP; \"$@\" & while :; do wait; done";
    let server = preset("baton").terminal(&path).through(&["sh", "-c", shell, "sh"]).start();
    let master = server.status().pid;
    drop(held);
    wait::until("the terminal to go away", wait::LONG, || std::fs::File::open(&path).is_err().then_some(()));
    let last = server.status().last_op();
    process::kill(master, Signal::SIGHUP);
    let status = server.wait_for("the report of the reload", |status| {
        status.operation(last + 1).is_some_and(|report| report.has_ended())
    });
    let report = status.operation(last + 1).expect("just seen");
    assert_eq!((report.verb.as_str(), report.result.as_str()), ("reload", "switched"), "{report:#?}");
}

#[test]
fn a_signal_that_was_ignored_at_the_start_stays_ignored_also_by_the_next_program() {
    let (held, path) = terminal();
    let ignoring = ["env", "--ignore-signal=HUP"];
    let setup = Setup::probe("v1").set("signals.preset", "gf");
    let server = setup.terminal(&path).through(&ignoring).start();
    for round in 1..=2 {
        server.signal(Signal::SIGHUP);
        let last = server.status().last_op();
        let report = report_of(&server, Signal::SIGUSR1);
        assert_eq!((report.op, report.result.as_str()), (last + 1, "switched"), "the HUP did nothing");
        if round == 1 {
            server.cli(&["restart", "--name", &server.name]).assert_code(0);
        }
    }
    drop(held);
    assert_eq!(report_of(&server, Signal::SIGUSR1).result, "switched", "it outlives its terminal");
    assert!(!server.status().shutting_down);
}
