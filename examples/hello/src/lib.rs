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
        _ => (StatusCode::NOT_FOUND, "not found\n").into_response(),
    }
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
    fn it_echoes_byte_for_byte() {
        let body: Vec<u8> = (0..3_000_000u32).map(|number| (number % 251) as u8).collect();
        assert_eq!(Plugin::start(hello).post("/echo", body.clone()).bytes(), &body);
    }
}
