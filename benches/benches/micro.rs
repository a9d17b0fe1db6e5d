//! Micro-benchmarks of the pure parts: `cargo bench -p everwhen-benches --bench micro`.
#![allow(clippy::unwrap_used, reason = "a benchmark has nobody to tell")]

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use everwhen_benches::micro::{ALL, Size, operation};

fn main() {
    divan::main();
}

#[divan::bench(args = ALL.map(|(name, _)| name), max_time = 2)]
fn micro(bencher: Bencher, name: &str) {
    let mut operation = operation(name).unwrap();
    match operation.size {
        Size::Bytes(bytes) => {
            bencher.counter(BytesCount::new(bytes)).bench_local(|| (operation.run)().unwrap());
        }
        Size::Items(items) => {
            bencher.counter(ItemsCount::new(items)).bench_local(|| (operation.run)().unwrap());
        }
    }
}
