//! The HTTP/2 clients of the load: several share a connection, as tabs of a browser do, and honour GOAWAY: no request is begun
//! on a connection that has said it, and those under way must be answered on it. What the protocol says was not looked at is
//! sent again and counted; nothing else is.

use std::sync::Arc;

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};

use super::clients::{Client, Request};
use super::connection::Failed;
use super::tally::Fault;
use crate::http::Response;
use crate::http2;

/// One of so many requests takes up to [`LONGEST`] milliseconds, so that some are under way whenever a reload comes.
const SLOW: u64 = 4;
const LONGEST: u64 = 100;
/// How often a request is sent again, before that is a fault.
const TRIES: u32 = 5;

/// The connection that some clients share.
#[derive(Default)]
pub(super) struct Pool(Mutex<Option<SendRequest<Bytes>>>);

/// Why a request was not answered.
enum Unanswered {
    /// It was not looked at, or never sent.
    Unprocessed(String),
    Failed(Failed),
}

impl Client {
    pub(super) async fn http2(mut self, pool: Arc<Pool>) {
        while !self.shared.is_stopped() {
            let think = self.think();
            sleep(think).await;
            let slow = (self.rng.below(SLOW) == 0).then(|| format!("/sleep?ms={}", self.rng.below(LONGEST)));
            let request = self.request(slow.as_deref(), false);
            let path = slow.as_deref().unwrap_or(if request.body.is_some() { "/echo" } else { "/" });
            let mut tries = 0;
            let ended = loop {
                let once = self.http2_round(&pool, &request, path);
                match timeout(self.shared.plan.timeout, once).await {
                    Err(_) => break Err((Fault::Timeout, format!("no answer within {:?}", self.shared.plan.timeout))),
                    Ok(Ok(response)) => break self.check(&request, &response),
                    Ok(Err(Unanswered::Failed(failed))) => break Err(failed),
                    Ok(Err(Unanswered::Unprocessed(what))) if tries == TRIES => break Err((Fault::Refused, what)),
                    Ok(Err(Unanswered::Unprocessed(_))) => {
                        tries += 1;
                        self.shared.tally().counts(self.class).unprocessed += 1;
                    }
                }
            };
            match ended {
                Ok(()) => self.answered(&request),
                Err(failed) => self.fail(&request, failed),
            }
        }
    }

    async fn http2_round(&self, pool: &Pool, request: &Request, path: &str) -> Result<Response, Unanswered> {
        let mut send = self.http2_connection(pool).await.map_err(Unanswered::Failed)?;
        // Its turn may come late: the server limits how many there are at once.
        send = match send.ready().await {
            Ok(send) => send,
            Err(error) => return Err(Unanswered::Unprocessed(format!("before it was sent: {error}"))),
        };
        let id = request.id.to_string();
        let method = if request.body.is_some() { "POST" } else { "GET" };
        let head = http2::head(method, self.shared.plan.target, path, &[("x-id", &id)]);
        let failed = |when: &str, fault: Fault, error: h2::Error| match http2::is_unprocessed(&error) {
            true => Unanswered::Unprocessed(format!("{when}: {error}")),
            false => {
                Unanswered::Failed((if error.is_reset() { Fault::Reset } else { fault }, format!("{when}: {error}")))
            }
        };
        let sent = send.send_request(head, request.body.is_none());
        let (response, mut upload) = sent.map_err(|error| failed("as it was sent", Fault::Eof, error))?;
        if let Some(body) = &request.body {
            upload.send_data(body.clone().into(), true).map_err(|error| failed("in its body", Fault::Eof, error))?;
        }
        let response = response.await.map_err(|error| failed("before the answer", Fault::Eof, error))?;
        let response =
            http2::whole(response).await.map_err(|error| failed("in the answer", Fault::Truncated, error))?;
        if http2::is_told(&mut send).await {
            self.shared.tally().counts(self.class).answered_after_goaway += 1;
        }
        Ok(response)
    }

    /// The connection for a new request: another one if that of the pool has said GOAWAY, or is gone.
    async fn http2_connection(&self, pool: &Pool) -> Result<SendRequest<Bytes>, Failed> {
        let mut current = pool.0.lock().await;
        if let Some(send) = &mut *current
            && !http2::is_told(send).await
        {
            return Ok(send.clone());
        }
        let closed = current.is_some();
        let (send, _) = http2::open(self.shared.plan.target, self.shared.plan.tls.as_ref())
            .await
            .map_err(|error| (Fault::Connect, error.to_string()))?;
        let mut tally = self.shared.tally();
        tally.counts(self.class).opened += 1;
        tally.counts(self.class).closed_announced += u64::from(closed);
        drop(tally);
        *current = Some(send.clone());
        Ok(send)
    }
}
