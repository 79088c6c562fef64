//! Writers by script: what a commit does, step by step, on the real store code, without a staging tree.
//!
//! [`crate::staging::commit`] is the real one and is driven by [`super::trees`]; it takes a disk. This one takes none, so
//! that thousands of seeds can be lived, and does what the real one does not do yet but the format allows: bases that join
//! later, re-use of packs of an own intent that was aborted. Its tree is a list of packs.

use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use futures_util::FutureExt;

use super::Mutant;
use super::collector;
use super::ledger::{Committed, Slot, is_alive, slot};
use super::world::{Actor, Life, Rng, Shared, Work};
use crate::format::catalog::RepoState;
use crate::format::descriptor::{Descriptor, Layer, PackEntry, PackTable};
use crate::format::envelope::{self, ObjectKind};
use crate::format::intent::Intent;
use crate::format::pack::{FinishedPack, PackKind};
use crate::format::refs::Summary;
use crate::model::chunk::ChunkSize;
use crate::model::entry::TreeCounts;
use crate::model::id::{BundleId, IntentId, ObjectHash, PackId, RepoId, Run};
use crate::model::name::{LabelName, RepoName};
use crate::store::refs::Position;
use crate::store::{Put, Store, StoreError, catalog, chain, intents, refs};

/// A sealed descriptor: W6.
#[derive(Clone)]
struct SealedBundle {
    object: Bytes,
    base: Option<BundleId>,
}

/// What a process keeps over its death.
#[derive(Default)]
struct Journal {
    repo: Option<RepoId>,
    parent: Option<BundleId>,
    /// What the tree took over from its parent.
    inherited: Vec<PackEntry>,
    is_dirty: bool,
    intent: Option<Intent>,
    /// Later registrations, a base more each, and how many there were.
    further: Vec<(u32, Intent)>,
    extensions: u32,
    /// What was put as the intent's first record in some round.
    mains: Vec<Intent>,
    /// Which of these is known to lie in which round.
    registered: Vec<(Intent, u64)>,
    /// Packs stored under the intent.
    stored: Vec<PackEntry>,
    /// Packs of further bases that the tree uses.
    borrowed: Vec<PackEntry>,
    sealed: Option<SealedBundle>,
    /// Numbers of packs that were given out.
    seq: u32,
    /// Slots of own intents that were aborted, and the packs stored under them.
    aborted: Vec<(BundleId, Vec<PackEntry>)>,
}

/// See the module.
pub struct Writer {
    pub shared: Arc<Shared>,
    name: String,
    repo: RepoName,
    /// Makes the repo if there is none.
    makes_repo: bool,
    journal: Arc<Mutex<Journal>>,
    /// The round under which the intent is registered, in this life.
    active: Arc<Mutex<Option<u64>>>,
    left: usize,
    /// How often of 100 a base joins.
    joins: usize,
}

impl Writer {
    pub fn new(shared: &Arc<Shared>, number: usize, repo: &str, makes_repo: bool, works: usize) -> Self {
        Self {
            shared: shared.clone(),
            name: format!("writer{number}"),
            repo: repo.parse().unwrap(),
            makes_repo,
            journal: Arc::default(),
            active: Arc::default(),
            left: works,
            joins: 30,
        }
    }

    pub fn joining(self, joins: usize) -> Self {
        Self { joins, ..self }
    }

    fn commit(&self, store: &Arc<Store>, rng: &mut Rng, what: What) -> Work {
        let run = Commit {
            shared: self.shared.clone(),
            store: store.clone(),
            name: self.name.clone(),
            repo: self.repo.clone(),
            makes_repo: self.makes_repo,
            journal: self.journal.clone(),
            active: self.active.clone(),
            joins: self.joins,
            rng: Mutex::new(Rng::new(rng.next())),
        };
        let title = format!("{what:?}").to_lowercase();
        let work = async move {
            match run.run(what).await {
                Ok(said) => said,
                Err(why) => why,
            }
        };
        (title, work.boxed())
    }
}

impl Actor for Writer {
    fn next(&mut self, life: &Life, rng: &mut Rng, running: &[String]) -> Option<Work> {
        if !running.is_empty() || self.left == 0 {
            return None;
        }
        self.left -= 1;
        let what = if rng.chance(40) { What::Edit } else { What::Commit };
        Some(self.commit(&life.store, rng, what))
    }

    fn rest(&mut self, life: &Life, rng: &mut Rng) -> Option<Work> {
        let journal = self.journal.lock().unwrap();
        let is_through = !journal.is_dirty && journal.sealed.is_none();
        drop(journal);
        (!is_through).then(|| self.commit(&life.store, rng, What::Finish))
    }

    fn died(&mut self) {
        *self.active.lock().unwrap() = None;
    }
}

/// What is done in one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// Registers and uploads something, as the background does.
    Edit,
    /// All of W.
    Commit,
    /// All of W, again until it is through.
    Finish,
}

struct Commit {
    shared: Arc<Shared>,
    store: Arc<Store>,
    name: String,
    repo: RepoName,
    makes_repo: bool,
    journal: Arc<Mutex<Journal>>,
    active: Arc<Mutex<Option<u64>>>,
    joins: usize,
    rng: Mutex<Rng>,
}

/// How an operation went that did not come to its end.
type Stopped = String;

fn stopped(why: impl std::fmt::Display) -> Stopped {
    why.to_string()
}

impl Commit {
    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap()
    }

    fn chance(&self, percent: usize) -> bool {
        self.rng.lock().unwrap().chance(percent)
    }

    fn below(&self, n: usize) -> usize {
        self.rng.lock().unwrap().below(n)
    }

    async fn run(&self, what: What) -> Result<String, Stopped> {
        loop {
            match self.once(what).await {
                // At rest a repo that was removed keeps what is staged, and nobody can do anything about it.
                Err(why) if what == What::Finish && !why.contains("removed") && !why.contains("purged") => continue,
                Err(why) if what == What::Finish => {
                    self.give_up().await?;
                    return Err(why);
                }
                ended => return ended,
            }
        }
    }

    /// Throws the tree away.
    async fn give_up(&self) -> Result<(), Stopped> {
        let intent = self.journal().intent.clone();
        if let Some(intent) = intent {
            intents::abort(&self.store, &intent).await.map_err(stopped)?;
        }
        let mut journal = self.journal();
        let seq = journal.seq;
        *journal = Journal { repo: journal.repo, seq, ..Journal::default() };
        Ok(())
    }

    async fn once(&self, what: What) -> Result<String, Stopped> {
        let repo = self.repo().await?;
        self.finish_sealed(repo).await?;
        if !self.journal().is_dirty {
            if what == What::Finish {
                return Ok("nothing left".to_owned());
            }
            self.follow(repo).await?;
        }
        self.activate(repo).await.inspect_err(|_| *self.active.lock().unwrap() = None)?;
        let outcome = self.under_intent(repo, what).await;
        if what != What::Edit || outcome.is_err() {
            *self.active.lock().unwrap() = None;
        }
        outcome
    }

    /// The repo in which this writer has its tree.
    async fn repo(&self) -> Result<RepoId, Stopped> {
        if let Some(repo) = self.journal().repo {
            return Ok(repo);
        }
        let found = match catalog::find(&self.store, &self.repo).await {
            Err(catalog::CatalogError::NotFound(_)) if self.makes_repo => {
                catalog::create(&self.store, &self.repo).await
            }
            found => found,
        };
        let id = found.map_err(stopped)?.id;
        self.journal().repo = Some(id);
        Ok(id)
    }

    /// Takes `latest` for the base of the next bundle.
    async fn follow(&self, repo: RepoId) -> Result<(), Stopped> {
        let latest = refs::load(&self.store, repo).await.map_err(stopped)?.and_then(|link| link.record.latest);
        let inherited = match latest {
            Some(latest) => self.packs_of((repo, latest)).await?,
            None => Vec::new(),
        };
        let mut journal = self.journal();
        (journal.parent, journal.inherited, journal.is_dirty) = (latest, inherited, true);
        Ok(())
    }

    async fn packs_of(&self, named: (RepoId, BundleId)) -> Result<Vec<PackEntry>, Stopped> {
        let key = self.store.keys().bundle(named.0, named.1);
        let (_, body) = self.store.get_object(ObjectKind::Descriptor, &key).await.map_err(stopped)?;
        Ok(Descriptor::decode(&body).unwrap().packs.here().to_vec())
    }

    /// W0 to W2.
    async fn activate(&self, repo: RepoId) -> Result<(), Stopped> {
        if self.active.lock().unwrap().is_some() {
            return Ok(());
        }
        let known = self.journal().intent.clone();
        let intent = match known {
            Some(intent) => intent,
            None => {
                let time = self.store.clock.now();
                let random = || self.store.entropy.random();
                let id = IntentId::from_parts(time.millis(), random());
                let bundle = BundleId::from_parts(time.millis(), random());
                let bases = self.journal().parent.into_iter().collect();
                Intent { time, id, repo, bundle, bases, who: self.name.clone() }
            }
        };
        self.journal().intent = Some(intent);
        let round = self.register_all().await?;
        self.adopt().await?;
        *self.active.lock().unwrap() = Some(round);
        Ok(())
    }

    /// Registers the intent with all its bases under one round.
    ///
    /// One record names them all, as a collector takes an intent for registered that it finds there. Only in a round in
    /// which an earlier record lies under that name, from before a base joined, the later bases have records beside it.
    async fn register_all(&self) -> Result<u64, Stopped> {
        loop {
            let (intent, further, mains) = {
                let journal = self.journal();
                let further = journal.further.clone();
                (journal.intent.clone().expect("set before"), further, journal.mains.clone())
            };
            let mut bases = intent.bases.clone();
            bases.extend(further.iter().flat_map(|(_, more)| more.bases.clone()));
            bases.sort_unstable();
            bases.dedup();
            let whole = Intent { bases, ..intent };
            if !mains.contains(&whole) {
                self.journal().mains.push(whole.clone());
            }
            let Some((main, round)) = self.register_one_of([whole].into_iter().chain(mains).collect()).await? else {
                return Err("another intent under this name".to_owned());
            };
            let mut is_one = true;
            for (number, more) in &further {
                if !more.bases.iter().all(|base| main.bases.contains(base)) {
                    is_one &= self.register(more, Some(*number)).await? == round;
                }
            }
            if is_one {
                return Ok(round);
            }
        }
    }

    /// Registers the first of these that has its name, or can have it.
    ///
    /// The first names all bases. Another one may only be found where it lay before: put into a round that began meanwhile,
    /// it would register the intent there without the bases that joined since.
    async fn register_one_of(&self, records: Vec<Intent>) -> Result<Option<(Intent, u64)>, Stopped> {
        for (index, main) in records.into_iter().enumerate() {
            match self.register(&main, None).await {
                Ok(round) => {
                    let known = (main.clone(), round);
                    let lay_there = self.journal().registered.contains(&known);
                    if index > 0 && !lay_there {
                        self.give_up_intent().await?;
                        return Err("a round began between: a new intent".to_owned());
                    }
                    if !lay_there {
                        self.journal().registered.push(known);
                    }
                    return Ok(Some((main, round)));
                }
                Err(why) if why.contains("damaged") => {}
                Err(why) => return Err(why),
            }
        }
        Ok(None)
    }

    /// Takes a new intent with the next try; what was stored under this one is stored again.
    async fn give_up_intent(&self) -> Result<(), Stopped> {
        let Some(intent) = self.journal().intent.clone() else { return Ok(()) };
        intents::abort(&self.store, &intent).await.map_err(stopped)?;
        let mut journal = self.journal();
        journal.intent = None;
        journal.further.clear();
        journal.mains.clear();
        journal.registered.clear();
        journal.stored.clear();
        journal.borrowed.clear();
        Ok(())
    }

    /// One registration, by the real code unless a mutant's.
    async fn register(&self, intent: &Intent, extension: Option<u32>) -> Result<u64, Stopped> {
        let store = &self.store;
        let round = if self.shared.is(Mutant::NoW2) || self.shared.is(Mutant::NoCatalogLook) {
            self.register_mutant(intent, extension).await.map_err(stopped)?
        } else {
            // W4: what has passed W2 under one round is only named under the next.
            let is_accepted = self.journal().registered.iter().any(|(known, _)| extension.is_none() && known == intent);
            let registered = match is_accepted {
                true => intents::renew(store, intent, extension).await,
                false => intents::register(store, intent, extension).await,
            };
            registered.map_err(stopped)?
        };
        for base in &intent.bases {
            if is_alive(&self.shared, (intent.repo, *base)).await {
                self.shared.ledger().accepted.insert((intent.repo, intent.id, intent.bundle, *base));
            }
        }
        Ok(round)
    }

    async fn register_mutant(&self, intent: &Intent, extension: Option<u32>) -> Result<u64, StoreError> {
        let store = &self.store;
        let mut round = intents::head(store).await?;
        loop {
            let key = store.keys().intent(round, intent.id, extension);
            let object = envelope::seal(ObjectKind::Intent, store.context(), &intent.encode());
            store.put_new(&key, &object).await?;
            let now = if self.shared.is(Mutant::NoW2) { round } else { intents::head(store).await? };
            if now == round {
                break;
            }
            round = now;
        }
        if self.shared.is(Mutant::NoW2) {
            let catalog = catalog::load(store).await?;
            let is_live =
                |entry: &crate::format::catalog::RepoEntry| entry.id == intent.repo && entry.state == RepoState::Live;
            if !catalog.repos.values().any(is_live) {
                intents::abort(store, intent).await?;
                return Err(StoreError::Conflict { what: "the repo was removed".to_owned() });
            }
        }
        Ok(round)
    }

    /// Finds packs of the intent that an earlier try stored without learning of it.
    async fn adopt(&self) -> Result<(), Stopped> {
        let intent = self.journal().intent.clone().expect("set before");
        for (key, length) in self.store.list_packs(intent.id).await.map_err(stopped)? {
            let id: PackId = key.name().parse().unwrap();
            let entry = PackEntry { id, length, footer_hash: ObjectHash([0; 32]) };
            let mut journal = self.journal();
            if !journal.stored.iter().any(|known| known.id == id) {
                journal.stored.push(entry);
            }
        }
        Ok(())
    }

    async fn under_intent(&self, repo: RepoId, what: What) -> Result<String, Stopped> {
        if self.chance(self.joins) {
            self.add_base(repo).await?;
        }
        if self.chance(80) {
            self.reuse_aborted().await?;
        }
        for _ in 0..1 + self.below(2) {
            self.put_pack(PackKind::Data).await?;
        }
        if what == What::Edit {
            return Ok("uploaded".to_owned());
        }
        // W4
        let round = *self.active.lock().unwrap();
        if Some(intents::head(&self.store).await.map_err(stopped)?) != round {
            let round = self.register_all().await?;
            *self.active.lock().unwrap() = Some(round);
        }
        let meta = self.put_pack(PackKind::Meta).await?;
        let since = refs::position(&self.store, repo).await.map_err(stopped)?;
        let (object, summary, packs) = self.seal(repo, meta);
        let base = self.journal().parent;
        self.journal().sealed = Some(SealedBundle { object: object.clone(), base });
        self.publish(repo, &object).await?;
        self.enter(repo, &summary, since, base, None).await?;
        self.shared.ledger().committed.push(Committed {
            who: self.name.clone(),
            named: (repo, summary.bundle),
            packs: Some(packs.iter().map(|pack| pack.id).collect()),
        });
        self.finished(summary.bundle, packs);
        Ok(format!("committed {}", summary.bundle))
    }

    /// A base that joins later: named first, used then.
    async fn add_base(&self, repo: RepoId) -> Result<(), Stopped> {
        let Some(link) = refs::load(&self.store, repo).await.map_err(stopped)? else { return Ok(()) };
        let recent: Vec<BundleId> = link.record.recent.iter().map(|summary| summary.bundle).collect();
        let Some(base) = self.rng.lock().unwrap().pick(&recent).copied() else { return Ok(()) };
        if !self.join(repo, base).await? {
            return Ok(());
        }
        let packs = self.packs_of((repo, base)).await?;
        let used: Vec<PackEntry> = packs.into_iter().filter(|_| self.chance(60)).collect();
        self.journal().borrowed.extend(used);
        Ok(())
    }

    /// Whether the bundle is a base now.
    async fn join(&self, repo: RepoId, base: BundleId) -> Result<bool, Stopped> {
        let (number, more) = {
            let mut journal = self.journal();
            let intent = journal.intent.clone().expect("registered");
            if intent.repo != repo {
                return Err("another repo".to_owned());
            }
            journal.extensions += 1;
            let more = (journal.extensions, Intent { bases: vec![base], ..intent });
            journal.further.push(more.clone());
            more
        };
        match self.register(&more, Some(number)).await {
            Ok(round) if Some(round) == *self.active.lock().unwrap() => Ok(true),
            // A round has begun: the others have to be named there, too.
            Ok(_) => {
                let round = self.register_all().await?;
                *self.active.lock().unwrap() = Some(round);
                Ok(true)
            }
            Err(why) if why.contains("was purged") => {
                self.journal().further.retain(|(of, _)| *of != number);
                Ok(false)
            }
            // Whether it is registered is not known: it stays among the bases.
            Err(why) => Err(why),
        }
    }

    /// Packs of an own intent that was aborted, if no collection is after them.
    async fn reuse_aborted(&self) -> Result<(), Stopped> {
        let Some((slot, packs)) = self.journal().aborted.pop() else { return Ok(()) };
        let repo = self.journal().repo.expect("set before");
        if !self.join(repo, slot).await? {
            return Ok(());
        }
        if !self.shared.is(Mutant::AbortedBaseUnchecked) {
            let forbidden = collector::forbidden(&self.store).await.map_err(stopped)?;
            let names = packs.iter().map(|pack| self.store.keys().pack(PackKind::Data, pack.id).path);
            if names.into_iter().any(|name| forbidden.contains(&name)) {
                return Ok(());
            }
        }
        self.journal().borrowed.extend(packs);
        Ok(())
    }

    async fn put_pack(&self, kind: PackKind) -> Result<PackEntry, Stopped> {
        let (intent, seq) = {
            let mut journal = self.journal();
            journal.seq += 1;
            (journal.intent.clone().expect("registered").id, journal.seq)
        };
        let id = PackId { intent, run: Run(1), seq };
        let bytes = Bytes::from(format!("{kind:?} {id}").repeat(3));
        let footer_hash = ObjectHash([0; 32]);
        let pack = FinishedPack { id, kind, bytes: bytes.clone(), footer_hash };
        self.store.put_pack(&pack).await.map_err(stopped)?;
        let entry = PackEntry { id, length: bytes.len() as u64, footer_hash };
        if kind == PackKind::Data {
            self.journal().stored.push(entry);
        }
        Ok(entry)
    }

    /// W5 and the descriptor.
    fn seal(&self, repo: RepoId, meta: PackEntry) -> (Bytes, Summary, Vec<PackEntry>) {
        let (intent, parent, packs) = {
            let journal = self.journal();
            let all = journal.inherited.iter().chain(&journal.borrowed).chain(&journal.stored).chain([&meta]);
            let mut packs: Vec<PackEntry> = all.copied().collect();
            packs.sort_by_key(|pack| pack.id);
            packs.dedup_by_key(|pack| pack.id);
            (journal.intent.clone().expect("registered"), journal.parent, packs)
        };
        let labels: Vec<LabelName> = if self.chance(20) { vec!["v1".parse().unwrap()] } else { Vec::new() };
        let descriptor = Descriptor {
            repo,
            bundle: intent.bundle,
            intent: intent.id,
            time: self.store.clock.now(),
            chunk_size: ChunkSize::DEFAULT,
            who: self.name.clone(),
            message: String::new(),
            tool: "simulation".into(),
            parents: parent.map(|parent| (parent, ObjectHash([0; 32]))).into_iter().collect(),
            labels,
            counts: TreeCounts::default(),
            layers: vec![Layer::default()],
            packs: PackTable::Here(packs.clone()),
            derived_from: Default::default(),
        };
        let object = envelope::seal(ObjectKind::Descriptor, self.store.context(), &descriptor.encode());
        self.shared.ledger().sealed.insert(intent.bundle, self.name.clone());
        let summary = descriptor.summary(&object);
        (object, summary, packs)
    }

    /// W7.
    async fn publish(&self, repo: RepoId, object: &Bytes) -> Result<(), Stopped> {
        let intent = self.journal().intent.clone().expect("registered");
        let key = self.store.keys().bundle(repo, intent.bundle);
        match self.store.put_new(&key, object).await.map_err(stopped)? {
            Put::Ours => Ok(()),
            Put::Theirs(_) if self.shared.is(Mutant::SameIntentIsOurs) && self.is_same_intent(&intent).await => Ok(()),
            Put::Theirs(_) => {
                let mut journal = self.journal();
                let packs = std::mem::take(&mut journal.stored);
                journal.aborted.push((intent.bundle, packs));
                (journal.intent, journal.sealed) = (None, None);
                journal.further.clear();
                journal.mains.clear();
                // What was borrowed is not looked for again.
                journal.borrowed.clear();
                Err("the slot was taken".to_owned())
            }
        }
    }

    async fn is_same_intent(&self, intent: &Intent) -> bool {
        let found = slot(&self.shared.direct, (intent.repo, intent.bundle)).await;
        matches!(found, Slot::Filled(descriptor, _) if descriptor.intent == intent.id)
    }

    /// W8.
    async fn enter(
        &self,
        repo: RepoId,
        summary: &Summary,
        since: Position,
        base: Option<BundleId>,
        only_from: Option<Option<BundleId>>,
    ) -> Result<(), Stopped> {
        if !self.shared.is(Mutant::EnteredUnseen) {
            let entered = refs::enter(&self.store, repo, summary, since, base, only_from).await.map_err(stopped)?;
            return self.told_rightly(repo, summary, base, entered.diverged).await;
        }
        let prefix = self.store.keys().refs(repo);
        loop {
            let newest = refs::load(&self.store, repo).await.map_err(stopped)?;
            let mut next = newest.as_ref().map(|link| link.record.clone()).unwrap_or_default();
            next.recent.push(summary.clone());
            next.latest = Some(summary.bundle);
            if chain::append(&self.store, &prefix, newest.as_ref(), next).await.map_err(stopped)?.is_some() {
                return Ok(());
            }
        }
    }

    /// Whoever does not follow what `latest` named is told so.
    async fn told_rightly(
        &self,
        repo: RepoId,
        summary: &Summary,
        base: Option<BundleId>,
        diverged: bool,
    ) -> Result<(), Stopped> {
        let store = &self.shared.direct;
        // Who was entered by another host without moving `latest` is told by what that names now.
        let is_late = self.shared.ledger().late.contains(&summary.bundle);
        let Some(last) = refs::load(store, repo).await.unwrap().filter(|_| !is_late) else { return Ok(()) };
        let prefix = store.keys().refs(repo);
        let mut latest_before = None;
        for seq in 0..=last.seq {
            let link: chain::Link<crate::format::refs::RefsRecord> =
                chain::read(store, &prefix, seq, Some(store.context())).await.unwrap();
            if link.record.recent.last().is_some_and(|newest| newest.bundle == summary.bundle) {
                break;
            }
            latest_before = link.record.latest;
        }
        if !diverged && latest_before != base {
            let what = format!("{}: {} followed {latest_before:?}, not {base:?}: not told", self.name, summary.bundle);
            self.shared.ledger().violate(what);
        }
        Ok(())
    }

    /// Goes on with a commit that had reached W6.
    async fn finish_sealed(&self, repo: RepoId) -> Result<(), Stopped> {
        let Some(mut sealed) = self.journal().sealed.clone() else { return Ok(()) };
        if self.shared.is(Mutant::SameIntentIsOurs) {
            // Sealed anew, with what was added since.
            let intent = self.journal().intent.clone().expect("sealed");
            let round = intents::register(&self.store, &intent, None).await.map_err(stopped)?;
            *self.active.lock().unwrap() = Some(round);
            self.put_pack(PackKind::Data).await?;
            let meta = self.put_pack(PackKind::Meta).await?;
            sealed.object = self.seal(repo, meta).0;
            *self.active.lock().unwrap() = None;
        }
        let body = envelope::open(ObjectKind::Descriptor, Some(self.store.context()), &sealed.object).unwrap();
        let descriptor = Descriptor::decode(&body).unwrap();
        self.publish(repo, &sealed.object).await?;
        let summary = descriptor.summary(&sealed.object);
        self.shared.ledger().late.insert(summary.bundle);
        if self.shared.is(Mutant::EnteredUnseen) {
            self.enter(repo, &summary, Position::default(), sealed.base, Some(sealed.base)).await?;
        } else {
            let only_from = Some(sealed.base);
            let store = &self.store;
            refs::enter(store, repo, &summary, Position::default(), sealed.base, only_from).await.map_err(stopped)?;
        }
        let packs = descriptor.packs.here().to_vec();
        self.shared.ledger().committed.push(Committed {
            who: self.name.clone(),
            named: (repo, summary.bundle),
            packs: Some(packs.iter().map(|pack| pack.id).collect()),
        });
        self.finished(summary.bundle, packs);
        Ok(())
    }

    fn finished(&self, bundle: BundleId, packs: Vec<PackEntry>) {
        let mut journal = self.journal();
        (journal.parent, journal.inherited) = (Some(bundle), packs);
        (journal.intent, journal.sealed, journal.is_dirty) = (None, None, false);
        journal.further.clear();
        journal.mains.clear();
        journal.registered.clear();
        journal.stored.clear();
        journal.borrowed.clear();
        // Some trees go on from their own bundle, others follow `latest` at their next change.
        journal.is_dirty = false;
        let intents: Vec<_> = self.shared.ledger().accepted.iter().filter(|open| open.2 == bundle).copied().collect();
        intents.iter().for_each(|intent| {
            self.shared.ledger().accepted.remove(intent);
        });
    }
}

/// Whether an intent that accepted `bundle` as its base is still open: then nobody may be told that it was removed.
pub async fn open_base(shared: &Shared, repo: RepoId, bundle: BundleId) -> Option<IntentId> {
    let accepted = shared.ledger().accepted.clone();
    for (of, intent, slot_of, base) in accepted {
        if of == repo && base == bundle && matches!(slot(&shared.direct, (of, slot_of)).await, Slot::Empty) {
            return Some(intent);
        }
    }
    None
}
