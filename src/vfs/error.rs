//! Refusals in POSIX terms: the one place that knows errno.

use libc::{
    EACCES, EBUSY, EEXIST, EFBIG, EINVAL, EIO, EISDIR, EMLINK, ENAMETOOLONG, ENODATA, ENOENT, ENOSPC, ENOTDIR,
    ENOTEMPTY, ENXIO, EOPNOTSUPP, EPERM, EROFS, ESTALE, ETIMEDOUT, EXDEV,
};

use crate::content::packer::PackError;
use crate::content::reader::ContentError;
use crate::model::acl::AclError;
use crate::model::name::LabelName;
use crate::snapshot::SnapshotError;
use crate::snapshot::writer::WriteError;
use crate::staging::commit::CommitError;
use crate::staging::tree::StagingError;
use crate::store::StoreError;
use crate::store::catalog::CatalogError;
use crate::store::refs::RefsError;

/// Why an operation was refused.
#[derive(Debug, thiserror::Error)]
pub enum VfsError {
    /// No such entry.
    #[error("no such entry")]
    NotFound,
    /// What was asked for by name is not there; says which.
    #[error("{0}")]
    Missing(String),
    /// Nothing can be changed through this mount.
    #[error("the mount is read-only (mount it rw to change what is in it)")]
    ReadOnly,
    /// What was to change lies in this version.
    #[error("{0}: a version never changes (copy what is to be another into REPO/staging)")]
    Version(String),
    /// What was to move is a label or a bundle, or lies where only those are.
    #[error("{0}")]
    Fixed(&'static str),
    /// Not here.
    #[error("not permitted here")]
    NotPermitted,
    /// Not here, and this is where.
    #[error("{0}")]
    Misplaced(&'static str),
    /// Not by this user.
    #[error("{0}")]
    NotYours(&'static str),
    /// A directory was expected.
    #[error("not a directory")]
    NotDirectory,
    /// A directory was not expected.
    #[error("is a directory")]
    IsDirectory,
    /// The two names are in different trees.
    #[error("in another tree")]
    OtherTree,
    /// The number is of something that is gone.
    #[error("gone")]
    Stale,
    /// An argument makes no sense.
    #[error("{0}")]
    Invalid(&'static str),
    /// More than there may be.
    #[error("{0}")]
    TooLarge(&'static str),
    /// A label or bundle that a program removes which removes what is in it, too: not what a person does by hand.
    #[error(
        "{0}: is removed by rmdir alone, not by what deletes recursively or has looked into it a moment ago (rmdir it, or wait a \
         minute)"
    )]
    Recursive(String),
    /// The target of a rename is a label or lies in a version.
    #[error(
        "{0}: exists (a label is renamed to a free name only; to move one, write the bundle to .datamon/labels/{0})"
    )]
    Taken(LabelName),
    /// It is in use.
    #[error("{0}")]
    Busy(String),
    /// Not in this version, or not at all.
    #[error("{0}")]
    NotSupported(&'static str),
    /// No such xattr.
    #[error("no such xattr")]
    NoXattr,
    /// What was to become an ACL is none.
    #[error(transparent)]
    Acl(#[from] AclError),
    /// A seek beyond the file's end.
    #[error("past the end of the file")]
    PastTheEnd,
    /// Something inside failed that should not.
    #[error("{0}")]
    Failed(String),
    /// The staging tree refused.
    #[error(transparent)]
    Staging(#[from] StagingError),
    /// The snapshot could not be read.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The store did not do it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The catalog refused.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The labels refused.
    #[error(transparent)]
    Refs(#[from] RefsError),
    /// The commit failed.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

impl VfsError {
    /// Whether it points at a disk, a store or damage, and belongs into the log.
    pub fn is_worth_telling(&self) -> bool {
        let is_daily = matches!(self, Self::Staging(StagingError::LookAgain));
        // The id of a version is nobody's guess: a label or a history that still names it led there.
        let is_gone = matches!(self, Self::Snapshot(SnapshotError::NoBundle(_)));
        let is_telling = is_gone
            || matches!(self, Self::Recursive(_))
            || matches!(self.errno(), EIO | ETIMEDOUT | ESTALE | ENOSPC | EBUSY);
        !is_daily && is_telling
    }

    /// One word for programs that have no errno: the kinds of `--json`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Commit(CommitError::NothingStaged) => "empty",
            Self::Commit(CommitError::Diverged { .. }) => "diverged",
            Self::Commit(CommitError::MessageTooLong) => "usage",
            _ => match self.errno() {
                EBUSY => "busy",
                ETIMEDOUT => "unavailable",
                ENOENT => "not_found",
                EACCES | EPERM | EROFS => "denied",
                ESTALE | EEXIST => "conflict",
                _ => "failed",
            },
        }
    }

    /// The errno that a local file system would give.
    pub fn errno(&self) -> i32 {
        match self {
            Self::NotFound | Self::Missing(_) => ENOENT,
            Self::ReadOnly | Self::Version(_) | Self::Fixed(_) => EROFS,
            Self::NotPermitted | Self::Misplaced(_) => EPERM,
            Self::NotYours(_) => EACCES,
            Self::NotDirectory => ENOTDIR,
            Self::IsDirectory => EISDIR,
            Self::OtherTree => EXDEV,
            Self::Stale => ESTALE,
            Self::Invalid(_) | Self::Acl(_) => EINVAL,
            Self::TooLarge(_) => EFBIG,
            // What lies in a version cannot change, and what it is called is not replaced.
            Self::Recursive(_) | Self::Taken(_) => EROFS,
            Self::Busy(_) => EBUSY,
            Self::NotSupported(_) => EOPNOTSUPP,
            Self::NoXattr => ENODATA,
            Self::PastTheEnd => ENXIO,
            Self::Failed(_) => EIO,
            Self::Staging(error) => staging(error),
            Self::Snapshot(error) => snapshot(error),
            Self::Store(error) => store(error),
            Self::Catalog(error) => match error {
                CatalogError::Exists(_) => EEXIST,
                CatalogError::NotFound(_) => ENOENT,
                CatalogError::NotEmpty(..) => ENOTEMPTY,
                CatalogError::Full => ENOSPC,
                CatalogError::Store(error) => store(error),
            },
            Self::Refs(error) => refs(error),
            Self::Commit(error) => commit(error),
        }
    }
}

fn staging(error: &StagingError) -> i32 {
    match error {
        StagingError::NotFound => ENOENT,
        StagingError::Exists => EEXIST,
        StagingError::NotEmpty => ENOTEMPTY,
        StagingError::NotDirectory => ENOTDIR,
        StagingError::IsDirectory => EISDIR,
        StagingError::Reserved => EPERM,
        StagingError::NoSpace => ENOSPC,
        StagingError::TooLarge | StagingError::MessageTooLong => EFBIG,
        StagingError::TooManyLinks => EMLINK,
        StagingError::Invalid(_) => EINVAL,
        StagingError::NoXattr => ENODATA,
        StagingError::NoDefaultAcl => EACCES,
        // open(2) begins anew, past what the kernel has cached.
        StagingError::Stale | StagingError::LookAgain => ESTALE,
        StagingError::Busy(_) => EBUSY,
        StagingError::Frozen => EROFS,
        StagingError::State(_)
        | StagingError::Gone { .. }
        | StagingError::Unwritten(_)
        | StagingError::Io(_)
        | StagingError::Database(_)
        | StagingError::Record(_) => EIO,
        StagingError::Base(error) => snapshot(error),
    }
}

fn snapshot(error: &SnapshotError) -> i32 {
    match error {
        SnapshotError::NoBundle(_) => ENOENT,
        SnapshotError::Content(error) => content(error),
    }
}

fn content(error: &ContentError) -> i32 {
    match error {
        // Wrong bytes are never handed out.
        ContentError::Corrupt { .. } => EIO,
        ContentError::Store(error) => store(error),
    }
}

fn store(error: &StoreError) -> i32 {
    match error {
        // An object that a row names and the store does not have is damage, not absence.
        StoreError::NotFound { .. } | StoreError::Corrupt { .. } | StoreError::Denied { .. } => EIO,
        StoreError::Full { .. } => ENOSPC,
        StoreError::Unavailable { .. } => ETIMEDOUT,
        StoreError::Conflict { .. } => ESTALE,
        StoreError::Unsupported { .. } => EOPNOTSUPP,
    }
}

fn refs(error: &RefsError) -> i32 {
    match error {
        RefsError::NoLabel(_) | RefsError::NoBundle(_) | RefsError::Empty => ENOENT,
        RefsError::Exists(_) => EEXIST,
        RefsError::Labelled { .. } | RefsError::Base { .. } => EBUSY,
        RefsError::Full => ENOSPC,
        RefsError::Store(error) => store(error),
    }
}

fn pack(error: &PackError) -> i32 {
    match error {
        PackError::Store(error) => store(error),
        PackError::Journal(_) => EIO,
    }
}

fn commit(error: &CommitError) -> i32 {
    match error {
        CommitError::NothingStaged => EINVAL,
        CommitError::Diverged { .. } | CommitError::SlotTaken => ESTALE,
        CommitError::MessageTooLong => EINVAL,
        CommitError::Staging(error) => staging(error),
        CommitError::Store(error) => store(error),
        CommitError::Content(error) => content(error),
        CommitError::Base(error) => snapshot(error),
        CommitError::Pack(error) => pack(error),
        CommitError::Write(error) => match error {
            WriteError::Pack(error) => pack(error),
            WriteError::Base(error) => snapshot(error),
            WriteError::UnknownPack(_) | WriteError::Unreadable { .. } => EIO,
            WriteError::PathTooLong { .. } => ENAMETOOLONG,
            WriteError::TooLarge { .. } => EFBIG,
        },
        CommitError::Label(error) => refs(error),
    }
}
