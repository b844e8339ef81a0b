//! The loop: waits, feeds the state machine, and does what it says. Every decision is `state`'s; here is the I/O around it. In one
//! file, since it is one list: what each action does; a restart's is in `restart`.

mod restart;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::io::Interest;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use self::restart::PickedUp;
use super::admin::{self, AdminOptions};
use super::handle::{Handle, OpOptions, Request};
use super::identity::Identity;
use super::listeners::{Claim, Key, Listeners};
use super::memory::Notebook;
use super::resume::{self, ResumeError, Resumption};
use super::sets::{Content, Record};
use super::signals::{self, Effect, Situation};
use super::source::{self, Read, Recipe, Source};
use super::spawn::Child;
use super::state::{
    self, Action, Caller, Event, Exit, Inherit, Memory, Note, Probes, SetId, SetInfo, Settings, State, TestId,
};
use super::store::{Mounted, Origin, Store};
use super::systemd::{Start, Systemd, Turn, View};
use super::tls::{self, Certificates, Tickets};
use super::watcher::{Sighting, Watcher};
use super::{Options, StartError, notes};
use crate::config::Config;
use crate::control::secrets::SecretError;
use crate::control::states::States;
use crate::control::{ControlVerb, LoadSet, PluginFile, ToChild, ToMaster};
use crate::dirs::{self, Dirs};
use crate::metrics::Counts;
use crate::report::{Cause, Failure, Generation, Load, OpId, Report, Rights, RunsAs, Stage, Status, Verb};
use crate::sys::process::{self, Image};
use crate::sys::terminal::Terminal;
use crate::sys::{credentials, files, readiness, seqpacket};
use crate::version::VERSION;

/// Ended generations whose counts are kept: more than the status lists.
const PAST: usize = 32;
/// How often the answers of a generation on probation are counted.
const COUNT: Duration = Duration::from_millis(100);
/// How often the listeners are looked after.
const MEND: Duration = Duration::from_secs(1);

/// What a generation runs, with its addresses.
struct Set {
    content: Arc<Content>,
    listeners: Vec<Claim>,
    certificates: Option<Certificates>,
}

/// What the blocking pool brought.
struct Prepared {
    op: OpId,
    sighting: Sighting,
    result: Result<Read, Failure>,
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
    store: Arc<Mutex<Store>>,
    tickets: Tickets,
    notebook: Notebook,
    /// The copies in use, for whoever tidies the store next.
    untidy: Arc<Mutex<Option<HashSet<PathBuf>>>>,
    /// What plugins have handed on last.
    states: Option<States>,
    sets: BTreeMap<SetId, Set>,
    next_set: u64,
    children: HashMap<Generation, Child>,
    /// What those have counted that have ended.
    ended: Counts,
    /// The same of each of the latest, for the status.
    past: BTreeMap<Generation, Load>,
    callers: HashMap<Caller, oneshot::Sender<Report>>,
    next_caller: u64,
    /// Children that were sent ticket keys, and are told of new ones.
    with_tickets: BTreeSet<Generation>,
    events: mpsc::Sender<Event>,
    prepared: mpsc::Sender<Prepared>,
    admin_url: Option<String>,
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
    process::outlive_full_files().map_err(system("take over signals"))?;
    process::raise_open_files().map_err(system("raise the limit of open files"))?;
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
    let Options { config, reread, config_files, pid_file, admin_asked, dev, bad_start, prepare, companion, binary } =
        options;
    let identity = Identity::of(&config)?;
    let dirs = Dirs::of(&config).map_err(system("find the instance's directories"))?;
    for (path, mode) in [(&dirs.runtime, 0o700), (&dirs.state, 0o711), (&dirs.state.join("data"), 0o711)] {
        files::private_dir(path, mode).map_err(|source| StartError::Directory { path: path.clone(), source })?;
    }
    let lock_path = dirs.runtime.join(dirs::LOCK);
    let name = config.name.clone();
    let lock = match &resumption {
        None => files::lock(&lock_path),
        Some(resumption) => {
            source::check_fixed(&resumption.carried.remains.config, &config).map_err(ResumeError::Set)?;
            resumption.carried.lock.copy().and_then(files::keep_lock).map(Some)
        }
    };
    let lock = lock.map_err(|source| StartError::Directory { path: lock_path.clone(), source })?;
    let lock = lock.ok_or(StartError::Running { name: name.clone(), path: lock_path })?;
    let image = Image::of_self().map_err(system("open its own binary"))?;
    let store = Store::open(&dirs.state, identity.trust())?;
    begin_as(&identity, &dirs, &image)?;

    let (handle, mut requests) = Handle::new();
    let (events_sender, mut events) = mpsc::channel(256);
    let (prepared_sender, mut prepared) = mpsc::channel(4);
    let (notebook, records) = Notebook::open(&dirs.state);
    let pid_file = PidFile::write(pid_file.unwrap_or_else(|| dirs.runtime.join(dirs::PID_FILE)))?;
    let admin_options = AdminOptions { dirs: &dirs, name: &name, config: &config.admin, asked: admin_asked };
    let first = match &resumption {
        None => Event::Asked { verb: Verb::Reload, cause: Cause::Start, options: OpOptions::default(), caller: None },
        Some(_) => Event::Tick,
    };
    let (picked_up, listeners, mut admin, left) = match resumption {
        None => {
            let admin = admin::start(admin_options, handle.clone())?;
            let mut sets = BTreeMap::new();
            let memory = recall(&store, &notebook, records, &mut sets);
            (PickedUp::nothing(State::new(Settings::of(&config), bad_start, memory), sets), listeners, admin, None)
        }
        Some(Resumption { carried, outcome, left }) => {
            let picked_up = restart::pick_up(carried.remains, outcome, &store, bad_start, &events_sender)?;
            let listeners = carried.listeners.resume().map_err(ResumeError::Io)?;
            (picked_up, listeners, admin::resume(admin_options, handle.clone(), carried.admin)?, Some(left))
        }
    };
    if let Some(link) = admin.link().filter(|_| left.is_none())
        && std::io::IsTerminal::is_terminal(&io::stderr())
    {
        crate::telemetry::print(&format!("admin page: {link}"));
    }
    let companion = companion.map(|companion| tokio::task::spawn_local(companion(handle)));
    let PickedUp {
        sets,
        next_set,
        state,
        children,
        with_tickets,
        tickets,
        ended,
        past,
        before,
        states,
        started,
        tried,
    } = picked_up;
    let source = Arc::new(Source { config, reread, prepare, config_files });
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
        store: Arc::new(Mutex::new(store)),
        tickets,
        notebook,
        untidy: Arc::default(),
        states,
        next_set,
        sets,
        children,
        ended,
        past,
        callers: HashMap::new(),
        next_caller: 1,
        with_tickets,
        events: events_sender,
        prepared: prepared_sender,
        admin_url: admin.url(),
        systemd,
        postponed: Vec::new(),
    };
    let signals = readiness::signals(signals).map_err(system("wait for signals"))?;
    let mut mend = tokio::time::interval(MEND);
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
            Some(prepared) = prepared.recv() => master.take_prepared(prepared),
            signal = signals.async_io(Interest::READABLE, process::next_signal) => match signal {
                Ok(received) => master.signal(received),
                Err(error) => { tracing::error!("failed to read a signal: {error}"); None }
            },
            Some(request) = requests.recv() => master.request(request),
            wake = master.watcher.next() => { let changed = master.watcher.wake(wake); master.reload_for(changed) }
            () = sleep_until(deadline) => master.handle(Event::Tick),
            () = sleep_until(master.tickets.deadline()) => { master.rotate_tickets(); None }
            _ = remind.tick() => { master.serving_certificates().inspect(|certificates| certificates.warn()); None }
            _ = mend.tick() => { master.mend(); None }
            _ = count.tick(), if master.state.watched().is_some() => master.count(),
        };
        while let Some(errand) = master.errand.take().filter(|_| exit.is_none()) {
            exit = match errand {
                Errand::Test(op, test) => master.test(op, test, &admin, &lock),
                Errand::Leave(op) => master.leave(op, &mut admin, &lock, &mut events, &mut requests).await,
            };
        }
    }
    if let Some(companion) = companion {
        companion.abort();
    }
    master.notebook.write();
    drop(master);
    admin.close().await;
    pid_file.remove();
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
            if let Event::Exited { generation, .. } = &event {
                self.with_tickets.remove(generation);
                if let Some(child) = self.children.remove(generation) {
                    let counts = child.counts();
                    self.ended.add(counts);
                    self.past.insert(*generation, counts.past());
                    if self.past.len() > PAST {
                        self.past.pop_first();
                    }
                }
            }
            for action in self.state.step(event, self.started.elapsed()) {
                match action {
                    Action::Finish(how) => exit = Some(how),
                    other => queue.extend(self.act(other)),
                }
            }
        }
        self.forget();
        self.tell_systemd();
        exit.or_else(|| self.watch_what_serves())
    }

    /// Tells the watcher of another configuration.
    fn watch_what_serves(&mut self) -> Option<Exit> {
        let set = self.state.serving().and_then(|generation| self.state.set_of(generation))?;
        let content = self.sets.get(&set).filter(|_| self.watched != Some(set))?.content.clone();
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
            self.systemd.tell(View::of(&self.state, now, self.notebook.hold.pin.as_ref()), now);
            let serving = self.state.serving().and_then(|generation| self.state.set_of(generation));
            let claims = serving.and_then(|id| self.sets.get(&id)).map_or(&[][..], |set| &set.listeners);
            self.systemd.keep(&self.listeners, claims);
        }
    }

    /// Has systemd let go of the listening sockets before a shutdown begins.
    fn put_off(&mut self, event: &Event) -> bool {
        let shuts_down = match event {
            Event::Asked { verb, .. } => *verb == Verb::Shutdown,
            Event::Message { message: ToMaster::Control { verb, .. }, .. } => *verb == ControlVerb::Shutdown,
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
            Action::Load { generation, probes, inherit } => self.load(generation, probes, inherit),
            Action::KeepStates { generation } => self.keep_states(generation),
            Action::Send { generation, message } => self.send(generation, message, Vec::new()),
            Action::Handover { from, to } => self.connect(from, to),
            Action::CloseListeners => drop(self.listeners.retain(&BTreeSet::new())),
            Action::Kill { generation } => self.kill_child(generation),
            Action::Answer { caller, report } => {
                if let Some(reply) = self.callers.remove(&caller) {
                    // A caller that went away needs no answer.
                    let _ = reply.send(*report);
                }
            }
            Action::Remember(memory) => self.remember(memory),
            Action::Note(Note::Committed { generation, from, total_ms, cause }) => {
                self.announce(generation, from, total_ms, &cause)
            }
            Action::Note(note) => notes::log(&note),
            Action::Finish(_) => {}
        }
        None
    }

    /// Reads configuration and plugins off this thread.
    fn prepare(&self, op: OpId, cause: Cause, from: &state::Source) {
        let content = |id: &SetId| self.sets.get(id).map(|set| set.content.clone());
        let recipe = match from {
            state::Source::Files { held, instead } => {
                Recipe::Files { held: held.clone(), instead: instead.as_ref().and_then(content) }
            }
            state::Source::Again { set, within } => {
                let within = match within {
                    state::Within::Own => content(set),
                    state::Within::Set(id) => content(id),
                    state::Within::Start => Some(Arc::new(Content::empty(self.source.config.clone()))),
                };
                Recipe::Again { set: content(set), within }
            }
        };
        let (source, store, sender) = (self.source.clone(), self.store.clone(), self.prepared.clone());
        tokio::task::spawn_blocking(move || {
            let (sighting, result) = source.read(&store, &cause, recipe);
            // The loop is gone only when the master ends.
            let _ = sender.blocking_send(Prepared { op, sighting, result });
        });
    }

    /// Opens the addresses of what was read, and makes it a set.
    fn take_prepared(&mut self, prepared: Prepared) -> Option<Exit> {
        let Prepared { op, sighting, result } = prepared;
        let changed = self.watcher.read(sighting);
        let result = result.and_then(|Read { content, certificates }| {
            self.cover(certificates.as_ref())?;
            let listeners = self.listeners.open(&content.config)?;
            let id = SetId(self.next_set);
            self.next_set += 1;
            let info = Arc::new(content.info(id));
            self.sets.insert(id, Set { content: Arc::new(content), listeners, certificates });
            Ok(info)
        });
        let exit = self.handle(Event::Prepared { op, result });
        exit.or_else(|| self.reload_for(changed))
    }

    /// Notes what the next master shall know; written by `tidy_store`, once the copies it names are safe.
    fn remember(&mut self, memory: Memory) {
        let good = memory.good.iter().filter_map(|id| self.sets.get(id));
        let records = good.map(|set| set.content.record()).collect();
        self.notebook.note(records, memory.pin, memory.held);
    }

    fn spawn(&mut self, generation: Generation, set: SetId) -> Event {
        let result = self.set(set).and_then(|name| {
            Child::start(self.program(set), &name, &self.identity, generation, self.events.clone()).map_err(|error| {
                Failure::new(Stage::Spawn, format!("start a child: {error}"))
                    .hint("too many processes or open files? see `ulimit -a`")
            })
        });
        let result = result.map(|child| {
            let pid = child.pid();
            self.children.insert(generation, child);
            pid
        });
        Event::Spawned { generation, result }
    }

    /// What a child with `set` runs.
    fn program(&self, set: SetId) -> &Image {
        match &self.before {
            Some((image, sets)) if sets.contains(&set) => image,
            _ => &self.image,
        }
    }

    /// Makes sure of `set`, the set without plugins included, and answers the instance's name.
    fn set(&mut self, set: SetId) -> Result<String, Failure> {
        if set == SetId(0) && !self.sets.contains_key(&set) {
            // Of the newest set: where clients come now, they shall get an answer.
            let newest = self.sets.last_key_value().map(|(_, set)| set.content.config.clone());
            let config = newest.unwrap_or_else(|| self.source.config.clone());
            let certificates = Certificates::read(&config)?;
            self.cover(certificates.as_ref())?;
            let listeners = self.listeners.open(&config)?;
            let content = Content::empty(config);
            self.sets.insert(set, Set { content: Arc::new(content), listeners, certificates });
        }
        Ok(self.source.config.name.clone())
    }

    /// Makes ticket keys for servers that have none.
    fn cover(&mut self, certificates: Option<&Certificates>) -> Result<(), Failure> {
        certificates
            .map_or(Ok(()), |certificates| self.tickets.cover(certificates))
            .map_err(|error| Failure::new(Stage::Tls, format!("make ticket keys: {error}")))
    }

    /// LOAD with the shared counters, the secrets, then the listeners, each in a message of its own.
    fn load(&mut self, generation: Generation, probes: Probes, inherit: Inherit) {
        let Some(set) = self.state.set_of(generation).and_then(|id| self.sets.get(&id)) else {
            tracing::error!(generation = generation.0, "failed to find its set");
            return self.kill_child(generation);
        };
        let lent = match self.listeners.lend(&set.listeners) {
            Ok(lent) => lent,
            Err(error) => {
                // Too few descriptors: without listeners the child would wait; killed, its operation is refused.
                tracing::error!(generation = generation.0, "failed to lend the listeners: {error}");
                return self.kill_child(generation);
            }
        };
        let (infos, sockets): (Vec<_>, Vec<_>) = lent.into_iter().unzip();
        let secrets = set.certificates.as_ref().map(|certificates| Ok((certificates.lend()?, self.tickets.seal()?)));
        let secrets = match secrets.transpose() {
            Ok(secrets) => secrets,
            Err::<_, SecretError>(error) => {
                tracing::error!(generation = generation.0, "{error}");
                return self.kill_child(generation);
            }
        };
        let plugins =
            match set.content.plugins.iter().map(|plugin| self.plugin_file(plugin, &set.content.config)).collect() {
                Ok(plugins) => plugins,
                Err(error) => {
                    tracing::error!(generation = generation.0, "failed to make a plugin's data directory: {error}");
                    return self.kill_child(generation);
                }
            };
        let mut config = set.content.config.clone();
        config.log = crate::telemetry::effective(&config.log);
        if probes == Probes::Skip {
            config.server.iter_mut().for_each(|server| server.probe.clear());
        }
        let ids: Vec<u32> = infos.iter().map(|info| info.id).collect();
        let (states, memory) = match self.states.as_ref().filter(|_| inherit == Inherit::Latest).map(States::lend) {
            Some(Ok((states, memory))) => (states, Some(memory)),
            Some(Err(error)) => {
                tracing::warn!(generation = generation.0, "failed to lend what was saved: {error}; going without");
                (Vec::new(), None)
            }
            None => (Vec::new(), None),
        };
        let message = ToChild::Load(Box::new(LoadSet { config, plugins, listeners: infos, states }));
        let slots = match self.children.get(&generation).map(Child::slots_fd).transpose() {
            Ok(slots) => slots,
            Err(error) => {
                tracing::error!(generation = generation.0, "failed to lend the counters: {error}");
                return self.kill_child(generation);
            }
        };
        self.send(generation, message, slots.into_iter().chain(memory).collect());
        if let Some((certificates, tickets)) = secrets {
            self.send(generation, ToChild::Certificates, vec![certificates]);
            self.send(generation, ToChild::Tickets, vec![tickets]);
            self.with_tickets.insert(generation);
        }
        for (id, socket) in ids.into_iter().zip(sockets) {
            self.send(generation, ToChild::Listener { id }, vec![socket]);
        }
    }

    /// An answer without states counts too: what was saved before is of another plugin.
    fn keep_states(&mut self, generation: Generation) {
        self.states = self.children.get(&generation).and_then(Child::take_states);
    }

    /// Begins the next turn of ticket keys, in every child that has any: those that drain as well.
    fn rotate_tickets(&mut self) {
        if let Err(error) = self.tickets.rotate() {
            return tracing::error!("failed to make new ticket keys, the old ones stay: {error}");
        }
        for generation in &self.with_tickets {
            match self.tickets.seal() {
                Ok(tickets) => self.send(*generation, ToChild::Tickets, vec![tickets]),
                Err(error) => tracing::error!(generation = generation.0, "{error}"),
            }
        }
    }

    /// Gives two children the ends of a pair. Without it the old one keeps its connections and announces their close.
    fn connect(&self, from: Generation, to: Generation) {
        let (giver, taker) = match seqpacket::pair() {
            Ok(pair) => pair,
            Err(error) => return tracing::warn!("failed to connect generations {from} and {to}: {error}"),
        };
        let set = self.state.set_of(to).and_then(|id| self.sets.get(&id));
        let listeners = set.map(|set| self.listeners.clear_ids(&set.listeners)).unwrap_or_default();
        self.send(to, ToChild::Adopt { from }, vec![taker]);
        self.send(from, ToChild::Handover { to, listeners }, vec![giver]);
    }

    fn plugin_file(&self, plugin: &Mounted, config: &Config) -> io::Result<PluginFile> {
        let name = plugin.snapshot.name.clone();
        let data_dir = self.dirs.state.join("data").join(&name);
        self.identity.make_dir(&data_dir)?;
        let section = config.plugin(&name);
        let settings = section.map(|section| &section.config);
        Ok(PluginFile {
            path: plugin.snapshot.path.clone(),
            mount: plugin.mount.clone(),
            config: serde_json::to_value(settings.unwrap_or(&toml::Table::new()))?,
            data_dir,
            workers: section.map_or(0, |section| section.workers),
            allow_control: section.is_none_or(|section| section.allow_control),
            name,
        })
    }

    fn kill_child(&self, generation: Generation) {
        if let Some(Err(error)) = self.children.get(&generation).map(Child::kill) {
            tracing::error!(generation = generation.0, "failed to kill: {error}");
        }
    }

    fn send(&self, generation: Generation, message: ToChild, fds: Vec<std::os::fd::OwnedFd>) {
        if let Some(child) = self.children.get(&generation) {
            child.send(message, fds);
        }
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

    fn status(&self) -> Status {
        let mut generations = self.state.generations(self.started.elapsed());
        for status in &mut generations {
            status.load = self.past.get(&status.generation).copied().unwrap_or_default();
        }
        let mut all = self.ended;
        for (generation, child) in &self.children {
            let counts = child.counts();
            all.add(counts);
            if let Some(status) = generations.iter_mut().find(|status| status.generation == *generation) {
                status.load = counts.load();
            }
        }
        // While nothing serves, the ports are bound for whoever is respawned.
        let shown = self.state.serving().and_then(|one| self.state.set_of(one));
        let shown = shown.or_else(|| self.state.sets_accepting().last());
        Status {
            name: self.source.config.name.clone(),
            version: VERSION.into(),
            pid: std::process::id() as i32,
            uptime_ms: self.started.elapsed().as_millis() as u64,
            ready: self.state.is_ready(),
            serving: self.state.serving(),
            shutting_down: self.state.is_shutting_down(),
            listeners: self.listeners.status(self.claims(shown)),
            certificates: self.certificates(shown).map(Certificates::status).unwrap_or_default(),
            admin: self.admin_url.clone(),
            plugin_dir: self.source.config.plugin_dir.display().to_string(),
            runs_as: Some(self.identity.status()),
            watcher: self.watcher.status(),
            pinned: self.notebook.hold.pin.clone(),
            held: self.notebook.hold.changes.clone(),
            alert: self.state.alert().map(str::to_owned),
            quarantines: self.state.quarantines(),
            systemd: self.systemd.status(),
            generations,
            operations: self.state.reports().cloned().collect(),
            totals: all.totals(),
            switches: self.state.switches(),
            crashes: self.state.crashes(),
            master_fds: process::open_files().unwrap_or(0),
        }
    }

    fn claims(&self, set: Option<SetId>) -> &[Claim] {
        set.and_then(|id| self.sets.get(&id)).map_or(&[], |set| &set.listeners)
    }

    fn count(&mut self) -> Option<Exit> {
        let generation = self.state.watched()?;
        let load = self.children.get(&generation)?.counts().load();
        self.handle(Event::Counted { generation, requests: load.requests, failures: load.failures })
    }

    fn certificates(&self, set: Option<SetId>) -> Option<&Certificates> {
        set.and_then(|id| self.sets.get(&id))?.certificates.as_ref()
    }

    fn serving_certificates(&self) -> Option<&Certificates> {
        self.certificates(self.state.serving().and_then(|generation| self.state.set_of(generation)))
    }

    fn mend(&self) {
        for address in self.listeners.mend() {
            tracing::error!(%address, "somebody shut the listening socket down (plugin code?); it listens again");
        }
    }

    /// Drops sets that nobody runs and closes addresses that nobody accepts on.
    fn forget(&mut self) {
        let used: BTreeSet<SetId> = self.state.sets_in_use().collect();
        let before = self.sets.len();
        self.sets.retain(|id, _| used.contains(id));
        let accepting: BTreeSet<SetId> = self.state.sets_accepting().collect();
        let keys = accepting
            .iter()
            .filter_map(|id| self.sets.get(id))
            .flat_map(|set| set.listeners.iter().map(|claim| claim.key.clone()));
        let keys: BTreeSet<Key> = keys.collect();
        for address in self.listeners.retain(&keys) {
            tracing::info!(%address, "address closed");
        }
        if self.sets.len() < before {
            let used = self.sets.values().filter_map(|set| set.certificates.as_ref()).flat_map(Certificates::servers);
            let used: BTreeSet<&str> = used.collect();
            self.tickets.retain(|server| used.contains(server));
        }
        if self.sets.len() < before || self.notebook.has_news() {
            self.tidy_store();
        }
    }

    /// Off this thread: syncs what is in use, then writes down what the next master shall know of it, and removes what nobody
    /// needs.
    fn tidy_store(&self) {
        let in_use: HashSet<PathBuf> = self
            .sets
            .values()
            .flat_map(|set| &set.content.plugins)
            .map(|plugin| plugin.snapshot.path.clone())
            .collect();
        let keep = self.source.config.store.keep;
        // At most one waits for the one that runs: it takes the latest.
        if self.untidy.lock().unwrap_or_else(PoisonError::into_inner).replace(in_use).is_some() {
            return;
        }
        let (store, untidy, notebook) = (self.store.clone(), self.untidy.clone(), self.notebook.clone());
        tokio::task::spawn_blocking(move || {
            let mut store = store.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(in_use) = untidy.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
            let paths: Vec<PathBuf> = in_use.iter().cloned().collect();
            let synced = store.sync(&paths);
            notebook.write();
            if let Err(error) = synced.and_then(|()| store.collect(&in_use, keep)) {
                tracing::warn!("failed to tidy the plugin store: {error}");
            }
        });
    }

    /// A generation was committed: says so as gf and endless do, so that people find it.
    fn announce(&mut self, generation: Generation, from: Option<Generation>, total_ms: f64, cause: &Cause) {
        let pid = self.children.get(&generation).map_or(0, Child::pid);
        let set = self.state.set_of(generation);
        self.before = self.before.take().filter(|(_, sets)| set.is_none_or(|set| sets.contains(&set)));
        let verb = if self.announced { "reloaded" } else { "started" };
        for (name, address) in self.listeners.close_unclaimed() {
            tracing::warn!(%address, "closed the socket `{name}` that systemd passed: no `listen` names it");
        }
        if let Some(set) = self.state.set_of(generation).and_then(|id| self.sets.get(&id)) {
            self.listeners.grant(&set.listeners);
        }
        for listener in self.listeners.status(self.claims(self.state.set_of(generation))) {
            tracing::info!(
                generation = generation.0,
                child = pid,
                from = from.map(|from| from.0),
                %cause,
                ms = total_ms,
                "{} server {verb} listening on {}",
                listener.scheme,
                listener.address
            );
        }
        self.serving_certificates().inspect(|certificates| certificates.warn());
        let empty = self
            .state
            .set_of(generation)
            .and_then(|id| self.sets.get(&id))
            .is_some_and(|set| set.content.plugins.is_empty());
        if empty {
            let dir = std::path::absolute(&self.source.config.plugin_dir)
                .unwrap_or_else(|_| self.source.config.plugin_dir.clone());
            tracing::warn!("no plugin found: every request is answered 503; looked for *.so in {}", dir.display());
        }
        self.announced = true;
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

/// What an earlier master has left, with its sets in `sets`. One that is not whole any more is left out, loudly.
fn recall(
    store: &Store,
    notebook: &Notebook,
    records: Vec<Record>,
    sets: &mut BTreeMap<SetId, Set>,
) -> Memory<Arc<SetInfo>> {
    let mut good = Vec::new();
    for record in records {
        match Content::recall(store, record, Origin::EarlierMaster) {
            Ok(content) => {
                let id = SetId(sets.len() as u64 + 1);
                good.push(Arc::new(content.info(id)));
                sets.insert(id, Set { content: Arc::new(content), listeners: Vec::new(), certificates: None });
            }
            Err(failure) => tracing::warn!("failed to {}; that set cannot be gone back to", failure.error),
        }
    }
    let (pin, held) = notebook.hold.known();
    Memory { good, pin, held }
}

/// The pid file: written whole, removed only if it is still ours.
struct PidFile(PathBuf);

impl PidFile {
    fn write(path: PathBuf) -> Result<PidFile, StartError> {
        let temporary = path.with_extension("pid.new");
        std::fs::write(&temporary, format!("{}\n", std::process::id()))
            .and_then(|()| std::fs::rename(&temporary, &path))
            .map_err(|source| StartError::PidFile { path: path.clone(), source })?;
        Ok(PidFile(path))
    }

    fn remove(self) {
        let ours =
            |path: &Path| std::fs::read_to_string(path).is_ok_and(|text| text.trim() == std::process::id().to_string());
        if ours(&self.0)
            && let Err(error) = std::fs::remove_file(&self.0)
        {
            tracing::warn!("failed to remove the pid file {}: {error}", self.0.display());
        }
    }
}
