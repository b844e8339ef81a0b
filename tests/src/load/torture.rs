//! The torture: requests of every kind that a hand-over can do wrong, alone and in pairs, every other write cut at random
//! bytes with pauses between. Each answer must be for its request and right to the byte. The same seed gives the same
//! requests and cuts on each connection; only the clock is the machine's.

use std::time::Duration;

use tokio::time::sleep;

use super::Mix;
use super::clients::{Client, Request, letters};
use super::connection::Failed;

/// So many of a hundred turns write two requests at once.
const PAIRS: u64 = 25;
/// So many of a hundred writes are cut.
const CUTS: u64 = 50;
/// Longest pause at a cut.
const PAUSE: Duration = Duration::from_millis(6);
/// Longest pause within a slow upload.
const SLOW_PAUSE: Duration = Duration::from_millis(40);
/// Of the large bodies of requests and of those of answers.
const LARGE: u64 = 20_000;
const LARGE_ANSWER: u64 = 100_000;

/// What is asked for.
#[derive(Clone, Copy)]
enum Kind {
    Line,
    /// A handler that takes 1 to 10 ms.
    Sleep,
    Large,
    Streamed,
    Post(Framing, Pace),
}

#[derive(Clone, Copy)]
enum Framing {
    Length,
    Chunked,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// Up to 20 kB.
    Any,
    /// 20 kB and, most of the time, a request behind it in the same write.
    Large,
    /// In pieces with pauses, for a good part of a second.
    Slow,
}

impl Client {
    pub(super) async fn torture(mut self) {
        let mut connection = None;
        while !self.shared.is_stopped() {
            self.pause(&mut connection).await;
            let (batch, cuts) = self.turn();
            self.batch(&mut connection, &batch, &cuts).await;
        }
        self.forget(&mut connection);
    }

    /// The same requests, each turn on a connection of its own whose sending side is closed before the answers are read.
    pub(super) async fn half_closed(mut self) {
        while !self.shared.is_stopped() {
            let think = self.think();
            sleep(think).await;
            let (batch, cuts) = self.turn();
            let mut answered = 0;
            if let Err(failed) = self.half_closed_turn(&batch, &cuts, &mut answered).await {
                for request in &batch[answered..] {
                    self.fail(request, failed.clone());
                }
            }
        }
    }

    async fn half_closed_turn(
        &mut self,
        batch: &[Request],
        cuts: &[(usize, Duration)],
        answered: &mut usize,
    ) -> Result<(), Failed> {
        let limit = self.shared.plan.timeout;
        let mut connection = self.open().await?;
        let bytes: Vec<u8> = batch.iter().flat_map(|request| request.bytes.iter().copied()).collect();
        connection.write_cut(&bytes, cuts, limit).await?;
        connection.close_sending_side(limit).await?;
        for request in batch {
            let response = connection.receive(limit).await?;
            self.check(request, &response)?;
            let behind = (batch.len() - *answered - 1) as u64;
            if behind == 0 || response.close {
                // The server ends it now, and in good order: else the last answer was none.
                connection.expect_close(limit).await?;
            }
            self.answered(request);
            *answered += 1;
            if response.close {
                *answered = batch.len();
                self.shared.tally().counts(self.class).unanswered_pipelined += behind;
                break;
            }
        }
        Ok(())
    }

    /// The requests of one turn, and where their write is cut.
    fn turn(&mut self) -> (Vec<Request>, Vec<(usize, Duration)>) {
        let first = self.kind();
        let mut kinds = vec![first];
        if self.has_second(first) {
            kinds.push(self.getting());
        }
        let batch: Vec<Request> = kinds.iter().map(|kind| self.ask(*kind)).collect();
        let cuts = self.cuts(first, batch.iter().map(|request| request.bytes.len()).sum());
        (batch, cuts)
    }

    fn percent(&mut self, percent: u64) -> bool {
        self.rng.below(100) < percent
    }

    fn kind(&mut self) -> Kind {
        if !self.percent(self.shared.plan.post_percent) {
            return self.getting();
        }
        let framing = if self.percent(50) { Framing::Length } else { Framing::Chunked };
        let pace = match self.rng.below(10) {
            0 => Pace::Slow,
            1..=5 => Pace::Large,
            _ => Pace::Any,
        };
        Kind::Post(framing, pace)
    }

    fn getting(&mut self) -> Kind {
        let kind = match self.rng.below(100) {
            0..60 => Kind::Line,
            60..80 => Kind::Sleep,
            80..88 => Kind::Large,
            _ => Kind::Streamed,
        };
        match (self.shared.plan.mix, kind) {
            (Mix::Plain, Kind::Sleep | Kind::Streamed) => Kind::Line,
            _ => kind,
        }
    }

    fn has_second(&mut self, first: Kind) -> bool {
        match first {
            Kind::Post(_, Pace::Large) => self.percent(60),
            _ => self.percent(PAIRS),
        }
    }

    /// Makes the request, and says what must come back.
    fn ask(&mut self, kind: Kind) -> Request {
        let id = self.shared.next_request();
        let plain = self.shared.plan.mix == Mix::Plain;
        // A server with files only has one for all.
        let seed = if plain { 0 } else { id };
        let (target, body) = match kind {
            Kind::Line => ("/".into(), None),
            Kind::Sleep => (format!("/sleep?ms={}", 1 + self.rng.below(10)), None),
            Kind::Large => (format!("/pattern?bytes={LARGE_ANSWER}&seed={seed}"), Some(letters(seed, LARGE_ANSWER))),
            Kind::Streamed => {
                let (bytes, chunk) = (5000 + self.rng.below(LARGE), 3000 + self.rng.below(5000));
                (format!("/pattern?bytes={bytes}&chunk={chunk}&seed={seed}"), Some(letters(seed, bytes)))
            }
            Kind::Post(..) if plain => ("/line".into(), None),
            Kind::Post(..) => ("/echo".into(), None),
        };
        let method = if matches!(kind, Kind::Post(..)) { "POST" } else { "GET" };
        let host = self.shared.plan.target;
        let mut bytes = format!("{method} {target} HTTP/1.1\r\nhost: {host}\r\nx-id: {id}\r\n").into_bytes();
        let body = match kind {
            Kind::Post(framing, pace) => {
                let sent = self.body_of(id, framing, pace, &mut bytes);
                (!plain).then_some(sent)
            }
            _ => {
                bytes.extend_from_slice(b"\r\n");
                body
            }
        };
        let mut tally = self.shared.tally();
        let counts = tally.counts(self.class);
        counts.sent += 1;
        counts.posts += u64::from(method == "POST");
        Request { id, bytes, body, sent: self.shared.elapsed() }
    }

    /// Writes the end of a POST's head and its body; answers the body.
    fn body_of(&mut self, id: u64, framing: Framing, pace: Pace, bytes: &mut Vec<u8>) -> Vec<u8> {
        let length = if pace == Pace::Any { self.rng.below(LARGE) } else { LARGE };
        let body = letters(id, length);
        match framing {
            Framing::Length => {
                bytes.extend_from_slice(format!("content-length: {length}\r\n\r\n").as_bytes());
                bytes.extend_from_slice(&body);
            }
            Framing::Chunked => {
                bytes.extend_from_slice(b"transfer-encoding: chunked\r\n\r\n");
                let mut rest = &body[..];
                while !rest.is_empty() {
                    let wanted = 1 + self.rng.below(LARGE / 3) as usize;
                    let (chunk, after) = rest.split_at(wanted.min(rest.len()));
                    bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                    bytes.extend_from_slice(chunk);
                    bytes.extend_from_slice(b"\r\n");
                    rest = after;
                }
                bytes.extend_from_slice(b"0\r\n\r\n");
            }
        }
        body
    }

    /// Where a write of `length` bytes is cut, and for how long, in order.
    fn cuts(&mut self, first: Kind, length: usize) -> Vec<(usize, Duration)> {
        let slow = matches!(first, Kind::Post(_, Pace::Slow));
        let (count, longest) = match slow {
            true => (10, SLOW_PAUSE),
            false if self.percent(CUTS) => (1 + self.rng.below(3), PAUSE),
            false => (0, PAUSE),
        };
        let longest = longest.as_micros() as u64 + 1;
        let mut cuts: Vec<(usize, Duration)> = (0..count)
            .map(|_| (1 + self.rng.below(length as u64 - 1) as usize, Duration::from_micros(self.rng.below(longest))))
            .collect();
        cuts.sort_unstable();
        cuts
    }
}
