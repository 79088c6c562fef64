//! A collector by script: G of format.md, step by step, until there is a real one.
//!
//! ```text
//! G0 finish an unfinished round   G1 packs, intents, slots; what was removed a round ago is purged   G2 PUT gc/c/n
//! G3 every intent of the round before is registered again, has its slot filled, or is aborted        G4 what is condemned
//! and has no use   G5 PUT gc/s/n, DELETE, PUT gc/d/n
//! ```
//! All that it keeps lies in the store: another may take over at any step.
//!
//! As the model of removals (ebusy) has it and format.md does not say: a bundle that is a base of an intent listed in G1 is
//! not purged in that round.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use super::Mutant;
use super::ledger::Named;
use super::world::{Actor, Life, Rng, Shared, Work};
use crate::format::descriptor::Descriptor;
use crate::format::envelope::{self, ObjectKind};
use crate::format::intent::{ABORTED_BYTES, Intent};
use crate::format::key::{self, ObjectKey, Role};
use crate::format::refs::RefsRecord;
use crate::model::id::{BundleId, IntentId, PackId, RepoId};
use crate::store::chain::{self, Link};
use crate::store::{Put, Store, StoreError, intents, refs};

/// See the module.
pub struct Collector {
    shared: Arc<Shared>,
    left: usize,
    /// Rounds that are still done when the world is at rest.
    last: usize,
    /// Idle intents of 100 that are aborted; drawn for each round, unless it is said.
    aborts: Option<usize>,
}

impl Collector {
    pub fn new(shared: &Arc<Shared>, works: usize) -> Self {
        Self { shared: shared.clone(), left: works, last: 2, aborts: None }
    }

    pub fn aborting(self, aborts: usize) -> Self {
        Self { aborts: Some(aborts), ..self }
    }

    fn round(&self, life: &Life, rng: &mut Rng, aborts: usize) -> Work {
        let (shared, store, client) = (self.shared.clone(), life.store.clone(), life.client.clone());
        let round = Round { shared, store, client, aborts, rng: Rng::new(rng.next()) };
        let work = async move {
            match round.run().await {
                Ok(said) => said,
                Err(why) => why.to_string(),
            }
        };
        ("collects".to_owned(), work.boxed())
    }
}

impl Actor for Collector {
    fn next(&mut self, life: &Life, rng: &mut Rng, running: &[String]) -> Option<Work> {
        if !running.is_empty() || self.left == 0 {
            return None;
        }
        self.left -= 1;
        let drawn = [0, 30, 100][rng.below(3)];
        let aborts = self.aborts.unwrap_or(drawn);
        Some(self.round(life, rng, aborts))
    }

    fn rest(&mut self, life: &Life, rng: &mut Rng) -> Option<Work> {
        self.last = self.last.checked_sub(1)?;
        Some(self.round(life, rng, 100))
    }
}

/// What `gc/c/n` holds.
#[derive(Debug, Default, Clone, PartialEq)]
struct Condemned {
    packs: BTreeSet<String>,
    dead: BTreeSet<Named>,
    /// Removed bundles, and the record by which each was removed.
    trashed: BTreeMap<Named, u64>,
}

impl Condemned {
    fn encode(&self) -> Bytes {
        let mut text = String::new();
        self.packs.iter().for_each(|pack| text.push_str(&format!("pack {pack}\n")));
        self.dead.iter().for_each(|(repo, bundle)| text.push_str(&format!("dead {repo} {bundle}\n")));
        let trashed = self.trashed.iter();
        trashed.for_each(|((repo, bundle), seq)| text.push_str(&format!("trashed {repo} {bundle} {seq}\n")));
        text.into()
    }

    fn decode(bytes: &[u8]) -> Self {
        let mut found = Self::default();
        for line in std::str::from_utf8(bytes).unwrap().lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let named = || (words[1].parse().unwrap(), words[2].parse().unwrap());
            match words[0] {
                "pack" => drop(found.packs.insert(words[1].to_owned())),
                "dead" => drop(found.dead.insert(named())),
                _ => drop(found.trashed.insert(named(), words[3].parse().unwrap())),
            }
        }
        found
    }
}

fn prefix(store: &Store, role: Role, of: &str) -> ObjectKey {
    ObjectKey { role, path: format!("{}/{of}/", store.context()) }
}

fn of_round(store: &Store, step: &str, round: u64) -> ObjectKey {
    key::record(&prefix(store, Role::Meta, &format!("gc/{step}")), round)
}

async fn is_there(store: &Store, key: &ObjectKey) -> Result<bool, StoreError> {
    match store.len(key).await {
        Ok(_) => Ok(true),
        Err(StoreError::NotFound { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// What nobody may begin to use again: swept in any round, or condemned in one that is not done.
///
/// Whether the newest round is done is asked first: a round that sweeps between the two looks would else be seen in
/// neither.
pub async fn forbidden(store: &Store) -> Result<BTreeSet<String>, StoreError> {
    let head = intents::head(store).await?;
    let mut found = BTreeSet::new();
    if head > 0 && !is_there(store, &of_round(store, "d", head)).await? {
        found.extend(Condemned::decode(&store.get(&of_round(store, "c", head)).await?).packs);
    }
    for round in 1..=head {
        match store.get(&of_round(store, "s", round)).await {
            Ok(swept) => found.extend(std::str::from_utf8(&swept).unwrap().lines().map(str::to_owned)),
            Err(StoreError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

struct Round {
    shared: Arc<Shared>,
    store: Arc<Store>,
    client: Arc<dyn ObjectStore>,
    /// Idle intents of 100 that are aborted.
    aborts: usize,
    rng: Rng,
}

/// All slots: what each bundle's packs are, or the intent that was aborted.
struct Slots {
    bundles: BTreeMap<Named, BTreeSet<String>>,
    aborted: BTreeMap<Named, IntentId>,
}

impl Round {
    fn is(&self, mutant: Mutant) -> bool {
        self.shared.is(mutant)
    }

    async fn run(mut self) -> Result<String, StoreError> {
        let head = intents::head(&self.store).await?;
        // G0
        let is_unfinished = head > 0 && !is_there(&self.store, &of_round(&self.store, "d", head)).await?;
        let (round, listed) = if is_unfinished { (head, None) } else { (head + 1, Some(self.condemn(head).await?)) };
        // G2, or what another put there
        let condemned = Condemned::decode(&self.store.get(&of_round(&self.store, "c", round)).await?);
        if let Some(waits) = self.register_all(round, listed).await? {
            return Ok(format!("round {round} waits for {waits}"));
        }
        let swept = self.sweep(round, condemned).await?;
        self.shared.ledger().rounds += 1;
        Ok(format!("round {round} done, {swept} packs deleted"))
    }

    /// G1 and G2: condemns what nothing names. Answers the intents that were listed.
    async fn condemn(&mut self, head: u64) -> Result<Vec<Intent>, StoreError> {
        let packs = self.packs().await?;
        let open = intents::open_intents(&self.store, head).await?;
        let slots = self.slots().await?;
        let before = match head {
            0 => Condemned::default(),
            _ => Condemned::decode(&self.store.get(&of_round(&self.store, "c", head)).await?),
        };
        let bases = open.iter().flat_map(|intent| intent.bases.iter().map(|base| (intent.repo, *base))).collect();
        let mut dead = self.purged().await?;
        let mut trashed = BTreeMap::new();
        for repo in self.repos_with_refs().await? {
            dead.extend(self.purge(repo, &before, &bases, &mut trashed).await?);
        }
        let mut condemned = packs;
        for (named, packs) in &slots.bundles {
            if !dead.contains(named) {
                condemned.retain(|pack| !packs.contains(pack));
            }
        }
        for intent in &open {
            let named = (intent.repo, intent.bundle);
            if !slots.bundles.contains_key(&named) && !slots.aborted.contains_key(&named) {
                condemned.retain(|pack| !is_of(pack, intent.id));
            }
        }
        let found = Condemned { packs: condemned, dead, trashed };
        self.store.put_new(&of_round(&self.store, "c", head + 1), &found.encode()).await?;
        Ok(open)
    }

    async fn packs(&self) -> Result<BTreeSet<String>, StoreError> {
        let mut found = BTreeSet::new();
        for (role, of) in [(Role::Blob, "p"), (Role::Meta, "m")] {
            let listed = self.store.list(&prefix(&self.store, role, of)).await?;
            found.extend(listed.into_iter().map(|(key, _)| key.path));
        }
        Ok(found)
    }

    async fn slots(&self) -> Result<Slots, StoreError> {
        let mut slots = Slots { bundles: BTreeMap::new(), aborted: BTreeMap::new() };
        for (key, len) in self.store.list(&prefix(&self.store, Role::Meta, "bundles")).await? {
            let named = named(&key.path);
            let object = self.store.get(&key).await?;
            if len == ABORTED_BYTES {
                let body = envelope::open(ObjectKind::Aborted, Some(self.store.context()), &object).unwrap();
                slots.aborted.insert(named, IntentId::from_bytes(body[..].try_into().unwrap()));
                continue;
            }
            let body = envelope::open(ObjectKind::Descriptor, Some(self.store.context()), &object).unwrap();
            let descriptor = Descriptor::decode(&body).unwrap();
            let packs = descriptor.packs.here().iter().flat_map(|pack| super::ledger::names(&self.store, pack.id));
            slots.bundles.insert(named, packs.collect());
        }
        Ok(slots)
    }

    async fn purged(&self) -> Result<BTreeSet<Named>, StoreError> {
        let listed = self.store.list(&prefix(&self.store, Role::Meta, "purged")).await?;
        Ok(listed.into_iter().map(|(key, _)| named(&key.path)).collect())
    }

    async fn repos_with_refs(&self) -> Result<BTreeSet<RepoId>, StoreError> {
        let listed = self.store.list(&prefix(&self.store, Role::VersionedMeta, "refs")).await?;
        Ok(listed.iter().map(|(key, _)| key.path.rsplit('/').nth(1).unwrap().parse().unwrap()).collect())
    }

    /// Purges what was removed by a record that the round before had noted; notes what is removed now.
    async fn purge(
        &self,
        repo: RepoId,
        before: &Condemned,
        bases: &BTreeSet<Named>,
        trashed: &mut BTreeMap<Named, u64>,
    ) -> Result<BTreeSet<Named>, StoreError> {
        let chain = self.store.keys().refs(repo);
        let purging = loop {
            let Some(newest) = refs::load(&self.store, repo).await? else { return Ok(BTreeSet::new()) };
            trashed.retain(|(of, _), _| *of != repo);
            let mut next = newest.record.clone();
            for bundle in &newest.record.trashed {
                let named = (repo, *bundle);
                let seq = self.removed_by(&chain, &newest, *bundle).await?;
                let is_known = before.trashed.get(&named) == Some(&seq) || self.is(Mutant::NoGrace);
                let is_base = bases.contains(&named) && !self.is(Mutant::BasesPurged);
                if is_known && !is_base {
                    next.trashed.remove(bundle);
                    next.purging.insert(*bundle);
                } else {
                    trashed.insert(named, seq);
                }
            }
            // What has its marker leaves the record.
            for bundle in &newest.record.purging {
                if is_there(&self.store, &self.store.keys().purged(repo, *bundle)).await? {
                    next.purging.remove(bundle);
                }
            }
            if next == newest.record {
                break next.purging;
            }
            let purging = next.purging.clone();
            if chain::append(&self.store, &chain, Some(&newest), next).await?.is_some() {
                break purging;
            }
        };
        let mut dead = BTreeSet::new();
        for bundle in purging {
            // Whose marker it is matters, so it holds a name of its own: as long as an ABORTED marker.
            let own = IntentId::from_parts(self.store.clock.now().millis(), self.store.entropy.random());
            let marker = envelope::seal(ObjectKind::Aborted, self.store.context(), &own.to_bytes());
            self.store.put_new(&self.store.keys().purged(repo, bundle), &marker).await?;
            dead.insert((repo, bundle));
        }
        Ok(dead)
    }

    /// The number of the record by which a bundle was removed.
    async fn removed_by(
        &self,
        chain: &ObjectKey,
        newest: &Link<RefsRecord>,
        bundle: BundleId,
    ) -> Result<u64, StoreError> {
        let mut by = newest.seq;
        for seq in (0..newest.seq).rev() {
            let link: Link<RefsRecord> = chain::read(&self.store, chain, seq, Some(self.store.context())).await?;
            if !link.record.trashed.contains(&bundle) {
                break;
            }
            by = seq;
        }
        Ok(by)
    }

    /// G3: `None` when every intent of the round before is in this one, or over.
    async fn register_all(&mut self, round: u64, listed: Option<Vec<Intent>>) -> Result<Option<String>, StoreError> {
        if self.is(Mutant::NoG3) {
            return Ok(None);
        }
        let before = match listed {
            Some(listed) if self.is(Mutant::G3OnListOfG1) => listed,
            _ => intents::open_intents(&self.store, round - 1).await?,
        };
        // The record of a base that joined later registers nothing: only the first one names all bases there were.
        let listed = self.store.list(&self.store.keys().intents(round)).await?;
        let now: BTreeSet<IntentId> = listed.iter().filter_map(|(key, _)| key.name().parse().ok()).collect();
        let mut waits = Vec::new();
        for intent in before {
            if now.contains(&intent.id) || !intents::is_open(&self.store, &intent).await? {
                continue;
            }
            if self.rng.chance(self.aborts) {
                intents::abort(&self.store, &intent).await?;
            } else {
                waits.push(intent.who);
            }
        }
        Ok((!waits.is_empty()).then(|| waits.join(", ")))
    }

    /// G4 and G5.
    async fn sweep(&self, round: u64, condemned: Condemned) -> Result<usize, StoreError> {
        let registered = intents::open_intents(&self.store, round).await?;
        let slots = self.slots().await?;
        let mut dead = condemned.dead;
        if self.is(Mutant::LaterRemovalsSwept) {
            for repo in self.repos_with_refs().await? {
                let record = refs::load(&self.store, repo).await?.map(|link| link.record).unwrap_or_default();
                dead.extend(record.trashed.iter().chain(&record.purging).map(|bundle| (repo, *bundle)));
            }
        }
        let mut swept = condemned.packs;
        for (named, packs) in &slots.bundles {
            if !dead.contains(named) {
                swept.retain(|pack| !packs.contains(pack));
            }
        }
        if !self.is(Mutant::NoBasesInG4) {
            let bases = registered.iter().flat_map(|intent| intent.bases.iter().map(|base| (intent.repo, *base)));
            for base in bases {
                if let Some(packs) = slots.bundles.get(&base) {
                    swept.retain(|pack| !packs.contains(pack));
                }
                if let Some(intent) = slots.aborted.get(&base) {
                    swept.retain(|pack| !is_of(pack, *intent));
                }
            }
        }
        let text: String = swept.iter().map(|pack| format!("{pack}\n")).collect();
        let key = of_round(&self.store, "s", round);
        let stored = match self.store.put_new(&key, &text.into()).await? {
            Put::Ours => swept,
            Put::Theirs(stored) => std::str::from_utf8(&stored).unwrap().lines().map(str::to_owned).collect(),
        };
        for pack in &stored {
            match self.client.delete(&Path::from(pack.as_str())).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(why) => return Err(StoreError::Unavailable { key, why: why.to_string() }),
            }
        }
        self.store.put_new(&of_round(&self.store, "d", round), &Bytes::from_static(b"done")).await?;
        Ok(stored.len())
    }
}

/// Whether a pack was written under an intent.
fn is_of(pack: &str, intent: IntentId) -> bool {
    pack.rsplit('/').next().unwrap().parse::<PackId>().is_ok_and(|id| id.intent == intent)
}

/// The bundle that a slot or a purge marker is of.
fn named(path: &str) -> Named {
    let mut parts = path.rsplit('/');
    let bundle = parts.next().unwrap().parse().unwrap();
    (parts.next().unwrap().parse().unwrap(), bundle)
}
