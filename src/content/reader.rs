//! Reading: verified bytes of a file's content, through memory caches.
//!
//! A chunk's record is fetched whole, decoded, and the chunk compared with its BLAKE3 id before a byte of it leaves.
//! Verified chunks are cached; concurrent readers of one chunk share one fetch. A reader that goes through a large file
//! in order finds the next chunks already on their way, several to a request (see [`super::ahead`]).
//!
//! Whole chunks of large files have a cache of their own, where the least recently read goes first: a reader that streams
//! pushes out nothing but chunks, and what is fetched ahead of it is not refused by a cache that holds it for worthless.
//! A reader that goes through small files finds their records fetched many at a time ([`super::sweep`]).
//!
//! # Invariants
//!
//! 1. Bytes that do not hash to their chunk's id are never returned: they are fetched once more, then refused by name.
//!    (A reader made by [`ContentReader::unverified`] alone does not look: read-only mounts with `verify=off`.)
//! 2. The caches together hold at most the bytes they were made for; what is on its way ahead of readers is bounded by
//!    a quarter of them.
//! 3. A read of cached bytes is ready at its first poll. Large chunks are verified off the threads that answer.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use moka::future::Cache;
use moka::policy::EvictionPolicy;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::ahead::{Run, Streams, runs};
use super::sweep::{Sweeps, Window};
use crate::format::FormatError;
use crate::format::extents::{decode_block_list, decode_extents};
use crate::format::key::ObjectKey;
use crate::format::pack::{PackKind, decode_meta, decode_record};
use crate::model::chunk::{ChunkIndex, ChunkLayout, ChunkSize, indices};
use crate::model::entry::{BlockList, BlockRef, Content, Extent, FileBody, Locator, RecordRef, Region};
use crate::model::id::{BlockId, ChunkId, PackId};
use crate::model::limits::EXTENT_BLOCK_CHUNKS;
use crate::store::{PUT_BACK, Store, StoreError};

/// Raw bytes above which a record is verified on a thread of its own: less takes no longer than the way there.
const INLINE_VERIFY_BYTES_MAX: u32 = 128 << 10;
/// How long a refusal answers for its place. The kernel asks for a page again as soon as reading it ahead was refused:
/// that is no second wait until the deadline for the program that reads.
const REFUSED_FOR: Duration = Duration::from_millis(250);
/// What a fetch of one's own takes longer than its deadline to say why.
const GRACE: Duration = Duration::from_millis(100);
/// Refusals that are remembered.
const REFUSALS_MAX: u64 = 4_096;
/// Stored bytes up to which a record is taken out of what was fetched with its neighbours: larger ones are chunks of
/// large files, which are fetched ahead by themselves.
const SWEPT_BYTES_MAX: u32 = 512 << 10;
/// Zeros that holes are read from.
static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

/// Why bytes could not be read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ContentError {
    /// The object does not hold what it should.
    #[error("{key}: damaged: {why} ({PUT_BACK})")]
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
            Self::Block(bytes) => bytes.len(),
            Self::Extents(extents) => extents.len() * size_of::<Extent>(),
            Self::Blocks(blocks) => blocks.len() * size_of::<BlockRef>(),
        };
        u32::try_from(bytes + 128).unwrap_or(u32::MAX)
    }
}

/// What a cached value answers: all that the reference to it says, so that a wrong reference meets no right value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Wanted {
    /// A small-file block, of which the members prove themselves.
    Block(PackId, u64),
    /// The extents of a block, and the id that they were proved against.
    Extents(BlockId, RecordRef),
    /// A list of so many blocks.
    Blocks(u32, RecordRef),
}

type Place = (PackKind, PackId, u64);

/// See the module.
pub struct ContentReader {
    store: Arc<Store>,
    /// Records that are one chunk, verified, with the id that they were verified against.
    chunks: Cache<(PackId, u64), (ChunkId, Bytes)>,
    /// Small-file blocks and metadata.
    cache: Cache<Wanted, Cached>,
    /// What the store did not answer for a moment ago.
    refused: Cache<Place, (Instant, ContentError)>,
    streams: Mutex<Streams>,
    sweeps: Mutex<Sweeps>,
    /// Whether chunks are compared with their ids. Without that wrong bytes pass: for measuring the price alone.
    verifies: bool,
    /// Chunks that were asked for.
    asked: AtomicU64,
    /// Those of them that were not there.
    missed: AtomicU64,
}

/// What the caches hold, and how often that was enough.
#[derive(Debug, Clone, Copy, Default)]
pub struct CacheState {
    /// Bytes held.
    pub bytes: u64,
    /// Chunks found there.
    pub hits: u64,
    /// Chunks that had to be fetched.
    pub misses: u64,
}

impl ContentReader {
    /// A reader with caches of `cache_bytes`.
    pub fn new(store: Arc<Store>, cache_bytes: u64) -> Arc<Self> {
        Arc::new(Self::with(store, cache_bytes, true))
    }

    /// The same that compares nothing with its id.
    pub fn unverified(store: Arc<Store>, cache_bytes: u64) -> Arc<Self> {
        Arc::new(Self::with(store, cache_bytes, false))
    }

    fn with(store: Arc<Store>, cache_bytes: u64, verifies: bool) -> Self {
        // A quarter is plenty for what is small, and three sixteenths for what is on its way to it; the rest is for what
        // streams.
        let (small, swept) = (cache_bytes / 4, cache_bytes / 16 * 3);
        let cache = Cache::builder().max_capacity(small).weigher(|_, value: &Cached| value.weight()).build();
        let chunks = Cache::builder()
            .max_capacity(cache_bytes - small - swept)
            .eviction_policy(EvictionPolicy::lru())
            .weigher(|_, (_, bytes): &(ChunkId, Bytes)| u32::try_from(bytes.len() + 128).unwrap_or(u32::MAX))
            .build();
        let streams = Mutex::new(Streams::new(cache_bytes / 4));
        let sweeps = Mutex::new(Sweeps::new(swept));
        let refused = Cache::builder().max_capacity(REFUSALS_MAX).build();
        let (asked, missed) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { store, chunks, cache, refused, streams, sweeps, verifies, asked, missed }
    }

    /// What the caches hold now.
    pub async fn cache_state(&self) -> CacheState {
        // What was put in a moment ago is not counted before that.
        self.chunks.run_pending_tasks().await;
        self.cache.run_pending_tasks().await;
        let (asked, misses) = (self.asked.load(Ordering::Relaxed), self.missed.load(Ordering::Relaxed));
        let bytes = self.chunks.weighted_size() + self.cache.weighted_size();
        CacheState { bytes, hits: asked.saturating_sub(misses), misses }
    }

    /// The bytes `range` of the file, cut at its end, in one piece.
    pub async fn read(
        self: &Arc<Self>,
        file: &FileBody,
        chunk: ChunkSize,
        range: Range<u64>,
    ) -> Result<Bytes, ContentError> {
        let mut parts = self.read_parts(file, chunk, range).await?;
        if parts.len() <= 1 {
            return Ok(parts.pop().unwrap_or_default());
        }
        let mut whole = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
        parts.iter().for_each(|part| whole.extend_from_slice(part));
        Ok(whole.freeze())
    }

    /// The bytes `range` of the file, cut at its end, in parts that lie in the cache.
    ///
    /// Safe to drop: what was fetched stays cached.
    pub async fn read_parts(
        self: &Arc<Self>,
        file: &FileBody,
        chunk: ChunkSize,
        range: Range<u64>,
    ) -> Result<Vec<Bytes>, ContentError> {
        let range = range.start.min(file.size)..range.end.min(file.size);
        if range.is_empty() {
            return Ok(Vec::new());
        }
        match &file.content {
            // The row was decoded, so it holds as many bytes as it says.
            Content::Inline(bytes) => Ok(vec![bytes.slice(range.start as usize..range.end as usize)]),
            Content::Chunk(extent) => {
                let mut parts = Vec::new();
                self.read_extent(extent, range, &mut parts).await?;
                Ok(parts)
            }
            Content::Extents { .. } => self.read_extents(file, chunk, range).await,
        }
    }

    async fn read_extents(
        self: &Arc<Self>,
        file: &FileBody,
        chunk: ChunkSize,
        range: Range<u64>,
    ) -> Result<Vec<Bytes>, ContentError> {
        let layout = ChunkLayout::new(file.size, chunk);
        self.fetch_ahead(file, &layout, &range).await?;
        let mut parts = Vec::new();
        for index in indices(layout.covering(&range)) {
            let span = layout.span(index);
            let extent = self.extent(file, index).await?;
            let part = range.start.max(span.start) - span.start..range.end.min(span.end) - span.start;
            self.read_extent(&extent, part, &mut parts).await?;
        }
        Ok(parts)
    }

    /// Starts the fetch of the next chunks when this read goes on where an earlier one of the file ended.
    async fn fetch_ahead(
        self: &Arc<Self>,
        file: &FileBody,
        layout: &ChunkLayout,
        range: &Range<u64>,
    ) -> Result<(), ContentError> {
        let Some(block) = self.blocks(file).await?.first().copied() else { return Ok(()) };
        let wanted = {
            let mut streams = self.streams.lock().expect("no code panics while it holds the streams");
            streams.observe((block.at.pack, block.at.offset), range, layout)
        };
        if wanted.start < wanted.end {
            // Also their extents may have to be fetched, for which this read does not wait. A failure is met again, and
            // reported, by the read that needs the chunk.
            let (reader, file) = (self.clone(), file.clone());
            tokio::spawn(async move { reader.fetch_chunks(&file, wanted).await });
        }
        Ok(())
    }

    /// Starts the fetch of these chunks of a file, as far as they are not there.
    async fn fetch_chunks(self: Arc<Self>, file: &FileBody, wanted: Range<ChunkIndex>) -> Result<(), ContentError> {
        let mut records = Vec::new();
        for index in indices(wanted) {
            let Extent { id, at: Some(at) } = self.extent(file, index).await? else { continue };
            if is_whole(&at) && !self.chunks.contains_key(&(at.pack, at.offset)) {
                records.push((id, at));
            }
        }
        for run in runs(records) {
            let run = Arc::new(run);
            let fetched: Arc<OnceCell<Result<Option<Vec<Bytes>>, ContentError>>> = Arc::default();
            // Each record is fetched in its own name, so that a read that needs it joins; the first to be polled does
            // the work for all.
            for (number, (id, at)) in run.records.clone().into_iter().enumerate() {
                let (reader, run, fetched) = (self.clone(), run.clone(), fetched.clone());
                tokio::spawn(async move {
                    let fetch = async {
                        match fetched.get_or_init(|| reader.fetch_run(&run)).await {
                            Ok(Some(chunks)) => Ok((id, chunks[number].clone())),
                            Ok(None) => reader.fetch_chunk(id, &at).await,
                            Err(error) => Err(error.clone()),
                        }
                    };
                    let _ = reader.chunks.try_get_with((at.pack, at.offset), fetch).await;
                });
            }
        }
        Ok(())
    }

    /// The chunks of a run, verified; `None` if any of it is damaged: each is then fetched by itself. A store that does
    /// not answer at all is not asked again for all of them: who has waited for one since the run began is refused.
    async fn fetch_run(&self, run: &Arc<Run>) -> Result<Option<Vec<Bytes>>, ContentError> {
        let key = self.store.keys().pack(PackKind::Data, run.pack);
        let bytes = match self.store.get_range(&key, run.bytes.clone()).await {
            Ok(bytes) => bytes,
            Err(error @ StoreError::Unavailable { .. }) => return Err(error.into()),
            Err(_) => return Ok(None),
        };
        let (run, verifies) = (run.clone(), self.verifies);
        let verified = tokio::task::spawn_blocking(move || {
            let chunk = |(id, at): &(ChunkId, Locator)| {
                let start = (at.offset - run.bytes.start) as usize;
                verified(*id, at, &bytes.slice(start..start + at.stored as usize), verifies).ok()
            };
            run.records.iter().map(chunk).collect::<Option<Vec<_>>>()
        });
        Ok(verified.await.ok().flatten())
    }

    /// A part of one chunk, added to `parts`.
    async fn read_extent(&self, extent: &Extent, part: Range<u64>, parts: &mut Vec<Bytes>) -> Result<(), ContentError> {
        let Some(at) = extent.at else {
            let mut left = (part.end - part.start) as usize;
            while left > 0 {
                let step = left.min(ZEROS.len());
                parts.push(zeros(step));
                left -= step;
            }
            return Ok(());
        };
        let chunk = self.chunk(extent.id, at).await?;
        if part.end > chunk.len() as u64 {
            return Err(self.corrupt((PackKind::Data, at.pack, at.offset), FormatError::Truncated));
        }
        parts.push(chunk.slice(part.start as usize..part.end as usize));
        Ok(())
    }

    /// A whole chunk, verified.
    pub async fn chunk(&self, id: ChunkId, at: Locator) -> Result<Bytes, ContentError> {
        let place = (PackKind::Data, at.pack, at.offset);
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.unless_refused(place, self.until_deadline(place, || self.proved_chunk(id, at))).await
    }

    /// The outcome of `fetch`, which may join one that began earlier and is given up earlier: nobody is refused for that
    /// before its own deadline, nor waits longer.
    async fn until_deadline<T, F>(&self, (kind, pack, _): Place, fetch: impl Fn() -> F) -> Result<T, ContentError>
    where
        F: Future<Output = Result<T, ContentError>>,
    {
        let deadline = Instant::now() + self.store.timeout();
        loop {
            // A fetch of our own says better what was wrong, and its deadline is a moment later than ours.
            match tokio::time::timeout_at(deadline + GRACE, fetch()).await {
                Ok(Err(ContentError::Store(StoreError::Unavailable { .. }))) if Instant::now() < deadline => {}
                Ok(outcome) => return outcome,
                Err(_) => {
                    let (key, why) = (self.store.keys().pack(kind, pack), "no answer before the deadline".to_owned());
                    return Err(StoreError::Unavailable { key, why }.into());
                }
            }
        }
    }

    /// The outcome of `fetch`, or the refusal that what lies there met just now.
    async fn unless_refused<T>(
        &self,
        place: Place,
        fetch: impl Future<Output = Result<T, ContentError>>,
    ) -> Result<T, ContentError> {
        if let Some((since, refusal)) = self.refused.get(&place).await {
            if since.elapsed() < REFUSED_FOR {
                return Err(refusal);
            }
            self.refused.invalidate(&place).await;
        }
        let outcome = fetch.await;
        if let Err(refusal @ ContentError::Store(StoreError::Unavailable { .. })) = &outcome {
            self.refused.insert(place, (Instant::now(), refusal.clone())).await;
        }
        outcome
    }

    async fn proved_chunk(&self, id: ChunkId, at: Locator) -> Result<Bytes, ContentError> {
        let place = (PackKind::Data, at.pack, at.offset);
        if is_whole(&at) {
            let (found, bytes) = self.whole_chunk(id, at).await?;
            // Two ids for one place: one of them is wrong.
            return if found == id { Ok(bytes) } else { Err(self.corrupt(place, FormatError::Hash)) };
        }
        // What a neighbour's fetch brought may be wrong in a way that no decoder sees: the second look asks for the block alone.
        for may_be_swept in [true, false] {
            let block = self.block_bytes(at, may_be_swept).await?;
            if let Some(bytes) = member(&block, id, &at, self.verifies) {
                return Ok(bytes);
            }
            self.cache.invalidate(&Wanted::Block(at.pack, at.offset)).await;
        }
        Err(self.corrupt(place, FormatError::Hash))
    }

    async fn whole_chunk(&self, id: ChunkId, at: Locator) -> Result<(ChunkId, Bytes), ContentError> {
        let key = (at.pack, at.offset);
        if let Some(found) = self.chunks.get(&key).await {
            return Ok(found);
        }
        self.missed.fetch_add(1, Ordering::Relaxed);
        let fetched = self.chunks.try_get_with(key, self.fetch_chunk(id, &at)).await;
        fetched.map_err(|error: Arc<ContentError>| (*error).clone())
    }

    async fn fetch_chunk(&self, id: ChunkId, at: &Locator) -> Result<(ChunkId, Bytes), ContentError> {
        let mut why = FormatError::Hash;
        for attempt in 0..2 {
            let stored = self.stored(at, attempt == 0).await?;
            let outcome = if at.raw <= INLINE_VERIFY_BYTES_MAX {
                verified(id, at, &stored, self.verifies)
            } else {
                let (at, verifies) = (*at, self.verifies);
                let verifying = tokio::task::spawn_blocking(move || verified(id, &at, &stored, verifies));
                verifying.await.expect("verifying does not panic")
            };
            match outcome {
                Ok(bytes) => return Ok((id, bytes)),
                Err(error) => why = error,
            }
        }
        Err(self.corrupt((PackKind::Data, at.pack, at.offset), why))
    }

    /// A record of a data pack as it is stored; what a neighbour's fetch brought is good enough for a first look.
    async fn stored(&self, at: &Locator, may_be_swept: bool) -> Result<Bytes, ContentError> {
        if may_be_swept
            && at.stored <= SWEPT_BYTES_MAX
            && let Some(record) = self.swept(at).await?
        {
            return Ok(record);
        }
        Ok(self.store.get_record(PackKind::Data, at.pack, at.offset, at.stored).await?)
    }

    /// The same out of what is fetched with its neighbours, if it is.
    async fn swept(&self, at: &Locator) -> Result<Option<Bytes>, ContentError> {
        let record = at.offset..at.offset + u64::from(at.stored);
        let plan = {
            let mut sweeps = self.sweeps.lock().expect("no code panics while it holds the sweeps");
            sweeps.observe(at.pack, record.clone())
        };
        if let Some(ahead) = plan.ahead.clone() {
            // A failure is met again, and reported, by the read that needs the bytes.
            let store = self.store.clone();
            tokio::spawn(async move { fetch_window(&store, &ahead).await });
        }
        if plan.windows.is_empty() {
            return Ok(None);
        }
        for window in &plan.windows {
            fetch_window(&self.store, window).await?;
        }
        Ok(plan.record(&record))
    }

    /// The raw bytes of a small-file block.
    async fn block_bytes(&self, at: Locator, may_be_swept: bool) -> Result<Bytes, ContentError> {
        let place = (PackKind::Data, at.pack, at.offset);
        let key = Wanted::Block(at.pack, at.offset);
        if let Some(Cached::Block(found)) = self.cache.get(&key).await {
            return Ok(found);
        }
        self.missed.fetch_add(1, Ordering::Relaxed);
        let fetch = async {
            let mut why = FormatError::Hash;
            for attempt in 0..2 {
                let stored = self.stored(&at, attempt == 0 && may_be_swept).await?;
                match decode_record(at.codec, &stored, at.raw) {
                    Ok(raw) => return Ok(Cached::Block(raw)),
                    Err(error) => why = error,
                }
            }
            Err(self.corrupt(place, why))
        };
        match self.joined(key, fetch).await? {
            Cached::Block(bytes) => Ok(bytes),
            _ => Err(self.corrupt(place, FormatError::Hash)),
        }
    }

    /// What the cache has, or `fetch` brings: of all who ask at once one does.
    async fn joined(
        &self,
        wanted: Wanted,
        fetch: impl Future<Output = Result<Cached, ContentError>>,
    ) -> Result<Cached, ContentError> {
        self.cache.try_get_with(wanted, fetch).await.map_err(|error: Arc<ContentError>| (*error).clone())
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

    /// Whether chunk `index` of the file is a hole. What lies inside the row is data.
    pub async fn is_hole(&self, file: &FileBody, index: ChunkIndex) -> Result<bool, ContentError> {
        match file.content {
            Content::Inline(_) => Ok(false),
            _ => Ok(self.extent(file, index).await?.at.is_none()),
        }
    }

    /// Where a region of this kind begins in the file, at `offset` or behind it; a hole does at the end.
    pub async fn seek(
        &self,
        file: &FileBody,
        chunk: ChunkSize,
        offset: u64,
        region: Region,
    ) -> Result<Option<u64>, ContentError> {
        let layout = ChunkLayout::new(file.size, chunk);
        if offset >= file.size {
            return Ok(None);
        }
        for index in indices(layout.covering(&(offset..file.size))) {
            if self.is_hole(file, index).await? == (region == Region::Hole) {
                return Ok(Some(offset.max(layout.span(index).start)));
            }
        }
        Ok((region == Region::Hole).then_some(file.size))
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
        let (count, at) = match &file.content {
            Content::Extents { blocks: BlockList::Here(blocks), .. } => return Ok(blocks.clone()),
            Content::Extents { blocks: BlockList::Listed { count, at }, .. } => (*count, *at),
            _ => return Ok(Arc::new([])),
        };
        let fetch = || async {
            let raw = self.meta(&at).await?;
            let blocks = decode_block_list(&raw);
            let blocks = blocks.map_err(|why| self.corrupt((PackKind::Meta, at.pack, at.offset), why))?;
            if blocks.len() != count as usize {
                let why = FormatError::Malformed { what: "number of extent blocks" };
                return Err(self.corrupt((PackKind::Meta, at.pack, at.offset), why));
            }
            Ok::<_, ContentError>(Cached::Blocks(blocks.into()))
        };
        let wanted = Wanted::Blocks(count, at);
        if let Some(Cached::Blocks(found)) = self.cache.get(&wanted).await {
            return Ok(found);
        }
        match self.of_record(&at, || self.joined(wanted, fetch())).await? {
            Cached::Blocks(blocks) => Ok(blocks),
            _ => Err(self.corrupt((PackKind::Meta, at.pack, at.offset), FormatError::Hash)),
        }
    }

    /// The extents that a block describes.
    pub async fn block(&self, block: BlockRef) -> Result<Arc<Vec<Extent>>, ContentError> {
        let place = (PackKind::Meta, block.at.pack, block.at.offset);
        let fetch = || async {
            let raw = self.meta(&block.at).await?;
            let extents = decode_extents(block.id, &raw).map_err(|why| self.corrupt(place, why))?;
            Ok::<_, ContentError>(Cached::Extents(Arc::new(extents)))
        };
        let wanted = Wanted::Extents(block.id, block.at);
        if let Some(Cached::Extents(found)) = self.cache.get(&wanted).await {
            return Ok(found);
        }
        match self.of_record(&block.at, || self.joined(wanted, fetch())).await? {
            Cached::Extents(extents) => Ok(extents),
            _ => Err(self.corrupt(place, FormatError::Hash)),
        }
    }

    /// What `fetch` makes of a metadata record, also of one that somebody else fetches: see [`Self::until_deadline`].
    pub async fn of_record<T, F>(&self, at: &RecordRef, fetch: impl Fn() -> F) -> Result<T, ContentError>
    where
        F: Future<Output = Result<T, ContentError>>,
    {
        let place = (PackKind::Meta, at.pack, at.offset);
        self.unless_refused(place, self.until_deadline(place, fetch)).await
    }

    /// The raw bytes of a metadata record, verified. Ask for them inside of [`Self::of_record`].
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

    /// Whether what is read is compared with its id.
    pub fn verifies(&self) -> bool {
        self.verifies
    }

    /// The store that is read from.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }
}

/// Fetches a window, once for all who wait for it. A store that does not answer is not asked again for each record.
async fn fetch_window(store: &Store, window: &Window) -> Result<(), StoreError> {
    let key = store.keys().pack(PackKind::Data, window.pack);
    let fetch = async {
        match store.get_up_to(&key, window.bytes.clone()).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error @ StoreError::Unavailable { .. }) => Err(error),
            Err(_) => Ok(None),
        }
    };
    window.fetched.get_or_try_init(|| fetch).await.map(|_| ())
}

/// Whether the record at this place is one chunk and nothing else.
fn is_whole(at: &Locator) -> bool {
    at.inner == 0 && at.len == at.raw
}

/// The chunk that a record is, if it is what its id says.
fn verified(id: ChunkId, at: &Locator, stored: &Bytes, verifies: bool) -> Result<Bytes, FormatError> {
    let raw = decode_record(at.codec, stored, at.raw)?;
    if !verifies || ChunkId::of(&raw) == id { Ok(raw) } else { Err(FormatError::Hash) }
}

/// A chunk of a small-file block, if it is what its id says.
fn member(block: &Bytes, id: ChunkId, at: &Locator, verifies: bool) -> Option<Bytes> {
    let end = at.inner.checked_add(at.len)? as usize;
    let bytes = block.get(at.inner as usize..end)?;
    (!verifies || ChunkId::of(bytes) == id).then(|| block.slice(at.inner as usize..end))
}

/// `len` zeros, without allocating up to 1 MiB.
pub fn zeros(len: usize) -> Bytes {
    if len <= ZEROS.len() { Bytes::from_static(&ZEROS[..len]) } else { Bytes::from(vec![0; len]) }
}
