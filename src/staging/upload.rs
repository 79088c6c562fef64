//! Bytes on their way to the store, before and during a commit (W0 to W3 of the format).
//!
//! One [`Lane`] a tree: whoever stores something holds it, the background after files were closed, or a commit. An
//! [`Active`] intent is registered with the first byte, is used by both, and ends with the bundle that it becomes.
//!
//! ```text
//!   close ──queue──> (a second later) read → hash → known? → pack → PUT → attach to the file, if it did not change
//!   commit ───────────────────────── the same for what is not attached, from the sealed instant
//! ```
//!
//! # Invariants
//!
//! 1. A chunk is re-used only from packs of this intent or of a base that the intent names.
//! 2. The bytes that are packed are the very buffer that was hashed.
//! 3. What a packer brings home after the next one was made, or after its intent was given up, counts for nothing: it would
//!    speak of another instant, or of an intent whose packs nothing keeps. [`Committer::next_packer`] sees to that.
//! 4. Writing never waits for the background, and the background never keeps a commit waiting longer than one pack does.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};

use super::commit::{CommitError, Committer};
use super::error::StagingError;
use super::extents::{Attached, SealedExtents};
use super::inode::InodeBody;
use super::journal::Journal;
use super::queue::Queue;
use super::retired::reap_always;
use super::tree::{Tree, for_each_inode};
use crate::content::packer::{PackError, Packer, PackerConfig, StoredPack};
use crate::format::FormatError;
use crate::format::descriptor::PackEntry;
use crate::format::intent::Intent;
use crate::format::pack::{HashedChunk, TRAILER_BYTES, open_footer, open_trailer};
use crate::local::staged_files::Raw;
use crate::model::entry::{Extent, Locator};
use crate::model::id::{BundleId, ChunkId, IntentId, PackId};
use crate::model::limits::{INLINE_BYTES_MAX, PACK_BYTES_TARGET_MIN, SMALL_FILE_BYTES_MAX};
use crate::snapshot::Snapshot;
use crate::store::{Store, StoreError, intents};

/// Bytes after which a data pack is closed.
pub(super) const PACK_BYTES: usize = 16 << 20;
/// The same where there is little memory: smaller ones cost too many requests.
const PACK_BYTES_MIN: usize = PACK_BYTES_TARGET_MIN;
/// Packs on their way at once for which they are of that size, and where nobody says how many: with the open one 80 MiB.
pub(super) const UPLOADS: usize = 4;
/// Footers of the bases' packs that are fetched at once.
const FOOTERS: usize = 8;
/// Bytes up to which a chunk is hashed at once: the way to another thread takes longer.
const INLINE_HASH_BYTES_MAX: usize = SMALL_FILE_BYTES_MAX;
/// How long nothing has to come before the background does the housekeeping.
const IDLE: Duration = Duration::from_secs(10);
/// Pauses of the background after a failure, doubled from the first to the last.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What a stored chunk is for.
pub(super) enum Token {
    /// A file as it was at a version.
    Live { ino: u64, version: u64, index: u64 },
    /// The instant that is being committed.
    Sealed { ino: u64, index: u64 },
}

/// What only one may do at a time: see the module.
#[derive(Default)]
pub(super) struct Lane {
    pub active: Option<Active>,
}

/// An intent that is registered, and what is stored under it in this life of the process.
pub(super) struct Active {
    pub intent: Intent,
    /// The collection round under which it is registered.
    pub round: u64,
    packer: Packer<Token>,
    /// Packs of the bases.
    reusable: HashSet<PackId>,
}

impl Active {
    /// Closes the open pack and waits until everything that was put is stored and noted.
    pub async fn flush(&self) -> Result<(), CommitError> {
        Ok(self.packer.flush().await?)
    }

    /// Stores a chunk unless it is known: then, or if it is all zeros, the answer is what it is.
    pub async fn store(
        &self,
        journal: &Journal,
        token: Token,
        raw: Raw,
        small: bool,
    ) -> Result<Option<Extent>, CommitError> {
        let raw = match raw {
            Raw::Hole(len) => return Ok(Some(Extent { id: hole(len), at: None })),
            Raw::Bytes(raw) => raw,
        };
        let (chunk, bytes) = if raw.len() <= INLINE_HASH_BYTES_MAX {
            identify(raw.into())
        } else {
            let hashed = tokio::task::spawn_blocking(move || identify(raw.into()));
            hashed.await.expect("hashing does not panic")
        };
        let id = chunk.id();
        let Some(bytes) = bytes else { return Ok(Some(Extent { id, at: None })) };
        if let Some(at) = self.reusable(journal.find(id)?) {
            return Ok(Some(Extent { id, at: Some(at) }));
        }
        self.packer.put(token, chunk, bytes, small).await?;
        Ok(None)
    }

    fn reusable(&self, found: Option<Locator>) -> Option<Locator> {
        found.filter(|at| at.pack.intent == self.intent.id || self.reusable.contains(&at.pack))
    }
}

/// The id of a chunk of so many zeros. Of whole chunks it is remembered: a sparse file may have a hundred thousand.
fn hole(len: usize) -> ChunkId {
    static KNOWN: Mutex<BTreeMap<usize, ChunkId>> = Mutex::new(BTreeMap::new());
    let known = || KNOWN.lock().expect("nothing panics while it holds the ids");
    if let Some(id) = known().get(&len) {
        return *id;
    }
    let id = ChunkId::of(&crate::content::reader::zeros(len));
    if len.is_power_of_two() {
        known().insert(len, id);
    }
    id
}

/// A chunk's id and proof, and its bytes unless they are all zero.
fn identify(bytes: Bytes) -> (HashedChunk, Option<Bytes>) {
    let chunk = HashedChunk::of(&bytes);
    let is_hole = bytes.chunks(4096).all(|part| part == &crate::content::reader::zeros(part.len())[..]);
    (chunk, (!is_hole).then_some(bytes))
}

/// The number of the newest packer of a tree; whoever notes what a stored pack means holds it meanwhile.
pub(super) type Noting = Arc<tokio::sync::Mutex<u64>>;

/// What a pack that came to be stored means for the tree: noted before its tokens count.
fn noted(
    tree: Arc<Tree>,
    journal: Arc<Journal>,
    (noting, packer): (Noting, u64),
    pack: StoredPack<Token>,
) -> BoxFuture<'static, Result<(), PackError>> {
    let note = async move {
        let newest = noting.lock().await;
        if *newest != packer {
            return Ok(());
        }
        let entry = PackEntry { id: pack.id, length: pack.length, footer_hash: pack.footer_hash };
        journal.stored(entry, pack.placed.iter().map(|(_, id, at)| (*id, *at)))?;
        tree.totals().stored(pack.placed.iter().map(|(_, _, at)| u64::from(at.len)).sum());
        let mut live = Vec::new();
        let mut sealed = Vec::new();
        for (token, id, at) in pack.placed {
            let extent = Extent { id, at: Some(at) };
            match token {
                Token::Live { ino, version, index } => live.push(Attached { ino, version, index, extent }),
                Token::Sealed { ino, index } => sealed.push((ino, index, extent)),
            }
        }
        SealedExtents(tree.db()).put(sealed.into_iter())?;
        tree.attach(&live).await
    };
    note.map(|outcome: Result<(), StagingError>| outcome.map_err(|why| PackError::Journal(why.to_string()))).boxed()
}

/// Of how many bytes a pack is, and how many are on their way besides the open one, with `bytes` of memory for all of
/// them and `uploads` requests at once. There are always two.
fn pack_bounds(bytes: usize, uploads: usize) -> (usize, usize) {
    let pack_bytes = if bytes < (UPLOADS + 1) * PACK_BYTES { PACK_BYTES_MIN } else { PACK_BYTES };
    (pack_bytes, (bytes / pack_bytes).saturating_sub(1).clamp(1, uploads.max(1)))
}

impl Committer {
    /// What packs may take of the memory, and how many may be on their way, from the next intent on.
    pub fn set_pack_bounds(&self, bytes: usize, uploads: usize) {
        let (pack_bytes, uploads_max) = pack_bounds(bytes, uploads);
        self.pack_bytes.store(pack_bytes, std::sync::atomic::Ordering::Relaxed);
        self.uploads_max.store(uploads_max, std::sync::atomic::Ordering::Relaxed);
    }

    /// Notes that the last writer of a file has closed it: its bytes may be uploaded before the commit.
    pub fn closed(&self, ino: u64) {
        if self.uploads_in_background.load(std::sync::atomic::Ordering::Relaxed) {
            self.queue.closed(self.tree().births().take(ino), ino);
        }
    }

    /// Uploads files in the background from now on: what is staged already, and what is closed later.
    pub fn upload_in_background(self: &Arc<Self>) -> Result<(), StagingError> {
        if self.uploads_in_background.swap(true, std::sync::atomic::Ordering::Relaxed) {
            return Ok(());
        }
        if self.tree().is_dirty() {
            for_each_inode(self.tree().db(), |ino, inode| {
                if matches!(&inode.body, InodeBody::File(file) if file.local.is_some()) {
                    self.queue.push(ino);
                }
                Ok(())
            })?;
        }
        tokio::spawn(background(Arc::downgrade(self), self.queue.clone()));
        tokio::spawn(reap_always(Arc::downgrade(self.tree()), self.tree().retired().clone()));
        Ok(())
    }

    /// Registers the intent of the next bundle if it is not (W0 to W2), and learns what may be re-used.
    ///
    /// Not while it is unknown whether an earlier commit was published: what is stored under its intent then is in no bundle.
    pub(super) async fn activate<'a>(&self, lane: &'a mut Lane) -> Result<&'a Active, CommitError> {
        self.refuse_sealed()?;
        if lane.active.is_none() {
            // Before packs are looked for in the store: one that comes in between is found there.
            self.next_packer().await;
            self.refresh_parent().await?;
            let parent = self.parent();
            let (intent, round) = self.registered_intent(parent.as_deref()).await?;
            let number = *self.noting.lock().await;
            let base = self.tree().base().snapshot.clone();
            let bases: Vec<_> = parent.into_iter().chain(base).collect();
            let reusable = self.index_packs(&bases).await?;
            let (tree, journal) = (self.tree().clone(), self.journal.clone());
            let noting = self.noting.clone();
            let done = move |pack| noted(tree.clone(), journal.clone(), (noting.clone(), number), pack);
            let target_bytes = self.pack_bytes.load(std::sync::atomic::Ordering::Relaxed);
            let uploads_max = self.uploads_max.load(std::sync::atomic::Ordering::Relaxed);
            let config = PackerConfig { intent: intent.id, run: self.run, target_bytes, uploads_max };
            let packer = Packer::new(config, self.store.clone(), self.journal.clone(), done);
            lane.active = Some(Active { intent, round, packer, reusable });
        }
        Ok(lane.active.as_ref().expect("made above"))
    }

    /// From here on nothing is noted that earlier packers have on its way.
    pub(super) async fn next_packer(&self) {
        *self.noting.lock().await += 1;
    }

    /// W0 to W2, with the intent of an earlier try if there is one. Answers the round, too.
    async fn registered_intent(&self, parent: Option<&Snapshot>) -> Result<(Intent, u64), CommitError> {
        let base = self.tree().base();
        let both = parent.into_iter().chain(base.snapshot.as_deref());
        self.journal.forget_begun_joins()?;
        let mut bases: Vec<BundleId> = both.map(|snapshot| snapshot.descriptor().bundle).collect();
        bases.extend(self.journal.joined()?.into_iter().filter(|(record, _)| *record == 0).map(|(_, bundle)| bundle));
        bases.sort_unstable();
        bases.dedup();
        let intent = match self.journal.intent()? {
            Some(intent) if intent.bases == bases => {
                self.adopt(&intent).await?;
                if self.journal.is_accepted()? {
                    let round = self.renew(&intent).await?;
                    return Ok((intent, round));
                }
                intent
            }
            other => {
                if let Some(intent) = other {
                    self.give_up(&intent).await?;
                }
                let time = self.store.clock.now();
                let random = || self.store.entropy.random();
                let id = IntentId::from_parts(time.millis(), random());
                let bundle = BundleId::from_parts(time.millis(), random());
                Intent { time, id, repo: self.repo, bundle, bases, who: self.who.clone() }
            }
        };
        self.journal.set_intent(&intent)?;
        let round = self.renew(&intent).await?;
        intents::check(&self.store, &intent).await?;
        self.journal.set_accepted()?;
        Ok((intent, round))
    }

    /// Registers the intent, with all that joined it, under the newest round (W1, W4). Answers that.
    pub(super) async fn renew(&self, intent: &Intent) -> Result<u64, CommitError> {
        Ok(intents::renew_all(&self.store, intent, &self.journal.further()?).await?)
    }

    /// Finds packs that an earlier life stored without learning of it: their chunks are not uploaded again.
    async fn adopt(&self, intent: &Intent) -> Result<(), CommitError> {
        let known: HashSet<_> = self.journal.packs()?.into_iter().map(|pack| pack.id).collect();
        for (key, length) in self.store.list_packs(intent.id).await? {
            let Ok(id) = key.name().parse() else { continue };
            if known.contains(&id) || length < TRAILER_BYTES as u64 {
                continue;
            }
            let end = length - TRAILER_BYTES as u64..length;
            let (_, footer_hash) = self.store.get_checked(&key, Some(end), |trailer| open_trailer(trailer)).await?;
            let pack = PackEntry { id, length, footer_hash };
            let chunks = footer_chunks(&self.store, &pack).await?;
            self.journal.stored(pack, chunks.into_iter())?;
        }
        Ok(())
    }

    /// Notes where the chunks of the bases' data packs lie, once a pack. Answers the packs.
    async fn index_packs(&self, bases: &[Arc<Snapshot>]) -> Result<HashSet<PackId>, CommitError> {
        let mut packs = Vec::new();
        for base in bases {
            packs.extend(base.packs().await?);
        }
        let reusable: HashSet<PackId> = packs.iter().map(|pack| pack.id).collect();
        let mut unknown = Vec::new();
        for pack in packs {
            if !self.journal.is_indexed(pack.id)? {
                unknown.push(pack);
            }
        }
        let footers = stream::iter(unknown).map(|pack| async move {
            match footer_chunks(&self.store, &pack).await {
                Ok(chunks) => Ok::<_, CommitError>((pack.id, chunks)),
                // A metadata pack: no chunks, another prefix.
                Err(CommitError::Store(StoreError::NotFound { .. })) => Ok((pack.id, Vec::new())),
                Err(error) => Err(error),
            }
        });
        let journal = &self.journal;
        let index = |(pack, chunks): (PackId, Vec<_>)| async move { Ok(journal.index(pack, chunks.into_iter())?) };
        footers.buffer_unordered(FOOTERS).try_for_each(index).await?;
        Ok(reusable)
    }

    /// Uploads a file now, and what else waits in the open pack: for tests.
    #[cfg(test)]
    pub(super) async fn upload_now(&self, ino: u64) {
        self.upload_live(ino).await.expect("the store of a test answers");
        if let Some(active) = &self.lane.lock().await.active {
            active.flush().await.expect("the store of a test answers");
        }
    }

    /// Stores what a file holds now and what is not in the store; `Ok` also if it changes meanwhile.
    async fn upload_live(&self, ino: u64) -> Result<(), CommitError> {
        let tree = self.tree();
        let chunk = tree.chunk();
        let Ok(inode) = tree.inode(ino).await else { return Ok(()) };
        let InodeBody::File(file) = &inode.body else { return Ok(()) };
        if inode.nlink == 0 || file.local.is_none() || file.size <= INLINE_BYTES_MAX as u64 {
            return Ok(());
        }
        let small = file.size <= SMALL_FILE_BYTES_MAX as u64;
        for index in 0..file.size.div_ceil(chunk.bytes()) {
            if !file.is_local(index) || (file.uploaded && tree.current_extent(ino, index)?.is_some()) {
                continue;
            }
            // Held for a chunk, so that a commit waits no longer than that.
            let mut lane = self.lane.lock().await;
            let Some((version, raw)) = tree.live_chunk(ino, index, chunk)? else { return Ok(()) };
            if version != inode.version {
                return Ok(());
            }
            let storing = async {
                let active = self.activate(&mut lane).await?;
                active.store(&self.journal, Token::Live { ino, version, index }, raw, small).await
            };
            let stored = tokio::select! {
                stored = storing => Some(stored),
                () = self.wanted.notified() => None,
            };
            let Some(stored) = stored else {
                // A commit has waited long enough: what is under way is given up, and what reached the store is found again.
                lane.active = None;
                self.queue.push(ino);
                return Ok(());
            };
            match stored {
                Ok(Some(extent)) => tree.attach(&[Attached { ino, version, index, extent }]).await?,
                Ok(None) => {}
                Err(error) => {
                    lane.active = None;
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

impl Committer {
    /// Registers the intent of a tree that has changes, though there may be nothing to upload: from then on nobody removes its
    /// base.
    async fn claim(&self) -> Result<(), CommitError> {
        let Ok(mut lane) = self.lane.try_lock() else { return Ok(()) };
        if lane.active.is_some() || !self.has_changes().await? || self.journal.sealed()?.is_some() {
            return Ok(());
        }
        tokio::select! {
            claimed = self.activate(&mut lane) => claimed.map(drop),
            // A commit has waited long enough, and does it itself.
            () = self.wanted.notified() => Ok(()),
        }
    }
}

/// Uploads what comes into the queue, as long as the committer lives; when nothing comes, the log is tidied. Of a tree with
/// changes the store knows.
async fn background(committer: Weak<Committer>, queue: Arc<Queue>) {
    let mut pause = PAUSES.0;
    if let Some(committer) = committer.upgrade()
        && let Err(error) = committer.claim().await
    {
        tracing::debug!(%error, "the store does not know yet what is based on what: later again");
    }
    loop {
        let waited = tokio::time::timeout(IDLE, queue.next()).await;
        let Some(committer) = committer.upgrade() else { return };
        let outcome = async {
            match waited {
                Ok(ino) => committer.upload_live(ino).await?,
                Err(_) => {
                    if let Err(error) = committer.tree().tidy_log().await {
                        tracing::warn!(%error, "the log of small files could not be tidied: later again");
                    }
                }
            }
            committer.claim().await
        };
        match outcome.await {
            Ok(()) => pause = PAUSES.0,
            Err(error) => {
                if pause == PAUSES.0 {
                    tracing::warn!(%error, "uploading in the background: later again");
                }
                if let Ok(ino) = waited {
                    queue.push(ino);
                }
                drop(committer);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSES.1);
            }
        }
    }
}

/// The chunks of a data pack, from its footer.
async fn footer_chunks(store: &Store, pack: &PackEntry) -> Result<Vec<(ChunkId, Locator)>, CommitError> {
    let key = store.keys().pack(crate::format::pack::PackKind::Data, pack.id);
    let damaged = |what| StoreError::Corrupt { key: key.clone(), why: FormatError::Malformed { what } };
    let end = pack.length.checked_sub(TRAILER_BYTES as u64).ok_or_else(|| damaged("length of a pack"))?;
    let (footer_length, _) = store.get_checked(&key, Some(end..pack.length), |trailer| open_trailer(trailer)).await?;
    let start = end.checked_sub(footer_length as u64).ok_or_else(|| damaged("length of a footer"))?;
    let open = |footer: &Bytes| open_footer(pack.id, footer, pack.footer_hash);
    Ok(store.get_checked(&key, Some(start..end), open).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_fit_into_their_memory_and_there_are_always_two() {
        assert_eq!(pack_bounds(96 << 20, 16), (PACK_BYTES, 5), "of memory=256M");
        assert_eq!(pack_bounds(96 << 20, 2), (PACK_BYTES, 2), "no more than requests");
        assert_eq!(pack_bounds(24 << 20, 16), (PACK_BYTES_MIN, 2), "of memory=64M");
        assert_eq!(pack_bounds(12 << 20, 16), (PACK_BYTES_MIN, 1), "of memory=32M, which is the least");
        assert_eq!(pack_bounds(288 << 20, 16), (PACK_BYTES, 16), "of memory=768M");
        assert_eq!(pack_bounds(1 << 40, 64), (PACK_BYTES, 64));
        for bytes in (16 << 20..400 << 20).step_by(1 << 20) {
            let (pack_bytes, uploads) = pack_bounds(bytes, 16);
            assert!(pack_bytes * (uploads + 1) <= bytes, "{bytes}");
        }
    }
}
