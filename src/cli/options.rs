//! Mount options: what `-o` may say, and what it means.
//!
//! Pure: text in, [`MountOptions`] out. An option that nobody knows is refused by its name, a bad value with the form
//! that is accepted; mount(8)'s own options that need nothing from us are let through.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::model::name::LabelName;

/// What a clean staging tree starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BaseOption {
    /// The newest bundle, and it follows it.
    Latest,
    /// Nothing.
    Empty,
    /// A label or a bundle.
    Named(String),
}

/// Everything that `-o` said, with the defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountOptions {
    /// Nothing can be changed.
    pub read_only: bool,
    /// Other users may look in.
    pub allow_other: bool,
    /// The kernel checks modes.
    pub default_permissions: bool,
    /// Set-user-id programs, device nodes, programs at all: as mount(8) says.
    pub suid: bool,
    /// Device nodes can be opened.
    pub dev: bool,
    /// Programs can be run.
    pub exec: bool,
    /// See [`BaseOption`].
    pub base: BaseOption,
    /// The staging tree's name.
    pub stage: String,
    /// `sync PATH` commits.
    pub commit_at_sync: bool,
    /// umount commits.
    pub commit_at_umount: bool,
    /// Message of commits by sync and umount.
    pub message: String,
    /// Labels of commits by sync and umount.
    pub labels: Vec<LabelName>,
    /// Refuse to commit when `latest` moved.
    pub fail_if_diverged: bool,
    /// The state directory.
    pub state: Option<PathBuf>,
    /// The cache directory.
    pub cache: Option<PathBuf>,
    /// The log file.
    pub log: Option<PathBuf>,
    /// Bytes in flight and cached in memory.
    pub memory: u64,
    /// How old the newest version may be.
    pub refresh: Duration,
    /// How long a remote wait may take.
    pub timeout: Duration,
    /// Options of the store, for this mount alone.
    pub store: BTreeMap<String, String>,
}

/// Keys of `context create --option` that a mount may say too.
const STORE_OPTIONS: &[&str] = &[
    "endpoint",
    "region",
    "allow_http",
    "virtual_hosted_style_request",
    "profile",
    "credentials",
    "ca_file",
    "sse",
    "sse_kms_key_id",
    "request_payer",
    "allow_network_fs",
];
/// mount(8)'s words that mean nothing here.
const IGNORED: &[&str] = &[
    "_netdev",
    "nofail",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "nousers",
    "owner",
    "noowner",
    "group",
    "nogroup",
    "defaults",
    "atime",
    "noatime",
    "relatime",
    "norelatime",
    "diratime",
    "nodiratime",
    "strictatime",
    "dirsync",
    "sync",
    "async",
    "rw",
];

impl MountOptions {
    /// The defaults of a mount by root, or by another user.
    pub fn defaults(root: bool) -> Self {
        Self {
            read_only: false,
            allow_other: root,
            default_permissions: root,
            suid: false,
            dev: false,
            exec: true,
            base: BaseOption::Latest,
            stage: "default".to_owned(),
            commit_at_sync: true,
            commit_at_umount: true,
            message: String::new(),
            labels: Vec::new(),
            fail_if_diverged: false,
            state: None,
            cache: None,
            log: None,
            memory: 256 << 20,
            refresh: Duration::from_secs(1),
            timeout: Duration::from_secs(300),
            store: BTreeMap::new(),
        }
    }

    /// Reads the values of all `-o`, in order; a later word wins.
    pub fn parse(lists: &[String], root: bool) -> Result<Self, String> {
        let mut options = Self::defaults(root);
        for word in lists.iter().flat_map(|list| list.split(',')).filter(|word| !word.is_empty()) {
            match word.split_once('=') {
                Some((name, value)) => options.set(name, value)?,
                None => options.switch(word)?,
            }
        }
        Ok(options)
    }

    fn switch(&mut self, word: &str) -> Result<(), String> {
        match word {
            "ro" => self.read_only = true,
            "rw" => self.read_only = false,
            "suid" => self.suid = true,
            "nosuid" => self.suid = false,
            "dev" => self.dev = true,
            "nodev" => self.dev = false,
            "exec" => self.exec = true,
            "noexec" => self.exec = false,
            "allow_other" | "allow_root" => self.allow_other = true,
            "default_permissions" => self.default_permissions = true,
            "remount" => return Err("remount: not in this version (umount and mount again)".to_owned()),
            "acl" => return Err("acl: not in this version".to_owned()),
            word if IGNORED.contains(&word) || word.starts_with("x-") => {}
            word => return Err(format!("{word}: unknown mount option")),
        }
        Ok(())
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let bad = |form: &str| format!("{name}={value}: bad value (accepted: {form})");
        let one_of = |yes: &str, no: &str| match value {
            value if value == yes => Ok(true),
            value if value == no => Ok(false),
            _ => Err(bad(&format!("{yes} or {no}"))),
        };
        let path = || {
            let path = PathBuf::from(value);
            if path.is_absolute() { Ok(Some(path)) } else { Err(bad("an absolute path")) }
        };
        match name {
            "base" => {
                self.base = match value {
                    "latest" => BaseOption::Latest,
                    "none" => BaseOption::Empty,
                    "" => return Err(bad("a label, a bundle or none")),
                    other => BaseOption::Named(other.to_owned()),
                };
            }
            "stage" => {
                // A stage is a directory of the state: a label's rules make it a safe name.
                let form = "a name like a label's";
                self.stage = value.parse::<LabelName>().map_err(|_| bad(form))?.to_string();
            }
            "commit" => self.commit_at_umount = one_of("umount", "manual")?,
            "sync" => self.commit_at_sync = one_of("commit", "local")?,
            "message" => self.message = value.to_owned(),
            "label" => self.labels.push(value.parse().map_err(|_| bad("a label"))?),
            "diverged" => self.fail_if_diverged = one_of("fail", "allow")?,
            "state" => self.state = path()?,
            "cache" => self.cache = path()?,
            "log" => self.log = path()?,
            "memory" => self.memory = size(value).filter(|size| *size >= 32 << 20).ok_or_else(|| bad("32M or more"))?,
            "refresh" => self.refresh = duration(value).ok_or_else(|| bad("a time like 1s or 5m"))?,
            "timeout" => self.timeout = duration(value).ok_or_else(|| bad("a time like 30s or 5m"))?,
            "comment" => {}
            name if name.starts_with("x-") => {}
            name if STORE_OPTIONS.contains(&name) => {
                self.store.insert(name.to_owned(), value.to_owned());
            }
            "cache_size" | "cache_free" | "bwlimit" | "verify" | "prefetch" | "readahead" | "umask" | "metrics"
            | "upload" | "download" | "uid" | "gid" => {
                return Err(format!("{name}: not in this version"));
            }
            name => return Err(format!("{name}: unknown mount option")),
        }
        Ok(())
    }
}

/// `512M`, `10G`, `4096`: binary multiples.
fn size(text: &str) -> Option<u64> {
    let shift = match text.chars().last()? {
        'K' => 10,
        'M' => 20,
        'G' => 30,
        'T' => 40,
        _ => 0,
    };
    let digits = if shift == 0 { text } else { &text[..text.len() - 1] };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// `250ms`, `30s`, `5m`, `1h`; a bare number means seconds.
fn duration(text: &str) -> Option<Duration> {
    let units = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("", 1000)];
    units.into_iter().find_map(|(unit, millis)| {
        let number = text.strip_suffix(unit)?.parse::<u64>().ok()?;
        Some(Duration::from_millis(number.checked_mul(millis)?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<MountOptions, String> {
        MountOptions::parse(&[text.to_owned()], true)
    }

    #[test]
    fn an_unknown_option_is_refused_by_name() {
        assert_eq!(parse("ro,colour=red").unwrap_err(), "colour: unknown mount option");
        assert_eq!(parse("shiny").unwrap_err(), "shiny: unknown mount option");
    }

    #[test]
    fn a_bad_value_is_refused_with_the_accepted_form() {
        assert_eq!(parse("commit=never").unwrap_err(), "commit=never: bad value (accepted: umount or manual)");
        assert!(!parse("commit=manual").unwrap().commit_at_umount);
        assert_eq!(parse("memory=1M").unwrap_err(), "memory=1M: bad value (accepted: 32M or more)");
        assert!(parse("state=here").unwrap_err().contains("an absolute path"));
        assert!(parse("stage=../x").is_err());
    }

    #[test]
    fn what_mount_8_adds_is_let_through() {
        let options = parse("rw,_netdev,nofail,user,x-systemd.automount,comment=mine").unwrap();
        assert_eq!(options, MountOptions::defaults(true));
    }

    #[test]
    fn sizes_and_times_have_units_and_the_last_word_wins() {
        let options =
            parse("memory=1G,refresh=250ms,timeout=5m,ro,rw,label=a,label=b,base=none,endpoint=http://h").unwrap();
        assert_eq!(options.memory, 1 << 30);
        assert_eq!((options.refresh, options.timeout), (Duration::from_millis(250), Duration::from_secs(300)));
        assert!(!options.read_only);
        assert_eq!(options.labels.len(), 2);
        assert_eq!(options.base, BaseOption::Empty);
        assert_eq!(options.store["endpoint"], "http://h");
    }

    #[test]
    fn a_users_mount_is_closed_to_others() {
        assert!(!MountOptions::defaults(false).allow_other);
        assert!(MountOptions::defaults(true).default_permissions);
    }
}
