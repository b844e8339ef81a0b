//! What the loop looks after by itself: the listening sockets, adopted processes, and the files by which the server is found.

use std::io;
use std::time::Duration;

use tokio::sync::mpsc;

use super::{Finished, Master, REAPED_AT_ONCE};
use crate::control::ToChild;
use crate::master::admin::Admin;
use crate::master::instance_files::{InstanceFiles, Restored};
use crate::master::listeners::{How, PathCheck, Rebind, Rebound, Relistened};
use crate::master::socket_file::Grant;
use crate::master::state::SetId;
use crate::sys::reaping;

/// How often the runtime directory is looked at, besides at every operation.
pub(super) const RESTORE: Duration = Duration::from_secs(10);

/// How long the end waits for it.
const LAST_RESTORE: Duration = Duration::from_secs(1);

/// The state of looking after the runtime directory.
#[derive(Debug, Default)]
pub(super) struct Restoring {
    pub due: bool,
    running: bool,
    /// Why it failed last: said once.
    failed: Option<String>,
}

impl Master {
    /// What no event tells of.
    pub(super) fn upkeep(&mut self) {
        self.relisten();
        self.rebind_paths(PathCheck::Shut);
        // `baton dev` runs builds on other threads, which wait for them.
        if !self.dev
            && let Err(error) = reaping::reap_adopted(REAPED_AT_ONCE)
        {
            tracing::error!("failed to reap adopted processes: {error}");
        }
    }

    /// Listens again on TCP addresses where clients are not served.
    pub(super) fn relisten(&mut self) {
        let relistened = self.listeners.relisten();
        self.lend_again(relistened);
    }

    /// Binds the paths of Unix sockets that clients do not reach, off this thread. Not beside an operation, which does that itself.
    pub(super) fn rebind_paths(&mut self, check: PathCheck) {
        if self.rebinding || self.preparing > 0 || self.state.is_shutting_down() {
            return;
        }
        let rebinds = self.listeners.rebinds(check);
        if rebinds.is_empty() {
            return;
        }
        self.rebinding = true;
        let sender = self.finished.clone();
        tokio::task::spawn_blocking(move || {
            let rebound = rebinds.into_iter().filter_map(Rebind::run).collect();
            // The loop is gone only when the master ends: then the files go with what was bound.
            let _ = sender.blocking_send(Finished::Rebound(rebound));
        });
    }

    pub(super) fn take_rebound(&mut self, rebound: Vec<Rebound>) {
        self.rebinding = false;
        let relistened = self.listeners.adopt(rebound);
        self.lend_again(relistened);
    }

    /// Gives sockets that had to be made anew to the children that have those before.
    fn lend_again(&self, relistened: Vec<Relistened>) {
        for Relistened { key, id, address, how, .. } in relistened {
            if how == How::Listen {
                continue;
            }
            for generation in self.state.accepting_generations() {
                let set = self.state.set_of(generation).and_then(|set| self.sets.get(set));
                if set.is_none_or(|set| set.listeners.iter().all(|claim| claim.key != key)) {
                    continue;
                }
                match self.listeners.copy(&key) {
                    Some(Ok(socket)) => self.children.send(generation, ToChild::Relisten { id }, vec![socket]),
                    Some(Err(error)) => {
                        tracing::error!(generation = generation.0, %address, "failed to lend it: {error}")
                    }
                    None => {}
                }
            }
        }
    }

    /// Sets the TCP options of `set`, which is served now, and opens its Unix sockets to those who may connect: this off the thread,
    /// in the order of commits.
    pub(super) fn grant(&mut self, set: Option<SetId>) {
        let Some(served) = set.and_then(|id| self.sets.get(id)) else { return };
        let grants = self.listeners.grants(&served.listeners, &served.content.config.limits.tcp_options());
        if grants.is_empty() {
            return;
        }
        let before = self.granting.take();
        self.granting = Some(tokio::spawn(async move {
            if let Some(before) = before {
                // One that panicked has said so.
                let _ = before.await;
            }
            let _ = tokio::task::spawn_blocking(move || grants.iter().for_each(Grant::apply)).await;
        }));
    }

    /// Recreates what was removed from the runtime directory, off this thread, if that is due.
    pub(super) fn restore_files(&mut self, files: &InstanceFiles, admin: &Admin) {
        if self.restoring.running || self.state.is_shutting_down() || !std::mem::take(&mut self.restoring.due) {
            return;
        }
        let expected = match files.expected(admin.socket_inode()) {
            Ok(expected) => expected,
            Err(error) => return self.not_restored(&error),
        };
        self.restoring.running = true;
        let sender = self.finished.clone();
        tokio::task::spawn_blocking(move || {
            // The loop is gone only when the master ends.
            let _ = sender.blocking_send(Finished::Restored(expected.restore()));
        });
    }

    pub(super) fn take_restored(
        &mut self,
        restored: io::Result<Restored>,
        files: &mut InstanceFiles,
        admin: &mut Admin,
    ) {
        self.restoring.running = false;
        let restored = match restored {
            Ok(restored) => restored,
            Err(error) => return self.not_restored(&error),
        };
        self.restoring.failed = None;
        let names = restored.names();
        if !names.is_empty() {
            let dir = self.dirs.runtime.display();
            tracing::warn!(
                "{} had been removed from {dir} (by a cleaner of temporary files?); recreated",
                names.join(", ")
            );
        }
        if let Some((unix, socket)) = files.adopt(restored)
            && let Err(error) = admin.move_to(unix, socket)
        {
            tracing::error!("{error}");
        }
    }

    /// Waits until a restore that is under way has ended: what it creates would stay behind at the end.
    pub(super) async fn finish_restoring(
        &mut self,
        finished: &mut mpsc::Receiver<Finished>,
        files: &mut InstanceFiles,
        admin: &mut Admin,
    ) {
        while self.restoring.running || self.rebinding {
            match tokio::time::timeout(LAST_RESTORE, finished.recv()).await {
                Ok(Some(Finished::Restored(restored))) => self.take_restored(restored, files, admin),
                Ok(Some(Finished::Rebound(rebound))) => self.take_rebound(rebound),
                Ok(Some(_)) => {}
                // A file system that hangs is not waited for.
                Ok(None) | Err(_) => return,
            }
        }
    }

    fn not_restored(&mut self, error: &io::Error) {
        let text = error.to_string();
        if self.restoring.failed.as_ref() != Some(&text) {
            let dir = self.dirs.runtime.display();
            tracing::error!(
                "failed to recreate what was removed from {dir}: {text}; the command line may not find this server"
            );
            self.restoring.failed = Some(text);
        }
    }
}
