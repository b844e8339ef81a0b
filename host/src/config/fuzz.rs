//! Fuzz target: a configuration, and settings over it. What is accepted is valid TOML, holds its own rules, and is the same in
//! a child; what is refused says what is wrong.

use std::os::fd::AsRawFd;
use std::path::Path;

use serde::de::IntoDeserializer;

use super::{Config, ConfigError, Place, Problem, carried};
use crate::sys::sealed;

/// The document, and settings after it, each behind a zero.
pub fn load(bytes: &[u8]) -> bool {
    let mut parts = bytes.split(|byte| *byte == 0);
    let document = parts.next().unwrap_or_default();
    let settings: Vec<String> = parts.map(|part| String::from_utf8_lossy(part).into_owned()).collect();
    let file = sealed::seal(c"fuzz", document).expect("memory for a file");
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let variables = |name: &str| (name == "HOME").then(|| "/home/ann".to_owned());
    let loaded = Config::load_with(Some(Path::new(&path)), &settings, &variables);

    let text = std::str::from_utf8(document);
    let is_toml = text.is_ok_and(|text| text.parse::<toml::Table>().is_ok());
    match loaded {
        Ok((config, _)) => {
            assert!(is_toml, "it was read from what is no TOML");
            check_valid(&config);
            true
        }
        Err(ConfigError::Read { .. }) => {
            assert!(text.is_err(), "the file can be read");
            false
        }
        Err(ConfigError::Syntax { .. }) => {
            assert!(!is_toml, "this is TOML");
            false
        }
        Err(ConfigError::Refused { problems, .. }) => {
            assert!(!problems.is_empty());
            let lines = 1 + document.iter().filter(|byte| **byte == b'\n').count();
            problems.iter().for_each(|problem| check_problem(problem, lines, &settings));
            false
        }
        #[allow(unreachable_patterns, reason = "other errors are about the file itself")]
        Err(_) => false,
    }
}

fn check_valid(config: &Config) {
    assert_eq!(config.problems(), []);
    let sent = carried::serialize(config, serde_json::value::Serializer).expect("a configuration can be sent");
    let text = sent.to_string();
    let sent: serde_json::Value = serde_json::from_str(&text).expect("own JSON");
    let came = carried::deserialize(sent.into_deserializer()).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert_eq!(came, *config, "the child has another configuration");
}

fn check_problem(problem: &Problem, lines: usize, settings: &[String]) {
    assert!(!problem.why.is_empty());
    match &problem.place {
        Some(Place::Line(line)) => assert!((1..=lines).contains(line), "line {line} of {lines}"),
        Some(Place::Setting(setting)) => assert!(settings.contains(setting)),
        None => {}
    }
}
