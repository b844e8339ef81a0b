//! The control protocol between master and child: every message there is, and the channel that carries them.
//!
//! SOCK_SEQPACKET, one JSON message each, at most [`MAX_MESSAGE`] bytes, never empty; descriptors ride along and are counted
//! in the message. A longer one from the master, at most [`MAX_LOAD`] bytes (LOAD, with thousands of routes), crosses in sealed
//! memory: its envelope has `sealed`, the length, in place of the message, and the memory is the last descriptor. Unknown fields are ignored, and so is an unknown message; a broken one is an error value. Direction is in the
//! type: a master cannot send [`ToMaster`].
//!
//! | message | from | allowed when | answered by | timeout | if the peer dies |
//! |---|---|---|---|---|---|
//! | `Hello` | both | first | the other's `Hello` | `start_timeout` | refused, stage spawn |
//! | `Load` (+ metrics memfd, states memfd) | master | after the Hellos, once | `Ready` or `Failed` | `start_timeout` | refused, stage load |
//! | `Certificates` (+ sealed memory) | master | after `Load`, before `Listener`, once; only if a server has TLS | - | - | as `Load` |
//! | `Tickets` (+ sealed memory) | master | after `Certificates`, to the child's end, each time that the keys change | - | - | - |
//! | `Listener` (+ socket) | master | after `Load`, before `Ready` | - | - | as `Load` |
//! | `Relisten` (+ socket) | master | after `Listener`, until `Retire`: the socket of that listener was shut down | - | - | - |
//! | `Loading` | child | after the listeners came, once per plugin | - | - | names the plugin that killed it |
//! | `Proving` | child | all listeners came, plugins are up, and there are probes | - | - | refused, stage prove |
//! | `Ready` | child | all listeners came, plugins are up, every probe passed | `Go` | - | refused |
//! | `Failed` | child | from `Load` to `Ready` | SIGKILL | - | - |
//! | `Go` | master | after `Ready`, once | `Serving` | [`SWITCH_TIMEOUT`] | refused, stage switch |
//! | `Serving` | child | after `Go` or `Resume`: accepting | - | - | a crash: respawn or take-back |
//! | `Save` (+ memory to fill) | master | serving, before another is started | `Saved` | [`SAVE_TIMEOUT`](states::SAVE_TIMEOUT), then without | without |
//! | `Saved` | child | after `Save`, once | - | - | - |
//! | `Pause` | master | serving | `Paused` | [`PAUSE_TIMEOUT`] | reaped; a crash |
//! | `Paused` | child | nothing is accepted any more | `Retire` or `Resume` | - | - |
//! | `Adopt` (+ socket) | master | serving | - | - | its connections stay with the old one |
//! | `Handover` (+ socket) | master | serving to retiring, at each commit of another | - | - | - |
//! | `Resume` | master | pausing or paused | `Serving` | [`SWITCH_TIMEOUT`] | respawn of its set |
//! | `Hook` | master | serving | - | - | - |
//! | `Retire` | master | paused; or serving, at a shutdown | `Done`, in the end | its deadlines, then SIGKILL | reaped; a crash |
//! | `Retire` again | master | retiring: other limits, from now on | as before | as before | as before |
//! | `Done` | child | retired, nothing left | `DoneAck` | [`EXIT_TIMEOUT`] | - |
//! | `DoneAck` | master | after `Done` | exit 0 | [`EXIT_TIMEOUT`], then SIGKILL | - |
//! | `Cut` | master | retiring | `Done` | [`EXIT_TIMEOUT`], then SIGKILL | - |
//! | `ReplaceMe` | child | serving, on SIGTERM | a reload of its own set | - | - |
//! | `Control` | child | serving: a handler asked | an operation | - | - |
//!
//! The child's answer to the master's death (end of file here) is to accept nothing more and drain within `drain.orphan`.

mod channel;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod secrets;
pub mod states;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use channel::{ChannelError, Incoming, MasterEnd, WorkerEnd, check_length};

use self::states::StateEntry;

use crate::config::{Config, carried};
use crate::report::{DrainReport, Failure, Generation, NotSaved};

/// Largest message in bytes, as it crosses the pair. None from a child is larger.
pub const MAX_MESSAGE: usize = 128 * 1024;
/// Largest message of the master in bytes: a configuration file of the largest size, written as JSON.
pub const MAX_LOAD: usize = 64 << 20;
/// Most descriptors in one message.
pub const MAX_FDS: usize = 4;
/// GO to SERVING, RESUME to SERVING: the child only registers its listeners.
pub const SWITCH_TIMEOUT: Duration = Duration::from_secs(5);
/// PAUSE to PAUSED; then the master retires the child without it.
pub const PAUSE_TIMEOUT: Duration = Duration::from_secs(10);
/// From a child's last deadline to SIGKILL, and from DONE to its end.
pub const EXIT_TIMEOUT: Duration = Duration::from_secs(5);

/// Revision of this protocol; each side names the oldest and newest it speaks.
pub const PROTOCOL: Protocols = Protocols { oldest: 1, newest: 1 };

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protocols {
    pub oldest: u32,
    pub newest: u32,
}

impl Protocols {
    /// The newest revision that both speak.
    pub fn common(self, other: Protocols) -> Option<u32> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest && newest >= other.oldest).then_some(newest)
    }
}

/// Master to child.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToChild {
    Hello {
        protocols: Protocols,
        version: String,
        generation: Generation,
    },
    /// With the metrics memfd and, if `states` names any, what was saved.
    Load(Box<LoadSet>),
    /// With [`secrets::seal_certificates`].
    Certificates,
    /// With [`secrets::seal_tickets`].
    Tickets,
    /// With the listening socket.
    Listener {
        id: u32,
    },
    /// With another socket for a listener that the child has: the one before was shut down for good.
    Relisten {
        id: u32,
    },
    Go,
    /// Ask the plugins for what they hand on; all goes on as before. With [`states::lend`]: a child sends no descriptors.
    Save,
    Pause,
    Resume,
    /// With one end of a pair: connections of generation `from` come over it.
    Adopt {
        from: Generation,
    },
    /// With the other end: give idle connections to generation `to`, which has these listeners.
    Handover {
        to: Generation,
        listeners: Vec<u32>,
    },
    /// A signal that the operator routes to plugins. A child that does not know it serves on.
    Hook(Hook),
    Retire(Deadlines),
    /// End what is left now.
    Cut,
    DoneAck,
    #[cfg(feature = "next")]
    Novelty {
        more: u32,
    },
    /// What a newer master says: ignored. Never sent.
    #[serde(other)]
    Unknown,
}

/// Child to master.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToMaster {
    Hello {
        protocols: Protocols,
        version: String,
    },
    /// Opening `plugin` and running its init begins: should the child die or hang now, this one did it.
    Loading {
        plugin: String,
    },
    /// The plugins are up; the probes begin.
    Proving,
    Ready,
    Failed(Failure),
    Serving,
    /// The states lie in the memory that came with SAVE, as [`states::fill`] leaves it. An earlier version sends memory of its
    /// own beside this.
    Saved {
        states: Vec<StateEntry>,
        failed: Vec<NotSaved>,
        /// [`states::identity`] of the memory that came with SAVE.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        memory: Option<u64>,
    },
    Paused,
    Done(DrainReport),
    /// SIGTERM came from outside.
    ReplaceMe,
    /// A handler of `plugin` asked for `verb`.
    Control {
        plugin: String,
        verb: ControlVerb,
    },
    #[cfg(feature = "next")]
    Novelty {
        more: u32,
    },
    /// What a newer child says: ignored. Never sent.
    #[serde(other)]
    Unknown,
}

impl ToMaster {
    /// The name of the message, for a log line: its content is the child's.
    pub fn name(&self) -> &'static str {
        match self {
            ToMaster::Hello { .. } => "HELLO",
            ToMaster::Loading { .. } => "LOADING",
            ToMaster::Proving => "PROVING",
            ToMaster::Ready => "READY",
            ToMaster::Failed(_) => "FAILED",
            ToMaster::Serving => "SERVING",
            ToMaster::Saved { .. } => "SAVED",
            ToMaster::Paused => "PAUSED",
            ToMaster::Done(_) => "DONE",
            ToMaster::ReplaceMe => "REPLACEME",
            ToMaster::Control { .. } => "CONTROL",
            #[cfg(feature = "next")]
            ToMaster::Novelty { .. } => "NOVELTY",
            ToMaster::Unknown => "an unknown message",
        }
    }
}

/// A signal that plugins may hear of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "signal", rename_all = "snake_case")]
pub enum Hook {
    Usr1,
    Tstp,
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Hook::Usr1 => "SIGUSR1",
            Hook::Tstp => "SIGTSTP",
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlVerb {
    Reload,
    Restart,
    Shutdown,
}

impl fmt::Display for ControlVerb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ControlVerb::Reload => "reload",
            ControlVerb::Restart => "restart",
            ControlVerb::Shutdown => "shutdown",
        })
    }
}

/// What a child shall serve.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoadSet {
    /// The effective configuration, validated by the master.
    #[serde(with = "carried")]
    pub config: Config,
    pub plugins: Vec<PluginFile>,
    /// As many [`ToChild::Listener`] messages follow, in this order.
    pub listeners: Vec<ListenerInfo>,
    /// What the plugins that served hand on.
    #[serde(default)]
    pub states: Vec<StateEntry>,
}

/// A plugin snapshot in the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PluginFile {
    pub name: String,
    /// Absolute, unique by content.
    pub path: PathBuf,
    pub mount: String,
    /// `[plugins.NAME.config]` as JSON.
    pub config: serde_json::Value,
    pub data_dir: PathBuf,
    /// Threads of the plugin's runtime; 0 for its own choice.
    pub workers: u32,
    /// Whether it may send [`ToMaster::Control`]. A master that does not know of this allows it.
    #[serde(default = "allowed")]
    pub allow_control: bool,
}

fn allowed() -> bool {
    true
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerInfo {
    pub id: u32,
    pub server: String,
    /// As bound: `127.0.0.1:8080`.
    pub address: String,
}

/// A retiring child's limits. Milliseconds from the receipt of RETIRE; absent for never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deadlines {
    pub keepalive_ms: Option<u64>,
    /// How long the close of an idle connection waits for the client's own; absent for as long as any other close. A master
    /// that does not know it says nothing.
    #[serde(default)]
    pub linger_ms: Option<u64>,
    /// Without progress.
    pub timeout_ms: Option<u64>,
    /// Of connections that have left HTTP, in all. A master that does not know them says nothing.
    #[serde(default)]
    pub upgraded_ms: Option<u64>,
    /// Of responses without a length, in all. A master that does not know them says nothing.
    #[serde(default)]
    pub stream_ms: Option<u64>,
    /// Bytes per second that are progress; 0 for any.
    #[serde(default)]
    pub min_rate: u64,
    /// In all.
    pub max_ms: Option<u64>,
}
