//! What changed from one bundle to another, in the time of the change.
//!
//! Ranges are cut by the keys in them, so where nothing changed both bundles have the same ranges, byte for byte, and
//! mostly the very same records. A range that both tables hold covers the same keys in both: it is left out on either
//! side, and the rows of what remains are compared in key order.
//!
//! An entry has changed when its kind, bytes, permissions, owner, xattrs, target or device number did; a time alone is no
//! change, as for git. Directories are shown, with a '/' behind their name, when they themselves were added, removed or
//! changed so. What was a directory and is none any more was removed, and the other added, as for git.
//!
//! # Invariants
//!
//! 1. What is loaded are ranges that differ; only where a hard-linked file changed, the names that lead to it are looked
//!    for in all ranges.
//! 2. Memory is bounded by the changes.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use crate::format::descriptor::PageEntry;
use crate::format::range::{Row, RowKey, RowValue};
use crate::model::entry::{Body, Entry};
use crate::model::id::{LinkId, ObjectHash};
use crate::snapshot::tree::{Snapshot, SnapshotError, Table};

/// How an entry changed: the letters of `git diff --name-status`.
const ADDED: u8 = b'A';
const DELETED: u8 = b'D';
const MODIFIED: u8 = b'M';
const RETYPED: u8 = b'T';

/// One changed path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// Its path; of a directory with a '/' behind it.
    pub path: Vec<u8>,
    /// `A`, `D`, `M` or `T`.
    pub letter: u8,
}

/// What changed, and what it cost.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// By path.
    pub changes: Vec<Change>,
    /// Ranges that were looked into.
    pub ranges: usize,
}

/// The rows of some ranges of a table, one after the other.
pub struct Rows {
    snapshot: Arc<Snapshot>,
    ranges: std::vec::IntoIter<PageEntry>,
    rows: Arc<Vec<Row>>,
    at: usize,
    loaded: usize,
}

impl Rows {
    /// All rows of a table.
    pub async fn all(snapshot: Arc<Snapshot>, table: Table) -> Result<Self, SnapshotError> {
        let ranges = snapshot.all_ranges(table).await?;
        Ok(Self::of(snapshot, ranges))
    }

    fn of(snapshot: Arc<Snapshot>, ranges: Vec<PageEntry>) -> Self {
        Self { snapshot, ranges: ranges.into_iter(), rows: Arc::default(), at: 0, loaded: 0 }
    }

    /// The next row.
    pub async fn peek(&mut self) -> Result<Option<&Row>, SnapshotError> {
        while self.at >= self.rows.len() {
            let Some(entry) = self.ranges.next() else { return Ok(None) };
            (self.rows, self.at) = (self.snapshot.range(&entry).await?, 0);
            self.loaded += 1;
        }
        Ok(self.rows.get(self.at))
    }

    /// Goes on to the one after it.
    pub fn skip(&mut self) {
        self.at += 1;
    }
}

/// What changed from `old` to `new`.
pub async fn changes(old: &Arc<Snapshot>, new: &Arc<Snapshot>) -> Result<Changes, SnapshotError> {
    let mut found = Changes::default();
    let mut by_key = ByKey::new();
    let mut links = HashSet::new();
    for table in [Table::Directories, Table::Files] {
        let (mut old, mut new) = differing(old, new, table).await?;
        loop {
            let (before, after) = match (old.peek().await?, new.peek().await?) {
                (None, None) => break,
                (Some(before), Some(after)) if before.key == after.key => (Some(before), Some(after)),
                (Some(before), Some(after)) if before.key < after.key => (Some(before), None),
                (Some(before), None) => (Some(before), None),
                (_, after) => (None, after),
            };
            note(before, after, &mut by_key, &mut links);
            let (was, is) = (before.is_some(), after.is_some());
            if was {
                old.skip();
            }
            if is {
                new.skip();
            }
        }
        found.ranges += old.loaded + new.loaded;
    }
    if !links.is_empty() {
        found.ranges += note_names(new, &links, &mut by_key).await?;
    }
    let shown = |((key, is_directory), letter): ((RowKey, bool), u8)| shown(&key, is_directory, letter);
    found.changes = by_key.into_iter().filter_map(shown).collect();
    found.changes.sort();
    Ok(found)
}

/// The letter of each changed key, as that of a directory or of anything else: it may have been the one and be the other.
type ByKey = BTreeMap<(RowKey, bool), u8>;

fn shown(key: &RowKey, is_directory: bool, letter: u8) -> Option<Change> {
    let path = key.path()?;
    let mut path = if path.is_root() { b".".to_vec() } else { path.as_bytes().to_vec() };
    if is_directory {
        path.push(b'/');
    }
    Some(Change { path, letter })
}

/// The rows of a table's ranges that are not in both.
async fn differing(old: &Arc<Snapshot>, new: &Arc<Snapshot>, table: Table) -> Result<(Rows, Rows), SnapshotError> {
    let (was, is) = (old.all_ranges(table).await?, new.all_ranges(table).await?);
    let name = |entry: &PageEntry| (entry.first.clone(), entry.at.hash);
    let before: HashSet<(RowKey, ObjectHash)> = was.iter().map(name).collect();
    let both: HashSet<(RowKey, ObjectHash)> = is.iter().map(name).filter(|name| before.contains(name)).collect();
    let rest = |ranges: Vec<PageEntry>| ranges.into_iter().filter(|entry| !both.contains(&name(entry))).collect();
    Ok((Rows::of(old.clone(), rest(was)), Rows::of(new.clone(), rest(is))))
}

/// Notes what became of one key of one table.
fn note(before: Option<&Row>, after: Option<&Row>, found: &mut ByKey, links: &mut HashSet<LinkId>) {
    let letter = match (before.map(|row| &row.value), after.map(|row| &row.value)) {
        (Some(RowValue::Entry(a)), Some(RowValue::Entry(b))) => changed(a, b),
        (Some(a), Some(b)) => (a != b).then_some(MODIFIED),
        (None, Some(_)) => Some(ADDED),
        (Some(_), None) => Some(DELETED),
        (None, None) => None,
    };
    let (Some(letter), Some(row)) = (letter, after.or(before)) else { return };
    if row.key.is_link() {
        // A group that is new or gone shows in the names that lead to it.
        links.extend(row.key.link_id().filter(|_| before.is_some() && after.is_some()));
        return;
    }
    let is_directory = matches!(&row.value, RowValue::Entry(Entry { body: Body::Directory { .. }, .. }));
    found.insert((row.key.clone(), is_directory), letter);
}

/// How an entry changed, if it did.
fn changed(a: &Entry, b: &Entry) -> Option<u8> {
    if a.kind() != b.kind() {
        return Some(RETYPED);
    }
    let body = match (&a.body, &b.body) {
        (Body::Directory { .. }, Body::Directory { .. }) => false,
        (Body::File(a), Body::File(b)) => a.size != b.size || a.content.id() != b.content.id(),
        (a, b) => a != b,
    };
    let bits = |entry: &Entry| (entry.attributes.permissions, entry.attributes.uid, entry.attributes.gid);
    (body || bits(a) != bits(b) || a.xattrs != b.xattrs).then_some(MODIFIED)
}

/// Finds the names that lead to changed hard links. Answers how many ranges were looked into.
async fn note_names(new: &Arc<Snapshot>, links: &HashSet<LinkId>, found: &mut ByKey) -> Result<usize, SnapshotError> {
    let mut rows = Rows::all(new.clone(), Table::Files).await?;
    while let Some(row) = rows.peek().await? {
        if matches!(&row.value, RowValue::Link(link) if links.contains(link)) {
            found.entry((row.key.clone(), false)).or_insert(MODIFIED);
        }
        rows.skip();
    }
    Ok(rows.loaded)
}

/// A path as git writes it: as it is, or in quotes with C's escapes where a byte would not survive a line of text.
pub fn quoted(path: &[u8]) -> Vec<u8> {
    let escape = |byte: u8| match byte {
        b'\x07' => Some(b'a'),
        b'\x08' => Some(b'b'),
        b'\t' => Some(b't'),
        b'\n' => Some(b'n'),
        b'\x0b' => Some(b'v'),
        b'\x0c' => Some(b'f'),
        b'\r' => Some(b'r'),
        b'"' | b'\\' => Some(byte),
        _ => None,
    };
    if path.iter().all(|byte| escape(*byte).is_none() && (b' '..0x7f).contains(byte)) {
        return path.to_vec();
    }
    let mut quoted = vec![b'"'];
    for byte in path {
        match escape(*byte) {
            Some(letter) => quoted.extend([b'\\', letter]),
            None if (b' '..0x7f).contains(byte) => quoted.push(*byte),
            None => quoted.extend_from_slice(format!("\\{byte:03o}").as_bytes()),
        }
    }
    quoted.push(b'"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_quoted_as_git_does() {
        assert_eq!(quoted(b"a b/c.csv"), b"a b/c.csv");
        assert_eq!(quoted("größe".as_bytes()), b"\"gr\\303\\266\\303\\237e\"");
        assert_eq!(quoted(b"a\tb\"c\\d\n\x01\x7f"), b"\"a\\tb\\\"c\\\\d\\n\\001\\177\"");
    }
}
