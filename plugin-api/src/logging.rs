//! The author's `tracing` and `log` records on their way to the host's log, with their spans and their request.
//!
//! A plugin has statics of its own, so the host's subscriber never sees its records. This one keeps no format and no
//! filter beside the level: the host decides.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt::{self, Write};
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing_core::field::{Field as FieldName, Visit};
use tracing_core::span::{Attributes, Current, Id, Record as SpanRecord};
use tracing_core::{Event, Interest, Level, LevelFilter, Metadata, Subscriber};

use crate::ffi::{Field, Logging, Record, context};

/// 0 off, 1 error, 2 warn, 3 info, 4 debug, 5 trace.
static LEVEL: AtomicU32 = AtomicU32::new(3);

/// Both bridges, as the ABI wants them.
pub struct Bridge;

impl Logging for Bridge {
    fn install() {
        // An author who installed his own before, in this process, wants that one: both answer with an error then.
        let _ = tracing::subscriber::set_global_default(ToHost::default());
        let _ = log::set_logger(&LogToHost);
    }

    fn set_level(level: u32) {
        LEVEL.store(level.min(5), Ordering::Relaxed);
        log::set_max_level(match level {
            0 => log::LevelFilter::Off,
            1 => log::LevelFilter::Error,
            2 => log::LevelFilter::Warn,
            3 => log::LevelFilter::Info,
            4 => log::LevelFilter::Debug,
            _ => log::LevelFilter::Trace,
        });
        tracing_core::callsite::rebuild_interest_cache();
    }
}

pub(crate) fn level_of(level: &Level) -> u32 {
    match *level {
        Level::ERROR => 1,
        Level::WARN => 2,
        Level::INFO => 3,
        Level::DEBUG => 4,
        Level::TRACE => 5,
    }
}

fn is_on(level: u32) -> bool {
    level <= LEVEL.load(Ordering::Relaxed)
}

// ---- text ----

/// Fields as one text and the ends of its pieces: no allocation for each.
#[derive(Default)]
struct Fields {
    text: String,
    /// A field's name, where its value begins and where it ends.
    list: Vec<(&'static str, usize, usize)>,
    message: (usize, usize),
}

impl Fields {
    fn clear(&mut self) {
        self.text.clear();
        self.list.clear();
        self.message = (0, 0);
    }

    fn add(&mut self, name: &'static str, value: fmt::Arguments<'_>) {
        let start = self.text.len();
        // Writing to a string fails only if a `Debug` of the author's does: its text then ends there.
        let _ = self.text.write_fmt(value);
        match name {
            "message" => self.message = (start, self.text.len()),
            _ => self.list.push((name, start, self.text.len())),
        }
    }

    fn iter(&self) -> impl Iterator<Item = Field<'_>> {
        self.list.iter().map(|(name, start, end)| Field::new(name, &self.text[*start..*end]))
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &FieldName, value: &str) {
        self.add(field.name(), format_args!("{value}"));
    }

    fn record_error(&mut self, field: &FieldName, value: &(dyn std::error::Error + 'static)) {
        self.add(field.name(), format_args!("{}", crate::ffi::error_text(value)));
    }

    fn record_debug(&mut self, field: &FieldName, value: &dyn fmt::Debug) {
        self.add(field.name(), format_args!("{value:?}"));
    }
}

thread_local! {
    /// The last record's room, for the next one. Taken while in use: a `Debug` that logs gets another.
    static ROOM: Cell<Option<Box<Fields>>> = const { Cell::new(None) };
    /// The spans that this thread is in, outermost first.
    static ENTERED: RefCell<Vec<(NonZeroU64, Arc<Span>)>> = const { RefCell::new(Vec::new()) };
}

// ---- tracing ----

/// A span, alive until its last handle is dropped.
struct Span {
    metadata: &'static Metadata<'static>,
    parent: Option<Arc<Span>>,
    /// The request in which it was made: so a spawned task that carries the span carries the request.
    request_id: u64,
    fields: Mutex<Fields>,
}

/// Locks are spread over this many tables.
const TABLES: usize = 16;

type Table = HashMap<u64, (Arc<Span>, usize)>;

#[derive(Default)]
struct ToHost {
    next: AtomicU64,
    /// Spans by their number, with the count of their handles.
    spans: [Mutex<Table>; TABLES],
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A `Debug` of the author's that panicked in it left a text cut short, at worst.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ToHost {
    fn table(&self, id: u64) -> MutexGuard<'_, Table> {
        lock(&self.spans[id as usize % TABLES])
    }

    fn span(&self, id: &Id) -> Option<Arc<Span>> {
        self.table(id.into_u64()).get(&id.into_u64()).map(|(span, _)| span.clone())
    }

    /// What encloses a new span or event: what it names itself, or what this thread is in.
    fn parent(&self, explicit: Option<&Id>, contextual: bool) -> Option<Arc<Span>> {
        match explicit {
            Some(id) => self.span(id),
            None if contextual => {
                ENTERED.try_with(|entered| entered.borrow().last().map(|(_, span)| span.clone())).ok().flatten()
            }
            None => None,
        }
    }
}

impl Subscriber for ToHost {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.enabled(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        is_on(level_of(metadata.level()))
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(match LEVEL.load(Ordering::Relaxed) {
            0 => LevelFilter::OFF,
            1 => LevelFilter::ERROR,
            2 => LevelFilter::WARN,
            3 => LevelFilter::INFO,
            4 => LevelFilter::DEBUG,
            _ => LevelFilter::TRACE,
        })
    }

    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        let parent = self.parent(attributes.parent(), attributes.is_contextual());
        let request_id = match context::current().request_id {
            0 => parent.as_ref().map_or(0, |parent| parent.request_id),
            id => id,
        };
        let span = Span { metadata: attributes.metadata(), parent, request_id, fields: Mutex::new(fields) };
        let id = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        self.table(id).insert(id, (Arc::new(span), 1));
        Id::from_u64(id)
    }

    fn record(&self, id: &Id, values: &SpanRecord<'_>) {
        if let Some(span) = self.span(id) {
            // Formatted before the lock is taken: a `Debug` may log, and so read this very span.
            let mut new = Fields::default();
            values.record(&mut new);
            let mut fields = lock(&span.fields);
            for (name, start, end) in &new.list {
                fields.list.retain(|(known, ..)| known != name);
                fields.add(name, format_args!("{}", &new.text[*start..*end]));
            }
        }
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut fields = ROOM.try_with(Cell::take).ok().flatten().unwrap_or_default();
        fields.clear();
        event.record(&mut *fields);
        let innermost = self.parent(event.parent(), event.is_contextual());
        let metadata = event.metadata();
        send(
            &Origin {
                level: level_of(metadata.level()),
                target: metadata.target(),
                file: metadata.file().unwrap_or_default(),
                line: metadata.line().unwrap_or_default(),
            },
            &fields,
            innermost,
        );
        let _ = ROOM.try_with(|room| room.set(Some(fields)));
    }

    fn enter(&self, id: &Id) {
        if let Some(span) = self.span(id) {
            // The thread may be ending, its locals gone.
            let _ = ENTERED.try_with(|entered| entered.borrow_mut().push((id.into_non_zero_u64(), span)));
        }
    }

    fn exit(&self, id: &Id) {
        let left = ENTERED.try_with(|entered| {
            let mut entered = entered.borrow_mut();
            // Mostly the last; guards may be dropped in any order.
            let at = entered.iter().rposition(|(known, _)| *known == id.into_non_zero_u64())?;
            Some(entered.remove(at))
        });
        // Dropped outside of the borrow.
        drop(left);
    }

    fn clone_span(&self, id: &Id) -> Id {
        if let Some((_, handles)) = self.table(id.into_u64()).get_mut(&id.into_u64()) {
            *handles += 1;
        }
        id.clone()
    }

    fn try_close(&self, id: Id) -> bool {
        let number = id.into_u64();
        let mut table = self.table(number);
        let Some((_, handles)) = table.get_mut(&number) else { return false };
        *handles -= 1;
        if *handles > 0 {
            return false;
        }
        let span = table.remove(&number);
        drop(table);
        // Outside of the lock: it may be the last to hold its parents.
        drop(span);
        true
    }

    fn current_span(&self) -> Current {
        let current = ENTERED
            .try_with(|entered| entered.borrow().last().map(|(id, span)| (Id::from_non_zero_u64(*id), span.metadata)));
        match current.ok().flatten() {
            Some((id, metadata)) => Current::new(id, metadata),
            None => Current::none(),
        }
    }
}

/// Where a record comes from.
struct Origin<'a> {
    level: u32,
    target: &'a str,
    file: &'a str,
    line: u32,
}

/// Hands a record to the host of the plugin that this thread works for.
fn send(origin: &Origin<'_>, event: &Fields, innermost: Option<Arc<Span>>) {
    let context = context::current();
    let Some(instance) = context.instance else { return };
    // Innermost first here, outermost first in the record.
    let spans: Vec<&Span> = std::iter::successors(innermost.as_deref(), |span| span.parent.as_deref()).collect();
    let request_id = match context.request_id {
        0 => spans.first().map_or(0, |span| span.request_id),
        id => id,
    };
    let mut names = String::new();
    let mut locked = Vec::with_capacity(spans.len());
    for span in spans.iter().rev() {
        if !names.is_empty() {
            names.push(':');
        }
        names.push_str(span.metadata.name());
        locked.push(lock(&span.fields));
    }
    let mut fields: Vec<Field<'_>> = event.iter().collect();
    fields.extend(locked.iter().flat_map(|span| span.iter()));
    instance.host.log(&Record {
        level: origin.level,
        target: origin.target,
        message: &event.text[event.message.0..event.message.1],
        fields: &fields,
        request_id,
        spans: &names,
        file: origin.file,
        line: origin.line,
        panic: false,
    });
}

// ---- log ----

struct LogToHost;

impl log::Log for LogToHost {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        is_on(metadata.level() as u32)
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut fields = Fields::default();
        fields.add("message", *record.args());
        let innermost = ENTERED.try_with(|entered| entered.borrow().last().map(|(_, span)| span.clone()));
        send(
            &Origin {
                level: record.level() as u32,
                target: record.target(),
                file: record.file().unwrap_or_default(),
                line: record.line().unwrap_or_default(),
            },
            &fields,
            innermost.ok().flatten(),
        );
    }

    fn flush(&self) {}
}
