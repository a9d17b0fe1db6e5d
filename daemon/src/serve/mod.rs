//! The running daemon.

mod http;
mod metric_names;
mod metrics;
pub(crate) mod signals;
pub(crate) mod status;
