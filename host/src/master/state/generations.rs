//! The life of a generation: from its spawn to its reaping. In one file, since it is one machine: what a generation may become
//! next depends on what the others are.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::cut::Haste;
use super::operations::{RunStage, Running};
use super::rollback::Reason;
use super::{Action, HISTORY, Note, Probes, Respawn, SetId, SetInfo, State, Time};
use crate::config::Probation;
use crate::control::{
    ControlVerb, Deadlines, EXIT_TIMEOUT, PAUSE_TIMEOUT, PROTOCOL, Protocols, SWITCH_TIMEOUT, ToChild, ToMaster,
};
use crate::master::handle::OpOptions;
use crate::report::{
    Cause, DrainReport, Failure, Generation, GenerationState, GenerationStatus, Load, OpId, OpResult, Stage, Why,
};
use crate::sys::process::ExitKind;

/// Where a generation stands. Ordered: before `Committing` it has touched nothing, from `Retiring` on it accepts no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Phase {
    /// Spawn was asked for; HELLO has not come.
    Starting,
    Loading,
    /// Its probes are under way.
    Proving,
    /// GO was sent.
    Committing,
    Serving,
    /// RESUME was sent.
    Resuming,
    /// PAUSE was sent.
    Pausing,
    /// It accepts no more, and its successor is on probation: RESUME may still follow.
    Standby,
    Retiring,
    /// DONE was acknowledged.
    Leaving,
    /// SIGKILL was sent.
    Killed,
}

#[derive(Clone, Debug)]
pub(super) struct Gen {
    pub number: Generation,
    pub phase: Phase,
    pub set: Arc<SetInfo>,
    cause: Cause,
    pub pid: Option<i32>,
    /// What its binary speaks, once it has said so.
    protocols: Option<Protocols>,
    pub spawned_at: Time,
    /// When its plugins were up.
    pub loaded_at: Time,
    pub ready_at: Time,
    /// When patience with the present phase ends.
    pub deadline: Option<Time>,
    /// The plugin whose init runs.
    loading: Option<String>,
    /// The operation that replaced it: the drain report goes there.
    pub replaced_by: Option<OpId>,
    /// Until when it may be asked to accept again, once it was replaced.
    standby_until: Time,
    /// Why it accepts again although its successor lives: what the latter did.
    back: Option<String>,
    drained: bool,
    /// What it was told at RETIRE.
    pub deadlines: Option<Deadlines>,
    pub haste: Haste,
}

impl Gen {
    pub(super) fn status(&self, now: Time, exit: Option<String>) -> GenerationStatus {
        let state = match self.phase {
            _ if exit.is_some() => GenerationState::Exited,
            Phase::Starting => GenerationState::Starting,
            Phase::Loading => GenerationState::Loading,
            Phase::Proving => GenerationState::Proving,
            Phase::Committing => GenerationState::Committing,
            Phase::Serving => GenerationState::Serving,
            Phase::Resuming | Phase::Pausing => GenerationState::Paused,
            Phase::Standby => GenerationState::Standby,
            Phase::Retiring | Phase::Leaving | Phase::Killed => GenerationState::Retiring,
        };
        GenerationStatus {
            generation: self.number,
            state,
            pid: self.pid,
            cause: self.cause.clone(),
            age_ms: (now - self.spawned_at).as_millis() as u64,
            deadline_ms: self.deadline.filter(|_| exit.is_none()).map(|at| at.saturating_sub(now).as_millis() as u64),
            load: Load::default(),
            plugins: self.set.plugins.clone(),
            exit,
        }
    }
}

/// A generation as another program of this process goes on with it: it serves, or drains.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SavedGeneration {
    pub number: Generation,
    phase: Phase,
    pub set: SetId,
    cause: Cause,
    pid: Option<i32>,
    pub protocols: Option<Protocols>,
    spawned_at: Time,
    deadline: Option<Time>,
    replaced_by: Option<OpId>,
    drained: bool,
    deadlines: Option<Deadlines>,
    haste: Haste,
}

impl Gen {
    pub(super) fn save(&self) -> SavedGeneration {
        SavedGeneration {
            number: self.number,
            phase: self.phase,
            set: self.set.id,
            cause: self.cause.clone(),
            pid: self.pid,
            protocols: self.protocols,
            spawned_at: self.spawned_at,
            deadline: self.deadline,
            replaced_by: self.replaced_by,
            drained: self.drained,
            deadlines: self.deadlines,
            haste: self.haste,
        }
    }
}

impl SavedGeneration {
    pub(super) fn into_gen(self, set: Arc<SetInfo>) -> Gen {
        Gen {
            number: self.number,
            phase: self.phase,
            set,
            cause: self.cause,
            pid: self.pid,
            protocols: self.protocols,
            spawned_at: self.spawned_at,
            loaded_at: self.spawned_at,
            ready_at: self.spawned_at,
            deadline: self.deadline,
            loading: None,
            replaced_by: self.replaced_by,
            standby_until: self.spawned_at,
            back: None,
            drained: self.drained,
            deadlines: self.deadlines,
            haste: self.haste,
        }
    }
}

pub(super) fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

impl State {
    pub(super) fn phase(&self, generation: Generation) -> Option<Phase> {
        self.generations.get(&generation).map(|generation| generation.phase)
    }

    pub(super) fn count(&self, phase: Phase) -> usize {
        self.generations.values().filter(|generation| generation.phase == phase).count()
    }

    fn find(&self, phase: Phase) -> Option<Generation> {
        self.generations.values().find(|generation| generation.phase == phase).map(|generation| generation.number)
    }

    /// The generation that serves.
    pub fn serving(&self) -> Option<Generation> {
        self.find(Phase::Serving)
    }

    pub(super) fn resuming(&self) -> Option<Generation> {
        self.find(Phase::Resuming)
    }

    pub(super) fn enter(&mut self, generation: Generation, phase: Phase, patience: Option<Duration>) {
        let deadline = patience.map(|patience| self.now + patience);
        if let Some(entry) = self.generations.get_mut(&generation) {
            entry.phase = phase;
            entry.deadline = deadline;
        }
    }

    pub(super) fn send(&mut self, generation: Generation, message: ToChild) {
        self.act(Action::Send { generation, message });
    }

    /// Starts the candidate.
    pub(super) fn spawn(&mut self, set: Arc<SetInfo>, cause: Cause) -> Generation {
        let number = self.start(set, cause);
        self.candidate = Some(number);
        number
    }

    pub(super) fn start(&mut self, set: Arc<SetInfo>, cause: Cause) -> Generation {
        let number = Generation(self.next_generation);
        self.next_generation += 1;
        let deadline = Some(self.now + set.settings.start_timeout);
        self.act(Action::Spawn { generation: number, set: set.id });
        self.generations.insert(
            number,
            Gen {
                number,
                phase: Phase::Starting,
                set,
                cause,
                pid: None,
                protocols: None,
                spawned_at: self.now,
                loaded_at: self.now,
                ready_at: self.now,
                deadline,
                loading: None,
                replaced_by: None,
                standby_until: self.now,
                back: None,
                drained: false,
                deadlines: None,
                haste: Haste::None,
            },
        );
        number
    }

    pub(super) fn spawned(&mut self, generation: Generation, result: Result<i32, Failure>) {
        match result {
            Ok(pid) => {
                if let Some(entry) = self.generations.get_mut(&generation) {
                    entry.pid = Some(pid);
                }
                // A shutdown may have come between.
                if self.phase(generation) == Some(Phase::Killed) {
                    self.act(Action::Kill { generation });
                }
            }
            Err(failure) => {
                // There is no process, so none will be reaped.
                if let Some(entry) = self.generations.remove(&generation) {
                    self.candidate_failed(&entry, failure);
                }
            }
        }
    }

    pub(super) fn message(&mut self, generation: Generation, message: ToMaster) {
        let Some(entry) = self.generations.get_mut(&generation) else { return };
        match (entry.phase, message) {
            // What a dying one still says changes nothing.
            (Phase::Killed, _) => {}
            (Phase::Starting, ToMaster::Hello { protocols, version }) => match PROTOCOL.common(protocols) {
                Some(_) => {
                    entry.phase = Phase::Loading;
                    entry.protocols = Some(protocols);
                    let probes = match self.running_candidate() {
                        Some(candidate) if candidate == generation && !self.comes_after_a_crash() => Probes::Send,
                        _ => Probes::Skip,
                    };
                    let inherit = self.inherits(generation);
                    self.act(Action::Load { generation, probes, inherit });
                }
                None => {
                    let text = format!("find a protocol in common with the child's binary (version {version})");
                    self.abandon(generation, Failure::new(Stage::Spawn, text));
                }
            },
            (Phase::Loading, ToMaster::Loading { plugin }) => entry.loading = Some(plugin),
            (Phase::Starting | Phase::Loading | Phase::Proving, ToMaster::Failed(failure)) => {
                self.abandon(generation, failure);
            }
            (Phase::Loading, ToMaster::Proving) => {
                entry.phase = Phase::Proving;
                entry.loading = None;
                entry.loaded_at = self.now;
            }
            (Phase::Loading | Phase::Proving, ToMaster::Ready) => {
                entry.ready_at = self.now;
                if entry.phase == Phase::Loading {
                    entry.loaded_at = self.now;
                }
                let set = entry.set.id;
                if self.is_stand_in(set) && !self.wants_stand_in() {
                    return self.kill(generation, "another is about to serve".into());
                }
                self.enter(generation, Phase::Committing, Some(SWITCH_TIMEOUT));
                self.send(generation, ToChild::Go);
            }
            (Phase::Committing, ToMaster::Serving) => self.commit(generation),
            (Phase::Resuming, ToMaster::Serving) => self.enter(generation, Phase::Serving, None),
            (_, ToMaster::Saved { states, failed }) => self.saved(generation, states, failed),
            (Phase::Pausing, ToMaster::Paused) => self.paused(generation),
            (Phase::Retiring, ToMaster::Done(report)) => {
                entry.drained = true;
                self.enter(generation, Phase::Leaving, Some(EXIT_TIMEOUT));
                self.send(generation, ToChild::DoneAck);
                self.drained(generation, report);
            }
            (Phase::Serving, ToMaster::ReplaceMe) => {
                self.reload_asked(Cause::Term { generation }, OpOptions::default(), None);
            }
            // One that leaves is being replaced already.
            (_, ToMaster::ReplaceMe) => {}
            // The answer to a RESUME that a later PAUSE has overtaken.
            (Phase::Pausing, ToMaster::Serving) => {}
            (_, ToMaster::Control { plugin, verb }) => self.control(plugin, verb),
            (phase, message) => self.unexpected(generation, phase, &message),
        }
    }

    fn control(&mut self, plugin: String, verb: ControlVerb) {
        let cause = Cause::Handler { plugin };
        match verb {
            ControlVerb::Reload => self.reload_asked(cause, OpOptions::default(), None),
            ControlVerb::Restart => self.restart_asked(cause, OpOptions::default(), None),
            ControlVerb::Shutdown => self.shutdown_asked(cause, None),
        }
    }

    /// Whether the running operation brings a set back because another one died.
    pub(super) fn comes_after_a_crash(&self) -> bool {
        let back = self.running.as_ref().and_then(|running| running.op.back.as_ref());
        back.is_some_and(|back| back.reason == Reason::Crashed)
    }

    /// A message that does not fit where its sender stands: before the commit that is a failure, later only noted.
    fn unexpected(&mut self, generation: Generation, phase: Phase, message: &ToMaster) {
        let what = format!("{message:?} while {phase:?}");
        if phase < Phase::Committing {
            let text = format!("follow the control protocol: it sent {what}");
            self.abandon(generation, Failure::new(Stage::Spawn, text));
        }
        self.note(Note::Unexpected { generation, what });
    }

    fn commit(&mut self, generation: Generation) {
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
                self.restored(generation, &stopped);
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
    fn paused(&mut self, generation: Generation) {
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
    fn end_standby(&mut self, generation: Generation) {
        if let Some(op) = self.generations.get(&generation).and_then(|entry| entry.replaced_by) {
            self.report_mut(op, |report| report.standby = None);
        }
    }

    fn drained(&mut self, generation: Generation, report: DrainReport) {
        self.any_cut |= report.cut.total() > 0;
        self.cut_drained(generation, &report);
        if let Some(op) = self.generations.get(&generation).and_then(|entry| entry.replaced_by) {
            self.report_mut(op, |entry| entry.drain = Some(report));
        }
        self.note(Note::Drained { generation, report });
    }

    /// A candidate is given up, and killed.
    fn abandon(&mut self, generation: Generation, failure: Failure) {
        self.kill(generation, failure.to_string());
        if let Some(entry) = self.generations.get(&generation).cloned() {
            self.candidate_failed(&entry, failure);
        }
    }

    pub(super) fn kill(&mut self, generation: Generation, why: String) {
        let Some(entry) = self.generations.get_mut(&generation) else { return };
        let spawned = entry.pid.is_some();
        self.any_cut |= (Phase::Serving..=Phase::Retiring).contains(&entry.phase);
        self.enter(generation, Phase::Killed, None);
        self.end_standby(generation);
        if self.candidate == Some(generation) {
            self.candidate = None;
        }
        if self.committed == Some(generation) {
            self.committed = None;
        }
        if spawned {
            self.act(Action::Kill { generation });
        }
        self.note(Note::Killed { generation, why });
    }

    /// A candidate will not serve: whoever waits for it is told, and a respawn tries again.
    fn candidate_failed(&mut self, entry: &Gen, failure: Failure) {
        // Tried again by itself.
        if self.is_stand_in(entry.set.id) {
            return;
        }
        let generation = entry.number;
        if self.candidate == Some(generation) {
            self.candidate = None;
        }
        if self.running_candidate() == Some(generation) {
            self.refuse(failure);
        } else if !self.serves_own() {
            self.not_restored(generation, &failure);
            let blame = if failure.stage == Stage::Spawn { Blame::Machine } else { Blame::Set };
            self.crashed(generation, failure.to_string(), blame);
        }
    }

    pub(super) fn exited(&mut self, generation: Generation, exit: ExitKind, output: &str) {
        self.end_standby(generation);
        let Some(entry) = self.generations.remove(&generation) else { return };
        self.cut_exited(generation);
        self.history.push_back(entry.status(self.now, Some(exit.to_string())));
        if self.history.len() > HISTORY {
            self.history.pop_front();
        }
        match entry.phase {
            Phase::Leaving => {}
            Phase::Killed => {
                // Without a candidate of its own nobody noticed yet that nothing serves.
                self.end_pause(generation);
            }
            Phase::Starting | Phase::Loading | Phase::Proving | Phase::Committing => {
                self.candidate_failed(&entry, death_of(&entry, exit, output));
            }
            Phase::Serving if self.is_stand_in(entry.set.id) => {
                self.committed = None;
                self.crashes += 1;
                self.note(Note::Crashed { generation, exit: exit.to_string(), respawn_in: None });
            }
            Phase::Serving | Phase::Resuming => {
                self.committed = None;
                self.crashes += 1;
                if self.now - entry.spawned_at >= self.settings.crash.window {
                    self.row = 0;
                }
                // It has seen its successor, and another will come.
                for old in self.stand_ins_paused() {
                    self.retire(old);
                }
                match self.standing_by() {
                    Some(old) if !self.is_stopping() => self.take_back(old, &entry),
                    _ => self.crashed(generation, exit.to_string(), Blame::Set),
                }
            }
            Phase::Pausing | Phase::Standby | Phase::Retiring => {
                self.crashes += 1;
                self.any_cut = true;
                self.end_pause(generation);
                self.note(Note::Crashed { generation, exit: exit.to_string(), respawn_in: None });
            }
        }
    }

    /// The new generation died before the old one retired: the old one accepts again.
    fn take_back(&mut self, old: Generation, dead: &Gen) {
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
        if !too_many || self.serving() != Some(generation) || self.is_stopping() {
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

    /// Nothing serves any more: the set comes back, at once the first time, then after a growing wait.
    fn crashed(&mut self, generation: Generation, exit: String, blame: Blame) {
        if self.stopping.as_ref().is_some_and(|stopping| stopping.begun) {
            self.note(Note::Crashed { generation, exit, respawn_in: None });
            return;
        }
        if let Some(set) = self.set.clone().filter(|set| blame == Blame::Set && !set.plugins.is_empty())
            && self.count_death()
        {
            let window = humantime::format_duration(self.settings.crash.window);
            let why = format!("the set of generation {generation} died {} times within {window}", self.deaths.len());
            self.note(Note::Crashed { generation, exit, respawn_in: None });
            return self.quarantine(&set, generation, why);
        }
        let crash = &self.settings.crash;
        let wait = match self.row {
            0 => Duration::ZERO,
            row => crash.backoff.saturating_mul(1 << (row - 1).min(20)).min(crash.backoff_max),
        };
        let wait = self.spread(wait);
        self.row = self.row.saturating_add(1);
        self.respawn = Some(Respawn { at: self.now + wait, of: generation });
        self.note(Note::Crashed { generation, exit, respawn_in: Some(wait) });
    }

    /// Up to a quarter less, by chance: xorshift, whose state 0 stays 0 and spreads nothing.
    fn spread(&mut self, wait: Duration) -> Duration {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        wait - wait.mul_f64((self.seed % 1024) as f64 / 4096.0)
    }

    pub(super) fn advance_respawn(&mut self) {
        if !self.may_respawn() {
            return;
        }
        let Some(set) = self.set.clone() else { return };
        let at_once = Respawn { at: self.now, of: Generation(self.next_generation - 1) };
        let respawn = self.respawn.get_or_insert(at_once);
        if self.now < respawn.at {
            return;
        }
        // Before the first commit there was nothing to crash: the set without plugins that a bad start is served with.
        let cause = match &self.stopped {
            Some(stopped) => stopped.cause.clone(),
            None if self.switches > 0 => Cause::Crash { of: respawn.of },
            None => Cause::Start,
        };
        self.respawn = None;
        self.spawn(set, cause);
    }

    /// Whether only time can be in the way of a respawn.
    pub(super) fn may_respawn(&self) -> bool {
        // While another program takes over, it is that one's business.
        self.leaving().is_none()
            && !self.is_falling_back()
            && !self.is_replacing()
            && !self.serves_own()
            && self.candidate.is_none()
            && !self.is_stopping()
            && !self.is_ending()
    }

    /// Acts on every deadline that has passed.
    pub(super) fn deadlines(&mut self) {
        let now = self.now;
        let due: Vec<(Generation, Phase)> = self
            .generations
            .values()
            .filter(|entry| entry.deadline.is_some_and(|deadline| deadline <= now))
            .map(|entry| (entry.number, entry.phase))
            .collect();
        for (generation, phase) in due {
            match phase {
                Phase::Starting | Phase::Loading | Phase::Proving => {
                    let failure = self.start_timeout(generation);
                    self.abandon(generation, failure);
                }
                Phase::Committing => {
                    let text = format!("begin to serve within {SWITCH_TIMEOUT:?} of GO");
                    self.abandon(generation, Failure::new(Stage::Switch, text));
                }
                Phase::Resuming => {
                    self.kill(generation, format!("it did not resume within {SWITCH_TIMEOUT:?}"));
                    self.crashed(generation, "no answer to RESUME".into(), Blame::Set);
                }
                // Whether it accepts is not known: no good stand-in.
                Phase::Pausing => self.retire(generation),
                Phase::Standby => self.retire(generation),
                Phase::Retiring => self.kill(generation, "its drain deadline has passed".into()),
                Phase::Leaving => self.kill(generation, format!("it did not end within {EXIT_TIMEOUT:?} of DONE")),
                Phase::Serving | Phase::Killed => {}
            }
        }
    }

    fn start_timeout(&self, generation: Generation) -> Failure {
        let entry = &self.generations[&generation];
        let limit = entry.set.settings.start_timeout;
        match &entry.loading {
            Some(plugin) => {
                Failure::new(Stage::Load, format!("be ready within {limit:?}: init of {plugin} did not return"))
                    .of_plugin(plugin.clone())
                    .hint("init must return; put endless work into spawn_when_serving, or raise start_timeout")
            }
            None if entry.phase == Phase::Proving => {
                Failure::new(Stage::Prove, format!("be ready within {limit:?}: its probes had not ended"))
                    .hint("start_timeout covers the loading and all probes; raise it, or probe less")
            }
            None => {
                Failure::new(Stage::Spawn, format!("be ready within {limit:?}: the new process did not begin to load"))
                    .hint("it is stopped, or the machine is overloaded; look at its processes, or raise start_timeout")
            }
        }
    }

    /// One round of a shutdown that has begun.
    pub(super) fn stop_generations(&mut self, cut: bool, cut_now: bool) {
        let all: Vec<(Generation, Phase)> =
            self.generations.values().map(|entry| (entry.number, entry.phase)).collect();
        for (generation, phase) in all {
            match phase {
                Phase::Starting | Phase::Loading | Phase::Proving => {
                    self.kill(generation, "the server shuts down".into())
                }
                // It is the last that accepts: it empties the queue once more and closes the sockets, without a pause between
                // in which a client would be let in by the kernel and served by nobody.
                Phase::Serving => self.retire(generation),
                Phase::Standby => self.retire(generation),
                Phase::Pausing if cut => self.retire(generation),
                Phase::Retiring if cut_now => self.cut(generation),
                // Committing and Resuming answer soon, or time out; the others are on their way.
                _ => {}
            }
        }
        if self.serving().is_none() && self.resuming().is_none() {
            self.committed = None;
        }
    }
}

/// What a death is put down to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blame {
    Set,
    /// No process could be started.
    Machine,
}

fn death_of(entry: &Gen, exit: ExitKind, output: &str) -> Failure {
    let stage = match entry.phase {
        Phase::Starting => Stage::Spawn,
        Phase::Loading => Stage::Load,
        Phase::Proving => Stage::Prove,
        _ => Stage::Switch,
    };
    let failure = match &entry.loading {
        Some(plugin) if stage == Stage::Load => {
            Failure::new(stage, format!("survive the init of {plugin}: the child ended with {exit}"))
                .of_plugin(plugin.clone())
        }
        _ if stage == Stage::Prove => Failure::new(stage, format!("survive its probes: the child ended with {exit}")),
        _ => Failure::new(stage, format!("keep the new child alive: it ended with {exit}")),
    };
    failure.detail(output)
}
