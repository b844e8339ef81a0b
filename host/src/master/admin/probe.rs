//! What is answered at `admin.probe_listen`, to anyone and under any Host: `/livez`, `/readyz` and, if the operator says so,
//! `/metrics`. Nothing else is there, and nothing that is asked here reaches the master's loop more than once a second.

use std::net::SocketAddr;
use std::time::Duration;

use http::{Method, StatusCode, header};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::response::{Response, full, text};
use super::{Surface, exposition, routes};
use crate::master::handle::Gone;

/// How old metrics may be. However many ask, the status is built once in this time.
const METRICS_AGE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Probes {
    pub address: SocketAddr,
    metrics: Metrics,
}

/// Whether anyone may read `/metrics` (`admin.public_metrics`).
#[derive(Debug)]
pub enum Metrics {
    Private,
    Public(Mutex<Option<(Instant, String)>>),
}

impl Metrics {
    pub fn of(public: bool) -> Metrics {
        if public { Metrics::Public(Mutex::default()) } else { Metrics::Private }
    }
}

impl Probes {
    pub fn new(address: SocketAddr, metrics: Metrics) -> Probes {
        Probes { address, metrics }
    }

    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }
}

/// Answers one request.
pub async fn answer<B>(surface: &Surface, request: http::Request<B>) -> Response {
    let metrics = surface.probes.as_ref().map_or(&Metrics::Private, Probes::metrics);
    let known = matches!(
        (request.uri().path(), metrics),
        ("/livez" | "/readyz" | "/healthz", _) | ("/metrics", Metrics::Public(_))
    );
    if !known {
        return text(StatusCode::NOT_FOUND, "not found\n");
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "needs GET\n");
        response.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match (request.uri().path(), metrics) {
        ("/livez", _) => routes::live(),
        ("/metrics", Metrics::Public(cache)) => match exposed(surface, cache).await {
            Ok(metrics) => full(StatusCode::OK, exposition::KIND, metrics.into()),
            Err(Gone) => routes::gone(),
        },
        _ => routes::ready(surface),
    }
}

/// Returns the metrics as they were a moment ago. Those who come while they are read wait for the same ones.
async fn exposed(surface: &Surface, cache: &Mutex<Option<(Instant, String)>>) -> Result<String, Gone> {
    let mut cache = cache.lock().await;
    if let Some((at, text)) = cache.as_ref()
        && at.elapsed() < METRICS_AGE
    {
        return Ok(text.clone());
    }
    let text = exposition::text(&surface.handle.status().await?);
    *cache = Some((Instant::now(), text.clone()));
    Ok(text)
}
