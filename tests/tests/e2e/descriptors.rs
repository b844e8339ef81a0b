//! Descriptors that run out, in the child, in the master, and in a new child that is to take connections over: others are
//! served, nothing is lost, and all is well again when there are more.

use std::time::{Duration, Instant};

use baton_tests::http::Connection;
use baton_tests::server::{Server, Setup, answered_by};
use baton_tests::{artifacts, process, wait};
use nix::sys::signal::Signal;

const CONNECTIONS: u64 = 200;

fn open_descriptors(pid: i32) -> u64 {
    process::fds(pid).values().sum::<usize>() as u64
}

#[track_caller]
fn post(connection: &mut Connection, id: u64) -> baton_tests::http::Response {
    let (id, body) = (id.to_string(), format!("body of {id}").repeat(50));
    connection.send("POST", "/echo", &[("x-id", &id)], body.as_bytes()).expect("failed to send");
    let response = connection.receive().expect("a POST was lost");
    assert_eq!((response.status, response.header("x-id"), response.text()), (200, Some(&*id), body));
    response
}

/// Idle connections through a reload whose new process has so many descriptors; who answered each POST that followed, and
/// whether its connection stays.
fn posts_after_a_reload(descriptors: Option<u64>) -> (Server, i32, Vec<(i32, bool)>) {
    let server = Setup::probe("v1").start();
    let mut connections: Vec<Connection> = (0..CONNECTIONS).map(|_| server.connect()).collect();
    for (id, connection) in connections.iter_mut().enumerate() {
        post(connection, id as u64);
    }
    if let Some(descriptors) = descriptors {
        // The master's children have what it has.
        process::limit_descriptors(server.pid(), descriptors);
    }
    server.bench.install("probe", &artifacts::probe("v2"));
    server.switch();
    let new = server.worker();
    let answers = connections.iter_mut().enumerate().map(|(id, connection)| {
        // The old process announces closes from RETIRE on, which may come after the first of these.
        wait::until("a new process or an announced close", wait::LONG, || {
            let response = post(connection, 1000 + id as u64);
            let by = answered_by(&response).1;
            (by == new || response.close).then_some((by, !response.close))
        })
    });
    let answers = answers.collect();
    drop(connections);
    (server, new, answers)
}

#[test]
fn a_new_process_short_of_descriptors_refuses_and_the_old_one_keeps_them_to_a_good_end() {
    let (server, new, answers) = posts_after_a_reload(Some(150));
    let kept = answers.iter().filter(|(by, _)| *by != new).count() as u64;
    assert!(kept > CONNECTIONS / 3, "only {kept} were kept: {answers:?}");
    assert!(
        answers.iter().all(|(by, stays)| (*by == new) == *stays),
        "announced by the old, kept by the new: {answers:?}"
    );
    let status = server.wait_drained();
    let drain = status.operations[0].drain.clone().expect("the old generation has drained");
    assert_eq!((drain.lost, drain.cut.total(), drain.handed_over), (0, 0, CONNECTIONS - kept), "{drain:?}");
    // Those that had been offered; the others had not come to rest by then.
    assert!((1..=kept).contains(&status.totals.taken_back), "{:?}", status.totals);
    // Nothing of what it refused stays open in the new one, and it serves others.
    let open = process::fds(new);
    assert!(open.get("socket").is_none_or(|sockets| *sockets < 20), "{open:?}");
    assert_eq!(server.probe(), ("v2".into(), new));
}

#[test]
fn a_new_process_with_descriptors_enough_takes_them_all() {
    let (server, new, answers) = posts_after_a_reload(None);
    assert!(answers.iter().all(|answer| *answer == (new, true)), "{answers:?}");
    let status = server.wait_drained();
    assert_eq!((status.totals.handed_over, status.totals.taken_back), (CONNECTIONS, 0));
}

#[test]
fn a_child_out_of_descriptors_serves_whom_it_has_and_the_others_when_it_can() {
    let server = Setup::probe("v1").start();
    let worker = server.worker();
    let before = open_descriptors(worker);
    process::limit_descriptors(worker, before + 10);
    let (begun, mut connections) = (Instant::now(), Vec::new());
    for _ in 0..30 {
        let mut connection = server.connect();
        connection.send("GET", "/", &[], b"").expect("failed to send");
        connections.push(connection);
    }
    let mut waiting = connections.split_off(10);
    for connection in &mut connections {
        assert_eq!(connection.receive().expect("there was room for it").status, 200);
    }
    wait::until("a second's pauses", wait::LONG, || {
        // Those inside are served meanwhile.
        assert_eq!(connections[0].request("GET", "/").expect("an answer").status, 200);
        let failures = server.status().totals.limits.accept_failures;
        // Pauses grow from 5 to 500 ms: seven in the first second, then two in each.
        assert!(failures <= 20 + 4 * begun.elapsed().as_secs(), "no backoff: {failures} in {:?}", begun.elapsed());
        (failures >= 9).then_some(())
    });
    waiting[0].time_limit(Duration::from_millis(50)).expect("failed to set a time limit");
    waiting[0].receive().expect_err("there was no room for it");
    let lines = server.log().lines().filter(|line| line.contains("cannot accept for the moment")).count() as u64;
    assert!((1..=1 + begun.elapsed().as_secs()).contains(&lines), "{lines} lines in {:?}", begun.elapsed());

    process::limit_descriptors(worker, before + 100);
    for connection in &mut waiting {
        connection.time_limit(wait::LONG).expect("failed to set a time limit");
        assert_eq!(connection.receive().expect("an answer, in the end").status, 200);
    }
    assert_eq!((server.worker(), server.status().crashes), (worker, 0));
}

#[test]
fn a_master_out_of_descriptors_refuses_a_reload_and_its_child_serves_on() {
    let server = Setup::probe("v1").start();
    let (worker, master, addr) = (server.worker(), server.pid(), server.addr());
    let mut open = server.connect();
    assert_eq!(open.request("GET", "/").expect("an answer").status, 200);
    server.bench.install("probe", &artifacts::probe("v2"));
    let enough = 1024;
    // Room for the one who asks, and for little else.
    process::limit_descriptors(master, open_descriptors(master) + 2);
    let (code, report) = server.reload();
    assert_eq!((code, report.result.as_str()), (409, "refused"), "{report:#?}");
    assert!(report.error.as_deref().is_some_and(|error| error.contains("open files")), "{report:#?}");
    assert_eq!(server.probe(), ("v1".into(), worker));

    // None at all: who asks waits, and is not asked again and again.
    process::limit_descriptors(master, 3);
    let begun = Instant::now();
    server.signal(Signal::SIGUSR1);
    let mut asks = Connection::open_unix(server.socket()).expect("the kernel lets us in");
    asks.send("GET", "/debug/admin/status", &[], b"").expect("failed to send");
    asks.time_limit(Duration::from_millis(1500)).expect("failed to set a time limit");
    asks.receive().expect_err("it cannot be let in");
    let lines =
        server.log().lines().filter(|line| line.contains("failed to accept an admin connection")).count() as u64;
    assert!((1..=1 + begun.elapsed().as_secs()).contains(&lines), "{lines} lines in {:?}", begun.elapsed());
    assert_eq!(open.request("GET", "/").expect("an answer").status, 200);
    let new = baton_tests::http::get(addr, "/").expect("a new client is served");
    assert_eq!(answered_by(&new), ("v1".into(), worker));

    process::limit_descriptors(master, enough);
    asks.time_limit(wait::LONG).expect("failed to set a time limit");
    assert_eq!(asks.receive().expect("an answer, in the end").status, 200);
    let signalled = server.wait_for("the signal's reload", |status| {
        status.operations[0].verb == "reload" && status.operations[0].has_ended() && status.last_op() > report.op
    });
    assert_eq!(signalled.operations[0].result, "refused", "{:#?}", signalled.operations[0]);
    assert_eq!((signalled.crashes, signalled.serving().and_then(|serving| serving.pid)), (0, Some(worker)));
    server.switch();
    assert_eq!(server.probe().0, "v2");
    assert_eq!(open.request("GET", "/").expect("an answer").status, 200);
}
