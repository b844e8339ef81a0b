//! The master: owns the listening sockets and the children, and carries out what `state` decides. It never opens a plugin and
//! never parses a client's bytes.
//!
//! One loop: select -> [`state::Event`] -> `State::step` -> [`state::Action`]s. File work runs on the blocking pool; each
//! child has two tasks that only carry messages.

pub mod admin;
mod child_reader;
mod children;
mod environment;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod handle;
mod identity;
mod instance_files;
mod inventory;
mod listeners;
mod memory;
mod notes;
mod orphans;
mod pid_file;
pub mod resume;
mod run;
mod sets;
pub mod signals;
mod socket_file;
mod source;
mod spawn;
pub mod state;
mod store;
mod systemd;
mod tls;
pub mod watcher;

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use crate::config::{Config, ConfigError, ConfigSource};
use crate::report::{Cause, Failure};

pub use handle::Handle;
pub use run::run;
pub use state::{BadStart, Exit};
pub use systemd::failed as tell_systemd_of_failure;

/// Reads the configuration, and says where it came from.
pub type Reread = Box<dyn Fn() -> Result<(Config, ConfigSource), ConfigError> + Send + Sync>;

/// What a master is started with.
pub struct Options {
    /// The effective configuration.
    pub config: Config,
    /// Where that came from.
    pub origin: ConfigSource,
    /// Reads the configuration anew at a reload.
    pub reread: Reread,
    /// What `reread` reads, to be watched if the configuration says so; nothing if nothing is to be watched (`dev`).
    pub config_files: Option<Vec<PathBuf>>,
    /// Who may own these files besides root and the user of the server, if that is root: a file cannot vouch for itself.
    pub config_owners: Vec<String>,
    pub pid_file: Option<PathBuf>,
    /// Whether the admin address was asked for: then it must be free, else another port will do.
    pub admin_asked: bool,
    /// Whether it is `baton dev`, which ends with its terminal.
    pub dev: bool,
    pub bad_start: BadStart,
    /// Makes the plugin files before they are read (`dev` builds here). Runs on the blocking pool.
    pub prepare: Option<Arc<dyn Prepare>>,
    /// Where a restart finds the program; nothing if there is to be none.
    pub binary: Option<PathBuf>,
    /// Runs beside the loop, in its runtime (`dev` watches sources here); dropped when the master ends.
    pub companion: Option<Companion>,
}

pub type Companion = Box<dyn FnOnce(Handle) -> Pin<Box<dyn Future<Output = ()>>>>;

/// Makes plugin files.
pub trait Prepare: Send + Sync {
    fn prepare(&self, cause: &Cause) -> Result<(), Failure>;
}

/// Why a master did not start, or not well.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Admin(#[from] admin::AdminError),
    #[error(transparent)]
    Resume(#[from] resume::ResumeError),
    #[error(transparent)]
    Identity(#[from] identity::IdentityError),
    #[error(transparent)]
    Store(#[from] store::StoreError),
    #[error("failed to use {}: {source}", path.display())]
    Directory { path: PathBuf, source: std::io::Error },
    #[error(
        "failed to start with a limit of {limit} open files (RLIMIT_NOFILE): at least {} are needed; raise it by `ulimit -n 1024`, or LimitNOFILE= of the unit",
        run::LEAST_OPEN_FILES
    )]
    OpenFiles { limit: u64 },
    #[error("failed to start: an instance named `{name}` is running already{} (it holds {}); choose another --name", pid.map(|pid| format!(", process {pid}")).unwrap_or_default(), path.display())]
    Running { name: String, path: PathBuf, pid: Option<i32> },
    #[error("failed to start: another server{} works with the state directory {}; shut it down first, or choose another --name or state_dir", pid.map(|pid| format!(", process {pid},")).unwrap_or_default(), path.display())]
    StateInUse { path: PathBuf, pid: Option<i32> },
    #[error("failed to {}{}", .0.error, .0.hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default())]
    Untrusted(Failure),
    #[error("failed to write the pid file {}: {source}", path.display())]
    PidFile { path: PathBuf, source: std::io::Error },
    #[error("failed to {what}: {source}")]
    System { what: &'static str, source: std::io::Error },
}

impl StartError {
    /// Whether the operator's word is at fault (exit code 78, EX_CONFIG of sysexits.h) rather than the machine.
    pub fn is_configuration(&self) -> bool {
        matches!(
            self,
            StartError::Store(store::StoreError::NoExec(_)) | StartError::Identity(_) | StartError::Untrusted(_)
        ) || matches!(self, StartError::Admin(admin::AdminError::Address(_)))
    }
}
