//! How much memory this process may have: that of the machine, or less if a control group says so.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const CGROUPS: &str = "/sys/fs/cgroup";

/// In bytes, swap not included.
pub fn available() -> io::Result<u64> {
    let machine = total(&fs::read_to_string("/proc/meminfo")?).ok_or(io::ErrorKind::InvalidData)?;
    // Without control groups the machine is the limit.
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    Ok(group_limit(Path::new(CGROUPS), &groups).map_or(machine, |group| group.min(machine)))
}

/// `MemTotal` of meminfo (proc(5)).
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The smallest limit of the groups that `membership` (/proc/self/cgroup, cgroups(7)) names, and of those above them.
fn group_limit(root: &Path, membership: &str) -> Option<u64> {
    let limit_at = |line: &str| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let (root, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            // The first version has a tree for each controller.
            _ if controllers.split(',').any(|name| name == "memory") => (root.join("memory"), "memory.limit_in_bytes"),
            _ => return None,
        };
        let group = root.join(path.trim_start_matches('/'));
        // A path that leads out of the tree is of another namespace: what is seen there is the root.
        let within = !path.split('/').any(|part| part == "..");
        let groups: Vec<PathBuf> = match within {
            true => group.ancestors().take_while(|group| group.starts_with(&root)).map(Path::to_owned).collect(),
            false => vec![root],
        };
        groups.iter().filter_map(|group| fs::read_to_string(group.join(file)).ok()?.trim().parse().ok()).min()
    };
    membership.lines().filter_map(limit_at).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_limit_of_the_groups_above_counts() {
        let root = tempfile::tempdir().unwrap();
        let group = root.path().join("system.slice/web.service");
        fs::create_dir_all(&group).unwrap();
        let limit = |membership: &str| group_limit(root.path(), membership);
        assert_eq!(limit("0::/system.slice/web.service\n"), None, "no file");
        fs::write(group.join("memory.max"), "max\n").unwrap();
        assert_eq!(limit("0::/system.slice/web.service\n"), None, "no limit");
        fs::write(root.path().join("system.slice/memory.max"), "1073741824\n").unwrap();
        assert_eq!(limit("0::/system.slice/web.service\n"), Some(1 << 30));
        fs::write(group.join("memory.max"), "536870912\n").unwrap();
        assert_eq!(limit("0::/system.slice/web.service\n"), Some(512 << 20));
        assert_eq!(limit("0::/../../etc\n"), None, "not outside of the tree");
    }

    #[test]
    fn the_first_version_of_control_groups_is_read_too() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("memory/docker/x")).unwrap();
        fs::write(root.path().join("memory/docker/x/memory.limit_in_bytes"), "268435456\n").unwrap();
        let membership = "5:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n";
        assert_eq!(group_limit(root.path(), membership), Some(256 << 20));
    }

    #[test]
    fn this_machine_has_memory() {
        assert_eq!(total("MemFree: 1 kB\nMemTotal:       16384 kB\n"), Some(16 << 20));
        assert_eq!(total("MemTotal: lots"), None);
        assert!(available().unwrap() > 1 << 20);
    }
}
