//! Sets that have served: which of them may serve again, and which changes are held back since they came with one that was
//! given up. What of it outlives the master is its [`Memory`].

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Action, SetId, SetInfo, State};
use crate::report::{Change, Generation, Why};

/// Good sets that are kept, and remembered: the one that serves, and the one before.
const GOOD: usize = 2;
/// Of the generations that ran one set, how many are known by number.
const NUMBERS: usize = 16;
/// Changes that are held back at most; the oldest is forgotten first.
const HELD: usize = 64;

/// What outlives the master. The loop writes it down.
#[derive(Clone, Debug, PartialEq)]
pub struct Memory<Set = SetId> {
    /// Newest first.
    pub good: Vec<Set>,
    /// The generation that was gone back to.
    pub pin: Option<Generation>,
    pub held: Vec<(Change, Why)>,
}

/// A set that has served.
#[derive(Clone, Debug)]
pub(super) struct Past {
    pub set: Arc<SetInfo>,
    /// Those of this master that ran it.
    generations: Vec<Generation>,
    standing: Standing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Standing {
    Good,
    GivenUp,
}

impl<Set> Default for Memory<Set> {
    fn default() -> Memory<Set> {
        Memory { good: Vec::new(), pin: None, held: Vec::new() }
    }
}

/// Newest first.
#[derive(Clone, Debug)]
pub(super) struct PastSets {
    sets: Vec<Past>,
    pin: Option<Generation>,
    held: Vec<(Change, Why)>,
    /// What was written down last.
    noted: Memory,
}

impl PastSets {
    pub fn recalled(memory: Memory<Arc<SetInfo>>) -> PastSets {
        let good = memory.good.iter().map(|set| set.id).collect();
        let noted = Memory { good, pin: memory.pin, held: memory.held.clone() };
        let past = |set| Past { set, generations: Vec::new(), standing: Standing::Good };
        PastSets { sets: memory.good.into_iter().map(past).collect(), pin: memory.pin, held: memory.held, noted }
    }

    pub fn sets(&self) -> impl Iterator<Item = &Arc<SetInfo>> {
        self.sets.iter().map(|past| &past.set)
    }

    /// The newest that may serve again, and is another than `but`.
    pub fn good(&self, but: Option<&SetInfo>) -> Option<&Arc<SetInfo>> {
        let other = |past: &&Past| but.is_none_or(|but| but.sha256 != past.set.sha256);
        self.sets.iter().filter(|past| past.standing == Standing::Good).find(other).map(|past| &past.set)
    }

    /// The set that `generation` ran.
    pub fn of(&self, generation: Generation) -> Option<&Arc<SetInfo>> {
        self.sets.iter().find(|past| past.generations.contains(&generation)).map(|past| &past.set)
    }

    /// The newest generation of this master that ran `set`.
    pub fn number(&self, set: &SetInfo) -> Option<Generation> {
        let past = self.sets.iter().find(|past| past.set.sha256 == set.sha256)?;
        past.generations.last().copied()
    }

    /// `generation` serves with `set`; of those before, `keep` are kept beside the good ones.
    pub fn serves(&mut self, set: Arc<SetInfo>, generation: Generation, keep: usize) {
        // Nobody wants to go back to nothing.
        if set.plugins.is_empty() {
            return;
        }
        let known = self.sets.iter().position(|past| past.set.sha256 == set.sha256);
        let mut generations = known.map(|at| self.sets.remove(at).generations).unwrap_or_default();
        if !generations.contains(&generation) {
            generations.push(generation);
        }
        let surplus = generations.len().saturating_sub(NUMBERS);
        generations.drain(..surplus);
        self.sets.insert(0, Past { set, generations, standing: Standing::Good });
        self.sets.truncate(GOOD + keep);
    }

    pub fn held(&self) -> impl Iterator<Item = &Change> {
        self.held.iter().map(|(change, _)| change)
    }

    /// Why `change` is held back, if it is.
    pub fn why(&self, change: &Change) -> Option<Why> {
        self.held.iter().find(|(held, _)| held == change).map(|(_, why)| *why)
    }

    /// What `bad` changed is not taken again, be it that `good` serves instead.
    pub fn give_up(&mut self, bad: &SetInfo, good: Option<&SetInfo>, why: Why) {
        if good.is_some_and(|good| good.sha256 == bad.sha256) {
            return;
        }
        if let Some(past) = self.sets.iter_mut().find(|past| past.set.sha256 == bad.sha256) {
            past.standing = Standing::GivenUp;
        }
        for change in changes(bad, good) {
            self.held.retain(|(held, _)| *held != change);
            self.held.push((change, why));
        }
        let surplus = self.held.len().saturating_sub(HELD);
        self.held.drain(..surplus);
    }

    /// Nor is its configuration, read from the file as it was then.
    pub fn give_up_config(&mut self, bad: &SetInfo, good: &SetInfo) {
        let change = Change::Config { sha256: bad.config.clone() };
        if bad.config != good.config && self.why(&change).is_none() {
            self.held.push((change, Why::RolledBack));
        }
    }

    /// What `set` has in it is held back no longer: it serves.
    pub fn release(&mut self, set: &SetInfo) {
        self.held.retain(|(change, _)| !set.has(change));
    }

    pub fn pin(&mut self, generation: Option<Generation>) {
        self.pin = generation;
    }

    /// What is to be written down, if it is another than before. `unproven` does not count as good yet.
    fn news(&mut self, unproven: Option<&SetInfo>) -> Option<Memory> {
        let good = self.sets.iter().filter(|past| past.standing == Standing::Good).map(|past| &past.set);
        let proven = good.filter(|set| unproven.is_none_or(|unproven| unproven.sha256 != set.sha256));
        let good = proven.take(GOOD).map(|set| set.id).collect();
        let memory = Memory { good, pin: self.pin, held: self.held.clone() };
        if memory == self.noted {
            return None;
        }
        self.noted = memory.clone();
        Some(memory)
    }
}

/// The past as another program of this process goes on with it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SavedPast {
    sets: Vec<(SetId, Vec<Generation>, Standing)>,
    pin: Option<Generation>,
    held: Vec<(Change, Why)>,
}

impl PastSets {
    pub fn save(&self) -> SavedPast {
        let sets = self.sets.iter().map(|past| (past.set.id, past.generations.clone(), past.standing));
        SavedPast { sets: sets.collect(), pin: self.pin, held: self.held.clone() }
    }
}

impl SavedPast {
    /// With those of its sets that are still there. What is to be written down is so anew.
    pub fn resume(self, all: &BTreeMap<SetId, Arc<SetInfo>>) -> PastSets {
        let past = |(id, generations, standing)| {
            let set: &Arc<SetInfo> = all.get(&id)?;
            Some(Past { set: set.clone(), generations, standing })
        };
        let sets = self.sets.into_iter().filter_map(past).collect();
        PastSets { sets, pin: self.pin, held: self.held, noted: Memory::default() }
    }
}

/// What `bad` has that `good` has not.
fn changes(bad: &SetInfo, good: Option<&SetInfo>) -> Vec<Change> {
    let mut changes = vec![Change::Set { sha256: bad.sha256.clone() }];
    let Some(good) = good else { return changes };
    for part in &bad.plugins {
        let before = good.plugins.iter().find(|before| before.name == part.name);
        if before.is_none_or(|before| before.sha256 != part.sha256) {
            changes.push(Change::Plugin { plugin: part.name.clone(), sha256: part.sha256.clone() });
        }
    }
    for (plugin, sha256) in &bad.sections {
        if good.sections.get(plugin).is_some_and(|before| before != sha256) {
            changes.push(Change::Settings { plugin: plugin.clone(), sha256: sha256.clone() });
        }
    }
    let gone = good.plugins.iter().filter(|before| bad.plugins.iter().all(|part| part.name != before.name));
    changes.extend(gone.map(|before| Change::Removal { plugin: before.name.clone() }));
    changes
}

impl SetInfo {
    /// Whether `change` is in it.
    fn has(&self, change: &Change) -> bool {
        match change {
            Change::Plugin { plugin, sha256 } => {
                self.plugins.iter().any(|part| part.name == *plugin && part.sha256 == *sha256)
            }
            Change::Removal { plugin } => self.plugins.iter().all(|part| part.name != *plugin),
            Change::Settings { plugin, sha256 } => self.sections.get(plugin) == Some(sha256),
            Change::Config { sha256 } => self.config == *sha256,
            Change::Set { sha256 } => self.sha256 == *sha256,
        }
    }
}

impl State {
    /// Writes down what changed of the past. A set on probation is not good yet.
    pub(super) fn remember(&mut self) {
        let unproven = self.standing_by().and(self.set.clone());
        if let Some(memory) = self.past.news(unproven.as_deref()) {
            self.act(Action::Remember(memory));
        }
    }
}
