//! cargo run --release -- dev examples/stateful
//!
//! What a plugin that keeps something does about reloads, at which two versions of it live at once for a while.
//!
//! * **A warm cache.** `curl localhost:8080/square/12` takes a second the first time and none from then on, also in the next
//!   version: `on_save` hands the cache on, `previous` finds it. It is a cache and no storage: after a crash the next process
//!   finds what was handed on last, and it must be able to begin with nothing.
//! * **Jobs that never run twice.** `curl localhost:8080/jobs` counts them. They need `exclusive`, of which the kernel lets one
//!   process have one: a version that serves waits until the one before has finished the job it is at, or is dead. One that
//!   is refused never has a turn, and one that stands by (`probation.window`) goes on with its jobs until it retires.
//!
//! What must not be lost is neither's business: it belongs into `data_dir`, or a database.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use baton_plugin_api::tokio::time::{sleep, timeout};
use baton_plugin_api::{BoxError, Failure, Init, IntoApp, Request, StatusCode, handler_with, plugin, tracing};
use serde::Deserialize;

/// `[plugins.stateful.config]`
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    /// How long it takes to find a square.
    cost_ms: u64,
    /// How long a job takes.
    job_ms: u64,
    /// From one job to the next.
    pause_ms: u64,
}

impl Default for Config {
    fn default() -> Config {
        Config { cost_ms: 1000, job_ms: 100, pause_ms: 900 }
    }
}

type Squares = BTreeMap<u64, u64>;

/// The format of what is handed on. Count it up when it changes: another version's state is then left alone.
const FORMAT: u32 = 1;
/// So that what is handed on stays well below the limit of 1 MiB.
const MOST: usize = 10_000;
/// In `data_dir`: a line for the begin and the end of each job, with the process that does it.
const JOURNAL: &str = "jobs.log";

struct App {
    cx: Init,
    config: Config,
    squares: Mutex<Squares>,
}

impl App {
    fn squares(&self) -> MutexGuard<'_, Squares> {
        // Whole at any time.
        self.squares.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[plugin]
fn app(cx: Init) -> Result<impl IntoApp, BoxError> {
    let app = Arc::new(App { cx, config: cx.config()?, squares: Mutex::new(warm(cx)) });
    cx.on_save(FORMAT, {
        let app = app.clone();
        move || serde_json::to_vec(&*app.squares()).expect("numbers are plain JSON")
    });
    // The server waits for what is begun here: a job is finished before the process ends.
    cx.spawn({
        let app = app.clone();
        async move {
            if let Err(error) = run_jobs(&app).await {
                tracing::error!(%error, "no more jobs are run");
            }
        }
    });
    Ok(handler_with(app, answer))
}

/// What the version before has found. Whatever came of it, this version starts.
fn warm(cx: Init) -> Squares {
    match cx.previous() {
        Some((FORMAT, state)) => serde_json::from_slice(state).unwrap_or_else(|error| {
            tracing::warn!(%error, "starting with an empty cache");
            Squares::new()
        }),
        _ => Squares::new(),
    }
}

async fn run_jobs(app: &App) -> io::Result<()> {
    // Nothing if this version retires before it had a turn.
    let Some(_alone) = app.cx.exclusive("jobs").await? else { return Ok(()) };
    let shutdown = app.cx.shutdown();
    let mut journal = File::options().create(true).append(true).open(app.cx.data_dir().join(JOURNAL))?;
    while !shutdown.has_begun() {
        // In one write each: a reader, or a kill, meets whole lines.
        journal.write_all(format!("begin {}\n", std::process::id()).as_bytes())?;
        sleep(Duration::from_millis(app.config.job_ms)).await;
        journal.write_all(format!("end {}\n", std::process::id()).as_bytes())?;
        // Until the next one is due, or the next version is.
        let _ = timeout(Duration::from_millis(app.config.pause_ms), shutdown.wait()).await;
    }
    Ok(())
}

async fn answer(app: Arc<App>, request: Request) -> Result<(StatusCode, String), Failure> {
    if request.path() == "/jobs" {
        return Ok((StatusCode::OK, format!("{} jobs were done\n", done(app.cx)?)));
    }
    let number = request.path().strip_prefix("/square/").and_then(|number| number.parse::<u32>().ok());
    let Some(number) = number.map(u64::from) else {
        return Ok((StatusCode::NOT_FOUND, "ask for /square/12 or /jobs\n".into()));
    };
    let known = app.squares().get(&number).copied();
    let (square, how) = match known {
        Some(square) => (square, "known"),
        None => {
            sleep(Duration::from_millis(app.config.cost_ms)).await;
            let mut squares = app.squares();
            if squares.len() < MOST {
                squares.insert(number, number * number);
            }
            (number * number, "found")
        }
    };
    Ok((StatusCode::OK, format!("{square} ({how})\n")))
}

/// The journal outlives every version.
fn done(cx: Init) -> io::Result<usize> {
    match std::fs::read_to_string(cx.data_dir().join(JOURNAL)) {
        Ok(journal) => Ok(journal.lines().filter(|line| line.starts_with("end ")).count()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use baton_plugin_api::testing::{Builder, Plugin, eventually};

    use super::*;

    const QUICK: &str = r#"{"cost_ms":0,"job_ms":1,"pause_ms":0}"#;

    fn quick(dir: &Path) -> Builder {
        Plugin::with(app).config(QUICK).data_dir(dir)
    }

    fn jobs(plugin: &Plugin) -> usize {
        plugin.get("/jobs").text().split(' ').next().unwrap().parse().unwrap()
    }

    #[test]
    fn what_is_found_is_known_from_then_on_also_to_the_next_version() {
        let dir = tempfile::tempdir().unwrap();
        let first = quick(dir.path()).start().unwrap();
        assert_eq!(first.get("/square/12").text(), "144 (found)\n");
        assert_eq!(first.get("/square/12").text(), "144 (known)\n");
        let (format, state) = first.save().unwrap();
        let second = quick(dir.path()).previous(format, &state).start().unwrap();
        assert_eq!(second.get("/square/12").text(), "144 (known)\n");
        assert_eq!(second.get("/square/x").status(), 404);
    }

    #[test]
    fn a_state_that_cannot_be_read_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        for (format, state) in [(FORMAT, b"not json"), (FORMAT + 1, b"[1,2,3]\n")] {
            let plugin = quick(dir.path()).previous(format, state).start().unwrap();
            assert_eq!(plugin.get("/square/3").text(), "9 (found)\n");
        }
    }

    #[test]
    fn the_next_version_runs_jobs_once_the_one_before_runs_none() {
        let dir = tempfile::tempdir().unwrap();
        let first = quick(dir.path()).start().unwrap();
        eventually(|| jobs(&first) > 2);
        let second = quick(dir.path()).generation(2).start().unwrap();
        let before = jobs(&first);
        eventually(|| jobs(&first) > before + 20);
        // Both are one process here, so the journal cannot tell them apart; but it can tell whether two jobs ran at once.
        first.begin_shutdown();
        first.shut_down();
        let before = jobs(&second);
        eventually(|| jobs(&second) > before + 2);
        let journal = std::fs::read_to_string(dir.path().join(JOURNAL)).unwrap();
        let mut lines = journal.lines().map(|line| line.split(' ').next().unwrap());
        while let Some(line) = lines.next() {
            assert!(line == "begin" && matches!(lines.next(), None | Some("end")), "two jobs at once:\n{journal}");
        }
    }

    #[test]
    fn a_version_that_is_refused_runs_no_job() {
        let dir = tempfile::tempdir().unwrap();
        let refused = quick(dir.path()).start_without_serving().unwrap();
        assert_eq!(refused.get("/square/2").text(), "4 (found)\n");
        assert_eq!(jobs(&refused), 0);
        let serving = quick(dir.path()).start().unwrap();
        eventually(|| jobs(&serving) > 0);
    }
}
