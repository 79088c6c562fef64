//! The writable tree: an overlay of changed names, inodes and bytes over one immutable base.
//!
//! An entry of the base has no record here until it changes. This file opens a tree and says how a change is made;
//! [`super::names`], [`super::attributes`] and [`super::bytes`] are the changes, [`super::extents`] what is uploaded.
//!
//! # Invariants
//!
//! 1. An operation that returned survives the end of this process; after [`Tree::sync`] it survives a power cut, and no
//!    name then leads to bytes that do not.
//! 2. A number is never used for two entries.
//! 3. Changes are made one at a time, under `changing`, in one batch each; a seal takes the same lock, so it is an
//!    instant between two changes.
//! 4. No file data while the disk is nearly full ([`Tree::check_space`]), so that names can always be removed.
//!
//! # Lock order
//!
//! `changing` (async) → `open` → `Preserved::state` → `Retired::places` → the locks of `StagedFiles`; `gone` takes no
//! other. The std locks are never held across an await.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock, Weak};

use super::aside;
pub use super::attributes::{Caller, NodeAttr, SetAttr};
pub use super::base::Base;
use super::bytes::OpenFiles;
pub use super::error::StagingError;
use super::gone::Gone;
use super::inode::{FileData, Inode, InodeBody};
use super::journal::forget_shared;
use super::queue::Births;
use super::recovery;
pub use super::recovery::Recovered;
use super::retired::{Retired, reap};
use super::seal::{Preserved, Sealed};
pub use super::totals::Staged;
use super::totals::{Share, Totals};
use super::unwritten::Unwritten;
use crate::content::reader::ContentReader;
use crate::local::db::{Batch, Database, DatabaseError, DatabaseMemory, Family};
use crate::local::staged_files::{Place, StagedFiles, make_directory};
use crate::local::sys;
use crate::model::chunk::ChunkSize;
use crate::model::clock::{Clock, Entropy, Timestamp};
use crate::model::entry::{Attributes, FileBody};
use crate::snapshot::Snapshot;

/// The name that is ours at the top of every tree.
pub const RESERVED_NAME: &[u8] = b".datamon";
/// A mark beside a tree that nobody has opened since it was seen to be without changes.
const CLEAN: &str = "clean";
/// Numbers that are reserved in one step; the rest of a step is lost when the process ends.
const RESERVE_STEP: u64 = 1 << 16;
/// Free bytes below which no file data is taken (or an eighth of a smaller file system).
const FREE_BYTES_MIN: u64 = 128 << 20;
/// Bytes written between two looks at the free space.
const SPACE_CHECK_BYTES: u64 = 8 << 20;
/// Inodes read in one step of a walk over all of them.
const WALK_STEP: usize = 4_096;
/// Bases that are told apart by the numbers of their entries.
const GENERATIONS: u64 = 1 << 14;

/// Numbers that survive the process: given out from memory, reserved in steps.
///
/// A reservation is written before a number of it is given out, and by itself: one that went with the change that takes
/// the number would be lost with it if the change failed, and the next life would give the same numbers again.
pub(super) struct Numbers {
    key: &'static [u8],
    next: AtomicU64,
    /// Changed under `reserving` only.
    reserved: AtomicU64,
    reserving: Mutex<()>,
}

impl Numbers {
    fn load(db: &Database, key: &'static [u8]) -> Result<Self, StagingError> {
        let start = get_number(db, key)?.unwrap_or(1);
        let (next, reserved) = (AtomicU64::new(start), AtomicU64::new(start));
        Ok(Self { key, next, reserved, reserving: Mutex::new(()) })
    }

    /// The next number.
    fn take(&self, db: &Database) -> Result<u64, DatabaseError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        if number < self.reserved.load(Ordering::Acquire) {
            return Ok(number);
        }
        let _reserving = self.reserving.lock().expect("no code panics while it reserves");
        if number >= self.reserved.load(Ordering::Acquire) {
            let reserved = number + RESERVE_STEP;
            let mut batch = Batch::default();
            batch.put(Family::Meta, self.key, reserved.to_be_bytes());
            db.write(batch)?;
            self.reserved.store(reserved, Ordering::Release);
        }
        Ok(number)
    }
}

pub(super) fn get_number(db: &Database, key: &[u8]) -> Result<Option<u64>, StagingError> {
    let Some(value) = db.get(Family::Meta, key)? else { return Ok(None) };
    Ok(Some(u64::from_be_bytes(value[..].try_into().map_err(|_| StagingError::damaged("number"))?)))
}

/// What a tree needs to know of its surroundings.
pub struct TreeConfig {
    /// The state directory of this tree alone.
    pub dir: PathBuf,
    /// The repo's chunk size.
    pub chunk: ChunkSize,
    /// Owner of the root of an empty tree.
    pub owner: (u32, u32),
    /// Default ACLs are inherited.
    pub acl: bool,
    /// What reads the store's content: the base's, and what earlier commits of this tree stored.
    pub reader: Arc<ContentReader>,
    /// What its database may use, with all others of the process.
    pub memory: DatabaseMemory,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
}

/// See the module.
pub struct Tree {
    config: TreeConfig,
    db: Arc<Database>,
    files: Arc<StagedFiles>,
    base: RwLock<Arc<Base>>,
    changing: tokio::sync::Mutex<()>,
    /// Inodes that are open, how often, and their data file.
    pub(super) open: Mutex<OpenFiles>,
    inos: Numbers,
    data_ids: Numbers,
    changes: AtomicU64,
    /// The counter when the tree got its base.
    changes_at_base: AtomicU64,
    dirty: AtomicBool,
    /// Whether the database is known to say so.
    dirty_is_noted: AtomicBool,
    frozen: AtomicBool,
    sealed: Mutex<Weak<Preserved>>,
    gone: Gone,
    unwritten: Unwritten,
    retired: Arc<Retired>,
    births: Births,
    since_check: AtomicU64,
    totals: Totals,
    recovered: Option<Recovered>,
    /// What is noted of the data files that are on the disk.
    safe_data: Mutex<u64>,
    lock: TreeLock,
}

/// The right to a tree's state directory.
pub struct TreeLock {
    dir: PathBuf,
    file: File,
}

impl TreeLock {
    /// Takes the directory, which is made if there is none; what was cut off in it is settled.
    pub fn take(dir: &Path) -> Result<Self, StagingError> {
        make_directory(dir).map_err(|why| recovery::unusable(dir, why))?;
        let file = recovery::lock(dir)?;
        // What a discard that was cut off left is a whole tree only after this.
        aside::settle(dir).map_err(|why| recovery::unusable(dir, why))?;
        recovery::check_whole(dir)?;
        recovery::check_version(dir)?;
        Ok(Self { dir: dir.to_owned(), file })
    }

    /// The process that has the tree in this directory, as far as it said so.
    pub fn holder(dir: &Path) -> Option<u32> {
        recovery::holder(&mut File::open(dir.join(recovery::LOCK)).ok()?)
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether an earlier mount left changes in the tree in `dir`. One without is marked, and costs the next who asks no look.
    pub fn has_left(dir: &Path, memory: &DatabaseMemory) -> Result<bool, StagingError> {
        let mark = dir.join(CLEAN);
        if mark.exists() {
            return Ok(false);
        }
        let lock = Self::take(dir)?;
        let is_dirty = lock.dirty_base(memory)?.is_some();
        if !is_dirty {
            // What cannot be marked is looked at again.
            let _ = File::create(mark);
        }
        Ok(is_dirty)
    }

    /// Takes the mark away, durably: what is changed from now on is not seen by who trusts it.
    fn unmark(&self) -> std::io::Result<()> {
        match std::fs::remove_file(self.dir.join(CLEAN)) {
            Err(why) if why.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(why) => Err(why),
            Ok(()) => File::open(&self.dir)?.sync_all(),
        }
    }

    /// The bundle that a tree with changes is based on, read without opening it; `None` if it is clean or new.
    pub fn dirty_base(&self, memory: &DatabaseMemory) -> Result<Option<Option<String>>, StagingError> {
        if !self.dir.join("db").exists() {
            return Ok(None);
        }
        let db = recovery::open_database(&self.dir, memory)?;
        if db.get(Family::Meta, b"dirty")?.is_none() {
            return Ok(None);
        }
        let base = db.get(Family::Meta, b"base")?.unwrap_or_default();
        Ok(Some(String::from_utf8(base).ok().filter(|id| !id.is_empty())))
    }
}

impl Tree {
    /// Opens the tree in its state directory. A clean tree starts anew from `base`; one with changes must be opened with the
    /// base that [`TreeLock::dirty_base`] names.
    pub fn open(config: TreeConfig, base: Option<Arc<Snapshot>>, lock: TreeLock) -> Result<Arc<Self>, StagingError> {
        let dir = &config.dir;
        lock.unmark().map_err(|why| recovery::unusable(dir, why))?;
        aside::expire(dir, config.clock.now())?;
        let db = recovery::open_database(dir, &config.memory)?;
        let files = StagedFiles::open(dir).map_err(|why| recovery::unusable(dir, why))?;
        let dirty = db.get(Family::Meta, b"dirty")?.is_some();
        let totals = Totals::default();
        let mut recovered = None;
        let generation = if dirty {
            let generation = get_number(&db, b"generation")?.unwrap_or(1);
            let count = |file: &FileData| totals.count(Share::default(), Share::of(file, config.chunk));
            recovered = Some(recovery::recover(&db, &files, generation, count)?);
            // What the last life wrote and did not sync is made safe here: from now on only what this one writes is not.
            sys::sync_file_system(&lock.file)?;
            recovery::all_is_safe(&db)?;
            generation
        } else {
            start_anew(&db, &files, base.as_deref())?
        };
        let now = config.clock.now();
        let root = Attributes { permissions: 0o755, uid: config.owner.0, gid: config.owner.1, mtime: now };
        Ok(Arc::new(Self {
            inos: Numbers::load(&db, b"next_ino")?,
            data_ids: Numbers::load(&db, recovery::NEXT_DATA)?,
            base: RwLock::new(Arc::new(Base { snapshot: base, generation, root })),
            db,
            files: Arc::new(files),
            changing: tokio::sync::Mutex::new(()),
            open: Mutex::default(),
            changes: AtomicU64::new(recovered.as_ref().map_or(0, |found| found.records)),
            changes_at_base: AtomicU64::new(0),
            dirty: AtomicBool::new(dirty),
            dirty_is_noted: AtomicBool::new(dirty),
            frozen: AtomicBool::new(false),
            sealed: Mutex::new(Weak::new()),
            gone: Gone::default(),
            unwritten: Unwritten::default(),
            retired: Arc::default(),
            births: Births::default(),
            since_check: AtomicU64::new(SPACE_CHECK_BYTES),
            totals,
            recovered,
            safe_data: Mutex::new(0),
            config,
            lock,
        }))
    }

    /// What was found of an earlier life, if there was anything.
    pub fn recovered(&self) -> Option<&Recovered> {
        self.recovered.as_ref()
    }

    /// Closes the tree; its directory stays locked.
    pub fn close(self) -> TreeLock {
        self.lock
    }

    /// The base.
    pub fn base(&self) -> Arc<Base> {
        self.base.read().expect("nothing panics while it holds the base").clone()
    }

    /// The database, for the commit's journal.
    pub fn db(&self) -> &Arc<Database> {
        &self.db
    }

    pub(super) fn files(&self) -> &Arc<StagedFiles> {
        &self.files
    }

    pub(super) fn reader(&self) -> &Arc<ContentReader> {
        &self.config.reader
    }

    /// The state directory.
    pub fn dir(&self) -> &Path {
        &self.config.dir
    }

    /// The repo's chunk size.
    pub fn chunk(&self) -> ChunkSize {
        self.config.chunk
    }

    /// Whether default ACLs are inherited.
    pub(super) fn has_acls(&self) -> bool {
        self.config.acl
    }

    /// Whether anything was changed since the last commit, or was to be and was refused when nobody could be told.
    pub fn is_dirty(&self) -> bool {
        self.dirty.load(Ordering::Acquire) || self.unwritten.is_any()
    }

    /// How much is staged.
    pub fn staged(&self) -> Staged {
        self.totals.now()
    }

    pub(super) fn totals(&self) -> &Totals {
        &self.totals
    }

    pub(super) fn unwritten(&self) -> &Unwritten {
        &self.unwritten
    }

    pub(super) fn gone(&self) -> &Gone {
        &self.gone
    }

    pub(super) fn share(&self, file: &FileData) -> Share {
        Share::of(file, self.config.chunk)
    }

    /// Counts the changes made since this process opened the tree, and what it found changed.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// How many of them since the tree got its base: what a commit walks through, about.
    pub fn changes_of_base(&self) -> u64 {
        self.changes() - self.changes_at_base.load(Ordering::Acquire)
    }

    /// Refuses changes, or takes them again.
    pub fn freeze(&self, frozen: bool) {
        self.frozen.store(frozen, Ordering::Release);
    }

    /// The inode with this number.
    pub async fn inode(&self, ino: u64) -> Result<Inode, StagingError> {
        match self.record(ino)? {
            Some(inode) => Ok(inode),
            None => self.base().inode(ino).await,
        }
    }

    /// The inode's record, if it was ever changed.
    pub(super) fn record(&self, ino: u64) -> Result<Option<Inode>, StagingError> {
        let record = self.db.get(Family::Inodes, &ino.to_be_bytes())?;
        Ok(record.map(|record| Inode::decode(&record)).transpose()?)
    }

    // ---- changes ---------------------------------------------------------------------------------------------------

    pub(super) async fn change(&self) -> Result<tokio::sync::MutexGuard<'_, ()>, StagingError> {
        let guard = self.changing.lock().await;
        if self.frozen.load(Ordering::Acquire) { Err(StagingError::Frozen) } else { Ok(guard) }
    }

    /// As [`Tree::change`], if nobody else changes the tree now.
    pub(super) fn try_change(&self) -> Result<Option<tokio::sync::MutexGuard<'_, ()>>, StagingError> {
        let Ok(guard) = self.changing.try_lock() else { return Ok(None) };
        if self.frozen.load(Ordering::Acquire) { Err(StagingError::Frozen) } else { Ok(Some(guard)) }
    }

    /// The lock of every change, for what is no change that a user would see.
    pub(super) async fn lock_changes(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.changing.lock().await
    }

    /// The same, where waiting is no harm: on no thread of the runtime.
    pub(super) fn lock_changes_blocking(&self) -> tokio::sync::MutexGuard<'_, ()> {
        tokio::task::block_in_place(|| self.changing.blocking_lock())
    }

    pub(super) fn now(&self) -> Timestamp {
        self.config.clock.now()
    }

    pub(super) fn random(&self) -> u128 {
        self.config.entropy.random()
    }

    pub(super) fn next_ino(&self) -> Result<u64, DatabaseError> {
        self.inos.take(&self.db)
    }

    pub(super) fn next_data(&self) -> Result<u64, DatabaseError> {
        self.data_ids.take(&self.db)
    }

    pub(super) fn apply(&self, mut batch: Batch) -> Result<(), DatabaseError> {
        if !self.dirty_is_noted.load(Ordering::Acquire) {
            batch.put(Family::Meta, &b"dirty"[..], [1]);
        }
        self.db.write(batch)?;
        self.dirty_is_noted.store(true, Ordering::Release);
        self.dirty.store(true, Ordering::Release);
        self.changes.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// Keeps what a sealed instant needs of a data file's bytes that are about to change.
    pub(super) fn preserve(&self, id: u64, start: u64, end: u64) -> Result<(), StagingError> {
        match self.sealed() {
            Some(sealed) => Ok(sealed.before_change(id, start, end)?),
            None => Ok(()),
        }
    }

    /// Lets bytes go to which no inode leads any more: the change that says so was written. They are removed when it is
    /// on the disk.
    pub(super) fn forget_place(&self, place: Option<Place>) {
        let Some(place) = place else { return };
        self.files.disown(place);
        match self.sealed() {
            Some(sealed) => sealed.unused(place),
            None => self.retired.push(place),
        }
    }

    /// Where files that are being written were made.
    pub(super) fn births(&self) -> &Births {
        &self.births
    }

    pub(super) fn retired(&self) -> &Arc<Retired> {
        &self.retired
    }

    /// Notes that the data files below the number `made` are on the disk.
    pub(super) fn note_safe(&self, made: u64) -> Result<(), StagingError> {
        let mut known = self.safe_data.lock().expect("no code panics while it notes that");
        recovery::note_safe(&self.db, &mut known, made)
    }

    /// Removes the bytes that were let go.
    pub(super) async fn reap(&self) -> Result<(), StagingError> {
        let (db, files, retired) = (self.db.clone(), self.files.clone(), self.retired.clone());
        tokio::task::spawn_blocking(move || reap(&db, &files, &retired)).await.expect("reaping does not panic")
    }

    fn sealed(&self) -> Option<Arc<Preserved>> {
        self.sealed.lock().expect("nothing panics while it holds the seal").upgrade()
    }

    /// Refuses file data when the disk is nearly full.
    pub(super) fn check_space(&self, bytes: u64) -> Result<(), StagingError> {
        let unchecked = self.since_check.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        if unchecked < SPACE_CHECK_BYTES {
            return Ok(());
        }
        let found = sys::file_system(&self.config.dir)?;
        let block = u64::from(found.block_bytes);
        let reserve = FREE_BYTES_MIN.min(found.blocks * block / 8);
        if found.available * block < reserve + bytes {
            return Err(StagingError::NoSpace);
        }
        self.since_check.store(0, Ordering::Relaxed);
        Ok(())
    }

    /// Free and used space of the disk under the state directory.
    pub fn statfs(&self) -> Result<sys::FileSystem, StagingError> {
        Ok(sys::file_system(&self.config.dir)?)
    }

    // ---- seals and what follows a commit ---------------------------------------------------------------------------

    /// Stops an instant of the tree. One at a time.
    pub async fn seal(&self) -> Result<Sealed, StagingError> {
        let _changing = self.changing.lock().await;
        let mut current = self.sealed.lock().expect("nothing panics while it holds the seal");
        if current.upgrade().is_some() {
            return Err(StagingError::Busy("a commit of this tree is under way".to_owned()));
        }
        let first_new = self.data_ids.next.load(Ordering::Relaxed);
        let (dir, files, retired) = (&self.config.dir, self.files.clone(), self.retired.clone());
        let shared = Arc::new(Preserved::new(dir, files, retired, self.config.chunk, first_new));
        *current = Arc::downgrade(&shared);
        Ok(Sealed { instant: self.db.instant()?, base: self.base(), changes: self.changes(), shared })
    }

    /// Says that `body` in the store is what each file was at that version: of those that still are, the local bytes go.
    pub async fn mark_stored(&self, files: &[(u64, u64, FileBody)]) -> Result<(), StagingError> {
        let _changing = self.changing.lock().await;
        let mut batch = Batch::default();
        let mut unused = Vec::new();
        for (ino, version, body) in files {
            let Some(mut inode) = self.record(*ino)? else { continue };
            let InodeBody::File(file) = &mut inode.body else { continue };
            if inode.version != *version || file.is_stored() || inode.nlink == 0 {
                continue;
            }
            self.forget_extents(&mut batch, *ino, file);
            self.totals.count(self.share(file), Share::default());
            unused.extend(file.local);
            *file = FileData::stored(body.clone());
            put_inode(&mut batch, *ino, &inode);
            let mut open = self.open.lock().expect("nothing panics while it holds the open files");
            if let Some(entry) = open.get_mut(ino) {
                entry.forget_data();
            }
        }
        self.db.write(batch)?;
        unused.into_iter().for_each(|place| self.forget_place(Some(place)));
        Ok(())
    }

    /// Says that everything up to the seal is published; the tree is clean if nothing was changed since.
    pub async fn mark_published(&self, changes: u64) -> Result<bool, StagingError> {
        let _changing = self.changing.lock().await;
        if self.changes() != changes {
            return Ok(false);
        }
        let mut batch = Batch::default();
        batch.delete(Family::Meta, &b"dirty"[..]);
        forget_shared(&self.db, &mut batch)?;
        // Refused, it may be written all the same: the next change says again that there are changes.
        self.dirty_is_noted.store(false, Ordering::Release);
        self.db.write_durably(batch)?;
        self.dirty.store(false, Ordering::Release);
        Ok(true)
    }

    /// Gives a clean tree another base; `false` if it has changes, open files or a sealed instant.
    ///
    /// Numbers of the old base's entries mean nothing afterwards, but for the root's.
    pub async fn rebase(&self, snapshot: Arc<Snapshot>) -> Result<bool, StagingError> {
        let _changing = self.changing.lock().await;
        let is_open = !self.open.lock().expect("nothing panics while it holds the open files").is_empty();
        if self.is_dirty() || is_open || self.sealed().is_some() {
            return Ok(false);
        }
        let old = self.base();
        let generation = next_generation(old.generation);
        let mut batch = Batch::default();
        empty(&mut batch);
        forget_shared(&self.db, &mut batch)?;
        batch.put(Family::Meta, &b"generation"[..], generation.to_be_bytes());
        batch.put(Family::Meta, &b"base"[..], snapshot.descriptor().bundle.to_string());
        self.db.write(batch)?;
        let base = Base { snapshot: Some(snapshot), generation, root: old.root };
        *self.base.write().expect("nothing panics while it holds the base") = Arc::new(base);
        self.changes_at_base.store(self.changes(), Ordering::Release);
        self.retired.clear();
        self.gone().clear();
        // Done as everybody sees it, whatever the disk says: a power cut finds a clean tree on one base or the other, and
        // empties it.
        if let Err(error) = self.db.sync().map_err(StagingError::from).and_then(|()| Ok(self.files.clear()?)) {
            tracing::warn!(%error, "what a clean tree had staged before stays on the disk until the next mount");
        }
        Ok(true)
    }
}

fn next_generation(generation: u64) -> u64 {
    ((generation + 1) % GENERATIONS).max(1)
}

/// Forgets all that was changed.
fn empty(batch: &mut Batch) {
    for family in [Family::Inodes, Family::Names, Family::Extents] {
        batch.delete_prefix(family, &b""[..]);
    }
}

/// A clean tree on another base: nothing of the last one is worth keeping but the counters, and where chunks lie.
fn start_anew(db: &Database, files: &StagedFiles, base: Option<&Snapshot>) -> Result<u64, StagingError> {
    files.clear()?;
    let generation = next_generation(get_number(db, b"generation")?.unwrap_or(0));
    let mut batch = Batch::default();
    empty(&mut batch);
    // The intent stays: its slot has to be filled before it is forgotten, and that takes the store.
    for key in [&b"sealed"[..], b"parent"] {
        batch.delete(Family::Meta, key);
    }
    batch.delete_prefix(Family::Meta, &b"pack/"[..]);
    forget_shared(db, &mut batch)?;
    batch.put(Family::Meta, &b"generation"[..], generation.to_be_bytes());
    let name = base.map(|base| base.descriptor().bundle.to_string()).unwrap_or_default();
    batch.put(Family::Meta, &b"base"[..], name);
    db.write_durably(batch)?;
    Ok(generation)
}

/// Goes through all inodes that have a record.
pub(super) fn for_each_inode(
    db: &Database,
    mut each: impl FnMut(u64, Inode) -> Result<(), StagingError>,
) -> Result<(), StagingError> {
    let mut from = Vec::new();
    loop {
        let step = db.prefix(Family::Inodes, b"", &from, WALK_STEP)?;
        let Some((last, _)) = step.last() else { return Ok(()) };
        from = last.clone();
        from.push(0);
        for (key, value) in step {
            let ino = u64::from_be_bytes(key[..].try_into().map_err(|_| StagingError::damaged("inode key"))?);
            each(ino, Inode::decode(&value)?)?;
        }
    }
}

pub(super) fn put_inode(batch: &mut Batch, ino: u64, inode: &Inode) {
    batch.put(Family::Inodes, ino.to_be_bytes(), inode.encode());
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn a_number_whose_change_failed_is_not_given_out_by_the_next_life() {
        let dir = tempfile::tempdir().unwrap();
        let db = Database::open(dir.path(), &crate::staging::tests::memory()).unwrap();
        let numbers = Numbers::load(&db, b"next_ino").unwrap();
        // Nothing is written with these: the change that took them failed.
        let given: Vec<u64> = (0..3).map(|_| numbers.take(&db).unwrap()).collect();
        assert_eq!(given, [1, 2, 3]);
        let next_life = Numbers::load(&db, b"next_ino").unwrap();
        assert!(next_life.take(&db).unwrap() > 3);
    }
}
