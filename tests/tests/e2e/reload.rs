//! Reload: whoever asks, however often, whatever runs meanwhile.

use std::time::{Duration, Instant};

use baton_tests::load::{Load, Plan};
use baton_tests::server::{Server, Setup, answered_by};
use baton_tests::status::Report;
use baton_tests::{artifacts, process};
use nix::sys::signal::Signal;

use crate::{slow_request, switch_to};

/// The report of a switch from generation 1 to 2 says all that a caller wants to know.
#[track_caller]
fn assert_first_switch(report: &Report, pid: i32) {
    assert_eq!((report.verb.as_str(), report.result.as_str()), ("reload", "switched"), "{report:#?}");
    assert_eq!((report.from, report.generation, report.pid), (Some(1), Some(2), Some(pid)), "{report:#?}");
    let plugins = report.plugins.as_ref().expect("what changed");
    assert_eq!(plugins.changed, ["probe"], "{report:#?}");
    assert!(plugins.added.is_empty() && plugins.removed.is_empty() && plugins.unchanged.is_empty(), "{report:#?}");
}

fn reload_by_signal(signal: Signal, name: &str) {
    let server = Setup::probe("v1").start();
    let (version, old) = server.probe();
    assert_eq!((version.as_str(), old), ("v1", server.worker()));
    server.bench.install("probe", &artifacts::probe("v2"));
    let report = server.reload_by_signal(signal);
    server.wait_settled();
    let (version, new) = server.probe();
    assert_eq!(version, "v2");
    assert_ne!(new, old);
    let status = server.wait_drained();
    let past = status.generations.iter().find(|one| one.generation == 1).expect("it is still listed");
    assert_eq!((past.load.requests, past.load.connections), (1, 0), "what it has done stays known");
    assert_first_switch(&report, new);
    assert_eq!(report.cause.by, "signal");
    assert!(report.cause.signal.as_deref().is_some_and(|signal| signal.contains(name)), "{report:#?}");
    assert_eq!(report.cause.sender, Some(std::process::id().cast_signed()), "{report:#?}");
}

#[test]
fn sigusr1_brings_the_new_code() {
    reload_by_signal(Signal::SIGUSR1, "USR1");
}

#[test]
fn sighup_brings_the_new_code() {
    reload_by_signal(Signal::SIGHUP, "HUP");
}

#[test]
fn the_admin_socket_brings_the_new_code() {
    let server = Setup::probe("v1").start();
    server.bench.install("probe", &artifacts::probe("v2"));
    let report = server.switch();
    let (version, new) = server.probe();
    assert_eq!(version, "v2");
    assert_first_switch(&report, new);
    assert_eq!(report.cause.by, "admin");
    assert_eq!(server.status().operation(report.op).map(|report| report.result.as_str()), Some("switched"));
    let later: Report = server.admin("GET", &format!("/debug/admin/ops/{}", report.op)).json();
    assert_eq!((later.op, later.result.as_str()), (report.op, "switched"));
}

#[test]
fn the_command_line_brings_the_new_code() {
    let server = Setup::probe("v1").start();
    server.bench.install("probe", &artifacts::probe("v2"));
    let outcome = server.cli(&["reload", "--name", &server.name, "--json"]);
    let report: Report = outcome.assert_code(0).json();
    server.wait_settled();
    let (version, new) = server.probe();
    assert_eq!(version, "v2");
    assert_first_switch(&report, new);
}

#[test]
fn curl_over_the_admin_socket_brings_the_new_code_with_curl() {
    let server = Setup::probe("v1").start();
    server.bench.install("probe", &artifacts::probe("v2"));
    let output = std::process::Command::new("curl")
        .args(["--silent", "--show-error", "--request", "POST", "--unix-socket"])
        .arg(server.socket())
        .arg("http://localhost/debug/admin/reload")
        .output()
        .expect("failed to run curl");
    let report: Report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    server.wait_settled();
    assert_first_switch(&report, server.probe().1);
}

#[test]
fn a_reload_without_a_change_still_starts_a_fresh_process() {
    let server = Setup::probe("v1").start();
    let old = server.worker();
    let report = server.switch();
    assert_eq!(report.plugins.expect("what changed").unchanged, ["probe"]);
    assert_ne!(server.probe().1, old);
}

#[test]
fn a_slow_request_ends_in_the_old_process_while_new_ones_reach_the_new() {
    let server = Setup::probe("v1").start();
    let old = server.worker();
    let mut slow = slow_request(&server, 1500);
    let new = switch_to(&server, "v2");
    assert_ne!(new, old);
    let status = server.status();
    assert_eq!(status.living().count(), 2, "{status:#?}");
    let response = slow.receive().expect("the slow request was cut");
    assert_eq!(answered_by(&response), ("v1".into(), old));
    assert_eq!(response.text(), format!("v1 {old} -\n"));
    assert!(!response.close, "the connection lives on");
    server.wait_drained();
    assert!(!process::is_alive(old));
    slow.send("GET", "/", &[], b"").expect("the connection was closed");
    let response = slow.receive().expect("the connection was closed");
    assert_eq!(answered_by(&response), ("v2".into(), new));
}

#[test]
fn whoever_was_told_of_the_switch_reaches_the_new_code() {
    let server = Setup::probe("v1").start();
    let busy = Load::start(Plan { keepalive: 32, fresh: 2, ..Plan::against(server.addr()) });
    for _ in 0..20 {
        let (code, report) = server.reload();
        assert_eq!(code, 200, "{report:#?}");
        assert_eq!(Some(server.probe().1), report.pid, "a new connection after the answer");
    }
    busy.stop().assert_nothing_lost();
}

#[test]
fn without_handover_the_old_process_says_that_it_closes() {
    let server = Setup::probe("v1").set("drain.handover", "false").start();
    let mut slow = slow_request(&server, 500);
    switch_to(&server, "v2");
    let response = slow.receive().expect("the slow request was cut");
    assert!(response.close && answered_by(&response).0 == "v1");
}

#[test]
fn a_response_in_the_middle_of_its_body_ends_whole_in_the_old_process() {
    let server = Setup::probe("v1").start();
    let mut stream = server.connect();
    stream.send("GET", "/stream?chunks=50&ms=20", &[], b"").expect("failed to send");
    server.wait_for("the stream", |status| status.serving().is_some_and(|one| one.load.requests_in_flight == 1));
    switch_to(&server, "v2");
    let response = stream.receive().expect("the stream was cut");
    assert_eq!(response.text().lines().count(), 50);
    assert_eq!(answered_by(&response).0, "v1");
}

#[test]
fn a_request_body_that_comes_slowly_is_taken_whole_by_the_old_process() {
    let server = Setup::probe("v1").start();
    let mut upload = server.connect();
    upload.write(b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n01234").expect("failed to send");
    server.wait_for("the upload", |status| status.serving().is_some_and(|one| one.load.requests_in_flight == 1));
    switch_to(&server, "v2");
    upload.write(b"56789").expect("the upload was cut");
    let response = upload.receive().expect("the upload was cut");
    assert_eq!((response.text().as_str(), answered_by(&response).0.as_str()), ("0123456789", "v1"));
}

#[test]
fn a_request_that_outlasts_the_drain_is_cut_so_that_the_client_can_tell_and_counted() {
    let server = Setup::probe("v1").set("drain.timeout", "300ms").start();
    let mut slow = slow_request(&server, 60_000);
    let old = server.worker();
    server.bench.install("probe", &artifacts::probe("v2"));
    let report = server.switch();
    slow.receive().expect_err("a cut request must not look answered");
    server.wait_drained();
    assert!(!process::is_alive(old));
    let drain = server
        .wait_for("the drain report", |status| status.operation(report.op).is_some_and(|op| op.drain.is_some()))
        .operation(report.op)
        .and_then(|op| op.drain.clone())
        .expect("just seen");
    assert_eq!((drain.cut.busy, drain.cut.total(), drain.lost), (1, 1, 0), "{drain:#?}");
}

#[test]
fn ten_reloads_pass_while_one_request_of_ten_seconds_runs() {
    let server = Setup::probe("v1").start();
    let master = server.pid();
    let begun = Instant::now();
    let mut slow = slow_request(&server, 10_000);
    let first = server.worker();
    let mut pids = vec![first];
    for round in 0..10 {
        let pid = switch_to(&server, if round % 2 == 0 { "v2" } else { "v1" });
        assert!(!pids.contains(&pid), "pid {pid} serves twice: {pids:?}");
        pids.push(pid);
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "the ten reloads took longer than the request");
    let response = slow.receive().expect("the request of ten seconds was cut");
    assert_eq!(answered_by(&response), ("v1".into(), first));
    assert!(begun.elapsed() >= Duration::from_secs(10));
    let status = server.wait_drained();
    assert_eq!((status.pid, status.switches, status.serving), (master, 11, Some(11)), "{status:#?}");
}

#[test]
fn a_plain_copy_over_the_loaded_file_harms_nobody() {
    let server = Setup::probe("v1").start();
    let old = server.worker();
    server.bench.overwrite("probe", &artifacts::probe("v2"));
    // The file under the old process has changed in place: it must not have been mapped.
    for _ in 0..20 {
        assert_eq!(server.probe(), ("v1".into(), old));
    }
    let mut slow = slow_request(&server, 700);
    server.switch();
    assert_eq!(server.probe().0, "v2");
    server.bench.overwrite("probe", &artifacts::probe("v1"));
    assert_eq!(server.probe().0, "v2");
    assert_eq!(answered_by(&slow.receive().expect("the slow request was cut")), ("v1".into(), old));
    let status = server.wait_drained();
    assert_eq!(status.crashes, 0, "{status:#?}");
}

#[test]
fn every_caller_of_a_reload_is_answered() {
    let server = Setup::probe("v1").start();
    server.bench.install("probe", &artifacts::probe("v2"));
    let answers: Vec<(u16, Report)> = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..6).map(|_| scope.spawn(|| server.reload())).collect();
        callers.into_iter().map(|caller| caller.join().expect("a caller was not answered")).collect()
    });
    for (code, report) in &answers {
        assert_eq!((*code, report.result.as_str()), (200, "switched"), "{answers:#?}");
    }
    server.wait_settled();
    assert_eq!(server.probe().0, "v2");
    // Those that waited were covered by one operation.
    let switches = server.status().switches;
    assert!((2..=7).contains(&switches), "{switches} switches for six callers");
    server.wait_drained();
}

#[test]
fn three_failed_reloads_leave_no_trace_in_a_fourth_good_one() {
    let server = Setup::probe("v1").start();
    let old = server.worker();
    for _ in 0..3 {
        std::fs::write(server.bench.plugin_file("probe"), "not a library").expect("failed to write");
        let (code, report) = server.reload();
        assert_eq!((code, report.result.as_str()), (409, "refused"), "{report:#?}");
        assert_eq!(server.probe(), ("v1".into(), old));
    }
    let new = switch_to(&server, "v2");
    assert_ne!(new, old);
    let status = server.wait_drained();
    assert_eq!((status.crashes, status.serving().and_then(|one| one.pid)), (0, Some(new)), "{status:#?}");
}

#[test]
fn plugins_come_and_go_with_a_reload() {
    let server = Setup::probe("v1").set("plugins.second.mount", "/second").start();
    server.bench.install("second", &artifacts::probe("v2"));
    let report = server.switch();
    assert_eq!(report.plugins.expect("what changed").added, ["second"]);
    assert_eq!(answered_by(&server.get("/")).0, "v1");
    assert_eq!(answered_by(&server.get("/second/")).0, "v2");
    server.bench.remove("second");
    let report = server.switch();
    assert_eq!(report.plugins.expect("what changed").removed, ["second"]);
    // Now the path of the first plugin.
    assert_eq!(server.get("/second/").status, 404);
}

#[test]
fn two_plugins_on_one_mount_are_refused_with_the_line_to_add() {
    let server = Setup::probe("v1").start();
    let old = server.worker();
    server.bench.install("second", &artifacts::probe("v2"));
    let (code, report) = server.reload();
    assert_eq!((code, report.result.as_str()), (409, "refused"), "{report:#?}");
    let text = format!("{:?} {:?}", report.error, report.hint);
    assert!(text.contains("second") && text.contains("probe") && text.contains("mount"), "{report:#?}");
    assert_eq!(server.probe(), ("v1".into(), old));
}

#[test]
fn without_a_plugin_it_runs_and_answers_503_and_says_where_it_looked() {
    let server = Setup::new().start();
    let response = server.get("/");
    assert_eq!(response.status, 503);
    assert!(response.header("retry-after").is_some(), "{response:?}");
    assert!(server.log().contains(&*server.bench.plugins().to_string_lossy()), "the log does not say where it looked");
    server.bench.install("probe", &artifacts::probe("v1"));
    server.switch();
    assert_eq!(server.probe().0, "v1");
}

#[test]
fn a_reload_to_no_plugin_is_refused_unless_it_is_meant() {
    let server = Setup::probe("v1").start();
    let old = server.worker();
    server.bench.remove("probe");
    let (code, report) = server.reload();
    assert_eq!((code, report.result.as_str()), (409, "refused"), "{report:#?}");
    assert!(report.hint.as_deref().is_some_and(|hint| hint.contains("allow-empty")), "{report:#?}");
    assert_eq!(server.probe(), ("v1".into(), old));
    server.cli(&["reload", "--name", &server.name]).assert_code(1);
    server.cli(&["reload", "--name", &server.name, "--allow-empty"]).assert_code(0);
    server.wait_settled();
    assert_eq!(server.get("/").status, 503);
}

#[test]
fn requests_and_connections_are_shown_by_generation() {
    let server = Setup::probe("v1").start();
    let mut open = server.connect();
    for _ in 0..5 {
        open.request("GET", "/").expect("an answer");
    }
    server.wait_for("the idle connection", |status| {
        status.serving().is_some_and(|one| one.load.connections == 1 && one.load.idle == 1 && one.load.requests == 5)
    });
    let serving = server.serving();
    assert_eq!(serving.plugins.len(), 1);
    assert_eq!((serving.plugins[0].name.as_str(), serving.plugins[0].mount.as_str()), ("probe", "/"));
    assert_eq!(serving.plugins[0].sha256.len(), 64);
}

#[test]
fn endless_responses_hold_a_switch_no_longer_than_drain_stream() {
    let server = Setup::probe("v1").set("drain.stream", "1s").set("max_draining", "1").start();
    let http2 = baton_tests::http2::Client::open(server.addr());
    let streams: Vec<_> = (0..3)
        .map(|_| {
            let mut stream = server.connect();
            stream.send("GET", "/stream?chunks=1000000&ms=50", &[], b"").expect("failed to send");
            stream
        })
        .collect();
    let stream = http2.begin("GET", "/stream?chunks=1000000&ms=50", None);
    server.wait_for("the streams", |status| status.serving().is_some_and(|one| one.load.requests_in_flight == 4));
    let begun = Instant::now();
    let report = switch_report(&server, "v2");
    // There is room for one that drains: this one waits for it.
    switch_report(&server, "v1");
    assert!(begun.elapsed() < Duration::from_secs(20), "it took {:?}", begun.elapsed());
    for mut stream in streams {
        stream.receive().expect_err("a cut stream must not look whole");
    }
    http2.wait(stream).expect_err("a cut stream must not look whole");
    let drain = server
        .wait_for("the drain report", |status| status.operation(report).is_some_and(|op| op.drain.is_some()))
        .operation(report)
        .and_then(|op| op.drain.clone())
        .expect("just seen");
    assert_eq!((drain.cut.stream, drain.cut.total(), drain.goaway), (4, 4, 1), "{drain:#?}");
}

/// Switches to that version of the probe; the number of the operation.
#[track_caller]
fn switch_report(server: &Server, version: &str) -> u64 {
    server.bench.install("probe", &artifacts::probe(version));
    server.switch().op
}
