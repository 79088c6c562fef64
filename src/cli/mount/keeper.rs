//! The keeper: a small process beside a daemon that ends the mount's connection when the daemon was killed and cannot.
//!
//! The kernel ends a connection when the last descriptor of /dev/fuse is closed. A daemon that is killed while it asks the
//! kernel to write mapped pages back (`fuse/session.rs`) keeps one: that thread waits for a page which a writer holds, the
//! writer waits for the daemon's answer, and neither can be killed (`invalidate_inode_pages2_range` of mm/truncate.c,
//! `request_wait_answer` of fs/fuse/dev.c). Whoever works in the mount would wait until somebody mounts there again. No
//! thread of the daemon can help, so another process does.
//!
//! ```text
//!  the mount is gone ──kill──> keeper
//!  daemon's first thread ends ──signal──> keeper: has the process ended?
//!                                           yes              ──> ends, too
//!                                           no, for PATIENCE ──> ends the connection, if the mount is there
//! ```
//!
//! It holds nothing of the mount open, and asks nothing of it. Where it is killed as well (a whole control group),
//! [`super::place`] does the same when somebody mounts there again.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, io};

use clap::Args;

use super::process;
use crate::fuse::session;
use crate::local::sys;

/// What ps(1) calls it.
const KEEPER: &str = "datamon-keeper";
/// How long a daemon may take to end after its first thread did.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two looks at a daemon that ends.
const STEP: Duration = Duration::from_millis(20);
/// Where connections are ended by their owner, if it is mounted (fusectl: Documentation/filesystems/fuse/fuse.rst).
const CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// The arguments of the hidden command.
#[derive(Debug, Args)]
pub struct KeeperArgs {
    /// The daemon's process
    daemon: u32,
    /// Its mount's file system, MAJ:MIN
    number: String,
    /// Its mount point
    dir: PathBuf,
}

/// Starts the keeper of this process, which has a mount at `dir`. Call it on the first thread: its end is what is told.
pub fn start(number: &str, dir: &Path) -> io::Result<Keeper> {
    let mut keeper = Command::new("/proc/self/exe");
    keeper.arg("keeper").arg(std::process::id().to_string()).arg(number).arg(dir);
    keeper.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    sys::tell_of_the_parents_end(&mut keeper);
    keeper.spawn().map(Keeper)
}

/// The keeper of this process's mount.
pub struct Keeper(Child);

impl Keeper {
    /// The mount is gone: there is nothing to keep, and its number may be another mount's soon.
    pub fn dismiss(mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits for the daemon's end, and sees to it that it is one.
pub fn run(args: &KeeperArgs) {
    // Only for ps(1), and so that nobody takes this for a daemon.
    let _ = fs::write("/proc/self/comm", KEEPER);
    if std::os::unix::process::parent_id() == args.daemon {
        sys::wait_for_the_parents_end();
    }
    let since = Instant::now();
    while since.elapsed() < PATIENCE {
        if process::has_ended(args.daemon) {
            return;
        }
        std::thread::sleep(STEP);
    }
    // Whoever signals a keeper for fun ends no mount that is well.
    if process::is_half_dead(args.daemon) {
        end_connection(&args.number, &args.dir);
    }
}

/// Ends the connection of the file system `number`, mounted at `dir`. The mount stays, and answers ENOTCONN: who writes
/// there must not find himself in the directory below.
fn end_connection(number: &str, dir: &Path) {
    // A number is another mount's as soon as this one is gone.
    if session::device_at(dir).as_deref() != Some(number) {
        return;
    }
    let minor = number.split(':').next_back().unwrap_or_default();
    if fs::write(Path::new(CONNECTIONS).join(minor).join("abort"), "1").is_ok() {
        return;
    }
    if let Ok(in_use) = sys::open_place(dir) {
        let _ = sys::abort_connection(dir);
        drop(in_use);
    }
}
