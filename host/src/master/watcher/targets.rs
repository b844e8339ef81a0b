//! What is watched: which files, what they are from outside, and which directory entries lead to them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::OsString;
use std::io;
use std::path::{Component, Path, PathBuf};

use crate::config::Config;
use crate::master::store;
use crate::sys::files::Identity;

/// As the kernel: symlink(7), ELOOP.
const MOST_LINKS: usize = 40;

/// Files by name, and every plugin file of these folders.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Targets {
    pub files: BTreeSet<PathBuf>,
    pub folders: BTreeSet<PathBuf>,
    /// Those of the folders in which the plugins' signatures count as well.
    pub signed: BTreeSet<PathBuf>,
}

/// What is there, from outside: nothing for a file that cannot be reached. What is absent is not in it.
pub type Found = BTreeMap<PathBuf, Option<Identity>>;

/// What an operation has found, before it read it.
#[derive(Clone, Debug, Default)]
pub struct Sighting {
    /// Where it has looked.
    pub covered: Targets,
    pub found: Found,
    /// What it took instead, if that is known: a file may have been completed meanwhile.
    pub taken: BTreeMap<PathBuf, String>,
    /// It was refused since somebody was still writing to this.
    pub being_written: Option<PathBuf>,
}

impl Sighting {
    /// Notes these as they are now.
    pub fn look_at(&mut self, targets: Targets) {
        self.found.extend(targets.find());
        self.covered = std::mem::take(&mut self.covered).with(targets);
    }
}

impl Targets {
    pub fn of_files(files: &[PathBuf]) -> Targets {
        Targets { files: files.iter().cloned().collect(), ..Targets::default() }
    }

    /// All that a set with `config` is made of, but for the configuration itself.
    pub fn of_config(config: &Config) -> Targets {
        let certificates = config.server.iter().flat_map(|server| &server.tls);
        let certificates = certificates.flat_map(|certificate| [&certificate.cert, &certificate.key]);
        let plugins: Vec<PathBuf> = config.plugins.values().filter_map(|plugin| plugin.file.clone()).collect();
        let folders = BTreeSet::from([config.plugin_dir.clone()]);
        let must_sign = !config.store.signers.is_empty();
        let signatures: Vec<PathBuf> =
            plugins.iter().filter(|_| must_sign).map(|file| store::signature_of(file)).collect();
        Targets {
            files: certificates.cloned().chain(plugins).chain(signatures).collect(),
            signed: if must_sign { folders.clone() } else { BTreeSet::new() },
            folders,
        }
    }

    pub fn with(mut self, other: Targets) -> Targets {
        self.files.extend(other.files);
        self.folders.extend(other.folders);
        self.signed.extend(other.signed);
        self
    }

    pub fn covers(&self, path: &Path) -> bool {
        self.files.contains(path)
            || self.folders.contains(path)
            || path.parent().is_some_and(|parent| self.folders.contains(parent))
    }

    /// Each as it is now. A folder that cannot be read stands for what is in it.
    pub fn find(&self) -> Found {
        let mut found = Found::new();
        let mut signatures = Vec::new();
        for folder in &self.folders {
            match store::list(folder) {
                Ok(files) => {
                    if self.signed.contains(folder) {
                        signatures.extend(files.iter().map(|path| store::signature_of(path)));
                    }
                    found.extend(files.into_iter().map(|path| {
                        let identity = identity(&path).ok();
                        (path, identity)
                    }));
                }
                Err(_) => drop(found.insert(folder.clone(), None)),
            }
        }
        for path in self.files.iter().chain(&signatures) {
            match identity(path) {
                Ok(identity) => drop(found.insert(path.clone(), Some(identity))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(_) => drop(found.insert(path.clone(), None)),
            }
        }
        found
    }

    /// The way to each of them.
    pub fn ways(&self) -> Ways {
        let mut ways = Ways::default();
        for path in &self.files {
            ways.follow(path);
        }
        for folder in &self.folders {
            let Some(real) = ways.follow(folder) else { continue };
            // What is no link is an entry of the folder, which is looked at whole.
            for path in store::list(&real).unwrap_or_default() {
                if path.is_symlink() {
                    ways.follow(&path);
                }
            }
            ways.folders.insert(real);
        }
        ways
    }
}

fn identity(path: &Path) -> io::Result<Identity> {
    let metadata = std::fs::metadata(path)?;
    // Others are not opened: a FIFO would keep us waiting.
    if metadata.is_file() { Ok(Identity::of(&metadata)) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

/// The directory entries that decide what is found: each by the real path of its directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ways {
    pub entries: BTreeSet<PathBuf>,
    /// Those whose plugin files all count.
    pub folders: BTreeSet<PathBuf>,
}

impl Ways {
    /// The directories to watch: where something on the way may be replaced. The files themselves would go with their
    /// successors.
    pub fn directories(&self) -> BTreeSet<PathBuf> {
        self.entries
            .iter()
            .filter_map(|entry| entry.parent())
            .chain(self.folders.iter().map(PathBuf::as_path))
            .map(Path::to_owned)
            .collect()
    }

    /// Whether a change of this entry may change what is found.
    pub fn lead_by(&self, entry: &Path) -> bool {
        let in_folder = entry.parent().is_some_and(|parent| self.folders.contains(parent));
        self.entries.contains(entry) || (in_folder && (store::is_plugin_file(entry) || store::is_signature(entry)))
    }

    /// Goes as the kernel does, through every link, as far as it leads; where to, if it is there.
    fn follow(&mut self, path: &Path) -> Option<PathBuf> {
        let names = |path: &Path| -> VecDeque<OsString> {
            let steps = path.components().filter(|step| matches!(step, Component::Normal(_) | Component::ParentDir));
            steps.map(|step| step.as_os_str().to_owned()).collect()
        };
        let mut rest = names(&std::path::absolute(path).ok()?);
        let (mut at, mut links) = (PathBuf::from("/"), 0);
        while let Some(name) = rest.pop_front() {
            if name == ".." {
                at.pop();
                continue;
            }
            let entry = at.join(name);
            self.entries.insert(entry.clone());
            if !entry.symlink_metadata().ok()?.is_symlink() {
                at = entry;
                continue;
            }
            links += 1;
            let target = entry.read_link().ok().filter(|_| links <= MOST_LINKS)?;
            if target.is_absolute() {
                at = PathBuf::from("/");
            }
            let mut further = names(&target);
            further.append(&mut rest);
            rest = further;
        }
        Some(at)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn real() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        (dir, path)
    }

    fn below(ways: &Ways, root: &Path) -> Vec<String> {
        let names = ways.entries.iter().filter_map(|entry| entry.strip_prefix(root).ok());
        names.map(|entry| entry.display().to_string()).collect()
    }

    #[test]
    fn every_link_on_the_way_counts_and_so_does_what_it_leads_to() {
        let (_dir, root) = real();
        fs::create_dir_all(root.join("releases/2/plugins")).unwrap();
        symlink("releases/2", root.join("current")).unwrap();
        symlink(root.join("current/plugins"), root.join("plugins")).unwrap();
        fs::write(root.join("lib.real"), "x").unwrap();
        symlink("../../../lib.real", root.join("releases/2/plugins/liba.so")).unwrap();
        fs::write(root.join("releases/2/plugins/libb.so"), "x").unwrap();
        let targets = Targets { folders: [root.join("plugins")].into(), ..Targets::default() };
        let ways = targets.ways();
        let expected = [
            "",
            "current",
            "lib.real",
            "plugins",
            "releases",
            "releases/2",
            "releases/2/plugins",
            "releases/2/plugins/liba.so",
        ];
        assert_eq!(below(&ways, &root), expected);
        assert_eq!(ways.folders, [root.join("releases/2/plugins")].into());
        let watched = ways.directories();
        for name in ["", "releases", "releases/2", "releases/2/plugins"] {
            assert!(watched.contains(&root.join(name)) || watched.contains(&root), "{name}: {watched:?}");
        }
        for (name, counts) in [
            ("current", true),
            ("releases/2/plugins/libb.so", true),
            ("releases/2/plugins/new.so", true),
            ("releases/2/plugins/new.so.minisig", true),
            ("releases/2/plugins/.new.so", false),
            ("releases/2/plugins/new.so.partial", false),
            ("lib.real", true),
            ("other.so", false),
        ] {
            assert_eq!(ways.lead_by(&root.join(name)), counts, "{name}");
        }
        let found: Vec<_> = targets.find().into_keys().collect();
        assert_eq!(found, [root.join("plugins/liba.so"), root.join("plugins/libb.so")]);
    }

    #[test]
    fn what_is_not_there_yet_is_waited_for_where_its_way_ends() {
        let (_dir, root) = real();
        let targets = Targets::of_files(&[root.join("a/b/cert.pem")]);
        assert_eq!(below(&targets.ways(), &root), ["", "a"]);
        assert!(targets.ways().directories().contains(&root) && targets.find().is_empty());
        fs::create_dir(root.join("a")).unwrap();
        assert_eq!(below(&targets.ways(), &root), ["", "a", "a/b"]);
        symlink("loop", root.join("loop")).unwrap();
        let targets = Targets::of_files(&[root.join("loop")]);
        assert_eq!(below(&targets.ways(), &root), ["", "loop"]);
        assert_eq!(targets.find(), [(root.join("loop"), None)].into());
    }

    #[test]
    fn a_file_behind_a_link_is_known_by_what_it_is() {
        let (_dir, root) = real();
        fs::write(root.join("a"), "a").unwrap();
        fs::write(root.join("b"), "b").unwrap();
        symlink("a", root.join("lib.so")).unwrap();
        let targets = Targets { folders: [root.clone()].into(), ..Targets::default() };
        let before = targets.find();
        symlink("b", root.join("new")).unwrap();
        fs::rename(root.join("new"), root.join("lib.so")).unwrap();
        let after = targets.find();
        assert!(before != after && after.keys().eq(before.keys()));
        fs::remove_file(root.join("b")).unwrap();
        assert_eq!(targets.find(), [(root.join("lib.so"), None)].into(), "it leads nowhere");
        fs::remove_dir_all(&root).unwrap();
        assert!(targets.find().is_empty());
        assert!(targets.covers(&root.join("lib.so")) && targets.covers(&root) && !targets.covers(&root.join("x/y")));
    }

    #[test]
    fn all_files_of_a_configuration_are_watched() {
        let config = Config::load(
            None,
            &[
                "plugin_dir=/p".into(),
                "plugins.a.file=/x/a.so".into(),
                "server=[{ listen = [\"127.0.0.1:0\"], tls = [{ cert = \"/c\", key = \"/k\" }] }]".into(),
            ],
        )
        .unwrap();
        let targets = Targets::of_config(&config).with(Targets::of_files(&["/b.toml".into()]));
        let files = ["/b.toml", "/c", "/k", "/x/a.so"].map(PathBuf::from);
        let folders: BTreeSet<_> = [PathBuf::from("/p")].into();
        assert_eq!(targets, Targets { files: files.into(), folders: folders.clone(), ..Targets::default() });

        let key = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
        let signed = Config::load(
            None,
            &["plugin_dir=/p".into(), "plugins.a.file=/x/a.so".into(), format!("store.signers=[\"{key}\"]")],
        );
        let files = ["/x/a.so", "/x/a.so.minisig"].map(PathBuf::from);
        let expected = Targets { files: files.into(), folders: folders.clone(), signed: folders };
        assert_eq!(Targets::of_config(&signed.unwrap()), expected);
    }

    #[test]
    fn a_signature_counts_where_plugins_must_be_signed() {
        let (_dir, root) = real();
        let [plugin, signature] = ["a.so", "a.so.minisig"].map(|name| root.join(name));
        fs::write(&plugin, "x").unwrap();
        fs::write(&signature, "x").unwrap();
        fs::write(root.join("b.so.minisig"), "of nothing").unwrap();
        let mut targets = Targets { folders: [root.clone()].into(), ..Targets::default() };
        assert!(targets.find().into_keys().eq([plugin.clone()]));
        targets.signed = targets.folders.clone();
        assert!(targets.find().into_keys().eq([plugin, signature.clone()]));
        fs::remove_file(&signature).unwrap();
        assert_eq!(targets.find().len(), 1, "it may come later");
    }
}
