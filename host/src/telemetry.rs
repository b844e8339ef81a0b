//! Logs: one line per event, to stderr, for a person, the journal or a machine; each says which process and generation.
//!
//! Owns the formats and the way to stderr. A reader that stalls or goes away costs lines, which are counted and told later;
//! it never blocks the loop, never ends the process. What stderr is may change under us (a child's becomes the real one
//! only at GO), so that is looked at for each line.

mod line;

use std::io::{IsTerminal, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::{SigSet, SigmaskHow};
use nix::sys::stat::{SFlag, fstat};
use tracing::span;
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{Log, LogFormat};
use crate::report::Generation;
use line::{Fields, Line, Look};

/// Lines that wait for a slow reader of stderr; more are dropped and counted.
const QUEUE: usize = 4096;
/// The same in bytes: a line may quote what another program made as long as it liked.
const QUEUE_BYTES: usize = 4 << 20;
/// What may happen often is said at most once in this long.
const SELDOM: Duration = Duration::from_secs(1);
/// How long [`flush`] waits for that reader.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Whose lines these are.
#[derive(Clone, Copy, Debug)]
pub enum Role {
    Master,
    Worker(Generation),
}

#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("failed to understand the log filter `{filter}` of {origin}: {source}")]
    Filter { filter: String, origin: &'static str, source: tracing_subscriber::filter::ParseError },
    #[error("failed to start the log's thread: {0}")]
    Thread(std::io::Error),
    #[error("failed to start the log: it has been started before")]
    Twice,
}

/// `log` with "auto" settled by what stderr is now. The master settles it for its children, whose stderr is a memory file
/// until they serve.
pub fn effective(log: &Log) -> Log {
    let stderr = Stderr::look();
    let format = match log.format {
        LogFormat::Auto if stderr.terminal => LogFormat::Pretty,
        LogFormat::Auto if stderr.journal => LogFormat::Compact,
        LogFormat::Auto => LogFormat::Json,
        settled => settled,
    };
    Log { format, level: log.level.clone() }
}

/// Starts logging for this process. Without it events go nowhere.
pub fn init(log: &Log, role: Role) -> Result<(), TelemetryError> {
    let (filter, origin) = match std::env::var("RUST_LOG") {
        Ok(filter) if !filter.trim().is_empty() => (filter, "RUST_LOG"),
        _ => (log.level.clone(), "[log] level"),
    };
    let filter =
        EnvFilter::builder().parse(&filter).map_err(|source| TelemetryError::Filter { filter, origin, source })?;
    start_writer()?;
    let lines = Lines {
        format: effective(log).format,
        role,
        colour: std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
    };
    tracing_subscriber::registry().with(filter).with(lines).try_init().map_err(|_| TelemetryError::Twice)
}

/// Whether [`init`] has been called.
pub fn is_on() -> bool {
    OUT.get().is_some()
}

/// Writes `text` and a line end to stderr as it is, in order with the log.
pub fn print(text: &str) {
    put(&Stderr::look(), format!("{text}\n").into_bytes());
}

/// Waits until what was logged so far is written; not for ever.
pub fn flush() {
    if let Some(out) = OUT.get() {
        let (done, written) = sync_channel(1);
        // A full queue has a reader that stalls: waiting for it is what must not happen.
        if out.queue.try_send(Job::Flush(done)).is_ok() && written.recv_timeout(FLUSH_TIMEOUT).is_err() {
            out.dropped.fetch_add(1, Relaxed);
        }
    }
}

/// What descriptor 2 is at the moment.
#[derive(Clone, Copy, Debug, Default)]
struct Stderr {
    terminal: bool,
    journal: bool,
    /// A file or memory file: writing to it does not wait for anyone.
    file: bool,
}

impl Stderr {
    fn look() -> Stderr {
        let Ok(stat) = fstat(std::io::stderr()) else { return Stderr::default() };
        let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
        let journal = std::env::var("JOURNAL_STREAM").ok();
        Stderr {
            terminal: kind == SFlag::S_IFCHR && std::io::stderr().is_terminal(),
            journal: journal.is_some_and(|stream| is_stream(&stream, stat.st_dev, stat.st_ino)),
            file: kind == SFlag::S_IFREG,
        }
    }
}

/// `JOURNAL_STREAM` is "device:inode" of the stream to the journal; a shell below a service inherits the name but not the stream.
fn is_stream(text: &str, device: u64, inode: u64) -> bool {
    text.split_once(':').is_some_and(|(d, i)| d.parse() == Ok(device) && i.parse() == Ok(inode))
}

enum Job {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

struct Out {
    queue: SyncSender<Job>,
    /// Bytes of the lines in the queue.
    waiting: AtomicUsize,
    dropped: AtomicU64,
}

static OUT: OnceLock<Out> = OnceLock::new();

impl Out {
    /// Queues a line if there is room for it.
    fn queue(&self, line: Vec<u8>) {
        let bytes = line.len();
        let fits = self.waiting.fetch_add(bytes, Relaxed).saturating_add(bytes) <= QUEUE_BYTES;
        if !fits || self.queue.try_send(Job::Line(line)).is_err() {
            self.waiting.fetch_sub(bytes, Relaxed);
            self.dropped.fetch_add(1, Relaxed);
        }
    }
}

fn put(stderr: &Stderr, line: Vec<u8>) {
    match OUT.get() {
        // At once: a crash a moment later must not take the last lines along.
        Some(_) if stderr.file => write(&mut std::io::stderr(), &line),
        Some(out) => out.queue(line),
        None => write(&mut std::io::stderr(), &line),
    }
}

fn start_writer() -> Result<(), TelemetryError> {
    let (queue, jobs) = sync_channel(QUEUE);
    let out = Out { queue, waiting: AtomicUsize::new(0), dropped: AtomicU64::new(0) };
    if OUT.set(out).is_err() {
        return Err(TelemetryError::Twice);
    }
    // Signals are for the threads that handle them, and this one is born before those have set their masks.
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK).ok();
    let started = std::thread::Builder::new().name("log".into()).stack_size(128 * 1024).spawn(move || {
        // Set a moment ago.
        if let Some(out) = OUT.get() {
            write_jobs(&jobs, &mut std::io::stderr(), out);
        }
    });
    if let Some(before) = before {
        // Cannot fail: the mask came from the kernel a moment ago.
        before.thread_set_mask().ok();
    }
    started.map(drop).map_err(TelemetryError::Thread)
}

fn write_jobs(jobs: &Receiver<Job>, to: &mut impl Write, out: &Out) {
    while let Ok(job) = jobs.recv() {
        match job {
            Job::Line(line) => {
                write(to, &line);
                out.waiting.fetch_sub(line.len(), Relaxed);
            }
            // Who waited in vain has gone.
            Job::Flush(done) => drop(done.send(())),
        }
        let lost = out.dropped.swap(0, Relaxed);
        if lost > 0 {
            write(to, format!("{lost} log lines dropped: stderr was not read in time\n").as_bytes());
        }
    }
}

/// A log that nobody can read any more is no reason to stop serving, and there is nowhere to say so.
fn write(to: &mut impl Write, line: &[u8]) {
    to.write_all(line).and_then(|()| to.flush()).ok();
}

struct Lines {
    format: LogFormat,
    role: Role,
    colour: bool,
}

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Lines {
    fn on_new_span(&self, attributes: &span::Attributes<'_>, id: &span::Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            let mut fields = Fields::default();
            attributes.record(&mut fields);
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &span::Id, values: &span::Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &tracing::Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        fields.put("pid", std::process::id().into());
        if let Role::Worker(generation) = self.role {
            fields.put("generation", generation.0.into());
        }
        for span in context.event_scope(event).into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(of_span) = span.extensions().get::<Fields>() {
                fields.lay_over(of_span);
            }
        }
        event.record(&mut fields);
        let stderr = Stderr::look();
        let look = Look { format: self.format, colour: self.colour && stderr.terminal, journal: stderr.journal };
        let meta = event.metadata();
        let line = Line { time: SystemTime::now(), level: *meta.level(), target: meta.target(), fields };
        put(&stderr, line.render(look).into_bytes());
    }
}

/// When something was last said that may happen often.
#[derive(Debug, Default)]
pub struct Seldom(Option<Instant>);

impl Seldom {
    /// Whether it may be said again.
    pub fn again(&mut self) -> bool {
        let now = Instant::now();
        let again = self.0.is_none_or(|last| now.duration_since(last) >= SELDOM);
        if again {
            self.0 = Some(now);
        }
        again
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_stream_is_told_from_an_inherited_name() {
        assert!(is_stream("8:1234", 8, 1234));
        assert!(!is_stream("8:1234", 8, 1235));
        assert!(!is_stream("nonsense", 8, 1235));
    }

    #[test]
    fn what_was_dropped_is_told_once() {
        let (out, jobs) = out(8);
        out.queue(b"one\n".to_vec());
        out.queue(b"two\n".to_vec());
        out.dropped.store(3, Relaxed);
        let text = written(&out, &jobs);
        assert_eq!(text, "one\n3 log lines dropped: stderr was not read in time\ntwo\n");
    }

    fn out(lines: usize) -> (Out, Receiver<Job>) {
        let (queue, jobs) = sync_channel(lines);
        (Out { queue, waiting: AtomicUsize::new(0), dropped: AtomicU64::new(0) }, jobs)
    }

    /// What waits, written.
    fn written(out: &Out, jobs: &Receiver<Job>) -> String {
        let (sender, rest) = sync_channel(QUEUE);
        jobs.try_iter().for_each(|job| sender.try_send(job).ok().unwrap());
        drop(sender);
        let mut to = Vec::new();
        write_jobs(&rest, &mut to, out);
        String::from_utf8(to).unwrap()
    }

    #[test]
    fn long_lines_for_a_slow_reader_are_dropped_by_their_bytes() {
        let (out, jobs) = out(QUEUE);
        let line = vec![b'x'; QUEUE_BYTES / 10];
        for _ in 0..25 {
            out.queue(line.clone());
        }
        assert_eq!((out.waiting.load(Relaxed), out.dropped.load(Relaxed)), (10 * line.len(), 15));
        assert!(written(&out, &jobs).contains("15 log lines dropped"));
        // There is room again, but for one that is too long by itself.
        out.queue(b"short\n".to_vec());
        out.queue(vec![b'x'; QUEUE_BYTES + 1]);
        assert_eq!((out.waiting.load(Relaxed), out.dropped.load(Relaxed)), (6, 1));
    }

    #[test]
    fn a_reader_that_went_away_ends_nothing() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        drop(reader);
        write(&mut writer, b"nobody hears this\n");
    }

    #[test]
    fn an_explicit_format_stays() {
        let log = Log { format: LogFormat::Pretty, level: "info".into() };
        assert_eq!(effective(&log), log);
        assert_ne!(effective(&Log::default()).format, LogFormat::Auto);
    }
}
