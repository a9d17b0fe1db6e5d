//! Everwhen's daemon and command line.
//!
//! [`main`] parses, builds, calls one verb, prints the error chain and the advice. The parts, of which each uses only
//! what comes after it: `verbs` (what commands do), `serve` (the running daemon), `reader` (answers from a repository),
//! `client` (answers from a daemon), `naming` and `place` (what a database is called, where its repository is), `cli`
//! (the shape of the command line), `state` (the folder), `config` (the file), `rpc` (errors in gRPC), `failure` (errors
//! at the border), `view` (reports as JSON and text), `wire` (between the API's words and the engine's).

mod answers;
mod cli;
mod client;
mod config;
mod failure;
#[cfg(feature = "test-util")]
#[doc(hidden)]
pub mod laws;
mod logging;
mod memory;
mod naming;
mod output;
mod place;
mod reader;
mod rpc;
mod serve;
mod signals;
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
    let cli = match command.try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => return told_by_parser(&error),
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

/// Help and version are answers; anything else is a usage error, as JSON when that was asked for.
fn told_by_parser(error: &clap::Error) -> ExitCode {
    if error.use_stderr() && std::env::args_os().any(|word| word == "--json") {
        let text = error.render().to_string();
        let text = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        let failure = Failure::usage(text).advise("see `everwhen --help`, or --help of the command");
        eprint!("{}", failure.render(true));
        return failure.exit_code().into();
    }
    let _ = error.print();
    u8::try_from(error.exit_code()).unwrap_or(2).into()
}

fn perform(cli: Cli) -> Result<(), Failure> {
    let usual = if matches!(cli.verb, Verb::Run(_)) { "info" } else { "warn" };
    logging::start(&cli.logging, usual)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::io("cannot start the runtime", &error))?;
    let done = runtime.block_on(async {
        signals::outlive_size_limits();
        verbs::perform(cli.verb).await
    });
    // A blocking read of a store that does not answer must not hold the process.
    runtime.shutdown_timeout(std::time::Duration::from_millis(500));
    done
}
