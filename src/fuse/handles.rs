//! Handles: what an open file or directory is to us between its OPEN and its RELEASE.
//!
//! Most opens need nothing remembered: what is to be known stands in the number itself. Only texts (their bytes are of
//! the moment of the open) and directories (where a listing stands) have a place in the table.
//!
//! # Invariants
//!
//! 1. A number leaves the table at its RELEASE, or when its OPEN was not answered with it.
//! 2. A mount on which the kernel opens no directories (see [`super::dispatch`]) keeps at most [`UNOPENED_MAX`] listings.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::Bytes;
use fuser::FileHandle;
use tokio::sync::OwnedMutexGuard;

use crate::model::name::FileName;
use crate::vfs::error::VfsError;
use crate::vfs::{Listed, Vfs};

/// A file whose bytes never change; also what the kernel sends where it does not open at all.
pub const IMMUTABLE: FileHandle = FileHandle(0);
/// A staged file that is only read.
pub const READER: FileHandle = FileHandle(1);
/// A staged file that may be written, also through mmap.
pub const WRITER: FileHandle = FileHandle(2);
/// Numbers of the table begin here.
const FIRST: u64 = 16;
/// Listings that are remembered where the kernel opens no directories; one that was lost begins anew.
const UNOPENED_MAX: usize = 32;
/// `.` and `..`, which stand before all others.
const DOTS: u64 = 2;
/// The number shown of `..`, as libfuse has it: who wants to know looks there.
const UNKNOWN_INO: u64 = u32::MAX as u64;
/// Entries of a directory fetched in one step.
const LIST_STEP: usize = 2_048;

/// A listing under way, used by one request at a time.
pub type SharedWindow = Arc<tokio::sync::Mutex<Window>>;

/// What has a place in the table.
#[derive(Clone)]
pub enum Handle {
    /// A text, and when it was made; empty for what only takes commands.
    Text(Bytes, Instant),
    /// A directory being listed.
    Directory(SharedWindow),
}

/// The table.
pub struct Handles {
    open: Mutex<HashMap<u64, Handle>>,
    next: AtomicU64,
    /// Most recently used last.
    unopened: Mutex<Vec<(u64, SharedWindow)>>,
}

impl Default for Handles {
    fn default() -> Self {
        Self { open: Mutex::default(), next: AtomicU64::new(FIRST), unopened: Mutex::default() }
    }
}

impl Handles {
    /// Gives a handle its number.
    pub fn add(&self, handle: Handle) -> FileHandle {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.lock().expect("nothing panics while it holds the handles").insert(number, handle);
        FileHandle(number)
    }

    /// Puts a newer text in the place of an open one's.
    pub fn renew(&self, handle: FileHandle, text: &Bytes) {
        let mut open = self.open.lock().expect("nothing panics while it holds the handles");
        if let Some(Handle::Text(old, made)) = open.get_mut(&handle.0) {
            (*old, *made) = (text.clone(), Instant::now());
        }
    }

    /// What the number stands for; nothing for numbers that are not of the table.
    pub fn get(&self, handle: FileHandle) -> Option<Handle> {
        if handle.0 < FIRST {
            return None;
        }
        self.open.lock().expect("nothing panics while it holds the handles").get(&handle.0).cloned()
    }

    /// Ends a handle.
    pub fn remove(&self, handle: FileHandle) {
        if handle.0 >= FIRST {
            self.open.lock().expect("nothing panics while it holds the handles").remove(&handle.0);
        }
    }

    /// The listing of a directory: its handle's, or for [`IMMUTABLE`] the one remembered by the directory's number.
    pub fn window(&self, ino: u64, handle: FileHandle) -> Option<SharedWindow> {
        if handle != IMMUTABLE {
            return match self.get(handle) {
                Some(Handle::Directory(window)) => Some(window),
                _ => None,
            };
        }
        let mut unopened = self.unopened.lock().expect("nothing panics while it holds the listings");
        let known = unopened.iter().position(|(known, _)| *known == ino);
        let entry = known.map_or_else(|| (ino, SharedWindow::default()), |at| unopened.remove(at));
        if unopened.len() >= UNOPENED_MAX {
            unopened.remove(0);
        }
        unopened.push(entry.clone());
        Some(entry.1)
    }
}

/// A part of a directory: what a readdir at some offset may need next.
#[derive(Default)]
pub struct Window {
    /// Offset of the first entry.
    start: u64,
    /// The name before it.
    before: Option<FileName>,
    entries: Vec<Listed>,
    /// The directory ends with this window.
    last: bool,
    /// The epoch of the tree that the entries were listed in.
    epoch: u64,
}

impl Window {
    /// Moves so that the entry at `offset` is inside, or the directory has ended.
    pub async fn reach(&mut self, vfs: &Vfs, ino: u64, offset: u64, epoch: u64) -> Result<(), VfsError> {
        if offset == 0 || offset < self.start {
            *self = Self { epoch, ..Self::default() };
        }
        if self.epoch != epoch {
            // The tree has another base: what is ahead is listed anew, behind the last name that was given.
            let given = (offset - self.start).min(self.entries.len() as u64) as usize;
            let last = given.checked_sub(1).map(|at| self.entries[at].name.clone());
            let before = last.or(self.before.take());
            *self = Self { start: self.start + given as u64, before, entries: Vec::new(), last: false, epoch };
        }
        while offset >= self.start + self.entries.len() as u64 && !self.last {
            let before = self.entries.last().map(|entry| entry.name.clone()).or_else(|| self.before.clone());
            let next = vfs.list(ino, before.as_ref(), LIST_STEP).await?;
            *self = Self {
                start: self.start + self.entries.len() as u64,
                before,
                last: next.is_empty(),
                entries: next,
                epoch,
            };
        }
        Ok(())
    }

    /// The entries from `offset` on, each with the offset of the next.
    pub fn from(&self, offset: u64) -> impl Iterator<Item = (u64, &Listed)> {
        let skip = offset.saturating_sub(self.start) as usize;
        (offset + 1..).zip(self.entries.iter().skip(skip))
    }
}

/// An answer to a readdir: the window that reaches `offset`, kept as it is until the reply is sent.
pub struct Listing {
    /// The directory.
    pub ino: u64,
    /// The window, which knows nothing of the dots.
    pub window: OwnedMutexGuard<Window>,
    /// Where the reply begins.
    pub offset: u64,
    /// Keeps the tree from getting another base meanwhile.
    pub pass: Option<crate::vfs::known::Pass>,
}

impl Listing {
    /// The offset in the window of what the kernel asks for.
    pub fn behind_dots(offset: u64) -> u64 {
        offset.saturating_sub(DOTS)
    }

    /// `.` and `..`, as far as the reply holds them: the offset of the next entry, number and name.
    pub fn dots(&self) -> impl Iterator<Item = (u64, u64, &'static str)> + use<> {
        let dots = [(1, self.ino, "."), (DOTS, UNKNOWN_INO, "..")];
        dots.into_iter().skip(self.offset.min(DOTS) as usize)
    }

    /// The other entries, each with the offset of the next.
    pub fn entries(&self) -> impl Iterator<Item = (u64, &Listed)> {
        let entries = self.window.from(Self::behind_dots(self.offset));
        entries.map(|(next, listed)| (next + DOTS, listed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_forgotten_when_it_is_removed_and_the_fixed_ones_have_no_place() {
        let handles = Handles::default();
        let text = handles.add(Handle::Text(Bytes::from_static(b"a"), Instant::now()));
        assert!(matches!(handles.get(text), Some(Handle::Text(..))));
        handles.remove(text);
        for handle in [text, IMMUTABLE, READER, WRITER] {
            assert!(handles.get(handle).is_none());
        }
        assert!(handles.open.lock().unwrap().is_empty());
    }

    #[test]
    fn an_unopened_directory_keeps_its_listing_until_others_push_it_out() {
        let handles = Handles::default();
        let first = handles.window(7, IMMUTABLE).unwrap();
        for ino in 100..100 + UNOPENED_MAX as u64 - 1 {
            handles.window(ino, IMMUTABLE);
        }
        assert!(Arc::ptr_eq(&first, &handles.window(7, IMMUTABLE).unwrap()));
        for ino in 200..200 + UNOPENED_MAX as u64 {
            handles.window(ino, IMMUTABLE);
        }
        assert!(!Arc::ptr_eq(&first, &handles.window(7, IMMUTABLE).unwrap()));
        assert!(handles.unopened.lock().unwrap().len() <= UNOPENED_MAX);
    }
}
