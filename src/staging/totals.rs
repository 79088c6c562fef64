//! How much is staged, for `status`: counted as it changes, because looking would mean to look at every file.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use super::inode::FileData;
use crate::model::chunk::ChunkSize;

/// What is staged at a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Staged {
    /// Regular files with local bytes.
    pub files: u64,
    /// Those bytes; of a file with a base whole chunks count.
    pub bytes: u64,
    /// Bytes stored since the last commit, by the background or by a commit that is under way.
    pub uploaded: u64,
}

/// See the module.
#[derive(Default)]
pub(super) struct Totals {
    files: AtomicI64,
    bytes: AtomicI64,
    uploaded: AtomicU64,
}

/// What one file adds.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Share {
    files: i64,
    bytes: i64,
}

impl Share {
    /// What `file` adds now.
    pub fn of(file: &FileData, chunk: ChunkSize) -> Self {
        if file.local.is_none() {
            return Self::default();
        }
        let bytes = match file.base {
            None => file.size,
            Some(_) => file.chunks.iter().map(|(start, end)| (end - start) * chunk.bytes()).sum(),
        };
        Self { files: 1, bytes: bytes as i64 }
    }
}

impl Totals {
    /// A file that added `before` adds `after` now.
    pub fn count(&self, before: Share, after: Share) {
        self.files.fetch_add(after.files - before.files, Ordering::Relaxed);
        self.bytes.fetch_add(after.bytes - before.bytes, Ordering::Relaxed);
    }

    /// Bytes that were stored.
    pub fn stored(&self, bytes: u64) {
        self.uploaded.fetch_add(bytes, Ordering::Relaxed);
    }

    /// A commit is over: what it stored is no longer on its way.
    pub fn committed(&self) {
        self.uploaded.store(0, Ordering::Relaxed);
    }

    /// What is staged now.
    pub fn now(&self) -> Staged {
        let count = |of: &AtomicI64| of.load(Ordering::Relaxed).max(0) as u64;
        Staged { files: count(&self.files), bytes: count(&self.bytes), uploaded: self.uploaded.load(Ordering::Relaxed) }
    }
}
