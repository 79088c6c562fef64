//! What is asked of a commit, and what it tells.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::format::derived::DerivedFrom;
use crate::model::id::BundleId;
use crate::model::limits::LABELS_MAX;
use crate::model::name::LabelName;
use crate::store::refs;

/// What is asked of a commit.
#[derive(Debug, Clone, Default)]
pub struct CommitRequest {
    /// The message.
    pub message: String,
    /// Labels to set on the bundle.
    pub labels: Vec<LabelName>,
    /// Refuse when `latest` is no longer the base.
    pub fail_if_diverged: bool,
    /// Who commits; empty: who the committer works for.
    pub who: String,
    /// From where its bytes may come.
    pub sources: Sources,
}

impl CommitRequest {
    pub(super) fn who<'a>(&'a self, otherwise: &'a str) -> &'a str {
        if self.who.is_empty() { otherwise } else { &self.who }
    }
}

/// Tells from which bundles the bytes of a tree may come; by default from none.
///
/// Asked once an attempt, just after its seal: whoever knows which files are open then, or were, tells no less than what the
/// sealed bytes were read from.
#[derive(Clone, Default)]
pub struct Sources(Option<Arc<dyn Fn() -> DerivedFrom + Send + Sync>>);

impl Sources {
    /// Those that `tell` says when it is asked.
    pub fn new(tell: impl Fn() -> DerivedFrom + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(tell)))
    }

    pub(super) fn told(&self) -> DerivedFrom {
        self.0.as_ref().map_or_else(DerivedFrom::default, |tell| tell())
    }
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sources")
    }
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
    /// What is to be said of labels that were asked for: those that are not set, and those that others moved meanwhile.
    pub labels: LabelReport,
}

/// What became of labels that did not simply move to the bundle.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelReport {
    /// Not set: the bundle was removed already, or the repo has as many as it may have.
    pub refused: Vec<LabelName>,
    /// Set, but somebody else had moved them since the commit began: to this bundle, or away.
    pub moved: Vec<(LabelName, Option<BundleId>)>,
}

impl LabelReport {
    /// What `entered` did to labels that led to `before` when the commit began.
    pub(super) fn new(entered: refs::Entered, before: &BTreeMap<LabelName, BundleId>) -> Self {
        let mut moved = entered.labels_set;
        moved.retain(|(label, was)| before.get(label) != was.as_ref());
        Self { refused: entered.labels_refused, moved }
    }

    /// A sentence for each.
    pub fn sentences(&self) -> Vec<String> {
        let refused = self.refused.iter().map(|label| {
            format!(
                "label {label}: not set: the bundle was removed by somebody, or the repo has {LABELS_MAX} labels \
                 (restore the bundle, or remove a label, then set it)"
            )
        });
        let moved = self.moved.iter().map(|(label, was)| match was {
            Some(was) => format!("label {label}: somebody moved it to {was} meanwhile; now it names this bundle"),
            None => format!("label {label}: somebody removed it meanwhile; now it names this bundle"),
        });
        refused.chain(moved).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_that_did_not_simply_move_are_told() {
        let label = |name: &str| name.parse::<LabelName>().unwrap();
        let [old, other] = [1, 2].map(|n| BundleId::from_parts(n, n.into()));
        let before = BTreeMap::from([(label("kept"), old), (label("moved"), old), (label("gone"), old)]);
        let entered = refs::Entered {
            labels_refused: vec![label("refused")],
            labels_set: vec![
                (label("kept"), Some(old)),
                (label("new"), None),
                (label("moved"), Some(other)),
                (label("gone"), None),
                (label("made"), Some(other)),
            ],
            ..refs::Entered::default()
        };
        let report = LabelReport::new(entered, &before);
        let told: Vec<_> = report.moved.iter().map(|(label, was)| (label.as_str(), *was)).collect();
        assert_eq!(told, [("moved", Some(other)), ("gone", None), ("made", Some(other))]);
        let sentences = report.sentences();
        assert_eq!(sentences.len(), 4, "{sentences:?}");
        assert!(sentences.iter().any(|said| said.starts_with("label refused: not set")), "{sentences:?}");
    }
}
