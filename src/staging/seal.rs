//! An instant of a staging tree, readable while writers go on.
//!
//! Names and inodes come from a snapshot of the database. Bytes are in the data files, which writers change in place: before
//! a chunk of a data file that existed at the seal is overwritten or cut off, its old bytes are copied aside, once. Data
//! files that lose their last use meanwhile are removed when the seal goes.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::inode::Inode;
use super::tree::{Base, StagingError, decode_child, read_up_to};
use crate::local::db::{Family, Instant};
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
    unused: Vec<u64>,
}

impl Preserved {
    pub(super) fn new(dir: &Path, chunk: ChunkSize, first_new: u64) -> Self {
        let state = State { kept: HashMap::new(), side: None, side_bytes: 0, unused: Vec::new() };
        Self { dir: dir.to_owned(), chunk, first_new, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds the seal's state")
    }

    /// Copies aside what is about to change: the chunks of data file `id` that hold bytes from `start` to `end`.
    pub(super) fn before_change(&self, id: u64, start: u64, end: u64) -> io::Result<()> {
        if id >= self.first_new {
            return Ok(());
        }
        let size = self.chunk.bytes();
        let data = File::open(data_path(&self.dir, id))?;
        let end = end.min(data.metadata()?.len());
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

    /// Notes that data file `id` has no use any more, but to this seal.
    pub(super) fn unused(&self, id: u64) {
        self.lock().unused.push(id);
    }

    /// The bytes of chunk `index` of data file `id` at the instant; missing ones are zeros.
    pub fn read_chunk(&self, id: u64, index: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        let state = self.lock();
        match (state.kept.get(&(id, index)), &state.side) {
            (Some((at, kept)), Some(side)) => {
                let kept = (*kept).min(len);
                read_up_to(side, &mut bytes[..kept], *at)?;
            }
            _ => {
                // Under the lock, so that no writer changes the chunk while it is read.
                let data = File::open(data_path(&self.dir, id))?;
                read_up_to(&data, &mut bytes, index * self.chunk.bytes())?;
            }
        }
        Ok(bytes)
    }
}

impl Drop for Preserved {
    fn drop(&mut self) {
        let state = self.lock();
        // What cannot be removed now is found as unused at the next start.
        for id in &state.unused {
            let _ = fs::remove_file(data_path(&self.dir, *id));
        }
        if state.side.is_some() {
            let _ = fs::remove_file(self.dir.join("seal"));
        }
    }
}

/// The path of data file `id`; 256 directories keep each small.
pub fn data_path(dir: &Path, id: u64) -> PathBuf {
    dir.join("data").join(format!("{:02x}", id & 0xff)).join(format!("{id:x}"))
}

impl Sealed {
    /// The inode `ino` at the instant.
    pub async fn inode(&self, ino: u64) -> Result<Inode, StagingError> {
        match self.instant.get(Family::Inodes, &ino.to_be_bytes())? {
            Some(record) => Ok(Inode::decode(&record)?),
            None => self.base.inode(ino).await,
        }
    }

    /// All entries of a directory in bytewise order of their names: name, number, and the base's entry where the name is
    /// still the base's.
    pub async fn children(&self, ino: u64, inode: &Inode) -> Result<Vec<(FileName, u64, Option<Inode>)>, StagingError> {
        let mut merged = std::collections::BTreeMap::new();
        if let (Some(snapshot), Some(row)) = (&self.base.snapshot, inode.base) {
            let path = self.base.directory_path(row).await?;
            let mut after: Option<FileName> = None;
            loop {
                let listed = snapshot.list(&path, after.as_ref(), LIST_STEP).await?;
                let Some((last, ..)) = listed.last() else { break };
                after = Some(last.clone());
                for (name, row, entry) in listed {
                    let inode = Inode::of_base(row, entry, None);
                    merged.insert(name, (self.base.ino(row), Some(inode)));
                }
            }
        }
        let prefix = ino.to_be_bytes();
        let mut from = prefix.to_vec();
        loop {
            let pairs = self.instant.prefix(Family::Names, &prefix, &from, LIST_STEP)?;
            let Some((last, _)) = pairs.last() else { break };
            from = last.clone();
            from.push(0);
            for (key, value) in pairs {
                let name = FileName::new(key[8..].to_vec()).expect("only names were written");
                match decode_child(&value) {
                    Some(child) => merged.insert(name, (child, None)),
                    None => merged.remove(&name),
                };
            }
        }
        Ok(merged.into_iter().map(|(name, (child, inode))| (name, child, inode)).collect())
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
