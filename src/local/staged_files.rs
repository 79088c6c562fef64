//! The bytes of staged files: small ones in an append-only log, larger ones in a file each.
//!
//! A create of a small file then costs no creation of a file below. What lies in the log never changes: a small file
//! that changes is appended again. A data file is changed in place by its owner, which is staging's business.
//!
//! ```text
//! <dir>/data/<hh>/<id>    one staged file; hh = the low byte of the id, so that 256 directories stay small
//! <dir>/log/<id>          a segment: records of {ino u64, length u32, 0 u32} and that many bytes, end to end
//! ```
//!
//! # Invariants
//!
//! 1. An id is used once: for a file or for a segment, in this life of the process or the next.
//! 2. A segment is appended to only by the life of the process that made it, so that a torn end stays where it is.
//! 3. A segment of which nothing is used any more is removed; the one that is being filled is not.
//! 4. [`StagedFiles::sync`] returns when all that was written before its call is on the disk, whoever syncs beside it.

use std::collections::{HashMap, HashSet};
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::sys;

/// Bytes after which a segment is closed.
const SEGMENT_BYTES: u64 = 64 << 20;
/// Bytes in front of each record of a segment.
const RECORD_HEAD_BYTES: u64 = 16;
/// Segments that are kept open for reading.
const OPEN_SEGMENTS_MAX: usize = 64;
/// The mode of directories that hold what is staged.
const OWN_MODE: u32 = 0o700;

/// Where the bytes of a staged file lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// In a file of their own, each byte at its offset.
    File(u64),
    /// In the log.
    Log {
        /// The segment.
        segment: u64,
        /// Where they begin there.
        offset: u32,
        /// How many they are.
        len: u32,
    },
}

impl Place {
    /// What has to be synced for these bytes.
    fn holder(self) -> Holder {
        match self {
            Self::File(id) => Holder::File(id),
            Self::Log { segment, .. } => Holder::Segment(segment),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Holder {
    File(u64),
    Segment(u64),
    /// The directory of new files; the log's is `None`.
    Directory(Option<u8>),
}

/// One record of a segment, as a walk through it finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogRecord {
    /// Whose bytes they were when they were written.
    pub ino: u64,
    /// Where they lie.
    pub place: Place,
}

/// See the module.
pub struct StagedFiles {
    dir: PathBuf,
    log: Mutex<Log>,
    unsynced: Mutex<Unsynced>,
    /// Held by the one who syncs: a second one waits, else it would promise what the first has not done yet.
    syncing: Mutex<()>,
    made: AtomicU64,
}

/// What was written and may not be on the disk.
#[derive(Default)]
struct Unsynced {
    /// Written since the last sync began.
    waiting: HashSet<Holder>,
    /// Being synced now.
    syncing: HashSet<Holder>,
    /// A sync of them failed: the kernel reports that once and takes their pages for clean, so another sync alone would
    /// succeed without having written them.
    doubtful: HashSet<Holder>,
}

#[derive(Default)]
struct Log {
    current: Option<(u64, Arc<File>, u64)>,
    open: HashMap<u64, Arc<File>>,
    /// Bytes of each segment that are written and that are in use.
    segments: HashMap<u64, Use>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Use {
    written: u64,
    used: u64,
    /// How many of the written bytes are on the disk.
    synced: u64,
    /// How many are, or will be when the sync that has begun is over: who may have answered for them by then.
    begun: u64,
}

impl StagedFiles {
    /// The files below `dir`, which are made if there are none.
    pub fn open(dir: &Path) -> io::Result<Self> {
        make_directory(&dir.join("log"))?;
        make_directory(&dir.join("data"))?;
        let mut made = false;
        for hh in 0..=0xffu8 {
            match fs::create_dir(directory(dir, Some(hh))) {
                Ok(()) => made = true,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        if made {
            File::open(dir.join("data"))?.sync_all()?;
        }
        let mut log = Log::default();
        for entry in fs::read_dir(dir.join("log"))? {
            let entry = entry?;
            let id = entry.file_name().to_str().and_then(|name| u64::from_str_radix(name, 16).ok());
            if let Some(id) = id {
                // A tree that is found again is synced before anything is written.
                let written = entry.metadata()?.len();
                log.segments.insert(id, Use { written, used: 0, synced: written, begun: written });
            }
        }
        Ok(Self {
            dir: dir.to_owned(),
            log: Mutex::new(log),
            unsynced: Mutex::default(),
            syncing: Mutex::default(),
            made: AtomicU64::new(0),
        })
    }

    /// Whether there are any bytes below `dir`, which need not be a directory of ours.
    pub fn holds_any(dir: &Path) -> bool {
        let has_entry = |dir: PathBuf| fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some());
        has_entry(dir.join("log")) || (0..=0xffu8).any(|hh| has_entry(directory(dir, Some(hh))))
    }

    /// Every file and segment that this life has made has a lower id.
    pub fn made(&self) -> u64 {
        self.made.load(Ordering::Acquire)
    }

    /// Removes everything: nothing of it is used any more.
    pub fn clear(&self) -> io::Result<()> {
        let mut log = self.log();
        *log = Log::default();
        *self.unsynced() = Unsynced::default();
        for entry in fs::read_dir(self.dir.join("log"))? {
            fs::remove_file(entry?.path())?;
        }
        for hh in 0..=0xffu8 {
            for entry in fs::read_dir(directory(&self.dir, Some(hh)))? {
                fs::remove_file(entry?.path())?;
            }
        }
        Ok(())
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().expect("no code panics while it holds the log")
    }

    fn unsynced(&self) -> MutexGuard<'_, Unsynced> {
        self.unsynced.lock().expect("no code panics while it holds the list")
    }

    // ---- files -------------------------------------------------------------------------------------------------------

    /// Makes the data file `id`.
    pub fn create(&self, id: u64) -> io::Result<File> {
        let made = File::options().read(true).write(true).create(true).truncate(true).open(self.path(id))?;
        self.unsynced().waiting.insert(Holder::Directory(Some(id as u8)));
        self.made.fetch_max(id + 1, Ordering::AcqRel);
        Ok(made)
    }

    /// Opens the data file `id`.
    pub fn open_file(&self, id: u64) -> io::Result<File> {
        let path = self.path(id);
        File::options().read(true).write(true).open(&path).map_err(|why| named(&path, why))
    }

    /// Notes that the data file `id` was written: before the record that leads to the bytes, so that a sync that takes
    /// the record along finds them.
    pub fn wrote(&self, id: u64) {
        self.unsynced().waiting.insert(Holder::File(id));
    }

    /// What the disk says of the data file `id`.
    pub fn metadata(&self, id: u64) -> io::Result<fs::Metadata> {
        fs::metadata(self.path(id))
    }

    fn path(&self, id: u64) -> PathBuf {
        directory(&self.dir, Some(id as u8)).join(format!("{id:x}"))
    }

    // ---- the log -----------------------------------------------------------------------------------------------------

    /// Appends the bytes of the file `ino`. `next_id` gives an unused id if a new segment is due.
    pub fn append<E: From<io::Error>>(
        &self,
        ino: u64,
        bytes: &[&[u8]],
        next_id: impl FnOnce() -> Result<u64, E>,
    ) -> Result<Place, E> {
        let len: usize = bytes.iter().map(|part| part.len()).sum();
        let mut record = Vec::with_capacity(RECORD_HEAD_BYTES as usize + len);
        record.extend_from_slice(&ino.to_le_bytes());
        record.extend_from_slice(&(len as u32).to_le_bytes());
        record.extend_from_slice(&[0; 4]);
        bytes.iter().for_each(|part| record.extend_from_slice(part));
        let mut log = self.log();
        let (segment, file, at) = match log.current.clone() {
            Some((id, file, at)) if at + record.len() as u64 <= SEGMENT_BYTES => (id, file, at),
            full => {
                let id = next_id()?;
                let path = self.segment_path(id);
                let file = Arc::new(File::options().read(true).write(true).create_new(true).open(path)?);
                self.unsynced().waiting.insert(Holder::Directory(None));
                self.made.fetch_max(id + 1, Ordering::AcqRel);
                log.segments.insert(id, Use::default());
                if let Some((full, ..)) = full {
                    self.remove_if_dead(&mut log, full);
                }
                (id, file, 0)
            }
        };
        file.write_all_at(&record, at)?;
        self.unsynced().waiting.insert(Holder::Segment(segment));
        let end = at + record.len() as u64;
        log.current = Some((segment, file, end));
        let known = log.segments.entry(segment).or_default();
        known.written = end;
        known.used += record.len() as u64;
        Ok(Place::Log { segment, offset: (at + RECORD_HEAD_BYTES) as u32, len: len as u32 })
    }

    /// Fills `bytes` from `start` of what lies at a place of the log; answers how many there were.
    pub fn read_log(&self, segment: u64, offset: u32, len: u32, bytes: &mut [u8], start: u64) -> io::Result<usize> {
        let there = u64::from(len).saturating_sub(start).min(bytes.len() as u64) as usize;
        let file = self.segment(segment)?;
        read_up_to(&file, &mut bytes[..there], u64::from(offset) + start)
    }

    fn segment(&self, id: u64) -> io::Result<Arc<File>> {
        let mut log = self.log();
        if let Some((current, file, _)) = &log.current
            && *current == id
        {
            return Ok(file.clone());
        }
        if let Some(file) = log.open.get(&id) {
            return Ok(file.clone());
        }
        let path = self.segment_path(id);
        let file = Arc::new(File::open(&path).map_err(|why| named(&path, why))?);
        if log.open.len() >= OPEN_SEGMENTS_MAX {
            log.open.clear();
        }
        log.open.insert(id, file.clone());
        Ok(file)
    }

    fn segment_path(&self, id: u64) -> PathBuf {
        directory(&self.dir, None).join(format!("{id:x}"))
    }

    /// Removes the data files of earlier lives that are not among `used`: nothing leads to them.
    pub fn keep_files(&self, used: &HashSet<u64>) -> io::Result<()> {
        for hh in 0..=0xffu8 {
            for entry in fs::read_dir(directory(&self.dir, Some(hh)))? {
                let entry = entry?;
                let id = entry.file_name().to_str().and_then(|name| u64::from_str_radix(name, 16).ok());
                if id.is_some_and(|id| !used.contains(&id)) {
                    fs::remove_file(entry.path())?;
                }
            }
        }
        Ok(())
    }

    /// Counts a place that an inode of an earlier life of the process leads to.
    pub fn found(&self, place: Place) {
        if let Place::Log { segment, len, .. } = place {
            self.log().segments.entry(segment).or_default().used += RECORD_HEAD_BYTES + u64::from(len);
        }
    }

    /// How many bytes a segment of an earlier life has; `None` if it is gone.
    pub fn segment_len(&self, segment: u64) -> Option<u64> {
        self.log().segments.get(&segment).map(|found| found.written)
    }

    /// Removes the segments of earlier lives in which nothing was found.
    pub fn remove_dead(&self) {
        let mut log = self.log();
        let all: Vec<u64> = log.segments.keys().copied().collect();
        all.into_iter().for_each(|id| self.remove_if_dead(&mut log, id));
    }

    /// A segment that is more than half dead and is not being filled: its living records want to move.
    pub fn half_dead(&self) -> Option<u64> {
        let log = self.log();
        let current = log.current.as_ref().map(|(id, ..)| *id);
        let is_half_dead = |(id, found): &(&u64, &Use)| Some(**id) != current && found.used * 2 < found.written;
        log.segments.iter().find(is_half_dead).map(|(id, _)| *id)
    }

    /// The records of a segment, in order; a torn end is left out.
    pub fn records(&self, segment: u64) -> io::Result<Vec<LogRecord>> {
        let file = self.segment(segment)?;
        let end = file.metadata()?.len();
        let mut records = Vec::new();
        let mut at = 0;
        while at + RECORD_HEAD_BYTES <= end {
            let mut head = [0; RECORD_HEAD_BYTES as usize];
            file.read_exact_at(&mut head, at)?;
            let ino = u64::from_le_bytes(head[..8].try_into().expect("8 of 16 bytes"));
            let len = u32::from_le_bytes(head[8..12].try_into().expect("4 of 16 bytes"));
            let offset = at + RECORD_HEAD_BYTES;
            at = offset + u64::from(len);
            if at > end {
                break;
            }
            records.push(LogRecord { ino, place: Place::Log { segment, offset: offset as u32, len } });
        }
        Ok(records)
    }

    // ---- both --------------------------------------------------------------------------------------------------------

    /// Notes that nothing leads to a place any more, as soon as that is on the disk: no sync owes its bytes.
    pub fn disown(&self, place: Place) {
        if let Place::File(id) = place {
            self.unsynced().waiting.remove(&Holder::File(id));
        }
    }

    /// Lets a place go: nothing leads to it any more. What cannot be removed now is found unused at the next start.
    pub fn forget(&self, place: Place) {
        match place {
            Place::File(id) => {
                self.unsynced().waiting.remove(&Holder::File(id));
                let _ = fs::remove_file(self.path(id));
            }
            Place::Log { segment, len, .. } => {
                let mut log = self.log();
                if let Some(found) = log.segments.get_mut(&segment) {
                    found.used = found.used.saturating_sub(RECORD_HEAD_BYTES + u64::from(len));
                }
                self.remove_if_dead(&mut log, segment);
            }
        }
    }

    fn remove_if_dead(&self, log: &mut Log, segment: u64) {
        let is_current = log.current.as_ref().is_some_and(|(id, ..)| *id == segment);
        if !is_current && log.segments.get(&segment).is_some_and(|found| found.used == 0) {
            log.segments.remove(&segment);
            log.open.remove(&segment);
            self.unsynced().waiting.remove(&Holder::Segment(segment));
            // What cannot be removed now is found unused at the next start.
            let _ = fs::remove_file(self.segment_path(segment));
        }
    }

    /// Whether the bytes at `place` may not be on the disk yet.
    pub fn is_unsynced(&self, place: Place) -> bool {
        if let Place::Log { segment, offset, len } = place {
            // A segment goes on being written behind bytes that are safe long since.
            let end = u64::from(offset) + u64::from(len);
            return self.log().segments.get(&segment).is_none_or(|found| end > found.synced);
        }
        let unsynced = self.unsynced();
        let holder = place.holder();
        unsynced.waiting.contains(&holder) || unsynced.syncing.contains(&holder)
    }

    /// Whether the bytes at a place of the log are on the disk, or somebody who waits for a sync may soon rely on it.
    pub fn is_safe_in_log(&self, place: Place) -> bool {
        let Place::Log { segment, offset, len } = place else { return false };
        let end = u64::from(offset) + u64::from(len);
        self.log().segments.get(&segment).is_some_and(|found| end <= found.begun)
    }

    /// Says that a sync of everything written so far is about to begin. Nobody may change a file meanwhile: a change is
    /// either among what is synced, or knows of it.
    pub fn begin_sync(&self) {
        self.log().segments.values_mut().for_each(|found| found.begun = found.written);
    }

    /// Puts what was written at `place` on the disk. Nobody may change the files meanwhile. Blocks.
    pub fn sync_place(&self, place: Place) -> io::Result<()> {
        if self.is_doubtful() {
            self.write_again()?;
        }
        let _syncing = self.syncing.lock().expect("no code panics while it syncs");
        let directory = match place {
            Place::File(id) => Holder::Directory(Some(id as u8)),
            Place::Log { .. } => Holder::Directory(None),
        };
        let wanted = [place.holder(), directory];
        self.sync_taken(|waiting| wanted.iter().filter_map(|holder| waiting.take(holder)).collect())
    }

    /// Puts everything that was written on the disk (fdatasync(2), fsync(2) of directories). Blocks.
    pub fn sync(&self) -> io::Result<()> {
        let _syncing = self.syncing.lock().expect("no code panics while it syncs");
        self.sync_taken(std::mem::take)
    }

    /// Syncs what `take` takes from the list; `syncing` is held by the caller.
    fn sync_taken(&self, take: impl FnOnce(&mut HashSet<Holder>) -> HashSet<Holder>) -> io::Result<()> {
        let holders = {
            let mut unsynced = self.unsynced();
            unsynced.syncing = take(&mut unsynced.waiting);
            unsynced.syncing.clone()
        };
        let end = |holder: &Holder| match holder {
            Holder::Segment(id) => self.log().segments.get(id).map(|found| (*id, found.written)),
            _ => None,
        };
        let ends: Vec<(u64, u64)> = holders.iter().filter_map(end).collect();
        let synced = holders.iter().try_for_each(|holder| self.sync_one(*holder).map_err(|why| (*holder, why)));
        if synced.is_ok() {
            let mut log = self.log();
            for (id, end) in ends {
                if let Some(found) = log.segments.get_mut(&id) {
                    found.synced = found.synced.max(end);
                    found.begun = found.begun.max(end);
                }
            }
        }
        let mut unsynced = self.unsynced();
        unsynced.syncing.clear();
        synced.map_err(|(holder, why)| {
            // What may not be on the disk is still owed to the next sync.
            unsynced.waiting.extend(holders);
            unsynced.doubtful.insert(holder);
            why
        })
    }

    /// Whether a sync failed since the last [`StagedFiles::write_again`].
    pub fn is_doubtful(&self) -> bool {
        !self.unsynced().doubtful.is_empty()
    }

    /// Writes again what a failed sync left in doubt, so that the next one has something to do. Nobody may change the files
    /// meanwhile. Blocks.
    pub fn write_again(&self) -> io::Result<()> {
        let doubtful = self.unsynced().doubtful.clone();
        for holder in doubtful {
            let path = match holder {
                Holder::File(id) => Some(self.path(id)),
                Holder::Segment(id) => Some(self.segment_path(id)),
                Holder::Directory(_) => None,
            };
            match path.map(|path| File::options().read(true).write(true).open(path)).transpose() {
                Ok(file) => file.iter().try_for_each(write_in_place)?,
                // Removed meanwhile: nobody waits for its bytes.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            self.unsynced().doubtful.remove(&holder);
        }
        Ok(())
    }

    fn sync_one(&self, holder: Holder) -> io::Result<()> {
        let path = match holder {
            Holder::File(id) => self.path(id),
            Holder::Segment(id) => self.segment_path(id),
            Holder::Directory(hh) => directory(&self.dir, hh),
        };
        match File::open(path) {
            Ok(file) => file.sync_data(),
            // Removed meanwhile: nobody waits for its bytes.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Writes what a file holds over itself.
fn write_in_place(file: &File) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    let mut from = 0;
    while let Some(part) = sys::next_part(file, from)? {
        for at in (part.start..part.end).step_by(buffer.len()) {
            let len = (part.end - at).min(buffer.len() as u64) as usize;
            let filled = read_up_to(file, &mut buffer[..len], at)?;
            file.write_all_at(&buffer[..filled], at)?;
        }
        from = part.end;
    }
    Ok(())
}

fn directory(dir: &Path, hh: Option<u8>) -> PathBuf {
    match hh {
        Some(hh) => dir.join("data").join(format!("{hh:02x}")),
        None => dir.join("log"),
    }
}

/// The bytes of a chunk. A hole is not read, however large it is.
#[derive(Debug)]
pub enum Raw {
    /// So many zeros.
    Hole(usize),
    /// These.
    Bytes(Vec<u8>),
}

impl Raw {
    /// All of them.
    pub fn into_bytes(self) -> Vec<u8> {
        match self {
            Self::Hole(len) => vec![0; len],
            Self::Bytes(bytes) => bytes,
        }
    }
}

/// `len` bytes of a file that was opened for this, from `offset` on, in memory that was not cleared before; behind its end
/// are zeros.
pub fn read_fresh(mut file: File, offset: u64, len: usize) -> io::Result<Raw> {
    // Where the file system does not say what is a hole, all is data.
    let data = sys::seek_region(&file, offset, false).unwrap_or(Some(offset));
    if data.is_none_or(|data| data >= offset + len as u64) {
        return Ok(Raw::Hole(len));
    }
    let mut bytes = Vec::with_capacity(len);
    file.seek(SeekFrom::Start(offset))?;
    file.take(len as u64).read_to_end(&mut bytes)?;
    bytes.resize(len, 0);
    Ok(Raw::Bytes(bytes))
}

/// An error that names the file.
fn named(path: &Path, why: io::Error) -> io::Error {
    io::Error::new(why.kind(), format!("{}: {why}", path.display()))
}

/// Makes a directory, and those above it, so that a power cut does not take them away again. Nobody else looks in: what is
/// staged is as closed as its modes say.
pub fn make_directory(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent() {
        make_directory(parent)?;
    }
    match DirBuilder::new().mode(OWN_MODE).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    dir.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// Closes a directory to everybody else, if it is there.
pub fn close_directory(dir: &Path) -> io::Result<()> {
    let is_open = fs::metadata(dir).is_ok_and(|found| found.permissions().mode() & 0o077 != 0);
    if is_open { fs::set_permissions(dir, fs::Permissions::from_mode(OWN_MODE)) } else { Ok(()) }
}

/// Fills `bytes` from `offset` as far as the file goes.
pub fn read_up_to(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn read(files: &StagedFiles, place: Place) -> Vec<u8> {
        let Place::Log { segment, offset, len } = place else { panic!("a place of the log") };
        let mut bytes = vec![0; len as usize];
        assert_eq!(files.read_log(segment, offset, len, &mut bytes, 0).unwrap(), len as usize);
        bytes
    }

    #[test]
    fn what_is_appended_is_read_again_also_by_the_next_life() {
        let dir = tempfile::tempdir().unwrap();
        let files = StagedFiles::open(dir.path()).unwrap();
        let first = files.append(7, &[b"he", b"llo"], || Ok::<_, io::Error>(1)).unwrap();
        let second = files.append(8, &[b""], || Ok::<_, io::Error>(2)).unwrap();
        assert_eq!(read(&files, first), b"hello");
        assert_eq!(files.records(1).unwrap().iter().map(|record| record.ino).collect::<Vec<_>>(), [7, 8]);
        let again = StagedFiles::open(dir.path()).unwrap();
        again.found(first);
        again.found(second);
        again.remove_dead();
        assert_eq!(read(&again, first), b"hello");
    }

    #[test]
    fn a_segment_without_use_is_removed_unless_it_is_being_filled() {
        let dir = tempfile::tempdir().unwrap();
        let files = StagedFiles::open(dir.path()).unwrap();
        let place = files.append(7, &[b"a"], || Ok::<_, io::Error>(1)).unwrap();
        files.forget(place);
        assert!(dir.path().join("log/1").exists());
        let next = StagedFiles::open(dir.path()).unwrap();
        next.remove_dead();
        assert!(!dir.path().join("log/1").exists());
    }

    #[test]
    fn a_segment_more_than_half_dead_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let files = StagedFiles::open(dir.path()).unwrap();
        let mut ids = 0..;
        let mut next = || Ok::<_, io::Error>(ids.next().unwrap());
        let bytes = vec![1; 60 << 10];
        let places: Vec<_> = (0..1100).map(|n| files.append(n, &[&bytes], &mut next).unwrap()).collect();
        assert_eq!(files.half_dead(), None);
        places[..700].iter().for_each(|place| files.forget(*place));
        assert_eq!(files.half_dead(), Some(0));
        let records = files.records(0).unwrap();
        assert!(records.len() > 1000 && records.iter().zip(&places).all(|(record, place)| record.place == *place));
    }

    #[test]
    fn what_is_written_over_itself_stays_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let file = StagedFiles::open(dir.path()).unwrap().create(5).unwrap();
        file.write_all_at(&[7; 5_000], 3 << 20).unwrap();
        file.set_len(9 << 20).unwrap();
        write_in_place(&file).unwrap();
        let bytes = fs::read(dir.path().join("data/05/5")).unwrap();
        assert!(bytes.len() == 9 << 20 && bytes[3 << 20..][..5_000] == [7; 5_000]);
        assert_eq!(bytes.iter().filter(|byte| **byte != 0).count(), 5_000);
    }

    #[test]
    fn a_sync_that_failed_is_owed_and_a_file_that_is_gone_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let files = StagedFiles::open(dir.path()).unwrap();
        files.create(5).unwrap();
        files.wrote(5);
        files.wrote(6);
        assert!(files.is_unsynced(Place::File(5)));
        files.sync().unwrap();
        assert!(!files.is_unsynced(Place::File(5)));
        files.wrote(5);
        // A path that leads to itself cannot be opened.
        fs::remove_file(dir.path().join("data/05/5")).unwrap();
        std::os::unix::fs::symlink("5", dir.path().join("data/05/5")).unwrap();
        assert!(files.sync().is_err());
        assert!(files.is_unsynced(Place::File(5)));
        assert!(files.is_doubtful());
        files.forget(Place::File(5));
        files.sync().unwrap();
    }
}
