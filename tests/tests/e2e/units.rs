//! The units in docs/systemd: what is promised of them is in them, and what they say is understood by the program and, where
//! it is installed, by systemd.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use baton_tests::artifacts;
use baton_tests::server::Workbench;

fn folder() -> PathBuf {
    artifacts::workspace().join("docs/systemd")
}

/// Key and value of each line of a section; a key may be there more than once.
struct Unit(Vec<(String, String, String)>);

impl Unit {
    fn read(path: &Path) -> Unit {
        let text =
            fs::read_to_string(path).unwrap_or_else(|error| panic!("failed to read {}: {error}", path.display()));
        let (mut section, mut lines) = (String::new(), Vec::new());
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            match (line.strip_prefix('[').and_then(|line| line.strip_suffix(']')), line.split_once('=')) {
                (Some(name), _) => section = name.into(),
                (None, Some((key, value))) => lines.push((section.clone(), key.into(), value.into())),
                (None, None) => panic!("{}: neither a section nor a setting: {line}", path.display()),
            }
        }
        Unit(lines)
    }

    #[track_caller]
    fn get(&self, section: &str, key: &str) -> &str {
        let mut values = self.0.iter().filter(|(found, name, _)| found == section && name == key);
        let (_, _, value) = values.next().unwrap_or_else(|| panic!("[{section}] has no {key}="));
        assert!(values.next().is_none(), "{key}= is there twice");
        value
    }

    #[track_caller]
    fn service(&self, key: &str) -> &str {
        self.get("Service", key)
    }
}

fn service() -> Unit {
    Unit::read(&folder().join("baton@.service"))
}

/// A value such as `45s` or `100ms`, as both systemd and Baton write it.
#[track_caller]
fn time(text: &str) -> Duration {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).expect("a unit of time"));
    let number: u64 = number.parse().expect("a number");
    match unit {
        "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        "min" => Duration::from_secs(number * 60),
        other => panic!("unknown unit of time: {other}"),
    }
}

/// A default of the configuration.
#[track_caller]
fn default(section: &str, key: &str) -> Duration {
    let outcome = Workbench::new().cli(&["run", "--print-config=reference"]);
    let text = outcome.assert_code(0).stdout.clone();
    let mut found = String::new();
    for line in text.lines() {
        if line.starts_with('[') {
            found = line.trim_matches(['[', ']']).to_string();
        } else if let Some((name, value)) = line.split_once(" = ")
            && name == key
            && found == section
        {
            return time(value.trim_matches('"'));
        }
    }
    panic!("no {key} in [{section}]")
}

#[test]
fn what_is_promised_of_the_unit_is_in_it() {
    let unit = service();
    for (key, value) in [
        ("Type", "notify"),
        ("NotifyAccess", "main"),
        ("KillMode", "mixed"),
        ("RestartPreventExitStatus", "78"),
        ("SuccessExitStatus", "3"),
        ("Restart", "on-failure"),
        ("OOMPolicy", "continue"),
        ("RuntimeDirectory", "baton/%i"),
        ("RuntimeDirectoryMode", "0700"),
        ("StateDirectory", "baton/%i"),
        ("StateDirectoryMode", "0711"),
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
    ] {
        assert_eq!(unit.service(key), value, "{key}=");
    }
    assert!(time(unit.service("WatchdogSec")) >= Duration::from_secs(10));
    assert_eq!(unit.service("Environment"), format!("FDSTORE={}", unit.service("FileDescriptorStoreMax")));
    assert!(time(unit.service("TimeoutStartSec")) > default("", "start_timeout"));
    assert!(time(unit.service("TimeoutStopSec")) > default("shutdown", "timeout") + default("shutdown", "delay"));
    // Children get another user, and plugins may be compilers.
    let capabilities = unit.service("CapabilityBoundingSet");
    for needed in ["CAP_NET_BIND_SERVICE", "CAP_SETUID", "CAP_SETGID", "CAP_CHOWN", "CAP_KILL"] {
        assert!(capabilities.split(' ').any(|capability| capability == needed), "{needed}");
    }
    assert!(!unit.0.iter().any(|(_, key, _)| key == "MemoryDenyWriteExecute" || key == "PrivateUsers"));
}

#[test]
fn the_commands_of_the_unit_are_what_may_be_typed() {
    let unit = service();
    let bench = Workbench::new();
    let config = bench.path().join("x.toml");
    fs::write(&config, "").unwrap();
    let words = |key: &str| -> Vec<String> {
        let command = unit.service(key).replace("/etc/baton/%i.toml", &config.display().to_string()).replace("%i", "x");
        let mut words = command.split(' ').map(str::to_owned);
        assert!(words.next().is_some_and(|program| Path::new(&program).is_absolute()), "{key}=");
        words.collect()
    };
    let mut start = words("ExecStart");
    start.push("--print-config".into());
    let printed = bench.cli(&start.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(printed.assert_code(0).stdout.contains("name = \"x\""), "{printed:?}");
    // Understood, though nobody is there.
    let reload = words("ExecReload");
    assert_eq!(reload[0], "reload");
    bench.cli(&reload.iter().map(String::as_str).collect::<Vec<_>>()).assert_code(69);
}

#[test]
fn the_drop_in_and_the_sockets_are_what_the_text_says() {
    let drop_in = Unit::read(&folder().join("baton@.service.d/notify-reload.conf"));
    assert_eq!((drop_in.service("Type"), drop_in.service("ReloadSignal")), ("notify-reload", "SIGHUP"));
    assert_eq!(drop_in.service("ExecReload"), "", "the command of the unit is taken back");
    let socket = Unit::read(&folder().join("baton@.socket"));
    assert_eq!(socket.get("Socket", "FileDescriptorName"), "web");
    let text = fs::read_to_string(artifacts::workspace().join("docs/SYSTEMD.md")).unwrap();
    let unit = service();
    // Its table explains what is there: `Key=` or `Key=value`, one or more in a row's first cell.
    let rows = text.split("## What the lines of the unit are for").nth(1).expect("the table");
    let cells = rows.lines().filter(|line| line.starts_with("| `")).filter_map(|line| line.split('|').nth(1));
    let named: Vec<(&str, &str)> =
        cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).filter_map(|word| word.split_once('=')).collect();
    assert!(named.len() > 10, "{named:?}");
    for (key, value) in named {
        assert!(value.is_empty() || unit.service(key) == value, "{key}={value} is not in the unit");
        assert!(unit.0.iter().any(|(_, found, _)| found == key), "{key}= is not in the unit");
    }
}

/// Skipped where systemd is not installed: the rest of this module reads the units by itself.
#[test]
fn systemd_understands_the_units() {
    let bench = Workbench::new();
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        eprintln!("systemd-analyze is not installed");
        return;
    }
    let copy = |name: &str| {
        let text = fs::read_to_string(folder().join(name)).unwrap();
        let path = bench.path().join(name);
        fs::write(&path, text.replace("/usr/bin/baton", &artifacts::baton().display().to_string())).unwrap();
        path
    };
    let verify = || {
        let paths = [copy("baton@.service"), copy("baton@.socket")];
        Command::new("systemd-analyze").arg("verify").args(paths).output().expect("failed to run systemd-analyze")
    };
    let output = verify();
    let said = String::from_utf8_lossy(&output.stderr);
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("baton@")).collect();
    assert!(output.status.success() && ours.is_empty(), "{said}");
}
