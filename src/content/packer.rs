//! The packer: chunks in, packs in the store, locators out.
//!
//! Chunks are encoded on blocking threads, laid into the open pack, and full packs are put in parallel. Each chunk
//! carries a caller's token; tokens come back through `done` once the pack that holds their chunk is acknowledged.
//! Equal chunks that are on their way at the same time are stored once.
//!
//! # Invariants
//!
//! 1. A token is delivered at most once, and only after its chunk is durable in the store.
//! 2. A pack's number is journaled before its PUT and never used again.
//! 3. Memory is bounded: at most `uploads_max` packs on their way and one open, each of `target_bytes` and a record.
//! 4. After the first failure everything fails with it: the caller makes a new packer and puts again what did not
//!    come back.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::format::pack::{FinishedPack, HashedChunk, PackKind, PackWriter, Record};
use crate::model::entry::Locator;
use crate::model::id::{ChunkId, IntentId, ObjectHash, PackId, Run};
use crate::model::limits::SMALL_FILE_BLOCK_BYTES;
use crate::store::{Store, StoreError};

/// Buffers of stored packs that are kept.
const BUFFERS_MAX: usize = 2;

/// Where pack numbers are made durable before they are used.
pub trait PackJournal: Send + Sync {
    /// The next number, already journaled.
    fn next_seq(&self) -> io::Result<u32>;
}

/// Why chunks did not reach the store.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PackError {
    /// The store did not take a pack.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The journal did not take a number.
    #[error("the journal of packs cannot be written: {0}")]
    Journal(String),
}

/// A pack that is durable, and what of the caller's lies in it.
#[derive(Debug)]
pub struct StoredPack<T> {
    /// The pack.
    pub id: PackId,
    /// Its length in bytes.
    pub length: u64,
    /// Hash of its footer.
    pub footer_hash: ObjectHash,
    /// The caller's tokens and where their chunks lie.
    pub placed: Vec<(T, ChunkId, Locator)>,
}

/// What a packer needs to know.
#[derive(Debug, Clone, Copy)]
pub struct PackerConfig {
    /// The intent under which packs are written.
    pub intent: IntentId,
    /// This life of the process.
    pub run: Run,
    /// Bytes after which a pack is closed.
    pub target_bytes: usize,
    /// Packs on their way at once.
    pub uploads_max: usize,
}

/// Called with each stored pack; what it does with the tokens is done before [`Packer::flush`] returns.
type Done<T> = Box<dyn Fn(StoredPack<T>) -> BoxFuture<'static, Result<(), PackError>> + Send + Sync>;

/// See the module.
pub struct Packer<T> {
    config: PackerConfig,
    store: Arc<Store>,
    journal: Arc<dyn PackJournal>,
    done: Arc<Done<T>>,
    uploads: Arc<Semaphore>,
    state: Arc<Mutex<State<T>>>,
}

struct State<T> {
    open: Option<Open>,
    /// Small chunks that wait to become one block.
    small: Vec<(HashedChunk, Bytes)>,
    small_bytes: usize,
    /// Tokens that wait for a chunk which is in `small`, being encoded, or in a pack not yet acknowledged.
    waiting: HashMap<ChunkId, Vec<T>>,
    running: JoinSet<()>,
    failed: Option<PackError>,
    /// Memory of packs that are stored: fresh memory costs a page fault each 4 KiB.
    buffers: Vec<Vec<u8>>,
}

struct Open {
    writer: PackWriter,
    placed: Vec<(ChunkId, Locator)>,
}

impl<T: Send + 'static> Packer<T> {
    /// A packer that reports each stored pack through `done`.
    pub fn new(
        config: PackerConfig,
        store: Arc<Store>,
        journal: Arc<dyn PackJournal>,
        done: impl Fn(StoredPack<T>) -> BoxFuture<'static, Result<(), PackError>> + Send + Sync + 'static,
    ) -> Self {
        let state = State {
            open: None,
            small: Vec::new(),
            small_bytes: 0,
            waiting: HashMap::new(),
            running: JoinSet::new(),
            failed: None,
            buffers: Vec::new(),
        };
        Self {
            config,
            store,
            journal,
            done: Arc::new(Box::new(done)),
            uploads: Arc::new(Semaphore::new(config.uploads_max)),
            state: Arc::new(Mutex::new(state)),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State<T>> {
        self.state.lock().expect("no code panics while it holds the packer's state")
    }

    /// Takes a chunk; waits while too many packs are on their way. `small` chunks share a small-file block.
    pub async fn put(&self, token: T, chunk: HashedChunk, raw: Bytes, small: bool) -> Result<(), PackError> {
        let id = chunk.id();
        let block = {
            let mut state = self.lock();
            if let Some(failed) = &state.failed {
                return Err(failed.clone());
            }
            if let Some(tokens) = state.waiting.get_mut(&id) {
                tokens.push(token);
                return Ok(());
            }
            state.waiting.insert(id, vec![token]);
            if small {
                // A block ends before it would be too long: above 64 KiB it would carry a proof that serves nobody.
                let is_full = state.small_bytes + raw.len() > SMALL_FILE_BLOCK_BYTES;
                let full = if is_full { state.take_block() } else { Vec::new() };
                state.small_bytes += raw.len();
                state.small.push((chunk, raw));
                full
            } else {
                vec![(chunk, raw)]
            }
        };
        if block.is_empty() { Ok(()) } else { self.append(block).await }
    }

    /// Closes the open pack, waits for all packs, and says whether every one of them is stored.
    pub async fn flush(&self) -> Result<(), PackError> {
        let block = self.lock().take_block();
        if !block.is_empty() {
            self.append(block).await?;
        }
        let open = self.lock().open.take();
        if let Some(open) = open {
            self.upload(open).await?;
        }
        let mut running = std::mem::take(&mut self.lock().running);
        while running.join_next().await.is_some() {}
        let failed = self.lock().failed.clone();
        failed.map_or(Ok(()), Err)
    }

    /// Encodes chunks into one record and lays it into the open pack.
    async fn append(&self, chunks: Vec<(HashedChunk, Bytes)>) -> Result<(), PackError> {
        let encode = move || match &chunks[..] {
            [(chunk, raw)] => Record::chunk(chunk, raw.clone()),
            _ => Record::block(chunks.iter().map(|(chunk, raw)| (chunk.id(), &raw[..]))),
        };
        let record = tokio::task::spawn_blocking(encode).await.expect("encoding does not panic");
        match self.lay(record)? {
            Some(full) => self.upload(full).await,
            None => Ok(()),
        }
    }

    /// Lays a record into the open pack; answers the pack when that filled it.
    fn lay(&self, record: Record) -> Result<Option<Open>, PackError> {
        let state = &mut *self.lock();
        let open = match &mut state.open {
            Some(open) => open,
            closed => {
                let seq = self.journal.next_seq().map_err(|error| PackError::Journal(error.to_string()))?;
                let id = PackId { intent: self.config.intent, run: self.config.run, seq };
                let buffer = state.buffers.pop().unwrap_or_default();
                let (context, target) = (self.store.context(), self.config.target_bytes);
                let writer = PackWriter::in_buffer(buffer, context, id, PackKind::Data, target);
                closed.insert(Open { writer, placed: Vec::new() })
            }
        };
        let placed = open.writer.append(record);
        open.placed.extend(placed.chunks);
        let is_full = open.writer.len() >= self.config.target_bytes;
        Ok(if is_full { state.open.take() } else { None })
    }

    /// Starts the PUT of a full pack as soon as there is room for it.
    async fn upload(&self, open: Open) -> Result<(), PackError> {
        let permit = self.uploads.clone().acquire_owned().await.expect("the semaphore is never closed");
        let (store, done, shared) = (self.store.clone(), self.done.clone(), self.state.clone());
        let task = async move {
            let _permit = permit;
            let pack = open.writer.finish();
            let outcome = store.put_pack(&pack).await;
            let lock = || shared.lock().expect("no code panics while it holds the packer's state");
            let stored = outcome.map(|()| lock().deliver(&pack, open.placed));
            // Its bytes are in the store: the memory is free before the tokens are looked at.
            lock().keep_buffer(pack.bytes);
            let outcome = match stored {
                Ok(stored) => done(stored).await,
                Err(error) => Err(error.into()),
            };
            if let Err(error) = outcome {
                lock().failed.get_or_insert(error);
            }
        };
        let mut state = self.lock();
        while state.running.try_join_next().is_some() {}
        state.running.spawn(task);
        Ok(())
    }
}

impl<T> State<T> {
    fn take_block(&mut self) -> Vec<(HashedChunk, Bytes)> {
        self.small_bytes = 0;
        std::mem::take(&mut self.small)
    }

    /// Keeps the memory of a pack for the next one, unless somebody still reads it.
    fn keep_buffer(&mut self, bytes: Bytes) {
        if self.buffers.len() < BUFFERS_MAX && bytes.is_unique() {
            self.buffers.push(bytes.into());
        }
    }

    fn deliver(&mut self, pack: &FinishedPack, placed: Vec<(ChunkId, Locator)>) -> StoredPack<T> {
        let mut delivered = Vec::with_capacity(placed.len());
        for (id, at) in placed {
            let tokens = self.waiting.remove(&id).unwrap_or_default();
            delivered.extend(tokens.into_iter().map(|token| (token, id, at)));
        }
        let length = pack.bytes.len() as u64;
        StoredPack { id: pack.id, length, footer_hash: pack.footer_hash, placed: delivered }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::{clock, entropy};
    use std::sync::atomic::{AtomicU32, Ordering};

    #[derive(Default)]
    struct Numbers(AtomicU32);

    impl PackJournal for Numbers {
        fn next_seq(&self) -> io::Result<u32> {
            Ok(self.0.fetch_add(1, Ordering::Relaxed))
        }
    }

    #[tokio::test]
    async fn small_chunks_share_blocks_of_at_most_64_kib_and_each_comes_back() {
        let store = Store::in_memory(clock(), entropy());
        let placed: Arc<Mutex<HashMap<usize, (ChunkId, Locator)>>> = Arc::default();
        let shared = placed.clone();
        let done = move |pack: StoredPack<usize>| {
            shared.lock().unwrap().extend(pack.placed.into_iter().map(|(token, id, at)| (token, (id, at))));
            Box::pin(std::future::ready(Ok(()))) as BoxFuture<'static, _>
        };
        let config =
            PackerConfig { intent: IntentId::from_parts(1, 1), run: Run(1), target_bytes: 1 << 20, uploads_max: 2 };
        let packer = Packer::new(config, store.clone(), Arc::new(Numbers::default()), done);
        let lengths = [1, 40_000, 30_000, 65_536, 65_535, 1, 300, 60_000, 60_000, 10];
        for (token, len) in lengths.into_iter().enumerate() {
            let raw = Bytes::from(vec![token as u8 + 1; len]);
            packer.put(token, HashedChunk::of(&raw), raw, true).await.unwrap();
        }
        packer.flush().await.unwrap();
        let placed = placed.lock().unwrap();
        assert_eq!(placed.len(), lengths.len());
        for (token, len) in lengths.into_iter().enumerate() {
            let (id, at) = placed[&token];
            assert_eq!(id, ChunkId::of(&vec![token as u8 + 1; len]));
            assert_eq!(at.len as usize, len);
            assert!(at.raw as usize <= SMALL_FILE_BLOCK_BYTES, "{} bytes", at.raw);
        }
        let shares = |a: usize, b: usize| placed[&a].1.offset == placed[&b].1.offset;
        assert!(shares(0, 1) && !shares(1, 2) && shares(4, 5) && shares(6, 7) && !shares(7, 8) && shares(8, 9));
    }
}
