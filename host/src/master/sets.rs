//! Sets: what a generation runs, made of the files as they lie there, of what is held back, and of sets that have served.
//!
//! Owns what a set is known by (its hashes) and how it is put together. Which changes are held back is `state`'s decision,
//! reading files the store's business.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::state::{Facts, Fingerprints, SetId, SetInfo, Settings};
use super::store::{self, Mounted, Origin, Snapshot, Store};
use crate::config::{Config, ConfigSource, carried, same_plugin};
use crate::report::{Change, Failure};

/// Plugins with their configuration.
#[derive(Clone, Debug)]
pub struct Content {
    pub config: Config,
    pub plugins: Vec<Mounted>,
    /// What was not taken into it.
    pub held: Vec<Change>,
    /// Where the configuration came from.
    pub origin: ConfigSource,
}

/// A set as it is written down.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub plugins: Vec<Part>,
    #[serde(with = "carried")]
    pub config: Config,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    pub name: String,
    pub file: String,
    pub sha256: String,
}

impl Content {
    pub fn empty(config: Config) -> Content {
        Content { config, plugins: Vec::new(), held: Vec::new(), origin: ConfigSource::Unknown }
    }

    /// The files of `config` as they lie there, but for the changes in `held`: these are undone as `instead` has it.
    pub fn take(
        store: &mut Store,
        config: Config,
        held: &[Change],
        instead: Option<&Content>,
    ) -> Result<Content, Failure> {
        let mut undone = Vec::new();
        let mut config = config;
        if let Some(instead) = instead {
            let change = Change::Config { sha256: known_as(&config) };
            if held.contains(&change) {
                config = instead.config.with_fixed(&config);
                undone.push(change);
            }
        }
        let snapshots = store.take(&config)?;
        Content::undo(config, snapshots, held, undone, instead)
    }

    fn undo(
        mut config: Config,
        taken: Vec<Arc<Snapshot>>,
        held: &[Change],
        mut undone: Vec<Change>,
        instead: Option<&Content>,
    ) -> Result<Content, Failure> {
        let before = |name: &str| {
            let mut plugins = instead.into_iter().flat_map(|instead| &instead.plugins);
            plugins.find(|plugin| same_plugin(&plugin.snapshot.name, name)).map(|plugin| plugin.snapshot.clone())
        };
        let mut snapshots = Vec::new();
        for snapshot in taken {
            let name = snapshot.name.clone();
            let change = Change::Plugin { plugin: name.clone(), sha256: snapshot.sha256.clone() };
            if held.contains(&change) {
                undone.push(change);
                // One that was new with what was given up is left out.
                let Some(old) = before(&name) else { continue };
                restore_section(&mut config, instead, &name);
                snapshots.push(old);
                continue;
            }
            let change = Change::Settings { plugin: name.clone(), sha256: section_known_as(&config, &name) };
            if held.contains(&change) && instead.is_some() {
                restore_section(&mut config, instead, &name);
                undone.push(change);
            }
            snapshots.push(snapshot);
        }
        for change in held {
            let Change::Removal { plugin } = change else { continue };
            if snapshots.iter().all(|snapshot| !same_plugin(&snapshot.name, plugin))
                && let Some(old) = before(plugin)
            {
                restore_section(&mut config, instead, plugin);
                snapshots.push(old);
                undone.push(change.clone());
            }
        }
        let plugins = store::mount(snapshots, &config)?;
        Ok(Content { config, plugins, held: undone, origin: ConfigSource::Unknown })
    }

    /// The plugins of this set with their sections; the rest of the configuration is that of `within`, or its own.
    pub fn again(&self, within: Option<&Content>, fixed: &Config) -> Result<Content, Failure> {
        let mut config = within.unwrap_or(self).config.with_fixed(fixed);
        for plugin in &self.plugins {
            restore_section(&mut config, Some(self), &plugin.snapshot.name);
        }
        let snapshots = self.plugins.iter().map(|plugin| plugin.snapshot.clone()).collect();
        let origin = within.unwrap_or(self).origin.clone();
        Ok(Content { plugins: store::mount(snapshots, &config)?, config, held: Vec::new(), origin })
    }

    /// Its plugins out of the plugin folder.
    pub fn in_folder(&self) -> usize {
        let named = |plugin: &&Mounted| self.config.plugin(&plugin.snapshot.name).is_some_and(|one| one.file.is_some());
        self.plugins.len() - self.plugins.iter().filter(named).count()
    }

    pub fn uses_folder(&self) -> bool {
        self.in_folder() > 0
    }

    /// What the supervisor must know of it.
    pub fn info(&self, id: SetId, fingerprints: &Fingerprints) -> SetInfo {
        let sections: BTreeMap<String, String> = self
            .plugins
            .iter()
            .map(|plugin| (plugin.snapshot.name.clone(), section_known_as(&self.config, &plugin.snapshot.name)))
            .collect();
        let plugins = self.plugins.iter().map(|plugin| (&plugin.snapshot.name, &plugin.snapshot.sha256, &plugin.mount));
        let config = known_as(&self.config);
        let allowed = |name: &&String| self.config.plugin(name).is_none_or(|section| section.allow_control);
        let controllers = self.plugins.iter().map(|plugin| &plugin.snapshot.name).filter(allowed).cloned().collect();
        SetInfo {
            id,
            sha256: hash(&(plugins.collect::<Vec<_>>(), &config)),
            config,
            plugins: self.plugins.iter().map(Mounted::status).collect(),
            controllers,
            sections,
            facts: Arc::new(Facts::of(&self.config, fingerprints)),
            in_folder: self.in_folder(),
            held: self.held.clone(),
            settings: Settings::of(&self.config),
        }
    }

    pub fn record(&self) -> Record {
        let part = |plugin: &Mounted| Part {
            name: plugin.snapshot.name.clone(),
            file: plugin.snapshot.file.clone(),
            sha256: plugin.snapshot.sha256.clone(),
        };
        Record { plugins: self.plugins.iter().map(part).collect(), config: self.config.clone() }
    }

    /// What was written down, if all of it is still there.
    pub fn recall(store: &Store, record: Record, origin: Origin) -> Result<Content, Failure> {
        let recalled = record.plugins.iter().map(|part| store.recall(&part.name, &part.file, &part.sha256, origin));
        let snapshots = recalled.collect::<Result<Vec<_>, _>>()?;
        let plugins = store::mount(snapshots, &record.config)?;
        Ok(Content { plugins, config: record.config, held: Vec::new(), origin: ConfigSource::Unknown })
    }
}

/// Equal for equal configurations, in a version that has more keys too.
fn known_as(config: &Config) -> String {
    hash(&config.given().ok())
}

/// The same of a plugin's section; one that is not there is as good as an empty one.
fn section_known_as(config: &Config, name: &str) -> String {
    hash(&config.plugin(name).cloned().unwrap_or_default().given().ok())
}

/// Gives the plugin the section that it has in `from`.
fn restore_section(config: &mut Config, from: Option<&Content>, name: &str) {
    config.plugins.retain(|key, _| !same_plugin(key, name));
    if let Some(section) = from.and_then(|from| from.config.plugin(name)) {
        config.plugins.insert(name.into(), section.clone());
    }
}

/// Maps are sorted, so equal values have equal hashes.
fn hash(value: &impl Serialize) -> String {
    // Everything here has been JSON before.
    let json = serde_json::to_vec(value).unwrap_or_default();
    store::hex(&Sha256::digest(json))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(config: Config, plugins: &[(&str, &str)]) -> Content {
        let plugins = plugins
            .iter()
            .map(|(name, sha256)| Mounted { snapshot: Snapshot::fake(name, "", sha256), mount: format!("/{name}") });
        Content { config, plugins: plugins.collect(), held: Vec::new(), origin: ConfigSource::NoFile }
    }

    fn config(settings: &[&str]) -> Config {
        Config::load(None, &settings.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap()
    }

    fn taken(plugins: &[(&str, &str)]) -> Vec<Arc<Snapshot>> {
        plugins.iter().map(|(name, sha256)| Snapshot::fake(name, &format!("/{name}"), sha256)).collect()
    }

    fn file(plugin: &str, sha256: &str) -> Change {
        Change::Plugin { plugin: plugin.into(), sha256: sha256.into() }
    }

    fn shas(content: &Content) -> Vec<(&str, &str)> {
        content.plugins.iter().map(|plugin| (&*plugin.snapshot.name, &*plugin.snapshot.sha256)).collect()
    }

    #[test]
    fn a_file_that_is_held_back_is_replaced_by_the_one_before_with_its_section() {
        let before = content(config(&["plugins.a.config.x=1"]), &[("a", "a1"), ("b", "b1")]);
        let now = config(&["plugins.a.config.x=2", "plugins.b.config.x=2"]);
        let held = [file("a", "a2"), file("new", "n1")];
        let files = taken(&[("a", "a2"), ("b", "b2"), ("new", "n1")]);
        let made = Content::undo(now.clone(), files, &held, Vec::new(), Some(&before)).unwrap();
        assert_eq!(shas(&made), [("a", "a1"), ("b", "b2")]);
        assert_eq!(made.held, held);
        assert_eq!(made.config.plugins["a"].config["x"].as_integer(), Some(1));
        assert_eq!(made.config.plugins["b"].config["x"].as_integer(), Some(2));
        // Once it has another content it is taken.
        let made = Content::undo(now, taken(&[("a", "a3")]), &held, Vec::new(), Some(&before)).unwrap();
        assert_eq!((shas(&made), made.held.len()), (vec![("a", "a3")], 0));
    }

    #[test]
    fn a_removal_and_a_section_that_are_held_back_are_undone() {
        let before =
            content(config(&["plugins.a.config.x=1", "plugins.gone.workers=3"]), &[("a", "a1"), ("gone", "g1")]);
        let now = config(&["plugins.a.config.x=2"]);
        let settings = Change::Settings { plugin: "a".into(), sha256: section_known_as(&now, "a") };
        let held = [settings, Change::Removal { plugin: "gone".into() }];
        let made = Content::undo(now.clone(), taken(&[("a", "a1")]), &held, Vec::new(), Some(&before)).unwrap();
        assert_eq!(shas(&made), [("a", "a1"), ("gone", "g1")]);
        assert_eq!(
            (made.config.plugins["a"].config["x"].as_integer(), made.config.plugins["gone"].workers),
            (Some(1), 3)
        );
        assert_eq!(made.held.len(), 2);
        let made =
            Content::undo(now, taken(&[("a", "a1"), ("gone", "g2")]), &held[1..], Vec::new(), Some(&before)).unwrap();
        assert_eq!((shas(&made), made.held.len()), (vec![("a", "a1"), ("gone", "g2")], 0));
    }

    #[test]
    fn going_back_restores_plugins_and_their_sections_or_all() {
        let before = content(config(&["plugins.a.config.x=1", "workers=1"]), &[("a", "a1")]);
        let now =
            content(config(&["plugins.a.config.x=2", "workers=2", "plugins.b.workers=2"]), &[("a", "a2"), ("b", "b")]);
        let fixed = config(&["name=fixed"]);
        let back = before.again(Some(&now), &fixed).unwrap();
        assert_eq!((shas(&back), back.config.workers, &*back.config.name), (vec![("a", "a1")], 2, "fixed"));
        assert_eq!(back.config.plugins["a"].config["x"].as_integer(), Some(1));
        let back = before.again(None, &fixed).unwrap();
        assert_eq!((back.config.workers, back.config.plugins.len()), (1, 1));
    }

    #[test]
    fn a_set_is_known_by_all_that_is_in_it() {
        let one = content(config(&[]), &[("a", "a1")]);
        let id = |content: &Content| content.info(SetId(1), &Fingerprints::default()).sha256;
        assert_eq!(id(&one), id(&one.clone()));
        for other in [content(config(&["workers=3"]), &[("a", "a1")]), content(config(&[]), &[("a", "a2")])] {
            assert_ne!(id(&one), id(&other));
        }
    }
}
