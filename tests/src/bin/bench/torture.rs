//! The torture, long: every scenario under which nothing may be lost, no byte wrong and no connection closed, the control that
//! must lose, and nginx reloaded under the same client. Or, if asked for, the same with restarts in place of all that.

use std::net::SocketAddr;
use std::time::Duration;

use baton_tests::load::{Fault, Mix, Plan};
use baton_tests::server::Setup;
use baton_tests::torture::{self, Course, Seen};

use crate::Options;
use crate::nginx::{self, Reloaded};
use crate::report::{Report, Row, Verdict};

const SWITCHES: u64 = 200;
const CONNECTIONS: u64 = 300;
/// Between two switches that are asked for one after the other.
const PAUSE: Duration = Duration::from_millis(20);
/// Between two reloads of those that are compared.
const COMPARED_PAUSE: Duration = Duration::from_millis(500);
const COMPARED_RELOADS: u64 = 40;
/// Requests that run throughout in one scenario: so many, for so long.
const SLOW: (usize, Duration) = (4, Duration::from_secs(10));
/// What a generation may live beyond its own longest request.
const BEYOND: Duration = Duration::from_secs(2);

pub fn run(options: &Options) -> Report {
    let switches = options.switches.unwrap_or(SWITCHES);
    let connections = usize::try_from(options.connections.unwrap_or(CONNECTIONS)).unwrap_or(usize::MAX);
    let plan = move |addr: SocketAddr| Plan { slow_for: SLOW.1, ..Plan::torture(addr, connections) };
    let slow = move |addr: SocketAddr| Plan { slow: SLOW.0, ..plan(addr) };
    let plain = move |addr: SocketAddr| Plan { mix: Mix::Plain, ..plan(addr) };
    let every = Duration::from_millis(50);
    let compared = switches.min(COMPARED_RELOADS);
    let probe = || Setup::probe("v1");
    let mut report = Report::default();
    if let Some(count) = options.restarts {
        let seen = torture::run(probe().own_program(), plan, Course::Restarts { count, pause: PAUSE });
        held(&mut report, "restarts", &seen, count);
        report.notes.push(format!("restarts:\n{seen}"));
        return report;
    }

    let asked = torture::run(probe(), plan, Course::Switches { count: switches, pause: PAUSE });
    held(&mut report, "one after the other", &asked, switches);
    let signals = torture::run(probe(), plan, Course::Triggers { every, switches });
    held(&mut report, "20 triggers a second", &signals, switches);
    let kills = torture::run(probe(), plan, Course::Kills { count: switches, pause: PAUSE });
    held(&mut report, "every third new process killed", &kills, switches);
    report.rows.push(Row::at_least("every third new process killed: kills", kills.kills, switches / 3).beside(
        format!(
            "{} taken back by the old one, else by a new one; {} connections",
            kills.taken_back, kills.status.totals.taken_back
        ),
    ));
    let slow = torture::run(probe(), slow, Course::Triggers { every, switches });
    held(&mut report, "with requests of 10 s", &slow, switches);
    let longest = (SLOW.1 + BEYOND).as_secs_f64() * 1000.0;
    report.rows.push(
        Row::at_most("with requests of 10 s: longest life of a retired generation", slow.drain_ms(1.0), "ms", longest)
            .beside(format!("p50 {:.0} ms; at most {} alive at once", slow.drain_ms(0.5), slow.living)),
    );

    let off = probe().set("drain.handover", "false").set("drain.keepalive", "0s");
    let control = torture::run(off, plan, Course::Switches { count: compared, pause: PAUSE });
    report.rows.push(lossy(&control));

    let course = Course::Switches { count: compared, pause: COMPARED_PAUSE };
    let ours = torture::run(probe(), plain, course);
    held(&mut report, "plain mix", &ours, compared);
    let per = |count: u64, reloads: u64| format!("{:.2}", count as f64 / reloads.max(1) as f64);
    report.rows.push(Row::shown(
        "plain mix: Baton: lost / closed per reload",
        format!("{} / {}", per(ours.lost(), ours.switches), per(ours.closed(), ours.switches)),
        format!("{} reloads, {} connections", ours.switches, connections),
    ));
    match nginx::reloaded(plain, compared, COMPARED_PAUSE) {
        Ok(Reloaded { version, reloads, tally }) => {
            let closed = tally.closed_announced() + tally.closed_unannounced();
            report.rows.push(Row::shown(
                format!("plain mix: {version}: lost / closed per reload"),
                format!("{} / {}", per(tally.lost(), reloads), per(closed, reloads)),
                format!("{reloads} reloads, {} requests, {} lost", tally.sent(), tally.lost()),
            ));
            report.notes.push(format!("{version}:\n{tally}"));
        }
        Err(why) => report.notes.push(format!("nginx was left out: {why}")),
    }
    for (name, seen) in [
        ("one after the other", &asked),
        ("20 triggers a second", &signals),
        ("every third new process killed", &kills),
        ("with requests of 10 s", &slow),
        ("handover and linger off", &control),
        ("plain mix", &ours),
    ] {
        report.notes.push(format!("{name}:\n{seen}"));
    }
    report
}

/// The figures of a scenario in which nothing may be lost.
fn held(report: &mut Report, name: &str, seen: &Seen, switches: u64) {
    let zero = |what: &str, count: u64| Row::at_most(&format!("{name}: {what}"), count as f64, "", 0.0);
    let at_least = |what: &str, count: u64, least: u64| Row::at_least(&format!("{name}: {what}"), count, least);
    let Seen { tally, status, .. } = seen;
    let wrong = tally.fault(Fault::Wrong);
    report.rows.extend([
        at_least("switches committed", seen.switches, switches),
        at_least("requests answered", tally.answered(), 10 * switches)
            .beside(format!("in {:.0} s", seen.time.as_secs_f64())),
        zero("lost", seen.lost()).beside(if tally.is_balanced() { "" } else { "and the client lost count" }),
        zero("of these with wrong bytes", wrong),
        zero("closed by the server", seen.closed()),
        zero("crashes that nobody caused", status.crashes.abs_diff(seen.kills)),
        at_least("of 100 connections, on two generations or more", seen.across_percent(), 30),
        at_least("moves that carried bytes read ahead", status.totals.carried, 1)
            .beside(format!("of {} moves", status.totals.handed_over)),
    ]);
    if !tally.is_balanced() {
        report.rows.push(Row { verdict: Verdict::Broken, ..Row::shown(format!("{name}: count"), "unbalanced", "") });
    }
}

/// A control that loses nothing means that the client sees nothing.
fn lossy(control: &Seen) -> Row {
    Row {
        limit: "more than 0".into(),
        verdict: if control.tally.lost() > 0 { Verdict::Held } else { Verdict::Broken },
        ..Row::shown(
            "handover and linger off: lost",
            control.tally.lost().to_string(),
            format!("{} reloads, {} connections closed", control.switches, control.closed()),
        )
    }
}
