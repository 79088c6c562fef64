//! Buckets that speak S3: options, variables and profiles become one client.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::{Certificate, ClientConfigKey, ClientOptions, RetryConfig};

use super::{Place, chain, s3_key};
use crate::store::StoreError;
use crate::store::wire::{Connector, Wire};

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);

/// Opens `rest` = `bucket/prefix`.
pub(super) fn open(
    url: &str,
    rest: &str,
    options: &BTreeMap<String, String>,
    variables: &[(String, String)],
) -> Result<Place, StoreError> {
    let unsupported = |what: String| StoreError::Unsupported { what };
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let wire = Arc::new(Wire::default());
    // Ours are the only retries and deadlines; the providers of credentials get two seconds and no second chance.
    let retry = RetryConfig { max_retries: 0, retry_timeout: Duration::from_secs(2), ..RetryConfig::default() };
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_retry(retry)
        .with_client_options(client_options(url, options)?)
        .with_http_connector(Connector(wire.clone()));
    let settings = settings(url, options, variables)?;
    let last = |key: AmazonS3ConfigKey| settings.iter().rev().find(|(found, _)| *found == key).map(|(_, value)| value);
    let is_open = last(AmazonS3ConfigKey::Endpoint).is_some_and(|endpoint| endpoint.starts_with("http://"));
    if is_open && last(AmazonS3ConfigKey::Client(ClientConfigKey::AllowHttp)).is_none_or(|allowed| allowed == "false") {
        let what = "its endpoint is http://, which everybody on the way can read and change";
        return Err(unsupported(format!("{url}: {what} (--option allow_http=true allows it)")));
    }
    for (key, value) in settings {
        builder = builder.with_config(key, value);
    }
    let store = Arc::new(builder.build().map_err(|why| unsupported(format!("{url}: {}", chain(&why))))?);
    let prefix = prefix.trim_matches('/');
    let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
    Ok(Place { store: store.clone(), pages: Some(store), directory: None, prefix, wire, url: url.to_owned() })
}

fn client_options(url: &str, options: &BTreeMap<String, String>) -> Result<ClientOptions, StoreError> {
    let mut client = ClientOptions::new().with_timeout_disabled().with_connect_timeout(CONNECT);
    if let Some(file) = options.get("ca_file") {
        let unsupported = |why: String| StoreError::Unsupported { what: format!("{url}: ca_file {file}: {why}") };
        let pem = std::fs::read(file).map_err(|why| unsupported(why.to_string()))?;
        for certificate in Certificate::from_pem_bundle(&pem).map_err(|why| unsupported(chain(&why)))? {
            client = client.with_root_certificate(certificate);
        }
    }
    Ok(client)
}

/// All settings, the stronger ones later: profile, environment, options. A profile that is asked for beats the
/// environment.
fn settings(
    url: &str,
    options: &BTreeMap<String, String>,
    variables: &[(String, String)],
) -> Result<Vec<(AmazonS3ConfigKey, String)>, StoreError> {
    let variable = |name: &str| variables.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str());
    let asked = options.get("profile").map(String::as_str);
    let mut settings = Vec::new();
    for (name, value) in variables {
        if let Ok(key) = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>() {
            settings.push((key, value.clone()));
        }
    }
    let has_keys = variable("AWS_ACCESS_KEY_ID").is_some();
    let wanted = asked.is_some() || options.contains_key("credentials") || !has_keys;
    if wanted {
        let profile = asked.or(variable("AWS_PROFILE")).unwrap_or("default");
        let file = options.get("credentials").map(PathBuf::from);
        let file = file.or_else(|| variable("AWS_SHARED_CREDENTIALS_FILE").map(PathBuf::from));
        let file = file.or_else(|| Some(PathBuf::from(variable("HOME")?).join(".aws/credentials")));
        let found = file.as_ref().and_then(|file| std::fs::read_to_string(file).ok());
        let found = found.and_then(|text| profile_settings(&text, profile));
        match found {
            Some(found) => settings.extend(found),
            None if asked.is_some() || options.contains_key("credentials") => {
                let place = file.map_or("~/.aws/credentials".to_owned(), |file| file.display().to_string());
                let what = format!("{url}: profile {profile} is not in {place}");
                return Err(StoreError::Unsupported { what });
            }
            None => {}
        }
    }
    settings.extend(options.iter().filter_map(|(name, value)| Some((s3_key(name)?, value.clone()))));
    // The values of keys are nobody's to read.
    let bad = settings.iter().find_map(|(key, value)| Some((key.as_ref(), accepted_instead(key, value)?)));
    match bad {
        Some((name, form)) => {
            Err(StoreError::Unsupported { what: format!("{url}: {name}: bad value (accepted: {form})") })
        }
        None => Ok(settings),
    }
}

/// What is accepted, of a value that is not: object_store takes any, and panics when it makes a request of it.
pub(super) fn accepted_instead(key: &AmazonS3ConfigKey, value: &str) -> Option<&'static str> {
    use AmazonS3ConfigKey as Key;
    let (is_good, form) = match key {
        Key::Endpoint
        | Key::MetadataEndpoint
        | Key::StsEndpoint
        | Key::ContainerCredentialsFullUri
        | Key::Client(ClientConfigKey::ProxyUrl) => (is_address(value), "http://HOST[:PORT] or https://HOST[:PORT]"),
        Key::Region | Key::DefaultRegion => {
            let is_word = value.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
            (is_word && !value.is_empty(), "letters, digits and dashes: eu-west-1")
        }
        Key::AccessKeyId | Key::Token => (
            value.chars().all(|c| c.is_ascii_graphic()),
            "a key as it was given out: no space and no end of line in it",
        ),
        key if key.as_ref() == "aws_server_side_encryption" => {
            let kinds = ["AES256", "aws:kms", "aws:kms:dsse", "sse-c"];
            (kinds.contains(&value), "AES256, aws:kms, aws:kms:dsse or sse-c")
        }
        _ => (!value.contains(char::is_control), "a line of text"),
    };
    (!is_good).then_some(form)
}

fn is_address(value: &str) -> bool {
    let Ok(uri) = value.parse::<http::Uri>() else { return false };
    let has_host = uri.host().is_some_and(|host| !host.is_empty());
    has_host && matches!(uri.scheme_str(), Some("http" | "https")) && uri.query().is_none()
}

/// The settings under `[profile]` in a file as the AWS tools keep it; `None` where there is no such section.
fn profile_settings(text: &str, profile: &str) -> Option<Vec<(AmazonS3ConfigKey, String)>> {
    let mut inside = false;
    let mut found = None;
    for line in text.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            let section = section.trim();
            inside = section.strip_prefix("profile ").unwrap_or(section).trim() == profile;
            if inside {
                found.get_or_insert_with(Vec::new);
            }
        } else if let (true, Some((name, value))) = (inside, line.split_once('=')) {
            // What object_store has no word for (output formats, other services) is not ours to judge.
            if let (Ok(key), Some(found)) = (name.trim().parse(), found.as_mut()) {
                found.push((key, value.trim().to_owned()));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "[default]\naws_access_key_id = A\n# no\n[profile lab]\naws_access_key_id=B\n\
                        aws_secret_access_key = C=\noutput = json\n[other]\nregion = x\n";

    fn value(settings: &[(AmazonS3ConfigKey, String)], key: AmazonS3ConfigKey) -> Option<&str> {
        // The builder lets a later setting replace an earlier one.
        settings.iter().rev().find(|(found, _)| *found == key).map(|(_, value)| value.as_str())
    }

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn a_profile_is_read_as_the_aws_tools_write_it() {
        let lab = profile_settings(FILE, "lab").unwrap();
        assert_eq!(value(&lab, AmazonS3ConfigKey::AccessKeyId), Some("B"));
        assert_eq!(value(&lab, AmazonS3ConfigKey::SecretAccessKey), Some("C="));
        assert_eq!(lab.len(), 2);
        assert_eq!(profile_settings(FILE, "none"), None);
    }

    #[test]
    fn an_option_beats_the_environment_and_a_profile_that_is_asked_for_does_too() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("credentials");
        std::fs::write(&file, FILE).unwrap();
        let variables = [pair("AWS_ACCESS_KEY_ID", "E"), pair("AWS_REGION", "env")];
        let named = |pairs: &[(String, String)]| settings("s3://b", &pairs.iter().cloned().collect(), &variables);
        let plain = named(&[pair("region", "option")]).unwrap();
        assert_eq!(value(&plain, AmazonS3ConfigKey::AccessKeyId), Some("E"));
        assert_eq!(value(&plain, AmazonS3ConfigKey::Region), Some("option"));
        let credentials = pair("credentials", file.to_str().unwrap());
        let lab = named(&[pair("profile", "lab"), credentials.clone()]).unwrap();
        assert_eq!(value(&lab, AmazonS3ConfigKey::AccessKeyId), Some("B"));
        let none = named(&[pair("profile", "none"), credentials]).unwrap_err().to_string();
        assert!(none.contains("profile none is not in"), "{none}");
    }

    #[test]
    fn a_value_that_no_request_can_be_made_of_is_refused_by_name() {
        let refused = |name: &str, value: &str| {
            let settings = settings("s3://b", &BTreeMap::from([pair(name, value)]), &[]);
            settings.err().map(|why| why.to_string())
        };
        for (name, good, bad) in [
            ("endpoint", "http://127.0.0.1:9000", "xx"),
            ("endpoint", "https://s3.example.org/path", ""),
            ("endpoint", "http://[::1]:9000", "http://a b"),
            ("region", "eu-west-1", "a b"),
            ("sse", "aws:kms", "zzz"),
            ("proxy_url", "http://proxy:3128", "proxy"),
            ("role_arn", "arn:aws:iam::1:role/x", "a\nb"),
        ] {
            assert_eq!(refused(name, good), None, "{name}={good}");
            assert!(refused(name, bad).unwrap().contains("bad value (accepted: "), "{name}={bad}");
        }
        // As a secret that was read from a file with its end of line.
        let keys = [pair("AWS_ACCESS_KEY_ID", "AKIA\n"), pair("AWS_SECRET_ACCESS_KEY", "x")];
        let why = settings("s3://b", &BTreeMap::new(), &keys).unwrap_err().to_string();
        assert!(why.contains("aws_access_key_id: bad value") && !why.contains("AKIA"), "{why}");
    }

    #[tokio::test]
    async fn a_machine_without_credentials_says_so_within_seconds() {
        let options = [("endpoint", "http://127.0.0.1:1"), ("allow_http", "true")];
        let options = options.map(|(name, value)| pair(name, value)).into_iter().collect();
        // A metadata service that refuses connections, as no machine's own does.
        let variables = [pair("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")];
        let place = open("s3://b/p", "b/p", &options, &variables).unwrap();
        let start = std::time::Instant::now();
        let failure = place.get("x", None).await.unwrap_err();
        assert!(matches!(&failure, super::super::Failure::Denied(why) if why.contains("no credentials")), "{failure}");
        assert!(start.elapsed() < Duration::from_secs(8));
    }
}
