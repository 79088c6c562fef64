//! Bytes to which no inode leads any more, kept until the record that says so is on the disk.
//!
//! A name is removed in the database's log, which is not synced with every change; bytes are removed from the file system,
//! whose own journal may be written first. A power cut between the two would bring the name back without its bytes: so
//! what loses its last use waits here, and [`reap`] syncs the log before it removes anything.
//!
//! # Invariants
//!
//! 1. A place is put here after the change that lets it go was written.
//! 2. What is here when the process ends is found unused by the next life, and removed then.

use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use tokio::sync::Notify;

use super::error::StagingError;
use super::tree::Tree;
use crate::local::db::Database;
use crate::local::staged_files::{Place, StagedFiles};

/// How long bytes wait for others to be removed with, so that many share one sync of the log.
const GATHER: Duration = Duration::from_millis(500);
/// The pause after a disk that refused.
const PAUSE: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Default)]
pub(super) struct Retired {
    places: Mutex<Vec<Place>>,
    came: Notify,
}

impl Retired {
    fn places(&self) -> MutexGuard<'_, Vec<Place>> {
        self.places.lock().expect("no code panics while it holds the list")
    }

    /// Notes that a place has no use any more.
    pub fn push(&self, place: Place) {
        self.places().push(place);
        self.came.notify_one();
    }

    /// Whether there is nothing to remove.
    pub fn is_empty(&self) -> bool {
        self.places().is_empty()
    }

    /// Forgets all of them: they were removed otherwise.
    pub fn clear(&self) {
        self.places().clear();
    }
}

/// Removes what has no use, once the records that say so are on the disk. Blocks.
pub(super) fn reap(db: &Database, files: &StagedFiles, retired: &Retired) -> Result<(), StagingError> {
    let places = std::mem::take(&mut *retired.places());
    if places.is_empty() {
        return Ok(());
    }
    if let Err(error) = db.sync() {
        retired.places().extend(places);
        return Err(error.into());
    }
    places.into_iter().for_each(|place| files.forget(place));
    Ok(())
}

/// Reaps what comes into the list of a tree, as long as the tree lives.
pub(super) async fn reap_always(tree: Weak<Tree>, retired: Arc<Retired>) {
    loop {
        retired.came.notified().await;
        tokio::time::sleep(GATHER).await;
        let Some(tree) = tree.upgrade() else { return };
        if let Err(error) = tree.reap().await {
            tracing::warn!(%error, "bytes without use cannot be removed yet: later again");
            drop(tree);
            tokio::time::sleep(PAUSE).await;
            retired.came.notify_one();
        }
    }
}
