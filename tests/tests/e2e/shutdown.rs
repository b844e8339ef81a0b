//! The end: graceful by TERM, INT, QUIT, the admin socket and the command line; by force when asked twice or too slow.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use baton_tests::load::{Class, Load, Plan};
use baton_tests::server::{Server, Setup, answered_by};
use baton_tests::{http2, wait};
use nix::sys::signal::Signal;

use crate::slow_request;

/// All are gone, the port and the directories are free.
#[track_caller]
fn assert_gone(server: &mut Server, addr: std::net::SocketAddr, code: i32) {
    let status = server.wait_end(wait::LONG);
    assert_eq!(status.code(), Some(code), "ended with {status}");
    wait::until("the last process to end", Duration::from_secs(5), || server.processes().is_empty().then_some(()));
    TcpListener::bind(addr).expect("the port is not free");
    assert!(!server.socket().exists(), "the admin socket is left behind");
}

fn ends_gracefully_by(signal: Signal) {
    let mut server = Setup::probe("v1").start();
    let addr = server.addr();
    let pid = server.worker();
    let mut idle = server.connect();
    idle.request("GET", "/").expect("an answer");
    let mut slow = slow_request(&server, 1500);
    server.signal(signal);
    let response = slow.receive().expect("the running request was cut");
    assert_eq!(answered_by(&response), ("v1".into(), pid));
    assert!(response.close, "the last answer must announce the close");
    assert_gone(&mut server, addr, 0);
}

#[test]
fn sigterm_lets_requests_finish_and_exits_0() {
    ends_gracefully_by(Signal::SIGTERM);
}

#[test]
fn sigint_lets_requests_finish_and_exits_0() {
    ends_gracefully_by(Signal::SIGINT);
}

#[test]
fn sigquit_lets_requests_finish_and_exits_0() {
    ends_gracefully_by(Signal::SIGQUIT);
}

#[test]
fn new_connections_are_refused_while_the_last_requests_finish() {
    let mut server = Setup::probe("v1").start();
    let addr = server.addr();
    let mut slow = slow_request(&server, 2000);
    server.signal(Signal::SIGTERM);
    wait::until("the port to close", wait::LONG, || std::net::TcpStream::connect(addr).err());
    slow.receive().expect("the running request was cut");
    assert_gone(&mut server, addr, 0);
}

#[test]
fn a_second_sigterm_cuts_and_exits_3() {
    let mut server = Setup::probe("v1").start();
    let addr = server.addr();
    let mut slow = slow_request(&server, 600_000);
    let begun = Instant::now();
    server.signal(Signal::SIGTERM);
    server.wait_for("the shutdown to begin", |status| status.shutting_down);
    server.signal(Signal::SIGTERM);
    slow.receive().expect_err("a cut request must not look answered");
    assert_gone(&mut server, addr, 3);
    assert!(begun.elapsed() < Duration::from_secs(20), "cut means now");
}

#[test]
fn a_request_that_outlasts_the_shutdown_is_cut_and_the_exit_code_says_so() {
    let mut server = Setup::probe("v1").set("shutdown.timeout", "500ms").start();
    let addr = server.addr();
    let mut slow = slow_request(&server, 600_000);
    server.signal(Signal::SIGTERM);
    slow.receive().expect_err("a cut request must not look answered");
    assert_gone(&mut server, addr, 3);
}

#[test]
fn during_the_delay_it_serves_and_says_that_it_is_not_ready() {
    let mut server = Setup::probe("v1").set("shutdown.delay", "3s").start();
    let addr = server.addr();
    assert_eq!(server.admin("GET", "/readyz").status, 200);
    let begun = Instant::now();
    server.signal(Signal::SIGTERM);
    server.wait_for("the shutdown to begin", |status| status.shutting_down);
    assert_eq!((server.admin("GET", "/readyz").status, server.admin("GET", "/livez").status), (503, 200));
    assert_eq!(server.get("/").status, 200, "balancers may still send");
    let mut slow = slow_request(&server, 4_000);
    assert!(begun.elapsed() < Duration::from_secs(3), "this machine is too slow for this test");
    slow.receive().expect("a request from the delay was cut");
    assert_gone(&mut server, addr, 0);
    assert!(begun.elapsed() >= Duration::from_secs(3));
}

#[test]
fn a_second_signal_ends_the_delay() {
    let mut server = Setup::probe("v1").set("shutdown.delay", "10min").start();
    let addr = server.addr();
    let mut slow = slow_request(&server, 600_000);
    server.signal(Signal::SIGTERM);
    server.wait_for("the shutdown to begin", |status| status.shutting_down);
    server.signal(Signal::SIGTERM);
    slow.receive().expect_err("a cut request must not look answered");
    assert_gone(&mut server, addr, 3);
}

#[test]
fn a_cut_ends_a_shutdown_that_waits_and_the_exit_code_says_so() {
    let mut server = Setup::probe("v1").set("shutdown.timeout", "never").start();
    let addr = server.addr();
    let mut slow = slow_request(&server, 600_000);
    server.signal(Signal::SIGTERM);
    server.wait_for("the drain", |status| status.living().all(|one| one.state == "retiring"));
    server.cli(&["cut", "--name", &server.name.clone()]);
    slow.receive().expect_err("a cut request must not look answered");
    assert_gone(&mut server, addr, 3);
}

#[test]
fn the_command_line_shuts_down() {
    let mut server = Setup::probe("v1").start();
    let addr = server.addr();
    let mut slow = slow_request(&server, 1000);
    server.cli(&["shutdown", "--name", &server.name.clone()]).assert_code(0);
    slow.receive().expect("the running request was cut");
    assert_gone(&mut server, addr, 0);
    server.cli(&["shutdown", "--name", &server.name.clone()]).assert_code(69);
}

#[test]
fn the_admin_socket_shuts_down_and_says_so_first() {
    let mut server = Setup::probe("v1").start();
    let addr = server.addr();
    let response = server.admin("POST", "/debug/admin/shutdown");
    assert_eq!(response.status, 202, "{response:?}");
    assert_gone(&mut server, addr, 0);
}

#[test]
fn a_shutdown_under_load_answers_every_request_of_its_open_connections() {
    let mut server = Setup::probe("v1").start();
    let addr = server.addr();
    let load = Load::start(Plan { keepalive: 64, ..Plan::against(addr) });
    load.wait_for_requests(500);
    server.signal(Signal::SIGTERM);
    // To the end: a client that stops before does not read of the close.
    assert_gone(&mut server, addr, 0);
    let tally = load.stop();
    println!("{tally}");
    let counts = tally.of(Class::Keepalive);
    assert!(tally.is_balanced() && tally.answered() > 500, "{tally}");
    // Who connects to a server that ends may be refused. Who was connected is answered, and told that it was the last time.
    assert_eq!((counts.failed_on_reused, counts.closed_unannounced), (0, 0), "{tally}");
    assert!(counts.closed_announced >= 64, "{tally}");
}

#[test]
fn a_shutdown_ends_a_reload_that_waits() {
    let mut server = Setup::probe("v1").set("plugins.probe.config.init", "hang").start();
    let addr = server.addr();
    server.bench.install("probe", &baton_tests::artifacts::plugin("broken"));
    server.signal(Signal::SIGUSR1);
    server.wait_for("the new child in init", |status| {
        status.generations.first().is_some_and(|newest| newest.state == "loading")
    });
    let begun = Instant::now();
    server.signal(Signal::SIGTERM);
    assert_gone(&mut server, addr, 0);
    assert!(begun.elapsed() < Duration::from_secs(20), "a shutdown does not wait for a start that hangs");
}

/// Idle connections of all kinds whose clients ignore the server's end.
fn idle_clients(server: &Server) -> (Vec<baton_tests::http::Connection>, http2::Client) {
    let mut clients: Vec<_> = (0..5).map(|_| server.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.request("GET", "/").expect("an answer").status, 200);
    }
    clients.push(server.connect());
    let client = http2::Client::open(server.addr());
    assert_eq!(client.get("/").status, 200);
    (clients, client)
}

/// For what is to be over within a second, on a machine that does much else; before, it took at least five.
const PROMPT: Duration = Duration::from_secs(4);

#[test]
fn idle_connections_do_not_hold_up_a_shutdown() {
    let mut server = Setup::probe("v1").start();
    let addr = server.addr();
    let clients = idle_clients(&server);
    let begun = Instant::now();
    server.signal(Signal::SIGTERM);
    assert_gone(&mut server, addr, 0);
    assert!(begun.elapsed() < PROMPT, "it took {:?}", begun.elapsed());
    drop(clients);
}

#[test]
fn idle_connections_do_not_hold_up_a_cold_reload() {
    let server = Setup::probe("v1").start();
    let clients = idle_clients(&server);
    server.bench.install("probe", &baton_tests::artifacts::probe("v2"));
    let report: baton_tests::status::Report =
        server.cli(&["reload", "--cold", "--json", "--name", &server.name]).assert_code(0).json();
    let unserved = report.unserved_ms.expect("it was cold");
    assert!(unserved < PROMPT.as_secs_f64() * 1000.0, "nothing accepted for {unserved} ms");
    drop(clients);
}

#[test]
fn without_a_limit_idle_connections_are_kept_as_in_a_reload() {
    let mut server = Setup::probe("v1").set("shutdown.idle", "never").start();
    let addr = server.addr();
    let clients = idle_clients(&server);
    let begun = Instant::now();
    server.signal(Signal::SIGTERM);
    assert_gone(&mut server, addr, 0);
    assert!(begun.elapsed() >= Duration::from_secs(5), "it took only {:?}", begun.elapsed());
    drop(clients);
}
