//! Rollback: the set before serves again, and what was given up is not taken until it changes, also by the next master.

use baton_tests::server::{Server, Setup};
use baton_tests::status::{Report, Status};
use baton_tests::{artifacts, wait};
use nix::sys::signal::Signal;

use crate::restart::restart;
use crate::switch_to;

const FIRST: &str = "[[server]]\nlisten = [\"127.0.0.1:0\"]\n";

/// v1 has served, and v2 does.
fn second() -> Server {
    let server = Setup::probe("v1").start();
    switch_to(&server, "v2");
    server.wait_drained();
    server
}

#[track_caller]
fn rollback(server: &Server, args: &[&str]) -> Report {
    let args = [&["rollback", "--name", &server.name, "--json"], args].concat();
    server.cli(&args).assert_code(0).json()
}

fn holds(status: &Status, why: &str) -> bool {
    let of_the_probe =
        |change: &baton_tests::status::Change| change.what == "plugin" && change.plugin.as_deref() == Some("probe");
    status.held.iter().any(|held| of_the_probe(&held.change) && held.why == why)
}

#[track_caller]
fn assert_held(server: &Server) {
    let (code, report) = server.reload();
    assert_eq!(
        (code, report.result.as_str(), report.plugin.as_deref()),
        (409, "refused", Some("probe")),
        "{report:#?}"
    );
    assert!(report.hint.as_deref().is_some_and(|hint| hint.contains("--force")), "{report:#?}");
    assert_eq!(server.probe().0, "v1");
}

#[test]
fn after_a_rollback_a_reload_takes_the_file_only_once_it_has_changed() {
    let server = second();
    let report = rollback(&server, &[]);
    assert_eq!(
        (report.verb.as_str(), report.result.as_str(), report.from),
        ("rollback", "switched", Some(2)),
        "{report:#?}"
    );
    assert_eq!(server.probe().0, "v1");
    let status = server.wait_drained();
    assert_eq!(status.pinned.as_ref().map(|pin| pin.generation), Some(1), "{status:#?}");
    assert!(holds(&status, "rolled_back"), "{status:#?}");
    let shown = server.cli(&["status", "--name", &server.name]);
    assert!(
        shown.stdout.contains("pinned to gen 1 since 20") && shown.stdout.contains("rolled back since"),
        "{shown:?}"
    );
    assert_held(&server);
    // The same content under the same name is no change.
    server.bench.overwrite("probe", &artifacts::probe("v2"));
    assert_held(&server);
    switch_to(&server, "v3");
    assert_eq!(server.status().pinned, None);
    // It still knows the bad one.
    server.bench.install("probe", &artifacts::probe("v2"));
    let (code, report) = server.reload();
    assert_eq!((code, report.result.as_str()), (409, "refused"), "{report:#?}");
    assert_eq!(server.probe().0, "v3");
}

#[test]
fn force_takes_it_all_the_same() {
    let server = second();
    rollback(&server, &[]);
    assert_held(&server);
    server.cli(&["reload", "--name", &server.name, "--force"]).assert_code(0);
    assert_eq!(server.probe().0, "v2");
    let status = server.status();
    assert!(status.pinned.is_none() && status.held.is_empty(), "{status:#?}");
}

#[test]
fn what_else_is_new_is_taken_beside_what_is_held_back() {
    let server = second();
    rollback(&server, &[]);
    server.bench.install("hello", &artifacts::plugin("hello"));
    server.bench.configure("[plugins.hello]\nmount = \"/hello\"\n");
    let (code, report) = server.reload();
    assert_eq!((code, report.result.as_str()), (200, "switched"), "{report:#?}");
    assert_eq!(report.held.len(), 1, "{report:#?}");
    assert_eq!((server.probe().0.as_str(), server.get("/hello").status), ("v1", 200));
    assert_eq!(server.status().pinned.map(|pin| pin.generation), Some(1));
}

#[test]
fn a_pin_survives_a_restart_of_the_master_and_its_death() {
    let mut server = second();
    rollback(&server, &[]);
    server.wait_drained();
    let before = server.status();
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_end(wait::LONG).code(), Some(0));
    let mut next = Setup::in_bench_of(&server).named(&server.name).start();
    assert_eq!(next.probe().0, "v1", "v2 lies in the folder");
    let status = next.status();
    assert_eq!((&status.pinned, &status.held), (&before.pinned, &before.held));
    assert_held(&next);
    next.signal(Signal::SIGKILL);
    next.wait_end(wait::LONG);
    wait::until("the last process to end", wait::LONG, || next.processes().is_empty().then_some(()));
    let last = Setup::in_bench_of(&next).named(&next.name).start();
    assert_eq!(last.probe().0, "v1");
    last.cli(&["reload", "--name", &last.name, "--force"]).assert_code(0);
    assert_eq!((last.probe().0.as_str(), last.status().pinned), ("v2", None));
}

#[test]
fn a_rollback_by_number_and_one_to_nowhere() {
    let server = second();
    switch_to(&server, "v3");
    server.wait_drained();
    rollback(&server, &["--to", "1"]);
    assert_eq!(server.probe().0, "v1");
    let outcome = server.cli(&["rollback", "--name", &server.name, "--to", "99"]);
    outcome.assert_code(1);
    assert!(outcome.stderr.contains("generation 99: its set is not kept"), "{outcome:?}");

    let fresh = Setup::probe("v1").start();
    let response = fresh.admin("POST", "/debug/admin/rollback");
    let report: Report = response.json();
    assert_eq!((response.status, report.result.as_str()), (409, "refused"), "{report:#?}");
    assert!(report.error.as_deref().is_some_and(|error| error.contains("no other set")), "{report:#?}");
    assert_eq!(fresh.probe().0, "v1");
}

#[test]
fn plugins_go_back_alone_or_with_all_of_their_configuration() {
    for whole in [false, true] {
        let server = Setup::probe("v1").own_program().config(FIRST).start();
        server.bench.configure(&format!("{FIRST}health = \"/up\"\n"));
        switch_to(&server, "v2");
        assert_eq!(server.get("/up").text(), "ok\n");
        let args: &[&str] = if whole { &["--with-config"] } else { &[] };
        rollback(&server, args);
        assert_eq!(server.probe().0, "v1");
        assert_eq!(server.get("/up").status, if whole { 404 } else { 200 });
        assert_held(&server);
        // Another program is news enough, and takes nothing else.
        restart(&server);
        assert_eq!((server.probe().0.as_str(), server.get("/up").status), ("v1", if whole { 404 } else { 200 }));
        assert_eq!(server.get("/up").status, if whole { 404 } else { 200 });
    }
}

#[test]
fn a_rollback_under_way_takes_the_place_of_a_reload_that_loads() {
    let server = second();
    let gate = server.bench.path().join("gate");
    server.bench.configure(&format!("[plugins.probe.config]\ninit = \"wait:{}\"\n", gate.display()));
    server.bench.install("probe", &artifacts::plugin("broken"));
    std::thread::scope(|scope| {
        let loading = scope.spawn(|| server.reload());
        server.wait_for("the new child in init", |status| {
            status.generations.first().is_some_and(|newest| newest.state == "loading")
        });
        rollback(&server, &[]);
        let (code, report) = loading.join().expect("answered");
        assert_eq!((code, report.result.as_str()), (409, "superseded"), "{report:#?}");
    });
    assert_eq!(server.probe().0, "v1");
}

#[test]
fn where_only_the_configuration_was_bad_the_rollback_must_name_it() {
    let server = Setup::probe("v1").own_program().config(FIRST).start();
    server.bench.configure(&format!("{FIRST}health = \"/up\"\n"));
    server.switch();
    let outcome = server.cli(&["rollback", "--name", &server.name]);
    outcome.assert_code(1);
    assert!(outcome.stderr.contains("--with-config"), "{outcome:?}");
    assert_eq!(server.get("/up").status, 200);
    rollback(&server, &["--with-config"]);
    let (code, report) = server.reload();
    assert_eq!((code, report.result.as_str()), (409, "refused"), "{report:#?}");
    let report = restart(&server);
    assert_eq!((report.held.len(), server.get("/up").status), (1, 404), "{report:#?}");
}
