//! The io of an HTTP/2 connection as hyper gets it: it watches the frames in both directions, and can end what comes in. So the
//! connection's task learns what hyper does not report, that the second GOAWAY is out, and can have hyper close when it waits for
//! a client that says nothing. A client that floods is told so here, since hyper has no call for it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};

use hyper::rt::{Read, ReadBufCursor, Write};

use super::glitches::Glitches;
use crate::child::serve::io::Io;
use crate::child::serve::refused::{self, Malformed};
use crate::sys::socket;

/// The length of a client's preface (RFC 9113 3.4).
const PREFACE: usize = 24;

/// What the io and the connection's task tell each other. Both run in that task.
#[derive(Default)]
pub struct Ends {
    /// Reading is over: to hyper it looks as if the client had closed.
    pub hung_up: AtomicBool,
    /// The GOAWAY is written that names the last request. From there on hyper closes once all are answered.
    pub last_named: AtomicBool,
    /// All that was written has been flushed.
    pub flushed: AtomicBool,
    /// hyper may know that the client has closed its sending side: before that, it would drop what is being answered.
    pub fin_released: AtomicBool,
    /// The client has exceeded its budget of glitches: reading is over, and what is written is GOAWAY.
    pub flooded: AtomicBool,
}

pub struct Watched {
    io: Io,
    ends: Arc<Ends>,
    incoming: Frames,
    outgoing: Frames,
    glitches: Glitches,
    /// The highest stream of the client's.
    last_stream: u32,
    /// What is left to write of the GOAWAY that answers a flood.
    farewell: Option<Farewell>,
}

struct Farewell {
    frame: [u8; FAREWELL],
    written: usize,
}

impl Watched {
    pub fn new(io: Io, ends: Arc<Ends>, glitches: Glitches) -> Watched {
        let (incoming, outgoing) = (Frames::after(PREFACE), Frames::default());
        Watched { io, ends, incoming, outgoing, glitches, last_stream: 0, farewell: None }
    }

    fn note_written(&mut self, bytes: &[u8]) {
        self.ends.flushed.store(false, Relaxed);
        let Watched { io, ends, outgoing, glitches, .. } = self;
        outgoing.pass(bytes, |frame| {
            glitches.note_outgoing(frame);
            if frame.names_last() {
                ends.last_named.store(true, Relaxed);
            }
            if let Some(error) = frame.reset_by().filter(|error| blames_client(*error)) {
                let detail = format_args!("HTTP/2 stream {}: error {error}", frame.stream());
                refused::note(io.conn(), Malformed::Http2, detail);
            }
        });
    }

    /// How much of `bytes` may still be written: all of it, or the rest of the frame that has begun.
    fn allowed(&self, len: usize) -> usize {
        if self.ends.flooded.load(Relaxed) { self.outgoing.left().min(len) } else { len }
    }

    /// Says why the connection ends, once the frame that had begun is whole.
    fn poll_farewell(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.ends.flooded.load(Relaxed) || self.outgoing.left() > 0 {
            return Poll::Ready(Ok(()));
        }
        let last = self.last_stream;
        let farewell = self.farewell.get_or_insert_with(|| Farewell { frame: calm_down(last), written: 0 });
        while farewell.written < farewell.frame.len() {
            let rest = &farewell.frame[farewell.written..];
            match ready!(Pin::new(&mut self.io).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                len => farewell.written += len,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Read for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, cursor: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let flooded = this.ends.flooded.load(Relaxed);
        // To hyper an end within a frame is an error, upon which it closes without a word.
        let limit = if flooded { this.incoming.left() } else { usize::MAX };
        if this.ends.hung_up.load(Relaxed) && !flooded || limit == 0 {
            return Poll::Ready(Ok(()));
        }
        if this.io.conn().is_ended() {
            if flooded || this.ends.fin_released.load(Relaxed) {
                return Poll::Ready(Ok(()));
            }
            this.io.check_hangup()?;
            return Poll::Pending;
        }
        let Watched { io, incoming, glitches, last_stream, .. } = this;
        ready!(socket::poll_read_seen(
            cursor,
            limit,
            |cursor| Pin::new(io).poll_read(cx, cursor),
            |bytes| incoming.pass(bytes, |frame| {
                glitches.note_incoming(frame);
                if frame.kind() == HEADERS {
                    *last_stream = frame.stream().max(*last_stream);
                }
            }),
        ))?;
        if !flooded && this.glitches.are_too_many() {
            this.ends.flooded.store(true, Relaxed);
        }
        if this.io.conn().is_ended() && !flooded && !this.ends.fin_released.load(Relaxed) {
            // The client has closed its sending side: hyper may know of it later.
            this.io.check_hangup()?;
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl Write for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let allowed = self.allowed(bytes.len());
        if allowed == 0 {
            // What hyper has still to say is not sent any more.
            return Poll::Ready(Ok(bytes.len()));
        }
        let len = ready!(Pin::new(&mut self.io).poll_write(cx, &bytes[..allowed]))?;
        self.note_written(&bytes[..len]);
        Poll::Ready(Ok(len))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_farewell(cx))?;
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        self.ends.flushed.store(true, Relaxed);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_farewell(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.ends.flooded.load(Relaxed) {
            let Some(part) = parts.iter().find(|part| !part.is_empty()) else { return Poll::Ready(Ok(0)) };
            return self.as_mut().poll_write(cx, part);
        }
        let len = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, parts))?;
        let mut left = len;
        for part in parts {
            let written = left.min(part.len());
            self.note_written(&part[..written]);
            left -= written;
        }
        Poll::Ready(Ok(len))
    }
}

/// A frame's head (RFC 9113 4.1), and what follows it in a GOAWAY (6.8): the last stream's number.
const HEAD: usize = 9;
const LAST: usize = HEAD + 4;
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
/// Flags of DATA, and of SETTINGS and PING (RFC 9113 6.1, 6.5, 6.7).
pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
/// No number is higher: it names none.
const NONE: u32 = (1 << 31) - 1;
const ENHANCE_YOUR_CALM: u8 = 11;
/// A GOAWAY without debug data.
const FAREWELL: usize = HEAD + 8;

fn calm_down(last_stream: u32) -> [u8; FAREWELL] {
    let [a, b, c, d] = last_stream.to_be_bytes();
    [0, 0, 8, GOAWAY, 0, 0, 0, 0, 0, a, b, c, d, 0, 0, 0, ENHANCE_YOUR_CALM]
}

/// Errors by which h2 resets a stream since its request is malformed (RFC 9113 7 and 8.1.1). hyper does not report them.
const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const FRAME_SIZE_ERROR: u32 = 6;

fn blames_client(error: u32) -> bool {
    matches!(error, PROTOCOL_ERROR | FLOW_CONTROL_ERROR | FRAME_SIZE_ERROR)
}

/// The begin of a frame: its head, of a GOAWAY the last stream's number, and of a RST_STREAM its error.
#[derive(Clone, Copy, Debug)]
pub struct FrameHead([u8; LAST]);

impl FrameHead {
    #[cfg(test)]
    pub fn new(bytes: [u8; LAST]) -> FrameHead {
        FrameHead(bytes)
    }

    pub fn len(&self) -> usize {
        let [long, mid, short, ..] = self.0;
        u32::from_be_bytes([0, long, mid, short]) as usize
    }

    pub fn kind(&self) -> u8 {
        self.0[3]
    }

    pub fn has(&self, flag: u8) -> bool {
        self.0[4] & flag != 0
    }

    pub fn stream(&self) -> u32 {
        let [.., a, b, c, d, _, _, _, _] = self.0;
        u32::from_be_bytes([a, b, c, d]) & NONE
    }

    /// The first number of the payload, of the kinds that have it here.
    fn number(&self) -> Option<u32> {
        let [.., a, b, c, d] = self.0;
        begins_with_number(self).then(|| u32::from_be_bytes([a, b, c, d]))
    }

    /// The error of a RST_STREAM.
    pub fn reset_by(&self) -> Option<u32> {
        self.number().filter(|_| self.kind() == RST_STREAM)
    }

    /// Whether it is a GOAWAY that names a request.
    pub fn names_last(&self) -> bool {
        self.kind() == GOAWAY && self.number().is_some_and(|last| last & NONE != NONE)
    }
}

/// Whether the number that its payload begins with is of interest, and there.
fn begins_with_number(head: &FrameHead) -> bool {
    matches!(head.kind(), GOAWAY | RST_STREAM) && head.len() >= LAST - HEAD
}

/// Frames in a stream of bytes, which may be cut anywhere.
#[derive(Default)]
pub(in crate::child) struct Frames {
    /// The begin of the frame that is passing.
    begin: [u8; LAST],
    have: usize,
    /// Of its payload, what is beyond that and has not passed.
    rest: usize,
}

impl Frames {
    /// Behind so many bytes that are none.
    pub(in crate::child) fn after(len: usize) -> Frames {
        Frames { rest: len, ..Frames::default() }
    }

    /// How many bytes are missing until the frame that has begun is whole, as far as is known: 0 between two frames.
    pub(in crate::child) fn left(&self) -> usize {
        match self.have {
            0 => self.rest,
            have if have < HEAD => HEAD - have,
            have => LAST - have,
        }
    }

    /// Whether the end of a GOAWAY's number is in `bytes`, and names a request.
    #[cfg(test)]
    fn names_last(&mut self, bytes: &[u8]) -> bool {
        let mut named = false;
        self.pass(bytes, |frame| named |= frame.names_last());
        named
    }

    /// Shows the begin of each frame to `seen`, once it has passed.
    pub(in crate::child) fn pass(&mut self, mut bytes: &[u8], mut seen: impl FnMut(FrameHead)) {
        while !bytes.is_empty() {
            if self.rest > 0 {
                let skip = self.rest.min(bytes.len());
                self.rest -= skip;
                bytes = &bytes[skip..];
                continue;
            }
            let wanted = if self.have < HEAD { HEAD } else { LAST };
            let take = (wanted - self.have).min(bytes.len());
            self.begin[self.have..self.have + take].copy_from_slice(&bytes[..take]);
            self.have += take;
            bytes = &bytes[take..];
            let head = FrameHead(self.begin);
            // One too short for its number has none, and the next frame begins where it ends.
            if self.have == HEAD && !begins_with_number(&head) {
                (self.have, self.rest) = (0, head.len());
                seen(head);
            } else if self.have == LAST {
                (self.have, self.rest) = (0, head.len() - (LAST - HEAD));
                seen(head);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn goaway(last: u32) -> Vec<u8> {
        [&[0, 0, 8, GOAWAY, 0, 0, 0, 0, 0][..], &last.to_be_bytes(), &[0; 4]].concat()
    }

    #[test]
    fn only_a_goaway_that_names_a_request_counts_wherever_the_bytes_are_cut() {
        // A DATA frame whose payload looks like one, an empty SETTINGS, the GOAWAY that names none; and the one that counts.
        let decoy = [&[0, 0, 17, 0, 0, 0, 0, 0, 1][..], &goaway(1)].concat();
        let before = [decoy, vec![0, 0, 0, 4, 1, 0, 0, 0, 0], goaway(NONE)].concat();
        for last in [0, 1, NONE - 1] {
            let all = [before.clone(), goaway(last), before.clone()].concat();
            for size in 1..all.len() {
                let mut frames = Frames::default();
                let named: Vec<_> = all.chunks(size).map(|chunk| frames.names_last(chunk)).collect();
                let at = (before.len() + LAST - 1) / size;
                assert!(named.iter().enumerate().all(|(index, named)| *named == (index == at)), "{last} by {size}");
            }
        }
    }

    #[test]
    fn error_of_a_reset_is_read_wherever_it_is_cut() {
        let reset = |stream: u8, error: u8| vec![0, 0, 4, RST_STREAM, 0, 0, 0, 0, stream, 0, 0, 0, error];
        let short = vec![0, 0, 3, RST_STREAM, 0, 0, 0, 0, 9, 0, 0, 1];
        let all = [goaway(1), reset(1, 1), short, reset(3, 8), vec![0, 0, 0, SETTINGS, 0, 0, 0, 0, 0]].concat();
        for size in 1..=all.len() {
            let (mut frames, mut resets) = (Frames::default(), Vec::new());
            for chunk in all.chunks(size) {
                frames.pass(chunk, |frame| resets.extend(frame.reset_by().map(|error| (frame.stream(), error))));
            }
            assert_eq!(resets, [(1, 1), (3, 8)], "by {size}");
        }
        assert!(blames_client(PROTOCOL_ERROR) && !blames_client(8), "CANCEL is no error");
    }

    #[test]
    fn the_rest_of_a_frame_is_known_wherever_it_is_cut() {
        let frame = [&[0, 0, 5, DATA, 0, 0, 0, 0, 1][..], b"12345"].concat();
        for cut in 0..frame.len() {
            let mut frames = Frames::default();
            frames.pass(&frame[..cut], |_| {});
            let mut rest = &frame[cut..];
            while frames.left() > 0 {
                let (now, later) = rest.split_at(frames.left());
                frames.pass(now, |_| {});
                rest = later;
            }
            assert!(rest.is_empty() || cut == 0, "{cut}");
        }
    }

    #[test]
    fn the_preface_is_no_frame() {
        let mut frames = Frames::after(PREFACE);
        let mut kinds = Vec::new();
        let bytes = [&crate::child::serve::sniff::PREFACE[..], &[0, 0, 0, SETTINGS, 0, 0, 0, 0, 0]].concat();
        frames.pass(&bytes, |frame| kinds.push(frame.kind()));
        assert_eq!(kinds, [SETTINGS]);
    }
}
