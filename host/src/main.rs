//! Entry: one binary, two roles. `baton ...` is the command line; a process started with `BATON_WORKER` set is a child.

#![cfg_attr(fuzzing, no_main)]
#![cfg_attr(fuzzing, allow(dead_code, reason = "libFuzzer is the program"))]

// Floors, lowest last: see ARCHITECTURE.md. A file uses its own folder and lower floors only.
mod child;
mod cli;
mod client;
mod config;
mod control;
mod dev;
mod dirs;
#[cfg(any(test, fuzzing))]
mod fuzz;
mod master;
mod metrics;
mod report;
mod sys;
mod telemetry;
mod version;

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    if std::env::var_os("BATON_WORKER").is_some() {
        return child::run();
    }
    // Whatever ends a program that takes a master's process over, before it has, gives the process back.
    master::resume::arrive();
    let code = cli::main();
    master::resume::go_back("it ended");
    code
}
