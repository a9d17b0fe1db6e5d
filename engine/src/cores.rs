//! How many threads can work at the same time.

/// Cores this process may use; `or` where the system does not say.
pub(crate) fn cores(or: usize) -> usize {
    std::thread::available_parallelism().map_or(or, std::num::NonZero::get)
}
