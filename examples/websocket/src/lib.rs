//! cargo run --release -- dev examples/websocket
//!
//! A chat room over WebSockets, by axum. When a newer version takes over, those who are here are told by Close 1012, "service
//! restart", and the page connects again: to that version. Whoever has the page open sees it happen.
//!
//! Browsers let every page open a WebSocket to every server. So the room refuses pages of another origin.

use axum::Router;
use axum::extract::State;
use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade, close_code};
use axum::http::header::{HOST, ORIGIN};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{any, get};
use baton_plugin_api::{Shutdown, plugin};
use tokio::sync::broadcast;

/// Lines that wait for somebody who reads slowly; then the oldest are lost to him.
const BEHIND: usize = 64;
const LONGEST_LINE: usize = 4096;

#[plugin]
fn app() -> Router {
    let (room, _) = broadcast::channel::<Utf8Bytes>(BEHIND);
    Router::new().route("/", get(async || Html(include_str!("page.html")))).route("/chat", any(chat)).with_state(room)
}

async fn chat(
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
    State(room): State<broadcast::Sender<Utf8Bytes>>,
    shutdown: Shutdown,
) -> Response {
    if !is_same_origin(&headers) {
        return (StatusCode::FORBIDDEN, "this room is for its own page\n").into_response();
    }
    upgrade.max_message_size(LONGEST_LINE).on_upgrade(async move |mut socket| {
        // An error is the client's end: there is nobody left to tell.
        let _ = talk(&mut socket, room, shutdown).await;
    })
}

/// Whether the page that connects came from this server. A client that is no browser sends no Origin.
fn is_same_origin(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    match headers.get(ORIGIN) {
        None => true,
        Some(_) => text(ORIGIN)
            .and_then(|origin| origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://")))
            .is_some_and(|origin| text(HOST).is_some_and(|host| origin.eq_ignore_ascii_case(host))),
    }
}

async fn talk(
    socket: &mut WebSocket,
    room: broadcast::Sender<Utf8Bytes>,
    shutdown: Shutdown,
) -> Result<(), axum::Error> {
    let mut said = room.subscribe();
    let welcome = format!("welcome to process {}", std::process::id());
    socket.send(Message::Text(welcome.into())).await?;
    loop {
        tokio::select! {
            message = socket.recv() => match message.transpose()? {
                // The room has somebody who listens: this task.
                Some(Message::Text(line)) => drop(room.send(line)),
                Some(_) => {}
                None => return Ok(()),
            },
            line = said.recv() => if let Ok(line) = line {
                socket.send(Message::Text(line)).await?;
            },
            () = shutdown.wait() => {
                let frame = CloseFrame { code: close_code::RESTART, reason: "a newer version serves".into() };
                return socket.send(Message::Close(Some(frame))).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use baton_plugin_api::http::Request;
    use baton_plugin_api::testing::{Client, Plugin, block_on};
    use baton_plugin_api::{Body, StatusCode};
    use futures_util::{SinkExt, StreamExt};
    use tokio_tungstenite::WebSocketStream;
    use tokio_tungstenite::tungstenite::Message;
    use tokio_tungstenite::tungstenite::protocol::Role;

    use super::*;

    fn handshake(headers: &[(&str, &str)]) -> Request<Body> {
        let mut request = Request::get("/chat")
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Body::empty()).unwrap()
    }

    async fn join(plugin: &Plugin) -> WebSocketStream<Client> {
        let (response, client) = plugin.upgrade(handshake(&[])).await.unwrap();
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        let mut socket = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
        assert!(socket.next().await.unwrap().unwrap().to_text().unwrap().starts_with("welcome to process "));
        socket
    }

    #[test]
    fn everybody_hears_what_is_said() {
        let plugin = Plugin::start(app);
        block_on(async {
            let (mut one, mut two) = (join(&plugin).await, join(&plugin).await);
            one.send(Message::text("hello")).await.unwrap();
            for socket in [&mut one, &mut two] {
                assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("hello"));
            }
        });
    }

    #[test]
    fn a_page_of_another_origin_is_refused() {
        let host = ("host", "chat.example:8080");
        for (origin, expected) in [
            ("http://chat.example:8080", StatusCode::SWITCHING_PROTOCOLS),
            ("https://chat.example:8080", StatusCode::SWITCHING_PROTOCOLS),
            ("http://evil.example", StatusCode::FORBIDDEN),
            ("http://chat.example:8081", StatusCode::FORBIDDEN),
            ("null", StatusCode::FORBIDDEN),
        ] {
            let plugin = Plugin::start(app);
            let status = block_on(async {
                match plugin.upgrade(handshake(&[host, ("origin", origin)])).await {
                    Ok((response, _)) => response.status(),
                    Err(response) => response.status(),
                }
            });
            assert_eq!(status, expected, "{origin}");
        }
    }

    #[test]
    fn at_the_end_everybody_is_told_to_come_again() {
        let plugin = Plugin::start(app);
        block_on(async {
            let mut socket = join(&plugin).await;
            plugin.begin_shutdown();
            let Some(Ok(Message::Close(Some(frame)))) = socket.next().await else { panic!("no Close") };
            assert_eq!(u16::from(frame.code), 1012);
        });
    }

    #[test]
    fn the_page_is_there_and_the_room_is_for_websockets_only() {
        let plugin = Plugin::start(app);
        assert!(plugin.get("/").text().contains("new WebSocket"));
        assert_eq!(plugin.get("/chat").status(), 400);
    }
}
