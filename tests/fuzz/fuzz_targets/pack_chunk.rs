//! Any bytes are the chunk that was named, or an error.
#![no_main]

#[path = "../../../engine/tests/laws/mod.rs"]
#[allow(dead_code, reason = "one law a target")]
mod laws;

libfuzzer_sys::fuzz_target!(|input: &[u8]| laws::pack_chunk(input));
