//! What the plugins hand on to those that follow: each is asked on a thread of its own, and none is waited for longer than
//! its time. The author's code runs here beside the requests; whatever it does, these go on.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::plugin::{Plugin, SavePanicked};
use crate::control::states::{self, PluginState, SAVE_TIME, StateEntry, StatesError};
use crate::control::{ToMaster, check_length};
use crate::report::NotSaved;

/// Whether a plugin is still at what it was asked before. One that never answers costs one thread, not one for each reload.
pub type Busy = Arc<AtomicBool>;

/// Asks the plugins. Returns SAVED within [`SAVE_TIME`]: the states are in `memory`, which the master has lent, or else in memory to be
/// sent beside it.
pub async fn save(plugins: Vec<(&'static Plugin, Busy)>, memory: Option<OwnedFd>) -> (ToMaster, Option<OwnedFd>) {
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
    let identity = memory.as_ref().and_then(|memory| states::identity(memory.as_fd()).ok());
    let (states, own) = match write(states, memory) {
        Ok(Written { entries, own, left }) => {
            failed.extend(left);
            (entries, own)
        }
        Err(error) => {
            let error = error.to_string();
            let error = error.strip_prefix("failed to ").unwrap_or(&error).to_owned();
            failed.push(NotSaved { plugin: None, error });
            (Vec::new(), None)
        }
    };
    fitting(ToMaster::Saved { states, failed, memory: identity }, own)
}

/// The message with its memory, if it can be sent: with very many plugins it cannot, and they all start without.
fn fitting(message: ToMaster, own: Option<OwnedFd>) -> (ToMaster, Option<OwnedFd>) {
    match check_length(&message) {
        Ok(()) => (message, own),
        Err(error) => {
            let text = error.to_string();
            let error = text.strip_prefix("failed to ").unwrap_or(&text).to_owned();
            let failed = vec![NotSaved { plugin: None, error }];
            (ToMaster::Saved { states: Vec::new(), failed, memory: None }, None)
        }
    }
}

/// SAVED of a child whose memory the master does not take: its kernel refuses descriptors, and its program, an earlier version, lends
/// no memory.
pub fn not_taken(message: ToMaster) -> ToMaster {
    match message {
        ToMaster::Saved { mut failed, .. } => {
            let error = "hand on the states: the master takes no memory of a child's".into();
            failed.push(NotSaved { plugin: None, error });
            ToMaster::Saved { states: Vec::new(), failed, memory: None }
        }
        other => other,
    }
}

struct Written {
    entries: Vec<StateEntry>,
    /// What the states are in, if the master has lent nothing.
    own: Option<OwnedFd>,
    /// What found no room.
    left: Vec<NotSaved>,
}

fn write(states: Vec<PluginState>, memory: Option<OwnedFd>) -> Result<Written, StatesError> {
    if states.is_empty() {
        return Ok(Written { entries: Vec::new(), own: None, left: Vec::new() });
    }
    if let Some(memory) = memory {
        let (entries, left) = states::fill(memory, states)?;
        return Ok(Written { entries, own: None, left });
    }
    let (entries, own, left) = states::seal(states)?;
    Ok(Written { entries, own: Some(own), left })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_of_too_many_plugins_are_given_up_with_the_length() {
        let saved = |count: usize| {
            let entry = |number| StateEntry { plugin: format!("plugin-{number:0>100}"), version: 1, length: 0 };
            ToMaster::Saved { states: (0..count).map(entry).collect(), failed: Vec::new(), memory: None }
        };
        let memory = || crate::sys::sealed::seal(c"t", b"").ok();
        assert!(matches!(fitting(saved(100), memory()), (ToMaster::Saved { .. }, Some(_))));
        let (ToMaster::Saved { states, failed, .. }, None) = fitting(saved(2000), memory()) else { panic!("it fits") };
        assert!(states.is_empty() && failed[0].error.contains("the limit is"), "{failed:?}");
    }
}
