//! Who answers while what shall serve does not come up, be it that its init hangs or that a wait between two attempts is long:
//! after `crash.hold` without a generation that serves, one with the set without plugins says 503. It stands beside the
//! candidate and is never in its way; it goes when the candidate serves. Nothing is counted of it, and nothing put down to it.

use std::sync::Arc;

use super::operations::{RunStage, Running};
use super::{Note, Phase, SetId, SetInfo, State, Time};
use crate::report::{Cause, Generation};

impl State {
    /// Whether a generation with `set` only stands in for another.
    pub(super) fn is_stand_in(&self, set: SetId) -> bool {
        set == SetId::EMPTY && self.set.as_ref().is_some_and(|own| own.id != SetId::EMPTY)
    }

    /// Those that have not been told to go.
    fn stand_ins(&self) -> Vec<(Generation, Phase)> {
        let living = self.generations.values().filter(|entry| entry.phase < Phase::Retiring);
        living.filter(|entry| self.is_stand_in(entry.set.id)).map(|entry| (entry.number, entry.phase)).collect()
    }

    /// One that does not serve yet.
    pub(super) fn stand_in_on_its_way(&self) -> Option<Generation> {
        self.stand_ins().into_iter().find(|(_, phase)| *phase <= Phase::Committing).map(|(generation, _)| generation)
    }

    /// Those that make room for a successor.
    pub(super) fn stand_ins_paused(&self) -> Vec<Generation> {
        let paused = |(generation, phase)| (phase == Phase::Pausing).then_some(generation);
        self.stand_ins().into_iter().filter_map(paused).collect()
    }

    /// Whether what shall serve does.
    pub(super) fn serves_own(&self) -> bool {
        let committed = self.committed.and_then(|committed| self.generations.get(&committed));
        committed.is_some_and(|entry| !self.is_stand_in(entry.set.id))
    }

    /// When one is due, should nothing serve until then.
    pub(super) fn stand_in_due(&self) -> Option<Time> {
        let wanted = self.set.as_ref().is_some_and(|own| own.id != SetId::EMPTY)
            && self.stopping.is_none()
            && !self.is_ending()
            && self.leaving().is_none()
            // A cold operation is at it, and has its own deadlines.
            && self.stopped.is_none()
            && self.stand_ins().is_empty()
            // It serves in a moment, or is given up in one.
            && self.candidate.is_none_or(|candidate| self.phase(candidate) != Some(Phase::Committing));
        self.down.filter(|_| wanted).map(|since| since + self.settings.crash.hold)
    }

    pub(super) fn advance_stand_in(&mut self) {
        if self.committed.is_some() {
            self.down = None;
            return;
        }
        self.down.get_or_insert(self.now);
        if self.stand_in_due().is_some_and(|at| at <= self.now) {
            // Should it fail, another is tried after as long.
            self.down = Some(self.now);
            let of = Generation(self.next_generation.saturating_sub(1));
            self.start(Arc::new(SetInfo::empty(self.settings.clone())), Cause::Crash { of });
        }
    }

    /// A stand-in is ready; whether it is still wanted.
    pub(super) fn wants_stand_in(&self) -> bool {
        let committing = self.candidate.is_some_and(|candidate| self.phase(candidate) == Some(Phase::Committing));
        self.committed.is_none() && !committing
    }

    /// A stand-in serves.
    pub(super) fn stand_in(&mut self, generation: Generation) {
        if self.committed.is_some() {
            return self.retire(generation);
        }
        self.enter(generation, Phase::Serving, None);
        self.committed = Some(generation);
        self.note(Note::StandsIn { generation });
    }

    /// `by` serves, which is what shall: those that stood in go.
    pub(super) fn dismiss_stand_ins(&mut self, stand_ins: Vec<(Generation, Phase)>, by: Generation) {
        // Whoever asked for the switch is answered when it accepts no more.
        let awaited = match &self.running {
            Some(Running { stage: RunStage::Pausing { old }, .. }) => Some(*old),
            _ => None,
        };
        for (generation, phase) in stand_ins {
            if phase < Phase::Committing {
                self.kill(generation, format!("generation {by} serves"));
            } else if awaited != Some(generation) {
                self.retire(generation);
            }
        }
    }

    /// Those that go when the next generation commits.
    pub(super) fn stand_ins_before(&self, next: Generation) -> Vec<(Generation, Phase)> {
        self.stand_ins().into_iter().filter(|(generation, _)| *generation != next).collect()
    }
}
