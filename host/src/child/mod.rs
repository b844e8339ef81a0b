//! The child: loads plugins and serves with them, until it is told to retire. Here is how such a process begins and ends:
//! what it inherits, its signals, and the thread that sees that an orphan ends. Its life in between is `life`.
//!
//! Opens no listening socket, talks to no one but its master and its clients.

mod bridge;
mod drain;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod handover;
mod life;
mod plugin;
mod prove;
mod route;
mod save;
mod serve;
mod state;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use self::life::{Orphan, Worker};
use crate::config::Drain;
use crate::control::WorkerEnd;
use crate::sys::worker;
use crate::telemetry;

/// Names the role, and the master that started it.
pub const ROLE: &str = "BATON_WORKER";

/// Descriptors that the master leaves.
const CONTROL: i32 = 3;
const STDERR: i32 = 5;

/// From the end of an orphan's time to its exit, if it does not end by itself.
const GRACE: Duration = Duration::from_millis(500);

#[derive(Debug, thiserror::Error)]
enum WorkerError {
    #[error("failed to find the master: this process was not started by one")]
    NoMaster,
    #[error("failed to begin: {0}")]
    Begin(#[from] io::Error),
}

/// Runs a child to its end. Descriptor 3 is its end of the control channel.
pub fn run() -> ExitCode {
    let code = match prepare().and_then(live) {
        Ok(code) => code,
        Err(error) => {
            // The master quotes it.
            telemetry::print(&format!("baton: {error}"));
            1
        }
    };
    telemetry::flush();
    worker::exit(code)
}

/// What a child is started with.
struct Birth {
    control: OwnedFd,
    stderr: Option<OwnedFd>,
    orphan: Orphan,
    master: i32,
}

/// While this process has one thread.
fn prepare() -> Result<Birth, WorkerError> {
    let master = worker::take_env(ROLE).and_then(|pid| pid.parse().ok()).ok_or(WorkerError::NoMaster)?;
    let control = worker::inherited(CONTROL)?.ok_or(WorkerError::NoMaster)?;
    worker::set_nonblocking(&control)?;
    let stderr = worker::inherited(STDERR)?;
    worker::set_name(c"baton-worker")?;
    worker::install_no_op_handlers()?;
    let time = Arc::new(AtomicU64::new(Drain::default().orphan.as_millis() as u64));
    watch_master(&control, time.clone())?;
    Ok(Birth { control, stderr, orphan: Orphan { time, enforce: enforce_end }, master })
}

/// Sees that an orphan ends, from a thread that no plugin and no runtime can hold up.
fn watch_master(control: &OwnedFd, time: Arc<AtomicU64>) -> io::Result<()> {
    let control = control.try_clone()?;
    on_a_thread("master-watch", move || {
        worker::wait_for_hangup(control.as_fd());
        end_after(Duration::from_millis(time.load(Ordering::Relaxed)));
    })
}

fn enforce_end(time: Duration) -> io::Result<()> {
    on_a_thread("end", move || end_after(time))
}

fn end_after(time: Duration) {
    // A deadline on a thread of its own: it holds even if the runtime hangs.
    std::thread::sleep(time.saturating_add(GRACE));
    worker::exit(1);
}

fn on_a_thread(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.into()).spawn(run).map(drop)
}

fn live(birth: Birth) -> Result<i32, WorkerError> {
    // The loop has a thread of its own: handlers that block all threads that serve do not hold it up.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let term = signal(SignalKind::terminate())?;
        // All handlers exist now; the master had blocked everything.
        worker::unblock_signals()?;
        if worker::parent() != birth.master {
            return Err(WorkerError::NoMaster);
        }
        let worker = Worker::new(WorkerEnd::new(birth.control)?, birth.stderr, birth.orphan);
        Ok(worker.live(term, birth.master).await)
    })
}

#[cfg(test)]
mod tests;
