//! An address that is in use at the start: whether it is one of this instance's own workers that has it, left by a master that was
//! killed and about to end, or another program.

use std::time::{Duration, Instant, SystemTime};

use crate::report::Failure;
use crate::sys::holders::{self, Holder, Listening};
use crate::sys::socket::Address;

/// Even a worker that has nothing to drain takes a moment to end.
const LEAST_PATIENCE: Duration = Duration::from_secs(1);

/// By what the workers of an instance are known.
#[derive(Clone, Debug)]
pub struct Workers {
    pub name: String,
    /// Those that they may run as.
    pub uids: Vec<u32>,
}

impl Workers {
    /// What the processes of a worker are called (`Child::start`).
    fn include(&self, holder: &Holder) -> bool {
        let generation = holder.command.strip_prefix("baton: worker gen ");
        let name = generation.and_then(|rest| rest.split_once(' ')).map(|(_, name)| name);
        name == Some(&format!("({})", self.name)) && self.uids.contains(&holder.uid)
    }
}

/// When to give up waiting, with that `drain.orphan`.
pub fn deadline(orphan: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(orphan.max(LEAST_PATIENCE)).unwrap_or(now)
}

/// What has become of the address.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A worker had it, and has ended.
    Ended,
    /// No socket listens there any more.
    Free,
    /// It stays in use; what to do.
    Taken { hint: Option<String> },
}

/// Finds out who has `address`; waits for a worker of an earlier master of this instance, up to `until`. Blocks.
pub fn wait(address: &Address, workers: &Workers, until: Instant) -> Outcome {
    let found = match holders::listening(address) {
        Ok(Listening::Nowhere) => return Outcome::Free,
        Ok(Listening::In(holders)) => holders,
        Err(error) => {
            tracing::debug!("failed to find out which process has {address}: {error}");
            return Outcome::Taken { hint: None };
        }
    };
    let Some(Holder { pid, command, .. }) = found.iter().find(|holder| !workers.include(holder)).or(found.first())
    else {
        return Outcome::Taken { hint: None };
    };
    if found.iter().any(|holder| !workers.include(holder)) {
        return Outcome::Taken { hint: Some(format!("process {pid} has it: {}", shown(command))) };
    }
    let left = until.saturating_duration_since(Instant::now());
    let end = humantime::format_rfc3339_seconds(SystemTime::now() + left);
    tracing::warn!(%address, pid, "a worker of the master before this one still has the address; waiting for its end until {end} (drain.orphan)");
    match holders::wait_for_end(*pid, until) {
        Ok(true) => Outcome::Ended,
        Ok(false) => Outcome::Taken {
            hint: Some(format!(
                "process {pid}, a worker of the master before this one, has not ended within drain.orphan; end it with `kill -KILL {pid}`"
            )),
        },
        Err(error) => Outcome::Taken { hint: Some(format!("process {pid} has it, and cannot be waited for: {error}")) },
    }
}

/// With the better hint.
pub fn hinted(failure: Failure, hint: Option<String>) -> Failure {
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// A command line is anybody's: cut, and without what a terminal would act on.
fn shown(command: &str) -> String {
    const LONGEST: usize = 80;
    let text: String =
        command.chars().take(LONGEST).map(|letter| if letter.is_control() { '?' } else { letter }).collect();
    if text.is_empty() { "(no command line)".into() } else { text }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn workers() -> Workers {
        Workers { name: "web".into(), uids: vec![0, 1000] }
    }

    fn holder(command: &str, uid: u32) -> Holder {
        Holder { pid: 7, uid, command: command.into() }
    }

    #[test]
    fn only_workers_of_this_instance_are_waited_for() {
        let own = |command, uid| workers().include(&holder(command, uid));
        assert!(own("baton: worker gen 7 (web)", 1000));
        for other in
            ["baton: worker gen 7 (web2)", "baton: worker gen 7 (other)", "nginx: master process", "baton run", ""]
        {
            assert!(!own(other, 1000), "{other}");
        }
        assert!(!own("baton: worker gen 7 (web)", 1001), "anybody may call a process so");
    }

    #[test]
    fn address_of_another_program_is_reported_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address::Ip(listener.local_addr().unwrap());
        let begun = Instant::now();
        let outcome = wait(&address, &workers(), begun + Duration::from_secs(60));
        let Outcome::Taken { hint: Some(hint) } = outcome else { panic!("{outcome:?}") };
        assert!(hint.contains(&format!("process {} has it", std::process::id())), "{hint}");
        assert!(begun.elapsed() < Duration::from_secs(30));
        drop(listener);
        assert_eq!(wait(&address, &workers(), begun), Outcome::Free);
    }

    #[test]
    fn command_lines_are_cut_and_harmless() {
        assert_eq!(shown("a\x1b[31mb"), "a?[31mb");
        assert_eq!(shown(&"x".repeat(500)).len(), 80);
    }
}
