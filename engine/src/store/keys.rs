//! The names of objects in a repository. Pure: no IO.
//!
//! A listing of keys in text order is history in order, and says enough to find the windows, the gaps and the segment
//! that holds any moment without opening an object: a segment's name carries its transactions, its times and the
//! flags of its first transaction.
//!
//! ```text
//! everwhen                                                   the marker
//! key/<repository>/<seq>                                     the wrapped master secret of an encrypted repository
//! db/<db>/record/<seq>                                       versions of the database's record
//! db/<db>/key                                                the database's wrapped data key, when encrypted
//! db/<db>/timeline/<tl>                                      claims
//! db/<db>/log/<tl>/<first>-<last>-<from>-<to>-<flags>-<digest>   segments
//! db/<db>/base/<tl>/<tx>-<digest>                            base manifests
//! db/<db>/chunk/<aa>/<digest>                                packs of chunks; <aa> is the digest's first two digits
//! daemon/<host>/seen/<time>-<nonce>                          covered-through marks
//! daemon/<host>/probe/create-if-absent                       a throwaway object
//! ```
//! `<tl>` 8 hex digits, `<first>`, `<last>`, `<tx>` 16, times 16 (microseconds since 1970, negative ones refused),
//! `<flags>` 1, `<seq>` 16, `<nonce>` 16, `<digest>` 64. On a store that ignores create-if-absent, the names of records and
//! claims end in `-<nonce>`.

use std::fmt;

use crate::ids::{
    DatabaseId, Digest, HostId, ParseIdError, Position, RepositoryId, TimelineId, TxId, TxRange,
    parse_hex_u64,
};
use crate::time::Timestamp;
use crate::transaction::TxFlags;

/// The marker at the root of a repository.
pub const MARKER: &str = "everwhen";

/// The prefix under which databases lie, one "folder" each.
pub const DATABASES: &str = "db/";

/// The prefix under which daemons leave their marks, one "folder" each.
pub const HOSTS: &str = "daemon/";

/// The prefix of everything of one database.
#[must_use]
pub fn database_prefix(database: DatabaseId) -> String {
    format!("db/{database}/")
}

/// The key of version `seq` of a database's record. Versions count up from 1 and are created once each.
#[must_use]
pub fn record_key(database: DatabaseId, seq: u64) -> String {
    format!("db/{database}/record/{seq:016x}")
}

/// The prefix of a database's record versions.
#[must_use]
pub fn record_prefix(database: DatabaseId) -> String {
    format!("db/{database}/record/")
}

/// The key of a timeline's claim.
#[must_use]
pub fn timeline_key(database: DatabaseId, timeline: TimelineId) -> String {
    format!("db/{database}/timeline/{}", timeline.key_text())
}

/// The prefix of a database's timeline claims.
#[must_use]
pub fn timeline_prefix(database: DatabaseId) -> String {
    format!("db/{database}/timeline/")
}

/// The prefix of a timeline's segments.
#[must_use]
pub fn log_prefix(database: DatabaseId, timeline: TimelineId) -> String {
    format!("db/{database}/log/{}/", timeline.key_text())
}

/// The prefix of all segments of a database, of all timelines.
#[must_use]
pub fn all_logs_prefix(database: DatabaseId) -> String {
    format!("db/{database}/log/")
}

/// The prefix of all base manifests of a database, of all timelines.
#[must_use]
pub fn all_bases_prefix(database: DatabaseId) -> String {
    format!("db/{database}/base/")
}

/// The prefix of a database's packs of chunks.
#[must_use]
pub fn chunk_prefix(database: DatabaseId) -> String {
    format!("db/{database}/chunk/")
}

/// The key of a pack of chunks. The digest is over the pack's bytes before encryption.
#[must_use]
pub fn pack_key(database: DatabaseId, digest: Digest) -> String {
    let hex = digest.to_string();
    format!("db/{database}/chunk/{}/{hex}", hex.get(..2).unwrap_or_default())
}

/// The prefix of a host's covered-through marks.
#[must_use]
pub fn seen_prefix(host: HostId) -> String {
    format!("daemon/{host}/seen/")
}

/// The key of a host's covered-through mark. The order of keys is the order of times.
#[must_use]
pub fn seen_key(host: HostId, time: Timestamp, nonce: [u8; 8]) -> String {
    let nonce = u64::from_be_bytes(nonce);
    format!("daemon/{host}/seen/{:016x}-{nonce:016x}", time.as_micros().max(0))
}

/// The key of the throwaway object by which a host finds out whether the store keeps create-if-absent.
#[must_use]
pub fn probe_key(host: HostId) -> String {
    format!("daemon/{host}/probe/create-if-absent")
}

/// The prefix of a repository's key records.
#[must_use]
pub fn key_record_prefix(repository: RepositoryId) -> String {
    format!("key/{repository}/")
}

/// The key of version `seq` of the record that holds the repository's wrapped master secret.
#[must_use]
pub fn key_record_key(repository: RepositoryId, seq: u64) -> String {
    format!("key/{repository}/{seq:016x}")
}

/// The key of the object that holds a database's wrapped data key.
#[must_use]
pub fn database_key_key(database: DatabaseId) -> String {
    format!("db/{database}/key")
}

/// The name of a segment, and with it all that planning needs to know of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SegmentKey {
    /// Whose history.
    pub database: DatabaseId,
    /// On which line.
    pub timeline: TimelineId,
    /// Its transactions.
    pub range: TxRange,
    /// `not_before` of its first transaction (equal to that transaction's time when it has no flags).
    pub from: Timestamp,
    /// The time of its last transaction.
    ///
    /// A segment whose first transaction [opens a window](TxFlags::opens_window) holds only transactions of that same
    /// time, so there `from`..`to` is the gap itself.
    pub to: Timestamp,
    /// The flags of its first transaction. No other transaction in it has any.
    pub flags: TxFlags,
    /// BLAKE3 over the segment's bytes before encryption (keyed when the repository is encrypted).
    pub digest: Digest,
}

impl SegmentKey {
    /// When its first transaction was committed.
    #[must_use]
    pub fn begins(&self) -> Timestamp {
        if self.flags.opens_window() { self.to } else { self.from }
    }

    /// Reads a key; the inverse of `Display`.
    ///
    /// # Errors
    /// When it is not exactly a segment's key.
    pub fn parse(key: &str) -> Result<Self, ParseIdError> {
        parse_segment_key(key).ok_or_else(|| not_a(key, "a segment's key"))
    }
}

impl fmt::Display for SegmentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "db/{}/log/{}/{}-{}-{:016x}-{:016x}-{:x}-{}",
            self.database,
            self.timeline.key_text(),
            self.range.first(),
            self.range.last(),
            self.from.as_micros().max(0),
            self.to.as_micros().max(0),
            self.flags.bits(),
            self.digest
        )
    }
}

/// The name of a base manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BaseKey {
    /// Whose image.
    pub database: DatabaseId,
    /// The state it holds.
    pub position: Position,
    /// BLAKE3 over the manifest's bytes before encryption.
    pub digest: Digest,
}

impl BaseKey {
    /// Reads a key; the inverse of `Display`.
    ///
    /// # Errors
    /// When it is not exactly a base manifest's key.
    pub fn parse(key: &str) -> Result<Self, ParseIdError> {
        parse_base_key(key).ok_or_else(|| not_a(key, "a base manifest's key"))
    }
}

impl fmt::Display for BaseKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let timeline = self.position.timeline.key_text();
        write!(f, "db/{}/base/{timeline}/{}-{}", self.database, self.position.tx, self.digest)
    }
}

fn not_a(key: &str, expected: &'static str) -> ParseIdError {
    ParseIdError { text: key.chars().take(200).collect(), expected }
}

fn parse_segment_key(key: &str) -> Option<SegmentKey> {
    let (database, rest) = key.strip_prefix(DATABASES)?.split_once("/log/")?;
    let (timeline, name) = rest.split_once('/')?;
    let mut fields = name.split('-');
    let mut field = || fields.next();
    let parsed = SegmentKey {
        database: database.parse().ok()?,
        timeline: TimelineId::from_key_text(timeline).ok()?,
        range: {
            let (first, last): (TxId, TxId) = (field()?.parse().ok()?, field()?.parse().ok()?);
            TxRange::new(first, last)?
        },
        from: parse_time(field()?)?,
        to: parse_time(field()?)?,
        flags: TxFlags::from_bits(u8::try_from(parse_hex_u64(field()?, 1)?).ok()?)?,
        digest: field()?.parse().ok()?,
    };
    (fields.next().is_none() && parsed.from <= parsed.to).then_some(parsed)
}

fn parse_base_key(key: &str) -> Option<BaseKey> {
    let (database, rest) = key.strip_prefix(DATABASES)?.split_once("/base/")?;
    let (timeline, name) = rest.split_once('/')?;
    let (tx, digest) = name.split_once('-')?;
    Some(BaseKey {
        database: database.parse().ok()?,
        position: Position::new(TimelineId::from_key_text(timeline).ok()?, tx.parse().ok()?),
        digest: digest.parse().ok()?,
    })
}

fn parse_time(text: &str) -> Option<Timestamp> {
    let micros = i64::try_from(parse_hex_u64(text, 16)?).ok()?;
    let time = Timestamp::from_micros(micros);
    (time.as_micros() == micros).then_some(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> SegmentKey {
        SegmentKey {
            database: "00112233445566ff".parse().unwrap(),
            timeline: TimelineId::FIRST,
            range: TxRange::new(TxId::FIRST, TxId::new(0xff).unwrap()).unwrap(),
            from: "2026-11-21T00:00:00Z".parse().unwrap(),
            to: "2026-11-21T00:00:01Z".parse().unwrap(),
            flags: TxFlags { ends_gap: true, ..TxFlags::NONE },
            digest: Digest::from_bytes([0xab; 32]),
        }
    }

    #[test]
    fn a_segment_key_is_read_back_from_its_text() {
        assert_eq!(SegmentKey::parse(&key().to_string()).unwrap(), key());
    }

    #[test]
    fn text_order_is_history_order() {
        let mut later = key();
        later.range = TxRange::new(TxId::new(0x100).unwrap(), TxId::new(0x100).unwrap()).unwrap();
        assert!(key().to_string() < later.to_string());
    }

    #[test]
    fn every_altered_character_is_another_key_or_none() {
        let text = key().to_string();
        for at in 0..text.len() {
            let mut altered = text.clone().into_bytes();
            altered[at] ^= 1;
            if let Ok(other) = SegmentKey::parse(&String::from_utf8(altered).unwrap()) {
                assert_ne!(other, key());
            }
        }
    }
}
