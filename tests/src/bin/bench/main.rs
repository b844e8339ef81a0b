//! Measures what Baton promises, beside a yardstick measured in the same run:
//!
//!     cargo run --release -p baton-tests --bin bench -- cpu [--rounds N] [--seconds N]
//!     cargo run --release -p baton-tests --bin bench -- instructions
//!     cargo run --release -p baton-tests --bin bench -- swap [--reloads N]
//!     cargo run --release -p baton-tests --bin bench -- growth [--reloads N]
//!     cargo run --release -p baton-tests --bin bench -- soak [--seconds N]
//!     cargo run --release -p baton-tests --bin bench -- idle [--connections N]
//!     cargo run --release -p baton-tests --bin bench -- memory [--connections N]
//!     cargo run --release -p baton-tests --bin bench -- torture [--switches N] [--connections N] [--restarts N]
//!
//! Each prints a table, or JSON with `--json`. Exit code 0: every limit held; 1: one was broken; 3: the machine was too noisy to tell.

mod client;
mod cpu;
mod growth;
mod idle;
mod instructions;
mod memory;
mod nginx;
mod report;
mod soak;
mod subject;
mod swap;
mod torture;

use std::process::ExitCode;

use baton_tests::artifacts::{self, Profile};

use report::Report;

const USAGE: &str = "usage: bench cpu|instructions|swap|growth|soak|idle|memory|torture [--rounds N] [--seconds N] [--reloads N] [--connections N] [--switches N] [--restarts N] [--json]";

/// What was asked for; each bench has its own defaults.
#[derive(Clone, Debug, Default)]
struct Options {
    rounds: Option<u64>,
    seconds: Option<u64>,
    reloads: Option<u64>,
    connections: Option<u64>,
    switches: Option<u64>,
    restarts: Option<u64>,
    json: bool,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some((bench, options)) = parse(&args) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    artifacts::use_profile(Profile::Release);
    let mut report = match bench {
        "cpu" => cpu::run(&options),
        "instructions" => instructions::run(&options),
        "swap" => swap::run(&options),
        "growth" => growth::run(&options),
        "idle" => idle::run(&options),
        "memory" => memory::run(&options),
        "torture" => torture::run(&options),
        _ => soak::run(&options),
    };
    report.command = format!("cargo run --release -p baton-tests --bin bench -- {}", args.join(" "));
    finish(&report, options.json)
}

fn finish(report: &Report, json: bool) -> ExitCode {
    if json {
        println!("{}", report.json());
    } else {
        print!("{report}");
    }
    ExitCode::from(report.exit_code())
}

/// The bench and its options; nothing if they make no sense.
fn parse(args: &[String]) -> Option<(&str, Options)> {
    let (bench, rest) = args.split_first()?;
    if !["cpu", "instructions", "swap", "growth", "soak", "idle", "memory", "torture"].contains(&bench.as_str()) {
        return None;
    }
    let (mut options, mut rest) = (Options::default(), rest.iter());
    while let Some(option) = rest.next() {
        let slot = match option.as_str() {
            "--rounds" => &mut options.rounds,
            "--seconds" => &mut options.seconds,
            "--reloads" => &mut options.reloads,
            "--connections" => &mut options.connections,
            "--switches" => &mut options.switches,
            "--restarts" => &mut options.restarts,
            "--json" => {
                options.json = true;
                continue;
            }
            _ => return None,
        };
        *slot = Some(rest.next()?.parse().ok().filter(|number| *number > 0)?);
    }
    Some((bench, options))
}

/// The cores for server and client; nothing if there is but one.
fn cores() -> (Option<usize>, Option<usize>) {
    match std::thread::available_parallelism() {
        Ok(count) if count.get() >= 2 => (Some(0), Some(1)),
        _ => (None, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_not_taken() {
        let parsed = |text: &str| {
            let args: Vec<String> = text.split_whitespace().map(str::to_string).collect();
            parse(&args).map(|(bench, options)| (bench.to_string(), options.rounds, options.json))
        };
        assert_eq!(parsed("cpu --rounds 3 --json"), Some(("cpu".into(), Some(3), true)));
        for text in ["", "sing", "cpu --rounds", "cpu --rounds x", "cpu --rounds 0", "cpu --loud"] {
            assert_eq!(parsed(text), None, "{text}");
        }
    }
}
