//! The tokens of the admin address: 32 random bytes as hex each, made once per instance, in files that only their owner may
//! read. One is for everything, one for `/metrics` alone. Whoever can read a file may do what its token allows; so a file that
//! others can read is refused, not repaired.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use subtle::ConstantTimeEq;

use crate::dirs::Dirs;

/// Random bytes in a token; twice as many characters.
const BYTES: usize = 32;

#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("failed to read the token {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("failed to make the token {}: {source}", path.display())]
    Make { path: PathBuf, source: std::io::Error },
    #[error("failed to trust the token {}: {why}; delete the file and a new one is made", path.display())]
    Unsafe { path: PathBuf, why: String },
    #[error("failed to get random bytes for a token: {0}")]
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

/// The tokens in force, each with its file.
#[derive(Debug)]
pub struct Tokens {
    admin: Held,
    metrics: Held,
    /// Held while they are replaced, so that two callers do not mix their files.
    replacing: Mutex<()>,
}

#[derive(Debug)]
struct Held {
    path: PathBuf,
    token: Mutex<Token>,
}

impl Held {
    fn open(path: PathBuf) -> Result<Held, TokenError> {
        let token = Mutex::new(Token::open(&path)?);
        Ok(Held { path, token })
    }

    fn get(&self) -> Token {
        locked(&self.token).clone()
    }

    fn restore(&self) -> Result<(), TokenError> {
        match std::fs::symlink_metadata(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => write(&self.path, &self.get()),
            _ => Ok(()),
        }
    }

    fn replace(&self) -> Result<(), TokenError> {
        let token = make(&self.path)?;
        *locked(&self.token) = token;
        Ok(())
    }
}

impl Tokens {
    pub fn open(dirs: &Dirs) -> Result<Tokens, TokenError> {
        let (admin, metrics) = (Held::open(dirs.token())?, Held::open(dirs.metrics_token())?);
        Ok(Tokens { admin, metrics, replacing: Mutex::default() })
    }

    /// The one that allows everything.
    pub fn admin(&self) -> Token {
        self.admin.get()
    }

    /// The one that allows `GET /metrics`.
    pub fn metrics(&self) -> Token {
        self.metrics.get()
    }

    /// Where the token for `/metrics` is.
    pub fn metrics_path(&self) -> &Path {
        &self.metrics.path
    }

    /// Writes those in force into their files again where the files are missing. Blocks on the files.
    pub fn restore(&self) -> Result<(), TokenError> {
        let _replacing = locked(&self.replacing);
        [&self.admin, &self.metrics].into_iter().try_for_each(Held::restore)
    }

    /// Replaces both: the ones before are worth nothing from then on. Blocks on the files.
    pub fn replace(&self) -> Result<(), TokenError> {
        let _replacing = locked(&self.replacing);
        self.admin.replace()?;
        self.metrics.replace()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What it holds is replaced as a whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        write!(text, "{byte:02x}").ok();
        text
    })
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
    let token = Token(hex(&bytes));
    write(path, &token)?;
    Ok(token)
}

fn write(path: &Path, token: &Token) -> Result<(), TokenError> {
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
        file.write_all(token.expose().as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        std::fs::rename(&new, path)
    };
    write().map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::sys::link_swap::{Bait, LinkSwap};

    #[test]
    fn removed_token_files_come_back_with_the_tokens_in_force() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = Dirs { runtime: dir.path().join("run"), state: dir.path().join("state") };
        let tokens = Tokens::open(&dirs).unwrap();
        std::fs::remove_dir_all(&dirs.state).unwrap();
        tokens.restore().unwrap();
        assert_eq!(Token::open(&dirs.token()).unwrap().expose(), tokens.admin().expose());
        assert_eq!(Token::open(&dirs.metrics_token()).unwrap().expose(), tokens.metrics().expose());
        // One that an operator has put there is left alone.
        std::fs::write(dirs.token(), "x").unwrap();
        tokens.restore().unwrap();
        assert_eq!(std::fs::read_to_string(dirs.token()).unwrap(), "x");
    }

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
    fn replaced_tokens_are_worth_nothing_and_the_files_hold_the_new_ones() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = Dirs { runtime: dir.path().into(), state: dir.path().into() };
        let tokens = Tokens::open(&dirs).unwrap();
        let (admin, metrics) = (tokens.admin(), tokens.metrics());
        assert!(!admin.is(metrics.expose().as_bytes()));
        tokens.replace().unwrap();
        for (old, new, path) in
            [(admin, tokens.admin(), dirs.token()), (metrics, tokens.metrics(), dirs.metrics_token())]
        {
            assert!(!new.is(old.expose().as_bytes()));
            assert_eq!(Token::open(&path).unwrap().expose(), new.expose());
            assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o600);
        }
    }

    #[test]
    fn a_token_stays_as_it_was_if_it_cannot_be_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = Dirs { runtime: dir.path().into(), state: dir.path().into() };
        let tokens = Tokens::open(&dirs).unwrap();
        let before = tokens.admin();
        // In the way of the new file.
        std::fs::create_dir(dirs.token().with_extension("new")).unwrap();
        assert!(matches!(tokens.replace(), Err(TokenError::Make { .. })));
        assert_eq!(tokens.admin().expose(), before.expose());
        assert_eq!(Token::open(&dirs.token()).unwrap().expose(), before.expose());
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

    #[test]
    fn token_files_spare_the_target_of_a_swapped_link() {
        for bait in Bait::FOR_FILES {
            let attack = LinkSwap::begin(bait, &["admin-token", "admin-token.new"]);
            let path = attack.folder().join("admin-token");
            attack.run_and_check(|| {
                Token::open(&path).ok();
                make(&path).ok();
            });
        }
    }
}
