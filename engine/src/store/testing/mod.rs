//! Wrappers of stores for tests and benchmarks: [`Faulty`], [`Slow`], [`Recording`]. They stack:
//!
//! ```
//! # use std::sync::Arc;
//! use everwhen_engine::store::{Store, testing::{Recording, Slow}};
//! let recording = Recording::new();
//! let store = Store::open("memory://example")?
//!     .wrap(|inner| Slow::wrap(inner, std::time::Duration::from_millis(20), 10_000_000))
//!     .wrap(|inner| recording.wrap(inner));
//! # Ok::<(), everwhen_engine::store::StoreError>(())
//! ```

mod faulty;
mod recording;
mod slow;

pub use faulty::{Fault, Faulty, Rule};
pub use recording::{Counts, Recording};
pub use slow::Slow;

/// What is asked of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Create if absent.
    Put,
    /// Read, whole or a range.
    Get,
    /// Ask for a size.
    Size,
    /// List objects or folders.
    List,
    /// Remove.
    Delete,
}
