//! What HTTP says beside the objects: the store's time, how long it asks us to wait, whether credentials were found.
//!
//! Wraps object_store's own client, so that its requests are seen once and in one place.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use http::StatusCode;
use http::header::{DATE, HeaderMap, RETRY_AFTER};
use object_store::client::{
    ClientOptions, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
    ReqwestConnector,
};
use tokio::time::Instant;

use crate::model::clock::Timestamp;

/// How long the machine's metadata service may take to answer: one that exists answers at once.
const METADATA_LIMIT: Duration = Duration::from_secs(2);
/// Where a machine's metadata service is asked; no object of ours has such a path.
pub const METADATA_PATHS: [&str; 2] = ["/latest/api/token", "/latest/meta-data/iam/"];
/// How an error says that there are no credentials.
pub const NO_CREDENTIALS: &str = "no credentials were found";

/// What the last answers said.
#[derive(Debug, Default)]
pub struct Wire(Mutex<Heard>);

#[derive(Debug, Default, Clone, Copy)]
struct Heard {
    date: Option<(Timestamp, Instant)>,
    not_before: Option<Instant>,
}

impl Wire {
    /// The store's time, by its last answer.
    pub fn time(&self) -> Option<Timestamp> {
        let (said, at) = self.heard().date?;
        let passed = at.elapsed();
        let nanos = said.nanos + passed.subsec_nanos();
        let secs = said.secs + i64::try_from(passed.as_secs()).ok()? + i64::from(nanos / 1_000_000_000);
        Some(Timestamp { secs, nanos: nanos % 1_000_000_000 })
    }

    /// How long the store asked us to wait from now on.
    pub fn asked_to_wait(&self) -> Option<Duration> {
        self.heard().not_before?.checked_duration_since(Instant::now())
    }

    fn heard(&self) -> std::sync::MutexGuard<'_, Heard> {
        self.0.lock().expect("nothing panics while holding the lock")
    }

    fn hear(&self, status: StatusCode, headers: &HeaderMap) {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let mut heard = self.heard();
        if let Some(time) = text(DATE).and_then(Timestamp::from_http_date) {
            heard.date = Some((time, Instant::now()));
        }
        if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
            // The date form of Retry-After is not used by object stores.
            let asked = text(RETRY_AFTER).and_then(|seconds| seconds.trim().parse::<u32>().ok());
            heard.not_before = asked.map(|seconds| Instant::now() + Duration::from_secs(seconds.into()));
        }
    }
}

/// Makes clients that listen.
#[derive(Debug)]
pub struct Connector(pub Arc<Wire>);

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let inner = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Listening { inner, wire: self.0.clone() }))
    }
}

#[derive(Debug)]
struct Listening {
    inner: HttpClient,
    wire: Arc<Wire>,
}

#[derive(Debug, thiserror::Error)]
#[error("{NO_CREDENTIALS}: {0}")]
struct NoCredentials(String);

#[async_trait]
impl HttpService for Listening {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        if asks_for_credentials(request.uri().path()) {
            let none = |why: String| HttpError::new(HttpErrorKind::Unknown, NoCredentials(why));
            let answer = tokio::time::timeout(METADATA_LIMIT, self.inner.execute(request)).await;
            let answer = answer.map_err(|_| none("this machine has no metadata service".to_owned()))?;
            return answer.map_err(|why| none(why.to_string()));
        }
        let answer = self.inner.execute(request).await?;
        self.wire.hear(answer.status(), answer.headers());
        Ok(answer)
    }
}

fn asks_for_credentials(path: &str) -> bool {
    METADATA_PATHS.iter().any(|known| path.starts_with(known))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(http::HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
    }

    #[test]
    fn the_stores_time_goes_on_after_its_last_answer() {
        let wire = Wire::default();
        assert_eq!(wire.time(), None);
        wire.hear(StatusCode::OK, &headers(&[(DATE, "Tue, 14 Nov 2023 22:13:20 GMT")]));
        let first = wire.time().unwrap();
        assert!((1_700_000_000..1_700_000_060).contains(&first.secs));
        wire.hear(StatusCode::OK, &headers(&[(DATE, "yesterday")]));
        assert!(wire.time() >= Some(first), "nonsense changes nothing");
    }

    #[test]
    fn a_busy_store_is_left_alone_for_as_long_as_it_asks() {
        let wire = Wire::default();
        wire.hear(StatusCode::OK, &headers(&[(RETRY_AFTER, "7")]));
        assert_eq!(wire.asked_to_wait(), None);
        wire.hear(StatusCode::SERVICE_UNAVAILABLE, &headers(&[(RETRY_AFTER, "600")]));
        let asked = wire.asked_to_wait().unwrap();
        assert!(asked > Duration::from_secs(500) && asked <= Duration::from_secs(600));
        wire.hear(StatusCode::SERVICE_UNAVAILABLE, &headers(&[]));
        assert_eq!(wire.asked_to_wait(), None);
    }
}
