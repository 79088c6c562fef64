//! Copies that move no bytes (copy_file_range(2)): a staged file names content that the store has.
//!
//! ```text
//!  a file of a bundle ──join: the next bundle's intent names that bundle, too──┐
//!  a staged file, what of it is in the store ──────────────────────────────────┴> the other file's content, below nothing local
//! ```
//! What is copied is a run of whole chunks, or the end of the file, at the place where it lies in the source: what `cp` of a
//! file asks for. Of anything else, and when the store cannot be asked now, the answer is *no*, and the kernel copies bytes.
//!
//! # Invariants
//!
//! 1. A bundle of which a file names content is a base of every intent of the tree until the tree is clean. It was accepted
//!    (W1, W2) before: until then nothing keeps a collector from its packs.
//! 2. The packs of such content are in the pack table of every bundle that is made until then.
//! 3. A staged file is a source only while it has a name: what no instant holds any more, no bundle keeps.
//! 4. Nobody waits for a commit: who cannot have the lane in [`PATIENCE`] copies bytes.
//!
//! Not here: content of another repo (an intent names bundles of its own only), and copies of what is only here.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::attributes::kill_privileges;
use super::commit::{CommitError, Committer};
use super::error::StagingError;
use super::inode::{FileData, Inode, InodeBody};
use super::journal::{may_share, put_shared_packs};
use super::tree::{Tree, put_inode};
use crate::content::reader::{ContentError, ContentReader};
use crate::format::descriptor::PackEntry;
use crate::format::intent::Intent;
use crate::local::db::Batch;
use crate::model::chunk::ChunkIndex;
use crate::model::entry::{BlockList, Content, FileBody};
use crate::model::id::{BundleId, PackId};
use crate::snapshot::{Snapshot, SnapshotError};
use crate::store::intents;

/// Bytes that one copy names at most: a number of whole chunks, whatever their size, that the kernel's answer can hold.
const SHARE_BYTES_MAX: u64 = 1 << 31;
/// How long a copy waits for what the background or a commit has under way.
const PATIENCE: Duration = Duration::from_secs(3);

/// The packs of the bundle that was copied from last.
pub(super) type LastPacks = Mutex<Option<(BundleId, Arc<HashMap<PackId, PackEntry>>)>>;

/// What keeps content alive that is named: its bundle, and its packs.
struct Kept {
    bundle: BundleId,
    packs: Vec<PackEntry>,
}

/// Where the content comes from.
enum Source {
    /// A file of a bundle.
    Bundle(Kept),
    /// A file of this tree.
    Staged(u64),
}

/// A file that is to name content, as it was when it was looked at, and the bytes that it can name.
struct Target {
    ino: u64,
    before: InodeBody,
    range: Range<u64>,
}

impl Committer {
    /// Lets the staged file `to` name the bytes `range` of `body`, a file of `from`, instead of copying them. Answers how many
    /// bytes it has of it now, from the first on; `None`: they have to be copied. `kill` takes set-user-id away.
    pub async fn share_of_bundle(
        &self,
        from: &Snapshot,
        body: &FileBody,
        to: u64,
        range: Range<u64>,
        kill: bool,
    ) -> Result<Option<u64>, CommitError> {
        let tree = self.tree();
        if from.descriptor().repo != self.repo || from.descriptor().chunk_size != tree.chunk() {
            return Ok(None);
        }
        // First what costs nothing.
        let Some(target) = tree.target(body, body.size, to, range).await? else { return Ok(None) };
        let bundle = from.descriptor().bundle;
        let Some(packs) = self.packs_of(from, body).await? else { return Ok(None) };
        if !packs.is_empty() && !self.join(bundle).await? {
            return Ok(None);
        }
        Ok(tree.name_content((body, body.size), &Source::Bundle(Kept { bundle, packs }), target, kill).await?)
    }

    /// The packs in which the content of `body` lies, and what says where; `None` if the bundle does not list them.
    async fn packs_of(&self, from: &Snapshot, body: &FileBody) -> Result<Option<Vec<PackEntry>>, CommitError> {
        let used = used_packs(from.reader(), body).await.map_err(SnapshotError::from)?;
        if used.is_empty() {
            return Ok(Some(Vec::new()));
        }
        let bundle = from.descriptor().bundle;
        let last = || self.last_packs.lock().expect("nothing panics while it holds the packs");
        let known = last().as_ref().filter(|(of, _)| *of == bundle).map(|(_, packs)| packs.clone());
        let known = match known {
            Some(known) => known,
            None => {
                let packs: HashMap<_, _> = from.packs().await?.into_iter().map(|pack| (pack.id, pack)).collect();
                let packs = Arc::new(packs);
                *last() = Some((bundle, packs.clone()));
                packs
            }
        };
        Ok(used.into_iter().map(|id| known.get(&id).copied()).collect())
    }

    /// Whether files of the tree name content of this bundle.
    pub fn has_joined(&self, bundle: BundleId) -> Result<bool, StagingError> {
        Ok(self.journal.joined()?.iter().any(|(_, joined)| *joined == bundle))
    }

    /// Sees to it that every intent of the tree names `bundle` until the tree is clean; `false` if that cannot be had now.
    async fn join(&self, bundle: BundleId) -> Result<bool, CommitError> {
        // What it notes goes with the copy itself. One that joined an intent which was given up waits for the next.
        let is_named = || -> Result<bool, CommitError> {
            let may = may_share(self.tree().db(), self.tree().base_bundle(), bundle, &mut Batch::default())?;
            Ok(may && (!self.has_joined(bundle)? || self.journal.intent()?.is_some()))
        };
        if is_named()? {
            return Ok(true);
        }
        let Ok(mut lane) = tokio::time::timeout(PATIENCE, self.lane.lock()).await else { return Ok(false) };
        if is_named()? {
            return Ok(true);
        }
        if self.journal.sealed()?.is_some() {
            // A commit of unknown outcome has the intent.
            return Ok(false);
        }
        // Registered before a base joins: see `intents::renew_all`.
        let intent = self.activate(&mut lane).await?.intent.clone();
        if self.has_joined(bundle)? {
            // Named by the intent that was registered now.
            return Ok(true);
        }
        let record = self.journal.next_join()?;
        self.journal.begin_join(bundle, record)?;
        let named = async {
            let mut further = self.journal.further()?;
            further.push((record, bundle));
            let round = intents::renew_all(&self.store, &intent, &further).await?;
            intents::check(&self.store, &Intent { bases: vec![bundle], ..intent }).await?;
            Ok::<u64, CommitError>(round)
        };
        match named.await {
            Ok(round) => {
                if let Some(active) = &mut lane.active {
                    active.round = round;
                }
                self.journal.accept_join(bundle, record)?;
                Ok(true)
            }
            Err(error) => {
                // Whether it is named there is not known, and does not matter: nothing here rests on it.
                self.journal.forget_begun_joins()?;
                Err(error)
            }
        }
    }
}

/// The packs that hold content, and those that hold the blocks that say where.
pub(super) async fn used_packs(reader: &ContentReader, body: &FileBody) -> Result<BTreeSet<PackId>, ContentError> {
    let mut used = BTreeSet::new();
    match &body.content {
        Content::Inline(_) => {}
        Content::Chunk(extent) => used.extend(extent.at.map(|at| at.pack)),
        Content::Extents { blocks, .. } => {
            if let BlockList::Listed { at, .. } = blocks {
                used.insert(at.pack);
            }
            for block in reader.blocks(body).await?.iter() {
                used.insert(block.at.pack);
                used.extend(reader.block(*block).await?.iter().filter_map(|extent| extent.at.map(|at| at.pack)));
            }
        }
    }
    Ok(used)
}

impl Tree {
    /// Lets the staged file `to` name the bytes `range` of the staged file `from`, which the store has. As
    /// [`Committer::share_of_bundle`].
    pub async fn share_of_staged(
        &self,
        from: u64,
        to: u64,
        range: Range<u64>,
        kill: bool,
    ) -> Result<Option<u64>, StagingError> {
        let inode = self.inode(from).await?;
        let Some(content @ (body, end)) = stored_part(&inode) else { return Ok(None) };
        let Some(target) = self.target(body, end, to, range).await? else { return Ok(None) };
        self.name_content(content, &Source::Staged(from), target, kill).await
    }

    /// What of `range` the file `to` can name, if the source is the first `end` bytes of `body`.
    async fn target(
        &self,
        body: &FileBody,
        end: u64,
        to: u64,
        range: Range<u64>,
    ) -> Result<Option<Target>, StagingError> {
        let InodeBody::File(file) = self.inode(to).await?.body else { return Err(StagingError::IsDirectory) };
        let size = self.chunk().bytes();
        let start = range.start;
        let mut stop = range.end.min(start.saturating_add(SHARE_BYTES_MAX)).min(end);
        if stop < end || stop < file.size {
            stop -= stop % size;
        }
        let Some(limit) = shown_of(&file, body).filter(|_| start.is_multiple_of(size) && start < stop) else {
            return Ok(None);
        };
        // What lies between what the file shows of this content and what it is to show comes to be seen.
        for index in limit / size..start / size {
            if !self.reader().is_hole(body, ChunkIndex(index)).await? {
                return Ok(None);
            }
        }
        Ok(Some(Target { ino: to, before: InodeBody::File(file), range: start..stop }))
    }

    /// The change itself. `None` if one of the files is not any more what it was when it was looked at.
    async fn name_content(
        &self,
        content: (&FileBody, u64),
        source: &Source,
        target: Target,
        kill: bool,
    ) -> Result<Option<u64>, StagingError> {
        let Target { ino, before, range } = target;
        let _changing = self.change().await?;
        let mut inode = self.inode(ino).await?;
        if inode.body != before {
            return Ok(None);
        }
        let mut batch = Batch::default();
        match source {
            Source::Staged(from) => {
                let from = self.inode(*from).await?;
                if from.nlink == 0 || stored_part(&from) != Some(content) {
                    return Ok(None);
                }
            }
            Source::Bundle(kept) if kept.packs.is_empty() => {}
            Source::Bundle(Kept { bundle, packs }) => {
                if !may_share(self.db(), self.base_bundle(), *bundle, &mut batch)? {
                    return Ok(None);
                }
                put_shared_packs(&mut batch, packs);
            }
        }
        let InodeBody::File(file) = &mut inode.body else { return Err(StagingError::IsDirectory) };
        self.forget_extents(&mut batch, ino, file);
        let (size, base_limit) = (file.size.max(range.end), file.base_limit.max(range.end));
        *file = FileData { size, base_limit, base: Some(content.0.clone()), ..FileData::empty() };
        inode.version += 1;
        inode.attributes.mtime = self.now();
        inode.ctime = inode.attributes.mtime;
        if kill {
            kill_privileges(&mut inode);
        }
        put_inode(&mut batch, ino, &inode);
        self.apply(batch)?;
        self.unwritten().written(ino, &range);
        Ok(Some(range.end - range.start))
    }

    /// The bundle that the tree is based on.
    pub fn base_bundle(&self) -> Option<BundleId> {
        self.base().snapshot.as_ref().map(|base| base.descriptor().bundle)
    }
}

/// What a file without local bytes has in the store, and how many bytes of that it shows.
fn stored_part(inode: &Inode) -> Option<(&FileBody, u64)> {
    let InodeBody::File(file) = &inode.body else { return None };
    let is_whole = file.local.is_none() && file.base_limit >= file.size;
    file.base.as_ref().filter(|_| is_whole).map(|body| (body, file.size))
}

/// How many bytes of `body` the file shows, if it shows nothing else but zeros.
fn shown_of(file: &FileData, body: &FileBody) -> Option<u64> {
    match &file.base {
        _ if file.local.is_some() => None,
        None => Some(0),
        Some(base) => (base == body).then_some(file.base_limit),
    }
}
