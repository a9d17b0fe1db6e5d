//! The `everwhen` program.
fn main() {}
