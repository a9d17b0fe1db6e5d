//! Sources: the seam, and the capture of SQLite databases.

pub mod sink;
pub mod sqlite;
mod sqlite_ffi;
pub mod watch;
