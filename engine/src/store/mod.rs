//! The repository's object store.

mod body;
pub mod keys;

pub use body::Body;
