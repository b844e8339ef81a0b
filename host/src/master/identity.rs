//! As whom plugins run: the configured user, found out once at the start, before anything is forked; and whether that user can
//! reach what a child needs. Owns the directories that plugins may write.
//!
//! Only a new master can change it: two generations overlap, and the plugins' data belongs to one user.

use std::ffi::CString;
use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::AtFlags;
use nix::unistd::{Gid, Group, Uid, User, fchownat, getegid, geteuid, getgrouplist, getgroups};

use super::store::Trusted;
use crate::config::Config;
use crate::report::{Rights, RunsAs};
use crate::sys::credentials::Credentials;
use crate::sys::private_dir;
use crate::sys::process::Image;

/// What it takes to run a child as another user, give it its data, and end it; by their numbers in linux/capability.h.
const NEEDED: [(&str, u32); 4] = [("CAP_CHOWN", 0), ("CAP_KILL", 5), ("CAP_SETGID", 6), ("CAP_SETUID", 7)];

/// Of a plugin's data directory.
const DATA_MODE: u32 = 0o700;

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error(
        "failed to run plugins as `{user}`: the server runs as {own}, and only root can change the user; start it as root, or leave `user` out"
    )]
    NotRoot { user: String, own: String },
    #[error("failed to run plugins as `{0}`: that is root; leave `user` out to run them as root")]
    Root(String),
    #[error("failed to find the {what} `{name}`{}", error.as_ref().map(|error| format!(": {error}")).unwrap_or_default())]
    Unknown { what: &'static str, name: String, error: Option<io::Error> },
    #[error("failed to find the group of user `{0}`, which has no entry in passwd; set `group` as well")]
    NoGroup(String),
    #[error("failed to run plugins as `{user}`: this process is root without {}", capabilities.join(", "))]
    Lacks { user: String, capabilities: Vec<&'static str> },
    #[error("failed to let `{user}` reach {}: it may not enter {} (mode {mode:04o}, owner {owner}); `chmod o+x` that, or set state_dir to another", path.display(), blocked.display())]
    Blocked { user: String, path: PathBuf, blocked: PathBuf, mode: u32, owner: u32 },
    #[error("failed to let `{user}` execute this program: its file must be executable by others (chmod 755)")]
    Program { user: String },
    #[error("failed to try out the rights of `{user}`: {source}")]
    System { user: String, source: io::Error },
}

/// As whom plugins run.
#[derive(Clone, Debug)]
pub struct Identity {
    name: String,
    home: PathBuf,
    shell: PathBuf,
    /// Absent if no user is configured.
    credentials: Option<Credentials>,
}

impl Identity {
    /// What `config` says, in the words of this machine's user database.
    pub fn of(config: &Config) -> Result<Identity, IdentityError> {
        let Some(name) = &config.user else { return Ok(Identity::own()) };
        let user = find_user(name)?;
        let group = config.group.as_deref().map(find_group).transpose()?;
        let uid = match (&user, name.parse()) {
            (Some(user), _) => user.uid,
            (None, Ok(number)) => Uid::from_raw(number),
            (None, Err(_)) => return Err(IdentityError::Unknown { what: "user", name: name.clone(), error: None }),
        };
        let gid = match (group, &user) {
            (Some(group), _) => group,
            (None, Some(user)) => user.gid,
            (None, None) => return Err(IdentityError::NoGroup(name.clone())),
        };
        if uid.is_root() {
            return Err(IdentityError::Root(name.clone()));
        }
        if geteuid().is_root() {
            let capabilities = lacking();
            if !capabilities.is_empty() {
                return Err(IdentityError::Lacks { user: name.clone(), capabilities });
            }
        } else if (uid, gid) != (geteuid(), getegid()) {
            return Err(IdentityError::NotRoot { user: name.clone(), own: name_of(geteuid()) });
        }
        let groups = user.as_ref().map(|user| groups_of(&user.name, gid)).transpose()?.unwrap_or_else(|| vec![gid]);
        let groups = groups.into_iter().map(Gid::as_raw).collect();
        let credentials = Some(Credentials { uid: uid.as_raw(), gid: gid.as_raw(), groups });
        Ok(match user {
            Some(User { name, dir, shell, .. }) => Identity { name, home: dir, shell, credentials },
            None => Identity { name: name.clone(), home: "/".into(), shell: "/bin/sh".into(), credentials },
        })
    }

    fn own() -> Identity {
        Identity { name: name_of(geteuid()), home: PathBuf::new(), shell: PathBuf::new(), credentials: None }
    }

    /// What a child is to run with, if not with all that this process has.
    pub fn credentials(&self) -> Option<&Credentials> {
        self.credentials.as_ref()
    }

    /// Variables that say who runs, if that is not who runs this process.
    pub fn variables(&self) -> Vec<(&'static str, &Path)> {
        match &self.credentials {
            None => Vec::new(),
            Some(_) => vec![
                ("HOME", &*self.home),
                ("LOGNAME", Path::new(&self.name)),
                ("SHELL", &*self.shell),
                ("USER", Path::new(&self.name)),
            ],
        }
    }

    pub fn status(&self) -> RunsAs {
        let (uid, gid, rights) = match &self.credentials {
            Some(credentials) => (credentials.uid, credentials.gid, Rights::Own),
            None => (geteuid().as_raw(), getegid().as_raw(), Rights::Masters),
        };
        RunsAs { user: self.name.clone(), uid, gid, rights }
    }

    /// Those that the processes of this instance may run as: workers, also of a master before it was told of a user.
    pub fn uids(&self) -> Vec<u32> {
        let workers = self.credentials.as_ref().map(|credentials| credentials.uid);
        [0, geteuid().as_raw()].into_iter().chain(workers).collect()
    }

    /// Who may write plugin files: members of root's and of this process's groups too, unless plugins are among them.
    pub fn trust(&self) -> Trusted {
        let own = getgroups().unwrap_or_default().into_iter().chain([getegid(), Gid::from_raw(0)]).map(Gid::as_raw);
        match &self.credentials {
            Some(theirs) if theirs.uid != geteuid().as_raw() => {
                let others = own.filter(|gid| *gid != theirs.gid && !theirs.groups.contains(gid));
                Trusted::with_groups(others.collect()).but_never(theirs.uid)
            }
            _ => Trusted::with_groups(own.collect()),
        }
    }

    /// Makes sure that a child can execute `image` and reach `dirs`, which this process has made.
    pub fn check_reach(&self, image: &Image, dirs: &[PathBuf]) -> Result<(), IdentityError> {
        let Some(credentials) = &self.credentials else { return Ok(()) };
        let user = || self.name.clone();
        let look = || (image.may_be_executed(), dirs.iter().find_map(|dir| Some((dir, first_closed(dir)?))));
        let (executable, closed) =
            credentials.try_out(look).map_err(|source| IdentityError::System { user: user(), source })?;
        if let Some((path, blocked)) = closed {
            let (mode, owner) =
                std::fs::metadata(&blocked).map(|meta| (meta.mode() & 0o7777, meta.uid())).unwrap_or((0, 0));
            return Err(IdentityError::Blocked { user: user(), path: path.clone(), blocked, mode, owner });
        }
        if executable { Ok(()) } else { Err(IdentityError::Program { user: user() }) }
    }

    /// Makes the directory `path`, in one that only this process writes, for plugins alone to use.
    pub fn make_dir(&self, path: &Path) -> io::Result<()> {
        let Some((uid, gid)) = self.owner() else { return private_dir::open_or_create(path, DATA_MODE).map(drop) };
        let made = match DirBuilder::new().mode(DATA_MODE).create(path) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(error),
        };
        // From here on by descriptor: whatever may come to lie at the path, this directory alone is changed. O_PATH, since root
        // without CAP_DAC_OVERRIDE may not read another user's directory.
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
        let dir = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        let found = dir.metadata()?;
        let changes_owner = (found.uid(), found.gid()) != (uid, gid);
        if made || changes_owner {
            private_dir::set_mode(dir.as_fd(), DATA_MODE)?;
        }
        if !changes_owner {
            return Ok(());
        }
        if !made && std::fs::read_dir(path)?.next().is_some() {
            let (path, owner) = (path.display(), found.uid());
            tracing::warn!(
                "{path} belonged to uid {owner}; it is {}'s now, its content stays as it is (see chown -R)",
                self.name
            );
        }
        Ok(fchownat(&dir, "", Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::AT_EMPTY_PATH)?)
    }

    /// Whose the plugins' data is, where that is for this process to say.
    fn owner(&self) -> Option<(u32, u32)> {
        let RunsAs { uid, gid, .. } = self.status();
        geteuid().is_root().then_some((uid, gid))
    }
}

/// The first directory on the way to `path`, and that included, that whoever asks may not enter.
fn first_closed(path: &Path) -> Option<PathBuf> {
    let mut way: Vec<&Path> = path.ancestors().filter(|dir| !dir.as_os_str().is_empty()).collect();
    way.reverse();
    // To look up a name in a directory, its own one too, is to enter it (path_resolution(7)).
    let closed = |dir: &&&Path| {
        std::fs::metadata(dir.join(".")).is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
    };
    way.iter().find(closed).map(|dir| dir.to_path_buf())
}

fn find_user(name: &str) -> Result<Option<User>, IdentityError> {
    let found = match name.parse() {
        Ok(number) => User::from_uid(Uid::from_raw(number)),
        Err(_) => User::from_name(name),
    };
    found.map_err(|errno| IdentityError::Unknown { what: "user", name: name.into(), error: Some(errno.into()) })
}

fn find_group(name: &str) -> Result<Gid, IdentityError> {
    if let Ok(number) = name.parse() {
        return Ok(Gid::from_raw(number));
    }
    let unknown = |error| IdentityError::Unknown { what: "group", name: name.into(), error };
    let found = Group::from_name(name).map_err(|errno| unknown(Some(errno.into())))?;
    found.map(|group| group.gid).ok_or_else(|| unknown(None))
}

fn groups_of(user: &str, gid: Gid) -> Result<Vec<Gid>, IdentityError> {
    let unknown = |error| IdentityError::Unknown { what: "groups of", name: user.into(), error: Some(error) };
    let name = CString::new(user).map_err(|error| unknown(error.into()))?;
    getgrouplist(&name, gid).map_err(|errno| unknown(errno.into()))
}

fn name_of(uid: Uid) -> String {
    // Without an entry the number is the name.
    User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name)
}

/// Of what is needed, what this process does not have.
fn lacking() -> Vec<&'static str> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    // Without /proc the attempt will tell.
    let held = line.and_then(|line| u64::from_str_radix(line.trim(), 16).ok()).unwrap_or(u64::MAX);
    NEEDED.iter().filter(|(_, bit)| held & (1 << bit) == 0).map(|(name, _)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::link_swap::{Bait, LinkSwap};

    fn config(settings: &[&str]) -> Config {
        Config::load(None, &settings.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap()
    }

    fn refused(settings: &[&str]) -> String {
        Identity::of(&config(settings)).unwrap_err().to_string()
    }

    #[test]
    fn without_a_user_plugins_have_the_rights_of_the_master() {
        let identity = Identity::of(&config(&[])).unwrap();
        let own = geteuid().as_raw();
        assert_eq!((identity.status().uid, identity.status().rights), (own, Rights::Masters));
        assert!(identity.credentials().is_none() && identity.variables().is_empty());
    }

    #[test]
    fn who_cannot_be_found_or_would_be_root_is_refused() {
        assert!(refused(&["user=nobody-of-that-name"]).contains("find the user `nobody-of-that-name`"));
        assert!(refused(&["user=\"0\"", "group=\"65534\""]).contains("leave `user` out"));
        assert!(refused(&["user=root"]).contains("leave `user` out"));
        assert!(refused(&["user=\"4000000001\""]).contains("set `group`"));
        assert!(refused(&["user=nobody", "group=no-such-group"]).contains("find the group `no-such-group`"));
    }

    #[test]
    fn only_root_may_choose_another_user() {
        let other = config(&["user=\"65533\"", "group=\"65532\""]);
        match Identity::of(&other) {
            Ok(identity) => {
                assert!(geteuid().is_root());
                let Credentials { uid, gid, groups } = identity.credentials().unwrap();
                assert_eq!((*uid, *gid, groups.as_slice()), (65_533, 65_532, [65_532].as_slice()));
                assert_eq!(identity.status().rights, Rights::Own);
            }
            Err(error) => assert!(!geteuid().is_root() && error.to_string().contains("only root"), "{error}"),
        }
    }

    #[test]
    fn a_closed_directory_on_the_way_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("closed/inner");
        std::fs::create_dir_all(&inner).unwrap();
        assert_eq!(first_closed(&inner), None);
        if !geteuid().is_root() {
            return;
        }
        use std::os::unix::fs::PermissionsExt;
        let open = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        open(dir.path(), 0o711);
        open(&dir.path().join("closed"), 0o700);
        let identity = Identity::of(&config(&["user=\"65533\"", "group=\"65532\""])).unwrap();
        let image = Image::open(Path::new("/bin/sh")).unwrap();
        let error = identity.check_reach(&image, std::slice::from_ref(&inner)).unwrap_err().to_string();
        assert!(error.contains("closed (mode 0700, owner 0)") && error.contains("chmod"), "{error}");
        open(&dir.path().join("closed"), 0o711);
        identity.check_reach(&image, &[inner]).unwrap();
    }

    #[test]
    fn data_belongs_to_whom_plugins_run_as_and_to_us_again() {
        if !geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let owner = || std::fs::metadata(&path).map(|meta| (meta.uid(), meta.gid(), meta.mode() & 0o777)).unwrap();
        Identity::of(&config(&["user=\"65533\"", "group=\"65532\""])).unwrap().make_dir(&path).unwrap();
        assert_eq!(owner(), (65_533, 65_532, 0o700));
        Identity::of(&config(&[])).unwrap().make_dir(&path).unwrap();
        assert_eq!(owner(), (0, getegid().as_raw(), 0o700));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/etc", &link).unwrap();
        assert!(Identity::of(&config(&[])).unwrap().make_dir(&link).is_err());
    }

    #[test]
    fn as_root_data_directory_spares_the_target_of_a_swapped_link() {
        for bait in [Bait::SymlinkToDir, Bait::SymlinkToFile] {
            let attack = LinkSwap::begin(bait, &["data"]);
            let path = attack.folder().join("data");
            let plugins = Identity::of(&config(&["user=\"65533\"", "group=\"65532\""])).unwrap();
            attack.run_and_check(|| {
                std::fs::remove_dir(&path).ok();
                plugins.make_dir(&path).ok();
            });
        }
    }
}
