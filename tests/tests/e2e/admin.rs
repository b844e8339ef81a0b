//! Who may ask what: the admin address for people, with its token, Host and Origin; the Unix socket for its owner.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use baton_tests::http::{Connection, Response};
use baton_tests::server::{Server, Setup};

/// One request to the admin address.
#[track_caller]
fn ask(server: &Server, method: &str, target: &str, headers: &[(&str, &str)]) -> Response {
    let mut connection = Connection::open(server.admin_addr()).expect("failed to connect to the admin address");
    connection.send(method, target, headers, b"").expect("failed to send");
    connection.receive().expect("no answer")
}

#[test]
fn over_tcp_nothing_is_told_or_done_without_the_token() {
    let server = Setup::probe("v1").start();
    let before = server.status();
    for (method, target) in [
        ("GET", "/debug/admin/status"),
        ("GET", "/debug/admin/ops/1"),
        ("POST", "/debug/admin/reload"),
        ("POST", "/debug/admin/shutdown"),
    ] {
        let none = ask(&server, method, target, &[]);
        assert_eq!(none.status, 401, "{method} {target}: {none:?}");
        let wrong = ask(&server, method, target, &[("authorization", "Bearer 0123456789abcdef")]);
        assert_eq!(wrong.status, 401, "{method} {target}: {wrong:?}");
        assert!(!none.text().contains(&server.token()));
    }
    let after = server.status();
    assert_eq!((after.switches, after.last_op(), after.shutting_down), (before.switches, before.last_op(), false));
}

#[test]
fn over_tcp_the_token_opens_status_and_reload() {
    let server = Setup::probe("v1").start();
    let bearer = format!("Bearer {}", server.token());
    let status = ask(&server, "GET", "/debug/admin/status", &[("authorization", &bearer)]);
    assert_eq!(status.status, 200);
    assert_eq!(status.json::<baton_tests::status::Status>().pid, server.pid());
    server.bench.install("probe", &baton_tests::artifacts::probe("v2"));
    let reload = ask(&server, "POST", "/debug/admin/reload", &[("authorization", &bearer)]);
    assert_eq!(reload.status, 200, "{reload:?}");
    assert_eq!(reload.json::<baton_tests::status::Report>().result, "switched");
    server.wait_settled();
    assert_eq!(server.probe().0, "v2");
}

#[test]
fn a_page_from_elsewhere_is_turned_away_even_with_the_token() {
    let server = Setup::probe("v1").start();
    let bearer = format!("Bearer {}", server.token());
    let port = server.admin_addr().port();
    for (name, value) in [
        ("host", "evil.example"),
        ("host", "evil.example:80"),
        ("host", &format!("localhost.evil.example:{port}")),
        ("origin", "http://evil.example"),
        ("origin", "null"),
    ] {
        let answer = ask(&server, "POST", "/debug/admin/reload", &[("authorization", &bearer), (name, value)]);
        assert_eq!(answer.status, 403, "{name}: {value}: {answer:?}");
    }
    let own = format!("http://127.0.0.1:{port}");
    let answer = ask(&server, "POST", "/debug/admin/reload", &[("authorization", &bearer), ("origin", &own)]);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(server.status().switches, 2, "only the last was to pass");
}

#[test]
fn a_get_changes_nothing() {
    let server = Setup::probe("v1").start();
    let bearer = format!("Bearer {}", server.token());
    let before = server.status();
    for target in ["/debug/admin/reload", "/debug/admin/shutdown"] {
        let tcp = ask(&server, "GET", target, &[("authorization", &bearer)]);
        assert_eq!((tcp.status, tcp.header("allow")), (405, Some("POST")), "{tcp:?}");
        let unix = server.admin("GET", target);
        assert_eq!(unix.status, 405, "{unix:?}");
        // A person who followed a link is shown what to press, or to paste.
        let page = ask(&server, "GET", target, &[("authorization", &bearer), ("accept", "text/html")]);
        assert_eq!(page.status, 405);
        assert!(page.text().contains("<button") && page.text().contains("curl"), "{}", page.text());
    }
    let after = server.status();
    assert_eq!((after.switches, after.last_op(), after.shutting_down), (before.switches, before.last_op(), false));
}

#[test]
fn the_page_is_safe_to_open_and_holds_no_secret() {
    let server = Setup::probe("v1").start();
    let page = ask(&server, "GET", "/debug/admin", &[]);
    assert_eq!(page.status, 200);
    let policy = page.header("content-security-policy").unwrap_or_default();
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    assert_eq!(page.header("referrer-policy"), Some("no-referrer"));
    assert_eq!(page.header("set-cookie"), None);
    assert!(!page.text().contains(&server.token()));
}

#[test]
fn readiness_is_told_to_anyone() {
    let server = Setup::probe("v1").start();
    for target in ["/livez", "/readyz", "/healthz"] {
        assert_eq!(ask(&server, "GET", target, &[]).status, 200, "{target}");
    }
}

#[test]
fn files_of_the_instance_are_its_owners_alone() {
    let server = Setup::probe("v1").start();
    let mode = |path: &std::path::Path| std::fs::metadata(path).expect("it exists").permissions().mode() & 0o7777;
    assert_eq!(mode(server.socket()), 0o600);
    let runtime = server.socket().parent().expect("a folder");
    assert_eq!(mode(runtime), 0o700);
    let token = server.bench.path().join("state/baton").join(&server.name).join("admin-token");
    assert_eq!(mode(&token), 0o600);
    assert_eq!(std::fs::metadata(&token).expect("it exists").uid(), nix::unistd::geteuid().as_raw());
    let pid = std::fs::read_to_string(runtime.join("baton.pid")).expect("a pid file");
    assert_eq!(pid.trim(), server.pid().to_string());
}

#[test]
fn the_token_stays_the_same_over_a_restart() {
    let mut server = Setup::probe("v1").named("keeps-token").start();
    let token = server.token();
    assert!(token.len() >= 32);
    server.signal(nix::sys::signal::Signal::SIGTERM);
    server.wait_end(baton_tests::wait::LONG);
    assert_eq!(server.token(), token);
}

#[test]
fn without_an_admin_address_the_socket_still_works() {
    let server = Setup::probe("v1").arg("--admin").arg("off").start();
    assert_eq!(server.status().admin, None);
    server.switch();
}
