//! What each command does.

mod databases;
mod demo;
mod history;
mod key;
mod points;
mod reach;
mod restore;
mod run;
mod status;
mod times;
mod verify;

use crate::cli::Verb;
use crate::failure::Failure;

/// Does it.
pub(crate) async fn perform(verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Run(verb) => run::run(verb).await,
        Verb::Status(verb) => status::status(verb).await,
        Verb::History(verb) => history::history(verb).await,
        Verb::Points(verb) => points::points(verb).await,
        Verb::Restore(verb) => restore::restore(verb).await,
        Verb::Verify(verb) => verify::verify(verb).await,
        Verb::Demo(verb) => demo::demo(verb).await,
        Verb::Databases(verb) => databases::databases(verb).await,
        Verb::Key(verb) => key::key(verb).await,
    }
}
