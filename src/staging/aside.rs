//! Changes that were thrown away, kept aside until the next time, or for seven days.
//!
//! ```text
//! <tree>/{data,log,db}          the tree, closed while anything here runs
//! <tree>/discarding/            being filled; at the next open its parts go back
//! <tree>/discarded/{data,log,db}
//! <tree>/restoring/             being emptied; at the next open its parts go on to where they were going
//! ```
//!
//! # Invariants
//!
//! 1. Whoever calls this holds the tree's lock, and has no file of the tree open.
//! 2. Whenever this is cut off, [`settle`] leaves the tree as it was before, or as it was to be.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use crate::model::clock::Timestamp;

/// What a tree consists of, beside its lock, its version and its message. The database last: without one there is no tree.
const PARTS: [&str; 3] = ["data", "log", "db"];
const FILLING: &str = "discarding";
const KEPT: &str = "discarded";
const EMPTYING: &str = "restoring";
/// How long it is kept.
const KEPT_FOR: Duration = Duration::from_secs(7 * 24 * 3_600);

/// Finishes, or undoes, what was cut off.
pub fn settle(tree: &Path) -> io::Result<()> {
    for unsettled in [FILLING, EMPTYING] {
        let dir = tree.join(unsettled);
        if dir.exists() {
            take_out(&dir, tree)?;
        }
    }
    Ok(())
}

/// Puts the tree aside, in place of what was kept before. There is no tree then.
pub fn discard(tree: &Path) -> io::Result<()> {
    let filling = tree.join(FILLING);
    fs::create_dir(&filling)?;
    sync(tree)?;
    move_parts(tree, &filling)?;
    remove(&tree.join(KEPT))?;
    fs::rename(&filling, tree.join(KEPT))?;
    sync(tree)
}

/// Whether there is something to bring back.
pub fn is_kept(tree: &Path) -> bool {
    tree.join(KEPT).join("db").exists()
}

/// Brings back what was put aside, in place of a tree without changes.
pub fn restore(tree: &Path) -> io::Result<()> {
    for part in PARTS.iter().rev() {
        remove(&tree.join(part))?;
    }
    let emptying = tree.join(EMPTYING);
    fs::rename(tree.join(KEPT), &emptying)?;
    sync(tree)?;
    take_out(&emptying, tree)
}

/// Lets go of what was kept long enough.
pub fn expire(tree: &Path, now: Timestamp) -> io::Result<()> {
    let kept = tree.join(KEPT);
    let Ok(since) = fs::metadata(&kept).and_then(|found| found.modified()) else { return Ok(()) };
    let since = since.duration_since(UNIX_EPOCH).unwrap_or_default();
    if u128::from(now.millis()) > (since + KEPT_FOR).as_millis() { remove(&kept) } else { Ok(()) }
}

fn take_out(from: &Path, to: &Path) -> io::Result<()> {
    move_parts(from, to)?;
    fs::remove_dir(from)?;
    sync(to)
}

fn move_parts(from: &Path, to: &Path) -> io::Result<()> {
    for part in PARTS {
        match fs::rename(from.join(part), to.join(part)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            moved => moved?,
        }
    }
    sync(from)?;
    sync(to)
}

fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(text: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path(), text);
        dir
    }

    fn fill(dir: &Path, text: &str) {
        for part in PARTS {
            fs::create_dir(dir.join(part)).unwrap();
            fs::write(dir.join(part).join("x"), text).unwrap();
        }
    }

    fn holds(dir: &Path, text: &str) -> bool {
        PARTS.iter().all(|part| fs::read_to_string(dir.join(part).join("x")).is_ok_and(|found| found == text))
    }

    #[test]
    fn what_is_put_aside_comes_back_until_the_next_time() {
        let dir = tree("one");
        discard(dir.path()).unwrap();
        assert!(is_kept(dir.path()) && !dir.path().join("db").exists());
        fill(dir.path(), "two");
        restore(dir.path()).unwrap();
        assert!(holds(dir.path(), "one") && !is_kept(dir.path()));
        discard(dir.path()).unwrap();
        fill(dir.path(), "three");
        discard(dir.path()).unwrap();
        restore(dir.path()).unwrap();
        assert!(holds(dir.path(), "three"));
    }

    #[test]
    fn a_discard_or_restore_that_was_cut_off_at_any_step_leaves_one_of_both() {
        for moved in 0..=PARTS.len() {
            let dir = tree("one");
            fs::create_dir(dir.path().join(FILLING)).unwrap();
            for part in &PARTS[..moved] {
                fs::rename(dir.path().join(part), dir.path().join(FILLING).join(part)).unwrap();
            }
            settle(dir.path()).unwrap();
            assert!(holds(dir.path(), "one") && !dir.path().join(FILLING).exists());
            discard(dir.path()).unwrap();
            fs::rename(dir.path().join(KEPT), dir.path().join(EMPTYING)).unwrap();
            for part in &PARTS[..moved] {
                fs::rename(dir.path().join(EMPTYING).join(part), dir.path().join(part)).unwrap();
            }
            settle(dir.path()).unwrap();
            assert!(holds(dir.path(), "one") && !dir.path().join(EMPTYING).exists());
        }
    }

    #[test]
    fn what_is_kept_longer_than_a_week_goes() {
        let dir = tree("one");
        discard(dir.path()).unwrap();
        let since = fs::metadata(dir.path().join(KEPT)).unwrap().modified().unwrap();
        let secs = since.duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
        expire(dir.path(), Timestamp { secs: secs + 7 * 86_400 - 60, nanos: 0 }).unwrap();
        assert!(is_kept(dir.path()));
        expire(dir.path(), Timestamp { secs: secs + 7 * 86_400 + 60, nanos: 0 }).unwrap();
        assert!(!is_kept(dir.path()));
    }
}
