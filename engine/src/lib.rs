//! The engine of Everwhen: captures every commit of a database, keeps it in an object store, gives any of them back.
//!
//! Dependencies point one way, from the drivers ([`capture`], [`protect`], [`restore`]) to the pure core ([`segment`],
//! [`base`], [`history`], [`plan`], [`store::keys`]).

pub mod base;
pub mod capture;
pub mod catalog;
mod compress;
mod cores;
pub mod digest;
mod disk;
pub mod error;
pub mod failpoint;
pub mod history;
pub mod ids;
#[cfg(feature = "test-util")]
pub mod laws;
pub mod page;
pub mod plan;
pub mod protect;
pub mod random;
pub mod repository;
pub mod restore;
pub mod segment;
pub mod sqlite;
pub mod store;
pub mod time;
pub mod transaction;
pub mod verify;
mod wire;
