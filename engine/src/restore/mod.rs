//! Rebuilds a database as it was, proves it, and only then gives it its name.
//!
//! Order: (1) the target must be free and the file system have room; (2) a draft is made beside it, hidden, under a
//! name of its own; (3) the base is written into it, many reads at a time, each chunk read back at once; (4) the log is
//! replayed onto it, fetched ahead; (5) what the log has changed is read back, and the checksum of all that was read
//! back compared with the one recorded with the transaction, while the draft is brought to disk; (6) it is renamed
//! without replacing anything, and the folder is brought to disk.
//!
//! Whatever happens before 6 — an error, a cancellation, a dropped future — leaves the target as it was and removes
//! the draft; one that a kill left behind goes with the next restore to that name. Memory is bounded whatever the sizes:
//! reads under way, 64 MiB of log fetched ahead, 64 MiB of pages; and 16 bytes for each MiB of the image, besides the
//! base's manifest.
//!
//! This module knows no database engine: what a file beside the target means, and which page is never stored, comes
//! with the [`Options`].

mod around;
mod base;
mod error;
mod image;
mod log;
mod objects;
mod planning;
mod points;
mod progress;
mod prove;
mod repository;
mod sums;
mod target;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::failpoint;
use crate::history::History;
use crate::ids::Position;
use crate::page::{PageHash, PageNo, PageSize, StateChecksum};
use crate::plan::{RestorePlan, Target};
use crate::time::Timestamp;

use base::{Destination, write_base};
use prove::{Finished, hash_image};
use sums::Sums;
use target::{Draft, io_error};

pub(crate) use around::Around;
pub(crate) use base::{decode_read, reads_of};
pub use error::{RestoreError, TargetUnfit};
pub(crate) use image::ImageFile;
pub(crate) use log::{Leg, replay_log};
pub use objects::{Inventory, Objects, ReadError, history_of};
pub use planning::plan;
pub use planning::read_transactions;
pub(crate) use planning::{Lists, read_lists};
pub(crate) use planning::{goal, open_manifest};
pub use points::{RestorePoint, points};
pub(crate) use progress::Tracker;
pub use progress::{Cancel, Phase, Progress, ProgressFn};
use target::check_space;
pub use target::check_target;

/// How to restore.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes that must stay free on the target's file system; `None` for a twentieth of it, 1 GiB at most.
    pub reserve_bytes: Option<u64>,
    /// Files that must not be there: the target's name with each of these appended. The database engine would take
    /// them for a part of what was restored.
    pub sidecar_suffixes: &'static [&'static str],
    /// The page that the database engine never stores, if there is one. It reads as zeros and is in no checksum.
    pub left_out: fn(PageSize) -> Option<PageNo>,
}

impl Default for Options {
    fn default() -> Self {
        Self { reserve_bytes: None, sidecar_suffixes: &[], left_out: |_| None }
    }
}

/// How a result was checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Proof {
    /// The checksum of the result, equal to the one recorded with the transaction.
    #[serde(serialize_with = "as_text")]
    pub state: StateChecksum,
    /// In words.
    pub how: String,
}

/// What a restore did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RestoreReport {
    /// The exact state.
    pub position: Position,
    /// When it was committed.
    pub time: Timestamp,
    /// What was asked for.
    pub asked: Target,
    /// How long before the asked time it was committed; `None` unless a time was asked for.
    pub distance_ms: Option<i64>,
    /// The restored file.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// How it was checked.
    pub proof: Proof,
    /// Transactions that were replayed on the base.
    pub transactions: u64,
    /// Objects that were damaged or missing, and could be gone around.
    pub avoided: Vec<String>,
    /// How long it took.
    pub elapsed_ms: u64,
}

/// What to restore, where to, and how.
pub struct Order<'a> {
    /// The state.
    pub target: Target,
    /// The clock's time, to tell the future from what is not known yet.
    pub now: Timestamp,
    /// A path where nothing is yet.
    pub to: &'a Path,
    /// How.
    pub options: &'a Options,
    /// Is told of the plan; again of another one when damage is found. Must not block.
    pub planned: &'a (dyn Fn(&RestorePlan) + Send + Sync),
    /// Is told of progress.
    pub progress: ProgressFn,
    /// Stops it.
    pub cancel: &'a Cancel,
}

/// Plans and restores. When an object turns out to be missing or damaged and another way leads to the very same state
/// (other segments that hold the same transactions, an older base), that way is taken, and the report says so.
///
/// # Errors
/// [`RestoreError`]; the target is as it was.
pub async fn restore<O: Objects>(
    objects: &O,
    history: &History,
    order: &Order<'_>,
) -> Result<RestoreReport, RestoreError> {
    let mut around = Around::new(objects, history);
    let goal = around.goal(order.target, order.now).await?;
    loop {
        let plan = around.plan(&goal).await?;
        (order.planned)(&plan);
        let progress = Arc::clone(&order.progress);
        match apply(objects, &plan, order.to, order.options, progress, order.cancel).await {
            Ok(report) => return Ok(RestoreReport { avoided: around.avoided(), ..report }),
            Err(error) => around.avoid(error, Some(&plan.base)).await?,
        }
    }
}

/// Executes a plan.
///
/// # Errors
/// [`RestoreError`]; the target is as it was.
pub async fn apply<O: Objects>(
    objects: &O,
    plan: &RestorePlan,
    to: &Path,
    options: &Options,
    progress: ProgressFn,
    cancel: &Cancel,
) -> Result<RestoreReport, RestoreError> {
    let tracker = Arc::new(Tracker::new(progress, plan.read_bytes, plan.transactions, plan.image_bytes));
    tracker.enter(Phase::Preflight);
    target::remove_orphans(to);
    check_target(to, options, plan.space_needed_bytes)?;
    let draft = Draft::create(to)?;
    let written = Destination {
        file: draft.file(),
        path: draft.path(),
        left_out: (options.left_out)(plan.page_size),
        tracker: &tracker,
    };
    let sums = while_syncing(rebuild(objects, plan, &written, cancel), draft.path()).await?;
    tracker.enter(Phase::Prove);
    let synced = sync(draft.file(), draft.path());
    let proven = prove(plan, &written, &sums, cancel, |_| {});
    let (state, ()) = futures::try_join!(proven, synced)?;
    tracker.enter(Phase::Publish);
    failpoint::hit("restore_before_publish");
    let (publish_options, cancel) = (options.clone(), cancel.clone());
    let publish = move || cancel.close().and_then(|()| draft.publish(&publish_options));
    let published = tokio::task::spawn_blocking(publish).await;
    published.map_err(|_| RestoreError::Stopped)??;
    tracker.enter(Phase::Done);
    Ok(RestoreReport {
        position: plan.position,
        time: plan.time,
        asked: plan.asked,
        distance_ms: plan.distance_ms,
        path: to.to_owned(),
        bytes: plan.image_bytes,
        proof: Proof {
            state,
            how: format!(
                "the checksum of all {} pages was computed over what was read back of the result",
                plan.image_pages
            ),
        },
        transactions: plan.transactions,
        avoided: Vec::new(),
        elapsed_ms: tracker.elapsed_ms(),
    })
}

/// Rebuilds a state in a scratch file, proves it, and gives the hash of every page in order. The file is left with
/// the image; what it held before is lost.
///
/// # Errors
/// [`RestoreError`].
pub async fn rebuild_page_hashes<O: Objects>(
    objects: &O,
    plan: &RestorePlan,
    scratch: &Path,
    options: &Options,
    cancel: &Cancel,
) -> Result<Vec<PageHash>, RestoreError> {
    let tracker = Tracker::new(Arc::new(|_| {}), plan.read_bytes, plan.transactions, plan.image_bytes);
    let tracker = Arc::new(tracker);
    check_space(scratch, options, plan.space_needed_bytes)?;
    // Another file: a thread of an attempt before, which ended with an error, may still write to that one.
    let _ = std::fs::remove_file(scratch);
    let file = File::options().read(true).write(true).create(true).truncate(true).open(scratch);
    let file = Arc::new(file.map_err(|error| io_error("create", scratch, error))?);
    let left_out = (options.left_out)(plan.page_size);
    let written = Destination { file: &file, path: scratch, left_out, tracker: &tracker };
    rebuild(objects, plan, &written, cancel).await?;
    let (all, mut hashes) = (Sums::unknown(plan.page_size), Vec::new());
    prove(plan, &written, &all, cancel, |more| hashes.extend_from_slice(more)).await?;
    Ok(hashes)
}

/// Base and log, into an empty file. Gives what was read back of it.
async fn rebuild<O: Objects>(
    objects: &O,
    plan: &RestorePlan,
    to: &Destination<'_>,
    cancel: &Cancel,
) -> Result<Sums, RestoreError> {
    let Destination { file, path, tracker, .. } = *to;
    tracker.enter(Phase::Base);
    let manifest = &plan.manifest;
    let (size, pages) = (manifest.page_size, manifest.page_count);
    let file_pages = pages.max(plan.image_pages);
    let file_bytes = u64::from(file_pages) * u64::from(size.get());
    file.set_len(file_bytes).map_err(|error| io_error("extend", path, error))?;
    let sums = write_base(objects, &plan.base, manifest, to, cancel).await?;
    cancel.check()?;
    let image =
        ImageFile::new(Arc::clone(file), size, pages, file_pages, Arc::clone(tracker), cancel.clone());
    tracker.enter(Phase::Log);
    let leg = Leg { from: plan.base.position.tx, segments: &plan.segments, until: plan.position.tx };
    let mut image = replay_log(objects, &leg, image.with_sums(sums), path, tracker, cancel).await?;
    let flush = move || image.flush().map(|()| (image.reached(), image.into_sums()));
    let flushed = tokio::task::spawn_blocking(flush).await.map_err(|_| RestoreError::Stopped)?;
    let (reached, sums) = flushed.map_err(|error| io_error("write", path, error))?;
    let (pages, state) = reached.map_or((pages, manifest.state), |tx| (tx.image_pages, tx.state));
    if pages != plan.image_pages {
        let (position, expected) = (plan.position, plan.image_pages);
        return Err(RestoreError::OtherSize { position, expected, found: pages });
    }
    if state != plan.state {
        return Err(RestoreError::NotProven { position: plan.position, expected: plan.state, found: state });
    }
    Ok(sums)
}

async fn prove(
    plan: &RestorePlan,
    written: &Destination<'_>,
    sums: &Sums,
    cancel: &Cancel,
    each: impl FnMut(&[PageHash]),
) -> Result<StateChecksum, RestoreError> {
    let image = Finished {
        file: Arc::clone(written.file),
        page_size: plan.page_size,
        pages: plan.image_pages,
        left_out: written.left_out,
    };
    let found = hash_image(&image, sums, written.path, written.tracker, cancel, each).await?;
    if found != plan.state {
        return Err(RestoreError::NotProven { position: plan.position, expected: plan.state, found });
    }
    Ok(found)
}

/// Does `work`, and meanwhile lets the disk write what is there already: the sync at the end has little left to wait
/// for.
///
/// The file is opened anew for that: the system tells an error of writing once to each who has a file open, and the sync
/// that counts must hear it. It is closed again when this returns, as publishing wants it.
async fn while_syncing<T>(work: impl Future<Output = T>, path: &Path) -> T {
    /// Between two syncs.
    const PAUSE: Duration = Duration::from_millis(20);
    let Ok(file) = File::options().write(true).open(path).map(Arc::new) else { return work.await };
    let (working, mut done) = tokio::sync::oneshot::channel::<()>();
    let work = async {
        let result = work.await;
        drop(working);
        result
    };
    let syncing = async move {
        while tokio::time::timeout(PAUSE, &mut done).await.is_err() {
            let file = Arc::clone(&file);
            let _ = tokio::task::spawn_blocking(move || file.sync_data()).await;
        }
    };
    futures::join!(work, syncing).0
}

async fn sync(file: &Arc<File>, path: &Path) -> Result<(), RestoreError> {
    let file = Arc::clone(file);
    let synced = tokio::task::spawn_blocking(move || file.sync_all()).await;
    synced.map_err(|_| RestoreError::Stopped)?.map_err(|error| io_error("bring to disk", path, error))
}

fn as_text<S: Serializer>(value: &impl std::fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}
