//! `baton run`: the effective configuration out of file, `--set` and options, and a master started with it. The same is read
//! again at each reload, so that an option given at the start counts then too.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{CliError, PrintConfig, RunArgs, exit, say};
use crate::config::{self, Certificate, Config, ConfigError, ConfigSource, LogFormat, REFERENCE};
use crate::master::{self, BadStart, Exit, Options, StartError};
use crate::report::{Failure, Stage};
use crate::telemetry::{self, Role};

/// The file that is read if none is named.
pub const DEFAULT_FILE: &str = "baton.toml";

/// What the command line sets, over the file.
#[derive(Clone, Debug, Default, Args)]
pub struct Overrides {
    /// Configuration file [default: ./baton.toml if there is one]
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory whose *.so files are served [default: ./plugins]
    #[arg(long, value_name = "DIR")]
    pub plugins: Option<PathBuf>,
    /// Address to listen on, IP:PORT, unix:PATH or systemd:NAME, instead of the file's; may be given more than once [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    pub listen: Vec<String>,
    /// Certificate in PEM form, those up to one that clients know behind it: the addresses speak TLS
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Its private key in PEM form
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Address of the admin page, or "off" [default: 127.0.0.1:9700, or another port if that is taken]
    #[arg(long, value_name = "ADDR")]
    pub admin: Option<String>,
    /// Reload whenever a plugin, a certificate or the configuration changes: watch.enabled
    #[arg(short, long)]
    pub watch: bool,
    /// Name of the instance: its directories, and what --name means elsewhere
    #[arg(long)]
    pub name: Option<String>,
    /// Set a key of the configuration, such as drain.timeout=30s
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// How log lines look
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// What is read, if it is there and nothing is named.
    #[arg(skip = Some(PathBuf::from(DEFAULT_FILE)))]
    pub default_file: Option<PathBuf>,
}

impl Overrides {
    /// Makes paths absolute: what they mean must not depend on when they are read.
    fn settle(&mut self) -> std::io::Result<()> {
        let paths =
            [&mut self.config, &mut self.plugins, &mut self.tls_cert, &mut self.tls_key, &mut self.default_file];
        for path in paths.into_iter().flatten() {
            *path = std::path::absolute(&path)?;
        }
        Ok(())
    }

    /// The file that counts, if any.
    fn file(&self) -> Result<Option<&Path>, ConfigError> {
        match (self.config.as_deref(), self.default_file.as_deref()) {
            (None, Some(path)) => Ok(config::is_there(path)?.then_some(path)),
            (named, _) => Ok(named),
        }
    }

    /// Those that it may be read from.
    fn files(&self) -> Vec<PathBuf> {
        self.config.iter().chain(self.default_file.iter().filter(|_| self.config.is_none())).cloned().collect()
    }

    /// The effective configuration, as it is now, and where it came from.
    pub fn load(&self) -> Result<(Config, ConfigSource), ConfigError> {
        let (mut config, origin) = Config::load_known(self.file()?, &self.set)?;
        if let Some(dir) = &self.plugins {
            config.plugin_dir = dir.clone();
        }
        if let Some(address) = &self.admin {
            config.admin.listen = address.clone();
        }
        if let Some(name) = &self.name {
            config.name = name.clone();
        }
        config.watch.enabled |= self.watch;
        if let Some(format) = self.log_format {
            config.log.format = format;
        }
        if !self.listen.is_empty() {
            // One group with the first's settings: which address belongs to which of several, the option cannot say.
            config.server.truncate(1);
            for server in &mut config.server {
                server.listen = self.listen.clone();
            }
        }
        if let (Some(cert), Some(key)) = (&self.tls_cert, &self.tls_key) {
            if config.server.len() > 1 {
                let why = "several servers are there, and --tls-cert cannot say which is meant: set it in the file";
                return Err(ConfigError::at_key("server.tls", why.into()));
            }
            for server in &mut config.server {
                server.tls = vec![Certificate { cert: cert.clone(), key: key.clone() }];
            }
        }
        // Shown and logged as what it means. Without a current directory it stays as it was written.
        if let Ok(absolute) = std::path::absolute(&config.plugin_dir) {
            config.plugin_dir = absolute;
        }
        config.validate()?;
        Ok((config, origin))
    }

    /// Those of `store.owners` that the command line names: a file cannot vouch for itself.
    fn owners(&self) -> Result<Vec<String>, ConfigError> {
        let of_store = self.set.iter().filter(|setting| setting.trim_start().starts_with("store"));
        Ok(Config::load_known(None, &of_store.cloned().collect::<Vec<_>>())?.0.store.owners)
    }

    /// Whether `key` (such as "admin.listen") was asked for by anyone, be it with its default value.
    pub fn asked(&self, key: &str) -> Result<bool, ConfigError> {
        let by_setting = self.set.iter().any(|setting| setting.split('=').next().is_some_and(|k| k.trim() == key));
        let Some(path) = self.file()? else { return Ok(by_setting) };
        let text = config::read_file(path)?;
        // It has been read before; a file broken since is found broken by whoever reads it whole.
        let table = text.parse::<toml::Table>().unwrap_or_default();
        let mut at = Some(&toml::Value::Table(table)).cloned();
        for part in key.split('.') {
            at = at.and_then(|value| value.get(part).cloned());
        }
        Ok(by_setting || at.is_some())
    }
}

/// Runs a master to its end. Whoever started it is told why, if it could not begin.
pub fn run(args: &RunArgs) -> Result<u8, CliError> {
    let result = start(args);
    if let Err(error) = &result {
        master::tell_systemd_of_failure(&error.to_string(), errno(error));
    }
    result
}

/// The kernel's word, if there is one; else of what the operator wrote EINVAL.
fn errno(error: &CliError) -> Option<i32> {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if let Some(errno) = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error) {
            return Some(errno);
        }
        cause = error.source();
    }
    (error.exit_code() == exit::CONFIG).then_some(nix::errno::Errno::EINVAL as i32)
}

fn start(args: &RunArgs) -> Result<u8, CliError> {
    let mut overrides = args.overrides.clone();
    overrides.settle().map_err(CliError::Dirs)?;
    if let Some(PrintConfig::Reference) = args.print_config {
        say(REFERENCE)?;
        return Ok(exit::DONE);
    }
    let (config, origin) = overrides.load()?;
    if args.print_config.is_some() {
        say(&toml::to_string(&config)?)?;
        return Ok(exit::DONE);
    }
    if let Some(memory) = master::resume::checking() {
        say(&master::resume::check(memory, &config, &origin).map_err(StartError::from)?)?;
        return Ok(exit::DONE);
    }
    telemetry::init(&config.log, Role::Master)?;
    let admin_asked = overrides.admin.is_some() || overrides.asked("admin.listen")?;
    let options = Options {
        config,
        origin,
        pid_file: args.pid_file.as_ref().map(std::path::absolute).transpose().map_err(CliError::Dirs)?,
        admin_asked,
        dev: false,
        bad_start: if args.strict { BadStart::Exit } else { BadStart::LastGood },
        prepare: None,
        binary: Some(master::resume::own_path().map_err(CliError::Binary)?),
        companion: None,
        config_files: Some(overrides.files()),
        config_owners: overrides.owners()?,
        reread: Box::new(move || overrides.load()),
    };
    let exit = master::run(options)?;
    let code = exit_code(&exit);
    if let Exit::StartFailed(failure) = &exit {
        let errno = (code == exit::CONFIG).then_some(nix::errno::Errno::EINVAL as i32);
        master::tell_systemd_of_failure(&format!("failed to {}", failure.error), errno);
    }
    Ok(code)
}

/// How a master ended, for whoever started it.
pub fn exit_code(exit: &Exit) -> u8 {
    match exit {
        Exit::Drained => exit::DONE,
        Exit::Cut => exit::CUT,
        // The log has said why.
        Exit::StartFailed(Failure { stage: Stage::Config | Stage::Tls, .. }) => exit::CONFIG,
        Exit::StartFailed(_) => exit::FAILED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> (tempfile::TempDir, Option<PathBuf>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("baton.toml");
        std::fs::write(&path, text).unwrap();
        (dir, Some(path))
    }

    #[test]
    fn options_win_over_settings_and_those_over_the_file() {
        let (_dir, config) = file("name = \"file\"\nworkers = 1\n[log]\nlevel = \"debug\"\n");
        let overrides = Overrides {
            config,
            name: Some("option".into()),
            set: vec!["name=setting".into(), "workers=2".into()],
            plugins: Some("/srv/p".into()),
            admin: Some("off".into()),
            log_format: Some(LogFormat::Compact),
            listen: vec!["127.0.0.1:1".into(), "127.0.0.1:2".into()],
            tls_cert: Some("/c".into()),
            tls_key: Some("/k".into()),
            default_file: None,
            watch: true,
        };
        let config = overrides.load().unwrap().0;
        assert!(config.watch.enabled);
        assert_eq!((config.name.as_str(), config.workers, config.log.level.as_str()), ("option", 2, "debug"));
        assert_eq!((config.admin.listen.as_str(), config.log.format), ("off", LogFormat::Compact));
        assert_eq!(config.plugin_dir, Path::new("/srv/p"));
        assert_eq!(config.server.len(), 1);
        assert_eq!(config.server[0].listen, ["127.0.0.1:1", "127.0.0.1:2"]);
        assert_eq!(config.server[0].tls, [Certificate { cert: "/c".into(), key: "/k".into() }]);
    }

    #[test]
    fn the_same_options_count_when_it_is_read_again() {
        let (_dir, config) = file("workers = 1\n");
        let path = config.clone().unwrap();
        let overrides = Overrides { config, name: Some("x".into()), ..Overrides::default() };
        assert_eq!(overrides.load().unwrap().0.workers, 1);
        std::fs::write(path, "workers = 5\n").unwrap();
        let config = overrides.load().unwrap().0;
        assert_eq!((config.workers, config.name.as_str()), (5, "x"));
    }

    #[test]
    fn a_bad_option_is_refused_like_a_bad_file() {
        let bad = |overrides: Overrides| overrides.load().unwrap_err().to_string();
        assert!(bad(Overrides { listen: vec!["nowhere".into()], ..Overrides::default() }).contains("IP:PORT"));
        assert!(bad(Overrides { name: Some("a/b".into()), ..Overrides::default() }).contains("letters"));
        assert!(bad(Overrides { config: Some("/nowhere/baton.toml".into()), ..Overrides::default() }).contains("read"));
    }

    #[test]
    fn a_certificate_by_option_is_for_one_server() {
        let (_dir, config) = file(
            "[[server]]\nname = \"a\"\nlisten = [\"127.0.0.1:1\"]\n[[server]]\nname = \"b\"\nlisten = [\"127.0.0.1:2\"]\n",
        );
        let overrides =
            Overrides { config, tls_cert: Some("/c".into()), tls_key: Some("/k".into()), ..Overrides::default() };
        assert!(overrides.load().unwrap_err().to_string().contains("--tls-cert"));
        let listen = vec!["127.0.0.1:1".into()];
        assert!(Overrides { listen, ..overrides }.load().unwrap().0.server[0].is_tls());
    }

    #[test]
    fn asking_for_the_default_is_asking() {
        let (_dir, config) = file("[admin]\nlisten = \"127.0.0.1:9700\"\n");
        assert!(Overrides { config, ..Overrides::default() }.asked("admin.listen").unwrap());
        let (_dir, config) = file("[admin]\nhosts = []\n");
        let overrides = Overrides { config, ..Overrides::default() };
        assert!(!overrides.asked("admin.listen").unwrap());
        let set = vec!["admin.listen=127.0.0.1:9700".into()];
        assert!(Overrides { set, ..overrides }.asked("admin.listen").unwrap());
    }

    #[test]
    fn what_is_printed_can_be_read_back() {
        let set = vec!["plugins.a.config.x=1".into(), "drain.max=never".into()];
        let config = Overrides { set, ..Overrides::default() }.load().unwrap().0;
        let (_dir, path) = file(&toml::to_string(&config).unwrap());
        assert_eq!(Config::load(path.as_deref(), &[]).unwrap(), config);
    }

    #[test]
    fn owners_of_the_file_come_from_the_command_line_alone() {
        let (_dir, config) = file("user = \"nobody\"\n[store]\nowners = [\"file\"]\n");
        // Which holds with the file alone.
        let set = vec!["group=\"nogroup\"".to_owned()];
        let overrides = Overrides { config, set, ..Overrides::default() };
        assert!(overrides.owners().unwrap().is_empty());
        let set = vec!["store.owners=[\"deploy\"]".to_owned()];
        assert_eq!(Overrides { set, ..overrides }.owners().unwrap(), ["deploy"]);
    }

    #[test]
    fn exit_codes_are_those_of_the_table() {
        assert_eq!(exit_code(&Exit::Drained), 0);
        assert_eq!(exit_code(&Exit::Cut), 3);
        assert_eq!(exit_code(&Exit::StartFailed(Failure::new(Stage::Config, "x"))), 78);
        assert_eq!(exit_code(&Exit::StartFailed(Failure::new(Stage::Tls, "x"))), 78);
        assert_eq!(exit_code(&Exit::StartFailed(Failure::new(Stage::Load, "x"))), 1);
    }
}
