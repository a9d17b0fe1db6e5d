//! How fast a core encodes, checks and replays a log of small transactions, and how small it gets.
//!
//! ```text
//! cargo run --release -p everwhen-engine --example segment_speed
//! ```
//! Synthetic: an image of rows that compress about as text does; each transaction edits one row, its index entry and a
//! page that all of them share.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement")]

use std::time::Instant;

use everwhen_engine::ids::{DatabaseId, Digest, TimelineId, TxId};
use everwhen_engine::page::{PageNo, PageSize, StateChecksum};
use everwhen_engine::segment::{Effort, Encoder, EncoderParams, MemoryImage, PageStore, Replayer, parts};
use everwhen_engine::time::Timestamp;
use everwhen_engine::transaction::{Transaction, TxFlags};

const PAGES: u32 = 16_384;
const TRANSACTIONS: u64 = 20_000;
const PER_SEGMENT: u64 = 100;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

fn rows(random: &mut Random, size: usize) -> Vec<u8> {
    let mut page = Vec::with_capacity(size + 64);
    while page.len() < size {
        let (id, value) = (random.next(), random.next());
        page.extend(format!("customer {:08} balance {id:016x} note {:x};", id % 100_000_000, value).bytes());
    }
    page.truncate(size);
    page
}

fn main() {
    let page_size = PageSize::new(4096).unwrap();
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let bytes = (0..PAGES).flat_map(|_| rows(&mut random, page_size.bytes())).collect();
    let start = MemoryImage::from_bytes(page_size, bytes).unwrap();
    for effort in [Effort::Hot, Effort::Thorough] {
        measure(&start, page_size, effort);
    }
}

fn measure(start: &MemoryImage, page_size: PageSize, effort: Effort) {
    let mut random = Random(42);
    let mut image = start.clone();
    let (mut objects, mut encode_s, mut images) = (Vec::new(), 0.0, 0_u64);
    let mut buffer = vec![0; page_size.bytes()];
    for first in (2..TRANSACTIONS + 2).step_by(PER_SEGMENT as usize) {
        let mut encoder = Encoder::new(
            EncoderParams {
                database: DatabaseId::from_bytes([1; 8]),
                timeline: TimelineId::FIRST,
                page_size,
                first: TxId::new(first).unwrap(),
                image_pages: PAGES,
                chain_before: Digest::from_bytes([0; 32]),
                effort,
            },
            Vec::new(),
        );
        for tx in first..first + PER_SEGMENT {
            let row = (random.next() % u64::from(PAGES / 2)) as u32 + 1;
            let index = (random.next() % u64::from(PAGES / 2)) as u32 + PAGES / 2;
            for number in [row, index, PAGES] {
                let page = PageNo::new(number).unwrap();
                let previous = image.page(page).unwrap().to_vec();
                buffer.copy_from_slice(&previous);
                let at = (random.next() % 4000) as usize;
                buffer[at..at + 8].copy_from_slice(&random.next().to_le_bytes());
                buffer[24..28].copy_from_slice(&(tx as u32).to_be_bytes());
                let clock = Instant::now();
                let previous = encoder.wants_previous(page).then_some(&previous[..]);
                encoder.page(page, &buffer, previous).unwrap();
                encode_s += clock.elapsed().as_secs_f64();
                image.write(page, &buffer).unwrap();
                images += 1;
            }
            let time = Timestamp::from_micros(1_795_219_200_000_000 + tx as i64 * 10_000);
            let clock = Instant::now();
            let transaction = Transaction {
                tx: TxId::new(tx).unwrap(),
                time,
                not_before: time,
                flags: TxFlags::NONE,
                pages: 3,
                image_pages: PAGES,
                state: StateChecksum::from_raw(random.next()),
            };
            encoder.commit(&transaction).unwrap();
            encode_s += clock.elapsed().as_secs_f64();
        }
        let clock = Instant::now();
        let finished = encoder.finish().unwrap();
        encode_s += clock.elapsed().as_secs_f64();
        objects.push([finished.prologue, finished.frames].concat().into());
    }
    let raw = images as f64 * (page_size.bytes() + 24) as f64;
    let stored: usize = objects.iter().map(|object: &bytes::Bytes| object.len()).sum();

    let mut replayer = Replayer::new();
    let (mut replayed, mut at) = (start.clone(), TxId::FIRST);
    let clock = Instant::now();
    for object in &objects {
        for part in parts(object) {
            let part = part.unwrap();
            at = replayer.replay_part(&part, at, part.prologue.header.range.last(), &mut replayed).unwrap();
        }
    }
    let replay_s = clock.elapsed().as_secs_f64();
    assert!(replayed == image);
    println!(
        "{effort:?}: {:.2} % of raw, {:.0} bytes/tx, encode and check {:.0} MB/s, replay {:.0} MB/s, {:.1} us/tx",
        stored as f64 * 100.0 / raw,
        stored as f64 / TRANSACTIONS as f64,
        raw / encode_s / 1e6,
        raw / replay_s / 1e6,
        replay_s * 1e6 / TRANSACTIONS as f64,
    );
}
