//! Sweeps: a reader that goes through small files as they lie in a pack finds them fetched, many to a request.
//!
//! Small files share blocks of 64 KiB, and a directory's blocks lie side by side (format.md, Pack). Asked for one by one a
//! copy of a tree costs a round trip a block. [`Sweeps`] sees which records of which pack are asked for, and answers with
//! a window: bytes of the pack, up to [`WINDOW_BYTES_MAX`], of which one request fetches all. Windows grow while the reader
//! goes on; the next is on its way when half of one is read.
//!
//! It performs no I/O and reads no clock; a window's bytes are as the store gave them, and whoever takes a record out of
//! them proves it.
//!
//! # Invariants
//!
//! 1. The first record of a sweep is fetched by itself, unless earlier sweeps were read: who reads one small file here and
//!    one there pays for those.
//! 2. Windows together are at most `bytes_max`; without room there is none, and each record is fetched by itself.
//! 3. Behind the end of a pack nothing is asked for twice: a window that came short is the last.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::OnceCell;

use crate::model::id::PackId;

/// Stored bytes of the first window.
const WINDOW_BYTES_MIN: u64 = 256 << 10;
/// Stored bytes fetched in one request.
const WINDOW_BYTES_MAX: u64 = 4 << 20;
/// Bytes that a reader may leave out and still go on.
const GAP_BYTES_MAX: u64 = 128 << 10;
/// Sweeps that are remembered.
const SWEEPS_MAX: usize = 64;
/// A sweep that none of the last so many records belonged to is not being read.
const IDLE_RECORDS: u64 = 32;
/// Windows of a sweep: the one that is read, perhaps one before it that a record begins in, and the next.
const WINDOWS_MAX: usize = 3;

/// Bytes of a pack that are fetched together; fewer where the pack ends, none where that failed.
#[derive(Debug)]
pub struct Window {
    /// The pack.
    pub pack: PackId,
    /// The bytes asked for.
    pub bytes: Range<u64>,
    /// What came.
    pub fetched: OnceCell<Option<Bytes>>,
}

impl Window {
    fn new(pack: PackId, bytes: Range<u64>) -> Arc<Self> {
        Arc::new(Self { pack, bytes, fetched: OnceCell::new() })
    }

    /// What came of `range`.
    fn part(&self, range: &Range<u64>) -> Option<Bytes> {
        let bytes = self.fetched.get()?.as_ref()?;
        let offset = |at: u64| (at.clamp(self.bytes.start, self.bytes.end) - self.bytes.start) as usize;
        (offset(range.end) <= bytes.len()).then(|| bytes.slice(offset(range.start)..offset(range.end)))
    }

    fn len(&self) -> u64 {
        self.bytes.end - self.bytes.start
    }

    /// Whether the pack ended in it, or nothing came.
    fn is_last(&self) -> bool {
        self.fetched.get().is_some_and(|bytes| bytes.as_ref().is_none_or(|bytes| (bytes.len() as u64) < self.len()))
    }
}

/// One reader's way through a pack.
#[derive(Debug)]
struct Sweep {
    pack: PackId,
    /// End of the farthest record that was asked for.
    expected: u64,
    /// In the order of the pack, each beginning where the one before ends.
    windows: VecDeque<Arc<Window>>,
    /// Length of the newest window.
    size: u64,
    /// Number of the last record asked for.
    seen: u64,
}

/// What to do for a record.
#[derive(Debug, Default)]
pub struct Plan {
    /// Where the record comes from, one window after the other; without any it is fetched by itself.
    pub windows: Vec<Arc<Window>>,
    /// To be fetched already.
    pub ahead: Option<Arc<Window>>,
}

impl Plan {
    /// The record `range` of the pack, if it came whole. A copy: a slice would keep whole windows as long as it lives.
    pub fn record(&self, range: &Range<u64>) -> Option<Bytes> {
        let parts: Vec<_> = self.windows.iter().map(|window| window.part(range)).collect::<Option<_>>()?;
        let record = parts.concat();
        (record.len() as u64 == range.end - range.start).then(|| record.into())
    }
}

/// The sweeps of all readers, least recently read first.
#[derive(Debug)]
pub struct Sweeps {
    sweeps: Vec<Sweep>,
    /// Records asked for.
    asked: u64,
    /// Length of the first window of a sweep that begins, by what became of earlier ones; 0 for none.
    trust: u64,
    bytes_max: u64,
}

impl Sweeps {
    /// Sweeps that may hold so many bytes together.
    pub fn new(bytes_max: u64) -> Self {
        Self { sweeps: Vec::new(), asked: 0, trust: 0, bytes_max }
    }

    /// A record of a pack is asked for, and is in no cache.
    pub fn observe(&mut self, pack: PackId, record: Range<u64>) -> Plan {
        self.asked += 1;
        let goes_on = |sweep: &Sweep| {
            let is_near = sweep.expected <= record.start && record.start - sweep.expected <= GAP_BYTES_MAX;
            sweep.pack == pack && (is_near || sweep.window_of(record.start).is_some())
        };
        let found = self.sweeps.iter().rposition(goes_on);
        let mut sweep = match found {
            Some(at) => self.sweeps.remove(at),
            None => self.begin(pack, record.start),
        };
        sweep.seen = self.asked;
        sweep.expected = sweep.expected.max(record.end);
        let plan = if found.is_none() && sweep.size == 0 { Plan::default() } else { self.go_on(&mut sweep, record) };
        self.sweeps.push(sweep);
        plan
    }

    /// A sweep that may be none: trust is given up for it, and comes back when it goes on.
    fn begin(&mut self, pack: PackId, start: u64) -> Sweep {
        if self.sweeps.len() >= SWEEPS_MAX {
            self.sweeps.remove(0);
        }
        let size = self.trust / 2;
        self.trust = if size >= WINDOW_BYTES_MIN { size } else { 0 };
        Sweep { pack, expected: start, windows: VecDeque::new(), size, seen: 0 }
    }

    fn go_on(&mut self, sweep: &mut Sweep, record: Range<u64>) -> Plan {
        let Some(first) = sweep.window_of(record.start) else {
            // Nobody reads on in what was fetched before.
            sweep.windows.clear();
            let size = self.size_after(sweep);
            if size < record.end - record.start || !self.has_room(size) {
                return Plan::default();
            }
            return Plan { windows: vec![sweep.extend(record.start, size)], ahead: None };
        };
        let mut plan = Plan::default();
        let newest = sweep.windows.back().expect("it has one").clone();
        let is_half_read = record.end > newest.bytes.start + newest.len() / 2;
        let mut windows: Vec<_> = sweep.windows.iter().skip(first).cloned().collect();
        if is_half_read {
            self.trust = self.trust.max(sweep.size);
        }
        if is_half_read && !newest.is_last() {
            let size = self.size_after(sweep);
            // Where the reader is, and what comes after it: of what lies before nobody needs anything.
            sweep.windows.drain(..first);
            if self.has_room(size + sweep.bytes()) {
                plan.ahead = Some(sweep.extend(newest.bytes.end, size));
                windows.extend(plan.ahead.clone());
            }
        }
        windows.retain(|window| window.bytes.start < record.end);
        plan.windows = windows;
        plan
    }

    fn size_after(&self, sweep: &Sweep) -> u64 {
        let is_read = |sweep: &&Sweep| sweep.size > 0 && self.asked - sweep.seen < IDLE_RECORDS;
        let readers = 1 + self.sweeps.iter().filter(is_read).count();
        let share = self.bytes_max / (WINDOWS_MAX * readers) as u64;
        (sweep.size * 2).clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX).min(share)
    }

    /// Makes room for `size` bytes at the expense of who has read nothing for the longest time.
    fn has_room(&mut self, size: u64) -> bool {
        if size == 0 || size > self.bytes_max {
            return false;
        }
        let mut held: u64 = self.sweeps.iter().map(Sweep::bytes).sum();
        for sweep in &mut self.sweeps {
            if held + size <= self.bytes_max {
                break;
            }
            held -= sweep.bytes();
            sweep.windows.clear();
        }
        true
    }
}

impl Sweep {
    /// The window in which the byte `at` lies.
    fn window_of(&self, at: u64) -> Option<usize> {
        self.windows.iter().position(|window| window.bytes.contains(&at))
    }

    fn bytes(&self) -> u64 {
        self.windows.iter().map(|window| window.len()).sum()
    }

    fn extend(&mut self, start: u64, size: u64) -> Arc<Window> {
        let window = Window::new(self.pack, start..start + size);
        self.size = size;
        self.windows.push_back(window.clone());
        window
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::{IntentId, Run};

    const RECORD: u64 = 40 << 10;
    const MIB: u64 = 1 << 20;

    fn pack(seq: u32) -> PackId {
        PackId { intent: IntentId::from_parts(1, 1), run: Run(1), seq }
    }

    /// A reader of a pack of `len` bytes: counts requests and bytes, and takes each record out of what came.
    struct Store {
        len: u64,
        requests: u64,
        bytes: u64,
    }

    impl Store {
        fn fetch(&mut self, window: &Window) {
            if window.fetched.get().is_none() {
                let end = window.bytes.end.min(self.len);
                let came = end.saturating_sub(window.bytes.start);
                self.requests += 1;
                self.bytes += came;
                window.fetched.set((came > 0).then(|| Bytes::from(vec![0; came as usize]))).unwrap();
            }
        }

        fn read(&mut self, sweeps: &mut Sweeps, pack: PackId, record: Range<u64>) {
            let plan = sweeps.observe(pack, record.clone());
            let held: u64 = sweeps.sweeps.iter().map(Sweep::bytes).sum();
            assert!(held <= sweeps.bytes_max, "{held} bytes in windows");
            for window in plan.windows.iter().chain(&plan.ahead) {
                self.fetch(window);
            }
            if plan.windows.is_empty() || plan.record(&record).is_none() {
                self.requests += 1;
                self.bytes += record.end - record.start;
            }
        }
    }

    fn store(len: u64) -> Store {
        Store { len, requests: 0, bytes: 0 }
    }

    #[test]
    fn a_reader_in_order_makes_few_requests_and_fetches_nothing_twice() {
        let (mut sweeps, mut store) = (Sweeps::new(12 * MIB), store(16 * MIB));
        for at in (0..16 * MIB - RECORD).step_by(RECORD as usize) {
            store.read(&mut sweeps, pack(1), at..at + RECORD);
        }
        assert!(store.requests <= 12, "{} requests", store.requests);
        assert!(store.bytes <= 16 * MIB + RECORD, "{} bytes", store.bytes);
    }

    #[test]
    fn two_readers_of_one_pack_go_on_beside_each_other() {
        let (mut sweeps, mut store) = (Sweeps::new(24 * MIB), store(16 * MIB));
        for at in (0..7 * MIB).step_by(RECORD as usize) {
            store.read(&mut sweeps, pack(1), at..at + RECORD);
            store.read(&mut sweeps, pack(1), 8 * MIB + at..8 * MIB + at + RECORD);
        }
        assert!(store.requests <= 16, "{} requests", store.requests);
    }

    #[test]
    fn a_reader_of_single_records_fetches_those() {
        let (mut sweeps, mut store) = (Sweeps::new(12 * MIB), store(64 * MIB));
        for n in 0..40u64 {
            let at = (n * 37 % 64) * MIB;
            store.read(&mut sweeps, pack(1), at..at + RECORD);
        }
        assert_eq!((store.requests, store.bytes), (40, 40 * RECORD));
    }

    #[test]
    fn who_jumps_from_directory_to_directory_begins_each_with_a_window() {
        let (mut sweeps, mut store) = (Sweeps::new(12 * MIB), store(64 * MIB));
        for n in 0..32u64 {
            let start = (n * 37 % 64) * MIB;
            for at in (start..start + MIB - RECORD).step_by(RECORD as usize) {
                store.read(&mut sweeps, pack(1), at..at + RECORD);
            }
        }
        assert!(store.requests <= 100, "{} requests", store.requests);
        let before = store.bytes;
        for n in 0..100u64 {
            let at = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (60 * MIB);
            store.read(&mut sweeps, pack(2), at..at + RECORD);
        }
        let wasted = store.bytes - before;
        assert!(
            wasted < 100 * RECORD + 4 * MIB,
            "{wasted} bytes: who reads one here and one there is soon not trusted"
        );
    }

    #[test]
    fn many_readers_share_the_room() {
        let (mut sweeps, mut store) = (Sweeps::new(12 * MIB), store(16 * MIB));
        for at in (0..8 * MIB).step_by(RECORD as usize) {
            for reader in 0..16 {
                store.read(&mut sweeps, pack(reader), at..at + RECORD);
            }
        }
        assert!(store.bytes < 3 * 16 * 8 * MIB, "{} bytes", store.bytes);
    }

    #[test]
    fn without_room_nothing_is_fetched_ahead() {
        let (mut sweeps, mut store) = (Sweeps::new(0), store(16 * MIB));
        for at in (0..MIB).step_by(RECORD as usize) {
            store.read(&mut sweeps, pack(1), at..at + RECORD);
        }
        assert_eq!(store.requests, MIB.div_ceil(RECORD));
    }

    #[test]
    fn the_end_of_a_pack_ends_its_sweep() {
        let (mut sweeps, mut store) = (Sweeps::new(12 * MIB), store(300 << 10));
        for at in (0..280 << 10).step_by(RECORD as usize) {
            store.read(&mut sweeps, pack(1), at..at + RECORD);
        }
        let asked = sweeps.sweeps[0].windows.back().unwrap().bytes.clone();
        assert!(asked.start < 300 << 10, "{asked:?} begins behind the end");
    }
}
