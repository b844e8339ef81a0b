//! The life of a generation: started, loaded, proved, served, killed or ended, reaped; and what every message of a child means where
//! it stands. Which of them serves is in `switch`, what follows a crash in `respawn`.

use std::sync::Arc;
use std::time::Duration;

use super::cut::Haste;
use super::generation::{Gen, Phase, Unexpected};
use super::respawn::Blame;
use super::rollback::Reason;
use super::{Action, HISTORY, Note, Probes, SetInfo, State};
use crate::control::{ControlVerb, EXIT_TIMEOUT, PROTOCOL, SWITCH_TIMEOUT, ToChild, ToMaster};
use crate::master::handle::OpOptions;
use crate::report::{Cause, Failure, Generation, Stage, Verb};
use crate::sys::process::ExitKind;

impl State {
    pub(super) fn phase(&self, generation: Generation) -> Option<Phase> {
        self.generations.get(&generation).map(|generation| generation.phase)
    }

    pub(super) fn count(&self, phase: Phase) -> usize {
        self.generations.values().filter(|generation| generation.phase == phase).count()
    }

    pub(super) fn find(&self, phase: Phase) -> Option<Generation> {
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
                unexpected: Unexpected::default(),
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
                // There is no process, so none will be reaped. One that was given up before has failed already.
                let entry = self.generations.remove(&generation);
                if let Some(entry) = entry.filter(|entry| entry.phase != Phase::Killed) {
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
            (Phase::Loading, ToMaster::Loading { plugin }) if entry.set.has_plugin(&plugin) => {
                entry.loading = Some(plugin);
            }
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
            (_, ToMaster::Saved { states, failed, .. }) => self.saved(generation, states, failed),
            (Phase::Pausing, ToMaster::Paused) => self.paused(generation),
            (Phase::Retiring, ToMaster::Done(report)) => {
                entry.drained = true;
                self.enter(generation, Phase::Leaving, Some(EXIT_TIMEOUT));
                self.send(generation, ToChild::DoneAck);
                self.drained(generation, report);
            }
            (Phase::Serving, ToMaster::ReplaceMe) => {
                // What a child asks for again and again makes one operation, and none beside what takes its place.
                if self.not_now(Verb::Reload).is_none() {
                    self.reload_asked(Cause::Term { generation }, OpOptions::default(), None);
                }
            }
            // One that leaves is being replaced already.
            (_, ToMaster::ReplaceMe) => {}
            // The answer to a RESUME that a later PAUSE has overtaken.
            (Phase::Pausing, ToMaster::Serving) => {}
            (_, ToMaster::Control { plugin, verb }) if self.may_control(generation, &plugin) => {
                self.control(plugin, verb);
            }
            (phase, message) => self.unexpected(generation, phase, &message),
        }
    }

    /// Whether a handler of `plugin` in this generation may ask for an operation: the generation serves, or has not heard yet that it
    /// is to pause, and the operator allows it. The child has checked the same, and its word counts for nothing.
    pub fn may_control(&self, generation: Generation, plugin: &str) -> bool {
        let Some(entry) = self.generations.get(&generation) else { return false };
        matches!(entry.phase, Phase::Serving | Phase::Pausing) && entry.set.controllers.contains(plugin)
    }

    fn control(&mut self, plugin: String, verb: ControlVerb) {
        let operation = match verb {
            ControlVerb::Reload => Verb::Reload,
            ControlVerb::Restart => Verb::Restart,
            ControlVerb::Shutdown => Verb::Shutdown,
        };
        // A handler waits for no answer, so a request that something else supersedes leaves no report either.
        if self.not_now(operation).is_some() {
            return;
        }
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

    /// A message that does not fit where its sender stands: before the commit that is a failure, later only noted, at most once a
    /// second. Its content stays out of both.
    fn unexpected(&mut self, generation: Generation, phase: Phase, message: &ToMaster) {
        let what = format!("{} while {phase:?}", message.name());
        if phase < Phase::Committing {
            let text = format!("follow the control protocol: it sent {what}");
            self.abandon(generation, Failure::new(Stage::Spawn, text));
        }
        let Some(entry) = self.generations.get_mut(&generation) else { return };
        if let Some(left_out) = entry.unexpected.note(self.now) {
            self.note(Note::Unexpected { generation, what, left_out });
        }
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
            self.not_restored(&failure);
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
                    Some(old) => self.take_back(old, &entry),
                    None => self.crashed(generation, exit.to_string(), Blame::Set),
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
}

/// What a candidate that ended is refused with.
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
