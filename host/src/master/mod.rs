//! The master: owns the listening sockets and the children, and decides what serves. Never opens a plugin, never parses a
//! client's bytes.

pub mod admin;
pub mod handle;
mod listeners;
pub mod state;
mod store;

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use crate::config::Config;
use crate::report::{Cause, Failure};

pub use handle::Handle;

/// What a master is started with.
pub struct Options {
    /// The effective configuration.
    pub config: Config,
    /// Reads the configuration anew at a reload.
    pub reread: Box<dyn Fn() -> Result<Config, crate::config::ConfigError> + Send + Sync>,
    pub pid_file: Option<PathBuf>,
    /// Whether the admin address was asked for: then it must be free, else another port will do.
    pub admin_asked: bool,
    /// Whether SIGHUP shuts down instead of reloading (`dev`).
    pub hup_shuts_down: bool,
    /// Makes the plugin files before they are read (`dev` builds here). Runs on the blocking pool.
    pub prepare: Option<Arc<dyn Prepare>>,
    /// Runs beside the loop, in its runtime (`dev` watches sources here); dropped when the master ends.
    pub companion: Option<Companion>,
}

pub type Companion = Box<dyn FnOnce(Handle) -> Pin<Box<dyn Future<Output = ()>>>>;

/// Makes plugin files.
pub trait Prepare: Send + Sync {
    fn prepare(&self, cause: &Cause) -> Result<(), Failure>;
}
