//! What axum and hyper make of a connection that leaves HTTP: theirs, unmodified.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::response::Response;
use axum::routing::{any, get};
use baton_plugin_api::testing::{self, Client, Plugin, block_on, eventually};
use baton_plugin_api::tokio::io::{AsyncReadExt, AsyncWriteExt};
use baton_plugin_api::{Body, HeaderValue, Shutdown, StatusCode, tokio};

async fn speak(mut socket: WebSocket, shutdown: Shutdown) {
    loop {
        tokio::select! {
            message = socket.recv() => match message {
                Some(Ok(Message::Text(text))) => {
                    let back = format!("echo: {text}");
                    socket.send(Message::Text(back.into())).await.expect("the client is there");
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return,
            },
            () = shutdown.wait() => {
                let goodbye = CloseFrame { code: close_code::RESTART, reason: "restart".into() };
                socket.send(Message::Close(Some(goodbye))).await.expect("the client is there");
                return;
            }
        }
    }
}

async fn echo(upgrade: WebSocketUpgrade, shutdown: Shutdown) -> Response {
    upgrade.on_upgrade(move |socket| speak(socket, shutdown))
}

fn app() -> Router {
    Router::new()
        .route("/echo", any(echo))
        .route("/plain", get(async || "plain"))
        .route("/refuses", get(async |_: WebSocketUpgrade| StatusCode::FORBIDDEN))
}

fn asking(target: &str) -> http::Request<Body> {
    let mut request = testing::request("GET", target, Body::empty());
    for (name, value) in [
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ] {
        request.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    request
}

fn open(plugin: &Plugin) -> Client {
    let (response, client) = block_on(plugin.upgrade(asking("/echo"))).expect("it switches");
    assert_eq!(response.status(), 101);
    // The example of RFC 6455 1.3.
    assert_eq!(response.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    client
}

/// A frame of the client with a mask of zeros.
async fn send(client: &mut Client, opcode: u8, payload: &[u8]) {
    let mut frame = vec![0x80 | opcode, 0x80 | payload.len() as u8, 0, 0, 0, 0];
    frame.extend_from_slice(payload);
    client.write_all(&frame).await.expect("the plugin reads");
}

async fn receive(client: &mut Client) -> (u8, Vec<u8>) {
    let opcode = client.read_u8().await.expect("a frame") & 0x0f;
    let mut payload = vec![0; client.read_u8().await.expect("a frame").into()];
    client.read_exact(&mut payload).await.expect("a whole frame");
    (opcode, payload)
}

#[test]
fn axums_websockets_work_unmodified() {
    let plugin = Plugin::start(app);
    let mut client = open(&plugin);
    block_on(async {
        for text in ["one", "two"] {
            send(&mut client, 1, text.as_bytes()).await;
            assert_eq!(receive(&mut client).await, (1, format!("echo: {text}").into_bytes()));
        }
        send(&mut client, 9, b"there?").await;
        assert_eq!(receive(&mut client).await, (10, b"there?".to_vec()));
    });
}

#[test]
fn at_its_end_an_app_says_close_1012() {
    let plugin = Plugin::start(app);
    let mut client = open(&plugin);
    plugin.begin_shutdown();
    block_on(async {
        assert_eq!(receive(&mut client).await, (8, [&1012_u16.to_be_bytes()[..], b"restart"].concat()));
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"");
    });
}

#[test]
fn requests_that_ask_and_are_answered_otherwise_are_plain_ones() {
    let plugin = Plugin::start(app);
    assert_eq!(plugin.send(asking("/plain")).text(), "plain");
    assert_eq!(plugin.send(asking("/refuses")).status(), 403);
    assert_eq!(plugin.get("/echo").status(), 400, "axum says what is missing");
    assert!(plugin.logs().iter().all(|log| !log.panic));
}

#[test]
fn hypers_on_upgrade_is_there_for_any_service() {
    static FAILED: AtomicUsize = AtomicUsize::new(0);
    async fn raw(mut request: axum::extract::Request) -> StatusCode {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            if upgrade.await.is_err() {
                FAILED.fetch_add(1, Ordering::SeqCst);
            }
        });
        if request.uri().path() == "/switch" { StatusCode::SWITCHING_PROTOCOLS } else { StatusCode::OK }
    }
    let plugin = Plugin::start(|| Router::new().fallback(raw));
    let (_, mut client) = block_on(plugin.upgrade(asking("/switch"))).expect("it switches");
    // The stream was dropped by the task that got it.
    assert_eq!(block_on(client.read(&mut [0; 1])).unwrap(), 0);
    assert_eq!(FAILED.load(Ordering::SeqCst), 0);
    assert_eq!(plugin.send(asking("/stay")).status(), 200);
    eventually(|| FAILED.load(Ordering::SeqCst) == 1);
}
