//! Why a master cannot be reached, by what lies beside its socket: whether it has ever run there, has ended, runs but has lost
//! its socket, is stopped, or belongs to another user. Reads files and changes nothing.

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::dirs::PID_FILE;

/// What the pid file beside a socket says.
#[derive(Clone, Debug, PartialEq, Eq)]
enum PidFile {
    Missing,
    Unreadable(String),
    Names(i32, Process),
}

/// How the process of a pid file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Process {
    Ended,
    /// The number is another program's by now.
    Other,
    Runs,
    /// By SIGSTOP or a debugger.
    Stopped,
}

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
    Socket {
        exists: bool,
        pid_file: PidFile,
    },
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
            (_, meta) => Finding::Socket { exists: meta.is_ok(), pid_file: pid_file(&dir.join(PID_FILE)) },
        };
        Diagnosis { socket: socket.into(), finding }
    }
}

/// Whether this user may connect to what is its owner's alone.
fn may_use(meta: &std::fs::Metadata) -> bool {
    let own = nix::unistd::geteuid();
    own.is_root() || meta.uid() == own.as_raw() || meta.mode() & 0o022 != 0
}

fn pid_file(path: &Path) -> PidFile {
    match std::fs::read_to_string(path) {
        Ok(text) => match text.trim().parse() {
            Ok(pid) => PidFile::Names(pid, process(pid)),
            Err(_) => PidFile::Unreadable("it holds no number".into()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => PidFile::Missing,
        Err(error) => PidFile::Unreadable(error.to_string()),
    }
}

fn process(pid: i32) -> Process {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    match state {
        None | Some('Z' | 'X') => Process::Ended,
        Some(_) if !is_master(pid) => Process::Other,
        Some('T' | 't') => Process::Stopped,
        Some(_) => Process::Runs,
    }
}

/// By its command line, which is not secret.
fn is_master(pid: i32) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).skip(1).any(|word| matches!(word, b"run" | b"dev"))
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
            Finding::Socket { exists, pid_file } => match pid_file {
                PidFile::Missing => write!(f, "no server runs there: {dir} has no {PID_FILE}; {start}"),
                PidFile::Unreadable(why) => {
                    write!(f, "whether a server runs there is not known, as {dir}/{PID_FILE} cannot be read: {why}")
                }
                PidFile::Names(pid, Process::Ended | Process::Other) => write!(
                    f,
                    "the server has ended without removing its files: process {pid}, which {dir}/{PID_FILE} names, runs no more; {start}"
                ),
                PidFile::Names(pid, Process::Stopped) => {
                    write!(f, "the server, process {pid}, is stopped: `kill -CONT {pid}` lets it go on")
                }
                PidFile::Names(pid, Process::Runs) if *exists => {
                    write!(f, "the server, process {pid}, runs, but gives no answer at {socket}: its log may say why")
                }
                PidFile::Names(pid, Process::Runs) => write!(
                    f,
                    "the server, process {pid}, runs, but its socket {socket} was removed: it is made anew within ten seconds, or at once with a reload by `kill -USR1 {pid}`"
                ),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(dir: &Path) -> String {
        Diagnosis::of(&dir.join("admin.sock")).to_string()
    }

    #[test]
    fn a_directory_that_is_missing_and_one_without_a_pid_file_are_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(said(&dir.path().join("x")).contains("/x is missing; start a server"));
        assert!(said(dir.path()).contains("has no baton.pid"));
    }

    #[test]
    fn a_pid_file_tells_a_dead_server_from_another_program() {
        let dir = tempfile::tempdir().unwrap();
        let write = |text: &str| std::fs::write(dir.path().join(PID_FILE), text).unwrap();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        for (pid, says) in [(child.id(), "runs no more"), (std::process::id(), "runs no more")] {
            write(&format!("{pid}\n"));
            let text = said(dir.path());
            assert!(text.contains(says) && text.contains(&pid.to_string()), "{text}");
        }
        write("x");
        assert!(said(dir.path()).contains("no number"));
    }

    #[test]
    fn a_server_that_runs_is_told_from_one_that_is_stopped() {
        let dir = tempfile::tempdir().unwrap();
        // A program whose command line looks like a server's.
        let mut child = std::process::Command::new("sh")
            .args(["-c", "read line", "run"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let pid = child.id() as i32;
        std::fs::write(dir.path().join(PID_FILE), pid.to_string()).unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        let wait_for = |says: &str| {
            while !said(dir.path()).contains(says) {
                assert!(std::time::Instant::now() < deadline, "{}", said(dir.path()));
                std::thread::yield_now();
            }
        };
        wait_for("was removed");
        assert!(said(dir.path()).contains(&format!("kill -USR1 {pid}")));
        let socket = std::os::unix::net::UnixListener::bind(dir.path().join("admin.sock")).unwrap();
        wait_for("gives no answer");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGSTOP).unwrap();
        wait_for(&format!("kill -CONT {pid}"));
        child.kill().unwrap();
        child.wait().unwrap();
        drop(socket);
    }
}
