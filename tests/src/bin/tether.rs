//! Starts a program that dies with who started it:
//! `tether [--core N] [--terminal TTY] [--subreaper] [--pass NAME]... [--fetch PATH] PROGRAM ARGS...`.
//!
//! The harness starts every server through this, so that none is left when a test process is killed. It only sets
//! facts of its own process and becomes the program: the pid stays. `--pass` opens a listening socket on a port that the kernel
//! chooses and passes it under that name, as systemd does; `--fetch` passes what a store gives at that socket. A watchdog that
//! the environment speaks of is for that program. `--terminal` begins a session at that terminal, which becomes stdin.

use std::fs::File;
use std::io::IoSliceMut;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, parent_id};
use std::path::Path;
use std::process::{Command, ExitCode};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{self, Pid};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

fn main() -> ExitCode {
    let parent = parent_id();
    let mut args = std::env::args_os().skip(1).peekable();
    if let Err(error) = prctl::set_pdeathsig(Signal::SIGKILL) {
        return fail(&format!("failed to tie this process to its parent: {error}"));
    }
    // The parent may have died before the tie was made.
    if parent_id() != parent {
        return fail("the parent is gone");
    }
    if args.next_if(|arg| arg == "--core").is_some() {
        let core = args.next().and_then(|core| core.to_str()?.parse().ok());
        let Some(core) = core else { return fail("--core needs a number") };
        let mut set = CpuSet::new();
        if let Err(error) = set.set(core).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set)) {
            return fail(&format!("failed to take core {core}: {error}"));
        }
    }
    if args.next_if(|arg| arg == "--terminal").is_some() {
        let Some(path) = args.next() else { return fail("--terminal needs a path") };
        if let Err(error) = begin_session(Path::new(&path)) {
            return fail(&format!("failed to begin a session at {}: {error}", path.display()));
        }
    }
    if args.next_if(|arg| arg == "--subreaper").is_some()
        && let Err(error) = prctl::set_child_subreaper(true)
    {
        return fail(&format!("failed to become a subreaper: {error}"));
    }
    let mut passed: Vec<(String, OwnedFd)> = Vec::new();
    while args.next_if(|arg| arg == "--pass").is_some() {
        let name = args.next().and_then(|name| name.into_string().ok());
        let Some(name) = name else { return fail("--pass needs a name") };
        match pass(3 + passed.len()) {
            Ok(listener) => passed.push((name, listener.into())),
            Err(error) => return fail(&format!("failed to pass {name}: {error}")),
        }
    }
    let mut names: Vec<String> = passed.iter().map(|(name, _)| name.clone()).collect();
    if args.next_if(|arg| arg == "--fetch").is_some() {
        let Some(path) = args.next() else { return fail("--fetch needs a path") };
        match fetch(Path::new(&path), 3 + names.len()) {
            Ok(fetched) => names.extend(fetched),
            Err(error) => return fail(&format!("failed to fetch from {}: {error}", path.display())),
        }
    }
    let Some(program) = args.next() else {
        return fail(
            "usage: tether [--core N] [--terminal TTY] [--subreaper] [--pass NAME]... [--fetch PATH] PROGRAM ARGS...",
        );
    };
    let mut command = Command::new(&program);
    if std::env::var_os("WATCHDOG_USEC").is_some() && std::env::var_os("WATCHDOG_PID").is_none() {
        command.env("WATCHDOG_PID", std::process::id().to_string());
    }
    if !names.is_empty() {
        command
            .env("LISTEN_PID", std::process::id().to_string())
            .env("LISTEN_FDS", names.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"));
    }
    let error = command.args(args).exec();
    fail(&format!("failed to run {}: {error}", program.display()))
}

/// The first terminal that the leader of a session opens is the session's (tty_ioctl(4)).
fn begin_session(terminal: &Path) -> std::io::Result<()> {
    unistd::setsid()?;
    let terminal = File::options().read(true).write(true).open(terminal)?;
    Ok(unistd::dup2_stdin(terminal)?)
}

/// A listening socket that the program inherits at `number`: this process has no other descriptors but the standard ones.
fn pass(number: usize) -> std::io::Result<TcpListener> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    if usize::try_from(listener.as_raw_fd()) != Ok(number) {
        return Err(std::io::Error::other(format!("descriptor {number} is taken")));
    }
    fcntl(&listener, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(listener)
}

/// What the store gives, at `number` and the numbers after it; the names.
fn fetch(path: &Path, number: usize) -> std::io::Result<Vec<String>> {
    let store = UnixStream::connect(path)?;
    let mut buffer = [0; 8192];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let len = rustix::net::recvmsg(&store, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes;
    // Its number is the first that the program shall find.
    drop(store);
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(brought) = message {
            fds.extend(brought);
        }
    }
    for (wanted, fd) in (number..).zip(fds) {
        // The lowest number that is free, to stay open.
        let copy = fcntl(&fd, FcntlArg::F_DUPFD(3))?;
        if usize::try_from(copy) != Ok(wanted) {
            return Err(std::io::Error::other(format!("descriptor {wanted} is taken")));
        }
    }
    Ok(String::from_utf8_lossy(&buffer[..len]).split(':').map(str::to_owned).collect())
}

fn fail(why: &str) -> ExitCode {
    eprintln!("tether: {why}");
    ExitCode::FAILURE
}
