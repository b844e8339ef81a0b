//! What the kernel says of a process, from `/proc`. Absent processes answer nothing, never an old truth.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

/// State, parent and process group, from `stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    pub pid: i32,
    pub state: char,
    pub parent: i32,
    pub group: i32,
}

impl Stat {
    pub fn is_zombie(&self) -> bool {
        self.state == 'Z'
    }
}

pub fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may hold anything, brackets too.
    let mut fields = text[text.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some(Stat { pid, state, parent: fields.next()?.parse().ok()?, group: fields.next()?.parse().ok()? })
}

/// Whether the process runs; a zombie does not.
pub fn is_alive(pid: i32) -> bool {
    stat(pid).is_some_and(|stat| !stat.is_zombie())
}

fn all() -> impl Iterator<Item = Stat> {
    fs::read_dir("/proc")
        .expect("failed to list /proc")
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(stat)
}

/// Children of `pid`, zombies too.
pub fn children(pid: i32) -> Vec<Stat> {
    all().filter(|stat| stat.parent == pid).collect()
}

/// Living members of a process group.
pub fn group(group: i32) -> Vec<i32> {
    all().filter(|stat| stat.group == group && !stat.is_zombie()).map(|stat| stat.pid).collect()
}

pub fn kill(pid: i32, signal: Signal) {
    assert!(pid > 1, "refused to signal {pid}");
    signal::kill(Pid::from_raw(pid), signal)
        .unwrap_or_else(|error| panic!("failed to send {signal} to {pid}: {error}"));
}

/// Open descriptors by kind: `socket`, `pipe`, `memfd`, `file`, `[eventpoll]` and the like.
pub fn fds(pid: i32) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let target = target.to_string_lossy();
        let kind = match target.split_once(':') {
            Some(("anon_inode", kind)) => kind,
            Some(("/memfd", _)) => "memfd",
            Some((kind, _)) if !kind.starts_with('/') => kind,
            _ => "file",
        };
        *kinds.entry(kind.to_string()).or_default() += 1;
    }
    kinds
}

/// Memory in KiB, from `smaps_rollup`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    pub rss: u64,
    pub pss: u64,
    pub private_dirty: u64,
}

pub fn memory(pid: i32) -> Option<Memory> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.trim().parse().ok()
    };
    Some(Memory { rss: field("Rss:")?, pss: field("Pss:")?, private_dirty: field("Private_Dirty:")? })
}

/// CPU time of all threads of the process, in user and system mode, from its CPU clock.
pub fn cpu_time(pid: i32) -> Option<Duration> {
    let clock = nix::time::clock_getcpuclockid(Pid::from_raw(pid)).ok()?;
    nix::time::clock_gettime(clock).ok().map(Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> i32 {
        std::process::id().cast_signed()
    }

    #[test]
    fn facts_of_this_process_are_found() {
        let stat = stat(own()).unwrap();
        assert!(stat.parent > 0 && is_alive(own()));
        let memory = memory(own()).unwrap();
        assert!(memory.rss >= memory.private_dirty && memory.pss > 0, "{memory:?}");
        let before = cpu_time(own()).unwrap();
        while cpu_time(own()).unwrap() == before {}
    }

    #[test]
    fn descriptors_are_told_apart_by_kind() {
        // In a process of its own: other tests of this one open and close descriptors meanwhile. It may have inherited more.
        let mut cat = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .stdout(std::fs::File::open("/dev/null").unwrap())
            .stderr(std::os::unix::net::UnixStream::pair().map(|(one, _)| std::os::fd::OwnedFd::from(one)).unwrap())
            .spawn()
            .unwrap();
        let pid = cat.id().cast_signed();
        crate::wait::until("cat to run", crate::wait::LONG, || {
            let kinds = fds(pid);
            ["pipe", "socket", "file"].iter().all(|kind| kinds.contains_key(*kind)).then_some(())
        });
        assert_eq!(children(own()).iter().filter(|child| child.pid == pid).count(), 1);
        drop(cat.stdin.take());
        cat.wait().unwrap();
        assert!(!is_alive(pid) && memory(pid).is_none() && fds(pid).is_empty());
    }
}
