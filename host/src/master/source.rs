//! What a set is made of, out of the files: configuration, certificates, plugins. Read whole, on the blocking pool, before
//! anything is touched: whatever is wrong refuses the operation.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::Prepare;
use super::sets::Content;
use super::store::Store;
use super::tls::Certificates;
use super::watcher::{Sighting, Targets};
use crate::config::{Config, ConfigError};
use crate::report::{Cause, Change, Failure, Stage};

/// Where configuration and plugin files come from; shared with the blocking pool.
pub struct Source {
    pub config: Config,
    pub reread: Box<dyn Fn() -> Result<Config, ConfigError> + Send + Sync>,
    pub prepare: Option<Arc<dyn Prepare>>,
    /// What `reread` reads; nothing if the master is not to watch.
    pub config_files: Option<Vec<PathBuf>>,
}

/// How a set is made.
pub enum Recipe {
    /// Of the files as they lie there, but for what is `held` back: that is as in `instead`.
    Files { held: Vec<Change>, instead: Option<Arc<Content>> },
    /// Of the plugins of `set`, with the rest of the configuration of `within`, or its own.
    Again { set: Option<Arc<Content>>, within: Option<Arc<Content>> },
}

/// What came of it.
pub struct Read {
    pub content: Content,
    pub certificates: Option<Certificates>,
}

impl Source {
    /// Makes what `recipe` says: builds (`dev`), reads the configuration and the certificates, copies and checks the plugins.
    /// And what it has found of the files, whatever came of it.
    pub fn read(&self, store: &Mutex<Store>, cause: &Cause, recipe: Recipe) -> (Sighting, Result<Read, Failure>) {
        let mut sighting = Sighting::default();
        let content = match recipe {
            Recipe::Files { held, instead } => self.take(store, cause, &held, instead.as_deref(), &mut sighting),
            Recipe::Again { set, within } => set
                .ok_or_else(|| Failure::new(Stage::Snapshot, "find the set to go back to"))
                .and_then(|set| set.again(within.as_deref(), &self.config)),
        };
        let result =
            content.and_then(|content| Ok(Read { certificates: Certificates::read(&content.config)?, content }));
        (sighting, result)
    }

    fn take(
        &self,
        store: &Mutex<Store>,
        cause: &Cause,
        held: &[Change],
        instead: Option<&Content>,
        sighting: &mut Sighting,
    ) -> Result<Content, Failure> {
        if let Some(files) = &self.config_files {
            sighting.look_at(Targets::of_files(files));
        }
        let config = self.config(cause)?;
        if self.config_files.is_some() {
            sighting.look_at(Targets::of_config(&config));
        }
        // A panic while the lock was held left files under a temporary name at worst.
        let mut store = store.lock().unwrap_or_else(PoisonError::into_inner);
        let content = Content::take(&mut store, config, held, instead);
        match &content {
            Ok(_) => sighting.taken = store.taken(),
            Err(_) => sighting.being_written = store.being_written().map(Path::to_owned),
        }
        content
    }

    fn config(&self, cause: &Cause) -> Result<Config, Failure> {
        if let Some(prepare) = &self.prepare {
            prepare.prepare(cause)?;
        }
        if *cause == Cause::Start {
            return Ok(self.config.clone());
        }
        let config = (self.reread)().map_err(|error| Failure::new(Stage::Config, error.to_string()))?;
        check_fixed(&self.config, &config)?;
        Ok(config)
    }
}

/// What only a new master can change.
pub fn check_fixed(old: &Config, new: &Config) -> Result<(), Failure> {
    let fixed = [
        ("name", old.name == new.name),
        ("runtime_dir", old.runtime_dir == new.runtime_dir),
        ("state_dir", old.state_dir == new.state_dir),
        ("user", old.user == new.user),
        ("group", old.group == new.group),
        ("[admin]", old.admin == new.admin),
        ("[signals]", old.signals == new.signals),
    ];
    match fixed.iter().find(|(_, same)| !same) {
        None => Ok(()),
        Some((key, _)) => Err(Failure::new(Stage::Config, format!("change {key} by a reload"))
            .hint("shut the server down and start it again for this change, or take it back")),
    }
}
