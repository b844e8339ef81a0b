//! How long a swap takes: from before `kill(2)` to the first answer by the new code, on new connections back to back, and to
//! the last answer by the old; beside fork+exec in the same run, which no design that starts a process can beat.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use baton_tests::server::Setup;
use baton_tests::stats::quantile;
use baton_tests::{artifacts, http};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::report::{Report, Row};
use crate::{Options, cores};

/// How long the old code may still answer without being missed.
const TAIL: Duration = Duration::from_millis(50);

pub fn run(options: &Options) -> Report {
    let reloads = options.reloads.unwrap_or(200);
    let (server_core, client_core) = cores();
    let server = Setup::probe("v1").core(server_core).start();
    let addr = server.addr();
    let versions = [("v2", artifacts::probe("v2")), ("v1", artifacts::probe("v1"))];
    if let Some(core) = client_core {
        let mut set = CpuSet::new();
        set.set(core).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set)).expect("failed to take a core");
    }
    let (mut first_new, mut last_old, mut fork_exec, mut fork_exec_own) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    // Two more, unmeasured, to begin with.
    for round in 0..reloads + 2 {
        let (version, file) = &versions[round as usize % 2];
        fork_exec.push(ms(run_to_end(Command::new("/bin/true"))));
        fork_exec_own.push(ms(run_to_end(server.bench.command(&["--version"]))));
        server.bench.install("probe", file);
        let begun = Instant::now();
        server.signal(Signal::SIGUSR1);
        let (mut new, mut old) = (None, Duration::ZERO);
        while new.is_none_or(|new: Duration| begun.elapsed() < new + TAIL) {
            let response = http::get(addr, "/").expect("a request was lost");
            let answered = response.header("x-probe").and_then(|by| by.split(' ').next());
            if answered == Some(version) {
                new.get_or_insert(begun.elapsed());
            } else {
                old = begun.elapsed();
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "the new code never answered");
        }
        if round >= 2 {
            first_new.push(ms(new.expect("the loop ends with it")));
            last_old.push(ms(old));
        }
        server.wait_drained();
    }
    let p50 = |values: &[f64]| quantile(values, 0.5);
    let beside = |values: &[f64]| format!("p95 {:.2} ms, max {:.2} ms", quantile(values, 0.95), quantile(values, 1.0));
    let limit = (6.0 * p50(&fork_exec)).max(12.0);
    let shown = |name: &str, values: &[f64]| Row::shown(name, format!("{:.2} ms", p50(values)), beside(values));
    Report {
        rows: vec![
            Row::at_most("USR1 to first answer by the new code, p50", p50(&first_new), "ms", limit)
                .beside(beside(&first_new)),
            shown("USR1 to last answer by the old code, p50", &last_old),
            shown("fork+exec of /bin/true, p50", &fork_exec),
            shown("fork+exec of baton --version, p50", &fork_exec_own),
        ],
        notes: vec![format!(
            "{reloads} reloads, two builds of one plugin alternated by rename, new connections back to back; \
             the limit is max(12 ms, 6 x fork+exec of /bin/true)"
        )],
        ..Report::default()
    }
}

fn run_to_end(mut command: Command) -> Duration {
    let begun = Instant::now();
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status().expect("failed to start a process");
    assert!(status.success(), "{command:?} failed: {status}");
    begun.elapsed()
}
