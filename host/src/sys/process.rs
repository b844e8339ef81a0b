//! Processes: starting one from an open image, waiting for it, signalling it by pidfd; signal masks, limits, the parent's
//! side of a child's life. A pid alone is never signalled or waited for: a pidfd cannot name a stranger.

use std::ffi::{CStr, CString, c_char, c_int};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, pthread_sigmask, sigaction};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};

use super::assert_send_sync;
use super::credentials::Credentials;
use super::reaping;

/// An executable, open: what is started later is what was there when it was opened, whatever happens to the file.
#[derive(Debug)]
pub struct Image(OwnedFd);

impl Image {
    /// The binary that this process runs.
    pub fn of_self() -> io::Result<Image> {
        Ok(Image(File::open("/proc/self/exe")?.into()))
    }

    /// The program that lies there now.
    pub fn open(path: &Path) -> io::Result<Image> {
        Ok(Image(super::files::open_regular(path)?.into()))
    }

    pub(super) fn number(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Device and inode of its file.
    pub fn inode(&self) -> io::Result<(u64, u64)> {
        let stat = nix::sys::stat::fstat(&self.0)?;
        Ok((stat.st_dev, stat.st_ino))
    }
}

impl AsFd for Image {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// One that was opened by an earlier program of this process.
impl From<OwnedFd> for Image {
    fn from(fd: OwnedFd) -> Image {
        Image(fd)
    }
}

/// What a process is started with.
pub struct Spec<'a> {
    pub image: &'a Image,
    pub argv: Vec<CString>,
    pub env: Vec<CString>,
    /// Becomes stdout and stderr.
    pub output: BorrowedFd<'a>,
    /// Becomes descriptor 3, 4, ... in order; a gap for nothing. All others are closed at exec.
    pub fds: Vec<Option<BorrowedFd<'a>>>,
    /// With these rights and no capability; absent, with all of this process's.
    pub credentials: Option<Credentials>,
}

/// A child process that its owner reaps. One whose owner is gone is [reaped as if adopted](reaping::reap_adopted).
#[derive(Debug)]
pub struct Process {
    pub pid: i32,
    pub pidfd: OwnedFd,
    _own: reaping::OwnChild,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitKind {
    Code(i32),
    Signal(i32),
}

impl std::fmt::Display for ExitKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ExitKind::Code(code) => write!(f, "exit code {code}"),
            ExitKind::Signal(number) => match Signal::try_from(*number) {
                Ok(signal) => f.write_str(signal.as_str()),
                Err(_) => write!(f, "signal {number}"),
            },
        }
    }
}

/// First descriptor that [`Spec::fds`] fills.
const FIRST_FD: RawFd = 3;
/// Above every target, so that no `dup2` overwrites a source.
const ABOVE: RawFd = 32;

/// Starts a process: fork, then `execveat` of the image, with every signal blocked across both (the new program unblocks
/// when its handlers exist) and no descriptor but those of `spec`. It leads a session of its own, without a terminal, and its input is
/// empty.
pub fn spawn(spec: Spec) -> io::Result<Process> {
    let mut sources = Vec::new();
    for fd in &spec.fds {
        sources.push(match fd {
            Some(fd) => Some(duplicate_above(*fd)?),
            None => None,
        });
    }
    let image = duplicate_above(spec.image.0.as_fd())?;
    let inherited = Inherited::find(FIRST_FD + spec.fds.len() as RawFd)?;
    // std reports an error of the hook over a pipe of its own, which must not get a number that the hook fills.
    let _filled = occupy_below(FIRST_FD + spec.fds.len() as RawFd)?;
    let raw: Vec<Option<RawFd>> = sources.iter().map(|fd| fd.as_ref().map(AsRawFd::as_raw_fd)).collect();
    let exec = Exec::new(image.as_raw_fd(), &spec.argv, &spec.env);
    let credentials = spec.credentials;

    // std does the fork and reports an error of the hook through its own close-on-exec pipe. The program name is never used:
    // the hook either replaces the process or fails.
    let mut command = Command::new("baton");
    command.stdin(Stdio::null()).stdout(spec.output.try_clone_to_owned()?).stderr(spec.output.try_clone_to_owned()?);
    let hook = move || {
        block_all_signals()?;
        // Fails only for the leader of a process group, which no new process is.
        nix::unistd::setsid()?;
        for (offset, source) in raw.iter().enumerate() {
            let target = FIRST_FD + offset as RawFd;
            if let Some(source) = source {
                // SAFETY: dup2 on open descriptors; async-signal-safe. The copy is not close-on-exec.
                if unsafe { libc::dup2(*source, target) } < 0 {
                    return Err(io::Error::last_os_error());
                }
            } else {
                set_cloexec(target);
            }
        }
        inherited.close_at_exec();
        if let Some(credentials) = &credentials {
            credentials.take_on()?;
        }
        Err(exec.run())
    };
    // SAFETY: the hook runs between fork and exec and only makes async-signal-safe calls on memory prepared before the fork:
    // it neither allocates nor takes locks.
    unsafe { command.pre_exec(hook) };
    let child = command.spawn()?;
    let pid = child.id() as i32;
    // The child is not reaped yet, by nobody but us: the pid is its own until then.
    match Process::open(pid) {
        Ok(process) => Ok(process),
        Err(error) => {
            let mut child = child;
            child.kill()?;
            child.wait()?;
            Err(error)
        }
    }
}

/// The descriptors from a number on that are closed at the exec. Ours are so by their creation; what this program was started with
/// may not be.
enum Inherited {
    /// The kernel knows them (close_range(2), Linux 5.11).
    From(libc::c_uint),
    /// As they were before the fork: a kernel that is older, or a seccomp filter that refuses the call.
    Listed(Vec<RawFd>),
}

impl Inherited {
    /// Allocates, so before the fork.
    fn find(first: RawFd) -> io::Result<Inherited> {
        // At the end of the range there is none.
        if close_range(libc::c_uint::MAX) == 0 {
            return Ok(Inherited::From(first as libc::c_uint));
        }
        let numbers =
            std::fs::read_dir("/proc/self/fd")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        Ok(Inherited::Listed(numbers.filter(|number| *number >= first).collect()))
    }

    /// Async-signal-safe.
    fn close_at_exec(&self) {
        match self {
            Inherited::From(first) => drop(close_range(*first)),
            Inherited::Listed(numbers) => numbers.iter().for_each(|number| set_cloexec(*number)),
        }
    }
}

/// Async-signal-safe.
fn close_range(first: libc::c_uint) -> libc::c_long {
    // SAFETY: marks descriptors close-on-exec, and takes no pointers.
    unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) }
}

/// A number that is not open is left alone. Async-signal-safe.
fn set_cloexec(number: RawFd) {
    // SAFETY: only a flag of it is set.
    unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
}

/// Takes all numbers below `limit` that are free, for as long as the result lives.
fn occupy_below(limit: RawFd) -> io::Result<Vec<OwnedFd>> {
    let mut taken = Vec::new();
    loop {
        let fd = OwnedFd::from(File::open("/dev/null")?);
        if fd.as_raw_fd() >= limit {
            return Ok(taken);
        }
        taken.push(fd);
    }
}

fn duplicate_above(fd: BorrowedFd) -> io::Result<OwnedFd> {
    let raw = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(ABOVE))?;
    // SAFETY: F_DUPFD_CLOEXEC made this descriptor; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// All that `execveat` needs, made before the fork.
pub(super) struct Exec {
    image: RawFd,
    argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
    /// Keeps the strings alive.
    _strings: (Vec<CString>, Vec<CString>),
}

const _: () = assert_send_sync::<(RawFd, Vec<CString>)>();

// SAFETY: the pointers lead into the strings kept beside them, which never change.
unsafe impl Send for Exec {}
// SAFETY: as above.
unsafe impl Sync for Exec {}

impl Exec {
    pub(super) fn new(image: RawFd, argv: &[CString], env: &[CString]) -> Exec {
        let strings = (argv.to_vec(), env.to_vec());
        let list = |strings: &[CString]| {
            strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>()
        };
        Exec { image, argv: list(&strings.0), envp: list(&strings.1), _strings: strings }
    }

    /// Replaces the process; comes back only with an error.
    pub(super) fn run(&self) -> io::Error {
        let empty: &CStr = c"";
        // SAFETY: both lists end with null and lead to strings that are alive; AT_EMPTY_PATH executes the descriptor itself
        // (execveat(2)).
        unsafe {
            libc::syscall(
                libc::SYS_execveat,
                self.image,
                empty.as_ptr(),
                self.argv.as_ptr(),
                self.envp.as_ptr(),
                libc::AT_EMPTY_PATH,
            )
        };
        io::Error::last_os_error()
    }
}

impl Process {
    /// Opens a child of ours that is not reaped yet: until then the pid is its own.
    pub(super) fn open(pid: i32) -> io::Result<Process> {
        // SAFETY: pidfd_open takes no pointers; the descriptor it returns is new and ours.
        let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, libc::PIDFD_NONBLOCK) };
        if pidfd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: as above.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd as RawFd) };
        Ok(Process { pid, pidfd, _own: reaping::OwnChild::new(pid) })
    }

    /// Sends a signal. A process that has ended already is no error.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        // SAFETY: pidfd_send_signal with a null siginfo takes no pointers to our memory.
        let result = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.pidfd.as_raw_fd(),
                signal as c_int,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        match Errno::result(result) {
            Ok(_) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// When memory runs out, the kernel ends this one before others that this process has started (proc_pid_oom_score_adj(5)).
    /// Not undone. It is not reaped yet, so the number is its own.
    pub fn offer_to_oom_killer(&self) -> io::Result<()> {
        const MORE: i32 = 300;
        const MOST: i32 = 1000;
        let own: i32 = std::fs::read_to_string("/proc/self/oom_score_adj")?.trim().parse().map_err(io::Error::other)?;
        std::fs::write(format!("/proc/{}/oom_score_adj", self.pid), (own + MORE).min(MOST).to_string())
    }

    /// Reaps the process if it has ended.
    pub fn try_wait(&self) -> io::Result<Option<ExitKind>> {
        match waitid(Id::PIDFd(self.pidfd.as_fd()), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG)? {
            WaitStatus::Exited(_, code) => Ok(Some(ExitKind::Code(code))),
            WaitStatus::Signaled(_, signal, _) => Ok(Some(ExitKind::Signal(signal as i32))),
            _ => Ok(None),
        }
    }
}

/// A file in memory that takes a process's output.
pub fn output_file(name: &CStr) -> io::Result<File> {
    Ok(memfd_create(name, MFdFlags::MFD_CLOEXEC)?.into())
}

/// The last `limit` bytes of a file, as text; what is not UTF-8 is replaced.
pub fn tail(file: &File, limit: u64) -> io::Result<String> {
    // An own description: seeking must not move the writer's position.
    let mut file = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let len = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(len.saturating_sub(limit)))?;
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn block_all_signals() -> io::Result<()> {
    Ok(pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)?)
}

/// A signal that came, with its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    pub signal: Signal,
    /// 0 when the kernel sent it.
    pub sender: i32,
    /// Sent by the kernel: a HUP because the terminal went away, an INT typed at it.
    pub by_kernel: bool,
}

/// Blocks `signals` in this thread (and those it starts later) and gives a descriptor that reads them. A signal that was
/// ignored when the process started stays so (nohup(1)).
///
/// They also get a handler that does nothing: in a forked child std unblocks all signals before it calls our hook, and for
/// that moment their default action would kill.
pub fn watch_signals(signals: &[Signal]) -> io::Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in signals {
        let nothing = SigAction::new(SigHandler::Handler(do_nothing), SaFlags::SA_RESTART, SigSet::empty());
        // SAFETY: the handler does nothing, which is async-signal-safe.
        let before = unsafe { sigaction(*signal, &nothing)? };
        if matches!(before.handler(), SigHandler::SigIgn) {
            // SAFETY: restores what was there.
            unsafe { sigaction(*signal, &before)? };
            continue;
        }
        set.add(*signal);
    }
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&set), None)?;
    Ok(SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?)
}

/// Blocks `signals` in this thread and no others.
pub fn unblock_others(signals: &[Signal]) -> io::Result<()> {
    let set: SigSet = signals.iter().copied().collect();
    Ok(pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&set), None)?)
}

extern "C" fn do_nothing(_: c_int) {}

/// Makes a write beyond the file size limit (setrlimit(2), RLIMIT_FSIZE) an error as on a full disk: by default it kills.
pub fn outlive_full_files() -> io::Result<()> {
    let nothing = SigAction::new(SigHandler::Handler(do_nothing), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler does nothing, which is async-signal-safe.
    unsafe { sigaction(Signal::SIGXFSZ, &nothing)? };
    Ok(())
}

/// Has all threads of this process share one heap. glibc gives each a heap of its own, of which what threads of a pool leave free is
/// of no use to others (mallopt(3), M_ARENA_MAX): growth without a leak, in a process that is in no hurry to allocate.
pub fn share_one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) takes two numbers, and fails by doing nothing.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// The next signal; `WouldBlock` when there is none, as readiness in tokio wants to hear it.
pub fn next_signal(fd: &SignalFd) -> io::Result<Received> {
    let Some(info) = fd.read_signal()? else { return Err(io::ErrorKind::WouldBlock.into()) };
    let signal = Signal::try_from(info.ssi_signo as i32)?;
    let by_kernel = info.ssi_code == libc::SI_KERNEL;
    Ok(Received { signal, sender: info.ssi_pid as i32, by_kernel })
}

/// Raises the soft limit of open files to the hard one; answers it.
pub fn raise_open_files() -> io::Result<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(hard)
}

/// How many descriptors this process may have.
pub fn open_files_limit() -> io::Result<u64> {
    Ok(getrlimit(Resource::RLIMIT_NOFILE)?.0)
}

/// How many descriptors this process has open (less the one that counts them).
pub fn open_files() -> io::Result<u64> {
    Ok((std::fs::read_dir("/proc/self/fd")?.count() as u64).saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(path: &str) -> Image {
        Image(File::open(path).unwrap().into())
    }

    fn run(script: &str, fds: Vec<Option<BorrowedFd>>) -> (ExitKind, String) {
        run_program(&["/bin/sh", "-c", script], fds)
    }

    fn run_program(argv: &[&str], fds: Vec<Option<BorrowedFd>>) -> (ExitKind, String) {
        run_as(argv, fds, None)
    }

    fn run_as(argv: &[&str], fds: Vec<Option<BorrowedFd>>, credentials: Option<Credentials>) -> (ExitKind, String) {
        let output = output_file(c"test").unwrap();
        let image = image(argv[0]);
        let argv = argv.iter().map(|text| CString::new(*text).unwrap()).collect();
        let env = vec![c"A=1".to_owned()];
        let process = spawn(Spec { image: &image, argv, env, output: output.as_fd(), fds, credentials }).unwrap();
        let mut poll = [nix::poll::PollFd::new(process.pidfd.as_fd(), nix::poll::PollFlags::POLLIN)];
        nix::poll::poll(&mut poll, 10_000_u16).unwrap();
        (process.try_wait().unwrap().unwrap(), tail(&output, 4096).unwrap())
    }

    #[test]
    fn a_process_gets_its_environment_its_descriptors_and_no_others() {
        let (reader, _writer) = std::io::pipe().unwrap();
        // No pipeline: the shell would have its pipe open for a moment.
        let (exit, output) = run("echo $A; ls /proc/$$/fd; exit 0", vec![None, Some(reader.as_fd())]);
        assert_eq!(exit, ExitKind::Code(0));
        assert_eq!(output, "1\n0\n1\n2\n4\n", "descriptor 3 is a gap, 4 is the pipe");
    }

    #[test]
    fn a_process_has_a_session_of_its_own_and_an_empty_input() {
        let (_, output) = run("cat; readlink /proc/$$/fd/0; cut -d' ' -f1,5,6,7 /proc/$$/stat; echo $$", vec![]);
        let lines: Vec<&str> = output.lines().collect();
        let pid = lines[2];
        assert_eq!((lines[0], lines[1]), ("/dev/null", &*format!("{pid} {pid} {pid} 0")), "{output}");
    }

    /// A descriptor that an exec does not close, as it may have come from a shell.
    fn stray() -> OwnedFd {
        let file = File::open("/etc/hostname").unwrap();
        fcntl(&file, FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
        file.into()
    }

    #[test]
    fn a_gap_and_stray_descriptors_are_closed_at_the_exec() {
        let list = "for fd in 3 4 5 $1; do test -e /proc/$$/fd/$fd && echo $fd; done; exit 0";
        // Also in the gap, whatever lies there.
        let stray: Vec<OwnedFd> = (0..8).map(|_| stray()).collect();
        let last = stray[7].as_raw_fd().to_string();
        let (reader, _writer) = std::io::pipe().unwrap();
        let fds = vec![Some(reader.as_fd()), None, Some(reader.as_fd())];
        let (_, output) = run_program(&["/bin/sh", "-c", list, "sh", &last], fds);
        assert_eq!(output, "3\n5\n");
    }

    /// As container runtimes do with calls that they do not know (EPERM).
    fn refuse_close_range() {
        let instruction = |code: u32, jt, jf, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
        let mut filter = [
            // The number of the call is the first word.
            instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
            instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_close_range as u32),
            instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
            instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        nix::sys::prctl::set_no_new_privs().unwrap();
        // SAFETY: the program and its instructions are live, and of that length.
        let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
        assert_eq!(result, 0);
    }

    #[test]
    fn descriptors_are_closed_one_by_one_where_close_range_is_refused() {
        // A filter holds for a thread, and for what it starts.
        let thread = std::thread::spawn(|| {
            refuse_close_range();
            assert!(matches!(Inherited::find(3).unwrap(), Inherited::Listed(_)));
            let stray = stray();
            let number = stray.as_raw_fd().to_string();
            let script = "test -e /proc/$$/fd/$1 && echo open; exit 0";
            run_program(&["/bin/sh", "-c", script, "sh", &number], vec![])
        });
        assert_eq!(thread.join().unwrap(), (ExitKind::Code(0), String::new()));
    }

    #[test]
    fn signals_stay_blocked_until_the_program_unblocks_them() {
        let (_, output) = run_program(&["/bin/grep", "SigBlk", "/proc/self/status"], vec![]);
        let mask = u64::from_str_radix(output.trim().trim_start_matches("SigBlk:").trim(), 16).unwrap();
        assert_ne!(mask & (1 << (libc::SIGUSR1 - 1)), 0, "{output}");
    }

    #[test]
    fn a_process_with_credentials_has_these_and_no_capability() {
        let own = Credentials {
            uid: nix::unistd::getuid().as_raw(),
            gid: nix::unistd::getgid().as_raw(),
            groups: Vec::new(),
        };
        let root = own.uid == 0;
        let as_whom = if root { Credentials { uid: 65_533, gid: 65_532, groups: vec![65_531] } } else { own.clone() };
        let (uid, gid) = (as_whom.uid, as_whom.gid);
        let (exit, output) = run_as(&["/bin/cat", "/proc/self/status"], vec![], Some(as_whom));
        assert_eq!(exit, ExitKind::Code(0), "{output}");
        let field = |name: &str| {
            let line = output.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(field("Uid:"), vec![uid.to_string(); 4]);
        assert_eq!(field("Gid:"), vec![gid.to_string(); 4]);
        assert_eq!(field("NoNewPrivs:"), ["1"]);
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
            assert_eq!(field(set), ["0000000000000000"], "{set}");
        }
        if root {
            assert_eq!(field("Groups:"), ["65531"]);
            assert_eq!(field("CapBnd:"), ["0000000000000000"]);
        } else {
            // Without the right to it the user cannot be changed, and nothing is run.
            let other = Credentials { uid: own.uid + 1, ..own };
            let output = output_file(c"test").unwrap();
            let (argv, env) = (vec![c"cat".to_owned()], Vec::new());
            let image = image("/bin/cat");
            let spec = Spec { image: &image, argv, env, output: output.as_fd(), fds: vec![], credentials: Some(other) };
            assert!(spawn(spec).is_err());
        }
    }

    #[test]
    fn the_way_a_process_ended_is_told() {
        assert_eq!(run("exit 7", vec![]).0, ExitKind::Code(7));
        assert_eq!(run("kill -9 $$", vec![]).0, ExitKind::Signal(9));
        assert_eq!(ExitKind::Signal(11).to_string(), "SIGSEGV");
    }

    #[test]
    fn an_image_that_cannot_run_is_an_error_of_the_spawn() {
        let output = output_file(c"test").unwrap();
        let spec = Spec {
            image: &image("/etc/hostname"),
            argv: vec![c"x".to_owned()],
            env: vec![],
            output: output.as_fd(),
            fds: vec![],
            credentials: None,
        };
        assert!(spawn(spec).is_err());
    }

    #[test]
    fn the_tail_is_the_end_of_the_output() {
        let output = output_file(c"test").unwrap();
        std::io::Write::write_all(&mut &output, b"0123456789").unwrap();
        assert_eq!(tail(&output, 4).unwrap(), "6789");
        std::io::Write::write_all(&mut &output, b"x").unwrap();
        assert_eq!(tail(&output, 100).unwrap(), "0123456789x", "reading did not move the writer");
    }
}
