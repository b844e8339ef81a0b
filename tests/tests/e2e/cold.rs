//! Cold reloads: a plugin that has what only one process can have is replaced, and nobody is refused meanwhile.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use baton_tests::server::{Server, Setup, answered_by};
use baton_tests::status::Report;
use baton_tests::{artifacts, http, process, wait};
use nix::sys::signal::Signal;

use crate::slow_request;

/// A keeper that has a port of its own, and what more its configuration says.
struct Bound {
    server: Server,
    port: u16,
}

impl Bound {
    fn start() -> Bound {
        // Free again when the server starts, and of an address of which no other test is given ports.
        let free = TcpListener::bind("127.0.0.78:0").and_then(|free| free.local_addr());
        let port = free.expect("a free port").port();
        let setup = Setup::new().own_program().plugin("keeper", &artifacts::plugin("keeper"));
        configure(&setup.bench().clone(), port, "");
        Bound { server: setup.start(), port }
    }

    fn configure(&self, more: &str) {
        configure(&self.server.bench, self.port, more);
    }

    #[track_caller]
    fn cold(&self, code: i32) -> Report {
        self.server.cli(&["reload", "--cold", "--json", "--name", &self.server.name]).assert_code(code).json()
    }
}

fn configure(bench: &baton_tests::server::Workbench, port: u16, more: &str) {
    bench.configure(&format!("[plugins.keeper.config]\nport = {port}\n{more}\n"));
}

/// Clients that connect anew for each request, until they are told to stop.
struct Clients {
    over: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    fn of(server: &Server) -> Clients {
        let (over, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let addr = server.addr();
        let client = |_| {
            let (over, answered) = (over.clone(), answered.clone());
            std::thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let response = http::get(addr, "/").expect("every request is answered");
                    assert_eq!(response.status, 200, "{response:?}");
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let threads = (0..4).map(client).collect();
        let clients = Clients { over, answered, threads };
        clients.go_on();
        clients
    }

    /// Waits for answers that come later than now.
    #[track_caller]
    fn go_on(&self) {
        let before = self.answered.load(Ordering::Relaxed);
        let more = || (self.answered.load(Ordering::Relaxed) > before + 8).then_some(());
        wait::until("the clients to be answered", wait::LONG, more);
    }

    #[track_caller]
    fn end(self) {
        self.go_on();
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("every request is answered");
        }
    }
}

#[test]
fn what_only_one_process_can_have_is_reloaded_cold_and_refused_warm() {
    let bound = Bound::start();
    let server = &bound.server;
    let (code, report) = server.reload();
    assert_eq!((code, report.stage.as_deref(), report.unserved_ms), (409, Some("load"), None), "{report:#?}");
    assert!(report.error.as_ref().is_some_and(|error| error.contains("bind")), "{report:#?}");
    let clients = Clients::of(server);
    let old = server.worker();
    for from in [1, 3] {
        let report = bound.cold(0);
        assert_eq!((report.result.as_str(), report.from), ("switched", Some(from)), "{report:#?}");
        assert!(report.unserved_ms.is_some_and(|ms| ms > 0.0), "{report:#?}");
        assert!(report.drain.is_some(), "the old one had ended: {report:#?}");
        // What it handed on was saved before.
        assert_eq!(report.state.expect("the keeper saves").saved, ["keeper"]);
    }
    assert_ne!(server.worker(), old);
    clients.end();
    let text = server.cli(&["reload", "--cold", "--name", &server.name]);
    assert!(text.assert_code(0).stdout.contains("nothing accepted for "), "{text:?}");
    assert_eq!(server.status().crashes, 0);
}

#[test]
fn a_bad_plugin_reloaded_cold_brings_the_old_one_back_and_no_request_is_lost() {
    let bound = Bound::start();
    let server = &bound.server;
    let clients = Clients::of(server);
    for _ in 0..3 {
        bound.configure("fails = true");
        let report = bound.cold(1);
        assert_eq!((report.result.as_str(), report.stage.as_deref()), ("refused", Some("load")), "{report:#?}");
        assert_eq!(report.serving, Some(server.serving().generation), "{report:#?}");
        assert!(report.unserved_ms.is_some_and(|ms| ms > 0.0), "{report:#?}");
        clients.go_on();
        bound.configure("");
        bound.cold(0);
    }
    clients.end();
    let status = server.wait_drained();
    assert!(status.crashes == 0 && status.held.is_empty() && status.alert.is_none(), "{status:#?}");
}

#[test]
fn what_cannot_be_read_is_refused_before_anything_is_stopped() {
    let bound = Bound::start();
    let old = bound.server.worker();
    std::fs::write(bound.server.bench.plugin_file("keeper"), "text\n").expect("failed to write a file");
    let report = bound.cold(1);
    assert_eq!((report.stage.as_deref(), report.unserved_ms), (Some("snapshot"), None), "{report:#?}");
    assert_eq!(bound.server.worker(), old);
}

#[test]
fn a_request_in_flight_ends_in_the_old_process_and_new_connections_wait_for_the_new() {
    // A connection that the old one takes last is not idle, only slow to ask.
    let server = Setup::probe("v1").set("shutdown.idle", "20s").start();
    // Built before the request begins, which is to outlast the switch.
    let next = artifacts::probe("v2");
    let mut slow = slow_request(&server, 1500);
    server.bench.install("probe", &next);
    let addr = server.addr();
    let waiting = std::thread::spawn({
        let name = server.name.clone();
        let bench = server.bench.clone();
        move || bench.cli(&["reload", "--cold", "--json", "--name", &name])
    });
    server.wait_for("the old one to be told", |status| status.serving.is_none());
    // Until it has emptied the queue the old one may answer new connections, too; none is refused.
    let new = std::thread::spawn(move || {
        loop {
            let response = http::get(addr, "/").expect("it waits");
            match answered_by(&response).0.as_str() {
                "v1" => {}
                other => return other.to_owned(),
            }
        }
    });
    let response = slow.receive().expect("it is answered whole");
    assert_eq!((answered_by(&response).0.as_str(), response.header("connection")), ("v1", Some("close")));
    let report: Report = waiting.join().unwrap().assert_code(0).json();
    assert_eq!(report.drain.as_ref().map(|drain| (drain.lost, drain.cut.total())), Some((0, 0)), "{report:?}");
    assert_eq!(new.join().expect("it waits"), "v2");
}

#[test]
fn the_binary_is_replaced_cold_too() {
    let bound = Bound::start();
    let server = &bound.server;
    server.cli(&["restart", "--name", &server.name]).assert_code(1);
    let report: Report = server.cli(&["restart", "--cold", "--json", "--name", &server.name]).assert_code(0).json();
    assert!(report.result == "switched" && report.unserved_ms.is_some(), "{report:#?}");
    http::get(server.addr(), "/").expect("it serves");
}

#[test]
fn a_shutdown_during_a_cold_reload_ends_the_server() {
    let mut server = Setup::probe("v1").start();
    let mut slow = slow_request(&server, 1000);
    let waiting = std::thread::spawn({
        let name = server.name.clone();
        let bench = server.bench.clone();
        move || bench.cli(&["reload", "--cold", "--name", &name])
    });
    server.wait_for("the old one to be told", |status| status.serving.is_none());
    process::kill(server.pid(), Signal::SIGTERM);
    assert_eq!(slow.receive().expect("it is answered whole").status, 200);
    assert_eq!(server.wait_end(wait::LONG).code(), Some(0));
    waiting.join().unwrap().assert_code(1);
}
