//! How the rest of the master's process (admin, dev) talks to the loop: requests in, reports and status out. Every request is
//! answered exactly once; a loop that has ended answers [`Gone`]. Readiness is not asked for: the loop publishes it, so that
//! probes cost it nothing.

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

use crate::report::{Cause, Generation, OpId, Report, Status, Verb};

/// What the loop may be asked.
#[derive(Debug)]
pub enum Request {
    /// Answered when the operation ended: committed, refused or superseded. A shutdown is answered when it has begun.
    Operate {
        verb: Verb,
        cause: Cause,
        options: OpOptions,
        reply: oneshot::Sender<Report>,
    },
    Status {
        reply: oneshot::Sender<Status>,
    },
    Operation {
        id: OpId,
        reply: oneshot::Sender<Option<Report>>,
    },
}

/// What a caller may ask of one operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OpOptions {
    /// Go on although no plugin is left.
    pub allow_empty: bool,
    /// Cut this one alone.
    pub generation: Option<Generation>,
    /// Take what was rolled back or quarantined, too.
    pub force: bool,
    /// End what serves before its successor starts.
    pub cold: bool,
    /// Of a rollback: the generation whose set shall serve again; else the one before.
    pub to: Option<Generation>,
    /// Of a rollback: with all of its configuration, not only its plugins'.
    pub with_config: bool,
}

impl OpOptions {
    /// One operation is to be what two callers asked for: whatever one of them allowed or needs.
    pub fn join(&mut self, other: OpOptions) {
        self.allow_empty |= other.allow_empty;
        self.force |= other.force;
        self.cold |= other.cold;
    }
}

/// The master's loop has ended.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("failed to reach the master: it has ended")]
pub struct Gone;

/// Whether new requests should come here: what `/readyz` answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    NotServing,
    ShuttingDown,
}

#[derive(Clone, Debug)]
pub struct Handle {
    requests: mpsc::Sender<Request>,
    readiness: watch::Receiver<Readiness>,
}

/// The loop's end of a [`Handle`].
#[derive(Debug)]
pub struct Desk {
    pub requests: mpsc::Receiver<Request>,
    /// Nothing serves before the loop has said so.
    pub readiness: watch::Sender<Readiness>,
}

impl Handle {
    /// A handle and the loop's end of it.
    pub fn new() -> (Handle, Desk) {
        let (sender, requests) = mpsc::channel(64);
        let (readiness, receiver) = watch::channel(Readiness::NotServing);
        (Handle { requests: sender, readiness: receiver }, Desk { requests, readiness })
    }

    /// Returns what the loop has published last.
    pub fn readiness(&self) -> Result<Readiness, Gone> {
        // The loop has its end for as long as it lives.
        self.readiness.has_changed().map_err(|_| Gone)?;
        Ok(*self.readiness.borrow())
    }

    pub async fn operate(&self, verb: Verb, cause: Cause, options: OpOptions) -> Result<Report, Gone> {
        self.ask(|reply| Request::Operate { verb, cause, options, reply }).await
    }

    pub async fn status(&self) -> Result<Status, Gone> {
        self.ask(|reply| Request::Status { reply }).await
    }

    pub async fn operation(&self, id: OpId) -> Result<Option<Report>, Gone> {
        self.ask(|reply| Request::Operation { id, reply }).await
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, Gone> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| Gone)?;
        answer.await.map_err(|_| Gone)
    }
}
