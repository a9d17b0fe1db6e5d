//! Bases: full images of a database, as a manifest over packed chunks. Pure.
