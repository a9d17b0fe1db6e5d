//! What the end-to-end tests share: a world with one database, the real program beside it, and an oracle.

mod oracle;
mod world;

pub use oracle::{Oracle, image_of, logical_dump};
pub use world::{Answer, Daemon, World};

pub mod s3;
