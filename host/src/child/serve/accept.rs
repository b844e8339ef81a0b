//! Accepting: one task per listener, on GO or RESUME, until PAUSE. The listeners belong to the master and are shared with
//! other generations: here they are only registered, accepted from, deregistered and let go.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Server;
use super::conn::Origin;
use crate::child::handover::Start;
use crate::metrics::Slot;
use crate::sys::readiness;
use crate::sys::socket::{self, Address, Bare};
use crate::telemetry::Seldom;

/// After so many connections in a row, other tasks have their turn.
const BATCH: u32 = 64;
/// How long to wait when descriptors or memory run out: doubled from the first to the last.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(500));

/// Between two looks at a listener that was shut down.
const SHUT_DOWN_PAUSE: Duration = Duration::from_millis(50);

/// A listener lent by the master.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    facts: Facts,
}

#[derive(Debug)]
struct Facts {
    /// The master's number for it.
    id: u32,
    /// Name of the `[[server]]`.
    server: &'static str,
    address: String,
    /// The address of every connection, unless it is a wildcard.
    local: Option<SocketAddr>,
}

impl Listener {
    /// Takes over a socket that came from the master.
    pub fn new(socket: OwnedFd, id: u32, server: &'static str, address: String) -> io::Result<Listener> {
        socket::adopt_listener(&socket)?;
        let local = match socket::local_addr(socket.as_fd())? {
            Some(Address::Ip(addr)) if !addr.ip().is_unspecified() => Some(addr),
            _ => None,
        };
        Ok(Listener { socket, facts: Facts { id, server, address, local } })
    }

    /// The master's number for it.
    pub fn id(&self) -> u32 {
        self.facts.id
    }
}

/// Accepting that is under way.
#[derive(Debug)]
pub struct Acceptors {
    /// Of those that were replaced, `None`.
    tasks: JoinSet<Option<Listener>>,
    /// By the listener's number.
    orders: HashMap<u32, watch::Sender<Order>>,
}

/// What a task is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Accept,
    /// Empty the queue, and return the listener.
    Stop,
    /// Empty the queue, and close the listener.
    Close,
}

impl Acceptors {
    /// Registers all of `listeners`, then accepts. On an error nothing was accepted.
    pub fn start(server: &'static Server, listeners: Vec<Listener>) -> io::Result<Acceptors> {
        let mut registered = Vec::with_capacity(listeners.len());
        for Listener { socket, facts } in listeners {
            registered.push((readiness::register(socket, Interest::READABLE)?, facts));
        }
        let mut acceptors = Acceptors { tasks: JoinSet::new(), orders: HashMap::new() };
        for (socket, facts) in registered {
            acceptors.spawn(server, socket, facts);
        }
        Ok(acceptors)
    }

    /// Accepts from `listener` instead of the one with its number, which clients do not reach any more; those that wait in its queue
    /// are served.
    pub fn replace(&mut self, server: &'static Server, listener: Listener) -> io::Result<()> {
        let Listener { socket, facts } = listener;
        let socket = readiness::register(socket, Interest::READABLE)?;
        if let Some(before) = self.orders.remove(&facts.id) {
            before.send_replace(Order::Close);
        }
        // Those that were replaced before.
        while let Some(ended) = self.tasks.try_join_next() {
            if let Err(error) = ended {
                tracing::error!(%error, "an accept task broke");
            }
        }
        self.spawn(server, socket, facts);
        Ok(())
    }

    fn spawn(&mut self, server: &'static Server, socket: AsyncFd<OwnedFd>, facts: Facts) {
        let id = facts.id;
        let acceptor = Acceptor { server, facts, backoff: BACKOFF.0, logged: Seldom::default(), was_empty: false };
        let (sender, order) = watch::channel(Order::Accept);
        self.orders.insert(id, sender);
        self.tasks.spawn(acceptor.run(socket, order));
    }

    /// Empties the accept queues and deregisters: every connection that was complete before the call is being served after
    /// it.
    pub async fn stop(mut self) -> Vec<Listener> {
        for order in self.orders.values() {
            order.send_replace(Order::Stop);
        }
        let mut listeners = Vec::new();
        while let Some(ended) = self.tasks.join_next().await {
            match ended {
                Ok(listener) => listeners.extend(listener),
                Err(error) => tracing::error!(%error, "an accept task broke"),
            }
        }
        listeners
    }
}

struct Acceptor {
    server: &'static Server,
    facts: Facts,
    backoff: Duration,
    logged: Seldom,
    /// The queue was empty once. What waited before may be older than the options of the listening socket.
    was_empty: bool,
}

/// What a pass over the queue ended with.
enum Pass {
    Empty,
    /// There may be more.
    Batch,
    Exhausted(io::Error),
    /// There are as many connections as may be; one more waits, perhaps.
    Full,
}

impl Acceptor {
    async fn run(mut self, mut socket: AsyncFd<OwnedFd>, mut stop: watch::Receiver<Order>) -> Option<Listener> {
        // The first pass is unconditional: what was queued before the registration may not be told again.
        while *stop.borrow_and_update() == Order::Accept {
            match self.pass(socket.get_ref().as_fd()) {
                Pass::Batch => {
                    tokio::task::yield_now().await;
                    continue;
                }
                Pass::Exhausted(error) => {
                    self.exhausted(&error);
                    tokio::select! {
                        // Nothing tells when descriptors are free again, or the listener is.
                        () = tokio::time::sleep(self.backoff) => self.backoff = (self.backoff * 2).min(BACKOFF.1),
                        _ = stop.changed() => {}
                    }
                    continue;
                }
                Pass::Full => {
                    self.pause();
                    tokio::select! {
                        () = self.server.connections.room(self.server.limits.connections) => {}
                        _ = stop.changed() => {}
                    }
                    continue;
                }
                Pass::Empty => self.backoff = BACKOFF.0,
            }
            tokio::select! {
                ready = socket.readable() => match ready {
                    Ok(mut guard) => {
                        let is_shut_down = guard.ready().is_read_closed();
                        // Before the next pass: what comes during it is told again.
                        guard.clear_ready();
                        if is_shut_down {
                            socket = self.register_again(socket, &mut stop).await;
                        }
                    }
                    // The runtime is ending.
                    Err(error) => {
                        tracing::error!(%error, address = self.facts.address, "failed to wait for connections");
                        break;
                    }
                },
                _ = stop.changed() => {}
            }
        }
        // Until nothing waits, deregister, and once more: of what came in between perhaps only this process was told.
        self.empty(socket.get_ref().as_fd()).await;
        let socket = socket.into_inner();
        self.empty(socket.as_fd()).await;
        (*stop.borrow() != Order::Close).then_some(Listener { socket, facts: self.facts })
    }

    /// Waits a moment for a listener that was shut down to come back. To the runtime such a socket is ready for good, so it is registered
    /// anew: what it is by then is told again.
    async fn register_again(&self, socket: AsyncFd<OwnedFd>, stop: &mut watch::Receiver<Order>) -> AsyncFd<OwnedFd> {
        tokio::select! {
            () = tokio::time::sleep(SHUT_DOWN_PAUSE) => {}
            _ = stop.changed() => {}
        }
        let copy = socket.get_ref().try_clone();
        match copy.and_then(|copy| readiness::register(copy, Interest::READABLE)) {
            Ok(again) => again,
            Err(error) => {
                tracing::error!(%error, address = self.facts.address, "failed to register a listener again");
                socket
            }
        }
    }

    async fn empty(&mut self, socket: BorrowedFd<'_>) {
        loop {
            match self.pass(socket) {
                Pass::Empty => return,
                Pass::Batch => tokio::task::yield_now().await,
                // One that was shut down has no queue.
                Pass::Exhausted(error) if socket::is_shut_down(&error) => return,
                // What cannot be accepted now stays in the queue, for whoever serves next.
                Pass::Exhausted(error) => return self.exhausted(&error),
                Pass::Full => return self.pause(),
            }
        }
    }

    /// Accepts until nothing waits, or for one batch.
    fn pass(&mut self, socket: BorrowedFd<'_>) -> Pass {
        for _ in 0..BATCH {
            if self.server.connections.open() >= self.server.limits.connections {
                return Pass::Full;
            }
            match socket::accept(socket) {
                Ok((stream, peer)) => self.begin(stream, peer),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.was_empty = true;
                    return Pass::Empty;
                }
                Err(error) if socket::is_exhaustion(&error) || socket::is_shut_down(&error) => {
                    return Pass::Exhausted(error);
                }
                // That connection is gone again, or the call was interrupted (accept(2) lists what else to ignore).
                Err(error) => tracing::debug!(%error, address = self.facts.address, "a connection was not accepted"),
            }
        }
        Pass::Batch
    }

    fn begin(&mut self, stream: Bare, peer: Option<SocketAddr>) {
        let server = self.server;
        if server.limits.per_peer > 0 && server.peers.count(peer) >= server.limits.per_peer {
            // No word: whoever opens too many shall cost nothing.
            server.metrics.add(Slot::PeerRefusals);
            if self.logged.again() {
                tracing::warn!(?peer, "a connection was closed: its peer has too many");
            }
            return;
        }
        let local = self.facts.local.or_else(|| stream.local_addr());
        // Responses are written whole; waiting for an acknowledgement would only delay them. It fails on a socket that is
        // dead already, and the first read will say so.
        if let Bare::Tcp(stream) = &stream
            && let Err(error) = stream.set_nodelay(true)
        {
            tracing::debug!(%error, "failed to set TCP_NODELAY");
        }
        if !self.was_empty
            && let Err(error) = server.limits.tcp.apply(stream.as_fd())
        {
            tracing::debug!(%error, "failed to set the TCP options of a connection");
        }
        let origin = Origin { listener: self.facts.id, name: self.facts.server, peer, local };
        self.server.begin(origin, stream, Start::default());
    }

    fn exhausted(&mut self, error: &io::Error) {
        self.server.metrics.add(Slot::AcceptFailures);
        if self.logged.again() {
            tracing::warn!(%error, address = self.facts.address, "cannot accept for the moment");
        }
    }

    fn pause(&mut self) {
        self.server.metrics.add(Slot::AcceptPauses);
        if self.logged.again() {
            let connections = self.server.limits.connections;
            tracing::warn!(connections, address = self.facts.address, "as many connections as may be: the others wait");
        }
    }
}
