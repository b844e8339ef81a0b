//! The budget of an HTTP/2 client for frames that cost it nothing and the server something: resets, empty DATA, SETTINGS, PING,
//! PRIORITY, WINDOW_UPDATE and kinds that are not known here. What answers the server's own frames is paid by these.
//!
//! A frame costs an addition; the clock is read only when the budget is used up.

use std::time::{Duration, Instant};

use super::frames::{
    ACK, CONTINUATION, DATA, END_STREAM, FrameHead, GOAWAY, HEADERS, PING, PUSH_PROMISE, RST_STREAM, WINDOW_UPDATE,
};
use super::frames::{PRIORITY, SETTINGS};

/// The budget is for this time; then it is anew.
const WINDOW: Duration = Duration::from_secs(10);
/// A DATA frame may be answered by a WINDOW_UPDATE for the stream, one for the connection, and a PING that measures the way.
const PER_DATA: u32 = 3;
/// A response may be answered by a RST_STREAM: it was not premature.
const PER_HEADERS: u32 = 1;

pub struct Glitches {
    /// In a [`WINDOW`]; `None` for no bound.
    budget: Option<u32>,
    count: u32,
    /// Frames that the client may still send to answer those of the server. No more than the budget.
    paid: u32,
    since: Instant,
}

impl Glitches {
    /// `budget` is `limits.http2_glitches`: 0 for none.
    pub fn new(budget: u32) -> Glitches {
        Glitches { budget: (budget > 0).then_some(budget), count: 0, paid: 0, since: Instant::now() }
    }

    /// The server has sent a frame.
    pub fn note_outgoing(&mut self, frame: FrameHead) {
        let pays = match frame.kind() {
            DATA => PER_DATA,
            HEADERS => PER_HEADERS,
            _ => 0,
        };
        self.paid = self.paid.saturating_add(pays).min(self.budget.unwrap_or(0));
    }

    /// The client has sent a frame.
    pub fn note_incoming(&mut self, frame: FrameHead) {
        match frame.kind() {
            // RFC 9113 8.1: what ends the stream is a part of the message, and bodies have a budget of their own (h2).
            DATA if frame.len() > 0 || frame.has(END_STREAM) => {}
            HEADERS | CONTINUATION | PUSH_PROMISE | GOAWAY => {}
            SETTINGS if frame.has(ACK) => {}
            RST_STREAM | PING | WINDOW_UPDATE if self.paid > 0 => self.paid -= 1,
            DATA | PRIORITY | SETTINGS | RST_STREAM | PING | WINDOW_UPDATE => self.count += 1,
            // RFC 9113 5.5: to be ignored, so that only the budget bounds them.
            _ => self.count += 1,
        }
    }

    /// Whether the budget of this window is exceeded.
    pub fn are_too_many(&mut self) -> bool {
        let Some(budget) = self.budget else { return false };
        self.count > budget && self.exceeds(Instant::now())
    }

    fn exceeds(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.since) < WINDOW {
            return true;
        }
        (self.count, self.since) = (0, now);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, len: u8) -> FrameHead {
        FrameHead::new([0, 0, len, kind, flags, 0, 0, 0, 1, 0, 0, 0, 0])
    }

    fn count(frames: &[FrameHead]) -> u32 {
        let mut glitches = Glitches::new(100);
        frames.iter().for_each(|frame| glitches.note_incoming(*frame));
        glitches.count
    }

    #[test]
    fn frames_that_cost_the_client_nothing_are_counted() {
        let unknown = frame(0x42, 0, 5);
        let cheap = [
            frame(DATA, 0, 0),
            frame(RST_STREAM, 0, 4),
            frame(SETTINGS, 0, 6),
            frame(PING, 0, 8),
            frame(PING, ACK, 8),
            frame(PRIORITY, 0, 5),
            frame(WINDOW_UPDATE, 0, 4),
            unknown,
        ];
        assert_eq!(count(&cheap), 8);
        let fair = [
            frame(DATA, 0, 1),
            frame(DATA, END_STREAM, 0),
            frame(HEADERS, 5, 20),
            frame(CONTINUATION, 4, 20),
            frame(SETTINGS, ACK, 0),
            frame(GOAWAY, 0, 8),
        ];
        assert_eq!(count(&fair), 0);
    }

    #[test]
    fn frames_that_answer_the_server_are_paid_by_its_own() {
        let mut glitches = Glitches::new(10);
        for _ in 0..1000 {
            glitches.note_outgoing(frame(DATA, 0, 100));
            for answer in [WINDOW_UPDATE, WINDOW_UPDATE, PING] {
                glitches.note_incoming(frame(answer, 0, 8));
            }
            glitches.note_outgoing(frame(HEADERS, 4, 20));
            glitches.note_incoming(frame(RST_STREAM, 0, 4));
        }
        assert!(!glitches.are_too_many());
        // What was paid and not used is no credit for a flood.
        (0..1000).for_each(|_| glitches.note_outgoing(frame(DATA, 0, 100)));
        (0..21).for_each(|_| glitches.note_incoming(frame(PING, 0, 8)));
        assert!(glitches.are_too_many());
    }

    #[test]
    fn the_budget_is_anew_after_its_window() {
        let mut glitches = Glitches::new(10);
        (0..10).for_each(|_| glitches.note_incoming(frame(PING, 0, 8)));
        assert!(!glitches.are_too_many());
        glitches.note_incoming(frame(PING, 0, 8));
        assert!(glitches.exceeds(glitches.since + WINDOW - Duration::from_millis(1)));
        assert!(!glitches.exceeds(glitches.since + WINDOW));
        assert_eq!(glitches.count, 0);
    }

    #[test]
    fn without_a_budget_nothing_is_too_many() {
        let mut glitches = Glitches::new(0);
        (0..100_000).for_each(|_| glitches.note_incoming(frame(PING, 0, 8)));
        assert!(!glitches.are_too_many());
    }
}
