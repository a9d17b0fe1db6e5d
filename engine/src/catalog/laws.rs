//! Laws of the catalog.
#![allow(clippy::unwrap_used, reason = "a law that does not hold panics: that is what it is for")]

use super::file::{Catalog, FILE, read_records, write_records};
use crate::history::SegmentEntry;
use crate::ids::{DatabaseId, Digest, RepositoryId, TimelineId, TxId, TxRange};
use crate::laws::{SLACK, memory};
use crate::page::StateChecksum;
use crate::store::keys::SegmentKey;
use crate::time::Timestamp;
use crate::transaction::{Transaction, TxFlags};

const TRANSACTIONS: u64 = 3;

/// Any bytes, as the file of a catalog, are one that can be used, or are made anew; as transactions, they are exactly
/// those of a segment, in order, or none.
pub fn catalog(input: &[u8]) {
    let key = key();
    if let Some(transactions) = memory::within(2 * input.len() + SLACK, || read_records(&key, input)) {
        assert_eq!(write_records(&transactions), input);
        assert!(transactions.is_sorted_by_key(|transaction| (transaction.tx, transaction.time)));
        assert_eq!(transactions.last().unwrap().tx, key.range.last());
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(FILE), input).unwrap();
    let mut catalog = Catalog::open(folder.path(), repository()).unwrap();
    // What is in the file may be too broken for an answer, but only after it was asked.
    let _ = catalog.segments(key.database, key.timeline);
    let _ = catalog.transactions(&key);
    if catalog.forget(key.database).is_ok() {
        let _ = catalog.add_segments(key.database, key.timeline, &[SegmentEntry { key, size: 7 }]);
        let _ = catalog.add_transactions(&key, &transactions());
        if let Ok(Some(read)) = catalog.transactions(&key) {
            assert_eq!(read, transactions());
        }
    }
}

fn repository() -> RepositoryId {
    RepositoryId::from_bytes(*b"reposito")
}

fn key() -> SegmentKey {
    let time = Timestamp::from_micros(1_795_219_200_000_000);
    SegmentKey {
        database: DatabaseId::from_bytes(*b"database"),
        timeline: TimelineId::FIRST,
        range: TxRange::new(TxId::FIRST, TxId::new(TRANSACTIONS).unwrap()).unwrap(),
        from: time,
        to: time,
        flags: TxFlags::NONE,
        digest: Digest::from_bytes([9; 32]),
    }
}

fn transactions() -> Vec<Transaction> {
    let transaction = |tx| Transaction {
        tx: TxId::new(tx).unwrap(),
        time: key().to,
        not_before: key().to,
        flags: TxFlags::NONE,
        pages: 2,
        image_pages: 3,
        state: StateChecksum::from_raw(tx),
    };
    (1..=TRANSACTIONS).map(transaction).collect()
}

pub(crate) fn catalogs() -> Vec<Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let mut catalog = Catalog::open(folder.path(), repository()).unwrap();
    let empty = std::fs::read(folder.path().join(FILE)).unwrap();
    catalog.add_segments(key().database, key().timeline, &[SegmentEntry { key: key(), size: 7 }]).unwrap();
    catalog.add_transactions(&key(), &transactions()).unwrap();
    drop(catalog);
    let file = std::fs::read(folder.path().join(FILE)).unwrap();
    vec![empty, file, write_records(&transactions())]
}
