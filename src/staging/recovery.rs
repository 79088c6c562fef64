//! Finding a tree again in its state directory: whose it is, whether it is whole, and what the end of the last process left.
//!
//! ```text
//! <dir>/lock      held (flock) by the process that has the tree; says which that is, as a hint
//! <dir>/version   of the layout
//! <dir>/db/       the database          <dir>/data/, <dir>/log/    the bytes of staged files
//! ```
//!
//! # Invariants
//!
//! 1. A directory of which a part is gone is refused, and nothing in it is removed: taken for a clean tree it would be
//!    emptied.
//! 2. Of bytes that are gone, those that were never synced were never promised: their file is what it was before they were
//!    written, or empty. All others are damage: the file is kept as it is, and reading it is an error.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;

use super::error::StagingError;
use super::extents::forget_uploads;
use super::inode::{FileData, InodeBody, base_row};
use super::tree::{for_each_inode, get_number, put_inode};
use crate::local::db::{Batch, Database, DatabaseMemory, Family};
use crate::local::staged_files::{Place, StagedFiles};

/// The file that is locked.
pub(super) const LOCK: &str = "lock";
/// Version of a state directory.
const STATE_VERSION: &str = "datamon staging 2\n";
/// Key of the number behind the last one that a data file may have.
pub(super) const NEXT_DATA: &[u8] = b"next_data";
/// Key of the number below which every data file and segment was synced, or has no use any more.
const SAFE_DATA: &[u8] = b"safe_data";

/// What was found of an earlier life.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Inodes that have a record.
    pub records: u64,
    /// Regular files with staged bytes.
    pub files: u64,
    /// Files whose newest bytes were never synced, and are gone.
    pub unsynced: u64,
    /// Files whose bytes are gone although they were synced.
    pub gone: u64,
}

/// A state directory that cannot be used.
pub(super) fn unusable(dir: &Path, why: io::Error) -> StagingError {
    let remedy = "changes are staged there: make it usable, or choose another with -o state=DIR";
    StagingError::State(format!("{}: {why} ({remedy})", dir.display()))
}

/// Takes the tree for this process.
pub(super) fn lock(dir: &Path) -> Result<File, StagingError> {
    let path = dir.join(LOCK);
    let opened = File::options().create(true).truncate(false).read(true).write(true).open(&path);
    let mut lock = opened.map_err(|why| unusable(&path, why))?;
    match lock.try_lock() {
        Ok(()) => {
            // A hint for who finds it held; without it the refusal says less.
            let _ = lock.set_len(0).and_then(|()| write!(lock, "{}", std::process::id()));
            Ok(lock)
        }
        Err(fs::TryLockError::WouldBlock) => {
            let holder = holder(&mut lock).map(described).unwrap_or_default();
            let remedy = "use mount --bind, or unmount that one";
            let what = format!("{}: another mount has this staging tree{holder} ({remedy})", dir.display());
            Err(StagingError::Busy(what))
        }
        Err(fs::TryLockError::Error(error)) => Err(unusable(&path, error)),
    }
}

/// Which process has the tree, as far as it said so.
pub(super) fn holder(lock: &mut File) -> Option<u32> {
    let mut pid = String::new();
    lock.read_to_string(&mut pid).ok()?;
    pid.parse().ok()
}

fn described(pid: u32) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    // As the daemon's last argument says it.
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let last = words.split(|byte| *byte == 0).rfind(|word| !word.is_empty()).unwrap_or_default();
    let place = if last.starts_with(b"/") { format!(" of {}", String::from_utf8_lossy(last)) } else { String::new() };
    let is_stopped = status.lines().any(|line| line.starts_with("State:") && line.contains("stopped"));
    match is_stopped {
        true => format!(": process {pid}{place}, which is stopped and goes on after kill -CONT {pid}"),
        false => format!(": process {pid}{place}"),
    }
}

/// Refuses a directory of which a part is gone.
pub(super) fn check_whole(dir: &Path) -> Result<(), StagingError> {
    let gone = |what: &str| {
        let remedy = "put it back; or give up what is staged, not what was committed, by moving the directory away";
        Err(StagingError::State(format!("{}: {what} is missing beside staged changes ({remedy})", dir.display())))
    };
    let database = dir.join("db");
    if database.join("CURRENT").exists() {
        return if dir.join("version").exists() { Ok(()) } else { gone("the file `version`") };
    }
    // One that is just being made has neither records nor bytes.
    let is_part = |name: &str| name.ends_with(".sst") || name.ends_with(".log");
    let names = fs::read_dir(&database).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let has_parts = names.into_iter().any(|name| name.to_str().is_some_and(is_part));
    match (has_parts, StagedFiles::holds_any(dir)) {
        (true, _) => gone("the file `db/CURRENT`"),
        (false, true) => gone("the directory `db`, or what was in it,"),
        (false, false) => Ok(()),
    }
}

/// Refuses a directory of another version; a new one gets ours.
pub(super) fn check_version(dir: &Path) -> Result<(), StagingError> {
    let path = dir.join("version");
    match fs::read_to_string(&path) {
        Ok(found) if found == STATE_VERSION => Ok(()),
        Ok(found) => Err(StagingError::State(format!(
            "{}: written by another datamon ({}): use that one, or another -o state=",
            dir.display(),
            found.trim()
        ))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            write_version(dir, &path).map_err(|why| unusable(dir, why))
        }
        Err(error) => Err(unusable(&path, error)),
    }
}

/// Writes it whole or not at all: an empty one would be another version's.
fn write_version(dir: &Path, path: &Path) -> io::Result<()> {
    let new = dir.join("version.new");
    let mut file = File::create(&new)?;
    file.write_all(STATE_VERSION.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(dir)?.sync_all()
}

/// Opens the database, or makes it.
pub(super) fn open_database(dir: &Path, memory: &DatabaseMemory) -> Result<Arc<Database>, StagingError> {
    let path = dir.join("db");
    let is_new = !path.exists();
    let opened = Database::open(&path, memory).map_err(|why| {
        let said = why.to_string();
        // What is whole needs no more than what it was refused; nobody is to give up anything for that.
        let remedy = match () {
            () if said.contains("No space left on device") => "nothing is lost: make room on that disk",
            () if said.contains("Too many open files") => "nothing is lost: allow more open files (ulimit -n)",
            () => "put back what is missing; or give up what is staged, not what was committed, by moving it away",
        };
        StagingError::State(format!("{}: {why} ({remedy})", dir.display()))
    })?;
    if is_new {
        File::open(dir)?.sync_all()?;
    }
    Ok(opened)
}

/// What the end of the last process left: files without a name, bytes to which nothing leads, files to be cut, records
/// that came to the disk without their bytes. Every record that is read here is on the disk: opening the database put it
/// there.
pub(super) fn recover(
    db: &Database,
    files: &StagedFiles,
    generation: u64,
    count: impl Fn(&FileData),
) -> Result<Recovered, StagingError> {
    let mut used = HashSet::new();
    let mut batch = Batch::default();
    let mut found = Recovered::default();
    let safe = get_number(db, SAFE_DATA)?.unwrap_or(0);
    for_each_inode(db, |ino, mut inode| {
        found.records += 1;
        let InodeBody::File(file) = &mut inode.body else { return Ok(()) };
        if inode.nlink == 0 {
            // Only an open file lives without a name.
            if base_row(generation, ino).is_none() {
                batch.delete(Family::Inodes, ino.to_be_bytes());
            }
            return Ok(());
        }
        let Some(place) = file.local else { return Ok(()) };
        found.files += 1;
        match find(files, place, file.size, safe)? {
            Bytes::There => {}
            Bytes::NeverSynced => {
                found.unsynced += 1;
                forget_uploads(&mut batch, ino, file);
                before_unsynced(file);
                inode.version += 1;
                put_inode(&mut batch, ino, &inode);
                return Ok(());
            }
            Bytes::Gone => {
                found.gone += 1;
                tracing::error!(ino, ?place, "a staged file's bytes are gone from the state directory");
            }
        }
        count(file);
        match place {
            Place::File(id) => {
                used.insert(id);
            }
            Place::Log { .. } => files.found(place),
        }
        if let (Place::File(_), true) = (place, file.uploaded) {
            // It is changed in place: its bytes may be newer than the record that says what of them is in the store.
            forget_uploads(&mut batch, ino, file);
            put_inode(&mut batch, ino, &inode);
        }
        Ok(())
    })?;
    db.write(batch)?;
    files.keep_files(&used)?;
    files.remove_dead();
    if found.unsynced > 0 {
        tracing::warn!(files = found.unsynced, "bytes that were never synced are gone: these files are as before them");
    }
    Ok(found)
}

/// What is left of a file's bytes.
enum Bytes {
    There,
    NeverSynced,
    Gone,
}

/// Looks at a place; a data file that is longer than its record says is cut.
fn find(files: &StagedFiles, place: Place, size: u64, safe: u64) -> Result<Bytes, StagingError> {
    let missing = |id: u64| if id < safe { Bytes::Gone } else { Bytes::NeverSynced };
    match place {
        Place::File(id) => match files.open_file(id) {
            Ok(data) => {
                if data.metadata()?.len() > size {
                    data.set_len(size)?;
                }
                Ok(Bytes::There)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(missing(id)),
            Err(error) => Err(error.into()),
        },
        Place::Log { segment, offset, len } => Ok(match files.segment_len(segment) {
            None => missing(segment),
            // What was synced of a segment is there as long as the segment is.
            Some(written) if written < u64::from(offset) + u64::from(len) => Bytes::NeverSynced,
            Some(_) => Bytes::There,
        }),
    }
}

/// The file as it was before the bytes that are gone: what the base has, where there is one, else empty.
fn before_unsynced(file: &mut FileData) {
    if file.base.is_none() {
        *file = FileData::empty();
    } else {
        file.local = None;
        file.chunks.clear();
    }
}

/// Notes that every data file and segment there is now is on the disk.
pub(super) fn all_is_safe(db: &Database) -> Result<(), StagingError> {
    let next = get_number(db, NEXT_DATA)?.unwrap_or(0);
    let mut batch = Batch::default();
    batch.put(Family::Meta, SAFE_DATA, next.to_be_bytes());
    Ok(db.write_durably(batch)?)
}

/// Notes, for the sync of the database that follows, that the files and segments below the number `made` are on the disk.
/// `known` is what was noted last; who holds it writes, so that the record never goes back.
pub(super) fn note_safe(db: &Database, known: &mut u64, made: u64) -> Result<(), StagingError> {
    if *known < made {
        let mut batch = Batch::default();
        batch.put(Family::Meta, SAFE_DATA, made.to_be_bytes());
        db.write(batch)?;
        *known = made;
    }
    Ok(())
}
