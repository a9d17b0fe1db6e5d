//! The engine in this process, its store counted.

use std::path::Path;
use std::time::Duration;

use everwhen_engine::ids::{DatabaseId, HostId};
use everwhen_engine::protect::{ProtectOptions, Protection};
use everwhen_engine::repository::{CreateOptions, Repository};
use everwhen_engine::store::Store;
use everwhen_engine::store::testing::Recording;
use everwhen_engine::time::Timestamp;

use crate::Outcome;

/// A protection in this process, its store counted.
#[derive(Debug)]
pub struct Protected {
    /// The protection.
    pub protection: Protection,
    /// Where it stores.
    pub repository: Repository,
    /// What it asked of the store.
    pub recording: Recording,
}

impl Protected {
    /// Protects `database` into `store`, keeping state in `state`, and waits for the first base.
    ///
    /// # Errors
    /// The engine's.
    pub async fn start(database: &Path, store: Store, state: &Path) -> Outcome<Self> {
        let recording = Recording::new();
        let store = store.wrap(|inner| recording.wrap(inner));
        let repository = open_repository(store).await?;
        let host = HostId::from_bytes([7; 8]);
        let options = ProtectOptions::new(database.into(), "app".into(), state.into(), host, "bench".into());
        let protection = Protection::start(repository.clone(), options).await?;
        let protected = Self { protection, repository, recording };
        protected.protection.wait_durable(None, Duration::from_secs(600)).await?;
        Ok(protected)
    }

    /// Its database's id.
    ///
    /// # Errors
    /// When it has none yet.
    pub fn database(&self) -> Outcome<DatabaseId> {
        Ok(self.protection.status().database.ok_or("the database has no id yet")?)
    }
}

/// Opens a repository in the clear, making it if there is none.
///
/// # Errors
/// The engine's.
pub async fn open_repository(store: Store) -> Outcome<Repository> {
    let options = CreateOptions { encryption: None, location: String::new(), now: Timestamp::now() };
    Ok(Repository::open_or_create(store, options).await?)
}
