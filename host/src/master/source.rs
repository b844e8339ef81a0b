//! What a set is made of, out of the files: configuration, certificates, plugins. Read whole, on the blocking pool, before
//! anything is touched: whatever is wrong refuses the operation.

use std::sync::{Arc, Mutex, PoisonError};

use super::Prepare;
use super::store::{Mounted, Store};
use super::tls::Certificates;
use crate::config::{Config, ConfigError};
use crate::report::{Cause, Failure, Stage};

/// Where configuration and plugin files come from; shared with the blocking pool.
pub struct Source {
    pub config: Config,
    pub reread: Box<dyn Fn() -> Result<Config, ConfigError> + Send + Sync>,
    pub prepare: Option<Arc<dyn Prepare>>,
}

/// What the files say.
pub struct Read {
    pub config: Config,
    pub plugins: Vec<Mounted>,
    pub certificates: Option<Certificates>,
}

impl Source {
    /// Builds (`dev`), reads the configuration and the certificates, copies and checks the plugins.
    pub fn read(&self, store: &Mutex<Store>, cause: &Cause) -> Result<Read, Failure> {
        if let Some(prepare) = &self.prepare {
            prepare.prepare(cause)?;
        }
        let config = match cause {
            Cause::Start => self.config.clone(),
            _ => {
                let config = (self.reread)().map_err(|error| Failure::new(Stage::Config, error.to_string()))?;
                check_fixed(&self.config, &config)?;
                config
            }
        };
        let certificates = Certificates::read(&config)?;
        // A panic while the lock was held left files under a temporary name at worst.
        let plugins = store.lock().unwrap_or_else(PoisonError::into_inner).take(&config)?;
        Ok(Read { config, plugins, certificates })
    }
}

/// What only a new master can change.
fn check_fixed(old: &Config, new: &Config) -> Result<(), Failure> {
    let fixed = [
        ("name", old.name == new.name),
        ("runtime_dir", old.runtime_dir == new.runtime_dir),
        ("state_dir", old.state_dir == new.state_dir),
        ("[admin]", old.admin == new.admin),
    ];
    match fixed.iter().find(|(_, same)| !same) {
        None => Ok(()),
        Some((key, _)) => Err(Failure::new(Stage::Config, format!("change {key} by a reload"))
            .hint("shut the server down and start it again for this change, or take it back")),
    }
}
