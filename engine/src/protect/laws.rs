//! Laws of the local state.
#![allow(clippy::unwrap_used, reason = "a law that does not hold panics: that is what it is for")]

use super::journal::{
    Mark, Records, Recovered, decode_changes, decode_table, encode_changes, encode_table, frame_record,
};
use super::spool;
use crate::ids::{DatabaseId, Digest, TimelineId, TxId};
use crate::laws::{SLACK, memory, take};
use crate::page::PageSize;
use crate::time::Timestamp;

/// Any bytes are what an accident left of the two files of a journal: every state they tell of can be gone back to.
pub fn journal(input: &[u8]) {
    for payload in [input, input.get(8..).unwrap_or_default()] {
        if let Some((mark, hashes)) = decode_table(payload) {
            assert_eq!(encode_table(&mark, &hashes), payload);
        }
        if let Some((mark, changes)) = decode_changes(payload) {
            assert_eq!(encode_changes(&mark, &changes), payload);
        }
    }
    let at = take::<2>(&mut { input });
    let (table, journal) = input.split_at(usize::from(u16::from_le_bytes(at)).min(input.len()));
    recovered(table, journal);
    // The same, as records with right checksums: first the table's, then the others, each behind its length.
    let mut rest = input;
    let mut framed = Vec::new();
    while !rest.is_empty() {
        let length = usize::from(u16::from_le_bytes(take(&mut rest))).min(rest.len());
        let (payload, after) = rest.split_at(length);
        framed.push(frame_record(payload));
        rest = after;
    }
    if let Some((table, journal)) = framed.split_first() {
        recovered(table, &journal.concat());
    }
}

/// The table takes its bytes twice while it is read, a hash that changed 16 for 12, a mark 200 for 144.
fn recovered(table: &[u8], journal: &[u8]) {
    let limit = 4 * (table.len() + journal.len()) + SLACK;
    let read = || Recovered::read(Records::of_bytes(table), Some(Records::of_bytes(journal))).unwrap();
    let Some(all) = memory::within(limit, read) else { return };
    let marks: Vec<Mark> = all.marks().cloned().collect();
    assert!(marks.is_sorted_by(|one, next| one.tx < next.tx));
    for mark in &marks {
        let Some(tx) = mark.tx else { continue };
        let (found, table) = memory::within(2 * limit, || read().unwrap().at(tx, |_| None)).unwrap();
        assert_eq!((&found, table.pages()), (mark, mark.image_pages));
    }
}

/// A name that names a part in the spool is the one it has.
pub(crate) fn spool_name(text: &str) {
    if let Some(range) = spool::parse_name(text) {
        assert_eq!(format!("{}-{}.part", range.first(), range.last()), text);
    }
}

pub(crate) fn journals() -> Vec<Vec<u8>> {
    let mark = |tx, image_pages| Mark {
        database: DatabaseId::from_bytes([1; 8]),
        timeline: TimelineId::FIRST,
        claim: [7; 8],
        tx: TxId::new(tx),
        time: Timestamp::from_micros(1_795_219_200_000_000),
        chain: Digest::from_bytes([3; 32]),
        page_size: PageSize::MIN,
        image_pages,
        stored: None,
        needs_base: Some(TxId::FIRST),
        log_versions: 5,
        log_bytes: 6,
        resume: vec![9, 9],
    };
    let table = encode_table(&mark(1, 2), &[11, 12]);
    let records =
        [encode_changes(&mark(4, 4), &[(0, 21), (2, 22), (3, 23)]), encode_changes(&mark(5, 1), &[(0, 31)])];
    let mut behind_lengths = Vec::new();
    for payload in [&table, &records[0], &records[1]] {
        behind_lengths.extend((payload.len() as u16).to_le_bytes());
        behind_lengths.extend(payload);
    }
    let [first, second] = records.map(|payload| frame_record(&payload));
    vec![table.clone(), [frame_record(&table), first, second].concat(), behind_lengths]
}
