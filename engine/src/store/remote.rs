//! Object stores over the network, and in memory: the part that speaks `object_store`.
//!
//! Retries: the client repeats a request a few times within six seconds. Above that, every step (the head of an
//! answer, a piece of its body, a page of a listing) has a deadline, so that an unreachable store is an error within
//! a quarter of a minute whatever the network does with our packets. Waiting longer is for the daemon, which spools.

use std::future::Future;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt};
use object_store::path::Path as Location;
use object_store::{
    Error, GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions,
    PutPayload,
};

use super::{Backend, Body, Cause, ObjectEntry, PutOutcome, StoreError};

/// How long one step may take before the store counts as unreachable.
const STEP: Duration = Duration::from_secs(12);
/// The slowest line we still wait for when sending, in bytes a second.
const SLOWEST: u64 = 64 * 1024;
/// Bodies above this are sent in parts of this size. S3 allows 10 000 parts: 156 GiB.
const PART: u64 = 16 * 1024 * 1024;

/// How questions to a metadata service show in errors.
const METADATA: [&str; 4] =
    ["169.254.169.254", "/latest/api/token", "/latest/meta-data", "metadata.google.internal"];

/// A store behind `object_store`, below a prefix.
#[derive(Debug)]
pub(crate) struct RemoteStore {
    url: String,
    /// Empty, or ending in '/'.
    prefix: String,
    store: Box<dyn ObjectStore>,
    /// Whether the environment named credentials; if not, the driver asks the instance's metadata service.
    credentials_named: bool,
    /// The store (or `AWS_CONDITIONAL_PUT=disabled`) refuses conditional puts: look first, then put.
    no_conditions: AtomicBool,
}

impl RemoteStore {
    pub(crate) fn new(
        url: String,
        prefix: &str,
        store: Box<dyn ObjectStore>,
        credentials_named: bool,
    ) -> Self {
        let prefix = prefix.trim_matches('/');
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Self { url, prefix, store, credentials_named, no_conditions: AtomicBool::new(false) }
    }

    fn location(&self, key: &str) -> Result<Location, StoreError> {
        Location::parse(format!("{}{key}", self.prefix))
            .map_err(|error| StoreError::Url { url: self.url.clone(), reason: error.to_string() })
    }

    fn key(&self, location: &Location) -> String {
        let full = location.as_ref();
        full.strip_prefix(self.prefix.as_str()).unwrap_or(full).to_owned()
    }

    /// Runs one step under a deadline, and sorts its error.
    async fn step<T>(
        &self,
        action: &'static str,
        key: &str,
        deadline: Duration,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, StoreError> {
        match tokio::time::timeout(deadline, work).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(self.sort(action, key, &error)),
            Err(_) => Err(self.unreachable(Cause(format!("no answer within {} s", deadline.as_secs())))),
        }
    }

    fn unreachable(&self, source: Cause) -> StoreError {
        let store = self.url.clone();
        if self.credentials_named {
            StoreError::Unreachable { store, source }
        } else {
            StoreError::NoCredentials { store, source }
        }
    }

    fn sort(&self, action: &'static str, key: &str, error: &Error) -> StoreError {
        let (store, key, source) = (self.url.clone(), key.to_owned(), Cause::of(error));
        let text = source.0.as_str();
        match error {
            Error::NotFound { .. } if text.contains("NoSuchBucket") || text.contains("ContainerNotFound") => {
                StoreError::NoBucket { store, source }
            }
            Error::NotFound { .. } => StoreError::Missing { store, key },
            Error::Unauthenticated { .. } => StoreError::NoCredentials { store, source },
            Error::PermissionDenied { .. } if is_about_credentials(text) => {
                StoreError::NoCredentials { store, source }
            }
            Error::PermissionDenied { .. } => StoreError::Denied { store, action, key, source },
            // The driver asks the instance's metadata service when the environment names no credentials.
            _ if !self.credentials_named && METADATA.iter().any(|part| text.contains(part)) => {
                StoreError::NoCredentials { store, source }
            }
            _ if text.contains("scheme is not allowed") => StoreError::Url {
                url: store,
                reason: "the endpoint speaks plain HTTP; AWS_ALLOW_HTTP=true permits it".to_owned(),
            },
            _ if text.contains("507 Insufficient Storage") || text.contains("QuotaExceeded") => {
                StoreError::Full { store, key, source }
            }
            _ if is_about_the_network(error) => StoreError::Unreachable { store, source },
            _ => StoreError::Failed { store, action, key, source },
        }
    }

    async fn put_whole(&self, key: &str, bytes: Bytes) -> Result<PutOutcome, StoreError> {
        if self.no_conditions.load(Ordering::Relaxed) {
            return self.look_then_put(key, bytes).await;
        }
        let location = self.location(key)?;
        let deadline = STEP + Duration::from_secs(bytes.len() as u64 / SLOWEST);
        let put = self.store.put_opts(
            &location,
            PutPayload::from_bytes(bytes.clone()),
            PutOptions::from(PutMode::Create),
        );
        let outcome = self.step("write", key, deadline, async {
            match put.await {
                Ok(_) => Ok(Some(PutOutcome::Created)),
                Err(Error::AlreadyExists { .. }) => Ok(Some(PutOutcome::AlreadyThere)),
                Err(error) if refuses_conditions(&error) => Ok(None),
                Err(error) => Err(error),
            }
        });
        match outcome.await? {
            Some(outcome) => Ok(outcome),
            None => {
                self.no_conditions.store(true, Ordering::Relaxed);
                self.look_then_put(key, bytes).await
            }
        }
    }

    /// For stores that refuse conditional puts. Two writers may both find nothing and the later put wins: so it must
    /// only ever be that both hold the same content, which is what [`super::Store::put_new`]'s names promise, or that
    /// names carry a nonce ([`crate::repository`] sees to it once the probe says so).
    async fn look_then_put(&self, key: &str, bytes: Bytes) -> Result<PutOutcome, StoreError> {
        if self.size(key).await?.is_some() {
            return Ok(PutOutcome::AlreadyThere);
        }
        let location = self.location(key)?;
        let deadline = STEP + Duration::from_secs(bytes.len() as u64 / SLOWEST);
        self.step("write", key, deadline, self.store.put(&location, PutPayload::from_bytes(bytes))).await?;
        Ok(PutOutcome::Created)
    }

    /// Sends a large body in parts. Completing a multipart upload takes no condition in `object_store` (S3 learned it
    /// late, others never did), so it could replace an object; only names of contents come here, where that object is
    /// the same. What is there is looked for first, to save the sending.
    async fn put_parts(&self, key: &str, body: Body) -> Result<PutOutcome, StoreError> {
        if self.size(key).await?.is_some() {
            return Ok(PutOutcome::AlreadyThere);
        }
        let location = self.location(key)?;
        let begin = self.store.put_multipart_opts(&location, PutMultipartOptions::default());
        let mut upload = self.step("write", key, STEP, begin).await?;
        let deadline = STEP + Duration::from_secs(PART / SLOWEST);
        let mut pieces: Box<dyn Iterator<Item = _> + Send> = Box::new(body.into_pieces());
        let sent: Result<(), StoreError> = async {
            loop {
                let (part, rest) = next_part(key, pieces).await?;
                pieces = rest;
                if part.is_empty() {
                    break;
                }
                self.step("write", key, deadline, upload.put_part(PutPayload::from_bytes(part))).await?;
            }
            self.step("write", key, deadline, upload.complete()).await?;
            Ok(())
        }
        .await;
        if sent.is_err() {
            // Best effort: credentials without delete cannot, then the bucket's own rule for unfinished uploads does.
            let _ = tokio::time::timeout(STEP, upload.abort()).await;
        }
        sent.map(|()| PutOutcome::Created)
    }
}

type BoxPieces = Box<dyn Iterator<Item = std::io::Result<Bytes>> + Send>;

/// Gathers one part, where blocking is allowed. Empty at the end.
async fn next_part(key: &str, mut pieces: BoxPieces) -> Result<(Bytes, BoxPieces), StoreError> {
    let failed = |source| StoreError::Body { key: key.to_owned(), source };
    let gathered = tokio::task::spawn_blocking(move || {
        let mut part = BytesMut::new();
        while (part.len() as u64) < PART
            && let Some(piece) = pieces.next().transpose()?
        {
            part.extend_from_slice(&piece);
        }
        Ok::<_, std::io::Error>((part.freeze(), pieces))
    });
    match gathered.await {
        Ok(Ok(part)) => Ok(part),
        Ok(Err(error)) => Err(failed(Cause::of(&error))),
        Err(error) => Err(failed(Cause::of(&error))),
    }
}

fn is_about_credentials(text: &str) -> bool {
    ["InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"]
        .iter()
        .any(|code| text.contains(code))
}

fn refuses_conditions(error: &Error) -> bool {
    matches!(error, Error::NotImplemented { .. } | Error::NotSupported { .. })
        || matches!(error, Error::Generic { .. } if error.to_string().contains("501 Not Implemented"))
}

/// Whether the transport failed, or the server kept answering that it cannot answer.
fn is_about_the_network(error: &Error) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = source {
        if current.is::<object_store::client::HttpError>() {
            return true;
        }
        source = current.source();
    }
    let text = error.to_string();
    ["500 ", "502 ", "503 ", "504 ", "429 "].iter().any(|code| text.contains(&format!("status code: {code}")))
}

impl Backend for RemoteStore {
    fn url(&self) -> &str {
        &self.url
    }

    fn put(&self, key: &str, body: Body) -> BoxFuture<'_, Result<PutOutcome, StoreError>> {
        let key = key.to_owned();
        Box::pin(async move {
            if body.len() > PART {
                return self.put_parts(&key, body).await;
            }
            let (bytes, _) = next_part(&key, Box::new(body.into_pieces())).await?;
            self.put_whole(&key, bytes).await
        })
    }

    fn get(&self, key: &str, range: Option<Range<u64>>) -> BoxFuture<'_, Result<Bytes, StoreError>> {
        let key = key.to_owned();
        Box::pin(async move {
            let location = self.location(&key)?;
            if range.as_ref().is_some_and(|range| range.start >= range.end) {
                return Ok(Bytes::new());
            }
            let options = GetOptions { range: range.clone().map(GetRange::Bounded), ..GetOptions::default() };
            let answer = self.step("read", &key, STEP, self.store.get_opts(&location, options)).await;
            let answer = answer.map_err(|error| out_of_range(error, range.as_ref()))?;
            let expected = answer.range.end.saturating_sub(answer.range.start);
            let mut pieces = answer.into_stream();
            let mut bytes = BytesMut::new();
            while let Some(piece) =
                self.step("read", &key, STEP, async { pieces.next().await.transpose() }).await?
            {
                if bytes.is_empty() && piece.len() as u64 == expected {
                    return checked_len(self, &key, range, piece);
                }
                bytes.extend_from_slice(&piece);
            }
            checked_len(self, &key, range, bytes.freeze())
        })
    }

    fn size(&self, key: &str) -> BoxFuture<'_, Result<Option<u64>, StoreError>> {
        let key = key.to_owned();
        Box::pin(async move {
            let location = self.location(&key)?;
            match self.step("read", &key, STEP, self.store.head(&location)).await {
                Ok(found) => Ok(Some(found.size)),
                Err(error) if error.is_missing() => Ok(None),
                Err(error) => Err(error),
            }
        })
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> BoxStream<'_, Result<ObjectEntry, StoreError>> {
        let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
        let listing = stream::once(async move {
            let location = self.location(prefix.trim_end_matches('/'))?;
            let entries = match after {
                Some(after) => self.store.list_with_offset(Some(&location), &self.location(&after)?),
                None => self.store.list(Some(&location)),
            };
            Ok(stream::try_unfold((entries, prefix), move |(mut entries, prefix)| async move {
                let entry =
                    self.step("list", &prefix, STEP, async { entries.next().await.transpose() }).await?;
                Ok(entry.map(|found| {
                    let entry = ObjectEntry { key: self.key(&found.location), size: found.size };
                    (entry, (entries, prefix))
                }))
            }))
        });
        futures::TryStreamExt::try_flatten(listing).boxed()
    }

    fn list_folders(&self, prefix: &str) -> BoxFuture<'_, Result<Vec<String>, StoreError>> {
        let prefix = prefix.to_owned();
        Box::pin(async move {
            let location = self.location(prefix.trim_end_matches('/'))?;
            let deadline = STEP * 5; // many pages
            let listing = self.store.list_with_delimiter(Some(&location));
            let found = self.step("list", &prefix, deadline, listing).await?;
            Ok(found.common_prefixes.iter().map(|folder| self.key(folder)).collect())
        })
    }

    fn delete(&self, key: &str) -> BoxFuture<'_, Result<(), StoreError>> {
        let key = key.to_owned();
        Box::pin(async move {
            let location = self.location(&key)?;
            match self.step("delete", &key, STEP, self.store.delete(&location)).await {
                Err(error) if !error.is_missing() => Err(error),
                _ => Ok(()),
            }
        })
    }

    fn keeps_conditions(&self) -> Option<bool> {
        self.no_conditions.load(Ordering::Relaxed).then_some(false)
    }
}

/// Drivers word "outside the object" in many ways; when a range was asked for and nothing else fits, it is that.
fn out_of_range(error: StoreError, range: Option<&Range<u64>>) -> StoreError {
    match (error, range) {
        (StoreError::Failed { store, key, source, .. }, Some(range))
            if source.0.contains("416") || source.0.to_ascii_lowercase().contains("range") =>
        {
            StoreError::Range { store, key, range: range.clone() }
        }
        (error, _) => error,
    }
}

/// A store that answers a range with fewer bytes has a shorter object than we believe.
fn checked_len(
    store: &RemoteStore,
    key: &str,
    range: Option<Range<u64>>,
    bytes: Bytes,
) -> Result<Bytes, StoreError> {
    match range {
        Some(range) if range.end.saturating_sub(range.start) != bytes.len() as u64 => {
            Err(StoreError::Range { store: store.url.clone(), key: key.to_owned(), range })
        }
        _ => Ok(bytes),
    }
}
