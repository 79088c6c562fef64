//! Callers that were killed while they wait for us.
//!
//! FUSE_INTERRUPT does not reach us (fuser answers it), so a waiting process would ignore even SIGKILL until we reply.
//! But the signal shows in `/proc/<tid>/status` while the process waits: whatever waits long is looked at once a second.

use std::fs;

/// Signals whose default is the end of the process (signal(7)), besides SIGKILL, as bits.
const FATAL: u64 = bit(1) | bit(2) | bit(3) | bit(6) | bit(10) | bit(12) | bit(13) | bit(14) | bit(15);

const fn bit(signal: u32) -> u64 {
    1 << (signal - 1)
}

/// Whether the thread `tid` has a pending signal that will end it. Threads that cannot be looked up live on.
pub fn is_dying(tid: u32) -> bool {
    tid != 0 && fs::read_to_string(format!("/proc/{tid}/status")).is_ok_and(|status| says_dying(&status))
}

/// The same, of the text of a status file (proc_pid_status(5)).
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
    fn this_thread_lives() {
        assert!(!is_dying(std::process::id()));
        assert!(!is_dying(0));
    }
}
