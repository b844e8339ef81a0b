//! The configuration: what an operator may set, with its defaults. Read whole and validated before anything is touched.
//!
//! Owns the shape, the defaults and the rules between keys. It opens one file (the one it is told) and nothing else: whether
//! an address can be bound or a directory written is found out by who needs it. `default.toml`, beside this file, is the
//! commented reference; a test holds it equal to the defaults here.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The commented reference, as `baton run --print-config` and the documents show it.
pub const REFERENCE: &str = include_str!("default.toml");

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("failed to read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// The text names the line, as toml gives it.
    #[error("failed to understand {origin}: {text}")]
    Parse { origin: String, text: String },
    #[error("failed to accept the configuration: {0}")]
    Invalid(String),
}

/// A time limit: `"5s"`, `"0s"` (at once) or `"never"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    After(Duration),
    Never,
}

impl Limit {
    /// The duration, or nothing for never.
    pub fn duration(self) -> Option<Duration> {
        match self {
            Limit::After(duration) => Some(duration),
            Limit::Never => None,
        }
    }
}

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Limit, String> {
        if text == "never" {
            return Ok(Limit::Never);
        }
        let duration = humantime::parse_duration(text).map_err(|error| {
            format!("`{text}` is no duration ({error}); write \"5s\", \"250ms\", \"10min\" or \"never\"")
        })?;
        Ok(Limit::After(duration))
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Limit::After(duration) => humantime::format_duration(*duration).fmt(f),
            Limit::Never => f.write_str("never"),
        }
    }
}

impl Serialize for Limit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Limit, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A duration that must end: like [`Limit`], without "never".
mod finite {
    use super::*;

    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        Limit::After(*duration).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        match Limit::deserialize(deserializer)? {
            Limit::After(duration) => Ok(duration),
            Limit::Never => Err(de::Error::custom("this time limit cannot be \"never\"")),
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
    /// The drop folder.
    pub plugin_dir: PathBuf,
    /// Threads that serve, per child; 0 for one per core.
    pub workers: usize,
    /// From the start of a child to its READY.
    #[serde(with = "finite")]
    pub start_timeout: Duration,
    /// Retiring generations at once; the next switch waits.
    pub max_draining: usize,
    pub drain: Drain,
    pub shutdown: Shutdown,
    pub crash: Crash,
    pub store: Store,
    pub admin: Admin,
    pub log: Log,
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
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Store {
    /// Snapshots kept beside those in use.
    pub keep: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// Address of the admin page; "off" for the Unix socket alone.
    pub listen: String,
    /// Host names besides the address itself that a browser may use to reach it.
    pub hosts: Vec<String>,
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

/// A group of addresses with the same routes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    #[serde(default = "default_name")]
    pub name: String,
    /// `IP:PORT` each; port 0 lets the kernel choose.
    pub listen: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Plugin {
    /// Where its paths begin; else the plugin's own word, else `/`.
    pub mount: Option<String>,
    /// Threads of the plugin's own runtime; 0 for its own choice.
    pub workers: u32,
    /// Handed to the plugin as it is.
    pub config: toml::Table,
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
            plugin_dir: "plugins".into(),
            workers: 0,
            start_timeout: seconds(30),
            max_draining: 8,
            drain: Drain::default(),
            shutdown: Shutdown::default(),
            crash: Crash::default(),
            store: Store::default(),
            admin: Admin::default(),
            log: Log::default(),
            server: vec![Server { name: default_name(), listen: vec!["127.0.0.1:8080".into()] }],
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
            max: Limit::After(seconds(600)),
            orphan: seconds(5),
        }
    }
}

impl Default for Shutdown {
    fn default() -> Shutdown {
        Shutdown { delay: Duration::ZERO, timeout: Limit::After(seconds(30)) }
    }
}

impl Default for Crash {
    fn default() -> Crash {
        Crash { backoff: Duration::from_millis(200), backoff_max: seconds(10), window: seconds(60) }
    }
}

impl Default for Store {
    fn default() -> Store {
        Store { keep: 4 }
    }
}

impl Default for Admin {
    fn default() -> Admin {
        Admin { listen: "127.0.0.1:9700".into(), hosts: Vec::new() }
    }
}

impl Default for Log {
    fn default() -> Log {
        Log { format: LogFormat::Auto, level: "info".into() }
    }
}

impl Config {
    /// Reads `file` (if any), lays `settings` (`KEY=VALUE`, dotted keys, TOML values or bare strings) over it, validates.
    pub fn load(file: Option<&Path>, settings: &[String]) -> Result<Config, ConfigError> {
        let mut table = match file {
            None => toml::Table::new(),
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
                let origin = path.display().to_string();
                // Once by itself, from the text: only then do errors name their line.
                toml::from_str::<Config>(&text).map_err(|error| parse_error(&origin, &error))?;
                text.parse::<toml::Table>().map_err(|error| parse_error(&origin, &error))?
            }
        };
        for setting in settings {
            lay_over(&mut table, setting)?;
        }
        let config: Config = table.try_into().map_err(|error: toml::de::Error| parse_error("the settings", &error))?;
        config.validate()?;
        Ok(config)
    }

    /// Rules between keys.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let invalid = |text: String| Err(ConfigError::Invalid(text));
        if !is_name(&self.name) {
            return invalid(format!("name `{}` may hold letters, digits, `.`, `_` and `-` only", self.name));
        }
        if self.max_draining == 0 {
            return invalid("max_draining must be at least 1: every switch leaves one generation draining".into());
        }
        if self.server.is_empty() {
            return invalid("at least one [[server]] is needed".into());
        }
        let mut names = std::collections::BTreeSet::new();
        let mut addresses = std::collections::BTreeSet::new();
        for server in &self.server {
            if !names.insert(&server.name) {
                return invalid(format!("two [[server]] are named `{}`; give each a `name`", server.name));
            }
            if server.listen.is_empty() {
                return invalid(format!("[[server]] `{}` has no `listen` address", server.name));
            }
            for text in &server.listen {
                let addr = parse_listen(text)?;
                if addr.port() != 0 && !addresses.insert(addr) {
                    return invalid(format!("{addr} is listed twice under `listen`"));
                }
            }
        }
        if self.admin.listen != "off" {
            parse_listen(&self.admin.listen)?;
        }
        for (name, plugin) in &self.plugins {
            if let Some(mount) = &plugin.mount {
                check_mount(mount).map_err(|why| ConfigError::Invalid(format!("[plugins.{name}] mount: {why}")))?;
            }
        }
        Ok(())
    }

    /// The section of the plugin `name`, where `-` and `_` are alike.
    pub fn plugin(&self, name: &str) -> Option<&Plugin> {
        self.plugins.iter().find(|(key, _)| same_plugin(key, name)).map(|(_, plugin)| plugin)
    }
}

/// Whether two plugin names mean the same plugin: `-` and `_` are alike.
pub fn same_plugin(left: &str, right: &str) -> bool {
    let fold = |byte: u8| if byte == b'-' { b'_' } else { byte };
    left.len() == right.len() && left.bytes().zip(right.bytes()).all(|(l, r)| fold(l) == fold(r))
}

/// A mount begins with `/` and does not end with one, except `/` itself.
pub fn check_mount(mount: &str) -> Result<(), String> {
    if !mount.starts_with('/') {
        return Err(format!("`{mount}` must begin with `/`"));
    }
    if mount.len() > 1 && mount.ends_with('/') {
        return Err(format!("`{mount}` must not end with `/`; write `{}`", mount.trim_end_matches('/')));
    }
    if mount.bytes().any(|byte| byte <= b' ' || matches!(byte, b'?' | b'#' | 0x7f)) {
        return Err(format!("`{mount}` holds a character that no path has"));
    }
    Ok(())
}

/// `IP:PORT`, or `:PORT` and `PORT` for all addresses of that port on loopback.
pub fn parse_listen(text: &str) -> Result<std::net::SocketAddr, ConfigError> {
    text.parse().map_err(|_| {
        ConfigError::Invalid(format!("`{text}` is no address; write IP:PORT, such as 127.0.0.1:8080 or [::1]:8080"))
    })
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with('.')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

fn parse_error(origin: &str, error: &toml::de::Error) -> ConfigError {
    ConfigError::Parse { origin: origin.into(), text: error.to_string().trim_end().into() }
}

fn lay_over(table: &mut toml::Table, setting: &str) -> Result<(), ConfigError> {
    let bad = |why: &str| ConfigError::Parse { origin: format!("--set {setting}"), text: why.into() };
    let (key, value) = setting.split_once('=').ok_or_else(|| bad("write KEY=VALUE, such as drain.timeout=30s"))?;
    let value = format!("v = {value}")
        .parse::<toml::Table>()
        .ok()
        .and_then(|mut parsed| parsed.remove("v"))
        .unwrap_or_else(|| toml::Value::String(value.into()));
    let mut keys: Vec<&str> = key.trim().split('.').collect();
    let last = keys.pop().filter(|last| !last.is_empty()).ok_or_else(|| bad("the key is empty"))?;
    let mut at = table;
    for key in keys {
        at = at
            .entry(key)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()))
            .as_table_mut()
            .ok_or_else(|| bad("a part of the key is no table"))?;
    }
    at.insert(last.into(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("baton.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(Some(&path), &[])
    }

    #[test]
    fn the_reference_file_says_what_the_defaults_are() {
        assert_eq!(toml::from_str::<Config>(REFERENCE).unwrap(), Config::default());
    }

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(parse("").unwrap(), Config::default());
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line() {
        let error = parse("name = \"x\"\n[drain]\ntimout = \"5s\"\n").unwrap_err().to_string();
        assert!(error.contains("timout") && error.contains("line 3"), "{error}");
    }

    #[test]
    fn bad_values_are_refused_and_say_what_to_write() {
        for (text, hint) in [
            ("[drain]\ntimeout = \"soon\"", "never"),
            ("start_timeout = \"never\"", "cannot be"),
            ("[[server]]\nlisten = [\"localhost\"]", "IP:PORT"),
            ("[[server]]\nlisten = [\"127.0.0.1:1\"]\n[[server]]\nlisten = [\"127.0.0.1:2\"]", "name"),
            ("[plugins.a]\nmount = \"/x/\"", "`/x`"),
            ("name = \"a/b\"", "letters"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }

    #[test]
    fn settings_are_laid_over_the_file() {
        let config =
            Config::load(None, &["drain.timeout=7s".into(), "workers=3".into(), "plugins.a.config.x=1".into()])
                .unwrap();
        assert_eq!(config.drain.timeout, Limit::After(seconds(7)));
        assert_eq!(config.workers, 3);
        assert_eq!(config.plugin("a").unwrap().config["x"].as_integer(), Some(1));
        assert!(Config::load(None, &["nonsense".into()]).is_err());
    }

    #[test]
    fn a_plugin_is_found_whichever_dash_is_written() {
        let config = Config::load(None, &["plugins.axum-app.mount=/x".into()]).unwrap();
        assert_eq!(config.plugin("axum_app").unwrap().mount.as_deref(), Some("/x"));
        assert!(config.plugin("axum").is_none());
    }

    #[test]
    fn the_effective_configuration_crosses_as_json() {
        let config =
            Config::load(None, &["plugins.a.config.when=1979-05-27".into(), "drain.max=never".into()]).unwrap();
        let json = serde_json::to_string(&config).unwrap();
        let back: Config = serde_json::from_str(&json).unwrap();
        assert_eq!(back.drain, config.drain);
    }
}
