//! Unix sockets in front: their connections move as those of TCP do, and their files are looked after.

use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use baton_tests::http::Connection;
use baton_tests::server::{Server, Setup, answered_by};
use baton_tests::{artifacts, wait};
use nix::sys::signal::Signal;

use crate::{answered_until_closed, switch_to};

/// With the probe, at a port and at a path.
fn at_both() -> (Setup, PathBuf) {
    let setup = Setup::probe("v1");
    let path = setup.bench().path().join("socket");
    let listen = format!("unix:{}", path.display());
    (setup.listen(&["127.0.0.1:0", &listen]), path)
}

#[track_caller]
fn connect(path: &Path) -> Connection {
    Connection::open_unix(path).unwrap_or_else(|error| panic!("failed to connect to {}: {error}", path.display()))
}

#[track_caller]
fn ask(connection: &mut Connection) -> (String, i32) {
    answered_by(&connection.request("GET", "/").expect("the connection was closed"))
}

fn listens_there(server: &Server, path: &Path) -> bool {
    let address = format!("unix:{}", path.display());
    server.status().listeners.iter().any(|listener| listener.address == address)
}

#[test]
fn a_connection_is_answered_by_the_new_process_and_never_closed() {
    let (setup, path) = at_both();
    let mut server = setup.start();
    assert!(listens_there(&server, &path));
    let inode = || path.metadata().expect("the socket is there").ino();
    let before = inode();
    let mut idle = connect(&path);
    let (version, old) = ask(&mut idle);
    assert_eq!((version.as_str(), old), ("v1", server.worker()));
    let mut half = connect(&path);
    half.write(b"GET / HTTP/1.1\r\nhost: x\r\nx-i").expect("failed to send");
    for version in ["v2", "v1"] {
        let new = switch_to(&server, version);
        assert_eq!(ask(&mut idle), (version.into(), new));
        assert_ne!(new, old);
    }
    half.write(b"d: 7\r\n\r\n").expect("the connection was closed");
    let response = half.receive().expect("half a request was lost");
    assert_eq!((answered_by(&response).1, response.header("x-id")), (server.worker(), Some("7")));
    assert_eq!(inode(), before, "the very socket, not another at its path");
    server.signal(Signal::SIGTERM);
    assert!(server.wait_end(wait::LONG).success());
    assert!(!path.exists(), "the file stayed behind");
}

#[test]
fn without_handover_it_is_told_of_the_close_and_loses_nothing() {
    let (setup, path) = at_both();
    let server = setup.set("drain.handover", "false").start();
    let mut idle = connect(&path);
    let (_, old) = ask(&mut idle);
    let new = switch_to(&server, "v2");
    assert_eq!(answered_by(&answered_until_closed(&mut idle, "v1")).1, old);
    assert_eq!(ask(&mut connect(&path)), ("v2".into(), new));
}

#[test]
fn what_somebody_listens_on_refuses_the_reload_and_stays_theirs() {
    let (setup, path) = at_both();
    let bench = setup.bench().clone();
    let taken = bench.path().join("taken");
    let theirs = UnixListener::bind(&taken).expect("failed to bind");
    let addresses = |more: &str| format!("[[server]]\nlisten = [\"unix:{}\"{more}]\n", path.display());
    let server = setup.config(&addresses("")).start();
    server.bench.install("probe", &artifacts::probe("v2"));
    // Relative to the file.
    bench.configure(&addresses(", \"unix:taken\""));
    let (code, report) = server.reload();
    assert_eq!((code, report.stage.as_deref()), (409, Some("listen")), "{report:?}");
    assert!(report.error.is_some_and(|error| error.contains("another process listens there")));
    assert_eq!(ask(&mut connect(&path)).0, "v1");
    UnixStream::connect(&taken).expect("it was taken from its owner");
    // A dead one's is replaced, with the mode that was asked for.
    drop(theirs);
    bench.configure(&(addresses(", \"unix:taken\"") + "socket_mode = \"0600\"\n"));
    server.switch();
    assert_eq!(ask(&mut connect(&taken)).0, "v2");
    for path in [&path, &taken] {
        let mode = || path.metadata().expect("the socket is there").mode() & 0o777;
        wait::until("the mode that was asked for", wait::LONG, || (mode() == 0o600).then_some(()));
    }
    // An address that is removed takes its file along.
    bench.configure(&addresses(""));
    server.switch();
    wait::until("the removed socket to go", wait::LONG, || (!taken.exists()).then_some(()));
    assert_eq!(ask(&mut connect(&path)).0, "v2");
}

#[test]
fn socket_whose_file_was_removed_is_bound_again_without_a_reload() {
    let (setup, path) = at_both();
    let mut server = setup.start();
    std::fs::remove_file(&path).expect("failed to remove the socket");
    let answered = wait::until("the path to answer again", wait::LONG, || {
        Connection::open_unix(&path).ok()?.request("GET", "/").ok()
    });
    assert_eq!(answered_by(&answered), ("v1".into(), server.worker()));
    let new = switch_to(&server, "v2");
    assert_eq!(ask(&mut connect(&path)), ("v2".into(), new));
    server.signal(Signal::SIGTERM);
    assert!(server.wait_end(wait::LONG).success());
    assert!(!path.exists(), "the file stayed behind");
}

#[test]
fn a_master_that_was_killed_leaves_nothing_that_stands_in_the_way() {
    let (setup, path) = at_both();
    let mut killed = setup.start();
    killed.signal(Signal::SIGKILL);
    killed.wait_end(wait::LONG);
    assert!(path.exists());
    // Its worker lives for a moment more, and accepts nothing.
    wait::until("the socket to be dead", wait::LONG, || UnixStream::connect(&path).is_err().then_some(()));
    let listen = format!("unix:{}", path.display());
    let server = Setup::in_bench_of(&killed).listen(&[&listen]).start();
    assert_eq!(ask(&mut connect(&path)), ("v1".into(), server.worker()));
}
