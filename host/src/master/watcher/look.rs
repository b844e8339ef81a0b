//! A look at all that is watched, and the kernel's events in between. Runs on the blocking pool; it decides nothing.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;

use super::state::{Content, Stamp, View};
use super::targets::{Found, Targets, Ways};
use crate::master::source::Source;
use crate::master::store;
use crate::sys::files::{self, Identity, Lease};

/// A file that was written to within this time may be written to again without looking any different: its times have the
/// steps of the kernel's clock (inode(7)).
const STEP: Duration = Duration::from_millis(100);

/// How often the ways may change while they are looked at; what changes more often is told.
const AGAIN: usize = 8;

/// What the kernel has told since the last look.
#[derive(Debug, Default)]
pub struct Hints {
    told: Mutex<Told>,
    /// Of the first one only: a flood of them wakes nobody.
    pub first: Notify,
}

#[derive(Debug, Default)]
struct Told {
    counting: Ways,
    last: Option<Instant>,
    overflow: bool,
}

/// What it has told so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hint {
    pub last: Instant,
    pub overflow: bool,
}

impl Hints {
    fn with<T>(&self, act: impl FnOnce(&mut Told) -> T) -> T {
        act(&mut self.told.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn peek(&self) -> Option<Hint> {
        self.with(|told| told.last.map(|last| Hint { last, overflow: told.overflow }))
    }

    /// From now on they are of what the look that begins may not have seen.
    pub fn forget(&self) {
        self.with(|told| (told.last, told.overflow) = (None, false));
    }

    fn hear(&self, event: notify::Result<notify::Event>) {
        let is_first = self.with(|told| {
            let counts = match &event {
                Ok(event) if !event.need_rescan() => counts(event, &told.counting),
                _ => {
                    told.overflow = true;
                    true
                }
            };
            counts && told.last.replace(Instant::now()).is_none()
        });
        if is_first {
            self.first.notify_one();
        }
    }
}

fn counts(event: &notify::Event, ways: &Ways) -> bool {
    is_change(&event.kind) && event.paths.iter().any(|path| ways.lead_by(path))
}

/// Whether something may be another now. That it was opened or read says nothing: we do that ourselves.
fn is_change(kind: &EventKind) -> bool {
    !matches!(kind, EventKind::Access(access) if *access != AccessKind::Close(AccessMode::Write))
}

/// What was seen.
#[derive(Debug)]
pub struct Sight {
    pub view: View,
    pub targets: Targets,
    /// Why the kernel does not tell of every change.
    pub blind: Option<String>,
}

/// All that a look takes with it.
#[derive(Debug)]
pub struct Looker {
    hints: Arc<Hints>,
    config_files: Vec<PathBuf>,
    /// Of the configuration that could be read last: the one on disk may be other than the one that serves.
    on_disk: Targets,
    hashes: HashMap<PathBuf, (Identity, String)>,
    watcher: Option<RecommendedWatcher>,
    /// Watched, as which directory: another one may take its place.
    watched: BTreeMap<PathBuf, (u64, u64)>,
}

/// Makes the watcher; a test may have it fail.
pub type Open = fn(Arc<Hints>) -> notify::Result<RecommendedWatcher>;

pub fn open(hints: Arc<Hints>) -> notify::Result<RecommendedWatcher> {
    notify::recommended_watcher(move |event| hints.hear(event))
}

impl Looker {
    pub fn new(hints: Arc<Hints>, config_files: Vec<PathBuf>) -> Looker {
        Looker {
            hints,
            config_files,
            on_disk: Targets::default(),
            hashes: HashMap::new(),
            watcher: None,
            watched: BTreeMap::new(),
        }
    }

    /// Looks at what serves and at what would. `events` makes the watcher of the kernel's events, if they are wanted.
    pub fn look(&mut self, source: &Source, serving: Targets, events: Option<Open>) -> Sight {
        // One that cannot be read is refused at any reload; what the one before it named is watched on.
        if let Ok((config, _)) = (source.reread)() {
            self.on_disk = Targets::of_config(&config);
        }
        let targets = serving.with(self.on_disk.clone()).with(Targets::of_files(&self.config_files));
        let mut ways = targets.ways();
        let mut blind = self.watch(&ways, events);
        for _ in 0..AGAIN {
            // What came before it was watched was not told.
            let before = std::mem::replace(&mut ways, targets.ways());
            if ways == before {
                break;
            }
            blind = self.watch(&ways, events);
        }
        let found = targets.find();
        self.hashes.retain(|path, _| found.contains_key(path));
        Sight { view: self.read(found), targets, blind }
    }

    /// Stops hearing of changes.
    pub fn close(&mut self) {
        self.watcher = None;
        self.watched.clear();
    }

    /// Has the kernel tell of these ways, and of no others; why not, if it does not.
    fn watch(&mut self, ways: &Ways, events: Option<Open>) -> Option<String> {
        let Some(open) = events else {
            self.close();
            return Some("`watch.events` is off".into());
        };
        self.hints.with(|told| told.counting = ways.clone());
        if self.watcher.is_none() {
            match open(self.hints.clone()) {
                Ok(watcher) => self.watcher = Some(watcher),
                Err(error) => return Some(explain(&error)),
            }
        }
        let watcher = self.watcher.as_mut()?;
        let wanted: BTreeMap<PathBuf, (u64, u64)> =
            ways.directories().into_iter().filter_map(|dir| number(&dir).map(|number| (dir, number))).collect();
        self.watched.retain(|dir, as_was| {
            let stays = wanted.get(dir) == Some(as_was);
            if !stays {
                // One that is gone is watched no more anyway.
                let _ = watcher.unwatch(dir);
            }
            stays
        });
        let mut blind = None;
        for (dir, number) in wanted {
            if self.watched.contains_key(&dir) {
                continue;
            }
            match watcher.watch(&dir, RecursiveMode::NonRecursive) {
                Ok(()) => drop(self.watched.insert(dir, number)),
                Err(error) => blind = Some(format!("{}: {}", dir.display(), explain(&error))),
            }
        }
        blind
    }

    fn read(&mut self, found: Found) -> View {
        let stamp = |(path, identity): (PathBuf, Option<Identity>)| {
            let stamp = match identity {
                Some(identity) => self.stamp(&path, identity),
                None => Stamp { identity: None, content: Content::Unreadable },
            };
            (path, stamp)
        };
        found.into_iter().map(stamp).collect()
    }

    fn stamp(&mut self, path: &Path, found: Identity) -> Stamp {
        match self.content(path, found) {
            Ok((identity, content)) => Stamp { identity: Some(identity), content },
            // Somebody has a lease that keeps readers away while he writes.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Stamp { identity: Some(found), content: Content::BeingWritten }
            }
            Err(_) => Stamp { identity: Some(found), content: Content::Unreadable },
        }
    }

    fn content(&mut self, path: &Path, found: Identity) -> io::Result<(Identity, Content)> {
        // Not to wait for the other end, if it became a FIFO meanwhile.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        // Given back at once, so that no writer has to wait for us.
        if let Lease::Written = files::read_lease(&file)? {
            return Ok((found, Content::BeingWritten));
        }
        let identity = identity_of(&file)?;
        if let Some((known, sha256)) = self.hashes.get(path)
            && *known == identity
        {
            return Ok((identity, Content::Sha256(sha256.clone())));
        }
        let is_old = identity.changed().elapsed().is_ok_and(|age| age >= STEP);
        let sha256 = store::hash(&file)?;
        if identity_of(&file)? != identity {
            return Ok((identity, Content::BeingWritten));
        }
        if is_old {
            self.hashes.insert(path.to_owned(), (identity, sha256.clone()));
        }
        Ok((identity, Content::Sha256(sha256)))
    }
}

fn identity_of(file: &File) -> io::Result<Identity> {
    Ok(Identity::of(&file.metadata()?))
}

/// What tells a directory from another one of the same name.
fn number(dir: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::metadata(dir).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

fn explain(error: &notify::Error) -> String {
    match &error.kind {
        notify::ErrorKind::MaxFilesWatch => "no inotify watch is left (fs.inotify.max_user_watches)".into(),
        notify::ErrorKind::Io(error) if error.raw_os_error() == Some(libc::EMFILE) => {
            "no inotify instance is left (fs.inotify.max_user_instances, or open files)".into()
        }
        notify::ErrorKind::Io(error) => error.to_string(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests;
