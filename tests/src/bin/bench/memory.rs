//! What an idle connection costs in memory: PSS of the child with and without many, each served once; in the child that accepted
//! them, in the one that took them over, and there once they were served again.

use baton_tests::http::Connection;
use baton_tests::server::{Server, Setup};
use baton_tests::{artifacts, process};
use nix::sys::resource::{Resource, getrlimit};

use crate::Options;
use crate::report::{Report, Row};

const CONNECTIONS: u64 = 5000;
/// For one connection, in kB.
const LIMIT_KB: f64 = 20.0;
/// Connections that come and go first, so that what is allocated once is not counted.
const WARM_UP: usize = 200;

pub fn run(options: &Options) -> Report {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).expect("failed to ask for the limit of open files");
    let count = options.connections.unwrap_or(CONNECTIONS).min(soft * 10 / 12);
    let server = Setup::probe("v1").start();
    let empty = warm(&server);
    let mut connections: Vec<Connection> = (0..count).map(|_| server.connect()).collect();
    ask(&mut connections);
    let served = pss(&server);
    server.bench.install("probe", &artifacts::probe("v2"));
    server.switch();
    server.wait_drained();
    let adopted = pss(&server);
    ask(&mut connections);
    let again = pss(&server);
    let each = |pss: u64| pss.saturating_sub(empty) as f64 * 1024.0 / 1000.0 / count as f64;
    let row = |figure: &str, pss: u64| {
        Row::at_most(figure, each(pss), "kB", LIMIT_KB).beside(format!("PSS {pss} KiB in all"))
    };
    Report {
        rows: vec![
            Row::shown("idle connections", count.to_string(), format!("PSS without them {empty} KiB")),
            row("of one that was served once", served),
            row("of one that was taken over", adopted),
            row("of one that was taken over and served again", again),
        ],
        ..Report::default()
    }
}

/// PSS of a child that has served, and has no connection.
fn warm(server: &Server) -> u64 {
    let mut connections: Vec<Connection> = (0..WARM_UP).map(|_| server.connect()).collect();
    ask(&mut connections);
    drop(connections);
    server.wait_for("the warm-up to end", |status| status.serving().is_some_and(|one| one.load.connections == 0));
    pss(server)
}

fn ask(connections: &mut [Connection]) {
    for connection in connections {
        assert_eq!(connection.request("GET", "/").expect("an answer").status, 200);
    }
}

fn pss(server: &Server) -> u64 {
    process::memory(server.worker()).expect("the child runs").pss
}
