//! Tower services, and thereby axum routers, as plugins.

use std::any::Any;
use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tower_service::Service;

use crate::body::Body;
use crate::export::IntoApp;
use crate::ffi::{App, BoxError, Head, Instance, Payload, Reply};
use crate::request::Request;
use crate::response::{failed_or_refused, reply};

#[diagnostic::do_not_recommend]
impl<S, B> IntoApp for S
where
    S: Service<http::Request<Body>, Response = http::Response<B>, Error: Into<BoxError>, Future: Send + 'static>,
    S: Clone + Send + 'static,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    type App = Tower<S>;

    fn into_app(self, instance: &'static Instance) -> Tower<S> {
        Tower { instance, service: Mutex::new(prepared(self)) }
    }
}

/// A router that knows its state. Without it each request would make services of the handlers anew (see the documentation
/// of axum's `Router::with_state`); axum's own server does the same.
#[cfg(feature = "axum")]
fn prepared<S: 'static>(mut service: S) -> S {
    if let Some(router) = (&mut service as &mut dyn Any).downcast_mut::<axum::Router>() {
        *router = std::mem::take(router).with_state(());
    }
    service
}

#[cfg(not(feature = "axum"))]
fn prepared<S>(service: S) -> S {
    service
}

/// The app of a tower service.
pub struct Tower<S> {
    instance: &'static Instance,
    /// Where each thread takes its clone from.
    service: Mutex<S>,
}

thread_local! {
    /// This thread's clone of a service, with the address of its [`Tower`]. A service is called through `&mut`: a clone for
    /// each thread, instead of for each request, spares that and lets it be a service that is not `Sync`.
    static CLONE: Cell<Option<(usize, Box<dyn Any>)>> = const { Cell::new(None) };
}

impl<S, B> Tower<S>
where
    S: Service<http::Request<Body>, Response = http::Response<B>, Error: Into<BoxError>> + Clone + Send + 'static,
{
    fn address(&'static self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    fn clone_service(&self) -> S {
        self.service.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Calls the service as soon as it is ready.
    fn poll_call(
        &'static self,
        waiting: &mut Option<S>,
        request: &mut Option<http::Request<Body>>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<S::Future, BoxError>> {
        // Taken out while it is used: if it panics, no half-changed service stays behind.
        let mine = CLONE.take();
        let mut service: Box<dyn Any> = match (waiting.take(), mine) {
            (Some(service), _) => Box::new(service),
            (None, Some((owner, service))) if owner == self.address() => service,
            (None, _) => Box::new(self.clone_service()),
        };
        let ready: &mut S = service.downcast_mut().expect("the address says whose clone it is");
        match ready.poll_ready(cx) {
            Poll::Pending => {
                // Its readiness, once it comes, is this request's: it waits here, and the thread takes a fresh clone.
                *waiting = service.downcast().ok().map(|service| *service);
                Poll::Pending
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error.into())),
            Poll::Ready(Ok(())) => {
                let request = request.take().expect("called once");
                let future = ready.call(request);
                CLONE.set(Some((self.address(), service)));
                Poll::Ready(Ok(future))
            }
        }
    }
}

impl<S, B> App for Tower<S>
where
    S: Service<http::Request<Body>, Response = http::Response<B>, Error: Into<BoxError>, Future: Send + 'static>,
    S: Clone + Send + 'static,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    fn call(&'static self, head: Head, body: Payload) -> impl Future<Output = Reply> + Send + 'static {
        let request = Request::new(self.instance, head, Body::from_payload(body)).into_http();
        Call { tower: self, stage: Stage::Waiting { service: None, request: Some(request) } }
    }
}

pin_project_lite::pin_project! {
    /// One request in a service. Written out, since the compiler's form of it keeps room for all stages at once: a request
    /// and the service's future together are larger than what the allocator keeps at hand (1,032 bytes in glibc).
    struct Call<S: 'static, F> {
        tower: &'static Tower<S>,
        #[pin]
        stage: Stage<S, F>,
    }
}

pin_project_lite::pin_project! {
    #[project = StageProjection]
    enum Stage<S, F> {
        Waiting { service: Option<S>, request: Option<http::Request<Body>> },
        Running { #[pin] future: F },
    }
}

impl<S, B> Future for Call<S, S::Future>
where
    S: Service<http::Request<Body>, Response = http::Response<B>, Error: Into<BoxError>> + Clone + Send + 'static,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    type Output = Reply;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Reply> {
        let mut this = self.project();
        let response = loop {
            match this.stage.as_mut().project() {
                StageProjection::Running { future } => break ready!(future.poll(cx)).map_err(Into::into),
                StageProjection::Waiting { service, request } => {
                    match ready!(this.tower.poll_call(service, request, cx)) {
                        Ok(future) => this.stage.set(Stage::Running { future }),
                        Err(error) => break Err(error),
                    }
                }
            }
        };
        Poll::Ready(match response {
            Ok(response) => reply(response.map(Body::new)),
            Err(error) => reply(failed_or_refused("the service failed", &*error)),
        })
    }
}

#[cfg(feature = "axum")]
mod axum_types {
    //! This crate's own types as arguments and results of axum handlers.

    use axum::extract::FromRequestParts;
    use axum::http::request::Parts;

    use crate::StatusCode;
    use crate::body::{Body, CollectError};
    use crate::plugin::{ControlError, Host, Shutdown};
    use crate::request::RequestInfo;
    use crate::response::{Failure, IntoResponse};

    /// The request did not come through a plugin: a unit test called the router itself.
    type Rejection = (StatusCode, &'static str);

    impl<S: Sync> FromRequestParts<S> for RequestInfo {
        type Rejection = Rejection;

        async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<RequestInfo, Rejection> {
            parts
                .extensions
                .get::<RequestInfo>()
                .cloned()
                .ok_or((StatusCode::INTERNAL_SERVER_ERROR, "this request did not come through a plugin"))
        }
    }

    impl<S: Sync> FromRequestParts<S> for Shutdown {
        type Rejection = Rejection;

        async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Shutdown, Rejection> {
            Ok(RequestInfo::from_request_parts(parts, state).await?.shutdown())
        }
    }

    impl<S: Sync> FromRequestParts<S> for Host {
        type Rejection = Rejection;

        async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Host, Rejection> {
            Ok(RequestInfo::from_request_parts(parts, state).await?.host())
        }
    }

    macro_rules! results {
        ($($type:ty),*) => {$(
            impl axum::response::IntoResponse for $type {
                fn into_response(self) -> axum::response::Response {
                    IntoResponse::into_response(self).map(axum::body::Body::new)
                }
            }
        )*};
    }
    results!(Body, Failure, CollectError, ControlError);
}
