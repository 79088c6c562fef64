//! The mount and its session.
//!
//! Root mounts by its own mount(2) and serves the descriptor (ADR 3); an ordinary user goes through fusermount3.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fuser::{Config, INodeNo, MountOption, SessionACL};

use super::dispatch::Dispatch;
use super::waiters;
use crate::local::sys;
use crate::model::name::FileName;
use crate::vfs::Vfs;
use crate::vfs::follow::Kernel;
use crate::vfs::node::Ino;

/// KiB that the kernel reads ahead: more amplifies random touches of mapped files.
const READ_AHEAD_KIB: u32 = 1024;

/// `FUSE_NOTIFY_PRUNE` of linux/fuse.h.
const NOTIFY_PRUNE: i32 = 9;
/// Inodes named in one such message.
const PRUNE_INODES_MAX: usize = 4_096;

/// Who may look into a mount; whom it lets do what there is another question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Who mounted it.
    Owner,
    /// Root, too. The kernel does not know this one: it lets everybody in, and we refuse the rest.
    OwnerAndRoot,
    /// Everybody.
    All,
}

/// How and where to mount.
#[derive(Debug, Clone)]
pub struct MountConfig {
    /// What mountinfo shows: the source as it was given.
    pub source: String,
    /// The mount point.
    pub dir: PathBuf,
    /// No changes through this mount.
    pub read_only: bool,
    /// Who may look in.
    pub access: Access,
    /// Whether the kernel checks permissions.
    pub default_permissions: bool,
    /// Whether set-user-id programs run as their owner.
    pub suid: bool,
    /// Whether device nodes are devices.
    pub dev: bool,
    /// Whether programs run.
    pub exec: bool,
}

impl MountConfig {
    /// The flags of mount(2).
    fn flags(&self) -> u64 {
        let wanted = [
            (self.read_only, libc::MS_RDONLY),
            (!self.suid, libc::MS_NOSUID),
            (!self.dev, libc::MS_NODEV),
            (!self.exec, libc::MS_NOEXEC),
        ];
        wanted.into_iter().filter(|(is_wanted, _)| *is_wanted).fold(0, |flags, (_, flag)| flags | flag)
    }
}

/// A mount that has come up; its requests wait for [`Session::serve`].
pub struct Session {
    session: fuser::Session<Dispatch>,
    number: Option<String>,
}

/// Mounts, and answers the kernel's first word. Requests that wait move to `runtime`.
pub fn mount(vfs: Arc<Vfs>, config: &MountConfig, runtime: tokio::runtime::Handle) -> io::Result<Session> {
    let is_root = sys::identity().0 == 0;
    let is_guarded = config.access == Access::OwnerAndRoot && !is_root;
    let dispatch = Dispatch::new(vfs.clone(), runtime, is_guarded);
    let pace = dispatch.pace();
    let session = if is_root { own_mount(dispatch, config)? } else { user_mount(dispatch, config)? };
    let notifier = session.notifier();
    vfs.set_flush_mapped(Arc::new(move |open| {
        for ino in open {
            // A file that is no longer known to the kernel has no mapped pages.
            let _ = notifier.inval_inode(INodeNo(ino), 0, 0);
        }
    }));
    let device = session.as_fd().try_clone_to_owned()?;
    pace.watch(device.try_clone()?.into());
    let number = device_at(&config.dir);
    raise_read_ahead(number.as_deref());
    vfs.set_kernel(Arc::new(KernelCache {
        notifier: session.notifier(),
        device: device.into(),
        dir: config.dir.clone(),
        number: number.clone().unwrap_or_default(),
    }));
    Ok(Session { session, number })
}

/// The kernel's cache of names and inodes of this mount.
struct KernelCache {
    notifier: fuser::Notifier,
    /// The session's descriptor, for the words that fuser does not have.
    device: File,
    dir: PathBuf,
    /// The mount's file system, as `MAJ:MIN`.
    number: String,
}

impl Kernel for KernelCache {
    fn forget_names(&self, directory: Ino, names: &[FileName]) {
        for name in names {
            // What the kernel does not know it need not forget.
            let _ = self.notifier.inval_entry(INodeNo(directory), OsStr::from_bytes(name.as_bytes()));
        }
        let _ = self.notifier.inval_inode(INodeNo(directory), 0, 0);
    }

    fn forget_unused(&self, inos: &[Ino]) -> bool {
        // An older kernel refuses the first message.
        inos.chunks(PRUNE_INODES_MAX).all(|inos| (&self.device).write_all(&prune_message(inos)).is_ok())
    }

    fn forget_attributes(&self, ino: Ino) {
        // A place before the first byte means none of them (fuse_reverse_inval_inode of fs/fuse/inode.c).
        let _ = self.notifier.inval_inode(INodeNo(ino), -1, 0);
    }

    fn is_anyones_place(&self, path: &Path) -> bool {
        waiters::is_anyones_place_below(&self.dir.join(path))
    }

    fn is_ending(&self, daemon: u32) -> bool {
        let read = |what: &str| fs::read(format!("/proc/{daemon}/{what}")).unwrap_or_default();
        let table = String::from_utf8_lossy(&read("mountinfo")).into_owned();
        // A process that is being killed has no command line any more.
        !has_mount(&read("cmdline"), &table, &self.number)
    }
}

/// FUSE_NOTIFY_PRUNE (Linux 6.18), which fuser 0.18 does not have: `fuse_out_header` with the code in place of an errno,
/// `fuse_notify_prune_out`, and the inodes.
fn prune_message(inos: &[Ino]) -> Vec<u8> {
    const HEADER_BYTES: usize = 16 + 16;
    let mut message = Vec::with_capacity(HEADER_BYTES + 8 * inos.len());
    message.extend_from_slice(&((HEADER_BYTES + 8 * inos.len()) as u32).to_ne_bytes());
    message.extend_from_slice(&NOTIFY_PRUNE.to_ne_bytes());
    message.extend_from_slice(&0u64.to_ne_bytes());
    message.extend_from_slice(&(inos.len() as u32).to_ne_bytes());
    message.extend_from_slice(&[0; 12]);
    inos.iter().for_each(|ino| message.extend_from_slice(&ino.to_ne_bytes()));
    message
}

impl Session {
    /// The mount's file system, as `MAJ:MIN`.
    pub fn number(&self) -> Option<&str> {
        self.number.as_deref()
    }

    /// Serves until the mount is gone.
    pub fn serve(self) -> io::Result<()> {
        if sys::identity().0 == 0 {
            return self.session.run();
        }
        // fuser 0.18 takes a mount that has ended for one that lives (`is_mounted` of its src/mnt/mod.rs has POLLERR the wrong
        // way round), and unmounts what is there at its end: by then it may be the next mount, of another daemon.
        let mut background = self.session.spawn()?;
        let serving = std::mem::replace(&mut background.guard, std::thread::spawn(|| Ok(())));
        let ended =
            serving.join().unwrap_or_else(|_| Err(io::Error::other("the serving thread panicked: this is a bug")));
        if ended.is_ok() {
            std::mem::forget(background);
        }
        ended
    }
}

fn own_mount(dispatch: Dispatch, config: &MountConfig) -> io::Result<fuser::Session<Dispatch>> {
    let fd: OwnedFd = sys::open_fuse()?;
    let (uid, gid) = sys::identity();
    let mut options = format!("fd={},rootmode=40000,user_id={uid},group_id={gid}", fd.as_raw_fd());
    if config.default_permissions {
        options += ",default_permissions";
    }
    // Root is the owner here: the kernel itself keeps everybody else out.
    let is_open = config.access == Access::All;
    if is_open {
        options += ",allow_other";
    }
    sys::mount_fuse(&config.source, &config.dir, config.flags(), &options)?;
    let let_in = if is_open { SessionACL::All } else { SessionACL::Owner };
    fuser::Session::from_fd(dispatch, fd, let_in, Config::default()).inspect_err(|_| {
        // The mount came up and the session did not: leave nothing behind.
        let _ = sys::umount(&config.dir, libc::MNT_DETACH);
    })
}

fn user_mount(dispatch: Dispatch, config: &MountConfig) -> io::Result<fuser::Session<Dispatch>> {
    sys::find_fuse()?;
    let mut options = Config::default();
    options.mount_options = vec![
        MountOption::FSName(config.source.clone()),
        MountOption::Subtype("datamon".to_owned()),
        MountOption::DefaultPermissions,
        if config.read_only { MountOption::RO } else { MountOption::RW },
    ];
    options.acl = match config.access {
        Access::Owner => SessionACL::Owner,
        Access::OwnerAndRoot => SessionACL::RootAndOwner,
        Access::All => SessionACL::All,
    };
    fuser::Session::new(dispatch, &config.dir, &options)
}

/// Lets the kernel read further ahead, where it lets us say so. Asks nothing of the mount: nobody answers yet.
fn raise_read_ahead(device: Option<&str>) {
    let Some(device) = device else { return };
    let bdi = PathBuf::from("/sys/class/bdi").join(device);
    // FUSE starts at 1 % of memory for mapped writers, with a strict limit.
    for (name, value) in [("read_ahead_kb", READ_AHEAD_KIB), ("max_ratio", 40)] {
        let _ = fs::write(bdi.join(name), value.to_string());
    }
}

/// `MAJ:MIN` of the newest mount at `target`, as this process sees it. Asks nothing of the mount.
pub fn device_at(target: &Path) -> Option<String> {
    // Another mount's point may be no UTF-8.
    device_of(&String::from_utf8_lossy(&fs::read("/proc/self/mountinfo").unwrap_or_default()), target)
}

/// The same, of a table as proc_pid_mountinfo(5) has it.
fn device_of(mountinfo: &str, target: &Path) -> Option<String> {
    let line = mountinfo.lines().rev().find(|line| {
        let point = line.split(' ').nth(4).unwrap_or_default();
        unescaped(point) == target.to_string_lossy()
    })?;
    line.split(' ').nth(2).map(str::to_owned)
}

/// Whether the daemon with this command line has a mount where it was asked for one. `ours` is not its: whoever mounts at
/// the same place again has another one there.
fn has_mount(command_line: &[u8], mountinfo: &str, ours: &str) -> bool {
    let words: Vec<_> = command_line.split(|byte| *byte == 0).map(|word| Path::new(OsStr::from_bytes(word))).collect();
    mountinfo.lines().filter(|line| line.contains(" - fuse.datamon ")).any(|line| {
        let field = |number| line.split(' ').nth(number).unwrap_or_default();
        let dir = PathBuf::from(unescaped(field(4)));
        // A daemon in the foreground may have been given a path that is not absolute.
        field(2) != ours && words.iter().any(|word| !word.as_os_str().is_empty() && dir.ends_with(word))
    })
}

/// A path as mountinfo writes it: space, tab, newline and backslash in octal.
fn unescaped(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_mount_at_a_point_is_found() {
        let text = "30 1 8:1 / / rw - ext4 /dev/a rw\n\
                    40 30 0:50 / /mnt/a\\040b rw - fuse.datamon prod rw\n\
                    41 30 0:51 / /mnt/a\\040b rw - fuse.datamon prod rw\n";
        assert_eq!(device_of(text, Path::new("/mnt/a b")).as_deref(), Some("0:51"));
        assert_eq!(device_of(text, Path::new("/mnt")), None);
    }

    #[test]
    fn a_daemon_without_a_mount_of_its_own_is_about_to_end() {
        let text = "40 30 0:50 / /mnt/a\\040b rw - fuse.datamon prod rw\n41 30 0:51 / /mnt/c rw - fuse.other prod rw\n";
        let line = |dir: &str| format!("datamon\0mount\0--child\0--\0prod\0{dir}\0");
        assert!(has_mount(line("/mnt/a b").as_bytes(), text, "0:60"));
        assert!(has_mount(line("a b").as_bytes(), text, "0:60"), "in the foreground");
        assert!(!has_mount(line("/mnt/a b").as_bytes(), text, "0:50"), "that one is ours");
        assert!(!has_mount(line("/mnt/c").as_bytes(), text, "0:60"), "no daemon of datamon");
        assert!(!has_mount(b"", text, "0:60"), "killed");
        assert!(!has_mount(line("/mnt/a b").as_bytes(), "", "0:60"));
    }
}
