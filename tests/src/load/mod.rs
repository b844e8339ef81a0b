//! The load client: raw sockets, own parser, no retry, everything counted.
//!
//! It speaks the dialect of the `probe` fixture: each answer names who gave it and which request it is for, so that a
//! response given to another request, by nobody, or cut, cannot pass. It watches its idle connections as a pool does,
//! honours `Connection: close`, and never ends a request by itself: `stop` waits for those in flight.

mod clients;
mod connection;
mod http2;
pub mod tally;
mod torture;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use tally::{Class, Counts, Fault, Tally};

use crate::tls;

/// Requests sent this long after a mark count as near it.
const NEAR: Duration = Duration::from_millis(500);

/// What to send.
#[derive(Clone, Debug)]
pub struct Plan {
    pub target: SocketAddr,
    /// Speaks TLS, if there is one.
    pub tls: Option<tls::Client>,
    /// Clients that keep their connection.
    pub keepalive: usize,
    /// Think time between two requests of a client, at most; evenly spread from 0.
    pub think: Duration,
    /// Clients that make a connection for each request.
    pub fresh: usize,
    /// Clients whose requests take `slow_for`.
    pub slow: usize,
    pub slow_for: Duration,
    /// Clients that write `pipeline_depth` requests at once.
    pub pipelined: usize,
    pub pipeline_depth: usize,
    /// How many of a hundred requests are POSTs with a body of up to 20 kB.
    pub post_percent: u64,
    /// Clients that send requests of every kind, cut into pieces, alone and in pairs: see [`Mix`].
    pub torture: usize,
    pub mix: Mix,
    /// Clients that send such requests, close their sending side, and read the answers to the end.
    pub half_closed: usize,
    /// HTTP/2 connections, and the clients that share each of them.
    pub http2: usize,
    pub http2_streams: usize,
    /// For one response.
    pub timeout: Duration,
    pub seed: u64,
}

/// What the torture consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mix {
    /// All that the `probe` fixture can answer: echoes, handlers that take their time, streams.
    Full,
    /// What a server without code of ours can answer too: a line, a file, and a POST whose body is read and dropped.
    Plain,
}

impl Plan {
    /// No client at all; take this and add.
    pub fn against(target: SocketAddr) -> Plan {
        Plan {
            target,
            tls: None,
            keepalive: 0,
            think: Duration::from_millis(20),
            fresh: 0,
            slow: 0,
            slow_for: Duration::from_secs(3),
            pipelined: 0,
            pipeline_depth: 3,
            post_percent: 15,
            torture: 0,
            mix: Mix::Full,
            half_closed: 0,
            http2: 0,
            http2_streams: 8,
            timeout: Duration::from_secs(30),
            seed: 1,
        }
    }

    /// The load under which Baton promises to lose nothing: 64 keep-alive connections that think up to 20 ms, 4 clients
    /// with a connection for each request, 4 with requests of 3 s.
    pub fn reference(target: SocketAddr) -> Plan {
        Plan { keepalive: 64, fresh: 4, slow: 4, ..Plan::against(target) }
    }

    /// The load that is meant to find what a hand-over can do wrong: requests of every kind, a quarter of the turns two at
    /// once, 15 % POSTs, every other write cut at random bytes; and one client of ten closes its sending side before it reads.
    pub fn torture(target: SocketAddr, connections: usize) -> Plan {
        Plan { torture: connections, half_closed: connections.div_ceil(10), ..Plan::against(target) }
    }

    fn clients(&self) -> usize {
        self.keepalive + self.fresh + self.slow + self.pipelined + self.torture + self.half_closed + self.http2
    }
}

/// A load that runs until it is stopped, on a thread of its own.
pub struct Load {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What all clients of a load share.
struct Shared {
    plan: Plan,
    start: Instant,
    stopped: AtomicBool,
    request: AtomicU64,
    /// Microseconds after `start` until which a request counts as near a mark.
    near_until: AtomicU64,
    tally: Mutex<Tally>,
}

impl Shared {
    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Relaxed)
    }

    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    fn next_request(&self) -> u64 {
        self.request.fetch_add(1, Relaxed)
    }

    fn is_near(&self, at: Duration) -> bool {
        at.as_micros() < u128::from(self.near_until.load(Relaxed))
    }
}

impl Load {
    pub fn start(plan: Plan) -> Load {
        assert!(plan.clients() > 0, "a load without clients proves nothing");
        let shared = Arc::new(Shared {
            plan,
            start: Instant::now(),
            stopped: AtomicBool::new(false),
            request: AtomicU64::new(1),
            near_until: AtomicU64::new(0),
            tally: Mutex::default(),
        });
        let thread = std::thread::spawn({
            let shared = shared.clone();
            move || {
                tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .expect("failed to start the load client's runtime")
                    .block_on(clients::run(shared));
            }
        });
        Load { shared, thread: Some(thread) }
    }

    /// The counters so far.
    pub fn tally(&self) -> Tally {
        self.shared.tally().clone()
    }

    /// A reload happens now: latencies from here on are also counted as near it.
    pub fn mark(&self) {
        let until = self.shared.elapsed() + NEAR;
        self.shared.near_until.store(u64::try_from(until.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    /// Waits until `count` more requests have been answered or have failed.
    pub fn wait_for_requests(&self, count: u64) {
        let ended = || {
            let tally = self.shared.tally();
            tally.answered() + tally.lost()
        };
        let wanted = ended() + count;
        crate::wait::until("requests under load", crate::wait::LONG, || (ended() >= wanted).then_some(()));
    }

    /// Lets the requests in flight end and gives the whole count.
    pub fn stop(mut self) -> Tally {
        self.shared.stopped.store(true, Relaxed);
        if let Some(thread) = self.thread.take()
            && let Err(panic) = thread.join()
        {
            std::panic::resume_unwind(panic);
        }
        self.tally()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // A test that fails does not wait for slow requests; the thread ends with them or with the process.
        self.shared.stopped.store(true, Relaxed);
    }
}
