//! What is noted down for the daemon's next start, where none runs now. Needs no repository: there may be none yet.

use everwhen_proto::v1;

use super::{no_such_database, url_of_store};
use crate::config::{Config, DatabaseEntry, class_named};
use crate::failure::Failure;
use crate::place::Place;

/// Notes a database to be protected.
pub(crate) fn add(
    place: &Place,
    config: &Config,
    request: &v1::AddDatabaseRequest,
) -> Result<v1::Database, Failure> {
    let class = Some(request.class.as_str()).filter(|class| !class.is_empty());
    let class = class_named(class.unwrap_or(DatabaseEntry::DEFAULT_CLASS), &config.classes);
    let name = Some(request.name.clone()).filter(|name| !name.is_empty());
    let entry =
        DatabaseEntry { name, class: class.map_err(Failure::usage)?, ..DatabaseEntry::of(&request.path) };
    let mut added = place.state.added()?;
    added.retain(|other| other.path != entry.path);
    let database = described(place, &entry)?;
    added.push(entry);
    place.state.set_added(&added)?;
    Ok(database)
}

/// Takes a note back.
pub(crate) fn remove(place: &Place, called: &str) -> Result<v1::Database, Failure> {
    let mut added = place.state.added()?;
    let is_meant = |entry: &DatabaseEntry| entry.name() == called || entry.path.to_string_lossy() == called;
    let Some(at) = added.iter().position(is_meant) else {
        return Err(Failure {
            advice: Some(
                "only databases that were added with `everwhen databases add` can be removed".into(),
            ),
            ..no_such_database(called)
        });
    };
    let entry = added.remove(at);
    place.state.set_added(&added)?;
    described(place, &entry)
}

fn described(place: &Place, entry: &DatabaseEntry) -> Result<v1::Database, Failure> {
    Ok(v1::Database {
        name: entry.name(),
        path: entry.path.to_string_lossy().into_owned(),
        class: entry.class.clone(),
        store: url_of_store(&place.store)?,
        ..v1::Database::default()
    })
}
