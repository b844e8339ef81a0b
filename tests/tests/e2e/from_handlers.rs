//! Reload, restart and shutdown asked for from inside a handler: the client of that handler gets its whole answer, the report
//! names the plugin, and a plugin that may not ask is told so.

use std::path::PathBuf;

use baton_tests::http2;
use baton_tests::server::{Server, Setup};
use baton_tests::status::{Report, Status};
use baton_tests::tls::{Authority, Client, Version};
use baton_tests::{artifacts, wait};

/// How a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speech {
    Clear,
    Tls,
    Http2,
    Http2OverTls,
}

const ALL: [Speech; 4] = [Speech::Clear, Speech::Tls, Speech::Http2, Speech::Http2OverTls];

struct Stage {
    server: Server,
    tls: Client,
    gate: PathBuf,
}

/// A server with a clear and a TLS address, and the plugin whose handlers ask.
fn stage() -> Stage {
    let tls = "tls = [{ cert = \"a.pem\", key = \"a.key\" }]";
    let config = format!(
        "[[server]]\nname = \"clear\"\nlisten = [\"127.0.0.1:0\"]\n\
         [[server]]\nname = \"tls\"\nlisten = [\"127.0.0.1:0\"]\n{tls}\n"
    );
    let setup = Setup::new().plugin("control", &artifacts::plugin("control")).config(&config);
    let authority = Authority::new();
    authority.issue(&["a.example"]).write(setup.bench().path(), "a");
    let gate = setup.bench().path().join("gate");
    Stage { server: setup.start(), tls: authority.client(Version::V13), gate }
}

/// Asks for `verb`; once `under_way` is seen, the handler may end its answer. The answer, line by line.
#[track_caller]
fn ask(stage: &Stage, speech: Speech, verb: &str, under_way: impl Fn(&Status) -> bool) -> Vec<String> {
    let path = format!("/{verb}?until={}", stage.gate.display());
    let addrs = stage.server.addrs();
    let seen = || {
        stage.server.wait_for(&format!("the {verb} under way"), &under_way);
        std::fs::write(&stage.gate, "").expect("failed to open the gate");
    };
    let text = match speech {
        Speech::Clear | Speech::Tls => {
            let mut connection = match speech {
                Speech::Clear => stage.server.connect(),
                _ => stage.tls.connect(addrs[1]).expect("failed to connect").0,
            };
            connection.send("POST", &path, &[], b"").expect("failed to send a request");
            seen();
            let answer = connection.receive().unwrap_or_else(|error| panic!("{speech:?}: {verb}: no answer: {error}"));
            assert_eq!(answer.status, 200, "{speech:?}");
            answer.text()
        }
        Speech::Http2 | Speech::Http2OverTls => {
            let client = match speech {
                Speech::Http2 => http2::Client::open(addrs[0]),
                _ => http2::Client::open_tls(addrs[1], &stage.tls),
            };
            let pending = client.begin("POST", &path, None);
            seen();
            let answer = client.wait(pending);
            let answer = answer.unwrap_or_else(|error| panic!("{speech:?}: {verb}: no answer: {error}"));
            assert_eq!(answer.status, 200, "{speech:?}");
            answer.text()
        }
    };
    text.lines().map(str::to_owned).collect()
}

/// Whole: the old process' pid until the end.
#[track_caller]
fn assert_whole(lines: &[String], by: i32) {
    let (last, before) = lines.split_last().expect("an answer");
    assert_eq!(last, "end", "the answer broke off");
    assert!(!before.is_empty() && before.iter().all(|line| *line == by.to_string()), "{before:?}");
}

#[test]
fn answer_is_whole_when_its_gate_is_open_before_the_first_line() {
    let stage = stage();
    let old = stage.server.worker();
    std::fs::write(&stage.gate, "").expect("failed to open the gate");
    let path = format!("/reload?until={}", stage.gate.display());
    let answer = stage.server.connect().request("POST", &path).expect("an answer");
    let lines: Vec<String> = answer.text().lines().map(str::to_owned).collect();
    assert_whole(&lines, old);
}

/// Whether the process retires.
fn retires(pid: i32) -> impl Fn(&Status) -> bool {
    move |status| status.living().any(|one| one.pid == Some(pid) && one.state == "retiring")
}

#[test]
fn a_handler_that_reloads_ends_its_answer_while_the_new_code_serves() {
    for speech in ALL {
        let stage = stage();
        let old = stage.server.worker();
        let lines = ask(&stage, speech, "reload", retires(old));
        assert_whole(&lines, old);
        let status = stage.server.wait_drained();
        let report = status.operations.first().expect("a report");
        assert_eq!((report.verb.as_str(), report.result.as_str()), ("reload", "switched"), "{report:#?}");
        assert_eq!((report.cause.by.as_str(), report.cause.plugin.as_deref()), ("handler", Some("control")));
        let drain = report.drain.as_ref().expect("it drained");
        assert_eq!((drain.lost, drain.cut.total()), (0, 0), "{speech:?}");
    }
}

#[test]
fn the_connection_of_the_handler_that_reloads_goes_on_to_the_new_code() {
    let stage = stage();
    let old = stage.server.worker();
    let mut connection = stage.server.connect();
    for round in 0..5 {
        let answer = connection.request("POST", "/reload").expect("an answer");
        assert_eq!((answer.status, answer.text().as_str(), answer.close), (200, "end\n", false), "round {round}");
        stage.server.wait_for("the switch", |status| status.switches == round + 2);
    }
    stage.server.wait_drained();
    let answer = connection.request("GET", "/pid").expect("the connection was closed");
    assert_ne!(answer.text(), old.to_string());
    assert_eq!(answer.text(), stage.server.worker().to_string());
}

#[test]
fn a_handler_that_restarts_ends_its_answer_under_the_next_program() {
    for speech in ALL {
        let stage = stage();
        let (master, old) = (stage.server.pid(), stage.server.worker());
        let lines = ask(&stage, speech, "restart", retires(old));
        assert_whole(&lines, old);
        let status = stage.server.wait_drained();
        let report = status.operations.iter().find(|report| report.verb == "restart").expect("a report");
        assert_eq!((status.pid, report.result.as_str()), (master, "switched"), "{report:#?}");
        assert_eq!((report.cause.by.as_str(), report.cause.plugin.as_deref()), ("handler", Some("control")));
        assert_eq!(status.crashes, 0);
    }
}

#[test]
fn a_handler_that_shuts_down_ends_its_answer_before_the_server_does() {
    for speech in ALL {
        let mut stage = stage();
        let old = stage.server.worker();
        let lines = ask(&stage, speech, "shutdown", |status| status.shutting_down && retires(old)(status));
        assert_whole(&lines, old);
        assert_eq!(stage.server.wait_end(wait::LONG).code(), Some(0), "{speech:?}: nothing was cut");
    }
}

#[test]
fn many_handlers_and_others_that_ask_at_once_share_a_few_reloads() {
    let stage = stage();
    let mut askers: Vec<_> = (0..30).map(|_| stage.server.connect()).collect();
    for asker in &mut askers {
        asker.send("POST", "/reload", &[], b"").expect("failed to send a request");
    }
    let (code, report) = stage.server.reload();
    assert_eq!((code, report.result.as_str()), (200, "switched"), "{report:#?}");
    for asker in &mut askers {
        let answer = asker.receive().expect("an answer");
        assert!(answer.status == 200 || answer.text().contains("does not serve"), "{answer:?}");
    }
    stage.server.wait_for("the last of them to have ended", |status| status.operations.iter().all(Report::has_ended));
    let status = stage.server.wait_drained();
    assert!((2..20).contains(&status.switches), "30 wishes made {} switches", status.switches);
    assert!(status.operations.iter().all(|report| report.result == "switched"), "{:#?}", status.operations);
}

#[test]
fn a_plugin_that_may_not_ask_is_told_so_and_it_is_noted() {
    let setup = Setup::new().plugin("control", &artifacts::plugin("control"));
    let server = setup.set("plugins.control.allow_control", "false").start();
    let old = server.worker();
    for verb in ["reload", "restart", "shutdown"] {
        let answer = server.connect().request("POST", &format!("/{verb}")).expect("an answer");
        assert_eq!(answer.status, 409);
        assert!(answer.text().contains("allow_control is off"), "{answer:?}");
        let noted =
            |line: &str| line.contains("refused to a handler") && line.contains(verb) && line.contains("control");
        wait::until("the line of the audit", wait::LONG, || server.log().lines().any(noted).then_some(()));
    }
    let status = server.status();
    assert_eq!((status.last_op(), status.shutting_down), (1, false), "nothing was asked for");
    assert_eq!(server.worker(), old);
    // The operator still may.
    server.switch();
}

#[test]
fn a_handler_of_a_generation_that_retires_is_told_so() {
    let stage = stage();
    let mut late = stage.server.connect();
    let path = format!("/shutdown?after={}", stage.gate.display());
    let before = stage.server.serving().load.requests_in_flight;
    late.send("POST", &path, &[], b"").expect("failed to send a request");
    stage.server.wait_for("the request in flight", |status| {
        status.serving().is_some_and(|serving| serving.load.requests_in_flight > before)
    });
    stage.server.switch();
    std::fs::write(&stage.gate, "").expect("failed to open the gate");
    let answer = late.receive().expect("an answer");
    assert!(answer.status == 409 && answer.text().contains("does not serve"), "{answer:?}");
    assert!(!stage.server.status().shutting_down, "what is gone decides nothing");
}

#[test]
fn a_handler_s_reload_that_is_refused_leaves_it_serving_and_says_why_in_the_status() {
    let stage = stage();
    let old = stage.server.worker();
    std::fs::write(stage.server.bench.plugin_file("control"), "no plugin").expect("failed to break the plugin");
    let mut connection = stage.server.connect();
    assert_eq!(connection.request("POST", "/reload").expect("an answer").text(), "end\n");
    let status = stage.server.wait_for("the report", |status| status.operation(2).is_some_and(|one| one.has_ended()));
    let report = status.operation(2).expect("just seen");
    assert_eq!((report.result.as_str(), report.cause.by.as_str()), ("refused", "handler"), "{report:#?}");
    assert_eq!(connection.request("GET", "/pid").expect("an answer").text(), old.to_string());
}

const TOKEN: &str = "0123456789abcdef";

#[test]
fn hello_reloads_restarts_and_shuts_down_with_its_token() {
    let setup = Setup::new().plugin("hello", &artifacts::plugin("hello"));
    let mut server = setup.set("plugins.hello.config.control_token", &format!("\"{TOKEN}\"")).start();
    let mut connection = server.connect();
    let bearer = format!("Bearer {TOKEN}");
    let mut ask = |verb: &str| {
        connection.send("POST", &format!("/{verb}"), &[("authorization", &bearer)], b"").expect("failed to send");
        connection.receive().expect("an answer")
    };
    for (verb, switches) in [("reload", 2), ("restart", 3)] {
        let by = server.worker();
        let answer = ask(verb);
        assert_eq!((answer.status, answer.text()), (202, format!("asked by ospid:{by}\n")));
        server.wait_for(verb, |status| status.switches == switches);
        server.wait_drained();
    }
    assert_eq!(ask("shutdown").status, 202);
    assert_eq!(server.wait_end(wait::LONG).code(), Some(0));
}

#[test]
fn no_page_in_a_browser_can_stop_hello() {
    for token in [None, Some(TOKEN)] {
        let mut setup = Setup::new().plugin("hello", &artifacts::plugin("hello"));
        if let Some(token) = token {
            setup = setup.set("plugins.hello.config.control_token", &format!("\"{token}\""));
        }
        let server = setup.start();
        let before = server.status();
        for verb in ["reload", "restart", "shutdown"] {
            for headers in [
                &[][..],
                // A form or fetch of any page, which needs no preflight, and a page whose name was rebound to this address.
                &[("origin", "http://evil.example"), ("content-type", "text/plain")],
                &[("host", "evil.example"), ("origin", "http://evil.example"), ("sec-fetch-site", "same-origin")],
            ] {
                let mut connection = server.connect();
                connection.send("POST", &format!("/{verb}"), headers, b"").expect("failed to send");
                let answer = connection.receive().expect("an answer");
                assert!(matches!(answer.status, 401 | 403), "{verb} {headers:?}: {answer:?}");
            }
        }
        let after = server.status();
        assert_eq!((after.last_op(), after.shutting_down), (before.last_op(), false));
    }
}
