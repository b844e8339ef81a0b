//! What the plugins that serve hand on to those that follow. They are asked when an operation begins, while its files are
//! read, and are never in its way: what does not come in time is gone without. The bytes are the loop's; here is when.

use super::generation::Phase;
use super::operations::Running;
use super::{Action, Note, State, Time};
use crate::control::ToChild;
use crate::control::states::{SAVE_TIMEOUT, StateEntry};
use crate::report::{Generation, NotSaved, StateReport};

/// SAVE was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Saving {
    of: Generation,
    pub until: Time,
}

/// What the plugins of a new child find of those before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inherit {
    /// What was saved last, by whichever generation.
    Latest,
    /// It may be what kills them.
    Nothing,
}

impl State {
    /// For the operation that begins.
    pub(super) fn begin_saving(&mut self) {
        let Some(serving) = self.serving().filter(|_| self.saving.is_none()) else { return };
        if self.generations.get(&serving).is_none_or(|entry| entry.set.plugins.is_empty()) {
            return;
        }
        self.send(serving, ToChild::Save);
        self.saving = Some(Saving { of: serving, until: self.now + SAVE_TIMEOUT });
    }

    pub(super) fn saved(&mut self, generation: Generation, states: Vec<StateEntry>, mut failed: Vec<NotSaved>) {
        // One that comes too late is gone without already.
        if self.saving.take_if(|saving| saving.of == generation).is_none() {
            return;
        }
        self.act(Action::KeepStates { generation });
        let Some(set) = self.generations.get(&generation).map(|entry| entry.set.clone()) else { return };
        // The report names the plugins of the set, however many the child has named; a failure may be each plugin's and that of all.
        failed.truncate(set.plugins.len() + 1);
        let saved = states.into_iter().map(|entry| entry.plugin).filter(|plugin| set.has_plugin(plugin)).collect();
        self.tell_saved(generation, StateReport { saved, failed });
    }

    /// Waits no longer than it may.
    pub(super) fn advance_saving(&mut self) {
        let Some(Saving { of, until }) = self.saving else { return };
        let error = match self.phase(of) {
            None | Some(Phase::Killed) => "get the states: the generation that served died".into(),
            Some(_) if self.now >= until => format!("get the states within {SAVE_TIMEOUT:?}"),
            Some(_) => return,
        };
        self.saving = None;
        self.tell_saved(of, StateReport { saved: Vec::new(), failed: vec![NotSaved { plugin: None, error }] });
    }

    fn tell_saved(&mut self, generation: Generation, state: StateReport) {
        for failed in &state.failed {
            self.note(Note::NotSaved { generation, failed: failed.clone() });
        }
        if let Some(Running { op, .. }) = &self.running
            && !(state.saved.is_empty() && state.failed.is_empty())
        {
            let id = op.id;
            self.report_mut(id, |report| report.state = Some(state));
        }
    }

    /// Once a set has died twice in a row, or is given up, what was handed on may be what kills it.
    pub(super) fn inherits(&self, generation: Generation) -> Inherit {
        let given_up = self.comes_after_a_crash();
        let died_again = self.running_candidate() != Some(generation) && self.row > 1;
        if given_up || died_again { Inherit::Nothing } else { Inherit::Latest }
    }
}
