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
mod reader;
mod serve;
mod state;
mod verbs;
mod view;
mod wire;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

use cli::{Cli, Verb};
use failure::Failure;

/// The `everwhen` program.
#[must_use]
pub fn main() -> ExitCode {
    let command = Cli::command().mut_subcommand("run", cli::with_configuration);
    let cli = match Cli::from_arg_matches(&command.get_matches()) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let json = cli.verb.json();
    match perform(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprint!("{}", failure.render(json));
            failure.exit_code().into()
        }
    }
}

fn perform(cli: Cli) -> Result<(), Failure> {
    let usual = if matches!(cli.verb, Verb::Run(_)) { "info" } else { "warn" };
    logging::start(&cli.logging, usual)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::io("cannot start the runtime", &error))?;
    let done = runtime.block_on(verbs::perform(cli.verb));
    // A blocking read of a store that does not answer must not hold the process.
    runtime.shutdown_timeout(std::time::Duration::from_millis(500));
    done
}
