//! One child as the master sees it: its process, its channel, its shared counters, and the tasks that carry messages both
//! ways. Decides nothing; what comes from the child goes to the loop as events, in order, its death last.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::environment;
use super::identity::Identity;
use super::resume::{Fd, Luggage};
use super::state::Event;
use crate::control::states::{StateEntry, States};
use crate::control::{ChannelError, MasterEnd, PROTOCOL, ToChild, ToMaster};
use crate::metrics::{Counts, SLOTS};
use crate::report::{Generation, NotSaved};
use crate::sys::process::{self, ExitKind, Image, Process, Spec};
use crate::sys::shared::Slots;
use crate::sys::{readiness, seqpacket};
use crate::version::VERSION;

/// Set, to the master's pid, in a child's environment: it says which role the binary plays.
pub const ROLE: &str = "BATON_WORKER";
/// How much of a child's output is quoted when it fails.
const TAIL: u64 = 4096;
/// How long the last messages of a dead child are waited for: they are in the queue, unless a stranger holds its end open.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// What came beside SAVED.
type Saved = Arc<Mutex<Option<States>>>;

/// A message for the child with its descriptors.
type Outgoing = (ToChild, Vec<OwnedFd>);

#[derive(Debug)]
pub struct Child {
    generation: Generation,
    process: Arc<Process>,
    channel: Arc<MasterEnd>,
    output: Arc<File>,
    outgoing: mpsc::UnboundedSender<Outgoing>,
    tasks: Tasks,
    /// What its plugins hand on, until the loop takes it.
    saved: Saved,
    slots: Slots<SLOTS>,
    /// Goes with LOAD, and on to another program of this process.
    slots_fd: OwnedFd,
}

/// What carries its messages.
#[derive(Debug)]
struct Tasks {
    write: JoinHandle<()>,
    attend: JoinHandle<()>,
    /// Ends `attend` when there is nothing in its hands.
    stop: Option<oneshot::Sender<()>>,
}

/// A child as another program of this process goes on with it.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedChild {
    generation: Generation,
    pid: i32,
    control: Fd,
    output: Fd,
    slots: Fd,
}

impl Child {
    /// Starts a child of `image`. From now on its messages and its death come to `events`.
    pub fn start(
        image: &Image,
        name: &str,
        identity: &Identity,
        generation: Generation,
        events: mpsc::Sender<Event>,
    ) -> io::Result<Child> {
        let (ours, theirs) = seqpacket::pair()?;
        let (slots_fd, slots) = Slots::create("baton-metrics")?;
        let output = process::output_file(c"baton-output")?;
        let stderr = io::stderr();
        let argv = vec![CString::new(format!("baton: worker gen {generation} ({name})"))?];
        let process = process::spawn(Spec {
            image,
            argv,
            env: environment::of_child(std::env::vars_os(), identity, (ROLE, std::process::id().to_string())),
            output: output.as_fd(),
            // 3: control; 4: the predecessor's connections; 5: takes over from the output file at GO.
            fds: vec![Some(theirs.as_fd()), None, Some(stderr.as_fd())],
            credentials: identity.credentials().cloned(),
        })?;
        drop(theirs);
        let child = Child::over(generation, process, ours, output, (slots_fd, slots), events)?;
        child.send(ToChild::Hello { protocols: PROTOCOL, version: VERSION.into(), generation }, Vec::new());
        #[cfg(feature = "next")]
        child.send(ToChild::Novelty { more: 1 }, Vec::new());
        Ok(child)
    }

    fn over(
        generation: Generation,
        process: Process,
        control: OwnedFd,
        output: File,
        (slots_fd, slots): (OwnedFd, Slots<SLOTS>),
        events: mpsc::Sender<Event>,
    ) -> io::Result<Child> {
        let (process, channel, output) = (Arc::new(process), Arc::new(MasterEnd::new(control)?), Arc::new(output));
        let saved = Saved::default();
        let (outgoing, tasks) = carry(generation, &process, &channel, &output, &saved, events)?;
        Ok(Child { generation, process, channel, output, outgoing, tasks, saved, slots, slots_fd })
    }

    /// One that an earlier program of this process started.
    pub fn resume(saved: &SavedChild, events: mpsc::Sender<Event>) -> io::Result<(Generation, Child)> {
        let slots_fd = saved.slots.copy()?;
        let slots = Slots::open(slots_fd.try_clone()?)?;
        let (control, output) = (saved.control.copy()?, File::from(saved.output.copy()?));
        let process = Process::adopt(saved.pid)?;
        let child = Child::over(saved.generation, process, control, output, (slots_fd, slots), events)?;
        #[cfg(feature = "next")]
        child.send(ToChild::Novelty { more: 2 }, Vec::new());
        Ok((saved.generation, child))
    }

    pub fn save(&self, luggage: &mut Luggage) -> io::Result<SavedChild> {
        Ok(SavedChild {
            generation: self.generation,
            pid: self.process.pid,
            control: luggage.put(self.channel.as_ref())?,
            output: luggage.put(self.output.as_ref())?,
            slots: luggage.put(&self.slots_fd)?,
        })
    }

    /// Takes nothing more from it; answers when what was taken has gone to the loop.
    pub fn stop_reading(&mut self) -> JoinHandle<()> {
        drop(self.tasks.stop.take());
        std::mem::replace(&mut self.tasks.attend, tokio::spawn(async {}))
    }

    /// Takes nothing more for it; answers when it has all that was taken.
    pub fn stop_writing(&mut self) -> JoinHandle<()> {
        self.outgoing = mpsc::unbounded_channel().0;
        std::mem::replace(&mut self.tasks.write, tokio::spawn(async {}))
    }

    /// Carries messages again, in both directions.
    pub fn go_on(&mut self, events: mpsc::Sender<Event>) -> io::Result<()> {
        let carried = carry(self.generation, &self.process, &self.channel, &self.output, &self.saved, events)?;
        (self.outgoing, self.tasks) = carried;
        Ok(())
    }

    pub fn pid(&self) -> i32 {
        self.process.pid
    }

    /// Queues a message. The state machine bounds the queue: it sends each message once.
    pub fn send(&self, message: ToChild, fds: Vec<OwnedFd>) {
        if let ToChild::Retire { .. } = message
            && let Err(error) = self.process.offer_to_oom_killer()
        {
            // Somebody without /proc, or without the right to write there, is no worse off than before.
            tracing::debug!(
                generation = self.generation.0,
                "failed to prefer it to those that serve when memory is short: {error}"
            );
        }
        // The writer ends only with the child; its death is reported by `attend`.
        let _ = self.outgoing.send((message, fds));
    }

    /// The descriptor of the shared counters, to be sent with LOAD.
    pub fn slots_fd(&self) -> io::Result<OwnedFd> {
        self.slots_fd.try_clone()
    }

    /// What it has counted so far.
    pub fn counts(&self) -> Counts {
        Counts::of(self.slots.get())
    }

    /// What its plugins have handed on, once.
    pub fn take_states(&self) -> Option<States> {
        self.saved.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub fn kill(&self) -> io::Result<()> {
        self.process.signal(Signal::SIGKILL)
    }
}

fn carry(
    generation: Generation,
    process: &Arc<Process>,
    channel: &Arc<MasterEnd>,
    output: &Arc<File>,
    saved: &Saved,
    events: mpsc::Sender<Event>,
) -> io::Result<(mpsc::UnboundedSender<Outgoing>, Tasks)> {
    let ended = readiness::register(process.pidfd.try_clone()?, Interest::READABLE)?;
    let (outgoing, queue) = mpsc::unbounded_channel();
    let (stop, stopped) = oneshot::channel();
    let write = tokio::spawn(write(channel.clone(), queue, generation));
    let attendant = Attendant {
        channel: channel.clone(),
        process: process.clone(),
        output: output.clone(),
        saved: saved.clone(),
        generation,
        events,
    };
    let attend = tokio::spawn(attendant.attend(ended, stopped));
    Ok((outgoing, Tasks { write, attend, stop: Some(stop) }))
}

async fn write(channel: Arc<MasterEnd>, mut queue: mpsc::UnboundedReceiver<Outgoing>, generation: Generation) {
    while let Some((message, fds)) = queue.recv().await {
        let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        if let Err(error) = channel.send(&message, &borrowed).await {
            tracing::debug!(generation = generation.0, "{error}");
            return;
        }
    }
}

/// Carries a child's messages to the loop.
struct Attendant {
    channel: Arc<MasterEnd>,
    process: Arc<Process>,
    output: Arc<File>,
    saved: Saved,
    generation: Generation,
    events: mpsc::Sender<Event>,
}

impl Attendant {
    /// Until the child has ended, then its death.
    async fn attend(self, ended: tokio::io::unix::AsyncFd<OwnedFd>, mut stopped: oneshot::Receiver<()>) {
        let mut open = true;
        loop {
            tokio::select! {
                biased;
                received = self.channel.recv(), if open => open = self.forward(received).await,
                _ = ended.readable() => break,
                // Nothing is in our hands here; what has not been read is for whoever goes on.
                _ = &mut stopped => return,
            }
        }
        while open {
            match tokio::time::timeout(LAST_WORDS, self.channel.recv()).await {
                Ok(received) => open = self.forward(received).await,
                Err(_) => open = false,
            }
        }
        let generation = self.generation;
        let exit = match self.process.try_wait() {
            Ok(Some(exit)) => exit,
            // The pidfd is readable, so the process has ended; no status means that somebody else took it.
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

    /// Passes on one message; answers whether more can come.
    async fn forward(&self, received: Result<Option<(ToMaster, Vec<OwnedFd>)>, ChannelError>) -> bool {
        let generation = self.generation;
        let (message, fds) = match received {
            Ok(Some(received)) => received,
            Ok(None) => return false,
            // Not worth its life: a newer child may say what we do not know.
            Err(error @ (ChannelError::Decode(_) | ChannelError::Descriptors { .. } | ChannelError::TooLong(_))) => {
                tracing::warn!(generation = generation.0, "{error}");
                return true;
            }
            Err(error @ ChannelError::Io(_)) => {
                // A child that cannot be spoken to cannot be retired either.
                tracing::error!(generation = generation.0, pid = self.process.pid, "{error}; killing the child");
                if let Err(error) = self.process.signal(Signal::SIGKILL) {
                    tracing::error!(generation = generation.0, "failed to kill: {error}");
                }
                return false;
            }
        };
        let message = match message {
            ToMaster::Failed(failure) if failure.detail.is_none() => {
                ToMaster::Failed(failure.detail(tail(&self.output)))
            }
            #[cfg(feature = "next")]
            ToMaster::Novelty { .. } => return true,
            ToMaster::Unknown => {
                tracing::warn!(generation = generation.0, "ignored a control message that this version does not know");
                return true;
            }
            ToMaster::Saved { states, failed } => self.take_states(states, failed, fds),
            other => other,
        };
        self.events.send(Event::Message { generation, message }).await.is_ok()
    }

    /// Keeps what came, if it is what the child says; the message says what is kept.
    fn take_states(&self, states: Vec<StateEntry>, mut failed: Vec<NotSaved>, fds: Vec<OwnedFd>) -> ToMaster {
        let taken = fds.into_iter().next().map(|memory| States::take(states.clone(), memory)).transpose();
        let (kept, states) = match taken {
            Ok(Some(kept)) => (Some(kept), states),
            Ok(None) => (None, Vec::new()),
            Err(error) => {
                let error = error.to_string().trim_start_matches("failed to ").to_owned();
                failed.push(NotSaved { plugin: None, error });
                (None, Vec::new())
            }
        };
        *self.saved.lock().unwrap_or_else(PoisonError::into_inner) = kept;
        ToMaster::Saved { states, failed }
    }
}

fn tail(output: &File) -> String {
    process::tail(output, TAIL).unwrap_or_else(|error| format!("(its output cannot be read: {error})"))
}
