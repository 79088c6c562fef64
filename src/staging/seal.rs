//! An instant of a staging tree, readable while writers go on.
//!
//! Names and inodes come from a snapshot of the database. Bytes are in the data files, which writers change in place: before
//! a chunk of a data file that existed at the seal is overwritten or cut off, its old bytes are copied aside, once. Data
//! files that lose their last use meanwhile are let go when the seal goes.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::base::Base;
use super::error::StagingError;
use super::inode::{Inode, is_new};
use super::names::{NamesStep, names_step};
use super::retired::Retired;
use crate::local::db::{Family, Instant};
use crate::local::staged_files::{Place, Raw, StagedFiles, read_fresh, read_up_to};
use crate::model::chunk::ChunkSize;
use crate::model::name::FileName;

/// Entries of a directory read from the base or the database in one step.
const LIST_STEP: usize = 4_096;

/// A sealed instant. Dropping it lets go of what was kept for it.
pub struct Sealed {
    /// Names and inodes at the instant.
    pub instant: Instant,
    /// What they are relative to.
    pub base: Arc<Base>,
    /// The change counter at the instant.
    pub changes: u64,
    pub(super) shared: Arc<Preserved>,
}

/// What a seal keeps of the data files.
pub struct Preserved {
    dir: PathBuf,
    files: Arc<StagedFiles>,
    retired: Arc<Retired>,
    chunk: ChunkSize,
    /// Data files from this number on were made after the seal.
    first_new: u64,
    state: Mutex<State>,
}

struct State {
    /// Where a chunk's old bytes lie in the side file, and how many they are.
    kept: HashMap<(u64, u64), (u64, usize)>,
    side: Option<File>,
    side_bytes: u64,
    unused: Vec<Place>,
}

impl Preserved {
    pub(super) fn new(
        dir: &Path,
        files: Arc<StagedFiles>,
        retired: Arc<Retired>,
        chunk: ChunkSize,
        first_new: u64,
    ) -> Self {
        let state = State { kept: HashMap::new(), side: None, side_bytes: 0, unused: Vec::new() };
        Self { dir: dir.to_owned(), files, retired, chunk, first_new, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds the seal's state")
    }

    /// Copies aside what is about to change: the chunks of data file `id` that hold bytes from `start` to `end`. Of a
    /// chunk behind the file's end nothing is kept, which says that it was zeros.
    pub(super) fn before_change(&self, id: u64, start: u64, end: u64) -> io::Result<()> {
        if id >= self.first_new {
            return Ok(());
        }
        let size = self.chunk.bytes();
        let data = self.files.open_file(id)?;
        for index in start / size..end.div_ceil(size) {
            let mut state = self.lock();
            if state.kept.contains_key(&(id, index)) {
                continue;
            }
            let mut bytes = vec![0; size as usize];
            let len = read_up_to(&data, &mut bytes, index * size)?;
            if state.side.is_none() {
                let path = self.dir.join("seal");
                state.side = Some(File::options().read(true).write(true).create(true).truncate(true).open(path)?);
            }
            let at = state.side_bytes;
            state.side.as_ref().expect("made above").write_all_at(&bytes[..len], at)?;
            state.side_bytes += len as u64;
            state.kept.insert((id, index), (at, len));
        }
        Ok(())
    }

    /// Notes that a place has no use any more, but to this seal.
    pub(super) fn unused(&self, place: Place) {
        self.lock().unused.push(place);
    }

    /// The bytes of chunk `index` of what lies at `place`, as they were at the instant; missing ones are zeros.
    pub fn read_chunk(&self, place: Place, index: u64, len: usize) -> io::Result<Raw> {
        match place {
            Place::Log { segment, offset, len: there } => {
                let mut bytes = vec![0; len];
                self.files.read_log(segment, offset, there, &mut bytes, index * self.chunk.bytes())?;
                Ok(Raw::Bytes(bytes))
            }
            Place::File(id) => {
                // A writer copies aside before it changes: what was not kept after the reading was not changed before it.
                let found = read_fresh(self.files.open_file(id)?, index * self.chunk.bytes(), len)?;
                let state = self.lock();
                if let (Some((at, kept)), Some(side)) = (state.kept.get(&(id, index)), &state.side) {
                    let mut bytes = vec![0; len];
                    read_up_to(side, &mut bytes[..(*kept).min(len)], *at)?;
                    return Ok(Raw::Bytes(bytes));
                }
                Ok(found)
            }
        }
    }
}

impl Drop for Preserved {
    fn drop(&mut self) {
        let state = self.lock();
        state.unused.iter().for_each(|place| self.retired.push(*place));
        if state.side.is_some() {
            let _ = fs::remove_file(self.dir.join("seal"));
        }
    }
}

impl Sealed {
    /// The inode `ino` at the instant.
    pub async fn inode(&self, ino: u64) -> Result<Inode, StagingError> {
        match self.instant.get(Family::Inodes, &ino.to_be_bytes())? {
            Some(record) => Ok(Inode::decode(&record)?),
            None => self.base.inode(ino).await,
        }
    }

    /// A part of a directory at the instant, after the name `after`.
    pub(super) async fn children(
        &self,
        ino: u64,
        directory: &Inode,
        after: Option<&FileName>,
    ) -> Result<NamesStep, StagingError> {
        let pairs = |prefix: &[u8], from: &[u8]| self.instant.prefix(Family::Names, prefix, from, LIST_STEP);
        names_step(&self.base, ino, directory, after, LIST_STEP, pairs).await
    }

    /// The numbers of the base's entries that have a record.
    pub fn changed_base_inodes(&self) -> Result<HashSet<u64>, StagingError> {
        let mut changed = HashSet::new();
        let mut from = Vec::new();
        loop {
            let step = self.instant.prefix(Family::Inodes, &[], &from, LIST_STEP)?;
            let Some((last, _)) = step.last() else { return Ok(changed) };
            from = last.clone();
            from.push(0);
            for (key, _) in step {
                let ino = u64::from_be_bytes(key[..].try_into().map_err(|_| StagingError::damaged("inode key"))?);
                if is_new(ino) {
                    return Ok(changed);
                }
                changed.insert(ino);
            }
        }
    }

    /// All inodes that have a record, a step at a time: those after `after`.
    pub fn changed_inodes(&self, after: Option<u64>) -> Result<Vec<(u64, Inode)>, StagingError> {
        let from = after.map_or(Vec::new(), |ino| (ino + 1).to_be_bytes().to_vec());
        let pairs = self.instant.prefix(Family::Inodes, &[], &from, LIST_STEP)?;
        let mut inodes = Vec::with_capacity(pairs.len());
        for (key, value) in pairs {
            let ino = u64::from_be_bytes(key[..].try_into().map_err(|_| StagingError::damaged("inode key"))?);
            inodes.push((ino, Inode::decode(&value)?));
        }
        Ok(inodes)
    }

    /// What keeps the bytes of the instant.
    pub fn data(&self) -> &Arc<Preserved> {
        &self.shared
    }
}
