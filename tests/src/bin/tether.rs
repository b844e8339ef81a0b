//! Starts a program that dies with who started it: `tether [--core N] [--terminal TTY] [--pass NAME]... PROGRAM ARGS...`.
//!
//! The harness starts every server through this, so that none is left when a test process is killed. It only sets
//! facts of its own process and becomes the program: the pid stays. `--pass` opens a listening socket on a port that the kernel
//! chooses and passes it under that name, as systemd does. `--terminal` begins a session at that terminal, which becomes stdin.

use std::fs::File;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::process::{CommandExt, parent_id};
use std::path::Path;
use std::process::{Command, ExitCode};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{self, Pid};

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
    let mut passed: Vec<(String, TcpListener)> = Vec::new();
    while args.next_if(|arg| arg == "--pass").is_some() {
        let name = args.next().and_then(|name| name.into_string().ok());
        let Some(name) = name else { return fail("--pass needs a name") };
        match pass(3 + passed.len()) {
            Ok(listener) => passed.push((name, listener)),
            Err(error) => return fail(&format!("failed to pass {name}: {error}")),
        }
    }
    let Some(program) = args.next() else {
        return fail("usage: tether [--core N] [--terminal TTY] [--pass NAME]... PROGRAM ARGS...");
    };
    let mut command = Command::new(&program);
    if !passed.is_empty() {
        let names: Vec<&str> = passed.iter().map(|(name, _)| name.as_str()).collect();
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

fn fail(why: &str) -> ExitCode {
    eprintln!("tether: {why}");
    ExitCode::FAILURE
}
