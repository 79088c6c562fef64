//! What a program and the daemon of a mount say to each other: two ioctls with 4 KiB of JSON each.
//!
//! [`SUBMIT`] takes a [`Verb`] for the tree that the descriptor lies in and answers with the [`Job`] it started, at
//! once. [`WAIT`] takes a job and answers with its [`Progress`] within 250 ms, so that a caller can always be
//! interrupted; the work goes on without it. Fields that a side does not know are ignored, so both may be newer.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Length of the buffer that goes in and comes out: JSON text, filled up with NUL bytes.
pub const BUFFER_BYTES: usize = 4096;
/// Starts a verb: a [`Verb`] goes in, a [`Job`] comes out.
pub const SUBMIT: u32 = read_write(1);
/// Looks at a job: a [`Job`] goes in, a [`Progress`] comes out.
pub const WAIT: u32 = read_write(2);

/// The number of an ioctl that reads and writes the buffer (asm-generic/ioctl.h, `_IOWR('D', n, char[4096])`).
const fn read_write(number: u32) -> u32 {
    (3 << 30) | ((BUFFER_BYTES as u32) << 16) | ((b'D' as u32) << 8) | number
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case")]
pub enum Verb {
    /// Commit the tree of the descriptor; from umount, every changed tree of the mount.
    Commit {
        /// The message; `None`: the mount's.
        #[serde(default)]
        message: Option<String>,
        /// Labels to set, besides the mount's.
        #[serde(default)]
        labels: Vec<String>,
        /// All changed trees of the mount.
        #[serde(default)]
        all: bool,
        /// Who commits, by the environment of the command.
        #[serde(default)]
        contributor: Option<String>,
    },
    /// Let nobody change anything: until [`Verb::Thaw`], or until nobody has waited on a job for ten seconds.
    Freeze,
    /// Let changes go on.
    Thaw,
    /// The mount becomes read-only, or writable again.
    Remount {
        /// Which of both.
        read_only: bool,
    },
    /// Nothing, if these mount options hold already: a remount changes flags alone.
    Keep {
        /// The options, as each `-o` has them.
        options: Vec<String>,
    },
}

/// A job of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Its number, in this daemon's life.
    pub job: u64,
}

/// How far a job is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Progress {
    /// Not done: ask again.
    Running {
        /// What it is at, for a person.
        line: String,
        /// Bytes that are done.
        #[serde(default)]
        done: u64,
        /// All bytes; 0: nobody knows.
        #[serde(default)]
        total: u64,
    },
    /// Done.
    Done {
        /// What was committed, one a tree.
        commits: Vec<Committed>,
        /// What a person is to know besides, a line each.
        #[serde(default)]
        notes: Vec<String>,
    },
    /// Failed; what was committed before that stays committed.
    Failed {
        /// One word for programs.
        kind: String,
        /// What happened, with its remedy in parentheses at the end.
        message: String,
        /// What was committed before.
        #[serde(default)]
        commits: Vec<Committed>,
    },
}

/// One commit, as `datamon commit --json` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committed {
    /// The bundle; the base when nothing changed.
    pub bundle: String,
    /// The repo's name.
    pub repo: String,
    /// The context's name.
    pub context: String,
    /// What the tree was based on.
    pub base: Option<String>,
    /// Whether somebody else committed meanwhile.
    pub diverged: bool,
    /// Whether there was something to commit.
    pub changed: bool,
    /// Names of non-directories in the bundle.
    pub files: u64,
    /// Bytes of the bundle's files.
    pub bytes: u64,
    /// Bytes stored for it.
    pub new_bytes: u64,
    /// Labels set.
    pub labels: Vec<String>,
    /// What is to be said of labels: a sentence for each that is not set, or that somebody else moved meanwhile.
    #[serde(default)]
    pub label_notes: Vec<String>,
}

/// The buffer that says `value`; `None` if that does not fit.
pub fn encode<T: Serialize>(value: &T) -> Option<[u8; BUFFER_BYTES]> {
    let text = serde_json::to_vec(value).ok()?;
    let mut buffer = [0; BUFFER_BYTES];
    buffer.get_mut(..text.len())?.copy_from_slice(&text);
    Some(buffer)
}

/// What a buffer says; `None` if it is none of ours.
pub fn decode<T: DeserializeOwned>(buffer: &[u8]) -> Option<T> {
    let end = buffer.iter().position(|byte| *byte == 0).unwrap_or(buffer.len());
    serde_json::from_slice(&buffer[..end]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_side_says_the_other_understands() {
        let verb =
            Verb::Commit { message: Some("west".into()), labels: vec!["v2".into()], all: false, contributor: None };
        assert_eq!(decode::<Verb>(&encode(&verb).unwrap()), Some(verb));
        let running = Progress::Running { line: "packing".into(), done: 1, total: 2 };
        assert_eq!(decode::<Progress>(&encode(&running).unwrap()), Some(running));
    }

    #[test]
    fn unknown_fields_are_ignored_and_missing_ones_have_a_default() {
        let verb = decode::<Verb>(br#"{"verb":"commit","colour":"red"}"#);
        assert_eq!(verb, Some(Verb::Commit { message: None, labels: vec![], all: false, contributor: None }));
        assert_eq!(decode::<Verb>(br#"{"verb":"sing"}"#), None);
        assert_eq!(decode::<Job>(&[0xff; BUFFER_BYTES]), None);
    }

    #[test]
    fn what_does_not_fit_is_not_cut() {
        assert!(encode(&Progress::Running { line: "x".repeat(BUFFER_BYTES), done: 0, total: 0 }).is_none());
    }

    #[test]
    fn the_numbers_are_those_of_the_kernels_scheme() {
        assert_eq!(SUBMIT, 0xd000_4401);
        assert_eq!(WAIT, 0xd000_4402);
    }
}
