//! What a child finds in its environment: this process's, less what speaks to or of this process alone, and, if it runs as
//! another user, less what speaks of ours. docs/CONFIGURATION.md lists it.

use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::identity::Identity;

/// systemd's, and its like: with them a child would adopt descriptors, or speak, in the master's name.
const MASTERS: [&str; 10] = [
    "FDSTORE",
    "LISTEN_FDNAMES",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "MAINPID",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "SYSTEMD_EXEC_PID",
];
/// Between Baton's own processes.
const OWN: &[u8] = b"BATON_";
/// Of the user that the master runs as: places and keys that another one shall not reach for.
const USERS: [&str; 18] = [
    "CREDENTIALS_DIRECTORY",
    "DBUS_SESSION_BUS_ADDRESS",
    "GNUPGHOME",
    "KRB5CCNAME",
    "MAIL",
    "RUNTIME_DIRECTORY",
    "SSH_AUTH_SOCK",
    "STATE_DIRECTORY",
    "SUDO_COMMAND",
    "SUDO_GID",
    "SUDO_UID",
    "SUDO_USER",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "XDG_RUNTIME_DIR",
    "XDG_SESSION_ID",
    "XDG_STATE_HOME",
];

/// Out of `all`, for a child that runs as `identity`; `role` is added.
pub fn of_child(
    all: impl Iterator<Item = (OsString, OsString)>,
    identity: &Identity,
    role: (&str, String),
) -> Vec<CString> {
    let others = identity.variables();
    let passes = |key: &OsStr| {
        let dropped = MASTERS.iter().any(|name| key == *name) || key.as_bytes().starts_with(OWN);
        let foreign = USERS.iter().any(|name| key == *name) || others.iter().any(|(name, _)| key == *name);
        !dropped && (others.is_empty() || !foreign)
    };
    let kept = all.filter(|(key, _)| passes(key));
    let added = others.iter().map(|(key, value)| (OsString::from(key), value.as_os_str().to_owned()));
    let role = (OsString::from(role.0), OsString::from(role.1));
    kept.chain(added)
        .chain([role])
        // A variable with a zero byte inside cannot come from an environment.
        .filter_map(|(key, value)| CString::new([key.into_vec(), value.into_vec()].join(&b'=')).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn environment(settings: &[&str]) -> Vec<String> {
        let settings: Vec<String> = settings.iter().map(ToString::to_string).collect();
        let identity = Identity::of(&Config::load(None, &settings).unwrap()).unwrap();
        let names = ["PATH", "LANG", "DATABASE_URL", "HOME", "BATON_RESUME", "BATON_WORKER"];
        let names = names.iter().chain(&MASTERS).chain(&USERS);
        let all = names.map(|name| (OsString::from(name), OsString::from("of the master")));
        let made = of_child(all, &identity, ("BATON_WORKER", "7".into()));
        made.into_iter().map(|entry| entry.into_string().unwrap()).collect()
    }

    fn has(all: &[String], name: &str) -> bool {
        all.iter().any(|entry| entry.split('=').next() == Some(name))
    }

    #[test]
    fn what_is_the_master_s_alone_never_reaches_a_child() {
        let all = environment(&[]);
        assert!(MASTERS.iter().all(|name| !has(&all, name)) && !has(&all, "BATON_RESUME"), "{all:?}");
        assert!(
            ["PATH", "LANG", "DATABASE_URL", "HOME", "XDG_RUNTIME_DIR"].iter().all(|name| has(&all, name)),
            "{all:?}"
        );
        assert_eq!(all.iter().filter(|entry| entry.starts_with("BATON_")).collect::<Vec<_>>(), ["BATON_WORKER=7"]);
    }

    #[test]
    fn another_user_finds_itself_and_nothing_of_ours() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let all = environment(&["user=\"65533\"", "group=\"65532\""]);
        assert!(USERS.iter().all(|name| !has(&all, name)), "{all:?}");
        assert!(["PATH", "LANG", "DATABASE_URL"].iter().all(|name| has(&all, name)), "{all:?}");
        for own in ["HOME=/", "USER=65533", "LOGNAME=65533", "SHELL=/bin/sh"] {
            assert_eq!(all.iter().filter(|entry| *entry == own).count(), 1, "{own}: {all:?}");
        }
        assert_eq!(all.iter().filter(|entry| entry.starts_with("HOME=")).count(), 1);
    }
}
