//! What was promised in a world, and whether it is kept: looked at with each change of the store, and at rest.
//!
//! Kept at all times: a bundle that is not being purged has all its packs; no label and no `latest` names a bundle that was
//! removed; no bundle appears that nobody sealed. At rest: every acknowledged bundle is in its repo's history exactly once
//! and holds what its committer was told; every published bundle is in the history; repos with bundles have a name.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{FutureExt, TryStreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use super::world::Shared;
use crate::format::catalog::RepoState;
use crate::format::descriptor::{Descriptor, PackEntry};
use crate::format::envelope::{self, ObjectKind};
use crate::format::intent::ABORTED_BYTES;
use crate::format::pack::PackKind;
use crate::format::refs::RefsRecord;
use crate::model::id::{BundleId, IntentId, ObjectHash, PackId, RepoId};
use crate::store::{Store, catalog, chain, refs};

/// A bundle of a repo.
pub type Named = (RepoId, BundleId);

/// What a committer was told.
#[derive(Debug, Clone)]
pub struct Committed {
    pub who: String,
    pub named: Named,
    /// What it holds: the packs of a scripted writer, in order; a tree is looked at by its own actor.
    pub packs: Option<Vec<PackId>>,
}

/// How often something is under way with a bundle.
#[derive(Default)]
pub struct UnderWay(BTreeMap<BundleId, usize>);

impl UnderWay {
    pub fn insert(&mut self, bundle: BundleId) {
        *self.0.entry(bundle).or_default() += 1;
    }

    pub fn remove(&mut self, bundle: &BundleId) {
        *self.0.entry(*bundle).or_default() -= 1;
    }

    pub fn contains(&self, bundle: &BundleId) -> bool {
        self.0.get(bundle).is_some_and(|times| *times > 0)
    }
}

/// See the module.
#[derive(Default)]
pub struct Ledger {
    violation: Option<String>,
    /// Bundles that were sealed, by whom.
    pub sealed: BTreeMap<BundleId, String>,
    pub committed: Vec<Committed>,
    /// Hosts with a staging tree that asked for a commit, whose bundles have no name before they are published.
    pub committing: BTreeSet<String>,
    /// Bundles that entered the history by another way than their commit, which moves `latest` only perhaps.
    pub late: BTreeSet<BundleId>,
    /// How often somebody tried to remove each bundle, and to bring it back (also by a label).
    pub removals: BTreeMap<BundleId, usize>,
    pub returns: BTreeMap<BundleId, usize>,
    /// Bundles that somebody is removing, or bringing back, or began to and does not know what became of it.
    pub removing: UnderWay,
    pub returning: UnderWay,
    /// Bundles about which somebody was told nothing yet, or that nothing is known.
    pub untold: UnderWay,
    /// Bases that open intents accepted while they were not removed.
    pub accepted: BTreeSet<(RepoId, IntentId, BundleId, BundleId)>,
    /// Descriptors in the store, and their packs' names.
    descriptors: BTreeMap<Named, Vec<String>>,
    /// Collections that came to their end, and packs that they deleted.
    pub rounds: usize,
    pub deleted: usize,
}

impl Ledger {
    pub fn violate(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    pub fn violation(&mut self) -> Option<String> {
        self.violation.clone()
    }

    /// The names of all slots.
    pub fn slots(&self, memory: &InMemory) -> Vec<String> {
        let all: Vec<_> = memory.list(None).try_collect().now_or_never().unwrap().unwrap_or_default();
        let names = all.into_iter().map(|object| object.location.to_string());
        names.filter(|name| name.contains("/bundles/")).collect()
    }
}

/// What a slot says.
pub enum Slot {
    Empty,
    Aborted,
    Filled(Box<Descriptor>, ObjectHash),
}

/// What a slot holds.
pub async fn slot(store: &Store, (repo, bundle): Named) -> Slot {
    let Ok(object) = store.get(&store.keys().bundle(repo, bundle)).await else { return Slot::Empty };
    if object.len() as u64 == ABORTED_BYTES {
        return Slot::Aborted;
    }
    let body = envelope::open(ObjectKind::Descriptor, Some(store.context()), &object).unwrap();
    Slot::Filled(Box::new(Descriptor::decode(&body).unwrap()), ObjectHash::of(&object))
}

/// Whether there is such an object.
pub async fn exists(shared: &Shared, path: &str) -> bool {
    shared.memory.head(&Path::from(path)).await.is_ok()
}

async fn is_purged(shared: &Shared, (repo, bundle): Named) -> bool {
    exists(shared, &shared.direct.keys().purged(repo, bundle).path).await
}

pub async fn newest(shared: &Shared, repo: RepoId) -> RefsRecord {
    refs::load(&shared.direct, repo).await.unwrap().map(|link| link.record).unwrap_or_default()
}

/// Whether a bundle is neither removed nor purged.
pub async fn is_alive(shared: &Shared, named: Named) -> bool {
    let record = newest(shared, named.0).await;
    !record.trashed.contains(&named.1) && !record.purging.contains(&named.1) && !is_purged(shared, named).await
}

/// The names of a pack as a data and as a metadata pack.
pub fn names(store: &Store, pack: PackId) -> [String; 2] {
    [PackKind::Data, PackKind::Meta].map(|kind| store.keys().pack(kind, pack).path)
}

async fn pack_names(shared: &Shared, packs: &[PackEntry]) -> Vec<String> {
    let mut found = Vec::new();
    for pack in packs {
        let [data, meta] = names(&shared.direct, pack.id);
        found.push(if exists(shared, &meta).await { meta } else { data });
    }
    found
}

fn repo_of(path: &str) -> Option<RepoId> {
    path.split('/').nth(2)?.parse().ok()
}

/// Looks at what a change of the store did. Past the network, in no time.
pub async fn landed(shared: &Shared, operation: crate::store::fault::Operation, path: &str) {
    use crate::store::fault::Operation;
    let kind = path.split('/').nth(1).unwrap_or_default();
    match (operation, kind) {
        (Operation::Write, "bundles") => {
            let Some(named) = path.rsplit('/').next().and_then(|name| Some((repo_of(path)?, name.parse().ok()?)))
            else {
                return;
            };
            let Slot::Filled(descriptor, _) = slot(&shared.direct, named).await else { return };
            let packs = pack_names(shared, descriptor.packs.here()).await;
            let mut missing = Vec::new();
            for pack in &packs {
                if !exists(shared, pack).await {
                    missing.push(pack.clone());
                }
            }
            let mut ledger = shared.ledger();
            if !ledger.sealed.contains_key(&named.1) && !ledger.committing.contains(&descriptor.who) {
                ledger.violate(format!("bundle {} appears, which nobody sealed", named.1));
            }
            if !missing.is_empty() {
                ledger.violate(format!("bundle {} is published without its packs {missing:?}", named.1));
            }
            ledger.descriptors.insert(named, packs);
        }
        (Operation::Write, "refs" | "purged") => {
            let Some(repo) = repo_of(path) else { return };
            if let ("purged", Some(Ok(bundle))) = (kind, path.rsplit('/').next().map(str::parse))
                && let Some(intent) = super::writer::open_base(shared, repo, bundle).await
            {
                shared.ledger().violate(format!("{bundle} is purged, and is the base of the open intent {intent}"));
            }
            let record = newest(shared, repo).await;
            let named = record.labels.iter().map(|(label, bundle)| (label.to_string(), *bundle));
            for (label, bundle) in named.chain(record.latest.map(|latest| ("latest".to_owned(), latest))) {
                let is_removed = record.trashed.contains(&bundle) || record.purging.contains(&bundle);
                if is_removed || is_purged(shared, (repo, bundle)).await {
                    shared.ledger().violate(format!("{label} names {bundle}, which was removed"));
                }
            }
        }
        (Operation::Delete, "p" | "m") => {
            shared.ledger().deleted += 1;
            let users: Vec<Named> = {
                let ledger = shared.ledger();
                let uses = |packs: &Vec<String>| packs.iter().any(|pack| pack == path);
                ledger.descriptors.iter().filter(|(_, packs)| uses(packs)).map(|(named, _)| *named).collect()
            };
            for named in users {
                let record = newest(shared, named.0).await;
                if !record.purging.contains(&named.1) && !is_purged(shared, named).await {
                    shared.ledger().violate(format!("bundle {} loses its pack {path}", named.1));
                }
            }
        }
        _ => {}
    }
}

/// Looks at everything, when nobody does anything any more.
pub async fn at_rest(shared: &Shared) {
    // Whoever walks to a repo finishes its removal, if that was cut off.
    for name in catalog::load(&shared.direct).await.unwrap().repos.keys() {
        let _ = catalog::find(&shared.direct, name).await;
    }
    let repos: BTreeSet<RepoId> = {
        let ledger = shared.ledger();
        let slots = ledger.slots(&shared.memory);
        slots.iter().filter_map(|name| repo_of(name)).collect()
    };
    let mut entered: BTreeMap<BundleId, usize> = BTreeMap::new();
    for repo in &repos {
        if let Err(why) = look_at_repo(shared, *repo, &mut entered).await {
            shared.ledger().violate(why);
        }
    }
    let committed = shared.ledger().committed.clone();
    for promise in committed {
        if let Err(why) = look_at_promise(shared, &promise, &entered).await {
            shared.ledger().violate(format!("{}: {why}", promise.who));
        }
    }
}

async fn look_at_promise(
    shared: &Shared,
    promise: &Committed,
    entered: &BTreeMap<BundleId, usize>,
) -> Result<(), String> {
    let bundle = promise.named.1;
    if entered.get(&bundle) != Some(&1) {
        let times = entered.get(&bundle).unwrap_or(&0);
        return Err(format!("the acknowledged bundle {bundle} is in the history {times} times"));
    }
    let Slot::Filled(descriptor, _) = slot(&shared.direct, promise.named).await else {
        return Err(format!("the acknowledged bundle {bundle} is not there"));
    };
    let packs: Vec<PackId> = descriptor.packs.here().iter().map(|pack| pack.id).collect();
    match &promise.packs {
        Some(told) if *told != packs => Err(format!("bundle {bundle} holds {packs:?}, told was {told:?}")),
        _ => Ok(()),
    }
}

async fn look_at_repo(shared: &Shared, repo: RepoId, entered: &mut BTreeMap<BundleId, usize>) -> Result<(), String> {
    let store = &shared.direct;
    let history = walk_chain(shared, repo).await?;
    for bundle in &history {
        *entered.entry(*bundle).or_default() += 1;
        if entered[bundle] > 1 {
            return Err(format!("bundle {bundle} is in the history twice"));
        }
    }
    let read: Vec<BundleId> = refs::history(store, repo).await.unwrap().iter().map(|line| line.bundle).collect();
    if read != history {
        return Err(format!("the history read by its own code is {read:?}, the chain has {history:?}"));
    }
    let record = newest(shared, repo).await;
    let mut has_living = false;
    for (key, _) in store.list(&store.keys().bundles(repo)).await.unwrap() {
        let named: Named = (repo, key.name().parse().unwrap());
        let Slot::Filled(descriptor, hash) = slot(store, named).await else { continue };
        if !history.contains(&named.1) {
            return Err(format!("bundle {} is published and in no history", named.1));
        }
        let line = refs::history(store, repo).await.unwrap().into_iter().find(|line| line.bundle == named.1);
        if line.is_some_and(|line| line.descriptor != hash) {
            return Err(format!("the history names another descriptor of {}", named.1));
        }
        if is_purged(shared, named).await || record.purging.contains(&named.1) {
            continue;
        }
        for pack in pack_names(shared, descriptor.packs.here()).await {
            if !exists(shared, &pack).await {
                return Err(format!("bundle {} has lost its pack {pack}", named.1));
            }
        }
        // One that came back without anybody being told so may have come back too late for its repo.
        let is_untold = shared.ledger().untold.contains(&named.1);
        has_living |= !record.trashed.contains(&named.1) && !is_untold;
    }
    let catalog = catalog::load(store).await.unwrap();
    let is_live = catalog.repos.values().any(|entry| entry.id == repo && entry.state == RepoState::Live);
    if has_living && !is_live {
        return Err(format!("repo {repo} has bundles, and no name leads to it"));
    }
    look_at_latest(shared, repo, &record, &history).await
}

/// Where no bundle entered late, `latest` is the newest of the history that is alive.
async fn look_at_latest(
    shared: &Shared,
    repo: RepoId,
    record: &RefsRecord,
    history: &[BundleId],
) -> Result<(), String> {
    let late = shared.ledger().late.clone();
    let mut newest = None;
    for bundle in history {
        if is_alive(shared, (repo, *bundle)).await {
            newest = Some(*bundle);
        }
    }
    if history.iter().any(|bundle| late.contains(bundle)) || record.latest == newest {
        return Ok(());
    }
    Err(format!("latest is {:?}, the newest living bundle is {newest:?}", record.latest))
}

/// Reads every record of a repo's chain; answers the bundles in the order in which they entered.
async fn walk_chain(shared: &Shared, repo: RepoId) -> Result<Vec<BundleId>, String> {
    let store = &shared.direct;
    let Some(last) = refs::load(store, repo).await.unwrap() else { return Ok(Vec::new()) };
    let mut history = Vec::new();
    let mut before: Option<chain::Link<RefsRecord>> = None;
    for seq in 0..=last.seq {
        let prefix = store.keys().refs(repo);
        let link: chain::Link<RefsRecord> =
            chain::read(store, &prefix, seq, Some(store.context())).await.map_err(|why| why.to_string())?;
        if link.record.previous != before.as_ref().map(|before| before.hash) {
            return Err(format!("record {seq} does not follow the one before it"));
        }
        let known = before.map_or(0, |before| before.record.recent.len());
        for summary in link.record.recent.iter().skip(known) {
            history.push(summary.bundle);
            // A tree that finishes a commit of an earlier try moves `latest` only from what it was then.
            if summary.who.starts_with("tree") && link.record.latest != Some(summary.bundle) {
                shared.ledger().late.insert(summary.bundle);
            }
        }
        before = Some(link);
    }
    Ok(history)
}
