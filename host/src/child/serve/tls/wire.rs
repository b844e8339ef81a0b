//! The stream below a TLS session: it looks at the first bytes before the session does, and knows where records begin and end,
//! as they are in clear (RFC 8446 5.1). What a session has read of a record that is not whole is known only here.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::conn::Conn;
use super::super::stream::Stream;

/// Read at once at the beginning: a ClientHello in most cases.
const FIRST: usize = 2048;
/// Type, version and length of a record.
const HEADER: usize = 5;

pub struct Wire {
    stream: Stream,
    conn: Arc<Conn>,
    /// Read before the session was there.
    prefix: Bytes,
    records: Records,
}

impl Wire {
    pub fn new(stream: Stream, conn: Arc<Conn>) -> Wire {
        Wire { stream, conn, prefix: Bytes::new(), records: Records::default() }
    }

    /// The first byte, which the session reads all the same; nothing at the client's end.
    pub fn poll_first(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<u8>>> {
        if self.prefix.is_empty() {
            let mut room = BytesMut::zeroed(FIRST);
            let mut buffer = ReadBuf::new(&mut room);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
            let len = buffer.filled().len();
            room.truncate(len);
            self.conn.note_read(len);
            self.prefix = room.freeze();
        }
        Poll::Ready(Ok(self.prefix.first().copied()))
    }

    pub fn is_mid_record(&self) -> bool {
        self.records.is_inside()
    }

    pub fn into_stream(self) -> Stream {
        self.stream
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        if this.prefix.is_empty() {
            ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
            this.conn.note_read(buffer.filled().len() - before);
        } else {
            let len = this.prefix.len().min(buffer.remaining());
            buffer.put_slice(&this.prefix[..len]);
            this.prefix.advance(len);
        }
        this.records.pass(&buffer.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, parts)
    }
}

/// Where in a record the last byte was.
#[derive(Debug, Default)]
pub(in crate::child) struct Records {
    /// The header of this record, as far as it has come.
    header: [u8; HEADER],
    have: usize,
    /// Of its body, what is still to come.
    left: usize,
}

impl Records {
    pub(in crate::child) fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let len = self.left.min(bytes.len());
                self.left -= len;
                bytes = &bytes[len..];
                continue;
            }
            let len = (HEADER - self.have).min(bytes.len());
            self.header[self.have..self.have + len].copy_from_slice(&bytes[..len]);
            self.have += len;
            bytes = &bytes[len..];
            if self.have == HEADER {
                self.have = 0;
                self.left = u16::from_be_bytes([self.header[3], self.header[4]]).into();
            }
        }
    }

    pub(in crate::child) fn is_inside(&self) -> bool {
        self.have > 0 || self.left > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_told_apart_wherever_the_bytes_are_cut() {
        let mut stream = Vec::new();
        let mut ends = vec![0];
        for len in [0, 1, 300, 5, 16_384] {
            stream.extend_from_slice(&[23, 3, 3, (len >> 8) as u8, len as u8]);
            stream.resize(stream.len() + len, 0xff);
            ends.push(stream.len());
        }
        for step in [1, 2, 3, 5, 7, 304, 4096, 20_000] {
            let mut records = Records::default();
            let mut at = 0;
            for portion in stream.chunks(step) {
                records.pass(portion);
                at += portion.len();
                assert_eq!(records.is_inside(), !ends.contains(&at), "{at} in steps of {step}");
            }
        }
    }
}
