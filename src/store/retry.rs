//! When to ask a store again, and how long to wait before: the one home of that policy.
//!
//! Pure: no clock and no randomness of its own, so that every decision can be replayed.
//!
//! # Invariants
//!
//! 1. A pause is never longer than [`PAUSE_MAX`], whatever a store asks for.
//! 2. Repetitions by oneself are at most a tenth of the requests that succeed, plus [`BUDGET_TENTHS`] ÷ 10: a store in
//!    trouble is not asked more often because it is in trouble. Past that one asks for all: [`super::outage`].

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// First pause between two attempts; doubled up to [`PAUSE_MAX`], and a random part of it is waited ("full jitter").
const PAUSE_FIRST: Duration = Duration::from_millis(50);
/// The longest pause.
pub const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Tenths of repetitions that may be owed at most.
const BUDGET_TENTHS: i64 = 200;
/// What one attempt may take without its bytes.
const ATTEMPT: Duration = Duration::from_secs(30);
/// How long before its deadline a request is repeated for the last time.
const LAST_TRY: Duration = Duration::from_secs(1);
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
pub fn pause(attempt: u32, random: u128, asked: Option<Duration>) -> Duration {
    let longest = PAUSE_FIRST.saturating_mul(1 << attempt.clamp(1, 10)).min(PAUSE_MAX);
    let part = (random % 1000) as u32;
    // Asked to wait, everybody would come back at the same instant: the jitter goes on top.
    (asked.unwrap_or_default() + longest * part / 1000).min(PAUSE_MAX)
}

/// When to ask for the last time: not what remains of the time is too short for an answer. `None`: it is too late, or the
/// store asked to be left alone for longer.
pub fn last_try(now: Instant, deadline: Instant, timeout: Duration, asked: Option<Duration>) -> Option<Instant> {
    let last = deadline.checked_sub(LAST_TRY.min(timeout / 4))?;
    (now < last && asked.is_none_or(|asked| now + asked <= last)).then_some(last)
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
        assert_eq!(pause(1, 0, None), Duration::ZERO);
        assert_eq!(pause(1, 999, None), Duration::from_millis(100) * 999 / 1000);
        assert!(pause(3, 500, None) > pause(2, 500, None));
        assert!(pause(u32::MAX, 999, None) <= PAUSE_MAX);
    }

    #[test]
    fn a_store_that_asks_for_time_gets_it_within_the_limit() {
        assert!(pause(1, 0, Some(Duration::from_secs(2))) >= Duration::from_secs(2));
        assert_eq!(pause(1, 0, Some(Duration::from_secs(3600))), PAUSE_MAX);
    }

    #[test]
    fn repetitions_by_oneself_are_a_tenth_of_the_successes_and_twenty() {
        let budget = Budget::default();
        assert_eq!((0..100).filter(|_| budget.spend()).count(), 20);
        assert!(!budget.spend());
        (0..10).for_each(|_| budget.earn());
        assert!(budget.spend());
        assert!(!budget.spend());
        (0..1000).for_each(|_| budget.earn());
        assert_eq!((0..100).filter(|_| budget.spend()).count(), 20, "nothing is saved up beyond the limit");
    }

    #[test]
    fn a_pause_that_would_end_too_late_ends_in_time_for_a_last_try() {
        let (now, minute) = (Instant::now(), Duration::from_secs(60));
        let deadline = now + Duration::from_secs(4);
        assert_eq!(last_try(now, deadline, minute, None), Some(deadline - LAST_TRY));
        assert_eq!(last_try(deadline - LAST_TRY, deadline, minute, None), None, "it is made once");
        assert_eq!(last_try(now, deadline, minute, Some(minute)), None);
        assert!(last_try(now, now + LAST_TRY, LAST_TRY, None).is_some(), "short ones, too");
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
