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
//! | GET | `/debug/admin/challenge` | right Host | what the page signs its requests with (see `signature`) |
//! | GET | `/debug/admin/link` | Unix socket | the page's address with the token |
//! | POST | `/debug/admin/rotate` | Unix socket | the same, with a new token: those before are worth nothing |
//! | GET | `/metrics` | token, or that for metrics | counters and gauges, for Prometheus |
//! | GET | `/livez`, `/readyz`, `/healthz` | anyone | 200, or 503 while nothing serves or a shutdown has begun |
//!
//! On the Unix socket the kernel has said who asks, so all of it is open there. A state changes by POST only.

use http::{Method, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body, Bytes};
use serde::{Deserialize, Serialize};

use super::access::{Access, Denied, Head};
use super::response::{Response, full, json, problem, text};
use super::signature;
use super::slots::Slot;
use super::{Peer, Surface, Tcp, exposition, page};
use crate::master::handle::{Gone, OpOptions, Readiness};
use crate::report::{Cause, Generation, OpId, OpResult, Report, Verb};

/// Bytes of a request's body.
const BODY_LIMIT: usize = 64 * 1024;
/// How long a body may take.
const BODY_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);
/// How late a guess at the token is answered. Only the guesser waits.
const GUESS_DELAY: std::time::Duration = std::time::Duration::from_secs(1);

#[derive(Clone, Copy, Debug)]
enum To {
    Home,
    Asset(&'static page::Asset),
    Live,
    Ready,
    Status,
    Operation,
    Operate(Verb),
    Challenge,
    Link,
    Rotate,
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
    route(Method::GET, "/debug/admin/auth.js", Access::RightHost, To::Asset(&page::AUTH)),
    route(Method::GET, "/debug/admin/challenge", Access::RightHost, To::Challenge),
    route(Method::GET, "/debug/admin/link", Access::Socket, To::Link),
    route(Method::POST, "/debug/admin/rotate", Access::Socket, To::Rotate),
    route(Method::GET, "/metrics", Access::MetricsToken, To::Metrics),
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

/// Answers one request on the connection of `slot`.
pub async fn answer<B>(surface: &Surface, peer: &Peer, slot: &Slot, request: http::Request<B>) -> Response
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
    let method = if head.method == Method::HEAD { &Method::GET } else { &head.method };
    // Who may not even see it learns no more; who only came the wrong way is told the right one, token or not.
    let access = if *method == route.method { route.access } else { route.access.min(Access::RightHost) };
    let checked = Head { method: &head.method, uri: &head.uri, headers: &head.headers };
    let proof = match surface.check(peer, access, checked) {
        Ok(proof) => proof,
        Err(denied) => {
            surface.denials.log(peer, &head.method, path, denied.status, &denied.error);
            if denied.guess {
                // A price on each guess at the token.
                tokio::time::sleep(GUESS_DELAY).await;
            }
            return denial(&denied);
        }
    };
    let mut response = if *method != route.method {
        let why = format!("it needs {}", route.method);
        surface.denials.log(peer, &head.method, path, StatusCode::METHOD_NOT_ALLOWED, &why);
        let html = head.headers.get(header::ACCEPT).is_some_and(|accept| {
            accept.to_str().is_ok_and(|accept| accept.split(',').any(|kind| kind.trim().starts_with("text/html")))
        });
        wrong_method(surface, peer, route, html)
    } else {
        serve(surface, peer, slot, (route, id), body).await.unwrap_or_else(|Gone| gone())
    };
    prove(&mut response, proof.as_ref());
    response
}

/// Shows the page that the response comes from a server that knows the token.
fn prove(response: &mut Response, proof: Option<&signature::Proof>) {
    if let Some(value) = proof.and_then(|proof| header::HeaderValue::from_str(proof.as_str()).ok()) {
        response.headers_mut().insert(signature::PROOF, value);
    }
}

async fn serve<B>(
    surface: &Surface,
    peer: &Peer,
    slot: &Slot,
    (route, id): (&'static Route, &str),
    body: B,
) -> Result<Response, Gone>
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
        To::Live => live(),
        To::Ready => ready(surface),
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
                let Some(_operation) = slot.begin_operation() else { return Ok(too_many()) };
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
        To::Challenge => match &surface.tcp {
            Some(Tcp { policy, .. }) => json(
                StatusCode::OK,
                &Challenge { instance: policy.challenger.instance(), challenge: policy.challenge() },
            ),
            None => page_is_off(),
        },
        To::Link => link(surface),
        To::Rotate => rotate(surface, peer).await,
    })
}

pub fn live() -> Response {
    text(StatusCode::OK, "ok\n")
}

/// Returns what the loop has said last, without asking it: however many probes come, it has no work with them.
pub fn ready(surface: &Surface) -> Response {
    match surface.handle.readiness() {
        Ok(Readiness::Ready) => text(StatusCode::OK, "ok\n"),
        Ok(Readiness::ShuttingDown) => text(StatusCode::SERVICE_UNAVAILABLE, "shutting down\n"),
        Ok(Readiness::NotServing) => text(StatusCode::SERVICE_UNAVAILABLE, "no generation serves\n"),
        Err(Gone) => gone(),
    }
}

pub fn gone() -> Response {
    problem(StatusCode::SERVICE_UNAVAILABLE, &Gone.to_string(), "it is shutting down; start it anew")
}

fn too_many() -> Response {
    problem(
        StatusCode::SERVICE_UNAVAILABLE,
        "failed to begin another operation: too many callers wait for theirs",
        "wait for some of them, or see /debug/admin/status",
    )
}

fn page_is_off() -> Response {
    problem(
        StatusCode::NOT_FOUND,
        "failed to find the admin page: [admin] listen is \"off\"",
        "use the command line, or set an address",
    )
}

fn link(surface: &Surface) -> Response {
    match (surface.link(), &surface.tcp) {
        (Some(url), Some(tcp)) => {
            let metrics_token_file = tcp.policy.tokens.metrics_path().display().to_string();
            json(StatusCode::OK, &Link { url, metrics_token_file })
        }
        _ => page_is_off(),
    }
}

/// Replaces the tokens, off this thread.
async fn rotate(surface: &Surface, peer: &Peer) -> Response {
    let Some(tcp) = &surface.tcp else { return page_is_off() };
    let tokens = tcp.policy.tokens.clone();
    match tokio::task::spawn_blocking(move || tokens.replace()).await {
        Ok(Ok(())) => {
            tracing::info!(%peer, "admin tokens replaced");
            link(surface)
        }
        Ok(Err(error)) => {
            tracing::error!(%peer, "{error}");
            let hint = "see to the state directory and try again; a token that is not replaced stays in force";
            problem(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string(), hint)
        }
        Err(error) => {
            tracing::error!(%peer, "failed to replace the admin tokens: {error}");
            problem(StatusCode::INTERNAL_SERVER_ERROR, &format!("failed to replace the tokens: {error}"), "try again")
        }
    }
}

/// What a page signs.
#[derive(Serialize)]
struct Challenge<'a> {
    instance: &'a str,
    challenge: String,
}

/// The page's address with the token.
#[derive(Debug, Serialize)]
struct Link {
    url: String,
    metrics_token_file: String,
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
    prove(&mut response, denied.proof.as_ref());
    response
}

#[cfg(test)]
pub mod tests;
