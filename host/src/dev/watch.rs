//! What to watch, which events count, and when they have settled. Decides; `attend` waits and acts.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, EventKind, MetadataKind, ModifyKind};

use super::cargo;
use crate::master::watcher::settle::{self, Window};

/// An editor writes, renames and touches within a few milliseconds.
const WINDOW: Window = Window { quiet: Duration::from_millis(50), most: Duration::from_secs(1) };
/// Files that count wherever they change, beside `*.rs`.
const NAMES: [&str; 6] =
    ["Cargo.toml", "Cargo.lock", "rust-toolchain", "rust-toolchain.toml", "config.toml", "baton.toml"];

/// The directories to watch, and whether with all below: those of the sources, of their packages' and workspaces' manifests,
/// and each package's `src`, where a file may turn up that no build has seen yet. Not the target directory: its thousands of
/// files change with each build.
pub fn plan(crates: &[PathBuf], sources: &BTreeSet<PathBuf>) -> BTreeMap<PathBuf, bool> {
    let of_sources: BTreeSet<&Path> = sources.iter().filter_map(|source| source.parent()).collect();
    let mut packages: BTreeSet<PathBuf> = crates.iter().cloned().collect();
    packages.extend(of_sources.iter().filter_map(|dir| above(dir, |dir| dir.join("Cargo.toml").is_file())));
    let roots: Vec<PathBuf> = packages.iter().filter_map(|dir| above(dir, is_workspace)).collect();
    let mut plan: BTreeMap<PathBuf, bool> = of_sources.into_iter().map(|dir| (dir.to_owned(), false)).collect();
    for package in packages {
        let src = package.join("src");
        if src.is_dir() {
            plan.insert(src, true);
        }
        plan.entry(package).or_insert(false);
    }
    for root in roots {
        let settings = root.join(".cargo");
        if settings.is_dir() {
            plan.insert(settings, false);
        }
        plan.entry(root).or_insert(false);
    }
    plan
}

fn above(dir: &Path, is_it: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    dir.ancestors().find(|dir| is_it(dir)).map(Path::to_owned)
}

fn is_workspace(dir: &Path) -> bool {
    let manifest = std::fs::read_to_string(dir.join("Cargo.toml")).unwrap_or_default();
    manifest.parse::<toml::Table>().is_ok_and(|table| table.contains_key("workspace"))
}

/// Whether something was written, and not only looked at: cargo reads every source in each build.
pub fn is_change(kind: &EventKind) -> bool {
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Access(_) => false,
        EventKind::Modify(ModifyKind::Metadata(kind)) => matches!(kind, MetadataKind::WriteTime),
        _ => true,
    }
}

/// Whether a change of `path` may change what is built.
pub fn counts(path: &Path, sources: &BTreeSet<PathBuf>) -> bool {
    if sources.contains(path) {
        return true;
    }
    let Some(name) = path.file_name().and_then(OsStr::to_str) else { return false };
    // An editor's lock, swap or backup beside the file itself.
    if name.starts_with('.') || name.ends_with('~') || cargo::target_dir(path).is_some() {
        return false;
    }
    let is_rust = path.extension().is_some_and(|ext| ext == "rs");
    // A directory that was moved takes its sources along without a word on each.
    let holds_sources = sources.range(path.to_owned()..).next().is_some_and(|source| source.starts_with(path));
    is_rust || NAMES.contains(&name) || (holds_sources && !path.is_dir())
}

/// Changes that belong together.
#[derive(Debug, Default)]
pub struct Settle {
    first: Option<Change>,
    burst: settle::Settle<Instant>,
}

/// What a rebuild is for: the file that changed first, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub path: PathBuf,
    pub at: Instant,
}

impl Settle {
    pub fn note(&mut self, path: PathBuf, at: Instant) {
        self.first.get_or_insert(Change { path, at });
        self.burst.note(at);
    }

    /// When to act, if nothing more comes.
    pub fn due(&self) -> Option<Instant> {
        self.burst.due(WINDOW)
    }

    pub fn take(&mut self) -> Option<Change> {
        self.burst.clear();
        self.first.take()
    }
}

#[cfg(test)]
mod tests {
    use notify::event::{CreateKind, DataChange, RemoveKind, RenameMode};

    use super::*;

    fn touch(path: &Path, text: &str) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn sources_manifests_and_workspaces_are_watched_and_targets_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        touch(&root.join("Cargo.toml"), "[workspace]\nmembers = [\"app\", \"dep\"]\n");
        touch(&root.join(".cargo/config.toml"), "");
        touch(&root.join("target/CACHEDIR.TAG"), "");
        touch(&root.join("app/Cargo.toml"), "[package]\nname = \"app\"\n");
        touch(&root.join("app/src/lib.rs"), "");
        touch(&root.join("dep/Cargo.toml"), "[package]\nname = \"dep\"\n");
        touch(&root.join("dep/src/lib.rs"), "");
        touch(&root.join("app/templates/a.html"), "");
        let sources = ["app/src/lib.rs", "app/templates/a.html", "dep/src/lib.rs"].map(|name| root.join(name)).into();
        let plan = plan(&[root.join("app")], &sources);
        let expected = [
            ("", false),
            (".cargo", false),
            ("app", false),
            ("app/src", true),
            ("app/templates", false),
            ("dep", false),
            ("dep/src", true),
        ];
        assert_eq!(plan, expected.map(|(name, deep)| (root.join(name), deep)).into());
    }

    #[test]
    fn before_the_first_build_the_crate_itself_is_watched() {
        let dir = tempfile::tempdir().unwrap();
        touch(&dir.path().join("Cargo.toml"), "[package]\nname = \"app\"\n");
        touch(&dir.path().join("src/lib.rs"), "");
        let plan = plan(&[dir.path().to_owned()], &BTreeSet::new());
        assert_eq!(plan, [(dir.path().to_owned(), false), (dir.path().join("src"), true)].into());
    }

    #[test]
    fn what_was_only_read_is_no_change() {
        assert!(!is_change(&EventKind::Access(AccessKind::Open(AccessMode::Any))));
        assert!(!is_change(&EventKind::Access(AccessKind::Close(AccessMode::Read))));
        assert!(!is_change(&EventKind::Modify(ModifyKind::Metadata(MetadataKind::Any))));
        assert!(is_change(&EventKind::Access(AccessKind::Close(AccessMode::Write))));
        assert!(is_change(&EventKind::Modify(ModifyKind::Data(DataChange::Any))));
        assert!(is_change(&EventKind::Modify(ModifyKind::Name(RenameMode::To))));
        assert!(is_change(&EventKind::Create(CreateKind::File)));
        assert!(is_change(&EventKind::Remove(RemoveKind::File)));
    }

    #[test]
    fn only_what_is_built_from_counts() {
        let dir = tempfile::tempdir().unwrap();
        touch(&dir.path().join("target/CACHEDIR.TAG"), "");
        let sources: BTreeSet<PathBuf> = [dir.path().join("src/lib.rs"), dir.path().join("pages/a.html")].into();
        for (name, expected) in [
            ("src/lib.rs", true),
            ("src/new.rs", true),
            ("pages/a.html", true),
            ("pages/b.html", false),
            ("Cargo.toml", true),
            ("Cargo.lock", true),
            ("baton.toml", true),
            ("README.md", false),
            ("src/.lib.rs.swp", false),
            ("src/.#lib.rs", false),
            ("src/lib.rs~", false),
            ("src/4913", false),
            ("pages", true),
            ("target/debug/build/x/out/gen.rs", false),
        ] {
            assert_eq!(counts(&dir.path().join(name), &sources), expected, "{name}");
        }
    }

    #[test]
    fn a_burst_is_one_change_and_an_endless_one_is_cut() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut settle = Settle::default();
        assert_eq!(settle.due(), None);
        settle.note("a".into(), at(0));
        settle.note("b".into(), at(30));
        assert_eq!(settle.due(), Some(at(80)));
        assert_eq!(settle.take(), Some(Change { path: "a".into(), at: at(0) }));
        assert_eq!((settle.due(), settle.take()), (None, None));
        for ms in (0..5000).step_by(20) {
            settle.note("a".into(), at(ms));
        }
        assert_eq!(settle.due(), Some(at(1000)));
    }
}
