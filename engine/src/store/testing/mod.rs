//! Wrappers of stores for tests.
