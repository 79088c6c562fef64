//! Commit: an instant of a staging tree becomes a bundle (the steps W0 to W8 of the format).
//!
//! ```text
//!  W0–W2 register the intent → seal → W3 chunks to packs → W4 later rounds → W5 tables → W6 journal the descriptor
//!        → W7 PUT it: the commit → W8 history, latest, labels → mark what is stored
//! ```
//!
//! # Invariants
//!
//! 1. A chunk is re-used only from packs of this intent or of a bundle that the intent names as a base.
//! 2. From W6 on only the journaled bytes go to the slot, in this life of the process or the next.
//! 3. Staged bytes stay until W7's outcome is known. A failed commit changes nothing but which packs exist.
//!
//! Writers go on all the while: see [`super::seal`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::{TryStreamExt, stream};

use super::inode::{FileData, Inode, InodeBody, ROOT};
use super::journal::{Journal, Sealed as SealedDescriptor};
use super::seal::Sealed;
use super::tree::{StagingError, Tree};
use crate::content::packer::{PackError, Packer, PackerConfig, StoredPack};
use crate::content::reader::{ContentError, ContentReader};
use crate::faults::{FaultPoint, Faults};
use crate::format::descriptor::{Descriptor, Layer, PackEntry, PackTable};
use crate::format::envelope::{self, ObjectKind};
use crate::format::intent::Intent;
use crate::format::pack::{HashedChunk, TRAILER_BYTES, open_footer, open_trailer};
use crate::format::range::{Row, RowKey, RowValue};
use crate::format::refs::Summary;
use crate::model::chunk::{ChunkIndex, ChunkLayout};
use crate::model::entry::{Body, Content, Extent, FileBody, FileKind, TreeCounts};
use crate::model::id::{BundleId, IntentId, LinkId, ObjectHash, RepoId, Run};
use crate::model::limits::{INLINE_BYTES_MAX, MESSAGE_BYTES_MAX, SMALL_FILE_BYTES_MAX};
use crate::model::name::{FileName, LabelName};
use crate::model::path::TreePath;
use crate::snapshot::tree::{RangeCache, Snapshot, SnapshotError, Table};
use crate::snapshot::writer::{TreeWriter, WriteError, content_id};
use crate::store::{Put, Store, StoreError, intents, refs};

/// Bytes after which a data pack is closed.
const PACK_BYTES: usize = 16 << 20;
/// Packs on their way at once: with the open one 80 MiB.
const UPLOADS: usize = 4;
/// Chunks read and hashed at once.
const HASHERS: usize = 4;

/// Why a commit did not come to its end. Everything stays staged.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// No bundle to fall back on, nothing to make one of.
    #[error("nothing staged")]
    NothingStaged,
    /// `latest` moved away from the base, and that was to be an error.
    #[error("latest is {latest}, not this tree's base {base}: changes stay staged")]
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

/// What is asked of a commit.
#[derive(Debug, Clone, Default)]
pub struct CommitRequest {
    /// The message.
    pub message: String,
    /// Labels to set on the bundle.
    pub labels: Vec<LabelName>,
    /// Refuse when `latest` is no longer the base.
    pub fail_if_diverged: bool,
}

/// What a commit did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitReport {
    /// The bundle that holds the tree.
    pub bundle: BundleId,
    /// What it follows.
    pub base: Option<BundleId>,
    /// `latest` was something else than the base.
    pub diverged: bool,
    /// Whether a new bundle was made.
    pub changed: bool,
    /// Names of non-directories in it.
    pub files: u64,
    /// Bytes of regular files in it.
    pub bytes: u64,
    /// Bytes of new data packs.
    pub new_bytes: u64,
}

/// Commits one staging tree.
pub struct Committer {
    tree: Arc<Tree>,
    store: Arc<Store>,
    reader: Arc<ContentReader>,
    ranges: RangeCache,
    repo: RepoId,
    who: String,
    run: Run,
    journal: Arc<Journal>,
    faults: Arc<Faults>,
    running: tokio::sync::Mutex<()>,
    /// What the tree follows, and what that is.
    parent: Mutex<Option<Arc<Snapshot>>>,
}

/// Chunks of changed files that are in the store now.
type Uploaded = Arc<Mutex<HashMap<(u64, u64), Extent>>>;

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
            running: tokio::sync::Mutex::new(()),
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
        if let Some((bundle, _)) = committer.journal.parent()? {
            let parent = Snapshot::open(committer.reader.clone(), committer.ranges.clone(), repo, bundle).await?;
            committer.set_parent(Some(parent));
        }
        Ok(Arc::new(committer))
    }

    fn set_parent(&self, parent: Option<Arc<Snapshot>>) {
        *self.parent.lock().expect("nothing panics while it holds the parent") = parent;
    }

    /// The bundle that the next one follows.
    pub fn parent(&self) -> Option<Arc<Snapshot>> {
        self.parent.lock().expect("nothing panics while it holds the parent").clone()
    }

    /// The tree.
    pub fn tree(&self) -> &Arc<Tree> {
        &self.tree
    }

    /// Goes on with a commit that had reached W6 when its process ended.
    async fn recover(&self) -> Result<(), CommitError> {
        let Some(sealed) = self.journal.sealed()? else { return Ok(()) };
        let descriptor = self.decode(&sealed.object)?;
        tracing::info!(bundle = %descriptor.bundle, "finishing a commit of an earlier life");
        match self.publish(&descriptor, &sealed.object).await {
            Ok(()) => {}
            Err(CommitError::SlotTaken) => {
                self.journal.finish(None)?;
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        let summary = self.summary(&descriptor, &sealed.object);
        // Where history was at the seal is not journaled: all of it is searched, as this is rare.
        let since = refs::Position::default();
        refs::enter(&self.store, self.repo, &summary, since, sealed.base, Some(sealed.base)).await?;
        // Whether the tree has changed since nobody knows: it stays as it is, and a commit that finds the same tables
        // makes no bundle.
        self.journal.finish(Some((descriptor.bundle, ObjectHash::of(&sealed.object))))?;
        Ok(())
    }

    fn decode(&self, object: &Bytes) -> Result<Descriptor, CommitError> {
        let body = envelope::open(ObjectKind::Descriptor, Some(self.store.context()), object)?;
        Ok(Descriptor::decode(&body)?)
    }

    /// Commits the tree as it is now. One commit at a time; a second waits for the first.
    ///
    /// Safe to drop: the next commit goes on with the same intent.
    pub async fn commit(&self, request: CommitRequest) -> Result<CommitReport, CommitError> {
        let _running = self.running.lock().await;
        if request.message.len() > MESSAGE_BYTES_MAX {
            return Err(CommitError::MessageTooLong);
        }
        if !self.tree.is_dirty() {
            return self.unchanged(&request).await;
        }
        let parent = self.parent();
        let base = parent.as_ref().map(|parent| parent.descriptor().bundle);
        if request.fail_if_diverged {
            self.refuse_diverged(base).await?;
        }
        let intent = self.registered_intent(base).await?;
        self.faults.hit(FaultPoint::AfterRegister);
        let sealed = self.tree.seal().await?;
        self.faults.hit(FaultPoint::AfterSeal);
        let work = Work { committer: self, intent: &intent, sealed: &sealed, parent: parent.as_deref() };
        let uploaded = work.upload().await?;
        self.faults.hit(FaultPoint::AfterData);
        let (descriptor, object, stored) = work.tables(&request, uploaded).await?;
        self.faults.hit(FaultPoint::AfterTables);
        if let Some(parent) = &parent
            && parent.descriptor().layers == descriptor.layers
        {
            self.tree.mark_published(sealed.changes).await?;
            return self.unchanged(&request).await;
        }
        let since = refs::position(&self.store, self.repo).await?;
        self.journal.set_sealed(&SealedDescriptor { object: object.clone(), base })?;
        self.faults.hit(FaultPoint::AfterJournal);
        let published = self.publish(&descriptor, &object).await;
        if let Err(CommitError::SlotTaken) = published {
            self.journal.finish(None)?;
        }
        published?;
        self.faults.hit(FaultPoint::AfterDescriptor);
        let summary = self.summary(&descriptor, &object);
        let entered = refs::enter(&self.store, self.repo, &summary, since, base, None).await?;
        self.faults.hit(FaultPoint::AfterRefs);
        let new_bytes = self.journal.packs()?.iter().map(|pack| pack.length).sum();
        self.journal.finish(Some((descriptor.bundle, ObjectHash::of(&object))))?;
        for (ino, version, body) in stored {
            self.tree.mark_stored(ino, version, body).await?;
        }
        self.tree.mark_published(sealed.changes).await?;
        let bundle = descriptor.bundle;
        self.set_parent(Some(Snapshot::open(self.reader.clone(), self.ranges.clone(), self.repo, bundle).await?));
        Ok(CommitReport {
            bundle,
            base,
            diverged: entered.diverged,
            changed: true,
            files: descriptor.counts.files,
            bytes: descriptor.counts.bytes,
            new_bytes,
        })
    }

    /// Lets a clean tree start from `snapshot` instead of `parent`; `false` if it has changes by now, or another parent.
    pub async fn follow(&self, parent: Option<BundleId>, snapshot: Arc<Snapshot>) -> Result<bool, CommitError> {
        let Ok(_running) = self.running.try_lock() else { return Ok(false) };
        let is_parent = self.parent().map(|parent| parent.descriptor().bundle) == parent;
        if !is_parent || !self.tree.rebase(snapshot.clone()).await? {
            return Ok(false);
        }
        self.journal.finish(Some((snapshot.descriptor().bundle, snapshot.hash())))?;
        self.set_parent(Some(snapshot));
        Ok(true)
    }

    /// Nothing was changed: the answer is what the tree follows, and labels are set on that.
    async fn unchanged(&self, request: &CommitRequest) -> Result<CommitReport, CommitError> {
        let parent = self.parent().ok_or(CommitError::NothingStaged)?;
        let Descriptor { bundle, counts, .. } = *parent.descriptor();
        for label in &request.labels {
            refs::set_label(&self.store, self.repo, label, Some(bundle), false).await?;
        }
        let (files, bytes) = (counts.files, counts.bytes);
        Ok(CommitReport { bundle, base: Some(bundle), diverged: false, changed: false, files, bytes, new_bytes: 0 })
    }

    async fn refuse_diverged(&self, base: Option<BundleId>) -> Result<(), CommitError> {
        let latest = refs::load(&self.store, self.repo).await?.and_then(|link| link.record.latest);
        if latest == base {
            return Ok(());
        }
        let name = |bundle: Option<BundleId>| bundle.map_or("none".to_owned(), |bundle| bundle.to_string());
        Err(CommitError::Diverged { latest: name(latest), base: name(base) })
    }

    /// W0 to W2, with the intent of an earlier try if there is one.
    async fn registered_intent(&self, base: Option<BundleId>) -> Result<Intent, CommitError> {
        let mut bases: Vec<BundleId> = base.into_iter().collect();
        bases.extend(self.tree.base().snapshot.as_ref().map(|base| base.descriptor().bundle));
        bases.sort_unstable();
        bases.dedup();
        let intent = match self.journal.intent()? {
            Some(intent) if intent.bases == bases => {
                self.adopt(&intent).await?;
                intent
            }
            _ => {
                let time = self.store.clock.now();
                let random = || self.store.entropy.random();
                let id = IntentId::from_parts(time.millis(), random());
                let bundle = BundleId::from_parts(time.millis(), random());
                Intent { time, id, repo: self.repo, bundle, bases, who: self.who.clone() }
            }
        };
        self.journal.set_intent(&intent)?;
        intents::register(&self.store, &intent, None).await?;
        Ok(intent)
    }

    /// Finds packs that an earlier life stored without learning of it: their chunks are not uploaded again.
    async fn adopt(&self, intent: &Intent) -> Result<(), CommitError> {
        let known: HashSet<_> = self.journal.packs()?.into_iter().map(|pack| pack.id).collect();
        for (key, length) in self.store.list_packs(intent.id).await? {
            let Ok(id) = key.name().parse() else { continue };
            if known.contains(&id) || length < TRAILER_BYTES as u64 {
                continue;
            }
            let trailer = self.store.get_range(&key, length - TRAILER_BYTES as u64..length).await?;
            let (footer_length, footer_hash) = open_trailer(&trailer)?;
            let end = length - TRAILER_BYTES as u64;
            let Some(start) = end.checked_sub(footer_length as u64) else { continue };
            let footer = self.store.get_range(&key, start..end).await?;
            let chunks = open_footer(id, &footer, footer_hash)?;
            self.journal.stored(PackEntry { id, length, footer_hash }, intent.bundle, chunks.into_iter())?;
        }
        Ok(())
    }

    /// W7.
    async fn publish(&self, descriptor: &Descriptor, object: &Bytes) -> Result<(), CommitError> {
        let key = self.store.keys().bundle(self.repo, descriptor.bundle);
        match self.store.put_new(&key, object).await? {
            Put::Ours => Ok(()),
            Put::Theirs(_) => Err(CommitError::SlotTaken),
        }
    }

    fn summary(&self, descriptor: &Descriptor, object: &Bytes) -> Summary {
        descriptor.summary(object)
    }
}

/// What one chunk of a sealed file is.
enum ChunkSource {
    /// A chunk that the store holds.
    Stored(Extent),
    /// Bytes that may have to be stored.
    Bytes(Bytes),
}

/// One commit under way.
struct Work<'a> {
    committer: &'a Committer,
    intent: &'a Intent,
    sealed: &'a Sealed,
    parent: Option<&'a Snapshot>,
}

impl Work<'_> {
    /// Bundles whose packs may be re-used: this one's own, and the bases.
    fn reusable(&self) -> Vec<BundleId> {
        let mut bundles = self.intent.bases.clone();
        bundles.push(self.intent.bundle);
        bundles
    }

    /// W3: stores every chunk of the instant that no pack of ours or of a base holds.
    async fn upload(&self) -> Result<Uploaded, CommitError> {
        self.index_bases().await?;
        let uploaded: Uploaded = Arc::default();
        let (journal, bundle, shared) = (self.committer.journal.clone(), self.intent.bundle, uploaded.clone());
        let failure: Arc<Mutex<Option<StagingError>>> = Arc::default();
        let failed = failure.clone();
        let done = move |pack: StoredPack<(u64, u64)>| {
            let entry = PackEntry { id: pack.id, length: pack.length, footer_hash: pack.footer_hash };
            let chunks = pack.placed.iter().map(|(_, id, at)| (*id, *at));
            if let Err(error) = journal.stored(entry, bundle, chunks) {
                failed.lock().expect("nothing panics while it holds it").get_or_insert(error);
            }
            let mut uploaded = shared.lock().expect("nothing panics while it holds the map");
            uploaded.extend(pack.placed.into_iter().map(|(token, id, at)| (token, Extent { id, at: Some(at) })));
        };
        let config = PackerConfig {
            intent: self.intent.id,
            run: self.committer.run,
            target_bytes: PACK_BYTES,
            uploads_max: UPLOADS,
        };
        let packer = Packer::new(config, self.committer.store.clone(), self.committer.journal.clone(), done);
        let mut after = None;
        loop {
            let step = self.sealed.changed_inodes(after)?;
            let Some((last, _)) = step.last() else { break };
            after = Some(*last);
            for (ino, inode) in step {
                self.upload_file(ino, &inode, &packer, &uploaded).await?;
            }
        }
        packer.flush().await?;
        match failure.lock().expect("nothing panics while it holds it").take() {
            Some(error) => Err(error.into()),
            None => Ok(uploaded),
        }
    }

    async fn upload_file(
        &self,
        ino: u64,
        inode: &Inode,
        packer: &Packer<(u64, u64)>,
        uploaded: &Uploaded,
    ) -> Result<(), CommitError> {
        let InodeBody::File(file) = &inode.body else { return Ok(()) };
        if inode.nlink == 0 || file.is_stored() || file.size <= INLINE_BYTES_MAX as u64 {
            return Ok(());
        }
        let layout = ChunkLayout::new(file.size, self.committer.tree.chunk());
        let small = file.size <= SMALL_FILE_BYTES_MAX as u64;
        let bases = self.reusable();
        stream::iter((0..layout.chunks()).map(Ok))
            .try_for_each_concurrent(HASHERS, |index| {
                let bases = &bases;
                async move {
                    let source = self.chunk(file, &layout, index).await?;
                    let extent = match source {
                        ChunkSource::Stored(extent) => extent,
                        ChunkSource::Bytes(bytes) => {
                            let hashed = tokio::task::spawn_blocking(move || identify(bytes));
                            let (chunk, bytes) = hashed.await.expect("hashing does not panic");
                            let id = chunk.id();
                            match bytes {
                                None => Extent { id, at: None },
                                Some(bytes) => match self.committer.journal.find(id, bases)? {
                                    Some(at) => Extent { id, at: Some(at) },
                                    None => {
                                        packer.put((ino, index), chunk, bytes, small).await?;
                                        return Ok::<_, CommitError>(());
                                    }
                                },
                            }
                        }
                    };
                    uploaded.lock().expect("nothing panics while it holds the map").insert((ino, index), extent);
                    Ok(())
                }
            })
            .await
    }

    /// What chunk `index` of a sealed file is.
    async fn chunk(&self, file: &FileData, layout: &ChunkLayout, index: u64) -> Result<ChunkSource, CommitError> {
        let span = layout.span(ChunkIndex(index));
        let len = (span.end - span.start) as usize;
        if let Some(id) = file.local
            && file.is_local(index)
        {
            let data = self.sealed.data().clone();
            let read = tokio::task::spawn_blocking(move || data.read_chunk(id, index, len));
            let bytes = read.await.expect("reading does not panic").map_err(StagingError::from)?;
            return Ok(ChunkSource::Bytes(bytes.into()));
        }
        let Some(base) = &file.base else { return Ok(ChunkSource::Bytes(vec![0; len].into())) };
        let chunk_size = self.committer.tree.chunk();
        let same =
            ChunkLayout::new(base.size, chunk_size).span(ChunkIndex(index)) == span && span.end <= file.base_limit;
        if same && !matches!(base.content, Content::Inline(_)) {
            return Ok(ChunkSource::Stored(self.committer.reader.extent(base, ChunkIndex(index)).await?));
        }
        let shown = span.start.min(file.base_limit)..span.end.min(file.base_limit);
        let mut bytes = self.committer.reader.read(base, chunk_size, shown).await?.to_vec();
        bytes.resize(len, 0);
        Ok(ChunkSource::Bytes(bytes.into()))
    }

    /// Notes where the chunks of the bases lie, once a base.
    async fn index_bases(&self) -> Result<(), CommitError> {
        let Some(parent) = self.parent else { return Ok(()) };
        let bundle = parent.descriptor().bundle;
        if self.committer.journal.is_indexed(bundle)? {
            return Ok(());
        }
        let mut ordinal = 0;
        while let Some((start, rows)) = parent.range_at(Table::Files, ordinal).await? {
            let mut chunks = Vec::new();
            for row in rows.iter() {
                let RowValue::Entry(entry) = &row.value else { continue };
                let Body::File(file) = &entry.body else { continue };
                let layout = ChunkLayout::new(file.size, self.committer.tree.chunk());
                if matches!(file.content, Content::Inline(_)) {
                    continue;
                }
                for index in 0..layout.chunks() {
                    let extent = self.committer.reader.extent(file, ChunkIndex(index)).await?;
                    chunks.extend(extent.at.map(|at| (extent.id, at)));
                }
            }
            self.committer.journal.index(bundle, chunks.into_iter())?;
            ordinal = start + rows.len() as u64;
        }
        Ok(self.committer.journal.set_indexed(bundle)?)
    }

    /// W5: the tables of the instant, and the descriptor; also which files are now in the store, as what.
    async fn tables(
        &self,
        request: &CommitRequest,
        uploaded: Uploaded,
    ) -> Result<(Descriptor, Bytes, Vec<(u64, u64, FileBody)>), CommitError> {
        let committer = self.committer;
        let uploaded = std::mem::take(&mut *uploaded.lock().expect("nothing panics while it holds the map"));
        let mut tables = Tables {
            work: self,
            uploaded,
            writer: TreeWriter::new(
                committer.store.clone(),
                committer.journal.clone(),
                self.intent.id,
                committer.run,
                self.parent,
            )
            .await?,
            changed: HashMap::new(),
            bodies: HashMap::new(),
            stored: Vec::new(),
        };
        tables.load_changed()?;
        tables.link_rows().await?;
        tables.walk().await?;
        let descriptor = Descriptor {
            repo: committer.repo,
            bundle: self.intent.bundle,
            intent: self.intent.id,
            time: committer.store.clock.now(),
            chunk_size: committer.tree.chunk(),
            who: committer.who.clone(),
            message: request.message.clone(),
            tool: concat!("datamon ", env!("CARGO_PKG_VERSION")).to_owned(),
            parents: self.parent.map(|parent| (parent.descriptor().bundle, parent.hash())).into_iter().collect(),
            labels: request.labels.clone(),
            counts: TreeCounts::default(),
            layers: vec![Layer::default()],
            packs: PackTable::Here(Vec::new()),
        };
        let mut packs = committer.journal.packs()?;
        if let Some(base) = &self.sealed.base.snapshot {
            packs.extend(base.packs().await?);
        }
        let (descriptor, object) = tables.writer.finish(descriptor, &packs).await?;
        Ok((descriptor, object, tables.stored))
    }
}

/// The id of a chunk, and its bytes unless they are all zero.
fn identify(bytes: Bytes) -> (HashedChunk, Option<Bytes>) {
    let chunk = HashedChunk::of(&bytes);
    let is_hole = bytes.iter().all(|byte| *byte == 0);
    (chunk, (!is_hole).then_some(bytes))
}

/// The walk that turns an instant into rows.
struct Tables<'a> {
    work: &'a Work<'a>,
    writer: TreeWriter,
    uploaded: HashMap<(u64, u64), Extent>,
    changed: HashMap<u64, Inode>,
    /// Content of hard-linked files, which several names lead to.
    bodies: HashMap<u64, u64>,
    stored: Vec<(u64, u64, FileBody)>,
}

impl Tables<'_> {
    fn load_changed(&mut self) -> Result<(), CommitError> {
        let mut after = None;
        loop {
            let step = self.work.sealed.changed_inodes(after)?;
            let Some((last, _)) = step.last() else { return Ok(()) };
            after = Some(*last);
            self.changed.extend(step);
        }
    }

    /// Link rows stand before all others: those of the base that are left, and new ones, by group.
    async fn link_rows(&mut self) -> Result<(), CommitError> {
        let mut groups: BTreeMap<LinkId, (u64, Inode)> = BTreeMap::new();
        if let Some(snapshot) = &self.work.sealed.base.snapshot {
            let mut ordinal = 0;
            'ranges: while let Some((start, rows)) = snapshot.range_at(Table::Files, ordinal).await? {
                for (at, row) in rows.iter().enumerate() {
                    if !row.key.is_link() {
                        break 'ranges;
                    }
                    let id = crate::snapshot::RowId { table: Table::Files, ordinal: (start + at as u64) as u32 };
                    let ino = self.work.sealed.base.ino(id);
                    let inode = self.work.sealed.base.inode(ino).await?;
                    if let Some(link) = inode.link {
                        groups.insert(link, (ino, inode));
                    }
                }
                ordinal = start + rows.len() as u64;
            }
        }
        for (ino, inode) in &self.changed {
            if let Some(link) = inode.link {
                groups.insert(link, (*ino, inode.clone()));
            }
        }
        for (link, (ino, inode)) in groups {
            if inode.nlink > 1 {
                let body = self.body(ino, &inode, None).await?;
                let size = if let Body::File(file) = &body { file.size } else { 0 };
                self.bodies.insert(ino, size);
                let row = Row { key: RowKey::link(link), value: RowValue::Entry(inode.entry(body)) };
                self.writer.file(row, 0).await?;
            }
        }
        Ok(())
    }

    /// Every directory before what is in it, names in bytewise order: the order of keys.
    async fn walk(&mut self) -> Result<(), CommitError> {
        let root = self.work.sealed.inode(ROOT).await?;
        let body = Body::Directory { counts: TreeCounts::default(), opaque: false };
        self.writer.directory(RowKey::root(), root.entry(body));
        let mut waiting = vec![(ROOT, root, TreePath::root())];
        while let Some((ino, inode, path)) = waiting.pop() {
            let mut below = Vec::new();
            for (name, child, base_inode) in self.work.sealed.children(ino, &inode).await? {
                let inode = match (self.changed.get(&child), base_inode) {
                    (Some(changed), _) => changed.clone(),
                    (None, Some(inode)) => inode,
                    (None, None) => self.work.sealed.inode(child).await?,
                };
                let key = RowKey::child(&path, &name);
                if inode.kind() == FileKind::Directory {
                    let body = Body::Directory { counts: TreeCounts::default(), opaque: false };
                    let mut entry = inode.entry(body);
                    entry.nlink = 1;
                    self.writer.directory(key, entry);
                    below.push((child, inode, path.join(&name)));
                } else {
                    let before = self.file_before(&path, &name, child, &inode).await?;
                    self.file(key, child, inode, before).await?;
                }
            }
            waiting.extend(below.into_iter().rev());
        }
        Ok(())
    }

    /// What the parent has at this path, if the file is one of several chunks that this commit has read anew.
    async fn file_before(
        &self,
        path: &TreePath,
        name: &FileName,
        ino: u64,
        inode: &Inode,
    ) -> Result<Option<FileBody>, CommitError> {
        let (InodeBody::File(_), Some(parent)) = (&inode.body, self.work.parent) else { return Ok(None) };
        if !self.uploaded.contains_key(&(ino, 1)) {
            return Ok(None);
        }
        match parent.lookup(path, name).await?.map(|(_, entry)| entry.body) {
            Some(Body::File(before)) => Ok(Some(before)),
            _ => Ok(None),
        }
    }

    async fn file(&mut self, key: RowKey, ino: u64, inode: Inode, before: Option<FileBody>) -> Result<(), CommitError> {
        if inode.nlink > 1 {
            let inode = match inode.link {
                Some(_) => inode,
                None => self.work.sealed.inode(ino).await?,
            };
            let link = inode.link.ok_or(StagingError::damaged("hard link without a group"))?;
            let bytes = self.bodies.get(&ino).copied().unwrap_or(0);
            return Ok(self.writer.file(Row { key, value: RowValue::Link(link) }, bytes).await?);
        }
        let body = self.body(ino, &inode, before).await?;
        let bytes = if let Body::File(file) = &body { file.size } else { 0 };
        Ok(self.writer.file(Row { key, value: RowValue::Entry(inode.entry(body)) }, bytes).await?)
    }

    async fn body(&mut self, ino: u64, inode: &Inode, before: Option<FileBody>) -> Result<Body, CommitError> {
        let file = match &inode.body {
            InodeBody::Directory => return Ok(Body::Directory { counts: TreeCounts::default(), opaque: false }),
            InodeBody::Other(body) => return Ok(body.clone()),
            InodeBody::File(file) => file,
        };
        if let (true, Some(body)) = (file.is_stored(), &file.base) {
            if matches!(body.content, Content::Extents { .. }) {
                self.writer.names_unread_blocks();
            }
            return Ok(Body::File(body.clone()));
        }
        let body = FileBody { size: file.size, content: self.content(ino, file, before).await?, b3sum: None };
        self.stored.push((ino, inode.version, body.clone()));
        Ok(Body::File(body))
    }

    async fn content(&mut self, ino: u64, file: &FileData, before: Option<FileBody>) -> Result<Content, CommitError> {
        let layout = ChunkLayout::new(file.size, self.work.committer.tree.chunk());
        if file.size == 0 {
            return Ok(Content::Inline(Bytes::new()));
        }
        if file.size <= INLINE_BYTES_MAX as u64 {
            return match self.work.chunk(file, &layout, 0).await? {
                ChunkSource::Bytes(bytes) => Ok(Content::Inline(bytes)),
                ChunkSource::Stored(extent) => Ok(Content::Chunk(extent)),
            };
        }
        let mut extents = Vec::with_capacity(layout.chunks() as usize);
        for index in 0..layout.chunks() {
            let extent = self.uploaded.remove(&(ino, index));
            extents.push(extent.ok_or(StagingError::damaged("a chunk was not uploaded"))?);
        }
        if let Some(FileBody { content: content @ Content::Extents { id, .. }, .. }) = &before
            && *id == content_id(file.size, &extents)
        {
            // The same bytes as before: its blocks are there, and the row comes out byte-equal.
            self.writer.names_unread_blocks();
            return Ok(content.clone());
        }
        match extents[..] {
            [extent] => Ok(Content::Chunk(extent)),
            _ => Ok(self.writer.extents(file.size, &extents, before.as_ref().or(file.base.as_ref())).await?),
        }
    }
}
