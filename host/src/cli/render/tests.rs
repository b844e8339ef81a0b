//! How reports and status read.

use super::*;
use crate::report::{
    Cause, CertificateStatus, Cut, Generation, GenerationStatus, ListenerStatus, Load, OpId, Scheme, Stage, Timings,
    Totals, Validity,
};

const PLAIN: Paint = Paint(false);

fn reload(result: OpResult) -> Report {
    Report {
        result,
        from: Some(Generation(7)),
        ..Report::new(OpId(12), Verb::Reload, Cause::Signal { signal: "HUP".into(), sender: 1 })
    }
}

fn plugin(name: &str, version: &str) -> PluginStatus {
    PluginStatus {
        name: name.into(),
        version: version.into(),
        mount: "/".into(),
        sha256: "3f2a9c1b00".into(),
        file: format!("lib{name}.so"),
        api: "0.1.0".into(),
        rustc: "1.95.0".into(),
        debug: false,
    }
}

fn certificate(validity: Validity, days: i64) -> CertificateStatus {
    CertificateStatus {
        server: "default".into(),
        cert: "/etc/cert.pem".into(),
        names: vec!["a.example".into(), "*.b.example".into()],
        not_after: "2031-01-02T03:04:05Z".into(),
        expires_in_s: days * 86_400,
        validity,
    }
}

#[test]
fn a_certificate_is_told_with_its_end_and_loudly_near_it() {
    let told = |validity, days| certificates(&[certificate(validity, days)], PLAIN);
    for (validity, days, end) in [
        (Validity::Valid, 80, "until 2031-01-02T03:04:05Z"),
        (Validity::ExpiresSoon, 3, "expires in 3 d 0 h"),
        (Validity::Expired, -3, "expired 3 d 0 h ago"),
        (Validity::NotYetValid, 80, "not valid yet"),
    ] {
        assert_eq!(told(validity, days), format!("  tls        default: a.example, *.b.example {end}\n"));
    }
    let loud = |validity| certificates(&[certificate(validity, 3)], Paint(true)).contains("31m");
    assert!(loud(Validity::ExpiresSoon) && loud(Validity::Expired) && !loud(Validity::Valid));
    let nameless = CertificateStatus { names: Vec::new(), ..certificate(Validity::Valid, 80) };
    assert!(certificates(&[nameless], PLAIN).contains("default: /etc/cert.pem until"));
}

fn switched() -> Report {
    Report {
        generation: Some(Generation(8)),
        pid: Some(123),
        ms: Some(Timings { total: 5.81, ..Timings::default() }),
        plugins: Some(PluginChanges { changed: vec!["hello".into()], ..PluginChanges::default() }),
        ..reload(OpResult::Switched)
    }
}

#[test]
fn a_switch_is_one_line() {
    let text = report(&switched(), &[plugin("hello", "0.2.0")], false, PLAIN);
    assert_eq!(text, "switched: generation 7 -> 8 (pid 123) in 5.8 ms; hello 0.2.0 changed");
    let unchanged = PluginChanges { unchanged: vec!["a".into(), "b".into()], ..PluginChanges::default() };
    let text = report(&Report { plugins: Some(unchanged), ..switched() }, &[], false, PLAIN);
    assert!(text.ends_with("; a, b unchanged"), "{text}");
    let text = report(&Report { plugins: Some(PluginChanges::default()), ..switched() }, &[], false, PLAIN);
    assert!(text.ends_with("; no plugin"), "{text}");
}

#[test]
fn a_refusal_says_where_why_what_to_do_and_what_serves() {
    let refused = Report {
        stage: Some(Stage::Load),
        plugin: Some("hello".into()),
        error: Some("init panicked: no database".into()),
        hint: Some("start the database".into()),
        detail: Some("the tail\nof its output\n".into()),
        serving: Some(Generation(7)),
        ..reload(OpResult::Refused)
    };
    assert_eq!(
        report(&refused, &[], false, PLAIN),
        "refused at load of hello: init panicked: no database\nhint: start the database\ngeneration 7 serves on\n\
         --verbose shows more"
    );
    assert!(report(&refused, &[], true, PLAIN).ends_with("serves on\n\nthe tail\nof its output"));
}

#[test]
fn other_ends_are_told_apart() {
    let superseded = Report { superseded_by: Some(OpId(13)), ..reload(OpResult::Superseded) };
    assert_eq!(report(&superseded, &[], false, PLAIN), "superseded by operation 13 before it began");
    let back = Report { error: Some("generation 8 died".into()), ..reload(OpResult::RolledBack) };
    assert_eq!(report(&back, &[], false, PLAIN), "rolled back: generation 8 died");
}

#[test]
fn a_drain_names_what_was_cut_or_lost() {
    let clean = DrainReport { handed_over: 12, finished: 3, ms: 5012.0, ..DrainReport::default() };
    assert_eq!(drain(&clean, PLAIN), "drained in 5012 ms: 12 handed over, 3 finished");
    let harsh = DrainReport { cut: Cut { busy: 2, ..Cut::default() }, lost: 1, ..clean };
    assert_eq!(drain(&harsh, PLAIN), "drained in 5012 ms: 12 handed over, 3 finished, 2 cut in a request, 1 lost");
    let classes = Cut { busy: 0, head: 1, upgraded: 2, http2: 3, stream: 4 };
    let text = drain(&DrainReport { cut: classes, ..clean }, PLAIN);
    assert!(
        text.ends_with("3 finished, 1 cut in a head, 2 cut after an upgrade, 3 cut of HTTP/2, 4 cut in a stream"),
        "{text}"
    );
}

#[test]
fn a_cut_names_what_it_ended_and_a_drain_what_it_waits_for() {
    let cut = |generations: &[u64]| Report {
        verb: Verb::Cut,
        cut: Some(generations.iter().copied().map(Generation).collect()),
        drain: Some(DrainReport { cut: Cut { busy: 1, ..Cut::default() }, ms: 50.0, ..DrainReport::default() }),
        ..reload(OpResult::Done)
    };
    assert_eq!(report(&cut(&[]), &[], false, PLAIN), "nothing was draining");
    assert_eq!(
        report(&cut(&[6, 7]), &[], false, PLAIN),
        "ended: generation 6, 7; drained in 50 ms: 0 handed over, 0 finished, 1 cut in a request"
    );
    let mut at = world();
    at.operations.clear();
    let old = &mut at.generations[0];
    old.state = GenerationState::Retiring;
    old.deadline_ms = Some(50_000);
    old.load =
        Load { connections: 9, idle: 4, requests_in_flight: 3, upgraded: 2, oldest_request_ms: 12_345, ..old.load };
    let line = format!(
        "draining generation {}: 9 connections, 3 in flight, 2 upgraded, 4 idle, the oldest request 12 s, at most 50 s more",
        old.generation
    );
    assert_eq!((phase(&at, Verb::Reload).whole, phase(&at, Verb::Cut).whole), (line.clone(), line));
}

#[test]
fn numbers_of_children_that_overflow_end_at_the_largest() {
    let mut at = world();
    let most = u64::MAX;
    for generation in &mut at.generations {
        generation.state = GenerationState::Retiring;
        generation.deadline_ms = Some(most);
        generation.load = Load {
            connections: most,
            idle: most,
            requests_in_flight: most,
            requests: most,
            failures: most,
            panics: most,
            oldest_request_ms: most,
            ..generation.load
        };
    }
    let line = phase(&at, Verb::Shutdown).whole;
    assert!(line.starts_with(&format!("shutting down: {most} in flight on {most} connections")), "{line}");
    for verb in [Verb::Reload, Verb::Restart, Verb::Rollback, Verb::Cut] {
        assert!(!phase(&at, verb).whole.is_empty());
    }
    assert!(status(&at, PLAIN).contains(&most.to_string()));
}

fn world() -> Status {
    let generation = |number, state, exit: Option<&str>| GenerationStatus {
        generation: Generation(number),
        state,
        pid: Some(100 + number as i32),
        cause: Cause::Start,
        age_ms: 65_000,
        deadline_ms: None,
        load: Load {
            connections: 64,
            idle: 60,
            requests_in_flight: 4,
            requests: 123_456,
            panics: 0,
            ..Load::default()
        },
        plugins: vec![plugin("hello", "0.2.0")],
        exit: exit.map(String::from),
    };
    Status {
        watcher: Default::default(),
        pinned: None,
        held: Vec::new(),
        alert: None,
        quarantines: 0,
        systemd: None,
        name: "default".into(),
        version: "0.1.0".into(),
        pid: 99,
        uptime_ms: 7_260_000,
        ready: true,
        serving: Some(Generation(8)),
        shutting_down: false,
        listeners: vec![ListenerStatus {
            scheme: Scheme::Https,
            server: "default".into(),
            address: "127.0.0.1:8080".into(),
        }],
        certificates: vec![certificate(Validity::Valid, 80), certificate(Validity::ExpiresSoon, 3)],
        probes: None,
        admin: Some("http://127.0.0.1:9700/debug/admin".into()),
        plugin_dir: "/srv/plugins".into(),
        runs_as: None,
        generations: vec![
            generation(8, GenerationState::Serving, None),
            generation(7, GenerationState::Exited, Some("killed by SIGSEGV")),
        ],
        operations: vec![switched()],
        totals: Totals { requests: 246_912, handed_over: 60, ..Totals::default() },
        switches: 7,
        crashes: 1,
        master_fds: 20,
    }
}

#[test]
fn the_status_reads_as_a_table() {
    let text = status(&world(), PLAIN);
    assert_eq!(
        text,
        "default serving · pid 99 · up 2 h 1 min · baton 0.1.0\n  \
         listens on 127.0.0.1:8080 (default, TLS)\n  \
         tls        default: a.example, *.b.example until 2031-01-02T03:04:05Z\n  \
         tls        default: a.example, *.b.example expires in 3 d 0 h\n  \
         admin      http://127.0.0.1:9700/debug/admin\n  \
         plugins    /srv/plugins\n  \
         7 switches, 1 crashes, 246912 requests, 60 connections handed over\n\n\
         GEN  STATE    PID  AGE   CONNS  BUSY  REQUESTS  PLUGINS\n  \
         8  serving  108  65 s     64     4    123456  hello 0.2.0 at / (3f2a9c1b)\n  \
         7  exited   107  65 s     64     4    123456  killed by SIGSEGV\n\n\
         last operation: reload 12 by HUP from pid 1: switched: generation 7 -> 8 (pid 123) in 5.8 ms; hello changed\n"
    );
    assert!(!text.contains('\x1b'));
    assert!(status(&world(), Paint(true)).contains("\x1b[1;32mserving"));
}

#[test]
fn the_status_says_what_is_watched_and_what_waits_for_a_change() {
    assert_eq!(watcher(&WatcherStatus::default(), PLAIN), "");
    let mut shown = WatcherStatus {
        activity: Activity::Watching,
        watched: vec!["/p".into(), "/b.toml".into()],
        ..WatcherStatus::default()
    };
    assert_eq!(watcher(&shown, PLAIN), "  watches    /p, /b.toml\n");
    shown.activity = Activity::Settling;
    shown.why = Some("no inotify watch is left".into());
    shown.last = Some(Trigger {
        changed: vec!["/p/a.so".into()],
        at: "2026-11-22T01:46:32Z".into(),
        op: Some(OpId(4)),
        result: OpResult::Refused,
    });
    shown.holding = Some("failed to accept a.so".into());
    let text = watcher(&shown, PLAIN);
    for part in [
        "/b.toml (settling)\n",
        "now and then: no inotify watch is left\n",
        "/p/a.so changed at 2026-11-22T01:46:32Z: operation 4\n",
        "not tried again until it changes: failed to accept a.so\n",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn the_status_says_as_whom_plugins_run() {
    let line = |user: &str, uid, rights| {
        let runs_as = Some(RunsAs { user: user.into(), uid, gid: uid, rights });
        let text = status(&Status { runs_as, ..world() }, PLAIN);
        text.lines().find(|line| line.contains("/srv/plugins")).unwrap().trim().to_owned()
    };
    assert_eq!(line("app", 33, Rights::Own), "plugins    /srv/plugins, run as app");
    assert_eq!(line("me", 1000, Rights::Masters), "plugins    /srv/plugins, run as me, as the server does");
    assert!(line("root", 0, Rights::Masters).contains("trusted with all of it (set `user`)"));
}

#[test]
fn the_status_names_the_limits_that_were_met() {
    let mut met = world();
    met.totals.limits.head_timeouts = 3;
    met.totals.limits.body_too_large = 1;
    met.totals.malformed.request_line = 4;
    met.totals.client_aborts = 5;
    met.totals.taken_back = 2;
    let text = status(&met, PLAIN);
    assert!(text.contains("60 connections handed over, 2 taken back, 5 broken off by clients\n"), "{text}");
    assert!(text.contains("\n  limits met: head timeouts 3, body too large 1\n"), "{text}");
    assert!(text.contains("\n  malformed requests: request line 4\n"), "{text}");
    let none = status(&world(), PLAIN);
    assert!(!none.contains("limits") && !none.contains("malformed") && !none.contains("broken off"));
}

#[test]
fn progress_says_what_is_waited_for() {
    let mut at = world();
    at.generations[0].state = GenerationState::Loading;
    assert_eq!(phase(&at, Verb::Reload).whole, "loading generation 8");
    at.operations[0].queued = Some("draining full".into());
    assert_eq!(phase(&at, Verb::Reload).whole, "waiting: draining full");
    at.generations[1].state = GenerationState::Retiring;
    at.generations[1].deadline_ms = Some(540_000);
    let waits = Phase {
        what: "waiting: draining full".into(),
        whole: "waiting: draining full: generation 7 drains 64 connections, 4 in flight, 60 idle, at most 9 min more"
            .into(),
    };
    assert_eq!(phase(&at, Verb::Reload), waits);
    at.operations[0].result = OpResult::Queued;
    assert!(
        status(&at, PLAIN).contains(&format!("queued: draining full\n{}\n", waits.whole)),
        "{}",
        status(&at, PLAIN)
    );
    at.operations[0].result = OpResult::Switched;
    at.generations[1].state = GenerationState::Exited;
    at.generations[1].deadline_ms = None;
    assert_eq!(phase(&at, Verb::Shutdown).whole, "shutting down: 4 in flight on 64 connections");
    at.operations[0].queued = None;
    at.generations[0].state = GenerationState::Serving;
    at.generations[1].state = GenerationState::Retiring;
    assert_eq!(phase(&at, Verb::Reload).whole, "draining generation 7: 64 connections, 4 in flight, 60 idle");
    at.operations[0].result = OpResult::Running;
    assert_eq!(phase(&at, Verb::Reload).whole, "reading the plugins");
    at.generations.clear();
    at.operations.clear();
    assert_eq!(phase(&at, Verb::Reload).whole, "reading the plugins");
}

#[test]
fn times_are_given_in_units_that_fit() {
    for (ms, text) in [(0.04, "0.0 ms"), (5.81, "5.8 ms"), (812.4, "812 ms"), (12_340.0, "12.3 s")] {
        assert_eq!(millis(ms), text);
    }
    for (seconds, text) in [(5, "5 s"), (300, "5 min"), (10_000, "2 h 46 min"), (200_000, "2 d 7 h")] {
        assert_eq!(duration(Duration::from_secs(seconds)), text);
    }
}
