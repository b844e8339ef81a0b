//! The binary and the fixture plugins, built by cargo once a run, so that a test never meets yesterday's.
//!
//! Fixtures are built in the target directory of this very build (CARGO_TARGET_DIR is respected) and copied to
//! `baton-tests/` in it, one copy per variant. `BATON_TEST_PROFILE=release` builds all of it optimised.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{LazyLock, Mutex, OnceLock, PoisonError};

use serde_json::Value;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    Dev,
    Release,
}

static PROFILE: OnceLock<Profile> = OnceLock::new();

/// Chooses the profile; before anything is built. For benches, which mean nothing without optimisation.
pub fn use_profile(profile: Profile) {
    assert_eq!(*PROFILE.get_or_init(|| profile), profile, "the profile was chosen already");
}

pub fn profile() -> Profile {
    *PROFILE.get_or_init(|| match std::env::var("BATON_TEST_PROFILE").as_deref() {
        Ok("release") => Profile::Release,
        Ok("dev") | Err(_) => Profile::Dev,
        Ok(other) => panic!("BATON_TEST_PROFILE is `{other}`; write dev or release"),
    })
}

/// The workspace's folder.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace").to_owned()
}

/// The server.
pub fn baton() -> PathBuf {
    binary("baton-host", "baton")
}

/// A later version of the server, with what this one does not know, which fails where a file tells it to: see
/// `host/src/version.rs`.
pub fn next_baton() -> PathBuf {
    static BUILT: LazyLock<PathBuf> = LazyLock::new(|| {
        // In a folder of its own, or it would take the place of the server itself; what both are made of is shared.
        let folder = shared_target("next");
        let shared = baton().ancestors().nth(2).expect("a target folder has a folder for the profile").to_owned();
        let (folder, shared) = (folder.display().to_string(), format!("build.build-dir='{}'", shared.display()));
        let args = ["-p", "baton-host", "--bin", "baton", "--features", "next", "--target-dir", &folder, "--config"];
        let files = cargo("build", &[&args[..], &[&shared]].concat(), &[], &[]);
        let found = files.into_iter().find(|file| file.kind == "bin" && file.name == "baton");
        found.expect("cargo built no program").path
    });
    BUILT.clone()
}

/// A program of this package, such as `tether`.
pub fn own_binary(name: &str) -> PathBuf {
    binary("baton-tests", name)
}

/// The probe plugin, as its version `version`.
pub fn probe(version: &str) -> PathBuf {
    Build::of("probe").env("PROBE_VERSION", version).library(&format!("probe-{version}"))
}

/// The plain build of a fixture or example package.
pub fn plugin(package: &str) -> PathBuf {
    Build::of(package).library(package)
}

/// The probe, compiled with one more flag for rustc.
pub fn probe_with_flag(variant: &str, flag: &str) -> PathBuf {
    Build::of("probe").env("PROBE_VERSION", variant).flag(flag).library(&format!("probe-{variant}"))
}

/// A target directory beside the one of this build, kept from run to run, for builds that the program under test makes.
pub fn shared_target(name: &str) -> PathBuf {
    let baton = baton();
    let profile = baton.parent().expect("a file lies in a folder");
    profile.join("baton-tests").join(name)
}

fn binary(package: &str, name: &str) -> PathBuf {
    static BUILT: LazyLock<Mutex<HashMap<String, PathBuf>>> = LazyLock::new(Mutex::default);
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    built
        .entry(name.to_string())
        .or_insert_with(|| {
            let files = cargo("build", &["-p", package, "--bin", name], &[], &[]);
            let found = files.into_iter().find(|file| file.kind == "bin" && file.name == name);
            found.unwrap_or_else(|| panic!("cargo built no program `{name}`")).path
        })
        .clone()
}

struct Build<'a> {
    package: &'a str,
    env: Vec<(&'a str, &'a str)>,
    flags: Vec<&'a str>,
}

impl<'a> Build<'a> {
    fn of(package: &'a str) -> Build<'a> {
        Build { package, env: Vec::new(), flags: Vec::new() }
    }

    fn env(mut self, key: &'a str, value: &'a str) -> Self {
        self.env.push((key, value));
        self
    }

    fn flag(mut self, flag: &'a str) -> Self {
        self.flags.extend(["-C", flag]);
        self
    }

    /// Builds the cdylib, once a run, and keeps a copy under `variant`.
    fn library(self, variant: &str) -> PathBuf {
        static BUILT: LazyLock<Mutex<HashMap<String, PathBuf>>> = LazyLock::new(Mutex::default);
        // Held while cargo runs: two builds of one package with different variables would overwrite each other's file.
        let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(path) = built.get(variant) {
            return path.clone();
        }
        let files = cargo("rustc", &["-p", self.package, "--lib"], &self.flags, &self.env);
        let file = files
            .into_iter()
            .find(|file| file.kind == "cdylib" && file.name == self.package.replace('-', "_"))
            .unwrap_or_else(|| panic!("cargo built no cdylib of `{}`", self.package));
        let folder = file.path.parent().expect("a file lies in a folder").join("baton-tests");
        fs::create_dir_all(&folder).expect("failed to make the folder of the built fixtures");
        let (copy, partial) = (folder.join(format!("{variant}.so")), folder.join(format!(".{variant}.partial")));
        fs::copy(&file.path, &partial).expect("failed to copy a built fixture");
        fs::rename(&partial, &copy).expect("failed to rename a built fixture");
        built.insert(variant.to_string(), copy.clone());
        copy
    }
}

/// A file that cargo made.
struct Made {
    name: String,
    kind: String,
    path: PathBuf,
}

fn cargo(verb: &str, args: &[&str], flags: &[&str], env: &[(&str, &str)]) -> Vec<Made> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args([verb, "--quiet", "--message-format=json-render-diagnostics"])
        .args(args)
        .current_dir(workspace())
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    if profile() == Profile::Release {
        command.arg("--release");
    }
    if !flags.is_empty() {
        command.arg("--").args(flags);
    }
    let output = command.output().unwrap_or_else(|error| panic!("failed to run {command:?}: {error}"));
    assert!(output.status.success(), "{command:?} failed: {}", output.status);
    let mut made = Vec::new();
    for line in output.stdout.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"{")) {
        let message: Value = serde_json::from_slice(line).expect("cargo writes JSON");
        if message["reason"] != "compiler-artifact" {
            continue;
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
        for file in message["filenames"].as_array().into_iter().flatten() {
            made.push(Made {
                name: text(&message["target"]["name"]),
                kind: text(&message["target"]["kind"][0]),
                path: text(file).into(),
            });
        }
    }
    made
}
