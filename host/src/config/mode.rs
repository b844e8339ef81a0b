//! File modes as chmod(1) takes them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Permissions of a file: `"0660"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode(pub u32);

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Mode, String> {
        let digits = (3..=4).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| digits && *mode <= 0o777);
        mode.map(Mode).ok_or_else(|| format!("`{text}` is no mode; write three octal digits, such as \"0660\""))
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

impl Serialize for Mode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Mode, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_octal_and_no_more_than_permissions() {
        for (text, mode) in [("0660", 0o660), ("666", 0o666), ("0000", 0), ("0777", 0o777)] {
            assert_eq!(text.parse(), Ok(Mode(mode)), "{text}");
        }
        assert_eq!(Mode(0o60).to_string(), "0060");
        for text in ["", "66", "0o660", "0888", "1777", "00660", "rw-", "+660", "-1"] {
            assert!(text.parse::<Mode>().is_err(), "{text}");
        }
    }
}
