//! `bundle/<id>/files`: every entry of a bundle, made as it is read, so that memory does not grow with the bundle.
//!
//! A line is `mode size mtime content path`, separated by tabs: the mode in octal as in `st_mode`, the path as git
//! quotes it, the content's id only of regular files. Directories stand among files, in the order of their keys.

use std::sync::Arc;

use bytes::Bytes;

use crate::format::range::{Row, RowValue};
use crate::model::entry::{Body, Entry, FileKind};
use crate::snapshot::diff::{Rows, quoted};
use crate::snapshot::{Snapshot, Table};
use crate::vfs::error::VfsError;

/// Bytes that are kept behind the place of the last read: the kernel's requests may arrive out of order.
const KEPT_BYTES: usize = 1 << 20;

/// See the module.
pub struct BundleFiles {
    snapshot: Arc<Snapshot>,
    /// The next row of each table; none before the first read.
    rows: Option<[Rows; 2]>,
    /// A part of the text, and where it begins.
    text: Vec<u8>,
    start: u64,
}

impl BundleFiles {
    /// The text of this bundle.
    pub fn of(snapshot: Arc<Snapshot>) -> Self {
        Self { snapshot, rows: None, text: Vec::new(), start: 0 }
    }

    /// Up to `size` bytes of the text from `offset` on.
    pub async fn read(&mut self, offset: u64, size: usize) -> Result<Bytes, VfsError> {
        if offset < self.start || self.rows.is_none() {
            let directories = Rows::all(self.snapshot.clone(), Table::Directories).await?;
            self.rows = Some([directories, Rows::all(self.snapshot.clone(), Table::Files).await?]);
            (self.start, self.text) = (0, Vec::new());
        }
        while self.start + (self.text.len() as u64) < offset.saturating_add(size as u64) {
            let Some(line) = self.next_line().await? else { break };
            self.text.extend_from_slice(&line);
            let behind = (offset.saturating_sub(self.start) as usize).min(self.text.len());
            if behind > 2 * KEPT_BYTES {
                let cut = behind - KEPT_BYTES;
                self.text.drain(..cut);
                self.start += cut as u64;
            }
        }
        let from = (offset.saturating_sub(self.start) as usize).min(self.text.len());
        let to = from.saturating_add(size).min(self.text.len());
        Ok(Bytes::copy_from_slice(&self.text[from..to]))
    }

    async fn next_line(&mut self) -> Result<Option<Vec<u8>>, VfsError> {
        let Some([directories, files]) = &mut self.rows else { return Ok(None) };
        loop {
            let is_directory = match (directories.peek().await?, files.peek().await?) {
                (Some(directory), Some(file)) => directory.key < file.key,
                (directory, _) => directory.is_some(),
            };
            let next = if is_directory { &mut *directories } else { &mut *files };
            let Some(row) = next.peek().await?.cloned() else { return Ok(None) };
            next.skip();
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
