//! The loop: waits, feeds the state machine, and does what it says. Every decision is `state`'s; here is the I/O around it: what
//! each action does, but how a child gets its set (`loading`), what people are told (`status`), and a restart (`restart`).

mod fair_events;
mod loading;
mod preparing;
mod restart;
mod status;
mod upkeep;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::io::Interest;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::fair_events::FairEvents;
use self::loading::DataDirs;
use self::preparing::{Freed, Prepared};
use self::restart::PickedUp;
use self::upkeep::{RESTORE, RestoredFiles, Restoring};
use super::admin::{self, AdminOptions};
use super::children::Children;
use super::handle::{Desk, Handle, OpOptions, Readiness, Request};
use super::identity::Identity;
use super::instance_files::{InheritedLocks, InstanceFiles};
use super::inventory::{Inventory, Set};
use super::listeners::{Listeners, PathCheck, Rebound};
use super::memory::Notebook;
use super::resume::{self, ResumeError, Resumption};
use super::signals::{self, Effect, Situation};
use super::source::{self, Source};
use super::state::{Action, Caller, Event, Exit, Note, SetId, Settings, State, TestId};
use super::store::Store;
use super::systemd::{Start, Systemd, Turn, View};
use super::tls::{self, Certificates, Tickets};
use super::watcher::Watcher;
use super::{Options, StartError, notes};
use crate::config::ConfigSource;
use crate::control::{ControlVerb, ToMaster};
use crate::dirs::Dirs;
use crate::report::{Cause, Failure, OpId, Report, Rights, RunsAs, Stage, Verb};
use crate::sys::process::{self, Image};
use crate::sys::terminal::Terminal;
use crate::sys::{credentials, readiness};
use crate::version::VERSION;

/// How often the answers of a generation on probation are counted.
const COUNT: Duration = Duration::from_millis(100);
/// How often the listeners are looked after, and processes reaped that nothing else waits for.
const UPKEEP: Duration = Duration::from_millis(500);
/// Processes that are reaped in one go.
const REAPED_AT_ONCE: usize = 1000;

/// With fewer descriptors no child can be started.
pub(super) const LEAST_OPEN_FILES: u64 = 64;

/// What the blocking pool brought.
enum Finished {
    Prepared(Box<Prepared>),
    Freed(Box<Freed>),
    DataDirs(DataDirs),
    /// Whether the binary for a restart may be run, and what it is.
    Verified {
        op: OpId,
        test: TestId,
        result: Result<Image, Failure>,
    },
    /// What was missing in the instance's directories.
    Restored(Box<RestoredFiles>),
    /// Unix sockets that clients did not reach.
    Rebound(Vec<Rebound>),
}

/// What needs more of the loop than the state machine's other actions.
enum Errand {
    Test(OpId, TestId),
    Leave(OpId),
}

struct Master {
    source: Arc<Source>,
    dev: bool,
    terminal: Terminal,
    dirs: Dirs,
    identity: Identity,
    state: State,
    started: Instant,
    image: Image,
    /// The program before this one and its sets: as long as none is committed that this one brought, theirs is what serves.
    before: Option<(Image, BTreeSet<SetId>)>,
    /// Where a restart finds the program.
    binary: Option<PathBuf>,
    /// The one that was tested, and for which restart.
    tested: Option<(OpId, Image)>,
    /// What the loop was told to do itself.
    errand: Option<Errand>,
    listeners: Listeners,
    watcher: Watcher,
    /// The set whose configuration the watcher has.
    watched: Option<SetId>,
    tickets: Tickets,
    sets: Inventory,
    /// What was committed last: the addresses and certificates of the fallback worker.
    committed: Option<Set>,
    /// The change of who may connect that is made last.
    granting: Option<JoinHandle<()>>,
    children: Children,
    callers: HashMap<Caller, oneshot::Sender<Report>>,
    next_caller: u64,
    events: mpsc::Sender<Event>,
    finished: mpsc::Sender<Finished>,
    restoring: Restoring,
    /// Whether Unix sockets are being bound anew.
    rebinding: bool,
    /// Operations whose files are being read and whose addresses are being bound.
    preparing: usize,
    admin_url: Option<String>,
    probe_url: Option<String>,
    readiness: watch::Sender<Readiness>,
    announced: bool,
    systemd: Systemd,
    /// Shutdowns that wait until systemd has let go of the listening sockets.
    postponed: Vec<Event>,
}

/// Runs a master to its end.
pub fn run(options: Options) -> Result<Exit, StartError> {
    let system = |what| move |source| StartError::System { what, source };
    // Before any thread exists, so that all inherit the mask.
    let watched = signals::watched(options.config.signals.preset);
    let signals = process::watch_signals(&watched).map_err(system("take over signals"))?;
    process::share_one_heap();
    process::outlive_full_files().map_err(system("take over signals"))?;
    let open_files = process::raise_open_files().map_err(system("raise the limit of open files"))?;
    if open_files < LEAST_OPEN_FILES {
        return Err(StartError::OpenFiles { limit: open_files });
    }
    let resumption = resume::find()?;
    let listeners = match resumption {
        None => Listeners::adopt_passed(),
        Some(_) => {
            // All were blocked across the exec, so that none was lost.
            process::unblock_others(&watched).map_err(system("unblock signals"))?;
            Listeners::default()
        }
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(system("start the runtime"))?;
    let local = tokio::task::LocalSet::new();
    let result = local.block_on(&runtime, serve(options, signals, listeners, resumption));
    // A copy on the blocking pool need not be waited for: its temporary name means nothing to the next master.
    runtime.shutdown_background();
    result
}

async fn serve(
    options: Options,
    signals: nix::sys::signalfd::SignalFd,
    listeners: Listeners,
    resumption: Option<Resumption>,
) -> Result<Exit, StartError> {
    let system = |what| move |source| StartError::System { what, source };
    let Options {
        config,
        mut origin,
        reread,
        config_files,
        config_owners,
        pid_file,
        admin_asked,
        dev,
        bad_start,
        prepare,
        companion,
        binary,
    } = options;
    let identity = Identity::of(&config)?;
    let dirs = Dirs::of(&config).map_err(system("find the instance's directories"))?;
    let name = config.name.clone();
    let inherited = match &resumption {
        None => None,
        Some(resumption) => {
            let remains = &resumption.carried.remains;
            source::check_fixed(&remains.config, &config).map_err(ResumeError::Set)?;
            remains.origin.check_successor(&origin).map_err(|error| ResumeError::Set(source::not_read(&error)))?;
            if let ConfigSource::File { .. } = remains.origin {
                // What serves came from that.
                origin = remains.origin.clone();
            }
            Some(InheritedLocks::of(&resumption.carried)?)
        }
    };
    let mut files = InstanceFiles::take(&dirs, &name, pid_file, inherited)?;
    let image = Image::of_self().map_err(system("open its own binary"))?;
    let store = Store::open(&dirs.state, identity.trust())?;
    begin_as(&identity, &dirs, &image)?;

    let (handle, Desk { mut requests, readiness }) = Handle::new();
    let (events_sender, events) = mpsc::channel(256);
    let mut events = FairEvents::new(events);
    let (finished_sender, mut finished) = mpsc::channel(4);
    let (notebook, records) = Notebook::open(&dirs.state);
    let admin_options = AdminOptions { dirs: &dirs, name: &name, config: &config.admin, asked: admin_asked };
    let first = match &resumption {
        None => Event::Asked { verb: Verb::Reload, cause: Cause::Start, options: OpOptions::default(), caller: None },
        Some(_) => Event::Tick,
    };
    let (picked_up, listeners, mut admin, left) = match resumption {
        None => {
            let admin = admin::start(admin_options, handle.clone())?;
            let (sets, memory) = Inventory::recalled(store, notebook, records);
            (PickedUp::nothing(State::new(Settings::of(&config), bad_start, memory), sets), listeners, admin, None)
        }
        Some(Resumption { carried, outcome, left }) => {
            let picked_up = restart::pick_up(carried.remains, outcome, (store, notebook), bad_start, &events_sender)?;
            let listeners = carried.listeners.resume(config.limits.tcp_options()).map_err(ResumeError::Io)?;
            (picked_up, listeners, admin::resume(admin_options, handle.clone(), carried.admin)?, Some(left))
        }
    };
    if let Some(link) = admin.link().filter(|_| left.is_none())
        && std::io::IsTerminal::is_terminal(&io::stderr())
    {
        crate::telemetry::print(&format!("admin page: {link}"));
    }
    let companion = companion.map(|companion| tokio::task::spawn_local(companion(handle)));
    let PickedUp { sets, state, children, tickets, before, started, tried } = picked_up;
    let trusted = identity.trust();
    let source = Arc::new(Source { config, origin, reread, prepare, config_files, config_owners, trusted });
    source.check_config_files().map_err(StartError::Untrusted)?;
    let systemd = Systemd::of_environment(if left.is_some() { Start::Another } else { Start::First }, &listeners);
    let mut master = Master {
        announced: state.switches() > 0,
        state: state.with_seed(getrandom::u64().unwrap_or(0)),
        watcher: Watcher::new(source.clone(), tried),
        watched: None,
        source,
        dev,
        terminal: Terminal::now(),
        dirs,
        started,
        image,
        identity,
        before,
        binary,
        tested: None,
        errand: None,
        listeners,
        tickets,
        sets,
        committed: None,
        granting: None,
        children,
        callers: HashMap::new(),
        next_caller: 1,
        events: events_sender,
        finished: finished_sender,
        restoring: Restoring::default(),
        rebinding: false,
        preparing: 0,
        admin_url: admin.url(),
        probe_url: admin.probe_url(),
        readiness,
        systemd,
        postponed: Vec::new(),
    };
    let signals = readiness::signals(signals).map_err(system("wait for signals"))?;
    let mut upkeep = tokio::time::interval(UPKEEP);
    upkeep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut restore = tokio::time::interval_at(Instant::now() + RESTORE, RESTORE);
    let mut count = tokio::time::interval(COUNT);
    count.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // What a set brings is spoken of when it is committed.
    let mut remind = tokio::time::interval_at(Instant::now() + tls::REMINDER, tls::REMINDER);

    if let Some(left) = left {
        #[cfg(feature = "next")]
        crate::version::fault("resume");
        tracing::info!(version = VERSION, "server restarted");
        resume::resumed(left);
    }
    let mut exit = master.handle(first);
    while exit.is_none() {
        let deadline = master.state.next_deadline().map(|at| master.started + at);
        exit = tokio::select! {
            biased;
            turn = master.systemd.turn() => match turn {
                Turn::Said => None,
                Turn::LetGo => master.go_on_with_shutdown(),
            },
            Some(event) = events.recv() => master.handle(event),
            Some(finished) = finished.recv() => match finished {
                Finished::Prepared(prepared) => master.take_prepared(*prepared),
                Finished::Freed(freed) => master.take_freed(*freed),
                Finished::DataDirs(dirs) => master.take_data_dirs(dirs),
                Finished::Verified { op, test, result } => master.take_verified(op, test, result, &admin, &files),
                Finished::Restored(restored) => { master.take_restored(*restored, &mut files, &mut admin); None }
                Finished::Rebound(rebound) => { master.take_rebound(rebound); None }
            },
            signal = signals.async_io(Interest::READABLE, process::next_signal) => match signal {
                Ok(received) => master.signal(received),
                Err(error) => { tracing::error!("failed to read a signal: {error}"); None }
            },
            Some(request) = requests.recv() => master.request(request),
            wake = master.watcher.next() => { let changed = master.watcher.wake(wake); master.reload_for(changed) }
            // A message is acted on before the deadline that it is meant to keep; and each event does what a tick does.
            () = sleep_until(deadline) => if events.is_empty() { master.handle(Event::Tick) } else { None },
            () = sleep_until(master.tickets.deadline()) => { master.children.rotate(&mut master.tickets); None }
            _ = remind.tick() => { master.serving_certificates().inspect(|certificates| certificates.warn()); None }
            _ = upkeep.tick() => { master.upkeep(); None }
            _ = restore.tick() => { master.restoring.due = true; master.rebind_paths(PathCheck::Files); None }
            _ = count.tick(), if master.state.watched().is_some() => master.count(),
        };
        master.restore_files(&files, &admin);
        while let Some(errand) = master.errand.take().filter(|_| exit.is_none()) {
            exit = match errand {
                Errand::Test(op, test) => master.verify(op, test),
                Errand::Leave(op) => master.leave(op, &mut admin, &files, events.receiver(), &mut requests).await,
            };
        }
    }
    if let Some(companion) = companion {
        companion.abort();
    }
    master.finish_restoring(&mut finished, &mut files, &mut admin).await;
    if master.restoring.refusal.is_none() {
        master.sets.write_notes();
    }
    drop(master);
    admin.close().await;
    files.remove();
    tracing::info!("all servers shutdown");
    Ok(exit.unwrap_or(Exit::Drained))
}

pub(super) async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

impl Master {
    /// One event through the state machine, and all that follows; the exit, if this was the end.
    fn handle(&mut self, event: Event) -> Option<Exit> {
        if self.put_off(&event) {
            return None;
        }
        let mut queue = VecDeque::from([event]);
        let mut exit = None;
        while let Some(event) = queue.pop_front() {
            match &event {
                Event::Exited { generation, .. } => self.children.reaped(*generation),
                Event::Asked { .. } => self.restoring.due = true,
                _ => {}
            }
            for action in self.state.step(event, self.started.elapsed()) {
                match action {
                    Action::Finish(how) => exit = Some(how),
                    other => queue.extend(self.act(other)),
                }
            }
        }
        self.forget();
        self.publish_readiness();
        self.tell_systemd();
        exit.or_else(|| self.watch_what_serves())
    }

    /// Lets probes know, which do not ask the loop.
    fn publish_readiness(&self) {
        let now = match (self.state.is_ready(), self.state.is_shutting_down()) {
            (true, _) => Readiness::Ready,
            (false, true) => Readiness::ShuttingDown,
            (false, false) => Readiness::NotServing,
        };
        self.readiness.send_if_modified(|published| std::mem::replace(published, now) != now);
    }

    /// Tells the watcher of another configuration.
    fn watch_what_serves(&mut self) -> Option<Exit> {
        let set = self.state.serving().and_then(|generation| self.state.set_of(generation))?;
        let content = self.sets.get(set).filter(|_| self.watched != Some(set))?.content.clone();
        self.watched = Some(set);
        let changed = self.watcher.serves(&content.config);
        self.reload_for(changed)
    }

    /// Asks for a reload as everybody does, if the watcher wants one.
    fn reload_for(&mut self, changed: Option<String>) -> Option<Exit> {
        let cause = Cause::Watcher { path: changed? };
        let reply = self.watcher.await_answer();
        self.request(Request::Operate { verb: Verb::Reload, cause, options: OpOptions::default(), reply })
    }

    fn tell_systemd(&mut self) {
        if self.systemd.listens() {
            let now = self.started.elapsed();
            self.systemd.tell(View::of(&self.state, now, self.sets.hold().pin.as_ref()), now);
            let serving = self.state.serving().and_then(|generation| self.state.set_of(generation));
            self.systemd.keep(&self.listeners, self.sets.claims(serving));
        }
    }

    /// Has systemd let go of the listening sockets before a shutdown begins.
    fn put_off(&mut self, event: &Event) -> bool {
        let shuts_down = match event {
            Event::Asked { verb, .. } => *verb == Verb::Shutdown,
            Event::Message { generation, message: ToMaster::Control { plugin, verb: ControlVerb::Shutdown } } => {
                self.state.may_control(*generation, plugin)
            }
            _ => false,
        };
        let put_off = shuts_down && (!self.postponed.is_empty() || self.systemd.release());
        if put_off {
            self.postponed.push(event.clone());
        }
        put_off
    }

    /// Now it may.
    fn go_on_with_shutdown(&mut self) -> Option<Exit> {
        let postponed = std::mem::take(&mut self.postponed);
        postponed.into_iter().fold(None, |exit, event| exit.or(self.handle(event)))
    }

    fn act(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Prepare { op, cause, source } => self.prepare(op, cause, &source),
            Action::Test { op, test } => self.errand = Some(Errand::Test(op, test)),
            Action::Leave { op } => self.errand = Some(Errand::Leave(op)),
            Action::Spawn { generation, set } => return Some(self.spawn(generation, set)),
            Action::Load { generation, probes, inherit } => return self.load(generation, probes, inherit),
            Action::KeepStates { generation } => self.children.keep_states(generation),
            Action::Send { generation, message } => self.children.send(generation, message, Vec::new()),
            Action::Handover { from, to } => self.connect(from, to),
            Action::CloseListeners => drop(self.listeners.retain(&BTreeSet::new())),
            Action::Kill { generation } => self.children.kill(generation),
            Action::Answer { caller, report } => {
                if let Some(reply) = self.callers.remove(&caller) {
                    // A caller that went away needs no answer.
                    let _ = reply.send(*report);
                }
            }
            Action::Remember(memory) => self.sets.remember(memory),
            Action::Note(Note::Committed { generation, from, total_ms, cause }) => {
                self.announce(generation, from, total_ms, &cause)
            }
            Action::Note(note) => notes::log(&note),
            Action::Finish(_) => {}
        }
        None
    }

    fn signal(&mut self, received: process::Received) -> Option<Exit> {
        let process::Received { signal, sender, by_kernel } = received;
        let told = by_kernel || (self.terminal.is_gone() && self.terminal.is_told_by(sender));
        let situation = Situation {
            dev: self.dev,
            terminal_lost: signal == Signal::SIGHUP && told,
            stopping: self.state.is_shutting_down(),
        };
        let effect = signals::effect(self.source.config.signals.preset, signal, situation)?;
        let cause = Cause::Signal { signal: signal.as_str().into(), sender };
        match (effect, effect.verb()) {
            (Effect::Hook(hook), _) => self.handle(Event::Hook { hook, cause }),
            (_, Some(verb)) => self.handle(Event::Asked { verb, cause, options: OpOptions::default(), caller: None }),
            (_, None) => None,
        }
    }

    fn request(&mut self, request: Request) -> Option<Exit> {
        match request {
            Request::Operate { verb, cause, options, reply } => {
                let caller = Caller(self.next_caller);
                self.next_caller += 1;
                self.callers.insert(caller, reply);
                return self.handle(Event::Asked { verb, cause, options, caller: Some(caller) });
            }
            // Callers that went away need no answer.
            Request::Status { reply } => drop(reply.send(self.status())),
            Request::Operation { id, reply } => drop(reply.send(self.state.report(id).cloned())),
        }
        None
    }

    fn count(&mut self) -> Option<Exit> {
        let generation = self.state.watched()?;
        let load = self.children.get(generation)?.counts().load();
        self.handle(Event::Counted { generation, requests: load.requests, failures: load.failures })
    }

    fn serving_certificates(&self) -> Option<&Certificates> {
        self.sets.certificates(self.state.serving().and_then(|generation| self.state.set_of(generation)))
    }

    /// Drops sets that nobody runs and closes addresses that nobody accepts on.
    fn forget(&mut self) {
        let dropped = self.sets.retain(self.state.sets_in_use());
        for address in self.listeners.retain(&self.sets.keys(self.state.sets_accepting())) {
            tracing::info!(%address, "address closed");
        }
        if dropped {
            let used = self.sets.servers_with_certificates();
            self.tickets.retain(|server| used.contains(server));
        }
        if (dropped || self.sets.has_news()) && self.restoring.refusal.is_none() {
            self.sets.tidy(self.source.config.store.keep);
        }
    }
}

/// As whom plugins run; said once, and checked before anything is loaded.
fn begin_as(identity: &Identity, dirs: &Dirs, image: &Image) -> Result<(), StartError> {
    identity.check_reach(image, &[dirs.state.join("store"), dirs.state.join("data")])?;
    let RunsAs { user, uid, gid, rights } = identity.status();
    match rights {
        // Then there is something to hide. An exec undoes it, so that a restart comes by here as well. (To have looked with
        // another's rights does it, too, on most systems: fs.suid_dumpable decides.)
        Rights::Own => {
            credentials::hide_memory().map_err(|source| StartError::System { what: "hide its memory", source })?;
            tracing::info!(uid, gid, "plugins run as {user}");
        }
        Rights::Masters if uid == 0 => {
            tracing::warn!("plugins run as root, with all of its rights: set `user` to another")
        }
        Rights::Masters => {}
    }
    Ok(())
}
