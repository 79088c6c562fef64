//! The files of a `.datamon`: what is there, what each says, and what writing into one does.
//!
//! A text is of the moment at which it is asked for, and its size is right already at the LOOKUP: programs that copy as
//! many bytes as a stat promised get all of it. An open file keeps the text that it was opened with, but for those that
//! only grow ([`super::history`]). Only `bundle/<id>/files` has no size, as the files of /proc: it is made as it is read
//! ([`super::files`]). In a mounted version, where the kernel reads no file further than its size, it has one.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::Vfs;
use super::files::BundleFiles;
use super::times::digest;
use crate::format::derived::DerivedFrom;
use crate::format::refs::RefsRecord;
use crate::model::clock::Timestamp;
use crate::model::entry::{Attributes, FileKind};
use crate::model::id::BundleId;
use crate::model::name::{LATEST, LabelName};
use crate::snapshot::Snapshot;
use crate::snapshot::diff::{self, Change};
use crate::staging::message::Message;
use crate::staging::tree::{Caller, NodeAttr};
use crate::store::{intents, refs};
use crate::vfs::error::VfsError;
use crate::vfs::namespace::{label_name, no_label};
use crate::vfs::node::{Folder, NameNode, RepoKey, Scope, Text, Through, ViewKey};
use crate::vfs::{Found, Opened, Shared, Ttl};

/// Longest text of a diff, in bytes.
const DIFF_BYTES_MAX: usize = 64 << 20;
/// Texts of diffs that are kept: what two bundles differ in never changes.
const DIFFS_KEPT: usize = 4;
/// Why another text than these is not written.
const READ_ONLY_TEXT: &str = "only ctl, message and the files in labels/ are written";

/// How long a text of this moment is good for the rest of the walk that looked at it.
pub const RENDERED: Duration = Duration::from_secs(1);

/// Texts of this moment as they were looked at last: what was said of their size is what an open then reads.
pub(super) type Rendered = Shared<HashMap<(Scope, Text), (Timestamp, Bytes)>>;

/// Texts of diffs, the last made at the end.
pub(super) type Diffs = Shared<Vec<((BundleId, BundleId), Bytes)>>;

/// What lies at the top of a `.datamon`; of a context there is nothing to command.
fn top(scope: &Scope) -> &'static [(&'static str, Item)] {
    use Item::{Directory, File};
    const CONTEXT: &[(&str, Item)] = &[
        ("reads", File(Text::Reads)),
        ("stats", File(Text::Stats)),
        ("status", File(Text::Status)),
        ("wal", File(Text::Wal)),
    ];
    const REPO: &[(&str, Item)] = &[
        ("bundle", Directory(Folder::Bundles)),
        ("ctl", File(Text::Ctl)),
        ("diff", Directory(Folder::Diffs)),
        ("history", File(Text::History)),
        ("label", Directory(Folder::AboutLabels)),
        ("labels", Directory(Folder::Labels)),
        ("message", File(Text::Message)),
        ("reads", File(Text::Reads)),
        ("stats", File(Text::Stats)),
        ("status", File(Text::Status)),
        ("wal", File(Text::Wal)),
    ];
    if scope.repo().is_some() { REPO } else { CONTEXT }
}

enum Item {
    Directory(Folder),
    File(Text),
}

impl Vfs {
    pub(in crate::vfs) fn control_directory(&self, scope: Scope) -> Found {
        self.directory(NameNode::Control(scope, Folder::Top), Ttl::None)
    }

    // ---- what is there -------------------------------------------------------------------------------------------------

    pub(in crate::vfs) async fn lookup_control(
        &self,
        scope: &Scope,
        folder: &Folder,
        name: &[u8],
    ) -> Result<Found, VfsError> {
        let name = std::str::from_utf8(name).map_err(|_| VfsError::NotFound)?;
        let item = match (folder, scope.repo()) {
            (Folder::Top, _) => {
                let mut items = top(scope).iter();
                match items.find(|(known, _)| *known == name).ok_or(VfsError::NotFound)? {
                    (_, Item::Directory(folder)) => Item::Directory(folder.clone()),
                    (_, Item::File(text)) => Item::File(text.clone()),
                }
            }
            (_, Some(repo)) => self.lookup_below(repo, folder, name).await?.ok_or(VfsError::NotFound)?,
            (_, None) => return Err(VfsError::NotFound),
        };
        match item {
            Item::Directory(folder) => Ok(self.directory(NameNode::Control(scope.clone(), folder), Ttl::None)),
            Item::File(text) => {
                // Who looks for why something was refused sees what is now; numbers may be a moment old.
                if matches!(text, Text::Status | Text::Wal) {
                    self.forget_rendered(scope, &text);
                }
                self.text_attr(scope, &text).await
            }
        }
    }

    async fn lookup_below(&self, repo: &RepoKey, folder: &Folder, name: &str) -> Result<Option<Item>, VfsError> {
        Ok(match folder {
            Folder::Labels if name == LATEST => self.refs(repo.id).await?.latest.map(|_| Item::File(Text::Label(None))),
            Folder::Labels => {
                let Ok(label) = name.parse::<LabelName>() else { return Ok(None) };
                let is_there = self.refs(repo.id).await?.labels.contains_key(&label);
                is_there.then_some(Item::File(Text::Label(Some(label))))
            }
            Folder::AboutLabels => {
                let Ok(label) = name.parse::<LabelName>() else { return Ok(None) };
                // What is removed has a history, too.
                let is_known = self.refs(repo.id).await?.labels.contains_key(&label)
                    || self.has_label_history(repo, &label).await?;
                is_known.then_some(Item::Directory(Folder::Label(label)))
            }
            Folder::Label(label) => (name == "history").then(|| Item::File(Text::LabelHistory(label.clone()))),
            Folder::Bundles => {
                let Ok(bundle) = name.parse() else { return Ok(None) };
                self.bundle(repo, bundle).await?;
                Some(Item::Directory(Folder::Bundle(bundle)))
            }
            Folder::Bundle(bundle) => match name {
                "info" => Some(Item::File(Text::BundleInfo(*bundle))),
                "files" => Some(Item::File(Text::BundleFiles(*bundle))),
                _ => None,
            },
            Folder::Diffs => {
                let record = self.refs(repo.id).await?;
                // A label may hold dots: the first cut that leaves two names wins.
                let cuts = name.match_indices("..").map(|(at, dots)| (&name[..at], &name[at + dots.len()..]));
                let mut pairs = cuts.map(|(a, b)| (refs::resolve(&record, a), refs::resolve(&record, b)));
                let found = pairs.find_map(|(a, b)| Some((a?, b?)));
                found.map(|(a, b)| Item::File(Text::Diff(a, b)))
            }
            Folder::Top => None,
        })
    }

    /// The names in a directory; of diffs there is no end, they are looked up only.
    pub(in crate::vfs) async fn control_names(&self, scope: &Scope, folder: &Folder) -> Result<Vec<String>, VfsError> {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Ok(match (folder, scope.repo()) {
            (Folder::Top, _) => top(scope).iter().map(|(name, _)| (*name).to_owned()).collect(),
            (Folder::Labels, Some(repo)) => {
                let record = self.refs(repo.id).await?;
                let latest = record.latest.map(|_| LATEST.to_owned());
                latest.into_iter().chain(record.labels.keys().map(ToString::to_string)).collect()
            }
            (Folder::AboutLabels, Some(repo)) => {
                self.refs(repo.id).await?.labels.keys().map(ToString::to_string).collect()
            }
            (Folder::Label(_), _) => owned(&["history"]),
            (Folder::Bundles, Some(repo)) => self.bundles(repo).await?.iter().map(ToString::to_string).collect(),
            (Folder::Bundle(_), _) => owned(&["files", "info"]),
            (Folder::Diffs, _) | (_, None) => Vec::new(),
        })
    }

    /// A bundle, removed or not.
    pub(super) async fn bundle(&self, repo: &RepoKey, bundle: BundleId) -> Result<Arc<Snapshot>, VfsError> {
        self.view(self.view_slot(ViewKey { repo: repo.clone(), through: Through::Bundle, bundle })).await
    }

    /// The entries of a bundle as a text.
    pub(in crate::vfs) async fn bundle_files(
        &self,
        scope: &Scope,
        bundle: BundleId,
    ) -> Result<Arc<BundleFiles>, VfsError> {
        let repo = scope.repo().ok_or(VfsError::NotFound)?;
        Ok(self.control.files.of(&self.bundle(repo, bundle).await?))
    }

    // ---- attributes, open, write -----------------------------------------------------------------------------------------

    pub(in crate::vfs) async fn text_attr(&self, scope: &Scope, text: &Text) -> Result<Found, VfsError> {
        let permissions = match text {
            // Who may give commands is looked at when it is opened.
            Text::Ctl => 0o222,
            Text::Message | Text::Label(Some(_)) => 0o644,
            _ => 0o444,
        };
        let (time, size) = match text {
            Text::Ctl => (self.text_time(scope, text, 0).await, 0),
            Text::BundleFiles(bundle) => {
                // A kernel that opens by itself reads only as far as the size says.
                let is_sized = self.is_all_immutable();
                let size = if is_sized { self.bundle_files(scope, *bundle).await?.length().await? } else { 0 };
                (self.text_time(scope, text, 0).await, size)
            }
            Text::History | Text::LabelHistory(_) => {
                let length = self.growing(scope.repo(), text, 0..0).await?.map_or(0, |(_, length)| length);
                (self.text_time(scope, text, length).await, length)
            }
            _ => {
                let bytes = self.rendered(scope, text).await?;
                (self.text_time(scope, text, digest(text, &bytes)).await, bytes.len() as u64)
            }
        };
        let found = self.text_found(scope, text, size, permissions);
        let attributes = Attributes { mtime: time, ..found.attr.attributes };
        Ok(Found { attr: NodeAttr { attributes, atime: time, ctime: time, ..found.attr }, ..found })
    }

    fn text_found(&self, scope: &Scope, text: &Text, size: u64, permissions: u16) -> Found {
        let now = self.store().clock.now();
        let (uid, gid) = self.shown_owner();
        let permissions = permissions & !self.settings().shown.umask;
        let attributes = Attributes { permissions, uid, gid, mtime: now };
        let ino = self.name_ino(&NameNode::Text(scope.clone(), text.clone()));
        let attr = NodeAttr {
            ino,
            kind: FileKind::Regular,
            attributes,
            atime: now,
            ctime: now,
            size,
            nlink: 1,
            rdev: 0,
            blocks: 0,
        };
        Found { attr, ttl: Ttl::None }
    }

    /// Everything succeeds and nothing has an effect, but for the length of `message`: shells cut what they write to.
    pub(in crate::vfs) async fn set_text_attr(
        &self,
        scope: &Scope,
        text: &Text,
        size: Option<u64>,
    ) -> Result<Found, VfsError> {
        if let (Text::Message, Some(size)) = (text, size) {
            self.writable()?;
            self.message(scope)?.cut(size)?;
        }
        self.text_attr(scope, text).await
    }

    pub(in crate::vfs) async fn open_text(
        &self,
        scope: &Scope,
        text: &Text,
        for_writing: bool,
    ) -> Result<Opened, VfsError> {
        match text {
            Text::Ctl => return Ok(Opened::Control),
            Text::Message | Text::Label(Some(_)) if for_writing => self.writable()?,
            _ if for_writing => return Err(VfsError::Misplaced(READ_ONLY_TEXT)),
            Text::History | Text::LabelHistory(_) | Text::BundleFiles(_) => return Ok(Opened::AsRead),
            _ => {}
        }
        Ok(Opened::Text(self.read_text(scope, text).await?))
    }

    /// A file in `.datamon/labels` for a label that there may not be: there is one when something is written into it.
    pub(in crate::vfs) fn make_label_file(&self, scope: &Scope, name: &[u8]) -> Result<Found, VfsError> {
        let label = label_name(name)?;
        Ok(self.text_found(scope, &Text::Label(Some(label)), 0, 0o644))
    }

    /// One write is one command, one value of a label, or some bytes of the message: at `offset`, or its end.
    pub(in crate::vfs) async fn write_text(
        &self,
        scope: &Scope,
        text: &Text,
        offset: Option<u64>,
        data: &[u8],
        caller: Caller,
    ) -> Result<(), VfsError> {
        match (text, scope.repo()) {
            (Text::Ctl, Some(repo)) => {
                let outcome = self.command(repo, data, caller).await;
                self.told(data.trim_ascii(), outcome)
            }
            (Text::Message, _) => {
                self.writable()?;
                Ok(self.message(scope)?.write(offset, data)?)
            }
            (Text::Label(Some(label)), Some(repo)) => {
                self.writable()?;
                let outcome = self.write_label(repo, label, data, caller).await;
                self.told(label.as_str().as_bytes(), outcome)
            }
            _ => Err(VfsError::Misplaced(READ_ONLY_TEXT)),
        }
    }

    /// Sets or moves a label to the bundle or label that is written.
    pub(super) async fn write_label(
        &self,
        repo: &RepoKey,
        label: &LabelName,
        value: &[u8],
        caller: Caller,
    ) -> Result<(), VfsError> {
        let bundle = self.named_bundle(repo, value).await?;
        self.set_label(repo, label, Some(bundle), false, caller).await?;
        self.forget_label(repo, label.as_str()).await;
        Ok(())
    }

    /// The bundle that a text means: an id or a label.
    pub(super) async fn named_bundle(&self, repo: &RepoKey, text: &[u8]) -> Result<BundleId, VfsError> {
        let name = std::str::from_utf8(text).map(str::trim).unwrap_or_default();
        let is_name = name == LATEST || name.parse::<LabelName>().is_ok() || name.parse::<BundleId>().is_ok();
        if !is_name {
            return Err(VfsError::Invalid("a bundle's id or a label is expected"));
        }
        // What another host did is to count here at once.
        self.forget_refs(repo.id);
        refs::resolve(&self.refs(repo.id).await?, name).ok_or_else(|| no_label(repo, name))
    }

    /// The message beside the staging tree of a repo.
    pub(super) fn message(&self, scope: &Scope) -> Result<Message, VfsError> {
        let repo = scope.repo().ok_or(VfsError::NotFound)?;
        Ok(Message::beside(&self.tree_dir(repo)))
    }

    pub(in crate::vfs) async fn clear_message(&self, scope: &Scope) -> Result<(), VfsError> {
        Ok(self.message(scope)?.cut(0)?)
    }

    // ---- what each says ------------------------------------------------------------------------------------------------

    fn forget_rendered(&self, scope: &Scope, text: &Text) {
        let mut kept = self.control.rendered.lock().expect("nothing panics while it holds the texts");
        kept.remove(&(scope.clone(), text.clone()));
    }

    /// What a text says to who reads it; should it be others' words than a stat saw, the next one has another time for them.
    pub(in crate::vfs) async fn read_text(&self, scope: &Scope, text: &Text) -> Result<Bytes, VfsError> {
        let bytes = self.rendered(scope, text).await?;
        self.text_time(scope, text, digest(text, &bytes)).await;
        Ok(bytes)
    }

    /// What a text says; of those that say something else at every look, what they said within the last moment.
    async fn rendered(&self, scope: &Scope, text: &Text) -> Result<Bytes, VfsError> {
        if !matches!(text, Text::Status | Text::Stats | Text::Reads | Text::Wal) {
            return self.render(scope, text).await;
        }
        let now = self.store().clock.now();
        let kept = || self.control.rendered.lock().expect("nothing panics while it holds the texts");
        let is_good = |at: Timestamp| at.age(now) < RENDERED;
        let found = kept().get(&(scope.clone(), text.clone())).filter(|(at, _)| is_good(*at)).cloned();
        if let Some((_, bytes)) = found {
            return Ok(bytes);
        }
        let bytes = self.render(scope, text).await?;
        kept().insert((scope.clone(), text.clone()), (now, bytes.clone()));
        Ok(bytes)
    }

    async fn render(&self, scope: &Scope, text: &Text) -> Result<Bytes, VfsError> {
        let repo = scope.repo().ok_or(VfsError::NotFound);
        Ok(match text {
            Text::Status => self.status(scope.repo()).into(),
            Text::Stats => self.stats().await.into(),
            Text::Reads => self.reads(scope.repo()).into(),
            Text::Wal => self.wal(scope.repo()).await?.into(),
            Text::Message => self.message(scope)?.read()?.into(),
            Text::Label(label) => {
                let record = self.refs(repo?.id).await?;
                let bundle = label.as_ref().map_or(record.latest, |label| record.labels.get(label).copied());
                // A file that was made for a label that is not there yet, or not any more.
                bundle.map_or(String::new(), |bundle| format!("{bundle}\n")).into()
            }
            Text::BundleInfo(bundle) => self.bundle_info(repo?, *bundle).await?.into(),
            Text::Diff(a, b) => self.diff(repo?, *a, *b).await?,
            Text::Ctl | Text::BundleFiles(_) | Text::History | Text::LabelHistory(_) => Bytes::new(),
        })
    }

    fn status(&self, repo: Option<&RepoKey>) -> String {
        let settings = self.settings();
        let mut lines = vec![format!("context: {}", settings.context)];
        lines.extend(repo.map(|repo| format!("repo: {}", self.name_now(repo))));
        lines.push(format!("source: {}", settings.source));
        lines.push(format!("version: {}", env!("CARGO_PKG_VERSION")));
        lines.push(format!("pid: {}", std::process::id()));
        lines.push(format!("mounted: {}", self.mounted()));
        lines.push(format!("log: {}", one_line(&settings.log)));
        lines.push(format!("store: {}", self.store().url()));
        let answers = self.store().requests.meter.answers();
        lines.push(format!("store_state: {}", if answers { "answers" } else { "does not answer" }));
        let held = self.noted_holders();
        for (id, (name, why)) in held.iter().filter(|(id, _)| repo.is_none_or(|repo| repo.id == **id)) {
            let is_open = self.tree_slots().iter().any(|key| key.id == *id);
            if !is_open {
                lines.extend(repo.is_none().then(|| format!("repo: {name}")));
                lines.push(format!("holder: {why}"));
            }
        }
        for (key, committer) in self.open_trees() {
            if repo.is_none_or(|repo| repo.id == key.id) {
                let is_dirty = committer.tree().is_dirty();
                let state = self.tree_state(key.id, committer.tree());
                let parent =
                    committer.parent().map_or("none".to_owned(), |parent| parent.descriptor().bundle.to_string());
                if repo.is_none() {
                    lines.push(format!("repo: {}", key.name));
                }
                let staged = committer.tree().staged();
                lines.push(format!("staging: {state}"));
                lines.push(format!("dirty_files: {}", staged.files));
                lines.push(format!("dirty_bytes: {}", staged.bytes));
                lines.push(format!("uploaded_bytes: {}", staged.uploaded));
                lines.push(format!("pending_bytes: {}", staged.bytes.saturating_sub(staged.uploaded)));
                // By what is known: nobody who asks how things are waits for the store.
                if let (true, Some(latest)) = (is_dirty, self.known_latest(key.id)) {
                    let latest = latest.map_or("none".to_owned(), |latest| latest.to_string());
                    lines.push(format!("diverged: {}", if latest == parent { "no" } else { "yes" }));
                }
                lines.push(format!("base: {parent}"));
                lines.extend(recovered(&committer).map(|found| format!("recovered: {found}")));
            }
        }
        // Nobody has looked into it: as it was found when the mount began.
        if let Some(repo) = repo.filter(|repo| !self.tree_slots().iter().any(|open| open.id == repo.id))
            && !held.contains_key(&repo.id)
        {
            let is_left = !self.left_sentences(Some(repo.id)).is_empty();
            lines.push(format!("staging: {}", if is_left { "dirty" } else { "clean" }));
        }
        let text = |of: &Shared<Option<String>>| of.lock().expect("nothing panics while it holds a text").clone();
        lines.extend(self.last_commit(repo.map(|repo| repo.id)).map(|text| format!("last_commit: {text}")));
        lines.extend(text(&self.control.last_error).map(|text| format!("last_error: {}", one_line(&text))));
        lines.extend(settings.notices.iter().map(|notice| format!("notice: {notice}")));
        lines.extend(self.left_sentences(repo.map(|repo| repo.id)).iter().map(|left| format!("notice: {left}")));
        let unlogged = self.read_log().and_then(|log| log.notice());
        lines.extend(unlogged.map(|notice| format!("notice: {}", one_line(notice))));
        let requests = &self.store().requests;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        lines.push(format!(
            "requests: {} read, {} write, {} list, {} again",
            count(&requests.reads),
            count(&requests.writes),
            count(&requests.lists),
            count(&requests.retries)
        ));
        lines.join("\n") + "\n"
    }

    /// Who is writing: intent, user, host, since when, state, repo.
    async fn wal(&self, repo: Option<&RepoKey>) -> Result<String, VfsError> {
        let catalog = self.catalog().await?;
        let names: BTreeMap<_, _> = catalog.repos.iter().map(|(name, entry)| (entry.id, name.as_str())).collect();
        let mut text = String::new();
        for intent in intents::all_open(self.store(), repo.map(|repo| repo.id)).await? {
            let (user, host) = intent.who.rsplit_once('@').unwrap_or((&intent.who, "-"));
            let repo = names.get(&intent.repo).copied().unwrap_or("-");
            text += &format!("{}\t{user}\t{host}\t{}\topen\t{repo}\n", intent.id, intent.time);
        }
        Ok(text)
    }

    async fn bundle_info(&self, repo: &RepoKey, bundle: BundleId) -> Result<String, VfsError> {
        let snapshot = self.bundle(repo, bundle).await?;
        let record = self.refs(repo.id).await?;
        let descriptor = snapshot.descriptor();
        let time = self.bundle_time(repo.id, bundle).await?.unwrap_or(descriptor.time);
        let parents: Vec<_> = descriptor.parents.iter().map(|(parent, _)| parent.to_string()).collect();
        let lines = [
            ("bundle", bundle.to_string()),
            ("repo", self.name_now(repo).to_string()),
            ("state", bundle_state(&record, bundle).to_owned()),
            ("time", time.to_string()),
            ("who", descriptor.who.clone()),
            ("tool", descriptor.tool.clone()),
            ("parents", parents.join(" ")),
            ("files", descriptor.counts.files.to_string()),
            ("directories", descriptor.counts.directories.to_string()),
            ("bytes", descriptor.counts.bytes.to_string()),
            ("chunk_bytes", descriptor.chunk_size.bytes().to_string()),
            ("descriptor", snapshot.hash().to_string()),
            ("labels_at_commit", names(&descriptor.labels)),
            ("labels", labels_of(&record, bundle)),
        ];
        let mut text: String = lines.iter().map(|(key, value)| format!("{key}: {value}\n")).collect();
        text += &self.derived_from(&descriptor.derived_from).await?;
        // Lines of the message are told from keys by their first character.
        text += "message:\n";
        descriptor.message.lines().for_each(|line| text += &format!("  {line}\n"));
        Ok(text)
    }

    /// A line for each bundle that another was derived from, under its repo's name of today, where it still has one.
    async fn derived_from(&self, derived: &DerivedFrom) -> Result<String, VfsError> {
        if derived.is_empty() {
            return Ok(String::new());
        }
        let catalog = self.catalog().await?;
        let names: HashMap<_, _> = catalog.repos.iter().map(|(name, entry)| (entry.id, name)).collect();
        let mut text = String::new();
        for (repo, bundle) in derived.bundles() {
            let name = names.get(repo).map_or_else(|| repo.to_string(), ToString::to_string);
            text += &format!("derived_from: {name}/{bundle}\n");
        }
        if derived.left_out() > 0 {
            text += &format!("derived_from_left_out: {}\n", derived.left_out());
        }
        Ok(text)
    }

    /// What changed from one bundle to another, as `git diff --name-status` says it.
    async fn diff(&self, repo: &RepoKey, a: BundleId, b: BundleId) -> Result<Bytes, VfsError> {
        let kept = || self.control.diffs.lock().expect("nothing panics while it holds the diffs");
        let known = kept().iter().find(|(key, _)| *key == (a, b)).map(|(_, text)| text.clone());
        if let Some(text) = known {
            return Ok(text);
        }
        let (old, new) = (self.bundle(repo, a).await?, self.bundle(repo, b).await?);
        let mut text = Vec::new();
        for Change { letter, path } in diff::changes(&old, &new).await?.changes {
            text.push(letter);
            text.push(b'\t');
            text.extend_from_slice(&diff::quoted(&path));
            text.push(b'\n');
            if text.len() > DIFF_BYTES_MAX {
                return Err(VfsError::TooLarge("a diff of more than 64 MiB (compare the trees: diff -rq)"));
            }
        }
        let text = Bytes::from(text);
        let mut kept = kept();
        if kept.len() >= DIFFS_KEPT {
            kept.remove(0);
        }
        kept.push(((a, b), text.clone()));
        Ok(text)
    }
}

pub(super) fn names<'a>(labels: impl IntoIterator<Item = &'a LabelName>) -> String {
    labels.into_iter().map(LabelName::as_str).collect::<Vec<_>>().join(",")
}

/// The labels that name a bundle.
pub(in crate::vfs) fn labels_of(record: &RefsRecord, bundle: BundleId) -> String {
    names(record.labels.iter().filter(|(_, named)| **named == bundle).map(|(name, _)| name))
}

/// What became of a bundle.
pub(in crate::vfs) fn bundle_state(record: &RefsRecord, bundle: BundleId) -> &'static str {
    match () {
        () if record.purging.contains(&bundle) => "purging",
        () if record.trashed.contains(&bundle) => "removed",
        () => "live",
    }
}

/// A text of somebody's as a field of a line: nothing in it moves a cursor, or looks like another field.
pub(super) fn one_line(message: &str) -> String {
    message.replace(char::is_control, " ")
}

/// What the tree's opening found of an earlier life of the process, if it found anything.
fn recovered(committer: &crate::staging::commit::Committer) -> Option<String> {
    let found = committer.tree().recovered()?;
    let mut parts = vec![format!("{} files with staged bytes", found.files)];
    parts.extend(committer.finished().map(|bundle| format!("commit {bundle} was finished")));
    let lost = [
        (found.unsynced, "are as before their last changes, which were never synced"),
        (found.gone, "lack bytes that were synced (EIO): put them back, or remove these files"),
    ];
    parts.extend(lost.into_iter().filter(|(files, _)| *files > 0).map(|(files, what)| format!("{files} {what}")));
    Some(parts.join("; "))
}
