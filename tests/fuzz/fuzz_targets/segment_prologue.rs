//! Any bytes are a prologue, or an error.
#![no_main]

#[path = "../../../engine/tests/laws/mod.rs"]
#[allow(dead_code, reason = "one law a target")]
mod laws;

libfuzzer_sys::fuzz_target!(|input: &[u8]| laws::segment_prologue(input));
