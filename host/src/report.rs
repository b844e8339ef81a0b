//! What the server says of itself: operations and their reports, generations, status. The one vocabulary of signals, admin,
//! command line and log. Data only; who fills it in is `master::state`.

use std::fmt;

use serde::{Deserialize, Serialize};

mod changes;
mod status;

pub use changes::{ConfigChanges, KeyChange, ListChanges};
pub use status::{
    Activity, CertificateStatus, GenerationState, GenerationStatus, LimitHits, ListenerStatus, Load, Malformed,
    PluginStatus, Rights, RunsAs, Scheme, Sense, Status, SystemdStatus, Totals, Trigger, Validity, WatcherStatus,
};

/// Number of a generation, from 1. Never used twice by one master.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Number of an operation, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OpId(pub u64);

impl fmt::Display for OpId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What an operation does. Ordered by priority: a later one displaces an earlier one from the waiting slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// Never waits.
    Cut,
    Reload,
    /// Another program in the master's process, then a reload.
    Restart,
    /// Back to a set that has served before.
    Rollback,
    Shutdown,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verb::Cut => "cut",
            Verb::Reload => "reload",
            Verb::Restart => "restart",
            Verb::Rollback => "rollback",
            Verb::Shutdown => "shutdown",
        })
    }
}

/// Why something happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum Cause {
    Start,
    Signal {
        signal: String,
        sender: i32,
    },
    /// The admin surface: the CLI, a browser, curl. `peer` is `uid 0 pid 7` or an address.
    Admin {
        peer: String,
    },
    Watcher {
        path: String,
    },
    /// The generation before it died.
    Crash {
        of: Generation,
    },
    /// The child was sent SIGTERM from outside and asked to be replaced.
    Term {
        generation: Generation,
    },
    /// A handler of the plugin asked.
    Handler {
        plugin: String,
    },
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Start => f.write_str("start"),
            Cause::Signal { signal, sender } => write!(f, "{signal} from pid {sender}"),
            Cause::Admin { peer } => write!(f, "admin ({peer})"),
            Cause::Watcher { path } => write!(f, "change of {path}"),
            Cause::Crash { of } => write!(f, "crash of generation {of}"),
            Cause::Term { generation } => write!(f, "SIGTERM to generation {generation}"),
            Cause::Handler { plugin } => write!(f, "a handler of {plugin}"),
        }
    }
}

/// How an operation stands or ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OpResult {
    Queued,
    Running,
    /// The new generation is committed.
    Switched,
    /// Nothing changed; the old code serves on.
    Refused,
    /// The new generation was committed and failed before the old one retired: the old one serves again.
    RolledBack,
    /// An operation of higher priority took its place before it began.
    Superseded,
    /// A shutdown that has begun.
    ShuttingDown,
    /// What was asked for has come true: of a cut.
    Done,
}

/// Where a refused operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Testing the binary that shall take over, and its taking over.
    Restart,
    /// Building the crate (`baton dev`).
    Build,
    Config,
    /// Reading and checking the files.
    Snapshot,
    /// Certificates and their keys.
    Tls,
    Listen,
    Spawn,
    /// Opening the plugin and running its init.
    Load,
    Prove,
    /// From GO to SERVING.
    Switch,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stage::Restart => "restart",
            Stage::Build => "build",
            Stage::Config => "config",
            Stage::Snapshot => "snapshot",
            Stage::Tls => "tls",
            Stage::Listen => "listen",
            Stage::Spawn => "spawn",
            Stage::Load => "load",
            Stage::Prove => "prove",
            Stage::Switch => "switch",
        })
    }
}

/// Why an operation was refused: one line, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub stage: Stage,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plugin: Option<String>,
    /// One line; completes "failed to ...".
    pub error: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The whole of it, for `--verbose`: a layout dump, the tail of the child's output, a compiler's report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl Failure {
    /// `error` may be the text of an error of ours: its "failed to " is left out, since whoever shows it says it.
    pub fn new(stage: Stage, error: impl Into<String>) -> Failure {
        let error = error.into();
        let error = error.strip_prefix("failed to ").map(str::to_owned).unwrap_or(error);
        Failure { stage, plugin: None, error, hint: None, detail: None }
    }

    pub fn of_plugin(mut self, name: impl Into<String>) -> Failure {
        self.plugin = Some(name.into());
        self
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint = Some(hint.into());
        self
    }

    pub fn detail(mut self, detail: impl Into<String>) -> Failure {
        self.detail = Some(detail.into()).filter(|detail: &String| !detail.trim().is_empty());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.stage)?;
        if let Some(plugin) = &self.plugin {
            write!(f, " of {plugin}")?;
        }
        write!(f, ": {}", self.error)
    }
}

/// A part of a set that was given up: a reload does not take it again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Change {
    /// This content of the plugin's file.
    Plugin { plugin: String, sha256: String },
    /// That the plugin is gone.
    Removal { plugin: String },
    /// This `[plugins.NAME]`.
    Settings { plugin: String, sha256: String },
    /// This configuration, as a whole.
    Config { sha256: String },
    /// All of it together.
    Set { sha256: String },
}

impl Change {
    /// The plugin that it is of, if it is of one.
    pub fn plugin(&self) -> Option<&str> {
        match self {
            Change::Plugin { plugin, .. } | Change::Removal { plugin } | Change::Settings { plugin, .. } => {
                Some(plugin)
            }
            Change::Config { .. } | Change::Set { .. } => None,
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = |sha256: &'_ str| sha256.get(..8).unwrap_or_default().to_owned();
        match self {
            Change::Plugin { plugin, sha256 } => write!(f, "{plugin} ({})", short(sha256)),
            Change::Removal { plugin } => write!(f, "the removal of {plugin}"),
            Change::Settings { plugin, sha256 } => write!(f, "[plugins.{plugin}] ({})", short(sha256)),
            Change::Config { sha256 } => write!(f, "the configuration ({})", short(sha256)),
            Change::Set { sha256 } => write!(f, "the set ({})", short(sha256)),
        }
    }
}

/// Why a set was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    RolledBack,
    /// It died too often.
    Quarantined,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Why::RolledBack => "rolled back",
            Why::Quarantined => "quarantined",
        })
    }
}

/// A change that is held back, and since when (RFC 3339).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    pub change: Change,
    pub why: Why,
    pub since: String,
}

/// What serves was not taken from the plugin folder, but goes back to the set of `generation`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    pub generation: Generation,
    pub since: String,
}

/// How long the parts of a switch took, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Timings {
    pub snapshot: f64,
    /// From spawn to the end of the plugins' init.
    pub load: f64,
    /// From then to READY: the probes.
    pub prove: f64,
    /// From GO to SERVING.
    pub switch: f64,
    /// From the request of the operation to SERVING.
    pub total: f64,
}

/// What a reload changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginChanges {
    pub added: Vec<String>,
    pub changed: Vec<String>,
    pub removed: Vec<String>,
    pub unchanged: Vec<String>,
}

/// Connections that a drain ended by force, by class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// With a request in flight.
    pub busy: u64,
    /// In the middle of a request head.
    pub head: u64,
    pub upgraded: u64,
    pub http2: u64,
    /// Responses without a length, at the end of `drain.stream`. Those of HTTP/2 are counted beside their connections.
    #[serde(default)]
    pub stream: u64,
}

impl Cut {
    pub fn total(&self) -> u64 {
        [self.busy, self.head, self.upgraded, self.http2, self.stream].into_iter().fold(0, u64::saturating_add)
    }
}

/// How a generation's connections ended once it retired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DrainReport {
    pub handed_over: u64,
    /// Of these, with bytes that were read ahead.
    #[serde(default)]
    pub carried: u64,
    /// Ended by the client, or after a response that announced the close.
    pub finished: u64,
    /// Closed while idle, at the end of `drain.keepalive`.
    pub lingered: u64,
    /// HTTP/2 connections that ended after GOAWAY, with all answered.
    pub goaway: u64,
    /// Had left HTTP, and ended by themselves.
    pub upgraded: u64,
    pub cut: Cut,
    /// Closed by us with unread bytes and no close announced. A lost request; must be 0.
    pub lost: u64,
    /// Closed as announced, with pipelined requests behind: RFC 9112 9.6 leaves these to the client to send again.
    pub unanswered_pipelined: u64,
    /// From RETIRE to the end.
    pub ms: f64,
}

/// Of several generations: the longest time, the sum of all else. The numbers are the children's own word, so a sum stops at the
/// largest number.
impl std::ops::AddAssign for DrainReport {
    fn add_assign(&mut self, other: DrainReport) {
        let DrainReport {
            handed_over,
            carried,
            finished,
            lingered,
            goaway,
            upgraded,
            cut,
            lost,
            unanswered_pipelined,
            ms,
        } = other;
        let add = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
        add(&mut self.handed_over, handed_over);
        add(&mut self.carried, carried);
        add(&mut self.finished, finished);
        add(&mut self.lingered, lingered);
        add(&mut self.goaway, goaway);
        add(&mut self.upgraded, upgraded);
        add(&mut self.cut.busy, cut.busy);
        add(&mut self.cut.head, cut.head);
        add(&mut self.cut.upgraded, cut.upgraded);
        add(&mut self.cut.http2, cut.http2);
        add(&mut self.cut.stream, cut.stream);
        add(&mut self.lost, lost);
        add(&mut self.unanswered_pipelined, unanswered_pipelined);
        self.ms = self.ms.max(ms);
    }
}

/// What the plugins that served have handed on to those that follow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateReport {
    /// The plugins that gave a state.
    pub saved: Vec<String>,
    pub failed: Vec<NotSaved>,
}

/// A state that was not handed on: its plugin starts without.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotSaved {
    /// All plugins, if none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plugin: Option<String>,
    /// One line; completes "failed to ...".
    pub error: String,
}

/// One operation, from its request to its last word.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub op: OpId,
    pub verb: Verb,
    pub result: OpResult,
    pub cause: Cause,
    /// The generation it brought.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<Generation>,
    /// The generation that served before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Generation>,
    /// Process of the new generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ms: Option<Timings>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plugins: Option<PluginChanges>,
    /// What else of the configuration changed, if anything did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<ConfigChanges>,
    /// What it did not take, since it was rolled back or quarantined.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<Change>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<Stage>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plugin: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The generation that serves after a refusal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving: Option<Generation>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub superseded_by: Option<OpId>,
    /// The generation that stands by to take over again, while the new one is on probation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standby: Option<Generation>,
    /// Why it waits, while it is queued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queued: Option<String>,
    /// How the generation before it drained, once it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<DrainReport>,
    /// The generations that a cut ended; the drain is of all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<Vec<Generation>>,
    /// What the plugins that served were asked to hand on, if any did or should have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<StateReport>,
    /// For how long nothing accepted, if it was cold: connections waited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unserved_ms: Option<f64>,
}

impl Report {
    /// Of an operation that has only been asked for.
    pub fn new(op: OpId, verb: Verb, cause: Cause) -> Report {
        Report {
            op,
            verb,
            result: OpResult::Queued,
            cause,
            generation: None,
            from: None,
            pid: None,
            ms: None,
            plugins: None,
            config: None,
            held: Vec::new(),
            stage: None,
            plugin: None,
            error: None,
            hint: None,
            detail: None,
            serving: None,
            superseded_by: None,
            standby: None,
            queued: None,
            drain: None,
            cut: None,
            state: None,
            unserved_ms: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_what_children_report_stop_at_the_largest_number() {
        let most = u64::MAX;
        let cut = Cut { busy: most, head: most, upgraded: most, http2: most, stream: most };
        let one = DrainReport {
            handed_over: most,
            carried: most,
            finished: most,
            lingered: most,
            goaway: most,
            upgraded: most,
            cut,
            lost: most,
            unanswered_pipelined: most,
            ms: f64::MAX,
        };
        let mut sum = one;
        sum += one;
        assert_eq!((sum, sum.cut.total()), (one, most));
    }
}
