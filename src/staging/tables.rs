//! W5: the tables of a sealed instant, row by row.
//!
//! The walk goes through the instant in the order of row keys and holds one directory's step, the directories that
//! wait, and the hard-link groups; what is known of millions of files stays in the database.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;

use super::commit::CommitError;
use super::error::StagingError;
use super::extents::{SealedExtents, extent_at, next_extent};
use super::inode::{FileData, Inode, InodeBody, ROOT};
use super::seal::Sealed;
use crate::content::reader::ContentReader;
use crate::format::range::{Row, RowKey, RowValue};
use crate::local::db::{Batch, Cursor, Database, Family};
use crate::local::staged_files::{Place, Raw};
use crate::model::chunk::{ChunkIndex, ChunkLayout, ChunkSize};
use crate::model::entry::{Body, Content, Extent, FileBody, FileKind, TreeCounts};
use crate::model::id::LinkId;
use crate::model::limits::INLINE_BYTES_MAX;
use crate::model::name::FileName;
use crate::model::path::TreePath;
use crate::snapshot::writer::TreeWriter;
use crate::snapshot::{RowId, Snapshot, Table};

/// Contents noted in one batch.
const BODIES_BATCH: usize = 1_000;

/// What one chunk of a sealed file is.
pub(super) enum ChunkSource {
    /// A chunk that the store holds.
    Stored(Extent),
    /// Bytes that may have to be stored.
    Bytes(Raw),
}

/// A sealed instant and what its bytes are read with.
#[derive(Clone, Copy)]
pub(super) struct Instant<'a> {
    pub sealed: &'a Sealed,
    pub reader: &'a std::sync::Arc<ContentReader>,
    pub chunk: ChunkSize,
}

impl Instant<'_> {
    /// What chunk `index` of the file `ino` is at the instant.
    pub async fn chunk(
        &self,
        ino: u64,
        file: &FileData,
        layout: &ChunkLayout,
        index: u64,
    ) -> Result<ChunkSource, CommitError> {
        let span = layout.span(ChunkIndex(index));
        let len = (span.end - span.start) as usize;
        if file.is_local(index) {
            if let Some(extent) = self.attached(ino, file, index)? {
                return Ok(ChunkSource::Stored(extent));
            }
            let Some(place) = file.local else { return Ok(ChunkSource::Bytes(Raw::Hole(len))) };
            let data = self.sealed.data().clone();
            let read = if let Place::Log { .. } = place {
                // A small file, in all likelihood still in the page cache: the way to another thread takes longer.
                data.read_chunk(place, index, len)
            } else {
                let read = tokio::task::spawn_blocking(move || data.read_chunk(place, index, len));
                read.await.expect("reading does not panic")
            };
            return Ok(ChunkSource::Bytes(read.map_err(|why| StagingError::of_bytes(ino, why))?));
        }
        let Some(base) = &file.base else { return Ok(ChunkSource::Bytes(Raw::Hole(len))) };
        if self.shows_through(file, base, layout, index) {
            return Ok(ChunkSource::Stored(self.reader.extent(base, ChunkIndex(index)).await?));
        }
        let shown = span.start.min(file.base_limit)..span.end.min(file.base_limit);
        let mut bytes = self.reader.read(base, self.chunk, shown).await?.to_vec();
        bytes.resize(len, 0);
        Ok(ChunkSource::Bytes(Raw::Bytes(bytes)))
    }

    /// What was attached to a local chunk before the seal.
    fn attached(&self, ino: u64, file: &FileData, index: u64) -> Result<Option<Extent>, StagingError> {
        if file.uploaded { extent_at(&self.sealed.instant, ino, index) } else { Ok(None) }
    }

    /// Whether a chunk that is not local is the base's as it is.
    fn shows_through(&self, file: &FileData, base: &FileBody, layout: &ChunkLayout, index: u64) -> bool {
        let span = layout.span(ChunkIndex(index));
        ChunkLayout::new(base.size, self.chunk).span(ChunkIndex(index)) == span
            && span.end <= file.base_limit
            && !matches!(base.content, Content::Inline(_))
    }
}

/// The walk that turns an instant into rows.
pub(super) struct Tables<'a> {
    at: Instant<'a>,
    db: &'a Database,
    parent: Option<&'a Snapshot>,
    pub writer: TreeWriter,
    changed_base: HashSet<u64>,
    /// Inodes and current extents of the instant: numbers of neighbours are mostly neighbours.
    inodes: Cursor<'a>,
    current: Cursor<'a>,
    /// Sizes of hard-linked files, which several names lead to.
    linked: HashMap<u64, u64>,
    bodies: Batch,
}

impl<'a> Tables<'a> {
    /// Tables of the instant `at`, into `writer`.
    pub fn new(
        at: Instant<'a>,
        db: &'a Database,
        parent: Option<&'a Snapshot>,
        writer: TreeWriter,
    ) -> Result<Self, CommitError> {
        let changed_base = at.sealed.changed_base_inodes()?;
        let (inodes, current) = (at.sealed.instant.cursor(Family::Inodes), at.sealed.instant.cursor(Family::Extents));
        let (linked, bodies) = (HashMap::new(), Batch::default());
        Ok(Self { at, db, parent, writer, changed_base, inodes, current, linked, bodies })
    }

    /// Writes all rows; `linked` are the hard-linked inodes that have a record.
    pub async fn write(&mut self, linked: Vec<(u64, Inode)>) -> Result<(), CommitError> {
        self.link_rows(linked).await?;
        self.walk().await?;
        self.note_bodies(0)
    }

    /// Link rows stand before all others: those of the base that are left, and new ones, by group.
    async fn link_rows(&mut self, linked: Vec<(u64, Inode)>) -> Result<(), CommitError> {
        let mut groups: BTreeMap<LinkId, (u64, Inode)> = BTreeMap::new();
        if let Some(snapshot) = &self.at.sealed.base.snapshot {
            let mut ordinal = 0;
            'ranges: while let Some((start, rows)) = snapshot.range_at(Table::Files, ordinal).await? {
                for (at, row) in rows.iter().enumerate() {
                    if !row.key.is_link() {
                        break 'ranges;
                    }
                    let id = RowId { table: Table::Files, ordinal: (start + at as u64) as u32 };
                    let ino = self.at.sealed.base.ino(id);
                    let inode = self.at.sealed.base.inode(ino).await?;
                    if let Some(link) = inode.link {
                        groups.insert(link, (ino, inode));
                    }
                }
                ordinal = start + rows.len() as u64;
            }
        }
        groups.extend(linked.into_iter().filter_map(|(ino, inode)| Some((inode.link?, (ino, inode)))));
        for (link, (ino, inode)) in groups {
            if inode.nlink > 1 {
                let body = self.body(ino, &inode, None).await?;
                let size = if let Body::File(file) = &body { file.size } else { 0 };
                self.linked.insert(ino, size);
                let row = Row { key: RowKey::link(link), value: RowValue::Entry(inode.entry(body)) };
                self.writer.file(row, 0).await?;
            }
        }
        Ok(())
    }

    /// Every directory before what is in it, names in bytewise order: the order of keys.
    async fn walk(&mut self) -> Result<(), CommitError> {
        let root = self.at.sealed.inode(ROOT).await?;
        let body = Body::Directory { counts: TreeCounts::default(), opaque: false };
        self.writer.directory(RowKey::root(), root.entry(body))?;
        let mut waiting = vec![(ROOT, root, TreePath::root())];
        while let Some((ino, inode, path)) = waiting.pop() {
            let below = self.directory(ino, &inode, &path).await?;
            waiting.extend(below.into_iter().rev());
        }
        Ok(())
    }

    /// The rows of one directory; answers the directories in it.
    async fn directory(
        &mut self,
        ino: u64,
        inode: &Inode,
        path: &TreePath,
    ) -> Result<Vec<(u64, Inode, TreePath)>, CommitError> {
        let mut below = Vec::new();
        let mut after: Option<FileName> = None;
        loop {
            let step = self.at.sealed.children(ino, inode, after.as_ref()).await?;
            for (name, child, shown) in step.entries {
                let inode = match shown {
                    Some(inode) if !self.changed_base.contains(&child) => inode,
                    _ => self.inode(child).await?,
                };
                let key = RowKey::child(path, &name);
                if inode.kind() == FileKind::Directory {
                    let body = Body::Directory { counts: TreeCounts::default(), opaque: false };
                    self.writer.directory(key, inode.entry(body))?;
                    below.push((child, inode, path.join(&name)));
                } else {
                    self.file(key, path, &name, child, inode).await?;
                }
            }
            match step.next {
                Some(next) => after = Some(next),
                None => return Ok(below),
            }
        }
    }

    /// The inode `ino` at the instant.
    async fn inode(&mut self, ino: u64) -> Result<Inode, CommitError> {
        match self.inodes.get(&ino.to_be_bytes()).map_err(StagingError::from)? {
            Some(record) => Ok(Inode::decode(record)?),
            None => Ok(self.at.sealed.base.inode(ino).await?),
        }
    }

    async fn file(
        &mut self,
        key: RowKey,
        path: &TreePath,
        name: &FileName,
        ino: u64,
        inode: Inode,
    ) -> Result<(), CommitError> {
        if inode.nlink > 1 {
            let inode = match inode.link {
                Some(_) => inode,
                None => self.inode(ino).await?,
            };
            let link = inode.link.ok_or(StagingError::damaged("hard link without a group"))?;
            let bytes = self.linked.get(&ino).copied().unwrap_or(0);
            return Ok(self.writer.file(Row { key, value: RowValue::Link(link) }, bytes).await?);
        }
        let body = self.body(ino, &inode, Some((path, name))).await?;
        let bytes = if let Body::File(file) = &body { file.size } else { 0 };
        Ok(self.writer.file(Row { key, value: RowValue::Entry(inode.entry(body)) }, bytes).await?)
    }

    async fn body(
        &mut self,
        ino: u64,
        inode: &Inode,
        place: Option<(&TreePath, &FileName)>,
    ) -> Result<Body, CommitError> {
        let file = match &inode.body {
            InodeBody::Directory => return Ok(Body::Directory { counts: TreeCounts::default(), opaque: false }),
            InodeBody::Other(body) => return Ok(body.clone()),
            InodeBody::File(file) => file,
        };
        if let (true, Some(body)) = (file.is_stored(), &file.base) {
            if matches!(body.content, Content::Extents { .. }) {
                self.writer.names_unread_blocks();
            }
            return Ok(Body::File(body.clone()));
        }
        let body = FileBody { size: file.size, content: self.content(ino, file, place).await?, b3sum: None };
        SealedExtents(self.db).put_body(&mut self.bodies, ino, inode.version, body.clone());
        self.note_bodies(BODIES_BATCH)?;
        Ok(Body::File(body))
    }

    /// Notes the contents that wait to be noted, if they are at least so many.
    fn note_bodies(&mut self, min: usize) -> Result<(), CommitError> {
        if self.bodies.len() >= min {
            self.db.write(std::mem::take(&mut self.bodies)).map_err(StagingError::from)?;
        }
        Ok(())
    }

    async fn content(
        &mut self,
        ino: u64,
        file: &FileData,
        place: Option<(&TreePath, &FileName)>,
    ) -> Result<Content, CommitError> {
        let layout = ChunkLayout::new(file.size, self.at.chunk);
        if file.size == 0 {
            return Ok(Content::Inline(Bytes::new()));
        }
        if file.size <= INLINE_BYTES_MAX as u64 {
            return match self.at.chunk(ino, file, &layout, 0).await? {
                ChunkSource::Bytes(bytes) => Ok(Content::Inline(bytes.into_bytes().into())),
                ChunkSource::Stored(extent) => Ok(Content::Chunk(extent)),
            };
        }
        if layout.chunks() == 1 {
            return Ok(Content::Chunk(self.extent(ino, file, &layout, 0).await?));
        }
        let mut extents = Vec::with_capacity(layout.chunks() as usize);
        for index in 0..layout.chunks() {
            extents.push(self.extent(ino, file, &layout, index).await?);
        }
        // Equal blocks of the parent are named, so that the row of an equal file comes out byte-equal.
        let before = self.body_before(place).await?;
        Ok(self.writer.extents(file.size, &extents, before.as_ref().or(file.base.as_ref())).await?)
    }

    /// What chunk `index` is in the store: all are there by now.
    async fn extent(
        &mut self,
        ino: u64,
        file: &FileData,
        layout: &ChunkLayout,
        index: u64,
    ) -> Result<Extent, CommitError> {
        if file.is_local(index) {
            if file.uploaded
                && let Some(extent) = next_extent(&mut self.current, ino, index)?
            {
                return Ok(extent);
            }
        } else if let Some(base) = &file.base
            && self.at.shows_through(file, base, layout, index)
        {
            return Ok(self.at.reader.extent(base, ChunkIndex(index)).await?);
        }
        let found = SealedExtents(self.db).get(ino, index)?;
        Ok(found.ok_or(StagingError::damaged("a chunk was not uploaded"))?)
    }

    /// What the parent has at a path.
    async fn body_before(&self, place: Option<(&TreePath, &FileName)>) -> Result<Option<FileBody>, CommitError> {
        let (Some(parent), Some((path, name))) = (self.parent, place) else { return Ok(None) };
        match parent.lookup(path, name).await?.map(|(_, entry)| entry.body) {
            Some(Body::File(before)) => Ok(Some(before)),
            _ => Ok(None),
        }
    }
}
