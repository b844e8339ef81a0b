//! Work that must never run twice: a lock that one process has, and that the kernel takes back however that process ends.
//!
//! The lock is flock(2) on a file in the plugin's directory: it belongs to the open file, so that a process that dies, is
//! killed or hangs up leaves nothing behind, and one that is stopped keeps it.

use std::fs::File;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::task::Poll;

use super::Init;

/// The right to what only one process may do, from [`Init::exclusive`]. Given back when it is dropped, and when the process
/// ends, however it ends.
#[derive(Debug)]
#[must_use = "it is given back when it is dropped"]
pub struct Exclusive {
    _lock: File,
}

impl Init {
    /// Waits for the right to what only one process may do at a time, such as running jobs. `name` is the plugin's own, for
    /// each such thing.
    ///
    /// Two generations live at once around each reload: the one that serves and the one that retires, or stands by to take
    /// over again. This is granted only to one that serves, and only when no other process has it any more: not before the
    /// generation before has dropped it, or is dead. Nothing is answered if this generation retires first.
    ///
    /// Drop it once [`shutdown`](Init::shutdown) has come and what was begun is finished; so the next generation goes on
    /// where this one has left, with no overlap and no gap. A generation that stands by keeps it, since it may serve again.
    ///
    /// Do not await it in init itself, which would wait for its own end.
    ///
    /// # Errors
    /// If the lock's file in [`data_dir`](Init::data_dir) cannot be made or locked, or `name` is empty or a path.
    ///
    /// ```
    /// # use baton_plugin_api::{handler_with, testing, tracing, Init, IntoApp, Request};
    /// # use std::sync::atomic::{AtomicBool, Ordering};
    /// # static RAN: AtomicBool = AtomicBool::new(false);
    /// # async fn next_job() { RAN.store(true, Ordering::SeqCst); baton_plugin_api::tokio::task::yield_now().await }
    /// async fn run_jobs(cx: Init) -> std::io::Result<()> {
    ///     let Some(_alone) = cx.exclusive("jobs").await? else { return Ok(()) };
    ///     let shutdown = cx.shutdown();
    ///     while !shutdown.has_begun() {
    ///         next_job().await;
    ///     }
    ///     Ok(())
    /// }
    ///
    /// fn app(cx: Init) -> impl IntoApp {
    ///     // Not `spawn_when_serving`: a job that was begun shall be finished.
    ///     cx.spawn(async move {
    ///         if let Err(error) = run_jobs(cx).await {
    ///             tracing::error!(%error, "no jobs are run");
    ///         }
    ///     });
    ///     handler_with((), async |(), _: Request| "ok")
    /// }
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let plugin = testing::Plugin::with(app).data_dir(dir.path()).start().unwrap();
    /// # testing::eventually(|| RAN.load(Ordering::SeqCst));
    /// ```
    pub fn exclusive(&self, name: &str) -> impl Future<Output = io::Result<Option<Exclusive>>> + Send + use<> {
        let (cx, path) = (*self, lock_file(self.data_dir(), name));
        async move {
            let path = path?;
            let granted = async move {
                cx.serving().await;
                // The kernel has no other way to wait for it. Nobody waits for the thread: if it is too late, the lock is
                // given back at once.
                let locked = cx.handle().spawn_blocking(move || lock(&path)).await;
                locked.unwrap_or_else(|error| Err(io::Error::other(error)))
            };
            let (mut granted, mut retired) = (pin!(granted), pin!(cx.shutdown().wait()));
            std::future::poll_fn(|cx| match retired.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(Ok(None)),
                Poll::Pending => granted.as_mut().poll(cx).map_ok(|lock| Some(Exclusive { _lock: lock })),
            })
            .await
        }
    }
}

fn lock_file(dir: &Path, name: &str) -> io::Result<PathBuf> {
    if name.is_empty() || name.contains(['/', '\\', '\0']) {
        let why = format!("failed to lock `{name}`: it is to be a name, and no path");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    Ok(dir.join(format!("{name}.lock")))
}

/// Blocks until no other process has it. The file stays for good: to remove it would be to let two have the lock.
fn lock(path: &Path) -> io::Result<File> {
    let file = File::options().create(true).truncate(false).write(true).open(path)?;
    loop {
        match file.lock() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            locked => return locked.map(|()| file),
        }
    }
}
