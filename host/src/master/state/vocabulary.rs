//! The supervisor's vocabulary: all that can happen to it, all that it can want done, and what operators shall read of it.

use std::sync::Arc;
use std::time::Duration;

use super::{Caller, Inherit, Memory, SetId, SetInfo, TestId};
use crate::control::{Hook, ToChild, ToMaster};
use crate::master::handle::OpOptions;
use crate::report::{Cause, Change, Failure, Generation, NotSaved, OpId, Report, Verb};
use crate::sys::process::ExitKind;

/// All that can wake the supervisor.
#[derive(Clone, Debug)]
pub enum Event {
    /// Somebody wants an operation. A signal has no caller.
    Asked {
        verb: Verb,
        cause: Cause,
        options: OpOptions,
        caller: Option<Caller>,
    },
    /// The files of `op` were read and checked.
    Prepared {
        op: OpId,
        result: Result<Arc<SetInfo>, Failure>,
    },
    Spawned {
        generation: Generation,
        result: Result<i32, Failure>,
    },
    Message {
        generation: Generation,
        message: ToMaster,
    },
    /// A child was reaped; `output` is the end of what it printed before GO.
    Exited {
        generation: Generation,
        exit: ExitKind,
        output: String,
    },
    /// How the generation that [`State::watched`](super::State::watched) names answers.
    Counted {
        generation: Generation,
        requests: u64,
        failures: u64,
    },
    /// A signal for the plugins of the generation that serves.
    Hook {
        hook: Hook,
        cause: Cause,
    },
    /// Whether the binary at the configured path may take over, as test `test` has it.
    Tested {
        test: TestId,
        result: Result<(), Failure>,
    },
    /// It has not taken over: it failed to, or something else began.
    Stayed {
        op: OpId,
        failure: Option<Failure>,
    },
    /// A deadline may have passed.
    Tick,
}

/// All that the supervisor can want.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Make a set for `op`; answered by `Prepared`.
    Prepare {
        op: OpId,
        cause: Cause,
        source: Source,
    },
    /// Test the binary at the configured path; answered by `Tested`.
    Test {
        op: OpId,
        test: TestId,
    },
    /// Let it take over, if [`State::may_leave`](super::State::may_leave) still; answered by `Stayed`, or never.
    Leave {
        op: OpId,
    },
    /// Start a child; answered by `Spawned`.
    Spawn {
        generation: Generation,
        set: SetId,
    },
    /// Send LOAD and the listeners of the generation's set.
    Load {
        generation: Generation,
        probes: Probes,
        inherit: Inherit,
    },
    /// What this generation has saved is the latest from now on.
    KeepStates {
        generation: Generation,
    },
    Send {
        generation: Generation,
        message: ToChild,
    },
    /// Connect two children, so that the one's idle connections can move to the other.
    Handover {
        from: Generation,
        to: Generation,
    },
    /// Close the master's copies of all listening sockets: the children's are the last.
    CloseListeners,
    /// SIGKILL.
    Kill {
        generation: Generation,
    },
    Answer {
        caller: Caller,
        report: Box<Report>,
    },
    /// Write down what shall outlive the master.
    Remember(Memory),
    Note(Note),
    /// End the master. The last action.
    Finish(Exit),
}

/// Where a set comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// The files as they lie there, but for what is `held` back: that is taken from the set `instead`.
    Files { held: Vec<Change>, instead: Option<SetId> },
    /// A set that has served, its plugins with their sections; the rest of the configuration from `within`.
    Again { set: SetId, within: Within },
}

/// Whose configuration plugins that serve again get, beside their own sections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Within {
    /// Their set's.
    Own,
    Set(SetId),
    /// The one that this master was started with.
    Start,
}

/// Whether a generation is to be probed before it may serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probes {
    Send,
    /// Its set has served before, and nothing else does: an answer that is not as expected is better than none.
    Skip,
}

/// What operators shall read in the log.
#[derive(Clone, Debug, PartialEq)]
pub enum Note {
    Reloading {
        op: OpId,
        cause: Cause,
    },
    /// `generation` serves.
    Committed {
        generation: Generation,
        from: Option<Generation>,
        total_ms: f64,
        cause: Cause,
    },
    Refused {
        op: OpId,
        failure: Failure,
        serving: Option<Generation>,
    },
    Crashed {
        generation: Generation,
        exit: String,
        respawn_in: Option<Duration>,
    },
    /// The set of generation `of` is given up; that of `good` takes its place.
    Quarantined {
        of: Generation,
        why: String,
        good: Option<Generation>,
    },
    /// `generation` answers 503 until what shall serve does.
    StandsIn {
        generation: Generation,
    },
    RolledBack {
        to: Generation,
        from: Generation,
        why: String,
    },
    Drained {
        generation: Generation,
        report: crate::report::DrainReport,
    },
    Killed {
        generation: Generation,
        why: String,
    },
    NotSaved {
        generation: Generation,
        failed: NotSaved,
    },
    /// `left_out` more came since the last note.
    Unexpected {
        generation: Generation,
        what: String,
        left_out: u64,
    },
    ShuttingDown {
        cause: Cause,
    },
    Cutting,
    /// `hook` goes to the plugins of `to`; to nobody, if nothing serves.
    Hooked {
        hook: Hook,
        cause: Cause,
        to: Option<Generation>,
    },
}

/// How the master ends.
#[derive(Clone, Debug, PartialEq)]
pub enum Exit {
    /// Every connection ended by itself.
    Drained,
    /// Some were cut.
    Cut,
    /// There never was a generation.
    StartFailed(Failure),
}
