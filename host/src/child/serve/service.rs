//! What hyper calls with each request: finds the plugin, lets the bridge carry the request there and the response back, and
//! adds what the drain has to say.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, RETRY_AFTER};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::{Body as _, Incoming};
use hyper::service::Service;

use super::conn::Conn;
use super::discard::{Discard, Verdict};
use super::exchange::{Answering, Exchange, Receiving};
use super::{head, refused};
use crate::child::bridge::{Body, Call};
use crate::child::route;
use crate::metrics::Slot;

pub struct Http {
    conn: Arc<Conn>,
}

impl Http {
    pub fn new(conn: Arc<Conn>) -> Http {
        Http { conn }
    }
}

impl Service<Request<Incoming>> for Http {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    #[inline]
    fn call(&self, mut request: Request<Incoming>) -> Answer {
        let len = length(&request);
        let fields = head::scan(request.headers());
        let has_fragment = self.conn.has_fragment(request.uri());
        self.conn.note_call(fields.end, len);
        let exchange = Exchange::Http1(self.conn.clone());
        if has_fragment {
            return Answer::refused(exchange, Own::BadTarget);
        }
        // hyper had read it before it could be stopped.
        if self.conn.is_last_request() {
            return Answer::refused(exchange, Own::BehindTrailers);
        }
        match head::check(&mut request, fields.host, len.is_some()) {
            Ok(()) => Answer::to(request, len, exchange),
            Err(refusal) => Answer::refused(exchange, refusal),
        }
    }
}

/// Whether a response's length is known to its client from the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseLength {
    Announced,
    /// It ends when its handler ends it, if ever.
    Open,
}

impl ResponseLength {
    #[inline]
    fn of(response: &Response<Body>) -> ResponseLength {
        let known = response.body().size_hint().exact().is_some() || response.headers().contains_key(CONTENT_LENGTH);
        if known { ResponseLength::Announced } else { ResponseLength::Open }
    }
}

/// How long a request's body is, if that is known.
#[inline]
pub fn length(request: &Request<Incoming>) -> Option<u64> {
    let body = request.body();
    if body.is_end_stream() { Some(0) } else { body.size_hint().exact() }
}

/// A response in the making. Dropping it cancels the request in the plugin.
pub struct Answer {
    source: Source,
    /// Gone once the response is out of here: then its body holds it.
    answering: Option<Answering>,
}

enum Source {
    Plugin(Call),
    Own(Own),
    /// Known, and held back until it is clear whether the connection goes on.
    Held(Box<Response<Body>>),
}

/// An answer of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Own {
    /// The server lives, whatever its plugins do, and also while it drains.
    Healthy = 1,
    NotFound,
    NoPlugin,
    BodyTooLarge,
    BodyTimeout,
    RequestTimeout,
    HeadTooLarge,
    BadHost,
    NoTunnel,
    BadBody,
    BadTarget,
    TargetTooLong,
    BadFraming,
    UnknownCoding,
    OtherScheme,
    BehindTrailers,
}

impl Own {
    pub fn from_code(code: u8) -> Option<Own> {
        // Those that may take the place of a handler's answer.
        const ALL: [Own; 4] = [Own::BodyTooLarge, Own::BodyTimeout, Own::RequestTimeout, Own::BadBody];
        ALL.into_iter().find(|own| *own as u8 == code)
    }

    fn response(self) -> (StatusCode, &'static str) {
        match self {
            Own::Healthy => (StatusCode::OK, "ok\n"),
            Own::NotFound => (StatusCode::NOT_FOUND, "no plugin is mounted here\n"),
            Own::NoPlugin => (StatusCode::SERVICE_UNAVAILABLE, "no plugin is loaded\n"),
            Own::BodyTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "the request body is larger than allowed\n"),
            Own::BodyTimeout => (StatusCode::REQUEST_TIMEOUT, "the request body did not come in time\n"),
            Own::RequestTimeout => (StatusCode::SERVICE_UNAVAILABLE, "the request took too long\n"),
            Own::HeadTooLarge => {
                (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "the request has too many header fields\n")
            }
            Own::BadHost => (StatusCode::BAD_REQUEST, "the request must name one host, in a valid form\n"),
            Own::NoTunnel => (StatusCode::NOT_IMPLEMENTED, "no tunnels here\n"),
            Own::BadBody => (StatusCode::BAD_REQUEST, "the request body is malformed\n"),
            Own::BadTarget => (StatusCode::BAD_REQUEST, "the request target is malformed\n"),
            Own::TargetTooLong => (StatusCode::URI_TOO_LONG, "the request target is too long\n"),
            Own::OtherScheme => {
                (StatusCode::MISDIRECTED_REQUEST, "the scheme of the request target must be http or https\n")
            }
            Own::BehindTrailers => {
                (StatusCode::BAD_REQUEST, "no request may follow one with trailers: send it on another connection\n")
            }
            Own::BadFraming => (StatusCode::BAD_REQUEST, "the transfer coding must be `chunked`, once\n"),
            Own::UnknownCoding => (StatusCode::NOT_IMPLEMENTED, "no transfer coding but `chunked` is supported\n"),
        }
    }

    /// The rest of the request is not waited for, or cannot be trusted: an HTTP/1 connection has no other.
    fn closes(self) -> bool {
        match self {
            Own::BodyTooLarge
            | Own::BodyTimeout
            | Own::RequestTimeout
            | Own::BadBody
            | Own::BadHost
            | Own::BadTarget
            | Own::TargetTooLong
            | Own::BadFraming
            | Own::UnknownCoding
            | Own::OtherScheme
            | Own::BehindTrailers => true,
            Own::Healthy | Own::NotFound | Own::NoPlugin | Own::HeadTooLarge | Own::NoTunnel => false,
        }
    }
}

impl fmt::Display for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (status, text) = self.response();
        write!(f, "{}: {}", status.as_u16(), text.trim_end())
    }
}

impl Answer {
    /// Begins to answer. `len` is the [`length`] of its body.
    #[inline]
    pub fn to(request: Request<Incoming>, len: Option<u64>, exchange: Exchange) -> Answer {
        let conn = exchange.conn();
        if len.is_some_and(|len| len > conn.server.limits.body_size) {
            return Answer::refused(exchange, Own::BodyTooLarge);
        }
        let site = conn.site;
        let path = route::target(request.uri()).split('?').next().unwrap_or("/");
        let own = match site.routes.find(path, || route::host(&request)) {
            // What it says to a CONNECT would begin a tunnel.
            _ if site.is_health(path) && request.method() != Method::CONNECT => Own::Healthy,
            Some(found) => {
                let source = Source::Plugin(Call::begin(found.to, found.prefix, request, &exchange));
                return Answer { source, answering: Some(Answering::new(exchange)) };
            }
            None if request.method() == Method::CONNECT => Own::NoTunnel,
            None if site.routes.is_empty() => Own::NoPlugin,
            None => Own::NotFound,
        };
        discard_body(request, &exchange);
        Answer { source: Source::Own(own), answering: Some(Answering::new(exchange)) }
    }

    #[cold]
    pub fn refused(exchange: Exchange, refusal: Own) -> Answer {
        refused::note_own(exchange.conn(), refusal);
        Answer { source: Source::Own(refusal), answering: Some(Answering::new(exchange)) }
    }

    /// Whether a limit was met before the response is known: then the handler is dropped, and a response of ours takes the
    /// place of its own.
    #[inline]
    fn is_refused(&self) -> Option<Own> {
        self.answering.as_ref().and_then(|answering| answering.exchange().refusal())
    }
}

impl Future for Answer {
    type Output = Result<Response<Body>, Infallible>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Some(refusal) = this.is_refused() {
            this.source = Source::Own(refusal);
        }
        let mut response = match &mut this.source {
            Source::Plugin(call) => {
                let polled = call.poll(cx);
                // The handler may just have read too much.
                match this.is_refused() {
                    None => ready!(polled),
                    Some(refusal) => {
                        this.source = Source::Own(refusal);
                        own(refusal)
                    }
                }
            }
            Source::Own(refusal) => own(*refusal),
            Source::Held(held) => std::mem::replace(&mut **held, Response::new(Body::EMPTY)),
        };
        if let (Source::Plugin(call), Some(answering)) = (&this.source, &this.answering)
            && call.is_close_delimited(&response)
        {
            answering.exchange().conn().begin_close_delimited();
        }
        let granted = match &mut this.source {
            Source::Plugin(call) => call.take_granted(&response),
            Source::Own(_) | Source::Held(_) => None,
        };
        // What the handler has left of the body decides whether an HTTP/1 connection goes on. Most requests have none.
        let mut closes = false;
        if let Some(Exchange::Http1(conn)) = this.answering.as_ref().map(Answering::exchange)
            && conn.discard.is_filled()
        {
            match settle_body(conn, &response, cx) {
                Poll::Ready(verdict) => closes = verdict == Verdict::Closes,
                Poll::Pending => {
                    this.source = Source::Held(Box::new(response));
                    return Poll::Pending;
                }
            }
        }
        // Now and not earlier: hyper writes the head right after this.
        if let Some(answering) = this.answering.take() {
            answering.note_answer(ResponseLength::of(&response));
            if response.status().is_server_error() && response.status() != StatusCode::NOT_IMPLEMENTED {
                answering.exchange().conn().server.metrics.add(Slot::Failures);
            }
            if let Some(wish) = granted {
                if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
                }
                answering.exchange().conn().set_granted(wish);
            } else if closes || answering.announces_close() {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            response.body_mut().hold(answering);
        }
        Poll::Ready(Ok(response))
    }
}

/// No handler reads the body of this request.
fn discard_body(request: Request<Incoming>, exchange: &Exchange) {
    if request.body().is_end_stream() {
        return;
    }
    let receiving = Receiving::new(exchange.clone());
    let left = receiving.limit();
    let awaits_continue = request.headers().contains_key(EXPECT);
    Discard::begin(request.into_body(), receiving, left, awaits_continue);
}

/// Decides whether the connection goes on after a response whose request has a body that is discarded.
#[cold]
fn settle_body(conn: &Conn, response: &Response<Body>, cx: &mut Context<'_>) -> Poll<Verdict> {
    if response.headers().get(CONNECTION).is_some_and(|value| value == "close") {
        conn.discard.clear();
        return Poll::Ready(Verdict::Closes);
    }
    conn.discard.poll_verdict(conn.calls(), cx)
}

#[cold]
fn own(refusal: Own) -> Response<Body> {
    let (status, text) = refusal.response();
    let mut response = Response::new(Body::from_static(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    if refusal.closes() {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
