//! Runs the laws of all decoders on the kept corpus of the fuzz targets, on valid inputs made anew, on golden files, and
//! on all of these cut, altered and joined; and on drawn bytes. Here memory is counted.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use everwhen_engine::laws::memory::Counting;
use everwhen_engine::laws::{self, Law};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

#[global_allocator]
static COUNTING: Counting = Counting;

fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn all() -> impl Iterator<Item = Law> {
    laws::ALL.into_iter().chain(everwhen::laws::ALL)
}

/// Every file in a folder.
fn files(folder: &Path) -> Vec<Vec<u8>> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries.map(|entry| std::fs::read(entry.unwrap().path()).unwrap()).collect()
}

fn inputs(law: &Law) -> Vec<Vec<u8>> {
    let golden = match law.name {
        "base_manifest" => "manifest-v1.base",
        "pack_chunk" => "pack-v1.pack",
        "segment_prologue" | "segment_replay" => "segment-v1.seg",
        _ => "",
    };
    let mut inputs = files(&here().join("fuzz/corpus").join(law.name));
    inputs.extend((law.seeds)());
    inputs.extend(std::fs::read(here().join("golden").join(golden)));
    inputs.push(Vec::new());
    inputs
}

/// Each input, cut and altered at up to `places` places.
fn near(law: &Law, inputs: &[Vec<u8>], places: usize) {
    for input in inputs {
        (law.check)(input);
        for at in (0..input.len()).step_by(input.len().div_ceil(places).max(1)) {
            (law.check)(&input[..at]);
            let mut altered = input.clone();
            altered[at] ^= 1 << (at % 8);
            (law.check)(&altered);
            altered[at] = 0xff;
            (law.check)(&altered);
        }
    }
}

/// Drawn bytes; and the front of one input, drawn bytes, the end of another.
fn drawn(law: &Law, inputs: &[Vec<u8>], cases: u32) {
    let index = || any::<prop::sample::Index>();
    let bytes = || prop::collection::vec(any::<u8>(), 0..80);
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let drawn = (bytes(), index(), index(), index(), index());
    let held = runner.run(&drawn, |(bytes, one, other, front, end)| {
        (law.check)(&bytes);
        let (one, other) = (one.get(inputs), other.get(inputs));
        let (front, end) = (front.index(one.len() + 1), end.index(other.len() + 1));
        (law.check)(&[&one[..front], &bytes, &other[end..]].concat());
        Ok(())
    });
    held.unwrap();
}

/// `effort`: how many altered and drawn inputs, about.
fn hold(name: &str, effort: usize) {
    let law = all().find(|law| law.name == name).unwrap();
    let inputs = inputs(&law);
    near(&law, &inputs, (effort / inputs.len()).max(10));
    drawn(&law, &inputs, effort as u32 / 8);
}

macro_rules! laws {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            // Each input of the catalog is a database made and opened.
            hold(stringify!($name), if stringify!($name) == "catalog" { 200 } else { 3_000 });
        })*
        const NAMES: &[&str] = &[$(stringify!($name)),*];
    };
}

laws! {
    base_manifest catalog configuration envelope journal names pack_chunk records requests segment_prologue
    segment_replay sqlite_files times
}

#[test]
fn every_law_is_run_here_and_has_a_fuzz_target() {
    let named: BTreeSet<String> = all().map(|law| law.name.to_owned()).collect();
    assert_eq!(named, NAMES.iter().map(|name| (*name).to_owned()).collect());
    let targets = std::fs::read_dir(here().join("fuzz/fuzz_targets")).unwrap();
    let targets =
        targets.map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned());
    assert_eq!(named, targets.collect());
}

/// Not a test: with `EVERWHEN_SEEDS=FOLDER` writes the valid inputs of every law into a folder of its name.
#[test]
fn seeds_are_written_when_asked() {
    let Some(folder) = std::env::var_os("EVERWHEN_SEEDS").map(PathBuf::from) else { return };
    for law in all() {
        let folder = folder.join(law.name);
        std::fs::create_dir_all(&folder).unwrap();
        for (index, input) in inputs(&law).iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{index}")), input).unwrap();
        }
    }
}
