//! The recorder: turns captured transactions into parts of the log.
//!
//! It is the [`Sink`] of the source. It keeps the page table, numbers and times the transactions, and encodes them into
//! the open part. A part is closed when it is shipped (flush policy), before the source lets go of its log
//! ([`Sink::secure`]), and around transactions with flags. Parts closed within one flush interval are shipped as one
//! segment, so letting go of the log often costs no store requests.
//!
//! Order when a part is closed: (1) encode and check, (2) append its record to the journal, (3) hand it to the
//! outbox; and in `secure` (4) write it to the spool unless it is durable. A kill after 1 loses only what the source
//! still has; after 2, the record is ignored, since its part is nowhere; after 3 or 4, the start goes on behind it.

use std::time::Instant;

use crate::capture::sink::{Commit, Previous, PreviousPage, Sink};
use crate::failpoint;
use crate::history::Point;
use crate::ids::{DatabaseId, Position, TxId};
use crate::page::{PageHash, PageNo};
use crate::protect::error::ProtectError;
use crate::protect::frames::FrameBuffer;
use crate::protect::journal::{Journal, Mark};
use crate::protect::outbox::{Outbox, Part};
use crate::protect::status::Board;
use crate::protect::table::PageTable;
use crate::segment::{Effort, EncodeError, Encoder, EncoderParams};
use crate::time::Timestamp;
use crate::transaction::{Transaction, TxFlags};

/// Clocks of the file system and of the system differ by up to this; smaller steps back are not worth a flag. 50 ms.
const CLOCK_SLACK_MICROS: i64 = 50_000;

const CLOCK_HELD: &str = "the clock has stepped back: commit times are held until it catches up";
/// While commits come all the time, the records of the journal may grow to so many times their usual limit.
const RESTLESS_RECORDS: u64 = 4;

/// What is particular about the transactions to come.
#[derive(Clone, Copy, Debug)]
struct Special {
    flags: TxFlags,
    not_before: Timestamp,
    /// The time all transactions of an uncertain batch share; set by its first.
    shared_time: Option<Timestamp>,
}

/// Records one database.
pub(crate) struct Recorder {
    /// The state after the last commit, and what the journal keeps of it.
    mark: Mark,
    table: PageTable,
    journal: Journal,
    outbox: Outbox,
    board: Board,
    open: Option<OpenPart>,
    special: Option<Special>,
    /// Up to here nothing went unseen before this run.
    watched_until: Timestamp,
    /// The latest moment before which everything committed has been recorded.
    looked: Timestamp,
    previous: Vec<u8>,
    /// Pages of the transaction under way.
    pages: u32,
    /// Why the open part cannot go on after a rollback, nor be closed.
    broken: Option<EncodeError>,
    /// Commit times are being held, and the log says so already.
    clock_held: bool,
    /// The source is not what is recorded.
    differs: bool,
    /// Something that is captured was lost on its way to the outbox: what follows would have a hole before it.
    lost: bool,
    last_shipped: Option<Instant>,
}

/// How much log there is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogSize {
    /// Page versions.
    pub(crate) versions: u64,
    /// Bytes as stored.
    pub(crate) bytes: u64,
}

struct OpenPart {
    encoder: Encoder<FrameBuffer>,
    from: Timestamp,
    flags: TxFlags,
    changes: Vec<(u32, u64)>,
    committed: u64,
}

impl Recorder {
    /// Goes on after `mark`, whose page table is `table`. Up to `watched_until` nothing went unseen.
    pub(crate) fn new(
        mark: Mark,
        table: PageTable,
        journal: Journal,
        outbox: Outbox,
        board: Board,
        watched_until: Timestamp,
    ) -> Self {
        Self {
            mark,
            table,
            journal,
            outbox,
            board,
            open: None,
            special: None,
            watched_until,
            looked: Timestamp::MIN,
            previous: Vec::new(),
            pages: 0,
            broken: None,
            clock_held: false,
            differs: false,
            lost: false,
            last_shipped: None,
        }
    }

    /// The last commit's place and time; `None` before the first of a history.
    pub(crate) fn point(&self) -> Option<Point> {
        let position = Position::new(self.mark.timeline, self.mark.tx?);
        Some(Point { position, time: self.mark.time })
    }

    pub(crate) fn table(&self) -> &PageTable {
        &self.table
    }

    /// The log since the last base.
    pub(crate) fn log_since_base(&self) -> LogSize {
        LogSize { versions: self.mark.log_versions, bytes: self.mark.log_bytes }
    }

    /// A base at the present position is being made: the log goes on with a part of its own, since a replay can only
    /// begin where a part does. Gives the log up to here.
    pub(crate) fn base_begun(&mut self) -> Result<LogSize, ProtectError> {
        self.close_part()?;
        Ok(self.log_since_base())
    }

    /// The base was made: what was the log when it was begun no longer counts.
    pub(crate) fn base_made(&mut self, covered: LogSize) {
        self.mark.log_versions = self.mark.log_versions.saturating_sub(covered.versions);
        self.mark.log_bytes = self.mark.log_bytes.saturating_sub(covered.bytes);
    }

    /// The next transaction has these flags.
    pub(crate) fn expect(&mut self, flags: TxFlags, not_before: Timestamp) -> Result<(), ProtectError> {
        self.close_part()?;
        self.special = Some(Special { flags, not_before: not_before.max(self.mark.time), shared_time: None });
        Ok(())
    }

    /// Transactions from here on are seen as they happen.
    pub(crate) fn expect_nothing(&mut self) -> Result<(), ProtectError> {
        if self.special.take().is_some_and(|special| special.shared_time.is_some()) {
            self.close_part()?;
        }
        Ok(())
    }

    /// How long what waits to be shipped may still wait; `None` when nothing waits.
    pub(crate) fn ship_in(&self, interval: std::time::Duration, now: Instant) -> Option<std::time::Duration> {
        let waiting =
            self.open.as_ref().is_some_and(|open| open.committed > 0) || self.outbox.has_unshipped_parts();
        waiting.then(|| {
            self.last_shipped
                .map_or_else(Default::default, |at| (at + interval).saturating_duration_since(now))
        })
    }

    /// Bytes of the open part and of the closed ones that wait to be shipped together.
    pub(crate) fn waiting_bytes(&self) -> u64 {
        self.open.as_ref().map_or(0, |open| open.encoder.encoded_bytes()) + self.outbox.unshipped_bytes()
    }

    /// Closes the open part and sends all closed ones on their way as one segment.
    pub(crate) fn ship(&mut self, now: Instant) -> Result<(), ProtectError> {
        self.close_part()?;
        if self.outbox.ship() {
            self.last_shipped = Some(now);
        }
        Ok(())
    }

    /// Writes the page table whole, at a quiet moment or a stop.
    ///
    /// After it only the newest state can be gone back to. So whatever leads there and is not durable has to be where a
    /// kill does not reach it.
    pub(crate) fn compact_journal(&mut self) -> Result<(), ProtectError> {
        self.not_lost()?;
        self.outbox.spool_all()?;
        self.mark.stored = self.board.stored_tx(self.mark.timeline);
        self.journal.compact(&self.mark, &self.table).map_err(|source| self.outbox.state_error(source))
    }

    /// Whether the next start would read more records than a table: some more at a quiet moment, many more at any.
    pub(crate) fn wants_compaction(&self, quiet: bool) -> bool {
        let times = if quiet { 1 } else { RESTLESS_RECORDS };
        self.open.is_none() && self.journal.wants_compaction(&self.table, times)
    }

    /// The state without a change of the database: the source's log has been changed under the same state.
    pub(crate) fn resume_from(&mut self, resume: Vec<u8>) -> Result<(), ProtectError> {
        self.close_part()?;
        self.mark.resume = resume;
        self.compact_journal()
    }

    /// Records that the next state is the one of `table`, given by a base that is made at that very transaction.
    pub(crate) fn record_image(
        &mut self,
        table: PageTable,
        commit: Commit,
        after_gap: bool,
        not_before: Timestamp,
    ) -> Result<(), ProtectError> {
        let not_before = if after_gap { not_before } else { commit.time };
        self.expect(TxFlags { needs_base: true, ends_gap: after_gap, ..TxFlags::NONE }, not_before)?;
        self.mark.page_size = table.page_size();
        self.table = table;
        self.commit(commit)?;
        self.expect_nothing()?;
        // The journal's table is of another image: begin it anew.
        self.compact_journal()
    }

    pub(crate) fn database(&self) -> DatabaseId {
        self.mark.database
    }

    /// The next run shall not trust the source's log to go on from here.
    pub(crate) fn forget_resume(&mut self) {
        if let Err(error) = self.resume_from(Vec::new()) {
            tracing::warn!(%error, "cannot write the journal");
        }
    }

    pub(crate) fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    fn flags_of_next(&mut self, commit_time: Timestamp) -> (TxFlags, Timestamp, Timestamp) {
        // When a clock steps back nothing can have been committed up to the last look before it did, so what comes is
        // held at that: at the last commit's time it would be taken for what was there right after that one.
        let last = self.mark.time.max(self.looked);
        match &mut self.special {
            Some(special) if special.shared_time.is_none() => {
                let time = commit_time.max(special.not_before);
                special.shared_time = Some(time);
                (special.flags, special.not_before, time)
            }
            Some(Special { shared_time: Some(time), .. }) => (TxFlags::NONE, *time, *time),
            _ => {
                let held = last.micros_since(commit_time) > CLOCK_SLACK_MICROS;
                self.board.concern("clock", held.then(|| CLOCK_HELD.into()));
                self.clock_held &= held;
                let time = commit_time.max(if held { last } else { self.mark.time });
                // Once for all of the time it lasts: a flag begins a segment.
                let flags = TxFlags { held_clock: held && !self.clock_held, ..TxFlags::NONE };
                (flags, time, time)
            }
        }
    }

    /// All that was committed before this moment has been recorded.
    pub(crate) fn looked(&mut self, moment: Timestamp) {
        self.looked = self.looked.max(moment);
    }

    /// Of the transaction under way.
    pub(crate) fn next_position(&self) -> Position {
        Position::new(self.mark.timeline, self.next_tx())
    }

    fn next_tx(&self) -> TxId {
        self.mark.tx.map_or(TxId::FIRST, TxId::next)
    }

    fn open_part(&mut self) -> Result<&mut OpenPart, ProtectError> {
        if self.open.is_none() {
            let params = EncoderParams {
                database: self.mark.database,
                timeline: self.mark.timeline,
                page_size: self.table.page_size(),
                image_pages: self.mark.image_pages,
                first: self.next_tx(),
                chain_before: self.mark.chain,
                effort: Effort::Hot,
            };
            let frames = self.outbox.frame_buffer(self.next_tx());
            self.open = Some(OpenPart {
                encoder: Encoder::new(params, frames),
                from: self.mark.time,
                flags: TxFlags::NONE,
                changes: Vec::new(),
                committed: 0,
            });
        }
        self.open.as_mut().ok_or_else(|| ProtectError::TaskDied { what: "recorder".into() })
    }

    fn close_part(&mut self) -> Result<(), ProtectError> {
        self.not_lost()?;
        let Some(open) = self.open.take() else { return Ok(()) };
        if let Some(error) = self.broken.take() {
            self.lost = true;
            return Err(error.into());
        }
        if open.committed == 0 {
            return Ok(());
        }
        let closed = self.close(open);
        self.lost = closed.is_err();
        closed
    }

    fn not_lost(&self) -> Result<(), ProtectError> {
        if self.lost { Err(ProtectError::PartLost) } else { Ok(()) }
    }

    fn close(&mut self, mut open: OpenPart) -> Result<(), ProtectError> {
        let finished = open.encoder.finish()?;
        self.mark.chain = finished.header.chain_after;
        self.mark.log_versions += u64::from(finished.header.page_versions);
        let range = finished.header.range;
        let body = finished
            .frames
            .into_part(&finished.prologue, finished.header.frames_len, || self.outbox.spool().path(range))
            .map_err(|source| self.outbox.state_error(source))?;
        self.mark.log_bytes += body.len();
        failpoint::hit("part_closed");
        open.changes.sort_unstable_by_key(|&(index, _)| index);
        // Later commits of the part come later in the list: the last hash of a page is the one that holds.
        let changes = self.last_changes(&open.changes);
        self.mark.stored = self.board.stored_tx(self.mark.timeline);
        self.journal.append(&self.mark, &changes).map_err(|source| self.outbox.state_error(source))?;
        let part = Part { range, from: open.from, to: self.mark.time, flags: open.flags, body };
        self.outbox.push(part);
        Ok(())
    }

    fn last_changes(&self, changes: &[(u32, u64)]) -> Vec<(u32, u64)> {
        let mut indexes: Vec<u32> = changes.iter().map(|&(index, _)| index).collect();
        indexes.dedup();
        let hashes = self.table.hashes();
        indexes.into_iter().filter_map(|index| Some((index, *hashes.get(index as usize)?))).collect()
    }
}

impl Sink for Recorder {
    type Error = ProtectError;

    fn page(&mut self, page: PageNo, image: &[u8], previous: PreviousPage<'_>) -> Result<(), ProtectError> {
        if let Some(error) = self.broken.take() {
            return Err(error.into());
        }
        if self.pages == 0 && self.special.is_some_and(|special| special.shared_time.is_none()) {
            self.close_part()?;
        }
        self.pages += 1;
        let known = self.table.get(page);
        self.table.set(page, PageHash::of(page, image));
        let wants = known.is_some() && self.open_part()?.encoder.wants_previous(page);
        let mut buffer = std::mem::take(&mut self.previous);
        // Only a previous version with the very hash we recorded may serve: never guess.
        let previous = if wants { previous(&mut buffer) } else { Previous::Unknown };
        let usable = previous != Previous::Unknown && Some(PageHash::of(page, &buffer)) == known;
        if previous == Previous::Certain && !usable && !is_zeros(page, known, &buffer) {
            self.previous = buffer;
            self.differs = true;
            return Err(ProtectError::SourceDiffers { page, position: self.next_position() });
        }
        let result = self.open_part()?.encoder.page(page, image, usable.then_some(buffer.as_slice()));
        self.previous = buffer;
        Ok(result?)
    }

    fn commit(&mut self, commit: Commit) -> Result<(), ProtectError> {
        self.table.resize(commit.image_pages);
        let state = self.table.state();
        let (flags, not_before, time) = self.flags_of_next(commit.time);
        // Only the first transaction of a part can carry a flag. A held clock lasts, so the next part tells of it.
        let first_of_part = self.open.as_ref().is_none_or(|open| open.committed == 0);
        let flags = if first_of_part { flags } else { TxFlags::NONE };
        let changes = self.table.commit();
        let tx = self.next_tx();
        let pages = std::mem::take(&mut self.pages);
        let open = self.open_part()?;
        let not_before = if flags.any() { not_before } else { time };
        let image_pages = commit.image_pages;
        let transaction = Transaction { tx, time, not_before, flags, pages, image_pages, state };
        if let Err(error) = open.encoder.commit(&transaction) {
            // The table has gone on already.
            self.lost = true;
            return Err(error.into());
        }
        if first_of_part {
            (open.from, open.flags) = (not_before, flags);
        }
        open.changes.extend_from_slice(&changes);
        open.committed += 1;
        self.mark.tx = Some(tx);
        self.clock_held |= flags.held_clock;
        if flags.needs_base {
            self.mark.needs_base = Some(tx);
        }
        self.mark.time = time;
        self.mark.image_pages = commit.image_pages;
        self.mark.resume = commit.resume;
        if let Some(point) = self.point() {
            self.board.captured(point);
        }
        Ok(())
    }

    fn unwatched(&mut self, since: Timestamp) -> Result<(), ProtectError> {
        let since = since.max(self.watched_until);
        self.expect(TxFlags { uncertain_time: true, ..TxFlags::NONE }, since)
    }

    fn watched(&mut self) -> Result<(), ProtectError> {
        self.expect_nothing()
    }

    fn began_anew(&mut self, resume: Vec<u8>) -> Result<(), ProtectError> {
        // Right after a start that is not done yet.
        self.secure()?;
        if let Err(error) = self.journal.note_log_begun_anew(&self.mark.resume, &resume) {
            // Only a kill before the next part is closed makes a gap then.
            tracing::warn!(%error, "cannot note where the source's log goes on");
        }
        Ok(())
    }

    fn rollback(&mut self) {
        self.table.rollback();
        self.pages = 0;
        if let Some(open) = &mut self.open {
            self.broken = open.encoder.rollback().err();
        }
        if std::mem::take(&mut self.differs) {
            self.forget_resume();
        }
    }

    fn distrust(&mut self) {
        self.forget_resume();
    }

    fn secure(&mut self) -> Result<(), ProtectError> {
        self.close_part()?;
        self.outbox.secure()
    }
}

/// Whether a page is recorded as zeros: the table takes a page for that when the image grows past it without its being
/// written, and then the source may have anything there.
fn is_zeros(page: PageNo, known: Option<PageHash>, buffer: &[u8]) -> bool {
    known == Some(PageHash::of(page, &vec![0; buffer.len()]))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::ids::{Digest, TimelineId};
    use crate::page::PageSize;
    use crate::protect::frames::PartBody;
    use crate::protect::outbox::{OutboxLimits, OutboxQueue};
    use crate::protect::spool::Spool;
    use crate::segment::Prologue;

    const SIZE: usize = 512;

    fn recorder(state: &Path) -> (Recorder, OutboxQueue) {
        let page_size = PageSize::new(SIZE as u32).unwrap();
        let mark = Mark {
            database: DatabaseId::from_bytes([1; 8]),
            timeline: TimelineId::FIRST,
            claim: [7; 8],
            tx: Some(TxId::FIRST),
            time: Timestamp::from_micros(1_000_000_000),
            chain: Digest::from_bytes([3; 32]),
            page_size,
            image_pages: 0,
            stored: None,
            needs_base: None,
            log_versions: 0,
            log_bytes: 0,
            resume: Vec::new(),
        };
        let (board, table) = (Board::new("app", state.to_owned()), PageTable::new(page_size, None));
        let queue = OutboxQueue::new(board.clone());
        let spool = Spool::open(state, TimelineId::FIRST).unwrap();
        let limits = OutboxLimits { memory: 1 << 20, spool: 1 << 20 };
        let outbox = Outbox::new(queue.clone(), spool, state.to_owned(), limits);
        let journal = Journal::start(state, &mark, &table).unwrap();
        let watched_until = mark.time;
        (Recorder::new(mark, table, journal, outbox, board, watched_until), queue)
    }

    fn commit_at(recorder: &mut Recorder, micros: i64) {
        let page = PageNo::new(1).unwrap();
        let image = [micros.to_le_bytes()[1]; SIZE];
        recorder.page(page, &image, &mut |_| Previous::Unknown).unwrap();
        let time = Timestamp::from_micros(micros);
        recorder.commit(Commit { image_pages: 1, time, resume: Vec::new() }).unwrap();
        recorder.ship(Instant::now()).unwrap();
    }

    #[test]
    fn a_clock_that_stays_back_is_told_and_flagged_once() {
        let state = tempfile::tempdir().unwrap();
        let (mut recorder, queue) = recorder(state.path());
        let told = |recorder: &Recorder| recorder.board.now().reasons.contains(&CLOCK_HELD.to_owned());
        // Something under way, so that what follows waits together.
        commit_at(&mut recorder, 1_000_000_001);
        assert_eq!(queue.take().unwrap().range.count(), 1);
        (0..5).for_each(|step| commit_at(&mut recorder, 900_000_000 + step));
        assert!(told(&recorder));
        queue.done();
        let shipment = queue.take().unwrap();
        let flagged: Vec<_> = shipment.parts.iter().map(|part| part.flags.held_clock).collect();
        assert_eq!(flagged, [true, false, false, false, false], "one segment");
        commit_at(&mut recorder, 1_000_000_002);
        assert!(!told(&recorder), "it has caught up");
        commit_at(&mut recorder, 900_000_000);
        queue.done();
        let flags =
            |shipment: crate::protect::outbox::Shipment| shipment.parts.first().unwrap().flags.held_clock;
        assert!(!flags(queue.take().unwrap()));
        queue.done();
        assert!(flags(queue.take().unwrap()), "another time");
    }

    #[test]
    fn a_part_whose_frames_could_not_be_taken_back_is_not_closed() {
        let state = tempfile::tempdir().unwrap();
        let (mut recorder, queue) = recorder(state.path());
        let page = PageNo::new(1).unwrap();
        recorder.page(page, &[1; SIZE], &mut |_| Previous::Unknown).unwrap();
        let time = Timestamp::from_micros(1_000_000_001);
        recorder.commit(Commit { image_pages: 1, time, resume: Vec::new() }).unwrap();
        recorder.broken = Some(EncodeError::Sink(std::io::ErrorKind::StorageFull.into()));
        assert!(matches!(recorder.secure(), Err(ProtectError::Encode(_))));
        assert!(matches!(recorder.ship(Instant::now()), Err(ProtectError::PartLost)));
        assert!(queue.take().is_none());
    }

    #[test]
    fn the_journal_forgets_older_marks_only_when_the_parts_since_are_in_the_spool() {
        let state = tempfile::tempdir().unwrap();
        let (mut recorder, _queue) = recorder(state.path());
        (0..3).for_each(|step| commit_at(&mut recorder, 1_000_000_001 + step));
        assert_eq!(recorder.outbox().spool().parts().unwrap(), []);
        recorder.compact_journal().unwrap();
        assert_eq!(recorder.outbox().spool().parts().unwrap().len(), 3);
    }

    /// The transactions that are on their way.
    fn shipped(queue: &OutboxQueue) -> Vec<Transaction> {
        let mut transactions = Vec::new();
        while let Some(shipment) = queue.take() {
            for part in shipment.parts {
                let PartBody::Memory(bytes) = part.body else { panic!("in the spool") };
                transactions.extend(Prologue::parse(&bytes).unwrap().transactions);
            }
            queue.done();
        }
        transactions
    }

    #[test]
    fn commits_after_a_step_back_of_the_clock_are_held_at_the_last_look_before_it() {
        let state = tempfile::tempdir().unwrap();
        let (mut recorder, queue) = recorder(state.path());
        let seconds = |seconds: i64| 1_000_000_000 + seconds * 1_000_000;
        let mut commit = |at: i64| commit_at(&mut recorder, seconds(at));
        [100, 200].into_iter().for_each(&mut commit);
        // The clock went on for a while before it stepped back.
        recorder.looked(Timestamp::from_micros(seconds(250)));
        let mut commit = |at: i64| commit_at(&mut recorder, seconds(at));
        [50, 60, 240, 300].into_iter().for_each(&mut commit);
        let found = shipped(&queue);
        let times: Vec<_> = found.iter().map(|tx| tx.time.as_micros()).collect();
        assert_eq!(times, [100, 200, 250, 250, 250, 300].map(seconds));
        let held: Vec<_> = found.iter().map(|tx| tx.flags.held_clock).collect();
        assert_eq!(held, [false, false, true, false, false, false]);
        assert!(found.iter().all(|tx| tx.not_before <= tx.time));
    }
}
