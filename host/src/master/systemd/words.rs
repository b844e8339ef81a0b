//! What systemd is told of the supervisor, pure: what can be seen goes in, datagrams of sd_notify(3) come out, each thing once.
//!
//! Whatever the unit's type: `RELOADING=1` always comes with the clock, without which a unit of `Type=notify-reload` would wait
//! for ever, and which all others ignore; `READY=1` follows every change, also one that was refused, since systemd has no
//! word for that. `STOPPING=1` is the last word: nothing takes it back (systemd 259).

use std::time::Duration;

use crate::master::state::{Latest, State, Time};
use crate::report::{GenerationState, GenerationStatus, OpId, OpResult, Pin, Report, Verb};

/// Added to what a deadline leaves: for what happens when it has passed.
const SLACK: Duration = Duration::from_secs(10);
/// For what has no end: systemd knows no word for that which would not be ignored.
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
/// Of one sentence of the status, in characters.
const SENTENCE: usize = 400;

/// The supervisor as it is seen from outside, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    pub serves: bool,
    /// A reload, rollback or restart is under way or waits.
    pub changing: Option<OpId>,
    pub stopping: bool,
    pub outlook: Option<Latest>,
    pub status: String,
}

impl View {
    pub fn of(state: &State, now: Time, pin: Option<&Pin>) -> View {
        View {
            serves: state.serving().is_some(),
            changing: state.changing(),
            stopping: state.is_shutting_down(),
            outlook: state.outlook(),
            status: status(state, now, pin),
        }
    }
}

/// What systemd has been told.
#[derive(Debug, Default)]
pub struct Told {
    ready: bool,
    changing: Option<OpId>,
    stopping: bool,
    outlook: Option<Latest>,
    status: String,
}

impl Told {
    /// By another program of this process, in the middle of a restart.
    pub fn by_another() -> Told {
        // No operation has that number: what is under way is said again, and what has ended, ended.
        Told { ready: true, changing: Some(OpId(0)), ..Told::default() }
    }

    /// What is to be said now; `clock` is CLOCK_MONOTONIC in microseconds.
    pub fn tell(&mut self, view: View, now: Time, clock: u64) -> Vec<String> {
        let mut said = Vec::new();
        let mut lines: Vec<String> = Vec::new();
        if view.stopping && !self.stopping {
            self.stopping = true;
            lines.push("STOPPING=1".into());
        } else if !self.stopping && view.serves && !self.ready {
            self.ready = true;
            lines.push("READY=1".into());
            if view.changing.is_some() {
                // One datagram that says both would be taken for the first alone.
                said.push(lines.pop().unwrap_or_default());
            }
        }
        if self.ready && !self.stopping && view.changing != self.changing {
            match view.changing {
                Some(_) => lines.extend(["RELOADING=1".into(), format!("MONOTONIC_USEC={clock}")]),
                None => lines.push("READY=1".into()),
            }
            self.changing = view.changing;
        }
        if view.status != self.status {
            lines.push(format!("STATUS={}", view.status));
            self.status = view.status;
        }
        // What serves undisturbed has no end that systemd waits for.
        let outlook = view.outlook.filter(|_| self.stopping || !self.ready || self.changing.is_some());
        if outlook != self.outlook {
            self.outlook = outlook;
            let left = outlook.map(|latest| match latest {
                Latest::At(at) => at.saturating_sub(now) + SLACK,
                Latest::Never => YEAR,
            });
            lines.extend(left.map(|left| format!("EXTEND_TIMEOUT_USEC={}", left.as_micros())));
        }
        if !lines.is_empty() {
            said.push(lines.join("\n"));
        }
        said
    }
}

/// One line for `systemctl status`.
fn status(state: &State, now: Time, pin: Option<&Pin>) -> String {
    let generations = state.generations(now);
    let in_state = |wanted: GenerationState| move |one: &&GenerationStatus| one.state == wanted;
    let mut sentences = Vec::new();
    let serving = generations.iter().find(in_state(GenerationState::Serving));
    sentences.push(match serving {
        _ if state.is_shutting_down() => "shutting down".into(),
        Some(GenerationStatus { generation, pid, .. }) => match pid {
            Some(pid) => format!("generation {generation} serves (pid {pid})"),
            None => format!("generation {generation} serves"),
        },
        None if state.switches() == 0 => "starting".into(),
        None => "nothing serves".into(),
    });
    sentences.extend(state.alert().map(|alert| format!("ALERT: {alert}")));
    sentences.extend(pin.map(|pin| format!("pinned to generation {} since {}", pin.generation, pin.since)));
    sentences.extend(state.reports().find_map(change));
    use GenerationState::{Committing, Loading, Proving, Ready, Starting};
    let starting = |one: &&GenerationStatus| matches!(one.state, Starting | Loading | Proving | Ready | Committing);
    sentences.extend(generations.iter().find(starting).map(|one| format!("generation {} starts", one.generation)));
    let standby = generations.iter().find(in_state(GenerationState::Standby));
    sentences.extend(standby.map(|one| format!("generation {} stands by", one.generation)));
    match generations.iter().filter(in_state(GenerationState::Retiring)).count() {
        0 => {}
        1 => sentences.push("1 generation drains".into()),
        many => sentences.push(format!("{many} generations drain")),
    }
    sentences.iter().map(|sentence| short(sentence)).collect::<Vec<_>>().join("; ")
}

/// The newest change, as far as it has come.
fn change(report: &Report) -> Option<String> {
    if matches!(report.verb, Verb::Cut | Verb::Shutdown) {
        return None;
    }
    let Report { op, verb, .. } = report;
    let failed = |how: &str| {
        let stage = report.stage.map(|stage| format!(" at {stage}")).unwrap_or_default();
        let plugin = report.plugin.as_ref().map(|plugin| format!(" of {plugin}")).unwrap_or_default();
        let why = report.error.as_deref().unwrap_or("no reason was given");
        format!("{verb} {op} {how}{stage}{plugin}: {why}")
    };
    Some(match report.result {
        OpResult::Queued => {
            format!("{verb} {op} waits: {}", report.queued.as_deref().unwrap_or("it has not begun"))
        }
        OpResult::Running => format!("{verb} {op} is under way"),
        OpResult::Switched => format!("{verb} {op} switched"),
        OpResult::Refused => failed("refused"),
        OpResult::RolledBack => failed("rolled back"),
        // Another one has taken its place, and says more.
        OpResult::Superseded | OpResult::ShuttingDown | OpResult::Done => return None,
    })
}

/// On one line, and not longer than anybody reads: a line break would begin another word of the protocol.
pub fn short(text: &str) -> String {
    let line = text.split(|c: char| c.is_control()).collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(SENTENCE) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn view(serves: bool, changing: Option<u64>) -> View {
        View { serves, changing: changing.map(OpId), stopping: false, outlook: None, status: String::new() }
    }

    /// Tells one view after another at second 1, 2, 3; all that is said.
    fn told(told: &mut Told, views: &[View]) -> Vec<String> {
        let at = |index: usize| SECOND * (index as u32 + 1);
        let tell = |(index, view): (usize, &View)| told.tell(view.clone(), at(index), 7);
        views.iter().enumerate().flat_map(tell).collect()
    }

    fn ready() -> Told {
        let mut told = Told::default();
        told.tell(view(true, None), Duration::ZERO, 1);
        told
    }

    #[test]
    fn ready_is_said_once_and_not_before_something_serves() {
        let said = told(&mut Told::default(), &[view(false, None), view(true, None), view(true, None)]);
        assert_eq!(said, ["READY=1"]);
        // A crash is no new start.
        assert!(told(&mut ready(), &[view(false, None), view(true, None)]).is_empty());
    }

    #[test]
    fn each_change_is_announced_with_the_clock_and_its_end_is_ready_whatever_came_of_it() {
        let said = told(&mut ready(), &[view(true, Some(2)), view(true, Some(2)), view(true, None)]);
        assert_eq!(said, ["RELOADING=1\nMONOTONIC_USEC=7", "READY=1"]);
        // Without a pause between two: the second was asked for after the first had begun, and is announced for itself.
        let said = told(&mut ready(), &[view(true, Some(2)), view(true, Some(3)), view(false, None)]);
        assert_eq!(said, ["RELOADING=1\nMONOTONIC_USEC=7", "RELOADING=1\nMONOTONIC_USEC=7", "READY=1"]);
    }

    #[test]
    fn a_change_that_is_asked_for_during_the_start_is_announced_after_ready() {
        let said = told(&mut Told::default(), &[view(false, Some(2)), view(true, Some(2)), view(true, None)]);
        assert_eq!(said, ["READY=1", "RELOADING=1\nMONOTONIC_USEC=7", "READY=1"]);
    }

    #[test]
    fn stopping_is_the_last_word() {
        let stopping = |changing| View { stopping: true, ..view(true, changing) };
        assert_eq!(told(&mut ready(), &[stopping(Some(2)), stopping(None)]), ["STOPPING=1"]);
        assert_eq!(
            told(&mut Told::default(), &[View { serves: false, ..stopping(None) }, stopping(None)]),
            ["STOPPING=1"]
        );
    }

    #[test]
    fn the_program_after_a_restart_ends_what_the_one_before_has_announced() {
        let said = told(&mut Told::by_another(), &[view(true, Some(4)), view(true, None)]);
        assert_eq!(said, ["RELOADING=1\nMONOTONIC_USEC=7", "READY=1"]);
        assert_eq!(told(&mut Told::by_another(), &[view(true, None)]), ["READY=1"]);
    }

    #[test]
    fn time_is_asked_for_up_to_each_deadline_once_and_only_while_systemd_waits() {
        let by = |latest, base: View| View { outlook: Some(latest), ..base };
        let at = |seconds: u64| Latest::At(SECOND * seconds as u32);
        let starting = [by(at(31), view(false, None)), by(at(31), view(false, None)), by(at(63), view(false, None))];
        let said = told(&mut Told::default(), &starting);
        assert_eq!(said, ["EXTEND_TIMEOUT_USEC=40000000", "EXTEND_TIMEOUT_USEC=70000000"]);
        // A respawn while it serves is not waited for.
        assert!(told(&mut ready(), &[by(at(31), view(true, None))]).is_empty());
        let said = told(&mut ready(), &[by(at(31), view(true, Some(2)))]);
        assert_eq!(said, ["RELOADING=1\nMONOTONIC_USEC=7\nEXTEND_TIMEOUT_USEC=40000000"]);
        let stopping = |latest| View { stopping: true, ..by(latest, view(true, None)) };
        let said = told(&mut ready(), &[stopping(at(31))]);
        assert_eq!(said, ["STOPPING=1\nEXTEND_TIMEOUT_USEC=40000000"]);
        let said = told(&mut ready(), &[stopping(Latest::Never)]);
        assert_eq!(said, ["STOPPING=1\nEXTEND_TIMEOUT_USEC=31536000000000"]);
        // Past its deadline, it asks for what is left to do then, and no more.
        let said = told(&mut ready(), &[stopping(at(0)), stopping(at(0))]);
        assert_eq!(said, ["STOPPING=1\nEXTEND_TIMEOUT_USEC=10000000"]);
    }

    #[test]
    fn the_status_is_said_when_it_changes_and_is_one_line() {
        let with = |status: &str| View { status: status.into(), ..view(true, None) };
        let said = told(&mut Told::default(), &[with("one"), with("one"), with("two")]);
        assert_eq!(said, ["READY=1\nSTATUS=one", "STATUS=two"]);
        assert_eq!(short("a\nREADY=1"), "a READY=1");
        assert_eq!(short(&"ä".repeat(SENTENCE + 1)).chars().count(), SENTENCE + 3);
    }
}
