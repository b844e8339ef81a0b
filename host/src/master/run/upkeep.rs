//! What the loop looks after by itself: the listening sockets, adopted processes, and the files by which the server is found.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::{Finished, Master, REAPED_AT_ONCE};
use crate::control::ToChild;
use crate::master::admin::{Admin, Tokens};
use crate::master::instance_files::{Expected, InstanceFiles, Restored, RestoredState, StateLoss};
use crate::master::listeners::{How, PathCheck, Rebind, Rebound, Relistened};
use crate::master::socket_file::Grant;
use crate::master::state::SetId;
use crate::report::{Failure, Stage};
use crate::sys::reaping;

/// How often the instance's directories are checked, besides at every operation.
pub(super) const RESTORE: Duration = Duration::from_secs(10);

/// How long the end waits for it.
const LAST_RESTORE: Duration = Duration::from_secs(1);

/// The state of looking after the runtime and the state directory.
#[derive(Debug, Default)]
pub(super) struct Restoring {
    pub due: bool,
    running: bool,
    /// Why it failed last: said once.
    failed: Option<String>,
    /// The same of the state directory.
    state_failed: Option<String>,
    /// Why operations are refused: another server has the state directory.
    pub refusal: Option<Failure>,
    /// The same for those that read files. Held while a restore runs, so that an operation finds what it needs.
    pub gate: Arc<tokio::sync::Mutex<Option<Failure>>>,
}

impl Restoring {
    /// What an operator must know.
    pub fn alert(&self) -> Option<String> {
        let Failure { error, hint, .. } = self.refusal.as_ref()?;
        Some(format!("failed to {error}: operations are refused; {}", hint.as_deref().unwrap_or_default()))
    }
}

/// What a restore brought, of the runtime and of the state directory.
pub(super) struct RestoredFiles {
    runtime: io::Result<Restored>,
    /// With what could not be restored.
    state: Result<(RestoredState, Vec<String>), StateLoss>,
}

/// Blocks.
fn restore_state(
    expected: &Expected,
    tokens: Option<Arc<Tokens>>,
    restore_sets: impl FnOnce(bool) -> io::Result<Vec<String>>,
) -> Result<(RestoredState, Vec<String>), StateLoss> {
    let restored = expected.restore_state()?;
    let mut problems = Vec::new();
    if let Some(Err(error)) = tokens.map(|tokens| tokens.restore()) {
        problems.push(error.to_string());
    }
    match restore_sets(restored.was_removed()) {
        Ok(lost) if lost.is_empty() => {}
        Ok(lost) => problems.push(format!(
            "the store's copies of {} were removed, and the files have changed since: a worker that dies cannot be started \
             again before the next reload",
            lost.join(", ")
        )),
        Err(error) => problems.push(format!("failed to recreate the plugin store: {error}")),
    }
    Ok((restored, problems))
}

fn refusal(loss: &StateLoss) -> Option<Failure> {
    let StateLoss::Taken { path, pid } = loss else { return None };
    let holder = pid.map(|pid| format!(" (process {pid})")).unwrap_or_default();
    let text = format!(
        "use the state directory {}: it was removed, and another server{holder} has created it again",
        path.display()
    );
    Some(
        Failure::new(Stage::Snapshot, text)
            .hint("shut one of the two servers down, and start it again with a state_dir of its own"),
    )
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
                // One that has none yet is sent the new one.
                if !self.children.has_listeners(generation) {
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

    /// Recreates what was removed from the runtime and the state directory, off this thread, if that is due.
    pub(super) fn restore_files(&mut self, files: &InstanceFiles, admin: &Admin) {
        if self.restoring.running || self.state.is_shutting_down() || !self.restoring.due {
            return;
        }
        // An operation that is about to begin is let through first.
        let Ok(mut gate) = self.restoring.gate.clone().try_lock_owned() else { return };
        self.restoring.due = false;
        let expected = match files.expected(admin.socket_inode()) {
            Ok(expected) => expected,
            Err(error) => return self.not_restored(&error),
        };
        self.restoring.running = true;
        let (sender, tokens, restore_sets) = (self.finished.clone(), admin.tokens(), self.sets.restorer());
        tokio::task::spawn_blocking(move || {
            let runtime = expected.restore();
            let state = restore_state(&expected, tokens, restore_sets);
            *gate = state.as_ref().err().and_then(refusal);
            // The loop is gone only when the master ends.
            let _ = sender.blocking_send(Finished::Restored(Box::new(RestoredFiles { runtime, state })));
        });
    }

    pub(super) fn take_restored(&mut self, restored: RestoredFiles, files: &mut InstanceFiles, admin: &mut Admin) {
        self.restoring.running = false;
        self.take_restored_state(restored.state, files);
        let restored = match restored.runtime {
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

    fn take_restored_state(
        &mut self,
        state: Result<(RestoredState, Vec<String>), StateLoss>,
        files: &mut InstanceFiles,
    ) {
        let dir = self.dirs.state.display();
        self.restoring.refusal = state.as_ref().err().and_then(refusal);
        let failed = match state {
            Ok((restored, problems)) => {
                if restored.was_removed() {
                    tracing::warn!("the state directory {dir} had been removed; recreated, with its lock");
                }
                files.adopt_state(restored);
                Some(problems.join("; ")).filter(|problems| !problems.is_empty())
            }
            Err(loss) => Some(loss.to_string()),
        };
        if failed != self.restoring.state_failed
            && let Some(text) = &failed
        {
            tracing::error!("{text}");
        }
        self.restoring.state_failed = failed;
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
                Ok(Some(Finished::Restored(restored))) => self.take_restored(*restored, files, admin),
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
