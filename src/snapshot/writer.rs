//! Writing a bundle's tables: rows in key order in, metadata packs and a descriptor out.
//!
//! Rows of F stream through; rows of D are kept until the end, because a directory's counts are known only then. A
//! range or extent block that comes out equal to one of the base is not stored again: the base's is named. The base is
//! one of the intent's bases, and only what its pack table lists is re-used.
//!
//! # Invariants
//!
//! 1. Every pack that a row, page or block names is in the descriptor's pack table; the packs that hold a table in parts
//!    are in the descriptor.
//! 2. When [`TreeWriter::finish`] returns, every metadata pack is durable; the descriptor is not written here.
//! 3. Nothing is written that was not decoded first, as its readers will.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;

use super::tree::{Snapshot, SnapshotError, Table};
use crate::content::packer::{PackError, PackJournal};
use crate::content::reader::ContentReader;
use crate::format::FormatError;
use crate::format::descriptor::{
    Descriptor, Layer, PAGE_ENTRIES_MAX, PAGE_LEVEL_MAX, PackEntry, PackTable, Page, PageEntry, decode_pack_table,
    encode_pack_table,
};
use crate::format::envelope::{self, ObjectKind};
use crate::format::extents::{decode_block_list, decode_extents, encode_block_list, encode_extents};
use crate::format::pack::{PackKind, PackWriter, Record};
use crate::format::range::{RangeWriter, Row, RowKey, RowValue, decode_range};
use crate::model::entry::{BlockList, BlockRef, Body, Content, Entry, Extent, FileBody, RecordRef, TreeCounts};
use crate::model::id::{BlockId, ContentId, IntentId, ObjectHash, PackId, Run};
use crate::model::limits::{
    DESCRIPTOR_BYTES_MAX, EXTENT_BLOCK_CHUNKS, PATH_BYTES_MAX, RECORD_RAW_BYTES_MAX, ROW_EXTENT_BLOCKS_MAX, ROWS_MAX,
};
use crate::store::Store;

/// Bytes after which a metadata pack is closed.
const META_PACK_BYTES: usize = 8 << 20;
/// Packs that one part of a pack table lists: half a MiB.
const PART_PACKS: usize = 8 * PAGE_ENTRIES_MAX;

/// Why a tree could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// A pack did not reach the store.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// The base could not be read.
    #[error(transparent)]
    Base(#[from] SnapshotError),
    /// A row names a pack that nobody knows: the bundle would not keep it alive.
    #[error("pack {0} is named by the tree and listed nowhere: changes stay staged")]
    UnknownPack(PackId),
    /// An entry lies deeper than a bundle can say.
    #[error(
        "{begin}…: a path of {bytes} bytes, and a bundle takes {PATH_BYTES_MAX} (give it or its directories shorter names, or move \
         it up): changes stay staged"
    )]
    PathTooLong {
        /// The path's first bytes.
        begin: String,
        /// Its length.
        bytes: usize,
    },
    /// What was made of the tree does not come back: a bug, or an entry beyond the limits of the format.
    #[error("{what} of the new bundle cannot be read back ({why}): changes stay staged")]
    Unreadable {
        /// What was made.
        what: &'static str,
        /// Why it is refused.
        why: FormatError,
    },
    /// The tree is larger than a bundle may be.
    #[error("{what} exceed the limit of a bundle ({limit})")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// How much may be.
        limit: u64,
    },
}

/// Refuses what no reader would take: the only copy of somebody's data must not end in bytes that are thought damaged.
fn readable<T>(what: &'static str, decoded: Result<T, FormatError>) -> Result<(), WriteError> {
    decoded.map(drop).map_err(|why| WriteError::Unreadable { what, why })
}

/// Refuses a key whose path is longer than readers take: a key has a byte more, for the end of its directory.
fn expect_path(key: &RowKey) -> Result<(), WriteError> {
    const SHOWN_BYTES: usize = 120;
    let key = key.as_bytes();
    if key.len() <= PATH_BYTES_MAX + 1 {
        return Ok(());
    }
    let begin = String::from_utf8_lossy(&key[..SHOWN_BYTES]).replace('\0', "/");
    Err(WriteError::PathTooLong { begin, bytes: key.len() - 1 })
}

/// Writes one tree. See the module.
pub struct TreeWriter {
    meta: MetaPacks,
    base_ranges: HashMap<ObjectHash, RecordRef>,
    base_packs: BTreeMap<PackId, PackEntry>,
    /// Reads the base; none without a base.
    reader: Option<Arc<ContentReader>>,
    used: BTreeSet<PackId>,
    names_unread_blocks: bool,
    directories: Vec<Row>,
    counts: HashMap<Vec<u8>, TreeCounts>,
    files: TableWriter,
}

/// The metadata packs of one commit.
struct MetaPacks {
    store: Arc<Store>,
    journal: Arc<dyn PackJournal>,
    intent: IntentId,
    run: Run,
    open: Option<PackWriter>,
    done: Vec<PackEntry>,
}

/// The ranges of one table.
#[derive(Default)]
struct TableWriter {
    range: RangeWriter,
    entries: Vec<PageEntry>,
    rows: u64,
}

/// The identity of a file of several chunks and `len` bytes.
pub fn content_id(len: u64, extents: &[Extent]) -> ContentId {
    let blocks = extents.chunks(EXTENT_BLOCK_CHUNKS);
    ContentId::of_blocks(len, blocks.map(|block| BlockId::of(block.iter().map(|extent| extent.id))))
}

impl TreeWriter {
    /// A writer under `intent`; ranges equal to one of `base` are re-used.
    pub async fn new(
        store: Arc<Store>,
        journal: Arc<dyn PackJournal>,
        intent: IntentId,
        run: Run,
        base: Option<&Snapshot>,
    ) -> Result<Self, WriteError> {
        let mut base_ranges = HashMap::new();
        let mut base_packs = BTreeMap::new();
        if let Some(base) = base {
            for table in [Table::Directories, Table::Files] {
                base_ranges.extend(base.all_ranges(table).await?.into_iter().map(|entry| (entry.at.hash, entry.at)));
            }
            base_packs.extend(base.listed_packs().await?.into_iter().map(|pack| (pack.id, pack)));
        }
        Ok(Self {
            meta: MetaPacks { store, journal, intent, run, open: None, done: Vec::new() },
            base_ranges,
            base_packs,
            reader: base.map(|base| base.reader().clone()),
            used: BTreeSet::new(),
            names_unread_blocks: false,
            directories: Vec::new(),
            counts: HashMap::new(),
            files: TableWriter::default(),
        })
    }

    /// A directory; in key order among directories.
    pub fn directory(&mut self, key: RowKey, entry: Entry) -> Result<(), WriteError> {
        expect_path(&key)?;
        self.directories.push(Row { key, value: RowValue::Entry(entry) });
        Ok(())
    }

    /// Anything else; in key order among these, link rows first. `bytes` is what the name adds to its directory's
    /// counts: a regular file's size, through a hard link too.
    pub async fn file(&mut self, row: Row, bytes: u64) -> Result<(), WriteError> {
        if !row.key.is_link() {
            expect_path(&row.key)?;
            let key = row.key.as_bytes();
            let end = key.windows(2).position(|pair| pair == [0, 0]).expect("every key but a link's has a parent") + 2;
            let counts = match self.counts.get_mut(&key[..end]) {
                Some(counts) => counts,
                None => self.counts.entry(key[..end].to_vec()).or_default(),
            };
            counts.files += 1;
            counts.bytes = counts.bytes.saturating_add(bytes);
        }
        self.files.range.push(&row);
        self.files.rows += 1;
        if self.files.range.is_full(&row.key) {
            self.close_range(Table::Files).await?;
        }
        Ok(())
    }

    /// Writes the extent blocks of a file of several chunks and `len` bytes.
    ///
    /// `before` is what this file, or one like it, was in the base: a block of it that describes the same chunks at the same
    /// place is named, not written again.
    pub async fn extents(
        &mut self,
        len: u64,
        extents: &[Extent],
        before: Option<&FileBody>,
    ) -> Result<Content, WriteError> {
        let known = self.reusable_blocks(before).await;
        let mut blocks = Vec::new();
        for (index, block) in extents.chunks(EXTENT_BLOCK_CHUNKS).enumerate() {
            let id = BlockId::of(block.iter().map(|extent| extent.id));
            let same = known.get(index).filter(|known| known.id == id);
            match same {
                Some(same) if self.names_block(*same).await => blocks.push(*same),
                _ => {
                    self.used.extend(block.iter().filter_map(|extent| extent.at.map(|at| at.pack)));
                    let raw = encode_extents(block);
                    readable("an extent block", decode_extents(id, &raw))?;
                    blocks.push(BlockRef { id, at: self.meta.append(Record::meta(raw)).await? });
                }
            }
        }
        let id = ContentId::of_blocks(len, blocks.iter().map(|block| block.id));
        Ok(Content::Extents { id, blocks: self.block_list(blocks, &known, before).await? })
    }

    /// The blocks of `before`, if there is a base from which to take them. Blocks that cannot be read are written again.
    async fn reusable_blocks(&self, before: Option<&FileBody>) -> Arc<[BlockRef]> {
        match (&self.reader, before) {
            (Some(reader), Some(before)) if self.is_listed(before) => reader.blocks(before).await.unwrap_or_default(),
            _ => Arc::new([]),
        }
    }

    /// Whether the base keeps the list of this file's blocks alive.
    fn is_listed(&self, before: &FileBody) -> bool {
        match &before.content {
            Content::Extents { blocks: BlockList::Listed { at, .. }, .. } => self.base_packs.contains_key(&at.pack),
            _ => true,
        }
    }

    /// Takes a block of the base, and with it all packs that it names; `false` if the base does not list them all, or the
    /// block cannot be read: then it is written again.
    ///
    /// The block is read, because its chunks may lie elsewhere than where the caller found the same chunks. It was
    /// read a moment ago, when the chunks that did not change were looked up, so it comes from the cache.
    async fn names_block(&mut self, block: BlockRef) -> bool {
        let Some(reader) = self.reader.as_ref().filter(|_| self.base_packs.contains_key(&block.at.pack)) else {
            return false;
        };
        let Ok(extents) = reader.block(block).await else { return false };
        let mut packs: BTreeSet<PackId> = extents.iter().filter_map(|extent| extent.at.map(|at| at.pack)).collect();
        packs.insert(block.at.pack);
        let all = packs.iter().all(|pack| self.base_packs.contains_key(pack));
        if all {
            self.used.append(&mut packs);
        }
        all
    }

    /// Blocks as a row names them; a list that the base has is named, not written again.
    async fn block_list(
        &mut self,
        blocks: Vec<BlockRef>,
        known: &[BlockRef],
        before: Option<&FileBody>,
    ) -> Result<BlockList, WriteError> {
        if blocks.len() <= ROW_EXTENT_BLOCKS_MAX {
            return Ok(BlockList::Here(blocks.into()));
        }
        let count = blocks.len() as u32;
        if let Some(FileBody { content: Content::Extents { blocks: BlockList::Listed { at, .. }, .. }, .. }) = before
            && blocks[..] == *known
        {
            self.used.insert(at.pack);
            return Ok(BlockList::Listed { count, at: *at });
        }
        self.used.extend(blocks.iter().map(|block| block.at.pack));
        let raw = encode_block_list(&blocks);
        readable("a list of blocks", decode_block_list(&raw))?;
        Ok(BlockList::Listed { count, at: self.meta.append(Record::meta(raw)).await? })
    }

    /// Says that a row of the base goes in whose extent blocks nobody read: the base's packs stay listed.
    pub fn names_unread_blocks(&mut self) {
        self.names_unread_blocks = true;
    }

    /// Says that rows name content in these packs, in extent blocks that nobody read: they are listed.
    pub fn keep(&mut self, packs: &[PackEntry]) {
        self.used.extend(packs.iter().map(|pack| pack.id));
    }

    async fn close_range(&mut self, table: Table) -> Result<(), WriteError> {
        debug_assert_eq!(table, Table::Files, "directories are closed at the end");
        Self::close(&mut self.files, &mut self.meta, &self.base_ranges, &mut self.used).await
    }

    async fn close(
        table: &mut TableWriter,
        meta: &mut MetaPacks,
        base: &HashMap<ObjectHash, RecordRef>,
        used: &mut BTreeSet<PackId>,
    ) -> Result<(), WriteError> {
        let range = std::mem::take(&mut table.range);
        let rows = range.rows() as u64;
        used.extend(range.packs());
        let Some((first, raw)) = range.finish() else { return Ok(()) };
        let raw = Bytes::from(raw);
        let record = Record::meta(raw.clone());
        let at = match base.get(&record.stored_hash()) {
            Some(at) => {
                used.insert(at.pack);
                *at
            }
            None => {
                readable("a range", decode_range(&raw))?;
                meta.append(record).await?
            }
        };
        table.entries.push(PageEntry { first, rows, at });
        Ok(())
    }

    /// Closes the tables and completes `descriptor`, whose counts, layers and packs are filled in; `data_packs` are the
    /// packs that this commit has stored, and those that it may name beside the base's. Answers the whole descriptor object.
    pub async fn finish(
        mut self,
        mut descriptor: Descriptor,
        data_packs: &[PackEntry],
    ) -> Result<(Descriptor, Bytes), WriteError> {
        self.close_range(Table::Files).await?;
        let mut directories = std::mem::take(&mut self.directories);
        descriptor.counts = fill_counts(&mut directories, &self.counts);
        let mut table = TableWriter::default();
        for row in &directories {
            table.range.push(row);
            table.rows += 1;
            if table.range.is_full(&row.key) {
                Self::close(&mut table, &mut self.meta, &self.base_ranges, &mut self.used).await?;
            }
        }
        Self::close(&mut table, &mut self.meta, &self.base_ranges, &mut self.used).await?;
        if table.rows.max(self.files.rows) > ROWS_MAX {
            return Err(WriteError::TooLarge { what: "entries", limit: ROWS_MAX });
        }
        let files = std::mem::take(&mut self.files.entries);
        let layer = Layer { directories: self.pages(table.entries).await?, files: self.pages(files).await? };
        descriptor.layers = vec![layer];
        descriptor.packs = self.pack_table(data_packs).await?;
        let body = Bytes::from(descriptor.encode());
        let context = self.meta.store.context();
        let object = envelope::seal_with(ObjectKind::Descriptor, context, descriptor.compatible(), &body);
        if object.len() > DESCRIPTOR_BYTES_MAX {
            return Err(WriteError::TooLarge { what: "bytes of the descriptor", limit: DESCRIPTOR_BYTES_MAX as u64 });
        }
        readable("the descriptor", Descriptor::decode(&body))?;
        Ok((descriptor, object))
    }

    /// Puts pages over `entries` until one page is left: the root.
    async fn pages(&mut self, mut entries: Vec<PageEntry>) -> Result<Page, WriteError> {
        for level in 0..=PAGE_LEVEL_MAX {
            self.used.extend(entries.iter().map(|entry| entry.at.pack));
            let mut pages = Page::split(level, entries);
            if pages.len() <= 1 {
                return Ok(pages.pop().unwrap_or_default());
            }
            entries = Vec::with_capacity(pages.len());
            for page in pages {
                let (first, rows, raw) = (page.entries[0].first.clone(), page.rows(), page.encode());
                readable("a page", Page::decode(&raw))?;
                entries.push(PageEntry { first, rows, at: self.meta.append(Record::meta(raw)).await? });
            }
        }
        Err(WriteError::TooLarge { what: "levels of pages", limit: u64::from(PAGE_LEVEL_MAX) + 1 })
    }

    /// The table of all packs that are used. Above what the descriptor has room for, it lies in parts in packs of its own.
    async fn pack_table(&mut self, data_packs: &[PackEntry]) -> Result<PackTable, WriteError> {
        let mut known = std::mem::take(&mut self.base_packs);
        if self.names_unread_blocks {
            self.used.extend(known.keys());
        }
        known.extend(data_packs.iter().map(|pack| (pack.id, *pack)));
        self.meta.close().await?;
        let done = std::mem::take(&mut self.meta.done);
        self.used.extend(done.iter().map(|pack| pack.id));
        known.extend(done.into_iter().map(|pack| (pack.id, pack)));
        let mut table = Vec::with_capacity(self.used.len());
        for id in &self.used {
            table.push(*known.get(id).ok_or(WriteError::UnknownPack(*id))?);
        }
        if table.len() <= PAGE_ENTRIES_MAX {
            return Ok(PackTable::Here(table));
        }
        let mut parts = Vec::new();
        for part in table.chunks(PART_PACKS) {
            let raw = encode_pack_table(part);
            readable("a pack table", decode_pack_table(&raw))?;
            parts.push(self.meta.append(Record::meta(raw)).await?);
        }
        self.meta.close().await?;
        Ok(PackTable::Parts { holders: std::mem::take(&mut self.meta.done), parts })
    }
}

/// Fills in what lies below each directory; answers what lies below the root.
///
/// In key order a directory stands before what is in it, so from the end upwards every directory is complete when its
/// counts are added to its parent's.
fn fill_counts(directories: &mut [Row], own: &HashMap<Vec<u8>, TreeCounts>) -> TreeCounts {
    let mut below = own.clone();
    for row in directories.iter_mut().rev() {
        let path = row.key.path().expect("directories have a path");
        let counts = below.remove(&RowKey::children(&path)).unwrap_or_default();
        if let RowValue::Entry(Entry { body: Body::Directory { counts: found, .. }, .. }) = &mut row.value {
            *found = counts;
        }
        match row.key.parts() {
            None => return counts,
            Some((parent, _)) => {
                let above = below.entry(RowKey::children(&parent)).or_default();
                above.files += counts.files;
                above.bytes = above.bytes.saturating_add(counts.bytes);
                above.directories += counts.directories + 1;
            }
        }
    }
    TreeCounts::default()
}

impl MetaPacks {
    async fn append(&mut self, record: Record) -> Result<RecordRef, WriteError> {
        if record.raw_len() > RECORD_RAW_BYTES_MAX {
            // Nobody could read it. Only the block list of a file of some 190,000 blocks comes near.
            return Err(WriteError::TooLarge { what: "bytes of a list", limit: RECORD_RAW_BYTES_MAX as u64 });
        }
        let open = match &mut self.open {
            Some(open) => open,
            None => {
                let seq = self.journal.next_seq().map_err(|error| PackError::Journal(error.to_string()))?;
                let id = PackId { intent: self.intent, run: self.run, seq };
                self.open.insert(PackWriter::new(self.store.context(), id, PackKind::Meta, META_PACK_BYTES))
            }
        };
        let placed = open.append(record);
        if open.len() >= META_PACK_BYTES {
            self.close().await?;
        }
        Ok(placed.record)
    }

    async fn close(&mut self) -> Result<(), WriteError> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let pack = open.finish();
        self.store.put_pack(&pack).await.map_err(PackError::from)?;
        let length = pack.bytes.len() as u64;
        self.done.push(PackEntry { id: pack.id, length, footer_hash: pack.footer_hash });
        Ok(())
    }
}

#[cfg(test)]
mod tests;
