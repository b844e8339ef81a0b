//! From one generation to the next and back: the commit, the pause and the standby of the old one, its retirement, and both ways
//! in which it takes over again: the new one died, or failed too often.

use std::time::Duration;

use super::generation::{Gen, Phase};
use super::operations::{RunStage, Running};
use super::{Action, Note, SetInfo, State};
use crate::config::Probation;
use crate::control::{EXIT_TIMEOUT, PAUSE_TIMEOUT, SWITCH_TIMEOUT, ToChild};
use crate::report::{DrainReport, Generation, OpResult, Why};

pub(super) fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

impl State {
    pub(super) fn commit(&mut self, generation: Generation) {
        if self.generations.get(&generation).is_some_and(|entry| self.is_stand_in(entry.set.id)) {
            return self.stand_in(generation);
        }
        let stand_ins = self.stand_ins_before(generation);
        self.enter(generation, Phase::Serving, None);
        self.candidate = None;
        self.respawn = None;
        self.switches += 1;
        // What stood by for the one that is replaced now stands by no longer: one step back is enough.
        if let Some(older) = self.find(Phase::Standby) {
            self.retire(older);
        }
        let (from, stopped) = (self.committed.replace(generation), self.stopped.take());
        let mut back = None;
        if let Some(entry) = self.generations.get_mut(&generation) {
            entry.loading = None;
            back = entry.back.take();
            // A respawn of the same set does not end the row of deaths; new code does.
            if self.set.as_ref().is_none_or(|set| set.id != entry.set.id) {
                self.row = 0;
                self.deaths.clear();
            }
            self.settings = entry.set.settings.clone();
            self.set = Some(entry.set.clone());
            self.past.serves(entry.set.clone(), generation, self.settings.keep);
        }
        self.hand_over_to(generation);
        if let Some(old) = from {
            let stood_in = stand_ins.iter().any(|(number, _)| *number == old);
            let window = if back.is_some() || stood_in { Duration::ZERO } else { self.settings.probation.window };
            self.pause(old, window);
        }
        if let (Some(why), Some(bad)) = (back, from) {
            let set = self.generations[&bad].set.clone();
            return self.rolled_back(generation, bad, &set, why);
        }
        if self.running_candidate() == Some(generation) {
            self.switched(generation, from, stopped.as_ref());
        } else {
            let cause = self.generations[&generation].cause.clone();
            let total_ms = ms(self.now - self.generations[&generation].spawned_at);
            self.note(Note::Committed { generation, from, total_ms, cause });
            if let Some(stopped) = stopped {
                self.restored(&stopped);
            }
        }
        self.dismiss_stand_ins(stand_ins, generation);
    }

    /// Every generation that still has connections gives the idle ones to the newest: none lives on to pass others through.
    fn hand_over_to(&mut self, to: Generation) {
        if !self.settings.drain.handover || self.stopping.is_some() {
            return;
        }
        let holders =
            self.generations.values().filter(|entry| (Phase::Serving..=Phase::Retiring).contains(&entry.phase));
        let holders: Vec<Generation> = holders.map(|entry| entry.number).filter(|number| *number != to).collect();
        for from in holders {
            self.act(Action::Handover { from, to });
        }
    }

    /// The candidate, if it is the running operation's.
    pub(super) fn running_candidate(&self) -> Option<Generation> {
        match &self.running {
            Some(Running { stage: RunStage::Starting { generation, .. }, .. }) => Some(*generation),
            _ => None,
        }
    }

    fn pause(&mut self, generation: Generation, window: Duration) {
        self.enter(generation, Phase::Pausing, Some(PAUSE_TIMEOUT));
        if let Some(entry) = self.generations.get_mut(&generation) {
            entry.standby_until = self.now + window;
        }
        self.send(generation, ToChild::Pause);
    }

    /// It accepts no more: whoever asked for the switch has his answer. Until the window is over it may be asked back.
    pub(super) fn paused(&mut self, generation: Generation) {
        let Some(entry) = self.generations.get(&generation) else { return };
        let left = entry.standby_until.saturating_sub(self.now);
        if left.is_zero() || self.is_stopping() {
            return self.retire(generation);
        }
        if let Some(op) = entry.replaced_by {
            self.report_mut(op, |report| report.standby = Some(generation));
        }
        self.enter(generation, Phase::Standby, Some(left));
        self.end_pause(generation);
    }

    /// The generation that could take over again.
    pub(super) fn standing_by(&self) -> Option<Generation> {
        let old = self.find(Phase::Standby).or(self.find(Phase::Pausing))?;
        self.generations.get(&old).filter(|entry| !self.is_stand_in(entry.set.id)).map(|_| old)
    }

    pub(super) fn retire(&mut self, generation: Generation) {
        let deadlines = self.drain_deadlines();
        // Whatever the child's own deadlines are, in the end the master's word counts.
        let patience = deadlines.max_ms.map(|max| Duration::from_millis(max) + EXIT_TIMEOUT);
        self.enter(generation, Phase::Retiring, patience);
        if let Some(entry) = self.generations.get_mut(&generation) {
            entry.deadlines = Some(deadlines);
        }
        self.send(generation, ToChild::Retire(deadlines));
        self.end_standby(generation);
        self.end_pause(generation);
    }

    /// Its probation is over, one way or the other: it will not take over again.
    pub(super) fn end_standby(&mut self, generation: Generation) {
        if let Some(op) = self.generations.get(&generation).and_then(|entry| entry.replaced_by) {
            self.report_mut(op, |report| report.standby = None);
        }
    }

    pub(super) fn drained(&mut self, generation: Generation, report: DrainReport) {
        self.any_cut |= report.cut.total() > 0;
        self.cut_drained(generation, &report);
        if let Some(op) = self.generations.get(&generation).and_then(|entry| entry.replaced_by) {
            self.report_mut(op, |entry| entry.drain = Some(report));
        }
        self.note(Note::Drained { generation, report });
    }

    /// The new generation died before the old one retired: the old one accepts again.
    pub(super) fn take_back(&mut self, old: Generation, dead: &Gen) {
        self.enter(old, Phase::Resuming, Some(SWITCH_TIMEOUT));
        self.send(old, ToChild::Resume);
        self.committed = Some(old);
        if let Some(entry) = self.generations.get(&old) {
            self.settings = entry.set.settings.clone();
            self.set = Some(entry.set.clone());
            self.past.serves(entry.set.clone(), old, self.settings.keep);
        }
        let why = format!("keep generation {} alive: it died before the old one retired", dead.number);
        self.rolled_back(old, dead.number, &dead.set, why);
        self.end_pause(old);
    }

    /// Too many of the answers of a generation on probation are failures: the one before it shall accept again.
    pub(super) fn counted(&mut self, generation: Generation, requests: u64, failures: u64) {
        let Probation { min_requests, max_failure_ratio, .. } = self.settings.probation;
        let (Some(ratio), Some(old)) = (max_failure_ratio, self.find(Phase::Standby)) else { return };
        let too_many = requests >= min_requests.max(1) && failures as f64 > ratio * requests as f64;
        if !too_many || self.serving() != Some(generation) {
            return;
        }
        if let Some(candidate) = self.candidate {
            // It replaces the bad one anyway, within a moment.
            if self.phase(candidate) == Some(Phase::Committing) {
                return;
            }
            self.put_back(candidate);
            self.kill(candidate, "the generation before is rolled back first".into());
        }
        let why = format!("keep generation {generation}: {failures} of its {requests} answers were failures (5xx)");
        if let Some(entry) = self.generations.get_mut(&old) {
            entry.back = Some(why);
        }
        self.enter(old, Phase::Committing, Some(SWITCH_TIMEOUT));
        self.candidate = Some(old);
        self.send(old, ToChild::Resume);
    }

    fn rolled_back(&mut self, to: Generation, from: Generation, bad: &SetInfo, why: String) {
        // Where they are alike (a child that was told to go by SIGTERM, say) it was not the set.
        if let Some(good) = self.generations.get(&to).map(|entry| entry.set.clone())
            && good.sha256 != bad.sha256
        {
            self.past.give_up(bad, Some(&good), Why::RolledBack);
            self.past.pin(Some(to));
        }
        if let Some(op) = self.generations.get_mut(&to).and_then(|entry| entry.replaced_by.take()) {
            self.report_mut(op, |report| {
                report.result = OpResult::RolledBack;
                report.standby = None;
                report.serving = Some(to);
                report.error = Some(why.clone());
            });
        }
        self.note(Note::RolledBack { to, from, why });
    }
}
