//! Restart in place: another program takes this process over, with its sockets and children, and goes on from here. The
//! supervisor waits until nothing is on its way, has the program tested, answers who asked, and says when; what it then
//! hands on is in [`saved`](super::saved). The reload that follows is the next program's first deed, under the same number.

use super::operations::{Operation, RunStage, Running};
use super::{Action, Caller, Phase, State, TestId};
use crate::master::handle::OpOptions;
use crate::report::{Cause, Failure, OpId, Verb};

impl State {
    pub(super) fn restart_asked(&mut self, cause: Cause, options: OpOptions, caller: Option<Caller>) {
        // One that has not begun will look at the binary later than this; one that has, has looked already.
        if let Some(waiting) = self.waiting.as_mut().filter(|waiting| waiting.verb == Verb::Restart)
            && self.stopping.is_none()
        {
            waiting.options.join(options);
            return waiting.callers.extend(caller);
        }
        let op = self.new_operation(Verb::Restart, cause, options, caller);
        if let Some(by) = self.not_now(Verb::Restart) {
            return self.superseded(op, by);
        }
        if let Some(reload) = self.waiting.take() {
            self.superseded(reload, op.id);
        }
        self.waiting = Some(op);
        if self.is_ending() {
            self.refuse_everybody();
        }
    }

    /// The operation that keeps one of `verb` from being taken: a shutdown, one under way to another program, or one of
    /// higher priority that waits.
    pub(super) fn not_now(&self, verb: Verb) -> Option<OpId> {
        let stopping = self.stopping.as_ref().map(|stopping| stopping.op);
        let waiting = self.waiting.as_ref().filter(|waiting| waiting.verb > verb).map(|waiting| waiting.id);
        stopping.or(self.leaving()).or(waiting)
    }

    /// The restart for which the program is to change now.
    pub fn leaving(&self) -> Option<OpId> {
        match &self.running {
            Some(Running { op, stage: RunStage::Leaving }) => Some(op.id),
            _ => None,
        }
    }

    /// Why another program cannot take over at the moment, if so: it takes over what serves and what drains, and nothing
    /// that is on its way. A shutdown needs no mention: no restart is left once one was asked for.
    pub(super) fn unrest(&self) -> Option<&'static str> {
        let settled = |phase| matches!(phase, Phase::Serving | Phase::Retiring | Phase::Leaving | Phase::Killed);
        if self.is_falling_back() || self.start_failure.is_some() {
            return Some("the last good set is on its way");
        }
        if self.candidate.is_some() {
            return Some("another generation is on its way");
        }
        if !self.generations.values().all(|entry| settled(entry.phase)) {
            return Some("a generation is on probation");
        }
        (!self.cuts.is_empty()).then_some("a cut is under way")
    }

    /// Whether the loop may hand over now what it was told to.
    pub fn may_leave(&self, op: OpId) -> bool {
        self.leaving() == Some(op) && self.unrest().is_none()
    }

    pub(super) fn begin_restart(&mut self, op: Operation) {
        self.test = TestId(self.test.0 + 1);
        self.act(Action::Test { op: op.id, test: self.test });
        self.running = Some(Running { op, stage: RunStage::Testing { test: self.test } });
    }

    /// What the test of the program at the configured path said.
    pub(super) fn tested(&mut self, id: TestId, result: Result<(), Failure>) {
        let of = |running: &&mut Running| matches!(running.stage, RunStage::Testing { test } if test == id);
        // One that was superseded meanwhile is answered already; one that gave way has another test now.
        let Some(running) = self.running.as_mut().filter(of) else { return };
        match result {
            Err(failure) => self.refuse(failure),
            Ok(()) => {
                running.stage = RunStage::Tested;
                let id = running.op.id;
                // Nobody is left to be answered when the program has changed.
                for caller in std::mem::take(&mut running.op.callers) {
                    self.answer_with(id, Some(caller));
                }
            }
        }
    }

    /// The program has not changed after all; nothing did.
    pub(super) fn stayed(&mut self, id: OpId, failure: Option<Failure>) {
        let Some(running) = self.running.as_mut().filter(|running| running.op.id == id) else { return };
        match failure {
            Some(failure) => self.refuse(failure),
            // Something began meanwhile; then again, once it is over.
            None => running.stage = RunStage::Tested,
        }
    }

    /// What is to serve since nothing does comes first; then again from the test on.
    pub(super) fn restart_gives_way(&mut self) {
        // One that was told to leave says first that it stays: it finds the unrest itself.
        let restarts = |running: &mut Running| matches!(running.stage, RunStage::Testing { .. } | RunStage::Tested);
        if self.fallback.is_none() {
            return;
        }
        let Some(Running { op, .. }) = self.running.take_if(restarts) else { return };
        if let Some(waiting) = self.waiting.take() {
            self.superseded(waiting, op.id);
        }
        self.report_mut(op.id, |report| report.result = crate::report::OpResult::Queued);
        self.waiting = Some(op);
    }

    /// Says when it is time.
    pub(super) fn advance_restart(&mut self) {
        if self.unrest().is_some() {
            return;
        }
        let Some(Running { op, stage }) = &mut self.running else { return };
        if !matches!(stage, RunStage::Tested) {
            return;
        }
        *stage = RunStage::Leaving;
        let id = op.id;
        if let Some(waiting) = self.waiting.take() {
            self.superseded(waiting, id);
        }
        self.act(Action::Leave { op: id });
    }
}
