//! Crash loops: a set whose process died comes back, at once the first time, then after waits that grow and are spread by chance;
//! after too many deaths it is given up.

use std::time::Duration;

use super::{Note, Respawn, State};
use crate::report::{Cause, Generation};

/// What a death is put down to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blame {
    Set,
    /// No process could be started.
    Machine,
}

impl State {
    /// Nothing serves any more: the set comes back, at once the first time, then after a growing wait.
    pub(super) fn crashed(&mut self, generation: Generation, exit: String, blame: Blame) {
        if self.stopping.as_ref().is_some_and(|stopping| stopping.begun) {
            self.note(Note::Crashed { generation, exit, respawn_in: None });
            return;
        }
        if let Some(set) = self.set.clone().filter(|set| blame == Blame::Set && !set.plugins.is_empty())
            && self.count_death()
        {
            let window = humantime::format_duration(self.settings.crash.window);
            let why = format!("the set of generation {generation} died {} times within {window}", self.deaths.len());
            self.note(Note::Crashed { generation, exit, respawn_in: None });
            return self.quarantine(&set, generation, why);
        }
        let crash = &self.settings.crash;
        let wait = match self.row {
            0 => Duration::ZERO,
            row => crash.backoff.saturating_mul(1 << (row - 1).min(20)).min(crash.backoff_max),
        };
        let wait = self.spread(wait);
        self.row = self.row.saturating_add(1);
        self.respawn = Some(Respawn { at: self.now + wait, of: generation });
        self.note(Note::Crashed { generation, exit, respawn_in: Some(wait) });
    }

    /// Up to a quarter less, by chance: xorshift, whose state 0 stays 0 and spreads nothing.
    fn spread(&mut self, wait: Duration) -> Duration {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        wait - wait.mul_f64((self.seed % 1024) as f64 / 4096.0)
    }

    pub(super) fn advance_respawn(&mut self) {
        if !self.may_respawn() {
            return;
        }
        let Some(set) = self.set.clone() else { return };
        if self.respawn.as_ref().is_some_and(|respawn| self.now < respawn.at) {
            return;
        }
        let cause = match (&self.stopped, self.respawn.take()) {
            (Some(stopped), _) => stopped.cause.clone(),
            (None, Some(respawn)) => Cause::Crash { of: respawn.of },
            // Nothing has died: it is the set without plugins that a bad start is served with.
            (None, None) => Cause::Start,
        };
        self.spawn(set, cause);
    }

    /// Whether only time can be in the way of a respawn.
    pub(super) fn may_respawn(&self) -> bool {
        // While another program takes over, it is that one's business.
        self.leaving().is_none()
            && !self.is_falling_back()
            && !self.is_replacing()
            && !self.serves_own()
            && self.candidate.is_none()
            && !self.is_stopping()
            && !self.is_ending()
    }
}
