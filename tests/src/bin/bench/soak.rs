//! The zero-loss run, for as long as asked: a reload every 50 ms under the reference load, and one row for each way to lose.

use std::time::{Duration, Instant};

use baton_tests::chaos::{Chaos, Misdeed};
use baton_tests::load::tally::FAULTS;
use baton_tests::load::{Class, Fault, Load, Plan, Tally};
use baton_tests::server::Setup;
use baton_tests::status::Status;
use baton_tests::{artifacts, wait};
use nix::sys::signal::Signal;

use crate::Options;
use crate::report::{Report, Row, Verdict};

const SPACING: Duration = Duration::from_millis(50);

/// Calls `trigger` every [`SPACING`] for `time`; how often it did.
fn triggers(load: &Load, time: Duration, mut trigger: impl FnMut(u32)) -> u32 {
    let (begun, mut count) = (Instant::now(), 0);
    while begun.elapsed() < time {
        wait::pass((SPACING * count).saturating_sub(begun.elapsed()));
        load.mark();
        trigger(count);
        count += 1;
    }
    count
}

pub fn run(options: &Options) -> Report {
    let time = Duration::from_secs(options.seconds.unwrap_or(60));
    let (count, tally, status) = loaded(Setup::probe("v1"), time);
    let short = time.min(Duration::from_secs(10));
    let control = control(short);
    let (_, bare, _) = loaded(Setup::probe("v1").set("drain.handover", "false").set("drain.keepalive", "0s"), short);
    // Triggers that come during a switch share the next one.
    let least = u64::from(count) * 3 / 10;
    let keepalive = tally.of(Class::Keepalive);
    let zero = |figure: &str, value: u64| Row::at_most(figure, value as f64, "", 0.0);
    let mut rows = vec![
        Row::shown("triggers", count.to_string(), format!("every {} ms", SPACING.as_millis())),
        Row::at_least("switches committed", status.switches - 1, least),
        Row::shown("requests answered", tally.answered().to_string(), ""),
    ];
    rows.extend(FAULTS.map(|fault| zero(&format!("{fault:?}").to_lowercase(), tally.fault(fault))));
    rows.extend([
        zero("slow requests cut", tally.of(Class::Slow).faults()),
        zero("crashes", status.crashes),
        zero("lost, by the server's own last reports", {
            status.operations.iter().filter_map(|op| op.drain.as_ref()).map(|drain| drain.lost).sum()
        }),
        zero("keep-alive connections closed", keepalive.closed_announced + keepalive.closed_unannounced),
        Row::at_least(
            "of 100 keep-alive connections, answered by two generations",
            100 * tally.connections_across / tally.connections.max(1),
            30,
        ),
        Row::shown(
            "latency within 500 ms of a reload, p99",
            format!("{:.2} ms", tally.latency_near.quantile_ms(0.99)),
            format!("max {:.1} ms", tally.latency_near.max_ms()),
        ),
        lossy("negative control: lost with handover and linger off", &bare),
        lossy("negative control: lost by a server that closes idle connections", &control),
    ]);
    Report { rows, notes: vec![format!("{tally}")], ..Report::default() }
}

/// A control that loses nothing means that the client sees nothing.
fn lossy(figure: &str, control: &Tally) -> Row {
    Row {
        limit: "more than 0".into(),
        verdict: if control.lost() > 0 { Verdict::Held } else { Verdict::Broken },
        ..Row::shown(
            figure,
            control.lost().to_string(),
            format!("{} of them by end of file", control.fault(Fault::Eof)),
        )
    }
}

/// The reference load through as many reloads as fit into `time`.
fn loaded(setup: Setup, time: Duration) -> (u32, Tally, Status) {
    let server = setup.start();
    let versions = [artifacts::probe("v2"), artifacts::probe("v1")];
    let load = Load::start(Plan::reference(server.addr()));
    load.wait_for_requests(500);
    let count = triggers(&load, time, |round| {
        server.bench.install("probe", &versions[round as usize % 2]);
        server.signal(Signal::SIGUSR1);
    });
    (count, load.stop(), server.wait_drained())
}

/// The same load and the same client against a server that does what most do.
fn control(time: Duration) -> Tally {
    let server = Chaos::start(Misdeed::Nothing, 1);
    let load = Load::start(Plan::reference(server.addr));
    load.wait_for_requests(500);
    triggers(&load, time, |_| server.reload());
    load.stop()
}
