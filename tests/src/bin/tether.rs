//! Starts a program that dies with who started it: `tether [--core N] PROGRAM ARGS...`.
//!
//! The harness starts every server through this, so that none is left when a test process is killed. It only sets two
//! facts of its own process and becomes the program: the pid stays.

use std::os::unix::process::{CommandExt, parent_id};
use std::process::{Command, ExitCode};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

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
    let Some(program) = args.next() else { return fail("usage: tether [--core N] PROGRAM ARGS...") };
    let error = Command::new(&program).args(args).exec();
    fail(&format!("failed to run {}: {error}", program.display()))
}

fn fail(why: &str) -> ExitCode {
    eprintln!("tether: {why}");
    ExitCode::FAILURE
}
