//! Many idle keep-alive connections across one reload: how long until the new process has all of them, and that each is
//! answered there, on the same connection.

use std::time::{Duration, Instant};

use baton_tests::http::Connection;
use baton_tests::server::{Server, Setup, answered_by};
use baton_tests::{artifacts, wait};
use nix::sys::resource::{Resource, getrlimit};

use crate::Options;
use crate::report::{Report, Row};

/// How many, unless it is said otherwise and the limit of open files allows.
const CONNECTIONS: u64 = 10_000;
/// Until the old process has none left.
const LIMIT_MS: f64 = 500.0;
const TURNS: usize = 5;

pub fn run(options: &Options) -> Report {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).expect("failed to ask for the limit of open files");
    // The server's limit is this process's: one descriptor each here, one in the child, a fifth more for the rest.
    let count = options.connections.unwrap_or(CONNECTIONS).min(soft * 10 / 12);
    let server = Setup::probe("v1").start();
    let mut connections: Vec<Connection> = (0..count).map(|_| server.connect()).collect();
    for connection in &mut connections {
        assert_eq!(connection.request("GET", "/").expect("failed to begin").status, 200);
    }
    let versions = [artifacts::probe("v2"), artifacts::probe("v1")];
    let (mut times, mut wrong) = (Vec::new(), 0_u64);
    for turn in 0..TURNS {
        times.push(move_all(&server, &versions[turn % 2], count));
        let expected = if turn % 2 == 0 { "v2" } else { "v1" };
        for connection in &mut connections {
            let there = connection.request("GET", "/").is_ok_and(|response| answered_by(&response).0 == expected);
            wrong += u64::from(!there);
        }
    }
    times.sort_by(f64::total_cmp);
    let worst = times.last().copied().unwrap_or_default();
    Report {
        rows: vec![
            Row::shown("idle connections", count.to_string(), format!("open files: at most {soft}")),
            Row::at_most("until the old process has none left, median", times[TURNS / 2], "ms", LIMIT_MS)
                .beside(format!("max {worst:.0} ms")),
            Row::at_most("not answered by the new process on the same connection", wrong as f64, "", 0.0),
        ],
        notes: vec![format!(
            "{TURNS} reloads, one after the other; clock from before the signal to DONE of the old process"
        )],
        ..Report::default()
    }
}

/// One reload; how long, in milliseconds, until all `count` connections are the new process's.
fn move_all(server: &Server, plugin: &std::path::Path, count: u64) -> f64 {
    let before = server.status().switches;
    server.bench.install("probe", plugin);
    let begun = Instant::now();
    server.signal(nix::sys::signal::Signal::SIGUSR1);
    let moved = wait::until("the drain report", Duration::from_secs(60), || {
        let status = server.status();
        let newest = status.operations.first().filter(|_| status.switches > before)?;
        newest.drain.as_ref().map(|drain| drain.handed_over)
    });
    let time = begun.elapsed().as_secs_f64() * 1000.0;
    assert_eq!(moved, count, "not all have moved");
    time
}
