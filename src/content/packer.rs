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
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::format::pack::{FinishedPack, HashedChunk, PackKind, PackWriter, Record};
use crate::model::entry::Locator;
use crate::model::id::{ChunkId, IntentId, ObjectHash, PackId, Run};
use crate::model::limits::SMALL_FILE_BLOCK_BYTES;
use crate::store::{Store, StoreError};

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

type Done<T> = Box<dyn Fn(StoredPack<T>) + Send + Sync>;

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
        done: impl Fn(StoredPack<T>) + Send + Sync + 'static,
    ) -> Self {
        let state = State {
            open: None,
            small: Vec::new(),
            small_bytes: 0,
            waiting: HashMap::new(),
            running: JoinSet::new(),
            failed: None,
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
                state.small_bytes += raw.len();
                state.small.push((chunk, raw));
                if state.small_bytes < SMALL_FILE_BLOCK_BYTES {
                    return Ok(());
                }
                state.take_block()
            } else {
                vec![(chunk, raw)]
            }
        };
        self.append(block).await
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
        let mut state = self.lock();
        let open = match &mut state.open {
            Some(open) => open,
            closed => {
                let seq = self.journal.next_seq().map_err(|error| PackError::Journal(error.to_string()))?;
                let id = PackId { intent: self.config.intent, run: self.config.run, seq };
                let writer = PackWriter::new(self.store.context(), id, PackKind::Data, self.config.target_bytes);
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
            let mut state = shared.lock().expect("no code panics while it holds the packer's state");
            match outcome {
                Ok(()) => {
                    let stored = state.deliver(&pack, open.placed);
                    drop(state);
                    done(stored);
                }
                Err(error) => {
                    state.failed.get_or_insert(error.into());
                }
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
