//! The frame of a record: `EWR1`, CRC-32, message. The checksum also covers the object's key, so a record that was
//! swapped with another is noticed without any encryption.
#![warn(clippy::indexing_slicing)]

use prost::Message;

use super::RepositoryError;

/// The version of the records this program writes, and the highest it reads.
pub(super) const FORMAT: u32 = 1;

const MAGIC: &[u8; 4] = b"EWR1";
const HEAD: usize = 8;
/// Far above any record (30,000 databases in a mark); what is larger is not a record and is not decoded. An entry of a
/// mark may take 2 bytes here and 48 in memory, in a list with room for as many again.
const MAX: usize = 1024 * 1024;

/// A record that says which version of the format it has.
pub(super) trait Record: Message + Default {
    fn format(&self) -> u32;
}

macro_rules! records {
    ($($name:ident),*) => { $(
        impl Record for everwhen_proto::store::$name {
            fn format(&self) -> u32 {
                self.format
            }
        }
    )* };
}
records!(Marker, KeyRecord, DatabaseKey, DatabaseRecord, TimelineClaim, SeenMark);

pub(super) fn checksum(key: &str, message: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key.as_bytes());
    hasher.update(&[0]);
    hasher.update(message);
    hasher.finalize()
}

/// Frames a record for the object `key`.
pub(super) fn encode(key: &str, record: &impl Record) -> Vec<u8> {
    let message = record.encode_to_vec();
    let mut frame = Vec::with_capacity(HEAD + message.len());
    frame.extend_from_slice(MAGIC);
    frame.extend_from_slice(&checksum(key, &message).to_le_bytes());
    frame.extend_from_slice(&message);
    frame
}

/// Reads the record of the object `key`.
pub(super) fn decode<R: Record>(key: &str, frame: &[u8]) -> Result<R, RepositoryError> {
    let damaged = |reason: &str| RepositoryError::damaged(key, reason);
    let Some((magic, rest)) = frame.split_first_chunk::<4>() else {
        return Err(damaged("it is too short to be a record"));
    };
    if magic != MAGIC {
        return Err(match magic {
            [b'E', b'W', b'R', digit @ b'2'..=b'9'] => RepositoryError::NewerFormat {
                key: key.to_owned(),
                found: u32::from(digit - b'0'),
                known: FORMAT,
            },
            _ => damaged("it does not begin as a record does"),
        });
    }
    let Some((stored, message)) = rest.split_first_chunk::<4>() else {
        return Err(damaged("it is too short to be a record"));
    };
    if message.len() > MAX {
        return Err(damaged("it is too long to be a record"));
    }
    let (expected, found) = (u32::from_le_bytes(*stored), checksum(key, message));
    if expected != found {
        return Err(damaged(&format!("its checksum is {found:08x}, expected {expected:08x}")));
    }
    let record = R::decode(message).map_err(|error| damaged(&error.to_string()))?;
    match record.format() {
        FORMAT => Ok(record),
        0 => Err(damaged("it names no format")),
        found => Err(RepositoryError::NewerFormat { key: key.to_owned(), found, known: FORMAT }),
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "a test that slices wrongly fails")]
mod tests {
    use everwhen_proto::store::{DatabaseRecord, Marker};
    use proptest::prelude::*;

    use super::*;

    fn record() -> DatabaseRecord {
        DatabaseRecord {
            format: 1,
            seq: 3,
            name: "app".into(),
            database_id: vec![1; 8],
            ..Default::default()
        }
    }

    #[test]
    fn a_record_is_read_back_under_its_own_key_only() {
        let frame = encode("db/x/record/3", &record());
        assert_eq!(decode::<DatabaseRecord>("db/x/record/3", &frame).unwrap(), record());
        assert!(decode::<DatabaseRecord>("db/x/record/4", &frame).is_err());
    }

    #[test]
    fn records_are_the_golden_ones() {
        use crate::repository::golden::golden;
        use everwhen_proto::store::{KeyRecord, Origin};
        let full = DatabaseRecord {
            source: "/srv/app.db".into(),
            engine: "sqlite".into(),
            class: "production".into(),
            created_micros: 1_795_219_200_000_000,
            written_micros: 1_795_219_200_000_001,
            host_id: vec![2; 8],
            host_name: "here".into(),
            nonce: vec![3; 8],
            origin: Some(Origin { database_id: vec![4; 8], timeline: 1, tx: 0x1a7 }),
            ..record()
        };
        let frame = golden("database-record-v1.bin", &encode("db/x/record/3", &full));
        assert_eq!(decode::<DatabaseRecord>("db/x/record/3", &frame).unwrap(), full);
        let marker = Marker { format: 1, repository_id: vec![5; 8], created_micros: 1, ..Default::default() };
        let frame = golden("marker-v1.bin", &encode("everwhen", &marker));
        assert_eq!(decode::<Marker>("everwhen", &frame).unwrap(), marker);
        let key = KeyRecord {
            format: 1,
            repository_id: vec![5; 8],
            seq: 1,
            key_id: vec![6; 8],
            wrapped: vec![7; 60],
            created_micros: 2,
            nonce: vec![8; 8],
        };
        let frame = golden("key-record-v1.bin", &encode("key/5/1", &key));
        assert_eq!(decode::<KeyRecord>("key/5/1", &frame).unwrap(), key);
    }

    #[test]
    fn a_flipped_bit_or_a_cut_is_noticed() {
        let frame = encode("everwhen", &record());
        for at in 0..frame.len() {
            assert!(decode::<DatabaseRecord>("everwhen", &frame[..at]).is_err(), "cut at {at}");
            for bit in 0..8 {
                let mut flipped = frame.clone();
                flipped[at] ^= 1 << bit;
                assert!(decode::<DatabaseRecord>("everwhen", &flipped).is_err(), "byte {at} bit {bit}");
            }
        }
    }

    #[test]
    fn newer_formats_are_told_apart_from_damage() {
        let newer = encode("everwhen", &Marker { format: 2, ..Default::default() });
        assert!(matches!(
            decode::<Marker>("everwhen", &newer),
            Err(RepositoryError::NewerFormat { found: 2, known: 1, .. })
        ));
        assert!(matches!(decode::<Marker>("everwhen", b"EWR2"), Err(RepositoryError::NewerFormat { .. })));
        assert!(matches!(decode::<Marker>("everwhen", b"hello"), Err(RepositoryError::Damaged { .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_record_or_an_error(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), sound in any::<bool>()) {
            // Half of the cases get past the checksum, to the decoder behind it.
            if sound && bytes.len() >= HEAD {
                bytes[..4].copy_from_slice(MAGIC);
                let sum = checksum("k", &bytes[HEAD..]).to_le_bytes();
                bytes[4..HEAD].copy_from_slice(&sum);
            }
            let _ = decode::<everwhen_proto::store::SeenMark>("k", &bytes);
            let _ = decode::<DatabaseRecord>("k", &bytes);
        }
    }
}
