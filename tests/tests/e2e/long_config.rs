//! Configurations of thousands of routes and of plugins with much to read: taken whole, or refused at once with their size.

use std::time::Instant;

use baton_tests::http::Connection;
use baton_tests::server::{Server, Setup, Workbench, answered_by};
use baton_tests::{artifacts, wait};

fn routes(count: usize) -> String {
    let route = |i| format!("[[server.route]]\nhost = \"h{i}.example\"\nprefix = \"/p{i}\"\nplugin = \"probe\"\n");
    let routes: String = (0..count).map(route).collect();
    format!("[[server]]\nlisten = [\"127.0.0.1:0\"]\n{routes}")
}

/// The version that answers behind that route.
#[track_caller]
fn behind(server: &Server, route: usize) -> String {
    let mut connection = Connection::open(server.addr()).expect("failed to connect");
    let host = format!("h{route}.example");
    connection.send("GET", &format!("/p{route}/"), &[("Host", &host)], b"").expect("failed to send");
    answered_by(&connection.receive().expect("no answer")).0
}

#[test]
fn thousands_of_routes_are_served_and_reloaded_and_restarted() {
    let server = Setup::probe("v1").own_program().config(&routes(3000)).start();
    assert_eq!((behind(&server, 0), behind(&server, 2999)), ("v1".into(), "v1".into()));
    server.bench.configure(&routes(3001));
    server.bench.install("probe", &artifacts::probe("v2"));
    let report = server.switch();
    let changes = report.config.expect("what changed");
    assert_eq!(changes["routes"]["added"][0], "h3000.example/p3000 to probe (default)", "{changes}");
    assert_eq!(behind(&server, 3000), "v2");
    crate::restart::restart(&server);
    assert_eq!(behind(&server, 3000), "v2");
}

#[test]
fn long_configuration_of_a_plugin_arrives_whole() {
    let text = "x".repeat(70_000);
    let config =
        |text: &str| format!("[[server]]\nlisten = [\"127.0.0.1:0\"]\n[plugins.keeper.config]\ntext = \"{text}\"\n");
    let server = Setup::new().plugin("keeper", &artifacts::plugin("keeper")).config(&config(&text)).start();
    assert!(server.get("/text").text() == text, "it came in part");
    let longer = "y".repeat(2_000_000);
    server.bench.configure(&config(&longer));
    server.switch();
    assert!(server.get("/text").text() == longer, "it came in part");
}

#[test]
fn configuration_beyond_the_bound_is_refused_at_once_with_its_size() {
    let bench = Workbench::new();
    let text = routes(70_000);
    bench.configure(&text);
    let begun = Instant::now();
    let outcome = bench.cli(&["run"]);
    let said = &outcome.assert_code(78).stderr;
    assert!(said.contains(&format!("{} bytes", text.len())) && said.contains("4194304"), "{outcome:?}");
    assert!(begun.elapsed() < wait::LONG, "it took {:?}", begun.elapsed());
}
