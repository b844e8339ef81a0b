//! One line on a terminal that says what is waited for. None elsewhere; it never decides anything.

use std::future::Future;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use crate::client::Client;
use crate::report::{Status, Verb};

/// How often the line is drawn, and the status asked for.
const BEAT: Duration = Duration::from_millis(100);
/// What is over sooner needs no line.
const PATIENCE: Duration = Duration::from_millis(200);
const FRAMES: [char; 10] = ['⠋', '⠙', '⠹', '⠸', '⠼', '⠴', '⠦', '⠧', '⠇', '⠏'];

/// Awaits `work`, and says meanwhile on a terminal how `verb` stands.
pub async fn show<T>(quiet: bool, client: &Client, verb: Verb, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    if quiet || !std::io::stderr().is_terminal() {
        return work.await;
    }
    let begun = Instant::now();
    let line = async {
        let mut beat = tokio::time::interval(BEAT);
        for frame in FRAMES.iter().cycle() {
            beat.tick().await;
            if begun.elapsed() < PATIENCE {
                continue;
            }
            // The work itself tells if the master is gone.
            let phase = client.status().await.ok().map(|status: Status| super::render::phase(&status, verb));
            draw(&line_of(*frame, verb, phase.as_deref(), begun.elapsed()));
        }
    };
    let result = tokio::select! {
        result = &mut work => result,
        () = line => work.await,
    };
    draw("");
    result
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
        assert_eq!(show(true, &client, Verb::Reload, async { 7 }).await, 7);
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
}
