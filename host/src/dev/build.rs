//! Builds plugin crates with cargo and puts the libraries into the instance's plugin directory: what runs before each reload
//! under `baton dev`. What cargo and the compiler say goes to the terminal as it comes, and with a refusal to whoever asked.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::Crate;
use super::cargo::{self, Artifact, Message};
use super::environment::Environment;
use crate::master::Prepare;
use crate::report::{Cause, Failure, Stage};

/// Of what the compiler said, this much goes into a report.
const DETAIL_LIMIT: usize = 48 * 1024;

/// What the last build left: the watcher follows it.
#[derive(Clone, Debug, Default)]
pub struct Built {
    pub sources: BTreeSet<PathBuf>,
    pub took: Duration,
}

#[derive(Debug)]
pub struct Workshop {
    pub crates: Vec<Crate>,
    pub environment: Environment,
    pub release: bool,
    /// Further words for `cargo build`.
    pub arguments: Vec<String>,
    /// The plugin directory; ours alone.
    pub place: PathBuf,
    built: watch::Sender<Built>,
    running: Mutex<Option<Child>>,
}

impl Workshop {
    pub fn new(
        crates: Vec<Crate>,
        environment: Environment,
        release: bool,
        arguments: Vec<String>,
        place: PathBuf,
    ) -> Workshop {
        let (built, _) = watch::channel(Built::default());
        Workshop { crates, environment, release, arguments, place, built, running: Mutex::new(None) }
    }

    pub fn built(&self) -> watch::Receiver<Built> {
        self.built.subscribe()
    }

    pub fn is_building(&self) -> bool {
        self.running().is_some()
    }

    /// Ends a build under way: nobody waits for it any more.
    pub fn stop(&self) {
        if let Some(child) = self.running().as_mut() {
            // One that has ended just now needs no end.
            child.kill().ok();
        }
    }

    fn running(&self) -> MutexGuard<'_, Option<Child>> {
        // Whatever panicked left a child or none: both are fine.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All crates; the libraries and their sources.
    fn build_all(&self) -> Result<(Vec<PathBuf>, BTreeSet<PathBuf>), Failure> {
        let mut libraries = Vec::new();
        let mut sources = BTreeSet::new();
        for of in &self.crates {
            let artifacts = self.build(of)?;
            let found = cargo::plugins(&artifacts, &of.manifest);
            if found.is_empty() {
                return Err(Failure::new(Stage::Build, format!("find a plugin: {} builds no cdylib", of.name))
                    .of_plugin(&of.name)
                    .hint("add to its Cargo.toml: [lib] crate-type = [\"cdylib\"]"));
            }
            for library in &found {
                // Without the list only the manifests and `src` are watched, which is nearly all.
                match cargo::sources(library, &of.dir) {
                    Ok(list) => sources.extend(list),
                    Err(error) => {
                        tracing::warn!(library = %library.display(), %error, "failed to read the list of sources")
                    }
                }
            }
            libraries.extend(found);
        }
        Ok((libraries, sources))
    }

    fn build(&self, of: &Crate) -> Result<Vec<Artifact>, Failure> {
        let failed = |error: String| Failure::new(Stage::Build, error).of_plugin(&of.name);
        let terminal = io::stderr().is_terminal();
        let mut command = Command::new(&self.environment.cargo);
        command.args(self.words(of, terminal)).current_dir(&of.dir).env_clear();
        command.envs(self.environment.variables.iter().map(|(key, value)| (key, value)));
        if terminal {
            // Its stderr is a pipe to us; what comes out at our end is a terminal all the same.
            command.env("CARGO_TERM_PROGRESS_WHEN", "always").env("CARGO_TERM_PROGRESS_WIDTH", "80");
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| {
            let cargo = self.environment.cargo.display();
            failed(format!("run {cargo}: {error}")).hint("is cargo in the PATH? $CARGO may name it")
        })?;
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(failed("read what cargo says".into()));
        };
        *self.running() = Some(child);
        let teller = std::thread::spawn(move || pass_on(stderr));
        let heard = listen(stdout);
        let told = teller.join().unwrap_or_default();
        let child = self.running().take();
        let status = child.map(|mut child| child.wait()).transpose();
        let heard = heard.map_err(|error| failed(format!("read what cargo says: {error}")))?;
        match status {
            Ok(Some(status)) if status.success() => Ok(heard.artifacts),
            Ok(status) => Err(failure(of, status, &heard, &told)),
            Err(error) => Err(failed(format!("wait for cargo: {error}"))),
        }
    }

    fn words<'a>(&'a self, of: &'a Crate, terminal: bool) -> Vec<&'a OsStr> {
        let format = if terminal { "json,json-diagnostic-rendered-ansi" } else { "json" };
        let mut words: Vec<&'a OsStr> = ["build", "--message-format", format, "--manifest-path"].map(OsStr::new).into();
        words.push(of.manifest.as_os_str());
        if terminal {
            words.extend(["--color", "always"].map(OsStr::new));
        }
        if self.release {
            words.push(OsStr::new("--release"));
        }
        words.extend(self.arguments.iter().map(OsStr::new));
        words
    }
}

impl Prepare for Workshop {
    fn prepare(&self, cause: &Cause) -> Result<(), Failure> {
        let begun = Instant::now();
        tracing::debug!(%cause, "building");
        let result = self.build_all();
        let took = begun.elapsed();
        let (libraries, sources) = result?;
        place(&libraries, &self.place).map_err(|error| {
            Failure::new(Stage::Build, format!("put the plugins into {}: {error}", self.place.display()))
        })?;
        self.built.send_replace(Built { sources, took });
        Ok(())
    }
}

#[derive(Default)]
struct Heard {
    artifacts: Vec<Artifact>,
    /// What the compiler said, errors apart from the rest.
    errors: Vec<String>,
    rest: Vec<String>,
}

/// Cargo's messages; diagnostics go to the terminal at once.
fn listen(stdout: ChildStdout) -> io::Result<Heard> {
    let mut heard = Heard::default();
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        match serde_json::from_str(&line) {
            Ok(Message::Artifact(artifact)) => heard.artifacts.push(artifact),
            Ok(Message::Diagnostic { message }) => {
                let Some(text) = message.rendered else { continue };
                show(text.as_bytes());
                let texts = if message.level == "error" { &mut heard.errors } else { &mut heard.rest };
                texts.push(cargo::plain(&text));
            }
            Ok(Message::Other) => {}
            // A macro that prints.
            Err(_) => show(format!("{line}\n").as_bytes()),
        }
    }
    Ok(heard)
}

/// Passes cargo's own words on; returns their end.
fn pass_on(mut stderr: ChildStderr) -> String {
    let mut told = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        match stderr.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => {
                let bytes = chunk.get(..count).unwrap_or_default();
                show(bytes);
                told.extend_from_slice(bytes);
                let surplus = told.len().saturating_sub(DETAIL_LIMIT);
                told.drain(..surplus);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Cargo's exit status says how it ended.
            Err(_) => break,
        }
    }
    cargo::plain(&String::from_utf8_lossy(&told))
}

/// A terminal that is gone shows nothing; the report has it too.
fn show(bytes: &[u8]) {
    let mut stderr = io::stderr().lock();
    stderr.write_all(bytes).and_then(|()| stderr.flush()).ok();
}

fn failure(of: &Crate, status: Option<ExitStatus>, heard: &Heard, told: &str) -> Failure {
    // Cargo's own words without its progress: what a bar drew over ends with a carriage return.
    let own: Vec<&str> = told
        .lines()
        .map(|line| line.rsplit('\r').next().unwrap_or(line))
        .filter(|line| !line.trim().is_empty())
        .collect();
    let cargo_error = own.iter().find(|line| line.starts_with("error")).copied();
    let first = heard.errors.first().and_then(|text| text.lines().next()).or(cargo_error);
    let why = match (first, status) {
        (Some(line), _) => line.to_owned(),
        (None, Some(status)) => match status.signal() {
            Some(signal) => format!("cargo was ended by signal {signal}"),
            None => format!("cargo ended with {status}"),
        },
        (None, None) => "cargo was ended".into(),
    };
    let detail = if heard.errors.is_empty() {
        own.join("\n")
    } else {
        heard.errors.iter().chain(&heard.rest).map(String::as_str).collect::<Vec<_>>().join("\n")
    };
    Failure::new(Stage::Build, format!("build {}: {why}", of.name))
        .of_plugin(&of.name)
        .hint("mend it and save: the next save builds again")
        .detail(start(&detail, DETAIL_LIMIT))
}

/// At most `limit` bytes of `text`, whole characters.
fn start(text: &str, limit: usize) -> &str {
    (0..=limit.min(text.len())).rev().find_map(|end| text.get(..end)).unwrap_or_default()
}

/// Makes `dir` hold exactly `libraries`. One that is the same already is not touched, so that it is known to be unchanged.
fn place(libraries: &[PathBuf], dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let mut names = BTreeSet::new();
    for library in libraries {
        let Some(name) = library.file_name() else { continue };
        names.insert(name.to_owned());
        let target = dir.join(name);
        if same(library, &target)? {
            continue;
        }
        let mut partial = name.to_owned();
        partial.push(".partial");
        let partial = dir.join(partial);
        std::fs::copy(library, &partial)?;
        // As the folder: others may not write what is served, whatever mode it was built with.
        std::fs::set_permissions(&partial, Permissions::from_mode(0o700))?;
        std::fs::rename(&partial, &target)?;
    }
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        // A crate that was renamed must not go on serving under its old name.
        if !names.contains(&entry.file_name()) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn same(left: &Path, right: &Path) -> io::Result<bool> {
    let right = match File::open(right) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        result => result?,
    };
    let left = File::open(left)?;
    if left.metadata()?.len() != right.metadata()?.len() {
        return Ok(false);
    }
    let (mut left, mut right) = (BufReader::with_capacity(1 << 16, left), BufReader::with_capacity(1 << 16, right));
    loop {
        let (l, r) = (left.fill_buf()?, right.fill_buf()?);
        let common = l.len().min(r.len());
        if l.get(..common) != r.get(..common) {
            return Ok(false);
        }
        if common == 0 {
            return Ok(l.len() == r.len());
        }
        left.consume(common);
        right.consume(common);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn of() -> Crate {
        Crate { name: "hello".into(), dir: "/w/hello".into(), manifest: "/w/hello/Cargo.toml".into() }
    }

    #[test]
    fn the_first_error_is_the_line_and_all_of_it_the_detail() {
        let heard = Heard {
            errors: vec!["error[E0425]: cannot find value `x`\n --> src/lib.rs:1:1\n".into()],
            rest: vec!["warning: unused\n".into()],
            ..Heard::default()
        };
        let failure = failure(&of(), Some(ExitStatus::from_raw(101 << 8)), &heard, "   Compiling hello\n");
        assert_eq!(failure.to_string(), "build of hello: build hello: error[E0425]: cannot find value `x`");
        let detail = failure.detail.unwrap();
        assert!(detail.starts_with("error[E0425]") && detail.contains("warning: unused"), "{detail}");
    }

    #[test]
    fn what_only_cargo_knows_is_told_too() {
        let told =
            "    Blocking waiting\rerror: failed to parse manifest at `/w/hello/Cargo.toml`\n\nCaused by:\n  no\n";
        let error = failure(&of(), Some(ExitStatus::from_raw(101 << 8)), &Heard::default(), told);
        assert!(error.error.ends_with("error: failed to parse manifest at `/w/hello/Cargo.toml`"), "{error:?}");
        assert!(error.detail.unwrap().ends_with("Caused by:\n  no"));
        let ended = failure(&of(), Some(ExitStatus::from_raw(2)), &Heard::default(), "");
        assert_eq!(ended.error, "build hello: cargo was ended by signal 2");
    }

    #[test]
    fn only_what_changed_is_put_in_place_and_what_is_gone_goes() {
        let dir = tempfile::tempdir().unwrap();
        let made = dir.path().join("libhello.so");
        let place_dir = dir.path().join("plugins");
        std::fs::write(&made, "one").unwrap();
        place(std::slice::from_ref(&made), &place_dir).unwrap();
        let placed = place_dir.join("libhello.so");
        let before = placed.metadata().unwrap().ino();
        place(std::slice::from_ref(&made), &place_dir).unwrap();
        assert_eq!(placed.metadata().unwrap().ino(), before, "untouched");
        std::fs::write(&made, "two").unwrap();
        place(&[made], &place_dir).unwrap();
        assert_eq!(std::fs::read(&placed).unwrap(), b"two");
        assert_ne!(placed.metadata().unwrap().ino(), before, "replaced, not written over");
        place(&[], &place_dir).unwrap();
        assert_eq!(std::fs::read_dir(&place_dir).unwrap().count(), 0);
    }

    #[test]
    fn a_long_report_is_cut_between_characters() {
        assert_eq!((start("aö", 2), start("aö", 3), start("aö", 9), start("", 1)), ("a", "aö", "aö", ""));
    }

    #[test]
    fn files_are_compared_to_their_end() {
        let dir = tempfile::tempdir().unwrap();
        let [left, right] = ["a", "b"].map(|name| dir.path().join(name));
        let mut bytes = vec![7; 200_000];
        std::fs::write(&left, &bytes).unwrap();
        assert!(!same(&left, &right).unwrap());
        std::fs::write(&right, &bytes).unwrap();
        assert!(same(&left, &right).unwrap());
        *bytes.last_mut().unwrap() = 8;
        std::fs::write(&right, &bytes).unwrap();
        assert!(!same(&left, &right).unwrap());
    }

    #[test]
    fn a_cargo_that_is_not_there_is_told_with_a_hint() {
        let environment = Environment { cargo: "/nowhere/cargo".into(), variables: Vec::new() };
        let of = Crate { dir: "/".into(), ..of() };
        let workshop = Workshop::new(vec![of], environment, false, Vec::new(), "/nowhere".into());
        let failure = workshop.prepare(&Cause::Start).unwrap_err();
        assert_eq!(failure.stage, Stage::Build);
        assert!(failure.error.contains("/nowhere/cargo") && failure.hint.is_some(), "{failure:?}");
    }
}
