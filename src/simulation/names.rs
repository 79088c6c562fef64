//! Those who move names: labels, removal and return of bundles, making and removing repos. All of it real code.

use std::sync::Arc;

use futures_util::FutureExt;

use super::ledger::is_alive;
use super::world::{Actor, Life, Rng, Shared, Work};
use super::writer::open_base;
use crate::model::clock::Timestamp;
use crate::model::id::{BundleId, RepoId};
use crate::model::name::{LabelName, RepoName};
use crate::store::refs::RefsError;
use crate::store::{Store, catalog, forgotten, refs};

/// Whose name the changes stand under.
const WHO: &str = "namer@sim";

/// What somebody does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trade {
    /// Sets, moves, renames and removes labels; brings bundles back; enters forgotten ones.
    Labels,
    /// Removes bundles.
    Deletes,
    /// Makes, renames and removes repos.
    Repos,
}

/// See the module.
pub struct Namer {
    shared: Arc<Shared>,
    trade: Trade,
    /// The repo whose bundles are named; without it, one that is there when something is done.
    repo: Option<RepoId>,
    left: usize,
}

impl Namer {
    pub fn new(shared: &Arc<Shared>, trade: Trade, repo: Option<RepoId>, works: usize) -> Self {
        Self { shared: shared.clone(), trade, repo, left: works }
    }
}

impl Actor for Namer {
    fn next(&mut self, life: &Life, rng: &mut Rng, running: &[String]) -> Option<Work> {
        if !running.is_empty() || self.left == 0 {
            return None;
        }
        self.left -= 1;
        let work = Deed { shared: self.shared.clone(), store: life.store.clone() };
        let choice = rng.clone();
        rng.next();
        let (trade, repo) = (self.trade, self.repo);
        let title = format!("{trade:?}").to_lowercase();
        Some((title, async move { work.run(trade, repo, choice).await }.boxed()))
    }

    fn rest(&mut self, _: &Life, _: &mut Rng) -> Option<Work> {
        None
    }
}

/// Whether it is known what became of a change: one of unknown outcome may still come true.
fn is_settled<T>(outcome: &Result<T, RefsError>) -> bool {
    !matches!(outcome, Err(RefsError::Store(_)))
}

struct Deed {
    shared: Arc<Shared>,
    store: Arc<Store>,
}

fn told<T: std::fmt::Debug, E: std::fmt::Display>(outcome: &Result<T, E>) -> String {
    match outcome {
        Ok(done) => format!("{done:?}"),
        Err(why) => why.to_string(),
    }
}

impl Deed {
    async fn run(&self, trade: Trade, repo: Option<RepoId>, mut rng: Rng) -> String {
        let repo = match (trade, repo) {
            (Trade::Repos, _) => return self.repos(&mut rng).await,
            (_, Some(repo)) => repo,
            (_, None) => match self.named(&rng.pick(&["x", "y"]).unwrap().parse().unwrap()).await {
                Some(repo) => repo,
                None => return "no repo".to_owned(),
            },
        };
        let published = self.published(repo).await;
        let Some(bundle) = rng.pick(&published).copied() else { return "no bundle yet".to_owned() };
        match trade {
            Trade::Deletes => self.delete(repo, bundle).await,
            Trade::Labels => self.label(repo, bundle, &mut rng).await,
            Trade::Repos => unreachable!("done above"),
        }
    }

    /// The repo that has this name, whatever its state.
    async fn named(&self, name: &RepoName) -> Option<RepoId> {
        let catalog = catalog::load(&self.shared.direct).await.unwrap();
        catalog.repos.get(name).map(|entry| entry.id)
    }

    /// All bundles, also those that no history names yet: whoever looks at the store may know them.
    async fn published(&self, repo: RepoId) -> Vec<BundleId> {
        let store = &self.shared.direct;
        let slots = store.list(&store.keys().bundles(repo)).await.unwrap();
        let filled = slots.into_iter().filter(|(_, len)| *len != crate::format::intent::ABORTED_BYTES);
        filled.map(|(key, _)| key.name().parse().unwrap()).collect()
    }

    fn count(&self, bundle: BundleId) -> (usize, usize) {
        let ledger = self.shared.ledger();
        let of = |counts: &std::collections::BTreeMap<BundleId, usize>| counts.get(&bundle).copied().unwrap_or(0);
        (of(&ledger.removals), of(&ledger.returns))
    }

    fn violate(&self, what: String) {
        self.shared.ledger().violate(what);
    }

    async fn delete(&self, repo: RepoId, bundle: BundleId) -> String {
        *self.shared.ledger().removals.entry(bundle).or_default() += 1;
        let before = self.count(bundle);
        let is_returning = self.shared.ledger().returning.contains(&bundle);
        self.shared.ledger().removing.insert(bundle);
        self.shared.ledger().untold.insert(bundle);
        let outcome = refs::trash(&self.store, repo, bundle, WHO).await;
        if is_settled(&outcome) {
            self.shared.ledger().removing.remove(&bundle);
            self.shared.ledger().untold.remove(&bundle);
        }
        let nobody_else = self.count(bundle) == before && !is_returning;
        let is_alive = is_alive(&self.shared, (repo, bundle)).await;
        match &outcome {
            Ok(()) if nobody_else => {
                if is_alive {
                    self.violate(format!("{bundle} was removed, was told, and is there"));
                }
                if let Some(intent) = open_base(&self.shared, repo, bundle).await {
                    self.violate(format!("{bundle} was removed, and is the base of the open intent {intent}"));
                }
            }
            // Nobody else has tried to remove it, ever: it is there, or the refusal was no refusal.
            Err(RefsError::Base { .. } | RefsError::Labelled { .. }) if nobody_else && before.0 == 1 && !is_alive => {
                self.violate(format!("the removal of {bundle} was refused, and it is gone"));
            }
            _ => {}
        }
        format!("{bundle}: {}", told(&outcome))
    }

    async fn label(&self, repo: RepoId, bundle: BundleId, rng: &mut Rng) -> String {
        let labels: [LabelName; 2] = ["v1".parse().unwrap(), "v2".parse().unwrap()];
        let label = &labels[rng.below(2)];
        match rng.below(10) {
            0 => format!("remove {label}: {}", told(&refs::remove_label(&self.store, repo, label, WHO).await)),
            1 => format!("rename: {}", told(&refs::rename_label(&self.store, repo, &labels[0], &labels[1], WHO).await)),
            2 => {
                let outcome = refs::set_label(&self.store, repo, label, None, rng.chance(50), WHO).await;
                format!("{label} for latest: {}", told(&outcome))
            }
            3 => {
                let store = &self.shared.direct;
                let found = forgotten::find(store, repo).await.unwrap();
                self.shared.ledger().late.extend(found);
                let now = Timestamp { secs: i64::MAX, nanos: 0 };
                let entered = forgotten::enter(&self.store, repo, now).await;
                if let Ok(entered) = &entered {
                    self.shared.ledger().late.extend(entered);
                }
                format!("forgotten: {}", told(&entered))
            }
            4..=6 => self.restore(repo, bundle).await,
            _ => {
                let set = refs::set_label(&self.store, repo, label, Some(bundle), false, WHO);
                format!("{label} for {bundle}: {}", self.bring_back(repo, bundle, set).await)
            }
        }
    }

    async fn restore(&self, repo: RepoId, bundle: BundleId) -> String {
        let restored = refs::restore(&self.store, repo, bundle, WHO);
        format!("restore {bundle}: {}", self.bring_back(repo, bundle, restored).await)
    }

    /// A bundle that came back is there until somebody removes it again.
    async fn bring_back<T: std::fmt::Debug>(
        &self,
        repo: RepoId,
        bundle: BundleId,
        work: impl Future<Output = Result<T, RefsError>>,
    ) -> String {
        *self.shared.ledger().returns.entry(bundle).or_default() += 1;
        let before = self.count(bundle);
        let is_removing = self.shared.ledger().removing.contains(&bundle);
        self.shared.ledger().returning.insert(bundle);
        self.shared.ledger().untold.insert(bundle);
        let outcome = work.await;
        if is_settled(&outcome) {
            self.shared.ledger().returning.remove(&bundle);
            self.shared.ledger().untold.remove(&bundle);
        }
        let nobody_else = self.count(bundle) == before && !is_removing;
        if outcome.is_ok() && nobody_else && !is_alive(&self.shared, (repo, bundle)).await {
            self.violate(format!("{bundle} was brought back, was told, and is not there"));
        }
        told(&outcome)
    }

    async fn repos(&self, rng: &mut Rng) -> String {
        let names: [RepoName; 2] = ["x".parse().unwrap(), "y".parse().unwrap()];
        let (name, other) = if rng.chance(70) { (&names[0], &names[1]) } else { (&names[1], &names[0]) };
        match rng.below(10) {
            0..=2 => format!("make {name}: {}", told(&catalog::create(&self.store, name).await)),
            3 => format!("move {name} to {other}: {}", told(&catalog::rename(&self.store, name, other).await)),
            _ => {
                let outcome = catalog::remove(&self.store, name).await;
                format!("remove {name}: {}", told(&outcome))
            }
        }
    }
}
