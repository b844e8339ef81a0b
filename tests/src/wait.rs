//! Waiting with a deadline. The only place where the tests sleep: between two looks at a condition, never instead of one.

use std::time::{Duration, Instant};

/// For what takes as long as a machine under load takes.
pub const LONG: Duration = Duration::from_secs(60);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(3);

/// What `look` gives as soon as it gives something; panics, naming `what`, if it does not within `limit`.
#[track_caller]
pub fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    try_until(limit, &mut look).unwrap_or_else(|| panic!("waited {limit:?} in vain for {what}"))
}

/// As [`until`], but nothing if the time runs out.
pub fn try_until<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(PAUSE);
    }
}

/// Spends `time`: for what is about the passing of time itself, such as the spacing of triggers.
pub fn pass(time: Duration) {
    std::thread::sleep(time);
}
