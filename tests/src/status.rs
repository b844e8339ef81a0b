//! What an instance says of itself, as its clients read it: the JSON of `status`, `reload` and `ops/ID`.
//!
//! Written out here instead of taken from the host, so that a change of the wire shape fails a test. Only the fields that
//! the tests read; others may come and go.

use serde::Deserialize;

#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    pub name: String,
    pub version: String,
    pub pid: i32,
    pub ready: bool,
    pub serving: Option<u64>,
    pub shutting_down: bool,
    pub listeners: Vec<Listener>,
    #[serde(default)]
    pub certificates: Vec<Certificate>,
    pub admin: Option<String>,
    pub probes: Option<String>,
    pub runs_as: RunsAs,
    pub watcher: Watcher,
    pub pinned: Option<Pin>,
    pub held: Vec<Held>,
    pub alert: Option<String>,
    /// Newest first.
    pub generations: Vec<Generation>,
    /// Newest first.
    pub operations: Vec<Report>,
    pub totals: Totals,
    pub switches: u64,
    pub crashes: u64,
    pub quarantines: u64,
    pub systemd: Option<Systemd>,
    pub master_fds: u64,
}

impl Status {
    /// The generation that serves.
    pub fn serving(&self) -> Option<&Generation> {
        let serving = self.serving?;
        self.generations.iter().find(|generation| generation.generation == serving)
    }

    /// Generations whose process has not ended.
    pub fn living(&self) -> impl Iterator<Item = &Generation> {
        self.generations.iter().filter(|generation| generation.state != "exited")
    }

    pub fn operation(&self, op: u64) -> Option<&Report> {
        self.operations.iter().find(|report| report.op == op)
    }

    /// Number of the newest operation; 0 before the first.
    pub fn last_op(&self) -> u64 {
        self.operations.iter().map(|report| report.op).max().unwrap_or(0)
    }
}

#[derive(Clone, Debug, Deserialize)]
pub struct Watcher {
    pub activity: String,
    pub by: String,
    pub why: Option<String>,
    pub looks: u64,
    pub watched: Vec<String>,
    pub last: Option<Trigger>,
    pub holding: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Trigger {
    pub changed: Vec<String>,
    pub op: Option<u64>,
    pub result: String,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Systemd {
    pub watchdog_ms: Option<u64>,
    #[serde(default)]
    pub stored: Vec<String>,
    pub failure: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct RunsAs {
    pub user: String,
    pub uid: u32,
    pub gid: u32,
    pub rights: String,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Pin {
    pub generation: u64,
    pub since: String,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Held {
    pub change: Change,
    pub why: String,
    pub since: String,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Change {
    pub what: String,
    pub plugin: Option<String>,
    pub sha256: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Listener {
    pub scheme: String,
    pub server: String,
    pub address: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Certificate {
    pub server: String,
    pub cert: String,
    pub names: Vec<String>,
    pub not_after: String,
    pub expires_in_s: i64,
    pub validity: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Generation {
    pub generation: u64,
    pub state: String,
    pub pid: Option<i32>,
    pub cause: Cause,
    /// When its drain ends at the latest.
    pub deadline_ms: Option<u64>,
    pub load: Load,
    pub plugins: Vec<Plugin>,
    pub exit: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Load {
    pub connections: u64,
    pub idle: u64,
    pub requests_in_flight: u64,
    pub requests: u64,
    pub failures: u64,
    pub panics: u64,
    pub oldest_request_ms: u64,
    pub upgraded: u64,
    pub http2: u64,
    pub limits: LimitHits,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub struct LimitHits {
    pub handshake_timeouts: u64,
    pub handshake_failures: u64,
    pub responses_too_slow: u64,
    pub upgraded_timeouts: u64,
    pub head_timeouts: u64,
    pub body_timeouts: u64,
    pub head_too_large: u64,
    pub body_too_large: u64,
    pub accept_failures: u64,
    pub http2_errors: u64,
    pub aborted_on_close: u64,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Totals {
    pub requests: u64,
    pub panics: u64,
    pub handed_over: u64,
    pub carried: u64,
    pub taken_back: u64,
    pub client_aborts: u64,
    pub malformed: Malformed,
    pub limits: LimitHits,
}

/// Refused requests, by what is wrong with them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Malformed {
    pub request_line: u64,
    pub version: u64,
    pub header: u64,
    pub host: u64,
    pub framing: u64,
    pub transfer_coding: u64,
    pub body: u64,
    pub http2: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Plugin {
    pub name: String,
    pub mount: String,
    pub sha256: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Cause {
    pub by: String,
    pub signal: Option<String>,
    pub sender: Option<i32>,
    pub peer: Option<String>,
    pub plugin: Option<String>,
    pub of: Option<u64>,
}

/// One operation.
#[derive(Clone, Debug, Deserialize)]
pub struct Report {
    pub op: u64,
    pub verb: String,
    pub result: String,
    pub cause: Cause,
    pub generation: Option<u64>,
    pub from: Option<u64>,
    pub pid: Option<i32>,
    pub plugins: Option<Changes>,
    /// What else of the configuration changed, as it is written.
    pub config: Option<serde_json::Value>,
    /// What was not taken.
    #[serde(default)]
    pub held: Vec<Change>,
    pub stage: Option<String>,
    pub plugin: Option<String>,
    pub error: Option<String>,
    pub hint: Option<String>,
    /// The whole of it, such as the output of the process that failed.
    pub detail: Option<String>,
    pub serving: Option<u64>,
    /// Who stands by, while the new generation is on probation.
    pub standby: Option<u64>,
    pub drain: Option<Drain>,
    /// Generations that a cut ended.
    pub cut: Option<Vec<u64>>,
    /// What plugins were asked to hand on.
    pub state: Option<States>,
    /// For how long nothing accepted, if it was cold.
    pub unserved_ms: Option<f64>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct States {
    pub saved: Vec<String>,
    pub failed: Vec<NotSaved>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct NotSaved {
    pub plugin: Option<String>,
    pub error: String,
}

impl Report {
    pub fn has_ended(&self) -> bool {
        !matches!(self.result.as_str(), "queued" | "running")
    }
}

#[derive(Clone, Debug, Deserialize)]
pub struct Changes {
    pub added: Vec<String>,
    pub changed: Vec<String>,
    pub removed: Vec<String>,
    pub unchanged: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Drain {
    pub handed_over: u64,
    pub carried: u64,
    pub finished: u64,
    pub lingered: u64,
    pub upgraded: u64,
    pub goaway: u64,
    pub cut: Cut,
    pub lost: u64,
    pub unanswered_pipelined: u64,
    /// From RETIRE to the end.
    pub ms: f64,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Cut {
    pub busy: u64,
    pub head: u64,
    pub upgraded: u64,
    pub http2: u64,
    pub stream: u64,
}

impl Cut {
    pub fn total(&self) -> u64 {
        self.busy + self.head + self.upgraded + self.http2 + self.stream
    }
}
