//! Ending what drains before its time: all of it when somebody asks for `cut`, and what costs nobody an answer when a switch
//! waits for room.
//!
//! A cut takes no operation slot: it is for what an earlier switch left behind, and helps the one that waits for it.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::operations::Operation;
use super::{Phase, State, Time};
use crate::control::{Deadlines, EXIT_TIMEOUT, ToChild};
use crate::master::handle::OpOptions;
use crate::report::{Cause, DrainReport, Generation, OpResult, Verb};

/// How long closing what is idle may take until more is closed to make room.
const ROOM_TIME: Duration = Duration::from_secs(3);

/// A cut under way.
#[derive(Clone, Debug)]
pub(super) struct Cutting {
    op: Operation,
    /// Generations whose process has not ended.
    left: BTreeSet<Generation>,
    /// Of those that have said how they drained.
    drain: DrainReport,
}

impl State {
    /// Answered once every generation that it is about has ended.
    pub(super) fn cut_asked(&mut self, cause: Cause, options: OpOptions, caller: Option<super::Caller>) {
        let targets = self.cut_targets(options.generation);
        // Nobody waits twice for the same end.
        if let Ok(targets) = &targets
            && !targets.is_empty()
            && let Some(cutting) = self.cuts.iter_mut().find(|cutting| cutting.left.is_superset(targets))
        {
            cutting.op.callers.extend(caller);
            return;
        }
        let op = self.new_operation(Verb::Cut, cause, options, caller);
        let targets = match targets {
            Ok(targets) => targets,
            Err(why) => {
                let serving = self.serving();
                self.report_mut(op.id, |report| {
                    report.result = OpResult::Refused;
                    report.error = Some(why);
                    report.hint = Some("`baton status` shows what there is".into());
                    report.serving = serving;
                });
                self.answer_all(op);
                return;
            }
        };
        let about = targets.iter().copied().collect();
        self.report_mut(op.id, |report| {
            report.result = OpResult::Running;
            report.cut = Some(about);
        });
        if !targets.is_empty() {
            self.note(super::Note::Cutting);
        }
        for generation in &targets {
            self.cut(*generation);
        }
        self.cuts.push(Cutting { op, left: targets, drain: DrainReport::default() });
        self.end_cuts();
    }

    /// What a cut is about; an error says why it is about nothing that can be.
    fn cut_targets(&self, asked: Option<Generation>) -> Result<BTreeSet<Generation>, String> {
        let ends = |phase| matches!(phase, Phase::Retiring | Phase::Leaving);
        let Some(asked) = asked else {
            let retiring = self.generations.values().filter(|entry| ends(entry.phase));
            return Ok(retiring.map(|entry| entry.number).collect());
        };
        match self.phase(asked) {
            Some(phase) if ends(phase) => Ok([asked].into()),
            Some(_) => Err(format!("cut generation {asked}: it does not drain")),
            None => Err(format!("cut generation {asked}: there is none of that number any more")),
        }
    }

    /// Ends what a retiring generation has left. Once is enough.
    pub(super) fn cut(&mut self, generation: Generation) {
        let Some(entry) = self.generations.get_mut(&generation) else { return };
        if entry.phase == Phase::Retiring && entry.haste < Haste::Cut {
            entry.haste = Haste::Cut;
            self.enter(generation, Phase::Retiring, Some(EXIT_TIMEOUT));
            self.send(generation, ToChild::Cut);
        }
    }

    /// Takes down how one of them drained.
    pub(super) fn cut_drained(&mut self, generation: Generation, report: &DrainReport) {
        for cutting in self.cuts.iter_mut().filter(|cutting| cutting.left.contains(&generation)) {
            cutting.drain += *report;
        }
    }

    /// A process has ended, however it did.
    pub(super) fn cut_exited(&mut self, generation: Generation) {
        for cutting in &mut self.cuts {
            cutting.left.remove(&generation);
        }
        self.end_cuts();
    }

    fn end_cuts(&mut self) {
        let (ended, under_way) = std::mem::take(&mut self.cuts).into_iter().partition(|cut| cut.left.is_empty());
        self.cuts = under_way;
        let ended: Vec<Cutting> = ended;
        for Cutting { op, drain, .. } in ended {
            self.report_mut(op.id, |report| {
                report.result = OpResult::Done;
                report.drain = Some(drain);
            });
            self.answer_all(op);
        }
    }

    /// A switch waits since too many generations drain: the oldest closes its idle connections now instead of at their time,
    /// and if that was not enough, those that have left HTTP. Requests in flight are not touched.
    pub(super) fn make_room(&mut self) {
        let now = self.now;
        let Some(entry) = self.generations.values_mut().find(|entry| entry.phase == Phase::Retiring) else { return };
        let Some(deadlines) = entry.deadlines else { return };
        entry.haste = match entry.haste {
            Haste::None => Haste::Idle { since: now },
            Haste::Idle { since } if now >= since + ROOM_TIME => Haste::Upgraded,
            _ => return,
        };
        let deadlines = Deadlines {
            keepalive_ms: Some(0),
            upgraded_ms: if entry.haste == Haste::Upgraded { Some(0) } else { deadlines.upgraded_ms },
            max_ms: entry.time_left(now),
            ..deadlines
        };
        let number = entry.number;
        self.send(number, ToChild::Retire(deadlines));
    }

    /// The server ends, or a cold operation begins: a generation that retires already keeps its idle connections no longer
    /// than those that do from now on. Requests in flight are not touched.
    pub(super) fn shorten_idle_of(&mut self, generation: Generation) {
        let now = self.now;
        let Some(entry) = self.generations.get(&generation) else { return };
        let Some(deadlines) = entry.deadlines.filter(|_| entry.haste < Haste::Cut) else { return };
        let mut deadlines = Deadlines { max_ms: entry.time_left(now), ..deadlines };
        self.shorten_idle(&mut deadlines);
        self.send(generation, ToChild::Retire(deadlines));
    }

    /// When the next step towards room is due, if a switch waits for it.
    pub(super) fn room_deadline(&self) -> Option<Time> {
        self.waiting.as_ref().filter(|_| self.running.is_none())?;
        let oldest = self.generations.values().find(|entry| entry.phase == Phase::Retiring)?;
        match oldest.haste {
            Haste::Idle { since } if self.is_full() => Some(since + ROOM_TIME),
            _ => None,
        }
    }
}

/// How a retiring generation was hurried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Haste {
    None,
    /// Its idle connections shall be closed at once.
    Idle {
        since: Time,
    },
    /// And those that have left HTTP.
    Upgraded,
    /// CUT was sent.
    Cut,
}
