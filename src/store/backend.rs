//! One bucket, prefix or directory behind object_store, whose types end here.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::aws::{AmazonS3, AmazonS3ConfigKey};
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{Error, GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions};

use crate::model::clock::Timestamp;
use crate::model::limits::OBJECT_BYTES_MAX;

use directory::Directory;

use super::StoreError;
use super::fault::{FaultStore, Faults};
use super::wire::{self, Wire};
mod directory;
mod s3;

/// Why one request failed, by what the caller can do about it.
#[derive(Debug, Clone)]
pub enum Failure {
    /// There is no such object.
    NotFound,
    /// There is such an object already.
    Exists,
    /// The object has more bytes than anything that is read whole: so many.
    TooLarge(u64),
    /// The object ends before the first byte that was asked for.
    Short,
    /// Asking again will not help.
    Denied(String),
    /// There is no room for it.
    Full(String),
    /// Asking again may help.
    Transient(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => f.write_str("not found"),
            Self::Exists => f.write_str("exists"),
            Self::TooLarge(bytes) => write!(f, "has {bytes} bytes"),
            Self::Short => f.write_str("ends before the bytes that were asked for"),
            Self::Denied(why) | Self::Full(why) | Self::Transient(why) => f.write_str(why),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::NotFound { .. } => Self::NotFound,
            Error::AlreadyExists { .. } | Error::Precondition { .. } => Self::Exists,
            error if is_of_disk(&error, &[ErrorKind::StorageFull, ErrorKind::QuotaExceeded]) => {
                Self::Full(said(&chain(&error)))
            }
            error if is_past_the_end(&error) => Self::Short,
            error if lasting(&error) => Self::Denied(said(&chain(&error))),
            error => Self::Transient(said(&chain(&error))),
        }
    }
}

/// Whether the part that was asked for begins behind the object's end: status 416 of HTTP, or a store in memory's word for it.
fn is_past_the_end(error: &Error) -> bool {
    let text = chain(error);
    matches!(error, Error::Generic { .. })
        && ["status code: 416", "but object was only"].iter().any(|said| text.contains(said))
}

/// Whether asking again would bring the same answer.
fn lasting(error: &Error) -> bool {
    if matches!(error, Error::Generic { .. }) {
        let text = chain(error);
        // object_store keeps the status of a failed request in its text alone. 408 and 429 pass.
        let status = text.split("status code: ").nth(1).unwrap_or_default();
        let client = status.starts_with('4') && !status.starts_with("408") && !status.starts_with("429");
        let moved = status.starts_with('3');
        return client || moved || no_credentials(&text) || is_forbidden(error);
    }
    // A scheme of errors that is not the network's: rights, names, what the store cannot do.
    !matches!(error, Error::JoinError { .. })
}

/// Whether a directory may not be written to, or not be read. A network that forbids something may allow it in a moment.
fn is_forbidden(error: &Error) -> bool {
    is_of_disk(error, &[ErrorKind::PermissionDenied, ErrorKind::ReadOnlyFilesystem])
}

/// Whether a directory store failed for one of these reasons.
fn is_of_disk(error: &Error, kinds: &[ErrorKind]) -> bool {
    if !matches!(error, Error::Generic { store: "LocalFileSystem", .. }) {
        return false;
    }
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let kind = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        if kind.is_some_and(|kind| kinds.contains(&kind)) {
            return true;
        }
        source = cause.source();
    }
    false
}

/// Whether what failed is the search for credentials, not a request to the store.
fn no_credentials(chain: &str) -> bool {
    chain.contains(wire::NO_CREDENTIALS) || wire::METADATA_PATHS.iter().any(|path| chain.contains(path))
}

/// A message for people out of an error's chain.
fn said(chain: &str) -> String {
    if no_credentials(chain) {
        return format!(
            "{} in the environment, in a profile or on this machine \
             (set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the option profile)",
            wire::NO_CREDENTIALS
        );
    }
    // The store's own words, where it sent an XML error.
    let element = |name: &str| {
        let text = chain.split_once(&format!("<{name}>"))?.1;
        Some(text.split_once(&format!("</{name}>"))?.0.to_owned())
    };
    match (element("Code"), element("Message")) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        // In front of this stand the method and the URL, which say nothing that the key does not.
        _ => chain.rsplit(" - HTTP error: ").next().unwrap_or(chain).to_owned(),
    }
}

/// An error with its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A place that holds objects.
#[derive(Clone)]
pub struct Place {
    store: Arc<dyn ObjectStore>,
    pages: Option<Arc<AmazonS3>>,
    /// Where it is a directory.
    directory: Option<Directory>,
    prefix: String,
    wire: Arc<Wire>,
    /// The place's URL, for messages.
    pub url: String,
}

/// Says that a `file://` store may lie on a network file system.
pub const NETWORK_FILE_SYSTEM: &str = "allow_network_fs";
/// Options that object_store knows by another name.
const S3_NAMES: [(&str, &str); 1] = [("sse", "server_side_encryption")];
/// Options that are on or off.
const SWITCHES: [&str; 4] = ["allow_http", "virtual_hosted_style_request", "request_payer", NETWORK_FILE_SYSTEM];
/// Options that are ours: read here, not by object_store.
const S3_OURS: [&str; 3] = ["profile", "credentials", "ca_file"];

/// Refuses an option that none of these places has, by name, and secrets.
pub fn check_options(urls: &[&str], options: &BTreeMap<String, String>) -> Result<(), StoreError> {
    for name in options.keys() {
        if !urls.iter().any(|url| knows(url, name)) {
            let what = match knows("s3://", name) {
                true => format!("{name}: an option of s3:// stores, which this is not (leave it out)"),
                false => format!("{name}: no such store option (endpoint, region, allow_http, profile, … are known)"),
            };
            return Err(StoreError::Unsupported { what });
        }
        if matches!(s3_key(name), Some(AmazonS3ConfigKey::SecretAccessKey | AmazonS3ConfigKey::Token)) {
            let what = format!("{name}: a secret is kept in no file (set it in the environment, or use a profile)");
            return Err(StoreError::Unsupported { what });
        }
    }
    for (name, value) in options {
        if let Some(form) = s3_key(name).and_then(|key| s3::accepted_instead(&key, value)) {
            return Err(StoreError::Unsupported { what: format!("{name}={value}: bad value (accepted: {form})") });
        }
    }
    for (name, value) in options.iter().filter(|(name, _)| SWITCHES.contains(&name.as_str())) {
        if !["true", "false"].contains(&value.as_str()) {
            let what = format!("{name}={value}: bad value (accepted: true or false)");
            return Err(StoreError::Unsupported { what });
        }
    }
    Ok(())
}

fn knows(url: &str, option: &str) -> bool {
    match url.split_once("://") {
        Some(("file", _)) => option == NETWORK_FILE_SYSTEM,
        Some(("s3", _)) => S3_OURS.contains(&option) || s3_key(option).is_some(),
        _ => false,
    }
}

fn s3_key(option: &str) -> Option<AmazonS3ConfigKey> {
    let renamed = S3_NAMES.iter().find(|(ours, _)| *ours == option).map_or(option, |(_, theirs)| theirs);
    let key = renamed.parse().ok()?;
    // Which bucket, and how to create only: the URL and this module say it.
    let fixed = matches!(key, AmazonS3ConfigKey::Bucket | AmazonS3ConfigKey::ConditionalPut);
    (!fixed).then_some(key)
}

impl Place {
    /// Nothing but memory: for tests.
    pub fn memory() -> Self {
        Self::with("memory:", Arc::new(InMemory::new()))
    }

    /// Any object store: for tests that wrap one.
    pub fn of(store: Arc<dyn ObjectStore>) -> Self {
        Self::with("test:", store)
    }

    fn with(url: &str, store: Arc<dyn ObjectStore>) -> Self {
        let (pages, directory, prefix) = (None, None, String::new());
        Self { store, pages, directory, prefix, wire: Arc::default(), url: url.to_owned() }
    }

    /// The same objects behind faults: for tests.
    pub fn with_faults(&self, faults: &Arc<Faults>) -> Self {
        let store = Arc::new(FaultStore::new(self.store.clone(), faults.clone()));
        Self { store, pages: None, directory: None, ..self.clone() }
    }

    /// The place that `url` names: `file:///abs/path` or `s3://bucket/prefix`. Of `options` those of its kind are used.
    /// A directory has to be there, see [`make_directory`].
    ///
    /// `variables` are the environment's `AWS_*` and `HOME`; an option beats them.
    pub fn open(
        url: &str,
        options: &BTreeMap<String, String>,
        variables: &[(String, String)],
    ) -> Result<Self, StoreError> {
        match read_url(url)? {
            Address::Directory(dir) => Self::directory(url, dir),
            Address::Bucket(rest) => s3::open(url, rest, options, variables),
        }
    }

    fn directory(url: &str, dir: PathBuf) -> Result<Self, StoreError> {
        let unsupported = |what: String| StoreError::Unsupported { what };
        match std::fs::metadata(&dir) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(unsupported(format!("{url}: not a directory"))),
            Err(why) if why.kind() == ErrorKind::NotFound => {
                return Err(unsupported(format!("{url}: no such directory (is its disk mounted?)")));
            }
            Err(why) => return Err(unsupported(format!("{url}: {why}"))),
        }
        let store =
            LocalFileSystem::new_with_prefix(&dir).map_err(|why| unsupported(format!("{url}: {}", chain(&why))))?;
        // Without this a file is in the page cache only when its creation is acknowledged.
        let store = Arc::new(store.with_fsync(true));
        let directory = Directory::open(store.clone(), dir).map_err(|why| unsupported(format!("{url}: {why}")))?;
        Ok(Self { directory: Some(directory), ..Self::with(url, store) })
    }

    /// The store's own time, where its answers say it.
    pub fn time(&self) -> Option<Timestamp> {
        self.wire.time()
    }

    /// How long the store asked us to wait.
    pub fn asked_to_wait(&self) -> Option<Duration> {
        self.wire.asked_to_wait()
    }

    fn path(&self, path: &str) -> ObjectPath {
        ObjectPath::from(format!("{}{path}", self.prefix))
    }

    /// A name in the store, as we call it.
    fn relative(&self, path: &ObjectPath) -> String {
        let whole: &str = path.as_ref();
        whole.strip_prefix(&self.prefix).unwrap_or(whole).to_owned()
    }

    /// Refuses a directory that is not the one that was opened.
    async fn look(&self) -> Result<(), Failure> {
        match &self.directory {
            Some(directory) => directory.look().await,
            None => Ok(()),
        }
    }

    /// The object, or a part of it.
    pub async fn get(&self, path: &str, range: Option<Range<u64>>) -> Result<Bytes, Failure> {
        if let (Some(range), Some(directory)) = (&range, &self.directory) {
            return directory.read_part(&self.path(path), range.clone()).await;
        }
        self.look().await?;
        let found = self.read(path, range).await;
        self.unless_elsewhere(found).await
    }

    async fn read(&self, path: &str, range: Option<Range<u64>>) -> Result<Bytes, Failure> {
        let is_whole = range.is_none();
        let options = GetOptions { range: range.map(GetRange::Bounded), ..GetOptions::default() };
        let found = self.store.get_opts(&self.path(path), options).await?;
        // Its length is the store's word, or an attacker's: nothing is allocated for it unseen.
        if is_whole && found.meta.size > OBJECT_BYTES_MAX {
            return Err(Failure::TooLarge(found.meta.size));
        }
        Ok(found.bytes().await?)
    }

    /// The object's length.
    pub async fn len(&self, path: &str) -> Result<u64, Failure> {
        self.look().await?;
        let found = self.store.head(&self.path(path)).await;
        self.unless_elsewhere(found.map(|meta| meta.size).map_err(Failure::from)).await
    }

    /// That something is not there is believed of the directory that was opened only.
    async fn unless_elsewhere<T>(&self, found: Result<T, Failure>) -> Result<T, Failure> {
        if matches!(found, Err(Failure::NotFound)) {
            self.look().await?;
        }
        found
    }

    /// Creates the object, only if there is none.
    pub async fn create(&self, path: &str, bytes: Bytes) -> Result<(), Failure> {
        self.look().await?;
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.store.put_opts(&self.path(path), bytes.into(), options).await.map_err(Failure::from) {
            Ok(_) => self.look().await,
            // A bucket is made by its owner, never by us.
            Err(Failure::NotFound) => Err(Failure::Denied(format!("{}: there is no such bucket", self.url))),
            Err(failure) => Err(failure),
        }
    }

    /// All objects below `prefix` (which ends in `/`), sorted.
    pub async fn list(&self, prefix: &str) -> Result<Vec<(String, u64)>, Failure> {
        self.look().await?;
        let found = self.store.list(Some(&self.path(prefix))).map_ok(|meta| (self.relative(&meta.location), meta.size));
        let mut listed: Vec<_> = found.try_collect().await?;
        self.look().await?;
        listed.sort();
        Ok(listed)
    }

    /// The first object below `prefix`.
    pub async fn first(&self, prefix: &str) -> Result<Option<String>, Failure> {
        let Some(pages) = &self.pages else {
            return Ok(self.list(prefix).await?.into_iter().next().map(|(path, _)| path));
        };
        let whole = format!("{}{prefix}", self.prefix);
        let options = PaginatedListOptions { max_keys: Some(1), ..PaginatedListOptions::default() };
        let page = pages.list_paginated(Some(&whole), options).await?;
        Ok(page.result.objects.first().map(|meta| self.relative(&meta.location)))
    }

    /// Removes the object: the probe's own, nothing else.
    pub async fn remove(&self, path: &str) -> Result<(), Failure> {
        Ok(self.store.delete(&self.path(path)).await?)
    }
}

/// What a store's URL says.
enum Address<'a> {
    Directory(PathBuf),
    /// Bucket and prefix.
    Bucket(&'a str),
}

fn read_url(url: &str) -> Result<Address<'_>, StoreError> {
    let what = match url.split_once("://") {
        Some(("file", path)) if path.starts_with('/') && path.trim_matches('/').is_empty() => {
            format!("{url}: the root directory holds no store (name one of its own: file:///srv/datamon)")
        }
        Some(("file", path)) if Path::new(path).is_absolute() => return Ok(Address::Directory(path.into())),
        Some(("s3", rest)) => match bad_bucket(rest) {
            None => return Ok(Address::Bucket(rest)),
            // Not shown: what stands before an @ may be a secret.
            Some(_) if rest.contains('@') => {
                "s3://…@…: a URL holds no keys (set them in the environment, or use the option profile)".to_owned()
            }
            Some(why) => format!("{url}: {why} (s3://bucket/prefix is expected)"),
        },
        Some(("file", _)) => format!("{url}: the path must be absolute, as in file:///srv/datamon"),
        Some((scheme @ ("gs" | "az"), _)) => {
            format!("{url}: {scheme}:// is not in this version (use file:// or s3://)")
        }
        Some((scheme, _)) => format!("{url}: unknown kind of store {scheme}:// (use file:// or s3://)"),
        None => format!("{url}: not a store's URL (file:///abs/path or s3://bucket/prefix is expected)"),
    };
    Err(StoreError::Unsupported { what })
}

/// What is wrong with a bucket and a prefix, that object_store would take and then panic on, or write elsewhere.
fn bad_bucket(rest: &str) -> Option<&'static str> {
    let mut parts = rest.trim_end_matches('/').split('/');
    let bucket = parts.next().unwrap_or_default();
    let is_bucket = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    match () {
        () if bucket.is_empty() => Some("names no bucket"),
        () if !bucket.chars().all(is_bucket) => {
            Some("a bucket's name has letters, digits, dots, dashes and underscores")
        }
        () if parts.any(|part| part.is_empty() || part == "." || part == "..") => Some("a prefix is a plain path"),
        () if rest.contains(|c: char| c.is_control() || "?#".contains(c)) => Some("a prefix has no ? and no #"),
        () => None,
    }
}

/// Refuses what is no URL of a store that this version knows; looks at nothing but the words.
pub fn check_url(url: &str) -> Result<(), StoreError> {
    read_url(url).map(drop)
}

/// Makes the directory of a `file://` URL: for who makes a context. Nobody else does, because a directory that is not there
/// may be that of a disk that is not mounted.
pub fn make_directory(url: &str) -> Result<(), StoreError> {
    let Address::Directory(dir) = read_url(url)? else { return Ok(()) };
    std::fs::create_dir_all(dir)
        .map_err(|why| StoreError::Unsupported { what: format!("{url}: cannot be made: {why}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn refusal(url: &str) -> String {
        Place::open(url, &BTreeMap::new(), &[]).err().unwrap().to_string()
    }

    #[test]
    fn a_store_of_another_kind_is_refused_by_name() {
        assert!(refusal("gs://bucket").contains("gs:// is not in this version"));
        assert!(refusal("az://container/p").contains("not in this version"));
        assert!(refusal("ftp://host").contains("unknown kind of store ftp://"));
        assert!(refusal("/srv/x").contains("not a store's URL"));
        assert!(refusal("file://relative").contains("must be absolute"));
        assert!(refusal("file:///").contains("the root directory holds no store"));
        assert!(refusal("s3:///p").contains("names no bucket"));
        for bad in ["s3://b a/x", "s3://b/../x", "s3://b//x", "s3://b/p?x=1", "s3://b/p#f"] {
            assert!(refusal(bad).contains("(s3://bucket/prefix is expected)"), "{bad}");
        }
        let keys = refusal("s3://key:secret@bucket/p");
        assert!(keys.contains("a URL holds no keys") && !keys.contains("secret"), "{keys}");
        assert!(bad_bucket("B_1.x-y/some path/deep/").is_none());
    }

    #[test]
    fn an_unknown_option_is_refused_by_name_and_a_secret_is_kept_in_no_file() {
        let check =
            |url: &str, pairs: &[(&str, &str)]| check_options(&[url], &options(pairs)).map_err(|why| why.to_string());
        let all = ["endpoint", "region", "allow_http", "virtual_hosted_style_request", "profile", "credentials"];
        for name in all.into_iter().chain(["ca_file", "sse", "sse_kms_key_id", "request_payer"]) {
            let value = match name {
                "endpoint" => "http://127.0.0.1:9000",
                "sse" => "AES256",
                name if SWITCHES.contains(&name) => "true",
                _ => "x",
            };
            assert_eq!(check("s3://b", &[(name, value)]), Ok(()), "{name}");
        }
        assert!(check("s3://b", &[("allow_http", "maybe")]).unwrap_err().contains("(accepted: true or false)"));
        assert!(check("s3://b", &[("endpont", "x")]).unwrap_err().contains("endpont"));
        assert!(check("s3://b", &[("bucket", "x")]).is_err());
        assert!(check("s3://b", &[("secret_access_key", "x")]).unwrap_err().contains("a secret"));
        assert!(check("file:///x", &[("endpoint", "x")]).is_err());
        assert_eq!(check("file:///x", &[(NETWORK_FILE_SYSTEM, "true")]), Ok(()));
    }

    #[test]
    fn an_answer_that_would_not_change_is_not_asked_for_again() {
        let generic = |text: &str| Failure::from(Error::Generic { store: "S3", source: text.into() });
        let client =
            generic("Server returned non-2xx status code: 400 Bad Request: <Code>A</Code><Message>b</Message>");
        assert!(matches!(client, Failure::Denied(why) if why == "A: b"));
        assert!(matches!(generic("Server returned non-2xx status code: 429 Slow"), Failure::Transient(_)));
        assert!(matches!(generic("Server returned non-2xx status code: 503 Busy"), Failure::Transient(_)));
        assert!(matches!(generic("connection reset"), Failure::Transient(_)));
        assert!(matches!(generic("Server returned non-2xx status code: 416 Range"), Failure::Short));
        let metadata = generic("performing PUT http://169.254.169.254/latest/api/token: 403");
        assert!(matches!(metadata, Failure::Denied(why) if why.contains("no credentials")));
        assert!(matches!(generic(wire::NO_CREDENTIALS), Failure::Denied(why) if why.contains("AWS_ACCESS_KEY_ID")));
    }
}
