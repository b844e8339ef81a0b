//! The rules, each a function from a file's name and text to its breaches.

use std::fmt;

use crate::reader::{self, Use};

#[derive(Debug, PartialEq, Eq)]
pub struct Breach {
    pub file: String,
    pub line: usize,
    pub why: String,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.why)
    }
}

fn breach(file: &str, line: usize, why: impl Into<String>) -> Breach {
    Breach { file: file.into(), line, why: why.into() }
}

/// Floors of `host/src`, lowest first. On floors marked `true` modules are shared facts or the entry, and use one another.
const HOST: [(&[&str], bool); 5] = [
    (&["sys"], false),
    (&["config", "metrics", "report", "dirs", "version"], true),
    (&["control", "telemetry"], false),
    // Never each other.
    (&["master", "child"], false),
    (&["main", "cli", "client", "dev", "fuzz"], true),
];

/// Floors of `plugin-api/src`, lowest first. The author layer is one floor; adaptors know nothing of each other.
const PLUGIN: [(&[&str], bool); 4] = [
    (&["abi"], false),
    (&["ffi"], false),
    (
        &[
            "plugin",
            "request",
            "response",
            "body",
            "export",
            "handler",
            "app",
            "upgrade",
            "signals",
            "client_closed",
            "client_error",
        ],
        true,
    ),
    (&["service", "axum", "logging", "testing", "lib"], true),
];

/// The module path of a file below `root`: `a/b.rs` and `a/b/mod.rs` are `a::b`.
fn module<'a>(file: &'a str, root: &str) -> Option<Vec<&'a str>> {
    let path = file.strip_prefix(root)?.strip_suffix(".rs")?;
    let path = path.strip_suffix("/mod").unwrap_or(path);
    Some(path.split('/').collect())
}

fn floor(floors: &[(&[&str], bool)], module: &str) -> Option<usize> {
    floors.iter().position(|(modules, _)| modules.contains(&module))
}

/// What a file of the host uses of the host.
pub fn host_uses(file: &str, source: &str) -> Vec<Use> {
    module(file, "host/src/").map(|module| uses_from(&module, source)).unwrap_or_default()
}

/// The crate's root is not a module: `super::` in `main.rs` or `lib.rs` leads nowhere, and `tests` in it are its own.
fn uses_from(module: &[&str], source: &str) -> Vec<Use> {
    let path = if matches!(module, ["main" | "lib"]) { &[] } else { module };
    reader::uses(path, source)
}

fn floors(table: &[(&[&str], bool)], file: &str, module: &[&str], source: &str) -> Vec<Breach> {
    let own = module[0];
    let Some(own_floor) = floor(table, own) else {
        return vec![breach(
            file,
            1,
            format!("`{own}` is on no floor: add it to the table here and in ARCHITECTURE.md"),
        )];
    };
    let mut found = Vec::new();
    for used in uses_from(module, source) {
        let Some(target) = used.path.first() else { continue };
        // Not a module: an item of the crate's root.
        let Some(floor) = floor(table, target) else { continue };
        let open = table[own_floor].1;
        if target != own && (floor > own_floor || floor == own_floor && !open) {
            found.push(breach(
                file,
                used.line,
                format!("`{own}` (floor {own_floor}) uses `{}` (floor {floor})", used.path.join("::")),
            ));
        }
    }
    found
}

pub fn host_floors(file: &str, source: &str) -> Vec<Breach> {
    module(file, "host/src/").map(|module| floors(&HOST, file, &module, source)).unwrap_or_default()
}

pub fn plugin_floors(file: &str, source: &str) -> Vec<Breach> {
    module(file, "plugin-api/src/").map(|module| floors(&PLUGIN, file, &module, source)).unwrap_or_default()
}

/// Words that only certain files of the host may say: who may open a library, and who may speak HTTP.
const SOLE_USERS: [(&str, &[&str]); 3] = [
    // The child's plugin module reads its errors.
    ("libloading", &["host/src/sys/", "host/src/child/plugin"]),
    ("dylib", &["host/src/sys/", "host/src/child/plugin"]),
    ("abi_stable", &["host/src/child/plugin"]),
];

pub fn sole_users(file: &str, source: &str) -> Vec<Breach> {
    if !file.starts_with("host/src/") {
        return Vec::new();
    }
    let tokens = reader::tokens(source);
    let mut found = Vec::new();
    for (word, allowed) in SOLE_USERS {
        if allowed.iter().any(|prefix| file.starts_with(prefix)) {
            continue;
        }
        let said = tokens.iter().filter(|token| token.text == word);
        found.extend(
            said.map(|token| breach(file, token.line, format!("`{word}` is for {} only", allowed.join(" and ")))),
        );
    }
    found
}

/// Where `unsafe` may stand.
const FENCES: [&str; 8] = [
    // A plugin that does what no safe library offers.
    "tests/fixtures/hostile/",
    "host/src/sys/",
    "host/src/child/plugin",
    "host/src/child/bridge",
    // The plugin's side of the ABI by hand, for unit tests of the bridge.
    "host/src/child/serve/tests/fake.rs",
    "plugin-api/src/abi/",
    "plugin-api/src/ffi/",
    "plugin-api/src/export",
];

pub fn unsafe_code(file: &str, source: &str) -> Vec<Breach> {
    if FENCES.iter().any(|fence| file.starts_with(fence)) {
        return Vec::new();
    }
    let tokens = reader::tokens(source);
    let said = tokens.iter().filter(|token| token.text == "unsafe");
    said.map(|token| breach(file, token.line, "`unsafe` outside of the fences")).collect()
}

pub fn opening(file: &str, source: &str) -> Vec<Breach> {
    if source.starts_with("//! ") { Vec::new() } else { vec![breach(file, 1, "opens without a `//!` block")] }
}

const LONGEST: usize = 900;

pub fn length(file: &str, source: &str) -> Vec<Breach> {
    let lines = source.lines().count();
    if lines <= LONGEST { Vec::new() } else { vec![breach(file, lines, format!("has {lines} lines, above {LONGEST}"))] }
}

pub fn committed(file: &str) -> Vec<Breach> {
    let name = file.rsplit('/').next().unwrap_or(file);
    let is_library = name.ends_with(".so") || name.contains(".so.");
    if is_library { vec![breach(file, 1, "a shared library is never committed")] } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(breaches: Vec<Breach>) -> Vec<String> {
        breaches.into_iter().map(|breach| breach.why).collect()
    }

    #[test]
    fn a_use_of_a_higher_floor_is_a_breach() {
        for (file, source, count) in [
            ("host/src/config.rs", "use crate::master::state;", 1),
            ("host/src/sys/mod.rs", "use super::report::Report;", 1),
            ("host/src/control/mod.rs", "use crate::{config::Config, telemetry};", 1),
            ("host/src/master/spawn.rs", "fn f() { crate::cli::run() }", 1),
            ("host/src/child/mod.rs", "use crate::{control, report::Report, sys::process};", 0),
            ("host/src/dirs.rs", "use crate::config::Config;", 0),
            ("host/src/main.rs", "mod tests { use super::*; } use crate::master;", 0),
        ] {
            assert_eq!(host_floors(file, source).len(), count, "{file}: {source}");
        }
    }

    #[test]
    fn master_and_child_never_use_each_other() {
        assert_eq!(
            why(host_floors("host/src/master/state.rs", "use super::super::child::drain;")),
            ["`master` (floor 3) uses `child::drain` (floor 3)"]
        );
        assert_eq!(host_floors("host/src/child/serve/h1.rs", "use crate::master;").len(), 1);
        assert_eq!(host_floors("host/src/child/serve/h1.rs", "use crate::child::drain; use super::super::route;"), []);
    }

    #[test]
    fn a_module_on_no_floor_is_a_breach() {
        assert_eq!(host_floors("host/src/attic.rs", "").len(), 1);
        assert_eq!(plugin_floors("plugin-api/src/attic/mod.rs", "").len(), 1);
    }

    #[test]
    fn the_plugin_side_has_floors_too() {
        assert_eq!(plugin_floors("plugin-api/src/abi/body.rs", "use crate::ffi;").len(), 1);
        assert_eq!(plugin_floors("plugin-api/src/ffi/mod.rs", "use crate::{abi, request};").len(), 1);
        assert_eq!(plugin_floors("plugin-api/src/body.rs", "use crate::testing;").len(), 1);
        assert_eq!(plugin_floors("plugin-api/src/testing.rs", "use crate::{abi, body, plugin};"), []);
    }

    #[test]
    fn only_the_child_opens_libraries() {
        assert_eq!(sole_users("host/src/master/store.rs", "use crate::sys::dylib::Library;").len(), 1);
        assert_eq!(sole_users("host/src/child/route.rs", "use libloading::Library;").len(), 1);
        assert_eq!(sole_users("host/src/child/plugin.rs", "use crate::sys::dylib; use abi_stable::X;"), []);
        assert_eq!(sole_users("host/src/master/store.rs", "// dylib\nlet x = \"libloading\";"), []);
    }

    #[test]
    fn unsafe_outside_of_the_fences_is_a_breach() {
        let source = "fn f() {\n    unsafe { g() }\n}";
        assert_eq!(
            unsafe_code("host/src/master/spawn.rs", source),
            [breach("host/src/master/spawn.rs", 2, "`unsafe` outside of the fences")]
        );
        assert_eq!(unsafe_code("tests/src/server.rs", source).len(), 1);
        assert_eq!(unsafe_code("host/src/sys/process.rs", source), []);
        assert_eq!(unsafe_code("host/src/main.rs", "// unsafe\n#![deny(unsafe_code)]"), []);
    }

    #[test]
    fn openings_lengths_and_libraries_are_looked_at() {
        assert_eq!(opening("a.rs", "use std::io;\n").len(), 1);
        assert_eq!(opening("a.rs", "//! Owns.\n"), []);
        assert_eq!(length("a.rs", &"\n".repeat(901)).len(), 1);
        assert_eq!(length("a.rs", &"\n".repeat(900)), []);
        assert_eq!(committed("plugins/libhello.so").len(), 1);
        assert_eq!(committed("plugins/libhello.so.1").len(), 1);
        assert_eq!(committed("host/src/solo.rs"), []);
    }
}
