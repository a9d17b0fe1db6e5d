//! What Everwhen costs and how fast it is, beside its peers and the machine's limits: one file a question.
//!
//! A question ([`questions`]) takes a [`world::World`] (where to work, how much, which programs) and gives a
//! [`report::Answer`]. Nothing here asserts a time; results are checked for being right all the same.

pub mod daemon;
pub mod database;
pub mod measure;
pub mod plot;
pub mod process;
pub mod protected;
pub mod questions;
pub mod random;
pub mod report;
pub mod stream;
pub mod workload;
pub mod world;

/// Anything may fail here, and then the run ends with the reason.
pub type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;
