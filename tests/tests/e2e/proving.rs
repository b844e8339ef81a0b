//! Probes: a new generation that does not answer as expected never meets a client, and the refusal shows what it answered.

use baton_tests::artifacts;
use baton_tests::server::{Server, Setup};
use baton_tests::status::Report;
use baton_tests::{process, wait};
use nix::sys::signal::Signal;

use crate::switch_to;

/// The probe plugin, and a server that is probed by what `keys` say.
fn probed(keys: &str) -> Setup {
    let text = format!("[[server]]\nlisten = [\"127.0.0.1:0\"]\n[[server.probe]]\n{keys}\n");
    Setup::probe("v1").config(&text)
}

#[track_caller]
fn assert_refused_at_prove(server: &Server, says: &[&str]) -> Report {
    let old = server.worker();
    let (code, report) = server.reload();
    assert_eq!((code, report.result.as_str(), report.stage.as_deref()), (409, "refused", Some("prove")), "{report:#?}");
    let error = report.error.as_deref().unwrap_or_default();
    assert!(says.iter().all(|part| error.contains(part)) && !error.contains('\n'), "{error}");
    assert_eq!(server.probe(), ("v1".into(), old), "the old code must serve on");
    let status = server.wait_drained();
    assert_eq!((status.switches, status.crashes), (1, 0), "{status:#?}");
    report
}

#[test]
fn a_generation_whose_answers_are_as_expected_serves_and_clients_are_counted_from_there() {
    let server = probed("path = \"/\"\nbody = \"v\"").start();
    let (_, report) = server.reload();
    assert_eq!(report.result, "switched", "{report:#?}");
    let load = server.serving().load;
    assert_eq!((load.requests, load.connections), (0, 0));
    switch_to(&server, "v2");
}

#[test]
fn a_generation_with_another_answer_is_refused_and_the_answer_shown() {
    let server = probed("path = \"/\"\nbody = \"v1 \"").start();
    server.bench.install("probe", &artifacts::probe("v2"));
    let report = assert_refused_at_prove(&server, &["GET /", "200 OK lacks `v1 `", "\"v2 "]);
    assert_eq!(report.plugin.as_deref(), Some("probe"));
    let outcome = server.cli(&["reload", "--name", &server.name]);
    outcome.assert_code(1);
    assert!(outcome.stderr.contains("refused at prove of probe") && outcome.stderr.contains("\"v2 "), "{outcome:?}");
    server.bench.install("probe", &artifacts::probe("v1"));
    server.switch();
}

#[test]
fn a_generation_that_hangs_or_dies_while_it_is_probed_is_refused() {
    let server = Setup::probe("v1").config("[[server]]\nlisten = [\"127.0.0.1:0\"]\n").start();
    for (keys, says) in [
        ("path = \"/sleep?ms=600000\"\ntimeout = \"300ms\"", "within 300ms"),
        ("path = \"/abort\"", "SIGABRT"),
        ("path = \"/exit?code=0\"", "exit code 0"),
        ("path = \"/panic\"", "500"),
        ("path = \"/nowhere\"", "404 Not Found"),
    ] {
        server.bench.configure(&format!("[[server]]\nlisten = [\"127.0.0.1:0\"]\n[[server.probe]]\n{keys}\n"));
        assert_refused_at_prove(&server, &[says]);
    }
}

#[test]
fn at_the_start_a_failing_probe_is_exit_code_1_and_its_line() {
    let mut server = probed("path = \"/\"\nstatus = 204").spawn();
    assert_eq!(server.wait_end(wait::LONG).code(), Some(1));
    assert!(
        server.log().contains("failed to pass the probe GET / of [[server]] `default`: it answered 200 OK, not 204")
    );
}

#[test]
fn a_set_that_comes_back_after_a_crash_is_not_held_up_by_its_probe() {
    let setup = Setup::probe("v1");
    let flag = setup.bench().path().join("well");
    std::fs::write(&flag, "").expect("failed to write a file");
    let probe = format!("path = \"/while?path={}\"", flag.display());
    setup.bench().configure(&format!("[[server]]\nlisten = [\"127.0.0.1:0\"]\n[[server.probe]]\n{probe}\n"));
    let server = setup.listen(&[]).start();
    std::fs::remove_file(&flag).expect("failed to remove a file");
    assert_refused_at_prove(&server, &["503 Service Unavailable"]);
    let old = server.worker();
    process::kill(old, Signal::SIGKILL);
    server.wait_for("a new worker", |status| status.serving().is_some_and(|serving| serving.pid != Some(old)));
    assert_eq!(server.probe().0, "v1");
}
