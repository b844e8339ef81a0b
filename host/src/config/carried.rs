//! A configuration on its way to another Baton: to a child, to the program after a restart, to the next start. Either side may
//! be of another version, and a key that it does not have is refused, since to ignore what somebody has set is worse. So only
//! what differs from the defaults goes along: a key is met by a version without it only if it was set.

use serde::{Deserialize, Deserializer, Serialize, Serializer, ser};
use serde_json::Value;

use super::{Config, Plugin, Probe, Route, Server, root};

/// For `#[serde(with = "carried")]`.
pub fn serialize<S: Serializer>(config: &Config, serializer: S) -> Result<S::Ok, S::Error> {
    config.given().map_err(ser::Error::custom)?.serialize(serializer)
}

pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Config, D::Error> {
    Config::deserialize(deserializer)
}

impl Config {
    /// What differs from the defaults, and all servers: their addresses are bound, whatever the default is elsewhere.
    pub fn given(&self) -> serde_json::Result<Value> {
        let mut all = serde_json::to_value(self)?;
        let mut servers = all.get_mut("server").map(Value::take).unwrap_or_default();
        let mut plugins = all.get_mut("plugins").map(Value::take).unwrap_or_default();
        leave_out(&mut all, &serde_json::to_value(Config::default())?);
        // What a list or a map holds has defaults of its own.
        let (server, probe) =
            (serde_json::to_value(Server::new("default", &[]))?, serde_json::to_value(Probe::default())?);
        let route = serde_json::to_value(Route { host: None, prefix: root(), plugin: String::new() })?;
        for one in servers.as_array_mut().into_iter().flatten() {
            leave_out(one, &server);
            for (key, defaults) in [("probe", &probe), ("route", &route)] {
                let within = one.get_mut(key).and_then(Value::as_array_mut);
                within.into_iter().flatten().for_each(|element| leave_out(element, defaults));
            }
        }
        let plugin = serde_json::to_value(Plugin::default())?;
        let sections = plugins.as_object_mut().into_iter().flat_map(|plugins| plugins.values_mut());
        sections.for_each(|section| leave_out(section, &plugin));
        all["server"] = servers;
        all["plugins"] = plugins;
        Ok(all)
    }
}

impl Plugin {
    /// What differs from the defaults.
    pub fn given(&self) -> serde_json::Result<Value> {
        let mut all = serde_json::to_value(self)?;
        leave_out(&mut all, &serde_json::to_value(Plugin::default())?);
        Ok(all)
    }
}

/// Takes out of `value` what is as in `defaults`.
fn leave_out(value: &mut Value, defaults: &Value) {
    let (Value::Object(value), Value::Object(defaults)) = (value, defaults) else { return };
    value.retain(|key, value| {
        let Some(default) = defaults.get(key) else { return true };
        leave_out(value, default);
        let is_table = default.as_object().is_some_and(|table| !table.is_empty());
        value != default && !(is_table && value.as_object().is_some_and(serde_json::Map::is_empty))
    });
}
