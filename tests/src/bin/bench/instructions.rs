//! Instructions per request, in user mode, of the thread that serves: one by one, by single-stepping it. Slow, but it needs
//! neither hardware counters nor a quiet machine: two runs differ by less than one in a hundred, so a change of a few in a
//! hundred shows here where CPU time cannot tell it.
//!
//! Beside the cost of the boundary it tells that of the limits: all of them on against all of them off.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use baton_tests::http::Connection;
use baton_tests::stats::quantile;
use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::Options;
use crate::client::{BROWSER, saturate};
use crate::report::{Report, Row};
use crate::subject::Subject;

/// Requests that are not counted: whatever is made once is made by then.
const WARM_UP: u64 = 10;

const HYPER: usize = 0;
const HYPER_AGAIN: usize = 1;
const NATIVE: usize = 2;
const UNLIMITED: usize = 3;
const AXUM: usize = 4;
const PLUGIN_AXUM: usize = 5;

pub fn run(options: &Options) -> Report {
    let requests = options.rounds.unwrap_or(25);
    let timeouts = ["head", "idle", "body", "write", "request"].map(|limit| format!("limits.{limit}_timeout"));
    let all_off = timeouts.each_ref().map(|key| (key.as_str(), "never"));
    let mut all_on = timeouts.each_ref().map(|key| (key.as_str(), "60s")).to_vec();
    all_on.push(("limits.connections_per_peer", "10000"));
    let subjects = [
        Subject::fixed("static hyper", "static_hyper", None),
        Subject::fixed("static hyper, again", "static_hyper", None),
        Subject::plugin("native handler in a plugin, all limits on", "bench-native", &all_on, None),
        Subject::plugin("native handler in a plugin, no limit on", "bench-native", &all_off, None),
        Subject::fixed("static axum", "static_axum", None),
        Subject::plugin("axum in a plugin, all limits on", "bench-axum", &all_on, None),
    ];
    let mut report = Report::default();
    for (kind, headers) in [("plain", &[][..]), ("ten browser headers", &BROWSER[..])] {
        let counts = subjects.each_ref().map(|subject| count(subject, headers, requests));
        for (subject, count) in subjects.iter().zip(counts) {
            report.rows.push(Row::shown(format!("{}, {kind}", subject.name), format!("{count:.0}"), ""));
        }
        let ratio = |over: usize, under: usize| counts[over] / counts[under];
        let noise = ratio(HYPER_AGAIN, HYPER);
        report.rows.push(Row::shown(format!("static hyper / itself, {kind}"), format!("{noise:.3}"), ""));
        for (figure, over, under) in
            [("native / static hyper", NATIVE, HYPER), ("axum in a plugin / static axum", PLUGIN_AXUM, AXUM)]
        {
            let ratio = ratio(over, under);
            report.rows.push(Row::shown(format!("{figure}, {kind}"), format!("{ratio:.3}"), ""));
        }
        report.rows.push(Row::at_most(&format!("all limits on / off, {kind}"), ratio(NATIVE, UNLIMITED), "", 1.05));
    }
    report.notes.push(format!(
        "user-mode instructions of the thread that serves, per request: the lower quartile of {requests} requests one after the other \
         on one connection; what the kernel does is not counted"
    ));
    report
}

/// The client says here which request it makes, the tracer reads it: none that counts yet, one of those that do, or no more.
const WARMING: u64 = 0;
const DONE: u64 = u64::MAX;

/// Instructions per request: the lower quartile. A server that is stepped lives slowly, so that up to half of the requests bear
/// what is done by the clock, such as a look at all connections once a second.
fn count(subject: &Subject, headers: &[(&str, &str)], requests: u64) -> f64 {
    let thread = busiest(subject, headers);
    let station = AtomicU64::new(WARMING);
    let counts = thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut connection = Connection::open(subject.addr).expect("failed to connect");
            let mut ask = || {
                connection.send("GET", "/", headers, b"").expect("failed to send");
                assert_eq!(connection.receive().expect("failed to read an answer").status, 200);
            };
            (0..WARM_UP).for_each(|_| ask());
            for number in 1..=requests {
                station.store(number, Ordering::SeqCst);
                ask();
            }
            station.store(DONE, Ordering::SeqCst);
            // Wakes the thread out of its wait, so that the tracer sees the station.
            ask();
        });
        let counts = trace(thread, &station, requests);
        client.join().expect("the client failed");
        counts
    });
    quantile(&counts, 0.25)
}

/// The thread that serves: the one that ran most while the server was kept busy.
fn busiest(subject: &Subject, headers: &[(&str, &str)]) -> Pid {
    let before = run_times(subject.worker());
    saturate(subject.addr, headers, 1, None);
    let after = run_times(subject.worker());
    let ran = |thread: &i32| after[thread] - before.get(thread).copied().unwrap_or(0);
    let busiest = after.keys().copied().max_by_key(ran).expect("a process has threads");
    Pid::from_raw(busiest)
}

/// Nanoseconds that each thread of a process has run (proc(5), schedstat).
fn run_times(pid: i32) -> BTreeMap<i32, u64> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("failed to list threads");
    let time = |entry: fs::DirEntry| {
        let text = fs::read_to_string(entry.path().join("schedstat")).ok()?;
        let thread = entry.file_name().to_str()?.parse().ok()?;
        Some((thread, text.split_ascii_whitespace().next()?.parse().ok()?))
    };
    threads.flatten().filter_map(time).collect()
}

/// Steps `thread` until the station is [`DONE`]; answers how many steps it made during each request.
fn trace(thread: Pid, station: &AtomicU64, requests: u64) -> Vec<f64> {
    const WHY: &str = "failed to trace the server (see ptrace(2) for what the kernel allows)";
    ptrace::seize(thread, ptrace::Options::empty()).expect(WHY);
    ptrace::interrupt(thread).expect(WHY);
    let mut steps = vec![0.0; requests as usize];
    loop {
        let signal = match waitpid(thread, Some(WaitPidFlag::__WALL)) {
            Ok(WaitStatus::Stopped(_, Signal::SIGTRAP) | WaitStatus::PtraceEvent(..)) => None,
            Ok(WaitStatus::Stopped(_, signal)) => Some(signal),
            Err(Errno::EINTR) => continue,
            other => panic!("the server ended: {other:?}"),
        };
        match station.load(Ordering::Relaxed) {
            WARMING => {}
            DONE => {
                ptrace::detach(thread, signal).expect(WHY);
                return steps;
            }
            number => steps[number as usize - 1] += 1.0,
        }
        ptrace::step(thread, signal).expect(WHY);
    }
}
