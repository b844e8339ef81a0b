//! Peers that have vanished without a word: the kernel probes for them on every connection, however its listening socket came
//! to be.

use std::io::{Read, Write};
use std::net::TcpStream;

use baton_tests::process;
use baton_tests::server::{Server, Setup};

const KEEPALIVE: u32 = 2;
const NONE: u32 = 0;

/// A connection that has been answered.
fn served(server: &Server) -> TcpStream {
    let mut client = TcpStream::connect(server.addr()).expect("failed to connect");
    client.write_all(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").expect("failed to send");
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        assert_eq!(client.read(&mut byte).expect("failed to receive"), 1, "the connection was closed");
        answer.push(byte[0]);
    }
    client
}

/// The kernel's timer of the server's end. One of a retransmission is waited for.
#[track_caller]
fn timer(client: &TcpStream) -> u32 {
    let (server, own) = (client.peer_addr().expect("a peer"), client.local_addr().expect("an address"));
    baton_tests::wait::until("the kernel to have sent all", baton_tests::wait::LONG, || {
        process::tcp_timer(server, own).filter(|timer| *timer != 1)
    })
}

#[test]
fn accepted_connections_have_keepalive_by_default() {
    let server = Setup::probe("v1").start();
    assert_eq!(timer(&served(&server)), KEEPALIVE);
    server.switch();
    assert_eq!(timer(&served(&server)), KEEPALIVE, "after a reload");
}

#[test]
fn connections_on_a_socket_from_systemd_have_keepalive() {
    let config = "[[server]]\nname = \"web\"\nlisten = [\"systemd:web\"]\n";
    let server = Setup::probe("v1").passed(&["web"]).config(config).start();
    assert_eq!(timer(&served(&server)), KEEPALIVE);
}

#[test]
fn keepalive_is_switched_off_and_on_by_a_reload() {
    let setup = Setup::probe("v1").config("[limits]\ntcp_keepalive = \"never\"\n");
    let server = setup.start();
    let mut before = served(&server);
    assert_eq!(timer(&before), NONE);
    server.bench.configure("[limits]\ntcp_keepalive = \"30s\"\n");
    server.switch();
    assert_eq!(timer(&served(&server)), KEEPALIVE);
    before.write_all(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").expect("failed to send");
    assert_eq!(timer(&before), NONE, "a connection keeps what it was accepted with");
}
