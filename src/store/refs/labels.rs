//! Where the labels of a repo led, step by step.

use std::collections::BTreeMap;

use futures_util::{StreamExt, TryStreamExt, stream};

use super::history::{Position, READS};
use super::load;
use crate::format::refs::{RefsRecord, Summary};
use crate::model::clock::Timestamp;
use crate::model::id::{BundleId, RepoId};
use crate::model::name::LabelName;
use crate::store::chain::{self, Link};
use crate::store::{Store, StoreError};

/// One step of a label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelMove {
    /// When.
    pub time: Timestamp,
    /// Where it leads since then; nowhere if it was removed.
    pub bundle: Option<BundleId>,
    /// Who moved it: at a commit who committed. Records of early builds do not say it of other moves.
    pub who: Option<String>,
}

/// The steps of all labels of a repo, as far as they were read. Kept by a caller, it reads only what was added.
///
/// Only the records themselves tell of moves, so the first time every record of the repo is read.
#[derive(Debug, Default)]
pub struct LabelLog {
    read: Position,
    /// Of the newest record that was read.
    time: Timestamp,
    last: BTreeMap<LabelName, BundleId>,
    newest: Option<BundleId>,
    moves: BTreeMap<LabelName, Vec<LabelMove>>,
}

impl LabelLog {
    /// The steps of a label that were read, oldest first.
    pub fn of(&self, label: &LabelName) -> &[LabelMove] {
        self.moves.get(label).map_or(&[], Vec::as_slice)
    }

    /// Whether this record tells nothing that was not read: times grow along the chain.
    pub fn has_all_of(&self, record: &RefsRecord) -> bool {
        self.time >= record.time
    }

    /// When a label came to this bundle last, or left it.
    pub fn touched(&self, bundle: BundleId) -> Option<Timestamp> {
        let of_label = |moves: &Vec<LabelMove>| {
            let left = moves.windows(2).filter(|pair| pair[0].bundle == Some(bundle)).map(|pair| pair[1].time);
            let came = moves.iter().filter(|step| step.bundle == Some(bundle)).map(|step| step.time);
            left.chain(came).max()
        };
        self.moves.values().filter_map(of_label).max()
    }

    /// Reads on to the newest record.
    ///
    /// Safe to drop: what was read before stays.
    pub async fn update(&mut self, store: &Store, repo: RepoId) -> Result<(), StoreError> {
        self.update_within(store, repo, u64::MAX).await?;
        Ok(())
    }

    /// The same, unless it takes more than `records_max` records; answers whether it was done.
    pub async fn update_within(&mut self, store: &Store, repo: RepoId, records_max: u64) -> Result<bool, StoreError> {
        let Some(newest) = load(store, repo).await? else { return Ok(true) };
        let prefix = store.keys().refs(repo);
        let first = self.read.0.map_or(0, |seq| seq + 1);
        if (newest.seq + 1).saturating_sub(first) > records_max {
            return Ok(false);
        }
        let reads = (first..=newest.seq).map(|seq| chain::read(store, &prefix, seq, Some(store.context())));
        let mut links = stream::iter(reads).buffered(READS);
        let mut before: Option<Link<RefsRecord>> = None;
        while let Some(link) = links.try_next().await? {
            if let Some(before) = &before {
                chain::expect_follows(&prefix, before, &link)?;
            }
            self.note(&link.record);
            self.read = Position::of(Some(&link));
            before = Some(link);
        }
        Ok(true)
    }

    fn note(&mut self, record: &RefsRecord) {
        let entered = record.recent.last().filter(|summary| Some(summary.bundle) != self.newest);
        let said = || Some(record.who.clone()).filter(|who| !who.is_empty());
        for (label, bundle) in &record.labels {
            if self.last.get(label) != Some(bundle) {
                let is_commits = |summary: &&Summary| summary.bundle == *bundle && summary.labels.contains(label);
                let who = entered.filter(is_commits).map(|summary| summary.who.clone()).or_else(said);
                let step = LabelMove { time: record.time, bundle: Some(*bundle), who };
                self.moves.entry(label.clone()).or_default().push(step);
            }
        }
        for label in self.last.keys().filter(|label| !record.labels.contains_key(label)) {
            let step = LabelMove { time: record.time, bundle: None, who: said() };
            self.moves.entry(label.clone()).or_default().push(step);
        }
        self.time = record.time;
        self.last.clone_from(&record.labels);
        self.newest = record.recent.last().map(|summary| summary.bundle);
    }
}
