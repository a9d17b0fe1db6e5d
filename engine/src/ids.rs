//! Names of things: every identity and place in a history is a type of its own.
//!
//! One text form each, used alike in logs, object keys, the command line and the API. Numbers in names are
//! fixed-width hex, so that the order of texts is the order of history.

use std::fmt::{self, Write as _};
use std::num::{NonZeroU32, NonZeroU64};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A text that is not the name it was taken for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not {expected}")]
pub struct ParseIdError {
    /// The text as it was given.
    pub text: String,
    /// What was expected, in words: "a transaction id (16 hex digits)".
    pub expected: &'static str,
}

impl ParseIdError {
    fn new(text: &str, expected: &'static str) -> Self {
        Self { text: text.chars().take(80).collect(), expected }
    }
}

/// One commit of a database. Counts up along a history from 1; never reused on it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TxId(NonZeroU64);

impl TxId {
    /// The first transaction of a history: the state found when protection began.
    pub const FIRST: Self = Self(NonZeroU64::MIN);

    /// The transaction with this number; `None` for 0.
    #[must_use]
    pub fn new(number: u64) -> Option<Self> {
        NonZeroU64::new(number).map(Self)
    }

    /// The number, at least 1.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0.get()
    }

    /// The transaction after this one. Saturates at the last number, which no history reaches.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The transaction before this one; `None` before the first.
    #[must_use]
    pub fn previous(self) -> Option<Self> {
        Self::new(self.get() - 1)
    }
}

impl fmt::Display for TxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.get())
    }
}

impl FromStr for TxId {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        parse_hex_u64(text, 16)
            .and_then(Self::new)
            .ok_or_else(|| ParseIdError::new(text, "a transaction id (16 hex digits, not zero)"))
    }
}

/// One unbroken line of transactions by one writer. A fork starts the next number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimelineId(NonZeroU32);

impl TimelineId {
    /// The first timeline of a database.
    pub const FIRST: Self = Self(NonZeroU32::MIN);

    /// The timeline with this number; `None` for 0.
    #[must_use]
    pub fn new(number: u32) -> Option<Self> {
        NonZeroU32::new(number).map(Self)
    }

    /// The number, at least 1.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0.get()
    }

    /// The timeline with the next number.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The fixed-width form in object keys (8 hex digits), whose text order is number order.
    #[must_use]
    pub fn key_text(self) -> String {
        format!("{:08x}", self.get())
    }

    /// Reads [`TimelineId::key_text`].
    ///
    /// # Errors
    /// When the text is not 8 hex digits or is zero.
    pub fn from_key_text(text: &str) -> Result<Self, ParseIdError> {
        parse_hex_u64(text, 8)
            .and_then(|number| u32::try_from(number).ok())
            .and_then(Self::new)
            .ok_or_else(|| ParseIdError::new(text, "a timeline (8 hex digits, not zero)"))
    }
}

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.get())
    }
}

impl FromStr for TimelineId {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        Some(text)
            .filter(|text| !text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|text| text.parse().ok())
            .and_then(Self::new)
            .ok_or_else(|| ParseIdError::new(text, "a timeline (a decimal number from 1)"))
    }
}

/// The exact name of a restorable state: a timeline and a transaction on it. Text: `3/00000000000001a7`.
///
/// A position on timeline `t` with a transaction at or before the fork point of `t` names the parent's state.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The line of history.
    pub timeline: TimelineId,
    /// The commit on it.
    pub tx: TxId,
}

impl Position {
    /// Puts the two parts together.
    #[must_use]
    pub fn new(timeline: TimelineId, tx: TxId) -> Self {
        Self { timeline, tx }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.timeline, self.tx)
    }
}

impl FromStr for Position {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let parts =
            text.split_once('/').and_then(|(timeline, tx)| Some((timeline.parse().ok()?, tx.parse().ok()?)));
        parts
            .map(|(timeline, tx)| Self { timeline, tx })
            .ok_or_else(|| ParseIdError::new(text, "a position (like 3/00000000000001a7)"))
    }
}

/// A closed, non-empty run of transactions on one timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TxRange {
    first: TxId,
    last: TxId,
}

impl TxRange {
    /// The run from `first` to `last`, both included; `None` when `last` comes before `first`.
    #[must_use]
    pub fn new(first: TxId, last: TxId) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// The first transaction in it.
    #[must_use]
    pub fn first(self) -> TxId {
        self.first
    }

    /// The last transaction in it.
    #[must_use]
    pub fn last(self) -> TxId {
        self.last
    }

    /// How many transactions it holds.
    #[must_use]
    pub fn count(self) -> u64 {
        (self.last.get() - self.first.get()).saturating_add(1)
    }

    /// Whether `tx` is in it.
    #[must_use]
    pub fn contains(self, tx: TxId) -> bool {
        self.first <= tx && tx <= self.last
    }

    /// Whether `next` begins right after this run ends.
    #[must_use]
    pub fn touches(self, next: Self) -> bool {
        self.last.next() == next.first
    }
}

/// A BLAKE3 hash (32 bytes). Keyed when the repository is encrypted. Which bytes are hashed is said where it is used.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Wraps 32 bytes read from a record.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Wraps a slice; `None` unless it is 32 bytes long.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl FromStr for Digest {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        parse_hex_bytes(text).map(Self).ok_or_else(|| ParseIdError::new(text, "a digest (64 hex digits)"))
    }
}

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident, $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 8]);

        impl $name {
            /// Wraps 8 bytes, drawn at random when the thing was created.
            #[must_use]
            pub fn from_bytes(bytes: [u8; 8]) -> Self {
                Self(bytes)
            }

            /// The 8 bytes.
            #[must_use]
            pub fn as_bytes(&self) -> &[u8; 8] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_hex(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                parse_hex_bytes(text).map(Self).ok_or_else(|| ParseIdError::new(text, $expected))
            }
        }
    };
}

random_id! {
    /// One protected source, for life: survives renames and moves. Text: 16 hex digits.
    DatabaseId, "a database id (16 hex digits)"
}
random_id! {
    /// One repository. Text: 16 hex digits.
    RepositoryId, "a repository id (16 hex digits)"
}
random_id! {
    /// One daemon installation (one state folder). Text: 16 hex digits.
    HostId, "a host id (16 hex digits)"
}

macro_rules! text_is_debug_and_serde {
    ($($name:ident),*) => { $(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )* };
}

text_is_debug_and_serde!(TxId, TimelineId, Position, Digest, DatabaseId, RepositoryId, HostId);

/// Exactly `digits` lower-case hex digits as a number: one text for one number, or equal things would differ by name.
///
/// 16 at most. By hand, since listings bring keys by the hundred thousand.
pub(crate) fn parse_hex_u64(text: &str, digits: usize) -> Option<u64> {
    if text.len() != digits || digits > 16 || digits == 0 {
        return None;
    }
    text.bytes().try_fold(0, |value, digit| Some(value << 4 | u64::from(hex_digit(digit)?)))
}

fn parse_hex_bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = hex_digit(*high)? << 4 | hex_digit(*low)?;
    }
    Some(bytes)
}

fn hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

fn write_hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |value: u8| char::from(DIGITS.get(usize::from(value & 15)).copied().unwrap_or_default());
    bytes.iter().try_for_each(|byte| {
        f.write_char(digit(byte >> 4))?;
        f.write_char(digit(*byte))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_read_back_from_its_text() {
        let position: Position = "3/00000000000001a7".parse().unwrap();
        assert_eq!(position.tx.get(), 0x1a7);
        assert_eq!(position.to_string(), "3/00000000000001a7");
    }

    #[test]
    fn near_misses_are_refused() {
        for text in [
            "",
            "3",
            "3/",
            "/1",
            "0/0000000000000001",
            "1/0000000000000000",
            "1/00000000000001A7",
            "1/1a7",
            "+1/00000000000001a7",
            "01/00000000000001a7",
        ] {
            assert!(text.parse::<Position>().is_err(), "{text}");
        }
        assert!("é".repeat(8).parse::<DatabaseId>().is_err());
    }

    #[test]
    fn ranges_know_their_neighbours() {
        let tx = |n| TxId::new(n).unwrap();
        let range = TxRange::new(tx(3), tx(5)).unwrap();
        assert_eq!(range.count(), 3);
        assert!(range.touches(TxRange::new(tx(6), tx(6)).unwrap()));
        assert!(!range.touches(TxRange::new(tx(5), tx(6)).unwrap()));
        assert!(TxRange::new(tx(5), tx(3)).is_none());
    }
}
