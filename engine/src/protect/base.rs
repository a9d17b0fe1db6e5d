//! Makes bases: full images at one position, in chunks shared with the base before.
//!
//! The image is read, compressed and packed while the database goes on changing; packs go to the store while the
//! reading goes on. When the store is slower than the disk, finished packs wait in the state folder: the source keeps
//! what changes before it is read, and should not do so for as long as a store takes. As many as the spool may hold,
//! and never so many that the application's disk gets full; then the image waits with them. The manifest comes last: a
//! base exists when its manifest does.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::base::{BaseBuilder, Manifest, Pack, PackRef};
use crate::capture::sink::Image;
use crate::digest::Hasher;
use crate::disk;
use crate::error::{ErrorKind, Explain, chain};
use crate::failpoint;
use crate::history::Point;
use crate::ids::{DatabaseId, Digest, Position};
use crate::page::StateChecksum;
use crate::protect::error::ProtectError;
use crate::protect::packing::{Packed, pack_image};
use crate::protect::ship::until_durable;
use crate::protect::status::Board;
use crate::repository::Repository;
use crate::store::keys::BaseKey;
use crate::time::Timestamp;

/// Packs that may wait in memory for the store; more wait on disk.
const PACKS_IN_MEMORY: usize = 2;
/// Between two looks whether the store has taken a pack.
const ROOM_PAUSE: Duration = Duration::from_millis(20);

/// One base to be made.
pub(crate) struct BaseJob {
    pub(crate) repository: Repository,
    pub(crate) database: DatabaseId,
    pub(crate) point: Point,
    /// The state that was captured there; the image must have it.
    pub(crate) state: StateChecksum,
    pub(crate) image: Box<dyn Image>,
    /// The base before, whose chunks are referenced where they are the same; looked for when not known.
    pub(crate) previous: Option<Arc<Manifest>>,
    /// Whether the log that leads to it is to be in the store before: else it is the log that waits for the base.
    pub(crate) after_log: bool,
    pub(crate) board: Board,
    /// See [`Board::base_epoch`].
    pub(crate) epoch: u64,
    /// Where packs wait for a slow store.
    pub(crate) scratch: PathBuf,
    /// How many bytes of them.
    pub(crate) parked_max: u64,
}

enum ReadyPack {
    Memory(Digest, bytes::Bytes),
    File(Digest, PathBuf),
}

/// Packs that wait on disk, for as long as their base is being made: what is left of one that was given up is swept.
struct Parking {
    folder: PathBuf,
    bytes: AtomicU64,
    bytes_max: u64,
    board: Board,
}

impl Parking {
    fn new(folder: PathBuf, bytes_max: u64, board: Board) -> Self {
        Self { folder, bytes: AtomicU64::new(0), bytes_max, board }
    }

    fn has_room(&self, len: u64) -> bool {
        self.bytes.load(Ordering::Relaxed) + len <= self.bytes_max && disk::has_room(&self.folder, len)
    }

    fn park(&self, pack: &Pack) -> std::io::Result<PathBuf> {
        let path = self.folder.join(format!("pack-{}.partial", pack.digest));
        if let Err(error) = std::fs::write(&path, &pack.bytes) {
            let _ = std::fs::remove_file(path);
            return Err(error);
        }
        self.count(|bytes| bytes + pack.bytes.len() as u64);
        Ok(path)
    }

    /// The store has it.
    fn leave(&self, path: &Path, len: u64) {
        let _ = std::fs::remove_file(path);
        self.count(|bytes| bytes.saturating_sub(len));
    }

    fn count(&self, change: impl Fn(u64) -> u64) {
        let _ = self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |bytes| Some(change(bytes)));
        self.board.parked(self.bytes.load(Ordering::Relaxed));
    }
}

impl Drop for Parking {
    fn drop(&mut self) {
        self.board.parked(0);
    }
}

impl BaseJob {
    /// Makes the base. A store that does not take something is waited out; one that cannot tell what it has, or an
    /// image that is not what was captured, is an error.
    pub(crate) async fn run(mut self) -> Result<Arc<Manifest>, ProtectError> {
        self.previous =
            reusable(&self.repository, self.database, self.point.position, self.previous.take()).await?;
        let after_log = self.after_log;
        let (database, point, repository, board) =
            (self.database, self.point, self.repository.clone(), self.board.clone());
        let (scratch, epoch) = (self.scratch.clone(), self.epoch);
        // What an attempt before has left.
        sweep(&scratch).map_err(|source| state_error(&scratch, source))?;
        let parking = Arc::new(Parking::new(scratch.clone(), self.parked_max, board.clone()));
        let (near, mut packs) = mpsc::unbounded_channel();
        let in_memory = Arc::new(tokio::sync::Semaphore::new(PACKS_IN_MEMORY));
        let (slots, parked) = (Arc::clone(&in_memory), Arc::clone(&parking));
        let hasher = repository.hasher(database).await?;
        let naming = hasher.clone();
        let reading = on_own_thread(move || self.read(hasher, &near, &slots, &parked))
            .map_err(|source| state_error(&scratch, source))?;
        while let Some(pack) = packs.recv().await {
            let (digest, bytes, file): (Digest, bytes::Bytes, _) = match pack {
                ReadyPack::Memory(digest, bytes) => (digest, bytes, None),
                ReadyPack::File(digest, path) => {
                    let read = tokio::fs::read(&path).await;
                    (digest, read.map_err(|source| state_error(&scratch, source))?.into(), Some(path))
                }
            };
            until_durable(&board, "a base", || repository.put_pack(database, digest, bytes.clone())).await;
            board.update(|status| status.stored_bytes_total += bytes.len() as u64);
            failpoint::hit("pack_after_put");
            match file {
                Some(path) => parking.leave(&path, bytes.len() as u64),
                None => in_memory.add_permits(1),
            }
        }
        let died = |_| ProtectError::TaskDied { what: "reading an image".into() };
        let manifest = Arc::new(reading.await.map_err(died)??);
        let bytes: bytes::Bytes = manifest.encode()?.into();
        let digest = naming.digest(&bytes);
        let key = BaseKey { database, position: point.position, digest };
        if after_log {
            // A kill may lose the last of the log, and the position then belongs to another transaction.
            board.until_durable(point.position).await;
        }
        failpoint::hit("base_before_manifest");
        until_durable(&board, "a base", || repository.put_base(&key, bytes.clone())).await;
        failpoint::hit("base_after_manifest");
        board.update(|status| {
            status.base.newest = Some(point);
            (status.base.pages_done, status.base.pages_total) = (None, None);
            status.stored_bytes_total += bytes.len() as u64;
        });
        board.base_made(epoch);
        Ok(manifest)
    }

    /// Reads the image through. Blocking.
    fn read(
        mut self,
        hasher: Hasher,
        packs: &mpsc::UnboundedSender<ReadyPack>,
        slots: &tokio::sync::Semaphore,
        parking: &Parking,
    ) -> Result<Manifest, ProtectError> {
        let (page_size, count) = (self.image.page_size(), self.image.page_count());
        let (position, time) = (self.point.position, self.point.time);
        let mut builder = BaseBuilder::new(hasher, self.database, position, time, page_size);
        if let Some(previous) = &self.previous {
            builder.reuse(previous);
        }
        let mut ready = Ready { packs, slots, parking, may_park: true, board: &self.board, count };
        let state = pack_image(&mut *self.image, &mut builder, &mut ready)?;
        if state != self.state {
            return Err(ProtectError::ImageDiffers { position: self.point.position });
        }
        let (last, manifest) = builder.finish(count, state)?;
        if let Some(pack) = last {
            ready.pack(pack)?;
        }
        Ok(manifest)
    }
}

/// Where packs go that are ready.
struct Ready<'a> {
    packs: &'a mpsc::UnboundedSender<ReadyPack>,
    slots: &'a tokio::sync::Semaphore,
    parking: &'a Parking,
    /// Unless the disk has refused one.
    may_park: bool,
    board: &'a Board,
    count: u32,
}

impl Ready<'_> {
    /// Where a pack waits for the store: in memory, or else on disk, or else with the image until there is room.
    fn place(&mut self, pack: Pack) -> ReadyPack {
        loop {
            if let Ok(slot) = self.slots.try_acquire() {
                slot.forget();
                break;
            }
            if self.may_park && self.parking.has_room(pack.bytes.len() as u64) {
                match self.parking.park(&pack) {
                    Ok(path) => return ReadyPack::File(pack.digest, path),
                    Err(error) => {
                        tracing::debug!(%error, "packs wait for the store in memory, and the image with them");
                        self.may_park = false;
                    }
                }
            }
            if self.packs.is_closed() {
                break;
            }
            std::thread::sleep(ROOM_PAUSE);
        }
        ReadyPack::Memory(pack.digest, pack.bytes.into())
    }
}

impl Packed for Ready<'_> {
    fn pack(&mut self, pack: Pack) -> Result<(), ProtectError> {
        let ready = self.place(pack);
        self.packs.send(ready).map_err(|_| ProtectError::TaskDied { what: "base upload".into() })
    }

    fn read(&mut self, pages: u32) {
        self.board.update(|s| (s.base.pages_done, s.base.pages_total) = (Some(pages), Some(self.count)));
    }
}

/// Does `work` on a thread that ends with it: one of a pool would keep the low priority.
fn on_own_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<oneshot::Receiver<T>> {
    let (send, receive) = oneshot::channel();
    let run = move || drop(send.send(work()));
    std::thread::Builder::new().name("base".into()).spawn(run)?;
    Ok(receive)
}

fn state_error(folder: &Path, source: std::io::Error) -> ProtectError {
    ProtectError::State { folder: folder.to_owned(), source }
}

/// Sweeps what an earlier process left of a base.
pub(crate) fn sweep(scratch: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(scratch)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("pack-") {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// What decides when the next base is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BaseFacts {
    /// The state it holds.
    pub(crate) point: Point,
    /// Its bytes in the store, shared chunks included.
    bytes: u64,
}

impl BaseFacts {
    pub(crate) fn of(manifest: &Manifest) -> Self {
        let bytes = manifest.chunks.iter().map(|chunk| u64::from(chunk.len)).sum();
        Self { point: Point { position: manifest.position, time: manifest.time }, bytes }
    }

    /// Whether the log since then, so many page versions in so many stored bytes, is more than a restore should replay:
    /// past the versions of the rule and a quarter of the base's bytes, whichever is later. Or it is simply old.
    pub(crate) fn is_outgrown(self, versions: u64, bytes: u64, now: Timestamp, rule: BaseRule) -> bool {
        let much = versions >= rule.versions && bytes >= self.bytes / 4;
        let age = Duration::from_micros(u64::try_from(now.micros_since(self.point.time)).unwrap_or(0));
        much || versions > 0 && rule.age.is_some_and(|max| age >= max)
    }
}

/// When a new base is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BaseRule {
    /// Not before so many page versions in the log, unless by age. A million are replayed in about two seconds.
    pub versions: u64,
    /// At the first commit after this time: so that what expires never takes the last base of a window with it.
    pub age: Option<Duration>,
}

impl Default for BaseRule {
    fn default() -> Self {
        Self { versions: 1_000_000, age: None }
    }
}

/// The base before, as far as its packs are still in the store: what is not is stored again, and so a history whose
/// packs were lost is whole again from the next base on.
async fn reusable(
    repository: &Repository,
    database: DatabaseId,
    upto: Position,
    known: Option<Arc<Manifest>>,
) -> Result<Option<Arc<Manifest>>, ProtectError> {
    let previous = match known {
        Some(known) => Some(known),
        None => newest_manifest(repository, database, upto).await?,
    };
    let Some(mut previous) = previous else { return Ok(None) };
    let listed: HashMap<Digest, u64> = repository.packs(database).await?.into_iter().collect();
    let is_there = |pack: &PackRef| listed.get(&pack.digest) == Some(&pack.len);
    if !previous.packs.iter().all(is_there) {
        tracing::warn!("packs of the base at {} are not in the store: they are made anew", previous.position);
        let Manifest { packs, chunks, .. } = Arc::make_mut(&mut previous);
        chunks.retain(|chunk| packs.get(chunk.pack as usize).is_some_and(is_there));
    }
    Ok(Some(previous))
}

/// The base a position's history begins from, for the first chunk-sharing base after a start. One that cannot be read is
/// none: then the next base shares nothing with it, and is whole.
async fn newest_manifest(
    repository: &Repository,
    database: DatabaseId,
    upto: Position,
) -> Result<Option<Arc<Manifest>>, ProtectError> {
    let bases = repository.bases(database).await?;
    let newest = bases.into_iter().map(|(key, _)| key).filter(|key| key.position <= upto);
    let Some(newest) = newest.max_by_key(|key| key.position) else { return Ok(None) };
    let manifest = match repository.get_base(&newest).await {
        Ok(bytes) => Manifest::decode(&bytes).map_err(ProtectError::from),
        Err(error) if error.kind() == ErrorKind::Damaged => Err(error.into()),
        Err(error) => return Err(error.into()),
    };
    if let Err(error) = &manifest {
        tracing::warn!(error = %chain(error), "the base at {} cannot be read: the next one is made whole", newest.position);
    }
    Ok(manifest.ok().map(Arc::new))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{TimelineId, TxId};

    #[test]
    fn packs_wait_on_disk_up_to_a_limit_and_are_counted_as_spooled() {
        let (folder, board) = (tempfile::tempdir().unwrap(), Board::new("app", PathBuf::new()));
        let parking = Parking::new(folder.path().to_owned(), 100, board.clone());
        let pack = Pack { digest: Digest::from_bytes([1; 32]), bytes: vec![1; 60] };
        let path = parking.park(&pack).unwrap();
        assert_eq!(board.now().spool_bytes, 60);
        assert!(!parking.has_room(60), "past the limit");
        parking.leave(&path, 60);
        assert!(!path.exists());
        assert_eq!(board.now().spool_bytes, 0);
        parking.park(&pack).unwrap();
        drop(parking);
        assert_eq!(board.now().spool_bytes, 0, "given up");
    }

    #[test]
    fn a_base_is_outgrown_by_work_or_by_age_but_never_while_nothing_happens() {
        let position = Position::new(TimelineId::FIRST, TxId::FIRST);
        let point = Point { position, time: Timestamp::from_micros(1_000_000) };
        let base = BaseFacts { point, bytes: 4_000 };
        let rule = BaseRule { versions: 100, age: Some(Duration::from_secs(60)) };
        let (soon, late) = (Timestamp::from_micros(2_000_000), Timestamp::from_micros(61_000_000));
        let outgrown = |versions, bytes, now| base.is_outgrown(versions, bytes, now, rule);
        assert!(!outgrown(99, 10_000, soon), "few versions");
        assert!(!outgrown(1_000_000, 999, soon), "few bytes");
        assert!(outgrown(100, 1_000, soon));
        assert!(outgrown(1, 1, late), "old");
        assert!(!outgrown(0, 0, late), "old, and still all there is");
        assert!(!outgrown(1, 1, Timestamp::from_micros(0)), "a clock that stepped back");
    }
}
