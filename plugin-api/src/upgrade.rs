//! Connections that leave HTTP: WebSockets, and whatever else client and handler agree on.
//!
//! A handler that wants the connection claims it with [`on`], answers `101 Switching Protocols` (to a `CONNECT`: 2xx), and gets
//! the stream of bytes once that answer is sent; mostly in a task of its own, since the handler itself must end first.
//!
//! ```
//! # use baton_plugin_api::{testing, Body};
//! use baton_plugin_api::tokio::{self, io::{AsyncReadExt, AsyncWriteExt}};
//! use baton_plugin_api::{header, upgrade, IntoResponse, Request, StatusCode};
//!
//! /// Speaks a protocol that sends back each byte.
//! async fn echo(mut request: Request) -> impl IntoResponse {
//!     let upgrade = upgrade::on(&mut request);
//!     tokio::spawn(async move {
//!         // Fails if the request did not ask for it, or the client is gone.
//!         let Ok(mut stream) = upgrade.await else { return };
//!         while let Ok(byte) = stream.read_u8().await {
//!             if stream.write_u8(byte).await.is_err() {
//!                 break;
//!             }
//!         }
//!     });
//!     (StatusCode::SWITCHING_PROTOCOLS, [(header::UPGRADE, "echo")], ())
//! }
//!
//! # let plugin = testing::Plugin::start(echo);
//! # let mut request = testing::request("GET", "/", Body::empty());
//! # request.headers_mut().insert("connection", header::HeaderValue::from_static("upgrade"));
//! # request.headers_mut().insert("upgrade", header::HeaderValue::from_static("echo"));
//! # testing::block_on(async {
//! let (response, mut client) = plugin.upgrade(request).await.unwrap();
//! assert_eq!(response.status(), 101);
//! client.write_all(b"hello").await.unwrap();
//! let mut back = [0; 5];
//! client.read_exact(&mut back).await.unwrap();
//! assert_eq!(&back, b"hello");
//! # });
//! ```
//!
//! For **WebSockets** give the stream to a library, such as tokio-tungstenite (or fastwebsockets, with
//! `WebSocket::after_handshake(stream, Role::Server)`):
//!
//! ```
//! # use baton_plugin_api::{testing, Body, BoxError};
//! use baton_plugin_api::upgrade::{self, OnUpgrade};
//! use baton_plugin_api::{IntoResponse, Request, Response, Shutdown, StatusCode};
//! use futures_util::{SinkExt, StreamExt};
//! use tokio_tungstenite::WebSocketStream;
//! use tokio_tungstenite::tungstenite::{handshake::derive_accept_key, protocol};
//!
//! async fn shout(mut request: Request) -> Response {
//!     let Some(key) = request.header("sec-websocket-key") else { return StatusCode::BAD_REQUEST.into_response() };
//!     let accept = derive_accept_key(key.as_bytes());
//!     let (upgrade, shutdown) = (upgrade::on(&mut request), request.shutdown());
//!     tokio::spawn(async move {
//!         if let Err(error) = talk(upgrade, shutdown).await {
//!             baton_plugin_api::tracing::debug!("a WebSocket ended: {error}");
//!         }
//!     });
//!     let fields = [("upgrade", "websocket"), ("sec-websocket-accept", &accept)];
//!     (StatusCode::SWITCHING_PROTOCOLS, fields, ()).into_response()
//! }
//!
//! async fn talk(upgrade: OnUpgrade, shutdown: Shutdown) -> Result<(), BoxError> {
//!     let mut socket = WebSocketStream::from_raw_socket(upgrade.await?, protocol::Role::Server, None).await;
//!     loop {
//!         tokio::select! {
//!             message = socket.next() => match message.transpose()? {
//!                 Some(message) if message.is_text() => socket.send(message.to_text()?.to_uppercase().into()).await?,
//!                 Some(_) => {}
//!                 None => return Ok(()),
//!             },
//!             // A newer version serves: the client shall come again, to that one.
//!             () = shutdown.wait() => {
//!                 let code = protocol::frame::coding::CloseCode::Restart;
//!                 return Ok(socket.close(Some(protocol::CloseFrame { code, reason: "restart".into() })).await?);
//!             }
//!         }
//!     }
//! }
//!
//! # let plugin = testing::Plugin::start(shout);
//! # let request = http::Request::get("/").header("connection", "upgrade").header("upgrade", "websocket")
//! #     .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==").body(Body::empty()).unwrap();
//! # testing::block_on(async {
//! # let (_, client) = plugin.upgrade(request).await.unwrap();
//! let mut client = WebSocketStream::from_raw_socket(client, protocol::Role::Client, None).await;
//! client.send("hello".into()).await.unwrap();
//! assert_eq!(client.next().await.unwrap().unwrap(), "HELLO".into());
//! plugin.begin_shutdown();
//! assert!(client.next().await.unwrap().unwrap().is_close());
//! # });
//! ```
//!
//! With the feature `ws`, requests as tower services get them carry hyper's own `OnUpgrade`. So axum's `WebSocketUpgrade`
//! and all that is written for `hyper::upgrade::on` work as they are.
//!
//! **A reload** does not touch the stream: it lives on in this generation, while new connections reach the next one. But that
//! one has only `drain.upgraded` (60 seconds) to end. So let its task wait for [`Shutdown`](crate::Shutdown), too, and then say
//! goodbye: for a WebSocket by a Close frame with code 1012, "service restart", upon which clients connect again.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use crate::ffi::Claimed;
pub use crate::ffi::Upgraded;
use crate::request::Request;

#[cfg(feature = "ws")]
pub(crate) mod hyper;

/// Claims what the connection of this request becomes.
///
/// To be called before the handler answers. If the request does not ask for another protocol (as HTTP/1.1 has it, with
/// `Connection: upgrade`, `Upgrade` and no body; or by `CONNECT`), or was claimed before, the future ends with an error at
/// once; and if the answer is neither `101` nor 2xx to `CONNECT`, then.
///
/// A `101` to a request that nobody claimed is a `500` for the client, and every answer to a `CONNECT` that nobody claimed is
/// a `501`.
///
/// ```
/// # use baton_plugin_api::{testing, upgrade, Request};
/// async fn plain(mut request: Request) -> String {
///     let error = upgrade::on(&mut request).await.unwrap_err();
///     error.to_string()
/// }
/// # let plugin = testing::Plugin::start(plain);
/// assert_eq!(plugin.get("/").text(), "the request asks for no other protocol, or its stream was claimed before");
/// ```
pub fn on(request: &mut Request) -> OnUpgrade {
    OnUpgrade(request.claim())
}

/// Ends once the connection has left HTTP, with its stream. See [`on`].
pub struct OnUpgrade(Option<Claimed>);

impl OnUpgrade {
    #[cfg(feature = "ws")]
    pub(crate) fn new(claimed: Claimed) -> OnUpgrade {
        OnUpgrade(Some(claimed))
    }
}

impl Future for OnUpgrade {
    type Output = Result<Upgraded, UpgradeError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Upgraded, UpgradeError>> {
        let Some(claimed) = &mut self.0 else { return Poll::Ready(Err(UpgradeError(None))) };
        let opened = ready!(claimed.poll_open(cx));
        let claimed = self.0.take();
        Poll::Ready(match (opened, claimed) {
            (Ok(()), Some(claimed)) => Ok(claimed.opened()),
            (Err(error), _) => Err(UpgradeError(Some(error))),
            (Ok(()), None) => Err(UpgradeError(None)),
        })
    }
}

impl fmt::Debug for OnUpgrade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnUpgrade").field("is_claimed", &self.0.is_some()).finish()
    }
}

/// Why a connection did not leave HTTP: nobody asked for it, or (with a source) it was answered otherwise, or the client went
/// away before.
#[derive(Debug)]
pub struct UpgradeError(Option<io::Error>);

impl UpgradeError {
    /// The request does not ask for another protocol, or it was claimed before.
    pub fn is_unasked(&self) -> bool {
        self.0.is_none()
    }
}

impl fmt::Display for UpgradeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            None => "the request asks for no other protocol, or its stream was claimed before",
            Some(_) => "the connection did not leave HTTP: it was answered otherwise, or ended",
        })
    }
}

impl std::error::Error for UpgradeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.as_ref().map(|error| error as _)
    }
}
