//! Replays the log onto an image: segments are fetched ahead in parallel, and replayed in order on one thread.
//!
//! What is checked against its name: every segment of up to 16 MiB, before it is used; a larger one after its last
//! byte. Of a larger one in whose middle the target lies, what comes after the target is not read, and so its name is
//! not checked. Its header, tables and frames have checksums of their own, the chain joins it to the segment before,
//! and the result must have the state that its tables record.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::digest::{Hasher, Hashing};
use crate::history::SegmentEntry;
use crate::ids::{Digest, Position, TxId};
use crate::restore::progress::{Cancel, Tracker};
use crate::restore::target::io_error;
use crate::restore::{Objects, ReadError, RestoreError};
use crate::segment::{FrameEntry, HEADER_BYTES, PageStore, Prologue, Replayer, SegmentError, SegmentHeader};
use crate::store::keys::SegmentKey;

/// A segment up to this size is fetched whole; a larger one is read piece by piece while it is replayed.
const WHOLE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Bytes of one read of a larger one.
const PIECE_BYTES: u64 = 8 * 1024 * 1024;
/// Bytes of segments fetched ahead, at most.
const AHEAD_BYTES: u32 = 64 * 1024 * 1024;
/// Segments fetched ahead, at most.
const AHEAD: usize = 16;

/// A segment on its way to the replay.
struct Fetched {
    entry: SegmentEntry,
    /// Up to where to replay it.
    until: TxId,
    /// The object, unless it is to be read piece by piece.
    whole: Option<Bytes>,
    /// For the digest of what is read piece by piece.
    hasher: Hasher,
    _room: OwnedSemaphorePermit,
}

/// A run of segments, from a state to a later one.
#[derive(Clone, Debug)]
pub(crate) struct Leg<'a> {
    pub(crate) from: TxId,
    pub(crate) segments: &'a [SegmentEntry],
    pub(crate) until: TxId,
}

/// Replays segments onto an image that is the state where they begin.
pub(crate) async fn replay_log<O: Objects, I: PageStore + Send + 'static>(
    objects: &O,
    leg: &Leg<'_>,
    image: I,
    path: &Path,
    tracker: &Arc<Tracker>,
    cancel: &Cancel,
) -> Result<I, RestoreError> {
    let (send, receive) = mpsc::channel::<Fetched>(1);
    let reader =
        PieceReader { objects: objects.clone(), handle: Handle::current(), tracker: Arc::clone(tracker) };
    let (from, path, stop) = (leg.from, path.to_owned(), cancel.clone());
    let replay = tokio::task::spawn_blocking(move || replay_all(&reader, receive, from, image, &path, &stop));
    let fetching = fetch_all(objects, leg, &send, tracker, cancel).await;
    drop(send);
    let replayed = replay.await.map_err(|_| RestoreError::Stopped)?;
    // When the replay fails, fetching only sees a closed channel: what the replay says comes first.
    let image = replayed?;
    fetching?;
    Ok(image)
}

/// Each segment is replayed up to where the next one begins: a timeline may fork amid a segment of its parent.
fn with_ends<'a>(leg: &'a Leg<'_>) -> impl Iterator<Item = (SegmentEntry, TxId)> + 'a {
    leg.segments.iter().enumerate().map(|(at, entry)| {
        let next = leg.segments.get(at + 1).and_then(|next| next.key.range.first().previous());
        (*entry, next.unwrap_or(leg.until))
    })
}

async fn fetch_all<O: Objects>(
    objects: &O,
    leg: &Leg<'_>,
    send: &mpsc::Sender<Fetched>,
    tracker: &Arc<Tracker>,
    cancel: &Cancel,
) -> Result<(), RestoreError> {
    let room = Arc::new(Semaphore::new(AHEAD_BYTES as usize));
    let Some(first) = leg.segments.first() else { return Ok(()) };
    let hasher = objects.hasher(first.key.database).await?;
    let fetches = with_ends(leg).map(|(entry, until)| {
        let (room, hasher) = (Arc::clone(&room), hasher.clone());
        async move {
            let whole = entry.size <= WHOLE_BYTES_MAX;
            let bytes = if whole { entry.size } else { PIECE_BYTES };
            // First come, first served: the oldest segment never waits for a younger one.
            let bytes = u32::try_from(bytes).unwrap_or(AHEAD_BYTES).min(AHEAD_BYTES);
            let room = room.acquire_many_owned(bytes).await.map_err(|_| RestoreError::Stopped)?;
            cancel.check()?;
            let whole = if whole { Some(objects.segment(entry.key).await?) } else { None };
            if let Some(bytes) = &whole {
                tracker.read(bytes.len() as u64);
            }
            Ok::<Fetched, RestoreError>(Fetched { entry, until, whole, hasher, _room: room })
        }
    });
    let mut fetched = futures::stream::iter(fetches).buffered(AHEAD);
    while let Some(segment) = fetched.next().await {
        if send.send(segment?).await.is_err() {
            return Err(RestoreError::Stopped);
        }
    }
    Ok(())
}

fn replay_all<O: Objects, I: PageStore>(
    reader: &PieceReader<O>,
    mut receive: mpsc::Receiver<Fetched>,
    from: TxId,
    mut image: I,
    path: &Path,
    cancel: &Cancel,
) -> Result<I, RestoreError> {
    let mut replay = Replay { replayer: Replayer::new(), at: from, last: None };
    while let Some(fetched) = receive.blocking_recv() {
        cancel.check()?;
        let key = fetched.entry.key;
        let done = match fetched.whole {
            Some(bytes) => replay.object(&key, fetched.until, Whole { bytes, at: 0 }, &mut image),
            None => replay.object(
                &key,
                fetched.until,
                Pieces::new(reader, fetched.entry, &fetched.hasher),
                &mut image,
            ),
        };
        done.map_err(|error| explain(error, &key, path, cancel))?;
    }
    Ok(image)
}

/// Why the replay of one object ended.
enum Failure {
    Segment(SegmentError),
    Read(RestoreError),
    Says(String),
    /// It does not go on from the segment before it; or a part of it from the part before.
    Chain {
        before: SegmentKey,
    },
}

impl From<SegmentError> for Failure {
    fn from(error: SegmentError) -> Self {
        Self::Segment(error)
    }
}

fn explain(failure: Failure, key: &SegmentKey, path: &Path, cancel: &Cancel) -> RestoreError {
    match failure {
        Failure::Read(error) => error,
        Failure::Says(what) => ReadError::Damaged { object: key.to_string(), what }.into(),
        Failure::Chain { before } if before == *key => {
            ReadError::damaged(key, &"its parts do not follow each other: the chain is broken").into()
        }
        Failure::Chain { before } => {
            RestoreError::ChainBroken { before: Box::new(before), segment: Box::new(*key) }
        }
        Failure::Segment(SegmentError::Image { .. } | SegmentError::Commit { .. })
            if cancel.is_cancelled() =>
        {
            RestoreError::Cancelled
        }
        Failure::Segment(SegmentError::Image { source, .. } | SegmentError::Commit { source, .. }) => {
            match source.downcast::<RestoreError>() {
                Ok(error) => error,
                Err(source) => io_error("replay the log in", path, source),
            }
        }
        Failure::Segment(SegmentError::Fetch { source, .. }) => match source.downcast::<RestoreError>() {
            Ok(error) => error,
            Err(source) => io_error("read a segment for", path, source),
        },
        Failure::Segment(error @ SegmentError::NotAdjacent { .. }) => {
            RestoreError::NotJoined { segment: Box::new(*key), source: Box::new(error) }
        }
        Failure::Segment(error) => ReadError::of_segment(key, &error).into(),
    }
}

/// The bytes of a segment object from its beginning, given in order.
trait Stream {
    /// The next `len` bytes, or those left if there are fewer.
    fn take(&mut self, len: u64) -> Result<Bytes, RestoreError>;
    /// Passes over the next `len` bytes, of whatever number, without keeping them.
    fn skip(&mut self, len: u64) -> Result<(), RestoreError>;
    /// Whether everything was taken.
    fn is_empty(&self) -> bool;
    /// After the last byte: whether all were those that the name promises.
    fn check(&self, key: &SegmentKey) -> Result<(), ReadError>;
}

struct Replay {
    replayer: Replayer,
    at: TxId,
    /// The end of the last part: of which segment, where, and with what chain hash.
    last: Option<(SegmentKey, Position, Digest)>,
}

impl Replay {
    fn object(
        &mut self,
        key: &SegmentKey,
        until: TxId,
        mut stream: impl Stream,
        image: &mut dyn PageStore,
    ) -> Result<(), Failure> {
        let mut first = true;
        while !stream.is_empty() && self.at < until {
            let head = stream.take(HEADER_BYTES as u64).map_err(Failure::Read)?;
            let rest = (Prologue::needed(&head)? - head.len().min(HEADER_BYTES)) as u64;
            let mut prologue = BytesMut::from(&head[..]);
            prologue.extend_from_slice(&stream.take(rest).map_err(Failure::Read)?);
            let prologue = Prologue::parse(&prologue)?;
            self.check_header(key, &prologue.header, first)?;
            first = false;
            let end = Position::new(key.timeline, prologue.header.range.last());
            self.last = Some((*key, end, prologue.header.chain_after));
            if end.tx <= self.at {
                // The base holds it already.
                stream.skip(prologue.header.frames_len).map_err(Failure::Read)?;
                continue;
            }
            let mut offset = 0;
            let mut fetch = |frame: &FrameEntry| {
                // Frames come in order; those that are not asked for are passed over.
                stream.skip(frame.offset - offset).map_err(io::Error::other)?;
                offset = frame.offset + u64::from(frame.len);
                stream.take(frame.len.into()).map_err(io::Error::other)
            };
            self.at = self.replayer.replay(&prologue, &mut fetch, self.at, until, image)?;
            if end.tx > until {
                // What comes after the target is not read: it may be one huge transaction.
                return Ok(());
            }
            stream.skip(prologue.header.frames_len - offset).map_err(Failure::Read)?;
        }
        if self.at < until {
            return Err(Failure::Says(format!("it ends with transaction {}, expected {until}", self.at)));
        }
        if stream.is_empty() {
            stream.check(key).map_err(|error| Failure::Read(error.into()))?;
        }
        Ok(())
    }

    /// The header must say what the name says, and go on where the part before ended.
    fn check_header(&self, key: &SegmentKey, header: &SegmentHeader, first: bool) -> Result<(), Failure> {
        let same = header.database == key.database
            && header.timeline == key.timeline
            && key.range.contains(header.range.last())
            && (!first || header.range.first() == key.range.first());
        if !same {
            let (timeline, range) = (header.timeline, header.range);
            let what = format!(
                "it holds transactions {} to {} of timeline {timeline} of database {}",
                range.first(),
                range.last(),
                header.database
            );
            return Err(Failure::Says(what));
        }
        match &self.last {
            Some((before, end, chain))
                if end.timeline == key.timeline
                    && end.tx.next() == header.range.first()
                    && header.chain_before != *chain =>
            {
                Err(Failure::Chain { before: *before })
            }
            _ => Ok(()),
        }
    }
}

struct Whole {
    bytes: Bytes,
    at: usize,
}

impl Stream for Whole {
    fn take(&mut self, len: u64) -> Result<Bytes, RestoreError> {
        let left = self.bytes.len() - self.at;
        let len = usize::try_from(len).map_or(left, |len| len.min(left));
        let taken = self.bytes.slice(self.at..self.at + len);
        self.at += len;
        Ok(taken)
    }

    fn skip(&mut self, len: u64) -> Result<(), RestoreError> {
        self.take(len).map(drop)
    }

    fn is_empty(&self) -> bool {
        self.at == self.bytes.len()
    }

    fn check(&self, _: &SegmentKey) -> Result<(), ReadError> {
        // It was checked when it was fetched.
        Ok(())
    }
}

/// Reads large segments from the blocking thread.
struct PieceReader<O> {
    objects: O,
    handle: Handle,
    tracker: Arc<Tracker>,
}

/// A large segment, read piece by piece with one piece ahead.
struct Pieces<'a, O: Objects> {
    reader: &'a PieceReader<O>,
    entry: SegmentEntry,
    /// Bytes that were asked for.
    asked: u64,
    /// Bytes that were taken.
    taken: u64,
    here: Bytes,
    ahead: Option<tokio::task::JoinHandle<Result<Bytes, ReadError>>>,
    hashing: Hashing,
}

impl<'a, O: Objects> Pieces<'a, O> {
    fn new(reader: &'a PieceReader<O>, entry: SegmentEntry, hasher: &Hasher) -> Self {
        let hashing = hasher.start();
        Self { reader, entry, asked: 0, taken: 0, here: Bytes::new(), ahead: None, hashing }
    }

    fn ask(&mut self) {
        let end = self.asked.saturating_add(PIECE_BYTES).min(self.entry.size);
        let range: Range<u64> = self.asked..end;
        if range.is_empty() {
            return;
        }
        let (objects, key) = (self.reader.objects.clone(), self.entry.key);
        self.asked = end;
        let read = async move { objects.segment_range(key, range).await };
        self.ahead = Some(self.reader.handle.spawn(read));
    }

    fn next_piece(&mut self) -> Result<Bytes, RestoreError> {
        if self.ahead.is_none() {
            self.ask();
        }
        let Some(ahead) = self.ahead.take() else { return Ok(Bytes::new()) };
        let piece = self.reader.handle.block_on(ahead).map_err(|_| RestoreError::Stopped)??;
        self.ask();
        self.reader.tracker.read(piece.len() as u64);
        self.hashing.update(&piece);
        Ok(piece)
    }
}

impl<O: Objects> Drop for Pieces<'_, O> {
    fn drop(&mut self) {
        if let Some(ahead) = self.ahead.take() {
            ahead.abort();
        }
    }
}

impl<O: Objects> Stream for Pieces<'_, O> {
    fn take(&mut self, len: u64) -> Result<Bytes, RestoreError> {
        let len = usize::try_from(len.min(self.entry.size - self.taken)).unwrap_or(usize::MAX);
        if self.here.len() >= len {
            self.taken += len as u64;
            return Ok(self.here.split_to(len));
        }
        let mut joined = BytesMut::with_capacity(len);
        while joined.len() < len {
            if self.here.is_empty() {
                self.here = self.next_piece()?;
            }
            if self.here.is_empty() {
                break;
            }
            let part = self.here.split_to((len - joined.len()).min(self.here.len()));
            joined.extend_from_slice(&part);
        }
        self.taken += joined.len() as u64;
        Ok(joined.freeze())
    }

    fn skip(&mut self, len: u64) -> Result<(), RestoreError> {
        let mut left = len;
        while left > 0 && !self.is_empty() {
            let piece = self.take(left.min(PIECE_BYTES))?;
            if piece.is_empty() {
                break;
            }
            left -= piece.len() as u64;
        }
        Ok(())
    }

    fn is_empty(&self) -> bool {
        self.taken >= self.entry.size
    }

    fn check(&self, key: &SegmentKey) -> Result<(), ReadError> {
        let found = self.hashing.finish();
        if found == key.digest {
            return Ok(());
        }
        Err(ReadError::damaged(key, &format!("its bytes have digest {found}")))
    }
}
