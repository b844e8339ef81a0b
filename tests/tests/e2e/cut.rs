//! What drains may be ended before its time: by `cut` whatever it does, and for a switch that waits for room only what is idle.

use std::time::{Duration, Instant};

use baton_tests::server::{Server, Setup, answered_by};
use baton_tests::status::Report;

use crate::{slow_request, switch_to};

#[track_caller]
fn draining(server: &Server) -> u64 {
    let status = server.status();
    let old = status.living().find(|one| one.state == "retiring").unwrap_or_else(|| panic!("none drains: {status:#?}"));
    old.generation
}

#[test]
fn a_cut_ends_the_requests_of_the_old_generation_and_leaves_the_new_alone() {
    let server = Setup::probe("v1").start();
    let mut old = slow_request(&server, 600_000);
    switch_to(&server, "v2");
    let mut new = slow_request(&server, 3_000);
    let begun = Instant::now();
    let outcome = server.cli(&["cut", "--name", &server.name, "--json"]);
    let report: Report = outcome.assert_code(0).json();
    assert!(begun.elapsed() < Duration::from_secs(20), "cut means now");
    assert_eq!((report.verb.as_str(), report.result.as_str(), report.cut), ("cut", "done", Some(vec![1])));
    assert_eq!(report.drain.expect("how it drained").cut.busy, 1);
    old.receive().expect_err("a cut request must not look answered");
    assert_eq!(answered_by(&new.receive().expect("what serves was touched")).0, "v2");
    // The switch that left it behind knows of it too.
    let status = server.wait_drained();
    let switch = status.operations.iter().find(|report| report.generation == Some(2)).expect("the switch");
    assert_eq!(switch.drain.as_ref().expect("how it drained").cut.busy, 1);
}

#[test]
fn without_a_cut_the_old_generation_answers_and_says_meanwhile_what_it_waits_for() {
    let server = Setup::probe("v1").start();
    let mut old = slow_request(&server, 4_000);
    switch_to(&server, "v2");
    let status = server.wait_for("the age of the oldest request", |status| {
        status.living().any(|one| one.state == "retiring" && one.load.oldest_request_ms >= 1_000)
    });
    let one = status.living().find(|one| one.state == "retiring").expect("just seen");
    assert_eq!((one.load.connections, one.load.requests_in_flight), (1, 1));
    assert!(one.deadline_ms.is_some_and(|most| most < 620_000), "{one:?}");
    assert_eq!(answered_by(&old.receive().expect("the running request was cut")).0, "v1");
    server.wait_drained();
    // Nothing is left to cut.
    let outcome = server.cli(&["cut", "--name", &server.name]);
    assert_eq!(outcome.assert_code(0).stdout, "nothing was draining\n");
}

#[test]
fn what_serves_is_not_cut_by_its_number_and_what_drains_is() {
    let server = Setup::probe("v1").start();
    let mut old = slow_request(&server, 600_000);
    switch_to(&server, "v2");
    let ask = |generation: u64| server.cli(&["cut", "--name", &server.name, "--generation", &generation.to_string()]);
    let refused = ask(2);
    assert!(refused.assert_code(1).stderr.contains("does not drain"), "{refused:?}");
    assert_eq!(server.probe().0, "v2");
    let ended = ask(draining(&server));
    assert!(ended.assert_code(0).stdout.starts_with("ended: generation 1;"), "{ended:?}");
    old.receive().expect_err("a cut request must not look answered");
    let body = r#"{"generation":1}"#;
    let mut admin = baton_tests::http::Connection::open_unix(server.socket()).expect("failed to connect");
    admin.send("POST", "/debug/admin/cut", &[], body.as_bytes()).expect("failed to send");
    let late = admin.receive().expect("an answer");
    assert_eq!((late.status, late.json::<Report>().result.as_str()), (409, "refused"));
}

fn crowded() -> Server {
    let setup = Setup::probe("v1").set("max_draining", "1").set("drain.handover", "false");
    setup.set("drain.keepalive", "10min").set("drain.max", "never").start()
}

#[test]
fn a_switch_that_waits_for_room_closes_what_is_idle_on_the_oldest() {
    let server = crowded();
    let mut idle = server.connect();
    idle.request("GET", "/").expect("an answer");
    switch_to(&server, "v2");
    assert_eq!(draining(&server), 1);
    assert_eq!(idle.time_limit(Duration::from_millis(300)).and_then(|()| idle.read_to_close()).ok(), None, "kept");
    idle.time_limit(Duration::from_secs(20)).expect("a time limit");
    switch_to(&server, "v1");
    assert_eq!(idle.read_to_close().expect("it was not closed in good order"), b"");
    let status = server.wait_drained();
    let first = status.operations.iter().find(|report| report.generation == Some(2)).expect("the first switch");
    let drain = first.drain.as_ref().expect("how it drained");
    assert_eq!((drain.lingered, drain.cut.busy, drain.lost), (1, 0, 0));
}

#[test]
fn a_request_in_flight_is_waited_for_however_many_switches_queue() {
    let server = crowded();
    let mut slow = slow_request(&server, 3_000);
    switch_to(&server, "v2");
    server.bench.install("probe", &baton_tests::artifacts::probe("v1"));
    std::thread::scope(|scope| {
        let reload = scope.spawn(|| server.reload());
        server.wait_for("the queue", |status| status.operations.iter().any(|report| report.result == "queued"));
        assert_eq!(answered_by(&slow.receive().expect("the running request was cut")).0, "v1");
        let (code, report) = reload.join().expect("the reload's thread");
        assert_eq!((code, report.result.as_str()), (200, "switched"));
    });
}
