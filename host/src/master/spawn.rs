//! One child as the master sees it: its process, its channel, its shared counters, and the task that writes to it. Decides nothing.
//! What comes from the child is [`child_reader`](super::child_reader)'s.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::child_reader::{ChildReader, SharedStateMemory, StateMemory};
use super::environment;
use super::identity::Identity;
use super::resume::{Fd, Luggage};
use super::state::Event;
use crate::control::states::States;
use crate::control::{ChannelError, MasterEnd, PROTOCOL, ToChild, ToMaster};
use crate::metrics::{Counts, SLOTS};
use crate::report::{Failure, Generation, Stage};
use crate::sys::process::{self, Image, Process, Spec};
use crate::sys::shared::Slots;
use crate::sys::{readiness, seqpacket};
use crate::telemetry::Seldom;
use crate::version::VERSION;

/// Set, to the master's pid, in a child's environment: it says which role the binary plays.
pub const ROLE: &str = "BATON_WORKER";
/// A message for the child with its descriptors.
type Outgoing = (ToChild, Vec<OwnedFd>);
/// The sockets of RELISTEN messages that are queued, by the listener's number: the latest of each. So a child that reads nothing has
/// one of each listener waiting at most.
type Relistened = Arc<Mutex<HashMap<u32, Vec<OwnedFd>>>>;

#[derive(Debug)]
pub struct Child {
    generation: Generation,
    process: Arc<Process>,
    channel: Arc<MasterEnd>,
    output: Arc<File>,
    outgoing: mpsc::UnboundedSender<Outgoing>,
    relistened: Relistened,
    tasks: Tasks,
    states: SharedStateMemory,
    slots: Slots<SLOTS>,
    /// Goes with LOAD, and on to another program of this process.
    slots_fd: OwnedFd,
}

/// What carries its messages.
#[derive(Debug)]
struct Tasks {
    write: JoinHandle<()>,
    read: JoinHandle<()>,
    /// Ends `read` when there is nothing in its hands.
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
        // A child has none to send. Older kernels cannot refuse them, and the reader sees to them.
        seqpacket::refuse_descriptors(ours.as_fd())?;
        let (slots_fd, slots) = Slots::create("baton-metrics")?;
        let output = process::output_file(c"baton-output")?;
        let stderr = io::stderr();
        let argv = vec![CString::new(format!("baton: worker gen {generation} ({name})"))?];
        let process = process::spawn(Spec {
            image,
            argv,
            env: environment::of_child(std::env::vars_os(), identity, (ROLE, std::process::id().to_string())),
            output: output.as_fd(),
            // 3: control; 4: nothing, for as long as a program of an earlier version may be started; 5: takes over from the output
            // file at GO.
            fds: vec![Some(theirs.as_fd()), None, Some(stderr.as_fd())],
            credentials: identity.credentials().cloned(),
        })?;
        drop(theirs);
        let process = Arc::new(process);
        let child =
            Child::over(generation, process.clone(), ours, output, (slots_fd, slots), events).inspect_err(|_| {
                // The loop's upkeep reaps it.
                if let Err(error) = process.signal(Signal::SIGKILL) {
                    tracing::error!(pid = process.pid, "failed to kill a child that cannot be used: {error}");
                }
            })?;
        child.send(ToChild::Hello { protocols: PROTOCOL, version: VERSION.into(), generation }, Vec::new());
        #[cfg(feature = "next")]
        child.send(ToChild::Novelty { more: 1 }, Vec::new());
        Ok(child)
    }

    fn over(
        generation: Generation,
        process: Arc<Process>,
        control: OwnedFd,
        output: File,
        (slots_fd, slots): (OwnedFd, Slots<SLOTS>),
        events: mpsc::Sender<Event>,
    ) -> io::Result<Child> {
        let (channel, output) = (Arc::new(MasterEnd::new(control)?), Arc::new(output));
        let states = SharedStateMemory::default();
        let relistened = Relistened::default();
        let (outgoing, tasks) = carry(generation, &process, &channel, &output, (&states, &relistened), events)?;
        Ok(Child { generation, process, channel, output, outgoing, relistened, tasks, states, slots, slots_fd })
    }

    /// One that an earlier program of this process started.
    pub fn resume(saved: &SavedChild, events: mpsc::Sender<Event>) -> io::Result<(Generation, Child)> {
        let slots_fd = saved.slots.copy()?;
        let slots = Slots::open(slots_fd.try_clone()?)?;
        let (control, output) = (saved.control.copy()?, File::from(saved.output.copy()?));
        let process = Arc::new(Process::adopt(saved.pid)?);
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
        std::mem::replace(&mut self.tasks.read, tokio::spawn(async {}))
    }

    /// Takes nothing more for it; answers when it has all that was taken.
    pub fn stop_writing(&mut self) -> JoinHandle<()> {
        self.outgoing = mpsc::unbounded_channel().0;
        std::mem::replace(&mut self.tasks.write, tokio::spawn(async {}))
    }

    /// Carries messages again, in both directions.
    pub fn go_on(&mut self, events: mpsc::Sender<Event>) -> io::Result<()> {
        let shared = (&self.states, &self.relistened);
        let carried = carry(self.generation, &self.process, &self.channel, &self.output, shared, events)?;
        (self.outgoing, self.tasks) = carried;
        Ok(())
    }

    pub fn pid(&self) -> i32 {
        self.process.pid
    }

    /// Queues a message. The state machine bounds the queue: it sends each message once. Of RELISTEN messages the latest of each
    /// listener is kept.
    pub fn send(&self, message: ToChild, mut fds: Vec<OwnedFd>) {
        if let ToChild::Retire { .. } = message
            && let Err(error) = self.process.offer_to_oom_killer()
        {
            // Somebody without /proc, or without the right to write there, is no worse off than before.
            tracing::debug!(
                generation = self.generation.0,
                "failed to prefer it to those that serve when memory is short: {error}"
            );
        }
        if message == ToChild::Save {
            match StateMemory::lend(&self.states) {
                Ok(memory) => fds.push(memory),
                // Then it has no way to hand anything on, and says so.
                Err(error) => {
                    tracing::warn!(generation = self.generation.0, "failed to make memory for states: {error}")
                }
            }
        }
        queue_message(&self.outgoing, &self.relistened, message, fds);
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
        StateMemory::take(&self.states)
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
    (states, relistened): (&SharedStateMemory, &Relistened),
    events: mpsc::Sender<Event>,
) -> io::Result<(mpsc::UnboundedSender<Outgoing>, Tasks)> {
    let ended = readiness::register(process.pidfd.try_clone()?, Interest::READABLE)?;
    let (outgoing, queue) = mpsc::unbounded_channel();
    let (stop, stopped) = oneshot::channel();
    let write = tokio::spawn(write(channel.clone(), queue, relistened.clone(), generation, events.clone()));
    let reader = ChildReader {
        channel: channel.clone(),
        process: process.clone(),
        output: output.clone(),
        states: states.clone(),
        generation,
        events,
        complaints: Seldom::default(),
    };
    let read = tokio::spawn(reader.run(ended, stopped));
    Ok((outgoing, Tasks { write, read, stop: Some(stop) }))
}

fn queue_message(
    outgoing: &mpsc::UnboundedSender<Outgoing>,
    relistened: &Relistened,
    message: ToChild,
    mut fds: Vec<OwnedFd>,
) {
    if let ToChild::Relisten { id } = message
        && lock(relistened).insert(id, std::mem::take(&mut fds)).is_some()
    {
        return;
    }
    // The writer ends only with the child, whose death the reader reports.
    let _ = outgoing.send((message, fds));
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn write(
    channel: Arc<MasterEnd>,
    mut queue: mpsc::UnboundedReceiver<Outgoing>,
    relistened: Relistened,
    generation: Generation,
    events: mpsc::Sender<Event>,
) {
    while let Some((message, mut fds)) = queue.recv().await {
        if let ToChild::Relisten { id } = message {
            fds = lock(&relistened).remove(&id).unwrap_or_default();
        }
        let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        match channel.send(&message, &borrowed).await {
            Ok(()) => {}
            Err(error @ ChannelError::TooLong { .. }) => {
                // The child would wait for it until `start_timeout`.
                let failure = Failure::new(Stage::Load, error.to_string()).hint(
                    "the configuration of the set is too long: let plugins read large data from files of their own",
                );
                let message = ToMaster::Failed(failure);
                // The loop is gone only when the master ends.
                let _ = events.send(Event::Message { generation, message }).await;
                return;
            }
            Err(error) => {
                tracing::debug!(generation = generation.0, "{error}");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::control::WorkerEnd;

    #[tokio::test]
    async fn child_that_reads_nothing_has_one_relisten_of_each_listener_queued() {
        let (ours, theirs) = seqpacket::pair().unwrap();
        let (channel, child) = (Arc::new(MasterEnd::new(ours).unwrap()), WorkerEnd::new(theirs).unwrap());
        let (outgoing, queue) = mpsc::unbounded_channel();
        let relistened = Relistened::default();
        let mut peers = Vec::new();
        for _ in 0..1000 {
            for id in [7, 8] {
                let (socket, peer) = UnixStream::pair().unwrap();
                peers.push(peer);
                queue_message(&outgoing, &relistened, ToChild::Relisten { id }, vec![socket.into()]);
            }
        }
        assert_eq!((queue.len(), lock(&relistened).len()), (2, 2));
        drop(outgoing);
        write(channel, queue, relistened, Generation(1), mpsc::channel(1).0).await;
        for (id, peer) in [7, 8].into_iter().zip(&peers[1998..]) {
            let (message, mut fds) = child.recv().await.unwrap().unwrap();
            assert_eq!((message, fds.len()), (ToChild::Relisten { id }, 1));
            io::Write::write_all(&mut UnixStream::from(fds.remove(0)), b"x").unwrap();
            io::Read::read_exact(&mut &*peer, &mut [0]).unwrap();
        }
        assert!(child.recv().await.unwrap().is_none());
    }
}
