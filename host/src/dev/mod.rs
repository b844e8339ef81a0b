//! `baton dev`: a master whose plugins are built from crates before each reload, and that reloads when a source changes.
//!
//! Owns finding the crates and setting the instance up. The build is `build`'s (it runs as the loop's `Prepare`, so a reload
//! by whomever builds too), the watching `attend`'s (it only asks for reloads).

mod attend;
mod build;
mod cargo;
mod environment;
mod watch;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::cli::{CliError, DevArgs, Overrides};
use crate::config::Config;
use crate::dirs::Dirs;
use crate::master::{self, BadStart, Options};
use crate::telemetry::{self, Role};
use build::Workshop;

#[derive(Debug, thiserror::Error)]
pub enum DevError {
    #[error("failed to find a crate in {}: it holds no Cargo.toml; name the crate's directory", .0.display())]
    NoCrate(PathBuf),
    #[error("failed to read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("failed to understand {}: {text}", path.display())]
    Manifest { path: PathBuf, text: String },
}

impl DevError {
    /// Whether another command line would help.
    pub fn is_usage(&self) -> bool {
        matches!(self, DevError::NoCrate(_))
    }
}

/// A crate to build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crate {
    /// Of the package; of the directory, for a workspace without one.
    pub name: String,
    pub dir: PathBuf,
    pub manifest: PathBuf,
}

impl Crate {
    fn find(dir: &Path) -> Result<Crate, DevError> {
        // The manifest itself may be named too.
        let dir = match dir.parent() {
            Some(parent) if dir.ends_with("Cargo.toml") => {
                if parent.as_os_str().is_empty() {
                    Path::new(".")
                } else {
                    parent
                }
            }
            _ => dir,
        };
        // As cargo names it: artifacts are told by this path.
        let real = dir.canonicalize().map_err(|_| DevError::NoCrate(dir.into()))?;
        let manifest = real.join("Cargo.toml");
        let text = match std::fs::read_to_string(&manifest) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(DevError::NoCrate(dir.into())),
            result => result.map_err(|source| DevError::Read { path: manifest.clone(), source })?,
        };
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| DevError::Manifest {
            path: manifest.clone(),
            text: error.to_string().trim_end().into(),
        })?;
        let package = table.get("package").and_then(|package| package.get("name")).and_then(toml::Value::as_str);
        let folder = real.file_name().map(|name| name.to_string_lossy().into_owned());
        let name = package.map(String::from).or(folder).unwrap_or_else(|| "dev".into());
        Ok(Crate { name, dir: real, manifest })
    }
}

pub fn run(args: &DevArgs) -> Result<u8, CliError> {
    let crates = args.crates.iter().map(|dir| Crate::find(dir)).collect::<Result<Vec<_>, _>>()?;
    let Some(first) = crates.first() else { return Err(DevError::NoCrate(".".into()).into()) };
    let mut overrides = Overrides {
        name: Some(args.name.clone().unwrap_or_else(|| instance_name(&first.name))),
        listen: args.listen.clone(),
        admin: args.admin.clone(),
        set: args.set.clone(),
        log_format: args.log_format,
        default_file: Some(first.dir.join(crate::cli::DEFAULT_FILE)),
        ..Overrides::default()
    };
    let (mut config, _) = overrides.load()?;
    if overrides.listen.is_empty() && !overrides.asked("server")? {
        overrides.listen = config.server.iter().flat_map(|server| &server.listen).map(|text| free(text)).collect();
    }
    // Ours alone: what lies there is what was built.
    overrides.plugins = Some(Dirs::of(&config).map_err(CliError::Dirs)?.runtime.join("plugins"));
    let origin;
    (config, origin) = overrides.load()?;
    telemetry::init(&config.log, Role::Master)?;
    let exe = std::env::current_exe().unwrap_or_default();
    let workshop = Arc::new(Workshop::new(
        crates,
        environment::clean(std::env::vars_os(), &exe),
        args.release,
        args.cargo.clone(),
        config.plugin_dir.clone(),
    ));
    let attendant = workshop.clone();
    let options = Options {
        admin_asked: args.admin.is_some() || overrides.asked("admin.listen")?,
        reread: Box::new(move || overrides.load()),
        // The sources are watched, and what is built of them is reloaded then.
        config_files: None,
        config_owners: Vec::new(),
        pid_file: None,
        dev: true,
        // A first build that fails is a save away from one that does not.
        bad_start: BadStart::ServeEmpty,
        prepare: Some(workshop.clone()),
        binary: None,
        companion: Some(Box::new(move |handle| Box::pin(attend::attend(handle, attendant)))),
        config,
        origin,
    };
    let result = master::run(options);
    workshop.stop();
    Ok(crate::cli::exit_code(&result?))
}

/// A package's name is always one; a directory's may not be.
fn instance_name(name: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let name: String = name.chars().map(|c| if allowed(c) { c } else { '-' }).collect();
    match name.trim_start_matches('.') {
        "" => Config::default().name,
        name => name.into(),
    }
}

/// `address`, or any port there if it is taken. It may be taken a moment later: then the start says so.
fn free(address: &str) -> String {
    match (crate::config::parse_listen(address), TcpListener::bind(address)) {
        (Ok(wanted), Err(error)) if error.kind() == std::io::ErrorKind::AddrInUse => {
            telemetry::print(&format!("{wanted} is in use; another port will do"));
            std::net::SocketAddr::new(wanted.ip(), 0).to_string()
        }
        _ => address.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crate_is_named_by_its_package_and_a_workspace_by_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("some where");
        std::fs::create_dir(&at).unwrap();
        std::fs::write(at.join("Cargo.toml"), "[package]\nname = \"hello\"\n").unwrap();
        assert_eq!(Crate::find(&at).unwrap().name, "hello");
        assert_eq!(Crate::find(&at.join("Cargo.toml")).unwrap(), Crate::find(&at).unwrap());
        std::fs::write(at.join("Cargo.toml"), "[workspace]\n").unwrap();
        let found = Crate::find(&at).unwrap();
        assert_eq!(instance_name(&found.name), "some-where");
    }

    #[test]
    fn what_is_no_crate_is_said_so() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Crate::find(dir.path()).unwrap_err().is_usage());
        assert!(Crate::find(&dir.path().join("nowhere")).unwrap_err().is_usage());
        std::fs::write(dir.path().join("Cargo.toml"), "[package\n").unwrap();
        let error = Crate::find(dir.path()).unwrap_err();
        assert!(!error.is_usage() && error.to_string().contains("Cargo.toml"), "{error}");
    }

    #[test]
    fn any_directory_s_name_makes_an_instance_s() {
        for (name, expected) in [("hello", "hello"), ("a b/ü", "a-b--"), ("..", "default"), (".git", "git")] {
            assert_eq!(instance_name(name), expected);
        }
    }

    #[test]
    fn a_taken_port_gives_way_to_another() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        assert_eq!(free(&address), "127.0.0.1:0");
        drop(taken);
        assert_eq!(free(&address), address);
        assert_eq!(free("nonsense"), "nonsense");
    }
}
