//! Finds the fragment in a request's target: `GET /a#b`. RFC 9112 3.2 has none there, and http's `Uri` cuts it off without a word,
//! so that another server, which does not, sees another target.
//!
//! Owns where in a connection's bytes a `#` has come, of those that hyper may still have to parse. hyper parses in place, so the
//! end of a target is such a place exactly if a `#` followed it. Almost no head has one: then this costs a look at the bytes as
//! they come, and no memory.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Mutex, MutexGuard, PoisonError};

use memchr::{memchr, memchr_iter};

/// By the connection's task alone.
#[derive(Debug, Default)]
pub struct Fragments {
    /// Bytes that went into hyper's buffer.
    fed: AtomicU64,
    is_marked: AtomicBool,
    marks: Mutex<Marks>,
}

/// A bit for each of the last bytes that were fed: whether it is a `#`. A ring.
#[derive(Debug, Default)]
struct Marks(Box<[u64]>);

impl Fragments {
    /// Bytes go into hyper's buffer, which holds at most `room`. Those before `skip` are known to belong to a body.
    #[inline]
    pub fn note(&self, bytes: &[u8], skip: usize, room: usize) {
        if self.is_marked() || memchr(b'#', &bytes[skip..]).is_some() {
            self.mark(bytes, skip, room);
        }
        self.fed.store(self.fed.load(Relaxed).wrapping_add(bytes.len() as u64), Relaxed);
    }

    #[cold]
    fn mark(&self, bytes: &[u8], skip: usize, room: usize) {
        let fed = self.fed.load(Relaxed);
        let mut marks = self.lock();
        if marks.0.is_empty() {
            marks.0 = vec![0; room.max(64).next_power_of_two() / 64 * 2].into();
        }
        marks.clear(fed, bytes.len());
        memchr_iter(b'#', &bytes[skip..]).for_each(|at| marks.set(fed + (skip + at) as u64));
        self.is_marked.store(true, Relaxed);
    }

    /// Whether there is any.
    #[inline]
    pub fn is_marked(&self) -> bool {
        self.is_marked.load(Relaxed)
    }

    /// Whether a `#` is the first of the last `behind` bytes that were fed.
    pub fn is_at(&self, behind: usize) -> bool {
        let fed = self.fed.load(Relaxed);
        let marks = self.lock();
        behind > 0 && behind <= marks.len() && fed.checked_sub(behind as u64).is_some_and(|at| marks.get(at))
    }

    /// Another buffer takes the place of the one before, and is fed anew.
    pub fn restart(&self) {
        *self.lock() = Marks::default();
        self.is_marked.store(false, Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Marks> {
        // Bits are never half changed.
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Marks {
    /// How many bytes it knows of: a power of two, or none.
    fn len(&self) -> usize {
        self.0.len() * 64
    }

    /// The word of a byte, and its bit there.
    fn place(&self, at: u64) -> (usize, u64) {
        let at = at as usize & (self.len() - 1);
        (at / 64, 1 << (at % 64))
    }

    fn get(&self, at: u64) -> bool {
        let (word, bit) = self.place(at);
        self.0[word] & bit != 0
    }

    fn set(&mut self, at: u64) {
        let (word, bit) = self.place(at);
        self.0[word] |= bit;
    }

    fn clear(&mut self, from: u64, len: usize) {
        let end = from + len.min(self.len()) as u64;
        let mut at = from;
        while at < end {
            let (word, bit) = self.place(at);
            if bit == 1 && end - at >= 64 {
                self.0[word] = 0;
                at += 64;
            } else {
                self.0[word] &= !bit;
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(fragments: &Fragments) -> Vec<usize> {
        (0..1000).filter(|behind| fragments.is_at(*behind)).collect()
    }

    #[test]
    fn marks_are_where_the_bytes_have_come() {
        let fragments = Fragments::default();
        fragments.note(b"GET /a", 0, 100);
        assert!(!fragments.is_marked() && found(&fragments).is_empty());
        fragments.note(b"#b H", 0, 100);
        assert!(fragments.is_marked());
        assert_eq!(found(&fragments), [4]);
        fragments.note(b"x#x#", 2, 100);
        assert_eq!(found(&fragments), [1, 8], "what belongs to a body is none");
        fragments.restart();
        assert!(!fragments.is_marked() && found(&fragments).is_empty());
    }

    #[test]
    fn marks_of_the_last_bytes_are_kept_in_bounded_memory() {
        let fragments = Fragments::default();
        let mut bytes = Vec::new();
        for at in 0..3000_usize {
            let piece: Vec<u8> = (0..at % 90).map(|byte| if (at * 7 + byte) % 5 == 0 { b'#' } else { b'x' }).collect();
            fragments.note(&piece, 0, 100);
            bytes.extend(piece);
            let behind = |behind: &usize| bytes[bytes.len() - behind] == b'#';
            let expected: Vec<usize> = (1..=100.min(bytes.len())).filter(behind).collect();
            let found: Vec<usize> = found(&fragments).into_iter().filter(|behind| *behind <= 100).collect();
            assert_eq!(found, expected, "after {} bytes", bytes.len());
        }
        assert_eq!(fragments.lock().len(), 256);
    }
}
