//! One generation: where it stands, what is known of it, and how it is shown and saved. What it may become next depends on the
//! others: that is in `generations` and `switch`.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::cut::Haste;
use super::{SetId, SetInfo, Time};
use crate::control::{Deadlines, EXIT_TIMEOUT, Protocols};
use crate::report::{Cause, Generation, GenerationState, GenerationStatus, Load, OpId};

/// Where a generation stands. Ordered: before `Committing` it has touched nothing, from `Retiring` on it accepts no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Phase {
    /// Spawn was asked for; HELLO has not come.
    Starting,
    Loading,
    /// Its probes are under way.
    Proving,
    /// GO was sent.
    Committing,
    Serving,
    /// RESUME was sent.
    Resuming,
    /// PAUSE was sent.
    Pausing,
    /// It accepts no more, and its successor is on probation: RESUME may still follow.
    Standby,
    Retiring,
    /// DONE was acknowledged.
    Leaving,
    /// SIGKILL was sent.
    Killed,
}

#[derive(Clone, Debug)]
pub(super) struct Gen {
    pub number: Generation,
    pub phase: Phase,
    pub set: Arc<SetInfo>,
    pub cause: Cause,
    pub pid: Option<i32>,
    /// What its binary speaks, once it has said so.
    pub protocols: Option<Protocols>,
    pub spawned_at: Time,
    /// When its plugins were up.
    pub loaded_at: Time,
    pub ready_at: Time,
    /// When patience with the present phase ends.
    pub deadline: Option<Time>,
    /// The plugin whose init runs.
    pub loading: Option<String>,
    /// The operation that replaced it: the drain report goes there.
    pub replaced_by: Option<OpId>,
    /// Until when it may be asked to accept again, once it was replaced.
    pub standby_until: Time,
    /// Why it accepts again although its successor lives: what the latter did.
    pub back: Option<String>,
    pub drained: bool,
    /// What it was told at RETIRE.
    pub deadlines: Option<Deadlines>,
    pub haste: Haste,
    pub unexpected: Unexpected,
}

/// The messages of a generation that did not fit where it stood.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Unexpected {
    noted: Option<Time>,
    left_out: u64,
}

impl Unexpected {
    const PAUSE: Time = Time::from_secs(1);

    /// Counts one more. Returns how many were not noted since the last note, if this one is to be.
    pub(super) fn note(&mut self, now: Time) -> Option<u64> {
        if self.noted.is_some_and(|noted| now.saturating_sub(noted) < Self::PAUSE) {
            self.left_out = self.left_out.saturating_add(1);
            return None;
        }
        self.noted = Some(now);
        Some(std::mem::take(&mut self.left_out))
    }
}

impl Gen {
    /// In milliseconds, until the child's own limit of its drain; `None` for no end.
    pub(super) fn time_left(&self, now: Time) -> Option<u64> {
        let left = self.deadline.map(|at| at.saturating_sub(now).saturating_sub(EXIT_TIMEOUT));
        left.map(|left| left.as_millis() as u64)
    }

    pub(super) fn status(&self, now: Time, exit: Option<String>) -> GenerationStatus {
        let state = match self.phase {
            _ if exit.is_some() => GenerationState::Exited,
            Phase::Starting => GenerationState::Starting,
            Phase::Loading => GenerationState::Loading,
            Phase::Proving => GenerationState::Proving,
            Phase::Committing => GenerationState::Committing,
            Phase::Serving => GenerationState::Serving,
            Phase::Resuming | Phase::Pausing => GenerationState::Paused,
            Phase::Standby => GenerationState::Standby,
            Phase::Retiring | Phase::Leaving | Phase::Killed => GenerationState::Retiring,
        };
        GenerationStatus {
            generation: self.number,
            state,
            pid: self.pid,
            cause: self.cause.clone(),
            age_ms: (now - self.spawned_at).as_millis() as u64,
            deadline_ms: self.deadline.filter(|_| exit.is_none()).map(|at| at.saturating_sub(now).as_millis() as u64),
            load: Load::default(),
            plugins: self.set.plugins.clone(),
            exit,
        }
    }
}

/// A generation as another program of this process goes on with it: it serves, or drains.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SavedGeneration {
    pub number: Generation,
    phase: Phase,
    pub set: SetId,
    cause: Cause,
    pid: Option<i32>,
    pub protocols: Option<Protocols>,
    spawned_at: Time,
    deadline: Option<Time>,
    replaced_by: Option<OpId>,
    drained: bool,
    deadlines: Option<Deadlines>,
    haste: Haste,
}

impl Gen {
    pub(super) fn save(&self) -> SavedGeneration {
        SavedGeneration {
            number: self.number,
            phase: self.phase,
            set: self.set.id,
            cause: self.cause.clone(),
            pid: self.pid,
            protocols: self.protocols,
            spawned_at: self.spawned_at,
            deadline: self.deadline,
            replaced_by: self.replaced_by,
            drained: self.drained,
            deadlines: self.deadlines,
            haste: self.haste,
        }
    }
}

impl SavedGeneration {
    pub(super) fn into_gen(self, set: Arc<SetInfo>) -> Gen {
        Gen {
            number: self.number,
            phase: self.phase,
            set,
            cause: self.cause,
            pid: self.pid,
            protocols: self.protocols,
            spawned_at: self.spawned_at,
            loaded_at: self.spawned_at,
            ready_at: self.spawned_at,
            deadline: self.deadline,
            loading: None,
            replaced_by: self.replaced_by,
            standby_until: self.spawned_at,
            back: None,
            drained: self.drained,
            deadlines: self.deadlines,
            haste: self.haste,
            unexpected: Unexpected::default(),
        }
    }
}
