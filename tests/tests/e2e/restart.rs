//! Restart in place: the same process, ports and connections under the binary that is installed now; and every binary that
//! cannot take over, found out before or after, leaves what serves as it was.

use std::fs;
use std::path::Path;
use std::time::Duration;

use baton_tests::load::Plan;
use baton_tests::server::{Server, Setup, answered_by};
use baton_tests::status::Report;
use baton_tests::torture::{self, Course};
use baton_tests::{artifacts, process, wait};
use nix::sys::signal::Signal;

use crate::slow_request;

/// Restarts by the command line; the report.
#[track_caller]
pub fn restart(server: &Server) -> Report {
    let outcome = server.cli(&["restart", "--json"]);
    outcome.assert_code(0);
    let report: Report = outcome.json();
    assert_eq!((report.verb.as_str(), report.result.as_str()), ("restart", "switched"), "{report:#?}");
    report
}

/// A restart that must be refused with these words; all is as before, and a reload still works.
#[track_caller]
pub fn refused(server: &Server, words: &str) -> Report {
    let before = server.serving();
    let outcome = server.cli(&["restart", "--json"]);
    outcome.assert_code(1);
    let report: Report = outcome.json();
    let error = report.error.clone().unwrap_or_default();
    assert!(report.result == "refused" && error.contains(words), "{report:#?}");
    assert_eq!((report.stage.as_deref(), report.serving), (Some("restart"), Some(before.generation)), "{report:#?}");
    assert_eq!(server.probe().1, before.pid.expect("it has a process"), "the old code serves on");
    assert_eq!(server.status().pid, server.pid());
    report
}

#[test]
fn a_restart_keeps_the_pid_the_ports_and_every_connection() {
    let server = Setup::probe("v1").own_program().start();
    let (pid, old, addr) = (server.pid(), server.worker(), server.addr());
    let admin = server.status().admin;
    let listening = process::listening(pid);
    let mut idle = server.connect();
    assert_eq!(answered_by(&idle.request("GET", "/").unwrap()).1, old);
    let mut busy = slow_request(&server, 700);
    server.bench.install_program(&artifacts::baton());
    server.bench.install("probe", &artifacts::probe("v2"));
    let report = restart(&server);
    let status = server.status();
    assert_eq!((status.pid, server.addr(), &status.admin), (pid, addr, &admin));
    assert_eq!(process::listening(pid), listening, "the very same sockets");
    assert_eq!((report.from, report.generation, status.switches), (Some(1), Some(2), 2));
    let (version, new) = answered_by(&idle.request("GET", "/").unwrap());
    assert_eq!(version, "v2", "the idle connection went on to the new code");
    assert_eq!(process::stat(new).map(|stat| stat.parent), Some(pid));
    assert_eq!(answered_by(&busy.receive().unwrap()).1, old, "the old code finished its request");
    server.wait_drained();
    let drain = server.status().operation(report.op).and_then(|report| report.drain.clone()).expect("it drained");
    assert_eq!((drain.lost, server.status().crashes), (0, 0));
    let zombies = process::children(pid).into_iter().filter(|stat| stat.is_zombie()).count();
    assert_eq!(zombies, 0);
}

#[test]
fn usr2_and_the_admin_url_restart_too_and_descriptors_do_not_grow() {
    let mut server = Setup::probe("v1").own_program().start();
    restart(&server);
    let fds = server.wait_drained().master_fds;
    for round in 0..4 {
        let last = server.status().last_op();
        if round % 2 == 0 {
            server.signal(Signal::SIGUSR2);
        } else {
            let response = server.admin("POST", "/debug/admin/restart");
            assert_eq!(response.status, 202, "{response:?}");
            let report: Report = serde_json::from_slice(&response.body).unwrap();
            assert_eq!((report.op, report.result.as_str()), (last + 1, "running"));
        }
        server.wait_for("the report of the restart", |status| {
            status.operation(last + 1).is_some_and(|report| report.result == "switched" && report.verb == "restart")
        });
        // A connection to the admin socket may be among those that are counted.
        server.wait_drained();
        server.wait_for("as many descriptors as before", |status| status.master_fds <= fds);
    }
    assert_eq!(server.status().pid, server.pid());
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_end(wait::LONG).code(), Some(0));
    assert!(!server.socket().exists(), "the last program takes the socket away");
}

#[test]
fn restarts_under_the_torture_lose_nothing_and_close_nothing() {
    let course = Course::Restarts { count: 3, pause: Duration::from_millis(50) };
    let seen = torture::run(Setup::probe("v1").own_program(), |addr| Plan::torture(addr, 100), course);
    println!("{seen}");
    seen.assert_held(3);
}

#[test]
fn a_binary_that_cannot_take_over_is_refused_before_anything_is_touched() {
    let server = Setup::probe("v1").own_program().start();
    let text = server.bench.path().join("text");
    fs::write(&text, "no program\n").unwrap();
    server.bench.install_program(&text);
    refused(&server, "cannot be run");
    server.bench.install_program(Path::new("/bin/false"));
    refused(&server, "exit code 1");
    server.bench.install_program(Path::new("/bin/true"));
    refused(&server, "no baton");
    server.bench.install_program(&artifacts::own_binary("impostor"));
    refused(&server, "did not answer");
    assert_eq!(process::children(server.pid()).len(), 1, "what was tested is gone");
    fs::remove_file(server.bench.program()).unwrap();
    refused(&server, "No such file");
    server.bench.install_program(&artifacts::baton());
    restart(&server);
}

#[test]
fn a_configuration_that_the_new_master_could_not_run_refuses_the_restart() {
    let server = Setup::probe("v1").own_program().start();
    server.bench.configure("nonsense = 1\n");
    refused(&server, "nonsense");
    server.bench.configure("");
    restart(&server);
}

/// The environment of a process, as it was started with.
fn environment(pid: i32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).expect("failed to read an environment");
    bytes.split(|byte| *byte == 0).map(|entry| String::from_utf8_lossy(entry).into_owned()).collect()
}

#[test]
fn restart_and_reload_keep_the_environment_of_the_start() {
    let server = Setup::probe("v1").own_program().env("GREETING", "first").start();
    let has = |text: &str| environment(server.worker()).iter().any(|entry| entry == text);
    assert!(has("GREETING=first"));
    // What the caller of the restart has is not the server's.
    let caller = server.bench.command(&["restart", "--name", &server.name]).env("GREETING", "second").output();
    assert!(caller.expect("failed to run the program").status.success());
    assert!(has("GREETING=first") && !has("GREETING=second"));
    server.switch();
    assert!(has("GREETING=first"));
    server.bench.configure("[log]\nlevel = \"${ADDED_LATER}\"\n");
    let (code, report) = server.reload();
    assert_eq!((code, report.stage.as_deref()), (409, Some("config")), "{report:#?}");
    assert!(report.error.is_some_and(|error| error.contains("`ADDED_LATER` is not set")));
}

/// The old program has the process again, and says why.
pub fn is_back(server: &Server, before: i32, why: &str) {
    let status = server.wait_for("the old program to be back", |status| {
        status.operation(2).is_some_and(|report| report.verb == "restart" && report.result == "refused")
    });
    let report = status.operation(2).expect("it was there a moment ago");
    assert!(report.error.as_ref().is_some_and(|error| error.contains(why)), "{report:#?}");
    assert_eq!((status.pid, report.serving, status.crashes), (server.pid(), Some(1), 0));
    assert_eq!(status.generations.last().and_then(|first| first.pid), Some(before), "it went on with the same child");
    server.bench.install("probe", &artifacts::probe("v2"));
    server.switch();
    assert_eq!(server.probe().0, "v2", "and reloads work");
}
