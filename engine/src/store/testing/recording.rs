//! A store that counts.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;

use super::Verb;
use crate::store::{Backend, Body, ObjectEntry, PutOutcome, StoreError};

/// What was asked of a store so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Puts.
    pub puts: u64,
    /// Reads.
    pub gets: u64,
    /// Questions for a size.
    pub sizes: u64,
    /// Listings.
    pub lists: u64,
    /// Deletes.
    pub deletes: u64,
    /// Bytes sent.
    pub bytes_put: u64,
    /// Bytes read.
    pub bytes_got: u64,
}

impl Counts {
    /// All requests.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.puts + self.gets + self.sizes + self.lists + self.deletes
    }
}

/// A store that counts what is asked of it. Clones share the counts, so a test keeps one to read them.
#[derive(Clone, Debug, Default)]
pub struct Recording {
    seen: Arc<Mutex<Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    counts: Counts,
    requests: Vec<(Verb, String)>,
}

impl Recording {
    /// All at zero.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts it around a store.
    #[must_use]
    pub fn wrap(&self, inner: Arc<dyn Backend>) -> Arc<dyn Backend> {
        Arc::new(Wrapped { inner, recording: self.clone() })
    }

    /// The counts so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).counts
    }

    /// The requests so far, in order, with their keys or prefixes.
    #[must_use]
    pub fn requests(&self) -> Vec<(Verb, String)> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).requests.clone()
    }

    /// Back to zero.
    pub fn clear(&self) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Seen::default();
    }

    fn note(&self, verb: Verb, key: &str, put: u64, got: u64) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = &mut seen.counts;
        match verb {
            Verb::Put => counts.puts += 1,
            Verb::Get => counts.gets += 1,
            Verb::Size => counts.sizes += 1,
            Verb::List => counts.lists += 1,
            Verb::Delete => counts.deletes += 1,
        }
        counts.bytes_put += put;
        counts.bytes_got += got;
        seen.requests.push((verb, key.to_owned()));
    }
}

#[derive(Debug)]
struct Wrapped {
    inner: Arc<dyn Backend>,
    recording: Recording,
}

impl Backend for Wrapped {
    fn url(&self) -> &str {
        self.inner.url()
    }

    fn put(&self, key: &str, body: Body) -> BoxFuture<'_, Result<PutOutcome, StoreError>> {
        self.recording.note(Verb::Put, key, body.len(), 0);
        self.inner.put(key, body)
    }

    fn get(&self, key: &str, range: Option<Range<u64>>) -> BoxFuture<'_, Result<Bytes, StoreError>> {
        let key = key.to_owned();
        Box::pin(async move {
            let bytes = self.inner.get(&key, range).await;
            self.recording.note(Verb::Get, &key, 0, bytes.as_ref().map_or(0, |bytes| bytes.len() as u64));
            bytes
        })
    }

    fn size(&self, key: &str) -> BoxFuture<'_, Result<Option<u64>, StoreError>> {
        self.recording.note(Verb::Size, key, 0, 0);
        self.inner.size(key)
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> BoxStream<'_, Result<ObjectEntry, StoreError>> {
        self.recording.note(Verb::List, prefix, 0, 0);
        self.inner.list(prefix, after)
    }

    fn list_folders(&self, prefix: &str) -> BoxFuture<'_, Result<Vec<String>, StoreError>> {
        self.recording.note(Verb::List, prefix, 0, 0);
        self.inner.list_folders(prefix)
    }

    fn delete(&self, key: &str) -> BoxFuture<'_, Result<(), StoreError>> {
        self.recording.note(Verb::Delete, key, 0, 0);
        self.inner.delete(key)
    }

    fn keeps_conditions(&self) -> Option<bool> {
        self.inner.keeps_conditions()
    }
}
