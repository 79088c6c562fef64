//! The database of one staging tree: rocksdb behind five column families.
//!
//! Every write is one atomic batch in the write-ahead log, which survives the end of this process at once and a power
//! cut after [`Database::sync`]. No file data lies here: it would turn an LSM tree into a copier.

use std::path::Path;
use std::sync::Arc;

use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType,
    Direction, IteratorMode, Options, ReadOptions, WriteBatch, WriteOptions,
};

/// What a family holds; the meaning of its bytes is staging's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Inodes by number.
    Inodes,
    /// Directory entries by (directory, name).
    Names,
    /// Uploaded chunks of files by (inode, chunk).
    Extents,
    /// Chunks in the store by id.
    Chunks,
    /// Settings and journals.
    Meta,
}

impl Family {
    const ALL: [Self; 5] = [Self::Inodes, Self::Names, Self::Extents, Self::Chunks, Self::Meta];

    fn name(self) -> &'static str {
        match self {
            Self::Inodes => "inode",
            Self::Names => "dirent",
            Self::Extents => "extent",
            Self::Chunks => "chunk",
            Self::Meta => "meta",
        }
    }
}

/// A database that failed: the disk, in all likelihood.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the staging database: {0}")]
pub struct DatabaseError(String);

impl From<rocksdb::Error> for DatabaseError {
    fn from(error: rocksdb::Error) -> Self {
        Self(error.into_string())
    }
}

impl DatabaseError {
    /// Whether the disk is full.
    pub fn is_no_space(&self) -> bool {
        self.0.contains("No space left")
    }
}

/// See the module.
pub struct Database {
    db: DB,
}

/// Changes that become true together.
#[derive(Default)]
pub struct Batch {
    changes: Vec<(Family, Vec<u8>, Option<Vec<u8>>)>,
}

impl Batch {
    /// Sets a value.
    pub fn put(&mut self, family: Family, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.changes.push((family, key.into(), Some(value.into())));
    }

    /// Removes a value.
    pub fn delete(&mut self, family: Family, key: impl Into<Vec<u8>>) {
        self.changes.push((family, key.into(), None));
    }
}

/// An instant of the database, held alive with it.
pub struct Instant {
    // Declared first, so that it goes before the database that it borrows from.
    snapshot: Option<Box<dyn SnapshotReads>>,
}

trait SnapshotReads: Send + Sync {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, DatabaseError>;
    fn prefix(&self, family: Family, prefix: &[u8], from: &[u8], max: usize) -> Result<Pairs, DatabaseError>;
}

/// Keys and values.
pub type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// Memory that one database may use for blocks; names and inodes that are in use.
const CACHE_BYTES: usize = 16 << 20;
const MEMTABLE_BYTES: usize = 8 << 20;

impl Database {
    /// Opens or makes the database in `dir`.
    pub fn open(dir: &Path) -> Result<Arc<Self>, DatabaseError> {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_max_open_files(256);
        options.set_max_background_jobs(2);
        options.set_max_total_wal_size(64 << 20);
        options.set_keep_log_file_num(2);
        let cache = Cache::new_lru_cache(CACHE_BYTES);
        let families = Family::ALL.map(|family| ColumnFamilyDescriptor::new(family.name(), family_options(&cache)));
        Ok(Arc::new(Self { db: DB::open_cf_descriptors(&options, dir, families)? }))
    }

    fn family(&self, family: Family) -> &ColumnFamily {
        self.db.cf_handle(family.name()).expect("every family is opened with the database")
    }

    /// The value of `key`.
    pub fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, DatabaseError> {
        Ok(self.db.get_cf(self.family(family), key)?)
    }

    /// Writes a batch: atomic, and safe from the end of this process.
    pub fn write(&self, batch: Batch) -> Result<(), DatabaseError> {
        self.write_with(batch, false)
    }

    /// Writes a batch, safe from a power cut when this returns.
    pub fn write_durably(&self, batch: Batch) -> Result<(), DatabaseError> {
        self.write_with(batch, true)
    }

    fn write_with(&self, batch: Batch, sync: bool) -> Result<(), DatabaseError> {
        let mut writes = WriteBatch::default();
        for (family, key, value) in batch.changes {
            match value {
                Some(value) => writes.put_cf(self.family(family), key, value),
                None => writes.delete_cf(self.family(family), key),
            }
        }
        let mut options = WriteOptions::default();
        options.set_sync(sync);
        Ok(self.db.write_opt(writes, &options)?)
    }

    /// Makes everything written so far safe from a power cut.
    pub fn sync(&self) -> Result<(), DatabaseError> {
        Ok(self.db.flush_wal(true)?)
    }

    /// Up to `max` pairs whose key begins with `prefix`, from the key `from` (which begins with it) onwards.
    pub fn prefix(&self, family: Family, prefix: &[u8], from: &[u8], max: usize) -> Result<Pairs, DatabaseError> {
        collect(self.db.iterator_cf(self.family(family), IteratorMode::From(from, Direction::Forward)), prefix, max)
    }

    /// The database as it is now, unmoved by what follows.
    pub fn instant(self: &Arc<Self>) -> Instant {
        Instant { snapshot: Some(Box::new(OwnedSnapshot::new(self.clone()))) }
    }
}

fn collect(
    pairs: impl Iterator<Item = Result<(Box<[u8]>, Box<[u8]>), rocksdb::Error>>,
    prefix: &[u8],
    max: usize,
) -> Result<Pairs, DatabaseError> {
    let mut found = Vec::new();
    for pair in pairs {
        let (key, value) = pair?;
        if found.len() >= max || !key.starts_with(prefix) {
            break;
        }
        found.push((key.into_vec(), value.into_vec()));
    }
    Ok(found)
}

fn family_options(cache: &Cache) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_block_size(16 << 10);
    table.set_bloom_filter(10.0, false);
    // One big filter block in a small cache made gets 30 times slower: partition it.
    table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    table.set_partition_filters(true);
    table.set_cache_index_and_filter_blocks(true);
    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_write_buffer_size(MEMTABLE_BYTES);
    options.set_max_write_buffer_number(2);
    options
}

impl Instant {
    fn reads(&self) -> &dyn SnapshotReads {
        self.snapshot.as_deref().expect("set when it was made")
    }

    /// The value of `key` at that instant.
    pub fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, DatabaseError> {
        self.reads().get(family, key)
    }

    /// As [`Database::prefix`], at that instant.
    pub fn prefix(&self, family: Family, prefix: &[u8], from: &[u8], max: usize) -> Result<Pairs, DatabaseError> {
        self.reads().prefix(family, prefix, from, max)
    }
}

/// A rocksdb snapshot that keeps its database alive: a thread owns both and answers through a channel, because the
/// snapshot borrows from the database and safe Rust has no struct that holds both.
struct OwnedSnapshot {
    /// `None` only while this is dropped, which ends the thread.
    ask: Option<std::sync::Mutex<std::sync::mpsc::Sender<Question>>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for OwnedSnapshot {
    /// Waits for the thread, which is between two questions: who drops the last instant may open the database again.
    fn drop(&mut self) {
        self.ask = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

type Answer = std::sync::mpsc::SyncSender<Result<Pairs, DatabaseError>>;

enum Question {
    Get(Family, Vec<u8>, Answer),
    Prefix(Family, Vec<u8>, Vec<u8>, usize, Answer),
}

impl OwnedSnapshot {
    fn new(db: Arc<Database>) -> Self {
        let (ask, questions) = std::sync::mpsc::channel();
        let (ready, taken) = std::sync::mpsc::sync_channel(0);
        let thread = std::thread::spawn(move || {
            let snapshot = db.db.snapshot();
            // The maker waits for this: the instant is the moment of the call, not of the thread's start.
            let _ = ready.send(());
            for question in questions {
                answer(&db, &snapshot, question);
            }
        });
        taken.recv().expect("the thread takes its snapshot before anything can end it");
        Self { ask: Some(std::sync::Mutex::new(ask)), thread: Some(thread) }
    }

    fn asked(&self, question: impl FnOnce(Answer) -> Question) -> Result<Pairs, DatabaseError> {
        let (answer, answered) = std::sync::mpsc::sync_channel(1);
        let ask = self.ask.as_ref().expect("set until the end").lock().expect("nothing panics while it asks");
        ask.send(question(answer)).expect("the thread lives as long as this sender");
        answered.recv().expect("the thread answers every question")
    }
}

fn answer(db: &Database, snapshot: &rocksdb::Snapshot<'_>, question: Question) {
    match question {
        Question::Get(family, key, answer) => {
            let found = snapshot.get_cf(db.family(family), &key).map_err(DatabaseError::from);
            let _ = answer.send(found.map(|value| value.map(|value| (key, value)).into_iter().collect()));
        }
        Question::Prefix(family, prefix, from, max, answer) => {
            let mode = IteratorMode::From(&from, Direction::Forward);
            let pairs = snapshot.iterator_cf_opt(db.family(family), ReadOptions::default(), mode);
            let _ = answer.send(collect(pairs, &prefix, max));
        }
    }
}

impl SnapshotReads for OwnedSnapshot {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, DatabaseError> {
        let found = self.asked(|answer| Question::Get(family, key.to_vec(), answer))?;
        Ok(found.into_iter().next().map(|(_, value)| value))
    }

    fn prefix(&self, family: Family, prefix: &[u8], from: &[u8], max: usize) -> Result<Pairs, DatabaseError> {
        self.asked(|answer| Question::Prefix(family, prefix.to_vec(), from.to_vec(), max, answer))
    }
}
