//! The supervisor, pure: what happened goes in, what to do comes out. No I/O, no clock; time is an argument.
//!
//! Owns which generation is committed, which one is a candidate for that, the two operation slots, and every answer. It
//! refuses to know how a child is started, a file read or a socket bound: `master::run` does what the actions say and
//! reports what came of it.
//!
//! Invariants, checked after every step in debug builds (`check`):
//! at most one generation is committed; two accept only between GO of the new one and PAUSED of the old one; none accepts
//! only at a cold start, during a cold operation, between a crash and its respawn, or while stopping. And, by the tests' random histories: every
//! spawn is reaped, every caller is answered exactly once.

mod cold;
mod cut;
mod facts;
mod fallback;
mod generation;
mod generations;
mod operations;
mod outlook;
mod past;
mod respawn;
mod restart;
mod rollback;
mod saved;
mod saving;
mod shutdown;
mod stand_in;
mod switch;
#[cfg(test)]
mod tests;
mod vocabulary;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::handle::OpOptions;
use crate::config::{Config, Crash, Drain, Limit, Probation, Shutdown};
use crate::control::{Deadlines, Hook, ToChild};
use crate::report::{Cause, Change, Failure, Generation, GenerationStatus, OpId, PluginStatus, Report, Verb};

use cold::Stopped;
use cut::Cutting;
pub use facts::{Facts, Fingerprints};
use fallback::Fallback;
use generation::Gen;
pub use generation::Phase;
use operations::{Operation, Running};
pub use outlook::Latest;
pub use past::Memory;
use past::PastSets;
pub use saved::Saved;
pub use saving::Inherit;
use saving::Saving;
pub use vocabulary::{Action, Event, Exit, Note, Probes, Source, Within};

/// Monotonic, since the master's start.
pub type Time = Duration;

/// How many reports are kept.
const REPORTS: usize = 32;
/// How many generations that ended are still shown.
const HISTORY: usize = 8;

/// Of `shutdown.idle`, the part that the close itself may take.
const LINGER_PART: u64 = 4;

/// Names a set: plugin snapshots with their configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SetId(pub u64);

impl SetId {
    /// The set without plugins, which answers 503 where nothing else is left.
    pub const EMPTY: SetId = SetId(0);
}

/// Names one test of a binary: a restart that gives way is tested for again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TestId(pub u64);

/// Names whoever waits for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Caller(pub u64);

/// What the supervisor must know of a set.
#[derive(Clone, Debug, PartialEq)]
pub struct SetInfo {
    pub id: SetId,
    /// Of all that is in it.
    pub sha256: String,
    /// Of its configuration.
    pub config: String,
    pub plugins: Vec<PluginStatus>,
    /// Names of the plugins whose handlers may ask for operations.
    pub controllers: BTreeSet<String>,
    /// Of its plugins' sections.
    pub sections: BTreeMap<String, String>,
    /// What its configuration says, to be compared.
    pub facts: Arc<Facts>,
    /// How many of its plugins came out of the plugin folder.
    pub in_folder: usize,
    /// What lies in the plugin folder and was not taken into it, since it is held back.
    pub held: Vec<Change>,
    pub settings: Settings,
}

/// The part of the configuration that decides here.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub start_timeout: Duration,
    pub max_draining: usize,
    pub drain: Drain,
    pub shutdown: Shutdown,
    pub probation: Probation,
    pub crash: Crash,
    /// Sets that are kept beside the one that serves and the one before.
    pub keep: usize,
}

impl Settings {
    pub fn of(config: &Config) -> Settings {
        Settings {
            start_timeout: config.start_timeout,
            max_draining: config.max_draining,
            drain: config.drain.clone(),
            shutdown: config.shutdown.clone(),
            probation: config.probation.clone(),
            crash: config.crash.clone(),
            keep: config.store.keep,
        }
    }
}

impl SetInfo {
    fn has_plugin(&self, name: &str) -> bool {
        self.plugins.iter().any(|plugin| plugin.name == name)
    }

    /// The set without plugins: every request is answered 503.
    fn empty(settings: Settings) -> SetInfo {
        SetInfo {
            id: SetId::EMPTY,
            sha256: String::new(),
            config: String::new(),
            plugins: Vec::new(),
            controllers: BTreeSet::new(),
            sections: BTreeMap::new(),
            facts: Arc::default(),
            in_folder: 0,
            held: Vec::new(),
            settings,
        }
    }
}

/// What to do when the first set cannot be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadStart {
    /// End, and say why.
    Exit,
    /// Serve the last good set, loudly, if there is one.
    LastGood,
    /// Serve 503 from a set without plugins, and wait for a reload.
    ServeEmpty,
}

/// A shutdown in progress.
#[derive(Clone, Debug)]
struct Stopping {
    op: OpId,
    /// Until then all goes on as before.
    begins: Time,
    /// When what is left is cut, once it has begun.
    cut: Option<Time>,
    begun: bool,
    cut_sent: bool,
}

/// A crash is answered by a new generation of the same set.
#[derive(Clone, Debug)]
struct Respawn {
    at: Time,
    of: Generation,
}

#[derive(Clone, Debug)]
pub struct State {
    settings: Settings,
    bad_start: BadStart,
    now: Time,
    next_generation: u64,
    next_op: u64,
    generations: BTreeMap<Generation, Gen>,
    history: VecDeque<GenerationStatus>,
    /// The generation that serves, or takes service back.
    committed: Option<Generation>,
    /// The generation that shall serve next.
    candidate: Option<Generation>,
    /// Since when nothing serves, or the last attempt to answer 503 meanwhile began.
    down: Option<Time>,
    /// What was committed last: a crash brings it back.
    set: Option<Arc<SetInfo>>,
    respawn: Option<Respawn>,
    saving: Option<Saving>,
    /// By a cold operation.
    stopped: Option<Stopped>,
    past: PastSets,
    /// Deaths in a row.
    row: u32,
    /// When the set that serves died, within `crash.window`.
    deaths: VecDeque<Time>,
    /// For the jitter of waits.
    seed: u64,
    fallback: Option<Fallback>,
    /// Why the first set could not be started, while the last good one is tried.
    start_failure: Option<Failure>,
    alert: Option<String>,
    quarantines: u64,
    running: Option<Running>,
    /// The latest.
    test: TestId,
    waiting: Option<Operation>,
    stopping: Option<Stopping>,
    cuts: Vec<Cutting>,
    /// Newest last.
    reports: VecDeque<Report>,
    /// Since the shutdown began.
    any_cut: bool,
    /// Decided; the last children are awaited.
    ending: Option<Exit>,
    finished: bool,
    switches: u64,
    crashes: u64,
    actions: Vec<Action>,
}

impl State {
    /// With what an earlier master has left.
    pub fn new(settings: Settings, bad_start: BadStart, memory: Memory<Arc<SetInfo>>) -> State {
        State {
            settings,
            bad_start,
            now: Duration::ZERO,
            next_generation: 1,
            next_op: 1,
            generations: BTreeMap::new(),
            history: VecDeque::new(),
            committed: None,
            candidate: None,
            down: None,
            set: None,
            past: PastSets::recalled(memory),
            respawn: None,
            saving: None,
            stopped: None,
            row: 0,
            deaths: VecDeque::new(),
            seed: 0,
            fallback: None,
            start_failure: None,
            alert: None,
            quarantines: 0,
            running: None,
            test: TestId::default(),
            waiting: None,
            stopping: None,
            cuts: Vec::new(),
            reports: VecDeque::new(),
            any_cut: false,
            ending: None,
            finished: false,
            switches: 0,
            crashes: 0,
            actions: Vec::new(),
        }
    }

    /// Waits are spread by chance from now on, so that many servers do not come back at the same moment.
    pub fn with_seed(mut self, seed: u64) -> State {
        self.seed = seed;
        self
    }

    /// One step. `now` never goes back.
    pub fn step(&mut self, event: Event, now: Time) -> Vec<Action> {
        self.now = now.max(self.now);
        match event {
            Event::Asked { verb: Verb::Reload, cause, options, caller } => self.reload_asked(cause, options, caller),
            Event::Asked { verb: Verb::Cut, cause, options, caller } => self.cut_asked(cause, options, caller),
            Event::Asked { verb: Verb::Restart, cause, options, caller } => {
                self.restart_asked(cause, options, caller);
            }
            Event::Asked { verb: Verb::Rollback, cause, options, caller } => {
                self.rollback_asked(cause, options, caller);
            }
            Event::Asked { verb: Verb::Shutdown, cause, caller, .. } => self.shutdown_asked(cause, caller),
            Event::Prepared { op, result } => self.prepared(op, result),
            Event::Spawned { generation, result } => self.spawned(generation, result),
            Event::Message { generation, message } => self.message(generation, message),
            Event::Exited { generation, exit, output } => self.exited(generation, exit, &output),
            Event::Counted { generation, requests, failures } => self.counted(generation, requests, failures),
            Event::Hook { hook, cause } => self.hook(hook, cause),
            Event::Tested { test, result } => self.tested(test, result),
            Event::Stayed { op, failure } => self.stayed(op, failure),
            Event::Tick => {}
        }
        self.deadlines();
        self.advance();
        if cfg!(any(test, debug_assertions))
            && let Err(broken) = self.check()
        {
            panic!("broken invariant: {broken}: {self:#?}");
        }
        std::mem::take(&mut self.actions)
    }

    /// When a `Tick` is due at the latest.
    pub fn next_deadline(&self) -> Option<Time> {
        let generations = self.generations.values().filter_map(|generation| generation.deadline);
        let respawn = self.respawn.as_ref().filter(|_| self.may_respawn()).map(|respawn| respawn.at);
        let stopping = self.stopping.as_ref().and_then(|stopping| match stopping {
            Stopping { begun: false, begins, .. } => Some(*begins),
            Stopping { cut_sent: false, cut, .. } => *cut,
            _ => None,
        });
        let fallback = self.fallback.as_ref().filter(|_| self.candidate.is_none() && self.running.is_none());
        let saving = self.saving.as_ref().map(|saving| saving.until);
        generations
            .chain(saving)
            .chain(fallback.map(Fallback::at))
            .chain(respawn)
            .chain(stopping)
            .chain(self.room_deadline())
            .chain(self.stand_in_due())
            .min()
    }

    /// All that follows from where things stand: one thing leads to the next without an event.
    fn advance(&mut self) {
        self.advance_shutdown();
        self.advance_saving();
        self.restart_gives_way();
        self.advance_fallback();
        self.advance_respawn();
        self.advance_operations();
        self.advance_restart();
        self.advance_stand_in();
        self.remember();
        if self.generations.is_empty()
            && let Some(exit) = self.ending.take()
        {
            self.finished = true;
            self.act(Action::Finish(exit));
        }
    }

    fn act(&mut self, action: Action) {
        self.actions.push(action);
    }

    fn note(&mut self, note: Note) {
        self.actions.push(Action::Note(note));
    }

    /// One process hears it, once: what drains is on its way out, and what starts may never serve.
    fn hook(&mut self, hook: Hook, cause: Cause) {
        let to = self.serving();
        self.note(Note::Hooked { hook, cause, to });
        if let Some(to) = to {
            self.send(to, ToChild::Hook(hook));
        }
    }

    /// The deadlines of a retiring generation: those of the configuration, or of what stops it.
    fn drain_deadlines(&self) -> Deadlines {
        let drain = &self.settings.drain;
        let ms = |limit: Limit| limit.duration().map(|duration| duration.as_millis() as u64);
        let mut deadlines = Deadlines {
            keepalive_ms: ms(drain.keepalive),
            timeout_ms: ms(drain.timeout),
            linger_ms: None,
            upgraded_ms: ms(drain.upgraded),
            stream_ms: ms(drain.stream),
            min_rate: drain.min_rate,
            max_ms: ms(drain.max),
        };
        if self.is_stopping() || self.stopped.is_some() {
            self.shorten_idle(&mut deadlines);
        }
        let shutdown = self.stopping.as_ref().filter(|stopping| stopping.begun).and_then(|stopping| stopping.cut);
        let stopped = self.stopped.as_ref().and_then(|stopped| stopped.cut);
        if let Some(cut) = shutdown.into_iter().chain(stopped).min() {
            let left = cut.saturating_sub(self.now).as_millis() as u64;
            deadlines.max_ms = Some(deadlines.max_ms.map_or(left, |max| max.min(left)));
        }
        deadlines
    }

    /// Bounds how long idle connections are kept open: nothing will accept again before they have ended.
    fn shorten_idle(&self, deadlines: &mut Deadlines) {
        let Some(idle) = self.settings.shutdown.idle.duration() else { return };
        let idle = u64::try_from(idle.as_millis()).unwrap_or(u64::MAX);
        // The close is part of that time: see docs/LIMITS.md.
        let linger = idle / LINGER_PART;
        deadlines.keepalive_ms = Some(deadlines.keepalive_ms.map_or(idle - linger, |own| own.min(idle - linger)));
        deadlines.linger_ms = Some(linger);
    }

    // ---- what others may see ----

    pub fn report(&self, op: OpId) -> Option<&Report> {
        self.reports.iter().find(|report| report.op == op)
    }

    /// Newest first.
    pub fn reports(&self) -> impl Iterator<Item = &Report> {
        self.reports.iter().rev()
    }

    /// A generation serves what was asked for, and no shutdown was.
    pub fn is_ready(&self) -> bool {
        let fed = self.set.as_ref().is_some_and(|set| set.id != SetId::EMPTY);
        self.stopping.is_none() && self.serving().is_some() && self.serves_own() && fed
    }

    pub fn is_shutting_down(&self) -> bool {
        self.stopping.is_some()
    }

    pub fn switches(&self) -> u64 {
        self.switches
    }

    pub fn quarantines(&self) -> u64 {
        self.quarantines
    }

    /// What an operator must know of what serves.
    pub fn alert(&self) -> Option<&str> {
        let stands_in = self.committed.is_some() && !self.serves_own();
        let unfed = "nothing has come up within crash.hold: every request is answered 503 until it does";
        stands_in.then_some(unfed).or(self.alert.as_deref())
    }

    pub fn crashes(&self) -> u64 {
        self.crashes
    }

    /// The generation whose answers are to be counted: it is on probation, and too many failures would end that.
    pub fn watched(&self) -> Option<Generation> {
        self.settings.probation.max_failure_ratio.and(self.standing_by()).and(self.serving())
    }

    /// The set that a generation runs.
    pub fn set_of(&self, generation: Generation) -> Option<SetId> {
        self.generations.get(&generation).map(|generation| generation.set.id)
    }

    /// What was committed last.
    pub fn kept_set(&self) -> Option<SetId> {
        self.set.as_ref().map(|set| set.id)
    }

    /// Sets that a generation runs, or that a crash or a rollback would bring back.
    pub fn sets_in_use(&self) -> impl Iterator<Item = SetId> {
        let prepared = self.running.as_ref().and_then(Running::prepared).map(|set| set.id);
        self.generations
            .values()
            .map(|generation| generation.set.id)
            .chain(self.set.as_ref().map(|set| set.id))
            .chain(prepared)
            .chain(self.past.sets().map(|set| set.id))
            .chain(self.goals().map(|set| set.id))
    }

    /// Sets whose addresses must be open: of every generation that accepts or shall accept.
    pub fn sets_accepting(&self) -> impl Iterator<Item = SetId> {
        let prepared = self.running.as_ref().and_then(Running::prepared).map(|set| set.id);
        self.generations
            .values()
            .filter(|generation| generation.phase < Phase::Retiring)
            .map(|generation| generation.set.id)
            .chain(self.set.as_ref().map(|set| set.id))
            .chain(prepared)
    }

    /// Generations that accept, or may yet.
    pub fn accepting_generations(&self) -> Vec<Generation> {
        let accepting = self.generations.values().filter(|generation| generation.phase < Phase::Retiring);
        accepting.map(|generation| generation.number).collect()
    }

    /// Newest first; ended ones follow.
    pub fn generations(&self, now: Time) -> Vec<GenerationStatus> {
        let live = self.generations.values().rev().map(|generation| generation.status(now, None));
        live.chain(self.history.iter().rev().cloned()).collect()
    }

    /// The invariants; the text says which one is broken.
    pub fn check(&self) -> Result<(), String> {
        let phase = |phase: Phase| self.generations.values().filter(|generation| generation.phase == phase).count();
        // What only stands in is told to go before it has said that it serves.
        let committing = self
            .generations
            .values()
            .filter(|one| one.phase == Phase::Committing && !self.is_stand_in(one.set.id))
            .count();
        let (serving, resuming, pausing) = (phase(Phase::Serving), phase(Phase::Resuming), phase(Phase::Pausing));
        if pausing + phase(Phase::Standby) > 1 {
            return Err("two generations stand by".into());
        }
        if serving + resuming > 1 {
            return Err("two generations are committed".into());
        }
        let committed = self.serving().or(self.resuming());
        if self.committed != committed && !self.is_stopping() {
            return Err(format!("committed is {:?}, but {committed:?} serves", self.committed));
        }
        match (committing, serving + resuming, pausing) {
            (0 | 1, 0 | 1, 0) | (0, 1, 1) => {}
            (_, _, _) if self.is_stopping() => {}
            other => return Err(format!("too many accept: {other:?}")),
        }
        let coming =
            self.candidate.is_some() || self.respawn.is_some() || self.running.is_some() || self.fallback.is_some();
        if self.stopped.is_some() {
            if serving + resuming + pausing + phase(Phase::Standby) > 0 {
                return Err("something serves beside what was stopped".into());
            }
            if self.candidate.is_some() && self.generations.len() > 1 {
                return Err("two processes live in a cold operation".into());
            }
        }
        if self.committed.is_none() && !coming && self.stopping.is_none() && !self.is_ending() && self.set.is_some() {
            return Err("nothing serves and nothing is on its way".into());
        }
        if let Some(candidate) = self.candidate
            && self.generations.get(&candidate).is_none_or(|generation| generation.phase > Phase::Committing)
        {
            return Err("the candidate is none".into());
        }
        if self.stopping.is_some() && self.waiting.is_some() {
            return Err("an operation waits for its turn, and none will come".into());
        }
        Ok(())
    }
}
