//! A server under measurement: a static one as yardstick, or Baton with one plugin.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use baton_tests::server::{Server, Setup};
use baton_tests::{artifacts, process};

enum Process {
    Static(Child),
    Baton(Box<Server>),
}

pub struct Subject {
    pub name: &'static str,
    pub addr: SocketAddr,
    process: Process,
}

impl Subject {
    /// A binary of this package that prints its address and serves until killed.
    pub fn fixed(name: &'static str, program: &str, core: Option<usize>) -> Subject {
        let mut command = Command::new(artifacts::own_binary("tether"));
        if let Some(core) = core {
            command.args(["--core", &core.to_string()]);
        }
        let mut child = command
            .arg(artifacts::own_binary(program))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("failed to start a static server");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("it is piped")).read_line(&mut line).expect("it prints its address");
        Subject { name, addr: line.trim().parse().expect("an address"), process: Process::Static(child) }
    }

    /// Baton with the plugin of `package`, one thread that serves, and `settings` beside.
    pub fn plugin(name: &'static str, package: &str, settings: &[(&str, &str)], core: Option<usize>) -> Subject {
        let setup = Setup::new().plugin(package, &artifacts::plugin(package)).core(core).set("workers", "1");
        let server = settings.iter().fold(setup, |setup, (key, value)| setup.set(key, value)).start();
        Subject { name, addr: server.addr(), process: Process::Baton(Box::new(server)) }
    }

    /// The process that answers requests.
    pub fn worker(&self) -> i32 {
        match &self.process {
            Process::Static(child) => child.id().cast_signed(),
            Process::Baton(server) => server.worker(),
        }
    }

    /// CPU time of all its processes.
    pub fn cpu(&self) -> Duration {
        let pids = match &self.process {
            Process::Static(_) => vec![self.worker()],
            Process::Baton(server) => server.processes(),
        };
        pids.into_iter().map(|pid| process::cpu_time(pid).expect("the server runs")).sum()
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        if let Process::Static(child) = &mut self.process
            && child.kill().and_then(|()| child.wait()).is_err()
        {
            eprintln!("{} could not be ended", self.name);
        }
    }
}
