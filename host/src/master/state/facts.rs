//! What a set's configuration says, in a form in which two of them can be compared for a report: addresses, TLS, routes, and every
//! other key with its value. Values that may be secret (a plugin's own configuration, the headers of probes) are only compared.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::config::{Config, Server, toml_key};
use crate::report::{ConfigChanges, KeyChange, ListChanges};

/// Bytes of a value that are shown.
const SHOWN: usize = 100;

/// Certificates as they were read: by server, one fingerprint for all of them.
pub type Fingerprints = BTreeMap<String, String>;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    addresses: BTreeSet<String>,
    tls: BTreeMap<String, ServerTls>,
    routes: BTreeSet<String>,
    keys: BTreeMap<String, KeyValue>,
}

#[derive(Clone, Debug, PartialEq)]
struct ServerTls {
    files: Value,
    /// Absent where it is not known: an earlier program did not leave it.
    fingerprint: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
enum KeyValue {
    Shown(String),
    /// Its hash.
    Hidden(String),
}

impl Facts {
    pub fn of(config: &Config, fingerprints: &Fingerprints) -> Facts {
        let mut facts = Facts::default();
        // What was read as TOML can be written as JSON.
        let mut all = serde_json::to_value(config).unwrap_or_default();
        let mut take = |key: &str| all.get_mut(key).map(Value::take).unwrap_or_default();
        let (servers, plugins) = (take("server"), take("plugins"));
        if let Value::Object(all) = all {
            let others = all.into_iter().filter(|(key, _)| !matches!(key.as_str(), "server" | "plugins"));
            others.for_each(|(key, value)| facts.flatten(&key, value));
        }
        for (server, value) in config.server.iter().zip(servers.as_array().into_iter().flatten()) {
            facts.server(server, value, fingerprints);
        }
        for (name, plugin) in plugins.as_object().into_iter().flatten() {
            let name = toml_key(name);
            for (key, value) in plugin.as_object().into_iter().flatten() {
                let key = format!("plugins.{name}.{key}");
                match key.ends_with(".config") {
                    true => facts.hide(key, value),
                    false => facts.flatten(&key, value.clone()),
                }
            }
        }
        facts
    }

    fn server(&mut self, server: &Server, value: &Value, fingerprints: &Fingerprints) {
        let name = &server.name;
        self.addresses.extend(server.listen.iter().map(|address| format!("{address} ({name})")));
        self.routes.extend(server.route.iter().map(|route| format!("{route} to {} ({name})", route.plugin)));
        for (key, value) in value.as_object().into_iter().flatten() {
            match key.as_str() {
                "name" | "listen" | "route" => {}
                "tls" => {
                    let fingerprint = fingerprints.get(name).cloned();
                    self.tls.insert(name.clone(), ServerTls { files: value.clone(), fingerprint });
                }
                "probe" => self.hide(format!("server.{}.probe", toml_key(name)), value),
                key => self.flatten(&format!("server.{}.{key}", toml_key(name)), value.clone()),
            }
        }
    }

    fn flatten(&mut self, key: &str, value: Value) {
        let text = match value {
            Value::Object(table) => {
                return table.into_iter().for_each(|(name, value)| self.flatten(&format!("{key}.{name}"), value));
            }
            Value::Null => return,
            Value::String(text) => text,
            other => other.to_string(),
        };
        self.keys.insert(key.into(), KeyValue::Shown(text));
    }

    fn hide(&mut self, key: String, value: &Value) {
        let hash = Sha256::digest(value.to_string());
        self.keys.insert(key, KeyValue::Hidden(hash.iter().map(|byte| format!("{byte:02x}")).collect()));
    }

    /// What is another in `new`.
    pub fn changes(&self, new: &Facts) -> ConfigChanges {
        let servers: BTreeSet<&String> = self.tls.keys().chain(new.tls.keys()).collect();
        let tls = servers.into_iter().filter(|name| match (self.tls.get(*name), new.tls.get(*name)) {
            (Some(old), Some(new)) => {
                let fingerprints = old.fingerprint.as_ref().zip(new.fingerprint.as_ref());
                old.files != new.files || fingerprints.is_some_and(|(old, new)| old != new)
            }
            (old, new) => old.is_some() != new.is_some(),
        });
        let keys: BTreeSet<&String> = self.keys.keys().chain(new.keys.keys()).collect();
        let changed = keys.into_iter().filter(|key| self.keys.get(*key) != new.keys.get(*key));
        let change = |key: &String| KeyChange {
            key: key.clone(),
            from: self.keys.get(key).and_then(KeyValue::shown),
            to: new.keys.get(key).and_then(KeyValue::shown),
        };
        let changes = ConfigChanges {
            addresses: list_changes(&self.addresses, &new.addresses),
            tls: tls.cloned().collect(),
            routes: list_changes(&self.routes, &new.routes),
            keys: changed.map(change).collect(),
            more: 0,
        };
        changes.bounded()
    }
}

fn list_changes(old: &BTreeSet<String>, new: &BTreeSet<String>) -> ListChanges {
    ListChanges { added: new.difference(old).cloned().collect(), removed: old.difference(new).cloned().collect() }
}

impl KeyValue {
    fn shown(&self) -> Option<String> {
        match self {
            KeyValue::Hidden(_) => None,
            KeyValue::Shown(text) => match text.char_indices().find(|(at, _)| *at >= SHOWN) {
                Some((end, _)) => Some(format!("{} ...", &text[..end])),
                None => Some(text.clone()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(text: &str, fingerprint: &str) -> Facts {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("baton.toml");
        std::fs::write(&path, format!("plugin_dir = \"/p\"\n{text}")).unwrap();
        let config = Config::load(Some(&path), &[]).unwrap();
        Facts::of(&config, &[("web".to_owned(), fingerprint.to_owned())].into())
    }

    const BEFORE: &str = r#"
        [limits]
        body_size = "1 GiB"
        [[server]]
        name = "web"
        listen = ["127.0.0.1:1", "127.0.0.1:2"]
        tls = [{ cert = "/c", key = "/k" }]
        route = [{ prefix = "/a", plugin = "a" }]
        probe = [{ headers = { authorization = "secret" } }]
        [plugins.a]
        workers = 1
        config = { password = "secret" }
    "#;

    #[test]
    fn changes_name_addresses_tls_routes_and_keys_but_no_secret() {
        let before = facts(BEFORE, "1");
        assert!(before.changes(&facts(BEFORE, "1")).is_empty());
        let after = BEFORE
            .replace("\"1 GiB\"", "\"10 MiB\"")
            .replace("127.0.0.1:2", "127.0.0.1:3")
            .replace("prefix = \"/a\"", "prefix = \"/b\"")
            .replace("workers = 1", "workers = 2")
            .replace("secret", "hidden");
        let changes = before.changes(&facts(&after, "2"));
        let key = |key: &str, from: Option<&str>, to: Option<&str>| KeyChange {
            key: key.into(),
            from: from.map(Into::into),
            to: to.map(Into::into),
        };
        let expected = ConfigChanges {
            addresses: ListChanges {
                added: vec!["127.0.0.1:3 (web)".into()],
                removed: vec!["127.0.0.1:2 (web)".into()],
            },
            tls: vec!["web".into()],
            routes: ListChanges { added: vec!["*/b to a (web)".into()], removed: vec!["*/a to a (web)".into()] },
            keys: vec![
                key("limits.body_size", Some("1 GiB"), Some("10 MiB")),
                key("plugins.a.config", None, None),
                key("plugins.a.workers", Some("1"), Some("2")),
                key("server.web.probe", None, None),
            ],
            more: 0,
        };
        assert_eq!(changes, expected);
        let text = serde_json::to_string(&changes).unwrap();
        assert!(!text.contains("secret") && !text.contains("hidden"), "{text}");
        let lines = changes.lines();
        assert!(lines.contains(&"limits.body_size: 1 GiB -> 10 MiB".to_owned()), "{lines:?}");
        assert!(lines.contains(&"plugins.a.config changed".to_owned()), "{lines:?}");
    }

    #[test]
    fn tls_that_goes_and_a_fingerprint_that_is_not_known() {
        let clear = BEFORE.replace("tls = [{ cert = \"/c\", key = \"/k\" }]", "");
        assert_eq!(facts(BEFORE, "1").changes(&facts(&clear, "1")).tls, ["web"]);
        assert_eq!(facts(&clear, "1").changes(&facts(BEFORE, "1")).tls, ["web"]);
        let mut unknown = facts(BEFORE, "1");
        unknown.tls.get_mut("web").unwrap().fingerprint = None;
        assert!(unknown.changes(&facts(BEFORE, "2")).is_empty());
    }

    #[test]
    fn long_lists_are_cut_and_counted() {
        let routes: String =
            (0..3000).map(|i| format!("[[server.route]]\nhost = \"h{i}\"\nplugin = \"a\"\n")).collect();
        let server = "[[server]]\nname = \"web\"\nlisten = [\"127.0.0.1:1\"]\n";
        let changes = facts(server, "").changes(&facts(&format!("{server}{routes}"), ""));
        assert_eq!((changes.routes.added.len(), changes.more), (ConfigChanges::MOST, 3000 - ConfigChanges::MOST));
        assert!(changes.lines().last().unwrap().contains("2980 more"));
    }
}
