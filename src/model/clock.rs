//! Time and randomness as parameters, so that one seed replays a failure.

use std::fmt;

use chrono::{DateTime, SecondsFormat};

/// An instant: seconds since 1970 (negative before) and nanoseconds, 0 to 999,999,999, counted forwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp {
    /// Whole seconds since 1970-01-01T00:00:00Z, rounded down.
    pub secs: i64,
    /// Nanoseconds after `secs`.
    pub nanos: u32,
}

impl Timestamp {
    /// The next representable instant.
    pub fn next(self) -> Self {
        if self.nanos == 999_999_999 {
            Self { secs: self.secs.saturating_add(1), nanos: 0 }
        } else {
            Self { nanos: self.nanos + 1, ..self }
        }
    }

    /// Milliseconds since 1970, zero for earlier instants.
    pub fn millis(self) -> u64 {
        u64::try_from(self.secs).unwrap_or(0).saturating_mul(1000) + u64::from(self.nanos / 1_000_000)
    }
}

impl Timestamp {
    /// The time in a `Date` header of HTTP.
    pub fn from_http_date(text: &str) -> Option<Self> {
        let time = DateTime::parse_from_rfc2822(text).ok()?;
        Some(Self { secs: time.timestamp(), nanos: 0 })
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC with as many fractional digits as are needed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match DateTime::from_timestamp(self.secs, self.nanos) {
            Some(time) => f.write_str(&time.to_rfc3339_opts(SecondsFormat::AutoSi, true)),
            None => write!(f, "@{}.{:09}", self.secs, self.nanos),
        }
    }
}

/// Where time comes from.
pub trait Clock: Send + Sync {
    /// The host's wall clock.
    fn now(&self) -> Timestamp;
}

/// Where randomness comes from.
pub trait Entropy: Send + Sync {
    /// 128 random bits.
    fn random(&self) -> u128;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_shown_as_rfc_3339_in_utc() {
        let time = Timestamp { secs: 1_700_000_000, nanos: 5_000_000 };
        assert_eq!(time.to_string(), "2023-11-14T22:13:20.005Z");
        assert_eq!(Timestamp { secs: -1, nanos: 0 }.to_string(), "1969-12-31T23:59:59Z");
    }

    #[test]
    fn the_next_instant_carries_into_the_second() {
        let last = Timestamp { secs: 1, nanos: 999_999_999 };
        assert_eq!(last.next(), Timestamp { secs: 2, nanos: 0 });
    }
}
