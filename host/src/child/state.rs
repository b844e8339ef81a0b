//! The life of a worker as a pure machine: an event and the time go in, actions come out. No I/O and no clock in here, so
//! that any history can be tested.
//!
//! Owns the order of things: a worker accepts only on GO or RESUME, never by its own decision; DONE is said once; when the
//! master is gone nothing is accepted any more. A message that comes out of order is a failure before READY and is logged
//! and ignored after it: a worker that serves is not brought down by a confused master.

use std::time::Duration;

use crate::config::Drain;
use crate::control::{Deadlines, EXIT_TIMEOUT, Hook, PROTOCOL, Protocols};
use crate::report::{DrainReport, Failure, Stage};

/// All that can happen to a worker.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The master's greeting.
    Hello {
        protocols: Protocols,
    },
    /// What to serve: so many listeners follow.
    Load {
        listeners: usize,
        drain: Drain,
    },
    /// One of the listeners came.
    Listener,
    /// All plugins are up, or one is not.
    Loaded(Result<(), Failure>),
    /// Every probe got the answer it expects, or one did not.
    Proved(Result<(), Failure>),
    Go,
    Pause,
    Resume,
    Retire(Deadlines),
    Cut,
    /// A signal for the plugins.
    Hook(Hook),
    DoneAck,
    /// The master sent what this worker cannot act on.
    Broken(String),
    /// The master is gone.
    Orphaned,
    /// SIGTERM, from outside.
    Term,
    /// All listeners are registered.
    Accepting,
    /// Nothing is accepted any more; what was is being served.
    Stopped,
    /// No connection is left and the plugins have ended.
    Drained(DrainReport),
    /// The time of [`State::deadline`] has come.
    Deadline,
}

/// What to do about it, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    SendHello,
    SendReady,
    SendFailed(Failure),
    SendServing,
    SendPaused,
    SendDone(DrainReport),
    SendReplaceMe,
    /// Load the plugins; answered by [`Event::Loaded`].
    Load,
    /// Send the probes; answered by [`Event::Proved`].
    Prove,
    /// The parent's stderr takes over from the one that only it reads.
    TakeOutput,
    /// Register all listeners; answered by [`Event::Accepting`].
    StartAccepting,
    /// Empty the accept queues and deregister; answered by [`Event::Stopped`].
    StopAccepting,
    /// Give up our copies of the listeners: this worker accepts no more.
    CloseListeners,
    TellPluginsServing,
    TellPluginsShutdown,
    TellPluginsHook(Hook),
    /// End the connections as these limits allow; answered by [`Event::Drained`]. A second time: with these limits from
    /// now on.
    Drain(Deadlines),
    /// End what is left now.
    CutAll,
    /// See that the process ends after this long, whatever hangs.
    EnforceEnd(Duration),
    /// Say so in the log.
    Warn(String),
    Exit(i32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Our HELLO is out, the master's has not come.
    Greeting,
    /// LOAD has not come.
    Empty,
    Loading {
        /// Listeners still to come.
        missing: usize,
        plugins_up: bool,
    },
    Proving,
    /// FAILED was said; the master ends us.
    Failed,
    Ready,
    /// GO or RESUME came; the listeners are being registered.
    Starting,
    Serving,
    /// PAUSE came; accept queues are being emptied.
    Pausing {
        /// RESUME came meanwhile.
        resume: bool,
    },
    Paused,
    Retiring,
    /// DONE was said.
    Done,
    Ended,
}

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct State {
    phase: Phase,
    orphaned: bool,
    /// REPLACE_ME was said and nothing came of it yet.
    asked: bool,
    /// Whether StopAccepting was given and [`Event::Stopped`] is owed.
    stopping: bool,
    drain: Drain,
    deadline: Option<Duration>,
}

impl State {
    /// The start: a greeting to send.
    pub fn new() -> (State, Vec<Action>) {
        let state = State {
            phase: Phase::Greeting,
            orphaned: false,
            asked: false,
            stopping: false,
            drain: Drain::default(),
            deadline: None,
        };
        (state, vec![Action::SendHello])
    }

    /// When [`Event::Deadline`] is due, on the clock of `step`.
    pub fn deadline(&self) -> Option<Duration> {
        self.deadline
    }

    /// Whether the master has made this worker the one that serves: from GO on.
    #[cfg(test)]
    pub fn committed(&self) -> bool {
        use Phase::{Done, Ended, Paused, Pausing, Retiring, Serving, Starting};
        matches!(self.phase, Starting | Serving | Pausing { .. } | Paused | Retiring | Done | Ended)
    }

    pub fn step(&mut self, event: Event, now: Duration) -> Vec<Action> {
        use Phase::{
            Done, Empty, Ended, Failed, Greeting, Loading, Paused, Pausing, Proving, Ready, Retiring, Serving, Starting,
        };
        match (self.phase, event) {
            (Ended, _) => vec![],

            // ---- until READY ----
            (Greeting, Event::Hello { protocols }) => match PROTOCOL.common(protocols) {
                Some(_) => self.go_to(Empty, vec![]),
                None => self.fail(format!(
                    "failed to agree on a control protocol: the master speaks {} to {}, this worker {} to {}",
                    protocols.oldest, protocols.newest, PROTOCOL.oldest, PROTOCOL.newest
                )),
            },
            (Empty, Event::Load { listeners, drain }) => {
                self.drain = drain;
                self.go_to(Loading { missing: listeners, plugins_up: false }, vec![Action::Load])
            }
            (Loading { missing, plugins_up }, Event::Listener) if missing > 0 => self.loading(missing - 1, plugins_up),
            (Loading { missing, plugins_up: false }, Event::Loaded(Ok(()))) => self.loading(missing, true),
            (Proving, Event::Proved(Ok(()))) => self.go_to(Ready, vec![Action::SendReady]),
            (Loading { .. }, Event::Loaded(Err(failure))) | (Proving, Event::Proved(Err(failure))) => {
                self.go_to(Failed, vec![Action::SendFailed(failure)])
            }

            // ---- serving, pausing, and back ----
            (Ready, Event::Go) => {
                self.go_to(Starting, vec![Action::TakeOutput, Action::StartAccepting, Action::TellPluginsServing])
            }
            (Starting, Event::Accepting) => self.go_to(Serving, vec![Action::SendServing]),
            (Starting | Serving, Event::Pause) => {
                self.stopping = true;
                self.go_to(Pausing { resume: false }, vec![Action::StopAccepting])
            }
            (Pausing { resume: false }, Event::Stopped) => {
                self.stopping = false;
                self.go_to(Paused, vec![Action::SendPaused])
            }
            (Pausing { resume: false }, Event::Resume) => self.go_to(Pausing { resume: true }, vec![]),
            (Pausing { resume: true }, Event::Pause) => self.go_to(Pausing { resume: false }, vec![]),
            (Pausing { resume: true }, Event::Stopped) => {
                self.stopping = false;
                self.start_again()
            }
            (Paused, Event::Resume) => self.start_again(),
            // Registered only after PAUSE had come: the stop that follows covers it.
            (Pausing { .. } | Retiring, Event::Accepting) => vec![],

            // ---- the end ----
            (Starting | Serving | Pausing { .. } | Paused, Event::Retire(deadlines)) => self.retire(deadlines),
            (Retiring, Event::Stopped) => {
                self.stopping = false;
                vec![Action::CloseListeners]
            }
            // With other limits from now on.
            (Retiring, Event::Retire(deadlines)) => vec![Action::Drain(deadlines)],
            (Retiring, Event::Cut) => vec![Action::CutAll],
            (Retiring, Event::Drained(_)) if self.orphaned => self.go_to(Ended, vec![Action::Exit(1)]),
            (Retiring, Event::Drained(report)) => {
                self.deadline = Some(now + EXIT_TIMEOUT);
                self.go_to(Done, vec![Action::SendDone(report)])
            }
            (Done, Event::DoneAck) => self.go_to(Ended, vec![Action::Exit(0)]),
            // The report may not have arrived: not a clean end.
            (Done, Event::Deadline) => self.go_to(Ended, vec![Action::Exit(1)]),

            // ---- a signal for the plugins: of one that has served, and does no more, it is not the business ----
            (Starting | Serving, Event::Hook(hook)) => vec![Action::TellPluginsHook(hook)],
            (_, Event::Hook(_)) => vec![],

            // ---- SIGTERM: the master decides; meanwhile this worker serves on ----
            (Starting | Serving, Event::Term) if !self.asked => {
                self.asked = true;
                vec![Action::SendReplaceMe]
            }
            (_, Event::Term) => vec![],

            // ---- the master is gone ----
            (Greeting | Empty | Loading { .. } | Proving | Failed | Ready | Done, Event::Orphaned) => {
                self.orphaned = true;
                self.go_to(Ended, vec![Action::Exit(1)])
            }
            (_, Event::Orphaned) if self.orphaned => vec![],
            (phase, Event::Orphaned) => self.orphan(phase),

            // ---- out of order ----
            (_, Event::Deadline) => vec![],
            (Greeting | Empty | Loading { .. } | Proving, event) => {
                self.fail(format!("failed to follow the master: {event}"))
            }
            (_, event) => vec![Action::Warn(format!("failed to follow the master: {event}"))],
        }
    }

    fn go_to(&mut self, phase: Phase, actions: Vec<Action>) -> Vec<Action> {
        self.phase = phase;
        actions
    }

    fn fail(&mut self, error: String) -> Vec<Action> {
        self.go_to(Phase::Failed, vec![Action::SendFailed(Failure::new(Stage::Spawn, error))])
    }

    fn loading(&mut self, missing: usize, plugins_up: bool) -> Vec<Action> {
        if missing == 0 && plugins_up {
            return self.go_to(Phase::Proving, vec![Action::Prove]);
        }
        self.go_to(Phase::Loading { missing, plugins_up }, vec![])
    }

    fn start_again(&mut self) -> Vec<Action> {
        self.asked = false;
        self.go_to(Phase::Starting, vec![Action::StartAccepting])
    }

    /// RETIRE follows PAUSED; but a master that waited too long for PAUSED retires without it.
    fn retire(&mut self, deadlines: Deadlines) -> Vec<Action> {
        let mut actions = self.stop();
        actions.extend([Action::TellPluginsShutdown, Action::Drain(deadlines)]);
        self.go_to(Phase::Retiring, actions)
    }

    fn stop(&mut self) -> Vec<Action> {
        match self.phase {
            Phase::Starting | Phase::Serving => {
                self.stopping = true;
                vec![Action::StopAccepting]
            }
            // Under way: [`Event::Stopped`] will close them.
            _ if self.stopping => vec![],
            _ => vec![Action::CloseListeners],
        }
    }

    fn orphan(&mut self, phase: Phase) -> Vec<Action> {
        self.orphaned = true;
        let whole = u64::try_from(self.drain.orphan.as_millis()).unwrap_or(u64::MAX);
        let limit = |limit: crate::config::Limit| {
            let limit = limit.duration().map_or(whole, |own| u64::try_from(own.as_millis()).unwrap_or(whole));
            Some(limit.min(whole))
        };
        let deadlines = Deadlines {
            keepalive_ms: limit(self.drain.keepalive),
            timeout_ms: limit(self.drain.timeout),
            linger_ms: None,
            upgraded_ms: limit(self.drain.upgraded),
            stream_ms: limit(self.drain.stream),
            min_rate: self.drain.min_rate,
            max_ms: Some(whole),
        };
        let mut actions = vec![
            Action::EnforceEnd(self.drain.orphan),
            Action::Warn("the master is gone: accepting no more, ending soon".into()),
        ];
        match phase {
            Phase::Retiring => actions.push(Action::Drain(deadlines)),
            _ => actions.extend(self.retire(deadlines)),
        }
        actions
    }
}

impl std::fmt::Display for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Event::Hello { .. } => "HELLO came out of order",
            Event::Load { .. } => "LOAD came out of order",
            Event::Listener => "a LISTENER too many",
            Event::Loaded(_) => "the plugins were loaded twice",
            Event::Proved(_) => "the probes ended out of order",
            Event::Go => "GO came out of order",
            Event::Pause => "PAUSE came out of order",
            Event::Resume => "RESUME came out of order",
            Event::Retire(_) => "RETIRE came out of order",
            Event::Cut => "CUT came out of order",
            Event::Hook(_) => "HOOK came out of order",
            Event::DoneAck => "DONE_ACK came out of order",
            Event::Broken(why) => why,
            Event::Orphaned => "its end came out of order",
            Event::Term => "SIGTERM came out of order",
            Event::Accepting => "accepting began out of order",
            Event::Stopped => "accepting ended out of order",
            Event::Drained(_) => "the drain ended out of order",
            Event::Deadline => "a deadline came out of order",
        })
    }
}

#[cfg(test)]
mod tests;
