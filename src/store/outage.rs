//! Who may ask again while the store is in trouble: one for all who wait.
//!
//! Within the budget ([`super::retry::Budget`]) each repeats its request by itself. Beyond it repetitions come one at a
//! time, [`PAUSE_MAX`] apart, however many wait: 64 readers of a store that is away for 20 s ask it four times, not 256.
//! When it answers, as many go on as it has answered in a row: 1, 2, 3, … Whoever is refused makes the rest wait again.
//!
//! # Invariants
//!
//! 1. Of those who wait nobody asks before somebody was answered, but one in each pause.
//! 2. Nobody waits beyond the deadline.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::retry::PAUSE_MAX;

/// The part of a pause that is random: two hosts that saw the same outage do not ask in step.
const JITTER: u32 = 5;

/// See the module.
#[derive(Debug)]
pub struct Outage {
    state: Mutex<State>,
    /// A place for each who may go on.
    released: Semaphore,
    /// Held by the one who waits to ask for all.
    probing: tokio::sync::Mutex<()>,
    pause: Duration,
}

#[derive(Debug, Default)]
struct State {
    waiting: usize,
    /// Answers in a row.
    answers: usize,
    /// When somebody asked for all, or the first began to wait.
    asked: Option<Instant>,
}

impl Default for Outage {
    fn default() -> Self {
        Self::with_pause(PAUSE_MAX)
    }
}

/// One who waits; no longer when it is dropped.
struct Waiting<'a>(&'a Outage);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.state().waiting -= 1;
    }
}

impl Outage {
    fn with_pause(pause: Duration) -> Self {
        Self { state: Mutex::default(), released: Semaphore::new(0), probing: tokio::sync::Mutex::default(), pause }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds this")
    }

    /// The store has answered, whatever it said.
    pub fn answered(&self) {
        let mut state = self.state();
        state.answers = state.answers.saturating_add(1);
        let free = state.waiting.saturating_sub(self.released.available_permits());
        self.released.add_permits(free.min(state.answers));
    }

    /// The store has refused, or did not answer.
    pub fn refused(&self) {
        let mut state = self.state();
        state.answers = 0;
        self.released.forget_permits(usize::MAX);
    }

    /// Waits until one may ask again, or the deadline. Safe to drop.
    pub async fn wait(&self, random: u128, deadline: Instant) {
        let _waiting = self.come();
        tokio::select! {
            biased;
            place = self.released.acquire() => place.expect("it is never closed").forget(),
            () = self.probe(random) => {}
            () = tokio::time::sleep_until(deadline) => {}
        }
    }

    fn come(&self) -> Waiting<'_> {
        let mut state = self.state();
        if state.waiting == 0 {
            // The refusal that made this one wait was the last that was asked.
            state.asked = Some(Instant::now());
        }
        state.waiting += 1;
        Waiting(self)
    }

    /// The turn of one of all who wait.
    async fn probe(&self, random: u128) {
        let _one = self.probing.lock().await;
        let asked = self.state().asked.unwrap_or_else(Instant::now);
        let part = (random % 1000) as u32;
        tokio::time::sleep_until(asked + self.pause - self.pause / JITTER * part / 1000).await;
        self.state().asked = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    const PAUSE: Duration = Duration::from_millis(100);

    /// Asks a store until it answers, waiting before each time; it does so from `well` on.
    async fn ask(outage: Arc<Outage>, asked: Arc<AtomicU64>, well: Instant, deadline: Instant) -> bool {
        while Instant::now() < deadline {
            outage.wait(7, deadline).await;
            if Instant::now() >= deadline {
                break;
            }
            asked.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(1)).await;
            if Instant::now() >= well {
                outage.answered();
                return true;
            }
            outage.refused();
        }
        false
    }

    /// Sixty-four ask; how often they did before `well`, and how many were answered when.
    async fn sixty_four(well: Duration, patience: Duration) -> (u64, usize, Duration) {
        let outage = Arc::new(Outage::with_pause(PAUSE));
        let asked = Arc::new(AtomicU64::new(0));
        let start = Instant::now();
        let all: Vec<_> =
            (0..64).map(|_| tokio::spawn(ask(outage.clone(), asked.clone(), start + well, start + patience))).collect();
        tokio::time::sleep_until(start + well.min(patience)).await;
        let before = asked.load(Ordering::SeqCst);
        let mut answered = 0;
        for one in all {
            answered += usize::from(one.await.unwrap());
        }
        assert_eq!(outage.state().waiting, 0);
        (before, answered, start.elapsed())
    }

    #[tokio::test]
    async fn while_a_store_is_away_one_asks_for_all_and_all_go_on_when_it_answers() {
        let well = PAUSE * 8;
        let (before, answered, took) = sixty_four(well, Duration::from_secs(60)).await;
        assert!((2..=11).contains(&before), "{before} times in eight pauses");
        assert_eq!(answered, 64);
        assert!(took < well + PAUSE * 6, "1, 2, 3 … go on: {took:?}");
    }

    #[tokio::test]
    async fn nobody_waits_beyond_the_deadline() {
        let (before, answered, took) = sixty_four(Duration::from_secs(60), PAUSE * 3).await;
        assert!(before <= 4 && answered == 0, "{before}");
        assert!(took < PAUSE * 5, "{took:?}");
    }

    #[tokio::test]
    async fn a_refusal_makes_the_rest_wait_again() {
        let outage = Outage::with_pause(Duration::from_secs(60));
        let _waiting = [outage.come(), outage.come(), outage.come()];
        outage.answered();
        assert_eq!(outage.released.available_permits(), 1);
        outage.answered();
        assert_eq!(outage.released.available_permits(), 3, "no more than wait");
        outage.refused();
        assert_eq!(outage.released.available_permits(), 0);
    }
}
