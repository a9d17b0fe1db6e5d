//! What the end-to-end tests share: a world with one database, the real program beside it, and an oracle.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "what a test needs and does not get fails the test"
)]

mod oracle;
mod world;

pub use oracle::{Oracle, image_of, logical_dump};
pub use world::{Answer, Daemon, World};

pub mod cloud;
