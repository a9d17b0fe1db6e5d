//! A store behind a slow line.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt};
use tokio::time::Instant;

use crate::store::{Backend, Body, ObjectEntry, PutOutcome, StoreError};

/// A store behind a slow line: every request waits for the latency, and for its bytes to pass at the bandwidth, after
/// those of the requests before it.
#[derive(Debug)]
pub struct Slow {
    inner: Arc<dyn Backend>,
    latency: Duration,
    bytes_per_second: u64,
    /// When the last byte so far has passed.
    free: Mutex<Instant>,
}

impl Slow {
    /// Puts it around a store. A bandwidth of 0 means: no limit.
    #[must_use]
    pub fn wrap(inner: Arc<dyn Backend>, latency: Duration, bytes_per_second: u64) -> Arc<dyn Backend> {
        Arc::new(Self { inner, latency, bytes_per_second, free: Mutex::new(Instant::now()) })
    }

    async fn wait(&self, bytes: u64) {
        let micros = bytes.saturating_mul(1_000_000).checked_div(self.bytes_per_second).unwrap_or(0);
        let passed = {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            *free = (*free).max(Instant::now()) + Duration::from_micros(micros);
            *free
        };
        tokio::time::sleep_until(passed + self.latency).await;
    }
}

impl Backend for Slow {
    fn url(&self) -> &str {
        self.inner.url()
    }

    fn put(&self, key: &str, body: Body) -> BoxFuture<'_, Result<PutOutcome, StoreError>> {
        let key = key.to_owned();
        Box::pin(async move {
            self.wait(body.len()).await;
            self.inner.put(&key, body).await
        })
    }

    fn get(&self, key: &str, range: Option<Range<u64>>) -> BoxFuture<'_, Result<Bytes, StoreError>> {
        let key = key.to_owned();
        Box::pin(async move {
            let bytes = self.inner.get(&key, range).await?;
            self.wait(bytes.len() as u64).await;
            Ok(bytes)
        })
    }

    fn size(&self, key: &str) -> BoxFuture<'_, Result<Option<u64>, StoreError>> {
        let key = key.to_owned();
        Box::pin(async move {
            self.wait(0).await;
            self.inner.size(&key).await
        })
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> BoxStream<'_, Result<ObjectEntry, StoreError>> {
        let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
        let listing = async move {
            self.wait(0).await;
            self.inner.list(&prefix, after.as_deref())
        };
        stream::once(listing).flatten().boxed()
    }

    fn list_folders(&self, prefix: &str) -> BoxFuture<'_, Result<Vec<String>, StoreError>> {
        let prefix = prefix.to_owned();
        Box::pin(async move {
            self.wait(0).await;
            self.inner.list_folders(&prefix).await
        })
    }

    fn delete(&self, key: &str) -> BoxFuture<'_, Result<(), StoreError>> {
        let key = key.to_owned();
        Box::pin(async move {
            self.wait(0).await;
            self.inner.delete(&key).await
        })
    }

    fn keeps_conditions(&self) -> Option<bool> {
        self.inner.keeps_conditions()
    }
}
