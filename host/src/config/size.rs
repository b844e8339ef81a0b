//! Sizes as people write them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A size in bytes: `"512"`, `"64 KiB"`, `"10 MiB"`, `"1 GiB"` or `"unlimited"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl Size {
    pub const UNLIMITED: Size = Size(u64::MAX);
    /// The largest size that can be set besides "unlimited": sums of sizes stay within 64 bits.
    const MAX: u64 = 1 << 60;
    const UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("", 1)];
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        if text == "unlimited" {
            return Ok(Size::UNLIMITED);
        }
        let end = text.find(|at: char| !at.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = (text[..end].parse::<u64>().ok(), text[end..].trim_start());
        let factor = Size::UNITS.into_iter().find(|(name, _)| *name == unit).map(|(_, factor)| factor);
        let (number, factor) = number.zip(factor).ok_or_else(|| {
            format!("`{text}` is no size; write \"512\", \"64 KiB\", \"10 MiB\", \"1 GiB\" or \"unlimited\"")
        })?;
        number
            .checked_mul(factor)
            .filter(|bytes| *bytes <= Size::MAX)
            .map(Size)
            .ok_or_else(|| format!("`{text}` is too large: at most {} GiB; \"unlimited\" is no limit", Size::MAX >> 30))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Size::UNLIMITED {
            return f.write_str("unlimited");
        }
        // The last divides everything.
        for (unit, factor) in Size::UNITS {
            if self.0.is_multiple_of(factor) && (self.0 > 0 || factor == 1) {
                let space = if unit.is_empty() { "" } else { " " };
                return write!(f, "{}{space}{unit}", self.0 / factor);
            }
        }
        Ok(())
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Size, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_they_are_written() {
        for (text, size) in [
            ("0", 0),
            ("1000", 1000),
            ("64 KiB", 65_536),
            ("3MiB", 3 << 20),
            ("2 GiB", 2 << 30),
            ("unlimited", u64::MAX),
        ] {
            assert_eq!(text.parse(), Ok(Size(size)), "{text}");
            assert_eq!(Size(size).to_string().parse(), Ok(Size(size)), "{text}");
        }
        for text in ["", "KiB", "-1", "1.5 GiB", "64 kb", "99999999999 GiB"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
        assert_eq!("1073741824 GiB".parse(), Ok(Size(Size::MAX)));
        for text in ["1073741825 GiB", "18446744073709551615", "18446744073709551615 GiB"] {
            assert!(text.parse::<Size>().unwrap_err().contains("too large"), "{text}");
        }
    }
}
