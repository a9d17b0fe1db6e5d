//! Files in `tests/golden`, for what only this module can make with a salt of its own.

use std::path::Path;

/// The kept file, which must be what is made now. As in `tests/golden.rs`: a file there is never edited, and
/// `EVERWHEN_GOLDEN=write` makes those that are missing.
pub(super) fn golden(name: &str, made: &[u8]) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name);
    if !path.exists() && std::env::var("EVERWHEN_GOLDEN").is_ok_and(|mode| mode == "write") {
        std::fs::write(&path, made).unwrap();
    }
    let kept = std::fs::read(&path).unwrap();
    assert!(kept == made, "{name} is not what is made now");
    kept
}
