//! What the supervisor notes, as lines of the log.

use super::state::Note;
use crate::report::Stage;

/// Says it in the words that gf and endless use, so that people find it.
pub fn log(note: &Note) {
    match note {
        Note::Reloading { op, cause } => tracing::info!(op = op.0, %cause, "server reloading"),
        // Said with what the loop knows of it.
        Note::Committed { .. } => {}
        Note::Refused { op, failure, serving } => {
            let serving = serving.map(|generation| generation.0);
            let hint = failure.hint.as_deref().unwrap_or("");
            tracing::error!(op = op.0, serving, hint, "failed to {}", failure.error);
            // What a compiler said stands on the terminal already.
            if let Some(detail) = failure.detail.as_ref().filter(|_| failure.stage != Stage::Build) {
                tracing::info!(op = op.0, "the child's last output:\n{}", end_of(detail));
            }
        }
        Note::Crashed { generation, exit, respawn_in } => match respawn_in {
            Some(wait) => tracing::error!(generation = generation.0, exit, ?wait, "child died; respawning its set"),
            None => tracing::error!(generation = generation.0, exit, "child died"),
        },
        Note::Quarantined { of, why, good } => match good {
            Some(good) => {
                tracing::error!(generation = of.0, good = good.0, "{why}: quarantined; the last good set takes over")
            }
            None => tracing::error!(generation = of.0, "{why}: quarantined; another set is looked for"),
        },
        Note::StandsIn { generation } => tracing::error!(
            generation = generation.0,
            "nothing has come up within crash.hold: every request is answered 503 until it does"
        ),
        Note::RolledBack { to, from, why } => {
            tracing::error!(to = to.0, from = from.0, "rolled back: failed to {why}; the old generation serves again")
        }
        Note::Drained { generation, report } => tracing::info!(
            generation = generation.0,
            finished = report.finished,
            lingered = report.lingered,
            cut = report.cut.total(),
            lost = report.lost,
            unanswered_pipelined = report.unanswered_pipelined,
            ms = report.ms,
            "generation drained"
        ),
        Note::NotSaved { generation, failed } => {
            tracing::warn!(generation = generation.0, plugin = failed.plugin, "failed to {}", failed.error);
        }
        Note::Killed { generation, why } => tracing::warn!(generation = generation.0, "child killed: {why}"),
        Note::Unexpected { generation, what, left_out } => {
            tracing::warn!(generation = generation.0, left_out, "child broke the protocol: {what}")
        }
        Note::ShuttingDown { cause } => tracing::info!(%cause, "server shutting down"),
        Note::Cutting => tracing::warn!("cutting what is still open"),
        Note::Hooked { hook, cause, to: Some(to) } => {
            tracing::info!(generation = to.0, %cause, "{hook} passed on to the plugins")
        }
        Note::Hooked { hook, cause, to: None } => {
            tracing::warn!(%cause, "{hook} was for the plugins, and nothing serves: nobody hears it")
        }
    }
}

/// A layout that does not fit is told in hundreds of lines, of which the last ones say what it is. The report has them all
/// (`baton reload --verbose`).
const LINES: usize = 20;

/// The last [`LINES`] of a text.
fn end_of(text: &str) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    match lines.len().checked_sub(LINES) {
        None | Some(0) => lines.join("\n"),
        Some(left_out) => format!("({left_out} lines before)\n{}", lines[left_out..].join("\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_output_the_end_is_shown() {
        let lines = |from: usize, to: usize| (from..=to).map(|n| n.to_string()).collect::<Vec<_>>().join("\n");
        assert_eq!(end_of(&(lines(1, LINES) + "\n\n")), lines(1, LINES));
        assert_eq!(end_of(&lines(1, LINES + 3)), format!("(3 lines before)\n{}", lines(4, LINES + 3)));
        assert_eq!(end_of(""), "");
    }
}
