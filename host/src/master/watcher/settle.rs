//! Changes that belong together: over once it was quiet for a while, and in any case some time after the first, so that whoever
//! writes for ever keeps nobody waiting for ever. Knows no clock: of [`std::time::Instant`] or of a state machine's own time.

use std::ops::Add;
use std::time::Duration;

/// When a burst is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// From the last change.
    pub quiet: Duration,
    /// From the first.
    pub most: Duration,
}

#[derive(Clone, Copy, Debug)]
pub struct Settle<T> {
    first_and_last: Option<(T, T)>,
}

impl<T> Default for Settle<T> {
    fn default() -> Settle<T> {
        Settle { first_and_last: None }
    }
}

impl<T: Copy + Ord + Add<Duration, Output = T>> Settle<T> {
    pub fn note(&mut self, at: T) {
        let (first, last) = self.first_and_last.unwrap_or((at, at));
        self.first_and_last = Some((first, last.max(at)));
    }

    pub fn last(&self) -> Option<T> {
        self.first_and_last.map(|(_, last)| last)
    }

    /// When it is over, if nothing more comes.
    pub fn due(&self, window: Window) -> Option<T> {
        self.first_and_last.map(|(first, last)| (last + window.quiet).min(first + window.most))
    }

    pub fn clear(&mut self) {
        self.first_and_last = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_ends_when_it_is_quiet_and_an_endless_one_is_cut() {
        let ms = Duration::from_millis;
        let window = Window { quiet: ms(50), most: ms(1000) };
        let mut settle = Settle::default();
        assert_eq!((settle.due(window), settle.last()), (None, None));
        settle.note(ms(10));
        settle.note(ms(40));
        // Told late.
        settle.note(ms(30));
        assert_eq!((settle.due(window), settle.last()), (Some(ms(90)), Some(ms(40))));
        settle.clear();
        assert_eq!(settle.due(window), None);
        for at in (0..5000).step_by(20) {
            settle.note(ms(at));
        }
        assert_eq!(settle.due(window), Some(ms(1000)));
    }
}
