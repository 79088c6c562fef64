//! Nodes and their numbers.

use std::fmt;

use crate::model::id::{BundleId, ObjectHash, RepoId};
use crate::model::name::{LATEST, LabelName, RepoName};
use crate::snapshot::RowId;

/// A number of the mount, as the kernel knows it.
pub type Ino = u64;

/// The mount's root.
pub const ROOT_INO: Ino = 1;
const STAGED: u64 = 1 << 63;
const ROW: u64 = 1 << 62;
/// Bits of a staging tree's own numbers.
const STAGING_BITS: u32 = 50;
/// Bits of a row's number.
const ROW_BITS: u32 = 35;
/// Views that a mount can tell apart.
const VIEWS_MAX: usize = (ROW >> ROW_BITS) as usize;

/// A repo by name and identity.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RepoKey {
    /// Its name when it was walked.
    pub name: RepoName,
    /// Its identity.
    pub id: RepoId,
}

/// The name under which a snapshot was walked to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Through {
    /// `bundles/<id>`.
    Bundle,
    /// `labels/latest`.
    Latest,
    /// `labels/<name>`.
    Label(LabelName),
    /// `at/<time>`.
    Time(String),
}

impl fmt::Display for Through {
    /// Its path in the repo; of `bundles/ID` the first word.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bundle => f.write_str("bundles"),
            Self::Latest => write!(f, "labels/{LATEST}"),
            Self::Label(label) => write!(f, "labels/{label}"),
            Self::Time(time) => write!(f, "at/{time}"),
        }
    }
}

/// A root under which a snapshot is seen; two views never share numbers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ViewKey {
    /// The repo.
    pub repo: RepoKey,
    /// What was walked through.
    pub through: Through,
    /// The bundle.
    pub bundle: BundleId,
}

impl ViewKey {
    /// The slots that it may have, in the order in which they are tried: the first says which version it is and through which
    /// name it is seen, so that other mounts show the same numbers.
    pub fn slots(&self) -> impl Iterator<Item = usize> + use<> {
        let through = self.through.to_string();
        let parts = [&self.repo.id.to_bytes()[..], &self.bundle.to_bytes(), through.as_bytes()];
        let hash = ObjectHash::of(&parts.concat());
        let first = u32::from_le_bytes(hash.0[..4].try_into().expect("four bytes")) as usize;
        (0..VIEWS_MAX).map(move |n| (first + n) % VIEWS_MAX)
    }

    /// Its path in the context.
    pub fn place(&self) -> String {
        let place = format!("{}/{}", self.repo.name, self.through);
        if self.through == Through::Bundle { format!("{place}/{}", self.bundle) } else { place }
    }

    /// Whether `name` is the last word of the way to it.
    pub fn is_named(&self, name: &str) -> bool {
        match &self.through {
            Through::Bundle => self.bundle.to_string() == name,
            Through::Latest => name == LATEST,
            Through::Label(label) => label.as_str() == name,
            Through::Time(time) => time == name,
        }
    }
}

/// What a `.datamon` is about. Each place has a directory of its own: one directory below two would make `..` jump.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Scope {
    /// The top of a context.
    Context,
    /// A repo.
    Repo(RepoKey),
    /// The root of a repo's staging tree.
    Staging(RepoKey),
}

impl Scope {
    /// The repo, where there is one.
    pub fn repo(&self) -> Option<&RepoKey> {
        match self {
            Self::Context => None,
            Self::Repo(repo) | Self::Staging(repo) => Some(repo),
        }
    }
}

/// A directory of a `.datamon`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Folder {
    /// `.datamon` itself.
    Top,
    /// `labels/`: what each label names.
    Labels,
    /// `label/`: what is known of each.
    AboutLabels,
    /// `label/<name>/`.
    Label(LabelName),
    /// `bundle/`.
    Bundles,
    /// `bundle/<id>/`.
    Bundle(BundleId),
    /// `diff/`.
    Diffs,
}

/// A text file of a `.datamon`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Text {
    /// `status`.
    Status,
    /// `history`.
    History,
    /// `wal`.
    Wal,
    /// `stats`.
    Stats,
    /// `reads`.
    Reads,
    /// `ctl`.
    Ctl,
    /// `message`.
    Message,
    /// `labels/<name>`; `None`: `latest`.
    Label(Option<LabelName>),
    /// `label/<name>/history`.
    LabelHistory(LabelName),
    /// `bundle/<id>/info`.
    BundleInfo(BundleId),
    /// `bundle/<id>/files`.
    BundleFiles(BundleId),
    /// `diff/A..B`.
    Diff(BundleId, BundleId),
}

/// A name of the namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum NameNode {
    /// The context.
    Context,
    /// A repo.
    Repo(RepoKey),
    /// `bundles/`.
    Bundles(RepoKey),
    /// `labels/`.
    Labels(RepoKey),
    /// `at/`.
    Times(RepoKey),
    /// The root of a staging tree that cannot be opened here.
    BusyStaging(RepoKey),
    /// What `ln -s` into `labels/` is answered with; the next walk finds the version itself there.
    LabelLink(RepoKey, LabelName),
    /// A directory of a `.datamon`.
    Control(Scope, Folder),
    /// A text file there.
    Text(Scope, Text),
}

impl NameNode {
    /// The repo that it is, or lies in.
    pub fn repo(&self) -> Option<&RepoKey> {
        match self {
            Self::Context => None,
            Self::Repo(repo) | Self::Bundles(repo) | Self::Labels(repo) | Self::Times(repo) => Some(repo),
            Self::BusyStaging(repo) | Self::LabelLink(repo, _) => Some(repo),
            Self::Control(scope, _) | Self::Text(scope, _) => scope.repo(),
        }
    }

    /// Whether it is a text file.
    pub fn is_text(&self) -> bool {
        matches!(self, Self::Text(..))
    }
}

/// What a number leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// An entry of a staging tree.
    Staged {
        /// The tree.
        slot: usize,
        /// Its own number.
        ino: u64,
    },
    /// A row of a snapshot.
    Row {
        /// The view.
        slot: usize,
        /// The row.
        row: RowId,
    },
    /// A name of the namespace.
    Name(NameNode),
}

impl Node {
    /// The number of an entry of a staging tree.
    pub fn staged_ino(slot: usize, ino: u64) -> Ino {
        STAGED | (slot as u64) << STAGING_BITS | ino
    }

    /// The number of a row of a view.
    pub fn row_ino(slot: usize, row: RowId) -> Ino {
        ROW | (slot as u64) << ROW_BITS | row.to_bits()
    }

    /// The node that a structured number names; `None` for a number of the namespace's table.
    pub fn structured(ino: Ino) -> Option<Self> {
        if ino & STAGED != 0 {
            let slot = ((ino & !STAGED) >> STAGING_BITS) as usize;
            return Some(Self::Staged { slot, ino: ino & ((1 << STAGING_BITS) - 1) });
        }
        if ino & ROW != 0 {
            let slot = ((ino & !ROW) >> ROW_BITS) as usize;
            return Some(Self::Row { slot, row: RowId::from_bits(ino & ((1 << ROW_BITS) - 1)) });
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Table;

    #[test]
    fn a_number_leads_back_to_its_node_and_no_two_nodes_share_one() {
        let row = RowId { table: Table::Files, ordinal: 7 };
        assert_eq!(Node::structured(Node::row_ino(3, row)), Some(Node::Row { slot: 3, row }));
        let staged = Node::staged_ino(5, 1 << 49 | 9);
        assert_eq!(Node::structured(staged), Some(Node::Staged { slot: 5, ino: 1 << 49 | 9 }));
        assert_eq!(Node::structured(2), None);
        assert_ne!(Node::row_ino(0, RowId::ROOT), Node::row_ino(1, RowId::ROOT));
    }
}
