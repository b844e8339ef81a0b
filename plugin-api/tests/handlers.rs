//! What a native handler is given and what it may answer.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::borrow::Cow;
use std::convert::Infallible;

use baton_plugin_api::testing::{Answer, Plugin, request};
use baton_plugin_api::{
    Body, Bytes, Failure, HeaderMap, HeaderValue, IntoApp, IntoResponse, Json, Method, Request, RequestInfo, Response,
    StatusCode, handler_with, header, http,
};

fn answer<T: IntoResponse + Send + 'static>(value: fn() -> T) -> Answer {
    Plugin::start_with_state(value).get("/")
}

/// Handlers without a capture have no room for a value: the state of a `handler_with` has.
trait StartWithState {
    fn start_with_state<T: IntoResponse + Send + 'static>(value: fn() -> T) -> Plugin;
}

impl StartWithState for Plugin {
    fn start_with_state<T: IntoResponse + Send + 'static>(value: fn() -> T) -> Plugin {
        use std::sync::Mutex;
        static NEXT: Mutex<Option<Box<dyn std::any::Any + Send>>> = Mutex::new(None);
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _one = ONE_AT_A_TIME.lock().unwrap();
        *NEXT.lock().unwrap() = Some(Box::new(value));
        fn app<T: IntoResponse + Send + 'static>() -> impl IntoApp {
            let value: fn() -> T = *NEXT.lock().unwrap().take().unwrap().downcast().unwrap();
            handler_with(value, |value: fn() -> T, _: Request| async move { value() })
        }
        Plugin::start(app::<T>)
    }
}

#[test]
fn every_form_of_a_handler_is_served() {
    fn sync_without() -> &'static str {
        "sync, without"
    }
    fn sync_with(request: Request) -> String {
        format!("sync, {}", request.path())
    }
    async fn async_without() -> &'static str {
        "async, without"
    }
    async fn async_with(request: Request) -> Result<String, Infallible> {
        Ok(format!("async, {}", request.path()))
    }
    assert_eq!(Plugin::start(sync_without).get("/").text(), "sync, without");
    assert_eq!(Plugin::start(sync_with).get("/a").text(), "sync, /a");
    assert_eq!(Plugin::start(async_without).get("/").text(), "async, without");
    assert_eq!(Plugin::start(async_with).get("/b").text(), "async, /b");
    assert_eq!(Plugin::spawned(async_with).start().unwrap().get("/c").text(), "async, /c");
}

#[test]
fn absolute_target_without_a_path_has_the_path_slash() {
    fn parts(request: Request) -> String {
        format!("{} {} {:?}", request.uri(), request.path(), request.query())
    }
    let plugin = Plugin::start(parts);
    assert_eq!(plugin.get("http://a.example?x=1").text(), "http://a.example/?x=1 / Some(\"x=1\")");
    assert_eq!(plugin.get("http://a.example").text(), "http://a.example/ / None");
}

#[test]
fn every_kind_of_result_is_a_response() {
    let text = "text/plain; charset=utf-8";
    let bytes = "application/octet-stream";
    for (answer, status, content_type, body) in [
        (answer(|| "a"), 200, text, "a"),
        (answer(|| String::from("b")), 200, text, "b"),
        (answer(|| Cow::Borrowed("c")), 200, text, "c"),
        (answer(|| Cow::<'static, str>::Owned("d".into())), 200, text, "d"),
        (answer(|| b"e"), 200, bytes, "e"),
        (answer(|| vec![b'f']), 200, bytes, "f"),
        (answer(|| Bytes::from_static(b"g")), 200, bytes, "g"),
        (answer(|| ()), 200, "", ""),
        (answer(|| Body::full("h")), 200, "", "h"),
        (answer(|| StatusCode::NO_CONTENT), 204, "", ""),
        (answer(|| (StatusCode::CREATED, "i")), 201, text, "i"),
        (answer(|| ([("content-type", "text/html")], "j")), 200, "text/html", "j"),
        (answer(|| (StatusCode::ACCEPTED, [(header::CONTENT_TYPE, "a/b")], "k")), 202, "a/b", "k"),
        (answer(|| Json([1, 2])), 200, "application/json", "[1,2]"),
        (answer(|| http::Response::builder().status(203).body(Body::full("l")).unwrap()), 203, "", "l"),
        (answer(|| Err::<(), _>((StatusCode::CONFLICT, "m"))), 409, text, "m"),
    ] {
        assert_eq!(answer.status(), status, "{body}");
        assert_eq!(answer.header("content-type"), content_type, "{body}");
        assert_eq!(answer.text(), body);
    }
}

#[test]
fn repeated_fields_of_a_header_map_all_arrive() {
    async fn cookies() -> impl IntoResponse {
        let mut headers = HeaderMap::new();
        for number in 0..30 {
            headers.append("set-cookie", HeaderValue::from_str(&format!("c{number}=1")).unwrap());
        }
        (StatusCode::OK, headers, "x")
    }
    let answer = Plugin::start(cookies).get("/");
    let cookies: Vec<_> = answer.headers().get_all("set-cookie").iter().collect();
    assert_eq!(cookies.len(), 30);
    assert_eq!((cookies[0], cookies[29]), (&HeaderValue::from_static("c0=1"), &HeaderValue::from_static("c29=1")));
}

#[test]
fn a_field_that_http_forbids_is_a_500_and_logged() {
    async fn bad() -> impl IntoResponse {
        (StatusCode::OK, [("x-bad", "line\nbreak")], "secret")
    }
    let plugin = Plugin::start(bad);
    let answer = plugin.get("/");
    assert_eq!((answer.status(), answer.text()), (StatusCode::INTERNAL_SERVER_ERROR, "internal server error\n"));
    assert!(plugin.logs()[0].message.contains("header field"));
}

#[test]
fn a_failure_is_logged_with_its_causes_and_not_told() {
    #[derive(Debug)]
    struct Outer(std::num::ParseIntError);
    impl std::fmt::Display for Outer {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("failed to read the port")
        }
    }
    impl std::error::Error for Outer {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            Some(&self.0)
        }
    }
    async fn port() -> Result<String, Failure> {
        let port: u16 = "x".parse().map_err(Outer)?;
        Ok(port.to_string())
    }
    let plugin = Plugin::start(port);
    assert_eq!(plugin.get("/").text(), "internal server error\n");
    let log = &plugin.logs()[0];
    assert_eq!(log.message, "the handler failed: failed to read the port: invalid digit found in string");
    assert_eq!((log.level, log.request_id), (1, 1));
}

#[test]
fn the_head_is_read_as_it_was_sent() {
    async fn look(mut request: Request) -> String {
        assert_eq!(request.method(), Method::from_bytes(b"BREW").unwrap());
        assert_eq!((request.path(), request.query()), ("/pot", Some("a=1?b")));
        assert_eq!(request.uri(), "http://example.org/pot?a=1?b");
        assert_eq!(request.version(), http::Version::HTTP_11);
        assert_eq!(request.header("X-One"), Some("1"));
        assert_eq!(request.header(header::HOST), Some("example.org"));
        assert_eq!(request.header("x-none"), None);
        assert_eq!(request.header("x-latin"), None, "not UTF-8");
        assert_eq!(request.headers()["x-latin"].as_bytes(), b"\xe9");
        assert_eq!(request.header_all("x-two").count(), 2);
        assert_eq!(request.peer_addr().unwrap().to_string(), "127.0.0.1:40000");
        assert_eq!(request.local_addr().unwrap().to_string(), "127.0.0.1:8080");
        assert_eq!((request.server(), request.prefix(), request.tls()), ("test", "", None));
        assert_eq!(request.original_target(), "/pot?a=1?b");
        assert_eq!((request.host().name(), request.host().generation()), ("pots", 7));
        assert!(!request.shutdown().has_begun());
        request.extensions_mut().insert(5_u8);
        assert!(format!("{request:?}").contains("BREW"));
        let id = request.request_id();

        let request = request.into_http();
        assert_eq!(request.method(), "BREW");
        assert_eq!(request.uri(), "http://example.org/pot?a=1?b");
        assert_eq!(request.headers().len(), 5);
        assert_eq!(request.extensions().get(), Some(&5_u8));
        let info = request.extensions().get::<RequestInfo>().unwrap();
        assert_eq!(info.request_id(), id);
        format!("{id}")
    }
    let plugin = Plugin::with(look).name("pots").generation(7).start().unwrap();
    for id in 1..3 {
        let mut request = request("BREW", "http://example.org/pot?a=1?b", "");
        for (name, value) in
            [("host", &b"example.org"[..]), ("x-one", b"1"), ("x-two", b"2"), ("x-two", b"3"), ("x-latin", b"\xe9")]
        {
            request.headers_mut().append(name, HeaderValue::from_bytes(value).unwrap());
        }
        assert_eq!(plugin.send(request).text(), id.to_string());
    }
}

#[test]
fn many_and_sensitive_fields_cross() {
    async fn count(request: Request) -> String {
        let sensitive = request.headers().values().filter(|value| value.is_sensitive()).count();
        format!("{} {sensitive}", request.headers().len())
    }
    let mut request = request("GET", "/", "");
    for number in 0..100 {
        let mut value = HeaderValue::from(number);
        value.set_sensitive(number % 10 == 0);
        request.headers_mut().insert(http::HeaderName::from_bytes(format!("x-{number}").as_bytes()).unwrap(), value);
    }
    assert_eq!(Plugin::start(count).send(request).text(), "100 10");
}

#[test]
fn a_borrow_of_the_request_may_cross_an_await() {
    async fn late(request: Request) -> String {
        let name = request.header("x-name").unwrap_or("nobody");
        baton_plugin_api::tokio::task::yield_now().await;
        name.to_owned()
    }
    assert_eq!(Plugin::start(late).get("/").text(), "nobody");
}

#[test]
fn a_response_of_the_http_crate_is_ours() {
    fn plain() -> Response {
        Response::new(Body::full("plain"))
    }
    assert_eq!(Plugin::start(plain).get("/").text(), "plain");
}
