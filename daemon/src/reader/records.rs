//! Opening repositories, and the records of the databases in them.

use everwhen_engine::catalog::{Catalog, Cataloged};
use everwhen_engine::error::ErrorKind;
use everwhen_engine::repository::{CreateOptions, DatabaseRecord, KeySource, Repository, RepositoryError};
use everwhen_engine::store::Store;
use everwhen_engine::store::keys::record_key;
use everwhen_engine::time::Timestamp;
use everwhen_proto::v1;

use crate::config::{Config, KeyEntry};
use crate::failure::Failure;
use crate::state::StateFolder;
use crate::wire::time_out;

/// What a repository says of a database.
pub(crate) type Record = DatabaseRecord;

/// The store at an address.
pub(crate) fn store(address: &str) -> Result<Store, Failure> {
    Store::open(address).map_err(|error| Failure::of(&error))
}

/// Where the configuration and the environment say the key is. `EVERWHEN_KEY` holds the key itself.
pub(crate) fn key_source(config: &Config) -> Option<KeySource> {
    match &config.key {
        Some(KeyEntry::File(path)) => Some(KeySource::File(path.clone())),
        Some(KeyEntry::Environment(name)) => Some(KeySource::Environment(name.clone())),
        Some(KeyEntry::Command(command)) => Some(KeySource::Command(command.clone())),
        None => std::env::var_os("EVERWHEN_KEY").map(|_| KeySource::Environment("EVERWHEN_KEY".into())),
    }
}

/// Opens a repository that exists.
pub(crate) async fn open(address: &str, config: &Config) -> Result<Repository, Failure> {
    let opened = Repository::open(store(address)?, key_source(config).as_ref()).await;
    opened.map_err(|error| Failure::of(&error))
}

/// Opens a repository, made if it was not there. But not where there was one: a disk that is not mounted looks like an
/// empty folder, and a history is not begun anew by accident.
pub(crate) async fn open_or_create(
    address: &str,
    config: &Config,
    state: &StateFolder,
) -> Result<Repository, Failure> {
    if state.has_used(&url_of_store(address)?)? {
        return match Repository::open(store(address)?, key_source(config).as_ref()).await {
            Err(error @ RepositoryError::NotARepository { .. }) => Err(lost_repository(&error, state)),
            opened => opened.map_err(|error| Failure::of(&error)),
        };
    }
    let options =
        CreateOptions { encryption: key_source(config), location: String::new(), now: Timestamp::now() };
    let opened = Repository::open_or_create(store(address)?, options).await;
    opened.map_err(|error| Failure::of(&error))
}

fn lost_repository(error: &RepositoryError, state: &StateFolder) -> Failure {
    let before = format!(
        "databases were protected with the state folder {} before, and the repository is gone",
        state.path().display()
    );
    Failure::new(ErrorKind::Refused, before).caused_by(error).advise(
        "look whether its disk is mounted and the address is right; to begin a new history, remove the state folder \
         or name another one with --state",
    )
}

/// The URL that a store, as it was written, has.
pub(crate) fn url_of_store(address: &str) -> Result<String, Failure> {
    Ok(store(address)?.url().to_owned())
}

/// Nobody knows a database of this name.
pub(crate) fn no_such_database(called: &str) -> Failure {
    Failure::new(ErrorKind::NoSuchPoint, format!("there is no database '{called}' here"))
        .advise("`everwhen databases list` shows the names")
}

/// A repository being read, with the catalog of what is known of it.
#[derive(Clone)]
pub(crate) struct Records {
    /// Listed anew each time.
    pub(crate) repository: Repository,
    /// With the catalog before it.
    pub(crate) objects: Cataloged<Repository>,
}

impl Records {
    /// Uses the catalog in a state folder; one in memory if that cannot be had (the folder of another user, say).
    pub(crate) fn new(repository: Repository, state: &StateFolder) -> Result<Self, Failure> {
        let folder = state.path().join(format!("repository-{}", repository.id()));
        let made = state.make().is_ok() && std::fs::create_dir_all(&folder).is_ok();
        let on_disk = if made { Catalog::open(&folder, repository.id()).ok() } else { None };
        let catalog = on_disk.map_or_else(Catalog::in_memory, Ok).map_err(|error| Failure::of(&error))?;
        Ok(Self { objects: Cataloged::new(repository.clone(), catalog), repository })
    }

    /// The repository's URL.
    pub(crate) fn url(&self) -> &str {
        self.repository.store().url()
    }

    /// The database of this name, path or id.
    pub(crate) async fn find(&self, called: &str) -> Result<Option<Record>, Failure> {
        match self.repository.find_database(called).await {
            Ok(record) => Ok(Some(record)),
            Err(RepositoryError::NoSuchDatabase { .. }) => Ok(None),
            Err(error) => Err(Failure::of(&error)),
        }
    }

    /// The database with this id; one listing, however many databases there are.
    pub(crate) async fn with_id(&self, id: &str) -> Result<Option<Record>, Failure> {
        let Ok(id) = id.parse() else { return Ok(None) };
        self.repository.database(id).await.map_err(|error| Failure::of(&error))
    }

    /// The database, if there is exactly one.
    pub(crate) async fn only(&self) -> Result<Option<Record>, Failure> {
        let mut records = self.records().await?;
        Ok(if records.len() == 1 { records.pop() } else { None })
    }

    /// Why nothing is called so: a database that lost its record may be the one that is meant.
    pub(crate) async fn none_called(&self, called: &str) -> Failure {
        let lost = match self.repository.lost_databases(Timestamp::now()).await {
            Ok(lost) => lost,
            Err(error) => return Failure::of(&error),
        };
        let Some(id) = lost.first() else { return self.no_database(called).await };
        let missing = Failure::of(&RepositoryError::Missing { key: record_key(*id, 1) });
        let advice = format!("`everwhen verify --store {}` checks all that is left in it", self.url());
        Failure { advice: Some(advice), ..missing.while_(format!("no database is known as '{called}'")) }
    }

    async fn no_database(&self, called: &str) -> Failure {
        let known: Vec<String> = match self.records().await {
            Ok(records) => records.into_iter().map(|record| record.name).collect(),
            Err(failure) => return failure,
        };
        let advice = match known.first() {
            Some(_) => format!("`everwhen databases list --store {}` shows their paths and ids", self.url()),
            None => {
                format!("check the address; `everwhen run DB --store {}` protects one into it", self.url())
            }
        };
        Failure::of(&RepositoryError::NoSuchDatabase { wanted: called.to_owned(), known }).advise(advice)
    }

    /// All records, ordered by name. One that cannot be read is told, and does not hide the others.
    pub(crate) async fn records(&self) -> Result<Vec<Record>, Failure> {
        let found = self.repository.databases_or_errors().await.map_err(|error| Failure::of(&error))?;
        let told = found.into_iter().filter_map(|(id, record)| {
            record.inspect_err(|error| tracing::warn!("database {id}: {}", Failure::of(error).message())).ok()
        });
        Ok(told.collect())
    }

    /// All databases, ordered by name.
    pub(crate) async fn all(&self) -> Result<Vec<v1::Database>, Failure> {
        let records = self.records().await?;
        Ok(records.iter().map(|record| described(record, self.url())).collect())
    }

    /// Writes a new version of a record, with another path.
    pub(crate) async fn moved(&self, record: Record, source: String) -> Result<Record, Failure> {
        let changed = Record { source, ..record };
        self.repository.update_database(changed, Timestamp::now()).await.map_err(|error| Failure::of(&error))
    }

    /// Writes a new version of a record, with another name, path or class. What is empty stays.
    pub(crate) async fn set(&self, record: Record, to: &v1::SetDatabaseRequest) -> Result<Record, Failure> {
        let failed = |error: RepositoryError| Failure::of(&error);
        for taken in [&to.name, &to.path] {
            let asked = !taken.is_empty() && *taken != record.name && *taken != record.source;
            if asked && let Some(other) = self.find(taken).await? {
                return Err(failed(RepositoryError::NameTaken { name: taken.clone(), found: other.id }));
            }
        }
        let or = |new: &str, old: String| if new.is_empty() { old } else { new.to_owned() };
        let changed = Record {
            name: or(&to.name, record.name),
            source: or(&to.path, record.source),
            class: or(&to.class, record.class),
            ..record
        };
        self.repository.update_database(changed, Timestamp::now()).await.map_err(failed)
    }
}

/// A record as the API says it. Whether it is protected is for a daemon to say.
pub(crate) fn described(record: &Record, url: &str) -> v1::Database {
    v1::Database {
        id: record.id.to_string(),
        name: record.name.clone(),
        path: record.source.clone(),
        class: record.class.clone(),
        protected: false,
        store: url.to_owned(),
        created: Some(time_out(record.created)),
    }
}
