//! Responses of the admin surface: text, JSON and problems, each with what keeps a browser from being used against the server.

use http::{StatusCode, header};
use http_body_util::Full;
use hyper::body::Bytes;
use serde::Serialize;

pub type Response = http::Response<Full<Bytes>>;

#[derive(Serialize)]
struct Problem<'a> {
    error: &'a str,
    hint: &'a str,
}

pub fn problem(status: StatusCode, error: &str, hint: &str) -> Response {
    json(status, &Problem { error, hint })
}

pub fn text(status: StatusCode, text: &'static str) -> Response {
    full(status, "text/plain; charset=utf-8", text.into())
}

pub fn json(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(mut bytes) => {
            // For who reads it with curl.
            bytes.push(b'\n');
            full(status, "application/json", bytes.into())
        }
        Err(error) => {
            tracing::error!(%error, "failed to put an admin answer into JSON");
            text(StatusCode::INTERNAL_SERVER_ERROR, "failed to put the answer into JSON\n")
        }
    }
}

/// Every answer carries what keeps a browser from being used against us.
pub fn full(status: StatusCode, kind: &'static str, bytes: Bytes) -> Response {
    const HEADERS: [(header::HeaderName, &str); 7] = [
        (header::CACHE_CONTROL, "no-store"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    let mut response = Response::new(Full::new(bytes));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    for (name, value) in HEADERS {
        headers.insert(name, header::HeaderValue::from_static(value));
    }
    response
}
