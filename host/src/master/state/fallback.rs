//! What serves when a set cannot: one that died too often is given up and the last good one takes its place; so it is when the
//! first set of all cannot be started. With none left, a set without plugins answers 503. The addresses stay open throughout.

use std::sync::Arc;

use super::operations::{RunStage, Running};
use super::rollback::{Reason, Rollback};
use super::{Action, BadStart, Exit, Note, Respawn, SetInfo, State, Time};
use crate::master::handle::OpOptions;
use crate::report::{Cause, Failure, Generation, OpResult, Stage, Verb, Why};

/// What is to serve next, since nothing does.
#[derive(Clone, Debug)]
pub(super) enum Fallback {
    Good {
        back: Rollback,
        cause: Cause,
        at: Time,
    },
    /// No plugin at all.
    Empty {
        at: Time,
    },
}

impl Fallback {
    pub fn at(&self) -> Time {
        match self {
            Fallback::Good { at, .. } | Fallback::Empty { at } => *at,
        }
    }
}

impl State {
    /// One more death of the set that serves; whether it is one too many.
    pub(super) fn count_death(&mut self) -> bool {
        let (window, limit) = (self.settings.crash.window, self.settings.crash.limit);
        self.deaths.push_back(self.now);
        while self.deaths.front().is_some_and(|at| *at + window <= self.now) {
            self.deaths.pop_front();
        }
        self.deaths.len() >= limit
    }

    /// `bad` is given up: the next good set takes its place.
    pub(super) fn quarantine(&mut self, bad: &Arc<SetInfo>, of: Generation, why: String) {
        let good = self.past.good(Some(bad)).cloned();
        self.past.give_up(bad, good.as_deref(), Why::Quarantined);
        (self.row, self.respawn) = (0, None);
        self.deaths.clear();
        self.quarantines += 1;
        let number = good.as_ref().and_then(|good| self.past.number(good));
        self.note(Note::Quarantined { of, why: why.clone(), good: number });
        self.fallback = Some(match good {
            Some(target) => {
                self.alert = Some(format!("{why}: quarantined; the last good set serves instead"));
                let back =
                    Rollback { target, number, bad: Some(bad.clone()), with_config: false, reason: Reason::Crashed };
                Fallback::Good { back, cause: Cause::Crash { of }, at: self.now }
            }
            None => {
                self.alert =
                    Some(format!("{why}: quarantined, and no good set is left: every request is answered 503"));
                Fallback::Empty { at: self.now + self.settings.crash.hold }
            }
        });
    }

    /// The first set cannot be started.
    pub(super) fn bad_start(&mut self, failure: Failure) {
        let good = self.past.good(None).filter(|_| self.bad_start == BadStart::LastGood).cloned();
        match (self.bad_start, good) {
            (BadStart::ServeEmpty, _) => self.set = Some(Arc::new(SetInfo::empty(self.settings.clone()))),
            (_, Some(target)) => {
                let back = Rollback { target, number: None, bad: None, with_config: false, reason: Reason::BadStart };
                self.alert =
                    Some(format!("failed to start with the plugins as they are ({failure}): the last good set serves"));
                self.start_failure = Some(failure);
                self.fallback = Some(Fallback::Good { back, cause: Cause::Start, at: self.now });
            }
            (BadStart::Exit | BadStart::LastGood, _) => self.end(Exit::StartFailed(failure)),
        }
    }

    /// What should have taken the place of a bad set cannot be started either.
    pub(super) fn fallback_failed(&mut self, back: Rollback, cause: Cause, failure: &Failure) {
        match (back.reason, &cause) {
            (Reason::BadStart, _) => {
                let first = self.start_failure.take().unwrap_or_else(|| failure.clone());
                self.end(Exit::StartFailed(first));
            }
            // The machine's fault: it may work later.
            (Reason::Crashed, _) if failure.stage == Stage::Spawn => {
                let at = self.now + self.settings.crash.backoff_max;
                self.fallback = Some(Fallback::Good { back, cause, at });
            }
            (Reason::Crashed, Cause::Crash { of }) => {
                self.quarantine(
                    &back.target,
                    *of,
                    format!("the set before it could not be started: failed to {}", failure.error),
                );
            }
            _ => {}
        }
    }

    /// Whether something else than the set that died is to serve next.
    pub(super) fn is_falling_back(&self) -> bool {
        let under_way = |running: &Running| {
            running.op.back.as_ref().is_some_and(|back| matches!(back.reason, Reason::Crashed | Reason::BadStart))
        };
        self.fallback.is_some() || self.running.as_ref().is_some_and(under_way)
    }

    pub(super) fn advance_fallback(&mut self) {
        if self.serves_own() || self.is_stopping() || self.is_ending() {
            self.fallback = None;
        }
        // Somebody has said what is to serve, and it can begin now.
        let asked = !self.is_full() && self.waiting.as_ref().is_some_and(|waiting| waiting.back.is_some());
        let free = self.running.is_none() && self.candidate.is_none() && !asked;
        let Some(fallback) = self.fallback.take_if(|fallback| free && fallback.at() <= self.now) else { return };
        match fallback {
            Fallback::Empty { .. } => {
                // Whoever stood in is now what shall serve.
                let on_its_way = self.stand_in_on_its_way();
                self.set = Some(Arc::new(SetInfo::empty(self.settings.clone())));
                if on_its_way.is_some() || self.committed.is_some() {
                    self.candidate = on_its_way;
                    return;
                }
                let of = Generation(self.next_generation.saturating_sub(1));
                self.respawn = Some(Respawn { at: self.now, of });
            }
            Fallback::Good { back, cause, .. } => {
                let mut op = self.new_operation(Verb::Rollback, cause, OpOptions::default(), None);
                self.report_mut(op.id, |report| report.result = OpResult::Running);
                let source = back.source(self.set.as_ref());
                op.back = Some(back);
                self.act(Action::Prepare { op: op.id, cause: op.cause.clone(), source });
                self.running = Some(Running { op, stage: RunStage::Preparing { since: self.now } });
            }
        }
    }
}
