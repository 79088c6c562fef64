//! The read log: what was read of which bundle, and by whom, is written to the store.
//!
//! Where bytes are handed to the kernel they are counted ([`counts`]); a task of its own turns what was counted into a
//! batch ([`batch`]) a minute after the first read of it, when there is much of it, and when the mount ends. What the
//! kernel answers from its own memory is not seen, and what is read in a staging tree is not counted: that is no bundle.
//!
//! # Invariants
//!
//! 1. A reader waits for nothing here: one lock, never held across an await, and no path is rendered under it.
//! 2. What is not in the store yet is bounded, in memory and in number; of what does not fit the oldest is dropped, and
//!    the next batch says how much that was.
//! 3. A batch has one name and one content: it is offered again until the store has it or refuses it.
//! 4. A store that refuses it switches the log off for this mount and is asked no more; `status` says so, nothing else
//!    does. One that is away is asked once in [`INTERVAL`].
//! 5. The end of a mount waits for the log no longer than [`FINISH_LIMIT`], when the staging trees are let go already.
//!
//! A daemon that is killed loses what it had not written, a minute's at most while the store answers.

mod batch;
mod counts;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::identity::Identity;
use super::{Shared, Views};
use crate::format::key::ObjectKey;
use crate::model::clock::Timestamp;
use crate::model::id::MountId;
use crate::store::{Put, Store, StoreError};
use batch::Batch;
pub use counts::Key;
use counts::{Counted, Counts};

/// How long after the first read of a batch it is written, and how long a store that is away is left alone.
const INTERVAL: Duration = Duration::from_secs(60);
/// How long the end of a mount waits for the last batch.
pub const FINISH_LIMIT: Duration = Duration::from_secs(3);

/// See the module.
pub struct ReadLog {
    store: Arc<Store>,
    views: Arc<Shared<Views>>,
    identity: Identity,
    mount: MountId,
    counts: Shared<Counts>,
    /// Rings at the first read of a batch, and when there are many.
    counted: Notify,
    writing: tokio::sync::Mutex<Writing>,
    /// Why the log is off.
    refused: OnceLock<String>,
}

/// What is on its way to the store.
#[derive(Default)]
struct Writing {
    seq: u32,
    batch: Batch,
    /// An object whose outcome is not known to be good.
    object: Option<(ObjectKey, Bytes)>,
}

impl ReadLog {
    /// The log of one mount, which takes about `memory` bytes at most; it writes by itself.
    pub(super) fn start(store: Arc<Store>, views: Arc<Shared<Views>>, identity: Identity, memory: usize) -> Arc<Self> {
        let mount = MountId::from_parts(store.clock.now().millis(), store.entropy.random());
        let log = Arc::new(Self {
            store,
            views,
            identity,
            mount,
            counts: Shared::new(Counts::new(memory)),
            counted: Notify::new(),
            writing: tokio::sync::Mutex::default(),
            refused: OnceLock::new(),
        });
        tokio::spawn(log.clone().write_always());
        log
    }

    /// Counts one read.
    pub(super) fn note(&self, key: Key, bytes: u64, now: Timestamp) {
        if self.refused.get().is_some() {
            return;
        }
        let counted = self.counts().count(key, bytes, now);
        if counted != Counted::Another {
            self.counted.notify_one();
        }
    }

    /// Why nothing is logged any more, for `status`.
    pub(super) fn notice(&self) -> Option<&str> {
        self.refused.get().map(String::as_str)
    }

    /// Writes what is left when the mount has ended.
    pub async fn finish(&self) {
        let all = async {
            while self.write().await {
                if self.counts().is_empty() {
                    return true;
                }
            }
            false
        };
        if tokio::time::timeout(FINISH_LIMIT, all).await != Ok(true) {
            tracing::warn!("the last reads of this mount are not logged: the store does not answer");
        }
    }

    fn counts(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.counts.lock().expect("nothing panics while it holds the counts")
    }

    async fn write_always(self: Arc<Self>) {
        while self.refused.get().is_none() {
            self.wait_for_a_batch().await;
            while !self.write().await {
                tokio::time::sleep(INTERVAL).await;
            }
        }
    }

    async fn wait_for_a_batch(&self) {
        while self.counts().is_empty() {
            self.counted.notified().await;
        }
        let due = Instant::now() + INTERVAL;
        while !self.counts().are_many() {
            if tokio::time::timeout_at(due, self.counted.notified()).await.is_err() {
                return;
            }
        }
    }

    /// Writes what has been counted until now; `false`: the store is away, and the rest is kept.
    async fn write(&self) -> bool {
        let mut writing = self.writing.lock().await;
        if self.refused.get().is_some() {
            self.counts().take();
            return true;
        }
        if writing.batch.is_empty() {
            writing.batch = Batch::of(self.counts().take());
        }
        while let Some((key, object)) = self.next_object(&mut writing).await {
            match self.store.offer(&key, &object).await {
                Ok(Put::Ours) => writing.object = None,
                Ok(Put::Theirs(_)) => {
                    // The mount's id is random: somebody writes what he likes there.
                    tracing::warn!(%key, "a batch of the read log is lost: its name is taken");
                    writing.object = None;
                }
                Err(error @ (StoreError::Unavailable { .. } | StoreError::NotFound { .. })) => {
                    tracing::debug!(%error, "the read log waits for the store");
                    return false;
                }
                Err(error) => {
                    self.switch_off(&error);
                    *writing = Writing::default();
                }
            }
        }
        true
    }

    async fn next_object(&self, writing: &mut Writing) -> Option<(ObjectKey, Bytes)> {
        if writing.object.is_none() {
            let to = self.store.clock.now();
            let object = writing.batch.next_object(self, to).await?;
            let key = self.store.keys().read_log(&self.store.now().day(), self.mount, writing.seq);
            writing.seq += 1;
            writing.object = Some((key, object));
        }
        writing.object.clone()
    }

    fn switch_off(&self, error: &StoreError) {
        tracing::warn!(%error, "the read log of this mount is off");
        let notice = format!("reads are not logged: {error}; readlog=off if they need not be");
        // Whoever came first has said it.
        let _ = self.refused.set(notice);
        self.counts().take();
    }
}

#[cfg(test)]
mod tests;
