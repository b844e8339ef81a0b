//! Whether a client has closed its sending side, and what follows from it.
//!
//! A FIN (with TLS: close_notify) says that no request follows, not that the client is gone: many send their request, shut
//! down their sending side and read the response. So it cancels nothing. It is a fact that handlers may wait for
//! ([`CloseSignal`]); only a reset, or the end of a Unix socket on both sides, ends the request. While a handler is waited for
//! nothing is read or written, so that [`HangupWatcher`] finds the reset that follows a FIN; and both, where bytes lie unread
//! before them: a body that its handler holds, or the next request.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};

use super::Server;
use super::conn::Conn;
use crate::sys::hangup::{self, HangupSet, Until};

// ---- what handlers wait for ----

/// Whether the client has closed, and the tasks that wait for it.
#[derive(Debug, Default)]
pub struct CloseSignal {
    closed: AtomicBool,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    wakers: Vec<(u64, Waker)>,
    next: u64,
}

/// The place of one waiting task, for as long as it waits.
#[derive(Debug, Default)]
pub struct WaiterId(Option<u64>);

impl CloseSignal {
    /// From now on it is so.
    pub fn set(&self) {
        if self.closed.swap(true, Ordering::SeqCst) {
            return;
        }
        let wakers = std::mem::take(&mut self.waiting().wakers);
        // Not under the lock: a waker may run what waits here again.
        wakers.into_iter().for_each(|(_, waker)| waker.wake());
    }

    pub fn is_set(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    pub fn poll(&self, cx: &mut Context<'_>, place: &mut WaiterId) -> Poll<()> {
        if self.is_set() {
            return Poll::Ready(());
        }
        let mut waiting = self.waiting();
        match place.0.and_then(|id| waiting.wakers.iter_mut().find(|(own, _)| *own == id)) {
            Some((_, waker)) => waker.clone_from(cx.waker()),
            None => {
                let id = waiting.next;
                waiting.next += 1;
                waiting.wakers.push((id, cx.waker().clone()));
                place.0 = Some(id);
            }
        }
        // Set in between, it may have found no waker.
        if self.is_set() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Nothing waits at `place` any more.
    pub fn leave(&self, place: &mut WaiterId) {
        if let Some(id) = place.0.take() {
            self.waiting().wakers.retain(|(own, _)| *own != id);
        }
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// ---- what reading cannot find ----

/// The connections of a worker that wait for their handlers and do not read, to be woken by a reset or a FIN.
#[derive(Default)]
pub struct HangupWatcher {
    /// `None` within if the kernel gave no descriptor for it: then a reset is found at the next write.
    set: OnceLock<Option<Arc<HangupSet>>>,
    watched: Mutex<HashMap<u64, Arc<Conn>>>,
    next: AtomicU64,
}

/// A connection that is watched, until it is dropped: before its socket is closed or handed over.
pub struct HangupGuard {
    server: &'static Server,
    key: u64,
    _member: hangup::Member,
}

impl HangupWatcher {
    /// Wakes the task of `conn` once its client is gone or, as `until` says, has closed. Within the runtime that serves.
    pub fn watch(&self, conn: &Arc<Conn>, socket: BorrowedFd<'_>, until: Until) -> Option<HangupGuard> {
        let server = conn.server;
        let set = self.set.get_or_init(|| HangupWatcher::begin(server)).as_ref()?;
        let key = self.next.fetch_add(1, Ordering::Relaxed);
        // Before it is added: it may be reported at once.
        self.watched().insert(key, conn.clone());
        match set.add(socket, key, until) {
            Ok(member) => Some(HangupGuard { server, key, _member: member }),
            Err(error) => {
                self.watched().remove(&key);
                tracing::debug!(%error, "failed to watch a connection for its client's close");
                None
            }
        }
    }

    fn begin(server: &'static Server) -> Option<Arc<HangupSet>> {
        let set = match HangupSet::new() {
            Ok(set) => Arc::new(set),
            Err(error) => {
                tracing::warn!(%error, "failed to watch connections for their clients' close");
                return None;
            }
        };
        let own = set.clone();
        tokio::spawn(async move {
            loop {
                match own.wait().await {
                    Ok(keys) => keys.iter().for_each(|key| {
                        let conn = server.hangups.watched().get(key).cloned();
                        conn.iter().for_each(|conn| conn.wake());
                    }),
                    Err(error) => return tracing::error!(%error, "failed to wait for clients that close"),
                }
            }
        });
        Some(set)
    }

    fn watched(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Conn>>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for HangupGuard {
    fn drop(&mut self) {
        self.server.hangups.watched().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn every_waiting_task_is_woken_once_and_those_that_left_are_not() {
        let (closed, count) = (CloseSignal::default(), Arc::new(Count::default()));
        let waker = Waker::from(count.clone());
        let mut cx = Context::from_waker(&waker);
        let mut places: [WaiterId; 3] = Default::default();
        for place in &mut places {
            assert!(closed.poll(&mut cx, place).is_pending());
            assert!(closed.poll(&mut cx, place).is_pending());
        }
        closed.leave(&mut places[0]);
        closed.leave(&mut places[0]);
        assert_eq!(closed.waiting().wakers.len(), 2);
        closed.set();
        closed.set();
        assert_eq!(count.0.load(Ordering::SeqCst), 2);
        assert!(closed.poll(&mut cx, &mut places[1]).is_ready());
        assert!(closed.waiting().wakers.is_empty());
    }
}
