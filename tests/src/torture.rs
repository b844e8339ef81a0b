//! The torture of a real server: a load, and what is done to the server while it runs. Owns the courses that tests and benches
//! share; what the figures must be is theirs to say.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::load::{Load, Plan, Tally};
use crate::server::{Server, Setup};
use crate::stats::{Rng, quantile};
use crate::status::{Drain, Status};
use crate::{artifacts, process, wait};

/// Between two looks at the status while a course runs: it remembers the last 32 operations.
const LOOK: Duration = Duration::from_millis(100);
/// How long a new process is left with connections offered to it before it is killed, at most.
const OFFERED: u64 = 40;

/// What is done.
#[derive(Clone, Copy, Debug)]
pub enum Course {
    /// So many reloads that switch, each asked for by the admin socket once the last was answered.
    Switches { count: u64, pause: Duration },
    /// A signal every so often, until there were so many switches: triggers that come during a switch share the next one.
    Triggers { every: Duration, switches: u64 },
    /// As `Switches`, but every third new process is killed: with connections offered to it, before it has taken any.
    Kills { count: u64, pause: Duration },
    /// As `Switches`, but each is a restart with another file of the program, asked for by the command line, by signal and by
    /// the admin socket in turn.
    Restarts { count: u64, pause: Duration },
}

/// Who asks for a restart.
#[derive(Clone, Copy, Debug)]
enum Way {
    CommandLine,
    Signal,
    Admin,
}

impl Way {
    const ALL: [Way; 3] = [Way::CommandLine, Way::Signal, Way::Admin];
}

/// What was seen of a course.
#[derive(Debug)]
pub struct Seen {
    pub tally: Tally,
    /// At the end, when one generation is left.
    pub status: Status,
    /// Of the generations that have drained.
    pub drains: Vec<Drain>,
    /// Switches that stood, without the start.
    pub switches: u64,
    pub kills: u64,
    /// Of these, so many times the old process served on; else it had retired, and a new one took over.
    pub taken_back: u64,
    /// Most generations alive at a look.
    pub living: usize,
    pub time: Duration,
}

impl Seen {
    /// Requests that the client or the server itself says were lost.
    pub fn lost(&self) -> u64 {
        let by_server: u64 = self.drains.iter().map(|drain| drain.lost + drain.cut.total()).sum();
        self.tally.lost() + by_server
    }

    /// Connections that the server closed, announced or not.
    pub fn closed(&self) -> u64 {
        self.tally.closed_announced() + self.tally.closed_unannounced()
    }

    /// How long retired generations lived, in milliseconds: the share `q` of them no longer than this.
    pub fn drain_ms(&self, q: f64) -> f64 {
        quantile(&self.drains.iter().map(|drain| drain.ms).collect::<Vec<_>>(), q)
    }

    /// Of a hundred kept connections, those that were answered by two generations or more.
    pub fn across_percent(&self) -> u64 {
        100 * self.tally.connections_across / self.tally.connections.max(1)
    }

    /// Panics unless nothing was lost and nothing closed, in a run that could have shown it.
    #[track_caller]
    pub fn assert_held(&self, least_switches: u64) {
        let Seen { tally, status, .. } = self;
        tally.assert_nothing_lost();
        assert_eq!((self.lost(), self.closed()), (0, 0), "{:#?}\n{tally}", self.drains);
        assert_eq!(status.crashes, self.kills, "{status:#?}");
        assert!(self.switches >= least_switches, "only {} switches: this run proves nothing", self.switches);
        assert!(self.across_percent() >= 30, "hardly any connection saw two generations: {tally}");
        assert!(status.totals.carried > 0, "no connection carried bytes that were read ahead: {:#?}", status.totals);
        assert!(self.kills == 0 || status.totals.taken_back > 0, "nothing was taken back: {:#?}", status.totals);
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Seen { tally, status, switches, kills, taken_back, living, time, .. } = self;
        writeln!(f, "{tally}")?;
        writeln!(
            f,
            "{switches} switches and {kills} kills ({taken_back} rolled back) in {time:.1?}; {:?}",
            status.totals
        )?;
        write!(
            f,
            "{} drains, p50 {:.0} ms, max {:.0} ms; at most {living} generations at once",
            self.drains.len(),
            self.drain_ms(0.5),
            self.drain_ms(1.0)
        )
    }
}

/// Runs `course` under the load of `plan`, from before its first reload to after the last generation has drained.
pub fn run(setup: Setup, plan: impl FnOnce(SocketAddr) -> Plan, course: Course) -> Seen {
    // Built before the load begins.
    let _both = [artifacts::probe("v1"), artifacts::probe("v2")];
    // Processes are killed here on purpose, and that is not to be held against what they run.
    let server = setup.set("crash.limit", "1000").start();
    let mut plan = plan(server.addr());
    if matches!(course, Course::Kills { .. }) {
        // A new connection that a process has accepted dies with it, as in any crash.
        plan.half_closed = 0;
    }
    let (seed, connections) = (plan.seed, plan.torture as u64);
    let load = Load::start(plan);
    load.wait_for_requests(2 * connections);
    let begun = Instant::now();
    let ended = Arc::new(AtomicBool::new(false));
    let mut troubled =
        Troubled { server: &server, load: &load, rng: Rng(seed), triggers: 0, switches: 0, kills: 0, taken_back: 0 };
    let (drains, living) = std::thread::scope(|scope| {
        let looking = scope.spawn({
            let ended = ended.clone();
            let server = &server;
            move || look(server, &ended)
        });
        // Ends the looking too if the course fails.
        let end = SetAtDrop(&ended);
        troubled.run(course);
        drop(end);
        looking.join().expect("looking at the status failed")
    });
    let Troubled { switches, kills, taken_back, .. } = troubled;
    load.wait_for_requests(connections);
    let tally = load.stop();
    let time = begun.elapsed();
    let status = server.wait_drained();
    let mut drains = drains;
    drains.note(&status);
    Seen { tally, drains: drains.all(), status, switches, kills, taken_back, living, time }
}

struct SetAtDrop<'a>(&'a AtomicBool);

impl Drop for SetAtDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Drain reports as they come, each once.
#[derive(Default)]
struct Drains(std::collections::BTreeMap<u64, Drain>);

impl Drains {
    fn note(&mut self, status: &Status) {
        let reports = status.operations.iter().filter_map(|report| Some((report.op, report.drain.clone()?)));
        self.0.extend(reports);
    }

    fn all(self) -> Vec<Drain> {
        self.0.into_values().collect()
    }
}

fn look(server: &Server, ended: &AtomicBool) -> (Drains, usize) {
    let (mut drains, mut most) = (Drains::default(), 0);
    while !ended.load(Relaxed) {
        // At a moment when all its connections are taken it may not answer: the next look will do.
        if let Ok(status) = server.try_status() {
            drains.note(&status);
            most = most.max(status.living().count());
        }
        wait::pass(LOOK);
    }
    (drains, most)
}

struct Troubled<'a> {
    server: &'a Server,
    load: &'a Load,
    rng: Rng,
    triggers: u64,
    switches: u64,
    kills: u64,
    taken_back: u64,
}

impl Troubled<'_> {
    fn run(&mut self, course: Course) {
        match course {
            Course::Switches { count, pause } => {
                for _ in 0..count {
                    self.switch();
                    wait::pass(pause);
                }
            }
            Course::Kills { count, pause } => {
                for round in 0..count {
                    if round % 3 == 2 {
                        self.killed();
                    }
                    self.switch();
                    wait::pass(pause);
                }
            }
            Course::Restarts { count, pause } => {
                for way in Way::ALL.into_iter().cycle().take(usize::try_from(count).unwrap_or(usize::MAX)) {
                    self.restart(way);
                    wait::pass(pause);
                }
            }
            Course::Triggers { every, switches } => {
                let begun = Instant::now();
                while self.triggers < switches || self.server.status().switches <= switches {
                    wait::pass((every * self.triggers as u32).saturating_sub(begun.elapsed()));
                    self.install();
                    self.server.signal(Signal::SIGUSR1);
                }
                self.switches = self.server.status().switches - 1;
            }
        }
    }

    fn install(&mut self) {
        self.triggers += 1;
        let version = if self.triggers % 2 == 1 { "v2" } else { "v1" };
        self.server.bench.install("probe", &artifacts::probe(version));
        self.load.mark();
    }

    fn switch(&mut self) {
        self.install();
        let (code, report) = self.server.force_reload();
        assert_eq!((code, report.result.as_str()), (200, "switched"), "{report:#?}");
        self.switches += 1;
    }

    /// Another program in the same process; its report is given by that one.
    fn restart(&mut self, way: Way) {
        self.install();
        let server = self.server;
        server.bench.install_program(&artifacts::baton());
        let next = server.status().last_op() + 1;
        let report = match way {
            Way::CommandLine => {
                let outcome = server.cli(&["restart", "--json"]);
                outcome.assert_code(0);
                outcome.json()
            }
            Way::Signal => {
                server.signal(Signal::SIGUSR2);
                server.ended(next)
            }
            Way::Admin => {
                let response = server.admin("POST", "/debug/admin/restart");
                assert_eq!(response.status, 202, "{response:?}");
                server.ended(next)
            }
        };
        let told = (report.op, report.verb.as_str(), report.result.as_str());
        assert_eq!(told, (next, "restart", "switched"), "{way:?}: {report:#?}");
        assert_eq!(server.status().pid, server.pid());
        assert!(process::runs(server.pid(), &server.bench.program()), "{way:?}: it is still the program before");
        self.switches += 1;
    }

    /// A reload whose new process dies while it has been offered connections and has acknowledged none.
    ///
    /// The old process is stopped first, so that it offers nothing until the new one, which serves by then, is stopped too; and
    /// no other is left that could. What the new one had taken would die with it, as in any crash.
    fn killed(&mut self) {
        self.server.wait_drained();
        let old = self.server.serving();
        let old_pid = old.pid.expect("the serving generation has a process");
        stop(old_pid);
        self.install();
        let (server, offered) = (self.server, Duration::from_millis(self.rng.below(OFFERED)));
        let new = std::thread::scope(|scope| {
            // Whatever it is told: that its process has died, if that comes first.
            scope.spawn(|| server.force_reload());
            let status = server.wait_for("the new process to serve", |status| status.serving > Some(old.generation));
            let new = status.serving().and_then(|new| new.pid).expect("the serving generation has a process");
            stop(new);
            process::kill(old_pid, Signal::SIGCONT);
            wait::pass(offered);
            process::kill(new, Signal::SIGKILL);
            new
        });
        self.kills += 1;
        // The old one again or, if it had retired by then, one of the same set.
        let status = self.server.wait_for("another process to serve", |status| {
            status.crashes == self.kills && status.serving().is_some_and(|serving| serving.pid != Some(new))
        });
        self.taken_back += u64::from(status.serving == Some(old.generation));
    }
}

/// Stops a process, all threads of it.
fn stop(pid: i32) {
    process::kill(pid, Signal::SIGSTOP);
    wait::until("a process to stop", wait::LONG, || process::is_stopped(pid).then_some(()));
}
