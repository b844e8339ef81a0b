//! Where an instance keeps its files, and which instances there are. Resolves names; creates nothing.
//!
//! Runtime directory: `lock`, `baton.pid`, `admin.sock`. State directory: `state.lock`, `store/`, `data/NAME/`, `admin-token`,
//! `metrics-token`.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::sys::files;

/// Name of the admin socket in the runtime directory.
pub const SOCKET: &str = "admin.sock";
/// Name of the file in the runtime directory that is locked for the life of an instance.
pub const LOCK: &str = "lock";
/// The same in the state directory, which may be the same directory.
const STATE_LOCK: &str = "state.lock";
/// Name of the default pid file.
pub const PID_FILE: &str = "baton.pid";
/// Name of the admin token's file in the state directory.
pub const TOKEN: &str = "admin-token";
/// Name of the file with the token for `/metrics` alone.
pub const METRICS_TOKEN: &str = "metrics-token";

/// Holds the runtime directories of the system's instances.
const SYSTEM: &str = "/run/baton";

/// The directories of one instance, absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dirs {
    pub runtime: PathBuf,
    pub state: PathBuf,
}

impl Dirs {
    /// What `config` says, else the environment's conventions.
    pub fn of(config: &Config) -> std::io::Result<Dirs> {
        let env = Environment::read();
        Ok(Dirs {
            runtime: std::path::absolute(config.runtime_dir.clone().unwrap_or_else(|| env.runtime_dir(&config.name)))?,
            state: std::path::absolute(config.state_dir.clone().unwrap_or_else(|| env.state_dir(&config.name)))?,
        })
    }

    pub fn socket(&self) -> PathBuf {
        self.runtime.join(SOCKET)
    }

    /// Locked for the life of an instance, as the one in the runtime directory.
    pub fn state_lock(&self) -> PathBuf {
        self.state.join(STATE_LOCK)
    }

    /// Holds a directory per plugin.
    pub fn data(&self) -> PathBuf {
        self.state.join("data")
    }

    pub fn token(&self) -> PathBuf {
        self.state.join(TOKEN)
    }

    pub fn metrics_token(&self) -> PathBuf {
        self.state.join(METRICS_TOKEN)
    }
}

/// An instance by its name and admin socket; it may be dead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    pub name: String,
    pub socket: PathBuf,
}

/// The instance `name` of this user, running or not; or else the system's: root's login session has directories of its own,
/// which a service's has not.
pub fn instance(name: &str) -> Instance {
    let candidates = [Environment::read().runtime_dir(name), Path::new(SYSTEM).join(name)].map(|dir| dir.join(SOCKET));
    Instance { name: name.into(), socket: choose(candidates, |socket| socket.exists()) }
}

/// The first one that is there, or the first.
fn choose([own, system]: [PathBuf; 2], is_there: impl Fn(&Path) -> bool) -> PathBuf {
    if !is_there(&own) && is_there(&system) { system } else { own }
}

/// Where this user's instances are looked for.
pub fn base() -> PathBuf {
    Environment::read().runtime_base()
}

/// Names of the system's instances, if they are not this user's own.
pub fn system_instances() -> Vec<String> {
    if base() == Path::new(SYSTEM) { Vec::new() } else { found_in(Path::new(SYSTEM)).map(|found| found.name).collect() }
}

/// All instances of this user that have left an admin socket, by name. Whether one lives is found out by connecting.
pub fn instances() -> Vec<Instance> {
    let mut found: Vec<Instance> = found_in(&base()).collect();
    found.sort_by(|left, right| left.name.cmp(&right.name));
    found
}

fn found_in(base: &Path) -> impl Iterator<Item = Instance> {
    let entries = std::fs::read_dir(base).into_iter().flatten().flatten();
    let instances = entries.map(|entry| Instance {
        name: entry.file_name().to_string_lossy().into_owned(),
        socket: entry.path().join(SOCKET),
    });
    instances.filter(|instance| instance.socket.exists())
}

/// A master that holds the state directory of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    pub name: String,
    pub pid: i32,
    /// Its admin socket, wherever it lies, if it is there.
    pub socket: PathBuf,
}

/// The masters of this user that run, whether or not their runtime directories are found: the one named `name`, or all.
pub fn running(name: Option<&str>) -> Vec<Running> {
    let base = Environment::read().state_base();
    let names: Vec<String> = match name {
        Some(name) => vec![name.into()],
        None => std::fs::read_dir(&base)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect(),
    };
    let holder = |name: String| {
        let holder = files::lock_holder(&base.join(&name).join(STATE_LOCK))?;
        Some(Running { name, pid: holder.pid, socket: holder.reached_at? })
    };
    names.into_iter().filter_map(holder).collect()
}

/// What the conventions depend on.
struct Environment {
    root: bool,
    uid: u32,
    runtime_directory: Option<OsString>,
    state_directory: Option<OsString>,
    xdg_runtime_dir: Option<OsString>,
    xdg_state_home: Option<OsString>,
    home: Option<OsString>,
}

impl Environment {
    fn read() -> Environment {
        let get = |key| env::var_os(key).filter(|value| !value.is_empty());
        let uid = nix::unistd::geteuid();
        Environment {
            root: uid.is_root(),
            uid: uid.as_raw(),
            runtime_directory: get("RUNTIME_DIRECTORY"),
            state_directory: get("STATE_DIRECTORY"),
            xdg_runtime_dir: get("XDG_RUNTIME_DIR"),
            xdg_state_home: get("XDG_STATE_HOME"),
            home: get("HOME"),
        }
    }

    /// Holds one directory per instance.
    fn runtime_base(&self) -> PathBuf {
        match &self.xdg_runtime_dir {
            Some(dir) => Path::new(dir).join("baton"),
            None if self.root => SYSTEM.into(),
            None => format!("/tmp/baton-{}", self.uid).into(),
        }
    }

    fn runtime_dir(&self, name: &str) -> PathBuf {
        match &self.runtime_directory {
            Some(dir) => dir.into(),
            None => self.runtime_base().join(name),
        }
    }

    /// Holds one state directory per instance.
    fn state_base(&self) -> PathBuf {
        match (&self.xdg_state_home, &self.home) {
            (Some(dir), _) => Path::new(dir).join("baton"),
            (_, _) if self.root => "/var/lib/baton".into(),
            (_, Some(home)) => Path::new(home).join(".local/state/baton"),
            _ => format!("/tmp/baton-{}/state", self.uid).into(),
        }
    }

    fn state_dir(&self, name: &str) -> PathBuf {
        match &self.state_directory {
            Some(dir) => dir.into(),
            None => self.state_base().join(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment() -> Environment {
        Environment {
            root: false,
            uid: 1000,
            runtime_directory: None,
            state_directory: None,
            xdg_runtime_dir: None,
            xdg_state_home: None,
            home: Some("/home/a".into()),
        }
    }

    #[test]
    fn each_convention_wins_over_the_next() {
        let env = environment();
        assert_eq!(env.runtime_dir("x"), Path::new("/tmp/baton-1000/x"));
        assert_eq!(env.state_dir("x"), Path::new("/home/a/.local/state/baton/x"));
        let env = Environment { root: true, ..environment() };
        assert_eq!(env.runtime_dir("x"), Path::new("/run/baton/x"));
        assert_eq!(env.state_dir("x"), Path::new("/var/lib/baton/x"));
        let env = Environment {
            xdg_runtime_dir: Some("/run/user/1000".into()),
            xdg_state_home: Some("/s".into()),
            root: true,
            ..environment()
        };
        assert_eq!(env.runtime_dir("x"), Path::new("/run/user/1000/baton/x"));
        assert_eq!(env.state_dir("x"), Path::new("/s/baton/x"));
        let env = Environment {
            runtime_directory: Some("/run/baton/unit".into()),
            state_directory: Some("/var/lib/baton/unit".into()),
            ..env
        };
        assert_eq!(env.runtime_dir("x"), Path::new("/run/baton/unit"));
        assert_eq!(env.state_dir("x"), Path::new("/var/lib/baton/unit"));
    }

    #[test]
    fn the_systems_instance_is_meant_where_the_user_has_none_of_that_name() {
        let both = || ["/run/user/0/baton/x".into(), "/run/baton/x".into()];
        assert_eq!(choose(both(), |_| false), Path::new("/run/user/0/baton/x"));
        assert_eq!(choose(both(), |_| true), Path::new("/run/user/0/baton/x"));
        assert_eq!(choose(both(), |path| path.starts_with("/run/baton")), Path::new("/run/baton/x"));
    }
}
