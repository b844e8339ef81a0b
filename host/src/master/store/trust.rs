//! Who may write a plugin (and, where the server runs as root, its configuration and the binary for a restart): root, the user of the server and those of `store.owners`, and members of groups that are the server's.
//! Anyone else who could replace a file or change it would decide what runs. Looks at the file, the folder it lies in, and, for a symbolic link,
//! those that it leads to; not at folders above.

use std::fs::{Metadata, metadata, symlink_metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::User;

use super::Refusal;

const WRITE_GROUP: u32 = 0o020;
const WRITE_OTHERS: u32 = 0o002;
const STICKY: u32 = 0o1000;

#[derive(Clone, Debug)]
pub struct Trusted {
    owners: Vec<u32>,
    groups: Vec<u32>,
    /// As whom plugins run, if not as the server: what it could write it could change.
    never: Option<u32>,
}

impl Trusted {
    /// Root, the user of this process, and those groups.
    pub fn with_groups(groups: Vec<u32>) -> Trusted {
        Trusted { owners: vec![0, nix::unistd::geteuid().as_raw()], groups, never: None }
    }

    /// Plugins run as `uid`.
    pub fn but_never(self, uid: u32) -> Trusted {
        Trusted { never: Some(uid), ..self }
    }

    /// The users of `store.owners` as well, by name or number.
    pub fn and(&self, users: &[String]) -> Result<Trusted, Refusal> {
        let mut all = self.clone();
        for name in users {
            let uid = match (name.parse(), User::from_name(name)) {
                (Ok(number), _) => number,
                (_, Ok(Some(user))) => user.uid.as_raw(),
                (_, Ok(None)) => return Err(Refusal::new(format!("there is no user `{name}`"))),
                (_, Err(error)) => return Err(Refusal::new(format!("the user `{name}` cannot be looked up: {error}"))),
            };
            if self.never == Some(uid) {
                let hint = "name another owner, or run plugins as another `user`".to_owned();
                return Err(Refusal::new(format!("plugins run as `{name}`, and could change themselves")).hint(hint));
            }
            all.owners.push(uid);
        }
        Ok(all)
    }

    /// Makes sure that nobody else can write `file`, or put another in its place; device and inode of the one that was looked at.
    pub fn check(&self, file: &Path) -> Result<(u64, u64), Refusal> {
        let unreadable = |error: std::io::Error| Refusal::new(format!("it cannot be read: {error}"));
        let link = symlink_metadata(file).map_err(unreadable)?;
        let real = if link.is_symlink() {
            self.check_owner("the link", file, &link)?;
            file.canonicalize().map_err(unreadable)?
        } else {
            file.to_owned()
        };
        let found = metadata(&real).map_err(unreadable)?;
        let inode = (found.dev(), found.ino());
        self.check_owner("it", &real, &found)?;
        self.check_mode("it", &real, found.mode(), found.gid())?;
        let mut folders: Vec<&Path> = [file, &real].into_iter().filter_map(Path::parent).collect();
        folders.dedup();
        for folder in folders {
            // A name alone lies here.
            let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            let found = metadata(folder).map_err(unreadable)?;
            let what = format!("the folder {}", folder.display());
            self.check_owner(&what, folder, &found)?;
            // Whoever may write a sticky folder can neither remove nor replace what is not his; his own files are refused for
            // their owner.
            if found.mode() & STICKY == 0 {
                self.check_mode(&what, folder, found.mode(), found.gid())?;
            }
        }
        Ok(inode)
    }

    fn check_owner(&self, what: &str, path: &Path, found: &Metadata) -> Result<(), Refusal> {
        if self.owners.contains(&found.uid()) {
            return Ok(());
        }
        let own = nix::unistd::geteuid();
        let why = format!("{what} belongs to uid {}, who is neither root nor the user of the server", found.uid());
        let trust = if self.never == Some(found.uid()) { "" } else { ", or trust its owner: store.owners" };
        Err(Refusal::new(why).hint(format!("chown {own} {}{trust}", path.display())))
    }

    fn check_mode(&self, what: &str, path: &Path, mode: u32, gid: u32) -> Result<(), Refusal> {
        let (who, letter) = match mode {
            mode if mode & WRITE_OTHERS != 0 => ("everybody".to_owned(), "o"),
            mode if mode & WRITE_GROUP != 0 && !self.groups.contains(&gid) => (format!("the group {gid}"), "g"),
            _ => return Ok(()),
        };
        let why = format!("{who} may write {what} (mode {:04o})", mode & 0o7777);
        Err(Refusal::new(why).hint(format!("chmod {letter}-w {}", path.display())))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, set_permissions};
    use std::os::unix::fs::{PermissionsExt, chown};
    use std::path::PathBuf;

    use super::*;

    struct Place {
        _dir: tempfile::TempDir,
        folder: PathBuf,
        file: PathBuf,
    }

    fn place() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("plugins");
        std::fs::create_dir(&folder).unwrap();
        let file = folder.join("liba.so");
        std::fs::write(&file, "x").unwrap();
        let place = Place { _dir: dir, folder, file };
        mode(&place.folder, 0o755);
        mode(&place.file, 0o644);
        place
    }

    fn mode(path: &Path, mode: u32) {
        set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    fn ours() -> Trusted {
        Trusted::with_groups(vec![0, nix::unistd::getegid().as_raw()])
    }

    fn nobodys() -> Trusted {
        Trusted::with_groups(Vec::new())
    }

    fn why(trusted: &Trusted, file: &Path) -> String {
        let refusal = trusted.check(file).unwrap_err();
        assert!(refusal.hint.is_some(), "{refusal:?}");
        format!("{}; {}", refusal.why, refusal.hint.unwrap_or_default())
    }

    #[test]
    fn what_only_we_can_write_is_taken() {
        let place = place();
        ours().check(&place.file).unwrap();
        mode(&place.file, 0o664);
        mode(&place.folder, 0o775);
        ours().check(&place.file).unwrap();
    }

    #[test]
    fn what_everybody_or_a_strange_group_can_write_is_refused_with_what_to_do() {
        let place = place();
        mode(&place.file, 0o646);
        let text = why(&ours(), &place.file);
        assert!(text.contains("everybody may write it (mode 0646)") && text.contains("chmod o-w"), "{text}");
        mode(&place.file, 0o664);
        let text = why(&nobodys(), &place.file);
        assert!(text.contains("the group") && text.contains("chmod g-w"), "{text}");
        mode(&place.file, 0o644);
        nobodys().check(&place.file).unwrap();
        mode(&place.folder, 0o777);
        let text = why(&ours(), &place.file);
        assert!(text.contains("everybody may write the folder") && text.contains("plugins"), "{text}");
        mode(&place.folder, 0o775);
        assert!(why(&nobodys(), &place.file).contains("the group"));
        // Others can add to it, not take away.
        mode(&place.folder, 0o1777);
        ours().check(&place.file).unwrap();
    }

    #[test]
    fn where_a_link_leads_to_is_looked_at_too() {
        let place = place();
        let elsewhere = place.folder.join("elsewhere");
        std::fs::create_dir(&elsewhere).unwrap();
        mode(&elsewhere, 0o755);
        let (target, link) = (elsewhere.join("liba-1.so"), place.folder.join("libb.so"));
        std::fs::rename(&place.file, &target).unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        ours().check(&link).unwrap();
        mode(&elsewhere, 0o777);
        assert!(why(&ours(), &link).contains("elsewhere"));
    }

    #[test]
    fn a_third_user_s_file_folder_or_link_is_refused() {
        if !nix::unistd::geteuid().is_root() {
            // The system's own files are root's, which is trusted.
            ours().check(Path::new("/etc/passwd")).unwrap();
            return;
        }
        let place = place();
        let give = |path: &Path, uid| chown(path, Some(uid), None).unwrap();
        give(&place.file, 65_533);
        let text = why(&ours(), &place.file);
        assert!(text.contains("it belongs to uid 65533") && text.contains("chown 0"), "{text}");
        let deployer = ours().and(&["65533".into()]).unwrap();
        deployer.check(&place.file).unwrap();
        assert!(deployer.and(&["root".into()]).unwrap().check(&place.file).is_ok());
        give(&place.file, 0);
        give(&place.folder, 65_533);
        deployer.check(&place.file).unwrap();
        assert!(why(&ours(), &place.file).contains("the folder"));
        give(&place.folder, 0);
        let link = place.folder.join("libb.so");
        std::os::unix::fs::symlink(&place.file, &link).unwrap();
        ours().check(&link).unwrap();
        std::os::unix::fs::lchown(&link, Some(65_533), None).unwrap();
        assert!(why(&ours(), &link).contains("the link"));
    }

    #[test]
    fn who_is_not_there_or_runs_the_plugins_is_no_owner() {
        let refused = |trusted: Trusted, name: &str| trusted.and(&[name.into()]).unwrap_err().why;
        assert!(refused(ours(), "no such user").contains("no user `no such user`"));
        assert!(refused(ours().but_never(65_533), "65533").contains("could change themselves"));
    }
}
