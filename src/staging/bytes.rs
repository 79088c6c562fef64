//! The bytes of staged files: reading and writing; [`ends`] cuts, and knows the holes.
//!
//! ```text
//!  no bytes ──small write──> log ──grows, or is changed bit by bit──> data file
//!  base (in the store) ──write──> copy-up of the touched chunks into a data file; of a small file, whole, into the log
//! ```
//! What lies in the log is never changed: a small file that changes is appended again, as long as the change is a
//! fair part of it, so that a byte written costs at most [`REWRITE_FACTOR`] + 1.
//!
//! # Power cuts
//!
//! The database's log may reach the disk before the bytes that a record leads to. So where a record is about to lead
//! away from bytes that are on the disk (or in the store) to a copy of them, the copy is put on the disk first; and a data
//! file is cut or removed only after the record that says so is there ([`super::retired`]). What a program wrote and did
//! not sync may be lost, nothing else.

mod ends;

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use bytes::Bytes;

use super::attributes::kill_privileges;
use super::error::StagingError;
use super::inode::{FileData, Inode, InodeBody};
use super::tree::{Tree, put_inode};
use crate::content::reader::zeros;
use crate::local::db::{Batch, Family};
use crate::local::staged_files::{Place, Raw, read_fresh, read_up_to};
use crate::local::sys;
use crate::model::chunk::ChunkSize;
use crate::model::entry::FileBody;
use crate::model::limits::{FILE_BYTES_MAX, SMALL_FILE_BYTES_MAX};

/// A small file is appended to the log again when it is at most so many times larger than what is written into it.
const REWRITE_FACTOR: usize = 4;
/// Bytes of one data file after which the disk is asked to begin writing them: an fsync then finds little left to do.
const WRITE_BEHIND_BYTES: u64 = 8 << 20;

/// The open files of a tree.
pub(super) type OpenFiles = HashMap<u64, Open>;

/// An inode that is open.
pub(super) struct Open {
    /// How often.
    count: u32,
    /// Its data file.
    data: Option<(u64, Arc<File>)>,
}

impl Open {
    /// Lets the data file go.
    pub(super) fn forget_data(&mut self) {
        self.data = None;
    }
}

/// What came of a write under the lock.
enum Outcome {
    /// Done: the file's length.
    Done(u64),
    /// Chunks of the base are needed first.
    NeedsBase,
    /// The disk has to be waited for: not on a thread that others wait for.
    NeedsDisk,
}

/// One write, as it was asked for.
struct Write<'a> {
    offset: u64,
    data: &'a [u8],
    append: bool,
    kill: bool,
}

impl Write<'_> {
    /// The bytes of a file of `size` bytes that are written.
    fn range(&self, size: u64) -> Result<Range<u64>, StagingError> {
        let start = if self.append { size } else { self.offset };
        let end = start.checked_add(self.data.len() as u64).filter(|end| *end <= FILE_BYTES_MAX);
        Ok(start..end.ok_or(StagingError::TooLarge)?)
    }
}

impl Tree {
    // ---- open and release ------------------------------------------------------------------------------------------

    fn open_files(&self) -> std::sync::MutexGuard<'_, OpenFiles> {
        self.open.lock().expect("nothing panics while it holds the open files")
    }

    /// Counts an open of the inode, which lives until [`Tree::release`] even without a name.
    pub async fn open_file(&self, ino: u64) -> Result<(), StagingError> {
        // Counted and looked at between two changes: who takes the last name has either seen the count, and leaves the
        // bytes to the last release, or is done, and then it is among what is gone.
        let changing = self.lock_changes().await;
        let is_first = {
            let mut open = self.open_files();
            let entry = open.entry(ino).or_insert(Open { count: 0, data: None });
            entry.count += 1;
            entry.count == 1
        };
        let found = match self.inode(ino).await {
            // Open for nobody and without a name: what it was is kept for as long as the kernel knows it.
            Ok(inode) if inode.nlink == 0 && is_first => self.revive(ino),
            Err(StagingError::Stale) => self.revive(ino),
            other => other.map(|_| true),
        };
        drop(changing);
        let refused = match found {
            Ok(true) => return Ok(()),
            Ok(false) => StagingError::LookAgain,
            Err(error) => error,
        };
        self.release(ino).await?;
        Err(refused)
    }

    /// Ends an open.
    pub async fn release(&self, ino: u64) -> Result<(), StagingError> {
        {
            let mut open = self.open_files();
            let Some(entry) = open.get_mut(&ino) else { return Ok(()) };
            entry.count -= 1;
            if entry.count > 0 {
                return Ok(());
            }
            open.remove(&ino);
        }
        // The last open of an inode without a name.
        if self.record(ino)?.is_none_or(|inode| inode.nlink > 0) {
            return Ok(());
        }
        let _changing = self.lock_changes().await;
        let Some(inode) = self.record(ino)?.filter(|inode| inode.nlink == 0 && !self.is_open(ino)) else {
            return Ok(());
        };
        let mut batch = Batch::default();
        let ended = self.bury(&mut batch, ino, inode);
        self.db().write(batch)?;
        self.keep_gone(Some(ended));
        Ok(())
    }

    pub(super) fn is_open(&self, ino: u64) -> bool {
        self.open_files().contains_key(&ino)
    }

    /// The blocks of 512 bytes that the disk has given to the data file `id` of the inode.
    pub(super) fn allocated_blocks(&self, ino: u64, id: u64) -> Option<u64> {
        let open = self.open_files().get(&ino).and_then(|open| open.data.clone()).filter(|(found, _)| *found == id);
        let metadata = match open {
            Some((_, file)) => file.metadata(),
            None => self.files().metadata(id),
        };
        metadata.ok().map(|metadata| metadata.blocks())
    }

    fn open_data(&self, ino: u64, id: u64) -> Result<Arc<File>, StagingError> {
        let mut open = self.open_files();
        if let Some(Open { data: Some((found, file)), .. }) = open.get(&ino)
            && *found == id
        {
            return Ok(file.clone());
        }
        let file = Arc::new(self.files().open_file(id).map_err(|why| StagingError::of_bytes(ino, why))?);
        if let Some(entry) = open.get_mut(&ino) {
            entry.data = Some((id, file.clone()));
        }
        Ok(file)
    }

    // ---- reading ---------------------------------------------------------------------------------------------------

    /// The bytes `range` of a file, cut at its end.
    pub async fn read(&self, ino: u64, range: Range<u64>) -> Result<Bytes, StagingError> {
        match self.read_bytes(ino, range).await {
            Err(error @ StagingError::Gone { .. }) => Err(self.name_gone(error).await),
            outcome => outcome,
        }
    }

    async fn read_bytes(&self, ino: u64, range: Range<u64>) -> Result<Bytes, StagingError> {
        let inode = self.inode(ino).await?;
        let InodeBody::File(file) = &inode.body else { return Err(StagingError::IsDirectory) };
        let range = range.start.min(file.size)..range.end.min(file.size);
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let size = self.chunk().bytes();
        if file.base.is_none() || range.end <= (range.start / size + 1) * size {
            return self.read_part(ino, file, range).await;
        }
        let mut whole = Vec::with_capacity((range.end - range.start) as usize);
        for index in range.start / size..range.end.div_ceil(size) {
            let part = range.start.max(index * size)..range.end.min((index + 1) * size);
            whole.extend_from_slice(&self.read_part(ino, file, part).await?);
        }
        Ok(Bytes::from(whole))
    }

    /// Bytes of a file without a base, or inside one chunk of one that has it.
    async fn read_part(&self, ino: u64, file: &FileData, part: Range<u64>) -> Result<Bytes, StagingError> {
        match (file.local, &file.base) {
            (Some(place), _) if file.is_local(part.start / self.chunk().bytes()) => {
                Ok(Bytes::from(self.read_local(ino, place, part)?))
            }
            (_, Some(base)) => self.read_base(file, base, part).await,
            _ => Ok(zeros((part.end - part.start) as usize)),
        }
    }

    /// Bytes at a place; missing ones are zeros.
    fn read_local(&self, ino: u64, place: Place, part: Range<u64>) -> Result<Vec<u8>, StagingError> {
        let mut bytes = vec![0; (part.end - part.start) as usize];
        match place {
            Place::File(id) => read_up_to(&*self.open_data(ino, id)?, &mut bytes, part.start)?,
            Place::Log { segment, offset, len } => {
                let read = self.files().read_log(segment, offset, len, &mut bytes, part.start);
                read.map_err(|why| StagingError::of_bytes(ino, why))?
            }
        };
        Ok(bytes)
    }

    /// Bytes of the base, zeros where the file was cut off once.
    async fn read_base(&self, file: &FileData, base: &FileBody, part: Range<u64>) -> Result<Bytes, StagingError> {
        let len = (part.end - part.start) as usize;
        let shown = part.start.min(file.base_limit)..part.end.min(file.base_limit);
        Ok(padded(self.reader().read(base, self.chunk(), shown).await?, len))
    }

    // ---- writing ---------------------------------------------------------------------------------------------------

    /// Writes bytes; with `append` at the file's end. Answers the new length.
    pub async fn write(
        &self,
        ino: u64,
        offset: u64,
        data: &[u8],
        append: bool,
        kill: bool,
    ) -> Result<u64, StagingError> {
        match self.check_space(data.len() as u64) {
            // What was removed a moment ago may still take its room.
            Err(StagingError::NoSpace) if !self.retired().is_empty() => {
                self.reap().await?;
                self.check_space(data.len() as u64)?;
            }
            checked => checked?,
        }
        let write = Write { offset, data, append, kill };
        let mut may_block = false;
        loop {
            let inode = self.inode(ino).await?;
            // What lies in the store is fetched before the lock is taken: nobody waits for the network behind us.
            let copied = self.copy_up(&inode, write.range(inode.size())?).await?;
            let changing = self.change().await?;
            let inode = self.inode(ino).await?;
            match self.write_locked(ino, inode, &write, &copied, may_block)? {
                Outcome::Done(size) => return Ok(size),
                Outcome::NeedsBase => {}
                Outcome::NeedsDisk => {
                    drop(changing);
                    may_block = true;
                    // From here on it is the runtime's thread, not the kernel's.
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    /// Notes that the kernel wrote back bytes that were stored through a mapping, and was refused.
    pub fn refused_mapped(&self, ino: u64, range: Range<u64>) {
        // What has no name any more is in no commit, and nobody could write it again.
        let is_nameless = matches!(self.record(ino), Ok(Some(inode)) if inode.nlink == 0);
        if !is_nameless {
            self.unwritten().refused(ino, range);
        }
    }

    /// Refuses what would lack bytes that everybody sees.
    pub(super) async fn refuse_unwritten(&self) -> Result<(), StagingError> {
        let Some(ino) = self.unwritten().first() else { return Ok(()) };
        Err(StagingError::Unwritten(self.path_of(ino).await?.unwrap_or_else(|| format!("inode {ino}"))))
    }

    /// As [`Tree::write`], if that is possible at once: nobody else changes the tree now, and neither the store nor the
    /// disk has to be waited for.
    pub fn try_write(
        &self,
        ino: u64,
        offset: u64,
        data: &[u8],
        append: bool,
        kill: bool,
    ) -> Option<Result<u64, StagingError>> {
        let attempt = || {
            let Some(_changing) = self.try_change()? else { return Ok(None) };
            let Some(inode) = self.record(ino)? else { return Ok(None) };
            match self.check_space(data.len() as u64) {
                Err(StagingError::NoSpace) if !self.retired().is_empty() => return Ok(None),
                checked => checked?,
            }
            let write = Write { offset, data, append, kill };
            Ok(match self.write_locked(ino, inode, &write, &HashMap::new(), false)? {
                Outcome::Done(size) => Some(size),
                Outcome::NeedsBase | Outcome::NeedsDisk => None,
            })
        };
        attempt().transpose()
    }

    /// Writes under the lock, with the chunks of the base that were `copied`.
    fn write_locked(
        &self,
        ino: u64,
        mut inode: Inode,
        write: &Write<'_>,
        copied: &HashMap<u64, Bytes>,
        may_block: bool,
    ) -> Result<Outcome, StagingError> {
        let InodeBody::File(file) = &mut inode.body else { return Err(StagingError::IsDirectory) };
        let range = write.range(file.size)?;
        if range.is_empty() {
            return Ok(Outcome::Done(file.size));
        }
        let needed = self.missing(file, &range);
        if needed.iter().any(|index| !copied.contains_key(index)) {
            return Ok(Outcome::NeedsBase);
        }
        let copies_safe_bytes = !needed.is_empty() || self.is_safe_in_log(file);
        if copies_safe_bytes && !may_block {
            return Ok(Outcome::NeedsDisk);
        }
        let mut batch = Batch::default();
        let old_size = file.size;
        if range.start > old_size && !self.trim(ino, file, may_block)? {
            return Ok(Outcome::NeedsDisk);
        }
        let old_share = self.share(file);
        let unused = match self.put_bytes(ino, file, &range, write.data, copied, copies_safe_bytes) {
            Ok(unused) => unused,
            Err(error) => {
                self.note_torn(ino, file.local);
                return Err(error);
            }
        };
        let size = self.chunk().bytes();
        if range.start > old_size {
            // The last chunk of a file that grows behind a gap becomes longer.
            self.forget_chunks(&mut batch, ino, file, old_size / size..old_size / size + 1);
        }
        self.forget_chunks(&mut batch, ino, file, range.start / size..range.end.div_ceil(size));
        file.size = old_size.max(range.end);
        let share = self.share(file);
        inode.version += 1;
        let now = self.now();
        inode.attributes.mtime = now;
        inode.ctime = now;
        if write.kill {
            kill_privileges(&mut inode);
        }
        put_inode(&mut batch, ino, &inode);
        self.apply(batch)?;
        self.totals().count(old_share, share);
        self.unwritten().written(ino, &range);
        self.forget_place(unused);
        Ok(Outcome::Done(inode.size()))
    }

    /// Puts bytes where they suit best, and on the disk if copies of safe bytes are among them; answers the place that has no
    /// use any more.
    fn put_bytes(
        &self,
        ino: u64,
        file: &mut FileData,
        range: &Range<u64>,
        data: &[u8],
        copied: &HashMap<u64, Bytes>,
        copies_safe_bytes: bool,
    ) -> Result<Option<Place>, StagingError> {
        let unused = if self.suits_the_log(file, range) {
            self.write_log(ino, file, range, data, copied)?
        } else {
            self.write_file(ino, file, range, data, copied)?
        };
        if let (true, Some(place)) = (copies_safe_bytes, file.local) {
            self.files().sync_place(place)?;
        }
        Ok(unused)
    }

    /// A write to `attempted` failed on the way. If that is where the file lies, some of its bytes may have changed: what
    /// is known of them in the store, and what is being stored of them, holds no longer.
    fn note_torn(&self, ino: u64, attempted: Option<Place>) {
        let note = || -> Result<(), StagingError> {
            let record = self.record(ino)?;
            let Some(Inode { body: InodeBody::File(FileData { local, .. }), .. }) = &record else { return Ok(()) };
            if *local != attempted {
                // Nothing leads there.
                attempted.into_iter().for_each(|place| self.files().forget(place));
                return Ok(());
            }
            let mut inode = record.expect("seen above");
            let mut batch = Batch::default();
            if let InodeBody::File(file) = &mut inode.body {
                self.forget_extents(&mut batch, ino, file);
            }
            inode.version += 1;
            put_inode(&mut batch, ino, &inode);
            Ok(self.apply(batch)?)
        };
        if let Err(error) = note() {
            tracing::error!(ino, %error, "a write failed, and that could not be noted");
        }
    }

    /// Cuts off what a failed write or cut left behind the end of a data file that is about to grow: it must not come back.
    /// `false` if the disk has to be waited for.
    fn trim(&self, ino: u64, file: &FileData, may_block: bool) -> Result<bool, StagingError> {
        let Some(Place::File(id)) = file.local else { return Ok(true) };
        let data = self.open_data(ino, id)?;
        if data.metadata()?.len() <= file.size {
            return Ok(true);
        }
        if may_block {
            self.preserve_existing(id, file.size..u64::MAX)?;
            self.db().sync()?;
            data.set_len(file.size)?;
            self.files().wrote(id);
        }
        Ok(may_block)
    }

    /// Whether the file lies in the log, and is safe there from a power cut.
    fn is_safe_in_log(&self, file: &FileData) -> bool {
        file.local.is_some_and(|place| self.files().is_safe_in_log(place))
    }

    /// Whether the file, after this write, is better kept in the log.
    fn suits_the_log(&self, file: &FileData, range: &Range<u64>) -> bool {
        let written = (range.end - range.start) as usize;
        let is_small = file.size.max(range.end) <= SMALL_FILE_BYTES_MAX as u64;
        is_small
            && match file.local {
                None => true,
                // One that is synced again and again wants to be changed in place.
                Some(Place::Log { len, .. }) => len as usize <= written * REWRITE_FACTOR && !self.is_safe_in_log(file),
                Some(Place::File(_)) => false,
            }
    }

    /// Appends the file as it is after the write to the log; answers the place that has no use any more.
    fn write_log(
        &self,
        ino: u64,
        file: &mut FileData,
        range: &Range<u64>,
        data: &[u8],
        copied: &HashMap<u64, Bytes>,
    ) -> Result<Option<Place>, StagingError> {
        let before = match (file.local, copied.get(&0)) {
            (Some(place @ Place::Log { len, .. }), _) => self.read_local(ino, place, 0..len.into())?,
            (_, Some(base)) => base.to_vec(),
            _ => Vec::new(),
        };
        let (start, end) = (range.start as usize, range.end as usize);
        let kept = before.len().min(start);
        let gap = start - kept;
        let parts = [&before[..kept], &zeros(gap), data, before.get(end..).unwrap_or_default()];
        let place = self.files().append(ino, &parts, || Ok::<_, StagingError>(self.next_data()?))?;
        file.base = None;
        file.base_limit = 0;
        file.chunks.clear();
        Ok(file.local.replace(place))
    }

    /// Writes into the file's data file, which is made if there is none; answers the place that has no use any more.
    fn write_file(
        &self,
        ino: u64,
        file: &mut FileData,
        range: &Range<u64>,
        data: &[u8],
        copied: &HashMap<u64, Bytes>,
    ) -> Result<Option<Place>, StagingError> {
        let size = self.chunk().bytes();
        let mut unused = None;
        let (id, out) = match file.local {
            Some(Place::File(id)) => {
                self.preserve(id, range.start, range.end)?;
                (id, self.open_data(ino, id)?)
            }
            logged => {
                let before = match logged {
                    Some(place @ Place::Log { len, .. }) => self.read_local(ino, place, 0..u64::from(len))?,
                    _ => Vec::new(),
                };
                let id = self.next_data()?;
                let out = Arc::new(self.files().create(id)?);
                out.write_all_at(&before, 0)?;
                if let Some(open) = self.open_files().get_mut(&ino) {
                    open.data = Some((id, out.clone()));
                }
                unused = file.local.replace(Place::File(id));
                (id, out)
            }
        };
        for index in self.missing(file, range) {
            out.write_all_at(&copied[&index], index * size)?;
        }
        out.write_all_at(data, range.start)?;
        if file.base.is_some() {
            file.add_local(range.start / size..range.end.div_ceil(size));
        }
        self.files().wrote(id);
        self.write_behind(&out, range);
        Ok(unused)
    }

    /// Lets the disk begin with what a sequential writer has left behind.
    fn write_behind(&self, out: &Arc<File>, range: &Range<u64>) {
        let (before, now) = (range.start / WRITE_BEHIND_BYTES, range.end / WRITE_BEHIND_BYTES);
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if now > before {
            let out = out.clone();
            let done = before * WRITE_BEHIND_BYTES..now * WRITE_BEHIND_BYTES;
            runtime.spawn_blocking(move || sys::write_behind(&out, done.start, done.end - done.start));
        }
    }

    /// The chunks that a write touches without replacing them, and that are not local.
    fn missing(&self, file: &FileData, range: &Range<u64>) -> Vec<u64> {
        let size = self.chunk().bytes();
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
        let size = self.chunk().bytes();
        for index in self.missing(file, &range) {
            let part = index * size..((index + 1) * size).min(file.size);
            copied.insert(index, self.read_base(file, base, part).await?);
        }
        Ok(copied)
    }

    // ---- the log's living records --------------------------------------------------------------------------------------

    /// Moves what is left of one segment that is more than half dead to the log's end; `false` if there is none.
    pub async fn tidy_log(&self) -> Result<bool, StagingError> {
        self.reap().await?;
        let Some(segment) = self.files().half_dead() else { return Ok(false) };
        let mut moved = Vec::new();
        for record in self.files().records(segment)? {
            let (ino, Place::Log { len, .. }) = (record.ino, record.place) else { continue };
            if self.lies_at(ino, record.place)? {
                let bytes = self.read_local(ino, record.place, 0..len.into())?;
                let place = self.files().append(ino, &[&bytes], || Ok::<_, StagingError>(self.next_data()?))?;
                moved.push((ino, record.place, place));
            }
        }
        // The copies are safe before the records lead to them.
        self.sync_files().await?;
        let mut unused = Vec::new();
        for (ino, old, new) in moved {
            let _changing = self.lock_changes().await;
            let inode = self.record(ino)?;
            match inode {
                Some(Inode { body: InodeBody::File(FileData { local, .. }), .. }) if local == Some(old) => {}
                _ => {
                    unused.push(new);
                    continue;
                }
            }
            let mut inode = inode.expect("seen above");
            if let InodeBody::File(file) = &mut inode.body {
                file.local = Some(new);
            }
            let mut batch = Batch::default();
            put_inode(&mut batch, ino, &inode);
            self.db().write(batch)?;
            unused.push(old);
        }
        unused.into_iter().for_each(|place| self.forget_place(Some(place)));
        self.reap().await?;
        Ok(true)
    }

    /// Whether the bytes of the inode lie there.
    fn lies_at(&self, ino: u64, place: Place) -> Result<bool, StagingError> {
        let inode = self.record(ino)?;
        Ok(inode.is_some_and(|inode| matches!(inode.body, InodeBody::File(file) if file.local == Some(place))))
    }

    // ---- durability ----------------------------------------------------------------------------------------------------

    /// Puts all staged bytes on the disk, without the names that lead to them.
    pub(super) async fn sync_files(&self) -> Result<(), StagingError> {
        if self.files().is_doubtful() {
            let _changing = self.lock_changes().await;
            self.files().write_again()?;
        }
        let files = self.files().clone();
        let synced = tokio::task::spawn_blocking(move || files.sync()).await;
        Ok(synced.expect("syncing does not panic")?)
    }

    /// Makes all files, and the names that lead to them, safe from a power cut. Blocks: call it off the FUSE thread.
    pub fn sync(&self) -> Result<(), StagingError> {
        {
            let _changing = self.lock_changes_blocking();
            if self.files().is_doubtful() {
                self.files().write_again()?;
            }
            self.files().begin_sync();
        }
        let made = self.files().made();
        self.files().sync()?;
        self.note_safe(made)?;
        Ok(self.db().sync()?)
    }

    /// The bytes of a chunk as they are now, and the file's version; `None` if they are not here, or not a file's.
    pub(super) fn live_chunk(
        &self,
        ino: u64,
        index: u64,
        chunk: ChunkSize,
    ) -> Result<Option<(u64, Raw)>, StagingError> {
        let Some(record) = self.db().get(Family::Inodes, &ino.to_be_bytes())? else { return Ok(None) };
        let inode = Inode::decode(&record)?;
        let InodeBody::File(file) = &inode.body else { return Ok(None) };
        let start = index * chunk.bytes();
        let end = (start + chunk.bytes()).min(file.size);
        let Some(place) = file.local.filter(|_| start < end && file.is_local(index)) else { return Ok(None) };
        let len = (end - start) as usize;
        let read = match place {
            Place::File(id) => self.files().open_file(id).and_then(|file| read_fresh(file, start, len)),
            Place::Log { segment, offset, len: there } => {
                let mut bytes = vec![0; len];
                self.files().read_log(segment, offset, there, &mut bytes, start).map(|_| Raw::Bytes(bytes))
            }
        };
        match read {
            Ok(raw) => Ok(Some((inode.version, raw))),
            // Removed since the record was read.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
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
