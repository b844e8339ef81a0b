//! What plugins hand on to the generation that follows: all of it, one after the other, in sealed memory, and in the message
//! beside it whose each part is.
//!
//! The master passes both on and reads neither. Whoever opens them believes nothing: it comes from another version of the
//! plugins, and perhaps from another one of this program.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::report::NotSaved;
use crate::sys::sealed;

/// Bytes that one plugin may hand on.
pub const MAX_STATE: usize = 1 << 20;
/// Bytes that all of them may.
const MAX_STATES: usize = 64 << 20;
/// How long a plugin may take to give its state.
pub const SAVE_TIME: Duration = Duration::from_secs(1);
/// SAVE to SAVED; then the master goes on without.
pub const SAVE_TIMEOUT: Duration = Duration::from_millis(1250);

#[derive(Debug, thiserror::Error)]
pub enum StatesError {
    #[error("failed to pass states on: {0}")]
    Io(#[from] io::Error),
    #[error("failed to understand the states that came: {0}")]
    Broken(&'static str),
}

/// Whose the next `length` bytes are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateEntry {
    pub plugin: String,
    /// The author's own counting of its format.
    pub version: u32,
    pub length: usize,
}

/// What one plugin hands on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginState {
    pub plugin: String,
    pub version: u32,
    pub bytes: Vec<u8>,
}

/// What all plugins of a generation hand on, on its way: not looked into.
#[derive(Debug)]
pub struct States {
    entries: Vec<StateEntry>,
    memory: OwnedFd,
}

impl States {
    /// What was sealed by `seal`, if it fits together.
    pub fn take(entries: Vec<StateEntry>, memory: OwnedFd) -> Result<States, StatesError> {
        let sealed = sealed::length(memory.as_fd())?;
        if entries.iter().any(|entry| entry.length > MAX_STATE) {
            return Err(StatesError::Broken("one is longer than a state may be"));
        }
        // No sum of lengths that were looked at overflows.
        let said: usize = entries.iter().map(|entry| entry.length).sum();
        if said > MAX_STATES || sealed != said as u64 {
            return Err(StatesError::Broken("they are not as long as was said"));
        }
        Ok(States { entries, memory })
    }

    /// For LOAD.
    pub fn lend(&self) -> io::Result<(Vec<StateEntry>, OwnedFd)> {
        Ok((self.entries.clone(), self.memory.try_clone()?))
    }

    pub fn parts(&self) -> (&[StateEntry], &OwnedFd) {
        (&self.entries, &self.memory)
    }

    pub fn open(self) -> Result<Vec<PluginState>, StatesError> {
        let bytes = sealed::open(self.memory, MAX_STATES)?;
        let mut rest = &bytes[..];
        let mut states = Vec::new();
        for StateEntry { plugin, version, length } in self.entries {
            let (bytes, others) = rest.split_at_checked(length).ok_or(StatesError::Broken("they are cut short"))?;
            states.push(PluginState { plugin, version, bytes: bytes.to_vec() });
            rest = others;
        }
        Ok(states)
    }
}

/// Memory for all states of a child: it goes with SAVE, and the child [fills](fill) it.
pub fn lend() -> io::Result<OwnedFd> {
    sealed::lend(c"baton-states", MAX_STATES as u64)
}

/// Identifies lent memory in SAVED.
pub fn identity(memory: BorrowedFd<'_>) -> io::Result<u64> {
    sealed::inode(memory)
}

/// Whether that is memory that nobody can change any more. Of any other descriptor nothing is asked that could take its time.
pub fn is_sealed(memory: BorrowedFd<'_>) -> bool {
    sealed::length(memory).is_ok()
}

/// Writes states into the memory that came with SAVE. Returns the entries, and the states that found no room.
pub fn fill(memory: OwnedFd, states: Vec<PluginState>) -> Result<(Vec<StateEntry>, Vec<NotSaved>), StatesError> {
    let (entries, all, left) = join(states);
    sealed::fill(memory, &all)?;
    Ok((entries, left))
}

/// Seals states in memory of this process's own, for a master that lends none. Returns as [`fill`] does.
pub fn seal(states: Vec<PluginState>) -> Result<(Vec<StateEntry>, OwnedFd, Vec<NotSaved>), StatesError> {
    let (entries, all, left) = join(states);
    Ok((entries, sealed::seal(c"baton-states", &all)?, left))
}

/// One after the other, as far as there is room.
fn join(states: Vec<PluginState>) -> (Vec<StateEntry>, Vec<u8>, Vec<NotSaved>) {
    let (mut entries, mut all, mut left) = (Vec::new(), Vec::new(), Vec::new());
    for PluginState { plugin, version, bytes } in states {
        if bytes.len() > MAX_STATE {
            let error = format!("hand on its state of {} bytes: the limit is {MAX_STATE}", bytes.len());
            left.push(NotSaved { plugin: Some(plugin), error });
        } else if all.len() + bytes.len() > MAX_STATES {
            let error = format!("hand on its state: the limit of all plugins together is {MAX_STATES} bytes");
            left.push(NotSaved { plugin: Some(plugin), error });
        } else {
            entries.push(StateEntry { plugin, version, length: bytes.len() });
            all.extend(bytes);
        }
    }
    (entries, all, left)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn state(plugin: &str, bytes: Vec<u8>) -> PluginState {
        PluginState { plugin: plugin.into(), version: 3, bytes }
    }

    #[test]
    fn what_is_sealed_comes_back_as_it_was() {
        let states = vec![state("a", vec![1; 70_000]), state("b", Vec::new()), state("c", b"x".to_vec())];
        let (entries, memory, left) = seal(states.clone()).unwrap();
        assert_eq!(left, []);
        let passed_on = States::take(entries, memory).unwrap();
        // As often as generations follow.
        for _ in 0..2 {
            let (entries, memory) = passed_on.lend().unwrap();
            assert_eq!(States::take(entries, memory).unwrap().open().unwrap(), states);
        }
    }

    #[test]
    fn one_that_is_too_long_is_left_out_alone() {
        let states = vec![state("long", vec![0; MAX_STATE + 1]), state("most", vec![7; MAX_STATE])];
        let (entries, memory, left) = seal(states).unwrap();
        assert_eq!(left.len(), 1);
        assert_eq!((left[0].plugin.as_deref(), entries[0].plugin.as_str()), (Some("long"), "most"));
        assert_eq!(States::take(entries, memory).unwrap().open().unwrap()[0].bytes.len(), MAX_STATE);
        let many = (0..65).map(|_| state("p", vec![0; MAX_STATE])).collect();
        let (entries, _, left) = seal(many).unwrap();
        assert_eq!((entries.len(), left.len()), (64, 1));
    }

    #[test]
    fn lent_memory_carries_states_and_an_unfilled_one_is_refused() {
        let states = vec![state("a", vec![1; 70_000]), state("b", b"x".to_vec())];
        let memory = lend().unwrap();
        let entry = StateEntry { plugin: "a".into(), version: 1, length: MAX_STATE };
        assert!(States::take(vec![entry; 64], memory.try_clone().unwrap()).is_err(), "as long, but not sealed");
        let (entries, left) = fill(memory.try_clone().unwrap(), states.clone()).unwrap();
        assert_eq!(left, []);
        assert_eq!(States::take(entries, memory).unwrap().open().unwrap(), states);
    }

    #[test]
    fn lengths_that_lie_and_memory_that_can_change_are_refused() {
        let sealed = || sealed::seal(c"t", b"abc").unwrap();
        let entry = |length| vec![StateEntry { plugin: "a".into(), version: 1, length }];
        assert!(States::take(entry(3), sealed()).is_ok());
        for length in [0, 2, 4, MAX_STATE + 1, usize::MAX] {
            assert!(States::take(entry(length), sealed()).is_err(), "{length}");
        }
        assert!(States::take([entry(usize::MAX), entry(4)].concat(), sealed()).is_err());
        let (reader, _writer) = std::io::pipe().unwrap();
        assert!(States::take(entry(0), reader.into()).is_err(), "no memory at all");
    }

    proptest! {
        #[test]
        fn no_entries_make_it_panic(
            lengths in proptest::collection::vec(any::<usize>(), 0..5),
            bytes in proptest::collection::vec(any::<u8>(), 0..50),
        ) {
            let entries: Vec<_> = lengths.into_iter()
                .map(|length| StateEntry { plugin: "a".into(), version: 1, length }).collect();
            if let Ok(states) = States::take(entries, sealed::seal(c"t", &bytes).unwrap()) {
                prop_assert!(states.open().is_ok());
            }
        }
    }
}
