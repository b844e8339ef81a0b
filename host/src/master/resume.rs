//! One master's state across an exec: how it is written down for the next program of the process, tested by it beforehand,
//! read again, and the way back if that fails.
//!
//! It is self-describing JSON in sealed memory; descriptors are named by their numbers, which an exec keeps, and by what
//! they are, which is looked at before one is used. Until it serves, the new program only copies them: an error, a panic or a
//! hang gives the process back to the old program as it was, once.

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::admin::SavedAdmin;
use super::children::SavedChildren;
use super::identity::Identity;
use super::inventory::SavedSets;
use super::listeners::SavedListeners;
use super::state::Saved;
use super::store::Store;
use super::tls::SavedTickets;
use super::watcher;
use crate::config::{Config, ConfigSource, carried};
use crate::control::states::{StateEntry, States, StatesError};
use crate::control::{PROTOCOL, Protocols};
use crate::dirs::Dirs;
use crate::report::{Failure, Generation, Stage};
use crate::sys::process::Image;
use crate::sys::renew::{self, Nature, Program};
use crate::sys::{sealed, worker};
use crate::version::VERSION;

/// Revision of [`Carried`]: a program that does not know it refuses to take over.
pub const SCHEMA: u32 = 1;
/// Bytes of it at most.
const LIMIT: usize = 64 << 20;
/// How long a program may take to say whether it could take over, and then to do so.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// Says where the state is, in the environment of a program that takes over: `memory:image:number,number`.
const RESUME: &str = "BATON_RESUME";
/// The same for one that shall only say whether it could: `memory`.
const CHECK: &str = "BATON_RESUME_CHECK";
/// Why the program before is back.
const BACK: &str = "BATON_RESUME_BACK";
/// Where a child of ours finds the first descriptor that it was given.
const GIVEN: RawFd = 3;
/// Heads the answer of a test.
const ANSWER: &str = "baton can take over: ";

#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    #[error("failed to take over: {0}")]
    Io(#[from] io::Error),
    #[error("failed to understand what the program before has left (version {version}, schema {schema}): {why}")]
    Schema { version: String, schema: u32, why: String },
    #[error("failed to understand what the program before has left: {0}")]
    Broken(String),
    #[error("failed to take over generation {generation}: it speaks protocols {} to {}, this program {} to {}", theirs.oldest, theirs.newest, ours.oldest, ours.newest)]
    Protocol { generation: Generation, theirs: Protocols, ours: Protocols },
    #[error("failed to {}", .0.error)]
    Set(Failure),
}

/// A descriptor that is passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fd {
    number: RawFd,
    kind: u32,
    inode: u64,
}

/// What is passed on, while it is gathered.
#[derive(Debug, Default)]
pub struct Luggage(Vec<RawFd>);

impl Luggage {
    pub fn put(&mut self, fd: &impl AsFd) -> io::Result<Fd> {
        let Nature { kind, inode } = Nature::of(fd.as_fd())?;
        let number = fd.as_fd().as_raw_fd();
        self.0.push(number);
        Ok(Fd { number, kind, inode })
    }
}

impl Fd {
    /// A copy of what was passed on, if it still is what it was.
    pub fn copy(&self) -> io::Result<OwnedFd> {
        renew::copy_of(self.number, Nature { kind: self.kind, inode: self.inode })
    }
}

/// All of a master that another program cannot find out anew.
#[derive(Debug, Serialize, Deserialize)]
pub struct Carried {
    pub schema: u32,
    pub version: String,
    pub remains: Remains,
    pub listeners: SavedListeners,
    pub admin: SavedAdmin,
    /// Of the runtime directory.
    pub lock: Fd,
    #[serde(default)]
    pub state_lock: Option<Fd>,
    #[cfg(feature = "next")]
    #[serde(default)]
    pub novelty: Option<String>,
}

/// What has no file of its own to go with it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Remains {
    /// As it is in force: what only a new master can change must be the same.
    #[serde(with = "carried")]
    pub config: Config,
    /// Where the configuration of what serves came from: it must be there for the next program too.
    #[serde(default)]
    pub origin: ConfigSource,
    pub state: Saved,
    pub sets: SavedSets,
    pub children: SavedChildren,
    pub tickets: SavedTickets,
    /// The program of the sets: what a crash of what serves is answered with.
    pub image: Fd,
    /// What the watcher does not try again as it is.
    #[serde(default)]
    pub tried: Option<watcher::Saved>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct SavedStates {
    entries: Vec<StateEntry>,
    memory: Fd,
}

impl SavedStates {
    pub fn of(states: &States, luggage: &mut Luggage) -> io::Result<SavedStates> {
        let (entries, memory) = states.parts();
        Ok(SavedStates { entries: entries.to_vec(), memory: luggage.put(memory)? })
    }

    /// A warm cache is not worth a restart.
    pub fn resume(self) -> Option<States> {
        let states = self.memory.copy().map_err(StatesError::Io);
        match states.and_then(|memory| States::take(self.entries, memory)) {
            Ok(states) => Some(states),
            Err(error) => {
                tracing::warn!("{error}; going without");
                None
            }
        }
    }
}

impl Carried {
    pub fn seal(&self) -> io::Result<OwnedFd> {
        sealed::seal(c"baton-state", &serde_json::to_vec(self)?)
    }

    fn open(memory: OwnedFd) -> Result<Carried, ResumeError> {
        #[derive(Deserialize)]
        struct Head {
            schema: u32,
            version: String,
        }
        let bytes = sealed::open(memory, LIMIT)?;
        let broken = |error: serde_json::Error| ResumeError::Broken(error.to_string());
        let Head { schema, version } = serde_json::from_slice(&bytes).map_err(broken)?;
        let refused = |why: String| ResumeError::Schema { version: version.clone(), schema, why };
        if schema != SCHEMA {
            return Err(refused(format!("this program knows schema {SCHEMA}")));
        }
        let carried: Carried = serde_json::from_slice(&bytes).map_err(|error| refused(error.to_string()))?;
        let ours = spoken();
        for generation in &carried.remains.state.generations {
            if let Some(theirs) = generation.protocols.filter(|theirs| ours.common(*theirs).is_none()) {
                return Err(ResumeError::Protocol { generation: generation.number, theirs, ours });
            }
        }
        Ok(carried)
    }
}

/// What the children that are found must speak.
fn spoken() -> Protocols {
    #[cfg(feature = "next")]
    if crate::version::told("speak otherwise") {
        return Protocols { oldest: PROTOCOL.newest + 1, newest: PROTOCOL.newest + 1 };
    }
    PROTOCOL
}

/// How this process was started by another master: to take over, or to say whether it could.
#[derive(Debug)]
struct Arrival {
    memory: RawFd,
    left: Vec<RawFd>,
    /// Why this program is the one that had left.
    back: Option<String>,
}

/// What a process gives itself up to.
#[derive(Debug)]
struct WayBack {
    image: RawFd,
    argv: Vec<CString>,
    env: Vec<CString>,
    keep: Vec<RawFd>,
}

static ARRIVAL: Mutex<Option<Arrival>> = Mutex::new(None);
static WAY_BACK: Mutex<Option<WayBack>> = Mutex::new(None);

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks whether this program takes over a process, and secures the way back if so. First of all, with one thread.
pub fn arrive() {
    let (Some(text), back) = (worker::take_env(RESUME), worker::take_env(BACK)) else { return };
    let mut parts = text.split(':');
    let mut number = || parts.next()?.parse::<RawFd>().ok();
    let (Some(memory), Some(image)) = (number(), number()) else { return };
    let rest = parts.next().unwrap_or_default().split(',').filter_map(|number| number.parse().ok());
    let mut left: Vec<RawFd> = rest.chain([memory, image]).collect();
    left.sort_unstable();
    left.dedup();
    if let Err(error) = renew::close_all_on_exec() {
        crate::telemetry::print(&format!("baton: failed to look at the descriptors that were passed on: {error}"));
    }
    let way_back = WayBack { image, argv: arguments(), env: environment(&[(RESUME, &text)]), keep: left.clone() };
    let armed = back.is_none();
    *locked(&ARRIVAL) = Some(Arrival { memory, left, back });
    // Once: a program that cannot go on where it had left would be asked for ever.
    if !armed {
        return;
    }
    *locked(&WAY_BACK) = Some(way_back);
    std::panic::set_hook(Box::new(|info| {
        crate::telemetry::print(&format!("baton: {info}"));
        go_back("it panicked");
    }));
    // It ends with the process, or finds nothing to do.
    let watch = std::thread::Builder::new().name("way back".into()).spawn(|| {
        let until = Instant::now() + PATIENCE;
        // It may wake early (std::thread::park).
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            std::thread::park_timeout(left);
        }
        go_back(&format!("it did not take over within {PATIENCE:?}"));
    });
    if let Err(error) = watch {
        go_back(&format!("it could not start a thread: {error}"));
    }
}

/// Gives the process back to the program before, unless this one has taken it over; then, or if that fails, it returns.
pub fn go_back(why: &str) {
    let Some(WayBack { image, argv, mut env, keep }) = locked(&WAY_BACK).take() else { return };
    crate::telemetry::flush();
    env.extend(CString::new(format!("{BACK}={why}")));
    let error = renew::exec(Program::Number(image), &argv, &env, &keep);
    crate::telemetry::print(&format!("baton: failed to go back to the program before: {error}"));
}

/// The memory to be looked at, if this process shall only say whether it could take over.
pub fn checking() -> Option<OwnedFd> {
    worker::take_env(CHECK)?;
    worker::inherited(GIVEN).ok().flatten()
}

/// Says whether this program could take over; the text is for the master that asks.
pub fn check(memory: OwnedFd, config: &Config, origin: &ConfigSource) -> Result<String, ResumeError> {
    #[cfg(feature = "next")]
    crate::version::fault("test");
    let carried = Carried::open(memory)?;
    super::source::check_fixed(&carried.remains.config, config).map_err(ResumeError::Set)?;
    let successor = carried.remains.origin.check_successor(origin);
    successor.map_err(|error| ResumeError::Set(super::source::not_read(&error)))?;
    let dirs = Dirs::of(config)?;
    let identity = Identity::of(config).map_err(|error| ResumeError::Broken(error.to_string()))?;
    let store = Store::open(&dirs.state, identity.trust()).map_err(|error| ResumeError::Broken(error.to_string()))?;
    carried.remains.sets.check(&store).map_err(ResumeError::Set)?;
    let answer = Answer { version: VERSION.into(), schema: SCHEMA, protocols: PROTOCOL };
    let json = serde_json::to_string(&answer).map_err(|error| ResumeError::Broken(error.to_string()))?;
    Ok(format!("{ANSWER}{json}\n"))
}

/// What a program says of itself that could take over.
#[derive(Debug, Serialize, Deserialize)]
pub struct Answer {
    pub version: String,
    pub schema: u32,
    pub protocols: Protocols,
}

impl Answer {
    /// Out of all that it printed.
    pub fn find(output: &str) -> Option<Answer> {
        output.lines().find_map(|line| serde_json::from_str(line.strip_prefix(ANSWER)?).ok())
    }
}

/// What this program finds when it takes over a process.
pub struct Resumption {
    pub carried: Carried,
    /// Why it is back, if it had left.
    pub outcome: Result<(), Failure>,
    pub left: Vec<RawFd>,
}

/// What was left for this program, if anything was. Once.
pub fn find() -> Result<Option<Resumption>, ResumeError> {
    let Some(Arrival { memory, left, back }) = locked(&ARRIVAL).take() else { return Ok(None) };
    #[cfg(feature = "next")]
    if crate::version::told("fail resume") {
        return Err(ResumeError::Broken("told to fail".into()));
    }
    let carried = Carried::open(renew::copy(memory)?)?;
    let outcome = back.map_or(Ok(()), |why| {
        let failure = Failure::new(Stage::Restart, format!("let the new binary take over: {why}"));
        Err(failure.hint("the old one goes on; the log has more"))
    });
    Ok(Some(Resumption { carried, outcome, left }))
}

/// This program serves: the way back is closed, and what was passed on is its own alone.
pub fn resumed(left: Vec<RawFd>) {
    if locked(&WAY_BACK).take().is_some() {
        drop(std::panic::take_hook());
    }
    left.into_iter().for_each(renew::close);
}

/// The path that this program was started by, absolute and with its symbolic links: what is installed there later is what a
/// restart runs.
pub fn own_path() -> io::Result<PathBuf> {
    let name = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    if name.components().count() > 1 || name.is_absolute() {
        return std::path::absolute(name);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(&name)).find(|file| file.is_file());
    match found {
        Some(file) => std::path::absolute(file),
        None => std::env::current_exe(),
    }
}

/// As this process was started.
fn arguments() -> Vec<CString> {
    // What came as arguments holds no zero byte.
    std::env::args_os().filter_map(|argument| CString::new(argument.into_vec()).ok()).collect()
}

fn environment(more: &[(&str, &str)]) -> Vec<CString> {
    let more = more.iter().map(|(key, value)| (OsString::from(key), OsString::from(value)));
    let all = std::env::vars_os().chain(more);
    // A variable with a zero byte inside cannot come from an environment.
    all.filter_map(|(key, value)| CString::new([key.into_vec(), value.into_vec()].join(&b'=')).ok()).collect()
}

/// Lets `program` take over what is in `memory` with `luggage`; `own` is the way back. Comes back only with an error.
pub fn hand_over(program: &Image, own: &Image, memory: &OwnedFd, luggage: Luggage) -> io::Error {
    let mut keep = luggage.0;
    keep.extend([memory.as_raw_fd(), own.as_fd().as_raw_fd()]);
    keep.sort_unstable();
    keep.dedup();
    let list = keep.iter().map(RawFd::to_string).collect::<Vec<_>>().join(",");
    let text = format!("{}:{}:{list}", memory.as_raw_fd(), own.as_fd().as_raw_fd());
    renew::exec(Program::Image(program), &arguments(), &environment(&[(RESUME, &text)]), &keep)
}

/// How the test of a program is started.
pub fn test_spec<'a>(
    program: &'a Image,
    memory: &'a OwnedFd,
    output: &'a std::fs::File,
) -> crate::sys::process::Spec<'a> {
    // It is asked, and speaks for nobody.
    let env = environment(&[(CHECK, "1")]).into_iter().filter(|entry| !entry.as_bytes().starts_with(b"NOTIFY_SOCKET="));
    crate::sys::process::Spec {
        image: program,
        argv: arguments(),
        env: env.collect(),
        output: output.as_fd(),
        fds: vec![Some(memory.as_fd())],
        // It shall do what only this process may.
        credentials: None,
    }
}

/// Of the test of what lies at `path`.
pub fn refusal(path: &Path, why: &str) -> Failure {
    Failure::new(Stage::Restart, format!("restart with {}: {why}", path.display()))
        .hint("put a baton in place that can take over, and restart again; nothing has changed")
}
