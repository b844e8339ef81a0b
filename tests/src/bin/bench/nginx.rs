//! nginx, reloaded under the torture's plain mix: what a server that is reloaded in the usual way loses and closes. Installed by
//! nobody here; its files lie in a directory of their own, its port is the kernel's choice.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use baton_tests::load::{Load, Plan, Tally};
use baton_tests::{artifacts, http, process, wait};
use nix::sys::signal::Signal;

const PACKAGE: &str = "nginx-light";
/// What the torture asks for, as one file.
const FILE: u64 = 100_000;
/// Another process may take the port between our choice and nginx's bind.
const TRIES: usize = 5;

pub struct Reloaded {
    pub version: String,
    pub reloads: u64,
    pub tally: Tally,
}

/// Runs the load of `plan` through so many reloads. An error says why nginx was left out.
pub fn reloaded(plan: impl FnOnce(SocketAddr) -> Plan, reloads: u64, pause: Duration) -> Result<Reloaded, String> {
    let version = version()?;
    let nginx = (0..TRIES).find_map(|_| Nginx::start()).ok_or("it does not start; see its configuration above")?;
    let load = Load::start(plan(nginx.addr));
    load.wait_for_requests(500);
    for _ in 0..reloads {
        load.mark();
        nginx.reload();
        wait::pass(pause);
    }
    load.wait_for_requests(500);
    Ok(Reloaded { version, reloads, tally: load.stop() })
}

fn version() -> Result<String, String> {
    let missing = |_| format!("the program is missing; to compare with it: sudo apt-get install -y {PACKAGE}");
    let output = Command::new("nginx").arg("-v").output().map_err(missing)?;
    let text = String::from_utf8_lossy(&output.stderr);
    let version = text.trim().rsplit(' ').next().unwrap_or_default();
    Ok(version.replace('/', " "))
}

struct Nginx {
    master: Child,
    addr: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Nginx {
    /// Nothing if it does not come up.
    fn start() -> Option<Nginx> {
        let dir = tempfile::tempdir().expect("failed to make a temporary directory");
        let addr = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|free| free.local_addr()).expect("a free port");
        let letters: Vec<u8> = (0..FILE).map(|at| b'a' + (at % 26) as u8).collect();
        fs::write(dir.path().join("pattern"), letters).expect("failed to write");
        let config = dir.path().join("nginx.conf");
        fs::write(&config, configuration(dir.path(), addr)).expect("failed to write");
        let log = File::create(dir.path().join("output")).expect("failed to write");
        let mut master = Command::new(artifacts::own_binary("tether"))
            .arg("nginx")
            .args(["-e", "stderr", "-p"])
            .arg(dir.path())
            .arg("-c")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("failed to start nginx");
        let up = wait::try_until(wait::LONG, || {
            let ended = master.try_wait().expect("failed to wait for nginx").is_some();
            (ended || http::get(addr, "/").is_ok()).then_some(!ended)
        });
        if up != Some(true) {
            eprintln!("nginx: {}", fs::read_to_string(dir.path().join("output")).unwrap_or_default());
            eprintln!("{}", fs::read_to_string(&config).unwrap_or_default());
            return None;
        }
        Some(Nginx { master, addr, _dir: dir })
    }

    fn pid(&self) -> i32 {
        self.master.id().cast_signed()
    }

    fn workers(&self) -> Vec<i32> {
        process::children(self.pid()).into_iter().filter(|stat| !stat.is_zombie()).map(|stat| stat.pid).collect()
    }

    /// Returns once a worker answers that was not there before.
    fn reload(&self) {
        let before = self.workers();
        process::kill(self.pid(), Signal::SIGHUP);
        wait::until("a new worker to answer", wait::LONG, || {
            let answer = http::get(self.addr, "/").ok()?;
            let pid: i32 = answer.header("x-probe")?.rsplit(' ').next()?.parse().ok()?;
            (!before.contains(&pid)).then_some(())
        });
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Fast shutdown: the master ends its workers, then itself.
        process::kill(self.pid(), Signal::SIGTERM);
        if self.master.wait().is_err() {
            eprintln!("nginx {} could not be waited for", self.pid());
        }
    }
}

/// The probe's dialect, as far as a configuration can speak it.
fn configuration(dir: &Path, addr: SocketAddr) -> String {
    let dir = dir.display();
    // Only root may say it, and then the workers must read a directory of root's.
    let user = if nix::unistd::geteuid().is_root() { "user root;" } else { "" };
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("    {kind}_temp_path {dir}/{kind};\n"))
        .concat();
    format!(
        "daemon off;\n{user}\npid {dir}/pid;\nworker_processes 2;\nworker_rlimit_nofile 10000;\n\
         error_log stderr crit;\n\
         events {{ worker_connections 8000; }}\n\
         http {{\n{temporary}    access_log off;\n    default_type text/plain;\n    \
         keepalive_requests 1000000000;\n    keepalive_timeout 1h;\n    \
         add_header x-probe \"nginx $pid\" always;\n    add_header x-id $http_x_id always;\n    \
         server {{\n        listen {addr};\n        \
         location = / {{ return 200 \"nginx $pid $http_x_id\\n\"; }}\n        \
         location = /line {{ return 200 \"nginx $pid $http_x_id\\n\"; }}\n        \
         location = /pattern {{ alias {dir}/pattern; }}\n    \
         }}\n}}\n"
    )
}
