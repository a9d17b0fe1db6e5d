//! A local memory of what a repository holds, so that planning needs no full listing. Deleting it loses nothing.
//!
//! It keeps the keys and sizes of segments (a refresh lists only what came after) and the transactions of segments
//! that were looked into. Claims, bases and marks are few and always read anew.
//!
//! Nothing in it is believed blindly. Every row carries a checksum and every timeline its number of rows: when one does
//! not fit, the database is listed anew. A key that is gone from the repository, or a refusal of any kind, makes
//! [`Cataloged`] forget and list before it repeats the answer. What it never forgets is how far a timeline reached:
//! when its end is not there any more, that is damage, and an earlier state is not the latest. And a restore is proven
//! against the checksum that is recorded with the transaction, wherever the plan came from.

mod cataloged;
mod file;
#[cfg(feature = "test-util")]
pub(crate) mod laws;

pub use cataloged::Cataloged;
pub use file::{Catalog, CatalogError};
