//! What is written down for the next master: `last_good`, the sets that may serve again, and `held`, what was rolled back or
//! quarantined, with the pin. Both are replaced whole and synced, off the loop's thread, and never before a switch.
//!
//! A file that cannot be read is as good as none, loudly: it must not keep a server from starting.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::sets::Record;
use crate::report::{Change, Generation, Held, Pin, Why};
use crate::sys::files;

const LAST_GOOD: &str = "last_good";
const HELD: &str = "held";

/// What is held back, as operators see it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hold {
    pub pin: Option<Pin>,
    pub changes: Vec<Held>,
}

impl Hold {
    /// The same as the supervisor knows it.
    pub fn known(&self) -> (Option<Generation>, Vec<(Change, Why)>) {
        let changes = self.changes.iter().map(|held| (held.change.clone(), held.why)).collect();
        (self.pin.as_ref().map(|pin| pin.generation), changes)
    }

    /// Brings it up to date: what is new is so since now.
    fn update(&mut self, pin: Option<Generation>, held: Vec<(Change, Why)>) {
        let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        self.pin = pin.map(|generation| match self.pin.take().filter(|pin| pin.generation == generation) {
            Some(pin) => pin,
            None => Pin { generation, since: now.clone() },
        });
        let old = std::mem::take(&mut self.changes);
        let since = |change: &Change| old.iter().find(|held| held.change == *change).map(|held| held.since.clone());
        let timed = |(change, why)| Held { since: since(&change).unwrap_or_else(|| now.clone()), change, why };
        self.changes = held.into_iter().map(timed).collect();
    }
}

/// The latest to be written: whoever writes, writes this, so that no order of writers leaves an older one behind.
#[derive(Clone, Debug, Default)]
struct Latest {
    good: Option<Vec<Record>>,
    hold: Option<Hold>,
}

#[derive(Clone, Debug)]
pub struct Notebook {
    dir: PathBuf,
    pub hold: Hold,
    latest: Arc<Mutex<Latest>>,
    /// Held while it is written: what was written last.
    written: Arc<Mutex<Latest>>,
}

impl Notebook {
    /// What is in `state_dir`, and the sets that may serve again, newest first.
    pub fn open(state_dir: &Path) -> (Notebook, Vec<Record>) {
        let good: Vec<Record> = read(&state_dir.join(LAST_GOOD));
        let hold: Hold = read(&state_dir.join(HELD));
        let written = Latest { good: Some(good.clone()), hold: Some(hold.clone()) };
        let written = Arc::new(Mutex::new(written));
        (Notebook { dir: state_dir.into(), hold, latest: Arc::default(), written }, good)
    }

    /// Notes what shall be written by the next [`Notebook::write`], of whichever copy.
    pub fn note(&mut self, good: Vec<Record>, pin: Option<Generation>, held: Vec<(Change, Why)>) {
        self.hold.update(pin, held);
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        *latest = Latest { good: Some(good), hold: Some(self.hold.clone()) };
    }

    /// Whether something was noted that is not written yet.
    pub fn has_news(&self) -> bool {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner).good.is_some()
    }

    /// Writes what is not written yet. Waits for the disk.
    pub fn write(&self) {
        // One at a time, and each takes what is the latest by then; the loop never waits for this.
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let latest = std::mem::take(&mut *self.latest.lock().unwrap_or_else(PoisonError::into_inner));
        if latest.good.is_some() {
            *written = latest;
            self.write_files(&written);
        }
    }

    /// Writes what was written last once more, into a directory that was recreated. Waits for the disk.
    pub fn write_again(&self) {
        self.write_files(&self.written.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn write_files(&self, Latest { good, hold }: &Latest) {
        if let Some(good) = good {
            self.report(LAST_GOOD, write(&self.dir.join(LAST_GOOD), good));
        }
        if let Some(hold) = hold {
            self.report(HELD, write(&self.dir.join(HELD), hold));
        }
    }

    fn report(&self, file: &str, result: io::Result<()>) {
        if let Err(error) = result {
            let path = self.dir.join(file);
            tracing::error!("failed to write {}: {error}; the next start will not know of it", path.display());
        }
    }
}

fn write(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let mut json = serde_json::to_vec_pretty(value)?;
    json.push(b'\n');
    files::replace(path, &json)
}

fn read<T: DeserializeOwned + Default>(path: &Path) -> T {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return T::default(),
        Err(error) => {
            tracing::error!("failed to read {}: {error}; going on without it", path.display());
            return T::default();
        }
    };
    serde_json::from_slice(&text).unwrap_or_else(|error| {
        tracing::error!("failed to understand {}: {error}; going on without it", path.display());
        T::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn change() -> Change {
        Change::Removal { plugin: "a".into() }
    }

    fn record() -> Record {
        Record { plugins: Vec::new(), config: Config::default() }
    }

    #[test]
    fn what_was_noted_is_read_again_and_keeps_its_time() {
        let dir = tempfile::tempdir().unwrap();
        let (mut notebook, good) = Notebook::open(dir.path());
        assert!(good.is_empty() && notebook.hold == Hold::default());
        notebook.note(vec![record()], Some(Generation(6)), vec![(change(), Why::RolledBack)]);
        notebook.write();
        let (mut again, good) = Notebook::open(dir.path());
        assert_eq!((&again.hold, good), (&notebook.hold, vec![record()]));
        assert_eq!(again.hold.known(), (Some(Generation(6)), vec![(change(), Why::RolledBack)]));
        // As it was then, not as of now.
        again.hold.pin.as_mut().unwrap().since = "then".into();
        again.hold.changes[0].since = "then".into();
        again.note(Vec::new(), Some(Generation(6)), vec![(change(), Why::RolledBack)]);
        assert_eq!((&*again.hold.pin.as_ref().unwrap().since, &*again.hold.changes[0].since), ("then", "then"));
        again.note(Vec::new(), Some(Generation(7)), Vec::new());
        assert_ne!(again.hold.pin.unwrap().since, "then");
    }

    #[test]
    fn the_latest_is_written_whoever_writes() {
        let dir = tempfile::tempdir().unwrap();
        let (mut notebook, _) = Notebook::open(dir.path());
        notebook.note(vec![record()], None, Vec::new());
        let early = notebook.clone();
        notebook.note(vec![record(), record()], None, Vec::new());
        notebook.write();
        early.write();
        assert_eq!(Notebook::open(dir.path()).1.len(), 2);
    }

    #[test]
    fn a_broken_file_is_as_good_as_none() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(LAST_GOOD), "[{]").unwrap();
        std::fs::write(dir.path().join(HELD), "7").unwrap();
        let (notebook, good) = Notebook::open(dir.path());
        assert!(good.is_empty() && notebook.hold == Hold::default());
    }
}
