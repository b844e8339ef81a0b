//! Tells HTTP/1 from HTTP/2 by the first bytes, before hyper sees the connection: its own detection cannot be asked to give
//! the io back, and loses what it has read when it is cancelled.

/// What a client of HTTP/2 with prior knowledge sends first (RFC 9113 3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sniffed {
    Http1,
    Http2,
    /// All bytes so far are the preface's.
    Undecided,
}

/// Decides at the first byte that differs.
pub fn sniff(bytes: &[u8]) -> Sniffed {
    let len = bytes.len().min(PREFACE.len());
    if bytes[..len] != PREFACE[..len] {
        Sniffed::Http1
    } else if len == PREFACE.len() {
        Sniffed::Http2
    } else {
        Sniffed::Undecided
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_byte_that_differs_decides() {
        assert_eq!(sniff(b"G"), Sniffed::Http1);
        assert_eq!(sniff(b"POST"), Sniffed::Http1);
        assert_eq!(sniff(b"PRI * HTTP/1.1"), Sniffed::Http1);
        for len in 0..PREFACE.len() {
            assert_eq!(sniff(&PREFACE[..len]), Sniffed::Undecided, "{len}");
        }
        assert_eq!(sniff(PREFACE), Sniffed::Http2);
    }
}
