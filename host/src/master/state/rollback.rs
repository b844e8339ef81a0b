//! Going back to a set that has served before, because somebody asks for it. What is given up is held back from then on, and
//! the rest of what lies in the plugin folder is not touched until the next reload.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::operations::Operation;
use super::{Caller, SetId, SetInfo, Source, State, Within};
use crate::master::handle::OpOptions;
use crate::report::{Cause, Failure, Generation, Report, Stage, Verb, Why};

/// What a rollback goes back to, fixed when it was asked for.
#[derive(Clone, Debug)]
pub(super) struct Rollback {
    pub target: Arc<SetInfo>,
    /// The generation that ran it, as operators know it.
    pub number: Option<Generation>,
    /// What served when it was asked for.
    pub bad: Option<Arc<SetInfo>>,
    pub with_config: bool,
    pub reason: Reason,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    Asked,
    /// What served died too often.
    Crashed,
    /// What should have served first could not be started.
    BadStart,
}

impl Rollback {
    pub fn source(&self, serving: Option<&Arc<SetInfo>>) -> Source {
        let within = match serving {
            _ if self.with_config => Within::Own,
            Some(set) if set.id != SetId::EMPTY => Within::Set(set.id),
            // The set without plugins has the configuration of the one that was given up.
            _ => {
                self.bad.as_ref().filter(|bad| bad.id != SetId::EMPTY).map_or(Within::Start, |bad| Within::Set(bad.id))
            }
        };
        Source::Again { set: self.target.id, within }
    }
}

impl SetInfo {
    /// Whether both have the same plugins with the same sections.
    fn has_plugins_of(&self, other: &SetInfo) -> bool {
        let files = |set: &SetInfo| -> BTreeSet<(String, String)> {
            set.plugins.iter().map(|plugin| (plugin.name.clone(), plugin.sha256.clone())).collect()
        };
        self.sections == other.sections && files(self) == files(other)
    }
}

impl State {
    pub(super) fn rollback_asked(&mut self, cause: Cause, options: OpOptions, caller: Option<Caller>) {
        if let Some(by) = self.not_now(Verb::Rollback) {
            let op = self.new_operation(Verb::Rollback, cause, options, caller);
            return self.superseded(op, by);
        }
        let back = match self.rollback_target(options) {
            Ok(back) => back,
            Err(failure) => {
                let op = self.new_operation(Verb::Rollback, cause, options, caller);
                return self.refuse_op(op, &failure);
            }
        };
        let same = |waiting: &&mut Operation| {
            waiting
                .back
                .as_ref()
                .is_some_and(|other| other.target.sha256 == back.target.sha256 && other.with_config == back.with_config)
        };
        if let Some(waiting) = self.waiting.as_mut().filter(same) {
            waiting.options.join(options);
            return waiting.callers.extend(caller);
        }
        let mut op = self.new_operation(Verb::Rollback, cause, options, caller);
        op.back = Some(back);
        self.supersede_all(op.id);
        self.waiting = Some(op);
    }

    /// The sets that rollbacks under way go back to.
    pub(super) fn goals(&self) -> impl Iterator<Item = &Arc<SetInfo>> {
        let running = self.running.as_ref().map(|running| &running.op);
        let all = running.into_iter().chain(&self.waiting);
        all.filter_map(|op| op.back.as_ref()).map(|back| &back.target)
    }

    fn rollback_target(&self, options: OpOptions) -> Result<Rollback, Failure> {
        let fail = |why: String, hint: &str| Failure::new(Stage::Snapshot, why).hint(hint);
        let (false, Some(serving)) = (self.is_ending(), &self.set) else {
            return Err(fail("roll back: nothing has served yet".into(), "start it with plugins that work"));
        };
        let target = match options.to {
            Some(to) => self.past.of(to).ok_or_else(|| {
                fail(format!("roll back to generation {to}: its set is not kept"), "`store.keep` says how many are")
            })?,
            None => self.past.good(Some(serving)).ok_or_else(|| {
                fail(
                    "roll back: no other set has served".into(),
                    "put the plugin in place that shall serve, and reload",
                )
            })?,
        };
        if target.sha256 == serving.sha256 {
            return Err(fail("roll back: this very set serves".into(), "see `baton status`"));
        }
        if !options.with_config && serving.has_plugins_of(target) {
            return Err(fail(
                "roll back: the plugins and their sections are the same, only the rest of the configuration differs"
                    .into(),
                "ask again with --with-config, or put the configuration right and reload",
            ));
        }
        let number = options.to.or_else(|| self.past.number(target));
        let with_config = options.with_config;
        let bad = Some(serving.clone());
        Ok(Rollback { target: target.clone(), number, bad, with_config, reason: Reason::Asked })
    }

    /// One that cannot even begin.
    fn refuse_op(&mut self, op: Operation, failure: &Failure) {
        let serving = self.serving();
        self.report_mut(op.id, |report| refused(report, failure, serving));
        self.note(super::Note::Refused { op: op.id, failure: failure.clone(), serving });
        self.answer_all(op);
    }

    /// `generation` serves what a reload took.
    pub(super) fn took(&mut self, generation: Generation) {
        let Some(set) = self.generations.get(&generation).map(|entry| entry.set.clone()) else { return };
        self.past.release(&set);
        self.alert = None;
        if set.held.is_empty() {
            self.past.pin(None);
        }
    }

    /// `generation` runs what `back` goes back to, and serves instead of `replaced`.
    pub(super) fn went_back(&mut self, back: &Rollback, generation: Generation, replaced: Option<Arc<SetInfo>>) {
        let Some(set) = self.generations.get(&generation).map(|entry| entry.set.clone()) else { return };
        match back.reason {
            Reason::Asked => self.alert = None,
            Reason::Crashed => return self.past.pin(back.number.or(Some(generation))),
            Reason::BadStart => return self.start_failure = None,
        }
        self.past.release(&set);
        // What only stood in, or served for want of anything, was not given up.
        let real = |set: &&Arc<SetInfo>| set.id != SetId::EMPTY;
        for bad in [&back.bad, &replaced].into_iter().flatten().filter(real) {
            self.past.give_up(bad, Some(&set), Why::RolledBack);
            if back.with_config {
                self.past.give_up_config(bad, &set);
            }
        }
        self.past.pin(back.number.or(Some(generation)));
    }
}

/// Writes into `report` that its operation ended without a switch.
pub(super) fn refused(report: &mut Report, failure: &Failure, serving: Option<Generation>) {
    let failure = failure.clone();
    report.result = crate::report::OpResult::Refused;
    report.stage = Some(failure.stage);
    report.plugin = failure.plugin;
    report.error = Some(failure.error);
    report.hint = failure.hint;
    report.detail = failure.detail;
    report.serving = serving;
}
