//! Requests in, replies out.
//!
//! Every request becomes a future of the vfs, polled once on the FUSE thread: ready means an inline reply; pending means
//! that the future *and the reply* move to the runtime. So what is in memory or on the local disk costs no task switch,
//! and the FUSE thread never waits for the network.
//!
//! # Invariants
//!
//! 1. Every request is answered exactly once, also when its handler panics.
//! 2. A caller that is killed while it waits is answered EINTR within two seconds; the work goes on without it, so a
//!    change is never half done.
//! 3. Errors are logged here and nowhere else.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use fuser::{
    AccessFlags, BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::waiters;
use crate::model::clock::Timestamp;
use crate::model::entry::{Body, FileKind};
use crate::model::job;
use crate::model::name::{FileName, NameError};
use crate::staging::tree::{Caller, SetAttr};
use crate::vfs::error::VfsError;
use crate::vfs::{Found, Listed, Make, Opened, Vfs};

/// Bytes of one write: requests of more are slower, they fall out of the second-level cache.
const WRITE_BYTES_MAX: u32 = 1 << 20;
/// Requests that the kernel may send in the background.
const BACKGROUND_MAX: u16 = 64;
/// Entries of a directory fetched in one step.
const LIST_STEP: usize = 2_048;

/// The kernel's counterpart.
pub struct Dispatch {
    vfs: Arc<Vfs>,
    runtime: tokio::runtime::Handle,
    handles: Arc<Mutex<HashMap<u64, Handle>>>,
    next_handle: AtomicU64,
}

#[derive(Clone)]
enum Handle {
    Plain,
    Writer,
    Text(Bytes),
    Directory(Arc<tokio::sync::Mutex<Window>>),
}

/// A part of a directory: what a readdir at some offset may need next.
#[derive(Default)]
struct Window {
    /// Offset of the first entry.
    start: u64,
    entries: Vec<Listed>,
    /// The directory ends with this window.
    last: bool,
}

impl Window {
    /// Moves so that the entry at `offset` is inside, or the directory has ended.
    async fn reach(&mut self, vfs: &Vfs, ino: u64, offset: u64) -> Result<(), VfsError> {
        if offset == 0 || offset < self.start {
            *self = Self::default();
        }
        while offset >= self.start + self.entries.len() as u64 && !self.last {
            let after = self.entries.last().map(|entry| entry.name.clone());
            let next = vfs.list(ino, after.as_ref(), LIST_STEP).await?;
            self.start += self.entries.len() as u64;
            self.last = next.is_empty();
            self.entries = next;
        }
        Ok(())
    }

    /// The entries from `offset` on, each with the offset of the next.
    fn from(&self, offset: u64) -> impl Iterator<Item = (u64, &Listed)> {
        let skip = offset.saturating_sub(self.start) as usize;
        (offset + 1..).zip(self.entries.iter().skip(skip))
    }
}

/// What a handler gives, and how a reply says it.
trait Answer<T>: Send + 'static {
    fn ok(self, value: T);
    fn refuse(self, errno: Errno);
}

macro_rules! answers {
    ($($reply:ty, $value:ty, |$me:ident, $it:ident| $say:expr;)*) => {$(
        impl Answer<$value> for $reply {
            fn ok(self, $it: $value) {
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
    ReplyEntry, Found, |me, found| me.entry(&found.ttl.duration(), &file_attr(&found), Generation(0));
    ReplyAttr, Found, |me, found| me.attr(&found.ttl.duration(), &file_attr(&found));
    ReplyEmpty, (), |me, _unit| me.ok();
    ReplyData, Bytes, |me, bytes| me.data(&bytes);
    ReplyWrite, u32, |me, count| me.written(count);
    ReplyOpen, (FileHandle, FopenFlags), |me, opened| me.opened(opened.0, opened.1);
    ReplyLseek, i64, |me, offset| me.offset(offset);
    ReplyIoctl, Vec<u8>, |me, data| me.ioctl(0, &data);
    ReplyCreate, (Found, FileHandle), |me, made| me.created(
        &made.0.ttl.duration(),
        &file_attr(&made.0),
        Generation(0),
        made.1,
        FopenFlags::FOPEN_KEEP_CACHE
    );
}

/// An xattr's value, or its length when the caller asks with no room.
struct XattrReply(ReplyXattr, u32);

impl Answer<Vec<u8>> for XattrReply {
    fn ok(self, value: Vec<u8>) {
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

struct Listing {
    window: Arc<tokio::sync::Mutex<Window>>,
    offset: u64,
}

impl Answer<Listing> for ReplyDirectory {
    fn ok(mut self, listing: Listing) {
        let Ok(window) = listing.window.try_lock() else { return self.error(Errno::EIO) };
        for (next, Listed { name, found }) in window.from(listing.offset) {
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
    fn ok(mut self, listing: Listing) {
        let Ok(window) = listing.window.try_lock() else { return self.error(Errno::EIO) };
        for (next, Listed { name, found }) in window.from(listing.offset) {
            let (ino, attr) = (INodeNo(found.attr.ino), file_attr(found));
            let name = OsStr::from_bytes(name.as_bytes());
            if self.add(ino, next, name, &found.ttl.duration(), &attr, Generation(0)) {
                break;
            }
        }
        ReplyDirectoryPlus::ok(self);
    }

    fn refuse(self, errno: Errno) {
        self.error(errno);
    }
}

struct StatfsReply(ReplyStatfs);

impl Answer<crate::local::sys::FileSystem> for StatfsReply {
    fn ok(self, found: crate::local::sys::FileSystem) {
        let (free, block) = (found.available, found.block_bytes);
        self.0.statfs(found.blocks, free, free, found.files, found.files_free, block, 255, block);
    }

    fn refuse(self, errno: Errno) {
        self.0.error(errno);
    }
}

impl Dispatch {
    /// A dispatcher of `vfs`, which moves what must wait to `runtime`.
    pub fn new(vfs: Arc<Vfs>, runtime: tokio::runtime::Handle) -> Self {
        Self { vfs, runtime, handles: Arc::default(), next_handle: AtomicU64::new(1) }
    }

    /// Answers now if the future is ready, else later.
    fn answer<T, F, R>(&self, request: &Request, future: F, reply: R)
    where
        T: Send + 'static,
        F: Future<Output = Result<T, VfsError>> + Send + 'static,
        R: Answer<T>,
    {
        let mut future = Box::pin(future);
        let _runtime = self.runtime.enter();
        let mut context = Context::from_waker(Waker::noop());
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut context)));
        match polled {
            Ok(Poll::Ready(outcome)) => finish(&self.vfs, outcome, reply),
            Ok(Poll::Pending) => {
                let (vfs, tid) = (self.vfs.clone(), request.pid());
                self.runtime.spawn(wait(vfs, tid, self.runtime.spawn(future), reply));
            }
            Err(_) => {
                tracing::error!("a request's handler panicked: this is a bug");
                reply.refuse(Errno::EIO);
            }
        }
    }

    fn handle(&self, handle: Handle) -> FileHandle {
        let number = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.handles.lock().expect("nothing panics while it holds the handles").insert(number, handle);
        FileHandle(number)
    }

    fn known(&self, handle: FileHandle) -> Option<Handle> {
        self.handles.lock().expect("nothing panics while it holds the handles").get(&handle.0).cloned()
    }

    fn list<R: Answer<Listing>>(&self, request: &Request, ino: INodeNo, handle: FileHandle, offset: u64, reply: R) {
        let Some(Handle::Directory(window)) = self.known(handle) else { return reply.refuse(Errno::EBADF) };
        let vfs = self.vfs.clone();
        let future = async move {
            window.lock().await.reach(&vfs, ino.0, offset).await?;
            Ok(Listing { window, offset })
        };
        self.answer(request, future, reply);
    }
}

/// Waits for what could not be answered at once; a caller that dies meanwhile is let go.
async fn wait<T, R>(vfs: Arc<Vfs>, tid: u32, mut task: tokio::task::JoinHandle<Result<T, VfsError>>, reply: R)
where
    T: Send + 'static,
    R: Answer<T>,
{
    loop {
        match tokio::time::timeout(Duration::from_secs(1), &mut task).await {
            Ok(Ok(outcome)) => return finish(&vfs, outcome, reply),
            Ok(Err(_)) => {
                tracing::error!("a request's handler panicked: this is a bug");
                return reply.refuse(Errno::EIO);
            }
            Err(_) if waiters::is_dying(tid) => return reply.refuse(Errno::EINTR),
            Err(_) => {}
        }
    }
}

fn finish<T, R: Answer<T>>(vfs: &Vfs, outcome: Result<T, VfsError>, reply: R) {
    match outcome {
        Ok(value) => reply.ok(value),
        Err(error) => {
            let errno = error.errno();
            // What a program meets every day is its own business; what points at a disk, a store or damage is told.
            if error.is_worth_telling() {
                tracing::warn!(%error, "refused");
                vfs.note_error(&error.to_string());
            }
            reply.refuse(Errno::from_i32(errno));
        }
    }
}

fn file_name(name: &OsStr) -> Result<FileName, Errno> {
    FileName::new(name.as_bytes().to_vec()).map_err(|why| match why {
        NameError::TooLong { .. } => Errno::ENAMETOOLONG,
        _ => Errno::EINVAL,
    })
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
fn timestamp(time: SystemTime) -> Timestamp {
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
        blocks: attr.size.div_ceil(512),
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

fn caller(request: &Request, umask: u32) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), umask }
}

macro_rules! name_or {
    ($name:expr, $reply:expr) => {
        match file_name($name) {
            Ok(name) => name,
            Err(errno) => return $reply.error(errno),
        }
    };
}

impl Filesystem for Dispatch {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        for wanted in [
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_BIG_WRITES,
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_MAX_PAGES,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            InitFlags::FUSE_ATOMIC_O_TRUNC,
        ] {
            // An older kernel that lacks one does without.
            let _ = config.add_capabilities(wanted);
        }
        let _ = config.set_max_write(WRITE_BYTES_MAX);
        let _ = config.set_max_readahead(WRITE_BYTES_MAX);
        let _ = config.set_max_background(BACKGROUND_MAX);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name_or!(name, reply);
        let vfs = self.vfs.clone();
        self.answer(request, async move { vfs.lookup(parent.0, &name).await }, reply);
    }

    fn forget(&self, _request: &Request, _ino: INodeNo, _lookups: u64) {}

    fn getattr(&self, request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        let vfs = self.vfs.clone();
        self.answer(request, async move { vfs.getattr(ino.0).await }, reply);
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let vfs = self.vfs.clone();
        let instant = |time: TimeOrNow| match time {
            TimeOrNow::SpecificTime(time) => timestamp(time),
            TimeOrNow::Now => vfs.store().clock.now(),
        };
        let (atime, mtime) = (atime.map(instant), mtime.map(instant));
        // A change of owner or length by an ordinary user takes set-user-id away; the kernel leaves that to us.
        let kill_privileges =
            (uid.is_some() || gid.is_some() || size.is_some()) && mode.is_none() && request.uid() != 0;
        let permissions = mode.map(|mode| (mode & 0o7777) as u16);
        let set = SetAttr { permissions, uid, gid, size, atime, mtime, kill_privileges };
        self.answer(request, async move { vfs.setattr(ino.0, set).await }, reply);
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        let vfs = self.vfs.clone();
        self.answer(request, async move { vfs.readlink(ino.0).await }, reply);
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let what = match mode & libc::S_IFMT {
            0 | libc::S_IFREG => Make::File,
            libc::S_IFIFO => Make::Special(Body::Fifo),
            libc::S_IFSOCK => Make::Special(Body::Socket),
            libc::S_IFCHR => Make::Special(Body::CharDevice(rdev)),
            libc::S_IFBLK => Make::Special(Body::BlockDevice(rdev)),
            _ => return reply.error(Errno::EINVAL),
        };
        self.make(request, parent, name, mode, umask, what, reply);
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        self.make(request, parent, name, mode, umask, Make::Directory, reply);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let target = Bytes::copy_from_slice(target.as_os_str().as_bytes());
        self.make(request, parent, name, 0o777, 0, Make::Symlink(target), reply);
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name_or!(name, reply);
        let vfs = self.vfs.clone();
        self.answer(request, async move { vfs.unlink(parent.0, &name).await }, reply);
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name_or!(name, reply);
        let vfs = self.vfs.clone();
        self.answer(request, async move { vfs.rmdir(parent.0, &name).await }, reply);
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        to_parent: INodeNo,
        to_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (from, to) = (name_or!(name, reply), name_or!(to_name, reply));
        if flags.contains(RenameFlags::RENAME_WHITEOUT) {
            return reply.error(Errno::EINVAL);
        }
        let no_replace = flags.contains(RenameFlags::RENAME_NOREPLACE);
        let exchange = flags.contains(RenameFlags::RENAME_EXCHANGE);
        let vfs = self.vfs.clone();
        let future = async move { vfs.rename((parent.0, &from), (to_parent.0, &to), no_replace, exchange).await };
        self.answer(request, future, reply);
    }

    fn link(&self, request: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name_or!(name, reply);
        let vfs = self.vfs.clone();
        self.answer(request, async move { vfs.link(ino.0, parent.0, &name).await }, reply);
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let vfs = self.vfs.clone();
        let for_writing = flags.0 & libc::O_ACCMODE != libc::O_RDONLY;
        let truncate = flags.0 & libc::O_TRUNC != 0;
        let handles = self.handles.clone();
        let handle = self.handle(Handle::Plain);
        let future = async move {
            let opened = open(&vfs, ino.0, for_writing, truncate).await;
            let mut handles = handles.lock().expect("nothing panics while it holds the handles");
            match opened {
                Ok((kind, flags)) => {
                    handles.insert(handle.0, kind);
                    Ok((handle, flags))
                }
                Err(error) => {
                    handles.remove(&handle.0);
                    Err(error)
                }
            }
        };
        self.answer(request, future, reply);
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let name = name_or!(name, reply);
        let (vfs, caller) = (self.vfs.clone(), caller(request, umask));
        let handle = self.handle(Handle::Writer);
        let future = async move {
            let found = vfs.make(parent.0, &name, (mode & 0o7777) as u16, Make::File, caller).await?;
            vfs.open(found.attr.ino, true).await?;
            vfs.count_writer(found.attr.ino, true);
            Ok((found, handle))
        };
        self.answer(request, future, reply);
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if let Some(Handle::Text(text)) = self.known(handle) {
            let start = (offset as usize).min(text.len());
            return reply.data(&text[start..(start + size as usize).min(text.len())]);
        }
        let vfs = self.vfs.clone();
        let range = offset..offset.saturating_add(size.into());
        self.answer(request, async move { vfs.read(ino.0, range).await }, reply);
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let vfs = self.vfs.clone();
        let data = Bytes::copy_from_slice(data);
        let append = flags.0 & libc::O_APPEND != 0 && !write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let kill = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let future = async move {
            vfs.write(ino.0, offset, &data, append, kill).await?;
            Ok(data.len() as u32)
        };
        self.answer(request, future, reply);
    }

    fn flush(&self, _request: &Request, _ino: INodeNo, _handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let known = self.handles.lock().expect("nothing panics while it holds the handles").remove(&handle.0);
        if matches!(known, Some(Handle::Writer)) {
            self.vfs.count_writer(ino.0, false);
        }
        if matches!(known, Some(Handle::Text(_))) {
            return reply.ok();
        }
        let vfs = self.vfs.clone();
        self.answer(request, async move { vfs.release(ino.0).await }, reply);
    }

    fn fsync(&self, request: &Request, ino: INodeNo, _handle: FileHandle, _data: bool, reply: ReplyEmpty) {
        let vfs = self.vfs.clone();
        self.answer(request, async move { vfs.fsync(ino.0).await }, reply);
    }

    fn fsyncdir(&self, request: &Request, ino: INodeNo, _handle: FileHandle, _data: bool, reply: ReplyEmpty) {
        let vfs = self.vfs.clone();
        self.answer(request, async move { vfs.fsync(ino.0).await }, reply);
    }

    fn opendir(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let vfs = self.vfs.clone();
        let caller = caller(request, 0);
        let handle = self.handle(Handle::Directory(Arc::default()));
        // sync(1) of coreutils, busybox and uutils opens PATH so, and none of 32 other commands does.
        let gesture = libc::O_NONBLOCK | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_PATH;
        let is_sync = flags.0 & gesture == libc::O_NONBLOCK;
        let future = async move {
            if is_sync && vfs.is_commit_gesture(ino.0, caller).await {
                vfs.commit(ino.0).await?;
            }
            Ok((handle, FopenFlags::empty()))
        };
        self.answer(request, future, reply);
    }

    fn readdir(&self, request: &Request, ino: INodeNo, handle: FileHandle, offset: u64, reply: ReplyDirectory) {
        self.list(request, ino, handle, offset, reply);
    }

    fn readdirplus(&self, request: &Request, ino: INodeNo, handle: FileHandle, offset: u64, reply: ReplyDirectoryPlus) {
        self.list(request, ino, handle, offset, reply);
    }

    fn releasedir(&self, _request: &Request, _ino: INodeNo, handle: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.handles.lock().expect("nothing panics while it holds the handles").remove(&handle.0);
        reply.ok();
    }

    fn statfs(&self, request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let vfs = self.vfs.clone();
        self.answer(request, async move { vfs.statfs() }, StatfsReply(reply));
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let (vfs, name, value) = (self.vfs.clone(), name.as_bytes().to_vec(), value.to_vec());
        let (create, replace) = (flags & libc::XATTR_CREATE != 0, flags & libc::XATTR_REPLACE != 0);
        self.answer(request, async move { vfs.setxattr(ino.0, &name, &value, create, replace).await }, reply);
    }

    fn getxattr(&self, request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let (vfs, name) = (self.vfs.clone(), name.as_bytes().to_vec());
        self.answer(request, async move { vfs.getxattr(ino.0, &name).await }, XattrReply(reply, size));
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let vfs = self.vfs.clone();
        let future = async move {
            let names = vfs.listxattr(ino.0).await?;
            Ok(names.into_iter().flat_map(|name| name.into_iter().chain([0])).collect())
        };
        self.answer(request, future, XattrReply(reply, size));
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (vfs, name) = (self.vfs.clone(), name.as_bytes().to_vec());
        self.answer(request, async move { vfs.removexattr(ino.0, &name).await }, reply);
    }

    fn access(&self, _request: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // default_permissions: the kernel decides, and need not ask again.
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        _flags: IoctlFlags,
        command: u32,
        input: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        let (vfs, caller) = (self.vfs.clone(), caller(request, 0));
        match command {
            job::SUBMIT => {
                let Some(verb) = job::decode::<job::Verb>(input) else { return reply.error(Errno::EINVAL) };
                let future = async move {
                    if caller.uid != 0 && !vfs.may_write(ino.0, caller).await {
                        return Err(VfsError::NotPermitted);
                    }
                    encoded(job::encode(&vfs.submit(ino.0, verb)?))
                };
                self.answer(request, future, reply);
            }
            job::WAIT => {
                let Some(job) = job::decode::<job::Job>(input) else { return reply.error(Errno::EINVAL) };
                self.answer(request, async move { encoded(job::encode(&vfs.wait(job).await?)) }, reply);
            }
            _ => reply.error(Errno::ENOTTY),
        }
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let zero = mode & libc::FALLOC_FL_ZERO_RANGE != 0;
        let punch = mode & libc::FALLOC_FL_PUNCH_HOLE != 0;
        let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        let known = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let Some(end) = offset.checked_add(length) else { return reply.error(Errno::EFBIG) };
        if mode & !known != 0 {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let vfs = self.vfs.clone();
        let future = async move { vfs.allocate(ino.0, offset..end, zero || punch, keep_size).await };
        self.answer(request, future, reply);
    }

    fn lseek(&self, request: &Request, ino: INodeNo, _handle: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let vfs = self.vfs.clone();
        let future = async move {
            let size = vfs.getattr(ino.0).await?.attr.size as i64;
            match whence {
                // Everything before the end is data, which lseek(2) allows of any file system.
                libc::SEEK_DATA if offset < size => Ok(offset),
                libc::SEEK_HOLE if offset < size => Ok(size),
                _ => Err(VfsError::PastTheEnd),
            }
        };
        self.answer(request, future, reply);
    }
}

impl Dispatch {
    #[allow(clippy::too_many_arguments, reason = "one place for mknod, mkdir and symlink, which have these")]
    fn make(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        what: Make,
        reply: ReplyEntry,
    ) {
        let name = name_or!(name, reply);
        let (vfs, caller) = (self.vfs.clone(), caller(request, umask));
        let permissions = (mode & 0o7777) as u16;
        self.answer(request, async move { vfs.make(parent.0, &name, permissions, what, caller).await }, reply);
    }
}

async fn open(vfs: &Vfs, ino: u64, for_writing: bool, truncate: bool) -> Result<(Handle, FopenFlags), VfsError> {
    Ok(match vfs.open(ino, for_writing).await? {
        Opened::Immutable => (Handle::Plain, FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH),
        Opened::Staged => {
            if truncate && for_writing {
                vfs.setattr(ino, SetAttr { size: Some(0), ..SetAttr::default() }).await?;
            }
            if for_writing {
                vfs.count_writer(ino, true);
            }
            (if for_writing { Handle::Writer } else { Handle::Plain }, FopenFlags::FOPEN_KEEP_CACHE)
        }
        Opened::Text(text) => (Handle::Text(text), FopenFlags::FOPEN_DIRECT_IO),
        Opened::Control => (Handle::Text(Bytes::new()), FopenFlags::FOPEN_DIRECT_IO),
    })
}

fn encoded(buffer: Option<[u8; job::BUFFER_BYTES]>) -> Result<Vec<u8>, VfsError> {
    let buffer = buffer.ok_or_else(|| VfsError::Failed("an answer of over 4 KiB".to_owned()))?;
    Ok(buffer.to_vec())
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
