//! The loop around a worker's pure life: whatever can happen becomes an [`Event`] for `state`, and each [`Action`] that
//! comes out is done here. It decides nothing by itself. In one file, since it is one list: what each message and action does.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::handover;
use super::plugin::host::Asked;
use super::plugin::{self, Host, Plugin};
use super::prove;
use super::route::Sites;
use super::save::{self, Busy};
use super::serve::Server;
use super::serve::accept::{Acceptors, Listener};
use super::serve::limits::Limits;
use super::serve::tls::{Tickets, Tls};
use super::state::{Action, Event, State};
use crate::config::same_plugin;
use crate::control::secrets::{self, ServerCertificates};
use crate::control::states::{PluginState, States};
use crate::control::{
    ChannelError, Deadlines, ListenerInfo, LoadSet, MAX_MESSAGE, PROTOCOL, ToChild, ToMaster, WorkerEnd,
};
use crate::metrics::{Metrics, SLOTS};
use crate::report::{DrainReport, Failure, Generation, Stage};
use crate::sys::memory;
use crate::sys::process;
use crate::sys::shared::Slots;
use crate::sys::worker;
use crate::telemetry::{self, Role, TelemetryError};
use crate::version::VERSION;

/// Requests of plugins to the master that wait at most.
const ASKED: usize = 64;
/// Of a failure's detail, what surely fits into a message.
const DETAIL: usize = MAX_MESSAGE / 8;

pub struct Worker {
    state: State,
    control: WorkerEnd,
    /// The real stderr, until GO.
    stderr: Option<OwnedFd>,
    orphan: Orphan,
    start: Instant,
    generation: Generation,
    told: (mpsc::UnboundedSender<Told>, mpsc::UnboundedReceiver<Told>),
    asked: (mpsc::Sender<Asked>, mpsc::Receiver<Asked>),
    set: Option<Set>,
    /// Up, and not served yet.
    loaded: Vec<&'static Plugin>,
    /// What is served, once the plugins are up.
    service: Option<Service>,
    listeners: Vec<Listener>,
    acceptors: Option<Acceptors>,
    /// Whether anything may still be accepted.
    accepting: watch::Sender<bool>,
    draining: bool,
}

/// How an orphan's end is seen to.
#[derive(Clone)]
pub struct Orphan {
    /// How long it lives, in milliseconds: for the thread that watches the master.
    pub time: Arc<AtomicU64>,
    /// Ends the process after this long, whatever hangs.
    pub enforce: fn(Duration) -> io::Result<()>,
}

/// What LOAD brought.
struct Set {
    load: LoadSet,
    metrics: Metrics,
    host: Host,
    certificates: Vec<ServerCertificates>,
    tickets: Tickets,
    /// What the plugins before hand on.
    states: Vec<PluginState>,
}

struct Service {
    server: &'static Server,
    /// Serves the same, to probes alone, if there are any.
    rehearsal: Option<&'static Server>,
    plugins: Vec<&'static Plugin>,
    /// Of each plugin, in their order.
    saving: Vec<Busy>,
    /// Serves the connections. Never ended: plugins may run on its threads until the process is gone.
    runtime: &'static tokio::runtime::Runtime,
}

impl Set {
    /// Serves it with `plugins`.
    fn server(&self, plugins: &[&'static Plugin], metrics: Metrics, tls: Tls) -> Result<&'static Server, Failure> {
        let open_files = process::open_files_limit()
            .map_err(|error| Failure::new(Stage::Load, format!("failed to learn the limit of open files: {error}")))?;
        // Unknown, it is no limit: descriptors still are.
        let memory = memory::available().inspect_err(|error| tracing::debug!(%error, "how much memory there is")).ok();
        let limits = Limits::new(&self.load.config.limits, &self.load.config.drain, open_files, memory);
        let mounts = plugins.iter().map(|plugin| (plugin.mount(), *plugin));
        let sites = Sites::new(&self.load.config.server, mounts, |name| {
            plugins.iter().find(|plugin| same_plugin(plugin.name(), name)).copied()
        });
        Ok(Server::new(sites, metrics, limits, tls))
    }
}

/// What the worker's own threads and tasks have to tell.
enum Told {
    /// The init of this plugin is about to run; the sender is dropped when the master knows.
    Loading(String, std::sync::mpsc::SyncSender<()>),
    Loaded(Result<Vec<&'static Plugin>, Failure>),
    Proved(Result<(), Failure>),
    Stopped(Vec<Listener>),
    /// SAVED, and what goes with it.
    Saved(ToMaster, Option<OwnedFd>),
    Drained(DrainReport),
}

/// Whether the life goes on.
enum Step {
    On,
    Exit(i32),
}

impl Worker {
    /// Within a tokio runtime.
    pub fn new(control: WorkerEnd, stderr: Option<OwnedFd>, orphan: Orphan) -> Worker {
        Worker {
            state: State::new().0,
            control,
            stderr,
            orphan,
            start: Instant::now(),
            generation: Generation(0),
            told: mpsc::unbounded_channel(),
            asked: mpsc::channel(ASKED),
            set: None,
            loaded: Vec::new(),
            service: None,
            listeners: Vec::new(),
            acceptors: None,
            accepting: watch::Sender::new(false),
            draining: false,
        }
    }

    /// To the end; answers the exit code.
    pub async fn live(mut self, mut term: Signal, master: i32) -> i32 {
        let (state, actions) = State::new();
        self.state = state;
        let mut events = VecDeque::new();
        if let Step::Exit(code) = self.act(actions, &mut events).await {
            return code;
        }
        loop {
            let event = match events.pop_front() {
                Some(event) => event,
                None => self.next(&mut term, master).await,
            };
            let actions = self.state.step(event, self.start.elapsed());
            if let Step::Exit(code) = self.act(actions, &mut events).await {
                return code;
            }
        }
    }

    /// Waits for whatever happens next.
    async fn next(&mut self, term: &mut Signal, master: i32) -> Event {
        loop {
            let deadline = self.state.deadline().map(|deadline| self.start + deadline);
            tokio::select! {
                message = self.control.recv() => {
                    if let Some(event) = self.understand(message) {
                        return event;
                    }
                }
                Some(told) = self.told.1.recv() => match told {
                    Told::Loading(plugin, known) => {
                        let message = ToMaster::Loading { plugin };
                        let sent = self.control.send(&message, &[]).await;
                        drop(known);
                        if let Err(error) = sent {
                            return lost(&error);
                        }
                    }
                    Told::Loaded(result) => return Event::Loaded(result.map(|plugins| self.loaded = plugins)),
                    Told::Proved(result) => return Event::Proved(result),
                    Told::Stopped(listeners) => {
                        // What came meanwhile takes the place of what was accepted from.
                        let newer = std::mem::replace(&mut self.listeners, listeners);
                        newer.into_iter().for_each(|listener| self.replace_listener(listener));
                        self.accepting.send_replace(false);
                        return Event::Stopped;
                    }
                    Told::Saved(message, memory) => {
                        if let Err(error) = self.send_saved(message, memory).await {
                            return lost(&error);
                        }
                    }
                    Told::Drained(report) => return Event::Drained(report),
                },
                Some((plugin, verb)) = self.asked.1.recv() => {
                    let message = ToMaster::Control { plugin: plugin.into(), verb };
                    if let Err(error) = self.control.send(&message, &[]).await {
                        return lost(&error);
                    }
                }
                Some(()) = term.recv() => {
                    return if worker::parent() == master { Event::Term } else { Event::Orphaned };
                }
                () = at(deadline) => return Event::Deadline,
            }
        }
    }

    /// Makes ready to serve with the plugins, once all that LOAD announced has come: the secrets come before the listeners, but maybe
    /// after the plugins are up.
    fn open(&mut self) -> Result<(), Failure> {
        let plugins = std::mem::take(&mut self.loaded);
        let Some(set) = &mut self.set else { return Err(Failure::new(Stage::Load, "failed to find what to serve")) };
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.enable_all().thread_name("serve");
        if set.load.config.workers > 0 {
            builder.worker_threads(set.load.config.workers);
        }
        let runtime = builder
            .build()
            .map_err(|error| Failure::new(Stage::Load, format!("failed to start the threads that serve: {error}")))?;
        let runtime = Box::leak(Box::new(runtime));
        let tls = Tls::new(&set.load.config, &set.certificates, &set.tickets)
            .map_err(|error| Failure::new(Stage::Load, error.to_string()))?;
        // In a form that can be used they are in there.
        set.certificates.clear();
        let server = set.server(&plugins, set.metrics, tls)?;
        // Probes leave no trace in what clients meet, or in what is counted of them. They are about plugins: none is asked to
        // agree on TLS.
        let probes = set.load.config.server.iter().any(|server| !server.probe.is_empty());
        // A set without plugins has nothing to prove.
        let rehearsal = match probes && !plugins.is_empty() {
            true => Some(set.server(&plugins, Metrics::local(), Tls::default())?),
            false => None,
        };
        let saving = plugins.iter().map(|_| Busy::default()).collect();
        self.service = Some(Service { server, rehearsal, plugins, saving, runtime });
        Ok(())
    }

    // ---- what the master says ----

    fn understand(&mut self, message: Result<Option<(ToChild, Vec<OwnedFd>)>, ChannelError>) -> Option<Event> {
        let (message, fds) = match message {
            Ok(Some(message)) => message,
            Ok(None) => return Some(Event::Orphaned),
            Err(error) => return Some(lost(&error)),
        };
        Some(match message {
            ToChild::Hello { protocols, generation, .. } => {
                self.generation = generation;
                Event::Hello { protocols }
            }
            ToChild::Load(load) => self.take_set(*load, fds).unwrap_or_else(Event::Broken),
            ToChild::Listener { id } => self.take_listener(id, fds).unwrap_or_else(Event::Broken),
            // What TLS is spoken with; whoever lacks it says so when the listeners are opened.
            ToChild::Certificates => return self.take_certificates(fds).err().map(Event::Broken),
            ToChild::Tickets => return self.take_tickets(fds).err().map(Event::Broken),
            ToChild::Go => Event::Go,
            ToChild::Save => return self.save(fds),
            ToChild::Pause => Event::Pause,
            ToChild::Resume => Event::Resume,
            ToChild::Retire(deadlines) => Event::Retire(deadlines),
            ToChild::Cut => Event::Cut,
            ToChild::Hook(hook) => Event::Hook(hook),
            ToChild::DoneAck => Event::DoneAck,
            #[cfg(feature = "next")]
            ToChild::Novelty { .. } => return None,
            ToChild::Unknown => {
                tracing::warn!("ignored a control message that this version does not know");
                return None;
            }
            ToChild::Relisten { id } => return self.relisten(id, fds).err().map(Event::Broken),
            // Connections move beside the worker's life: whatever becomes of it, each is served somewhere.
            ToChild::Adopt { from } => return self.adopt(from, fds),
            ToChild::Handover { to, listeners } => return self.lend(to, listeners, fds),
        })
    }

    fn adopt(&self, from: Generation, fds: Vec<OwnedFd>) -> Option<Event> {
        let (Some(service), Some(set), Some(socket)) = (&self.service, &self.set, fds.into_iter().next()) else {
            return Some(Event::Broken("ADOPT came out of order".into()));
        };
        let name = |info: &ListenerInfo| (info.id, &*Box::leak(info.server.clone().into_boxed_str()));
        // What moves is clear, and one who expects TLS would not understand it.
        let clear = set.load.listeners.iter().filter(|info| service.server.tls.of(&info.server).is_none());
        let names = clear.map(name).collect();
        let _entered = service.runtime.enter();
        handover::adopt(service.server, socket, from, names);
        None
    }

    fn lend(&self, to: Generation, listeners: Vec<u32>, fds: Vec<OwnedFd>) -> Option<Event> {
        let (Some(service), Some(socket)) = (&self.service, fds.into_iter().next()) else {
            return Some(Event::Broken("HANDOVER came out of order".into()));
        };
        let _entered = service.runtime.enter();
        handover::lend(service.server, socket, to, listeners);
        None
    }

    /// Beside the worker's life: whatever comes of it, all goes on as before.
    fn save(&self, fds: Vec<OwnedFd>) -> Option<Event> {
        let Some(service) = &self.service else { return Some(Event::Broken("SAVE came out of order".into())) };
        let plugins = service.plugins.iter().copied().zip(service.saving.iter().cloned()).collect();
        let told = self.told.0.clone();
        tokio::spawn(async move {
            // A master of an earlier version lends no memory.
            let (message, memory) = save::save(plugins, fds.into_iter().next()).await;
            // The receiver lives as long as the process.
            let _ = told.send(Told::Saved(message, memory));
        });
        None
    }

    fn take_set(&mut self, mut load: LoadSet, fds: Vec<OwnedFd>) -> Result<Event, String> {
        if self.set.is_some() {
            return Err("a second LOAD came".into());
        }
        let mut fds = fds.into_iter();
        let metrics = fds.next().ok_or("LOAD came without the memory for the metrics")?;
        let metrics =
            Slots::<SLOTS>::open(metrics).map_err(|error| format!("the metrics cannot be shared: {error}"))?;
        match telemetry::init(&load.config.log, Role::Worker(self.generation)) {
            // Only where tests run several workers in one process.
            Ok(()) | Err(TelemetryError::Twice) => {}
            Err(error) => return Err(error.to_string()),
        }
        let entries = std::mem::take(&mut load.states);
        let states = match fds.next().map(|memory| States::take(entries, memory).and_then(States::open)).transpose() {
            Ok(states) => states.unwrap_or_default(),
            Err(error) => {
                // A warm cache is not worth a reload.
                tracing::warn!("{error}; the plugins start without");
                Vec::new()
            }
        };
        let drain = load.config.drain.clone();
        self.orphan.time.store(u64::try_from(drain.orphan.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        let event = Event::Load { listeners: load.listeners.len(), drain };
        let metrics = Metrics(metrics.leak());
        self.set = Some(Set {
            load,
            metrics,
            host: Host::new(metrics, self.asked.0.clone()),
            certificates: Vec::new(),
            tickets: Tickets::default(),
            states,
        });
        Ok(event)
    }

    fn take_certificates(&mut self, fds: Vec<OwnedFd>) -> Result<(), String> {
        let set = self.set.as_mut().ok_or("CERTIFICATES came before LOAD")?;
        let sealed = fds.into_iter().next().ok_or("CERTIFICATES came without them")?;
        set.certificates = secrets::open_certificates(sealed).map_err(|error| error.to_string())?;
        Ok(())
    }

    fn take_tickets(&self, fds: Vec<OwnedFd>) -> Result<(), String> {
        let set = self.set.as_ref().ok_or("TICKETS came before LOAD")?;
        let sealed = fds.into_iter().next().ok_or("TICKETS came without them")?;
        set.tickets.update(secrets::open_tickets(sealed).map_err(|error| error.to_string())?);
        Ok(())
    }

    fn take_listener(&mut self, id: u32, fds: Vec<OwnedFd>) -> Result<Event, String> {
        let listener = self.listener(id, fds)?;
        self.listeners.push(listener);
        Ok(Event::Listener)
    }

    /// Beside the worker's life: the listener of that number is another socket from now on.
    fn relisten(&mut self, id: u32, fds: Vec<OwnedFd>) -> Result<(), String> {
        let listener = self.listener(id, fds)?;
        let accepting = self.acceptors.as_mut().zip(self.service.as_ref());
        let Some((acceptors, Service { server, runtime, .. })) = accepting else {
            self.replace_listener(listener);
            return Ok(());
        };
        let _entered = runtime.enter();
        acceptors.replace(server, listener).map_err(|error| format!("listener {id} cannot be registered: {error}"))
    }

    fn replace_listener(&mut self, listener: Listener) {
        self.listeners.retain(|before| before.id() != listener.id());
        self.listeners.push(listener);
    }

    fn listener(&self, id: u32, fds: Vec<OwnedFd>) -> Result<Listener, String> {
        let load = &self.set.as_ref().ok_or("a LISTENER came before LOAD")?.load;
        let info = load
            .listeners
            .iter()
            .find(|info| info.id == id)
            .ok_or_else(|| format!("listener {id} came, and LOAD did not name it"))?;
        let socket = fds.into_iter().next().ok_or_else(|| format!("listener {id} came without its socket"))?;
        // A worker has its listeners for life.
        let server = Box::leak(info.server.clone().into_boxed_str());
        Listener::new(socket, id, server, info.address.clone())
            .map_err(|error| format!("listener {id} ({}) cannot be used: {error}", info.address))
    }

    // ---- what is to be done ----

    async fn act(&mut self, actions: Vec<Action>, events: &mut VecDeque<Event>) -> Step {
        for action in actions {
            match action {
                Action::SendHello => {
                    let version = VERSION.into();
                    self.send(ToMaster::Hello { protocols: PROTOCOL, version }, events).await;
                    #[cfg(feature = "next")]
                    self.send(ToMaster::Novelty { more: 3 }, events).await;
                }
                Action::SendReady => self.send(ToMaster::Ready, events).await,
                Action::SendFailed(failure) => self.send(ToMaster::Failed(fitting(failure)), events).await,
                Action::SendServing => {
                    self.set_serving(true);
                    self.send(ToMaster::Serving, events).await;
                }
                Action::SendPaused => self.send(ToMaster::Paused, events).await,
                Action::SendDone(report) => {
                    // After DONE only the acknowledgement is waited for.
                    telemetry::flush();
                    self.send(ToMaster::Done(report), events).await;
                }
                Action::SendReplaceMe => self.send(ToMaster::ReplaceMe, events).await,
                Action::Load => self.load(),
                Action::Prove => self.prove(events).await,
                Action::TakeOutput => self.take_output(),
                Action::StartAccepting => match self.start_accepting() {
                    Ok(()) => events.push_back(Event::Accepting),
                    Err(error) => {
                        tracing::error!(%error, "failed to register the listeners");
                        return Step::Exit(1);
                    }
                },
                Action::StopAccepting => self.stop_accepting(),
                Action::CloseListeners => self.listeners.clear(),
                Action::TellPluginsServing => self.plugins().for_each(Plugin::tell_serving),
                Action::TellPluginsShutdown => self.plugins().for_each(Plugin::tell_shutdown),
                Action::TellPluginsHook(hook) => {
                    // All are told, whoever listens.
                    let heard = self.plugins().filter(|plugin| plugin.tell_hook(hook)).count();
                    if heard == 0 {
                        tracing::warn!("{hook} came, and no plugin listens for it");
                    }
                }
                Action::Drain(deadlines) => self.drain(deadlines),
                Action::CutAll => {
                    if let Some(Service { server, .. }) = &self.service {
                        server.drain.cut();
                        server.connections.wake_all();
                    }
                }
                Action::EnforceEnd(time) => {
                    if let Err(error) = (self.orphan.enforce)(time) {
                        tracing::warn!(%error, "failed to see to an end in time");
                    }
                }
                Action::Warn(text) => tracing::warn!("{text}"),
                Action::Exit(code) => return Step::Exit(code),
            }
        }
        Step::On
    }

    async fn send_saved(&self, message: ToMaster, memory: Option<OwnedFd>) -> Result<(), ChannelError> {
        let fds: Vec<_> = memory.iter().map(AsFd::as_fd).collect();
        match self.control.send(&message, &fds).await {
            Err(ChannelError::Io(error)) if error.kind() == io::ErrorKind::PermissionDenied && !fds.is_empty() => {
                self.control.send(&save::not_taken(message), &[]).await
            }
            result => result,
        }
    }

    async fn send(&self, message: ToMaster, events: &mut VecDeque<Event>) {
        if let Err(error) = self.control.send(&message, &[]).await {
            events.push_back(lost(&error));
        }
    }

    fn plugins(&self) -> impl Iterator<Item = &'static Plugin> {
        self.service.iter().flat_map(|service| service.plugins.iter().copied())
    }

    fn set_serving(&self, serving: bool) {
        if let Some(set) = &self.set {
            set.host.set_serving(serving);
        }
    }

    fn load(&mut self) {
        let Some(set) = &mut self.set else { return };
        let (files, generation, host) = (set.load.plugins.clone(), self.generation, set.host.clone());
        let states = std::mem::take(&mut set.states);
        let told = self.told.0.clone();
        // A thread of its own: an init may block for long, and no runtime may be entered on it.
        let thread = std::thread::Builder::new().name("load".into()).spawn(move || {
            let begins = |name: &str| {
                let (known, wait) = std::sync::mpsc::sync_channel(0);
                // Both receivers live as long as the process; the wait ends when the sender is dropped.
                let _ = told.send(Told::Loading(name.into(), known));
                let _ = wait.recv();
            };
            let _ = told.send(Told::Loaded(plugin::load_all(&files, &states, generation, &host, begins)));
        });
        if let Err(error) = thread {
            let failure = Failure::new(Stage::Load, format!("failed to start the thread that loads: {error}"));
            let _ = self.told.0.send(Told::Loaded(Err(failure)));
        }
    }

    async fn prove(&mut self, events: &mut VecDeque<Event>) {
        if let Err(failure) = self.open() {
            return events.push_back(Event::Proved(Err(failure)));
        }
        let (Some(set), Some(service)) = (&self.set, &self.service) else { return };
        let Some(server) = service.rehearsal else { return events.push_back(Event::Proved(Ok(()))) };
        self.send(ToMaster::Proving, events).await;
        let (servers, told) = (set.load.config.server.clone(), self.told.0.clone());
        service.runtime.spawn(async move {
            // The receiver lives as long as the process.
            let _ = told.send(Told::Proved(prove::prove(server, &servers).await));
        });
    }

    fn take_output(&mut self) {
        telemetry::flush();
        if let Some(stderr) = self.stderr.take()
            && let Err(error) = worker::take_over_output(stderr)
        {
            tracing::warn!(%error, "failed to take over stderr");
        }
    }

    fn start_accepting(&mut self) -> io::Result<()> {
        let Some(service) = &self.service else { return Ok(()) };
        let _entered = service.runtime.enter();
        service.server.handover.keep(service.server);
        self.acceptors = Some(Acceptors::start(service.server, std::mem::take(&mut self.listeners))?);
        self.accepting.send_replace(true);
        Ok(())
    }

    fn stop_accepting(&mut self) {
        self.set_serving(false);
        let told = self.told.0.clone();
        if let (Some(acceptors), Some(service)) = (self.acceptors.take(), &self.service) {
            let server = service.server;
            service.runtime.spawn(async move {
                let listeners = acceptors.stop().await;
                server.handover.settled(server).await;
                let _ = told.send(Told::Stopped(listeners));
            });
        }
    }

    fn drain(&mut self, deadlines: Deadlines) {
        let Some(Service { server, plugins, runtime, .. }) = &self.service else { return };
        server.drain.retire(deadlines);
        server.connections.wake_all();
        if std::mem::replace(&mut self.draining, true) {
            return;
        }
        let (server, plugins, told) = (*server, plugins.clone(), self.told.0.clone());
        {
            let _entered = runtime.enter();
            server.watch();
        }
        let mut accepting = self.accepting.subscribe();
        runtime.spawn(async move {
            // The sender lives as long as the worker.
            let _ = accepting.wait_for(|accepting| !accepting).await;
            server.ended().await;
            end(server, plugins).await;
            let (handed_over, carried) = (server.handover.moved(), server.handover.carried());
            let report = DrainReport { handed_over, carried, ..server.drain.report() };
            let _ = told.send(Told::Drained(report));
        });
    }
}

/// Ends the plugins: what they registered for the end, side by side, then their runtimes.
async fn end(server: &'static Server, plugins: Vec<&'static Plugin>) {
    let shutdowns = async {
        let mut tasks = tokio::task::JoinSet::new();
        for plugin in &plugins {
            tasks.spawn(plugin.shutdown());
        }
        tasks.join_all().await;
    };
    if !server.drain.bound(shutdowns).await {
        tracing::warn!("the plugins' shutdown took too long: going without it");
    }
    let destroyed = tokio::task::spawn_blocking(move || {
        std::thread::scope(|scope| {
            for plugin in plugins {
                scope.spawn(move || plugin.destroy());
            }
        });
    });
    if let Err(error) = destroyed.await {
        tracing::error!(%error, "failed to end the plugins");
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// What a channel that failed means: a message that cannot be understood is the master's mistake, all else is its end.
fn lost(error: &ChannelError) -> Event {
    match error {
        ChannelError::Io(_) => Event::Orphaned,
        broken => Event::Broken(broken.to_string()),
    }
}

/// A failure that fits into a message.
fn fitting(mut failure: Failure) -> Failure {
    for text in [Some(&mut failure.error), failure.hint.as_mut(), failure.detail.as_mut()].into_iter().flatten() {
        // As JSON writes it: a control character takes six bytes there.
        let mut length = 0;
        let end = text.char_indices().find_map(|(at, char)| {
            length += match char {
                '"' | '\\' => 2,
                char if char < ' ' => 6,
                char => char.len_utf8(),
            };
            (length > DETAIL).then_some(at)
        });
        if let Some(end) = end {
            text.truncate(end);
            text.push_str(" ...");
        }
    }
    failure
}
