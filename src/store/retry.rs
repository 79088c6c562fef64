//! When to ask a store again, and how long to wait before: the one home of that policy.
//!
//! Pure: no clock and no randomness of its own, so that every decision can be replayed.
//!
//! # Invariants
//!
//! 1. A pause is never longer than [`PAUSE_MAX`], whatever a store asks for.
//! 2. Over time repetitions are at most a tenth of the requests that succeed, plus [`BUDGET_TENTHS`] ÷ 10: a store in
//!    trouble is not asked more often because it is in trouble. Past that, pauses are the longest, none is refused.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

/// First pause between two attempts; doubled up to [`PAUSE_MAX`], and a random part of it is waited ("full jitter").
const PAUSE_FIRST: Duration = Duration::from_millis(50);
/// The longest pause.
pub const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Tenths of repetitions that may be owed at most.
const BUDGET_TENTHS: i64 = 200;
/// What one attempt may take without its bytes.
const ATTEMPT: Duration = Duration::from_secs(30);
/// The slowest link that we wait for, in bytes a second.
const SLOWEST_BYTES: u64 = 64 << 10;

/// How long one attempt may take that carries so many bytes; after that its outcome is unknown. No longer than half of
/// `timeout` without its bytes: a request that hangs leaves time for another.
pub fn attempt_limit(bytes: u64, timeout: Duration) -> Duration {
    ATTEMPT.min(timeout / 2) + transfer(bytes)
}

/// How long it may take to write so many bytes, all attempts and looks at their outcome together.
pub fn put_limit(bytes: u64, timeout: Duration) -> Duration {
    timeout + transfer(bytes)
}

fn transfer(bytes: u64) -> Duration {
    Duration::from_secs(bytes / SLOWEST_BYTES)
}

/// The pause before the repetition `attempt` (the first is 1).
///
/// `random` chooses the part that is waited; `asked` is the store's Retry-After.
pub fn pause(attempt: u32, random: u128, asked: Option<Duration>, within_budget: bool) -> Duration {
    if !within_budget {
        return PAUSE_MAX;
    }
    let longest = PAUSE_FIRST.saturating_mul(1 << attempt.clamp(1, 10)).min(PAUSE_MAX);
    let part = (random % 1000) as u32;
    // Asked to wait, everybody would come back at the same instant: the jitter goes on top.
    (asked.unwrap_or_default() + longest * part / 1000).min(PAUSE_MAX)
}

/// How many repetitions are affordable.
#[derive(Debug)]
pub struct Budget(AtomicI64);

impl Default for Budget {
    fn default() -> Self {
        Self(AtomicI64::new(BUDGET_TENTHS))
    }
}

impl Budget {
    /// A request succeeded: a tenth of a repetition is earned.
    pub fn earn(&self) {
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |tenths| {
            (tenths < BUDGET_TENTHS).then_some(tenths + 1)
        });
    }

    /// Takes one repetition; `false` when none is left.
    pub fn spend(&self) -> bool {
        let take = |tenths: i64| (tenths >= 10).then_some(tenths - 10);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_are_jittered_and_bounded() {
        assert_eq!(pause(1, 0, None, true), Duration::ZERO);
        assert_eq!(pause(1, 999, None, true), Duration::from_millis(100) * 999 / 1000);
        assert!(pause(3, 500, None, true) > pause(2, 500, None, true));
        assert!(pause(u32::MAX, 999, None, true) <= PAUSE_MAX);
    }

    #[test]
    fn a_store_that_asks_for_time_gets_it_within_the_limit() {
        assert!(pause(1, 0, Some(Duration::from_secs(2)), true) >= Duration::from_secs(2));
        assert_eq!(pause(1, 0, Some(Duration::from_secs(3600)), true), PAUSE_MAX);
    }

    #[test]
    fn repetitions_beyond_a_tenth_of_the_successes_come_slowly() {
        let budget = Budget::default();
        assert_eq!((0..100).filter(|_| budget.spend()).count(), 20);
        assert_eq!(pause(1, 0, None, budget.spend()), PAUSE_MAX);
        (0..10).for_each(|_| budget.earn());
        assert!(budget.spend());
        assert!(!budget.spend());
        (0..1000).for_each(|_| budget.earn());
        assert_eq!((0..100).filter(|_| budget.spend()).count(), 20, "nothing is saved up beyond the limit");
    }

    #[test]
    fn a_pack_of_64_mib_may_take_seventeen_minutes() {
        let minute = Duration::from_secs(60);
        assert_eq!(attempt_limit(0, minute), Duration::from_secs(30));
        assert_eq!(attempt_limit(64 << 20, minute), Duration::from_secs(30 + 1024));
        assert_eq!(attempt_limit(0, Duration::from_secs(3)), Duration::from_millis(1500), "twice in its time");
        let pack = 64 << 20;
        assert!(put_limit(pack, minute) >= attempt_limit(pack, minute) + minute / 2, "and the outcome is looked at");
    }
}
