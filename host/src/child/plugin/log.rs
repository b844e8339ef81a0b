//! Log records of plugins, told again in the host's log under their own targets, so that one filter ("info,hello=debug")
//! holds for both. tracing wants a static description per place in the code; one is made, and kept, for each place that
//! speaks up.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};

use baton_plugin_api::abi::{LogField, LogRecord, Slice};
use tracing::callsite::{Callsite, Identifier};
use tracing::field::{FieldSet, Value};
use tracing::level_filters::LevelFilter;
use tracing::metadata::Kind;
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata};

/// Places that are kept. Beyond, a plugin that makes up names would fill the memory: what it says goes without its fields.
const MAX_PLACES: usize = 4096;
/// Fields of one record that are told.
const MAX_FIELDS: usize = 32;
/// Fields that the host adds.
const OWN_FIELDS: [&str; 4] = ["message", "plugin", "request", "spans"];

/// How much the host's log takes at most, as the ABI counts: 0 for nothing to 5 for trace.
pub fn level() -> u32 {
    match LevelFilter::current() {
        LevelFilter::OFF => 0,
        LevelFilter::ERROR => 1,
        LevelFilter::WARN => 2,
        LevelFilter::INFO => 3,
        LevelFilter::DEBUG => 4,
        LevelFilter::TRACE => 5,
    }
}

/// Tells a record again. It is borrowed, with all that it points to, for this call.
pub fn emit(plugin: &'static str, record: &LogRecord) {
    let level = match record.level {
        1 => Level::ERROR,
        2 => Level::WARN,
        3 => Level::INFO,
        4 => Level::DEBUG,
        _ => Level::TRACE,
    };
    if level > LevelFilter::current() {
        return;
    }
    let target = text(record.target);
    let fields: &[LogField] = match record.field_count as usize {
        0 => &[],
        // SAFETY: the plugin lends so many fields for the call.
        count => unsafe { std::slice::from_raw_parts(record.fields, count.min(MAX_FIELDS)) },
    };
    let (message, spans) = (text(record.message), text(record.spans));
    let (place, fields) = place(level, &target, fields);
    let metadata = place.metadata();
    tracing::dispatcher::get_default(|dispatch| {
        if !dispatch.enabled(metadata) {
            return;
        }
        let values: Vec<_> = fields.iter().map(|field| text(field.value)).collect();
        let values: Vec<&str> = values.iter().map(|value| &**value).collect();
        let request = Some(record.request_id).filter(|id| *id != 0);
        let spans = Some(&*spans).filter(|spans| !spans.is_empty());
        let message = &*message;
        let mut all: Vec<Option<&dyn Value>> = vec![
            Some(&message),
            Some(&plugin),
            request.as_ref().map(|request| request as &dyn Value),
            spans.as_ref().map(|spans| spans as &dyn Value),
        ];
        all.extend(values.iter().map(|value| Some(value as &dyn Value)));
        dispatch.event(&Event::new(metadata, &metadata.fields().value_set_all(&all)));
    });
}

fn text<'a>(slice: Slice) -> std::borrow::Cow<'a, str> {
    // SAFETY: what a record points to is lent for the call of `emit`, which the result does not outlive.
    String::from_utf8_lossy(unsafe { slice.as_bytes() })
}

// ---- places ----

/// What tracing wants to know of a place in the code. Never freed.
struct Place {
    metadata: OnceLock<Metadata<'static>>,
}

impl Callsite for Place {
    // Asked at each event instead: a record has come so far already.
    fn set_interest(&self, _: Interest) {}

    fn metadata(&self) -> &Metadata<'_> {
        self.own()
    }
}

impl Place {
    fn new(level: Level, target: String, names: Vec<String>) -> &'static Place {
        let place: &'static Place = Box::leak(Box::new(Place { metadata: OnceLock::new() }));
        let names = names.into_iter().map(|name| &*Box::leak(name.into_boxed_str()));
        let names: &'static [&'static str] = Box::leak(OWN_FIELDS.into_iter().chain(names).collect());
        let target: &'static str = Box::leak(target.into_boxed_str());
        let fields = FieldSet::new(names, Identifier(place));
        place
            .metadata
            .get_or_init(|| Metadata::new("plugin event", target, level, None, None, None, fields, Kind::EVENT));
        tracing::callsite::register(place);
        place
    }

    fn own(&self) -> &Metadata<'static> {
        self.metadata.get().expect("set before anybody else sees the place")
    }
}

impl Place {
    fn metadata(&'static self) -> &'static Metadata<'static> {
        self.own()
    }
}

/// The place with this level, target and names of fields, and the fields that are to be told there.
fn place<'a>(level: Level, target: &str, fields: &'a [LogField]) -> (&'static Place, &'a [LogField]) {
    type Key = (Level, String, Vec<String>);
    static PLACES: Mutex<Option<HashMap<Key, &'static Place>>> = Mutex::new(None);
    let names: Vec<String> = fields.iter().map(|field| text(field.name).into_owned()).collect();
    let mut places = PLACES.lock().unwrap_or_else(PoisonError::into_inner);
    let places = places.get_or_insert_default();
    let key = (level, target.to_owned(), names);
    if let Some(place) = places.get(&key) {
        return (place, fields);
    }
    if places.len() < MAX_PLACES {
        let place = Place::new(level, key.1.clone(), key.2.clone());
        places.insert(key, place);
        return (place, fields);
    }
    let key = (level, "plugin".to_owned(), Vec::new());
    (places.entry(key).or_insert_with(|| Place::new(level, "plugin".into(), Vec::new())), &[])
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn slice(text: &'static str) -> Slice {
        Slice::new(text.as_bytes())
    }

    fn record(level: u32, target: &'static str, fields: &[LogField]) -> LogRecord {
        LogRecord {
            level,
            field_count: fields.len() as u32,
            target: slice(target),
            message: slice("it happened"),
            fields: fields.as_ptr(),
            request_id: 7,
            spans: slice("outer:inner"),
            file: Slice::EMPTY,
            line: 0,
            panic: 0,
        }
    }

    #[test]
    fn a_record_keeps_its_target_and_fields() {
        let lines = Lines::default();
        let writer = lines.clone();
        let layer = tracing_subscriber::fmt::layer().json().with_writer(move || writer.clone());
        let filter: tracing_subscriber::EnvFilter = "warn,hello=debug".parse().unwrap();
        let subscriber = tracing_subscriber::registry().with(filter).with(layer);
        tracing::subscriber::with_default(subscriber, || {
            let fields = [LogField { name: slice("user"), value: slice("\"ann\"") }];
            emit("hello", &record(4, "hello::db", &fields));
            emit("hello", &record(4, "other", &fields));
            emit("hello", &record(5, "hello::db", &[]));
            emit("hello", &record(2, "other", &[]));
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert_eq!(lines[0]["target"], "hello::db");
        assert_eq!(lines[0]["level"], "DEBUG");
        let fields = &lines[0]["fields"];
        assert_eq!(fields["message"], "it happened");
        assert_eq!(fields["plugin"], "hello");
        assert_eq!(fields["request"], 7);
        assert_eq!(fields["spans"], "outer:inner");
        assert_eq!(fields["user"], "\"ann\"");
        assert_eq!(lines[1]["target"], "other");
    }
}
