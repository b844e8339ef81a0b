//! The admin token: 32 random bytes as hex, made once per instance, in a file that only its owner may read. Whoever can read
//! the file may use the admin address; so a file that others can read is refused, not repaired.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use subtle::ConstantTimeEq;

/// Random bytes in a token; twice as many characters.
const BYTES: usize = 32;

#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("failed to read the admin token {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("failed to make the admin token {}: {source}", path.display())]
    Make { path: PathBuf, source: std::io::Error },
    #[error("failed to trust the admin token {}: {why}; delete the file and a new one is made", path.display())]
    Unsafe { path: PathBuf, why: String },
    #[error("failed to get random bytes for the admin token: {0}")]
    Random(getrandom::Error),
}

#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// The token in `path`, made if there is none.
    pub fn open(path: &Path) -> Result<Token, TokenError> {
        match read(path)? {
            Some(token) => Ok(token),
            None => make(path),
        }
    }

    /// Takes as long for a near miss as for a far one.
    pub fn is(&self, offered: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(offered).into()
    }

    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// Never by accident in a log.
impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

fn read(path: &Path) -> Result<Option<Token>, TokenError> {
    let failed = |source| TokenError::Read { path: path.into(), source };
    let mut file = match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let meta = file.metadata().map_err(failed)?;
    let refuse = |why: String| Err(TokenError::Unsafe { path: path.into(), why });
    if !meta.is_file() {
        return refuse("it is no regular file".into());
    }
    if meta.uid() != nix::unistd::geteuid().as_raw() {
        return refuse(format!("it belongs to uid {}", meta.uid()));
    }
    if meta.mode() & 0o077 != 0 {
        return refuse(format!("others may read it (mode {:04o})", meta.mode() & 0o7777));
    }
    let mut text = String::new();
    (&mut file).take(4096).read_to_string(&mut text).map_err(failed)?;
    let text = text.trim();
    if text.len() != 2 * BYTES || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return refuse(format!("it does not hold {} hexadecimal digits", 2 * BYTES));
    }
    Ok(Some(Token(text.into())))
}

fn make(path: &Path) -> Result<Token, TokenError> {
    let mut bytes = [0; BYTES];
    getrandom::fill(&mut bytes).map_err(TokenError::Random)?;
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let failed = |source| TokenError::Make { path: path.into(), source };
    if let Some(dir) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
    }
    // Whole or not at all: a crash must not leave half a token. Nobody else writes here, the instance's lock is held.
    let new = path.with_extension("new");
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let write = || {
        let mut file: File = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        std::fs::rename(&new, path)
    };
    write().map_err(failed)?;
    Ok(Token(text))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_token_is_made_once_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/admin-token");
        let first = Token::open(&path).unwrap();
        assert_eq!(first.expose().len(), 64);
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o600);
        assert_eq!(path.parent().unwrap().metadata().unwrap().mode() & 0o7777, 0o700);
        assert_eq!(Token::open(&path).unwrap().expose(), first.expose());
        assert!(!format!("{first:?}").contains(first.expose()));
    }

    #[test]
    fn two_instances_have_two_tokens() {
        let dir = tempfile::tempdir().unwrap();
        let [left, right] = ["a", "b"].map(|name| Token::open(&dir.path().join(name)).unwrap());
        assert!(!left.is(right.expose().as_bytes()));
        assert!(left.is(left.expose().as_bytes()));
        assert!(!left.is(&left.expose().as_bytes()[..63]));
        assert!(!left.is(b""));
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin-token");
        Token::open(&path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        let error = Token::open(&path).unwrap_err().to_string();
        assert!(error.contains("0640") && error.contains("delete"), "{error}");
    }

    #[test]
    fn a_file_without_a_token_is_refused_and_a_link_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin-token");
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        assert!(Token::open(&path).unwrap_err().to_string().contains("64"));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(Token::open(&link), Err(TokenError::Read { .. })));
    }
}
