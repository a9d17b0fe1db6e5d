//! Any bytes are a manifest that survives a round trip, or an error.
#![no_main]

#[path = "../../../engine/tests/laws/mod.rs"]
#[allow(dead_code, reason = "one law a target")]
mod laws;

libfuzzer_sys::fuzz_target!(|input: &[u8]| laws::base_manifest(input));
