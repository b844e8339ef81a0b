//! The two operation slots, running and waiting; callers, answers and reports.

use std::sync::Arc;

use super::generations::ms;
use super::{Action, BadStart, Caller, Exit, Note, Phase, REPORTS, SetInfo, State, Time};
use crate::master::handle::OpOptions;
use crate::report::{
    Cause, Failure, Generation, OpId, OpResult, PluginChanges, PluginStatus, Report, Stage, Timings, Verb,
};

/// Somebody's wish, before and while it is carried out.
#[derive(Clone, Debug)]
pub(super) struct Operation {
    pub id: OpId,
    pub cause: Cause,
    pub options: OpOptions,
    pub callers: Vec<Caller>,
    pub asked: Time,
}

/// The operation under way.
#[derive(Clone, Debug)]
pub(super) struct Running {
    pub op: Operation,
    pub stage: RunStage,
}

#[derive(Clone, Debug)]
pub(super) enum RunStage {
    /// The files are being read.
    Preparing { since: Time },
    /// Waits for a respawn under way to end: there is one candidate at a time.
    Prepared { set: Arc<SetInfo>, snapshot_ms: f64 },
    /// `generation` is the candidate.
    Starting { generation: Generation, snapshot_ms: f64 },
    /// Committed; `old` is asked to pause. Answered when it accepts no more.
    Pausing { old: Generation },
}

impl Running {
    /// The set that it is about to start.
    pub fn prepared(&self) -> Option<&Arc<SetInfo>> {
        match &self.stage {
            RunStage::Prepared { set, .. } => Some(set),
            _ => None,
        }
    }
}

impl State {
    pub(super) fn new_operation(
        &mut self,
        verb: Verb,
        cause: Cause,
        options: OpOptions,
        caller: Option<Caller>,
    ) -> Operation {
        let id = OpId(self.next_op);
        self.next_op += 1;
        self.reports.push_back(Report::new(id, verb, cause.clone()));
        self.forget_reports();
        Operation { id, cause, options, callers: caller.into_iter().collect(), asked: self.now }
    }

    /// Drops the oldest report that nobody still writes to.
    fn forget_reports(&mut self) {
        if self.reports.len() > REPORTS {
            let busy = |report: &Report| {
                matches!(report.result, OpResult::Queued | OpResult::Running | OpResult::ShuttingDown)
            };
            if let Some(oldest) = self.reports.iter().position(|report| !busy(report)) {
                self.reports.remove(oldest);
            }
        }
    }

    pub(super) fn reload_asked(&mut self, cause: Cause, options: OpOptions, caller: Option<Caller>) {
        if let Some(by) = self.stopping.as_ref().map(|stopping| stopping.op) {
            let op = self.new_operation(Verb::Reload, cause, options, caller);
            return self.superseded(op, by);
        }
        if self.is_ending() {
            let op = self.new_operation(Verb::Reload, cause, options, caller);
            self.waiting = Some(op);
            return self.refuse_everybody();
        }
        // Whoever waits has not begun, so its snapshot will be younger than this request: one reload covers both.
        if let Some(waiting) = &mut self.waiting {
            waiting.callers.extend(caller);
            waiting.options.allow_empty |= options.allow_empty;
            return;
        }
        let op = self.new_operation(Verb::Reload, cause, options, caller);
        self.waiting = Some(op);
    }

    /// Starts what can be started.
    pub(super) fn advance_operations(&mut self) {
        if self.is_ending() {
            return;
        }
        if let Some(Running { stage: RunStage::Prepared { .. }, .. }) = &self.running
            && self.candidate.is_none()
        {
            self.start_prepared();
        }
        if self.running.is_some() {
            return self.explain_waiting("another operation is running");
        }
        if self.stopping.is_some() {
            return;
        }
        if self.is_full() {
            if self.waiting.is_some() {
                self.make_room();
            }
            return self.explain_waiting("draining full");
        }
        let Some(op) = self.waiting.take() else { return };
        self.report_mut(op.id, |report| {
            report.result = OpResult::Running;
            report.queued = None;
        });
        if op.cause != Cause::Start {
            self.note(Note::Reloading { op: op.id, cause: op.cause.clone() });
        }
        self.act(Action::Prepare { op: op.id, cause: op.cause.clone() });
        self.running = Some(Running { op, stage: RunStage::Preparing { since: self.now } });
    }

    /// Whether as many generations drain as may.
    pub(super) fn is_full(&self) -> bool {
        self.count(Phase::Retiring) >= self.settings.max_draining
    }

    fn explain_waiting(&mut self, why: &str) {
        if let Some(waiting) = &self.waiting {
            let id = waiting.id;
            self.report_mut(id, |report| report.queued = Some(why.into()));
        }
    }

    pub(super) fn prepared(&mut self, id: OpId, result: Result<Arc<SetInfo>, Failure>) {
        // An operation that was superseded meanwhile is answered already.
        let Some(running) = self.running.as_mut().filter(|running| running.op.id == id) else { return };
        let RunStage::Preparing { since } = running.stage else { return };
        let empties = self.set.as_ref().is_some_and(|set| !set.plugins.is_empty());
        let (cause, options) = (&running.op.cause, running.op.options);
        let set = match result {
            Ok(set) if set.plugins.is_empty() && empties && !options.allow_empty && *cause != Cause::Start => {
                let failure = Failure::new(Stage::Snapshot, "found no plugin at all: what serves now would be gone")
                    .hint("put a plugin into the plugin folder, or ask again with --allow-empty");
                return self.refuse(failure);
            }
            Ok(set) => set,
            Err(failure) => return self.refuse(failure),
        };
        running.stage = RunStage::Prepared { set, snapshot_ms: ms(self.now - since) };
    }

    fn start_prepared(&mut self) {
        let Some(Running { op, stage: RunStage::Prepared { set, snapshot_ms } }) = &self.running else { return };
        let (cause, set, snapshot_ms) = (op.cause.clone(), set.clone(), *snapshot_ms);
        let generation = self.spawn(set, cause);
        if let Some(running) = &mut self.running {
            running.stage = RunStage::Starting { generation, snapshot_ms };
        }
    }

    /// The running operation ends without a switch.
    pub(super) fn refuse(&mut self, failure: Failure) {
        let Some(Running { op, .. }) = self.running.take() else { return };
        let serving = self.serving();
        self.note(Note::Refused { op: op.id, failure: failure.clone(), serving });
        let at_start = op.cause == Cause::Start;
        self.report_mut(op.id, |report| {
            let failure = failure.clone();
            report.result = OpResult::Refused;
            report.stage = Some(failure.stage);
            report.plugin = failure.plugin;
            report.error = Some(failure.error);
            report.hint = failure.hint;
            report.detail = failure.detail;
            report.serving = serving;
        });
        self.answer_all(op);
        if at_start && self.set.is_none() {
            match self.bad_start {
                BadStart::Exit => self.end(Exit::StartFailed(failure)),
                BadStart::ServeEmpty => {
                    self.set = Some(Arc::new(SetInfo {
                        id: super::SetId(0),
                        plugins: Vec::new(),
                        settings: self.settings.clone(),
                    }));
                }
            }
        }
    }

    /// The running operation's generation serves.
    pub(super) fn switched(&mut self, generation: Generation, from: Option<Generation>) {
        let Some(Running { op, stage: RunStage::Starting { snapshot_ms, .. } }) = self.running.take() else { return };
        let new = &self.generations[&generation];
        let timings = Timings {
            snapshot: snapshot_ms,
            load: ms(new.loaded_at - new.spawned_at),
            prove: ms(new.ready_at - new.loaded_at),
            switch: ms(self.now - new.ready_at),
            total: ms(self.now - op.asked),
        };
        let before = from.and_then(|from| self.generations.get(&from)).map(|old| &old.set);
        let plugins = changes(before.map_or(&[][..], |set| &set.plugins), &new.set.plugins);
        let (pid, cause) = (new.pid, op.cause.clone());
        self.report_mut(op.id, |report| {
            report.result = OpResult::Switched;
            report.generation = Some(generation);
            report.from = from;
            report.pid = pid;
            report.ms = Some(timings);
            report.plugins = Some(plugins);
        });
        self.note(Note::Committed { generation, from, total_ms: timings.total, cause });
        match from.and_then(|old| self.generations.get_mut(&old)) {
            // Until PAUSED a new connection may still be the old one's: whoever was told before would see the old code.
            Some(old) => {
                old.replaced_by = Some(op.id);
                let old = old.number;
                self.running = Some(Running { op, stage: RunStage::Pausing { old } });
            }
            None => drop(self.answer_all(op)),
        }
    }

    /// The old generation accepts no more, or is gone, or accepts again: the callers of its switch have their answer.
    pub(super) fn end_pause(&mut self, generation: Generation) {
        let over = |running: &mut Running| matches!(running.stage, RunStage::Pausing { old } if old == generation);
        if let Some(Running { op, .. }) = self.running.take_if(over) {
            self.answer_all(op);
        }
    }

    /// `candidate` will not be started now: its operation waits again, and begins anew.
    pub(super) fn put_back(&mut self, candidate: Generation) {
        let of = |running: &mut Running| matches!(running.stage, RunStage::Starting { generation, .. } if generation == candidate);
        let Some(Running { mut op, .. }) = self.running.take_if(of) else { return };
        match &mut self.waiting {
            // It has not begun either, and was asked later.
            Some(waiting) => {
                let by = waiting.id;
                waiting.callers.append(&mut op.callers);
                waiting.options.allow_empty |= op.options.allow_empty;
                self.superseded(op, by);
            }
            None => {
                self.report_mut(op.id, |report| report.result = OpResult::Queued);
                self.waiting = Some(op);
            }
        }
    }

    /// A shutdown takes the place of all that has not been committed.
    pub(super) fn supersede_all(&mut self, by: OpId) {
        if let Some(waiting) = self.waiting.take() {
            self.superseded(waiting, by);
        }
        let committing = self.candidate.is_some_and(|candidate| self.phase(candidate) == Some(Phase::Committing));
        let superseded = match &self.running {
            Some(Running { stage: RunStage::Preparing { .. } | RunStage::Prepared { .. }, .. }) => true,
            Some(Running { stage: RunStage::Starting { .. }, .. }) => !committing,
            _ => false,
        };
        if superseded && let Some(Running { op, stage }) = self.running.take() {
            if let RunStage::Starting { generation, .. } = stage {
                self.kill(generation, "superseded by a shutdown".into());
            }
            self.superseded(op, by);
        }
    }

    fn superseded(&mut self, op: Operation, by: OpId) {
        let serving = self.serving();
        self.report_mut(op.id, |report| {
            report.result = OpResult::Superseded;
            report.superseded_by = Some(by);
            report.serving = serving;
        });
        self.answer_all(op);
    }

    /// Nobody is left without an answer when the master ends.
    pub(super) fn refuse_everybody(&mut self) {
        let running = self.running.take().map(|running| running.op);
        for op in running.into_iter().chain(self.waiting.take()) {
            self.report_mut(op.id, |report| {
                if matches!(report.result, OpResult::Queued | OpResult::Running) {
                    report.result = OpResult::Refused;
                    report.error = Some("finish: the master has ended".into());
                }
            });
            self.answer_all(op);
        }
    }

    pub(super) fn answer_all(&mut self, mut op: Operation) -> Operation {
        for caller in std::mem::take(&mut op.callers) {
            self.answer_with(op.id, Some(caller));
        }
        op
    }

    pub(super) fn answer_with(&mut self, op: OpId, caller: Option<Caller>) {
        let (Some(caller), Some(report)) = (caller, self.report(op).cloned()) else { return };
        self.act(Action::Answer { caller, report: Box::new(report) });
    }

    pub(super) fn report_mut(&mut self, op: OpId, change: impl FnOnce(&mut Report)) {
        if let Some(report) = self.reports.iter_mut().find(|report| report.op == op) {
            change(report);
        }
    }
}

/// What differs between two sets.
fn changes(old: &[PluginStatus], new: &[PluginStatus]) -> PluginChanges {
    let mut changes = PluginChanges::default();
    for plugin in new {
        let list = match old.iter().find(|before| before.name == plugin.name) {
            None => &mut changes.added,
            Some(before) if before == plugin => &mut changes.unchanged,
            Some(_) => &mut changes.changed,
        };
        list.push(plugin.name.clone());
    }
    let gone = old.iter().filter(|before| !new.iter().any(|plugin| plugin.name == before.name));
    changes.removed = gone.map(|plugin| plugin.name.clone()).collect();
    changes
}
