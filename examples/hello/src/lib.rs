//! cargo run --release -- dev examples/hello
//!
//! One function that answers every request. `HELLO_VERSION=2 cargo build` makes another version of it, to swap in.
//!
//! `POST /reload`, `/restart` and `/shutdown` do what an operator can do, for clients that send the token of the configuration:
//!
//! ```toml
//! [plugins.hello.config]
//! control_token = "${HELLO_TOKEN}"
//! ```
//!
//! The address of a client is no protection. Every page in a browser on this machine can send a POST to `localhost`, and with
//! a DNS name of its own that points here (DNS rebinding) it is even of the same origin. No page knows the token.

use std::time::Duration;

use baton_plugin_api::tokio::time::sleep;
use baton_plugin_api::{
    Body, BoxError, Init, IntoApp, IntoResponse, Request, Response, StatusCode, handler_with, plugin,
};
use serde::Deserialize;

const VERSION: &str = match option_env!("HELLO_VERSION") {
    Some(version) => version,
    None => env!("CARGO_PKG_VERSION"),
};
/// A shorter token could be guessed.
const SHORTEST_TOKEN: usize = 16;

/// `[plugins.hello.config]`
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    /// Allows the control verbs to clients that send `Authorization: Bearer TOKEN`. Absent for nobody.
    control_token: Option<String>,
}

#[plugin]
fn hello(cx: Init) -> Result<impl IntoApp, BoxError> {
    let config: &Config = Box::leak(Box::new(cx.config()?));
    if config.control_token.as_ref().is_some_and(|token| token.len() < SHORTEST_TOKEN) {
        return Err(format!("control_token has fewer than {SHORTEST_TOKEN} characters").into());
    }
    Ok(handler_with(config, answer))
}

async fn answer(config: &'static Config, request: Request) -> Response {
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
        ("POST", verb @ ("/reload" | "/restart" | "/shutdown")) => control(config, &request, verb),
        _ => (StatusCode::NOT_FOUND, "not found\n").into_response(),
    }
}

/// Reloads, restarts or shuts down the server, if the request has the token.
fn control(config: &Config, request: &Request, verb: &str) -> Response {
    let Some(token) = &config.control_token else {
        return (StatusCode::FORBIDDEN, "set control_token in [plugins.hello.config] to allow this\n").into_response();
    };
    let sent = request.header("authorization").and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
    if !is_equal(sent.as_bytes(), token.as_bytes()) {
        let refusal = (StatusCode::UNAUTHORIZED, "send `Authorization: Bearer TOKEN` with the control_token\n");
        return ([("www-authenticate", "Bearer")], refusal).into_response();
    }
    let host = request.host();
    let asked = match verb {
        "/reload" => host.reload(),
        "/restart" => host.restart(),
        _ => host.shutdown(),
    };
    // The response is sent before the operation ends this generation.
    asked.map(|()| (StatusCode::ACCEPTED, format!("asked by ospid:{}\n", std::process::id()))).into_response()
}

/// Compares in a time that does not depend on where the difference is.
fn is_equal(left: &[u8], right: &[u8]) -> bool {
    left.len() == right.len() && left.iter().zip(right).fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
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

    use baton_plugin_api::testing::{Answer, Builder, Plugin, block_on, request};

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

    const TOKEN: &str = "0123456789abcdef";
    const VERBS: [&str; 3] = ["reload", "restart", "shutdown"];

    fn with_token() -> Builder {
        Plugin::with(hello).config(format!(r#"{{"control_token":"{TOKEN}"}}"#))
    }

    fn control(plugin: &Plugin, verb: &str, headers: &[(&'static str, &str)]) -> Answer {
        let mut request = request("POST", &format!("/{verb}"), "");
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        plugin.send(request)
    }

    #[test]
    fn control_verbs_reach_the_server_with_the_token() {
        let plugin = with_token().start().unwrap();
        let bearer = format!("Bearer {TOKEN}");
        for verb in VERBS {
            let answer = control(&plugin, verb, &[("authorization", &bearer)]);
            assert_eq!(
                (answer.status(), answer.text()),
                (StatusCode::ACCEPTED, &*format!("asked by ospid:{}\n", pid()))
            );
            assert_eq!(plugin.get(&format!("/{verb}")).status(), StatusCode::NOT_FOUND, "a link does nothing");
        }
        assert_eq!(plugin.host_requests(), VERBS);
    }

    #[test]
    fn control_verbs_are_denied_without_the_token() {
        let plugin = with_token().start().unwrap();
        let shorter = format!("Bearer {}", &TOKEN[1..]);
        for verb in VERBS {
            for headers in [
                // What a page of another origin can send without a preflight, and what one with a rebound name can.
                &[("origin", "http://evil.example"), ("content-type", "text/plain")][..],
                &[("host", "evil.example:8080"), ("origin", "http://evil.example:8080")],
                &[("authorization", "Bearer ")],
                &[("authorization", TOKEN)],
                &[("authorization", &shorter)],
            ] {
                assert_eq!(control(&plugin, verb, headers).status(), StatusCode::UNAUTHORIZED, "{verb} {headers:?}");
            }
        }
        assert!(plugin.host_requests().is_empty());
    }

    #[test]
    fn control_verbs_are_denied_if_no_token_is_configured() {
        let plugin = Plugin::start(hello);
        for verb in VERBS {
            let answer = control(&plugin, verb, &[("authorization", "Bearer ")]);
            assert_eq!(answer.status(), StatusCode::FORBIDDEN);
            assert!(answer.text().contains("control_token"), "{}", answer.text());
        }
        assert!(plugin.host_requests().is_empty());
    }

    #[test]
    fn a_token_that_can_be_guessed_is_refused() {
        let error = Plugin::with(hello).config(r#"{"control_token":"secret"}"#).start().unwrap_err();
        assert!(error.contains("control_token"), "{error}");
    }

    #[test]
    fn a_server_that_allows_no_control_is_reported() {
        let plugin = with_token().deny_control().start().unwrap();
        let bearer = format!("Bearer {TOKEN}");
        let answer = control(&plugin, "shutdown", &[("authorization", &bearer)]);
        assert_eq!(answer.status(), StatusCode::FORBIDDEN);
        assert!(answer.text().contains("allow_control"), "{}", answer.text());
    }

    #[test]
    fn it_echoes_byte_for_byte() {
        let body: Vec<u8> = (0..3_000_000u32).map(|number| (number % 251) as u8).collect();
        assert_eq!(Plugin::start(hello).post("/echo", body.clone()).bytes(), &body);
    }
}
