//! How much of a store one mount uses at once: requests on their way, and bytes a second.
//!
//! # Invariants
//!
//! 1. No more requests of one direction are on their way than [`Limits`] says. One that is repeated waits its turn again.
//! 2. On the average no more bytes a second go in one direction than [`Limits`] says; a single request goes as fast as
//!    the link.
//! 3. Nobody waits for a turn longer than the store's timeout in which no other request ended.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

/// Requests of one direction at once, unless a mount says otherwise.
pub const REQUESTS: usize = 16;

/// What a mount may use of its store, and how long it waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long a request may take with all its repetitions.
    pub timeout: Duration,
    /// Writes at once.
    pub uploads: usize,
    /// Reads and lists at once.
    pub downloads: usize,
    /// Bytes a second in each direction; 0: as many as there is room for.
    pub bytes_per_second: u64,
}

impl From<Duration> for Limits {
    /// No limits but a timeout's.
    fn from(timeout: Duration) -> Self {
        Self { timeout, uploads: REQUESTS, downloads: REQUESTS, bytes_per_second: 0 }
    }
}

/// One direction.
#[derive(Debug)]
pub(super) struct Direction {
    turns: Semaphore,
    bytes_per_second: u64,
    /// When the bytes that were let go are paid for.
    paid: Mutex<Option<Instant>>,
    running: AtomicU64,
    /// The most that ever ran at once.
    peak: AtomicU64,
    ended: AtomicU64,
}

/// The right to one request.
pub(super) struct Turn<'a> {
    direction: &'a Direction,
    _permit: SemaphorePermit<'a>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.direction.running.fetch_sub(1, Ordering::Relaxed);
        self.direction.ended.fetch_add(1, Ordering::Relaxed);
    }
}

impl Direction {
    pub fn new(requests: usize, bytes_per_second: u64) -> Self {
        let turns = Semaphore::new(requests.clamp(1, Semaphore::MAX_PERMITS));
        let count = || AtomicU64::new(0);
        Self { turns, bytes_per_second, paid: Mutex::default(), running: count(), peak: count(), ended: count() }
    }

    /// Requests on their way, and the most that ever were.
    pub fn running(&self) -> (u64, u64) {
        (self.running.load(Ordering::Relaxed), self.peak.load(Ordering::Relaxed))
    }

    /// Waits for the right to a request of so many bytes; `None` when for `patience` nothing ended.
    pub async fn turn(&self, bytes: u64, patience: Duration) -> Option<Turn<'_>> {
        let waiting = self.turns.acquire();
        tokio::pin!(waiting);
        let permit = loop {
            let before = self.ended.load(Ordering::Relaxed);
            match tokio::time::timeout(patience, &mut waiting).await {
                Ok(permit) => break permit.expect("the semaphore is never closed"),
                Err(_) if self.ended.load(Ordering::Relaxed) != before => {}
                Err(_) => return None,
            }
        };
        if let Some(until) = self.pay(bytes) {
            tokio::time::sleep_until(until).await;
        }
        let running = self.running.fetch_add(1, Ordering::Relaxed) + 1;
        self.peak.fetch_max(running, Ordering::Relaxed);
        Some(Turn { direction: self, _permit: permit })
    }

    /// Charges so many bytes; answers when what was charged before is paid for.
    pub fn pay(&self, bytes: u64) -> Option<Instant> {
        if self.bytes_per_second == 0 {
            return None;
        }
        let price = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let mut paid = self.paid.lock().expect("nothing panics while it holds the account");
        let from = paid.map_or_else(Instant::now, |paid| paid.max(Instant::now()));
        *paid = Some(from + price);
        Some(from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn bytes_are_paid_for_by_who_comes_next() {
        let direction = Direction::new(4, 10_000);
        let start = Instant::now();
        for _ in 0..5 {
            drop(direction.turn(500, LONG).await.unwrap());
        }
        assert!(start.elapsed() >= Duration::from_millis(200), "five of 50 ms, of which the last is not waited for");
        direction.pay(3000);
        drop(direction.turn(0, LONG).await.unwrap());
        assert!(start.elapsed() >= Duration::from_millis(550), "{:?}", start.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
        let from = direction.pay(500).unwrap();
        assert!(from <= Instant::now(), "nothing is owed after a pause");
        assert!(direction.pay(0).unwrap() > Instant::now(), "and nothing was saved up");
        assert_eq!(Direction::new(4, 0).pay(u64::MAX), None);
    }

    #[tokio::test]
    async fn a_turn_is_waited_for_as_long_as_others_end() {
        let direction = Direction::new(1, 0);
        let short = Duration::from_millis(200);
        let held = direction.turn(1, LONG).await.unwrap();
        assert!(direction.turn(1, short).await.is_none(), "nothing ended");
        drop(held);
        let order = Mutex::new(Vec::new());
        let one = |name: u32| {
            let (direction, order) = (&direction, &order);
            async move {
                let _turn = direction.turn(1, short).await.unwrap();
                order.lock().unwrap().push(name);
                tokio::time::sleep(short / 2).await;
            }
        };
        tokio::join!(one(1), one(2), one(3), one(4), one(5));
        assert_eq!(*order.lock().unwrap(), [1, 2, 3, 4, 5]);
    }
}
