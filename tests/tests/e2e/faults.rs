//! Everything that may fail around a switch, each while clients are busy: what they lose, what the caller is told and what
//! the status says. The rows of the table in docs/OPERATIONS.md, in its order.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use baton_tests::http::Connection;
use baton_tests::load::{Fault, Load, Plan, Tally};
use baton_tests::server::{Server, Setup, answered_by};
use baton_tests::status::{Report, Status};
use baton_tests::{artifacts, elf, process, wait};
use nix::sys::signal::Signal;

use crate::crash::quiet;

/// Clients of the load: so many requests can be in one process at a time.
const KEEPALIVE: usize = 16;
const FRESH: usize = 4;
const CLIENTS: u64 = (KEEPALIVE + FRESH) as u64;

/// A server that serves v1 of the probe to busy clients.
struct Busy {
    server: Server,
    load: Load,
    old: i32,
}

impl Busy {
    fn start(setup: Setup) -> Busy {
        // Built before anything is timed.
        artifacts::probe("v2");
        let server = setup.start();
        let load = Load::start(Plan { keepalive: KEEPALIVE, fresh: FRESH, ..Plan::against(server.addr()) });
        load.wait_for_requests(200);
        let old = server.worker();
        Busy { server, load, old }
    }

    /// Reloads to whatever lies in the folder, with `meanwhile` beside it.
    fn reload(&self, meanwhile: impl FnOnce(&Server)) -> (u16, Report) {
        thread::scope(|scope| {
            let asked = scope.spawn(|| self.server.reload());
            meanwhile(&self.server);
            answer(asked)
        })
    }

    /// The reload was refused, the old process serves, nobody has lost anything; and then a good plugin is taken.
    #[track_caller]
    fn untouched(self, (code, report): (u16, Report), stage: &str) -> Report {
        assert_eq!(
            (code, report.result.as_str(), report.stage.as_deref()),
            (409, "refused", Some(stage)),
            "{report:#?}"
        );
        assert_eq!((report.serving, self.server.worker()), (Some(1), self.old), "{report:#?}");
        self.load.wait_for_requests(200);
        self.server.bench.install("probe", &artifacts::probe("v2"));
        let new = self.server.switch();
        assert_eq!(self.server.probe().0, "v2", "{new:#?}");
        self.load.wait_for_requests(200);
        let status = self.server.wait_drained();
        assert_eq!((status.switches, status.crashes), (2, 0), "{status:#?}");
        self.load.stop().assert_nothing_lost();
        assert_family(&self.server);
        report
    }

    /// Clients go on, and all that was ever lost had reached a process that died: nobody was refused, or given a wrong answer.
    #[track_caller]
    fn lost_with_the_dead(self) -> (Server, Tally) {
        self.load.wait_for_requests(500);
        let tally = self.load.stop();
        let others = [Fault::Refused, Fault::Connect, Fault::Wrong, Fault::Timeout].map(|fault| tally.fault(fault));
        assert_eq!(others, [0; 4], "{tally}");
        assert!(tally.lost() <= CLIENTS && tally.is_balanced(), "a client lost more than the request it had: {tally}");
        assert_family(&self.server);
        (self.server, tally)
    }
}

fn answer<T>(asked: ScopedJoinHandle<'_, T>) -> T {
    asked.join().expect("the caller was not answered")
}

/// One process for each generation that lives, and no zombie.
#[track_caller]
fn assert_family(server: &Server) {
    let living = server.status().living().count();
    let children = process::children(server.pid());
    assert!(children.len() == living && children.iter().all(|child| !child.is_zombie()), "{living}: {children:?}");
}

/// With a plugin to come whose init waits until the file is there.
fn gated() -> (Busy, PathBuf) {
    let setup = Setup::probe("v1");
    let gate = setup.bench().path().join("gate");
    let busy = Busy::start(setup.set("plugins.probe.config.init", &format!("wait:{}", gate.display())));
    busy.server.bench.install("probe", &artifacts::plugin("broken"));
    (busy, gate)
}

/// Waits for the newest generation to be in that state; its process.
fn newest(server: &Server, state: &str) -> i32 {
    let status = server.wait_for(state, |status| {
        status.generations.first().is_some_and(|newest| newest.state == state && newest.pid.is_some())
    });
    status.generations[0].pid.expect("just seen")
}

/// Brings the new process, in init until now, to where it has said READY and the master has not heard it.
fn ready_unheard(server: &Server, gate: &PathBuf) -> i32 {
    let child = newest(server, "loading");
    // Not before: a master that is stopped sends nothing for it to load.
    wait::until("init to wait at the gate", wait::LONG, || gate.with_extension("waits").exists().then_some(()));
    process::kill(server.pid(), Signal::SIGSTOP);
    std::fs::write(gate, "").expect("failed to open the gate");
    quiet(child);
    child
}

/// A request that the serving process has in hand.
fn in_hand(server: &Server, ms: u64) -> Connection {
    let mut connection = server.connect();
    assert_eq!(connection.request("GET", "/").expect("an answer").status, 200);
    connection.send("GET", &format!("/sleep?ms={ms}"), &[], b"").expect("failed to send a request");
    server.wait_for("the slow request in the server", |status| {
        status.serving().is_some_and(|serving| serving.load.oldest_request_ms > 100)
    });
    connection
}

/// Ends with v2 serving, and v1 at `state`.
fn switched(busy: &Busy, state: &str) -> i32 {
    busy.server.bench.install("probe", &artifacts::probe("v2"));
    busy.server.signal(Signal::SIGUSR1);
    let status = busy.server.wait_for(state, |status| {
        status.serving == Some(2) && status.generations.iter().any(|one| one.generation == 1 && one.state == state)
    });
    status.serving().and_then(|serving| serving.pid).expect("it serves")
}

fn exit_of(status: &Status, generation: u64) -> &str {
    let found = status.generations.iter().find(|one| one.generation == generation);
    found.and_then(|one| one.exit.as_deref()).unwrap_or_default()
}

#[test]
fn a_child_that_cannot_be_spawned() {
    let busy = Busy::start(Setup::probe("v1"));
    let (master, plenty) = (busy.server.pid(), 1024);
    busy.server.bench.install("probe", &artifacts::probe("v2"));
    let open = process::fds(master).values().sum::<usize>() as u64;
    // Room for the one who asks, and none for the channel to a child.
    process::limit_descriptors(master, open + 2);
    let refused = busy.reload(|_| ());
    process::limit_descriptors(master, plenty);
    let stage = refused.1.stage.clone().unwrap_or_default();
    assert!(["snapshot", "spawn"].contains(&stage.as_str()), "{refused:#?}");
    busy.untouched(refused, &stage);
}

#[test]
fn a_child_whose_program_cannot_be_executed() {
    let busy = Busy::start(Setup::probe("v1").own_program());
    busy.server.bench.install("probe", &artifacts::probe("v2"));
    let mode = |mode| std::fs::set_permissions(busy.server.bench.program(), PermissionsExt::from_mode(mode));
    mode(0o644).expect("failed to take the right to execute it");
    let refused = busy.reload(|_| ());
    mode(0o755).expect("failed to give the right to execute it");
    busy.untouched(refused, "spawn");
}

#[test]
fn a_plugin_that_kills_the_process_which_opens_it() {
    let busy = Busy::start(Setup::probe("v1"));
    let file = elf::fatal_to_open(&artifacts::probe("v2"), busy.server.bench.path());
    busy.server.bench.install("probe", &file);
    let refused = busy.reload(|_| ());
    let report = busy.untouched(refused, "load");
    assert_eq!(report.plugin.as_deref(), Some("probe"), "{report:#?}");
    assert!(report.error.as_deref().is_some_and(|error| error.contains("SIGSEGV")), "{report:#?}");
}

#[test]
fn an_init_that_hangs() {
    let setup = Setup::probe("v1").set("start_timeout", "2s").set("plugins.probe.config.init", "hang");
    let busy = Busy::start(setup);
    busy.server.bench.install("probe", &artifacts::plugin("broken"));
    let refused = busy.reload(|_| ());
    busy.untouched(refused, "load");
}

#[test]
fn a_new_process_that_is_stopped_while_it_loads() {
    let setup = Setup::probe("v1").set("start_timeout", "2s").set("plugins.probe.config.init", "block");
    let busy = Busy::start(setup);
    busy.server.bench.install("probe", &artifacts::plugin("broken"));
    let refused = busy.reload(|server| {
        let child = newest(server, "loading");
        quiet(child);
        process::kill(child, Signal::SIGSTOP);
    });
    busy.untouched(refused, "load");
}

#[test]
fn a_new_process_that_dies_once_it_is_ready() {
    let (busy, gate) = gated();
    let refused = busy.reload(|server| {
        process::kill(ready_unheard(server, &gate), Signal::SIGKILL);
        process::kill(server.pid(), Signal::SIGCONT);
    });
    busy.untouched(refused, "switch");
}

#[test]
fn a_new_process_that_dies_between_go_and_serving() {
    let (busy, gate) = gated();
    let refused = busy.reload(|server| {
        let child = ready_unheard(server, &gate);
        process::kill(child, Signal::SIGSTOP);
        process::kill(server.pid(), Signal::SIGCONT);
        assert_eq!(newest(server, "committing"), child);
        process::kill(child, Signal::SIGKILL);
    });
    busy.untouched(refused, "switch");
}

#[test]
fn a_new_process_that_is_stopped_between_go_and_serving() {
    let (busy, gate) = gated();
    let refused = busy.reload(|server| {
        process::kill(ready_unheard(server, &gate), Signal::SIGSTOP);
        process::kill(server.pid(), Signal::SIGCONT);
    });
    busy.untouched(refused, "switch");
}

#[test]
fn a_new_process_that_dies_on_probation() {
    let busy = Busy::start(Setup::probe("v1").set("probation.window", "10min"));
    let (new, old) = (switched(&busy, "standby"), busy.old);
    busy.load.wait_for_requests(200);
    process::kill(new, Signal::SIGKILL);
    let status = busy.server.wait_for("the old one to serve again", |status| {
        status.serving().is_some_and(|serving| serving.pid == Some(old) && serving.state == "serving")
    });
    assert_eq!((status.crashes, status.operations[0].result.as_str()), (1, "rolled_back"), "{status:#?}");
    let held = status.held.iter().any(|held| held.change.plugin.as_deref() == Some("probe"));
    assert!(status.pinned.is_some() && held, "{status:#?}");
    busy.lost_with_the_dead();
}

#[test]
fn a_new_process_that_dies_a_second_after_the_old_one_was_told_to_end() {
    let busy = Busy::start(Setup::probe("v1"));
    let mut slow = in_hand(&busy.server, 4000);
    let (new, old) = (switched(&busy, "retiring"), busy.old);
    wait::pass(Duration::from_secs(1));
    process::kill(new, Signal::SIGKILL);
    let status = busy.server.wait_for("its successor", |status| {
        status.serving().is_some_and(|serving| serving.generation == 3 && serving.state == "serving")
    });
    assert_eq!((status.crashes, status.operations[0].result.as_str()), (1, "switched"), "{status:#?}");
    assert_eq!(status.serving().map(|serving| serving.cause.by.as_str()), Some("crash"), "{status:#?}");
    // What the old process has, it still finishes.
    assert_eq!(answered_by(&slow.receive().expect("the old process was left alone")), ("v1".into(), old));
    assert_eq!(slow.request("GET", "/").expect("it moved to the successor").status, 200);
    assert_eq!(busy.server.probe().0, "v2", "the set is the same");
    busy.lost_with_the_dead();
}

#[test]
fn an_old_process_that_dies_while_it_finishes_its_requests() {
    let busy = Busy::start(Setup::probe("v1"));
    let mut slow = in_hand(&busy.server, 600_000);
    let new = switched(&busy, "retiring");
    busy.server.wait_for("all but one to have moved", |status| {
        status.generations.iter().any(|one| one.generation == 1 && one.load.connections == 1)
    });
    process::kill(busy.old, Signal::SIGKILL);
    slow.receive().expect_err("it died with its process");
    let status = busy.server.wait_drained();
    assert_eq!((status.serving().and_then(|one| one.pid), status.crashes), (Some(new), 1), "{status:#?}");
    assert!(exit_of(&status, 1).contains("SIGKILL"), "{status:#?}");
    // It had nothing else.
    let (_, tally) = busy.lost_with_the_dead();
    tally.assert_nothing_lost();
}

#[test]
fn an_old_process_that_reads_nothing_any_more() {
    let busy = Busy::start(Setup::probe("v1").set("drain.max", "2s").set("drain.timeout", "2s"));
    busy.server.bench.install("probe", &artifacts::probe("v2"));
    process::kill(busy.old, Signal::SIGSTOP);
    // Its own clients wait for it; whoever comes new is served, and so are other callers.
    let (code, report) = busy.server.reload();
    assert_eq!((code, report.result.as_str()), (200, "switched"), "{report:#?}");
    assert_eq!(busy.server.probe().0, "v2");
    let status = busy.server.wait_drained();
    assert!(exit_of(&status, 1).contains("SIGKILL"), "{status:#?}");
    assert_eq!(status.serving, Some(2), "{status:#?}");
    busy.server.switch();
    busy.lost_with_the_dead();
}

#[test]
fn a_master_that_is_killed() {
    let Busy { mut server, load, .. } = Busy::start(Setup::probe("v1"));
    let mut slow = in_hand(&server, 1500);
    process::kill(server.pid(), Signal::SIGKILL);
    server.wait_end(wait::LONG);
    assert_eq!(answered_by(&slow.receive().expect("what ran was finished")).0, "v1");
    wait::until("the last process to end", wait::LONG, || server.processes().is_empty().then_some(()));
    let tally = load.stop();
    // Nobody gets half an answer: until the port is closed they are served, then they are refused.
    let halves = [Fault::Truncated, Fault::Wrong, Fault::Timeout].map(|fault| tally.fault(fault));
    assert_eq!(halves, [0; 3], "{tally}");
    assert!(tally.fault(Fault::Refused) > 0, "{tally}");
}

#[test]
fn a_store_on_a_full_disk() {
    let busy = Busy::start(Setup::probe("v1"));
    let (master, plugin) = (busy.server.pid(), artifacts::probe("v2"));
    busy.server.bench.install("probe", &plugin);
    let size = std::fs::metadata(&plugin).expect("it was just built").len();
    process::limit_file_size(master, Some(size / 2));
    let refused = busy.reload(|_| ());
    process::limit_file_size(master, None);
    let report = busy.untouched(refused, "snapshot");
    assert_eq!(report.plugin.as_deref(), Some("probe"), "{report:#?}");
    assert!(report.error.as_deref().is_some_and(|error| error.contains("too large")), "{report:#?}");
}

#[test]
fn a_master_without_a_descriptor_left() {
    let busy = Busy::start(Setup::probe("v1"));
    let (master, plenty) = (busy.server.pid(), 1024);
    busy.server.bench.install("probe", &artifacts::probe("v2"));
    process::limit_descriptors(master, 3);
    busy.server.signal(Signal::SIGUSR1);
    busy.load.wait_for_requests(200);
    process::limit_descriptors(master, plenty);
    let status = busy.server.wait_for("the reload to be refused", |status| {
        status.operations.first().is_some_and(|report| report.has_ended() && report.verb == "reload")
    });
    let report = status.operations[0].clone();
    let stage = report.stage.clone().unwrap_or_default();
    busy.untouched((409, report), &stage);
}
