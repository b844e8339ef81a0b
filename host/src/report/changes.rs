//! What of the configuration a switch changed, as reports say it. Values that may be secret are never in it.

use serde::{Deserialize, Serialize};

/// What changed besides the plugins' files. Each list is cut at [`ConfigChanges::MOST`] entries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConfigChanges {
    /// As the configuration names them, with their servers.
    #[serde(skip_serializing_if = "ListChanges::is_empty")]
    pub addresses: ListChanges,
    /// The servers whose certificates changed, or which speak TLS now or no more.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tls: Vec<String>,
    #[serde(skip_serializing_if = "ListChanges::is_empty")]
    pub routes: ListChanges,
    /// All other keys: limits, deadlines, and so on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<KeyChange>,
    /// So many more entries were cut off.
    #[serde(skip_serializing_if = "is_zero")]
    pub more: usize,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ListChanges {
    pub added: Vec<String>,
    pub removed: Vec<String>,
}

/// A key whose value changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyChange {
    pub key: String,
    /// Absent where there was none, and where values are not shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

impl ListChanges {
    fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty()
    }
}

impl ConfigChanges {
    /// Entries of one list.
    pub const MOST: usize = 20;

    pub fn is_empty(&self) -> bool {
        *self == ConfigChanges::default()
    }

    /// Cuts the lists, and counts what is cut off.
    pub fn bounded(mut self) -> ConfigChanges {
        let lists = [&mut self.addresses.added, &mut self.addresses.removed, &mut self.tls];
        for list in lists.into_iter().chain([&mut self.routes.added, &mut self.routes.removed]) {
            self.more += list.len().saturating_sub(ConfigChanges::MOST);
            list.truncate(ConfigChanges::MOST);
        }
        self.more += self.keys.len().saturating_sub(ConfigChanges::MOST);
        self.keys.truncate(ConfigChanges::MOST);
        self
    }

    /// One line for each kind of change.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut list = |what: &str, names: &[String]| {
            if !names.is_empty() {
                lines.push(format!("{what}: {}", names.join(", ")));
            }
        };
        list("listens now on", &self.addresses.added);
        list("listens no more on", &self.addresses.removed);
        list("TLS changed of", &self.tls);
        list("routes added", &self.routes.added);
        list("routes removed", &self.routes.removed);
        lines.extend(self.keys.iter().map(|KeyChange { key, from, to }| match (from, to) {
            (None, None) => format!("{key} changed"),
            (from, to) => {
                let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "unset".into());
                format!("{key}: {} -> {}", shown(from), shown(to))
            }
        }));
        if self.more > 0 {
            lines.push(format!("{} more changes", self.more));
        }
        lines
    }
}
