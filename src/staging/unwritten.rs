//! Stores through mappings that were refused when the kernel wrote them back.
//!
//! Who made them is told by msync(2) or fsync(2) only, and may be gone; the kernel shows them to everybody until it needs
//! their pages for something else.
//!
//! # Invariant
//!
//! A tree with one has changes, and is not committed: the bundle would lack what everybody sees. It ends when the bytes are
//! written again or cut off, and with their file's last name.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// See the module.
#[derive(Default)]
pub(super) struct Unwritten {
    /// By inode.
    ranges: Mutex<BTreeMap<u64, Vec<Range<u64>>>>,
    /// Whether there is any: looked at by every write.
    any: AtomicBool,
}

impl Unwritten {
    /// Whether there is any.
    pub fn is_any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// An inode with one.
    pub fn first(&self) -> Option<u64> {
        self.ranges.lock().expect("no code panics while it holds the ranges").keys().next().copied()
    }

    /// Bytes of `ino` were refused.
    pub fn refused(&self, ino: u64, range: Range<u64>) {
        let mut ranges = self.ranges.lock().expect("no code panics while it holds the ranges");
        ranges.entry(ino).or_default().push(range);
        self.any.store(true, Ordering::Release);
    }

    /// Bytes of `ino` were written, or are no part of it any more.
    pub fn written(&self, ino: u64, written: &Range<u64>) {
        if !self.is_any() {
            return;
        }
        let mut ranges = self.ranges.lock().expect("no code panics while it holds the ranges");
        if let Some(left) = ranges.remove(&ino) {
            let left: Vec<_> = left.into_iter().flat_map(|range| without(range, written)).collect();
            if !left.is_empty() {
                ranges.insert(ino, left);
            }
        }
        self.any.store(!ranges.is_empty(), Ordering::Release);
    }
}

/// What of `range` is not in `taken`.
fn without(range: Range<u64>, taken: &Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let before = range.start..range.end.min(taken.start);
    let after = range.start.max(taken.end)..range.end;
    [before, after].into_iter().filter(|part| !part.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_refused_ends_when_all_of_it_was_written_or_cut_off() {
        let unwritten = Unwritten::default();
        unwritten.refused(5, 100..200);
        unwritten.refused(5, 300..400);
        unwritten.refused(6, 0..10);
        for (ino, written) in [(5, 120..150), (5, 0..120), (7, 0..1000), (5, 150..200)] {
            unwritten.written(ino, &written);
            assert_eq!(unwritten.first(), Some(5), "{written:?}");
        }
        unwritten.written(5, &(250..u64::MAX));
        assert_eq!(unwritten.first(), Some(6));
        unwritten.written(6, &(0..u64::MAX));
        assert!(!unwritten.is_any() && unwritten.first().is_none());
    }
}
