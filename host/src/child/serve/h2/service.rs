//! What hyper calls with each request of an HTTP/2 connection, and the response's body as hyper pulls it. What HTTP/2 has and
//! HTTP/1 has not is settled here; then it is a request like any other (`serve::service`).

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{COOKIE, HOST};
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::Service;

use super::stream::{Stream, Streams};
use crate::child::bridge::{Body, BodyError};
use crate::child::serve::conn::Conn;
use crate::child::serve::exchange::Exchange;
use crate::child::serve::head::{self, HostField};
use crate::child::serve::service::{Answer, Own, length};

/// A response goes to hyper in parts of at most this size: the largest frame that every client takes (RFC 9113 4.2). hyper
/// asks for the next once the client's windows let it send, so that a client who takes nothing is seen, and no more than this
/// of a stream lies in between.
const PART: usize = 16 * 1024;

pub struct Http2 {
    pub conn: Arc<Conn>,
    pub streams: Arc<Streams>,
}

impl Service<Request<Incoming>> for Http2 {
    type Response = Response<Paced>;
    type Error = Infallible;
    type Future = PacedAnswer;

    fn call(&self, mut request: Request<Incoming>) -> PacedAnswer {
        let stream = self.streams.call(&self.conn);
        let exchange = Exchange::Http2(stream.clone());
        let answer = match self.check(&mut request) {
            Ok(()) => {
                let len = length(&request);
                Answer::to(request, len, exchange)
            }
            Err(refusal) => Answer::refused(exchange, refusal),
        };
        PacedAnswer { answer, stream }
    }
}

impl Http2 {
    fn check(&self, request: &mut Request<Incoming>) -> Result<(), Own> {
        join_cookies(request.headers_mut());
        if request.headers().len() > self.conn.server.limits.head_fields {
            return Err(Own::HeadTooLarge);
        }
        if request.method() == Method::CONNECT {
            return Err(Own::NoTunnel);
        }
        head::check_scheme(request.uri())?;
        check_host(request)?;
        head::settle_path(request)
    }
}

/// Sees to it that there is one host, in `:authority`, in `Host`, or the same in both (RFC 9113 8.3.1).
fn check_host(request: &mut Request<Incoming>) -> Result<(), Own> {
    let field = head::scan(request.headers()).host;
    let Some(authority) = request.uri().authority() else {
        return if field == HostField::Valid { Ok(()) } else { Err(Own::BadHost) };
    };
    if !head::is_named_host(authority) {
        return Err(Own::BadHost);
    }
    match (field, request.headers().get(HOST)) {
        // Handlers find it where HTTP/1 has it, as behind a proxy.
        (HostField::Missing, _) => {
            let host = HeaderValue::from_str(authority.as_str()).map_err(|_| Own::BadHost)?;
            request.headers_mut().insert(HOST, host);
            Ok(())
        }
        (HostField::Valid, Some(host)) if host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes()) => Ok(()),
        // Two hosts are a way past a filter that knows only the other one.
        (HostField::Valid | HostField::Invalid, _) => Err(Own::BadHost),
    }
}

/// Browsers send each cookie as a field of its own, so that those that stay the same compress well; an application gets
/// them as one (RFC 9113 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let fields: Vec<_> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    // Several values that are valid are one with `; ` between them.
    if let Ok(mut joined) = HeaderValue::from_bytes(&fields.join(&b"; "[..])) {
        joined.set_sensitive(headers.get_all(COOKIE).iter().any(HeaderValue::is_sensitive));
        headers.insert(COOKIE, joined);
    }
}

/// An answer in the making.
pub struct PacedAnswer {
    answer: Answer,
    stream: Arc<Stream>,
}

impl Future for PacedAnswer {
    type Output = Result<Response<Paced>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Ok(response) = ready!(Pin::new(&mut self.answer).poll(cx));
        let stream = self.stream.clone();
        Poll::Ready(Ok(response.map(|body| Paced { body, rest: Bytes::new(), stream })))
    }
}

/// A response's body in parts.
pub struct Paced {
    body: Body,
    /// Pulled from the body, and not given yet.
    rest: Bytes,
    stream: Arc<Stream>,
}

impl http_body::Body for Paced {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        this.stream.note_asked();
        if this.rest.is_empty() {
            let frame = match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                other => return Poll::Ready(other),
            };
            match frame.into_data() {
                Ok(data) => this.rest = data,
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
        let part = this.rest.split_to(this.rest.len().min(PART));
        this.stream.note_given(part.len());
        Poll::Ready(Some(Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.body.size_hint();
        let rest = self.rest.len() as u64;
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper.saturating_add(rest));
        }
        hint.set_lower(hint.lower().saturating_add(rest));
        hint
    }
}
