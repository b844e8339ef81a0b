//! The child: loads plugins and serves with them, until it is told to retire.

use std::process::ExitCode;

/// Runs a child to its end. Descriptor 3 is its end of the control channel.
pub fn run() -> ExitCode {
    ExitCode::FAILURE
}
