//! The formats as bytes: encoding gives exactly the files in `tests/golden`, decoding gives exactly the dumps beside
//! them, and no byte of them can change unnoticed.
//!
//! A file there is never edited. `EVERWHEN_GOLDEN=write` makes those that are missing. A new release of zstd may
//! compress otherwise: then the encoding half of a test moves to a new file, and the old file stays to be decoded.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test")]

use std::fmt::Write as _;
use std::path::Path;

use bytes::Bytes;
use everwhen_engine::base::{BaseBuilder, CHUNK_BYTES, Manifest, Pack, check_pack, decode_chunk};
use everwhen_engine::digest::Hasher;
use everwhen_engine::ids::{DatabaseId, Digest, Position, TimelineId, TxId};
use everwhen_engine::page::{PageNo, PageSize, StateChecksum};
use everwhen_engine::segment::{
    Effort, Encoder, EncoderParams, MemoryImage, PageStore, Replayer, chain_start, parts,
};
use everwhen_engine::time::Timestamp;
use everwhen_engine::transaction::{Transaction, TxFlags};

const SIZE: usize = 512;

fn golden(name: &str, made: &[u8]) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name);
    if !path.exists() && std::env::var("EVERWHEN_GOLDEN").is_ok_and(|mode| mode == "write") {
        std::fs::write(&path, made).unwrap();
    }
    let kept = std::fs::read(&path).unwrap();
    assert!(kept == made, "{name} is not what is made now");
    kept
}

fn database() -> DatabaseId {
    "00112233445566ff".parse().unwrap()
}

fn page(number: u32) -> PageNo {
    PageNo::new(number).unwrap()
}

fn noise(seed: u32, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn base_image() -> MemoryImage {
    let bytes = (1..=8).flat_map(|number| noise(number, SIZE)).collect();
    MemoryImage::from_bytes(PageSize::MIN, bytes).unwrap()
}

/// A page with a few bytes changed, like a row in a table.
fn edited(image: &MemoryImage, number: u32, text: &[u8]) -> Vec<u8> {
    let mut bytes = image.page(page(number)).unwrap().to_vec();
    bytes[100..100 + text.len()].copy_from_slice(text);
    bytes
}

/// The pages of a transaction, and the pages of the image after it.
type Change = (Vec<(u32, Vec<u8>)>, u32);

fn encode(
    first: u64,
    flags: TxFlags,
    chain: Digest,
    image: &mut MemoryImage,
    txs: &[Change],
) -> (Vec<u8>, Digest) {
    let params = EncoderParams {
        database: database(),
        timeline: TimelineId::FIRST,
        page_size: PageSize::MIN,
        first: TxId::new(first).unwrap(),
        image_pages: image.page_count(),
        chain_before: chain,
        effort: Effort::Hot,
    };
    let mut encoder = Encoder::new(params, Vec::new());
    for (tx, (pages, image_pages)) in (first..).zip(txs) {
        for (number, bytes) in pages {
            let previous = encoder.wants_previous(page(*number)).then(|| image.page(page(*number))).flatten();
            encoder.page(page(*number), bytes, previous).unwrap();
        }
        image.resize(*image_pages).unwrap();
        pages.iter().for_each(|(number, bytes)| image.write(page(*number), bytes).unwrap());
        let time = Timestamp::from_micros(1_795_219_200_000_000 + tx as i64 * 1_500_000);
        let flags = if tx == first { flags } else { TxFlags::NONE };
        let transaction = Transaction {
            tx: TxId::new(tx).unwrap(),
            time,
            not_before: if flags.any() { time.plus_micros(-250_000) } else { time },
            flags,
            pages: pages.len() as u32,
            image_pages: *image_pages,
            state: image.state(),
        };
        encoder.commit(&transaction).unwrap();
    }
    let finished = encoder.finish().unwrap();
    ([finished.prologue, finished.frames].concat(), finished.header.chain_after)
}

/// Two parts: edits, a repeated page, growth, an empty transaction, noise in a frame of its own, a cut.
fn segment() -> Vec<u8> {
    let mut image = base_image();
    let held = TxFlags { held_clock: true, ..TxFlags::NONE };
    let first = vec![
        (vec![(2, edited(&image, 2, b"first")), (5, edited(&image, 5, b"index"))], 8),
        (vec![(2, edited(&image, 2, b"second")), (9, vec![0; SIZE])], 9),
        (vec![], 9),
        (vec![(1, edited(&image, 1, b"cut"))], 6),
    ];
    let (mut object, chain) = encode(2, held, chain_start(database(), TimelineId::FIRST), &mut image, &first);
    let (more, _) = encode(6, TxFlags::NONE, chain, &mut image, &[(vec![(7, noise(70, SIZE))], 7)]);
    object.extend(more);
    object
}

fn dump_segment(object: &Bytes) -> String {
    let mut text = String::new();
    let mut image = base_image();
    let mut at = TxId::FIRST;
    for part in parts(object) {
        let part = part.unwrap();
        part.check().unwrap();
        let prologue = &part.prologue;
        writeln!(text, "{:#?}", prologue.header).unwrap();
        let mut versions = prologue.versions();
        for transaction in &prologue.transactions {
            writeln!(text, "{transaction:?}").unwrap();
            for version in versions.by_ref().take(transaction.pages as usize) {
                writeln!(text, "  {version:?}").unwrap();
            }
            at = Replayer::new().replay_part(&part, at, transaction.tx, &mut image).unwrap_or_else(|_| {
                // Inside a frame a replay begins anew from the part's start.
                image = replayed(object, transaction.tx);
                transaction.tx
            });
            writeln!(text, "  image {}", Hasher::Plain.digest(image.bytes())).unwrap();
        }
        prologue.frames.iter().for_each(|frame| writeln!(text, "{frame:?}").unwrap());
    }
    text
}

fn replayed(object: &Bytes, until: TxId) -> MemoryImage {
    let mut image = base_image();
    let mut at = TxId::FIRST;
    let parts = parts(object).map(Result::unwrap);
    for part in parts.take_while(|part| part.prologue.header.range.first() <= until) {
        at = Replayer::new().replay_part(&part, at, until, &mut image).unwrap();
    }
    image
}

#[test]
fn segment_v1() {
    let object = Bytes::from(golden("segment-v1.seg", &segment()));
    golden("segment-v1.txt", dump_segment(&object).as_bytes());
    for at in 0..object.len() {
        for bit in 0..8 {
            let mut flipped = object.to_vec();
            flipped[at] ^= 1 << bit;
            let read = parts(&flipped.into()).try_for_each(|part| part?.check());
            assert!(read.is_err(), "byte {at} bit {bit}");
        }
    }
}

fn base() -> (Pack, Manifest) {
    let position = Position::new(TimelineId::FIRST, TxId::new(0x1a7).unwrap());
    let time = Timestamp::from_micros(1_795_219_200_000_000);
    let mut builder = BaseBuilder::new(Hasher::Plain, database(), position, time, PageSize::MIN);
    assert!(builder.chunk(&vec![0x5a; CHUNK_BYTES]).unwrap().is_none());
    assert!(builder.chunk(&vec![0xa5; CHUNK_BYTES]).unwrap().is_none());
    assert!(builder.chunk(&vec![0x5a; CHUNK_BYTES]).unwrap().is_none());
    assert!(builder.chunk(&noise(1, 2 * SIZE)).unwrap().is_none());
    let (pack, manifest) = builder.finish(1538, StateChecksum::from_raw(0x0123_4567_89ab_cdef)).unwrap();
    (pack.unwrap(), manifest)
}

#[test]
fn manifest_v1() {
    let (_, manifest) = base();
    let object = golden("manifest-v1.base", &manifest.encode().unwrap());
    let decoded = Manifest::decode(&object).unwrap();
    assert_eq!(decoded, manifest);
    golden("manifest-v1.txt", format!("{decoded:#?}\n").as_bytes());
    for at in 0..object.len() {
        for bit in 0..8 {
            let mut flipped = object.clone();
            flipped[at] ^= 1 << bit;
            assert!(Manifest::decode(&flipped).is_err(), "byte {at} bit {bit}");
        }
    }
}

fn read_pack(bytes: &[u8], manifest: &Manifest) -> Option<Vec<Vec<u8>>> {
    check_pack(bytes).ok()?;
    let chunks = manifest.chunks.iter().enumerate();
    chunks
        .map(|(index, chunk)| {
            let stored = bytes.get(chunk.offset as usize..)?.get(..chunk.len as usize)?;
            decode_chunk(&Hasher::Plain, chunk, manifest.chunk_len(index), stored).ok()
        })
        .collect()
}

#[test]
fn pack_v1() {
    let (pack, manifest) = base();
    let object = golden("pack-v1.pack", &pack.bytes);
    let chunks = read_pack(&object, &manifest).unwrap();
    let dump: String = manifest
        .chunks
        .iter()
        .zip(&chunks)
        .map(|(chunk, raw)| format!("{chunk:?} {} bytes, the first {:02x?}\n", raw.len(), &raw[..8]))
        .collect();
    golden("pack-v1.txt", dump.as_bytes());
    for at in 0..object.len() {
        for bit in 0..8 {
            let mut flipped = object.clone();
            flipped[at] ^= 1 << bit;
            assert!(read_pack(&flipped, &manifest).is_none(), "byte {at} bit {bit}");
        }
    }
}
