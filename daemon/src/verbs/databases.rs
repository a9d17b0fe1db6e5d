//! `everwhen databases`.

use std::path::Path;

use everwhen_proto::v1;

use super::reach::{Prefer, reach, spelt};
use crate::cli::{self, DatabasesVerb};
use crate::failure::Failure;
use crate::output;
use crate::view::{DatabaseView, text};

pub(crate) async fn databases(verb: cli::Databases) -> Result<(), Failure> {
    match verb.what {
        DatabasesVerb::List { reach: by, json } => {
            let found = reach(&by, None, Prefer::Daemon).await?;
            let list = found.answers.databases().await?.databases;
            let list: Vec<DatabaseView> = list.into_iter().map(DatabaseView::from).collect();
            let value = serde_json::json!({ "databases": list });
            output::report(json.json, &value, || text::databases(&list))
        }
        DatabasesVerb::Add { path, name, class, reach: by, json } => {
            let path = spelt(&path);
            let found = reach(&by, Some(&path), Prefer::Daemon).await?;
            let request = v1::AddDatabaseRequest { path, name: name.unwrap_or_default(), class };
            changed(json, "added", found.answers.add_database(request).await?)
        }
        DatabasesVerb::Remove { database, reach: by, json } => {
            let found = reach(&by, Some(&database), Prefer::Daemon).await?;
            let request = v1::RemoveDatabaseRequest { database: found.database.unwrap_or_default() };
            changed(json, "removed", found.answers.remove_database(request).await?)
        }
        DatabasesVerb::Set { database, name, class, reach: by, json } => {
            let found = reach(&by, Some(&database), Prefer::Daemon).await?;
            let request = v1::SetDatabaseRequest {
                database: found.database.unwrap_or_default(),
                name: name.unwrap_or_default(),
                class: class.unwrap_or_default(),
            };
            changed(json, "changed", found.answers.set_database(request).await?)
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
