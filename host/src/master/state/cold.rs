//! Cold: what serves ends before its successor starts, for plugins that have what only one process can have. Connections
//! wait in the kernel meanwhile. If the successor fails, the set that served starts again, and only then is anybody answered.

use std::sync::Arc;
use std::time::Duration;

use super::generation::{Gen, Phase};
use super::operations::{RunStage, Running};
use super::switch::ms;
use super::{SetInfo, State, Time};
use crate::control::EXIT_TIMEOUT;
use crate::report::{Cause, Failure, Generation};

/// A cold operation has stopped what served, and nothing has taken its place yet.
#[derive(Clone, Debug)]
pub(super) struct Stopped {
    /// What served, if it had not died.
    pub from: Option<Generation>,
    pub set: Option<Arc<SetInfo>>,
    since: Time,
    /// When what is left of it ends.
    pub cut: Option<Time>,
    pub cause: Cause,
}

impl Stopped {
    /// For how long nothing has accepted.
    pub fn unserved_ms(&self, now: Time) -> f64 {
        ms(now - self.since)
    }
}

impl State {
    /// Whether the set that is prepared may be started: at once, or once all that ran has ended.
    pub(super) fn makes_way(&mut self) -> bool {
        let Some(Running { op, .. }) = &self.running else { return false };
        if self.stopped.is_none() {
            if !op.options.cold || self.generations.is_empty() {
                return true;
            }
            // Whether it will serve is known in a moment.
            let unsettled = [Phase::Committing, Phase::Resuming, Phase::Pausing];
            if unsettled.into_iter().any(|phase| self.count(phase) > 0) {
                return false;
            }
            let (id, cause, from) = (op.id, op.cause.clone(), self.serving());
            let cut = self.settings.shutdown.timeout.duration().map(|timeout| self.now + timeout);
            self.stopped = Some(Stopped { from, set: self.set.clone(), since: self.now, cut, cause });
            if let Some(entry) = from.and_then(|from| self.generations.get_mut(&from)) {
                entry.replaced_by = Some(id);
            }
            self.stop_all();
        }
        self.generations.is_empty()
    }

    /// All that runs shall end, older ones too: they may have what the next one needs.
    fn stop_all(&mut self) {
        let most = self.drain_deadlines().max_ms.map(|max| self.now + Duration::from_millis(max) + EXIT_TIMEOUT);
        let longer = |deadline: Option<Time>| most.is_some_and(|most| deadline.is_none_or(|deadline| deadline > most));
        let stop = |entry: &&Gen| match entry.phase {
            Phase::Serving | Phase::Standby => true,
            Phase::Retiring => longer(entry.deadline),
            _ => false,
        };
        let stopped: Vec<Generation> = self.generations.values().filter(stop).map(|entry| entry.number).collect();
        stopped.into_iter().for_each(|generation| self.retire(generation));
        // There is no candidate: it is what would only have stood in.
        let coming = self.generations.values().filter(|entry| entry.phase < Phase::Committing);
        let coming: Vec<Generation> = coming.map(|entry| entry.number).collect();
        coming.into_iter().for_each(|generation| self.kill(generation, "a cold operation begins".into()));
        self.committed = None;
    }

    /// Whether what was stopped is some operation's business.
    pub(super) fn is_replacing(&self) -> bool {
        self.stopped.is_some() && (self.running.is_some() || self.waiting.is_some() || !self.generations.is_empty())
    }

    /// Whether the running operation has failed with nothing left that serves.
    pub(super) fn must_restore(&self) -> bool {
        let serves_again =
            self.running.as_ref().is_some_and(|running| !matches!(running.stage, RunStage::Restoring { .. }));
        self.stopped.is_some() && self.set.is_some() && serves_again && !self.is_stopping() && !self.is_ending()
    }

    /// What served shall serve again; the failure is told then.
    pub(super) fn restore(&mut self, failure: Failure) {
        if let Some(running) = &mut self.running {
            running.stage = RunStage::Restoring { failure, generation: None };
        }
    }

    pub(super) fn advance_restoring(&mut self) {
        let Some(Running { op, stage: RunStage::Restoring { generation: None, .. } }) = &self.running else { return };
        let (Some(set), cause) = (self.set.clone(), op.cause.clone()) else { return };
        if !self.generations.is_empty() || self.is_stopping() {
            return;
        }
        let number = self.spawn(set, cause);
        if let Some(Running { stage: RunStage::Restoring { generation, .. }, .. }) = &mut self.running {
            *generation = Some(number);
        }
    }

    /// `generation` serves: if it was to replace what should have followed it, that is told now.
    pub(super) fn restored(&mut self, generation: Generation, stopped: &Stopped) {
        if let Some(failure) = self.restoring(generation) {
            self.tell_unserved(stopped);
            self.refuse(failure);
        }
    }

    /// Nor does what served start again. From here on it is as after any death: it is tried again.
    pub(super) fn not_restored(&mut self, generation: Generation, why: &Failure) {
        let Some(mut failure) = self.restoring(generation) else { return };
        let Some(stopped) = self.stopped.take() else { return };
        self.tell_unserved(&stopped);
        failure.error = format!("{}; and what served does not start again: failed to {}", failure.error, why.error);
        self.refuse(failure);
    }

    /// Why the operation failed for which `generation` starts the set that served.
    fn restoring(&self, generation: Generation) -> Option<Failure> {
        match &self.running.as_ref()?.stage {
            RunStage::Restoring { failure, generation: Some(one) } if *one == generation => Some(failure.clone()),
            _ => None,
        }
    }

    fn tell_unserved(&mut self, stopped: &Stopped) {
        let unserved = stopped.unserved_ms(self.now);
        if let Some(Running { op, .. }) = &self.running {
            let id = op.id;
            self.report_mut(id, |report| report.unserved_ms = Some(unserved));
        }
    }
}
