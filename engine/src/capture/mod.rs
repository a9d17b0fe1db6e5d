//! Sources: the seam, and the capture of SQLite databases.

pub mod sink;
