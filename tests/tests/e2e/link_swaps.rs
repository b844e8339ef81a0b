//! Files that the server changes by path as root, in a folder that another user may write: they are swapped for links to a file
//! outside of it, in a tight loop, while strace holds up each system call that could follow a check. The file outside stays as it is.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread::JoinHandle;

use baton_tests::server::Setup;
use baton_tests::wait;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::signal::Signal;

/// What acts on a file after something was found out about it. A question mark: not on every machine.
const HELD_UP: &str = "?chmod,fchmod,fchmodat,?fchmodat2,?chown,?lchown,fchown,fchownat,?rename,renameat,renameat2,?unlink,unlinkat,\
                       ?link,linkat,bind,ftruncate,flock,pwrite64";
const MICROSECONDS: u32 = 2000;
const RELOADS: usize = 40;

struct Attack {
    stop: Arc<AtomicBool>,
    swaps: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Attack {
    /// Swaps each of `names` for a link to `target` and back: symbolic and hard in turn.
    fn begin(target: PathBuf, names: Vec<PathBuf>) -> Attack {
        let (stop, swaps) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, count) = (stop.clone(), swaps.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Relaxed) {
                for name in &names {
                    let is_hard = count.fetch_add(1, Relaxed) / names.len() % 2 == 1;
                    swap(&target, name, is_hard);
                }
            }
        });
        Attack { stop, swaps, thread: Some(thread) }
    }
}

impl Drop for Attack {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// Errors are the turns of the server.
fn swap(target: &Path, name: &Path, is_hard: bool) {
    let decoy = name.with_extension("decoy");
    let exchange = || renameat2(AT_FDCWD, &decoy, AT_FDCWD, name, RenameFlags::RENAME_EXCHANGE).is_ok();
    fs::remove_file(&decoy).ok();
    let link = if is_hard { fs::hard_link(target, &decoy) } else { symlink(target, &decoy) };
    link.expect("failed to make a link");
    let was_there = exchange();
    if !was_there {
        fs::rename(&decoy, name).ok();
    }
    // As long as the server needs for a few calls.
    wait::pass(std::time::Duration::from_micros(u64::from(MICROSECONDS)));
    if !(was_there && exchange()) {
        fs::remove_file(name).ok();
    }
}

#[test]
fn as_root_links_swapped_in_reach_no_file_outside_with_strace() {
    let held_up = format!("inject={HELD_UP}:delay_enter={MICROSECONDS}");
    // The tracer is not the server's parent.
    let strace = [
        "strace",
        "-D",
        "-f",
        "--seccomp-bpf",
        "-q",
        "-o",
        "/dev/null",
        "-e",
        &format!("trace={HELD_UP}"),
        "-e",
        &held_up,
    ];
    let setup = Setup::probe("v1");
    let (folder, outside) = (setup.bench().path().join("shared"), setup.bench().path().join("outside"));
    fs::create_dir(&folder).expect("failed to make a folder");
    chown(&folder, Some(65_533), None).expect("failed to give it away");
    fs::write(&outside, "precious").expect("failed to write");
    fs::set_permissions(&outside, Permissions::from_mode(0o604)).expect("failed to set a mode");
    let facts = || {
        let meta = fs::metadata(&outside).expect("it is there");
        (meta.mode() & 0o7777, meta.uid(), meta.gid(), fs::read_to_string(&outside).expect("it can be read"))
    };
    let before = facts();
    let (socket, pid_file) = (folder.join("web.sock"), folder.join("x.pid"));
    let listens = |socket_mode: &str, more: &str| {
        let addresses = format!("\"127.0.0.1:0\", \"unix:{}\"{more}", socket.display());
        format!("[[server]]\nlisten = [{addresses}]\nsocket_mode = \"{socket_mode}\"\nsocket_group = \"65533\"\n")
    };
    let setup = setup.config(&listens("0660", "")).arg("--pid-file").arg(&pid_file.to_string_lossy());
    let mut server = setup.through(&strace).start();
    let pid = server.pid();
    let other = folder.join("other.sock");
    let names = ["web.sock", "web.sock.lock", "other.sock", "other.sock.lock", "x.pid"].map(|name| folder.join(name));
    let temporary = folder.join(format!("x.pid.{pid}.0"));
    let attack = Attack::begin(outside.clone(), names.into_iter().chain([temporary]).collect());
    let mut switches = 0;
    for number in 0..RELOADS {
        let more = format!(", \"unix:{}\"", other.display());
        let (mode, more) = if number % 2 == 0 { ("0666", more.as_str()) } else { ("0622", "") };
        server.bench.configure(&listens(mode, more));
        // With a link in the place of its socket it may be refused.
        switches += usize::from(server.reload().0 == 200);
        assert_eq!(facts(), before, "after reload {number}");
    }
    assert!(switches > 0, "no reload got through");
    assert_eq!(server.probe().0, "v1");
    server.signal(Signal::SIGTERM);
    server.wait_end(wait::LONG);
    let swaps = attack.swaps.load(Relaxed);
    drop(attack);
    assert!(swaps > 100, "{swaps} swaps only");
    assert_eq!(facts(), before);
}
