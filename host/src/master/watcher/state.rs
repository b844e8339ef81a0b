//! When to look and when to reload, pure: what happened goes in, what to do comes out. No I/O, no clock.
//!
//! The truth is a look at all that is watched; what the kernel tells only says when to take one. Every reload by whomever says
//! what it has found ([`Sighting`]), and nothing is asked for unless the content of something differs from that: so a change
//! that was refused, rolled back or quarantined is not tried again until it is another one, and a touch is no change.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::settle::{Settle, Window};
use super::targets::Sighting;
use crate::config::Watch;
use crate::report::Sense;
use crate::sys::files::Identity;

/// Monotonic.
pub type Time = Duration;

/// What a look has found, by path; what is not there is not in it.
pub type View = BTreeMap<PathBuf, Stamp>;

/// What lies at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Of the file that the path leads to; nothing if there is none that can be read.
    pub identity: Option<Identity>,
    pub content: Content,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    Sha256(String),
    /// Somebody has it open for writing.
    BeingWritten,
    Unreadable,
}

/// What an operation has found at a path.
#[derive(Clone, Debug)]
struct Tried {
    identity: Option<Identity>,
    /// Nothing until a look has read what it saw only from outside.
    content: Option<Content>,
}

impl Tried {
    fn is(&self, found: &Stamp) -> bool {
        let same_file = self.identity.is_some() && self.identity == found.identity;
        match (&self.content, &found.content) {
            (Some(content), found) if content == found => true,
            // Opened, and nothing written yet.
            (_, Content::BeingWritten) | (None, _) => same_file,
            _ => false,
        }
    }
}

/// What the next program of this process must know of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Saved(Vec<(String, Content)>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    pub window: Window,
    /// Between two looks, where the kernel tells of changes.
    pub rescan: Option<Duration>,
    /// Where it does not.
    pub poll: Duration,
}

impl Settings {
    pub fn of(config: &Watch) -> Option<Settings> {
        let Watch { enabled, events: _, settle, settle_max, rescan, poll } = *config;
        let window = Window { quiet: settle, most: settle_max };
        enabled.then_some(Settings { window, rescan: rescan.duration(), poll })
    }
}

#[derive(Clone, Debug)]
pub enum Event {
    /// Another configuration serves; nothing if it says not to watch.
    Configured(Option<Settings>),
    /// A restart is to begin: nothing is to be asked for.
    Suspended,
    /// There is none after all.
    Resumed,
    /// The kernel told of changes, the last of them then.
    Told {
        at: Time,
    },
    /// And it had more to tell than it could.
    Overflowed {
        at: Time,
    },
    Looked {
        view: View,
        sense: Sense,
    },
    /// It came to nothing.
    LookFailed,
    /// An operation has read the files.
    Read(Sighting),
    /// What was asked for has ended; why, if it changed nothing.
    Answered {
        refused: Option<String>,
    },
    Tick,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Answered by `Looked`.
    Look,
    /// Answered by `Answered`, and `Read` before that unless it did not come to it.
    Reload { changed: Vec<PathBuf> },
}

#[derive(Debug, Default)]
pub struct State {
    settings: Option<Settings>,
    suspended: bool,
    /// Nothing until the first operation has read the files.
    tried: Option<BTreeMap<PathBuf, Tried>>,
    view: View,
    burst: Settle<Time>,
    /// The burst began with what the kernel told, so that its silence says that it is over.
    told: bool,
    /// Since when a look is under way.
    looking: Option<Time>,
    /// An operation has read the files meanwhile: the look may have seen what was there before.
    overtaken: bool,
    asked: bool,
    /// Something is to be found out that no event will tell.
    curious: bool,
    next_look: Option<Time>,
    holding: Option<String>,
}

impl State {
    pub fn new(saved: Option<Saved>) -> State {
        let tried = |(path, content)| (PathBuf::from(path), Tried { identity: None, content: Some(content) });
        State { tried: saved.map(|Saved(all)| all.into_iter().map(tried).collect()), ..State::default() }
    }

    /// What was tried. A path that cannot be written down is tried once more.
    pub fn save(&self) -> Option<Saved> {
        let known = |(path, tried): (&PathBuf, &Tried)| Some((path.to_str()?.to_owned(), tried.content.clone()?));
        self.tried.as_ref().map(|tried| Saved(tried.iter().filter_map(known).collect()))
    }

    pub fn is_on(&self) -> bool {
        self.settings.is_some() && !self.suspended
    }

    /// Whether something may have changed, and it is not decided yet whether to reload.
    pub fn is_settling(&self) -> bool {
        self.burst.last().is_some()
    }

    /// Why what lies there is not tried again as it is.
    pub fn holding(&self) -> Option<&str> {
        self.holding.as_deref()
    }

    /// One step. `now` never goes back.
    pub fn step(&mut self, event: Event, now: Time) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Configured(settings) => {
                self.settings = settings;
                self.curious = true;
            }
            Event::Suspended => self.suspended = true,
            Event::Resumed => (self.suspended, self.curious) = (false, true),
            Event::Told { at } => {
                self.told |= self.burst.last().is_none();
                self.burst.note(at.min(now));
            }
            Event::Overflowed { at } => {
                self.told = false;
                self.burst.note(at.min(now));
            }
            Event::Looked { view, sense } => actions.extend(self.looked(view, sense, now)),
            Event::LookFailed => {
                self.looking = None;
                self.forget_burst();
                self.next_look = self.settings.map(|settings| now + settings.poll);
            }
            Event::Read(sighting) => self.read(sighting),
            Event::Answered { refused } => {
                self.asked = false;
                self.holding = refused;
            }
            Event::Tick => {}
        }
        if !self.is_on() {
            self.forget_burst();
            self.next_look = None;
        } else if self.next_deadline().is_some_and(|due| due <= now) {
            self.looking = Some(now);
            self.curious = false;
            actions.push(Action::Look);
        }
        actions
    }

    /// When a `Tick` is due at the latest.
    pub fn next_deadline(&self) -> Option<Time> {
        let settings = self.settings.filter(|_| self.is_on() && self.tried.is_some())?;
        if self.looking.is_some() || self.asked {
            return None;
        }
        if self.curious {
            return Some(Time::ZERO);
        }
        self.burst.due(settings.window).into_iter().chain(self.next_look).min()
    }

    fn looked(&mut self, view: View, sense: Sense, now: Time) -> Option<Action> {
        let since = self.looking.take()?;
        let changed = view != self.view;
        self.view = view;
        self.recognize();
        let settings = self.settings.filter(|_| self.is_on())?;
        let interval = match sense {
            Sense::Events => settings.rescan,
            Sense::Polling => Some(settings.poll),
        };
        self.next_look = interval.map(|interval| now + interval);
        if std::mem::take(&mut self.overtaken) {
            self.curious = true;
            return None;
        }
        let differing = self.differing();
        if differing.is_empty() {
            self.end_burst(since);
            return None;
        }
        if self.burst.due(settings.window).is_some_and(|due| due > now) {
            return None;
        }
        let is_written = |path: &PathBuf| self.view.get(path).is_some_and(|at| at.content == Content::BeingWritten);
        // What nobody told of must look the same twice.
        let quiet = (self.told || !changed) && !differing.iter().any(is_written);
        if !quiet {
            self.burst.note(now);
        }
        if !quiet && self.burst.due(settings.window).is_some_and(|due| due > now) {
            return None;
        }
        self.end_burst(since);
        self.holding = None;
        self.asked = true;
        // Unless it says better: it may be superseded before it reads anything.
        let as_seen = |at: &Stamp| Tried { identity: at.identity, content: Some(at.content.clone()) };
        self.tried = Some(self.view.iter().map(|(path, at)| (path.clone(), as_seen(at))).collect());
        Some(Action::Reload { changed: differing })
    }

    /// All before the look that began at `since` has been seen; what was told later begins anew.
    fn end_burst(&mut self, since: Time) {
        let later = self.burst.last().filter(|last| *last > since);
        self.forget_burst();
        if let Some(later) = later {
            self.told = true;
            self.burst.note(later);
        }
    }

    fn forget_burst(&mut self) {
        self.burst.clear();
        self.told = false;
    }

    fn read(&mut self, sighting: Sighting) {
        let Sighting { covered, found, taken, being_written } = sighting;
        let mut tried = self.tried.take().unwrap_or_default();
        tried.retain(|path, _| !covered.covers(path));
        for (path, identity) in found {
            let content = if being_written.as_ref() == Some(&path) {
                Some(Content::BeingWritten)
            } else if let Some(sha256) = taken.get(&path) {
                Some(Content::Sha256(sha256.clone()))
            } else if identity.is_none() {
                Some(Content::Unreadable)
            } else {
                self.seen(&path, identity)
            };
            self.curious |= content.is_none();
            tried.insert(path, Tried { identity, content });
        }
        self.tried = Some(tried);
        self.holding = None;
        self.overtaken = self.looking.is_some();
    }

    /// What the last look has read of this very file.
    fn seen(&self, path: &Path, identity: Option<Identity>) -> Option<Content> {
        let same = self.view.get(path).filter(|at| at.identity == identity)?;
        matches!(same.content, Content::Sha256(_)).then(|| same.content.clone())
    }

    /// Puts contents to what was tried and has been read meanwhile.
    fn recognize(&mut self) {
        let Some(mut tried) = self.tried.take() else { return };
        for (path, of) in tried.iter_mut().filter(|(_, of)| of.content.is_none()) {
            of.content = self.seen(path, of.identity);
        }
        self.tried = Some(tried);
    }

    /// What is not as it was when it was tried.
    fn differing(&self) -> Vec<PathBuf> {
        let Some(tried) = &self.tried else { return Vec::new() };
        let other = |(path, at): &(&PathBuf, &Stamp)| tried.get(*path).is_none_or(|tried| !tried.is(at));
        let mut differing: Vec<PathBuf> = self.view.iter().filter(other).map(|(path, _)| path.clone()).collect();
        differing.extend(tried.keys().filter(|path| !self.view.contains_key(*path)).cloned());
        differing
    }
}
