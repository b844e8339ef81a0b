//! Says what is waited for, and until when: one line in place on a terminal, else a line now and then, so that a script that
//! waits shows why. It never decides anything.

use std::cell::Cell;
use std::future::Future;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use crate::client::Client;
use crate::report::Verb;

/// How often the line on a terminal is drawn, and the status asked for.
const BEAT: Duration = Duration::from_millis(100);
/// What is over sooner needs no line on a terminal.
const PATIENCE: Duration = Duration::from_millis(200);
/// The same elsewhere, where lines stay; and how often the status is asked for there.
const CALM_PATIENCE: Duration = Duration::from_secs(1);
/// Elsewhere what has not changed is said again after this long.
const REMINDER: Duration = Duration::from_secs(30);
const FRAMES: [char; 10] = ['⠋', '⠙', '⠹', '⠸', '⠼', '⠴', '⠦', '⠧', '⠇', '⠏'];

/// What is waited for, and until when.
#[derive(Clone, Copy, Debug)]
pub struct Waiting<'a> {
    pub verb: Verb,
    /// Set anew when the next part begins.
    pub deadline: &'a Cell<Instant>,
    /// stdout has JSON alone; a terminal shows nothing besides.
    pub json: bool,
}

/// Awaits `work`, and says meanwhile on stderr how it stands.
pub async fn show<T>(client: &Client, waiting: Waiting<'_>, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    match (std::io::stderr().is_terminal(), waiting.json) {
        (true, true) => work.await,
        (true, false) => {
            let result = tokio::select! {
                result = &mut work => result,
                () = animate(client, waiting.verb) => work.await,
            };
            draw("");
            result
        }
        (false, _) => tokio::select! {
            result = &mut work => result,
            () = report(client, waiting, crate::telemetry::print) => work.await,
        },
    }
}

/// Draws the line until it is dropped.
async fn animate(client: &Client, verb: Verb) {
    let begun = Instant::now();
    let mut beat = tokio::time::interval(BEAT);
    for frame in FRAMES.iter().cycle() {
        beat.tick().await;
        if begun.elapsed() < PATIENCE {
            continue;
        }
        let phase = phase(client, verb).await;
        draw(&line_of(*frame, verb, phase.as_ref().map(|phase| phase.whole.as_str()), begun.elapsed()));
    }
}

/// Says a line whenever something else is waited for, and now and then.
async fn report(client: &Client, waiting: Waiting<'_>, say: impl Fn(&str)) {
    let begun = Instant::now();
    let mut beat = tokio::time::interval(CALM_PATIENCE);
    beat.tick().await;
    let mut speech = Speech::default();
    loop {
        beat.tick().await;
        // The work itself fails if the master is gone.
        let Some(phase) = phase(client, waiting.verb).await else { continue };
        let now = Instant::now();
        if speech.is_due(&phase.what, now) {
            let left = waiting.deadline.get().saturating_duration_since(now);
            say(&said(waiting.verb, &phase.whole, now - begun, left));
        }
    }
}

/// What was said last without a terminal, and when.
#[derive(Debug, Default)]
struct Speech(Option<(String, Instant)>);

impl Speech {
    /// Returns whether `what` is to be said now.
    fn is_due(&mut self, what: &str, now: Instant) -> bool {
        let due = match &self.0 {
            Some((last, at)) => last != what || now.duration_since(*at) >= REMINDER,
            None => true,
        };
        if due {
            self.0 = Some((what.into(), now));
        }
        due
    }
}

async fn phase(client: &Client, verb: Verb) -> Option<super::render::Phase> {
    let status = client.status().await.ok()?;
    super::printable::of(&status).ok().map(|status| super::render::phase(&status, verb))
}

fn said(verb: Verb, phase: &str, since: Duration, left: Duration) -> String {
    let (since, left) = (super::render::duration(since), super::render::duration(left));
    format!("baton: {verb} waits since {since}: {phase}; gives up in {left}")
}

fn line_of(frame: char, verb: Verb, phase: Option<&str>, since: Duration) -> String {
    let seconds = since.as_secs_f64();
    match phase {
        Some(phase) => format!("{frame} {verb}: {phase} ({seconds:.1} s)"),
        None => format!("{frame} {verb} ({seconds:.1} s)"),
    }
}

/// In place of what stood there. A terminal that cannot be written to shows nothing, and that is all.
fn draw(line: &str) {
    let mut stderr = std::io::stderr().lock();
    write!(stderr, "\r\x1b[2K{line}").and_then(|()| stderr.flush()).ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_work_s_word_is_passed_on_without_a_terminal() {
        let client = Client::new(std::path::Path::new("/nowhere"));
        let deadline = Cell::new(Instant::now());
        let waiting = Waiting { verb: Verb::Reload, deadline: &deadline, json: true };
        assert_eq!(show(&client, waiting, async { 7 }).await, 7);
    }

    #[test]
    fn the_line_says_what_is_waited_for_and_how_long() {
        let since = Duration::from_millis(1234);
        assert_eq!(
            line_of('⠋', Verb::Reload, Some("loading generation 8"), since),
            "⠋ reload: loading generation 8 (1.2 s)"
        );
        assert_eq!(line_of('⠋', Verb::Shutdown, None, since), "⠋ shutdown (1.2 s)");
    }

    #[test]
    fn without_a_terminal_the_line_says_until_when() {
        let (since, left) = (Duration::from_secs(3), Duration::from_secs(117));
        assert_eq!(
            said(Verb::Reload, "loading generation 8", since, left),
            "baton: reload waits since 3 s: loading generation 8; gives up in 117 s"
        );
    }

    #[test]
    fn without_a_terminal_a_change_is_said_at_once_and_all_else_now_and_then() {
        let (mut speech, start) = (Speech::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(speech.is_due("a", at(1)));
        assert!((2..31).all(|second| !speech.is_due("a", at(second))));
        assert!(speech.is_due("a", at(31)));
        assert!(speech.is_due("b", at(32)));
        assert!(!speech.is_due("b", at(33)));
    }
}
