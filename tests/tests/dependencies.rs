//! Licences, sources and bans of `deny.toml`, held from `cargo metadata`: what `cargo deny check licenses bans sources` does,
//! without a tool that takes longer to build than all the rest. Each rule is also run on a tree that breaks it.

use std::collections::BTreeSet;
use std::process::Command;

use serde::Deserialize;

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Clone, Deserialize)]
struct Package {
    name: String,
    license: Option<String>,
    /// None for the workspace's own.
    source: Option<String>,
}

#[derive(Deserialize)]
struct Deny {
    graph: Graph,
    licenses: Licenses,
    bans: Bans,
    sources: Sources,
}

#[derive(Deserialize)]
struct Graph {
    targets: Vec<String>,
}

#[derive(Deserialize)]
struct Licenses {
    allow: Vec<String>,
    exceptions: Vec<Exception>,
}

#[derive(Deserialize)]
struct Exception {
    #[serde(rename = "crate")]
    name: String,
    allow: Vec<String>,
}

#[derive(Deserialize)]
struct Bans {
    deny: Vec<Ban>,
}

#[derive(Deserialize)]
struct Ban {
    #[serde(rename = "crate")]
    name: String,
    reason: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Sources {
    allow_registry: Vec<String>,
}

fn deny() -> Deny {
    let text = std::fs::read_to_string(baton_tests::artifacts::workspace().join("deny.toml")).expect("deny.toml");
    toml::from_str(&text).expect("deny.toml is TOML of this form")
}

/// Every package that is built for one of the targets, the tests' included.
fn packages(deny: &Deny) -> Vec<Package> {
    let mut command = Command::new(env!("CARGO"));
    command.args(["metadata", "--format-version", "1", "--locked", "--all-features"]);
    command.args(deny.graph.targets.iter().flat_map(|target| ["--filter-platform", target]));
    let output = command.current_dir(baton_tests::artifacts::workspace()).output().expect("failed to run cargo");
    assert!(output.status.success(), "cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Metadata = serde_json::from_slice(&output.stdout).expect("cargo metadata writes JSON");
    assert!(metadata.packages.len() > 100, "only {} packages were found", metadata.packages.len());
    metadata.packages
}

fn bad_licences(deny: &Deny, packages: &[Package]) -> Vec<String> {
    let is_allowed = |package: &Package| {
        let exceptions = deny.licenses.exceptions.iter().filter(|exception| exception.name == package.name);
        let allowed: BTreeSet<&str> = deny
            .licenses
            .allow
            .iter()
            .chain(exceptions.flat_map(|exception| &exception.allow))
            .map(String::as_str)
            .collect();
        let text = package.license.as_deref().unwrap_or_default();
        spdx::Expression::parse_mode(text, spdx::ParseMode::LAX)
            .is_ok_and(|licence| licence.evaluate(|required| allowed.contains(required.to_string().as_str())))
    };
    let bad = packages.iter().filter(|package| !is_allowed(package));
    bad.map(|package| format!("{}: {}", package.name, package.license.as_deref().unwrap_or("no licence"))).collect()
}

fn bad_sources(deny: &Deny, packages: &[Package]) -> Vec<String> {
    let is_allowed = |source: &String| {
        source
            .strip_prefix("registry+")
            .is_some_and(|registry| deny.sources.allow_registry.iter().any(|one| one == registry))
    };
    let bad = packages.iter().filter_map(|package| Some((package, package.source.as_ref()?)));
    bad.filter(|(_, source)| !is_allowed(source))
        .map(|(package, source)| format!("{}: {source}", package.name))
        .collect()
}

fn banned(deny: &Deny, packages: &[Package]) -> Vec<String> {
    let ban = |package: &Package| deny.bans.deny.iter().find(|ban| ban.name == package.name);
    packages.iter().filter_map(ban).map(|ban| format!("{}: {}", ban.name, ban.reason)).collect()
}

fn package(name: &str, license: &str, source: &str) -> Package {
    Package { name: name.into(), license: Some(license.into()), source: Some(source.into()) }
}

const NONE: [String; 0] = [];

#[test]
fn every_dependency_has_a_licence_that_deny_toml_allows() {
    let deny = deny();
    let packages = packages(&deny);
    assert_eq!(bad_licences(&deny, &packages), NONE);
    for exception in &deny.licenses.exceptions {
        let others =
            Deny { licenses: Licenses { allow: deny.licenses.allow.clone(), exceptions: vec![] }, ..self::deny() };
        let needs = |bad: String| bad.starts_with(&format!("{}: ", exception.name));
        assert!(bad_licences(&others, &packages).into_iter().any(needs), "nothing needs that for {}", exception.name);
    }
}

#[test]
fn licences_that_deny_toml_does_not_name_are_refused() {
    let deny = deny();
    let refused = |licence: &str| !bad_licences(&deny, &[package("x", licence, "")]).is_empty();
    assert!(refused("GPL-3.0-only") && refused("MIT AND GPL-3.0-only") && refused("MPL-2.0") && refused("no licence"));
    assert!(!refused("GPL-3.0-only OR MIT") && !refused("MIT/Apache-2.0") && !refused("(MIT OR Unlicense) AND ISC"));
    assert_eq!(bad_licences(&deny, &[Package { license: None, ..package("x", "", "") }]), ["x: no licence"]);
}

#[test]
fn every_dependency_comes_from_the_registry() {
    let deny = deny();
    assert_eq!(bad_sources(&deny, &packages(&deny)), NONE);
    let index = "registry+https://github.com/rust-lang/crates.io-index";
    for (source, bad) in [(index, 0), ("git+https://github.com/a/b#1", 1), ("registry+https://example.org/index", 1)] {
        assert_eq!(bad_sources(&deny, &[package("x", "MIT", source)]).len(), bad, "{source}");
    }
}

#[test]
fn no_dependency_is_banned() {
    let deny = deny();
    assert_eq!(banned(&deny, &packages(&deny)), NONE);
    let first = deny.bans.deny.first().expect("a ban");
    assert_eq!(banned(&deny, &[package(&first.name, "MIT", "")]).len(), 1);
    assert!(deny.bans.deny.iter().all(|ban| !ban.reason.is_empty()), "each ban has its reason");
}
