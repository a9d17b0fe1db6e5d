//! What Everwhen costs and how fast it is, beside its peers and the machine's limits: one file a question.
//!
//! A question ([`questions`]) takes a [`world::World`] (where to work, how much, which programs) and gives a
//! [`report::Answer`]. Nothing here asserts a time; results are checked for being right all the same.

/// The clouds of the tests. Their crate is no dependency: it would switch failure points on in what is measured.
#[allow(clippy::unwrap_used, reason = "a server of tests")]
#[path = "../../tests/src/cloud/mod.rs"]
pub mod cloud;
pub mod daemon;
pub mod database;
pub mod lag;
pub mod measure;
pub mod micro;
pub mod plot;
pub mod prices;
pub mod process;
pub mod protected;
pub mod prototype;
pub mod questions;
pub mod random;
pub mod report;
pub mod rest;
pub mod stream;
pub mod workload;
pub mod world;

/// Anything may fail here, and then the run ends with the reason.
pub type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;
