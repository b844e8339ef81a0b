//! Reading from a child, which is not trusted: bounded in rate and in what is kept, whatever comes; its messages go to the loop as
//! events, in order, and its death last. The pidfd decides about the death, never the socket: other processes may hold a copy of
//! the child's end and write on.
//!
//! Refuses descriptors. Where the kernel cannot (before Linux 6.16) they are closed on another thread, and nothing more is read
//! until they are.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::state::Event;
use crate::control::states::{self, StateEntry, States, StatesError};
use crate::control::{ChannelError, Incoming, MasterEnd, ToMaster};
use crate::report::{Generation, NotSaved};
use crate::sys::process::{self, ExitKind, Process};
use crate::sys::{closing, seqpacket};
use crate::telemetry::Seldom;

/// How much of a child's output is quoted when it fails.
const OUTPUT_TAIL: u64 = 4096;
/// How long the messages that a dead child has left are read. They lie in the kernel, which takes no more.
const POST_EXIT_READ: Duration = Duration::from_millis(100);
/// Bytes that are read from a child in a second, and at once after a pause.
const READ_RATE: usize = 1 << 20;
/// What a message costs beside its bytes: a thousand short ones a second, more than any child has reason to send.
const MESSAGE_COST: usize = 1024;
/// Of a text that a child may have made, what goes into a log line.
const QUOTED: usize = 200;

/// The memory for what a child's plugins hand on.
#[derive(Debug, Default)]
pub struct StateMemory {
    /// Went with the latest SAVE.
    lent: Option<OwnedFd>,
    /// Came back filled, until the loop takes it.
    kept: Option<States>,
}

pub type SharedStateMemory = Arc<Mutex<StateMemory>>;

impl StateMemory {
    /// Makes memory for a SAVE. An answer to an earlier one counts no more.
    pub fn lend(memory: &SharedStateMemory) -> io::Result<OwnedFd> {
        let fd = states::lend()?;
        let lent = fd.try_clone()?;
        memory.lock().unwrap_or_else(PoisonError::into_inner).lent = Some(lent);
        Ok(fd)
    }

    pub fn take(memory: &SharedStateMemory) -> Option<States> {
        memory.lock().unwrap_or_else(PoisonError::into_inner).kept.take()
    }
}

/// How much may be read now.
#[derive(Debug)]
struct ReadBudget {
    /// Bytes; below zero after a message that was longer than what was left.
    left: i64,
    counted: Instant,
}

impl ReadBudget {
    fn new(now: Instant) -> ReadBudget {
        ReadBudget { left: READ_RATE as i64, counted: now }
    }

    fn refill(&mut self, now: Instant) {
        let time = now.saturating_duration_since(self.counted).min(Duration::from_secs(10));
        self.left = (self.left + (time.as_micros() as i64 * READ_RATE as i64) / 1_000_000).min(READ_RATE as i64);
        self.counted = now;
    }

    fn spend(&mut self, bytes: usize, now: Instant) {
        self.refill(now);
        self.left -= (bytes + MESSAGE_COST) as i64;
    }

    /// When the next message may be read; `None` for now.
    fn next(&self) -> Option<Instant> {
        let lacking = u64::try_from(-self.left).ok().filter(|lacking| *lacking > 0)?;
        Some(self.counted + Duration::from_micros(lacking * 1_000_000 / READ_RATE as u64))
    }
}

/// Whether more can come from the child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Socket {
    Open,
    Ended,
}

/// Carries a child's messages to the loop.
pub struct ChildReader {
    pub channel: Arc<MasterEnd>,
    pub process: Arc<Process>,
    pub output: Arc<File>,
    pub states: SharedStateMemory,
    pub generation: Generation,
    pub events: mpsc::Sender<Event>,
    pub complaints: Seldom,
}

impl ChildReader {
    /// Reads until the child has ended, and then reports its death; or until `stopped`, and then nothing is in its hands.
    pub async fn run(mut self, ended: AsyncFd<OwnedFd>, mut stopped: oneshot::Receiver<()>) {
        let mut budget = ReadBudget::new(Instant::now());
        let mut socket = Socket::Open;
        let mut closing = None;
        loop {
            let channel = self.channel.clone();
            let next = async {
                if let Some(at) = budget.next() {
                    tokio::time::sleep_until(at).await;
                }
                // Ends with an error when all is closed.
                wait_for(&mut closing).await;
                channel.receive().await
            };
            tokio::select! {
                biased;
                _ = ended.readable() => break,
                // What has not been read is for the next reader.
                _ = &mut stopped => return,
                received = next, if socket == Socket::Open => match received {
                    Ok(Some(incoming)) => {
                        budget.spend(incoming.len, Instant::now());
                        closing = self.forward(incoming).await;
                    }
                    Ok(None) => socket = Socket::Ended,
                    Err(error) => {
                        self.give_up(&error);
                        socket = Socket::Ended;
                    }
                },
            }
        }
        self.read_the_rest().await;
        let generation = self.generation;
        let exit = match self.process.try_wait() {
            Ok(Some(exit)) => exit,
            // The pidfd is readable, so the process has ended; without a status another waiter took it.
            Ok(None) => ExitKind::Code(-1),
            Err(error) => {
                tracing::error!(generation = generation.0, pid = self.process.pid, "failed to reap: {error}");
                ExitKind::Code(-1)
            }
        };
        let output = tail(&self.output);
        // The loop is gone only when the master ends.
        let _ = self.events.send(Event::Exited { generation, exit, output }).await;
    }

    /// Forwards what the dead child has left in the kernel. Nothing is added to that: also with a copy of the child's end another
    /// process can send no more, and what it could is finite. What lies behind an empty message, which looks as the end does, is
    /// closed with the socket, which waits for it elsewhere.
    async fn read_the_rest(&mut self) {
        if let Err(error) = seqpacket::stop_receiving(self.channel.as_fd()) {
            tracing::debug!(generation = self.generation.0, "failed to stop receiving: {error}");
        }
        let channel = self.channel.clone();
        let rest = async {
            while let Ok(Some(incoming)) = channel.try_receive() {
                // Not waited for: this is the last that is read.
                drop(self.forward(incoming).await);
            }
        };
        if tokio::time::timeout(POST_EXIT_READ, rest).await.is_err() {
            tracing::warn!(generation = self.generation.0, "left messages of the dead child unread");
        }
    }

    /// Passes on one message; returns the end of the closing of descriptors that came with it.
    async fn forward(&mut self, incoming: Incoming<ToMaster>) -> Option<oneshot::Receiver<()>> {
        let generation = self.generation;
        let Incoming { message, mut fds, .. } = incoming;
        let message = match message {
            Ok(ToMaster::Failed(failure)) if failure.detail.is_none() => {
                Some(ToMaster::Failed(failure.detail(tail(&self.output))))
            }
            #[cfg(feature = "next")]
            Ok(ToMaster::Novelty { .. }) => None,
            Ok(ToMaster::Unknown) => {
                self.complain("ignored a control message that this version does not know");
                None
            }
            Ok(ToMaster::Saved { states, failed, memory }) => self.take_states(states, failed, memory, &mut fds),
            Ok(other) => Some(other),
            // Not worth its life: a newer child may say what this version does not know.
            Err(error) => {
                self.complain(&error.to_string());
                None
            }
        };
        if let Some(message) = message {
            // The loop is gone only when the master ends.
            let _ = self.events.send(Event::Message { generation, message }).await;
        }
        if fds.is_empty() {
            return None;
        }
        self.complain("closed descriptors that the child had no reason to send");
        match closing::close(fds) {
            Ok(closed) => Some(closed),
            Err(error) => {
                tracing::error!(generation = generation.0, "failed to start the thread that closes them: {error}");
                None
            }
        }
    }

    /// One line a second at most, and a short one: both are the child's choice.
    fn complain(&mut self, what: &str) {
        if self.complaints.again() {
            tracing::warn!(generation = self.generation.0, pid = self.process.pid, "{}", short(what));
        }
    }

    /// A child that cannot be spoken to cannot be retired either.
    fn give_up(&self, error: &io::Error) {
        let (generation, pid) = (self.generation.0, self.process.pid);
        tracing::error!(
            generation,
            pid,
            "{}; killing the child",
            ChannelError::Io(io::Error::other(error.to_string()))
        );
        if let Err(error) = self.process.signal(Signal::SIGKILL) {
            tracing::error!(generation, "failed to kill: {error}");
        }
    }

    /// Keeps the memory that the child has filled, if it is as the message says; the message says what is kept. `None` for the
    /// answer to an earlier SAVE.
    fn take_states(
        &self,
        states: Vec<StateEntry>,
        mut failed: Vec<NotSaved>,
        identity: Option<u64>,
        fds: &mut Vec<OwnedFd>,
    ) -> Option<ToMaster> {
        for NotSaved { plugin, error } in &mut failed {
            error.truncate(short(error).len());
            if let Some(plugin) = plugin {
                plugin.truncate(short(plugin).len());
            }
        }
        let mut memory = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let filled = match identity {
            Some(said) => {
                let lent = |fd: &mut OwnedFd| states::identity(fd.as_fd()).is_ok_and(|lent| lent == said);
                Some(memory.lent.take_if(lent)?)
            }
            // A child of an earlier version brings its own. What is no such memory is not closed here.
            None if fds.first().is_some_and(|fd| states::is_sealed(fd.as_fd())) => Some(fds.remove(0)),
            None => None,
        };
        let taken = match filled {
            _ if states.is_empty() => Ok(None),
            Some(filled) => States::take(states.clone(), filled).map(Some),
            None => Err(StatesError::Broken("no sealed memory came with them")),
        };
        let (kept, states) = match taken {
            Ok(Some(kept)) => (Some(kept), states),
            Ok(None) => (None, Vec::new()),
            Err(error) => {
                let error = error.to_string().trim_start_matches("failed to ").to_owned();
                failed.push(NotSaved { plugin: None, error });
                (None, Vec::new())
            }
        };
        memory.kept = kept;
        Some(ToMaster::Saved { states, failed, memory: identity })
    }
}

/// The beginning of a text.
fn short(text: &str) -> &str {
    let end = (0..=QUOTED.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    &text[..end]
}

/// Waits until that has ended, if there is anything.
async fn wait_for(closing: &mut Option<oneshot::Receiver<()>>) {
    if let Some(closed) = closing.as_mut() {
        // The sender is dropped when all is closed.
        let _ = closed.await;
    }
    *closing = None;
}

fn tail(output: &File) -> String {
    process::tail(output, OUTPUT_TAIL).unwrap_or_else(|error| format!("(its output cannot be read: {error})"))
}

#[cfg(test)]
mod tests;
