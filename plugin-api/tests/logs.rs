//! What a plugin logs arrives at the host, with its fields, spans and request.
//!
//! One test: the level is the process'.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use baton_plugin_api::testing::{Log, Plugin, eventually};
use baton_plugin_api::tracing::level_filters::LevelFilter;
use baton_plugin_api::tracing::{self, Instrument, debug, error, info, info_span, trace, warn};
use baton_plugin_api::{Request, log, tokio};

fn only(plugin: &Plugin) -> Log {
    let logs = plugin.logs();
    assert_eq!(logs.len(), 1, "{logs:?}");
    logs[0].clone()
}

fn fields(log: &Log) -> Vec<(&str, &str)> {
    log.fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

async fn handler(request: Request) -> &'static str {
    match request.path() {
        "/event" => info!(target: "shop", count = 3, name = "a b", what = ?Some(1), "sold {}", "it"),
        "/log" => log::warn!(target: "old", "still {}", "here"),
        "/span" => {
            let outer = info_span!("outer", user = 7, late = tracing::field::Empty);
            async {
                tokio::task::yield_now().await;
                let inner = info_span!("inner", step = "x");
                outer.record("late", true);
                outer.record("user", 8);
                async { error!(own = 1, "in spans") }.instrument(inner).await;
            }
            .instrument(outer.clone())
            .await;
        }
        "/task" => {
            let span = info_span!("task");
            tokio::spawn(async { info!("from a task") }.instrument(span));
        }
        "/current" => {
            let _entered = info_span!("current").entered();
            info!(parent: &tracing::Span::current(), "by parent");
        }
        "/levels" => {
            error!("e");
            warn!("w");
            info!("i");
            debug!("d");
            trace!("t");
            log::debug!("d");
        }
        "/error" => {
            let error: Box<dyn std::error::Error> = "x".parse::<u8>().unwrap_err().into();
            info!(error, "failed");
        }
        _ => {}
    }
    "ok"
}

#[test]
fn records_arrive_with_all_that_belongs_to_them() {
    let plugin = Plugin::start(handler);
    plugin.get("/event");
    let event = only(&plugin);
    assert_eq!((event.level, event.target.as_str(), event.message.as_str()), (3, "shop", "sold it"));
    assert_eq!(fields(&event), [("count", "3"), ("name", "a b"), ("what", "Some(1)")]);
    assert_eq!((event.request_id, event.spans.as_str(), event.panic), (1, "", false));

    let plugin = Plugin::start(handler);
    plugin.get("/");
    plugin.get("/log");
    let record = only(&plugin);
    assert_eq!((record.level, record.target.as_str(), record.message.as_str()), (2, "old", "still here"));
    assert_eq!(record.request_id, 2);

    let plugin = Plugin::start(handler);
    plugin.get("/span");
    let event = only(&plugin);
    assert_eq!((event.level, event.message.as_str(), event.spans.as_str()), (1, "in spans", "outer:inner"));
    assert_eq!(fields(&event), [("own", "1"), ("late", "true"), ("user", "8"), ("step", "x")]);

    let plugin = Plugin::start(handler);
    plugin.get("/task");
    eventually(|| plugin.logs().len() == 1);
    let event = only(&plugin);
    assert_eq!((event.message.as_str(), event.spans.as_str()), ("from a task", "task"));
    assert_eq!(event.request_id, 1, "the span has kept it");

    let plugin = Plugin::start(handler);
    plugin.get("/current");
    assert_eq!(only(&plugin).spans, "current");

    let plugin = Plugin::start(handler);
    plugin.get("/error");
    assert_eq!(fields(&only(&plugin)), [("error", "invalid digit found in string")]);

    for (level, expected) in [
        (LevelFilter::OFF, 0),
        (LevelFilter::ERROR, 1),
        (LevelFilter::WARN, 2),
        (LevelFilter::INFO, 3),
        (LevelFilter::DEBUG, 5),
        (LevelFilter::TRACE, 6),
    ] {
        let plugin = Plugin::start(handler);
        plugin.set_log_level(level);
        plugin.get("/levels");
        assert_eq!(plugin.logs().len(), expected, "{level}");
    }
}
