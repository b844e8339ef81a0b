//! The configuration file: what of it is read, and what must still be there the next time. It is read whole, or refused: a file
//! that cannot be read, that is none, or that is too large is an error, and never stands for the defaults.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::sys::files;

/// Bytes of a configuration file: some 50,000 routes.
pub const MAX_FILE: u64 = 4 << 20;

/// Where a configuration came from, beside the command line. What a later reading must find again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "snake_case")]
pub enum ConfigSource {
    /// An earlier master has read it; this one does not know from where.
    #[default]
    Unknown,
    /// There was no file.
    NoFile,
    File {
        path: PathBuf,
        /// Whether it set any key.
        sets_keys: bool,
    },
}

impl ConfigSource {
    /// Refuses `found` if a file that this configuration came from is gone, or has lost all of its keys: neither is a wish.
    pub fn check_successor(&self, found: &ConfigSource) -> Result<(), ConfigError> {
        let ConfigSource::File { path, sets_keys } = self else { return Ok(()) };
        match found {
            ConfigSource::File { sets_keys: false, path } if *sets_keys => {
                Err(ConfigError::Emptied { path: path.clone() })
            }
            ConfigSource::File { .. } => Ok(()),
            ConfigSource::Unknown | ConfigSource::NoFile => Err(ConfigError::Gone { path: path.clone() }),
        }
    }
}

/// Whether there is anything at `path`, be it a link that leads nowhere.
pub fn is_there(path: &Path) -> Result<bool, ConfigError> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(ConfigError::Read { path: path.to_owned(), source }),
    }
}

/// Returns the whole text of `path`.
pub fn read(path: &Path) -> Result<String, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    let file = files::open_regular(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    let mut text = String::new();
    // It may grow meanwhile.
    file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(failed)?;
    let size = size.max(text.len() as u64);
    if size > MAX_FILE {
        return Err(ConfigError::TooLarge { path: path.to_owned(), size });
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(sets_keys: bool) -> ConfigSource {
        ConfigSource::File { path: "/etc/baton.toml".into(), sets_keys }
    }

    #[test]
    fn file_that_was_there_must_be_there_and_set_something() {
        for (before, after) in [
            (ConfigSource::Unknown, ConfigSource::NoFile),
            (ConfigSource::NoFile, ConfigSource::NoFile),
            (ConfigSource::NoFile, file(true)),
            (file(false), file(false)),
            (file(false), file(true)),
            (file(true), file(true)),
        ] {
            assert!(before.check_successor(&after).is_ok(), "{before:?} {after:?}");
        }
        for before in [file(true), file(false)] {
            assert!(matches!(before.check_successor(&ConfigSource::NoFile), Err(ConfigError::Gone { .. })));
        }
        assert!(matches!(file(true).check_successor(&file(false)), Err(ConfigError::Emptied { .. })));
    }

    #[test]
    fn file_that_is_too_large_is_refused_with_its_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("large");
        std::fs::write(&path, "#".repeat(MAX_FILE as usize)).unwrap();
        assert_eq!(read(&path).unwrap().len() as u64, MAX_FILE);
        std::fs::write(&path, "#".repeat(MAX_FILE as usize + 1)).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("4194305 bytes") && error.contains("4194304"), "{error}");
    }

    #[test]
    fn what_is_no_regular_file_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("nowhere", &link).unwrap();
        for path in [&fifo, dir.path(), Path::new("/dev/zero"), &link] {
            assert!(is_there(path).unwrap(), "{path:?}");
            assert!(matches!(read(path), Err(ConfigError::Read { .. })), "{path:?}");
        }
        assert!(!is_there(&dir.path().join("absent")).unwrap());
    }
}
