//! A repository: one prefix of a store that holds the history of many databases.
//!
//! Everything in it is created once. Objects with content (segments, bases, packs) are named by their digest: two
//! writers of one name write the same. Records have names of their own and are created with create-if-absent.
//!
//! **Stores that ignore the condition.** Some S3-compatible stores take a conditional put and replace the object all the
//! same, in silence. So the condition is probed with a throwaway object before a record is first created (never
//! assumed). Where it does not hold, a record's name carries the writer's nonce, so that no put can replace another's;
//! the writer waits a moment, looks at all of that number, and the lowest name wins. The loser moves on to the next
//! number. Should two writers still both believe in one timeline (a listing that lags behind for longer), their segments
//! differ in digest and chain: they show as a fork, and nothing is lost.
//!
//! **Encryption** is decided at creation. See [`KeySource`], `keyring.rs` (who wraps whom) and `envelope.rs` (bytes).

mod databases;
mod envelope;
mod error;
mod frame;
#[cfg(test)]
mod golden;
mod keyring;
#[cfg(feature = "test-util")]
pub(crate) mod laws;
mod objects;
mod once;
mod secret;
mod seen;
mod timelines;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex};

use everwhen_proto::store as proto;

use crate::ids::{DatabaseId, HostId, RepositoryId};
use crate::random;
use crate::store::{PutOutcome, Store, keys};
use crate::time::Timestamp;

pub use databases::{DatabaseRecord, NewDatabase};
pub use error::RepositoryError;
pub use keyring::{KeyInfo, Rotation};
pub use secret::{KeyId, KeySource, RepositoryKey};
pub use seen::SeenEntry;
pub use timelines::{Claim, ForkReason, NewTimeline, Timeline};

use keyring::Keyring;

/// How to create a repository.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// Seal everything with this key. `None`: store in the clear.
    pub encryption: Option<KeySource>,
    /// Where its data is allowed to be, in the operator's words; empty when that does not matter.
    pub location: String,
    /// The present time.
    pub now: Timestamp,
}

/// An open repository. Cheap to clone.
#[derive(Clone)]
pub struct Repository {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    id: RepositoryId,
    location: String,
    created: Timestamp,
    keyring: Option<Keyring>,
    /// Whether create-if-absent holds; probed when first needed.
    conditions: tokio::sync::OnceCell<bool>,
    /// Headers of sealed objects met lately, so that a further range of one costs one request.
    headers: Mutex<HashMap<String, envelope::Header>>,
    /// Records never change, so each is read once.
    records: Mutex<HashMap<String, proto::DatabaseRecord>>,
    claims: Mutex<HashMap<String, Timeline>>,
    seen: tokio::sync::Mutex<HashMap<HostId, BTreeMap<DatabaseId, SeenEntry>>>,
}

impl Repository {
    /// Makes a repository under an address where there is none.
    ///
    /// # Errors
    /// [`RepositoryError::AlreadyThere`]; key and store errors.
    pub async fn create(store: Store, options: CreateOptions) -> Result<Self, RepositoryError> {
        if let Some(found) = read_marker(&store).await? {
            let found = repository_id(&found)?;
            return Err(RepositoryError::AlreadyThere { store: store.url().to_owned(), found });
        }
        let id = RepositoryId::from_bytes(random::nonce()?);
        let keyring = match &options.encryption {
            Some(source) => {
                let source = source.clone();
                let key = tokio::task::spawn_blocking(move || source.load()).await;
                let key =
                    key.map_err(|error| RepositoryError::damaged(keys::MARKER, error.to_string()))??;
                // Before the marker, so that there is never a repository without its key. A leftover harms nothing.
                Some(Keyring::create(&store, id, &key, options.now).await?)
            }
            None => None,
        };
        let marker = proto::Marker {
            format: frame::FORMAT,
            repository_id: id.as_bytes().to_vec(),
            created_micros: options.now.as_micros(),
            location: options.location,
            created_by: concat!("everwhen ", env!("CARGO_PKG_VERSION")).to_owned(),
            encryption: keyring.as_ref().map(|_| proto::Encryption { scheme: 1 }),
        };
        let bytes = frame::encode(keys::MARKER, &marker);
        let repository = Self::assemble(store, &marker, keyring)?;
        let outcome = repository.store().create(keys::MARKER, bytes.into()).await?;
        // On a store without conditions another creation may replace ours within this moment; the later one counts.
        if outcome == PutOutcome::Created {
            repository.settle().await?;
        }
        let found = read_marker(repository.store()).await?.unwrap_or_default();
        if found == marker {
            return Ok(repository);
        }
        let (store, found) = (repository.store().url().to_owned(), repository_id(&found)?);
        Err(RepositoryError::AlreadyThere { store, found })
    }

    /// Opens a repository. One request; three when it is encrypted. Nothing is written.
    ///
    /// # Errors
    /// [`RepositoryError::NotARepository`], [`RepositoryError::NewerFormat`], key and store errors.
    pub async fn open(store: Store, key: Option<&KeySource>) -> Result<Self, RepositoryError> {
        let Some(marker) = read_marker(&store).await? else {
            return Err(RepositoryError::NotARepository { store: store.url().to_owned() });
        };
        let id = repository_id(&marker)?;
        let url = || store.url().to_owned();
        let keyring = match (&marker.encryption, key) {
            (None, None) => None,
            (None, Some(_)) => return Err(RepositoryError::NotEncrypted { store: url() }),
            (Some(_), None) => return Err(RepositoryError::KeyNeeded { store: url() }),
            (Some(encryption), Some(source)) if encryption.scheme == 1 => {
                Some(Keyring::open(&store, id, source).await?)
            }
            (Some(encryption), Some(_)) => {
                let found = encryption.scheme;
                return Err(RepositoryError::NewerFormat { key: keys::MARKER.to_owned(), found, known: 1 });
            }
        };
        Self::assemble(store, &marker, keyring)
    }

    /// Opens the repository, or makes it where there is none.
    ///
    /// # Errors
    /// As for [`Repository::open`] and [`Repository::create`].
    pub async fn open_or_create(store: Store, options: CreateOptions) -> Result<Self, RepositoryError> {
        match Self::open(store.clone(), options.encryption.as_ref()).await {
            Err(RepositoryError::NotARepository { .. }) => {}
            other => return other,
        }
        let key = options.encryption.clone();
        match Self::create(store.clone(), options).await {
            // Another daemon was faster.
            Err(RepositoryError::AlreadyThere { .. }) => Self::open(store, key.as_ref()).await,
            other => other,
        }
    }

    fn assemble(
        store: Store,
        marker: &proto::Marker,
        keyring: Option<Keyring>,
    ) -> Result<Self, RepositoryError> {
        let inner = Inner {
            store,
            id: repository_id(marker)?,
            location: marker.location.clone(),
            created: Timestamp::from_micros(marker.created_micros),
            keyring,
            conditions: tokio::sync::OnceCell::new(),
            headers: Mutex::default(),
            records: Mutex::default(),
            claims: Mutex::default(),
            seen: tokio::sync::Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Its identity.
    #[must_use]
    pub fn id(&self) -> RepositoryId {
        self.inner.id
    }

    /// Makes sure that it is the repository that local state belongs to.
    ///
    /// # Errors
    /// [`RepositoryError::Foreign`].
    pub fn expect_id(&self, expected: RepositoryId) -> Result<(), RepositoryError> {
        if self.id() == expected {
            return Ok(());
        }
        Err(RepositoryError::Foreign { store: self.store().url().to_owned(), expected, found: self.id() })
    }

    /// The store it lies in.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// Where its data is allowed to be; empty when not said.
    #[must_use]
    pub fn location(&self) -> &str {
        &self.inner.location
    }

    /// When it was made.
    #[must_use]
    pub fn created(&self) -> Timestamp {
        self.inner.created
    }

    /// Whether its objects are sealed.
    #[must_use]
    pub fn encrypted(&self) -> bool {
        self.inner.keyring.is_some()
    }

    fn keyring(&self) -> Option<&Keyring> {
        self.inner.keyring.as_ref()
    }
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Repository({} in {})", self.id(), self.store().url())
    }
}

async fn read_marker(store: &Store) -> Result<Option<proto::Marker>, RepositoryError> {
    match store.get(keys::MARKER).await {
        Ok(bytes) => frame::decode(keys::MARKER, &bytes).map(Some),
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn repository_id(marker: &proto::Marker) -> Result<RepositoryId, RepositoryError> {
    let bytes = marker.repository_id.as_slice().try_into();
    bytes
        .map(RepositoryId::from_bytes)
        .map_err(|_| RepositoryError::damaged(keys::MARKER, "it names no repository"))
}
