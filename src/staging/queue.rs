//! The queue of the background upload: which file is stored next.
//!
//! Files come in the order in which they were closed, which is the order of whatever tree a program copied from. They are
//! stored in the order of their names, a second's worth at a time: small files that lie in one directory then lie side by
//! side in a pack, and whoever reads the directory finds many of them in one request (`content/sweep.rs`).
//!
//! ```text
//!   create ──births──┐
//!   close ───────────┴> fresh ──(a second)──> settling ──(a second)──> sorted ──> ready
//! ```
//!
//! # Invariants
//!
//! 1. A file is left alone for [`SETTLE`] after it was closed: many live no longer than that.
//! 2. Names are kept for what was closed in the last two seconds only; of the rest a number is.
//! 3. A name is advice: a file that was renamed, or whose birth was forgotten, is stored all the same.
//! 4. Who closes a file never waits for names to be sorted: that is the background's work, outside the lock.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use crate::model::name::FileName;

/// How long a closed file is left alone.
const SETTLE: Duration = Duration::from_secs(1);
/// Files whose names at their birth are remembered until they are closed.
const BIRTHS_MAX: usize = 4_096;
/// Files of which a commit learns the order.
const RANKS_MAX: usize = 100_000;

/// Where a file was made: the number of its directory, and its name there.
pub(super) type Birth = (u64, FileName);

/// Files that were made and not closed yet; the longest made are forgotten first.
#[derive(Default)]
pub(super) struct Births(Mutex<BirthsState>);

#[derive(Default)]
struct BirthsState {
    made: HashMap<u64, Birth>,
    order: VecDeque<u64>,
}

impl Births {
    fn state(&self) -> MutexGuard<'_, BirthsState> {
        self.0.lock().expect("nothing panics while it holds the births")
    }

    /// Notes where the file `ino` was made.
    pub fn note(&self, ino: u64, parent: u64, name: &FileName) {
        let state = &mut *self.state();
        state.made.insert(ino, (parent, name.clone()));
        state.order.push_back(ino);
        // Who was closed meanwhile is still in the order, so twice as many are let in before anyone is looked for.
        while state.made.len() > BIRTHS_MAX || state.order.len() > 2 * BIRTHS_MAX {
            let Some(oldest) = state.order.pop_front() else { return };
            state.made.remove(&oldest);
        }
    }

    /// Where the file was made, if that is remembered; once.
    pub fn take(&self, ino: u64) -> Option<Birth> {
        self.state().made.remove(&ino)
    }
}

/// Files that were closed about the same time, with what is known of their names.
type Closed = Vec<(Option<Birth>, u64)>;

/// Such files, and when the last of them was closed, or a moment later.
struct Batch {
    closed: Instant,
    files: Closed,
}

/// See the module.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<QueueState>,
    came: tokio::sync::Notify,
}

#[derive(Default)]
struct QueueState {
    /// Being filled, and since when.
    fresh: Option<(Instant, Closed)>,
    settling: VecDeque<Batch>,
    ready: VecDeque<u64>,
}

impl QueueState {
    /// Ends the batch that is being filled, if it is old enough.
    fn end_batch(&mut self, now: Instant) {
        if let Some((_, files)) = self.fresh.take_if(|(since, _)| now >= *since + SETTLE) {
            self.settling.push_back(Batch { closed: now, files });
        }
    }

    /// Takes out a batch that was left alone long enough.
    fn ripe(&mut self, now: Instant) -> Option<Closed> {
        self.end_batch(now);
        let is_ripe = self.settling.front().is_some_and(|batch| now >= batch.closed + SETTLE);
        if is_ripe { self.settling.pop_front().map(|batch| batch.files) } else { None }
    }

    /// When something ripens next.
    fn next_ripe(&self) -> Option<Instant> {
        let settled = self.settling.front().map(|batch| batch.closed + SETTLE);
        settled.or_else(|| self.fresh.as_ref().map(|(since, _)| *since + SETTLE))
    }
}

/// The files in the order of their names: one directory after the other. Those without a name keep their order, before
/// all others.
fn in_order(mut files: Closed) -> impl Iterator<Item = u64> {
    files.sort_by(|(one, _), (other, _)| one.cmp(other));
    files.into_iter().map(|(_, ino)| ino)
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().expect("nothing panics while it holds the queue")
    }

    /// A file was closed by its last writer.
    pub fn closed(&self, birth: Option<Birth>, ino: u64) {
        let now = Instant::now();
        {
            let state = &mut *self.state();
            state.end_batch(now);
            state.fresh.get_or_insert_with(|| (now, Vec::new())).1.push((birth, ino));
        }
        self.came.notify_one();
    }

    /// A file that need not be left alone: it was closed long ago.
    pub fn push(&self, ino: u64) {
        self.state().ready.push_back(ino);
        self.came.notify_one();
    }

    /// The next file that has been left alone long enough.
    pub async fn next(&self) -> u64 {
        loop {
            let (batch, next) = {
                let state = &mut *self.state();
                if let Some(ino) = state.ready.pop_front() {
                    return ino;
                }
                (state.ripe(Instant::now()), state.next_ripe())
            };
            if let Some(files) = batch {
                let sorted = in_order(files);
                self.state().ready.extend(sorted);
                continue;
            }
            match next {
                Some(ripe) => tokio::time::sleep_until(ripe).await,
                None => self.came.notified().await,
            }
        }
    }

    /// The places of the files that wait, in the order of their names behind those that are ready. Of too many: of none.
    pub fn ranks(&self) -> HashMap<u64, usize> {
        let state = &*self.state();
        let batches = state.settling.iter().map(|batch| &batch.files);
        let mut named: Vec<_> = batches.chain(state.fresh.as_ref().map(|(_, files)| files)).flatten().collect();
        if state.ready.len() + named.len() > RANKS_MAX {
            return HashMap::new();
        }
        named.sort_by(|(one, _), (other, _)| one.cmp(other));
        let files = state.ready.iter().copied().chain(named.into_iter().map(|(_, ino)| *ino));
        files.enumerate().map(|(rank, ino)| (ino, rank)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn birth(parent: u64, name: &str) -> Option<Birth> {
        Some((parent, FileName::new(name.as_bytes().to_vec()).unwrap()))
    }

    #[tokio::test(start_paused = true)]
    async fn files_closed_together_come_in_the_order_of_their_names() {
        let queue = Queue::default();
        let start = Instant::now();
        for (n, name) in ["delta", "bravo", "charlie", "alpha"].into_iter().enumerate() {
            queue.closed(birth(7 - (n as u64 % 2), name), n as u64);
        }
        queue.closed(None, 9);
        assert_eq!(queue.ranks()[&3], 1, "alpha in directory 6, behind what has no name");
        let mut order = Vec::new();
        for _ in 0..5 {
            order.push(queue.next().await);
        }
        assert_eq!(order, [9, 3, 1, 2, 0]);
        assert!(start.elapsed() >= SETTLE && start.elapsed() <= 3 * SETTLE, "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_of_files_is_never_kept_for_long() {
        let queue = std::sync::Arc::new(Queue::default());
        let closing = queue.clone();
        tokio::spawn(async move {
            for n in 0..1000 {
                closing.closed(birth(1, &format!("{:03}", 999 - n)), n);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        let start = Instant::now();
        let mut seen = std::collections::HashSet::new();
        for _ in 0..1000 {
            let ino = queue.next().await;
            let age = start.elapsed().saturating_sub(Duration::from_millis(10 * ino));
            assert!(age >= SETTLE && age <= 2 * SETTLE + Duration::from_millis(50), "{ino}: {age:?}");
            assert!(seen.insert(ino));
        }
    }

    #[test]
    fn births_are_bounded_and_told_once() {
        let births = Births::default();
        for n in 0..20_000 {
            let name = FileName::new(format!("f{n}").into_bytes()).unwrap();
            births.note(n, 1, &name);
            if n % 2 == 0 {
                assert_eq!(births.take(n), Some((1, name)));
                assert_eq!(births.take(n), None);
            }
        }
        let state = births.state();
        assert!(state.made.len() <= BIRTHS_MAX && state.order.len() <= 2 * BIRTHS_MAX);
        assert!(state.made.contains_key(&19_999));
    }
}
