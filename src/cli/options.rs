//! Mount options: what `-o` may say, and what it means.
//!
//! Pure: text in, [`MountOptions`] out. An option that nobody knows is refused by its name, a bad value with the form
//! that is accepted; mount(8)'s own options that need nothing from us are let through.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::fuse::session::Access;
use crate::model::name::{Contributor, LabelName};
use crate::store::share::REQUESTS;
use crate::vfs::namespace::{BaseChoice, Synced};

/// Everything that `-o` said, with the defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountOptions {
    /// Nothing can be changed.
    pub read_only: bool,
    /// Who may look in.
    pub access: Access,
    /// The kernel checks modes.
    pub default_permissions: bool,
    /// Set-user-id programs, device nodes, programs at all: as mount(8) says.
    pub suid: bool,
    /// Device nodes can be opened.
    pub dev: bool,
    /// Programs can be run.
    pub exec: bool,
    /// See [`BaseChoice`].
    pub base: BaseChoice,
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
    /// Who commits.
    pub contributor: Option<Contributor>,
    /// Refuse to commit when `latest` moved.
    pub fail_if_diverged: bool,
    /// The state directory.
    pub state: Option<PathBuf>,
    /// Whether it was said that the mount needs the network.
    pub network: bool,
    /// The log file.
    pub log: Option<PathBuf>,
    /// Bytes in flight and cached in memory.
    pub memory: u64,
    /// Requests at once: writes, and reads.
    pub requests: (usize, usize),
    /// Bytes a second in each direction; 0: no limit.
    pub bytes_per_second: u64,
    /// What is read is compared with its hash.
    pub verify: bool,
    /// Whom files are shown as.
    pub uid: Option<u32>,
    /// The group that files are shown as.
    pub gid: Option<u32>,
    /// Permission bits that are not shown.
    pub umask: u16,
    /// POSIX ACLs.
    pub acl: bool,
    /// What is on the disk before its program is told.
    pub synced: Synced,
    /// Reads are logged in the store; `None`: as the context says.
    pub read_log: Option<bool>,
    /// Where numbers are served.
    pub metrics: Option<SocketAddr>,
    /// A mount that is there is to change.
    pub remount: bool,
    /// How old the newest version may be.
    pub refresh: Duration,
    /// How long a remote wait may take.
    pub timeout: Duration,
    /// Options of the store, for this mount alone.
    pub store: BTreeMap<String, String>,
}

/// One option as help and the manual tell it.
#[derive(Debug)]
pub struct OptionText {
    /// The option with the form of its value.
    pub form: &'static str,
    /// What holds without it; empty: nothing, or what `says` says.
    pub default: &'static str,
    /// What it does.
    pub says: &'static str,
    /// One that is accepted.
    pub example: &'static str,
}

macro_rules! texts {
    ($($form:literal, $default:literal, $example:literal, $says:literal;)*) => {
        &[$(OptionText { form: $form, default: $default, says: $says, example: $example }),*]
    };
}

/// Our own options: the one home of their texts.
pub const OPTIONS: &[OptionText] = texts! {
    "base=LABEL|BUNDLE|none", "latest", "base=none",
        "what a clean staging tree starts from; latest is followed";
    "stage=NAME", "default", "stage=second",
        "a further staging tree of the repo on this host";
    "commit=umount|manual", "umount", "commit=manual",
        "what umount does with changes: commits them, or leaves them staged and says so";
    "sync=commit|local", "commit", "sync=local",
        "what `sync PATH` of a staging tree does: commits it, or makes it safe on the local disk only";
    "message=TEXT", "", "message=nightly",
        "message of commits made by sync and umount; quote one with a comma: message=\"a,b\"";
    "label=NAME", "", "label=nightly",
        "a label that every commit of this mount sets; repeatable";
    "contributor=NAME", "", "contributor=Ada",
        "who commits, in the history; before the context's, see IDENTITY in mount.datamon(8) (the user and the host)";
    "diverged=allow|fail", "allow", "diverged=fail",
        "whether a commit goes on when latest is no longer the tree's base: both bundles are kept";
    "state=DIR", "", "state=/var/lib/datamon",
        "where staged changes lie: precious (root: /var/lib/datamon, others: ~/.local/state/datamon)";
    "log=FILE", "", "log=/var/log/datamon.log",
        "a file for the log; 10 MiB and one older are kept (journal or syslog; without: log/ in the state directory)";
    "memory=SIZE", "256M", "memory=1G",
        "budget of what is cached in memory and on its way; 32M or more";
    "upload=N", "16", "upload=4",
        "requests at once that write to the store; as many packs of 16 MiB as memory= holds: 5 of 256M, 16 of 768M";
    "download=N", "16", "download=64",
        "requests at once that read from the store";
    "bwlimit=SIZE", "", "bwlimit=10M",
        "bytes a second in each direction, on the average; a single request goes as fast as the link";
    "refresh=TIME", "1s", "refresh=250ms",
        "how stale the newest version, labels and repos may be shown";
    "timeout=TIME", "5m", "timeout=30s",
        "how long a request to the store may take, with its repetitions, before it fails";
    "verify=on|off", "on", "verify=on",
        "whether what is read is compared with its hash; off is for measuring its price, and needs ro";
    "uid=USER", "", "uid=1000",
        "show every file as this user's, by number; what is stored stays (a user's mount: that user)";
    "gid=GROUP", "", "gid=1000",
        "show every file as this group's, by number; what is stored stays (a user's mount: that group)";
    "umask=BITS", "", "umask=022",
        "permission bits that no file is shown with, in octal; what is stored stays";
    "acl", "off", "acl",
        "POSIX ACLs: they are shown, changed (setfacl), inherited, and decide; without it what is stored stays";
    "readlog=on|off", "on", "readlog=off",
        "whether the store is told who read which files of which bundle; before the context's (context edit --option)";
    "metrics=ADDR:PORT", "", "metrics=127.0.0.1:9100",
        "serve Prometheus' text at http://ADDR:PORT/metrics, the same as .datamon/stats";
};

/// Keys of `context create --option` that a mount may say too.
pub const STORE_OPTIONS: &[OptionText] = texts! {
    "endpoint=URL", "", "endpoint=http://127.0.0.1:9000", "another server than the cloud's own";
    "region=NAME", "", "region=eu-west-1", "the bucket's region";
    "allow_http=true|false", "false", "allow_http=true", "whether the endpoint may be http://";
    "virtual_hosted_style_request=true|false", "false", "virtual_hosted_style_request=true",
        "whether the bucket is part of the host's name";
    "profile=NAME", "", "profile=lab", "a profile of ~/.aws/credentials";
    "credentials=FILE", "", "credentials=/root/credentials", "another credentials file";
    "ca_file=FILE", "", "ca_file=/etc/ssl/our.pem", "certificates to trust besides the system's";
    "sse=KIND", "", "sse=aws:kms", "encryption by the server";
    "sse_kms_key_id=ID", "", "sse_kms_key_id=1234", "the key of that encryption";
    "request_payer=true|false", "false", "request_payer=true", "whether the requester pays";
    "allow_network_fs=true|false", "false", "allow_network_fs=true",
        "whether a file:// store may lie on a network file system";
};

/// The kernel's and mount(8)'s.
pub const KERNEL_OPTIONS: &[OptionText] = texts! {
    "ro, rw", "rw", "ro", "nothing can be changed; what can (labels and bundles are always ro)";
    "remount", "", "remount",
        "change ro, rw, [no]suid, [no]dev or [no]exec of a mount that is there (root); nothing else changes without umount";
    "suid, nosuid", "nosuid", "nosuid", "whether set-user-id programs run as their owner";
    "dev, nodev", "nodev", "nodev", "whether device nodes are devices";
    "exec, noexec", "exec", "noexec", "whether programs run";
    "allow_other", "root: on", "allow_other",
        "other users may look in (a user's mount: if /etc/fuse.conf has user_allow_other)";
    "allow_root", "", "allow_root",
        "root alone may look in besides who mounts it (a user's mount: as allow_other)";
    "default_permissions", "on", "default_permissions", "the kernel checks modes and owners";
    "sync, async", "async", "async", "sync: every change is safe from a power cut when the program is told (slow)";
    "dirsync", "", "dirsync", "the same of changes of names only";
};

/// What a later version will know, refused by name until then.
const LATER: &[&str] = &["cache", "cache_size", "cache_free", "prefetch", "readahead"];
/// mount(8)'s words that mean nothing here.
const IGNORED: &[&str] = &[
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
    "rw",
];

/// Ours and the kernel's that stand alone.
const KERNEL_WORDS: &[&str] = &[
    "_netdev",
    "ro",
    "remount",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "exec",
    "noexec",
    "allow_other",
    "allow_root",
    "default_permissions",
    "sync",
    "async",
    "dirsync",
    "acl",
];
/// What /proc/self/mountinfo shows of a FUSE mount.
const OF_THE_KERNEL: &[&str] = &["user_id", "group_id", "max_read", "blksize", "fd", "rootmode", "helper"];
/// Most requests at once.
const REQUESTS_MAX: u32 = 1024;
const REQUESTS_FORM: &str = "a number from 1 to 1024";
/// The least that can be asked of a link: with less a pack would take hours.
const BYTES_PER_SECOND_MIN: u64 = 64 << 10;

impl MountOptions {
    /// The defaults of a mount by root, or by another user.
    pub fn defaults(root: bool) -> Self {
        Self {
            read_only: false,
            access: if root { Access::All } else { Access::Owner },
            default_permissions: root,
            suid: false,
            dev: false,
            exec: true,
            base: BaseChoice::Latest,
            stage: "default".to_owned(),
            commit_at_sync: true,
            commit_at_umount: true,
            message: String::new(),
            labels: Vec::new(),
            contributor: None,
            fail_if_diverged: false,
            state: None,
            network: false,
            log: None,
            memory: 256 << 20,
            requests: (REQUESTS, REQUESTS),
            bytes_per_second: 0,
            verify: true,
            uid: None,
            gid: None,
            umask: 0,
            acl: false,
            synced: Synced::Nothing,
            read_log: None,
            metrics: None,
            remount: false,
            refresh: Duration::from_secs(1),
            timeout: Duration::from_secs(300),
            store: BTreeMap::new(),
        }
    }

    /// Reads the values of all `-o`, in order; a later word wins.
    pub fn parse(lists: &[String], root: bool) -> Result<Self, String> {
        Self::defaults(root).with(lists)
    }

    /// The same over what holds already.
    pub fn with(mut self, lists: &[String]) -> Result<Self, String> {
        let all = || lists.iter().flat_map(|list| words(list)).filter(|word| !word.is_empty());
        self.remount |= all().any(|word| word == "remount");
        for word in all() {
            self.say(word)?;
        }
        if !self.verify && !self.read_only {
            return Err("verify=off: only with ro: what was not verified must not be committed (add ro)".to_owned());
        }
        Ok(self)
    }

    /// Refuses the first word of these `-o` that a mount with these options does not have: a remount changes flags alone.
    pub fn keeps(&self, lists: &[String]) -> Result<(), String> {
        let before = self.without_flags();
        for word in lists.iter().flat_map(|list| words(list)).filter(|word| !word.is_empty()) {
            let mut after = before.clone();
            after.say(word)?;
            let after = after.without_flags();
            // One label more is one that was said already.
            let is_same_label = after.labels.last().is_some_and(|last| before.labels.contains(last));
            let after = if is_same_label { Self { labels: before.labels.clone(), ..after } } else { after };
            if after != before {
                let remedy = "umount it and mount it again";
                return Err(format!("{word}: a mount has this from its beginning or not at all ({remedy})"));
            }
        }
        Ok(())
    }

    /// The same with flags that say nothing: those that a remount changes.
    fn without_flags(&self) -> Self {
        let (read_only, suid, dev, exec, network) = (true, false, false, true, false);
        Self { read_only, suid, dev, exec, network, remount: true, ..self.clone() }
    }

    fn say(&mut self, word: &str) -> Result<(), String> {
        match word.split_once('=') {
            Some((name, value)) => self.set(name, unquoted(value)),
            None => self.switch(word),
        }
    }

    fn switch(&mut self, word: &str) -> Result<(), String> {
        match word {
            "ro" => self.read_only = true,
            "rw" => self.read_only = false,
            "_netdev" => self.network = true,
            "suid" => self.suid = true,
            "nosuid" => self.suid = false,
            "dev" => self.dev = true,
            "nodev" => self.dev = false,
            "exec" => self.exec = true,
            "noexec" => self.exec = false,
            "allow_other" => self.access = Access::All,
            "allow_root" => self.access = Access::OwnerAndRoot,
            "acl" => self.acl = true,
            "default_permissions" => self.default_permissions = true,
            "sync" => self.synced = Synced::All,
            "async" => self.synced = Synced::Nothing,
            "dirsync" => self.synced = self.synced.max(Synced::Names),
            "remount" => {}
            word if LATER.contains(&word) => return Err(later(word)),
            word if is_ours(word) => return Err(format!("{word}: needs a value ({})", form_of(word))),
            word if IGNORED.contains(&word) || word.starts_with("x-") => {}
            word => return Err(unknown(word)),
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
        let number = || value.parse::<u32>().ok();
        // The largest means "no change" to chown(2): nobody has it.
        let owner = || number().filter(|number| *number != u32::MAX);
        let in_requests = |count: &u32| (1..=REQUESTS_MAX).contains(count);
        match name {
            "base" => {
                if value.is_empty() {
                    return Err(bad("a label, a bundle or none"));
                }
                self.base = BaseChoice::named(value);
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
            "contributor" => {
                let form = "a line of text, at most 256 bytes";
                self.contributor = Some(value.parse().map_err(|_| bad(form))?);
            }
            "diverged" => self.fail_if_diverged = one_of("fail", "allow")?,
            "state" => self.state = path()?,
            "log" => self.log = path()?,
            "memory" => self.memory = size(value).filter(|size| *size >= 32 << 20).ok_or_else(|| bad("32M or more"))?,
            "upload" => self.requests.0 = number().filter(in_requests).ok_or_else(|| bad(REQUESTS_FORM))? as usize,
            "download" => self.requests.1 = number().filter(in_requests).ok_or_else(|| bad(REQUESTS_FORM))? as usize,
            "bwlimit" => {
                let bytes = size(value).filter(|bytes| *bytes >= BYTES_PER_SECOND_MIN);
                self.bytes_per_second = bytes.ok_or_else(|| bad("bytes a second, 64K or more: 10M"))?;
            }
            "verify" => self.verify = one_of("on", "off")?,
            "uid" => self.uid = Some(owner().ok_or_else(|| bad("a user's number"))?),
            "gid" => self.gid = Some(owner().ok_or_else(|| bad("a group's number"))?),
            "umask" => {
                let bits = u16::from_str_radix(value, 8).ok().filter(|bits| *bits <= 0o777);
                self.umask = bits.ok_or_else(|| bad("octal bits up to 777: 022"))?;
            }
            "readlog" => self.read_log = Some(one_of("on", "off")?),
            "metrics" => {
                let address = value.parse().map_err(|_| bad("an address and a port: 127.0.0.1:9100"))?;
                self.metrics = Some(address);
            }
            "refresh" => self.refresh = duration(value).ok_or_else(|| bad("a time like 1s or 5m"))?,
            "timeout" => {
                let time = duration(value).filter(|time| !time.is_zero());
                self.timeout = time.ok_or_else(|| bad("a time like 30s or 5m"))?;
            }
            // Who may unmount it, says mount(8).
            "comment" | "user" => {}
            name if name.starts_with("x-") => {}
            name if STORE_OPTIONS.iter().any(|option| option.name() == name) => {
                self.store.insert(name.to_owned(), value.to_owned());
            }
            name if LATER.contains(&name) => return Err(later(name)),
            // What the kernel shows of a mount, mount(8) says again when it is to be remounted.
            name if self.remount && OF_THE_KERNEL.contains(&name) => {}
            name if KERNEL_WORDS.contains(&name) || IGNORED.contains(&name) => {
                return Err(format!("{name}={value}: takes no value (write {name})"));
            }
            name => return Err(unknown(name)),
        }
        Ok(())
    }
}

impl OptionText {
    /// The option's name.
    pub fn name(&self) -> &'static str {
        self.form.split('=').next().unwrap_or(self.form)
    }
}

/// The help's part about options: each with its default, from the same table as the manual.
pub fn help() -> String {
    let section = |title: &str, options: &[OptionText]| {
        let line = |option: &OptionText| {
            let default = if option.default.is_empty() { String::new() } else { format!(" [{}]", option.default) };
            format!("  {:<22} {}{default}\n", option.form, option.says)
        };
        format!("{title}\n{}", options.iter().map(line).collect::<String>())
    };
    section("Options for -o, with their defaults:", OPTIONS)
        + &section("\nThe kernel's:", KERNEL_OPTIONS)
        + &section("\nOf the store, for this mount alone:", STORE_OPTIONS)
}

/// The words of a list: commas part them, but not between double quotes.
fn words(list: &str) -> impl Iterator<Item = &str> {
    let mut is_quoted = false;
    list.split(move |c: char| {
        is_quoted ^= c == '"';
        c == ',' && !is_quoted
    })
}

fn unquoted(value: &str) -> &str {
    value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(value)
}

fn is_ours(word: &str) -> bool {
    OPTIONS.iter().chain(STORE_OPTIONS).any(|option| option.name() == word)
}

fn form_of(word: &str) -> &'static str {
    OPTIONS.iter().chain(STORE_OPTIONS).find(|option| option.name() == word).map_or("", |option| option.form)
}

fn later(name: &str) -> String {
    format!("{name}: not in this version (leave it out)")
}

fn unknown(name: &str) -> String {
    format!("{name}: unknown mount option (datamon mount --help lists them)")
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
        let unknown = "unknown mount option (datamon mount --help lists them)";
        assert_eq!(parse("ro,colour=red").unwrap_err(), format!("colour: {unknown}"));
        assert_eq!(parse("shiny").unwrap_err(), format!("shiny: {unknown}"));
        for name in LATER {
            let refused = format!("{name}: not in this version (leave it out)");
            assert_eq!(parse(name).unwrap_err(), refused);
            assert_eq!(parse(&format!("{name}=1")).unwrap_err(), refused);
        }
    }

    #[test]
    fn every_option_of_the_tables_is_accepted_and_told() {
        let help = help();
        for option in OPTIONS.iter().chain(STORE_OPTIONS).chain(KERNEL_OPTIONS) {
            parse(option.example).unwrap_or_else(|why| panic!("{}: {why}", option.example));
            let name = option.example.split('=').next().unwrap();
            assert!(option.name().split(", ").any(|known| known == name), "{}", option.form);
            assert!(help.contains(option.form) && help.contains(option.says), "{}", option.form);
            // `sync` alone is mount(8)'s word.
            if option.form.contains('=') && !KERNEL_WORDS.contains(&option.name()) {
                let bare = parse(option.name()).unwrap_err();
                assert!(bare.contains(option.form), "{bare}");
            }
        }
    }

    #[test]
    fn a_comma_between_quotes_parts_nothing() {
        let options = parse("message=\"a, b\",ro,label=x").unwrap();
        assert_eq!((&options.message[..], options.read_only, options.labels.len()), ("a, b", true, 1));
    }

    #[test]
    fn what_the_kernel_shows_is_understood_when_it_is_to_change() {
        let shown = "rw,nosuid,nodev,relatime,user_id=0,group_id=0,default_permissions,allow_other";
        assert!(parse(shown).unwrap_err().starts_with("user_id: unknown"));
        let options = parse(&format!("{shown},remount,ro")).unwrap();
        assert!(options.remount && options.read_only);
        assert!(parse("ro=1").unwrap_err().contains("takes no value"));
    }

    #[test]
    fn verifying_is_left_out_where_nothing_can_be_committed() {
        assert!(parse("verify=off").unwrap_err().contains("only with ro"));
        assert!(!parse("ro,verify=off").unwrap().verify);
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
        assert_eq!(options, MountOptions { network: true, ..MountOptions::defaults(true) });
    }

    #[test]
    fn sizes_and_times_have_units_and_the_last_word_wins() {
        let options =
            parse("memory=1G,refresh=250ms,timeout=5m,ro,rw,label=a,label=b,base=none,endpoint=http://h").unwrap();
        assert_eq!(options.memory, 1 << 30);
        assert_eq!((options.refresh, options.timeout), (Duration::from_millis(250), Duration::from_secs(300)));
        assert!(!options.read_only);
        assert_eq!(options.labels.len(), 2);
        assert_eq!(options.base, BaseChoice::Nothing);
        assert_eq!(options.store["endpoint"], "http://h");
    }

    #[test]
    fn a_users_mount_is_closed_to_others() {
        assert_eq!(MountOptions::defaults(false).access, Access::Owner);
        assert_eq!(parse("allow_root").unwrap().access, Access::OwnerAndRoot);
        assert_eq!(parse("allow_root,allow_other").unwrap().access, Access::All);
        assert!(MountOptions::defaults(true).default_permissions);
    }
}
