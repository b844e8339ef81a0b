//! `[watch]`: when the master reloads by itself.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::limit::finite;
use super::{Limit, seconds};

/// To look at every file more often would be a load of its own.
const LEAST: Duration = Duration::from_millis(50);

/// Reloads by itself when plugins, certificates or the configuration change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Watch {
    pub enabled: bool,
    /// Whether the kernel is asked to tell of changes (inotify).
    pub events: bool,
    /// Quiet after the last change.
    #[serde(with = "finite")]
    pub settle: Duration,
    /// From the first change, however many follow.
    #[serde(with = "finite")]
    pub settle_max: Duration,
    /// Between two looks at everything, for what the kernel does not tell of.
    pub rescan: Limit,
    /// The same where it tells of nothing.
    #[serde(with = "finite")]
    pub poll: Duration,
}

impl Default for Watch {
    fn default() -> Watch {
        Watch {
            enabled: false,
            events: true,
            settle: Duration::from_millis(200),
            settle_max: seconds(5),
            rescan: Limit::After(seconds(30)),
            poll: seconds(2),
        }
    }
}

impl Watch {
    /// What does not hold, by its key.
    pub(super) fn problems(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        if self.settle > self.settle_max {
            found.push(("settle", "must not be longer than watch.settle_max".into()));
        }
        if self.poll < LEAST {
            found.push(("poll", format!("must be at least {LEAST:?}")));
        }
        if self.rescan.duration().is_some_and(|rescan| rescan < LEAST) {
            found.push(("rescan", format!("must be at least {LEAST:?}, or \"never\"")));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    #[test]
    fn what_cannot_be_kept_is_refused_by_its_key() {
        let set = |setting: &str| Config::load(None, &[setting.to_owned()]).and_then(|config| config.validate());
        for setting in
            ["watch.settle=5s", "watch.settle=0s", "watch.poll=50ms", "watch.rescan=never", "watch.rescan=50ms"]
        {
            assert!(set(setting).is_ok(), "{setting}");
        }
        for (setting, key) in [
            ("watch.settle=6s", "watch.settle:"),
            ("watch.settle_max=100ms", "watch.settle:"),
            ("watch.poll=49ms", "watch.poll:"),
            ("watch.rescan=0s", "watch.rescan:"),
        ] {
            let refused = set(setting).unwrap_err().to_string();
            assert!(refused.contains(key), "{refused}");
        }
    }
}
