//! From the author's function to what the ABI exports: every form that `#[handler]` and `#[plugin]` take.

use std::future::Future;
use std::marker::PhantomData;

use crate::body::Body;
use crate::ffi::{App, BoxError, Entry, Head, Instance, Payload, Reply};
use crate::plugin::Init;
use crate::request::Request;
use crate::response::IntoResponse;

pub mod emit;

/// What a plugin's init may give: an axum `Router`, any tower `Service<http::Request<Body>>`, or [`handler_with`].
///
/// As the result of an init it may be written `impl IntoApp`, where the full type is long.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot serve requests",
    label = "a plugin must not return this",
    note = "return an axum `Router`, a tower `Service<http::Request<baton_plugin_api::Body>>` that is `Clone + Send`, \
            `handler_with(state, function)`, or a `Result` of one of these",
    note = "an axum `Router` needs its state: `.with_state(...)` makes it a `Router<()>`"
)]
pub trait IntoApp {
    #[doc(hidden)]
    type App: App;

    #[doc(hidden)]
    fn into_app(self, instance: &'static Instance) -> Self::App;
}

/// A plugin that is one function with a state: each request gets a clone of it (so it is mostly an `Arc`).
///
/// ```
/// # use std::sync::{Arc, atomic::{AtomicU64, Ordering}};
/// # use baton_plugin_api::{handler_with, testing, IntoApp, Request};
/// fn app() -> impl IntoApp {
///     let visits = Arc::new(AtomicU64::new(0));
///     handler_with(visits, async |visits: Arc<AtomicU64>, _: Request| {
///         format!("visit {}\n", visits.fetch_add(1, Ordering::Relaxed) + 1)
///     })
/// }
/// # let plugin = testing::Plugin::start(app);
/// # assert_eq!(plugin.get("/").text(), "visit 1\n");
/// # assert_eq!(plugin.get("/").text(), "visit 2\n");
/// ```
pub fn handler_with<S, F, Fut>(state: S, function: F) -> HandlerWith<S, F>
where
    S: Clone + Send + Sync + 'static,
    F: Fn(S, Request) -> Fut + Send + Sync + 'static,
    Fut: Future<Output: IntoResponse> + Send + 'static,
{
    HandlerWith { state, function }
}

/// See [`handler_with`].
#[derive(Clone, Copy, Debug)]
pub struct HandlerWith<S, F> {
    state: S,
    function: F,
}

impl<S, F, Fut> IntoApp for HandlerWith<S, F>
where
    S: Clone + Send + Sync + 'static,
    F: Fn(S, Request) -> Fut + Send + Sync + 'static,
    Fut: Future<Output: IntoResponse> + Send + 'static,
{
    type App = Stateful<S, F>;

    fn into_app(self, instance: &'static Instance) -> Stateful<S, F> {
        Stateful { instance, state: self.state, function: self.function }
    }
}

/// The app of [`HandlerWith`].
pub struct Stateful<S, F> {
    instance: &'static Instance,
    state: S,
    function: F,
}

impl<S, F, Fut> App for Stateful<S, F>
where
    S: Clone + Send + Sync + 'static,
    F: Fn(S, Request) -> Fut + Send + Sync + 'static,
    Fut: Future<Output: IntoResponse> + Send + 'static,
{
    fn call(&'static self, head: Head, body: Payload) -> impl Future<Output = Reply> + Send + 'static {
        let request = Request::new(self.instance, head, Body::from_payload(body));
        async move { (self.function)(self.state.clone(), request).await.into_reply().0 }
    }
}

/// The app of a plain handler.
pub struct Plain<F> {
    instance: &'static Instance,
    function: F,
}

/// A handler that is called with a request and answers a future of something: all forms are brought to this one.
pub trait Handle<M>: Copy + Send + Sync + 'static {
    fn handle(self, request: Request) -> impl Future<Output = Reply> + Send + 'static;
}

/// An init that is called with an [`Init`] and gives an app or an error: all forms are brought to this one.
pub trait Start<M>: Copy + Send + Sync + 'static {
    type Served: IntoApp;

    fn start(self, init: Init) -> impl Future<Output = Result<Self::Served, BoxError>>;
}

/// The forms, as types that tell the implementations below apart.
pub mod form {
    /// `fn() -> T`
    pub struct Sync0;
    /// `fn(A) -> T`
    pub struct Sync1;
    /// `async fn() -> T`
    pub struct Async0;
    /// `async fn(A) -> T`
    pub struct Async1;
    /// The result of an init is an app.
    pub struct Value;
    /// The result of an init is a `Result` of one.
    pub struct Fallible;
    /// The function is a handler.
    pub struct Handler<M>(M);
    /// The function is an init.
    pub struct Plugin<M>(M);
}
use form::{Async0, Async1, Fallible, Sync0, Sync1, Value};

// ---- handlers ----

impl<F, R> Handle<Sync0> for F
where
    F: Fn() -> R + Copy + Send + Sync + 'static,
    R: IntoResponse + 'static,
{
    async fn handle(self, _: Request) -> Reply {
        self().into_reply().0
    }
}

impl<F, R> Handle<Sync1> for F
where
    F: Fn(Request) -> R + Copy + Send + Sync + 'static,
    R: IntoResponse + 'static,
{
    async fn handle(self, request: Request) -> Reply {
        self(request).into_reply().0
    }
}

impl<F, Fut> Handle<Async0> for F
where
    F: Fn() -> Fut + Copy + Send + Sync + 'static,
    Fut: Future<Output: IntoResponse> + Send + 'static,
{
    async fn handle(self, _: Request) -> Reply {
        self().await.into_reply().0
    }
}

impl<F, Fut> Handle<Async1> for F
where
    F: Fn(Request) -> Fut + Copy + Send + Sync + 'static,
    Fut: Future<Output: IntoResponse> + Send + 'static,
{
    async fn handle(self, request: Request) -> Reply {
        self(request).await.into_reply().0
    }
}

impl<F, M> App for Plain<(F, PhantomData<fn() -> M>)>
where
    F: Handle<M>,
    M: 'static,
{
    fn call(&'static self, head: Head, body: Payload) -> impl Future<Output = Reply> + Send + 'static {
        self.function.0.handle(Request::new(self.instance, head, Body::from_payload(body)))
    }
}

// ---- inits ----

/// What an init gives: an app, or a `Result` of one.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot serve requests",
    label = "a plugin must not return this",
    note = "return an axum `Router`, a tower `Service<http::Request<baton_plugin_api::Body>>` that is `Clone + Send`, \
            `handler_with(state, function)`, or a `Result` of one of these with an error that is `Into<BoxError>`"
)]
pub trait Outcome<M> {
    type Served: IntoApp;

    fn outcome(self) -> Result<Self::Served, BoxError>;
}

#[diagnostic::do_not_recommend]
impl<T: IntoApp> Outcome<Value> for T {
    type Served = T;

    fn outcome(self) -> Result<T, BoxError> {
        Ok(self)
    }
}

impl<T: IntoApp, E: Into<BoxError>> Outcome<Fallible> for Result<T, E> {
    type Served = T;

    fn outcome(self) -> Result<T, BoxError> {
        self.map_err(Into::into)
    }
}

impl<F, R, M> Start<(Sync0, M)> for F
where
    F: Fn() -> R + Copy + Send + Sync + 'static,
    R: Outcome<M>,
{
    type Served = R::Served;

    async fn start(self, _: Init) -> Result<R::Served, BoxError> {
        self().outcome()
    }
}

impl<F, R, M> Start<(Sync1, M)> for F
where
    F: Fn(Init) -> R + Copy + Send + Sync + 'static,
    R: Outcome<M>,
{
    type Served = R::Served;

    async fn start(self, init: Init) -> Result<R::Served, BoxError> {
        self(init).outcome()
    }
}

impl<F, Fut, M> Start<(Async0, M)> for F
where
    F: Fn() -> Fut + Copy + Send + Sync + 'static,
    Fut: Future<Output: Outcome<M>>,
{
    type Served = <Fut::Output as Outcome<M>>::Served;

    async fn start(self, _: Init) -> Result<Self::Served, BoxError> {
        self().await.outcome()
    }
}

impl<F, Fut, M> Start<(Async1, M)> for F
where
    F: Fn(Init) -> Fut + Copy + Send + Sync + 'static,
    Fut: Future<Output: Outcome<M>>,
{
    type Served = <Fut::Output as Outcome<M>>::Served;

    async fn start(self, init: Init) -> Result<Self::Served, BoxError> {
        self(init).await.outcome()
    }
}

// ---- entries ----

/// A handler as the whole of a plugin.
pub struct HandlerEntry<F, M>(F, PhantomData<fn() -> M>);

/// An init as the beginning of a plugin.
pub struct PluginEntry<F, M>(F, PhantomData<fn() -> M>);

macro_rules! copy {
    ($($type:ident),*) => {$(
        impl<F: Copy, M> Copy for $type<F, M> {}
        impl<F: Copy, M> Clone for $type<F, M> {
            fn clone(&self) -> Self {
                *self
            }
        }
    )*};
}
copy!(HandlerEntry, PluginEntry);

impl<F: Handle<M>, M: 'static> Entry for HandlerEntry<F, M> {
    type App = Plain<(F, PhantomData<fn() -> M>)>;

    async fn start(self, instance: &'static Instance) -> Result<Self::App, BoxError> {
        Ok(Plain { instance, function: (self.0, self.1) })
    }
}

impl<F: Start<M>, M: 'static> Entry for PluginEntry<F, M> {
    type App = <F::Served as IntoApp>::App;

    async fn start(self, instance: &'static Instance) -> Result<Self::App, BoxError> {
        Ok(self.0.start(Init::new(instance)).await?.into_app(instance))
    }
}

/// A function that can stand under `#[handler]` or `#[plugin]`: what [`testing::Plugin`](crate::testing::Plugin) starts.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is neither a handler nor the init of a plugin",
    note = "a handler takes nothing or a `Request`, and gives an `IntoResponse`",
    note = "an init takes nothing or an `Init`, and gives an `IntoApp` or a `Result` of one"
)]
pub trait Exported<M> {
    #[doc(hidden)]
    type Entry: Entry;

    #[doc(hidden)]
    fn entry(self) -> Self::Entry;
}

impl<F: Handle<M>, M: 'static> Exported<form::Handler<M>> for F {
    type Entry = HandlerEntry<F, M>;

    fn entry(self) -> HandlerEntry<F, M> {
        HandlerEntry(self, PhantomData)
    }
}

impl<F: Start<M>, M: 'static> Exported<form::Plugin<M>> for F {
    type Entry = PluginEntry<F, M>;

    fn entry(self) -> PluginEntry<F, M> {
        PluginEntry(self, PhantomData)
    }
}
