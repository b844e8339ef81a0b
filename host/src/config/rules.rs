//! The rules that a value's type does not hold: what a name, an address or a mount may be, and what must not be said twice.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::address::{self, parse_listen};
use super::{Certificate, Config, ConfigError, Probe, Problem, Size, same_plugin};

impl Config {
    /// Holds every rule, and names all that are broken.
    pub fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::unless_empty(None, self.problems())
    }

    pub(super) fn problems(&self) -> Vec<Problem> {
        let mut found = Vec::new();
        let mut problem = |key: &str, why: String| found.push(Problem::at_key(key, why));
        if !is_name(&self.name) {
            problem("name", format!("`{}` may hold letters, digits, `.`, `_` and `-` only", self.name));
        }
        if self.group.is_some() && self.user.is_none() {
            problem("group", "is that of `user`, and there is none".into());
        }
        for (key, name) in [("user", &self.user), ("group", &self.group)] {
            if name.as_ref().is_some_and(|name| name.is_empty() || name.contains(['\0', ':', '/'])) {
                problem(key, "is no name of one, nor a number".into());
            }
        }
        for (index, signer) in self.store.signers.iter().enumerate() {
            if minisign_verify::PublicKey::from_base64(signer).is_err() {
                let key = format!("store.signers[{index}]");
                problem(
                    &key,
                    format!(
                        "`{signer}` is no public key of minisign; write the line of minisign.pub that begins with RW"
                    ),
                );
            }
        }
        for (key, why) in super::bounds::problems(self) {
            problem(&key, why);
        }
        // hyper keeps a head in one buffer, which begins at this size.
        if self.limits.head_size < Size(8 << 10) || self.limits.head_size > Size(1 << 20) {
            problem("limits.head_size", "must lie between 8 KiB and 1 MiB".into());
        }
        if !(1..=10_000).contains(&self.limits.head_fields) {
            problem("limits.head_fields", "must lie between 1 and 10000".into());
        }
        if self.drain.linger > Duration::from_secs(60) {
            problem("drain.linger", "must be at most 1min: so long may every close take".into());
        }
        if self.probation.max_failure_ratio.is_some_and(|ratio| !(0.0..1.0).contains(&ratio)) {
            problem(
                "probation.max_failure_ratio",
                "must lie between 0 and 1: 0.05 allows 5 of 100 answers to be 5xx".into(),
            );
        }
        if !(1..=10_000).contains(&self.limits.http2_streams) {
            problem("limits.http2_streams", "must lie between 1 and 10000".into());
        }
        if self.limits.http2_ping.duration().is_some_and(|ping| ping < Duration::from_millis(100)) {
            problem("limits.http2_ping", "must be at least 100ms, or \"never\"".into());
        }
        for (key, why) in self.limits.problems() {
            problem(&format!("limits.{key}"), why);
        }
        // RFC 8446 4.6.1: no ticket lives longer than seven days, and ours may live for two turns.
        if !(1..=7 * 24 * 3600 / 2).contains(&self.tls.ticket_rotation.as_secs()) {
            problem("tls.ticket_rotation", "must lie between 1s and 3days 12h".into());
        }
        for (key, why) in self.watch.problems() {
            problem(&format!("watch.{key}"), why);
        }
        if self.server.is_empty() {
            problem("server", "at least one [[server]] is needed".into());
        }
        let mut names = BTreeSet::new();
        let mut taken = BTreeSet::new();
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for (index, server) in self.server.iter().enumerate() {
            let key = format!("server[{index}]");
            if !names.insert(&server.name) {
                problem(&key, format!("two [[server]] are named `{}`; give each a `name`", server.name));
            }
            let key = format!("{key}.listen");
            if server.listen.is_empty() {
                problem(&key, format!("[[server]] `{}` has no address", server.name));
            }
            let unix = |text: &String| matches!(text.parse(), Ok(Listen::Unix(_)));
            if (server.socket_owner.is_some() || server.socket_group.is_some()) && !server.listen.iter().any(unix) {
                problem(&key, "socket_owner and socket_group are for a `unix:` address, and there is none".into());
            }
            for text in &server.listen {
                match text.parse() {
                    Err(why) => problem(&key, why),
                    // Of ports that the kernel chooses there may be many.
                    Ok(Listen::Address(address)) if address.port() == 0 => {}
                    Ok(listen) if !taken.insert(listen.clone()) => problem(&key, format!("{text} is listed twice")),
                    Ok(Listen::Address(address)) => {
                        if let Some(other) = addresses.iter().find(|other| address::collide(**other, address)) {
                            problem(&key, address::collision(*other, address));
                        }
                        addresses.push(address);
                    }
                    Ok(_) => {}
                }
            }
        }
        for (index, server) in self.server.iter().enumerate() {
            for (number, Certificate { cert, key }) in server.tls.iter().enumerate() {
                for (name, path) in [("cert", cert), ("key", key)] {
                    if path.as_os_str().is_empty() {
                        problem(&format!("server[{index}].tls[{number}].{name}"), "names no file".into());
                    }
                }
            }
            let mut taken = BTreeSet::new();
            for (number, route) in server.route.iter().enumerate() {
                let key = format!("server[{index}].route[{number}]");
                if let Some(Err(why)) = route.host.as_deref().map(check_host) {
                    problem(&format!("{key}.host"), why);
                }
                if let Err(why) = check_mount(&route.prefix) {
                    problem(&format!("{key}.prefix"), why);
                }
                if !taken.insert((route.host.as_deref().map(str::to_ascii_lowercase), &route.prefix)) {
                    problem(&key, format!("there are two routes for {route}"));
                }
            }
            for (number, probe) in server.probe.iter().enumerate() {
                for (key, why) in wrong_in(probe) {
                    problem(&format!("server[{index}].probe[{number}].{key}"), why);
                }
            }
            if let Some(health) = &server.health
                && let Err(why) = check_mount(health)
            {
                problem(&format!("server[{index}].health"), why);
            }
        }
        for (key, text) in [("admin.listen", &self.admin.listen), ("admin.probe_listen", &self.admin.probe_listen)] {
            match parse_listen(text) {
                _ if text == "off" => {}
                Err(why) => problem(key, format!("{why}, or \"off\"")),
                Ok(own) => {
                    if let Some(other) = addresses.iter().find(|other| address::collide(**other, own)) {
                        problem(
                            key,
                            format!("{own} collides with {other}, which is listened on; set another, or \"off\""),
                        );
                    }
                    addresses.push(own);
                }
            }
        }
        if self.admin.public_metrics && self.admin.probe_listen == "off" {
            problem("admin.public_metrics", "is for admin.probe_listen, which is \"off\": set an address there".into());
        }
        for (name, plugin) in &self.plugins {
            let key = format!("plugins.{name}");
            if let Some(twin) = self.plugins.keys().find(|key| *key < name && same_plugin(key, name)) {
                problem(&key, format!("this is the same plugin as `{twin}`: `-` and `_` are alike"));
            }
            if plugin.file.is_some() && !is_name(name) {
                problem(&key, format!("`{name}` may hold letters, digits, `.`, `_` and `-` only"));
            }
            if let Some(mount) = &plugin.mount
                && let Err(why) = check_mount(mount)
            {
                problem(&format!("{key}.mount"), why);
            }
        }
        found
    }
}

/// A mount begins with `/` and does not end with one, except `/` itself.
pub fn check_mount(mount: &str) -> Result<(), String> {
    if !mount.starts_with('/') {
        return Err(format!("`{mount}` must begin with `/`"));
    }
    if mount.len() > 1 && mount.ends_with('/') {
        return Err(format!("`{mount}` must not end with `/`; write `/{}`", mount.trim_matches('/')));
    }
    if mount.bytes().any(|byte| byte <= b' ' || matches!(byte, b'?' | b'#' | 0x7f)) {
        return Err(format!("`{mount}` holds a character that no path has"));
    }
    Ok(())
}

/// What of a probe cannot be sent, or never come back, by its key.
fn wrong_in(probe: &Probe) -> Vec<(&'static str, String)> {
    let mut wrong = Vec::new();
    if probe.method == "CONNECT" || http::Method::from_bytes(probe.method.as_bytes()).is_err() {
        wrong.push(("method", format!("`{}` is no method; write GET, HEAD, POST ...", probe.method)));
    }
    if !probe.path.starts_with('/') || probe.path.parse::<http::uri::PathAndQuery>().is_err() {
        wrong.push(("path", format!("`{}` is no path; write /healthz, or /search?q=x", probe.path)));
    }
    let value = |text: &str| http::HeaderValue::from_str(text).is_ok();
    if !value(&probe.host) {
        wrong.push(("host", format!("`{}` cannot stand in a header", probe.host)));
    }
    for (name, text) in &probe.headers {
        if http::HeaderName::from_bytes(name.as_bytes()).is_err() || !value(text) {
            wrong.push(("headers", format!("`{name}: {text}` is no header")));
        } else if name.eq_ignore_ascii_case("host") {
            wrong.push(("headers", "write `host = \"...\"` beside `headers`".into()));
        }
    }
    if !(200..=599).contains(&probe.status) {
        wrong.push(("status", format!("{} is no status of an answer: 200 to 599", probe.status)));
    }
    wrong
}

/// A name or an address, or `*.` and a name for all below it.
fn check_host(host: &str) -> Result<(), String> {
    let address = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    if address.is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok()) {
        return Ok(());
    }
    if host.contains(':') {
        return Err(format!("`{host}` must be a host alone: a route is for all ports of its server"));
    }
    let name = host.strip_prefix("*.").unwrap_or(host);
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if name.split('.').all(|label| !label.is_empty() && label.bytes().all(allowed)) {
        return Ok(());
    }
    Err(format!(
        "`{host}` is no host; write `a.example`, or `*.example` for all below it (letters beyond ASCII as xn--)"
    ))
}

/// What a server listens on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Listen {
    Address(SocketAddr),
    /// Absolute.
    Unix(PathBuf),
    /// The sockets that systemd passed under this name.
    Systemd(String),
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Listen, String> {
        match text.split_once(':') {
            Some(("systemd", "")) => Err("`systemd:` lacks the socket's name (FileDescriptorName= of its unit)".into()),
            Some(("systemd", name)) => Ok(Listen::Systemd(name.into())),
            Some(("unix", path)) => socket_path(path).map(Listen::Unix),
            _ => parse_listen(text).map(Listen::Address).map_err(|why| format!("{why}, or unix:PATH, or systemd:NAME")),
        }
    }
}

/// What a Unix address holds (unix(7)), less the end and what is appended while the socket is made.
const SOCKET_PATH: usize = 99;

fn socket_path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() || text.ends_with('/') || text.contains('\0') {
        return Err(format!("`unix:{text}` names no file; write unix:/run/x.sock"));
    }
    let path = std::path::absolute(text).map_err(|error| format!("`unix:{text}` cannot be resolved: {error}"))?;
    if path.as_os_str().as_bytes().len() > SOCKET_PATH {
        let path = path.display();
        return Err(format!("the path {path} is too long for a socket: {SOCKET_PATH} bytes are the most"));
    }
    Ok(path)
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with('.')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}
