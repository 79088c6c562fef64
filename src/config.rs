//! What this host knows of contexts, and where datamon keeps its files.
//!
//! A context's file holds where the context lies and how to reach it, never a secret: credentials come from the
//! environment, from the machine, or from the credentials file of the cloud's own tools.
//!
//! # Invariants
//!
//! 1. Nothing here reads the environment: it comes in as an [`Environment`].
//! 2. A file appears whole or not at all, and `save_new` never replaces one.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::format::key::Role;
use crate::model::clock::{Clock, Entropy};
use crate::model::id::ContextId;
use crate::model::name::{ContextName, Contributor, NameError};
use crate::store::backend::{self, Place};
use crate::store::share::Limits;
use crate::store::{Store, StoreError};

/// Why a context is not known, or could not be written down.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No file of that name.
    #[error("{name}: no such context on this host (`datamon context list` shows them, `context add URL` adds one)")]
    Unknown {
        /// The name.
        name: ContextName,
    },
    /// A file of that name is there already.
    #[error("{name}: exists: use `context add` or another name ({file})")]
    Exists {
        /// The name.
        name: ContextName,
        /// The file.
        file: String,
    },
    /// The file is not what it should be.
    #[error("{file}: {why}")]
    Malformed {
        /// The file.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// The file could not be read or written.
    #[error("{file}: {why}")]
    Io {
        /// The file.
        file: String,
        /// The system's reason.
        why: String,
    },
    /// Nowhere to keep files.
    #[error(
        "neither {variable} nor HOME is set (set HOME, or DATAMON_CONFIG_DIR, DATAMON_STATE_DIR, DATAMON_CACHE_DIR)"
    )]
    NoHome {
        /// The variable that would have said it.
        variable: &'static str,
    },
}

/// What a process knows from outside: variables, and whose it is.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// Environment variables.
    pub variables: BTreeMap<String, String>,
    /// The effective user.
    pub uid: u32,
}

impl Environment {
    /// A variable that is set and not empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The `AWS_*` variables, and `HOME`, for the store.
    pub fn store_variables(&self) -> Vec<(String, String)> {
        let wanted = self.variables.iter().filter(|(name, _)| name.starts_with("AWS_") || *name == "HOME");
        wanted.map(|(name, value)| (name.clone(), value.clone())).collect()
    }
}

/// Where datamon keeps its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// Directories of context files; the first is written to, all are read.
    pub contexts: Vec<PathBuf>,
    /// Staging: precious.
    pub state: PathBuf,
    /// Disposable.
    pub cache: PathBuf,
}

impl Places {
    /// The places of this user: the system's for root, the XDG ones for others, `DATAMON_*_DIR` before both.
    pub fn find(environment: &Environment) -> Result<Self, ConfigError> {
        let place = |ours: &str, system: &str, xdg: &'static str, below_home: &str| {
            if let Some(dir) = environment.get(ours) {
                return Ok(PathBuf::from(dir));
            }
            if environment.uid == 0 {
                return Ok(PathBuf::from(system));
            }
            let base = environment.get(xdg).map(PathBuf::from).filter(|dir| dir.is_absolute());
            let home = environment.get("HOME").map(|home| Path::new(home).join(below_home));
            Ok(base.or(home).ok_or(ConfigError::NoHome { variable: xdg })?.join("datamon"))
        };
        let config = place("DATAMON_CONFIG_DIR", "/etc/datamon", "XDG_CONFIG_HOME", ".config")?;
        let mut contexts = vec![config.join("contexts.d")];
        if environment.uid != 0 && environment.get("DATAMON_CONFIG_DIR").is_none() {
            contexts.push(PathBuf::from("/etc/datamon/contexts.d"));
        }
        Ok(Self {
            contexts,
            state: place("DATAMON_STATE_DIR", "/var/lib/datamon", "XDG_STATE_HOME", ".local/state")?,
            cache: place("DATAMON_CACHE_DIR", "/var/cache/datamon", "XDG_CACHE_HOME", ".cache")?,
        })
    }

    fn file(&self, name: &ContextName) -> PathBuf {
        self.contexts[0].join(format!("{name}.toml"))
    }

    /// The context `name`.
    pub fn context(&self, name: &ContextName) -> Result<Context, ConfigError> {
        for dir in &self.contexts {
            let file = dir.join(format!("{name}.toml"));
            match fs::read_to_string(&file) {
                Ok(text) => return Context::parse(name.clone(), file, &text),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(unreadable(&file, &error)),
            }
        }
        Err(ConfigError::Unknown { name: name.clone() })
    }

    /// All contexts that this host knows, by name; a user's own hides the system's of the same name.
    pub fn all(&self) -> Result<Vec<Context>, ConfigError> {
        let mut names = std::collections::BTreeSet::new();
        for dir in &self.contexts {
            let entries = match fs::read_dir(dir) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(unreadable(dir, &error)),
            };
            for entry in entries {
                let name = entry.map_err(|error| unreadable(dir, &error))?.file_name();
                let stem = name.to_str().and_then(|name| name.strip_suffix(".toml"));
                names.extend(stem.and_then(|stem| stem.parse::<ContextName>().ok()));
            }
        }
        names.iter().map(|name| self.context(name)).collect()
    }

    /// Writes a context down that is not known yet.
    pub fn save_new(&self, context: &mut Context) -> Result<(), ConfigError> {
        let file = self.file(&context.name);
        context.file = file.clone();
        let draft = write_draft(&file, &context.render())?;
        // A link is refused where a rename would replace what somebody else has just written.
        let linked = fs::hard_link(&draft, &file);
        let _ = fs::remove_file(&draft);
        linked.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => {
                ConfigError::Exists { name: context.name.clone(), file: file.display().to_string() }
            }
            _ => unreadable(&file, &error),
        })
    }

    /// Replaces the file of a known context.
    pub fn save(&self, context: &Context) -> Result<(), ConfigError> {
        let draft = write_draft(&context.file, &context.render())?;
        fs::rename(&draft, &context.file).map_err(|error| unreadable(&context.file, &error))
    }

    /// Forgets the context on this host.
    pub fn forget(&self, context: &Context) -> Result<(), ConfigError> {
        fs::remove_file(&context.file).map_err(|error| unreadable(&context.file, &error))
    }
}

fn unreadable(file: &Path, why: &io::Error) -> ConfigError {
    ConfigError::Io { file: file.display().to_string(), why: why.to_string() }
}

/// Writes `text` durably beside `file`, in a file of its own.
fn write_draft(file: &Path, text: &str) -> Result<PathBuf, ConfigError> {
    let dir = file.parent().expect("a context's file lies in a directory of contexts");
    let draft = file.with_extension(format!("toml.{}", std::process::id()));
    let write = || {
        fs::create_dir_all(dir)?;
        let mut out = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&draft)?;
        out.write_all(text.as_bytes())?;
        out.sync_all()
    };
    write().map_err(|error| unreadable(file, &error))?;
    Ok(draft)
}

/// A context as this host knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// Its name on this host.
    pub name: ContextName,
    /// Its identity.
    pub id: ContextId,
    /// Its name in the store, where that differs.
    pub name_in_store: ContextName,
    /// Where its config role lies, and every other role that has no place of its own.
    pub store: String,
    /// Places of roles.
    pub roles: BTreeMap<String, String>,
    /// How to reach them.
    pub options: BTreeMap<String, String>,
    /// The file that says so.
    pub file: PathBuf,
}

/// Who commits: an option of a context, and of a mount.
pub const CONTRIBUTOR: &str = "contributor";
/// Whether reads are logged in the store: an option of a context, and of a mount.
pub const READ_LOG: &str = "readlog";
/// Options of a context that are not its store's.
pub const OWN_OPTIONS: &[&str] = &[CONTRIBUTOR, READ_LOG];

/// See [`Context::own_options`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OwnOptions {
    /// Who commits, whoever it is.
    pub contributor: Option<Contributor>,
    /// Whether reads are logged.
    pub read_log: Option<bool>,
}

/// The file's text.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ContextFile {
    id: String,
    store: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name_in_store: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    roles: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    options: BTreeMap<String, String>,
}

impl Context {
    /// Whether any of its places is not on this host's own file systems.
    pub fn is_elsewhere(&self) -> bool {
        [&self.store].into_iter().chain(self.roles.values()).any(|url| !url.starts_with("file://"))
    }

    fn parse(name: ContextName, file: PathBuf, text: &str) -> Result<Self, ConfigError> {
        let malformed = |why: String| ConfigError::Malformed { file: file.display().to_string(), why };
        let read: ContextFile = toml::from_str(text).map_err(|why| malformed(why.to_string().replace('\n', " ")))?;
        let id = read.id.parse().map_err(|_| malformed(format!("{}: not a context's id", read.id)))?;
        let name_in_store = match read.name_in_store {
            Some(text) => text.parse().map_err(|why| malformed(format!("{text}: {why}")))?,
            None => name.clone(),
        };
        if let Some(role) = read.roles.keys().find(|role| role_named(role).is_none()) {
            return Err(malformed(format!("{role}: no such role (meta, vmeta, blob, wal, readlog)")));
        }
        Ok(Self { name, id, name_in_store, store: read.store, roles: read.roles, options: read.options, file })
    }

    fn render(&self) -> String {
        let file = ContextFile {
            id: self.id.to_string(),
            store: self.store.clone(),
            name_in_store: (self.name_in_store != self.name).then(|| self.name_in_store.to_string()),
            roles: self.roles.clone(),
            options: self.options.clone(),
        };
        toml::to_string(&file).expect("strings and maps of strings can be written as TOML")
    }

    /// What the context's options say to datamon itself.
    pub fn own_options(&self) -> Result<OwnOptions, StoreError> {
        let refused = |name: &str, value: &str, form: String| StoreError::Unsupported {
            what: format!("{name}={value}: bad value (accepted: {form})"),
        };
        let mut own = OwnOptions::default();
        if let Some(text) = self.options.get(CONTRIBUTOR) {
            let parsed = text.parse().map_err(|why: NameError| refused(CONTRIBUTOR, text, why.to_string()))?;
            own.contributor = Some(parsed);
        }
        own.read_log = match self.options.get(READ_LOG).map(String::as_str) {
            None => None,
            Some("on") => Some(true),
            Some("off") => Some(false),
            Some(text) => return Err(refused(READ_LOG, text, "on or off".to_owned())),
        };
        Ok(own)
    }

    /// Refuses an option that neither datamon nor any place of the context has, by name.
    pub fn check_options(&self) -> Result<(), StoreError> {
        self.own_options()?;
        let urls = self.roles.values().chain([&self.store]).map(String::as_str).collect::<Vec<_>>();
        backend::check_options(&urls, &self.store_options())
    }

    fn store_options(&self) -> BTreeMap<String, String> {
        let of_the_store = self.options.iter().filter(|(name, _)| !OWN_OPTIONS.contains(&name.as_str()));
        of_the_store.map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// The directories that hold it, of a `file://` context.
    pub fn directories(&self) -> impl Iterator<Item = &Path> {
        self.roles.values().chain([&self.store]).filter_map(|url| url.strip_prefix("file://")).map(Path::new)
    }

    /// Every place of the context by role, with the options `over` before the context's own.
    pub fn places(
        &self,
        environment: &Environment,
        over: &BTreeMap<String, String>,
    ) -> Result<HashMap<Role, Place>, StoreError> {
        self.own_options()?;
        let mut options = self.store_options();
        options.extend(over.iter().map(|(name, value)| (name.clone(), value.clone())));
        let urls = self.roles.values().chain([&self.store]).map(String::as_str).collect::<Vec<_>>();
        backend::check_options(&urls, &options)?;
        let variables = environment.store_variables();
        let mut places = HashMap::new();
        places.insert(Role::Config, Place::open(&self.store, &options, &variables)?);
        for (name, url) in &self.roles {
            let role = role_named(name).expect("checked when the context was read or made");
            places.insert(role, Place::open(url, &options, &variables)?);
        }
        Ok(places)
    }

    /// The opened context. `over`: options of this one mount.
    pub fn open(
        &self,
        environment: &Environment,
        over: &BTreeMap<String, String>,
        limits: impl Into<Limits>,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Arc<Store>, StoreError> {
        Ok(Store::new(self.id, self.places(environment, over)?, limits, clock, entropy))
    }
}

/// The role that an option of `context create` names.
pub fn role_named(name: &str) -> Option<Role> {
    Role::ALL.into_iter().filter(|role| *role != Role::Config).find(|role| role.name() == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(uid: u32, variables: &[(&str, &str)]) -> Environment {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Environment { variables, uid }
    }

    fn sample(places: &Places) -> Context {
        let name: ContextName = "prod".parse().unwrap();
        Context {
            name: name.clone(),
            id: ContextId::from_parts(1, 2),
            name_in_store: name.clone(),
            store: "s3://bucket/prefix".into(),
            roles: [("blob".to_owned(), "file:///srv/blob".to_owned())].into(),
            options: [("endpoint".to_owned(), "http://localhost:1".to_owned())].into(),
            file: places.file(&name),
        }
    }

    #[test]
    fn root_has_the_systems_places_and_users_have_their_own_and_read_the_systems() {
        let root = Places::find(&environment(0, &[])).unwrap();
        assert_eq!(root.contexts, [PathBuf::from("/etc/datamon/contexts.d")]);
        assert_eq!(root.state, PathBuf::from("/var/lib/datamon"));
        let user = Places::find(&environment(7, &[("HOME", "/h"), ("XDG_STATE_HOME", "/s")])).unwrap();
        assert_eq!(user.contexts[0], PathBuf::from("/h/.config/datamon/contexts.d"));
        assert_eq!(user.contexts[1], PathBuf::from("/etc/datamon/contexts.d"));
        assert_eq!(user.state, PathBuf::from("/s/datamon"));
        assert_eq!(user.cache, PathBuf::from("/h/.cache/datamon"));
        assert!(matches!(Places::find(&environment(7, &[])), Err(ConfigError::NoHome { .. })));
    }

    #[test]
    fn our_own_variables_come_before_everything() {
        let ours = [("DATAMON_CONFIG_DIR", "/c"), ("DATAMON_STATE_DIR", "/s"), ("DATAMON_CACHE_DIR", "/k")];
        let places = Places::find(&environment(7, &ours)).unwrap();
        assert_eq!(places.contexts, [PathBuf::from("/c/contexts.d")]);
        assert_eq!((places.state, places.cache), (PathBuf::from("/s"), PathBuf::from("/k")));
    }

    #[test]
    fn a_context_is_written_down_once_read_changed_and_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places { contexts: vec![dir.path().join("c")], state: PathBuf::new(), cache: PathBuf::new() };
        let mut context = sample(&places);
        assert!(places.all().unwrap().is_empty());
        places.save_new(&mut context).unwrap();
        assert!(matches!(places.save_new(&mut context.clone()), Err(ConfigError::Exists { .. })));
        assert_eq!(places.context(&context.name).unwrap(), context);
        context.options.clear();
        places.save(&context).unwrap();
        assert_eq!(places.all().unwrap(), [context.clone()]);
        assert_eq!(fs::read_dir(&places.contexts[0]).unwrap().count(), 1, "no draft stays behind");
        places.forget(&context).unwrap();
        assert!(matches!(places.context(&context.name), Err(ConfigError::Unknown { .. })));
    }

    #[test]
    fn a_file_with_an_unknown_field_or_role_is_refused_by_name() {
        let parse =
            |text: &str| Context::parse("p".parse().unwrap(), PathBuf::from("/f"), text).unwrap_err().to_string();
        let id = ContextId::from_parts(1, 2);
        assert!(parse(&format!("id = \"{id}\"\nstore = \"s\"\ncolour = 1\n")).contains("colour"));
        assert!(parse(&format!("id = \"{id}\"\nstore = \"s\"\n[roles]\nblue = \"x\"\n")).contains("blue"));
        assert!(parse("id = \"x\"\nstore = \"s\"\n").contains("x: not a context's id"));
    }
}
