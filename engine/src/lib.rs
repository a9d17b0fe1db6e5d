//! The engine of Everwhen: captures every commit of a database, keeps it in an object store, gives any of them back.
//!
//! Dependencies point one way, from the drivers ([`capture`], `protect`, `restore`) to the pure core ([`segment`],
//! [`history`], [`plan`], [`store::keys`]).

pub mod capture;
pub mod error;
pub mod history;
pub mod ids;
pub mod page;
pub mod plan;
pub mod segment;
pub mod store;
pub mod time;
pub mod transaction;
