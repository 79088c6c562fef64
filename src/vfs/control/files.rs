//! `bundle/<id>/files`: every entry of a bundle, made as it is read, so that memory does not grow with the bundle.
//!
//! A line is `mode size mtime content path`, separated by tabs: the mode in octal as in `st_mode`, the path as git
//! quotes it, the content's id only of regular files. Directories stand among files, in the order of their keys.
//!
//! The text of a bundle never changes, so a place in it is a number of bytes and needs no handle: where every
//! [`MARK_BYTES`] of it begin is noted, as the rows that are next there, and a read goes on from the nearest such place. Who
//! reads in order goes on where the last read ended.
//!
//! # Invariants
//!
//! 1. A read answers the same bytes whatever was read before, and by whom; none waits for another.
//! 2. What is kept is bounded: [`BUNDLES_MAX`] bundles with 24 bytes for every [`MARK_BYTES`] of text that somebody read,
//!    and [`READERS_MAX`] places of readers with a line each. The rows come from the cache of ranges.
//! 3. Its length is known only when somebody has read it to the end: see [`BundleFiles::length`].

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::format::range::{Row, RowValue};
use crate::model::entry::{Body, Entry, FileKind};
use crate::model::id::BundleId;
use crate::snapshot::diff::quoted;
use crate::snapshot::{Snapshot, Table};
use crate::vfs::Shared;
use crate::vfs::error::VfsError;

/// Text from one noted place to the next: as much as a read may make that it does not need.
const MARK_BYTES: u64 = 64 << 10;
/// Bundles whose places are remembered; of a million entries they are some 40 KiB.
const BUNDLES_MAX: usize = 32;
/// Texts whose lengths are remembered: 100 KiB.
const LENGTHS_MAX: usize = 4_096;
/// Readers whose place is remembered: each holds two ranges.
const READERS_MAX: usize = 8;

/// What is remembered of all texts.
#[derive(Default)]
pub(super) struct Files {
    /// Most recently used last.
    bundles: Shared<Vec<(BundleId, Arc<BundleFiles>)>>,
    /// Who looks at many bundles, again and again, makes no text twice for its length.
    lengths: Arc<Lengths>,
    /// Where reads ended, the last one last.
    readers: Arc<Shared<Vec<Reader>>>,
}

impl Files {
    /// The text of this bundle.
    pub(super) fn of(&self, snapshot: &Arc<Snapshot>) -> Arc<BundleFiles> {
        let bundle = snapshot.descriptor().bundle;
        let mut bundles = self.bundles.lock().expect("nothing panics while it holds the bundles");
        let known = bundles.iter().position(|(known, _)| *known == bundle);
        let entry = known.map(|at| bundles.remove(at)).unwrap_or_else(|| {
            let files = BundleFiles {
                snapshot: snapshot.clone(),
                readers: self.readers.clone(),
                lengths: self.lengths.clone(),
                noted: Shared::default(),
                measured: Default::default(),
            };
            (bundle, Arc::new(files))
        });
        if bundles.len() >= BUNDLES_MAX {
            bundles.remove(0);
        }
        bundles.push(entry.clone());
        entry.1
    }
}

/// See the module.
pub struct BundleFiles {
    snapshot: Arc<Snapshot>,
    readers: Arc<Shared<Vec<Reader>>>,
    lengths: Arc<Lengths>,
    noted: Shared<Noted>,
    /// Held by who reads to the end for the length; others who want it wait for that.
    measured: tokio::sync::Mutex<()>,
}

/// How long texts are that have been read to their ends.
#[derive(Default)]
struct Lengths(Shared<HashMap<BundleId, u64>>);

impl Lengths {
    fn of(&self, bundle: BundleId) -> Option<u64> {
        self.0.lock().expect("nothing panics while it holds the lengths").get(&bundle).copied()
    }

    fn note(&self, bundle: BundleId, length: u64) {
        let mut lengths = self.0.lock().expect("nothing panics while it holds the lengths");
        if lengths.len() >= LENGTHS_MAX {
            lengths.clear();
        }
        lengths.insert(bundle, length);
    }
}

/// What is known of a text.
#[derive(Default)]
struct Noted {
    /// Beginnings of lines, [`MARK_BYTES`] apart or a little more; the very first is not among them.
    marks: Vec<Mark>,
}

/// Where a line begins, and the rows of both tables that are next there.
#[derive(Debug, Clone, Copy, Default)]
struct Mark {
    offset: u64,
    rows: [u64; 2],
}

impl BundleFiles {
    /// Up to `size` bytes of the text from `offset` on; fewer only at its end.
    pub async fn read(&self, offset: u64, size: usize) -> Result<Bytes, VfsError> {
        let mut reader = self.reader(offset);
        self.go_to(&mut reader, offset).await?;
        let mut has_ended = false;
        while reader.text.len() < size && !has_ended {
            has_ended = !self.read_line(&mut reader).await?;
        }
        let rest = reader.text.split_off(size.min(reader.text.len()));
        let part = std::mem::replace(&mut reader.text, rest);
        reader.start += part.len() as u64;
        if !has_ended {
            self.leave(reader);
        }
        Ok(part.into())
    }

    /// How long the text is. The first time that takes all rows of the bundle, as reading it does.
    pub async fn length(&self) -> Result<u64, VfsError> {
        let known = || self.lengths.of(self.snapshot.descriptor().bundle);
        if let Some(length) = known() {
            return Ok(length);
        }
        let _measuring = self.measured.lock().await;
        if let Some(length) = known() {
            return Ok(length);
        }
        let mut reader = self.reader(u64::MAX);
        self.go_to(&mut reader, u64::MAX).await?;
        Ok(reader.start)
    }

    /// A reader as little before `offset` as there is one.
    fn reader(&self, offset: u64) -> Reader {
        let noted = self.noted.lock().expect("nothing panics while it holds the places");
        let at = noted.marks.partition_point(|mark| mark.offset <= offset);
        let mark = at.checked_sub(1).map_or_else(Mark::default, |at| noted.marks[at]);
        drop(noted);
        let mut readers = self.readers.lock().expect("nothing panics while it holds the readers");
        let is_nearer = |reader: &Reader| self.is_of(reader) && (mark.offset..=offset).contains(&reader.start);
        let left = (0..readers.len()).filter(|at| is_nearer(&readers[*at])).max_by_key(|at| readers[*at].start);
        match left {
            Some(at) => readers.remove(at),
            None => Reader::at(self.snapshot.descriptor().bundle, mark),
        }
    }

    fn is_of(&self, reader: &Reader) -> bool {
        reader.bundle == self.snapshot.descriptor().bundle
    }

    /// Keeps a reader for who reads on.
    fn leave(&self, reader: Reader) {
        let mut readers = self.readers.lock().expect("nothing panics while it holds the readers");
        if readers.len() >= READERS_MAX {
            readers.remove(0);
        }
        readers.push(reader);
    }

    /// Moves on to `offset`, or the end.
    async fn go_to(&self, reader: &mut Reader, offset: u64) -> Result<(), VfsError> {
        let mut passed = 0;
        while reader.start < offset {
            let skipped = usize::try_from(offset - reader.start).unwrap_or(usize::MAX).min(reader.text.len());
            reader.text.drain(..skipped);
            reader.start += skipped as u64;
            passed += skipped as u64;
            // Not on the thread that answers: what is in the cache never waits.
            if passed > MARK_BYTES {
                tokio::task::yield_now().await;
                passed = 0;
            }
            if reader.text.is_empty() && !self.read_line(reader).await? {
                break;
            }
        }
        Ok(())
    }

    /// Adds a line to the reader's text; answers whether there was one.
    async fn read_line(&self, reader: &mut Reader) -> Result<bool, VfsError> {
        let (rows, offset) = (reader.cursors.each_ref().map(|cursor| cursor.next), reader.end());
        let line = self.next_line(&mut reader.cursors).await?;
        let mut noted = self.noted.lock().expect("nothing panics while it holds the places");
        let Some(line) = line else {
            self.lengths.note(self.snapshot.descriptor().bundle, offset);
            return Ok(false);
        };
        if offset >= noted.marks.last().map_or(0, |mark| mark.offset) + MARK_BYTES {
            noted.marks.push(Mark { offset, rows });
        }
        reader.text.extend_from_slice(&line);
        Ok(true)
    }

    async fn next_line(&self, [directories, files]: &mut [Cursor; 2]) -> Result<Option<Vec<u8>>, VfsError> {
        loop {
            let is_directory = match (directories.peek(&self.snapshot).await?, files.peek(&self.snapshot).await?) {
                (Some(directory), Some(file)) => directory.key < file.key,
                (directory, _) => directory.is_some(),
            };
            let next = if is_directory { &mut *directories } else { &mut *files };
            let Some(row) = next.peek(&self.snapshot).await?.cloned() else { return Ok(None) };
            next.next += 1;
            // The rows of hard links have no name; the names that lead to them come later.
            let Some(path) = row.key.path() else { continue };
            let entry = match row {
                Row { value: RowValue::Entry(entry), .. } => Some(entry),
                Row { .. } => self.snapshot.lookup_path(&path).await?.map(|(_, entry)| entry),
            };
            let Some(entry) = entry else { continue };
            return Ok(Some(line(&entry, path.as_bytes())));
        }
    }
}

/// A place in a text.
struct Reader {
    bundle: BundleId,
    cursors: [Cursor; 2],
    /// What was made and not read yet, and where it begins.
    text: Vec<u8>,
    start: u64,
}

impl Reader {
    fn at(bundle: BundleId, mark: Mark) -> Self {
        let [directories, files] = mark.rows;
        let cursors = [Cursor::at(Table::Directories, directories), Cursor::at(Table::Files, files)];
        Self { bundle, cursors, text: Vec::new(), start: mark.offset }
    }

    fn end(&self) -> u64 {
        self.start + self.text.len() as u64
    }
}

/// A place in a table.
struct Cursor {
    table: Table,
    next: u64,
    /// The range that was read last, and the ordinal of its first row.
    rows: Arc<Vec<Row>>,
    first: u64,
    has_ended: bool,
}

impl Cursor {
    fn at(table: Table, next: u64) -> Self {
        Self { table, next, rows: Arc::default(), first: next, has_ended: false }
    }

    /// The next row.
    async fn peek(&mut self, snapshot: &Snapshot) -> Result<Option<&Row>, VfsError> {
        let is_here = (self.first..self.first + self.rows.len() as u64).contains(&self.next);
        if !is_here && !self.has_ended {
            match snapshot.range_at(self.table, self.next).await? {
                Some((first, rows)) => (self.first, self.rows) = (first, rows),
                None => (self.has_ended, self.rows) = (true, Arc::default()),
            }
        }
        Ok(self.rows.get((self.next - self.first) as usize))
    }
}

fn line(entry: &Entry, path: &[u8]) -> Vec<u8> {
    let kind: u32 = match entry.kind() {
        FileKind::Fifo => 0o010,
        FileKind::CharDevice => 0o020,
        FileKind::Directory => 0o040,
        FileKind::BlockDevice => 0o060,
        FileKind::Regular => 0o100,
        FileKind::Symlink => 0o120,
        FileKind::Socket => 0o140,
    };
    let content = match &entry.body {
        Body::File(file) => file.content.id().to_string(),
        _ => "-".to_owned(),
    };
    let (permissions, mtime) = (entry.attributes.permissions, entry.attributes.mtime);
    // st_mode: the kind's three digits and twelve bits of permissions.
    let mode = (kind << 9) | u32::from(permissions);
    let mut line = format!("{mode:06o}\t{}\t{mtime}\t{content}\t", entry.size()).into_bytes();
    line.extend_from_slice(&if path.is_empty() { b".".to_vec() } else { quoted(path) });
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::clock::Timestamp;
    use crate::model::entry::{Attributes, Xattrs};

    #[test]
    fn a_line_shows_the_mode_as_stat_does() {
        let attributes = Attributes { permissions: 0o4755, uid: 0, gid: 0, mtime: Timestamp::default() };
        let entry = |body| Entry { attributes, xattrs: Xattrs::default(), nlink: 1, body };
        let link = line(&entry(Body::Symlink(Bytes::from_static(b"a/b"))), b"a\nb");
        assert_eq!(String::from_utf8(link).unwrap(), "124755\t3\t1970-01-01T00:00:00Z\t-\t\"a\\nb\"\n");
        let root = line(&entry(Body::Fifo), b"");
        assert!(root.starts_with(b"014755\t0\t") && root.ends_with(b"\t.\n"));
    }
}
