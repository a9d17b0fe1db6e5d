//! See `everwhen::laws::requests`.
#![no_main]

#[global_allocator]
static COUNTING: everwhen_engine::laws::memory::Counting = everwhen_engine::laws::memory::Counting;

libfuzzer_sys::fuzz_target!(|input: &[u8]| everwhen::laws::requests(input));
