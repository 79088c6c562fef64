//! Counting: what the path of a read pays for.
//!
//! Two generations of counts. When the younger is full the older is forgotten, if nobody has taken it, and the younger
//! takes its place: so the oldest goes first, in one step, and no read pays for a search.
//!
//! # Invariant
//!
//! What was counted and neither taken nor told as dropped is here: no read is lost between.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::format::read_log::Dropped;
use crate::model::clock::Timestamp;

/// What a count costs in a full table of twice as many places: key, count and the table's own byte.
const COUNT_BYTES: usize = 2 * (size_of::<(Key, Count)>() + 1);
/// Of the log's memory a generation takes a tenth: there are two, and half as much is two that wait to be written. So an
/// object has room for all of one, unless paths are long ([`super::batch`]).
const PART: usize = 10;

/// What is counted apart: which file of which view, and who read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The slot of the view.
    pub slot: u32,
    /// The place among the files of its bundle.
    pub row: u32,
    /// The user.
    pub uid: u32,
}

/// How much was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) first: Timestamp,
    pub(super) last: Timestamp,
    pub(super) reads: u64,
    pub(super) bytes: u64,
}

/// What a read was to the counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Counted {
    /// The first of all.
    First,
    /// The one with which they became many.
    Many,
    /// Any other.
    Another,
}

/// All that was counted until some moment.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    /// By view and row.
    pub(super) counts: Vec<(Key, Count)>,
    pub(super) dropped: Dropped,
    /// The log's memory, which bounds a batch, too.
    pub(super) memory: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Counts {
    young: HashMap<Key, Count>,
    old: HashMap<Key, Count>,
    /// Of each generation.
    entries_max: usize,
    dropped: Dropped,
    memory: usize,
}

impl Counts {
    /// None yet, of a log that may take so many bytes.
    pub(super) fn new(memory: usize) -> Self {
        let entries_max = (memory / PART / COUNT_BYTES).max(1);
        Self { young: HashMap::new(), old: HashMap::new(), entries_max, dropped: Dropped::default(), memory }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.young.is_empty() && self.old.is_empty()
    }

    /// Whether they should be taken soon: one more generation, and the oldest are dropped.
    pub(super) fn are_many(&self) -> bool {
        !self.old.is_empty()
    }

    pub(super) fn count(&mut self, key: Key, bytes: u64, now: Timestamp) -> Counted {
        let is_full = self.young.len() >= self.entries_max;
        match self.young.entry(key) {
            Entry::Occupied(mut found) => {
                found.get_mut().add(Count { first: now, last: now, reads: 1, bytes });
                return Counted::Another;
            }
            Entry::Vacant(place) if !is_full => {
                place.insert(Count { first: now, last: now, reads: 1, bytes });
            }
            Entry::Vacant(_) => {
                let before = std::mem::replace(&mut self.old, std::mem::take(&mut self.young));
                self.dropped.reads += before.values().map(|count| count.reads).sum::<u64>();
                self.dropped.bytes += before.values().map(|count| count.bytes).sum::<u64>();
                self.young.insert(key, Count { first: now, last: now, reads: 1, bytes });
                return Counted::Many;
            }
        }
        if self.young.len() == 1 && self.old.is_empty() { Counted::First } else { Counted::Another }
    }

    /// Takes all there is.
    pub(super) fn take(&mut self) -> Taken {
        let (mut young, old) = (std::mem::take(&mut self.young), std::mem::take(&mut self.old));
        for (key, count) in old {
            young.entry(key).and_modify(|known| known.add(count)).or_insert(count);
        }
        let dropped = std::mem::take(&mut self.dropped);
        Taken { counts: young.into_iter().collect(), dropped, memory: self.memory }
    }
}

impl Count {
    fn add(&mut self, other: Self) {
        self.first = self.first.min(other.first);
        self.last = self.last.max(other.last);
        self.reads += other.reads;
        self.bytes += other.bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(row: u32) -> Key {
        Key { slot: 0, row, uid: 7 }
    }

    fn at(secs: i64) -> Timestamp {
        Timestamp { secs, nanos: 0 }
    }

    /// Counts with room for so many in each generation.
    fn room_for(entries_max: usize) -> Counts {
        let counts = Counts::new(entries_max * PART * COUNT_BYTES);
        assert_eq!(counts.entries_max, entries_max);
        counts
    }

    fn sum(taken: &Taken) -> (u64, u64) {
        let counted = taken.counts.iter().fold((0, 0), |sum, (_, count)| (sum.0 + count.reads, sum.1 + count.bytes));
        (counted.0 + taken.dropped.reads, counted.1 + taken.dropped.bytes)
    }

    #[test]
    fn reads_of_a_file_by_a_user_are_one_count() {
        let mut counts = room_for(4);
        assert_eq!(counts.count(key(1), 10, at(5)), Counted::First);
        assert_eq!(counts.count(key(1), 20, at(3)), Counted::Another, "a clock may go back");
        assert_eq!(counts.count(Key { uid: 8, ..key(1) }, 1, at(6)), Counted::Another);
        let mut taken = counts.take().counts;
        taken.sort_by_key(|(key, _)| *key);
        assert_eq!(taken[0], (key(1), Count { first: at(3), last: at(5), reads: 2, bytes: 30 }));
        assert_eq!(taken.len(), 2);
        assert!(counts.is_empty());
    }

    #[test]
    fn of_too_many_the_oldest_are_dropped_and_told_and_none_is_lost() {
        let mut counts = room_for(4);
        for row in 0..8 {
            let counted = counts.count(key(row), 10, at(row.into()));
            assert_eq!(counted == Counted::Many, row == 4, "{row}");
        }
        assert!(counts.are_many());
        assert_eq!(counts.count(key(5), 10, at(9)), Counted::Another, "known ones need no room");
        assert_eq!(counts.count(key(8), 10, at(9)), Counted::Many);
        let taken = counts.take();
        assert_eq!(taken.dropped, Dropped { reads: 4, bytes: 40 });
        assert_eq!((taken.counts.len(), sum(&taken)), (5, (10, 100)));
        assert!(taken.counts.iter().all(|(key, _)| key.row >= 4));
        assert_eq!(counts.take().dropped, Dropped::default(), "told once");
    }

    #[test]
    fn what_stands_in_both_generations_is_one_count() {
        let mut counts = room_for(2);
        for row in [1, 2, 3, 1] {
            counts.count(key(row), 1, at(row.into()));
        }
        let taken = counts.take();
        assert_eq!((taken.counts.len(), sum(&taken)), (3, (4, 4)));
    }
}
