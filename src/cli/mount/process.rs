//! Daemons as proc(5) shows them: which one was killed, and whether it has ended.
//!
//! A killed daemon is not gone at once: as long as one of its threads waits in the kernel, its connection lives on, and with
//! it the mount. `fuse/session.rs` says for what it may wait.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::local::sys;

/// What ps(1) calls a daemon: it was started as /proc/self/exe.
pub const DAEMON: &str = "datamon";

/// Whether the daemon of the mount at `dir`, which does not answer, was killed: nobody serves it any more, and some daemon
/// has been killed and is still there. One of its threads waits in the kernel for a page whose writer waits for the daemon
/// (`fuse/session.rs`), so the connection has no end of its own.
pub fn was_killed(dir: &Path) -> bool {
    let ours = [std::process::id(), std::os::unix::process::parent_id()].map(|pid| pid.to_string());
    let mut is_dying = false;
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let status = fs::read_to_string(process.path().join("status")).unwrap_or_default();
        let value = |key: &str| status.lines().find_map(|line| Some(line.strip_prefix(key)?.trim()));
        if value("Name:") != Some(DAEMON) || ours.iter().any(|pid| process.file_name() == pid.as_str()) {
            continue;
        }
        // What was killed has no command line any more.
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        if line.split(|byte| *byte == 0).any(|word| word == dir.as_os_str().as_bytes()) {
            return false;
        }
        let is_zombie = value("State:").is_some_and(|state| state.starts_with('Z'));
        let mut pending =
            ["SigPnd:", "ShdPnd:"].into_iter().filter_map(|key| u64::from_str_radix(value(key)?, 16).ok());
        is_dying |= if is_zombie { has_other_threads(&process.path()) } else { pending.any(sys::is_kill_pending) };
    }
    is_dying
}

/// Whether the first thread of a process has ended, and another one has not.
pub fn is_half_dead(process: u32) -> bool {
    has_first_ended(process) && has_other_threads(&directory_of(process))
}

/// Whether nothing of a process runs any more.
pub fn has_ended(process: u32) -> bool {
    let directory = directory_of(process);
    !directory.exists() || (has_first_ended(process) && !has_other_threads(&directory))
}

fn directory_of(process: u32) -> PathBuf {
    Path::new("/proc").join(process.to_string())
}

fn has_first_ended(process: u32) -> bool {
    let status = fs::read_to_string(directory_of(process).join("status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:") && line.contains('Z'))
}

fn has_other_threads(process: &Path) -> bool {
    fs::read_dir(process.join("task")).map_or(0, Iterator::count) > 1
}
