//! Points in time: whole microseconds in UTC, and the texts people write for them.

use std::fmt;
use std::str::FromStr;

use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Span, SpanRelativeTo};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A moment in UTC, in microseconds since 1970. Leap seconds are not counted. Text: RFC 3339 with six decimals.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// A time nobody could read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseTimeError {
    /// It is no time.
    #[error(
        "'{text}' is not a time: write RFC 3339 (2026-11-21T14:03:00Z), a local time (2026-11-21 14:03:00), or \"10 minutes ago\""
    )]
    NotATime {
        /// The text as it was given.
        text: String,
    },
    /// The clocks of the local zone were changed over it.
    #[error(
        "'{text}' is {times} in the local zone, where the clocks were changed: add the offset (2026-11-21 14:03:00 +01:00)"
    )]
    ClockChange {
        /// The text as it was given.
        text: String,
        /// How often it came.
        times: &'static str,
    },
}

impl ParseTimeError {
    fn not_a_time(text: &str) -> Self {
        Self::NotATime { text: text.chars().take(80).collect() }
    }
}

impl Timestamp {
    /// The earliest moment with a text form we keep (year 0).
    pub const MIN: Self = Self(-62_167_219_200_000_000);
    /// The latest moment with a text form we keep (the end of year 9998).
    pub const MAX: Self = Self(253_370_764_799_999_999);

    /// From microseconds since 1970; held to [`Timestamp::MIN`] and [`Timestamp::MAX`].
    #[must_use]
    pub fn from_micros(micros: i64) -> Self {
        Self(micros.clamp(Self::MIN.0, Self::MAX.0))
    }

    /// Microseconds since 1970.
    #[must_use]
    pub fn as_micros(self) -> i64 {
        self.0
    }

    /// The machine's clock. Call it at the edges only; the pure core takes times as arguments.
    #[must_use]
    pub fn now() -> Self {
        Self::from(jiff::Timestamp::now())
    }

    /// This moment in the machine's local zone, with its offset: `2026-11-21 15:03:00.123456 +01:00`.
    #[must_use]
    pub fn in_local_zone(self) -> String {
        jiff_of(self).to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S%.6f %:z").to_string()
    }

    /// Microseconds from `earlier` to this moment; negative when `earlier` is later.
    #[must_use]
    pub fn micros_since(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0)
    }

    /// This moment plus so many microseconds.
    #[must_use]
    pub fn plus_micros(self, micros: i64) -> Self {
        Self::from_micros(self.0.saturating_add(micros))
    }

    /// Reads what a person writes: RFC 3339, a date and time in the local zone, `now`, or a span back from `now`
    /// ("10 minutes ago", "1h 30m ago", "-2 days").
    ///
    /// # Errors
    /// [`ParseTimeError`] when the text is none of these.
    pub fn parse_human(text: &str, now: Self, zone: &TimeZone) -> Result<Self, ParseTimeError> {
        let trimmed = text.trim();
        if let Ok(exact) = trimmed.parse::<jiff::Timestamp>() {
            return Ok(Self::from(exact));
        }
        if trimmed.eq_ignore_ascii_case("now") {
            return Ok(now);
        }
        // As we print it ourselves.
        if let Some((moment, offset)) = trimmed.rsplit_once(' ')
            && offset.starts_with(['+', '-'])
            && let Ok(exact) = format!("{}{offset}", moment.trim_end()).parse::<jiff::Timestamp>()
        {
            return Ok(Self::from(exact));
        }
        if let Ok(local) = trimmed.parse::<jiff::civil::DateTime>() {
            return local_time(trimmed, local, zone);
        }
        parse_span_back(trimmed, now, zone).ok_or_else(|| ParseTimeError::not_a_time(text))
    }
}

/// A local time that exists once.
fn local_time(
    text: &str,
    local: jiff::civil::DateTime,
    zone: &TimeZone,
) -> Result<Timestamp, ParseTimeError> {
    let ambiguous = zone.to_ambiguous_timestamp(local);
    let times = match ambiguous.offset() {
        AmbiguousOffset::Unambiguous { .. } => {
            let exact = ambiguous.unambiguous().map_err(|_| ParseTimeError::not_a_time(text))?;
            return Ok(Timestamp::from(exact));
        }
        AmbiguousOffset::Gap { .. } => "no time at all",
        AmbiguousOffset::Fold { .. } => "two times",
    };
    Err(ParseTimeError::ClockChange { text: text.chars().take(80).collect(), times })
}

fn parse_span_back(text: &str, now: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
    let signed = text.starts_with('-') || text.to_ascii_lowercase().ends_with("ago");
    let span: Span = if signed { text.parse().ok()? } else { return None };
    let at = jiff_of(now).to_zoned(zone.clone());
    let back = span.to_duration(SpanRelativeTo::from(&at)).ok()?;
    // A span "ago" is negative already; a positive one would name the future.
    if back > SignedDuration::ZERO {
        return None;
    }
    at.checked_add(span).ok().map(|moment| Timestamp::from(moment.timestamp()))
}

fn jiff_of(time: Timestamp) -> jiff::Timestamp {
    jiff::Timestamp::from_microsecond(time.0).unwrap_or_default()
}

impl From<jiff::Timestamp> for Timestamp {
    fn from(time: jiff::Timestamp) -> Self {
        Self::from_micros(time.as_microsecond())
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.6}", jiff_of(*self))
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Timestamp {
    type Err = ParseTimeError;
    fn from_str(text: &str) -> Result<Self, ParseTimeError> {
        text.parse::<jiff::Timestamp>().map(Self::from).map_err(|_| ParseTimeError::not_a_time(text))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<String, ParseTimeError> {
        let now = "2026-11-21T12:00:00Z".parse().unwrap();
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        Timestamp::parse_human(text, now, &zone).map(|time| time.to_string())
    }

    #[test]
    fn people_write_times_in_many_ways() {
        assert_eq!(read("2026-11-21T10:00:00.5Z").unwrap(), "2026-11-21T10:00:00.500000Z");
        assert_eq!(read("2026-11-21T10:00:00+01:00").unwrap(), "2026-11-21T09:00:00.000000Z");
        assert_eq!(read("2026-11-21 10:00:00").unwrap(), "2026-11-21T08:00:00.000000Z");
        assert_eq!(read("10 minutes ago").unwrap(), "2026-11-21T11:50:00.000000Z");
        assert_eq!(read("1h 30m ago").unwrap(), "2026-11-21T10:30:00.000000Z");
        assert_eq!(read("now").unwrap(), "2026-11-21T12:00:00.000000Z");
        assert_eq!(read("2026-11-21 08:37:09.316944 +00:00").unwrap(), "2026-11-21T08:37:09.316944Z");
        assert_eq!(read("2026-11-21 08:37:09 -03:30").unwrap(), "2026-11-21T12:07:09.000000Z");
    }

    #[test]
    fn local_times_over_which_the_clocks_were_changed_need_an_offset() {
        let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let read = |text| Timestamp::parse_human(text, Timestamp::from_micros(0), &zone);
        assert!(read("2026-03-29 02:30:00").unwrap_err().to_string().contains("no time at all"));
        assert!(read("2026-10-25 02:30:00").unwrap_err().to_string().contains("two times"));
        assert_eq!(read("2026-10-25 02:30:00 +01:00").unwrap().to_string(), "2026-10-25T01:30:00.000000Z");
        assert_eq!(read("2026-10-25 04:30:00").unwrap().to_string(), "2026-10-25T03:30:00.000000Z");
    }

    #[test]
    fn what_is_no_time_is_refused_with_examples() {
        for text in ["", "yesterday-ish", "10 minutes", "2026-13-01T00:00:00Z", "99999999999999999 years ago"]
        {
            let error = read(text).unwrap_err();
            assert!(error.to_string().contains("10 minutes ago"), "{text}");
        }
    }

    #[test]
    fn the_extremes_have_texts() {
        for time in [Timestamp::from_micros(i64::MIN), Timestamp::from_micros(i64::MAX)] {
            assert_eq!(time.to_string().parse::<Timestamp>().unwrap(), time);
        }
    }
}
