//! The command line: what may be typed, how it ends (exit codes), and nothing of how it is done: `run`, `verbs` and `dev` do.

mod diagnosis;
mod instances;
mod printable;
mod progress;
mod render;
mod run;
mod verbs;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::client::ClientError;
use crate::config::{ConfigError, LogFormat, parse_duration};
use crate::dev::DevError;
use crate::master::{StartError, signals};
use crate::telemetry::TelemetryError;

pub use render::millis;
pub use run::{DEFAULT_FILE, Overrides, exit_code};

/// The one table of exit codes.
pub mod exit {
    /// Done; drained.
    pub const DONE: u8 = 0;
    /// Refused or failed: the old code serves on.
    pub const FAILED: u8 = 1;
    /// Not what may be typed; which instance is unclear.
    pub const USAGE: u8 = 2;
    /// `run` and `dev`: the end cut something.
    pub const CUT: u8 = 3;
    /// No master runs (EX_UNAVAILABLE).
    pub const NO_MASTER: u8 = 69;
    /// The configuration is at fault (EX_CONFIG): starting again will not help.
    pub const CONFIG: u8 = 78;
}

#[derive(Debug, thiserror::Error)]
pub enum CliError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("failed to find the instance's directories: {0}")]
    Dirs(std::io::Error),
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Dev(#[from] DevError),
    #[error("failed to find a running master: {0}")]
    NoInstance(String),
    /// What was found of it nevertheless.
    #[error("{error}\nhint: {hint}")]
    Unreachable { error: Box<CliError>, hint: String },
    #[error("failed to choose an instance: {} run; add --name with one of: {}", .0.len(), .0.join(", "))]
    Several(Vec<String>),
    #[error("failed to find this program's own path, which a restart needs: {0}")]
    Binary(std::io::Error),
    #[error("failed to start the runtime: {0}")]
    Runtime(std::io::Error),
    #[error("failed to see the end of the {verb} within {}: it goes on; `baton status` shows what it waits for", humantime::format_duration(*.after))]
    GaveUp { verb: crate::report::Verb, after: Duration },
    #[error("failed to make the answer printable: {0}")]
    Printable(#[from] serde_json::Error),
    #[error("failed to do this: the running server {0}; `baton restart` replaces it by the program that is installed")]
    OldMaster(&'static str),
    #[error("failed to write to stdout: {0}")]
    Output(std::io::Error),
    #[error("failed to print the configuration: {0}")]
    Print(#[from] toml::ser::Error),
}

impl CliError {
    fn exit_code(&self) -> u8 {
        match self {
            CliError::Config(_) | CliError::Dirs(_) => exit::CONFIG,
            CliError::Telemetry(TelemetryError::Filter { .. }) => exit::CONFIG,
            CliError::Start(error) if error.is_configuration() => exit::CONFIG,
            CliError::Client(ClientError::NoMaster { .. }) | CliError::NoInstance(_) => exit::NO_MASTER,
            CliError::Unreachable { error, .. } => error.exit_code(),
            CliError::Several(_) => exit::USAGE,
            CliError::Dev(error) if error.is_usage() => exit::USAGE,
            // Whoever read it has read enough: `baton status | head -1`.
            CliError::Output(error) if error.kind() == std::io::ErrorKind::BrokenPipe => exit::DONE,
            _ => exit::FAILED,
        }
    }
}

#[derive(Debug, Parser)]
#[command(
    name = "baton",
    version = crate::version::VERSION,
    about = "A server that swaps the code behind a live port",
    after_help = EXAMPLES,
    disable_help_subcommand = true,
    propagate_version = true
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

const EXAMPLES: &str = "\
Examples:
  baton run                      # serve ./plugins/*.so on 127.0.0.1:8080
  baton dev                      # build this crate, serve it, rebuild and swap at each save
  baton reload                   # swap in what lies in the plugin directory now
  baton rollback                 # back to what served before
  baton status
  baton shutdown

Exit codes: 0 done, 1 refused or failed (the old code serves on), 2 usage, 69 no master runs;
run and dev: 0 drained, 3 something was cut, 78 configuration, 1 otherwise.";

const RUN_EXAMPLES: &str = "\
Examples:
  baton run
  baton run --plugins /srv/plugins --listen 0.0.0.0:8080 --listen '[::1]:8080'
  baton run --watch                       # reload whenever a plugin or the configuration changes
  baton run -c /etc/baton/baton.toml --set drain.timeout=30s
  baton run --set signals.preset=gf       # HUP shuts down, as gf has it
  baton run --print-config                # what would be in force
  baton run --print-config=reference      # every key with its default";

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serve the plugins of a directory; reload on SIGHUP, drain and end on SIGTERM
    #[command(after_help = format!("{RUN_EXAMPLES}\n\n{}", signals::summary()))]
    Run(Box<RunArgs>),
    /// Build a plugin crate, serve it, and rebuild and swap whenever a source changes
    #[command(after_help = "\
Examples:
  baton dev                               # the crate in this directory
  baton dev examples/hello -r             # in release mode
  baton dev app auth --listen 127.0.0.1:3000
  baton dev -- --features sqlite          # after --, arguments for cargo build

Enter and `baton reload` rebuild too. A build that fails is shown; the old code serves on.
A baton.toml beside the (first) crate's Cargo.toml is honoured.")]
    Dev(Box<DevArgs>),
    /// Swap in the plugins and configuration as they are on disk now
    #[command(after_help = "\
Examples:
  baton reload                            # returns once the new code serves and is settled
  baton reload --wait switched            # returns once it serves
  baton reload --wait drained             # returns once the old code has ended
  baton reload --json | jq .result
  baton reload --allow-empty              # even if no plugin is left
  baton reload --force                    # even what was rolled back
  baton reload --cold                     # for plugins of which only one process can run

With --cold the old code ends before the new code starts. Meanwhile connections wait; what is in flight has
shutdown.timeout to end, connections that are open and idle are closed within shutdown.idle. If the new code fails, the old code
is started again and the reload is refused.

Exit codes: 0 switched, 1 refused or rolled back (the old code serves on), 2 usage, 69 no master runs.")]
    Reload(ReloadArgs),
    /// End now what still drains: old generations, with the requests that are in flight there
    #[command(after_help = "\
Examples:
  baton cut                               # returns once the old code has ended
  baton cut --generation 7
  baton cut --json | jq .drain.cut

What serves is not touched. Exit codes: 0 ended, 1 refused, 2 usage, 69 no master runs.")]
    Cut(CutArgs),
    /// Go back to the set that served before; what is given up is not taken again until it changes
    #[command(after_help = "\
Examples:
  baton rollback                          # to the set before the one that serves
  baton rollback --to 6                   # to that of generation 6
  baton rollback --with-config            # with all of its configuration

It restores plugins and their [plugins.NAME] sections; --with-config also addresses, routes and all else. What was
given up is held back: `baton status` lists it, a reload takes it once its content has changed, or with --force.

Exit codes: 0 switched, 1 refused or rolled back (the old code serves on), 2 usage, 69 no master runs.")]
    Rollback(RollbackArgs),
    /// Replace the running binary by the one that is installed now, in place, then reload
    #[command(after_help = "\
Examples:
  baton restart                           # after a new binary was moved into the old one's place
  baton restart --wait drained            # returns once the old code has ended
  baton restart --json | jq .result

The server's process goes on with the binary at the path that it was started by: the same pid, ports and connections.
The binary is tested first; one that cannot take over is refused, and one that fails to gives the process back.

Exit codes: 0 switched, 1 refused or rolled back (the old code serves on), 2 usage, 69 no master runs.")]
    Restart(ReloadArgs),
    /// Drain and end the server
    #[command(
        alias = "stop",
        after_help = "\
Examples:
  baton shutdown                          # returns once the server has ended
  baton stop --wait begun                 # returns at once

A second `baton shutdown` does not cut; `baton cut` does, and so does a second SIGTERM."
    )]
    Shutdown(ShutdownArgs),
    /// Show what serves, since when, and how the last operation ended
    #[command(after_help = "\
Examples:
  baton status
  baton status --name api --json | jq '.generations[0].load'")]
    Status(StatusArgs),
    /// Print the link to the admin page; it holds the token
    #[command(after_help = "\
Examples:
  baton admin
  xdg-open \"$(baton admin)\"
  baton admin --metrics                   # the file with the token for Prometheus
  baton admin --rotate                    # new tokens: those before are void

--rotate needs a running server. Without one remove admin-token and metrics-token from the state directory: the next
start makes new ones.")]
    Admin(AdminArgs),
    /// Print a completion script
    #[command(after_help = "\
Examples:
  baton completions bash > ~/.local/share/bash-completion/completions/baton
  baton completions zsh > ~/.zfunc/_baton")]
    Completions { shell: clap_complete::Shell },
}

#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub overrides: Overrides,
    /// Where to write the process id [default: baton.pid in the runtime directory]
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// End if the plugins cannot be started as they are, instead of serving the last good set
    #[arg(long)]
    pub strict: bool,
    /// Print the configuration and end: what is in force, or every key with its default
    #[arg(long, value_name = "WHICH", num_args = 0..=1, require_equals = true, default_missing_value = "effective")]
    pub print_config: Option<PrintConfig>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum PrintConfig {
    Effective,
    Reference,
}

#[derive(Debug, Args)]
pub struct DevArgs {
    /// Directories of plugin crates
    #[arg(value_name = "CRATE_DIR", default_value = ".")]
    pub crates: Vec<PathBuf>,
    /// Address to listen on, IP:PORT or unix:PATH; 127.0.0.1:8080, or another port if that is taken
    #[arg(long, value_name = "ADDR")]
    pub listen: Vec<String>,
    /// Build in release mode
    #[arg(short, long)]
    pub release: bool,
    /// Name of the instance [default: the first crate's]
    #[arg(long)]
    pub name: Option<String>,
    /// Address of the admin page, or "off"
    #[arg(long, value_name = "ADDR")]
    pub admin: Option<String>,
    /// Set a key of the configuration
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// How log lines look
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// Arguments for `cargo build`
    #[arg(last = true, value_name = "CARGO_ARGS")]
    pub cargo: Vec<String>,
}

/// Which instance is meant.
#[derive(Clone, Debug, Default, Args)]
pub struct Which {
    /// Name of the instance; not needed if only one runs
    #[arg(long)]
    pub name: Option<String>,
    /// Its admin socket, if it lies in an unusual place
    #[arg(long, value_name = "PATH", conflicts_with = "name")]
    pub socket: Option<PathBuf>,
}

/// Also of a restart, which ends with a reload.
#[derive(Debug, Args)]
pub struct ReloadArgs {
    #[command(flatten)]
    which: Which,
    /// Go on even if no plugin is left: every request is answered 503 then
    #[arg(long)]
    allow_empty: bool,
    /// Take what was rolled back or quarantined, too
    #[arg(long)]
    force: bool,
    /// End what serves before its successor starts: for plugins that have what only one process can have
    #[arg(long)]
    cold: bool,
    #[command(flatten)]
    waiting: Waiting,
}

#[derive(Debug, Args)]
pub struct RollbackArgs {
    #[command(flatten)]
    which: Which,
    /// The generation whose set shall serve again [default: the one before]
    #[arg(long, value_name = "GENERATION")]
    to: Option<u64>,
    /// Restore all of its configuration, not only its plugins'
    #[arg(long)]
    with_config: bool,
    /// End what serves before its successor starts: for plugins that have what only one process can have
    #[arg(long)]
    cold: bool,
    #[command(flatten)]
    waiting: Waiting,
}

/// How a switch is waited for, and shown.
#[derive(Debug, Args)]
pub struct Waiting {
    /// Until when to wait
    #[arg(long, value_enum, default_value_t = Wait::Settled)]
    wait: Wait,
    /// Give up waiting after this long (the operation goes on) [default: 2min until it serves, then 15min]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    timeout: Option<Duration>,
    /// Show all there is about a refusal
    #[arg(short, long)]
    verbose: bool,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Wait {
    /// The new code serves
    Switched,
    /// And its probation is over (probation.window): without one, at once
    Settled,
    /// The old code has ended
    Drained,
}

#[derive(Debug, Args)]
pub struct CutArgs {
    #[command(flatten)]
    which: Which,
    /// This one alone
    #[arg(long, value_name = "N")]
    generation: Option<u64>,
    /// Give up waiting after this long (the cut goes on)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "30s")]
    timeout: Duration,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct ShutdownArgs {
    #[command(flatten)]
    which: Which,
    /// Until when to wait
    #[arg(long, value_enum, default_value_t = WaitEnd::Ended)]
    wait: WaitEnd,
    /// Give up waiting after this long (the shutdown goes on)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "15min")]
    timeout: Duration,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WaitEnd {
    /// The shutdown has begun
    Begun,
    /// The server has ended
    Ended,
}

#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    which: Which,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct AdminArgs {
    #[command(flatten)]
    which: Which,
    /// Replace the tokens first; pages that are open must log in again
    #[arg(long)]
    rotate: bool,
    /// Print the path of the file with the token that reads /metrics and nothing else
    #[arg(long)]
    metrics: bool,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

/// Parses, does, and says how it ended.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and usage; who closed the pipe has read enough.
            error.print().ok();
            return ExitCode::from(if error.use_stderr() { exit::USAGE } else { exit::DONE });
        }
    };
    let result = match cli.verb {
        Verb::Run(args) => run::run(&args),
        Verb::Dev(args) => crate::dev::run(&args),
        Verb::Reload(args) => verbs::reload(&args),
        Verb::Cut(args) => verbs::cut(&args),
        Verb::Rollback(args) => verbs::rollback(&args),
        Verb::Restart(args) => verbs::restart(&args),
        Verb::Shutdown(args) => verbs::shutdown(&args),
        Verb::Status(args) => verbs::status(&args),
        Verb::Admin(args) => verbs::admin(&args),
        Verb::Completions { shell } => completions(shell),
    };
    let code = result.unwrap_or_else(|error| {
        let code = error.exit_code();
        match code {
            exit::DONE => {}
            // Where the log goes, its readers look.
            _ if crate::telemetry::is_on() => tracing::error!("{error}"),
            _ => crate::telemetry::print(&printable::text(&format!("baton: {error}{}", hint(&error)))),
        }
        code
    });
    crate::telemetry::flush();
    ExitCode::from(code)
}

/// What was found beside the socket of a master that gave no answer.
fn hint(error: &CliError) -> String {
    match error {
        CliError::Client(
            ClientError::NoMaster { socket, .. }
            | ClientError::Connect { socket, .. }
            | ClientError::NoAnswer { socket, .. },
        ) => format!("\nhint: {}", diagnosis::Diagnosis::of(socket)),
        CliError::Unreachable { error, .. } => hint(error),
        _ => String::new(),
    }
}

fn completions(shell: clap_complete::Shell) -> Result<u8, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "baton", &mut script);
    say(&String::from_utf8_lossy(&script))?;
    Ok(exit::DONE)
}

/// To stdout, all of it.
fn say(text: &str) -> Result<(), CliError> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(CliError::Output)
}

#[cfg(test)]
mod tests;
