//! The two operation slots, running and waiting; callers, answers and reports.

use std::sync::Arc;

use super::cold::Stopped;
use super::fallback::Fallback;
use super::past::PastSets;
use super::rollback::{Reason, Rollback, refused};
use super::switch::ms;
use super::{Action, Caller, Note, Phase, REPORTS, SetId, SetInfo, Source, State, TestId, Time};
use crate::config::same_plugin;
use crate::master::handle::OpOptions;
use crate::report::{
    Cause, Change, Failure, Generation, OpId, OpResult, PluginChanges, PluginStatus, Report, Stage, Timings, Verb, Why,
};

/// Somebody's wish, before and while it is carried out.
#[derive(Clone, Debug)]
pub(super) struct Operation {
    pub id: OpId,
    /// What is left to do of it.
    pub verb: Verb,
    pub cause: Cause,
    pub options: OpOptions,
    /// What it goes back to; a reload if nothing.
    pub back: Option<Rollback>,
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
    /// Waits for a respawn under way to end: there is one candidate at a time; or, if cold, for the end of all that ran.
    Prepared { set: Arc<SetInfo>, snapshot_ms: f64 },
    /// `generation` is the candidate.
    Starting { generation: Generation, snapshot_ms: f64 },
    /// The binary that is to take this process over is being tested.
    Testing { test: TestId },
    /// It may.
    Tested,
    /// The loop was told to let it.
    Leaving,
    /// It has failed with nothing left that serves: the set that did starts again, once all else has ended.
    Restoring { failure: Failure, started: bool },
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
        Operation { id, verb, cause, options, back: None, callers: caller.into_iter().collect(), asked: self.now }
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
        if let Some(by) = self.not_now(Verb::Reload) {
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
            waiting.options.join(options);
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
            && self.saving.is_none()
            // One may have begun by itself in the delay of a shutdown.
            && !self.is_stopping()
            // Rolled back by what was counted, which no operation waits for: with a third, three would accept.
            && self.find(Phase::Pausing).is_none()
            && self.makes_way()
        {
            self.start_prepared();
        }
        self.advance_restoring();
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
        if self.waiting.as_ref().is_some_and(|waiting| waiting.verb == Verb::Restart)
            && let Some(why) = self.unrest()
        {
            return self.explain_waiting(why);
        }
        let Some(op) = self.waiting.take() else { return };
        self.report_mut(op.id, |report| {
            report.result = OpResult::Running;
            report.queued = None;
        });
        if op.cause != Cause::Start {
            self.note(Note::Reloading { op: op.id, cause: op.cause.clone() });
        }
        if op.verb == Verb::Restart {
            return self.begin_restart(op);
        }
        let source = match &op.back {
            Some(back) => back.source(self.set.as_ref()),
            None => self.files(&op),
        };
        self.act(Action::Prepare { op: op.id, cause: op.cause.clone(), source });
        self.begin_saving();
        self.running = Some(Running { op, stage: RunStage::Preparing { since: self.now } });
    }

    /// Whether as many generations drain as may.
    pub(super) fn is_full(&self) -> bool {
        self.count(Phase::Retiring) >= self.settings.max_draining
    }

    fn files(&self, op: &Operation) -> Source {
        let instead = self.past.good(None);
        // At a start with nothing else to serve, what was given up is better than nothing.
        let forced = op.options.force || (op.cause == Cause::Start && instead.is_none());
        let held = if forced { Vec::new() } else { self.past.held().cloned().collect() };
        Source::Files { held, instead: instead.map(|set| set.id) }
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
        let serving = self.set.clone();
        let (cause, options) = (&running.op.cause, running.op.options);
        let may_empty = options.allow_empty || *cause == Cause::Start;
        let goes_back = running.op.back.is_some();
        let set = match result {
            Ok(set)
                if let Some(failure) =
                    serving.and_then(|old| emptied(&old, &set, goes_back)).filter(|_| !may_empty) =>
            {
                return self.refuse(failure);
            }
            Ok(set) if running.op.back.is_none() && !options.force => {
                let serving = self.set.as_ref().filter(|_| *cause != Cause::Start).map(|set| &set.sha256);
                // The same set under another program is news enough.
                let verb = self.reports.iter().find(|report| report.op == id).map(|report| report.verb);
                let nothing = || nothing_new(&set, &self.past, serving?).filter(|_| verb != Some(Verb::Restart));
                match serving.and_then(|_| given_up(&set, &self.past)).or_else(nothing) {
                    Some(failure) => return self.refuse(failure),
                    None => set,
                }
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
        if self.must_restore() {
            return self.restore(failure);
        }
        let Some(Running { op, .. }) = self.running.take() else { return };
        let serving = self.serving();
        self.note(Note::Refused { op: op.id, failure: failure.clone(), serving });
        self.report_mut(op.id, |report| refused(report, &failure, serving));
        let op = self.answer_all(op);
        match op.back.filter(|back| back.reason != Reason::Asked) {
            Some(back) => self.fallback_failed(back, op.cause, &failure),
            // Nothing has ever served: it was the start.
            None if self.set.is_none() => self.bad_start(failure),
            None => {}
        }
    }

    /// The running operation's generation serves.
    pub(super) fn switched(&mut self, generation: Generation, from: Option<Generation>, stopped: Option<&Stopped>) {
        let Some(Running { op, stage: RunStage::Starting { snapshot_ms, .. } }) = self.running.take() else { return };
        let new = &self.generations[&generation];
        let timings = Timings {
            snapshot: snapshot_ms,
            load: ms(new.loaded_at - new.spawned_at),
            prove: ms(new.ready_at - new.loaded_at),
            switch: ms(self.now - new.ready_at),
            total: ms(self.now - op.asked),
        };
        let replaced = match stopped {
            Some(stopped) => stopped.set.clone(),
            None => from.and_then(|from| self.generations.get(&from)).map(|old| old.set.clone()),
        };
        let plugins = changes(replaced.as_ref().map_or(&[][..], |set| &set.plugins), &new.set.plugins);
        // Before the first set, and beside the one without plugins, everything is new.
        let old = replaced.as_ref().filter(|old| old.id != SetId::EMPTY);
        let config = old.map(|old| old.facts.changes(&new.set.facts)).filter(|changes| !changes.is_empty());
        let unserved = stopped.map(|stopped| stopped.unserved_ms(self.now));
        let served = from.or(stopped.and_then(|stopped| stopped.from));
        let (pid, cause, held) = (new.pid, op.cause.clone(), new.set.held.clone());
        self.report_mut(op.id, |report| {
            report.result = OpResult::Switched;
            report.generation = Some(generation);
            report.from = served;
            report.unserved_ms = unserved;
            report.pid = pid;
            report.ms = Some(timings);
            report.plugins = Some(plugins);
            report.config = config;
            report.held = held;
        });
        self.note(Note::Committed { generation, from: served, total_ms: timings.total, cause });
        match &op.back {
            Some(back) => self.went_back(back, generation, replaced),
            None => self.took(generation),
        }
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
                waiting.options.join(op.options);
                self.superseded(op, by);
            }
            None => {
                self.report_mut(op.id, |report| report.result = OpResult::Queued);
                self.waiting = Some(op);
            }
        }
    }

    /// A shutdown or a rollback takes the place of all that has not been committed.
    pub(super) fn supersede_all(&mut self, by: OpId) {
        if let Some(waiting) = self.waiting.take() {
            self.superseded(waiting, by);
        }
        let committing = self.candidate.is_some_and(|candidate| self.phase(candidate) == Some(Phase::Committing));
        let superseded = match &self.running {
            Some(Running { stage: RunStage::Starting { .. }, .. }) => !committing,
            // What was committed, or what is nearly over, is not undone.
            Some(Running { stage: RunStage::Pausing { .. } | RunStage::Restoring { .. }, .. }) | None => false,
            Some(_) => true,
        };
        if superseded && let Some(Running { op, stage }) = self.running.take() {
            if let RunStage::Starting { generation, .. } = stage {
                self.kill(generation, format!("superseded by operation {by}"));
            }
            // Nothing serves: should what takes its place not do so either, it is wanted again.
            if let Some(back) = op.back.clone().filter(|back| back.reason != Reason::Asked) {
                self.fallback = Some(Fallback::Good { back, cause: op.cause.clone(), at: self.now });
            }
            self.superseded(op, by);
        }
    }

    pub(super) fn superseded(&mut self, op: Operation, by: OpId) {
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

/// Why `new` cannot take the place of `old` without being told to: all plugins are gone, or all out of the plugin folder,
/// which may be a disk that is not mounted.
fn emptied(old: &SetInfo, new: &SetInfo, goes_back: bool) -> Option<Failure> {
    const HINT: &str = "put a plugin into the plugin folder, or ask again with --allow-empty";
    if new.plugins.is_empty() && !old.plugins.is_empty() {
        let text = "found no plugin at all: what serves now would be gone";
        return Some(Failure::new(Stage::Snapshot, text).hint(HINT));
    }
    let is_gone = |old: &PluginStatus| !new.plugins.iter().any(|plugin| same_plugin(&plugin.name, &old.name));
    if goes_back || old.in_folder == 0 || new.in_folder > 0 || !old.plugins.iter().any(is_gone) {
        return None;
    }
    let gone: Vec<&str> = old.plugins.iter().filter(|plugin| is_gone(plugin)).map(|plugin| &*plugin.name).collect();
    let text = format!("found no plugin in the plugin folder: {} would be gone", gone.join(", "));
    Some(Failure::new(Stage::Snapshot, text).hint(HINT))
}

const HELD_HINT: &str = "it is taken once it is changed; or ask again with --force";

/// Why `set` cannot be taken, if the whole of it was given up.
fn given_up(set: &SetInfo, past: &PastSets) -> Option<Failure> {
    let why = past.why(&Change::Set { sha256: set.sha256.clone() })?;
    let text = format!("take the plugins and the configuration as they are: this very set was {why}");
    Some(Failure::new(Stage::Snapshot, text).hint(HELD_HINT))
}

/// Why `set` need not be taken: what of it is held back is all that is not in the set `serving` already.
fn nothing_new(set: &SetInfo, past: &PastSets, serving: &String) -> Option<Failure> {
    let first = set.held.first().filter(|_| *serving == set.sha256)?;
    let why = past.why(first).unwrap_or(Why::RolledBack);
    let all = set.held.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let failure = Failure::new(Stage::Snapshot, format!("find anything to take: {all} was {why}")).hint(HELD_HINT);
    Some(match set.held.iter().find_map(Change::plugin) {
        Some(plugin) => failure.of_plugin(plugin),
        None => failure,
    })
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
