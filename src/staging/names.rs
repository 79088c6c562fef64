//! The names of a tree: looking them up, listing, making, moving and removing them.
//!
//! A directory's entries are its records in the database over what the base's directory shows; a record without a child is
//! a whiteout. A directory of the base keeps naming its row when it is renamed, so that a rename is two records whatever
//! lies below.

use std::collections::BTreeMap;

use super::attributes::{Caller, NodeAttr};
use super::base::Base;
use super::error::StagingError;
use super::gone::Ended;
use super::inode::{Inode, InodeBody, ROOT, base_row, new_ino};
use super::tree::{RESERVED_NAME, Tree, put_inode};
use crate::local::db::{Batch, DatabaseError, Family, Pairs};
use crate::model::clock::Timestamp;
use crate::model::entry::{Attributes, Body, FileKind, SET_GROUP_ID};
use crate::model::id::LinkId;
use crate::model::name::FileName;

/// Names read in one step of a list, however few are asked for: whiteouts may fill it.
const LIST_STEP_MIN: usize = 64;
/// How often a rename looks whether the new file's bytes are on the disk, while somebody goes on writing them.
const SETTLE_ROUNDS: usize = 3;
/// Names looked at in one step of a search for a number.
const LOOK_STEP: usize = 4_096;

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

impl Tree {
    // ---- looking -------------------------------------------------------------------------------------------------

    /// The entry `name` of the directory `parent`.
    pub async fn lookup(&self, parent: u64, name: &FileName) -> Result<NodeAttr, StagingError> {
        let child = self.child(parent, name).await?.ok_or(StagingError::NotFound)?;
        self.getattr(child).await
    }

    async fn child(&self, parent: u64, name: &FileName) -> Result<Option<u64>, StagingError> {
        match self.db().get(Family::Names, &child_key(parent, name))? {
            Some(value) => Ok(decode_child(&value)),
            None => self.base_child(&self.directory(parent).await?, name).await,
        }
    }

    /// The same, of a directory that is at hand.
    async fn child_of(&self, parent: u64, directory: &Inode, name: &FileName) -> Result<Option<u64>, StagingError> {
        match self.db().get(Family::Names, &child_key(parent, name))? {
            Some(value) => Ok(decode_child(&value)),
            None => self.base_child(directory, name).await,
        }
    }

    /// What shows through from the base.
    async fn base_child(&self, directory: &Inode, name: &FileName) -> Result<Option<u64>, StagingError> {
        let base = self.base();
        let (Some(snapshot), Some(row)) = (&base.snapshot, directory.base) else { return Ok(None) };
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
        let directory = self.directory(ino).await?;
        let pairs = |prefix: &[u8], from: &[u8]| self.db().prefix(Family::Names, prefix, from, max);
        let step = names_step(&self.base(), ino, &directory, after, max, pairs).await?;
        let mut entries = Vec::with_capacity(step.entries.len());
        for (name, child, shown) in step.entries {
            let attr = match self.record(child)?.or(shown) {
                Some(inode) => self.shown(child, &inode),
                None => self.getattr(child).await?,
            };
            entries.push((name, attr));
        }
        Ok((entries, step.next))
    }

    // ---- making and removing -------------------------------------------------------------------------------------

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
        if self.child_of(parent, &directory, name).await?.is_some() {
            return Err(StagingError::Exists);
        }
        let now = self.now();
        let inherits = directory.attributes.permissions & SET_GROUP_ID != 0;
        let is_directory = matches!(body, InodeBody::Directory);
        let is_symlink = matches!(body, InodeBody::Other(Body::Symlink(_)));
        let mut mode = if is_symlink { 0o777 } else { permissions };
        if inherits && is_directory {
            mode |= SET_GROUP_ID;
        }
        let gid = if inherits { directory.attributes.gid } else { caller.gid };
        let mut inode = Inode::new(Attributes { permissions: mode, uid: caller.uid, gid, mtime: now }, body);
        if !is_symlink {
            inode.inherit(&directory, self.has_acls(), caller.umask as u16)?;
        }
        let mut batch = Batch::default();
        let ino = new_ino(self.next_ino()?);
        batch.put(Family::Names, child_key(parent, name), ino.to_be_bytes());
        put_inode(&mut batch, ino, &inode);
        touch(&mut directory, now);
        if is_directory {
            directory.count_directory(true);
        }
        put_inode(&mut batch, parent, &directory);
        self.apply(batch)?;
        if matches!(inode.body, InodeBody::File(_)) {
            self.births().note(ino, parent, name);
        }
        Ok(self.shown(ino, &inode))
    }

    /// Gives an inode a further name.
    pub async fn link(&self, ino: u64, parent: u64, name: &FileName) -> Result<NodeAttr, StagingError> {
        refuse_reserved(parent, name)?;
        let _changing = self.change().await?;
        let mut inode = self.seen(ino).await?;
        if inode.kind() == FileKind::Directory {
            return Err(StagingError::IsDirectory);
        }
        if inode.nlink == 0 {
            return Err(StagingError::NotFound);
        }
        let mut directory = self.directory(parent).await?;
        if directory.nlink == 0 {
            return Err(StagingError::NotFound);
        }
        if self.child_of(parent, &directory, name).await?.is_some() {
            return Err(StagingError::Exists);
        }
        let now = self.now();
        inode.nlink = inode.nlink.checked_add(1).ok_or(StagingError::TooManyLinks)?;
        inode.ctime = now;
        inode.link.get_or_insert_with(|| LinkId::from_parts(now.millis(), self.random()));
        let mut batch = Batch::default();
        batch.put(Family::Names, child_key(parent, name), ino.to_be_bytes());
        put_inode(&mut batch, ino, &inode);
        touch(&mut directory, now);
        put_inode(&mut batch, parent, &directory);
        self.apply(batch)?;
        Ok(self.shown(ino, &inode))
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
        let ended = self.drop_name(&mut batch, child, inode, now);
        self.whiteout(&mut batch, parent, name, false, now).await?;
        self.apply(batch)?;
        self.keep_gone(ended);
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
        let ended = self.drop_name(&mut batch, child, inode, now);
        self.whiteout(&mut batch, parent, name, true, now).await?;
        self.apply(batch)?;
        self.keep_gone(ended);
        Ok(())
    }

    /// Moves a name, over an existing one unless `no_replace`.
    ///
    /// Over an existing file the move is durable only after the new file's bytes are: the log of the database may reach
    /// the disk by itself at any time, so the bytes have to be there before.
    pub async fn rename(
        &self,
        parent: u64,
        name: &FileName,
        to_parent: u64,
        to_name: &FileName,
        no_replace: bool,
    ) -> Result<(), StagingError> {
        refuse_reserved(to_parent, to_name)?;
        for _ in 0..SETTLE_ROUNDS {
            if self.is_settled_for_replacing((parent, name), (to_parent, to_name)).await? {
                break;
            }
            self.sync_files().await?;
        }
        let _changing = self.change().await?;
        let moved = self.child(parent, name).await?.ok_or(StagingError::NotFound)?;
        let mut inode = self.inode(moved).await?;
        let is_directory = inode.kind() == FileKind::Directory;
        let now = self.now();
        let mut batch = Batch::default();
        let mut ended = None;
        let mut replaces_directory = false;
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
                _ => ended = self.drop_name(&mut batch, replaced, old, now),
            }
            replaces_directory = is_directory;
        }
        inode.ctime = now;
        put_inode(&mut batch, moved, &inode);
        let loses_directory = is_directory && (to_parent != parent || replaces_directory);
        self.whiteout(&mut batch, parent, name, loses_directory, now).await?;
        if to_parent != parent {
            let mut directory = self.directory(to_parent).await?;
            if directory.nlink == 0 {
                return Err(StagingError::NotFound);
            }
            touch(&mut directory, now);
            if is_directory && !replaces_directory {
                directory.count_directory(true);
            }
            put_inode(&mut batch, to_parent, &directory);
        }
        batch.put(Family::Names, child_key(to_parent, to_name), moved.to_be_bytes());
        self.apply(batch)?;
        self.keep_gone(ended);
        Ok(())
    }

    /// Whether a rename of one name over the other puts no file in another's place whose bytes may not be on the disk.
    async fn is_settled_for_replacing(
        &self,
        from: (u64, &FileName),
        to: (u64, &FileName),
    ) -> Result<bool, StagingError> {
        let (Some(moved), Some(_)) = (self.child(from.0, from.1).await?, self.child(to.0, to.1).await?) else {
            return Ok(true);
        };
        let InodeBody::File(file) = self.inode(moved).await?.body else { return Ok(true) };
        Ok(!file.local.is_some_and(|place| self.files().is_unsynced(place)))
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
        let mut is_directory = [false; 2];
        for (at, ino) in [first, second].into_iter().enumerate() {
            let mut inode = self.inode(ino).await?;
            is_directory[at] = inode.kind() == FileKind::Directory;
            inode.ctime = now;
            put_inode(&mut batch, ino, &inode);
        }
        for (parent, had, has) in [(a.0, is_directory[0], is_directory[1]), (b.0, is_directory[1], is_directory[0])] {
            let mut directory = self.directory(parent).await?;
            touch(&mut directory, now);
            if had != has && a.0 != b.0 {
                directory.count_directory(has);
            }
            put_inode(&mut batch, parent, &directory);
        }
        batch.put(Family::Names, child_key(a.0, a.1), second.to_be_bytes());
        batch.put(Family::Names, child_key(b.0, b.1), first.to_be_bytes());
        Ok(self.apply(batch)?)
    }

    // ---- telling ---------------------------------------------------------------------------------------------------

    /// Puts the path of the file whose bytes are gone into the error that says so.
    pub(super) async fn name_gone(&self, error: StagingError) -> StagingError {
        let StagingError::Gone { ino, what } = error else { return error };
        let named = match self.path_of(ino).await {
            Ok(Some(path)) => format!("{path}: {what}"),
            _ => what,
        };
        StagingError::Gone { ino, what: named }
    }

    /// A path that leads to the inode. Goes through all records of names: for what is told of damage only.
    pub(super) async fn path_of(&self, ino: u64) -> Result<Option<String>, StagingError> {
        let mut parts = Vec::new();
        let mut at = ino;
        while at != ROOT {
            let (parent, name) = match self.recorded_name(at)? {
                Some(found) => found,
                None => match self.base_name(at).await? {
                    Some(found) => found,
                    None => return Ok(None),
                },
            };
            parts.push(String::from_utf8_lossy(name.as_bytes()).into_owned());
            at = parent;
        }
        parts.reverse();
        Ok(Some(parts.join("/")))
    }

    fn recorded_name(&self, ino: u64) -> Result<Option<(u64, FileName)>, StagingError> {
        let mut from = Vec::new();
        loop {
            let step = self.db().prefix(Family::Names, b"", &from, LOOK_STEP)?;
            let Some((last, _)) = step.last() else { return Ok(None) };
            from = last.clone();
            from.push(0);
            if let Some((key, _)) = step.into_iter().find(|(_, value)| decode_child(value) == Some(ino)) {
                let damaged = || StagingError::damaged("name");
                let parent = key.get(..8).and_then(|parent| parent.try_into().ok()).ok_or_else(damaged)?;
                let name = FileName::new(key[8..].to_vec()).map_err(|_| damaged())?;
                return Ok(Some((u64::from_be_bytes(parent), name)));
            }
        }
    }

    async fn base_name(&self, ino: u64) -> Result<Option<(u64, FileName)>, StagingError> {
        let base = self.base();
        let (Some(snapshot), Some(row)) = (&base.snapshot, base_row(base.generation, ino)) else { return Ok(None) };
        let Some((parent, name)) = snapshot.row(row).await?.and_then(|row| row.key.parts()) else { return Ok(None) };
        let found = snapshot.lookup_path(&parent).await?;
        Ok(found.map(|(row, _)| (base.ino(row), name)))
    }

    /// Takes one name from an inode; answers what it was if it ends with that.
    fn drop_name(&self, batch: &mut Batch, ino: u64, mut inode: Inode, now: Timestamp) -> Option<Ended> {
        inode.nlink = if inode.kind() == FileKind::Directory { 0 } else { inode.nlink.saturating_sub(1) };
        inode.ctime = now;
        if inode.nlink == 0 {
            self.unwritten().written(ino, &(0..u64::MAX));
        }
        if inode.nlink > 0 || self.is_open(ino) {
            put_inode(batch, ino, &inode);
            return None;
        }
        Some(self.bury(batch, ino, inode))
    }

    /// Removes a name: by a whiteout where the base shows through, else altogether. With `loses_directory` the directory
    /// has one directory less.
    async fn whiteout(
        &self,
        batch: &mut Batch,
        parent: u64,
        name: &FileName,
        loses_directory: bool,
        now: Timestamp,
    ) -> Result<(), StagingError> {
        let mut directory = self.directory(parent).await?;
        if directory.base.is_some() && self.base().snapshot.is_some() {
            batch.put(Family::Names, child_key(parent, name), 0u64.to_be_bytes());
        } else {
            batch.delete(Family::Names, child_key(parent, name));
        }
        touch(&mut directory, now);
        if loses_directory {
            directory.count_directory(false);
        }
        put_inode(batch, parent, &directory);
        Ok(())
    }
}

/// A part of a directory in bytewise order of its names.
pub(super) struct NamesStep {
    /// Name, number, and the base's inode where that still shows through (a record of the number beats it).
    pub entries: Vec<(FileName, u64, Option<Inode>)>,
    /// Where the next step begins, if the directory may go on.
    pub next: Option<FileName>,
}

/// Up to `max` entries of a directory after the name `after`: the records that `pairs` gives over what the base shows.
pub(super) async fn names_step(
    base: &Base,
    ino: u64,
    directory: &Inode,
    after: Option<&FileName>,
    max: usize,
    pairs: impl FnOnce(&[u8], &[u8]) -> Result<Pairs, DatabaseError>,
) -> Result<NamesStep, StagingError> {
    // A name's number, and the base's inode where it still shows through; none of a whiteout.
    let mut merged: BTreeMap<FileName, Option<(u64, Option<Inode>)>> = BTreeMap::new();
    // Names beyond the shorter of two full lists may miss entries of the other: they wait for the next step.
    let mut horizon: Option<FileName> = None;
    if let (Some(snapshot), Some(row)) = (&base.snapshot, directory.base) {
        let listed = snapshot.list(&base.directory_path(row).await?, after, max).await?;
        if listed.len() == max {
            horizon = listed.last().map(|(name, ..)| name.clone());
        }
        let shown = |row, entry| Some((base.ino(row), Some(Inode::of_base(row, entry, None))));
        merged.extend(listed.into_iter().map(|(name, row, entry)| (name, shown(row, entry))));
    }
    let prefix = ino.to_be_bytes();
    let mut from = prefix.to_vec();
    if let Some(after) = after {
        from.extend_from_slice(after.as_bytes());
        from.push(0);
    }
    let pairs = pairs(&prefix, &from)?;
    let name_of = |key: &[u8]| FileName::new(key[8..].to_vec()).map_err(|_| StagingError::damaged("name"));
    if pairs.len() == max {
        let last = name_of(&pairs[max - 1].0)?;
        horizon = horizon.into_iter().chain([last]).min();
    }
    for (key, value) in pairs {
        merged.insert(name_of(&key)?, decode_child(&value).map(|child| (child, None)));
    }
    let mut entries = Vec::new();
    for (name, child) in merged {
        if horizon.as_ref().is_some_and(|horizon| name > *horizon) {
            break;
        }
        entries.extend(child.map(|(child, shown)| (name, child, shown)));
    }
    Ok(NamesStep { entries, next: horizon })
}

fn refuse_reserved(parent: u64, name: &FileName) -> Result<(), StagingError> {
    if parent == ROOT && name.as_bytes() == RESERVED_NAME { Err(StagingError::Reserved) } else { Ok(()) }
}

fn touch(directory: &mut Inode, now: Timestamp) {
    directory.attributes.mtime = now;
    directory.ctime = now;
}
