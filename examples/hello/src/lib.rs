//! cargo run --release -- dev examples/hello
//!
//! One function that answers every request. `HELLO_VERSION=2 cargo build` makes another version of it, to swap in.

use std::time::Duration;

use baton_plugin_api::tokio::time::sleep;
use baton_plugin_api::{Body, IntoResponse, Request, Response, StatusCode, handler};

const VERSION: &str = match option_env!("HELLO_VERSION") {
    Some(version) => version,
    None => env!("CARGO_PKG_VERSION"),
};

#[handler]
async fn hello(request: Request) -> Response {
    match (request.method().as_str(), request.path()) {
        ("GET", "/") => match seconds(&request, "sleep") {
            None => format!("hello from hello {VERSION}\n").into_response(),
            Some(time) => {
                sleep(time).await;
                format!("ospid:{}\n", std::process::id()).into_response()
            }
        },
        ("GET", "/pid") => std::process::id().to_string().into_response(),
        ("GET", "/sleep") => pid_twice(seconds(&request, "secs").or(milliseconds(&request)).unwrap_or_default()),
        ("POST", "/echo") => request.into_body().into_response(),
        ("POST", verb @ ("/reload" | "/restart" | "/shutdown")) => control(&request, verb),
        _ => (StatusCode::NOT_FOUND, "not found\n").into_response(),
    }
}

/// What an operator can do, a handler can: for clients of this machine.
fn control(request: &Request, verb: &str) -> Response {
    // A socket file's client has no address, and is of this machine.
    if request.peer_addr().is_some_and(|peer| !peer.ip().is_loopback()) {
        return (StatusCode::FORBIDDEN, "not from there\n").into_response();
    }
    let host = request.host();
    let asked = match verb {
        "/reload" => host.reload(),
        "/restart" => host.restart(),
        _ => host.shutdown(),
    };
    // This answer is on its way before anything comes of it.
    asked.map(|()| (StatusCode::ACCEPTED, format!("asked by ospid:{}\n", std::process::id()))).into_response()
}

/// The pid at once, and again after `time`: the second is that of the first, however often the code is swapped meanwhile.
fn pid_twice(time: Duration) -> Response {
    let pid = format!("{}\n", std::process::id());
    Body::generate(async move |mut out| {
        out.send(pid.clone()).await?;
        sleep(time).await;
        out.send(pid).await?;
        Ok(())
    })
    .into_response()
}

fn seconds(request: &Request, name: &str) -> Option<Duration> {
    parameter(request, name).and_then(|value| Duration::try_from_secs_f64(value.parse().ok()?).ok())
}

fn milliseconds(request: &Request) -> Option<Duration> {
    parameter(request, "ms").and_then(|value| value.parse().ok()).map(Duration::from_millis)
}

fn parameter<'a>(request: &'a Request, name: &str) -> Option<&'a str> {
    let pairs = request.query()?.split('&').filter_map(|pair| pair.split_once('='));
    pairs.filter(|(key, _)| *key == name).map(|(_, value)| value).next()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use baton_plugin_api::testing::{Plugin, block_on, request};

    use super::*;

    fn pid() -> String {
        std::process::id().to_string()
    }

    #[test]
    fn it_greets_with_its_version() {
        let plugin = Plugin::start(hello);
        assert_eq!(plugin.get("/").text(), format!("hello from hello {VERSION}\n"));
        assert_eq!(plugin.get("/pid").text(), pid());
        assert_eq!(plugin.get("/nowhere").status(), StatusCode::NOT_FOUND);
    }

    #[test]
    fn it_answers_late_with_the_process_that_it_began_in() {
        let (plugin, start) = (Plugin::start(hello), Instant::now());
        assert_eq!(plugin.get("/?sleep=0.05").text(), format!("ospid:{}\n", pid()));
        assert!(start.elapsed() >= Duration::from_millis(50));
    }

    #[test]
    fn the_first_pid_is_sent_before_the_sleep() {
        let (plugin, start) = (Plugin::start(hello), Instant::now());
        block_on(async {
            let mut body = plugin.call(request("GET", "/sleep?ms=100", "")).await.into_body();
            assert_eq!(body.data().await.unwrap().unwrap(), format!("{}\n", pid()));
            assert!(start.elapsed() < Duration::from_millis(100));
            assert_eq!(body.data().await.unwrap().unwrap(), format!("{}\n", pid()));
            assert!(start.elapsed() >= Duration::from_millis(100));
            assert!(body.data().await.is_none());
        });
    }

    #[test]
    fn it_asks_the_server_for_what_an_operator_could() {
        let plugin = Plugin::start(hello);
        for verb in ["reload", "restart", "shutdown"] {
            let answer = plugin.post(&format!("/{verb}"), "");
            assert_eq!(
                (answer.status(), answer.text()),
                (StatusCode::ACCEPTED, &*format!("asked by ospid:{}\n", pid()))
            );
            assert_eq!(plugin.get(&format!("/{verb}")).status(), StatusCode::NOT_FOUND, "a link does nothing");
        }
        assert_eq!(plugin.host_requests(), ["reload", "restart", "shutdown"]);
    }

    #[test]
    fn it_says_that_it_may_not() {
        let plugin = Plugin::with(hello).deny_control().start().unwrap();
        let answer = plugin.post("/shutdown", "");
        assert_eq!(answer.status(), StatusCode::FORBIDDEN);
        assert!(answer.text().contains("allow_control"), "{}", answer.text());
    }

    #[test]
    fn it_echoes_byte_for_byte() {
        let body: Vec<u8> = (0..3_000_000u32).map(|number| (number % 251) as u8).collect();
        assert_eq!(Plugin::start(hello).post("/echo", body.clone()).bytes(), &body);
    }
}
