//! `everwhen databases`.

use std::path::Path;

use everwhen_proto::v1;

use serde::Serialize;

use super::reach::{Prefer, reach};
use crate::answers::Answers;
use crate::cli::{self, DatabasesVerb};
use crate::client::{self, Client};
use crate::config::Config;
use crate::failure::Failure;
use crate::naming::{named, spelt};
use crate::output;
use crate::place::{Place, Told};
use crate::reader::later;
use crate::state::StateFolder;
use crate::view::{DatabaseView, text};

pub(crate) async fn databases(verb: cli::Databases) -> Result<(), Failure> {
    match verb.what {
        DatabasesVerb::List { reach: by, json } => {
            let found = reach(&by, None, Prefer::Daemon).await?;
            let list = found.answers.databases().await?.databases;
            let list: Vec<DatabaseView> = list.into_iter().map(DatabaseView::from).collect();
            let view = DatabasesView { databases: list };
            output::report(json.json, &view, || text::databases(&view.databases))
        }
        DatabasesVerb::Add { path, name, class, reach: by, json } => {
            let path = spelt(&path);
            let request = v1::AddDatabaseRequest { path, name: name.unwrap_or_default(), class };
            let database = match daemon_or_place(&by).await? {
                Found::Daemon(daemon) => daemon.add_database(request).await?,
                Found::Place(place, config) => later::add(&place, &config, &request)?,
            };
            changed(json, "added", database)
        }
        DatabasesVerb::Remove { database, reach: by, json } => {
            let request = v1::RemoveDatabaseRequest { database: named(&database) };
            let database = match daemon_or_place(&by).await? {
                Found::Daemon(daemon) => daemon.remove_database(request).await?,
                Found::Place(place, _) => later::remove(&place, &request.database)?,
            };
            changed(json, "removed", database)
        }
        DatabasesVerb::Set { database, name, class, path, reach: by, json } => {
            let found = reach(&by, Some(&database), Prefer::Daemon).await?;
            let request = v1::SetDatabaseRequest {
                database: found.database.unwrap_or_default(),
                name: name.unwrap_or_default(),
                class: class.unwrap_or_default(),
                path: path.map(|path| spelt(&path)).unwrap_or_default(),
            };
            changed(json, "changed", found.answers.set_database(request).await?)
        }
    }
}

/// `databases list --json`.
#[derive(Serialize)]
struct DatabasesView {
    databases: Vec<DatabaseView>,
}

/// Who keeps the list of protected databases.
enum Found {
    /// A running daemon.
    Daemon(Box<Client>),
    /// The state folder that a daemon will read.
    Place(Place, Box<Config>),
}

/// The daemon to change, or the state folder it will start from.
async fn daemon_or_place(by: &cli::Reach) -> Result<Found, Failure> {
    if let Some(address) = by.addr.as_deref().filter(|address| !address.is_empty()) {
        return Ok(Found::Daemon(Box::new(client::connect(address).await?)));
    }
    let told = Told::by(&by.place)?;
    let place = told.store.as_deref().map(|store| told.place_of_store(store));
    let usual = || told.state.clone().map_or_else(StateFolder::usual, StateFolder::at);
    let state = place.as_ref().map_or_else(usual, |place| place.state.clone());
    match (client::local(&state).await, place) {
        (Some(daemon), _) => Ok(Found::Daemon(Box::new(daemon))),
        (None, Some(place)) => Ok(Found::Place(place, Box::new(told.config))),
        (None, None) => {
            Err(Failure::usage("which daemon is not said, and none runs on the usual state folder")
                .advise("ask one with --addr, or name the repository with --store or --config"))
        }
    }
}

fn changed(json: cli::Json, what: &str, database: v1::Database) -> Result<(), Failure> {
    let view = DatabaseView::from(database);
    output::report(json.json, &view, || {
        let later = if view.protected { "" } else { " (not protected now)" };
        format!("{what} {} ({}, {}){later}\n", view.name, view.class, Path::new(&view.path).display())
    })
}
