//! `reads`: which versions were read through this mount, since when, and how much.
//!
//! What the kernel answers from its own memory does not come by here: a version that is read a second time may not be
//! counted a second time. Which files those were is told to the store only ([`crate::vfs::read_log`]).

use std::collections::BTreeMap;

use super::Vfs;
use crate::model::clock::Timestamp;
use crate::snapshot::{RowId, Table};
use crate::vfs::Shared;
use crate::vfs::node::RepoKey;
use crate::vfs::read_log::Key;

/// By the slot of the view.
pub(super) type Reads = Shared<BTreeMap<usize, Read>>;

/// What was read through one view.
#[derive(Debug, Clone, Copy)]
pub(super) struct Read {
    first: Timestamp,
    last: Timestamp,
    count: u64,
    bytes: u64,
}

impl Vfs {
    /// Notes that so many bytes of a version's file were read: here, and in the log that goes to the store.
    pub(in crate::vfs) fn note_read(&self, slot: usize, row: RowId, uid: u32, bytes: u64) {
        let now = self.store().clock.now();
        // Only what lies in the files' table has bytes, and of views there are fewer than bits in an inode's number.
        if let (Some(log), Table::Files, Ok(slot)) = (self.read_log(), row.table, u32::try_from(slot)) {
            log.note(Key { slot, row: row.ordinal, uid }, bytes, now);
        }
        let mut reads = self.control.reads.lock().expect("nothing panics while it holds the reads");
        let read = reads.entry(slot).or_insert(Read { first: now, last: now, count: 0, bytes: 0 });
        read.last = now;
        read.count += 1;
        read.bytes += bytes;
    }

    /// A line for each version and way to it, in the order of their first reads: repo, bundle, way, first and last read, reads,
    /// bytes.
    pub(super) fn reads(&self, repo: Option<&RepoKey>) -> String {
        let reads = self.control.reads.lock().expect("nothing panics while it holds the reads").clone();
        let mut reads: Vec<_> = reads.into_iter().collect();
        reads.sort_by_key(|(_, read)| read.first);
        let mut text = String::new();
        for (slot, Read { first, last, count, bytes }) in reads {
            let Ok(view) = self.view_key(slot) else { continue };
            if repo.is_some_and(|repo| repo.id != view.repo.id) {
                continue;
            }
            let (repo, bundle, way) = (self.name_now(&view.repo), view.bundle, view.through);
            text += &format!("{repo}\t{bundle}\t{way}\t{first}\t{last}\t{count}\t{bytes}\n");
        }
        text
    }
}
