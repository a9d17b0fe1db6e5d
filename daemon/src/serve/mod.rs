//! The running daemon.

pub(crate) mod api;
mod http;
pub(crate) mod listen;
mod metric_names;
mod metrics;
pub(crate) mod server;
pub(crate) mod signals;
pub(crate) mod status;
