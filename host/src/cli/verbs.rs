//! The verbs that talk to a running master: ask, wait as long as was asked for, and say how it ended. A report goes to stdout
//! when it is good news or JSON, to stderr when the old code serves on.

use std::cell::Cell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use super::render::{self, Paint};
use super::{
    AdminArgs, CliError, CutArgs, ReloadArgs, RollbackArgs, ShutdownArgs, StatusArgs, Wait, WaitEnd, Waiting, Which,
    exit, printable, progress, say,
};
use crate::client::{Ask, Client, ClientError};
use crate::report::{Generation, GenerationState, OpResult, PluginStatus, Report, Status, Verb};

/// How often a report is asked for that is not complete yet.
const POLL: Duration = Duration::from_millis(50);
/// From the end of the admin socket to the end of the process.
const EXIT_PATIENCE: Duration = Duration::from_secs(5);
const SWITCH_PATIENCE: Duration = Duration::from_secs(120);
const DRAIN_PATIENCE: Duration = Duration::from_secs(900);

pub fn reload(args: &ReloadArgs) -> Result<u8, CliError> {
    take(args, Verb::Reload)
}

pub fn restart(args: &ReloadArgs) -> Result<u8, CliError> {
    take(args, Verb::Restart)
}

fn take(args: &ReloadArgs, verb: Verb) -> Result<u8, CliError> {
    let ask = Ask { allow_empty: args.allow_empty, force: args.force, cold: args.cold, ..Ask::default() };
    switch(&args.which, &args.waiting, verb, ask)
}

pub fn rollback(args: &RollbackArgs) -> Result<u8, CliError> {
    let ask = Ask { to: args.to.map(Generation), with_config: args.with_config, cold: args.cold, ..Ask::default() };
    switch(&args.which, &args.waiting, Verb::Rollback, ask)
}

/// Waits until the operation has ended. Its master may be changing its program meanwhile: then asking fails, and succeeds
/// again in a moment.
async fn done(
    client: &Client,
    mut report: Report,
    patience: Duration,
    deadline: Instant,
) -> Result<Report, ClientError> {
    let mut poll = tokio::time::interval(POLL);
    while matches!(report.result, OpResult::Queued | OpResult::Running) {
        poll.tick().await;
        report = match client.operation(report.op).await {
            Ok(report) => report,
            Err(ClientError::Ended(_) | ClientError::NoAnswer { .. }) if Instant::now() < deadline => continue,
            Err(error) => return Err(error),
        };
        if Instant::now() >= deadline {
            return Err(ClientError::Timeout(patience));
        }
    }
    Ok(report)
}

fn switch(which: &Which, args: &Waiting, verb: Verb, ask: Ask) -> Result<u8, CliError> {
    with_master(which, async |client| {
        let begun = Instant::now();
        let until = Cell::new(begun + args.timeout.unwrap_or(SWITCH_PATIENCE));
        let work = async {
            let patience = args.timeout.unwrap_or(SWITCH_PATIENCE);
            let report = client.operate(verb, ask, Some(patience)).await?;
            let report = done(client, report, patience, begun + patience).await?;
            // What was given is for all of it.
            let patience = args.timeout.unwrap_or(DRAIN_PATIENCE);
            let deadline = if args.timeout.is_some() { begun } else { Instant::now() } + patience;
            until.set(deadline);
            match (report.result, args.wait) {
                (OpResult::Switched, Wait::Settled) => settled(client, report, patience, deadline).await,
                (OpResult::Switched, Wait::Drained) => drained(client, report, patience, deadline).await,
                _ => Ok(report),
            }
        };
        let waiting = progress::Waiting { verb, deadline: &until, json: args.json };
        let report = progress::show(client, waiting, work).await.map_err(|error| gave_up(verb, error))?;
        let switched = report.result == OpResult::Switched;
        if args.json {
            say(&json(&report))?;
        } else if switched {
            // Only to name versions; without them the line is still right.
            let plugins = client.status().await.map(|status| plugins_of(&status, &report)).unwrap_or_default();
            let (report, plugins) = (printable::of(&report)?, printable::of(&plugins)?);
            let paint = Paint(colours(&std::io::stdout()));
            say(&format!("{}\n", render::report(&report, &plugins, args.verbose, paint)))?;
            if let (Wait::Drained, Some(drain)) = (args.wait, &report.drain) {
                say(&format!("{}\n", render::drain(drain, paint)))?;
            }
        } else {
            let paint = Paint(colours(&std::io::stderr()));
            crate::telemetry::print(&render::report(&printable::of(&report)?, &[], args.verbose, paint));
        }
        Ok(if switched { exit::DONE } else { exit::FAILED })
    })
}

/// Names what goes on although it is waited for no longer.
fn gave_up(verb: Verb, error: ClientError) -> CliError {
    match error {
        ClientError::Timeout(after) | ClientError::NoAnswer { after, .. } => CliError::GaveUp { verb, after },
        error => error.into(),
    }
}

/// Waits until nobody stands by to take over again.
async fn settled(
    client: &Client,
    mut report: Report,
    patience: Duration,
    deadline: Instant,
) -> Result<Report, ClientError> {
    let mut poll = tokio::time::interval(POLL);
    while report.standby.is_some() {
        poll.tick().await;
        if Instant::now() >= deadline {
            return Err(ClientError::Timeout(patience));
        }
        report = client.operation(report.op).await?;
    }
    Ok(report)
}

/// Waits until the generation before has ended; the report with its last word.
async fn drained(
    client: &Client,
    report: Report,
    patience: Duration,
    deadline: Instant,
) -> Result<Report, ClientError> {
    let Some(from) = report.from else { return Ok(report) };
    let mut poll = tokio::time::interval(POLL);
    loop {
        poll.tick().await;
        let report = client.operation(report.op).await?;
        if report.drain.is_some() || report.result != OpResult::Switched {
            return Ok(report);
        }
        // One that died instead leaves no word.
        let status = client.status().await?;
        let lives = status
            .generations
            .iter()
            .any(|generation| generation.generation == from && generation.state != GenerationState::Exited);
        if !lives {
            return client.operation(report.op).await;
        }
        if Instant::now() >= deadline {
            return Err(ClientError::Timeout(patience));
        }
    }
}

pub fn cut(args: &CutArgs) -> Result<u8, CliError> {
    with_master(&args.which, async |client| {
        let ask = Ask { generation: args.generation.map(Generation), ..Ask::default() };
        let work = client.operate(Verb::Cut, ask, Some(args.timeout));
        let until = Cell::new(Instant::now() + args.timeout);
        let waiting = progress::Waiting { verb: Verb::Cut, deadline: &until, json: args.json };
        let report = progress::show(client, waiting, work).await.map_err(|error| gave_up(Verb::Cut, error))?;
        let done = report.result == OpResult::Done;
        if args.json {
            say(&json(&report))?;
        } else if done {
            say(&format!(
                "{}\n",
                render::report(&printable::of(&report)?, &[], false, Paint(colours(&std::io::stdout())))
            ))?;
        } else {
            crate::telemetry::print(&render::report(
                &printable::of(&report)?,
                &[],
                false,
                Paint(colours(&std::io::stderr())),
            ));
        }
        Ok(if done { exit::DONE } else { exit::FAILED })
    })
}

pub fn shutdown(args: &ShutdownArgs) -> Result<u8, CliError> {
    with_master(&args.which, async |client| {
        let begun = Instant::now();
        let pid = client.status().await?.pid;
        let report = client.operate(Verb::Shutdown, Ask::default(), Some(args.timeout)).await?;
        let accepted = report.result == OpResult::ShuttingDown;
        if accepted && args.wait == WaitEnd::Ended {
            let deadline = begun + args.timeout;
            let until = Cell::new(deadline);
            let waiting = progress::Waiting { verb: Verb::Shutdown, deadline: &until, json: args.json };
            let ended = progress::show(client, waiting, ended(client, pid, args.timeout, deadline)).await;
            ended.map_err(|error| gave_up(Verb::Shutdown, error))?;
        }
        if args.json {
            say(&json(&report))?;
        } else if accepted && args.wait == WaitEnd::Ended {
            say(&format!("shut down in {}\n", render::millis(begun.elapsed().as_secs_f64() * 1000.0)))?;
        } else if accepted {
            say("shutting down\n")?;
        } else {
            let paint = Paint(colours(&std::io::stderr()));
            crate::telemetry::print(&render::report(&printable::of(&report)?, &[], true, paint));
        }
        Ok(if accepted { exit::DONE } else { exit::FAILED })
    })
}

/// Waits until the socket is gone, and the process too: its lock and ports are free then.
async fn ended(client: &Client, pid: i32, patience: Duration, deadline: Instant) -> Result<(), ClientError> {
    let mut poll = tokio::time::interval(POLL);
    loop {
        poll.tick().await;
        match client.status().await {
            Err(ClientError::NoMaster { .. }) => break,
            // Another master in its place: ours has ended.
            Ok(status) if status.pid != pid => return Ok(()),
            // Too busy ending to answer; the deadline counts.
            Ok(_) | Err(ClientError::Ended(_) | ClientError::Refused { .. } | ClientError::NoAnswer { .. }) => {}
            Err(error) => return Err(error),
        }
        if Instant::now() >= deadline {
            return Err(ClientError::Timeout(patience));
        }
    }
    let deadline = Instant::now() + EXIT_PATIENCE;
    while runs(pid) && Instant::now() < deadline {
        poll.tick().await;
    }
    Ok(())
}

/// A zombie holds nothing any more.
fn runs(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X'])))
}

pub fn status(args: &StatusArgs) -> Result<u8, CliError> {
    with_master(&args.which, async |client| {
        let status = client.status().await?;
        let text = if args.json {
            json(&status)
        } else {
            render::status(&printable::of(&status)?, Paint(colours(&std::io::stdout())))
        };
        say(&text)?;
        Ok(exit::DONE)
    })
}

pub fn admin(args: &AdminArgs) -> Result<u8, CliError> {
    with_master(&args.which, async |client| {
        let link = if args.rotate { client.rotate().await? } else { client.link().await? };
        say(&match (args.json, args.metrics) {
            (true, _) => json(&link),
            (false, false) => format!("{}\n", link.url),
            (false, true) => match link.metrics_token_file {
                Some(path) => format!("{path}\n"),
                None => return Err(CliError::OldMaster("has no token for metrics alone")),
            },
        })?;
        Ok(exit::DONE)
    })
}

/// Runs `verb` against the instance that is meant.
fn with_master(which: &Which, verb: impl AsyncFnOnce(&Client) -> Result<u8, CliError>) -> Result<u8, CliError> {
    let ask = || {
        let instance = which.resolve()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CliError::Runtime)?;
        runtime.block_on(verb(&Client::new(&instance.socket)))
    };
    ask().map_err(|error| which.explain(error))
}

fn plugins_of(status: &Status, report: &Report) -> Vec<PluginStatus> {
    let generation = status.generations.iter().find(|generation| Some(generation.generation) == report.generation);
    generation.map(|generation| generation.plugins.clone()).unwrap_or_default()
}

fn json(value: &impl serde::Serialize) -> String {
    // What came as JSON a moment ago goes as JSON.
    let mut text = serde_json::to_string_pretty(value).unwrap_or_else(|error| format!("\"{error}\""));
    text.push('\n');
    text
}

fn colours(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_runs_and_one_that_was_reaped_does_not() {
        assert!(runs(std::process::id() as i32));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id() as i32;
        child.wait().unwrap();
        assert!(!runs(pid));
    }
}
