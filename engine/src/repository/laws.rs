//! Laws of records, sealed objects and keys.
#![allow(clippy::unwrap_used, reason = "a law that does not hold panics: that is what it is for")]

use everwhen_proto::store as proto;
use prost::Message;

use super::databases;
use super::envelope::{self, BLOCK, HEADER, Header, Sealed, content_len, sealed_len};
use super::frame::{self, Record};
use super::secret::{RepositoryKey, Secret};
use super::{once, seen, timelines};
use crate::ids::DatabaseId;
use crate::laws::{SLACK, memory, take};

const KEY: &str = "db/0011223344556677/record/0000000000000001";

/// Any bytes, as a record and as the message in one, are a record that is written and read again as the same, or an
/// error. An entry of a mark takes 48 bytes and may have 2; a growing list has room for twice as many.
pub fn records(input: &[u8]) {
    for frame in [input.to_vec(), framed(input)] {
        record::<proto::Marker>(&frame);
        record::<proto::KeyRecord>(&frame);
        record::<proto::DatabaseKey>(&frame);
        if let Some(record) = record::<proto::DatabaseRecord>(&frame) {
            database_record(record);
        }
        if let Some(claim) = record::<proto::TimelineClaim>(&frame) {
            timeline_claim(claim);
        }
        if let Some(mark) = record::<proto::SeenMark>(&frame) {
            mark.entries.iter().for_each(seen_entry);
        }
    }
}

fn framed(message: &[u8]) -> Vec<u8> {
    [b"EWR1", &frame::checksum(KEY, message).to_le_bytes()[..], message].concat()
}

fn record<R: Record + PartialEq + std::fmt::Debug>(frame: &[u8]) -> Option<R> {
    let record = memory::within(64 * frame.len() + SLACK, || frame::decode::<R>(KEY, frame)).ok()?;
    let again: R = frame::decode(KEY, &frame::encode(KEY, &record)).unwrap();
    assert_eq!(again, record);
    assert!(frame::decode::<R>("another/key", frame).is_err());
    Some(record)
}

fn database_record(record: proto::DatabaseRecord) {
    let Ok(id) = record.database_id.as_slice().try_into().map(DatabaseId::from_bytes) else { return };
    let seq = record.seq;
    assert!(databases::from_proto(id, seq.wrapping_add(1), record.clone()).is_none());
    let Some(read) = databases::from_proto(id, seq, record) else { return };
    let again = databases::from_proto(id, seq, databases::to_proto(&read, [7; 8]));
    assert_eq!(again, Some(read));
}

fn timeline_claim(claim: proto::TimelineClaim) {
    let Ok(id) = claim.database_id.as_slice().try_into().map(DatabaseId::from_bytes) else { return };
    let number = u64::from(claim.timeline);
    let Some(read) = timelines::from_proto(id, number, claim) else { return };
    assert!(read.parent.is_none_or(|parent| parent.timeline < read.id));
    assert_eq!(timelines::from_proto(id, number, timelines::to_proto(id, &read)), Some(read));
}

fn seen_entry(entry: &proto::SeenEntry) {
    if let Some((database, read)) = seen::from_proto(entry) {
        assert_eq!(seen::from_proto(&seen::to_proto(database, &read)), Some((database, read)));
    }
}

fn secret() -> Secret {
    Secret::from_slice(&[7; 32]).unwrap()
}

/// Any bytes are no sealed object, for want of the key; what they hold comes back from one, whole and by ranges, unless
/// it was altered, cut or renamed; and whatever a header says, its lengths and ranges have answers.
pub fn envelope(input: &[u8]) {
    let opened = memory::within(2 * input.len() + SLACK, || envelope::open_whole(&secret(), KEY, input));
    assert!(opened.is_err() || sealed_len(opened.unwrap().len() as u64) == input.len() as u64);
    let _ = envelope::unwrap(&secret(), b"here", input);
    any_header(input);
    sealed(input);
}

fn any_header(input: &[u8]) {
    let mut rest = input;
    let (start, end) = (u64::from_le_bytes(take(&mut rest)), u64::from_le_bytes(take(&mut rest)));
    for size in [start, end] {
        if let Some(content) = content_len(size) {
            assert_eq!(sealed_len(content), size);
        }
    }
    let mut head = b"EWX1\x01\0\0\0".to_vec();
    head.extend(take::<40>(&mut rest));
    let Ok(header) = Header::parse(KEY, &head) else { return };
    assert_eq!(content_len(sealed_len(header.len)), Some(header.len));
    let sealed = Sealed::open(&secret(), KEY, header).unwrap();
    let range = start..end;
    let Some(part) = sealed.sealed_range(&range) else { return };
    assert!(HEADER <= part.start && part.start < part.end && part.end <= sealed_len(header.len));
    assert!(memory::within(2 * rest.len() + SLACK, || sealed.open_range(&range, rest)).is_err());
}

fn sealed(input: &[u8]) {
    let object = envelope::seal_whole(&secret(), KEY, input.to_vec()).unwrap();
    assert_eq!(object.len() as u64, sealed_len(input.len() as u64));
    let limit = object.len() + 2 * BLOCK as usize + SLACK;
    let open = |object: &[u8]| memory::within(limit, || envelope::open_whole(&secret(), KEY, object));
    assert_eq!(open(&object).unwrap(), input);
    let at = crc32fast::hash(input) as usize % object.len();
    let mut altered = object.to_vec();
    altered[at] ^= 1 << (at % 8);
    assert!(open(&altered).is_err() && open(&object[..at]).is_err());
    assert!(envelope::open_whole(&secret(), "another/key", &object).is_err());
    let range = at as u64 % (input.len() as u64 + 1)..input.len() as u64;
    let sealed = Sealed::open(&secret(), KEY, Header::parse(KEY, &object).unwrap()).unwrap();
    if let Some(part) = sealed.sealed_range(&range) {
        let part = &object[part.start as usize..part.end as usize];
        assert_eq!(sealed.open_range(&range, part).unwrap(), input[range.start as usize..]);
    }
}

/// The text of a repository key has one form, but for white space and remarks around it.
pub(crate) fn key_text(text: &str) {
    if let Ok(key) = text.parse::<RepositoryKey>() {
        let lines = text.lines().map(str::trim);
        assert!(lines.into_iter().any(|line| line == key.text().as_str()));
    }
}

/// Of listed names of records each number has one winner, in order.
pub(crate) fn record_names(text: &str) {
    for (prefix, digits) in [("", 16), ("00", 8)] {
        let winners = once::winners(prefix, digits, text.lines());
        assert!(winners.is_sorted_by(|one, next| one.number < next.number));
        assert!(winners.iter().all(|winner| text.lines().any(|line| line == winner.key)));
    }
}

pub(crate) fn a_key() -> String {
    let mut line = String::from("everwhen-key-1-");
    line.push_str(&crate::random::hex(&[7; 32]));
    format!("# a key\n  {line}-{:08x}\n", crc32fast::hash(&[7; 32]))
}

pub(crate) fn envelopes() -> Vec<Vec<u8>> {
    let object = envelope::seal_whole(&secret(), KEY, b"content".to_vec()).unwrap().to_vec();
    let range = [3_u64, 5].iter().flat_map(|end| end.to_le_bytes());
    let header = [&[1; 32], &100_u64.to_le_bytes()[..], &[0; 100]].concat();
    vec![object, range.chain(header).collect(), b"content".to_vec()]
}

pub(crate) fn some_records() -> Vec<Vec<u8>> {
    let (id, nonce) = (vec![1; 8], vec![2; 8]);
    let marker = proto::Marker {
        format: 1,
        repository_id: id.clone(),
        created_micros: 1_795_219_200_000_000,
        location: "eu".into(),
        created_by: "everwhen".into(),
        encryption: Some(proto::Encryption { scheme: 1 }),
    };
    let record = proto::DatabaseRecord {
        format: 1,
        database_id: id.clone(),
        seq: 3,
        name: "app".into(),
        source: "/srv/app.db".into(),
        engine: "sqlite".into(),
        class: "production".into(),
        created_micros: 1_795_219_200_000_000,
        written_micros: -1,
        host_id: id.clone(),
        host_name: "host".into(),
        nonce: nonce.clone(),
        origin: Some(proto::Origin { database_id: id.clone(), timeline: 1, tx: 2 }),
    };
    let claim = proto::TimelineClaim {
        format: 1,
        database_id: id.clone(),
        timeline: 3,
        parent_timeline: 2,
        parent_tx: 9,
        reason: 2,
        host_id: id.clone(),
        host_name: "host".into(),
        claimed_micros: 1_795_219_200_000_000,
        nonce,
    };
    let entry = proto::SeenEntry { database_id: id.clone(), timeline: 1, tx: 2, through_micros: 3 };
    let mark = proto::SeenMark { format: 1, host_id: id, written_micros: 4, entries: vec![entry; 2] };
    let whole = frame::encode(KEY, &record);
    vec![marker.encode_to_vec(), record.encode_to_vec(), claim.encode_to_vec(), mark.encode_to_vec(), whole]
}
