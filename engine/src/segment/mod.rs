//! The segment format.
