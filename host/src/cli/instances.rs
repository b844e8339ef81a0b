//! Which instance is meant: the one that was named, or the only one that runs.

use std::os::unix::net::UnixStream;

use super::diagnosis::Diagnosis;
use super::{CliError, Which};
use crate::client::ClientError;
use crate::dirs::{self, Instance, Running};

impl Which {
    /// The instance; it may have ended, if it was named.
    pub fn resolve(&self) -> Result<Instance, CliError> {
        match (&self.socket, &self.name) {
            (Some(socket), _) => Ok(Instance { name: socket.display().to_string(), socket: socket.clone() }),
            (None, Some(name)) => Ok(dirs::instance(name)),
            (None, None) => choose(dirs::instances(), lives),
        }
    }

    /// Adds to an error that no master was found which one runs nevertheless, as its lock on the state directory says.
    pub fn explain(&self, error: CliError) -> CliError {
        if self.socket.is_some()
            || !matches!(error, CliError::NoInstance(_) | CliError::Client(ClientError::NoMaster { .. }))
        {
            return error;
        }
        match dirs::running(self.name.as_deref()).first() {
            None => error,
            Some(running) => CliError::Unreachable { error: Box::new(error), hint: hint(running) },
        }
    }
}

fn hint(Running { name, pid, socket }: &Running) -> String {
    if socket.exists() {
        let socket = socket.display();
        return format!(
            "`{name}` runs as process {pid}, with another runtime directory (XDG_RUNTIME_DIR?); add --socket {socket}"
        );
    }
    format!(
        "`{name}` runs as process {pid}, but its socket {} was removed; the server recreates it within ten seconds, or at once when a signal asks for a reload",
        socket.display()
    )
}

/// Whether somebody takes connections there. Another user's counts: it runs, even if it will not talk to us.
fn lives(instance: &Instance) -> bool {
    match UnixStream::connect(&instance.socket) {
        Ok(_) => true,
        Err(error) => error.kind() == std::io::ErrorKind::PermissionDenied,
    }
}

fn choose(found: Vec<Instance>, lives: impl Fn(&Instance) -> bool) -> Result<Instance, CliError> {
    let (mut running, dead): (Vec<Instance>, Vec<Instance>) = found.into_iter().partition(lives);
    match running.len() {
        0 if dead.is_empty() => Err(CliError::NoInstance(none_in(&dirs::base(), &dirs::system_instances()))),
        0 => {
            let found = dead.iter().map(|Instance { name, socket }| format!("\n  {name}: {}", Diagnosis::of(socket)));
            Err(CliError::NoInstance(format!("of those that have run none answers{}", found.collect::<String>())))
        }
        1 => Ok(running.remove(0)),
        _ => Err(CliError::Several(running.into_iter().map(|instance| instance.name).collect())),
    }
}

/// What to do where this user has no instance.
fn none_in(base: &std::path::Path, system: &[String]) -> String {
    let none = format!("none has a socket in {}", base.display());
    match system {
        [] => format!("{none}; start one with `baton run`, or name it with --name or --socket"),
        names => format!("{none}, but the system has: {}; add --name", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::exit;
    use super::*;

    fn instances(names: &[&str]) -> Vec<Instance> {
        names.iter().map(|name| Instance { name: (*name).into(), socket: format!("/run/{name}").into() }).collect()
    }

    #[test]
    fn the_only_running_one_is_meant() {
        let found = choose(instances(&["a", "b", "c"]), |instance| instance.name == "b").unwrap();
        assert_eq!(found.name, "b");
    }

    #[test]
    fn none_and_several_are_errors_with_their_own_codes() {
        let none = choose(Vec::new(), |_| true).unwrap_err();
        assert_eq!(none.exit_code(), exit::NO_MASTER);
        let dead = choose(instances(&["old"]), |_| false).unwrap_err();
        assert_eq!(dead.exit_code(), exit::NO_MASTER);
        assert!(dead.to_string().contains("old: no server runs there"), "{dead}");
        let base = std::path::Path::new("/run/user/7/baton");
        assert!(none_in(base, &[]).contains("in /run/user/7/baton; start one"));
        assert!(none_in(base, &["api".into()]).contains("the system has: api; add --name"));
        let several = choose(instances(&["a", "b"]), |_| true).unwrap_err();
        assert_eq!(several.exit_code(), exit::USAGE);
        assert!(several.to_string().ends_with("one of: a, b"), "{several}");
    }

    #[test]
    fn a_name_is_taken_at_its_word() {
        let which = Which { name: Some("api".into()), socket: None };
        assert!(which.resolve().unwrap().socket.ends_with("api/admin.sock"));
        let which = Which { name: None, socket: Some("/x/admin.sock".into()) };
        assert_eq!(which.resolve().unwrap().socket, std::path::Path::new("/x/admin.sock"));
    }

    #[test]
    fn a_stale_socket_does_not_live() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("admin.sock");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let instance = Instance { name: "x".into(), socket };
        assert!(lives(&instance));
        drop(listener);
        assert!(!lives(&instance));
    }
}
