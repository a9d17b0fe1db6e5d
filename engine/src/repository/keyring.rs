//! Keys of an encrypted repository.
//!
//! ```text
//! repository key (the operator's)  wraps  master secret (key/<repository>/<seq>)
//! master secret                    wraps  data key of each database (db/<db>/key)
//! data key                         gives  the secret that seals its objects, and the key of its digests
//! ```
//! A rotation writes the master secret anew under another repository key and removes the older records: one small
//! object, nothing half-done, no data rewritten. As with every scheme that rewraps, who held the former key *and* read
//! the repository may have kept the secret behind it; a rotation is for keys that may leak, not for undoing a leak.
//! Removing `db/<db>/key` destroys a database for good, whatever else remains of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use everwhen_proto::store as proto;

use crate::digest::Hasher;
use crate::ids::{DatabaseId, RepositoryId};
use crate::random;
use crate::store::keys;
use crate::store::{PutOutcome, Store};
use crate::time::Timestamp;

use super::secret::{KeyId, KeySource, RepositoryKey, Secret};
use super::{Repository, RepositoryError, envelope, frame};

/// The secrets of one database.
pub(super) struct DataKeys {
    pub(super) objects: Secret,
    digests: Secret,
}

impl DataKeys {
    fn of(data_key: &Secret) -> Self {
        Self {
            objects: data_key.derive("everwhen object encryption v1"),
            digests: data_key.derive("everwhen object digests v1"),
        }
    }

    pub(super) fn hasher(&self) -> Hasher {
        Hasher::Keyed(*self.digests.bytes())
    }
}

/// The secrets of an open, encrypted repository.
pub(super) struct Keyring {
    repository: RepositoryId,
    master: Secret,
    /// Seals what belongs to no single database.
    pub(super) shared: Secret,
    databases: Mutex<HashMap<DatabaseId, Arc<DataKeys>>>,
}

/// What may be told of a repository's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyInfo {
    /// The repository key in use.
    pub key: KeyId,
    /// How many keys came before it, plus one.
    pub seq: u64,
    /// Since when it is in use.
    pub since: Timestamp,
}

/// What a rotation did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// The key before.
    pub from: KeyId,
    /// The key from now on.
    pub to: KeyId,
    /// Records that could not be removed (credentials without delete). As long as they are there, the former keys still
    /// open the repository for someone who knows its format.
    pub left: Vec<String>,
}

impl Keyring {
    fn new(repository: RepositoryId, master: Secret) -> Self {
        let shared = master.derive("everwhen shared records v1");
        Self { repository, master, shared, databases: Mutex::default() }
    }

    /// Draws a master secret and stores it under its first record.
    pub(super) async fn create(
        store: &Store,
        repository: RepositoryId,
        key: &RepositoryKey,
        now: Timestamp,
    ) -> Result<Self, RepositoryError> {
        let keyring = Self::new(repository, Secret::random()?);
        let name = keys::key_record_key(repository, 1);
        let frame = keyring.frame(&name, 1, key, now)?;
        store.put_new(&name, frame).await?;
        Ok(keyring)
    }

    /// Opens the newest key record with the key from `source`.
    pub(super) async fn open(
        store: &Store,
        repository: RepositoryId,
        source: &KeySource,
    ) -> Result<Self, RepositoryError> {
        let key = load(source.clone()).await?;
        let (name, record) = newest(store, repository).await?;
        let expected = key_id(&name, &record)?;
        if expected != key.id() {
            return Err(RepositoryError::WrongKey {
                store: store.url().to_owned(),
                given: key.id(),
                expected,
            });
        }
        let master = envelope::unwrap(&wrapping(&key), &bound(repository, expected), &record.wrapped)
            .ok_or_else(|| RepositoryError::damaged(&name, "its key does not open it"))?;
        Ok(Self::new(repository, master))
    }

    fn frame(
        &self,
        name: &str,
        seq: u64,
        key: &RepositoryKey,
        now: Timestamp,
    ) -> Result<Vec<u8>, RepositoryError> {
        let wrapped = envelope::wrap(&wrapping(key), &bound(self.repository, key.id()), &self.master)?;
        let record = proto::KeyRecord {
            format: frame::FORMAT,
            repository_id: self.repository.as_bytes().to_vec(),
            seq,
            key_id: key.id().bytes().to_vec(),
            wrapped,
            created_micros: now.as_micros(),
            nonce: random::nonce()?.to_vec(),
        };
        Ok(frame::encode(name, &record))
    }

    /// The secrets of a database, from its key object.
    async fn database(&self, store: &Store, database: DatabaseId) -> Result<Arc<DataKeys>, RepositoryError> {
        let known = || self.databases.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(keys) = known().get(&database) {
            return Ok(Arc::clone(keys));
        }
        let name = keys::database_key_key(database);
        let bytes = match store.get(&name).await {
            Err(error) if error.is_missing() => return Err(RepositoryError::Missing { key: name }),
            other => other?,
        };
        let record: proto::DatabaseKey = frame::decode(&name, &bytes)?;
        let wrapping = self.master.derive("everwhen data key wrapping v1");
        let data_key = envelope::unwrap(&wrapping, &self.bound_to(database), &record.wrapped)
            .ok_or_else(|| RepositoryError::damaged(&name, "the repository's key does not open it"))?;
        let keys = Arc::new(DataKeys::of(&data_key));
        known().insert(database, Arc::clone(&keys));
        Ok(keys)
    }

    /// Draws the data key of a new database and stores it.
    async fn create_database(&self, store: &Store, database: DatabaseId) -> Result<(), RepositoryError> {
        let data_key = Secret::random()?;
        let wrapping = self.master.derive("everwhen data key wrapping v1");
        let record = proto::DatabaseKey {
            format: frame::FORMAT,
            database_id: database.as_bytes().to_vec(),
            wrapped: envelope::wrap(&wrapping, &self.bound_to(database), &data_key)?,
        };
        let name = keys::database_key_key(database);
        let frame = frame::encode(&name, &record);
        if store.create(&name, frame.clone().into()).await? == PutOutcome::AlreadyThere
            && store.get(&name).await? != frame
        {
            return Err(RepositoryError::Conflict { key: name });
        }
        Ok(())
    }

    fn bound_to(&self, database: DatabaseId) -> Vec<u8> {
        [b"data key ".as_slice(), self.repository.as_bytes(), database.as_bytes()].concat()
    }
}

fn wrapping(key: &RepositoryKey) -> Secret {
    key.secret().derive("everwhen master secret wrapping v1")
}

fn bound(repository: RepositoryId, key: KeyId) -> Vec<u8> {
    [b"master ".as_slice(), repository.as_bytes(), &key.bytes()].concat()
}

fn key_id(name: &str, record: &proto::KeyRecord) -> Result<KeyId, RepositoryError> {
    KeyId::from_slice(&record.key_id).ok_or_else(|| RepositoryError::damaged(name, "it names no key"))
}

/// Key files and commands may block for long.
async fn load(source: KeySource) -> Result<RepositoryKey, RepositoryError> {
    let text = source.to_string();
    match tokio::task::spawn_blocking(move || source.load()).await {
        Ok(loaded) => loaded,
        Err(error) => Err(RepositoryError::KeyUnreadable { source_text: text, reason: error.to_string() }),
    }
}

async fn newest(
    store: &Store,
    repository: RepositoryId,
) -> Result<(String, proto::KeyRecord), RepositoryError> {
    let prefix = keys::key_record_prefix(repository);
    let entries = store.list_all(&prefix, None).await?;
    let name = match entries.last() {
        Some(entry) => entry.key.clone(),
        None => return Err(RepositoryError::Missing { key: keys::key_record_key(repository, 1) }),
    };
    let record: proto::KeyRecord = frame::decode(&name, &store.get(&name).await?)?;
    if record.repository_id != repository.as_bytes() {
        return Err(RepositoryError::damaged(&name, "it belongs to another repository"));
    }
    Ok((name, record))
}

impl Repository {
    /// What may be told of the key; `None` when the repository is not encrypted. Two requests.
    ///
    /// # Errors
    /// When the key record cannot be read.
    pub async fn key_info(&self) -> Result<Option<KeyInfo>, RepositoryError> {
        if !self.encrypted() {
            return Ok(None);
        }
        let (name, record) = newest(self.store(), self.id()).await?;
        let since = Timestamp::from_micros(record.created_micros);
        Ok(Some(KeyInfo { key: key_id(&name, &record)?, seq: record.seq, since }))
    }

    /// Locks the repository with another key from now on. Handles that are open stay usable. No data is rewritten.
    ///
    /// # Errors
    /// [`RepositoryError::NotEncrypted`]; [`RepositoryError::Conflict`] when somebody else rotates at the same time;
    /// what the store says. After an error before the new record is there, the former key is still the one.
    pub async fn rotate_key(&self, new: &KeySource, now: Timestamp) -> Result<Rotation, RepositoryError> {
        let store = self.store();
        let Some(keyring) = self.keyring() else {
            return Err(RepositoryError::NotEncrypted { store: store.url().to_owned() });
        };
        let key = load(new.clone()).await?;
        let (name, before) = newest(store, self.id()).await?;
        let from = key_id(&name, &before)?;
        let seq = before.seq.saturating_add(1);
        let next = keys::key_record_key(self.id(), seq);
        let frame = keyring.frame(&next, seq, &key, now)?;
        let outcome = store.create(&next, frame.clone().into()).await?;
        // Read back in any case: the only way to the data must be the one we know, on every kind of store.
        self.settle().await?;
        if store.get(&next).await? != frame {
            return Err(RepositoryError::Conflict { key: next });
        }
        tracing::info!(?outcome, key = %key.id(), "the repository's key was rotated");
        Keyring::open(store, self.id(), &KeySource::Key(key.clone())).await?;
        let mut left = Vec::new();
        for entry in store.list_all(&keys::key_record_prefix(self.id()), None).await? {
            if entry.key < next && store.delete(&entry.key).await.is_err() {
                left.push(entry.key);
            }
        }
        Ok(Rotation { from, to: key.id(), left })
    }

    /// The secrets of a database; `None` when the repository is not encrypted.
    pub(super) async fn data_keys(
        &self,
        database: DatabaseId,
    ) -> Result<Option<Arc<DataKeys>>, RepositoryError> {
        match self.keyring() {
            Some(keyring) => keyring.database(self.store(), database).await.map(Some),
            None => Ok(None),
        }
    }

    pub(super) async fn create_data_key(&self, database: DatabaseId) -> Result<(), RepositoryError> {
        match self.keyring() {
            Some(keyring) => keyring.create_database(self.store(), database).await,
            None => Ok(()),
        }
    }
}
