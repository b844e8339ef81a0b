//! An in-process host for the unit tests of a plugin.
//!
//! A test starts the plugin's own function and sends it requests. They go through the real tables of the ABI, with the real
//! runtime around them, as in the server; only the network is left out.
//!
//! ```
//! use baton_plugin_api::{testing, Request};
//!
//! async fn hello(request: Request) -> String {
//!     format!("hello from {}\n", request.path())
//! }
//!
//! let plugin = testing::Plugin::start(hello);
//! assert_eq!(plugin.get("/here").text(), "hello from /here\n");
//! ```
//!
//! Nothing here needs a runtime of the test's: [`get`](Plugin::get), [`post`](Plugin::post) and [`send`](Plugin::send) wait
//! for the whole response on the test's thread. [`call`](Plugin::call) is their asynchronous form, for streams.

use std::fmt;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use tracing::level_filters::LevelFilter;

use crate::abi;
use crate::body::Body;
use crate::export::Exported;
use crate::export::emit::module;
use crate::ffi::BoxError;
use crate::ffi::loopback::{self, Head, Loaded};
use crate::logging::Bridge;
use crate::signals::Signal;

pub use crate::ffi::loopback::{Client, Logged as Log};

/// A plugin that runs in the test's process. Dropping it ends it as the server does: shutdown, then the end of its runtime.
pub struct Plugin {
    loaded: Loaded,
    host: &'static loopback::Host,
    requests: AtomicU64,
    ended: bool,
}

/// How a [`Plugin`] is to be started, from [`Plugin::with`].
pub struct Builder {
    module: abi::PluginModule_Ref,
    name: String,
    config: String,
    data_dir: PathBuf,
    generation: u64,
    log_level: u32,
    previous: Option<(u32, Vec<u8>)>,
    control: u32,
    without_control: bool,
}

impl Builder {
    /// The plugin's name; else `test`.
    pub fn name(mut self, name: &str) -> Builder {
        self.name = name.to_owned();
        self
    }

    /// What `[plugins.NAME.config]` would say, as JSON; else `{}`.
    pub fn config(mut self, json: impl fmt::Display) -> Builder {
        self.config = json.to_string();
        self
    }

    /// The plugin's directory, which must exist; else that for temporary files.
    pub fn data_dir(mut self, directory: impl Into<PathBuf>) -> Builder {
        self.data_dir = directory.into();
        self
    }

    /// The number of the generation; else 1.
    pub fn generation(mut self, generation: u64) -> Builder {
        self.generation = generation;
        self
    }

    /// How much is logged; else all. The level is the process', and so that of all plugins in the test.
    pub fn log_level(mut self, level: LevelFilter) -> Builder {
        self.log_level = level_number(level);
        self
    }

    /// What the generation before handed on, as from [`Plugin::save`].
    pub fn previous(mut self, version: u32, state: &[u8]) -> Builder {
        self.previous = Some((version, state.to_vec()));
        self
    }

    /// Answers the plugin's `reload`, `restart` and `shutdown` with "not allowed".
    pub fn deny_control(mut self) -> Builder {
        self.control = 1;
        self
    }

    /// Has no `reload`, `restart` and `shutdown` at all, as a host of another version might.
    pub fn without_control(mut self) -> Builder {
        self.without_control = true;
        self
    }

    /// Starts the plugin, to the point at which it serves.
    ///
    /// # Errors
    /// The text with which the server would refuse the plugin: that of the init's error, or of its panic.
    pub fn start(self) -> Result<Plugin, String> {
        let plugin = self.start_without_serving()?;
        plugin.begin_serving();
        Ok(plugin)
    }

    /// Starts the plugin, and leaves it where the server proves it: [`Plugin::begin_serving`] goes on.
    ///
    /// # Errors
    /// As [`start`](Builder::start).
    pub fn start_without_serving(self) -> Result<Plugin, String> {
        let host: &'static loopback::Host = Box::leak(Box::default());
        *host.answer.lock().unwrap_or_else(PoisonError::into_inner) = self.control;
        host.without_control.store(self.without_control, Ordering::Relaxed);
        let start = loopback::Start {
            name: &self.name,
            config: &self.config,
            data_dir: &self.data_dir,
            generation: self.generation,
            log_level: self.log_level,
            previous: self.previous.as_ref().map(|(version, state)| (*version, state.as_slice())),
        };
        // On a thread of its own: the test's may run in a tokio runtime already, and init blocks.
        let loaded = std::thread::scope(|scope| scope.spawn(|| Loaded::start(self.module, host, &start)).join());
        let loaded = loaded.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(Plugin { loaded, host, requests: AtomicU64::new(0), ended: false })
    }
}

impl Plugin {
    /// Starts the function under `#[handler]` or `#[plugin]`, with defaults.
    ///
    /// # Panics
    /// If it cannot be started.
    #[track_caller]
    pub fn start<F: Exported<M>, M>(function: F) -> Plugin {
        Plugin::with(function).start().unwrap_or_else(|error| panic!("the plugin did not start: {error}"))
    }

    /// Starts the function under `#[handler]` or `#[plugin]`, with more to say about how.
    pub fn with<F: Exported<M>, M>(function: F) -> Builder {
        Builder::new(module::<Bridge, false, 0, F, M>(function))
    }

    /// As [`with`](Plugin::with), for a plugin whose options say `runtime = "spawn"`.
    pub fn spawned<F: Exported<M>, M>(function: F) -> Builder {
        Builder::new(module::<Bridge, true, 0, F, M>(function))
    }

    // ---- requests ----

    /// Sends a `GET` and waits for the response.
    pub fn get(&self, target: &str) -> Answer {
        self.send(request("GET", target, Body::empty()))
    }

    /// Sends a `POST` and waits for the response.
    pub fn post(&self, target: &str, body: impl Into<Body>) -> Answer {
        self.send(request("POST", target, body.into()))
    }

    /// Sends a request and waits for the whole response.
    pub fn send(&self, request: http::Request<Body>) -> Answer {
        block_on(async {
            let (parts, mut body) = self.call(request).await.into_parts();
            let (mut data, mut trailers, mut error) = (BytesMut::new(), None, None);
            while let Some(frame) = body.frame().await {
                match frame.map(|frame| frame.into_data()) {
                    Ok(Ok(piece)) => data.extend_from_slice(&piece),
                    Ok(Err(frame)) => trailers = frame.into_trailers().ok(),
                    Err(failed) => error = Some(failed),
                }
            }
            Answer { parts, body: data.freeze(), trailers, error }
        })
    }

    /// Sends a request. As in the server, dropping the future before its end cancels the request, and so does dropping the
    /// response's body; a panic is answered with a `500`.
    pub fn call(&self, request: http::Request<Body>) -> impl Future<Output = http::Response<Body>> + Send + use<> {
        let exchange = self.exchange(request);
        async move { exchange.await.0 }
    }

    /// Sends a request that asks for another protocol: the response, and the client's end of the stream.
    ///
    /// ```
    /// # use baton_plugin_api::{testing, upgrade, Body, IntoResponse, Request, StatusCode};
    /// # use baton_plugin_api::tokio::{self, io::{AsyncReadExt, AsyncWriteExt}};
    /// async fn greet(mut request: Request) -> impl IntoResponse {
    ///     let upgrade = upgrade::on(&mut request);
    ///     tokio::spawn(async move { upgrade.await?.write_all(b"hello").await.map_err(baton_plugin_api::BoxError::from) });
    ///     (StatusCode::SWITCHING_PROTOCOLS, [("upgrade", "greeting")], ())
    /// }
    ///
    /// let plugin = testing::Plugin::start(greet);
    /// let request = http::Request::get("/").header("connection", "upgrade").header("upgrade", "greeting");
    /// testing::block_on(async {
    ///     let (_, mut client) = plugin.upgrade(request.body(Body::empty()).unwrap()).await.unwrap();
    ///     let mut heard = String::new();
    ///     client.read_to_string(&mut heard).await.unwrap();
    ///     assert_eq!(heard, "hello");
    /// });
    /// ```
    ///
    /// # Errors
    /// The response, if the plugin did not switch.
    pub fn upgrade(
        &self,
        request: http::Request<Body>,
    ) -> impl Future<Output = Result<(http::Response<Body>, Client), http::Response<Body>>> + Send + use<> {
        let exchange = self.exchange(request);
        async move {
            match exchange.await {
                (response, Some(client)) => Ok((response, client)),
                (response, None) => Err(response),
            }
        }
    }

    fn exchange(
        &self,
        request: http::Request<Body>,
    ) -> impl Future<Output = (http::Response<Body>, Option<Client>)> + Send + use<> {
        let request_id = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        let (parts, body) = request.into_parts();
        let address = |port| Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let facts = vec![(abi::FACT_SERVER, b"test".to_vec()), (abi::FACT_PREFIX, Vec::new())];
        let head = Head::new(parts, request_id, address(40000), address(8080), facts);
        let loaded = self.loaded;
        async move {
            match loaded.call(head, body.into_payload()).await {
                Some((response, client)) => (response.map(Body::from_payload), client),
                None => {
                    let mut response = http::Response::new(Body::full("the plugin panicked\n"));
                    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                    (response, None)
                }
            }
        }
    }

    // ---- life ----

    /// Tells the plugin that it serves.
    pub fn begin_serving(&self) {
        self.loaded.notify(abi::EVENT_SERVING);
    }

    /// Sends the plugin a signal, as the server does with those that its operator routes to plugins. Whether it listens.
    pub fn signal(&self, signal: Signal) -> bool {
        self.loaded.signal(signal.number())
    }

    /// Tells the plugin that it retires.
    pub fn begin_shutdown(&self) {
        self.loaded.notify(abi::EVENT_SHUTDOWN);
    }

    /// Tells the plugin that it retires, and waits for what it registered for the end.
    ///
    /// # Panics
    /// If that takes more than 10 s.
    pub fn shut_down(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        self.begin_shutdown();
        let ended = block_on_for(Duration::from_secs(10), self.loaded.shutdown());
        self.loaded.destroy();
        if ended.is_none() && !std::thread::panicking() {
            panic!("the plugin's end took more than 10 s");
        }
    }

    /// What `on_save` registered gives, as the server asks for it before a reload: version and bytes.
    ///
    /// # Panics
    /// If the plugin's function does.
    pub fn save(&self) -> Option<(u32, Bytes)> {
        self.loaded.save().unwrap_or_else(|()| panic!("the function given to on_save panicked"))
    }

    /// Sets how much is logged from now on, in all plugins of the test.
    pub fn set_log_level(&self, level: LevelFilter) {
        self.loaded.set_log_level(level_number(level));
    }

    // ---- what the host saw ----

    /// What was logged so far.
    pub fn logs(&self) -> Vec<Log> {
        self.host.logs.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the plugin asked of the server so far: `reload`, `restart`, `shutdown`.
    pub fn host_requests(&self) -> Vec<&'static str> {
        let asked = self.host.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked
            .iter()
            .map(|verb| match *verb {
                abi::extension::CONTROL_RELOAD => "reload",
                abi::extension::CONTROL_RESTART => "restart",
                _ => "shutdown",
            })
            .collect()
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        self.end();
    }
}

impl fmt::Debug for Plugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plugin").field("requests", &self.requests).finish_non_exhaustive()
    }
}

impl Builder {
    fn new(module: abi::PluginModule_Ref) -> Builder {
        Builder {
            module,
            name: "test".to_owned(),
            config: "{}".to_owned(),
            data_dir: std::env::temp_dir(),
            generation: 1,
            log_level: 5,
            previous: None,
            control: 0,
            without_control: false,
        }
    }
}

/// A response, with its whole body.
#[derive(Debug)]
pub struct Answer {
    parts: http::response::Parts,
    body: Bytes,
    trailers: Option<HeaderMap>,
    error: Option<BoxError>,
}

impl Answer {
    /// The status.
    pub fn status(&self) -> StatusCode {
        self.parts.status
    }

    /// The first value of a header field, as text; empty if there is none.
    pub fn header(&self, name: &str) -> &str {
        self.parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// All header fields.
    pub fn headers(&self) -> &HeaderMap {
        &self.parts.headers
    }

    /// The body; what arrived of it, if it broke off.
    pub fn bytes(&self) -> &Bytes {
        &self.body
    }

    /// The body as text.
    ///
    /// # Panics
    /// If it is not UTF-8, or broke off.
    #[track_caller]
    pub fn text(&self) -> &str {
        if let Some(error) = &self.error {
            panic!("the body broke off: {error}");
        }
        std::str::from_utf8(&self.body).expect("the body is not UTF-8")
    }

    /// The trailers, if there were any.
    pub fn trailers(&self) -> Option<&HeaderMap> {
        self.trailers.as_ref()
    }

    /// Why the body broke off, if it did.
    pub fn error(&self) -> Option<String> {
        self.error.as_ref().map(ToString::to_string)
    }
}

/// A request, for [`Plugin::send`] and [`Plugin::call`].
///
/// # Panics
/// If method or target are not valid.
#[track_caller]
pub fn request(method: &str, target: &str, body: impl Into<Body>) -> http::Request<Body> {
    http::Request::builder().method(method).uri(target).body(body.into()).expect("not a request")
}

fn level_number(level: LevelFilter) -> u32 {
    level.into_level().map_or(0, |level| crate::logging::level_of(&level))
}

// ---- waiting ----

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future to its end on this thread. It needs no runtime: the plugin has its own.
pub fn block_on<F: Future>(future: F) -> F::Output {
    match poll_until(None, future) {
        Some(output) => output,
        None => unreachable!("there is no deadline"),
    }
}

/// The same, for at most `limit`; nothing if it took longer.
pub fn block_on_for<F: Future>(limit: Duration, future: F) -> Option<F::Output> {
    poll_until(Some(Instant::now() + limit), future)
}

fn poll_until<F: Future>(deadline: Option<Instant>, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut cx = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return Some(output);
        }
        match deadline {
            None => std::thread::park(),
            Some(deadline) => match deadline.checked_duration_since(Instant::now()) {
                Some(left) => std::thread::park_timeout(left),
                None => return None,
            },
        }
    }
}

/// Waits until `condition` holds.
///
/// # Panics
/// If it does not within 10 s.
#[track_caller]
pub fn eventually(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "it did not come about within 10 s");
        std::thread::sleep(Duration::from_millis(1));
    }
}
