//! cargo run --release -- dev examples/axum-app
//!
//! An ordinary axum application: state, JSON, a background task, a timer, a stream. Its notes outlive a reload, handed on
//! by `on_save`; its event stream ends when a newer version takes over, so that the client connects to that.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{Path, State};
use axum::routing::get;
use axum::{Json, Router};
use baton_plugin_api::tokio::time::{interval, sleep};
use baton_plugin_api::{Body, BoxError, Init, RequestInfo, Response, Shutdown, StatusCode, plugin, tracing};
use serde::{Deserialize, Serialize};

/// `[plugins.axum-app.config]`
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    greeting: String,
    beat_ms: u64,
}

impl Default for Config {
    fn default() -> Config {
        Config { greeting: "hello".to_owned(), beat_ms: 100 }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Note {
    text: String,
}

struct App {
    config: Config,
    notes: Mutex<Vec<Note>>,
    beats: AtomicU64,
}

impl App {
    fn notes(&self) -> std::sync::MutexGuard<'_, Vec<Note>> {
        // A list of notes is whole at any time.
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The format of what `on_save` hands on. Count it up when it changes.
const STATE_VERSION: u32 = 1;

#[plugin]
async fn app(cx: Init) -> Result<Router, BoxError> {
    let notes = match cx.previous() {
        Some((STATE_VERSION, state)) => serde_json::from_slice(state)?,
        _ => Vec::new(),
    };
    let app = Arc::new(App { config: cx.config()?, notes: Mutex::new(notes), beats: AtomicU64::new(0) });
    tracing::info!(notes = app.notes().len(), "starting");

    cx.spawn_when_serving(beat(app.clone(), cx.shutdown()));
    cx.on_save(STATE_VERSION, {
        let app = app.clone();
        move || serde_json::to_vec(&*app.notes()).expect("notes are plain text")
    });
    cx.on_shutdown(async { tracing::info!("all requests are done") });

    Ok(Router::new()
        .route("/", get(index))
        .route("/notes", get(list).post(add))
        .route("/sleep/{ms}", get(slow))
        .route("/events", get(events))
        .with_state(app))
}

/// Background work with effects outside belongs here: it runs only in a version that serves.
async fn beat(app: Arc<App>, shutdown: Shutdown) {
    let mut ticks = interval(Duration::from_millis(app.config.beat_ms.max(1)));
    while !shutdown.has_begun() {
        ticks.tick().await;
        app.beats.fetch_add(1, Ordering::Relaxed);
    }
}

async fn index(State(app): State<Arc<App>>, info: RequestInfo) -> String {
    let peer = info.peer_addr().map_or("a socket".to_owned(), |peer| peer.ip().to_string());
    format!("{}, {peer}: {} beats so far\n", app.config.greeting, app.beats.load(Ordering::Relaxed))
}

async fn list(State(app): State<Arc<App>>) -> Json<Vec<Note>> {
    Json(app.notes().clone())
}

async fn add(State(app): State<Arc<App>>, Json(note): Json<Note>) -> (StatusCode, Json<Note>) {
    tracing::info!(length = note.text.len(), "a note");
    app.notes().push(note.clone());
    (StatusCode::CREATED, Json(note))
}

async fn slow(Path(ms): Path<u64>) -> String {
    sleep(Duration::from_millis(ms)).await;
    format!("slept {ms} ms\n")
}

/// Server-sent events: the count of beats, until the client goes away or a newer version serves.
async fn events(State(app): State<Arc<App>>, shutdown: Shutdown) -> Response {
    let body = Body::generate(async move |mut out| {
        while !shutdown.has_begun() {
            out.send(format!("data: {}\n\n", app.beats.load(Ordering::Relaxed))).await?;
            sleep(Duration::from_millis(app.config.beat_ms)).await;
        }
        Ok(())
    });
    let mut response = Response::new(body);
    response.headers_mut().insert("content-type", axum::http::HeaderValue::from_static("text/event-stream"));
    response
}

#[cfg(test)]
mod tests {
    use baton_plugin_api::testing::{Plugin, block_on, eventually, request};

    use super::*;

    fn post(text: &str) -> axum::http::Request<Body> {
        let mut request = request("POST", "/notes", format!(r#"{{"text":"{text}"}}"#));
        request.headers_mut().insert("content-type", axum::http::HeaderValue::from_static("application/json"));
        request
    }

    #[test]
    fn it_greets_as_configured() {
        let plugin = Plugin::with(app).config(r#"{"greeting":"good day"}"#).start().unwrap();
        assert!(plugin.get("/").text().starts_with("good day, 127.0.0.1: "));
        let error = Plugin::with(app).config(r#"{"greting":"?"}"#).start().unwrap_err();
        assert!(error.contains("unknown field `greting`"), "{error}");
    }

    #[test]
    fn notes_are_handed_on_to_the_next_version() {
        let first = Plugin::start(app);
        assert_eq!(first.send(post("milk")).status(), StatusCode::CREATED);
        let (version, state) = first.save().unwrap();
        let second = Plugin::with(app).previous(version, &state).start().unwrap();
        assert_eq!(second.get("/notes").text(), r#"[{"text":"milk"}]"#);
    }

    #[test]
    fn state_of_another_format_is_refused_or_left_alone() {
        assert!(Plugin::with(app).previous(STATE_VERSION, b"not json").start().is_err());
        assert_eq!(Plugin::with(app).previous(99, b"not json").start().unwrap().get("/notes").text(), "[]");
    }

    #[test]
    fn the_background_task_waits_until_the_version_serves() {
        let plugin = Plugin::with(app).config(r#"{"beat_ms":1}"#).start_without_serving().unwrap();
        assert!(plugin.get("/sleep/10").text().starts_with("slept"));
        assert!(plugin.get("/").text().contains(": 0 beats"));
        plugin.begin_serving();
        eventually(|| !plugin.get("/").text().contains(": 0 beats"));
    }

    #[test]
    fn the_event_stream_ends_when_a_newer_version_serves() {
        let plugin = Plugin::with(app).config(r#"{"beat_ms":1}"#).start().unwrap();
        block_on(async {
            let mut body = plugin.call(request("GET", "/events", "")).await.into_body();
            assert!(body.data().await.unwrap().unwrap().starts_with(b"data: "));
            plugin.begin_shutdown();
            while let Some(event) = body.data().await {
                event.unwrap();
            }
        });
    }

    #[test]
    fn a_request_that_is_no_note_is_refused() {
        let plugin = Plugin::start(app);
        assert!(plugin.post("/notes", "x").status().is_client_error());
        assert_eq!(plugin.get("/nowhere").status(), StatusCode::NOT_FOUND);
    }
}
