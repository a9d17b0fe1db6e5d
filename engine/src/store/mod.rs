//! The object store of a repository: write-once objects under keys, on a folder, in a cloud, or in memory.
//!
//! A [`Store`] offers only what a repository needs: put what is not there yet, get, get a range, list in order of
//! keys, and (for expiry alone) delete. It works with credentials for put, get and list. There is no overwriting.
//!
//! Keys are made of lower-case letters, digits, `-` and `/`: alike in every store, and safe as file names.

mod body;
mod error;
pub mod keys;
mod local;
mod provider;
mod remote;
mod sorting;
#[cfg(feature = "test-util")]
pub mod testing;
mod url;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;

pub use body::Body;
pub use error::{Cause, StoreError};

/// What became of a put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutOutcome {
    /// The object was not there and is now.
    Created,
    /// An object of that name was there already and was left as it is.
    AlreadyThere,
}

/// One object in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectEntry {
    /// Its full key, below the store's own prefix.
    pub key: String,
    /// Its size in bytes, as stored.
    pub size: u64,
}

/// What a store is made of: one per kind of store, and the wrappers of tests. Keys have been checked before.
///
/// Once `put` has answered `Created` or `AlreadyThere`, the object survives the loss of power and of the process.
pub trait Backend: fmt::Debug + Send + Sync + 'static {
    /// Its address, without secrets.
    fn url(&self) -> &str;
    /// Creates the object if there is none. Some stores ignore the condition in silence and answer `Created` twice.
    fn put(&self, key: &str, body: Body) -> BoxFuture<'_, Result<PutOutcome, StoreError>>;
    /// Reads all of it or exactly a range of it.
    fn get(&self, key: &str, range: Option<Range<u64>>) -> BoxFuture<'_, Result<Bytes, StoreError>>;
    /// Its size; `None` when it is not there.
    fn size(&self, key: &str) -> BoxFuture<'_, Result<Option<u64>, StoreError>>;
    /// All objects below a prefix that is empty or ends in '/', in order of keys, from behind `after`.
    fn list(&self, prefix: &str, after: Option<&str>) -> BoxStream<'_, Result<ObjectEntry, StoreError>>;
    /// The folders right below such a prefix, as full keys without the '/', in order.
    fn list_folders(&self, prefix: &str) -> BoxFuture<'_, Result<Vec<String>, StoreError>>;
    /// Removes it; nothing happens when it is not there.
    fn delete(&self, key: &str) -> BoxFuture<'_, Result<(), StoreError>>;
    /// Whether `put` really leaves alone what is there, when that is known without asking.
    fn keeps_conditions(&self) -> Option<bool> {
        None
    }
}

/// An open store. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct Store {
    backend: Arc<dyn Backend>,
}

impl Store {
    /// Opens a store by its address or a bare path. Nothing is read, made or connected to yet.
    ///
    /// # Errors
    /// [`StoreError::Url`] when the text names no store, [`StoreError::NoCredentials`] and [`StoreError::Settings`] when
    /// the environment lacks what it needs, or says what does not fit.
    pub fn open(url: &str) -> Result<Self, StoreError> {
        Self::open_with(url, &[])
    }

    /// [`Store::open`] with settings of the cloud that win over the environment: the names of environment variables
    /// (`AWS_ENDPOINT_URL`, `GOOGLE_BASE_URL`, `AZURE_STORAGE_ENDPOINT`) and their values.
    ///
    /// # Errors
    /// As for [`Store::open`].
    pub fn open_with(url: &str, settings: &[(String, String)]) -> Result<Self, StoreError> {
        Ok(Self { backend: url::open(url, settings)? })
    }

    /// The same store seen through a wrapper.
    #[cfg(feature = "test-util")]
    #[must_use]
    pub fn wrap(&self, wrapper: impl FnOnce(Arc<dyn Backend>) -> Arc<dyn Backend>) -> Self {
        Self { backend: wrapper(Arc::clone(&self.backend)) }
    }

    /// Its address, without secrets: what messages and records show.
    #[must_use]
    pub fn url(&self) -> &str {
        self.backend.url()
    }

    /// Creates an object whose name tells its content, if it is not there. One request; for a body above 16 MiB a few
    /// more. On return it is durable.
    ///
    /// # Errors
    /// [`StoreError::Differs`] when an object of another size is there; else what the store says. After any other
    /// error the object may or may not be there: try again.
    pub async fn put_new(&self, key: &str, body: impl Into<Body>) -> Result<PutOutcome, StoreError> {
        self.check(key)?;
        let body = body.into();
        let expected = body.len();
        let outcome = self.backend.put(key, body).await?;
        if outcome == PutOutcome::AlreadyThere {
            match self.backend.size(key).await? {
                Some(found) if found == expected => {}
                Some(found) => {
                    let (store, key) = (self.url().to_owned(), key.to_owned());
                    return Err(StoreError::Differs { store, key, expected, found });
                }
                // S3 also says "taken" while another put of the same name is under way, which may come to nothing.
                None => return Err(self.vanished(key)),
            }
        }
        Ok(outcome)
    }

    /// Creates a small object whose name does not tell its content, if the name is free. The caller looks at what is
    /// there when it is not, and knows that some stores ignore the condition (see [`crate::repository`]).
    ///
    /// # Errors
    /// What the store says. After an error the object may or may not be there.
    pub async fn create(&self, key: &str, bytes: Bytes) -> Result<PutOutcome, StoreError> {
        self.check(key)?;
        self.backend.put(key, bytes.into()).await
    }

    /// The whole object.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when it is not there.
    pub async fn get(&self, key: &str) -> Result<Bytes, StoreError> {
        self.check(key)?;
        self.backend.get(key, None).await
    }

    /// Exactly these bytes of an object.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when it is not there, [`StoreError::Range`] when it is shorter.
    pub async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.check(key)?;
        self.backend.get(key, Some(range)).await
    }

    /// The size of an object in bytes, as stored; `None` when it is not there.
    ///
    /// # Errors
    /// What the store says.
    pub async fn size(&self, key: &str) -> Result<Option<u64>, StoreError> {
        self.check(key)?;
        self.backend.size(key).await
    }

    /// The objects below a prefix ending in '/' (or all, for the empty one), in order of keys, from behind `after`.
    pub fn list(&self, prefix: &str, after: Option<&str>) -> BoxStream<'_, Result<ObjectEntry, StoreError>> {
        self.backend.list(prefix, after)
    }

    /// [`Store::list`], all at once.
    ///
    /// # Errors
    /// What the store says.
    pub async fn list_all(&self, prefix: &str, after: Option<&str>) -> Result<Vec<ObjectEntry>, StoreError> {
        self.list(prefix, after).try_collect().await
    }

    /// The names of the folders right below a prefix ending in '/', in order.
    ///
    /// # Errors
    /// What the store says.
    pub async fn list_folders(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let keys = self.backend.list_folders(prefix).await?;
        Ok(keys.iter().filter_map(|key| key.strip_prefix(prefix)).map(str::to_owned).collect())
    }

    /// Removes an object. For expiry and erasure only; needs a right that nothing else needs.
    ///
    /// # Errors
    /// What the store says; none when the object is not there.
    pub async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.check(key)?;
        self.backend.delete(key).await
    }

    /// Whether create-if-absent holds, when that is known without asking. `None`: it has to be probed.
    #[must_use]
    pub fn keeps_conditions(&self) -> Option<bool> {
        self.backend.keeps_conditions()
    }

    fn vanished(&self, key: &str) -> StoreError {
        StoreError::Failed {
            store: self.url().to_owned(),
            action: "write",
            key: key.to_owned(),
            source: Cause("the name was taken, but nothing is there".to_owned()),
        }
    }

    fn check(&self, key: &str) -> Result<(), StoreError> {
        let letters = |part: &str| {
            !part.is_empty() && part.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        };
        if key.split('/').all(letters) {
            return Ok(());
        }
        let reason = format!("'{}' is not a key", key.chars().take(200).collect::<String>());
        Err(StoreError::Url { url: self.url().to_owned(), reason })
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.url())
    }
}
