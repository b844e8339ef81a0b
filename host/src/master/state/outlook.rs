//! What whoever started the master may expect: whether a change is under way, and when it is over at the latest.

use super::operations::{Operation, RunStage, Running};
use super::{Fallback, Phase, State, Time};
use crate::report::{Cause, OpId};

/// The latest moment of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Latest {
    At(Time),
    /// The operator has set no limit.
    Never,
}

impl State {
    /// The reload, rollback or restart that is under way or waits for its turn. The start is none.
    pub fn changing(&self) -> Option<OpId> {
        let running = self.running.as_ref().map(|running| &running.op);
        running.into_iter().chain(&self.waiting).find(|op| op.cause != Cause::Start).map(|op| op.id)
    }

    /// When the start, the change or the shutdown that is under way is over, if each step takes as long as it may. It moves
    /// only when a step is taken: what hangs is not waited for without end.
    pub fn outlook(&self) -> Option<Latest> {
        if let Some(stopping) = &self.stopping {
            let timeout = self.settings.shutdown.timeout.duration();
            let end = if stopping.begun { stopping.cut } else { timeout.map(|timeout| stopping.begins + timeout) };
            return Some(end.map_or(Latest::Never, Latest::At));
        }
        self.next_step().map(Latest::At)
    }

    fn next_step(&self) -> Option<Time> {
        let patience = self.settings.start_timeout;
        let candidate = self.candidate.and_then(|candidate| self.generations.get(&candidate));
        if let Some(deadline) = candidate.and_then(|candidate| candidate.deadline) {
            return Some(deadline);
        }
        match &self.running {
            Some(Running { stage: RunStage::Preparing { since }, .. }) => return Some(*since + patience),
            Some(Running { stage: RunStage::Pausing { old }, op }) => {
                let pausing = self.generations.get(old).and_then(|old| old.deadline);
                return Some(pausing.unwrap_or(op.asked + patience));
            }
            Some(Running { op, .. }) => return Some(op.asked + patience),
            None => {}
        }
        // A switch that waits since too many drain goes on when one of them has ended.
        let draining = self.generations.values().filter(|entry| entry.phase == Phase::Retiring);
        let room = draining.filter_map(|entry| entry.deadline).min().filter(|_| self.is_full());
        let waiting = |op: &Operation| room.unwrap_or(op.asked) + patience;
        let respawn = self.respawn.as_ref().map(|respawn| respawn.at);
        let fallback = self.fallback.as_ref().map(Fallback::at);
        self.waiting.as_ref().map(waiting).or(respawn.or(fallback).map(|at| at + patience))
    }
}
