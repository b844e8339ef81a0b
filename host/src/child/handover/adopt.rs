//! The taking end: checks that a batch came whole, says ACK, and only then serves.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::wire::{Entry, MAX_MESSAGE, Message, VERSION};
use super::{Origin, Server, Start};
use crate::report::Generation;
use crate::sys::seqpacket;
use crate::sys::socket::Bare;

/// Until FIN, or the giver's end: what it had given is ours.
pub async fn run(server: &'static Server, socket: AsyncFd<OwnedFd>, from: Generation, names: Vec<(u32, &'static str)>) {
    let mut buffer = vec![0; MAX_MESSAGE];
    let mut adopted = 0;
    if let Err(error) = reply(&socket, &Message::Hello { version: VERSION }).await {
        return tracing::debug!(from = from.0, "failed to take connections over: {error}");
    }
    loop {
        let received = socket.async_io(Interest::READABLE, |fd| seqpacket::recv(fd.as_fd(), &mut buffer)).await;
        let received = match received {
            Ok(received) if received.len == 0 => break,
            Ok(received) => received,
            Err(error) => {
                tracing::warn!(from = from.0, "failed to take connections over: {error}");
                break;
            }
        };
        match Message::decode(&buffer[..received.len]) {
            Ok(Message::Hello { version: VERSION }) => {}
            Ok(Message::Offer { batch, entries }) => {
                let count = entries.len();
                let fits = server.connections.open() + count <= server.limits.room;
                let whole = fits && !received.truncated && received.fds.len() == count;
                let taken = if whole { register(&names, entries, received.fds) } else { None };
                let Some(taken) = taken else {
                    // What came is closed here; the giver has its copies.
                    tracing::warn!(from = from.0, count, "no room for a batch of connections");
                    if reply(&socket, &Message::Nak { batch }).await.is_err() {
                        break;
                    }
                    continue;
                };
                // Before the first byte is read: from now on they are ours. If the giver is gone we are the only owner.
                if let Err(error) = reply(&socket, &Message::Ack { batch }).await {
                    tracing::debug!(from = from.0, "the giver of a batch is gone: {error}");
                }
                adopted += count;
                for (origin, stream, start) in taken {
                    server.begin(origin, stream, start);
                }
            }
            Ok(Message::Fin) => break,
            Ok(Message::Hello { version }) => {
                // The giver will see ours, and keep what it has.
                tracing::info!(from = from.0, version, "the old child speaks another version of the handover");
                break;
            }
            Ok(message @ (Message::Ack { .. } | Message::Nak { .. })) => {
                tracing::warn!(from = from.0, ?message, "unexpected handover message");
            }
            Err(error) => {
                tracing::warn!(from = from.0, "{error}");
                break;
            }
        }
    }
    tracing::debug!(from = from.0, adopted, "took connections over");
}

type Taken = Vec<(Origin, Bare, Start)>;

/// All of a batch, or none: a listener that is not ours, or a socket that is none, refuses it.
fn register(names: &[(u32, &'static str)], entries: Vec<Entry>, fds: Vec<OwnedFd>) -> Option<Taken> {
    let one = |(entry, fd): (Entry, OwnedFd)| {
        let name = names.iter().find(|(id, _)| *id == entry.listener)?.1;
        let stream = Bare::try_from(fd).ok()?;
        // The peer may have gone; the address is then unknown, and the first read tells the rest.
        let (peer, local) = (stream.peer_addr(), stream.local_addr());
        let head = (entry.head_ms > 0).then(|| Duration::from_millis(entry.head_ms.into()));
        let idle = Duration::from_millis(entry.idle_ms.into());
        let start = Start { carried: entry.carried, http1: entry.http1, pipelined: entry.pipelined, head, idle };
        Some((Origin { listener: entry.listener, name, peer, local }, stream, start))
    };
    entries.into_iter().zip(fds).map(one).collect()
}

async fn reply(socket: &AsyncFd<OwnedFd>, message: &Message) -> io::Result<()> {
    let bytes = message.encode();
    socket.async_io(Interest::WRITABLE, |fd| seqpacket::send(fd.as_fd(), &bytes, &[])).await
}
