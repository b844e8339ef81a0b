//! Durations as the configuration and the command line write them. Every one has an upper bound where it is read.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The longest time that can be set. Deadlines are sums of a few of these and of a clock: with this bound no such sum leaves
/// the range of `Instant` or `Duration`, which would panic.
pub const MAX_DURATION: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Parses a duration such as `"5s"`, up to [`MAX_DURATION`].
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text)
        .map_err(|error| format!("`{text}` is no duration ({error}); write \"5s\", \"250ms\" or \"10min\""))?;
    if duration > MAX_DURATION {
        return Err(format!("`{text}` is too long: at most {}days", MAX_DURATION.as_secs() / (24 * 3600)));
    }
    Ok(duration)
}

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
        parse_duration(text).map(Limit::After).map_err(|why| format!("{why}; \"never\" is no limit"))
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
        match String::deserialize(deserializer)?.as_str() {
            "never" => Err(de::Error::custom("this time limit cannot be \"never\"")),
            text => parse_duration(text).map_err(de::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duration_beyond_the_bound_is_refused_at_its_place() {
        assert_eq!(parse_duration("3650days"), Ok(MAX_DURATION));
        for text in ["3651days", "11years", "500000000000years", "18446744073709551615s"] {
            assert!(parse_duration(text).unwrap_err().contains("too long"), "{text}");
            assert!(text.parse::<Limit>().unwrap_err().contains("never"), "{text}");
        }
        for text in ["99999999999999999999s", "-1s", "", "5"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
