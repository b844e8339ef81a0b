//! What the admin surface answers, and to whom: one table of routes.
//!
//! | method | path | who | answer |
//! |---|---|---|---|
//! | GET | `/` | right Host | to the page |
//! | GET | `/debug/admin` and its script, style and icon | right Host | the page |
//! | GET | `/debug/admin/status` | token | `Status` |
//! | GET | `/debug/admin/ops/ID` | token | `Report` |
//! | POST | `/debug/admin/reload` | token | `Report` once it has ended: 200 switched, 409 otherwise |
//! | POST | `/debug/admin/restart` | token | `Report` once the binary was tested: 202, or 409; then `ops/ID` |
//! | POST | `/debug/admin/cut` | token | `Report` once what drained has ended: 200, or 409 |
//! | POST | `/debug/admin/rollback` | token | the same |
//! | POST | `/debug/admin/shutdown` | token | `Report` once it has begun: 202 |
//! | GET | `/debug/admin/link` | Unix socket | the page's address with the token |
//! | GET | `/metrics` | token | counters and gauges, for Prometheus |
//! | GET | `/livez`, `/readyz`, `/healthz` | anyone | 200, or 503 while nothing serves or a shutdown has begun |
//!
//! On the Unix socket the kernel has said who asks, so all of it is open there. A state changes by POST only.

use http::{Method, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Bytes};
use serde::{Deserialize, Serialize};

use super::access::{Access, Denied};
use super::{Peer, Surface, exposition, page};
use crate::master::handle::{Gone, OpOptions};
use crate::report::{Cause, Generation, OpId, OpResult, Report, Verb};

/// Bytes of a request's body.
const BODY_LIMIT: usize = 64 * 1024;
/// How long a body may take.
const BODY_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);
/// How late a guess at the token is answered. Only the guesser waits.
const GUESS_DELAY: std::time::Duration = std::time::Duration::from_secs(1);

pub type Response = http::Response<Full<Bytes>>;

#[derive(Clone, Copy, Debug)]
enum To {
    Home,
    Asset(&'static page::Asset),
    Live,
    Ready,
    Status,
    Operation,
    Operate(Verb),
    Link,
    Metrics,
}

struct Route {
    method: Method,
    /// `{id}` at the end stands for one segment.
    path: &'static str,
    access: Access,
    to: To,
}

const fn route(method: Method, path: &'static str, access: Access, to: To) -> Route {
    Route { method, path, access, to }
}

static ROUTES: &[Route] = &[
    route(Method::GET, "/", Access::RightHost, To::Home),
    route(Method::GET, page::PATH, Access::RightHost, To::Asset(&page::INDEX)),
    route(Method::GET, "/debug/admin/admin.js", Access::RightHost, To::Asset(&page::SCRIPT)),
    route(Method::GET, "/debug/admin/admin.css", Access::RightHost, To::Asset(&page::STYLE)),
    route(Method::GET, "/debug/admin/icon.svg", Access::RightHost, To::Asset(&page::ICON)),
    route(Method::GET, "/debug/admin/status", Access::Token, To::Status),
    route(Method::GET, "/debug/admin/ops/{id}", Access::Token, To::Operation),
    route(Method::POST, "/debug/admin/reload", Access::Token, To::Operate(Verb::Reload)),
    route(Method::POST, "/debug/admin/cut", Access::Token, To::Operate(Verb::Cut)),
    route(Method::POST, "/debug/admin/restart", Access::Token, To::Operate(Verb::Restart)),
    route(Method::POST, "/debug/admin/rollback", Access::Token, To::Operate(Verb::Rollback)),
    route(Method::POST, "/debug/admin/shutdown", Access::Token, To::Operate(Verb::Shutdown)),
    route(Method::GET, "/debug/admin/link", Access::Socket, To::Link),
    route(Method::GET, "/metrics", Access::Token, To::Metrics),
    route(Method::GET, "/livez", Access::Anyone, To::Live),
    route(Method::GET, "/readyz", Access::Anyone, To::Ready),
    route(Method::GET, "/healthz", Access::Anyone, To::Ready),
];

/// The route of `path`, whatever its method, and what stands for `{id}`.
fn find(path: &str) -> Option<(&'static Route, &str)> {
    let path = if path == "/debug/admin/" { page::PATH } else { path };
    ROUTES.iter().find_map(|route| match route.path.strip_suffix("{id}") {
        Some(prefix) => path.strip_prefix(prefix).filter(|id| !id.contains('/')).map(|id| (route, id)),
        None => (route.path == path).then_some((route, "")),
    })
}

/// What to say to who said it wrong.
const ASKING: &str =
    "send none, or {\"allow_empty\":true} or {\"cold\":true} with a reload, or {\"generation\":7} with a cut";

/// What a caller may say with an operation.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Ask {
    /// Of a reload.
    allow_empty: bool,
    /// Of a cut.
    generation: Option<u64>,
    /// Of a reload.
    force: bool,
    /// Of whatever starts another generation.
    cold: bool,
    /// Of a rollback.
    to: Option<u64>,
    /// Of a rollback.
    with_config: bool,
}

/// Answers one request.
pub async fn answer<B>(surface: &Surface, peer: &Peer, request: http::Request<B>) -> Response
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    let Some((route, id)) = find(path) else {
        return problem(
            StatusCode::NOT_FOUND,
            "failed to find this path",
            "see /debug/admin, /debug/admin/status, /debug/admin/ops/ID, /debug/admin/reload, /debug/admin/restart, /debug/admin/rollback, /debug/admin/cut, /debug/admin/shutdown, \
             /metrics, /livez, /readyz",
        );
    };
    // HEAD is GET without the body, which hyper leaves out.
    let method = if head.method == Method::HEAD { Method::GET } else { head.method };
    // Who may not even see it learns no more; who only came the wrong way is told the right one, token or not.
    let access = if method == route.method { route.access } else { route.access.min(Access::RightHost) };
    if let Err(denied) = surface.check(peer, access, &head.uri, &head.headers) {
        tracing::warn!(peer = %peer, %method, path, status = denied.status.as_u16(), "admin request denied: {}", denied.error);
        if denied.guess {
            // A price on each guess at the token.
            tokio::time::sleep(GUESS_DELAY).await;
        }
        return denial(&denied);
    }
    if method != route.method {
        tracing::warn!(peer = %peer, %method, path, status = 405, "admin request denied: it needs {}", route.method);
        let html = head.headers.get(header::ACCEPT).is_some_and(|accept| {
            accept.to_str().is_ok_and(|accept| accept.split(',').any(|kind| kind.trim().starts_with("text/html")))
        });
        return wrong_method(surface, peer, route, html);
    }
    serve(surface, peer, route, id, body).await.unwrap_or_else(|Gone| {
        problem(StatusCode::SERVICE_UNAVAILABLE, &Gone.to_string(), "it is shutting down; start it anew")
    })
}

async fn serve<B>(surface: &Surface, peer: &Peer, route: &'static Route, id: &str, body: B) -> Result<Response, Gone>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    Ok(match route.to {
        To::Home => {
            let mut response = text(StatusCode::FOUND, "the admin page is at /debug/admin\n");
            response.headers_mut().insert(header::LOCATION, header::HeaderValue::from_static(page::PATH));
            response
        }
        To::Asset(asset) => full(StatusCode::OK, asset.kind, asset.text.into()),
        To::Live => text(StatusCode::OK, "ok\n"),
        To::Ready => match surface.handle.status().await {
            Ok(status) if status.ready => text(StatusCode::OK, "ok\n"),
            Ok(status) if status.shutting_down => text(StatusCode::SERVICE_UNAVAILABLE, "shutting down\n"),
            Ok(_) => text(StatusCode::SERVICE_UNAVAILABLE, "no generation serves\n"),
            Err(gone) => return Err(gone),
        },
        To::Status => json(StatusCode::OK, &surface.handle.status().await?),
        To::Operation => match id.parse() {
            Err(_) => problem(StatusCode::NOT_FOUND, "failed to understand the operation's number", "such as ops/12"),
            Ok(number) => match surface.handle.operation(OpId(number)).await? {
                Some(report) => json(StatusCode::OK, &report),
                None => problem(
                    StatusCode::NOT_FOUND,
                    &format!("failed to find operation {number}"),
                    "the last ones are kept; /debug/admin/status lists them",
                ),
            },
        },
        To::Operate(verb) => match ask(body).await {
            Err(refused) => refused,
            Ok(Ask { allow_empty, generation, force, cold, to, with_config }) => {
                let cause = Cause::Admin { peer: peer.to_string() };
                let (generation, to) = (generation.map(Generation), to.map(Generation));
                let options = OpOptions { allow_empty, generation, force, cold, to, with_config };
                let report = surface.handle.operate(verb, cause, options).await?;
                json(status_of(&report), &report)
            }
        },
        To::Metrics => {
            let text = exposition::text(&surface.handle.status().await?);
            full(StatusCode::OK, exposition::KIND, text.into())
        }
        To::Link => match surface.link() {
            Some(url) => json(StatusCode::OK, &Link { url }),
            None => problem(
                StatusCode::NOT_FOUND,
                "failed to find the admin page: [admin] listen is \"off\"",
                "use the command line, or set an address",
            ),
        },
    })
}

/// The page's address with the token.
#[derive(Debug, Serialize)]
struct Link {
    url: String,
}

fn status_of(report: &Report) -> StatusCode {
    match report.result {
        OpResult::Switched | OpResult::Done => StatusCode::OK,
        OpResult::Refused | OpResult::RolledBack | OpResult::Superseded => StatusCode::CONFLICT,
        OpResult::Queued | OpResult::Running | OpResult::ShuttingDown => StatusCode::ACCEPTED,
    }
}

/// What the body asks for; none asks for nothing in particular.
async fn ask<B>(body: B) -> Result<Ask, Response>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let collected = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, BODY_LIMIT).collect()).await;
    let bytes = match collected {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            return Err(problem(
                StatusCode::PAYLOAD_TOO_LARGE,
                &format!("failed to read the body: it has more than {BODY_LIMIT} bytes"),
                ASKING,
            ));
        }
        Ok(Err(error)) => {
            return Err(problem(
                StatusCode::BAD_REQUEST,
                &format!("failed to read the body: {error}"),
                "send it whole",
            ));
        }
        Err(_) => {
            return Err(problem(StatusCode::REQUEST_TIMEOUT, "failed to read the body in 5 s", "send it at once"));
        }
    };
    if bytes.trim_ascii().is_empty() {
        return Ok(Ask::default());
    }
    serde_json::from_slice(&bytes)
        .map_err(|error| problem(StatusCode::BAD_REQUEST, &format!("failed to understand the body: {error}"), ASKING))
}

fn wrong_method(surface: &Surface, peer: &Peer, route: &Route, html: bool) -> Response {
    let curl = surface.curl(peer, &route.method, route.path);
    let mut response = match route.to {
        To::Operate(verb) if html => full(
            StatusCode::METHOD_NOT_ALLOWED,
            "text/html; charset=utf-8",
            page::action(verb, &surface.name, &curl).into(),
        ),
        _ => problem(
            StatusCode::METHOD_NOT_ALLOWED,
            &format!("failed to answer: {} needs {}", route.path, route.method),
            &format!("run: {curl}"),
        ),
    };
    if let Ok(value) = header::HeaderValue::from_str(route.method.as_str()) {
        response.headers_mut().insert(header::ALLOW, value);
    }
    response
}

fn denial(denied: &Denied) -> Response {
    let mut response = problem(denied.status, &denied.error, &denied.hint);
    if denied.status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
    }
    response
}

#[derive(Serialize)]
struct Problem<'a> {
    error: &'a str,
    hint: &'a str,
}

fn problem(status: StatusCode, error: &str, hint: &str) -> Response {
    json(status, &Problem { error, hint })
}

fn text(status: StatusCode, text: &'static str) -> Response {
    full(status, "text/plain; charset=utf-8", text.into())
}

fn json(status: StatusCode, value: &impl Serialize) -> Response {
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
fn full(status: StatusCode, kind: &'static str, bytes: Bytes) -> Response {
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

#[cfg(test)]
pub mod tests;
