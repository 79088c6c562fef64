//! The namespace above the trees: context, repos, `bundles/`, `labels/`, `at/`, `staging/`.
//!
//! Catalog and refs are [`super::remembered`]; what is inside a snapshot or a staging tree is theirs.

use std::collections::HashMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::error::VfsError;
use super::follow::Kernel;
use super::identity::Identity;
use super::lineage::Lineage;
use super::node::{Ino, NameNode, Node, ROOT_INO, RepoKey, Scope, Through, ViewKey};
use super::read_log::ReadLog;
use super::remembered::Remembered;
use super::shown::Shown;
use super::{Found, Listed, Shared, Trees, Ttl, Views, control};
use crate::content::reader::ContentReader;
use crate::faults::Faults;
use crate::format::catalog::RepoState;
use crate::format::intent::ABORTED_BYTES;
use crate::local::db::DatabaseMemory;
use crate::model::clock::Timestamp;
use crate::model::entry::FileKind;
use crate::model::id::{BundleId, RepoId};
use crate::model::metrics::Operations;
use crate::model::name::{FileName, LATEST, LabelName, RepoName, StageName};
use crate::snapshot::{RangeCache, RowId};
use crate::staging::inode::ROOT;
use crate::staging::tree::{NodeAttr, StagingError};
use crate::store::{Store, catalog, refs};

/// What a mount shows: a path in the namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The whole context.
    Context,
    /// One repo.
    Repo(RepoName),
    /// The writable tree of a repo.
    Staging(RepoName),
    /// A snapshot by bundle.
    Bundle(RepoName, BundleId),
    /// A snapshot by label, pinned when it is mounted; `latest` too.
    Label(RepoName, String),
}

impl FromStr for Source {
    type Err = String;

    /// The part of a source behind the context's name: empty, `census`, `census/labels/v1`, …
    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty()).collect();
        let repo = |name: &str| name.parse::<RepoName>().map_err(|why| format!("{name}: {why}"));
        match parts[..] {
            [] => Ok(Self::Context),
            [name] => Ok(Self::Repo(repo(name)?)),
            [name, "staging"] => Ok(Self::Staging(repo(name)?)),
            [name, "bundles", id] => {
                Ok(Self::Bundle(repo(name)?, id.parse().map_err(|why| format!("bundles/{id}: {why}"))?))
            }
            [name, "labels", label] => Ok(Self::Label(repo(name)?, label.to_owned())),
            [_, "diamonds", ..] => Err("diamonds are not in this version".to_owned()),
            _ => Err("a repo, REPO/staging, REPO/bundles/ID or REPO/labels/NAME is expected".to_owned()),
        }
    }
}

/// What a clean staging tree starts from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum BaseChoice {
    /// The newest bundle.
    #[default]
    Latest,
    /// Nothing.
    Nothing,
    /// A label or bundle.
    Named(String),
}

impl BaseChoice {
    /// What a word chooses: `latest`, `none`, or else a label or bundle.
    pub fn named(word: &str) -> Self {
        match word {
            LATEST => Self::Latest,
            "none" => Self::Nothing,
            name => Self::Named(name.to_owned()),
        }
    }
}

/// Which changes in staging are safe from a power cut before their program is told, without its asking (mount(8)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Synced {
    /// Those that it syncs.
    Nothing,
    /// Those of names (`dirsync`).
    Names,
    /// All (`sync`).
    All,
}

/// What a mount was asked for.
pub struct Settings {
    /// The context's name, for texts.
    pub context: String,
    /// The source as it was given.
    pub source: String,
    /// No changes through this mount, as it begins.
    pub read_only: bool,
    /// The state directory of this host.
    pub state: PathBuf,
    /// Which staging tree of a repo.
    pub stage: StageName,
    /// What a clean staging tree starts from.
    pub base: BaseChoice,
    /// How stale catalog and refs may be.
    pub refresh: Duration,
    /// Who mounted it: may ask for everything, and owns what is made where nobody says whose it is.
    pub owner: (u32, u32),
    /// How owners and modes are shown.
    pub shown: Shown,
    /// Whether POSIX ACLs are shown, changed and inherited.
    pub acl: bool,
    /// What is on the disk before its program is told.
    pub synced: Synced,
    /// Whose name stands in the history.
    pub identity: Identity,
    /// Whether `sync PATH` commits.
    pub sync_commits: bool,
    /// Whether umount commits what changed.
    pub umount_commits: bool,
    /// Message of commits made by `sync` and `umount`.
    pub message: String,
    /// Labels of such commits.
    pub labels: Vec<LabelName>,
    /// Whether such a commit fails when `latest` is no longer the base.
    pub fail_if_diverged: bool,
    /// Where the log is, for `status`.
    pub log: String,
    /// What a person is to know of this mount, for `status`.
    pub notices: Vec<String>,
    /// What the databases of staging trees may use together.
    pub database_memory: DatabaseMemory,
    /// Bytes that packs on their way may take, of each tree.
    pub pack_memory: usize,
    /// Packs of each tree on their way at once, as far as that memory allows.
    pub uploads: usize,
    /// Bytes that reads may take before they are logged in the store; `None`: they are not logged.
    pub read_log_memory: Option<usize>,
    /// Says which of these options the mount does not have: it was made without, and a remount does not bring it.
    pub keeps: Keeps,
    /// Places to stop at, for tests.
    pub faults: Arc<Faults>,
}

/// See [`Settings::keeps`].
pub type Keeps = Box<dyn Fn(&[String]) -> Result<(), String> + Send + Sync>;

/// Names of the namespace and their numbers; only names that exist are added.
struct Names {
    nodes: Vec<NameNode>,
    numbers: HashMap<NameNode, Ino>,
}

/// What names of repos and labels are like.
pub(super) const NAME_FORM: &str = "not such a name (letters, digits, dots, - and _, at most 128, a letter or digit first; a label not \
                         shaped like a bundle's id)";
/// Why nobody sets, renames or removes the label `latest`.
pub(super) const LATEST_FOLLOWS: &str =
    "labels/latest is the newest bundle, by itself (choose another name for a label of your own)";
/// The first number of the table; 1 is the root's.
const FIRST_NAME: Ino = 2;

/// Called before an instant is sealed, with the files that are open for writing: stores through mmap are to be written.
pub type FlushMapped = Arc<dyn Fn(Vec<Ino>) + Send + Sync>;

/// The file system of one mount. See the module above.
pub struct Vfs {
    store: Arc<Store>,
    pub(super) reader: Arc<ContentReader>,
    pub(super) ranges: RangeCache,
    settings: Settings,
    root: std::sync::OnceLock<Node>,
    read_only: AtomicBool,
    mounted: Timestamp,
    /// What the kernel asked for, and how long it waited.
    pub operations: Operations,
    names: Shared<Names>,
    pub(super) trees: Shared<Trees>,
    pub(super) views: Arc<Shared<Views>>,
    pub(super) lineage: Arc<Lineage>,
    read_log: Option<Arc<ReadLog>>,
    pub(super) opening: tokio::sync::Mutex<()>,
    pub(super) remembered: Remembered,
    pub(super) control: control::Control,
    pub(super) kernel: std::sync::OnceLock<Arc<dyn Kernel>>,
    /// For what goes on when the request that began it is answered.
    pub(super) me: Weak<Self>,
}

impl Vfs {
    /// The file system that shows `source`. Everything that can be refused is refused here, before a mount appears.
    pub async fn new(
        store: Arc<Store>,
        reader: Arc<ContentReader>,
        ranges: RangeCache,
        settings: Settings,
        source: Source,
    ) -> Result<Arc<Self>, VfsError> {
        let mounted = store.clock.now();
        let views = Arc::new(Shared::new(Views::default()));
        let read_log = settings
            .read_log_memory
            .map(|memory| ReadLog::start(store.clone(), views.clone(), settings.identity.clone(), memory));
        let vfs = Arc::new_cyclic(|me| Self {
            store,
            reader,
            ranges,
            read_only: AtomicBool::new(settings.read_only),
            settings,
            root: std::sync::OnceLock::new(),
            mounted,
            operations: Operations::default(),
            names: Shared::new(Names { nodes: Vec::new(), numbers: HashMap::new() }),
            trees: Shared::default(),
            views,
            lineage: Arc::default(),
            read_log,
            opening: tokio::sync::Mutex::new(()),
            remembered: Remembered::default(),
            control: control::Control::default(),
            kernel: std::sync::OnceLock::new(),
            me: me.clone(),
        });
        let root = vfs.resolve(source).await?;
        vfs.root.set(root).expect("set once, just after it was made");
        Ok(vfs)
    }

    async fn resolve(&self, source: Source) -> Result<Node, VfsError> {
        Ok(match source {
            Source::Context => {
                self.catalog().await?;
                Node::Name(NameNode::Context)
            }
            Source::Repo(name) => {
                let repo = self.source_repo(&name).await?;
                // Of a whole context it is known only when somebody looks into a repo.
                if let base @ BaseChoice::Named(_) = &self.settings.base {
                    self.base_of(&repo, base).await?;
                }
                Node::Name(NameNode::Repo(repo))
            }
            Source::Staging(name) => {
                let repo = self.source_repo(&name).await?;
                Node::Staged { slot: self.awaited_tree(&repo).await?, ino: ROOT }
            }
            Source::Bundle(name, bundle) => {
                let repo = self.source_repo(&name).await?;
                self.refuse_removed(&repo, bundle).await?;
                let slot = self.view_slot(ViewKey { repo, through: Through::Bundle, bundle });
                self.view(slot).await?;
                Node::Row { slot, row: RowId::ROOT }
            }
            Source::Label(name, label) => {
                let repo = self.source_repo(&name).await?;
                let found = self.label(&repo, label.as_bytes()).await?;
                let key = found.ok_or_else(|| no_label(&repo, &label))?;
                let slot = self.view_slot(key);
                self.view(slot).await?;
                Node::Row { slot, row: RowId::ROOT }
            }
        })
    }

    async fn source_repo(&self, name: &RepoName) -> Result<RepoKey, VfsError> {
        self.repo(name).await.map_err(|error| match error {
            VfsError::NotFound => {
                let context = &self.settings.context;
                VfsError::Missing(format!("no such repo (mount {context} and mkdir it there, or ls to see which are)"))
            }
            error => error,
        })
    }

    /// What the mount was asked for.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Whether this mount began read-only and still is: what it finds staged it does not publish.
    pub(super) fn publishes_nothing(&self) -> bool {
        self.settings.read_only && self.is_read_only()
    }

    /// Whether nothing can be changed through this mount now.
    pub fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::Relaxed)
    }

    /// Lets changes through, or none; a version lets none through, whatever is asked.
    pub(super) fn set_read_only(&self, read_only: bool) -> Result<(), VfsError> {
        // What was not verified must not be committed as if it had been.
        if !read_only && (self.is_all_immutable() || !self.reader.verifies()) {
            return Err(VfsError::ReadOnly);
        }
        self.read_only.store(read_only, Ordering::Relaxed);
        Ok(())
    }

    /// The owner that the namespace's own directories and texts are shown with.
    pub(super) fn shown_owner(&self) -> (u32, u32) {
        self.settings.shown.owner(self.settings.owner)
    }

    pub(super) fn reader(&self) -> &Arc<ContentReader> {
        &self.reader
    }

    pub(super) fn ranges(&self) -> &RangeCache {
        &self.ranges
    }

    /// When it was mounted.
    pub fn mounted(&self) -> Timestamp {
        self.mounted
    }

    /// What tells the store which files were read, if that is wanted.
    pub fn read_log(&self) -> Option<&Arc<ReadLog>> {
        self.read_log.as_ref()
    }

    /// The store behind it.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Whether the mount's root is the root of a staging tree.
    pub fn root(&self) -> &Node {
        self.root.get().expect("set before the first request")
    }

    // ---- numbers -------------------------------------------------------------------------------------------------

    /// The node behind a number of the kernel.
    pub(super) fn node(&self, ino: Ino) -> Result<Node, VfsError> {
        if ino == ROOT_INO {
            return Ok(self.root().clone());
        }
        if let Some(node) = Node::structured(ino) {
            return Ok(node);
        }
        let names = self.names.lock().expect("nothing panics while it holds the names");
        let at = ino.checked_sub(FIRST_NAME).ok_or(VfsError::Stale)? as usize;
        names.nodes.get(at).cloned().map(Node::Name).ok_or(VfsError::Stale)
    }

    /// A number as the kernel knows it: the mount's root is 1.
    pub(super) fn to_kernel(&self, ino: Ino) -> Ino {
        let root = match self.root.get() {
            Some(Node::Staged { slot, ino }) => Node::staged_ino(*slot, *ino),
            Some(Node::Row { slot, row }) => Node::row_ino(*slot, *row),
            _ => return ino,
        };
        if ino == root { ROOT_INO } else { ino }
    }

    pub(super) fn name_ino(&self, node: &NameNode) -> Ino {
        if self.root.get() == Some(&Node::Name(node.clone())) {
            return ROOT_INO;
        }
        let mut names = self.names.lock().expect("nothing panics while it holds the names");
        if let Some(ino) = names.numbers.get(node) {
            return *ino;
        }
        let ino = FIRST_NAME + names.nodes.len() as Ino;
        names.nodes.push(node.clone());
        names.numbers.insert(node.clone(), ino);
        ino
    }

    // ---- repos -----------------------------------------------------------------------------------------------------

    pub(super) async fn repo(&self, name: &RepoName) -> Result<RepoKey, VfsError> {
        let known = self.catalog().await?.repos.get(name).copied().ok_or(VfsError::NotFound)?;
        let entry = match known.state {
            RepoState::Live => known,
            // Who is removing it may be dead, and it may hold bundles: whoever meets that finishes it.
            RepoState::Removing(_) => {
                let found = catalog::find(&self.store, name).await;
                self.forget_catalog();
                found?
            }
        };
        Ok(RepoKey { name: name.clone(), id: entry.id })
    }

    /// The repo with this id, while it is there.
    pub(super) async fn repo_with(&self, id: RepoId) -> Result<Option<RepoKey>, VfsError> {
        let catalog = self.catalog().await?;
        let found = catalog.repos.iter().find(|(_, entry)| entry.id == id);
        Ok(found.map(|(name, _)| RepoKey { name: name.clone(), id }))
    }

    /// The view that a label leads to now.
    async fn label(&self, repo: &RepoKey, name: &[u8]) -> Result<Option<ViewKey>, VfsError> {
        let Ok(text) = std::str::from_utf8(name) else { return Ok(None) };
        let through = match text.parse() {
            _ if text == LATEST => Through::Latest,
            Ok(label) => Through::Label(label),
            Err(_) => return Ok(None),
        };
        let bundle = refs::resolve(&self.refs(repo.id).await?, text);
        Ok(bundle.map(|bundle| ViewKey { repo: repo.clone(), through, bundle }))
    }

    // ---- names -----------------------------------------------------------------------------------------------------

    pub(super) async fn lookup_name(&self, node: &NameNode, name: &FileName) -> Result<Found, VfsError> {
        let bytes = name.as_bytes();
        match node {
            NameNode::Context if bytes == control::DIRECTORY => Ok(self.control_directory(Scope::Context)),
            NameNode::Context => {
                let name = repo_name(bytes).ok_or(VfsError::NotFound)?;
                let repo = self.repo(&name).await?;
                Ok(self.directory(NameNode::Repo(repo), self.rest_of_catalog()))
            }
            NameNode::Repo(repo) if bytes == control::DIRECTORY => {
                Ok(self.control_directory(Scope::Repo(repo.clone())))
            }
            NameNode::Repo(repo) => match bytes {
                b"bundles" => Ok(self.directory(NameNode::Bundles(repo.clone()), Ttl::Short)),
                b"labels" => Ok(self.directory(NameNode::Labels(repo.clone()), Ttl::Short)),
                b"at" => Ok(self.directory(NameNode::Times(repo.clone()), Ttl::Short)),
                b"staging" => self.staging(repo).await,
                _ => Err(VfsError::NotFound),
            },
            NameNode::Bundles(repo) => {
                let bundle = std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok());
                let bundle: BundleId = bundle.ok_or(VfsError::NotFound)?;
                let record = self.refs(repo.id).await?;
                if record.trashed.contains(&bundle) || record.purging.contains(&bundle) {
                    return Err(VfsError::NotFound);
                }
                self.view_root(ViewKey { repo: repo.clone(), through: Through::Bundle, bundle }).await
            }
            NameNode::Labels(repo) => {
                let key = self.label(repo, bytes).await?.ok_or(VfsError::NotFound)?;
                self.view_root(key).await
            }
            NameNode::Times(repo) => {
                let text = std::str::from_utf8(bytes).map_err(|_| VfsError::NotFound)?;
                let until = Timestamp::end_of(text).ok_or(VfsError::NotFound)?;
                let bundle = self.newest_until(repo, until).await?.ok_or(VfsError::NotFound)?;
                let through = Through::Time(text.to_owned());
                self.view_root(ViewKey { repo: repo.clone(), through, bundle }).await
            }
            NameNode::BusyStaging(_) => Err(self.busy()),
            NameNode::Control(scope, folder) => self.lookup_control(scope, folder, bytes).await,
            NameNode::Text(..) | NameNode::LabelLink(..) => Err(VfsError::NotDirectory),
        }
    }

    /// The newest bundle that is not later than `until` and is not removed.
    async fn newest_until(&self, repo: &RepoKey, until: Timestamp) -> Result<Option<BundleId>, VfsError> {
        let record = self.refs(repo.id).await?;
        self.with_history(repo, |bundles| {
            let until = bundles.partition_point(|summary| summary.time <= until);
            let gone = |bundle: &BundleId| record.trashed.contains(bundle) || record.purging.contains(bundle);
            bundles[..until].iter().rev().map(|summary| summary.bundle).find(|bundle| !gone(bundle))
        })
        .await
    }

    pub(super) fn busy(&self) -> VfsError {
        StagingError::Busy("another mount has this staging tree (use mount --bind)".to_owned()).into()
    }

    async fn staging(&self, repo: &RepoKey) -> Result<Found, VfsError> {
        match self.tree_slot(repo).await {
            Ok(slot) => {
                self.follow_slot(slot, true).await;
                let found = self.getattr(Node::staged_ino(slot, ROOT)).await?;
                // The kernel asks again after that, which is when a clean tree follows.
                Ok(Found { ttl: self.rest(Some(self.store.clock.now())), ..found })
            }
            Err(VfsError::Staging(StagingError::Busy(why))) => {
                self.note_holder(repo, why);
                Ok(self.directory(NameNode::BusyStaging(repo.clone()), Ttl::None))
            }
            Err(error) => Err(error),
        }
    }

    /// A version, under a name that may lead elsewhere soon.
    pub(super) async fn view_root(&self, key: ViewKey) -> Result<Found, VfsError> {
        let repo = key.repo.id;
        let slot = self.view_slot(key);
        let found = self.getattr(Node::row_ino(slot, RowId::ROOT)).await?;
        Ok(Found { ttl: self.rest_of_refs(repo), ..found })
    }

    pub(super) fn directory(&self, node: NameNode, ttl: Ttl) -> Found {
        // A kernel that lists without opening takes its own list for good as long as the directory's time is the same.
        let is_listed_unasked = matches!(node, NameNode::Control(..)) && self.is_all_immutable();
        let time = if is_listed_unasked { self.store.clock.now() } else { self.mounted };
        let attr = self.namespace_directory(self.name_ino(&node), time);
        Found { attr, ttl }
    }

    pub(super) async fn getattr_name(&self, node: &NameNode) -> Result<Found, VfsError> {
        match node {
            NameNode::Text(scope, text) => self.text_attr(scope, text).await,
            NameNode::LabelLink(repo, label) => {
                let target = self.label_target(repo, label).await?;
                Ok(self.label_link(repo, label, target))
            }
            NameNode::Control(..) => Ok(self.directory(node.clone(), Ttl::None)),
            // It looks the same for as long as the mount lives. umount(8) asks the kernel for it before it asks us, and is not to
            // wait for a daemon that is stopped.
            _ if matches!(self.root(), Node::Name(root) if root == node) => Ok(self.directory(node.clone(), Ttl::Long)),
            _ => Ok(self.directory(node.clone(), Ttl::Short)),
        }
    }

    /// Where a label leads, as the target of a symlink beside it.
    pub(super) async fn label_target(&self, repo: &RepoKey, label: &LabelName) -> Result<String, VfsError> {
        let bundle = self.refs(repo.id).await?.labels.get(label).copied().ok_or(VfsError::Stale)?;
        Ok(format!("../bundles/{bundle}"))
    }

    pub(super) fn label_link(&self, repo: &RepoKey, label: &LabelName, target: String) -> Found {
        let ino = self.name_ino(&NameNode::LabelLink(repo.clone(), label.clone()));
        let directory = self.namespace_directory(ino, self.mounted);
        let attr = NodeAttr { kind: FileKind::Symlink, size: target.len() as u64, nlink: 1, ..directory };
        Found { attr, ttl: Ttl::None }
    }

    pub(super) async fn list_names(
        &self,
        node: &NameNode,
        after: Option<&FileName>,
        max: usize,
    ) -> Result<Vec<Listed>, VfsError> {
        let mut listed: Vec<Listed> = Vec::new();
        let mut add = |name: &str, found: Found| {
            let name = FileName::new(name.as_bytes().to_vec()).expect("names of the namespace are file names");
            listed.push(Listed { name, found });
        };
        // Listing opens nothing: attributes are provisional, and the walk of a name brings the real ones.
        let view = |repo: &RepoKey, through, bundle| {
            let slot = self.view_slot(ViewKey { repo: repo.clone(), through, bundle });
            let attr = self.namespace_directory(Node::row_ino(slot, RowId::ROOT), self.mounted);
            Found { attr, ttl: Ttl::None }
        };
        match node {
            NameNode::Context => {
                // One that is being removed keeps its name until that is done.
                for (name, entry) in &self.catalog().await?.repos {
                    let repo = RepoKey { name: name.clone(), id: entry.id };
                    add(name.as_str(), self.directory(NameNode::Repo(repo), self.rest_of_catalog()));
                }
            }
            NameNode::Repo(repo) => {
                add("at", self.directory(NameNode::Times(repo.clone()), Ttl::Short));
                add("bundles", self.directory(NameNode::Bundles(repo.clone()), Ttl::Short));
                add("labels", self.directory(NameNode::Labels(repo.clone()), Ttl::Short));
                // Of a tree that is not open nobody knows the number yet: it has one that it would have elsewhere, never another's,
                // which the kernel takes for a loop.
                let provisional = || self.directory(NameNode::BusyStaging(repo.clone()), Ttl::None);
                let staging = match self.open_slot_of(repo) {
                    Some(slot) => self.getattr(Node::staged_ino(slot, ROOT)).await.unwrap_or_else(|_| provisional()),
                    None => provisional(),
                };
                add("staging", Found { ttl: Ttl::None, ..staging });
            }
            NameNode::Bundles(repo) => {
                for bundle in self.bundles(repo).await? {
                    add(&bundle.to_string(), view(repo, Through::Bundle, bundle));
                }
            }
            NameNode::Labels(repo) => {
                let record = self.refs(repo.id).await?;
                if let Some(latest) = record.latest {
                    add(LATEST, view(repo, Through::Latest, latest));
                }
                for (label, bundle) in record.labels {
                    let found = view(repo, Through::Label(label.clone()), bundle);
                    add(label.as_str(), found);
                }
            }
            // Times are looked up only: there is no end of them.
            NameNode::Times(_) => {}
            NameNode::BusyStaging(_) => return Err(self.busy()),
            NameNode::Control(scope, folder) => {
                for name in self.control_names(scope, folder).await? {
                    let found = self.lookup_control(scope, folder, name.as_bytes()).await?;
                    add(&name, found);
                }
            }
            NameNode::Text(..) | NameNode::LabelLink(..) => return Err(VfsError::NotDirectory),
        }
        listed.sort_by(|a, b| a.name.cmp(&b.name));
        listed.retain(|entry| after.is_none_or(|after| entry.name > *after));
        listed.truncate(max);
        Ok(listed)
    }

    /// The bundles of a repo that are not removed.
    pub(super) async fn bundles(&self, repo: &RepoKey) -> Result<Vec<BundleId>, VfsError> {
        let record = self.refs(repo.id).await?;
        let listed = self.store.list(&self.store.keys().bundles(repo.id)).await?;
        let slots = listed.into_iter().filter(|(_, length)| *length != ABORTED_BYTES);
        let bundles = slots.filter_map(|(key, _)| key.name().parse().ok());
        Ok(bundles.filter(|bundle| !record.trashed.contains(bundle) && !record.purging.contains(bundle)).collect())
    }
}

pub(super) fn no_label(repo: &RepoKey, name: &str) -> VfsError {
    VfsError::Missing(format!(
        "{}: no label or bundle {name} (ls its labels/ and bundles/ to see which are)",
        repo.name
    ))
}

pub(super) fn repo_name(bytes: &[u8]) -> Option<RepoName> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

pub(super) fn label_name(bytes: &[u8]) -> Result<LabelName, VfsError> {
    let text = std::str::from_utf8(bytes).map_err(|_| VfsError::Invalid(NAME_FORM))?;
    if text == LATEST {
        return Err(VfsError::Misplaced(LATEST_FOLLOWS));
    }
    text.parse().map_err(|_| VfsError::Invalid(NAME_FORM))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_a_path_in_the_namespace() {
        let repo: RepoName = "census".parse().unwrap();
        assert_eq!("".parse(), Ok(Source::Context));
        assert_eq!("census/".parse(), Ok(Source::Repo(repo.clone())));
        assert_eq!("census/staging".parse(), Ok(Source::Staging(repo.clone())));
        assert_eq!("census/labels/v1".parse(), Ok(Source::Label(repo, "v1".to_owned())));
        assert!("census/diamonds/D".parse::<Source>().unwrap_err().contains("not in this version"));
        assert!("census/bundles/nonsense".parse::<Source>().is_err());
        assert!(".x".parse::<Source>().is_err());
    }
}
