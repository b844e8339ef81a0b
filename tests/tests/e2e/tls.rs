//! TLS: which certificate a client sees, what a reload changes of it, sessions that outlive a generation, and connections that
//! end without losing a request.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, SystemTime};

use baton_tests::load::{Class, Load, Plan, Tally};
use baton_tests::server::{Server, Setup, Workbench, answered_by};
use baton_tests::status::Status;
use baton_tests::tls::{Authority, Client, DAY, Version};
use baton_tests::{artifacts, http, http2, process, wait};
use nix::sys::signal::Signal;

use crate::answered_until_closed;

const SWITCHES: u64 = 50;

/// One server with these certificates, out of files of that name in the workbench.
fn one_server(names: &[&str]) -> String {
    let files = names.iter().map(|name| format!("{{ cert = \"{name}.pem\", key = \"{name}.key\" }}"));
    let files = files.collect::<Vec<_>>().join(", ");
    format!("[[server]]\nname = \"web\"\nlisten = [\"127.0.0.1:0\"]\ntls = [{files}]\n")
}

/// The probe behind one certificate, for `a.example`.
fn secured(authority: &Authority) -> Setup {
    let setup = Setup::probe("v1").config(&one_server(&["a"]));
    authority.issue(&["a.example"]).write(setup.bench().path(), "a");
    setup
}

#[track_caller]
fn version_by(client: &Client, addr: SocketAddr) -> (String, i32) {
    let (mut connection, _) = client.connect(addr).expect("failed to connect");
    answered_by(&connection.request("GET", "/").expect("no answer"))
}

fn switch_to(server: &Server, version: &str) {
    server.bench.install("probe", &artifacts::probe(version));
    server.switch();
}

#[test]
fn the_name_that_is_asked_for_decides_on_the_certificate_in_both_versions() {
    let authority = Authority::new();
    let setup = Setup::probe("v1").config(&one_server(&["a", "b"]));
    let a = authority.issue(&["a.example"]);
    let b = authority.issue(&["b.example", "*.b.example"]);
    a.write(setup.bench().path(), "a");
    b.write(setup.bench().path(), "b");
    let server = setup.start();
    assert_eq!(server.status().listeners[0].scheme, "https");
    for version in [Version::V12, Version::V13] {
        let client = authority.client(version);
        for (name, shown) in [("a.example", &a), ("b.example", &b), ("x.b.example", &b)] {
            let (mut connection, agreed) =
                client.asking(name).offering(&["h9", "http/1.1"]).connect(server.addr()).expect("failed to connect");
            assert!(agreed.shown == shown.der, "{name} got another certificate");
            assert_eq!(agreed.alpn.as_deref(), Some("http/1.1"));
            let facts = connection.request("GET", "/tls").expect("no answer").text();
            let (said, cipher) = match version {
                Version::V12 => ("TLSv1.2", "TLS_ECDHE_ECDSA_"),
                Version::V13 => ("TLSv1.3", "TLS_AES_"),
            };
            assert!(facts.starts_with(&format!("https {said} {cipher}")), "{facts}");
            assert!(facts.ends_with(&format!(" {name} http/1.1")), "{facts}");
        }
        // Of no certificate's: the first, which this client then does not take.
        let refused = client.asking("c.example").connect(server.addr()).map(drop).expect_err("that is not its name");
        assert!(refused.to_string().contains("a.example"), "{refused}");
    }
}

#[test]
fn fallback_worker_uses_the_committed_certificate() {
    let authority = Authority::new();
    let hasty = secured(&authority).set("crash.limit", "1").set("crash.backoff", "20ms").set("crash.hold", "200ms");
    let server = hasty.start();
    let addr = server.addr();
    // Whatever lies on disk by now.
    for name in ["a.pem", "a.key"] {
        std::fs::remove_file(server.bench.path().join(name)).expect("failed to remove");
    }
    process::kill(server.worker(), Signal::SIGKILL);
    server.wait_for("the fallback worker", |status| {
        status.serving().is_some_and(|serving| serving.plugins.is_empty() && serving.state == "serving")
    });
    assert_eq!(server.addr(), addr);
    let (mut connection, _) = authority.client(Version::V13).connect(addr).expect("failed to connect");
    assert_eq!(connection.request("GET", "/").expect("no answer").status, 503);
}

#[test]
fn http_2_is_agreed_on_where_it_is_on_and_ends_with_goaway_at_a_reload() {
    let authority = Authority::new();
    let server = secured(&authority).start();
    let old = server.worker();
    let client = authority.client(Version::V13);
    let both = client.offering(&["h2", "http/1.1"]);
    let agreed = || both.connect(server.addr()).expect("failed to connect").1.alpn;
    assert_eq!(agreed().as_deref(), Some("h2"));
    let streams = http2::Client::open_tls(server.addr(), &client);
    let facts = streams.get("/tls").text();
    assert!(facts.starts_with("https TLSv1.3 ") && facts.ends_with(" a.example h2"), "{facts}");
    let slow = streams.begin("GET", "/sleep?ms=1000", None);
    let large = streams.begin("GET", "/body?bytes=3000000", None);
    server.wait_for("a request", |status| status.serving().is_some_and(|one| one.load.requests_in_flight > 0));
    server.bench.configure(&one_server(&["a"]).replace("tls =", "http2 = false\ntls ="));
    switch_to(&server, "v2");
    assert_eq!(answered_by(&streams.wait(slow).expect("the request was cut")), ("v1".into(), old));
    assert_eq!(streams.wait(large).expect("the response was cut").body.len(), 3_000_000);
    streams.ended().expect("the connection ends in good order");
    assert_eq!(agreed().as_deref(), Some("http/1.1"));
}

#[test]
fn an_older_version_than_allowed_gets_no_connection() {
    let authority = Authority::new();
    let server = secured(&authority).set("tls.min_version", "\"1.3\"").start();
    assert!(authority.client(Version::V12).connect(server.addr()).is_err());
    assert_eq!(version_by(&authority.client(Version::V13), server.addr()).0, "v1");
    server.wait_for("the failure to be counted", |status| status.totals.limits.handshake_failures == 1);
}

#[test]
fn a_reload_serves_the_new_certificate_and_keeps_the_old_connection() {
    let authority = Authority::new();
    let server = secured(&authority).start();
    let client = authority.client(Version::V13);
    let (mut old, before) = client.connect(server.addr()).expect("failed to connect");
    old.request("GET", "/").expect("no answer");
    let renewed = authority.issue(&["a.example"]);
    renewed.write(server.bench.path(), "a");
    let (_, still) = client.connect(server.addr()).expect("failed to connect");
    assert!(still.shown == before.shown, "files are read at a reload, not before");
    server.switch();
    let fresh = authority.client(Version::V13);
    let (mut new, after) = fresh.connect(server.addr()).expect("failed to connect");
    assert!(after.shown == renewed.der && after.shown != before.shown);
    assert!(!new.request("GET", "/").expect("no answer").close);
    // The old one is answered by the old process, told of the close, and closed with close_notify.
    answered_until_closed(&mut old, "v1");
    assert_eq!(old.read_to_close().expect("the end of TLS was not said"), b"");
}

#[test]
fn a_certificate_that_cannot_be_used_refuses_the_reload_and_the_old_one_serves_on() {
    let authority = Authority::new();
    let server = secured(&authority).start();
    let client = authority.client(Version::V13);
    let (_, before) = client.connect(server.addr()).expect("failed to connect");
    let path = server.bench.path().to_owned();
    let (worker, (_, key)) = (server.worker(), authority.issue(&["a.example"]).write(&path, "other"));
    server.bench.install("probe", &artifacts::probe("v2"));
    let spoilt = |why: &str, spoil: &dyn Fn()| {
        spoil();
        let (code, report) = server.reload();
        assert_eq!((code, report.stage.as_deref()), (409, Some("tls")), "{report:#?}");
        let error = report.error.expect("a reason");
        assert!(error.contains(why) && error.contains("`web`") && error.contains("a.key"), "{error}");
        let (mut connection, agreed) = authority.client(Version::V13).connect(server.addr()).expect("it serves on");
        assert!(agreed.shown == before.shown);
        assert_eq!(answered_by(&connection.request("GET", "/").expect("no answer")), ("v1".into(), worker));
    };
    spoilt("is not the key of", &|| {
        std::fs::copy(&key, path.join("a.key")).expect("failed to copy");
    });
    spoilt("no private key", &|| std::fs::write(path.join("a.key"), "nothing").expect("failed to write"));
    spoilt("cannot be read", &|| std::fs::remove_file(path.join("a.key")).expect("failed to remove"));
    // Mended, the same reload goes through.
    authority.issue(&["a.example"]).write(&path, "a");
    server.switch();
    assert_eq!(version_by(&authority.client(Version::V13), server.addr()).0, "v2");
}

#[test]
fn a_bad_certificate_at_the_start_is_a_configuration_error() {
    let bench = Workbench::new();
    bench.configure(&one_server(&["a"]));
    let run = || {
        let outcome = bench.cli(&["run", "--admin", "127.0.0.1:0", "--log-format", "json"]);
        outcome.assert_code(78);
        outcome.stderr
    };
    assert!(run().contains("a.pem cannot be read"));
    let authority = Authority::new();
    let (_, key) = authority.issue(&["a.example"]).write(bench.path(), "other");
    authority.issue(&["a.example"]).write(bench.path(), "a");
    std::fs::copy(key, bench.path().join("a.key")).expect("failed to copy");
    let said = run();
    assert!(said.contains("is not the key of"), "{said}");
}

#[test]
fn a_session_is_resumed_on_the_first_connection_after_a_reload() {
    let authority = Authority::new();
    let server = secured(&authority).start();
    for version in [Version::V12, Version::V13] {
        let client = authority.client(version);
        let connect = || {
            let (mut connection, agreed) = client.connect(server.addr()).expect("failed to connect");
            // In TLS 1.3 the ticket comes behind the handshake.
            (answered_by(&connection.request("GET", "/").expect("no answer")), agreed)
        };
        let (old, first) = connect();
        assert!(!first.resumed, "{version:?}");
        // With another certificate as well.
        authority.issue(&["a.example"]).write(server.bench.path(), "a");
        server.switch();
        let (new, second) = connect();
        assert!(second.resumed && new != old, "{version:?}: {old:?} {new:?}");
        for _ in 0..3 {
            server.switch();
            assert!(connect().1.resumed, "{version:?}");
        }
    }
}

#[test]
fn a_session_of_another_instance_is_not_resumed() {
    let authority = Authority::new();
    let client = authority.client(Version::V13);
    for _ in 0..2 {
        let server = secured(&authority).start();
        let (mut connection, agreed) = client.connect(server.addr()).expect("failed to connect");
        connection.request("GET", "/").expect("no answer");
        assert!(!agreed.resumed);
    }
}

#[test]
fn a_session_ends_when_the_ticket_keys_have_turned_twice() {
    let authority = Authority::new();
    let server = secured(&authority).start();
    let client = authority.client(Version::V13);
    let resumed = || {
        let (mut connection, agreed) = client.connect(server.addr()).expect("failed to connect");
        connection.request("GET", "/").expect("no answer");
        agreed.resumed
    };
    // The ticket says six hours: the client believes that.
    assert!(!resumed());
    server.bench.configure(&format!("{}[tls]\nticket_rotation = \"1s\"\n", one_server(&["a"])));
    server.switch();
    wait::pass(Duration::from_millis(3500));
    assert!(!resumed(), "the key that sealed it should be gone");
    assert!(resumed(), "the keys of now should open what they sealed");
}

#[test]
fn a_client_that_stalls_in_its_hello_is_ended_and_others_are_served() {
    let authority = Authority::new();
    let server = secured(&authority).set("limits.handshake_timeout", "300ms").start();
    let mut stalling = TcpStream::connect(server.addr()).expect("failed to connect");
    stalling.write_all(&[22, 3, 1, 2, 0, 1, 0]).expect("failed to send");
    assert_eq!(version_by(&authority.client(Version::V13), server.addr()).0, "v1");
    stalling.set_read_timeout(Some(wait::LONG)).expect("failed to set a time limit");
    // An end or a reset, and no byte.
    assert_eq!(std::io::copy(&mut stalling, &mut std::io::sink()).unwrap_or(0), 0);
    server.wait_for("it to be counted", |status| status.totals.limits.handshake_timeouts == 1);
}

#[test]
fn clear_http_at_a_port_that_speaks_tls_is_told_so() {
    let authority = Authority::new();
    let server = secured(&authority).start();
    let told = http::get(server.addr(), "/").expect("no answer");
    assert!(told.status == 400 && told.close && told.text().contains("use https"), "{told:?}");
    assert_eq!(version_by(&authority.client(Version::V13), server.addr()).0, "v1");
}

#[test]
fn a_certificate_on_the_command_line_makes_the_address_secure() {
    let authority = Authority::new();
    let setup = Setup::probe("v1");
    let (cert, key) = authority.issue(&["a.example"]).write(setup.bench().path(), "a");
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let server = setup.arg("--tls-cert").arg(&text(&cert)).arg("--tls-key").arg(&text(&key)).start();
    assert!(server.log().contains("https server started listening on"), "{}", server.log());
    let client = authority.client(Version::V13);
    assert_eq!(version_by(&client, server.addr()).0, "v1");
    // It counts at a reload as well.
    let renewed = authority.issue(&["a.example"]);
    renewed.write(server.bench.path(), "a");
    server.switch();
    // One that resumes a session is shown none.
    let (_, agreed) = authority.client(Version::V13).connect(server.addr()).expect("failed to connect");
    assert!(agreed.shown == renewed.der);
    let outcome = server.bench.cli(&["run", "--tls-cert", &text(&cert)]);
    assert!(outcome.assert_code(2).stderr.contains("--tls-key"), "{outcome:#?}");
}

#[test]
fn the_end_of_a_certificate_is_told_ahead_and_an_expired_one_still_serves() {
    let authority = Authority::new();
    let setup = Setup::probe("v1").config(&one_server(&["a", "b", "c"]));
    let now = SystemTime::now();
    for (name, end) in [("a", now + 100 * DAY), ("b", now + 3 * DAY), ("c", now - 3 * DAY)] {
        authority.issue_until(&[&format!("{name}.example")], end).write(setup.bench().path(), name);
    }
    let server = setup.start();
    let told = server.status().certificates;
    let told: Vec<_> = told.iter().map(|one| (one.server.as_str(), &*one.names[0], one.validity.as_str())).collect();
    assert_eq!(
        told,
        [("web", "a.example", "valid"), ("web", "b.example", "expires_soon"), ("web", "c.example", "expired")]
    );
    let text = server.bench.cli(&["status", "--name", &server.name]).assert_code(0).stdout.clone();
    assert!(text.contains("b.example expires in 2 d 23 h") && text.contains("c.example expired 3 d 0 h"), "{text}");
    assert!(server.log().contains("the certificate expires soon") && server.log().contains("has expired"));
    assert_eq!(version_by(&authority.client(Version::V13), server.addr()).0, "v1");
}

#[test]
fn the_example_is_taken_as_it_is() {
    let example = artifacts::workspace().join("examples/https.toml");
    let outcome = Workbench::new().cli(&["run", "--print-config", "-c", &example.to_string_lossy()]);
    let printed = &outcome.assert_code(0).stdout;
    let key = example.with_file_name("key.pem");
    assert!(printed.contains(":8443") && printed.contains(&*key.to_string_lossy()), "{printed}");
}

#[test]
fn no_key_is_shown_anywhere() {
    let authority = Authority::new();
    let server = secured(&authority).env("RUST_LOG", "trace").start();
    server.switch();
    version_by(&authority.client(Version::V13), server.addr());
    let key = std::fs::read_to_string(server.bench.path().join("a.key")).expect("the key");
    let secret = key.lines().nth(1).expect("a line of base64");
    let printed = server.bench.cli(&["run", "--print-config"]);
    let status = server.admin("GET", "/debug/admin/status").text();
    let arguments = std::fs::read(format!("/proc/{}/cmdline", server.worker())).expect("the arguments");
    let environment = std::fs::read(format!("/proc/{}/environ", server.worker())).expect("the environment");
    assert!(printed.assert_code(0).stdout.contains("a.key"), "{printed:#?}");
    for text in
        [printed.stdout, status, server.log()].into_iter().map(String::into_bytes).chain([arguments, environment])
    {
        assert!(!String::from_utf8_lossy(&text).contains(&secret[..16]));
    }
}

#[test]
fn an_address_that_becomes_secure_loses_no_clear_connection() {
    let authority = Authority::new();
    let clear = "[[server]]\nname = \"web\"\nlisten = [\"127.0.0.1:0\"]\n";
    let setup = Setup::probe("v1").config(clear);
    authority.issue(&["a.example"]).write(setup.bench().path(), "a");
    let server = setup.start();
    let mut idle = server.connect();
    idle.request("GET", "/").expect("no answer");
    server.bench.configure(&one_server(&["a"]));
    switch_to(&server, "v2");
    // In clear, by the process that knows it so.
    answered_until_closed(&mut idle, "v1");
    let client = authority.client(Version::V13);
    let (mut secure, _) = client.connect(server.addr()).expect("failed to connect");
    secure.request("GET", "/").expect("no answer");
    server.bench.configure(clear);
    switch_to(&server, "v1");
    answered_until_closed(&mut secure, "v2");
    assert_eq!(server.probe().0, "v1");
}

/// The reference load over TLS through [`SWITCHES`] reloads, each with another certificate, and what the server says of it.
fn run(setup: Setup, authority: &Authority) -> (Tally, u64) {
    let server = setup.start();
    let versions = [artifacts::probe("v2"), artifacts::probe("v1")];
    let plan = Plan { tls: Some(authority.client(Version::V13)), http2: 4, ..Plan::reference(server.addr()) };
    let load = Load::start(plan);
    load.wait_for_requests(500);
    let (mut switches, mut lost) = (0, 0);
    for round in 0..SWITCHES {
        authority.issue(&["a.example"]).write(server.bench.path(), "a");
        server.bench.install("probe", &versions[round as usize % 2]);
        load.mark();
        server.switch();
        switches += 1;
        load.wait_for_requests(100);
    }
    load.wait_for_requests(500);
    let tally = load.stop();
    println!("{tally}");
    let status = server.wait_drained();
    for drain in status.operations.iter().filter_map(|op| op.drain.as_ref()) {
        lost += drain.lost + drain.cut.total();
        assert_eq!(drain.handed_over, 0, "{drain:?}");
    }
    assert_eq!((status.crashes, switches), (0, SWITCHES));
    assert!(tally.answered_by.len() as u64 > SWITCHES, "{tally}");
    assert!(tally.of(Class::Slow).answered >= 4 && tally.of(Class::Keepalive).posts > 100, "{tally}");
    (tally, lost)
}

#[test]
fn fifty_reloads_under_load_lose_nothing() {
    let authority = Authority::new();
    let (tally, lost) = run(secured(&authority), &authority);
    tally.assert_nothing_lost();
    assert_eq!(lost, 0, "by the server's own word");
    let kept = tally.of(Class::Keepalive);
    assert!(kept.closed_announced > 64 * SWITCHES / 4, "{tally}");
    assert_eq!(kept.closed_unannounced, 0, "{tally}");
}

#[test]
fn the_same_client_reports_this_server_as_lossy_without_the_linger() {
    let authority = Authority::new();
    let (tally, _) = run(secured(&authority).set("drain.keepalive", "0s"), &authority);
    assert!(tally.is_balanced() && tally.lost() > 0, "the client sees no loss where there is some:\n{tally}");
    assert!(tally.of(Class::Keepalive).closed_unannounced > 64, "{tally}");
}

#[test]
fn a_handshake_that_a_reload_meets_is_served_to_its_first_answer() {
    let authority = Authority::new();
    let server = secured(&authority).start();
    let old = server.worker();
    // Accepted by the old process, which then waits for a hello.
    let waiting = TcpStream::connect(server.addr()).expect("failed to connect");
    server.wait_for("the connection", |status| status.serving().is_some_and(|one| one.load.connections == 1));
    switch_to(&server, "v2");
    let (mut connection, _) = authority.client(Version::V13).over(waiting).expect("the handshake was cut");
    let answer = connection.request("GET", "/").expect("the first request was lost");
    assert_eq!((answered_by(&answer), answer.close), (("v1".into(), old), true));
    assert_eq!(connection.read_to_close().expect("the end of TLS was not said"), b"");
}

#[test]
fn a_connection_leaves_http_over_tls_as_over_a_clear_one() {
    let authority = Authority::new();
    let setup = Setup::new().plugin("upgrade", &artifacts::plugin("upgrade")).config(&one_server(&["a"]));
    authority.issue(&["a.example"]).write(setup.bench().path(), "a");
    let server = setup.start();
    let client = authority.client(Version::V13).asking("a.example");
    let (mut connection, _) = client.connect(server.addr()).expect("failed to connect");
    let wish = [("connection", "Upgrade"), ("upgrade", "raw")];
    connection.send("GET", "/raw", &wish, b"").expect("failed to send");
    let upgraded = |status: &Status| status.serving().is_some_and(|serving| serving.load.upgraded == 1);
    server.wait_for("the connection to be upgraded", upgraded);
    let old = server.worker();
    server.switch();
    // Behind the 101, which this client skips, comes what the plugin sends back as it came.
    connection.write(b"HTTP/1.1 299 Mine\r\ncontent-length: 2\r\n\r\nhi").expect("failed to send");
    let echoed = connection.receive().expect("no echo");
    assert_eq!((echoed.status, echoed.text().as_str()), (299, "hi"));
    assert!(server.status().living().any(|one| one.pid == Some(old)), "it stays with the old process");
    drop(connection);
    server.wait_drained();
}
