//! One request, from its head to the end of its response, and its body as long as a handler has it. The bridge and the service
//! know a request by this and not by its connection: HTTP/1 carries one at a time, so that its connection counts for it;
//! HTTP/2 carries many, each with a count of its own.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use http::HeaderMap;

use super::closed::{CloseSignal, WaiterId};
use super::conn::Conn;
use super::h2::Stream;
use super::refused::{self, Malformed};
use super::service::{Own, ResponseLength};

/// Whose request it is.
#[derive(Clone)]
pub enum Exchange {
    /// The one that its connection carries now.
    Http1(Arc<Conn>),
    /// One of many.
    Http2(Arc<Stream>),
}

impl Exchange {
    #[inline]
    pub fn conn(&self) -> &Arc<Conn> {
        match self {
            Exchange::Http1(conn) => conn,
            Exchange::Http2(stream) => stream.conn(),
        }
    }

    /// The answer of ours that takes the place of the handler's, if a limit was met.
    #[inline]
    pub fn refusal(&self) -> Option<Own> {
        match self {
            Exchange::Http1(conn) => conn.refusal(),
            Exchange::Http2(stream) => stream.refusal(),
        }
    }
}

impl Exchange {
    /// Ends once the client has closed its sending side, has reset the request, or the connection has ended.
    pub fn client_closed(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut wait = ClosedWait { exchange: self.clone(), places: Default::default() };
        poll_fn(move |cx| wait.poll(cx))
    }

    /// What says so: the connection's, and that of a stream.
    fn closed(&self) -> [Option<&CloseSignal>; 2] {
        match self {
            Exchange::Http1(conn) => [Some(&conn.closed), None],
            Exchange::Http2(stream) => [Some(&stream.conn().closed), Some(&stream.closed)],
        }
    }
}

/// One task's wait for the client's close; nothing of it is left once it is dropped.
struct ClosedWait {
    exchange: Exchange,
    places: [WaiterId; 2],
}

impl ClosedWait {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let ready = self.exchange.closed().into_iter().flatten().zip(&mut self.places);
        // Each of them is polled, so that each knows the waker.
        let ended = ready.fold(false, |ended, (closed, place)| closed.poll(cx, place).is_ready() || ended);
        if ended {
            return Poll::Ready(());
        }
        if let Exchange::Http1(conn) = &self.exchange {
            conn.watch_client();
        }
        Poll::Pending
    }
}

impl Drop for ClosedWait {
    fn drop(&mut self) {
        self.exchange
            .closed()
            .into_iter()
            .flatten()
            .zip(&mut self.places)
            .for_each(|(closed, place)| closed.leave(place));
    }
}

/// A request that is being answered: held by the handler's future, then by the response's body. With HTTP/1 both live inside
/// hyper's connection, so the connection's task is the only one to drop it; with HTTP/2 it is the stream's task.
pub struct Answering(Exchange);

impl Answering {
    #[inline]
    pub fn new(exchange: Exchange) -> Answering {
        match &exchange {
            Exchange::Http1(conn) => conn.begin_answer(),
            Exchange::Http2(stream) => stream.begin_answer(),
        }
        Answering(exchange)
    }

    #[inline]
    pub fn exchange(&self) -> &Exchange {
        &self.0
    }

    /// The response is known: it counts as answered.
    #[inline]
    pub fn note_answer(&self, length: ResponseLength) {
        match &self.0 {
            Exchange::Http1(conn) => conn.note_answer(length),
            Exchange::Http2(stream) => stream.note_answer(length),
        }
    }

    /// Whether it shall say that the connection closes after it.
    #[inline]
    pub fn announces_close(&self) -> bool {
        match &self.0 {
            Exchange::Http1(conn) => conn.announces_close(),
            // GOAWAY says it there, of the whole connection.
            Exchange::Http2(_) => false,
        }
    }
}

impl Drop for Answering {
    #[inline]
    fn drop(&mut self) {
        match &self.0 {
            Exchange::Http1(conn) => conn.end_answer(),
            Exchange::Http2(stream) => stream.end_answer(),
        }
    }
}

/// A request's body, from the head to its drop by the handler, on whatever thread, or to its end where it is discarded. The
/// field after the body in whatever holds both, so that it is dropped last.
pub struct Receiving {
    exchange: Exchange,
    /// Which request of its HTTP/1 connection it belongs to.
    call: u64,
}

impl Receiving {
    pub fn new(exchange: Exchange) -> Receiving {
        let call = match &exchange {
            Exchange::Http1(conn) => {
                conn.begin_body();
                conn.calls()
            }
            Exchange::Http2(stream) => {
                stream.begin_body();
                0
            }
        };
        Receiving { exchange, call }
    }

    pub fn exchange(&self) -> &Exchange {
        &self.exchange
    }

    pub fn call(&self) -> u64 {
        self.call
    }

    /// The handler has polled it: in vain, and so with which waker, or for so many bytes.
    #[inline]
    pub fn note_poll(&self, in_vain: Option<&Waker>, len: usize) {
        match &self.exchange {
            // Its io has counted the bytes.
            Exchange::Http1(conn) => conn.activity.body.note_poll(in_vain),
            Exchange::Http2(stream) => stream.note_upload(in_vain, len),
        }
    }

    /// More has come than may be.
    #[cold]
    pub fn refuse(&self) {
        refused::note_own(self.exchange.conn(), Own::BodyTooLarge);
        match &self.exchange {
            Exchange::Http1(conn) => refuse(conn, Own::BodyTooLarge),
            Exchange::Http2(stream) => stream.refuse(Own::BodyTooLarge),
        }
    }

    /// It came to an end that is none: that is not the handler's failure, whatever it makes of it.
    #[cold]
    pub fn spoiled(&self, error: &hyper::Error) {
        refused::note_body(self.exchange.conn(), error);
        match &self.exchange {
            Exchange::Http1(conn) => refuse(conn, Own::BadBody),
            // It has ended with it: nobody sees that answer.
            Exchange::Http2(stream) => stream.refuse(Own::BadBody),
        }
    }

    /// Its trailers have come. Fails if they show that the client and hyper read them in different ways.
    ///
    /// RFC 9112 2.2 lets a server take a single LF for the end of a line. In trailers hyper does so for their fields, but not for
    /// where they end: behind `0 CRLF LF`, or an empty line of LF alone, it reads on to the next CRLF CRLF, over what another
    /// server takes for the next request. Only the former shows in what hyper returns: it returns no field.
    #[cold]
    pub fn note_trailers(&self, trailers: &HeaderMap) -> Result<(), &'static str> {
        let Exchange::Http1(conn) = &self.exchange else { return Ok(()) };
        conn.set_last_request();
        if !trailers.is_empty() {
            return Ok(());
        }
        const BARE_LF: &str = "a single LF begins the trailers of the request body";
        refused::note(conn, Malformed::Body, BARE_LF);
        refuse(conn, Own::BadBody);
        Err(BARE_LF)
    }

    pub fn limit(&self) -> u64 {
        self.exchange.conn().server.limits.body_size
    }
}

/// The body may be read by another task than the one that answers: that one is woken.
fn refuse(conn: &Conn, refusal: Own) {
    conn.refuse(refusal);
    conn.wake();
}

impl Drop for Receiving {
    fn drop(&mut self) {
        match &self.exchange {
            Exchange::Http1(conn) => conn.end_body(),
            Exchange::Http2(stream) => stream.end_body(),
        }
    }
}
