//! The stations of a plugin's life, its runtime, its configuration and its server.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use baton_plugin_api::testing::{Plugin, block_on, eventually, request};
use baton_plugin_api::tokio::io::{AsyncReadExt, AsyncWriteExt};
use baton_plugin_api::tokio::net::{TcpListener, TcpStream};
use baton_plugin_api::{
    Body, BoxError, ControlError, Init, IntoApp, Request, Signal, Signals, StatusCode, handler_with, host, tokio,
};
use serde::Deserialize;

#[test]
fn every_form_of_an_init_is_served() {
    fn one() -> impl IntoApp {
        handler_with("one", async |name: &'static str, _: Request| name)
    }
    fn two(cx: Init) -> Result<impl IntoApp, std::io::Error> {
        Ok(handler_with(cx.name(), async |name: &'static str, _: Request| name))
    }
    async fn three() -> Result<impl IntoApp, String> {
        Ok(one())
    }
    async fn four(cx: Init) -> impl IntoApp {
        tokio::time::sleep(Duration::from_millis(1)).await;
        two(cx).unwrap()
    }
    assert_eq!(Plugin::start(one).get("/").text(), "one");
    assert_eq!(Plugin::start(two).get("/").text(), "test");
    assert_eq!(Plugin::start(three).get("/").text(), "one");
    assert_eq!(Plugin::start(four).get("/").text(), "test");
    assert_eq!(Plugin::spawned(four).start().unwrap().get("/").text(), "test");
}

#[test]
fn init_is_told_what_the_host_knows() {
    fn app(cx: Init) -> impl IntoApp {
        let facts = format!("{} {} {} {:?}", cx.name(), cx.generation(), cx.data_dir().display(), cx.previous());
        assert_eq!((host().name(), host().generation()), (cx.name(), cx.generation()));
        handler_with(facts, async |facts: String, _: Request| facts)
    }
    let plugin = Plugin::with(app).name("shop").generation(3).data_dir("/srv/shop").start().unwrap();
    assert_eq!(plugin.get("/").text(), "shop 3 /srv/shop None");
    let plugin = Plugin::with(app).data_dir("/").previous(4, b"ab").start().unwrap();
    assert_eq!(plugin.get("/").text(), "test 1 / Some((4, [97, 98]))");
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    url: String,
    #[serde(default)]
    pools: BTreeMap<String, u8>,
}

#[test]
fn a_configuration_error_names_the_key() {
    fn app(cx: Init) -> Result<impl IntoApp, BoxError> {
        let config: Config = cx.config()?;
        Ok(handler_with(config, async |config: Config, _: Request| format!("{} {:?}", config.url, config.pools)))
    }
    let start = |json: &str| Plugin::with(app).name("shop").config(json).start();
    assert_eq!(start(r#"{"url":"a","pools":{"b":1}}"#).unwrap().get("/").text(), r#"a {"b": 1}"#);
    for (json, expected) in [
        ("{}", "failed to read [plugins.shop.config]: missing field `url`"),
        ("", "failed to read [plugins.shop.config]: missing field `url`"),
        (r#"{"url":1}"#, "failed to read [plugins.shop.config]: url: invalid type: integer `1`, expected a string"),
        (
            r#"{"url":"a","pools":{"b":256}}"#,
            "failed to read [plugins.shop.config]: pools.b: invalid value: integer `256`, expected u8",
        ),
    ] {
        assert_eq!(start(json).unwrap_err(), expected);
    }
    assert!(start(r#"{"url":"a","ulr":1}"#).unwrap_err().contains("unknown field `ulr`"));
}

/// Notes in order what happens.
static ORDER: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());

fn note(what: &'static str) {
    ORDER.lock().expect("noting does not panic").push(what);
}

#[test]
fn the_end_comes_in_order() {
    fn app(cx: Init) -> impl IntoApp {
        cx.on_shutdown(async { note("registered first") });
        cx.on_shutdown(async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            note("registered last");
        });
        let shutdown = cx.shutdown();
        cx.spawn(async move {
            shutdown.wait().await;
            note("told");
            tokio::time::sleep(Duration::from_millis(20)).await;
            note("tracked work is done");
        });
        let shutdown = cx.shutdown();
        handler_with((), move |(), _: Request| async move { shutdown.has_begun().to_string() })
    }
    let plugin = Plugin::start(app);
    assert_eq!(plugin.get("/").text(), "false");
    plugin.begin_shutdown();
    assert_eq!(plugin.get("/").text(), "true", "open connections are still served");
    plugin.shut_down();
    assert_eq!(*ORDER.lock().unwrap(), ["told", "tracked work is done", "registered last", "registered first"]);
}

#[test]
fn tracked_work_that_panics_does_not_hold_the_end_up() {
    fn app(cx: Init) -> impl IntoApp {
        cx.spawn(async { panic!("boom") });
        handler_with((), async |(), _: Request| ())
    }
    Plugin::start(app).shut_down();
}

#[test]
fn background_work_begins_with_serving_and_ends_with_the_runtime() {
    static RUNS: AtomicBool = AtomicBool::new(false);
    static DROPPED: AtomicBool = AtomicBool::new(false);
    struct Noted;
    impl Drop for Noted {
        fn drop(&mut self) {
            DROPPED.store(true, Ordering::SeqCst);
        }
    }
    fn app(cx: Init) -> impl IntoApp {
        cx.spawn_when_serving(async {
            let _noted = Noted;
            RUNS.store(true, Ordering::SeqCst);
            std::future::pending::<()>().await;
        });
        handler_with((), async |(), _: Request| ())
    }
    let plugin = Plugin::with(app).start_without_serving().unwrap();
    assert_eq!(plugin.get("/").status(), 200, "a probe");
    assert!(!RUNS.load(Ordering::SeqCst));
    plugin.begin_serving();
    eventually(|| RUNS.load(Ordering::SeqCst));
    plugin.shut_down();
    eventually(|| DROPPED.load(Ordering::SeqCst));
}

#[test]
fn a_refused_plugin_leaves_nothing_running() {
    static ALIVE: Mutex<Option<Arc<()>>> = Mutex::new(None);
    async fn app(cx: Init) -> Result<impl IntoApp, BoxError> {
        let alive = ALIVE.lock().unwrap().clone();
        cx.spawn(async move {
            let _alive = alive;
            std::future::pending::<()>().await
        });
        if cx.generation() > 0 {
            return Err("no".into());
        }
        Ok(handler_with((), async |(), _: Request| ()))
    }
    let alive = Arc::new(());
    *ALIVE.lock().unwrap() = Some(alive.clone());
    assert_eq!(Plugin::with(app).start().unwrap_err(), "no");
    *ALIVE.lock().unwrap() = None;
    eventually(|| Arc::strong_count(&alive) == 1);
}

#[test]
fn tokio_works_in_handlers_and_bodies() {
    async fn all(_: Request) -> Result<Body, BoxError2> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await?;
            stream.write_all(b"over tcp").await
        });
        let mut text = String::new();
        TcpStream::connect(address).await?.read_to_string(&mut text).await?;
        server.await??;
        let blocking = tokio::task::spawn_blocking(|| "blocking").await?;
        let late = tokio::time::timeout(Duration::from_millis(1), std::future::pending::<()>()).await.is_err();
        Ok(Body::generate(async move |mut out| {
            tokio::time::sleep(Duration::from_millis(1)).await;
            out.send(format!("{text}, {blocking}, {late}")).await?;
            Ok(())
        }))
    }
    use baton_plugin_api::Failure as BoxError2;
    for plugin in [Plugin::start(all), Plugin::spawned(all).start().unwrap()] {
        assert_eq!(plugin.get("/").text(), "over tcp, blocking, true");
    }
}

#[test]
fn where_a_request_runs_is_as_the_options_say() {
    fn thread() -> String {
        std::thread::current().name().unwrap_or("none").to_owned()
    }
    assert_ne!(Plugin::start(thread).get("/").text(), "test-rt");
    assert_eq!(Plugin::spawned(thread).start().unwrap().get("/").text(), "test-rt");
}

#[test]
fn a_cancelled_request_is_dropped_where_it_runs() {
    static ALIVE: AtomicUsize = AtomicUsize::new(0);
    struct Counted;
    impl Drop for Counted {
        fn drop(&mut self) {
            assert!(tokio::runtime::Handle::try_current().is_ok());
            ALIVE.fetch_sub(1, Ordering::SeqCst);
        }
    }
    async fn wait() -> &'static str {
        ALIVE.fetch_add(1, Ordering::SeqCst);
        let _counted = Counted;
        tokio::time::sleep(Duration::from_secs(60)).await;
        "late"
    }
    for plugin in [Plugin::start(wait), Plugin::spawned(wait).start().unwrap()] {
        block_on(async {
            let mut call = Box::pin(plugin.call(request("GET", "/", "")));
            std::future::poll_fn(|cx| {
                assert!(call.as_mut().poll(cx).is_pending());
                if ALIVE.load(Ordering::SeqCst) == 1 {
                    std::task::Poll::Ready(())
                } else {
                    cx.waker().wake_by_ref();
                    std::task::Poll::Pending
                }
            })
            .await;
            drop(call);
        });
        eventually(|| ALIVE.load(Ordering::SeqCst) == 0);
        assert!(plugin.logs().is_empty());
    }
}

#[test]
fn task_of_a_cancelled_request_learns_that_its_client_has_closed() {
    static CLOSED: AtomicUsize = AtomicUsize::new(0);
    async fn watched(request: Request) -> &'static str {
        let closed = request.client_closed();
        tokio::spawn(async move {
            closed.await;
            CLOSED.fetch_add(1, Ordering::SeqCst);
        });
        if request.path() == "/wait" {
            std::future::pending::<()>().await;
        }
        "answered"
    }
    let plugin = Plugin::start(watched);
    assert_eq!(plugin.get("/").text(), "answered");
    // Its connection ends with the call, and only once.
    eventually(|| CLOSED.load(Ordering::SeqCst) == 1);
    block_on(async {
        let mut call = Box::pin(plugin.call(request("GET", "/wait", "")));
        std::future::poll_fn(|cx| {
            assert!(call.as_mut().poll(cx).is_pending());
            std::task::Poll::Ready(())
        })
        .await;
        assert_eq!(CLOSED.load(Ordering::SeqCst), 1);
        drop(call);
    });
    eventually(|| CLOSED.load(Ordering::SeqCst) == 2);
}

#[test]
fn control_is_granted_refused_or_absent() {
    async fn control(request: Request) -> Result<StatusCode, ControlError> {
        match request.path() {
            "/reload" => request.host().reload()?,
            "/restart" => host().restart()?,
            _ => request.host().shutdown()?,
        }
        Ok(StatusCode::ACCEPTED)
    }
    let plugin = Plugin::start(control);
    for target in ["/reload", "/restart", "/shutdown"] {
        assert_eq!(plugin.get(target).status(), 202);
    }
    assert_eq!(plugin.host_requests(), ["reload", "restart", "shutdown"]);
    assert_eq!(Plugin::with(control).deny_control().start().unwrap().get("/reload").status(), 403);
    assert_eq!(Plugin::with(control).without_control().start().unwrap().get("/reload").status(), 501);
}

#[test]
#[should_panic(expected = "host() is for code that runs in a plugin")]
fn there_is_no_host_outside_of_a_plugin() {
    host();
}

#[test]
fn state_is_absent_unless_registered() {
    fn without() -> impl IntoApp {
        handler_with((), async |(), _: Request| ())
    }
    fn with(cx: Init) -> impl IntoApp {
        cx.on_save(1, || b"first".to_vec());
        cx.on_save(2, || b"second".to_vec());
        handler_with((), async |(), _: Request| ())
    }
    assert_eq!(Plugin::start(without).save(), None);
    let plugin = Plugin::start(with);
    for _ in 0..2 {
        assert_eq!(plugin.save().unwrap(), (2, "second".into()));
    }
}

#[tokio::test]
async fn a_test_may_have_a_runtime_of_its_own() {
    async fn hello() -> &'static str {
        tokio::time::sleep(Duration::from_millis(1)).await;
        "hello"
    }
    let plugin = Plugin::start(hello);
    let mut body = plugin.call(request("GET", "/", "")).await.into_body();
    assert_eq!(body.data().await.unwrap().unwrap(), "hello");
}

#[test]
fn signals_reach_every_listener_in_order_until_the_shutdown() {
    static HEARD: Mutex<Vec<(u8, Signal)>> = Mutex::new(Vec::new());
    static ENDED: AtomicUsize = AtomicUsize::new(0);
    fn app(cx: Init) -> impl IntoApp {
        for listener in [1, 2] {
            let mut signals = cx.signals();
            cx.spawn(async move {
                while let Some(signal) = signals.recv().await {
                    HEARD.lock().unwrap().push((listener, signal));
                }
                assert_eq!(signals.missed(), 0);
                ENDED.fetch_add(1, Ordering::SeqCst);
            });
        }
        handler_with((), async |(), _: Request| "ok")
    }
    let plugin = Plugin::start(app);
    assert!(plugin.signal(Signal::Usr1) && plugin.signal(Signal::Tstp));
    let heard = |listener: u8| -> Vec<Signal> {
        HEARD.lock().unwrap().iter().filter(|(by, _)| *by == listener).map(|(_, signal)| *signal).collect()
    };
    eventually(|| [1, 2].into_iter().all(|listener| heard(listener) == [Signal::Usr1, Signal::Tstp]));
    assert_eq!(ENDED.load(Ordering::SeqCst), 0);
    plugin.begin_shutdown();
    eventually(|| ENDED.load(Ordering::SeqCst) == 2);
    assert!(!plugin.signal(Signal::Usr1), "nobody listens any more");
}

#[test]
fn signals_that_nobody_takes_in_time_are_counted_and_the_latest_are_kept() {
    static SIGNALS: Mutex<Option<Signals>> = Mutex::new(None);
    fn app(cx: Init) -> impl IntoApp {
        *SIGNALS.lock().unwrap() = Some(cx.signals());
        handler_with((), async |(), _: Request| "ok")
    }
    let plugin = Plugin::start(app);
    for _ in 0..20 {
        assert!(plugin.signal(Signal::Usr1));
    }
    assert!(plugin.signal(Signal::Tstp));
    plugin.begin_shutdown();
    let mut signals = SIGNALS.lock().unwrap().take().unwrap();
    let mut heard = Vec::new();
    while let Some(signal) = block_on(signals.recv()) {
        heard.push(signal);
    }
    assert_eq!((heard.len(), heard.last(), signals.missed()), (16, Some(&Signal::Tstp), 5));
}

#[test]
fn a_signal_without_a_listener_is_answered_so() {
    fn app() -> impl IntoApp {
        handler_with((), async |(), _: Request| "ok")
    }
    assert!(!Plugin::start(app).signal(Signal::Usr1));
}

/// Says how often it had the right, which it keeps until it retires.
fn alone(cx: Init) -> impl IntoApp {
    static HOLDERS: AtomicUsize = AtomicUsize::new(0);
    let turns = Arc::new(AtomicUsize::new(0));
    cx.spawn({
        let turns = turns.clone();
        async move {
            let Some(_alone) = cx.exclusive("turn").await.expect("the directory is there") else { return };
            assert_eq!(HOLDERS.fetch_add(1, Ordering::SeqCst), 0, "two at once");
            turns.fetch_add(1, Ordering::SeqCst);
            cx.shutdown().wait().await;
            HOLDERS.fetch_sub(1, Ordering::SeqCst);
        }
    });
    handler_with(turns, async |turns: Arc<AtomicUsize>, _: Request| turns.load(Ordering::SeqCst).to_string())
}

#[test]
fn what_is_exclusive_is_one_generations_at_a_time_and_only_of_one_that_serves() {
    let dir = tempfile::tempdir().unwrap();
    let start = || Plugin::with(alone).data_dir(dir.path());
    let refused = start().start_without_serving().unwrap();
    let first = start().start().unwrap();
    eventually(|| first.get("/").text() == "1");
    let second = start().start().unwrap();
    let third = start().start().unwrap();
    // Retires before it had a turn: its end does not wait for one, and it takes none from the others.
    second.begin_shutdown();
    assert_eq!((second.get("/").text(), third.get("/").text()), ("0", "0"));
    second.shut_down();
    first.begin_shutdown();
    eventually(|| third.get("/").text() == "1");
    assert_eq!(refused.get("/").text(), "0");
}

#[test]
fn what_is_exclusive_has_a_name_and_a_place() {
    fn app(cx: Init) -> impl IntoApp {
        handler_with(cx, async |cx: Init, request: Request| {
            let granted = cx.exclusive(request.header("x-name").unwrap_or_default()).await;
            granted.map_or_else(|error| error.kind().to_string(), |granted| granted.is_some().to_string())
        })
    }
    let dir = tempfile::tempdir().unwrap();
    let plugin = Plugin::with(app).data_dir(dir.path()).start().unwrap();
    let ask = |plugin: &Plugin, name: &str| {
        let mut request = request("GET", "/", "");
        request.headers_mut().insert("x-name", name.parse().unwrap());
        plugin.send(request).text().to_owned()
    };
    assert_eq!(ask(&plugin, "a"), "true");
    for name in ["", "../a", "/a", "a\\b"] {
        assert_eq!(ask(&plugin, name), "invalid input parameter", "{name}");
    }
    let plugin = Plugin::with(app).data_dir(dir.path().join("nowhere")).start().unwrap();
    assert_eq!(ask(&plugin, "a"), "entity not found");
}
