//! The writable tree: an overlay of changed names, inodes and bytes over one immutable base.
//!
//! An entry of the base has no record here until it changes. A directory's entries are its records in the database over
//! what the base's directory row shows; a record without a child is a whiteout. A directory of the base keeps naming its
//! row when it is renamed, so that a rename is two records whatever lies below.
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
//! `changing` (async) → `open` → `Preserved::state`. The std locks are never held across an await.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock, Weak};

use bytes::Bytes;

use super::inode::{FileData, Inode, InodeBody, ROOT, base_ino, base_row, new_ino};
use super::seal::{Preserved, Sealed, data_path};
use crate::content::reader::{ContentError, ContentReader, zeros};
use crate::format::FormatError;
use crate::format::range::RowValue;
use crate::local::db::{Batch, Database, DatabaseError, Family};
use crate::local::sys;
use crate::model::chunk::ChunkSize;
use crate::model::clock::{Clock, Entropy, Timestamp};
use crate::model::entry::{Attributes, Body, FileBody, FileKind};
use crate::model::id::LinkId;
use crate::model::limits::{FILE_BYTES_MAX, XATTR_BYTES_MAX};
use crate::model::name::FileName;
use crate::model::path::TreePath;
use crate::snapshot::{RowId, Snapshot, SnapshotError};

/// The name that is ours at the top of every tree.
pub const RESERVED_NAME: &[u8] = b".datamon";
/// Version of a state directory.
const STATE_VERSION: &str = "datamon staging 1\n";
/// Numbers that are reserved in one step; the rest of a step is lost when the process ends.
const RESERVE_STEP: u64 = 1 << 16;
/// Free bytes below which no file data is taken (or an eighth of a smaller file system).
const FREE_BYTES_MIN: u64 = 128 << 20;
/// Names read in one step of a list, however few are asked for: whiteouts may fill it.
const LIST_STEP_MIN: usize = 64;
/// Bytes written between two looks at the free space.
const SPACE_CHECK_BYTES: u64 = 8 << 20;

/// Why an operation was refused.
#[derive(Debug, thiserror::Error)]
pub enum StagingError {
    /// No such entry.
    #[error("no such entry")]
    NotFound,
    /// The name is taken.
    #[error("the name exists")]
    Exists,
    /// The directory has entries.
    #[error("the directory is not empty")]
    NotEmpty,
    /// A directory was expected.
    #[error("not a directory")]
    NotDirectory,
    /// A directory was not expected.
    #[error("is a directory")]
    IsDirectory,
    /// The name is ours.
    #[error(".datamon is reserved at the top of a tree")]
    Reserved,
    /// The disk under the state directory is full, or nearly.
    #[error("the disk under the state directory has no room left (free some, or set -o state=)")]
    NoSpace,
    /// Larger than a file may be.
    #[error("larger than a file may be")]
    TooLarge,
    /// An argument makes no sense.
    #[error("{0}")]
    Invalid(&'static str),
    /// No such xattr.
    #[error("no such xattr")]
    NoXattr,
    /// The number is of an entry that is gone.
    #[error("the entry is gone")]
    Stale,
    /// Another mount has this tree.
    #[error("{0}")]
    Busy(String),
    /// Changes are not taken now.
    #[error("the tree is being unmounted")]
    Frozen,
    /// The state directory cannot be used.
    #[error("{0}")]
    State(String),
    /// A local file failed.
    #[error("the state directory: {0}")]
    Io(io::Error),
    /// The database failed.
    #[error(transparent)]
    Database(DatabaseError),
    /// A record of the database is not what it should be.
    #[error("the staging database: {0}")]
    Record(#[from] FormatError),
    /// The base could not be read.
    #[error(transparent)]
    Base(#[from] SnapshotError),
}

impl StagingError {
    pub(super) fn damaged(what: &'static str) -> Self {
        Self::Record(FormatError::Malformed { what })
    }
}

impl From<io::Error> for StagingError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace,
            io::ErrorKind::FileTooLarge => Self::TooLarge,
            _ => Self::Io(error),
        }
    }
}

impl From<DatabaseError> for StagingError {
    fn from(error: DatabaseError) -> Self {
        if error.is_no_space() { Self::NoSpace } else { Self::Database(error) }
    }
}

impl From<ContentError> for StagingError {
    fn from(error: ContentError) -> Self {
        Self::Base(error.into())
    }
}

/// What stat(2) shows of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeAttr {
    /// Its number.
    pub ino: u64,
    /// Its kind.
    pub kind: FileKind,
    /// Mode, owner, mtime.
    pub attributes: Attributes,
    /// Last change of anything.
    pub ctime: Timestamp,
    /// Length in bytes.
    pub size: u64,
    /// Names.
    pub nlink: u32,
    /// Device number.
    pub rdev: u32,
}

/// Who asks, and with which umask.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bits that new entries do not get.
    pub umask: u32,
}

/// What setattr is to change.
#[derive(Debug, Clone, Copy, Default)]
pub struct SetAttr {
    /// Permission bits.
    pub permissions: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length.
    pub size: Option<u64>,
    /// Time of the last change of contents.
    pub mtime: Option<Timestamp>,
    /// Clear set-user-id and set-group-id, as a change by an ordinary user does.
    pub kill_privileges: bool,
}

/// What a tree shows where it was not changed.
pub struct Base {
    /// The bundle; `None`: an empty tree.
    pub snapshot: Option<Arc<Snapshot>>,
    /// Counts the bases that this tree has had.
    pub generation: u64,
    /// The root of an empty tree.
    root: Attributes,
}

impl Base {
    /// The number of a row of this base.
    pub fn ino(&self, row: RowId) -> u64 {
        base_ino(self.generation, row)
    }

    /// The inode of an entry of the base.
    pub async fn inode(&self, ino: u64) -> Result<Inode, StagingError> {
        let row = base_row(self.generation, ino).ok_or(StagingError::Stale)?;
        let Some(snapshot) = &self.snapshot else {
            return if ino == ROOT {
                Ok(Inode::new(self.root, InodeBody::Directory))
            } else {
                Err(StagingError::Stale)
            };
        };
        let found = snapshot.row(row).await?.ok_or(StagingError::Stale)?;
        let link = found.key.is_link().then(|| link_of(found.key.as_bytes())).flatten();
        match found.value {
            RowValue::Entry(entry) => Ok(Inode::of_base(row, entry, link)),
            _ => Err(StagingError::Stale),
        }
    }

    /// The path, in the base, of its directory `row`.
    pub async fn directory_path(&self, row: RowId) -> Result<TreePath, StagingError> {
        let Some(snapshot) = &self.snapshot else { return Err(StagingError::Stale) };
        snapshot.directory_path(row).await?.ok_or(StagingError::Stale)
    }
}

/// The group of a link row, from its key: 32 hex digits behind three zero bytes.
fn link_of(key: &[u8]) -> Option<LinkId> {
    let digits = std::str::from_utf8(key.get(3..)?).ok()?;
    Some(LinkId::from_bytes(u128::from_str_radix(digits, 16).ok()?.to_be_bytes()))
}

/// The key of a directory entry.
pub(super) fn child_key(parent: u64, name: &FileName) -> Vec<u8> {
    let mut key = parent.to_be_bytes().to_vec();
    key.extend_from_slice(name.as_bytes());
    key
}

/// The child that a directory entry names; `None`: a whiteout.
pub(super) fn decode_child(value: &[u8]) -> Option<u64> {
    value.try_into().ok().map(u64::from_be_bytes).filter(|ino| *ino != 0)
}

/// Fills `bytes` from `offset` as far as the file goes.
pub(super) fn read_up_to(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Numbers that survive the process: given out from memory, reserved in steps.
struct Numbers {
    key: &'static [u8],
    next: AtomicU64,
    reserved: AtomicU64,
}

impl Numbers {
    fn load(db: &Database, key: &'static [u8]) -> Result<Self, StagingError> {
        let start = get_number(db, key)?.unwrap_or(1);
        Ok(Self { key, next: AtomicU64::new(start), reserved: AtomicU64::new(start) })
    }

    /// The next number; a reservation, when one is due, goes into `batch`.
    fn take(&self, batch: &mut Batch) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        if number >= self.reserved.load(Ordering::Relaxed) {
            let reserved = number + RESERVE_STEP;
            self.reserved.store(reserved, Ordering::Relaxed);
            batch.put(Family::Meta, self.key, reserved.to_be_bytes());
        }
        number
    }
}

fn get_number(db: &Database, key: &[u8]) -> Result<Option<u64>, StagingError> {
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
    /// What reads the store's content: the base's, and what earlier commits of this tree stored.
    pub reader: Arc<ContentReader>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
}

/// See the module.
pub struct Tree {
    config: TreeConfig,
    db: Arc<Database>,
    base: RwLock<Arc<Base>>,
    changing: tokio::sync::Mutex<()>,
    /// Inodes that are open, how often, and their data file.
    open: Mutex<HashMap<u64, Open>>,
    inos: Numbers,
    data_ids: Numbers,
    changes: AtomicU64,
    dirty: AtomicBool,
    frozen: AtomicBool,
    sealed: Mutex<Weak<Preserved>>,
    /// Data files written since the last sync: their bytes go to disk before the names that lead to them.
    unsynced: Mutex<std::collections::HashSet<u64>>,
    since_check: AtomicU64,
    _lock: File,
}

struct Open {
    count: u32,
    data: Option<(u64, Arc<File>)>,
}

impl Tree {
    /// The bundle that a tree with changes is based on, read without opening it; `None` if it is clean or new.
    pub fn dirty_base(dir: &Path) -> Result<Option<Option<String>>, StagingError> {
        if !dir.join("db").exists() {
            return Ok(None);
        }
        let _lock = lock(dir)?;
        let db = Database::open(&dir.join("db"))?;
        if db.get(Family::Meta, b"dirty")?.is_none() {
            return Ok(None);
        }
        let base = db.get(Family::Meta, b"base")?.unwrap_or_default();
        Ok(Some(String::from_utf8(base).ok().filter(|id| !id.is_empty())))
    }

    /// Opens the tree in its state directory. A clean tree starts anew from `base`; one with changes must be opened with the
    /// base that [`Tree::dirty_base`] names.
    pub fn open(config: TreeConfig, base: Option<Arc<Snapshot>>) -> Result<Arc<Self>, StagingError> {
        fs::create_dir_all(&config.dir)?;
        let lock = lock(&config.dir)?;
        check_version(&config.dir)?;
        let database = config.dir.join("db");
        let name = base.as_ref().map(|base| base.descriptor().bundle.to_string()).unwrap_or_default();
        let mut db = Database::open(&database)?;
        let dirty = db.get(Family::Meta, b"dirty")?.is_some();
        let generation = if dirty {
            get_number(&db, b"generation")?.unwrap_or(1)
        } else {
            // Nothing here is worth keeping but the counters: the tree starts anew from its base.
            let counters = [&b"generation"[..], b"next_ino", b"next_data"].map(|key| (key, get_number(&db, key)));
            drop(db);
            fs::remove_dir_all(&database)?;
            let data = config.dir.join("data");
            if data.exists() {
                fs::remove_dir_all(data)?;
            }
            db = Database::open(&database)?;
            let mut batch = Batch::default();
            let mut generation = 1;
            for (key, value) in counters {
                let value = value?.unwrap_or(0) + 1;
                if key == b"generation" {
                    generation = value % (1 << 14);
                }
                batch.put(Family::Meta, key, value.to_be_bytes());
            }
            batch.put(Family::Meta, &b"base"[..], name.clone());
            db.write_durably(batch)?;
            generation.max(1)
        };
        for hh in 0..256 {
            fs::create_dir_all(config.dir.join("data").join(format!("{hh:02x}")))?;
        }
        let now = config.clock.now();
        let root = Attributes { permissions: 0o755, uid: config.owner.0, gid: config.owner.1, mtime: now };
        Ok(Arc::new(Self {
            inos: Numbers::load(&db, b"next_ino")?,
            data_ids: Numbers::load(&db, b"next_data")?,
            base: RwLock::new(Arc::new(Base { snapshot: base, generation, root })),
            db,
            changing: tokio::sync::Mutex::new(()),
            open: Mutex::default(),
            changes: AtomicU64::new(0),
            dirty: AtomicBool::new(dirty),
            frozen: AtomicBool::new(false),
            sealed: Mutex::new(Weak::new()),
            unsynced: Mutex::default(),
            since_check: AtomicU64::new(SPACE_CHECK_BYTES),
            config,
            _lock: lock,
        }))
    }

    /// The base.
    pub fn base(&self) -> Arc<Base> {
        self.base.read().expect("nothing panics while it holds the base").clone()
    }

    /// The database, for the commit's journal.
    pub fn db(&self) -> &Arc<Database> {
        &self.db
    }

    /// The state directory.
    pub fn dir(&self) -> &Path {
        &self.config.dir
    }

    /// The repo's chunk size.
    pub fn chunk(&self) -> ChunkSize {
        self.config.chunk
    }

    /// Whether anything was changed since the last commit.
    pub fn is_dirty(&self) -> bool {
        self.dirty.load(Ordering::Acquire)
    }

    /// Counts the changes made since this process opened the tree.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Refuses changes, or takes them again.
    pub fn freeze(&self, frozen: bool) {
        self.frozen.store(frozen, Ordering::Release);
    }

    // ---- looking -------------------------------------------------------------------------------------------------

    /// The inode with this number.
    pub async fn inode(&self, ino: u64) -> Result<Inode, StagingError> {
        match self.db.get(Family::Inodes, &ino.to_be_bytes())? {
            Some(record) => Ok(Inode::decode(&record)?),
            None => self.base().inode(ino).await,
        }
    }

    /// What stat(2) shows.
    pub async fn getattr(&self, ino: u64) -> Result<NodeAttr, StagingError> {
        Ok(attr(ino, &self.inode(ino).await?))
    }

    /// The entry `name` of the directory `parent`.
    pub async fn lookup(&self, parent: u64, name: &FileName) -> Result<NodeAttr, StagingError> {
        let child = self.child(parent, name).await?.ok_or(StagingError::NotFound)?;
        self.getattr(child).await
    }

    async fn child(&self, parent: u64, name: &FileName) -> Result<Option<u64>, StagingError> {
        if let Some(value) = self.db.get(Family::Names, &child_key(parent, name))? {
            return Ok(decode_child(&value));
        }
        let inode = self.directory(parent).await?;
        let base = self.base();
        let (Some(snapshot), Some(row)) = (&base.snapshot, inode.base) else { return Ok(None) };
        let found = snapshot.lookup(&base.directory_path(row).await?, name).await?;
        Ok(found.map(|(row, _)| base.ino(row)))
    }

    async fn directory(&self, ino: u64) -> Result<Inode, StagingError> {
        let inode = self.inode(ino).await?;
        if inode.kind() == FileKind::Directory { Ok(inode) } else { Err(StagingError::NotDirectory) }
    }

    /// Up to `max` entries of a directory in bytewise order, after `after`; none only at its end.
    pub async fn list(
        &self,
        ino: u64,
        after: Option<&FileName>,
        max: usize,
    ) -> Result<Vec<(FileName, NodeAttr)>, StagingError> {
        let mut after = after.cloned();
        loop {
            // A step full of whiteouts has nothing to show, but the directory may go on behind it.
            let (entries, next) = self.list_step(ino, after.as_ref(), max.max(LIST_STEP_MIN)).await?;
            if !entries.is_empty() || next.is_none() {
                return Ok(entries.into_iter().take(max).collect());
            }
            after = next;
        }
    }

    /// One step of a list, and where the next one begins if the directory may go on.
    async fn list_step(
        &self,
        ino: u64,
        after: Option<&FileName>,
        max: usize,
    ) -> Result<(Vec<(FileName, NodeAttr)>, Option<FileName>), StagingError> {
        let inode = self.directory(ino).await?;
        let base = self.base();
        let mut merged: BTreeMap<FileName, Option<u64>> = BTreeMap::new();
        // Names beyond the shorter of two full lists may miss entries of the other: they wait for the next call.
        let mut horizon: Option<FileName> = None;
        if let (Some(snapshot), Some(row)) = (&base.snapshot, inode.base) {
            let listed = snapshot.list(&base.directory_path(row).await?, after, max).await?;
            if listed.len() == max {
                horizon = listed.last().map(|(name, ..)| name.clone());
            }
            merged.extend(listed.into_iter().map(|(name, row, _)| (name, Some(base.ino(row)))));
        }
        let prefix = ino.to_be_bytes();
        let mut from = prefix.to_vec();
        if let Some(after) = after {
            from.extend_from_slice(after.as_bytes());
            from.push(0);
        }
        let pairs = self.db.prefix(Family::Names, &prefix, &from, max)?;
        if pairs.len() == max {
            let last = FileName::new(pairs[max - 1].0[8..].to_vec()).ok();
            horizon = horizon.into_iter().chain(last).min();
        }
        for (key, value) in pairs {
            let name = FileName::new(key[8..].to_vec()).map_err(|_| StagingError::damaged("name"))?;
            merged.insert(name, decode_child(&value));
        }
        let mut entries = Vec::new();
        let mut last_seen = None;
        for (name, child) in merged {
            if horizon.as_ref().is_some_and(|horizon| name > *horizon) || entries.len() == max {
                break;
            }
            if let Some(child) = child {
                entries.push((name.clone(), self.getattr(child).await?));
            }
            last_seen = Some(name);
        }
        Ok((entries, horizon.and(last_seen)))
    }

    /// The target of a symlink.
    pub async fn readlink(&self, ino: u64) -> Result<Bytes, StagingError> {
        match self.inode(ino).await?.body {
            InodeBody::Other(Body::Symlink(target)) => Ok(target),
            _ => Err(StagingError::Invalid("not a symlink")),
        }
    }

    // ---- making and removing names ---------------------------------------------------------------------------------

    /// Makes an entry. `permissions` are the mode asked for, before the umask.
    pub async fn create(
        &self,
        parent: u64,
        name: &FileName,
        permissions: u16,
        body: InodeBody,
        caller: Caller,
    ) -> Result<NodeAttr, StagingError> {
        refuse_reserved(parent, name)?;
        let _changing = self.change().await?;
        let mut directory = self.directory(parent).await?;
        if directory.nlink == 0 {
            return Err(StagingError::NotFound);
        }
        if self.child(parent, name).await?.is_some() {
            return Err(StagingError::Exists);
        }
        let now = self.now();
        let inherits = directory.attributes.permissions & 0o2000 != 0;
        let is_directory = matches!(body, InodeBody::Directory);
        let is_symlink = matches!(body, InodeBody::Other(Body::Symlink(_)));
        let mut mode = if is_symlink { 0o777 } else { permissions & !(caller.umask as u16) };
        if inherits && is_directory {
            mode |= 0o2000;
        }
        let gid = if inherits { directory.attributes.gid } else { caller.gid };
        let inode = Inode::new(Attributes { permissions: mode, uid: caller.uid, gid, mtime: now }, body);
        let mut batch = Batch::default();
        let ino = new_ino(self.inos.take(&mut batch));
        batch.put(Family::Names, child_key(parent, name), ino.to_be_bytes());
        put_inode(&mut batch, ino, &inode);
        touch(&mut directory, now);
        put_inode(&mut batch, parent, &directory);
        self.apply(batch)?;
        Ok(attr(ino, &inode))
    }

    /// Gives an inode a further name.
    pub async fn link(&self, ino: u64, parent: u64, name: &FileName) -> Result<NodeAttr, StagingError> {
        refuse_reserved(parent, name)?;
        let _changing = self.change().await?;
        let mut inode = self.inode(ino).await?;
        if inode.kind() == FileKind::Directory {
            return Err(StagingError::IsDirectory);
        }
        if inode.nlink == 0 {
            return Err(StagingError::NotFound);
        }
        let mut directory = self.directory(parent).await?;
        if self.child(parent, name).await?.is_some() {
            return Err(StagingError::Exists);
        }
        let now = self.now();
        inode.nlink = inode.nlink.checked_add(1).ok_or(StagingError::TooLarge)?;
        inode.ctime = now;
        let random = self.config.entropy.random();
        inode.link.get_or_insert_with(|| LinkId::from_parts(now.millis(), random));
        let mut batch = Batch::default();
        batch.put(Family::Names, child_key(parent, name), ino.to_be_bytes());
        put_inode(&mut batch, ino, &inode);
        touch(&mut directory, now);
        put_inode(&mut batch, parent, &directory);
        self.apply(batch)?;
        Ok(attr(ino, &inode))
    }

    /// Removes a name that is no directory's.
    pub async fn unlink(&self, parent: u64, name: &FileName) -> Result<(), StagingError> {
        let _changing = self.change().await?;
        let child = self.child(parent, name).await?.ok_or(StagingError::NotFound)?;
        let inode = self.inode(child).await?;
        if inode.kind() == FileKind::Directory {
            return Err(StagingError::IsDirectory);
        }
        let now = self.now();
        let mut batch = Batch::default();
        let gone = self.drop_name(&mut batch, child, inode, now);
        self.whiteout(&mut batch, parent, name, now).await?;
        self.apply(batch)?;
        self.forget_data(gone);
        Ok(())
    }

    /// Removes an empty directory.
    pub async fn rmdir(&self, parent: u64, name: &FileName) -> Result<(), StagingError> {
        let _changing = self.change().await?;
        let child = self.child(parent, name).await?.ok_or(StagingError::NotFound)?;
        let inode = self.directory(child).await?;
        if !self.list(child, None, 1).await?.is_empty() {
            return Err(StagingError::NotEmpty);
        }
        let now = self.now();
        let mut batch = Batch::default();
        self.drop_name(&mut batch, child, inode, now);
        self.whiteout(&mut batch, parent, name, now).await?;
        Ok(self.apply(batch)?)
    }

    /// Moves a name, over an existing one unless `no_replace`.
    pub async fn rename(
        &self,
        parent: u64,
        name: &FileName,
        to_parent: u64,
        to_name: &FileName,
        no_replace: bool,
    ) -> Result<(), StagingError> {
        refuse_reserved(to_parent, to_name)?;
        let _changing = self.change().await?;
        let moved = self.child(parent, name).await?.ok_or(StagingError::NotFound)?;
        let mut inode = self.inode(moved).await?;
        let is_directory = inode.kind() == FileKind::Directory;
        let now = self.now();
        let mut batch = Batch::default();
        let mut gone = None;
        if let Some(replaced) = self.child(to_parent, to_name).await? {
            if no_replace {
                return Err(StagingError::Exists);
            }
            if replaced == moved {
                return Ok(());
            }
            let old = self.inode(replaced).await?;
            match (is_directory, old.kind() == FileKind::Directory) {
                (true, false) => return Err(StagingError::NotDirectory),
                (false, true) => return Err(StagingError::IsDirectory),
                (true, true) if !self.list(replaced, None, 1).await?.is_empty() => return Err(StagingError::NotEmpty),
                _ => gone = self.drop_name(&mut batch, replaced, old, now),
            }
        }
        inode.ctime = now;
        put_inode(&mut batch, moved, &inode);
        self.whiteout(&mut batch, parent, name, now).await?;
        if to_parent != parent {
            let mut directory = self.directory(to_parent).await?;
            touch(&mut directory, now);
            put_inode(&mut batch, to_parent, &directory);
        }
        batch.put(Family::Names, child_key(to_parent, to_name), moved.to_be_bytes());
        self.apply(batch)?;
        self.forget_data(gone);
        Ok(())
    }

    /// Exchanges two names.
    pub async fn exchange(&self, a: (u64, &FileName), b: (u64, &FileName)) -> Result<(), StagingError> {
        refuse_reserved(a.0, a.1)?;
        refuse_reserved(b.0, b.1)?;
        let _changing = self.change().await?;
        let first = self.child(a.0, a.1).await?.ok_or(StagingError::NotFound)?;
        let second = self.child(b.0, b.1).await?.ok_or(StagingError::NotFound)?;
        let now = self.now();
        let mut batch = Batch::default();
        for ino in [a.0, b.0] {
            let mut directory = self.directory(ino).await?;
            touch(&mut directory, now);
            put_inode(&mut batch, ino, &directory);
        }
        batch.put(Family::Names, child_key(a.0, a.1), second.to_be_bytes());
        batch.put(Family::Names, child_key(b.0, b.1), first.to_be_bytes());
        Ok(self.apply(batch)?)
    }

    /// Takes one name from an inode; answers the data file that has no use any more.
    fn drop_name(&self, batch: &mut Batch, ino: u64, mut inode: Inode, now: Timestamp) -> Option<u64> {
        inode.nlink = if inode.kind() == FileKind::Directory { 0 } else { inode.nlink.saturating_sub(1) };
        inode.ctime = now;
        let open = self.open.lock().expect("nothing panics while it holds the open files").contains_key(&ino);
        let in_base = self.base().snapshot.is_some() && base_row(self.base().generation, ino).is_some();
        if inode.nlink > 0 || open || in_base {
            // A record with no name hides nothing: it says that the base's link row has no name left.
            put_inode(batch, ino, &inode);
            return None;
        }
        batch.delete(Family::Inodes, ino.to_be_bytes());
        match inode.body {
            InodeBody::File(file) => file.local,
            _ => None,
        }
    }

    /// Removes a name: by a whiteout where the base shows through, else altogether.
    async fn whiteout(
        &self,
        batch: &mut Batch,
        parent: u64,
        name: &FileName,
        now: Timestamp,
    ) -> Result<(), StagingError> {
        let mut directory = self.directory(parent).await?;
        if directory.base.is_some() && self.base().snapshot.is_some() {
            batch.put(Family::Names, child_key(parent, name), 0u64.to_be_bytes());
        } else {
            batch.delete(Family::Names, child_key(parent, name));
        }
        touch(&mut directory, now);
        put_inode(batch, parent, &directory);
        Ok(())
    }

    // ---- attributes --------------------------------------------------------------------------------------------------

    /// Changes attributes, the length among them.
    pub async fn setattr(&self, ino: u64, set: SetAttr) -> Result<NodeAttr, StagingError> {
        let _changing = self.change().await?;
        let mut inode = self.inode(ino).await?;
        let now = self.now();
        let mut batch = Batch::default();
        let mut unused = None;
        if let Some(size) = set.size {
            unused = self.resize(&mut inode, size)?;
            inode.attributes.mtime = now;
        }
        let attributes = &mut inode.attributes;
        if let Some(permissions) = set.permissions {
            attributes.permissions = permissions & 0o7777;
        }
        attributes.uid = set.uid.unwrap_or(attributes.uid);
        attributes.gid = set.gid.unwrap_or(attributes.gid);
        attributes.mtime = set.mtime.unwrap_or(attributes.mtime);
        inode.ctime = now;
        if set.kill_privileges {
            kill_privileges(&mut inode);
        }
        put_inode(&mut batch, ino, &inode);
        self.apply(batch)?;
        self.forget_data(unused);
        Ok(attr(ino, &inode))
    }

    /// Changes a file's length; answers a data file that has no use any more.
    fn resize(&self, inode: &mut Inode, size: u64) -> Result<Option<u64>, StagingError> {
        let InodeBody::File(file) = &mut inode.body else {
            let is_directory = inode.kind() == FileKind::Directory;
            return Err(if is_directory {
                StagingError::IsDirectory
            } else {
                StagingError::Invalid("not a regular file")
            });
        };
        if size > FILE_BYTES_MAX {
            return Err(StagingError::TooLarge);
        }
        inode.version += 1;
        if size == 0 {
            // A new data file from here on: what was sealed or is being uploaded keeps the old one.
            let unused = file.local.take();
            *file = FileData::empty();
            return Ok(unused);
        }
        if let Some(id) = file.local
            && size < file.size
        {
            self.preserve(id, size, file.size)?;
            self.data_file(id)?.set_len(size)?;
        }
        file.size = size;
        file.base_limit = file.base_limit.min(size);
        Ok(None)
    }

    /// The value of an xattr.
    pub async fn getxattr(&self, ino: u64, name: &[u8]) -> Result<Vec<u8>, StagingError> {
        self.inode(ino).await?.xattrs.get(name).cloned().ok_or(StagingError::NoXattr)
    }

    /// The names of all xattrs.
    pub async fn listxattr(&self, ino: u64) -> Result<Vec<Vec<u8>>, StagingError> {
        Ok(self.inode(ino).await?.xattrs.keys().cloned().collect())
    }

    /// Sets an xattr; `create` and `replace` as in setxattr(2).
    pub async fn setxattr(
        &self,
        ino: u64,
        name: &[u8],
        value: &[u8],
        create: bool,
        replace: bool,
    ) -> Result<(), StagingError> {
        let _changing = self.change().await?;
        let mut inode = self.inode(ino).await?;
        match inode.xattrs.contains_key(name) {
            true if create => return Err(StagingError::Exists),
            false if replace => return Err(StagingError::NoXattr),
            _ => {}
        }
        inode.change_xattr(name, Some(value));
        let total: usize = inode.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        if total > XATTR_BYTES_MAX {
            return Err(StagingError::NoSpace);
        }
        self.changed_inode(ino, inode)
    }

    /// Removes an xattr.
    pub async fn removexattr(&self, ino: u64, name: &[u8]) -> Result<(), StagingError> {
        let _changing = self.change().await?;
        let mut inode = self.inode(ino).await?;
        if !inode.xattrs.contains_key(name) {
            return Err(StagingError::NoXattr);
        }
        inode.change_xattr(name, None);
        self.changed_inode(ino, inode)
    }

    fn changed_inode(&self, ino: u64, mut inode: Inode) -> Result<(), StagingError> {
        inode.ctime = self.now();
        let mut batch = Batch::default();
        put_inode(&mut batch, ino, &inode);
        Ok(self.apply(batch)?)
    }

    // ---- bytes ---------------------------------------------------------------------------------------------------------

    /// Counts an open of the inode, which lives until [`Tree::release`] even without a name.
    pub async fn open_file(&self, ino: u64) -> Result<(), StagingError> {
        self.inode(ino).await?;
        let mut open = self.open.lock().expect("nothing panics while it holds the open files");
        open.entry(ino).or_insert(Open { count: 0, data: None }).count += 1;
        Ok(())
    }

    /// Ends an open.
    pub async fn release(&self, ino: u64) -> Result<(), StagingError> {
        {
            let mut open = self.open.lock().expect("nothing panics while it holds the open files");
            let Some(entry) = open.get_mut(&ino) else { return Ok(()) };
            entry.count -= 1;
            if entry.count > 0 {
                return Ok(());
            }
            open.remove(&ino);
        }
        // The last open of an inode without a name: nothing can reach it any more.
        let Some(record) = self.db.get(Family::Inodes, &ino.to_be_bytes())? else { return Ok(()) };
        let inode = Inode::decode(&record)?;
        if inode.nlink == 0 && base_row(self.base().generation, ino).is_none() {
            let mut batch = Batch::default();
            batch.delete(Family::Inodes, ino.to_be_bytes());
            self.db.write(batch)?;
            if let InodeBody::File(file) = inode.body {
                self.forget_data(file.local);
            }
        }
        Ok(())
    }

    /// The bytes `range` of a file, cut at its end.
    pub async fn read(&self, ino: u64, range: Range<u64>) -> Result<Bytes, StagingError> {
        let inode = self.inode(ino).await?;
        let InodeBody::File(file) = &inode.body else { return Err(StagingError::IsDirectory) };
        let range = range.start.min(file.size)..range.end.min(file.size);
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        if file.base.is_none() {
            let Some(id) = file.local else { return Ok(zeros((range.end - range.start) as usize)) };
            let data = self.open_data(ino, id)?;
            let mut bytes = vec![0; (range.end - range.start) as usize];
            read_up_to(&data, &mut bytes, range.start)?;
            return Ok(Bytes::from(bytes));
        }
        let size = self.config.chunk.bytes();
        let first = range.start / size;
        if range.end <= (first + 1) * size {
            return self.read_part(ino, file, range).await;
        }
        let mut whole = Vec::with_capacity((range.end - range.start) as usize);
        for index in first..range.end.div_ceil(size) {
            let part = range.start.max(index * size)..range.end.min((index + 1) * size);
            whole.extend_from_slice(&self.read_part(ino, file, part).await?);
        }
        Ok(Bytes::from(whole))
    }

    /// Bytes inside one chunk of a file that has a base.
    async fn read_part(&self, ino: u64, file: &FileData, part: Range<u64>) -> Result<Bytes, StagingError> {
        let len = (part.end - part.start) as usize;
        let index = part.start / self.config.chunk.bytes();
        match (file.local, &file.base) {
            (Some(id), _) if file.is_local(index) => {
                let data = self.open_data(ino, id)?;
                let mut bytes = vec![0; len];
                read_up_to(&data, &mut bytes, part.start)?;
                Ok(Bytes::from(bytes))
            }
            (_, Some(base)) => self.read_base(file, base, part).await,
            _ => Ok(zeros(len)),
        }
    }

    /// Bytes of the base, zeros where the file was cut off once.
    async fn read_base(&self, file: &FileData, base: &FileBody, part: Range<u64>) -> Result<Bytes, StagingError> {
        let len = (part.end - part.start) as usize;
        let shown = part.start.min(file.base_limit)..part.end.min(file.base_limit);
        Ok(padded(self.config.reader.read(base, self.config.chunk, shown).await?, len))
    }

    /// Writes bytes; with `append` at the file's end. Answers the new length.
    pub async fn write(
        &self,
        ino: u64,
        offset: u64,
        data: &[u8],
        append: bool,
        kill: bool,
    ) -> Result<u64, StagingError> {
        self.check_space(data.len() as u64)?;
        loop {
            let inode = self.inode(ino).await?;
            let at = if append { inode.size() } else { offset };
            let end = at.checked_add(data.len() as u64).filter(|end| *end <= FILE_BYTES_MAX);
            let end = end.ok_or(StagingError::TooLarge)?;
            // What lies in the store is fetched before the lock is taken: nobody waits for the network behind us.
            let copied = self.copy_up(&inode, at..end).await?;
            let _changing = self.change().await?;
            let mut inode = self.inode(ino).await?;
            let InodeBody::File(file) = &mut inode.body else { return Err(StagingError::IsDirectory) };
            let needed = self.missing(file, &(at..end));
            if (append && file.size != at) || needed.iter().any(|index| !copied.contains_key(index)) {
                continue;
            }
            let mut batch = Batch::default();
            let id = match file.local {
                Some(id) => id,
                None => {
                    let id = self.data_ids.take(&mut batch);
                    File::options().write(true).create(true).truncate(true).open(data_path(&self.config.dir, id))?;
                    *file.local.insert(id)
                }
            };
            let size = self.config.chunk.bytes();
            self.preserve(id, at, end)?;
            let out = self.open_data(ino, id)?;
            for index in &needed {
                out.write_all_at(&copied[index], index * size)?;
            }
            out.write_all_at(data, at)?;
            if file.base.is_some() && end > at {
                file.add_local(at / size..end.div_ceil(size));
            }
            file.size = file.size.max(end);
            inode.version += 1;
            let now = self.now();
            inode.attributes.mtime = now;
            inode.ctime = now;
            if kill {
                kill_privileges(&mut inode);
            }
            // Before the record: a sync that takes the record along has to find the bytes on its list.
            self.unsynced.lock().expect("nothing panics while it holds the list").insert(id);
            put_inode(&mut batch, ino, &inode);
            self.apply(batch)?;
            return Ok(end.max(inode.size()));
        }
    }

    /// The same, if it can be done without waiting for the lock or for bytes of the base; `None`: nothing was done.
    pub fn try_write(
        &self,
        ino: u64,
        offset: u64,
        data: &[u8],
        append: bool,
        kill: bool,
    ) -> Option<Result<u64, StagingError>> {
        let changing = self.changing.try_lock().ok()?;
        if self.frozen.load(Ordering::Acquire) {
            return Some(Err(StagingError::Frozen));
        }
        let outcome = self.write_local(ino, offset, data, append, kill);
        drop(changing);
        outcome.transpose()
    }

    fn write_local(
        &self,
        ino: u64,
        offset: u64,
        data: &[u8],
        append: bool,
        kill: bool,
    ) -> Result<Option<u64>, StagingError> {
        let Some(record) = self.db.get(Family::Inodes, &ino.to_be_bytes())? else { return Ok(None) };
        let mut inode = Inode::decode(&record)?;
        let at = if append { inode.size() } else { offset };
        let InodeBody::File(file) = &mut inode.body else { return Err(StagingError::IsDirectory) };
        if file.base.is_some() {
            return Ok(None);
        }
        self.check_space(data.len() as u64)?;
        let end = at.checked_add(data.len() as u64).filter(|end| *end <= FILE_BYTES_MAX);
        let end = end.ok_or(StagingError::TooLarge)?;
        let mut batch = Batch::default();
        let id = match file.local {
            Some(id) => id,
            None => {
                let id = self.data_ids.take(&mut batch);
                File::options().write(true).create(true).truncate(true).open(data_path(&self.config.dir, id))?;
                *file.local.insert(id)
            }
        };
        self.preserve(id, at, end)?;
        self.open_data(ino, id)?.write_all_at(data, at)?;
        file.size = file.size.max(end);
        inode.version += 1;
        let now = self.now();
        inode.attributes.mtime = now;
        inode.ctime = now;
        if kill {
            kill_privileges(&mut inode);
        }
        self.unsynced.lock().expect("nothing panics while it holds the list").insert(id);
        put_inode(&mut batch, ino, &inode);
        self.apply(batch)?;
        Ok(Some(inode.size()))
    }

    /// The chunks that a write touches without replacing them, and that are not local.
    fn missing(&self, file: &FileData, range: &Range<u64>) -> Vec<u64> {
        let size = self.config.chunk.bytes();
        if file.base.is_none() || range.is_empty() {
            return Vec::new();
        }
        let partial = |index: &u64| {
            let (start, end) = (index * size, ((index + 1) * size).min(file.size));
            range.start > start || range.end < end
        };
        let touched = range.start / size..range.end.div_ceil(size);
        touched.filter(|index| !file.is_local(*index) && index * size < file.size).filter(partial).collect()
    }

    /// The bytes of those chunks, from the base.
    async fn copy_up(&self, inode: &Inode, range: Range<u64>) -> Result<HashMap<u64, Bytes>, StagingError> {
        let mut copied = HashMap::new();
        let InodeBody::File(file) = &inode.body else { return Err(StagingError::IsDirectory) };
        let Some(base) = &file.base else { return Ok(copied) };
        let size = self.config.chunk.bytes();
        for index in self.missing(file, &range) {
            let part = index * size..((index + 1) * size).min(file.size);
            copied.insert(index, self.read_base(file, base, part).await?);
        }
        Ok(copied)
    }

    /// Makes `range` read as zeros, without changing the length (fallocate(2), PUNCH_HOLE).
    pub async fn punch(&self, ino: u64, range: Range<u64>) -> Result<(), StagingError> {
        let size = self.inode(ino).await?.size();
        let mut at = range.start;
        let end = range.end.min(size);
        while at < end {
            // Zeros are written chunk by chunk, then freed: copy-up and the seal see an ordinary write.
            let part = (self.config.chunk.bytes() - at % self.config.chunk.bytes()).min(end - at);
            self.write(ino, at, &zeros(part as usize), false, false).await?;
            if let InodeBody::File(FileData { local: Some(id), .. }) = self.inode(ino).await?.body {
                // A file system that cannot free them keeps the zeros.
                let _ = sys::punch_hole(&*self.open_data(ino, id)?, at, part);
            }
            at += part;
        }
        Ok(())
    }

    /// Makes the file and the names that lead to it safe from a power cut. Blocks: call it off the FUSE thread.
    pub fn sync(&self) -> Result<(), StagingError> {
        let unsynced = std::mem::take(&mut *self.unsynced.lock().expect("nothing panics while it holds the list"));
        let synced = unsynced.iter().try_for_each(|id| match File::open(data_path(&self.config.dir, *id)) {
            Ok(file) => file.sync_data(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        });
        if let Err(error) = synced {
            // What may not be on the disk is still owed to the next sync.
            self.unsynced.lock().expect("nothing panics while it holds the list").extend(unsynced);
            return Err(error.into());
        }
        Ok(self.db.sync()?)
    }

    fn open_data(&self, ino: u64, id: u64) -> Result<Arc<File>, StagingError> {
        let mut open = self.open.lock().expect("nothing panics while it holds the open files");
        if let Some(Open { data: Some((found, file)), .. }) = open.get(&ino)
            && *found == id
        {
            return Ok(file.clone());
        }
        let file = Arc::new(self.data_file(id)?);
        if let Some(entry) = open.get_mut(&ino) {
            entry.data = Some((id, file.clone()));
        }
        Ok(file)
    }

    fn data_file(&self, id: u64) -> Result<File, StagingError> {
        Ok(File::options().read(true).write(true).open(data_path(&self.config.dir, id))?)
    }

    /// Refuses file data when the disk is nearly full.
    fn check_space(&self, bytes: u64) -> Result<(), StagingError> {
        if self.since_check.fetch_add(bytes, Ordering::Relaxed) < SPACE_CHECK_BYTES {
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

    // ---- changes and seals -------------------------------------------------------------------------------------------

    async fn change(&self) -> Result<tokio::sync::MutexGuard<'_, ()>, StagingError> {
        let guard = self.changing.lock().await;
        if self.frozen.load(Ordering::Acquire) { Err(StagingError::Frozen) } else { Ok(guard) }
    }

    fn now(&self) -> Timestamp {
        self.config.clock.now()
    }

    fn apply(&self, mut batch: Batch) -> Result<(), DatabaseError> {
        if !self.dirty.load(Ordering::Acquire) {
            batch.put(Family::Meta, &b"dirty"[..], [1]);
        }
        self.db.write(batch)?;
        self.dirty.store(true, Ordering::Release);
        self.changes.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    fn preserve(&self, id: u64, start: u64, end: u64) -> Result<(), StagingError> {
        let sealed = self.sealed.lock().expect("nothing panics while it holds the seal").upgrade();
        match sealed {
            Some(sealed) => Ok(sealed.before_change(id, start, end)?),
            None => Ok(()),
        }
    }

    fn forget_data(&self, id: Option<u64>) {
        let Some(id) = id else { return };
        self.unsynced.lock().expect("nothing panics while it holds the list").remove(&id);
        match self.sealed.lock().expect("nothing panics while it holds the seal").upgrade() {
            Some(sealed) => sealed.unused(id),
            // What cannot be removed is a file without a name: it goes with the tree.
            None => drop(fs::remove_file(data_path(&self.config.dir, id))),
        }
    }

    /// Stops an instant of the tree. One at a time.
    pub async fn seal(&self) -> Result<Sealed, StagingError> {
        let _changing = self.changing.lock().await;
        let mut current = self.sealed.lock().expect("nothing panics while it holds the seal");
        if current.upgrade().is_some() {
            return Err(StagingError::Busy("a commit of this tree is under way".to_owned()));
        }
        let first_new = self.data_ids.next.load(Ordering::Relaxed);
        let shared = Arc::new(Preserved::new(&self.config.dir, self.config.chunk, first_new));
        *current = Arc::downgrade(&shared);
        Ok(Sealed { instant: self.db.instant(), base: self.base(), changes: self.changes(), shared })
    }

    /// Says that `body` in the store is what the file `ino` was at `version`: if it still is, its local bytes go.
    pub async fn mark_stored(&self, ino: u64, version: u64, body: FileBody) -> Result<(), StagingError> {
        let _changing = self.changing.lock().await;
        let Some(record) = self.db.get(Family::Inodes, &ino.to_be_bytes())? else { return Ok(()) };
        let mut inode = Inode::decode(&record)?;
        let InodeBody::File(file) = &mut inode.body else { return Ok(()) };
        if inode.version != version || file.is_stored() {
            return Ok(());
        }
        let unused = file.local;
        *file = FileData::stored(body);
        let mut batch = Batch::default();
        put_inode(&mut batch, ino, &inode);
        self.db.write(batch)?;
        if let Some(entry) = self.open.lock().expect("nothing panics while it holds the open files").get_mut(&ino) {
            entry.data = None;
        }
        self.forget_data(unused);
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
        let is_sealed = self.sealed.lock().expect("nothing panics while it holds the seal").upgrade().is_some();
        if self.is_dirty() || is_open || is_sealed {
            return Ok(false);
        }
        let old = self.base();
        let generation = ((old.generation + 1) % (1 << 14)).max(1);
        let mut batch = Batch::default();
        let mut unused = Vec::new();
        for family in [Family::Inodes, Family::Names, Family::Extents] {
            for (key, value) in self.db.prefix(family, b"", b"", usize::MAX)? {
                if family == Family::Inodes
                    && let InodeBody::File(file) = Inode::decode(&value)?.body
                {
                    unused.push(file.local);
                }
                batch.delete(family, key);
            }
        }
        batch.put(Family::Meta, &b"generation"[..], generation.to_be_bytes());
        batch.put(Family::Meta, &b"base"[..], snapshot.descriptor().bundle.to_string());
        self.db.write_durably(batch)?;
        let base = Base { snapshot: Some(snapshot), generation, root: old.root };
        *self.base.write().expect("nothing panics while it holds the base") = Arc::new(base);
        for data in unused {
            self.forget_data(data);
        }
        Ok(true)
    }

    /// Free and used space of the disk under the state directory.
    pub fn statfs(&self) -> Result<sys::FileSystem, StagingError> {
        Ok(sys::file_system(&self.config.dir)?)
    }
}

fn padded(bytes: Bytes, len: usize) -> Bytes {
    if bytes.len() == len {
        return bytes;
    }
    let mut whole = bytes.to_vec();
    whole.resize(len, 0);
    Bytes::from(whole)
}

fn lock(dir: &Path) -> Result<File, StagingError> {
    let lock = File::options().create(true).truncate(false).write(true).open(dir.join("lock"))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(fs::TryLockError::WouldBlock) => {
            let what = format!("{}: another mount has this staging tree (use mount --bind)", dir.display());
            Err(StagingError::Busy(what))
        }
        Err(fs::TryLockError::Error(error)) => Err(error.into()),
    }
}

fn check_version(dir: &Path) -> Result<(), StagingError> {
    let path = dir.join("version");
    match fs::read_to_string(&path) {
        Ok(found) if found == STATE_VERSION => Ok(()),
        Ok(found) => Err(StagingError::State(format!(
            "{}: written by another datamon ({}): use that one, or another -o state=",
            dir.display(),
            found.trim()
        ))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::write(&path, STATE_VERSION)?;
            File::open(&path)?.sync_all()?;
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

fn refuse_reserved(parent: u64, name: &FileName) -> Result<(), StagingError> {
    if parent == ROOT && name.as_bytes() == RESERVED_NAME { Err(StagingError::Reserved) } else { Ok(()) }
}

fn put_inode(batch: &mut Batch, ino: u64, inode: &Inode) {
    batch.put(Family::Inodes, ino.to_be_bytes(), inode.encode());
}

fn touch(directory: &mut Inode, now: Timestamp) {
    directory.attributes.mtime = now;
    directory.ctime = now;
}

/// What a write or a change of owner by an ordinary user takes away (inode(7)).
fn kill_privileges(inode: &mut Inode) {
    if inode.kind() == FileKind::Regular {
        let permissions = &mut inode.attributes.permissions;
        *permissions &= !0o4000;
        if *permissions & 0o010 != 0 {
            *permissions &= !0o2000;
        }
    }
}

fn attr(ino: u64, inode: &Inode) -> NodeAttr {
    let rdev = match &inode.body {
        InodeBody::Other(Body::CharDevice(rdev) | Body::BlockDevice(rdev)) => *rdev,
        _ => 0,
    };
    let nlink = if inode.kind() == FileKind::Directory && inode.nlink > 0 { 2 } else { inode.nlink };
    NodeAttr {
        ino,
        kind: inode.kind(),
        attributes: inode.attributes,
        ctime: inode.ctime,
        size: inode.size(),
        nlink,
        rdev,
    }
}
