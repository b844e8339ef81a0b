//! Nothing grows: after many reloads there is one child, no zombie, the same descriptors, and no more memory.

use baton_tests::artifacts::{self, Profile};
use baton_tests::server::{Server, Setup};
use baton_tests::{process, wait};

const RELOADS: u64 = 60;
/// How much more private-dirty memory (KiB) the master may hold at the end than half way.
const GROWTH: u64 = 256;
/// Largest RSS of an optimised master, in KiB.
const LARGEST_RSS: u64 = 12 * 1024;

/// Waits until the master holds descriptors for nothing but itself and one child, and gives them by kind.
fn settled_fds(server: &Server) -> std::collections::BTreeMap<String, usize> {
    server.wait_drained();
    // The connection that asked may still be open for a moment.
    let (mut last, mut same) = (process::fds(server.pid()), 0);
    wait::until("the descriptors to settle", wait::LONG, || {
        let now = process::fds(server.pid());
        same = if now == last { same + 1 } else { 0 };
        last = now;
        (same > 20).then(|| last.clone())
    })
}

#[test]
fn sixty_reloads_leave_nothing_behind() {
    let server = Setup::probe("v1").start();
    let versions = [artifacts::probe("v2"), artifacts::probe("v1")];
    server.switch();
    let fds = settled_fds(&server);
    let mut half_way = 0;
    for round in 0..RELOADS {
        server.bench.install("probe", &versions[round as usize % 2]);
        server.switch();
        assert!(server.get("/").status == 200);
        if round == RELOADS / 2 {
            server.wait_drained();
            half_way = process::memory(server.pid()).expect("the master runs").private_dirty;
        }
    }
    assert_eq!(settled_fds(&server), fds, "the master's descriptors, by kind");
    let children = process::children(server.pid());
    assert_eq!((children.len(), children.iter().filter(|child| child.is_zombie()).count()), (1, 0), "{children:?}");
    let memory = process::memory(server.pid()).expect("the master runs");
    assert!(memory.private_dirty <= half_way + GROWTH, "from {half_way} KiB to {memory:?}");
    if artifacts::profile() == Profile::Release {
        assert!(memory.rss <= LARGEST_RSS, "{memory:?}");
    }
    assert_eq!(server.status().switches, RELOADS + 2);
}

#[test]
fn refused_reloads_leave_nothing_behind_either() {
    let server = Setup::probe("v1").set("plugins.probe.config.init", "exit").start();
    let broken = artifacts::plugin("broken");
    let fds = settled_fds(&server);
    let store = || {
        std::fs::read_dir(server.bench.path().join("state/baton").join(&server.name).join("store"))
            .into_iter()
            .flatten()
            .count()
    };
    for round in 0..20 {
        if round % 2 == 0 {
            server.bench.install("probe", &broken);
        } else {
            std::fs::write(server.bench.plugin_file("probe"), "no library").expect("failed to write");
        }
        assert_eq!(server.reload().0, 409);
    }
    assert_eq!(settled_fds(&server), fds, "the master's descriptors, by kind");
    let children = process::children(server.pid());
    assert_eq!((children.len(), children.iter().filter(|child| child.is_zombie()).count()), (1, 0), "{children:?}");
    assert!(store() <= 6, "{} snapshots are kept", store());
}

#[test]
fn a_worker_inherits_what_it_needs_and_nothing_else() {
    let server = Setup::probe("v1").start();
    let first = process::fds(server.worker());
    for _ in 0..5 {
        server.switch();
    }
    server.wait_drained();
    let worker = server.worker();
    wait::until("the worker to hold no more than the first one did", wait::LONG, || {
        let now = process::fds(worker);
        (now == first).then_some(())
    });
}
