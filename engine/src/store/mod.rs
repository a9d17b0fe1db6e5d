//! The repository's object store.

pub mod keys;
