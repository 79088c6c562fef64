//! Time and randomness as parameters, so that one seed replays a failure.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, NaiveDate, NaiveTime, SecondsFormat};

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

    /// How long ago it was, in whole milliseconds; nothing of what is to come.
    pub fn age(self, now: Self) -> Duration {
        Duration::from_millis(now.millis().saturating_sub(self.millis()))
    }
}

impl Timestamp {
    /// The time in a `Date` header of HTTP.
    pub fn from_http_date(text: &str) -> Option<Self> {
        let time = DateTime::parse_from_rfc2822(text).ok()?;
        Some(Self { secs: time.timestamp(), nanos: 0 })
    }
}

impl Timestamp {
    /// The time that is shown so; another spelling of it is none.
    pub fn from_rfc3339(text: &str) -> Option<Self> {
        let time = DateTime::parse_from_rfc3339(text).ok()?;
        let time = Self { secs: time.timestamp(), nanos: time.timestamp_subsec_nanos() };
        (time.nanos < 1_000_000_000 && time.to_string() == text).then_some(time)
    }

    /// Its day in UTC, as `20260822`.
    pub fn day(self) -> String {
        self.to_string().split('T').next().unwrap_or_default().replace('-', "")
    }
}

impl Timestamp {
    /// The last instant of the time that a prefix of RFC 3339 names: of a year, a month, a day, an hour and so on, in UTC
    /// unless a complete time says its offset.
    pub fn end_of(text: &str) -> Option<Self> {
        let (date, clock) = text.split_once('T').map_or((text, None), |(date, clock)| (date, Some(clock)));
        let mut date = date.split('-');
        let year = number(date.next()?, 4)?;
        let (month, day) = (part(date.next())?, part(date.next())?);
        if date.next().is_some() || (clock.is_some() && day.is_none()) || (day.is_some() && month.is_none()) {
            return None;
        }
        let first = |year: u32, month| NaiveDate::from_ymd_opt(i32::try_from(year).ok()?, month, 1);
        let midnight = |date: NaiveDate| date.and_time(NaiveTime::MIN).and_utc().timestamp();
        let end = match (month, day) {
            (None, _) => midnight(first(year + 1, 1)?),
            (Some(month), None) => {
                first(year, month)?;
                midnight(if month == 12 { first(year + 1, 1)? } else { first(year, month + 1)? })
            }
            (Some(month), Some(day)) => {
                let start = midnight(NaiveDate::from_ymd_opt(i32::try_from(year).ok()?, month, day)?);
                match clock {
                    None => start + 24 * 3_600,
                    Some(clock) => return end_of_clock(start, clock),
                }
            }
        };
        Some(Self { secs: end - 1, nanos: 999_999_999 })
    }
}

/// A number of exactly so many digits.
fn number(text: &str, digits: usize) -> Option<u32> {
    if text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// Two digits, if there is something; `None` if that is something else.
fn part(text: Option<&str>) -> Option<Option<u32>> {
    text.map_or(Some(None), |text| number(text, 2).map(Some))
}

/// The last instant of a time of the day that begins at `start`.
fn end_of_clock(start: i64, text: &str) -> Option<Timestamp> {
    let (clock, offset) = match text.find(['Z', '+', '-']) {
        Some(at) => (&text[..at], Some(&text[at..])),
        None => (text, None),
    };
    let (clock, fraction) = clock.split_once('.').map_or((clock, None), |(clock, fraction)| (clock, Some(fraction)));
    let mut parts = clock.split(':');
    let hour = number(parts.next()?, 2)?;
    let (minute, second) = (part(parts.next())?, part(parts.next())?);
    let is_complete = second.is_some();
    if parts.next().is_some() || ((fraction.is_some() || offset.is_some()) && !is_complete) {
        return None;
    }
    NaiveTime::from_hms_opt(hour, minute.unwrap_or(0), second.unwrap_or(0))?;
    let hours = start + i64::from(hour) * 3_600 - offset.map_or(Some(0), seconds_of_offset)?;
    let secs = match (minute, second) {
        (None, _) => hours + 3_599,
        (Some(minute), None) => hours + i64::from(minute) * 60 + 59,
        (Some(minute), Some(second)) => hours + i64::from(minute) * 60 + i64::from(second),
    };
    let nanos = match fraction {
        None => 999_999_999,
        // The digits that are not said are nines.
        Some(digits) if digits.len() <= 9 => number(&format!("{digits:9<9}"), 9).filter(|_| !digits.is_empty())?,
        Some(_) => return None,
    };
    Some(Timestamp { secs, nanos })
}

/// `Z`, `+02:00` or `-03:30`.
fn seconds_of_offset(text: &str) -> Option<i64> {
    if text == "Z" {
        return Some(0);
    }
    let sign = if text.starts_with('-') { -1 } else { 1 };
    let (hours, minutes) = text[1..].split_once(':')?;
    let (hours, minutes) = (number(hours, 2)?, number(minutes, 2)?);
    (hours < 24 && minutes < 60).then(|| sign * i64::from(hours * 3_600 + minutes * 60))
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
    fn a_prefix_of_a_time_means_its_last_instant() {
        let end = |text: &str| Timestamp::end_of(text).map(|time| time.to_string());
        for (text, last) in [
            ("2026", "2026-12-31T23:59:59.999999999Z"),
            ("2026-12", "2026-12-31T23:59:59.999999999Z"),
            ("2024-02", "2024-02-29T23:59:59.999999999Z"),
            ("2026-08-22", "2026-08-22T23:59:59.999999999Z"),
            ("2026-08-22T10", "2026-08-22T10:59:59.999999999Z"),
            ("2026-08-22T10:30", "2026-08-22T10:30:59.999999999Z"),
            ("2026-08-22T10:30:05", "2026-08-22T10:30:05.999999999Z"),
            ("2026-08-22T10:30:05Z", "2026-08-22T10:30:05.999999999Z"),
            ("2026-08-22T10:30:05.25", "2026-08-22T10:30:05.259999999Z"),
            ("2026-08-22T10:30:05.123456789Z", "2026-08-22T10:30:05.123456789Z"),
            ("2026-08-22T00:30:05+02:00", "2026-08-21T22:30:05.999999999Z"),
        ] {
            assert_eq!(end(text).as_deref(), Some(last), "{text}");
        }
        for text in [
            "",
            "26",
            "2026-8",
            "2026-13",
            "2026-02-30",
            "2026-08-22T",
            "2026-08-22T24",
            "2026-08-22T10:3",
            "yesterday",
            "2026-08-22T10Z",
            "2026-08T10",
            "2026-08-22T10:30:05.",
            "2026-08-22T10:30:05.1234567890",
            "2026-08-22 10",
            "2026-08-22T10:30:05+2",
            "+2026",
            "2026--1",
            "2026-08-22T10:30:05é",
            "9999999",
        ] {
            assert_eq!(end(text), None, "{text}");
        }
    }

    #[test]
    fn a_time_is_read_as_it_is_shown_and_in_no_other_spelling() {
        for text in ["2023-11-14T22:13:20.005Z", "1969-12-31T23:59:59Z", "2024-02-29T00:00:00.000000001Z"] {
            assert_eq!(Timestamp::from_rfc3339(text).map(|time| time.to_string()).as_deref(), Some(text));
        }
        for text in [
            "",
            "2023-11-14",
            "2023-11-14T22:13:20.0050Z",
            "2023-11-14T22:13:20+00:00",
            "2023-11-14t22:13:20z",
            "2016-12-31T23:59:60Z",
            "0000-01-01T00:00:00+23:59",
        ] {
            assert_eq!(Timestamp::from_rfc3339(text), None, "{text}");
        }
        assert_eq!(Timestamp { secs: 1_700_000_000, nanos: 5 }.day(), "20231114");
    }

    #[test]
    fn the_next_instant_carries_into_the_second() {
        let last = Timestamp { secs: 1, nanos: 999_999_999 };
        assert_eq!(last.next(), Timestamp { secs: 2, nanos: 0 });
    }
}
