//! System calls that std does not have. The only `unsafe` of the library.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// What every FUSE daemon talks through.
const FUSE_DEVICE: &str = "/dev/fuse";

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

/// Frees the bytes `offset..offset + len` of a file; they read as zeros (fallocate(2), PUNCH_HOLE).
pub fn punch_hole(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: the descriptor is open for as long as `file` is borrowed; no memory is passed.
    check(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as libc::off_t, len as libc::off_t) })
}

/// Where a hole, or else data, begins at `offset` or behind it (lseek(2)); `None` behind the end, or where no data follows.
/// The file's own offset moves: it has to be one that is read and written at given offsets only.
pub fn seek_region(file: &File, offset: u64, is_hole: bool) -> io::Result<Option<u64>> {
    let whence = if is_hole { libc::SEEK_HOLE } else { libc::SEEK_DATA };
    // SAFETY: the descriptor is open for as long as `file` is borrowed; no memory is passed.
    let found = unsafe { libc::lseek(file.as_raw_fd(), offset as libc::off_t, whence) };
    if found >= 0 {
        return Ok(Some(found as u64));
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::ENXIO) { Ok(None) } else { Err(error) }
}

/// Asks the disk to begin writing those bytes, without waiting for it (sync_file_range(2)). A hint: failing is no harm.
pub fn write_behind(file: &File, offset: u64, len: u64) {
    // SAFETY: the descriptor is open for as long as `file` is borrowed; no memory is passed.
    unsafe {
        libc::sync_file_range(
            file.as_raw_fd(),
            offset as libc::off64_t,
            len as libc::off64_t,
            libc::SYNC_FILE_RANGE_WRITE,
        )
    };
}

/// The next part of a file, from `from` on, that is no hole (lseek(2), SEEK_DATA); `None` at its end.
pub fn next_part(file: &File, from: u64) -> io::Result<Option<std::ops::Range<u64>>> {
    let seek = |from: u64, whence: libc::c_int| {
        // SAFETY: the descriptor is open for as long as `file` is borrowed; no memory is passed.
        let found = unsafe { libc::lseek(file.as_raw_fd(), from as libc::off_t, whence) };
        if found < 0 { Err(io::Error::last_os_error()) } else { Ok(found as u64) }
    };
    match seek(from, libc::SEEK_DATA) {
        Ok(start) => Ok(Some(start..seek(start, libc::SEEK_HOLE)?)),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Puts everything that was written to the file system under `file` on its disk (syncfs(2)).
pub fn sync_file_system(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open for as long as `file` is borrowed; no memory is passed.
    check(unsafe { libc::syncfs(file.as_raw_fd()) })
}

/// Sizes of a file system (statvfs(3)).
#[derive(Debug, Clone, Copy, Default)]
pub struct FileSystem {
    /// Bytes of a block.
    pub block_bytes: u32,
    /// All blocks.
    pub blocks: u64,
    /// Blocks free for everyone.
    pub available: u64,
    /// All inodes.
    pub files: u64,
    /// Free inodes.
    pub files_free: u64,
    /// The kind of file system (statfs(2), f_type).
    pub kind: i64,
}

/// The file system that `path` lies on.
pub fn file_system(path: &Path) -> io::Result<FileSystem> {
    let path = c_path(path)?;
    // SAFETY: all-zero bytes are a valid statfs; the kernel fills it in.
    let mut found: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: `path` is a NUL-terminated string and `found` a writable statfs, both alive during the call.
    check(unsafe { libc::statfs(path.as_ptr(), &mut found) })?;
    Ok(FileSystem {
        block_bytes: found.f_bsize as u32,
        blocks: found.f_blocks,
        available: found.f_bavail,
        files: found.f_files,
        files_free: found.f_ffree,
        kind: found.f_type,
    })
}

/// Mounts a FUSE file system of type `fuse.datamon` (mount(2)).
pub fn mount_fuse(source: &str, target: &Path, flags: u64, options: &str) -> io::Result<()> {
    let source = CString::new(source)?;
    let (target, kind, options) = (c_path(target)?, CString::new("fuse.datamon")?, CString::new(options)?);
    // SAFETY: four NUL-terminated strings that live during the call.
    check(unsafe {
        libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags as libc::c_ulong, options.as_ptr().cast())
    })
}

/// What a remount sets of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MountFlags {
    /// No changes.
    pub read_only: bool,
    /// Set-user-id programs run as their owner.
    pub suid: bool,
    /// Device nodes are devices.
    pub dev: bool,
    /// Programs run.
    pub exec: bool,
}

/// Gives the mount at `target` other flags (mount(2), MS_REMOUNT); what it does about access times stays.
pub fn remount(target: &Path, flags: MountFlags) -> io::Result<()> {
    let target = c_path(target)?;
    let wanted = [
        (flags.read_only, libc::MS_RDONLY),
        (!flags.suid, libc::MS_NOSUID),
        (!flags.dev, libc::MS_NODEV),
        (!flags.exec, libc::MS_NOEXEC),
    ];
    let flags =
        wanted.into_iter().filter(|(is_wanted, _)| *is_wanted).fold(libc::MS_REMOUNT, |all, (_, flag)| all | flag);
    let nothing = std::ptr::null();
    // SAFETY: a NUL-terminated string that lives during the call; a remount takes null for the others.
    check(unsafe { libc::mount(nothing, target.as_ptr(), nothing, flags, nothing.cast()) })
}

/// Detaches the mount at `target` (umount2(2)); `flags` as there.
pub fn umount(target: &Path, flags: i32) -> io::Result<()> {
    let target = c_path(target)?;
    // SAFETY: a NUL-terminated string that lives during the call.
    check(unsafe { libc::umount2(target.as_ptr(), flags) })
}

/// Effective user and group of this process.
pub fn identity() -> (u32, u32) {
    // SAFETY: these calls take nothing and cannot fail.
    unsafe { (libc::geteuid(), libc::getegid()) }
}

/// Lets this process open as many files as its owner allows (setrlimit(2)): a shell's soft limit is for programs that use
/// select(2).
pub fn raise_open_files() -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the limit is read and written for the length of the calls.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: as above.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) })
}

/// Leaves the caller's session, so that its terminal's signals no longer arrive (setsid(2)).
pub fn new_session() {
    // SAFETY: takes nothing; fails only for the leader of a process group, whose terminal is no one else's.
    unsafe { libc::setsid() };
}

/// Kills this very process at once, as a power cut would: for fault points.
pub fn kill_self() -> ! {
    // SAFETY: signals our own process; SIGKILL cannot be handled, so nothing runs after it.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    std::process::abort()
}

/// Whether a read(2) of this would find something now (poll(2)).
pub fn is_readable(file: &File) -> bool {
    let mut asked = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, alive and writable during the call, and the number says one; nothing is waited for.
    unsafe { libc::poll(&mut asked, 1, 0) > 0 }
}

/// How often this thread was put off its processor though it could go on (getrusage(2), `ru_nivcsw`).
pub fn times_put_off() -> u64 {
    // SAFETY: all-zero bytes are a valid rusage; the kernel fills it in.
    let mut used: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: a writable rusage that lives during the call.
    unsafe { libc::getrusage(libc::RUSAGE_THREAD, &mut used) };
    used.ru_nivcsw as u64
}

/// Keeps the allocator from holding on to what was freed (mallopt(3)): few arenas, and large buffers go back at once.
pub fn bound_heap() {
    const ARENAS: libc::c_int = 2;
    // Packs and runs of records are above this, single chunks below: they are used again and again.
    const LARGE_BYTES: libc::c_int = 2 << 20;
    // SAFETY: these calls take numbers only. What is refused leaves the allocator as it was.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BYTES);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 16 * LARGE_BYTES);
    }
}

/// One ioctl with a buffer of `N` bytes that goes in and comes out.
pub fn ioctl<const N: usize>(file: &File, request: u64, buffer: &mut [u8; N]) -> io::Result<()> {
    // SAFETY: the request number encodes a buffer of N bytes, which `buffer` is, alive and writable during the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request as libc::Ioctl, buffer.as_mut_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether an ioctl was refused because what it was asked of does not know it.
pub fn is_not_supported(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOTTY)
}

/// Whether it was refused to who asks: not by a file's mode, which is another word (EACCES).
pub fn is_not_permitted(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EPERM)
}

/// Whether something failed that should not have (EIO).
pub fn is_failed(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EIO)
}

/// Whether users who are neither its owner nor in its group may read the file.
pub fn is_open_to_others(file: &Path) -> bool {
    std::fs::metadata(file).is_ok_and(|found| found.mode() & 0o004 != 0)
}

/// Whether anything is open in the mount at `target`, or works in it (umount2(2), MNT_EXPIRE).
///
/// Marks a mount that is not in use as expired; the next look into it takes the mark away.
pub fn is_in_use(target: &Path) -> bool {
    umount(target, libc::MNT_EXPIRE).is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY))
}

/// Ends the connection of the FUSE mount at `target`: whoever waits there gets an error (umount2(2), MNT_FORCE;
/// `fuse_umount_begin` of fs/fuse/inode.c). The mount itself may stay.
pub fn abort_connection(target: &Path) -> io::Result<()> {
    umount(target, libc::MNT_FORCE)
}

/// Lets `child` be told when the thread that starts it ends (prctl(2), PR_SET_PDEATHSIG): see
/// [`wait_for_the_parents_end`]. It has a session of its own: no terminal ends it.
pub fn tell_of_the_parents_end(child: &mut Command) {
    // SAFETY: between fork and exec only calls that are safe in a signal handler are made; the set is a local.
    unsafe {
        child.pre_exec(|| {
            let set = parents_end();
            libc::setsid();
            check(libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()))?;
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGUSR1))
        })
    };
}

/// Waits for the end of the thread that started this process by [`tell_of_the_parents_end`].
pub fn wait_for_the_parents_end() {
    let (set, mut signal) = (parents_end(), 0);
    // SAFETY: both are locals that live during the call.
    unsafe { libc::sigwait(&set, &mut signal) };
}

fn parents_end() -> libc::sigset_t {
    // SAFETY: all-zero bytes are a valid sigset_t, which sigemptyset sets up; the calls get pointers to it.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGUSR1);
        set
    }
}

/// A descriptor of the place `path` itself, of whatever file system: nothing is asked of it, and it cannot be unmounted.
pub fn open_place(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_PATH).open(path)
}

/// Whether SIGKILL is among pending signals, as /proc/PID/status says them (`SigPnd`, `ShdPnd`).
pub fn is_kill_pending(signals: u64) -> bool {
    signals & (1 << (libc::SIGKILL - 1)) != 0
}

/// Opens /dev/fuse; an error names it.
pub fn open_fuse() -> io::Result<OwnedFd> {
    Ok(File::options().read(true).write(true).open(FUSE_DEVICE).map_err(of_fuse_device)?.into())
}

/// Refuses to go on where FUSE is not: of whoever opens the device for us (fusermount3) nobody would be told why.
pub fn find_fuse() -> io::Result<()> {
    std::fs::metadata(FUSE_DEVICE).map(drop).map_err(of_fuse_device)
}

fn of_fuse_device(why: io::Error) -> io::Error {
    io::Error::new(why.kind(), format!("{FUSE_DEVICE}: {why} (modprobe fuse makes it)"))
}

/// Takes over the descriptor `fd`, which this process inherited.
pub fn inherited(fd: i32) -> File {
    // SAFETY: the number was given to this process by its parent for this one use; nobody else owns it.
    unsafe { File::from_raw_fd(fd) }
}

/// Blocks SIGTERM, SIGINT and SIGHUP in this thread and those it starts, and answers a function that waits for one.
pub fn catch_termination() -> impl FnOnce() -> i32 + Send {
    // SAFETY: all-zero bytes are a valid sigset_t, which sigemptyset sets up; the calls get pointers to it.
    let set = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            libc::sigaddset(&mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        set
    };
    move || {
        let mut signal = 0;
        // SAFETY: `set` was set up above and `signal` is writable; both live during the call.
        unsafe { libc::sigwait(&set, &mut signal) };
        signal
    }
}

/// 128 random bits from the kernel (getrandom(2)).
pub fn random() -> u128 {
    let mut bytes = [0u8; 16];
    let mut filled = 0;
    while filled < bytes.len() {
        let rest = &mut bytes[filled..];
        // SAFETY: the pointer and length describe the rest of `bytes`.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        filled += usize::try_from(got).unwrap_or(0);
    }
    u128::from_le_bytes(bytes)
}
