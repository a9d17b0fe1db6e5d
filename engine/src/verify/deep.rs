//! Every state once: replays the whole history in a scratch file and compares the checksum after each transaction.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::base::Manifest;
use crate::history::{BaseEntry, History, Piece, SegmentEntry};
use crate::ids::{Position, TimelineId, TxId};
use crate::page::{PageHash, PageNo, PageSize, StateChecksum};
use crate::plan::Target;
use crate::restore::{
    Around, ImageFile, Leg, Objects, RestoreError, Tracker, decode_read, goal, open_manifest,
    read_transactions, reads_of, rebuild_page_hashes, replay_log,
};
use crate::segment::PageStore;
use crate::time::Timestamp;
use crate::transaction::Transaction;
use crate::verify::{VerifyOptions, VerifyProgress, VerifyReport, problem_of};

/// An image whose checksum is known at every moment, and compared at the end of every transaction.
struct Witness {
    image: ImageFile,
    timeline: TimelineId,
    hashes: Vec<PageHash>,
    state: StateChecksum,
    left_out: Option<PageNo>,
    proven: Arc<AtomicU64>,
    tell: Arc<dyn Fn(u64) + Send + Sync>,
}

impl Witness {
    fn count(&mut self, page: PageNo, hash: PageHash) {
        if Some(page) == self.left_out {
            return;
        }
        if let Some(known) = self.hashes.get_mut(page.index()) {
            self.state = self.state.without(*known).with(hash);
            *known = hash;
        }
    }

    /// Pages that are compared with a base: all but the one that is never stored.
    fn hash_of(&self, page: PageNo) -> Option<PageHash> {
        self.hashes.get(page.index()).copied()
    }
}

impl PageStore for Witness {
    fn page_size(&self) -> PageSize {
        self.image.page_size()
    }

    fn page_count(&self) -> u32 {
        self.image.page_count()
    }

    fn read(&mut self, page: PageNo, buffer: &mut [u8]) -> io::Result<()> {
        self.image.read(page, buffer)
    }

    fn write(&mut self, page: PageNo, image: &[u8]) -> io::Result<()> {
        self.count(page, PageHash::of(page, image));
        self.image.write(page, image)
    }

    fn resize(&mut self, pages: u32) -> io::Result<()> {
        let zeros = vec![0; self.page_size().bytes()];
        let numbered = |from: usize| (from as u32 + 1..).map_while(PageNo::new);
        let shorter = self.hashes.split_off((pages as usize).min(self.hashes.len()));
        for (page, hash) in numbered(pages as usize).zip(shorter) {
            if Some(page) != self.left_out {
                self.state = self.state.without(hash);
            }
        }
        for page in numbered(self.hashes.len()).take_while(|page| page.get() <= pages) {
            let hash = PageHash::of(page, &zeros);
            self.hashes.push(hash);
            if Some(page) != self.left_out {
                self.state = self.state.with(hash);
            }
        }
        self.image.resize(pages)
    }

    fn committed(&mut self, transaction: &Transaction) -> io::Result<()> {
        self.image.committed(transaction)?;
        if self.state != transaction.state {
            let position = Position::new(self.timeline, transaction.tx);
            let (expected, found) = (transaction.state, self.state);
            return Err(io::Error::other(RestoreError::NotProven { position, expected, found }));
        }
        (self.tell)(self.proven.fetch_add(1, Ordering::Relaxed) + 1);
        Ok(())
    }
}

struct Deep<'a, O> {
    objects: &'a O,
    history: &'a History,
    scratch: &'a Path,
    options: &'a VerifyOptions<'a>,
    proven: Arc<AtomicU64>,
    tell: Arc<dyn Fn(u64) + Send + Sync>,
}

/// Adds what is found to the report.
pub(crate) async fn verify_states<O: Objects>(
    objects: &O,
    history: &History,
    folder: &Path,
    options: &VerifyOptions<'_>,
    report: &mut VerifyReport,
) -> Result<(), RestoreError> {
    let scratch = Scratch::in_folder(folder);
    // Of segments that hold the same transactions one is replayed.
    let pieces = history.timelines().into_iter().filter_map(|active| history.line(active.timeline.id));
    let pieces = pieces.flat_map(|line| &line.pieces);
    let total = pieces.map(Piece::transactions).fold(0, u64::saturating_add);
    let (objects_read, bytes) = (report.objects, report.bytes);
    let progress = Arc::clone(&options.progress);
    let tell = Arc::new(move |transactions| {
        progress(VerifyProgress {
            objects: objects_read,
            total_objects: objects_read,
            bytes,
            total_bytes: bytes,
            transactions,
            total_transactions: total,
        });
    });
    let proven = Arc::new(AtomicU64::new(0));
    let deep = Deep { objects, history, scratch: &scratch.0, options, proven: Arc::clone(&proven), tell };
    let lines: Vec<TimelineId> = history.timelines().iter().map(|active| active.timeline.id).collect();
    for timeline in lines {
        deep.verify_line(timeline, report).await?;
    }
    deep.verify_fork_bases(report).await?;
    report.proven_transactions = proven.load(Ordering::Relaxed);
    Ok(())
}

/// The scratch file, gone when dropped.
struct Scratch(std::path::PathBuf);

impl Scratch {
    fn in_folder(folder: &Path) -> Self {
        use std::hash::{BuildHasher, Hasher};
        let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
        Self(folder.join(format!(".everwhen-verify-{random:016x}")))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // It may not have been made; a leftover is harmless and says by its name what it is.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl<O: Objects> Deep<'_, O> {
    async fn verify_line(&self, timeline: TimelineId, report: &mut VerifyReport) -> Result<(), RestoreError> {
        let Some(line) = self.history.line(timeline) else { return Ok(()) };
        let mut witness: Option<(Witness, TxId)> = None;
        for (at, piece) in line.pieces.iter().enumerate() {
            let before = piece.first.previous();
            let follows = witness.as_ref().is_some_and(|(_, at)| Some(*at) == before);
            if !follows || piece.key.flags.needs_base {
                // From its fork point a timeline goes on without a base of its own.
                let forked = at == 0 && line.fork_rebuilds && piece.rebuilds_from == Some(piece.first);
                let fork = before.filter(|_| forked && !piece.key.flags.needs_base);
                witness = match fork.or_else(|| self.start_of(timeline, piece)) {
                    Some(tx) => self.found(self.begin(timeline, tx).await, report)?,
                    None => None,
                };
                if let Some((state, tx)) = witness.as_ref().filter(|(_, tx)| piece.holds(*tx)) {
                    self.found(self.compare_record(state, *tx, piece).await.map(Some), report)?;
                }
            }
            witness = self.verify_piece(witness, piece, report).await?;
        }
        Ok(())
    }

    /// The oldest base from which this piece, or a part of it, can be replayed.
    fn start_of(&self, timeline: TimelineId, piece: &Piece) -> Option<TxId> {
        let has_base = |tx: &TxId| !self.history.bases_at(Position::new(timeline, *tx)).is_empty();
        let last = piece.key.range.last();
        let before = piece.first.previous().filter(|_| !piece.key.flags.needs_base).filter(has_base);
        let own =
            || self.history.own_bases(timeline, piece.first, last).next().map(|base| base.key.position.tx);
        before.or_else(own).or(Some(last).filter(has_base))
    }

    /// Through all transactions of a piece, with a stop at each base.
    async fn verify_piece(
        &self,
        mut witness: Option<(Witness, TxId)>,
        piece: &Piece,
        report: &mut VerifyReport,
    ) -> Result<Option<(Witness, TxId)>, RestoreError> {
        let (timeline, last) = (piece.key.timeline, piece.key.range.last());
        let bases = self.history.own_bases(timeline, piece.first, last);
        let mut stops: Vec<TxId> = bases.map(|base| base.key.position.tx).collect();
        stops.push(last);
        stops.dedup();
        for stop in stops {
            witness = match witness {
                Some((state, at)) if at < stop => {
                    self.found(self.replay(state, at, piece, stop).await, report)?
                }
                other => other,
            };
            let Some((state, at)) = &witness else { break };
            if *at != stop {
                continue;
            }
            let position = Position::new(timeline, stop);
            report.proven_through = Some(position);
            for base in self.history.bases_at(position) {
                self.found(self.compare(state, base).await.map(Some), report)?;
            }
        }
        // What a damaged segment leaves unproven is taken up again at the next base.
        if witness.is_none() && !self.history.bases_at(Position::new(timeline, last)).is_empty() {
            witness = self.found(self.begin(timeline, last).await, report)?;
        }
        Ok(witness)
    }

    /// Bases amid a segment, where a timeline forked, are on no line's way: each is rebuilt for itself.
    async fn verify_fork_bases(&self, report: &mut VerifyReport) -> Result<(), RestoreError> {
        for base in self.history.bases() {
            let own = self.history.canonical(base.key.position).unwrap_or(base.key.position);
            let piece = self.history.line(own.timeline).and_then(|line| line.piece_of(own.tx));
            let on_the_way = own.timeline == base.key.position.timeline
                || piece.is_some_and(|piece| own.tx == piece.key.range.last());
            if !on_the_way {
                self.found(self.begin(own.timeline, own.tx).await, report)?;
            }
        }
        Ok(())
    }

    /// The state that a base gives must be the one that the log recorded with the transaction.
    async fn compare_record(&self, witness: &Witness, tx: TxId, piece: &Piece) -> Result<(), RestoreError> {
        let entry = SegmentEntry { key: piece.key, size: piece.size };
        let transactions = read_transactions(self.objects, entry).await?;
        match transactions.iter().find(|transaction| transaction.tx == tx) {
            Some(record) if record.state != witness.state => Err(RestoreError::NotProven {
                position: Position::new(witness.timeline, tx),
                expected: record.state,
                found: witness.state,
            }),
            _ => Ok(()),
        }
    }

    /// Damage goes to the report, and what was to come of it is not there.
    fn found<T>(
        &self,
        result: Result<Option<T>, RestoreError>,
        report: &mut VerifyReport,
    ) -> Result<Option<T>, RestoreError> {
        match result {
            Ok(value) => Ok(value),
            Err(error) => {
                report.problems.push(problem_of(error)?);
                Ok(None)
            }
        }
    }

    /// Rebuilds a state from its base.
    async fn begin(&self, timeline: TimelineId, tx: TxId) -> Result<Option<(Witness, TxId)>, RestoreError> {
        let target = Target::Position(Position::new(timeline, tx));
        let (options, cancel) = (self.options.restore, self.options.cancel);
        let mut around = Around::new(self.objects, self.history);
        let goal = goal(self.objects, self.history, target, Timestamp::MAX).await?;
        let (plan, hashes) = loop {
            let plan = around.plan_straight(&goal).await?;
            match rebuild_page_hashes(self.objects, &plan, self.scratch, options, cancel).await {
                Ok(hashes) => break (plan, hashes),
                // Of twins that a broken-off put left, the log goes on from one: that is no damage.
                Err(error @ RestoreError::ChainBroken { .. }) => around.avoid(error, None).await?,
                Err(error) => return Err(error),
            }
        };
        let file = std::fs::File::options().read(true).write(true).open(self.scratch);
        let open = |source| RestoreError::Io { action: "open", path: self.scratch.to_owned(), source };
        let tracker = Arc::new(Tracker::new(Arc::new(|_| {}), 0, 0, 0));
        let (size, pages) = (plan.page_size, plan.image_pages);
        let file = Arc::new(file.map_err(open)?);
        let witness = Witness {
            image: ImageFile::new(file, size, pages, pages, tracker, cancel.clone()),
            timeline,
            hashes,
            state: plan.state,
            left_out: (options.left_out)(size),
            proven: Arc::clone(&self.proven),
            tell: Arc::clone(&self.tell),
        };
        if plan.segments.is_empty() && plan.base.position.timeline == timeline {
            // The base's own transaction: its log has no pages, so this is its proof.
            (self.tell)(self.proven.fetch_add(1, Ordering::Relaxed) + 1);
        }
        Ok(Some((witness, tx)))
    }

    /// Through the transactions of a piece up to `until`.
    async fn replay(
        &self,
        witness: Witness,
        at: TxId,
        piece: &Piece,
        until: TxId,
    ) -> Result<Option<(Witness, TxId)>, RestoreError> {
        let segments = [SegmentEntry { key: piece.key, size: piece.size }];
        let leg = Leg { from: at, segments: &segments, until };
        let tracker = Arc::new(Tracker::new(Arc::new(|_| {}), 0, 0, 0));
        let cancel = self.options.cancel;
        let witness = replay_log(self.objects, &leg, witness, self.scratch, &tracker, cancel).await?;
        Ok(Some((witness, until)))
    }

    /// A base must be the very image that the log leads to.
    async fn compare(&self, witness: &Witness, entry: &BaseEntry) -> Result<(), RestoreError> {
        let manifest = open_manifest(self.objects, entry.key).await?;
        if manifest.state != witness.state || manifest.page_count != witness.page_count() {
            return Err(RestoreError::NotProven {
                position: entry.key.position,
                expected: witness.state,
                found: manifest.state,
            });
        }
        let hasher = self.objects.hasher(manifest.database).await?;
        for read in reads_of(&manifest) {
            self.options.cancel.check()?;
            let Some(pack) = manifest.packs.get(read.pack as usize) else { continue };
            let bytes = self.objects.pack_range(manifest.database, pack.digest, read.range.clone()).await?;
            decode_read(&manifest, Some(&hasher), &read, &bytes, |index, raw| {
                compare_chunk(witness, entry, &manifest, index, raw)
            })?;
        }
        Ok(())
    }
}

fn compare_chunk(
    witness: &Witness,
    entry: &BaseEntry,
    manifest: &Manifest,
    index: usize,
    raw: &[u8],
) -> Result<(), RestoreError> {
    let before = index as u64 * u64::from(manifest.chunk_pages());
    let numbers = (u32::try_from(before).unwrap_or(u32::MAX).saturating_add(1)..).map_while(PageNo::new);
    for (page, bytes) in numbers.zip(raw.chunks_exact(manifest.page_size.bytes())) {
        let same = witness.hash_of(page) == Some(PageHash::of(page, bytes));
        if !same && Some(page) != witness.left_out {
            let what = format!("its page {page} is not the one that the log leads to");
            return Err(crate::restore::ReadError::damaged(&entry.key, &what).into());
        }
    }
    Ok(())
}
