//! Runs the laws of the decoders on the kept corpus of the fuzz targets, and on every golden file cut and altered.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test")]

use std::path::{Path, PathBuf};

mod laws;

fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests")
}

fn run(target: &str, golden: &str, law: fn(&[u8])) {
    let corpus = tests().join("fuzz/corpus").join(target);
    let mut inputs: Vec<Vec<u8>> =
        std::fs::read_dir(corpus).unwrap().map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect();
    assert!(!inputs.is_empty(), "no corpus for {target}");
    inputs.push(std::fs::read(tests().join("golden").join(golden)).unwrap());
    for input in inputs {
        law(&input);
        for at in 0..input.len().min(600) {
            law(&input[..at]);
            let mut altered = input.clone();
            altered[at] ^= 1 << (at % 8);
            law(&altered);
            altered[at] = 0xff;
            law(&altered);
        }
    }
}

#[test]
fn segment_prologue() {
    run("segment_prologue", "segment-v1.seg", laws::segment_prologue);
}

#[test]
fn segment_replay() {
    run("segment_replay", "segment-v1.seg", laws::segment_replay);
}

#[test]
fn base_manifest() {
    run("base_manifest", "manifest-v1.base", laws::base_manifest);
}

#[test]
fn pack_chunk() {
    run("pack_chunk", "pack-v1.pack", laws::pack_chunk);
}
