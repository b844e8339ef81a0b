//! What the plugins hand on to those that follow: each is asked on a thread of its own, and none is waited for longer than
//! its time. The author's code runs here beside the requests; whatever it does, these go on.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::plugin::{Plugin, SavePanicked};
use crate::control::ToMaster;
use crate::control::states::{self, PluginState, SAVE_TIME};
use crate::report::NotSaved;

/// Whether a plugin is still at what it was asked before. One that never answers costs one thread, not one for each reload.
pub type Busy = Arc<AtomicBool>;

/// SAVED, with what goes beside it. Within [`SAVE_TIME`].
pub async fn save(plugins: Vec<(&'static Plugin, Busy)>) -> (ToMaster, Option<OwnedFd>) {
    let until = Instant::now() + SAVE_TIME;
    let asked: Vec<_> = plugins.into_iter().map(|(plugin, busy)| (plugin, ask(plugin, busy))).collect();
    let (mut states, mut failed) = (Vec::new(), Vec::new());
    for (plugin, answer) in asked {
        match answered(answer, until).await {
            Ok(Some((version, bytes))) => {
                states.push(PluginState { plugin: plugin.name().into(), version, bytes });
            }
            Ok(None) => {}
            Err(error) => failed.push(NotSaved { plugin: Some(plugin.name().into()), error }),
        }
    }
    if states.is_empty() {
        return (ToMaster::Saved { states: Vec::new(), failed }, None);
    }
    match states::seal(states) {
        Ok((states, memory, left)) => {
            failed.extend(left);
            (ToMaster::Saved { states, failed }, Some(memory))
        }
        Err(error) => {
            let error = error.to_string();
            let error = error.strip_prefix("failed to ").unwrap_or(&error).to_owned();
            failed.push(NotSaved { plugin: None, error });
            (ToMaster::Saved { states: Vec::new(), failed }, None)
        }
    }
}

type Answer = Result<Option<(u32, Vec<u8>)>, SavePanicked>;

fn ask(plugin: &'static Plugin, busy: Busy) -> Result<oneshot::Receiver<Answer>, String> {
    if busy.swap(true, Ordering::AcqRel) {
        return Err("get its state: it has not answered the time before".into());
    }
    let (sender, answer) = oneshot::channel();
    let still = busy.clone();
    let thread = std::thread::Builder::new().name("save".into()).spawn(move || {
        let answer = plugin.save();
        still.store(false, Ordering::Release);
        // Too late for whoever asked.
        let _ = sender.send(answer);
    });
    thread.map(|_| answer).map_err(|error| {
        busy.store(false, Ordering::Release);
        format!("start the thread that gets its state: {error}")
    })
}

async fn answered(
    asked: Result<oneshot::Receiver<Answer>, String>,
    until: Instant,
) -> Result<Option<(u32, Vec<u8>)>, String> {
    match timeout_at(until, asked?).await {
        Ok(Ok(Ok(state))) => Ok(state),
        Ok(Ok(Err(SavePanicked))) => Err("get its state: its function panicked".into()),
        Ok(Err(_)) => Err("get its state: its thread has ended".into()),
        Err(_) => Err(format!("get its state within {SAVE_TIME:?}")),
    }
}
