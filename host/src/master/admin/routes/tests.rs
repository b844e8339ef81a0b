//! Every route against every kind of caller, without a socket.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use http::Request as HttpRequest;
use http_body_util::Full;

use super::*;
use crate::dirs::Dirs;
use crate::master::admin::access::Policy;
use crate::master::admin::denials::{Denials, PeerKey};
use crate::master::admin::probe::{Metrics, Probes};
use crate::master::admin::signature::Challenger;
use crate::master::admin::slots::Slots;
use crate::master::admin::token::Tokens;
use crate::master::admin::{Surface, Tcp, probe};
use crate::master::handle::{Desk, Handle, Request};
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
        probes: None,
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
    metrics_token: String,
    /// How often the loop was asked for its status.
    statuses: Arc<AtomicUsize>,
    _dir: tempfile::TempDir,
}

/// A surface whose loop is ready or not and answers `Operate` with `report`.
fn world(readiness: Readiness, report: fn(Verb, &Cause) -> Report) -> World {
    let dir = tempfile::tempdir().unwrap();
    let dirs = Dirs { runtime: dir.path().into(), state: dir.path().into() };
    let tokens = Arc::new(Tokens::open(&dirs).unwrap());
    let (handle, Desk { mut requests, readiness: publish }) = Handle::new();
    publish.send_replace(readiness);
    let statuses = Arc::new(AtomicUsize::new(0));
    let count = statuses.clone();
    tokio::spawn(async move {
        let _publish = publish;
        while let Some(request) = requests.recv().await {
            match request {
                Request::Operate { verb, cause, reply, .. } => drop(reply.send(report(verb, &cause))),
                Request::Status { reply } => {
                    count.fetch_add(1, Relaxed);
                    drop(reply.send(status()));
                }
                Request::Operation { id, reply } => {
                    drop(reply.send((id == OpId(12)).then(|| report(Verb::Reload, &Cause::Start))));
                }
            }
        }
    });
    let address = SocketAddr::from(([127, 0, 0, 1], 9700));
    let (token, metrics_token) = (tokens.admin().expose().into(), tokens.metrics().expose().into());
    let challenger = Challenger::new().unwrap();
    let policy = Policy { tokens, hosts: Vec::new(), challenger, started: tokio::time::Instant::now() };
    let surface = Surface {
        handle,
        name: "x".into(),
        socket: "/run/x/admin.sock".into(),
        tcp: Some(Tcp { address, policy }),
        probes: Some(Probes::new(([127, 0, 0, 1], 9701).into(), Metrics::of(false))),
        denials: Denials::default(),
    };
    World { surface, token, metrics_token, statuses, _dir: dir }
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
    let slot = Slots::new(2, 1).take(PeerKey::User(0), tokio::time::Instant::now());
    let response = answer(&world.surface, peer, &slot, request).await;
    let (head, body) = response.into_parts();
    let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
    (head.status.as_u16(), text, head.headers)
}

#[tokio::test]
async fn who_may_ask_what_on_tcp() {
    let world = world(Readiness::Ready, switched);
    let right = format!("Bearer {}", world.token);
    let host = ("host", "localhost:9700");
    let auth = ("authorization", right.as_str());
    let for_metrics = format!("Bearer {}", world.metrics_token);
    let metrics = ("authorization", for_metrics.as_str());
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
        ("GET", "/metrics", &[host, metrics], 200),
        ("POST", "/metrics", &[host, metrics], 405),
        ("GET", "/metrics", &[("host", "evil"), metrics], 403),
        ("GET", "/metrics", &[host], 401),
        ("GET", "/debug/admin/status", &[host, metrics], 401),
        ("GET", "/debug/admin/ops/12", &[host, metrics], 401),
        ("POST", "/debug/admin/reload", &[host, metrics], 401),
        ("POST", "/debug/admin/shutdown", &[host, metrics], 401),
        ("GET", "/debug/admin/challenge", &[host], 200),
        ("GET", "/debug/admin/challenge", &[("host", "evil:9700")], 403),
        ("POST", "/debug/admin/rotate", &[host, auth], 403),
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
    let world = world(Readiness::Ready, |_, _| panic!("the loop was asked"));
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
        let world = world(Readiness::Ready, report);
        let (status, text, _) = ask_as(&world, &SOCKET, "POST", "/debug/admin/reload", &[], "").await;
        assert_eq!(status, expected, "{text}");
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap().cause, Cause::Admin { peer: "uid 0 pid 7".into() });
    }
}

#[tokio::test]
async fn a_body_is_optional_bounded_and_understood_or_refused() {
    let world = world(Readiness::Ready, switched);
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
async fn readyz_answers_what_the_loop_has_published_and_asks_for_no_status() {
    for (readiness, expected, says) in [
        (Readiness::Ready, 200, "ok\n"),
        (Readiness::NotServing, 503, "no generation serves\n"),
        (Readiness::ShuttingDown, 503, "shutting down\n"),
    ] {
        let world = world(readiness, switched);
        let (status, text, _) = ask_as(&world, &SOCKET, "GET", "/readyz", &[], "").await;
        assert_eq!((status, text.as_str()), (expected, says));
        assert_eq!(ask_as(&world, &SOCKET, "GET", "/livez", &[], "").await.0, 200);
        assert_eq!(probed(&world, "GET", "/readyz").await.0, expected);
        assert_eq!(world.statuses.load(Relaxed), 0);
    }
}

async fn probed(world: &World, method: &str, path: &str) -> (u16, String) {
    let request = HttpRequest::builder().method(method).uri(path).header("host", "anything");
    let response = probe::answer(&world.surface, request.body(()).unwrap()).await;
    let status = response.status().as_u16();
    (status, String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
}

#[tokio::test]
async fn the_probe_address_answers_probes_and_nothing_else() {
    let world = world(Readiness::Ready, |_, _| panic!("the loop was asked"));
    for (method, path, expected) in [
        ("GET", "/livez", 200),
        ("HEAD", "/readyz", 200),
        ("GET", "/healthz", 200),
        ("POST", "/livez", 405),
        ("GET", "/metrics", 404),
        ("GET", "/", 404),
        ("GET", "/livez/", 404),
        ("GET", "/debug/admin", 404),
        ("GET", "/debug/admin/status", 404),
        ("GET", "/debug/admin/link", 404),
        ("GET", "/debug/admin/challenge", 404),
        ("POST", "/debug/admin/reload", 404),
        ("POST", "/debug/admin/rotate", 404),
    ] {
        assert_eq!(probed(&world, method, path).await.0, expected, "{method} {path}");
    }
}

#[tokio::test]
async fn public_metrics_are_read_once_a_second_however_many_ask() {
    let mut world = world(Readiness::Ready, switched);
    world.surface.probes = Some(Probes::new(([127, 0, 0, 1], 9701).into(), Metrics::of(true)));
    for _ in 0..50 {
        let (status, text) = probed(&world, "GET", "/metrics").await;
        assert!(status == 200 && text.contains("baton_ready 1"), "{status} {text}");
    }
    assert_eq!(world.statuses.load(Relaxed), 1);
    let Some(Metrics::Public(cache)) = world.surface.probes.as_ref().map(Probes::metrics) else { panic!("just set") };
    let (at, _) = cache.lock().await.take().unwrap();
    *cache.lock().await = Some((at - std::time::Duration::from_secs(1), String::new()));
    probed(&world, "GET", "/metrics").await;
    assert_eq!(world.statuses.load(Relaxed), 2);
}

#[tokio::test]
async fn rotation_ends_the_tokens_before_at_once() {
    let world = world(Readiness::Ready, switched);
    let host = ("host", "localhost:9700");
    let (old, old_metrics) = (format!("Bearer {}", world.token), format!("Bearer {}", world.metrics_token));
    let ask = async |path: &str, bearer: &str| {
        ask_as(&world, &browser(), "GET", path, &[host, ("authorization", bearer)], "").await.0
    };
    assert_eq!((ask("/debug/admin/status", &old).await, ask("/metrics", &old_metrics).await), (200, 200));
    let (status, text, _) = ask_as(&world, &SOCKET, "POST", "/debug/admin/rotate", &[], "").await;
    assert_eq!(status, 200, "{text}");
    let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
    let new = format!("Bearer {}", answer["url"].as_str().unwrap().split_once("#token=").unwrap().1);
    assert_ne!(new, old);
    assert_eq!((ask("/debug/admin/status", &old).await, ask("/metrics", &old_metrics).await), (401, 401));
    let file = answer["metrics_token_file"].as_str().unwrap();
    let metrics = format!("Bearer {}", std::fs::read_to_string(file).unwrap().trim());
    assert_eq!((ask("/debug/admin/status", &new).await, ask("/metrics", &metrics).await), (200, 200));
}

#[tokio::test]
async fn an_operation_too_many_is_refused_and_all_else_is_answered() {
    let world = world(Readiness::Ready, switched);
    let slots = Slots::new(2, 1);
    let slot = slots.take(PeerKey::User(0), tokio::time::Instant::now());
    let _under_way = slot.begin_operation().unwrap();
    for (method, path, expected) in [("POST", "/debug/admin/reload", 503), ("GET", "/debug/admin/status", 200)] {
        let request = HttpRequest::builder().method(method).uri(path).body(Full::new(Bytes::new())).unwrap();
        assert_eq!(answer(&world.surface, &SOCKET, &slot, request).await.status().as_u16(), expected, "{path}");
    }
}

#[tokio::test]
async fn a_loop_that_has_ended_is_said_so() {
    let (handle, desk) = Handle::new();
    drop(desk);
    let world = World {
        surface: Surface { handle, ..world(Readiness::Ready, switched).surface },
        ..world(Readiness::Ready, switched)
    };
    let (status, text, _) = ask_as(&world, &SOCKET, "GET", "/debug/admin/status", &[], "").await;
    assert_eq!(status, 503);
    assert!(text.contains("ended"), "{text}");
    assert_eq!(ask_as(&world, &SOCKET, "GET", "/readyz", &[], "").await.0, 503);
}

#[tokio::test]
async fn the_link_is_for_the_socket() {
    let world = world(Readiness::Ready, switched);
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
