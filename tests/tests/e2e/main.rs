//! The promises of the server, proven on the real binary from outside: one module per behaviour, each promise beside what
//! happens when it cannot be kept.

mod admin;
mod admin_surface;
mod broken;
mod cold;
mod command_line;
mod crash;
mod crash_loop;
mod cut;
mod dead_peers;
mod descriptors;
mod dev;
mod faults;
mod from_handlers;
mod growth;
mod half_close;
mod handover;
mod hints;
mod hostile;
mod http;
mod http2;
mod inputs;
mod instance_files;
mod large_numbers;
mod limits;
mod link_swaps;
mod long_config;
mod metrics;
mod privileges;
mod probation;
mod proving;
mod reload;
mod restart;
mod restart_carries;
mod restart_versions;
mod rollback;
mod servers;
mod shutdown;
mod signals;
mod stateful;
mod systemd;
mod tls;
mod under_load;
mod units;
mod unix_sockets;
mod upgrade;
mod waits;
mod watch;

use baton_tests::http::{Connection, Response};
use baton_tests::server::{Server, answered_by};
use baton_tests::{artifacts, wait};

/// Starts a request that takes `ms`, and returns once the server has it in hand.
#[track_caller]
fn slow_request(server: &Server, ms: u64) -> Connection {
    let before = server.serving().load.requests_in_flight;
    let mut connection = server.connect();
    connection.send("GET", &format!("/sleep?ms={ms}"), &[], b"").expect("failed to send a request");
    server.wait_for("the slow request in flight", |status| {
        status.serving().is_some_and(|serving| serving.load.requests_in_flight > before)
    });
    connection
}

/// Puts that version of the probe in place and reloads; the pid that serves now.
#[track_caller]
fn switch_to(server: &Server, version: &str) -> i32 {
    server.bench.install("probe", &artifacts::probe(version));
    server.switch();
    let (answered, pid) = server.probe();
    assert_eq!(answered, version);
    pid
}

/// A connection that stays with its process is answered there, and told to close once that retires: a moment after the caller
/// of the reload has heard.
#[track_caller]
fn answered_until_closed(connection: &mut Connection, version: &str) -> Response {
    wait::until("the announced close", wait::LONG, || {
        let answer = connection.request("GET", "/").expect("the connection was closed");
        assert_eq!(answered_by(&answer).0, version);
        answer.close.then_some(answer)
    })
}
