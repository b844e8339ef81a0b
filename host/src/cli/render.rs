//! What the command line says: reports, status and progress as text. Pure; colours are told.

use std::fmt::Write;
use std::time::Duration;

use crate::report::{
    Activity, CertificateStatus, ConfigChanges, Cut, DrainReport, Generation, GenerationState, GenerationStatus,
    NotSaved, OpResult, PluginChanges, PluginStatus, Report, Rights, RunsAs, Scheme, Status, SystemdStatus, Totals,
    Trigger, Validity, Verb, WatcherStatus,
};

/// Colours, or none.
#[derive(Clone, Copy, Debug)]
pub struct Paint(pub bool);

impl Paint {
    fn with(self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.into() }
    }

    fn good(self, text: &str) -> String {
        self.with("1;32", text)
    }

    fn bad(self, text: &str) -> String {
        self.with("1;31", text)
    }

    fn quiet(self, text: &str) -> String {
        self.with("2", text)
    }

    fn strong(self, text: &str) -> String {
        self.with("1", text)
    }
}

/// How an operation ended; the first line says it all. `plugins` are those of the new generation, if they are known.
pub fn report(report: &Report, plugins: &[PluginStatus], verbose: bool, paint: Paint) -> String {
    let mut text = match report.result {
        OpResult::Switched => switched(report, plugins, paint),
        OpResult::Refused => format!("{}{}", paint.bad("refused"), failure(report)),
        OpResult::RolledBack => format!("{}{}", paint.bad("rolled back"), failure(report)),
        OpResult::Superseded => match report.superseded_by {
            Some(op) => format!("superseded by operation {op} before it began"),
            None => "superseded before it began".into(),
        },
        OpResult::ShuttingDown => "shutting down".into(),
        OpResult::Queued => match &report.queued {
            Some(why) => format!("queued: {why}"),
            None => "queued".into(),
        },
        OpResult::Running => "running".into(),
        OpResult::Done => done(report, paint),
    };
    for line in report.config.iter().flat_map(ConfigChanges::lines) {
        push(&mut text, format_args!("\n  {line}"));
    }
    if report.result == OpResult::Switched && !report.held.is_empty() {
        let held = report.held.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        push(&mut text, format_args!("\nnot taken: {held}; --force takes it too"));
    }
    for NotSaved { plugin, error } in report.state.iter().flat_map(|state| &state.failed) {
        let who = plugin.as_deref().map_or("every plugin", |plugin| plugin);
        push(&mut text, format_args!("\n{who} starts without what the one before has kept: failed to {error}"));
    }
    if let Some(hint) = &report.hint {
        push(&mut text, format_args!("\nhint: {hint}"));
    }
    if let (Some(serving), OpResult::Refused | OpResult::RolledBack) = (report.serving, report.result) {
        match report.unserved_ms {
            None => push(&mut text, format_args!("\ngeneration {serving} serves on")),
            Some(ms) => push(
                &mut text,
                format_args!("\ngeneration {serving} serves what served before; nothing accepted for {}", millis(ms)),
            ),
        }
    } else if let (Some(ms), OpResult::Refused) = (report.unserved_ms, report.result) {
        push(&mut text, format_args!("\nnothing has accepted for {}; it is tried again", millis(ms)));
    }
    match &report.detail {
        Some(detail) if verbose => push(&mut text, format_args!("\n\n{}", detail.trim_end())),
        Some(_) => push(&mut text, format_args!("\n{}", paint.quiet("--verbose shows more"))),
        None => {}
    }
    text
}

fn switched(report: &Report, plugins: &[PluginStatus], paint: Paint) -> String {
    let mut text = paint.good("switched:");
    match (report.from, report.generation) {
        (Some(from), Some(to)) => push(&mut text, format_args!(" generation {from} -> {to}")),
        (None, Some(to)) => push(&mut text, format_args!(" generation {to}")),
        _ => {}
    }
    if let Some(pid) = report.pid {
        push(&mut text, format_args!(" (pid {pid})"));
    }
    if let Some(ms) = report.ms {
        push(&mut text, format_args!(" in {}", millis(ms.total)));
    }
    if let Some(ms) = report.unserved_ms {
        push(&mut text, format_args!(", nothing accepted for {}", millis(ms)));
    }
    if let Some(changes) = &report.plugins {
        push(&mut text, format_args!("; {}", changed(changes, plugins)));
    }
    text
}

/// Of a cut.
fn done(report: &Report, paint: Paint) -> String {
    match (report.cut.as_deref(), &report.drain) {
        (None | Some([]), _) => "nothing was draining".into(),
        (Some(ended), how) => {
            let ended: Vec<String> = ended.iter().map(Generation::to_string).collect();
            let text = format!("{} generation {}", paint.good("ended:"), ended.join(", "));
            how.map_or(text.clone(), |how| format!("{text}; {}", drain(&how, paint)))
        }
    }
}

fn failure(report: &Report) -> String {
    let mut text = String::new();
    if let Some(stage) = report.stage {
        push(&mut text, format_args!(" at {stage}"));
    }
    if let Some(plugin) = &report.plugin {
        push(&mut text, format_args!(" of {plugin}"));
    }
    push(&mut text, format_args!(": {}", report.error.as_deref().unwrap_or("no reason was given")));
    text
}

fn changed(changes: &PluginChanges, plugins: &[PluginStatus]) -> String {
    let named = |name: &String| match plugins.iter().find(|plugin| plugin.name == *name) {
        Some(plugin) => format!("{name} {}", plugin.version),
        None => name.clone(),
    };
    let list = |names: &[String]| names.iter().map(named).collect::<Vec<_>>().join(", ");
    let parts: Vec<String> = [(&changes.added, "added"), (&changes.changed, "changed"), (&changes.removed, "removed")]
        .iter()
        .filter(|(names, _)| !names.is_empty())
        .map(|(names, word)| format!("{} {word}", list(names)))
        .collect();
    match (parts.is_empty(), changes.unchanged.as_slice()) {
        (false, _) => parts.join("; "),
        (true, []) => "no plugin".into(),
        (true, names) => format!("{} unchanged", list(names)),
    }
}

/// How a generation's connections ended.
pub fn drain(drain: &DrainReport, paint: Paint) -> String {
    let mut parts = vec![format!("{} handed over", drain.handed_over), format!("{} finished", drain.finished)];
    for (count, what) in [
        (drain.lingered, "closed idle"),
        (drain.goaway, "told to go away"),
        (drain.upgraded, "upgraded"),
        (drain.unanswered_pipelined, "pipelined behind an announced close"),
    ] {
        if count > 0 {
            parts.push(format!("{count} {what}"));
        }
    }
    let Cut { busy, head, upgraded, http2, stream } = drain.cut;
    for (count, what) in [
        (busy, "cut in a request"),
        (head, "cut in a head"),
        (upgraded, "cut after an upgrade"),
        (http2, "cut of HTTP/2"),
        (stream, "cut in a stream"),
        (drain.lost, "lost"),
    ] {
        if count > 0 {
            parts.push(paint.bad(&format!("{count} {what}")));
        }
    }
    format!("drained in {}: {}", millis(drain.ms), parts.join(", "))
}

/// What an operation under way does or waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phase {
    /// What it is; changes when something else is done or waited for.
    pub what: String,
    /// The same with how far it is, and until when it may take.
    pub whole: String,
}

impl Phase {
    fn plain(what: impl Into<String>) -> Phase {
        let what = what.into();
        Phase { whole: what.clone(), what }
    }

    fn of(what: impl Into<String>, state: &str) -> Phase {
        let what = what.into();
        Phase { whole: format!("{what}: {state}"), what }
    }
}

/// What an operation under way does now, by the newest generation.
pub fn phase(status: &Status, verb: Verb) -> Phase {
    if let Some(why) = status.operations.iter().find(|op| op.verb == verb).and_then(|op| op.queued.as_ref()) {
        return queued(status, why);
    }
    let newest = status.generations.first();
    match (verb, newest) {
        (Verb::Shutdown, _) => {
            // One that died may have left its counters standing.
            let alive = || status.generations.iter().filter(|generation| generation.state != GenerationState::Exited);
            // Children report these, and a plugin's process may report any number.
            let sum = |of: fn(&crate::report::Load) -> u64| {
                alive().map(|generation| of(&generation.load)).fold(0, u64::saturating_add)
            };
            let (open, busy) = (sum(|load| load.connections), sum(|load| load.requests_in_flight));
            let most = alive().filter_map(|generation| generation.deadline_ms).max();
            let most = most.map(|ms| format!(", at most {} more", duration(Duration::from_millis(ms))));
            Phase::of("shutting down", &format!("{busy} in flight on {open} connections{}", most.unwrap_or_default()))
        }
        (Verb::Cut, _) => draining(status).unwrap_or_else(|| Phase::plain("ending")),
        (Verb::Reload | Verb::Restart | Verb::Rollback, Some(newest)) => match newest.state {
            GenerationState::Starting => Phase::plain(format!("starting generation {}", newest.generation)),
            GenerationState::Loading => Phase::plain(format!("loading generation {}", newest.generation)),
            GenerationState::Proving => Phase::plain(format!("probing generation {}", newest.generation)),
            GenerationState::Ready | GenerationState::Committing => {
                Phase::plain(format!("switching to generation {}", newest.generation))
            }
            _ if newest.state == GenerationState::Serving && standby(status).is_some() => {
                Phase::plain(format!("generation {} is on probation", newest.generation))
            }
            _ => retiring(status).unwrap_or_else(|| Phase::plain("reading the plugins")),
        },
        (Verb::Reload | Verb::Restart | Verb::Rollback, None) => Phase::plain("reading the plugins"),
    }
}

/// Why an operation has not begun: with the generations that drain, if it waits for room.
fn queued(status: &Status, why: &str) -> Phase {
    let what = format!("waiting: {why}");
    let draining = status.generations.iter().filter(|generation| generation.state == GenerationState::Retiring);
    // The one that ends first makes room.
    let first = draining.min_by_key(|generation| generation.deadline_ms.unwrap_or(u64::MAX));
    match first {
        Some(old) => Phase::of(what, &format!("generation {} drains {}", old.generation, left(old))),
        None => Phase::plain(what),
    }
}

fn standby(status: &Status) -> Option<&crate::report::GenerationStatus> {
    status.generations.iter().find(|generation| generation.state == GenerationState::Standby)
}

/// What the last switch left behind, once no operation is under way.
fn retiring(status: &Status) -> Option<Phase> {
    let under_way = |result| matches!(result, OpResult::Queued | OpResult::Running);
    if status.operations.iter().any(|op| under_way(op.result)) {
        return None;
    }
    draining(status)
}

/// What the newest of those that drain still has.
fn draining(status: &Status) -> Option<Phase> {
    let old = status.generations.iter().find(|generation| generation.state == GenerationState::Retiring)?;
    Some(Phase::of(format!("draining generation {}", old.generation), &left(old)))
}

/// What a generation that drains still has, by class, and for how long at most.
fn left(old: &GenerationStatus) -> String {
    let load = &old.load;
    let mut parts = vec![format!("{} connections", load.connections)];
    for (count, what) in [
        (load.requests_in_flight, "in flight"),
        (load.http2, "HTTP/2"),
        (load.upgraded, "upgraded"),
        (load.idle, "idle"),
    ] {
        if count > 0 {
            parts.push(format!("{count} {what}"));
        }
    }
    if load.oldest_request_ms > 0 {
        parts.push(format!("the oldest request {}", duration(Duration::from_millis(load.oldest_request_ms))));
    }
    if let Some(most) = old.deadline_ms {
        parts.push(format!("at most {} more", duration(Duration::from_millis(most))));
    }
    parts.join(", ")
}

/// The whole, for a person.
pub fn status(status: &Status, paint: Paint) -> String {
    let state = match (status.ready, status.shutting_down) {
        (_, true) => paint.bad("shutting down"),
        (true, _) => paint.good("serving"),
        (false, _) => paint.bad("not serving"),
    };
    let up = duration(Duration::from_millis(status.uptime_ms));
    let mut text =
        format!("{} {state} · pid {} · up {up} · baton {}\n", paint.strong(&status.name), status.pid, status.version);
    for listener in &status.listeners {
        let tls = if listener.scheme == Scheme::Https { ", TLS" } else { "" };
        push(&mut text, format_args!("  listens on {} ({}{tls})\n", listener.address, listener.server));
    }
    text.push_str(&certificates(&status.certificates, paint));
    if let Some(admin) = &status.admin {
        push(&mut text, format_args!("  admin      {admin}\n"));
    }
    if let Some(probes) = &status.probes {
        push(&mut text, format_args!("  probes     {probes}\n"));
    }
    push(&mut text, format_args!("  plugins    {}{}\n", status.plugin_dir, runs_as(status.runs_as.as_ref(), paint)));
    text.push_str(&watcher(&status.watcher, paint));
    text.push_str(&systemd(status.systemd.as_ref(), paint));
    if let Some(alert) = &status.alert {
        push(&mut text, format_args!("  {}\n", paint.bad(alert)));
    }
    if let Some(pin) = &status.pinned {
        let pinned = format!("pinned to gen {} since {}", pin.generation, pin.since);
        push(&mut text, format_args!("  {}\n", paint.bad(&pinned)));
    }
    for held in &status.held {
        push(&mut text, format_args!("  held back  {}: {} since {}\n", held.change, held.why, held.since));
    }
    push(
        &mut text,
        format_args!("  {} switches, {} crashes, {}", status.switches, status.crashes, totals(&status.totals)),
    );
    text.push_str(&generations(status, paint));
    if let Some(last) = status.operations.first() {
        let line = report(last, &[], false, Paint(false));
        let first = line.lines().next().unwrap_or_default();
        push(&mut text, format_args!("\nlast operation: {} {} by {}: {first}\n", last.verb, last.op, last.cause));
        if let Some(why) = &last.queued {
            push(&mut text, format_args!("{}\n", queued(status, why).whole));
        }
        if let Some(hint) = &last.hint {
            push(&mut text, format_args!("hint: {hint}\n"));
        }
        if let Some(report) = &last.drain {
            push(&mut text, format_args!("{}\n", drain(report, paint)));
        }
    }
    text
}

/// As whom plugins run, if that is anything to know.
fn runs_as(who: Option<&RunsAs>, paint: Paint) -> String {
    match who {
        None => String::new(),
        Some(RunsAs { uid: 0, .. }) => paint.bad(", run as root: trusted with all of it (set `user`)"),
        Some(RunsAs { user, rights, .. }) => match rights {
            Rights::Own => format!(", run as {user}"),
            Rights::Masters => format!(", run as {user}, as the server does"),
        },
    }
}

/// What was counted since the start, and the limits that were met.
fn totals(totals: &Totals) -> String {
    let mut text = format!("{} requests, {} connections handed over", totals.requests, totals.handed_over);
    for (count, what) in [(totals.taken_back, "taken back"), (totals.panics, "panics")] {
        if count > 0 {
            push(&mut text, format_args!(", {count} {what}"));
        }
    }
    if totals.client_aborts > 0 {
        push(&mut text, format_args!(", {} broken off by clients", totals.client_aborts));
    }
    for (what, counts) in
        [("limits met", &totals.limits.named()[..]), ("malformed requests", &totals.malformed.named()[..])]
    {
        let some = counts.iter().filter(|(_, count)| *count > 0);
        let some: Vec<String> = some.map(|(name, count)| format!("{} {count}", name.replace('_', " "))).collect();
        if !some.is_empty() {
            push(&mut text, format_args!("\n  {what}: {}", some.join(", ")));
        }
    }
    text + "\n\n"
}

/// Nothing if it is off.
fn watcher(watcher: &WatcherStatus, paint: Paint) -> String {
    let doing = match watcher.activity {
        Activity::Off => return String::new(),
        Activity::Watching => "",
        Activity::Settling => " (settling)",
        Activity::Reloading => " (reloading)",
    };
    let mut text = format!("  watches    {}{doing}\n", watcher.watched.join(", "));
    if let Some(why) = &watcher.why {
        push(&mut text, format_args!("             by looking now and then: {why}\n"));
    }
    if let Some(Trigger { changed, at, op: Some(op), .. }) = &watcher.last {
        push(&mut text, format_args!("             {} changed at {at}: operation {op}\n", changed.join(", ")));
    }
    if let Some(holding) = &watcher.holding {
        let holding = paint.bad(&format!("not tried again until it changes: {holding}"));
        push(&mut text, format_args!("             {holding}\n"));
    }
    text
}

/// What is between the master and systemd, if it was started by it.
fn systemd(systemd: Option<&SystemdStatus>, paint: Paint) -> String {
    let Some(SystemdStatus { watchdog_ms, stored, failure }) = systemd else { return String::new() };
    let mut text = match failure {
        None => "  systemd    is told".to_owned(),
        Some(why) => format!("  systemd    {}", paint.bad(&format!("cannot be told: {why}"))),
    };
    if let Some(ms) = watchdog_ms {
        push(&mut text, format_args!(", watchdog {}", millis(*ms as f64)));
    }
    match stored.len() {
        0 => {}
        1 => text.push_str(", keeps 1 socket"),
        many => push(&mut text, format_args!(", keeps {many} sockets")),
    }
    text + "\n"
}

fn certificates(all: &[CertificateStatus], paint: Paint) -> String {
    let mut text = String::new();
    for CertificateStatus { server, cert, names, not_after, expires_in_s, validity } in all {
        let names = if names.is_empty() { cert.clone() } else { names.join(", ") };
        let time = duration(Duration::from_secs(expires_in_s.unsigned_abs()));
        let end = match validity {
            Validity::Valid => format!("until {not_after}"),
            Validity::NotYetValid => paint.bad("not valid yet"),
            Validity::ExpiresSoon => paint.bad(&format!("expires in {time}")),
            Validity::Expired => paint.bad(&format!("expired {time} ago")),
        };
        push(&mut text, format_args!("  tls        {server}: {names} {end}\n"));
    }
    text
}

fn generations(status: &Status, paint: Paint) -> String {
    const HEAD: [&str; 8] = ["GEN", "STATE", "PID", "AGE", "CONNS", "BUSY", "REQUESTS", "PLUGINS"];
    let mut rows: Vec<[String; 8]> = vec![HEAD.map(String::from)];
    for generation in &status.generations {
        let load = generation.load;
        let plugins: Vec<String> = generation
            .plugins
            .iter()
            .map(|plugin| {
                let short = plugin.sha256.get(..8).unwrap_or(&plugin.sha256);
                format!("{} {} at {} ({short})", plugin.name, plugin.version, plugin.mount)
            })
            .collect();
        let plugins = match &generation.exit {
            Some(exit) => exit.clone(),
            None if plugins.is_empty() => "none".into(),
            None => plugins.join(", "),
        };
        rows.push([
            generation.generation.to_string(),
            state(generation.state).into(),
            generation.pid.map_or("-".into(), |pid| pid.to_string()),
            duration(Duration::from_millis(generation.age_ms)),
            load.connections.to_string(),
            load.requests_in_flight.to_string(),
            load.requests.to_string(),
            plugins,
        ]);
    }
    let mut widths = [0; 8];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        let cells = row.iter().zip(widths).enumerate().map(|(column, (cell, width))| match column {
            // Numbers to the right, words to the left, the last as it is.
            0 | 2 | 4..=6 => format!("{cell:>width$}"),
            7 => cell.clone(),
            _ => format!("{cell:<width$}"),
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        text.push_str(&if index == 0 { paint.quiet(&line) } else { line });
        text.push('\n');
    }
    text
}

fn state(state: GenerationState) -> &'static str {
    match state {
        GenerationState::Starting => "starting",
        GenerationState::Loading => "loading",
        GenerationState::Proving => "proving",
        GenerationState::Ready => "ready",
        GenerationState::Committing => "committing",
        GenerationState::Serving => "serving",
        GenerationState::Paused => "paused",
        GenerationState::Standby => "standby",
        GenerationState::Retiring => "retiring",
        GenerationState::Exited => "exited",
    }
}

/// To two figures: "5.8 ms", "812 ms", "12.3 s".
pub fn millis(ms: f64) -> String {
    match ms {
        ms if ms < 10.0 => format!("{ms:.1} ms"),
        ms if ms < 10_000.0 => format!("{ms:.0} ms"),
        ms => format!("{:.1} s", ms / 1000.0),
    }
}

/// As an operator reads it: the two largest units.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// Writing to a String cannot fail.
fn push(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments).ok();
}

#[cfg(test)]
mod tests;
