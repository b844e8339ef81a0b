//! The environment that a build runs in. `cargo run -- dev` tells our process things about *our* crate and *its* toolchain;
//! passed on, they would make cargo build with another compiler and other libraries than in the crate's own directory, and
//! each build there and here would undo the other's.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// What cargo sets for the program that it runs (and never reads itself). Settings such as `CARGO_TARGET_DIR`, `CARGO_HOME`,
/// `CARGO_PROFILE_...` and `RUSTFLAGS` are the person's and stay.
const TOLD_TO_US: [&str; 14] = [
    "CARGO",
    "CARGO_MANIFEST_DIR",
    "CARGO_MANIFEST_PATH",
    "CARGO_MANIFEST_LINKS",
    "CARGO_CRATE_NAME",
    "CARGO_BIN_NAME",
    "CARGO_PRIMARY_PACKAGE",
    "CARGO_TARGET_TMPDIR",
    "CARGO_MAKEFLAGS",
    "CARGO_ENCODED_RUSTFLAGS",
    "OUT_DIR",
    "MAKEFLAGS",
    "RUSTUP_TOOLCHAIN",
    "RUST_RECURSION_COUNT",
];
const TOLD_PREFIXES: [&str; 4] = ["CARGO_PKG_", "CARGO_BIN_EXE_", "CARGO_FEATURE_", "CARGO_CFG_"];

/// How to call cargo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    pub cargo: OsString,
    pub variables: Vec<(OsString, OsString)>,
}

/// Out of our own `variables`; `exe` is our program.
pub fn clean(variables: impl IntoIterator<Item = (OsString, OsString)>, exe: &Path) -> Environment {
    let variables: Vec<_> = variables.into_iter().collect();
    let get = |name: &str| variables.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    let by_cargo = get("CARGO_MANIFEST_DIR").is_some();
    let cargo = match get("CARGO") {
        // Through rustup, $CARGO is one toolchain's; the `cargo` of the PATH chooses by the crate's directory.
        Some(_) if by_cargo && get("RUSTUP_TOOLCHAIN").is_some() => "cargo".into(),
        Some(cargo) if !cargo.is_empty() => cargo,
        _ => "cargo".into(),
    };
    if !by_cargo {
        return Environment { cargo, variables };
    }
    let variables = variables
        .into_iter()
        .filter(|(key, _)| !told_to_us(key))
        .filter_map(|(key, value)| match key.to_str() {
            Some("LD_LIBRARY_PATH") => library_path(&value, exe).map(|value| (key, value)),
            _ => Some((key, value)),
        })
        .collect();
    Environment { cargo, variables }
}

fn told_to_us(key: &OsStr) -> bool {
    let Some(key) = key.to_str() else { return false };
    TOLD_TO_US.contains(&key) || TOLD_PREFIXES.iter().any(|prefix| key.starts_with(prefix))
}

/// Without the directories that cargo put in: those of our build, and the toolchain's.
fn library_path(value: &OsStr, exe: &Path) -> Option<OsString> {
    let built = exe.parent();
    let ours = |dir: &PathBuf| {
        dir.as_os_str().is_empty()
            || built.is_some_and(|built| dir.starts_with(built))
            || dir.join("rustlib").is_dir()
            || dir
                .parent()
                .is_some_and(|lib| lib.ends_with("lib/rustlib") || lib.parent().is_some_and(|l| l.ends_with("rustlib")))
    };
    let kept: Vec<PathBuf> = std::env::split_paths(value).filter(|dir| !ours(dir)).collect();
    // They came out of a list, so they go into one.
    std::env::join_paths(kept).ok().filter(|joined| !joined.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cleaned(pairs: &[(&str, &str)]) -> Environment {
        let pairs = pairs.iter().map(|(key, value)| (key.into(), value.into()));
        clean(pairs, Path::new("/src/baton/target/debug/baton"))
    }

    fn keys(environment: &Environment) -> Vec<&str> {
        environment.variables.iter().filter_map(|(key, _)| key.to_str()).collect()
    }

    #[test]
    fn what_the_outer_cargo_said_of_us_goes_and_settings_stay() {
        let environment = cleaned(&[
            ("CARGO", "/t/bin/cargo"),
            ("CARGO_MANIFEST_DIR", "/src/baton/host"),
            ("CARGO_PKG_NAME", "baton-host"),
            ("CARGO_PKG_VERSION", "0.1.0"),
            ("CARGO_HOME", "/c"),
            ("CARGO_TARGET_DIR", "/t"),
            ("CARGO_PROFILE_DEV_DEBUG", "0"),
            ("CARGO_MAKEFLAGS", "-j --jobserver-fds=3,4"),
            ("RUSTFLAGS", "-C target-cpu=native"),
            ("PATH", "/bin"),
        ]);
        let stay = ["CARGO_HOME", "CARGO_TARGET_DIR", "CARGO_PROFILE_DEV_DEBUG", "RUSTFLAGS", "PATH"];
        assert_eq!(keys(&environment), stay);
        assert_eq!(environment.cargo, "/t/bin/cargo");
    }

    #[test]
    fn the_crate_s_own_toolchain_is_chosen_by_its_directory() {
        let environment =
            cleaned(&[("CARGO_MANIFEST_DIR", "/x"), ("CARGO", "/n/cargo"), ("RUSTUP_TOOLCHAIN", "nightly")]);
        assert_eq!((environment.cargo.to_str(), environment.variables.len()), (Some("cargo"), 0));
    }

    #[test]
    fn a_person_s_own_choice_stands() {
        let environment = cleaned(&[("CARGO", "/n/cargo"), ("RUSTUP_TOOLCHAIN", "nightly"), ("OUT_DIR", "/o")]);
        assert_eq!(environment.cargo, "/n/cargo");
        assert_eq!(keys(&environment), ["CARGO", "RUSTUP_TOOLCHAIN", "OUT_DIR"]);
        assert_eq!(cleaned(&[]).cargo, "cargo");
    }

    #[test]
    fn the_library_path_loses_only_what_cargo_put_in() {
        let path = "/src/baton/target/debug/deps:/src/baton/target/debug:/t/lib/rustlib/x86_64/lib:/opt/lib";
        let environment = cleaned(&[("CARGO_MANIFEST_DIR", "/x"), ("LD_LIBRARY_PATH", path)]);
        assert_eq!(environment.variables, [("LD_LIBRARY_PATH".into(), OsString::from("/opt/lib"))]);
        let only_ours = cleaned(&[("CARGO_MANIFEST_DIR", "/x"), ("LD_LIBRARY_PATH", "/src/baton/target/debug/deps")]);
        assert!(only_ours.variables.is_empty());
    }
}
