//! Cold: what serves ends before its successor starts, for plugins that have what only one process can have. Connections
//! wait in the kernel meanwhile. If the successor fails, the set that served starts again, and only then is anybody answered.

use std::sync::Arc;
use std::time::Duration;

use super::generation::Phase;
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
        let all: Vec<(Generation, Phase, Option<Time>)> =
            self.generations.values().map(|entry| (entry.number, entry.phase, entry.deadline)).collect();
        for (generation, phase, deadline) in all {
            match phase {
                // There is no candidate: it is what would only have stood in.
                Phase::Starting | Phase::Loading | Phase::Proving => {
                    self.kill(generation, "a cold operation begins".into());
                }
                Phase::Serving | Phase::Standby => self.retire(generation),
                Phase::Retiring if longer(deadline) => self.retire(generation),
                Phase::Retiring => self.shorten_idle_of(generation),
                // On their way out; what may be about to accept was waited for.
                _ => {}
            }
        }
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
            running.stage = RunStage::Restoring { failure, started: false };
        }
    }

    pub(super) fn advance_restoring(&mut self) {
        let Some(Running { op, stage: RunStage::Restoring { started: false, .. } }) = &self.running else { return };
        let (Some(set), cause) = (self.set.clone(), op.cause.clone()) else { return };
        if !self.generations.is_empty() || self.is_stopping() {
            return;
        }
        self.spawn(set, cause);
        if let Some(Running { stage: RunStage::Restoring { started, .. }, .. }) = &mut self.running {
            *started = true;
        }
    }

    /// Something serves: if it was to replace what should have followed it, that is told now.
    pub(super) fn restored(&mut self, stopped: &Stopped) {
        if let Some(failure) = self.restoring() {
            self.tell_unserved(stopped);
            self.refuse(failure);
        }
    }

    /// Nor does what served start again. From here on it is as after any death: it is tried again.
    pub(super) fn not_restored(&mut self, why: &Failure) {
        let Some(mut failure) = self.restoring() else { return };
        let Some(stopped) = self.stopped.take() else { return };
        self.tell_unserved(&stopped);
        failure.error = format!("{}; and what served does not start again: failed to {}", failure.error, why.error);
        self.refuse(failure);
    }

    /// Why the operation failed for which the set that served is being started, alone.
    fn restoring(&self) -> Option<Failure> {
        match &self.running.as_ref()?.stage {
            RunStage::Restoring { failure, started: true } => Some(failure.clone()),
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
