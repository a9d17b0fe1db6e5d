//! Finds who answers a reading command: the daemon it was told to ask, the one running here, or the repository itself.

use std::sync::Arc;

use crate::answers::Answers;
use crate::cli;
use crate::client::{self, Client};
use crate::failure::Failure;
use crate::naming::{is_called, named};
use crate::place::Told;
use crate::reader::Reader;
use crate::state::StateFolder;

/// Who shall answer when a daemon runs here and the repository can be read too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Prefer {
    /// The daemon: it knows what is not in the repository yet.
    Daemon,
    /// The repository, with the daemon's word on how far it covers the time. The work is done in this process, with
    /// this user's permissions.
    Repository,
}

/// Who answers, and how they call the database.
pub(crate) struct Found {
    /// Who answers.
    pub(crate) answers: Arc<dyn Answers>,
    /// The database in their words; `None` when none was named.
    pub(crate) database: Option<String>,
    /// A daemon does the work, with its own disk and permissions.
    pub(crate) by_daemon: bool,
}

/// Finds who answers for a database, or for all.
pub(crate) async fn reach(by: &cli::Reach, database: Option<&str>, prefer: Prefer) -> Result<Found, Failure> {
    let named = database.map(named);
    if let Some(address) = by.addr.as_deref().filter(|address| !address.is_empty()) {
        let answers = Arc::new(client::connect(address).await?);
        return Ok(Found { answers, database: named, by_daemon: true });
    }
    let told = Told::by(&by.place)?;
    let place = match told.place_to_read(named.as_deref()) {
        Ok(place) => place,
        Err(no_place) => {
            let state = told.state.clone().map_or_else(StateFolder::usual, StateFolder::at);
            let answers = client::local(&state).await.ok_or(no_place)?;
            return Ok(Found { answers: Arc::new(answers), database: named, by_daemon: true });
        }
    };
    let daemon = client::local(&place.state).await;
    if prefer == Prefer::Daemon
        && let Some(daemon) = &daemon
        && serves(daemon, &place.store, named.as_deref()).await
    {
        return Ok(Found { answers: Arc::new(daemon.clone()), database: named, by_daemon: true });
    }
    let reader = Reader::open(&place, &told.config, daemon).await?;
    let database = reader.name_of(named.as_deref()).await?;
    Ok(Found { answers: Arc::new(reader), database, by_daemon: false })
}

/// Whether a daemon has this repository (and the database, if one is named).
async fn serves(daemon: &Client, store: &str, database: Option<&str>) -> bool {
    let Ok(store) = crate::reader::url_of_store(store) else { return false };
    let Ok(known) = daemon.databases().await else { return false };
    let here = known.databases.iter().filter(|db| db.store == store);
    let mut here = here.peekable();
    match database {
        None => here.peek().is_some(),
        Some(name) => here.any(|db| is_called(db, name)),
    }
}
