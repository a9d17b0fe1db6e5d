//! Opening repositories, and the records of the databases in them.

use everwhen_engine::error::ErrorKind;
use everwhen_engine::repository::{DatabaseRecord, Repository};
use everwhen_proto::v1;

use crate::config::Config;
use crate::failure::Failure;

/// What a repository says of a database.
pub(crate) type Record = DatabaseRecord;

/// Opens a repository that exists.
pub(crate) async fn open(store: &str, _config: &Config) -> Result<Repository, Failure> {
    Ok(Repository::open(std::path::Path::new(store)))
}

/// Opens a repository, made if it was not there.
pub(crate) async fn open_or_create(store: &str, config: &Config) -> Result<Repository, Failure> {
    let _ = std::fs::create_dir_all(store);
    let _ = std::fs::write(std::path::Path::new(store).join("everwhen"), "x");
    open(store, config).await
}

/// Its id.
pub(crate) fn id(_repository: &Repository) -> String {
    "interim".into()
}

/// Its URL, without credentials.
pub(crate) fn url(_repository: &Repository) -> String {
    "file:///interim".into()
}

/// The URL that a store, as it was written, has.
pub(crate) fn url_of_store(_store: &str) -> Result<String, Failure> {
    Ok("file:///interim".into())
}

/// Nobody knows a database of this name.
pub(crate) fn no_such_database(called: &str) -> Failure {
    Failure::new(ErrorKind::NoSuchPoint, format!("there is no database '{called}' here"))
        .advise("`everwhen databases list` shows the names")
}

/// The records of a repository.
#[derive(Clone)]
pub(crate) struct Records {
    pub(crate) repository: Repository,
}

impl Records {
    pub(crate) fn new(repository: Repository) -> Self {
        Self { repository }
    }

    /// The database of this name, path or id.
    pub(crate) async fn find(&self, called: &str) -> Result<Option<Record>, Failure> {
        let mut records = self.repository.databases().await.map_err(|error| Failure::of(&error))?;
        let is_called = |record: &Record| {
            record.name == called || record.source == called || record.id.to_string() == called
        };
        let at = records.iter().position(is_called);
        Ok(at.map(|at| records.swap_remove(at)))
    }

    /// The database, if there is exactly one.
    pub(crate) async fn only(&self) -> Result<Option<Record>, Failure> {
        let mut records = self.repository.databases().await.map_err(|error| Failure::of(&error))?;
        Ok(if records.len() == 1 { records.pop() } else { None })
    }

    /// All records, ordered by name.
    pub(crate) async fn records(&self) -> Result<Vec<Record>, Failure> {
        self.repository.databases().await.map_err(|error| Failure::of(&error))
    }

    /// All databases, ordered by name.
    pub(crate) async fn all(&self) -> Result<Vec<v1::Database>, Failure> {
        let records = self.repository.databases().await.map_err(|error| Failure::of(&error))?;
        let url = url(&self.repository);
        let mut databases: Vec<_> = records.iter().map(|record| described(record, &url)).collect();
        databases.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        Ok(databases)
    }
}

/// Writes a new version of a record.
pub(crate) async fn set_record(
    _repository: &Repository,
    _record: Record,
    _name: &str,
    _class: &str,
) -> Result<Record, Failure> {
    Err(Failure::usage("interim"))
}

/// A record as the API says it. Whether it is protected is for a daemon to say.
pub(crate) fn described(record: &Record, url: &str) -> v1::Database {
    v1::Database {
        id: record.id.to_string(),
        name: record.name.clone(),
        path: record.source.clone(),
        class: "production".into(),
        protected: false,
        store: url.to_owned(),
        created: None,
    }
}
