//! Micro-benchmarks of the pure parts: `cargo bench -p everwhen-benches --bench micro`.
#![allow(clippy::unwrap_used, reason = "a benchmark has nobody to tell")]

use divan::{Bencher, counter::BytesCount, counter::ItemsCount};
use everwhen_benches::random::Random;
use everwhen_benches::stream::{Stream, replay};
use everwhen_benches::workload::Workload;
use everwhen_engine::digest::Hasher;
use everwhen_engine::page::{PageHash, PageNo};
use everwhen_engine::segment::{Effort, Prologue};
use everwhen_engine::sqlite::wal::{HEADER_LEN, RunningChecksum, WalHeader, check_frame};

fn main() {
    divan::main();
}

const WORKLOADS: [Workload; 3] = [Workload::PointUpdate, Workload::Orders, Workload::Blobs];

fn stream(workload: Workload) -> Stream {
    let folder = tempfile::tempdir().unwrap();
    Stream::record(folder.path(), workload, workload.rows() / 20, (workload.transactions() / 20).max(2))
        .unwrap()
}

/// Parse: checksum and header of every frame, as capture does.
#[divan::bench]
fn parse_log(bencher: Bencher) {
    let stream = stream(Workload::PointUpdate);
    let header = WalHeader::parse(&stream.wal).unwrap();
    let frame = 24 + header.page_size.bytes();
    bencher.counter(BytesCount::new(stream.raw_bytes())).bench(|| {
        let mut sum: RunningChecksum = header.checksum;
        for frame in stream.wal[HEADER_LEN..].chunks_exact(frame) {
            sum = check_frame(frame, header.salts, sum, header.order).unwrap().checksum;
        }
        sum
    });
}

/// Hash: one page for the state checksum.
#[divan::bench(args = [512, 4096, 65_536])]
fn hash_page(bencher: Bencher, bytes: usize) {
    let page = Random::new(1).noise(bytes);
    bencher.counter(BytesCount::new(bytes)).bench(|| PageHash::of(PageNo::FIRST, divan::black_box(&page)));
}

/// Hash: the name of an object.
#[divan::bench(args = [4096, 262_144])]
fn name_object(bencher: Bencher, bytes: usize) {
    let object = Random::new(1).noise(bytes);
    bencher.counter(BytesCount::new(bytes)).bench(|| Hasher::Plain.digest(divan::black_box(&object)));
}

/// Encode: segments of 100 transactions, checked; page hashes and the image's upkeep are part of the time.
#[divan::bench(args = WORKLOADS, sample_count = 10)]
fn encode(bencher: Bencher, workload: Workload) {
    let stream = stream(workload);
    bencher.counter(BytesCount::new(stream.raw_bytes())).bench(|| stream.encode(100, Effort::Hot).unwrap());
}

/// Decode: the same segments replayed on the image.
#[divan::bench(args = WORKLOADS, sample_count = 10)]
fn decode(bencher: Bencher, workload: Workload) {
    let stream = stream(workload);
    let encoded = stream.encode(100, Effort::Hot).unwrap();
    bencher
        .counter(BytesCount::new(stream.raw_bytes()))
        .with_inputs(|| stream.start.clone())
        .bench_values(|mut image| replay(&encoded.objects, &mut image).unwrap());
}

/// Look-up: the tables of a segment of 1000 transactions, as a restore to a moment reads them.
#[divan::bench]
fn read_tables(bencher: Bencher) {
    let encoded = stream(Workload::PointUpdate).encode(1000, Effort::Hot).unwrap();
    let object = encoded.objects[0].clone();
    bencher.counter(ItemsCount::new(1000_u32)).bench(|| Prologue::parse(divan::black_box(&object)).unwrap());
}
