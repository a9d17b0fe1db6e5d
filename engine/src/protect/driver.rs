//! The capture thread of one database: waits for commits, records them, lets the source's log be reused, ships.
//!
//! One run goes from a beginning (see [`begin`]) to a stop or to something that breaks the thread: an
//! error of the source, another file under the same name, a full spool. Then everything that is captured is made
//! safe, and the next run begins as after a restart: there is one way back, and it is the tested one.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::base::Manifest;
use crate::capture::sink::{Commit, Image, PreviousPage, Sink};
use crate::capture::sqlite::{Attach, CaptureError, SourceEvent, SqliteSource};
use crate::capture::watch::Waker;
use crate::error::Explain;
use crate::history::Point;
use crate::ids::Position;
use crate::page::{PageHash, PageNo};
use crate::protect::ProtectOptions;
use crate::protect::base::{self, BaseJob};
use crate::protect::begin::{self, Beginning};
use crate::protect::error::ProtectError;
use crate::protect::journal::Journal;
use crate::protect::outbox::{Outbox, OutboxLimits, OutboxQueue};
use crate::protect::recorder::Recorder;
use crate::protect::ship::{Shipper, chain};
use crate::protect::spool::Spool;
use crate::protect::status::Board;
use crate::protect::table::PageTable;
use crate::repository::Repository;
use crate::time::Timestamp;
use crate::transaction::TxFlags;

/// How often the state folder is told that nothing went unseen.
const ALIVE_EVERY: Duration = Duration::from_secs(2);
/// The longest sleep of an idle capture thread.
const WAIT_MAX: Duration = Duration::from_secs(2);
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// What other threads ask of the capture thread.
pub(crate) enum Command {
    /// Capture what is committed now and ship it; answers with the last captured point.
    Flush(oneshot::Sender<Option<Point>>),
    /// Make everything safe and end.
    Stop,
    /// A base was made, or could not be.
    BaseDone(Result<Arc<Manifest>, ProtectError>),
}

/// Everything that outlives one run.
pub(crate) struct Driver {
    pub(crate) repository: Repository,
    pub(crate) options: ProtectOptions,
    pub(crate) board: Board,
    pub(crate) runtime: Handle,
    pub(crate) commands: Receiver<Command>,
    pub(crate) sender: std::sync::mpsc::Sender<Command>,
    pub(crate) waker: Waker,
    pub(crate) manifest: Option<Arc<Manifest>>,
}

/// How a run ended.
enum Ended {
    Stopped,
    /// Begin again at once.
    Again,
}

impl Driver {
    /// Runs until told to stop. Errors are shown in the status and tried again.
    pub(crate) fn run(mut self, first: Option<SqliteSource>) {
        let mut source = first;
        let mut pause = RETRY_MIN;
        loop {
            let began = Instant::now();
            let result = match source.take() {
                Some(source) => self.run_once(source),
                None => self.reopen().and_then(|source| self.run_once(source)),
            };
            match result {
                Ok(Ended::Stopped) => return,
                Ok(Ended::Again) => {}
                Err(error) => {
                    let advice = error.advice().map(|advice| format!("; {advice}")).unwrap_or_default();
                    tracing::warn!(error = %chain(&error), "protection is interrupted");
                    self.board.source_trouble(Some(format!("{}{advice}", chain(&error))));
                }
            }
            pause = if began.elapsed() > RETRY_MAX { RETRY_MIN } else { (pause * 2).min(RETRY_MAX) };
            if self.pause_is_cut_short(pause) {
                return;
            }
        }
    }

    fn reopen(&self) -> Result<SqliteSource, ProtectError> {
        Ok(SqliteSource::open(&self.options.source, self.options.source_options())?)
    }

    /// Waits before the next run; `true` when told to stop meanwhile.
    fn pause_is_cut_short(&self, pause: Duration) -> bool {
        match self.commands.recv_timeout(pause) {
            Ok(Command::Stop) | Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => true,
            Ok(Command::Flush(reply)) => {
                drop(reply);
                false
            }
            _ => false,
        }
    }

    fn run_once(&mut self, source: SqliteSource) -> Result<Ended, ProtectError> {
        let beginning =
            self.runtime.block_on(begin::begin(&self.repository, &self.options, source.path()))?;
        let mut run = Run::begin(self, source, beginning)?;
        self.board.source_trouble(None);
        let ended = run.capture(self);
        // Whatever ended the run: what is captured is made safe, and what can be stored is.
        let secured = run.recorder.secure();
        let stopping = matches!(ended, Ok(Ended::Stopped));
        if stopping && secured.is_ok() {
            let _ = run.recorder.ship(Instant::now());
            let _ = run.recorder.compact_journal();
            run.note_alive(self);
        }
        run.source.release();
        run.queue.close();
        let patience = if stopping { self.options.stop_patience } else { Duration::from_secs(5) };
        let drained =
            self.runtime.block_on(async { tokio::time::timeout(patience, &mut run.shipping).await });
        if drained.is_err() {
            run.shipping.abort();
            tracing::warn!("the store takes too long: the rest waits in the spool for the next start");
        }
        secured?;
        ended
    }
}

/// One run.
struct Run {
    source: SqliteSource,
    recorder: Recorder,
    queue: OutboxQueue,
    shipping: tokio::task::JoinHandle<()>,
    base_under_way: bool,
    base_wanted: bool,
    base_bytes: u64,
    alive_noted: Option<Instant>,
    alive_before: Timestamp,
}

impl Run {
    fn begin(
        driver: &mut Driver,
        mut source: SqliteSource,
        mut beginning: Beginning,
    ) -> Result<Self, ProtectError> {
        let options = &driver.options;
        let alive_before = read_alive(options).max(beginning.mark.time);
        if let Some(note) = &beginning.note {
            driver.board.note(note.clone());
        }
        if beginning.has_base {
            driver.board.base_ready();
        } else {
            driver.board.base_missing();
        }
        let attach = source.attach(beginning.table.as_ref().map(|_| beginning.mark.resume.as_slice()))?;
        driver.board.update(|status| status.database = Some(beginning.mark.database));
        let state = |source| ProtectError::State { folder: options.state.clone(), source };
        let (mut mark, mut table, mut image) = (beginning.mark.clone(), beginning.table, None);
        let mut record = Record::Nothing;
        if let Attach::Unknown { reason, behind } = &attach {
            let mut found = source.image(&mut Ignore)?;
            let scanned = scan(&mut *found).map_err(state)?;
            if *behind && beginning.state != Some(scanned.state()) {
                if !beginning.spooled.is_empty() {
                    // What only the spool has belongs to the timeline that is left; fork from what is stored.
                    let left = beginning.spooled.len();
                    driver
                        .board
                        .note(format!("{left} parts of timeline {} stay in the spool", mark.timeline));
                    beginning.spooled.clear();
                    table = None;
                    (mark.tx, mark.time) =
                        beginning.stored.map_or((None, mark.time), |(tx, time)| (Some(tx), time));
                }
                let (forked, exact) = driver.runtime.block_on(begin::fork_behind(
                    &driver.repository,
                    options,
                    &mark,
                    scanned.state(),
                ))?;
                driver.board.note(format!(
                    "the repository was ahead of the source ({reason}): timeline {} was begun",
                    forked.timeline
                ));
                mark = forked;
                record = if exact { Record::Nothing } else { Record::Difference };
            } else if beginning.state == Some(scanned.state()) {
                tracing::info!(reason, "the source's log does not go on, its state does: nothing was missed");
            } else {
                tracing::info!(reason, "the state of the source is taken anew");
                record = Record::Difference;
            }
            if matches!(record, Record::Difference) && table.is_none() && beginning.state.is_some() {
                let at = mark.tx.map(|tx| Position::new(mark.timeline, tx));
                table = at.and_then(|at| {
                    driver.runtime.block_on(begin::rebuilt_table(
                        &driver.repository,
                        options,
                        mark.database,
                        at,
                    ))
                });
            }
            let comparable = table.as_ref().is_some_and(|table| table.page_size() == scanned.page_size());
            if matches!(record, Record::Difference) && !comparable {
                record = Record::Image;
            }
            match record {
                Record::Nothing => table = Some(scanned),
                Record::Image => table = Some(scanned),
                Record::Difference => {}
            }
            mark.resume = source.resume();
            image = Some(found);
        }
        let Some(table) = table else { return Err(ProtectError::TaskDied { what: "page table".into() }) };
        (mark.page_size, mark.image_pages) = (table.page_size(), table.pages());
        let spool = Spool::open(&options.state, mark.timeline).map_err(state)?;
        base::sweep(&options.state).map_err(state)?;
        let queue = OutboxQueue::new(driver.board.clone());
        let limits = OutboxLimits { memory: options.memory_queue_bytes, spool: options.spool_bytes };
        let mut outbox = Outbox::new(queue.clone(), spool, options.state.clone(), limits);
        for part in beginning.spooled {
            let alone = part.flags.any();
            if alone {
                outbox.ship();
            }
            outbox.push(part);
            if alone {
                outbox.ship();
            }
        }
        outbox.ship();
        let journal = Journal::start(&options.state, &mark, &table).map_err(state)?;
        let shipper = Shipper {
            repository: driver.repository.clone(),
            database: mark.database,
            timeline: mark.timeline,
            queue: queue.clone(),
            board: driver.board.clone(),
            scratch: options.state.join("spool").join(mark.timeline.key_text()),
        };
        let point = |tx, time| Point { position: Position::new(mark.timeline, tx), time };
        let stored = beginning.stored.map(|(tx, time)| point(tx, time));
        driver.board.resumed(mark.tx.map(|tx| point(tx, mark.time)), stored);
        let shipping = driver.runtime.spawn(shipper.run());
        let recorder = Recorder::new(mark, table, journal, outbox, driver.board.clone());
        if driver.manifest.is_none()
            && let Some(point) = recorder.point()
        {
            let newest = base::newest_manifest(&driver.repository, recorder.database(), point.position);
            driver.manifest = driver.runtime.block_on(newest);
        }
        let mut run = Self {
            source,
            recorder,
            queue,
            shipping,
            base_under_way: false,
            base_wanted: !beginning.has_base,
            base_bytes: beginning.base_bytes,
            alive_noted: None,
            alive_before,
        };
        run.record_found(driver, record, image, beginning.state.is_some())?;
        if matches!(attach, Attach::Continue) {
            run.recorder.expect_uncertain(alive_before)?;
            run.source.poll(&mut run.recorder)?;
            run.recorder.expect_nothing()?;
        }
        Ok(run)
    }

    /// Records the state the source was found in, when its log did not lead there.
    fn record_found(
        &mut self,
        driver: &mut Driver,
        record: Record,
        image: Option<Box<dyn Image>>,
        has_history: bool,
    ) -> Result<(), ProtectError> {
        let Some(mut image) = image else { return Ok(()) };
        match record {
            Record::Nothing => self.recorder.resume_from(self.source.resume())?,
            Record::Difference => self.record_difference(driver, &mut *image)?,
            Record::Image => {
                driver.board.base_missing();
                let table = self.recorder.table().clone();
                self.recorder.record_image(
                    table,
                    self.commit_now(&*image),
                    has_history,
                    self.alive_before,
                )?;
                self.base_wanted = true;
            }
        }
        if self.base_wanted {
            // Its transaction must not be lost while its base is made, or the base would belong to nothing.
            self.recorder.secure()?;
        }
        self.recorder.ship(Instant::now())?;
        if self.base_wanted {
            self.make_base(driver, image)?;
        }
        Ok(())
    }

    fn commit_now(&self, image: &dyn Image) -> Commit {
        let now = Timestamp::now();
        Commit {
            image_pages: image.page_count(),
            time: now,
            not_before: now,
            observed: true,
            resume: self.source.resume(),
        }
    }

    /// Ships what differs between the recorded state and the image, as the transaction that ends a gap.
    fn record_difference(&mut self, driver: &Driver, image: &mut dyn Image) -> Result<(), ProtectError> {
        let state = |source| ProtectError::State { folder: driver.options.state.clone(), source };
        self.recorder.expect(TxFlags { ends_gap: true, ..TxFlags::NONE }, self.alive_before)?;
        let mut buffer = vec![0; image.page_size().bytes()];
        for page in (1..=image.page_count()).filter_map(PageNo::new) {
            if image.read(page, &mut buffer).map_err(state)?.is_some()
                && self.recorder.table().get(page) != Some(PageHash::of(page, &buffer))
            {
                self.recorder.page(page, &buffer, &mut |_| false)?;
            }
        }
        let commit = self.commit_now(image);
        self.recorder.commit(commit)?;
        self.recorder.expect_nothing()?;
        driver.board.update(|status| status.gaps_total += 1);
        Ok(())
    }

    fn make_base(&mut self, driver: &mut Driver, image: Box<dyn Image>) -> Result<(), ProtectError> {
        let Some(point) = self.recorder.point() else { return Ok(()) };
        self.base_wanted = false;
        self.base_under_way = true;
        self.recorder.base_begun()?;
        let job = BaseJob {
            repository: driver.repository.clone(),
            database: self.recorder.database(),
            point,
            state: self.recorder.table().state(),
            image,
            previous: driver.manifest.clone(),
            board: driver.board.clone(),
            epoch: driver.board.base_epoch(),
            scratch: driver.options.state.clone(),
        };
        let (sender, waker) = (driver.sender.clone(), driver.waker.clone());
        driver.runtime.spawn(async move {
            let _ = sender.send(Command::BaseDone(job.run().await));
            waker.wake();
        });
        Ok(())
    }

    fn capture(&mut self, driver: &mut Driver) -> Result<Ended, ProtectError> {
        loop {
            if let Some(ended) = self.obey(driver)? {
                return Ok(ended);
            }
            let looked = Timestamp::now();
            let polled = match self.source.poll(&mut self.recorder) {
                Ok(polled) => polled,
                Err(CaptureError::Sink(ProtectError::SpoolFull { .. })) => {
                    if let Some(ended) = self.let_go_if_too_large(driver)? {
                        return Ok(ended);
                    }
                    self.flush(driver)?;
                    self.source.wait(&driver.waker, Duration::from_millis(50));
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            if let Some(event) = polled.event {
                return self.obey_event(driver, &event);
            }
            driver.board.looked(looked);
            self.flush(driver)?;
            self.upkeep(driver, polled.transactions == 0)?;
            let wait = self.recorder.ship_in(driver.options.flush_interval, Instant::now());
            self.source.wait(&driver.waker, wait.map_or(WAIT_MAX, |wait| wait.min(WAIT_MAX)));
        }
    }

    /// Ships when the interval has passed or enough has gathered.
    fn flush(&mut self, driver: &Driver) -> Result<(), ProtectError> {
        let now = Instant::now();
        let due =
            self.recorder.ship_in(driver.options.flush_interval, now).is_some_and(|wait| wait.is_zero());
        if due || self.recorder.waiting_bytes() >= driver.options.segment_bytes {
            self.recorder.ship(now)?;
        }
        Ok(())
    }

    /// Bases by work, the journal, and the mark that nothing went unseen.
    fn upkeep(&mut self, driver: &mut Driver, quiet: bool) -> Result<(), ProtectError> {
        let (versions, bytes) = self.recorder.log_since_base();
        let due = self.base_wanted || base::is_due(versions, bytes, self.base_bytes);
        if due && !self.base_under_way && self.recorder.point().is_some() {
            let image = self.source.image(&mut self.recorder)?;
            self.make_base(driver, image)?;
        }
        if quiet && self.recorder.wants_compaction() {
            self.recorder.compact_journal()?;
        }
        if self.alive_noted.is_none_or(|noted| noted.elapsed() >= ALIVE_EVERY) {
            self.note_alive(driver);
        }
        Ok(())
    }

    fn note_alive(&mut self, driver: &Driver) {
        self.alive_noted = Some(Instant::now());
        let text = Timestamp::now().as_micros().to_string();
        if let Err(error) = std::fs::write(driver.options.state.join("alive"), text) {
            tracing::debug!(%error, "cannot note that the daemon is alive");
        }
    }

    fn obey(&mut self, driver: &mut Driver) -> Result<Option<Ended>, ProtectError> {
        loop {
            match driver.commands.try_recv() {
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => {
                    self.source.poll(&mut self.recorder)?;
                    return Ok(Some(Ended::Stopped));
                }
                Ok(Command::Flush(reply)) => {
                    self.source.poll(&mut self.recorder)?;
                    self.recorder.ship(Instant::now())?;
                    let _ = reply.send(self.recorder.point());
                }
                Ok(Command::BaseDone(Ok(manifest))) => {
                    self.base_under_way = false;
                    self.base_bytes = base::stored_bytes(&manifest);
                    driver.manifest = Some(manifest);
                }
                Ok(Command::BaseDone(Err(error))) => {
                    // The captured state and the source do not agree: compare all pages as after a gap.
                    tracing::error!(error = %chain(&error), "a base could not be made");
                    self.recorder.forget_resume();
                    return Err(error);
                }
                Err(TryRecvError::Empty) => return Ok(None),
            }
        }
    }

    fn obey_event(&self, driver: &Driver, event: &SourceEvent) -> Result<Ended, ProtectError> {
        tracing::warn!(?event, "the source has changed under its name");
        driver.board.source_trouble(Some(format!("the source has changed: {event:?}")));
        Ok(Ended::Again)
    }

    /// With a full spool: holds the source's log until it reaches its ceiling, then lets go and waits for room. What
    /// was committed meanwhile becomes a gap.
    fn let_go_if_too_large(&mut self, driver: &mut Driver) -> Result<Option<Ended>, ProtectError> {
        if self.source_log_bytes()? < driver.options.source_log_bytes {
            return Ok(None);
        }
        self.source.release();
        driver.board.source_trouble(Some(
            "the store takes too little and the spool is full: commits are not captured singly until there is room".into(),
        ));
        while !self.recorder.outbox().has_room() {
            if let Some(ended) = self.obey_while_away(driver) {
                return Ok(Some(ended));
            }
        }
        Ok(Some(Ended::Again))
    }

    fn source_log_bytes(&self) -> Result<u64, ProtectError> {
        let frames = self.source.log_status()?.frames;
        Ok(u64::from(frames) * u64::from(self.source.page_size().get()))
    }

    fn obey_while_away(&mut self, driver: &mut Driver) -> Option<Ended> {
        match driver.commands.recv_timeout(Duration::from_millis(200)) {
            Ok(Command::Stop) => Some(Ended::Stopped),
            Ok(Command::BaseDone(Ok(manifest))) => {
                driver.manifest = Some(manifest);
                None
            }
            _ => None,
        }
    }
}

/// What of the found state has to be recorded.
#[derive(Clone, Copy, Debug)]
enum Record {
    /// It is the state the log ends with.
    Nothing,
    /// The pages that differ.
    Difference,
    /// A base, made now.
    Image,
}

/// Takes no transaction: while the source's state is looked up anew, the image is what counts.
struct Ignore;

impl Sink for Ignore {
    type Error = std::convert::Infallible;
    fn page(&mut self, _: PageNo, _: &[u8], _: PreviousPage<'_>) -> Result<(), Self::Error> {
        Ok(())
    }
    fn commit(&mut self, _: Commit) -> Result<(), Self::Error> {
        Ok(())
    }
    fn rollback(&mut self) {}
    fn secure(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }
}

/// The page table of an image. Reading is the whole cost: 0.1-0.3 s per GiB from the page cache.
fn scan(image: &mut dyn Image) -> std::io::Result<PageTable> {
    let page_size = image.page_size();
    let mut hashes = Vec::with_capacity(image.page_count() as usize);
    let mut buffer = vec![0; page_size.bytes()];
    for page in (1..=image.page_count()).filter_map(PageNo::new) {
        let stored = image.read(page, &mut buffer)?;
        hashes.push(stored.map_or(0, |()| PageHash::of(page, &buffer).get()));
    }
    Ok(PageTable::from_hashes(page_size, begin::never_stored(page_size), hashes))
}

fn read_alive(options: &ProtectOptions) -> Timestamp {
    let text = std::fs::read_to_string(options.state.join("alive")).unwrap_or_default();
    let noted = Timestamp::from_micros(text.trim().parse().unwrap_or(0));
    noted.min(Timestamp::now())
}
