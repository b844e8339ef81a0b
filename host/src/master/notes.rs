//! What the supervisor notes, as lines of the log.

use super::state::Note;
use crate::report::Stage;

/// Says it in the words of the documents' servers, so that people find it.
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
                tracing::info!(op = op.0, "the child's last output:\n{}", detail.trim_end());
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
        Note::Killed { generation, why } => tracing::warn!(generation = generation.0, "child killed: {why}"),
        Note::Unexpected { generation, what } => {
            tracing::warn!(generation = generation.0, "child broke the protocol: {what}")
        }
        Note::ShuttingDown { cause } => tracing::info!(%cause, "server shutting down"),
        Note::Cutting => tracing::warn!("cutting what is still open"),
    }
}
