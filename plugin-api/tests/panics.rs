//! A panic anywhere in a plugin costs the request in which it happens, and is told to the host; nothing else.

use baton_plugin_api::testing::{Plugin, block_on, eventually, request};
use baton_plugin_api::{Body, BoxError, Init, IntoApp, Request, Response, handler_with, tokio};

/// The plugin answers 500 to `target`, tells the host why, and serves on.
#[track_caller]
fn check(plugin: &Plugin, target: &str) {
    let before = plugin.logs().len();
    assert_eq!(plugin.get(target).status(), 500, "{target}");
    let logs = plugin.logs();
    let panic = &logs[before];
    assert!(panic.panic && panic.level == 1);
    assert!(panic.message.starts_with("panicked at plugin-api/tests/panics.rs:"), "{}", panic.message);
    assert!(panic.message.ends_with(": boom"), "{}", panic.message);
    assert!(panic.request_id > 0, "the request is known");
    assert_eq!(plugin.get("/ok").text(), "ok");
}

async fn handler(request: Request) -> Result<&'static str, BadResponse> {
    match request.path() {
        "/first" => panic!("boom"),
        "/later" => {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            panic!("{}", String::from("boom"))
        }
        "/response" => Err(BadResponse),
        "/drop" => {
            let _bomb = Bomb;
            Ok("dropped in the poll")
        }
        _ => Ok("ok"),
    }
}

struct BadResponse;

impl baton_plugin_api::IntoResponse for BadResponse {
    fn into_response(self) -> Response {
        panic!("boom")
    }
}

struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("boom")
    }
}

#[test]
fn a_panic_in_a_handler_is_a_500() {
    for plugin in [Plugin::start(handler), Plugin::spawned(handler).start().unwrap()] {
        for target in ["/first", "/later", "/response", "/drop"] {
            check(&plugin, target);
        }
    }
}

#[test]
fn a_panic_while_the_future_is_made_is_a_500() {
    fn app() -> impl IntoApp {
        handler_with((), |(), request: Request| {
            assert!(request.path() == "/ok", "boom");
            async { "ok" }
        })
    }
    let plugin = Plugin::start(app);
    check(&plugin, "/first");
}

#[test]
fn a_panic_in_a_cancelled_request_is_only_told() {
    async fn wait(request: Request) -> &'static str {
        if request.path() == "/ok" {
            return "ok";
        }
        let _bomb = Bomb;
        std::future::pending().await
    }
    let plugin = Plugin::start(wait);
    block_on(async {
        let mut call = Box::pin(plugin.call(request("GET", "/", "")));
        std::future::poll_fn(|cx| {
            assert!(call.as_mut().poll(cx).is_pending());
            std::task::Poll::Ready(())
        })
        .await;
    });
    assert!(plugin.logs()[0].message.ends_with("boom"));
    assert_eq!(plugin.get("/ok").text(), "ok");
}

#[test]
fn a_panic_in_a_body_breaks_it_off() {
    async fn body(request: Request) -> Body {
        let path = request.path().to_owned();
        Body::generate(async move |mut out| {
            out.send("begun").await?;
            let _bomb = (path == "/drop").then(|| Bomb);
            if path == "/poll" {
                panic!("boom");
            }
            out.send("more").await?;
            Ok(())
        })
    }
    let plugin = Plugin::start(body);
    let answer = plugin.get("/poll");
    assert_eq!((answer.status().as_u16(), answer.bytes().as_ref()), (200, &b"begun"[..]));
    assert!(answer.error().is_some());

    block_on(async {
        let mut body = plugin.call(request("GET", "/drop", "")).await.into_body();
        body.data().await.unwrap().unwrap();
        body.data().await.unwrap().unwrap();
        drop(body);
    });
    let logs = plugin.logs();
    assert_eq!(logs.iter().map(|log| (log.panic, log.request_id)).collect::<Vec<_>>(), [(true, 1), (true, 2)]);
    assert_eq!(plugin.get("/").text(), "begunmore");
}

#[test]
fn a_panic_in_a_spawned_task_is_told() {
    async fn spawn() -> &'static str {
        tokio::spawn(async { panic!("boom") });
        "ok"
    }
    let plugin = Plugin::start(spawn);
    assert_eq!(plugin.get("/").text(), "ok");
    eventually(|| !plugin.logs().is_empty());
    let log = &plugin.logs()[0];
    assert!(log.panic && log.message.ends_with("boom"));
    assert!(log.fields.iter().any(|(name, value)| name == "thread" && value == "test-rt"), "{:?}", log.fields);
}

#[test]
fn an_init_that_fails_says_why_in_one_line() {
    fn panics(_: Init) -> Result<impl IntoApp, BoxError> {
        if true {
            panic!("boom");
        }
        Ok(handler_with((), async |(), _: Request| ()))
    }
    async fn fails() -> Result<impl IntoApp, BoxError> {
        tokio::task::yield_now().await;
        let port: u16 = "x".parse()?;
        Ok(handler_with(port, async |_: u16, _: Request| ()))
    }
    let error = Plugin::with(panics).start().unwrap_err();
    assert!(error.starts_with("init panicked: plugin-api/tests/panics.rs:") && error.ends_with(": boom"), "{error}");
    assert_eq!(Plugin::with(fails).start().unwrap_err(), "invalid digit found in string");
}

#[test]
fn a_panic_in_what_runs_at_the_end_leaves_the_rest() {
    use std::sync::atomic::{AtomicBool, Ordering};
    static CLOSED: AtomicBool = AtomicBool::new(false);
    fn app(cx: Init) -> impl IntoApp {
        cx.on_shutdown(async { CLOSED.store(true, Ordering::SeqCst) });
        cx.on_shutdown(async { panic!("boom") });
        cx.on_save(1, || panic!("boom"));
        handler_with((), async |(), _: Request| ())
    }
    let plugin = Plugin::start(app);
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| plugin.save())).is_err());
    plugin.shut_down();
    assert!(CLOSED.load(Ordering::SeqCst));
}
