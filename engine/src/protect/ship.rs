//! The shipping task: puts waiting groups of parts into the store, one after another, and says when they are durable.
//!
//! One after another, because the store must never hold a segment without those before it: after a kill the start
//! would give the numbers behind such a hole to other transactions. It costs nothing: what waits meanwhile travels
//! together, so a slow store gets larger segments, not more of them at once.
//!
//! A put that fails is tried again for ever, with growing pauses: the commits are in memory or in the spool, and the
//! operator sees the reason in the status. Only a part that has gone from the spool cannot be had again: then the task
//! ends, and the run with it, and the next one looks what is missing. Segments are content-addressed and created only
//! if absent, so a put whose answer was lost is simply put again.

use std::io;
use std::time::Duration;

use crate::digest::Hasher;
use crate::error::{Explain, chain, explained};
use crate::failpoint;
use crate::history::Point;
use crate::ids::{DatabaseId, Digest, Position, TimelineId};
use crate::protect::error::ProtectError;
use crate::protect::frames::PartBody;
use crate::protect::outbox::{OutboxQueue, Shipment};
use crate::protect::rival::RivalWatch;
use crate::protect::spool::Spool;
use crate::protect::status::Board;
use crate::repository::{Repository, Timeline};
use crate::store::Body;
use crate::store::keys::SegmentKey;

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
    /// Where durable parts are deleted.
    pub(crate) spool: Spool,
    /// Looks after other daemons.
    pub(crate) watch: RivalWatch,
}

impl Shipper {
    /// Runs until the queue is closed and everything in it is durable, or until something of it is lost.
    pub(crate) async fn run(mut self) {
        let mut looked = tokio::time::Instant::now();
        // What was stored since nobody has looked.
        let mut owed = false;
        while !self.queue.is_finished() {
            let Some(shipment) = self.queue.take() else {
                if !owed && !self.watch.is_waiting() {
                    self.queue.arrival().await;
                } else if tokio::time::timeout_at(looked + CLAIM_LOOK, self.queue.arrival()).await.is_err() {
                    (looked, owed) = (tokio::time::Instant::now(), false);
                    self.look_for_others().await;
                }
                continue;
            };
            let Some(bytes) = self.put(&shipment).await else {
                tracing::error!(range = ?shipment.range, "a captured part is gone from the spool folder");
                return;
            };
            self.stored(&shipment, bytes);
            owed = looked.elapsed() < CLAIM_LOOK;
            if !owed {
                looked = tokio::time::Instant::now();
                self.look_for_others().await;
            }
        }
    }

    async fn look_for_others(&mut self) {
        self.watch.look(&self.repository, &self.board, self.database, self.timeline).await;
    }

    /// Puts one group until it is durable; gives its bytes. `None` when a part of it is gone.
    async fn put(&self, shipment: &Shipment) -> Option<u64> {
        self.board.until_based().await;
        let put = || async {
            match self.try_put(shipment).await {
                Err(ProtectError::State { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    Ok(None)
                }
                put => put.map(Some),
            }
        };
        until_durable(&self.board, "commits", put).await
    }

    async fn try_put(&self, shipment: &Shipment) -> Result<u64, ProtectError> {
        let (Some(first), Some(last)) = (shipment.parts.first(), shipment.parts.last()) else { return Ok(0) };
        let hasher = self.repository.hasher(self.database).await?;
        let digest = digest(&hasher, shipment).await.map_err(|source| self.state_error(source))?;
        let key = SegmentKey {
            database: self.database,
            timeline: self.timeline,
            range: shipment.range,
            from: first.from,
            to: last.to,
            flags: first.flags,
            digest,
        };
        let body = body(shipment).map_err(|source| self.state_error(source))?;
        let bytes = body.len();
        failpoint::hit("segment_before_put");
        self.repository.put_segment(&key, body).await?;
        failpoint::hit("segment_after_put");
        Ok(bytes)
    }

    fn stored(&self, shipment: &Shipment, bytes: u64) {
        // Before they are deleted: else the capture thread would write those in memory to the spool again.
        self.queue.done();
        shipment.parts.iter().for_each(|part| self.spool.remove(part.range));
        failpoint::hit("spool_after_delete");
        self.board.update(|status| {
            status.segments_total += 1;
            status.stored_bytes_total += bytes;
        });
        if let Some(last) = shipment.parts.last() {
            let position = Position::new(self.timeline, shipment.range.last());
            self.board.stored(Point { position, time: last.to });
        }
    }

    fn state_error(&self, source: io::Error) -> ProtectError {
        ProtectError::State { folder: self.spool.folder().to_owned(), source }
    }
}

/// Puts again and again until it is durable, with growing pauses. The status and the log say what is in the way.
pub(crate) async fn until_durable<F, T, E>(board: &Board, what: &'static str, put: impl Fn() -> F) -> T
where
    F: Future<Output = Result<T, E>>,
    E: Explain,
{
    let mut pause = PAUSE_MIN;
    loop {
        match put().await {
            Ok(stored) => {
                board.store_trouble(what, None);
                return stored;
            }
            Err(error) => {
                board.store_trouble(what, Some(format!("cannot store {what}: {}", explained(&error))));
                tracing::warn!(error = %chain(&error), "cannot store {what}, trying again in {pause:?}");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}

/// The digest of a group's bytes; parts in files are read through on a blocking thread.
async fn digest(hasher: &Hasher, shipment: &Shipment) -> io::Result<Digest> {
    let mut hashing = hasher.start();
    let body = body(shipment)?;
    let hash = move || {
        for piece in body.into_pieces() {
            hashing.update(&piece?);
        }
        Ok(hashing.finish())
    };
    let in_memory = shipment.parts.iter().all(|part| matches!(part.body, PartBody::Memory(_)));
    if in_memory {
        return hash();
    }
    tokio::task::spawn_blocking(hash).await.unwrap_or_else(|died| Err(io::Error::other(died)))
}

/// The bytes of a group, part after part.
fn body(shipment: &Shipment) -> io::Result<Body> {
    let mut whole: Option<Body> = None;
    for part in &shipment.parts {
        let next = match &part.body {
            PartBody::Memory(bytes) => Body::from(bytes.clone()),
            PartBody::File { path, .. } => Body::file(path)?,
        };
        whole = Some(match whole {
            Some(before) => before.then(next),
            None => next,
        });
    }
    Ok(whole.unwrap_or_else(|| Body::from(bytes::Bytes::new())))
}

/// Tells when another writer has claimed a newer timeline of this database, and gives the newest claim. Loses nothing
/// either way.
pub(crate) async fn tell_newer_claim(
    repository: &Repository,
    board: &Board,
    database: DatabaseId,
    timeline: TimelineId,
) -> Option<Timeline> {
    match repository.newer_claim(database, timeline).await {
        Ok(Some(newer)) => {
            board.note(format!(
                "another daemon, on {}, protects this database since {}: its timeline {} is the main line. What this one \
                 stores, on timeline {timeline}, is kept, and restored by position only. Stop one of the two",
                newer.host_name, newer.claimed, newer.id
            ));
            Some(newer)
        }
        Ok(None) => None,
        Err(error) => {
            tracing::debug!(%error, "cannot look for newer claims");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::repository::RepositoryError;

    #[tokio::test]
    async fn what_cannot_be_put_is_put_again_and_the_status_says_why_and_what_to_do() {
        let board = Board::new("app", PathBuf::new());
        let tries = AtomicU32::new(0);
        let put = || async {
            let reasons = board.now().reasons;
            match tries.fetch_add(1, Ordering::Relaxed) {
                0 => assert!(!reasons.iter().any(|reason| reason.contains("cannot store")), "{reasons:?}"),
                1 => {
                    let told = reasons.iter().find(|reason| reason.starts_with("cannot store a base: "));
                    assert!(told.is_some_and(|told| told.contains("try again")), "{reasons:?}");
                    return Ok(7);
                }
                _ => {}
            }
            Err(RepositoryError::Conflict { key: "x".to_owned() })
        };
        assert_eq!(until_durable(&board, "a base", put).await, 7);
        assert_eq!(tries.load(Ordering::Relaxed), 2);
        assert!(!board.now().reasons.iter().any(|reason| reason.contains("cannot store")));
    }
}
