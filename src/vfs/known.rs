//! What the kernel knows of a staging tree, and the gate before its change of base.
//!
//! Every entry that an answer hands to the kernel is one lookup of its number, until a FORGET takes it back. Numbers of a
//! base mean nothing in the next one, so a tree may change its base only while the kernel knows nothing of it but its
//! root: a shell whose working directory lies in it would find itself nowhere.
//!
//! # Invariants
//!
//! 1. An answer is counted before it is sent, under the [`Pass`] under which it was worked out.
//! 2. While the gate is closed nothing is known and no pass is out: [`Known::close`] is the one place that decides.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;

use super::node::Ino;

/// See the module.
#[derive(Default)]
pub struct Known {
    state: Mutex<State>,
    opened: Notify,
}

#[derive(Default)]
struct State {
    /// Outstanding lookups by number, the root's left out.
    entries: HashMap<Ino, u64>,
    passes: usize,
    closed: bool,
    /// Counts the closings.
    epoch: u64,
}

/// The right to work out an answer that hands out entries.
pub struct Pass {
    known: Arc<Known>,
    epoch: u64,
}

impl Pass {
    /// Counts the bases that the tree has had.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.known.state().passes -= 1;
    }
}

/// A closed gate; opens when it is dropped.
pub struct Closed(Arc<Known>);

impl Drop for Closed {
    fn drop(&mut self) {
        self.0.state().closed = false;
        self.0.opened.notify_waiters();
    }
}

impl Known {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds what is known")
    }

    /// Waits while the gate is closed, which is only while a clean tree changes its base.
    pub async fn enter(self: &Arc<Self>) -> Pass {
        loop {
            let opened = self.opened.notified();
            {
                let mut state = self.state();
                if !state.closed {
                    state.passes += 1;
                    return Pass { known: self.clone(), epoch: state.epoch };
                }
            }
            opened.await;
        }
    }

    /// Closes the gate, if nothing is known and no answer is under way.
    pub fn close(self: &Arc<Self>) -> Option<Closed> {
        let mut state = self.state();
        if state.closed || state.passes > 0 || !state.entries.is_empty() {
            return None;
        }
        state.closed = true;
        state.epoch += 1;
        Some(Closed(self.clone()))
    }

    /// Counts a lookup of `ino`, which an answer is about to hand out.
    pub fn remember(&self, ino: Ino) {
        *self.state().entries.entry(ino).or_default() += 1;
    }

    /// Takes lookups back; answers whether none is left.
    pub fn forget(&self, ino: Ino, lookups: u64) -> bool {
        let mut state = self.state();
        let Some(count) = state.entries.get_mut(&ino) else { return false };
        *count = count.saturating_sub(lookups);
        let is_unknown = *count == 0;
        if is_unknown {
            state.entries.remove(&ino);
        }
        is_unknown
    }

    /// Whether the kernel knows `ino`.
    pub fn has(&self, ino: Ino) -> bool {
        self.state().entries.contains_key(&ino)
    }

    /// How many lookups are outstanding.
    pub fn count(&self) -> i64 {
        self.state().entries.values().sum::<u64>() as i64
    }

    /// Everything that is known.
    pub fn inos(&self) -> Vec<Ino> {
        self.state().entries.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_gate_closes_only_when_nothing_is_known_and_nobody_is_inside() {
        let known = Arc::new(Known::default());
        let pass = known.enter().await;
        assert!(known.close().is_none(), "an answer is under way");
        known.remember(7);
        known.remember(7);
        known.remember(8);
        drop(pass);
        assert_eq!(known.count(), 3);
        known.forget(7, 1);
        known.forget(8, 1);
        assert!(known.close().is_none(), "one lookup is outstanding");
        known.forget(7, 1);
        known.forget(9, 5);
        assert!(known.close().is_some());
    }

    #[tokio::test]
    async fn who_comes_while_the_gate_is_closed_waits_and_sees_another_epoch() {
        let known = Arc::new(Known::default());
        let before = known.enter().await.epoch();
        let closed = known.close().unwrap();
        assert!(known.close().is_none(), "one at a time");
        let waiting = tokio::spawn({
            let known = known.clone();
            async move { known.enter().await.epoch() }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(closed);
        assert_ne!(waiting.await.unwrap(), before);
    }
}
