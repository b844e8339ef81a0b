//! What a set is made of, out of the files: configuration, certificates, plugins. Read whole, on the blocking pool, before
//! anything is touched: whatever is wrong refuses the operation.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::listeners::{Bindings, Kept, ListenError};
use super::resume;
use super::sets::Content;
use super::store::{self, Refusal, Store, Trusted};
use super::tls::Certificates;
use super::watcher::{Sighting, Targets};
use super::{Prepare, Reread};
use crate::config::{Config, ConfigError, ConfigSource};
use crate::report::{Cause, Change, Failure, Stage};
use crate::sys::process::Image;

/// Where configuration and plugin files come from; shared with the blocking pool.
pub struct Source {
    pub config: Config,
    /// Where what this master began with came from.
    pub origin: ConfigSource,
    pub reread: Reread,
    pub prepare: Option<Arc<dyn Prepare>>,
    /// What `reread` reads; nothing if the master is not to watch.
    pub config_files: Option<Vec<PathBuf>>,
    /// Who may own those besides the trusted.
    pub config_owners: Vec<String>,
    pub trusted: Trusted,
}

/// How a set is made.
pub enum Recipe {
    /// Of the files as they lie there, but for what is `held` back: that is as in `instead`. What `serving` was made of must
    /// still be there.
    Files { held: Vec<Change>, instead: Option<Arc<Content>>, serving: Option<Arc<Content>> },
    /// Of the plugins of `set`, with the rest of the configuration of `within`, or its own.
    Again { set: Option<Arc<Content>>, within: Option<Arc<Content>> },
}

/// What came of it.
pub struct Read {
    pub content: Content,
    pub certificates: Option<Arc<Certificates>>,
    pub bindings: Result<Bindings, ListenError>,
}

impl Source {
    /// Makes what `recipe` says: builds (`dev`), reads the configuration and the certificates, copies and checks the plugins.
    /// And what it has found of the files, whatever came of it.
    /// Of the Unix sockets `kept` are open.
    pub fn read(
        &self,
        store: &Mutex<Store>,
        cause: &Cause,
        recipe: Recipe,
        kept: &Kept,
    ) -> (Sighting, Result<Read, Failure>) {
        let mut sighting = Sighting::default();
        let content = match recipe {
            Recipe::Files { held, instead, serving } => {
                let before = Before { held: &held, instead: instead.as_deref(), serving: serving.as_deref() };
                self.take(store, cause, before, &mut sighting)
            }
            Recipe::Again { set, within } => set
                .ok_or_else(|| Failure::new(Stage::Snapshot, "find the set to go back to"))
                .and_then(|set| set.again(within.as_deref(), &self.config)),
        };
        let result = content.and_then(|content| {
            let certificates = Certificates::read(&content.config)?.map(Arc::new);
            Ok(Read { certificates, bindings: Bindings::prepare(&content.config, kept), content })
        });
        (sighting, result)
    }

    fn take(
        &self,
        store: &Mutex<Store>,
        cause: &Cause,
        before: Before<'_>,
        sighting: &mut Sighting,
    ) -> Result<Content, Failure> {
        if let Some(files) = &self.config_files {
            sighting.look_at(Targets::of_files(files));
        }
        let (config, origin) = self.config(cause, before.serving)?;
        if self.config_files.is_some() {
            sighting.look_at(Targets::of_config(&config));
        }
        // A panic while the lock was held left files under a temporary name at worst.
        let mut store = store.lock().unwrap_or_else(PoisonError::into_inner);
        if before.serving.is_some_and(Content::uses_folder) {
            store::check_folder(&config.plugin_dir)?;
        }
        let content = Content::take(&mut store, config, before.held, before.instead);
        let content = content.map(|content| Content { origin, ..content });
        match &content {
            Ok(_) => sighting.taken = store.taken(),
            Err(_) => sighting.being_written = store.being_written().map(Path::to_owned),
        }
        content
    }

    fn config(&self, cause: &Cause, serving: Option<&Content>) -> Result<(Config, ConfigSource), Failure> {
        if let Some(prepare) = &self.prepare {
            prepare.prepare(cause)?;
        }
        if *cause == Cause::Start {
            return Ok((self.config.clone(), self.origin.clone()));
        }
        let known = serving.map(|serving| &serving.origin).filter(|origin| **origin != ConfigSource::Unknown);
        self.check_config_files()?;
        let (config, origin) = (self.reread)().map_err(|error| not_read(&error))?;
        known.unwrap_or(&self.origin).check_successor(&origin).map_err(|error| not_read(&error))?;
        check_fixed(&self.config, &config)?;
        Ok((config, origin))
    }
}

/// What an operation must know of what was served before it.
#[derive(Clone, Copy)]
struct Before<'a> {
    held: &'a [Change],
    instead: Option<&'a Content>,
    serving: Option<&'a Content>,
}

/// The configuration cannot be used.
pub fn not_read(error: &ConfigError) -> Failure {
    let failure = Failure::new(Stage::Config, error.to_string());
    match error.hint() {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

impl Source {
    /// Makes sure that nobody but the trusted may write what decides on what runs as root.
    pub fn check_config_files(&self) -> Result<(), Failure> {
        if !nix::unistd::geteuid().is_root() {
            return Ok(());
        }
        for file in self.config_files.iter().flatten() {
            // One that cannot be found is refused, or not, by what reads it.
            if std::fs::metadata(file).is_ok() {
                self.trusted
                    .and(&self.config_owners)
                    .and_then(|trusted| trusted.check(file))
                    .map_err(|refusal| config_refusal(file, refusal))?;
            }
        }
        Ok(())
    }

    /// The program at `path`, if nobody but the trusted and `owners` may write it and the server runs as root. Blocks.
    pub fn open_binary(&self, path: &Path, owners: &[String]) -> Result<Image, Failure> {
        let refused = |error: std::io::Error| resume::refusal(path, &error.to_string());
        let image = Image::open(path).map_err(refused)?;
        if nix::unistd::geteuid().is_root() {
            let file =
                self.trusted.and(owners).and_then(|trusted| trusted.check(path)).map_err(|refusal| {
                    refusal.into_failure(Stage::Restart, &format!("restart with {}", path.display()))
                })?;
            // Nobody else can change what lies there; what was opened must be that.
            if file != image.inode().map_err(refused)? {
                return Err(resume::refusal(path, "another file has taken its place meanwhile"));
            }
        }
        Ok(image)
    }
}

fn config_refusal(file: &Path, refusal: Refusal) -> Failure {
    let failure = refusal.into_failure(Stage::Config, &format!("accept {}", file.display()));
    match failure.hint.clone() {
        // A file that is trusted for what it says itself could be anybody's.
        Some(hint) if hint.contains("store.owners") => {
            failure.hint(format!("{hint}, on the command line: --set 'store.owners=[\"USER\"]'"))
        }
        _ => failure,
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
