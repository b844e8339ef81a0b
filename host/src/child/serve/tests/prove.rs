//! Probes against a plugin in this process: which answers pass, and what is said of those that do not.

use super::*;
use crate::child::prove::prove;
use crate::config::Probe;
use crate::report::{Failure, Stage};

fn web(probes: &[Probe]) -> Vec<config::Server> {
    vec![config::Server { probe: probes.to_vec(), ..config::Server::new("web", &[]) }]
}

fn proved(site: &Site, probes: &[Probe]) -> Result<(), Failure> {
    site.runtime.block_on(async { tokio::time::timeout(PATIENCE, prove(site.server, &web(probes))).await }).unwrap()
}

/// What the request was, so that a probe can ask for it.
async fn told(asked: Asked) -> Reply {
    let [host, extra] = ["host", "x-extra"].map(|name| asked.header(name).unwrap_or_default());
    let status = if asked.target().starts_with("/bad") { 503 } else { 200 };
    reply(status, format!("{} {} {host} {extra}", asked.method(), asked.target()))
}

fn probe(path: &str) -> Probe {
    Probe { path: path.into(), ..Probe::default() }
}

#[test]
fn an_answer_as_expected_passes() {
    let site = serve(told);
    let full = Probe {
        method: "POST".into(),
        path: "/a?b".into(),
        host: "a.example".into(),
        headers: [("x-extra".into(), "extra".into())].into(),
        body: Some("POST /a?b a.example extra".into()),
        ..Probe::default()
    };
    let head = Probe { method: "HEAD".into(), ..Probe::default() };
    proved(&site, &[probe("/"), full, head, Probe { status: 503, ..probe("/bad") }]).unwrap();
    eventually(|| site.server.connections.open() == 0);
}

#[test]
fn another_answer_is_shown_as_it_came() {
    let site = serve(told);
    let failure = proved(&site, &[probe("/"), probe("/bad?x")]).unwrap_err();
    assert_eq!((failure.stage, failure.plugin.as_deref()), (Stage::Prove, Some("fake")));
    let text = "pass the probe GET /bad?x of [[server]] `web`: it answered 503 Service Unavailable, not 200: \
                \"GET /bad?x localhost\"";
    assert_eq!(failure.error, text);

    let failure = proved(&site, &[Probe { body: Some("absent".into()), ..probe("/") }]).unwrap_err();
    assert!(failure.error.ends_with("the body of its 200 OK lacks `absent`: \"GET / localhost\""), "{failure}");
    assert!(failure.hint.unwrap().contains("200 with `absent`"));
}

#[test]
fn a_long_or_odd_body_is_shown_in_one_short_line() {
    let site = serve(async |_| reply(500, [&b"\xff\n\""[..], &[b'x'; 5000]].concat()));
    let failure = proved(&site, &[probe("/")]).unwrap_err();
    assert!(
        failure.error.len() < 600 && !failure.error.contains('\n') && failure.error.ends_with("x\" ..."),
        "{failure}"
    );
}

#[test]
fn an_answer_that_does_not_come_or_breaks_off_is_none() {
    let site = serve(async |_| std::future::pending::<Reply>().await);
    let hasty = Probe { timeout: Duration::from_millis(50), ..Probe::default() };
    let failure = proved(&site, std::slice::from_ref(&hasty)).unwrap_err();
    assert!(failure.error.ends_with("no whole answer came within 50ms"), "{failure}");

    let site = serve(async |_| panic!("on purpose"));
    let failure = proved(&site, &[probe("/")]).unwrap_err();
    assert!(failure.error.contains("it answered 500"), "{failure}");

    let stalls = |_: &mut std::task::Context<'_>| std::task::Poll::<fake::Step>::Pending;
    let site = serve(move |_| async move { reply(200, "").body(fake::stream(None, stalls)) });
    assert!(proved(&site, &[hasty]).unwrap_err().error.contains("no whole answer"));
}

#[test]
fn a_probe_takes_the_routes_of_its_server_and_host() {
    let route = config::Route { host: Some("a.example".into()), prefix: "/x".into(), plugin: "/one".into() };
    let mut servers = vec![config::Server { route: vec![route], ..config::Server::new("web", &[]) }];
    let site = site_of(&servers, vec![("/one", fake::plugin(told))]);
    let here = Probe { host: "a.example".into(), body: Some("GET /y".into()), ..probe("/x/y") };
    servers[0].probe = vec![here, probe("/x/y")];
    let failure = site.runtime.block_on(prove(site.server, &servers)).unwrap_err();
    assert!(
        failure.plugin.is_none() && failure.error.contains("404") && failure.error.contains("no plugin"),
        "{failure}"
    );
}
