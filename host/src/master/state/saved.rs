//! What the supervisor hands on to another program in the same process: all that it knows and cannot find out anew. Times are
//! since the first program's start, and the clock goes on.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::generation::Gen;
use super::operations::{Operation, RunStage, Running};
use super::past::SavedPast;
use super::{BadStart, OpOptions, Respawn, SetId, SetInfo, Settings, State, Time};
use crate::report::{Cause, Failure, Generation, GenerationStatus, OpId, Report, Verb};

pub use super::generation::SavedGeneration;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Saved {
    now: Time,
    next_generation: u64,
    next_op: u64,
    pub generations: Vec<SavedGeneration>,
    history: Vec<GenerationStatus>,
    committed: Option<Generation>,
    pub set: Option<SetId>,
    respawn: Option<(Time, Generation)>,
    row: u32,
    deaths: Vec<Time>,
    alert: Option<String>,
    quarantines: u64,
    past: SavedPast,
    reports: Vec<Report>,
    switches: u64,
    crashes: u64,
    op: Option<SavedOperation>,
}

/// The restart itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct SavedOperation {
    id: OpId,
    cause: Cause,
    options: OpOptions,
    asked: Time,
}

/// What one program leaves to the next does not fit together.
#[derive(Debug, thiserror::Error)]
#[error("failed to find set {} among those that were handed on", .0.0)]
pub struct MissingSet(pub SetId);

/// Whether the program that was asked for runs now, or the one before again, and why.
pub type Outcome = Result<(), Failure>;

impl Saved {
    /// Since the first program's start.
    pub fn now(&self) -> Time {
        self.now
    }
}

impl State {
    /// While a restart is [`leaving`](State::leaving), or is tested: then what it would hand on.
    pub fn save(&self, now: Time) -> Saved {
        let saved = |op: &Operation| SavedOperation {
            id: op.id,
            cause: op.cause.clone(),
            options: op.options,
            asked: op.asked,
        };
        Saved {
            now: now.max(self.now),
            next_generation: self.next_generation,
            next_op: self.next_op,
            generations: self.generations.values().map(Gen::save).collect(),
            history: self.history.iter().cloned().collect(),
            committed: self.committed,
            set: self.set.as_ref().map(|set| set.id),
            respawn: self.respawn.as_ref().map(|respawn| (respawn.at, respawn.of)),
            row: self.row,
            deaths: self.deaths.iter().copied().collect(),
            alert: self.alert.clone(),
            quarantines: self.quarantines,
            past: self.past.save(),
            reports: self.reports.iter().cloned().collect(),
            switches: self.switches,
            crashes: self.crashes,
            op: self.running.as_ref().map(|running| saved(&running.op)),
        }
    }

    /// Goes on from what was saved, with its sets; the reload of the restart is due at the next step, unless it failed.
    pub fn resumed(
        settings: Settings,
        bad_start: BadStart,
        saved: Saved,
        sets: &BTreeMap<SetId, Arc<SetInfo>>,
        outcome: Outcome,
    ) -> Result<State, MissingSet> {
        // The loop makes that set only when it is to be started.
        let empty = Arc::new(SetInfo::empty(settings.clone()));
        let set = |id: SetId| match sets.get(&id) {
            None if id == empty.id => Ok(empty.clone()),
            found => found.cloned().ok_or(MissingSet(id)),
        };
        let mut state = State::new(settings, bad_start, super::Memory::default());
        for generation in saved.generations {
            let set = set(generation.set)?;
            state.generations.insert(generation.number, generation.into_gen(set));
        }
        state.now = saved.now;
        state.next_generation = saved.next_generation;
        state.next_op = saved.next_op;
        state.history = saved.history.into();
        state.committed = saved.committed;
        state.set = saved.set.map(set).transpose()?;
        if let Some(serving) = &state.set {
            state.settings = serving.settings.clone();
        }
        state.respawn = saved.respawn.map(|(at, of)| Respawn { at, of });
        state.row = saved.row;
        state.deaths = saved.deaths.into();
        state.alert = saved.alert;
        state.quarantines = saved.quarantines;
        state.past = saved.past.resume(sets);
        state.reports = saved.reports.into();
        state.switches = saved.switches;
        state.crashes = saved.crashes;
        let Some(SavedOperation { id, cause, options, asked }) = saved.op else { return Ok(state) };
        let op = Operation { id, verb: Verb::Reload, cause, options, back: None, callers: Vec::new(), asked };
        match outcome {
            Ok(()) => state.waiting = Some(op),
            Err(failure) => {
                // `refuse` is for what runs.
                state.running = Some(Running { op, stage: RunStage::Leaving });
                state.refuse(failure);
            }
        }
        Ok(state)
    }
}
