//! Time and randomness for tests: one counts, the other repeats itself with its seed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::model::clock::{Clock, Entropy, Timestamp};

#[derive(Default)]
struct Counting(AtomicU64);

impl Clock for Counting {
    fn now(&self) -> Timestamp {
        let step = self.0.fetch_add(1, Ordering::Relaxed);
        Timestamp { secs: 1_700_000_000 + step as i64, nanos: 0 }
    }
}

impl Entropy for Counting {
    fn random(&self) -> u128 {
        // splitmix64: every step is far from the one before.
        let word = |seed: u64| {
            let mut z = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ (z >> 31)
        };
        let step = self.0.fetch_add(2, Ordering::Relaxed);
        u128::from(word(step + 1)) << 64 | u128::from(word(step + 2))
    }
}

/// A clock that goes on by a second each time it is read.
pub fn clock() -> Arc<dyn Clock> {
    Arc::new(Counting::default())
}

/// Randomness that is the same in every run.
pub fn entropy() -> Arc<dyn Entropy> {
    Arc::new(Counting::default())
}
