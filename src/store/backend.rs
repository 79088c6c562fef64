//! One bucket, prefix or directory behind object_store, whose types end here.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{Error, GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions, RetryConfig};

use super::StoreError;

/// Why one request failed, by what the caller can do about it.
#[derive(Debug, Clone)]
pub enum Failure {
    /// There is no such object.
    NotFound,
    /// There is such an object already.
    Exists,
    /// Asking again will not help.
    Denied(String),
    /// Asking again may help.
    Transient(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => f.write_str("not found"),
            Self::Exists => f.write_str("exists"),
            Self::Denied(why) | Self::Transient(why) => f.write_str(why),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::NotFound { .. } => Self::NotFound,
            Error::AlreadyExists { .. } | Error::Precondition { .. } => Self::Exists,
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => Self::Denied(chain(&error)),
            Error::NotSupported { .. } | Error::NotImplemented { .. } | Error::InvalidPath { .. } => {
                Self::Denied(chain(&error))
            }
            // No credentials at all shows as a failed request to the metadata service: nothing to wait for.
            error if chain(&error).contains("169.254.169.254") => {
                Self::Denied("no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY".to_owned())
            }
            error => Self::Transient(chain(&error)),
        }
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
    prefix: String,
    /// The place's URL, for messages.
    pub url: String,
}

impl Place {
    /// Nothing but memory: for tests.
    pub fn memory() -> Self {
        Self { store: Arc::new(InMemory::new()), pages: None, prefix: String::new(), url: "memory:".to_owned() }
    }

    /// Any object store: for tests that wrap one.
    pub fn of(store: Arc<dyn ObjectStore>) -> Self {
        Self { store, pages: None, prefix: String::new(), url: "test:".to_owned() }
    }

    /// The place that `url` names: `file:///abs/path` or `s3://bucket/prefix`, with the options of its cloud.
    ///
    /// `variables` are the environment's `AWS_*`; an option beats them.
    pub fn open(url: &str, options: &[(String, String)], variables: &[(String, String)]) -> Result<Self, StoreError> {
        let unsupported = |what: String| StoreError::Unsupported { what };
        let (scheme, rest) = url.split_once("://").ok_or_else(|| {
            unsupported(format!("{url}: not a store's URL (file:///abs/path or s3://bucket/prefix is expected)"))
        })?;
        match scheme {
            "file" => Self::directory(url, rest, options),
            "s3" => Self::s3(url, rest, options, variables),
            "gs" | "az" => {
                Err(unsupported(format!("{url}: {scheme}:// is not in this version (use file:// or s3://)")))
            }
            _ => Err(unsupported(format!("{url}: unknown kind of store {scheme}:// (file:// and s3:// are known)"))),
        }
    }

    fn directory(url: &str, path: &str, options: &[(String, String)]) -> Result<Self, StoreError> {
        let unsupported = |what: String| StoreError::Unsupported { what };
        if let Some((key, _)) = options.first() {
            return Err(unsupported(format!("{url}: a file:// store has no option {key}")));
        }
        let dir = PathBuf::from(path);
        if !dir.is_absolute() {
            return Err(unsupported(format!("{url}: the path must be absolute, as in file:///srv/datamon")));
        }
        std::fs::create_dir_all(&dir).map_err(|why| unsupported(format!("{url}: cannot be made: {why}")))?;
        let store =
            LocalFileSystem::new_with_prefix(&dir).map_err(|why| unsupported(format!("{url}: {}", chain(&why))))?;
        let store = Arc::new(store.with_fsync(true));
        Ok(Self { store, pages: None, prefix: String::new(), url: url.to_owned() })
    }

    fn s3(
        url: &str,
        rest: &str,
        options: &[(String, String)],
        variables: &[(String, String)],
    ) -> Result<Self, StoreError> {
        let unsupported = |what: String| StoreError::Unsupported { what };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        // Ours are the only retries; one is left to the credential providers, or they would ask for minutes.
        let retry = RetryConfig { max_retries: 0, retry_timeout: Duration::from_secs(2), ..RetryConfig::default() };
        let mut builder = AmazonS3Builder::new().with_bucket_name(bucket).with_retry(retry);
        for (name, value) in variables {
            if let Ok(key) = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>() {
                builder = builder.with_config(key, value);
            }
        }
        for (name, value) in options {
            let key: AmazonS3ConfigKey =
                name.parse().map_err(|_| unsupported(format!("{url}: unknown option {name}")))?;
            if matches!(
                key,
                AmazonS3ConfigKey::AccessKeyId | AmazonS3ConfigKey::SecretAccessKey | AmazonS3ConfigKey::Token
            ) {
                return Err(unsupported(format!(
                    "{url}: {name} is a secret and is kept in no file (set it in the environment)"
                )));
            }
            builder = builder.with_config(key, value);
        }
        let store = builder.build().map_err(|why| unsupported(format!("{url}: {}", chain(&why))))?;
        let store = Arc::new(store);
        let prefix = prefix.trim_matches('/');
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Ok(Self { store: store.clone(), pages: Some(store), prefix, url: url.to_owned() })
    }

    fn path(&self, path: &str) -> Path {
        Path::from(format!("{}{path}", self.prefix))
    }

    /// A name in the store, as we call it.
    fn relative(&self, path: &Path) -> String {
        let whole: &str = path.as_ref();
        whole.strip_prefix(&self.prefix).unwrap_or(whole).to_owned()
    }

    /// The object, or a part of it.
    pub async fn get(&self, path: &str, range: Option<Range<u64>>) -> Result<Bytes, Failure> {
        let options = GetOptions { range: range.map(GetRange::Bounded), ..GetOptions::default() };
        Ok(self.store.get_opts(&self.path(path), options).await?.bytes().await?)
    }

    /// The object's length.
    pub async fn len(&self, path: &str) -> Result<u64, Failure> {
        Ok(self.store.head(&self.path(path)).await?.size)
    }

    /// Creates the object, only if there is none.
    pub async fn create(&self, path: &str, bytes: Bytes) -> Result<(), Failure> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        self.store.put_opts(&self.path(path), bytes.into(), options).await?;
        Ok(())
    }

    /// All objects below `prefix` (which ends in `/`), sorted.
    pub async fn list(&self, prefix: &str) -> Result<Vec<(String, u64)>, Failure> {
        let found = self.store.list(Some(&self.path(prefix))).map_ok(|meta| (self.relative(&meta.location), meta.size));
        let mut listed: Vec<_> = found.try_collect().await?;
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
