//! The giving end: batches of connections, at most [`WINDOW`] of them unacknowledged, our copies kept until ACK.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::wire::{self, Entry as WireEntry, MAX_CONNECTIONS, Message, VERSION, WireError};
use super::{Leaving, Server};
use crate::report::Generation;
use crate::sys::seqpacket;

/// Batches under way. The kernel bounds descriptors in flight per user by RLIMIT_NOFILE (unix(7), ETOOMANYREFS).
const WINDOW: usize = 4;
/// After ETOOMANYREFS: it frees as soon as the peer receives, which has no event on this side.
const TOO_MANY_REFS: Duration = Duration::from_millis(1);
/// Replies are short.
const REPLY: usize = 64;

#[derive(Debug, thiserror::Error)]
enum LendError {
    #[error("failed to hand over: the new child has ended")]
    Gone,
    #[error("failed to hand over: {0}")]
    Io(#[from] io::Error),
    #[error("failed to hand over: {0}")]
    Wire(#[from] WireError),
    #[error("failed to hand over: the new child speaks version {0} of the handover, this one {VERSION}")]
    Version(u8),
    #[error("failed to hand over: the new child has no room")]
    Refused,
    #[error("failed to hand over: the new child answered out of turn ({0:?})")]
    Unexpected(Message),
}

struct Lender {
    socket: AsyncFd<OwnedFd>,
    queue: mpsc::UnboundedReceiver<Leaving>,
    server: &'static Server,
    /// Taken from the queue.
    pending: VecDeque<Leaving>,
    outstanding: VecDeque<(u32, Vec<Leaving>)>,
    /// Of a batch that was refused.
    returned: Vec<Leaving>,
    next_batch: u32,
}

/// Until the queue is closed and all is acknowledged, or the peer is lost: then all that is still ours is served here.
pub async fn run(
    server: &'static Server,
    socket: AsyncFd<OwnedFd>,
    queue: mpsc::UnboundedReceiver<Leaving>,
    to: Generation,
) {
    let mut lender = Lender {
        socket,
        queue,
        server,
        pending: VecDeque::new(),
        outstanding: VecDeque::new(),
        returned: Vec::new(),
        next_batch: 1,
    };
    match lender.run().await {
        Ok(()) => tracing::debug!(to = to.0, moved = server.handover.moved(), "connections handed over"),
        Err(error) => {
            tracing::warn!(to = to.0, "{error}; the connections stay here");
            server.handover.close(to, matches!(error, LendError::Gone));
            lender.read_replies().await;
            lender.take_back().await;
            // Their tasks wait behind a gate that is open now.
            server.connections.wake_all();
        }
    }
}

impl Lender {
    async fn run(&mut self) -> Result<(), LendError> {
        send(&self.socket, &Message::Hello { version: VERSION }, &[]).await?;
        match self.receive().await? {
            Message::Hello { version: VERSION } => {}
            Message::Hello { version } => return Err(LendError::Version(version)),
            other => return Err(LendError::Unexpected(other)),
        }
        let mut closed = false;
        loop {
            while !self.pending.is_empty() && self.outstanding.len() < WINDOW {
                self.send_batch().await?;
            }
            if closed && self.pending.is_empty() && self.outstanding.is_empty() {
                send(&self.socket, &Message::Fin, &[]).await?;
                return Ok(());
            }
            let room = self.outstanding.len() < WINDOW && !closed;
            let mut taken = Vec::new();
            tokio::select! {
                biased;
                message = receive(&self.socket) => self.answered(message?).await?,
                count = self.queue.recv_many(&mut taken, MAX_CONNECTIONS), if room => closed = count == 0,
            }
            self.pending.extend(taken);
        }
    }

    async fn receive(&self) -> Result<Message, LendError> {
        receive(&self.socket).await
    }

    async fn answered(&mut self, message: Message) -> Result<(), LendError> {
        match message {
            Message::Ack { batch } => {
                let leaving = self.forget(batch)?;
                self.gone(leaving);
                Ok(())
            }
            Message::Nak { batch } => {
                let mut leaving = self.forget(batch)?;
                self.returned.append(&mut leaving);
                // Who owns the other batches is known only once they are answered.
                while !self.outstanding.is_empty() {
                    match self.receive().await? {
                        Message::Ack { batch } => {
                            let leaving = self.forget(batch)?;
                            self.gone(leaving);
                        }
                        Message::Nak { batch } => {
                            let mut leaving = self.forget(batch)?;
                            self.returned.append(&mut leaving);
                        }
                        other => return Err(LendError::Unexpected(other)),
                    }
                }
                Err(LendError::Refused)
            }
            other => Err(LendError::Unexpected(other)),
        }
    }

    fn gone(&self, leaving: Vec<Leaving>) {
        self.server.handover.note_moved(leaving, self.server.metrics);
    }

    fn forget(&mut self, batch: u32) -> Result<Vec<Leaving>, LendError> {
        let at = self.outstanding.iter().position(|(number, _)| *number == batch);
        let found = at.and_then(|at| self.outstanding.remove(at));
        found.map(|(_, leaving)| leaving).ok_or(LendError::Unexpected(Message::Ack { batch }))
    }

    async fn send_batch(&mut self) -> Result<(), LendError> {
        let batch = self.next_batch;
        self.next_batch = self.next_batch.wrapping_add(1);
        let (mut entries, mut used): (Vec<WireEntry>, usize) = (Vec::new(), 0);
        let mut leaving: Vec<Leaving> = Vec::new();
        while let Some(next) = self.pending.front() {
            let entry = next.describe();
            if !wire::fits(used, entries.len(), &entry) {
                break;
            }
            used += entry.len();
            entries.push(entry);
            leaving.extend(self.pending.pop_front());
        }
        let message = Message::Offer { batch, entries };
        self.outstanding.push_back((batch, leaving));
        let Some((_, leaving)) = self.outstanding.back() else { return Ok(()) };
        let fds: Vec<BorrowedFd> = leaving.iter().map(|leaving| leaving.stream.as_fd()).collect();
        send(&self.socket, &message, &fds).await
    }

    /// After an error: reads the replies that are on their way, to the peer's end. What it has acknowledged is its own, whatever
    /// went wrong since; to take that back would make two readers of one connection.
    async fn read_replies(&mut self) {
        if self.outstanding.is_empty() {
            return;
        }
        // A peer that lives answers the OFFERs that it has, finds the end behind them, and closes. One that hangs is the
        // master's to end.
        if let Err(error) = seqpacket::stop_sending(self.socket.as_fd()) {
            tracing::debug!("failed to end the handover's sending side: {error}");
        }
        loop {
            match self.receive().await {
                Ok(Message::Ack { batch }) => {
                    if let Ok(leaving) = self.forget(batch) {
                        self.gone(leaving);
                    }
                }
                // What else it says, and what it refuses, stays here anyway.
                Ok(_) | Err(LendError::Wire(_)) => {}
                Err(_) => return,
            }
        }
    }

    async fn take_back(mut self) {
        self.pending.extend(close(&mut self.queue).await);
        let outstanding = self.outstanding.into_iter().flat_map(|(_, leaving)| leaving);
        for leaving in outstanding.chain(self.returned).chain(self.pending) {
            leaving.stay(self.server);
        }
    }
}

/// Closes a queue and returns all that is in it: to its end, and not only until it is empty, since another thread may be about
/// to put one in.
async fn close<T>(queue: &mut mpsc::UnboundedReceiver<T>) -> Vec<T> {
    queue.close();
    let mut left = Vec::new();
    while let Some(next) = queue.recv().await {
        left.push(next);
    }
    left
}

impl Leaving {
    fn describe(&self) -> WireEntry {
        WireEntry {
            listener: self.origin.listener,
            http1: self.start.http1,
            pipelined: self.start.pipelined,
            head_ms: self.start.head.map_or(0, |head| milliseconds(head).max(1)),
            idle_ms: milliseconds(self.start.idle),
            carried: self.start.carried.clone(),
        }
    }
}

fn milliseconds(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

async fn receive(socket: &AsyncFd<OwnedFd>) -> Result<Message, LendError> {
    let mut buffer = [0; REPLY];
    let received = socket.async_io(Interest::READABLE, |fd| seqpacket::recv(fd.as_fd(), &mut buffer)).await?;
    if received.len == 0 {
        return Err(LendError::Gone);
    }
    Ok(Message::decode(&buffer[..received.len])?)
}

/// Sends one message, whole.
async fn send(socket: &AsyncFd<OwnedFd>, message: &Message, fds: &[BorrowedFd<'_>]) -> Result<(), LendError> {
    let bytes = message.encode();
    loop {
        let sent = socket.async_io(Interest::WRITABLE, |fd| seqpacket::send(fd.as_fd(), &bytes, fds)).await;
        match sent {
            Err(error) if error.raw_os_error() == Some(libc::ETOOMANYREFS) => tokio::time::sleep(TOO_MANY_REFS).await,
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Err(LendError::Gone),
            other => return Ok(other?),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use tokio::sync::mpsc::unbounded_channel;

    use super::*;

    #[test]
    fn closed_queue_returns_what_other_threads_were_putting_in() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for round in 0..20_000 {
            let ((sender, mut queue), start) = (unbounded_channel(), Barrier::new(2));
            let (sent, received) = std::thread::scope(|scope| {
                let sending = scope.spawn(|| {
                    start.wait();
                    (0..20).take_while(|number| sender.send(*number).is_ok()).count()
                });
                start.wait();
                let received = runtime.block_on(close(&mut queue)).len();
                (sending.join().unwrap(), received)
            });
            assert_eq!(received, sent, "round {round}");
        }
    }
}
