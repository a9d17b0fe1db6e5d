//! Laws of names and times: what is read from a text is written as that very text.

use std::fmt::Display;
use std::str::FromStr;

use jiff::tz::TimeZone;

use super::{SLACK, memory};
use crate::ids::{DatabaseId, Digest, HostId, Position, RepositoryId, TimelineId, TxId};
use crate::protect::laws::spool_name;
use crate::repository::laws::{key_text, record_names};
use crate::store::keys::{BaseKey, SegmentKey};
use crate::time::Timestamp;

fn is_the_text<T: FromStr + Display>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        assert_eq!(value.to_string(), text);
    }
}

/// Any bytes, as a text, are an id, a position, an object's key, a spool file's name or the text of a repository key,
/// and are written again as exactly that; or are an error.
pub fn names(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    memory::within(SLACK + 8 * text.len(), || {
        is_the_text::<TxId>(&text);
        is_the_text::<TimelineId>(&text);
        is_the_text::<Position>(&text);
        is_the_text::<Digest>(&text);
        is_the_text::<DatabaseId>(&text);
        is_the_text::<RepositoryId>(&text);
        is_the_text::<HostId>(&text);
        if let Ok(timeline) = TimelineId::from_key_text(&text) {
            assert_eq!(timeline.key_text(), *text);
        }
        if let Ok(key) = SegmentKey::parse(&text) {
            assert_eq!(key.to_string(), *text);
        }
        if let Ok(key) = BaseKey::parse(&text) {
            assert_eq!(key.to_string(), *text);
        }
        spool_name(&text);
        key_text(&text);
        record_names(&text);
    });
}

/// Any bytes, as a text, are a time that is written and read again as the same, or an error.
pub fn times(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let now = Timestamp::from_micros(1_795_219_200_000_000);
    memory::within(SLACK + 8 * text.len(), || {
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        let exact = text.parse::<Timestamp>();
        let human = Timestamp::parse_human(&text, now, &zone);
        if let Ok(exact) = &exact {
            assert_eq!(human.as_ref(), Ok(exact));
        }
        for time in [exact, human].into_iter().flatten() {
            assert!((Timestamp::MIN..=Timestamp::MAX).contains(&time));
            assert_eq!(time.to_string().parse(), Ok(time));
        }
    });
}

pub(super) fn some_names() -> Vec<Vec<u8>> {
    let digest = "ab".repeat(32);
    let (db, tx, time) = ("00112233445566ff", "00000000000001a7", "0006509b7f1c5000");
    let key = format!("db/{db}/log/00000001/{tx}-{tx}-{time}-{time}-0-{digest}");
    [
        tx.to_owned(),
        "3/00000000000001a7".to_owned(),
        "00000003".to_owned(),
        digest.clone(),
        key,
        format!("db/{db}/base/00000001/{tx}-{digest}"),
        format!("{tx}-{tx}.part"),
        format!("{tx}-{db}\n{tx}\n{tx}-nonce"),
        crate::repository::laws::a_key(),
    ]
    .map(String::into_bytes)
    .to_vec()
}

pub(super) fn some_times() -> Vec<Vec<u8>> {
    [
        "2026-11-21T14:03:00.123456Z",
        "2026-11-21 14:03:00",
        "2026-11-21T14:03:00+01:00[Europe/Berlin]",
        "10 minutes ago",
        "-1h 30m",
        "1 year 2 months 3 days 4 hours ago",
        "P1Y2M3DT4H5M6.7S ago",
        "now",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
