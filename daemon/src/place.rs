//! Finds the repository and the state folder a command means, from what it was told.
//!
//! In this order: `--store`, `EVERWHEN_STORE`; the configuration's `store`; the folder `DB.everwhen` beside the
//! database. With a path and nothing else the repository is `DB.everwhen` and the state is `DB.everwhen/local`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use everwhen_engine::error::ErrorKind;
use everwhen_engine::store::keys::MARKER;

use crate::cli;
use crate::config::{Config, KeyEntry};
use crate::failure::Failure;
use crate::state::StateFolder;

/// A repository, by its URL, and the state that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// URL or path of the repository.
    pub(crate) store: String,
    /// Local state.
    pub(crate) state: StateFolder,
}

/// What a command was told about places: command line and environment, completed by the configuration.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) store: Option<String>,
    pub(crate) state: Option<PathBuf>,
    pub(crate) config: Config,
}

impl Told {
    /// Loads the configuration, if one is named, and lets the command line win over it.
    pub(crate) fn by(place: &cli::Place) -> Result<Self, Failure> {
        let mut config = match &place.config {
            Some(path) => Config::load(path).map_err(|error| Failure::of(&error))?,
            None => Config::default(),
        };
        if let Some(file) = &place.key_file {
            config.key = Some(KeyEntry::File(file.clone()));
        }
        let store = place.store.clone().filter(|store| !store.is_empty()).or_else(|| config.store.clone());
        let state = place.state.clone().or_else(|| config.state.clone());
        Ok(Self { store, state, config })
    }

    /// The place for a database that shall be protected: its own folder unless a store is named.
    pub(crate) fn place_to_protect(&self, database: &Path) -> Place {
        match &self.store {
            Some(store) => self.place_of_store(store),
            None => self.place_of_store(&own_folder(database).to_string_lossy()),
        }
    }

    /// The place that holds the history of a database (a path, name or id; or the folder itself).
    pub(crate) fn place_to_read(&self, database: Option<&str>) -> Result<Place, Failure> {
        if let Some(store) = &self.store {
            return Ok(self.place_of_store(store));
        }
        let Some(database) = database else { return Err(no_place()) };
        let path = Path::new(database);
        let folder =
            [own_folder(path), path.to_owned()].into_iter().find(|folder| folder.join(MARKER).is_file());
        match folder {
            Some(folder) => Ok(self.place_of_store(&folder.to_string_lossy())),
            // A path has its repository beside it unless another one is named: it went away, or never was.
            None if database.contains('/') => Err(gone(&own_folder(path), database)),
            None => Err(no_place()),
        }
    }

    /// The place of a store: the state is where it was told to be, in the store's own folder if it has one, or at the
    /// usual place.
    pub(crate) fn place_of_store(&self, store: &str) -> Place {
        let own = own_state(store);
        let state = self.state.clone().map(StateFolder::at).or(own).unwrap_or_else(StateFolder::usual);
        Place { store: store.to_owned(), state }
    }
}

/// `app.db` → `app.db.everwhen`.
pub(crate) fn own_folder(database: &Path) -> PathBuf {
    let mut name = OsString::from(database.as_os_str());
    name.push(".everwhen");
    name.into()
}

/// A repository in a folder named `….everwhen` keeps its state in itself.
fn own_state(store: &str) -> Option<StateFolder> {
    let path = store.strip_prefix("file://").unwrap_or(store);
    let own = !path.contains("://") && path.trim_end_matches('/').ends_with(".everwhen");
    own.then(|| StateFolder::at(Path::new(path).join("local")))
}

fn gone(folder: &Path, database: &str) -> Failure {
    let hidden = std::fs::metadata(folder.join(MARKER)).map_err(|error| error.kind()).err();
    if hidden == Some(std::io::ErrorKind::PermissionDenied) {
        let message = format!("this user may not read the history of '{database}' in {}", folder.display());
        return Failure::new(ErrorKind::StoreUnreachable, message)
            .advise("run it as the user the daemon runs as, or ask the daemon with --addr");
    }
    let message =
        format!("no history of '{database}' is beside it: there is no repository in {}", folder.display());
    Failure::new(ErrorKind::StoreUnreachable, message).advise(
        "if the folder was moved, bring it back or name it with --store; if the history is elsewhere, give --store URL, \
         set EVERWHEN_STORE, give --config FILE, or ask a daemon with --addr; to begin one, `everwhen run DB`",
    )
}

fn no_place() -> Failure {
    Failure::usage("which repository is not said").advise(
        "give the database's path if it has a DB.everwhen folder, or --store URL, or set EVERWHEN_STORE, \
         or --config FILE, or ask a daemon with --addr",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(store: Option<&str>, state: Option<&str>) -> Told {
        Told { store: store.map(Into::into), state: state.map(Into::into), config: Config::default() }
    }

    #[test]
    fn a_path_and_nothing_else_has_a_folder_of_its_own() {
        let place = told(None, None).place_to_protect(Path::new("/srv/app.db"));
        assert_eq!(place.store, "/srv/app.db.everwhen");
        assert_eq!(place.state.path(), Path::new("/srv/app.db.everwhen/local"));
    }

    #[test]
    fn readers_find_that_folder() {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("app.db");
        let name = database.to_str().unwrap();
        let gone = told(None, None).place_to_read(Some(name)).unwrap_err();
        assert!(gone.exit_code() == 6 && gone.advice.is_some(), "{gone:?}");
        assert_eq!(told(None, None).place_to_read(Some("app")).unwrap_err().exit_code(), 2);
        std::fs::create_dir(own_folder(&database)).unwrap();
        std::fs::write(own_folder(&database).join(MARKER), "").unwrap();
        let place = told(None, None).place_to_read(Some(name)).unwrap();
        assert_eq!(place, told(None, None).place_to_protect(&database));
        let by_folder = told(None, None).place_to_read(own_folder(&database).to_str()).unwrap();
        assert_eq!(by_folder, place);
        let by_store = told(Some(&place.store), None).place_to_read(Some("app")).unwrap();
        assert_eq!(by_store, place);
    }

    #[test]
    fn what_is_told_wins() {
        let place = told(Some("s3://b/p"), Some("/s")).place_to_protect(Path::new("/srv/app.db"));
        assert_eq!((place.store.as_str(), place.state.path()), ("s3://b/p", Path::new("/s")));
    }
}
