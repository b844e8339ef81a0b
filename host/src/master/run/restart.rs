//! Another program in this process, as the loop has it: testing it with what it would find, laying everything down in an
//! order in which nothing is lost, and, on the other side, picking it up.
//!
//! Nothing is read from a child that is not acted on: its readers stop first, what they have brought goes through the state
//! machine, then the writers empty their queues. What is not read waits in the kernel for whoever goes on.

use std::os::fd::OwnedFd;

use super::*;
use crate::master::admin::Admin;
use crate::master::instance_files::InstanceFiles;
use crate::master::resume::{self, Answer, Carried, Luggage, Remains, ResumeError, SCHEMA};
use crate::master::state::BadStart;
use crate::master::watcher;
use crate::sys::process::Process;

/// How much of what a refused program printed is quoted.
const TAIL: u64 = 4096;
/// How long the queues to the children may take to empty.
const FLUSH: Duration = Duration::from_secs(1);

/// What is laid down, and what must stay open until it is.
pub(super) struct Packed {
    memory: OwnedFd,
    luggage: Luggage,
    _tickets: OwnedFd,
}

impl Master {
    /// Where the configuration of what serves came from.
    fn origin(&self) -> ConfigSource {
        let set = self.state.kept_set().and_then(|id| self.sets.get(id));
        let known = set.map(|set| &set.content.origin).filter(|origin| **origin != ConfigSource::Unknown);
        known.unwrap_or(&self.source.origin).clone()
    }

    fn pack(&self, admin: &Admin, files: &InstanceFiles) -> io::Result<Packed> {
        let mut luggage = Luggage::default();
        let tickets = self.tickets.seal().map_err(io::Error::other)?;
        let (lock, state_lock) = files.save(&mut luggage)?;
        let image = self.before.as_ref().map_or(&self.image, |(image, _)| image);
        let carried = Carried {
            schema: SCHEMA,
            version: VERSION.into(),
            remains: Remains {
                config: self.source.config.clone(),
                origin: self.origin(),
                state: self.state.save(self.started.elapsed()),
                sets: self.sets.save(&mut luggage)?,
                children: self.children.save(&mut luggage)?,
                tickets: self.tickets.save(&tickets, &mut luggage)?,
                image: luggage.put(image)?,
                tried: self.watcher.save(),
            },
            listeners: self.listeners.save(&mut luggage)?,
            admin: admin.save(&mut luggage)?,
            lock,
            state_lock: Some(state_lock),
            #[cfg(feature = "next")]
            novelty: Some("what the program before does not know".into()),
        };
        Ok(Packed { memory: carried.seal()?, luggage, _tickets: tickets })
    }

    /// Opens the program at the configured path, and makes sure who may write it and the configuration: off this thread.
    pub(super) fn verify(&mut self, op: OpId, test: TestId) -> Option<Exit> {
        if let Some(failure) = self.restoring.refusal.clone() {
            return self.handle(Event::Tested { test, result: Err(failure) });
        }
        let Some(path) = self.binary.clone() else {
            let failure = Failure::new(Stage::Restart, "restart: `baton dev` runs as it was started")
                .hint("end it and start it again; a reload needs no restart");
            return self.handle(Event::Tested { test, result: Err(failure) });
        };
        let serving = self.state.serving().and_then(|generation| self.state.set_of(generation));
        let config = serving.and_then(|id| self.sets.get(id)).map_or(&self.source.config, |set| &set.content.config);
        let (source, owners, sender) = (self.source.clone(), config.store.owners.clone(), self.finished.clone());
        tokio::task::spawn_blocking(move || {
            let result = source.check_config_files().and_then(|()| source.open_binary(&path, &owners));
            // The loop is gone only when the master ends.
            let _ = sender.blocking_send(Finished::Verified { op, test, result });
        });
        None
    }

    /// Has the program say whether it could take over.
    pub(super) fn take_verified(
        &mut self,
        op: OpId,
        test: TestId,
        result: Result<Image, Failure>,
        admin: &Admin,
        files: &InstanceFiles,
    ) -> Option<Exit> {
        let result = result.and_then(|image| self.begin_test(op, test, image, admin, files));
        result.err().and_then(|failure| self.handle(Event::Tested { test, result: Err(failure) }))
    }

    fn begin_test(
        &mut self,
        op: OpId,
        test: TestId,
        image: Image,
        admin: &Admin,
        files: &InstanceFiles,
    ) -> Result<(), Failure> {
        let path = self.binary.clone().unwrap_or_default();
        let refused = |error: io::Error| resume::refusal(&path, &error.to_string());
        let packed = self.pack(admin, files).map_err(refused)?;
        let output = process::output_file(c"baton-test").map_err(refused)?;
        let tester = process::spawn(resume::test_spec(&image, &packed.memory, &output))
            .map_err(|error| resume::refusal(&path, &format!("it cannot be run: {error}")))?;
        let tester = Tester(tester);
        self.tested = Some((op, image));
        let events = self.events.clone();
        tokio::spawn(async move {
            let result =
                tester.verdict(&output).await.map_err(|(why, output)| resume::refusal(&path, &why).detail(output));
            // The loop is gone only when the master ends.
            let _ = events.send(Event::Tested { test, result }).await;
        });
        Ok(())
    }

    /// Lets the tested program take over. Answers only if it has not.
    pub(super) async fn leave(
        &mut self,
        op: OpId,
        admin: &mut Admin,
        files: &InstanceFiles,
        events: &mut mpsc::Receiver<Event>,
        requests: &mut mpsc::Receiver<Request>,
    ) -> Option<Exit> {
        let mut exit = None;
        self.watcher.suspend();
        {
            // Answers that are under way may need the loop.
            let mut paused = std::pin::pin!(admin.pause());
            loop {
                tokio::select! {
                    () = &mut paused => break,
                    Some(request) = requests.recv() => exit = exit.or(self.request(request)),
                }
            }
        }
        self.sets.settle().await;
        let readers = self.children.stop_reading();
        let mut brought = Vec::new();
        {
            let mut stopped = std::pin::pin!(async {
                for reader in readers {
                    // One that panicked has said so; what it had read is lost with it either way.
                    let _ = reader.await;
                }
            });
            loop {
                tokio::select! {
                    biased;
                    Some(event) = events.recv() => brought.push(event),
                    () = &mut stopped => break,
                }
            }
        }
        while let Ok(event) = events.try_recv() {
            brought.push(event);
        }
        for event in brought {
            exit = exit.or(self.handle(event));
        }
        // A shutdown that waits for systemd would be lost.
        let may_leave = self.state.may_leave(op) && !self.systemd.has_released();
        let failure = match (&exit, may_leave) {
            (None, true) => match self.flush().await {
                Ok(()) => Some(self.change(op, admin, files)),
                Err(failure) => Some(failure),
            },
            _ => None,
        };
        self.go_on(admin);
        exit = exit.or(self.handle(Event::Stayed { op, failure }));
        let changed = self.watcher.resume();
        exit.or_else(|| self.reload_for(changed))
    }

    /// Empties the queues to the children.
    async fn flush(&mut self) -> Result<(), Failure> {
        let writers = self.children.stop_writing();
        let all = async {
            for writer in writers {
                // As with the readers.
                let _ = writer.await;
            }
        };
        tokio::time::timeout(FLUSH, all).await.map_err(|_| {
            let text = format!("restart: a child has not taken its messages within {FLUSH:?}");
            Failure::new(Stage::Restart, text).hint("is one stopped or stuck? see `baton status`")
        })
    }

    /// Comes back only if it failed.
    fn change(&mut self, op: OpId, admin: &Admin, files: &InstanceFiles) -> Failure {
        let path = self.binary.clone().unwrap_or_default();
        let Some((_, program)) = self.tested.take().filter(|(tested, _)| *tested == op) else {
            return resume::refusal(&path, "it was not tested");
        };
        let error = match self.pack(admin, files) {
            Ok(Packed { memory, luggage, _tickets }) => {
                tracing::info!(binary = %path.display(), "server restarting");
                crate::telemetry::flush();
                // The next one has as long as this one would have.
                self.systemd.ping();
                resume::hand_over(&program, &self.image, &memory, luggage)
            }
            Err(error) => error,
        };
        resume::refusal(&path, &format!("it cannot be run: {error}"))
    }

    /// All as before.
    fn go_on(&mut self, admin: &mut Admin) {
        self.children.go_on(&self.events);
        if let Err(error) = admin.go_on() {
            tracing::error!("{error}");
        }
    }
}

/// A program under test. It does not outlive its test.
struct Tester(Process);

impl Tester {
    /// Why it could not take over, with what it printed.
    async fn verdict(self, output: &std::fs::File) -> Result<(), (String, String)> {
        let failed = |error: io::Error| (error.to_string(), String::new());
        let pidfd = self.0.pidfd.try_clone().map_err(failed)?;
        let ended = readiness::register(pidfd, Interest::READABLE).map_err(failed)?;
        let in_time = tokio::time::timeout(resume::PATIENCE, ended.readable()).await.is_ok();
        if !in_time {
            self.0.signal(Signal::SIGKILL).map_err(failed)?;
            ended.readable().await.map_err(failed)?.retain_ready();
        }
        let exit = self.0.try_wait().map_err(failed)?;
        let printed = process::tail(output, TAIL).map_err(failed)?;
        match exit {
            _ if !in_time => Err((format!("it did not answer within {:?}", resume::PATIENCE), printed)),
            Some(process::ExitKind::Code(0)) => match Answer::find(&printed) {
                Some(Answer { version, schema, protocols }) => {
                    tracing::info!(version, schema, ?protocols, "the new binary can take over");
                    Ok(())
                }
                None => Err(("it is no baton that can take over: it did not say so".into(), printed)),
            },
            Some(exit) => Err((format!("its test ended with {exit}{}", last_line(&printed)), printed)),
            None => Err(("it cannot be waited for".into(), printed)),
        }
    }
}

impl Drop for Tester {
    fn drop(&mut self) {
        // One that was reaped is signalled no more. One that was not has no owner from now on: the loop's upkeep reaps it.
        if let Err(error) = self.0.signal(Signal::SIGKILL) {
            tracing::error!(pid = self.0.pid, "failed to kill the program under test: {error}");
        }
    }
}

/// What it said last is what it ended for.
fn last_line(printed: &str) -> String {
    match printed.lines().rev().find(|line| !line.trim().is_empty()) {
        Some(line) => format!(": {}", line.trim().trim_start_matches("baton: ")),
        None => String::new(),
    }
}

/// What the program before has left, as this one's.
pub(super) struct PickedUp {
    pub sets: Inventory,
    pub state: State,
    pub children: Children,
    pub tickets: Tickets,
    pub before: Option<(Image, BTreeSet<SetId>)>,
    pub started: Instant,
    pub tried: Option<watcher::Saved>,
}

impl PickedUp {
    /// Nobody was here before.
    pub fn nothing(state: State, sets: Inventory) -> PickedUp {
        PickedUp {
            sets,
            state,
            children: Children::default(),
            tickets: Tickets::new(),
            before: None,
            started: Instant::now(),
            tried: None,
        }
    }
}

/// Picks up all that has no file of its own to go with it.
pub(super) fn pick_up(
    carried: Remains,
    outcome: Result<(), Failure>,
    (store, notebook): (Store, Notebook),
    bad_start: BadStart,
    events: &mpsc::Sender<Event>,
) -> Result<PickedUp, ResumeError> {
    let sets = Inventory::resume(carried.sets, store, notebook)?;
    let elapsed = carried.state.now();
    let settings = Settings::of(&carried.config);
    let state = State::resumed(settings, bad_start, carried.state, &sets.infos(), outcome)
        .map_err(|error| ResumeError::Broken(error.to_string()))?;
    let now = Instant::now();
    Ok(PickedUp {
        before: Some((Image::from(carried.image.copy()?), sets.ids().collect())),
        sets,
        state,
        children: Children::resume(carried.children, events)?,
        tickets: carried.tickets.resume().map_err(io::Error::other)?,
        started: now.checked_sub(elapsed).unwrap_or(now),
        tried: carried.tried,
    })
}
