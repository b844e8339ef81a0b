//! Fuzz targets of the child: what clients send, what another child sends, and what crosses to a plugin and back.

use super::handover::wire::{MAX_MESSAGE, Message};
use super::serve::h2::frames::Frames;
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

/// The GOAWAY that names the last request is seen in the piece in which its number ends, and no other frame is taken for it.
pub fn frames(bytes: &[u8]) -> bool {
    let mut frames = Frames::default();
    let stream = &bytes[bytes.len().min(4)..];
    let ends = goaways(stream);
    let mut at = 0;
    for piece in pieces(bytes) {
        let named = frames.names_last(piece);
        let within = at..at + piece.len();
        at = within.end;
        let expected = ends.iter().any(|end| within.contains(&(end - 1)));
        assert_eq!(named, expected, "bytes {within:?}, of GOAWAYs that end at {ends:?}");
    }
    !ends.is_empty()
}

/// Where the number of each GOAWAY ends that names a request.
fn goaways(stream: &[u8]) -> Vec<usize> {
    let (mut ends, mut at) = (Vec::new(), 0);
    while let Some(head) = stream.get(at..at + 9) {
        let len = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let number = stream.get(at + 9..at + 13).and_then(|number| number.first_chunk::<4>());
        if let Some(number) = number.filter(|_| head[3] == 7 && len >= 4)
            && u32::from_be_bytes(*number) & 0x7fff_ffff != 0x7fff_ffff
        {
            ends.push(at + 13);
        }
        at += 9 + len;
    }
    ends
}
