//! The files by which an instance is found and kept from being started twice: locks, pid file, sockets; what becomes of them when a
//! cleaner comes by, when the master is killed, and when a stranger was first.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use baton_tests::http::Connection;
use baton_tests::server::{Server, Setup, Workbench, answered_by};
use baton_tests::{artifacts, process, wait};
use nix::sys::signal::Signal;

fn runtime_dir(server: &Server) -> PathBuf {
    server.socket().parent().expect("a directory").to_owned()
}

fn state_dir(server: &Server) -> PathBuf {
    server.bench.path().join("state/baton").join(&server.name)
}

/// Started by somebody whose session has other directories.
fn of_another_session(server: &Server) -> Setup {
    let runtime = server.bench.path().join("run-of-cron");
    Setup::in_bench_of(server).named(&server.name).env("XDG_RUNTIME_DIR", &runtime.to_string_lossy())
}

#[track_caller]
fn assert_refused(setup: Setup, says: &[&str]) {
    let mut server = setup.spawn();
    assert_eq!(server.wait_end(wait::LONG).code(), Some(1));
    let log = server.log();
    assert!(says.iter().all(|words| log.contains(words)), "{says:?}: {log}");
}

#[test]
fn second_server_of_a_state_directory_is_refused_with_the_pid() {
    let first = Setup::probe("v1").own_program().start();
    let pid = format!("process {}", first.pid());
    assert_refused(of_another_session(&first), &[&pid, "works with the state directory"]);
    let other_state = first.bench.path().join("other-state");
    let twin = Setup::in_bench_of(&first).named(&first.name).env("XDG_STATE_HOME", &other_state.to_string_lossy());
    assert_refused(twin, &[&pid, "is running already"]);
    // The locks belong to the process, whatever program it runs.
    first.cli(&["restart", "--name", &first.name]).assert_code(0);
    assert_refused(of_another_session(&first), &[&pid]);
    assert_eq!(first.probe().0, "v1");
    let again = of_another_session(&first);
    let mut first = first;
    first.signal(Signal::SIGTERM);
    assert_eq!(first.wait_end(wait::LONG).code(), Some(0));
    let server = again.spawn();
    wait::until("the next server", wait::LONG, || server.log().contains("server started").then_some(()));
}

/// As the kernel lists them.
fn bound_names(below: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/net/unix").expect("the kernel's list of sockets");
    let names = table.lines().filter_map(|line| line.split_whitespace().nth(7)).map(PathBuf::from);
    names.filter(|path| path.starts_with(below)).collect()
}

#[test]
fn sockets_are_listed_under_the_names_where_they_lie() {
    let setup = Setup::probe("v1").own_program();
    let web = setup.bench().path().join("web.sock");
    let listen = format!("unix:{}", web.display());
    let server = setup.listen(&["127.0.0.1:0", &listen]).start();
    let listed = |path: &Path| bound_names(server.bench.path()).contains(&path.to_owned());
    assert!(listed(&web) && listed(server.socket()), "{:?}", bound_names(server.bench.path()));
    server.cli(&["restart", "--name", &server.name]).assert_code(0);
    assert!(listed(&web) && listed(server.socket()));
    // systemd-tmpfiles leaves a directory alone that is locked.
    let cleaner = fs::File::open(runtime_dir(&server)).expect("the runtime directory");
    assert!(nix::fcntl::Flock::lock(cleaner, nix::fcntl::FlockArg::LockExclusiveNonblock).is_err());
    let left: Vec<_> = fs::read_dir(runtime_dir(&server)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "lock, pid file and socket: {left:?}");
}

#[test]
fn removed_runtime_directory_is_recreated() {
    let server = Setup::probe("v1").own_program().start();
    let runtime = runtime_dir(&server);
    fs::remove_dir_all(server.bench.path().join("run")).expect("failed to remove");
    let lost = server.cli(&["status", "--name", &server.name]);
    lost.assert_code(69);
    assert!(lost.stderr.contains(&format!("process {}, but its socket", server.pid())), "{lost:?}");
    server.signal(Signal::SIGUSR1);
    let status = server.wait_for("the socket", |_| true);
    assert_eq!(status.pid, server.pid());
    let pid = fs::read_to_string(runtime.join("baton.pid")).expect("the pid file");
    assert_eq!(pid.trim(), server.pid().to_string());
    assert_eq!(fs::metadata(&runtime).unwrap().mode() & 0o777, 0o700);
    let twin = || Setup::in_bench_of(&server).named(&server.name).env("XDG_STATE_HOME", "/nowhere/at/all");
    assert_refused(twin(), &["is running already", &format!("process {}", server.pid())]);
    // Also across a restart, and once more without an operation.
    server.cli(&["restart", "--name", &server.name]).assert_code(0);
    assert_refused(twin(), &["is running already"]);
    fs::remove_file(server.socket()).expect("failed to remove");
    server.wait_for_up_to(wait::LONG, "the socket by itself", |_| true);
    assert_eq!(server.probe().0, "v1");
}

/// Also while a server writes there.
#[track_caller]
fn remove_tree(dir: &Path) {
    wait::until("the directory to be removed", wait::LONG, || match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => None,
        removed => {
            removed.expect("failed to remove");
            Some(())
        }
    });
}

#[test]
fn removed_state_directory_is_recreated_with_its_lock_and_copies() {
    let server = Setup::probe("v1").own_program().start();
    let state = state_dir(&server);
    let token = server.token();
    for _ in 0..2 {
        remove_tree(&state);
        let (code, report) = server.reload();
        assert_eq!(code, 200, "{report:?}");
        assert_refused(of_another_session(&server), &["works with the state directory", &server.pid().to_string()]);
        assert_eq!(server.token(), token);
        assert_eq!(fs::metadata(&state).unwrap().mode() & 0o777, 0o711);
        // Across a restart as well.
        server.cli(&["restart", "--name", &server.name, "--force"]).assert_code(0);
    }
    // And once more without an operation: what a respawned worker needs is there.
    let old = server.worker();
    remove_tree(&state);
    wait::until("the lock and the copy", wait::LONG, || {
        let copies = fs::read_dir(state.join("store")).ok()?.count();
        (copies > 0 && state.join("state.lock").exists() && state.join("last_good").exists()).then_some(())
    });
    process::kill(old, Signal::SIGKILL);
    let status = server.wait_for("another worker", |status| {
        status.serving().is_some_and(|serving| serving.pid.is_some_and(|pid| pid != old))
    });
    assert_eq!((server.probe().0.as_str(), status.alert), ("v1", None));
}

#[test]
fn state_directory_that_another_server_took_refuses_operations() {
    let first = Setup::probe("v1").start();
    remove_tree(&state_dir(&first));
    let mut second = of_another_session(&first).spawn();
    wait::until("the second server", wait::LONG, || second.log().contains("server started").then_some(()));
    let (code, report) = first.reload();
    let error = report.error.unwrap_or_default();
    assert_eq!(code, 409, "{error}");
    assert!(error.contains(&format!("another server (process {}) has created it again", second.pid())), "{error}");
    assert!(first.status().alert.is_some_and(|alert| alert.contains("operations are refused")));
    assert_eq!(first.probe().0, "v1");
    second.signal(Signal::SIGTERM);
    second.wait_end(wait::LONG);
    let (code, report) = first.reload();
    assert_eq!((code, report.error, first.status().alert), (200, None, None));
}

#[test]
fn removed_socket_is_recreated_at_the_next_operation() {
    let server = Setup::probe("v1").start();
    let restore = || {
        fs::remove_file(server.socket()).expect("failed to remove");
        server.signal(Signal::SIGUSR1);
        server.wait_for("the socket", |_| true);
    };
    // The first one may have met the look that is taken every ten seconds: two more of these would take twenty.
    restore();
    let begun = std::time::Instant::now();
    restore();
    restore();
    assert!(begun.elapsed() < std::time::Duration::from_secs(15), "{:?}", begun.elapsed());
}

#[test]
fn as_root_the_admin_socket_is_for_its_owner_alone() {
    let server = Setup::probe("v1").own_program().start();
    // All of it is opened to everyone.
    let socket = server.socket();
    server.bench.open_to_all();
    for open in socket.ancestors().take_while(|path| *path != server.bench.path()) {
        fs::set_permissions(open, Permissions::from_mode(0o777)).expect("failed to set a mode");
    }
    let as_user = |uid: &str| {
        let mut command = Command::new("setpriv");
        command.args([&format!("--reuid={uid}"), "--clear-groups"]).arg(server.bench.program());
        command.args(["status", "--socket"]).arg(socket).output().expect("failed to run setpriv")
    };
    assert!(as_user("0").status.success());
    let refused = as_user("65533");
    assert!(!refused.status.success() && refused.stdout.is_empty(), "{refused:?}");
    wait::until("the log line", wait::LONG, || server.log().contains("belongs to another user").then_some(()));
}

#[test]
fn cli_of_another_session_names_the_socket_of_the_server() {
    let server = Setup::probe("v1").start();
    let other = server.bench.path().join("run-of-cron");
    for args in [&["status"][..], &["status", "--name", &server.name]] {
        let mut command = server.bench.command(args);
        let output = command.env("XDG_RUNTIME_DIR", &other).output().expect("failed to run the program");
        let says = String::from_utf8_lossy(&output.stderr);
        let option = format!("--socket {}", server.socket().display());
        assert!(output.status.code() == Some(69) && says.contains(&option), "{says}");
    }
}

#[test]
fn modes_do_not_depend_on_the_umask() {
    for umask in ["0", "077"] {
        let setup = Setup::probe("v1");
        let pid_file = setup.bench().path().join("x.pid");
        let script = format!("umask {umask}; exec \"$0\" \"$@\"");
        let setup = setup.arg("--pid-file").arg(&pid_file.to_string_lossy()).through(&["sh", "-c", &script]);
        let server = setup.start();
        let mode = |path: &Path| fs::metadata(path).expect("it is there").mode() & 0o777;
        assert_eq!(mode(&pid_file), 0o644);
        assert_eq!((mode(&runtime_dir(&server)), mode(&state_dir(&server))), (0o700, 0o711));
        assert_eq!(mode(server.socket()), 0o600);
        for path in [state_dir(&server).parent().unwrap(), runtime_dir(&server).parent().unwrap()] {
            assert_eq!(mode(path) & 0o022, 0, "{}", path.display());
        }
        for path in [state_dir(&server).join("data"), state_dir(&server).join("store")] {
            assert_eq!(mode(&path), 0o711, "{}", path.display());
        }
    }
}

#[test]
fn folder_that_was_there_keeps_its_mode_or_is_refused() {
    let bench = Workbench::new();
    let mode = |path: &Path| fs::metadata(path).expect("it is there").mode() & 0o7777;
    let own = bench.path().join("own");
    fs::create_dir(&own).unwrap();
    for (path, bits, why) in
        [(Path::new("/run"), None, "shared by the whole system"), (&*own, Some(0o777), "chmod go-w")]
    {
        if let Some(bits) = bits {
            fs::set_permissions(path, Permissions::from_mode(bits)).unwrap();
        }
        let before = mode(path);
        let setting = format!("runtime_dir={:?}", path.display().to_string());
        let plugins = bench.plugins();
        let outcome = bench.cli(&["run", "--plugins", &plugins.to_string_lossy(), "--admin", "off", "--set", &setting]);
        outcome.assert_code(1);
        assert!(outcome.stderr.contains(why), "{outcome:?}");
        assert_eq!(mode(path), before);
    }
    fs::set_permissions(&own, Permissions::from_mode(0o755)).unwrap();
    let setup = Setup::probe("v1").set("runtime_dir", &format!("{:?}", own.display().to_string()));
    let server = setup.spawn();
    wait::until("the server to serve", wait::LONG, || server.log().contains("server started").then_some(()));
    assert_eq!(mode(&own), 0o755);
}

#[test]
fn as_root_a_server_of_a_stranger_is_told_nothing() {
    let stranger = Setup::probe("v1").own_program();
    stranger.bench().open_to_all();
    let place = stranger.bench().path().join("theirs");
    fs::create_dir(&place).unwrap();
    chown(&place, Some(65_533), Some(65_532)).unwrap();
    let place = place.to_string_lossy().into_owned();
    let through = ["setpriv", "--reuid=65533", "--regid=65532", "--clear-groups"];
    let server = stranger.through(&through).env("XDG_RUNTIME_DIR", &place).env("XDG_STATE_HOME", &place).spawn();
    let socket = PathBuf::from(place).join("baton").join(&server.name).join("admin.sock");
    wait::until("the server to serve", wait::LONG, || server.log().contains("server started").then_some(()));
    Connection::open_unix(&socket).expect("it listens");
    let outcome = server.cli(&["shutdown", "--socket", &socket.to_string_lossy()]);
    outcome.assert_code(1);
    assert!(outcome.stderr.contains("runs as uid 65533") && outcome.stderr.contains("sudo -u"), "{outcome:?}");
    // Whose place it is may talk to it.
    let mut command = Command::new("setpriv");
    command.args(&through[1..]).arg(server.bench.program()).args(["status", "--socket"]).arg(&socket);
    assert!(command.output().expect("failed to run setpriv").status.success());
}

/// A process in the group of the server, with a parent outside of it: without one the kernel continues stopped processes when the
/// master ends (setpgid(2), orphaned process groups).
struct Anchor(Child);

impl Drop for Anchor {
    fn drop(&mut self) {
        self.0.kill().expect("failed to kill");
        self.0.wait().expect("failed to wait");
    }
}

/// Kills the master; its worker is stopped, as one whose threads are all busy.
#[track_caller]
fn kill_with_a_stopped_worker(server: &mut Server) -> (i32, Anchor) {
    let anchor = Command::new("sleep").arg("300").process_group(server.pid()).spawn().expect("failed to run sleep");
    let worker = server.worker();
    process::kill(worker, Signal::SIGSTOP);
    wait::until("the worker to stop", wait::LONG, || process::is_stopped(worker).then_some(()));
    server.signal(Signal::SIGKILL);
    server.wait_end(wait::LONG);
    (worker, Anchor(anchor))
}

/// At addresses that are named.
fn at_fixed_addresses() -> (Setup, PathBuf) {
    let setup = Setup::probe("v1");
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port");
    let path = setup.bench().path().join("web.sock");
    let text = format!("[[server]]\nlisten = [\"{free}\", \"unix:{}\"]\n[drain]\norphan = \"20s\"\n", path.display());
    (setup.config(&text), path)
}

#[test]
fn start_after_a_killed_master_waits_for_its_worker() {
    let (setup, path) = at_fixed_addresses();
    let mut killed = setup.start();
    let address = killed.addr();
    let (worker, _anchor) = kill_with_a_stopped_worker(&mut killed);
    let mut server = Setup::in_bench_of(&killed).named(&killed.name).listen(&[]).spawn();
    let waits = format!("{worker}");
    wait::until("the server to say that it waits", wait::LONG, || {
        assert!(server.try_wait().is_none(), "it ended: {}", server.log());
        let log = server.log();
        (log.contains("waiting for its end until") && log.contains(&waits)).then_some(())
    });
    process::kill(worker, Signal::SIGCONT);
    server.wait_for("the server to serve", |status| status.serving.is_some());
    assert_eq!(server.addr(), address);
    let mut connection = Connection::open_unix(&path).expect("it listens at the path as well");
    assert_eq!(answered_by(&connection.request("GET", "/").expect("an answer")).1, server.worker());
}

#[test]
fn start_fails_if_the_address_stays_in_use() {
    let (setup, _) = at_fixed_addresses();
    let mut killed = setup.start();
    let (worker, _anchor) = kill_with_a_stopped_worker(&mut killed);
    let address = {
        let text = fs::read_to_string(killed.bench.path().join("baton.toml")).unwrap();
        killed.bench.configure(&text.replace("20s", "100ms"));
        text.split('"').nth(1).expect("an address").to_owned()
    };
    let begun = Instant::now();
    assert_refused(
        Setup::in_bench_of(&killed).named(&killed.name).listen(&[]),
        &[&format!("process {worker}, a worker of the master before this one"), "kill -KILL"],
    );
    assert!(begun.elapsed() >= Duration::from_secs(1));
    process::kill(worker, Signal::SIGKILL);
    // Another's: a port of this test's own.
    wait::until("the port to be free", wait::LONG, || std::net::TcpListener::bind(&address).ok());
    let _taken = std::net::TcpListener::bind(&address).expect("a free port");
    assert_refused(
        Setup::in_bench_of(&killed).named(&killed.name).listen(&[]),
        &[&address, &format!("process {} has it", std::process::id())],
    );
}

#[test]
fn removed_data_directory_is_recreated_for_a_respawn() {
    let server = Setup::probe("v1").start();
    let data = state_dir(&server).join("data/probe");
    let before = server.worker();
    fs::remove_dir_all(&data).expect("failed to remove");
    process::kill(before, Signal::SIGKILL);
    server.wait_for("another worker", |status| {
        status.serving().and_then(|serving| serving.pid).is_some_and(|pid| pid != before)
    });
    assert_eq!(fs::metadata(&data).expect("it is there").mode() & 0o777, 0o700);
}

#[test]
fn as_root_config_and_binary_must_belong_to_root() {
    let setup = Setup::probe("v1").own_program().config("workers = 1\n[[server]]\nlisten = [\"127.0.0.1:0\"]\n");
    let server = setup.start();
    let config = server.bench.path().join("baton.toml");
    let give = |path: &Path, uid| chown(path, Some(uid), None).expect("failed to give a file away");
    // The configuration at a reload.
    give(&config, 65_533);
    let (code, report) = server.reload();
    assert_eq!((code, report.stage.as_deref()), (409, Some("config")), "{report:#?}");
    assert!(report.error.as_deref().is_some_and(|error| error.contains("belongs to uid 65533")), "{report:#?}");
    assert!(report.hint.as_deref().is_some_and(|hint| hint.contains("chown 0")), "{report:#?}");
    // It cannot vouch for itself.
    server.bench.configure("workers = 1\n[store]\nowners = [\"65533\"]\n[[server]]\nlisten = [\"127.0.0.1:0\"]\n");
    let (code, report) = server.reload();
    assert!(code == 409 && report.hint.is_some_and(|hint| hint.contains("--set 'store.owners")), "{code}");
    // And at the start.
    let mut other = Setup::in_bench_of(&server).listen(&[]).spawn();
    assert_eq!(other.wait_end(wait::LONG).code(), Some(78));
    assert!(other.log().contains("belongs to uid 65533"), "{}", other.log());
    let allowed = Setup::in_bench_of(&server).set("store.owners", "[\"65533\"]").listen(&[]).start();
    assert_eq!(allowed.reload().0, 200);
    drop(allowed);
    give(&config, 0);
    server.switch();
    // The binary at a restart: now the owner is one of those that may deploy.
    let program = server.bench.program();
    give(&program, 65_534);
    let refused = server.cli(&["restart", "--name", &server.name]);
    refused.assert_code(1);
    assert!(refused.stderr.contains("belongs to uid 65534") && refused.stderr.contains("chown"), "{refused:?}");
    give(&program, 65_533);
    server.cli(&["restart", "--name", &server.name]).assert_code(0);
    server.bench.install_program(&artifacts::baton());
    fs::set_permissions(&program, Permissions::from_mode(0o777)).unwrap();
    let refused = server.cli(&["restart", "--name", &server.name]);
    refused.assert_code(1);
    assert!(refused.stderr.contains("everybody may write it"), "{refused:?}");
}
