//! Under systemd: it is told what is so, when it is so, by the master alone; whoever does not listen holds up nothing.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use baton_tests::http::Connection;
use baton_tests::server::{Server, Setup, answered_by};
use baton_tests::systemd::Manager;
use baton_tests::{artifacts, process, wait};
use nix::sys::signal::Signal;

use crate::{slow_request, switch_to};

/// Number of the next message.
fn next(manager: &Manager) -> usize {
    manager.messages().len()
}

#[test]
fn ready_is_said_when_a_generation_serves_and_by_the_master_alone() {
    let manager = Manager::new();
    let setup = Setup::new().plugin("broken", &artifacts::plugin("broken"));
    let gate = setup.bench().path().join("gate");
    let server = setup.set("plugins.broken.config.init", &format!("wait:{}", gate.display())).under(&manager).spawn();
    let (_, starting) = manager.wait_for("a first word", 0, |message| message.get("STATUS").is_some());
    assert!(starting.get("STATUS").is_some_and(|status| status.starts_with("starting")), "{starting:?}");
    let usec = starting.get("EXTEND_TIMEOUT_USEC").and_then(|usec| usec.parse().ok()).expect("time to start");
    assert!((30_000_000..60_000_000u64).contains(&usec), "{starting:?}");
    server.wait_for("the child to load", |status| status.living().any(|one| one.state == "loading"));
    assert_eq!(manager.count("READY=1"), 0, "{:?}", manager.messages());
    fs::write(&gate, "").unwrap();
    let (_, ready) = manager.wait_for_line("READY=1", 0);
    let worker = server.worker();
    let status = ready.get("STATUS").expect("what serves").to_owned();
    assert!(status.starts_with(&format!("generation 1 serves (pid {worker})")), "{status}");
    assert_eq!(manager.count("RELOADING=1"), 0, "the start is none");
    assert!(manager.messages().iter().all(|message| message.sender == server.pid()), "{:?}", manager.messages());
    let systemd = server.status().systemd.expect("it is told");
    assert_eq!((systemd.watchdog_ms, systemd.failure), (None, None));
    assert!(server.cli(&["status", "--name", &server.name]).stdout.contains("systemd    is told"));
}

#[test]
fn without_plugins_ready_is_said_too_and_of_a_failed_start_why() {
    let manager = Manager::new();
    let _server = Setup::new().under(&manager).start();
    manager.wait_for_line("READY=1", 0);
    let manager = Manager::new();
    let mut server = Setup::probe("v1").under(&manager).listen(&["127.0.0.1:99999"]).spawn();
    assert_eq!(server.wait_end(wait::LONG).code(), Some(78));
    let (_, last) = manager.wait_for_line(&format!("ERRNO={}", nix::errno::Errno::EINVAL as i32), 0);
    assert!(last.get("STATUS").is_some_and(|status| status.contains("127.0.0.1:99999")), "{last:?}");
    // The kernel's own number, where it was the kernel.
    let manager = Manager::new();
    let mut server = Setup::new().under(&manager).arg("--pid-file").arg("/proc/baton.pid").spawn();
    assert_eq!(server.wait_end(wait::LONG).code(), Some(1));
    let (_, last) = manager.wait_for("an errno", 0, |message| message.get("ERRNO").is_some());
    assert!(last.get("STATUS").is_some_and(|status| status.contains("pid file")), "{last:?}");
    assert_eq!(manager.count("READY=1"), 0);
}

#[test]
fn a_reload_is_announced_with_the_clock_and_ends_with_ready_also_if_it_is_refused() {
    let manager = Manager::new();
    let server = Setup::probe("v1").under(&manager).start();
    let (mark, _) = manager.wait_for_line("READY=1", 0);
    let before = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
    let new = switch_to(&server, "v2");
    let (reloading, announced) = manager.wait_for_line("RELOADING=1", mark);
    let usec: u128 = announced.get("MONOTONIC_USEC").and_then(|usec| usec.parse().ok()).expect("the clock with it");
    assert!(usec >= Duration::from(before).as_micros(), "{announced:?}");
    let (mark, ready) = manager.wait_for_line("READY=1", reloading);
    assert!(ready.get("STATUS").is_some_and(|status| status.contains(&format!("(pid {new})"))), "{ready:?}");
    // Refused: systemd has no word for it but the status.
    fs::write(server.bench.plugin_file("probe"), "garbage").unwrap();
    server.signal(Signal::SIGHUP);
    let (reloading, _) = manager.wait_for_line("RELOADING=1", mark + 1);
    let (_, ready) = manager.wait_for_line("READY=1", reloading);
    let status = ready.get("STATUS").unwrap_or_default();
    assert!(status.contains("refused at snapshot of probe") && status.contains("generation 2 serves"), "{status}");
    assert_eq!((manager.count("RELOADING=1"), manager.count("READY=1")), (2, 3));
}

#[test]
fn stopping_is_said_at_the_end_with_the_time_that_a_slow_request_has() {
    let manager = Manager::new();
    let mut server = Setup::probe("v1").set("shutdown.timeout", "50s").under(&manager).start();
    let mut slow = slow_request(&server, 700);
    let mark = next(&manager);
    server.signal(Signal::SIGTERM);
    let (_, stopping) = manager.wait_for_line("STOPPING=1", mark);
    let usec = stopping.get("EXTEND_TIMEOUT_USEC").and_then(|usec| usec.parse().ok()).expect("time to drain");
    assert!((50_000_000..70_000_000u64).contains(&usec), "bounded by the deadline: {stopping:?}");
    assert!(stopping.get("STATUS").is_some_and(|status| status.starts_with("shutting down")), "{stopping:?}");
    assert_eq!(slow.receive().expect("the slow request is answered").status, 200);
    assert_eq!(server.wait_end(wait::LONG).code(), Some(0));
    let after = manager.messages().split_off(mark);
    assert!(!after.iter().any(|message| message.says("READY=1") || message.says("RELOADING=1")), "{after:?}");
}

#[test]
fn the_watchdog_hears_of_the_loop_and_of_nothing_else() {
    let manager = Manager::new();
    let server = Setup::probe("v1").under(&manager).env("WATCHDOG_USEC", "200000").start();
    let pings = || manager.count("WATCHDOG=1");
    wait::until("pings", wait::LONG, || (pings() >= 5).then_some(()));
    assert_eq!(server.status().systemd.expect("it is told").watchdog_ms, Some(200));
    server.signal(Signal::SIGSTOP);
    wait::until("the master to stop", wait::LONG, || process::is_stopped(server.pid()).then_some(()));
    // The child serves on, which is none of the watchdog's business.
    let stopped = pings();
    wait::pass(Duration::from_millis(600));
    assert!(pings() <= stopped + 1, "a stopped loop was reported to turn");
    server.signal(Signal::SIGCONT);
    wait::until("pings again", wait::LONG, || (pings() > stopped + 2).then_some(()));
}

#[test]
fn the_watchdog_of_another_process_is_left_alone() {
    let manager = Manager::new();
    let server = Setup::probe("v1").under(&manager).env("WATCHDOG_USEC", "20000").env("WATCHDOG_PID", "1").start();
    manager.wait_for_line("READY=1", 0);
    switch_to(&server, "v2");
    assert_eq!(
        (manager.count("WATCHDOG=1"), server.status().systemd.and_then(|systemd| systemd.watchdog_ms)),
        (0, None)
    );
}

#[test]
fn children_see_none_of_the_variables() {
    let manager = Manager::new();
    let setup = Setup::probe("v1").passed(&["web"]).under(&manager);
    let setup =
        setup.env("WATCHDOG_USEC", "20000000").env("FDSTORE", "8").env("LISTEN_PIDFDID", "1").env("KEPT", "yes");
    let server = setup.config("[[server]]\nname = \"a\"\nlisten = [\"systemd:web\"]\n").start();
    let environment = fs::read_to_string(format!("/proc/{}/environ", server.worker())).unwrap();
    let names: Vec<&str> = environment.split('\0').filter_map(|entry| entry.split('=').next()).collect();
    assert!(names.contains(&"KEPT"), "{names:?}");
    for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "FDSTORE"] {
        assert!(!names.contains(&name), "{name} is in {names:?}");
    }
    assert!(!names.iter().any(|name| name.starts_with("LISTEN_")), "{names:?}");
}

#[test]
fn an_abstract_name_is_as_good_as_a_path() {
    let manager = Manager::in_the_abstract();
    let server = Setup::probe("v1").under(&manager).start();
    let (mark, _) = manager.wait_for_line("READY=1", 0);
    switch_to(&server, "v2");
    manager.wait_for_line("READY=1", mark + 1);
    assert_eq!(server.status().systemd.expect("it is told").failure, None);
}

#[test]
fn a_manager_that_is_gone_or_does_not_read_holds_up_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    let setup = Setup::probe("v1").env("NOTIFY_SOCKET", &path.display().to_string());
    let mut server = setup.env("WATCHDOG_USEC", "2000").start();
    // Its queue is full after a few dozens of messages, and nobody reads them.
    for round in 0..20 {
        switch_to(&server, if round % 2 == 0 { "v2" } else { "v1" });
    }
    drop(socket);
    switch_to(&server, "v2");
    server.wait_for("the failure", |status| {
        status
            .systemd
            .as_ref()
            .is_some_and(|systemd| systemd.failure.as_ref().is_some_and(|why| why.contains("refused")))
    });
    assert!(server.cli(&["status", "--name", &server.name]).stdout.contains("cannot be told"));
    // Who comes later is told.
    fs::remove_file(&path).unwrap();
    let socket = UnixDatagram::bind(&path).unwrap();
    switch_to(&server, "v1");
    let mut buffer = [0; 4096];
    assert!(socket.recv(&mut buffer).is_ok_and(|len| len > 0));
    server.wait_for("success", |status| status.systemd.as_ref().is_some_and(|systemd| systemd.failure.is_none()));
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_end(wait::LONG).code(), Some(0));
}

#[test]
fn a_restart_in_place_is_a_reload_of_the_same_process_and_the_watchdog_goes_on() {
    let manager = Manager::new();
    let server = Setup::probe("v1").own_program().under(&manager).env("WATCHDOG_USEC", "4000000").start();
    let (mark, _) = manager.wait_for_line("READY=1", 0);
    server.cli(&["restart", "--name", &server.name]).assert_code(0);
    let (reloading, _) = manager.wait_for_line("RELOADING=1", mark);
    let (mark, ready) = manager.wait_for_line("READY=1", reloading);
    assert!(ready.get("STATUS").is_some_and(|status| status.contains("generation 2 serves")), "{ready:?}");
    manager.wait_for_line("WATCHDOG=1", mark);
    let messages = manager.messages();
    assert!(messages.iter().all(|message| message.sender == server.pid()), "{messages:?}");
    let pings: Vec<_> = messages.iter().filter(|message| message.says("WATCHDOG=1")).map(|ping| ping.at).collect();
    assert!(pings.windows(2).all(|pair| pair[1] - pair[0] < Duration::from_secs(4)), "the watchdog would have bitten");
    // One that cannot be is a reload that was refused.
    fs::write(server.bench.path().join("not-baton"), "garbage").unwrap();
    fs::rename(server.bench.path().join("not-baton"), server.bench.program()).unwrap();
    server.cli(&["restart", "--name", &server.name]).assert_code(1);
    let (reloading, _) = manager.wait_for_line("RELOADING=1", mark);
    let (_, ready) = manager.wait_for_line("READY=1", reloading);
    assert!(ready.get("STATUS").is_some_and(|status| status.contains("refused at restart")), "{ready:?}");
}

/// Waits until what lies in the store is of so many sockets; their names.
#[track_caller]
fn stored(manager: &Manager, count: usize) -> Vec<String> {
    wait::until("the sockets in the store", wait::LONG, || Some(manager.stored()).filter(|names| names.len() == count))
}

/// The addresses (IPv4) of its clients, with the inodes of the sockets.
#[track_caller]
fn sockets(server: &Server) -> Vec<(SocketAddr, u64)> {
    let clients = server.addrs();
    let mine = process::listening(server.pid()).into_iter().filter(|(address, _)| clients.contains(address));
    let found: Vec<_> = mine.collect();
    assert!(!found.is_empty());
    found
}

/// Kills the master; what it has left stays until the next one comes.
#[track_caller]
fn kill_master(mut server: Server) -> Server {
    let children = process::children(server.pid());
    server.signal(Signal::SIGKILL);
    server.wait_end(wait::LONG);
    // systemd would kill them at once; they end by themselves.
    wait::until("the last child's end", wait::LONG, || {
        children.iter().all(|child| !process::is_alive(child.pid)).then_some(())
    });
    server
}

/// Started as the master before, by the same manager.
fn again(before: &Server, manager: &Manager) -> Setup {
    Setup::in_bench_of(before).named(&before.name).under(manager).env("FDSTORE", "8").listen(&[])
}

#[test]
fn listeners_outlive_a_master_that_is_killed_and_clients_wait_for_the_next() {
    let manager = Manager::new();
    let setup = Setup::probe("v1").under(&manager).env("FDSTORE", "8").listen(&[]);
    let socket = setup.bench().path().join("web.sock");
    let text = format!(
        "[[server]]\nname = \"a\"\nlisten = [\"127.0.0.1:0\", \"[::1]:0\", \"unix:{}\"]\n[[server]]\nname = \"b\"\nlisten = [\"127.0.0.1:0\"]\n",
        socket.display()
    );
    let server = setup.config(&text).start();
    let mut names = stored(&manager, 4);
    names.sort();
    assert_eq!(names[0], "baton 127.0.0.1%3a0 0 a");
    assert_eq!(server.status().systemd.expect("it is told").stored, names);
    assert!(server.cli(&["status", "--name", &server.name]).stdout.contains("keeps 4 sockets"));
    let (addresses, before) = (server.addrs(), sockets(&server));
    let file = std::os::unix::fs::MetadataExt::ino(&fs::metadata(&socket).unwrap());
    let server = kill_master(server);

    // Nobody accepts, and nobody is refused.
    let mut waiting: Vec<Connection> = addresses.iter().map(|address| Connection::open(*address).unwrap()).collect();
    waiting.push(Connection::open_unix(&socket).unwrap());
    for connection in &mut waiting {
        connection.send("GET", "/", &[], b"").unwrap();
    }
    let mark = next(&manager);
    let next_server = again(&server, &manager).start();
    for mut connection in waiting {
        assert_eq!(answered_by(&connection.receive().expect("who waited is answered")).1, next_server.worker());
    }
    assert_eq!((next_server.addrs(), sockets(&next_server)), (addresses, before), "the very same sockets");
    assert_eq!(std::os::unix::fs::MetadataExt::ino(&fs::metadata(&socket).unwrap()), file);
    manager.wait_for_line("READY=1", mark);
    assert!(
        !manager.messages().split_off(mark).iter().any(|message| message.says("FDSTORE=1")),
        "they are there still"
    );
    drop(server);
}

#[test]
fn an_address_that_the_configuration_names_no_more_is_closed_and_leaves_the_store() {
    let manager = Manager::new();
    let listen = |addresses: &str| format!("[[server]]\nname = \"a\"\nlisten = [{addresses}]\n");
    let setup = Setup::probe("v1").under(&manager).env("FDSTORE", "8");
    let socket = setup.bench().path().join("web.sock");
    let unix = format!("\"unix:{}\"", socket.display());
    let server = setup.config(&listen(&format!("\"127.0.0.1:0\", \"[::1]:0\", {unix}"))).start();
    stored(&manager, 3);
    let six = server.addrs().into_iter().find(|address| address.is_ipv6()).unwrap();
    // By a reload.
    server.bench.configure(&listen(&format!("\"127.0.0.1:0\", {unix}")));
    server.switch();
    stored(&manager, 2);
    assert!(Connection::open(six).is_err(), "nobody has it");
    // Between two masters; and what is not what its name says is not served.
    let server = kill_master(server);
    let stranger = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (strange, dead) = (stranger.local_addr().unwrap(), "baton 127.0.0.1%3a1");
    manager.store(dead, stranger.into());
    let four = manager.address_of("baton 127.0.0.1%3a0 0 a");
    server.bench.configure(&listen("\"[::1]:0\""));
    let next_server = again(&server, &manager).start();
    assert_eq!(stored(&manager, 1), ["baton [%3a%3a1]%3a0 0 a"]);
    for address in [four, strange] {
        assert!(Connection::open(address).is_err(), "{address} is closed");
    }
    assert!(!socket.exists(), "its file goes with it");
    assert_eq!(next_server.get("/").status, 200);
}

#[test]
fn a_start_that_falls_back_to_the_last_good_set_has_the_stored_sockets_still() {
    let manager = Manager::new();
    let server = Setup::probe("v1").under(&manager).env("FDSTORE", "8").start();
    stored(&manager, 1);
    let address = server.addr();
    let written = server.bench.path().join("state/baton").join(&server.name).join("last_good");
    wait::until("the set to be written down", wait::LONG, || written.exists().then_some(()));
    let server = kill_master(server);
    server.bench.install("probe", &artifacts::plugin("broken"));
    let setup = again(&server, &manager).listen(&["127.0.0.1:0"]).set("plugins.probe.config.init", "error");
    let next_server = setup.start();
    assert!(next_server.status().alert.is_some());
    assert_eq!((next_server.addr(), next_server.probe().0.as_str()), (address, "v1"));
}

#[test]
fn at_a_shutdown_systemd_lets_go_first_and_clients_are_refused_while_it_drains() {
    let manager = Manager::new();
    let mut server = Setup::probe("v1").under(&manager).env("FDSTORE", "8").start();
    stored(&manager, 1);
    let addr = server.addr();
    let mut slow = slow_request(&server, 1500);
    let mark = next(&manager);
    server.signal(Signal::SIGTERM);
    let (stopping, _) = manager.wait_for_line("STOPPING=1", mark);
    let (barrier, _) = manager.wait_for_line("BARRIER=1", mark);
    assert!(barrier < stopping && manager.stored().is_empty());
    wait::until("new clients to be refused", Duration::from_secs(1), || Connection::open(addr).is_err().then_some(()));
    assert_eq!(slow.receive().expect("the slow request is answered").status, 200);
    assert_eq!(server.wait_end(wait::LONG).code(), Some(0));
}

#[test]
fn a_shutdown_does_not_wait_for_a_systemd_that_hangs() {
    let manager = Manager::new();
    let mut server = Setup::probe("v1").under(&manager).env("FDSTORE", "8").start();
    stored(&manager, 1);
    manager.hang();
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_end(Duration::from_secs(20)).code(), Some(0));
}

#[test]
fn without_room_nothing_is_stored_and_with_little_what_fits() {
    let manager = Manager::new();
    let server = Setup::probe("v1").under(&manager).start();
    manager.wait_for_line("READY=1", 0);
    switch_to(&server, "v2");
    assert_eq!(manager.count("FDSTORE=1"), 0);
    let manager = Manager::new();
    let setup = Setup::probe("v1").under(&manager).env("FDSTORE", "1").listen(&["127.0.0.1:0", "127.0.0.1:0"]);
    let server = setup.start();
    stored(&manager, 1);
    switch_to(&server, "v2");
    assert_eq!((manager.count("FDSTORE=1"), server.addrs().len()), (1, 2));
}

#[test]
fn a_restart_in_place_leaves_the_store_as_it_is() {
    let manager = Manager::new();
    let server = Setup::probe("v1").own_program().under(&manager).env("FDSTORE", "8").start();
    let names = stored(&manager, 1);
    server.cli(&["restart", "--name", &server.name]).assert_code(0);
    server.wait_for("the store", |status| status.systemd.as_ref().is_some_and(|systemd| systemd.stored == names));
    assert_eq!((stored(&manager, 1), manager.count("FDSTOREREMOVE=1")), (names, 0));
}
