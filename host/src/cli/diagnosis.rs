//! Why a master cannot be reached, by what lies beside its socket: whether it has ever run there, has ended, runs but has lost
//! its socket, is stopped, or belongs to another user. Names as running only the process that holds the lock. Reads files and
//! changes nothing.

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::dirs::{LOCK, PID_FILE};
use crate::sys::files;

/// What is known of a socket that gave no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnosis {
    socket: PathBuf,
    finding: Finding,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Finding {
    NoDirectory,
    /// Of the directory or the socket, which this user may not use.
    OtherUser {
        owner: u32,
    },
    /// Neither a lock nor a pid file.
    NoServer,
    /// The pid file is there, and no process holds the lock.
    Ended {
        pid: Option<i32>,
    },
    Running {
        pid: i32,
        activity: Activity,
        has_socket: bool,
    },
    Unknown(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Activity {
    Runs,
    /// By SIGSTOP or a debugger.
    Stopped,
}

impl Diagnosis {
    pub fn of(socket: &Path) -> Diagnosis {
        let dir = socket.parent().unwrap_or(Path::new("."));
        let finding = match (dir.metadata(), socket.symlink_metadata()) {
            (Err(error), _) if error.kind() == io::ErrorKind::NotFound => Finding::NoDirectory,
            (_, Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
                // What is above the directory may be closed, too.
                let closed = dir.ancestors().find_map(|dir| dir.metadata().ok());
                Finding::OtherUser { owner: closed.map_or(0, |meta| meta.uid()) }
            }
            (_, Ok(meta)) if !may_use(&meta) => Finding::OtherUser { owner: meta.uid() },
            (_, meta) => find_server(dir, meta.is_ok()),
        };
        Diagnosis { socket: socket.into(), finding }
    }
}

/// Whether this user may connect to what is its owner's alone.
fn may_use(meta: &std::fs::Metadata) -> bool {
    let own = nix::unistd::geteuid();
    own.is_root() || meta.uid() == own.as_raw() || meta.mode() & 0o022 != 0
}

/// A server runs if a process holds its lock. The number in the pid file may be another program's by now.
fn find_server(dir: &Path, has_socket: bool) -> Finding {
    let owner = match files::lock_owner(&dir.join(LOCK)) {
        Ok(owner) => owner.and_then(|pid| Some((pid, activity(pid)?))),
        Err(error) => return Finding::Unknown(error.to_string()),
    };
    match (owner, std::fs::read_to_string(dir.join(PID_FILE))) {
        (Some((pid, activity)), _) => Finding::Running { pid, activity, has_socket },
        (None, Ok(text)) => Finding::Ended { pid: text.trim().parse().ok() },
        (None, Err(error)) if error.kind() == io::ErrorKind::NotFound => Finding::NoServer,
        (None, Err(_)) => Finding::Ended { pid: None },
    }
}

/// Returns `None` if the process has ended.
fn activity(pid: i32) -> Option<Activity> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    match stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next())? {
        'Z' | 'X' => None,
        'T' | 't' => Some(Activity::Stopped),
        _ => Some(Activity::Runs),
    }
}

/// What was found, and the remedy.
impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let socket = self.socket.display();
        let dir = self.socket.parent().unwrap_or(Path::new(".")).display();
        let start = "start a server with `baton run`, or choose another with --name or --socket";
        match &self.finding {
            Finding::NoDirectory => write!(f, "no server has run there: {dir} is missing; {start}"),
            Finding::OtherUser { owner } => write!(
                f,
                "{socket} belongs to another user, uid {owner}: run this as that user (`sudo -u '#{owner}' baton ...`) or as root"
            ),
            Finding::NoServer => {
                write!(f, "no server runs there: {dir} has no {PID_FILE}, and no process holds {dir}/{LOCK}; {start}")
            }
            Finding::Ended { pid } => {
                let named = pid.map(|pid| format!(" (process {pid}, by {dir}/{PID_FILE})")).unwrap_or_default();
                write!(
                    f,
                    "the server{named} has ended without removing its files: no process holds {dir}/{LOCK}; {start}"
                )
            }
            Finding::Running { pid, activity: Activity::Stopped, .. } => {
                write!(f, "the server, process {pid}, is stopped: `kill -CONT {pid}` lets it go on")
            }
            Finding::Running { pid, has_socket: true, .. } => {
                write!(f, "the server, process {pid}, runs, but gives no answer at {socket}: its log may say why")
            }
            Finding::Running { pid, .. } => write!(
                f,
                "the server, process {pid}, runs, but its socket {socket} was removed: it is made anew within ten seconds, or at once with a reload by `kill -USR1 {pid}`"
            ),
            Finding::Unknown(why) => {
                write!(f, "whether a server runs there is not known, as /proc/locks cannot be read: {why}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::sys::files::Lock;

    fn said(dir: &Path) -> String {
        Diagnosis::of(&dir.join("admin.sock")).to_string()
    }

    /// A process that ends with its standard input.
    fn start_process(program: &str, args: &[&str]) -> Child {
        Command::new(program).args(args).stdin(Stdio::piped()).spawn().unwrap()
    }

    fn end(mut child: Child) {
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn missing_directory_and_directory_without_a_server_are_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(said(&dir.path().join("x")).contains("/x is missing; start a server"));
        assert!(said(dir.path()).contains("has no baton.pid"));
    }

    #[test]
    fn pid_file_without_a_lock_is_that_of_a_server_that_ended() {
        let dir = tempfile::tempdir().unwrap();
        let write = |text: &str| std::fs::write(dir.path().join(PID_FILE), text).unwrap();
        // Its number has been reused, by a program whose command line looks like a server's.
        let other = start_process("sh", &["-c", "read line", "run"]);
        drop(Lock::take(&dir.path().join(LOCK)).unwrap());
        write(&format!("{}\n", other.id()));
        let text = said(dir.path());
        assert!(text.contains("has ended") && text.contains(&format!("process {}", other.id())), "{text}");
        assert!(!text.contains("kill"), "{text}");
        end(other);
        write("x");
        assert!(said(dir.path()).contains("the server has ended without removing"), "{}", said(dir.path()));
    }

    #[test]
    fn holder_of_the_lock_is_the_server_that_runs() {
        let dir = tempfile::tempdir().unwrap();
        let lock = Lock::take(&dir.path().join(LOCK)).unwrap();
        let pid = std::process::id();
        // Also if the pid file is elsewhere, or holds the number of another program.
        assert!(said(dir.path()).contains(&format!("kill -USR1 {pid}")), "{}", said(dir.path()));
        std::fs::write(dir.path().join(PID_FILE), "1\n").unwrap();
        assert!(said(dir.path()).contains("was removed"));
        assert!(said(dir.path()).contains(&format!("kill -USR1 {pid}")), "{}", said(dir.path()));
        let socket = std::os::unix::net::UnixListener::bind(dir.path().join("admin.sock")).unwrap();
        assert!(said(dir.path()).contains("gives no answer"));
        drop((socket, lock));
        assert!(said(dir.path()).contains("has ended"));
    }

    #[test]
    fn server_that_is_stopped_is_told_from_one_that_runs() {
        let dir = tempfile::tempdir().unwrap();
        let lock = dir.path().join(LOCK);
        let child = start_process("flock", &["-n", lock.to_str().unwrap(), "-c", "read line"]);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        let wait_for = |says: &str| {
            while !said(dir.path()).contains(says) {
                assert!(std::time::Instant::now() < deadline, "{}", said(dir.path()));
                std::thread::yield_now();
            }
        };
        let pid = child.id() as i32;
        wait_for(&format!("kill -USR1 {pid}"));
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGSTOP).unwrap();
        wait_for(&format!("kill -CONT {pid}"));
        end(child);
    }
}
