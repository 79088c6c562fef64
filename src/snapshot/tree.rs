//! Reading a bundle: names to rows, ordinals to rows, directories to lists.
//!
//! # Invariants
//!
//! 1. A snapshot never changes; every answer is from the descriptor that it was opened with.
//! 2. Ranges and pages come through one cache of bounded weight, shared by all snapshots of a process; concurrent
//!    readers of one share one fetch. What is cached is ready at the first poll.
//! 3. A [`RowId`] is stable: the same number names the same row on every host.
//! 4. A range or page is used only if it holds as many rows, from the same key on, as the page above says: ordinals
//!    and searches agree.

use std::sync::Arc;

use bytes::Bytes;
use moka::future::Cache;
use moka::policy::EvictionPolicy;

use crate::content::reader::{ContentError, ContentReader};
use crate::format::FormatError;
use crate::format::descriptor::{Descriptor, PackEntry, PackTable, Page, PageEntry, decode_pack_table};
use crate::format::envelope::{self, ObjectKind};
use crate::format::intent::ABORTED_BYTES;
use crate::format::key::ObjectKey;
use crate::format::pack::PackKind;
use crate::format::range::{Row, RowKey, RowValue, decode_range};
use crate::model::entry::{BlockList, BlockRef, Body, Content, Entry, FileBody, RecordRef, Xattrs};
use crate::model::id::{BundleId, ObjectHash, RepoId};
use crate::model::name::FileName;
use crate::model::path::TreePath;
use crate::store::StoreError;

/// Why a snapshot could not answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SnapshotError {
    /// No such bundle.
    #[error(
        "{0}: no such bundle (where a label or the history names it, its object is gone: put it back from a copy of the store)"
    )]
    NoBundle(BundleId),
    /// Bytes could not be read.
    #[error(transparent)]
    Content(#[from] ContentError),
}

impl From<StoreError> for SnapshotError {
    fn from(error: StoreError) -> Self {
        Self::Content(error.into())
    }
}

/// One of the two tables of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// Directories.
    Directories,
    /// Everything else.
    Files,
}

/// The number of a row: its table and its place there, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowId {
    /// The table.
    pub table: Table,
    /// The place.
    pub ordinal: u32,
}

impl RowId {
    /// The root directory of every tree.
    pub const ROOT: Self = Self { table: Table::Directories, ordinal: 0 };

    /// The number in 33 bits: table, then ordinal.
    pub fn to_bits(self) -> u64 {
        let table = match self.table {
            Table::Directories => 0,
            Table::Files => 1u64 << 32,
        };
        table | u64::from(self.ordinal)
    }

    /// The row with this number; higher bits are ignored.
    pub fn from_bits(bits: u64) -> Self {
        let table = if bits >> 32 & 1 == 0 { Table::Directories } else { Table::Files };
        Self { table, ordinal: bits as u32 }
    }
}

/// The rows of a range of the one layer that this version reads; what only a delta may hold is refused by name.
fn base_range(raw: &[u8]) -> Result<Vec<Row>, FormatError> {
    let rows = decode_range(raw)?;
    let is_delta = |row: &Row| match &row.value {
        RowValue::Entry(entry) => matches!(entry.body, Body::Directory { opaque: true, .. }),
        RowValue::Link(_) => false,
        RowValue::Tombstone => true,
    };
    if rows.iter().any(is_delta) {
        return Err(FormatError::UnknownFeature { kind: "range", features: "rows of a delta layer".to_owned() });
    }
    Ok(rows)
}

#[derive(Clone)]
enum Loaded {
    Range(Arc<Vec<Row>>),
    Page(Arc<Page>),
}

impl Loaded {
    /// Bytes that it holds in memory, about.
    fn weight(&self) -> usize {
        match self {
            Self::Range(rows) => rows.iter().map(row_bytes).sum(),
            Self::Page(page) => page.entries.iter().map(|entry| size_of::<PageEntry>() + held(&entry.first)).sum(),
        }
    }
}

/// What an allocation costs beside its bytes: the allocator's word, and rounding up to 16.
const ALLOCATION_BYTES: usize = 16;
/// A node of a set of xattrs: room for 11 names and values, of which 6 are used on the average.
const XATTR_NODE_BYTES: usize = 11 * 2 * size_of::<Vec<u8>>() + ALLOCATION_BYTES;

fn held(key: &RowKey) -> usize {
    key.as_bytes().len() + ALLOCATION_BYTES
}

fn row_bytes(row: &Row) -> usize {
    let below = match &row.value {
        RowValue::Entry(entry) => xattr_bytes(&entry.xattrs) + body_bytes(&entry.body),
        RowValue::Link(_) | RowValue::Tombstone => 0,
    };
    size_of::<Row>() + held(&row.key) + below
}

/// Nothing for an empty set, which all rows of a range share.
fn xattr_bytes(xattrs: &Xattrs) -> usize {
    let bytes: usize = xattrs.iter().map(|(name, value)| name.len() + value.len() + 2 * ALLOCATION_BYTES).sum();
    bytes + xattrs.len().div_ceil(6) * XATTR_NODE_BYTES
}

fn body_bytes(body: &Body) -> usize {
    match body {
        Body::Symlink(bytes) | Body::File(FileBody { content: Content::Inline(bytes), .. }) => {
            bytes.len() + ALLOCATION_BYTES
        }
        Body::File(FileBody { content: Content::Extents { blocks: BlockList::Here(blocks), .. }, .. }) => {
            blocks.len() * size_of::<BlockRef>() + 2 * ALLOCATION_BYTES
        }
        _ => 0,
    }
}

/// Decoded ranges and pages of all snapshots of a process, under all that leads to them: what a wrong reference
/// led to is never found under a right one.
#[derive(Clone)]
pub struct RangeCache {
    cache: Cache<RecordRef, Loaded>,
}

impl RangeCache {
    /// A cache of about `bytes`.
    pub fn new(bytes: u64) -> Self {
        let weigh = |_: &RecordRef, loaded: &Loaded| {
            u32::try_from(loaded.weight() + size_of::<(RecordRef, Loaded)>()).unwrap_or(u32::MAX)
        };
        // Who walks a tree touches the rows of a range thousands of times and then never again. A cache that goes by how often
        // something was touched would keep that, and refuse the range that is read now.
        Self {
            cache: Cache::builder().max_capacity(bytes).weigher(weigh).eviction_policy(EvictionPolicy::lru()).build(),
        }
    }

    /// Bytes held now, about.
    pub async fn bytes(&self) -> u64 {
        // What was put in a moment ago is not counted before that.
        self.cache.run_pending_tasks().await;
        self.cache.weighted_size()
    }
}

/// A range and the ordinal of its first row.
type Positioned = (u64, Arc<Vec<Row>>);

/// See the module.
pub struct Snapshot {
    descriptor: Descriptor,
    hash: ObjectHash,
    reader: Arc<ContentReader>,
    ranges: RangeCache,
}

impl Snapshot {
    /// Loads the descriptor of `bundle`.
    pub async fn open(
        reader: Arc<ContentReader>,
        ranges: RangeCache,
        repo: RepoId,
        bundle: BundleId,
    ) -> Result<Arc<Self>, SnapshotError> {
        let store = reader.store().clone();
        let key = store.keys().bundle(repo, bundle);
        let open = |object: &Bytes| {
            if object.len() as u64 == ABORTED_BYTES {
                return Ok(None);
            }
            let body = envelope::open(ObjectKind::Descriptor, Some(store.context()), object)?;
            let descriptor = Descriptor::decode(&body)?;
            if descriptor.repo != repo || descriptor.bundle != bundle {
                return Err(FormatError::Malformed { what: "descriptor of another bundle" });
            }
            Ok(Some((descriptor, ObjectHash::of(object))))
        };
        match store.get_checked(&key, None, open).await {
            Ok(Some((descriptor, hash))) => Ok(Arc::new(Self { descriptor, hash, reader, ranges })),
            Ok(None) | Err(StoreError::NotFound { .. }) => Err(SnapshotError::NoBundle(bundle)),
            Err(error) => Err(error.into()),
        }
    }

    /// The descriptor.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// Hash of the descriptor object.
    pub fn hash(&self) -> ObjectHash {
        self.hash
    }

    /// What reads the bytes of files.
    pub fn reader(&self) -> &Arc<ContentReader> {
        &self.reader
    }

    fn root_page(&self, table: Table) -> &Page {
        let layer = &self.descriptor.layers[0];
        match table {
            Table::Directories => &layer.directories,
            Table::Files => &layer.files,
        }
    }

    /// Rows of a table.
    pub fn rows(&self, table: Table) -> u64 {
        self.root_page(table).rows()
    }

    /// The row `id`: its key and what it says.
    pub async fn row(&self, id: RowId) -> Result<Option<Row>, SnapshotError> {
        let found = self.range_at(id.table, id.ordinal.into()).await?;
        Ok(found.and_then(|(start, rows)| rows.get((u64::from(id.ordinal) - start) as usize).cloned()))
    }

    /// The path of the directory `id`.
    pub async fn directory_path(&self, id: RowId) -> Result<Option<TreePath>, SnapshotError> {
        Ok(self.row(id).await?.and_then(|row| row.key.path()))
    }

    /// The entry `name` of the directory `dir`; the names of a hard-link group answer with the group's row.
    pub async fn lookup(&self, dir: &TreePath, name: &FileName) -> Result<Option<(RowId, Entry)>, SnapshotError> {
        self.find(&RowKey::child(dir, name)).await
    }

    /// The entry with this path.
    pub async fn lookup_path(&self, path: &TreePath) -> Result<Option<(RowId, Entry)>, SnapshotError> {
        self.find(&RowKey::of_path(path)).await
    }

    async fn find(&self, key: &RowKey) -> Result<Option<(RowId, Entry)>, SnapshotError> {
        for table in [Table::Directories, Table::Files] {
            if let Some((id, row)) = self.find_row(table, key).await? {
                return self.resolved(id, row).await;
            }
        }
        Ok(None)
    }

    async fn find_row(&self, table: Table, key: &RowKey) -> Result<Option<(RowId, Row)>, SnapshotError> {
        let Some((start, rows)) = self.range_for(table, key).await? else { return Ok(None) };
        let Ok(at) = rows.binary_search_by(|row| row.key.cmp(key)) else { return Ok(None) };
        Ok(Some((RowId { table, ordinal: (start + at as u64) as u32 }, rows[at].clone())))
    }

    /// Follows a name of a hard-link group to the group's row.
    async fn resolved(&self, id: RowId, row: Row) -> Result<Option<(RowId, Entry)>, SnapshotError> {
        match row.value {
            RowValue::Entry(entry) => Ok(Some((id, entry))),
            RowValue::Tombstone => Ok(None),
            RowValue::Link(link) => match self.find_row(Table::Files, &RowKey::link(link)).await? {
                Some((id, Row { value: RowValue::Entry(entry), .. })) => Ok(Some((id, entry))),
                _ => Err(self.corrupt(FormatError::Malformed { what: "a hard link leads nowhere" })),
            },
        }
    }

    /// Up to `max` entries of the directory `dir` in bytewise order of their names, after `after`.
    pub async fn list(
        &self,
        dir: &TreePath,
        after: Option<&FileName>,
        max: usize,
    ) -> Result<Vec<(FileName, RowId, Entry)>, SnapshotError> {
        let listed = self.list_with(dir, after, max, |id, entry| (id, entry.clone())).await?;
        Ok(listed.into_iter().map(|(name, (id, entry))| (name, id, entry)).collect())
    }

    /// The same, of each entry only what `show` makes of it: a large directory is listed without copying its rows.
    pub async fn list_with<T>(
        &self,
        dir: &TreePath,
        after: Option<&FileName>,
        max: usize,
        show: impl Fn(RowId, &Entry) -> T,
    ) -> Result<Vec<(FileName, T)>, SnapshotError> {
        let mut merged = self.list_table(Table::Directories, dir, after, max, &show).await?;
        merged.extend(self.list_table(Table::Files, dir, after, max, &show).await?);
        // Two sorted lists, one behind the other: linear.
        merged.sort_by(|a, b| a.0.cmp(&b.0));
        merged.truncate(max);
        Ok(merged)
    }

    async fn list_table<T>(
        &self,
        table: Table,
        dir: &TreePath,
        after: Option<&FileName>,
        max: usize,
        show: &impl Fn(RowId, &Entry) -> T,
    ) -> Result<Vec<(FileName, T)>, SnapshotError> {
        let prefix = RowKey::children(dir);
        let mut from = prefix.clone();
        if let Some(after) = after {
            from.extend_from_slice(after.as_bytes());
        }
        let mut listed = Vec::new();
        let Some((mut start, mut rows)) = self.range_for_bytes(table, &from).await? else { return Ok(listed) };
        loop {
            let begin = rows.partition_point(|row| row.key.as_bytes() <= &from[..]);
            for (at, row) in rows.iter().enumerate().skip(begin) {
                if listed.len() >= max || !row.key.as_bytes().starts_with(&prefix) {
                    return Ok(listed);
                }
                // Under the root, link rows share the prefix: they have no name in any directory.
                let Some(name) = row.key.name_behind(&prefix) else { continue };
                let id = RowId { table, ordinal: (start + at as u64) as u32 };
                match &row.value {
                    RowValue::Entry(entry) => listed.push((name, show(id, entry))),
                    RowValue::Tombstone => {}
                    RowValue::Link(_) => {
                        if let Some((id, entry)) = self.resolved(id, row.clone()).await? {
                            listed.push((name, show(id, &entry)));
                        }
                    }
                }
            }
            let next = start + rows.len() as u64;
            match self.range_at(table, next).await? {
                Some(found) => (start, rows) = found,
                None => return Ok(listed),
            }
        }
    }

    /// The range that holds the row `ordinal` and the ordinal of its first row; `None` past the end.
    pub async fn range_at(&self, table: Table, ordinal: u64) -> Result<Option<Positioned>, SnapshotError> {
        let mut start = 0;
        self.descend(table, |page| {
            for entry in &page.entries {
                if ordinal < start + entry.rows {
                    return Some((start, entry.clone()));
                }
                start += entry.rows;
            }
            None
        })
        .await
    }

    async fn range_for(&self, table: Table, key: &RowKey) -> Result<Option<Positioned>, SnapshotError> {
        self.range_for_bytes(table, key.as_bytes()).await
    }

    /// The range in which `key` would stand.
    async fn range_for_bytes(&self, table: Table, key: &[u8]) -> Result<Option<Positioned>, SnapshotError> {
        let mut start = 0;
        self.descend(table, |page| {
            let at = page.entries.partition_point(|entry| entry.first.as_bytes() <= key).saturating_sub(1);
            start += page.entries[..at.min(page.entries.len())].iter().map(|entry| entry.rows).sum::<u64>();
            page.entries.get(at).map(|entry| (start, entry.clone()))
        })
        .await
    }

    /// Goes down the pages, each step chosen by `choose`, to one range.
    async fn descend(
        &self,
        table: Table,
        mut choose: impl FnMut(&Page) -> Option<(u64, PageEntry)>,
    ) -> Result<Option<Positioned>, SnapshotError> {
        let root = self.root_page(table);
        let Some((mut start, mut entry)) = choose(root) else { return Ok(None) };
        for level in (0..root.level).rev() {
            let page = self.page(&entry, level).await?;
            match choose(&page) {
                Some(found) => (start, entry) = found,
                None => return Ok(None),
            }
        }
        Ok(Some((start, self.range(&entry).await?)))
    }

    async fn page(&self, entry: &PageEntry, level: u8) -> Result<Arc<Page>, SnapshotError> {
        let wrong = |what| self.corrupt_record(&entry.at, FormatError::Malformed { what });
        match self.load(&entry.at, |raw| Ok(Loaded::Page(Arc::new(Page::decode(raw)?)))).await? {
            Loaded::Page(page) if page.level != level => Err(wrong("level of a page")),
            Loaded::Page(page) if !page.is(entry) => Err(wrong("a page that is not what the one above says")),
            Loaded::Page(page) => Ok(page),
            Loaded::Range(_) => Err(wrong("a range for a page")),
        }
    }

    /// The rows of one range.
    pub(super) async fn range(&self, entry: &PageEntry) -> Result<Arc<Vec<Row>>, SnapshotError> {
        let wrong = |what| self.corrupt_record(&entry.at, FormatError::Malformed { what });
        let is = |rows: &[Row]| {
            rows.len() as u64 == entry.rows && rows.first().is_some_and(|first| first.key == entry.first)
        };
        match self.load(&entry.at, |raw| Ok(Loaded::Range(Arc::new(base_range(raw)?)))).await? {
            Loaded::Range(rows) if !is(&rows) => Err(wrong("a range that is not what its page says")),
            Loaded::Range(rows) => Ok(rows),
            Loaded::Page(_) => Err(wrong("a page for a range")),
        }
    }

    async fn load(
        &self,
        at: &RecordRef,
        decode: impl Fn(&[u8]) -> Result<Loaded, FormatError>,
    ) -> Result<Loaded, SnapshotError> {
        if let Some(found) = self.ranges.cache.get(at).await {
            return Ok(found);
        }
        let fetch = || async {
            let raw = self.reader.meta(at).await?;
            decode(&raw).map_err(|why| ContentError::Corrupt {
                key: self.reader.store().keys().pack(PackKind::Meta, at.pack),
                why,
            })
        };
        let joined = || async {
            let loaded = self.ranges.cache.try_get_with(*at, fetch()).await;
            loaded.map_err(|error: Arc<ContentError>| (*error).clone())
        };
        Ok(self.reader.of_record(at, joined).await?)
    }

    /// All ranges of a table, in key order.
    pub async fn all_ranges(&self, table: Table) -> Result<Vec<PageEntry>, SnapshotError> {
        let root = self.root_page(table);
        let mut entries = root.entries.clone();
        for level in (0..root.level).rev() {
            let mut below = Vec::new();
            for entry in &entries {
                below.extend(self.page(entry, level).await?.entries.iter().cloned());
            }
            entries = below;
        }
        Ok(entries)
    }

    /// All packs that the bundle refers to, those that hold its pack table included: what a collector keeps.
    pub async fn packs(&self) -> Result<Vec<PackEntry>, SnapshotError> {
        let mut packs = self.listed_packs().await?;
        if let PackTable::Parts { holders, .. } = &self.descriptor.packs {
            packs.extend(holders);
        }
        Ok(packs)
    }

    /// The packs that the pack table lists: all that the tree's tables refer to.
    pub(super) async fn listed_packs(&self) -> Result<Vec<PackEntry>, SnapshotError> {
        match &self.descriptor.packs {
            PackTable::Here(packs) => Ok(packs.clone()),
            PackTable::Parts { parts, .. } => {
                let mut packs = Vec::new();
                for part in parts {
                    let raw = self.reader.meta(part).await?;
                    packs.extend(decode_pack_table(&raw).map_err(|why| self.corrupt_record(part, why))?);
                }
                Ok(packs)
            }
        }
    }

    fn key(&self) -> ObjectKey {
        self.reader.store().keys().bundle(self.descriptor.repo, self.descriptor.bundle)
    }

    fn corrupt(&self, why: FormatError) -> SnapshotError {
        SnapshotError::Content(ContentError::Corrupt { key: self.key(), why })
    }

    fn corrupt_record(&self, at: &RecordRef, why: FormatError) -> SnapshotError {
        let key = self.reader.store().keys().pack(PackKind::Meta, at.pack);
        SnapshotError::Content(ContentError::Corrupt { key, why })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::clock::Timestamp;
    use crate::model::entry::{Attributes, Codec, TreeCounts};
    use crate::model::id::{BlockId, ContentId, IntentId, PackId, Run};
    use bytes::Bytes;

    fn place(offset: u64) -> RecordRef {
        let pack = PackId { intent: IntentId::from_parts(1, 1), run: Run(1), seq: 1 };
        RecordRef { pack, offset, stored: 1, raw: 1, codec: Codec::Raw, hash: ObjectHash([1; 32]) }
    }

    fn range(path_bytes: usize, xattr_bytes: usize, body: Body) -> Loaded {
        let attributes = Attributes { permissions: 0o644, uid: 1, gid: 2, mtime: Timestamp::default() };
        let xattrs: Xattrs = match xattr_bytes {
            0 => Xattrs::default(),
            bytes => Arc::new([(b"user.a".to_vec(), vec![0; bytes])].into()),
        };
        let path = ["x/".repeat(path_bytes / 2), "x".into()].concat();
        let key = RowKey::of_path(&TreePath::parse(path.as_bytes()).unwrap());
        let value = RowValue::Entry(Entry { attributes, xattrs, nlink: 1, body });
        Loaded::Range(Arc::new(vec![Row { key, value }]))
    }

    #[test]
    fn rows_that_only_a_delta_may_hold_are_refused_by_name() {
        let opened = |body: Option<Body>| {
            let Loaded::Range(rows) = range(0, 0, body.clone().unwrap_or(Body::Fifo)) else { panic!("a range") };
            let mut row = rows[0].clone();
            if body.is_none() {
                row.value = RowValue::Tombstone;
            }
            let mut writer = crate::format::range::RangeWriter::default();
            writer.push(&row);
            base_range(&writer.finish().unwrap().1)
        };
        let directory = |opaque| Body::Directory { counts: TreeCounts::default(), opaque };
        assert!(opened(Some(directory(false))).is_ok());
        for refused in [opened(Some(directory(true))), opened(None)] {
            assert!(refused.unwrap_err().to_string().contains("delta layer"));
        }
    }

    #[test]
    fn a_cached_range_weighs_what_it_holds() {
        let file = |content| Body::File(FileBody { size: 1, content, b3sum: None });
        let plain = range(0, 0, Body::Fifo).weight();
        assert!((200..400).contains(&plain), "{plain}");
        let block = BlockRef { id: BlockId([1; 32]), at: place(1) };
        let blocks = BlockList::Here(vec![block; 8].into());
        let heavy = [
            (range(4_002, 0, Body::Fifo), 4_000),
            (range(0, 60_000, Body::Fifo), 60_000),
            (range(0, 0, Body::Symlink(vec![b'x'; 4_000].into())), 4_000),
            (range(0, 0, file(Content::Inline(vec![b'x'; 256].into()))), 256),
            (range(0, 0, file(Content::Extents { id: ContentId([1; 32]), blocks })), 8 * 100),
        ];
        for (loaded, bytes) in heavy {
            let more = loaded.weight() - plain;
            assert!((bytes..bytes * 2 + 1_000).contains(&more), "{bytes} bytes weigh {more}");
        }
        let first = RowKey::of_path(&TreePath::parse("x/".repeat(2_000).trim_end_matches('/').as_bytes()).unwrap());
        let page = Page { level: 0, entries: vec![PageEntry { first, rows: 1, at: place(1) }] };
        assert!(Loaded::Page(Arc::new(page)).weight() > 4_000);
    }

    #[tokio::test]
    async fn the_cache_keeps_its_bound_with_heavy_rows() {
        let ranges = RangeCache::new(1 << 20);
        for n in 0..100 {
            ranges.cache.insert(place(n), range(0, 60_000, Body::Symlink(Bytes::from_static(b"x")))).await;
        }
        ranges.cache.run_pending_tasks().await;
        assert!((1..=17).contains(&ranges.cache.entry_count()), "{} of 60 kB", ranges.cache.entry_count());
    }

    #[tokio::test]
    async fn a_range_that_is_read_now_stays_whatever_was_read_often_before() {
        let ranges = RangeCache::new(1 << 20);
        for n in 0..100 {
            ranges.cache.insert(place(n), range(0, 60_000, Body::Symlink(Bytes::from_static(b"x")))).await;
            ranges.cache.run_pending_tasks().await;
            for _ in 0..100 {
                assert!(ranges.cache.get(&place(n)).await.is_some(), "range {n}");
            }
        }
    }
}
