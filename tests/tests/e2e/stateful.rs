//! What plugins hand on to the version that follows, and work of theirs that must never run twice.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use baton_tests::http::Connection;
use baton_tests::server::{Server, Setup, Workbench};
use baton_tests::status::Report;
use baton_tests::{artifacts, process, wait};
use nix::sys::signal::Signal;

/// Most time that may pass without the end of a job, whatever happens meanwhile: the machine may be busy.
const GAP: Duration = Duration::from_secs(10);

fn keeper(config: &str) -> Setup {
    configure(Setup::new().plugin("keeper", &artifacts::plugin("keeper")), "keeper", config)
}

fn stateful(config: &str) -> Setup {
    configure(Setup::new().plugin("stateful", &artifacts::plugin("stateful")), "stateful", config)
}

/// In the file that is read again at each reload.
fn configure(setup: Setup, plugin: &str, config: &str) -> Setup {
    reconfigure(setup.bench(), plugin, config);
    setup
}

fn reconfigure(bench: &Workbench, plugin: &str, config: &str) {
    bench.configure(&format!("[plugins.{plugin}.config]\n{config}\n"));
}

/// From now on the keeper hands that on.
#[track_caller]
fn keep(server: &Server, text: &str) {
    let response = Connection::open(server.addr()).and_then(|mut connection| {
        connection.send("POST", "/", &[], text.as_bytes())?;
        connection.receive()
    });
    assert_eq!(response.expect("an answer").status, 200);
}

#[track_caller]
fn found(server: &Server) -> String {
    server.get("/").text().to_owned()
}

/// What the report says of what was handed on: who did, and who did not and why.
fn states(report: &Report) -> (Vec<&str>, Vec<&str>) {
    let state = report.state.as_ref().unwrap_or_else(|| panic!("nothing of states: {report:#?}"));
    let failed = state.failed.iter();
    (state.saved.iter().map(String::as_str).collect(), failed.map(|failed| failed.error.as_str()).collect())
}

#[test]
fn a_reload_hands_on_what_the_plugin_saves_and_a_refused_one_changes_nothing() {
    let server = keeper("").start();
    assert_eq!(found(&server), "-", "nobody was before");
    keep(&server, "one");
    let report = server.switch();
    assert_eq!(states(&report), (vec!["keeper"], vec![]));
    assert_eq!(found(&server), "7 one");
    keep(&server, "two");
    reconfigure(&server.bench, "keeper", "fails = true");
    let (code, report) = server.reload();
    assert_eq!((code, report.stage.as_deref()), (409, Some("load")), "{report:#?}");
    assert_eq!(found(&server), "7 one", "it serves on");
    keep(&server, "three");
    reconfigure(&server.bench, "keeper", "save = \"none\"");
    server.switch();
    assert_eq!(found(&server), "7 three", "what it has now, not what it had at the refusal");
    // One that hands nothing on leaves nothing of those before it either.
    let report = server.switch();
    assert!(report.state.is_none(), "{report:#?}");
    assert_eq!(found(&server), "-");
}

#[test]
fn a_state_that_does_not_come_as_it_should_is_told_and_holds_nothing_up() {
    for (save, why) in [("panic", "panicked"), ("long", "1048577 bytes"), ("hang", "within 1s")] {
        let server = keeper(&format!("save = \"{save}\"")).start();
        let begun = Instant::now();
        let report = server.switch();
        let took = begun.elapsed();
        let (saved, failed) = states(&report);
        assert!(saved.is_empty() && failed.len() == 1 && failed[0].contains(why), "{save}: {report:#?}");
        assert_eq!(report.state.as_ref().unwrap().failed[0].plugin.as_deref(), Some("keeper"));
        assert_eq!(found(&server), "-");
        // All else of a switch takes well below a second.
        assert!(took < Duration::from_secs(8), "{save}: {took:?}");
        let shown = server.cli(&["reload", "--name", &server.name]);
        assert!(shown.assert_code(0).stdout.contains("keeper starts without"), "{save}: {shown:?}");
    }
}

#[test]
fn a_plugin_that_never_answers_is_not_asked_twice() {
    let server = keeper("save = \"hang\"").start();
    reconfigure(&server.bench, "keeper", "fails = true");
    for why in ["within 1s", "has not answered the time before"] {
        let (code, report) = server.reload();
        assert_eq!((code, report.stage.as_deref()), (409, Some("load")), "{report:#?}");
        assert!(states(&report).1[0].contains(why), "{report:#?}");
    }
    let threads = fs::read_dir(format!("/proc/{}/task", server.worker())).expect("its threads");
    let name = |task: &fs::DirEntry| fs::read_to_string(task.path().join("comm")).unwrap_or_default();
    let saving = threads.filter_map(Result::ok).filter(|task| name(task).trim() == "save").count();
    assert_eq!(saving, 1);
}

#[test]
fn a_process_that_is_stopped_hands_on_nothing_and_is_waited_for_no_longer_than_its_time() {
    let server = keeper("").set("drain.max", "1s").start();
    let old = server.worker();
    process::kill(old, Signal::SIGSTOP);
    let (code, report) = server.reload();
    assert_eq!((code, report.result.as_str()), (200, "switched"), "{report:#?}");
    let (saved, failed) = states(&report);
    assert!(saved.is_empty() && failed.len() == 1 && failed[0].contains("1.25s"), "{report:#?}");
    assert_eq!(found(&server), "-");
    process::kill(old, Signal::SIGCONT);
}

#[test]
fn after_a_crash_the_set_finds_what_was_handed_on_last() {
    let server = keeper("").start();
    keep(&server, "one");
    server.switch();
    keep(&server, "two");
    let killed = server.worker();
    process::kill(killed, Signal::SIGKILL);
    server.wait_for("the respawned process", |status| {
        status.serving().is_some_and(|serving| serving.pid.is_some_and(|pid| pid != killed))
    });
    assert_eq!(found(&server), "7 one", "what the dead one had begun with");
}

#[test]
fn a_state_that_kills_the_plugin_is_not_handed_on_again() {
    let server = keeper("").start();
    keep(&server, "poison");
    server.switch();
    reconfigure(&server.bench, "keeper", "dies_of_state = true");
    let (code, report) = server.reload();
    assert_eq!((code, report.stage.as_deref()), (409, Some("load")), "the old code serves on: {report:#?}");
    // The same where nothing serves on: its respawn dies of what it is handed, and the next begins with nothing.
    let server = keeper("dies_of_state = true").set("crash.backoff", "10ms").start();
    keep(&server, "poison");
    reconfigure(&server.bench, "keeper", "fails = true");
    assert_eq!(server.reload().0, 409, "asked for all the same");
    let killed = server.worker();
    process::kill(killed, Signal::SIGKILL);
    server.wait_for("a process that lives", |status| {
        status.serving().is_some_and(|serving| serving.state == "serving" && serving.pid != Some(killed))
    });
    assert_eq!(found(&server), "-");
    assert!(server.status().crashes >= 1);
}

#[test]
fn a_warm_cache_survives_reload_rollback_restart_and_crash() {
    let server = stateful("cost_ms = 0").own_program().start();
    assert_eq!(server.get("/square/12").text(), "144 (found)\n");
    let mut number = 12;
    let mut still_known = |server: &Server, what: &str| {
        assert_eq!(server.get(&format!("/square/{number}")).text(), format!("{} (known)\n", number * number), "{what}");
        number += 1;
        assert!(server.get(&format!("/square/{number}")).text().ends_with("(found)\n"), "{what}");
    };
    server.switch();
    still_known(&server, "a reload of the same");
    reconfigure(&server.bench, "stateful", "cost_ms = 1");
    server.switch();
    still_known(&server, "a reload of something else");
    server.cli(&["rollback", "--name", &server.name]).assert_code(0);
    still_known(&server, "a rollback");
    reconfigure(&server.bench, "stateful", "cost_ms = 0");
    server.wait_drained();
    server.cli(&["restart", "--name", &server.name]).assert_code(0);
    still_known(&server, "a restart in place");
    server.switch();
    let killed = server.worker();
    process::kill(killed, Signal::SIGKILL);
    server.wait_for("the respawned process", |status| {
        status.serving().is_some_and(|serving| serving.pid.is_some_and(|pid| pid != killed))
    });
    still_known(&server, "a crash");
}

#[test]
fn what_was_handed_on_outlives_a_restart_in_place() {
    let server = keeper("").own_program().start();
    keep(&server, "one");
    server.switch();
    // The new program finds its set bad and brings none of its own: what serves is respawned as before.
    reconfigure(&server.bench, "keeper", "fails = true");
    server.wait_drained();
    server.cli(&["restart", "--name", &server.name]).assert_code(1);
    assert_eq!(found(&server), "7 one");
    let killed = server.worker();
    process::kill(killed, Signal::SIGKILL);
    server.wait_for("the respawned process", |status| {
        status.serving().is_some_and(|serving| serving.pid.is_some_and(|pid| pid != killed))
    });
    assert_eq!(found(&server), "7 ", "what it has saved for the reload that was refused");
}

/// Watches the journal of the jobs while a test goes on.
struct Watch {
    path: PathBuf,
    over: Arc<AtomicBool>,
    thread: JoinHandle<Duration>,
}

impl Watch {
    fn on(server: &Server) -> Watch {
        let path = server.bench.path().join("state/baton").join(&server.name).join("data/stateful/jobs.log");
        let over = Arc::new(AtomicBool::new(false));
        let watch = (path.clone(), over.clone());
        let thread = std::thread::spawn(move || longest_gap(&watch.0, &watch.1));
        Watch { path, over, thread }
    }

    /// The lines so far that are whole: the jobs go on while this reads.
    fn journal(&self) -> String {
        let mut journal = fs::read_to_string(&self.path).unwrap_or_default();
        journal.truncate(journal.rfind('\n').map_or(0, |end| end + 1));
        journal
    }

    /// Waits for jobs that end later than now.
    #[track_caller]
    fn jobs_go_on(&self) {
        let ends = || self.journal().matches("end").count();
        let before = ends();
        wait::until("jobs to go on", wait::LONG, || (ends() > before + 2).then_some(()));
    }

    /// No job began before the one before it had ended, or its process was killed; which processes ran any.
    #[track_caller]
    fn end(self, killed: &[i32]) -> BTreeSet<i32> {
        self.over.store(true, Ordering::Relaxed);
        let journal = self.journal();
        let (mut busy, mut pids) = (None, BTreeSet::new());
        for line in journal.lines() {
            let (what, pid) = line.split_once(' ').expect("what and pid");
            let pid: i32 = pid.parse().expect("a pid");
            pids.insert(pid);
            match what {
                "begin" => {
                    assert!(
                        busy.is_none_or(|busy| killed.contains(&busy)),
                        "{busy:?} is at a job at {line}:\n{journal}"
                    );
                    busy = Some(pid);
                }
                "end" => assert_eq!(busy.take(), Some(pid), "{line}:\n{journal}"),
                _ => panic!("no line of a journal: {line}"),
            }
        }
        let gap = self.thread.join().expect("the watch does not panic");
        assert!(gap < GAP, "no job ended for {gap:?}");
        pids
    }
}

/// The longest time in which no job ended.
fn longest_gap(path: &PathBuf, over: &AtomicBool) -> Duration {
    let (mut longest, mut last, mut length) = (Duration::ZERO, Instant::now(), 0);
    while !over.load(Ordering::Relaxed) {
        let now = fs::metadata(path).map_or(0, |data| data.len());
        if now > length {
            (length, last) = (now, Instant::now());
        }
        longest = longest.max(last.elapsed());
        std::thread::sleep(Duration::from_millis(5));
    }
    longest
}

#[test]
fn jobs_never_run_twice_through_reloads_refusals_take_back_and_crash() {
    let jobs = "cost_ms = 0\njob_ms = 15\npause_ms = 1";
    let server = stateful(jobs).set("crash.backoff", "10ms").start();
    let watch = Watch::on(&server);
    watch.jobs_go_on();
    let mut served = BTreeSet::from([server.worker()]);
    for round in 0..20 {
        if round % 5 == 4 {
            reconfigure(&server.bench, "stateful", "job_ms = \"soon\"");
            assert_eq!(server.reload().0, 409);
            reconfigure(&server.bench, "stateful", jobs);
        }
        server.switch();
        served.insert(server.worker());
        watch.jobs_go_on();
    }
    // The new one is killed within its probation: the one that stood by never stopped running jobs.
    reconfigure(&server.bench, "stateful", &format!("{jobs}\n[probation]\nwindow = \"1min\""));
    let standing_by = server.worker();
    assert_eq!(server.reload().0, 200);
    let new = server.worker();
    assert_ne!(new, standing_by);
    watch.jobs_go_on();
    process::kill(new, Signal::SIGKILL);
    server.wait_for("the old one to serve again", |status| {
        status.serving().is_some_and(|serving| serving.pid == Some(standing_by) && serving.state == "serving")
    });
    watch.jobs_go_on();
    // And a crash of the only one.
    process::kill(standing_by, Signal::SIGKILL);
    server.wait_for("the respawned process", |status| {
        status.serving().is_some_and(|serving| serving.pid.is_some_and(|pid| pid != standing_by))
    });
    served.insert(server.worker());
    watch.jobs_go_on();
    let ran = watch.end(&[new, standing_by]);
    assert!(!ran.contains(&new), "it served, but on probation: the one that stood by had the jobs");
    assert_eq!(ran, served);
}

#[test]
fn as_root_jobs_and_cold_reloads_need_no_rights_of_the_master() {
    let setup = stateful("cost_ms = 0\njob_ms = 15\npause_ms = 1").set("user", "nobody");
    setup.bench().open_to_all();
    let server = setup.start();
    let watch = Watch::on(&server);
    let mut served = BTreeSet::new();
    for reload in [&[][..], &["reload"], &["reload", "--cold"], &["reload"]] {
        if !reload.is_empty() {
            server.cli(&[reload, &["--name", &server.name]].concat()).assert_code(0);
        }
        watch.jobs_go_on();
        assert_ne!(process::status_field(server.worker(), "Uid:")[0], "0");
        served.insert(server.worker());
    }
    assert_eq!(served.len(), 4);
    assert_eq!(watch.end(&[]), served);
}
