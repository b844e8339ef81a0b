//! What a plugin's init is given, and the stations of its life: serving, shutdown, the state handed on.

mod exclusive;

use std::fmt;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::abi::extension::{CONTROL_RELOAD, CONTROL_RESTART, CONTROL_SHUTDOWN};
use crate::ffi::{Instance, context};
use crate::signals::Signals;

pub use exclusive::Exclusive;

/// What the function under `#[plugin]` is given: configuration, a directory, and ways to take part in the plugin's life.
///
/// Cheap to clone; may be kept for as long as the plugin runs.
///
/// **Init must have no effects outside of the process.** It also runs in a generation that is refused afterwards, and the
/// former generation still serves while it runs. What must run once, and only in the code that serves, belongs into
/// [`spawn_when_serving`](Init::spawn_when_serving). That runs beside what the generation before still does, until that one
/// retires; what must never run twice at once needs [`exclusive`](Init::exclusive).
///
/// ```standalone_crate
/// use baton_plugin_api::{handler_with, plugin, BoxError, Init, IntoApp, Request};
///
/// #[derive(Clone, serde::Deserialize)]
/// struct Config {
///     greeting: String,
/// }
///
/// #[plugin]
/// async fn app(cx: Init) -> Result<impl IntoApp, BoxError> {
///     let config: Config = cx.config()?;
///     Ok(handler_with(config, async |config: Config, _: Request| config.greeting))
/// }
/// # fn main() {}
/// ```
#[derive(Clone, Copy)]
pub struct Init(&'static Instance);

impl Init {
    pub(crate) fn new(instance: &'static Instance) -> Init {
        Init(instance)
    }

    /// The plugin's name: that of its file, without `lib` and `.so`.
    pub fn name(&self) -> &'static str {
        &self.0.name
    }

    /// The number of this generation: 1 for the first child of a server, and one more for each that follows.
    pub fn generation(&self) -> u64 {
        self.0.generation
    }

    /// Reads `[plugins.NAME.config]` of the server's configuration; without one, an empty table.
    ///
    /// # Errors
    /// If the table does not fit `T`; the error names the key. Give fields `#[serde(default)]` to make them optional.
    ///
    /// ```
    /// # use baton_plugin_api::{handler_with, testing, BoxError, Init, IntoApp, Request};
    /// #[derive(Clone, serde::Deserialize)]
    /// struct Config {
    ///     port: u16,
    /// }
    ///
    /// fn app(cx: Init) -> Result<impl IntoApp, BoxError> {
    ///     let config: Config = cx.config()?;
    ///     Ok(handler_with(config, async |config: Config, _: Request| config.port.to_string()))
    /// }
    ///
    /// let plugin = testing::Plugin::with(app).config(r#"{"port": 5432}"#).start().unwrap();
    /// assert_eq!(plugin.get("/").text(), "5432");
    ///
    /// let error = testing::Plugin::with(app).config(r#"{"port": "x"}"#).start().unwrap_err();
    /// assert!(error.contains("port: invalid type: string"), "{error}");
    /// ```
    pub fn config<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        let json: &[u8] = if self.0.config.is_empty() { b"{}" } else { &self.0.config };
        let mut json = serde_json::Deserializer::from_slice(json);
        serde_path_to_error::deserialize(&mut json).map_err(|error| {
            let path = error.path().to_string();
            ConfigError {
                plugin: self.name(),
                // "." is the table itself, as when a key is missing.
                key: (path != ".").then_some(path),
                message: without_position(error.inner().to_string()),
            }
        })
    }

    /// A directory of the plugin's own, for what must outlive a reload or a restart: it exists, it is absolute, and it
    /// stays the same. The generation before still uses it while the next one starts.
    pub fn data_dir(&self) -> &'static Path {
        &self.0.data_dir
    }

    /// What the generation before handed on by [`on_save`](Init::on_save): the version it gave, and the bytes.
    ///
    /// Absent at the first start, when that generation had no such function or it failed, and after deaths in a row. After one
    /// death it is what was saved last, perhaps by an earlier generation; after a rollback it may be of a newer version than
    /// this code. So treat it as a warm cache, and start without it if it makes no sense.
    pub fn previous(&self) -> Option<(u32, &'static [u8])> {
        self.0.previous.as_ref().map(|(version, bytes)| (*version, bytes.as_slice()))
    }

    /// Registers the function that gives this plugin's state to the generation that follows, with a version of the
    /// author's own counting for its format. A second call replaces the first.
    ///
    /// It is called before the next generation loads, on a thread that may block, while requests are still served: it must
    /// stop nothing, take at most 1 s and give at most 1 MiB. If the next generation is refused, it will be called again.
    ///
    /// ```
    /// # use std::sync::{Arc, atomic::{AtomicU64, Ordering}};
    /// # use baton_plugin_api::{handler_with, testing, Init, IntoApp, Request};
    /// fn app(cx: Init) -> impl IntoApp {
    ///     let count = match cx.previous() {
    ///         Some((1, bytes)) => u64::from_le_bytes(bytes.try_into().unwrap_or_default()),
    ///         _ => 0,
    ///     };
    ///     let count = Arc::new(AtomicU64::new(count));
    ///     let saved = count.clone();
    ///     cx.on_save(1, move || saved.load(Ordering::Relaxed).to_le_bytes().to_vec());
    ///     handler_with(count, async |count: Arc<AtomicU64>, _: Request| {
    ///         (count.fetch_add(1, Ordering::Relaxed) + 1).to_string()
    ///     })
    /// }
    ///
    /// let first = testing::Plugin::start(app);
    /// assert_eq!(first.get("/").text(), "1");
    /// let (version, state) = first.save().unwrap();
    /// let second = testing::Plugin::with(app).previous(version, &state).start().unwrap();
    /// assert_eq!(second.get("/").text(), "2");
    /// ```
    pub fn on_save(&self, version: u32, save: impl Fn() -> Vec<u8> + Send + Sync + 'static) {
        self.0.set_saver(version, Arc::new(save));
    }

    /// Waits until this generation begins to serve. In one that is refused it never ends; so do not await it in init
    /// itself, which would wait for its own end.
    pub fn serving(&self) -> impl Future<Output = ()> + Send + use<> {
        self.0.serving()
    }

    /// Runs `future` in the plugin's runtime from the moment at which this generation begins to serve: for background work
    /// with effects outside. It is dropped when the process ends, after all requests; to end it earlier, let it watch
    /// [`shutdown`](Init::shutdown).
    ///
    /// ```
    /// # use baton_plugin_api::{handler_with, testing, Init, IntoApp, Request};
    /// # use std::sync::{Arc, atomic::{AtomicBool, Ordering}};
    /// # static REFRESHED: AtomicBool = AtomicBool::new(false);
    /// # async fn refresh() { REFRESHED.store(true, Ordering::SeqCst) }
    /// fn app(cx: Init) -> impl IntoApp {
    ///     cx.spawn_when_serving(refresh());
    ///     handler_with((), async |(), _: Request| "ok")
    /// }
    /// # let plugin = testing::Plugin::with(app).start_without_serving().unwrap();
    /// # assert!(!REFRESHED.load(Ordering::SeqCst));
    /// # plugin.begin_serving();
    /// # testing::eventually(|| REFRESHED.load(Ordering::SeqCst));
    /// ```
    pub fn spawn_when_serving<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        let serving = self.serving();
        self.handle().spawn(async move {
            serving.await;
            future.await
        })
    }

    /// Runs `future` in the plugin's runtime as work that must be finished: when this generation retires, the server waits
    /// for it, until its drain deadline.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        let tracked = self.0.track();
        self.handle().spawn(async move {
            let _tracked = tracked;
            future.await
        })
    }

    /// The signals of the operator's own that come to the server from now on, for all who ask. They come only if the server's
    /// `[signals] preset` leaves some to plugins, and only to the generation that serves.
    ///
    /// ```
    /// # use std::sync::atomic::{AtomicU64, Ordering};
    /// # use baton_plugin_api::{handler_with, testing, Init, IntoApp, Request, Signal};
    /// # static DUMPED: AtomicU64 = AtomicU64::new(0);
    /// # fn dump() { DUMPED.fetch_add(1, Ordering::SeqCst); }
    /// fn app(cx: Init) -> impl IntoApp {
    ///     let mut signals = cx.signals();
    ///     cx.spawn(async move {
    ///         // Until this generation retires.
    ///         while let Some(signal) = signals.recv().await {
    ///             if signal == Signal::Usr1 {
    ///                 dump();
    ///             }
    ///         }
    ///     });
    ///     handler_with((), async |(), _: Request| "ok")
    /// }
    ///
    /// let plugin = testing::Plugin::start(app);
    /// assert!(plugin.signal(Signal::Usr1));
    /// # testing::eventually(|| DUMPED.load(Ordering::SeqCst) == 1);
    /// ```
    pub fn signals(&self) -> Signals {
        Signals::new(self.0)
    }

    /// Tells when this generation begins to retire.
    pub fn shutdown(&self) -> Shutdown {
        Shutdown(self.0)
    }

    /// Registers work for the very end: after the last request and all that [`spawn`](Init::spawn) started, until the drain
    /// deadline. As with `Drop`, the last registered runs first; one that panics does not keep the others from running.
    ///
    /// Values in the plugin's state are *not* dropped at the end of the process. Close here what must be closed.
    pub fn on_shutdown(&self, future: impl Future<Output = ()> + Send + 'static) {
        self.0.add_ending(Box::pin(future));
    }

    /// The server, to ask things of it.
    pub fn host(&self) -> Host {
        Host(self.0)
    }

    /// The plugin's tokio runtime. It is entered wherever the author's code runs, so `tokio::spawn`, timers and sockets work
    /// without this; it is for threads of the author's own.
    pub fn handle(&self) -> &'static Handle {
        self.0.handle()
    }
}

impl fmt::Debug for Init {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Init")
            .field("name", &self.name())
            .field("generation", &self.generation())
            .finish_non_exhaustive()
    }
}

/// serde_json ends its texts with a place in the JSON, which the author of a TOML file has never seen.
fn without_position(mut text: String) -> String {
    if let Some(at) = text.rfind(" at line ") {
        text.truncate(at);
    }
    text
}

/// `[plugins.NAME.config]` does not fit the plugin's type.
#[derive(Debug)]
pub struct ConfigError {
    plugin: &'static str,
    key: Option<String>,
    message: String,
}

impl ConfigError {
    /// The key that the error is about, dotted; nothing if it is the table as a whole, as when a key is missing (the text
    /// then names that).
    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "failed to read [plugins.{}.config]: ", self.plugin)?;
        if let Some(key) = &self.key {
            write!(f, "{key}: ")?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for ConfigError {}

/// Tells when this generation begins to retire: a newer one serves, or the server shuts down. Cheap to clone.
///
/// From then on no new connection arrives, but requests on those that are open still do. It is the moment to end long-lived
/// responses, such as event streams.
#[derive(Clone, Copy)]
pub struct Shutdown(&'static Instance);

impl Shutdown {
    pub(crate) fn new(instance: &'static Instance) -> Shutdown {
        Shutdown(instance)
    }

    /// Ends when this generation begins to retire; at once if it already does.
    pub fn wait(&self) -> impl Future<Output = ()> + Send + use<> {
        self.0.shutdown()
    }

    /// Whether it already does.
    pub fn has_begun(&self) -> bool {
        self.0.is_shutting_down()
    }
}

impl fmt::Debug for Shutdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shutdown").field("has_begun", &self.has_begun()).finish()
    }
}

/// The server that runs this plugin, from [`host`], [`Init::host`] or a request. Cheap to clone.
///
/// Its verbs only ask: they answer once the server has taken the request on, and the rest happens while the plugin serves
/// on: the answer of a handler that asked is delivered like any other, by the code that began it. The server's configuration
/// can refuse them to a plugin (`allow_control = false`).
///
/// ```
/// # use baton_plugin_api::{testing, ControlError, Request, StatusCode};
/// async fn admin(request: Request) -> Result<StatusCode, ControlError> {
///     request.host().reload()?;
///     Ok(StatusCode::ACCEPTED)
/// }
/// # let plugin = testing::Plugin::start(admin);
/// # assert_eq!(plugin.get("/").status(), 202);
/// # assert_eq!(plugin.host_requests(), ["reload"]);
/// ```
#[derive(Clone, Copy)]
pub struct Host(&'static Instance);

impl Host {
    pub(crate) fn new(instance: &'static Instance) -> Host {
        Host(instance)
    }

    /// Asks the server to load its plugins anew, in a fresh process.
    ///
    /// # Errors
    /// See [`ControlError`]; nothing happens then.
    pub fn reload(&self) -> Result<(), ControlError> {
        self.ask(CONTROL_RELOAD)
    }

    /// Asks the server to execute its own program anew, in place, and then to load its plugins.
    ///
    /// # Errors
    /// See [`ControlError`]; nothing happens then.
    pub fn restart(&self) -> Result<(), ControlError> {
        self.ask(CONTROL_RESTART)
    }

    /// Asks the server to finish its requests and end.
    ///
    /// # Errors
    /// See [`ControlError`]; nothing happens then.
    pub fn shutdown(&self) -> Result<(), ControlError> {
        self.ask(CONTROL_SHUTDOWN)
    }

    /// The name under which the server loaded this plugin.
    pub fn name(&self) -> &'static str {
        &self.0.name
    }

    /// The number of the generation that this process is.
    pub fn generation(&self) -> u64 {
        self.0.generation
    }

    fn ask(&self, verb: u32) -> Result<(), ControlError> {
        match self.0.host.control(verb) {
            Some(0) => Ok(()),
            Some(1) => Err(ControlError::NotAllowed),
            Some(3) => Err(ControlError::NotServing),
            Some(_) | None => Err(ControlError::Unsupported),
        }
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("name", &self.name()).field("generation", &self.generation()).finish()
    }
}

/// Why the server did not do what a plugin asked of it. As a response it is a `403`, `501` or `503`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ControlError {
    /// The configuration does not allow it to this plugin (`allow_control`).
    NotAllowed,
    /// This server does not know the request.
    Unsupported,
    /// This generation does not serve: it still starts, or has retired.
    NotServing,
}

impl fmt::Display for ControlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ControlError::NotAllowed => "this plugin may not control the server (allow_control is off)",
            ControlError::Unsupported => "this server does not support the request",
            ControlError::NotServing => "this generation of the plugin does not serve",
        })
    }
}

impl std::error::Error for ControlError {}

/// The server that runs this plugin, from anywhere in its code.
///
/// # Panics
/// Outside of a plugin. (In unit tests: outside of code that a [`testing::Plugin`](crate::testing::Plugin) runs.)
pub fn host() -> Host {
    Host(context::current().instance.expect("host() is for code that runs in a plugin"))
}
