//! What the loop tells people: the status that they ask for, and what it says by itself when a generation was committed.

use super::Master;
use crate::master::spawn::Child;
use crate::master::state::SetId;
use crate::master::tls::Certificates;
use crate::report::{Cause, Generation, Status};
use crate::sys::process;
use crate::version::VERSION;

impl Master {
    pub(super) fn status(&self) -> Status {
        let mut generations = self.state.generations(self.started.elapsed());
        let totals = self.children.count(&mut generations);
        // While nothing serves, the ports are bound for whoever is respawned.
        let shown = self.state.serving().and_then(|one| self.state.set_of(one));
        let shown = shown.or_else(|| self.state.sets_accepting().last());
        let hold = self.sets.hold();
        Status {
            name: self.source.config.name.clone(),
            version: VERSION.into(),
            pid: std::process::id() as i32,
            uptime_ms: self.started.elapsed().as_millis() as u64,
            ready: self.state.is_ready(),
            serving: self.state.serving(),
            shutting_down: self.state.is_shutting_down(),
            listeners: self.listeners.status(self.sets.claims(shown)),
            certificates: self.sets.certificates(shown).map(Certificates::status).unwrap_or_default(),
            admin: self.admin_url.clone(),
            probes: self.probe_url.clone(),
            plugin_dir: self.source.config.plugin_dir.display().to_string(),
            runs_as: Some(self.identity.status()),
            watcher: self.watcher.status(),
            pinned: hold.pin.clone(),
            held: hold.changes.clone(),
            alert: self.restoring.alert().or_else(|| self.state.alert().map(str::to_owned)),
            quarantines: self.state.quarantines(),
            systemd: self.systemd.status(),
            generations,
            operations: self.state.reports().cloned().collect(),
            totals,
            switches: self.state.switches(),
            crashes: self.state.crashes(),
            master_fds: process::open_files().unwrap_or(0),
        }
    }

    /// A generation was committed: says so as gf and endless do, so that people find it.
    pub(super) fn announce(&mut self, generation: Generation, from: Option<Generation>, total_ms: f64, cause: &Cause) {
        let pid = self.children.get(generation).map_or(0, Child::pid);
        let set = self.state.set_of(generation);
        self.before = self.before.take().filter(|(_, sets)| set.is_none_or(|set| sets.contains(&set)));
        let verb = if self.announced { "reloaded" } else { "started" };
        for (name, address) in self.listeners.close_unclaimed() {
            tracing::warn!(%address, "closed the socket `{name}` that systemd passed: no `listen` names it");
        }
        self.grant(set);
        if let Some(committed) = set.filter(|id| *id != SetId::EMPTY).and_then(|id| self.sets.get(id)) {
            self.committed = Some(committed.clone());
        }
        for listener in self.listeners.status(self.sets.claims(set)) {
            tracing::info!(
                generation = generation.0,
                child = pid,
                from = from.map(|from| from.0),
                %cause,
                ms = total_ms,
                "{} server {verb} listening on {}",
                listener.scheme,
                listener.address
            );
        }
        self.serving_certificates().inspect(|certificates| certificates.warn());
        if set.and_then(|id| self.sets.get(id)).is_some_and(|set| set.content.plugins.is_empty()) {
            let dir = std::path::absolute(&self.source.config.plugin_dir)
                .unwrap_or_else(|_| self.source.config.plugin_dir.clone());
            tracing::warn!("no plugin found: every request is answered 503; looked for *.so in {}", dir.display());
        }
        self.announced = true;
    }
}
