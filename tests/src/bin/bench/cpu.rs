//! CPU time per request, all processes of the server: a native handler and an axum router in a plugin, beside the same compiled
//! into a static server. Interleaved rounds, forward and backward in turn, on one core, the client on another.
//!
//! The yardstick runs twice. Where it differs from itself by more than 3 %, the machine was too noisy to tell.

use baton_tests::stats::{median, median_interval};

use crate::client::{BROWSER, has_wrk, saturate};
use crate::report::{Report, Row, Verdict};
use crate::subject::Subject;
use crate::{Options, cores};

/// How far the yardstick may be from itself.
const NOISE: f64 = 0.03;

/// Microseconds of CPU per request.
fn measure(subject: &Subject, headers: &[(&str, &str)], seconds: u64, core: Option<usize>) -> f64 {
    let before = subject.cpu();
    let requests = saturate(subject.addr, headers, seconds, core);
    assert!(requests > 1000, "{} answered {requests} requests only", subject.name);
    (subject.cpu() - before).as_secs_f64() * 1e6 / requests as f64
}

/// Index of each subject, in the order in which they are started.
const HYPER: usize = 0;
const HYPER_AGAIN: usize = 1;
const NATIVE: usize = 2;
const AXUM: usize = 3;
const PLUGIN_AXUM: usize = 4;

pub fn run(options: &Options) -> Report {
    let (rounds, seconds) = (options.rounds.unwrap_or(15), options.seconds.unwrap_or(3));
    let (server_core, client_core) = cores();
    let subjects = [
        Subject::fixed("static hyper", "static_hyper", server_core),
        Subject::fixed("static hyper, again", "static_hyper", server_core),
        Subject::plugin("native handler in a plugin", "bench-native", &[], server_core),
        Subject::fixed("static axum", "static_axum", server_core),
        Subject::plugin("axum in a plugin", "bench-axum", &[], server_core),
    ];
    let kinds: [(&str, &[(&str, &str)]); 2] = [("plain", &[]), ("ten browser headers", &BROWSER)];
    for subject in &subjects {
        measure(subject, &BROWSER, 1, client_core);
    }
    // By kind of request, by subject, by round.
    let mut costs = vec![vec![Vec::new(); subjects.len()]; kinds.len()];
    for round in 0..rounds {
        for (kind, (name, headers)) in kinds.iter().enumerate() {
            let mut order: Vec<usize> = (0..subjects.len()).collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for at in order {
                costs[kind][at].push(measure(&subjects[at], headers, seconds, client_core));
            }
            eprintln!("round {} of {rounds}, {name}", round + 1);
        }
    }
    let mut report = Report::default();
    for ((kind, _), costs) in kinds.iter().zip(&costs) {
        for (subject, costs) in subjects.iter().zip(costs) {
            report.rows.push(Row::shown(format!("{}, {kind}", subject.name), format!("{:.2} us", median(costs)), ""));
        }
    }
    let limits = [(1.15, 1.25), (1.30, 1.35)];
    for (((kind, _), costs), (native, axum)) in kinds.iter().zip(&costs).zip(limits) {
        let noise = ratios(&costs[HYPER_AGAIN], &costs[HYPER]);
        let (low, high) = median_interval(&noise);
        let noisy = low < 1.0 - NOISE || high > 1.0 + NOISE;
        report.rows.push(Row {
            limit: format!("within {:.0} %", NOISE * 100.0),
            verdict: if noisy { Verdict::Inconclusive } else { Verdict::Held },
            ..ratio_row(&format!("static hyper / itself, {kind}"), &noise)
        });
        // Both runs of the yardstick together are a better one.
        let hyper: Vec<f64> =
            costs[HYPER].iter().zip(&costs[HYPER_AGAIN]).map(|(one, two)| (one + two) / 2.0).collect();
        for (name, plugin, fixed, limit) in [
            ("native / static hyper", NATIVE, &hyper, native),
            ("axum in a plugin / static axum", PLUGIN_AXUM, &costs[AXUM], axum),
        ] {
            let ratios = ratios(&costs[plugin], fixed);
            let verdict = if noisy { Verdict::Inconclusive } else { Verdict::at_most(median(&ratios), limit) };
            report.rows.push(Row {
                limit: format!("at most {limit:.2}"),
                verdict,
                ..ratio_row(&format!("{name}, {kind}"), &ratios)
            });
        }
    }
    let client = if has_wrk() { "wrk -t1" } else { "own client (wrk is absent)" };
    report.notes.push(format!(
        "CPU time (user and system, all processes) per request; {rounds} rounds of {seconds} s, forward and backward in turn; \
         {client}, 64 connections; ratios are medians of per-round ratios with their 95 % bootstrap interval"
    ));
    report
}

fn ratios(over: &[f64], under: &[f64]) -> Vec<f64> {
    over.iter().zip(under).map(|(over, under)| over / under).collect()
}

fn ratio_row(figure: &str, ratios: &[f64]) -> Row {
    let (low, high) = median_interval(ratios);
    Row::shown(figure, format!("{:.3}", median(ratios)), format!("{low:.3} to {high:.3}"))
}
