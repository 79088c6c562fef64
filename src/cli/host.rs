//! This process and its host, as the floors below want to be told about them.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::config::{ConfigError, Environment, Places};
use crate::local::sys;
use crate::model::clock::{Clock, Entropy, Timestamp};

/// Who commits, in the environment of a mount and of the commands that commit.
pub const CONTRIBUTOR: &str = "DATAMON_CONTRIBUTOR";

/// The host's wall clock.
#[derive(Debug, Clone, Copy)]
pub struct HostClock;

impl Clock for HostClock {
    fn now(&self) -> Timestamp {
        // A host that believes to live before 1970 is taken to live in 1970.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp { secs: i64::try_from(since.as_secs()).unwrap_or(i64::MAX), nanos: since.subsec_nanos() }
    }
}

/// The kernel's randomness.
#[derive(Debug, Clone, Copy)]
pub struct HostEntropy;

impl Entropy for HostEntropy {
    fn random(&self) -> u128 {
        sys::random()
    }
}

/// What the commands are given to work with.
pub struct Host {
    /// Variables and user.
    pub environment: Environment,
    /// Where files are.
    pub places: Places,
    /// The wall clock.
    pub clock: Arc<dyn Clock>,
    /// The kernel's randomness.
    pub entropy: Arc<dyn Entropy>,
}

impl Host {
    /// Who commits, by the environment.
    pub fn contributor(&self) -> Option<String> {
        self.environment.get(CONTRIBUTOR).map(str::to_owned)
    }

    /// The host of this process.
    pub fn of_this_process() -> Result<Self, ConfigError> {
        // A variable that is not UTF-8 is none of ours.
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        let variables = std::env::vars_os().filter_map(text).collect();
        let environment = Environment { variables, uid: sys::identity().0 };
        let places = Places::find(&environment)?;
        Ok(Self { environment, places, clock: Arc::new(HostClock), entropy: Arc::new(HostEntropy) })
    }
}
