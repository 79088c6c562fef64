//! The key of every object: the only place where one is spelled.
//!
//! Every key outside the config role begins with the context id, so several contexts may share a prefix. Keys carry
//! repo *ids*: a rename moves nothing, and a name removed and made again is another repo.
//!
//! Chains are named by `inv-seq` = 2^64 − 1 − seq in 16 hex digits, so that the newest record lists first.

use std::fmt;

use super::pack::PackKind;
use crate::model::id::{BundleId, ContextId, IntentId, MountId, ObjectHash, PackId, RepoId};
use crate::model::name::ContextName;

/// The buckets or prefixes of a context; each may have a place of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Context records.
    Config,
    /// Write once: metadata packs, descriptors, catalog.
    Meta,
    /// Versioned metadata: refs.
    VersionedMeta,
    /// Data packs.
    Blob,
    /// Intents.
    Wal,
    /// Batched reads.
    ReadLog,
}

impl Role {
    /// All roles, in the order of their names on the command line.
    pub const ALL: [Self; 6] = [Self::Config, Self::Meta, Self::VersionedMeta, Self::Blob, Self::Wal, Self::ReadLog];

    /// The role's name, as in the options of `context create`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Config => "store",
            Self::Meta => "meta",
            Self::VersionedMeta => "vmeta",
            Self::Blob => "blob",
            Self::Wal => "wal",
            Self::ReadLog => "readlog",
        }
    }
}

/// The name of one object, or a prefix of names ending in `/`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// The place that the object is in.
    pub role: Role,
    /// Its path there.
    pub path: String,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.role.name(), self.path)
    }
}

fn key(role: Role, path: String) -> ObjectKey {
    ObjectKey { role, path }
}

/// `inv-seq`: later records have smaller names.
fn inverse(seq: u64) -> String {
    format!("{:016x}", u64::MAX - seq)
}

impl ObjectKey {
    /// The sequence number of a chain's record, from its name; none that has no successor.
    pub fn sequence(&self) -> Option<u64> {
        let seq = u64::MAX - u64::from_str_radix(self.name(), 16).ok()?;
        (seq < u64::MAX && inverse(seq) == self.name()).then_some(seq)
    }

    /// The last component.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }
}

/// All context chains.
pub fn contexts() -> ObjectKey {
    key(Role::Config, "contexts/".to_owned())
}

/// The chain of one context's records.
pub fn context_chain(name: &ContextName) -> ObjectKey {
    key(Role::Config, format!("contexts/{name}/"))
}

/// The keys of one context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keys {
    context: ContextId,
}

impl Keys {
    /// The keys of `context`.
    pub fn new(context: ContextId) -> Self {
        Self { context }
    }

    /// The context.
    pub fn context(self) -> ContextId {
        self.context
    }

    fn of(self, role: Role, rest: fmt::Arguments<'_>) -> ObjectKey {
        key(role, format!("{}/{rest}", self.context))
    }

    /// A data or metadata pack.
    pub fn pack(self, kind: PackKind, id: PackId) -> ObjectKey {
        let hh = ObjectHash::of(&id.intent.to_bytes()).0[0];
        match kind {
            PackKind::Data => self.of(Role::Blob, format_args!("p/{hh:02x}/{id}")),
            PackKind::Meta => self.of(Role::Meta, format_args!("m/{hh:02x}/{id}")),
        }
    }

    /// What the names of an intent's data packs begin with.
    pub fn data_packs(self, intent: IntentId) -> ObjectKey {
        let hh = ObjectHash::of(&intent.to_bytes()).0[0];
        self.of(Role::Blob, format_args!("p/{hh:02x}/"))
    }

    /// The catalog's chain.
    pub fn catalog(self) -> ObjectKey {
        self.of(Role::Meta, format_args!("repos/"))
    }

    /// The slots of a repo's bundles.
    pub fn bundles(self, repo: RepoId) -> ObjectKey {
        self.of(Role::Meta, format_args!("bundles/{repo}/"))
    }

    /// One bundle's slot: its descriptor, or an ABORTED marker.
    pub fn bundle(self, repo: RepoId, bundle: BundleId) -> ObjectKey {
        self.of(Role::Meta, format_args!("bundles/{repo}/{bundle}"))
    }

    /// Says that a bundle's packs are gone for good.
    pub fn purged(self, repo: RepoId, bundle: BundleId) -> ObjectKey {
        self.of(Role::Meta, format_args!("purged/{repo}/{bundle}"))
    }

    /// The collection rounds that have begun.
    pub fn condemned(self) -> ObjectKey {
        self.of(Role::Meta, format_args!("gc/c/"))
    }

    /// The refs chain of a repo.
    pub fn refs(self, repo: RepoId) -> ObjectKey {
        self.of(Role::VersionedMeta, format_args!("refs/{repo}/"))
    }

    /// A batch of reads, the `seq`th of its mount, written on a day like `20260822`.
    pub fn read_log(self, day: &str, mount: MountId, seq: u32) -> ObjectKey {
        self.of(Role::ReadLog, format_args!("r/{day}/{mount}-{seq:08x}"))
    }

    /// All intents of a round.
    pub fn intents(self, round: u64) -> ObjectKey {
        self.of(Role::Wal, format_args!("wal/{round}/"))
    }

    /// One intent; `extension` counts its later registrations of further bases.
    pub fn intent(self, round: u64, intent: IntentId, extension: Option<u32>) -> ObjectKey {
        match extension {
            None => self.of(Role::Wal, format_args!("wal/{round}/{intent}")),
            Some(j) => self.of(Role::Wal, format_args!("wal/{round}/{intent}.{j}")),
        }
    }
}

/// The record `seq` of the chain under `prefix`.
pub fn record(prefix: &ObjectKey, seq: u64) -> ObjectKey {
    key(prefix.role, format!("{}{}", prefix.path, inverse(seq)))
}

/// The object `name` under `prefix`.
pub fn below(prefix: &ObjectKey, name: &str) -> ObjectKey {
    key(prefix.role, format!("{}{name}", prefix.path))
}

/// A key that only the probe of a store uses.
pub fn probe(role: Role, run: u128, name: &str) -> ObjectKey {
    key(role, format!("probe/{run:032x}/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::Run;

    #[test]
    fn a_later_record_lists_before_an_earlier_one() {
        let prefix = Keys::new(ContextId::from_parts(1, 1)).catalog();
        assert!(record(&prefix, 8).path < record(&prefix, 7).path);
        assert_eq!(record(&prefix, 8).sequence(), Some(8));
        assert_eq!(prefix.sequence(), None);
        let named = |name: &str| below(&prefix, name).sequence();
        assert_eq!(named("ffffffffffffffff"), Some(0));
        assert_eq!(named("FFFFFFFFFFFFFFFF"), None, "a record has one name");
        assert_eq!(named("+fffffffffffffff"), None);
        assert_eq!(named("0000000000000000"), None, "nothing could follow it");
    }

    #[test]
    fn one_list_finds_the_packs_of_an_intent() {
        let keys = Keys::new(ContextId::from_parts(1, 1));
        let intent = IntentId::from_parts(2, 2);
        let path = |seq| keys.pack(PackKind::Data, PackId { intent, run: Run(9), seq }).path;
        assert_eq!(path(1)[..path(1).len() - 8], path(2)[..path(2).len() - 8]);
        assert!(path(1).starts_with(&format!("{}/p/", keys.context())));
    }
}
