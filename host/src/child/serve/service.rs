//! What hyper calls with each request: finds the plugin, lets the bridge carry the request there and the response back, and
//! adds what the drain has to say.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::{Body as _, Incoming};
use hyper::service::Service;

use super::conn::{Answering, Conn};
use crate::child::bridge::{Body, Call};
use crate::child::route;

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
    fn call(&self, request: Request<Incoming>) -> Answer {
        let conn = &self.conn;
        let len = if request.body().is_end_stream() { Some(0) } else { request.body().size_hint().exact() };
        conn.note_call(request.headers(), len);
        let site = conn.site;
        let path = route::target(request.uri()).split('?').next().unwrap_or("/");
        let source = match site.routes.find(path, || route::host(&request)) {
            _ if site.is_health(path) => Source::Own(StatusCode::OK),
            Some(found) => Source::Plugin(Call::begin(found.to, found.prefix, request, conn)),
            None if site.routes.is_empty() => Source::Own(StatusCode::SERVICE_UNAVAILABLE),
            None => Source::Own(StatusCode::NOT_FOUND),
        };
        Answer { source, answering: Some(Answering::new(conn.clone())) }
    }
}

/// A response in the making. Dropping it cancels the request in the plugin.
pub struct Answer {
    source: Source,
    /// Gone once the response is out of here: then its body holds it.
    answering: Option<Answering>,
}

enum Source {
    Plugin(Call),
    Own(StatusCode),
}

impl Future for Answer {
    type Output = Result<Response<Body>, Infallible>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let mut response = match &mut this.source {
            Source::Plugin(call) => ready!(call.poll(cx)),
            Source::Own(status) => own(*status),
        };
        // Now and not earlier: hyper writes the head right after this.
        if let Some(answering) = this.answering.take() {
            answering.note_answer();
            if answering.conn().announces_close() {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            response.body_mut().hold(answering);
        }
        Poll::Ready(Ok(response))
    }
}

#[cold]
fn own(status: StatusCode) -> Response<Body> {
    let text = match status {
        // The server's health: it lives, whatever its plugins do, and also while it drains.
        StatusCode::OK => "ok\n",
        StatusCode::NOT_FOUND => "no plugin is mounted here\n",
        _ => "no plugin is loaded\n",
    };
    let mut response = Response::new(Body::from_static(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}
