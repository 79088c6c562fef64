//! What a mount remembers of catalog and refs: they are read at most once per `refresh`.
//!
//! # Invariant
//!
//! What was read is at most `refresh` old when it is shown, the time that the kernel keeps an answer included: it is told
//! to keep one only for what is left of that. What was changed from here is read again at once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::error::VfsError;
use super::node::RepoKey;
use super::{Shared, Ttl, Vfs};
use crate::format::catalog::CatalogRecord;
use crate::format::refs::RefsRecord;
use crate::model::clock::Timestamp;
use crate::model::id::{BundleId, RepoId};
use crate::model::name::RepoName;
use crate::store::{StoreError, catalog, refs};

/// How long a walk waits for news of the repos when it knows some.
const NAMES_LIMIT: Duration = Duration::from_secs(2);

/// See the module. Each with the time when it was asked for.
#[derive(Default)]
pub(super) struct Remembered {
    catalog: Shared<Option<(Timestamp, Arc<CatalogRecord>)>>,
    refs: Shared<HashMap<RepoId, (Timestamp, RefsRecord)>>,
}

impl Vfs {
    pub(super) fn is_fresh(&self, read: Timestamp) -> bool {
        read.age(self.store().clock.now()) < self.settings().refresh
    }

    /// How long what was read at that time may be relied on, a second at most: what is changed from here is to be seen
    /// here, and not everything that the kernel knows is taken back.
    pub(super) fn rest(&self, read: Option<Timestamp>) -> Ttl {
        let read = read.unwrap_or_default();
        let age = read.age(self.store().clock.now());
        Ttl::Old(self.settings().refresh.saturating_sub(age).min(Ttl::Short.duration()))
    }

    /// The same of what says which repos there are.
    pub(super) fn rest_of_catalog(&self) -> Ttl {
        let known = self.remembered.catalog.lock().expect("nothing panics while it holds the catalog");
        self.rest(known.as_ref().map(|(read, _)| *read))
    }

    /// The same of a repo's labels and bundles.
    pub(super) fn rest_of_refs(&self, repo: RepoId) -> Ttl {
        let refs = self.remembered.refs.lock().expect("nothing panics while it holds the refs");
        self.rest(refs.get(&repo).map(|(read, _)| *read))
    }

    /// The repos, at most `refresh` old; while the store does not answer, those that were known last: a staging tree is
    /// local and can be walked to.
    pub(super) async fn catalog(&self) -> Result<Arc<CatalogRecord>, VfsError> {
        let known = self.remembered.catalog.lock().expect("nothing panics while it holds the catalog").clone();
        let Some((read, record)) = known else {
            let asked = self.store().clock.now();
            let record = Arc::new(catalog::load(self.store()).await?);
            self.set_catalog(asked, record.clone());
            return Ok(record);
        };
        if self.is_fresh(read) {
            return Ok(record);
        }
        let asked = self.store().clock.now();
        let news = match tokio::time::timeout(NAMES_LIMIT, catalog::load(self.store())).await {
            Ok(Ok(news)) => Arc::new(news),
            Ok(Err(StoreError::Unavailable { .. })) | Err(_) => {
                tracing::warn!("the store does not answer: repos are shown as they were known last");
                record
            }
            Ok(Err(error)) => return Err(error.into()),
        };
        self.set_catalog(asked, news.clone());
        Ok(news)
    }

    fn set_catalog(&self, asked: Timestamp, record: Arc<CatalogRecord>) {
        let names: HashMap<RepoId, &RepoName> = record.repos.iter().map(|(name, entry)| (entry.id, name)).collect();
        self.name_trees(|id| names.get(&id).map(|name| (*name).clone()));
        *self.remembered.catalog.lock().expect("nothing panics while it holds the catalog") = Some((asked, record));
    }

    /// The name that a repo has now, as far as is known: who walked to it before its `mv` did so by another.
    pub(super) fn name_now(&self, repo: &RepoKey) -> RepoName {
        let known = self.remembered.catalog.lock().expect("nothing panics while it holds the catalog");
        let record = known.as_ref().map(|(_, record)| record);
        let named = record.and_then(|record| record.repos.iter().find(|(_, entry)| entry.id == repo.id));
        named.map_or_else(|| repo.name.clone(), |(name, _)| name.clone())
    }

    /// What is known was changed from here: it is read again at the next look.
    pub(super) fn forget_catalog(&self) {
        let mut known = self.remembered.catalog.lock().expect("nothing panics while it holds the catalog");
        if let Some((read, _)) = &mut *known {
            *read = Timestamp::default();
        }
    }

    /// What `latest` is by the refs that are remembered, if that is not longer ago than `refresh`.
    pub(super) fn fresh_latest(&self, repo: RepoId) -> Option<Option<BundleId>> {
        let refs = self.remembered.refs.lock().expect("nothing panics while it holds the refs");
        refs.get(&repo).filter(|(read, _)| self.is_fresh(*read)).map(|(_, record)| record.latest)
    }

    /// What `latest` was when the refs were read last.
    pub(super) fn known_latest(&self, repo: RepoId) -> Option<Option<BundleId>> {
        let refs = self.remembered.refs.lock().expect("nothing panics while it holds the refs");
        refs.get(&repo).map(|(_, record)| record.latest)
    }

    /// The refs of a repo, at most `refresh` old.
    pub(super) async fn refs(&self, repo: RepoId) -> Result<RefsRecord, VfsError> {
        if let Some((read, record)) =
            self.remembered.refs.lock().expect("nothing panics while it holds the refs").get(&repo)
            && self.is_fresh(*read)
        {
            return Ok(record.clone());
        }
        let asked = self.store().clock.now();
        let record = refs::load(self.store(), repo).await?.map(|link| link.record).unwrap_or_default();
        self.remembered
            .refs
            .lock()
            .expect("nothing panics while it holds the refs")
            .insert(repo, (asked, record.clone()));
        Ok(record)
    }

    /// Forgets what is known of a repo's refs: they were just changed from here.
    pub(super) fn forget_refs(&self, repo: RepoId) {
        self.remembered.refs.lock().expect("nothing panics while it holds the refs").remove(&repo);
    }
}
