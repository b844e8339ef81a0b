//! systemd, if it started this process: what is said to it over `NOTIFY_SOCKET`, its watchdog, and what it keeps. What is to
//! be said [`words`] and [`store`] decide.
//!
//! Nobody waits for it: what its queue has no room for waits here, a bounded number of messages, and what cannot be said is
//! logged once and goes on. Only the master speaks; its children never see the variables.

mod store;
mod words;

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Interval, MissedTickBehavior};

pub use words::{Told, View};

use self::store::{Releasing, Store};
use super::listeners::{Claim, Listeners};
use super::state::Time;
use crate::config::MAX_DURATION;
use crate::report::SystemdStatus;
use crate::sys::{notify, readiness, seqpacket};

/// Where systemd listens.
const SOCKET: &str = "NOTIFY_SOCKET";
/// Messages that wait for room in its queue; then the oldest is given up.
const QUEUE: usize = 128;

/// What this process and systemd have to do with each other; nothing, mostly, if it was not started by it.
pub struct Systemd {
    line: Option<Line>,
    told: Told,
    watchdog: Option<Interval>,
    store: Store,
    releasing: Option<Releasing>,
}

/// Whether this program is the first of its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    First,
    /// After a restart in place.
    Another,
}

/// What [`Systemd::turn`] has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Said,
    /// systemd has the listening sockets no more.
    LetGo,
}

impl Systemd {
    /// As the environment says; `listeners` are as they came. Within a tokio runtime.
    pub fn of_environment(start: Start, listeners: &Listeners) -> Systemd {
        let line = std::env::var_os(SOCKET).filter(|address| !address.is_empty()).map(Line::to);
        let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
        let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|usec| ours && *usec > 0 && line.is_some());
        let watchdog = watchdog.map(|usec| {
            // As sd_watchdog_enabled(3) recommends.
            let mut interval = tokio::time::interval(Duration::from_micros(usec.div_ceil(2)).min(MAX_DURATION));
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        });
        let told = match start {
            Start::First => Told::default(),
            Start::Another => Told::by_another(),
        };
        Systemd { line, told, watchdog, store: Store::of_environment(listeners.names_that_came()), releasing: None }
    }

    /// Whether there is anybody to tell.
    pub fn listens(&self) -> bool {
        self.line.is_some()
    }

    pub fn tell(&mut self, view: View, now: Time) {
        let Some(line) = &mut self.line else { return };
        match notify::monotonic_usec() {
            Ok(clock) => self.told.tell(view, now, clock).into_iter().for_each(|text| line.say(text, Vec::new())),
            Err(error) => line.failed(&error),
        }
    }

    /// Leaves the sockets of what serves with systemd, for the next master.
    pub fn keep(&mut self, listeners: &Listeners, serving: &[Claim]) {
        if let Some(line) = &mut self.line {
            self.store.keep(line, &listeners.names(), listeners.keepsakes(serving));
        }
    }

    /// Takes them back for good; whether [`Turn::LetGo`] is to be waited for.
    pub fn release(&mut self) -> bool {
        self.releasing = self.line.as_mut().and_then(|line| self.store.release(line));
        self.releasing.is_some()
    }

    /// Whether that was done: a shutdown follows.
    pub fn has_released(&self) -> bool {
        self.store.is_released()
    }

    /// That this loop turns. One that cannot be said at once would be said too late.
    pub fn ping(&mut self) {
        if let Some(line) = self.line.as_mut().filter(|line| self.watchdog.is_some() && line.queue.is_empty()) {
            line.say("WATCHDOG=1".into(), Vec::new());
        }
    }

    /// Does what is due: pings, and messages that waited. Ends after each; may be dropped at any time.
    pub async fn turn(&mut self) -> Turn {
        let flush = async {
            match &mut self.line {
                Some(line) => line.flushed().await,
                None => std::future::pending().await,
            }
        };
        let tick = async {
            match &mut self.watchdog {
                Some(watchdog) => drop(watchdog.tick().await),
                None => std::future::pending().await,
            }
        };
        let let_go = async {
            match &self.releasing {
                Some(releasing) => releasing.done().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = flush => {}
            () = tick => self.ping(),
            () = let_go => {
                self.releasing = None;
                return Turn::LetGo;
            }
        }
        Turn::Said
    }

    pub fn status(&self) -> Option<SystemdStatus> {
        let line = self.line.as_ref()?;
        let watchdog_ms = self.watchdog.as_ref().map(|watchdog| 2 * watchdog.period().as_millis() as u64);
        let stored = self.store.kept().iter().cloned().collect();
        Some(SystemdStatus { watchdog_ms, stored, failure: line.failure.clone() })
    }
}

/// Says why the start failed: there is no [`Systemd`] yet, or no more. `errno` is the kernel's number, if that refused it.
pub fn failed(why: &str, errno: Option<i32>) {
    let Some(address) = std::env::var_os(SOCKET).filter(|address| !address.is_empty()) else { return };
    let mut text = format!("STATUS={}", words::short(why));
    if let Some(errno) = errno {
        text.push_str(&format!("\nERRNO={errno}"));
    }
    let said = notify::open(&address).and_then(|socket| seqpacket::send(socket.as_fd(), text.as_bytes(), &[]));
    if let Err(error) = said {
        tracing::warn!("failed to tell systemd: {error}");
    }
}

struct Datagram {
    text: String,
    fds: Vec<OwnedFd>,
}

impl Datagram {
    fn send(&self, socket: &OwnedFd) -> io::Result<()> {
        let fds: Vec<_> = self.fds.iter().map(AsFd::as_fd).collect();
        seqpacket::send(socket.as_fd(), self.text.as_bytes(), &fds)
    }
}

/// The way to systemd.
struct Line {
    address: OsString,
    /// Nothing while nobody listens at the address.
    socket: Option<AsyncFd<OwnedFd>>,
    queue: VecDeque<Datagram>,
    /// Why the last message was not delivered, if it was not.
    failure: Option<String>,
}

impl Line {
    fn to(address: OsString) -> Line {
        Line { address, socket: None, queue: VecDeque::new(), failure: None }
    }

    fn say(&mut self, text: String, fds: Vec<OwnedFd>) {
        if self.queue.len() >= QUEUE {
            self.queue.pop_front();
            self.failed(&io::Error::other("it does not read what it is told"));
        }
        self.queue.push_back(Datagram { text, fds });
        self.flush();
    }

    /// As much as there is room for.
    fn flush(&mut self) {
        while let Some(first) = self.queue.pop_front() {
            match self.send(&first) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return self.queue.push_front(first),
                result => self.settle(result),
            }
        }
    }

    /// By the socket that is there, or by a new one if its peer is gone.
    fn send(&mut self, datagram: &Datagram) -> io::Result<()> {
        match self.socket.as_ref().map(|socket| datagram.send(socket.get_ref())) {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) if error.kind() == ErrorKind::WouldBlock => Err(error),
            Some(Err(_)) | None => {
                self.socket = None;
                let socket = notify::open(&self.address)?;
                let socket = self.socket.insert(readiness::register(socket, Interest::WRITABLE)?);
                datagram.send(socket.get_ref())
            }
        }
    }

    fn settle(&mut self, result: io::Result<()>) {
        match result {
            Ok(()) => self.failure = None,
            Err(error) => self.failed(&error),
        }
    }

    /// Said once, and again only after something was delivered.
    fn failed(&mut self, error: &io::Error) {
        if self.failure.is_none() {
            tracing::warn!("failed to tell systemd: {error}");
        }
        self.failure = Some(error.to_string());
    }

    /// Waits for room for what waits, and sends it.
    async fn flushed(&mut self) {
        let (Some(first), Some(socket)) = (self.queue.front(), &self.socket) else {
            return std::future::pending().await;
        };
        let result = socket.async_io(Interest::WRITABLE, |socket| first.send(socket)).await;
        self.queue.pop_front();
        if result.is_err() {
            self.socket = None;
        }
        self.settle(result);
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    fn text(manager: &UnixDatagram) -> Option<String> {
        let mut buffer = [0; 256];
        manager.set_nonblocking(true).unwrap();
        let len = manager.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..len]).into_owned())
    }

    #[tokio::test]
    async fn what_a_full_queue_does_not_take_is_said_later_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let mut line = Line::to(path.into());
        let mut said = 0;
        while line.queue.len() < 3 {
            line.say(said.to_string(), Vec::new());
            said += 1;
        }
        assert!(line.failure.is_none());
        let mut heard = Vec::new();
        while heard.len() < said {
            heard.extend(std::iter::from_fn(|| text(&manager)));
            if !line.queue.is_empty() {
                tokio::time::timeout(Duration::from_secs(10), line.flushed()).await.unwrap();
            }
        }
        assert_eq!(heard, (0..said).map(|n| n.to_string()).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_reader_that_has_stopped_costs_a_bounded_queue() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let _manager = UnixDatagram::bind(&path).unwrap();
        let mut line = Line::to(path.into());
        for n in 0..10 * QUEUE {
            line.say(n.to_string(), Vec::new());
        }
        assert_eq!(line.queue.len(), QUEUE);
        assert!(line.failure.is_some());
    }

    #[tokio::test]
    async fn one_who_is_gone_is_an_error_and_his_successor_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let mut line = Line::to(path.clone().into());
        line.say("1".into(), Vec::new());
        assert_eq!(text(&manager).as_deref(), Some("1"));
        drop(manager);
        std::fs::remove_file(&path).unwrap();
        line.say("2".into(), Vec::new());
        assert!(line.failure.is_some() && line.queue.is_empty());
        let manager = UnixDatagram::bind(&path).unwrap();
        line.say("3".into(), Vec::new());
        assert_eq!((text(&manager).as_deref(), &line.failure), (Some("3"), &None));
    }
}
