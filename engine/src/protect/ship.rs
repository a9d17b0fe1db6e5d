//! The shipping task: puts waiting groups of parts into the store, in order of time, and says when they are durable.
//!
//! A put that fails is tried again for ever, with growing pauses: the commits are in memory or in the spool, and the
//! operator sees the reason in the status. Segments are content-addressed and created only if absent, so a put whose
//! answer was lost is simply put again.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesOrdered;

use crate::error::Explain;
use crate::failpoint;
use crate::ids::{DatabaseId, Position, TimelineId};
use crate::protect::error::ProtectError;
use crate::protect::frames::PartBody;
use crate::protect::outbox::{OutboxQueue, Shipment};
use crate::history::Point;
use crate::protect::status::Board;
use crate::repository::Repository;
use crate::store::Body;
use crate::store::keys::SegmentKey;

/// Groups put at the same time.
const PARALLEL: usize = 4;
/// A group up to this size is put from memory. 8 MiB.
const MEMORY_MAX: u64 = 8 << 20;
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// How often a busy writer looks for a newer claim of its database.
const CLAIM_LOOK: Duration = Duration::from_secs(5);

/// Ships the parts of one timeline.
pub(crate) struct Shipper {
    pub(crate) repository: Repository,
    pub(crate) database: DatabaseId,
    pub(crate) timeline: TimelineId,
    pub(crate) queue: OutboxQueue,
    pub(crate) board: Board,
    /// For groups too large for memory.
    pub(crate) scratch: PathBuf,
}

impl Shipper {
    /// Runs until the queue is closed and everything in it is durable.
    pub(crate) async fn run(self) {
        let mut flying = FuturesOrdered::new();
        let mut looked = tokio::time::Instant::now();
        loop {
            while flying.len() < PARALLEL
                && let Some(shipment) = self.queue.take()
            {
                flying.push_back(self.put(shipment));
            }
            if flying.is_empty() && self.queue.is_finished() {
                return;
            }
            tokio::select! {
                Some(stored) = flying.next(), if !flying.is_empty() => {
                    self.stored(&stored);
                    if looked.elapsed() >= CLAIM_LOOK {
                        looked = tokio::time::Instant::now();
                        self.look_for_newer_claim().await;
                    }
                }
                () = self.queue.arrival() => {}
            }
        }
    }

    /// Tells when another writer has claimed a newer timeline of this database. Loses nothing either way.
    pub(crate) async fn look_for_newer_claim(&self) {
        match self.repository.timeline(self.database, self.timeline.next()).await {
            Ok(Some(newer)) => self.board.note(format!(
                "timeline {} was claimed by {} at {}: {}; this daemon goes on with timeline {}, both histories are kept",
                newer.id, newer.host_name, newer.claimed_at, newer.why, self.timeline
            )),
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, "cannot look for newer claims"),
        }
    }

    /// Puts one group until it is durable.
    async fn put(&self, shipment: Shipment) -> Stored {
        let mut pause = PAUSE_MIN;
        loop {
            match self.try_put(&shipment).await {
                Ok(bytes) => {
                    self.board.store_trouble(None);
                    return Stored { shipment, bytes };
                }
                Err(error) => {
                    let advice = error.advice().map(|advice| format!("; {advice}")).unwrap_or_default();
                    self.board.store_trouble(Some(format!("cannot store commits: {}{advice}", chain(&error))));
                    tracing::warn!(error = %chain(&error), "cannot store a segment, trying again in {pause:?}");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    async fn try_put(&self, shipment: &Shipment) -> Result<u64, ProtectError> {
        let body = self.body(shipment).await?;
        let (digest, bytes) = match &body {
            Body::Bytes(bytes) => (self.repository.hasher(self.database).digest(bytes), bytes.len() as u64),
            Body::File(path) => {
                let (hasher, path) = (self.repository.hasher(self.database), path.clone());
                let read = blocking(move || {
                    let mut file = std::fs::File::open(&path)?;
                    let length = file.metadata()?.len();
                    let mut running = hasher.start();
                    std::io::copy(&mut file, &mut running)?;
                    Ok((running.finish(), length))
                });
                read.await.map_err(|source| self.state_error(source))?
            }
        };
        let parts = (shipment.parts.first(), shipment.parts.last());
        let (Some(first), Some(last)) = parts else { return Ok(0) };
        let key = SegmentKey {
            database: self.database,
            timeline: self.timeline,
            range: shipment.range,
            from: first.from,
            to: last.to,
            flags: first.flags,
            digest,
        };
        failpoint::hit("segment_before_put");
        self.repository.put_segment(&key, body).await?;
        failpoint::hit("segment_after_put");
        Ok(bytes)
    }

    /// The bytes of a group: in memory when small, else one file.
    async fn body(&self, shipment: &Shipment) -> Result<Body, ProtectError> {
        if let [part] = shipment.parts.as_slice() {
            match &part.body {
                PartBody::Memory(bytes) => return Ok(Body::Bytes(bytes.clone())),
                PartBody::File { path, len } if *len > MEMORY_MAX => return Ok(Body::File(path.clone())),
                PartBody::File { .. } => {}
            }
        }
        let total: u64 = shipment.parts.iter().map(|part| part.body.len()).sum();
        let bodies: Vec<_> = shipment.parts.iter().map(|part| part.body.clone()).collect();
        let target = self.scratch.join(format!("ship-{}.partial", shipment.range.first()));
        let joined = blocking(move || {
            if total <= MEMORY_MAX {
                let mut bytes = Vec::with_capacity(usize::try_from(total).unwrap_or(0));
                bodies.iter().try_for_each(|body| append(body, &mut bytes))?;
                return Ok(Body::Bytes(Bytes::from(bytes)));
            }
            let mut file = std::fs::File::create(&target)?;
            bodies.iter().try_for_each(|body| append(body, &mut file))?;
            Ok(Body::File(target))
        });
        joined.await.map_err(|source| self.state_error(source))
    }

    fn stored(&self, stored: &Stored) {
        let Stored { shipment, bytes } = stored;
        for part in &shipment.parts {
            let _ = std::fs::remove_file(self.scratch.join(format!("{}-{}.part", part.range.first(), part.range.last())));
        }
        let _ = std::fs::remove_file(self.scratch.join(format!("ship-{}.partial", shipment.range.first())));
        failpoint::hit("spool_after_delete");
        let next = self.queue.done();
        self.board.update(|status| {
            status.segments_total += 1;
            status.stored_bytes_total += bytes;
        });
        if let Some(last) = shipment.parts.last() {
            let position = Position::new(self.timeline, shipment.range.last());
            self.board.stored(Point { position, time: last.to }, next);
        }
    }

    fn state_error(&self, source: std::io::Error) -> ProtectError {
        ProtectError::State { folder: self.scratch.clone(), source }
    }
}

struct Stored {
    shipment: Shipment,
    bytes: u64,
}

fn append(body: &PartBody, out: &mut impl Write) -> std::io::Result<()> {
    match body {
        PartBody::Memory(bytes) => out.write_all(bytes),
        PartBody::File { path, len } => {
            let copied = std::io::copy(&mut std::fs::File::open(path)?.take(*len), out)?;
            if copied == *len { Ok(()) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) }
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|died| Err(std::io::Error::other(died)))
}

/// An error and its sources on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}
