//! The admin addresses under clients that mean no good, or take their time: probes get through, tokens open what they are for, and
//! the log stays short.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use baton_tests::http::{self, Connection, Response};
use baton_tests::server::{Server, Setup};
use baton_tests::wait;

#[track_caller]
fn ask(addr: SocketAddr, method: &str, target: &str, headers: &[(&str, &str)]) -> Response {
    let mut connection = Connection::open(addr).expect("failed to connect");
    connection.send(method, target, headers, b"").expect("failed to send");
    connection.receive().expect("no answer")
}

#[track_caller]
fn probe_addr(server: &Server) -> SocketAddr {
    let url = server.status().probes.expect("a probe address");
    url.strip_prefix("http://").and_then(|addr| addr.parse().ok()).unwrap_or_else(|| panic!("{url} is no address"))
}

fn with_probes() -> Setup {
    Setup::probe("v1").set("admin.probe_listen", "127.0.0.1:0")
}

/// Connections that a client opens and leaves: without a byte, in a head, in a body.
fn leave_connections(addr: SocketAddr, count: usize) -> Vec<TcpStream> {
    let begun =
        ["", "GET /readyz HTTP/1.1\r\nhost: x", "POST /debug/admin/reload HTTP/1.1\r\ncontent-length: 9\r\n\r\n"];
    let open = |number: usize| {
        let mut stream = TcpStream::connect(addr).expect("failed to connect");
        stream.write_all(begun[number % begun.len()].as_bytes()).expect("failed to send");
        stream
    };
    (0..count).map(open).collect()
}

#[test]
fn probes_get_through_idle_and_slow_admin_connections() {
    let server = with_probes().start();
    for addr in [server.admin_addr(), probe_addr(&server)] {
        let _held = leave_connections(addr, 150);
        let begun = Instant::now();
        assert_eq!(ask(addr, "GET", "/readyz", &[]).status, 200);
        // The idle ones would end by themselves after 5 s.
        assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    }
    server.cli(&["status"]).assert_code(0);
}

#[test]
fn a_client_that_never_reads_its_status_keeps_no_other_out() {
    let server = Setup::probe("v1").start();
    let ask_and_leave = || {
        let mut stream = std::os::unix::net::UnixStream::connect(server.socket()).expect("failed to connect");
        stream.set_nonblocking(true).expect("failed to set a mode");
        // Until neither side takes any more.
        let request = b"GET /debug/admin/status HTTP/1.1\r\nhost: x\r\n\r\n".repeat(1000);
        let _ = stream.write(&request);
        stream
    };
    let _held: Vec<_> = (0..100).map(|_| ask_and_leave()).collect();
    assert!(server.status().ready);
    server.cli(&["reload"]).assert_code(0);
}

#[test]
fn the_probe_address_answers_probes_and_nothing_else() {
    let server = with_probes().start();
    let addr = probe_addr(&server);
    let bearer = format!("Bearer {}", server.token());
    for (method, target, status) in [
        ("GET", "/livez", 200),
        ("GET", "/readyz", 200),
        ("GET", "/metrics", 404),
        ("GET", "/", 404),
        ("GET", "/debug/admin", 404),
        ("GET", "/debug/admin/status", 404),
        ("POST", "/debug/admin/shutdown", 404),
    ] {
        let answer = ask(addr, method, target, &[("authorization", &bearer), ("host", "balancer.example")]);
        assert_eq!(answer.status, status, "{method} {target}: {answer:?}");
    }
    assert!(!server.status().shutting_down);
}

#[test]
fn the_probe_address_outlives_a_restart_in_place() {
    let server = with_probes().start();
    let addr = probe_addr(&server);
    server.cli(&["restart"]).assert_code(0);
    assert_eq!(probe_addr(&server), addr);
    assert_eq!(ask(addr, "GET", "/readyz", &[]).status, 200);
}

#[test]
fn a_reload_does_not_change_the_probe_address_and_says_so() {
    let setup = Setup::probe("v1");
    setup.bench().configure("[admin]\nprobe_listen = \"127.0.0.1:0\"\n");
    let server = setup.start();
    let addr = probe_addr(&server);
    server.bench.configure("[admin]\nprobe_listen = \"off\"\n");
    let (code, report) = server.reload();
    assert_eq!((code, report.result.as_str()), (409, "refused"), "{report:#?}");
    assert!(report.error.as_deref().unwrap_or_default().contains("[admin]"), "{report:#?}");
    assert_eq!(ask(addr, "GET", "/livez", &[]).status, 200);
}

#[test]
fn readiness_at_the_probe_address_follows_the_server() {
    let server = with_probes().set("shutdown.delay", "30s").start();
    let addr = probe_addr(&server);
    assert_eq!(ask(addr, "GET", "/readyz", &[]).status, 200);
    server.cli(&["shutdown", "--wait", "begun"]).assert_code(0);
    wait::until("readiness to end", wait::LONG, || (ask(addr, "GET", "/readyz", &[]).status == 503).then_some(()));
    assert_eq!(ask(addr, "GET", "/livez", &[]).status, 200);
}

#[test]
fn public_metrics_need_no_token() {
    let server = with_probes().set("admin.public_metrics", "true").start();
    let metrics = ask(probe_addr(&server), "GET", "/metrics", &[]);
    assert!(metrics.status == 200 && metrics.text().contains("baton_ready 1"), "{metrics:?}");
    assert_eq!(ask(server.admin_addr(), "GET", "/metrics", &[]).status, 401, "that is for the probe address");
}

#[test]
fn public_metrics_without_a_probe_address_are_a_configuration_error() {
    let mut server = Setup::probe("v1").set("admin.public_metrics", "true").spawn();
    assert_eq!(server.wait_end(wait::LONG).code(), Some(78));
    assert!(server.log().contains("admin.probe_listen"), "{}", server.log());
}

#[test]
fn the_metrics_token_reads_metrics_and_nothing_else() {
    let server = Setup::probe("v1").start();
    let file = server.cli(&["admin", "--metrics"]).assert_code(0).stdout.trim().to_owned();
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&file).expect("the file is there"));
    assert_eq!(mode & 0o7777, 0o600);
    let bearer = format!("Bearer {}", std::fs::read_to_string(&file).expect("a token").trim());
    for (method, target, status) in [
        ("GET", "/metrics", 200),
        ("GET", "/readyz", 200),
        ("GET", "/debug/admin/status", 401),
        ("GET", "/debug/admin/ops/1", 401),
        ("POST", "/debug/admin/reload", 401),
        ("POST", "/debug/admin/shutdown", 401),
        ("GET", "/debug/admin/link", 403),
    ] {
        let answer = ask(server.admin_addr(), method, target, &[("authorization", &bearer)]);
        assert_eq!(answer.status, status, "{method} {target}: {answer:?}");
    }
    assert_eq!(server.status().switches, 1);
}

#[test]
fn rotated_tokens_are_worth_nothing_at_once_and_for_ever() {
    let server = Setup::probe("v1").start();
    let addr = server.admin_addr();
    let status =
        |token: &str| ask(addr, "GET", "/debug/admin/status", &[("authorization", &format!("Bearer {token}"))]).status;
    let old = server.token();
    assert_eq!(status(&old), 200);
    let link = server.cli(&["admin", "--rotate"]).assert_code(0).stdout.trim().to_owned();
    let new = link.split_once("#token=").expect("a link with a token").1.to_owned();
    assert_ne!(old, new);
    assert_eq!((status(&old), status(&new), server.token()), (401, 200, new.clone()));
    server.cli(&["restart"]).assert_code(0);
    assert_eq!((status(&old), status(&new)), (401, 200));
    assert_eq!(server.cli(&["admin"]).assert_code(0).stdout.trim(), link);
}

#[test]
fn tokens_are_not_rotated_over_tcp_nor_without_a_server() {
    let server = Setup::probe("v1").start();
    let token = server.token();
    let answer =
        ask(server.admin_addr(), "POST", "/debug/admin/rotate", &[("authorization", &format!("Bearer {token}"))]);
    assert_eq!((answer.status, server.token()), (403, token));
    baton_tests::server::Workbench::new().cli(&["admin", "--rotate"]).assert_code(69);
}

#[test]
fn denials_fill_neither_the_log_nor_a_line_of_it() {
    let server = Setup::probe("v1").start();
    let addr = server.admin_addr();
    let long = format!("/debug/admin/ops/{}", "x".repeat(8000));
    let begun = Instant::now();
    for _ in 0..200 {
        assert_eq!(ask(addr, "GET", &long, &[]).status, 401);
    }
    let most = begun.elapsed().as_secs() as usize + 2;
    let log = server.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("admin request denied")).collect();
    assert!((1..=most).contains(&lines.len()), "{} lines in {:?}", lines.len(), begun.elapsed());
    assert!(lines.iter().all(|line| line.len() < 700), "{}", lines[0]);
}

#[test]
fn a_flood_of_probes_does_not_hold_up_a_reload() {
    let server = with_probes().start();
    let addr = probe_addr(&server);
    let flood: Vec<TcpStream> = (0..8)
        .map(|_| {
            let mut stream = TcpStream::connect(addr).expect("failed to connect");
            stream.write_all(&b"GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n".repeat(2000)).expect("failed to send");
            stream
        })
        .collect();
    server.switch();
    for mut stream in flood {
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 200");
    }
    assert_eq!(http::get(server.addr(), "/").expect("an answer").status, 200);
}
