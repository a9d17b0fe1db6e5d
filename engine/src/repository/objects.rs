//! Objects with content: segments, base manifests and packs. Named by digest, sealed where the repository is.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};

use bytes::Bytes;

use crate::digest::Hasher;
use crate::ids::{DatabaseId, Digest, TimelineId, TxId};
use crate::store::keys::{self, BaseKey, SegmentKey};
use crate::store::{Body, Cause, ObjectEntry, PutOutcome, StoreError};

use super::envelope::{self, HEADER, Header, Sealed};
use super::{Repository, RepositoryError};

/// Headers kept in memory: 64 bytes and a name each.
const HEADERS_KEPT: usize = 4096;

impl Repository {
    /// How the names of a database's objects are made. One request, once, when the repository is encrypted.
    ///
    /// # Errors
    /// When the database's key cannot be read.
    pub async fn hasher(&self, database: DatabaseId) -> Result<Hasher, RepositoryError> {
        Ok(self.data_keys(database).await?.map_or(Hasher::Plain, |keys| keys.hasher()))
    }

    /// Puts a segment. The content is checked against the digest in the key while it is sent.
    ///
    /// # Errors
    /// [`RepositoryError::WrongContent`]; key and store errors. After any other error try again: it cannot hurt.
    pub async fn put_segment(
        &self,
        key: &SegmentKey,
        body: impl Into<Body>,
    ) -> Result<PutOutcome, RepositoryError> {
        self.put_content(key.database, key.to_string(), key.digest, body.into()).await
    }

    /// Puts a base manifest, as [`Repository::put_segment`].
    ///
    /// # Errors
    /// As for [`Repository::put_segment`].
    pub async fn put_base(
        &self,
        key: &BaseKey,
        body: impl Into<Body>,
    ) -> Result<PutOutcome, RepositoryError> {
        self.put_content(key.database, key.to_string(), key.digest, body.into()).await
    }

    /// Puts a pack of chunks, as [`Repository::put_segment`].
    ///
    /// # Errors
    /// As for [`Repository::put_segment`].
    pub async fn put_pack(
        &self,
        database: DatabaseId,
        digest: Digest,
        body: impl Into<Body>,
    ) -> Result<PutOutcome, RepositoryError> {
        self.put_content(database, keys::pack_key(database, digest), digest, body.into()).await
    }

    /// A whole segment, checked against its name.
    ///
    /// # Errors
    /// [`RepositoryError::Missing`], [`RepositoryError::Damaged`]; key and store errors.
    pub async fn get_segment(&self, key: &SegmentKey) -> Result<Bytes, RepositoryError> {
        self.get_content(key.database, &key.to_string(), key.digest).await
    }

    /// Bytes of a segment. In an encrypted repository they are authenticated; in a plain one the reader of the format has
    /// to check them. One request; when encrypted, one more at the first range of an object.
    ///
    /// # Errors
    /// As for [`Repository::get_segment`].
    pub async fn get_segment_range(
        &self,
        key: &SegmentKey,
        range: Range<u64>,
    ) -> Result<Bytes, RepositoryError> {
        self.get_content_range(key.database, &key.to_string(), range).await
    }

    /// The bytes of content of a segment; `None` when it is not there.
    ///
    /// # Errors
    /// Store errors; [`RepositoryError::Damaged`] for a size no content gives.
    pub async fn segment_size(&self, key: &SegmentKey) -> Result<Option<u64>, RepositoryError> {
        let key = key.to_string();
        match self.store().size(&key).await? {
            Some(stored) => self.content_size(&key, stored).map(Some),
            None => Ok(None),
        }
    }

    /// A whole base manifest, checked against its name.
    ///
    /// # Errors
    /// As for [`Repository::get_segment`].
    pub async fn get_base(&self, key: &BaseKey) -> Result<Bytes, RepositoryError> {
        self.get_content(key.database, &key.to_string(), key.digest).await
    }

    /// Bytes of a pack, as [`Repository::get_segment_range`]. Every chunk has a digest of its own to check.
    ///
    /// # Errors
    /// As for [`Repository::get_segment`].
    pub async fn get_pack_range(
        &self,
        database: DatabaseId,
        digest: Digest,
        range: Range<u64>,
    ) -> Result<Bytes, RepositoryError> {
        self.get_content_range(database, &keys::pack_key(database, digest), range).await
    }

    /// The segments of a timeline in order, each with its bytes of content; with `after`, those that begin behind it.
    ///
    /// A segment that begins at or before `after` and ends behind it is not among them: a caller who goes on from a known
    /// place asks with the transaction before the first it lacks.
    ///
    /// # Errors
    /// Store errors.
    pub async fn segments(
        &self,
        database: DatabaseId,
        timeline: TimelineId,
        after: Option<TxId>,
    ) -> Result<Vec<(SegmentKey, u64)>, RepositoryError> {
        let prefix = keys::log_prefix(database, timeline);
        // 'g' sorts behind '-' and every hex digit: behind all names that begin with that transaction.
        let after = after.map(|tx| format!("{prefix}{tx}g"));
        self.listed(&prefix, after.as_deref(), SegmentKey::parse).await
    }

    /// The timelines of a database that have segments, claimed or not. One listing of folders.
    ///
    /// # Errors
    /// Store errors.
    pub async fn logged_timelines(&self, database: DatabaseId) -> Result<Vec<TimelineId>, RepositoryError> {
        let folders = self.store().list_folders(&keys::all_logs_prefix(database)).await?;
        // Anything else in that folder is not ours.
        Ok(folders.iter().filter_map(|folder| TimelineId::from_key_text(folder).ok()).collect())
    }

    /// The segments of all timelines of a database.
    ///
    /// # Errors
    /// Store errors.
    pub async fn all_segments(
        &self,
        database: DatabaseId,
    ) -> Result<Vec<(SegmentKey, u64)>, RepositoryError> {
        self.listed(&keys::all_logs_prefix(database), None, SegmentKey::parse).await
    }

    /// The base manifests of a database, each with its bytes of content.
    ///
    /// # Errors
    /// Store errors.
    pub async fn bases(&self, database: DatabaseId) -> Result<Vec<(BaseKey, u64)>, RepositoryError> {
        self.listed(&keys::all_bases_prefix(database), None, BaseKey::parse).await
    }

    /// The packs of a database, each with its bytes of content.
    ///
    /// # Errors
    /// Store errors.
    pub async fn packs(&self, database: DatabaseId) -> Result<Vec<(Digest, u64)>, RepositoryError> {
        let prefix = keys::chunk_prefix(database);
        let parse = |key: &str| {
            let digest = key.rsplit('/').next().and_then(|name| name.parse::<Digest>().ok());
            digest.filter(|digest| keys::pack_key(database, *digest) == key).ok_or(())
        };
        self.listed(&prefix, None, parse).await
    }

    /// Lists what parses; other names are not ours (an operator's notes, a newer format's additions).
    async fn listed<K, E>(
        &self,
        prefix: &str,
        after: Option<&str>,
        parse: impl Fn(&str) -> Result<K, E>,
    ) -> Result<Vec<(K, u64)>, RepositoryError> {
        let entries = self.store().list_all(prefix, after).await?;
        // A size no content gives is kept as it is: reading the object will tell what is wrong with it.
        let size = |entry: &ObjectEntry| self.content_size(&entry.key, entry.size).unwrap_or(entry.size);
        Ok(entries.iter().filter_map(|entry| Some((parse(&entry.key).ok()?, size(entry)))).collect())
    }

    fn content_size(&self, key: &str, stored: u64) -> Result<u64, RepositoryError> {
        if !self.encrypted() {
            return Ok(stored);
        }
        envelope::content_len(stored)
            .ok_or_else(|| RepositoryError::damaged(key, format!("no sealed object has {stored} bytes")))
    }

    async fn put_content(
        &self,
        database: DatabaseId,
        key: String,
        digest: Digest,
        body: Body,
    ) -> Result<PutOutcome, RepositoryError> {
        let keys = self.data_keys(database).await?;
        let hasher = keys.as_ref().map_or(Hasher::Plain, |keys| keys.hasher());
        let wrong = Arc::new(AtomicBool::new(false));
        let body = checked(body, &hasher, digest, Arc::clone(&wrong));
        let body = match &keys {
            Some(keys) => {
                let (sealed, _) = envelope::seal_body(&keys.objects, &key, body)?;
                sealed
            }
            None => body,
        };
        match self.store().put_new(&key, body).await {
            Err(StoreError::Body { .. }) if wrong.load(Ordering::Relaxed) => {
                Err(RepositoryError::WrongContent { key })
            }
            other => Ok(other?),
        }
    }

    async fn get_content(
        &self,
        database: DatabaseId,
        key: &str,
        digest: Digest,
    ) -> Result<Bytes, RepositoryError> {
        let keys = self.data_keys(database).await?;
        let stored = present(key, self.store().get(key).await)?;
        let name = key.to_owned();
        // Hashing and opening megabytes would hold up everything else on this thread.
        let work = move || {
            let (content, hasher) = match keys {
                Some(keys) => (envelope::open_whole(&keys.objects, &name, &stored)?, keys.hasher()),
                None => (stored, Hasher::Plain),
            };
            let found = hasher.digest(&content);
            if found == digest {
                return Ok(content);
            }
            Err(RepositoryError::damaged(&name, format!("its content has digest {found}")))
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result,
            // That says nothing of the object.
            Err(died) => Err(StoreError::Failed {
                store: self.store().url().to_owned(),
                action: "check",
                key: key.to_owned(),
                source: Cause::of(&died),
            }
            .into()),
        }
    }

    async fn get_content_range(
        &self,
        database: DatabaseId,
        key: &str,
        range: Range<u64>,
    ) -> Result<Bytes, RepositoryError> {
        let Some(keys) = self.data_keys(database).await? else {
            return present(key, self.store().get_range(key, range).await);
        };
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let header = self.header(key).await?;
        let sealed = Sealed::open(&keys.objects, key, header)?;
        let part = sealed.sealed_range(&range).ok_or_else(|| {
            let reason = format!("it has {} bytes, wanted {}..{}", header.len, range.start, range.end);
            RepositoryError::damaged(key, reason)
        })?;
        let stored = present(key, self.store().get_range(key, part).await)?;
        sealed.open_range(&range, &stored)
    }

    async fn header(&self, key: &str) -> Result<Header, RepositoryError> {
        let headers = || self.inner.headers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(header) = headers().get(key) {
            return Ok(*header);
        }
        let header = Header::parse(key, &present(key, self.store().get_range(key, 0..HEADER).await)?)?;
        let mut headers = headers();
        if headers.len() >= HEADERS_KEPT {
            headers.clear();
        }
        headers.insert(key.to_owned(), header);
        Ok(header)
    }
}

/// An object that is not there, or is shorter than its name or manifest says, is damage to the repository.
fn present(key: &str, got: Result<Bytes, StoreError>) -> Result<Bytes, RepositoryError> {
    match got {
        Err(error) if error.is_missing() => Err(RepositoryError::Missing { key: key.to_owned() }),
        Err(StoreError::Range { range, .. }) => {
            Err(RepositoryError::damaged(key, format!("it has no bytes {}..{}", range.start, range.end)))
        }
        other => Ok(other?),
    }
}

/// Passes a body on, and fails at its end when it has not the digest. Nothing is published then.
fn checked(body: Body, hasher: &Hasher, digest: Digest, wrong: Arc<AtomicBool>) -> Body {
    let len = body.len();
    let mut left = len;
    let mut hashing = hasher.start();
    let mut pieces = body.into_pieces();
    let mut done = false;
    let refused = move || {
        wrong.store(true, Ordering::Relaxed);
        Some(Err(std::io::Error::other("the content does not have the digest in its name")))
    };
    Body::new(
        len,
        std::iter::from_fn(move || {
            if done {
                return None;
            }
            match pieces.next() {
                Some(Ok(piece)) => {
                    hashing.update(&piece);
                    left = left.saturating_sub(piece.len() as u64);
                    // Before the last piece is passed on, or a large body might be complete already.
                    done = left == 0;
                    if done && hashing.finish() != digest { refused() } else { Some(Ok(piece)) }
                }
                None => {
                    done = true;
                    if hashing.finish() == digest { None } else { refused() }
                }
                error => error,
            }
        }),
    )
}
