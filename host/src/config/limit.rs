//! Durations as the configuration writes them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A time limit: `"5s"`, `"0s"` (at once) or `"never"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    After(Duration),
    Never,
}

impl Limit {
    /// The duration, or nothing for never.
    pub fn duration(self) -> Option<Duration> {
        match self {
            Limit::After(duration) => Some(duration),
            Limit::Never => None,
        }
    }
}

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Limit, String> {
        if text == "never" {
            return Ok(Limit::Never);
        }
        let duration = humantime::parse_duration(text).map_err(|error| {
            format!("`{text}` is no duration ({error}); write \"5s\", \"250ms\", \"10min\" or \"never\"")
        })?;
        Ok(Limit::After(duration))
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Limit::After(duration) => humantime::format_duration(*duration).fmt(f),
            Limit::Never => f.write_str("never"),
        }
    }
}

impl Serialize for Limit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Limit, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A duration that must end: like [`Limit`], without "never".
pub mod finite {
    use super::*;

    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        Limit::After(*duration).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        match Limit::deserialize(deserializer)? {
            Limit::After(duration) => Ok(duration),
            Limit::Never => Err(de::Error::custom("this time limit cannot be \"never\"")),
        }
    }
}
