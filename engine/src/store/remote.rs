//! Object stores over the network, and in memory: the part that speaks `object_store`.
//!
//! Retries: the client repeats a request a few times within a second or two. A store that says that it is busy, or that
//! has answered before, is asked again for some seconds more; a body that breaks off is read on from where it did.
//! Above that, every step (the head of an answer, a piece of its body, a page of a listing) has a deadline, so that an
//! unreachable store is an error within a quarter of a minute whatever the network does with our packets. Waiting
//! longer is for the daemon, which spools.
//!
//! Nothing the driver says is taken on trust: lengths are compared with what was asked for, a listing with its order.

use std::future::Future;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt};
use object_store::path::Path as Location;
use object_store::{
    Error, GetOptions, GetRange, GetResult, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode,
    PutMultipartOptions, PutOptions, PutPayload,
};

use super::{Backend, Body, Cause, ObjectEntry, PutOutcome, StoreError, sorting};

/// How long one step may take before the store counts as unreachable.
const STEP: Duration = Duration::from_secs(12);
/// How long a step is tried again; the last try has to end within [`STEP`].
const PATIENCE: Duration = Duration::from_secs(8);
/// The first pause between tries; each is twice the one before, up to the longest.
const PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How often the body of one answer may break off, each time after the client has read it on some times itself.
const BREAKS: u32 = 3;
/// The slowest line we still wait for when sending, in bytes a second.
const SLOWEST: u64 = 64 * 1024;
/// Bodies above this are sent in parts of this size. S3 allows 10 000 parts: 156 GiB.
const PART: u64 = 16 * 1024 * 1024;

/// A store behind `object_store`, below a prefix.
#[derive(Debug)]
pub(crate) struct RemoteStore {
    url: String,
    /// Empty, or ending in '/'.
    prefix: String,
    store: Box<dyn ObjectStore>,
    /// Whether the environment named credentials; if not, the driver asks the instance's metadata service.
    credentials_named: bool,
    /// It has answered: what fails now is worth another try.
    answered: AtomicBool,
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
        let (answered, no_conditions) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { url, prefix, store, credentials_named, answered, no_conditions }
    }

    fn location(&self, key: &str) -> Result<Location, StoreError> {
        Location::parse(format!("{}{key}", self.prefix))
            .map_err(|error| StoreError::Url { url: self.url.clone(), reason: error.to_string() })
    }

    fn key(&self, location: &Location) -> String {
        let full = location.as_ref();
        full.strip_prefix(self.prefix.as_str()).unwrap_or(full).to_owned()
    }

    /// Runs one step under a deadline, again and again while that may help, and sorts its error.
    async fn step<T, F>(
        &self,
        action: &'static str,
        key: &str,
        deadline: Duration,
        mut work: impl FnMut() -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut patience = Patience::new();
        loop {
            let left = deadline.saturating_sub(patience.begun.elapsed());
            match self.once(left, work()).await? {
                Ok(value) => return Ok(value),
                Err(error) if self.may_pass(&error) && patience.pause().await => {}
                Err(error) => return Err(self.sort(action, key, &error)),
            }
        }
    }

    /// [`RemoteStore::step`] for what cannot be repeated.
    async fn single<T>(
        &self,
        action: &'static str,
        key: &str,
        deadline: Duration,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, StoreError> {
        self.once(deadline, work).await?.map_err(|error| self.sort(action, key, &error))
    }

    /// One try under a deadline. The outer error is that of the deadline.
    async fn once<T>(
        &self,
        deadline: Duration,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<Result<T, Error>, StoreError> {
        let Ok(outcome) = tokio::time::timeout(deadline, work).await else {
            return Err(self.unreachable(Cause("the time for an answer ran out".to_owned())));
        };
        if outcome.is_ok() {
            self.answered.store(true, Ordering::Relaxed);
        }
        Ok(outcome)
    }

    fn unreachable(&self, source: Cause) -> StoreError {
        let store = self.url.clone();
        if self.credentials_named {
            StoreError::Unreachable { store, source }
        } else {
            StoreError::NoCredentials { store, source }
        }
    }

    fn may_pass(&self, error: &Error) -> bool {
        sorting::may_pass(error, self.answered.load(Ordering::Relaxed))
    }

    fn sort(&self, action: &'static str, key: &str, error: &Error) -> StoreError {
        sorting::sorted(&self.url, self.credentials_named, action, key, error)
    }

    async fn put_whole(&self, key: &str, bytes: Bytes) -> Result<PutOutcome, StoreError> {
        if self.no_conditions.load(Ordering::Relaxed) {
            return self.look_then_put(key, bytes).await;
        }
        let location = self.location(key)?;
        let deadline = STEP + Duration::from_secs(bytes.len() as u64 / SLOWEST);
        let outcome = self.step("write", key, deadline, async || {
            let payload = PutPayload::from_bytes(bytes.clone());
            match self.store.put_opts(&location, payload, PutOptions::from(PutMode::Create)).await {
                Ok(_) => Ok(Some(PutOutcome::Created)),
                Err(Error::AlreadyExists { .. }) => Ok(Some(PutOutcome::AlreadyThere)),
                Err(error) if sorting::refuses_conditions(&error) => Ok(None),
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
        let put = || self.store.put(&location, PutPayload::from_bytes(bytes.clone()));
        self.step("write", key, deadline, put).await?;
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
        let begin = || self.store.put_multipart_opts(&location, PutMultipartOptions::default());
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
                let sending = upload.put_part(PutPayload::from_bytes(part));
                self.single("write", key, deadline, sending).await?;
            }
            self.single("write", key, deadline, upload.complete()).await?;
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

/// Pauses between tries, as long as tries are worth it.
struct Patience {
    begun: Instant,
    next: Duration,
}

impl Patience {
    fn new() -> Self {
        Self { begun: Instant::now(), next: PAUSE }
    }

    /// Waits; false, at once, when it is time to give up.
    async fn pause(&mut self) -> bool {
        if self.begun.elapsed() + self.next > PATIENCE {
            return false;
        }
        tokio::time::sleep(self.next).await;
        self.next = (self.next * 2).min(LONGEST_PAUSE);
        true
    }
}

// ---- Reading bodies and listings --------------------------------------------------------------------------------------

impl RemoteStore {
    async fn read(&self, key: &str, asked: Option<Range<u64>>) -> Result<Bytes, StoreError> {
        if asked.as_ref().is_some_and(|asked| asked.start >= asked.end) {
            return Ok(Bytes::new());
        }
        let mut answer = self.ask(key, asked.clone()).await?;
        let (range, version) = (answer.range.clone(), answer.meta.e_tag.clone());
        if let Some(asked) = asked
            && asked != range
        {
            // The driver has seen to it that this is what there is of it: the object is shorter than we believe.
            return Err(StoreError::Range { store: self.url.clone(), key: key.to_owned(), range: asked });
        }
        let mut bytes = BytesMut::new();
        for breaks in 0.. {
            let Some(broken) = self.take_body(key, answer, &mut bytes).await? else { break };
            if breaks == BREAKS {
                return Err(broken);
            }
            tokio::time::sleep(PAUSE).await;
            let rest = range.start + bytes.len() as u64..range.end;
            answer = self.ask(key, Some(rest.clone())).await?;
            if answer.range != rest || answer.meta.e_tag != version {
                return Err(self.failed("read", key, "the object changed while it was read".to_owned()));
            }
        }
        Ok(bytes.freeze())
    }

    /// The head of an answer, whose body is to come.
    async fn ask(&self, key: &str, range: Option<Range<u64>>) -> Result<GetResult, StoreError> {
        let location = self.location(key)?;
        let get = || {
            let range = range.clone().map(GetRange::Bounded);
            self.store.get_opts(&location, GetOptions { range, ..GetOptions::default() })
        };
        let answer = self.step("read", key, STEP, get).await;
        answer.map_err(|error| out_of_range(error, range.as_ref()))
    }

    /// Adds a body to what is there. A body that breaks off is told as `Some`: what came before is good.
    async fn take_body(
        &self,
        key: &str,
        answer: GetResult,
        bytes: &mut BytesMut,
    ) -> Result<Option<StoreError>, StoreError> {
        let mut left = answer.range.end.saturating_sub(answer.range.start);
        let mut pieces = answer.into_stream();
        while left > 0 {
            match self.once(STEP, async { pieces.next().await.transpose() }).await? {
                Ok(Some(piece)) => {
                    let Some(less) = left.checked_sub(piece.len() as u64) else {
                        return Err(self.failed("read", key, "the answer is longer than it says".to_owned()));
                    };
                    left = less;
                    bytes.extend_from_slice(&piece);
                }
                Ok(None) => {
                    let what = format!("the answer ends {left} bytes early");
                    return Ok(Some(self.failed("read", key, what)));
                }
                Err(error) => return Ok(Some(self.sort("read", key, &error))),
            }
        }
        Ok(None)
    }

    /// The next entry of a listing; a listing that broke off is begun again behind what it gave.
    async fn next_entry(&self, listing: &mut Listing) -> Result<Option<ObjectEntry>, StoreError> {
        let mut patience = Patience::new();
        loop {
            let entries = match &mut listing.entries {
                Some(entries) => entries,
                None => listing.entries.insert(self.entries(&listing.prefix, listing.after.as_deref())?),
            };
            let left = STEP.saturating_sub(patience.begun.elapsed());
            match self.once(left, async { entries.next().await.transpose() }).await? {
                Ok(None) => return Ok(None),
                Ok(Some(found)) => {
                    let entry = ObjectEntry { key: self.key(&found.location), size: found.size };
                    if listing.last.as_ref().is_some_and(|last| entry.key <= *last) {
                        return Err(self.failed(
                            "list",
                            &listing.prefix,
                            format!("'{}' is out of order", entry.key),
                        ));
                    }
                    listing.last = Some(entry.key.clone());
                    // Not every store begins where it is asked to: Azure knows that of newer clients alone.
                    if listing.after.as_ref().is_some_and(|after| entry.key <= *after) {
                        // It answers: skipping much takes as long as it takes.
                        patience = Patience::new();
                        continue;
                    }
                    listing.after.clone_from(&listing.last);
                    return Ok(Some(entry));
                }
                Err(error) if self.may_pass(&error) && patience.pause().await => {
                    (listing.entries, listing.last) = (None, None);
                }
                Err(error) => return Err(self.sort("list", &listing.prefix, &error)),
            }
        }
    }

    fn entries(&self, prefix: &str, after: Option<&str>) -> Result<Entries, StoreError> {
        let location = self.location(prefix.trim_end_matches('/'))?;
        Ok(match after {
            Some(after) => self.store.list_with_offset(Some(&location), &self.location(after)?),
            None => self.store.list(Some(&location)),
        })
    }

    fn failed(&self, action: &'static str, key: &str, what: String) -> StoreError {
        StoreError::Failed { store: self.url.clone(), action, key: key.to_owned(), source: Cause(what) }
    }
}

type Entries = BoxStream<'static, Result<ObjectMeta, Error>>;

/// A listing under way.
struct Listing {
    prefix: String,
    /// `None` before the first entry, and after a break.
    entries: Option<Entries>,
    /// Entries up to here are not wanted, or were given already.
    after: Option<String>,
    /// The last entry of the driver's present listing.
    last: Option<String>,
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
        Box::pin(async move { self.read(&key, range).await })
    }

    fn size(&self, key: &str) -> BoxFuture<'_, Result<Option<u64>, StoreError>> {
        let key = key.to_owned();
        Box::pin(async move {
            let location = self.location(&key)?;
            match self.step("read", &key, STEP, || self.store.head(&location)).await {
                Ok(found) => Ok(Some(found.size)),
                Err(error) if error.is_missing() => Ok(None),
                Err(error) => Err(error),
            }
        })
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> BoxStream<'_, Result<ObjectEntry, StoreError>> {
        let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
        let listing = Listing { prefix, entries: None, after, last: None };
        stream::try_unfold(listing, move |mut listing| async move {
            let entry = self.next_entry(&mut listing).await?;
            Ok(entry.map(|entry| (entry, listing)))
        })
        .boxed()
    }

    fn list_folders(&self, prefix: &str) -> BoxFuture<'_, Result<Vec<String>, StoreError>> {
        let prefix = prefix.to_owned();
        Box::pin(async move {
            let location = self.location(prefix.trim_end_matches('/'))?;
            let deadline = STEP * 5; // many pages
            let listing = || self.store.list_with_delimiter(Some(&location));
            let found = self.step("list", &prefix, deadline, listing).await?;
            Ok(found.common_prefixes.iter().map(|folder| self.key(folder)).collect())
        })
    }

    fn delete(&self, key: &str) -> BoxFuture<'_, Result<(), StoreError>> {
        let key = key.to_owned();
        Box::pin(async move {
            let location = self.location(&key)?;
            match self.step("delete", &key, STEP, || self.store.delete(&location)).await {
                Err(error) if !error.is_missing() => Err(error),
                _ => Ok(()),
            }
        })
    }

    fn keeps_conditions(&self) -> Option<bool> {
        self.no_conditions.load(Ordering::Relaxed).then_some(false)
    }
}

/// A range outside the object: for servers a status, for memory a sentence.
fn out_of_range(error: StoreError, range: Option<&Range<u64>>) -> StoreError {
    match (error, range) {
        (StoreError::Failed { store, key, source, .. }, Some(range))
            if source.0.contains("status code: 416") || source.0.contains("but object was only") =>
        {
            StoreError::Range { store, key, range: range.clone() }
        }
        (error, _) => error,
    }
}
