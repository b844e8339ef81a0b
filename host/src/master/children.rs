//! The children that live, what they and those before them have counted, and what is passed among them: ticket keys and the
//! states that plugins hand on. What they are told is decided elsewhere.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::resume::{Luggage, SavedStates};
use super::spawn::{Child, SavedChild};
use super::state::Event;
use super::tls::Tickets;
use crate::control::ToChild;
use crate::control::states::{StateEntry, States};
use crate::metrics::Counts;
use crate::report::{Generation, GenerationStatus, Load, Totals};

/// Ended generations whose counts are kept: more than the status lists.
const PAST: usize = 32;

#[derive(Debug, Default)]
pub struct Children {
    living: HashMap<Generation, Child>,
    /// What those have counted that have ended.
    ended: Counts,
    /// The same of each of the latest, for the status.
    past: BTreeMap<Generation, Load>,
    /// Those that were sent ticket keys, and are told of new ones.
    with_tickets: BTreeSet<Generation>,
    /// Those that were sent their listeners, and are sent those that take their place.
    with_listeners: BTreeSet<Generation>,
    /// What plugins have handed on last.
    states: Option<States>,
}

/// The same for another program of this process.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedChildren {
    living: Vec<SavedChild>,
    ended: Vec<u64>,
    past: Vec<(Generation, Load)>,
    with_tickets: Vec<Generation>,
    #[serde(default)]
    states: Option<SavedStates>,
}

impl Children {
    pub fn insert(&mut self, generation: Generation, child: Child) {
        self.living.insert(generation, child);
    }

    /// It has ended; its counts stay.
    pub fn reaped(&mut self, generation: Generation) {
        self.with_tickets.remove(&generation);
        self.with_listeners.remove(&generation);
        let Some(child) = self.living.remove(&generation) else { return };
        let counts = child.counts();
        self.ended.add(counts);
        self.past.insert(generation, counts.past());
        if self.past.len() > PAST {
            self.past.pop_first();
        }
    }

    pub fn get(&self, generation: Generation) -> Option<&Child> {
        self.living.get(&generation)
    }

    /// One that has ended is told nothing.
    pub fn send(&self, generation: Generation, message: ToChild, fds: Vec<OwnedFd>) {
        if let Some(child) = self.living.get(&generation) {
            child.send(message, fds);
        }
    }

    /// Queues LISTENER messages, after which RELISTEN may follow.
    pub fn send_listeners(&mut self, generation: Generation, sockets: impl IntoIterator<Item = (u32, OwnedFd)>) {
        for (id, socket) in sockets {
            self.send(generation, ToChild::Listener { id }, vec![socket]);
        }
        self.with_listeners.insert(generation);
    }

    /// Whether it was sent its listeners.
    pub fn has_listeners(&self, generation: Generation) -> bool {
        self.with_listeners.contains(&generation)
    }

    pub fn kill(&self, generation: Generation) {
        if let Some(Err(error)) = self.living.get(&generation).map(Child::kill) {
            tracing::error!(generation = generation.0, "failed to kill: {error}");
        }
    }

    /// Certificates and ticket keys; from now on it is told of new keys.
    pub fn entrust(&mut self, generation: Generation, certificates: OwnedFd, tickets: OwnedFd) {
        self.send(generation, ToChild::Certificates, vec![certificates]);
        self.send(generation, ToChild::Tickets, vec![tickets]);
        self.with_tickets.insert(generation);
    }

    /// Begins the next turn of ticket keys, in every child that has any: those that drain as well.
    pub fn rotate(&self, tickets: &mut Tickets) {
        if let Err(error) = tickets.rotate() {
            return tracing::error!("failed to make new ticket keys, the old ones stay: {error}");
        }
        for generation in &self.with_tickets {
            match tickets.seal() {
                Ok(tickets) => self.send(*generation, ToChild::Tickets, vec![tickets]),
                Err(error) => tracing::error!(generation = generation.0, "{error}"),
            }
        }
    }

    /// What its plugins have handed on is the latest. An answer without states counts too: what was saved before is of another
    /// plugin.
    pub fn keep_states(&mut self, generation: Generation) {
        self.states = self.living.get(&generation).and_then(Child::take_states);
    }

    pub fn lend_states(&self) -> Option<io::Result<(Vec<StateEntry>, OwnedFd)>> {
        self.states.as_ref().map(States::lend)
    }

    /// Fills in what each generation has counted, and answers the sum of all there ever were.
    pub fn count(&self, generations: &mut [GenerationStatus]) -> Totals {
        for status in generations.iter_mut() {
            status.load = self.past.get(&status.generation).copied().unwrap_or_default();
        }
        let mut all = self.ended;
        for (generation, child) in &self.living {
            let counts = child.counts();
            all.add(counts);
            if let Some(status) = generations.iter_mut().find(|status| status.generation == *generation) {
                status.load = counts.load();
            }
        }
        all.totals()
    }

    // ---- across a restart ----

    /// Answers when all that was read has gone to the loop.
    pub fn stop_reading(&mut self) -> Vec<JoinHandle<()>> {
        self.living.values_mut().map(Child::stop_reading).collect()
    }

    /// Answers when all has been written.
    pub fn stop_writing(&mut self) -> Vec<JoinHandle<()>> {
        self.living.values_mut().map(Child::stop_writing).collect()
    }

    /// All as before; a child with which that fails is killed.
    pub fn go_on(&mut self, events: &mpsc::Sender<Event>) {
        let mut lost = Vec::new();
        for (generation, child) in &mut self.living {
            if let Err(error) = child.go_on(events.clone()) {
                tracing::error!(generation = generation.0, "failed to go on with a child: {error}; killing it");
                lost.push(*generation);
            }
        }
        lost.into_iter().for_each(|generation| self.kill(generation));
    }

    pub fn save(&self, luggage: &mut Luggage) -> io::Result<SavedChildren> {
        Ok(SavedChildren {
            living: self.living.values().map(|child| child.save(luggage)).collect::<io::Result<_>>()?,
            with_tickets: self.with_tickets.iter().copied().collect(),
            ended: self.ended.save(),
            past: self.past.iter().map(|(generation, load)| (*generation, *load)).collect(),
            states: self.states.as_ref().map(|states| SavedStates::of(states, luggage)).transpose()?,
        })
    }

    pub fn resume(saved: SavedChildren, events: &mpsc::Sender<Event>) -> io::Result<Children> {
        let SavedChildren { living, ended, past, with_tickets, states } = saved;
        let living = living.iter().map(|child| Child::resume(child, events.clone()));
        let living = living.collect::<io::Result<HashMap<_, _>>>()?;
        Ok(Children {
            // A restart begins only when every child has its set.
            with_listeners: living.keys().copied().collect(),
            living,
            ended: Counts::resume(&ended),
            past: past.into_iter().collect(),
            with_tickets: with_tickets.into_iter().collect(),
            states: states.and_then(SavedStates::resume),
        })
    }
}
