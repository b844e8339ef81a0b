//! What cargo says: its messages (one JSON object a line) and its dep-info files, as data. Pure, except for reading a file.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// A line of `cargo build --message-format=json`.
#[derive(Debug, Deserialize)]
#[serde(tag = "reason")]
pub enum Message {
    #[serde(rename = "compiler-artifact")]
    Artifact(Artifact),
    #[serde(rename = "compiler-message")]
    Diagnostic { message: Diagnostic },
    #[serde(other)]
    Other,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Artifact {
    pub manifest_path: PathBuf,
    pub target: Target,
    pub filenames: Vec<PathBuf>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Target {
    pub crate_types: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub struct Diagnostic {
    pub level: String,
    pub rendered: Option<String>,
}

impl Artifact {
    /// The shared library, if this is one.
    fn library(&self) -> Option<&Path> {
        let is_plugin = self.target.crate_types.iter().any(|kind| kind == "cdylib");
        let file = self.filenames.iter().find(|file| file.extension().is_some_and(|ext| ext == "so"));
        file.filter(|_| is_plugin).map(PathBuf::as_path)
    }
}

/// The plugins among `artifacts`: those of the crate itself, or, if it has none (a workspace), all of them. A dependency that
/// could be a plugin too is none here.
pub fn plugins(artifacts: &[Artifact], manifest: &Path) -> Vec<PathBuf> {
    let libraries = |of: &dyn Fn(&Artifact) -> bool| -> Vec<PathBuf> {
        artifacts.iter().filter(|artifact| of(artifact)).filter_map(Artifact::library).map(Path::to_owned).collect()
    };
    let own = libraries(&|artifact| artifact.manifest_path == manifest);
    if own.is_empty() { libraries(&|_| true) } else { own }
}

/// The sources of `library`, from the dep-info file beside it: its own files and those of every path dependency, whatever
/// they were included by. What a build script wrote lies in the target directory and is no source.
pub fn sources(library: &Path, base: &Path) -> std::io::Result<BTreeSet<PathBuf>> {
    let text = std::fs::read_to_string(library.with_extension("d"))?;
    let target = target_dir(library);
    let listed = parse_dep_info(&text).into_iter().map(|path| base.join(path));
    Ok(listed.filter(|path| target.is_none_or(|target| !path.starts_with(target))).collect())
}

/// The target directory that `path` lies in: cargo marks it for backup programs.
pub fn target_dir(path: &Path) -> Option<&Path> {
    path.ancestors().skip(1).find(|dir| dir.join("CACHEDIR.TAG").is_file())
}

/// The right sides of makefile rules. A space within a name is `\ `.
fn parse_dep_info(text: &str) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((_, names)) = line.split_once(": ") else { continue };
        let mut name = String::new();
        let mut chars = names.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '\\' if chars.peek() == Some(&' ') => name.extend(chars.next()),
                ' ' => paths.extend(Some(std::mem::take(&mut name)).filter(|name| !name.is_empty())),
                c => name.push(c),
            }
        }
        paths.extend(Some(name).filter(|name| !name.is_empty()));
    }
    paths.into_iter().map(PathBuf::from).collect()
}

/// Without the colours and cursor movements of a terminal.
pub fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            // CSI: up to a letter; other escapes have one more character.
            '\x1b' => {
                if chars.next() == Some('[') {
                    chars.find(|c| ('@'..='~').contains(c));
                }
            }
            c => plain.push(c),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn artifact(line: &str) -> Artifact {
        match serde_json::from_str(line).unwrap() {
            Message::Artifact(artifact) => artifact,
            other => panic!("{other:?}"),
        }
    }

    /// As cargo 1.95 writes it, shortened.
    fn hello() -> Artifact {
        artifact(
            r#"{"reason":"compiler-artifact","package_id":"path+file:///w/hello#0.1.0","manifest_path":"/w/hello/Cargo.toml",
            "target":{"kind":["cdylib"],"crate_types":["cdylib"],"name":"hello","src_path":"/w/hello/src/lib.rs","edition":"2024"},
            "profile":{"opt_level":"0"},"features":[],"filenames":["/w/target/debug/libhello.so"],"executable":null,"fresh":false}"#
                .replace('\n', "")
                .as_str(),
        )
    }

    fn with(manifest: &str, kinds: &[&str], files: &[&str]) -> Artifact {
        Artifact {
            manifest_path: manifest.into(),
            target: Target { crate_types: kinds.iter().map(|&kind| kind.into()).collect() },
            filenames: files.iter().map(PathBuf::from).collect(),
        }
    }

    #[test]
    fn the_crate_s_library_is_found_among_the_artifacts() {
        let dependency = with("/w/dep/Cargo.toml", &["cdylib", "rlib"], &["/t/libdep.rlib", "/t/libdep.so"]);
        let all = [with("/r/serde/Cargo.toml", &["lib"], &["/t/libserde.rlib"]), dependency, hello()];
        assert_eq!(plugins(&all, Path::new("/w/hello/Cargo.toml")), [Path::new("/w/target/debug/libhello.so")]);
    }

    #[test]
    fn a_workspace_gives_all_its_libraries_and_a_program_none() {
        let other = with("/w/other/Cargo.toml", &["cdylib"], &["/t/libother.so"]);
        let manifest = Path::new("/w/Cargo.toml");
        assert_eq!(plugins(&[hello(), other], manifest).len(), 2);
        let macros = with("/w/m/Cargo.toml", &["proc-macro"], &["/t/libm.so"]);
        assert!(plugins(&[macros, with("/w/Cargo.toml", &["bin"], &["/t/x"])], manifest).is_empty());
    }

    #[test]
    fn other_messages_are_understood_as_such() {
        for line in [
            r#"{"reason":"build-finished","success":true}"#,
            r#"{"reason":"build-script-executed","package_id":"x","linked_libs":[]}"#,
            r#"{"reason":"something-new"}"#,
        ] {
            assert!(matches!(serde_json::from_str(line).unwrap(), Message::Other), "{line}");
        }
        let line = r#"{"reason":"compiler-message","message":{"level":"error","rendered":"error: no\n","code":null}}"#;
        let Message::Diagnostic { message } = serde_json::from_str(line).unwrap() else { panic!("{line}") };
        assert_eq!((message.level.as_str(), message.rendered.as_deref()), ("error", Some("error: no\n")));
        assert!(serde_json::from_str::<Message>("Compiling hello").is_err());
    }

    #[test]
    fn dep_info_names_every_source_once_and_keeps_its_spaces() {
        let text = "/t/libhello.so: /w/src/lib.rs /w/my\\ files/a.html\n\n/w/src/lib.rs:\n# env-dep:X=y\n";
        assert_eq!(parse_dep_info(text), [Path::new("/w/src/lib.rs"), Path::new("/w/my files/a.html")]);
        assert!(parse_dep_info("").is_empty());
        assert!(parse_dep_info("nonsense").is_empty());
    }

    #[test]
    fn what_was_generated_is_no_source() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        std::fs::create_dir_all(target.join("debug")).unwrap();
        std::fs::write(target.join("CACHEDIR.TAG"), "").unwrap();
        let library = target.join("debug/libhello.so");
        let generated = target.join("debug/build/x/out/gen.rs");
        let dep_info = format!("{}: src/lib.rs {}\n", library.display(), generated.display());
        std::fs::write(library.with_extension("d"), dep_info).unwrap();
        let found = sources(&library, Path::new("/w")).unwrap();
        assert_eq!(found.into_iter().collect::<Vec<_>>(), [Path::new("/w/src/lib.rs")]);
        assert!(sources(Path::new("/nowhere/libx.so"), Path::new("/w")).is_err());
    }

    #[test]
    fn colours_are_for_terminals() {
        assert_eq!(plain("\x1b[1m\x1b[38;5;9merror\x1b[0m: no\n"), "error: no\n");
        assert_eq!(plain("plain ö"), "plain ö");
    }
}
