//! `datamon context`: contexts made, found, shown, changed, forgotten and checked.
//!
//! A context exists in its store; what these commands write down here is how this host reaches it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::host::Host;
use super::output::{self, Failure};
use crate::config::Context;
use crate::format::catalog::RepoState;
use crate::format::context::ContextRecord;
use crate::format::key::{self, Role};
use crate::local::db::DatabaseMemory;
use crate::local::sys;
use crate::model::clock::Timestamp;
use crate::model::id::ContextId;
use crate::model::name::ContextName;
use crate::staging::tree::{StagingError, TreeLock};
use crate::store::backend::{self, Place};
use crate::store::chain::{self, Link};
use crate::store::probe::{self, Check};
use crate::store::{Store, StoreError, catalog, forgotten, refs};

/// How long one of these commands waits for a store that does not answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Memory for a look at a staging tree's database.
const DATABASE_BYTES: usize = 8 << 20;
/// How often, and how many times, it is looked whether a tree is free.
const ENDING_POLL: Duration = Duration::from_millis(50);
const ENDING_POLLS: usize = 20;
/// How old a bundle must be that no history names: a commit under way enters its own within moments.
const FORGOTTEN_AFTER_SECS: i64 = 15 * 60;
/// The roles in the order of the context's record.
const RECORD_ROLES: [Role; 5] = [Role::Meta, Role::VersionedMeta, Role::Blob, Role::Wal, Role::ReadLog];

/// For the help.
pub const EXAMPLES: &str = "\
Examples:
  datamon context create prod --store s3://bucket/prefix --option region=eu-west-1
  datamon context add s3://bucket/prefix        on another host
  datamon context check prod";

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum ContextCommand {
    /// Make a context in a store, after probing that the store keeps what datamon rests on
    #[command(
        after_help = "Examples:\n  datamon context create prod --store s3://bucket/prefix --option region=eu-west-1\n  datamon context create test --store file:///srv/datamon --description 'to try it'"
    )]
    Create(Box<CreateArgs>),
    /// Make a context that exists in a store known to this host
    #[command(
        after_help = "Examples:\n  datamon context add s3://bucket/prefix --option region=eu-west-1\n  datamon context add s3://bucket/prefix#prod --as lab"
    )]
    Add {
        /// The store; with several contexts in it, URL#NAME picks one
        url: String,
        /// The name on this host, if not the context's own
        #[arg(long = "as", value_name = "NAME")]
        name: Option<ContextName>,
        /// How to reach the store
        #[arg(long = "option", value_name = "K=V", value_parser = key_value)]
        options: Vec<(String, String)>,
    },
    /// List the contexts that this host knows
    #[command(after_help = "Example:\n  datamon context list --json")]
    List {
        /// A JSON array on stdout
        #[arg(long)]
        json: bool,
    },
    /// Show one context
    #[command(after_help = "Example:\n  datamon context show prod")]
    Show {
        /// The context
        name: ContextName,
        /// A JSON object on stdout
        #[arg(long)]
        json: bool,
    },
    /// Change how this host reaches a context
    #[command(
        after_help = "Examples:\n  datamon context edit prod --option profile=lab\n  datamon context edit prod --option profile=      removes it"
    )]
    Edit {
        /// The context
        name: ContextName,
        /// An option to set; K= removes it
        #[arg(long = "option", value_name = "K=V", value_parser = key_value)]
        options: Vec<(String, String)>,
    },
    /// Forget a context on this host; the store and staged data stay
    #[command(after_help = "Example:\n  datamon context remove prod")]
    Remove {
        /// The context
        name: ContextName,
        /// Also when a staging tree has changes, which are kept
        #[arg(long)]
        force: bool,
    },
    /// Check that a context's stores can be reached and keep what datamon rests on
    #[command(after_help = "Examples:\n  datamon context check prod\n  datamon context check prod --json")]
    Check {
        /// The context
        name: ContextName,
        /// A JSON object on stdout
        #[arg(long)]
        json: bool,
    },
}

/// What `context create` takes.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// The context's name
    name: ContextName,
    /// Where it lies: file:///abs/path or s3://bucket/prefix
    #[arg(long, value_name = "URL")]
    store: String,
    /// How to reach the store: endpoint, region, allow_http, profile, …
    #[arg(long = "option", value_name = "K=V", value_parser = key_value)]
    options: Vec<(String, String)>,
    /// Another place for metadata
    #[arg(long, value_name = "URL")]
    meta: Option<String>,
    /// Another place for labels and history
    #[arg(long, value_name = "URL")]
    vmeta: Option<String>,
    /// Another place for file data
    #[arg(long, value_name = "URL")]
    blob: Option<String>,
    /// Another place for intents
    #[arg(long, value_name = "URL")]
    wal: Option<String>,
    /// Another place for the read log
    #[arg(long, value_name = "URL")]
    readlog: Option<String>,
    /// What the context is for
    #[arg(long, value_name = "TEXT", default_value = "")]
    description: String,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.trim().to_owned(), value.to_owned()))
}

/// Runs one subcommand.
pub fn run(command: ContextCommand, host: &Host) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else {
        return Failure::new("system", "no runtime could be started").report(false);
    };
    let (as_json, result) = match command {
        ContextCommand::Create(args) => (false, runtime.block_on(create(host, *args))),
        ContextCommand::Add { url, name, options } => (false, runtime.block_on(add(host, &url, name, options))),
        ContextCommand::List { json } => (json, list(host, json)),
        ContextCommand::Show { name, json } => (json, show(host, &name, json)),
        ContextCommand::Edit { name, options } => (false, edit(host, &name, options)),
        ContextCommand::Remove { name, force } => (false, remove(host, &name, force)),
        ContextCommand::Check { name, json } => (json, runtime.block_on(check(host, &name, json))),
    };
    // The findings say already which checks failed.
    let is_said = result.as_ref().is_err_and(|failure: &Failure| failure.kind == "check_failed");
    output::finish(as_json && !is_said, result)
}

impl Host {
    /// The store of `context`, for a command that waits at most `patience` for an answer.
    pub fn open(&self, context: &Context, patience: Duration) -> Result<Arc<Store>, Failure> {
        let (clock, entropy) = (self.clock.clone(), self.entropy.clone());
        Ok(context.open(&self.environment, &BTreeMap::new(), patience, clock, entropy)?)
    }
}

async fn create(host: &Host, args: CreateArgs) -> Result<(), Failure> {
    let roles = [
        (Role::Meta, args.meta),
        (Role::VersionedMeta, args.vmeta),
        (Role::Blob, args.blob),
        (Role::Wal, args.wal),
        (Role::ReadLog, args.readlog),
    ];
    let roles = roles.into_iter().filter_map(|(role, url)| Some((role.name().to_owned(), url?))).collect();
    let mut context = Context {
        id: ContextId::from_parts(host.clock.now().millis(), host.entropy.random()),
        name_in_store: args.name.clone(),
        name: args.name,
        store: args.store,
        roles,
        options: args.options.into_iter().collect(),
        file: Default::default(),
    };
    // Whatever is refused by what was typed is refused before anything is made.
    check_words(&context)?;
    refuse_taken(host, &context.name)?;
    refuse_network_file_systems(&context)?;
    context.roles.values().chain([&context.store]).try_for_each(|url| backend::make_directory(url))?;
    let places = context.places(&host.environment, &BTreeMap::new())?;
    for place in distinct(&places) {
        reach(host, place).await?;
        let failed = probe::probe(place, host.entropy.random()).await.into_iter().find(|check| !check.ok);
        if let Some(Check { name, detail, is_answered, .. }) = failed {
            let kind = if is_answered { "unsupported" } else { "unavailable" };
            return Err(Failure::new(kind, format!("{name}: {detail}")).about(&place.url));
        }
    }
    let store = host.open(&context, PATIENCE)?;
    let record = ContextRecord {
        time: Timestamp::default(),
        previous: None,
        name: context.name.clone(),
        description: args.description,
        roles: RECORD_ROLES.map(|role| context.roles.get(role.name()).cloned().unwrap_or_default()),
    };
    if chain::append(&store, &key::context_chain(&context.name), None, record).await?.is_none() {
        let why = format!("{}: a context of this name exists at {}", context.name, context.store);
        return Err(Failure::new("exists", format!("{why} (exists: use `context add`)")));
    }
    host.places.save_new(&mut context)?;
    output::print_line(&format!("created context {} ({}) at {}", context.name, context.id, context.store));
    Ok(())
}

/// Refuses URLs and options that no store of this version has.
fn check_words(context: &Context) -> Result<(), Failure> {
    let words = || {
        context.roles.values().chain([&context.store]).try_for_each(|url| backend::check_url(url))?;
        context.check_options()
    };
    words().map_err(|why| Failure::usage(why.to_string()))
}

/// Whether a place answers; nobody waits long for one that is not there.
async fn reach(host: &Host, place: &Place) -> Result<(), Failure> {
    let answer = tokio::time::timeout(PATIENCE, probe::reach(place, host.entropy.random())).await;
    let (kind, why) = match answer {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(failure @ backend::Failure::Denied(_))) => ("denied", failure.to_string()),
        Ok(Err(failure)) => ("unavailable", format!("does not answer: {failure}")),
        Err(_) => ("unavailable", "does not answer".to_owned()),
    };
    Err(Failure::new(kind, why).about(&place.url))
}

fn refuse_taken(host: &Host, name: &ContextName) -> Result<(), Failure> {
    match host.places.context(name) {
        Ok(found) => {
            let sentence = format!("{name}: exists on this host, at {} (exists: use `context add`)", found.store);
            Err(Failure::new("exists", sentence))
        }
        Err(crate::config::ConfigError::Unknown { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The different places of a context, in the order of their URLs.
fn distinct(places: &std::collections::HashMap<Role, Place>) -> impl Iterator<Item = &Place> {
    let by_url: BTreeMap<&str, &Place> = places.values().map(|place| (place.url.as_str(), place)).collect();
    by_url.into_values()
}

/// Kinds of file systems (statfs(2)) on which create-only and durability are not what they are on a local disk.
const NETWORK_KINDS: [(i64, &str); 6] = [
    (0x6969, "NFS"),
    (0x517B, "SMB"),
    (0xFF53_4D42, "SMB"),
    (0xFE53_4D42, "SMB"),
    (0x6573_5546, "FUSE"),
    (0x00C3_6400, "Ceph"),
];

fn refuse_network_file_systems(context: &Context) -> Result<(), Failure> {
    if context.options.get(backend::NETWORK_FILE_SYSTEM).is_some_and(|value| value == "true") {
        return Ok(());
    }
    for url in context.roles.values().chain([&context.store]) {
        let Some(path) = url.strip_prefix("file://") else { continue };
        // What does not exist yet will lie on the file system of what is above it.
        let Some(existing) = Path::new(path).ancestors().find(|dir| dir.exists()) else { continue };
        let kind = sys::file_system(existing).map_err(|why| Failure::new("system", format!("{url}: {why}")))?.kind;
        if let Some((_, name)) = NETWORK_KINDS.iter().find(|(magic, _)| *magic == kind & 0xFFFF_FFFF) {
            let why = format!("{url}: lies on {name}, where creating a file only once is not safe");
            let remedy = format!("use a local disk or s3://, or --option {}=true", backend::NETWORK_FILE_SYSTEM);
            return Err(Failure::new("unsupported", format!("{why} ({remedy})")));
        }
    }
    Ok(())
}

async fn add(host: &Host, url: &str, name: Option<ContextName>, options: Vec<(String, String)>) -> Result<(), Failure> {
    let (url, picked) = url.split_once('#').map_or((url, None), |(url, name)| (url, Some(name)));
    let picked: Option<ContextName> = match picked {
        Some(text) => Some(text.parse().map_err(|why| Failure::usage(format!("{text}: {why}")))?),
        None => None,
    };
    let placeholder: ContextName = "unknown".parse().expect("letters are a name");
    let mut context = Context {
        id: ContextId::from_bytes([0; 16]),
        name_in_store: placeholder.clone(),
        name: placeholder,
        store: url.to_owned(),
        roles: BTreeMap::new(),
        options: options.into_iter().collect(),
        file: Default::default(),
    };
    check_words(&context)?;
    refuse_network_file_systems(&context)?;
    let store = host.open(&context, PATIENCE)?;
    let found = find_context(&store, url, picked).await?;
    context.id = found.context;
    context.name_in_store = found.record.name.clone();
    context.name = name.unwrap_or_else(|| found.record.name.clone());
    let roles = RECORD_ROLES.into_iter().zip(found.record.roles).filter(|(_, url)| !url.is_empty());
    context.roles = roles.map(|(role, url)| (role.name().to_owned(), url)).collect();
    if let Ok(known) = host.places.context(&context.name) {
        let why = format!("{}: exists on this host, at {}", context.name, known.store);
        return Err(Failure::new("exists", format!("{why} (use --as NAME)")));
    }
    host.places.save_new(&mut context)?;
    output::print_line(&format!("added context {} ({}) at {}", context.name, context.id, context.store));
    Ok(())
}

async fn find_context(store: &Store, url: &str, picked: Option<ContextName>) -> Result<Link<ContextRecord>, Failure> {
    let names = match picked {
        Some(name) => BTreeSet::from([name]),
        None => names_in(store).await?,
    };
    let mut several = names.iter();
    let (Some(name), None) = (several.next(), several.next()) else {
        let list = names.iter().map(ContextName::as_str).collect::<Vec<_>>().join(", ");
        return Err(match names.len() {
            0 => Failure::new("not_found", format!("{url}: holds no context (use `datamon context create`)")),
            _ => Failure::new("usage_of_store", format!("{url}: holds several contexts: {list} (use {url}#NAME)")),
        });
    };
    let newest = chain::newest(store, &key::context_chain(name), None).await?;
    newest.ok_or_else(|| Failure::new("not_found", format!("{url}: holds no context {name}")))
}

async fn names_in(store: &Store) -> Result<BTreeSet<ContextName>, StoreError> {
    let prefix = key::contexts();
    let listed = store.list(&prefix).await?;
    let name = |path: &str| path.strip_prefix(&prefix.path)?.split('/').next()?.parse().ok();
    Ok(listed.iter().filter_map(|(key, _)| name(&key.path)).collect())
}

fn described(context: &Context) -> Value {
    json!({
        "name": context.name.as_str(),
        "id": context.id.to_string(),
        "url": context.store,
        "file": context.file.display().to_string(),
    })
}

fn list(host: &Host, as_json: bool) -> Result<(), Failure> {
    let contexts = host.places.all()?;
    if as_json {
        output::print_json(&Value::Array(contexts.iter().map(described).collect()));
        return Ok(());
    }
    for context in contexts {
        output::print_line(&format!("{}\t{}\t{}", context.name, context.id, context.store));
    }
    Ok(())
}

fn show(host: &Host, name: &ContextName, as_json: bool) -> Result<(), Failure> {
    let context = host.places.context(name)?;
    if as_json {
        let mut object = described(&context);
        object["roles"] = json!(context.roles);
        object["options"] = json!(context.options);
        output::print_json(&object);
        return Ok(());
    }
    output::print_line(&format!("name: {}\nid: {}\nstore: {}", context.name, context.id, context.store));
    for (role, url) in &context.roles {
        output::print_line(&format!("{role}: {url}"));
    }
    for (option, value) in &context.options {
        output::print_line(&format!("option: {option}={value}"));
    }
    output::print_line(&format!("file: {}", context.file.display()));
    Ok(())
}

fn edit(host: &Host, name: &ContextName, options: Vec<(String, String)>) -> Result<(), Failure> {
    let mut context = host.places.context(name)?;
    for (option, value) in options {
        if value.is_empty() {
            context.options.remove(&option);
        } else {
            context.options.insert(option, value);
        }
    }
    check_words(&context)?;
    Ok(host.places.save(&context)?)
}

fn remove(host: &Host, name: &ContextName, force: bool) -> Result<(), Failure> {
    let context = host.places.context(name)?;
    let state = host.places.state.join(context.id.to_string());
    if let (false, Some((tree, why))) = (force, kept_tree(&state)) {
        let sentence = format!("{name}: a staging tree {why}: {}", tree.display());
        let remedy = "commit or discard what is in it, and unmount it, or --force to keep it there";
        return Err(Failure::new("conflict", format!("{sentence} ({remedy})")));
    }
    Ok(host.places.forget(&context)?)
}

/// A staging tree of a context's state directory, `<repo id>/<stage name>/`, that somebody would miss, and why.
fn kept_tree(state: &Path) -> Option<(PathBuf, String)> {
    let inside = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let trees = inside(state).flat_map(|repo| inside(&repo).collect::<Vec<_>>());
    let memory = DatabaseMemory::new(DATABASE_BYTES);
    trees.filter(|tree| tree.join("db").exists()).find_map(|tree| {
        let changed = || TreeLock::take(&tree).and_then(|lock| lock.dirty_base(&memory));
        let mut found = changed();
        // A daemon that was unmounted a moment ago lets go of it in the next.
        for _ in 0..ENDING_POLLS {
            if found.is_ok() {
                break;
            }
            std::thread::sleep(ENDING_POLL);
            found = changed();
        }
        let why = match found {
            Ok(None) => return None,
            Ok(Some(_)) => "has changes".to_owned(),
            Err(StagingError::Busy(_)) => "is in use by a mount".to_owned(),
            Err(why) => format!("cannot be looked at: {why}"),
        };
        Some((tree, why))
    })
}

/// One line of `check`.
struct Finding {
    name: String,
    ok: bool,
    detail: String,
    ms: u128,
}

impl Finding {
    fn of(name: String, since: Instant, outcome: Result<String, Failure>) -> Self {
        let (ok, detail) = match outcome {
            Ok(detail) => (true, detail),
            Err(failure) => (false, failure.message),
        };
        Self { name, ok, detail, ms: since.elapsed().as_millis() }
    }
}

async fn check(host: &Host, name: &ContextName, as_json: bool) -> Result<(), Failure> {
    let context = host.places.context(name)?;
    let mut findings = Vec::new();
    let since = Instant::now();
    let places = match context.places(&host.environment, &BTreeMap::new()) {
        Ok(places) => places,
        Err(why) => {
            findings.push(Finding::of(format!("{}: opens", context.store), since, Err(why.into())));
            return report(&findings, as_json);
        }
    };
    for place in distinct(&places) {
        let since = Instant::now();
        if let Err(failure) = reach(host, place).await {
            findings.push(Finding::of(format!("{}: answers", place.url), since, Err(failure)));
            continue;
        }
        for Check { name, ok, detail, .. } in probe::probe(place, host.entropy.random()).await {
            findings.push(Finding {
                name: format!("{}: {name}", place.url),
                ok,
                detail,
                ms: since.elapsed().as_millis(),
            });
        }
    }
    let store = host.open(&context, PATIENCE)?;
    let since = Instant::now();
    findings.push(Finding::of("context record".to_owned(), since, check_record(&store, &context).await));
    let since = Instant::now();
    let catalog = catalog::load(&store).await;
    let count = |catalog: &crate::format::catalog::CatalogRecord| format!("{} repos", catalog.repos.len());
    findings.push(Finding::of("catalog".to_owned(), since, catalog.as_ref().map(count).map_err(|e| e.clone().into())));
    for (repo, mut entry) in catalog.map(|catalog| catalog.repos).unwrap_or_default() {
        let since = Instant::now();
        if entry.state != RepoState::Live {
            // A removal that somebody did not finish.
            match catalog::find(&store, &repo).await {
                Ok(found) => entry = found,
                Err(catalog::CatalogError::NotFound(_)) => continue,
                Err(error) => {
                    findings.push(Finding::of(format!("removal of {repo}"), since, Err(error.into())));
                    continue;
                }
            }
        }
        findings.push(Finding::of(format!("history of {repo}"), since, check_history(&store, entry.id).await));
    }
    report(&findings, as_json)
}

fn report(findings: &[Finding], as_json: bool) -> Result<(), Failure> {
    let failed = findings.iter().filter(|finding| !finding.ok).count();
    if as_json {
        let line = |f: &Finding| json!({"name": f.name, "ok": f.ok, "detail": f.detail, "ms": f.ms as u64});
        output::print_json(&json!({"ok": failed == 0, "checks": findings.iter().map(line).collect::<Vec<_>>()}));
    } else {
        for finding in findings {
            let verdict = if finding.ok { "ok" } else { "FAILED" };
            let detail = if finding.detail.is_empty() { String::new() } else { format!(" ({})", finding.detail) };
            output::print_line(&format!("{verdict}\t{}\t{} ms{detail}", finding.name, finding.ms));
        }
    }
    match failed {
        0 => Ok(()),
        _ => Err(Failure::new("check_failed", format!("{failed} of {} checks failed", findings.len()))),
    }
}

async fn check_record(store: &Store, context: &Context) -> Result<String, Failure> {
    let chain = key::context_chain(&context.name_in_store);
    let found: Option<Link<ContextRecord>> = chain::newest(store, &chain, None).await?;
    match found {
        Some(link) if link.context == context.id => Ok(link.record.description),
        Some(link) => Err(Failure::new("conflict", format!("the store holds context {} by this name", link.context))),
        None => Err(Failure::new("not_found", "the store holds no context of this name")),
    }
}

async fn check_history(store: &Store, repo: crate::model::id::RepoId) -> Result<String, Failure> {
    let before = store.now();
    let before = Timestamp { secs: before.secs - FORGOTTEN_AFTER_SECS, ..before };
    let entered = forgotten::enter(store, repo, before).await?;
    let entered = match entered.len() {
        0 => String::new(),
        n => format!(", entered {n} that a lost host had left out"),
    };
    let Some(link) = refs::load(store, repo).await? else { return Ok("no bundle yet".to_owned()) };
    let Some(latest) = link.record.latest else { return Ok(format!("no latest bundle{entered}")) };
    let key = store.keys().bundle(repo, latest);
    let (object, _) = store.get_object(crate::format::envelope::ObjectKind::Descriptor, &key).await?;
    let known = link.record.recent.iter().find(|summary| summary.bundle == latest);
    if known.is_some_and(|summary| summary.descriptor != crate::model::id::ObjectHash::of(&object)) {
        return Err(Failure::new("corrupt", format!("{key}: is not what the history says")));
    }
    Ok(format!("latest {latest}, {} labels{entered}", link.record.labels.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::host::{HostClock, HostEntropy};
    use crate::config::{Environment, Places, role_named};

    fn host(dir: &Path) -> Host {
        let places = Places { contexts: vec![dir.join("config")], state: dir.join("state"), cache: dir.join("cache") };
        let environment = Environment::default();
        Host { environment, places, clock: Arc::new(HostClock), entropy: Arc::new(HostEntropy) }
    }

    fn create_args(dir: &Path, name: &str) -> CreateArgs {
        CreateArgs {
            name: name.parse().unwrap(),
            store: format!("file://{}", dir.join("store").display()),
            options: Vec::new(),
            meta: None,
            vmeta: None,
            blob: Some(format!("file://{}", dir.join("blob").display())),
            wal: None,
            readlog: None,
            description: "the lab's".into(),
        }
    }

    #[tokio::test]
    async fn a_context_made_on_one_host_is_added_on_another_and_checked() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (first, second) = (host(here.path()), host(there.path()));
        create(&first, create_args(here.path(), "prod")).await.unwrap();
        let made = first.places.context(&"prod".parse().unwrap()).unwrap();
        add(&second, &made.store, Some("lab".parse().unwrap()), Vec::new()).await.unwrap();
        let added = second.places.context(&"lab".parse().unwrap()).unwrap();
        assert_eq!((added.id, &added.roles, &added.store), (made.id, &made.roles, &made.store));
        check(&second, &"lab".parse().unwrap(), true).await.unwrap();
        assert!(!here.path().join("store/probe").exists() || names_of_probe(here.path()).is_empty());
    }

    /// Objects of probes that are left in the store; a directory without any is no object.
    fn names_of_probe(dir: &Path) -> Vec<std::path::PathBuf> {
        fn objects(dir: &Path, found: &mut Vec<std::path::PathBuf>) {
            for entry in std::fs::read_dir(dir).unwrap().flatten() {
                match entry.path() {
                    path if path.is_dir() => objects(&path, found),
                    path => found.push(path),
                }
            }
        }
        let mut found = Vec::new();
        objects(&dir.join("store/probe"), &mut found);
        found
    }

    #[tokio::test]
    async fn a_taken_name_is_refused_here_and_in_the_store() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        create(&host(here.path()), create_args(here.path(), "prod")).await.unwrap();
        let again = create(&host(here.path()), create_args(here.path(), "prod")).await.unwrap_err();
        let elsewhere = create(&host(there.path()), create_args(here.path(), "prod")).await.unwrap_err();
        for failure in [again, elsewhere] {
            assert_eq!(failure.remedy.as_deref(), Some("exists: use `context add`"), "{failure:?}");
        }
    }

    #[tokio::test]
    async fn of_several_contexts_one_has_to_be_picked() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["one", "two"] {
            create(&host(dir.path()), create_args(dir.path(), name)).await.unwrap();
        }
        let other = tempfile::tempdir().unwrap();
        let url = create_args(dir.path(), "x").store;
        let several = add(&host(other.path()), &url, None, Vec::new()).await.unwrap_err();
        assert!(several.line().contains("one, two"), "{}", several.line());
        add(&host(other.path()), &format!("{url}#two"), None, Vec::new()).await.unwrap();
        let missing = add(&host(other.path()), &format!("{url}#three"), None, Vec::new()).await.unwrap_err();
        assert_eq!(missing.kind, "not_found");
    }

    #[tokio::test]
    async fn a_context_with_staged_changes_is_not_forgotten_without_force() {
        let dir = tempfile::tempdir().unwrap();
        let host = host(dir.path());
        create(&host, create_args(dir.path(), "prod")).await.unwrap();
        let name: ContextName = "prod".parse().unwrap();
        let id = host.places.context(&name).unwrap().id;
        let stage = host.places.state.join(id.to_string()).join("repo/default/db");
        std::fs::create_dir_all(&stage).unwrap();
        // What cannot be looked at may have changes.
        std::fs::write(stage.with_file_name("version"), "datamon staging 99\n").unwrap();
        assert_eq!(remove(&host, &name, false).unwrap_err().kind, "conflict");
        remove(&host, &name, true).unwrap();
        assert!(stage.exists() && host.places.context(&name).is_err());
        assert!(dir.path().join("store/contexts/prod").exists(), "the store is not touched");
    }

    #[test]
    fn options_are_set_replaced_and_removed_and_an_unknown_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let host = host(dir.path());
        let name: ContextName = "prod".parse().unwrap();
        let mut context = Context {
            name: name.clone(),
            id: ContextId::from_parts(1, 1),
            name_in_store: name.clone(),
            store: "s3://b/p".into(),
            roles: BTreeMap::new(),
            options: BTreeMap::new(),
            file: Default::default(),
        };
        host.places.save_new(&mut context).unwrap();
        let set = |key: &str, value: &str| edit(&host, &name, vec![(key.into(), value.into())]);
        set("region", "eu-1").unwrap();
        set("endpoint", "http://x").unwrap();
        set("region", "").unwrap();
        assert!(set("colour", "blue").unwrap_err().message.contains("colour"));
        set("contributor", "Ada").unwrap();
        assert!(set("contributor", "a\tb").unwrap_err().message.contains("contributor="));
        set("contributor", "").unwrap();
        assert!(set("readlog", "maybe").unwrap_err().message.contains("readlog=maybe"));
        let options = host.places.context(&name).unwrap().options;
        assert_eq!(options, [("endpoint".to_owned(), "http://x".to_owned())].into());
    }

    #[test]
    fn a_role_of_the_record_has_the_name_of_its_option() {
        assert!(RECORD_ROLES.iter().all(|role| role_named(role.name()) == Some(*role)));
    }
}
