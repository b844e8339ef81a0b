//! Write HTTP handlers that Baton loads, and swaps behind a live port.
//!
//! Floors: `abi` (what crosses) < `ffi` (the plugin's half of it, and the only other unsafe code) < the author's types <
//! adaptors for tower, logging and tests. A module uses its own floor and lower ones.
#![cfg_attr(feature = "plugin", doc = "", doc = include_str!("guide.md"))]
#![deny(missing_docs)]

pub mod abi;

#[cfg(feature = "plugin")]
mod body;
#[cfg(feature = "plugin")]
mod client_closed;
#[cfg(feature = "plugin")]
mod client_error;
#[cfg(feature = "plugin")]
mod export;
#[cfg(feature = "plugin")]
mod ffi;
#[cfg(feature = "plugin")]
mod logging;
#[cfg(feature = "plugin")]
mod plugin;
#[cfg(feature = "plugin")]
mod request;
#[cfg(feature = "plugin")]
mod response;
#[cfg(feature = "plugin")]
mod service;
#[cfg(feature = "plugin")]
mod signals;
#[cfg(feature = "plugin")]
pub mod testing;
#[cfg(feature = "plugin")]
pub mod upgrade;

#[cfg(feature = "plugin")]
mod author {
    pub use baton_plugin_macros::{handler, plugin};
    pub use bytes::{self, Bytes};
    pub use http::{self, HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
    pub use http_body;
    pub use log;
    pub use tokio;
    pub use tracing;

    pub use crate::body::{Body, BodyWriter, Closed, CollectError};
    pub use crate::client_closed::ClientClosed;
    pub use crate::export::{HandlerWith, IntoApp, handler_with};
    pub use crate::ffi::{BodyError, BoxError};
    pub use crate::plugin::{ConfigError, ControlError, Exclusive, Host, Init, Shutdown, host};
    pub use crate::request::{Request, RequestInfo, Tls};
    pub use crate::response::{Failure, IntoResponse, Json, Response};
    pub use crate::signals::{Signal, Signals};
}
#[cfg(feature = "plugin")]
pub use author::*;

/// What the macros' code needs; nothing here is for anyone else.
#[cfg(feature = "plugin")]
#[doc(hidden)]
pub mod __private {
    pub use crate::export::emit::*;
    pub use crate::logging::Bridge;
}
