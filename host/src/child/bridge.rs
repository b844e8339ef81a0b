//! One request across the ABI and back. The head stays with the host and is lent field by field; bodies cross as streams
//! that the receiver pulls; the response's head is checked before hyper sees it. The plugin is trusted to follow the ABI, not
//! to be right: whatever it answers becomes a valid response or a 500.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::{Context, Poll};

use baton_plugin_api::abi::{
    FACT_AUTHORITY, FACT_LOCAL, FACT_ORIGINAL_TARGET, FACT_PEER, FACT_PREFIX, FACT_SCHEME, FACT_SERVER, FACT_TLS_ALPN,
    FACT_TLS_CIPHER, FACT_TLS_SNI, FACT_TLS_VERSION, FfiBody, FfiFuture, HeaderRef, PANICKED, PENDING, READY,
    RequestHead, RequestHeadVtable, RequestLine, ResponseHead, ResponseSink, SENSITIVE, Slice,
};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, request};
use hyper::body::{Body as _, Incoming};

use super::plugin::Plugin;
use super::route::{self, Stripped};
use super::serve::exchange::Exchange;
use super::serve::upgrade::{Offer, Wish};

mod body;
mod client;
mod stream;
mod trailers;
mod upload;

pub use body::{Body, BodyError};
pub use client::CLIENT;
pub use stream::UPGRADE;

use upload::lend_body;

// ---- the request's head ----

/// What the plugin's [`RequestHead`] stands for.
struct Head {
    parts: request::Parts,
    exchange: Exchange,
    prefix: &'static str,
    /// The target without the prefix, where it is no part of the original.
    target: Option<Box<str>>,
    /// What the connection may become.
    offer: Option<Offer>,
}

static HEAD: RequestHeadVtable =
    RequestHeadVtable { headers: head_headers, header: head_header, fact: head_fact, drop: head_drop };

impl Head {
    #[inline]
    fn lend(parts: request::Parts, exchange: Exchange, prefix: &'static str, offer: Option<Offer>) -> RequestHead {
        let mut head = Box::new(Head { parts, exchange, prefix, target: None, offer });
        if !prefix.is_empty()
            && let Stripped::Query(query) = route::strip(route::target(&head.parts.uri), prefix)
        {
            head.target = Some(format!("/{query}").into());
        }
        let data = Box::into_raw(head);
        // SAFETY: just made, and ours until it is handed out below; from here on it neither moves nor changes, so that
        // what is lent of it stays where it is.
        let head = unsafe { &*data };
        let target = match &head.target {
            Some(target) => target,
            None => match route::strip(route::target(&head.parts.uri), prefix) {
                Stripped::Part(target) | Stripped::Query(target) => target,
            },
        };
        let version = match head.parts.version {
            Version::HTTP_09 => 9,
            Version::HTTP_10 => 10,
            Version::HTTP_2 => 20,
            Version::HTTP_3 => 30,
            _ => 11,
        };
        let line = RequestLine {
            method: Slice::new(head.parts.method.as_str().as_bytes()),
            target: Slice::new(target.as_bytes()),
            request_id: request_id(),
            header_count: u32::try_from(head.parts.headers.len()).unwrap_or(u32::MAX),
            version,
        };
        // SAFETY: the functions of `HEAD` are made for this box, which does not change until it is dropped; what they and the
        // line lend is part of it, or of the connection that it holds.
        unsafe { RequestHead::new(data, &HEAD, line) }
    }

    fn fact(&self, fact: u32) -> Option<Slice> {
        let (uri, conn) = (&self.parts.uri, self.exchange.conn());
        let address = |address: &'_ baton_plugin_api::abi::FfiAddr| Slice {
            ptr: std::ptr::from_ref(address).cast(),
            len: size_of_val(address),
        };
        let text = |text: &str| Slice::new(text.as_bytes());
        match fact {
            FACT_PEER => Some(address(&conn.peer)),
            FACT_LOCAL => Some(address(&conn.local)),
            FACT_SERVER => Some(text(conn.origin.name)),
            FACT_PREFIX => Some(text(self.prefix)),
            FACT_ORIGINAL_TARGET => match (uri.path_and_query(), uri.authority()) {
                (None, Some(authority)) => Some(text(authority.as_str())),
                _ => Some(text(route::target(uri))),
            },
            FACT_SCHEME => uri.scheme_str().map(text),
            FACT_TLS_VERSION => conn.tls().map(|tls| text(tls.version)),
            FACT_TLS_CIPHER => conn.tls().map(|tls| text(tls.cipher)),
            FACT_TLS_SNI => conn.tls().and_then(|tls| tls.server_name.as_deref()).map(text),
            FACT_TLS_ALPN => conn.tls().and_then(|tls| tls.alpn.as_deref()).map(text),
            FACT_AUTHORITY => uri.authority().map(|authority| text(authority.as_str())),
            _ => None,
        }
    }
}

/// The next request id: unique in this process, never zero. Taken in blocks, so that threads do not contend for it.
#[inline]
fn request_id() -> u64 {
    use std::cell::Cell;
    use std::sync::atomic::{AtomicU64, Ordering};
    const BLOCK: u64 = 1024;
    static NEXT: AtomicU64 = AtomicU64::new(1);
    thread_local! {
        static OWN: Cell<(u64, u64)> = const { Cell::new((0, 0)) };
    }
    OWN.with(|own| {
        let (mut next, mut end) = own.get();
        if next == end {
            next = NEXT.fetch_add(BLOCK, Ordering::Relaxed);
            end = next + BLOCK;
        }
        own.set((next + 1, end));
        next
    })
}

unsafe extern "C" fn head_headers(data: *const c_void, out: *mut HeaderRef, capacity: u32) -> u32 {
    // SAFETY: `Head::lend` made `data`; it is alive until `head_drop`, and only read.
    let head = unsafe { &*data.cast::<Head>() };
    let mut count = 0;
    for (name, value) in head.parts.headers.iter().take(capacity as usize) {
        let mut value_len = value.len() as u32;
        if value.is_sensitive() {
            value_len |= SENSITIVE;
        }
        let name = name.as_str();
        let field =
            HeaderRef { name: name.as_ptr(), value: value.as_bytes().as_ptr(), name_len: name.len() as u32, value_len };
        // SAFETY: the caller has room for `capacity` fields, and `take` keeps below that.
        unsafe { out.add(count as usize).write(field) };
        count += 1;
    }
    count
}

unsafe extern "C" fn head_header(data: *const c_void, name: Slice, out: *mut Slice) -> u32 {
    // SAFETY: as in `head_headers`; the name is borrowed for the call.
    let (head, name) = unsafe { (&*data.cast::<Head>(), name.as_bytes()) };
    let value = std::str::from_utf8(name).ok().and_then(|name| head.parts.headers.get(name));
    let Some(value) = value else { return 0 };
    // SAFETY: `out` is the caller's room for one slice.
    unsafe { out.write(Slice::new(value.as_bytes())) };
    1
}

unsafe extern "C" fn head_fact(data: *const c_void, fact: u32, out: *mut Slice) -> u32 {
    // SAFETY: as in `head_headers`.
    let head = unsafe { &*data.cast::<Head>() };
    let Some(slice) = head.fact(fact) else { return 0 };
    // SAFETY: `out` is the caller's room for one slice; what the slice points to lives as long as the head.
    unsafe { out.write(slice) };
    1
}

unsafe extern "C" fn head_drop(data: *mut c_void) {
    quietly(|| {
        // SAFETY: the box of `Head::lend`; the contract of the table is one call.
        drop(unsafe { Box::from_raw(data.cast::<Head>()) });
    });
}

/// Runs what cannot be expected to panic at a place where a panic must not pass.
fn quietly(run: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(run)).is_err() {
        tracing::error!("a panic of the host was stopped at the plugin boundary");
    }
}

// ---- the call ----

/// A request in a plugin's hands. Dropping it cancels the request.
pub struct Call {
    future: FfiFuture,
    plugin: &'static Plugin,
    /// No body will be sent, whatever the length says.
    is_head: bool,
    /// The client knows no chunks: without a length, a response ends with the connection.
    is_http10: bool,
    /// What the client wishes the connection to become.
    wish: Option<Wish>,
}

/// Where the response goes during one poll.
struct Sink<'a> {
    response: Option<Result<Response<Body>, BadResponse>>,
    plugin: &'static Plugin,
    is_head: bool,
    wish: Option<&'a Wish>,
}

/// A response that HTTP forbids.
#[derive(Debug, thiserror::Error)]
enum BadResponse {
    #[error("status {0} is none that a handler can answer")]
    Status(u32),
    #[error("status 101 is for requests that ask for another protocol, and for handlers that take the stream")]
    Switching,
    #[error("header name {0:?} is not allowed in HTTP")]
    Name(String),
    #[error("the value of header `{0}` holds bytes that HTTP forbids")]
    Value(HeaderName),
    #[error("content-length {0:?} contradicts the body or another content-length")]
    Length(String),
    #[error("it has too many headers")]
    TooMany,
    #[error("its body is of no known kind")]
    Body,
}

impl Call {
    #[inline]
    pub fn begin(
        plugin: &'static Plugin,
        prefix: &'static str,
        request: Request<Incoming>,
        exchange: &Exchange,
    ) -> Call {
        let (mut parts, incoming) = request.into_parts();
        let is_head = parts.method == Method::HEAD;
        let is_http10 = parts.version == Version::HTTP_10;
        let wish = Wish::of(&mut parts, !incoming.is_end_stream());
        let body = lend_body(incoming, &parts.headers, exchange);
        let head = Head::lend(parts, exchange.clone(), prefix, wish.as_ref().map(Wish::offer));
        Call { future: plugin.call(head, body), plugin, is_head, is_http10, wish }
    }

    /// Whether only the end of the connection says that `response` is whole.
    #[inline]
    pub fn is_close_delimited(&self, response: &Response<Body>) -> bool {
        self.is_http10 && !response.body().is_end_stream() && response.body().exact_len().is_none()
    }

    /// Whether `response` grants what the client wished; then the connection is the plugin's once it is written.
    #[inline]
    pub fn take_granted(&mut self, response: &Response<Body>) -> Option<Wish> {
        self.wish.take_if(|wish| wish.is_granted_by(response.status()))
    }

    /// The response; what went wrong is a 500.
    #[inline]
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Response<Body>> {
        let wish = self.wish.as_ref();
        let mut sink = Sink { response: None, plugin: self.plugin, is_head: self.is_head, wish };
        let ffi_sink = ResponseSink { context: (&raw mut sink).cast(), send: take_response };
        // SAFETY: the future has not ended yet (hyper drops it after `Ready`); the sink is lent for this call only.
        let polled = unsafe { self.future.poll(cx.waker(), &raw const ffi_sink) };
        match (polled, sink.response) {
            (PENDING, _) => Poll::Pending,
            (READY, Some(Ok(_))) if wish.is_some_and(|wish| wish.is_connect() && !wish.is_claimed()) => {
                Poll::Ready(not_implemented())
            }
            (READY, Some(Ok(response))) => Poll::Ready(response),
            (READY, Some(Err(error))) => {
                tracing::error!(plugin = self.plugin.name(), "answering 500: {error}");
                Poll::Ready(internal_error())
            }
            (PANICKED, _) => Poll::Ready(internal_error()),
            (_, _) => {
                tracing::error!(plugin = self.plugin.name(), "answering 500: the handler ended without a response");
                Poll::Ready(internal_error())
            }
        }
    }
}

#[cold]
fn internal_error() -> Response<Body> {
    let mut response = Response::new(Body::from_static("internal server error\n"));
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(http::header::CONTENT_TYPE, text);
    response
}

/// To a CONNECT that no handler takes: RFC 9110 9.1 has this status for methods that are not implemented.
#[cold]
fn not_implemented() -> Response<Body> {
    let mut response = Response::new(Body::from_static("no tunnels here\n"));
    *response.status_mut() = StatusCode::NOT_IMPLEMENTED;
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(http::header::CONTENT_TYPE, text);
    response
}

unsafe extern "C" fn take_response(context: *mut c_void, head: *const ResponseHead, body: FfiBody) {
    quietly(|| {
        // SAFETY: `Call::poll` lends the sink and the plugin the head, both for this call.
        let (sink, head) = unsafe { (&mut *context.cast::<Sink<'_>>(), &*head) };
        sink.response = Some(read_response(head, body, sink));
    });
}

#[inline]
fn read_response(head: &ResponseHead, body: FfiBody, sink: &Sink<'_>) -> Result<Response<Body>, BadResponse> {
    let status = u16::try_from(head.status)
        .ok()
        // All other 1xx are hyper's to send.
        .filter(|status| *status >= 200 || *status == 101)
        .and_then(|status| StatusCode::from_u16(status).ok())
        .ok_or(BadResponse::Status(head.status))?;
    let granted = sink.wish.is_some_and(|wish| wish.is_granted_by(status) && wish.is_claimed());
    if status == StatusCode::SWITCHING_PROTOCOLS && !granted {
        return Err(BadResponse::Switching);
    }
    let mut body = Body::import(body, sink.plugin)?;
    let count = head.header_count as usize;
    let mut headers = HeaderMap::try_with_capacity(count).map_err(|_| BadResponse::TooMany)?;
    let mut length = None;
    for at in 0..count {
        // SAFETY: the head lends `header_count` fields for the call, each with a name and a value.
        let (name, value, sensitive) = unsafe {
            let field = *head.headers.add(at);
            let name = Slice { ptr: field.name, len: field.name_len as usize }.as_bytes();
            let value = Slice { ptr: field.value, len: (field.value_len & !SENSITIVE) as usize }.as_bytes();
            (name, value, field.value_len & SENSITIVE != 0)
        };
        if name.eq_ignore_ascii_case(CONTENT_LENGTH.as_str().as_bytes()) {
            let known = read_length(value).filter(|known| length.is_none_or(|before| before == *known));
            length = Some(known.ok_or_else(|| BadResponse::Length(String::from_utf8_lossy(value).into_owned()))?);
            continue;
        }
        let name = if name == CONTENT_TYPE.as_str().as_bytes() {
            CONTENT_TYPE
        } else {
            HeaderName::from_bytes(name).map_err(|_| BadResponse::Name(String::from_utf8_lossy(name).into_owned()))?
        };
        let mut value = match intern(value) {
            Some(value) => value,
            None => HeaderValue::from_bytes(value).map_err(|_| BadResponse::Value(name.clone()))?,
        };
        value.set_sensitive(sensitive);
        // How a body is framed on this connection is the host's to say.
        if name == TRANSFER_ENCODING {
            continue;
        }
        headers.try_append(name, value).map_err(|_| BadResponse::TooMany)?;
    }
    if granted {
        // What follows the head is the new protocol's.
        body = Body::EMPTY;
    } else if matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        // Neither a body nor its length (RFC 9110 8.6), also as the answer to a HEAD.
        body = Body::EMPTY;
    } else if let Some(known) = length {
        match body.exact_len() {
            // hyper says it, from the body itself.
            Some(actual) if actual == known && !sink.is_head => {}
            Some(_) if !sink.is_head => return Err(BadResponse::Length(known.to_string())),
            None if !sink.is_head => body.set_length(known),
            _ => drop(headers.insert(CONTENT_LENGTH, known.into())),
        }
        if sink.is_head {
            body = Body::EMPTY;
        }
    }
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(response)
}

/// A length as RFC 9110 8.6 has it: digits, nothing else.
#[inline]
fn read_length(value: &[u8]) -> Option<u64> {
    let digits = |value: &[u8]| !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    if digits(value) { std::str::from_utf8(value).ok()?.parse().ok() } else { None }
}

/// Values that need no copy since everybody sends them. Made once: `from_static` reads every byte.
#[inline]
fn intern(value: &[u8]) -> Option<HeaderValue> {
    static COMMON: [HeaderValue; 6] = [
        HeaderValue::from_static("text/plain; charset=utf-8"),
        HeaderValue::from_static("text/html; charset=utf-8"),
        HeaderValue::from_static("application/json"),
        HeaderValue::from_static("application/octet-stream"),
        HeaderValue::from_static("no-cache"),
        HeaderValue::from_static("no-store"),
    ];
    COMMON.iter().find(|common| *common == value).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_are_unique_across_threads() {
        let take = || (0..3000).map(|_| request_id()).collect::<Vec<_>>();
        let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(take)).collect();
        let mut ids: Vec<u64> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        assert!(!ids.contains(&0));
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 12_000);
    }
}
