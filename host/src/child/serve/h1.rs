//! The task of one connection: sniffs the protocol, drives hyper's HTTP/1 connection, and ends it as the drain asks.
//!
//! The heart is the quiet poll. hyper cannot be asked whether it is idle; but after one poll in which no request was alive,
//! none began, and everything was flushed, its io can be taken back with nothing lost: what it read and did not parse comes
//! along. Whatever ends an idle connection, and later hands one over, does it right after such a poll. hyper's own graceful
//! shutdown is never used: it closes fresh and idle connections without a look at what the kernel has received.

mod watch;

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::server::conn::http1;
use tokio_rustls::TlsAcceptor;

use self::watch::{Standing, Verdict, Watch};
use super::Entry;
use super::conn::Conn;
use super::h2;
use super::io::{Io, begins_request};
use super::limits::{Limits, Overdue};
use super::parser;
use super::refused::{self, Malformed};
use super::service::{Http, Own};
use super::sniff::{PREFACE, Sniffed, sniff};
use super::stream::Stream;
use super::tls::{self, Shaken};
use super::upgrade;
use crate::child::drain::End;
use crate::child::handover::{self, MAX_CARRIED, Start};
use crate::metrics::Slot;
use crate::sys::socket::Bare;

/// Polls in a row that try to come to rest, before other tasks have their turn.
const MAX_POLLS: u32 = 3;

/// hyper's own limit of fields in a head.
const HEAD_FIELDS: usize = 100;

const NOT_IN_TIME: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
const NOT_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-type: text/plain; charset=utf-8\r\n\
    content-length: 40\r\n\r\nthis port speaks TLS: use https instead\n";
const NO_HTTP2: &[u8] = b"HTTP/1.1 505 HTTP Version Not Supported\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

type Connection = http1::Connection<Io, Http>;

/// Serves one connection to its end.
pub async fn serve(entry: Entry, stream: Stream, start: Start) {
    let conn = entry.conn().clone();
    match drive(&conn, stream, start).await {
        Outcome::Ended(end) => {
            conn.server.drain.note(end);
            drop(entry);
        }
        Outcome::Leaves(stream, start) => conn.server.handover.give(entry, stream, start),
    }
}

/// What becomes of a connection.
enum Outcome {
    Ended(End),
    /// It goes to another generation.
    Leaves(Bare, Start),
}

impl From<End> for Outcome {
    fn from(end: End) -> Outcome {
        Outcome::Ended(end)
    }
}

async fn drive(conn: &Arc<Conn>, stream: Stream, start: Start) -> Outcome {
    poll_fn(|cx| {
        register(conn, cx);
        Poll::Ready(())
    })
    .await;
    let mut watch = Watch::new(&start);
    let stream = match conn.acceptor {
        None => stream,
        Some(acceptor) => match secure(conn, acceptor, stream, &mut watch).await {
            Ok(stream) => stream,
            Err(end) => return end.into(),
        },
    };
    let mut io = Io::new(stream, conn.clone());
    if start.pipelined {
        conn.set_pipelined();
    }
    // One that has served in another generation is known to speak HTTP/1.
    let mut http1 = start.http1;
    if http1 {
        conn.activity.set_served();
        io.rewind(start.carried);
    } else {
        match begin(conn, &mut io, &mut watch, &start.carried).await {
            Begun::Http1 => {}
            Begun::Http2 if conn.site.http2 => return h2::serve(conn, io).await.into(),
            Begun::Http2 => {
                refused::note(conn, Malformed::Version, "505: HTTP/2 is switched off here");
                return refuse(io, NO_HTTP2).await.into();
            }
            Begun::Ended => return End::Finished.into(),
            Begun::Leaves => return leave(conn, io, Bytes::new(), http1, &watch),
            Begun::Over(verdict, standing) => return over(conn, io, verdict, standing).await.into(),
        }
    }
    loop {
        let served = conn.calls();
        let http = builder(&conn.server.limits).serve_connection(io, Http::new(conn.clone()));
        let mut driver = Driver { http, conn, watch, is_ending: false };
        match poll_fn(|cx| driver.poll(cx)).await {
            Turn::Finished(result) => {
                return match conn.take_granted() {
                    // hyper is done with a connection once it has written a 101, and does not shut it down.
                    Some(wish) if result.is_ok() && conn.poll_was_flushed() => {
                        upgrade::serve(conn, driver.http.into_parts(), wish).await.into()
                    }
                    _ => finished(conn, driver.http, result).await.into(),
                };
            }
            Turn::Over(verdict, Standing::Busy) => {
                let end = if verdict == Verdict::StreamOver { End::CutStream } else { End::CutBusy };
                return cut(conn, driver.http, end).into();
            }
            Turn::Leaves => {
                http1 |= conn.calls() > 0;
                let parts = take(driver.http, conn, served);
                if parts.io.left_over() + parts.read_buf.len() <= MAX_CARRIED {
                    return leave(conn, parts.io, parts.read_buf, http1, &driver.watch);
                }
                conn.set_overfull();
                conn.restart();
                io = parts.io;
                io.rewind(parts.read_buf);
                watch = driver.watch.anew();
            }
            Turn::Over(verdict, _) => {
                http1 |= conn.calls() > 0;
                let parts = take(driver.http, conn, served);
                io = parts.io;
                let standing = Standing::of(parts.read_buf.len(), conn);
                match (verdict, standing) {
                    // Idle as it seemed, but a part of a head lies in hyper's buffer; or a head as it seemed, and none does.
                    // With what is left over it goes on in a new hyper connection, and now its standing is known.
                    (Verdict::Expired | Verdict::Idle, Standing::Head) | (Verdict::HeadTimeout, Standing::Idle) => {
                        conn.restart();
                        io.rewind(parts.read_buf);
                        watch = driver.watch.anew();
                    }
                    _ => return over(conn, io, verdict, standing).await.into(),
                }
            }
        }
    }
}

fn builder(limits: &Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.max_header_size(limits.head_size);
    builder.max_buf_size(limits.buffer_size);
    // hyper has room for its own number of fields on its stack; another one is allocated per request.
    if limits.head_fields != HEAD_FIELDS {
        builder.max_headers(limits.head_fields);
    }
    // The time limit of heads is ours: see `Watch`.
    builder.header_read_timeout(None);
    // Then hyper does not read while a request is answered, and a FIN ends none: see `Io::poll_client`.
    builder.half_close(true);
    builder
}

/// Stores the task's waker, once: tokio gives a task the same one at every poll.
fn register(conn: &Conn, cx: &Context<'_>) {
    conn.waker.get_or_init(|| cx.waker().clone());
    // The counterpart of `Connections::wake_all`.
    fence(Ordering::SeqCst);
}

// ---- TLS ----

/// Agrees on TLS with the client, within its limits. A handshake counts from the accept: a drain waits for it as for a
/// request.
async fn secure(conn: &Arc<Conn>, acceptor: &TlsAcceptor, stream: Stream, watch: &mut Watch) -> Result<Stream, End> {
    conn.begin_handshake();
    let bound = |cx: &mut Context<'_>| {
        let verdict = ready!(watch.check(cx, conn, Standing::Handshake));
        if verdict == Verdict::Cut {
            // As long as the socket is open.
            conn.set_reset();
        }
        Poll::Ready(verdict)
    };
    let shaken = tls::handshake(conn, acceptor, stream, bound).await;
    let metrics = conn.server.metrics;
    match shaken {
        Ok(Shaken::Secure(stream)) => {
            watch.note_secure();
            conn.end_handshake();
            Ok(stream)
        }
        Ok(Shaken::Clear(stream)) => {
            metrics.add(Slot::HandshakeFailures);
            Err(refuse(Io::new(stream, conn.clone()), NOT_TLS).await)
        }
        Ok(Shaken::Failed(stream)) => {
            metrics.add(Slot::HandshakeFailures);
            Io::new(stream, conn.clone()).close().await;
            Err(End::Finished)
        }
        Ok(Shaken::Gone) => Err(End::Finished),
        Err(Verdict::HandshakeTimeout) => {
            metrics.add(Slot::HandshakeTimeouts);
            Err(End::Finished)
        }
        Err(_) => Err(End::CutHead),
    }
}

// ---- the first bytes ----

enum Begun {
    Http1,
    Http2,
    /// The client closed or was cut off, without a request.
    Ended,
    Over(Verdict, Standing),
    /// It is to be handed over.
    Leaves,
}

/// Reads until it is clear what the client speaks, and puts what was read back.
///
/// `carried` was read by another generation: less than a preface, or it would have known.
async fn begin(conn: &Conn, io: &mut Io, watch: &mut Watch, carried: &[u8]) -> Begun {
    let mut bytes = [0; PREFACE.len()];
    if carried.len() >= bytes.len() {
        io.rewind(Bytes::copy_from_slice(carried));
        return Begun::Http1;
    }
    let mut len = carried.len();
    bytes[..len].copy_from_slice(carried);
    let begun = poll_fn(|cx| {
        loop {
            if conn.is_gated() {
                return Poll::Ready(Begun::Leaves);
            }
            match io.poll_peek_in(cx, &mut bytes[len..]) {
                Poll::Ready(Ok(0)) => {
                    conn.set_ended();
                    // hyper answers a head that was cut off.
                    return Poll::Ready(if len == 0 { Begun::Ended } else { Begun::Http1 });
                }
                Poll::Ready(Err(_)) => return Poll::Ready(Begun::Ended),
                Poll::Ready(Ok(count)) => {
                    len += count;
                    match sniff(&bytes[..len]) {
                        Sniffed::Http1 => return Poll::Ready(Begun::Http1),
                        Sniffed::Http2 => return Poll::Ready(Begun::Http2),
                        Sniffed::Undecided => {}
                    }
                }
                Poll::Pending => {
                    let standing = Standing::of(len, conn);
                    return watch.check(cx, conn, standing).map(|verdict| Begun::Over(verdict, standing));
                }
            }
        }
    })
    .await;
    io.rewind(Bytes::copy_from_slice(&bytes[..len]));
    begun
}

// ---- driving hyper ----

struct Driver<'a> {
    http: Connection,
    conn: &'a Conn,
    watch: Watch,
    /// hyper knows that it reads no further request.
    is_ending: bool,
}

enum Turn {
    /// hyper is done with it.
    Finished(hyper::Result<()>),
    Over(Verdict, Standing),
    /// It came to rest and is to be handed over.
    Leaves,
}

impl Driver<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Turn> {
        let conn = self.conn;
        if conn.activity.is_due()
            && let Some(turn) = self.judge()
        {
            return Poll::Ready(turn);
        }
        for _ in 0..MAX_POLLS {
            let was_alive = conn.is_alive();
            conn.begin_poll();
            if let Poll::Ready(result) = Pin::new(&mut self.http).poll(cx) {
                return Poll::Ready(Turn::Finished(result));
            }
            if conn.discard.is_filled() {
                conn.discard.poll(conn, cx);
            }
            if conn.is_last_request() && !self.is_ending {
                // Where the head of the response is out already, hyper closes at its end.
                self.is_ending = true;
                Pin::new(&mut self.http).graceful_shutdown();
                cx.waker().wake_by_ref();
            }
            // A response that the client has not taken yet is not over.
            let busy = conn.is_alive() || !conn.poll_was_flushed();
            conn.publish(busy);
            if conn.server.is_calm() && (busy || !conn.is_ahead() && !conn.activity.is_due()) {
                return Poll::Pending;
            }
            if conn.is_shut() {
                // hyper is done and the io waits for the client's end, for a while: only the last limits cut that short.
                return self.watch.check(cx, conn, Standing::Closing).map(|_| Turn::Finished(Ok(())));
            }
            if busy {
                return self.watch(cx, Standing::Busy);
            }
            if !was_alive && conn.poll_was_quiet() {
                conn.settle();
                if handover::may_go(conn) {
                    return Poll::Ready(Turn::Leaves);
                }
                if conn.is_ahead() {
                    return self.watch(cx, Standing::Head);
                }
                if !conn.server.drain.is_serving() {
                    conn.note_quiet();
                }
                return self.watch(cx, Standing::Idle);
            }
            // All is answered, but this poll had work to do: the next one comes to rest.
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// A limit of time may be met. Where the client can still be told, the poll to come tells it; else the connection ends
    /// with a reset. One that is idle is seen to once it has come to rest: see [`Watch::check`].
    #[cold]
    fn judge(&self) -> Option<Turn> {
        let conn = self.conn;
        let met = conn.overdue()?;
        let refusal = match met {
            Overdue::Idle => return None,
            Overdue::Body => Some(Own::BodyTimeout),
            Overdue::Request => Some(Own::RequestTimeout),
            Overdue::Write | Overdue::ResponseRate | Overdue::Stream => None,
        };
        conn.activity.set_due(false);
        // Counted once: one that was refused and does not end is known.
        if conn.refusal().is_none() {
            met.slot().into_iter().for_each(|slot| conn.server.metrics.add(slot));
        }
        if refusal.is_some_and(|refusal| conn.refuse(refusal)) {
            return None;
        }
        let verdict = if met == Overdue::Stream { Verdict::StreamOver } else { Verdict::Cut };
        Some(Turn::Over(verdict, Standing::Busy))
    }

    fn watch(&mut self, cx: &mut Context<'_>, standing: Standing) -> Poll<Turn> {
        self.watch.check(cx, self.conn, standing).map(|verdict| Turn::Over(verdict, standing))
    }
}

/// Takes the io out of hyper, right after a quiet poll.
///
/// `before` is how many requests the connection had carried when this hyper connection began.
fn take(http: Connection, conn: &Conn, before: u64) -> http1::Parts<Io, Http> {
    #[cfg(debug_assertions)]
    let http = if conn.calls() > before { oracle(http, conn) } else { http };
    #[cfg(not(debug_assertions))]
    let _ = (conn, before);
    http.into_parts()
}

/// hyper's own word on the quiet poll: told to shut down gracefully, an idle connection that has served ends at once, with
/// all flushed. Only asked where the io is taken out anyway.
#[cfg(debug_assertions)]
fn oracle(mut http: Connection, conn: &Conn) -> Connection {
    conn.begin_poll();
    Pin::new(&mut http).graceful_shutdown();
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let done = http.poll_without_shutdown(&mut cx);
    assert!(matches!(done, Poll::Ready(Ok(()))), "the quiet poll was not: hyper says {done:?}");
    assert!(conn.poll_was_flushed(), "the quiet poll left bytes unwritten");
    http
}

// ---- the ends ----

/// hyper came to an end of its own: the client closed, or a response announced it, or something was wrong.
async fn finished(conn: &Conn, http: Connection, result: hyper::Result<()>) -> End {
    let was_answering = conn.is_answering();
    let http1::Parts { mut io, read_buf, .. } = http.into_parts();
    if let Err(error) = result {
        tracing::debug!(%error, peer = ?conn.peer.to_std(), "connection ended early");
        if error.is_parse() {
            refused::note_parser(conn, &error);
        }
        if let Some(response) = io.take_held_back() {
            let too_large = error.is_parse_too_large().then_some(conn.server.limits.head_size);
            let response = parser::corrected(response, too_large, &read_buf);
            return refuse(io, &response).await;
        }
        // A response that broke off must not look like one that is whole.
        if error.is_user() || error.is_body_write_aborted() {
            conn.set_reset();
            return End::Finished;
        }
        if was_answering {
            conn.note_abort();
        }
    }
    conn.discard.finish(conn);
    if !conn.is_shut() && !conn.is_ended() {
        // hyper leaves this out where the client once asked for an upgrade.
        io.close().await;
    }
    let behind = read_buf.first().is_some_and(|byte| begins_request(*byte)) || io.discarded_request();
    if conn.is_announced() && behind { End::Unanswered } else { End::Finished }
}

/// The drain ends a connection whose io is not in hyper.
async fn over(conn: &Conn, mut io: Io, verdict: Verdict, standing: Standing) -> End {
    match verdict {
        Verdict::HeadTimeout => {
            conn.server.metrics.add(Slot::HeadTimeouts);
            refused::log(conn, "408: the head did not come in time");
            refuse(io, NOT_IN_TIME).await
        }
        // The others are met by a request in flight, and in `secure`.
        Verdict::Cut | Verdict::StreamOver | Verdict::HandshakeTimeout => {
            conn.set_reset();
            End::CutHead
        }
        // No time for courtesies.
        Verdict::Expired if conn.server.drain.is_cut() => End::Lingered,
        Verdict::Expired | Verdict::Idle => {
            if verdict == Verdict::Idle {
                let spoke = conn.activity.has_served() || conn.calls() > 0;
                conn.server.metrics.add(if spoke { Slot::IdleTimeouts } else { Slot::HeadTimeouts });
            }
            debug_assert_eq!(standing, Standing::Idle);
            conn.set_idle_close();
            io.close().await;
            if io.discarded_request() { End::Lost } else { End::Lingered }
        }
    }
}

/// Breaks a connection off that has a request in flight.
fn cut(conn: &Conn, http: Connection, end: End) -> End {
    conn.set_reset();
    drop(http);
    end
}

/// Packs a connection up to be handed over.
fn leave(conn: &Conn, io: Io, read: Bytes, http1: bool, watch: &Watch) -> Outcome {
    let (stream, rest) = match io.into_parts() {
        Ok(parts) => parts,
        Err(error) => {
            tracing::warn!(%error, "failed to take a connection out of the runtime");
            return End::Finished.into();
        }
    };
    // hyper read its part first.
    let carried = if rest.is_empty() { read } else { Bytes::from([&read[..], &rest[..]].concat()) };
    let head = (!carried.is_empty()).then(|| watch.head_began(conn).map_or(Duration::ZERO, |since| since.elapsed()));
    Outcome::Leaves(stream, Start { carried, http1, pipelined: conn.is_pipelined(), head, idle: conn.quiet_time() })
}

/// Answers what hyper is not asked to, and closes.
async fn refuse(mut io: Io, response: &[u8]) -> End {
    // A client that takes nothing is not waited for.
    let linger = io.conn().server.limits.linger;
    if let Ok(Ok(())) = tokio::time::timeout(linger, io.write_all(response)).await {
        io.close().await;
    }
    End::Finished
}
