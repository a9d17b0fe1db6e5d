//! The running daemon.

pub(crate) mod api;
pub(crate) mod daemon;
mod guard;
mod home;
pub(crate) mod http;
pub(crate) mod listen;
mod metric_names;
mod metrics;
pub(crate) mod server;
