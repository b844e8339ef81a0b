//! How a child comes to have its set: started with its program, then sent what it shall serve, and connected to the one whose
//! connections it takes over.

use std::path::PathBuf;
use std::sync::Arc;

use super::{Finished, Master};
use crate::config::{Config, toml_key};
use crate::control::secrets::SecretError;
use crate::control::{LoadSet, PluginFile, ToChild, ToMaster};
use crate::master::inventory::Set;
use crate::master::listeners::Bindings;
use crate::master::sets::Content;
use crate::master::spawn::Child;
use crate::master::state::{Event, Exit, Inherit, Probes, SetId};
use crate::master::store::Mounted;
use crate::master::tls::Certificates;
use crate::report::{Failure, Generation, Stage};
use crate::sys::process::Image;
use crate::sys::seqpacket;

/// The data directories of a generation's plugins were made, or not.
pub(super) struct DataDirs {
    generation: Generation,
    probes: Probes,
    inherit: Inherit,
    result: Result<(), Failure>,
}

impl Master {
    pub(super) fn spawn(&mut self, generation: Generation, set: SetId) -> Event {
        let result = self.set(set).and_then(|name| {
            Child::start(self.program(set), &name, &self.identity, generation, self.events.clone()).map_err(|error| {
                Failure::new(Stage::Spawn, format!("start a child: {error}"))
                    .hint("too many processes or open files? see `ulimit -a`")
            })
        });
        let result = result.map(|child| {
            let pid = child.pid();
            self.children.insert(generation, child);
            pid
        });
        Event::Spawned { generation, result }
    }

    /// What a child with `set` runs.
    fn program(&self, set: SetId) -> &Image {
        match &self.before {
            Some((image, sets)) if sets.contains(&set) => image,
            _ => &self.image,
        }
    }

    /// Makes sure of `set`, the set without plugins included, and answers the instance's name.
    fn set(&mut self, set: SetId) -> Result<String, Failure> {
        if set == SetId::EMPTY && self.sets.get(set).is_none() {
            let set = self.fallback_set()?;
            self.sets.add_empty(set);
        }
        Ok(self.source.config.name.clone())
    }

    /// A set without plugins at the addresses and with the certificates of what was committed last, whatever lies on disk by now.
    fn fallback_set(&mut self) -> Result<Set, Failure> {
        let accepting = || self.state.sets_accepting().filter_map(|id| self.sets.get(id)).last().cloned();
        let committed = self.committed.clone().or_else(accepting);
        let (config, listeners, certificates) = match committed {
            Some(Set { content, listeners, certificates }) => (content.config.clone(), listeners, certificates),
            None => {
                // Nothing has ever served (`dev`): there is nobody to be held up.
                let config = self.source.config.clone();
                let certificates = Certificates::read(&config)?.map(Arc::new);
                (config, Vec::new(), certificates)
            }
        };
        self.cover(certificates.as_deref())?;
        let listeners = if !listeners.is_empty() && self.listeners.has(&listeners) {
            listeners
        } else {
            self.listeners.open(&config, Bindings::default()).map_err(|error| error.failure)?
        };
        Ok(Set { content: Arc::new(Content::empty(config)), listeners, certificates })
    }

    /// Makes ticket keys for servers that have none.
    pub(super) fn cover(&mut self, certificates: Option<&Certificates>) -> Result<(), Failure> {
        certificates
            .map_or(Ok(()), |certificates| self.tickets.cover(certificates))
            .map_err(|error| Failure::new(Stage::Tls, format!("make ticket keys: {error}")))
    }

    /// Makes the plugins' data directories off this thread, then loads.
    pub(super) fn load(&mut self, generation: Generation, probes: Probes, inherit: Inherit) -> Option<Event> {
        let set = self.state.set_of(generation).and_then(|id| self.sets.get(id));
        let plugins = set.into_iter().flat_map(|set| &set.content.plugins);
        let dirs: Vec<(String, PathBuf)> =
            plugins.map(|plugin| (plugin.snapshot.name.clone(), self.data_dir(plugin))).collect();
        if dirs.is_empty() {
            return self.finish_load(DataDirs { generation, probes, inherit, result: Ok(()) });
        }
        let (identity, sender) = (self.identity.clone(), self.finished.clone());
        tokio::task::spawn_blocking(move || {
            let make = |(plugin, dir): &(String, PathBuf)| {
                identity.make_dir(dir).map_err(|error| {
                    Failure::new(Stage::Load, format!("make the data directory {}: {error}", dir.display()))
                        .of_plugin(plugin)
                        .hint("it lies in the state directory, which must be writable and have room; see state_dir")
                })
            };
            let result = dirs.iter().try_for_each(make);
            // The loop is gone only when the master ends.
            let _ = sender.blocking_send(Finished::DataDirs(DataDirs { generation, probes, inherit, result }));
        });
        None
    }

    pub(super) fn take_data_dirs(&mut self, dirs: DataDirs) -> Option<Exit> {
        // Else it has ended meanwhile.
        self.children.get(dirs.generation)?;
        let event = self.finish_load(dirs)?;
        self.handle(event)
    }

    /// LOAD with the shared counters, the secrets, then the listeners, each in a message of its own. What keeps the child from
    /// having them refuses its operation.
    fn finish_load(&mut self, dirs: DataDirs) -> Option<Event> {
        let DataDirs { generation, probes, inherit, result } = dirs;
        let failure = result.and_then(|()| self.try_load(generation, probes, inherit)).err()?;
        tracing::error!(generation = generation.0, "failed to {}", failure.error);
        Some(Event::Message { generation, message: ToMaster::Failed(failure) })
    }

    fn try_load(&mut self, generation: Generation, probes: Probes, inherit: Inherit) -> Result<(), Failure> {
        let failed = |what: &str, error: &dyn std::fmt::Display| Failure::new(Stage::Load, format!("{what}: {error}"));
        let set = self.state.set_of(generation).and_then(|id| self.sets.get(id));
        let set = set.ok_or_else(|| Failure::new(Stage::Load, "find its set"))?;
        // Without listeners the child would wait for ever.
        let lent = self.listeners.lend(&set.listeners).map_err(|error| {
            failed("lend the listeners", &error)
                .hint("too many open files? see `ulimit -n`, or LimitNOFILE= of the unit")
        })?;
        let (infos, sockets): (Vec<_>, Vec<_>) = lent.into_iter().unzip();
        let secrets = set.certificates.as_ref().map(|certificates| Ok((certificates.lend()?, self.tickets.seal()?)));
        let secrets = secrets.transpose().map_err(|error: SecretError| Failure::new(Stage::Tls, error.to_string()))?;
        let plugins = set.content.plugins.iter().map(|plugin| self.plugin_file(plugin, &set.content.config));
        let plugins = plugins.collect::<Result<Vec<_>, Failure>>()?;
        let mut config = set.content.config.clone();
        config.log = crate::telemetry::effective(&config.log);
        if probes == Probes::Skip {
            config.server.iter_mut().for_each(|server| server.probe.clear());
        }
        // Each plugin is given its own.
        config.plugins.values_mut().for_each(|plugin| plugin.config.clear());
        let ids: Vec<u32> = infos.iter().map(|info| info.id).collect();
        let (states, memory) = match self.children.lend_states().filter(|_| inherit == Inherit::Latest) {
            Some(Ok((states, memory))) => (states, Some(memory)),
            Some(Err(error)) => {
                tracing::warn!(generation = generation.0, "failed to lend what was saved: {error}; going without");
                (Vec::new(), None)
            }
            None => (Vec::new(), None),
        };
        let message = ToChild::Load(Box::new(LoadSet { config, plugins, listeners: infos, states }));
        let slots = self.children.get(generation).map(Child::slots_fd).transpose();
        let slots = slots.map_err(|error| failed("lend the counters", &error))?;
        self.children.send(generation, message, slots.into_iter().chain(memory).collect());
        if let Some((certificates, tickets)) = secrets {
            self.children.entrust(generation, certificates, tickets);
        }
        self.children.send_listeners(generation, ids.into_iter().zip(sockets));
        Ok(())
    }

    /// Gives two children the ends of a pair. Without it the old one keeps its connections and announces their close.
    pub(super) fn connect(&self, from: Generation, to: Generation) {
        let (giver, taker) = match seqpacket::pair() {
            Ok(pair) => pair,
            Err(error) => return tracing::warn!("failed to connect generations {from} and {to}: {error}"),
        };
        let set = self.state.set_of(to).and_then(|id| self.sets.get(id));
        let listeners = set.map(|set| self.listeners.clear_ids(&set.listeners)).unwrap_or_default();
        self.children.send(to, ToChild::Adopt { from }, vec![taker]);
        self.children.send(from, ToChild::Handover { to, listeners }, vec![giver]);
    }

    fn data_dir(&self, plugin: &Mounted) -> PathBuf {
        self.dirs.data().join(&plugin.snapshot.name)
    }

    fn plugin_file(&self, plugin: &Mounted, config: &Config) -> Result<PluginFile, Failure> {
        let name = plugin.snapshot.name.clone();
        let data_dir = self.data_dir(plugin);
        let section = config.plugin(&name);
        let settings = section.map(|section| &section.config);
        let settings = serde_json::to_value(settings.unwrap_or(&toml::Table::new())).map_err(|error| {
            Failure::new(Stage::Config, format!("hand on [plugins.{}.config]: {error}", toml_key(&name)))
                .of_plugin(&name)
        })?;
        Ok(PluginFile {
            path: plugin.snapshot.path.clone(),
            mount: plugin.mount.clone(),
            config: settings,
            data_dir,
            workers: section.map_or(0, |section| section.workers),
            allow_control: section.is_none_or(|section| section.allow_control),
            name,
        })
    }
}
