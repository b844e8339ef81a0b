//! A connection that leaves HTTP: first a wish of its client, then a claim of a handler's, then a stream of bytes that the
//! plugin reads and writes while the connection's task waits for its end.
//!
//! The two ends share the io under a lock, since the plugin polls on threads of its own and the drain may end it at any time.
//! Nothing is buffered: each side's pace is the other's.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use http::header::{CONNECTION, UPGRADE};
use http::{HeaderMap, Method, StatusCode, Version, request};
use hyper::server::conn::http1::Parts;
use hyper::upgrade::OnUpgrade;
use tokio::io::ReadBuf;
use tokio::time::Instant;

use super::conn::Conn;
use super::io::Io;
use super::service::Http;
use crate::child::drain::End;
use crate::metrics::Slot;

/// What a plugin's stream answers when the connection is not its any more.
const ABORTED: nix::errno::Errno = nix::errno::Errno::ECONNABORTED;

enum State {
    /// The request asks; nobody has claimed it.
    Asked,
    /// A handler has, and may wait.
    Claimed(Option<Waker>),
    Open(Box<Open>),
    /// The plugin has let go of it; the io, if it was open.
    LetGo(Option<Io>),
    /// Answered otherwise, or cut.
    Over,
}

struct Open {
    io: Io,
    // Kept here too: taking the io out of the runtime wakes nobody.
    reader: Option<Waker>,
    writer: Option<Waker>,
}

type Shared = Arc<Mutex<State>>;

fn lock(shared: &Shared) -> MutexGuard<'_, State> {
    // Nothing in here panics with the state half changed.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The host's end, from the request on. Dropping it says no to whoever claimed the other.
pub struct Wish {
    state: Shared,
    is_connect: bool,
}

impl Wish {
    /// What the client of this request wishes, if anything.
    ///
    /// A request with a body gets none: where its body ends and the new protocol begins would be for the handler to see to.
    /// RFC 9110 7.8 leaves it to a server to ignore the field.
    #[inline]
    pub fn of(parts: &mut request::Parts, has_body: bool) -> Option<Wish> {
        // hyper marks those that have the field, or are CONNECT: for all others this is one comparison.
        if parts.extensions.is_empty() { None } else { Wish::of_marked(parts, has_body) }
    }

    #[cold]
    fn of_marked(parts: &mut request::Parts, has_body: bool) -> Option<Wish> {
        parts.extensions.remove::<OnUpgrade>()?;
        let is_connect = parts.method == Method::CONNECT;
        let may_leave = parts.version == Version::HTTP_11 && !has_body;
        let state = match is_connect {
            true if may_leave => State::Asked,
            // Still one, since whatever is answered must not look like a tunnel.
            true => State::Over,
            false if may_leave && says_upgrade(&parts.headers) => State::Asked,
            false => return None,
        };
        Some(Wish { state: Arc::new(Mutex::new(state)), is_connect })
    }

    /// For the request's head: whoever has that may claim the stream.
    pub fn offer(&self) -> Offer {
        Offer(self.state.clone())
    }

    pub fn is_connect(&self) -> bool {
        self.is_connect
    }

    pub fn is_claimed(&self) -> bool {
        matches!(*lock(&self.state), State::Claimed(_))
    }

    /// Whether a response of that status grants it.
    pub fn is_granted_by(&self, status: StatusCode) -> bool {
        status == StatusCode::SWITCHING_PROTOCOLS && !self.is_connect || self.is_connect && status.is_success()
    }

    /// The connection has left HTTP.
    fn open(self, io: Io) -> Opened {
        let mut state = lock(&self.state);
        let waker = match std::mem::replace(&mut *state, State::Over) {
            State::Claimed(waker) => {
                *state = State::Open(Box::new(Open { io, reader: None, writer: None }));
                waker
            }
            _ => {
                *state = State::LetGo(Some(io));
                None
            }
        };
        drop(state);
        waker.into_iter().for_each(Waker::wake);
        Opened(self.state.clone())
    }

    fn refuse(&self) {
        let mut state = lock(&self.state);
        let waker = match &mut *state {
            State::Asked => None,
            State::Claimed(waker) => waker.take(),
            State::Open(_) | State::LetGo(_) | State::Over => return,
        };
        *state = State::Over;
        drop(state);
        waker.into_iter().for_each(Waker::wake);
    }
}

impl Drop for Wish {
    fn drop(&mut self) {
        self.refuse();
    }
}

/// `Connection: upgrade`, in any company: without it the field is of a hop that has passed (RFC 9110 7.8).
fn says_upgrade(headers: &HeaderMap) -> bool {
    let lists = || headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let options = lists().flat_map(|list| list.split(','));
    headers.contains_key(UPGRADE) && options.into_iter().any(|option| option.trim().eq_ignore_ascii_case("upgrade"))
}

/// What can be claimed.
pub struct Offer(Shared);

impl Offer {
    /// Once; and before the response.
    pub fn claim(&self) -> Option<PluginEnd> {
        let mut state = lock(&self.0);
        if !matches!(*state, State::Asked) {
            return None;
        }
        *state = State::Claimed(None);
        Some(PluginEnd(self.0.clone()))
    }
}

// ---- the plugin's end ----

/// Polled on any thread, one at a time. Dropping it ends the connection in good order.
pub struct PluginEnd(Shared);

fn aborted<T>() -> Poll<io::Result<T>> {
    Poll::Ready(Err(ABORTED.into()))
}

impl PluginEnd {
    pub fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *lock(&self.0) {
            State::Open(_) => Poll::Ready(Ok(())),
            State::Claimed(waker) => {
                *waker = Some(cx.waker().clone());
                Poll::Pending
            }
            State::Asked | State::LetGo(_) | State::Over => aborted(),
        }
    }

    /// Answers how many bytes of `room`, from its start, were filled.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, room: &mut [MaybeUninit<u8>]) -> Poll<io::Result<usize>> {
        let mut room = ReadBuf::uninit(room);
        let State::Open(open) = &mut *lock(&self.0) else { return aborted() };
        let polled = open.io.poll_read_bare(cx, &mut room);
        if polled.is_pending() {
            open.reader = Some(cx.waker().clone());
        }
        ready!(polled)?;
        Poll::Ready(Ok(room.filled().len()))
    }

    fn write<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(&mut Io, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let State::Open(open) = &mut *lock(&self.0) else { return aborted() };
        let polled = poll(&mut open.io, cx);
        if polled.is_pending() {
            open.writer = Some(cx.waker().clone());
        }
        polled
    }

    pub fn poll_write(&mut self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.write(cx, |io, cx| io.poll_write_bare(cx, parts))
    }

    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write(cx, Io::poll_flush_bare)
    }

    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write(cx, Io::poll_shutdown_bare)
    }
}

impl Drop for PluginEnd {
    fn drop(&mut self) {
        let mut state = lock(&self.0);
        let (next, conn) = match std::mem::replace(&mut *state, State::Over) {
            State::Claimed(_) => (State::LetGo(None), None),
            State::Open(open) => {
                let conn = open.io.conn().clone();
                (State::LetGo(Some(open.io)), Some(conn))
            }
            other => (other, None),
        };
        *state = next;
        drop(state);
        if let Some(waker) = conn.as_ref().and_then(|conn| conn.waker.get()) {
            waker.wake_by_ref();
        }
    }
}

// ---- the connection's task ----

/// The host's end of an open stream.
struct Opened(Shared);

impl Opened {
    /// The io, once the plugin has let go of it.
    fn let_go(&self) -> Option<Io> {
        match &mut *lock(&self.0) {
            State::LetGo(io) => io.take(),
            _ => None,
        }
    }

    /// Takes it from the plugin, whose polls fail from now on.
    fn take(&self) -> Option<Io> {
        let before = std::mem::replace(&mut *lock(&self.0), State::Over);
        let State::Open(open) = before else { return None };
        let Open { io, reader, writer } = *open;
        [reader, writer].into_iter().flatten().for_each(Waker::wake);
        Some(io)
    }
}

/// Gives the connection to the plugin that claimed it, and sees to its end.
pub async fn serve(conn: &Conn, parts: Parts<Io, Http>, wish: Wish) -> End {
    let Parts { mut io, read_buf, .. } = parts;
    // What came right behind the head.
    io.rewind(read_buf);
    // Neither idle nor with a request: no limit of time holds any more.
    conn.publish(true);
    conn.set_upgraded();
    let metrics = conn.server.metrics;
    metrics.add(Slot::Upgraded);
    let opened = wish.open(io);
    let mut timer = None;
    let end = poll_fn(|cx| {
        if let Some(io) = opened.let_go() {
            return Poll::Ready(Ended::LetGo(io));
        }
        if conn.activity.is_due() && conn.is_idle_upgraded() {
            return Poll::Ready(Ended::Idle);
        }
        loop {
            let Some(deadline) = conn.server.drain.upgraded_until() else { return Poll::Pending };
            if deadline <= Instant::now() {
                return Poll::Ready(Ended::Cut);
            }
            let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
            if timer.deadline() != deadline {
                timer.as_mut().reset(deadline);
            }
            ready!(Future::poll(Pin::new(timer), cx));
        }
    })
    .await;
    metrics.sub(Slot::Upgraded);
    match end {
        Ended::LetGo(mut io) => {
            io.close().await;
            End::Upgraded
        }
        Ended::Idle => {
            metrics.add(Slot::UpgradedTimeouts);
            if let Some(mut io) = opened.take() {
                io.close().await;
            }
            End::CutUpgraded
        }
        Ended::Cut => {
            conn.set_reset();
            drop(opened.take());
            End::CutUpgraded
        }
    }
}

/// How a connection that has left HTTP ends.
enum Ended {
    LetGo(Io),
    /// Nothing has moved for `limits.upgraded_idle`.
    Idle,
    Cut,
}
