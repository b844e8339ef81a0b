//! The store: a private copy of every plugin, named by its content. Children only ever open these copies, so any file in the
//! plugin folder may be overwritten in place at any time, and what was checked is what is loaded.
//!
//! Runs on the blocking pool. It opens no library; what a file says of itself is read as data (`elf`).

mod elf;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod signature;
mod trust;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use baton_plugin_api::abi::{Descriptor, FLAG_DEBUG, read_text};
use sha2::{Digest, Sha256};

use crate::config::{self, Config, Plugin, check_mount, same_plugin};
use crate::report::{Failure, PluginStatus, Stage};
use crate::sys::files::{self, Identity, Lease};
use crate::sys::private_dir;

pub use signature::{beside as signature_of, is_beside_a_plugin as is_signature};
pub use trust::Trusted;

/// A file that is still being written after this long is refused.
const SETTLE: Duration = Duration::from_secs(1);
/// A child under another uid must reach the files, and only the master may write.
const MODE: u32 = 0o711;
/// Where no lease is to be had, a young file must look the same twice, this far apart.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("failed to prepare the plugin store {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("failed to use {} as the plugin store: it lies on a file system mounted noexec; set state_dir to another", .0.display())]
    NoExec(PathBuf),
}

/// Why a file is refused: text that follows "accept NAME: ", and what to do.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    why: String,
    hint: Option<String>,
}

impl Refusal {
    fn new(why: impl Into<String>) -> Refusal {
        Refusal { why: why.into(), hint: None }
    }

    fn hint(self, hint: String) -> Refusal {
        Refusal { hint: Some(hint), ..self }
    }

    /// Of an operation that wanted to do `what` with the file.
    pub fn into_failure(self, stage: Stage, what: &str) -> Failure {
        let failure = Failure::new(stage, format!("{what}: {}", self.why));
        match self.hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

/// A plugin's copy in the store.
#[derive(Debug)]
pub struct Snapshot {
    pub name: String,
    /// File name in the plugin folder.
    pub file: String,
    pub path: PathBuf,
    pub sha256: String,
    descriptor: Descriptor,
}

#[cfg(test)]
impl Snapshot {
    /// Of a plugin with that mount, nowhere on disk.
    pub fn fake(name: &str, mount: &str, sha256: &str) -> Arc<Snapshot> {
        let descriptor = Descriptor {
            magic: baton_plugin_api::abi::MAGIC,
            size: 0,
            abi_revision: 1,
            flags: 0,
            reserved: 0,
            name: [0; 64],
            version: [0; 64],
            api_version: [0; 32],
            rustc: [0; 96],
            mount: baton_plugin_api::abi::text(mount),
        };
        let (file, path) = (format!("lib{name}.so"), PathBuf::new());
        Arc::new(Snapshot { name: name.into(), file, path, sha256: sha256.into(), descriptor })
    }
}

/// What is known of a copy that is recalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A power cut may lie between.
    EarlierMaster,
    /// This very process made it.
    ThisProcess,
}

/// A plugin with its place.
#[derive(Clone, Debug)]
pub struct Mounted {
    pub snapshot: Arc<Snapshot>,
    pub mount: String,
}

impl Mounted {
    pub fn status(&self) -> PluginStatus {
        let descriptor = &self.snapshot.descriptor;
        PluginStatus {
            name: self.snapshot.name.clone(),
            version: read_text(&descriptor.version),
            mount: self.mount.clone(),
            sha256: self.snapshot.sha256.clone(),
            file: self.snapshot.file.clone(),
            api: read_text(&descriptor.api_version),
            rustc: read_text(&descriptor.rustc),
            debug: descriptor.flags & FLAG_DEBUG != 0,
        }
    }
}

#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    trusted: Trusted,
    /// What was read before, by path: a file that has not changed is not read again.
    known: HashMap<PathBuf, Known>,
    /// What the last reading has failed for, if somebody was still writing to it.
    being_written: Option<PathBuf>,
}

/// What was read, and who had to have signed it.
#[derive(Debug)]
struct Known {
    identity: Identity,
    signed: Signed,
    snapshot: Arc<Snapshot>,
}

/// That a signature was looked at: whose it could be, and which file it was.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Signed {
    signers: Vec<String>,
    file: Option<Identity>,
}

impl Signed {
    fn now(path: &Path, signers: &[String]) -> Signed {
        let file = || std::fs::metadata(signature::beside(path)).ok().map(|found| Identity::of(&found));
        Signed { signers: signers.to_vec(), file: if signers.is_empty() { None } else { file() } }
    }
}

impl Store {
    /// Plugin files must be writable by those that are `trusted` alone.
    pub fn open(state_dir: &Path, trusted: Trusted) -> Result<Store, StoreError> {
        let dir = state_dir.join("store");
        let io = |source| StoreError::Io { path: dir.clone(), source };
        private_dir::open_or_create(&dir, MODE).map_err(io)?;
        if files::is_noexec(&dir).map_err(io)? {
            return Err(StoreError::NoExec(dir));
        }
        Ok(Store { dir, trusted, known: HashMap::new(), being_written: None })
    }

    /// Copies and checks every `*.so` of the plugin folder and every file that a section names: all of them, or the first failure.
    pub fn take(&mut self, config: &Config) -> Result<Vec<Arc<Snapshot>>, Failure> {
        let named = |(name, plugin): (&String, &Plugin)| Some((plugin.file.clone()?, name.clone()));
        let mut files: Vec<(PathBuf, String)> = config.plugins.iter().filter_map(named).collect();
        for path in list(&config.plugin_dir)? {
            // One that a section names has its name from there.
            if !files.iter().any(|(named, _)| *named == path) {
                let (_, name) = names(&path);
                files.push((path, name));
            }
        }
        let trusted = self.trusted.and(&config.store.owners).map_err(|Refusal { why, hint }| {
            let hint = hint.unwrap_or_else(|| "name users of this machine, or their numbers".into());
            Failure::new(Stage::Config, format!("accept store.owners: {why}")).hint(hint)
        })?;
        let mut snapshots: Vec<Arc<Snapshot>> = Vec::new();
        self.being_written = None;
        for (path, name) in &files {
            let snapshot = self.snapshot(path, name, config, &trusted)?;
            if let Some(twin) = snapshots.iter().find(|other| same_plugin(&other.name, &snapshot.name)) {
                let text = format!("accept {}: {} has the same plugin name", snapshot.file, twin.file);
                return Err(Failure::new(Stage::Snapshot, text).of_plugin(&snapshot.name).hint("rename one of them"));
            }
            if let Some(twin) = snapshots.iter().find(|other| other.sha256 == snapshot.sha256) {
                let text = format!("accept {}: it is the same file as {}", snapshot.file, twin.file);
                return Err(Failure::new(Stage::Snapshot, text).of_plugin(&snapshot.name).hint("remove one of them"));
            }
            snapshots.push(snapshot);
        }
        self.known.retain(|path, _| files.iter().any(|(file, _)| file == path));
        Ok(snapshots)
    }

    /// Recreates the store if it was removed, with the copies that were taken last, of files that are still the same. Returns the files
    /// whose copies are gone for good.
    pub fn restore(&mut self) -> io::Result<Vec<String>> {
        private_dir::open_or_create(&self.dir, MODE)?;
        let missing = self.known.iter().filter(|(_, known)| !known.snapshot.path.exists());
        let missing: Vec<(PathBuf, Arc<Snapshot>)> =
            missing.map(|(path, known)| (path.clone(), known.snapshot.clone())).collect();
        let mut lost = Vec::new();
        for (path, snapshot) in missing {
            match self.copy_settled(&path) {
                // What it says of itself, and who signed it, was checked for this very content.
                Ok(Some((_, temporary, sha256))) if sha256 == snapshot.sha256 => {
                    std::fs::rename(&temporary, &snapshot.path)?;
                }
                Ok(copied) => {
                    if let Some((_, temporary, _)) = copied {
                        remove(&temporary);
                    }
                    lost.push(snapshot.file.clone());
                }
                Err(CopyError::Read(_)) => lost.push(snapshot.file.clone()),
                Err(CopyError::Write(error)) => return Err(error),
            }
        }
        Ok(lost)
    }

    /// The contents that were taken last, by the files they were read from.
    pub fn taken(&self) -> BTreeMap<PathBuf, String> {
        self.known.iter().map(|(path, known)| (path.clone(), known.snapshot.sha256.clone())).collect()
    }

    /// What the last reading has failed for, if somebody was still writing to it.
    pub fn being_written(&self) -> Option<&Path> {
        self.being_written.as_deref()
    }

    /// A snapshot that an earlier master took, if its copy is still what it was.
    pub fn recall(&self, name: &str, file: &str, sha256: &str, origin: Origin) -> Result<Arc<Snapshot>, Failure> {
        let path = self.dir.join(format!("{sha256}.so"));
        let fail = |why: String| Failure::new(Stage::Snapshot, format!("recall {file}: {why}")).of_plugin(name);
        let unreadable = |error: io::Error| fail(format!("its copy cannot be read: {error}"));
        let trusted = origin == Origin::ThisProcess;
        let mut copy = File::open(&path).map_err(unreadable)?;
        if !trusted && hash(&copy).map_err(unreadable)? != sha256 {
            return Err(fail("its copy has another content".into()));
        }
        copy.rewind().map_err(unreadable)?;
        let descriptor = elf::inspect(&copy, |_| false).map_err(|refusal| fail(refusal.why))?;
        Ok(Arc::new(Snapshot { name: name.into(), file: file.into(), path, sha256: sha256.into(), descriptor }))
    }

    fn snapshot(
        &mut self,
        path: &Path,
        name: &str,
        config: &Config,
        trusted: &Trusted,
    ) -> Result<Arc<Snapshot>, Failure> {
        let (file, _) = names(path);
        let fail = |Refusal { why, hint }: Refusal| {
            let failure = Failure::new(Stage::Snapshot, format!("accept {file}: {why}")).of_plugin(name);
            match hint {
                Some(hint) => failure.hint(hint),
                None => failure,
            }
        };
        let unreadable = |error: io::Error| fail(Refusal::new(format!("it cannot be read: {error}")));
        let metadata = std::fs::metadata(path).map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(fail(Refusal::new("it is no regular file")));
        }
        trusted.check(path).map_err(fail)?;
        let signed = Signed::now(path, &config.store.signers);
        if let Some(Known { identity, signed: before, snapshot }) = self.known.get(path)
            && *identity == Identity::of(&metadata)
            && *before == signed
            && snapshot.name == name
            && snapshot.path.exists()
        {
            return Ok(snapshot.clone());
        }
        let copied = self.copy_settled(path).map_err(|error| match error {
            CopyError::Read(error) => unreadable(error),
            CopyError::Write(error) => fail(self.unwritable(&error)),
        });
        let Some((identity, temporary, sha256)) = copied? else {
            self.being_written = Some(path.to_owned());
            let hint = "reload when the copy is complete, or write to a temporary name and rename";
            return Err(fail(Refusal::new(format!("it is still being written after {SETTLE:?}")).hint(hint.into())));
        };
        let inspected = if signed.signers.is_empty() {
            Ok(())
        } else {
            signature::verify(&temporary, path, &signed.signers).map_err(fail)
        };
        let inspected = inspected.and_then(|()| {
            let copy = File::open(&temporary).map_err(unreadable)?;
            elf::inspect(&copy, |needed| config.plugin_dir.join(needed).exists()).map_err(fail)
        });
        let descriptor = match inspected {
            Ok(descriptor) => descriptor,
            Err(failure) => {
                remove(&temporary);
                return Err(failure);
            }
        };
        let stored = self.dir.join(format!("{sha256}.so"));
        // Over one of the same content, if there is one: it may stem from before a power cut, and nothing was synced then.
        // Children that have mapped it keep their file.
        std::fs::rename(&temporary, &stored).map_err(|error| fail(self.unwritable(&error)))?;
        let snapshot = Arc::new(Snapshot { name: name.into(), file: file.clone(), path: stored, sha256, descriptor });
        self.known.insert(path.to_owned(), Known { identity, signed, snapshot: snapshot.clone() });
        Ok(snapshot)
    }

    /// The state directory is full, or cannot be written: that is not the plugin's fault.
    fn unwritable(&self, error: &io::Error) -> Refusal {
        let dir = self.dir.display();
        let why = format!("its copy cannot be written to the state directory, at {dir}: {error}");
        Refusal::new(why).hint(match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                format!("make room on the disk of {dir}, or set state_dir to a folder on another one")
            }
            _ => format!("let the server write to {dir}, or set state_dir to another folder"),
        })
    }

    /// Copies a file that nobody writes to meanwhile; nothing if somebody keeps writing.
    fn copy_settled(&self, path: &Path) -> Result<Option<(Identity, PathBuf, String)>, CopyError> {
        let deadline = Instant::now() + SETTLE;
        loop {
            let file = files::open_regular(path).map_err(CopyError::Read)?;
            let before = Identity::of(&file.metadata().map_err(CopyError::Read)?);
            let lease = files::read_lease(&file).map_err(CopyError::Read)?;
            let settled = match &lease {
                Lease::Held(_) => true,
                Lease::Written => false,
                Lease::Unsupported => looks_the_same_twice(path, &before).map_err(CopyError::Read)?,
            };
            if settled {
                let (temporary, sha256) = self.copy(&file)?;
                // What we hold open is whole even if another file has taken its place meanwhile; the next reload reads that.
                if Identity::of(&file.metadata().map_err(CopyError::Read)?).same_content(&before) {
                    return Ok(Some((before, temporary, sha256)));
                }
                remove(&temporary);
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            // Polls with a deadline: the kernel has no event for "nobody has it open for writing any more" on a file that
            // may also be renamed away.
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Copies and hashes in one pass.
    fn copy(&self, file: &File) -> Result<(PathBuf, String), CopyError> {
        let temporary = self.dir.join(".incoming");
        remove(&temporary);
        let create = || OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary);
        let mut copy = create().map_err(CopyError::Write)?;
        let copied = copy_hashed(file, &mut copy).and_then(|sha256| {
            copy.set_permissions(std::fs::Permissions::from_mode(0o444)).map_err(CopyError::Write)?;
            Ok(sha256)
        });
        // On a full disk what there is of it is in the way of everything else.
        copied.map(|sha256| (temporary.clone(), sha256)).inspect_err(|_| remove(&temporary))
    }

    /// Makes what is in use safe against a power cut; not done before a switch, which would wait for the disk.
    pub fn sync(&self, paths: &[PathBuf]) -> io::Result<()> {
        for path in paths {
            File::open(path)?.sync_all()?;
        }
        File::open(&self.dir)?.sync_all()
    }

    /// Removes all copies but those `in_use` and the `keep` youngest others.
    pub fn collect(&mut self, in_use: &HashSet<PathBuf>, keep: usize) -> io::Result<()> {
        let mut others: Vec<(SystemTime, PathBuf)> = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let entry = entry?;
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "so") && !in_use.contains(&path) {
                others.push((entry.metadata()?.modified()?, path));
            }
        }
        others.sort();
        let surplus = others.len().saturating_sub(keep);
        for (_, path) in &others[..surplus] {
            std::fs::remove_file(path)?;
        }
        Ok(())
    }
}

/// Hashes a file to its end.
pub fn hash(from: &File) -> io::Result<String> {
    copy_hashed(from, &mut io::sink()).map_err(|error| match error {
        CopyError::Read(error) | CopyError::Write(error) => error,
    })
}

/// Which side of a copy failed: a plugin's file, or the store.
#[derive(Debug)]
enum CopyError {
    Read(io::Error),
    Write(io::Error),
}

/// Copies `from` to its end, and hashes it.
fn copy_hashed(mut from: &File, to: &mut impl Write) -> Result<String, CopyError> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 128 * 1024];
    loop {
        let read = from.read(&mut buffer).map_err(CopyError::Read)?;
        if read == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..read]);
        to.write_all(&buffer[..read]).map_err(CopyError::Write)?;
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn looks_the_same_twice(path: &Path, before: &Identity) -> io::Result<bool> {
    let metadata = std::fs::metadata(path)?;
    let old = metadata.modified()?.elapsed().is_ok_and(|age| age >= SETTLE);
    if old {
        return Ok(true);
    }
    // The interval is what is measured: two looks at the file, this far apart. On the blocking pool.
    std::thread::sleep(LOOK_AGAIN);
    Ok(Identity::of(&std::fs::metadata(path)?) == *before)
}

/// A file that is gone already is as good as removed; any other trouble shows at the next use of the name.
fn remove(path: &Path) {
    let _ = std::fs::remove_file(path);
}

/// Refuses a folder that is not there: plugins that serve came out of it, and a folder that has vanished is no wish to serve
/// without them.
pub fn check_folder(plugin_dir: &Path) -> Result<(), Failure> {
    let why = match std::fs::metadata(plugin_dir) {
        Ok(found) if found.is_dir() => return Ok(()),
        Ok(_) => "it is no folder".to_owned(),
        Err(error) => error.to_string(),
    };
    Err(Failure::new(Stage::Snapshot, format!("read the plugin folder {}: {why}", plugin_dir.display()))
        .hint("plugins that serve came out of it: put it back, or mount its disk, and reload"))
}

/// Every `*.so` of the folder, by name. A folder that does not exist holds none.
pub fn list(plugin_dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let fail = |error: io::Error| {
        Failure::new(Stage::Snapshot, format!("read the plugin folder {}: {error}", plugin_dir.display()))
    };
    let entries = match std::fs::read_dir(plugin_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(fail(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(fail)?.path();
        if is_plugin_file(&path) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// By its name.
pub fn is_plugin_file(path: &Path) -> bool {
    let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    !hidden && path.extension().is_some_and(|extension| extension == "so")
}

/// A file's name, and the plugin's: without `lib` and `.so`.
fn names(path: &Path) -> (String, String) {
    let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let stem = file.strip_suffix(".so").unwrap_or(&file);
    let name = stem.strip_prefix("lib").filter(|rest| !rest.is_empty()).unwrap_or(stem).to_owned();
    (file, name)
}

/// `[plugins.NAME] mount`, else the plugin's own word, else `/`; no two alike, unless all servers have their own routes. These
/// lead to plugins that are there.
pub fn mount(snapshots: Vec<Arc<Snapshot>>, config: &Config) -> Result<Vec<Mounted>, Failure> {
    for (server, route) in config.server.iter().flat_map(|server| server.route.iter().map(move |route| (server, route)))
    {
        if !snapshots.iter().any(|snapshot| same_plugin(&snapshot.name, &route.plugin)) {
            let names: Vec<&str> = snapshots.iter().map(|snapshot| snapshot.name.as_str()).collect();
            let there = if names.is_empty() { "no plugin at all".into() } else { names.join(", ") };
            let text = format!("route {route} of [[server]] `{}`: there is no plugin `{}`", server.name, route.plugin);
            return Err(Failure::new(Stage::Snapshot, text)
                .of_plugin(&route.plugin)
                .hint(format!("in {} there is {there}", config.plugin_dir.display())));
        }
    }
    let mounts_count = config.server.iter().any(|server| server.route.is_empty());
    let mut taken: BTreeMap<String, String> = BTreeMap::new();
    let mut mounted = Vec::new();
    for snapshot in snapshots {
        let own = read_text(&snapshot.descriptor.mount);
        let name = snapshot.name.clone();
        let mount = match config.plugin(&name).and_then(|plugin| plugin.mount.clone()) {
            Some(mount) => mount,
            None if own.is_empty() => "/".into(),
            None => own,
        };
        check_mount(&mount)
            .map_err(|why| Failure::new(Stage::Snapshot, format!("mount {name}: {why}")).of_plugin(&name))?;
        if let Some(other) = taken.insert(mount.clone(), name.clone()).filter(|_| mounts_count) {
            return Err(Failure::new(Stage::Snapshot, format!("mount {name} at `{mount}`: {other} is there already"))
                .of_plugin(&name)
                .hint(format!(
                    "add to the configuration:  [plugins.{}]  mount = \"{}\"",
                    config::toml_key(&name),
                    mount_for(&name)
                )));
        }
        mounted.push(Mounted { snapshot, mount });
    }
    Ok(mounted)
}

/// A mount that goes with a plugin's name, whatever its file is called.
fn mount_for(name: &str) -> String {
    let fits = |char: char| char.is_ascii_alphanumeric() || matches!(char, '.' | '_' | '-');
    format!("/{}", name.chars().map(|char| if fits(char) { char } else { '-' }).collect::<String>())
}

#[cfg(test)]
mod tests;
