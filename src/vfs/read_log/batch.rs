//! A batch: counts turned into objects, files found by their rows.
//!
//! A batch of many files is several objects, so that none takes more memory than the log has. Files are looked up in the
//! order of their rows: each range of a bundle once, in memory as a rule. What cannot be looked up in
//! [`LOOK_UP_LIMIT`], because memory has forgotten it and the store is away, is named by its row, which means the same
//! everywhere.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::ReadLog;
use super::counts::{Count, Key, Taken};
use crate::format::range::{Row, RowValue};
use crate::format::read_log::{FileName, FileReads, Head, Text};
use crate::model::clock::Timestamp;
use crate::model::entry::Body;
use crate::model::id::ContentId;
use crate::model::limits::READ_LOG_BYTES_MAX;
use crate::snapshot::{Snapshot, Table};
use crate::vfs::node::ViewKey;

/// How long all files of one object may be looked up for.
const LOOK_UP_LIMIT: Duration = Duration::from_secs(10);
/// After so many lines others have a turn on this thread.
const LINES_STEP: usize = 256;
/// Of the log's memory the text of one object may take this part; a quarter is left for compressing it.
const PART: (usize, usize) = (3, 8);

/// See the module.
#[derive(Default)]
pub(super) struct Batch {
    taken: Taken,
    from: Option<Timestamp>,
}

impl Batch {
    /// The batch of these counts.
    pub(super) fn of(mut taken: Taken) -> Self {
        // From the end, where taking one away costs nothing.
        taken.counts.sort_unstable_by_key(|(key, _)| std::cmp::Reverse(*key));
        let from = taken.counts.iter().map(|(_, count)| count.first).min();
        Self { taken, from }
    }

    /// Whether all of it was made into objects.
    pub(super) fn is_empty(&self) -> bool {
        self.taken.counts.is_empty()
    }

    /// The next object, closed at `to`.
    pub(super) async fn next_object(&mut self, log: &ReadLog, to: Timestamp) -> Option<Bytes> {
        if self.is_empty() {
            return None;
        }
        let text_max = (self.taken.memory / PART.1 * PART.0).min(READ_LOG_BYTES_MAX / 2);
        let mut text = Text::new(&Head {
            context: log.store.context(),
            mount: log.mount,
            host: log.identity.host.clone(),
            from: self.from.unwrap_or(to),
            to,
            dropped: std::mem::take(&mut self.taken.dropped),
        });
        let mut names = HashMap::new();
        let mut files = Files::new();
        for number in 1.. {
            if text.as_bytes().len() >= text_max {
                break;
            }
            let Some((key, count)) = self.taken.counts.pop() else { break };
            let view = view(log, key);
            let who = match names.entry(key.uid) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(unknown) => unknown.insert(log.identity.of(key.uid, None).await),
            };
            let (file, content) = files.find(&view, key).await;
            text.push(&line(&view.0, (key, count), who, (file, content)));
            if number % LINES_STEP == 0 {
                tokio::task::yield_now().await;
            }
        }
        Some(text.seal())
    }
}

/// What a view shows, and its bundle where it was opened.
type View = (ViewKey, Option<Arc<Snapshot>>);

fn view(log: &ReadLog, key: Key) -> View {
    let views = log.views.lock().expect("nothing panics while it holds the views");
    views.by_slot.get(&(key.slot as usize)).cloned().expect("what was read has a view, and views stay")
}

fn line(view: &ViewKey, (key, count): (Key, Count), who: &str, file: (FileName, Option<ContentId>)) -> FileReads {
    FileReads {
        repo: view.repo.id,
        bundle: view.bundle,
        through: view.through.to_string(),
        file: file.0,
        content: file.1,
        uid: key.uid,
        who: who.to_owned(),
        reads: count.reads,
        bytes: count.bytes,
        first: count.first,
        last: count.last,
    }
}

/// Files by their rows; the range that was looked at last is at hand.
struct Files {
    range: Option<(u32, u64, Arc<Vec<Row>>)>,
    until: Instant,
    has_failed: bool,
}

impl Files {
    fn new() -> Self {
        Self { range: None, until: Instant::now() + LOOK_UP_LIMIT, has_failed: false }
    }

    /// The file's name, and the identity of its bytes.
    async fn find(&mut self, view: &View, key: Key) -> (FileName, Option<ContentId>) {
        let by_row = FileName::Row(key.row);
        let Some(row) = self.row(view, key).await else { return (by_row, None) };
        let content = match &row.value {
            RowValue::Entry(entry) => match &entry.body {
                Body::File(file) => Some(file.content.id()),
                _ => None,
            },
            _ => None,
        };
        (row.key.path().map_or(by_row, FileName::Path), content)
    }

    async fn row(&mut self, view: &View, key: Key) -> Option<&Row> {
        let row = u64::from(key.row);
        let holds = |(slot, start, rows): &(u32, u64, Arc<Vec<Row>>)| {
            *slot == key.slot && (*start..*start + rows.len() as u64).contains(&row)
        };
        if !self.range.as_ref().is_some_and(holds) {
            self.range = None;
            let snapshot = view.1.as_ref().filter(|_| !self.has_failed)?;
            let found = tokio::time::timeout_at(self.until, snapshot.range_at(Table::Files, row)).await;
            let found = found.ok().and_then(Result::ok).flatten();
            self.has_failed = found.is_none();
            self.range = found.map(|(start, rows)| (key.slot, start, rows));
        }
        let (_, start, rows) = self.range.as_ref()?;
        rows.get(usize::try_from(row - start).ok()?)
    }
}
