//! What a restart in place carries over beside the connections of one address: listeners of every kind, TLS sessions, what is
//! under way for long, what was rolled back, and what a child says or does while the program is about to change.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use baton_tests::http::Connection;
use baton_tests::server::{Server, Setup, answered_by};
use baton_tests::tls::{Authority, Version};
use baton_tests::{artifacts, http2, process, wait};
use nix::sys::signal::Signal;

use crate::restart::restart;
use crate::upgrade::Socket;
use crate::{slow_request, switch_to};

/// Another file of the program and of the probe.
fn renew(server: &Server, version: &str) {
    server.bench.install_program(&artifacts::baton());
    server.bench.install("probe", &artifacts::probe(version));
}

fn inode(path: &Path) -> u64 {
    path.metadata().expect("the socket is there").ino()
}

#[test]
fn listeners_of_every_kind_stay_what_they_are_and_sessions_are_resumed() {
    let authority = Authority::new();
    let setup = Setup::probe("v1").own_program().passed(&["web"]);
    let path = setup.bench().path().join("socket");
    authority.issue(&["a.example"]).write(setup.bench().path(), "a");
    let config = format!(
        "[[server]]\nname = \"clear\"\nlisten = [\"127.0.0.1:0\", \"unix:{}\", \"systemd:web\"]\n\
         [[server]]\nname = \"secret\"\nlisten = [\"127.0.0.1:0\"]\ntls = [{{ cert = \"a.pem\", key = \"a.key\" }}]\n",
        path.display()
    );
    let mut server = setup.config(&config).start();
    let told = || {
        let listeners = server.status().listeners;
        listeners.into_iter().map(|one| (one.server, one.scheme, one.address)).collect::<Vec<_>>()
    };
    let (before, sockets, file) = (told(), process::listening(server.pid()), inode(&path));
    assert_eq!((before.len(), sockets.len()), (4, 4), "three for clients over TCP, and the admin's");
    let (tcp, secret): (Vec<_>, Vec<_>) = before
        .iter()
        .filter_map(|(_, scheme, address)| Some((scheme.clone(), address.parse().ok()?)))
        .partition(|(scheme, _)| scheme == "http");
    let secret = secret[0].1;
    let client = authority.client(Version::V13);
    let session = |resumed: bool| {
        let (mut connection, agreed) = client.connect(secret).expect("failed to connect");
        assert_eq!(agreed.resumed, resumed);
        answered_by(&connection.request("GET", "/").expect("no answer")).0
    };
    assert_eq!(session(false), "v1");
    let mut idle: Vec<Connection> = tcp.iter().map(|(_, addr)| Connection::open(*addr).unwrap()).collect();
    idle.push(Connection::open_unix(&path).unwrap());
    assert_eq!(idle.len(), 3);
    for version in ["v2", "v3"] {
        renew(&server, version);
        restart(&server);
        assert_eq!(told(), before);
        assert_eq!((process::listening(server.pid()), inode(&path)), (sockets.clone(), file), "the very same sockets");
        assert_eq!(session(true), version, "its keys went along");
        for connection in &mut idle {
            assert_eq!(answered_by(&connection.request("GET", "/").expect("it was closed")).0, version);
        }
        for (_, addr) in &tcp {
            let response = baton_tests::http::get(*addr, "/").expect("a new connection");
            assert_eq!(answered_by(&response).0, version);
        }
    }
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_end(wait::LONG).code(), Some(0));
    assert!(!path.exists(), "the last program takes the socket away");
}

#[test]
fn what_takes_long_is_not_disturbed_by_two_restarts_in_a_row() {
    let setup = Setup::probe("v1").own_program().plugin("upgrade", &artifacts::plugin("upgrade"));
    let server = setup.config("[[server]]\nlisten = [\"127.0.0.1:0\"]\n[plugins.upgrade]\nmount = \"/up\"\n").start();
    let old = server.worker();
    let mut socket = Socket::open(&server, "/up/stubborn");
    let streams = http2::Client::open(server.addr());
    let stream = streams.begin("GET", "/sleep?ms=10000", None);
    let mut request = slow_request(&server, 10_000);
    for version in ["v2", "v3"] {
        renew(&server, version);
        restart(&server);
        socket.is_echoed("over and over".into());
    }
    assert_eq!((server.probe().0.as_str(), socket.pid()), ("v3", old));
    assert_eq!(answered_by(&request.receive().expect("the request was cut")), ("v1".into(), old));
    assert_eq!(answered_by(&streams.wait(stream).expect("the stream was cut")), ("v1".into(), old));
    streams.ended().expect("the connection ends in good order");
    socket.is_echoed("to the end".into());
    let status = server.status();
    assert_eq!((status.pid, status.crashes, status.switches), (server.pid(), 0, 3));
}

#[test]
fn what_was_rolled_back_stays_so_and_a_set_of_the_program_before_can_be_gone_back_to() {
    let server = Setup::probe("v1").own_program().start();
    switch_to(&server, "v2");
    let rollback = |to: &str| server.cli(&["rollback", "--to", to, "--json"]).assert_code(0).clone();
    rollback("1");
    server.bench.install_program(&artifacts::baton());
    // What lies there is held back, and what serves is started again under the program that is there now.
    restart(&server);
    assert!(process::runs(server.worker(), &server.bench.program()));
    let status = server.wait_drained();
    assert_eq!(status.pinned.as_ref().map(|pin| pin.generation), Some(1), "{status:#?}");
    assert!(status.held.iter().any(|held| held.why == "rolled_back"), "{status:#?}");
    assert_eq!(server.probe().0, "v1", "the file of v2 is not taken");
    let (code, _) = server.reload();
    assert_eq!(code, 409);
    // Generation 2 ran under the program before; its set serves under this one.
    rollback("2");
    assert_eq!(server.probe().0, "v2");
}

#[test]
fn a_child_that_dies_while_the_program_is_about_to_change_is_known_to_the_next() {
    let server = Setup::probe("v1").own_program().start();
    let old = server.worker();
    let _running = slow_request(&server, 60_000);
    switch_to(&server, "v2");
    // Half a request at the admin socket is waited for, a moment, before anything else is laid down.
    let mut half = Connection::open_unix(server.socket()).expect("failed to connect");
    half.write(b"POST /debug/admin/reload HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{").expect("failed to send");
    let last = server.status().last_op();
    let response = server.admin("POST", "/debug/admin/restart");
    assert_eq!(response.status, 202, "{response:?}");
    process::kill(old, Signal::SIGKILL);
    assert_eq!(server.ended(last + 1).result, "switched");
    let status = server.wait_drained();
    assert_eq!((status.pid, status.crashes), (server.pid(), 1), "{status:#?}");
}
