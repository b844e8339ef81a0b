//! What the kernel says of a process, from `/proc`. Absent processes answer nothing, never an old truth.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
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

/// The words of one line of `status`, such as `Uid:`; none if there is no such process.
pub fn status_field(pid: i32, name: &str) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.split_whitespace().map(str::to_owned).collect()
}

/// Whether the process runs; a zombie does not.
pub fn is_alive(pid: i32) -> bool {
    stat(pid).is_some_and(|stat| !stat.is_zombie())
}

/// Whether every thread of the process is stopped by a signal.
pub fn is_stopped(pid: i32) -> bool {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    tasks.flatten().all(|task| {
        task.file_name().to_str().and_then(|id| stat(id.parse().ok()?)).is_none_or(|stat| stat.state == 'T')
    })
}

/// Whether the process has a file mapped whose path contains `part`.
pub fn maps(pid: i32, part: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/maps")).is_ok_and(|maps| maps.contains(part))
}

/// Whether a thread of the process computes or waits for a disk, or would compute if it had a core.
pub fn is_runnable(pid: i32) -> bool {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    tasks.flatten().any(|task| {
        task.file_name()
            .to_str()
            .and_then(|id| stat(id.parse().ok()?))
            .is_some_and(|stat| matches!(stat.state, 'R' | 'D'))
    })
}

/// Whether the process runs the very file at `path`.
pub fn runs(pid: i32, path: &Path) -> bool {
    let file = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    file(Path::new(&format!("/proc/{pid}/exe"))).is_some_and(|running| file(path) == Some(running))
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

/// Living children that the master `pid` has started, also after its death: each was told who its master is.
pub fn workers(pid: i32) -> Vec<i32> {
    let told = format!("BATON_WORKER={pid}");
    let is_told = |environment: Vec<u8>| environment.split(|byte| *byte == 0).any(|entry| entry == told.as_bytes());
    let is_worker = |stat: &Stat| fs::read(format!("/proc/{}/environ", stat.pid)).is_ok_and(is_told);
    all().filter(|stat| !stat.is_zombie() && is_worker(stat)).map(|stat| stat.pid).collect()
}

pub fn kill(pid: i32, signal: Signal) {
    assert!(pid > 1, "refused to signal {pid}");
    signal::kill(Pid::from_raw(pid), signal)
        .unwrap_or_else(|error| panic!("failed to send {signal} to {pid}: {error}"));
}

/// Lets this process have as many descriptors as it may; answers how many that is.
pub fn raise_descriptors() -> u64 {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("failed to ask for the limit of open files");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("failed to raise the limit of open files");
    hard
}

/// Sets how many descriptors the process may have, now and until it is said otherwise (util-linux, on every system). Children
/// that it starts have the same limit.
#[track_caller]
pub fn limit_descriptors(pid: i32, soft: u64) {
    limit(pid, &format!("--nofile={soft}:"));
}

/// Sets how large a file the process may write: beyond it, a write fails as on a full disk.
#[track_caller]
pub fn limit_file_size(pid: i32, soft: Option<u64>) {
    let soft = soft.map_or("unlimited".into(), |bytes| bytes.to_string());
    limit(pid, &format!("--fsize={soft}:"));
}

#[track_caller]
fn limit(pid: i32, what: &str) {
    let status = std::process::Command::new("prlimit")
        .args(["--pid", &pid.to_string(), what])
        .status()
        .expect("failed to run prlimit (package util-linux)");
    assert!(status.success(), "prlimit failed");
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

/// The kernel's timer of the socket at `local` whose peer is at `peer` (proc(5), /proc/net/tcp): 0 for none, 1 for a
/// retransmission, 2 for keepalive. IPv4 only.
pub fn tcp_timer(local: SocketAddr, peer: SocketAddr) -> Option<u32> {
    let port = |field: &str| u16::from_str_radix(field.rsplit(':').next()?, 16).ok();
    let table = fs::read_to_string("/proc/net/tcp").ok()?;
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_meant = port(fields.get(1)?) == Some(local.port()) && port(fields.get(2)?) == Some(peer.port());
        is_meant.then(|| fields.get(5)?.split(':').next()?.parse().ok()).flatten()
    })
}

/// The TCP sockets (IPv4) on which `pid` listens, with their inodes, as the kernel has it.
#[track_caller]
pub fn listening(pid: i32) -> BTreeMap<SocketAddr, u64> {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).expect("failed to read the descriptors of a process");
    let held: BTreeSet<u64> = links
        .filter_map(|link| {
            let target = fs::read_link(link.ok()?.path()).ok()?;
            target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
        })
        .collect();
    let table = fs::read_to_string("/proc/net/tcp").expect("failed to read the sockets of this machine");
    let listener = |line: &str| {
        // Number, local address, remote address, state; the inode is the tenth.
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (ip, port) = fields.get(1)?.split_once(':')?;
        let ip = Ipv4Addr::from(u32::from_str_radix(ip, 16).ok()?.to_ne_bytes());
        let inode: u64 = fields.get(9)?.parse().ok()?;
        let listens = fields[3] == "0A" && held.contains(&inode);
        listens.then_some((SocketAddr::from((ip, u16::from_str_radix(port, 16).ok()?)), inode))
    };
    table.lines().filter_map(listener).collect()
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
        assert!(runs(own(), &std::env::current_exe().unwrap()) && !runs(own(), Path::new("/bin/true")));
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
