//! The sets that may still be needed, with what each has open, and what is kept of them on disk: their files in the store, and
//! the notes for the next start. Which are needed is the supervisor's word.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::listeners::{Claim, Key};
use super::memory::{Hold, Notebook};
use super::resume::{Luggage, ResumeError};
use super::sets::{Content, Record};
use super::state::{Fingerprints, Memory, SetId, SetInfo};
use super::store::{Origin, Store};
use super::tls::{Certificates, SavedCertificates};
use crate::report::{Change, Failure};

/// What a generation runs, with its addresses.
#[derive(Clone)]
pub struct Set {
    pub content: Arc<Content>,
    pub listeners: Vec<Claim>,
    pub certificates: Option<Arc<Certificates>>,
}

impl Set {
    /// What the supervisor must know of it.
    fn info(&self, id: SetId) -> SetInfo {
        self.content.info(id, &self.certificates.as_ref().map(|all| all.fingerprints()).unwrap_or_default())
    }
}

pub struct Inventory {
    sets: BTreeMap<SetId, Set>,
    next: u64,
    store: Arc<Mutex<Store>>,
    notebook: Notebook,
    /// The copies in use, for whoever tidies the store next.
    untidy: Arc<Mutex<Option<HashSet<PathBuf>>>>,
}

/// The sets for another program of this process: the store and the notes are found where they lie.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedSets {
    sets: Vec<SavedSet>,
    next: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedSet {
    id: SetId,
    record: Record,
    held: Vec<Change>,
    listeners: Vec<Claim>,
    certificates: Option<SavedCertificates>,
}

impl SavedSets {
    /// Whether all of them are whole.
    pub fn check(self, store: &Store) -> Result<(), Failure> {
        self.sets.into_iter().try_for_each(|set| recall(store, set.record).map(drop))
    }
}

fn recall(store: &Store, record: Record) -> Result<Content, Failure> {
    Content::recall(store, record, Origin::ThisProcess)
}

impl Inventory {
    /// What an earlier master has left, and what the supervisor must know of it. A set that is not whole any more is left out,
    /// loudly.
    pub fn recalled(store: Store, notebook: Notebook, records: Vec<Record>) -> (Inventory, Memory<Arc<SetInfo>>) {
        let mut sets = BTreeMap::new();
        let mut good = Vec::new();
        for record in records {
            match Content::recall(&store, record, Origin::EarlierMaster) {
                Ok(content) => {
                    let id = SetId(sets.len() as u64 + 1);
                    good.push(Arc::new(content.info(id, &Fingerprints::default())));
                    sets.insert(id, Set { content: Arc::new(content), listeners: Vec::new(), certificates: None });
                }
                Err(failure) => tracing::warn!("failed to {}; that set cannot be gone back to", failure.error),
            }
        }
        let (pin, held) = notebook.hold.known();
        let next = sets.len() as u64 + 1;
        (Inventory::of(sets, next, store, notebook), Memory { good, pin, held })
    }

    /// What the program before this one has left.
    pub fn resume(saved: SavedSets, store: Store, notebook: Notebook) -> Result<Inventory, ResumeError> {
        let mut sets = BTreeMap::new();
        for SavedSet { id, record, held, listeners, certificates } in saved.sets {
            let content = recall(&store, record).map_err(ResumeError::Set)?;
            let content = Arc::new(Content { held, ..content });
            let certificates = certificates.map(SavedCertificates::resume).transpose()?.map(Arc::new);
            sets.insert(id, Set { content, listeners, certificates });
        }
        Ok(Inventory::of(sets, saved.next, store, notebook))
    }

    fn of(sets: BTreeMap<SetId, Set>, next: u64, store: Store, notebook: Notebook) -> Inventory {
        Inventory { sets, next, store: Arc::new(Mutex::new(store)), notebook, untidy: Arc::default() }
    }

    pub fn save(&self, luggage: &mut Luggage) -> io::Result<SavedSets> {
        let set = |(id, set): (&SetId, &Set)| {
            let certificates = set.certificates.as_ref().map(|certificates| certificates.save(luggage));
            Ok(SavedSet {
                id: *id,
                record: set.content.record(),
                held: set.content.held.clone(),
                listeners: set.listeners.clone(),
                certificates: certificates.transpose()?,
            })
        };
        Ok(SavedSets { sets: self.sets.iter().map(set).collect::<io::Result<_>>()?, next: self.next })
    }

    pub fn store(&self) -> Arc<Mutex<Store>> {
        self.store.clone()
    }

    /// What is held back, with the pin.
    pub fn hold(&self) -> &Hold {
        &self.notebook.hold
    }

    pub fn add(&mut self, set: Set) -> Arc<SetInfo> {
        let id = SetId(self.next);
        self.next += 1;
        let info = Arc::new(set.info(id));
        self.sets.insert(id, set);
        info
    }

    /// The one without plugins, which has a number of its own.
    pub fn add_empty(&mut self, set: Set) {
        self.sets.insert(SetId::EMPTY, set);
    }

    pub fn get(&self, id: SetId) -> Option<&Set> {
        self.sets.get(&id)
    }

    pub fn ids(&self) -> impl Iterator<Item = SetId> {
        self.sets.keys().copied()
    }

    pub fn infos(&self) -> BTreeMap<SetId, Arc<SetInfo>> {
        self.sets.iter().map(|(id, set)| (*id, Arc::new(set.info(*id)))).collect()
    }

    pub fn claims(&self, id: Option<SetId>) -> &[Claim] {
        id.and_then(|id| self.get(id)).map_or(&[], |set| &set.listeners)
    }

    pub fn certificates(&self, id: Option<SetId>) -> Option<&Certificates> {
        id.and_then(|id| self.get(id))?.certificates.as_deref()
    }

    /// The addresses of `sets`.
    pub fn keys(&self, sets: impl Iterator<Item = SetId>) -> BTreeSet<Key> {
        let sets: BTreeSet<SetId> = sets.collect();
        let sets = sets.into_iter().filter_map(|id| self.get(id));
        sets.flat_map(|set| set.listeners.iter().map(|claim| claim.key.clone())).collect()
    }

    /// The servers with certificates in any set.
    pub fn servers_with_certificates(&self) -> BTreeSet<&str> {
        self.sets.values().filter_map(|set| set.certificates.as_deref()).flat_map(Certificates::servers).collect()
    }

    /// Notes what the next master shall know; written by [`Inventory::tidy`], once the copies it names are safe.
    pub fn remember(&mut self, memory: Memory) {
        let good = memory.good.iter().filter_map(|id| self.sets.get(id));
        let records = good.map(|set| set.content.record()).collect();
        self.notebook.note(records, memory.pin, memory.held);
    }

    /// Drops all but `used`; answers whether there were others.
    pub fn retain(&mut self, used: impl Iterator<Item = SetId>) -> bool {
        let used: BTreeSet<SetId> = used.collect();
        let before = self.sets.len();
        self.sets.retain(|id, _| used.contains(id));
        self.sets.len() < before
    }

    pub fn has_news(&self) -> bool {
        self.notebook.has_news()
    }

    /// Off this thread: syncs what is in use, then writes down what the next master shall know of it, and removes what nobody
    /// needs but the `keep` newest.
    pub fn tidy(&self, keep: usize) {
        let plugins = self.sets.values().flat_map(|set| &set.content.plugins);
        let in_use: HashSet<PathBuf> = plugins.map(|plugin| plugin.snapshot.path.clone()).collect();
        // At most one waits for the one that runs: it takes the latest.
        if self.untidy.lock().unwrap_or_else(PoisonError::into_inner).replace(in_use).is_some() {
            return;
        }
        let (store, untidy, notebook) = (self.store.clone(), self.untidy.clone(), self.notebook.clone());
        tokio::task::spawn_blocking(move || {
            let mut store = store.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(in_use) = untidy.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
            let paths: Vec<PathBuf> = in_use.iter().cloned().collect();
            let synced = store.sync(&paths);
            notebook.write();
            if let Err(error) = synced.and_then(|()| store.collect(&in_use, keep)) {
                tracing::warn!("failed to tidy the plugin store: {error}");
            }
        });
    }

    /// Recreates what was removed of the store, and of the notes if `state_was_removed`; to be called off the loop. Returns the plugin
    /// files whose copies are gone for good.
    pub fn restorer(&self) -> impl FnOnce(bool) -> io::Result<Vec<String>> + Send + use<> {
        let (store, notebook) = (self.store.clone(), self.notebook.clone());
        move |state_was_removed| {
            if state_was_removed {
                notebook.write_again();
            }
            store.lock().unwrap_or_else(PoisonError::into_inner).restore()
        }
    }

    /// Waits until the store is left alone and all notes are written.
    pub async fn settle(&self) {
        let (store, notebook) = (self.store.clone(), self.notebook.clone());
        let written = tokio::task::spawn_blocking(move || {
            let _store = store.lock().unwrap_or_else(PoisonError::into_inner);
            notebook.write();
        });
        if let Err(error) = written.await {
            tracing::error!("failed to write what the next start shall know: {error}");
        }
    }

    /// Waits for the disk: for the very end.
    pub fn write_notes(&self) {
        self.notebook.write();
    }
}
