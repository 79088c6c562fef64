//! Where a mount appears: which places are refused, and what the host remembers of it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::process;
use crate::cli::host::Host;
use crate::cli::output::Failure;
use crate::cli::umount;
use crate::config::Context;
use crate::local::staged_files::{close_directory, make_directory};
use crate::local::sys;

/// FUSE's number in statfs(2).
const FUSE_MAGIC: i64 = 0x6573_5546;
/// How long a mount that is there already may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Where umount(8) looks for the helper of a mount.
const UTAB: &str = "/run/mount/utab";

/// The path without a look at it: a mount whose daemon died cannot be looked at.
pub fn absolute(dir: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(dir).map_err(|why| Failure::new("failed", format!("{}: {why}", dir.display())))
}

/// The mount point, after a dead mount of ours in its place was taken away; and what that mount's matter was.
pub fn mount_point(dir: &Path) -> Result<(PathBuf, Option<&'static str>), Failure> {
    let dir = absolute(dir)?;
    let mut replaced = None;
    let refused = |why: String| Failure::new("failed", format!("{}: {why}", dir.display()));
    let is_ours = umount::mounts()?.iter().any(|mounted| mounted.dir == dir && mounted.kind == "fuse.datamon");
    if is_ours {
        match is_alive(&dir) {
            Some(true) => {}
            Some(false) => {
                replaced = Some("a mount whose daemon had died was here");
                detach(&dir);
            }
            None if process::was_killed(&dir) => {
                replaced = Some("a mount was here whose daemon was killed and could not end: its connection was ended");
                // That daemon's last thread gets an error, too, and ends.
                let _ = sys::abort_connection(&dir);
                detach(&dir);
                // Until then it holds the staging tree.
                let start = Instant::now();
                while process::was_killed(&dir) && start.elapsed() < ANSWER_LIMIT {
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
            None => {
                let what =
                    "the datamon mount there does not answer: its daemon is stopped, or ended without letting go";
                return Err(refused(format!("{what} (umount -f {} ends it; nothing staged is lost)", dir.display())));
            }
        }
    }
    let real = fs::canonicalize(&dir).map_err(|why| refused(why.to_string()))?;
    if !real.is_dir() {
        return Err(refused("not a directory".to_owned()));
    }
    Ok((real, replaced))
}

/// Whether the daemon of the mount at `dir` lives; `None` if there is no answer in time.
fn is_alive(dir: &Path) -> Option<bool> {
    let (answer, answered) = std::sync::mpsc::channel();
    let dir = dir.to_owned();
    // On a thread that can be left behind: the call may never come back.
    std::thread::spawn(move || {
        // statfs(2) asks the daemon: stat(2) may answer from the kernel's memory for a moment after it died.
        let is_dead =
            |why: io::Error| matches!(why.kind(), io::ErrorKind::NotConnected | io::ErrorKind::ConnectionAborted);
        let _ = answer.send(!sys::file_system(&dir).is_err_and(is_dead));
    });
    answered.recv_timeout(ANSWER_LIMIT).ok()
}

/// Refuses a mount that would hide its own files, and a state directory that is itself on FUSE.
pub fn check(dir: &Path, state: &Path, host: &Host, context: &Context) -> Result<(), Failure> {
    let refused = |why: String| Failure::new("failed", format!("{}: {why}", dir.display()));
    let unusable = |why| Failure::new("failed", format!("{}: {why} (choose another: -o state=DIR)", state.display()));
    // The directory itself may be somebody's, with what else is in it.
    make_directory(state).map_err(unusable)?;
    // What earlier builds made was open to all.
    let own = [&context.id.to_string(), "log"].map(|own| state.join(own));
    own.iter().try_for_each(|own| close_directory(own)).map_err(unusable)?;
    let state = fs::canonicalize(state).map_err(|why| refused(why.to_string()))?;
    let ours = [&state, &host.places.cache].into_iter().chain(&host.places.contexts);
    for place in ours {
        if place.starts_with(dir) {
            return Err(refused(format!("holds datamon's own files in {} (mount elsewhere)", place.display())));
        }
    }
    for store in context.directories() {
        let holds = fs::canonicalize(store).is_ok_and(|store| store.starts_with(dir));
        if holds {
            return Err(refused(format!("holds the context's store in {} (mount elsewhere)", store.display())));
        }
    }
    let on_fuse = sys::file_system(&state).is_ok_and(|found| found.kind == FUSE_MAGIC);
    if on_fuse {
        let sentence = format!("{}: the state directory is on FUSE (choose another: -o state=DIR)", state.display());
        return Err(Failure::new("failed", sentence));
    }
    Ok(())
}

/// Brings staged trees to where they are looked for: builds before 25 November 2026 named the context twice in their path.
pub fn settle(state: &Path, context: &str) -> Result<(), Failure> {
    let (dir, old) = (state.join(context), state.join(context).join(context));
    let moved = || -> io::Result<()> {
        for entry in fs::read_dir(&old)? {
            let entry = entry?;
            let to = dir.join(entry.file_name());
            if to.exists() {
                let why = format!("{} is there, too (move one of both away)", to.display());
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
            }
            fs::rename(entry.path(), to)?;
        }
        fs::remove_dir(&old)
    };
    if !old.is_dir() {
        return Ok(());
    }
    moved().map_err(|why| Failure::new("failed", format!("{}: staged trees of an earlier build: {why}", old.display())))
}

/// Takes a mount away without asking anybody.
pub fn detach(dir: &Path) {
    let root = sys::identity().0 == 0;
    let mut command = Command::new(if root { "umount" } else { "fusermount3" });
    let words = if root { ["-i", "-l"] } else { ["-u", "-z"] };
    if let Err(why) = command.args(words).arg("--").arg(dir).output() {
        tracing::error!(%why, dir = %dir.display(), "cannot be unmounted");
    }
}

/// Tells umount(8) to call our helper for this mount. Without it umount still works, but commits nothing.
///
/// `_netdev` there tells systemd to unmount before the network goes: what fstab says of a mount it forgets when it is mounted.
pub fn remember(source: &str, dir: &Path, needs_network: bool) {
    let append = || -> io::Result<()> {
        fs::create_dir_all("/run/mount")?;
        let lock = File::options().create(true).append(true).open(format!("{UTAB}.lock"))?;
        lock.lock()?;
        let mut table = File::options().create(true).append(true).open(UTAB)?;
        table.write_all(utab_line(source, dir, needs_network).as_bytes())
    };
    if let Err(why) = append() {
        tracing::warn!(%why, "umount(8) will not know our helper: use `datamon umount`");
    }
}

fn utab_line(source: &str, dir: &Path, needs_network: bool) -> String {
    let escape = |text: &str| {
        let escaped = |c: char| if " \t\n\\".contains(c) { format!("\\{:03o}", u32::from(c)) } else { c.to_string() };
        text.chars().map(escaped).collect::<String>()
    };
    let dir = dir.to_string_lossy();
    let network = if needs_network { "_netdev," } else { "" };
    format!("SRC={} TARGET={} ROOT=/ OPTS={network}helper=datamon\n", escape(source), escape(&dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_staged_by_an_earlier_build_are_found() {
        let state = tempfile::tempdir().unwrap();
        settle(state.path(), "ctx").unwrap();
        let old = state.path().join("ctx/ctx/repo/default");
        fs::create_dir_all(&old).unwrap();
        fs::write(old.join("version"), "1").unwrap();
        settle(state.path(), "ctx").unwrap();
        assert_eq!(fs::read(state.path().join("ctx/repo/default/version")).unwrap(), b"1");
        assert!(!state.path().join("ctx/ctx").exists());
        fs::create_dir_all(state.path().join("ctx/ctx/repo")).unwrap();
        let refused = settle(state.path(), "ctx").unwrap_err();
        assert!(refused.message.contains("is there, too"), "{}", refused.message);
        assert!(state.path().join("ctx/ctx/repo").exists() && state.path().join("ctx/repo/default").exists());
    }

    #[test]
    fn the_line_for_umount_8_names_our_helper_and_escapes_spaces() {
        let line = |needs_network| utab_line("prod/census", Path::new("/mnt/a b"), needs_network);
        assert_eq!(line(false), "SRC=prod/census TARGET=/mnt/a\\040b ROOT=/ OPTS=helper=datamon\n");
        assert_eq!(line(true), "SRC=prod/census TARGET=/mnt/a\\040b ROOT=/ OPTS=_netdev,helper=datamon\n");
    }
}
