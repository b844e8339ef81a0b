//! The configuration: what an operator may set, with its defaults. Read whole and validated before anything is touched.
//!
//! Owns the shape, the defaults and the rules between keys. It opens one file (the one it is told) and nothing else: whether
//! an address can be bound or a directory written is found out by who needs it. `default.toml`, beside this file, is the
//! commented reference; a test holds it equal to the defaults here. In one file, since it is one list: all keys, in its order.

mod address;
mod bounds;
pub mod carried;
mod file;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod limit;
mod limits;
mod load;
mod mode;
mod rules;
mod signals;
mod size;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use address::{collide, parse_listen};
pub use file::{ConfigSource, MAX_FILE, is_there, read as read_file};
use limit::finite;
pub use limit::{Limit, MAX_DURATION, parse_duration};
pub use mode::Mode;
pub use rules::{Listen, check_mount};
pub use signals::Preset;
pub use size::Size;
pub use watch::Watch;

/// So many things that are wrong are named at once.
const MOST_PROBLEMS: usize = 100;

/// The commented reference, as `baton run --print-config=reference` and the documents show it.
pub const REFERENCE: &str = include_str!("default.toml");

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("failed to read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("failed to read {}: it has {size} bytes, and at most {MAX_FILE} are read", path.display())]
    TooLarge { path: PathBuf, size: u64 },
    #[error("failed to find {}, the configuration file that the server was started with", path.display())]
    Gone { path: PathBuf },
    #[error("failed to accept {}: it sets no key any more", path.display())]
    Emptied { path: PathBuf },
    /// The text shows the line, as toml does.
    #[error("failed to understand {}: {}", path.display(), text.trim_end())]
    Syntax { path: PathBuf, text: String },
    /// It can be read, and what it says cannot be.
    #[error("failed to accept {}: {}", of(path.as_deref()), listed(problems))]
    Refused { path: Option<PathBuf>, problems: Vec<Problem> },
}

impl ConfigError {
    /// The value of `key` does not hold.
    pub fn at_key(key: &str, why: String) -> ConfigError {
        ConfigError::Refused { path: None, problems: vec![Problem::at_key(key, why)] }
    }

    /// What to do about it, where that is not plain from the text.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            ConfigError::Gone { .. } | ConfigError::Read { .. } => Some(
                "put the file back, or make it readable; to serve without one, shut the server down and start it again",
            ),
            ConfigError::Emptied { .. } => {
                Some("write at least one key, such as `name`, to serve the defaults; or start the server anew")
            }
            ConfigError::TooLarge { .. } => {
                Some("let a plugin read large data from a file of its own, in place of `[plugins.NAME.config]`")
            }
            ConfigError::Syntax { .. } | ConfigError::Refused { .. } => None,
        }
    }

    fn unless_empty(path: Option<&Path>, mut problems: Vec<Problem>) -> Result<(), ConfigError> {
        if problems.is_empty() {
            return Ok(());
        }
        problems.sort_by_key(|problem| match problem.place {
            Some(Place::Line(line)) => line,
            _ => usize::MAX,
        });
        Err(ConfigError::Refused { path: path.map(Path::to_owned), problems })
    }
}

fn of(path: Option<&Path>) -> String {
    path.map_or_else(|| "the configuration".into(), |path| path.display().to_string())
}

/// One in the same line, several below each other.
fn listed(problems: &[Problem]) -> String {
    match problems {
        [one] => one.to_string(),
        several => {
            let mut text = format!("{} problems", several.len());
            several.iter().take(MOST_PROBLEMS).for_each(|one| text.push_str(&format!("\n  {one}")));
            if several.len() > MOST_PROBLEMS {
                text.push_str("\n  ...");
            }
            text
        }
    }
}

/// Where a key was set.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Line(usize),
    Setting(String),
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    place: Option<Place>,
    key: Option<String>,
    why: String,
}

impl Problem {
    fn at_key(key: &str, why: String) -> Problem {
        Problem { place: None, key: Some(key.into()), why }
    }

    fn moved_to(self, place: &Place) -> Problem {
        Problem { place: Some(place.clone()), ..self }
    }

    /// With the place of its key, or of what the key is in.
    fn found_in(self, places: &BTreeMap<String, Place>) -> Problem {
        let mut key = self.key.as_deref().unwrap_or_default();
        loop {
            if let Some(place) = places.get(key) {
                let place = Some(place.clone());
                return Problem { place, ..self };
            }
            match key.rfind(['.', '[']) {
                Some(end) => key = &key[..end],
                None => return self,
            }
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Some(Place::Line(line)) => write!(f, "line {line}: ")?,
            Some(Place::Setting(setting)) => write!(f, "--set {setting}: ")?,
            None => {}
        }
        match &self.key {
            Some(key) => write!(f, "{key}: {}", self.why),
            None => f.write_str(&self.why),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Names the instance: its directories, its lock, `--name`.
    pub name: String,
    pub runtime_dir: Option<PathBuf>,
    pub state_dir: Option<PathBuf>,
    /// As whom plugins run, by name or number; absent for the user of the master.
    pub user: Option<String>,
    /// Absent for the user's own.
    pub group: Option<String>,
    /// The drop folder.
    pub plugin_dir: PathBuf,
    /// Threads that serve, per child; 0 for one per core.
    pub workers: usize,
    #[cfg(feature = "next")]
    pub novelty: u32,
    /// From the start of a child to its READY.
    #[serde(with = "finite")]
    pub start_timeout: Duration,
    /// Retiring generations at once; the next switch waits.
    pub max_draining: usize,
    pub drain: Drain,
    pub shutdown: Shutdown,
    pub limits: Limits,
    pub probation: Probation,
    pub tls: Tls,
    pub crash: Crash,
    pub store: Store,
    pub watch: Watch,
    pub admin: Admin,
    pub log: Log,
    pub signals: Signals,
    pub server: Vec<Server>,
    pub plugins: BTreeMap<String, Plugin>,
}

/// How a retiring generation ends its connections.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Drain {
    /// Hand idle clear HTTP/1 connections to the new generation instead of closing them.
    pub handover: bool,
    /// An idle connection that stays is closed after this long without a request.
    pub keepalive: Limit,
    /// A request in flight may go on for this long without progress.
    pub timeout: Limit,
    /// An HTTP/2 client without a request may take this long to answer that it has seen GOAWAY.
    pub goaway: Limit,
    /// How long a close waits for the client's end, and reads and discards what still comes.
    #[serde(with = "finite")]
    pub linger: Duration,
    /// A connection that has left HTTP, such as a WebSocket, has this long to end.
    pub upgraded: Limit,
    /// A response that announced no length, to a request that is received, has this long to end.
    pub stream: Limit,
    /// What moves fewer bytes per second makes no progress; 0 for any.
    pub min_rate: u64,
    /// All in all, from RETIRE.
    pub max: Limit,
    /// All in all, if the master died.
    #[serde(with = "finite")]
    pub orphan: Duration,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Shutdown {
    /// Serve on for this long with `/readyz` at 503, so that balancers look away first.
    #[serde(with = "finite")]
    pub delay: Duration,
    pub timeout: Limit,
    /// A connection without a request is closed within this time.
    pub idle: Limit,
}

/// What one client, and all together, may take up. docs/LIMITS.md says what each meets at a limit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Of TLS, from the accept to the last message of the handshake.
    pub handshake_timeout: Limit,
    /// From the first byte of a request's head to its last; on a new connection from its accept.
    pub head_timeout: Limit,
    /// Of a connection without a request.
    pub idle_timeout: Limit,
    /// Of a request's body that a handler waits for, without a byte.
    pub body_timeout: Limit,
    /// Bytes per second that such a body must bring, over `body_timeout`; 0 for any.
    pub body_min_rate: u64,
    /// Of a response, without a byte taken by the client.
    pub write_timeout: Limit,
    /// From a request's head to the end of its response.
    pub request_timeout: Limit,
    pub head_size: Size,
    /// Header fields in one head.
    pub head_fields: usize,
    pub body_size: Size,
    /// Open at once in one child; 0 for what RLIMIT_NOFILE and the memory allow, less a reserve.
    pub connections: usize,
    /// Of these, from one IPv4 address or IPv6 /64 network; 0 for no limit.
    pub connections_per_peer: usize,
    /// Requests at once on one HTTP/2 connection.
    pub http2_streams: u32,
    /// An HTTP/2 client that says nothing is asked this often whether it lives, and has as long to answer.
    pub http2_ping: Limit,
    /// Frames that cost an HTTP/2 client nothing, in 10 seconds; 0 for no limit.
    pub http2_glitches: u32,
    /// Bytes per second that a client must take of a response, over `response_window`, while the kernel takes no more; 0 for any.
    pub response_min_rate: u64,
    #[serde(with = "finite")]
    pub response_window: Duration,
    /// Requests on one connection; 0 for no limit.
    pub requests_per_connection: u64,
    /// Of a connection that serves requests; the next response announces the close.
    pub keepalive_max_age: Limit,
    /// Of a connection that has left HTTP, without a byte.
    pub upgraded_idle: Limit,
    /// What is held of an HTTP/1 connection's bytes in each direction.
    pub buffer_size: Size,
    /// Silence on a connection until the kernel asks whether its peer still exists.
    pub tcp_keepalive: Limit,
    /// Bytes of a response that wait in the kernel to be sent.
    pub send_queue: Size,
    /// The kernel's send buffer of a connection; unlimited for the size that the kernel finds by itself.
    pub send_buffer: Size,
}

/// For how long after a switch the old generation stands by to take over again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Probation {
    #[serde(with = "finite")]
    pub window: Duration,
    /// Fewer answers than this say nothing.
    pub min_requests: u64,
    /// Of the new generation's answers, the part that may be 5xx, 501 apart; absent for any.
    pub max_failure_ratio: Option<f64>,
}

/// What all servers with certificates have in common.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    pub min_version: TlsVersion,
    /// How often the keys change that session tickets are sealed with. A ticket is good for this long at least, and twice
    /// this long at most.
    #[serde(with = "finite")]
    pub ticket_rotation: Duration,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TlsVersion {
    #[default]
    #[serde(rename = "1.2")]
    V12,
    #[serde(rename = "1.3")]
    V13,
}

/// What follows the death of a child that serves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Crash {
    /// Wait before the second respawn in a row; doubles up to `backoff_max`. The first is at once.
    #[serde(with = "finite")]
    pub backoff: Duration,
    #[serde(with = "finite")]
    pub backoff_max: Duration,
    /// A generation that lived this long ends the row.
    #[serde(with = "finite")]
    pub window: Duration,
    /// So many deaths within `window` are too many: the last good set takes over.
    pub limit: usize,
    /// With no good set left, connections wait for this long; then they are answered 503.
    #[serde(with = "finite")]
    pub hold: Duration,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Store {
    /// Snapshots kept beside those in use.
    pub keep: usize,
    /// Who may own plugin files and their folder besides root and the user of the server, by name or number.
    pub owners: Vec<String>,
    /// Public keys of minisign; if there are any, a plugin must be signed by one of them.
    pub signers: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// Address of the admin page; "off" for the Unix socket alone.
    pub listen: String,
    /// Host names besides the address itself that a browser may use to reach it.
    pub hosts: Vec<String>,
    /// Address that answers `/livez` and `/readyz` to anyone; "off" for none.
    pub probe_listen: String,
    /// Whether it answers `/metrics`, too.
    pub public_metrics: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Auto,
    Pretty,
    Compact,
    Json,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    pub format: LogFormat,
    /// A filter as `RUST_LOG` takes it, such as "info" or "info,hello=debug". `RUST_LOG` wins.
    pub level: String,
}

/// What a signal to the master does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Signals {
    pub preset: Preset,
}

/// A group of addresses with the same routes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    #[serde(default = "default_name")]
    pub name: String,
    /// `IP:PORT` (port 0 lets the kernel choose), `unix:PATH` or `systemd:NAME` each.
    pub listen: Vec<String>,
    /// Of the files of its `unix:` addresses.
    #[serde(default = "everybody")]
    pub socket_mode: Mode,
    /// A name or a number each; absent for those of the master.
    #[serde(default)]
    pub socket_owner: Option<String>,
    #[serde(default)]
    pub socket_group: Option<String>,
    /// If there are any, all its addresses speak TLS.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tls: Vec<Certificate>,
    /// If there are any, only these are served here; else every plugin at its mount.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub route: Vec<Route>,
    /// A path that is answered `200 ok` without any plugin.
    #[serde(default)]
    pub health: Option<String>,
    /// What a new generation must answer before it may serve.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub probe: Vec<Probe>,
    /// Whether a client may speak HTTP/2.
    #[serde(default = "yes")]
    pub http2: bool,
    /// Whether a client that closes its sending side ends its request; else only a reset does.
    #[serde(default)]
    pub abort_on_close: bool,
}

/// A request through the routes of its server, and what must come back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Probe {
    pub method: String,
    /// With a query, if need be.
    pub path: String,
    /// The header of that name, by which routes are found too.
    pub host: String,
    pub headers: BTreeMap<String, String>,
    pub status: u16,
    /// What the body must contain.
    pub body: Option<String>,
    #[serde(with = "finite")]
    pub timeout: Duration,
}

/// Files in PEM form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// The server's own certificate, then those that lead to one that clients know.
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// Requests for `host` below `prefix` go to `plugin`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// `a.example`, or `*.example` for all below it; absent for any.
    #[serde(default)]
    pub host: Option<String>,
    #[serde(default = "root")]
    pub prefix: String,
    pub plugin: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Plugin {
    /// A library outside of the drop folder.
    pub file: Option<PathBuf>,
    /// Where its paths begin; else the plugin's own word, else `/`.
    pub mount: Option<String>,
    /// Threads of the plugin's own runtime; 0 for its own choice.
    pub workers: u32,
    /// Whether its handlers may reload, restart and shut down the server.
    pub allow_control: bool,
    /// Handed to the plugin as it is.
    pub config: toml::Table,
}

fn yes() -> bool {
    true
}

fn root() -> String {
    "/".into()
}

/// As everybody may connect to a port.
fn everybody() -> Mode {
    Mode(0o666)
}

fn default_name() -> String {
    "default".into()
}

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

impl Default for Config {
    fn default() -> Config {
        Config {
            name: default_name(),
            runtime_dir: None,
            state_dir: None,
            user: None,
            group: None,
            plugin_dir: "plugins".into(),
            workers: 0,
            #[cfg(feature = "next")]
            novelty: 7,
            start_timeout: seconds(30),
            max_draining: 8,
            drain: Drain::default(),
            shutdown: Shutdown::default(),
            limits: Limits::default(),
            probation: Probation::default(),
            tls: Tls::default(),
            crash: Crash::default(),
            store: Store::default(),
            watch: Watch::default(),
            admin: Admin::default(),
            log: Log::default(),
            signals: Signals::default(),
            server: vec![Server::new(&default_name(), &["127.0.0.1:8080"])],
            plugins: BTreeMap::new(),
        }
    }
}

impl Default for Drain {
    fn default() -> Drain {
        Drain {
            handover: true,
            keepalive: Limit::After(seconds(5)),
            timeout: Limit::After(seconds(60)),
            min_rate: 0,
            goaway: Limit::After(seconds(1)),
            linger: seconds(2),
            upgraded: Limit::After(seconds(60)),
            stream: Limit::After(seconds(60)),
            max: Limit::After(seconds(600)),
            orphan: seconds(5),
        }
    }
}

impl Default for Shutdown {
    fn default() -> Shutdown {
        Shutdown { delay: Duration::ZERO, timeout: Limit::After(seconds(30)), idle: Limit::After(seconds(1)) }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            handshake_timeout: Limit::After(seconds(10)),
            head_timeout: Limit::After(seconds(30)),
            idle_timeout: Limit::After(seconds(75)),
            body_timeout: Limit::After(seconds(30)),
            body_min_rate: 64,
            write_timeout: Limit::After(seconds(30)),
            request_timeout: Limit::Never,
            head_size: Size(64 << 10),
            head_fields: 100,
            body_size: Size(1 << 30),
            connections: 0,
            connections_per_peer: 0,
            http2_streams: 100,
            http2_ping: Limit::After(seconds(30)),
            http2_glitches: 1000,
            response_min_rate: 1024,
            response_window: seconds(10),
            requests_per_connection: 0,
            keepalive_max_age: Limit::Never,
            upgraded_idle: Limit::Never,
            buffer_size: Size(64 << 10),
            tcp_keepalive: Limit::After(seconds(60)),
            send_queue: Size(128 << 10),
            send_buffer: Size::UNLIMITED,
        }
    }
}

impl Default for Probation {
    fn default() -> Probation {
        Probation { window: Duration::ZERO, min_requests: 20, max_failure_ratio: None }
    }
}

impl Default for Tls {
    fn default() -> Tls {
        Tls { min_version: TlsVersion::V12, ticket_rotation: seconds(6 * 3600) }
    }
}

impl Default for Crash {
    fn default() -> Crash {
        Crash {
            backoff: Duration::from_millis(200),
            backoff_max: seconds(10),
            window: seconds(60),
            limit: 5,
            hold: seconds(10),
        }
    }
}

impl Default for Store {
    fn default() -> Store {
        Store { keep: 4, owners: Vec::new(), signers: Vec::new() }
    }
}

impl Default for Admin {
    fn default() -> Admin {
        Admin { listen: "127.0.0.1:9700".into(), hosts: Vec::new(), probe_listen: "off".into(), public_metrics: false }
    }
}

impl Default for Log {
    fn default() -> Log {
        Log { format: LogFormat::Auto, level: "info".into() }
    }
}

impl Default for Plugin {
    fn default() -> Plugin {
        Plugin { file: None, mount: None, workers: 0, allow_control: true, config: toml::Table::new() }
    }
}

impl Server {
    /// Every plugin at its mount.
    pub fn new(name: &str, listen: &[&str]) -> Server {
        let listen = listen.iter().map(ToString::to_string).collect();
        Server {
            name: name.into(),
            listen,
            socket_mode: everybody(),
            socket_owner: None,
            socket_group: None,
            tls: Vec::new(),
            route: Vec::new(),
            health: None,
            probe: Vec::new(),
            http2: true,
            abort_on_close: false,
        }
    }

    pub fn is_tls(&self) -> bool {
        !self.tls.is_empty()
    }
}

impl Default for Probe {
    fn default() -> Probe {
        Probe {
            method: "GET".into(),
            path: root(),
            host: "localhost".into(),
            headers: BTreeMap::new(),
            status: 200,
            body: None,
            timeout: seconds(5),
        }
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.host.as_deref().unwrap_or("*"), self.prefix)
    }
}

impl Config {
    /// What only a new master can change is as in `other`.
    pub fn with_fixed(&self, other: &Config) -> Config {
        Config {
            name: other.name.clone(),
            runtime_dir: other.runtime_dir.clone(),
            state_dir: other.state_dir.clone(),
            user: other.user.clone(),
            group: other.group.clone(),
            admin: other.admin.clone(),
            signals: other.signals.clone(),
            ..self.clone()
        }
    }

    /// The section of the plugin `name`, where `-` and `_` are alike.
    pub fn plugin(&self, name: &str) -> Option<&Plugin> {
        self.plugins.iter().find(|(key, _)| same_plugin(key, name)).map(|(_, plugin)| plugin)
    }
}

/// `name` as one part of a TOML key: quoted unless it is a bare key.
pub fn toml_key(name: &str) -> String {
    let bare = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if !name.is_empty() && name.bytes().all(bare) {
        return name.into();
    }
    // A string of JSON is a basic string of TOML, but for this one character.
    serde_json::Value::from(name).to_string().replace('\x7f', "\\u007f")
}

/// Whether two plugin names mean the same plugin: `-` and `_` are alike.
pub fn same_plugin(left: &str, right: &str) -> bool {
    let fold = |byte: u8| if byte == b'-' { b'_' } else { byte };
    left.len() == right.len() && left.bytes().zip(right.bytes()).all(|(l, r)| fold(l) == fold(r))
}
