//! Every route against every kind of caller, without a socket.

use std::net::SocketAddr;
use std::path::PathBuf;

use http::Request as HttpRequest;

use super::*;
use crate::master::admin::access::Policy;
use crate::master::admin::token::Token;
use crate::master::admin::{Surface, Tcp};
use crate::master::handle::{Handle, Request};
use crate::report::{Failure, Generation, PluginChanges, Stage, Status, Timings, Totals};

pub fn switched(verb: Verb, cause: &Cause) -> Report {
    Report {
        result: OpResult::Switched,
        generation: Some(Generation(8)),
        from: Some(Generation(7)),
        pid: Some(123),
        ms: Some(Timings { total: 5.8, ..Timings::default() }),
        plugins: Some(PluginChanges { changed: vec!["hello".into()], ..PluginChanges::default() }),
        ..Report::new(OpId(12), verb, cause.clone())
    }
}

pub fn refused(verb: Verb, cause: &Cause) -> Report {
    let failure = Failure::new(Stage::Load, "init panicked").of_plugin("hello").hint("see its log");
    Report {
        result: OpResult::Refused,
        generation: None,
        pid: None,
        ms: None,
        plugins: None,
        stage: Some(failure.stage),
        plugin: failure.plugin,
        error: Some(failure.error),
        hint: failure.hint,
        serving: Some(Generation(7)),
        ..switched(verb, cause)
    }
}

pub fn status() -> Status {
    Status {
        watcher: Default::default(),
        pinned: None,
        held: Vec::new(),
        alert: None,
        quarantines: 0,
        systemd: None,
        name: "x".into(),
        version: "0.1.0".into(),
        pid: 1,
        uptime_ms: 1,
        ready: true,
        serving: Some(Generation(7)),
        shutting_down: false,
        listeners: Vec::new(),
        certificates: Vec::new(),
        admin: None,
        plugin_dir: "/plugins".into(),
        runs_as: None,
        generations: Vec::new(),
        operations: Vec::new(),
        totals: Totals::default(),
        switches: 1,
        crashes: 0,
        master_fds: 9,
    }
}

struct World {
    surface: Surface,
    token: String,
    _dir: tempfile::TempDir,
}

/// A surface whose loop answers `Operate` with `report` and every status with `ready`.
fn world(ready: bool, report: fn(Verb, &Cause) -> Report) -> World {
    let dir = tempfile::tempdir().unwrap();
    let token = Token::open(&dir.path().join("token")).unwrap();
    let (handle, mut requests) = Handle::new();
    tokio::spawn(async move {
        while let Some(request) = requests.recv().await {
            match request {
                Request::Operate { verb, cause, reply, .. } => drop(reply.send(report(verb, &cause))),
                Request::Status { reply } => drop(reply.send(Status { ready, ..status() })),
                Request::Operation { id, reply } => {
                    drop(reply.send((id == OpId(12)).then(|| report(Verb::Reload, &Cause::Start))));
                }
            }
        }
    });
    let address = SocketAddr::from(([127, 0, 0, 1], 9700));
    let policy = Policy { token: token.clone(), hosts: Vec::new() };
    let surface =
        Surface { handle, name: "x".into(), socket: "/run/x/admin.sock".into(), tcp: Some(Tcp { address, policy }) };
    World { surface, token: token.expose().into(), _dir: dir }
}

const SOCKET: Peer = Peer::Unix { uid: 0, pid: Some(7) };

fn browser() -> Peer {
    Peer::Tcp { peer: ([127, 0, 0, 1], 5555).into(), local: ([127, 0, 0, 1], 9700).into() }
}

async fn ask_as(
    world: &World,
    peer: &Peer,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> (u16, String, http::HeaderMap) {
    let mut request = HttpRequest::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(Bytes::from(body.to_owned()))).unwrap();
    let response = answer(&world.surface, peer, request).await;
    let (head, body) = response.into_parts();
    let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
    (head.status.as_u16(), text, head.headers)
}

#[tokio::test]
async fn who_may_ask_what_on_tcp() {
    let world = world(true, switched);
    let right = format!("Bearer {}", world.token);
    let host = ("host", "localhost:9700");
    let auth = ("authorization", right.as_str());
    let evil = ("origin", "http://evil.example.org");
    let ours = ("origin", "http://localhost:9700");
    for (method, path, headers, expected) in [
        ("GET", "/debug/admin", &[host][..], 200),
        ("HEAD", "/debug/admin", &[host], 200),
        ("GET", "/debug/admin/", &[host], 200),
        ("GET", "/debug/admin/admin.js", &[host], 200),
        ("GET", "/", &[host], 302),
        ("GET", "/debug/admin", &[("host", "evil:9700")], 403),
        ("GET", "/debug/admin/status", &[host], 401),
        ("GET", "/debug/admin/status", &[host, auth], 200),
        ("GET", "/debug/admin/status", &[host, auth, ours], 200),
        ("GET", "/debug/admin/status", &[host, auth, evil], 403),
        ("GET", "/debug/admin/status", &[("host", "evil"), auth], 403),
        ("GET", "/debug/admin/ops/12", &[host, auth], 200),
        ("GET", "/debug/admin/ops/13", &[host, auth], 404),
        ("GET", "/debug/admin/ops/x", &[host, auth], 404),
        ("GET", "/debug/admin/ops/12/x", &[host, auth], 404),
        ("GET", "/debug/admin/ops/12", &[host], 401),
        ("POST", "/debug/admin/reload", &[host], 401),
        ("POST", "/debug/admin/reload", &[host, auth, evil], 403),
        ("POST", "/debug/admin/reload", &[host, auth, ours], 200),
        ("GET", "/debug/admin/reload", &[host, auth], 405),
        ("GET", "/debug/admin/reload", &[host], 405),
        ("GET", "/debug/admin/reload", &[("host", "evil")], 403),
        ("PUT", "/debug/admin/shutdown", &[host, auth], 405),
        ("POST", "/debug/admin/status", &[host, auth], 405),
        ("GET", "/debug/admin/link", &[host, auth], 403),
        ("GET", "/metrics", &[host, auth], 200),
        ("GET", "/metrics", &[host], 401),
        ("GET", "/livez", &[], 200),
        ("GET", "/readyz", &[("host", "10.0.0.1")], 200),
        ("GET", "/healthz", &[], 200),
        ("GET", "/nowhere", &[host, auth], 404),
    ] {
        let (status, text, headers) = ask_as(&world, &browser(), method, path, headers, "").await;
        assert_eq!(status, expected, "{method} {path}: {text}");
        assert_eq!(headers["cache-control"], "no-store");
        assert!(headers["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'"));
        if expected == 405 {
            assert!(headers.contains_key("allow"));
        }
    }
}

#[tokio::test]
async fn a_get_changes_nothing_and_shows_the_way() {
    let world = world(true, |_, _| panic!("the loop was asked"));
    let host = ("host", "localhost:9700");
    let accept = ("accept", "text/html,application/xhtml+xml");
    let (status, page, headers) = ask_as(&world, &browser(), "GET", "/debug/admin/reload", &[host, accept], "").await;
    assert_eq!((status, headers["allow"].as_bytes()), (405, &b"POST"[..]));
    assert!(page.contains("<button") && page.contains("data-verb=\"reload\""), "{page}");
    assert!(page.contains("-X POST http://127.0.0.1:9700/debug/admin/reload"), "{page}");
    assert!(!page.contains(&world.token), "the token is not for who does not have it");
    let (status, text, _) = ask_as(&world, &SOCKET, "GET", "/debug/admin/shutdown", &[], "").await;
    assert_eq!(status, 405);
    assert!(text.contains("curl --unix-socket '/run/x/admin.sock' -X POST"), "{text}");
}

#[tokio::test]
async fn the_status_code_says_how_an_operation_ended() {
    for (report, expected) in [
        (switched as fn(Verb, &Cause) -> Report, 200),
        (refused, 409),
        (|verb, cause| Report { result: OpResult::RolledBack, ..switched(verb, cause) }, 409),
        (|verb, cause| Report { result: OpResult::Superseded, ..switched(verb, cause) }, 409),
        (|verb, cause| Report { result: OpResult::ShuttingDown, ..switched(verb, cause) }, 202),
    ] {
        let world = world(true, report);
        let (status, text, _) = ask_as(&world, &SOCKET, "POST", "/debug/admin/reload", &[], "").await;
        assert_eq!(status, expected, "{text}");
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap().cause, Cause::Admin { peer: "uid 0 pid 7".into() });
    }
}

#[tokio::test]
async fn a_body_is_optional_bounded_and_understood_or_refused() {
    let world = world(true, switched);
    let long = " ".repeat(BODY_LIMIT + 1);
    for (body, expected) in [
        ("", 200),
        (" \n", 200),
        ("{}", 200),
        ("{\"allow_empty\":true}", 200),
        ("{\"allow_empty\":1}", 400),
        ("{\"alow_empty\":true}", 400),
        ("allow_empty=true", 400),
        (long.as_str(), 413),
    ] {
        let (status, text, _) = ask_as(&world, &SOCKET, "POST", "/debug/admin/reload", &[], body).await;
        assert_eq!(status, expected, "{text}");
    }
}

#[tokio::test]
async fn readiness_is_the_loop_s_word_and_liveness_is_not() {
    let world = world(false, switched);
    assert_eq!(ask_as(&world, &SOCKET, "GET", "/readyz", &[], "").await.0, 503);
    assert_eq!(ask_as(&world, &SOCKET, "GET", "/livez", &[], "").await.0, 200);
}

#[tokio::test]
async fn a_loop_that_has_ended_is_said_so() {
    let (handle, requests) = Handle::new();
    drop(requests);
    let world = World { surface: Surface { handle, ..world(true, switched).surface }, ..world(true, switched) };
    let (status, text, _) = ask_as(&world, &SOCKET, "GET", "/debug/admin/status", &[], "").await;
    assert_eq!(status, 503);
    assert!(text.contains("ended"), "{text}");
}

#[tokio::test]
async fn the_link_is_for_the_socket() {
    let world = world(true, switched);
    let (status, text, _) = ask_as(&world, &SOCKET, "GET", "/debug/admin/link", &[], "").await;
    assert_eq!(status, 200);
    let link: serde_json::Value = serde_json::from_str(&text).unwrap();
    let expected = format!("http://127.0.0.1:9700/debug/admin#token={}", world.token);
    assert_eq!(link["url"], expected.as_str());
}

#[test]
fn routes_are_told_apart_by_path_alone() {
    let mut paths: Vec<PathBuf> = ROUTES.iter().map(|route| route.path.into()).collect();
    paths.sort();
    paths.dedup();
    assert_eq!(paths.len(), ROUTES.len(), "one route a path: else `find` needs the method");
}
