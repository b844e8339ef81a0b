//! The watcher: asks for a reload when plugin files, certificates or the configuration have changed. The same reload as by anyone
//! else; what it is refused for is reported there.
//!
//! [`state`] decides, [`look`] looks, [`targets`] says what at; here is what the loop has to do with it. It has no opinion on what is
//! in the files, and never touches one.

mod look;
pub mod settle;
pub mod state;
mod targets;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::oneshot;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;

use self::look::{Hint, Hints, Looker, Sight};
use self::state::{Action, Event, Settings, State, Time};
use super::run::sleep_until;
use super::source::Source;
use crate::config::{Config, Watch};
use crate::report::{Activity, OpResult, Report, Sense, Trigger, WatcherStatus};

pub use self::state::Saved;
pub use self::targets::{Sighting, Targets};

/// What the loop wakes up for.
#[derive(Debug)]
pub enum Wake {
    Told,
    Looked(Result<Box<(Looker, Sight)>, JoinError>),
    /// Nothing if the caller was forgotten.
    Answered(Option<Box<Report>>),
    Due,
}

pub struct Watcher {
    state: State,
    epoch: std::time::Instant,
    source: Arc<Source>,
    hints: Arc<Hints>,
    /// Not here while it looks.
    looker: Option<Looker>,
    look: Option<JoinHandle<Box<(Looker, Sight)>>>,
    answer: Option<oneshot::Receiver<Report>>,
    /// Of the configuration that serves.
    settings: Watch,
    serving: Targets,
    targets: Targets,
    blind: Option<String>,
    last: Option<Trigger>,
    looks: u64,
}

impl Watcher {
    /// Off until it is told what serves. `saved` is what the program before has left.
    pub fn new(source: Arc<Source>, saved: Option<Saved>) -> Watcher {
        let hints = Arc::new(Hints::default());
        Watcher {
            state: State::new(saved),
            epoch: std::time::Instant::now(),
            looker: Some(new_looker(&source, &hints)),
            source,
            hints,
            look: None,
            answer: None,
            settings: Watch::default(),
            serving: Targets::default(),
            targets: Targets::default(),
            blind: None,
            last: None,
            looks: 0,
        }
    }

    /// Waits; may be given up at any time.
    pub async fn next(&mut self) -> Wake {
        let deadline = self.state.next_deadline().map(|at| Instant::from_std(self.epoch + at));
        tokio::select! {
            looked = finished(&mut self.look) => Wake::Looked(looked),
            answer = finished(&mut self.answer) => Wake::Answered(answer.ok().map(Box::new)),
            () = self.hints.first.notified() => Wake::Told,
            () = sleep_until(deadline) => Wake::Due,
        }
    }

    /// Acts on it. What to reload for, if that is to be; the answer goes where [`Watcher::await_answer`] says.
    pub fn wake(&mut self, wake: Wake) -> Option<String> {
        match wake {
            Wake::Told | Wake::Due => self.step(Event::Tick),
            Wake::Looked(Ok(looked)) => {
                self.look = None;
                let (mut looker, sight) = *looked;
                if !self.state.is_on() {
                    looker.close();
                }
                self.looker = Some(looker);
                self.saw(sight)
            }
            Wake::Looked(Err(error)) => {
                self.look = None;
                tracing::error!("failed to look at what is watched: {error}");
                self.looker = Some(new_looker(&self.source, &self.hints));
                self.step(Event::LookFailed)
            }
            Wake::Answered(report) => {
                self.answer = None;
                self.answered(report.as_deref())
            }
        }
    }

    /// Where the report of the reload comes that [`Watcher::wake`] wanted.
    pub fn await_answer(&mut self) -> oneshot::Sender<Report> {
        let (reply, answer) = oneshot::channel();
        self.answer = Some(answer);
        reply
    }

    /// `config` serves from now on.
    pub fn serves(&mut self, config: &Config) -> Option<String> {
        self.source.config_files.as_ref()?;
        self.settings = config.watch.clone();
        self.serving = Targets::of_config(config);
        let settings = Settings::of(&config.watch);
        self.step(Event::Configured(settings))
    }

    /// An operation has read the files.
    pub fn read(&mut self, sighting: Sighting) -> Option<String> {
        self.step(Event::Read(sighting))
    }

    /// Before another program takes over: hears of nothing, and asks for nothing.
    pub fn suspend(&mut self) {
        // It has nothing to ask for.
        let _ = self.step(Event::Suspended);
    }

    /// None has.
    pub fn resume(&mut self) -> Option<String> {
        self.step(Event::Resumed)
    }

    pub fn save(&self) -> Option<Saved> {
        self.state.save()
    }

    pub fn status(&self) -> WatcherStatus {
        let shown = |paths: &BTreeSet<PathBuf>| paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>();
        let activity = match (self.state.is_on(), &self.answer) {
            (false, _) => Activity::Off,
            (true, Some(_)) => Activity::Reloading,
            (true, None) if self.state.is_settling() => Activity::Settling,
            (true, None) => Activity::Watching,
        };
        let watched = if self.state.is_on() {
            [shown(&self.targets.folders), shown(&self.targets.files)].concat()
        } else {
            Vec::new()
        };
        WatcherStatus {
            activity,
            by: if self.blind.is_some() { Sense::Polling } else { Sense::Events },
            why: self.blind.clone(),
            watched,
            looks: self.looks,
            last: self.last.clone(),
            holding: self.state.holding().map(str::to_owned),
        }
    }

    fn saw(&mut self, Sight { view, targets, blind }: Sight) -> Option<String> {
        let sense = if blind.is_some() { Sense::Polling } else { Sense::Events };
        if let Some(why) = blind.as_ref().filter(|_| self.settings.events && blind != self.blind) {
            tracing::warn!("failed to have the kernel tell of changes, looking every {:?}: {why}", self.settings.poll);
        }
        (self.targets, self.blind) = (targets, blind);
        self.looks += 1;
        self.step(Event::Looked { view, sense })
    }

    fn answered(&mut self, report: Option<&Report>) -> Option<String> {
        let refused = match report {
            Some(Report { result: OpResult::Switched, .. }) => None,
            Some(Report { superseded_by: Some(op), .. }) => Some(format!("operation {op} took its place")),
            Some(Report { error: Some(error), .. }) => Some(format!("failed to {error}")),
            _ => Some("no reason was given".into()),
        };
        if let Some(last) = &mut self.last {
            last.op = report.map(|report| report.op);
            last.result = report.map_or(OpResult::Superseded, |report| report.result);
        }
        self.step(Event::Answered { refused })
    }

    /// One step, with what the kernel has told until now before it.
    fn step(&mut self, event: Event) -> Option<String> {
        let mut actions = Vec::new();
        if let Some(Hint { last, overflow }) = self.hints.peek() {
            let at = last.saturating_duration_since(self.epoch);
            let told = if overflow { Event::Overflowed { at } } else { Event::Told { at } };
            actions.extend(self.state.step(told, self.now()));
        }
        actions.extend(self.state.step(event, self.now()));
        if !self.state.is_on()
            && let Some(looker) = &mut self.looker
        {
            looker.close();
            self.hints.forget();
        }
        let mut reason = None;
        for action in actions {
            match action {
                Action::Look => self.start_look(),
                Action::Reload { changed } => {
                    reason = Some(describe(&changed));
                    self.last = Some(Trigger {
                        changed: changed.iter().map(|path| path.display().to_string()).collect(),
                        at: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
                        op: None,
                        result: OpResult::Running,
                    });
                }
            }
        }
        reason
    }

    fn start_look(&mut self) {
        let mut looker = self.looker.take().unwrap_or_else(|| new_looker(&self.source, &self.hints));
        self.hints.forget();
        let (source, serving) = (self.source.clone(), self.serving.clone());
        let events: Option<look::Open> = self.settings.events.then_some(look::open);
        self.look = Some(tokio::task::spawn_blocking(move || {
            let sight = looker.look(&source, serving, events);
            Box::new((looker, sight))
        }));
    }

    fn now(&self) -> Time {
        self.epoch.elapsed()
    }
}

fn new_looker(source: &Source, hints: &Arc<Hints>) -> Looker {
    Looker::new(hints.clone(), source.config_files.clone().unwrap_or_default())
}

/// What a slot's future brings; waits for ever for an empty slot.
async fn finished<F: Future + Unpin>(slot: &mut Option<F>) -> F::Output {
    match slot {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

/// For the cause of a reload.
fn describe(changed: &[PathBuf]) -> String {
    match changed {
        [] => "nothing".into(),
        [one] => one.display().to_string(),
        [first, others @ ..] => format!("{} and {} more", first.display(), others.len()),
    }
}
