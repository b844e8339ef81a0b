//! Fuzz targets of the child: what clients send, what another child sends, and what crosses to a plugin and back.

use super::handover::wire::{MAX_MESSAGE, Message};
use super::serve::h2::frames::Frames;
use super::serve::h2::glitches::Glitches;
use super::serve::sniff::{PREFACE, Sniffed, sniff as decide};
use super::serve::tls::wire::Records;

mod crossing;

pub use crossing::abi;

/// A message that is understood is written down byte for byte as it came, but for flags that this version does not know; any
/// more or less is an error.
pub fn handover(bytes: &[u8]) -> bool {
    let Ok(message) = Message::decode(bytes) else { return false };
    let sent = message.encode();
    assert_eq!(sent.len(), bytes.len(), "bytes were made up or left out");
    assert_eq!(Message::decode(&sent).as_ref(), Ok(&message));
    let longer = [bytes, &[0]].concat();
    assert!(Message::decode(&longer).is_err() && Message::decode(&bytes[..bytes.len() - 1]).is_err());
    if let Message::Offer { entries, .. } = &message {
        let carried: usize = entries.iter().map(|entry| entry.carried.len()).sum();
        assert!(carried <= bytes.len().min(MAX_MESSAGE), "more is carried than came");
    }
    true
}

/// The first bytes of a connection, however they are cut: the verdict is final, and HTTP/2 is what begins with its preface.
pub fn sniff(bytes: &[u8]) -> bool {
    let mut before = Sniffed::Undecided;
    for len in 0..=bytes.len() {
        let now = decide(&bytes[..len]);
        assert!(before == Sniffed::Undecided || now == before, "{before:?} became {now:?} at {len}");
        assert!(now != Sniffed::Undecided || len < PREFACE.len());
        before = now;
    }
    assert_eq!(before == Sniffed::Http2, bytes.starts_with(PREFACE));
    assert_eq!(before == Sniffed::Undecided, PREFACE.starts_with(bytes) && bytes.len() < PREFACE.len());
    before == Sniffed::Http2
}

/// `bytes` in pieces, whose lengths its first bytes say.
fn pieces(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (lengths, mut rest) = bytes.split_at(bytes.len().min(4));
    let mut lengths = lengths.iter().cycle();
    std::iter::from_fn(move || {
        let len = usize::from(*lengths.next()?) + 1;
        let (piece, after) = rest.split_at_checked(len).unwrap_or((rest, &[]));
        rest = after;
        (!piece.is_empty()).then_some(piece)
    })
}

/// Where TLS records begin and end, however the bytes are cut, is where a reader of all the bytes finds it.
pub fn records(bytes: &[u8]) -> bool {
    let mut records = Records::default();
    let stream = &bytes[bytes.len().min(4)..];
    let (mut at, mut inside) = (0, false);
    for piece in pieces(bytes) {
        records.pass(piece);
        at += piece.len();
        inside = records.is_inside();
        assert_eq!(inside, ends_inside(&stream[..at]), "after {at} bytes");
    }
    assert_eq!(at, stream.len());
    !stream.is_empty() && !inside
}

/// Whether a record is cut at the end.
fn ends_inside(mut bytes: &[u8]) -> bool {
    while let Some((header, body)) = bytes.split_first_chunk::<5>() {
        match body.split_at_checked(usize::from(u16::from_be_bytes([header[3], header[4]]))) {
            Some((_, next)) => bytes = next,
            None => return true,
        }
    }
    !bytes.is_empty()
}

/// Each frame is shown once, as a reader of all the bytes finds it, in the piece that completes the bytes that are read of it;
/// what is left of it never reaches into the next one; and a client's glitches are counted as their frames say. Both behind a
/// preface and without one.
pub fn frames(bytes: &[u8]) -> bool {
    let stream = &bytes[bytes.len().min(4)..];
    let shown = follow(Frames::default(), 0, bytes, stream);
    follow(Frames::after(PREFACE.len()), PREFACE.len(), bytes, stream);
    shown > 0 && names_last(stream)
}

/// How many frames an io may send before it is one too many.
const BUDGET: u32 = 3;

/// Passes `stream` in the pieces of `bytes`; its first frame begins at `first`. Returns how many frames were shown.
fn follow(mut frames: Frames, first: usize, bytes: &[u8], stream: &[u8]) -> usize {
    let mut glitches = Glitches::new(BUDGET);
    // Where the next frame begins that is to be shown, and where the one before it was known.
    let (mut next, mut at, mut shown, mut cheap) = (first, 0, 0, 0);
    for piece in pieces(bytes) {
        let before = at;
        at += piece.len();
        frames.pass(piece, |head| {
            let found = Found::at(stream, next).expect("a frame was made up");
            assert!((before + 1..=at).contains(&found.seen), "at {at}, and not at {}", found.seen);
            assert_eq!((head.kind(), head.len(), head.stream()), (found.kind, found.len, found.stream));
            let number = found.number.filter(|_| matches!(found.kind, 3 | 7));
            assert_eq!(head.reset_by(), number.filter(|_| found.kind == 3));
            assert_eq!(head.names_last(), found.kind == 7 && number.is_some_and(|last| last << 1 != u32::MAX << 1));
            glitches.note_incoming(head);
            cheap += u32::from(found.is_cheap());
            (next, shown) = (found.end, shown + 1);
        });
        assert!(Found::at(stream, next).is_none_or(|found| found.seen > at), "a frame was left out before {at}");
        assert_eq!(glitches.are_too_many(), cheap > BUDGET, "{cheap} frames cost nothing");
        let (begin, end) = around(stream, first, at);
        assert_eq!(frames.left() == 0, begin == at, "between two frames at {at}");
        assert!(at + frames.left() <= end, "at {at} {} are left of what ends at {end}", frames.left());
    }
    shown
}

/// A frame as RFC 9113 4.1 has it, in a stream that is there as a whole.
struct Found {
    kind: u8,
    flags: u8,
    len: usize,
    stream: u32,
    /// What its payload begins with, if it is as long.
    number: Option<u32>,
    /// Behind the bytes that are read: the head, and the number of RST_STREAM and GOAWAY.
    seen: usize,
    end: usize,
}

impl Found {
    fn at(stream: &[u8], at: usize) -> Option<Found> {
        let head = stream.get(at..at + 9)?;
        let number = |at: usize| Some(u32::from_be_bytes(*stream.get(at..at + 4)?.first_chunk()?));
        let len = (number(at)? >> 8) as usize;
        let (kind, flags) = (head[3], head[4]);
        let with_number = matches!(kind, 3 | 7) && len >= 4;
        let seen = if with_number { at + 13 } else { at + 9 };
        let found = Found {
            kind,
            flags,
            len,
            stream: number(at + 5)? & 0x7fff_ffff,
            number: if len >= 4 { number(at + 9) } else { None },
            seen,
            end: at + 9 + len,
        };
        (seen <= stream.len()).then_some(found)
    }

    /// Whether it costs a client nothing that has been sent no frame: all that neither carry a request nor acknowledge.
    fn is_cheap(&self) -> bool {
        match self.kind {
            0 => self.len == 0 && self.flags & 1 == 0,
            1 | 5 | 7 | 9 => false,
            4 => self.flags & 1 == 0,
            _ => true,
        }
    }
}

/// Where the frame begins that `at` lies in, or that begins there; and where it ends, or its head as long as that has not come.
fn around(stream: &[u8], first: usize, at: usize) -> (usize, usize) {
    if at < first {
        return (0, first);
    }
    let mut begin = first;
    loop {
        let Some(head) = stream.get(begin..begin + 9).filter(|_| begin + 9 <= at) else { return (begin, begin + 9) };
        let end = begin + 9 + u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        if end > at {
            return (begin, end);
        }
        begin = end;
    }
}

/// Whether a GOAWAY names a request.
fn names_last(stream: &[u8]) -> bool {
    let mut at = 0;
    while let Some(found) = Found::at(stream, at) {
        if found.kind == 7 && found.number.is_some_and(|last| last & 0x7fff_ffff != 0x7fff_ffff) {
            return true;
        }
        at = found.end;
    }
    false
}
