//! The status as text that Prometheus reads (its text format, version 0.0.4). Owns the names of the metrics, which stay once
//! they were released. Counters are of the server, over all its generations: they never fall while the master lives.

use std::fmt::Write;

use crate::report::{Activity, CertificateStatus, GenerationState, Status};

pub const KIND: &str = "text/plain; version=0.0.4; charset=utf-8";

#[derive(Clone, Copy)]
enum Type {
    Counter,
    Gauge,
}

/// Everything that there is to count.
pub fn text(status: &Status) -> String {
    let totals = &status.totals;
    let alive = || status.generations.iter().filter(|generation| generation.state != GenerationState::Exited);
    let sum = |of: fn(&crate::report::Load) -> u64| {
        alive().map(|generation| of(&generation.load)).fold(0, u64::saturating_add)
    };
    let one = |value: u64| vec![(String::new(), value)];
    let malformed = totals.malformed.named().map(|(kind, count)| (format!("{{kind=\"{kind}\"}}"), count)).to_vec();
    let limits = totals.limits.named().map(|(name, hits)| (format!("{{limit=\"{name}\"}}"), hits)).to_vec();
    let metrics = [
        ("baton_requests_total", Type::Counter, "Requests answered.", one(totals.requests)),
        ("baton_panics_total", Type::Counter, "Handlers that panicked.", one(totals.panics)),
        (
            "baton_broken_responses_total",
            Type::Counter,
            "Responses that broke off after their head.",
            one(totals.broken_responses),
        ),
        ("baton_limit_hits_total", Type::Counter, "How often each of [limits] was met.", limits),
        (
            "baton_malformed_requests_total",
            Type::Counter,
            "Requests that were refused since they are malformed.",
            malformed,
        ),
        (
            "baton_client_aborts_total",
            Type::Counter,
            "Connections whose client broke off a request or its response.",
            one(totals.client_aborts),
        ),
        (
            "baton_handed_over_total",
            Type::Counter,
            "Connections that went from one generation to another, open.",
            one(totals.handed_over),
        ),
        (
            "baton_handed_over_carrying_total",
            Type::Counter,
            "Of these, with bytes that were read ahead.",
            one(totals.carried),
        ),
        (
            "baton_taken_back_total",
            Type::Counter,
            "Connections offered to a generation that died or had no room.",
            one(totals.taken_back),
        ),
        ("baton_switches_total", Type::Counter, "Switches to a new generation.", one(status.switches)),
        (
            "baton_quarantines_total",
            Type::Counter,
            "Sets that were given up since they died too often.",
            one(status.quarantines),
        ),
        ("baton_crashes_total", Type::Counter, "Generations that died.", one(status.crashes)),
        (
            "baton_ready",
            Type::Gauge,
            "1 while a generation serves and no shutdown has begun.",
            one(status.ready.into()),
        ),
        (
            "baton_serving_generation",
            Type::Gauge,
            "Number of the generation that serves; 0 for none.",
            one(status.serving.map_or(0, |generation| generation.0)),
        ),
        (
            "baton_alert",
            Type::Gauge,
            "1 while what serves is not what was asked for; the status says what is wrong.",
            one(status.alert.is_some().into()),
        ),
        (
            "baton_changes_held",
            Type::Gauge,
            "Changes that no reload takes: rolled back or quarantined.",
            one(status.held.len() as u64),
        ),
        (
            "baton_pinned",
            Type::Gauge,
            "1 while a rollback holds the set that serves.",
            one(status.pinned.is_some().into()),
        ),
        (
            "baton_watching",
            Type::Gauge,
            "1 while changes of files are taken by themselves.",
            one((status.watcher.activity != Activity::Off).into()),
        ),
        (
            "baton_watcher_holding",
            Type::Gauge,
            "1 while the watcher waits for another change, since what lies there was refused.",
            one(status.watcher.holding.is_some().into()),
        ),
        ("baton_generations", Type::Gauge, "Generations that live.", one(alive().count() as u64)),
        ("baton_connections", Type::Gauge, "Connections open.", one(sum(|load| load.connections))),
        (
            "baton_connections_idle",
            Type::Gauge,
            "Of these, without a request or a part of one.",
            one(sum(|load| load.idle)),
        ),
        ("baton_requests_in_flight", Type::Gauge, "Requests being answered.", one(sum(|load| load.requests_in_flight))),
        (
            "baton_certificate_seconds_left",
            Type::Gauge,
            "How long each certificate is good for; 0 once it has expired.",
            status.certificates.iter().map(certificate).collect(),
        ),
        ("baton_uptime_seconds", Type::Gauge, "Age of the master.", one(status.uptime_ms / 1000)),
        ("baton_master_open_fds", Type::Gauge, "Descriptors open in the master.", one(status.master_fds)),
    ];
    let mut text = String::new();
    for (name, kind, help, samples) in metrics {
        let kind = match kind {
            Type::Counter => "counter",
            Type::Gauge => "gauge",
        };
        // Writing to a String cannot fail.
        writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}").ok();
        for (labels, value) in samples {
            writeln!(text, "{name}{labels} {value}").ok();
        }
    }
    text
}

fn certificate(one: &CertificateStatus) -> (String, u64) {
    let escaped = |text: &str| text.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
    let labels = format!("{{server=\"{}\",cert=\"{}\"}}", escaped(&one.server), escaped(&one.cert));
    (labels, u64::try_from(one.expires_in_s).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::master::admin::routes::tests::status;
    use crate::report::{Change, Generation, Held, LimitHits, Malformed, Pin, Totals, Validity, WatcherStatus, Why};

    #[test]
    fn what_an_operator_must_look_at_is_a_number_too() {
        let told = |status: &Status, line: &str| assert!(text(status).lines().any(|found| found == line), "{line}");
        let quiet = ["baton_alert", "baton_changes_held", "baton_pinned", "baton_watching", "baton_watcher_holding"];
        quiet.iter().for_each(|name| told(&status(), &format!("{name} 0")));
        let change = Change::Removal { plugin: "a".into() };
        let held = Held { change, why: Why::Quarantined, since: String::new() };
        let loud = Status {
            alert: Some("x".into()),
            held: vec![held.clone(), held],
            pinned: Some(Pin { generation: Generation(3), since: String::new() }),
            watcher: WatcherStatus { activity: Activity::Settling, holding: Some("x".into()), ..Default::default() },
            ..status()
        };
        for line in
            ["baton_alert 1", "baton_changes_held 2", "baton_pinned 1", "baton_watching 1", "baton_watcher_holding 1"]
        {
            told(&loud, line);
        }
    }

    #[test]
    fn every_metric_has_its_help_its_type_and_a_number() {
        let limits = LimitHits { body_too_large: 3, ..LimitHits::default() };
        let malformed = Malformed { host: 4, ..Malformed::default() };
        let ends = |expires_in_s| CertificateStatus {
            server: "web".into(),
            cert: "/a \"b\"".into(),
            names: Vec::new(),
            not_after: String::new(),
            expires_in_s,
            validity: Validity::Valid,
        };
        let certificates = vec![ends(77), ends(-5)];
        let text = text(&Status {
            certificates,
            totals: Totals { requests: 12, client_aborts: 5, malformed, limits, ..Totals::default() },
            ..status()
        });
        for line in [
            "# TYPE baton_requests_total counter",
            "baton_requests_total 12",
            "baton_limit_hits_total{limit=\"body_too_large\"} 3",
            "baton_malformed_requests_total{kind=\"host\"} 4",
            "baton_malformed_requests_total{kind=\"body\"} 0",
            "baton_client_aborts_total 5",
            r#"baton_certificate_seconds_left{server="web",cert="/a \"b\""} 77"#,
            r#"baton_certificate_seconds_left{server="web",cert="/a \"b\""} 0"#,
            "# TYPE baton_ready gauge",
            "baton_ready 1",
            "baton_serving_generation 7",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
        let mut names = Vec::new();
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                names.push(help.split(' ').next().unwrap());
            } else if !line.starts_with('#') {
                let (sample, value) = line.rsplit_once(' ').unwrap();
                assert_eq!(sample.split('{').next(), names.last().copied(), "{line}");
                value.parse::<u64>().unwrap();
            }
        }
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all, "a name twice");
    }
}
