//! How an operation gets its set: files are read and checked on the blocking pool, then the addresses are opened here. An address
//! that a worker of an earlier master still has is waited for, again on the pool.

use std::sync::Arc;
use std::time::Instant;

use super::{Finished, Master};
use crate::master::inventory::Set;
use crate::master::listeners::{Bindings, ListenError};
use crate::master::orphans::{self, Outcome, Workers};
use crate::master::sets::Content;
use crate::master::source::{Read, Recipe};
use crate::master::state::{self, Event, Exit, SetId};
use crate::master::watcher::Sighting;
use crate::report::{Cause, Failure, OpId};

/// An address that was in use and free a moment later, so often, is another program's doing.
const MOST_ATTEMPTS: u32 = 5;

/// What was read for an operation.
pub(super) struct Prepared {
    op: OpId,
    sighting: Sighting,
    result: Result<Read, Failure>,
}

/// The same once more, after an address was waited for.
pub(super) struct Freed {
    op: OpId,
    read: Read,
    waited: Waited,
}

/// For how long an operation has waited for addresses.
#[derive(Clone, Copy, Debug, Default)]
struct Waited {
    /// Of the first wait, which is for all.
    until: Option<Instant>,
    /// How often no socket listened there any more.
    attempts: u32,
}

impl Master {
    /// Reads configuration and plugins off this thread.
    pub(super) fn prepare(&mut self, op: OpId, cause: Cause, from: &state::Source) {
        let content = |id: &SetId| self.sets.get(*id).map(|set| set.content.clone());
        let recipe = match from {
            state::Source::Files { held, instead } => {
                let serving = self.state.kept_set().as_ref().and_then(content);
                Recipe::Files { held: held.clone(), instead: instead.as_ref().and_then(content), serving }
            }
            state::Source::Again { set, within } => {
                let within = match within {
                    state::Within::Own => content(set),
                    state::Within::Set(id) => content(id),
                    state::Within::Start => Some(Arc::new(Content::empty(self.source.config.clone()))),
                };
                Recipe::Again { set: content(set), within }
            }
        };
        let (source, store, sender) = (self.source.clone(), self.sets.store(), self.finished.clone());
        let kept = self.listeners.kept();
        self.preparing += 1;
        let gate = self.restoring.gate.clone();
        tokio::spawn(async move {
            // What was removed from the state directory is there again first.
            let refusal = gate.lock().await.clone();
            let read = tokio::task::spawn_blocking(move || {
                let (sighting, result) = match refusal {
                    Some(failure) => (Sighting::default(), Err(failure)),
                    None => source.read(&store, &cause, recipe, &kept),
                };
                // The loop is gone only when the master ends.
                let _ = sender.blocking_send(Finished::Prepared(Box::new(Prepared { op, sighting, result })));
            });
            // One that panicked has said so.
            let _ = read.await;
        });
    }

    /// Opens the addresses of what was read, and makes it a set.
    pub(super) fn take_prepared(&mut self, prepared: Prepared) -> Option<Exit> {
        let Prepared { op, sighting, result } = prepared;
        self.preparing -= 1;
        let changed = self.watcher.read(sighting);
        let exit = match result {
            Ok(read) => self.open_addresses(op, read, Waited::default()),
            Err(failure) => self.handle(Event::Prepared { op, result: Err(failure) }),
        };
        exit.or_else(|| self.reload_for(changed))
    }

    pub(super) fn take_freed(&mut self, freed: Freed) -> Option<Exit> {
        let Freed { op, read, waited } = freed;
        self.preparing -= 1;
        self.open_addresses(op, read, waited)
    }

    fn open_addresses(&mut self, op: OpId, read: Read, waited: Waited) -> Option<Exit> {
        let Read { content, certificates, bindings } = read;
        // A child needs sockets that listen.
        self.relisten();
        let covered = self.cover(certificates.as_deref()).map_err(ListenError::from);
        let opened = covered.and(bindings).and_then(|bindings| self.listeners.open(&content.config, bindings));
        let result = match opened {
            Ok(listeners) => Ok(self.sets.add(Set { content: Arc::new(content), listeners, certificates })),
            Err(error @ ListenError { in_use: Some(_), .. }) if waited.attempts < MOST_ATTEMPTS => {
                self.wait_for_address(op, Read { content, certificates, bindings: Err(error) }, waited);
                return None;
            }
            Err(error) => Err(error.failure),
        };
        self.handle(Event::Prepared { op, result })
    }

    /// Waits for the end of a worker of an earlier master that has the address, if that is what is in the way.
    fn wait_for_address(&mut self, op: OpId, read: Read, waited: Waited) {
        let workers = Workers { name: self.source.config.name.clone(), uids: self.identity.uids() };
        let until = waited.until.unwrap_or_else(|| orphans::deadline(read.content.config.drain.orphan));
        let mut waited = Waited { until: Some(until), ..waited };
        let (sender, kept) = (self.finished.clone(), self.listeners.kept());
        self.preparing += 1;
        tokio::task::spawn_blocking(move || {
            let bindings = match read.bindings {
                Err(ListenError { failure, in_use: Some(address) }) => {
                    let outcome = orphans::wait(&address, &workers, until);
                    waited.attempts += u32::from(outcome == Outcome::Free);
                    match outcome {
                        Outcome::Ended | Outcome::Free => Bindings::prepare(&read.content.config, &kept),
                        Outcome::Taken { hint } => Err(orphans::hinted(failure, hint).into()),
                    }
                }
                other => other,
            };
            // As above.
            let _ =
                sender.blocking_send(Finished::Freed(Box::new(Freed { op, read: Read { bindings, ..read }, waited })));
        });
    }
}
