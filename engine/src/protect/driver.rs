//! The capture thread of one database: waits for commits, records them, lets the source's log be reused, ships.
//!
//! One run goes from a beginning (see [`begin`]) to a stop or to something that breaks the thread: an
//! error of the source, another file under the same name, a full spool. Then everything that is captured is made
//! safe, and the next run begins as after a restart: there is one way back, and it is the tested one.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::base::Manifest;
use crate::capture::sink::{Commit, Image, Sink};
use crate::capture::sqlite::{Attach, CaptureError, SourceEvent, SqliteSource};
use crate::capture::watch::Waker;
use crate::error::Explain;
use crate::history::Point;
use crate::ids::{Position, TxId};
use crate::page::{PageHash, PageNo};
use crate::protect::ProtectOptions;
use crate::protect::base::{self, BaseFacts, BaseJob};
use crate::protect::begin::{self, Beginning};
use crate::protect::error::ProtectError;
use crate::protect::found::{self, Found, Record};
use crate::protect::held::{self, Held};
use crate::protect::journal::{Journal, Mark};
use crate::protect::outbox::{Outbox, OutboxLimits, OutboxQueue, Part};
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
        let (path, sqlite) = (self.options.source.clone(), self.options.sqlite.clone());
        let mut held = Held::new(path, sqlite, self.options.source_log_bytes, first);
        let mut pause = RETRY_MIN;
        loop {
            let began = Instant::now();
            match self.run_once(&mut held) {
                Ok(Ended::Stopped) => return,
                Ok(Ended::Again) => {}
                Err(error) => {
                    let advice = error.advice().map(|advice| format!("; {advice}")).unwrap_or_default();
                    let held = if held.is_held() { "; the log is kept meanwhile" } else { "" };
                    tracing::warn!(error = %chain(&error), "protection is interrupted");
                    self.board.source_trouble(Some(format!("{}{advice}{held}", chain(&error))));
                }
            }
            pause = if began.elapsed() > RETRY_MAX { RETRY_MIN } else { (pause * 2).min(RETRY_MAX) };
            if self.told_to_stop_within(pause, &mut held) {
                return;
            }
        }
    }

    /// Waits before the next run; `true` when told to stop meanwhile.
    fn told_to_stop_within(&self, pause: Duration, held: &mut Held) -> bool {
        let until = Instant::now() + pause;
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            held.check();
            match self.commands.recv_timeout(left.min(held::CHECK_EVERY)) {
                Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => return true,
                // Who waits for a flush is told by the reply that never comes.
                Ok(Command::Flush(_) | Command::BaseDone(_)) | Err(RecvTimeoutError::Timeout) => {}
            }
        }
        false
    }

    /// Finds where to begin, while the log is kept. `None` when told to stop meanwhile.
    fn begin(&self, held: &mut Held) -> Result<Option<Beginning>, ProtectError> {
        let (repository, options) = (self.repository.clone(), self.options.clone());
        let path = held.path().to_owned();
        let mut begun = self.runtime.spawn(async move { begin::begin(&repository, &options, &path).await });
        loop {
            let waited =
                self.runtime.block_on(async { tokio::time::timeout(held::CHECK_EVERY, &mut begun).await });
            match waited {
                Ok(Ok(beginning)) => return beginning.map(Some),
                Ok(Err(died)) => return Err(ProtectError::TaskDied { what: died.to_string() }),
                Err(_) => held.check(),
            }
            if matches!(self.commands.try_recv(), Ok(Command::Stop) | Err(TryRecvError::Disconnected)) {
                begun.abort();
                return Ok(None);
            }
        }
    }

    fn run_once(&mut self, held: &mut Held) -> Result<Ended, ProtectError> {
        held.hold()?;
        let Some(beginning) = self.begin(held)? else { return Ok(Ended::Stopped) };
        let source = held.take()?;
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
    base: Option<BaseFacts>,
    alive_noted: Option<Instant>,
    alive_before: Timestamp,
}

impl Run {
    fn begin(
        driver: &mut Driver,
        mut source: SqliteSource,
        beginning: Beginning,
    ) -> Result<Self, ProtectError> {
        let options = &driver.options;
        let alive_before = read_alive(options).max(beginning.mark.time);
        if let Some(note) = &beginning.note {
            driver.board.note(note.clone());
        }
        if beginning.base.is_some() {
            driver.board.base_ready();
        } else {
            driver.board.base_missing();
        }
        let attach = source.attach(beginning.table.as_ref().map(|_| beginning.mark.resume.as_slice()))?;
        driver.board.update(|status| status.database = Some(beginning.mark.database));
        let has_history = beginning.state.is_some();
        let base = beginning.base;
        let Found { mark, table, record, image, spooled, stored } =
            found::find(driver, &mut source, beginning, &attach)?;
        let (recorder, queue, shipping) = set_up(driver, mark, table, spooled, stored, alive_before)?;
        let mut run = Self {
            source,
            recorder,
            queue,
            shipping,
            base_under_way: false,
            base_wanted: base.is_none(),
            base,
            alive_noted: None,
            alive_before,
        };
        run.record_found(driver, record, image, has_history)?;
        if matches!(attach, Attach::Continue) {
            run.source.poll(&mut run.recorder)?;
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
        Commit { image_pages: image.page_count(), time: now, resume: self.source.resume() }
    }

    /// Ships what differs between the recorded state and the image, as the transaction that ends a gap.
    fn record_difference(&mut self, driver: &Driver, image: &mut dyn Image) -> Result<(), ProtectError> {
        self.recorder.expect(TxFlags { ends_gap: true, ..TxFlags::NONE }, self.alive_before)?;
        let mut buffer = vec![0; image.page_size().bytes()];
        for page in (1..=image.page_count()).filter_map(PageNo::new) {
            if image.read(page, &mut buffer).map_err(ProtectError::ReadImage)?.is_some()
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
        let (now, rule) = (Timestamp::now(), driver.options.base);
        let outgrown = |base: BaseFacts| base.is_outgrown(versions, bytes, now, rule);
        let due = self.base_wanted || self.base.is_some_and(outgrown);
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
                    self.base = Some(BaseFacts::of(&manifest));
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

/// Makes everything between the source and the store, and sends what the spool held on its way.
fn set_up(
    driver: &mut Driver,
    mark: Mark,
    table: PageTable,
    spooled: Vec<Part>,
    stored: Option<(TxId, Timestamp)>,
    watched_until: Timestamp,
) -> Result<(Recorder, OutboxQueue, tokio::task::JoinHandle<()>), ProtectError> {
    let options = &driver.options;
    let state = |source| ProtectError::State { folder: options.state.clone(), source };
    let spool = Spool::open(&options.state, mark.timeline).map_err(state)?;
    base::sweep(&options.state).map_err(state)?;
    let queue = OutboxQueue::new(driver.board.clone());
    let limits = OutboxLimits { memory: options.memory_queue_bytes, spool: options.spool_bytes };
    let mut outbox = Outbox::new(queue.clone(), spool, options.state.clone(), limits);
    spooled.into_iter().for_each(|part| outbox.push(part));
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
    driver.board.resumed(mark.tx.map(|tx| point(tx, mark.time)), stored.map(|(tx, time)| point(tx, time)));
    let recorder = Recorder::new(mark, table, journal, outbox, driver.board.clone(), watched_until);
    if let (None, Some(point)) = (&driver.manifest, recorder.point()) {
        let newest = base::newest_manifest(&driver.repository, recorder.database(), point.position);
        driver.manifest = driver.runtime.block_on(newest);
    }
    Ok((recorder, queue, driver.runtime.spawn(shipper.run())))
}

fn read_alive(options: &ProtectOptions) -> Timestamp {
    let text = std::fs::read_to_string(options.state.join("alive")).unwrap_or_default();
    let noted = Timestamp::from_micros(text.trim().parse().unwrap_or(0));
    noted.min(Timestamp::now())
}
