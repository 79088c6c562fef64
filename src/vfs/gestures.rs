//! Gestures: what making, removing and renaming names of the namespace does to repos, labels and bundles.
//!
//! Each is a change of the catalog or of a repo's refs, under the caller's name. What lies in a snapshot or in a staging
//! tree is theirs.

use super::control::Way;
use super::error::VfsError;
use super::namespace::{NAME_FORM, label_name, repo_name};
use super::node::{Folder, NameNode, RepoKey, Scope, Through, ViewKey};
use super::{Found, Make, Ttl, Vfs};
use crate::model::id::BundleId;
use crate::model::name::{FileName, LATEST, LabelName};
use crate::staging::commit::Committer;
use crate::staging::inode::ROOT;
use crate::staging::tree::{Caller, StagingError};
use crate::store::refs::RefsError;
use crate::store::{catalog, refs};

/// Why nothing is moved into `labels/`.
const LABEL_BY_LINK: &str = "a label is made by mkdir labels/NAME, or ln -s ../bundles/ID labels/NAME";
/// Why nothing else is in `bundles/`.
const BY_COMMITS: &str = "bundles are made by commits (sync REPO/staging)";
/// Why nothing is moved into `.datamon`, or out of it.
const WRITTEN_ONLY: &str = "what lies in .datamon is written into, not moved there or away";

/// Why a label or a bundle is not moved elsewhere, and nothing is moved onto one.
const NOT_MOVED: &str = "labels and bundles are not moved to other directories, and not replaced (mv renames a label within \
    labels/; to move it to another bundle write that to .datamon/labels/NAME)";

impl Vfs {
    /// Makes a repo, or a label: a directory names the newest bundle, a symlink the one that it leads to, a file of
    /// `.datamon/labels` the one that is written into it.
    pub(super) async fn make_name(
        &self,
        node: &NameNode,
        name: &FileName,
        what: Make,
        caller: Caller,
    ) -> Result<Found, VfsError> {
        if self.is_read_only() {
            return Err(VfsError::ReadOnly);
        }
        match (node, what) {
            (NameNode::Context, Make::Directory) => {
                let name = repo_name(name.as_bytes()).ok_or(VfsError::Invalid(NAME_FORM))?;
                let made = catalog::create(self.store(), &name).await;
                // Also of one that another host made a moment ago.
                self.forget_catalog();
                let entry = made?;
                Ok(self.directory(NameNode::Repo(RepoKey { name, id: entry.id }), Ttl::Short))
            }
            (NameNode::Labels(repo), Make::Directory) => {
                let label = label_name(name.as_bytes())?;
                let bundle = self.set_label(repo, &label, None, true, caller).await?;
                let key = ViewKey { repo: repo.clone(), through: Through::Label(label), bundle };
                self.view_root(key).await
            }
            (NameNode::Labels(repo), Make::Symlink(target)) => {
                let label = label_name(name.as_bytes())?;
                let bundle = linked_bundle(&target).ok_or(VfsError::Invalid(
                    "a label is a link to ../bundles/ID (or write ID or a label to .datamon/labels/NAME)",
                ))?;
                self.set_label(repo, &label, Some(bundle), true, caller).await?;
                Ok(self.label_link(repo, &label, format!("../bundles/{bundle}")))
            }
            (NameNode::Control(scope, Folder::Labels), Make::File) => self.make_label_file(scope, name.as_bytes()),
            (NameNode::BusyStaging(_), _) => Err(self.busy()),
            (NameNode::Context, _) => Err(VfsError::Misplaced("a context holds repos, which mkdir makes")),
            (NameNode::Repo(_), _) => Err(VfsError::Misplaced(
                "a repo's files go into its staging tree (cp to REPO/staging/; rmdir removes an empty repo)",
            )),
            (NameNode::Bundles(_), _) => Err(VfsError::Misplaced(BY_COMMITS)),
            (NameNode::Labels(_), _) => {
                Err(VfsError::Misplaced("a label is a directory, or a link to ../bundles/ID (mkdir labels/NAME)"))
            }
            _ => Err(not_here(node)),
        }
    }

    /// Whose name stands in the history for what the caller does.
    async fn who(&self, caller: Caller) -> String {
        self.settings().identity.of(caller.uid, None).await
    }

    /// Sets or moves a label.
    pub(super) async fn set_label(
        &self,
        repo: &RepoKey,
        label: &LabelName,
        to: Option<BundleId>,
        only_new: bool,
        caller: Caller,
    ) -> Result<BundleId, VfsError> {
        let set = refs::set_label(self.store(), repo.id, label, to, only_new, &self.who(caller).await).await;
        self.forget_refs(repo.id);
        Ok(set?)
    }

    pub(super) async fn remove_label(&self, repo: &RepoKey, label: &LabelName, caller: Caller) -> Result<(), VfsError> {
        let removed = refs::remove_label(self.store(), repo.id, label, &self.who(caller).await).await;
        self.forget_refs(repo.id);
        Ok(removed?)
    }

    /// Gives a label another, free name.
    async fn rename_label(
        &self,
        repo: &RepoKey,
        (from, to): (&FileName, &FileName),
        no_replace: bool,
        caller: Caller,
    ) -> Result<(), VfsError> {
        let (from, to) = (label_name(from.as_bytes())?, label_name(to.as_bytes())?);
        let renamed = refs::rename_label(self.store(), repo.id, &from, &to, &self.who(caller).await).await;
        self.forget_refs(repo.id);
        match renamed {
            Err(RefsError::Exists(label)) if !no_replace => Err(VfsError::Taken(label)),
            renamed => Ok(renamed?),
        }
    }

    /// Removes a directory of the namespace; the thread `tid` asks for it.
    pub(super) async fn remove_name(
        &self,
        node: &NameNode,
        name: &FileName,
        caller: Caller,
        tid: u32,
    ) -> Result<(), VfsError> {
        if self.is_read_only() {
            return Err(VfsError::ReadOnly);
        }
        match node {
            NameNode::Context => {
                let name = repo_name(name.as_bytes()).ok_or(VfsError::NotFound)?;
                self.refuse_staged(&self.repo(&name).await?).await?;
                let removed = catalog::remove(self.store(), &name).await;
                self.forget_catalog();
                Ok(removed?)
            }
            NameNode::Labels(repo) => {
                let label = label_name(name.as_bytes())?;
                let through = Through::Label(label.clone());
                self.refuse_recursive(repo, &through, label.as_str(), tid)?;
                self.remove_label(repo, &label, caller).await?;
                self.retire_views(|key| key.repo.id == repo.id && key.through == through);
                Ok(())
            }
            NameNode::Bundles(repo) => {
                let text = std::str::from_utf8(name.as_bytes()).map_err(|_| VfsError::NotFound)?;
                let bundle: BundleId = text.parse().map_err(|_| VfsError::NotFound)?;
                self.refuse_recursive(repo, &Through::Bundle, text, tid)?;
                self.remove_bundle(repo, bundle, caller).await?;
                let is_that = |key: &ViewKey| key.through == Through::Bundle && key.bundle == bundle;
                self.retire_views(|key| key.repo.id == repo.id && is_that(key));
                Ok(())
            }
            _ => Err(not_here(node)),
        }
    }

    /// Refuses to remove a repo into which somebody on this host has staged something: no gesture would lead there any more.
    async fn refuse_staged(&self, repo: &RepoKey) -> Result<(), VfsError> {
        for (_, stage, dir) in self.other_stages().into_iter().filter(|(id, ..)| *id == repo.id) {
            if self.has_left(dir).await? {
                let remedy = format!("commit or discard that first, in a mount with -o stage={stage}");
                return Err(VfsError::Busy(format!("{}: something is staged in it ({remedy})", repo.name)));
            }
        }
        let Some(slot) = self.changed_tree_slot(repo).await? else { return Ok(()) };
        let (_, committer) = self.committer(slot)?;
        if !committer.tree().is_dirty() {
            return Ok(());
        }
        if !committer.tree().list(ROOT, None, 1).await?.is_empty() {
            return Err(VfsError::Busy(format!(
                "{}: something is staged in it (commit or discard that first)",
                repo.name
            )));
        }
        drop(committer);
        // What was staged was removed again: at umount nothing is to be committed for a repo that is gone.
        self.reopen(repo, Way::Discard).await
    }

    /// Takes a bundle out of sight, until it is restored or purged.
    async fn remove_bundle(&self, repo: &RepoKey, bundle: BundleId, caller: Caller) -> Result<(), VfsError> {
        // The store learns of a base only when the first byte is uploaded; what is staged here is known now, also where
        // nobody has looked into it since an earlier mount. What another mount has is that one's to say.
        match self.changed_tree_slot(repo).await {
            Ok(_) | Err(VfsError::Staging(StagingError::Busy(_))) => {}
            Err(error) => return Err(error),
        }
        let is_base = |committer: &Committer| {
            let parent = committer.parent().map(|parent| parent.descriptor().bundle);
            let base = committer.tree().base_bundle();
            let is_copied_from = || committer.has_joined(bundle).unwrap_or(true);
            committer.tree().is_dirty() && (parent == Some(bundle) || base == Some(bundle) || is_copied_from())
        };
        if self.open_trees().iter().any(|(key, committer)| key.id == repo.id && is_base(committer)) {
            let what = format!(
                "{bundle}: what is staged here is based on it, or copied from it (commit or discard that first)"
            );
            return Err(VfsError::Busy(what));
        }
        let removed = refs::trash(self.store(), repo.id, bundle, &self.who(caller).await).await;
        self.forget_refs(repo.id);
        self.forget_label(repo, LATEST).await;
        Ok(removed?)
    }

    /// Brings a removed bundle back.
    pub(super) async fn restore_bundle(
        &self,
        repo: &RepoKey,
        bundle: BundleId,
        caller: Caller,
    ) -> Result<(), VfsError> {
        let restored = refs::restore(self.store(), repo.id, bundle, &self.who(caller).await).await;
        self.forget_refs(repo.id);
        self.forget_label(repo, LATEST).await;
        Ok(restored?)
    }

    /// Makes the kernel look again where a label leads: not for a request that holds `labels/`, which would wait for itself.
    pub(super) async fn forget_label(&self, repo: &RepoKey, name: &str) {
        let labels = self.name_ino(&NameNode::Labels(repo.clone()));
        let name = FileName::new(name.as_bytes().to_vec()).expect("a label is a file name");
        self.forget_touched(vec![(labels, name)]).await;
    }

    /// Removes a file of the namespace; the thread `tid` asks for it.
    pub(super) async fn unlink_name(
        &self,
        node: &NameNode,
        name: &FileName,
        caller: Caller,
        tid: u32,
    ) -> Result<(), VfsError> {
        if self.is_read_only() {
            return Err(VfsError::ReadOnly);
        }
        match node {
            NameNode::Control(Scope::Repo(repo) | Scope::Staging(repo), Folder::Labels) => {
                let label = label_name(name.as_bytes())?;
                self.refuse_recursive_below_control(repo, label.as_str(), tid)?;
                self.remove_label(repo, &label, caller).await?;
                self.forget_label(repo, label.as_str()).await;
                Ok(())
            }
            NameNode::Control(scope, Folder::Top) if name.as_bytes() == b"message" => self.clear_message(scope).await,
            _ => Err(not_here(node)),
        }
    }

    pub(super) async fn rename_name(
        &self,
        node: &NameNode,
        (from, to): (&FileName, &FileName),
        no_replace: bool,
        caller: Caller,
    ) -> Result<(), VfsError> {
        if self.is_read_only() {
            return Err(VfsError::ReadOnly);
        }
        match node {
            NameNode::Context => {
                let from = repo_name(from.as_bytes()).ok_or(VfsError::NotFound)?;
                let to = repo_name(to.as_bytes()).ok_or(VfsError::Invalid(NAME_FORM))?;
                let renamed = catalog::rename(self.store(), &from, &to).await;
                self.forget_catalog();
                renamed?;
                // Whatever tells the repo's name has the new one from here on; if it cannot be read now, from the next look on.
                let _ = self.catalog().await;
                Ok(())
            }
            NameNode::Labels(repo) => self.rename_label(repo, (from, to), no_replace, caller).await,
            NameNode::Control(Scope::Repo(repo) | Scope::Staging(repo), Folder::Labels) => {
                self.rename_label(repo, (from, to), no_replace, caller).await
            }
            _ => Err(not_here(node)),
        }
    }
}

/// Why what is done elsewhere in the namespace is not done in this directory of it.
fn not_here(node: &NameNode) -> VfsError {
    VfsError::Misplaced(match node {
        NameNode::Context => "a context holds repos and .datamon (mkdir makes a repo, rmdir removes one)",
        NameNode::Repo(_) => "what lies in a repo is always there, under these names",
        NameNode::Bundles(_) => {
            "a bundle keeps its name (rmdir takes it out of sight, `restore ID` in .datamon/ctl brings it back)"
        }
        NameNode::Labels(_) => "a label is a directory here (rmdir removes it)",
        NameNode::Control(..) => "what lies in .datamon is datamon's, but for message and the files in labels/",
        _ => return VfsError::NotPermitted,
    })
}

/// Why a name of the namespace is not moved to another directory of it, or does not change places with another.
///
/// Never EXDEV where names mean something: mv(1) would go on by itself, with a removal and a copy.
pub(super) fn not_moved(from: &NameNode, to: &NameNode, is_there: bool) -> VfsError {
    match (from, not_moved_in(to, is_there)) {
        (_, VfsError::OtherTree) => not_moved_out(from),
        (_, refused) => refused,
    }
}

/// The same of what is moved out of the namespace, into a staging tree.
pub(super) fn not_moved_out(from: &NameNode) -> VfsError {
    match from {
        NameNode::Labels(_) | NameNode::Bundles(_) => VfsError::Fixed(NOT_MOVED),
        NameNode::Control(..) => VfsError::Misplaced(WRITTEN_ONLY),
        _ => VfsError::OtherTree,
    }
}

/// The same of what is moved into it. `is_there`: onto something.
pub(super) fn not_moved_in(to: &NameNode, is_there: bool) -> VfsError {
    match to {
        NameNode::Labels(_) | NameNode::Bundles(_) | NameNode::Times(_) if is_there => VfsError::Fixed(NOT_MOVED),
        NameNode::Labels(_) => VfsError::Misplaced(LABEL_BY_LINK),
        NameNode::Control(..) => VfsError::Misplaced(WRITTEN_ONLY),
        NameNode::Bundles(_) => VfsError::Misplaced(BY_COMMITS),
        NameNode::Context => {
            VfsError::Misplaced("a context holds repos, which mkdir makes (their files go into REPO/staging)")
        }
        _ => VfsError::OtherTree,
    }
}

/// The bundle that a symlink in `labels/` leads to: `../bundles/ID`, however the way there is written.
fn linked_bundle(target: &[u8]) -> Option<BundleId> {
    let mut parts = std::str::from_utf8(target).ok()?.split('/').filter(|part| !part.is_empty()).rev();
    let id = parts.next()?;
    if parts.next() == Some("bundles") { id.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_to_a_bundle_names_it() {
        let bundle = BundleId::from_parts(5, 6);
        for way in ["../bundles/", "/mnt/dm/census/bundles/", "bundles/"] {
            assert_eq!(linked_bundle(format!("{way}{bundle}").as_bytes()), Some(bundle), "{way}");
        }
        assert_eq!(linked_bundle(format!("../bundles/{bundle}/").as_bytes()), Some(bundle));
        for other in [format!("../labels/{bundle}"), bundle.to_string(), "../bundles/x".into(), String::new()] {
            assert_eq!(linked_bundle(other.as_bytes()), None, "{other}");
        }
    }
}
