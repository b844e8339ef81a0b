//! Counters: of the server and not of a process, so that they go on through switches and crashes and never fall.

use std::collections::BTreeMap;

use baton_tests::http::Connection;
use baton_tests::process;
use baton_tests::server::{Server, Setup};
use nix::sys::signal::Signal;

use crate::switch_to;

/// `/metrics`, as Prometheus asks for it: over TCP, with the token.
#[track_caller]
fn metrics(server: &Server) -> BTreeMap<String, u64> {
    let bearer = format!("Bearer {}", server.token());
    let mut connection = Connection::open(server.admin_addr()).expect("failed to connect to the admin address");
    connection.send("GET", "/metrics", &[("authorization", &bearer)], b"").expect("failed to send");
    let response = connection.receive().expect("no answer");
    assert_eq!(response.status, 200);
    assert_eq!(response.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let text = response.text();
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line} is no sample"));
            (name.to_string(), value.parse().unwrap_or_else(|error| panic!("{line}: {error}")))
        })
        .collect()
}

fn counters(metrics: &BTreeMap<String, u64>) -> BTreeMap<&str, u64> {
    let is_counter = |name: &str| name.split('{').next().is_some_and(|name| name.ends_with("_total"));
    metrics.iter().filter(|(name, _)| is_counter(name)).map(|(name, value)| (name.as_str(), *value)).collect()
}

#[test]
fn counters_go_on_through_switches_and_crashes_and_never_fall() {
    let server = Setup::probe("v1").set("limits.body_size", "1 KiB").start();
    let (mut asked, mut last) = (0, BTreeMap::new());
    let mut look = |what: &str| {
        let now = metrics(&server);
        for (name, before) in counters(&last) {
            assert!(now[name] >= before, "{name} fell from {before} to {} {what}", now[name]);
        }
        last = now.clone();
        now
    };
    let mut idle = server.connect();
    for round in 0..6 {
        for _ in 0..3 {
            assert_eq!(idle.request("GET", "/").expect("an answer").status, 200);
        }
        let mut large = server.connect();
        large.send("POST", "/echo", &[], &[b'x'; 2048]).expect("failed to send");
        assert_eq!(large.receive().expect("an answer").status, 413);
        // The probe that `switch_to` makes is one more.
        asked += 5;
        look("while it serves");
        switch_to(&server, if round % 2 == 0 { "v2" } else { "v1" });
        look("at a switch");
        server.wait_drained();
        look("once the old generation had ended");
    }
    let moved = look("at rest");
    assert_eq!(moved["baton_requests_total"], asked);
    assert_eq!(moved["baton_limit_hits_total{limit=\"body_too_large\"}"], 6);
    assert_eq!((moved["baton_handed_over_total"], moved["baton_switches_total"]), (6, 7));
    assert_eq!((moved["baton_generations"], moved["baton_serving_generation"]), (1, 7));

    process::kill(server.worker(), Signal::SIGKILL);
    server.wait_for("the respawn", |status| status.crashes == 1 && status.serving == Some(8));
    let crashed = look("at a crash");
    assert_eq!((crashed["baton_requests_total"], crashed["baton_crashes_total"]), (asked, 1));
    assert_eq!(crashed["baton_connections"], 0);

    // The command line says the same.
    let totals = server.status().totals;
    assert_eq!((totals.requests, totals.handed_over, totals.limits.body_too_large), (asked, 6, 6));
    let text = server.cli(&["status"]);
    assert!(text.stdout.contains("6 connections handed over") && text.stdout.contains("body too large 6"), "{text:?}");
}
