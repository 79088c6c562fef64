//! Commit: an instant of a staging tree becomes a bundle (the steps W0 to W8 of the format).
//!
//! ```text
//!  W0–W2 register the intent → seal → W3 chunks to packs → W4 later rounds → W5 tables → W6 journal the descriptor
//!        → W7 PUT it: the commit → W8 history, latest, labels → mark what is stored
//! ```
//! W0 to W3 are in [`super::upload`], because they may have begun long before; W5 is in [`super::tables`].
//!
//! # Invariants
//!
//! 1. From W6 on only the journaled bytes go to the slot, in this life of the process or the next.
//! 2. Staged bytes stay until W7's outcome is known. A failed commit changes nothing but which packs exist.
//! 3. Memory does not grow with the number of files: what is known of each is in the database.
//!
//! Writers go on all the while: see [`super::seal`].

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{TryStreamExt, stream};
use tokio::sync::OwnedMutexGuard;

use super::error::StagingError;
use super::extents::{SealedExtents, next_extent};
use super::inode::{Inode, InodeBody, ROOT};
use super::journal::{Journal, Sealed as SealedDescriptor};
use super::queue::Queue;
pub use super::request::{CommitReport, CommitRequest, LabelReport, Sources};
use super::seal::Sealed;
use super::sharing::LastPacks;
use super::tables::{ChunkSource, Instant, Tables};
use super::tree::Tree;
use super::upload::{Active, Lane, Noting, PACK_BYTES, Token, UPLOADS};
use crate::content::packer::PackError;
use crate::content::reader::{ContentError, ContentReader};
use crate::faults::{FaultPoint, Faults};
use crate::format::derived::DerivedFrom;
use crate::format::descriptor::{Descriptor, Layer, PackTable};
use crate::format::envelope::{self, ObjectKind};
use crate::format::intent::Intent;
use crate::local::db::{Cursor, Family};
use crate::model::chunk::ChunkLayout;
use crate::model::entry::TreeCounts;
use crate::model::id::{BundleId, ObjectHash, RepoId, Run};
use crate::model::limits::{INLINE_BYTES_MAX, MESSAGE_BYTES_MAX, SMALL_FILE_BYTES_MAX};
use crate::model::name::LabelName;
use crate::snapshot::tree::{RangeCache, Snapshot, SnapshotError};
use crate::snapshot::writer::{TreeWriter, WriteError};
use crate::store::{Put, Store, StoreError, intents, refs};

/// How long a commit waits for what the background has under way.
const PATIENCE: Duration = Duration::from_secs(3);
/// Chunks read and hashed at once.
const HASHERS: usize = 4;
/// How long a discard waits for the background to leave off.
const LANE_LIMIT: Duration = Duration::from_secs(10);
/// Files that are marked as stored in one step; writers wait no longer than for that.
const MARK_STEP: usize = 256;

/// Why a commit did not come to its end. Everything stays staged.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// No bundle to fall back on, nothing to make one of.
    #[error("nothing staged")]
    NothingStaged,
    /// `latest` moved away from the base, and that was to be an error.
    #[error(
        "latest is {latest}, not this tree's base {base}: changes stay staged \
         (mount with diverged=allow and commit: both bundles are kept)"
    )]
    Diverged {
        /// What `latest` names.
        latest: String,
        /// What the tree is based on.
        base: String,
    },
    /// The message is too long.
    #[error("the message has more than {MESSAGE_BYTES_MAX} bytes")]
    MessageTooLong,
    /// The slot of this commit holds something else.
    #[error("the bundle's slot was taken: changes stay staged, commit again")]
    SlotTaken,
    /// The local side failed.
    #[error(transparent)]
    Staging(#[from] StagingError),
    /// The remote side failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Content of the base could not be read.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// The base could not be read.
    #[error(transparent)]
    Base(#[from] SnapshotError),
    /// A pack did not reach the store.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// The tables could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A label could not be set; the bundle is safe.
    #[error(transparent)]
    Label(#[from] refs::RefsError),
}

/// Commits one staging tree.
pub struct Committer {
    tree: Arc<Tree>,
    pub(super) store: Arc<Store>,
    reader: Arc<ContentReader>,
    ranges: RangeCache,
    pub(super) repo: RepoId,
    pub(super) who: String,
    pub(super) run: Run,
    pub(super) journal: Arc<Journal>,
    faults: Arc<Faults>,
    pub(super) lane: Arc<tokio::sync::Mutex<Lane>>,
    /// Tells the background that a commit wants the lane and will not wait for a store that does not answer.
    pub(super) wanted: tokio::sync::Notify,
    pub(super) queue: Arc<Queue>,
    pub(super) uploads_in_background: AtomicBool,
    pub(super) noting: Noting,
    /// Bytes after which a data pack is closed.
    pub(super) pack_bytes: AtomicUsize,
    pub(super) uploads_max: AtomicUsize,
    /// What the tree follows, and what that is.
    parent: Mutex<Option<Arc<Snapshot>>>,
    /// The bundle of an earlier life's commit that was finished when the tree was opened.
    finished: OnceLock<BundleId>,
    pub(super) last_packs: LastPacks,
}

impl Committer {
    /// A committer of `tree`; finishes what an earlier life of the process left at W6 or later.
    pub async fn open(
        tree: Arc<Tree>,
        store: Arc<Store>,
        reader: Arc<ContentReader>,
        ranges: RangeCache,
        repo: RepoId,
        who: String,
        faults: Arc<Faults>,
    ) -> Result<Arc<Self>, CommitError> {
        let journal = Arc::new(Journal::new(tree.db().clone())?);
        let run = Run(store.entropy.random() as u64);
        let base = tree.base().snapshot.clone();
        let committer = Self {
            parent: Mutex::new(base),
            finished: OnceLock::new(),
            last_packs: LastPacks::default(),
            lane: Arc::default(),
            wanted: tokio::sync::Notify::new(),
            queue: Arc::default(),
            uploads_in_background: AtomicBool::new(false),
            noting: Noting::default(),
            pack_bytes: AtomicUsize::new(PACK_BYTES),
            uploads_max: AtomicUsize::new(UPLOADS),
            tree,
            store,
            reader,
            ranges,
            repo,
            who,
            run,
            journal,
            faults,
        };
        committer.recover().await?;
        committer.find_parent().await?;
        // Of a store that does not answer now the next commit asks the same.
        if let Err(error) = committer.end_idle_intent(&mut *committer.lane.lock().await).await {
            tracing::warn!(%error, "an intent that nobody needs is still registered");
        }
        Ok(Arc::new(committer))
    }

    /// Learns from the journal what the tree follows.
    async fn find_parent(&self) -> Result<(), CommitError> {
        if let Some((bundle, _)) = self.journal.parent()? {
            let (reader, ranges) = (self.reader.clone(), self.ranges.clone());
            self.set_parent(Some(Snapshot::open(reader, ranges, self.repo, bundle).await?));
        }
        Ok(())
    }

    /// Opens what the tree follows, where that could not be done when it was published.
    pub(super) async fn refresh_parent(&self) -> Result<(), CommitError> {
        let follows = self.journal.parent()?.map(|(bundle, _)| bundle);
        let known = self.parent().map(|parent| parent.descriptor().bundle);
        if follows.is_none() || follows == known { Ok(()) } else { self.find_parent().await }
    }

    fn set_parent(&self, parent: Option<Arc<Snapshot>>) {
        *self.parent.lock().expect("nothing panics while it holds the parent") = parent;
    }

    /// The bundle that the next one follows.
    pub fn parent(&self) -> Option<Arc<Snapshot>> {
        self.parent.lock().expect("nothing panics while it holds the parent").clone()
    }

    /// Closes packs early from the next intent's on: for tests, which have small trees.
    #[cfg(test)]
    pub fn set_pack_bytes(&self, bytes: usize) {
        self.pack_bytes.store(bytes, Ordering::Relaxed);
    }

    /// The tree.
    pub fn tree(&self) -> &Arc<Tree> {
        &self.tree
    }

    /// Goes on with a commit that had reached W6 when its process ended, or when the store stopped answering.
    async fn recover(&self) -> Result<(), CommitError> {
        let Some(sealed) = self.journal.sealed()? else { return self.forget_sealed() };
        let descriptor = self.decode(&sealed.object)?;
        tracing::info!(bundle = %descriptor.bundle, "finishing an earlier commit");
        match self.publish(&descriptor, &sealed.object).await {
            Ok(()) => {}
            Err(CommitError::SlotTaken) => {
                self.tree.forget_uploads().await?;
                self.journal.finish(None)?;
                return self.forget_sealed();
            }
            Err(error) => return Err(error),
        }
        let summary = descriptor.summary(&sealed.object);
        // Where history was at the seal is not journaled: all of it is searched, as this is rare.
        let since = refs::Position::default();
        let entered = refs::enter(&self.store, self.repo, &summary, since, sealed.base, Some(sealed.base)).await?;
        for sentence in (LabelReport { refused: entered.labels_refused, moved: Vec::new() }).sentences() {
            tracing::warn!(bundle = %descriptor.bundle, "{sentence}");
        }
        // Whether the tree has changed since nobody knows: it stays as it is, and a commit that finds the same tables
        // makes no bundle.
        self.journal.finish(Some((descriptor.bundle, ObjectHash::of(&sealed.object))))?;
        self.finished.get_or_init(|| descriptor.bundle);
        self.mark_stored().await
    }

    /// The bundle of an earlier life's commit that was finished when the tree was opened.
    pub fn finished(&self) -> Option<BundleId> {
        self.finished.get().copied()
    }

    fn forget_sealed(&self) -> Result<(), CommitError> {
        Ok(SealedExtents(self.tree.db()).clear()?)
    }

    /// Says of every file of the published instant what it is in the store.
    async fn mark_stored(&self) -> Result<(), CommitError> {
        let sealed = SealedExtents(self.tree.db());
        let mut after = None;
        loop {
            let step = sealed.bodies(after, MARK_STEP)?;
            let Some((last, ..)) = step.last() else { return self.forget_sealed() };
            after = Some(*last);
            self.tree.mark_stored(&step).await?;
        }
    }

    fn decode(&self, object: &Bytes) -> Result<Descriptor, CommitError> {
        let body = envelope::open(ObjectKind::Descriptor, Some(self.store.context()), object)?;
        Ok(Descriptor::decode(&body)?)
    }

    /// Whether there is something to make a bundle of. A tree without a base whose entries were all removed again has nothing.
    pub async fn has_changes(&self) -> Result<bool, StagingError> {
        Ok(self.tree.is_dirty() && (self.parent().is_some() || !self.tree.list(ROOT, None, 1).await?.is_empty()))
    }

    /// Commits the tree as it is now. One commit at a time; a second waits for the first.
    ///
    /// Safe to drop: the next commit goes on with the same intent.
    pub async fn commit(self: &Arc<Self>, request: CommitRequest) -> Result<CommitReport, CommitError> {
        let mut lane = match tokio::time::timeout(PATIENCE, self.lane.clone().lock_owned()).await {
            Ok(lane) => lane,
            Err(_) => {
                self.wanted.notify_waiters();
                self.lane.clone().lock_owned().await
            }
        };
        if request.message.len() > MESSAGE_BYTES_MAX {
            return Err(CommitError::MessageTooLong);
        }
        if self.journal.sealed()?.is_some() {
            // An earlier try ended without knowing whether it had published: until that is known nothing else goes to
            // its slot, and what it published is what this one follows.
            lane.active = None;
            self.recover().await?;
        }
        self.refresh_parent().await?;
        self.tree.refuse_unwritten().await?;
        if !self.has_changes().await? {
            return self.unchanged(&request).await;
        }
        let parent = self.parent();
        let base = parent.as_ref().map(|parent| parent.descriptor().bundle);
        if request.fail_if_diverged {
            self.refuse_diverged(base).await?;
        }
        let mut outcome = self.try_commit(&mut lane, &request, parent.as_deref()).await;
        if let Err(CommitError::SlotTaken) = outcome {
            // Somebody gave up this intent in our place, because nothing was heard of it. A new one stores again what
            // may be gone.
            outcome = self.try_commit(&mut lane, &request, parent.as_deref()).await;
        }
        let report = match outcome {
            Ok(report) => report,
            Err(CommitError::Staging(error)) => return Err(self.tree.name_gone(error).await.into()),
            Err(error) => return Err(error),
        };
        self.clean_up(lane).await?;
        match report {
            Some(report) => Ok(report),
            None => self.unchanged(&request).await,
        }
    }

    /// One try under the intent that the journal has, or a new one.
    async fn try_commit(
        &self,
        lane: &mut Lane,
        request: &CommitRequest,
        parent: Option<&Snapshot>,
    ) -> Result<Option<CommitReport>, CommitError> {
        let outcome = match self.activate(lane).await {
            Ok(active) => self.commit_under(active, request, parent).await,
            Err(error) => Err(error),
        };
        // Published, in vain, or failed: what comes next begins with the journal.
        lane.active = None;
        outcome
    }

    /// Lets the local bytes of what is published go. In a mount nobody waits for that but the next commit.
    async fn clean_up(self: &Arc<Self>, lane: OwnedMutexGuard<Lane>) -> Result<(), CommitError> {
        if !self.uploads_in_background.load(Ordering::Relaxed) {
            return self.let_go().await;
        }
        let committer = self.clone();
        tokio::spawn(async move {
            if let Err(error) = committer.let_go().await {
                tracing::warn!(%error, "published bytes stay on the local disk until the next commit");
            }
            drop(lane);
        });
        Ok(())
    }

    async fn let_go(&self) -> Result<(), CommitError> {
        self.mark_stored().await?;
        // Who asked for the commit may have done so for the room.
        Ok(self.tree.reap().await?)
    }

    /// The commit under a registered intent; `None` if the tree turns out to be what the parent is.
    async fn commit_under(
        &self,
        active: &Active,
        request: &CommitRequest,
        parent: Option<&Snapshot>,
    ) -> Result<Option<CommitReport>, CommitError> {
        let base = parent.map(|parent| parent.descriptor().bundle);
        self.faults.hit(FaultPoint::AfterRegister);
        // A store that does not answer is found out by a short request: a pack under way may take minutes before it is
        // given up.
        intents::head(&self.store).await?;
        let labels = self.labels_named(request).await?;
        // What the background has under way is attached first, so that the instant knows of it.
        active.flush().await?;
        self.forget_sealed()?;
        let sealed = self.tree.seal().await?;
        // After the seal: what the instant holds was read from what is open now, or was before.
        let derived_from = request.sources.told();
        self.faults.hit(FaultPoint::AfterSeal);
        let linked = self.upload_sealed(active, &sealed).await?;
        self.faults.hit(FaultPoint::AfterData);
        // W4: a round that began meanwhile has not seen the intent.
        if intents::head(&self.store).await? != active.round {
            self.renew(&active.intent).await?;
        }
        let (descriptor, object) = self.tables(active, (&sealed, linked, derived_from), request, parent).await?;
        self.faults.hit(FaultPoint::AfterTables);
        if parent.is_some_and(|parent| parent.descriptor().layers == descriptor.layers) {
            // While it is open nobody can remove the parent: it ends before the tree is clean.
            self.give_up(&active.intent).await?;
            self.tree.mark_published(sealed.changes).await?;
            return Ok(None);
        }
        let since = refs::position(&self.store, self.repo).await?;
        self.journal.set_sealed(&SealedDescriptor { object: object.clone(), base })?;
        self.faults.hit(FaultPoint::AfterJournal);
        let published = self.publish(&descriptor, &object).await;
        if let Err(CommitError::SlotTaken) = published {
            self.tree.forget_uploads().await?;
            self.journal.finish(None)?;
        }
        published?;
        self.faults.hit(FaultPoint::AfterDescriptor);
        let summary = descriptor.summary(&object);
        let entered = refs::enter(&self.store, self.repo, &summary, since, base, None).await?;
        self.faults.hit(FaultPoint::AfterRefs);
        let new_bytes = self.journal.packs()?.iter().map(|pack| pack.length).sum();
        self.journal.finish(Some((descriptor.bundle, ObjectHash::of(&object))))?;
        self.tree.mark_published(sealed.changes).await?;
        self.tree.totals().committed();
        let bundle = descriptor.bundle;
        self.set_parent(Some(Snapshot::open(self.reader.clone(), self.ranges.clone(), self.repo, bundle).await?));
        Ok(Some(CommitReport {
            bundle,
            base,
            diverged: entered.diverged,
            changed: true,
            files: descriptor.counts.files,
            bytes: descriptor.counts.bytes,
            new_bytes,
            labels: LabelReport::new(entered, &labels),
        }))
    }

    /// What the labels of the repo name, where the commit is to move one.
    async fn labels_named(&self, request: &CommitRequest) -> Result<BTreeMap<LabelName, BundleId>, StoreError> {
        if request.labels.is_empty() {
            return Ok(BTreeMap::new());
        }
        Ok(refs::load(&self.store, self.repo).await?.map(|link| link.record.labels).unwrap_or_default())
    }

    /// W3: stores every chunk of the instant that was not attached before the seal. Answers the hard-linked inodes that it
    /// passed, which the tables begin with.
    async fn upload_sealed(&self, active: &Active, sealed: &Sealed) -> Result<Vec<(u64, Inode)>, CommitError> {
        let at = Instant { sealed, reader: &self.reader, chunk: self.tree.chunk() };
        let mut current = sealed.instant.cursor(Family::Extents);
        let mut linked = Vec::new();
        // As the background would have stored them: neighbours in a directory beside each other in a pack.
        let ranks = self.queue.ranks();
        let mut after = None;
        loop {
            let mut step = sealed.changed_inodes(after)?;
            let Some((last, _)) = step.last() else { break };
            after = Some(*last);
            linked.extend(step.iter().filter(|(_, inode)| inode.link.is_some()).cloned());
            // Most files are small and were attached in the background: nothing is set up for those.
            let mut outcome = Ok(());
            step.retain(|(ino, inode)| match self.is_attached(&mut current, *ino, inode) {
                Ok(is_attached) => !is_attached,
                Err(error) => {
                    outcome = Err(error);
                    false
                }
            });
            outcome?;
            step.sort_by_key(|(ino, _)| ranks.get(ino).copied().unwrap_or(usize::MAX));
            stream::iter(step.iter().map(Ok))
                .try_for_each_concurrent(HASHERS, |(ino, inode)| self.upload_file(active, at, *ino, inode))
                .await?;
        }
        active.flush().await?;
        Ok(linked)
    }

    /// Whether nothing of the inode has to be stored: no file's bytes, or one chunk that is attached.
    fn is_attached(&self, current: &mut Cursor<'_>, ino: u64, inode: &Inode) -> Result<bool, StagingError> {
        let InodeBody::File(file) = &inode.body else { return Ok(true) };
        let is_one_chunk = file.size <= self.tree.chunk().bytes();
        Ok(file.uploaded && is_one_chunk && file.is_local(0) && next_extent(current, ino, 0)?.is_some())
    }

    async fn upload_file(&self, active: &Active, at: Instant<'_>, ino: u64, inode: &Inode) -> Result<(), CommitError> {
        let InodeBody::File(file) = &inode.body else { return Ok(()) };
        if inode.nlink == 0 || file.is_stored() || file.size <= INLINE_BYTES_MAX as u64 {
            return Ok(());
        }
        let layout = ChunkLayout::new(file.size, self.tree.chunk());
        let layout = &layout;
        let small = file.size <= SMALL_FILE_BYTES_MAX as u64;
        stream::iter((0..layout.chunks()).map(Ok))
            .try_for_each_concurrent(HASHERS, |index| async move {
                let ChunkSource::Bytes(raw) = at.chunk(ino, file, layout, index).await? else { return Ok(()) };
                let token = Token::Sealed { ino, index };
                let known = active.store(&self.journal, token, raw, small).await?;
                Ok(SealedExtents(self.tree.db()).put(known.into_iter().map(|extent| (ino, index, extent)))?)
            })
            .await
    }

    /// W5: the tables of the instant, and the descriptor.
    async fn tables(
        &self,
        active: &Active,
        (sealed, linked, derived_from): (&Sealed, Vec<(u64, Inode)>, DerivedFrom),
        request: &CommitRequest,
        parent: Option<&Snapshot>,
    ) -> Result<(Descriptor, Bytes), CommitError> {
        let (store, journal) = (self.store.clone(), self.journal.clone());
        let writer = TreeWriter::new(store, journal, active.intent.id, self.run, parent).await?;
        let at = Instant { sealed, reader: &self.reader, chunk: self.tree.chunk() };
        let mut tables = Tables::new(at, self.tree.db(), parent, writer)?;
        tables.write(linked).await?;
        let descriptor = Descriptor {
            repo: self.repo,
            bundle: active.intent.bundle,
            intent: active.intent.id,
            time: self.store.clock.now(),
            chunk_size: self.tree.chunk(),
            who: request.who(&self.who).to_owned(),
            message: request.message.clone(),
            tool: concat!("datamon ", env!("CARGO_PKG_VERSION")).to_owned(),
            parents: parent.map(|parent| (parent.descriptor().bundle, parent.hash())).into_iter().collect(),
            labels: request.labels.clone(),
            counts: TreeCounts::default(),
            layers: vec![Layer::default()],
            packs: PackTable::Here(Vec::new()),
            derived_from,
        };
        let mut packs = self.journal.packs()?;
        let shared = self.journal.shared_packs()?;
        tables.writer.keep(&shared);
        packs.extend(shared);
        if let Some(base) = &sealed.base.snapshot {
            packs.extend(base.packs().await?);
        }
        let (descriptor, object) = tables.writer.finish(descriptor, &packs).await?;
        // Its tables lie in packs that hold no chunks: the next commit need not look there.
        if let PackTable::Here(all) = &descriptor.packs {
            let known: HashSet<_> = packs.iter().map(|pack| pack.id).collect();
            for pack in all.iter().filter(|pack| !known.contains(&pack.id)) {
                self.journal.index(pack.id, std::iter::empty())?;
            }
        }
        Ok((descriptor, object))
    }

    /// Gives up the intent of the next bundle, before the tree is put aside: its slot stays empty for good, and what was
    /// uploaded under it is not used again.
    pub async fn abandon(&self) -> Result<(), CommitError> {
        let busy = |what: &str| StagingError::Busy(format!("{what} (wait for it)"));
        let lane = tokio::time::timeout(LANE_LIMIT, self.lane.lock()).await;
        let mut lane = lane.map_err(|_| busy("the tree is being committed or uploaded"))?;
        self.refuse_sealed()?;
        lane.active = None;
        match self.journal.intent()? {
            Some(intent) => self.give_up(&intent).await,
            None => Ok(()),
        }
    }

    /// Refuses what must not be done while nobody knows whether an earlier commit was published.
    pub(super) fn refuse_sealed(&self) -> Result<(), CommitError> {
        match self.journal.sealed()? {
            Some(_) => {
                Err(StagingError::Busy("a commit has begun and is not finished (commit first)".to_owned()).into())
            }
            None => Ok(()),
        }
    }

    /// Gives up the intent of a tree without changes: nothing will fill its slot, and while that is empty nobody can remove
    /// its bases.
    async fn end_idle_intent(&self, lane: &mut Lane) -> Result<(), CommitError> {
        let is_idle = !self.tree.is_dirty() && self.journal.sealed()?.is_none();
        let Some(intent) = self.journal.intent()?.filter(|_| is_idle) else { return Ok(()) };
        lane.active = None;
        self.give_up(&intent).await
    }

    /// Fills the intent's slot for good.
    pub(super) async fn give_up(&self, intent: &Intent) -> Result<(), CommitError> {
        // Before the marker: once it is there, nothing of the intent may be named.
        self.next_packer().await;
        self.tree.forget_uploads().await?;
        intents::abort(&self.store, intent).await?;
        Ok(self.journal.finish(None)?)
    }

    /// The same, for many again: what works in the background has lost sight of it, and is begun anew.
    pub fn again(self) -> Arc<Self> {
        self.uploads_in_background.store(false, std::sync::atomic::Ordering::Relaxed);
        let committer = Arc::new(self);
        if let Err(error) = committer.upload_in_background() {
            tracing::warn!(%error, "nothing is uploaded before the next commit");
        }
        committer
    }

    /// The tree alone.
    pub fn into_tree(self) -> Arc<Tree> {
        self.tree
    }

    /// Lets a clean tree start from `snapshot` instead of `parent`; `false` if it has changes by now, or another parent.
    pub async fn follow(&self, parent: Option<BundleId>, snapshot: Arc<Snapshot>) -> Result<bool, CommitError> {
        let Ok(mut lane) = self.lane.try_lock() else { return Ok(false) };
        let is_parent = self.parent().map(|parent| parent.descriptor().bundle) == parent;
        if is_parent && !self.tree.is_dirty() {
            self.end_idle_intent(&mut lane).await?;
        }
        if !is_parent || !self.tree.rebase(snapshot.clone()).await? {
            return Ok(false);
        }
        lane.active = None;
        self.journal.finish(Some((snapshot.descriptor().bundle, snapshot.hash())))?;
        self.set_parent(Some(snapshot));
        Ok(true)
    }

    /// Nothing was changed: the answer is what the tree follows, and labels are set on that.
    async fn unchanged(&self, request: &CommitRequest) -> Result<CommitReport, CommitError> {
        let parent = self.parent().ok_or(CommitError::NothingStaged)?;
        let Descriptor { bundle, counts, .. } = *parent.descriptor();
        for label in &request.labels {
            refs::set_label(&self.store, self.repo, label, Some(bundle), false, request.who(&self.who)).await?;
        }
        let (files, bytes) = (counts.files, counts.bytes);
        let labels = LabelReport::default();
        Ok(CommitReport {
            bundle,
            base: Some(bundle),
            diverged: false,
            changed: false,
            files,
            bytes,
            new_bytes: 0,
            labels,
        })
    }

    async fn refuse_diverged(&self, base: Option<BundleId>) -> Result<(), CommitError> {
        let latest = refs::load(&self.store, self.repo).await?.and_then(|link| link.record.latest);
        if latest == base {
            return Ok(());
        }
        let name = |bundle: Option<BundleId>| bundle.map_or("none".to_owned(), |bundle| bundle.to_string());
        Err(CommitError::Diverged { latest: name(latest), base: name(base) })
    }

    /// W7.
    async fn publish(&self, descriptor: &Descriptor, object: &Bytes) -> Result<(), CommitError> {
        let key = self.store.keys().bundle(self.repo, descriptor.bundle);
        match self.store.put_new(&key, object).await? {
            Put::Ours => Ok(()),
            Put::Theirs(_) => Err(CommitError::SlotTaken),
        }
    }
}
