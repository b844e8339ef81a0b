//! Signals that the operator sends to the server and means for plugins: which there are, and how a plugin hears of them.

use std::fmt;

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use crate::abi::extension::{SIGNAL_TSTP, SIGNAL_USR1};
use crate::ffi::Instance;

/// A signal that came to the server, and means whatever the plugin's author says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Signal {
    /// `SIGUSR1`
    Usr1,
    /// `SIGTSTP`
    Tstp,
}

impl Signal {
    pub(crate) fn number(self) -> u32 {
        match self {
            Signal::Usr1 => SIGNAL_USR1,
            Signal::Tstp => SIGNAL_TSTP,
        }
    }

    fn of(number: u32) -> Option<Signal> {
        [Signal::Usr1, Signal::Tstp].into_iter().find(|signal| signal.number() == number)
    }
}

/// The signals that come, from [`Init::signals`](crate::Init::signals).
///
/// Up to 16 wait for whoever is slow to take them; then the oldest are lost, and counted.
pub struct Signals {
    queue: Receiver<u32>,
    missed: u64,
}

impl Signals {
    pub(crate) fn new(instance: &'static Instance) -> Signals {
        Signals { queue: instance.signals(), missed: 0 }
    }

    /// The next signal; nothing once this generation retires. May be dropped at any time: no signal is lost by that.
    pub async fn recv(&mut self) -> Option<Signal> {
        loop {
            match self.queue.recv().await {
                Ok(number) => match Signal::of(number) {
                    Some(signal) => return Some(signal),
                    // Of a newer server.
                    None => continue,
                },
                Err(RecvError::Lagged(count)) => self.missed += count,
                Err(RecvError::Closed) => return None,
            }
        }
    }

    /// How many were lost since nobody took them in time.
    pub fn missed(&self) -> u64 {
        self.missed
    }
}

impl fmt::Debug for Signals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signals").field("missed", &self.missed).finish_non_exhaustive()
    }
}
