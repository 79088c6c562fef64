//! Requests in, replies out: each of the kernel's requests becomes a future of the vfs, which [`super::work`] answers.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, INodeNo, InitFlags,
    IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
    Request, TimeOrNow, WriteFlags,
};

use super::handles::{Handle, Handles, IMMUTABLE, Listing, READER, SharedWindow, WRITER};
use super::pace::Pace;
use super::reply::{Abandon, Answer, Created, Given, OpenedHandle, StatfsReply, XattrReply, timestamp};
use super::waiters;
use super::work::{Timed, Touched, Work, finish};
use crate::model::entry::{Body, Region};
use crate::model::job;
use crate::model::metrics::Operation;
use crate::model::name::{FileName, NameError};
use crate::staging::tree::{Caller, SetAttr, StagingError};
use crate::vfs::control::RENDERED;
use crate::vfs::error::VfsError;
use crate::vfs::known::Pass;
use crate::vfs::namespace::Synced;
use crate::vfs::node::ROOT_INO;
use crate::vfs::xattrs::SetXattr;
use crate::vfs::{Allocate, Found, Make, Opened, Ttl, Vfs};

/// Bytes of one write: requests of more are slower, they fall out of the second-level cache.
const WRITE_BYTES_MAX: u32 = 1 << 20;
/// Requests that the kernel may send in the background.
const BACKGROUND_MAX: u16 = 64;
/// Why a mount with ACLs is refused.
const NO_ACLS: &str = "acl: this kernel's FUSE knows no POSIX ACLs (leave acl out)";

/// The kernel's counterpart.
pub struct Dispatch {
    vfs: Arc<Vfs>,
    handles: Arc<Handles>,
    work: Work,
    /// The kernel opens no files, or no directories: it was told to do without.
    opens_nothing: (bool, bool),
    /// The kernel lets everybody in and fuser refuses whom it should not (`allow_root`): see [`guarded`].
    is_guarded: bool,
    pace: Arc<Pace>,
}

impl Dispatch {
    /// A dispatcher of `vfs`, which moves what must wait to `runtime`. `is_guarded`: the kernel lets everybody in, and not
    /// everybody may come.
    pub fn new(vfs: Arc<Vfs>, runtime: tokio::runtime::Handle, is_guarded: bool) -> Self {
        let (handles, pace) = (Arc::<Handles>::default(), Arc::default());
        let work = Work::new(vfs.clone(), handles.clone(), runtime);
        Self { vfs, handles, work, opens_nothing: (false, false), is_guarded, pace }
    }

    /// How the thread that serves waits for the next request.
    pub fn pace(&self) -> Arc<Pace> {
        self.pace.clone()
    }

    /// Answers now if the future is ready, else later.
    fn answer<T, F, R>(&self, request: &Request, operation: Operation, future: F, reply: R)
    where
        T: Abandon,
        F: Future<Output = Result<T, VfsError>> + Send + 'static,
        R: Answer<T>,
    {
        self.answer_change(request, operation, Touched::new(), future, reply);
    }

    /// The same, of a request that changes these names.
    fn answer_change<T, F, R>(&self, request: &Request, operation: Operation, touched: Touched, future: F, reply: R)
    where
        T: Abandon,
        F: Future<Output = Result<T, VfsError>> + Send + 'static,
        R: Answer<T>,
    {
        let _paced = self.pace.request();
        let by = (request.pid(), operation);
        match touched.first().map(|(parent, _)| *parent) {
            Some(parent) if self.vfs.settings().synced >= Synced::Names => {
                let (vfs, handles) = (self.vfs.clone(), self.handles.clone());
                let future = async move { synced(&vfs, &handles, parent, future).await };
                self.work.answer(by, touched, future, reply);
            }
            _ => self.work.answer(by, touched, future, reply),
        }
    }

    /// The same, of a request that changes the inode `ino`.
    fn answer_inode_change<T, F, R>(&self, request: &Request, operation: Operation, ino: INodeNo, future: F, reply: R)
    where
        T: Abandon,
        F: Future<Output = Result<T, VfsError>> + Send + 'static,
        R: Answer<T>,
    {
        if self.vfs.settings().synced < Synced::All {
            return self.answer(request, operation, future, reply);
        }
        let (vfs, handles) = (self.vfs.clone(), self.handles.clone());
        self.answer(request, operation, async move { synced(&vfs, &handles, ino.0, future).await }, reply);
    }

    fn list<R: Answer<Listing>>(&self, request: &Request, ino: INodeNo, handle: FileHandle, offset: u64, reply: R) {
        let Some(window) = self.handles.window(ino.0, handle) else { return reply.refuse(Errno::EBADF) };
        let vfs = self.vfs.clone();
        let future = async move {
            let pass = vfs.enter(ino.0).await;
            let mut window = window.lock_owned().await;
            let epoch = pass.as_ref().map_or(0, Pass::epoch);
            window.reach(&vfs, ino.0, Listing::behind_dots(offset), epoch).await?;
            Ok(Listing { ino: ino.0, window, offset, pass })
        };
        self.answer(request, Operation::Readdir, future, reply);
    }
}

/// Puts what was changed on the disk before anybody is told.
async fn synced<T: Abandon>(
    vfs: &Arc<Vfs>,
    handles: &Handles,
    ino: u64,
    change: impl Future<Output = Result<T, VfsError>>,
) -> Result<T, VfsError> {
    let changed = change.await?;
    match vfs.fsync(ino).await {
        Ok(()) => Ok(changed),
        Err(error) => {
            changed.abandon(vfs.clone(), handles);
            Err(error)
        }
    }
}

/// What the kernel knows of the mount's root it must not keep when not everybody may come in: so every walk asks, as its
/// caller, and is refused there (fuser's `SessionACL`), whatever the kernel knows of names below.
fn guarded(is_guarded: bool, found: Found) -> Found {
    if is_guarded && found.attr.ino == ROOT_INO { Found { ttl: Ttl::None, ..found } } else { found }
}

fn file_name(name: &OsStr) -> Result<FileName, Errno> {
    FileName::new(name.as_bytes().to_vec()).map_err(|why| match why {
        NameError::TooLong { .. } => Errno::ENAMETOOLONG,
        _ => Errno::EINVAL,
    })
}

/// Whether the caller's changes take set-user-id away: root's do not (CAP_FSETID).
fn is_user(request: &Request) -> bool {
    request.uid() != 0
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
    // Not FUSE_ATOMIC_O_TRUNC: an open for reading that cuts would reach us before the kernel has looked whether the file is
    // a program that runs (ETXTBSY), and cut it.
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        for wanted in [
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_BIG_WRITES,
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_MAX_PAGES,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        ] {
            // An older kernel that lacks one does without.
            let _ = config.add_capabilities(wanted);
        }
        if self.vfs.settings().acl {
            // The umask is ours then: it has no part in what a default ACL gives.
            let wanted = InitFlags::FUSE_POSIX_ACL | InitFlags::FUSE_DONT_MASK;
            config.add_capabilities(wanted).map_err(|_| std::io::Error::other(NO_ACLS))?;
        }
        // A kernel that opens by itself lets everybody open.
        if self.vfs.is_all_immutable() && !self.is_guarded {
            let mut without = |capability| config.add_capabilities(capability).is_ok();
            self.opens_nothing =
                (without(InitFlags::FUSE_NO_OPEN_SUPPORT), without(InitFlags::FUSE_NO_OPENDIR_SUPPORT));
            // The texts of `.datamon` are cached as files are: their time says when they are others.
            without(InitFlags::FUSE_AUTO_INVAL_DATA);
        }
        let _ = config.set_max_write(WRITE_BYTES_MAX);
        let _ = config.set_max_readahead(WRITE_BYTES_MAX);
        let _ = config.set_max_background(BACKGROUND_MAX);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name_or!(name, reply);
        let vfs = self.vfs.clone();
        let future = async move {
            let pass = vfs.enter(parent.0).await;
            Ok(Given { value: vfs.look(parent.0, &name).await?, pass })
        };
        self.answer(request, Operation::Lookup, future, reply);
    }

    fn forget(&self, _request: &Request, ino: INodeNo, lookups: u64) {
        self.vfs.forget(ino.0, lookups);
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        let (vfs, is_guarded) = (self.vfs.clone(), self.is_guarded);
        let future = async move {
            // Not waited for: the kernel may hold the directory meanwhile.
            vfs.follow(ino.0, false).await;
            Ok(guarded(is_guarded, vfs.getattr(ino.0).await?))
        };
        self.answer(request, Operation::Getattr, future, reply);
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
        // A change of owner takes set-user-id away, one of the length when an ordinary user makes it; the kernel leaves
        // that to us.
        let is_cut_by_user = size.is_some() && is_user(request);
        let kill_privileges = mode.is_none() && (uid.is_some() || gid.is_some() || is_cut_by_user);
        let permissions = mode.map(|mode| (mode & 0o7777) as u16);
        let set = SetAttr { permissions, uid, gid, size, atime, mtime, kill_privileges };
        let is_guarded = self.is_guarded;
        let future = async move { Ok(guarded(is_guarded, vfs.setattr(ino.0, set).await?)) };
        self.answer_inode_change(request, Operation::Setattr, ino, future, reply);
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        let vfs = self.vfs.clone();
        self.answer(request, Operation::Readlink, async move { vfs.readlink(ino.0).await }, reply);
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
        let (vfs, caller) = (self.vfs.clone(), caller(request, 0));
        let touched = vec![(parent.0, name.clone())];
        let tid = request.pid();
        let future = async move { vfs.unlink(parent.0, &name, caller, tid).await };
        self.answer_change(request, Operation::Unlink, touched, future, reply);
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name_or!(name, reply);
        let (vfs, caller) = (self.vfs.clone(), caller(request, 0));
        let touched = vec![(parent.0, name.clone())];
        let tid = request.pid();
        let future = async move { vfs.rmdir(parent.0, &name, caller, tid).await };
        self.answer_change(request, Operation::Rmdir, touched, future, reply);
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
        let (vfs, caller) = (self.vfs.clone(), caller(request, 0));
        let touched = vec![(parent.0, from.clone()), (to_parent.0, to.clone())];
        let future =
            async move { vfs.rename((parent.0, &from), (to_parent.0, &to), no_replace, exchange, caller).await };
        self.answer_change(request, Operation::Rename, touched, future, reply);
    }

    fn link(&self, request: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name_or!(name, reply);
        let vfs = self.vfs.clone();
        let touched = vec![(parent.0, name.clone())];
        let future = async move {
            let pass = vfs.enter(parent.0).await;
            Ok(Given { value: vfs.link(ino.0, parent.0, &name).await?, pass })
        };
        self.answer_change(request, Operation::Link, touched, future, reply);
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if self.opens_nothing.0 {
            // Every file here never changes: the kernel opens by itself from now on.
            return reply.error(Errno::ENOSYS);
        }
        // O_TRUNC changes the file whatever else is asked for.
        let cut = (flags.0 & libc::O_TRUNC != 0).then(|| SetAttr {
            size: Some(0),
            kill_privileges: is_user(request),
            ..SetAttr::default()
        });
        let for_writing = flags.0 & libc::O_ACCMODE != libc::O_RDONLY || cut.is_some();
        if !for_writing && self.vfs.open_immutable(ino.0) {
            let _paced = self.pace.request();
            Timed::new(Operation::Open).end(&self.vfs, false);
            return reply.opened(IMMUTABLE, FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH);
        }
        let (vfs, handles, by) = (self.vfs.clone(), self.handles.clone(), (caller(request, 0), request.pid()));
        self.answer(
            request,
            Operation::Open,
            async move { open(&vfs, &handles, ino.0, for_writing, cut, by).await },
            reply,
        );
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let name = name_or!(name, reply);
        let (vfs, caller, handles) = (self.vfs.clone(), caller(request, umask), self.handles.clone());
        let (touched, tid) = (vec![(parent.0, name.clone())], request.pid());
        let future = async move {
            let pass = vfs.enter(parent.0).await;
            let made = vfs.make(parent.0, &name, (mode & 0o7777) as u16, Make::File, caller).await;
            let value = made.map_err(|error| match error {
                // The kernel knew of no such name. When it has looked it opens what is there, after a look at its mode.
                VfsError::Staging(StagingError::Exists) if flags & libc::O_EXCL == 0 => StagingError::LookAgain.into(),
                error => error,
            })?;
            let opened = open(&vfs, &handles, value.attr.ino, true, None, (caller, tid)).await?;
            Ok(Created { given: Given { value, pass }, opened })
        };
        self.answer_change(request, Operation::Create, touched, future, reply);
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
        let vfs = self.vfs.clone();
        if let Some(Handle::Text(text, made)) = self.handles.get(handle) {
            let part = move |text: Bytes| {
                let start = (offset as usize).min(text.len());
                text.slice(start..(start + size as usize).min(text.len()))
            };
            if offset > 0 || made.elapsed() < RENDERED {
                return reply.data(&part(text));
            }
            // Who begins again wants to know how it is now.
            let handles = self.handles.clone();
            let future = async move {
                let text = vfs.text_now(ino.0).await?;
                handles.renew(handle, &text);
                Ok(part(text))
            };
            return self.answer(request, Operation::Read, future, reply);
        }
        let (range, uid) = (offset..offset.saturating_add(size.into()), request.uid());
        self.answer(request, Operation::Read, async move { vfs.read(ino.0, range, uid).await }, reply);
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
        let append = flags.0 & libc::O_APPEND != 0 && !write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let kill = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        // The data lies in fuser's buffer until we return: what can be done at once needs no copy of it.
        let timed = Timed::new(Operation::Write);
        let is_to_be_synced = self.vfs.settings().synced == Synced::All;
        let now = || match is_to_be_synced {
            true => None,
            false => self.vfs.write_now(ino.0, offset, data, append, kill),
        };
        // Nobody may be there any more who could be told.
        let is_mapped = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let range = offset..offset + data.len() as u64;
        match catch_unwind(AssertUnwindSafe(now)) {
            Ok(Some(outcome)) => {
                if is_mapped && outcome.is_err() {
                    self.vfs.refused_mapped(ino.0, range);
                }
                let _paced = self.pace.request();
                finish(&self.vfs, timed, outcome.map(|()| data.len() as u32), reply);
                return;
            }
            Ok(None) => {}
            Err(_) => {
                tracing::error!("a request's handler panicked: this is a bug");
                return reply.error(Errno::EIO);
            }
        }
        let (vfs, data, caller) = (self.vfs.clone(), Bytes::copy_from_slice(data), caller(request, 0));
        let future = async move {
            let written = vfs.write(ino.0, offset, &data, (append, kill), caller).await;
            if is_mapped && written.is_err() {
                vfs.refused_mapped(ino.0, range);
            }
            written.map(|()| data.len() as u32)
        };
        self.answer_inode_change(request, Operation::Write, ino, future, reply);
    }

    fn copy_file_range(
        &self,
        request: &Request,
        from: INodeNo,
        _from_handle: FileHandle,
        start: u64,
        to: INodeNo,
        _to_handle: FileHandle,
        at: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let (vfs, by) = (self.vfs.clone(), (request.uid(), is_user(request)));
        let future = async move {
            let bytes = vfs.share((from.0, start), (to.0, at), len, by).await?;
            Ok(u32::try_from(bytes).expect("a copy is bounded below 4 GiB"))
        };
        self.answer_inode_change(request, Operation::Copy, to, future, reply);
    }

    fn flush(&self, _request: &Request, _ino: INodeNo, _handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        // Nothing is to be done at a close: the kernel need not say it again.
        reply.error(Errno::ENOSYS);
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
        if handle == IMMUTABLE {
            self.vfs.close_immutable(ino.0);
            let _paced = self.pace.request();
            return reply.ok();
        }
        if handle == WRITER {
            self.vfs.count_writer(ino.0, false);
        }
        if handle != WRITER && handle != READER {
            self.handles.remove(handle);
            return reply.ok();
        }
        let vfs = self.vfs.clone();
        self.answer(request, Operation::Release, async move { vfs.release(ino.0).await }, reply);
    }

    fn fsync(&self, request: &Request, ino: INodeNo, _handle: FileHandle, _data: bool, reply: ReplyEmpty) {
        let vfs = self.vfs.clone();
        self.answer(request, Operation::Fsync, async move { vfs.fsync(ino.0).await }, reply);
    }

    fn fsyncdir(&self, request: &Request, ino: INodeNo, _handle: FileHandle, _data: bool, reply: ReplyEmpty) {
        let vfs = self.vfs.clone();
        self.answer(request, Operation::Fsync, async move { vfs.fsync(ino.0).await }, reply);
    }

    fn opendir(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if self.opens_nothing.1 {
            return reply.error(Errno::ENOSYS);
        }
        let is_immutable = self.vfs.is_immutable(ino.0);
        self.vfs.opened_directory(ino.0, request.pid());
        let (vfs, handles) = (self.vfs.clone(), self.handles.clone());
        let (caller, tid) = (caller(request, 0), request.pid());
        // sync(1) of coreutils, busybox and uutils opens PATH so, and none of 32 other commands does.
        let gesture = libc::O_NONBLOCK | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_PATH;
        let is_sync = flags.0 & gesture == libc::O_NONBLOCK;
        let future = async move {
            if is_sync && vfs.is_commit_gesture(ino.0, caller, || waiters::groups(tid)).await {
                vfs.commit(ino.0, caller).await?;
            } else {
                vfs.follow(ino.0, true).await;
            }
            // What never changes the kernel may keep, and list without us.
            let kept = FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE;
            let flags = if is_immutable { kept } else { FopenFlags::empty() };
            let handle = handles.add(Handle::Directory(SharedWindow::default()));
            Ok(OpenedHandle { ino: ino.0, handle, flags, is_counted: false })
        };
        self.answer(request, Operation::Opendir, future, reply);
    }

    fn readdir(&self, request: &Request, ino: INodeNo, handle: FileHandle, offset: u64, reply: ReplyDirectory) {
        self.list(request, ino, handle, offset, reply);
    }

    fn readdirplus(&self, request: &Request, ino: INodeNo, handle: FileHandle, offset: u64, reply: ReplyDirectoryPlus) {
        self.list(request, ino, handle, offset, reply);
    }

    fn releasedir(&self, _request: &Request, _ino: INodeNo, handle: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.handles.remove(handle);
        reply.ok();
    }

    fn statfs(&self, request: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let vfs = self.vfs.clone();
        self.answer(request, Operation::Statfs, async move { vfs.statfs(ino.0).await }, StatfsReply(reply));
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
        let (caller, tid) = (caller(request, 0), request.pid());
        let future = async move {
            let set = SetXattr { name: &name, value: &value, create, replace };
            vfs.setxattr(ino.0, set, caller, || waiters::groups(tid)).await
        };
        self.answer_inode_change(request, Operation::Xattr, ino, future, reply);
    }

    fn getxattr(&self, request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let (vfs, name) = (self.vfs.clone(), name.as_bytes().to_vec());
        self.answer(
            request,
            Operation::Xattr,
            async move { vfs.getxattr(ino.0, &name).await },
            XattrReply(reply, size),
        );
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let vfs = self.vfs.clone();
        let future = async move {
            let names = vfs.listxattr(ino.0).await?;
            Ok(names.into_iter().flat_map(|name| name.into_iter().chain([0])).collect())
        };
        self.answer(request, Operation::Xattr, future, XattrReply(reply, size));
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (vfs, name) = (self.vfs.clone(), name.as_bytes().to_vec());
        let future = async move { vfs.removexattr(ino.0, &name).await };
        self.answer_inode_change(request, Operation::Xattr, ino, future, reply);
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
        let (vfs, caller, tid) = (self.vfs.clone(), caller(request, 0), request.pid());
        match command {
            job::SUBMIT => {
                let Some(verb) = job::decode::<job::Verb>(input) else { return reply.error(Errno::EINVAL) };
                let future = async move {
                    if !vfs.may_submit(ino.0, &verb, caller, || waiters::groups(tid)).await {
                        return Err(VfsError::NotPermitted);
                    }
                    encoded(job::encode(&vfs.submit(ino.0, verb, caller)?))
                };
                self.answer(request, Operation::Ioctl, future, reply);
            }
            job::WAIT => {
                let Some(job) = job::decode::<job::Job>(input) else { return reply.error(Errno::EINVAL) };
                self.answer(
                    request,
                    Operation::Ioctl,
                    async move { encoded(job::encode(&vfs.wait(job).await?)) },
                    reply,
                );
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
        let (vfs, how) = (self.vfs.clone(), Allocate { zero: zero || punch, keep_size, kill: is_user(request) });
        let future = async move { vfs.allocate(ino.0, offset..end, how).await };
        self.answer_inode_change(request, Operation::Allocate, ino, future, reply);
    }

    fn lseek(&self, request: &Request, ino: INodeNo, _handle: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let region = match whence {
            libc::SEEK_DATA => Region::Data,
            libc::SEEK_HOLE => Region::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        let vfs = self.vfs.clone();
        self.answer(request, Operation::Seek, async move { Ok(vfs.seek(ino.0, offset, region).await? as i64) }, reply);
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
        let touched = vec![(parent.0, name.clone())];
        let future = async move {
            let pass = vfs.enter(parent.0).await;
            Ok(Given { value: vfs.make(parent.0, &name, permissions, what, caller).await?, pass })
        };
        self.answer_change(request, Operation::Make, touched, future, reply);
    }
}

async fn open(
    vfs: &Arc<Vfs>,
    handles: &Handles,
    ino: u64,
    for_writing: bool,
    cut: Option<SetAttr>,
    (caller, tid): (Caller, u32),
) -> Result<OpenedHandle, VfsError> {
    let mut opened = OpenedHandle { ino, handle: IMMUTABLE, flags: FopenFlags::FOPEN_KEEP_CACHE, is_counted: false };
    match vfs.open(ino, for_writing, caller, || waiters::groups(tid)).await? {
        Opened::Immutable => {
            opened.flags |= FopenFlags::FOPEN_NOFLUSH;
            opened.is_counted = true;
        }
        Opened::Staged => {
            opened.handle = if for_writing { WRITER } else { READER };
            opened.is_counted = true;
            if let Some(cut) = cut
                && let Err(error) = vfs.setattr(ino, cut).await
            {
                opened.abandon(vfs.clone(), handles);
                return Err(error);
            }
        }
        Opened::Text(text) => {
            if cut.is_some() && for_writing {
                vfs.setattr(ino, SetAttr { size: Some(0), ..SetAttr::default() }).await?;
            }
            let text = if cut.is_some() { Bytes::new() } else { text };
            (opened.handle, opened.flags) =
                (handles.add(Handle::Text(text, Instant::now())), FopenFlags::FOPEN_DIRECT_IO);
        }
        // Nothing is to be kept for it.
        Opened::AsRead => opened.flags = FopenFlags::FOPEN_DIRECT_IO,
        Opened::Control => {
            (opened.handle, opened.flags) =
                (handles.add(Handle::Text(Bytes::new(), Instant::now())), FopenFlags::FOPEN_DIRECT_IO);
        }
    }
    Ok(opened)
}

fn encoded(buffer: Option<[u8; job::BUFFER_BYTES]>) -> Result<Vec<u8>, VfsError> {
    let buffer = buffer.ok_or_else(|| VfsError::Failed("an answer of over 4 KiB".to_owned()))?;
    Ok(buffer.to_vec())
}
