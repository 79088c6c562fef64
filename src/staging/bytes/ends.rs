//! Where a file ends, and where nothing is in it: cutting, growing, punching, seeking.
//!
//! A data file becomes shorter only after the record that says so is on the disk (the power cuts of [`super`]). So a change
//! of the length comes in two halves: [`Tree::resize`] in the batch, [`Tree::cut_file`] after it.

use std::ops::Range;

use crate::content::reader::zeros;
use crate::local::db::Batch;
use crate::local::staged_files::Place;
use crate::local::sys;
use crate::model::chunk::ChunkIndex;
use crate::model::entry::{FileKind, Region};
use crate::model::limits::FILE_BYTES_MAX;
use crate::staging::error::StagingError;
use crate::staging::inode::{FileData, Inode, InodeBody};
use crate::staging::tree::{Tree, put_inode};

impl Tree {
    /// Changes a file's length; answers a place that has no use any more. A data file becomes no shorter: see
    /// [`Tree::cut_file`].
    pub(in crate::staging) fn resize(
        &self,
        batch: &mut Batch,
        ino: u64,
        inode: &mut Inode,
        size: u64,
    ) -> Result<Option<Place>, StagingError> {
        let kind = inode.kind();
        let InodeBody::File(file) = &mut inode.body else {
            let is_directory = kind == FileKind::Directory;
            return Err(if is_directory {
                StagingError::IsDirectory
            } else {
                StagingError::Invalid("not a regular file")
            });
        };
        if size > FILE_BYTES_MAX {
            return Err(StagingError::TooLarge);
        }
        if size > file.size {
            self.trim(ino, file, true)?;
        }
        inode.version += 1;
        self.forget_extents(batch, ino, file);
        if size == 0 {
            // New bytes from here on: what was sealed or is being uploaded keeps the old ones.
            let unused = file.local.take();
            *file = FileData::empty();
            return Ok(unused);
        }
        match file.local {
            // What was cut off must not come back when the file grows again.
            Some(Place::Log { len, .. }) if size < u64::from(len) => return self.cut_log(ino, file, size),
            _ => {}
        }
        file.size = size;
        file.base_limit = file.base_limit.min(size);
        file.keep_chunks(size.div_ceil(self.chunk().bytes()));
        Ok(None)
    }

    /// As [`Tree::preserve`], of a change that leaves alone what lies behind the end of the data file.
    pub(super) fn preserve_existing(&self, id: u64, range: Range<u64>) -> Result<(), StagingError> {
        let end = self.files().open_file(id)?.metadata()?.len().min(range.end);
        if range.start < end { self.preserve(id, range.start, end) } else { Ok(()) }
    }

    /// Appends the first `size` bytes of a small file again: the length of a record is fixed.
    fn cut_log(&self, ino: u64, file: &mut FileData, size: u64) -> Result<Option<Place>, StagingError> {
        let place = file.local.expect("the caller saw it");
        let kept = self.read_local(ino, place, 0..size)?;
        let is_safe = self.is_safe_in_log(file);
        let cut = self.files().append(ino, &[&kept], || Ok::<_, StagingError>(self.next_data()?))?;
        if is_safe {
            self.files().sync_place(cut)?;
        }
        file.local = Some(cut);
        file.size = size;
        Ok(Some(place))
    }

    /// Cuts the data file of an inode whose record says `size`: what lies behind must not come back when it grows.
    ///
    /// The record is put on the disk before: a power cut between the two leaves the old length or the new one.
    pub(in crate::staging) async fn cut_file(&self, id: u64, from: u64, size: u64) -> Result<(), StagingError> {
        self.preserve_existing(id, size..from)?;
        let (db, files) = (self.db().clone(), self.files().clone());
        let cut = tokio::task::spawn_blocking(move || {
            db.sync()?;
            files.open_file(id)?.set_len(size)?;
            files.wrote(id);
            Ok::<_, StagingError>(())
        });
        cut.await.expect("cutting does not panic")
    }

    /// Makes `range` read as zeros, without changing the length (fallocate(2), PUNCH_HOLE).
    pub async fn punch(&self, ino: u64, range: Range<u64>) -> Result<(), StagingError> {
        let inode = self.inode(ino).await?;
        let InodeBody::File(file) = &inode.body else { return Err(StagingError::IsDirectory) };
        let range = range.start..range.end.min(file.size);
        if range.is_empty() || self.punch_file(ino, &range).await? {
            return Ok(());
        }
        // Behind that it is zeros already, however long the file is.
        let end = range.end.min(self.data_end(file));
        let mut at = range.start;
        while at < end {
            // Zeros are written chunk by chunk: copy-up and the seal see an ordinary write.
            let part = (self.chunk().bytes() - at % self.chunk().bytes()).min(end - at);
            self.write(ino, at, &zeros(part as usize), false, false).await?;
            at += part;
        }
        Ok(())
    }

    /// Where the bytes of a file end that may be other than zeros.
    fn data_end(&self, file: &FileData) -> u64 {
        let local = match (file.local, &file.base) {
            (Some(Place::Log { len, .. }), _) => len.into(),
            (Some(Place::File(_)), None) => file.size,
            (Some(Place::File(_)), Some(_)) => file.chunks.last().map_or(0, |(_, end)| end * self.chunk().bytes()),
            (None, _) => 0,
        };
        let base = if file.base.is_some() { file.base_limit } else { 0 };
        local.max(base).min(file.size)
    }

    /// Frees the bytes of a data file that has no base below; `false` where that is not to be had.
    async fn punch_file(&self, ino: u64, range: &Range<u64>) -> Result<bool, StagingError> {
        let _changing = self.change().await?;
        let mut inode = self.inode(ino).await?;
        let InodeBody::File(file) = &mut inode.body else { return Err(StagingError::IsDirectory) };
        match (&file.base, file.local) {
            (None, Some(Place::File(id))) => {
                self.preserve_existing(id, range.clone())?;
                if sys::punch_hole(&*self.open_data(ino, id)?, range.start, range.end - range.start).is_err() {
                    return Ok(false);
                }
                self.files().wrote(id);
            }
            _ if range.start < self.data_end(file) => return Ok(false),
            // There is nothing but zeros: only the times say that it was asked for.
            _ => {}
        }
        let mut batch = Batch::default();
        self.forget_extents(&mut batch, ino, file);
        inode.version += 1;
        inode.attributes.mtime = self.now();
        inode.ctime = inode.attributes.mtime;
        put_inode(&mut batch, ino, &inode);
        self.apply(batch)?;
        Ok(true)
    }

    /// Makes sure that the file is at least `size` bytes long, and that there is room for what it becomes longer.
    pub async fn grow(&self, ino: u64, size: u64) -> Result<(), StagingError> {
        let _changing = self.change().await?;
        let mut inode = self.inode(ino).await?;
        let InodeBody::File(file) = &inode.body else { return Err(StagingError::IsDirectory) };
        if size <= file.size {
            return Ok(());
        }
        let old_share = self.share(file);
        self.check_space(size - file.size)?;
        let mut batch = Batch::default();
        let unused = self.resize(&mut batch, ino, &mut inode, size)?;
        inode.attributes.mtime = self.now();
        inode.ctime = inode.attributes.mtime;
        if let InodeBody::File(file) = &inode.body {
            self.totals().count(old_share, self.share(file));
        }
        put_inode(&mut batch, ino, &inode);
        self.apply(batch)?;
        self.forget_place(unused);
        Ok(())
    }
    /// Where a region of this kind begins in the file, at `offset` or behind it; a hole does at the end.
    pub async fn seek(&self, ino: u64, offset: u64, region: Region) -> Result<Option<u64>, StagingError> {
        let inode = self.inode(ino).await?;
        let InodeBody::File(file) = &inode.body else { return Err(StagingError::IsDirectory) };
        if offset >= file.size {
            return Ok(None);
        }
        let size = self.chunk().bytes();
        let mut span = offset..file.size;
        if file.base.is_some() {
            span.end = file.size.min((offset / size + 1) * size);
        }
        while !span.is_empty() {
            if let Some(found) = self.seek_in(ino, file, span.clone(), region).await? {
                return Ok(Some(found));
            }
            span = span.end..file.size.min(span.end.saturating_add(size));
        }
        Ok((region == Region::Hole).then_some(file.size))
    }

    /// The same inside `span`, which has one source: a file without a base, or one chunk.
    async fn seek_in(
        &self,
        ino: u64,
        file: &FileData,
        span: Range<u64>,
        region: Region,
    ) -> Result<Option<u64>, StagingError> {
        let index = span.start / self.chunk().bytes();
        // Data lies in front of this end, nothing behind it.
        let data_end = match (file.local, &file.base) {
            (Some(Place::File(id)), _) if file.is_local(index) => {
                let found = sys::seek_region(&*self.open_data(ino, id)?, span.start, region == Region::Hole)?;
                // Behind the end of the data file there are only zeros.
                let found = found.or((region == Region::Hole).then_some(span.start));
                return Ok(found.filter(|found| span.contains(found)));
            }
            (Some(Place::Log { len, .. }), None) => len.into(),
            (_, Some(base))
                if span.start < file.base_limit && !self.reader().is_hole(base, ChunkIndex(index)).await? =>
            {
                file.base_limit
            }
            _ => 0,
        };
        let found = match region {
            Region::Data => (span.start < data_end).then_some(span.start),
            Region::Hole => Some(span.start.max(data_end)),
        };
        Ok(found.filter(|found| span.contains(found)))
    }
}
