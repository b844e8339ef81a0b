//! One instance of the server under test: own directories, kernel-chosen ports, and an end that is certain.
//!
//! [`Setup`] says how it starts, [`Server`] is the running process. All that a test learns of it comes from outside: its
//! ports, its status, its exit code, the kernel. The whole process group is killed on drop, and by the kernel if the test
//! process dies; a server must be started on a thread that outlives it (the kernel ties it to that thread). On a failed
//! test its log is printed. Long, since what a test may do to an instance is one list.

use std::fs::{self, File, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::http::{Connection, Response};
use crate::status::{Generation, Report, Status};
use crate::systemd::Manager;
use crate::{artifacts, process, wait};

/// Variables that would lead an instance out of its own directories, or change what it says.
const FOREIGN: [&str; 11] = [
    "RUNTIME_DIRECTORY",
    "STATE_DIRECTORY",
    "NOTIFY_SOCKET",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "FDSTORE",
    "RUST_LOG",
    "NO_COLOR",
];
/// Lines of the log that a failed test shows.
const SHOWN: usize = 60;

/// Directories of one or more instances: runtime, state, plugins. Gone when dropped.
#[derive(Clone)]
pub struct Workbench {
    dir: Arc<TempDir>,
}

impl Default for Workbench {
    fn default() -> Workbench {
        Workbench::new()
    }
}

impl Workbench {
    pub fn new() -> Workbench {
        // Short: the path of a Unix socket has 108 bytes at most.
        let dir = tempfile::Builder::new().prefix("bt-").tempdir().expect("failed to make a temporary directory");
        for folder in ["run", "state", "plugins"] {
            fs::create_dir(dir.path().join(folder)).expect("failed to make a directory");
        }
        // Whatever the umask of whoever runs the tests: what others may write is refused.
        for folder in ["run", "state", "plugins"] {
            fs::set_permissions(dir.path().join(folder), Permissions::from_mode(0o755)).expect("failed to set a mode");
        }
        Workbench { dir: Arc::new(dir) }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The server's own program, if the setup says so.
    pub fn program(&self) -> PathBuf {
        self.path().join("baton")
    }

    /// Puts another file where the server's own program is, in one step.
    pub fn install_program(&self, file: &Path) {
        let partial = self.path().join("baton.partial");
        fs::copy(file, &partial).unwrap_or_else(|error| panic!("failed to copy {}: {error}", file.display()));
        fs::set_permissions(&partial, fs::Permissions::from_mode(0o755)).expect("failed to make it executable");
        fs::rename(&partial, self.program()).expect("failed to rename a program into place");
    }

    pub fn plugins(&self) -> PathBuf {
        self.path().join("plugins")
    }

    pub fn plugin_file(&self, name: &str) -> PathBuf {
        self.plugins().join(format!("lib{name}.so"))
    }

    /// Puts a plugin in place in one step, by rename.
    pub fn install(&self, name: &str, file: &Path) {
        let partial = self.plugins().join(format!(".{name}.partial"));
        fs::copy(file, &partial).unwrap_or_else(|error| panic!("failed to copy {}: {error}", file.display()));
        fs::set_permissions(&partial, Permissions::from_mode(0o755)).expect("failed to set a mode");
        fs::rename(&partial, self.plugin_file(name)).expect("failed to rename a plugin into place");
    }

    /// Writes over the plugin in place, as `cp` does: the same inode.
    pub fn overwrite(&self, name: &str, file: &Path) {
        let target = self.plugin_file(name);
        let inode =
            |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).expect("the plugin is there"));
        let before = inode(&target);
        let bytes = fs::read(file).expect("failed to read a plugin");
        fs::write(&target, bytes).expect("failed to write over a plugin");
        assert_eq!(inode(&target), before, "this was to write in place");
    }

    /// Writes the configuration file that an instance here reads by itself.
    pub fn configure(&self, text: &str) {
        fs::write(self.path().join("baton.toml"), text).expect("failed to write the configuration");
    }

    /// Lets every user reach what lies in here, as far as it allows that itself.
    pub fn open_to_all(&self) {
        fs::set_permissions(self.path(), Permissions::from_mode(0o711)).expect("failed to set a mode");
    }

    pub fn remove(&self, name: &str) {
        fs::remove_file(self.plugin_file(name)).expect("failed to remove a plugin");
    }

    /// A command of the program under test, at home in this workbench.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(artifacts::baton());
        command.args(args);
        self.adopt(&mut command);
        command
    }

    fn adopt(&self, command: &mut Command) {
        for name in FOREIGN {
            command.env_remove(name);
        }
        command
            .current_dir(self.path())
            .env("XDG_RUNTIME_DIR", self.path().join("run"))
            .env("XDG_STATE_HOME", self.path().join("state"))
            .stdin(Stdio::null());
    }

    /// Runs a command line to its end.
    pub fn cli(&self, args: &[&str]) -> Outcome {
        let output = self.command(args).output().expect("failed to run the program");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Outcome { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

/// How a command line ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Nothing if a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    #[track_caller]
    pub fn assert_code(&self, code: i32) -> &Outcome {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }

    #[track_caller]
    pub fn json<T: serde::de::DeserializeOwned>(&self) -> T {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("no JSON on stdout: {error}: {self:#?}"))
    }
}

/// How an instance starts.
pub struct Setup {
    bench: Workbench,
    name: String,
    listen: Vec<String>,
    args: Vec<String>,
    core: Option<usize>,
    passed: Vec<String>,
    fetched: Option<PathBuf>,
    verb: Vec<String>,
    env: Vec<(String, String)>,
    own_program: bool,
    terminal: Option<PathBuf>,
    subreaper: bool,
    through: Vec<String>,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup::new()
    }
}

impl Setup {
    /// `baton run`, on ports that the kernel chooses, without plugins.
    pub fn new() -> Setup {
        static COUNT: AtomicU64 = AtomicU64::new(1);
        Setup {
            bench: Workbench::new(),
            name: format!("t-{}-{}", std::process::id(), COUNT.fetch_add(1, Relaxed)),
            listen: vec!["127.0.0.1:0".into()],
            args: Vec::new(),
            core: None,
            passed: Vec::new(),
            fetched: None,
            verb: vec!["run".into()],
            env: Vec::new(),
            own_program: false,
            terminal: None,
            subreaper: false,
            through: Vec::new(),
        }
    }

    /// Another instance in the directories of `server`: its neighbour.
    pub fn in_bench_of(server: &Server) -> Setup {
        Setup { bench: server.bench.clone(), ..Setup::new() }
    }

    /// With the probe of that version.
    pub fn probe(version: &str) -> Setup {
        Setup::new().plugin("probe", &artifacts::probe(version))
    }

    /// Started by [`Workbench::program`], a copy of its own that a test may replace.
    pub fn own_program(mut self) -> Setup {
        self.own_program = true;
        self
    }

    pub fn plugin(self, name: &str, file: &Path) -> Setup {
        self.bench.install(name, file);
        self
    }

    /// `baton dev CRATE_DIR`, on the same terms.
    pub fn dev(crate_dir: &Path) -> Setup {
        let mut setup = Setup::new();
        setup.verb = vec!["dev".into(), crate_dir.to_string_lossy().into_owned()];
        setup
    }

    pub fn named(mut self, name: &str) -> Setup {
        self.name = name.into();
        self
    }

    pub fn listen(mut self, addresses: &[&str]) -> Setup {
        self.listen = addresses.iter().map(|address| address.to_string()).collect();
        self
    }

    pub fn arg(mut self, arg: &str) -> Setup {
        self.args.push(arg.into());
        self
    }

    /// `--set KEY=VALUE`.
    pub fn set(self, key: &str, value: &str) -> Setup {
        self.arg("--set").arg(&format!("{key}={value}"))
    }

    pub fn env(mut self, key: &str, value: &str) -> Setup {
        self.env.push((key.into(), value.into()));
        self
    }

    /// On one core alone.
    pub fn core(mut self, core: Option<usize>) -> Setup {
        self.core = core;
        self
    }

    /// In a session of its own at that terminal, which is its stdin.
    pub fn terminal(mut self, path: &Path) -> Setup {
        self.terminal = Some(path.to_owned());
        self
    }

    /// Adopts what its descendants leave behind.
    pub fn subreaper(mut self) -> Setup {
        self.subreaper = true;
        self
    }

    /// By a command that runs the words behind it. Unless it becomes what it runs, the server's pid is that of the command.
    pub fn through(mut self, command: &[&str]) -> Setup {
        self.through = command.iter().map(|word| word.to_string()).collect();
        self
    }

    /// With listening sockets of these names, passed as systemd does.
    pub fn passed(mut self, names: &[&str]) -> Setup {
        self.passed = names.iter().map(|name| name.to_string()).collect();
        self
    }

    /// Started by this service manager, and with what it has in its store. May be said again for the next start.
    pub fn under(mut self, manager: &Manager) -> Setup {
        self.fetched = Some(manager.give_back()).filter(|_| !manager.stored().is_empty());
        self.env("NOTIFY_SOCKET", manager.address())
    }

    /// With that configuration file, and no address but its own.
    pub fn config(self, text: &str) -> Setup {
        self.bench.configure(text);
        self.listen(&[])
    }

    pub fn bench(&self) -> &Workbench {
        &self.bench
    }

    /// Starts the process, and waits for nothing.
    pub fn spawn(self) -> Server {
        static COUNT: AtomicU64 = AtomicU64::new(1);
        let log = self.bench.path().join(format!("log-{}", COUNT.fetch_add(1, Relaxed)));
        let file = File::create(&log).expect("failed to make the log file");
        let mut command = Command::new(artifacts::own_binary("tether"));
        self.bench.adopt(&mut command);
        if let Some(core) = self.core {
            command.args(["--core", &core.to_string()]);
        }
        if let Some(terminal) = &self.terminal {
            command.arg("--terminal").arg(terminal);
        }
        if self.subreaper {
            command.arg("--subreaper");
        }
        for name in &self.passed {
            command.args(["--pass", name]);
        }
        if let Some(store) = &self.fetched {
            command.arg("--fetch").arg(store);
        }
        let program = if self.own_program {
            let program = self.bench.program();
            // By a process of its own: what another test forks meanwhile would hold it open for writing, and no such file is
            // executed (ETXTBSY, execve(2)).
            let copied = Command::new("cp").arg(artifacts::baton()).arg(&program).status().expect("failed to run cp");
            assert!(copied.success(), "failed to copy the program: {copied}");
            program
        } else {
            artifacts::baton()
        };
        // Tests may run under nohup(1) or in the background of a script, and the server keeps to what it inherits.
        command.args(["env", "--default-signal=HUP,INT,QUIT"]).args(&self.through).arg(program).args(&self.verb);
        command.args(["--name", &self.name]);
        for address in &self.listen {
            command.args(["--listen", address]);
        }
        if !self.args.iter().any(|arg| arg == "--admin") {
            command.args(["--admin", "127.0.0.1:0"]);
        }
        if self.verb[0] == "run" {
            command.arg("--plugins").arg(self.bench.plugins());
        }
        command
            .args(&self.args)
            .envs(self.env.iter().map(|(key, value)| (key, value)))
            .stdout(file.try_clone().expect("failed to copy a descriptor"))
            .stderr(file);
        // Who begins a session leads its group, and must not lead one before (setsid(2)).
        if self.terminal.is_none() {
            command.process_group(0);
        }
        let child = command.spawn().expect("failed to start the server");
        let socket = self.bench.path().join("run/baton").join(&self.name).join("admin.sock");
        Server { child, ended: None, bench: self.bench, name: self.name, log, socket }
    }

    /// Starts it and waits until a generation serves.
    #[track_caller]
    pub fn start(self) -> Server {
        let mut server = self.spawn();
        wait::until("the server to serve", wait::LONG, || {
            if let Some(status) = server.try_wait() {
                panic!("the server ended with {status} instead of serving");
            }
            server.try_status().ok()?.serving
        });
        server
    }
}

/// A running instance.
pub struct Server {
    child: Child,
    ended: Option<ExitStatus>,
    pub bench: Workbench,
    pub name: String,
    log: PathBuf,
    socket: PathBuf,
}

impl Server {
    /// Of the master.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn try_status(&self) -> io::Result<Status> {
        let response = Connection::open_unix(&self.socket)?.request("GET", "/debug/admin/status")?;
        if response.status != 200 {
            return Err(io::Error::other(format!("status {}", response.status)));
        }
        serde_json::from_slice(&response.body)
            .map_err(|error| io::Error::other(format!("the status has another shape: {error}: {}", response.text())))
    }

    #[track_caller]
    pub fn status(&self) -> Status {
        self.try_status().unwrap_or_else(|error| panic!("failed to ask for the status: {error}"))
    }

    /// Waits until the status says `what`.
    #[track_caller]
    pub fn wait_for(&self, what: &str, holds: impl Fn(&Status) -> bool) -> Status {
        self.wait_for_up_to(wait::LONG, what, holds)
    }

    /// As [`wait_for`](Server::wait_for), for what takes longer than usual.
    #[track_caller]
    pub fn wait_for_up_to(&self, limit: Duration, what: &str, holds: impl Fn(&Status) -> bool) -> Status {
        let mut last = None;
        let found = wait::try_until(limit, || {
            last = Some(self.try_status());
            match &last {
                Some(Ok(status)) if holds(status) => Some(status.clone()),
                _ => None,
            }
        });
        found.unwrap_or_else(|| panic!("waited in vain for {what}; the last status is {last:#?}"))
    }

    /// The generation that serves.
    #[track_caller]
    pub fn serving(&self) -> Generation {
        let status = self.status();
        status.serving().unwrap_or_else(|| panic!("nothing serves: {status:#?}")).clone()
    }

    /// The process that serves.
    #[track_caller]
    pub fn worker(&self) -> i32 {
        self.serving().pid.expect("the serving generation has a process")
    }

    /// Waits until only the serving generation is left.
    #[track_caller]
    pub fn wait_drained(&self) -> Status {
        self.wait_for("one generation alone", |status| status.serving.is_some() && status.living().count() == 1)
    }

    /// The first address that clients reach over TCP.
    #[track_caller]
    pub fn addr(&self) -> SocketAddr {
        self.addrs()[0]
    }

    #[track_caller]
    pub fn addrs(&self) -> Vec<SocketAddr> {
        let listeners = self.status().listeners;
        let ip = |address: &String| !address.starts_with("unix:");
        let addresses = listeners.into_iter().map(|listener| listener.address).filter(ip);
        addresses.map(|address| address.parse().expect("a listener's address")).collect()
    }

    #[track_caller]
    pub fn connect(&self) -> Connection {
        Connection::open(self.addr()).unwrap_or_else(|error| panic!("failed to connect: {error}"))
    }

    /// One request on a new connection, which must be answered.
    #[track_caller]
    pub fn get(&self, target: &str) -> Response {
        crate::http::get(self.addr(), target).unwrap_or_else(|error| panic!("GET {target} got no answer: {error}"))
    }

    /// Version and pid of the probe that answers now.
    #[track_caller]
    pub fn probe(&self) -> (String, i32) {
        answered_by(&self.get("/"))
    }

    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        assert!(self.ended.is_none(), "the server has ended");
        process::kill(self.pid(), signal);
    }

    /// One request over the admin socket.
    #[track_caller]
    pub fn admin(&self, method: &str, target: &str) -> Response {
        Connection::open_unix(&self.socket)
            .and_then(|mut connection| connection.request(method, target))
            .unwrap_or_else(|error| panic!("{method} {target} over the admin socket got no answer: {error}"))
    }

    /// The admin address for people.
    #[track_caller]
    pub fn admin_addr(&self) -> SocketAddr {
        let link = self.status().admin.expect("an admin address");
        let address = link.strip_prefix("http://").and_then(|rest| rest.split('/').next()).unwrap_or_default();
        address.parse().unwrap_or_else(|error| panic!("{link} holds no address: {error}"))
    }

    #[track_caller]
    pub fn token(&self) -> String {
        let path = self.bench.path().join("state/baton").join(&self.name).join("admin-token");
        let token = fs::read_to_string(&path).unwrap_or_else(|error| panic!("failed to read the token: {error}"));
        token.trim().to_string()
    }

    /// Reloads by the admin socket: status code and report.
    #[track_caller]
    pub fn reload(&self) -> (u16, Report) {
        let response = self.admin("POST", "/debug/admin/reload");
        (response.status, response.json())
    }

    /// As [`reload`](Server::reload), and takes also what was held back: what a killed process ran.
    #[track_caller]
    pub fn force_reload(&self) -> (u16, Report) {
        let ask = |mut connection: Connection| {
            connection.send("POST", "/debug/admin/reload", &[], br#"{"force":true}"#)?;
            connection.receive()
        };
        let response = Connection::open_unix(&self.socket).and_then(ask);
        let response = response.unwrap_or_else(|error| panic!("a forced reload got no answer: {error}"));
        (response.status, response.json())
    }

    /// Reloads, which must switch, and waits until the old generation accepts no more.
    #[track_caller]
    pub fn switch(&self) -> Report {
        let (code, report) = self.reload();
        assert_eq!((code, report.result.as_str()), (200, "switched"), "{report:#?}");
        self.wait_settled();
        report
    }

    /// Waits until only the serving generation accepts: a reload answers at the commit, and from there to PAUSED both do.
    #[track_caller]
    pub fn wait_settled(&self) {
        self.wait_for("the old generation to accept no more", |status| {
            let old = |one: &&Generation| Some(one.generation) != status.serving;
            let mut others = status.living().filter(old);
            status.serving.is_some() && others.all(|one| one.state == "retiring")
        });
    }

    /// Sends a signal that reloads, and waits for the report.
    #[track_caller]
    pub fn reload_by_signal(&self, signal: Signal) -> Report {
        let last = self.status().last_op();
        self.signal(signal);
        let ended =
            |status: &Status| status.operations.iter().find(|report| report.op > last && report.has_ended()).cloned();
        let status = self.wait_for("the report of the reload", |status| ended(status).is_some());
        ended(&status).expect("just seen")
    }

    /// The report of operation `op`, once it has ended. The master may change its program meanwhile.
    #[track_caller]
    pub fn ended(&self, op: u64) -> Report {
        let ask = || Connection::open_unix(&self.socket)?.request("GET", &format!("/debug/admin/ops/{op}"));
        wait::until("the end of an operation", wait::LONG, || {
            let response = ask().ok().filter(|response| response.status == 200)?;
            let report: Report = serde_json::from_slice(&response.body).expect("a report");
            report.has_ended().then_some(report)
        })
    }

    /// A command line about this instance.
    pub fn cli(&self, args: &[&str]) -> Outcome {
        self.bench.cli(args)
    }

    /// How it ended, if it has.
    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("failed to wait for the server");
        }
        self.ended
    }

    /// Waits for the end of the master and says how it was.
    #[track_caller]
    pub fn wait_end(&mut self, limit: Duration) -> ExitStatus {
        wait::until("the end of the server", limit, || self.try_wait())
    }

    /// Living processes of this instance.
    pub fn processes(&self) -> Vec<i32> {
        let mut all = process::group(self.pid());
        all.extend(process::workers(self.pid()));
        all
    }
}

/// Version and pid of who answered, as the probe says on every answer.
#[track_caller]
pub fn answered_by(response: &Response) -> (String, i32) {
    let by = response.header("x-probe").unwrap_or_else(|| panic!("not an answer of the probe: {response:?}"));
    let (version, pid) = by.split_once(' ').expect("version and pid");
    (version.to_string(), pid.parse().expect("a pid"))
}

impl Drop for Server {
    fn drop(&mut self) {
        // Once the master is reaped its number may be another's, unless a process of its group is left.
        if self.ended.is_none() || !self.processes().is_empty() {
            // Each of its children leads a group of its own.
            let workers = process::workers(self.pid());
            for group in [self.pid()].into_iter().chain(workers) {
                // Fails only if the last one ended meanwhile, which is what it is for.
                let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
            }
        }
        if self.ended.is_none() && self.child.wait().is_err() {
            eprintln!("the server {} could not be waited for", self.pid());
        }
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let shown = lines.len().saturating_sub(SHOWN);
            eprintln!("---- log of {} (last {} of {} lines) ----", self.name, lines.len() - shown, lines.len());
            eprintln!("{}", lines[shown..].join("\n"));
        }
    }
}
