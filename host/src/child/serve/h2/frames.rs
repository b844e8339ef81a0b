//! The io of an HTTP/2 connection as hyper gets it: it watches the frames that go out, and can end what comes in. So the
//! connection's task learns what hyper does not tell, that the second GOAWAY is out, and can have hyper close when it waits for
//! a client that says nothing.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};

use hyper::rt::{Read, ReadBufCursor, Write};

use crate::child::serve::io::Io;

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
}

pub struct Watched {
    io: Io,
    ends: Arc<Ends>,
    frames: Frames,
}

impl Watched {
    pub fn new(io: Io, ends: Arc<Ends>) -> Watched {
        Watched { io, ends, frames: Frames::default() }
    }

    fn note(&mut self, bytes: &[u8]) {
        self.ends.flushed.store(false, Relaxed);
        if self.frames.names_last(bytes) {
            self.ends.last_named.store(true, Relaxed);
        }
    }
}

impl Read for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, cursor: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        if self.ends.hung_up.load(Relaxed) {
            return Poll::Ready(Ok(()));
        }
        if !self.io.conn().is_ended() {
            ready!(Pin::new(&mut self.io).poll_read(cx, cursor))?;
            if !self.io.conn().is_ended() {
                return Poll::Ready(Ok(()));
            }
        }
        if self.ends.fin_released.load(Relaxed) {
            return Poll::Ready(Ok(()));
        }
        self.io.check_hangup()?;
        Poll::Pending
    }
}

impl Write for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let len = ready!(Pin::new(&mut self.io).poll_write(cx, bytes))?;
        self.note(&bytes[..len]);
        Poll::Ready(Ok(len))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        self.ends.flushed.store(true, Relaxed);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
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
        let len = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, parts))?;
        let mut left = len;
        for part in parts {
            let written = left.min(part.len());
            self.note(&part[..written]);
            left -= written;
        }
        Poll::Ready(Ok(len))
    }
}

/// A frame's head (RFC 9113 4.1), and what follows it in a GOAWAY (6.8): the last stream's number.
const HEAD: usize = 9;
const LAST: usize = HEAD + 4;
const GOAWAY: u8 = 7;
/// No number is higher: it names none.
const NONE: u32 = (1 << 31) - 1;

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
    /// Whether the end of a GOAWAY's number is in `bytes`, and names a request.
    pub(in crate::child) fn names_last(&mut self, mut bytes: &[u8]) -> bool {
        let mut named = false;
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
            let [long, mid, short, kind, ..] = self.begin;
            let payload = u32::from_be_bytes([0, long, mid, short]) as usize;
            // A GOAWAY too short for a number names nothing, and the next frame begins where it ends.
            if self.have == HEAD && (kind != GOAWAY || payload < LAST - HEAD) {
                (self.have, self.rest) = (0, payload);
            } else if self.have == LAST {
                let [.., a, b, c, d] = self.begin;
                named |= u32::from_be_bytes([a, b, c, d]) & NONE != NONE;
                (self.have, self.rest) = (0, payload.saturating_sub(LAST - HEAD));
            }
        }
        named
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
    fn goaway_without_a_number_does_not_hide_the_next_frame() {
        let short = [0, 0, 2, GOAWAY, 0, 0, 0, 0, 0, 0, 0];
        let mut frames = Frames::default();
        assert!(!frames.names_last(&short));
        assert!(frames.names_last(&goaway(1)));
    }
}
