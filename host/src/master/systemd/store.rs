//! What systemd keeps for the next master of the service: the listening sockets, by name, so that they outlive the death of
//! this one and clients wait in their queues instead of being refused.
//!
//! A socket goes there when the set that names it serves, and is taken back when it is closed here: bound anew it can only be
//! once both have let go. At a shutdown all are, before the first child stops accepting: else clients would go on connecting to
//! a service that ends.

use std::collections::BTreeSet;
use std::io::{self, PipeReader};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use super::Line;
use crate::sys::readiness;

/// How long a shutdown waits for systemd to let go.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub struct Store {
    /// How many descriptors there is room for (`FileDescriptorStoreMax=`).
    room: usize,
    kept: BTreeSet<String>,
    /// Room was wanting, which was said.
    full: bool,
    /// All was taken back for good.
    released: bool,
}

/// What is to be said to make the store as it should be.
#[derive(Debug, Default, PartialEq, Eq)]
struct Changes {
    remove: Vec<String>,
    add: Vec<String>,
    /// There is no room for so many.
    left_out: usize,
}

impl Store {
    /// With what came from there under `names`.
    pub fn of_environment(names: BTreeSet<String>) -> Store {
        let room = std::env::var("FDSTORE").ok().and_then(|room| room.parse().ok()).unwrap_or(0);
        Store { room, kept: names, ..Store::default() }
    }

    pub fn kept(&self) -> &BTreeSet<String> {
        &self.kept
    }

    /// Leaves `sockets` there, and takes back what is not `open` any more.
    pub fn keep(&mut self, line: &mut Line, open: &BTreeSet<String>, sockets: Vec<(String, BorrowedFd)>) {
        let wanted: BTreeSet<&str> = sockets.iter().map(|(name, _)| name.as_str()).collect();
        let Changes { remove, add, left_out } = self.changes(open, &wanted);
        for name in remove {
            self.remove(line, &name);
        }
        for name in add {
            let Some((_, socket)) = sockets.iter().find(|(wanted, _)| *wanted == name) else { continue };
            match socket.try_clone_to_owned() {
                Ok(copy) => {
                    // A listening socket that somebody shut down must stay: this master mends it.
                    line.say(format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}"), vec![copy]);
                    self.kept.insert(name);
                }
                Err(error) => line.failed(&error),
            }
        }
        if left_out > 0 && !self.full {
            tracing::warn!(
                "systemd has no room for {left_out} of the listening sockets: raise FileDescriptorStoreMax="
            );
        }
        self.full = left_out > 0;
    }

    fn changes(&self, open: &BTreeSet<String>, wanted: &BTreeSet<&str>) -> Changes {
        if self.released {
            return Changes::default();
        }
        let remove: Vec<String> = self.kept.difference(open).cloned().collect();
        let mut add: Vec<String> =
            wanted.iter().filter(|name| !self.kept.contains(**name)).map(|name| name.to_string()).collect();
        let room = self.room.saturating_sub(self.kept.len() - remove.len());
        let left_out = if self.room == 0 { 0 } else { add.len().saturating_sub(room) };
        add.truncate(room);
        Changes { remove, add, left_out }
    }

    fn remove(&mut self, line: &mut Line, name: &str) {
        line.say(format!("FDSTOREREMOVE=1\nFDNAME={name}"), Vec::new());
        self.kept.remove(name);
    }

    pub fn is_released(&self) -> bool {
        self.released
    }

    /// Takes all back, for good; what to wait for, if there is anything.
    pub fn release(&mut self, line: &mut Line) -> Option<Releasing> {
        if self.kept.is_empty() {
            return None;
        }
        self.released = true;
        for name in self.kept.clone() {
            self.remove(line, &name);
        }
        let waiting = io::pipe().and_then(|(reader, writer)| Ok((Releasing::over(reader)?, writer)));
        match waiting {
            Ok((releasing, writer)) => {
                // systemd closes the descriptor once it has acted on all that came before (and a version that does not know
                // the word closes it as one that it was not asked to store).
                line.say("BARRIER=1".into(), vec![writer.into()]);
                Some(releasing)
            }
            Err(error) => {
                line.failed(&error);
                None
            }
        }
    }
}

/// systemd lets go of the sockets.
#[derive(Debug)]
pub struct Releasing {
    pipe: AsyncFd<OwnedFd>,
    until: Instant,
}

impl Releasing {
    fn over(pipe: PipeReader) -> io::Result<Releasing> {
        let pipe = readiness::register(OwnedFd::from(pipe), Interest::READABLE)?;
        Ok(Releasing { pipe, until: Instant::now() + PATIENCE })
    }

    /// Until it has, or for as long as anybody may wait for that. May be dropped and called again.
    pub async fn done(&self) {
        match tokio::time::timeout_at(self.until, self.pipe.readable()).await {
            Ok(Ok(mut ready)) => ready.retain_ready(),
            Ok(Err(error)) => tracing::warn!("failed to wait for systemd to let go of the listening sockets: {error}"),
            Err(_) => tracing::warn!("systemd has not let go of the listening sockets within {PATIENCE:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| name.to_string()).collect()
    }

    fn changes(store: &Store, open: &[&str], wanted: &[&str]) -> (Vec<String>, Vec<String>, usize) {
        let Changes { remove, add, left_out } = store.changes(&names(open), &wanted.iter().copied().collect());
        (remove, add, left_out)
    }

    fn with(room: usize, kept: &[&str]) -> Store {
        Store { room, kept: names(kept), ..Store::default() }
    }

    #[test]
    fn what_serves_is_kept_and_what_is_closed_is_taken_back() {
        let store = with(8, &["a", "b"]);
        assert_eq!(changes(&store, &["a", "b"], &["a"]), (vec![], vec![], 0), "b may be claimed yet");
        assert_eq!(changes(&store, &["a", "c"], &["a", "c"]), (vec!["b".into()], vec!["c".into()], 0));
        // Opened, and refused: never kept.
        assert_eq!(changes(&store, &["a", "b", "c"], &["a", "b"]), (vec![], vec![], 0));
    }

    #[test]
    fn no_more_is_kept_than_there_is_room_for() {
        let store = with(2, &["a"]);
        assert_eq!(changes(&store, &["a", "b", "c"], &["a", "b", "c"]), (vec![], vec!["b".into()], 1));
        assert_eq!(changes(&store, &["b", "c"], &["b", "c"]), (vec!["a".into()], vec!["b".into(), "c".into()], 0));
        // None at all is what most units have.
        assert_eq!(changes(&with(0, &[]), &["a"], &["a"]), (vec![], vec![], 0));
    }

    #[test]
    fn after_the_release_nothing_is_kept() {
        let store = Store { released: true, ..with(8, &["a"]) };
        assert_eq!(changes(&store, &[], &["b"]), (vec![], vec![], 0));
    }
}
