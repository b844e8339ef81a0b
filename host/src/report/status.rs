//! What runs now: generations with their load, listeners, certificates, and the whole that `status` shows. What an operation
//! did is the parent's.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Cause, Generation, Held, OpId, OpResult, Pin, Report};

/// Life of a generation, as operators see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GenerationState {
    Starting,
    Loading,
    Proving,
    Ready,
    /// GO was sent, SERVING has not come.
    Committing,
    Serving,
    Paused,
    /// Accepts no more, and would again.
    Standby,
    Retiring,
    Exited,
}

/// A plugin as a generation runs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginStatus {
    pub name: String,
    /// Of its crate.
    pub version: String,
    pub mount: String,
    pub sha256: String,
    pub file: String,
    /// `baton-plugin-api` and compiler that it was built with.
    pub api: String,
    pub rustc: String,
    pub debug: bool,
}

/// What a generation has open now, from its shared counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    pub connections: u64,
    pub idle: u64,
    pub requests_in_flight: u64,
    pub requests: u64,
    /// Of these, answered 5xx, 501 apart: that says what is not served, not that it failed.
    #[serde(default)]
    pub failures: u64,
    pub panics: u64,
    /// Responses that broke off after their head, by their plugins' fault.
    #[serde(default)]
    pub broken_responses: u64,
    /// Connections that speak HTTP/2.
    #[serde(default)]
    pub http2: u64,
    /// Connections that were upgraded.
    #[serde(default)]
    pub upgraded: u64,
    /// For how long the oldest request in flight has been; 0 if there is none.
    #[serde(default)]
    pub oldest_request_ms: u64,
    /// Connections whose client broke off a request or its response.
    #[serde(default)]
    pub client_aborts: u64,
    #[serde(default)]
    pub malformed: Malformed,
    #[serde(default)]
    pub limits: LimitHits,
}

/// Requests that were refused since they are malformed, by what is wrong with them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Malformed {
    /// Method or target.
    pub request_line: u64,
    /// A version of HTTP that is not spoken here.
    pub version: u64,
    pub header: u64,
    /// Missing, malformed, or there twice.
    pub host: u64,
    /// `Content-Length`, or `Transfer-Encoding` that does not end with one `chunked`.
    pub framing: u64,
    /// A transfer coding that is not known here.
    pub transfer_coding: u64,
    /// A chunk.
    pub body: u64,
    /// A request of HTTP/2 whose stream was reset for it.
    pub http2: u64,
}

impl Malformed {
    /// Each with its name, as status and metrics show it.
    pub fn named(&self) -> [(&'static str, u64); 8] {
        let Malformed { request_line, version, header, host, framing, transfer_coding, body, http2 } = *self;
        [
            ("request_line", request_line),
            ("version", version),
            ("header", header),
            ("host", host),
            ("framing", framing),
            ("transfer_coding", transfer_coding),
            ("body", body),
            ("http2", http2),
        ]
    }
}

/// How often each of `[limits]` was met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitHits {
    #[serde(default)]
    pub handshake_timeouts: u64,
    pub head_timeouts: u64,
    pub idle_timeouts: u64,
    pub body_timeouts: u64,
    pub write_timeouts: u64,
    pub request_timeouts: u64,
    pub head_too_large: u64,
    pub body_too_large: u64,
    pub accept_pauses: u64,
    pub peer_refusals: u64,
    /// Accepting paused, since descriptors or memory ran out: a limit of the machine.
    #[serde(default)]
    pub accept_failures: u64,
    /// Their clients broke the protocol of HTTP/2, or flooded it.
    #[serde(default)]
    pub http2_errors: u64,
    /// Clients that spoke no TLS to a port that does, or none that both sides know.
    #[serde(default)]
    pub handshake_failures: u64,
    /// Requests that ended since their clients had closed their sending side (`abort_on_close`).
    #[serde(default)]
    pub aborted_on_close: u64,
    /// Their clients took a response below `limits.response_min_rate`.
    #[serde(default)]
    pub responses_too_slow: u64,
    /// Nothing moved for `limits.upgraded_idle` on a connection that had left HTTP.
    #[serde(default)]
    pub upgraded_timeouts: u64,
}

impl LimitHits {
    /// Each with its name, as status and metrics show it.
    pub fn named(&self) -> [(&'static str, u64); 16] {
        let LimitHits {
            handshake_timeouts,
            head_timeouts,
            idle_timeouts,
            body_timeouts,
            write_timeouts,
            request_timeouts,
            head_too_large,
            body_too_large,
            accept_pauses,
            peer_refusals,
            accept_failures,
            http2_errors,
            handshake_failures,
            aborted_on_close,
            responses_too_slow,
            upgraded_timeouts,
        } = *self;
        [
            ("handshake_timeouts", handshake_timeouts),
            ("head_timeouts", head_timeouts),
            ("idle_timeouts", idle_timeouts),
            ("body_timeouts", body_timeouts),
            ("write_timeouts", write_timeouts),
            ("request_timeouts", request_timeouts),
            ("head_too_large", head_too_large),
            ("body_too_large", body_too_large),
            ("accept_pauses", accept_pauses),
            ("peer_refusals", peer_refusals),
            ("accept_failures", accept_failures),
            ("http2_errors", http2_errors),
            ("handshake_failures", handshake_failures),
            ("aborted_on_close", aborted_on_close),
            ("responses_too_slow", responses_too_slow),
            ("upgraded_timeouts", upgraded_timeouts),
        ]
    }
}

/// What has been counted since the start of the server, over all generations: these numbers never fall.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    pub requests: u64,
    pub panics: u64,
    /// Responses that broke off after their head, by their plugins' fault.
    #[serde(default)]
    pub broken_responses: u64,
    /// Connections that went from one generation to another, counted each time.
    pub handed_over: u64,
    /// Of these, with bytes that were read ahead.
    pub carried: u64,
    /// Offered to a generation that died or had no room, and served on by their own.
    pub taken_back: u64,
    /// Connections whose client broke off a request or its response.
    #[serde(default)]
    pub client_aborts: u64,
    #[serde(default)]
    pub malformed: Malformed,
    pub limits: LimitHits,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GenerationStatus {
    pub generation: Generation,
    pub state: GenerationState,
    pub pid: Option<i32>,
    pub cause: Cause,
    pub age_ms: u64,
    /// When the drain ends at the latest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    pub load: Load,
    pub plugins: Vec<PluginStatus>,
    /// How it ended, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<String>,
}

/// A certificate of the set that serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateStatus {
    pub server: String,
    /// Its file.
    pub cert: String,
    pub names: Vec<String>,
    /// As RFC 3339 writes it.
    pub not_after: String,
    /// Below zero if it has.
    pub expires_in_s: i64,
    pub validity: Validity,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Validity {
    Valid,
    NotYetValid,
    /// Within 14 days.
    ExpiresSoon,
    Expired,
}

/// What the watcher does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activity {
    #[default]
    Off,
    Watching,
    /// Something has changed, and more may.
    Settling,
    Reloading,
}

/// How the watcher hears of changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sense {
    /// The kernel tells of them.
    #[default]
    Events,
    /// It looks for them every `watch.poll`.
    Polling,
}

/// A reload that the watcher has asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trigger {
    /// Files.
    pub changed: Vec<String>,
    /// As RFC 3339 writes it.
    pub at: String,
    /// Once it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub op: Option<OpId>,
    pub result: OpResult,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatcherStatus {
    pub activity: Activity,
    pub by: Sense,
    /// Why it polls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// How often it has looked at them.
    #[serde(default)]
    pub looks: u64,
    /// Folders and files.
    pub watched: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Trigger>,
    /// Why it does not try again what lies there, until that changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holding: Option<String>,
}

/// What an address speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheme {
    #[default]
    Http,
    Https,
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerStatus {
    #[serde(default)]
    pub scheme: Scheme,
    pub server: String,
    pub address: String,
}

/// What is between the master and systemd, which listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemdStatus {
    /// It must hear from the master this often.
    pub watchdog_ms: Option<u64>,
    /// Names of the listening sockets that it keeps for the next master.
    #[serde(default)]
    pub stored: Vec<String>,
    /// Why the last word did not reach it.
    pub failure: Option<String>,
}

/// As whom plugins run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunsAs {
    pub user: String,
    pub uid: u32,
    pub gid: u32,
    pub rights: Rights,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rights {
    /// Those of this user alone, without any capability.
    Own,
    /// All that the master has.
    Masters,
}

/// The whole, as `status` shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub name: String,
    pub version: String,
    pub pid: i32,
    pub uptime_ms: u64,
    /// Whether a generation serves and no shutdown has begun: what `/readyz` says.
    pub ready: bool,
    pub serving: Option<Generation>,
    pub shutting_down: bool,
    pub listeners: Vec<ListenerStatus>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<CertificateStatus>,
    pub admin: Option<String>,
    /// Where `/livez` and `/readyz` are answered to anyone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probes: Option<String>,
    pub plugin_dir: String,
    /// Absent from an older master.
    #[serde(default)]
    pub runs_as: Option<RunsAs>,
    #[serde(default)]
    pub watcher: WatcherStatus,
    #[serde(default)]
    pub pinned: Option<Pin>,
    /// Changes that a reload does not take, unless it is forced.
    #[serde(default)]
    pub held: Vec<Held>,
    /// What an operator must know of what serves: that it is not what lies in the plugin folder, and why.
    #[serde(default)]
    pub alert: Option<String>,
    /// Newest first; ended ones stay for a while.
    pub generations: Vec<GenerationStatus>,
    /// Newest first.
    pub operations: Vec<Report>,
    pub totals: Totals,
    /// Switches committed since the start.
    pub switches: u64,
    pub crashes: u64,
    /// Sets that were given up since they died too often.
    #[serde(default)]
    pub quarantines: u64,
    /// Nothing if no service manager listens.
    #[serde(default)]
    pub systemd: Option<SystemdStatus>,
    pub master_fds: u64,
}
