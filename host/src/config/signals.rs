//! Whose signals the master understands: Baton's own, or those of another server whose operators' hands know them. What each
//! does is `master::signals`' to say.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Above this likeness (0 to 1) a word is taken for a slip of the keyboard.
const LIKE: f64 = 0.5;

/// A set of meanings, `"baton"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preset {
    #[default]
    Baton,
    /// Of GoFrame (gf).
    Gf,
    /// Of fvbock/endless.
    Endless,
}

impl Preset {
    pub const ALL: [Preset; 3] = [Preset::Baton, Preset::Gf, Preset::Endless];

    pub fn as_str(self) -> &'static str {
        match self {
            Preset::Baton => "baton",
            Preset::Gf => "gf",
            Preset::Endless => "endless",
        }
    }
}

impl FromStr for Preset {
    type Err = String;

    fn from_str(text: &str) -> Result<Preset, String> {
        if let Some(preset) = Preset::ALL.into_iter().find(|preset| preset.as_str() == text) {
            return Ok(preset);
        }
        let likeness = |preset: &Preset| strsim::normalized_damerau_levenshtein(text, preset.as_str());
        let best = Preset::ALL.into_iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
        match best.filter(|best| likeness(best) >= LIKE) {
            Some(best) => Err(format!("`{text}` is no preset; did you mean \"{best}\"?")),
            None => Err(format!("`{text}` is no preset; there are \"baton\", \"gf\" and \"endless\"")),
        }
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Preset {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Preset {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Preset, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preset_that_is_none_is_refused_with_the_one_that_was_meant() {
        for preset in Preset::ALL {
            assert_eq!(preset.to_string().parse(), Ok(preset));
        }
        let why = |text: &str| text.parse::<Preset>().unwrap_err();
        assert_eq!(why("endles"), "`endles` is no preset; did you mean \"endless\"?");
        assert_eq!(why("Baton"), "`Baton` is no preset; did you mean \"baton\"?");
        assert_eq!(why("nginx"), "`nginx` is no preset; there are \"baton\", \"gf\" and \"endless\"");
    }
}
