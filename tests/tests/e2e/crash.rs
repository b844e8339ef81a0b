//! Death, at each point of a process's life: service comes back or never went, the master's pid stays, nobody is left over.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use baton_tests::server::{Server, Setup, answered_by};
use baton_tests::status::Report;
use baton_tests::{artifacts, process, wait};
use nix::sys::signal::Signal;

use crate::{slow_request, switch_to};

/// No zombie, and exactly the processes of the living generations.
#[track_caller]
fn assert_family(server: &Server, workers: usize) {
    let children = process::children(server.pid());
    assert!(children.iter().all(|child| !child.is_zombie()), "zombies: {children:?}");
    assert_eq!(children.len(), workers, "{children:?}");
}

#[test]
fn a_killed_worker_is_replaced_and_the_masters_pid_stays() {
    let server = Setup::probe("v1").start();
    let (master, old) = (server.pid(), server.worker());
    process::kill(old, Signal::SIGKILL);
    let status = server.wait_for("a new worker", |status| {
        status.serving().is_some_and(|serving| serving.pid != Some(old) && serving.state == "serving")
    });
    assert_eq!((status.pid, status.crashes), (master, 1), "{status:#?}");
    let (version, new) = server.probe();
    assert_eq!((version.as_str(), Some(new)), ("v1", status.serving().and_then(|serving| serving.pid)));
    let serving = server.serving();
    assert_eq!((serving.cause.by.as_str(), serving.cause.of), ("crash", Some(1)), "{serving:#?}");
    let dead = status.generations.iter().find(|one| one.generation == 1).expect("the dead stays in the list");
    assert!(dead.exit.as_deref().is_some_and(|exit| exit.contains("SIGKILL")), "{dead:#?}");
    assert_family(&server, 1);
}

#[test]
fn connections_made_while_nothing_serves_wait_and_are_answered() {
    let server = Setup::probe("v1").start();
    let addr = server.addr();
    let old = server.worker();
    process::kill(old, Signal::SIGKILL);
    // Some of these come while the port has nobody behind it: none may be refused.
    for _ in 0..20 {
        match baton_tests::http::get(addr, "/") {
            Ok(response) => {
                assert_eq!(answered_by(&response).0, "v1");
            }
            // Accepted by the process that was killed.
            Err(error) => assert_ne!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{error}"),
        }
    }
    assert_ne!(server.probe().1, old);
}

#[test]
fn a_worker_that_dies_again_and_again_is_brought_back_each_time() {
    let server = Setup::probe("v1").set("crash.backoff", "50ms").start();
    for round in 1..=4 {
        let dead = server.worker();
        process::kill(dead, Signal::SIGKILL);
        server.wait_for("a new worker", |status| {
            status.crashes == round && status.serving().is_some_and(|serving| serving.pid != Some(dead))
        });
        assert_eq!(server.probe().0, "v1");
    }
    assert_family(&server, 1);
}

#[test]
fn a_handler_that_ends_the_process_costs_its_own_request_only() {
    for target in ["/exit?code=0", "/exit?code=7", "/abort"] {
        let server = Setup::probe("v1").start();
        let old = server.worker();
        server.connect().request("GET", target).expect_err("nobody can have answered");
        let status =
            server.wait_for("a new worker", |status| status.serving().is_some_and(|serving| serving.pid != Some(old)));
        assert_eq!(status.crashes, 1, "{target}: {status:#?}");
        assert_eq!(server.probe().0, "v1");
    }
}

#[test]
fn a_handler_that_panics_answers_500_and_the_process_lives_on() {
    let server = Setup::probe("v1").start();
    let old = server.worker();
    assert_eq!(server.get("/panic").status, 500);
    assert_eq!(server.probe(), ("v1".into(), old));
    let status = server
        .wait_for("the panic to be counted", |status| status.serving().is_some_and(|serving| serving.load.panics == 1));
    assert_eq!(status.crashes, 0, "{status:#?}");
}

#[test]
fn a_respawned_worker_runs_its_own_set_not_what_lies_in_the_folder() {
    let server = Setup::probe("v1").start();
    server.bench.install("probe", &artifacts::probe("v2"));
    let old = server.worker();
    process::kill(old, Signal::SIGKILL);
    server.wait_for("a new worker", |status| status.serving().is_some_and(|serving| serving.pid != Some(old)));
    assert_eq!(server.probe().0, "v1", "a crash is no reload");
    switch_to(&server, "v2");
}

/// Reloads to a plugin whose init waits for `gate`, and hands the server over once that child is in init.
fn with_loading_child(server: &Server, then: impl FnOnce(i32)) -> (u16, Report) {
    server.bench.install("probe", &artifacts::plugin("broken"));
    std::thread::scope(|scope| {
        let caller = scope.spawn(|| server.reload());
        let status = server.wait_for("the new child in init", |status| {
            // Its state alone says only that it has been sent what to load.
            status.generations.first().is_some_and(|newest| {
                newest.state == "loading" && newest.pid.is_some_and(|pid| process::maps(pid, "/store/"))
            })
        });
        then(status.generations[0].pid.expect("just seen"));
        caller.join().expect("the caller was not answered")
    })
}

fn gated() -> (Server, std::path::PathBuf) {
    let setup = Setup::probe("v1");
    let gate = setup.bench().path().join("gate");
    let server = setup.set("plugins.probe.config.init", &format!("wait:{}", gate.display())).start();
    (server, gate)
}

#[test]
fn a_new_child_killed_before_go_is_a_refused_reload() {
    let (server, _) = gated();
    let old = server.worker();
    let begun = Instant::now();
    let (code, report) = with_loading_child(&server, |child| process::kill(child, Signal::SIGKILL));
    assert!(begun.elapsed() < Duration::from_secs(20), "its death is known at once, not at start_timeout");
    assert_eq!((code, report.result.as_str()), (409, "refused"), "{report:#?}");
    assert!(report.error.as_deref().is_some_and(|error| error.contains("SIGKILL")), "{report:#?}");
    assert_eq!(server.probe(), ("v1".into(), old));
    assert_eq!(server.wait_drained().crashes, 0);
    assert_family(&server, 1);
    switch_to(&server, "v2");
}

#[test]
fn a_new_child_killed_between_go_and_serving_is_a_refused_reload() {
    let (server, gate) = gated();
    let (master, old) = (server.pid(), server.worker());
    let (code, report) = with_loading_child(&server, |child| {
        // The master must not see READY before the child is stopped: only then is GO sent to one that cannot answer.
        process::kill(master, Signal::SIGSTOP);
        std::fs::write(&gate, "").expect("failed to open the gate");
        quiet(child);
        process::kill(child, Signal::SIGSTOP);
        process::kill(master, Signal::SIGCONT);
        server.wait_for("GO without an answer", |status| {
            status.generations.iter().any(|one| one.pid == Some(child) && one.state == "committing")
        });
        process::kill(child, Signal::SIGKILL);
    });
    assert_eq!((code, report.result.as_str()), (409, "refused"), "{report:#?}");
    assert_eq!(report.stage.as_deref(), Some("switch"), "{report:#?}");
    assert_eq!(server.probe(), ("v1".into(), old));
    assert_eq!(server.wait_drained().switches, 1);
    assert_family(&server, 1);
    switch_to(&server, "v2");
}

/// Waits until the process has done all it can do: no CPU time used for a while, and not for want of a core. The while is long
/// and seen many times, since a machine that stands still shows nothing of what is due.
pub fn quiet(pid: i32) {
    const SEEN: u32 = 30;
    let (mut last, mut since, mut seen) = (process::cpu_time(pid), Instant::now(), 0);
    wait::until("the new child to wait for GO", wait::LONG, || {
        let now = process::cpu_time(pid);
        seen += 1;
        if now != last || process::is_runnable(pid) {
            (last, since, seen) = (now, Instant::now(), 0);
        }
        (seen >= SEEN && since.elapsed() > Duration::from_millis(300)).then_some(())
    });
}

#[test]
fn a_new_child_that_dies_before_the_old_one_has_retired_is_taken_back() {
    let server = Setup::probe("v1").start();
    let old = server.worker();
    server.bench.install("probe", &artifacts::probe("v2"));
    // Stopped, the old child cannot say PAUSED; so it is not told to retire, and can take over again.
    process::kill(old, Signal::SIGSTOP);
    let (code, report) = std::thread::scope(|scope| {
        let asked = scope.spawn(|| server.reload());
        let status = server.wait_for("the new child to serve", |status| {
            status.serving().is_some_and(|serving| serving.pid != Some(old))
        });
        let new = status.serving().and_then(|serving| serving.pid).expect("the new process");
        process::kill(new, Signal::SIGKILL);
        asked.join().expect("failed to ask for a reload")
    });
    // Whoever asked hears that it did not last.
    assert_eq!((code, report.result.as_str()), (409, "rolled_back"), "{report:#?}");
    process::kill(old, Signal::SIGCONT);
    let status = server.wait_for("the old child to serve again", |status| {
        status.serving().is_some_and(|serving| serving.pid == Some(old) && serving.state == "serving")
    });
    let report = status.operation(report.op).expect("the operation is kept");
    assert_eq!(report.result, "rolled_back", "{report:#?}");
    assert_eq!(server.probe(), ("v1".into(), old));
    assert_family(&server, 1);
    // That code is not taken again by itself.
    let (code, report) = server.reload();
    assert_eq!(
        (code, report.result.as_str(), report.plugin.as_deref()),
        (409, "refused", Some("probe")),
        "{report:#?}"
    );
    server.cli(&["reload", "--name", &server.name, "--force"]).assert_code(0);
    assert_eq!(server.probe().0, "v2");
}

/// Everybody gone, and the port free for the next.
#[track_caller]
fn assert_all_gone(server: &Server, addr: std::net::SocketAddr) {
    wait::until("the last process to end", wait::LONG, || server.processes().is_empty().then_some(()));
    wait::until("the port to be free", wait::LONG, || TcpListener::bind(addr).ok());
}

#[test]
fn a_killed_master_leaves_no_process_and_a_free_port() {
    // Its children end because they are done, long before they would have to.
    let mut server = Setup::probe("v1").set("drain.orphan", "10min").start();
    let addr = server.addr();
    let mut idle = server.connect();
    idle.request("GET", "/").expect("an answer");
    let mut slow = slow_request(&server, 1000);
    process::kill(server.pid(), Signal::SIGKILL);
    server.wait_end(wait::LONG);
    // What ran when the master died still ends well: the child has `drain.orphan` for it.
    assert_eq!(answered_by(&slow.receive().expect("the running request was cut")).0, "v1");
    assert_all_gone(&server, addr);
}

#[test]
fn a_killed_master_leaves_nobody_even_if_a_request_will_not_end() {
    let mut server = Setup::probe("v1").set("drain.orphan", "500ms").start();
    let addr = server.addr();
    let mut slow = slow_request(&server, 600_000);
    process::kill(server.pid(), Signal::SIGKILL);
    server.wait_end(wait::LONG);
    slow.receive().expect_err("it cannot have been answered");
    assert_all_gone(&server, addr);
}

#[test]
fn a_master_killed_while_a_child_loads_leaves_no_process() {
    let mut server = Setup::probe("v1").set("plugins.probe.config.init", "block").start();
    let addr = server.addr();
    server.bench.install("probe", &artifacts::plugin("broken"));
    server.signal(Signal::SIGUSR1);
    server.wait_for("the new child in init", |status| {
        status.generations.first().is_some_and(|newest| newest.state == "loading")
    });
    process::kill(server.pid(), Signal::SIGKILL);
    server.wait_end(wait::LONG);
    assert_all_gone(&server, addr);
}

#[test]
fn a_worker_that_is_told_to_terminate_is_replaced_without_loss() {
    let server = Setup::probe("v1").start();
    let old = server.worker();
    let mut slow = slow_request(&server, 1000);
    process::kill(old, Signal::SIGTERM);
    server.wait_for("its successor", |status| status.serving().is_some_and(|serving| serving.pid != Some(old)));
    assert_eq!(answered_by(&slow.receive().expect("the running request was cut")), ("v1".into(), old));
    let status = server.wait_drained();
    assert_eq!(status.crashes, 0, "{status:#?}");
}

#[test]
fn other_signals_do_nothing_to_a_worker() {
    let server = Setup::probe("v1").start();
    let old = server.worker();
    for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2] {
        process::kill(old, signal);
        assert_eq!(server.probe(), ("v1".into(), old), "after {signal}");
    }
}
