//! Reading: verified bytes of a file's content, through one memory cache.
//!
//! A chunk's record is fetched whole, decoded, and the chunk compared with its BLAKE3 id before a byte of it leaves.
//! Verified chunks are cached; concurrent readers of one chunk share one fetch. A reader that goes through a large file
//! in order finds the next chunks already on their way.
//!
//! # Invariants
//!
//! 1. Bytes that do not hash to their chunk's id are never returned: they are fetched once more, then refused by name.
//! 2. The cache holds at most the bytes it was made for; what is on its way is bounded by [`AHEAD_CHUNKS`] a reader.
//! 3. A read of cached bytes is ready at its first poll.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use moka::future::Cache;

use crate::format::FormatError;
use crate::format::descriptor::{decode_block_list, decode_extents};
use crate::format::key::ObjectKey;
use crate::format::pack::{PackKind, decode_meta, decode_record};
use crate::model::chunk::{ChunkIndex, ChunkLayout, ChunkSize, indices};
use crate::model::entry::{BlockList, BlockRef, Content, Extent, FileBody, Locator, RecordRef};
use crate::model::id::{ChunkId, PackId};
use crate::model::limits::EXTENT_BLOCK_CHUNKS;
use crate::store::{Store, StoreError};

/// Chunks that are fetched ahead of a reader who goes in order.
pub const AHEAD_CHUNKS: u64 = 8;
/// Files whose last read is remembered, to see who goes in order.
const PATTERNS_MAX: usize = 1_024;
/// Zeros that holes are read from.
static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

/// Why bytes could not be read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ContentError {
    /// The object does not hold what it should.
    #[error("{key}: damaged: {why}")]
    Corrupt {
        /// The object.
        key: ObjectKey,
        /// What is wrong.
        why: FormatError,
    },
    /// The store did not answer rightly.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What is cached under a place in a pack.
#[derive(Clone)]
enum Cached {
    /// A chunk that was verified.
    Chunk(Bytes),
    /// The raw bytes of a small-file block; each chunk is verified when it is taken out.
    Block(Bytes),
    /// Extents of a large file.
    Extents(Arc<Vec<Extent>>),
    /// Blocks of a very large file.
    Blocks(Arc<[BlockRef]>),
}

impl Cached {
    fn weight(&self) -> u32 {
        let bytes = match self {
            Self::Chunk(bytes) | Self::Block(bytes) => bytes.len(),
            Self::Extents(extents) => extents.len() * size_of::<Extent>(),
            Self::Blocks(blocks) => blocks.len() * size_of::<BlockRef>(),
        };
        u32::try_from(bytes + 128).unwrap_or(u32::MAX)
    }
}

type Place = (PackKind, PackId, u64);

/// See the module.
pub struct ContentReader {
    store: Arc<Store>,
    cache: Cache<(bool, PackId, u64), Cached>,
    /// Where the last read of a file ended, by the place of its first block.
    patterns: Mutex<HashMap<(PackId, u64), u64>>,
}

impl ContentReader {
    /// A reader with a cache of `cache_bytes`.
    pub fn new(store: Arc<Store>, cache_bytes: u64) -> Arc<Self> {
        let cache = Cache::builder().max_capacity(cache_bytes).weigher(|_, value: &Cached| value.weight()).build();
        Arc::new(Self { store, cache, patterns: Mutex::default() })
    }

    /// The bytes `range` of the file, cut at its end.
    ///
    /// Safe to drop: what was fetched stays cached.
    pub async fn read(
        self: &Arc<Self>,
        file: &FileBody,
        chunk: ChunkSize,
        range: Range<u64>,
    ) -> Result<Bytes, ContentError> {
        let range = range.start.min(file.size)..range.end.min(file.size);
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        match &file.content {
            Content::Inline(bytes) => Ok(bytes.slice(range.start as usize..range.end as usize)),
            Content::Chunk(extent) => self.read_extent(extent, file.size, range).await,
            Content::Extents { .. } => self.read_extents(file, chunk, range).await,
        }
    }

    async fn read_extents(
        self: &Arc<Self>,
        file: &FileBody,
        chunk: ChunkSize,
        range: Range<u64>,
    ) -> Result<Bytes, ContentError> {
        let layout = ChunkLayout::new(file.size, chunk);
        let covering = layout.covering(&range);
        self.fetch_ahead(file, &layout, &range, covering.end).await?;
        let mut whole = BytesMut::new();
        for index in indices(covering) {
            let span = layout.span(index);
            let extent = self.extent(file, index).await?;
            let part = range.start.max(span.start) - span.start..range.end.min(span.end) - span.start;
            let bytes = self.read_extent(&extent, span.end - span.start, part).await?;
            if bytes.len() as u64 == range.end - range.start {
                return Ok(bytes);
            }
            whole.extend_from_slice(&bytes);
        }
        Ok(whole.freeze())
    }

    /// Starts the fetch of the next chunks when this read goes on where the last one of the file ended.
    async fn fetch_ahead(
        self: &Arc<Self>,
        file: &FileBody,
        layout: &ChunkLayout,
        range: &Range<u64>,
        next: ChunkIndex,
    ) -> Result<(), ContentError> {
        let Some(block) = self.blocks(file).await?.first().copied() else { return Ok(()) };
        let expected = {
            let mut patterns = self.patterns.lock().expect("no code panics while it holds the patterns");
            if patterns.len() >= PATTERNS_MAX {
                patterns.clear();
            }
            patterns.insert((block.at.pack, block.at.offset), range.end).unwrap_or(0)
        };
        // The kernel's own readahead arrives a little out of order: one chunk of slack absorbs that.
        if range.start.abs_diff(expected) > layout.span(ChunkIndex(0)).end {
            return Ok(());
        }
        let end = ChunkIndex((next.0 + AHEAD_CHUNKS).min(layout.chunks()));
        for index in indices(next..end) {
            let Extent { id, at: Some(at) } = self.extent(file, index).await? else { continue };
            if !self.cache.contains_key(&(true, at.pack, at.offset)) {
                let reader = self.clone();
                // A failure here is met again, and reported, by the read that needs the chunk.
                tokio::spawn(async move { reader.record(id, at).await.map(drop) });
            }
        }
        Ok(())
    }

    /// A part of one chunk of `len` bytes.
    async fn read_extent(&self, extent: &Extent, len: u64, part: Range<u64>) -> Result<Bytes, ContentError> {
        debug_assert!(part.end <= len, "callers cut at the chunk's end");
        let Some(at) = extent.at else { return Ok(zeros((part.end - part.start) as usize)) };
        let chunk = self.chunk(extent.id, at).await?;
        match chunk.get(part.start as usize..part.end as usize) {
            Some(_) => Ok(chunk.slice(part.start as usize..part.end as usize)),
            None => Err(self.corrupt((PackKind::Data, at.pack, at.offset), FormatError::Truncated)),
        }
    }

    /// A whole chunk, verified.
    pub async fn chunk(&self, id: ChunkId, at: Locator) -> Result<Bytes, ContentError> {
        match self.record(id, at).await? {
            Cached::Chunk(bytes) => Ok(bytes),
            Cached::Block(block) => match member(&block, id, &at) {
                Some(bytes) => Ok(bytes),
                None => {
                    self.cache.invalidate(&(true, at.pack, at.offset)).await;
                    let Cached::Block(block) = self.record(id, at).await? else {
                        return Err(self.corrupt((PackKind::Data, at.pack, at.offset), FormatError::Hash));
                    };
                    let found = member(&block, id, &at);
                    found.ok_or_else(|| self.corrupt((PackKind::Data, at.pack, at.offset), FormatError::Hash))
                }
            },
            _ => Err(self.corrupt((PackKind::Data, at.pack, at.offset), FormatError::Hash)),
        }
    }

    /// The record at a chunk's place: verified if the chunk is all of it.
    async fn record(&self, id: ChunkId, at: Locator) -> Result<Cached, ContentError> {
        let key = (true, at.pack, at.offset);
        if let Some(found) = self.cache.get(&key).await {
            return Ok(found);
        }
        let fetch = async {
            let first = self.fetch_record(id, &at).await;
            match first {
                Err(ContentError::Corrupt { .. }) => self.fetch_record(id, &at).await,
                outcome => outcome,
            }
        };
        self.cache.try_get_with(key, fetch).await.map_err(|error: Arc<ContentError>| (*error).clone())
    }

    async fn fetch_record(&self, id: ChunkId, at: &Locator) -> Result<Cached, ContentError> {
        let place = (PackKind::Data, at.pack, at.offset);
        let stored = self.store.get_record(PackKind::Data, at.pack, at.offset, at.stored).await?;
        let raw = decode_record(at.codec, &stored, at.raw).map_err(|why| self.corrupt(place, why))?;
        if at.inner != 0 || at.len != at.raw {
            return Ok(Cached::Block(raw));
        }
        if ChunkId::of(&raw) != id {
            return Err(self.corrupt(place, FormatError::Hash));
        }
        Ok(Cached::Chunk(raw))
    }

    /// The chunk `index` of a file of several chunks, or the only one; a hole has no locator.
    pub async fn extent(&self, file: &FileBody, index: ChunkIndex) -> Result<Extent, ContentError> {
        match &file.content {
            Content::Chunk(extent) => Ok(*extent),
            Content::Inline(bytes) => Ok(Extent { id: ChunkId::of(bytes), at: None }),
            Content::Extents { .. } => {
                let blocks = self.blocks(file).await?;
                let block = (index.0 / EXTENT_BLOCK_CHUNKS as u64) as usize;
                let wrong = FormatError::Malformed { what: "extent blocks" };
                let Some(block) = blocks.get(block).copied() else {
                    return Err(self.corrupt(self.place_of(file), wrong));
                };
                let extents = self.block(block).await?;
                let found = extents.get((index.0 % EXTENT_BLOCK_CHUNKS as u64) as usize).copied();
                found.ok_or_else(|| self.corrupt((PackKind::Meta, block.at.pack, block.at.offset), wrong))
            }
        }
    }

    fn place_of(&self, file: &FileBody) -> Place {
        match &file.content {
            Content::Extents { blocks: BlockList::Listed { at, .. }, .. } => (PackKind::Meta, at.pack, at.offset),
            Content::Extents { blocks: BlockList::Here(blocks), .. } if !blocks.is_empty() => {
                (PackKind::Meta, blocks[0].at.pack, blocks[0].at.offset)
            }
            _ => unreachable!("only files of several chunks are asked for their blocks"),
        }
    }

    /// The extent blocks of a file of several chunks; none of any other.
    pub async fn blocks(&self, file: &FileBody) -> Result<Arc<[BlockRef]>, ContentError> {
        let at = match &file.content {
            Content::Extents { blocks: BlockList::Here(blocks), .. } => return Ok(blocks.clone()),
            Content::Extents { blocks: BlockList::Listed { at, .. }, .. } => *at,
            _ => return Ok(Arc::new([])),
        };
        let fetch = async {
            let raw = self.meta(&at).await?;
            let blocks = decode_block_list(&raw);
            let blocks = blocks.map_err(|why| self.corrupt((PackKind::Meta, at.pack, at.offset), why))?;
            Ok::<_, ContentError>(Cached::Blocks(blocks.into()))
        };
        match self.cache.try_get_with((false, at.pack, at.offset), fetch).await {
            Ok(Cached::Blocks(blocks)) => Ok(blocks),
            Ok(_) => Err(self.corrupt((PackKind::Meta, at.pack, at.offset), FormatError::Hash)),
            Err(error) => Err((*error).clone()),
        }
    }

    /// The extents that a block describes.
    pub async fn block(&self, block: BlockRef) -> Result<Arc<Vec<Extent>>, ContentError> {
        let place = (PackKind::Meta, block.at.pack, block.at.offset);
        let fetch = async {
            let raw = self.meta(&block.at).await?;
            let extents = decode_extents(block.id, &raw).map_err(|why| self.corrupt(place, why))?;
            Ok::<_, ContentError>(Cached::Extents(Arc::new(extents)))
        };
        match self.cache.try_get_with((false, block.at.pack, block.at.offset), fetch).await {
            Ok(Cached::Extents(extents)) => Ok(extents),
            Ok(_) => Err(self.corrupt(place, FormatError::Hash)),
            Err(error) => Err((*error).clone()),
        }
    }

    /// The raw bytes of a metadata record, verified.
    pub async fn meta(&self, at: &RecordRef) -> Result<Bytes, ContentError> {
        let mut why = FormatError::Hash;
        for _ in 0..2 {
            let stored = self.store.get_record(PackKind::Meta, at.pack, at.offset, at.stored).await?;
            match decode_meta(at, &stored) {
                Ok(raw) => return Ok(raw),
                Err(error) => why = error,
            }
        }
        Err(self.corrupt((PackKind::Meta, at.pack, at.offset), why))
    }

    fn corrupt(&self, (kind, pack, _): Place, why: FormatError) -> ContentError {
        ContentError::Corrupt { key: self.store.keys().pack(kind, pack), why }
    }

    /// The store that is read from.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }
}

/// A chunk of a small-file block, if it is what its id says.
fn member(block: &Bytes, id: ChunkId, at: &Locator) -> Option<Bytes> {
    let end = at.inner.checked_add(at.len)? as usize;
    let bytes = block.get(at.inner as usize..end)?;
    (ChunkId::of(bytes) == id).then(|| block.slice(at.inner as usize..end))
}

/// `len` zeros, without allocating up to 1 MiB.
pub fn zeros(len: usize) -> Bytes {
    if len <= ZEROS.len() { Bytes::from_static(&ZEROS[..len]) } else { Bytes::from(vec![0; len]) }
}
