//! Tower services and axum routers as plugins.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use axum::Router;
use axum::extract::State;
use axum::routing::{get, post};
use baton_plugin_api::http::{Request, Response};
use baton_plugin_api::testing::{Plugin, block_on, request};
use baton_plugin_api::{Body, BoxError, Bytes, Init, http_body::Body as _};
use tower_service::Service;

fn router() -> Router {
    async fn index(State(name): State<&'static str>) -> String {
        format!("hello from {name}")
    }
    Router::new()
        .route("/", get(index))
        .route("/upper", post(async |text: String| text.to_uppercase()))
        .route("/echo", post(async |body: axum::body::Body| body))
        .route("/boom", get(async || -> () { panic!("boom") }))
        .with_state("axum")
}

#[test]
fn a_router_is_a_plugin_in_every_form() {
    fn one() -> Router {
        router()
    }
    async fn two(_: Init) -> Result<Router, BoxError> {
        Ok(router())
    }
    for plugin in [Plugin::start(one), Plugin::start(two), Plugin::spawned(two).start().unwrap()] {
        assert_eq!(plugin.get("/").text(), "hello from axum");
        assert_eq!(plugin.get("/").header("content-type"), "text/plain; charset=utf-8");
        assert_eq!(plugin.post("/upper", "abc").text(), "ABC");
        assert_eq!(plugin.get("/upper").status(), 405);
        assert_eq!(plugin.get("/none").status(), 404);
        let body = vec![7; 3 << 20];
        assert_eq!(plugin.post("/echo", body.clone()).bytes(), &body);
        assert_eq!(plugin.get("/boom").status(), 500);
        assert_eq!(plugin.get("/").status(), 200);
    }
}

#[test]
fn a_short_response_of_axum_crosses_whole() {
    let plugin = Plugin::start(router);
    let response = block_on(plugin.call(request("GET", "/", "")));
    assert_eq!(response.body().size_hint().exact(), Some(15));
}

/// Not `Sync`; ready at its second asking; counts its clones.
struct Slow {
    asked: Cell<bool>,
    fails: bool,
}

static CLONES: AtomicUsize = AtomicUsize::new(0);

impl Clone for Slow {
    fn clone(&self) -> Slow {
        CLONES.fetch_add(1, Ordering::SeqCst);
        Slow { asked: Cell::new(false), fails: self.fails }
    }
}

impl Service<Request<Body>> for Slow {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Ready<Result<Response<Body>, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        if self.asked.replace(true) {
            return Poll::Ready(Ok(()));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        assert!(self.asked.get(), "called before it was ready");
        ready(if self.fails { Err("no luck".into()) } else { Ok(Response::new(request.into_body())) })
    }
}

#[test]
fn a_service_is_called_when_it_is_ready_and_its_error_is_a_500() {
    fn slow() -> Slow {
        Slow { asked: Cell::new(false), fails: false }
    }
    fn failing() -> Slow {
        Slow { asked: Cell::new(false), fails: true }
    }
    assert_eq!(Plugin::start(slow).post("/", "abc").text(), "abc");
    let plugin = Plugin::start(failing);
    assert_eq!(plugin.get("/").status(), 500);
    assert_eq!(plugin.logs()[0].message, "the service failed: no luck");
}

/// Counts its clones, of which each thread needs one.
#[derive(Debug)]
struct Ready1;

static READY_CLONES: AtomicUsize = AtomicUsize::new(0);

impl Clone for Ready1 {
    fn clone(&self) -> Ready1 {
        READY_CLONES.fetch_add(1, Ordering::SeqCst);
        Ready1
    }
}

impl Service<Request<Body>> for Ready1 {
    type Response = Response<axum::body::Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        assert!(request.uri().path() != "/boom", "boom");
        ready(Ok(Response::new(Bytes::from_static(b"ok").into())))
    }
}

#[test]
fn each_thread_has_one_clone_and_a_panicking_one_is_replaced() {
    fn app() -> Ready1 {
        Ready1
    }
    let plugin = Plugin::start(app);
    for _ in 0..10 {
        assert_eq!(plugin.get("/").text(), "ok");
    }
    assert_eq!(READY_CLONES.load(Ordering::SeqCst), 1);
    assert_eq!(plugin.get("/boom").status(), 500);
    assert_eq!(plugin.get("/").text(), "ok");
    assert_eq!(READY_CLONES.load(Ordering::SeqCst), 2);
}

#[test]
fn two_plugins_on_one_thread_keep_their_services_apart() {
    fn other() -> Router {
        Router::new().route("/", get(async || "other"))
    }
    let (one, two) = (Plugin::start(router), Plugin::start(other));
    for _ in 0..3 {
        assert_eq!(one.get("/").text(), "hello from axum");
        assert_eq!(two.get("/").text(), "other");
    }
}

#[cfg(feature = "axum")]
#[test]
fn our_types_are_extractors_and_results() {
    use std::net::SocketAddr;

    use axum::extract::ConnectInfo;
    use baton_plugin_api::{ControlError, Failure, Host, RequestInfo, Shutdown, StatusCode};

    async fn all(ConnectInfo(peer): ConnectInfo<SocketAddr>, info: RequestInfo, host: Host, end: Shutdown) -> String {
        assert_eq!(info.peer_addr(), Some(peer));
        format!("{peer} {} {}", host.name(), end.has_begun())
    }
    async fn fails() -> Result<String, Failure> {
        Ok("x".parse::<u8>()?.to_string())
    }
    async fn control(host: Host) -> Result<StatusCode, ControlError> {
        host.reload().map(|()| StatusCode::ACCEPTED)
    }
    fn app() -> Router {
        Router::new()
            .route("/", get(all))
            .route("/fails", get(fails))
            .route("/control", get(control))
            .route("/body", get(async || Body::full("body")))
    }
    let plugin = Plugin::start(app);
    assert_eq!(plugin.get("/").text(), "127.0.0.1:40000 test false");
    assert_eq!(plugin.get("/fails").status(), 500);
    assert_eq!(plugin.get("/control").status(), 202);
    assert_eq!(plugin.get("/body").text(), "body");
}
