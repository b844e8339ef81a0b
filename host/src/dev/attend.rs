//! Beside the loop: waits for changes and for Enter, asks for a reload, and says how long it took until the new code answered.
//! It decides nothing about reloads; the loop does, and builds first.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::{Method, Request};
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{self, UnboundedSender};

use super::build::Workshop;
use super::watch::{self, Change, Settle};
use crate::cli::millis;
use crate::master::Handle;
use crate::master::handle::{Gone, OpOptions};
use crate::report::{Cause, OpResult, Report, Scheme, Stage, Status, Verb};
use crate::telemetry;

/// The new code has this long to answer the one request that the time is taken with.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

enum Wake {
    Changed(PathBuf, Instant),
    Enter(Instant),
    /// The watcher missed something: too much at once.
    Missed(Instant),
}

/// Runs until the master ends.
pub async fn attend(handle: Handle, workshop: Arc<Workshop>) {
    let (wakes, mut woken) = mpsc::unbounded_channel();
    let mut eyes = Eyes::open(wakes.clone());
    await_enter(wakes);
    let mut built = workshop.built();
    let crates: Vec<PathBuf> = workshop.crates.iter().map(|of| of.dir.clone()).collect();
    let mut sources = BTreeSet::new();
    eyes.look_at(watch::plan(&crates, &sources));
    let mut locks = stamps(&crates);
    let mut settle = Settle::default();
    loop {
        tokio::select! {
            // A build's end counts before what it wrote.
            biased;
            Ok(()) = built.changed() => {
                sources = built.borrow_and_update().sources.clone();
                eyes.look_at(watch::plan(&crates, &sources));
                // Cargo itself may have written these.
                locks = stamps(&crates);
            }
            Some(wake) = woken.recv() => match wake {
                Wake::Changed(path, at) => {
                    let is_lock = path.ends_with("Cargo.lock");
                    let unchanged = || locks.get(&path).is_some_and(|stamp| *stamp == stamp_of(&path));
                    let by_cargo = is_lock && (workshop.is_building() || unchanged());
                    if watch::counts(&path, &sources) && !by_cargo {
                        settle.note(path, at);
                    }
                }
                Wake::Missed(at) => settle.note(PathBuf::from("many files"), at),
                Wake::Enter(at) => {
                    let cause = Cause::Admin { peer: "Enter".into() };
                    if rebuild(&handle, cause, "Enter", at, &workshop).await.is_err() {
                        return;
                    }
                }
            },
            () = until(settle.due()) => {
                let Some(Change { path, at }) = settle.take() else { continue };
                let cause = Cause::Watcher { path: shorten(&path) };
                if rebuild(&handle, cause, "save", at, &workshop).await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// Asks for a reload, which builds first, and says how it went, unless the log has said it.
async fn rebuild(
    handle: &Handle,
    cause: Cause,
    began_with: &str,
    at: Instant,
    workshop: &Workshop,
) -> Result<(), Gone> {
    let report = handle.operate(Verb::Reload, cause, OpOptions::default()).await?;
    let status = handle.status().await?;
    if report.result == OpResult::Switched {
        let answered = first_answer(&status).await;
        let built = workshop.built().borrow().took;
        telemetry::print(&switched(&report, &status, began_with, answered.map(|()| at.elapsed()), built));
    } else if report.stage == Some(Stage::Build) {
        let serving =
            report.serving.map_or("nothing serves yet".into(), |number| format!("generation {number} serves on"));
        telemetry::print(&format!("build failed; {serving}"));
    }
    Ok(())
}

/// One real request on a new connection; an error says why there was no answer.
async fn first_answer(status: &Status) -> Result<(), String> {
    let clear = status.listeners.iter().filter(|listener| listener.scheme == Scheme::Http);
    let mut addresses = clear.filter_map(|listener| listener.address.parse().ok());
    let address = reachable(addresses.next().ok_or("there is no TCP listener for clear HTTP")?);
    let exchange = async {
        let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        let connection = tokio::spawn(connection);
        let request = Request::builder()
            .method(Method::HEAD)
            .uri("/")
            .header("host", address.to_string())
            .header("connection", "close")
            .body(Empty::<Bytes>::new())
            .map_err(|error| error.to_string())?;
        let answer = sender.send_request(request).await.map_err(|error| error.to_string());
        connection.abort();
        answer.map(drop)
    };
    match tokio::time::timeout(ANSWER_TIMEOUT, exchange).await {
        Ok(result) => result,
        Err(_) => Err(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs())),
    }
}

/// "Any address" is where to listen, not where to connect.
fn reachable(mut address: std::net::SocketAddr) -> std::net::SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            std::net::SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            std::net::SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

fn switched(
    report: &Report,
    status: &Status,
    began_with: &str,
    answered: Result<Duration, String>,
    build: Duration,
) -> String {
    let generation = status.generations.iter().find(|generation| Some(generation.generation) == report.generation);
    let names: Vec<String> = generation
        .into_iter()
        .flat_map(|generation| &generation.plugins)
        .map(|plugin| format!("{} {}", plugin.name, plugin.version))
        .collect();
    let ms = |duration: Duration| duration.as_secs_f64() * 1000.0;
    let names = if names.is_empty() { "nothing".into() } else { names.join(", ") };
    let took = match answered {
        Ok(took) => format!("{began_with} to first new answer {}", millis(ms(took))),
        Err(why) => format!("the new code does not answer: {why}"),
    };
    // Its parts less the build, which is one of reading the plugins; the total may have waited for another operation.
    let parts = report.ms.map_or(0.0, |parts| parts.snapshot + parts.load + parts.prove + parts.switch);
    let switch = (parts - ms(build)).max(0.0);
    format!("{names} swapped: {took} (build {}, switch {})", millis(ms(build)), millis(switch))
}

fn shorten(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(&here).unwrap_or(path).display().to_string()
}

type Stamp = Option<(SystemTime, u64)>;

fn stamp_of(path: &Path) -> Stamp {
    let meta = path.metadata().ok()?;
    Some((meta.modified().ok()?, meta.len()))
}

/// The lock files that a build may write, as they are now.
fn stamps(crates: &[PathBuf]) -> BTreeMap<PathBuf, Stamp> {
    let above = crates.iter().flat_map(|dir| dir.ancestors());
    above.map(|dir| dir.join("Cargo.lock")).filter_map(|path| Some((path.clone(), Some(stamp_of(&path)?)))).collect()
}

/// The file watcher; without one, Enter and `baton reload` are left.
struct Eyes {
    watcher: Option<RecommendedWatcher>,
    on: BTreeMap<PathBuf, bool>,
}

impl Eyes {
    fn open(wakes: UnboundedSender<Wake>) -> Eyes {
        let see = move |event: notify::Result<notify::Event>| {
            let at = Instant::now();
            let wakes_of = |event: notify::Event| -> Vec<Wake> {
                if event.need_rescan() {
                    return vec![Wake::Missed(at)];
                }
                let paths = event.paths.into_iter().filter(|_| watch::is_change(&event.kind));
                paths.map(|path| Wake::Changed(path, at)).collect()
            };
            for wake in event.map(wakes_of).unwrap_or_else(|_| vec![Wake::Missed(at)]) {
                // Nobody listens only once the master ends.
                wakes.send(wake).ok();
            }
        };
        let watcher = notify::recommended_watcher(see)
            .inspect_err(|error| tracing::warn!(%error, "failed to watch the sources; Enter rebuilds"))
            .ok();
        Eyes { watcher, on: BTreeMap::new() }
    }

    fn look_at(&mut self, plan: BTreeMap<PathBuf, bool>) {
        let Some(watcher) = &mut self.watcher else { return };
        for path in self.on.keys().filter(|path| !plan.contains_key(*path)) {
            // One that is gone is watched no more anyway.
            watcher.unwatch(path).ok();
        }
        let mut on = BTreeMap::new();
        for (path, deep) in plan {
            let known = self.on.get(&path) == Some(&deep) && path.is_dir();
            let mode = if deep { RecursiveMode::Recursive } else { RecursiveMode::NonRecursive };
            match if known { Ok(()) } else { watcher.watch(&path, mode) } {
                Ok(()) => drop(on.insert(path, deep)),
                Err(error) => tracing::warn!(path = %path.display(), %error, "failed to watch; Enter rebuilds"),
            }
        }
        self.on = on;
    }
}

/// Enter, if somebody is there to press it: reading a terminal from the background would stop us.
fn await_enter(wakes: UnboundedSender<Wake>) {
    let stdin = std::io::stdin();
    let foreground = nix::unistd::tcgetpgrp(&stdin).is_ok_and(|group| group == nix::unistd::getpgrp());
    if !stdin.is_terminal() || !foreground {
        return;
    }
    let read = move || {
        for line in std::io::stdin().lines() {
            if line.is_err() || wakes.send(Wake::Enter(Instant::now())).is_err() {
                return;
            }
        }
    };
    if let Err(error) = std::thread::Builder::new().name("enter".into()).spawn(read) {
        tracing::warn!(%error, "failed to wait for Enter");
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::report::{
        Generation, GenerationState, GenerationStatus, ListenerStatus, Load, OpId, PluginStatus, Timings, Totals,
    };

    fn status(address: &str) -> Status {
        let plugin = PluginStatus {
            name: "hello".into(),
            version: "0.1.0".into(),
            mount: "/".into(),
            sha256: String::new(),
            file: String::new(),
            api: String::new(),
            rustc: String::new(),
            debug: true,
        };
        Status {
            watcher: Default::default(),
            pinned: None,
            held: Vec::new(),
            alert: None,
            quarantines: 0,
            systemd: None,
            name: "hello".into(),
            version: "0.1.0".into(),
            pid: 1,
            uptime_ms: 1,
            ready: true,
            serving: Some(Generation(2)),
            shutting_down: false,
            listeners: vec![ListenerStatus { scheme: Scheme::Http, server: "default".into(), address: address.into() }],
            certificates: Vec::new(),
            admin: None,
            probes: None,
            plugin_dir: String::new(),
            runs_as: None,
            generations: vec![GenerationStatus {
                generation: Generation(2),
                state: GenerationState::Serving,
                pid: Some(2),
                cause: Cause::Start,
                age_ms: 0,
                deadline_ms: None,
                load: Load::default(),
                plugins: vec![plugin],
                exit: None,
            }],
            operations: Vec::new(),
            totals: Totals::default(),
            switches: 1,
            crashes: 0,
            master_fds: 0,
        }
    }

    #[test]
    fn the_time_is_told_from_save_to_answer() {
        let report = Report {
            result: OpResult::Switched,
            generation: Some(Generation(2)),
            from: Some(Generation(1)),
            pid: Some(2),
            ms: Some(Timings { snapshot: 791.1, load: 4.0, prove: 0.0, switch: 1.1, total: 5000.0 }),
            ..Report::new(OpId(2), Verb::Reload, Cause::Start)
        };
        let build = Duration::from_millis(790);
        let line = switched(&report, &status("x"), "save", Ok(Duration::from_millis(812)), build);
        assert_eq!(line, "hello 0.1.0 swapped: save to first new answer 812 ms (build 790 ms, switch 6.2 ms)");
        let line = switched(&report, &status("x"), "save", Err("refused".into()), build);
        assert!(line.contains("does not answer: refused"), "{line}");
    }

    #[tokio::test]
    async fn the_first_answer_is_a_real_one() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0; 512];
            let count = stream.read(&mut head).await.unwrap();
            assert!(head[..count].starts_with(b"HEAD / HTTP/1.1\r\n"));
            stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 3\r\n\r\n").await.unwrap();
        });
        first_answer(&status(&address)).await.unwrap();
        server.await.unwrap();
        assert!(first_answer(&status(&address)).await.is_err(), "nobody listens any more");
        assert!(first_answer(&status("unix:/x")).await.is_err());
    }

    #[test]
    fn any_address_is_reached_on_loopback() {
        assert_eq!(reachable("0.0.0.0:1".parse().unwrap()), "127.0.0.1:1".parse().unwrap());
        assert_eq!(reachable("[::]:1".parse().unwrap()), "[::1]:1".parse().unwrap());
        assert_eq!(reachable("10.0.0.1:1".parse().unwrap()), "10.0.0.1:1".parse().unwrap());
    }
}
