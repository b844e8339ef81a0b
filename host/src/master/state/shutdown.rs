//! The end of the server: asked for, announced for `shutdown.delay`, begun, drained, cut at its timeout or at a second signal. The
//! last action follows once every child is reaped.

use super::generation::Phase;
use super::{Action, Caller, Exit, Note, OpOptions, State, Stopping};
use crate::report::{Cause, Generation, OpResult, Verb};

impl State {
    pub(super) fn shutdown_asked(&mut self, cause: Cause, caller: Option<Caller>) {
        let again = matches!(cause, Cause::Signal { .. });
        if let Some(stopping) = &self.stopping {
            let op = stopping.op;
            if again {
                self.cut_all();
            }
            self.answer_with(op, caller);
            return;
        }
        let op = self.new_operation(Verb::Shutdown, cause.clone(), OpOptions::default(), caller);
        self.note(Note::ShuttingDown { cause });
        let id = op.id;
        self.report_mut(id, |report| report.result = OpResult::ShuttingDown);
        self.answer_all(op);
        self.supersede_all(id);
        self.stopping = Some(Stopping {
            op: id,
            begins: self.now + self.settings.shutdown.delay,
            cut: None,
            begun: false,
            cut_sent: false,
        });
    }

    /// The operator's patience is over.
    fn cut_all(&mut self) {
        self.note(Note::Cutting);
        if let Some(stopping) = &mut self.stopping {
            stopping.begins = self.now;
            stopping.cut = Some(self.now);
        }
    }

    pub(super) fn advance_shutdown(&mut self) {
        let Some(stopping) = &mut self.stopping else { return };
        if !stopping.begun {
            if self.now < stopping.begins {
                return;
            }
            stopping.begun = true;
            self.actions.push(Action::CloseListeners);
            self.any_cut = false;
            let timeout = self.settings.shutdown.timeout.duration().map(|timeout| self.now + timeout);
            stopping.cut = stopping.cut.or(timeout);
            self.respawn = None;
            let draining = self.generations.values().filter(|entry| entry.phase == Phase::Retiring);
            let draining: Vec<Generation> = draining.map(|entry| entry.number).collect();
            draining.into_iter().for_each(|generation| self.shorten_idle_of(generation));
        }
        let Some(stopping) = &mut self.stopping else { return };
        let cut = stopping.cut.is_some_and(|at| self.now >= at);
        let cut_now = cut && !stopping.cut_sent;
        stopping.cut_sent |= cut;
        self.stop_generations(cut, cut_now);
        if self.generations.is_empty() && !self.is_ending() {
            self.end(if self.any_cut { Exit::Cut } else { Exit::Drained });
        }
    }

    /// Nothing is begun any more; the last action follows once every child is reaped.
    pub(super) fn end(&mut self, exit: Exit) {
        self.refuse_everybody();
        self.ending = Some(exit);
    }

    pub(super) fn is_ending(&self) -> bool {
        self.ending.is_some() || self.finished
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.as_ref().is_some_and(|stopping| stopping.begun)
    }

    /// One round of a shutdown that has begun.
    pub(super) fn stop_generations(&mut self, cut: bool, cut_now: bool) {
        let all: Vec<(Generation, Phase)> =
            self.generations.values().map(|entry| (entry.number, entry.phase)).collect();
        for (generation, phase) in all {
            match phase {
                Phase::Starting | Phase::Loading | Phase::Proving => {
                    self.kill(generation, "the server shuts down".into())
                }
                // It is the last that accepts: it empties the queue once more and closes the sockets, without a pause between
                // in which a client would be let in by the kernel and served by nobody.
                Phase::Serving => self.retire(generation),
                Phase::Standby => self.retire(generation),
                Phase::Pausing if cut => self.retire(generation),
                Phase::Retiring if cut_now => self.cut(generation),
                // Committing and Resuming answer soon, or time out; the others are on their way.
                _ => {}
            }
        }
        if self.serving().is_none() && self.resuming().is_none() {
            self.committed = None;
        }
    }
}
