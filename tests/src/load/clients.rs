//! The kinds of client, each a loop that ends when the load is stopped, and what they have in common. The torture has a file
//! of its own.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::sleep;

use super::Shared;
use super::connection::{Connection, Failed, Idle};
use super::http2::Pool;
use super::tally::{Class, Fault};
use crate::http::Response;
use crate::stats::Rng;

/// Every how many fresh requests one asks the server to close, and checks that it does.
const ASK_TO_CLOSE: u64 = 2;

pub(super) async fn run(shared: Arc<Shared>) {
    let plan = &shared.plan;
    let mut tasks = JoinSet::new();
    let groups = [
        (Class::Keepalive, plan.keepalive),
        (Class::Fresh, plan.fresh),
        (Class::Slow, plan.slow),
        (Class::Pipelined, plan.pipelined),
        (Class::Torture, plan.torture),
        (Class::Http2, plan.http2 * plan.http2_streams),
        (Class::HalfClosed, plan.half_closed),
    ];
    let pools: Vec<_> = (0..plan.http2).map(|_| Arc::new(Pool::default())).collect();
    for (class, count) in groups {
        for index in 0..count {
            let seed = plan.seed.wrapping_mul(1000).wrapping_add((class as u64) << 32 | index as u64);
            let client = Client { shared: shared.clone(), class, rng: Rng(seed), answered_by: BTreeSet::new() };
            match class {
                Class::Keepalive => tasks.spawn(client.keepalive()),
                Class::Fresh => tasks.spawn(client.fresh()),
                Class::Slow => tasks.spawn(client.slow()),
                Class::Pipelined => tasks.spawn(client.pipelined()),
                Class::Torture => tasks.spawn(client.torture()),
                Class::HalfClosed => tasks.spawn(client.half_closed()),
                Class::Http2 => tasks.spawn(client.http2(pools[index % pools.len()].clone())),
            };
        }
    }
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            std::panic::resume_unwind(error.into_panic());
        }
    }
}

/// A request as it goes out, and what its answer must be.
pub(super) struct Request {
    pub(super) id: u64,
    pub(super) bytes: Vec<u8>,
    /// The body that must come back; without one, a line that names version, pid and id.
    pub(super) body: Option<Vec<u8>>,
    pub(super) sent: Duration,
}

/// Letters that differ from request to request.
pub(super) fn letters(seed: u64, length: u64) -> Vec<u8> {
    (0..length).map(|at| b'a' + ((at + seed) % 26) as u8).collect()
}

pub(super) struct Client {
    pub(super) shared: Arc<Shared>,
    pub(super) class: Class,
    pub(super) rng: Rng,
    /// Who answered on the connection that is open.
    answered_by: BTreeSet<String>,
}

impl Client {
    async fn keepalive(mut self) {
        let mut connection = None;
        while !self.shared.is_stopped() {
            self.pause(&mut connection).await;
            let request = self.request(None, false);
            if let Err(failed) = self.keepalive_round(&mut connection, &request).await {
                self.fail(&request, failed);
                self.forget(&mut connection);
            }
        }
        self.forget(&mut connection);
    }

    async fn keepalive_round(&mut self, connection: &mut Option<Connection>, request: &Request) -> Result<(), Failed> {
        let limit = self.shared.plan.timeout;
        if connection.is_none() {
            *connection = Some(self.open().await?);
        }
        let Some(open) = connection else { return Ok(()) };
        open.write(&request.bytes, limit).await?;
        let response = open.receive(limit).await?;
        self.check(request, &response)?;
        if response.close {
            open.expect_close(limit).await?;
            self.answered(request);
            self.shared.tally().counts(self.class).closed_announced += 1;
            self.forget(connection);
            return Ok(());
        }
        open.expect_no_more()?;
        self.answered(request);
        Ok(())
    }

    async fn fresh(mut self) {
        while !self.shared.is_stopped() {
            let think = self.think();
            sleep(think).await;
            let ask = self.rng.below(ASK_TO_CLOSE) == 0;
            let request = self.request(None, ask);
            match self.single(&request, ask).await {
                Ok(()) => self.answered(&request),
                Err(failed) => self.fail(&request, failed),
            }
        }
    }

    async fn slow(mut self) {
        while !self.shared.is_stopped() {
            let target = format!("/sleep?ms={}", self.shared.plan.slow_for.as_millis());
            let request = self.request(Some(&target), false);
            match self.single(&request, false).await {
                Ok(()) => self.answered(&request),
                Err(failed) => self.fail(&request, failed),
            }
            let think = self.think();
            sleep(think).await;
        }
    }

    /// One request on a connection of its own.
    async fn single(&mut self, request: &Request, asked_to_close: bool) -> Result<(), Failed> {
        let limit = self.shared.plan.timeout;
        let mut connection = self.open().await?;
        connection.write(&request.bytes, limit).await?;
        let response = connection.receive(limit).await?;
        self.check(request, &response)?;
        if asked_to_close || response.close {
            connection.expect_close(limit).await?;
            self.shared.tally().counts(self.class).closed_announced += 1;
            return Ok(());
        }
        connection.expect_no_more()
    }

    async fn pipelined(mut self) {
        let mut connection = None;
        while !self.shared.is_stopped() {
            self.pause(&mut connection).await;
            let batch: Vec<Request> = (0..self.shared.plan.pipeline_depth).map(|_| self.request(None, false)).collect();
            self.batch(&mut connection, &batch, &[]).await;
        }
        self.forget(&mut connection);
    }

    /// Writes all requests of `batch`, in pieces, and waits for the answers. The connection is gone if one fails.
    pub(super) async fn batch(
        &mut self,
        connection: &mut Option<Connection>,
        batch: &[Request],
        cuts: &[(usize, Duration)],
    ) {
        let mut answered = 0;
        if let Err(failed) = self.batch_round(connection, batch, cuts, &mut answered).await {
            // The connection is gone, and with it all that were behind.
            for request in &batch[answered..] {
                self.fail(request, failed.clone());
            }
            self.forget(connection);
        }
    }

    async fn batch_round(
        &mut self,
        connection: &mut Option<Connection>,
        batch: &[Request],
        cuts: &[(usize, Duration)],
        answered: &mut usize,
    ) -> Result<(), Failed> {
        let limit = self.shared.plan.timeout;
        if connection.is_none() {
            *connection = Some(self.open().await?);
        }
        let Some(open) = connection else { return Ok(()) };
        let bytes: Vec<u8> = batch.iter().flat_map(|request| request.bytes.iter().copied()).collect();
        open.write_cut(&bytes, cuts, limit).await?;
        for request in batch {
            let response = open.receive(limit).await?;
            self.check(request, &response)?;
            if *answered + 1 == batch.len() && !response.close {
                open.expect_no_more()?;
            }
            self.answered(request);
            *answered += 1;
            if response.close {
                let behind = (batch.len() - *answered) as u64;
                let mut tally = self.shared.tally();
                let counts = tally.counts(self.class);
                counts.unanswered_pipelined += behind;
                counts.closed_announced += 1;
                drop(tally);
                self.forget(connection);
                return Ok(());
            }
        }
        Ok(())
    }

    /// Thinks, and watches the connection meanwhile as a pool does: one that is gone is known to be before a request is put on
    /// it.
    pub(super) async fn pause(&mut self, connection: &mut Option<Connection>) {
        let think = self.think();
        match connection {
            None => sleep(think).await,
            Some(open) => {
                if !self.watch(open, think).await {
                    self.forget(connection);
                }
            }
        }
    }

    pub(super) fn think(&mut self) -> Duration {
        let most = u64::try_from(self.shared.plan.think.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.rng.below(most.saturating_add(1).max(1)))
    }

    pub(super) async fn open(&mut self) -> Result<Connection, Failed> {
        let connection =
            Connection::open(self.shared.plan.target, self.shared.plan.tls.as_ref(), self.shared.plan.timeout).await?;
        self.shared.tally().counts(self.class).opened += 1;
        Ok(connection)
    }

    /// Whether the connection is still there after `time`; counts what happened to it.
    async fn watch(&self, connection: &mut Connection, time: Duration) -> bool {
        match connection.idle(time).await {
            Idle::Quiet => true,
            Idle::Closed => {
                self.shared.tally().counts(self.class).closed_unannounced += 1;
                false
            }
            Idle::Noise(text) => {
                let mut tally = self.shared.tally();
                // Belongs to no request of ours: counted as one that got a wrong answer, so that it cannot hide.
                tally.counts(self.class).sent += 1;
                tally.fail(self.shared.elapsed(), self.class, Fault::Wrong, format!("unasked: {text:?}"));
                false
            }
        }
    }

    /// The connection is done with: counts whether several generations answered on it.
    pub(super) fn forget(&mut self, connection: &mut Option<Connection>) {
        if connection.take().is_some() && matches!(self.class, Class::Keepalive | Class::Torture) {
            let mut tally = self.shared.tally();
            tally.connections += 1;
            tally.connections_across += u64::from(self.answered_by.len() > 1);
        }
        self.answered_by.clear();
    }

    /// Makes the next request and counts it as sent.
    pub(super) fn request(&mut self, target: Option<&str>, ask_to_close: bool) -> Request {
        let id = self.shared.next_request();
        let close = if ask_to_close { "connection: close\r\n" } else { "" };
        let head =
            |first: &str| format!("{first} HTTP/1.1\r\nhost: {}\r\nx-id: {id}\r\n{close}", self.shared.plan.target);
        let is_post = target.is_none() && self.rng.below(100) < self.shared.plan.post_percent;
        let (bytes, echo) = if is_post {
            let length = self.rng.below(20_000);
            let body = letters(id, length);
            let mut bytes = format!("{}content-length: {length}\r\n\r\n", head("POST /echo")).into_bytes();
            bytes.extend_from_slice(&body);
            (bytes, Some(body))
        } else {
            (format!("{}\r\n", head(&format!("GET {}", target.unwrap_or("/")))).into_bytes(), None)
        };
        let mut tally = self.shared.tally();
        let counts = tally.counts(self.class);
        counts.sent += 1;
        counts.posts += u64::from(is_post);
        Request { id, bytes, body: echo, sent: self.shared.elapsed() }
    }

    pub(super) fn answered(&mut self, request: &Request) {
        let latency = self.shared.elapsed().saturating_sub(request.sent);
        let near = self.shared.is_near(request.sent);
        let mut tally = self.shared.tally();
        tally.counts(self.class).answered += 1;
        if self.class != Class::Slow {
            tally.latency.add(latency);
            if near {
                tally.latency_near.add(latency);
            }
        }
    }

    pub(super) fn fail(&self, request: &Request, (fault, what): Failed) {
        let at = self.shared.elapsed();
        let took = at.saturating_sub(request.sent).as_secs_f64() * 1000.0;
        let what = format!("request {} after {took:.1} ms: {what}", request.id);
        let mut tally = self.shared.tally();
        tally.fail(at, self.class, fault, what);
        if matches!(self.class, Class::Keepalive | Class::Torture) && !self.answered_by.is_empty() {
            tally.counts(self.class).failed_on_reused += 1;
        }
    }

    /// Whether `response` is the one answer to `request`, whole and by somebody with a name.
    pub(super) fn check(&mut self, request: &Request, response: &Response) -> Result<(), Failed> {
        let wrong = |what: String| Err((Fault::Wrong, what));
        if response.status != 200 {
            return wrong(format!("status {}: {:?}", response.status, response.text()));
        }
        let id = request.id.to_string();
        if response.header("x-id") != Some(&id) {
            return wrong(format!("the answer is for request {:?}", response.header("x-id")));
        }
        let Some(by) = response.header("x-probe") else { return wrong("the answer names nobody".into()) };
        let right = match &request.body {
            Some(body) => response.body == *body,
            None => response.text() == format!("{by} {id}\n"),
        };
        if !right {
            return wrong(format!("another body, of {} bytes", response.body.len()));
        }
        *self.shared.tally().answered_by.entry(by.replace(' ', "/")).or_default() += 1;
        if !self.answered_by.contains(by) {
            self.answered_by.insert(by.into());
        }
        Ok(())
    }
}
