//! Pace: whether to look for the next request awake.
//!
//! A thread that sleeps in read(2) has to be woken for each request. On an idle machine that is an interrupt to a processor
//! that has gone to sleep itself: measured in a virtual machine, 30 to 50 µs, where the answer takes 5. So while requests
//! come close one behind another, the thread looks for the next one a moment longer before it sleeps.
//!
//! # Invariants
//!
//! 1. Nobody waits longer: a request that is there ends the looking.
//! 2. A mount that is little used costs nothing: without a run of close requests nobody lingers.
//! 3. On a machine whose processors are wanted by others it is given up for a while.

use std::fs::File;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use crate::local::sys;

/// How long to look: about what two sleeps and wakes take.
const LINGER: Duration = Duration::from_micros(60);
/// Requests this close belong to a run. Longer than what the waking itself takes, which is part of the distance.
const NEAR: Duration = Duration::from_micros(150);
/// Close requests after which lingering begins.
const RUN_MIN: u32 = 8;
/// A longer run is worth no more: so many misses end it.
const RUN_MAX: u32 = 16;
/// Lingers between two looks at whether others want the processor.
const CHECK_STEP: u32 = 256;
/// Times that this thread was put off its processor meanwhile, from which on others want it.
const PUT_OFF_MAX: u64 = 16;
/// Requests for which lingering is then given up.
const REST: u32 = 8_192;

/// See the module.
#[derive(Default)]
pub struct Pace {
    device: OnceLock<File>,
    run: Mutex<Run>,
}

/// The recent past of one thread's requests.
#[derive(Debug, Default)]
struct Run {
    ended: Option<Instant>,
    length: u32,
    lingers: u32,
    put_off: u64,
    resting: u32,
}

impl Run {
    /// A request has come.
    fn arrived(&mut self, now: Instant) {
        let is_near = self.ended.is_some_and(|ended| now.duration_since(ended) <= NEAR);
        self.length = if is_near { (self.length + 1).min(RUN_MAX) } else { self.length.saturating_sub(4) };
        self.resting = self.resting.saturating_sub(1);
    }

    /// Whether to look for the next one.
    fn lingers(&self) -> bool {
        self.length >= RUN_MIN && self.resting == 0
    }

    /// What came of lingering; `put_off` counts how often this thread was put off its processor so far.
    fn lingered(&mut self, found: bool, put_off: impl FnOnce() -> u64) {
        if !found {
            self.length = self.length.saturating_sub(1);
        }
        self.lingers += 1;
        if self.lingers.is_multiple_of(CHECK_STEP) {
            let put_off = put_off();
            if put_off - self.put_off > PUT_OFF_MAX && self.lingers > CHECK_STEP {
                self.resting = REST;
            }
            self.put_off = put_off;
        }
    }
}

impl Pace {
    /// Says which device requests come from.
    pub fn watch(&self, device: File) {
        // A second session over one dispatcher does not exist.
        let _ = self.device.set(device);
    }

    /// A request has come; it is answered, or handed on, when the value is dropped.
    pub fn request(&self) -> Paced<'_> {
        self.run.lock().expect("nothing panics while it holds the run").arrived(Instant::now());
        Paced(self)
    }

    /// Looks a moment for the next request if that is likely to come.
    fn answered(&self) {
        let mut run = self.run.lock().expect("nothing panics while it holds the run");
        let now = Instant::now();
        run.ended = Some(now);
        let (true, Some(device)) = (run.lingers(), self.device.get()) else { return };
        let mut found = false;
        while !found && now.elapsed() < LINGER {
            found = sys::is_readable(device);
        }
        run.lingered(found, sys::times_put_off);
    }
}

/// A request that is being answered.
pub struct Paced<'a>(&'a Pace);

impl Drop for Paced<'_> {
    fn drop(&mut self) {
        self.0.answered();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(start: Instant, micros: u64) -> Instant {
        start + Duration::from_micros(micros)
    }

    fn run_of(requests: u64, micros: u64) -> Run {
        let (mut run, start) = (Run::default(), Instant::now());
        for n in 0..requests {
            run.arrived(after(start, n * micros));
            run.ended = Some(after(start, n * micros));
        }
        run
    }

    #[test]
    fn only_a_run_of_close_requests_keeps_the_thread_awake() {
        assert!(!run_of(5, 20).lingers());
        assert!(run_of(20, 20).lingers());
        assert!(!run_of(1000, 1000).lingers());
    }

    #[test]
    fn a_run_ends_with_distance_or_with_misses() {
        let mut run = run_of(20, 20);
        let last = run.ended.unwrap();
        (1..4).for_each(|n| run.arrived(after(last, n * 1000)));
        assert!(!run.lingers());
        let mut run = run_of(20, 20);
        (0..9).for_each(|_| run.lingered(false, || 0));
        assert!(!run.lingers());
    }

    #[test]
    fn others_who_want_the_processor_get_it_for_a_while() {
        let mut run = run_of(20, 20);
        (0..2 * CHECK_STEP).for_each(|n| run.lingered(true, || u64::from(n)));
        assert!(!run.lingers());
        let start = Instant::now();
        for n in 0..u64::from(REST) + 20 {
            run.ended = Some(after(start, n * 20));
            run.arrived(after(start, n * 20 + 5));
        }
        assert!(run.lingers());
    }
}
