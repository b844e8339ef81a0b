//! What a handler may answer with, and how it becomes a response.

use std::borrow::Cow;
use std::convert::Infallible;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{StatusCode, response};
use serde::Serialize;

use crate::body::Body;
use crate::client_error;
use crate::ffi::{BoxError, Payload, Reply, error_text};
use crate::plugin::ControlError;

/// A response: that of the `http` crate, so that its builder and every layer of the tower world fit.
///
/// ```
/// use baton_plugin_api::{Body, Request, Response};
///
/// async fn teapot(_: Request) -> Response {
///     let mut response = Response::new(Body::full("short and stout\n"));
///     *response.status_mut() = http::StatusCode::IM_A_TEAPOT;
///     response
/// }
/// ```
pub type Response<B = Body> = http::Response<B>;

const TEXT: &str = "text/plain; charset=utf-8";
const BYTES: &str = "application/octet-stream";

/// What a handler may return.
///
/// | value | response |
/// |---|---|
/// | `&'static str`, `String`, `Cow<'static, str>` | `200`, `text/plain; charset=utf-8` |
/// | `&'static [u8]`, `Vec<u8>`, [`Bytes`] | `200`, `application/octet-stream` |
/// | [`Json`] | `200`, `application/json` |
/// | [`Body`] | `200`, no content type |
/// | `()` | `200`, empty |
/// | [`StatusCode`] | that status, empty |
/// | `(StatusCode, T)` | `T` with another status |
/// | `([(name, value); N], T)`, `(HeaderMap, T)` | `T` with header fields set |
/// | `(StatusCode, [(name, value); N], T)`, `(StatusCode, HeaderMap, T)` | both |
/// | `http::Response<B>` of any body type | itself |
/// | `Result<T, E>` | whichever it is; see [`Failure`] for an `E` that takes any error |
///
/// ```
/// use baton_plugin_api::{IntoResponse, Request, StatusCode};
///
/// async fn page(request: Request) -> impl IntoResponse {
///     (StatusCode::OK, [("content-type", "text/html")], format!("<h1>{}</h1>", request.path()))
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a response",
    label = "a handler must not return this",
    note = "return text, bytes, `Body`, `Json`, `StatusCode`, an `http::Response`, a tuple of status, header fields and one of these, or a `Result` of them",
    note = "for errors of any type: `Result<T, baton_plugin_api::Failure>`"
)]
pub trait IntoResponse {
    /// Makes the response.
    fn into_response(self) -> Response;

    /// The same on its way out; implemented apart only where that is cheaper.
    #[doc(hidden)]
    fn into_reply(self) -> Departing
    where
        Self: Sized,
    {
        Departing(reply(self.into_response()))
    }
}

/// A response on its way out, opaque to authors.
pub struct Departing(pub(crate) Reply);

pub(crate) fn reply(response: Response) -> Reply {
    let (response::Parts { status, headers, .. }, body) = response.into_parts();
    Reply { status, headers, content_type: None, body: body.into_payload() }
}

fn typed(body: impl Into<Bytes>, content_type: &'static str) -> Response {
    let mut response = Response::new(Body::full(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// The response of [`typed`] without a header map.
fn typed_reply(body: impl Into<Bytes>, content_type: &'static str) -> Departing {
    Departing(Reply {
        status: StatusCode::OK,
        headers: HeaderMap::new(),
        content_type: Some(content_type),
        body: Payload::from(body.into()),
    })
}

macro_rules! typed {
    ($($type:ty, $content_type:expr, $value:ident => $bytes:expr;)*) => {$(
        impl IntoResponse for $type {
            fn into_response(self) -> Response {
                let $value = self;
                typed($bytes, $content_type)
            }

            fn into_reply(self) -> Departing {
                let $value = self;
                typed_reply($bytes, $content_type)
            }
        }
    )*};
}

typed! {
    &'static str, TEXT, value => Bytes::from_static(value.as_bytes());
    String, TEXT, value => value;
    Cow<'static, str>, TEXT, value => match value {
        Cow::Borrowed(value) => Bytes::from_static(value.as_bytes()),
        Cow::Owned(value) => Bytes::from(value),
    };
    &'static [u8], BYTES, value => Bytes::from_static(value);
    Vec<u8>, BYTES, value => value;
    Bytes, BYTES, value => value;
}

impl<const N: usize> IntoResponse for &'static [u8; N] {
    fn into_response(self) -> Response {
        self.as_slice().into_response()
    }
}

impl IntoResponse for () {
    fn into_response(self) -> Response {
        Response::new(Body::empty())
    }
}

impl IntoResponse for Infallible {
    fn into_response(self) -> Response {
        match self {}
    }
}

impl IntoResponse for StatusCode {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = self;
        response
    }
}

impl IntoResponse for Body {
    fn into_response(self) -> Response {
        Response::new(self)
    }
}

impl<B> IntoResponse for http::Response<B>
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    fn into_response(self) -> Response {
        self.map(Body::new)
    }
}

impl<T: IntoResponse, E: IntoResponse> IntoResponse for Result<T, E> {
    fn into_response(self) -> Response {
        match self {
            Ok(value) => value.into_response(),
            Err(error) => error.into_response(),
        }
    }

    fn into_reply(self) -> Departing {
        match self {
            Ok(value) => value.into_reply(),
            Err(error) => error.into_reply(),
        }
    }
}

impl<T: IntoResponse> IntoResponse for (StatusCode, T) {
    fn into_response(self) -> Response {
        let mut response = self.1.into_response();
        *response.status_mut() = self.0;
        response
    }

    fn into_reply(self) -> Departing {
        let mut reply = self.1.into_reply();
        reply.0.status = self.0;
        reply
    }
}

impl<T: IntoResponse> IntoResponse for (HeaderMap, T) {
    fn into_response(self) -> Response {
        let mut response = self.1.into_response();
        // `extend` replaces the fields that were there, and keeps repetitions in `self.0`.
        response.headers_mut().extend(self.0);
        response
    }
}

impl<T: IntoResponse> IntoResponse for (StatusCode, HeaderMap, T) {
    fn into_response(self) -> Response {
        (self.0, (self.1, self.2)).into_response()
    }
}

/// Sets `fields`, and then the status, if there is one to set; a 500 if one of them is not valid.
fn set_fields<K, V, const N: usize>(status: Option<StatusCode>, fields: [(K, V); N], mut response: Response) -> Response
where
    K: TryInto<HeaderName, Error: Into<http::Error>>,
    V: TryInto<HeaderValue, Error: Into<http::Error>>,
{
    for (name, value) in fields {
        let name = name.try_into().map_err(Into::into);
        match name.and_then(|name| Ok((name, value.try_into().map_err(Into::into)?))) {
            Ok((name, value)) => response.headers_mut().insert(name, value),
            Err(error) => return failed("a header field of the response is not valid", &error),
        };
    }
    if let Some(status) = status {
        *response.status_mut() = status;
    }
    response
}

impl<K, V, T, const N: usize> IntoResponse for ([(K, V); N], T)
where
    K: TryInto<HeaderName, Error: Into<http::Error>>,
    V: TryInto<HeaderValue, Error: Into<http::Error>>,
    T: IntoResponse,
{
    fn into_response(self) -> Response {
        set_fields(None, self.0, self.1.into_response())
    }
}

impl<K, V, T, const N: usize> IntoResponse for (StatusCode, [(K, V); N], T)
where
    K: TryInto<HeaderName, Error: Into<http::Error>>,
    V: TryInto<HeaderValue, Error: Into<http::Error>>,
    T: IntoResponse,
{
    fn into_response(self) -> Response {
        set_fields(Some(self.0), self.1, self.2.into_response())
    }
}

/// A value that is answered as JSON.
///
/// ```
/// # use baton_plugin_api::{testing, Json, Request};
/// async fn list(_: Request) -> Json<Vec<u32>> {
///     Json(vec![1, 2, 3])
/// }
/// # let plugin = testing::Plugin::start(list);
/// # assert_eq!(plugin.get("/").text(), "[1,2,3]");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Json<T>(pub T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        match serde_json::to_vec(&self.0) {
            Ok(json) => typed(json, "application/json"),
            Err(error) => failed("failed to write the response as JSON", &error),
        }
    }
}

/// Any error, as the error type of a handler: it is logged with its causes, and the response is a `500` without them.
///
/// An error that the client has caused is not logged as one, and the response is that of [`CollectError`](crate::CollectError):
/// a `413` for a body above the limit of [`Body::bytes`] (or of `http_body_util::Limited`, which axum's `to_bytes` uses), a
/// `400` for a body that broke off or is not what was asked for. This also holds where such an error is the source of another.
///
/// ```
/// # use baton_plugin_api::{testing, Failure, Request};
/// async fn port(_: Request) -> Result<String, Failure> {
///     let port: u16 = "no number".parse()?;
///     Ok(port.to_string())
/// }
/// # let plugin = testing::Plugin::start(port);
/// # assert_eq!(plugin.get("/").status(), 500);
/// # assert!(plugin.logs().iter().any(|line| line.message.contains("invalid digit")));
/// ```
#[derive(Debug)]
pub struct Failure(BoxError);

impl<E: Into<BoxError>> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure(error.into())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        failed_or_refused("the handler failed", &*self.0)
    }
}

impl IntoResponse for ControlError {
    fn into_response(self) -> Response {
        let status = match self {
            ControlError::NotAllowed => StatusCode::FORBIDDEN,
            ControlError::Unsupported => StatusCode::NOT_IMPLEMENTED,
            ControlError::NotServing => StatusCode::SERVICE_UNAVAILABLE,
        };
        (status, format!("{self}\n")).into_response()
    }
}

/// Returns the response to an error of a handler: a 4xx if the client has caused it, else as [`failed`].
pub(crate) fn failed_or_refused(what: &str, error: &(dyn std::error::Error + 'static)) -> Response {
    match client_error::response(error) {
        Some(response) => {
            tracing::debug!("the client is at fault: {}", error_text(error));
            response
        }
        None => failed(what, error),
    }
}

/// Logs why, and returns a 500 without it.
pub(crate) fn failed(what: &str, error: &(dyn std::error::Error + 'static)) -> Response {
    tracing::error!("{what}: {}", error_text(error));
    (StatusCode::INTERNAL_SERVER_ERROR, "internal server error\n").into_response()
}
