//! What the end-to-end tests share: a world with one database, the real program beside it, and an oracle.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "what a test needs and does not get fails the test"
)]

mod meddler;
mod oracle;
mod states;
mod world;

pub use meddler::Meddler;
pub use oracle::{Oracle, image_of, logical_dump};
pub use states::States;
pub use world::{Answer, Daemon, World};

pub mod cloud;
