//! One loaded plugin: what it was given at its start, its runtime, and the stations of its life.
//!
//! Leaked on purpose. Futures, bodies and the author's threads refer to it without counting, and the process ends with it.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::runtime::{EnterGuard, Handle, Runtime};
use tokio::sync::{broadcast, watch};

use super::HostRef;
use super::context::{Context, catch, within};
use crate::abi::extension::{SIGNAL_TSTP, SIGNAL_USR1};

type Ending = Pin<Box<dyn Future<Output = ()> + Send>>;
type Saver = Arc<dyn Fn() -> Vec<u8> + Send + Sync>;

/// See the module.
pub struct Instance {
    pub host: HostRef,
    pub name: String,
    /// JSON; empty means `{}`.
    pub config: Vec<u8>,
    pub data_dir: PathBuf,
    pub generation: u64,
    pub previous: Option<(u32, Vec<u8>)>,
    handle: OnceLock<Handle>,
    runtime: Mutex<Option<Runtime>>,
    serving: watch::Sender<bool>,
    shutdown: watch::Sender<bool>,
    tracked: watch::Sender<usize>,
    endings: Mutex<Vec<Ending>>,
    saver: Mutex<Option<(u32, Saver)>>,
    /// Until the shutdown begins.
    signals: Mutex<Option<broadcast::Sender<u32>>>,
}

/// Signals that wait for a listener at most; then the oldest is lost, and counted.
const SIGNALS: usize = 16;

/// What [`Instance::new`] is told by the host.
pub struct Facts {
    pub name: String,
    pub config: Vec<u8>,
    pub data_dir: PathBuf,
    pub generation: u64,
    pub previous: Option<(u32, Vec<u8>)>,
}

/// A panic of the author's code must not make the next call fail too: every value behind these locks is whole at any time.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Instance {
    pub fn new(host: HostRef, facts: Facts) -> Instance {
        let Facts { name, config, data_dir, generation, previous } = facts;
        Instance {
            host,
            name,
            config,
            data_dir,
            generation,
            previous,
            handle: OnceLock::new(),
            runtime: Mutex::default(),
            serving: watch::Sender::new(false),
            shutdown: watch::Sender::new(false),
            tracked: watch::Sender::new(0),
            endings: Mutex::default(),
            saver: Mutex::default(),
            signals: Mutex::new(Some(broadcast::Sender::new(SIGNALS))),
        }
    }

    /// The context of this plugin's own work, outside of any request.
    pub fn context(&'static self, request_id: u64) -> Context {
        Context { instance: Some(self), request_id }
    }

    // ---- runtime ----

    /// Builds the runtime. Called once, before anything else runs in it.
    pub fn start_runtime(&'static self, workers: usize) -> std::io::Result<&'static Handle> {
        // The kernel keeps 15 bytes of a thread's name.
        let name: String = self.name.chars().take(12).chain("-rt".chars()).collect();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(workers)
            .thread_name(name)
            .enable_all()
            .on_thread_start(move || super::context::adopt_thread(self))
            .build()?;
        let handle = self.handle.get_or_init(|| runtime.handle().clone());
        *lock(&self.runtime) = Some(runtime);
        Ok(handle)
    }

    /// Makes the runtime that of this thread.
    pub fn enter(&self) -> Option<EnterGuard<'_>> {
        self.handle.get().map(Handle::enter)
    }

    /// The plugin's runtime. There is one from before the author's init until the process ends.
    pub fn handle(&self) -> &Handle {
        self.handle.get().expect("the runtime is built before any code of the author runs")
    }

    /// Ends the runtime without waiting for what runs in it.
    pub fn stop_runtime(&self) {
        let runtime = lock(&self.runtime).take();
        if let Some(runtime) = runtime {
            runtime.shutdown_background();
        }
    }

    // ---- stations ----

    pub fn begin_serving(&self) {
        self.serving.send_replace(true);
    }

    pub async fn serving(&self) {
        reached(&self.serving, |serving| *serving).await;
    }

    pub fn begin_shutdown(&self) {
        self.shutdown.send_replace(true);
        drop(lock(&self.signals).take());
    }

    pub fn is_shutting_down(&self) -> bool {
        *self.shutdown.borrow()
    }

    pub async fn shutdown(&self) {
        reached(&self.shutdown, |shutdown| *shutdown).await;
    }

    /// Counts work that the end waits for, until the guard is dropped.
    pub fn track(&'static self) -> Tracked {
        self.tracked.send_modify(|count| *count += 1);
        Tracked(self)
    }

    pub fn add_ending(&self, ending: Ending) {
        lock(&self.endings).push(ending);
    }

    /// Waits for tracked work, then runs the endings, the last registered first. A panic ends only the one that made it.
    pub async fn end(&'static self) {
        reached(&self.tracked, |count| *count == 0).await;
        loop {
            let Some(mut ending) = lock(&self.endings).pop() else { break };
            std::future::poll_fn(|cx| match catch(|| ending.as_mut().poll(cx)) {
                Ok(poll) => poll,
                // The hook has logged it; the others still have their turn.
                Err(super::context::Panicked) => std::task::Poll::Ready(()),
            })
            .await;
        }
    }

    /// A signal came (`SIGNAL_*`). Answers whether anybody listens.
    pub fn deliver(&self, signal: u32) -> bool {
        let known = matches!(signal, SIGNAL_USR1 | SIGNAL_TSTP);
        let signals = lock(&self.signals).clone();
        signals.is_some_and(|signals| known && signals.send(signal).is_ok())
    }

    /// What comes from now on. Ends when the shutdown begins.
    pub fn signals(&self) -> broadcast::Receiver<u32> {
        match &*lock(&self.signals) {
            Some(signals) => signals.subscribe(),
            None => broadcast::channel(1).1,
        }
    }

    // ---- state ----

    pub fn set_saver(&self, version: u32, saver: Saver) {
        *lock(&self.saver) = Some((version, saver));
    }

    /// The author's state, if he registered a function that gives it.
    pub fn save(&'static self) -> Option<(u32, Vec<u8>)> {
        let (version, saver) = lock(&self.saver).clone()?;
        Some((version, within(self.context(0), || saver())))
    }
}

/// Waits until `condition` holds. The sender is part of an instance, so it cannot go away.
async fn reached<T>(sender: &watch::Sender<T>, condition: impl FnMut(&T) -> bool) {
    let closed = sender.subscribe().wait_for(condition).await.is_err();
    debug_assert!(!closed, "the instance lives as long as the process");
}

/// Work that the end waits for.
pub struct Tracked(&'static Instance);

impl Drop for Tracked {
    fn drop(&mut self) {
        self.0.tracked.send_modify(|count| *count -= 1);
    }
}
