//! What `/proc` knows of the callers: who was killed while it waits for us, and which groups it is in.
//!
//! FUSE_INTERRUPT does not reach us (fuser answers it), so a waiting process would ignore even SIGKILL until we reply.
//! But the signal shows in `/proc/<tid>/status` while the process waits: whatever waits long is looked at once a second.

use std::fs;
use std::path::Path;

/// Signals whose default is the end of the process (signal(7)), besides SIGKILL, as bits.
const FATAL: u64 = bit(1) | bit(2) | bit(3) | bit(6) | bit(10) | bit(12) | bit(13) | bit(14) | bit(15);

const fn bit(signal: u32) -> u64 {
    1 << (signal - 1)
}

/// Whether the thread `tid` has a pending signal that will end it. Threads that cannot be looked up live on.
pub fn is_dying(tid: u32) -> bool {
    tid != 0 && fs::read_to_string(format!("/proc/{tid}/status")).is_ok_and(|status| says_dying(&status))
}

/// The groups that the thread `tid` is in besides its own; none if it cannot be looked up. FUSE names only the first.
pub fn groups(tid: u32) -> Vec<u32> {
    let status = if tid == 0 { None } else { fs::read_to_string(format!("/proc/{tid}/status")).ok() };
    status.map(|status| listed_groups(&status)).unwrap_or_default()
}

/// The same, of the text of a status file (proc_pid_status(5)).
fn listed_groups(status: &str) -> Vec<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
    line.split_whitespace().filter_map(|group| group.parse().ok()).collect()
}

/// Whether a process that we can see has its working directory below `dir`, not at `dir` itself.
pub fn is_anyones_place_below(dir: &Path) -> bool {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    // Reading the link asks no file system, so a dead one elsewhere stops nobody here.
    let mut places = processes.filter_map(|process| fs::read_link(process.path().join("cwd")).ok());
    places.any(|place| place.starts_with(dir) && place != dir)
}

/// The first question, of the text of a status file (proc_pid_status(5)).
fn says_dying(status: &str) -> bool {
    let mask = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0)
    };
    let pending = mask("SigPnd:") | mask("ShdPnd:");
    let spared = mask("SigBlk:") | mask("SigIgn:") | mask("SigCgt:");
    pending & bit(9) != 0 || pending & FATAL & !spared != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(pending: u64, caught: u64) -> String {
        format!("Name:\tcat\nSigPnd:\t{pending:016x}\nShdPnd:\t0\nSigBlk:\t0\nSigIgn:\t0\nSigCgt:\t{caught:016x}\n")
    }

    #[test]
    fn a_pending_sigkill_is_the_end_whatever_is_caught() {
        assert!(says_dying(&status(1 << 8, u64::MAX)));
    }

    #[test]
    fn a_pending_sigint_is_the_end_unless_it_is_caught() {
        assert!(says_dying(&status(1 << 1, 0)));
        assert!(!says_dying(&status(1 << 1, 1 << 1)));
        assert!(!says_dying(&status(0, 0)));
        assert!(!says_dying("nonsense"));
    }

    #[test]
    fn groups_are_read_off_the_status() {
        assert_eq!(listed_groups("Name:\tcat\nGid:\t4\t4\t4\t4\nGroups:\t4 24 1000 \nNStgid:\t7\n"), [4, 24, 1000]);
        assert!(listed_groups("Groups:\t \n").is_empty());
        assert!(listed_groups("nonsense").is_empty());
        assert!(groups(0).is_empty());
    }

    #[test]
    fn this_process_has_its_place_below_the_directory_above_it() {
        let here = std::env::current_dir().unwrap();
        assert!(is_anyones_place_below(here.parent().unwrap()));
        assert!(!is_anyones_place_below(Path::new("/nowhere")));
    }

    #[test]
    fn this_thread_lives() {
        assert!(!is_dying(std::process::id()));
        assert!(!is_dying(0));
    }
}
