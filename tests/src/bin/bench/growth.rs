//! What many reloads leave behind, which must be nothing: memory of the master and of all processes, descriptors, children.

use std::collections::BTreeMap;

use baton_tests::process::{self, Memory};
use baton_tests::server::{Server, Setup};
use baton_tests::{artifacts, wait};

use crate::Options;
use crate::report::{Report, Row, Verdict};

/// KiB that the master's private-dirty memory may grow from half way to the end.
const GROWTH: f64 = 256.0;
/// Largest RSS of the master, in MiB.
const LARGEST_RSS: f64 = 12.0;

struct Sample {
    reloads: u64,
    master: Memory,
    /// PSS of all processes, KiB.
    pss: u64,
    fds: BTreeMap<String, usize>,
    children: usize,
    zombies: usize,
}

fn sample(server: &Server, reloads: u64) -> Sample {
    server.wait_drained();
    // The connection that asked for the status may be open for a moment longer.
    let (mut last, mut same) = (BTreeMap::new(), 0);
    let fds = wait::until("the descriptors to settle", wait::LONG, || {
        let now = process::fds(server.pid());
        same = if now == last { same + 1 } else { 0 };
        last = now;
        (same > 20).then(|| last.clone())
    });
    let children = process::children(server.pid());
    Sample {
        reloads,
        master: process::memory(server.pid()).expect("the master runs"),
        pss: server.processes().into_iter().filter_map(process::memory).map(|memory| memory.pss).sum(),
        fds,
        children: children.len(),
        zombies: children.iter().filter(|child| child.is_zombie()).count(),
    }
}

pub fn run(options: &Options) -> Report {
    let reloads = options.reloads.unwrap_or(200).max(4);
    let server = Setup::probe("v1").start();
    let versions = [artifacts::probe("v2"), artifacts::probe("v1")];
    let mut samples = vec![sample(&server, 0)];
    for round in 1..=reloads {
        server.bench.install("probe", &versions[round as usize % 2]);
        server.switch();
        assert_eq!(server.get("/").status, 200);
        if round % (reloads / 4) == 0 {
            samples.push(sample(&server, round));
        }
    }
    let mut report = Report::default();
    for sample in &samples {
        let Sample { reloads, master, pss, fds, children, .. } = sample;
        report.rows.push(Row::shown(
            format!("after {reloads} reloads"),
            format!("PSS {pss} KiB"),
            format!(
                "master: RSS {} KiB, private-dirty {} KiB, {} descriptors, {children} child",
                master.rss,
                master.private_dirty,
                fds.values().sum::<usize>()
            ),
        ));
    }
    let half = &samples[samples.len() / 2];
    let last = &samples[samples.len() - 1];
    let growth = last.master.private_dirty as f64 - half.master.private_dirty as f64;
    let same = |figure: &str, is: bool| Row {
        limit: "the same".into(),
        verdict: if is { Verdict::Held } else { Verdict::Broken },
        ..Row::shown(figure, if is { "same" } else { "differ" }, "")
    };
    report.rows.extend([
        Row::at_most(&format!("private-dirty of the master since reload {}", half.reloads), growth, "KiB", GROWTH),
        Row::at_most("RSS of the master", last.master.rss as f64 / 1024.0, "MiB", LARGEST_RSS),
        Row::at_most("children", last.children as f64, "", 1.0),
        Row::at_most("zombies", last.zombies as f64, "", 0.0),
        same("descriptors of the master, by kind", last.fds == half.fds),
    ]);
    if last.fds != half.fds {
        report.notes.push(format!("descriptors: {:?} then {:?}", half.fds, last.fds));
    }
    report
}
