//! How each kind of reply says what a handler gave.
//!
//! An entry that a reply hands out is counted here (see [`crate::vfs::known`]), under the pass that came with it.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use fuser::{
    Errno, FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr,
};

use super::handles::{Handles, Listing, WRITER};
use crate::model::clock::Timestamp;
use crate::model::entry::FileKind;
use crate::vfs::known::Pass;
use crate::vfs::{Found, Listed, Looked, Vfs};

/// What a handler gives, and how a reply says it.
pub trait Answer<T>: Send + 'static {
    /// Says it.
    fn ok(self, vfs: &Vfs, value: T);

    /// Says that it was refused.
    fn refuse(self, errno: Errno);
}

/// What a handler gives when nobody waits for it any more: whatever it opened is closed again.
pub trait Abandon: Send + 'static {
    /// Undoes what only an answer would have given to the kernel.
    fn abandon(self, vfs: Arc<Vfs>, handles: &Handles)
    where
        Self: Sized,
    {
        let _ = (vfs, handles);
    }
}

macro_rules! nothing_to_abandon {
    ($($value:ty),*) => { $(impl Abandon for $value {})* };
}

nothing_to_abandon!(Found, Given<Found>, Given<Looked>, (), Bytes, Vec<Bytes>, u32, i64, Vec<u8>, Listing);
nothing_to_abandon!(crate::local::sys::FileSystem);

/// An answer that hands out an entry, with the pass it was worked out under.
pub struct Given<T> {
    /// The answer.
    pub value: T,
    /// Nothing outside a staging tree needs one.
    pub pass: Option<Pass>,
}

/// A file or directory that was opened.
pub struct OpenedHandle {
    /// The inode.
    pub ino: u64,
    /// Its handle.
    pub handle: FileHandle,
    /// What the kernel may do with it.
    pub flags: FopenFlags,
    /// Whether somebody counts this open.
    pub is_counted: bool,
}

impl Abandon for OpenedHandle {
    fn abandon(self, vfs: Arc<Vfs>, handles: &Handles) {
        handles.remove(self.handle);
        if self.handle == WRITER {
            vfs.count_writer(self.ino, false);
        }
        if self.is_counted {
            tokio::spawn(async move {
                // What fails here fails at the next use of the tree, and is reported there.
                let _ = vfs.release(self.ino).await;
            });
        }
    }
}

/// A file that was made and opened.
pub struct Created {
    /// The entry.
    pub given: Given<Found>,
    /// Its handle.
    pub opened: OpenedHandle,
}

impl Abandon for Created {
    fn abandon(self, vfs: Arc<Vfs>, handles: &Handles) {
        self.opened.abandon(vfs, handles);
    }
}

macro_rules! answers {
    ($($reply:ty, $value:ty, |$me:ident, $vfs:ident, $it:ident| $say:expr;)*) => {$(
        impl Answer<$value> for $reply {
            fn ok(self, $vfs: &Vfs, $it: $value) {
                let $me = self;
                $say
            }

            fn refuse(self, errno: Errno) {
                self.error(errno);
            }
        }
    )*};
}

answers! {
    ReplyEntry, Given<Found>, |me, vfs, given| entry(me, vfs, &given.value);
    ReplyEntry, Given<Looked>, |me, vfs, given| match given.value {
        Looked::Found(found) => entry(me, vfs, &found),
        // Number 0: there is no such name, and for so long the kernel need not ask again.
        Looked::Absent(ttl) => me.entry(&ttl, &no_attr(), Generation(0)),
    };
    ReplyAttr, Found, |me, _vfs, found| me.attr(&found.ttl.duration(), &file_attr(&found));
    ReplyEmpty, (), |me, _vfs, _unit| me.ok();
    ReplyData, Bytes, |me, _vfs, bytes| me.data(&bytes);
    ReplyData, Vec<Bytes>, |me, _vfs, parts| data(me, &parts);
    ReplyWrite, u32, |me, _vfs, count| me.written(count);
    ReplyOpen, OpenedHandle, |me, _vfs, opened| me.opened(opened.handle, opened.flags);
    ReplyLseek, i64, |me, _vfs, offset| me.offset(offset);
    ReplyIoctl, Vec<u8>, |me, _vfs, data| me.ioctl(0, &data);
    ReplyCreate, Created, |me, vfs, made| created(me, vfs, &made);
}

fn entry(reply: ReplyEntry, vfs: &Vfs, found: &Found) {
    vfs.remember(found.attr.ino);
    reply.entry(&found.ttl.duration(), &file_attr(found), Generation(0));
}

fn created(reply: ReplyCreate, vfs: &Vfs, made: &Created) {
    let found = &made.given.value;
    vfs.remember(found.attr.ino);
    let (ttl, opened) = (found.ttl.duration(), &made.opened);
    reply.created(&ttl, &file_attr(found), Generation(0), opened.handle, opened.flags);
}

/// A reply is one slice: parts are put together in a buffer that each thread keeps.
fn data(reply: ReplyData, parts: &[Bytes]) {
    thread_local! {
        static WHOLE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    match parts {
        [] => reply.data(&[]),
        [part] => reply.data(part),
        _ => WHOLE.with_borrow_mut(|whole| {
            whole.clear();
            parts.iter().for_each(|part| whole.extend_from_slice(part));
            reply.data(whole);
        }),
    }
}

/// An xattr's value, or its length when the caller asks with no room.
pub struct XattrReply(pub ReplyXattr, pub u32);

impl Answer<Vec<u8>> for XattrReply {
    fn ok(self, _vfs: &Vfs, value: Vec<u8>) {
        match self.1 {
            0 => self.0.size(value.len() as u32),
            room if value.len() > room as usize => self.0.error(Errno::ERANGE),
            _ => self.0.data(&value),
        }
    }

    fn refuse(self, errno: Errno) {
        self.0.error(errno);
    }
}

impl Answer<Listing> for ReplyDirectory {
    fn ok(mut self, _vfs: &Vfs, listing: Listing) {
        for (next, ino, name) in listing.dots() {
            if self.add(INodeNo(ino), next, FileType::Directory, OsStr::new(name)) {
                return ReplyDirectory::ok(self);
            }
        }
        for (next, Listed { name, found }) in listing.entries() {
            let kind = file_type(found.attr.kind);
            if self.add(INodeNo(found.attr.ino), next, kind, OsStr::from_bytes(name.as_bytes())) {
                break;
            }
        }
        ReplyDirectory::ok(self);
    }

    fn refuse(self, errno: Errno) {
        self.error(errno);
    }
}

impl Answer<Listing> for ReplyDirectoryPlus {
    fn ok(mut self, vfs: &Vfs, listing: Listing) {
        for (next, ino, name) in listing.dots() {
            // The kernel counts no lookup of these, and takes nothing of them but number and kind.
            let attr = FileAttr { ino: INodeNo(ino), kind: FileType::Directory, ..no_attr() };
            if self.add(INodeNo(ino), next, OsStr::new(name), &Duration::ZERO, &attr, Generation(0)) {
                return ReplyDirectoryPlus::ok(self);
            }
        }
        for (next, Listed { name, found }) in listing.entries() {
            let (ino, attr) = (INodeNo(found.attr.ino), file_attr(found));
            let name = OsStr::from_bytes(name.as_bytes());
            if self.add(ino, next, name, &found.ttl.duration(), &attr, Generation(0)) {
                break;
            }
            vfs.remember(found.attr.ino);
        }
        ReplyDirectoryPlus::ok(self);
    }

    fn refuse(self, errno: Errno) {
        self.error(errno);
    }
}

/// The numbers of a file system.
pub struct StatfsReply(pub ReplyStatfs);

impl Answer<crate::local::sys::FileSystem> for StatfsReply {
    fn ok(self, _vfs: &Vfs, found: crate::local::sys::FileSystem) {
        let (free, block) = (found.available, found.block_bytes);
        self.0.statfs(found.blocks, free, free, found.files, found.files_free, block, 255, block);
    }

    fn refuse(self, errno: Errno) {
        self.0.error(errno);
    }
}

fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

/// An instant as std has it; those that std cannot hold become 1970.
fn system_time(time: Timestamp) -> SystemTime {
    let whole = Duration::from_secs(time.secs.unsigned_abs());
    let start = if time.secs < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    start.and_then(|start| start.checked_add(Duration::from_nanos(time.nanos.into()))).unwrap_or(UNIX_EPOCH)
}

/// An instant as fuser 0.18 hands it over. Before 1970 it subtracts the nanoseconds instead of adding them: undone here.
pub fn timestamp(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => Timestamp { secs: since.as_secs() as i64, nanos: since.subsec_nanos() },
        Err(before) => {
            let before = before.duration();
            Timestamp { secs: -(before.as_secs() as i64), nanos: before.subsec_nanos() }
        }
    }
}

fn file_attr(found: &Found) -> FileAttr {
    let attr = &found.attr;
    let mtime = system_time(attr.attributes.mtime);
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime,
        ctime: system_time(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(attr.kind),
        perm: attr.attributes.permissions,
        nlink: attr.nlink,
        uid: attr.attributes.uid,
        gid: attr.attributes.gid,
        rdev: attr.rdev,
        blksize: 4096,
        flags: 0,
    }
}

/// The attributes of no entry: the kernel looks at nothing but the number.
fn no_attr() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_before_1970_survives_fusers_decoding() {
        // fuser 0.18 makes EPOCH − (5 s + 300 ns) of seconds −5 and nanoseconds 300.
        let decoded = UNIX_EPOCH - Duration::new(5, 300);
        let time = timestamp(decoded);
        assert_eq!(time, Timestamp { secs: -5, nanos: 300 });
        assert_eq!(system_time(time), UNIX_EPOCH - Duration::from_secs(5) + Duration::from_nanos(300));
        let later = Timestamp { secs: 7, nanos: 9 };
        assert_eq!(timestamp(system_time(later)), later);
    }
}
