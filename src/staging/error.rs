//! Why a staging tree refuses.

use std::io;

use crate::content::reader::ContentError;
use crate::format::FormatError;
use crate::local::db::DatabaseError;
use crate::model::limits::MESSAGE_BYTES_MAX;
use crate::snapshot::SnapshotError;

/// Why an operation was refused.
#[derive(Debug, thiserror::Error)]
pub enum StagingError {
    /// No such entry.
    #[error("no such entry")]
    NotFound,
    /// The name is taken.
    #[error("the name exists")]
    Exists,
    /// The directory has entries.
    #[error("the directory is not empty")]
    NotEmpty,
    /// A directory was expected.
    #[error("not a directory")]
    NotDirectory,
    /// A directory was not expected.
    #[error("is a directory")]
    IsDirectory,
    /// The name is ours.
    #[error(".datamon is reserved at the top of a tree")]
    Reserved,
    /// The disk under the state directory is full, or nearly.
    #[error("the disk under the state directory has no room left (free some, or set -o state=)")]
    NoSpace,
    /// Larger than a file may be.
    #[error("larger than a file may be")]
    TooLarge,
    /// More names than a file may have.
    #[error("more names than a file may have")]
    TooManyLinks,
    /// The kernel knew a name or a file that is no more: it looks again, and its caller sees nothing of that.
    #[error("gone meanwhile: to be looked at again")]
    LookAgain,
    /// The message is longer than a bundle may carry.
    #[error("a message has at most {MESSAGE_BYTES_MAX} bytes")]
    MessageTooLong,
    /// An argument makes no sense.
    #[error("{0}")]
    Invalid(&'static str),
    /// A default ACL of what is no directory.
    #[error("only a directory has a default ACL")]
    NoDefaultAcl,
    /// No such xattr.
    #[error("no such xattr")]
    NoXattr,
    /// The number is of an entry that is gone.
    #[error("the entry is gone")]
    Stale,
    /// Another mount has this tree.
    #[error("{0}")]
    Busy(String),
    /// Changes are not taken now.
    #[error("the tree is being unmounted")]
    Frozen,
    /// The state directory cannot be used.
    #[error("{0}")]
    State(String),
    /// Staged bytes of an inode are gone.
    #[error("staged bytes are gone: {what}: put the file back, or remove what it belongs to")]
    Gone {
        /// The inode.
        ino: u64,
        /// The path in the tree where that is known, and the file that is missing.
        what: String,
    },
    /// Stores through mappings were refused, and a commit would lack them.
    #[error(
        "{0}: stored through a mapping, and refused by the disk (store it again when there is room, or cut or remove the file)"
    )]
    Unwritten(String),
    /// A local file failed.
    #[error("the state directory: {0}")]
    Io(io::Error),
    /// The database failed.
    #[error(transparent)]
    Database(DatabaseError),
    /// A record of the database is not what it should be.
    #[error("the staging database: {0}")]
    Record(#[from] FormatError),
    /// The base could not be read.
    #[error(transparent)]
    Base(#[from] SnapshotError),
}

impl StagingError {
    pub(super) fn damaged(what: &'static str) -> Self {
        Self::Record(FormatError::Malformed { what })
    }

    /// Why the bytes of `ino` could not be read or changed.
    pub(super) fn of_bytes(ino: u64, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Gone { ino, what: error.to_string() },
            _ => error.into(),
        }
    }
}

impl From<io::Error> for StagingError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace,
            io::ErrorKind::FileTooLarge => Self::TooLarge,
            _ => Self::Io(error),
        }
    }
}

impl From<DatabaseError> for StagingError {
    fn from(error: DatabaseError) -> Self {
        if error.is_no_space() { Self::NoSpace } else { Self::Database(error) }
    }
}

impl From<ContentError> for StagingError {
    fn from(error: ContentError) -> Self {
        Self::Base(error.into())
    }
}
