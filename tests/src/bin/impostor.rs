//! Stands where the program under test was installed, and fails in the way that `BATON_IMPOSTOR` says: `hang`, or `late`:
//! then it passes every test, by the real program at `BATON_REAL`, and when it is to take over it first puts a named pipe
//! in the place of the configuration file `BATON_IMPOSTOR_CONFIG`, so that whoever waits at its other end decides what comes.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use nix::sys::stat::Mode;

fn main() -> ExitCode {
    let var = |name: &str| std::env::var_os(name).unwrap_or_default();
    match var("BATON_IMPOSTOR").to_str() {
        Some("hang") => loop {
            std::thread::park();
        },
        Some("late") => {
            let config = std::path::PathBuf::from(var("BATON_IMPOSTOR_CONFIG"));
            if std::env::var_os("BATON_RESUME").is_some() {
                let pipe = config.with_extension("pipe");
                let placed = nix::unistd::mkfifo(&pipe, Mode::S_IRWXU).map_err(std::io::Error::from);
                if let Err(error) = placed.and_then(|()| std::fs::rename(&pipe, &config)) {
                    eprintln!("impostor: failed to place a pipe: {error}");
                }
            }
            let mut args = std::env::args_os();
            let name = args.next().unwrap_or_default();
            let error = Command::new(var("BATON_REAL")).arg0(name).args(args).exec();
            eprintln!("impostor: failed to become the real program: {error}");
        }
        _ => eprintln!("impostor: BATON_IMPOSTOR says nothing known"),
    }
    ExitCode::FAILURE
}
