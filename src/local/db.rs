//! The database of one staging tree: rocksdb behind five column families.
//!
//! Every write is one atomic batch in the write-ahead log, which survives the end of this process at once and a power
//! cut after [`Database::sync`]. No file data lies here: it would turn an LSM tree into a copier. [`super::handle`] says what
//! happens when the disk refuses something.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType,
    DBRawIterator, Direction, IteratorMode, Options, ReadOptions, WriteBatch, WriteBufferManager,
};

use super::handle::{Handle, Opener, Refused};

/// What a family holds; the meaning of its bytes is staging's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Inodes by number.
    Inodes,
    /// Directory entries by (directory, name).
    Names,
    /// Chunks of staged files that are in the store, by (what for, inode, chunk).
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

impl From<Refused> for DatabaseError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Database(why) => why.into(),
            Refused::Mending(why) => Self(why),
        }
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
    handle: Arc<Handle>,
    synced: SyncedMark,
}

/// The number of the last change that was synced, in a file of its own beside the database's.
///
/// A database of which the newest log is gone, or damaged in the middle, opens as if what that held had never been: this
/// is how it is found out. Not synced itself: it may fall behind, and is never ahead.
struct SyncedMark {
    file: File,
    last: Mutex<u64>,
}

impl SyncedMark {
    fn open(dir: &Path) -> std::io::Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(dir.join("SYNCED"))?;
        let mut bytes = [0; 8];
        let last = if file.read_at(&mut bytes, 0)? == bytes.len() { u64::from_le_bytes(bytes) } else { 0 };
        Ok(Self { file, last: Mutex::new(last) })
    }

    fn last(&self) -> u64 {
        *self.last.lock().expect("no code panics while it holds the mark")
    }

    /// Notes that the change `number` is on the disk.
    fn reached(&self, number: u64) {
        let mut last = self.last.lock().expect("no code panics while it holds the mark");
        // What cannot be noted is noted with the next one.
        if number > *last && self.file.write_all_at(&number.to_le_bytes(), 0).is_ok() {
            *last = number;
        }
    }
}

/// Changes that become true together, in their order.
#[derive(Default)]
pub struct Batch {
    changes: Vec<Change>,
}

enum Change {
    Put(Family, Vec<u8>, Vec<u8>),
    Delete(Family, Vec<u8>),
    DeletePrefix(Family, Vec<u8>),
}

impl Batch {
    /// Sets a value.
    pub fn put(&mut self, family: Family, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.changes.push(Change::Put(family, key.into(), value.into()));
    }

    /// Removes a value.
    pub fn delete(&mut self, family: Family, key: impl Into<Vec<u8>>) {
        self.changes.push(Change::Delete(family, key.into()));
    }

    /// Removes every key that begins with `prefix`, however many they are, at the price of one.
    pub fn delete_prefix(&mut self, family: Family, prefix: impl Into<Vec<u8>>) {
        self.changes.push(Change::DeletePrefix(family, prefix.into()));
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// How many changes there are.
    pub fn len(&self) -> usize {
        self.changes.len()
    }
}

/// An instant of the database, which it keeps alive.
pub struct Instant(OwnedSnapshot);

type SnapshotOf<'a> = rocksdb::Snapshot<'a>;

self_cell::self_cell!(
    /// A snapshot borrows from its database: both in one value.
    struct OwnedSnapshot {
        owner: Arc<DB>,
        #[covariant]
        dependent: SnapshotOf,
    }
);

/// Keys and values.
pub type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// The longest key: a number and a name.
const KEY_BYTES_MAX: usize = 8 + 255;
/// Bytes after which one family's table in memory is written out.
const MEMTABLE_BYTES: usize = 8 << 20;

/// Memory that all databases of a process share.
#[derive(Clone)]
pub struct DatabaseMemory {
    /// Blocks that were read: names and inodes in use.
    cache: Cache,
    /// What was written and lies in no table file yet.
    buffers: WriteBufferManager,
}

impl DatabaseMemory {
    /// At most about `bytes`, half for reading, half for writing.
    pub fn new(bytes: usize) -> Self {
        // Without stalls: a writer that is faster than the disk fills the next table in memory meanwhile.
        let buffers = WriteBufferManager::new_write_buffer_manager(bytes / 2, false);
        Self { cache: Cache::new_lru_cache(bytes / 2), buffers }
    }
}

impl Database {
    /// Opens or makes the database in `dir`.
    pub fn open(dir: &Path, memory: &DatabaseMemory) -> Result<Arc<Self>, DatabaseError> {
        // Room that is reserved ahead for logs would be 38 MB a tree, however little is staged in it.
        let mut options = Options::default().get_options_from_string("allow_fallocate=false")?;
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_max_open_files(256);
        options.set_max_background_jobs(2);
        options.set_max_total_wal_size(64 << 20);
        options.set_keep_log_file_num(2);
        options.set_write_buffer_manager(&memory.buffers);
        let cache = memory.cache.clone();
        let named = move |family: Family| ColumnFamilyDescriptor::new(family.name(), family_options(&cache));
        let families = Box::new(move || Family::ALL.map(&named).into());
        let handle = Handle::open(Opener { dir: dir.to_owned(), options, families })?;
        let named = |why| DatabaseError(format!("{}: {why}", dir.join("SYNCED").display()));
        let synced = SyncedMark::open(dir).map_err(named)?;
        let lacking = synced.last().saturating_sub(handle.read(|db| Ok(db.latest_sequence_number()))?);
        if lacking > 0 {
            let mark = dir.join("SYNCED");
            let remedy = format!("remove {} to go on without them", mark.display());
            let what = format!("{lacking} changes that were synced are missing: a log of it is gone; {remedy}");
            return Err(DatabaseError(what));
        }
        Ok(Arc::new(Self { handle, synced }))
    }

    /// The value of `key`.
    pub fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, DatabaseError> {
        Ok(self.handle.read(|db| db.get_cf(column(db, family), key))?)
    }

    /// Writes a batch: atomic, and safe from the end of this process.
    pub fn write(&self, batch: Batch) -> Result<(), DatabaseError> {
        Ok(self.handle.change(|db| db.write(writes(db, &batch)))?)
    }

    /// Writes a batch, safe from a power cut when this returns. After an error it may have been written all the same.
    pub fn write_durably(&self, batch: Batch) -> Result<(), DatabaseError> {
        // Not in one step: refused in the middle of that, it would be in the log and not in what is read.
        self.write(batch)?;
        self.sync()
    }

    /// Makes everything written so far safe from a power cut.
    pub fn sync(&self) -> Result<(), DatabaseError> {
        let written = self.handle.change(|db| {
            let written = db.latest_sequence_number();
            db.flush_wal(true).map(|()| written)
        })?;
        self.synced.reached(written);
        Ok(())
    }

    /// Up to `max` pairs whose key begins with `prefix`, from the key `from` (which begins with it) onwards.
    pub fn prefix(&self, family: Family, prefix: &[u8], from: &[u8], max: usize) -> Result<Pairs, DatabaseError> {
        let mode = IteratorMode::From(from, Direction::Forward);
        Ok(self.handle.read(|db| collect(db.iterator_cf(column(db, family), mode), prefix, max))?)
    }

    /// The database as it is now, unmoved by what follows.
    pub fn instant(&self) -> Result<Instant, DatabaseError> {
        Ok(Instant(OwnedSnapshot::new(self.handle.keep()?, |db| db.snapshot())))
    }
}

fn column(db: &DB, family: Family) -> &ColumnFamily {
    db.cf_handle(family.name()).expect("every family is opened with the database")
}

fn writes(db: &DB, batch: &Batch) -> WriteBatch {
    let mut writes = WriteBatch::default();
    for change in &batch.changes {
        match change {
            Change::Put(family, key, value) => writes.put_cf(column(db, *family), key, value),
            Change::Delete(family, key) => writes.delete_cf(column(db, *family), key),
            Change::DeletePrefix(family, prefix) => {
                writes.delete_range_cf(column(db, *family), prefix, &end_of_prefix(prefix));
            }
        }
    }
    writes
}

/// The first key behind all that begin with `prefix`; keys are shorter than the one for the empty prefix.
fn end_of_prefix(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    vec![0xff; KEY_BYTES_MAX + 1]
}

fn collect(
    pairs: impl Iterator<Item = Result<(Box<[u8]>, Box<[u8]>), rocksdb::Error>>,
    prefix: &[u8],
    max: usize,
) -> Result<Pairs, rocksdb::Error> {
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
    /// The value of `key` at that instant.
    pub fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, DatabaseError> {
        Ok(self.0.borrow_dependent().get_cf(column(self.0.borrow_owner(), family), key)?)
    }

    /// As [`Database::prefix`], at that instant.
    pub fn prefix(&self, family: Family, prefix: &[u8], from: &[u8], max: usize) -> Result<Pairs, DatabaseError> {
        let mode = IteratorMode::From(from, Direction::Forward);
        let family = column(self.0.borrow_owner(), family);
        Ok(collect(self.0.borrow_dependent().iterator_cf_opt(family, ReadOptions::default(), mode), prefix, max)?)
    }

    /// For many keys that are asked for in about ascending order.
    pub fn cursor(&self, family: Family) -> Cursor<'_> {
        Cursor(self.0.borrow_dependent().raw_iterator_cf(column(self.0.borrow_owner(), family)))
    }
}

/// Values at an instant, cheap while each key is a little behind the one before: a seek costs some ten steps.
pub struct Cursor<'a>(DBRawIterator<'a>);

/// Steps that are tried before a seek.
const STEPS: usize = 8;

impl Cursor<'_> {
    /// The value of `key`.
    pub fn get(&mut self, key: &[u8]) -> Result<Option<&[u8]>, DatabaseError> {
        let mut steps = 0;
        while let Some(found) = self.0.key() {
            if found >= key || steps == STEPS {
                break;
            }
            self.0.next();
            steps += 1;
        }
        let is_at = self.0.key() == Some(key);
        let is_passed = steps > 0 && self.0.key().is_some_and(|found| found > key);
        if !is_at && !is_passed {
            self.0.seek(key);
        }
        self.0.status()?;
        Ok(if self.0.key() == Some(key) { self.0.value() } else { None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database() -> (tempfile::TempDir, Arc<Database>) {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(dir.path(), &DatabaseMemory::new(8 << 20)).unwrap();
        (dir, database)
    }

    fn put(database: &Database, key: &[u8], value: &[u8]) {
        let mut batch = Batch::default();
        batch.put(Family::Meta, key, value);
        database.write(batch).unwrap();
    }

    #[test]
    fn a_database_is_opened_anew_with_all_it_had_when_no_instant_is_in_use() {
        let (_dir, database) = database();
        put(&database, b"a", b"1");
        let instant = database.instant().unwrap();
        assert!(database.handle.exchange().unwrap_err().contains("commit"), "a commit reads an instant");
        drop(instant);
        for value in [b"2", b"3", b"4"] {
            database.handle.exchange().unwrap();
            put(&database, b"b", value);
            database.sync().unwrap();
            assert_eq!(database.get(Family::Meta, b"a").unwrap(), Some(b"1".to_vec()));
            assert_eq!(database.get(Family::Meta, b"b").unwrap(), Some(value.to_vec()));
        }
    }

    #[test]
    fn a_database_whose_log_cannot_be_read_back_is_not_given_up() {
        let (dir, database) = database();
        put(&database, b"a", b"1");
        put(&database, b"b", b"2");
        let is_log = |path: &std::path::PathBuf| path.extension().is_some_and(|extension| extension == "log");
        let log = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).find(is_log).unwrap();
        let log = File::options().write(true).open(log).unwrap();
        // As the page cache forgets what the disk refused.
        log.set_len(log.metadata().unwrap().len() - 3).unwrap();
        let refused = database.handle.exchange().unwrap_err();
        assert!(refused.starts_with("1 changes that were not synced are only in memory"), "{refused}");
        assert!(DatabaseError::from(Refused::Mending(refused.clone())).to_string().ends_with(&refused));
        assert_eq!(database.get(Family::Meta, b"b").unwrap(), Some(b"2".to_vec()), "it can be read");
    }

    #[test]
    fn a_database_that_is_being_let_go_is_waited_for() {
        let (dir, database) = database();
        put(&database, b"a", b"1");
        let ending = std::thread::spawn(move || {
            std::thread::sleep(10 * super::super::handle::ENDING_POLL);
            drop(database);
        });
        let again = Database::open(dir.path(), &DatabaseMemory::new(8 << 20)).unwrap();
        assert_eq!(again.get(Family::Meta, b"a").unwrap(), Some(b"1".to_vec()));
        ending.join().unwrap();
    }

    #[test]
    fn an_instant_does_not_see_what_is_written_after_it_and_keeps_its_database() {
        let (dir, database) = database();
        put(&database, b"a", b"1");
        let instant = database.instant().unwrap();
        put(&database, b"a", b"2");
        put(&database, b"ab", b"3");
        drop(database);
        assert_eq!(instant.get(Family::Meta, b"a").unwrap(), Some(b"1".to_vec()));
        assert_eq!(instant.prefix(Family::Meta, b"a", b"a", 9).unwrap().len(), 1);
        drop(instant);
        let again = Database::open(dir.path(), &DatabaseMemory::new(8 << 20)).unwrap();
        assert_eq!(again.get(Family::Meta, b"a").unwrap(), Some(b"2".to_vec()));
    }

    #[test]
    fn a_cursor_finds_what_a_get_finds_in_any_order() {
        let (_dir, database) = database();
        for number in (0..400_u64).filter(|number| number % 7 < 3) {
            put(&database, &number.to_be_bytes(), &number.to_le_bytes());
        }
        let instant = database.instant().unwrap();
        let mut cursor = instant.cursor(Family::Meta);
        let ascending = 0..410;
        let scattered = (0..410).map(|number| number * 97 % 410);
        let sparse = (0..410).step_by(23).chain((0..410).rev().step_by(5)).chain([399, 399, 400, 0]);
        for number in ascending.chain(scattered).chain(sparse) {
            let key = u64::to_be_bytes(number);
            let found = cursor.get(&key).unwrap().map(<[u8]>::to_vec);
            assert_eq!(found, instant.get(Family::Meta, &key).unwrap(), "{number}");
        }
    }

    #[test]
    fn a_database_that_lacks_what_was_synced_is_refused() {
        let (dir, database) = database();
        put(&database, b"a", b"1");
        database.sync().unwrap();
        drop(database);
        let database = Database::open(dir.path(), &DatabaseMemory::new(8 << 20)).unwrap();
        put(&database, b"b", b"2");
        put(&database, b"c", b"3");
        database.sync().unwrap();
        put(&database, b"d", b"4");
        drop(database);
        drop(Database::open(dir.path(), &DatabaseMemory::new(8 << 20)).expect("whole, it opens"));
        let (dir, database) = self::database();
        put(&database, b"b", b"2");
        put(&database, b"c", b"3");
        database.sync().unwrap();
        drop(database);
        let is_log = |path: &std::path::PathBuf| path.extension().is_some_and(|extension| extension == "log");
        let logs = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).filter(is_log);
        logs.for_each(|log| std::fs::remove_file(log).unwrap());
        let refused = Database::open(dir.path(), &DatabaseMemory::new(8 << 20)).err().expect("refused").to_string();
        assert!(refused.contains("2 changes that were synced are missing"), "{refused}");
    }

    #[test]
    fn a_prefix_is_removed_with_all_its_keys_and_no_others() {
        let (_dir, database) = database();
        for key in [&b"a"[..], b"b", b"b\xff\xff", b"ba", b"c"] {
            put(&database, key, b"");
        }
        let mut batch = Batch::default();
        batch.delete_prefix(Family::Meta, &b"b"[..]);
        database.write(batch).unwrap();
        let left: Vec<_> =
            database.prefix(Family::Meta, b"", b"", 9).unwrap().into_iter().map(|(key, _)| key).collect();
        assert_eq!(left, [b"a", b"c"]);
        let mut batch = Batch::default();
        batch.delete_prefix(Family::Meta, &b""[..]);
        database.write(batch).unwrap();
        assert!(database.prefix(Family::Meta, b"", b"", 9).unwrap().is_empty());
    }
}
