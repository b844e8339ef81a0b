//! What a configuration file may change at a reload: servers and addresses come and go, are routed anew, or stay as they are;
//! plugins may lie elsewhere.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use baton_tests::http::Connection;
use baton_tests::server::{Server, Setup, Workbench, answered_by};
use baton_tests::{artifacts, http, process, wait};
use nix::sys::signal::Signal;

const TWO_SERVERS: &str = r#"
[[server]]
name = "a"
listen = ["127.0.0.1:0", "127.0.0.1:0"]

[[server]]
name = "b"
listen = ["127.0.0.1:0", "127.0.0.1:0"]
"#;

#[track_caller]
fn version_at(address: SocketAddr) -> String {
    let response = http::get(address, "/").unwrap_or_else(|error| panic!("no answer at {address}: {error}"));
    answered_by(&response).0
}

/// What the master listens on for clients.
#[track_caller]
fn listening(server: &Server) -> BTreeMap<SocketAddr, u64> {
    let mut all = process::listening(server.pid());
    all.remove(&server.admin_addr());
    all
}

/// An address that nobody has: an own one of the loopback network, with a port that the kernel chose.
fn free() -> SocketAddr {
    static COUNT: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    let own = Ipv4Addr::new(127, 64 | (high & 63), low, COUNT.fetch_add(1, Relaxed));
    TcpListener::bind((own, 0)).and_then(|listener| listener.local_addr()).expect("failed to find a free port")
}

fn one_server(name: &str, listen: &[&str]) -> String {
    let listen: Vec<String> = listen.iter().map(|address| format!("\"{address}\"")).collect();
    format!("[[server]]\nname = \"{name}\"\nlisten = [{}]\n", listen.join(", "))
}

#[test]
fn one_reload_and_one_shutdown_cover_two_servers_on_two_ports_each() {
    let mut server = Setup::probe("v1").config(TWO_SERVERS).start();
    let addresses = server.addrs();
    let before = listening(&server);
    assert_eq!((addresses.len(), before.len()), (4, 4), "{addresses:?} {before:?}");
    let names: Vec<String> = server.status().listeners.into_iter().map(|listener| listener.server).collect();
    assert_eq!(names, ["a", "a", "b", "b"]);
    for address in &addresses {
        assert_eq!(version_at(*address), "v1");
    }
    crate::switch_to(&server, "v2");
    // The very sockets, not others at the same addresses.
    assert_eq!((server.addrs(), listening(&server)), (addresses.clone(), before));
    for address in &addresses {
        assert_eq!(version_at(*address), "v2");
    }
    server.signal(Signal::SIGTERM);
    assert!(server.wait_end(wait::LONG).success());
    for address in &addresses {
        assert!(TcpStream::connect(address).is_err(), "{address} is still bound");
    }
}

#[test]
fn the_example_with_two_servers_is_taken_as_it_is() {
    let example = artifacts::workspace().join("examples/two-servers.toml");
    let outcome = Workbench::new().cli(&["run", "--print-config", "-c", &example.to_string_lossy()]);
    let printed = &outcome.assert_code(0).stdout;
    assert_eq!(printed.matches("[[server]]").count(), 2, "{printed}");
    for port in ["8100", "8200", "8300", "8400"] {
        assert!(printed.contains(&format!("\"127.0.0.1:{port}\"")), "{port} is not in {printed}");
    }
}

#[test]
fn a_reload_adds_and_removes_servers_and_leaves_the_others_alone() {
    let kept = free().to_string();
    let setup = Setup::probe("v1").config(&one_server("kept", &[&kept]));
    let server = setup.start();
    let before = listening(&server);
    let added = free();
    let both = one_server("kept", &[&kept]) + &one_server("added", &[&added.to_string()]);
    server.bench.configure(&both);
    server.switch();
    assert_eq!(version_at(added), "v1");
    let now = listening(&server);
    assert!(now.len() == 2 && before.iter().all(|(address, inode)| now.get(address) == Some(inode)), "{now:?}");
    // Under another name it is another server at the same address, and the same socket.
    server.bench.configure(&one_server("renamed", &[&kept]));
    server.switch();
    wait::until("the removed address to close", wait::LONG, || TcpStream::connect(added).is_err().then_some(()));
    assert_eq!(listening(&server), before);
    assert_eq!(server.status().listeners[0].server, "renamed");
    assert_eq!(version_at(server.addr()), "v1");
}

#[test]
fn an_address_that_cannot_be_bound_refuses_the_reload_as_a_whole() {
    let kept = free().to_string();
    let server = Setup::probe("v1").config(&one_server("a", &[&kept])).start();
    let (before, worker) = (listening(&server), server.worker());
    let taken = TcpListener::bind("127.0.0.1:0").expect("failed to bind");
    let taken = taken.local_addr().map(|address| (taken, address.to_string())).expect("an address");
    server.bench.install("probe", &artifacts::probe("v2"));
    // The address that could be bound comes before the one that cannot, and another goes.
    server.bench.configure(&one_server("b", &[&free().to_string(), &taken.1]));
    let (code, report) = server.reload();
    assert_eq!(
        (code, report.result.as_str(), report.stage.as_deref()),
        (409, "refused", Some("listen")),
        "{report:#?}"
    );
    assert!(report.error.as_ref().is_some_and(|error| error.contains(&taken.1)), "{report:#?}");
    assert_eq!((listening(&server), server.worker()), (before, worker));
    assert_eq!(server.probe().0, "v1");
}

#[test]
fn a_client_in_the_queue_of_a_removed_address_is_served_before_it_closes() {
    let (kept, removed) = (free().to_string(), free());
    let server = Setup::probe("v1").config(&one_server("a", &[&kept, &removed.to_string()])).start();
    let old = server.worker();
    // Nobody accepts: the kernel completes the connection, and it waits in the queue.
    process::kill(old, Signal::SIGSTOP);
    let mut waiting = Connection::open(removed).expect("failed to connect");
    waiting.send("GET", "/", &[], b"").expect("failed to send");
    server.bench.install("probe", &artifacts::probe("v2"));
    server.bench.configure(&one_server("a", &[&kept]));
    // By signal: who asks over the admin socket is answered when the old one accepts no more.
    server.signal(Signal::SIGUSR1);
    server.wait_for("the commit", |status| status.serving == Some(2));
    assert!(listening(&server).contains_key(&removed));
    process::kill(old, Signal::SIGCONT);
    let response = waiting.receive().expect("the client in the queue was lost");
    assert_eq!(answered_by(&response), ("v1".into(), old));
    wait::until("the removed address to close", wait::LONG, || TcpStream::connect(removed).is_err().then_some(()));
    assert_eq!(server.probe().0, "v2");
}

/// The version that answers a request for `host`, or the status of who else does.
#[track_caller]
fn version_for(address: SocketAddr, host: &str, path: &str) -> Result<String, u16> {
    let mut connection = Connection::open(address).expect("failed to connect");
    connection.write(format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes()).expect("failed to send");
    let response = connection.receive().expect("no answer");
    if response.header("x-probe").is_some() { Ok(answered_by(&response).0) } else { Err(response.status) }
}

#[test]
fn routes_decide_by_server_host_and_prefix_and_a_reload_changes_them() {
    let config = |second: &str| {
        format!(
            "[[server]]\nname = \"a\"\nlisten = [\"127.0.0.1:0\"]\nroute = [{{ plugin = \"one\" }}]\n\
             [[server]]\nname = \"b\"\nlisten = [\"127.0.0.1:0\"]\nhealth = \"/up\"\n\
             [[server.route]]\nhost = \"*.example\"\nprefix = \"/x\"\nplugin = \"{second}\"\n"
        )
    };
    let (v1, v2) = (artifacts::probe("v1"), artifacts::probe("v2"));
    // Both would be at `/`, if there were a server without routes.
    let server = Setup::new().plugin("one", &v1).plugin("two", &v2).config(&config("two")).start();
    let (a, b) = (server.addrs()[0], server.addrs()[1]);
    assert_eq!(version_for(a, "any", "/"), Ok("v1".into()));
    assert_eq!(version_for(b, "Www.Example:80", "/x"), Ok("v2".into()));
    assert_eq!(version_for(b, "www.example", "/"), Err(404));
    assert_eq!(version_for(b, "other", "/x"), Err(404));
    assert_eq!((version_for(b, "other", "/up"), version_for(a, "other", "/up")), (Err(200), Ok("v1".into())));

    server.bench.configure(&config("tow"));
    let (code, report) = server.reload();
    assert_eq!((code, report.plugin.as_deref()), (409, Some("tow")), "{report:#?}");
    assert!(report.hint.as_ref().is_some_and(|hint| hint.contains("one, two")), "{report:#?}");
    assert_eq!(version_for(b, "www.example", "/x"), Ok("v2".into()));

    server.bench.configure(&config("one"));
    server.switch();
    assert_eq!(version_for(b, "www.example", "/x"), Ok("v1".into()));
}

#[test]
fn sockets_from_systemd_are_taken_by_name_and_kept_and_the_others_closed() {
    let setup = Setup::probe("v1").passed(&["web", "spare", "web"]).config(&one_server("a", &["systemd:web"]));
    let server = setup.start();
    let before = listening(&server);
    let mut addresses = server.addrs();
    addresses.sort();
    assert_eq!((addresses.len(), &addresses), (2, &before.keys().copied().collect()));
    crate::switch_to(&server, "v2");
    assert_eq!(listening(&server), before);
    for address in addresses {
        assert_eq!(version_at(address), "v2");
    }
    // It was closed when nobody named it, and cannot come back.
    server.bench.configure(&one_server("a", &["systemd:spare"]));
    let (code, report) = server.reload();
    assert_eq!((code, report.stage.as_deref()), (409, Some("listen")), "{report:#?}");
    assert!(report.hint.as_ref().is_some_and(|hint| hint.contains("web") && !hint.contains("spare")), "{report:#?}");
    assert_eq!(listening(&server), before);
}

#[test]
fn a_socket_that_systemd_did_not_pass_refuses_the_start_with_those_it_did() {
    let setup = Setup::probe("v1").passed(&["web", "spare"]).config(&one_server("a", &["systemd:wbe"]));
    let mut server = setup.spawn();
    assert_eq!(server.wait_end(wait::LONG).code(), Some(1));
    assert!(server.log().contains("spare, web"), "{}", server.log());
}

#[test]
fn sockets_meant_for_another_process_are_left_alone() {
    let setup = Setup::probe("v1").env("LISTEN_PID", "1").env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", "web");
    let mut server = setup.config(&one_server("a", &["systemd:web"])).spawn();
    assert_eq!(server.wait_end(wait::LONG).code(), Some(1));
    assert!(server.log().contains("it has passed none"), "{}", server.log());
}

#[test]
fn a_plugin_may_lie_outside_of_the_folder_under_a_name_of_its_own() {
    let setup = Setup::new();
    let section = |file: &str| format!("[plugins.mine]\nfile = \"{file}\"\n");
    for version in ["v1", "v2"] {
        std::fs::copy(artifacts::probe(version), setup.bench().path().join(version)).expect("failed to copy");
    }
    // Relative to the configuration file.
    setup.bench().configure(&section("v1"));
    let server = setup.start();
    assert_eq!((server.probe().0.as_str(), server.serving().plugins[0].name.as_str()), ("v1", "mine"));
    server.bench.configure(&section("v2"));
    let report = server.switch();
    assert_eq!((server.probe().0.as_str(), report.plugins.expect("what changed").changed), ("v2", vec!["mine".into()]));
    server.bench.configure(&section("absent"));
    let (code, report) = server.reload();
    assert_eq!((code, report.plugin.as_deref()), (409, Some("mine")), "{report:#?}");
    assert_eq!(server.probe().0, "v2");
    // A name is one plugin's.
    server.bench.configure(&section("v1"));
    server.bench.install("mine", &artifacts::probe("v2"));
    let (code, report) = server.reload();
    assert_eq!(code, 409, "{report:#?}");
    // Named by its section, a file of the folder is there once.
    server.bench.configure(&section("plugins/libmine.so").replace("mine]", "other]"));
    server.switch();
    assert_eq!(server.serving().plugins.iter().map(|plugin| plugin.name.as_str()).collect::<Vec<_>>(), ["other"]);
}
