//! Events of children, which the loop takes before everything else, but not for ever: a plugin that asks for a reload in a loop makes as
//! many as it likes, and a signal or a request of the operator must have its turn.

use std::future::poll_fn;
use std::task::{Poll, ready};

use tokio::sync::mpsc;

/// Events in a row, then everything else has a turn.
const MOST_IN_A_ROW: usize = 32;

pub struct FairEvents<T> {
    receiver: mpsc::Receiver<T>,
    in_a_row: usize,
}

impl<T> FairEvents<T> {
    pub fn new(receiver: mpsc::Receiver<T>) -> FairEvents<T> {
        FairEvents { receiver, in_a_row: 0 }
    }

    /// Returns the next event, as first branch of a biased select. At the turn of everything else it is not ready once, whatever has
    /// come, and asks to be polled again, so that nothing is waited for if there is nothing else to do.
    pub async fn recv(&mut self) -> Option<T> {
        poll_fn(|cx| {
            if self.in_a_row >= MOST_IN_A_ROW {
                self.in_a_row = 0;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let polled = self.receiver.poll_recv(cx);
            if polled.is_pending() {
                self.in_a_row = 0;
            }
            let event = ready!(polled);
            self.in_a_row += 1;
            Poll::Ready(event)
        })
        .await
    }

    /// Whether none has come that was not taken.
    pub fn is_empty(&self) -> bool {
        self.receiver.is_empty()
    }

    /// For what takes all that has come.
    pub fn receiver(&mut self) -> &mut mpsc::Receiver<T> {
        &mut self.receiver
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the loop does, with an event that is always there and `other` things to do; returns the events before each of those.
    async fn run_loop(other: usize) -> Vec<usize> {
        let (sender, receiver) = mpsc::channel(256);
        let mut events = FairEvents::new(receiver);
        let (others, mut things) = mpsc::channel(other);
        for _ in 0..other {
            others.try_send(()).unwrap();
        }
        let (mut turns, mut count) = (Vec::new(), 0);
        while turns.len() < other && count < 100 * MOST_IN_A_ROW {
            while sender.try_send(()).is_ok() {}
            tokio::select! {
                biased;
                Some(()) = events.recv() => count += 1,
                Some(()) = things.recv() => turns.push(std::mem::take(&mut count)),
            }
        }
        turns
    }

    #[tokio::test]
    async fn events_without_end_leave_everything_else_its_turn() {
        let turns = run_loop(20).await;
        assert_eq!(turns.len(), 20, "the other things starved: {turns:?}");
        // tokio's own budget for a task may put off a turn to the next round.
        assert!(turns.iter().all(|events| *events <= 2 * MOST_IN_A_ROW), "{turns:?}");
        assert!(turns.iter().all(|events| *events >= MOST_IN_A_ROW), "events come first: {turns:?}");
    }

    #[tokio::test]
    async fn events_go_on_if_there_is_nothing_else_to_do() {
        let (sender, receiver) = mpsc::channel(256);
        let mut events = FairEvents::new(receiver);
        for number in 0..256 {
            sender.try_send(number).unwrap();
        }
        for number in 0..256 {
            assert_eq!(events.recv().await, Some(number));
        }
    }
}
