//! A plugin that turns on the server: whatever its process sends, keeps open or calls, the master answers, sees its death,
//! and clients are served.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use baton_tests::http::Connection;
use baton_tests::server::{Server, Setup};
use baton_tests::{artifacts, process, wait};
use nix::fcntl::{Flock, FlockArg};
use nix::libc;
use nix::sys::signal::Signal;

/// Answers of the master take this long at most while a child misbehaves, on a busy machine.
const PROMPT: Duration = Duration::from_secs(8);

fn hostile() -> Setup {
    Setup::new().plugin("hostile", &artifacts::plugin("hostile"))
}

/// Has the plugin do `what`, with that body; its answer.
#[track_caller]
fn make(server: &Server, what: &str, body: &[u8]) -> String {
    let mut connection = server.connect();
    connection.send("POST", what, &[], body).expect("failed to send a request");
    connection.receive().unwrap_or_else(|error| panic!("{what}: no answer: {error}")).text()
}

/// One control message, as JSON.
fn message(text: &str) -> Vec<u8> {
    format!("{{\"fds\":0,\"message\":{text}}}").into_bytes()
}

/// The master answers within [`PROMPT`].
#[track_caller]
fn assert_prompt(server: &Server) {
    let connection = Connection::open_unix(server.socket());
    let mut connection = connection.unwrap_or_else(|error| panic!("failed to connect: {error}"));
    connection.time_limit(PROMPT).expect("failed to set a time limit");
    let answer = connection.request("GET", "/debug/admin/status");
    let answer = answer.unwrap_or_else(|error| panic!("the master does not answer: {error}"));
    assert_eq!(answer.status, 200);
}

#[test]
fn death_is_seen_while_a_grandchild_writes_on() {
    for text in ["{\"type\":\"no_such_message\"}", "{\"type\":\"paused\"}"] {
        let server = hostile().start();
        let old = server.worker();
        assert_eq!(make(&server, "/flood-from-grandchild", &message(text)), "done");
        process::kill(old, Signal::SIGKILL);
        let killed = Instant::now();
        server.wait_for("the death", |status| status.crashes == 1);
        assert!(killed.elapsed() < PROMPT, "seen after {:?}", killed.elapsed());
        let status = server.wait_for("another process to serve", |status| {
            status.serving().is_some_and(|serving| serving.pid.is_some_and(|pid| pid != old))
        });
        assert_eq!(status.crashes, 1);
        let dead = status.generations.iter().find(|one| one.generation == 1).expect("the dead stays in the list");
        assert!(dead.exit.as_deref().is_some_and(|exit| exit.contains("SIGKILL")), "{dead:#?}");
        assert_eq!(server.get("/pid").text(), server.worker().to_string());
    }
}

#[test]
fn descriptors_from_a_child_never_hold_up_the_master() {
    // Accepts nothing and reads nothing: what is sent to it stays unsent.
    let sink = TcpListener::bind("127.0.0.1:0").expect("failed to listen");
    let port = sink.local_addr().expect("its address").port();
    let server = hostile().start();
    for _ in 0..3 {
        make(&server, &format!("/descriptor?port={port}"), b"");
        assert_prompt(&server);
    }
    server.switch();
}

#[test]
fn a_child_that_floods_its_control_socket_holds_up_nobody() {
    // The last two are errors that quote what was sent.
    let wrong = |len| format!("{{\"type\":\"control\",\"plugin\":\"hostile\",\"verb\":\"{}\"}}", "z".repeat(len));
    let long = format!("{{\"type\":\"x\",\"y\":\"{}\"}}", "z".repeat(100_000));
    let texts = ["{\"type\":\"paused\"}".to_owned(), long, wrong(100), wrong(100_000)];
    for text in texts {
        let mut server = hostile().own_program().start();
        let old = server.worker();
        for _ in 0..2 {
            assert_eq!(make(&server, "/flood", &message(&text)), "done");
        }
        for _ in 0..5 {
            assert_prompt(&server);
        }
        assert_eq!(server.get("/pid").text(), old.to_string(), "it serves on");
        // Another program takes over meanwhile, and a reload ends it.
        server.cli(&["restart", "--name", &server.name, "--force"]).assert_code(0);
        server.wait_settled();
        assert_ne!(server.worker(), old);
        let log = server.log();
        assert!(log.len() < 200_000, "the log has {} bytes: {}", log.len(), &log[..2000]);
        server.signal(Signal::SIGTERM);
        server.wait_end(wait::LONG);
    }
}

#[test]
fn a_plugin_that_reloads_forever_keeps_nobody_from_the_master() {
    // By the host's own way, and past it.
    let reload = message("{\"type\":\"control\",\"plugin\":\"hostile\",\"verb\":\"reload\"}");
    for (what, body) in [("/reload-forever", &[][..]), ("/flood", &reload)] {
        let mut server = hostile().start();
        assert_eq!(make(&server, what, body), "done");
        for _ in 0..5 {
            assert_prompt(&server);
        }
        server.signal(Signal::SIGTERM);
        server.wait_end(wait::LONG);
    }
}

#[test]
fn control_verbs_that_a_plugin_may_not_send_are_ignored() {
    let server = hostile().set("plugins.hostile.allow_control", "false").start();
    let old = server.worker();
    let forge = |plugin: &str, verb: &str| {
        let text = format!("{{\"type\":\"control\",\"plugin\":\"{plugin}\",\"verb\":\"{verb}\"}}");
        assert_eq!(make(&server, "/send", &message(&text)), "done");
    };
    for verb in ["shutdown", "restart", "reload"] {
        forge("hostile", verb);
        forge("another", verb);
    }
    // What was sent before it is read before it.
    let text = "{\"type\":\"replace_me\"}";
    assert_eq!(make(&server, "/send", &message(text)), "done");
    let status = server.wait_for("the reload that a child may ask for", |status| status.switches == 2);
    assert_eq!((status.last_op(), status.shutting_down), (2, false), "{status:#?}");
    assert_ne!(server.worker(), old);
}

#[test]
fn a_child_has_no_terminal_no_input_and_no_stray_descriptor() {
    // A shell that leaves descriptors open, as many programs do.
    let setup = hostile().through(&["sh", "-c", "exec 4</etc/hostname 9</etc/hostname; exec \"$@\"", "sh"]);
    let server = setup.start();
    let pid = server.worker();
    let target = |fd: u32| std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok();
    assert_eq!(target(0).expect("it has an input").to_str(), Some("/dev/null"));
    for fd in [4, 9] {
        let target = target(fd);
        assert_ne!(target.as_deref(), Some(std::path::Path::new("/etc/hostname")), "{fd}");
    }
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let fields: Vec<&str> = stat[stat.rfind(')').expect("a name") + 1..].split_whitespace().collect();
    // State, parent, group, session, terminal.
    assert_eq!((fields[2], fields[3], fields[4]), (&*pid.to_string(), &*pid.to_string(), "0"));
}

#[test]
fn a_child_cannot_attach_a_filter_to_a_listener() {
    let setup = hostile();
    let path = setup.bench().path().join("socket");
    let unix = format!("unix:{}", path.display());
    let server = setup.listen(&["127.0.0.1:0", &unix]).start();
    let answer = make(&server, "/filter-listeners", b"");
    assert!(answer.contains("not permitted"), "{answer}");
    assert_eq!(server.get("/pid").text(), server.worker().to_string());
    // The lock stays through a restart in place.
    server.cli(&["restart", "--name", &server.name, "--force"]).assert_code(0);
    server.wait_settled();
    assert!(make(&server, "/filter-listeners", b"").contains("not permitted"));
    assert_eq!(server.get("/pid").text(), server.worker().to_string());
}

#[test]
fn a_listener_that_was_shut_down_is_reached_again() {
    let setup = hostile().passed(&["web"]);
    let path = setup.bench().path().join("socket");
    let unix = format!("unix:{}", path.display());
    let server = setup.listen(&["127.0.0.1:0", &unix, "systemd:web"]).start();
    let addresses = server.addrs();
    assert_eq!(addresses.len(), 2, "{addresses:?}");
    for round in 0..2 {
        make(&server, "/shutdown-listeners", b"");
        for address in &addresses {
            wait::until("the address to answer again", wait::LONG, || {
                baton_tests::http::get(*address, "/pid").ok().filter(|answer| answer.status == 200)
            });
        }
        wait::until("the path to answer again", wait::LONG, || {
            let mut connection = Connection::open_unix(&path).ok()?;
            connection.time_limit(PROMPT).ok()?;
            connection.request("GET", "/pid").ok().filter(|answer| answer.status == 200)
        });
        assert_eq!(server.addrs(), addresses, "round {round}");
    }
    // Those that were bound anew take no filter either.
    let answer = make(&server, "/filter-listeners", b"");
    assert!(answer.contains("not permitted"), "{answer}");
    server.switch();
    assert_eq!(server.get("/pid").text(), server.worker().to_string());
}

#[test]
fn held_bind_lock_does_not_hold_up_the_master() {
    let setup = hostile();
    let path = setup.bench().path().join("socket");
    let server = setup.listen(&["127.0.0.1:0", &format!("unix:{}", path.display())]).start();
    // By a user who may write the folder.
    let lock = std::fs::File::create(path.with_extension("lock")).expect("failed to create the lock");
    let lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error).expect("failed to lock");
    make(&server, "/shutdown-listeners", b"");
    // The lock is tried twice a second, and waited for by sleeping: never on the thread of the loop.
    let loop_syscall = || {
        let text = std::fs::read_to_string(format!("/proc/{}/syscall", server.pid())).expect("the call of the loop");
        text.split_whitespace().next().and_then(|number| number.parse::<i64>().ok())
    };
    let mut samples = 0;
    wait::until("300 samples of what the loop does", wait::LONG, || {
        let call = loop_syscall();
        let is_sleep = [libc::SYS_nanosleep, libc::SYS_clock_nanosleep].into_iter().any(|sleep| call == Some(sleep));
        assert!(!is_sleep, "the loop sleeps");
        samples += 1;
        (samples == 300).then_some(())
    });
    assert_prompt(&server);
    let answers = || {
        let mut connection = Connection::open_unix(&path).ok()?;
        connection.time_limit(PROMPT).ok()?;
        connection.request("GET", "/pid").ok().filter(|answer| answer.status == 200)
    };
    assert!(answers().is_none(), "it was bound in spite of the lock");
    drop(lock);
    wait::until("the path to answer again", wait::LONG, answers);
}

#[test]
fn listener_that_turns_clients_away_is_bound_again() {
    let sink = TcpListener::bind("127.0.0.1:0").expect("failed to listen");
    let sink = sink.local_addr().expect("its address").port();
    // A port that was asked for. Nothing else is given one of this address.
    let fixed = TcpListener::bind("127.0.0.77:0").expect("failed to listen").local_addr().expect("its address");
    let devices = std::fs::read_dir("/sys/class/net").expect("the network devices");
    let mut devices = devices.filter_map(|device| device.ok()?.file_name().into_string().ok());
    let device = devices.find(|name| name != "lo").unwrap_or_else(|| "lo".into());
    let server = hostile().listen(&["127.0.0.1:0", &fixed.to_string()]).start();
    let addresses = server.addrs();
    let listening = || process::listening(server.pid());
    for attack in [
        // First: sockets that were bound again do not give up their ports.
        "/bind-listeners",
        &*format!("/connect-listeners?port={sink}"),
        &format!("/device-listeners?device={device}"),
        "/hide-listeners",
    ] {
        let before = listening();
        make(&server, attack, b"");
        wait::until(&format!("another socket to listen after {attack}"), wait::LONG, || {
            let now = listening();
            let is_new = |address| now.get(address).is_some_and(|inode| before.get(address) != Some(inode));
            // A port that was asked for cannot be given up for another.
            (is_new(&addresses[0]) && (is_new(&addresses[1]) || attack == "/bind-listeners")).then_some(())
        });
        for address in &addresses {
            wait::until(&format!("{address} to answer again after {attack}"), wait::LONG, || {
                baton_tests::http::get(*address, "/pid").ok().filter(|answer| answer.status == 200)
            });
        }
        assert_eq!(server.addrs(), addresses, "{attack}");
        // Also for the next generation.
        server.switch();
        for address in &addresses {
            let pid = baton_tests::http::get(*address, "/pid").expect("it answers").text();
            assert_eq!(pid, server.worker().to_string(), "{attack}");
        }
        assert!(make(&server, "/filter-listeners", b"").contains("not permitted"), "{attack}");
    }
}

/// Has the plugin leave processes behind, and waits until `master` has adopted and reaped them.
#[track_caller]
fn assert_orphans_are_reaped(server: &Server, master: i32) {
    let adopted = || process::children(master).len() - 1;
    for _ in 0..2 {
        assert_eq!(make(server, "/orphan", b""), "done");
    }
    wait::until("the orphans to be adopted", wait::LONG, || (adopted() > 0).then_some(()));
    wait::until("the orphans to be reaped", wait::LONG, || (adopted() == 0).then_some(()));
}

#[test]
fn a_subreaper_reaps_what_it_adopts_and_sees_how_its_children_end() {
    let server = hostile().subreaper().start();
    assert_orphans_are_reaped(&server, server.pid());
    let old = server.worker();
    make(&server, "/orphan", b"");
    process::kill(old, Signal::SIGKILL);
    let status = server.wait_for("another process to serve", |status| {
        status.serving().is_some_and(|serving| serving.pid.is_some_and(|pid| pid != old))
    });
    let dead = status.generations.iter().find(|one| one.generation == 1).expect("the dead stays in the list");
    assert!(dead.exit.as_deref().is_some_and(|exit| exit.contains("SIGKILL")), "{dead:#?}");
    wait::until("all but the worker to be reaped", wait::LONG, || {
        (process::children(server.pid()).len() == 1).then_some(())
    });
    // The next program of the process has the same to do.
    server.cli(&["restart", "--name", &server.name, "--force"]).assert_code(0);
    server.wait_drained();
    assert_orphans_are_reaped(&server, server.pid());
}

#[test]
fn as_root_pid_1_of_a_container_reaps_what_it_adopts() {
    let setup = hostile().through(&["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]);
    let server = setup.start();
    let master = process::children(server.pid())[0].pid;
    assert_eq!(server.status().pid, 1);
    assert_orphans_are_reaped(&server, master);
}
